"""Noise2Void as CAREamics ships it: train once, predict after a given time and again after all epochs.

    PYTHON benchmarks/careamics_n2v.py IN.tif FOLDER --epochs 100 [--seconds 300] [--clock wall] [--threads 1]

PYTHON is the interpreter of an environment with careamics 0.3.5 (see `benchmarks/README.md`), never ours. IN.tif is one
stack of independent planes. Network, patches, optimiser and schedule are CAREamics' defaults, with crops of 64² and 16
of them a step. `at_seconds.npy` holds the prediction of the weights at the end of the first epoch past the given
seconds, `at_end.npy` that of the last; the last line printed is a JSON object of epochs, steps and seconds of both.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path


def main(source: Path, folder: Path, epochs: int, seconds: float, clock: str, threads: int) -> None:
    """Train and predict."""
    import numpy as np
    import tifffile
    import torch
    from careamics import CAREamist
    from careamics.config import create_advanced_n2v_config
    from lightning.pytorch.callbacks import Callback

    warnings.filterwarnings("ignore")
    if threads:
        torch.set_num_threads(threads)
    now = time.perf_counter if clock == "wall" else time.process_time
    images = np.asarray(tifffile.imread(source), dtype=np.float32)

    class Timer(Callback):
        """Keep the weights of the first epoch that ends after the given seconds."""

        def __init__(self, target: Path) -> None:
            self.target, self.begin = target, 0.0
            self.times: dict[str, dict[str, float]] = {}

        def on_train_start(self, trainer, module) -> None:
            self.begin = now()

        def on_train_epoch_end(self, trainer, module) -> None:
            done = {"epochs": trainer.current_epoch + 1, "steps": trainer.global_step, "seconds": now() - self.begin}
            self.times["end"] = done
            if seconds and done["seconds"] >= seconds and not self.target.exists():
                self.times["budget"] = done
                trainer.save_checkpoint(self.target)
                print(json.dumps(done), flush=True)

    with tempfile.TemporaryDirectory() as work:
        timer = Timer(Path(work) / "budget.ckpt")
        config = create_advanced_n2v_config(
            experiment_name="n2v",
            data_type="array",
            axes="SYX",
            patch_size=[64, 64],
            batch_size=16,
            num_epochs=epochs,
            n_val_patches=8,
            num_workers=0,
            seed=1,
            trainer_params={"accelerator": "cpu", "enable_model_summary": False},
        )
        model = CAREamist(config, work_dir=work, callbacks=[timer], enable_progress_bar=False)
        model.train(train_data=images)
        for name, checkpoint in (("at_seconds", timer.target), ("at_end", "last")):
            if checkpoint != "last" and not timer.target.exists():
                continue
            answer, _ = model.predict(images, batch_size=1, num_workers=0, checkpoint=checkpoint)
            np.save(folder / f"{name}.npy", np.squeeze(np.asarray(answer[0], dtype=np.float32)).reshape(images.shape))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**timer.times, "peak_MB": memory}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    main(given.source, given.folder, given.epochs, given.seconds, given.clock, given.threads)
