"""Where the sample data are: simulated noisy stacks with their truth (`sample_data/README.md`).

The demonstration trains on them, and napari's File > Open Sample opens them. Loads nothing.
"""

from __future__ import annotations

from pathlib import Path

SAMPLE = "filaments_2d"


def sample_folder() -> Path:
    """Find the sample data: beside the package when installed, in the checkout when developed.

    Raises
    ------
    FileNotFoundError
        If it is in neither place.
    """
    package = Path(__file__).parent
    for folder in (package / "sample_data", package.parents[1] / "sample_data"):
        if (folder / f"{SAMPLE}.tif").is_file():
            return folder
    raise FileNotFoundError(
        f"{SAMPLE}.tif is in neither {package / 'sample_data'} nor {package.parents[1] / 'sample_data'}; "
        "install the package again, or run tools/make_sample_data.py in a checkout"
    )
