"""Write sample_data/: small simulated stacks with their truth, from fixed seeds.

    python tools/make_sample_data.py [sample_data]

The same seeds give the same counts: expected light is rounded to 1/256 photo-electron before the camera sees
it, so that the last bits of a Fourier transform, which differ between machines, do not reach the noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_ambient.simulate import (
    Camera,
    blur,
    born_wolf_psf,
    filaments,
    gaussian_psf,
    mitochondria,
    through_microscope,
)

FIELD_STEP = (0.065, 0.065)
STACK_STEP = (0.2, 0.1, 0.1)
SHARP_SEED, BLURRED_SEED = 7, 3
FIELDS = 16


def field_light(seed: int) -> NDArray[np.float32]:
    """Make the expected photo-electrons of one field, (256, 256): filaments and mitochondria of one cell."""
    psf = gaussian_psf(FIELD_STEP)
    shape = (256, 256)
    light = through_microscope(
        filaments(shape, seed, voxel_size=FIELD_STEP, density=0.18), psf, peak=13.0, background=0.4, haze=0.3
    )
    tubes = mitochondria(shape, seed, voxel_size=FIELD_STEP, density=0.2)
    return rounded(light + through_microscope(tubes, psf, peak=15.0, haze=0.2))


def sharp_light(seed: int) -> NDArray[np.float32]:
    """Make the expected photo-electrons of a confocal stack of one cell, (32, 128, 128): mitochondria."""
    tubes = mitochondria((32, 128, 128), seed, voxel_size=STACK_STEP, density=0.8)
    return rounded(through_microscope(tubes, gaussian_psf(STACK_STEP), peak=80.0, background=0.5))


def rounded(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 1/256 photo-electron."""
    return (np.rint(256 * light) / 256).astype(np.float32)


def main(folder: str | Path = "sample_data") -> None:
    """Write all files.

    Parameters
    ----------
    folder : str or Path
        Where; made when it is not there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    camera = Camera.scmos()
    light = np.stack([field_light(seed) for seed in range(FIELDS)])
    noisy = np.stack([camera.expose(image, np.random.default_rng([seed, 1])) for seed, image in enumerate(light)])
    save(folder / "filaments_2d.tif", noisy, "TYX", FIELD_STEP)
    save(folder / "filaments_2d_truth.tif", expected_counts(camera, light), "TYX", FIELD_STEP)

    light = sharp_light(SHARP_SEED)
    save(folder / "mitochondria_3d.tif", camera.expose(light, np.random.default_rng(7)), "ZYX", STACK_STEP)
    save(folder / "mitochondria_3d_truth.tif", expected_counts(camera, light), "ZYX", STACK_STEP)

    psf = born_wolf_psf((31, 31, 31), STACK_STEP)
    light = sharp_light(BLURRED_SEED)
    counts = camera.expose(rounded(blur(light, psf)), np.random.default_rng(3))
    save(folder / "mitochondria_3d_blurred.tif", counts, "ZYX", STACK_STEP)
    save(folder / "mitochondria_3d_blurred_truth.tif", expected_counts(camera, light), "ZYX", STACK_STEP)
    save(folder / "psf_widefield.tif", psf, "ZYX", STACK_STEP)


def expected_counts(camera: Camera, light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the mean of infinitely many exposures, ADU, to 1/16 (which compresses well)."""
    return (np.rint(16 * camera.mean(light)) / 16).astype(np.float32)


def save(path: Path, image: NDArray[np.generic], axes: str, step: tuple[float, ...]) -> None:
    """Write an ImageJ TIFF, deflated, with axes and voxel size in micrometres."""
    metadata: dict[str, object] = {"axes": axes, "unit": "um"}
    if len(step) == 3:
        metadata["spacing"] = step[0]
    tifffile.imwrite(
        path,
        image,
        imagej=True,
        compression="zlib",
        compressionargs={"level": 9},
        predictor=image.dtype.kind == "u",
        resolution=(1 / step[-1], 1 / step[-2]),
        metadata=metadata,
    )


if __name__ == "__main__":
    main(*sys.argv[1:2])
