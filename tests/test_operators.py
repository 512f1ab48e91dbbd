"""Law 8: ⟨A x, v⟩ = ⟨x, Aᵀ v⟩ in float64, autograd agrees, and crop commutes inside the halo."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from napari_ambient import operators
from napari_ambient.operators import Blur, Compose, Downsample, Identity, Mask, Operator, OperatorError

torch.set_num_threads(1)

BORDERS = ("reflect", "zero", "wrap", "open")
# ndimage's names: its "mirror" does not repeat the outermost voxel, as ours does not
NDIMAGE = {"reflect": "mirror", "zero": "constant", "wrap": "wrap", "open": "constant"}
PLANE, STACK = (24, 20), (8, 24, 20)


def kernel(*shape: int, seed: int = 1) -> np.ndarray:
    """Without any symmetry, so that a kernel turned round would show."""
    values = np.random.default_rng(seed).uniform(0.1, 1, shape) ** 2
    return values / values.sum()


def draw(spatial: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 2, *spatial), generator=generator, dtype=torch.float64)


# name: (operator, spatial shape of x). Kernels beyond FEW_TAPS voxels go by Fourier transform, the others by taps.
CASES: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "identity": (Identity(), PLANE),
    "identity 3D": (Identity(), STACK),
}
for border in BORDERS:
    for size in ((3, 3), (4, 3), (1, 5), (9, 8), (11, 7), (8, 10), (31, 45)):
        CASES[f"blur {size} {border}"] = (Blur(kernel(*size), border), PLANE)  # type: ignore[arg-type]
    for size in ((3, 3, 3), (2, 3, 4), (5, 7, 6), (4, 9, 9), (19, 5, 5), (1, 8, 8)):
        CASES[f"blur {size} {border}"] = (Blur(kernel(*size), border), STACK)  # type: ignore[arg-type]
    CASES[f"blur plane in stack {border}"] = (Blur(kernel(7, 8), border), STACK)  # type: ignore[arg-type]
    CASES[f"blur one plane 3D {border}"] = (Blur(kernel(3, 3, 3), border), (1, 24, 20))  # type: ignore[arg-type]
RANDOM = np.random.default_rng(7)
CASES |= {
    "mask": (Mask(RANDOM.random(PLANE) < 0.6), PLANE),
    "gain map": (Mask(RANDOM.uniform(0.5, 1.5, PLANE)), PLANE),
    "mask plane in stack": (Mask(RANDOM.random(PLANE) < 0.6), STACK),
    "gain map 3D": (Mask(RANDOM.uniform(0.5, 1.5, STACK)), STACK),
    "downsample 2": (Downsample(2), PLANE),
    "downsample (3, 4) mean": (Downsample((3, 4), "mean"), PLANE),
    "downsample 2 in stack": (Downsample(2), STACK),
    "downsample (2, 3, 5)": (Downsample((2, 3, 5)), STACK),
    "downsample (4, 1, 1) mean": (Downsample((4, 1, 1), "mean"), STACK),
    "down of blur": (Downsample(2) @ Blur(kernel(9, 9)), PLANE),
    "mask of down of blur": (Mask(RANDOM.random((12, 10)) < 0.5) @ Downsample(2) @ Blur(kernel(5, 4)), PLANE),
    "blur of down of gain": (
        Blur(kernel(3, 3, 3), "zero") @ Downsample((2, 2, 1)) @ Mask(RANDOM.uniform(0.5, 1.5, STACK)),
        STACK,
    ),
    "blur of blur": (Blur(kernel(6, 7), "zero") @ Blur(kernel(9, 8)), PLANE),
}


def adjoint_error(
    forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], spatial: Sequence[int]
) -> float:
    """Give the largest |⟨A x, v⟩ - ⟨x, Aᵀ v⟩| over single images, relative to ‖A x‖ ‖v‖.

    The absolute error of each: a mean over signed ones would let faults cancel.
    """
    x = draw(spatial, 0)
    y = forward(x)
    v = draw(y.shape[2:], 1)
    images = tuple(range(2, x.ndim))
    left, right = (y * v).sum(images), (x * adjoint(v)).sum(images)
    norm = (y.square().sum(images) * v.square().sum(images)).sqrt()
    return float(((left - right).abs() / norm).max())


def dense(operator: Operator, spatial: Sequence[int]) -> Tensor:
    """Give the matrix of an operator, column by column."""
    n = int(np.prod(spatial))
    return operator.forward(torch.eye(n, dtype=torch.float64).reshape(n, 1, *spatial)).reshape(n, -1).T


# rounding of float64 over a few thousand terms is below 1e-13; a wrong voxel at one border gives 1e-3
TOLERANCE = 1e-12


@pytest.mark.parametrize("name", CASES)
def test_adjoint(name: str) -> None:
    operator, spatial = CASES[name]
    assert adjoint_error(operator.forward, operator.adjoint, spatial) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_linear_and_shapes(name: str) -> None:
    operator, spatial = CASES[name]
    a, b = draw(spatial, 2), draw(spatial, 3)
    together = operator.forward(2 * a - 3 * b)
    torch.testing.assert_close(together, 2 * operator.forward(a) - 3 * operator.forward(b), rtol=0, atol=1e-12)
    assert tuple(together.shape[2:]) == operator.output_shape(spatial)
    assert operator.input_shape(operator.output_shape(spatial)) == spatial
    assert tuple(operator.adjoint(together).shape[2:]) == spatial


@pytest.mark.parametrize("name", CASES)
def test_autograd_agrees(name: str) -> None:
    operator, spatial = CASES[name]
    x = draw(spatial, 4).requires_grad_()
    y = operator.forward(x)
    v = draw(y.shape[2:], 5).requires_grad_()
    (gradient,) = torch.autograd.grad(y, x, v.detach())
    back = operator.adjoint(v)
    torch.testing.assert_close(gradient, back.detach(), rtol=0, atol=1e-12)
    # and the adjoint of the adjoint is A
    (again,) = torch.autograd.grad(back, v, x.detach())
    torch.testing.assert_close(again, y.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("size", [(4, 5), (9, 8)], ids=["taps", "fourier"])
def test_a_wrong_adjoint_is_found(size: tuple[int, int], border: str) -> None:
    """Three common mistakes: A itself, A with the kernel turned round, no folding of the border."""
    blur = Blur(kernel(*size), border)  # type: ignore[arg-type]
    turned = Blur(kernel(*(n | 1 for n in size))[::-1, ::-1], border)  # type: ignore[arg-type]
    odd = Blur(kernel(*(n | 1 for n in size)), border)  # type: ignore[arg-type]
    assert adjoint_error(blur.forward, blur.forward, PLANE) > 1e-3
    if border == "reflect":  # turned round it is the adjoint inside, but not at a mirror
        assert adjoint_error(odd.forward, turned.forward, PLANE) > 1e-3
        unfolded = Blur(odd.psf, "zero")
        assert adjoint_error(odd.forward, unfolded.adjoint, PLANE) > 1e-3
    else:
        assert adjoint_error(odd.forward, turned.forward, PLANE) < TOLERANCE


def test_a_wrong_average_is_found() -> None:
    mean, total = Downsample(2, "mean"), Downsample(2)
    assert adjoint_error(mean.forward, total.adjoint, PLANE) > 1e-3


# --- what the operators compute -------------------------------------------------------------------


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(3, 3), (4, 2), (9, 8), (5, 7, 6), (3, 2, 3)])
def test_blur_is_convolution(size: tuple[int, ...], border: str) -> None:
    psf = kernel(*size)
    spatial = PLANE if len(size) == 2 else STACK
    x = draw(spatial, 6)
    blurred = Blur(psf, border).forward(x)  # type: ignore[arg-type]
    for b in range(2):
        for c in range(2):
            expected = ndimage.convolve(x[b, c].numpy(), psf, mode=NDIMAGE[border])
            np.testing.assert_allclose(blurred[b, c].numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(3, 3), (4, 4), (9, 9), (8, 10)])
def test_point_becomes_the_psf(size: tuple[int, int], border: str) -> None:
    x = torch.zeros(1, 1, 31, 33, dtype=torch.float64)
    x[0, 0, 15, 16] = 1
    blur = Blur(kernel(*size), border)  # type: ignore[arg-type]
    y0, x0 = 15 - size[0] // 2, 16 - size[1] // 2
    seen = blur.forward(x)[0, 0, y0 : y0 + size[0], x0 : x0 + size[1]]
    torch.testing.assert_close(seen, torch.from_numpy(blur.psf.copy()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("border", ["reflect", "wrap"])
def test_blur_keeps_a_constant_and_the_light(border: str) -> None:
    blur = Blur(kernel(9, 8), border)  # type: ignore[arg-type]
    ones = torch.ones(1, 1, *PLANE, dtype=torch.float64)
    torch.testing.assert_close(blur.forward(ones), ones, rtol=0, atol=1e-13)
    if border == "wrap":
        torch.testing.assert_close(blur.adjoint(ones), ones, rtol=0, atol=1e-13)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(5, 4), (3, 4, 3)])
def test_taps_and_fourier_agree(size: tuple[int, ...], border: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blur = Blur(kernel(*size), border)  # type: ignore[arg-type]
    spatial = PLANE if len(size) == 2 else STACK
    x, v = draw(spatial, 8), draw(spatial, 9)
    results = []
    for few in (0, 10**6):
        monkeypatch.setattr(operators, "FEW_TAPS", few)
        results.append((blur.forward(x), blur.adjoint(v)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(9, 8), (3, 3), (31, 45)], ids=["smaller", "taps", "larger than the image"])
def test_transfer_diagonalises_the_periodic_blur(size: tuple[int, int]) -> None:
    blur = Blur(kernel(*size), "wrap")
    x = draw(PLANE, 10)
    gain = blur.transfer(PLANE, dtype=torch.float64)
    assert gain.shape == (PLANE[0], PLANE[1] // 2 + 1)
    assert complex(gain[0, 0]) == pytest.approx(1, abs=1e-14)
    for applied, factor in ((blur.forward(x), gain), (blur.adjoint(x), gain.conj())):
        by_transfer = torch.fft.irfftn(torch.fft.rfftn(x, dim=(-2, -1)) * factor, s=PLANE, dim=(-2, -1))
        torch.testing.assert_close(applied, by_transfer, rtol=0, atol=1e-13)
    # the Wiener closed form solves (AᵀA + 1) u = Aᵀ x
    power = gain.abs().square() + 1
    u = torch.fft.irfftn(torch.fft.rfftn(blur.adjoint(x), dim=(-2, -1)) / power, s=PLANE, dim=(-2, -1))
    torch.testing.assert_close(blur.adjoint(blur.forward(u)) + u, blur.adjoint(x), rtol=0, atol=1e-12)


def test_transfer_of_another_border_is_not_the_blur() -> None:
    blur = Blur(kernel(9, 8), "reflect")
    x = draw(PLANE, 10)
    gain = blur.transfer(PLANE, dtype=torch.float64)
    by_transfer = torch.fft.irfftn(torch.fft.rfftn(x, dim=(-2, -1)) * gain, s=PLANE, dim=(-2, -1))
    differ = (by_transfer - blur.forward(x)).abs()
    assert differ.max() > 0.01
    inside = tuple(slice(h, -h) for h in blur.halo[1:])
    assert differ[..., inside[0], inside[1]].max() < 1e-13


def test_mask_and_downsample_by_numbers() -> None:
    x = torch.arange(16, dtype=torch.float64).reshape(1, 1, 4, 4)
    assert Downsample(2).forward(x).flatten().tolist() == [10, 18, 42, 50]
    assert Downsample(2, "mean").forward(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Downsample((4, 1)).forward(x).flatten().tolist() == [24, 28, 32, 36]
    assert Downsample(2).forward(x).sum() == x.sum()  # no photon is lost
    measured = np.eye(4, dtype=bool)
    assert Mask(measured).forward(x).sum() == 0 + 5 + 10 + 15
    stack = x[:, :, None].expand(1, 1, 2, 4, 4)
    assert Downsample(2).forward(stack).shape == (1, 1, 2, 2, 2)  # a single number leaves Z alone


def test_composition_is_the_product() -> None:
    spatial = (6, 8)
    a, b, c = Mask(RANDOM.uniform(0.5, 1, (3, 4))), Downsample(2), Blur(kernel(3, 4))
    product = dense(a, (3, 4)) @ dense(b, spatial) @ dense(c, spatial)
    for composed in (a @ b @ c, a @ (b @ c), (a @ b) @ c, Identity() @ a @ Identity() @ b @ c):
        torch.testing.assert_close(dense(composed, spatial), product, rtol=0, atol=1e-14)
        assert isinstance(composed, Compose)
        assert composed.operators == (a, b, c)
    assert Identity() @ c is c
    assert isinstance(Identity() @ Identity(), Identity)
    with pytest.raises(TypeError):
        a @ 2  # type: ignore[operator]


def test_float32_is_close() -> None:
    """Only rounding, some 1e-7 of the brightest."""
    for operator, spatial in CASES.values():
        x = draw(spatial, 11).abs()
        single = operator.forward(x.float())
        assert single.dtype == torch.float32
        exact = operator.forward(x)
        assert float((single - exact).abs().max()) < 1e-6 * float(exact.abs().max())


# --- regions --------------------------------------------------------------------------------------


def coarser(region: Sequence[slice], steps: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(part.start // step, part.stop // step) for part, step in zip(region, steps, strict=True))


def crop_error(operator: Operator, spatial: tuple[int, ...], halo: Sequence[int]) -> float:
    """Largest difference, over regions, of the whole's core from the region's, for A and for Aᵀ."""
    x = draw(spatial, 12)
    v = draw(operator.output_shape(spatial), 13)
    whole, back = operator.forward(x), operator.adjoint(v)
    steps, reach = operator.stride[-len(spatial) :], list(halo)[-len(spatial) :]
    worst = 0.0
    for choice in range(6):
        generator = np.random.default_rng(choice)
        core, read = [], []
        for n, step, h in zip(spatial, steps, reach, strict=True):
            cells = n // step
            a = int(generator.integers(0, cells))
            b = int(generator.integers(a + 1, cells + 1))
            core.append(slice(a * step, b * step))
            read.append(slice(max(a * step - h, 0), min(b * step + h, n)))
        inner = [slice(c.start - r.start, c.stop - r.start) for c, r in zip(core, read, strict=True)]
        cropped = operator.crop(read)
        here = cropped.forward(x[(..., *read)])[(..., *coarser(inner, steps))]
        worst = max(worst, float((here - whole[(..., *coarser(core, steps))]).abs().max()))
        there = cropped.adjoint(v[(..., *coarser(read, steps))])[(..., *inner)]
        worst = max(worst, float((there - back[(..., *core)]).abs().max()))
    return worst


@pytest.mark.parametrize("name", [name for name in CASES if "wrap" not in name])
def test_crop_commutes_inside_the_halo(name: str) -> None:
    operator, spatial = CASES[name]
    assert all(h % s == 0 for h, s in zip(operator.halo, operator.stride, strict=True))
    assert crop_error(operator, spatial, operator.halo) < 1e-12


@pytest.mark.parametrize("name", ["blur (9, 8) reflect", "blur (5, 7, 6) zero", "blur (11, 7) reflect", "down of blur"])
def test_a_smaller_halo_is_found(name: str) -> None:
    operator, spatial = CASES[name]
    smaller = [max(h - s, 0) for h, s in zip(operator.halo, operator.stride, strict=True)]
    assert crop_error(operator, spatial, smaller) > 1e-4


def test_periodic_blur_crops_away_from_the_border() -> None:
    blur, x = Blur(kernel(5, 4), "wrap"), draw(PLANE, 14)
    _, h, w = blur.halo
    inside = blur.forward(x)[..., h : PLANE[0] - h, w : PLANE[1] - w]
    read = (slice(1, PLANE[0] - 1), slice(1, PLANE[1] - 1))
    here = blur.crop(read).forward(x[(..., *read)])
    np.testing.assert_allclose(here[..., h:-h, w:-w], inside[..., 1:-1, 1:-1], rtol=0, atol=1e-13)


def test_mask_is_reflected_beyond_the_volume() -> None:
    values = RANDOM.uniform(0.5, 1, (5, 6)).astype(np.float32)
    cut = Mask(values).crop([slice(-3, 7), slice(2, 12)])
    expected = np.pad(values, ((3, 2), (0, 6)), mode="reflect")[:, 2:]
    np.testing.assert_array_equal(cut.map, expected)
    # a stack's region cuts a plane's map in Y and X
    np.testing.assert_array_equal(Mask(values).crop([slice(4, 9), slice(1, 3), slice(0, 6)]).map, values[1:3])


def test_halo_and_stride() -> None:
    assert Blur(kernel(9, 8), "zero").halo == (0, 4, 4)
    assert Blur(kernel(9, 8)).halo == (0, 5, 5)
    assert Blur(kernel(1, 5, 7)).halo == (0, 3, 4)
    assert Downsample((2, 3, 4)).stride == (2, 3, 4)
    both = Blur(kernel(3, 3), "zero") @ Downsample(4) @ Blur(kernel(5, 1), "zero")
    # 2 by the first blur and one coarse voxel of 4 by the second, rounded up to whole cells
    assert both.halo == (0, 8, 4)
    assert both.stride == (1, 4, 4)


# --- records, copies, errors ----------------------------------------------------------------------


def test_record() -> None:
    measured = RANDOM.random((4, 4)) < 0.5
    psf = kernel(3, 3).astype(np.float32)
    operator = Mask(measured) @ Downsample(2) @ Blur(psf / psf.sum(), "zero")
    record = json.loads(json.dumps(operator.to_dict()))
    assert [part["operator"] for part in record["applied"]] == ["blur", "downsample", "mask"]
    assert record["applied"][0]["border"] == "zero"
    assert record["applied"][0]["psf"]["shape"] == [3, 3]
    assert record["applied"][1] == {"operator": "downsample", "factor": [1, 2, 2], "reduce": "sum"}
    assert record["applied"][2]["map"]["sha256"] == hashlib.sha256(measured.tobytes()).hexdigest()
    other = Blur(kernel(3, 3, seed=2)).to_dict()
    assert other["psf"]["sha256"] != record["applied"][0]["psf"]["sha256"]
    assert operator.describe() == (
        "blur by a PSF of 3 x 3 voxels, border zero; then sum over cells of 1 x 2 x 2 voxels; "
        f"then mask, {100 * measured.mean():.4g} % of 4 x 4 voxels measured"
    )
    assert Identity().describe() == "identity"
    assert Identity().to_dict() == {"operator": "identity"}


def test_copies_compute_the_same() -> None:
    for name in ("blur (9, 8) wrap", "blur (9, 8) reflect", "mask of down of blur"):
        operator, spatial = CASES[name]
        x = draw(spatial, 15)
        y = operator.forward(x)
        plain = pickle.dumps(operator)
        torch.testing.assert_close(pickle.loads(plain).forward(x), y, rtol=0, atol=0)
        assert len(plain) < 20_000  # the kept transforms stay behind


@pytest.mark.parametrize("name", ["blur (9, 8) wrap", "blur (9, 8) reflect", "mask", "blur (3, 3) reflect"])
def test_gradients_after_inference_mode(name: str) -> None:
    """What was kept while no gradients were recorded must serve when they are."""
    operator, spatial = CASES[name]
    operator = pickle.loads(pickle.dumps(operator))
    x = draw(spatial, 16)
    with torch.inference_mode():
        operator.forward(x)
    x = draw(spatial, 16).requires_grad_()
    operator.forward(x).square().sum().backward()
    assert x.grad is not None


def test_arrays_are_copied() -> None:
    values = np.ones((4, 4), dtype=np.float32)
    mask = Mask(values)
    values[0] = 0
    assert mask.map.min() == 1
    with pytest.raises(ValueError, match="read-only"):
        mask.map[0] = 0


NOTHING = np.full((3, 3), 1 / 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(np.ones(5) / 5), r"shape \(5,\); give \(Y, X\)"),
        (lambda: Blur(np.full((3, 3), np.nan)), "NaN"),
        (lambda: Blur(np.ones((3, 3))), "sums to 9.*point_spread.prepare"),
        (lambda: Blur(NOTHING - np.eye(3) / 3 + np.eye(3)[::-1] / 3), "least value at -0.2"),
        (lambda: Blur(NOTHING, "mirror"), "border is 'mirror'; choose reflect, zero, wrap or open"),
        (lambda: Blur(NOTHING).transfer((4, 4, 4)), "has 2 axes"),
        (lambda: Blur(NOTHING[None]).forward(draw(PLANE, 0)), "focal plane"),
        (lambda: Blur(NOTHING).forward(draw(PLANE, 0)[0]), r"give \(B, C, Y, X\)"),
        (lambda: Identity().forward(draw(PLANE, 0).half()), "float16; convert it to float32"),
        (lambda: Mask(np.full((3, 3), np.nan)), "isfinite"),
        (lambda: Mask(-NOTHING), "negative"),
        (lambda: Mask(np.array([["a"]])), "data type"),
        (lambda: Mask(np.ones(3)), "give"),
        (lambda: Mask(NOTHING).forward(draw(PLANE, 0)), r"mask has shape \(3, 3\), the image \(24, 20\)"),
        (lambda: Mask(np.ones(STACK)).crop([slice(0, 4), slice(0, 4)]), "slices of Z, Y and X"),
        (lambda: Downsample(0), "factor is 0; give a whole number"),
        (lambda: Downsample(1.5), "factor is 1.5"),  # type: ignore[arg-type]
        (lambda: Downsample((2,)), "give a whole number"),
        (lambda: Downsample(2, "max"), "choose sum"),
        (lambda: Downsample(3).forward(draw(PLANE, 0)), "crop it to multiples"),
        (lambda: Downsample((2, 2, 2)).forward(draw(PLANE, 0)), "the image is a plane"),
        (lambda: Downsample(2).crop([slice(1, 4), slice(0, 4)]), "multiples of 2; widen"),
        (lambda: Identity().crop([slice(0, 4), slice(None)]), "a start and a larger stop"),
        (lambda: Identity().crop([slice(0, 4)]), "1 slices; give"),
        (lambda: Identity().output_shape((3,)), "spatial shape"),
        (lambda: Compose(), "Identity"),
    ],
)
def test_errors_say_what_to_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        make()
