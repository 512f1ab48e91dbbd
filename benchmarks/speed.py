"""Speed and memory: restoring beside CAREamics' `predict`, training steps per second, peak memory against volume size.

    python benchmarks/speed.py [--careamics PYTHON] [--out FOLDER]

Restoring: a stack of simulated planes, one process, voxels per second, ours and CAREamics' (default Noise2Void network,
untrained weights cost as much as trained ones) in turn in one run, so that the ratio holds whatever the machine does.
Memory: restored volumes of growing size are written to disk and the process's peak resident memory is read; it should
not grow with the volume.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

THEIRS = """
import json, sys, time, warnings, logging
warnings.filterwarnings("ignore")
import numpy as np
from careamics import CAREamist
from careamics.config import create_advanced_n2v_config
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
image = np.load(sys.argv[1]).astype(np.float32)
config = create_advanced_n2v_config(experiment_name="n2v", data_type="array", axes="SYX", patch_size=[64, 64],
    batch_size=16, num_epochs=1, num_steps=1, n_val_patches=2, num_workers=0,
    trainer_params={"accelerator": "cpu", "enable_model_summary": False})
model = CAREamist(config, work_dir=sys.argv[2], enable_progress_bar=False)
model.train(train_data=image[:, :256, :256])
times = []
for _ in range(int(sys.argv[3])):
    begin = time.perf_counter()
    model.predict(image, batch_size=1, num_workers=0)
    times.append(time.perf_counter() - begin)
print("RESULT " + json.dumps(times))
"""

OURS = """
import json, sys, time
import numpy as np
from napari_ambient import TrainConfig, NoiseModel, Volume, restore, train
image = np.load(sys.argv[1])
noise = NoiseModel(gain=2.0, intercept=-200.0)
volume = Volume.from_array(image, "TYX")
prior = train(volume, noise, config=TrainConfig(steps=1))
times = []
for _ in range(int(sys.argv[3])):
    begin = time.perf_counter()
    restore(volume, prior).data.compute(scheduler="synchronous")
    times.append(time.perf_counter() - begin)
print("RESULT " + json.dumps(times))
"""

MEMORY = """
import resource, sys, time
import dask.array as da, numpy as np
from napari_ambient import NoiseModel, TrainConfig, Volume, restore, save_volume, train
planes = int(sys.argv[1])
def block(block_info=None):
    where = block_info[None]["array-location"]
    rng = np.random.default_rng(where[0][0])
    return (100 + 2 * rng.poisson(4, [b - a for a, b in where])).astype(np.uint16)
chunks = ((1,) * planes, (1024,), (1024,))
data = da.map_blocks(block, chunks=chunks, dtype=np.uint16, meta=np.empty((0,) * 3, np.uint16))
volume = Volume.from_array(data, "TYX")
prior = train(volume, NoiseModel(gain=2.0, intercept=-200.0), config=TrainConfig(steps=1))
begin = time.perf_counter()
save_volume(sys.argv[2], restore(volume, prior))
seconds = time.perf_counter() - begin
print("RESULT", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, volume.data.size / seconds)
"""


def run(python: str | Path, code: str, *arguments: object) -> str:
    """Run code in another process and give what it printed after RESULT."""
    done = subprocess.run(
        [str(python), "-c", code, *(str(a) for a in arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout.rsplit("RESULT", 1)[1].strip()


def main(
    *,
    python: Path | None = None,
    out: Path = Path("benchmarks/results"),
    planes: int = 4,
    repeats: int = 5,
    memory_planes: tuple[int, ...] = (16, 128, 1024),
    size: int = 512,
    steps: int = 100,
) -> dict[str, object]:
    """Measure, write `speed.json`, and give the figures."""
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, object] = {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        stack = Path(folder) / "stack.npy"
        np.save(stack, (100 + 2 * rng.poisson(4, (planes, size, size))).astype(np.uint16))
        voxels = planes * size * size
        pairs = []
        for _ in range(2 if python else 1):
            mine = min(json.loads(run(sys.executable, OURS, stack, folder, repeats)))
            theirs = min(json.loads(run(python, THEIRS, stack, folder, repeats))) if python else None
            pairs.append((voxels / mine, voxels / theirs if theirs else None))
        figures["restore_voxels_per_second"] = sorted(p[0] for p in pairs)[len(pairs) // 2]
        if python:
            figures["careamics_voxels_per_second"] = sorted(p[1] or 0 for p in pairs)[len(pairs) // 2]
            figures["ratios"] = [round(a / b, 2) for a, b in pairs if b]
        print(json.dumps(figures), flush=True)
        figures["training_steps_per_second"] = training_rate(steps)
        figures["peak_MB"] = {}
        for count in memory_planes:
            target = Path(folder) / f"restored{count}.ome.zarr"
            megabytes, rate = run(sys.executable, MEMORY, count, target).split()
            gigabytes = count * size_of_plane() / 2**30
            figures["peak_MB"][f"{gigabytes:.2f} GiB out"] = round(float(megabytes))  # type: ignore[index]
            figures["lazy_voxels_per_second"] = float(rate)
    (out / "speed.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return figures


def size_of_plane() -> int:
    """Bytes of one restored plane of 1024² float32 voxels."""
    return 1024 * 1024 * 4


def training_rate(steps: int) -> float:
    """Training steps per second of the small network, batch 8 of 64², after a warm-up."""
    from napari_ambient import NoiseModel, TrainConfig, Volume, iter_train

    rng = np.random.default_rng(0)
    volume = Volume.from_array((100 + 2 * rng.poisson(4, (4, 256, 256))).astype(np.uint16), "TYX")
    training = iter_train(volume, NoiseModel(gain=2.0, intercept=-200.0), config=TrainConfig(steps=2 * steps))
    times = [step.seconds for step in training]
    return steps / (times[-1] - times[steps - 1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--careamics", type=Path, help="interpreter of an environment with careamics")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--memory-planes", type=int, nargs="+", default=[16, 128, 1024], help="planes of 1024² voxels")
    given = parser.parse_args()
    planes = tuple(given.memory_planes)
    print(json.dumps(main(python=given.careamics, out=given.out, memory_planes=planes), indent=2))
