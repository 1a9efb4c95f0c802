"""How well a network learns one structure by heart: its gauge MAE beside that of H(0).

    python benchmarks/training_overfit.py SET [--sample NAME] [--steps 600]

SET is a data set (``nextham dataset build``). A network with one window learns one sample of it,
the first by default; with nothing else to learn, its error goes to zero if nothing in network,
loss and loop is in the way. The table shows the error of the running average of the weights.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="folder of a data set")
    parser.add_argument("--sample", help="name of the sample")
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from ase_nextham.training.config import TrainConfig
    from ase_nextham.training.dataset import Dataset
    from ase_nextham.training.distributed import Processes
    from ase_nextham.training.loop import Trainer
    from ase_nextham.training.models import new_model

    config = TrainConfig.from_dict(
        {
            "data": {"path": given.data},
            "model": {
                "windows": [0, 8],
                "features": "16x0e+8x1o+8x1e+8x2e+4x2o+4x3o+4x4e",
                "layers": 2,
                "gaussians": 16,
                "invariants": 32,
            },
            "loss": {"norm": "absolute", "trace": 0},
            "optimiser": {
                "epochs": given.steps,
                "warm_up": 20,
                "learning_rate": 5e-3,
                "average": 0.95,
            },
        }
    )
    samples = Dataset(given.data, [given.sample] if given.sample else None).subset([0])
    group = Processes(0, 1, torch.device("cpu"))
    model = new_model(config.model, samples, config.run.seed)
    trainer = Trainer(config, model, samples, samples, group)
    trainer.begin(scales=True)
    print(f"{samples.names[0]}, {sum(p.numel() for p in model.module.parameters())} parameters")
    print(f"{'step':>6}{'CPU s':>8}{'H(0) (meV)':>12}{'H (meV)':>10}{'ratio':>10}")
    every = max(1, given.steps // 10)
    while True:
        if trainer.step % every == 0 or trainer.step == trainer.steps:
            found = trainer.validate()
            print(
                f"{trainer.step:6}{time.process_time():8.0f}{1e3 * found.h0_mae:12.4f}"
                f"{1e3 * found.mae:10.4f}{found.ratio:10.4f}",
                flush=True,
            )
        if trainer.step == trainer.steps:
            break
        trainer.advance()
    trainer.loader.close()


if __name__ == "__main__":
    main()
