"""The preview of a training: which part of the image, and the layer that shows it.

Shapes layer or the view's centre → part → `_training_job` → layer that sharpens
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Shapes

from napari_ambient.volumes.volume import canonical
from napari_ambient.widgets._layers import METADATA, contrast_of, layer_arguments, rectangle, show_in

if TYPE_CHECKING:
    from napari import Viewer

    from napari_ambient.volumes import Volume
    from napari_ambient.widgets._training_job import Seen

SIDE, SIDE_3D, PLANES = 192, 128, 16
"""Voxels along Y and X of one plane or of each of several, and the number of planes: small, so that it is quick."""
LARGEST = 512
"""Voxels along Y and X of a drawn part, at most."""


def preview_part(
    viewer: Viewer, volume: Volume, layer: Image | None, axes: str | None, shapes: Shapes | None
) -> dict[str, slice]:
    """Choose what a preview shows: a drawn rectangle, or the middle of what is seen.

    Parameters
    ----------
    viewer : napari.Viewer
        Its camera and sliders.
    volume : Volume
        The image, whole.
    layer : Image or None
        Where it comes from; None for a file, of which the middle is shown.
    axes : str or None
        The axes of the layer.
    shapes : Shapes or None
        On which the part is drawn; None for the middle of the view.

    Returns
    -------
    dict of str to slice
        By axis of the volume: one time point, a few planes, a part of Y and X; channels stay whole.

    Raises
    ------
    LayerError
        If the drawn shape lies outside the image.
    """
    sizes = volume.sizes
    middle = {axis: n // 2 for axis, n in sizes.items()}
    if layer is not None and axes is not None:
        middle |= _seen(viewer, layer, axes)
    side = SIDE if sizes.get("Z", 1) == 1 else SIDE_3D
    length = {"T": 1, "Z": PLANES, "Y": side, "X": side}
    part = {axis: _around(middle[axis], length[axis], sizes[axis]) for axis in canonical("".join(sizes)) if axis != "C"}
    if shapes is not None and layer is not None:
        for axis, drawn in zip("YX", rectangle(shapes, layer, volume), strict=True):
            centre = (drawn.start + drawn.stop) // 2
            small = drawn.stop - drawn.start <= LARGEST
            part[axis] = drawn if small else _around(centre, LARGEST, sizes[axis])
    return part


def _seen(viewer: Viewer, layer: Image, axes: str) -> dict[str, int]:
    """Voxel in the middle of the view, by axis."""
    point = np.array(viewer.dims.point, dtype=float)
    if viewer.dims.ndisplay == 2:
        # axes that are not shown stay where the sliders are
        shown = list(viewer.dims.displayed)
        scene = getattr(viewer, "scene", viewer)  # where napari 0.9 moved the camera
        point[shown] = scene.camera.center[-len(shown) :]
    voxel = np.asarray(layer.world_to_data(point[-layer.ndim :]))
    return {axis: round(float(v)) for axis, v in zip(axes, voxel, strict=True)}


def _around(centre: int, length: int, size: int) -> slice:
    length = min(length, size)
    start = min(max(centre - length // 2, 0), size - length)
    return slice(start, start + length)


class PreviewLayer:
    """The layer that shows the previews of one training; once the user removes it, it stays away.

    Parameters
    ----------
    viewer : napari.Viewer
        Where.
    name : str
        What to call it.
    like : Image or None
        The layer that is trained on.
    axes : str or None
        Its axes.
    before : PreviewLayer or None
        Of a training before. Its layer is taken over where it is of the same image, as napari takes long to remove one
        and to add another; else it is removed.
    """

    def __init__(
        self, viewer: Viewer, name: str, like: Image | None, axes: str | None, before: PreviewLayer | None = None
    ) -> None:
        self._viewer, self._name, self._like, self._axes = viewer, name, like, axes
        self._layer: Any = None
        self._limits: tuple[float, ...] = ()
        if before is None or before.layer not in viewer.layers:
            return
        if (before._like, before._axes) == (like, axes):
            self._layer, self._limits = before.layer, before._limits
            self._layer.name = name
        else:
            viewer.layers.remove(before.layer)

    @property
    def layer(self) -> Any:
        """The layer; None before the first preview."""
        return self._layer

    def show(self, seen: Seen) -> bool:
        """Show a preview.

        Parameters
        ----------
        seen : Seen
            The restored part and where it lies.

        Returns
        -------
        bool
            Whether anybody looks: False once the user has removed the layer.
        """
        if self._layer is not None and self._layer not in self._viewer.layers:
            return False
        values, arguments = layer_arguments(
            seen.volume, self._like, name=self._name, region=seen.part, axes=self._axes, values=seen.values
        )
        arguments["metadata"][METADATA] |= {"preview": True, "step": seen.step}
        if self._layer is not None and not show_in(self._layer, values, arguments):
            self._viewer.layers.remove(self._layer)
            self._layer = None
        if self._layer is None:
            # the source's limits are those of its noise, and would leave it dull
            arguments["contrast_limits"] = self._limits = contrast_of(values)
            active = self._viewer.layers.selection.active
            self._layer = self._viewer.add_image(values, **arguments)
            self._viewer.layers.selection.active = active  # what is seen changes, not what is being worked on
        elif tuple(self._layer.contrast_limits) == self._limits:  # not if the user has set other ones
            self._layer.contrast_limits = contrast_of(values)
            self._limits = tuple(self._layer.contrast_limits)
        return True
