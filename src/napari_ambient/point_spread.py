"""The point-spread function h: how the light of one point spreads over the voxels. Measured, or computed.

*Measured* (`prepare`): a bead's image less its background, shifted so that the bead lies on the middle voxel, cut to
where its light is, and divided by its sum.

*Computed* (`microscope_psf`): the scalar model of Gibson & Lanni, J. Opt. Soc. Am. A 9 (1992), 154,

    h(r, z) = | ∫₀¹ J₀(k NA r ρ) exp(i k W(ρ, z)) ρ dρ |²,    k = 2π / wavelength
    W(ρ, z) = -z √(n² - NA² ρ²) + d (√(s² - NA² ρ²) - n/s √(n² - NA² ρ²)) + c₁ ρ⁴ + c₂ ρ⁶ + …

with the focus z deeper than the point, which lies d under the coverslip in a specimen of index s; n is the
immersion's, and the c are of spherical aberration from anywhere (`psf_fit.py` finds them in a stack). Without mismatch
(s = n) only the first term stays, which for small NA is Born & Wolf's (Principles of Optics, 8.8): Airy radius 0.61
wavelength/NA, first axial zero 2 n wavelength/NA². A widefield microscope has the h of the emission. A confocal one has
the product of the h of the excitation with that of the emission averaged over the pinhole (Wilson & Sheppard, Theory
and Practice of Scanning Optical Microscopy, 1984), a light-sheet that of the emission's h with the sheet's Gaussian
profile (Engelbrecht & Stelzer, Opt. Lett. 31 (2006), 1477).

In the flow this file stands before `operators.Blur`, which takes what it makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import interpolate, ndimage, special

from .choices import Microscope

__all__ = ["PointSpreadError", "full_widths", "microscope_psf", "prepare"]

MICROSCOPES: tuple[Microscope, ...] = ("widefield", "confocal", "light-sheet")
FloatArray = NDArray[np.float32]
Real = NDArray[np.float64]

RISES = 3.0  # standard deviations of the background's noise that light must rise above
RIM = 16  # the border is a sixteenth of the image wide
SECOND_BEAD = 0.5  # of the brightness of the first
AIRY_RADII = 8.0  # half-width of a computed PSF: it holds 98 % of an Airy pattern's light
AXIAL_ZEROS = 3.0  # half-depth of a computed PSF
KEPT = 0.999  # of the light in that box, for the microscopes whose PSF ends there
NEGATIVE = 0.02  # of a computed PSF's light may be below 0, from rounding and interpolation; it is set to 0
IN_BOX = 0.8  # of a bead's light must lie nearer than the nearest border
CENTRED = 1e-3  # voxels: nearer is near enough
LARGEST_VOXEL = 30.0  # µm: beyond it somebody gave nanometres


class PointSpreadError(ValueError):
    """No point-spread function can be made of what was given."""


# ------------------------------------------------------------------------------------------- measured


def prepare(
    psf_or_bead: ArrayLike,
    *,
    background: Literal["border"] | float | None = "border",
    centre: bool = True,
    crop_energy: float = KEPT,
) -> FloatArray:
    """Make a PSF of the image of one bead, or of a PSF from a file.

    The bead is centred by its *core*: the centroid under a Gaussian window of the core's own width about that very
    centroid (the windowed position of the SExtractor manual, E. Bertin), found to a small part of a voxel. The
    brightest voxel alone would move restored images, and channels against each other, by up to half a voxel; a plain
    centre of mass would follow the noise and the haze of the whole box.

    Light is what rises above the border's noise after smoothing and hangs together with the bead; where it is dimmer
    than the noise of single voxels its local average is taken. Were negative values alone set to zero, their positive
    counterparts would stay behind as light that never was: half of it all, for a dim bead in a large box.

    Parameters
    ----------
    psf_or_bead : array_like, shape (Y, X) or (Z, Y, X)
        One bead, away from the borders, in any units.
    background : "border", float or None
        Level to subtract: that of the border, level and tilt from the medians along its four sides in Y and X; or a
        number in the image's units; or nothing (for a computed PSF, whose wings are light to the last voxel).
    centre : bool
        Shift the core onto the middle voxel. If False, voxel n // 2 of every axis stays the origin.
    crop_energy : float
        Share of the light that the box must hold, in (0, 1]. The smaller the box, the smaller the halo of tiles.

    Returns
    -------
    ndarray of float32
        0 or more, sum 1, odd-sized along every axis, its origin the middle voxel.

    Raises
    ------
    PointSpreadError
        If the image is not 2D or 3D, holds NaN, is constant, has no light above its background, a bead at its border,
        or several beads.
    """
    image = _checked_image(psf_or_bead)
    if not 0 < crop_energy <= 1:
        raise PointSpreadError(f"crop_energy is {crop_energy}; it is a share of the light, above 0 and up to 1")
    light, noise = _without_background(image, background)
    blurred = ndimage.gaussian_filter(light, 1.0, mode="nearest")  # so that a single hot pixel is not the bead
    if not blurred.max() > RISES * noise:
        raise PointSpreadError(
            f"no light rises above the background (noise {noise:.4g}, brightest {float(light.max()):.4g}); give the "
            "image of a bead, or the right background"
        )
    if background is None and -float(np.minimum(light, 0).sum()) > NEGATIVE * float(np.maximum(light, 0).sum()):
        raise PointSpreadError(
            f"{int((light < 0).sum())} values of the PSF are below 0, and as a computed one it is light everywhere; if "
            "it is the image of a bead, have its background taken away (--psf-is bead, in Python background='border'), "
            "else correct it"
        )
    peak = tuple(int(i) for i in np.unravel_index(int(blurred.argmax()), blurred.shape))
    if noise > 0:
        light = _risen(light, noise, peak)
    light = np.maximum(light, 0.0)
    middle = _core(light, blurred, peak) if centre else [float(n // 2) for n in light.shape]
    nearest = [round(m) for m in middle]
    box = _symmetric(light, nearest)
    if not box.sum() > IN_BOX * light.sum():
        raise PointSpreadError(
            f"the light lies beside voxel {tuple(nearest)} of {light.shape}: the box about it holds "
            f"{100 * float(box.sum() / light.sum()):.0f} % of it; crop the image so that one bead lies in its middle"
        )
    box = _cut(box, 1.0)
    shift = [n - m for n, m in zip(nearest, middle, strict=True)]
    if max(map(abs, shift)) > CENTRED:
        box = np.maximum(ndimage.shift(box, shift, order=5, mode="nearest"), 0.0)
    return _normalised(_cut(box, crop_energy))


def _checked_image(values: ArrayLike) -> Real:
    given = np.asarray(values)
    if given.dtype.kind not in "biuf":
        raise PointSpreadError(f"the PSF has data type {given.dtype}; give real numbers")
    if given.ndim not in (2, 3) or given.size == 0:
        raise PointSpreadError(
            f"the PSF has shape {given.shape}; give (Y, X) or (Z, Y, X), one channel, one time point"
        )
    image = given.astype(np.float64)
    broken = ~np.isfinite(image)
    if broken.any():
        first = tuple(int(i) for i in np.argwhere(broken)[0])
        raise PointSpreadError(
            f"the PSF has {int(broken.sum())} NaN or infinite values, the first at {first}; mend them"
        )
    if image.min() == image.max():
        raise PointSpreadError(f"the PSF is {image.min():.4g} everywhere; give the image of a bead")
    return image


def _without_background(image: Real, background: Literal["border"] | float | None) -> tuple[Real, float]:
    """Give the image less its background, and the standard deviation of the noise there."""
    if background is None:
        return image, 0.0
    sides = _sides(image)
    medians = [float(np.median(side)) for side in sides]
    if background == "border":
        level: Real | float = float(np.mean(medians))
        for axis, (low, high) in ((-2, medians[:2]), (-1, medians[2:])):
            n = image.shape[axis]
            ramp = (np.arange(n) - (n - 1) / 2) / max(n - _rim(n), 1)
            level = level + (high - low) * (ramp[:, None] if axis == -2 else ramp)
    elif isinstance(background, str) or not math.isfinite(background):
        raise PointSpreadError(f"background is {background!r}; choose 'border', a number, or None")
    else:
        level = float(background)
    return image - level, _spread([side - median for side, median in zip(sides, medians, strict=True)])


def _sides(image: Real) -> list[Real]:
    """Give the rows and columns at both ends of Y and of X.

    Not of Z: light of the bead lies in the planes there. Not the outermost alone: they often are what registration or
    deskewing left.
    """
    ends = []
    for axis in (-2, -1):
        n = image.shape[axis]
        ends += [np.take(image, range(_rim(n)), axis), np.take(image, range(n - _rim(n), n), axis)]
    return ends


def _rim(n: int) -> int:
    return max(1, n // RIM)


def _spread(values: Sequence[Real]) -> float:
    """Give the standard deviation about zero of normal values, from the median."""
    return 1.4826 * float(np.median(np.abs(np.concatenate([part.ravel() for part in values]))))


def _risen(light: Real, noise: float, peak: tuple[int, ...]) -> Real:
    """Keep what rises above the noise and hangs together with the peak; where it is dim, its local average."""
    smooth = ndimage.gaussian_filter(light, (1.0, 2.0, 2.0)[-light.ndim :], mode="nearest")
    labels, _ = ndimage.label(smooth > RISES * _spread(_sides(smooth)))
    # Smoothed twice over (Tukey): of the average, what smoothing it again takes away is given back, or else the flanks
    # of a sharp bead would be too bright.
    once, twice = (ndimage.gaussian_filter(light, width, mode="nearest") for width in (1.0, math.sqrt(2)))
    restored = np.where(smooth < RISES * noise, 2 * once - twice, light)
    return np.asarray(np.where(labels == labels.item(peak), restored, 0.0))


def _core(light: Real, blurred: Real, peak: tuple[int, ...]) -> list[float]:
    """Give the coordinates of the bead's core, to a small part of a voxel."""
    bright = blurred > blurred.max() / 2
    window, widths = [], []
    for axis, (at, n) in enumerate(zip(peak, light.shape, strict=True)):
        line = bright[tuple(slice(None) if a == axis else p for a, p in enumerate(peak))]
        dark = np.flatnonzero(~line)
        low = int(max(dark[dark < at], default=-1)) + 1
        high = int(min(dark[dark > at], default=n)) - 1
        if n > 1 and (at in (0, n - 1) or (low == 0) != (high == n - 1)):
            axes = "ZYX"[3 - light.ndim :]
            raise PointSpreadError(
                f"the bead at {peak} touches the border along {axes[axis]} (0 to {n - 1}); crop the image so "
                "that one bead lies in its middle"
            )
        width = high - low + 1
        widths.append(width)
        window.append(slice(max(0, at - 2 * width - 2), at + 2 * width + 3))
    others = blurred.copy()
    others[tuple(slice(max(0, p - 3 * w - 2), p + 3 * w + 3) for p, w in zip(peak, widths, strict=True))] = 0
    if others.max() > SECOND_BEAD * blurred.max():
        second = tuple(int(i) for i in np.unravel_index(int(others.argmax()), others.shape))
        raise PointSpreadError(f"there are several beads, at {peak} and {second}; crop the image to one")
    near = light[tuple(window)]
    grids = np.ogrid[tuple(slice(s.start, s.start + k) for s, k in zip(window, near.shape, strict=True))]
    sigma = [max(w / 2.355, 0.8) for w in widths]
    middle = [float(p) for p in peak]
    for _ in range(100):
        exponent = sum(((g - m) / s) ** 2 for g, m, s in zip(grids, middle, sigma, strict=True))
        weighted = near * np.exp(-0.5 * exponent)
        steps = [float((weighted * (g - m)).sum() / weighted.sum()) for g, m in zip(grids, middle, strict=True)]
        # twice the step: the window of the core's own width shows half of the way
        middle = [m + 2 * step for m, step in zip(middle, steps, strict=True)]
        if max(map(abs, steps)) < CENTRED / 10:
            break
    return middle


def _symmetric(light: Real, middle: Sequence[int]) -> Real:
    """Cut the largest box whose middle voxel is `middle`."""
    half = [min(m, n - 1 - m) for m, n in zip(middle, light.shape, strict=True)]
    return light[tuple(slice(m - h, m + h + 1) for m, h in zip(middle, half, strict=True))]


def _cut(box: Real, energy: float) -> Real:
    """Cut a box of odd size about its middle voxel, so that it holds at least the share `energy` of the light."""
    loss = (1 - energy) / box.ndim * box.sum()
    slices = []
    for axis, n in enumerate(box.shape):
        profile = box.sum(axis=tuple(a for a in range(box.ndim) if a != axis))
        middle = n // 2
        shells = profile[middle:] + np.where(np.arange(n - middle) > 0, profile[middle::-1], 0)
        beyond = np.append(shells[::-1].cumsum()[::-1][1:], 0)  # the light beyond a half-width of 0, 1, …
        half = int(np.argmax(beyond <= loss))
        slices.append(slice(middle - half, middle + half + 1))
    return box[tuple(slices)]


def _normalised(psf: Real) -> FloatArray:
    return np.ascontiguousarray(psf / psf.sum(), dtype=np.float32)


def full_widths(psf: ArrayLike) -> tuple[float, ...]:
    """Measure how wide a PSF is: full width at half maximum along each axis through its middle.

    Parameters
    ----------
    psf : array_like, shape (Y, X) or (Z, Y, X)
        From `prepare` or `microscope_psf`, odd-sized.

    Returns
    -------
    tuple of float
        Voxels along each axis, linear between them; infinite along an axis where it does not fall to half.
    """
    values = np.asarray(psf, dtype=np.float64)
    middle = tuple(n // 2 for n in values.shape)
    widths = []
    for axis in range(values.ndim):
        line = values[tuple(slice(None) if a == axis else m for a, m in enumerate(middle))]
        half = line[middle[axis]] / 2
        width = 0.0
        for side in (line[middle[axis] :], line[middle[axis] :: -1]):
            below = np.flatnonzero(side < half)
            if not below.size:
                width = math.inf
                break
            last = int(below[0])
            width += last - 1 + float((side[last - 1] - half) / (side[last - 1] - side[last]))
        widths.append(width)
    return tuple(widths)


# ------------------------------------------------------------------------------------------- computed


def microscope_psf(
    kind: Microscope = "widefield",
    *,
    na: float,
    wavelength_nm: float,
    refractive_index: float,
    voxel_size_um: Sequence[float],
    dims: Literal[2, 3] = 3,
    shape: Sequence[int] | None = None,
    excitation_nm: float | None = None,
    pinhole_airy: float = 1.0,
    sheet_thickness_um: float | None = None,
    specimen_index: float | None = None,
    depth_um: float = 0.0,
    aberration: Sequence[float] = (),
    axial_scale: float = 1.0,
) -> FloatArray:
    """Compute the PSF of a microscope from its optics.

    Each voxel holds the mean over the area of its pixel, in the plane at its middle.

    Parameters
    ----------
    kind : {"widefield", "confocal", "light-sheet"}
        The microscope. A spinning disk is confocal.
    na : float
        Numerical aperture of the (detection) objective, below `refractive_index`.
    wavelength_nm : float
        Emission wavelength in vacuum, nm.
    refractive_index : float
        Of the immersion medium: oil 1.515, glycerol 1.47, silicone 1.40, water 1.33, air 1.0.
    voxel_size_um : sequence of float
        (Z, Y, X), micrometres; (Y, X) suffices for a plane.
    dims : {2, 3}
        2: the focal plane alone; 3: the volume.
    shape : sequence of int, optional
        Voxels (Z, Y, X), or (Y, X) of a plane; odd. If left out: 8 Airy radii and 3 axial zeros to each side, as wide
        as the cone of light there, and for confocal and light-sheet no more than holds 0.999 of that light. A widefield
        PSF has no end in Z: for a thick stack give its depth.
    excitation_nm : float, optional
        Excitation wavelength in vacuum, nm; needed for confocal.
    pinhole_airy : float
        Diameter of the pinhole in Airy units (1.22 wavelength/NA of the emission), 0 for a point; for confocal.
    sheet_thickness_um : float, optional
        Full width at half maximum of the light sheet along the detection axis, µm; needed for light-sheet.
    specimen_index : float, optional
        Refractive index of the specimen; if left out, that of the immersion.
    depth_um : float
        Depth under the coverslip, µm, 0 or more: with another `specimen_index` it makes spherical aberration. Planes of
        larger Z lie deeper. The plane where the emission is brightest is made the middle one.
    aberration : sequence of float
        More spherical aberration: coefficients of ρ⁴, ρ⁶, … over the pupil, in emission wavelengths.
    axial_scale : float
        µm that the focus moves for each µm between planes, above 0.

    Returns
    -------
    ndarray of float32
        0 or more, sum 1, odd-sized, its origin the middle voxel.

    Raises
    ------
    PointSpreadError
        If the optics are impossible, in the wrong units, or not complete.
    """
    if kind not in MICROSCOPES:
        raise PointSpreadError(f"kind is {kind!r}; choose widefield, confocal or light-sheet")
    emission = _wavelength("emission", wavelength_nm)
    objective = _objective(na, refractive_index, specimen_index, depth_um)
    if not np.isfinite(np.asarray([axial_scale, *aberration])).all() or axial_scale <= 0:
        raise PointSpreadError(
            f"the axial scale is {axial_scale}, the aberration {tuple(aberration)} wavelengths; give finite numbers, "
            "the first above 0"
        )
    objective = replace(objective, aberration=tuple(emission * c for c in aberration))
    step = _checked_step(voxel_size_um, dims)
    excitation = sheet = 0.0
    if kind == "confocal":
        if excitation_nm is None:
            raise PointSpreadError(
                "a confocal PSF needs the excitation wavelength, that of the laser, in nm (--excitation, in Python "
                "excitation_nm)"
            )
        excitation = _wavelength("excitation", excitation_nm)
        if not 0 <= pinhole_airy < math.inf:
            raise PointSpreadError(
                f"the pinhole is {pinhole_airy} (pinhole_airy); it is a diameter in Airy units, 0 or more"
            )
    if kind == "light-sheet":
        if sheet_thickness_um is None or not 0 < sheet_thickness_um < math.inf:
            raise PointSpreadError(
                f"the thickness of the light sheet is {sheet_thickness_um}; give its full width at half maximum, in µm "
                "(--sheet-thickness, in Python sheet_thickness_um)"
            )
        sheet = sheet_thickness_um
    half = _half_widths(objective, kind, emission, sheet, step, dims) if shape is None else _checked_shape(shape, dims)
    if dims == 2:
        half = (0, *half[-2:])
    z: Real = step[0] * np.arange(-half[0], half[0] + 1, dtype=np.float64)
    focus: Real = axial_scale * z + objective.focus(emission)

    def profile(radius: Real) -> Real:
        """Intensity over (z, radius)."""
        if kind == "confocal":
            pinhole = pinhole_airy * 0.61 * emission / na
            through = _through_pinhole(objective, radius, focus, emission, pinhole)
            return np.asarray(through * objective.intensity(radius, focus, excitation))
        detected = objective.intensity(radius, focus, emission)
        lit = np.exp(-4 * math.log(2) * (z[:, None] / sheet) ** 2) if sheet else 1.0
        return np.asarray(detected * lit)

    psf = _render(profile, half, step, min(emission, excitation or emission) / na)
    if dims == 2:
        psf = psf[0]
    if shape is None and kind != "widefield":
        psf = _cut(psf, KEPT)
    return _normalised(psf)


@dataclass(frozen=True)
class _Objective:
    """An objective lens, its immersion, and a point under the coverslip; lengths in µm."""

    na: float
    immersion: float
    specimen: float
    depth: float
    aberration: tuple[float, ...] = ()

    @property
    def edge(self) -> float:
        """Largest ρ that passes: rays beyond the specimen's index never reach the coverslip."""
        return min(1.0, self.specimen / self.na)

    def path(self, rho: Real, z: Real) -> Real:
        """W(ρ, z), µm, over (z, ρ)."""
        through = np.sqrt(np.maximum(self.immersion**2 - (self.na * rho) ** 2, 0))
        bent = np.sqrt(np.maximum(self.specimen**2 - (self.na * rho) ** 2, 0))
        mismatch = self.depth * (bent - self.immersion / self.specimen * through)
        mismatch = mismatch + sum(c * rho ** (4 + 2 * i) for i, c in enumerate(self.aberration))
        return np.asarray(mismatch - z[:, None] * through)

    def intensity(self, radius: Real, z: Real, wavelength: float) -> Real:
        """H over (z, radius), 1 where an aberration-free image is brightest.

        The Gauss-Legendre rule gets one node per radian of the integrand's phase, twice what it needs to resolve it.
        """
        k = 2 * math.pi / wavelength
        ends = self.path(np.linspace(0, self.edge, 64), np.array([z.min(), z.max()]))
        radians = k * (self.na * self.edge * float(radius.max()) + float(np.ptp(ends, axis=1).max()))
        nodes, weights = np.polynomial.legendre.leggauss(64 + math.ceil(radians))
        rho, weights = 0.5 * self.edge * (nodes + 1), 0.5 * self.edge * weights
        bessel = special.j0(k * self.na * radius[:, None] * rho) * (2 * rho * weights)
        phase = k * self.path(rho, z)
        return np.asarray((np.cos(phase) @ bessel.T) ** 2 + (np.sin(phase) @ bessel.T) ** 2)

    def focus(self, wavelength: float) -> float:
        """Z where the image of the point is brightest."""
        if (self.depth == 0 or self.specimen == self.immersion) and not any(self.aberration):
            return 0.0
        # a ray of pupil radius ρ meets the axis at z(ρ), where W is stationary; the outermost carry little light
        rho = 0.97 * self.edge * np.linspace(0, 1, 32)
        squared = (self.na * rho) ** 2
        rays = np.sqrt((self.immersion**2 - squared) / (self.specimen**2 - squared))
        ends = self.depth * (rays - self.immersion / self.specimen)
        slope = sum((4 + 2 * i) * c * rho ** (2 + 2 * i) for i, c in enumerate(self.aberration))
        ends = ends - slope * np.sqrt(self.immersion**2 - squared) / self.na**2
        width = self.immersion * wavelength / self.na**2
        ladder = np.arange(ends.min() - width, ends.max() + width, width / 40)
        axis = self.intensity(np.zeros(1), ladder, wavelength)[:, 0]
        return float(ladder[int(axis.argmax())])


def _through_pinhole(objective: _Objective, radius: Real, z: Real, wavelength: float, pinhole: float) -> Real:
    """H of the emission averaged over a pinhole of radius `pinhole` (µm, in the specimen) about each radius."""
    if pinhole == 0:
        return objective.intensity(radius, z, wavelength)
    airy = 0.61 * wavelength / objective.na
    wide = np.linspace(0, float(radius.max()) + pinhole, 8 + math.ceil((float(radius.max()) + pinhole) / airy * 40))
    table = interpolate.CubicSpline(wide, objective.intensity(wide, z, wavelength), axis=1)
    rings = 8 + math.ceil(4 * pinhole / airy)
    nodes, weights = np.polynomial.legendre.leggauss(rings)
    rho, weights = 0.5 * (nodes + 1), 0.5 * weights
    angles = math.pi * (np.arange(4 * rings) + 0.5) / (4 * rings)
    total = np.zeros((len(z), len(radius)))
    for part, weight in zip(pinhole * rho, 2 * rho * weights, strict=True):
        squared = radius**2 + part**2 + 2 * radius * part * np.cos(angles)[:, None]
        total += weight * table(np.sqrt(np.maximum(squared, 0))).mean(axis=1)
    return total


def _render(profile: Callable[[Real], Real], half: tuple[int, ...], step: tuple[float, ...], resolution: float) -> Real:
    """Average a radial profile over the pixels: (Z, Y, X) from one quarter of each plane.

    Sampled at a sixteenth of wavelength/NA, that is eight times per period of the finest detail of an image.
    """
    fine = [max(1, math.ceil(16 * s / resolution)) for s in step[1:]]
    coordinates = [
        s * (np.arange(h + 1)[:, None] + (np.arange(f) + 0.5) / f - 0.5).ravel()
        for s, h, f in zip(step[1:], half[1:], fine, strict=True)
    ]
    radius = np.hypot(coordinates[0][:, None], coordinates[1])
    last = max(float(radius.max()), resolution / 16)
    ladder = np.linspace(0, last, 8 + math.ceil(64 * last / resolution))
    quarters = []
    for row in profile(ladder):
        values = interpolate.CubicSpline(ladder, row)(radius)
        quarters.append(values.reshape(half[1] + 1, fine[0], half[2] + 1, fine[1]).mean(axis=(1, 3)))
    y, x = (np.abs(np.arange(-h, h + 1)) for h in half[1:])
    return np.asarray(np.maximum(np.stack(quarters)[:, y[:, None], x], 0.0))


def _half_widths(
    objective: _Objective, kind: Microscope, emission: float, sheet: float, step: tuple[float, ...], dims: int
) -> tuple[int, ...]:
    """Choose the voxels to each side of the middle, along Z, Y and X."""
    na, n = objective.na, objective.immersion
    axial = math.sqrt(n**2 - na**2)
    deep = AXIAL_ZEROS * emission / (n - axial) if dims == 3 else 0.0
    if kind == "light-sheet":
        deep = min(deep, 1.5 * sheet)
    wide = AIRY_RADII * 0.61 * emission / na
    if kind != "confocal":
        wide = max(wide, deep * na / axial)
    return tuple(math.ceil(length / s) for length, s in zip((deep, wide, wide), step, strict=True))


def _objective(na: float, immersion: float, specimen: float | None, depth: float) -> _Objective:
    index = immersion if specimen is None else specimen
    for name, value in (("immersion", immersion), ("specimen", index)):
        if not 1 <= value <= 2:
            raise PointSpreadError(f"the refractive index of the {name} is {value}; media have 1.0 (air) to about 1.8")
    if not 0 < na < immersion:
        raise PointSpreadError(
            f"the numerical aperture is {na}, the refractive index {immersion}; the aperture must be above 0 and below "
            "the index of the immersion medium (oil 1.515, glycerol 1.47, silicone 1.40, water 1.33, air 1.0): correct "
            "one of them"
        )
    if not 0 <= depth < math.inf:
        raise PointSpreadError(f"the depth is {depth} (depth_um); give the depth under the coverslip in µm, 0 or more")
    return _Objective(na, immersion, index, depth)


def _wavelength(name: str, value: float) -> float:
    """Convert nm to µm."""
    if not 200 <= value <= 2000:
        raise PointSpreadError(f"the {name} wavelength is {value}; give nanometres, 200 to 2000")
    return value / 1000


def _checked_step(voxel_size: Sequence[float], dims: int) -> tuple[float, ...]:
    step = tuple(float(s) for s in voxel_size)
    if dims not in (2, 3):
        raise PointSpreadError(f"dims is {dims}; choose 2 (the focal plane) or 3")
    if len(step) not in (dims, 3):
        raise PointSpreadError(
            f"the voxel size is {step}; a PSF in {dims}D needs {'(Z, Y, X)' if dims == 3 else '(Y, X)'}"
        )
    if not all(0 < s < LARGEST_VOXEL for s in step):
        raise PointSpreadError(f"the voxel size is {step}; give micrometres, above 0 and below {LARGEST_VOXEL:.0f}")
    return step if len(step) == 3 else (1.0, *step)


def _checked_shape(shape: Sequence[int], dims: int) -> tuple[int, ...]:
    """Give the voxels to each side of the middle."""
    sizes = tuple(int(n) for n in shape)
    if len(sizes) != dims or not all(n > 0 and n % 2 for n in sizes):
        wanted = "(Z, Y, X)" if dims == 3 else "(Y, X)"
        raise PointSpreadError(f"shape is {sizes}; give {wanted}, odd so that there is a middle voxel")
    return tuple(n // 2 for n in sizes)
