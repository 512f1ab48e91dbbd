"""The audit: an exact search, copies found, what is new left in peace, and what is too simple not judged."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_ambient import audit as module
from napari_ambient.audit import Audit, audit, nearest_patches
from napari_ambient.simulate import blur, filaments, gaussian_psf, nuclei
from oracles import gaussian_field

torch.set_num_threads(1)

Array = NDArray[np.float32]
Specimen = Callable[..., Array]


@functools.cache
def field(specimen: Specimen, seed: int, size: int = 128) -> Array:
    """Draw a blurred specimen in scaled intensity, 2 √(1 + photons), 20 photons at its brightest."""
    image = np.maximum(blur(specimen((size, size), seed), gaussian_psf((0.1, 0.1))), 0)
    return np.asarray(2 * np.sqrt(1 + 20 * image / np.percentile(image, 99.5)), dtype=np.float32)


def fields(specimen: Specimen, first: int, count: int) -> list[Array]:
    return [field(specimen, first + i) for i in range(count)]


@functools.cache
def beads(seed: int, size: int = 160) -> Array:
    """Draw Gaussian beads anywhere: patches of few degrees of freedom, which look alike by chance."""
    rng = np.random.default_rng(seed)
    grid = np.arange(size)
    image = np.zeros((size, size))
    for y, x, light in zip(*rng.uniform(0, size, (2, 40)), rng.uniform(0.5, 1, 40), strict=True):
        image += light * np.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / 8)
    return np.asarray(2 * np.sqrt(1 + 20 * image), dtype=np.float32)


def copies(images: Sequence[Array], count: int, rng: np.random.Generator, *, noise: float = 0.0) -> Array:
    """Cut 64² parts anywhere, turned, flipped, at another brightness and contrast, with a little noise."""
    parts = []
    for i in range(count):
        image = images[i % len(images)]
        y, x = rng.integers(image.shape[0] - 63, size=2)
        part = np.rot90(image[y : y + 64, x : x + 64], rng.integers(4))
        part = part[:, ::-1] if rng.integers(2) else part
        part = part + noise * part.std() * rng.normal(size=part.shape)
        parts.append(rng.uniform(0.5, 2) * part + rng.normal())
    return np.asarray(parts, dtype=np.float32)


def inner(images: Sequence[Array]) -> Array:
    return np.stack([image[32:96, 32:96] for image in images])


# ------------------------------------------------------------------------------------------------ the search


def standard(patch: NDArray[np.generic]) -> NDArray[np.float64]:
    centred = patch.astype(np.float64) - patch.mean(dtype=np.float64)
    return centred / np.linalg.norm(centred)


def brute_force(
    patch: Array, images: Sequence[Array], avoid: tuple[int, tuple[int, ...]] | None = None
) -> tuple[float, int, tuple[int, ...]]:
    """Compare with every window, each turned by transposing and reversing axes (a square's symmetries)."""
    best = (np.inf, -1, (-1,))
    for index, image in enumerate(images):
        for at in np.ndindex(*(n - p + 1 for n, p in zip(image.shape, patch.shape, strict=True))):
            if avoid and avoid[0] == index:
                if all(abs(a - b) < p for a, b, p in zip(at, avoid[1], patch.shape, strict=True)):
                    continue
            window = standard(image[tuple(slice(a, a + p) for a, p in zip(at, patch.shape, strict=True))])
            for swapped in (window, window.swapaxes(-1, -2)):
                for signs in np.ndindex(*(2,) * patch.ndim):
                    turned = swapped[tuple(slice(None, None, -1 if s else 1) for s in signs)]
                    best = min(best, (float(np.linalg.norm(standard(patch) - turned)), index, at))
    return best


@pytest.mark.parametrize("shape", [((21, 26), (17, 19)), ((6, 13, 14), (5, 17, 12))], ids=["2D", "3D"])
@pytest.mark.parametrize("own", [False, True], ids=["anywhere", "elsewhere"])
def test_search_equals_brute_force(
    shape: tuple[tuple[int, ...], ...], own: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks so small that every image falls into several, and chunks of two patches.
    monkeypatch.setattr(module, "BLOCK", {2: (14, 14), 3: (5, 10, 10)})
    monkeypatch.setattr(module, "BUDGET", 2 * 16 * 700)
    images = [rng.normal(size=s).astype(np.float32) for s in shape]
    size = (6, 6) if len(shape[0]) == 2 else (3, 5, 5)
    places = [
        (n % 2, tuple(int(rng.integers(a - p + 1)) for a, p in zip(shape[n % 2], size, strict=True))) for n in range(5)
    ]
    patches = [images[i][tuple(slice(a, a + p) for a, p in zip(at, size, strict=True))] for i, at in places]
    if not own:
        patches = [rng.normal(size=size).astype(np.float32) for _ in patches]
    found = nearest_patches(patches, images, avoid=places if own else None)
    for patch, place, match in zip(patches, places, found, strict=True):
        distance, index, position = brute_force(patch, images, place if own else None)
        assert match is not None
        assert (match.image, match.position) == (index, position)
        # float64 on both sides; only the order of the sums differs
        assert match.distance == pytest.approx(distance, abs=1e-12)
        # the match is shown turned as the patch that was searched for
        assert np.linalg.norm(standard(patch) - standard(match.patch)) == pytest.approx(distance, abs=1e-6)


def test_search_without_any_window_left(rng: np.random.Generator) -> None:
    image = rng.normal(size=(9, 9)).astype(np.float32)
    assert nearest_patches([image[:6, :6]], [image], avoid=[(0, (0, 0))]) == [None]
    assert nearest_patches([], [image]) == []


def test_noise_brings_distances_up_as_stated(rng: np.random.Generator) -> None:
    # d² = 2 (1 - √(s/(s + n))) of a clean patch from its own noisy self; s = 1, n = 0.5
    clean = rng.normal(size=(128, 128)).astype(np.float32)
    noisy = clean + np.float32(np.sqrt(0.5)) * rng.normal(size=clean.shape).astype(np.float32)
    (match,) = nearest_patches([clean], [noisy])
    assert match is not None
    # 16384 independent voxels: ρ is known to about 1/128 of itself
    assert match.distance**2 == pytest.approx(2 * (1 - np.sqrt(1 / 1.5)), rel=0.04)


# ---------------------------------------------------------------------------------------- nearest neighbours


@pytest.mark.parametrize("specimen", [filaments, nuclei])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_copies_are_memorised(specimen: Specimen, noise: float, rng: np.random.Generator) -> None:
    training, unseen = fields(specimen, 0, 3), fields(specimen, 50, 3)
    result = audit(copies(training, 10, rng, noise=noise), training, unseen, sigma=1.0, most_patches=40)
    assert result.verdict == "memorised"
    assert "has memorised" in result.sentence
    assert np.median(result.ratios) < 0.5
    if noise == 0:
        # found to rounding of the float32 images (brightness and contrast were changed)
        assert result.ratios.max() < 1e-3


@pytest.mark.parametrize(("specimen", "known"), [(filaments, 3), (nuclei, 3), (filaments, 9)])
def test_new_images_are_healthy(specimen: Specimen, known: int) -> None:
    # also with three times as many training as held-out images, where the nearest is nearer by chance
    training, unseen = fields(specimen, 0, known), fields(specimen, 50, 3)
    result = audit(inner(fields(specimen, 100, 8)), training, unseen, sigma=1.0, most_patches=32)
    assert result.verdict == "healthy"
    assert "no sign" in result.sentence
    # in 20 simulations the smallest was 0.74 for filaments, 0.49 for nuclei
    assert result.ratios.min() > 0.5
    # exchangeable with real held-out patches
    assert np.median(result.ratios) == pytest.approx(np.median(result.reference_ratios), abs=0.12)


def test_frames_of_one_field_are_no_copies_of_each_other(rng: np.random.Generator) -> None:
    """Held-out frames of one field do not make their own patches look more at home there than what is generated."""
    training, unseen = fields(filaments, 0, 2), fields(filaments, 40, 2)
    frames = [image + 0.1 * image.std() * rng.normal(size=image.shape).astype(np.float32) for image in unseen * 3]
    result = audit(inner(fields(filaments, 80, 8)), training, frames, sigma=1.0, most_patches=32)
    assert result.verdict == "healthy"
    assert np.median(result.ratios) == pytest.approx(np.median(result.reference_ratios), abs=0.12)


def test_a_third_of_copies_is_memorised(rng: np.random.Generator) -> None:
    training, unseen = fields(filaments, 0, 3), fields(filaments, 50, 3)
    mixed = np.concatenate([copies(training, 4, rng), inner(fields(filaments, 100, 8))])
    result = audit(mixed, training, unseen, sigma=1.0, most_patches=48)
    assert result.verdict == "memorised"
    assert 0.2 < result.copies / len(result.ratios) < 0.5
    # closest first: copies (samples 0-3) before the rest
    assert {pair.sample for pair in result.pairs[: result.copies]} <= {0, 1, 2, 3}
    assert all(pair.sample > 3 for pair in result.pairs[result.copies :])
    assert list(result.ratios) == sorted(pair.ratio for pair in result.pairs)


def test_chance_neighbours_of_simple_structures_are_no_copies(rng: np.random.Generator) -> None:
    training, unseen = [beads(i) for i in range(6)], [beads(50 + i) for i in range(2)]
    options = {"sigma": 1.0, "patch": (20, 20), "most_patches": 32}
    result = audit(inner([beads(100 + i) for i in range(12)]), training, unseen, **options)  # type: ignore[arg-type]
    # A bare threshold on the ratio would cry wolf here: that is what the held-out patches' own ratios are for.
    assert (result.ratios < 0.5).mean() > 0.1
    assert result.limit < 0.5
    assert result.verdict == "healthy"
    copied = audit(copies(training, 12, rng), training, unseen, **options)  # type: ignore[arg-type]
    assert copied.verdict == "memorised"


def test_blank_samples_are_no_copies(rng: np.random.Generator) -> None:
    training, unseen = fields(filaments, 0, 2), fields(filaments, 50, 2)
    # blank ground truth is in the training images too; it must not count as reproduced
    training = [np.pad(image, ((0, 0), (0, 64)), constant_values=image.min()) for image in training]
    blank = np.full((6, 64, 64), 2.0, dtype=np.float32)
    faint = blank + 0.01 * rng.normal(size=blank.shape).astype(np.float32)
    for samples in (blank, faint):
        result = audit(samples, training, unseen, sigma=1.0, most_patches=16)
        assert result.verdict == "undecided"
        assert len(result.ratios) == 0
        assert "24 generated patches without structure were left out" in result.notes
        with pytest.raises(ValueError, match="no pairs to draw"):
            result.figure("nowhere.png")
    some = audit(
        np.concatenate([blank, inner(fields(filaments, 100, 6))]), training, unseen, sigma=1.0, most_patches=16
    )
    assert some.verdict == "healthy"
    assert {pair.sample for pair in some.pairs} <= set(range(6, 12))


def test_too_simple_patches_are_not_judged() -> None:
    # Slopes: every patch equals every other but for brightness and contrast.
    slope = np.add.outer(np.arange(80), np.zeros(80)).astype(np.float32)
    result = audit(np.stack([slope, slope]), [slope], [slope], sigma=1.0)
    assert result.verdict == "undecided"
    assert any("too simple" in note for note in result.notes)


def test_volumes() -> None:
    def volume(seed: int) -> Array:
        return np.asarray(blur(filaments((10, 48, 48), seed), gaussian_psf((0.1, 0.1, 0.1))), dtype=np.float32) * 20

    training, unseen = [volume(1), volume(2)], [volume(3), volume(4)]
    made = np.stack([np.rot90(v[::-1, 3:43, 5:45], 1, axes=(1, 2)) for v in training])
    options = {"sigma": 1.0, "patch": (6, 16, 16), "most_patches": 12}
    copied = audit(made, training, unseen, **options)  # type: ignore[arg-type]
    assert copied.verdict == "memorised"
    assert copied.ratios.max() < 1e-3
    fresh = audit(np.stack([volume(5), volume(6)]), training, unseen, **options)  # type: ignore[arg-type]
    assert fresh.verdict == "healthy"


# --------------------------------------------------------------------------------------- corrupt and restore

SIZE = 64
FREQUENCY = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
SPECTRUM = torch.from_numpy(3000 / (1 + (FREQUENCY / 0.03) ** 2) ** 2)


def draw_fields(count: int, seed: int) -> list[Array]:
    drawn = gaussian_field(SPECTRUM, count, torch.Generator().manual_seed(seed))
    return list(drawn[:, 0].float().numpy())


def honest(noisy: Tensor, level: float) -> Tensor:
    """Wiener's filter: the exact posterior mean for the fields."""
    gain = SPECTRUM / (SPECTRUM + level**2)
    return torch.fft.ifft2(torch.fft.fft2(noisy.double()) * gain).real.float()


def memorising(training: Sequence[Array]) -> Callable[[Tensor, float], Tensor]:
    """Give the exact posterior mean where the training images are all there is: their softmax-weighted average."""
    known = torch.from_numpy(np.stack(training)).flatten(1)

    def restore(noisy: Tensor, level: float) -> Tensor:
        distance = torch.cdist(noisy.flatten(1).double(), known.double()).square()
        weight = torch.softmax(-distance / (2 * level**2), dim=1).float()
        return (weight @ known).reshape(noisy.shape)

    return restore


def restored(training: Sequence[Array], restore: Callable[[Tensor, float], Tensor], seed: int = 0) -> Audit:
    """Audit with samples that are new, so that only the second test can object."""
    samples = np.stack(draw_fields(6, 900))
    return audit(samples, training, draw_fields(16, 500 + seed), restore, sigma=1.0, seed=seed, most_patches=32)


@pytest.mark.parametrize("count", [4, 12])
def test_memorising_denoiser_is_found(count: int) -> None:
    training = draw_fields(count, 1)
    result = restored(training, memorising(training))
    assert result.verdict == "memorised"
    assert result.training_correlations.mean() > 0.99
    assert result.held_out_correlations.mean() < 0.5
    assert result.auc == 1.0
    assert result.copies == 0  # the first test alone would have let it pass


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [4, 16])
def test_honest_denoiser_is_healthy(count: int, seed: int) -> None:
    result = restored(draw_fields(count, 10 + seed), honest, seed)
    assert result.verdict == "healthy"
    assert result.auc_p is not None
    assert result.auc_p > 0.01
    # both come back equally well, and well: blindness would pass the lines above
    assert result.training_correlations.mean() == pytest.approx(result.held_out_correlations.mean(), abs=0.04)
    assert result.training_correlations.mean() > 0.7


def test_leaning_denoiser_is_suspicious() -> None:
    training = draw_fields(16, 1)
    remembers = memorising(training)
    result = restored(training, lambda noisy, level: 0.3 * remembers(noisy, level) + 0.7 * honest(noisy, level))
    assert result.verdict == "suspicious"
    assert "closest pairs" in result.sentence


def test_contrast_alone_is_no_memory() -> None:
    # Faint fields are harder to restore. Training fields twice as bright as most held-out ones come back better for
    # that alone; crops of like contrast are compared, and here only some held-out ones are.
    bright = [2 * f for f in draw_fields(12, 1)]
    mixed = [f * (2 if i % 3 == 0 else 1) for i, f in enumerate(draw_fields(36, 2))]

    def restore(noisy: Tensor, level: float) -> Tensor:
        return honest(noisy, level)

    naive = [
        np.corrcoef(f.ravel(), honest(torch.from_numpy(f + 10 * n)[None, None], 10.0).numpy().ravel())[0, 1]
        for f, n in zip(mixed, np.random.default_rng(0).normal(size=(36, SIZE, SIZE)).astype(np.float32), strict=True)
    ]
    assert np.mean(naive[::3]) > np.mean(np.delete(naive, np.s_[::3])) + 0.05  # the trap is there
    result = audit(np.stack(draw_fields(4, 3)), bright, mixed, restore, sigma=1.0)
    assert result.verdict == "healthy"
    assert len(result.held_out_correlations) < 24


def test_restorer_sees_ten_sigma() -> None:
    seen: list[tuple[float, Tensor]] = []

    def restore(noisy: Tensor, level: float) -> Tensor:
        seen.append((level, noisy))
        return torch.zeros_like(noisy)

    result = audit(np.stack(draw_fields(4, 3)), draw_fields(8, 1), draw_fields(8, 2), restore, sigma=0.7)
    assert [level for level, _ in seen] == pytest.approx([7.0] * len(seen))
    variance = torch.cat([noisy for _, noisy in seen]).var()
    # 16 crops of 4096 voxels; fields of variance 7-9 themselves, so within a few parts in a hundred
    signal = np.var(np.stack([*draw_fields(8, 1), *draw_fields(8, 2)]))
    assert float(variance) == pytest.approx(49 + signal, rel=0.05)
    # a constant estimate remembers nothing
    assert not result.training_correlations.any()
    assert result.verdict == "healthy"


# ------------------------------------------------------------------------------------------- what is handed out


def test_report_is_whole_and_repeatable(tmp_path: Path, rng: np.random.Generator) -> None:
    training, unseen = fields(filaments, 0, 2), fields(filaments, 50, 2)
    samples = copies(training, 5, rng)
    first, second = (
        audit(samples, training, unseen, honest_for_any_size, sigma=1.0, seed=3, most_patches=16) for _ in range(2)
    )
    assert first.to_dict() == second.to_dict()
    told = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert told["verdict"] == "memorised"
    assert len(told["pairs"]) == len(told["ratios"]) == len(first.pairs)
    assert len(told["training_correlations"]) >= 4
    first.figure(tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


def honest_for_any_size(noisy: Tensor, level: float) -> Tensor:
    return torch.nn.functional.avg_pool2d(noisy, 9, stride=1, padding=4)


def test_too_many_voxels_are_sampled_and_said(rng: np.random.Generator) -> None:
    training, unseen = fields(filaments, 0, 4), fields(filaments, 50, 2)
    samples = copies(training, 8, rng)
    result = audit(samples, training, unseen, sigma=1.0, most_voxels=2 * 128 * 128, most_patches=32)
    assert any(note.startswith("50 % of the training voxels were looked at") for note in result.notes)
    # Half of the copies have their original among what was searched; all are numbered as they were given.
    assert result.verdict == "memorised"
    for pair in result.pairs[: result.copies]:
        window = training[pair.training.image][tuple(slice(a, a + 32) for a in pair.training.position)]
        assert np.sort(window.ravel()) == pytest.approx(np.sort(pair.training.patch.ravel()))
    region = audit(samples, training, unseen, sigma=1.0, most_voxels=80 * 80, most_patches=16)
    assert any(note.startswith("9.8 % of the training voxels") for note in region.notes)
    for pair in region.pairs:
        window = training[pair.training.image][tuple(slice(a, a + 32) for a in pair.training.position)]
        assert np.sort(window.ravel()) == pytest.approx(np.sort(pair.training.patch.ravel()))


def test_refusals() -> None:
    good = fields(filaments, 0, 2)
    samples = inner(good)
    with pytest.raises(ValueError, match="held_out is empty; give images that the prior was not trained on"):
        audit(samples, good, [], sigma=1.0)
    with pytest.raises(ValueError, match=r"training\[0\] has shape \(4, 128, 128\)"):
        audit(samples, [np.stack([good[0]] * 4)], good, sigma=1.0)
    with pytest.raises(ValueError, match=r"sigma is 0\.0"):
        audit(samples, good, good, sigma=0.0)
    with pytest.raises(ValueError, match=r"patch is \(16, 20\)"):
        audit(samples, good, good, sigma=1.0, patch=(16, 20))
    with pytest.raises(ValueError, match=r"patch is \(80, 80\).*\(64, 64\)"):
        audit(samples, good, good, sigma=1.0, patch=(80, 80))
    with pytest.raises(ValueError, match="training images are constant"):
        audit(samples, [np.full((128, 128), 0.1, dtype=np.float32)], good, sigma=1.0)
    with pytest.raises(ValueError, match="held-out images are blank"):
        audit(samples, good, [np.full((128, 128), 0.1, dtype=np.float32)], sigma=1.0)
    with pytest.raises(ValueError, match=r"samples\[1\] has voxels that are not finite"):
        audit(np.stack([samples[0], np.full_like(samples[0], np.nan)]), good, good, sigma=1.0)
    with pytest.raises(ValueError, match="restore gave shape"):
        audit(samples, good, good, lambda noisy, level: noisy[..., 1:], sigma=1.0)
