"""From the matrix files of ABACUS to bands at 101 k-points: this package and PYATB.

    python benchmarks/bands_from_files.py

The GaAs of examples/data (spin-orbit coupling, dimension 76) is written as an ABACUS run and read
back, then diagonalised at 101 k-points between L and Gamma. PYATB does the same from the same
files, in a process of its own, which is not counted; the best of three runs of each counts. One
core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # inherited by PYATB's process

import numpy as np

from ase_nextham import bands, hdf5
from ase_nextham.converters import read, write

EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "GaAs_soc.h5"
KPTS = np.linspace([0.5, 0.5, 0.5], [0, 0, 0], 101)
REPEATS = 3

PYATB = """
import json, sys, time
import numpy as np
import pyatb
options = json.loads(sys.argv[1])
kpts = np.array(options["kpts"])
for _ in range(options["repeats"]):
    start = time.perf_counter()
    model = pyatb.init_tb(
        package="ABACUS", nspin=4, lattice_constant=1.0, lattice_vector=np.array(options["cell"]),
        HR_route=options["H"], HR_unit="Ry", SR_route=options["S"],
    )
    read = time.perf_counter()
    eps = model.tb_solver.diago_H_eigenvaluesOnly(kpts)
    solved = time.perf_counter()
    print("seconds", read - start, solved - read)
np.save("eps.npy", eps)
"""


def ours(folder: Path) -> tuple[float, float, np.ndarray]:
    """Seconds to read and to solve, and the eigenvalues."""
    start = time.perf_counter()
    data = read(folder)
    read_at = time.perf_counter()
    eps = bands.eigenvalues(data.hamiltonian, data.overlap, KPTS)[0]
    return read_at - start, time.perf_counter() - read_at, eps


def pyatb(folder: Path, cell: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The same of PYATB."""
    (H,), (S,) = (list(folder.rglob(f"data-{operator}R-sparse*")) for operator in "HS")
    options = {"H": str(H), "S": str(S), "cell": cell.tolist(), "kpts": KPTS.tolist()}
    options["repeats"] = REPEATS
    with tempfile.TemporaryDirectory() as scratch:  # importing PYATB writes ./Out
        command = [sys.executable, "-c", PYATB, json.dumps(options)]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=True)
        eps = np.load(Path(scratch) / "eps.npy")
    times = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("seconds")]
    return *min((tuple(map(float, pair)) for pair in times), key=sum), eps


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "GaAs"
        data = hdf5.read(EXAMPLE)
        # without H(0) and r there is one folder with H and S, which is all that bands need
        plain = replace(data, h0=None, position=None)
        write(folder, plain, format="abacus")
        mine = min((ours(folder) for _ in range(REPEATS)), key=lambda result: sum(result[:2]))
        theirs = pyatb(folder, data.atoms.cell.array)
    print(f"{'':<14}{'read':>8}{'solve':>8}{'total':>8}   seconds, 101 k-points of GaAs")
    for label, (reading, solving, _) in (("ase_nextham", mine), ("PYATB", theirs)):
        print(f"{label:<14}{reading:8.3f}{solving:8.3f}{reading + solving:8.3f}")
    ratios = np.divide([*theirs[:2], sum(theirs[:2])], [*mine[:2], sum(mine[:2])])
    print(f"{'ratio':<14}{ratios[0]:8.1f}{ratios[1]:8.1f}{ratios[2]:8.1f}")
    # PYATB's Rydberg is 13.605698066 eV, ABACUS's 13.605698: 5e-9 of each eigenvalue
    print(f"largest difference of the bands: {np.abs(mine[2] - theirs[2]).max():.1e} eV")
