"""Restoring: law 7 (tiled equals whole), law 5 (the mean is preserved), units, types, and what does not fit."""

from __future__ import annotations

import itertools
from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
import torch

from napari_ambient import restore
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.prior import Prior, Record
from napari_ambient.restoration import Clipping, RestorationError, RestorationWarning, Restorer, TileWarning, plan_tile
from napari_ambient.volumes import Volume, save_volume

NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
FLAT = UNetArguments(widths=(8, 8, 8))
SLICES = UNetArguments(widths=(8, 8), strides=((2, 2), (2, 2)), channels=3)
SOLID = UNetArguments(dims=3, widths=(6, 6), strides=((1, 2, 2), (2, 2, 2)))


def make_prior(arguments: UNetArguments = FLAT, *, noise: NoiseModel = NOISE, form: str = "thinning") -> Prior:
    """Give a network random weights: its answer depends on everything in its receptive field."""
    torch.manual_seed(0)
    network = UNet(arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser = Denoiser(network, [Scale(3.5, 1.2)])
    denoiser.requires_grad_(False)
    return Prior(denoiser, (noise,), Record("ambient", form, "TYX", {}))  # type: ignore[arg-type]


def counts(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return (100 + 2 * np.random.default_rng(seed).poisson(4, shape)).astype(np.uint16)


@pytest.mark.parametrize(
    ("arguments", "shape", "tiles"),
    [
        (FLAT, (1, 150, 131), [(1, 64, 64), (1, 40, 131), (1, 8, 150)]),
        (SLICES, (5, 60, 52), [(1, 60, 52), (2, 20, 16), (5, 7, 60)]),
        (SOLID, (9, 36, 30), [(4, 36, 30), (9, 16, 12), (5, 7, 30)]),
    ],
    ids=["2D", "2.5D", "3D"],
)
@pytest.mark.parametrize("form", ["thinning", "gaussian"])
def test_tiled_equals_whole(
    arguments: UNetArguments, shape: tuple[int, ...], tiles: list[tuple[int, int, int]], form: str
) -> None:
    """Law 7: to 1e-5 of the signal, for any tile size, chunking of the source, and order."""
    prior = make_prior(arguments, form=form)
    data = counts(shape)
    axes = "ZYX"
    whole = restore(Volume.from_array(data, axes), prior, tile=(999, 999, 999)).data.compute()
    assert np.isfinite(whole).all()
    assert whole.std() > 0.1
    for tile in tiles:
        source = da.from_array(data, chunks=tuple(max(1, n // 3) for n in shape))
        tiled = restore(Volume.from_array(source, axes), prior, tile=tile)
        np.testing.assert_allclose(tiled.data.compute(scheduler="synchronous"), whole, rtol=1e-5)
    # any order: the blocks computed one by one, backwards
    result = restore(Volume.from_array(data, axes), prior, tile=tiles[0]).data
    again = np.empty_like(whole)
    starts = [np.cumsum((0, *c))[:-1] for c in result.chunks]
    for index in reversed(list(itertools.product(*(range(n) for n in result.numblocks)))):
        block = result.blocks[index].compute(scheduler="synchronous")
        place = tuple(slice(s[i], s[i] + n) for s, i, n in zip(starts, index, block.shape, strict=True))
        again[place] = block
    np.testing.assert_allclose(again, whole, rtol=1e-5)


def test_too_small_a_halo_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of law 7: with half the receptive field the seams are there."""
    prior = make_prior()
    data = Volume.from_array(counts((150, 131)), "YX")
    whole = restore(data, prior, tile=(1, 999, 999)).data.compute()
    monkeypatch.setattr(UNet, "receptive_field", property(lambda _: (8, 8)))
    tiled = restore(data, prior, tile=(1, 40, 40)).data.compute()
    assert np.abs(tiled / whole - 1).max() > 1e-3


def test_time_and_channels_are_images_of_their_own() -> None:
    """T and C are looped: each plane as if it were alone, with its own channel's noise."""
    prior = make_prior()
    data = counts((3, 2, 40, 40))
    models = [NOISE, NoiseModel(gain=4.0, intercept=-360.0, photons=4.0)]
    result = restore(Volume.from_array(data, "TCYX"), prior, noise=models).data.compute()
    for t, c in itertools.product(range(3), range(2)):
        alone = restore(Volume.from_array(data[t, c], "YX"), prior, noise=models[c]).data.compute()
        np.testing.assert_allclose(result[t, c], alone, rtol=1e-5)


def test_a_planar_prior_takes_slices_one_by_one() -> None:
    """A 2D prior restores a Z-stack plane by plane."""
    data = counts((3, 40, 40))
    result = restore(Volume.from_array(data, "ZYX"), make_prior()).data.compute()
    np.testing.assert_allclose(
        result[1], restore(Volume.from_array(data[1], "YX"), make_prior()).data.compute(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "shape", "tile"),
    [(FLAT, (1, 96, 80), (1, 40, 24)), (SLICES, (3, 48, 64), (2, 20, 16)), (SOLID, (5, 32, 24), (3, 16, 12))],
    ids=["2D", "2.5D", "3D"],
)
def test_averages_over_turns(arguments: UNetArguments, shape: tuple[int, ...], tile: tuple[int, int, int]) -> None:
    """Tiled equals whole; a turned image gives the turned answer, which one call does not."""
    prior = make_prior(arguments)
    data = counts(shape)

    def answer(image: np.ndarray, turns: int, **options: object) -> np.ndarray:
        return np.asarray(restore(Volume.from_array(image, "ZYX"), prior, turns=turns, **options).data.compute())

    for turns in (2, 4, 8):
        whole = answer(data, turns)
        np.testing.assert_allclose(answer(data, turns, tile=tile), whole, rtol=1e-5)
        half = np.ascontiguousarray(np.rot90(data, 2, (1, 2)))
        np.testing.assert_allclose(np.rot90(answer(half, turns), 2, (1, 2)), whole, rtol=1e-5)
    quarter = np.ascontiguousarray(np.rot90(data, 1, (1, 2)))
    for turns, same in ((8, True), (4, False), (1, False)):
        there = np.rot90(answer(quarter, turns), -1, (1, 2))
        assert np.allclose(there, answer(data, turns), rtol=1e-5) == same


def test_turns_in_the_record_and_where_there_are_none() -> None:
    """They are written down, counted by the watch, and refused where the image or the method has no place for them."""
    prior = make_prior()
    seen: list[tuple[int, int]] = []
    result = restore(Volume.from_array(counts((64, 48)), "YX"), prior, turns=4, watch=lambda *told: seen.append(told))
    result.data.compute()
    assert result.history[-1]["turns"] == 4
    assert seen[-1] == (4, 4)
    oblong = Volume.from_array(counts((64, 48)), "YX", voxel_size=(0.2, 0.1))
    assert "turns" not in restore(oblong, prior).history[-1]
    restore(oblong, prior, turns=4)
    with pytest.raises(RestorationError, match="quarter turns need voxels of the same size"):
        restore(oblong, prior, turns=8)
    with pytest.raises(RestorationError, match="choose 1, 2, 4, 8"):
        restore(oblong, prior, turns=3)
    with pytest.raises(RestorationError, match="take more draws"):
        restore(oblong, prior, turns=2, method="samples")


def test_out_of_memory_halves_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same and a warning says so; when nothing smaller helps, the error says what to do."""
    prior = make_prior()
    data = Volume.from_array(counts((150, 131)), "YX")
    whole = restore(data, prior).data.compute()
    real = Restorer._call
    limit = 140 * 150

    def call(self: Restorer, seen: torch.Tensor, *rest: object) -> torch.Tensor:
        if seen.shape[-1] * seen.shape[-2] > limit:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 123 bytes")
        return real(self, seen, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Restorer, "_call", call)
    with pytest.warns(TileWarning) as said:
        result = restore(data, prior).data.compute()
    assert "out of memory on cpu with a tile of 1 x 150 x 131 voxels: halved" in str(said[0].message)
    assert len(said) == 2  # once for each size that did not fit, not for every tile
    np.testing.assert_allclose(result, whole, rtol=1e-5)
    limit = 10
    with pytest.warns(TileWarning), pytest.raises(MemoryError, match=r"even the smallest tile.*close other programs"):
        restore(data, prior).data.compute()


def test_the_mean_is_preserved() -> None:
    """Law 5: a trained prior neither makes nor loses light, at low counts either."""
    from napari_ambient import TrainConfig, train

    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.linspace(0, 4 * np.pi, 96),) * 2, indexing="ij")
    clean = 1.5 * (1 + np.sin(y) * np.sin(x)) + 0.2
    volume = Volume.from_array((100 + 2 * rng.poisson(clean, (4, 96, 96))).astype(np.uint16), "TYX")
    config = TrainConfig(steps=250, batch=4, patch=(64, 64), precision="float32", held_out=0)
    for form in ("thinning", "gaussian"):
        prior = train(volume, NOISE, config=replace(config, form=form))  # type: ignore[arg-type]
        restored = restore(volume, prior).data.compute()
        signal = volume.data.mean().compute() - 100
        # the mean of 4 × 96² counts is itself known to 2·√(1.7/36864)/3.4 = 0.4 %
        assert (restored.mean() - 100) / signal == pytest.approx(1, abs=0.03), form
        assert ((restored - (100 + 2 * clean)) ** 2).mean() < 0.25 * 4 * clean.mean(), form


def test_lazy_and_with_provenance(tmp_path: object) -> None:
    """Nothing is read before it is asked for; metadata stays, and the history names the prior."""
    reads = []

    def block(block_info: dict | None = None) -> np.ndarray:
        location = block_info[None]["array-location"]  # type: ignore[index]
        reads.append(location)
        return np.full([b - a for a, b in location], 104, np.uint16)

    data = da.map_blocks(block, chunks=((1,) * 4, (64,), (64,)), dtype=np.uint16, meta=np.empty((0, 0, 0), np.uint16))
    source = Volume.from_array(data, "TYX", voxel_size=(0.1, 0.1), name="cells").with_history({"action": "crop"})
    prior = make_prior()
    result = restore(source, prior)
    assert not reads
    result.data[2].compute(scheduler="synchronous")
    assert [r[0] for r in reads] == [(2, 3)]
    assert (result.axes, result.scale, result.units) == (source.axes, source.scale, source.units)
    assert result.history[0]["action"] == "crop"
    record = result.history[-1]
    assert record["prior_sha256"] == prior.sha256
    assert record["noise"][0]["gain"] == 2.0
    path = save_volume(tmp_path / "out.ome.tif", result)  # type: ignore[operator]
    assert path.exists()


def test_input_type_rounds_clips_and_counts() -> None:
    """`dtype="input"` gives the input's type; what does not fit is clipped and counted."""
    noise = NoiseModel(gain=2.0, intercept=4.0)  # zero below 0: restored values may be negative
    prior = make_prior(noise=noise)
    data = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    exact = restore(Volume.from_array(data, "YX"), prior).data.compute()
    clipping = Clipping()
    result = restore(Volume.from_array(data, "YX"), prior, dtype="input", clipping=clipping).data.compute()
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.clip(np.rint(exact), 0, 255))
    assert clipping.below == (np.rint(exact) < 0).sum()
    assert clipping.above == (np.rint(exact) > 255).sum()
    assert clipping.above + clipping.below > 0
    assert "clipped" in clipping.describe()
    assert exact.dtype == np.float32


def test_hot_pixels_are_looked_past() -> None:
    """What a hot pixel holds changes nothing anywhere."""
    hot = np.zeros((40, 40), bool)
    hot[10, 10] = hot[11, 10] = hot[0, 0] = True
    prior = make_prior(noise=replace(NOISE, hot_pixels=hot))
    data = counts((40, 40))
    first = restore(Volume.from_array(data, "YX"), prior).data.compute()
    data[hot] = 60000
    np.testing.assert_array_equal(restore(Volume.from_array(data, "YX"), prior).data.compute(), first)


def test_the_tile_follows_the_memory() -> None:
    """Less memory, smaller tiles, never below one stride; more memory, the whole volume."""
    volume = Volume.from_array(da.zeros((4000, 4000), dtype=np.uint16), "YX")
    prior = make_prior()
    restorer = Restorer(volume, prior, (NOISE,), np.dtype(np.float32), torch.device("cpu"))
    sizes = [plan_tile(restorer, free) for free in (2**20, 2**28, 2**31, 2**40)]
    areas = [a * b * c for a, b, c in sizes]
    assert areas == sorted(areas)
    assert all(min(s[1:]) >= 8 and not any(n % 8 for n in s[1:]) for s in sizes)
    assert areas[-1] > areas[0]


def test_what_does_not_fit_is_refused() -> None:
    """NaN, maps of another camera, channels, dimensions, unknown choices."""
    prior = make_prior()
    image = Volume.from_array(counts((40, 40)), "YX")
    broken = image.data.compute().astype(np.float32)
    broken[3, 3] = np.nan
    with pytest.raises(RestorationError, match="NaN or infinite values in T=0, C=0"):
        restore(Volume.from_array(broken, "YX"), prior).data.compute()
    mapped = replace(NOISE, gain=np.full((8, 8), 2.0), intercept=np.full((8, 8), -200.0))
    with pytest.raises(RestorationError, match=r"gain map is for frames of \(8, 8\) pixels"):
        restore(image, prior, noise=mapped)
    with pytest.warns(RestorationWarning, match="64 hot pixels are known for frames"):
        restore(image, prior, noise=replace(NOISE, hot_pixels=np.ones((8, 8), bool)))
    with pytest.raises(RestorationError, match="2 noise models for 1 channels"):
        restore(image, prior, noise=[NOISE, NOISE])
    with pytest.raises(RestorationError, match="the prior is 3D"):
        restore(image, make_prior(SOLID))
    with pytest.raises(RestorationError, match="choose one of mean, samples, amortised"):
        restore(image, prior, method="magic")  # type: ignore[arg-type]
    with pytest.raises(RestorationError, match="choose float32 or input"):
        restore(image, prior, dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not available here"):
        restore(image, prior, device="cuda:7")
    two = replace(prior, denoiser=Denoiser(UNet(FLAT), [Scale(1, 1), Scale(1, 1)]))
    with pytest.raises(RestorationError, match="the prior has 2 channels"):
        restore(Volume.from_array(counts((3, 40, 40)), "CYX"), two, noise=NOISE)


def test_workers_give_the_same_voxels() -> None:
    """Law 7: dask's threads restore the same as one after another."""
    volume = Volume.from_array(counts((4, 60, 60)), "TYX")
    result = restore(volume, make_prior(), tile=(1, 32, 32)).data
    with dask.config.set(scheduler="threads", num_workers=4):
        threaded = result.compute()
    np.testing.assert_allclose(threaded, result.compute(scheduler="synchronous"), rtol=1e-5)
