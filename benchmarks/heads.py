"""The density head beside the pair head, on the same splits of one data set.

    python benchmarks/heads.py SET --folder RUNS [--splits NAME ...] [--models NAME ...]
                               [--pair-epochs 40] [--pseudo-dir DIR] [--orbital-dir DIR]

SET is a data set with densities and k-points of the crystals in ``SPLITS`` below
(``nextham dataset build --densities``). Each line is one training, chosen by validation, and its
errors on what was held out: of the density in the Coulomb norm, of H (gauge MAE, mean of all
elements; and as the mean of the structures), of bands below E_F + 5 eV and of gaps, and how many
band energies on the mesh are off by more than 0.5 eV. Runs stay in RUNS and go on where they were
interrupted; those that are complete are evaluated only. Seconds are those of the training's wall
clock; labels of densities are made once for all.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from ase_nextham.training.config import TrainConfig
from ase_nextham.training.evaluate import evaluate
from ase_nextham.training.report import H0, PREDICTED, Report
from ase_nextham.training.run import train

SPLITS = {
    "deformations": ["*_3"],
    "compositions": ["AlP_*", "SiC_*", "LiCl_*"],
    "elements": ["GaAs_*", "MgS_*"],
}
"""What is held out; all other samples are learned from."""

PAIRS = {
    "model": {
        "windows": [0, 8],
        "features": "16x0e+8x1o+8x1e+8x2e+4x2o+4x3o+4x4e",
        "layers": 2,
        "gaussians": 16,
        "invariants": 32,
    },
    "loss": {
        "norm": "absolute",
        "low": 6e-4,
        "high": 2e-4,
        "coupling": 4e-4,
        "trace": 0.0,
        "kpts": 2,
    },
    "optimiser": {"warm_up": 0.5, "learning_rate": 2e-3, "average": 0.998},
}
DENSITY = {
    "algorithm": "adamw",
    "weight_decay": 1.0,
    "learning_rate": 3e-3,
    "warm_up": 5.0,
    "batch": 15,
    "average": 0.99,
}
MODELS = {
    "pairs": None,
    "linear": ({"network": "linear", "members": 1}, 1),
    "two-layer": ({"network": "two-layer"}, 100),
    "transformer": ({"network": "transformer"}, 40),
    "transformer, no first density": ({"network": "transformer", "first_density": False}, 60),
}
"""Of the density head: what is in [density], and epochs."""


def config(model: str, split: str, options: argparse.Namespace) -> TrainConfig:
    """Of one training."""
    tables = {
        "data": {"path": options.dataset, "validation": SPLITS[split]},
        "run": {
            "folder": str(Path(options.folder) / f"{split}, {model}".replace(", ", "-")),
            "validate_epochs": 10.0,
            "progress": False,
            "device": options.device,
        },
    }
    if MODELS[model] is None:
        optimiser = PAIRS["optimiser"] | {"epochs": options.pair_epochs}
        return TrainConfig.from_dict(tables | PAIRS | {"optimiser": optimiser})
    density, epochs = MODELS[model]
    folders = {"pseudo_dir": options.pseudo_dir, "orbital_dir": options.orbital_dir}
    folders = {name: value for name, value in folders.items() if value is not None}
    optimiser = DENSITY | {"epochs": epochs, "warm_up": min(DENSITY["warm_up"], epochs / 4)}
    return TrainConfig.from_dict(
        tables
        | {"model": {"head": "density"}, "density": density | folders, "optimiser": optimiser}
    )


def line(label: str, report: Report, name: str, seconds: str = "", density: str = "") -> None:
    """Print the errors of one Hamiltonian."""
    errors, h0 = report.errors[name], report.errors[H0]
    matrix, bands = errors.matrix.total.mean, errors.mesh.total.mean
    each = [one.errors[name].matrix.total.mean for one in report.structures]
    each_h0 = [one.errors[H0].matrix.total.mean for one in report.structures]
    ratios = [a / b for a, b in zip(each, each_h0, strict=True)]
    print(
        f"  {label:<30}{seconds:>8}{density:>9}{1e3 * matrix:>9.3f}"
        f"{100 * matrix / h0.matrix.total.mean:>8.1f}{100 * sum(ratios) / len(ratios):>8.1f}"
        f"{1e3 * bands:>9.1f}{100 * bands / h0.mesh.total.mean:>8.1f}"
        f"{1e3 * (errors.mesh.gap_error or 0):>8.0f}{errors.mesh.ghosts:>8}",
        flush=True,
    )


def last_row(folder: Path) -> dict[str, str]:
    """Of the best validation of a run."""
    with (folder / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = [row for row in rows if row["best"] == "1"][-1]
    return best | {"seconds": rows[-1]["seconds"]}


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", metavar="SET")
    parser.add_argument("--folder", required=True, help="of the runs")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pair-epochs", type=float, default=40)
    parser.add_argument("--pseudo-dir")
    parser.add_argument("--orbital-dir")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    print(
        f"{'':<32}{'training':>8}{'density':>9}{'H':>9}{'of H(0)':>8}{'mean':>8}{'bands':>9}"
        f"{'of H(0)':>8}{'gap':>8}{'ghosts':>8}\n"
        f"{'':<32}{'s':>8}{'%':>9}{'meV':>9}{'%':>8}{'%':>8}{'meV':>9}{'%':>8}{'meV':>8}"
    )
    files = {"pseudo_dir": options.pseudo_dir, "orbital_dir": options.orbital_dir}
    for split in options.splits:
        names = SPLITS[split]
        print(f"{split} held out: {' '.join(names)}")
        line("H(0)", evaluate(None, options.dataset, names=names, npoints=0), H0)
        for model in options.models:
            result = train(config(model, split, options))
            if not result.finished:
                return
            row = last_row(result.folder)
            try:
                report = evaluate(result.model, options.dataset, names=names, npoints=0, **files)
            except ValueError as refusal:  # pairs of elements that a model does not know
                print(
                    f"  {model:<30}{float(row['seconds']):>8.0f}  in training "
                    f"{100 * float(row['ratio']):.0f} % of H(0)'s error of H, mean of structures; "
                    f"else refused: {refusal}"
                )
                continue
            density = row.get("error_percent", "")
            line(
                model,
                report,
                PREDICTED,
                f"{float(row['seconds']):.0f}",
                density and f"{float(density):.1f}",
            )


if __name__ == "__main__":
    main()
