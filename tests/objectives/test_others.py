"""Blind spot, Noise2Noise and supervised: each has its minimum where it should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from napari_ambient.denoiser import Scale
from napari_ambient.networks.unet import UNetArguments
from napari_ambient.objectives import OBJECTIVES, Batch, BlindSpot, Noise2Noise, Objective, Supervised
from napari_ambient.objectives.base import Setting
from napari_ambient.objectives.blind_spot import _neighbour
from napari_ambient.operators import Identity
from napari_ambient.recorruption import Gaussian, Thinning


def flat_batch(rate: float, partner: str, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    level = torch.full((64, 1, 32, 32), rate)
    counts = torch.poisson(level, generator=g)
    other = {"none": None, "time": torch.poisson(level, generator=g), "target": level}[partner]
    good = torch.ones_like(counts, dtype=torch.bool)
    return Batch(counts, good, good, torch.zeros(64, dtype=torch.long), other)


@pytest.mark.parametrize("kind", [BlindSpot, Noise2Noise, Supervised])
def test_the_exact_answer_is_stationary(kind: type[Objective]) -> None:
    """For flat fields of rate λ the mean gradient vanishes at D = 2√λ, and only there."""
    rate = 6.0
    objective = kind(Gaussian())
    assert isinstance(objective.recorruption, Thinning)  # one-call objectives answer in photo-electrons
    batch = flat_batch(rate, kind.partner)
    slopes = {}
    for name, value in (("exact", 2 * rate**0.5), ("off", 2 * rate**0.5 + 0.5)):
        answer = torch.tensor(value, requires_grad=True)

        def denoise(x: Tensor, sigma: Tensor, answer: Tensor = answer, **_: object) -> Tensor:
            return answer.expand_as(x)

        (loss,) = objective.losses(denoise, denoise, batch, torch.Generator().manual_seed(1)).values()
        slopes[name] = abs(float(torch.autograd.grad(loss, answer)[0]))
    # 2 % of 65 536 voxels are masked in the blind spot: standard error 1/√1300 = 0.028
    assert slopes["exact"] < 0.08
    assert slopes["off"] > 0.3


def test_blind_spot_cannot_copy() -> None:
    """Handing back the input is no solution: the masked voxels hold something else."""
    objective = BlindSpot(Thinning())
    batch = flat_batch(6.0, "none")

    def copy(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        return x

    def mean(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        return torch.full_like(x, 2 * 6.0**0.5)

    def loss(denoise: object) -> float:
        (value,) = objective.losses(denoise, denoise, batch, torch.Generator().manual_seed(2)).values()  # type: ignore[arg-type]
        return float(value)

    assert loss(copy) > loss(mean) + 0.3


def test_neighbours_are_never_the_voxel_itself() -> None:
    """Each voxel gets one of the 24 others of its window, each of them about as often."""
    image = torch.arange(4096.0).reshape(1, 1, 64, 64)
    draws = torch.stack([_neighbour(image, torch.Generator().manual_seed(s)) for s in range(200)])
    centre = draws[:, 0, 0, 32, 32] - image[0, 0, 32, 32]
    offsets = {(int(d) + 130) // 64 - 2: None for d in centre.tolist()}
    assert set(offsets) == {-2, -1, 0, 1, 2}
    assert not (draws == image)[..., 2:-2, 2:-2].any()


def test_untrusted_voxels_do_not_count() -> None:
    """What lies at hot or saturated voxels changes no loss."""
    g = torch.Generator().manual_seed(3)
    for kind in OBJECTIVES.values():
        batch = flat_batch(4.0, kind.partner)
        good = torch.rand(batch.counts.shape, generator=g) > 0.1

        def denoise(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
            return torch.full_like(x, 4.0)

        values = []
        for junk in (0.0, 1000.0):
            torch.manual_seed(0)
            objective = kind(Thinning())
            objective.prepare(Setting(Identity(), UNetArguments(), (Scale(4.0, 1.0),)))
            counts = torch.where(good, batch.counts, torch.full_like(batch.counts, junk))
            partner = None if batch.partner is None else torch.where(good, batch.partner, torch.full_like(counts, junk))
            # the draws of the thinning differ where the junk differs: compare what the mask lets through
            masked = Batch(counts, good, good, batch.channel, partner, progress=0.0)
            terms = objective.losses(denoise, denoise, masked, torch.Generator().manual_seed(4))
            values.append(float(sum(terms.values()).detach()))
        assert values[0] == pytest.approx(values[1], rel=0.02)
