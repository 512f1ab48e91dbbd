"""Audit a prior for memorisation: does it make new images, or reproduce the patches that it was trained on.

Two tests, both with held-out images, which the prior never saw, as the measure.

*Nearest neighbours.* With a and b patches less their mean and scaled to unit energy, and ρ = ⟨a, b⟩,

    d(a, b)² = ‖a - b‖² = 2 (1 - ρ)        ratio = d(generated, training) / d(generated, held-out)

d(·, images) being the smallest distance over every position of every image, all quarter turns and all flips (found by
FFT cross-correlation). A prior that invents is as far from the one as from the other, ratio about 1; of a copy the
ratio goes to 0. Simple structures (a bead, an edge) have near neighbours by chance, so held-out patches are put through
the same search (nearest elsewhere in the held-out images, and not at the same place of another one: frames of one field
would be their own neighbours): their ratios show what happens where nothing can be copied, and Fisher's exact test
compares. The three-sample view is Meehan, Chaudhuri & Dasgupta 2020 (arXiv 2004.05675).

*Corrupt and restore* (Daras, Dimakis & Daskalakis 2024, arXiv 2404.10177). Crops are corrupted to 10 sigma_y, where
little of them is left, and restored. What comes back beyond the coarse shapes is remembered: the correlation with the
crop is then far higher for training crops than for held-out crops of the same contrast (Mann & Whitney's U test).

Images should be clean or denoised, all in the same way. Independent noise of variance n on structure of variance s
brings every ρ down by √(s/(s + n)): a perfect copy then has d² = 2 (1 - √(s/(s + n))) instead of 0, the ratio nears 1,
and the audit grows blind; held-out images noisier than the training ones would alarm it falsely. One-call restorations
of both by the prior itself serve well: a prior that has memorised gives back what it memorised. In the flow this
stands above the prior: arrays come in, an `Audit` goes out.

The thresholds were measured on simulated filaments, nuclei, mitochondria and beads (192² fields, 20 photons at the
brightest, 40 patches of 32²; 4 training against 4 held-out fields, and 16 against 2; tests/test_audit.py repeats the
core). New fields: 40 of 40 audits healthy; the smallest of the ratios was 0.74 for filaments, 0.49 for nuclei, 0.32
for mitochondria (next 0.59), 0.02 for beads, the medians 0.94-1.07 (4 against 4) and 0.70-0.96 (16 against 2), those
of held-out patches within 0.1 of them. Copies: ratio 0, 8 of 8 memorised, as were 8 of 8 where only a third were
copies. Copies between the voxels: ratio 0.2-0.3 (beads 0.5-0.7), 7 memorised and 1 suspicious. With smooth noise of
0.4 of their contrast copies of filaments and mitochondria were found, of nuclei and beads, which are smooth, not.
Restoring by Wiener's filter, which remembers nothing: AUC 0.38-0.65, 40 of 40 healthy; by the exact posterior mean
over the training crops AUC 1 and correlation 1.00 against 0.03-0.25; by a mixture of 3 parts of it in 10 with Wiener's
filter suspicious.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, optimize, stats
from torch import Tensor

Verdict = Literal["healthy", "suspicious", "memorised", "undecided"]
Array = NDArray[np.float32]
Place = tuple[int, tuple[int, ...]]  # index of an image, first voxel in it
Watch = Callable[[str, int, int], object]  # told (what is being done, done, total)

COPY = 0.5  # a ratio below it is a copy's, unless ...
CHANCE = 0.05  # ... more than this share of held-out patches reach it too; then what that share reaches is the limit
MANY = 0.2  # share of copies that makes a prior memorised (of the share of the training voxels that is searched)
CLOSER = 0.75  # median ratio, against that of held-out patches, that makes a prior suspicious
RESTORED = 0.5  # distance of restored training crops, against held-out ones, that makes a prior memorised
SEPARATED = 0.75  # probability that a training crop comes back better than a held-out one: suspicious
SIGNIFICANT = 0.01
LEVEL = 10.0  # corruption of the second test, in sigma_y
STRUCTURE = 0.4  # least contrast of a patch, in root-mean-square contrasts of the training images
ALIKE = 0.1  # a patch with a held-out neighbour nearer than this (ρ > 0.995) is too simple to tell a copy by
CONTRAST = 1.5  # largest ratio of contrasts between crops that are compared
FEWEST = 4  # patches or crops below which a test says nothing
SIDE, DEPTH = 32, 8  # default patch, voxels
BLOCK = {2: (256, 256), 3: (32, 128, 128)}  # voxels transformed at once
BUDGET = 2**22  # voxels times patches and turns correlated at once: about 100 MB
BATCH = 8  # crops restored at once
FLAT = 1e-6  # standard deviation below which a window is constant

__all__ = ["Audit", "Match", "Pair", "Watch", "audit", "nearest_patches"]


@dataclass(frozen=True, eq=False)
class Match:
    """The nearest of all patches of some images.

    Parameters
    ----------
    distance : float
        d, in [0, 2]: 0 equal but for brightness and contrast, √2 unrelated.
    image : int
        Which image.
    position : tuple of int
        First voxel of the patch in that image.
    patch : ndarray, shape ([Z,] Y, X)
        The patch, turned and flipped as the patch that was searched for.
    """

    distance: float
    image: int
    position: tuple[int, ...]
    patch: Array


@dataclass(frozen=True, eq=False)
class Pair:
    """A generated patch with its nearest training patch and its nearest held-out patch.

    Parameters
    ----------
    sample : int
        Which generated image.
    position : tuple of int
        First voxel of the patch in that image.
    patch : ndarray, shape ([Z,] Y, X)
        The generated patch.
    training, held_out : Match
        Its nearest neighbours.
    """

    sample: int
    position: tuple[int, ...]
    patch: Array
    training: Match
    held_out: Match

    @property
    def ratio(self) -> float:
        """d(training) / d(held-out)."""
        return self.training.distance / self.held_out.distance


@dataclass(frozen=True, eq=False)
class Audit:
    """What the audit found.

    Parameters
    ----------
    verdict : {"healthy", "suspicious", "memorised", "undecided"}
        The worse of the two tests; undecided where neither could be made.
    sentence : str
        The verdict in words, with the numbers.
    notes : tuple of str
        What was left out or looked at only in part.
    ratios : ndarray, shape (N,)
        d(generated, training) / d(generated, held-out), smallest first.
    reference_ratios : ndarray, shape (M,)
        The same for held-out patches, which cannot be copies, smallest first.
    training_correlations, held_out_correlations : ndarray
        Between crops and what was restored of them from 10 sigma_y; empty without a restorer.
    limit : float
        Ratio below which a generated patch counts as a copy: 0.5, or less where held-out patches reach that by chance.
    copies : int
        How many of `ratios` lie below it.
    copies_p : float
        Probability of so many more than among the held-out patches, were there no memorisation (Fisher).
    auc : float or None
        Probability that a training crop comes back better than a held-out one; 0.5 where nothing is remembered.
    auc_p : float or None
        Probability of such an `auc` by chance (Mann & Whitney).
    pairs : tuple of Pair
        Generated patches and their neighbours, closest first (in the order of `ratios`).
    """

    verdict: Verdict
    sentence: str
    notes: tuple[str, ...]
    ratios: NDArray[np.float64]
    reference_ratios: NDArray[np.float64]
    training_correlations: NDArray[np.float64]
    held_out_correlations: NDArray[np.float64]
    limit: float
    copies: int
    copies_p: float
    auc: float | None
    auc_p: float | None
    pairs: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the pictures, ready for JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "notes": list(self.notes),
            "ratios": self.ratios.tolist(),
            "reference_ratios": self.reference_ratios.tolist(),
            "training_correlations": self.training_correlations.tolist(),
            "held_out_correlations": self.held_out_correlations.tolist(),
            "limit": self.limit,
            "copies": self.copies,
            "copies_p": self.copies_p,
            "auc": self.auc,
            "auc_p": self.auc_p,
            "pairs": [
                {
                    "sample": pair.sample,
                    "position": list(pair.position),
                    "ratio": pair.ratio,
                    **{
                        side: {"distance": m.distance, "image": m.image, "position": list(m.position)}
                        for side, m in (("training", pair.training), ("held_out", pair.held_out))
                    },
                }
                for pair in self.pairs
            ],
        }

    def figure(self, path: str | os.PathLike[str] | IO[bytes], *, most: int = 6, title: bool = True) -> None:
        """Draw the closest pairs: generated, nearest training and nearest held-out patch.

        Parameters
        ----------
        path : path-like or binary file
            The PNG to write. Of 3D patches the middle plane is shown.
        most : int
            How many pairs.
        title : bool
            Write the verdict's sentence above them.

        Raises
        ------
        ValueError
            If there are no pairs to show.
        """
        if not self.pairs:
            raise ValueError(f"there are no pairs to draw: {self.sentence}")
        import textwrap

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        pairs = self.pairs[:most]
        figure = Figure(figsize=(7.0, 1.2 * title + 2.3 * len(pairs)), layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle("\n".join(textwrap.wrap(self.sentence, 90)), fontsize=9)
        axes = figure.subplots(len(pairs), 3, squeeze=False)
        for row, pair in zip(axes, pairs, strict=True):
            distances = (f"{pair.training.distance:.2f}", f"{pair.held_out.distance:.2f}")
            columns = (
                (f"generated (ratio {pair.ratio:.2f})", pair.patch),
                (f"nearest in training, d = {distances[0]}", pair.training.patch),
                (f"nearest held out, d = {distances[1]}", pair.held_out.patch),
            )
            for axis, (words, patch) in zip(row, columns, strict=True):
                plane = patch if patch.ndim == 2 else patch[len(patch) // 2]
                axis.imshow(plane, cmap="gray", interpolation="nearest")
                axis.set_title(words, fontsize=8)
                axis.set_axis_off()
        figure.savefig(path, dpi=110, format="png")


def audit(
    samples: NDArray[Any],
    training: Sequence[NDArray[Any]],
    held_out: Sequence[NDArray[Any]],
    restore: Callable[[Tensor, float], Tensor] | None = None,
    *,
    sigma: float,
    patch: Sequence[int] | None = None,
    most_patches: int = 64,
    most_voxels: int = 2**22,
    seed: int = 0,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
) -> Audit:
    """Look for training patches in what a prior generates and restores.

    Parameters
    ----------
    samples : ndarray, shape (N, [Z,] Y, X)
        Images generated by the prior, scaled intensity.
    training : sequence of ndarray, each ([Z,] Y, X)
        The images that it was trained on, clean or denoised, scaled intensity.
    held_out : sequence of ndarray, each ([Z,] Y, X)
        Images of the same kind that it was not trained on (another field of view, not a neighbouring plane), clean or
        denoised in the same way.
    restore : callable, optional
        Gives a clean estimate from crops (B, 1, [Z,] Y, X), float32 on `device`, at the noise level that is its second
        argument, a standard deviation in scaled intensity. Without it the second test is left out.
    sigma : float
        sigma_y, the noise of the measurements that the prior was trained on, scaled intensity.
    patch : sequence of int, optional
        Patch ([Z,] Y, X) of the first test, with Y = X; 32 voxels by default (8 in Z), or as large as the images.
        Crops of the second test are up to twice as wide.
    most_patches : int
        Generated patches, held-out patches and crops looked at; a random choice of those with structure.
    most_voxels : int
        Searched on either side: a random choice of whole images (of one region, should the first be larger) where
        there are more, which the notes say. With the defaults and as many voxels as that on both sides one CPU core
        takes about 3 minutes in 2D and 8 in 3D.
    seed : int
        Of all random choices and of the noise.
    device : torch.device or str
        Where to search and restore.
    watch : callable, optional
        Called now and then with (what is being done, done, total); what it raises ends the audit.

    Returns
    -------
    Audit

    Raises
    ------
    ValueError
        If images do not fit together, are not finite, or have no structure; if nothing is held out.
    """
    rng = np.random.default_rng([seed, 0])
    notes: list[str] = []
    generated = _Images.whole([np.asarray(s, dtype=np.float32) for s in samples])
    _check_shapes(generated.images, training, held_out)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is {sigma}; give the standard deviation of the measurement noise, above 0")
    size = _patch_size(patch, [*generated.images, *training, *held_out])
    known = _Images.choose(training, most_voxels, size, "training", notes, rng)
    unseen = _Images.choose(held_out, most_voxels, size, "held-out", notes, rng)
    for name, chosen in (("samples", generated), ("training", known), ("held_out", unseen)):
        for (index, _), image in zip(chosen.origin, chosen.images, strict=True):
            if not np.isfinite(image).all():
                raise ValueError(f"{name}[{index}] has voxels that are not finite; fill them or leave it out")
    least = STRUCTURE * math.sqrt(float(np.mean([(d**2).mean() for d in _deviations(known.images, size)])))
    if least < FLAT:
        raise ValueError("the training images are constant: there is nothing to be memorised; check the stack")
    if not any(d.max() >= least / 2 for d in _deviations(unseen.images, size)):
        raise ValueError(
            "the held-out images are blank beside the training images; give held-out images of the same kind, in the "
            "same scaled intensity"
        )
    watch = watch or _unwatched
    pairs, references = _neighbours(generated, known, unseen, size, least, most_patches, notes, rng, device, watch)
    remembered = np.empty(0), np.empty(0)
    if restore is None:
        notes.append("corrupt and restore left out: no restorer was given")
    else:
        crops = _crops(known, unseen, size, least, most_patches, notes, rng)
        generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, 1]).integers(2**62)))
        known_c, unseen_c = (_correlations(restore, side, LEVEL * sigma, generator, device, watch) for side in crops)
        remembered = known_c, unseen_c
    return _judge(pairs, references, remembered, known.share, notes)


def nearest_patches(
    patches: Sequence[NDArray[Any]],
    images: Sequence[NDArray[Any]],
    *,
    least: float = 0.0,
    avoid: Sequence[Place] | None = None,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
) -> list[Match | None]:
    """Search every position of every image, all quarter turns and flips, for the nearest patch.

    Parameters
    ----------
    patches : sequence of ndarray, each ([Z,] Y, X) of one shape, Y = X
        What to look for; none constant.
    images : sequence of ndarray, each ([Z,] Y, X)
        Where to look. Read one after another, several times.
    least : float
        Positions with a standard deviation below it do not count (they are taken as unrelated).
    avoid : sequence of (int, tuple of int), optional
        For each patch the image and position it was cut from; windows that overlap it do not count, there and in
        images of the same shape that show it again at the same place (ρ above 1/2: frames of one field).
    device : torch.device or str
        Where to compute.
    watch : callable, optional
        Called at every block of an image with (what is being done, images done, images in all).

    Returns
    -------
    list of Match or None
        One per patch; None where no window may count. The search is in float32, the distance of what it finds in
        float64.
    """
    if not len(patches):
        return []
    shape = patches[0].shape
    turns = _turns(len(shape))
    found: list[Match | None] = []
    step = max(1, BUDGET // (len(turns) * max(math.prod(_extent(image.shape, shape)) for image in images)))
    for first in range(0, len(patches), step):
        some = [_standard(p) for p in patches[first : first + step]]
        queries = torch.from_numpy(np.stack([[_turn(p, t) for t in turns] for p in some]).astype(np.float32)).to(device)
        best = np.full(len(some), -np.inf)
        where: list[tuple[int, tuple[int, ...], int] | None] = [None] * len(some)
        for index, image in enumerate(images):
            for start, correlation in _correlate(queries, image, shape, least):
                if watch is not None:
                    watch("searching for the nearest patches", index, len(images))
                if avoid is not None:
                    for one, scores, (own, corner) in zip(some, correlation, avoid[first : first + step], strict=True):
                        same = images[own].shape == image.shape
                        if own == index or (same and _distance(one, image[_window(corner, shape)], least) < 1):
                            around = tuple(
                                slice(max(0, a - n + 1 - b), max(0, a + n - b))
                                for a, n, b in zip(corner, shape, start, strict=True)
                            )
                            scores[(slice(None), *around)] = -torch.inf
                value, flat = correlation.flatten(1).max(1)
                for n in np.flatnonzero(value.cpu().numpy() > best):
                    turn, *at = (int(i) for i in np.unravel_index(int(flat[n]), correlation.shape[1:]))
                    best[n] = float(value[n])
                    where[n] = index, tuple(a + b for a, b in zip(at, start, strict=True)), turn
        for one, place in zip(some, where, strict=True):
            if place is None:
                found.append(None)
                continue
            index, position, turn = place
            cut = np.asarray(images[index])[_window(position, shape)]
            back = _turn_back(cut, turns[turn])
            found.append(Match(_distance(one, back, least), index, position, np.array(back, dtype=np.float32)))
    return found


def _unwatched(stage: str, done: int, total: int) -> None:
    """Watch nothing."""


# --------------------------------------------------------------------------------- first test: neighbours


def _neighbours(
    generated: _Images,
    known: _Images,
    unseen: _Images,
    size: tuple[int, ...],
    least: float,
    most: int,
    notes: list[str],
    rng: np.random.Generator,
    device: torch.device | str,
    watch: Watch,
) -> tuple[tuple[Pair, ...], NDArray[np.float64]]:
    """Pairs, closest first, and the ratios of held-out patches, smallest first."""

    def pairs_of(source: _Images, places: list[Place]) -> list[Pair]:
        patches = source.cut(places, size)
        avoid = places if source is unseen else None
        near = nearest_patches(patches, known.images, least=least / 2, device=device, watch=watch)
        far = nearest_patches(patches, unseen.images, least=least / 2, avoid=avoid, device=device, watch=watch)
        pairs = [
            Pair(*source.place(at), patch, known.match(a), unseen.match(b))
            for at, patch, a, b in zip(places, patches, near, far, strict=True)
            if a is not None and b is not None and b.distance >= ALIKE
        ]
        return sorted(pairs, key=lambda pair: pair.ratio)

    places, blank = generated.places(size, least, most, rng)
    if blank:
        notes.append(f"{blank} generated patches without structure were left out")
    pairs = pairs_of(generated, places)
    if len(pairs) < len(places):
        notes.append(
            f"{len(places) - len(pairs)} generated patches were left out because they are too simple: a held-out patch "
            "is nearly equal; a larger patch tells more"
        )
    references = pairs_of(unseen, unseen.places(size, least, most, rng)[0])
    return tuple(pairs), np.array([pair.ratio for pair in references], dtype=np.float64)


def _correlate(
    queries: Tensor, image: NDArray[Any], shape: tuple[int, ...], least: float
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield, block by block, where it begins and ρ of every query (N, T, *shape) with every window; blank windows 0.

    The correlation is circular; windows that lie wholly inside the block are free of wrapping.
    """
    axes = tuple(range(-len(shape), 0))
    extent = _extent(image.shape, shape)
    padded = [fft.next_fast_len(n, real=True) for n in extent]
    spectra = torch.fft.rfftn(queries, s=padded, dim=axes).conj()
    inside = tuple(slice(0, n - p + 1) for n, p in zip(extent, shape, strict=True))
    for start, block in _blocks(image, shape):
        deviation = _deviation(block, shape)
        norm = np.where(deviation >= max(least, FLAT), deviation, np.inf) * math.sqrt(math.prod(shape))
        scale = torch.from_numpy((1 / norm).astype(np.float32)).to(queries.device)
        spectrum = torch.fft.rfftn(torch.from_numpy(block.astype(np.float32)).to(queries.device), s=padded)
        yield start, torch.fft.irfftn(spectra * spectrum, s=padded, dim=axes)[(..., *inside)] * scale


def _turns(dims: int) -> list[tuple[int, bool, bool]]:
    """Quarter turns in the plane, flip along X, and in 3D flip along Z."""
    return [(k, x, z) for z in ((False, True) if dims == 3 else (False,)) for x in (False, True) for k in range(4)]


def _turn(patch: NDArray[Any], turn: tuple[int, bool, bool]) -> NDArray[Any]:
    quarter, along_x, along_z = turn
    patch = patch[..., ::-1] if along_x else patch
    patch = patch[::-1] if along_z else patch
    return np.rot90(patch, quarter, axes=(-2, -1))


def _turn_back(patch: NDArray[Any], turn: tuple[int, bool, bool]) -> NDArray[Any]:
    quarter, along_x, along_z = turn
    patch = np.rot90(patch, -quarter, axes=(-2, -1))
    patch = patch[..., ::-1] if along_x else patch
    return patch[::-1] if along_z else patch


def _standard(patch: NDArray[Any]) -> NDArray[np.float64]:
    """Zero mean, unit energy."""
    centred = patch.astype(np.float64) - np.mean(patch, dtype=np.float64)
    return np.asarray(centred / np.linalg.norm(centred))


def _distance(standard: NDArray[np.float64], window: NDArray[Any], least: float) -> float:
    if not window.std(dtype=np.float64) >= max(least, FLAT):
        return math.sqrt(2)  # no structure: unrelated
    return float(np.linalg.norm(standard - _standard(window)))


# ---------------------------------------------------------------------- second test: corrupt and restore


def _crops(
    known: _Images,
    unseen: _Images,
    size: tuple[int, ...],
    least: float,
    most: int,
    notes: list[str],
    rng: np.random.Generator,
) -> tuple[list[Array], list[Array]]:
    """Training and held-out crops of like contrast, twice as wide as the patch where every image has room."""
    room = min(min(image.shape[-2:]) for image in [*known.images, *unseen.images])
    crop = (*size[:-2], *(n * (2 if room >= 2 * n else 1) for n in size[-2:]))
    one, two = (side.cut(side.places(crop, least, most, rng)[0], crop) for side in (known, unseen))
    first, second = _like_contrast([float(c.std()) for c in one], [float(c.std()) for c in two])
    if min(len(first), len(second)) < FEWEST:
        notes.append(
            f"corrupt and restore left out: {len(first)} training and {len(second)} held-out crops of "
            f"{' x '.join(str(n) for n in crop)} voxels have structure of like contrast, {FEWEST} of each are needed; "
            "give larger images"
        )
        return [], []
    return [one[i] for i in first], [two[i] for i in second]


def _correlations(
    restore: Callable[[Tensor, float], Tensor],
    crops: list[Array],
    level: float,
    generator: torch.Generator,
    device: torch.device | str,
    watch: Watch,
) -> NDArray[np.float64]:
    """Correlation of each crop with what is restored of it."""
    values: list[float] = []
    for first in range(0, len(crops), BATCH):
        watch("corrupting and restoring crops", first, len(crops))
        clean = torch.from_numpy(np.stack(crops[first : first + BATCH])[:, None])
        noisy = clean + level * torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            restored = restore(noisy.to(device), level)
        if restored.shape != noisy.shape:
            raise ValueError(
                f"restore gave shape {tuple(restored.shape)} for crops {tuple(noisy.shape)}; it must keep the shape"
            )
        a, b = (t.detach().cpu().double().flatten(1) for t in (clean, restored))
        a, b = (t - t.mean(1, keepdim=True) for t in (a, b))
        # a constant estimate remembers nothing: correlation 0
        values += ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)).tolist()
    return np.array(values, dtype=np.float64)


def _like_contrast(one: Sequence[float], two: Sequence[float]) -> tuple[list[int], list[int]]:
    """Pair crops of like contrast, since faint ones are harder to restore; several partners where one side is short."""
    if not one or not two:
        return [], []
    if len(one) > len(two):
        b, a = _like_contrast(two, one)
        return a, b
    short = np.repeat(np.arange(len(one)), min(4, len(two) // len(one)))
    cost = np.abs(np.log(np.asarray(one)[short, None] / np.asarray(two)[None]))
    rows, columns = optimize.linear_sum_assignment(cost)
    good = cost[rows, columns] <= math.log(CONTRAST)
    return sorted({int(i) for i in short[rows[good]]}), sorted(int(i) for i in columns[good])


# -------------------------------------------------------------------------------------------- the verdict


def _judge(
    pairs: tuple[Pair, ...],
    references: NDArray[np.float64],
    remembered: tuple[NDArray[np.float64], NDArray[np.float64]],
    share: float,
    notes: list[str],
) -> Audit:
    """Turn the numbers into a verdict and a sentence."""
    ratios = np.array([pair.ratio for pair in pairs], dtype=np.float64)
    found: list[Verdict] = []
    said: list[str] = []
    limit = min(COPY, float(np.quantile(references, CHANCE))) if len(references) else COPY
    copies, copied = int((ratios < limit).sum()), int((references < limit).sum())
    copies_p = 1.0
    if min(len(ratios), len(references)) >= FEWEST:
        table = [[copies, len(ratios) - copies], [copied, len(references) - copied]]
        copies_p = float(stats.fisher_exact(table, alternative="greater").pvalue)
        median, usual = float(np.median(ratios)), float(np.median(references))
        shift_p = float(stats.mannwhitneyu(ratios, references, alternative="less").pvalue)
        many = copies / len(ratios) >= MANY * share
        if copies_p < SIGNIFICANT and many:
            found.append("memorised")
        elif copies_p < SIGNIFICANT or (median < CLOSER * usual and shift_p < SIGNIFICANT):
            found.append("suspicious")
        else:
            found.append("healthy")
        said.append(
            f"{copies} of {len(ratios)} generated patches are copies: less than {limit:.2g} times as far from a "
            f"training patch as from any held-out patch ({copied} of {len(references)} real unseen patches are). The "
            f"median ratio of the two distances is {median:.2f} (of real unseen patches {usual:.2f})."
        )
    else:
        notes.append(
            f"nearest neighbours left out: {len(ratios)} generated and {len(references)} held-out patches have "
            f"structure to compare, {FEWEST} of each are needed; give more samples or another patch size"
        )
    auc = auc_p = None
    known, unseen = remembered
    if len(known):
        test = stats.mannwhitneyu(known, unseen, alternative="greater")
        auc, auc_p = float(test.statistic) / (len(known) * len(unseen)), float(test.pvalue)
        distances = [float(np.sqrt(max(np.median(1 - c), 0.0))) for c in remembered]
        if auc_p < SIGNIFICANT and distances[0] < RESTORED * distances[1]:
            found.append("memorised")
        elif auc_p < SIGNIFICANT and auc > SEPARATED:
            found.append("suspicious")
        else:
            found.append("healthy")
        said.append(
            f"Restored from {LEVEL:g} times the noise, training crops come back with a mean correlation of "
            f"{known.mean():.2f} with the original, held-out crops with {unseen.mean():.2f} (a training crop wins in "
            f"{100 * auc:.0f} % of comparisons, p = {auc_p:.2g})."
        )
    order: tuple[Verdict, ...] = ("memorised", "suspicious", "healthy")
    verdict: Verdict = next((v for v in order if v in found), "undecided")
    opening = {
        "memorised": "The prior has memorised its training images: do not take its samples for new ones; train on "
        "more images, for fewer steps or with a smaller network.",
        "suspicious": "The prior leans on its training images more than it should: look at the closest pairs, and "
        "train on more images if they look alike.",
        "healthy": "The prior shows no sign of having memorised its training images.",
        "undecided": "There was too little structure to tell whether the prior memorised its training images.",
    }[verdict]
    return Audit(
        verdict=verdict,
        sentence=" ".join([opening, *said]),
        notes=tuple(notes),
        ratios=ratios,
        reference_ratios=references,
        training_correlations=known,
        held_out_correlations=unseen,
        limit=limit,
        copies=copies,
        copies_p=copies_p,
        auc=auc,
        auc_p=auc_p,
        pairs=pairs,
    )


# ------------------------------------------------------------------------------------ images and windows


@dataclass(frozen=True, eq=False)
class _Images:
    """Images, or regions of some, that are looked at, and where each comes from."""

    images: list[NDArray[Any]]
    origin: list[Place]
    share: float = 1.0

    @classmethod
    def whole(cls, images: Sequence[NDArray[Any]]) -> _Images:
        return cls(list(images), [(index, (0,) * image.ndim) for index, image in enumerate(images)])

    @classmethod
    def choose(
        cls,
        images: Sequence[NDArray[Any]],
        most: int,
        size: tuple[int, ...],
        name: str,
        notes: list[str],
        rng: np.random.Generator,
    ) -> _Images:
        """Choose at random, at most `most` voxels; if not even one image has so few, a region of it."""
        total = sum(image.size for image in images)
        if total <= most:
            return cls.whole(images)
        chosen: list[tuple[Place, NDArray[Any]]] = []
        left = most
        for index in (int(i) for i in rng.permutation(len(images))):
            image = images[index]
            start = (0,) * image.ndim
            if not chosen and image.size > left:
                shrink = math.sqrt(left / image.size)
                plane = (max(s, int(n * shrink)) for n, s in zip(image.shape[-2:], size[-2:], strict=True))
                region = (*image.shape[:-2], *plane)
                start = tuple(int(rng.integers(n - r + 1)) for n, r in zip(image.shape, region, strict=True))
                image = image[_window(start, region)]
            if not chosen or image.size <= left:
                chosen.append(((index, start), image))
                left -= image.size
        chosen.sort(key=lambda c: c[0])
        share = sum(image.size for _, image in chosen) / total
        notes.append(
            f"{100 * share:.2g} % of the {name} voxels were looked at (at most {most}), chosen at random; patches like "
            "the rest go unseen"
        )
        return cls([image for _, image in chosen], [place for place, _ in chosen], share)

    def places(
        self, size: tuple[int, ...], least: float, most: int, rng: np.random.Generator
    ) -> tuple[list[Place], int]:
        """Patches with structure, side by side, as many as fit, at most `most`; and how many have none."""
        good: list[Place] = []
        blank = 0
        for index, image in enumerate(self.images):
            corner = [int(rng.integers(n % p + 1)) for n, p in zip(image.shape, size, strict=True)]
            starts = (range(c, n - p + 1, p) for c, n, p in zip(corner, image.shape, size, strict=True))
            for at in product(*starts):
                if np.std(image[_window(at, size)], dtype=np.float64) >= least:
                    good.append((index, at))
                else:
                    blank += 1
        if len(good) > most:
            good = [good[i] for i in sorted(rng.choice(len(good), most, replace=False))]
        return good, blank

    def cut(self, places: Sequence[Place], size: tuple[int, ...]) -> list[Array]:
        return [self.images[i][_window(at, size)].astype(np.float32) for i, at in places]

    def place(self, place: Place) -> Place:
        """Say where a patch of these lies in the images that were given."""
        index, start = self.origin[place[0]]
        return index, tuple(a + b for a, b in zip(start, place[1], strict=True))

    def match(self, match: Match) -> Match:
        index, position = self.place((match.image, match.position))
        return replace(match, image=index, position=position)


def _check_shapes(
    generated: Sequence[NDArray[Any]], training: Sequence[NDArray[Any]], held_out: Sequence[NDArray[Any]]
) -> None:
    for name, images in (("samples", generated), ("training", training), ("held_out", held_out)):
        if not len(images):
            what = "images that the prior was not trained on" if name == "held_out" else "at least one image"
            raise ValueError(f"{name} is empty; give {what}")
        for index, image in enumerate(images):
            if image.ndim != generated[0].ndim or image.ndim not in (2, 3):
                raise ValueError(
                    f"{name}[{index}] has shape {image.shape}, samples[0] {generated[0].shape}; all must be (Y, X) or "
                    "all (Z, Y, X)"
                )


def _patch_size(patch: Sequence[int] | None, images: Sequence[NDArray[Any]]) -> tuple[int, ...]:
    smallest = tuple(min(image.shape[axis] for image in images) for axis in range(images[0].ndim))
    if patch is None:
        plane = min(SIDE, *smallest[-2:])
        return (*(min(DEPTH, n) for n in smallest[:-2]), plane, plane)
    size = tuple(int(n) for n in patch)
    fits = len(size) == len(smallest) and all(1 <= p <= n for p, n in zip(size, smallest, strict=True))
    if not fits or size[-1] != size[-2]:
        raise ValueError(f"patch is {size}; give ([Z,] Y, X) with Y = X, at most the smallest image, {smallest} voxels")
    return size


def _extent(shape: Sequence[int], size: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels of an image that are transformed at once."""
    return tuple(min(n, max(b, 2 * p)) for n, b, p in zip(shape, BLOCK[len(size)], size, strict=True))


def _blocks(image: NDArray[Any], size: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], NDArray[np.float64]]]:
    """Yield blocks, less their mean, that together hold every window of an image, and where they begin."""
    extent = _extent(image.shape, size)
    starts = (
        sorted({min(a, n - e) for a in range(0, n - p + 1, e - p + 1)})
        for n, e, p in zip(image.shape, extent, size, strict=True)
    )
    for start in product(*starts):
        block = np.asarray(image[_window(start, extent)], dtype=np.float64)
        yield start, block - block.mean()


def _deviations(images: Sequence[NDArray[Any]], size: tuple[int, ...]) -> Iterator[NDArray[np.float64]]:
    """Yield, block by block, the standard deviation of the window at every position."""
    for image in images:
        for _, block in _blocks(image, size):
            yield _deviation(block, size)


def _deviation(block: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.float64]:
    total, squares = block, np.square(block)
    for axis, n in enumerate(size):
        total, squares = (_running_sum(a, axis, n) for a in (total, squares))
    count = math.prod(size)
    return np.asarray(np.sqrt(np.maximum(squares / count - np.square(total / count), 0)))


def _running_sum(values: NDArray[np.float64], axis: int, n: int) -> NDArray[np.float64]:
    moved = np.moveaxis(values, axis, 0)
    summed = np.concatenate([np.zeros_like(moved[:1]), np.cumsum(moved, axis=0)])
    return np.moveaxis(summed[n:] - summed[:-n], 0, axis)


def _window(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
