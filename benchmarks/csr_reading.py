"""How fast H(R) and S(R) are read from CSR text: this package, PYATB and NumPy's text parser.

    python benchmarks/csr_reading.py [FOLDER ...]

FOLDER is that of an ABACUS run. Without one, the GaAs of examples/data (spin-orbit coupling) is
written in both text layouts and read back. Each reader gets the same two files, alone on one core
and with the files in the page cache; the best of several runs counts. ``to blocks`` is all the way
from the files to matrices in blocks of atoms, in eV; PYATB's time is that of ``pyatb.init_tb``,
also from the files to matrices that are ready for use. NumPy only parses the numbers, with
``np.fromstring``, the fastest that it offers for text.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from ase_nextham import Basis, hdf5
from ase_nextham.h0.csr import csr_matrices, lcao_matrices, read_csr, write_csr
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.run import find_runs

EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "GaAs_soc.h5"
REPEATS = 5

PYATB = """
import json, sys, time
import numpy as np
import pyatb
options = json.loads(sys.argv[1])
best = float("inf")
for _ in range(options["repeats"]):
    start = time.perf_counter()
    pyatb.init_tb(
        package="ABACUS", nspin=options["nspin"], lattice_constant=1.0, lattice_vector=np.eye(3),
        HR_route=options["H"], HR_unit="Ry", SR_route=options["S"],
    )
    best = min(best, time.perf_counter() - start)
print("seconds", best)
"""


def best_time(function: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def parse_with_numpy(paths: Sequence[Path]) -> None:
    """The numbers of all arrays, in stretches as long as the layout allows."""
    no_brackets = bytes.maketrans(b"(,)", b"   ")
    for path in paths:
        text = path.read_bytes().translate(no_brackets)
        marked = b"# CSR" in text
        body = text.rpartition(b"-#\n")[2] if marked else text.split(b"\n", 3)[3]
        for stretch in re.split(rb"# CSR.*" if marked else rb"\n", body):
            if stretch.strip():
                kind = float if b"e" in stretch[:80] else np.int64
                np.fromstring(stretch, kind, sep=" ")


def time_of_pyatb(H: Path, S: Path, nspin: int) -> float | str:
    """Seconds of ``pyatb.init_tb`` in a process and folder of its own, or why there are none."""
    if not find_spec("pyatb"):
        return "not installed"
    options = {"H": str(H), "S": str(S), "nspin": nspin, "repeats": 3}
    with tempfile.TemporaryDirectory() as folder:  # importing PYATB writes ./Out
        command = [sys.executable, "-c", PYATB, json.dumps(options)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"cannot read it: {(done.stderr.strip().splitlines() or ['crash'])[-1]}"
    return float(done.stdout.split()[-1])


def compare(title: str, H: Path, S: Path, basis: Basis, symbols: Sequence[str]) -> None:
    """Print the table of one pair of files."""

    def to_blocks():
        records = {"hamiltonian": read_csr(H)[0], "overlap": read_csr(S)[0]}
        return lcao_matrices(records, basis, symbols)

    spinor = to_blocks()["hamiltonian"].spin == "spinor"
    size = (H.stat().st_size + S.stat().st_size) / 1e6
    rows = {
        "ase_nextham, to blocks": best_time(to_blocks),
        "ase_nextham, to CSR": best_time(lambda: (read_csr(H), read_csr(S))),
        "PYATB": time_of_pyatb(H, S, 4 if spinor else 1),
        "NumPy, numbers only": best_time(lambda: parse_with_numpy([H, S])),
    }
    print(f"\n{title}: H and S, {size:.1f} MB, {'complex' if spinor else 'real'}")
    print(f"{'reader':<24}{'seconds':>9}{'MB/s':>7}")
    ours = rows["ase_nextham, to blocks"]
    for name, seconds in rows.items():
        if isinstance(seconds, str):
            print(f"{name:<24}{'-':>9}{'-':>7}   {seconds}")
        else:
            print(f"{name:<24}{seconds:9.3f}{size / seconds:7.0f}{seconds / ours:9.1f} x our time")


def example(folder: Path) -> None:
    """Both text layouts of the example."""
    data = hdf5.read(EXAMPLE)
    # files have the atoms grouped by species
    data = data.permuted(sorted(range(len(data.symbols)), key=lambda a: data.symbols[a]))
    records = csr_matrices({"hamiltonian": data.best_hamiltonian(), "overlap": data.overlap})
    for layout in ("legacy text", "new text"):
        paths = [folder / f"{layout} {operator}" for operator in "HS"]
        for path, record in zip(paths, records.values(), strict=True):
            write_csr(path, [record], layout, atoms=data.atoms)
        compare(f"GaAs, {layout}", *paths, data.basis, data.symbols)


def abacus_run(folder: Path) -> None:
    """The files of an ABACUS run."""
    data = read_folder(folder)
    (run,) = find_runs(folder)
    files = {f.operator: f.path for f in matrix_files(run.output) if f.spin == 0}
    compare(str(folder), files["H"], files["S"], data.basis, data.symbols)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        abacus_run(Path(argument))
    if not sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            example(Path(scratch))
