"""FlowDiff on a Gaussian field behind a blur: the trained flow is the posterior that Fourier gives in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.two_modes import SIGMA_Y, Plain
from tests.oracles import filtered, gaussian_field
from torch import Tensor

from napari_ambient.amortised import AmortisedPosterior
from napari_ambient.denoiser import Scale
from napari_ambient.networks.flow import ConditionalFlow, FlowArguments
from napari_ambient.objectives import Batch, FlowDiff
from napari_ambient.objectives.views import View, Views
from napari_ambient.operators import Blur

SIZE = 16


def field() -> tuple[Tensor, Tensor, Blur]:
    """Spectrum of the field, transfer function of the blur, and the blur, all on a torus."""
    f = torch.from_numpy(np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE))))
    spectrum = 1.5 / (1 + (f / 0.15) ** 2) ** 1.5
    offsets = np.arange(-3, 4)
    line = np.exp(-(offsets**2) / 2)
    psf = np.outer(line, line)
    psf /= psf.sum()
    blur = Blur(psf, border="wrap")
    impulse = torch.zeros((1, 1, 1, SIZE, SIZE), dtype=torch.float64)
    impulse[..., 0, 0] = 1
    transfer = torch.fft.fft2(blur.forward(impulse))[0, 0, 0].real
    return spectrum, transfer, blur


def trained(steps: int, leave_out: str | None, monkeypatch: pytest.MonkeyPatch) -> AmortisedPosterior:
    """Train a small flow against the exact diffusion model of the field."""
    spectrum, transfer, blur = field()
    torch.manual_seed(0)
    flow = ConditionalFlow(FlowArguments(conditions=2, strides=((2, 2), (2, 2)), steps=3, hidden=24, features=16))
    posterior = AmortisedPosterior(flow, [Scale(0.0, 1.0)])
    objective = FlowDiff(Plain(), low=0.02, high=20.0, beginning=0.0)
    objective.posterior = posterior
    view = View(blur, 0, (slice(0, 1), slice(0, SIZE), slice(0, SIZE)))

    def exact(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        gain = spectrum / (spectrum + sigma.double().square().reshape(-1, 1, 1, 1))
        return torch.fft.ifft2(torch.fft.fft2(x) * gain).real.to(x.dtype)

    for module in ("amortised", "objectives.base"):
        monkeypatch.setattr(f"napari_ambient.{module}.stabilise", lambda k, _: k)
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps)) + 3e-5
        g = torch.Generator().manual_seed(step)
        batch = measured(16, g, spectrum, transfer, Views([view] * 16, (1, 1, 1)))
        terms: dict[str, Any] = objective.losses(exact, exact, batch, g)
        loss = sum(v for k, v in terms.items() if k in {"data", "entropy", "prior"} - {leave_out})
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimiser.step()
    return posterior


def measured(count: int, g: torch.Generator, spectrum: Tensor, transfer: Tensor, views: Views) -> Batch:
    """Fields, blurred and noisy."""
    x = gaussian_field(spectrum, count, g)
    y = filtered(x, transfer) + SIGMA_Y * torch.randn(x.shape, generator=g, dtype=torch.float64)
    good = torch.ones(y.shape, dtype=torch.bool)
    return Batch(y.float(), good, good, torch.zeros(count, dtype=torch.long), views=views)


def compare(posterior: AmortisedPosterior) -> tuple[float, float, Tensor]:
    """Error of the mean over the posterior's spread; total variance and spectrum of draws over the exact ones."""
    spectrum, transfer, blur = field()
    view = View(blur, 0, (slice(0, 1), slice(0, SIZE), slice(0, SIZE)))
    g = torch.Generator().manual_seed(99)
    batch = measured(8, g, spectrum, transfer, Views([view] * 8, (1, 1, 1)))
    variance = spectrum * SIGMA_Y**2 / (transfer**2 * spectrum + SIGMA_Y**2)
    wanted = filtered(batch.counts.double(), transfer * spectrum / (transfer**2 * spectrum + SIGMA_Y**2))
    light, known = batch.evidence()
    with torch.no_grad():
        draws = torch.stack([posterior(torch.randn(light.shape, generator=g), light, known)[0] for _ in range(200)])
    inner = (..., slice(4, -4), slice(4, -4))  # the torus ends where the network's zeros begin
    mean = draws.mean(0).double()
    error = float(((mean - wanted)[inner].square().mean() / variance.mean()).sqrt())
    power = torch.fft.fft2((draws - draws.mean(0)).double()).abs().square().mean((0, 1, 2)) / SIZE**2
    total = float((draws - draws.mean(0))[inner].square().mean() / variance.mean())
    f = torch.from_numpy(np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE))))
    bands = [(f >= a) & (f < b) for a, b in ((0.0, 0.1), (0.1, 0.2), (0.2, 0.35), (0.35, 0.8))]
    return error, total, torch.stack([power[b].mean() / variance[b].mean() for b in bands])


def test_the_flow_becomes_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean h̄Sy/(|h|²S+σ²) and variance Sσ²/(|h|²S+σ²), by bands of frequency too."""
    torch.set_num_threads(1)
    error, total, bands = compare(trained(200, None, monkeypatch))
    assert error < 0.25
    assert total == pytest.approx(1, abs=0.1)
    assert float((bands - 1).abs().max()) < 0.25


def test_without_the_prior_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blur hides the fine detail, so the spread there is the prior's to bound."""
    torch.set_num_threads(1)
    _, total, _ = compare(trained(60, "prior", monkeypatch))
    assert total > 1.5
