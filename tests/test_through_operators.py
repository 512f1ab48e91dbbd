"""From corrupted stacks to a prior and back: training, bundle, resuming and one-call posteriors behind operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from napari_ambient import NoiseModel, Prior, TrainConfig, Volume, iter_train, load_prior, restore, train
from napari_ambient.choices import ObjectiveName
from napari_ambient.operators import Blur, Downsample, Identity, Mask, Operator
from napari_ambient.restorer import RestorationError
from napari_ambient.train_config import TrainingError

NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=5.0)
PSF = np.outer(*[np.exp(-(np.linspace(-2, 2, 5) ** 2))] * 2)
BLUR = Blur(PSF / PSF.sum())
CONFIG = TrainConfig(steps=3, batch=2, patch=(32, 32), validations=1, checkpoint_every=2, held_out=0.2)


def waves(shape: tuple[int, ...]) -> NDArray[np.float64]:
    y, x = (np.arange(n) for n in shape[-2:])
    light = 5 + 4 * np.sin(x / 5) * np.cos(y[:, None] / 7)
    return np.asarray(np.broadcast_to(light, shape))


def measured(operator: Operator, shape: tuple[int, ...] = (4, 64, 64), seed: int = 0) -> Volume:
    """Count the waves behind an operator."""
    light = torch.from_numpy(waves(operator.input_shape(shape)).copy())[None, None]
    expected = operator.forward(light)[0, 0].numpy()
    counts = 100 + 2 * np.random.default_rng(seed).poisson(expected)
    return Volume.from_array(counts.astype(np.float32), "TYX", name="waves")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("objective", ["flow_diff", "ambient_flow", "sure_score", "em"])
@pytest.mark.parametrize("operator", [BLUR, Downsample(2) @ BLUR], ids=["blur", "coarse blur"])
def test_every_objective_ends_in_a_prior(objective: ObjectiveName, operator: Operator, tmp_path: Path) -> None:
    """It is saved and loaded, samples, and restores in one call; the record names the operator."""
    size = 64 // operator.stride[-1]
    volume = measured(operator, (4, size, size))
    config = replace(CONFIG, patch=(size // 2, size // 2))
    prior = train(volume, NOISE, objective=objective, operator=operator, config=config)
    again = load_prior(prior.save(tmp_path / "a.prior"))
    assert again.record.operator == operator.to_dict()
    assert again.record.objective == objective
    assert objective in again.levels
    assert again.sample((16, 16), steps=2).shape == (1, 16, 16)
    outputs = ["mean"] if prior.posterior is None else ["mean", "std"]
    one = volume.replace(data=volume.data[0], axes="YX")
    given = [
        restore(one, p, operator=operator, method="amortised", draws=3, outputs=outputs).data.compute()
        for p in (prior, again)
    ]
    np.testing.assert_array_equal(given[0], given[1])
    assert given[0].shape[-2:] == (64, 64)
    drawn = restore(one, again, operator=operator, method="samples", draws=2, steps=3).data.compute()
    assert np.isfinite(drawn).all()


def test_masks(tmp_path: Path) -> None:
    """The objective for masks is chosen by itself, tells the network of holes, and answers in one call."""
    mask = np.random.default_rng(3).random((64, 64)) < 0.6
    operator = Mask(mask)
    volume = measured(operator)
    prior = train(volume, NOISE, operator=operator, config=CONFIG)
    assert prior.record.objective == "ambient_mask"
    assert prior.denoiser.arguments.extra == 1
    prior = load_prior(prior.save(tmp_path / "a.prior"))
    one = volume.replace(data=volume.data[0], axes="YX")
    answer = restore(one, prior, operator=operator, method="amortised", outputs=["mean"]).data.compute()
    # holes are looked past: what lies there changes nothing
    junk = np.where(mask, np.asarray(one.data), 5000).astype(np.float32)
    other = restore(
        Volume.from_array(junk, "YX"), prior, operator=operator, method="amortised", outputs=["mean"]
    ).data.compute()
    np.testing.assert_array_equal(answer, other)
    # and another mask is as good: the network is shown it
    restore(one, prior, operator=Mask(~mask), method="amortised", outputs=["mean"]).data.compute()
    going_on = train(volume, NOISE, objective="em", operator=operator, start=prior, config=CONFIG)
    assert going_on.knows_below and not prior.knows_below


@pytest.mark.parametrize("objective", ["flow_diff", "ambient_flow", "em"])
def test_resumed_is_uninterrupted(objective: ObjectiveName, tmp_path: Path) -> None:
    """Flows, their averages and buffers are in the checkpoint too."""
    volume = measured(BLUR)
    options = {"objective": objective, "operator": BLUR, "config": CONFIG}
    whole = train(volume, NOISE, **options)
    for step in iter_train(volume, NOISE, folder=tmp_path / "a.prior", **options):
        assert step.prior().knows_below == (step.index >= 2)  # from half of the training on
        if step.index == 2:
            break
    last = None
    for last in iter_train(volume, NOISE, folder=tmp_path / "a.prior", resume=True, **options):
        assert last.index == 3
    assert last is not None
    assert last.prior().sha256 == whole.sha256
    with pytest.raises(TrainingError, match="other operator"):
        next(iter_train(volume, NOISE, folder=tmp_path / "a.prior", resume=True, **{**options, "operator": Identity()}))


@pytest.fixture(scope="module")
def flow_prior() -> Prior:
    torch.set_num_threads(1)
    return train(measured(BLUR), NOISE, objective="flow_diff", operator=BLUR, config=CONFIG)


def test_one_call_draws_do_not_depend_on_tiles(flow_prior: Prior) -> None:
    """Law 7 for the flow: noise keyed to place, halos as wide as it sees."""
    volume = measured(BLUR, (1, 72, 56), seed=4)
    options = {"operator": BLUR, "method": "amortised", "draws": 2, "outputs": ["draws"]}
    whole = restore(volume, flow_prior, tile=(1, 512, 512), **options).data.compute()
    tiled = restore(volume, flow_prior, tile=(1, 16, 24), **options).data.compute()
    # counts of about 110
    np.testing.assert_allclose(tiled, whole, rtol=1e-5)
    other = restore(volume, flow_prior, seed=1, **options).data.compute()
    assert not np.allclose(other, whole, atol=0.1)
    first, second = whole[0] if whole.ndim == 4 else whole
    assert not np.allclose(first, second, atol=0.1)


def test_what_the_posterior_was_not_trained_for(flow_prior: Prior) -> None:
    """Another operator, a prior without a posterior, an error bar that there is none of."""
    volume = measured(BLUR)
    with pytest.raises(RestorationError, match="another operator"):
        restore(volume, flow_prior, method="amortised")
    with pytest.raises(RestorationError, match="through blur, which its one-call answer undoes"):
        restore(volume, flow_prior)
    with pytest.raises(RestorationError, match="another operator"):
        restore(volume, flow_prior, operator=Blur(np.full((3, 3), 1 / 9)), method="amortised")
    plain = train(measured(Identity()), NOISE, config=CONFIG)
    with pytest.raises(RestorationError, match="no posterior of its own"):
        restore(volume, plain, method="amortised")
    sure = train(volume, NOISE, objective="sure_score", operator=BLUR, config=CONFIG)
    with pytest.raises(RestorationError, match="mean alone"):
        restore(volume, sure, operator=BLUR, method="amortised")


def test_bad_operators_are_named() -> None:
    """A mask of another size, an objective that cannot see through, crops that show nothing of themselves."""
    volume = measured(BLUR)
    with pytest.raises(TrainingError, match=r"waves: the mask has shape \(8, 8\)"):
        train(volume, NOISE, operator=Mask(np.ones((8, 8))), config=CONFIG)
    with pytest.raises(TrainingError, match="ambient cannot learn through this operator"):
        train(volume, NOISE, objective="ambient", operator=BLUR, config=CONFIG)
    wide = Blur(np.full((41, 41), 1 / 41**2))
    with pytest.raises(TrainingError, match="no voxel of a crop"):
        train(volume, NOISE, operator=wide, config=CONFIG)
    with pytest.raises(TrainingError, match="teaches all levels itself"):
        train(volume, NOISE, operator=BLUR, config=TrainConfig(steps=3, batch=2, patch=(32, 32), below="auto"))


def test_stacks_learn_in_three_dimensions() -> None:
    """A 3D PSF with a 3D network and flow."""
    line = np.exp(-(np.linspace(-1, 1, 3) ** 2))
    psf = line[:, None, None] * np.outer(line, line)
    operator = Blur(psf / psf.sum())
    light = torch.from_numpy(waves((16, 32, 32)).copy())[None, None]
    counts = np.random.default_rng(0).poisson(operator.forward(light)[0, 0].numpy()) * 2 + 100
    volume = Volume.from_array(counts.astype(np.float32), "ZYX")
    config = TrainConfig(steps=2, batch=1, patch=(16, 32, 32), validations=1, held_out=0.0)
    prior = train(volume, NOISE, objective="flow_diff", operator=operator, config=config)
    assert prior.posterior is not None and prior.posterior.arguments.dims == 3
    result = restore(volume, prior, operator=operator, method="amortised", draws=2).data.compute()
    assert result.shape == (2, 16, 32, 32)
