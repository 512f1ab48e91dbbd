"""Draws: the same whatever the tiles (law 7), right for an exact denoiser, resumed, in the volume's units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_ambient import restore, uncertainty
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.moments import Moments
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.operators import Blur, Downsample, Mask
from napari_ambient.posterior import Problem
from napari_ambient.prior import Prior, PriorError, Record
from napari_ambient.recorruption import Thinning, stabilise
from napari_ambient.restorer import RestorationError, RestorationWarning
from napari_ambient.sampling import LONGEST, keyed_noise, posterior_draw
from napari_ambient.uncertainty import work_folder
from napari_ambient.volumes import Volume, open_volume, save_volume

NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
FLAT = UNetArguments(widths=(8, 8, 8))
SLICES = UNetArguments(widths=(8, 8), strides=((2, 2), (2, 2)), channels=3)
SOLID = UNetArguments(dims=3, widths=(6, 6), strides=((1, 2, 2), (2, 2, 2)))
CONFIG = {"steps": 3, "below": "virtual_exposures", "below_steps": 3}


def make_prior(arguments: UNetArguments = FLAT, *, form: str = "thinning") -> Prior:
    """Give a network random weights, too small to throw a draw far off."""
    torch.manual_seed(0)
    network = UNet(arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, [Scale(3.5, 1.2)])
    denoiser.requires_grad_(False)
    record = Record("ambient", form, "TYX", {}, config=CONFIG, step=6)  # type: ignore[arg-type]
    return Prior(denoiser, (NOISE,), record)


def counts(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return (100 + 2 * np.random.default_rng(seed).poisson(4, shape)).astype(np.uint16)


@pytest.mark.parametrize(
    ("arguments", "shape", "tiles"),
    [
        (FLAT, (2, 75, 66), [(1, 32, 40), (2, 16, 66)]),
        (SLICES, (5, 40, 36), [(2, 20, 16), (5, 8, 36)]),
        (SOLID, (5, 28, 30), [(4, 16, 12), (2, 28, 8)]),
    ],
    ids=["2D", "2.5D", "3D"],
)
@pytest.mark.parametrize("form", ["thinning", "gaussian"])
def test_tiled_equals_whole(
    arguments: UNetArguments, shape: tuple[int, ...], tiles: list[tuple[int, int, int]], form: str
) -> None:
    """Law 7 for draws: the same voxels for any tile; another seed gives others."""
    prior = make_prior(arguments, form=form)
    volume = Volume.from_array(counts(shape), "ZYX")
    options = {"method": "samples", "draws": 2, "steps": 4, "outputs": ["draws"]}
    whole = restore(volume, prior, tile=(999, 999, 999), **options).data.compute()
    assert whole.shape == (2, *shape)
    assert np.abs(whole[0] - whole[1]).mean() > 0.1
    for tile in tiles:
        tiled = restore(volume, prior, tile=tile, **options).data.compute()
        # a photon drawn differently, where rounding moves a rate past a whole count, is worth 2/16 counts there
        assert np.mean(np.abs(tiled - whole) > 1e-4 * whole.std()) < 1e-4
    other = restore(volume, prior, seed=1, **options).data.compute()
    assert np.abs(other - whole).mean() > 0.1


def test_independent_tiles_would_show() -> None:
    """Negative control: the upper half drawn alone differs, because it lacks what lies below."""
    prior = make_prior()
    volume = Volume.from_array(counts((96, 64)), "YX")
    upper = Volume.from_array(counts((96, 64))[:48], "YX")
    options = {"method": "samples", "draws": 1, "steps": 4, "outputs": ["draws"]}
    whole = restore(volume, prior, **options).data.compute()
    alone = restore(upper, prior, **options).data.compute()
    assert np.abs(whole[0, 40:48] - alone[0, 40:48]).max() > 0.01


def test_noise_belongs_to_its_place() -> None:
    """A plane's normals do not depend on the planes drawn with it; steps, draws and planes differ."""
    like = torch.empty(1, 1, 3, 8, 9)
    stack = keyed_noise((5, 0, 0, 1))(2, like)
    alone = keyed_noise((5, 0, 0, 1), first_plane=1)(2, like[:, :, :1])
    assert torch.equal(stack[:, :, 1], alone[:, :, 0])
    for other in (keyed_noise((5, 0, 0, 2))(2, like), keyed_noise((5, 0, 0, 1))(3, like)):
        assert not torch.equal(stack, other)
    assert not torch.equal(stack[:, :, 0], stack[:, :, 1])


def test_exact_denoiser_gives_the_posterior() -> None:
    """Gamma-Poisson: draws have mean (k + a)/(b + 1) and variance (k + a)/(b + 1)² at every voxel."""
    a, b = 3.0, 1.0
    form = Thinning()
    g = torch.Generator().manual_seed(0)
    k = torch.poisson(torch.full((1, 1, 1, 200, 300), 3.0), generator=g)

    def exact(x_t: Tensor, sigma: Tensor, **_: object) -> Tensor:
        p = float(sigma[0]) ** -2
        reached = p * x_t.square() / 4 - 0.375
        return form.scaled((reached + a) / (p + b))

    result = None
    for result in posterior_draw(form, exact, k, None, steps=18, noise=keyed_noise((0,))):  # noqa: B007
        pass
    assert result is not None
    for value in (1.0, 3.0, 5.0):
        drawn = result[k == value]
        mean, variance = (value + a) / (1 + b), (value + a) / (1 + b) ** 2
        # the end of a finite exposure: D(K) at P has lost (1 + b)/(P + b) of the variance
        left = variance * (1 - (1 + b) / (LONGEST + b))
        assert float(drawn.mean()) == pytest.approx(mean, rel=0.01)
        assert float(drawn.var()) == pytest.approx(left, rel=0.06)


def test_outputs_are_channels_in_counts() -> None:
    """Mean, error bar and quantiles belong together; times gain and plus zero; every channel has its own."""
    prior = replace(make_prior(), denoiser=make_prior().denoiser)
    volume = Volume.from_array(counts((2, 2, 40, 36)), "TCYX", channel_names=["dna", "actin"])
    given = restore(volume, prior, method="samples", draws=4, steps=3, outputs=["mean", "std", "q50", "draws"])
    assert given.axes == "TCYX"
    assert given.shape == (2, 14, 40, 36)
    assert given.channel_names[:4] == ("dna mean", "dna std", "dna q50", "dna draw 1")
    assert given.channel_names[7] == "actin mean"
    data = given.data.compute()
    draws = data[:, 3:7]
    for image, own in zip(data, draws, strict=True):  # every image by itself
        moments = Moments()
        for draw in own:
            moments.add(draw)
        assert moments.correlation < -0.3  # the second is made of the first one's noise, negated
        np.testing.assert_allclose(image[0], moments.mean(), rtol=1e-5)
        np.testing.assert_allclose(image[1], moments.std(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(data[:, 2], np.median(draws, axis=1), rtol=1e-5)
    assert given.history[-1]["draws"] == 4
    assert given.history[-1]["seed"] == 0
    plain = restore(Volume.from_array(counts((40, 36)), "YX"), prior, method="samples", draws=2, steps=3)
    assert plain.axes == "CYX"
    assert plain.channel_names == ("mean", "std")


def test_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished draws are not drawn again; draws of another seed, prior or image are never taken up."""
    from napari_ambient import sampling

    prior = make_prior()
    volume = Volume.from_array(counts((3, 40, 36)), "TYX", name="a")
    options = {"method": "samples", "draws": 2, "steps": 3}
    expected = restore(volume, prior, **options).data.compute()
    work = work_folder(tmp_path / "out.tif")
    calls = 0
    original = sampling.TiledDenoiser.__call__

    def counting(self: sampling.TiledDenoiser, *arguments: Tensor, **condition: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise KeyboardInterrupt
        return original(self, *arguments, **condition)

    monkeypatch.setattr(sampling.TiledDenoiser, "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        restore(volume, prior, work=work, **options).data.compute(scheduler="synchronous")
    assert len(list(work.glob("*.npy"))) == 3  # three draws of three calls, and the fourth was cut
    calls = 100
    again = restore(volume, prior, work=work, **options).data.compute(scheduler="synchronous")
    assert calls == 109
    np.testing.assert_array_equal(again, expected)
    other = Volume.from_array(counts((3, 40, 36), seed=5), "TYX", name="a")
    for given, more in ((other, {}), (volume, {"seed": 3}), (volume, {"steps": 4})):
        calls = 100
        mine = restore(given, prior, work=work, **{**options, **more}).data.compute(scheduler="synchronous")
        assert calls > 110
        np.testing.assert_array_equal(mine, restore(given, prior, **{**options, **more}).data.compute())


def test_draws_kept_behind_one_operator_are_not_those_of_another(tmp_path: Path) -> None:
    """A run through an operator that was killed goes on with what it has, and with nothing made otherwise."""
    prior, work = make_prior(), work_folder(tmp_path / "out.tif")
    volume = Volume.from_array(counts((20, 24)), "YX")
    options = {"method": "samples", "draws": 2, "steps": 2}
    masks = [Mask(np.eye(20, 24) == 0), Mask(np.eye(20, 24, 1) == 0)]

    def calls(**more: object) -> int:
        told: list[tuple[int, int]] = []
        made = restore(volume, prior, work=work, watch=lambda *seen: told.append(seen), **options, **more)
        np.testing.assert_array_equal(made.data.compute(), restore(volume, prior, **options, **more).data.compute())
        return len({done for done, _ in told} - {0})

    first = calls(operator=masks[0])
    kept = sorted(work.glob("*.npy"))
    assert len(kept) == 2
    kept[1].unlink()  # as if it had been killed before the second draw
    assert calls(operator=masks[0]) == first / 2 + 1  # the draw that is there is told of once
    for more in ({"operator": masks[1]}, {"operator": Blur(np.full((3, 3), 1 / 9))}, {}):
        before = len(list(work.glob("*.npy")))
        calls(**more)
        assert len(list(work.glob("*.npy"))) == before + 2


def test_through_an_operator() -> None:
    """Holes, blur and coarser pixels: shapes, voxel size, and the same draws whatever the tiles."""
    prior = make_prior()
    data = counts((40, 36)).astype(np.float32)
    data[10:20, 10:20] = np.nan
    volume = Volume.from_array(data, "YX", voxel_size={"Y": 0.2, "X": 0.2})
    options = {"method": "samples", "draws": 2, "steps": 3, "outputs": ["mean", "std"]}
    blur = Blur(np.full((3, 3), 1 / 9))
    whole = restore(volume, prior, operator=blur, **options).data.compute()
    assert whole.shape == (2, 40, 36)
    assert np.isfinite(whole).all()
    tiled = restore(volume, prior, operator=blur, tile=(1, 16, 24), **options).data.compute()
    np.testing.assert_allclose(tiled, whole, rtol=1e-3, atol=1e-3)
    # what was not measured is known less well
    assert whole[1, 13:17, 13:17].mean() > 1.2 * whole[1, 25:, 25:].mean()
    finer = restore(volume, prior, operator=Downsample(2), **options)
    assert finer.shape == (2, 80, 72)
    assert finer.voxel_size["X"] == pytest.approx(0.1)
    assert finer.history[-1]["operator"]
    assert finer.data.compute().shape == (2, 80, 72)
    with pytest.raises(RestorationError, match="one network call cannot undo"):
        restore(volume, prior, operator=blur)
    holes = restore(volume, prior, **options).data.compute()  # NaN alone are holes too
    assert np.isfinite(holes).all()
    with pytest.raises(RestorationError, match="NaN or infinite"):
        restore(volume, prior).data.compute()
    with pytest.raises(RestorationError, match="no error bar"):
        restore(volume, prior, operator=blur, posterior="dps", **options)
    for method in ("mmps", "dps", "diffpir", "red_diff"):
        mean = {**options, "outputs": ["mean"]}
        assert np.isfinite(restore(volume, prior, operator=blur, posterior=method, **mean).data.compute()).all()
    with pytest.raises(RestorationError, match="reaches over planes"):
        restore(volume, prior, operator=Blur(np.full((3, 3, 3), 1 / 27)), **options)


def test_new_images() -> None:
    """Any size, the same from the seed whatever the tiles; a prior that knows nothing below refuses."""
    prior = make_prior()
    images = prior.sample((50, 44), count=2, steps=5, seed=3)
    assert images.shape == (2, 50, 44)
    assert np.isfinite(images).all()
    tiled = prior.sample((50, 44), count=1, steps=5, seed=3, tile=(1, 16, 24))
    np.testing.assert_allclose(tiled[0], images[0], rtol=1e-4)
    assert prior.sample((3, 20, 20), steps=3).shape == (1, 3, 20, 20)
    with pytest.raises(PriorError, match="--below auto"):
        replace(prior, record=replace(prior.record, config={})).sample((8, 8))
    with pytest.raises(PriorError, match="give \\(Y, X\\)"):
        prior.sample((8,))
    with pytest.raises(PriorError, match="one plane"):
        make_prior(SOLID).sample((32, 32))


def test_one_channel_of_a_prior() -> None:
    """It restores as that channel of the whole does; by number or name."""
    one = make_prior()
    denoiser = Denoiser(UNet(FLAT), [Scale(3.5, 1.2), Scale(2.5, 1.0)])
    state = {**one.denoiser.state_dict(), "scales": denoiser.state_dict()["scales"]}
    denoiser.load_state_dict(state)
    denoiser.requires_grad_(False)
    record = replace(one.record, channel_names=("dna", "actin"))
    both = Prior(denoiser, (NOISE, NOISE), record)
    volume = Volume.from_array(counts((2, 40, 36)), "CYX", channel_names=["dna", "actin"])
    whole = restore(volume, both).data.compute()
    alone = restore(volume.channel(1), both.channel("actin")).data.compute()
    np.testing.assert_allclose(alone, whole[1], rtol=1e-5)
    with pytest.raises(PriorError, match="choose 0 to 1"):
        both.channel("gfp")


@pytest.mark.parametrize("operator", [None, Blur(np.full((3, 3), 1 / 9))], ids=["noise", "blur"])
def test_a_channel_taken_out_has_the_draws_of_the_whole(tmp_path: Path, operator: Blur | None) -> None:
    """Noise belongs to the channel's number in the file, whether it is restored alone or with the others."""
    prior = make_prior()
    path = save_volume(tmp_path / "two.ome.tif", Volume.from_array(counts((2, 40, 36)), "CYX"))
    options = {"method": "samples", "draws": 2, "steps": 3, "outputs": ["draws"], "operator": operator}
    whole = restore(open_volume(path), prior, **options).data.compute()
    for c in (0, 1):
        for volume in (open_volume(path, channel=c), open_volume(path).channel(c)):
            alone = restore(volume, prior, **options)
            np.testing.assert_array_equal(alone.data.compute(), whole[2 * c : 2 * c + 2])
            assert alone.history[-1]["channels"] == [c]
    # negative control: as the first channel of its own file it gets the first one's noise
    other = Volume.from_array(np.asarray(open_volume(path, channel=1).data), "YX")
    assert np.abs(restore(other, prior, **options).data.compute() - whole[2:]).max() > 0.1


def test_planes_with_their_neighbours_behind_an_operator_are_warned_of() -> None:
    """2.5D draws through a blur or holes are overconfident: said, and kept in the history; not so without them."""
    slices, blur = make_prior(SLICES), Blur(np.full((3, 3), 1 / 9))
    volume = Volume.from_array(counts((4, 20, 24)), "ZYX")
    options = {"method": "samples", "draws": 2, "steps": 2}
    with pytest.warns(RestorationWarning, match=r"2\.5D.*too narrow.*--dims 2D or 3D"):
        result = restore(volume, slices, operator=blur, **options)
    assert "--dims 2D or 3D" in result.history[-1]["notes"][0]
    holed = np.asarray(volume.data).astype(np.float32)
    holed[1, 3, 3] = np.nan
    with pytest.warns(RestorationWarning, match="too narrow"):
        restore(Volume.from_array(holed, "ZYX"), slices, **options).data.compute(scheduler="synchronous")
    # warnings are errors here: these give none
    assert "notes" not in restore(volume, slices, **options).history[-1]
    for arguments in (FLAT, SOLID):
        assert "notes" not in restore(volume, make_prior(arguments), operator=blur, **options).history[-1]


def test_a_psf_wider_than_the_image_and_images_without_data() -> None:
    """The first is warned of; the second has nothing to restore, and is refused with its place."""
    prior = make_prior()
    volume = Volume.from_array(counts((2, 20, 24)), "TYX")
    options = {"method": "samples", "draws": 2, "steps": 2}
    psf = np.full((1, 43), 1 / 43)
    restore(volume, prior, operator=Blur(psf), **options)
    psf = np.full((1, 49), 1 / 49)
    with pytest.warns(RestorationWarning, match=r"farther along X than the image is wide.*1 x 20 x 24"):
        restore(volume, prior, operator=Blur(psf), **options)
    empty = np.asarray(volume.data).astype(np.float32)
    empty[1] = np.nan
    for given, operator in ((Volume.from_array(empty, "TYX"), None), (volume, Mask(np.zeros((20, 24), bool)))):
        with pytest.raises(RestorationError, match=r"nothing was measured in T=\d, C=0, Z=0:1.*leave such images out"):
            restore(given, prior, operator=operator, **options).data.compute(scheduler="synchronous")
    empty[1, 3, 3] = 104
    restored = restore(Volume.from_array(empty, "TYX"), prior, **options).data.compute(scheduler="synchronous")
    assert np.isfinite(restored).all()


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message says what came, what is allowed and what to do."""
    prior = make_prior()
    image = Volume.from_array(counts((40, 40)), "YX")
    with pytest.raises(RestorationError, match="knows nothing below"):
        restore(image, replace(prior, record=replace(prior.record, config={})), method="samples")
    with pytest.raises(RestorationError, match="give 2 or more"):
        restore(image, prior, method="samples", draws=1)
    with pytest.raises(RestorationError, match="choose of mean, std"):
        restore(image, prior, method="samples", outputs=["median"])
    with pytest.raises(RestorationError, match="outputs is empty"):
        restore(image, prior, method="samples", outputs=[])
    monkeypatch.setattr("napari_ambient.uncertainty.free_memory", lambda _: 1000)
    with pytest.raises(MemoryError, match="crop the volume"):
        restore(image, prior, method="samples").data.compute()


@pytest.mark.parametrize(("here", "there"), [(2.5, 0.0), (0.5, 2.0), (1.0, 1.0)])
def test_the_read_noise_of_another_camera_is_allowed_for(
    here: float, there: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts k - Δ have the variance A λ + Δ, Δ = r² - A r²(prior); the light lies above the data's offset."""
    gain, offset, light = 2.0, 100.0, 7.0
    blur = Blur(np.full((3, 3), 1 / 9))
    trained = NoiseModel.from_camera(gain, offset, gain * there, photons=4.0)
    prior = replace(make_prior(), noise=(trained,))
    problems: list[Problem] = []

    def posterior(method: str, denoise: object, problem: Problem, **_: object) -> Iterator[tuple[int, Tensor]]:
        problems.append(problem)
        seen_as = light + there**2  # what the prior knows such light as
        yield 0, stabilise(torch.full_like(problem.counts, seen_as), 1.0)

    monkeypatch.setattr(uncertainty, "sample_posterior", posterior)
    monkeypatch.setattr(Thinning, "photons", lambda self, z: z.square() / 4 - 3 / 8)
    data = counts((24, 24)).astype(np.float32)
    noise = NoiseModel.from_camera(gain, offset, gain * here, photons=4.0)
    options = {"operator": blur, "method": "samples", "draws": 2, "steps": 2, "outputs": ["mean"]}
    result = restore(Volume.from_array(data, "YX"), prior, noise=noise, **options).data.compute()
    np.testing.assert_allclose(result, offset + gain * light, rtol=1e-5)
    k = (data - offset) / gain + here**2
    expected = blur.forward(torch.full((1, 1, 1, 24, 24), there**2))[0, 0, 0].numpy()
    np.testing.assert_allclose(problems[0].counts[0, 0, 0].numpy(), k - here**2 + expected, atol=1e-4)
    read = problems[0].likelihood.read_variance  # type: ignore[union-attr]
    np.testing.assert_allclose(np.broadcast_to(read, (1, 1, 1, 24, 24))[0, 0, 0], max(here**2 - there**2, 0), atol=1e-4)
    pixels = NoiseModel.from_camera(
        np.full((24, 24), gain), np.full((24, 24), offset), np.full((24, 24), gain * here), photons=4.0
    )
    mapped = restore(Volume.from_array(data, "YX"), prior, noise=pixels, **options).data.compute()
    np.testing.assert_allclose(mapped, result, rtol=1e-5)
    with pytest.raises(RestorationError, match="a map for every camera pixel"):
        restore(
            Volume.from_array(data, "YX"), prior, noise=pixels, **{**options, "operator": Downsample(2)}
        ).data.compute()
