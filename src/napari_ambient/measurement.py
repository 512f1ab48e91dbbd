"""What the microscope did to the light: the operator of a measurement, from what the user knows of it.

    y = offset + gain · Poisson(A x) + N(0, read_noise²),    A = mask · pixels · blur

A PSF computed from the optics acts before the camera's pixels are made, A = mask · pixels · blur; the image of a bead
was made by those pixels, so that it is convolved first, on the finer grid: A = mask · blur · pixels. Command line,
notebooks and widgets put the operator of a restoration together here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .choices import Border, Microscope

# The rest is imported where it is used: the command line's help shows the optics and must not wait for torch.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from .operators import Operator
    from .volumes import Volume


@dataclass(frozen=True)
class Optics:
    """The microscope, from which the PSF is computed where there is no image of a bead.

    Parameters
    ----------
    na : float
        Numerical aperture of the objective; giving it computes the PSF, where there is no image of a point.
    wavelength : float
        Emission wavelength, nm.
    microscope : str
        Kind of microscope.
    refractive_index : float
        Refractive index of the immersion: oil 1.515, glycerol 1.47, silicone 1.40, water 1.33, air 1.0.
    excitation : float
        Excitation wavelength, nm; for confocal.
    sheet_thickness : float
        Full width at half maximum of the light sheet, micrometres.
    """

    na: float | None = None
    wavelength: float = 520.0
    microscope: Microscope = "widefield"
    refractive_index: float = 1.515
    excitation: float | None = None
    sheet_thickness: float | None = None


def operator_for(
    volume: Volume,
    *,
    psf: Path | Volume | None = None,
    psf_is: Literal["bead", "computed"] = "bead",
    optics: Optics | None = None,
    mask: Path | Volume | ArrayLike | None = None,
    finer: int = 1,
    border: Border = "reflect",
) -> Operator:
    """Put together what the microscope did to light on the finer pixels.

    Parameters
    ----------
    volume : Volume
        The measurement.
    psf : Path or Volume, optional
        The image of a point, on the voxels of the measurement.
    psf_is : {"bead", "computed"}
        A bead's image, whose background is taken away, or a computed PSF, which has none.
    optics : Optics, optional
        The microscope, to compute the PSF from; without `na` there is no blur.
    mask : Path, Volume or array_like, optional
        0 where nothing was measured, anything above elsewhere; (Y, X) or (Z, Y, X).
    finer : int
        So many times finer pixels along Y and X.
    border : {"reflect", "open"}
        What a blur takes to lie beyond the image: its mirror image, or what nobody knows (`opening.py`).

    Returns
    -------
    Operator
        `Identity` where nothing is given.

    Raises
    ------
    ValueError
        If both `psf` and `optics.na` are given, optics other than the usual without `na`, the PSF has other voxels
        than the measurement, the mask another size, or the voxel size that the optics need is unknown.
    """
    import numpy as np

    from .operators import Blur, Downsample, Identity, Mask
    from .point_spread import prepare
    from .volumes import Volume

    optics = optics or Optics()
    check_optics(psf is not None, optics)
    if finer < 1:
        raise ValueError(f"pixels that are {finer} times finer (--finer) cannot be made; give 1, 2 or more")
    operator: Operator
    pixels_made: Operator = Identity() if finer == 1 else Downsample(finer, reduce="mean")
    if psf is not None:
        bead = _image(psf)
        _check_voxels(bead, volume, psf)
        values = np.squeeze(np.asarray(bead.data))
        operator = Blur(prepare(values, background="border" if psf_is == "bead" else None), border) @ pixels_made
    elif optics.na is not None:
        operator = pixels_made @ Blur(computed_psf(volume, optics, finer=finer), border)
    else:
        operator = pixels_made
    if mask is not None:
        if isinstance(mask, Path | Volume):
            holes = _image(mask)
            _check_mask(holes, volume)
            mask = holes.data
        operator = Mask(np.squeeze(np.asarray(mask)) > 0) @ operator
    return operator


def mask_of_each(mask: Path | Volume) -> bool:
    """Whether a mask has time points or channels (`with_holes`), and is not that of one image (`operator_for`).

    Parameters
    ----------
    mask : Path or Volume
        0 where nothing was measured, anything above elsewhere.

    Returns
    -------
    bool
    """
    sizes = _image(mask).sizes
    return any(sizes.get(axis, 1) > 1 for axis in "TC")


def with_holes(volume: Volume, mask: Path | Volume) -> Volume:
    """Cut a mask that has time points or channels into a volume, as NaN.

    Parameters
    ----------
    volume : Volume
        The measurement.
    mask : Path or Volume
        0 where nothing was measured, anything above elsewhere.

    Returns
    -------
    Volume
        Lazy, float32; holes that differ from image to image are filled in as NaN are. Its history names the mask.

    Raises
    ------
    ValueError
        If the mask does not fit the volume.
    """
    import hashlib

    import dask.array as da
    import numpy as np

    holes = _image(mask)
    strange = [a for a, n in holes.sizes.items() if n not in (1, volume.sizes.get(a, 1))]
    strange += [a for a in "YX" if holes.sizes.get(a) != volume.sizes[a]]
    if strange:
        raise ValueError(
            f"the mask has axes {holes.axes} {holes.shape}, {volume.name or 'the volume'} {volume.axes} "
            f"{volume.shape}; give a mask of the same size along {', '.join(dict.fromkeys(strange))}, or of one image"
        )
    known = holes.data
    digest = hashlib.sha256(f"{holes.axes} {holes.shape}".encode())
    for image in np.ndindex(holes.shape[:-2]):
        digest.update(np.packbits(np.asarray(known[image]) > 0).tobytes())
    order = [holes.axes.index(axis) for axis in volume.axes if axis in holes.axes]
    known = known.transpose(order)
    for place, axis in enumerate(volume.axes):
        if axis not in holes.axes:
            known = da.expand_dims(known, place)
    data = da.where(known > 0, volume.data.astype(np.float32), np.float32(np.nan))
    record = {"action": "mask", "source": holes.name, "sha256": digest.hexdigest()}
    return volume.replace(data=data.rechunk(volume.data.chunks)).with_history(record)


def check_optics(has_psf: bool, optics: Optics) -> None:
    """Raise unless at most one PSF is meant.

    Parameters
    ----------
    has_psf : bool
        Whether the image of a point is given.
    optics : Optics
        The microscope.

    Raises
    ------
    ValueError
        If both give a PSF, or the optics do not, though they were changed.
    """
    if has_psf and optics.na is not None:
        raise ValueError("an image of the PSF and the optics (--psf and --na) both give a PSF; choose one")
    if optics.na is None and optics != Optics():
        raise ValueError("the optics make a PSF only together with the numerical aperture (--na)")


def computed_psf(volume: Volume, optics: Optics, *, finer: int = 1) -> NDArray[np.floating[Any]]:
    """Compute the PSF of a microscope on the voxels of a measurement.

    Parameters
    ----------
    volume : Volume
        The measurement; 3D if it has more than one plane.
    optics : Optics
        The microscope, with `na`.
    finer : int
        So many times finer pixels along Y and X.

    Returns
    -------
    ndarray, shape (Y, X) or (Z, Y, X)
        Odd-sized, centred, of sum 1.

    Raises
    ------
    ValueError
        If the numerical aperture or the voxel size is unknown, or the optics are impossible.
    """
    from .point_spread import microscope_psf

    if optics.na is None:
        raise ValueError("the numerical aperture is unknown, and the PSF depends on it; give it (--na)")
    solid = volume.sizes.get("Z", 1) > 1
    steps = {axis: volume.voxel_size.get(axis) for axis in ("ZYX" if solid else "YX")}
    unknown = [axis for axis, step in steps.items() if step is None]
    if unknown:
        raise ValueError(
            f"{volume.name}: the voxel size along {', '.join(unknown)} is unknown, and the PSF depends on it; give it "
            "in micrometres (--voxel-size Z Y X)"
        )
    pixels = [step / (finer if axis in "YX" else 1) for axis, step in steps.items() if step is not None]
    return microscope_psf(
        optics.microscope,
        na=optics.na,
        wavelength_nm=optics.wavelength,
        refractive_index=optics.refractive_index,
        voxel_size_um=pixels,
        dims=3 if solid else 2,
        excitation_nm=optics.excitation,
        sheet_thickness_um=optics.sheet_thickness,
    )


def _image(source: Path | Volume) -> Volume:
    from .volumes import AxesError, Volume, open_volume

    if isinstance(source, Volume):
        return source
    try:
        return open_volume(source)
    except AxesError:  # a PSF or mask without named axes has three
        return open_volume(source, axes="ZYX")


def _check_mask(holes: Volume, volume: Volume) -> None:
    ours, theirs = ({axis: v.sizes.get(axis, 1) for axis in "ZYX"} for v in (holes, volume))
    if any(ours[axis] != theirs[axis] for axis in "YX") or ours["Z"] not in (1, theirs["Z"]):
        raise ValueError(
            f"the mask {holes.name} has axes {holes.axes} {holes.shape}, {volume.name or 'the volume'} {volume.axes} "
            f"{volume.shape}; give one of the same size along Z, Y and X, of one plane (Y, X), or one for each time "
            "point or channel, whose file names these axes"
        )


def _check_voxels(bead: Volume, volume: Volume, psf: Path | Volume) -> None:
    solid = volume.sizes.get("Z", 1) > 1
    for axis, step in bead.voxel_size.items():
        wanted = volume.voxel_size.get(axis)
        if step and wanted and abs(step / wanted - 1) > 0.05 and (solid or axis != "Z"):
            name = psf if isinstance(psf, Path) else bead.name
            raise ValueError(
                f"{name} has voxels of {step:.4g} µm along {axis}, {volume.name} of {wanted:.4g} µm; give a PSF on "
                "the voxels of the images, or correct theirs (--voxel-size)"
            )
