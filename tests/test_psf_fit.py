"""The fitted PSF: aberrated optics are found from a stack alone, the right ones are left as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_ambient import psf_fit
from napari_ambient.measurement import Optics
from napari_ambient.noise import NoiseModel
from napari_ambient.operators import Blur
from napari_ambient.point_spread import PointSpreadError, microscope_psf
from napari_ambient.psf_fit import FittedPsf, fit_psf
from napari_ambient.volumes import Volume

STEP = (0.4, 0.2, 0.2)
SHAPE = (16, 48, 48)
OPTICS = Optics(na=1.1, wavelength=520, refractive_index=1.33)
NOISE = NoiseModel(gain=2.0, intercept=-200.0)


def psf_of(na: float, aberration: tuple[float, ...], half: tuple[int, ...] = (15, 16, 16)) -> np.ndarray:
    return microscope_psf(
        "widefield",
        na=na,
        wavelength_nm=OPTICS.wavelength,
        refractive_index=OPTICS.refractive_index,
        voxel_size_um=STEP,
        shape=[2 * n + 1 for n in half],
        aberration=aberration,
    )


def stack(psf: np.ndarray) -> Volume:
    """Count the light of points and of two rods behind a PSF."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(3)
    light = np.zeros(SHAPE)
    for _ in range(40):
        light[tuple(rng.integers(2, n - 2) for n in SHAPE)] += rng.uniform(500, 3000)
    light[8, 10:40, 20] += 300
    light[5, 30, 8:40] += 300
    expected = Blur(psf, border="zero").forward(torch.from_numpy(light)[None, None])[0, 0].numpy().clip(0)
    counts = 100 + 2 * rng.poisson(expected)
    return Volume.from_array(
        counts.astype(np.float32), "ZYX", voxel_size=dict(zip("ZYX", STEP, strict=True)), name="points"
    )


def distance(psf: np.ndarray, truth: np.ndarray) -> float:
    """Give how much of the light lies elsewhere, on the box that both have."""
    half = [min(a, b) // 2 for a, b in zip(psf.shape, truth.shape, strict=True)]
    one, two = (
        p[tuple(slice(n // 2 - h, n // 2 + h + 1) for n, h in zip(p.shape, half, strict=True))] for p in (psf, truth)
    )
    return float(np.abs(one / one.sum() - two / two.sum()).sum() / 2)


def test_aberrated_optics_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a wrong aperture and no aberration: most of the PSF's error is gone, and held-out photons say so."""
    monkeypatch.setattr(psf_fit, "EVALUATIONS", 30)
    truth = psf_of(0.95, (0.6,))
    told: list[FittedPsf] = []
    best = fit_psf(stack(truth), NOISE, OPTICS, watch=told.append)
    first = told[0]
    assert (first.na, first.axial_scale, first.aberration, first.gain) == (1.1, 1.0, (0.0, 0.0), 0.0)
    assert [one.evaluations for one in told] == list(range(1, len(told) + 1))
    assert best.gain == max(one.gain for one in told) > 1
    assert best.psf.sum() == pytest.approx(1, abs=1e-5)
    assert distance(best.psf, truth) < 0.35 * distance(first.psf, truth)
    assert "held-out photons" in best.describe()


def test_the_right_optics_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: nothing is gained that matters, and the PSF stays near the truth."""
    monkeypatch.setattr(psf_fit, "EVALUATIONS", 12)
    truth = psf_of(1.1, ())
    found = fit_psf(stack(truth), NOISE, OPTICS)
    wrong = fit_psf(stack(truth), NOISE, replace(OPTICS, na=0.8))
    assert found.gain < 0.1 * wrong.gain
    assert distance(found.psf, truth) < 0.05


def test_what_cannot_be_fitted_is_refused() -> None:
    volume = stack(psf_of(1.1, ()))
    with pytest.raises(PointSpreadError, match="one stack"):
        fit_psf(volume.replace(data=volume.data[0], axes="YX"), NOISE, OPTICS)
    with pytest.raises(PointSpreadError, match="only a widefield PSF"):
        fit_psf(volume, NOISE, replace(OPTICS, microscope="confocal", excitation=488))
    with pytest.raises(PointSpreadError, match="give it \\(--na\\)"):
        fit_psf(volume, NOISE, Optics())
    with pytest.raises(PointSpreadError, match="along Z, Y, X is unknown"):
        fit_psf(Volume.from_array(np.asarray(volume.data), "ZYX"), NOISE, OPTICS)
    with pytest.raises(PointSpreadError, match="no light"):
        fit_psf(volume, NoiseModel(gain=2.0, intercept=-2e6), OPTICS)
