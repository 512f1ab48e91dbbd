"""Layer ↔ Volume: the only place that knows how a napari layer and a volume correspond.

    world = affine · (rotate · shear · scale · index + translate)

A layer has these (napari's order), units and axis labels; a volume has named axes and physical steps. Going there, the
steps become µm; coming back, everything is copied from the source layer, axis by axis, so that the result lies on it.

    layer → volume_from_layer → public functions → layer_arguments → viewer.add_image
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from napari.layers import Image, Labels, Layer, Shapes
from numpy.typing import NDArray

from napari_ambient.volumes import AXES, AxesError, Volume, VolumeError
from napari_ambient.volumes.units import MICROMETERS, SECONDS, unit_name
from napari_ambient.volumes.volume import canonical, check_axes

if TYPE_CHECKING:
    from napari import Viewer
    from napari.utils.transforms import Affine

METADATA = "napari_ambient"
"""Key in a layer's metadata under which its axes, channel names, number in its file and history stand."""

_PART = re.compile(r" layer (\d+)(?: \[\d+\])?")
"""What napari's “Split Stack” appends to the name of a part; the brackets where the name was taken."""
_PARTS = re.compile(rf"(?:{_PART.pattern})+$")

_WORDS = {
    "t": "T", "time": "T", "frame": "T", "frames": "T",
    "c": "C", "ch": "C", "channel": "C", "channels": "C",
    "z": "Z", "depth": "Z", "plane": "Z", "slice": "Z",
    "y": "Y", "row": "Y", "x": "X", "column": "X",
}  # fmt: skip


class LayerError(ValueError):
    """A layer cannot be used as it is; the message says what to do."""


# ------------------------------------------------------------------------------------------- which layer


def is_measurement(layer: Layer) -> bool:
    """Whether a layer may be what a microscope measured: no PSF, and not restored, drawn or previewed here.

    Parameters
    ----------
    layer : Layer
        Any layer.
    """
    own = layer.metadata.get(METADATA)
    own = own if isinstance(own, Mapping) else {}
    made = any(record.get("action") in ("restore", "sample") for record in own.get("history", ()))
    return isinstance(layer, Image) and not made and not own.get("preview") and not is_psf(layer)


def is_psf(layer: Layer) -> bool:
    """Whether a layer is known to be a PSF, as that of the sample data is.

    Parameters
    ----------
    layer : Layer
        Any layer.
    """
    own = layer.metadata.get(METADATA)
    return isinstance(layer, Image) and isinstance(own, Mapping) and own.get("kind") == "psf"


def layer_to_start_with(viewer: Viewer) -> Image | None:
    """Give the measurement that a form is about when it opens: the selected one, else the newest.

    Parameters
    ----------
    viewer : napari.Viewer
        Whose layers.

    Returns
    -------
    Image or None
        None where there is none but previews and results.
    """
    candidates = [layer for layer in list(viewer.layers)[::-1] if is_measurement(layer)]
    active = viewer.layers.selection.active
    return next((layer for layer in candidates if layer is active), candidates[0] if candidates else None)


# ------------------------------------------------------------------------------------------- what is noted


def _noted(layer: Layer) -> Mapping[str, Any]:
    """Give what is noted in a layer; of one that napari's “Split Stack” made, what holds of this part.

    napari copies the stack's notes to each part, takes the first axis away, and names it "stack layer 1". Who has
    renamed it is asked.
    """
    own = layer.metadata.get(METADATA)
    if not isinstance(own, Mapping):
        return {}
    axes, parts = own.get("axes"), _PARTS.search(layer.name)
    if not isinstance(axes, str) or parts is None:
        return own
    gone = len(axes) - layer.ndim
    numbers = [int(number) for number in _PART.findall(parts.group())]
    if not 0 < gone <= len(numbers):
        return own
    noted = {**own, "axes": axes[gone:]}
    for axis, number in zip(axes, numbers[-gone:], strict=False):
        if axis == "C":
            names = own.get("channel_names", ())
            noted["first_channel"] = int(own.get("first_channel", 0)) + number
            noted["channel_names"] = list(names[number : number + 1])
    return noted


def settle(layer: Layer) -> None:
    """Note in a part of a split stack what holds of it, so that it stays known whatever the layer is named later.

    Parameters
    ----------
    layer : Layer
        Any layer.
    """
    if noted := _noted(layer):
        layer.metadata[METADATA] = dict(noted)


def channel_number(layer: Layer) -> int | None:
    """Give the number, from 0, that the channel of a layer has in its file; None where nothing says it.

    Parameters
    ----------
    layer : Layer
        Of one channel.
    """
    number = _noted(layer).get("first_channel")
    return int(number) if isinstance(number, int) else None


# ------------------------------------------------------------------------------------------- axes


def known_axes(layer: Image) -> str | None:
    """Give the axes of a layer where they are known.

    Parameters
    ----------
    layer : Image
        The layer.

    Returns
    -------
    str or None
        One letter per dimension in the layer's order, ending with YX: from the layer's metadata, else from its axis
        labels; "YX" for two dimensions. None: the user must be asked.
    """
    if layer.ndim == 2:
        return "YX"
    stated = [_noted(layer).get("axes")]
    stated += [layer.metadata.get("axes"), _labelled(layer)]
    for axes in stated:
        if isinstance(axes, str) and len(axes) == layer.ndim and _allowed(axes.upper()):
            return axes.upper()
    return None


def remember_axes(layer: Image, axes: str) -> None:
    """Note the user's answer in the layer's metadata, so that nobody asks again.

    Parameters
    ----------
    layer : Image
        The layer.
    axes : str
        One letter per dimension, ending with YX.
    """
    own = layer.metadata.get(METADATA)
    layer.metadata[METADATA] = {**(own if isinstance(own, Mapping) else {}), "axes": axes}


def possible_axes(layer: Image) -> list[str]:
    """List the axes that a layer may have.

    Parameters
    ----------
    layer : Image
        The layer.

    Returns
    -------
    list of str
        All that its number of dimensions allows; what is known of this layer is first.

    Raises
    ------
    LayerError
        If no axes are possible.
    """
    more = layer.ndim - 2
    if not 0 <= more <= len(AXES) - 2:
        raise LayerError(
            f"{layer.name} has {layer.ndim} dimensions; two to five are possible (T, C, Z, Y, X): split the layer first"
        )
    # the usual order of letters before the unusual ones, Z before T before C
    combinations = sorted(itertools.permutations("TCZ", more), key=_unusual)
    axes = ["".join(letters) + "YX" for letters in combinations]
    known = known_axes(layer)
    return axes if known is None else [known, *(other for other in axes if other != known)]


def _unusual(letters: tuple[str, ...]) -> tuple[bool, tuple[int, ...]]:
    ordered = "".join(letters) == canonical("".join(letters))
    return not ordered, tuple("ZTC".index(letter) for letter in reversed(letters))


def _labelled(layer: Layer) -> str | None:
    letters = [_WORDS.get(label.strip().lower()) for label in layer.axis_labels]
    return None if None in letters else "".join(letter for letter in letters if letter)


def _allowed(axes: str) -> bool:
    try:
        check_axes(axes)
    except AxesError:
        return False
    return True


# ------------------------------------------------------------------------------------------- steps


def voxel_size_of(layer: Image, axes: str) -> dict[str, float | None]:
    """Give the voxel size of a layer in µm.

    Parameters
    ----------
    layer : Image
        The layer.
    axes : str
        Its axes.

    Returns
    -------
    dict of str to float or None
        By spatial axis, in the order Z, Y, X. With napari's unit "pixel", a scale of other than 1 along Y or X is
        taken for µm, as napari's users write it; 1 there means that nobody said, hence None.
    """
    steps = _steps(layer, axes)
    units = dict(zip(axes, (str(unit) for unit in layer.units), strict=True))
    physical = {axis: unit_name(units[axis], axis) for axis in axes if axis in "ZYX"}
    unnamed = {axis: steps[axis] for axis in physical if physical[axis] is None}
    said = any(not math.isclose(step, 1.0) for axis, step in unnamed.items() if axis in "YX")
    size: dict[str, float | None] = {}
    for axis in canonical("".join(physical)):
        unit = physical[axis]
        if unit is not None:
            size[axis] = steps[axis] * MICROMETERS[unit]
        else:
            size[axis] = steps[axis] if said else None
    return size


def _steps(layer: Layer, axes: str) -> dict[str, float]:
    """Length of a step along each axis in world units; the rotation does not change it, an affine may."""
    stretched = np.linalg.norm(layer.affine.linear_matrix @ np.asarray(layer.rotate), axis=0)
    return dict(zip(axes, (float(v) for v in np.abs(layer.scale) * stretched), strict=True))


def describe_axes(volume: Volume) -> str:
    """Say what a volume is, for people who think in images.

    Parameters
    ----------
    volume : Volume
        The volume.

    Returns
    -------
    str
        "T = 34, Z = 81, 512 × 512, 0.2 × 0.1 × 0.1 µm".
    """
    parts = [f"{axis} = {n}" for axis, n in volume.sizes.items() if axis not in "YX"]
    parts.append(f"{volume.sizes['Y']} × {volume.sizes['X']}")
    size = volume.voxel_size
    if all(step is None for step in size.values()):
        parts.append("voxel size unknown")
    else:
        parts.append(" × ".join("?" if step is None else f"{step:.4g}" for step in size.values()) + " µm")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------ layer → volume


def volume_from_layer(
    layer: Image, *, axes: str | None = None, voxel_size: Mapping[str, float | None] | None = None
) -> Volume:
    """Make a lazy volume of a layer; nothing is read or computed.

    Parameters
    ----------
    layer : Image
        A grey-value image of two to five dimensions. Of a pyramid, the finest level.
    axes : str, optional
        One letter per dimension in the layer's order, ending with YX. By default those that are known.
    voxel_size : mapping of str to float or None, optional
        µm by spatial axis; goes before the layer's scale. None: unknown.

    Returns
    -------
    Volume

    Raises
    ------
    LayerError
        If it is a colour picture, its axes are not known, or they do not fit.
    """
    if not isinstance(layer, Image):
        raise LayerError(f"{layer.name} is a {type(layer).__name__} layer; choose an Image layer")
    if layer.rgb:
        raise LayerError(
            f"{layer.name} is a colour picture (RGB), whose values are no longer what the camera counted; open the "
            "original file, or split the channels (right click on the layer, Split RGB)"
        )
    possible = possible_axes(layer)
    axes = axes or known_axes(layer)
    if axes is None:
        sizes = " × ".join(str(n) for n in _level_0(layer).shape)
        raise LayerError(f"{layer.name} ({sizes}) does not say what its axes are; choose one of {', '.join(possible)}")
    if axes not in possible:
        raise LayerError(f"axes {axes!r} do not fit {layer.name}; choose one of {', '.join(possible)}")
    own = _noted(layer)
    size = voxel_size_of(layer, axes)
    size |= {axis: step for axis, step in (voxel_size or {}).items() if axis in size}
    try:
        volume = Volume.from_array(
            _lazy(_level_0(layer)),
            axes,
            voxel_size=size,
            name="".join(letter if ord(letter) >= 32 else " " for letter in layer.name),
            history=tuple(own.get("history", ())),
        )
    except VolumeError as error:
        raise LayerError(f"{layer.name}: {error}") from error
    changes: dict[str, Any] = {"source": layer.source.path, "first_channel": int(own.get("first_channel", 0))}
    names = tuple(own.get("channel_names", ()))
    if len(names) == volume.sizes.get("C", 1):
        changes["channel_names"] = names
    if "T" in axes:
        unit = unit_name(str(layer.units[axes.index("T")]), "T")
        if unit in SECONDS:
            changes["scale"] = {**volume.scale, "T": _steps(layer, axes)["T"]}
            changes["units"] = {**volume.units, "T": unit}
    return volume.replace(**changes)


def _level_0(layer: Image | Labels) -> Any:
    return layer.data[0] if layer.multiscale else layer.data


def _lazy(data: Any) -> da.Array:
    # Without a name of its own dask would read all of the data to make one, in the Qt thread.
    array = data if isinstance(data, da.Array) else da.from_array(data, name=False)
    return array.astype(np.uint8) if array.dtype == bool else array


# ------------------------------------------------------------------------------------ volume → layer


def layer_arguments(
    volume: Volume,
    like: Image | None,
    *,
    name: str,
    region: Sequence[slice] | Mapping[str, slice] | None = None,
    axes: str | None = None,
    values: NDArray[Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Say how to add a volume to the viewer, so that it lies exactly where its source does.

    Parameters
    ----------
    volume : Volume
        The result.
    like : Image or None
        The layer that it was made from; None for a volume that has none (a new image, a file).
    name : str
        Name of the new layer.
    region : sequence or mapping of slice, optional
        The part of the source that it was made from, in the source's voxels: by axis, or for the last axes of `volume`
        ((Y, X) of `rectangle`, say). An axis that the volume has no more (one channel, one time point) stays as an
        axis of size one at its place, if it is named here.
    axes : str, optional
        The axes of `like`; by default those that are known, else those of the volume.
    values : ndarray, optional
        The volume's voxels, where they are in memory: arranged without a copy, they go before the lazy ones.

    Returns
    -------
    tuple of (dask array or ndarray, dict)
        For ``viewer.add_image(data, **arguments)``. The data are in the order of the source's axes, new axes (the
        outputs or draws, as channels) first. On `k` times finer voxels than the source the scale is divided by `k`.

    Raises
    ------
    LayerError
        If the volume does not come from this layer.
    """
    history = [dict(record) for record in volume.history]
    arguments: dict[str, Any] = {"name": name, "rgb": False, "multiscale": False}
    voxels = volume.data if values is None else values
    own: dict[str, Any] = {"history": history, "provenance": history[-1] if history else {}}
    if volume.channel_names:
        own["channel_names"] = list(volume.channel_names)
    if volume.first_channel:  # the draws of a channel are keyed by its number in the file
        own["first_channel"] = volume.first_channel
    if like is None:
        own["axes"] = volume.axes
        steps = {axis: volume.scale.get(axis, 1.0) for axis in volume.axes}
        for axis, step in volume.voxel_size.items():
            steps[axis] = 1.0 if step is None else step
        arguments |= {
            "scale": [steps[axis] for axis in volume.axes],
            "units": [_unit(volume, axis) for axis in volume.axes],
            "axis_labels": [axis.lower() for axis in volume.axes],
            "metadata": {METADATA: own},
        }
        return voxels, arguments

    source = axes or known_axes(like) or _axes_like(volume, like)
    if len(source) != like.ndim:
        raise LayerError(f"axes {source!r} do not fit {like.name}, which has {like.ndim} dimensions")
    part = _by_axis(volume, region)
    order = _kept(volume, like, source, part)
    data = voxels.transpose([volume.axes.index(axis) for axis in order if axis in volume.axes])
    data = data.reshape([volume.sizes.get(axis, 1) for axis in order])
    own["axes"] = order

    # One row per axis of the result: its place in the source, or None for a new one.
    place = [source.index(axis) if axis in source else None for axis in order]
    begin, factor = np.zeros(like.ndim), np.ones(like.ndim)
    shape = _level_0(like).shape
    for i, axis in enumerate(source):
        start, stop, _ = part.get(axis, slice(None)).indices(shape[i])
        begin[i] = start
        if axis in volume.axes:
            factor[i] = _finer(volume.sizes[axis], stop - start, axis, like)
            # the middle of the first finer voxel, in voxels of the source
            begin[i] += 0.5 / factor[i] - 0.5
    linear = np.asarray(like.rotate) @ _matrix(like.shear, like.ndim) @ np.diag(like.scale)
    translate = np.asarray(like.translate) + linear @ begin
    arguments |= {
        "scale": _pick(np.asarray(like.scale) / factor, place, 1.0),
        "translate": _pick(translate, place, 0.0),
        "rotate": _block(np.asarray(like.rotate), place),
        "shear": _block(_matrix(like.shear, like.ndim), place),
        "affine": _affine(like.affine, place),
        "units": [like.units[i] if i is not None else "pixel" for i in place],
        "contrast_limits": tuple(like.contrast_limits),
        "colormap": like.colormap,
        "metadata": {METADATA: own},
    }
    default = tuple(str(i - like.ndim) for i in range(like.ndim))
    if tuple(like.axis_labels) != default:
        arguments["axis_labels"] = [
            like.axis_labels[i] if i is not None else order[at].lower() for at, i in enumerate(place)
        ]
    return data, arguments


def show_in(layer: Image, data: Any, arguments: Mapping[str, Any]) -> bool:
    """Show a volume in a layer that is there already: to remove one and to add another takes napari half a second.

    Parameters
    ----------
    layer : Image
        That showed something else of the same source.
    data, arguments
        Of `layer_arguments`.

    Returns
    -------
    bool
        Whether it could be: the layer must lie as the volume does, but for its first voxel's place.
    """
    if layer.ndim != data.ndim:
        return False
    now = {
        "scale": layer.scale,
        "rotate": layer.rotate,
        "shear": _matrix(layer.shear, layer.ndim),
        "affine": layer.affine.affine_matrix,
    }
    if any(name in arguments and not np.allclose(value, arguments[name]) for name, value in now.items()):
        return False
    layer.data = data
    if "translate" in arguments and not np.allclose(layer.translate, arguments["translate"]):
        layer.translate = arguments["translate"]
    layer.name = arguments["name"]
    layer.metadata.update(arguments["metadata"])
    return True


def contrast_of(values: NDArray[Any]) -> tuple[float, float]:
    """Give contrast limits for values in memory: percentiles 0.5 and 99.8, so that single bright voxels do not count.

    Parameters
    ----------
    values : ndarray
        Of a layer; at least one of them finite.

    Returns
    -------
    (float, float)
        Low and high, never equal.
    """
    low, high = (float(v) for v in np.nanpercentile(values, (0.5, 99.8)))
    return low, high if high > low else low + 1.0


def _unit(volume: Volume, axis: str) -> str:
    if axis not in volume.scale:
        return "pixel"
    return volume.units[axis] if axis == "T" else "micrometer"


def _axes_like(volume: Volume, like: Image) -> str:
    for axes in (volume.axes, volume.axes.replace("C", "")):
        if len(axes) == like.ndim:
            return axes
    raise LayerError(
        f"the axes of {like.name} ({like.ndim} dimensions) are not known, and the result has {volume.axes}; choose the "
        "axes of the layer in the form"
    )


def _by_axis(volume: Volume, region: Sequence[slice] | Mapping[str, slice] | None) -> dict[str, slice]:
    if region is None:
        return {}
    if isinstance(region, Mapping):
        return dict(region)
    if len(region) > volume.ndim:
        raise LayerError(
            f"the region has {len(region)} axes, the volume {volume.axes}; name them: {{'T': slice(3, 4)}}"
        )
    return dict(zip(volume.axes[volume.ndim - len(region) :], region, strict=True))


def _kept(volume: Volume, like: Image, source: str, part: Mapping[str, slice]) -> str:
    """Axes of the result: new ones first, then the source's in its order. Those of size one hold the others' places."""
    linear = np.asarray(like.rotate) @ _matrix(like.shear, like.ndim)
    coupled = [linear, like.affine.linear_matrix]
    kept = ""
    for i, axis in enumerate(source):
        alone = all(np.allclose(np.delete(m[i], i), 0) and np.allclose(np.delete(m[:, i], i), 0) for m in coupled)
        if axis in volume.axes or axis in part or kept or not alone:
            kept += axis
    return "".join(axis for axis in volume.axes if axis not in source) + kept


def _finer(size: int, extent: int, axis: str, like: Image) -> float:
    if size != extent and (extent < 1 or size % extent):
        raise LayerError(
            f"the result has {size} voxels along {axis}, where {like.name} has {extent}; it was not made from this "
            "layer, or from another region"
        )
    return size / extent


def _matrix(shear: NDArray[np.floating], ndim: int) -> NDArray[np.floating]:
    """Napari gives an upper triangle as the vector of its values."""
    shear = np.asarray(shear, dtype=float)
    if shear.ndim == 2:
        return shear
    matrix = np.eye(ndim)
    matrix[np.triu_indices(ndim, k=1)] = shear
    return matrix


def _pick(values: NDArray[np.floating], place: Sequence[int | None], new: float) -> list[float]:
    return [new if i is None else float(values[i]) for i in place]


def _block(matrix: NDArray[np.floating], place: Sequence[int | None]) -> NDArray[np.floating]:
    block = np.eye(len(place))
    for row, i in enumerate(place):
        for column, j in enumerate(place):
            if i is not None and j is not None:
                block[row, column] = matrix[i, j]
    return block


def _affine(affine: Affine, place: Sequence[int | None]) -> NDArray[np.floating]:
    matrix = np.eye(len(place) + 1)
    matrix[:-1, :-1] = _block(affine.linear_matrix, place)
    matrix[:-1, -1] = _pick(affine.translate, place, 0.0)
    return matrix


# ------------------------------------------------------------------------------------------- parts


def rectangle(shapes_layer: Shapes, image_layer: Image, volume: Volume) -> tuple[slice, slice]:
    """Give the part of an image that a drawn shape covers.

    Parameters
    ----------
    shapes_layer : Shapes
        The drawing; the selected shape counts, else the last one.
    image_layer : Image
        The image.
    volume : Volume
        The image as a volume.

    Returns
    -------
    tuple of slice
        Ranges along Y and X of the smallest upright rectangle (in the image's voxels) around the shape, within the
        image.

    Raises
    ------
    LayerError
        If nothing is drawn, or it lies outside the image.
    """
    if len(shapes_layer.data) == 0:
        raise LayerError(f"nothing is drawn on {shapes_layer.name}; draw a rectangle on it")
    chosen = max(shapes_layer.selected_data, default=len(shapes_layer.data) - 1)
    corners = np.array(
        [image_layer.world_to_data(shapes_layer.data_to_world(corner)) for corner in shapes_layer.data[chosen]]
    )
    ranges = []
    for column, axis in ((-2, "Y"), (-1, "X")):
        # voxel i reaches from i - 0.5 to i + 0.5
        low = math.floor(corners[:, column].min() + 0.5)
        high = math.ceil(corners[:, column].max() - 0.5) + 1
        size = volume.sizes[axis]
        low, high = max(low, 0), min(high, size)
        if low >= high:
            raise LayerError(
                f"the shape on {shapes_layer.name} lies outside {image_layer.name}; draw it on the image, or choose "
                "another layer"
            )
        ranges.append(slice(low, high))
    return ranges[0], ranges[1]


def crop(volume: Volume, region: Mapping[str, slice]) -> Volume:
    """Cut a part out of a volume.

    Parameters
    ----------
    volume : Volume
        The volume.
    region : mapping of str to slice
        Range by axis, without steps; other axes stay whole.

    Returns
    -------
    Volume

    Raises
    ------
    LayerError
        If the volume has no such axis, or nothing is left.
    """
    index = []
    for axis in region:
        if axis not in volume.axes:
            raise LayerError(f"the image has no axis {axis}; it has {', '.join(volume.axes)}")
    for axis, size in volume.sizes.items():
        start, stop, step = region.get(axis, slice(None)).indices(size)
        if start >= stop or step != 1:
            raise LayerError(f"the range {start} to {stop} along {axis} holds nothing; choose one within 0 to {size}")
        index.append(slice(start, stop))
    changes: dict[str, Any] = {"data": volume.data[tuple(index)]}
    if "C" in region:
        first, _, _ = region["C"].indices(volume.sizes["C"])
        changes |= {"channel_names": volume.channel_names[region["C"]], "first_channel": volume.first_channel + first}
    return volume.replace(**changes)


def mask_from_layer(layer: Image | Labels, volume: Volume, *, painted: bool = False) -> NDArray[np.bool_]:
    """Read which voxels were measured from a mask.

    Parameters
    ----------
    layer : Image or Labels
        The mask.
    volume : Volume
        The image.
    painted : bool
        False: the holes are where it is 0 (or NaN). True: they are where it is not.

    Returns
    -------
    ndarray of bool, shape (Y, X) or (Z, Y, X)
        True: measured.

    Raises
    ------
    LayerError
        If it is no mask, the shapes differ, nothing is a hole, or nothing was measured.
    """
    if isinstance(layer, Image) and layer.rgb:
        raise LayerError(f"{layer.name} is a colour picture (RGB); choose a mask of one value per voxel")
    values = _one_image(layer, volume)
    measured: NDArray[np.bool_] = (values == 0) if painted else (values > 0)
    if measured.all():
        raise LayerError(
            f"{layer.name} has no holes (it is 0 {'everywhere' if painted else 'nowhere'}); choose another mask, or "
            "which of its voxels are holes"
        )
    if not measured.any():
        raise LayerError(
            f"by {layer.name} no voxel was measured; choose another mask, or which of its voxels are holes"
        )
    return measured


def _one_image(layer: Image | Labels, volume: Volume) -> NDArray[Any]:
    """Read a layer that has a value for every voxel of one image, (Y, X) or (Z, Y, X)."""
    values = _level_0(layer)
    sizes = volume.sizes
    spatial = tuple(n for axis, n in sizes.items() if axis in "ZYX")
    # an image with T or C is often painted through all of them, on a layer of size one there
    shape = tuple(values.shape)
    while len(shape) > 2 and shape[0] == 1 and shape not in (spatial, spatial[-2:]):
        shape = shape[1:]
    if shape not in (spatial, spatial[-2:]):
        wanted = " or ".join(" × ".join(map(str, each)) for each in dict.fromkeys((spatial, spatial[-2:])))
        raise LayerError(
            f"{layer.name} has {' × '.join(map(str, values.shape))} voxels, the image {wanted}; choose or paint a "
            "layer of that size"
        )
    return np.asarray(values).reshape(shape)
