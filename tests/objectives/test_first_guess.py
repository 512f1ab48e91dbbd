"""First guesses behind a blur: held-out photons say when to stop, in bright images later than in dim ones."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from napari_ambient.objectives.base import Batch
from napari_ambient.objectives.first_guess import MOST, FirstGuess, Seen, _iterate, _smooth, first_guess, iterations_for
from napari_ambient.objectives.views import Views, view_of
from napari_ambient.operators import Blur, Identity, Operator

SIZE = 96


def psf(width: float = 2.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    line = np.exp(-(np.arange(-8, 9) ** 2) / (2 * width**2))
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def light() -> Tensor:
    """Make spots of one pixel and a half on a dim ground, mean 1."""
    rng = np.random.default_rng(0)
    spots = ndimage.gaussian_filter((rng.random((SIZE, SIZE)) < 0.02).astype(float), 1.5, mode="mirror") + 0.002
    return torch.from_numpy(spots / spots.mean()).float()[None, None]


def measured(photons: float, operator: Operator) -> tuple[Batch, Tensor]:
    """Give what a photon counter shows of it, and the light itself."""
    clean = photons * light()
    seen = clean if isinstance(operator, Identity) else operator.forward(clean[:, None])[:, 0]
    counts = torch.poisson(seen.clamp_min(0), generator=torch.Generator().manual_seed(1))
    whole = (1, SIZE, SIZE)
    view = view_of(operator, whole, (slice(0, 1), slice(0, SIZE), slice(0, SIZE)), 0)
    every = torch.ones_like(counts, dtype=torch.bool)
    return Batch(counts, every, every, torch.zeros(1, dtype=torch.long), views=Views([view], (1, 1, 1))), clean


def decibels(image: Tensor, clean: Tensor) -> float:
    return float(10 * torch.log10(clean.max() ** 2 / (image - clean).square().mean()))


def test_they_end_where_it_is_best() -> None:
    """Within 1 dB of the best number of iterations, dim and bright; the dim number would not do for the bright one."""
    chosen, worse = {}, {}
    for photons in (3.0, 100.0):
        batch, clean = measured(photons, Blur(psf()))
        chosen[photons] = iterations_for(batch, batch.counts, torch.Generator().manual_seed(0))
        every = _iterate(Seen(batch.views, batch.learn), batch.counts, _smooth(batch.counts))
        reached = [decibels(x, clean) for x in islice(every, MOST)]
        assert reached[chosen[photons] - 1] > max(reached) - 1
        worse[photons] = max(reached) - reached[chosen[3.0] - 1]
    assert chosen[3.0] < chosen[100.0]
    assert worse[100.0] > 2


def test_acceleration_goes_the_same_way_sooner() -> None:
    """Eight steps fit the counts better than sixteen plain ones."""
    batch, _ = measured(100.0, Blur(psf()))
    seen = Seen(batch.views, batch.learn)

    def misfit(x: Tensor) -> float:
        rate = seen.forward(x).clamp_min(1e-3)
        return float((rate - batch.counts * rate.log()).double().sum())

    plain = _smooth(batch.counts)
    share = seen.adjoint(torch.ones_like(plain))
    for _ in range(16):
        plain = plain * seen.adjoint(batch.counts / seen.forward(plain)) / share
    assert misfit(first_guess(batch, batch.counts, 8)) < misfit(plain)


def test_the_number_is_chosen_once_and_kept() -> None:
    """A resumed training goes on with the number that the first batch asked for."""
    dim, bright = (measured(photons, Blur(psf()))[0] for photons in (3.0, 100.0))
    guess = FirstGuess()
    assert guess.state() == {}
    guess(dim, dim.counts, torch.Generator().manual_seed(0))
    resumed = FirstGuess()
    resumed.load(guess.state())
    for each in (guess, resumed):
        made = each(bright, bright.counts, torch.Generator().manual_seed(5))
        assert torch.equal(made, first_guess(bright, bright.counts, guess.iterations or 0))


def test_without_a_blur_it_is_the_smoothed_image() -> None:
    batch, clean = measured(3.0, Identity())
    assert iterations_for(batch, batch.counts, torch.Generator()) == 0
    guess = FirstGuess()(batch, batch.counts, torch.Generator())
    assert decibels(guess, clean) > decibels(batch.counts, clean) + 4
    assert float(guess.mean()) == pytest.approx(float(batch.counts.mean()), rel=0.02)
