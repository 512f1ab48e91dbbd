"""The loop: it learns, it can be stopped, resumed and killed, and everything follows from the seed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from napari_ambient import Prior, TrainConfig, iter_train, load_prior, train
from napari_ambient.networks.unet import choose_arguments
from napari_ambient.noise import NoiseModel
from napari_ambient.objectives import OBJECTIVES, Batch
from napari_ambient.objectives.base import Denoise
from napari_ambient.training import CHECKPOINT, TrainingError, TrainingWarning, pace, schedule
from napari_ambient.volumes import Volume, VolumeError

NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
TINY = TrainConfig(steps=8, batch=2, patch=(16, 16), validations=2, checkpoint_every=3, precision="float32", seed=1)


def noisy(shape: tuple[int, ...] = (3, 48, 48), axes: str = "TYX", seed: int = 0) -> Volume:
    """Smooth structures of about 4 photo-electrons on a camera of gain 2 and offset 100."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(0, 3 * np.pi, n) for n in shape[-2:]), indexing="ij")
    clean = np.broadcast_to(4 * (1 + np.sin(grid[0]) * np.sin(grid[1])), shape)
    return Volume.from_array((100 + 2 * rng.poisson(clean)).astype(np.uint16), axes, name="waves")


def weights(prior: object) -> dict[str, torch.Tensor]:
    return prior.denoiser.state_dict()  # type: ignore[attr-defined, no-any-return]


def same(a: object, b: object) -> bool:
    return all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


def test_the_same_seed_gives_the_same_prior() -> None:
    """Bit by bit on one machine; another seed gives another."""
    first = train(noisy(), NOISE, config=TINY)
    assert same(first, train(noisy(), NOISE, config=TINY))
    assert not same(first, train(noisy(), NOISE, config=TrainConfig(**{**TINY.__dict__, "seed": 2})))


def test_the_seed_is_the_trainings_own() -> None:
    """Torch's shared generator goes on as if there had been no training, and has no say in its weights."""
    torch.manual_seed(3)
    alone = torch.rand(4)
    first = next(iter_train(noisy(), NOISE, config=TINY))
    torch.manual_seed(3)
    second = next(iter_train(noisy(), NOISE, config=TINY))
    assert torch.equal(torch.rand(4), alone)
    assert same(first.prior(), second.prior())


@pytest.mark.parametrize("stop", [3, 7])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    """From the last checkpoint on, weights and history are those of a training that was never stopped."""
    whole = list(iter_train(noisy(), NOISE, config=TINY))[-1].prior()
    for step in iter_train(noisy(), NOISE, config=TINY, folder=tmp_path / "a.prior"):
        if step.index == stop:
            break
    steps = list(iter_train(noisy(), NOISE, config=TINY, folder=tmp_path / "a.prior", resume=True))
    assert steps[0].index == stop // 3 * 3 + 1
    assert same(steps[-1].prior(), whole)
    assert steps[-1].prior().record.history == whole.record.history


@pytest.mark.parametrize("below", ["virtual_exposures", "em", "consistency"])
def test_resumed_below_equals_uninterrupted(tmp_path: Path, below: str) -> None:
    """The stage below the noise goes on with its buffer of draws; the record says which stage it was."""
    form = "thinning" if below == "virtual_exposures" else "gaussian"
    config = TrainConfig(**{**TINY.__dict__, "steps": 2, "below": below, "below_steps": 6, "form": form})
    steps = list(iter_train(noisy(), NOISE, config=config))
    whole = steps[-1].prior()
    assert [s.total for s in steps] == [8] * 8
    assert not steps[1].prior().knows_below
    assert whole.knows_below
    assert below in whole.levels
    assert 0 < whole.record.history[-1]["moved"] < 0.2
    assert set(steps[-1].losses) - set(steps[0].losses)
    for step in iter_train(noisy(), NOISE, config=config, folder=tmp_path / "a.prior"):
        if step.index == 7:
            break
    again = list(iter_train(noisy(), NOISE, config=config, folder=tmp_path / "a.prior", resume=True))
    assert again[0].index == 7
    assert same(again[-1].prior(), whole)


def test_moved_answers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the stage below makes D at the measurement's level worse, the user is told."""
    monkeypatch.setattr("napari_ambient.training.MOVED", -1.0)
    values = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr("napari_ambient.training._Training.validate", lambda self: next(values))
    config = TrainConfig(**{**TINY.__dict__, "steps": 4, "below": "auto", "below_steps": 4})
    with pytest.warns(TrainingWarning, match="held-out loss rose"):
        train(noisy(), NOISE, config=config)


def test_a_stage_that_does_not_fit_is_refused() -> None:
    """Each stage has its form of noise, and follows the ambient objective."""
    for below, form in (("em", "thinning"), ("consistency", "thinning"), ("virtual_exposures", "gaussian")):
        config = TrainConfig(**{**TINY.__dict__, "below": below, "form": form})
        with pytest.raises(TrainingError, match="choose"):
            train(noisy(), NOISE, config=config)
    with pytest.raises(TrainingError, match="follows the ambient objective"):
        train(noisy(), NOISE, objective="blind_spot", config=TrainConfig(**{**TINY.__dict__, "below": "auto"}))
    with pytest.raises(TrainingError, match="choose one of"):
        TrainConfig(below="magic")  # type: ignore[arg-type]


KILLED = """
import sys
sys.path[:0] = sys.argv[3:]
import torch
torch.set_num_threads(1)
from test_training import NOISE, TINY, noisy
from napari_ambient import iter_train
until = sys.argv[2]
for step in iter_train(noisy(), NOISE, config=TINY, folder=sys.argv[1], resume=until == "end"):
    print(step.index, flush=True)
    if str(step.index) == until:
        input()
"""


def start_training(folder: Path, until: str) -> subprocess.Popen[bytes]:
    """Train, or go on with what the folder holds, in a process of its own; stand still after step `until`."""
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), until, str(Path(__file__).parent), *sys.path],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )


def test_killed_and_resumed(tmp_path: Path) -> None:
    """After kill -9 the folder holds a usable prior, and resuming gives the uninterrupted result.

    Each training in a process of its own, as a user's are: what else this one has loaded, and on how many threads it
    computes, would change the last bits.
    """
    folder = tmp_path / "a.prior"
    uninterrupted = start_training(tmp_path / "whole.prior", "never")
    with start_training(folder, "7") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 7:
                break
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert load_prior(folder).record.step == 6
    for process, first in ((start_training(folder, "end"), b"7"), (uninterrupted, b"1")):
        printed, _ = process.communicate()
        assert process.returncode == 0
        assert printed.split()[0] == first
        assert printed.split()[-1] == b"8"
    resumed, whole = (weights(load_prior(path)) for path in (folder, tmp_path / "whole.prior"))
    differing = {k: float((v - whole[k]).abs().max()) for k, v in resumed.items() if not torch.equal(v, whole[k])}
    assert not differing


def test_stopping_at_any_step_keeps_a_prior() -> None:
    """The prior of a step is a copy that later steps do not touch."""
    steps = iter_train(noisy(), NOISE, config=TINY)
    early = next(steps).prior()
    copy = {k: v.clone() for k, v in weights(early).items()}
    next(steps)
    steps.close()
    assert all(torch.equal(v, copy[k]) for k, v in weights(early).items())
    assert early.record.step == 1
    assert early.record.form == "thinning"


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """No checkpoint, a damaged one, or one of another configuration."""
    folder = tmp_path / "a.prior"
    with pytest.raises(TrainingError, match="nothing to resume"):
        next(iter_train(noisy(), NOISE, config=TINY, folder=folder, resume=True))
    with pytest.raises(TrainingError, match="needs the folder"):
        next(iter_train(noisy(), NOISE, config=TINY, resume=True))
    list(iter_train(noisy(), NOISE, config=TINY, folder=folder))
    other = TrainConfig(**{**TINY.__dict__, "learning_rate": 1e-4})
    with pytest.raises(TrainingError, match="other learning_rate"):
        next(iter_train(noisy(), NOISE, config=other, folder=folder, resume=True))
    (folder / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes()[:-50])
    with pytest.raises(TrainingError, match="is damaged"):
        next(iter_train(noisy(), NOISE, config=TINY, folder=folder, resume=True))


@pytest.mark.parametrize("objective", ["ambient", "blind_spot", "noise2noise", "supervised"])
def test_every_objective_learns(objective: str) -> None:
    """The held-out loss falls, and the prior says what it was trained with."""
    volume = noisy((4, 64, 64))
    target = volume.replace(data=volume.data.astype(np.float32))
    config = TrainConfig(steps=40, batch=4, patch=(32, 32), validations=4, precision="float32")
    steps = list(
        iter_train(
            volume,
            NOISE,
            objective=objective,  # type: ignore[arg-type]
            target=target if objective == "supervised" else None,
            config=config,
        )
    )
    values = [s.validation for s in steps if s.validation is not None]
    assert values[-1] < values[0]
    assert steps[-1].prior().record.objective == objective


@pytest.mark.parametrize(
    ("shape", "axes", "dims", "expected"),
    [
        ((2, 10, 40, 40), "TZYX", "auto", (3, 1)),
        ((5, 40, 40), "ZYX", "auto", (2, 5)),
        ((10, 40, 40), "ZYX", "2D", (2, 1)),
        ((2, 2, 40, 40), "TCYX", "auto", (2, 1)),
    ],
)
def test_dimensions(shape: tuple[int, ...], axes: str, dims: str, expected: tuple[int, int]) -> None:
    """3D, 2.5D, 2D and several channels train and record their network."""
    config = TrainConfig(steps=2, batch=2, dims=dims, precision="float32")  # type: ignore[arg-type]
    prior = train(noisy(shape, axes), NOISE, config=config)
    assert (prior.denoiser.arguments.dims, prior.denoiser.arguments.channels) == expected
    channels = shape[1] if axes == "TCYX" else 1
    assert len(prior.noise) == len(prior.denoiser.scales) == channels


def test_both_forms_train() -> None:
    """The form follows the fit, or the user."""
    gaussian = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0, form="gaussian")
    assert train(noisy(), gaussian, config=TINY).record.form == "gaussian"
    config = TrainConfig(**{**TINY.__dict__, "form": "thinning"})
    assert train(noisy(), gaussian, config=config).record.form == "thinning"


def test_several_stacks_with_their_own_noise() -> None:
    """Each stack is read with its own gain; the prior keeps the median one."""
    models = [NoiseModel(gain=g, intercept=-100.0 * g, photons=4.0) for g in (1.0, 2.0, 3.0)]
    prior = train([noisy(seed=s) for s in range(3)], models, config=TINY)
    assert prior.noise[0].gain == 2.0
    with pytest.raises(TrainingError, match="2 noise models for 3 volumes"):
        train([noisy(seed=s) for s in range(3)], models[:2], config=TINY)


def test_hot_pixels_are_not_learned() -> None:
    """A hot pixel's value changes neither weights nor loss."""
    hot = np.zeros((48, 48), bool)
    hot[::7, ::5] = True
    noise = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0, hot_pixels=hot)
    results = []
    for value in (101, 60000):
        values = noisy().data.compute()
        values[:, hot] = value
        results.append(train(Volume.from_array(values, "TYX"), noise, config=TrainConfig(steps=3, batch=2)))
    a, b = (r.denoiser.state_dict()["network.leave.weight"] for r in results)
    # thinning draws one number per count, so the draws elsewhere shift slightly; a learned 60000 would blow up
    assert (a - b).abs().max() < 0.02


def test_still_is_refused_where_nothing_can_be_learned_from_it() -> None:
    config = replace(TINY, still=True)
    with pytest.raises(VolumeError, match="axis T of at least 2 exposures"):
        train(noisy((48, 48), "YX"), NOISE, config=config)
    with pytest.raises(TrainingError, match=r"blind_spot does not learn from that: choose .*ambient"):
        train(noisy(), NOISE, objective="blind_spot", config=config)


def test_saturated_repeats_are_not_learned() -> None:
    """Neither where the exposure is saturated nor where its repeat is."""
    frames = np.full((2, 32, 32), 110, np.uint16)
    frames[0, :, :16], frames[1, :16] = 200, 200
    seen: list[torch.Tensor] = []

    class Listener(OBJECTIVES["ambient"]):  # type: ignore[misc, name-defined]
        def losses(self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator) -> object:
            seen.append(batch.learn)
            return super().losses(denoiser, average, batch, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "ambient", Listener)
        noise = replace(NOISE, saturation=200.0)
        config = replace(TINY, patch=(32, 32), held_out=0.0, steps=1, still=True)
        train(Volume.from_array(frames, "TYX"), noise, config=config)
    assert all(bool((part.sum((1, 2, 3)) == 256).all()) for part in seen)


def test_bad_input_is_named() -> None:
    """NaN, constant, too small, off-grid patches, unknown objectives, missing axes."""
    values = noisy().data.compute().astype(np.float32)
    values[:, 10:20] = np.nan
    with pytest.raises(TrainingError, match="holds NaN or infinite values near T="):
        train(Volume.from_array(values, "TYX", name="x"), NOISE, config=TINY)
    flat = Volume.from_array(np.full((2, 32, 32), 104, np.uint16), "TYX")
    for camera in (NOISE, NoiseModel(gain=2.2, intercept=-2.2 * 96.1)):  # whose variance is not 0 to the last bit
        with pytest.raises(TrainingError, match=r"the image is constant .*choose another$"):
            train(flat, camera, config=TINY)
    with pytest.raises(TrainingError, match=r"holds no light: .*largest value is -4\d"):
        dark = Volume.from_array(np.eye(32)[None].repeat(2, 0), "TYX")
        train(dark, NoiseModel(gain=2.2, intercept=-211.2), config=TINY)
    with pytest.raises(TrainingError, match="fewer than the patch"):
        train(noisy((2, 12, 12)), NOISE, config=TINY)
    with pytest.raises(TrainingError, match=r"give 2 positive multiples of \(8, 8\)"):
        train(noisy(), NOISE, config=TrainConfig(patch=(10, 10)))
    with pytest.raises(TrainingError, match="choose one of auto, ambient"):
        train(noisy(), NOISE, objective="magic", config=TINY)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no Z to see"):
        train(noisy(), NOISE, config=TrainConfig(dims="3D"))
    with pytest.raises(VolumeError, match="axis T of at least 2"):
        train(noisy((48, 48), "YX"), NOISE, objective="noise2noise", config=TINY)
    for bad in ({"steps": 0}, {"slices": 4}, {"held_out": 0.9}, {"learning_rate": 0.0}, {"dims": "4D"}):
        with pytest.raises(TrainingError, match=next(iter(bad))):
            TrainConfig(**bad)  # type: ignore[arg-type]


def test_out_of_memory_is_one_kind_of_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch raises, the caller sees MemoryError."""

    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("napari_ambient.objectives.ambient.Ambient.losses", explode)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        train(noisy(), NOISE, config=TINY)


def test_buffers_are_float32(tmp_path: Path) -> None:
    """No float64 in the weights or the checkpoint: Apple's MPS has none."""
    for step in iter_train(noisy(), NOISE, config=TINY, folder=tmp_path / "a.prior"):
        if step.index == 3:
            break
    for name, tensor in load_file(tmp_path / "a.prior" / CHECKPOINT).items():
        assert tensor.dtype != torch.float64, name


def test_schedule() -> None:
    """Up in the warm-up, then down to 2 %."""
    rates = [schedule(i, 1000, 50) for i in range(1, 1001)]
    assert np.argmax(rates) + 1 == 50
    assert rates[-1] == pytest.approx(0.02)
    assert all(a > b for a, b in itertools.pairwise(rates[49:]))


def test_larger_networks_learn_more_slowly() -> None:
    """The small network's rate is too much for the others; narrower ones do not take more."""
    rates = [pace(choose_arguments(size, dims=dims)) for dims in (2, 3) for size in ("small", "medium", "large")]
    assert rates == pytest.approx([1, 48 / 64 / 2, 48 / 96 / 2, 1, 24 / 48 / 2, 24 / 64 / 2])
    assert pace(replace(choose_arguments("small"), widths=(8, 16, 16))) == 1
    training = next(iter_train(noisy(), NOISE, config=replace(TINY, size="medium", warm_up=1)))._training
    assert training.stage(1)[1] == pytest.approx(TINY.learning_rate * 0.375, rel=0.1)


def test_two_processes_agree(tmp_path: Path) -> None:
    """Under torchrun both processes end with the same weights, and only the first writes."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import os, torch\n"
        "from safetensors.torch import save_file\n"
        "from test_training import NOISE, TINY, noisy\n"
        "from napari_ambient import iter_train\n"
        "for step in iter_train(noisy(), NOISE, config=TINY, folder=sys.argv[1] + '/a.prior', device='cpu'): pass\n"
        "state = {k: v.contiguous() for k, v in step.prior().denoiser.state_dict().items()}\n"
        "save_file(state, sys.argv[1] + f'/rank{os.environ[\"RANK\"]}.safetensors')\n"
        "torch.distributed.destroy_process_group()\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617"),
            *(str(script), str(tmp_path), str(Path(__file__).parent), *sys.path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"rank{r}.safetensors") for r in (0, 1))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert load_prior(tmp_path / "a.prior").record.step == 6


LOW_RANK = TrainConfig(**{**TINY.__dict__, "low_rank": 2, "seed": 3})


@pytest.fixture(scope="module")
def learned() -> Prior:
    """Train a prior to start from, its network opened by a few steps on other images."""
    return train(noisy(seed=5), NOISE, config=TINY)


def test_low_rank_begins_with_the_prior(learned: Prior) -> None:
    """Steps too short to matter give the very weights back, and a bundle like any other."""
    still = train(noisy(), NOISE, start=learned, config=replace(LOW_RANK, learning_rate=1e-30))
    assert list(weights(still)) == list(weights(learned))
    assert same(still, learned)
    # negative control: other factors are what would differ
    assert not same(train(noisy(), NOISE, start=learned, config=LOW_RANK), learned)


def test_low_rank_changes_the_kernels_by_low_rank_only(learned: Prior, tmp_path: Path) -> None:
    """In the bundle: rank 2 in every convolution, everything else as it was, and no trace but in the record."""
    train(noisy(), NOISE, start=learned, config=LOW_RANK).save(tmp_path / "a.prior")
    tuned = load_prior(tmp_path / "a.prior")
    assert tuned.record.config["low_rank"] == 2
    assert tuned.record.start == learned.sha256
    kernels = 0
    for key, value in weights(tuned).items():
        old = weights(learned)[key]
        if value.ndim < 4:
            assert torch.equal(value, old), key
            continue
        kernels += 1
        values = torch.linalg.svdvals((value - old).double().flatten(1))
        size = float(torch.linalg.matrix_norm(value.double().flatten(1), 2))
        # a kernel is kept in float32: the sum of W and its change is rounded by 6e-8 of each element
        assert float(values[1]) > 1e-4 * size > 1e-6 * size > float(values[2]), key
    assert kernels == 16
    whole = train(noisy(), NOISE, start=learned, config=replace(LOW_RANK, low_rank=0))
    name = "network.middle.0.first.weight"
    values = torch.linalg.svdvals((weights(whole)[name] - weights(learned)[name]).flatten(1))
    assert float(values[2]) > 1e-2 * float(values[0])  # negative control


def test_low_rank_prior_answers_as_the_average_does(learned: Prior) -> None:
    """The merged prior and the moving average that carries the factors are one denoiser."""
    *_, last = iter_train(noisy(), NOISE, start=learned, config=LOW_RANK)
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 2.0])
    average = last._training.average.module
    assert sum("parametrizations" in key for key in average.state_dict())
    with torch.no_grad():
        merged = last.prior().denoiser(x, sigma)
        torch.testing.assert_close(merged, average(x, sigma), rtol=0, atol=1e-6)
        assert (merged - learned.denoiser(x, sigma)).abs().max() > 1e-3  # there was something to merge


@pytest.mark.parametrize("below", ["none", "virtual_exposures"])
def test_low_rank_resumed_equals_uninterrupted(learned: Prior, tmp_path: Path, below: str) -> None:
    """Factors, their average, and the copy that the stage below holds on to are all in the checkpoint."""
    config = LOW_RANK if below == "none" else replace(LOW_RANK, steps=2, below="virtual_exposures", below_steps=6)
    whole = list(iter_train(noisy(), NOISE, start=learned, config=config))[-1].prior()
    for step in iter_train(noisy(), NOISE, start=learned, config=config, folder=tmp_path / "a.prior"):
        if step.index == 7:
            break
    again = list(iter_train(noisy(), NOISE, start=learned, config=config, folder=tmp_path / "a.prior", resume=True))
    assert again[0].index == 7
    assert same(again[-1].prior(), whole)
    other = replace(config, low_rank=3)
    with pytest.raises(TrainingError, match="other low_rank"):
        next(iter_train(noisy(), NOISE, start=learned, config=other, folder=tmp_path / "a.prior", resume=True))


def test_low_rank_needs_something_learned(learned: Prior) -> None:
    """Without a prior, or with a rank that restricts nothing, the error says what to do."""
    with pytest.raises(TrainingError, match=r"low_rank is 2, but there is no prior to start from.*--from PRIOR"):
        train(noisy(), NOISE, config=LOW_RANK)
    with pytest.raises(TrainingError, match=r"choose 1 to 63 .*train all weights"):
        train(noisy(), NOISE, start=learned, config=replace(LOW_RANK, low_rank=96))
    with pytest.raises(TrainingError, match="low_rank is -1; it must be 0"):
        TrainConfig(low_rank=-1)
