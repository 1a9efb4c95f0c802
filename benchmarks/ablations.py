"""What each part of the network is worth: the ablations of the paper's appendix L, same budget.

    python benchmarks/ablations.py SET [--epochs 10] [--only NAME ...] [--validation NAME ...]

SET is a data set whose samples are named X_0, X_1, ... for the deformations of composition X
(``nextham dataset build``). Trained on all but the last deformation of each, validated on that;
or on all but those of ``--validation``, for example whole compositions: AlP_* SiC_* LiCl_*.
Every line is one training with everything else alike: processor seconds, gauge MAE of H on the
validation set, and its ratio to that of H(0). Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from ase_nextham.training.config import TrainConfig
from ase_nextham.training.run import train

NETWORK = {
    "windows": [0, 1, 4, 8],
    "features": "16x0e+8x1o+8x1e+8x2e+4x2o+4x3o+4x4e",
    "layers": 2,
    "gaussians": 16,
    "invariants": 32,
}
ABLATIONS = {
    "whole": {},
    "without H(0) at the input": {"inputs": "elements"},
    "without H(0) at the output": {"target": "hamiltonian"},
    "without TraceGrad": {"tracegrad": False},
    "without ensemble": {"windows": [0, 8]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", metavar="SET")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--validation", nargs="+", default=["*_3"], metavar="NAME")
    parser.add_argument("--folder", help="of the runs (a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        print(f"{'':<28} {'CPU s':>7} {'gauge MAE / meV':>16} {'of H(0) / %':>12}", flush=True)
        for name in options.only:
            start = time.process_time()
            result = train(
                TrainConfig.from_dict(
                    {
                        "data": {"path": options.dataset, "validation": options.validation},
                        "model": NETWORK | ABLATIONS[name],
                        "loss": {
                            "norm": "absolute",
                            "low": 0,
                            "high": 0,
                            "coupling": 0,
                            "trace": 0,
                        },
                        "optimiser": {
                            "epochs": options.epochs,
                            "warm_up": 0.5,
                            "learning_rate": 2e-3,
                            "average": 0.99,
                        },
                        "run": {
                            "folder": str(folder / name.replace(" ", "_")),
                            "progress": False,
                            "validate_epochs": options.epochs,
                        },
                    }
                )
            )
            seconds = time.process_time() - start
            best = result.best
            print(
                f"{name:<28} {seconds:>7.0f} {1e3 * best.mae:>16.3f} {100 * best.ratio:>12.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
