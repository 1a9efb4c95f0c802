"""Does the error rise with the spread? Whole compositions of a data set held out, one by one.

    python benchmarks/uncertainty.py SET [--folds] [--hold-out AlP+SiC+LiCl ...] [-o cases.json]
        [--figure errors.png]

For each composition an ensemble is trained on all others, and its spread on the samples of this one
is compared with its true error, in elements of H and in bands. The table ends with Spearman's rank
correlation over all samples that were held out, and with the quartiles of error / spread: how well
one factor turns a spread into an error. Below it, the correlation of the means of compositions:
copies of one crystal that hardly differ are no new evidence.

The members differ in the seeds of their weights; with ``--folds`` in the compositions that each
learns from, too. ``--hold-out`` holds out other groups of compositions. Pseudopotentials and
orbitals are those that are configured (``ABACUS_PP_PATH``, ``ABACUS_ORB_PATH``). Labels are made
and kept beside the samples where they are missing. One composition takes about a minute on one
core.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from ase_nextham import load_model
from ase_nextham.files import replacing, write_atomically
from ase_nextham.training.config import TrainConfig
from ase_nextham.training.dataset import Dataset, reduced_formula
from ase_nextham.training.density_calibration import Calibration, Case, calibrate
from ase_nextham.training.run import train

SETTINGS = {
    "model": {"head": "density"},
    "density": {"network": "two-layer", "members": 4},
    "optimiser": {
        "algorithm": "adamw",
        "weight_decay": 1.0,
        "learning_rate": 3e-3,
        "epochs": 100.0,
        "warm_up": 5.0,
        "batch": 15,
        "average": 0.99,
    },
    "run": {"validate_epochs": 100.0, "progress": False, "device": "cpu"},
}


def held_out(dataset: Dataset, formulas: Sequence[str], folds: bool, **changes) -> tuple[Case, ...]:
    """Spreads and errors of some compositions, by an ensemble that was trained on all others."""
    rest = [e.name for e in dataset.entries if e.formula not in formulas]
    own = [k for k, e in enumerate(dataset.entries) if e.formula in formulas]
    with TemporaryDirectory() as folder:
        config = TrainConfig.from_dict(
            {
                **SETTINGS,
                "data": {"path": str(dataset.path), "train": rest},
                "density": {**SETTINGS["density"], "folds": folds, **changes},
                "run": {**SETTINGS["run"], "folder": folder},
            }
        )
        model = load_model(train(config).model)
        return calibrate(model, dataset.subset(own)).cases


def means(calibration: Calibration) -> Calibration:
    """One case for each composition: geometric means of its samples."""
    groups: dict[str, list[Case]] = {}
    for case in calibration.cases:
        groups.setdefault(case.formula, []).append(case)

    def mean(several: list[Case]) -> Case:
        def of(values) -> float:
            return float(np.exp(np.mean(np.log(list(values)))))

        spread = replace(
            several[0].spread,
            dh=of(one.spread.dh for one in several),
            bands=of(one.spread.bands for one in several),
            correction=of(one.spread.correction for one in several),
        )
        own = {name: of(getattr(one, name) for one in several) for name in ("dh", "bands", "h0")}
        return replace(several[0], name=several[0].formula, spread=spread, **own)

    return Calibration(tuple(mean(several) for several in groups.values()))


def figure(calibration: Calibration, path: str) -> None:
    """Errors against spreads, one colour for each composition."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 4.8), layout="constrained")
    formulas = list(dict.fromkeys(case.formula for case in calibration.cases))
    colours = dict(zip(formulas, _colours(len(formulas)), strict=True))
    panels = (("dh", "elements of H"), ("bands", "bands"))
    for axes, (what, title) in zip(canvas.subplots(1, 2), panels, strict=True):
        for formula, marker in zip(formulas, cycle("osD^v"), strict=False):
            own = [case for case in calibration.cases if case.formula == formula]
            x = [1e3 * getattr(case.spread, what) for case in own]
            y = [1e3 * getattr(case, what) for case in own]
            axes.plot(x, y, marker, color=colours[formula], label=formula, markersize=5)
        relation = getattr(calibration, what)
        ends = 1e3 * np.array([relation.spreads.min(), relation.spreads.max()])
        axes.plot(ends, relation.factor * ends, "k-", linewidth=1)
        for share in (0.25, 0.75):
            axes.plot(ends, np.quantile(relation.ratios, share) * ends, "k:", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="spread of the members (meV)")
        axes.set(ylabel="error (meV)", title=f"{title}: rank correlation {relation.rank:.2f}")
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    with replacing(path) as temporary:
        canvas.savefig(temporary, dpi=150)


def _colours(number: int) -> list:
    from matplotlib import colormaps

    return list(colormaps["nipy_spectral"](np.linspace(0.03, 0.95, number)))


def main() -> None:
    """Print the table and what follows from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", metavar="SET")
    parser.add_argument("--folds", action="store_true", help="members leave out compositions")
    parser.add_argument(
        "--hold-out",
        nargs="+",
        metavar="A+B",
        help="compositions that are held out together (each alone)",
    )
    parser.add_argument("--network", default="two-layer", help="kind of network (two-layer)")
    parser.add_argument("-o", "--output", metavar="FILE", help="all numbers, as JSON")
    parser.add_argument("--figure", metavar="FILE", help="picture, PNG, PDF or SVG")
    arguments = parser.parse_args()
    dataset = Dataset(arguments.dataset)
    known = sorted({entry.formula for entry in dataset.entries})
    groups = [[formula] for formula in known]
    if arguments.hold_out:
        groups = [[reduced_formula(f) for f in g.split("+")] for g in arguments.hold_out]
        unknown = sorted({f for group in groups for f in group} - set(known))
        if unknown:
            parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    cases: tuple[Case, ...] = ()
    for group in groups:
        start = time.process_time()
        found = held_out(dataset, group, arguments.folds, network=arguments.network)
        cases += found
        spent = time.process_time() - start
        ratio = np.median([case.dh / case.h0 for case in found])
        print(
            f"without {', '.join(group)}: {100 * ratio:.1f} % of H(0)'s error; {spent:.0f} s",
            flush=True,
        )
    calibration = Calibration(cases)
    print(f"\n{calibration.table()}")
    if len(known) > 3 and not arguments.hold_out:
        print(f"\nmeans of compositions\n{means(calibration).table()}")
    if arguments.output:
        content = {"folds": arguments.folds, "cases": [asdict(case) for case in cases]}
        write_atomically(Path(arguments.output), json.dumps(content, indent=1) + "\n")
    if arguments.figure:
        figure(calibration, arguments.figure)


if __name__ == "__main__":
    main()
