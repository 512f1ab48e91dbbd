"""Objectives that learn through operators: what they know of them, what they refuse, and what is hidden."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_ambient.denoiser import Scale
from napari_ambient.networks.unet import UNetArguments
from napari_ambient.objectives import AmbientMask, Batch, FlowDiff, OperatorEM
from napari_ambient.objectives.base import ObjectiveError, Setting
from napari_ambient.objectives.views import Views, view_of
from napari_ambient.operators import Blur, Downsample, Identity, Mask
from napari_ambient.recorruption import Gaussian, Thinning


def test_hidden_photons_are_independent_of_what_is_seen() -> None:
    """Thinning with holes: what is left to predict is uncorrelated with what is shown, given the light."""
    form, g = Thinning(), torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((64, 1, 32, 32), 5.0), generator=g)
    hidden = torch.rand(counts.shape, generator=g) < 0.3
    further = form.recorrupt(counts, ~hidden, torch.full((64,), 1.25), g)
    left = torch.where(hidden, counts, further.remainder)
    shown = further.x_t
    for where in (hidden, ~hidden):
        correlation = float(torch.corrcoef(torch.stack([shown[where], left[where]]))[0, 1])
        assert abs(correlation) < 4 / math.sqrt(int(where.sum()))
    # shown in full and asked for in full, it is not
    assert float(torch.corrcoef(torch.stack([form.measure(counts).flatten(), counts.flatten()]))[0, 1]) > 0.9


def test_refusals() -> None:
    """Each objective says which operators it knows, and refuses the rest."""
    blur = Blur(np.full((3, 3), 1 / 9))
    network, scales = UNetArguments(), (Scale(2.0, 1.0),)
    with pytest.raises(ObjectiveError, match=r"cannot learn through this operator.*flow_diff"):
        AmbientMask(Thinning()).prepare(Setting(blur, network, scales))
    with pytest.raises(ObjectiveError, match="other factors"):
        AmbientMask(Thinning()).prepare(Setting(Mask(np.full((8, 8), 0.5)), network, scales))
    with pytest.raises(ObjectiveError, match="neighbours"):
        FlowDiff(Thinning()).prepare(Setting(blur, UNetArguments(channels=5), scales))
    correlation = np.zeros((3, 3))
    correlation[1], correlation[1, 1] = 0.2, 1.0
    with pytest.raises(ObjectiveError, match="correlated"):
        FlowDiff(Gaussian(correlation=correlation))
    FlowDiff(Thinning()).prepare(Setting(Downsample(2) @ blur, network, scales))
    AmbientMask(Thinning()).prepare(Setting(Identity(), network, scales))


def test_evidence_of_coarse_pixels_and_holes() -> None:
    """The light of one clean voxel, holes filled, on the clean grid."""
    mask = np.ones((8, 8), bool)
    mask[2, 3] = False
    operator = Mask(mask) @ Downsample(2)
    place = (slice(0, 1), slice(0, 8), slice(0, 8))
    views = Views([view_of(operator, (1, 8, 8), place, 0)], operator.stride)
    counts = torch.full((1, 1, 8, 8), 12.0)
    counts[0, 0, 2, 3] = 0
    good = torch.ones_like(counts, dtype=torch.bool)
    light, known = Batch(counts, good, good, torch.zeros(1, dtype=torch.long), views=views).evidence()
    assert light.shape == known.shape == (1, 1, 16, 16)
    torch.testing.assert_close(light, torch.full_like(light, 3.0))
    assert (~known).sum() == 4 and not known[0, 0, 4:6, 6:8].any()


def test_em_learns_large_draws_in_parts_and_forgets_its_first_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops as wide as a wide PSF asks are drawn whole; a batch of one turns a buffer of its own size over."""
    g = torch.Generator().manual_seed(0)
    seen: list[tuple[int, ...]] = []

    def denoise(x_t: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        seen.append(tuple(x_t.shape))
        return x_t

    for width, part in ((64, 64), (136, 64)):
        objective = OperatorEM(Thinning(), capacity=3, refresh=1)
        operator = Blur(np.full((3, 3), 1 / 9))
        objective.prepare(Setting(operator, UNetArguments(), (Scale(2.0, 1.0),)))
        views = Views([view_of(operator, (1, width, width), (slice(0, 1), *2 * (slice(0, width),)), 0)], (1, 1, 1))
        counts = torch.poisson(torch.full((1, 1, width, width), 5.0), generator=g)
        good = torch.ones_like(counts, dtype=torch.bool)
        batch = Batch(counts, good, good, torch.zeros(1, dtype=torch.long), views=views)
        for _ in range(5):
            objective.losses(denoise, denoise, replace(batch, progress=0.0), g)
        assert len(objective.buffer) == 3
        assert set(seen) == {(1, 1, part, part)}
        seen.clear()
        monkeypatch.setattr(objective, "draw", lambda *_: torch.full((1, 1, width, width), 7.0))  # noqa: B023
        for _ in range(3 * (1 if part == width else 2)):
            objective.losses(denoise, denoise, replace(batch, progress=0.5), g)
        assert (objective.buffer.draw(12, g)["image"] == 7).all()
