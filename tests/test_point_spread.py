"""The computed PSF against diffraction's closed forms, and beads against PSFs that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, special

from napari_ambient.operators import Blur
from napari_ambient.point_spread import PointSpreadError, microscope_psf, prepare
from napari_ambient.simulate import born_wolf_psf

torch.set_num_threads(1)

OIL = {"na": 1.3, "wavelength_nm": 520, "refractive_index": 1.515}
CONFOCAL = {**OIL, "excitation_nm": 488}
STEP = (0.1, 0.05, 0.05)


def first_minimum(line: np.ndarray, step: float) -> float:
    """Give where a line that begins at its peak has its first minimum, by a parabola through three samples."""
    at = int(np.argmax((line[1:-1] <= line[:-2]) & (line[1:-1] <= line[2:]))) + 1
    left, low, right = line[at - 1 : at + 2].astype(np.float64)
    return step * (at + 0.5 * (left - right) / (left - 2 * low + right))


def width(line: np.ndarray) -> float:
    """Full width at half maximum, voxels, of a line with its peak in the middle."""
    half = line[len(line) // 2 :] / line.max() - 0.5
    at = int(np.argmax(half < 0))
    return 2 * float(at - 1 + half[at - 1] / (half[at - 1] - half[at]))


# --- computed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("na", "index"), [(0.3, 1.0), (0.8, 1.0), (1.4, 1.515)])
def test_airy_radius(na: float, index: float) -> None:
    """0.61 wavelength/NA in focus, at any aperture; the pixels average hardly anything here."""
    step = 0.02 * 0.5 / na
    psf = microscope_psf(
        na=na, wavelength_nm=500, refractive_index=index, voxel_size_um=(step, step), dims=2, shape=(129, 129)
    )
    for line in (psf[64, 64:], psf[64:, 64]):
        assert first_minimum(line, step) == pytest.approx(0.61 * 0.5 / na, rel=0.02)


def test_airy_pattern() -> None:
    """(2 J₁(v)/v)², v = k NA r, at every pixel, and its encircled light 1 - J₀² - J₁²."""
    na, wavelength, step = 0.5, 0.5, 0.02
    psf = microscope_psf(
        na=na, wavelength_nm=500, refractive_index=1.0, voxel_size_um=(step, step), dims=2, shape=(301, 301)
    ).astype(np.float64)
    r = step * np.hypot(*np.meshgrid(np.arange(-150, 151), np.arange(-150, 151)))
    v = 2 * math.pi / wavelength * na * np.where(r == 0, 1, r)
    airy = np.where(r == 0, 1, (2 * special.j1(v) / v) ** 2)
    # a pixel of 0.02 µm averages away (k NA step)²/24 of the peak
    np.testing.assert_allclose(psf / psf.max(), airy, rtol=0, atol=1e-3)
    inside = 2 * math.pi / wavelength * na * 1.5
    encircled = 1 - special.j0(inside) ** 2 - special.j1(inside) ** 2
    edge = 2 * math.pi / wavelength * na * 3.0
    whole = 1 - special.j0(edge) ** 2 - special.j1(edge) ** 2
    assert psf[r < 1.5].sum() / psf[r < 3.0].sum() == pytest.approx(encircled / whole, rel=2e-3)


@pytest.mark.parametrize(("na", "index"), [(0.2, 1.0), (0.25, 1.33)])
def test_axial_zero(na: float, index: float) -> None:
    """2 n wavelength/NA² of the paraxial theory, exact at small apertures (here to NA²/(4 n²) = 1 %)."""
    zero = 2 * index * 0.5 / na**2
    step = zero / 50
    psf = microscope_psf(
        na=na, wavelength_nm=500, refractive_index=index, voxel_size_um=(step, 0.05, 0.05), shape=(161, 3, 3)
    )
    line = psf[80:, 1, 1]
    assert first_minimum(line, step) == pytest.approx(zero, rel=0.03)
    # (sin u / u)², u = π z / zero
    z = np.arange(1, 81) / 50
    np.testing.assert_allclose(line[1:] / line[0], (np.sin(math.pi * z) / (math.pi * z)) ** 2, rtol=0, atol=0.02)


def test_high_aperture_is_not_paraxial() -> None:
    """The axial zero of a high aperture is wavelength/(n - √(n² - NA²)), much nearer than the paraxial one."""
    zero = 0.52 / (1.515 - math.sqrt(1.515**2 - 1.4**2))
    psf = microscope_psf(
        na=1.4, wavelength_nm=520, refractive_index=1.515, voxel_size_um=(0.02, 0.01, 0.01), shape=(81, 1, 1)
    )
    # the pupil's weight is even in ρ², not in its cosine, which moves the minimum a little
    assert first_minimum(psf[40:, 0, 0], 0.02) == pytest.approx(zero, rel=0.06)
    assert zero < 0.7 * 2 * 1.515 * 0.52 / 1.4**2


def test_agrees_with_another_implementation() -> None:
    """At low aperture Born & Wolf's paraxial integral, as the simulation has it, point by point."""
    shape, step = (21, 41, 41), (1.0, 0.1, 0.1)
    ours = microscope_psf(na=0.3, wavelength_nm=520, refractive_index=1.0, voxel_size_um=step, shape=shape)
    theirs = born_wolf_psf(shape, step, wavelength=0.52, numerical_aperture=0.3, refractive_index=1.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * theirs.max())  # theirs: paraxial, points of the pixels


KINDS: dict[str, dict[str, Any]] = {
    "widefield": {"kind": "widefield", **OIL},
    "confocal": {"kind": "confocal", **CONFOCAL},
    "light-sheet": {"kind": "light-sheet", **OIL, "na": 0.8, "sheet_thickness_um": 1.0},
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_sum_symmetry_and_size(kind: str, dims: int) -> None:
    psf = microscope_psf(**KINDS[kind], voxel_size_um=STEP, dims=dims)
    assert psf.dtype == np.float32
    assert psf.ndim == dims
    assert all(n % 2 for n in psf.shape)
    assert psf.min() >= 0
    assert float(psf.sum(dtype=np.float64)) == pytest.approx(1, abs=1e-6)
    assert np.unravel_index(psf.argmax(), psf.shape) == tuple(n // 2 for n in psf.shape)
    for axis in range(dims):
        np.testing.assert_allclose(psf, np.flip(psf, axis), rtol=0, atol=1e-6 * psf.max())
    np.testing.assert_allclose(psf, psf.swapaxes(-1, -2), rtol=0, atol=1e-6 * psf.max())
    Blur(psf)  # takes it as it is


def test_widefield_keeps_its_light_out_of_focus_and_others_do_not() -> None:
    per_plane = {
        kind: microscope_psf(**KINDS[kind], voxel_size_um=STEP, shape=(25, 161, 161)).sum(axis=(1, 2), dtype=np.float64)
        for kind in KINDS
    }
    share = per_plane["widefield"] / per_plane["widefield"][12]
    assert np.abs(share - 1).max() < 0.03  # the box holds all but 2-3 % of every plane
    for kind in ("confocal", "light-sheet"):
        assert per_plane[kind][0] < 0.1 * per_plane[kind][12]
    # and the light-sheet's is the sheet's own profile: half at half its thickness, 5 planes of 0.1 µm
    assert per_plane["light-sheet"][7] / per_plane["light-sheet"][12] == pytest.approx(0.5, abs=0.01)


def test_confocal_is_narrower() -> None:
    def widths(**more: Any) -> tuple[float, float]:
        psf = microscope_psf(**more, voxel_size_um=(0.04, 0.02, 0.02), shape=(61, 61, 61))
        return width(psf[30, 30]), width(psf[:, 30, 30])

    wide = widths(**KINDS["widefield"])
    pinholes = [widths(**KINDS["confocal"], pinhole_airy=airy) for airy in (0.0, 0.5, 1.0, 3.0)]
    for narrow, wider in zip(pinholes, [*pinholes[1:], wide], strict=True):
        assert narrow[0] < wider[0] + 1e-3
        assert narrow[1] < wider[1] + 1e-3
    # at the same wavelength and a point pinhole the PSF is the square, whose half width is where h = √½
    square = widths(**{**KINDS["confocal"], "excitation_nm": 520, "pinhole_airy": 0.0})
    plane = microscope_psf(**KINDS["widefield"], voxel_size_um=(0.04, 0.02, 0.02), shape=(61, 61, 61))
    assert square[0] == pytest.approx(width(plane[30, 30].astype(np.float64) ** 2), rel=2e-3)
    # an open pinhole leaves the excitation's
    opened = widths(**KINDS["confocal"], pinhole_airy=20.0)
    laser = widths(**{**KINDS["widefield"], "wavelength_nm": 488})
    assert opened[0] == pytest.approx(laser[0], rel=0.02)


def test_pinhole_average_is_a_convolution() -> None:
    """With the excitation divided out, the emission convolved with the pinhole's disc in the plane."""
    step, shape = 0.01, (161, 161)
    plane: dict[str, Any] = {"na": 1.3, "refractive_index": 1.515, "voxel_size_um": (step, step), "dims": 2}
    confocal = microscope_psf(
        "confocal", wavelength_nm=520, excitation_nm=488, pinhole_airy=1.0, shape=shape, **plane
    ).astype(np.float64)
    laser = microscope_psf(wavelength_nm=488, shape=shape, **plane).astype(np.float64)
    emission = microscope_psf(wavelength_nm=520, shape=shape, **plane).astype(np.float64)
    radius = 0.61 * 0.52 / 1.3 / step
    y, x = np.mgrid[-40:41, -40:41]
    disc = np.clip(radius - np.hypot(y, x) + 0.5, 0, 1)  # its edge softened over one pixel
    expected = laser * ndimage.convolve(emission, disc, mode="constant")
    inner = (slice(50, 111),) * 2
    difference = confocal / confocal.max() - expected / expected.max()
    assert np.abs(difference[inner]).max() < 5e-3


def test_pixels_average() -> None:
    """Coarse pixels are the sums of the fine ones that they cover."""
    fine = microscope_psf(**OIL, voxel_size_um=(0.02, 0.02), dims=2, shape=(105, 105)).astype(np.float64)
    coarse = microscope_psf(**OIL, voxel_size_um=(0.1, 0.1), dims=2, shape=(21, 21)).astype(np.float64)
    binned = fine.reshape(21, 5, 21, 5).sum(axis=(1, 3))
    np.testing.assert_allclose(coarse, binned / binned.sum(), rtol=0, atol=3e-3 * binned.max())
    # points of the pixels would be off by ten times as much
    points = fine[2::5, 2::5] / fine[2::5, 2::5].sum()
    assert np.abs(points - binned / binned.sum()).max() > 2e-2 * binned.max()


def test_depth_aberrates() -> None:
    """Oil under water: dimmer, longer and lopsided, its tail towards the deeper planes' side of the focus."""
    optics: dict[str, Any] = {**OIL, "na": 1.2, "voxel_size_um": (0.1, 0.05, 0.05), "shape": (61, 61, 61)}
    matched = microscope_psf(**optics, depth_um=10.0)
    aberrated = microscope_psf(**optics, specimen_index=1.33, depth_um=10.0)
    np.testing.assert_array_equal(matched, microscope_psf(**optics))
    assert aberrated.max() < 0.7 * matched.max()
    assert int(aberrated.max(axis=(1, 2)).argmax()) == 30
    before, behind = (float(part.sum()) for part in (aberrated[:20, 30, 30], aberrated[41:, 30, 30]))
    # Under water the outer rays bend more: they meet the point when the lens looks deeper, so the rings trail there.
    assert behind > 1.5 * before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"na": 1.515},
            r"aperture is 1.515, the refractive index 1.515; .*below the index of the immersion.*oil 1.515",
        ),
        ({"na": 1.4, "refractive_index": 1.33}, "aperture is 1.4, the refractive index 1.33"),
        ({"na": 0.0}, "aperture is 0"),
        ({"na": math.nan}, "aperture is nan"),
        ({"refractive_index": 0.5}, "index of the immersion is 0.5"),
        ({"wavelength_nm": 0.52}, "emission wavelength is 0.52; give nanometres"),
        ({"voxel_size_um": (100, 65, 65)}, "give micrometres"),
        ({"voxel_size_um": (0.0, 0.1, 0.1)}, "above 0"),
        ({"voxel_size_um": (0.1, 0.1)}, r"a PSF in 3D needs \(Z, Y, X\)"),
        ({"dims": 4}, "dims is 4; choose 2"),
        ({"shape": (10, 11, 11)}, "odd so that there is a middle voxel"),
        ({"shape": (11, 11)}, r"give \(Z, Y, X\)"),
        ({"depth_um": -1}, "depth is -1"),
        ({"specimen_index": 3.0}, "index of the specimen is 3.0"),
        ({"kind": "sted"}, "choose widefield, confocal or light-sheet"),
        ({"kind": "confocal"}, "needs the excitation wavelength"),
        ({"kind": "confocal", "excitation_nm": 0.488}, "excitation wavelength is 0.488; give nanometres"),
        ({"kind": "confocal", "excitation_nm": 488, "pinhole_airy": -1}, "pinhole is -1"),
        ({"kind": "light-sheet"}, "thickness of the light sheet is None"),
    ],
)
def test_impossible_optics_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PointSpreadError, match=message):
        microscope_psf(**{"voxel_size_um": STEP, **OIL, **change})


# --- measured -------------------------------------------------------------------------------------


def spot(shape: tuple[int, ...], middle: tuple[float, ...], sigma: tuple[float, ...]) -> np.ndarray:
    grids = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.exp(-0.5 * sum(((g - m) / s) ** 2 for g, m, s in zip(grids, middle, sigma, strict=True)))


def centroid(psf: np.ndarray) -> list[float]:
    """Distance of the centre of mass from the middle voxel, per axis."""
    grids = np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in psf.shape)]
    return [float((psf * g).sum() / psf.sum()) for g in grids]


@pytest.mark.parametrize("middle", [(30.0, 33.0), (30.45, 33.3), (29.7, 33.5), (31.1, 28.02)])
def test_bead_is_centred(middle: tuple[float, float]) -> None:
    sigma = (1.6, 1.4)
    psf = prepare(100 + 5000 * spot((64, 61), middle, sigma))
    assert all(n % 2 for n in psf.shape)
    assert float(psf.sum(dtype=np.float64)) == pytest.approx(1, abs=1e-6)
    assert max(map(abs, centroid(psf))) < 0.01
    true = spot(psf.shape, tuple(n // 2 for n in psf.shape), sigma)
    # the spline that shifts it and the cut after 0.999 of the light
    np.testing.assert_allclose(psf, true / true.sum(), rtol=0, atol=3e-3 * psf.max())


def test_brightest_voxel_or_whole_box_would_miss() -> None:
    """What the core's centre is for: half a voxel, or a far haze on one side."""
    image = 100 + 5000 * spot((64, 64), (30.5, 33.5), (1.5, 1.5)) + 60 * spot((64, 64), (32, 52), (8, 5))
    psf = prepare(image, background=100.0)
    peak = tuple(n // 2 for n in psf.shape)
    core = psf[peak[0] - 4 : peak[0] + 5, peak[1] - 4 : peak[1] + 5]
    assert max(map(abs, centroid(core))) < 0.02
    assert abs(centroid(image - 100)[1] - (33.5 - 32)) > 1  # the centre of mass of the box lies elsewhere


@pytest.mark.parametrize("level", [0.0, 100.0])
def test_noise_does_not_become_light(rng: np.random.Generator, level: float) -> None:
    """A dim bead in a large noisy box: its light, its place and its size stay; plain clipping doubles the light."""
    shape, sigma, middle = (25, 96, 96), (2.5, 1.8, 1.8), (12.3, 47.6, 48.2)
    true = 3000 * spot(shape, middle, sigma)
    image = level + true + 20 * rng.standard_normal(shape)
    psf = prepare(image)
    clipped = np.maximum(image - np.median(image), 0)
    assert clipped.sum() > 2 * true.sum()  # the fault that is avoided
    assert max(psf.shape[1:]) < 31
    at = tuple(n // 2 for n in psf.shape)
    exact = spot(psf.shape, at, sigma)
    exact /= exact.sum()
    # single voxels have noise of 20/3000 of the peak, their sum over the bead less than 1 %
    assert psf[at] == pytest.approx(exact[at], rel=0.03)
    assert max(map(abs, centroid(psf))) < 0.1
    assert np.abs(psf - exact).sum() < 0.1


def test_tilted_background_goes() -> None:
    y, x = np.mgrid[:64, :64]
    image = 200 + 0.5 * y - 0.3 * x + 4000 * spot((64, 64), (31, 31), (1.5, 1.5))
    image += np.random.default_rng(3).normal(0, 3, image.shape)
    psf = prepare(image)
    assert max(psf.shape) < 21
    assert max(map(abs, centroid(psf))) < 0.05


def test_real_microscope_bead(rng: np.random.Generator) -> None:
    """A widefield bead with shot noise gives back the optics' own PSF."""
    optics = microscope_psf(na=0.8, wavelength_nm=520, refractive_index=1.0, voxel_size_um=(0.3, 0.13, 0.13))
    light = np.pad(optics.astype(np.float64), ((0, 0), (20, 23), (25, 20)))
    image = rng.poisson(4e6 * light + 100).astype(np.uint16)
    psf = prepare(image)
    grow = [(max(0, o - p) // 2,) * 2 for o, p in zip(optics.shape, psf.shape, strict=True)]
    inner = tuple(
        slice(max(0, p - o) // 2, p - max(0, p - o) // 2) for o, p in zip(optics.shape, psf.shape, strict=True)
    )
    # the shot noise of the voxels alone makes half of this
    assert np.abs(np.pad(psf[inner], grow) - optics).sum() < 0.15
    assert psf.max() == pytest.approx(optics.max(), rel=0.05)
    # every plane of a widefield PSF holds the same light
    assert np.abs(psf.sum(axis=(1, 2)) * len(psf) - 1).max() < 0.05


def test_a_psf_passes_through() -> None:
    """A computed PSF is not changed but for the cut: wings are not background."""
    optics = microscope_psf(**KINDS["confocal"], voxel_size_um=STEP)
    same = prepare(optics, background=None, crop_energy=1.0)
    assert same.shape == optics.shape
    np.testing.assert_allclose(same, optics, rtol=0, atol=1e-6 * optics.max())
    even = np.pad(optics, ((0, 1), (1, 0), (2, 3)))
    np.testing.assert_allclose(
        prepare(even, background=None, crop_energy=1.0), optics, rtol=0, atol=1e-6 * optics.max()
    )


def test_without_centring_the_middle_stays() -> None:
    image = spot((21, 24), (11.0, 11.0), (2.0, 2.0))  # one voxel from the first middle, one from the second
    psf = prepare(image, background=None, centre=False, crop_energy=1.0)
    assert psf.shape == (21, 23)
    assert np.unravel_index(psf.argmax(), psf.shape) == (11, 10)


def test_crop_holds_the_energy() -> None:
    optics = microscope_psf(**KINDS["widefield"], voxel_size_um=STEP)
    previous = math.prod(optics.shape) + 1
    for energy in (0.999, 0.99, 0.95, 0.9):
        psf = prepare(optics, background=None, crop_energy=energy)
        cut = tuple(slice(n // 2 - p // 2, n // 2 + p // 2 + 1) for n, p in zip(optics.shape, psf.shape, strict=True))
        assert float(optics[cut].sum()) >= energy - 1e-6
        assert math.prod(psf.shape) < previous
        previous = math.prod(psf.shape)


BEAD = 100 + 1000 * spot((32, 32), (16, 16), (1.5, 1.5))
HAZY = 1000 * spot((64, 64), (32, 32), (1.5, 1.5)) + 50 * spot((64, 64), (32, 32), (9, 9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prepare(np.where(BEAD > 800, np.nan, BEAD)), r"5 NaN or infinite values, the first at \(15, 16\)"),
        (lambda: prepare(np.full((9, 9), 7.0)), "7 everywhere"),
        (lambda: prepare(np.zeros((9, 9))), "0 everywhere"),
        (lambda: prepare(np.ones(9)), r"shape \(9,\); give \(Y, X\)"),
        (lambda: prepare(np.ones((2, 9, 9, 9))), "one channel, one time point"),
        (lambda: prepare(BEAD.astype(complex)), "complex128; give real numbers"),
        (lambda: prepare(BEAD, background=5000.0), "no light rises above the background"),
        (lambda: prepare(np.random.default_rng(0).normal(100, 5, (64, 64))), "no light rises"),
        (lambda: prepare(BEAD, background="corner"), "choose 'border', a number, or None"),  # type: ignore[arg-type]
        (lambda: prepare(BEAD, crop_energy=0.0), "crop_energy is 0"),
        (lambda: prepare(BEAD - 300, background=None), r"\d+ values of the PSF are below 0.*--psf-is bead"),
        (lambda: prepare(-BEAD, background=None), "no light rises"),
        (lambda: prepare(BEAD[15:]), "touches the border along Y"),
        (lambda: prepare(BEAD[:, :17], background=100.0), "touches the border along X"),
        (lambda: prepare(np.tile(BEAD, (2, 1))), "several beads"),
        (lambda: prepare(HAZY[:, 28:], background=0.0), r"the light lies beside voxel \(32, 4\) .*crop the image"),
    ],
)
def test_unusable_beads_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(PointSpreadError, match=message):
        make()


def test_what_rounding_left_below_zero_is_set_to_zero() -> None:
    """A computed PSF that was interpolated has small negative values; they are no light."""
    psf = spot((15, 15), (7, 7), (1.5, 1.5))
    given = psf - 1e-7 * psf.max()
    np.testing.assert_allclose(prepare(given, background=None), prepare(psf, background=None), atol=1e-5)
