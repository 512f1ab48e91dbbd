"""The demo at a tiny budget, its sample data, and the commands that the README gives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from napari_ambient import cli, load_prior, open_volume
from napari_ambient.demo import psnr, run, sample_folder

ROOT = Path(__file__).parents[1]


def test_demo_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prior, TIFF, OME-Zarr, picture, and PSNR in words; a few steps already clean the image."""
    assert run(tmp_path, steps=25, device="cpu", compare=True) == 0
    text = capsys.readouterr().out
    found = re.search(r"noisy ([\d.]+) dB, restored ([\d.]+) dB, trained on the truth ([\d.]+) dB", text)
    assert found, text
    noisy, restored, _ = map(float, found.groups())
    assert restored > noisy + 1
    assert (tmp_path / "demo.png").read_bytes()[:4] == b"\x89PNG"
    tiff, zarr = (open_volume(tmp_path / f"restored.ome.{end}") for end in ("tif", "zarr"))
    np.testing.assert_array_equal(tiff.data.compute(), zarr.data.compute())
    assert tiff.voxel_size == zarr.voxel_size == open_volume(sample_folder() / "filaments_2d.tif").voxel_size
    assert tiff.history[-1]["prior_sha256"] == load_prior(tmp_path / "demo.prior").sha256
    assert not (tmp_path / "demo.prior" / "checkpoint.safetensors").exists()


def test_psnr() -> None:
    """20 dB for an error of a tenth of the peak."""
    truth = np.zeros((10, 10), np.float32)
    truth[0, 0] = 10
    assert psnr(truth + 1, truth) == pytest.approx(20)


def test_sample_data_is_small_and_described() -> None:
    """Under 5 MB in all, and every file is in its README."""
    folder = ROOT / "sample_data"
    files = sorted(folder.glob("*.tif"))
    assert sum(f.stat().st_size for f in files) < 5e6
    text = (folder / "README.md").read_text()
    assert len(files) >= 5
    for file in files:
        assert file.stem in text


def test_readme_names_commands_that_exist() -> None:
    """Every napari-ambient command and make target in the README is there, and so is the script behind make."""
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    commands = set(re.findall(r"^napari-ambient ([\w-]+)", text, flags=re.MULTILINE))
    assert commands >= {"fit-noise", "train", "restore", "info"}
    for command in commands:
        assert command in cli.app
    assert (ROOT / "tools" / "run.sh").exists()
    names = re.findall(r"from napari_ambient import (.*)", text)
    for name in names[0].split(", "):
        assert hasattr(__import__("napari_ambient"), name)
