"""H(0) by our own engine against ABACUS: every element, every law, and the time.

    python benchmarks/native_h0.py accuracy [--dtype float32] [--only Si2 GaAs ...]
    python benchmarks/native_h0.py laws
    python benchmarks/native_h0.py time [--dtype float32] [--threads N] [--device cuda]
    python benchmarks/native_h0.py growth [--atoms 1024]
    python benchmarks/native_h0.py mini [--structures 60]

``--data`` is the folder with ``pseudo``, ``orbital`` and ``abacus`` (runs of ABACUS v3.9.0 as
.tar.xz), by default ``../shared/data`` beside the repository. Times are those of the processor,
with the elements and tables of an earlier structure in memory, the smallest of several runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase import Atoms
from ase.build import bulk
from scipy.linalg import eigh

from ase_nextham import LCAOData
from ase_nextham.h0.abacus import AbacusH0
from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.native import engine as native_engine
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.matrix import AtomPairs, aligned
from ase_nextham.units import RYDBERG

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
KPT = (0.1, -0.3, 0.45)


def run(path: Path, data: Path) -> LCAOData:
    """What ABACUS wrote: S and H(0), of some archives the self-consistent H and r(R), too."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # single terms are incomplete on purpose
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        parts = sorted(inputs.parent for inputs in Path(folder).rglob("INPUT"))
        return read_folder(parts, pseudo_dir=data / "pseudo", orbital_dir=data / "orbital")


def options_of(name: str) -> dict:
    """How a run was made, from its name."""
    options: dict = {"nspin": 1 if "nspin1" in name else 4}
    if options["nspin"] == 4 and "zero" not in name:
        options["moments"] = "abacus39_auto"
    for word, term in (
        ("_T_only", "kinetic"),
        ("_Vnl_only", "nonlocal"),
        ("_Vlocal_only", "local"),
    ):
        if word in name:
            options["terms"] = [term]
    return options


def compare(ours, theirs) -> tuple[float, float, float]:
    """Mean and largest difference of the elements that ABACUS wrote, largest of the others."""
    pairs = AtomPairs.union(ours.pairs, theirs.pairs)
    a, b = ours.on_pairs(pairs).data, theirs.on_pairs(pairs).data
    error, there = np.abs(a - b), b != 0
    return error[there].mean(), error[there].max(), np.abs(a[~there]).max(initial=0)


def blocks_beyond(ours, theirs) -> tuple[int, float]:
    """Blocks that we lack, and the largest element of those that ABACUS lacks."""
    missing = ours.pairs.find(theirs.pairs.i, theirs.pairs.j, theirs.pairs.R) < 0
    where = theirs.pairs.find(ours.pairs.i, ours.pairs.j, ours.pairs.R)
    extra = np.repeat(where < 0, np.diff(ours.offsets))
    return int(missing.sum()), float(np.abs(ours.data[..., extra]).max(initial=0))


def accuracy(arguments) -> None:
    """One line for each run: S, H(0), r(R) and the list of blocks."""
    print("differences from ABACUS v3.9.0: S, H(0) in meV, blocks, r in Angstrom")
    print(
        f"{'':<21}{'moments':>14}{'grid':>13}{'S max':>9}{'H mean':>9}{'H max':>9}"
        f"{'missing':>8}{'extra/Ry':>9}{'r max':>9}"
    )
    archives = sorted((arguments.data / "abacus" / "h0").glob("*.tar.xz"))
    archives += sorted((arguments.data / "abacus" / "scf").glob("*.tar.xz"))
    for path in archives:
        name = path.name.removesuffix(".tar.xz")
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        expected = run(path, arguments.data)
        # ABACUS 3.9 has no zero moments: the runs "zero" give one atom 2e-5 mu_B, and so does the
        # second line of each
        for preset in ["given", "initial"] if "zero" in name else ["given"]:
            label = "scf/" + name if path.parent.name == "scf" else name
            _accuracy_line(label, expected, preset, arguments)


def _accuracy_line(name: str, expected: LCAOData, preset: str, arguments) -> None:
    options, atoms = options_of(name), expected.atoms.copy()
    if preset == "initial":
        options["moments"] = "initial"
    else:
        atoms.set_initial_magnetic_moments(None)
    found = backend(arguments, **options).compute(atoms)
    _, overlap, _ = compare(found.overlap, expected.overlap)
    mean, largest, _ = compare(found.h0, expected.h0)
    missing, extra = blocks_beyond(found.h0, expected.h0)
    grid = "x".join(map(str, found.source.get("grid", ["-"])))
    moments = {"zero": "zero", "initial": "2e-5 mu_B"}.get(found.source["moments"], "auto")
    position = "-"
    if expected.position is not None:
        errors = [compare(*axis)[1] for axis in zip(found.position, expected.position, strict=True)]
        position = f"{max(errors):.1e}"
    print(
        f"{name:<21}{moments:>14}{grid:>13}{overlap:9.1e}{1e3 * mean:9.1e}{1e3 * largest:9.1e}"
        f"{missing:8}{extra / RYDBERG:9.1e}{position:>9}",
        flush=True,
    )


def backend(arguments, **options) -> NativeH0:
    """The engine with the files of the data folder."""
    given = {"threads": arguments.threads, "dtype": arguments.dtype, "device": arguments.device}
    return NativeH0(arguments.data / "pseudo", arguments.data / "orbital", **(given | options))


# --- laws ----------------------------------------------------------------------------------------


def laws(arguments) -> None:
    """By how much each law is broken, in Ry."""
    print("how far laws are broken, in Ry (r in Angstrom)")
    print(
        f"{'':<8}{'Hermitian':>10}{'time rev.':>10}{'moved':>10}{'folded':>10}{'S turned':>10}"
        f"{'T, Vnl turned':>14}{'r law':>10}"
    )
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    for name, atoms in (
        ("Si2", bulk("Si", "diamond", a=5.43)),
        ("GaAs", bulk("GaAs", "zincblende", a=5.653)),
        ("MgO", bulk("MgO", "rocksalt", a=4.21)),
    ):
        atoms.rattle(0.05, seed=1)
        data = backend(arguments).compute(atoms)
        shifts = rng.integers(-2, 3, (len(atoms), 3))
        moved = atoms.copy()
        moved.positions += shifts @ atoms.cell.array
        away = compare(backend(arguments).compute(moved).h0, data.translated(shifts).h0)
        repeated = backend(arguments).compute(atoms.repeat((2, 1, 1)))
        grid, large = data.source["grid"], repeated.source["grid"]
        folded = "other grid"
        if large == [2 * grid[0], *grid[1:]]:
            folds = compare(repeated.h0, data.repeated((2, 1, 1)).h0)
            folded = f"{max(folds[1:]) / RYDBERG:.1e}"
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
        terms = backend(arguments, terms=["kinetic", "nonlocal"])
        before, after = terms.compute(atoms), terms.compute(turned)
        overlap = compare(after.overlap, before.overlap.rotated(rotation))
        two_centre = compare(after.h0, before.h0.rotated(rotation))
        print(
            f"{name:<8}{data.h0.hermitian_error() / RYDBERG:10.1e}"
            f"{data.h0.time_reversal_error() / RYDBERG:10.1e}{max(away[1:]) / RYDBERG:10.1e}"
            f"{folded:>10}{max(overlap[1:]):10.1e}{max(two_centre[1:]) / RYDBERG:14.1e}"
            f"{data.position_error():10.1e}",
            flush=True,
        )


# --- time ----------------------------------------------------------------------------------------


def bismuth_telluride() -> Atoms:
    """The rhombohedral cell of Bi2Te3, whose grid has 128 x 128 x 128 points."""
    a, angle = 10.5, np.radians(24.166)
    cosine = np.cos(angle)
    height, radius = np.sqrt((1 + 2 * cosine) / 3), np.sqrt(2 * (1 - cosine) / 3)
    turns = 2 * np.pi / 3 * np.arange(3)
    cell = a * np.column_stack([radius * np.cos(turns), radius * np.sin(turns), [height] * 3])
    inner = np.array([0.4, -0.4, 0.0, 0.2095, -0.2095])
    return Atoms("Bi2Te3", scaled_positions=np.outer(inner, [1, 1, 1]), cell=cell, pbc=True)


def times(arguments) -> None:
    """Seconds for each structure, and of ABACUS where it is on PATH."""
    executable = shutil.which("abacus")
    print(f"seconds of the processor, {arguments.threads} thread(s), {arguments.dtype}, nspin 4")
    print(f"{'':<10}{'grid':>13}{'zero':>8}{'auto':>8}{'target':>8}{'ABACUS':>8}")
    structures = {"Si2": 0.4, "GaAs": 0.8, "Ca2Au4": 1.5, "MoS2": 1.5}
    for name, target in structures.items():
        path = arguments.data / "abacus" / "h0" / f"{name}_soc_auto.tar.xz"
        _time_line(name, run(path, arguments.data).atoms, target, arguments, executable)
    _time_line("Bi2Te3", bismuth_telluride(), 6.0, arguments, executable)


def _time_line(name: str, atoms: Atoms, target: float, arguments, executable) -> None:
    atoms = atoms.copy()
    atoms.set_initial_magnetic_moments(None)
    seconds, grid = [], ""
    for moments in ("zero", "abacus39_auto"):
        engine = backend(arguments, moments=moments)
        data = engine.compute(atoms)
        grid = "x".join(map(str, data.source["grid"]))
        seconds.append(min(_seconds(engine, atoms, arguments.device) for _ in range(3)))
    theirs = "-" if executable is None else f"{_abacus_seconds(atoms, arguments):.1f}"
    print(
        f"{name:<10}{grid:>13}{seconds[0]:8.2f}{seconds[1]:8.2f}{target:8.1f}{theirs:>8}",
        flush=True,
    )


def _seconds(engine: NativeH0, atoms: Atoms, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    engine.compute(atoms)
    return clock() - start


def _abacus_seconds(atoms: Atoms, arguments) -> float:
    """User time of ABACUS in one process with one thread, writing its files included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    AbacusH0(pseudo_dir=arguments.data / "pseudo", orbital_dir=arguments.data / "orbital").compute(
        atoms
    )
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used


# --- growth --------------------------------------------------------------------------------------


def growth(arguments) -> None:
    """Silicon supercells, each in a process of its own."""
    if arguments.repeat:
        print(json.dumps(_grown(arguments)))
        return
    print("silicon, nspin 4, with r(R)")
    print(f"{'atoms':>6}{'pairs':>9}{'seconds':>9}{'peak/GB':>9}{'stated/GB':>10}")
    rows = []
    for n in range(1, 9):
        if 2 * n**3 > arguments.atoms:
            break
        command = [sys.executable, __file__, "growth", "--repeat", str(n)]
        command += ["--data", str(arguments.data), "--threads", str(arguments.threads)]
        command += ["--dtype", arguments.dtype, "--device", arguments.device]
        row = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        rows.append(row)
        print(
            f"{row['atoms']:6}{row['pairs']:9}{row['seconds']:9.1f}{row['peak']:9.2f}"
            f"{row['stated']:10.2f}",
            flush=True,
        )
    for what in ("seconds", "peak"):
        some = [(row["atoms"], row[what]) for row in rows if row["atoms"] >= 54]
        if len(some) > 1:
            slope = np.polyfit(*np.log(np.array(some)).T, 1)[0]
            print(f"slope of {what} on log-log from {some[0][0]} atoms on: {slope:.2f}")


class Stated(logging.Handler):
    """Keeps what the engine says about memory beforehand."""

    def emit(self, record: logging.LogRecord) -> None:
        self.gigabytes = record.args[-1]


def _grown(arguments) -> dict:
    stated = Stated()
    logging.getLogger("ase_nextham").addHandler(stated)
    logging.getLogger("ase_nextham").setLevel("INFO")
    native_engine.LARGE = 0  # so that small cells say it, too
    engine = backend(arguments, progress=False)
    silicon = bulk("Si", "diamond", a=5.43)
    engine.compute(silicon)
    start = time.process_time()
    data = engine.compute(silicon.repeat(arguments.repeat))
    return {
        "atoms": len(data.atoms),
        "pairs": len(data.pairs),
        "seconds": time.process_time() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "stated": stated.gigabytes,
    }


# --- the correction that networks learn ----------------------------------------------------------


def mini(arguments) -> None:
    """What the engine is off by, beside what a network is to correct."""
    print("mean differences of elements in meV, and of eigenvalues at one k-point")
    print(f"{'':<10}{'native-H0':>11}{'scf-H0':>9}{'ratio':>9}{'bands':>10}{'bands scf':>10}")
    archives = sorted((arguments.data / "abacus" / "mini").glob("*.tar.xz"))
    for path in archives[:: max(1, len(archives) // arguments.structures)]:
        expected = run(path, arguments.data)
        atoms = expected.atoms.copy()
        atoms.set_initial_magnetic_moments(None)
        ours = backend(arguments, nspin=1).compute(atoms)
        H0, H = expected.h0, expected.hamiltonian
        error = compare(ours.h0, H0)[0]
        correction = compare(aligned(H, H0, expected.overlap)[0], H0)[0]
        S = expected.overlap.at_k(KPT)
        energies = [eigh(matrix.at_k(KPT), S, eigvals_only=True) for matrix in (ours.h0, H0, H)]
        bands = np.abs(energies[0] - energies[1]).mean()
        shift = energies[2] - energies[1]
        moved = np.abs(shift - shift.mean()).mean()
        print(
            f"{path.name.removesuffix('.tar.xz'):<10}{1e3 * error:11.1e}{1e3 * correction:9.1f}"
            f"{correction / error:9.0e}{1e3 * bands:10.1e}{1e3 * moved:10.1f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = {"accuracy": accuracy, "laws": laws, "time": times, "growth": growth, "mini": mini}
    parser.add_argument("what", choices=what)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names, for accuracy")
    parser.add_argument("--atoms", type=int, default=250, help="largest supercell, for growth")
    parser.add_argument("--structures", type=int, default=60, help="how many, for mini")
    parser.add_argument("--repeat", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    what[chosen.what](chosen)
