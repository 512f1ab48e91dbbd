"""Held-out photons measure how wide error bars should be: right, too narrow and too wide ones are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_ambient import restore
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.prior import Prior, Record
from napari_ambient.recalibration import measure_spread
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


def setting(trust: float) -> tuple[Volume, Prior]:
    rng = np.random.default_rng(1)
    light = rng.gamma(SHAPE, 1 / RATE, (160, 160))
    noise = NoiseModel(gain=1.0, intercept=0.0, photons=3.0)
    config = {"steps": 1, "below": "virtual_exposures", "below_steps": 1}
    prior = Prior(GammaLight(trust), (noise,), Record("ambient", "thinning", "YX", {}, config=config, step=2))
    return Volume.from_array(rng.poisson(light).astype(np.float32), "YX"), prior


@pytest.mark.parametrize(("trust", "low", "high"), [(1.0, 0.95, 1.1), (6.0, 1.5, 4.0), (0.2, 0.8, 0.99)])
def test_factor(trust: float, low: float, high: float) -> None:
    """Near one for the exact posterior (a finite exposure lacks 3 %), above for too much trust in the prior."""
    torch.set_num_threads(1)
    found = measure_spread(*setting(trust), draws=6)
    assert low < found.factor < high
    assert found.uncertainty < 0.1 * found.factor


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


def test_what_does_not_fit_is_refused() -> None:
    volume, prior = setting(1.0)
    with pytest.raises(RestorationError, match="a stage below the noise"):
        measure_spread(volume, replace(prior, record=replace(prior.record, config={})))
    with pytest.raises(RestorationError, match=r"0\.3 to 0\.9"):
        measure_spread(volume, prior, exposure=1.0)
    with pytest.raises(RestorationError, match="a factor"):
        restore(volume, prior, method="samples", spread=0.0)
