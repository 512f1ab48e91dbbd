"""The audit of priors: behind blurs and holes too, what was memorised is found and what was not is left in peace."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_ambient import NoiseModel, Prior, TrainConfig, Volume, restore, train
from napari_ambient.audit import Audit
from napari_ambient.choices import ObjectiveName
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet
from napari_ambient.operators import Blur, Downsample, Identity, Mask, Operator
from napari_ambient.prior import PriorError
from napari_ambient.prior_audit import audit_prior, own_means
from napari_ambient.restorer import RestorationError
from oracles import gaussian_field

SIZE = 64
NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=20.0)
LINE = np.exp(-(np.linspace(-2, 2, 5) ** 2))
BLUR = Blur(np.outer(LINE, LINE) / LINE.sum() ** 2)
MASK = Mask(np.random.default_rng(3).random((SIZE, SIZE)) < 0.6)
FREQUENCY = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
SPECTRUM = torch.from_numpy(np.where(FREQUENCY > 0, 1 / (1 + (FREQUENCY / 0.05) ** 2) ** 2, 0.0))
FIELDS = 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def clean(seed: int) -> Tensor:
    """Draw Gaussian fields of scaled intensity, mean 9 and standard deviation 3; (N, 1, 1, Y, X), photo-electrons."""
    field = gaussian_field(SPECTRUM * 9 / SPECTRUM.mean(), FIELDS, torch.Generator().manual_seed(seed))
    return (9 + field).clamp_min(0.5).square()[:, None] / 4


def measured(operator: Operator, seed: int) -> Volume:
    expected = operator.forward(clean(seed))[:, 0, 0].numpy()
    counts = 100 + 2 * np.random.default_rng(seed).poisson(expected)
    return Volume.from_array(counts.astype(np.float32), "TYX", name=f"fields {seed}")


@functools.cache
def trained(operator: Operator, objective: ObjectiveName, steps: int = 12) -> Prior:
    """Train a little: enough to restore the fields, far too little to learn one of them by heart."""
    torch.set_num_threads(1)
    # of a flow's draws the denoiser learns more slowly
    steps, batch = (16, 4) if objective == "flow_diff" else (steps, 2)
    config = TrainConfig(steps=steps, batch=batch, patch=(32, 32), validations=1, held_out=0.0)
    return train(measured(operator, 1), NOISE, objective=objective, operator=operator, config=config)


class Remembering(Denoiser):
    """The exact denoiser where some images are all there is; asked about a measurement, the one that was trained."""

    def __init__(self, like: Denoiser, images: Tensor) -> None:
        super().__init__(UNet(like.arguments), [Scale(*row) for row in like.scales.tolist()])  # type: ignore[operator]
        self.load_state_dict(like.state_dict())
        self.images = images

    def forward(self, x_t: Tensor, sigma: Tensor, *, measured: Tensor | bool = False, **condition: object) -> Tensor:
        if measured is True:
            return super().forward(x_t, sigma, measured=measured, **condition)  # type: ignore[arg-type]
        border = (x_t.shape[-1] - SIZE) // 2  # the margin that tiles have
        inner = x_t[..., border : border + SIZE, border : border + SIZE].flatten(1).double()
        far = torch.cdist(inner, self.images.flatten(1).double()).square()
        mean = torch.softmax(-far / (2 * sigma.double()[:, None] ** 2), 1) @ self.images.flatten(1).double()
        image = mean.reshape(-1, 1, SIZE, SIZE).float()
        return torch.nn.functional.pad(image, (border,) * 4, mode="reflect") if border else image


def audited(prior: Prior, operator: Operator, *, held_out: int = 2) -> Audit:
    volumes = measured(operator, 1), measured(operator, held_out)
    return audit_prior(prior, *volumes, operator=operator, count=6, steps=8)


@pytest.mark.parametrize(
    ("operator", "objective"),
    [(BLUR, "em"), (BLUR, "flow_diff"), (MASK, "em")],
    ids=["blur", "blur, by a flow", "holes"],
)
def test_priors_through_operators(operator: Operator, objective: ObjectiveName) -> None:
    """A short training is healthy; with a denoiser that knows nothing but the training images it is memorised."""
    prior = trained(operator, objective)
    result = audited(prior, operator)
    assert result.verdict == "healthy"
    assert len(result.ratios) == len(result.reference_ratios) == 4 * FIELDS
    # all crops are tested; those of either side come back alike, and something does
    assert len(result.training_correlations) == len(result.held_out_correlations) == FIELDS
    assert result.training_correlations.mean() == pytest.approx(result.held_out_correlations.mean(), abs=0.1)
    assert result.held_out_correlations.mean() > 0.3
    light = torch.from_numpy(own_means(measured(operator, 1), prior, operator).data.compute() - 100) / 2
    memory = Remembering(prior.denoiser, prior.recorruption.scaled(light[:, None]))
    copied = audited(replace(prior, denoiser=memory), operator)
    assert copied.verdict == "memorised"
    # both tests find it: samples are copies, and at ten times the noise crops come back as they were
    assert copied.copies > 0.7 * len(copied.ratios)
    assert copied.training_correlations.min() > 0.99
    assert copied.auc == 1.0


def test_a_memory_of_the_truth_shows_in_restorations() -> None:
    """Copies of the clean images themselves, with the detail that the blur took from what they are compared with."""
    prior = trained(BLUR, "em")
    memory = Remembering(prior.denoiser, prior.recorruption.scaled(clean(1)[:, 0].float()))
    assert audited(replace(prior, denoiser=memory), BLUR).verdict == "memorised"
    # a memory of other images is none of these
    other = Remembering(prior.denoiser, prior.recorruption.scaled(clean(3)[:, 0].float()))
    assert audited(replace(prior, denoiser=other), BLUR).verdict != "memorised"


def test_coarse_pixels_are_audited_on_the_clean_grid() -> None:
    operator = Downsample(2)
    prior = trained(operator, "sure_score", 2)
    result = audited(prior, operator)
    assert own_means(measured(operator, 1), prior, operator).shape == (FIELDS, SIZE, SIZE)
    assert result.verdict in ("healthy", "undecided")
    alone = audit_prior(prior, measured(operator, 1), operator=operator, count=6, steps=2)
    assert any("lower quarter" in note for note in alone.notes)


def test_own_means_without_an_operator_are_one_call() -> None:
    prior = trained(Identity(), "ambient", 2)
    volume = measured(Identity(), 1)
    one_call = restore(volume, prior).data.compute()
    for operator in (None, Identity()):
        np.testing.assert_array_equal(own_means(volume, prior, operator).data.compute(), one_call)


def test_what_cannot_be_audited_is_said_at_once() -> None:
    """Without the operator, or below the noise nothing: before a single image is restored."""

    def never(stage: str, done: int, total: int) -> None:
        raise AssertionError(stage)

    volumes = measured(BLUR, 1), measured(BLUR, 2)
    prior = trained(BLUR, "em")
    with pytest.raises(PriorError, match=r"through an operator \(blur\).*give the operator"):
        audit_prior(prior, *volumes, watch=never)
    with pytest.raises(RestorationError, match="another operator"):
        audit_prior(prior, *volumes, operator=MASK)
    holes = trained(MASK, "ambient_mask", 2)
    with pytest.raises(PriorError, match=r"nothing below the noise.*objective em \(--from\), through the same mask"):
        audit_prior(holes, *volumes, operator=MASK, watch=never)
    with pytest.raises(PriorError, match="stage below"):
        audit_prior(trained(Identity(), "ambient", 2), *volumes, watch=never)
