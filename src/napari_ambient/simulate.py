"""Synthetic fluorescent structures, a microscope and a camera: data with a known truth.

    y = offset + gain * Gamma(k * n, 1 / k) + N(0, read_noise^2),   n ~ Poisson(photons),   k = 1 / (excess - 1)

`photons` is the specimen seen through a point-spread function, in expected photo-electrons per voxel; the
Gamma is the multiplication of an EMCCD register or a photomultiplier (mean n, variance (excess - 1) n, so
that the shot noise is `excess` times Poisson's; excess = 1 multiplies nothing). EMCCD: Robbins & Hadwen, IEEE
Trans. Electron Devices 50 (2003). Camera maps: Huang et al., Nat. Methods 10 (2013). PSF: Zhang, Zerubia &
Olivo-Marin, Appl. Opt. 46 (2007) for the Gaussian, Born & Wolf, Principles of Optics, section 8.8, for the
scalar integral.

In the flow this file stands beside everything: `tools/make_sample_data.py` makes `sample_data/` with it, and
the tests make data with known answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal, special

FloatArray = NDArray[np.float32]
Step = float | Sequence[float]

__all__ = [
    "Camera",
    "blur",
    "born_wolf_psf",
    "filaments",
    "gaussian_psf",
    "mitochondria",
    "nuclei",
    "through_microscope",
]


# ---------------------------------------------------------------------------------------------- specimens


def filaments(
    shape: Sequence[int],
    seed: int = 0,
    *,
    voxel_size: Step = 0.1,
    density: float = 0.35,
    persistence: float = 15.0,
) -> FloatArray:
    """Microtubule-like filaments that run through a cell: worm-like chains around an organising centre.

    Parameters
    ----------
    shape : sequence of int
        (Y, X) or (Z, Y, X).
    seed : int
        Same seed, same specimen.
    voxel_size : float or sequence of float
        Step per axis, micrometres; one number holds for all axes.
    density : float
        Filaments per square micrometre of field.
    persistence : float
        Persistence length, micrometres: the distance over which a filament forgets its direction.

    Returns
    -------
    ndarray of float32, shape `shape`
        Fluorophore density in [0, 1], not blurred.
    """
    shape, step = _checked(shape, voxel_size)
    rng = np.random.default_rng([seed, 1])
    field = np.array(shape) * step
    cell = _cell(shape, step, rng)
    count = max(4, round(density * field[-1] * field[-2]))
    centre = _point_inside(cell, step, rng)
    start = rng.uniform(size=(count, len(shape))) * field
    near = rng.uniform(size=count) < 0.5
    start[near] = centre + rng.normal(0, 1.5, (int(near.sum()), len(shape))) * _flatten(len(shape))
    outwards = start - centre + rng.normal(0, 2.0, start.shape)
    paths = _chains(start, outwards, 1.2 * float(np.hypot(*field[-2:])), persistence, 0.5 * step.min(), rng)
    brightness = rng.uniform(0.6, 1.0, count)
    return _finish(_splat(paths, brightness, shape, step) * _sample_like(cell, shape))


def mitochondria(
    shape: Sequence[int],
    seed: int = 0,
    *,
    voxel_size: Step = 0.1,
    density: float = 0.25,
    radius: float = 0.22,
) -> FloatArray:
    """Mitochondria-like tubes: short, bent, bright, of one radius, most of them around the nucleus.

    Parameters
    ----------
    shape : sequence of int
        (Y, X) or (Z, Y, X).
    seed : int
        Same seed, same specimen.
    voxel_size : float or sequence of float
        Step per axis, micrometres.
    density : float
        Tubes per square micrometre of field.
    radius : float
        Radius of a tube, micrometres.

    Returns
    -------
    ndarray of float32, shape `shape`
        Fluorophore density in [0, 1], not blurred.
    """
    shape, step = _checked(shape, voxel_size)
    rng = np.random.default_rng([seed, 2])
    field = np.array(shape) * step
    cell = _cell(shape, step, rng)
    count = max(4, round(density * field[-1] * field[-2]))
    centre = _point_inside(cell, step, rng)
    # In a field smaller than a cell the nucleus shrinks with it, so that tubes are seen at all.
    extent = float(min(field[-2:]))
    nucleus = min(rng.uniform(3.5, 5.0), 0.22 * extent)
    away = rng.normal(size=(count, len(shape)))
    away /= np.linalg.norm(away[:, -2:], axis=1, keepdims=True)
    start = centre + away * (nucleus + rng.exponential(min(4.0, 0.25 * extent), (count, 1))) * _flatten(len(shape))
    if len(shape) == 3:
        start[:, 0] = rng.uniform(0.1, 0.9, count) * field[0]
    sideways = away + rng.normal(0, 1.0, away.shape)
    lengths = np.clip(rng.lognormal(np.log(3.0), 0.6, count), 0.8, 12.0)
    paths = _chains(start, sideways, float(lengths.max()), 1.5, 0.5 * step.min(), rng)
    steps = np.arange(paths.shape[1])[None] * 0.5 * step.min()
    weight = (rng.uniform(0.5, 1.0, count)[:, None] * (steps < lengths[:, None])).astype(np.float64)
    inside = np.linalg.norm((paths - centre)[..., -2:], axis=-1) > 0.9 * nucleus
    line = _splat(paths, weight * inside, shape, step) * _sample_like(cell, shape)
    return _finish(np.minimum(signal.fftconvolve(line, _ball(radius, step), mode="same"), _cap(line, radius, step)))


def nuclei(
    shape: Sequence[int],
    seed: int = 0,
    *,
    voxel_size: Step = 0.1,
    count: int | None = None,
    radius: float = 4.5,
) -> FloatArray:
    """Nuclei with chromatin texture: bent ellipsoids, dark nucleoli, a few bright chromocentres.

    Parameters
    ----------
    shape : sequence of int
        (Y, X) or (Z, Y, X).
    seed : int
        Same seed, same specimen.
    voxel_size : float or sequence of float
        Step per axis, micrometres.
    count : int, optional
        How many nuclei; None takes one per 200 square micrometres.
    radius : float
        Mean radius, micrometres.

    Returns
    -------
    ndarray of float32, shape `shape`
        Fluorophore density in [0, 1], not blurred.
    """
    shape, step = _checked(shape, voxel_size)
    rng = np.random.default_rng([seed, 3])
    field = np.array(shape) * step
    count = max(1, round(field[-1] * field[-2] / 200)) if count is None else count
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, step, strict=True)), indexing="ij", sparse=True)
    chromatin = _texture(shape, step, 0.35, rng) + 0.7 * _texture(shape, step, 1.2, rng)
    spots = _texture(shape, step, 0.3, rng)
    holes = _texture(shape, step, 0.7, rng)
    bend = _texture(shape, step, 2.0, rng)
    texture = np.exp(0.35 * chromatin) + 2.5 * special.expit(6 * (spots - 2.3)) - 0.8 * special.expit(6 * (holes - 1.6))
    result = np.zeros(shape)
    centres: list[NDArray[np.float64]] = []
    for _ in range(20 * count):
        centre = rng.uniform(-0.05, 1.05, len(shape)) * field
        if len(shape) == 3:
            centre[0] = rng.uniform(0.3, 0.7) * field[0]
        if len(centres) == count:
            break
        if any(np.linalg.norm((centre - other)[-2:]) < 1.9 * radius for other in centres):
            continue
        centres.append(centre)
        angle = rng.uniform(0, np.pi)
        size = radius * rng.uniform(0.8, 1.2)
        stretch = rng.uniform(1.0, 1.5)
        dy, dx = grid[-2] - centre[-2], grid[-1] - centre[-1]
        along = (np.cos(angle) * dx + np.sin(angle) * dy) / (size * np.sqrt(stretch))
        across = (np.cos(angle) * dy - np.sin(angle) * dx) / (size / np.sqrt(stretch))
        distance = along**2 + across**2
        if len(shape) == 3:
            distance = distance + ((grid[0] - centre[0]) / (0.45 * min(size, field[0]))) ** 2
        body = special.expit((1 - np.sqrt(distance) + 0.06 * bend) * size / (0.5 * float(step[-1])))
        result = np.maximum(result, body * np.maximum(texture, 0.1) * rng.uniform(0.5, 1.0))
    return _finish(result)


def _checked(shape: Sequence[int], voxel_size: Step) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    shape = tuple(int(n) for n in shape)
    if len(shape) not in (2, 3) or min(shape) < 8:
        raise ValueError(f"shape {shape} is not a specimen: give (Y, X) or (Z, Y, X) with at least 8 voxels per axis.")
    step = np.broadcast_to(np.asarray(voxel_size, dtype=np.float64), (len(shape),))
    if not (step > 0).all():
        raise ValueError(f"voxel_size {voxel_size} must be positive, in micrometres.")
    return shape, step


def _flatten(ndim: int) -> NDArray[np.float64]:
    """Cells are flat: a scatter in Z is a quarter of that in the plane."""
    return np.array([0.25, 1.0, 1.0])[-ndim:]


def _texture(
    shape: tuple[int, ...], step: NDArray[np.float64], length: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a unit-variance Gaussian field with correlation length `length`, micrometres."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), length / step, mode="wrap")
    field: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return field


def _cell(shape: tuple[int, ...], step: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the soft outline of a cell, (Y, X) in [0, 1]: a bent ellipse that leaves some field dark."""
    height, width = np.array(shape[-2:]) * step[-2:]
    y, x = np.meshgrid(np.arange(shape[-2]) * step[-2], np.arange(shape[-1]) * step[-1], indexing="ij", sparse=True)
    size = 0.42 * np.sqrt(height * width) * rng.uniform(0.9, 1.25)
    dy = y - height * rng.uniform(0.3, 0.7)
    dx = x - width * rng.uniform(0.3, 0.7)
    angle = rng.uniform(0, np.pi)
    stretch = rng.uniform(1.0, 1.7)
    along = (np.cos(angle) * dx + np.sin(angle) * dy) / stretch
    across = np.cos(angle) * dy - np.sin(angle) * dx
    phi = np.arctan2(across, along)
    outline = 1 + sum(rng.uniform(0, 0.18) * np.cos(k * phi + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    mask: NDArray[np.float64] = special.expit((size * outline - np.hypot(along, across)) / 0.25)
    return mask


def _point_inside(
    cell: NDArray[np.float64], step: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Where the nucleus or the organising centre is, micrometres: near the centre of mass of the outline."""
    y, x = ndimage.center_of_mass(cell)
    point = np.array([y, x]) * step[-2:] + rng.normal(0, 1.0, 2)
    return point if len(step) == 2 else np.array([4 * step[0], *point])


def _sample_like(cell: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return cell if len(shape) == 2 else np.broadcast_to(cell, shape)


def _chains(
    start: NDArray[np.float64],
    direction: NDArray[np.float64],
    length: float,
    persistence: float,
    spacing: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Grow worm-like chains, (count, points, ndim), micrometres, whose direction diffuses."""
    points = max(2, int(length / spacing))
    count, ndim = start.shape
    angle = np.arctan2(direction[:, -2], direction[:, -1])[:, None]
    angle = angle + np.cumsum(rng.normal(0, np.sqrt(2 * spacing / persistence), (count, points)), axis=1)
    rise = np.zeros((count, points))
    if ndim == 3:
        rise = rng.normal(0, 0.1, (count, 1)) + 0.15 * np.cumsum(
            rng.normal(0, np.sqrt(2 * spacing / persistence), (count, points)), axis=1
        )
    moves = np.stack([np.sin(rise), np.cos(rise) * np.sin(angle), np.cos(rise) * np.cos(angle)], axis=-1)[..., -ndim:]
    paths: NDArray[np.float64] = start[:, None] + spacing * np.cumsum(moves, axis=1)
    return paths


def _splat(
    paths: NDArray[np.float64],
    weight: NDArray[np.float64],
    shape: tuple[int, ...],
    step: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Draw the points onto the voxel grid, each shared linearly among its 2^ndim neighbours."""
    position = (paths / step).reshape(-1, len(shape))
    weight = np.broadcast_to(weight if weight.ndim == 2 else weight[:, None], paths.shape[:2]).reshape(-1)
    keep = ((position >= 0) & (position < np.array(shape) - 1)).all(axis=1) & (weight > 0)
    position, weight = position[keep], weight[keep]
    corner = np.floor(position).astype(np.int64)
    fraction = position - corner
    image = np.zeros(int(np.prod(shape)))
    for offset in np.ndindex(*(2,) * len(shape)):
        share = np.prod(np.where(np.array(offset) == 1, fraction, 1 - fraction), axis=1)
        index = np.ravel_multi_index(tuple((corner + offset).T), shape)
        image += np.bincount(index, weight * share, minlength=image.size)
    return image.reshape(shape)


def _ball(radius: float, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make a soft-edged ball, sum 1."""
    half = [int(np.ceil(radius / s)) + 1 for s in step]
    grid = np.meshgrid(*(np.arange(-h, h + 1) * s for h, s in zip(half, step, strict=True)), indexing="ij")
    distance = np.sqrt(sum(g**2 for g in grid))
    ball: NDArray[np.float64] = np.clip((radius - distance) / float(step.min()) + 0.5, 0, 1)
    ball /= ball.sum()
    return ball


def _cap(line: NDArray[np.float64], radius: float, step: NDArray[np.float64]) -> float:
    """Limit the density where tubes cross to twice that of a single tube: they exclude each other."""
    blurred = signal.fftconvolve(line, _ball(radius, step), mode="same")
    lit = blurred[line > 0]
    return float(2 * np.median(lit)) if lit.size else 1.0


def _finish(image: NDArray[np.float64]) -> FloatArray:
    image = np.maximum(image, 0)
    peak = image.max()
    return (image / peak if peak > 0 else image).astype(np.float32)


# --------------------------------------------------------------------------------------------- microscope


def gaussian_psf(
    voxel_size: Sequence[float],
    *,
    wavelength: float = 0.6,
    numerical_aperture: float = 1.4,
    refractive_index: float = 1.515,
) -> FloatArray:
    """Approximate the paraxial widefield point-spread function by a Gaussian, out to 4 sigma.

    sigma_xy = 0.225 wavelength / NA and sigma_z = 0.78 refractive_index wavelength / NA^2 (Zhang et al. 2007,
    table 1).

    Parameters
    ----------
    voxel_size : sequence of float
        (Y, X) or (Z, Y, X), micrometres; as many as the specimen has axes.
    wavelength : float
        Of the emission, micrometres.
    numerical_aperture : float
        Of the objective.
    refractive_index : float
        Of the immersion.

    Returns
    -------
    ndarray of float32
        Odd-sized along every axis, centred, sum 1.
    """
    lateral = 0.225 * wavelength / numerical_aperture
    axial = 0.78 * refractive_index * wavelength / numerical_aperture**2
    sigma = [axial, lateral, lateral][-len(voxel_size) :]
    psf = np.ones((1,) * len(voxel_size))
    for axis, (s, step) in enumerate(zip(sigma, voxel_size, strict=True)):
        half = int(np.ceil(4 * s / step))
        profile = np.exp(-0.5 * (np.arange(-half, half + 1) * step / s) ** 2)
        psf = psf * profile.reshape([-1 if a == axis else 1 for a in range(len(voxel_size))])
    return np.asarray(psf / psf.sum(), dtype=np.float32)


def born_wolf_psf(
    shape: Sequence[int],
    voxel_size: Sequence[float],
    *,
    wavelength: float = 0.6,
    numerical_aperture: float = 1.4,
    refractive_index: float = 1.515,
) -> FloatArray:
    """Compute the scalar widefield point-spread function.

    |int_0^1 J0(k NA r p) exp(-i k z NA^2 p^2 / (2 n)) p dp|^2, by 200 Gauss-Legendre nodes.

    Parameters
    ----------
    shape : sequence of int
        (Y, X) or (Z, Y, X), odd.
    voxel_size : sequence of float
        Step per axis, micrometres.
    wavelength : float
        Of the emission in vacuum, micrometres.
    numerical_aperture : float
        Of the objective.
    refractive_index : float
        Of the immersion.

    Returns
    -------
    ndarray of float32, shape `shape`
        Centred, sum 1.
    """
    if any(n % 2 == 0 for n in shape) or len(shape) != len(voxel_size):
        raise ValueError(f"a PSF of shape {tuple(shape)} has no centre voxel: give an odd size per axis of voxel_size.")
    half = [n // 2 for n in shape]
    y = (np.arange(shape[-2]) - half[-2]) * voxel_size[-2]
    x = (np.arange(shape[-1]) - half[-1]) * voxel_size[-1]
    z = (np.arange(shape[0]) - half[0]) * voxel_size[0] if len(shape) == 3 else np.zeros(1)
    wavenumber = 2 * np.pi / wavelength
    radius = np.hypot(y[:, None], x[None])
    ladder = np.linspace(0, radius.max(), 4 * int(radius.max() / min(voxel_size[-2:])) + 8)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    p, weights = 0.5 * (nodes + 1), 0.5 * weights
    bessel = special.j0(wavenumber * numerical_aperture * ladder[:, None] * p) * (p * weights)
    phase = np.exp(-0.5j * wavenumber * numerical_aperture**2 / refractive_index * z[:, None] * p**2)
    profile = np.abs(phase @ bessel.T) ** 2
    psf = np.stack([np.interp(radius, ladder, row) for row in profile]).reshape(shape)
    return np.asarray(psf / psf.sum(), dtype=np.float32)


def blur(image: FloatArray, psf: FloatArray) -> FloatArray:
    """Convolve with a PSF; the image is mirrored at its border.

    Parameters
    ----------
    image : ndarray of float32, shape (Y, X) or (Z, Y, X)
        Expected light, >= 0.
    psf : ndarray of float32
        As many axes, odd-sized, sum 1.

    Returns
    -------
    ndarray of float32, shape of `image`
        Blurred light, >= 0.
    """
    if psf.ndim != image.ndim:
        raise ValueError(f"the PSF has {psf.ndim} axes and the image {image.ndim}: give both the same.")
    pad = [(min(n // 2, size - 1),) * 2 for n, size in zip(psf.shape, image.shape, strict=True)]
    padded = np.pad(image.astype(np.float64), pad, mode="reflect")
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pad, image.shape, strict=True))
    # The transform leaves rounding errors of either sign where there is no light.
    blurred = np.maximum(signal.fftconvolve(padded, psf, mode="same")[inside], 0)
    return np.asarray(blurred, dtype=np.float32)


def through_microscope(
    specimen: FloatArray,
    psf: FloatArray,
    *,
    peak: float,
    background: float = 0.0,
    haze: float = 0.0,
    haze_width: Sequence[float] | float = 12.0,
) -> FloatArray:
    """Compute the expected photo-electrons of every voxel: background and blurred specimen.

    Parameters
    ----------
    specimen : ndarray of float32, shape (Y, X) or (Z, Y, X)
        Fluorophore density.
    psf : ndarray of float32
        As many axes, odd-sized, sum 1.
    peak : float
        Photo-electrons above the background where the blurred specimen is brightest (its 99.9th percentile).
    background : float
        Photo-electrons everywhere.
    haze : float
        Share of the light that comes from out of focus, in [0, 1).
    haze_width : float or sequence of float
        Standard deviation of the out-of-focus light, voxels.

    Returns
    -------
    ndarray of float32, shape of `specimen`
        Expected photo-electrons.
    """
    light = blur(specimen, psf)
    if haze:
        light = (1 - haze) * light + haze * ndimage.gaussian_filter(light, haze_width, mode="reflect")
    light = light / max(float(np.quantile(light, 0.999)), 1e-12)
    return (background + peak * light).astype(np.float32)


# ------------------------------------------------------------------------------------------------- camera


@dataclass(frozen=True, eq=False)
class Camera:
    """A detector: expected photo-electrons in, counts out.

    Parameters
    ----------
    kind : {"scmos", "emccd", "pmt"}
        What it is; only names it, the physics is in the numbers.
    gain : float or ndarray, shape (Y, X)
        Mean counts per photo-electron (ADU), after any multiplication.
    offset : float or ndarray, shape (Y, X)
        Counts without light, ADU.
    read_noise : float or ndarray, shape (Y, X)
        Standard deviation of the electronics, ADU.
    excess : float
        Factor by which multiplication raises the variance of the shot noise: 1 none, 2 an EMCCD register.
    bits : int
        The converter clips to [0, 2**bits - 1]; up to 8 bits gives uint8, else uint16.
    """

    kind: Literal["scmos", "emccd", "pmt"]
    gain: float | FloatArray
    offset: float | FloatArray = 0.0
    read_noise: float | FloatArray = 0.0
    excess: float = 1.0
    bits: int = 16

    def __post_init__(self) -> None:
        """Refuse what is no camera."""
        if np.min(self.gain) <= 0 or np.min(self.read_noise) < 0 or self.excess < 1 or not 1 <= self.bits <= 16:
            raise ValueError(
                f"no such camera: gain {np.min(self.gain):g} must be > 0, read_noise "
                f"{np.min(self.read_noise):g} >= 0, excess {self.excess:g} >= 1 and bits {self.bits} within "
                "1 to 16."
            )

    @classmethod
    def scmos(cls, **changes: Any) -> Camera:
        """sCMOS: 2.2 ADU per electron, offset 100, 1.4 electrons of read noise."""
        return replace(cls("scmos", gain=2.2, offset=100.0, read_noise=3.1), **changes)

    @classmethod
    def emccd(cls, **changes: Any) -> Camera:
        """EMCCD: multiplication 300 at 12 electrons per ADU, 45 electrons of read noise."""
        return replace(cls("emccd", gain=25.0, offset=400.0, read_noise=3.75, excess=2.0), **changes)

    @classmethod
    def pmt(cls, **changes: Any) -> Camera:
        """Photomultiplier of a confocal, 8 bits: 4 ADU per electron, offset 3, pulse-height excess 1.1."""
        return replace(cls("pmt", gain=4.0, offset=3.0, read_noise=0.5, excess=1.1, bits=8), **changes)

    @classmethod
    def photon_counter(cls) -> Camera:
        """Photon counting: the counts are the photo-electrons."""
        return cls("pmt", gain=1.0)

    @property
    def saturation(self) -> float:
        """Largest count, ADU."""
        return float(2**self.bits - 1)

    @property
    def dtype(self) -> type[np.uint8 | np.uint16]:
        """Of the counts."""
        return np.uint8 if self.bits <= 8 else np.uint16

    @property
    def slope(self) -> float | FloatArray:
        """Slope of the photon-transfer line, ADU: gain times excess."""
        return self.gain * self.excess

    def mean(self, photons: NDArray[Any]) -> NDArray[np.float64]:
        """Compute the expected counts (ADU) of expected photo-electrons, without saturation."""
        return np.asarray(self.offset + self.gain * np.asarray(photons, dtype=np.float64))

    def variance(self, photons: NDArray[Any]) -> NDArray[np.float64]:
        """Compute the variance of the counts (ADU^2), without rounding and saturation."""
        electrons = np.asarray(photons, dtype=np.float64)
        return np.asarray(self.excess * np.square(self.gain) * electrons + np.square(self.read_noise))

    def expose(self, photons: NDArray[Any], rng: np.random.Generator) -> NDArray[np.uint8 | np.uint16]:
        """Take one exposure.

        Parameters
        ----------
        photons : ndarray, shape (..., Y, X)
            Expected photo-electrons, >= 0.
        rng : numpy.random.Generator
            Source of the noise.

        Returns
        -------
        ndarray of uint8 or uint16, same shape
            Counts.
        """
        photons = np.asarray(photons, dtype=np.float64)
        if not np.isfinite(photons).all() or (photons < 0).any():
            raise ValueError("photons must be finite and >= 0: they are expected counts of photo-electrons.")
        signal_ = rng.poisson(photons).astype(np.float64)
        if self.excess > 1:
            k = 1 / (self.excess - 1)
            signal_ = rng.gamma(k * signal_) / k
        counts = self.offset + self.gain * signal_
        if np.any(np.asarray(self.read_noise) > 0):
            counts = counts + self.read_noise * rng.standard_normal(photons.shape)
        return np.clip(np.rint(counts), 0, self.saturation).astype(self.dtype)

    def with_maps(self, shape: tuple[int, int], seed: int = 0, *, hot: float = 0.01) -> Camera:
        """Give every pixel its own gain, offset and read noise, as an sCMOS has, and a share of hot pixels.

        Parameters
        ----------
        shape : (int, int)
            (Y, X).
        seed : int
            Same seed, same chip.
        hot : float
            Share of pixels with 5 to 20 times the read noise (the tail of the calibrated chips of Huang et
            al. 2013).

        Returns
        -------
        Camera
            With maps of `shape`.
        """
        rng = np.random.default_rng([seed, 4])
        read = self.read_noise * np.exp(rng.normal(0, 0.15, shape))
        noisy = rng.uniform(size=shape) < hot
        read = np.where(noisy, read * rng.uniform(5, 20, shape), read)
        offset = self.offset + rng.normal(0, 0.3, shape) * np.where(noisy, 5, 1) * self.gain
        gain = self.gain * (1 + rng.normal(0, 0.02, shape))
        return replace(
            self,
            gain=gain.astype(np.float32),
            offset=offset.astype(np.float32),
            read_noise=read.astype(np.float32),
        )
