"""Preconditioning: unit variance in, and an untrained network is the best linear guess."""

from __future__ import annotations

import pytest
import torch

from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments


def make(scales: list[Scale]) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(UNet(UNetArguments(widths=(8, 8), strides=((2, 2), (2, 2)))), scales)


def test_untrained_is_the_pixelwise_wiener_filter() -> None:
    """With F = 0, D = μ + s²/(s²+σ²)(x - μ), per sample and per channel's scale."""
    denoiser = make([Scale(3.0, 2.0), Scale(10.0, 0.5)])
    x = torch.randn(3, 1, 8, 8) + 4
    sigma = torch.tensor([0.5, 1.0, 4.0])
    channel = torch.tensor([0, 1, 1])
    out = denoiser(x, sigma, channel=channel)
    for i, (mu, s) in enumerate([(3.0, 2.0), (10.0, 0.5), (10.0, 0.5)]):
        expected = mu + s**2 / (s**2 + sigma[i] ** 2) * (x[i] - mu)
        torch.testing.assert_close(out[i], expected)
    assert out.dtype == torch.float32


def test_what_the_network_sees_has_unit_variance() -> None:
    """c_in scales x_t of any level to variance one."""
    denoiser = make([Scale(5.0, 1.7)])
    seen: list[torch.Tensor] = []
    denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    g = torch.Generator().manual_seed(0)
    for sigma in (0.1, 1.0, 20.0):
        x = 5.0 + (1.7**2 + sigma**2) ** 0.5 * torch.randn(1, 1, 256, 256, generator=g)
        denoiser(x, torch.tensor([sigma]))
        assert float(seen[-1].std()) == pytest.approx(1, rel=0.02)


def test_a_measurement_is_taken_for_its_level_until_taught() -> None:
    """The flag `measured` changes nothing before training, and can after."""
    denoiser = make([Scale(0.0, 1.0)])
    torch.nn.init.normal_(denoiser.network.leave.weight, std=0.1)  # open the output
    torch.nn.init.normal_(denoiser.network.middle[0].film.weight, std=0.1)  # type: ignore[index, union-attr]
    torch.nn.init.normal_(denoiser.network.middle[0].second.weight, std=0.1)  # type: ignore[index, union-attr]
    x, sigma = torch.randn(1, 1, 16, 16), torch.ones(1)
    torch.testing.assert_close(denoiser(x, sigma, measured=True), denoiser(x, sigma, measured=False))
    assert not torch.allclose(denoiser(x, sigma, corruption="photon"), denoiser(x, sigma, corruption="gaussian"))


def test_a_scale_without_spread_is_refused() -> None:
    """A constant training set has no scale."""
    with pytest.raises(ValueError, match="positive spread"):
        make([Scale(1.0, 0.0)])
