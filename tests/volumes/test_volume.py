"""A volume keeps its axes, steps and names together, and refuses what does not fit."""

from __future__ import annotations

import json
import pickle

import dask.array as da
import numpy as np
import pytest

from napari_ambient.volumes import AXES, AxesError, Volume, VolumeError
from napari_ambient.volumes.units import MICROMETERS, OME_SYMBOLS, SECONDS, unit_name
from napari_ambient.volumes.volume import check_axes, file_stem


@pytest.fixture
def volume(rng: np.random.Generator) -> Volume:
    data = da.from_array(rng.integers(0, 999, (3, 2, 4, 5, 6), dtype=np.uint16), chunks=(1, 1, 4, 5, 3))
    return Volume(
        data=data,
        axes="TCZYX",
        scale={"T": 1.5, "Z": 300.0, "Y": 0.1, "X": 0.1},
        units={"T": "minute", "Z": "nanometer", "Y": "micrometer", "X": "micrometer"},
        channel_names=("actin", "DAPI"),
        name="cells",
        history=({"action": "restore", "seed": 3},),
    )


def test_transposing_moves_each_voxel_to_its_axes(rng: np.random.Generator) -> None:
    array = rng.random((4, 3, 2, 5, 6))
    volume = Volume.from_array(array, "ZTCYX")
    assert volume.axes == AXES
    values = volume.data.compute()
    for _ in range(20):
        z, t, c, y, x = (int(rng.integers(n)) for n in array.shape)
        assert values[t, c, z, y, x] == array[z, t, c, y, x]


def test_voxel_size_is_in_micrometers_and_unknown_stays_unknown(volume: Volume) -> None:
    assert volume.voxel_size == pytest.approx({"Z": 0.3, "Y": 0.1, "X": 0.1})
    part = volume.replace(scale={"Y": 0.1}, units={"Y": "micrometer"})
    assert part.voxel_size == {"Z": None, "Y": 0.1, "X": None}
    assert Volume.from_array(np.zeros((4, 5))).voxel_size == {"Y": None, "X": None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.3, 0.1, 0.2), {"Z": 0.3, "Y": 0.1, "X": 0.2}),
        ((None, 0.1, 0.2), {"Z": None, "Y": 0.1, "X": 0.2}),
        ({"X": 0.2}, {"Z": None, "Y": None, "X": 0.2}),
        (None, {"Z": None, "Y": None, "X": None}),
    ],
)
def test_voxel_size_by_axis_or_in_order(given: object, expected: dict[str, float | None]) -> None:
    volume = Volume.from_array(np.zeros((2, 3, 4, 5)), "TZYX", voxel_size=given)
    assert volume.voxel_size == expected
    assert all(unit == "micrometer" for unit in volume.units.values())


@pytest.mark.parametrize(
    "wrong", [(0.1, 0.1), {"T": 1.0}, "0.1", (0.1, 0.0, 0.1), (0.1, -1.0, 0.1), (float("nan"),) * 3]
)
def test_wrong_voxel_sizes_are_refused(wrong: object) -> None:
    with pytest.raises(VolumeError, match=r"voxel_size|step along"):
        Volume.from_array(np.zeros((2, 3, 4, 5)), "TZYX", voxel_size=wrong)


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ("ZYXQ", "unknown axes 'Q'"),
        ("zyx", "unknown axes 'z', 'y', 'x'"),
        ("ZZYX", "axis Z appears more than once"),
        ("XYZ", "last two axes are not Y and X"),
        ("YXZ", "last two axes are not Y and X"),
        ("X", "last two axes are not Y and X"),
        ("", "last two axes are not Y and X"),
    ],
)
def test_wrong_axes_are_refused_with_the_rule(axes: str, reason: str) -> None:
    with pytest.raises(AxesError, match=reason) as caught:
        check_axes(axes)
    assert "slowest first" in str(caught.value)
    assert repr(axes) in str(caught.value)


def test_axes_of_another_length_name_the_shape() -> None:
    with pytest.raises(AxesError, match=r"shape \(2, 3, 4\) has 3 dimensions, but axes 'TZYX'"):
        Volume.from_array(np.zeros((2, 3, 4)), "TZYX")


def test_unnamed_axes_list_what_is_possible() -> None:
    with pytest.raises(AxesError, match=r"TYX, CYX, ZYX") as caught:
        Volume.from_array(np.zeros((7, 3, 4)))
    assert "(7, 3, 4)" in str(caught.value)
    assert 'axes="TYX"' in str(caught.value)
    assert "--axes TYX" in str(caught.value)
    with pytest.raises(AxesError, match=r"TCYX, TZYX, CZYX, or another order"):
        Volume.from_array(np.zeros((2, 7, 3, 4)))
    assert Volume.from_array(np.zeros((3, 4))).axes == "YX"


def test_the_constructor_takes_the_canonical_order_only() -> None:
    with pytest.raises(AxesError, match=r"from_array transposes"):
        Volume(da.zeros((2, 3, 4, 5)), "ZCYX")
    with pytest.raises(VolumeError, match=r"from_array"):
        Volume(np.zeros((4, 5)), "YX")  # type: ignore[arg-type]


def test_an_axis_of_size_zero_is_refused() -> None:
    with pytest.raises(VolumeError, match=r"axis Z has size 0 in shape \(0, 4, 5\)"):
        Volume.from_array(np.zeros((0, 4, 5)), "ZYX")


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [("complex64", "magnitude"), ("object", "float32"), ("U3", "float32"), ("M8[s]", "float32")],
)
def test_values_that_are_no_intensities_are_refused(dtype: str, hint: str) -> None:
    with pytest.raises(VolumeError, match=hint):
        Volume.from_array(np.zeros((4, 5)).astype(dtype))


def test_bool_becomes_zero_and_one(rng: np.random.Generator) -> None:
    mask = rng.random((4, 5)) > 0.5
    volume = Volume.from_array(mask)
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(volume.data.compute(), mask.astype(np.uint8))


def test_foreign_byte_order_becomes_native(rng: np.random.Generator) -> None:
    array = rng.integers(0, 60000, (4, 5)).astype(">u2")
    volume = Volume.from_array(array)
    assert volume.dtype.isnative
    np.testing.assert_array_equal(volume.data.compute(), array)


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    data = da.zeros((8, 64, 64), chunks=(1, 64, 64)).map_blocks(explode, meta=np.empty((0, 0, 0)))
    volume = Volume.from_array(data, "ZYX", voxel_size=(1, 1, 1), channel_names=["a"])
    volume.with_history({"a": 1}).channel(0).describe()


def test_describe(volume: Volume) -> None:
    text = volume.describe()
    assert text.startswith("T = 3, C = 2, Z = 4, Y = 5, X = 6, uint16, 0.3 x 0.1 x 0.1 µm (Z x Y x X)")
    assert "actin, DAPI" in text
    assert "1.5 minute per frame" in text
    assert "voxel size unknown" in Volume.from_array(np.zeros((4, 5))).describe()
    half = Volume.from_array(np.zeros((2, 4, 5)), "ZYX", voxel_size=(None, 0.1, 0.1))
    assert "? x 0.1 x 0.1 µm" in half.describe()


@pytest.mark.parametrize("which", [1, "1", "DAPI"])
def test_channel_by_index_or_name(volume: Volume, which: int | str) -> None:
    one = volume.channel(which)
    assert one.axes == "TZYX"
    assert one.channel_names == ("DAPI",)
    assert one.scale == volume.scale
    np.testing.assert_array_equal(one.data.compute(), volume.data.compute()[:, 1])


@pytest.mark.parametrize("which", [2, -1, "dapi", "", True])
def test_a_wrong_channel_lists_those_that_exist(volume: Volume, which: int | str) -> None:
    with pytest.raises(VolumeError, match=r"0 \('actin'\), 1 \('DAPI'\)"):
        volume.channel(which)


def test_channel_of_a_volume_without_channels() -> None:
    plain = Volume.from_array(np.zeros((4, 5)))
    assert plain.channel(0) is plain
    with pytest.raises(VolumeError, match="one channel"):
        plain.channel(1)
    with pytest.raises(VolumeError, match="several channels are called 'a'"):
        Volume.from_array(np.zeros((2, 4, 5)), "CYX", channel_names=["a", "a"]).channel("a")


def test_history_grows_at_its_end_and_the_original_stays(volume: Volume) -> None:
    longer = volume.with_history({"action": "crop"})
    assert [entry["action"] for entry in longer.history] == ["restore", "crop"]
    assert len(volume.history) == 1


@pytest.mark.parametrize("entry", [{"seed": np.int64(3)}, {"loss": float("nan")}, {"prior": object()}])
def test_history_must_be_json(volume: Volume, entry: dict[str, object]) -> None:
    with pytest.raises(VolumeError, match="history cannot be stored as JSON"):
        volume.with_history(entry)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_names": ("a",)},
        {"channel_names": ("a", "b\n")},
        {"name": "a\x00"},
        {"scale": {"C": 1.0}, "units": {"C": "micrometer"}},
        {"scale": {"X": 1.0}, "units": {}},
        {"scale": {"X": 1.0}, "units": {"X": "µm"}},
        {"scale": {"X": 1.0}, "units": {"X": "second"}},
        {"scale": {"T": 1.0}, "units": {"T": "micrometer"}},
        {"scale": {}, "units": {"X": "micrometer"}},
    ],
)
def test_fields_that_do_not_fit_are_refused(volume: Volume, changes: dict[str, object]) -> None:
    with pytest.raises(VolumeError):
        volume.replace(**changes)


def test_the_record_is_json_and_the_volume_travels_to_workers(volume: Volume) -> None:
    assert json.loads(json.dumps(volume.record()))["axes"] == "TCZYX"
    copy = pickle.loads(pickle.dumps(volume))
    assert copy.record() == volume.record()
    np.testing.assert_array_equal(copy.data.compute(), volume.data.compute())


def test_every_unit_reads_back_as_itself() -> None:
    for name in (*MICROMETERS, *SECONDS):
        axis = "T" if name in SECONDS else "X"
        assert unit_name(name, axis) == name
        assert unit_name(OME_SYMBOLS.get(name, name), axis) == name


@pytest.mark.parametrize(
    ("text", "axis", "expected"),
    [
        ("µm", "X", "micrometer"),
        ("\u03bcm", "X", "micrometer"),
        ("\\u00B5m", "X", "micrometer"),
        ("um", "Z", "micrometer"),
        ("micron", "Z", "micrometer"),
        ("Microns", "Z", "micrometer"),
        ("micrometres", "Z", "micrometer"),
        ("\u212b", "X", "angstrom"),
        ("mm", "X", "millimeter"),
        ("Mm", "X", "megameter"),
        ("sec", "T", "second"),
        ("pixel", "X", None),
        ("reference frame", "X", None),
        ("", "X", None),
        (None, "X", None),
        ("s", "X", None),
        ("µm", "T", None),
    ],
)
def test_units_as_files_spell_them(text: str | None, axis: str, expected: str | None) -> None:
    assert unit_name(text, axis) == expected


def test_unit_factors() -> None:
    # SI prefixes, and the inch by definition.
    assert MICROMETERS["nanometer"] == 1e-3
    assert MICROMETERS["meter"] == 1e6
    assert MICROMETERS["inch"] == 25400
    assert SECONDS["millisecond"] == 1e-3


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("a/mito.ome.tif", "mito"),
        ("a/v1.2.tiff", "v1.2"),
        ("x.ome.zarr/", "x"),
        ("b.NPY", "b"),
        ("c.dat", "c.dat"),
    ],
)
def test_file_stem(path: str, stem: str) -> None:
    assert file_stem(path) == stem
