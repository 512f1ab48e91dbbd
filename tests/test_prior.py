"""The bundle: what was saved comes back; what does not fit is refused with the reason, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_ambient import prior as prior_module
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.prior import Prior, PriorError, Record, load_prior, representative
from napari_ambient.recorruption import Thinning


def make_prior(seed: int = 0) -> Prior:
    torch.manual_seed(seed)
    network = UNet(UNetArguments(widths=(8, 8), strides=((2, 2), (2, 2))))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    noise = NoiseModel(
        gain=2.2,
        intercept=-210.0,
        saturation=255.0,
        hot_pixels=np.eye(8, dtype=bool),
        photons=4.0,
        transfer=(np.arange(3.0), np.arange(3.0) * 2, np.ones(3)),
        notes=("a note",),
    )
    record = Record("ambient", "thinning", "TYX", {"Y": 0.1, "X": None}, ("GFP",), {"seed": 3}, 7, ({"step": 7},))
    record = replace(record, quanta={"read_variance": 0.0, "pulse_shape": 4.0, "photons": 2.5})
    denoiser = Denoiser(network, [Scale(3.0, 1.5)])
    denoiser.requires_grad_(False)
    return Prior(denoiser, (noise,), record)


def test_round_trip(tmp_path: Path) -> None:
    """Weights, noise with its arrays, scales and record survive; the hash is that of the file."""
    prior = make_prior()
    path = prior.save(tmp_path / "cells.prior")
    again = load_prior(path)
    assert again.record == prior.record
    assert again.sha256 == prior.sha256
    assert isinstance(again.recorruption, Thinning)
    assert again.recorruption.pulse_shape == 4
    for name, value in prior.noise[0].to_dict().items():
        np.testing.assert_array_equal(again.noise[0].to_dict()[name], value)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(
        again.denoiser(x, torch.ones(1), corruption="photon"), prior.denoiser(x, torch.ones(1), corruption="photon")
    )
    assert sorted(p.name for p in path.iterdir()) == ["prior.json", "weights.safetensors"]
    assert again.record.voxel_size == {"Y": 0.1, "X": None}


def test_overwrite_is_asked_for(tmp_path: Path) -> None:
    """A prior is replaced only on request, any other folder never."""
    path = make_prior().save(tmp_path / "a.prior")
    with pytest.raises(PriorError, match="overwrite=True"):
        make_prior(1).save(path)
    assert load_prior(path).sha256 == make_prior(0).sha256
    make_prior(1).save(path, overwrite=True)
    assert load_prior(path).sha256 == make_prior(1).sha256
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"miau")
    with pytest.raises(PriorError, match="not a prior"):
        make_prior().save(folder, overwrite=True)
    assert (folder / "cat.jpg").exists()


def corrupt(path: Path, **changes: object) -> None:
    description = json.loads((path / "prior.json").read_text())
    description.update(changes)
    (path / "prior.json").write_text(json.dumps(description))


def test_damage_is_named(tmp_path: Path) -> None:
    """Each kind of damage has its own message."""
    path = make_prior().save(tmp_path / "a.prior")
    weights, description = (path / "weights.safetensors").read_bytes(), (path / "prior.json").read_text()

    def restore() -> None:
        (path / "weights.safetensors").write_bytes(weights)
        (path / "prior.json").write_text(description)

    (path / "weights.safetensors").write_bytes(weights[:-100])
    with pytest.raises(PriorError, match="damaged: its SHA-256"):
        load_prior(path)
    restore()
    (path / "prior.json").write_text(description[:200])
    with pytest.raises(PriorError, match="is damaged"):
        load_prior(path)
    restore()
    corrupt(path, format=99)
    with pytest.raises(PriorError, match="format 99, this version reads up to 2; update"):
        load_prior(path)
    restore()
    corrupt(path, program="other")
    with pytest.raises(PriorError, match="was not written by napari-ambient"):
        load_prior(path)
    restore()
    corrupt(path, network={"dims": 7})
    with pytest.raises(PriorError, match="is damaged"):
        load_prior(path)
    restore()
    corrupt(path, surprise=1)
    with pytest.raises(PriorError, match="surprise"):
        load_prior(path)
    restore()
    (path / "weights.safetensors").unlink()
    with pytest.raises(PriorError, match=r"weights\.safetensors missing"):
        load_prior(path)
    with pytest.raises(PriorError, match="does not exist"):
        load_prior(tmp_path / "nowhere.prior")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PriorError, match="is a file"):
        load_prior(tmp_path / "file")


def test_killed_between_the_two_files(tmp_path: Path) -> None:
    """New weights with the old description beside them still load, from the description written ahead."""
    path = make_prior(0).save(tmp_path / "a.prior")
    old = (path / "prior.json").read_text()
    make_prior(1).save(path, overwrite=True)
    os.rename(path / "prior.json", path / "prior.json.next")
    (path / "prior.json").write_text(old)
    assert load_prior(path).sha256 == make_prior(1).sha256


def test_full_disk_keeps_the_old_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves what was there, and says how much room it needed."""
    path = make_prior(0).save(tmp_path / "a.prior")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prior_module.os, "fsync", full)
    with pytest.raises(PriorError, match=r"No space left on device. It needs \d+ bytes"):
        make_prior(1).save(path, overwrite=True)
    monkeypatch.undo()
    assert load_prior(path).sha256 == make_prior(0).sha256
    assert not list(path.glob("*.partial"))


def test_no_pickle_anywhere(tmp_path: Path) -> None:
    """A pickle in the place of the weights is refused, not run."""
    path = make_prior().save(tmp_path / "a.prior")
    torch.save({"weights": torch.zeros(3)}, path / "weights.safetensors")
    import hashlib

    corrupt(path, weights_sha256=hashlib.sha256((path / "weights.safetensors").read_bytes()).hexdigest())
    with pytest.raises(PriorError, match="is damaged"):
        load_prior(path)


def test_representative_is_the_median() -> None:
    """Of several stacks' noise models the one of median gain stands for them."""
    models = [NoiseModel(gain=g, intercept=-100.0) for g in (5.0, 1.0, 3.0)]
    assert representative(models).gain == 3.0
    assert representative(models[:1]) is models[0]
