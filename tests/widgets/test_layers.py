"""Layer → Volume → layer: every spatial attribute survives, and nothing is guessed silently."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from napari.layers import Image, Labels, Points, Shapes
from napari.layers.utils.stack_utils import stack_to_images

from napari_ambient import restore
from napari_ambient.volumes import Volume
from napari_ambient.widgets._layers import (
    METADATA,
    LayerError,
    channel_number,
    crop,
    describe_axes,
    known_axes,
    layer_arguments,
    mask_from_layer,
    possible_axes,
    rectangle,
    remember_axes,
    settle,
    show_in,
    volume_from_layer,
    voxel_size_of,
)
from test_uncertainty import make_prior

SPATIAL = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")


def rotation(degrees: float, ndim: int) -> np.ndarray:
    """Turn the last two axes."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(ndim)
    matrix[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def odd_layer(axes: str = "TZYX", **changes: Any) -> Image:
    """Make a layer in which no spatial attribute is the usual one."""
    shape = dict(zip("TCZYX", (3, 2, 4, 12, 10), strict=True))
    ndim = len(axes)
    affine = np.eye(ndim + 1)
    affine[-3:-1, -1] = (7.0, -2.0)
    affine[-2, -2] = 1.25
    units = {"T": "second", "C": "pixel", "Z": "um", "Y": "um", "X": "um"}
    shear = np.eye(ndim)
    shear[-2, -1] = 0.2
    arguments: dict[str, Any] = {
        "name": "odd",
        "scale": [{"T": 30.0, "C": 1.0, "Z": 0.5, "Y": 0.2, "X": 0.1}[axis] for axis in axes],
        "translate": np.arange(1.0, ndim + 1),
        "rotate": rotation(30, ndim),
        "shear": shear,
        "affine": affine,
        "units": [units[axis] for axis in axes],
        "axis_labels": [axis.lower() for axis in axes],
        "contrast_limits": (100, 900),
        "colormap": "green",
        "rgb": False,
    }
    data = np.random.default_rng(0).integers(0, 1000, [shape[axis] for axis in axes]).astype(np.uint16)
    return Image(data, **(arguments | changes))


def back(volume: Volume, like: Image | None, **kwargs: Any) -> Image:
    """Make the layer that the viewer would."""
    data, arguments = layer_arguments(volume, like, name="restored", **kwargs)
    return Image(data, **arguments)


def same(one: Image, other: Image, attribute: str) -> bool:
    """Compare a spatial attribute of two layers."""
    if attribute in ("units", "axis_labels"):
        return tuple(getattr(one, attribute)) == tuple(getattr(other, attribute))
    a, b = (np.asarray(getattr(layer, attribute)) for layer in (one, other))
    if attribute == "shear":  # napari shows an upper triangle as a vector
        n = one.ndim
        return np.allclose(_square(a, n), _square(b, other.ndim), atol=1e-12)
    return a.shape == b.shape and np.allclose(a, b, atol=1e-12)


def _square(shear: np.ndarray, ndim: int) -> np.ndarray:
    if shear.ndim == 2:
        return shear
    matrix = np.eye(ndim)
    matrix[np.triu_indices(ndim, 1)] = shear
    return matrix


def corners(layer: Image) -> np.ndarray:
    """World coordinates of the first and last voxel."""
    last = np.array(layer.data.shape) - 1
    return np.array([layer.data_to_world(np.zeros(layer.ndim)), layer.data_to_world(last)])


# --------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize("axes", ["YX", "ZYX", "TYX", "TZYX", "TCZYX", "ZCYX", "CTYX"])
@pytest.mark.parametrize("attribute", SPATIAL)
def test_every_spatial_attribute_survives(axes: str, attribute: str) -> None:
    layer = odd_layer(axes)
    result = back(volume_from_layer(layer), layer)
    assert same(layer, result, attribute), (getattr(layer, attribute), getattr(result, attribute))


@pytest.mark.parametrize("attribute", SPATIAL)
def test_a_result_without_its_source_fails_the_same_check(attribute: str) -> None:
    # the negative control: what is compared above differs from napari's defaults
    layer = odd_layer("TCZYX")
    assert not same(layer, Image(np.asarray(layer.data), rgb=False), attribute)


@pytest.mark.parametrize("axes", ["ZCYX", "CTYX", "TCZYX"])
def test_values_stay_where_they_were(axes: str) -> None:
    # the volume has its axes in another order than the layer; on the way back they take the layer's
    layer = odd_layer(axes)
    volume = volume_from_layer(layer)
    assert volume.axes == "".join(sorted(axes, key="TCZYX".index))
    np.testing.assert_array_equal(np.asarray(back(volume, layer).data), layer.data)


def test_contrast_and_colour_are_the_sources() -> None:
    layer = odd_layer()
    result = back(volume_from_layer(layer), layer)
    assert tuple(result.contrast_limits) == (100, 900)
    assert result.colormap.name == "green"
    assert result.name == "restored"


def test_default_labels_stay_default() -> None:
    layer = Image(np.zeros((4, 12, 10)))
    result = back(volume_from_layer(layer, axes="ZYX"), layer, axes="ZYX")
    assert result.axis_labels == layer.axis_labels
    assert known_axes(result) == "ZYX"  # all the same


def test_a_layer_without_source_has_the_volumes_steps() -> None:
    volume = Volume.from_array(np.zeros((4, 12, 10)), "ZYX", voxel_size={"Z": None, "Y": 0.2, "X": 0.1})
    layer = back(volume, None)
    assert layer.scale.tolist() == [1, 0.2, 0.1]
    assert [str(unit) for unit in layer.units] == ["pixel", "micrometer", "micrometer"]
    assert layer.axis_labels == ("z", "y", "x")
    again = volume_from_layer(layer)
    assert (again.axes, again.voxel_size) == (volume.axes, volume.voxel_size)


# --------------------------------------------------------------------------------------- parts of a layer


def test_a_region_lies_where_it_was_cut_out() -> None:
    layer = odd_layer("TZYX")
    region = {"Z": slice(1, 3), "Y": slice(4, 9), "X": slice(2, 10)}
    result = back(crop(volume_from_layer(layer), region), layer, region=region)
    for index in [(0, 0, 0, 0), (2, 1, 4, 7)]:
        there = np.add(index, (0, 1, 4, 2))
        assert result.data[index].compute() == layer.data[tuple(there)]
        np.testing.assert_allclose(result.data_to_world(index), layer.data_to_world(there), atol=1e-12)
    # without the region it would not
    moved = back(crop(volume_from_layer(layer), {"Z": slice(1, 3)}), layer, region={"Z": slice(0, 2)})
    assert not np.allclose(moved.data_to_world((0,) * 4), layer.data_to_world((0, 1, 0, 0)))


def test_a_region_of_the_last_axes_may_go_without_names() -> None:
    layer = odd_layer("TZYX")
    part = crop(volume_from_layer(layer), {"Y": slice(4, 9), "X": slice(2, 10)})
    result = back(part, layer, region=(slice(4, 9), slice(2, 10)))
    np.testing.assert_allclose(result.data_to_world((0,) * 4), layer.data_to_world((0, 0, 4, 2)), atol=1e-12)


def test_one_channel_stays_at_its_slider_position() -> None:
    layer = odd_layer("TCZYX")
    volume = volume_from_layer(layer).channel(1)
    result = back(volume, layer, region={"C": slice(1, 2)})
    assert result.data.shape == (3, 1, 4, 12, 10)
    np.testing.assert_allclose(result.data_to_world((0,) * 5), layer.data_to_world((0, 1, 0, 0, 0)), atol=1e-12)
    np.testing.assert_array_equal(np.asarray(result.data)[:, 0], np.asarray(layer.data)[:, 1])
    assert known_axes(result) == "TCZYX"


def test_one_time_point_without_a_region_is_shown_at_all_times() -> None:
    layer = odd_layer("TZYX")
    volume = volume_from_layer(layer)
    plain = volume.replace(data=volume.data[1], axes="ZYX")
    result = back(plain, layer)
    assert result.data.shape == (4, 12, 10)
    np.testing.assert_allclose(result.data_to_world((1, 2, 3)), layer.data_to_world((0, 1, 2, 3))[1:], atol=1e-12)


def test_new_axes_come_first() -> None:
    layer = odd_layer("ZYX")
    volume = volume_from_layer(layer)
    draws = volume.replace(data=da.stack([volume.data] * 5), axes="CZYX", channel_names=tuple("abcde"))
    result = back(draws, layer)
    assert result.data.shape == (5, 4, 12, 10)
    assert result.axis_labels == ("c", "z", "y", "x")
    assert str(result.units[0]) == "pixel"
    np.testing.assert_allclose(result.data_to_world((3, 1, 2, 4))[1:], layer.data_to_world((1, 2, 4)), atol=1e-12)


def test_finer_voxels_cover_the_same_field() -> None:
    layer = odd_layer("ZYX")
    volume = volume_from_layer(layer)
    fine = volume.replace(data=volume.data.repeat(2, axis=1).repeat(2, axis=2))
    result = back(fine, layer)
    # the two finer voxels of one coarse voxel lie on both sides of its middle
    middle = (np.array(result.data_to_world((1, 4, 6))) + result.data_to_world((1, 5, 7))) / 2
    np.testing.assert_allclose(middle, layer.data_to_world((1, 2, 3)), atol=1e-12)


def test_a_result_of_another_layer_is_refused() -> None:
    layer = odd_layer("ZYX")
    with pytest.raises(LayerError, match=r"7 voxels along Y, where odd has 12"):
        layer_arguments(Volume.from_array(np.zeros((4, 7, 10)), "ZYX"), layer, name="x")


def test_provenance_goes_along() -> None:
    layer = odd_layer("ZYX")
    volume = volume_from_layer(layer).with_history({"action": "restore", "seed": 3})
    result = back(volume, layer)
    assert result.metadata["napari_ambient"]["provenance"] == {"action": "restore", "seed": 3}
    assert volume_from_layer(result).history == ({"action": "restore", "seed": 3},)


# --------------------------------------------------------------------------------------- layer → volume


def two_channels() -> Volume:
    counts = 100 + 2 * np.random.default_rng(5).poisson(6.0, (2, 24, 20))
    return Volume.from_array(counts.astype(np.uint16), "CYX", channel_names=("actin", "tubulin"), name="two")


def test_a_channel_keeps_its_number_in_the_file() -> None:
    """File → layer → volume, and through a result that lies on the layer; of a first channel nothing need be said."""
    for c in (0, 1):
        layer = back(two_channels().channel(c), None)
        assert layer.metadata[METADATA].get("first_channel", 0) == volume_from_layer(layer).first_channel == c
        assert volume_from_layer(back(volume_from_layer(layer), layer)).first_channel == c
    layer = back(two_channels(), None)
    assert volume_from_layer(layer).first_channel == 0
    assert volume_from_layer(layer).channel(1).first_channel == 1
    cut = crop(two_channels(), {"C": slice(1, 2)})
    assert (cut.first_channel, cut.channel_names) == (1, ("tubulin",))


@pytest.mark.parametrize("axes", ["CYX", "CZYX", "TCYX", "CTZYX"])
def test_a_part_of_a_split_stack_knows_what_it_is(axes: str) -> None:
    """By napari's own splitting, once or twice; the values are those of the volume's channel."""
    sizes = {"C": 3, "T": 2, "Z": 4, "Y": 12, "X": 10}
    counts = np.random.default_rng(6).poisson(6.0, [sizes[axis] for axis in axes]).astype(np.uint16)
    names = ("dna", "actin", "tubulin")
    volume = Volume.from_array(counts, axes, channel_names=names, name="cell", voxel_size={"Y": 0.2, "X": 0.2})
    volume = volume.replace(first_channel=1)
    data, arguments = layer_arguments(volume, None, name="cell layer 7", axes=None)
    order = arguments["metadata"][METADATA]["axes"]
    parts = stack_to_images(Image(np.asarray(data), **arguments), 0)
    if order[0] == "T":
        assert known_axes(parts[1]) == order[1:]
        assert volume_from_layer(parts[1]).channel_names == names
        parts = stack_to_images(parts[1], 0)
        order = order[1:]
        volume = volume.replace(data=volume.data[1:2])
    for c, part in enumerate(parts):
        for _ in range(2):
            found = volume_from_layer(part)
            assert (found.axes, found.first_channel, found.channel_names) == (order[1:], 1 + c, names[c : c + 1])
            assert channel_number(part) == 1 + c
            assert found.voxel_size["X"] == 0.2
            np.testing.assert_array_equal(found.data, volume.channel(c).data.reshape(found.shape))
            settle(part)
            part.name = "fibres"  # known from now on, whatever it is named


def test_a_part_that_was_renamed_is_asked_for() -> None:
    data, arguments = layer_arguments(two_channels(), None, name="cell")
    for name, axes in (("fibres", None), ("layer 1", None), ("x layer 1 [1]", "YX"), ("x layer 1", "YX")):
        part = stack_to_images(Image(np.stack([np.asarray(data)] * 2), name="x"), 0)[1]
        part.metadata[METADATA] = {**arguments["metadata"][METADATA], "axes": "TCYX"}
        part.name = name
        assert known_axes(part) == (None if axes is None else f"C{axes}")
    whole = Image(np.asarray(data), **{**arguments, "name": "cell layer 1"})
    assert known_axes(whole) == "CYX"  # nothing was split off
    assert channel_number(whole) is None


def test_the_layer_of_a_channel_has_the_draws_of_the_file() -> None:
    """What is drawn at random belongs to the channel's number in the file, though the layer holds it alone."""
    prior = make_prior()
    options: dict[str, Any] = {"method": "samples", "draws": 2, "steps": 2, "outputs": ["draws"], "device": "cpu"}
    whole = restore(two_channels(), prior, **options).data.compute()
    layer = back(two_channels().channel(1), None)
    np.testing.assert_array_equal(restore(volume_from_layer(layer), prior, **options).data.compute(), whole[2:])
    # negative control: a layer that does not say which channel it is gets the noise of the first
    del layer.metadata[METADATA]["first_channel"]
    unsaid = restore(volume_from_layer(layer), prior, **options).data.compute()
    assert np.abs(unsaid - whole[2:]).max() > 0.1


def test_a_volume_has_micrometres_and_seconds() -> None:
    layer = odd_layer("TZYX", affine=None, units=("ms", "nm", "nm", "nm"), scale=(250, 300, 100, 100))
    volume = volume_from_layer(layer)
    assert volume.voxel_size == {"Z": 0.3, "Y": pytest.approx(0.1), "X": pytest.approx(0.1)}
    assert (volume.scale["T"], volume.units["T"]) == (250, "millisecond")
    assert volume.name == "odd"


def test_an_affine_that_stretches_counts() -> None:
    affine = np.diag([2.0, 3.0, 1.0])
    layer = Image(np.zeros((8, 8)), scale=(0.1, 0.1), units=("um", "um"), affine=affine)
    assert voxel_size_of(layer, "YX") == {"Y": pytest.approx(0.2), "X": pytest.approx(0.3)}


@pytest.mark.parametrize(
    ("scale", "expected"),
    [((1, 1, 1), (None, None, None)), ((3, 1, 1), (None, None, None)), ((0.3, 0.1, 0.1), (0.3, 0.1, 0.1))],
)
def test_a_scale_of_one_pixel_is_no_voxel_size(scale: tuple[float, ...], expected: tuple[float | None, ...]) -> None:
    layer = Image(np.zeros((4, 8, 8)), scale=scale)
    assert tuple(voxel_size_of(layer, "ZYX").values()) == pytest.approx(expected)


def test_the_users_voxel_size_goes_before_the_layers() -> None:
    volume = volume_from_layer(odd_layer("ZYX"), voxel_size={"Z": 0.7, "Y": None})
    assert volume.voxel_size["Z"] == 0.7
    assert volume.voxel_size["Y"] is None
    assert volume.voxel_size["X"] is not None


@pytest.mark.parametrize(
    ("metadata", "labels", "axes"),
    [
        ({}, None, None),
        ({}, ("z", "y", "x"), "ZYX"),
        ({}, ("Time", "row", "column"), "TYX"),
        ({}, ("z", "y", "q"), None),
        ({}, ("x", "y", "z"), None),
        ({"axes": "CYX"}, ("z", "y", "x"), "CYX"),
        ({"axes": "QYX"}, ("z", "y", "x"), "ZYX"),
        ({"axes": "TZYX"}, None, None),
        ({"napari_ambient": {"axes": "TYX"}, "axes": "CYX"}, None, "TYX"),
    ],
)
def test_where_axes_are_known_from(metadata: dict[str, Any], labels: tuple[str, ...] | None, axes: str | None) -> None:
    layer = Image(np.zeros((4, 8, 8)), metadata=metadata, axis_labels=labels)
    assert known_axes(layer) == axes
    assert sorted(possible_axes(layer)) == ["CYX", "TYX", "ZYX"]
    if axes is not None:
        assert possible_axes(layer)[0] == axes


def test_unknown_axes_are_asked_for_not_guessed() -> None:
    layer = Image(np.zeros((4, 8, 8)), name="stack")
    with pytest.raises(LayerError, match=r"stack \(4 × 8 × 8\) does not say .* choose one of ZYX, TYX, CYX"):
        volume_from_layer(layer)
    assert volume_from_layer(layer, axes="TYX").axes == "TYX"
    remember_axes(layer, "TYX")
    assert volume_from_layer(layer).axes == "TYX"


def test_a_plane_needs_no_question() -> None:
    assert volume_from_layer(Image(np.zeros((8, 8)))).axes == "YX"


def test_four_dimensions_may_come_in_any_order() -> None:
    assert possible_axes(Image(np.zeros((2, 3, 8, 8))))[:3] == ["TZYX", "CZYX", "TCYX"]
    assert "ZCYX" in possible_axes(Image(np.zeros((2, 3, 8, 8))))


def test_six_dimensions_are_refused() -> None:
    with pytest.raises(LayerError, match="6 dimensions"):
        possible_axes(Image(np.zeros((1, 1, 1, 1, 8, 8)), rgb=False))


def test_colour_pictures_and_other_layers_are_refused() -> None:
    with pytest.raises(LayerError, match="colour picture"):
        volume_from_layer(Image(np.zeros((8, 8, 3), np.uint8), rgb=True))
    with pytest.raises(LayerError, match="Points layer"):
        volume_from_layer(Points(np.zeros((1, 2))))  # type: ignore[arg-type]


def test_of_a_pyramid_the_finest_level() -> None:
    fine = np.random.default_rng(0).random((64, 64))
    layer = Image([fine, fine[::2, ::2]], multiscale=True)
    volume = volume_from_layer(layer)
    assert volume.shape == (64, 64)
    assert back(volume, layer).data.shape == (64, 64)


def test_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def block(block_info: Any = None) -> np.ndarray:
        raise AssertionError("computed")

    lazy = da.map_blocks(block, chunks=((2, 2), (8,), (8,)), dtype=np.uint16, meta=np.empty((0, 0, 0), np.uint16))
    layer = Image(lazy, contrast_limits=(0, 1), axis_labels=("z", "y", "x"), cache=False, visible=False)
    volume = volume_from_layer(layer)
    assert describe_axes(volume) == "Z = 4, 8 × 8, voxel size unknown"
    layer_arguments(volume, layer, name="x")


def test_bool_and_last_axis_of_three() -> None:
    layer = Image(np.ones((5, 3), bool), rgb=False)
    volume = volume_from_layer(layer)
    assert volume.dtype == np.uint8
    assert back(volume, layer).rgb is False


def test_describe_axes() -> None:
    volume = Volume.from_array(da.zeros((34, 81, 512, 512)), "TZYX", voxel_size={"Z": 0.2, "Y": 0.1, "X": 0.1})
    assert describe_axes(volume) == "T = 34, Z = 81, 512 × 512, 0.2 × 0.1 × 0.1 µm"


def test_a_layer_shows_another_part_only_if_it_lies_alike() -> None:
    """The place of the first voxel may differ, steps and the number of axes may not."""
    source = Image(np.zeros((4, 12, 10)), axis_labels="tyx", scale=(1, 0.5, 0.5), translate=(0, 3, 4))
    volume = volume_from_layer(source)
    part = {"T": slice(1, 2), "Y": slice(2, 8), "X": slice(0, 10)}
    values = np.ones((1, 6, 10))
    data, arguments = layer_arguments(crop(volume, part), source, name="new", region=part, values=values)
    assert np.shares_memory(data, values)
    shown = Image(np.zeros((1, 4, 4)), name="old", scale=(1, 0.5, 0.5))
    assert show_in(shown, data, arguments)
    np.testing.assert_array_equal(shown.data, values)
    np.testing.assert_allclose(shown.translate, (1, 4, 4))
    assert (shown.name, shown.metadata[METADATA]["axes"]) == ("new", "TYX")
    for other in (Image(np.zeros((1, 4, 4))), Image(np.zeros((4, 4)), scale=(0.5, 0.5))):
        assert not show_in(other, data, arguments)
        assert not other.data.any()


# --------------------------------------------------------------------------------------- regions and masks


def test_a_rectangle_in_the_images_voxels() -> None:
    image = Image(np.zeros((4, 40, 30)), scale=(1, 0.2, 0.1), translate=(0, 5, 2), axis_labels=("z", "y", "x"))
    # drawn on another layer, in world units: rows 10 to 19, columns 5 to 14
    box = np.array([[7.0, 2.5], [7.0, 3.4], [8.8, 3.4], [8.8, 2.5]])
    shapes = Shapes([box], shape_type="rectangle")
    assert rectangle(shapes, image, volume_from_layer(image)) == (slice(10, 20), slice(5, 15))


def test_the_selected_shape_counts_then_the_last() -> None:
    image = Image(np.zeros((40, 30)))
    boxes = [np.array([[a, a], [a, a + 4], [a + 4, a + 4], [a + 4, a]], float) for a in (2, 12)]
    shapes = Shapes(boxes, shape_type="rectangle")
    volume = volume_from_layer(image)
    assert rectangle(shapes, image, volume)[0] == slice(12, 17)
    shapes.selected_data = {0}
    assert rectangle(shapes, image, volume)[0] == slice(2, 7)


def test_a_shape_is_clipped_to_the_image_or_refused() -> None:
    image = Image(np.zeros((40, 30)))
    volume = volume_from_layer(image)
    partly = Shapes([np.array([[-9, -9], [-9, 50], [9, 50], [9, -9]], float)])
    assert rectangle(partly, image, volume) == (slice(0, 10), slice(0, 30))
    with pytest.raises(LayerError, match="outside"):
        rectangle(Shapes([np.array([[50, 50], [50, 60], [60, 60], [60, 50]], float)]), image, volume)
    with pytest.raises(LayerError, match="nothing is drawn"):
        rectangle(Shapes(), image, volume)


def test_crop() -> None:
    volume = volume_from_layer(odd_layer("TCZYX")).replace(channel_names=("red", "green"))
    part = crop(volume, {"C": slice(1, 2), "X": slice(2, 5)})
    assert (part.shape, part.channel_names) == ((3, 1, 4, 12, 3), ("green",))
    with pytest.raises(LayerError, match="no axis Z"):
        crop(Volume.from_array(np.zeros((4, 4))), {"Z": slice(0, 1)})
    with pytest.raises(LayerError, match="holds nothing"):
        crop(volume, {"Y": slice(20, 30)})


@pytest.mark.parametrize("shape", [(12, 10), (4, 12, 10), (1, 4, 12, 10)])
def test_painted_voxels_were_not_measured(shape: tuple[int, ...]) -> None:
    volume = volume_from_layer(odd_layer("TZYX"))
    labels = np.zeros(shape, int)
    labels[..., 3, 4] = 2
    measured = mask_from_layer(Labels(labels), volume, painted=True)
    assert measured.shape == shape[-3:]
    assert not measured[..., 3, 4].any()
    assert measured.sum() == measured.size - measured[..., 0, 0].size
    # the other way round: 0 is not measured, as in a mask; of an image NaN are holes either way
    np.testing.assert_array_equal(mask_from_layer(Labels(labels), volume), ~measured)
    factors = np.where(measured, np.float32(1), np.nan)
    np.testing.assert_array_equal(mask_from_layer(Image(factors), volume), measured)


def test_a_mask_of_another_size_or_an_empty_one_is_refused() -> None:
    volume = volume_from_layer(odd_layer("TZYX"))
    with pytest.raises(LayerError, match="12 × 9 voxels, the image 4 × 12 × 10 or 12 × 10"):
        mask_from_layer(Labels(np.ones((12, 9), int)), volume, painted=True)
    for values, painted in ((0, True), (1, False)):
        with pytest.raises(LayerError, match="has no holes"):
            mask_from_layer(Labels(np.full((12, 10), values)), volume, painted=painted)
        with pytest.raises(LayerError, match="no voxel was measured"):
            mask_from_layer(Labels(np.full((12, 10), values)), volume, painted=not painted)
    with pytest.raises(LayerError, match="colour picture"):
        mask_from_layer(Image(np.zeros((12, 10, 3), np.uint8), rgb=True), volume)
