"""What each part of the network is worth: the ablations of the paper's appendix L, same budget.

    python benchmarks/ablations.py SET [--epochs 10] [--only NAME ...] [--validation NAME ...]

SET is a data set whose samples are named X_0, X_1, ... for the deformations of composition X
(``nextham dataset build``). Trained on all but the last deformation of each, validated on that;
or on all but those of ``--validation``, for example whole compositions: AlP_* SiC_* LiCl_*.
Every line is one training with everything else alike, a row of the paper's table 4: processor
seconds of the training, gauge MAE of H on the validation set and its ratio to that of H(0), mean
error of the bands below E_F + 5 eV, and how many band energies on the mesh are wrong by more than
0.5 eV ("ghost states"; the paper has pictures of them). Interrupted, it goes on where it stopped,
if ``--folder`` is given.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from ase_nextham.training.config import TrainConfig
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.evaluate import evaluate
from ase_nextham.training.report import PREDICTED
from ase_nextham.training.run import TrainingResult, train

NETWORK = {
    "windows": [0, 1, 4, 8],
    "features": "16x0e+8x1o+8x1e+8x2e+4x2o+4x3o+4x4e",
    "layers": 2,
    "gaussians": 16,
    "invariants": 32,
}
ABLATIONS = {
    "whole": {},
    "without H(0) at the input": {"model": {"inputs": "elements"}},
    "without H(0) at the output": {"model": {"target": "hamiltonian"}},
    "without TraceGrad": {"model": {"tracegrad": False}, "loss": {"trace": 0.0}},
    "without ensemble": {"model": {"windows": [0, 8]}},
    "without k-space loss": {"loss": {"low": 0.0, "high": 0.0, "coupling": 0.0}},
    "without loss of P-Q coupling": {"loss": {"coupling": 0.0}},
}
"""What differs from the whole method, in the order of the paper's table."""


def trained(name: str, options: argparse.Namespace, folder: Path) -> TrainingResult:
    """One training, with the terms of the loss weighted as in the paper if not said otherwise."""
    ablation = ABLATIONS[name]
    tables = {
        "data": {"path": options.dataset, "validation": options.validation},
        "model": NETWORK | ablation.get("model", {}),
        "loss": {"norm": "absolute"} | ablation.get("loss", {}),
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
    return train(TrainConfig.from_dict(tables))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", metavar="SET")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--validation", nargs="+", default=["*_3"], metavar="NAME")
    parser.add_argument("--folder", help="of the runs (a temporary one)")
    options = parser.parse_args()
    if Dataset(options.dataset)[0].k_space is None:
        parser.error(f"{options.dataset}: no k-points for the loss; build the set with --nkpts")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        print(
            f"{'':<30}{'CPU s':>7}{'gauge MAE / meV':>17}{'of H(0) / %':>13}"
            f"{'band MAE / meV':>16}{'ghosts':>8}",
            flush=True,
        )
        for name in options.only:
            start = time.process_time()
            result = trained(name, options, folder)
            if not result.finished:
                return
            seconds = time.process_time() - start
            found = evaluate(result.model, options.dataset, names=options.validation, npoints=0)
            bands = found.errors[PREDICTED].mesh
            print(
                f"{name:<30}{seconds:>7.0f}{1e3 * result.best.mae:>17.3f}"
                f"{100 * result.best.ratio:>13.1f}{1e3 * bands.total.mean:>16.1f}"
                f"{bands.ghosts:>8}",
                flush=True,
            )


if __name__ == "__main__":
    main()
