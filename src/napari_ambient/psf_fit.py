"""The PSF of a widefield stack from the stack itself: the optics that explain photons which were held out.

A PSF computed from what is written on the objective is seldom the microscope's: cover glass, medium and depth bring
spherical aberration, the pupil is not filled. Photons are split in two halves k₁ and k₂, independent of each other
(`splitting.py`). Of optics p, with A = A(p),

    x ← x Aᵀ(k₁ / A x) / Aᵀ1       Richardson & Lucy (1972, 1974), made faster as by Biggs & Andrews (Appl. Opt. 36
                                   (1997), 1766), each time from an even image on
    F(p) = min Σ (A x - k₂ log A x) over the iterations       how well they predict the other half, at their best

F is least at the true optics, and is minimised over few parameters: the aperture, the axial scale, and two orders of
spherical aberration (`point_spread.microscope_psf`). Two things look alike but are not: alternating between x and p, as
blind deconvolution does, ends at PSFs that are too small, for an x that is not finished yet is too smooth (simulated
points: 15 % of the light in the wrong place, from 22 %; F: 3 %); and p that explain k₁ best may explain noise.

Light may come from some voxels beyond the stack, and from nowhere else: a PSF that reaches through the whole stack
would see mirrored specimens above and below it as much as the real one.

After Hanser et al. (J. Microsc. 216 (2004), 32), who find the pupil's phase in beads, and Markham & Conchello (J. Opt.
Soc. Am. A 16 (1999), 2377), who let a blind deconvolution have few parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from . import __version__
from .measurement import Optics
from .noise import NoiseModel
from .operators import Blur
from .point_spread import PointSpreadError, microscope_psf
from .recorruption import Thinning, fill, read_variance_of, to_photons, trusted
from .volumes import Volume

__all__ = ["FittedPsf", "fit_psf"]

LARGEST = 160  # pixels of the window along Y and X that is looked at
PLANES = 8  # fewer do not show how the light spreads along Z
WIDEST = 40  # pixels to each side of the PSF
DEEPEST = 64  # planes
BEYOND = (8, 8, 8)  # voxels beyond the stack that light may come from
VAIN = 5  # iterations in a row that do not predict the held-out photons better
ITERATIONS = 100
EVALUATIONS = 40
DARK = 1e-2  # photo-electrons: a rate below counts as so much
NUDGES = (0.1, 0.2, 0.3, 0.3)  # first steps of aperture, log axial scale, and aberrations (wavelengths)
SETTLED = 0.1  # last steps, in these


@dataclass(frozen=True)
class FittedPsf:
    """A PSF, and the optics that make it.

    Parameters
    ----------
    psf : ndarray of float32, shape (Z, Y, X)
        0 or more, sum 1, odd-sized, its origin the middle voxel.
    na : float
        Numerical aperture.
    axial_scale : float
        µm that the focus moves for each µm between planes.
    aberration : tuple of float
        Spherical aberration: coefficients of ρ⁴ and ρ⁶ over the pupil, in wavelengths.
    gain : float
        By how much the held-out photons are predicted better than by the optics as they were given: difference of the
        Poisson log-likelihoods per thousand photo-electrons; 0 where the given optics are best.
    evaluations : int
        How many optics were tried so far.
    """

    psf: NDArray[np.float32]
    na: float
    axial_scale: float
    aberration: tuple[float, ...]
    gain: float
    evaluations: int

    def volume(self, source: Volume) -> Volume:
        """Give it as a volume on the voxels of the stack that it was fitted to, with a history.

        Parameters
        ----------
        source : Volume
            That stack.

        Returns
        -------
        Volume
            Axes ZYX.
        """
        record = {"action": "fit PSF", "source": source.name, "na": self.na, "axial_scale": self.axial_scale}
        record |= {"aberration": list(self.aberration), "gain": self.gain, "version": __version__}
        sizes = {axis: size for axis, size in source.voxel_size.items() if size is not None and axis in "ZYX"}
        return Volume.from_array(
            self.psf, "ZYX", voxel_size=sizes, name=f"PSF of {source.name}".strip(), history=(record,)
        )

    def describe(self) -> str:
        """Say it in words."""
        if not self.gain:
            return f"the optics as given (NA {self.na:g}) predict held-out photons best"
        waves = ", ".join(f"{c:+.2f}" for c in self.aberration)
        return (
            f"NA {self.na:.2f}, axial scale {self.axial_scale:.2f}, spherical aberration {waves} wavelengths (of ρ⁴ "
            f"and ρ⁶); log-likelihood of held-out photons +{self.gain:.3g} per thousand"
        )


def fit_psf(
    volume: Volume,
    noise: NoiseModel,
    optics: Optics,
    *,
    seed: int = 0,
    watch: Callable[[FittedPsf], None] | None = None,
) -> FittedPsf:
    """Fit the PSF of a widefield microscope to a stack.

    Parameters
    ----------
    volume : Volume
        A stack (Z, Y, X) of one time point and channel, of 8 planes or more and known voxel size. Of a large one the
        window of 160 x 160 pixels with the most contrast is looked at.
    noise : NoiseModel
        Its noise.
    optics : Optics
        The microscope as far as it is known, with `na`; where the search begins.
    seed : int
        Of the choice of the photons that are held out.
    watch : callable, optional
        Told of the best so far, after each of at most 40 optics; what it raises ends the search.

    Returns
    -------
    FittedPsf
        The best; the optics as they were given, if no others are better.

    Raises
    ------
    PointSpreadError
        If the volume is no single stack of enough planes and known voxel size, holds no light, or the optics are not
        those of a widefield microscope.
    """
    steps = _check(volume, optics)
    counts, good = _window(volume, noise)
    generator = torch.Generator().manual_seed(seed)
    form = Thinning(read_variance_of([noise]) or 0.0)
    first = form.part(counts, fill(counts[0], good[0])[None], torch.tensor(0.5), generator).clamp_min(0)
    second = (counts - first).clamp_min(0)
    light = float(second[good].sum())
    if not light > 0:
        name = volume.name or "the stack"
        raise PointSpreadError(f"{name} holds no light above the camera's zero; fit its noise anew")
    half = _half_widths(counts.shape[2:], optics, steps)
    best: FittedPsf | None = None
    given, tried = 0.0, 0

    def misfit(q: NDArray[np.float64]) -> float:
        nonlocal best, given, tried
        na, scale, *aberration = _parameters(q, optics)
        psf = microscope_psf(
            "widefield",
            na=na,
            wavelength_nm=optics.wavelength,
            refractive_index=optics.refractive_index,
            voxel_size_um=steps,
            shape=[2 * h + 1 for h in half],
            axial_scale=scale,
            aberration=aberration,
        )
        reached = 1000 * _unpredicted(Blur(psf, border="zero"), first, second, good) / light
        tried += 1
        if best is None:
            given = reached
        if best is None or given - reached > best.gain:
            best = FittedPsf(psf, na, scale, tuple(aberration), given - reached, tried)
        if watch is not None:
            watch(replace(best, evaluations=tried))
        return reached

    minimize(
        misfit,
        np.zeros(len(NUDGES)),
        method="COBYQA",
        options={"maxfev": EVALUATIONS, "initial_tr_radius": 1.0, "final_tr_radius": SETTLED},
    )
    assert best is not None
    return replace(best, evaluations=tried)


def _parameters(q: NDArray[np.float64], optics: Optics) -> list[float]:
    """Give aperture, axial scale and aberrations of a place in the search; the aperture stays below the index."""
    assert optics.na is not None
    na = float(np.clip(optics.na + NUDGES[0] * q[0], 0.1, 0.98 * optics.refractive_index))
    return [
        na,
        float(np.exp(np.clip(NUDGES[1] * q[1], -1.4, 1.4))),
        *(n * float(v) for n, v in zip(NUDGES[2:], q[2:], strict=True)),
    ]


def _unpredicted(blur: Blur, first: Tensor, second: Tensor, good: Tensor) -> float:
    """F: negative log-likelihood, but for a constant, of the second half at the iteration that predicts it best."""
    ends = [min(b, n // 4) for b, n in zip(BEYOND[::-1], first.shape[:1:-1], strict=True) for _ in range(2)]
    z, y, x = (slice(a, a + n) for a, n in zip(ends[::-2], first.shape[2:], strict=True))

    def back(values: Tensor) -> Tensor:
        return blur.adjoint(functional.pad(values, ends))

    # what is hardly seen keeps its place: it must not grow to explain the rest
    seen = back(good.to(first)).clamp_min(0.1)
    image = place = torch.full_like(seen, max(float(first[good].mean()), DARK))
    before: Tensor | None = None
    best, at = math.inf, 0
    for number in range(ITERATIONS):
        rate = blur.forward(place)[..., z, y, x].clamp_min(DARK)
        reached = float((rate - second * rate.log())[good].double().sum())
        if reached < best:
            best, at = reached, number
        if number - at >= VAIN:
            break
        ratio = torch.where(good, first / rate, torch.zeros_like(first))
        new = (place * back(ratio) / seen).clamp_min(1e-4)
        step, further = new - place, new - image
        place = new
        if before is not None:
            share = float((step * before).sum() / before.square().sum().clamp_min(1e-12))
            place = (new + min(max(share, 0.0), 0.95) * further).clamp_min(1e-4)
        image, before = new, step
    return best


def _check(volume: Volume, optics: Optics) -> tuple[float, float, float]:
    """Give the voxel size, or say why no PSF can be fitted."""
    sizes, name = volume.sizes, volume.name or "the volume"
    several = [axis for axis in "TC" if sizes.get(axis, 1) > 1]
    if several or sizes.get("Z", 1) < PLANES:
        raise PointSpreadError(
            f"{name} has axes {volume.axes} {volume.shape}; a PSF is fitted to one stack (Z, Y, X) of {PLANES} planes "
            "or more: choose one time point and channel, or give a bead's image"
        )
    if optics.microscope != "widefield":
        raise PointSpreadError(
            f"the microscope is {optics.microscope}; only a widefield PSF can be fitted, which reaches through the "
            "whole stack. Compute the others from the optics, or give a bead's image"
        )
    if optics.na is None:
        raise PointSpreadError("the numerical aperture is unknown, and the search begins with it; give it (--na)")
    steps = [volume.voxel_size.get(axis) for axis in "ZYX"]
    unknown = [axis for axis, step in zip("ZYX", steps, strict=True) if step is None]
    if unknown:
        raise PointSpreadError(
            f"{name}: the voxel size along {', '.join(unknown)} is unknown, and the PSF depends on it; give it in "
            "micrometres (--voxel-size Z Y X)"
        )
    z, y, x = (float(step) for step in steps if step is not None)
    microscope_psf(  # refuses impossible optics
        "widefield",
        na=optics.na,
        wavelength_nm=optics.wavelength,
        refractive_index=optics.refractive_index,
        voxel_size_um=(z, y, x),
        shape=(1, 3, 3),
    )
    return z, y, x


def _window(volume: Volume, noise: NoiseModel) -> tuple[Tensor, Tensor]:
    """Give photo-electrons and whether they are to be trusted, (1, 1, Z, Y, X), of the window with most contrast."""
    data: Any = volume.data.reshape(volume.shape[-3:])
    deepest = np.asarray(data.max(axis=0).compute(), dtype=np.float64)
    place = []
    for axis in range(2):
        profile = np.nan_to_num(deepest).var(axis=1 - axis)
        size = min(LARGEST, len(profile))
        best = int(np.argmax(np.convolve(profile, np.ones(size), mode="valid")))
        place.append(slice(best, best + size))
    values = np.asarray(data[:, place[0], place[1]].compute(), dtype=np.float32)
    good = trusted(values, noise, *place)
    photons = np.nan_to_num(to_photons(values, noise, *place), nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(photons)[None, None], torch.from_numpy(good)[None, None]


def _half_widths(shape: torch.Size, optics: Optics, steps: tuple[float, float, float]) -> tuple[int, int, int]:
    """From one end of the stack to the other, and as wide as the cone of light there, but for what is hardly seen."""
    assert optics.na is not None
    deep = min(shape[0] - 1, DEEPEST)
    cone = deep * steps[0] * optics.na / math.sqrt(max(optics.refractive_index**2 - optics.na**2, 0.05))
    y, x = (min(math.ceil(cone / step) + 4, WIDEST, n // 3) for step, n in zip(steps[1:], shape[1:], strict=True))
    return deep, max(y, 1), max(x, 1)
