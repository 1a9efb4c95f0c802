"""A model with the density head at work: where its time goes, how it grows, and its laws.

    python benchmarks/density_head.py [--model MODEL] [--part time growth laws] [--largest 128]

``time``: one prediction for the GaAs of examples/data, scalar and with spin-orbit coupling, on one
thread, after the tables of H(0) were made: seconds of the processor and of the clock, the best of
three. ``growth``: cells of silicon, each in a process of its own, whose largest memory is in the
last column; "slope" is d log / d log atoms from the row before. ``laws``: how far dH is from what
symmetry makes of it, relative to its largest element, for a crystal of GaAs whose atoms are off
their sites: with networks in single precision, and in double as models predict. Operations of the
lattice turn the atoms in a cell that stays. What depends on the grid comes last, with H(0) in the
same units beside it: all atoms moved by a third of the spacing of the grid, and other vectors of
the same lattice, which is also another mesh of k-points for the first density.

``--data`` is the folder with ``pseudo`` and ``orbital``, by default ``../shared/data`` beside the
repository.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

from ase_nextham import LCAOData, LCAOMatrix, hdf5
from ase_nextham.expansion import PlaneWaveSums
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import AtomPairs
from ase_nextham.model.density_network import AtomInputs, DensityEnsemble
from ase_nextham.potential_head import descriptor, first_density
from ase_nextham.potential_head.predict import DensityModel
from ase_nextham.prediction import load_model
from ase_nextham.testing import turned_in_cell

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
REPEATS = (1, 2, 3, 4)
"""Of the cell of two atoms of silicon, in each direction."""

STEPS = {
    "engine's view": [(DensityModel, "_local_part")],
    "eigenstates of H(0)": [(first_density, "map_kpts")],
    "density matrix": [(first_density, "density_matrix")],
    "density": [(first_density, "output_density")],
    "Gram matrix": [(PlaneWaveSums, "gram")],
    "fit": [(descriptor, "fit")],
    "descriptor": [(DensityModel, "_describe")],
    "network": [(AtomInputs, "of"), (DensityEnsemble, "forward")],
    "potential": [(DensityModel, "_potentials")],
    "integral": [(LocalPart, "matrix")],
}
"""What is timed, with all that it calls."""

INSIDE = {
    "density matrix": ["eigenstates of H(0)"],
    "density": ["density matrix"],
    "descriptor": ["density", "Gram matrix", "fit"],
}
"""Steps that are counted within others, and so taken off them."""


class Watch:
    """Seconds of the processor and of the clock that each step takes."""

    def __init__(self):
        self.spent = defaultdict(lambda: np.zeros(2))

    @contextmanager
    def of(self, name: str):
        start = self._now()
        yield
        self.spent[name] += self._now() - start

    @contextmanager
    def on_steps(self):
        """While this lasts, :data:`STEPS` are timed."""
        originals = []
        for name, places in STEPS.items():
            for owner, attribute in places:
                original = vars(owner)[attribute]
                originals.append((owner, attribute, original))
                setattr(owner, attribute, self._timed(name, original))
        yield
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)
        exclusive = {name: seconds.copy() for name, seconds in self.spent.items()}
        for outer, inner in INSIDE.items():
            for name in inner:
                exclusive[outer] -= self.spent[name]
        self.spent = exclusive

    def _timed(self, name: str, original):
        called = original.__func__ if isinstance(original, classmethod) else original

        def timed(*arguments, **options):
            with self.of(name):
                return called(*arguments, **options)

        return classmethod(timed) if isinstance(original, classmethod) else timed

    @staticmethod
    def _now() -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()])


def prediction(model: DensityModel, data: LCAOData) -> tuple[LCAOMatrix, Watch]:
    """One that was not asked for before."""
    model._last = None
    watch = Watch()
    with watch.on_steps(), watch.of("total"):
        dh = model.predict(data)
    return dh, watch


def backend(arguments, nspin: int) -> NativeH0:
    folders = (arguments.data / "pseudo", arguments.data / "orbital")
    return NativeH0(*folders, nspin=nspin, threads=1, position=False)


def read_model(arguments) -> DensityModel:
    folders = {name + "_dir": arguments.data / name for name in ("pseudo", "orbital")}
    model = load_model(arguments.model, **folders)
    model.engine.threads = 1
    return model


def report_time(arguments) -> None:
    """Print the table of one prediction."""
    atoms = hdf5.read(ROOT / "examples" / "data" / "GaAs_soc.h5").atoms
    atoms.set_initial_magnetic_moments(None)
    model, columns = read_model(arguments), []
    for nspin in (1, 4):
        engine = backend(arguments, nspin)
        best: dict[str, np.ndarray] = {}
        for attempt in range(4):
            watch = Watch()
            with watch.of("H(0) and S alone"):
                data = engine.compute(atoms)
            _, own = prediction(model, data)
            if attempt:  # the first one makes tables
                for name, spent in {**watch.spent, **own.spent}.items():
                    best[name] = np.minimum(best.get(name, np.inf), spent)
        columns.append(best)
    print(f"GaAs, 2 atoms, {len(data.h0.pairs)} pairs    scalar           spinor")
    print(f"{'seconds of':<26}processor  clock  processor  clock")
    for name in ("H(0) and S alone", *STEPS, "total"):
        values = "".join(f"{x:9.3f}{y:8.3f}" for x, y in (one[name] for one in columns))
        print(f"{name:<24}{values}")
    asked = [sum(one[name] for name in ("network", "potential", "integral")) for one in columns]
    values = "".join(f"{x:9.3f}{y:8.3f}" for x, y in asked)
    print(f"{'network to integral':<24}{values}")


def cell_of_silicon(row: int) -> Atoms:
    return bulk("Si", "diamond", a=5.43).repeat((REPEATS[row],) * 3)


def measure_row(arguments) -> dict[str, float]:
    """One row of the growth, in this process; seconds of the processor."""
    atoms = cell_of_silicon(arguments.row)
    engine, model = backend(arguments, 1), read_model(arguments)
    engine.compute(cell_of_silicon(0))  # tables
    watch = Watch()
    with watch.of("H(0)"):
        data = engine.compute(atoms)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    _, own = prediction(model, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = {name: float(spent[0]) for name, spent in {**watch.spent, **own.spent}.items()}
    return {"atoms": len(atoms), "before": before, "memory": peak, **seconds}


def report_growth(arguments) -> None:
    """Print how time and memory grow with the cell."""
    names = ["H(0)", *STEPS, "total"]
    print("Si; seconds of the processor")
    print("atoms" + "".join(f"{name.split()[0]:>12}" for name in names) + "   slope  memory/GB")
    before = None
    for row in range(len(REPEATS)):
        if len(cell_of_silicon(row)) > arguments.largest:
            continue
        command = [sys.executable, __file__, "--row", str(row), "--model", str(arguments.model)]
        command += ["--data", str(arguments.data)]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        now = json.loads(found)
        slope = ""
        if before is not None:
            growth = np.log(now["total"] / before["total"])
            slope = f"{growth / np.log(now['atoms'] / before['atoms']):.2f}"
        columns = "".join(f"{now[name]:12.2f}" for name in names)
        print(f"{now['atoms']:5d}{columns}{slope:>8}{now['memory']:11.2f}", flush=True)
        before = now


def distance(found: LCAOMatrix, expected: LCAOMatrix, scale: float) -> float:
    pairs = AtomPairs.union(found.pairs, expected.pairs)
    return float(np.abs((found.on_pairs(pairs) - expected.on_pairs(pairs)).data).max() / scale)


def laws(arguments, nspin: int, dtype: torch.dtype | None) -> dict[str, float]:
    """How far dH is from obeying each, relative to its largest element."""
    engine, model = backend(arguments, nspin), read_model(arguments).to(dtype=dtype)
    crystal = bulk("GaAs", "zincblende", a=5.653)
    cell = crystal.cell.array
    atoms = crystal.copy()
    atoms.positions += [[0.05, -0.08, 0.03], [0.02, 0.06, -0.1]]

    def both(positions, other=cell) -> LCAOData:
        """dH in place of H."""
        moved = Atoms(atoms.symbols, positions, cell=other, pbc=True)
        data = engine.compute(moved)
        return LCAOData(moved, data.overlap, data.h0, hamiltonian=model.predict(data))

    data = both(atoms.positions)
    dh = data.hamiltonian
    size = np.abs(dh.data).max()
    shifts = np.array([[1, -2, 0], [0, 1, 3]])
    turn = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    found = {
        "largest element / eV": float(size),
        "Hermiticity": dh.hermitian_error() / size,
        "time reversal": dh.time_reversal_error() / size,
    }

    def add(name: str, other: LCAOData, expected: LCAOMatrix) -> None:
        found[name] = distance(other.hamiltonian, expected, size)

    moved = both(atoms.positions + shifts @ cell)
    add("lattice translations", moved, data.translated(shifts).hamiltonian)
    add("cell and atoms turned", both(atoms.positions @ turn.T, cell @ turn.T), dh.rotated(turn))
    operations = {
        "inversion": -np.eye(3),
        "twofold": np.diag([1.0, -1, -1]),
        "threefold": np.eye(3)[[1, 2, 0]],
        "fourfold": np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    }
    for name, own in operations.items():
        turned = both(atoms.positions @ own.T)
        add(f"atoms turned, {name}", turned, turned_in_cell(dh, cell, own))
    grid = engine.local_part(atoms).waves.shape
    moved = both(atoms.positions + np.array([0.33, 0.21, -0.27]) / grid @ cell)
    add("egg box of dH", moved, dh)
    found["egg box of H(0)"] = distance(moved.h0, data.h0, size)
    change = np.array([[1, 0, 0], [0, 1, 0], [1, 1, -1]])
    other = both(atoms.positions, change @ cell)
    add("other cell, dH", other, in_cell(dh, change))
    found["other cell, H(0)"] = distance(other.h0, in_cell(data.h0, change), size)
    return found


def in_cell(matrix: LCAOMatrix, change: np.ndarray) -> LCAOMatrix:
    """The same operator with the cell vectors ``change @ cell``."""
    R = np.rint(matrix.pairs.R @ np.linalg.inv(change)).astype(int)
    pairs, order = AtomPairs.sort(matrix.pairs.i, matrix.pairs.j, R)
    blocks = np.split(matrix.data, matrix.offsets[1:-1])
    return replace(matrix, pairs=pairs, data=np.concatenate([blocks[p] for p in order]))


def report_laws(arguments) -> None:
    """Print all laws."""
    columns = [laws(arguments, nspin, dtype) for dtype in (torch.float32, None) for nspin in (1, 4)]
    print("GaAs, relative to the largest element of dH")
    print(f"{'':<26}{'single precision':>20}{'as it predicts':>22}")
    print(f"{'':<26}{'scalar':>10}{'spinor':>10}{'scalar':>11}{'spinor':>11}")
    for name in columns[0]:
        print(f"{name:<26}" + "".join(f"{one[name]:10.1e} " for one in columns))


PARTS = {"time": report_time, "growth": report_growth, "laws": report_laws}


def main() -> None:
    """Print the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--largest", type=int, default=54, help="atoms in a cell of silicon")
    parser.add_argument("--row", type=int, help="measure one row of the growth, printed as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.row is not None:
        print(json.dumps(measure_row(arguments)))
        return
    for part in arguments.part:
        PARTS[part](arguments)
        print()


if __name__ == "__main__":
    main()
