"""Held-out photons measure how wide error bars should be: right, too narrow and too wide ones are told apart."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_ambient import restore
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.moments import Spread
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.prior import Prior, Record
from napari_ambient.recalibration import compare, measure_spread
from napari_ambient.restorer import RestorationError
from napari_ambient.volumes import Volume

SHAPE, RATE = 3.0, 1.0  # of the Gamma prior of every voxel


class GammaLight(Denoiser):
    """The exact denoiser of independent Gamma light, or one that trusts its prior too much or too little."""

    def __init__(self, trust: float) -> None:
        super().__init__(UNet(UNetArguments(widths=(8,), strides=((2, 2),))), [Scale(3.5, 1.2)])
        self.trust = trust

    def forward(self, x_t: Tensor, sigma: Tensor, **_: object) -> Tensor:
        exposure = sigma.reshape(-1, 1, 1, 1).square().reciprocal()
        counts = (exposure * x_t.square() / 4 - 0.375).clamp_min(0)
        return 2 * ((counts + self.trust * SHAPE) / (exposure + self.trust * RATE)).sqrt()


def setting(trust: float, frames: int = 0) -> tuple[Volume, Prior]:
    rng = np.random.default_rng(1)
    light = rng.gamma(SHAPE, 1 / RATE, (160, 160))
    if frames:
        light = np.broadcast_to(light, (frames, 160, 160))
    noise = NoiseModel(gain=1.0, intercept=0.0, photons=3.0)
    config = {"steps": 1, "below": "virtual_exposures", "below_steps": 1}
    prior = Prior(GammaLight(trust), (noise,), Record("ambient", "thinning", "YX", {}, config=config, step=2))
    return Volume.from_array(rng.poisson(light).astype(np.float32), "TYX" if frames else "YX"), prior


@pytest.mark.parametrize(("trust", "low", "high"), [(1.0, 0.95, 1.1), (6.0, 1.5, 4.0), (0.2, 0.8, 0.99)])
def test_factor(trust: float, low: float, high: float) -> None:
    """Near one for the exact posterior (a finite exposure lacks 3 %), above for too much trust in the prior."""
    torch.set_num_threads(1)
    found = measure_spread(*setting(trust), draws=6)
    assert low < found.factor < high
    assert found.uncertainty < 0.1 * found.factor


def test_other_frames_of_the_field_tell_more() -> None:
    """The same factors from repeats, with a smaller standard error; in a field that moved error bars seem narrow."""
    for trust, low, high in ((1.0, 0.95, 1.05), (6.0, 1.5, 4.0)):
        volume, prior = setting(trust, frames=5)
        held = measure_spread(volume, prior, draws=6)
        found = measure_spread(volume, prior, repeats=range(1, 5), draws=6)
        assert low < found.factor < high
        if trust == 1:  # the exact posterior: small error bars are as right as large ones
            assert abs(found.power - 1) < 3 * found.power_uncertainty < 0.35
        assert found.uncertainty < 0.6 * held.uncertainty
        assert found.source == "4 other time points"
    data = np.array(volume.data)
    data[1:] = np.roll(data[1:], 1, axis=-1)
    moved = Volume.from_array(data, "TYX")
    prior = setting(1.0)[1]
    assert measure_spread(moved, prior, repeats=range(1, 5), draws=6).factor > 1.3


@pytest.mark.parametrize(("factor", "power"), [(1.0, 1.0), (0.8, 1.4), (1.6, 0.6)])
def test_the_power_law_is_found(factor: float, power: float, rng: np.random.Generator) -> None:
    """Errors that grow as a power of what is claimed: with repeats to some percent, and corrected in every bin."""
    count, claimed = 60_000, 0.5
    light = rng.uniform(3, 6, count)
    std = claimed * np.exp(rng.normal(0, 0.5, count))
    truth = Spread(factor, power, claimed=float(np.sqrt(np.mean(std**2))))
    right = std * truth.of(std)
    mean = light + right * rng.standard_normal(count)
    held = rng.poisson(10 * light) / 10
    found = compare(mean, np.stack([std**2] * 2), held, held / 10, 10.0)
    assert found.factor == pytest.approx(factor, rel=0.04)
    assert abs(found.power - power) < 3 * found.power_uncertainty
    assert found.power_uncertainty < 0.1
    bins = np.array_split(np.argsort(std), 10)
    mended = std * found.of(std)
    ratios = [np.sqrt(np.mean((mean - light)[b] ** 2) / np.mean(mended[b] ** 2)) for b in bins]
    assert np.abs(np.log(ratios)).max() < 0.08
    plain = [np.sqrt(np.mean((mean - light)[b] ** 2) / np.mean(std[b] ** 2)) for b in bins]
    assert (np.abs(np.log(plain)).max() > 0.3) == (power != 1)  # the control: without it the bins are wrong


@pytest.mark.parametrize("exposure", [30.0, 0.3])
def test_what_is_no_power_law_is_found_where_the_data_tell(exposure: float, rng: np.random.Generator) -> None:
    """Error bars twice too wide below a level and right above it, as of real draws over a dim background.

    With sharp repeats every bin is mended, which no power law does; where little is known the bend stays near one.
    """
    count = 60_000
    std = np.exp(rng.normal(-0.5, 0.5, count))
    right = std * (0.75 + 0.25 * np.tanh(3 * np.log(std / 0.8)))
    light = 2 + 4 * std
    mean = light + right * rng.standard_normal(count)
    held = rng.poisson(exposure * light) / exposure
    law, found = (compare(mean, np.stack([std**2] * 2), held, held / exposure, exposure, bend=b) for b in (False, True))
    bins = np.array_split(np.argsort(std), 10)

    def worst(spread: Spread) -> float:
        mended = std * spread.of(std)
        return max(abs(math.log(np.sqrt(np.mean((mean - light)[b] ** 2) / np.mean(mended[b] ** 2)))) for b in bins)

    if exposure > 1:
        assert worst(found) < math.log(1.1) < math.log(1.13) < worst(law)
    else:
        assert all(0.7 < by < 1.4 for _, by in found.bend)
    assert np.sqrt(np.mean((std * found.of(std)) ** 2)) == pytest.approx(found.error, rel=0.04)


def test_where_the_data_cannot_tell_the_power_is_one(rng: np.random.Generator) -> None:
    """A few voxels determine the factor alone."""
    std = 1.2 * np.exp(rng.normal(0, 0.1, 400))
    mean = 2 + std * rng.standard_normal(400)
    held = rng.poisson(2.0, 400).astype(float)
    found = compare(mean, np.stack([std**2] * 2), held, held, 1.0)
    assert abs(found.power - 1) < 0.5
    assert 0.15 < found.power_uncertainty < 0.31


def test_spread_widens_about_the_mean() -> None:
    """The mean stays, standard deviation and quantiles follow, and the record says so."""
    volume, prior = setting(1.0)
    options = {"method": "samples", "draws": 4, "steps": 4, "outputs": ["mean", "std", "q90"]}
    plain, wide = (restore(volume, prior, spread=s, **options) for s in (1.0, 1.5))
    a, b = (r.data.compute() for r in (plain, wide))
    np.testing.assert_allclose(b[0], a[0], rtol=1e-5)
    np.testing.assert_allclose(b[1], 1.5 * a[1], rtol=1e-5)
    np.testing.assert_allclose(b[2] - b[0], 1.5 * (a[2] - a[0]), rtol=1e-3, atol=1e-4)
    assert wide.history[-1]["spread"] == 1.5


def test_a_power_widens_small_error_bars_more() -> None:
    """Below one, small error bars grow by more than large ones; draws and quantiles follow them voxel by voxel."""
    volume, prior = setting(1.0)
    options = {"method": "samples", "draws": 4, "steps": 4, "outputs": ["mean", "std", "q90"]}
    with pytest.raises(ValueError, match="rising"):
        Spread(1.0, bend=((2.0, 1.0), (1.0, 1.0)))
    spread = Spread(1.2, 0.5, claimed=1.0)
    plain, wide = (restore(volume, prior, spread=s, **options) for s in (1.0, spread))
    a, b = (r.data.compute() for r in (plain, wide))
    np.testing.assert_allclose(b[0], a[0], rtol=1e-5)
    np.testing.assert_allclose(b[1], 1.2 * a[1] ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(b[2] - b[0], (b[1] / a[1]) * (a[2] - a[0]), rtol=1e-3, atol=1e-4)
    assert wide.history[-1]["spread"] == spread.to_dict()
    assert "1.697 where they were half as large as usual, 0.849 where twice" in spread.describe()


def test_what_does_not_fit_is_refused() -> None:
    volume, prior = setting(1.0)
    with pytest.raises(RestorationError, match="a stage below the noise"):
        measure_spread(volume, replace(prior, record=replace(prior.record, config={})))
    with pytest.raises(RestorationError, match=r"0\.3 to 0\.9"):
        measure_spread(volume, prior, exposure=1.0)
    with pytest.raises(RestorationError, match="a factor"):
        restore(volume, prior, method="samples", spread=0.0)
    with pytest.raises(ValueError, match="powers above 0"):
        Spread(1.0, power=-1.0)
    for repeats in ([0], [3], [1, 1]):
        with pytest.raises(RestorationError, match="name other time points than 0"):
            measure_spread(setting(1.0, frames=3)[0], prior, repeats=repeats)
