"""Presets, and the honest time: what is timed are the training's own steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_ambient import Volume, training_time
from napari_ambient.choices import Below
from napari_ambient.cli import AskedConfig, app
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.objectives.draw_stage import DrawStage
from napari_ambient.operators import Blur, Mask
from napari_ambient.prior import Prior, Record
from napari_ambient.train_config import PRESETS, TrainConfig, TrainingError, preset
from napari_ambient.training import iter_train
from napari_ambient.training_time import TrainingTime, estimate_time, in_words, iter_estimate_time

TINY = TrainConfig(steps=40, batch=2, patch=(16, 16), validations=4, precision="float32", below_steps=16)
NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noisy(shape: tuple[int, ...] = (2, 48, 48)) -> Volume:
    rng = np.random.default_rng(0)
    return Volume.from_array((100 + 2 * rng.poisson(4.0, shape)).astype(np.uint16), "TYX")


def test_presets_rise_in_cost() -> None:
    assert list(PRESETS) == ["quick", "balanced", "best"]
    configs = [preset(name) for name in PRESETS]
    assert preset("balanced") == TrainConfig()
    assert [c.steps for c in configs] == sorted(c.steps for c in configs)
    assert [c.below_steps for c in configs] == sorted(c.below_steps for c in configs)


def test_what_is_named_goes_before_the_preset() -> None:
    assert preset("best", size="small", steps=7) == replace(preset("best"), size="small", steps=7)
    with pytest.raises(TrainingError, match="choose one of quick, balanced, best"):
        preset("fast")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no setting is called sizes"):
        preset("best", sizes="small")


def test_the_command_line_knows_what_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the user names a default: `--preset best --size small` is not the preset's medium."""
    given: list[Any] = []
    monkeypatch.setattr("napari_ambient.batch.find_files", lambda inputs: [Path("a.tif")])
    monkeypatch.setattr("napari_ambient.cli._open", lambda *_: noisy())
    monkeypatch.setattr("napari_ambient.training.iter_train", lambda *_, **k: given.append(k["config"]))
    monkeypatch.setattr("napari_ambient.progress.follow", lambda *_: None)
    for arguments in ("--preset best --size small --steps 3000", "--preset quick", ""):
        app(["train", "a.tif", "-o", "nowhere.prior", *arguments.split()], result_action="return_value")
    assert given == [preset("best", size="small", steps=3000), preset("quick"), TrainConfig()]
    assert not any(isinstance(config, AskedConfig) for config in given)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (7.4, "8 seconds"),
        (44, "40 seconds"),
        (95, "1.5 minutes"),
        (250, "4 minutes"),
        (5300, "88 minutes"),
        (5500, "1.5 hours"),
        (40000, "11 hours"),
    ],
)
def test_times_have_no_more_digits_than_a_forecast(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_the_sum_is_that_of_the_stages() -> None:
    """With a clock that ticks once a look, the estimate is the formula at the head of the module."""
    found = TrainingTime(120.0, 60.0, 0.05, "this CPU (2 threads)")
    assert found.total == 180
    assert found.describe() == (
        "about 3 minutes on this CPU (2 threads), 60 seconds of it for error bars; 20 steps per second"
    )
    assert replace(found, step_seconds=1.0).describe().endswith("; 1 step per second")
    assert "2.5 seconds per step" in replace(found, step_seconds=2.5).describe()


@pytest.mark.parametrize("below", ["none", "virtual_exposures"])
def test_the_estimate_meets_the_training(below: Below) -> None:
    """Within a factor of two: both are a second or two on a machine that does other things too.

    The best of two estimates and of two trainings, which other work on the machine can only make longer.
    """
    config = replace(TINY, below=below)
    estimates = [estimate_time(noisy(), NOISE, config=config, device="cpu", budget=0.3).total for _ in range(2)]

    def train() -> float:
        begin = time.perf_counter()
        for _ in iter_train(noisy(), NOISE, config=config, device="cpu"):
            pass
        return time.perf_counter() - begin

    real = min(train() for _ in range(2))
    assert 0.5 < min(estimates) / real < 2


def test_more_steps_take_longer_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the test: each step a tick, so that nothing depends on the machine."""
    ticks = iter(np.arange(10**6, dtype=float))
    monkeypatch.setattr(training_time.time, "perf_counter", lambda: next(ticks))
    quick = estimate_time(noisy(), NOISE, config=replace(TINY, held_out=0), device="cpu", budget=1e-9)
    ticks = iter(np.arange(10**6, dtype=float))
    longer = estimate_time(noisy(), NOISE, config=replace(TINY, held_out=0, steps=400), device="cpu", budget=1e-9)
    assert longer.total == pytest.approx(10 * quick.total)


def test_a_full_buffer_is_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that draw and those that do not are told apart; were the buffer left empty, every step would draw."""
    seen: list[tuple[int, bool]] = []
    losses = DrawStage.losses

    def watched(self: DrawStage, *arguments: Any) -> Any:
        before = self.buffer._next, len(self.buffer)
        result = losses(self, *arguments)
        seen.append((self.buffer._steps, (self.buffer._next, len(self.buffer)) != before))
        return result

    monkeypatch.setattr(DrawStage, "losses", watched)
    estimate_time(noisy(), NOISE, config=replace(TINY, below="auto"), device="cpu", budget=0.1)
    assert [drawn for _, drawn in seen] == [True, True, False, False]


def test_it_can_be_stopped_and_says_when_it_is_final() -> None:
    found = list(iter_estimate_time(noisy(), NOISE, config=replace(TINY, below="auto"), device="cpu", budget=0.1))
    assert [f.final for f in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].below_seconds > 0
    assert all(math.isfinite(f.total) for f in found)


def test_images_too_small_to_hold_anything_out() -> None:
    """As large as a crop: there is no validation to time."""
    assert estimate_time(noisy((1, 16, 16)), NOISE, config=TINY, device="cpu", budget=0.1).total > 0


def test_nothing_is_read() -> None:
    """The first look must not wait for a slow disk: of the data, the shape is enough."""
    import dask.array as da

    def fail(*_: Any, **__: Any) -> np.ndarray[Any, Any]:
        raise AssertionError("a block was read")

    data = da.map_blocks(fail, chunks=((1,) * 8, (512,), (512,)), dtype=np.uint16, meta=np.empty((0,) * 3, np.uint16))
    estimate_time(Volume.from_array(data, "TYX"), config=TINY, device="cpu", budget=0.1)


def test_what_cannot_be_trained_is_refused_before() -> None:
    with pytest.raises(TrainingError, match="no Z to see"):
        estimate_time(noisy(), NOISE, config=replace(TINY, dims="3D", patch=None), device="cpu")


def test_maps_of_a_frame_do_not_matter() -> None:
    """An sCMOS's maps are of its frame, the timed images are smaller."""
    maps = NoiseModel(gain=np.full((512, 512), 2.0), intercept=np.full((512, 512), -200.0), photons=4.0)
    assert estimate_time(noisy((2, 512, 512)), maps, config=TINY, device="cpu", budget=0.1).total > 0


# ------------------------------------------------------------------------------------ what the user knows


def test_a_given_line_keeps_the_mean_counts() -> None:
    """In counts nothing changes: photons' = (mean counts - dark level) / gain', with the mean counts of the fit."""
    fitted = NoiseModel(gain=2.0, intercept=-190.0, photons=10.0)  # zero 95, mean counts 115
    given = fitted.with_line(2.5, 96.0)
    assert (given.gain, given.zero, given.photons) == pytest.approx((2.5, 96.0, 19 / 2.5))
    assert given.method == "given"
    known = fitted.with_line(2.0, 95.0, 100.0)
    # read_noise² = gain (offset - zero) = 10; light above the offset
    assert (known.read_noise, known.photons) == pytest.approx((math.sqrt(10), 7.5))
    # and back: with the offset known, the light is counted above it
    assert known.with_line(2.0, 95.0).photons == pytest.approx(10.0)
    with pytest.raises(ValueError, match="Raise the offset"):
        fitted.with_line(2.0, 95.0, 94.0)
    with pytest.raises(ValueError, match="gain is -1"):
        fitted.with_line(-1.0, 95.0)


def test_a_given_line_keeps_the_form() -> None:
    """White noise is thinned, however much of it is read noise; correlated noise cannot be."""
    photons = NoiseModel(gain=1.0, intercept=-100.0, photons=1.0)
    assert photons.form == photons.with_line(1.0, 80.0, 100.5).form == "thinning"
    correlated = replace(photons, correlation=np.array([[0.3, 1.0, 0.3]]))
    assert correlated.with_line(1.0, 80.0, 100.5).form == "gaussian"


def tiny_prior(widths: tuple[int, ...] = (8, 8, 8), *, dims: int = 2) -> Prior:
    network = UNet(UNetArguments(dims=dims, widths=widths, strides=((2,) * dims,) * 3))
    return Prior(Denoiser(network, [Scale(4.9, 1.5)]), (NOISE,), Record("ambient", "thinning", "TYX", {}))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_fine_tuning_is_timed_with_the_network_that_it_begins_with(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Not with one of the size in the form; in both stages, and with as many weights as will change."""
    timed: list[tuple[Any, int]] = []
    steps = training_time.iter_train

    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        for step in steps(*arguments, **options):
            denoiser = step._training.denoiser
            timed.append((denoiser.arguments.widths, sum(p.numel() for p in denoiser.parameters() if p.requires_grad)))
            yield step

    monkeypatch.setattr(training_time, "iter_train", watched)
    config = replace(TINY, below="auto", low_rank=rank)
    begin = tiny_prior()
    found = estimate_time(noisy(), NOISE, start=begin, config=config, device="cpu", budget=0.1)
    assert found.below_seconds > 0
    assert {widths for widths, _ in timed} == {(8, 8, 8)}
    whole = sum(p.numel() for p in begin.denoiser.parameters())
    assert {count for _, count in timed} == {whole} if rank == 0 else all(count < whole for _, count in timed)
    # from scratch the size in the form counts
    timed.clear()
    estimate_time(noisy(), NOISE, config=replace(config, low_rank=0), device="cpu", budget=0.1)
    assert (8, 8, 8) not in {widths for widths, _ in timed}


def test_a_prior_of_other_images_is_refused_before() -> None:
    with pytest.raises(TrainingError, match="the prior to start from sees 3D images"):
        estimate_time(noisy(), NOISE, start=tiny_prior(dims=3), config=TINY, device="cpu", budget=0.1)


def test_the_objective_and_the_operator_are_timed() -> None:
    """A flow through a blur takes longer per step than thinning, and a mask of the whole frame is cut to size."""
    blur = Blur(np.full((3, 3), 1 / 9))
    volume = noisy((2, 200, 200))
    config = replace(TINY, patch=(32, 32))
    plain = estimate_time(volume, NOISE, config=config, budget=0.5)
    flow = estimate_time(volume, NOISE, objective="flow_diff", operator=blur, config=config, budget=0.5)
    assert flow.step_seconds > 1.5 * plain.step_seconds
    masked = estimate_time(volume, NOISE, operator=Mask(np.ones((200, 200), bool)), config=config, budget=0.5)
    assert masked.final
