"""Time and memory of the bands near E_F in supercells, against the number of atoms.

    python benchmarks/supercell_bands.py [file.h5] [--atoms 1000]

A native file of a small crystal is repeated to compact and to long cells; no new Hamiltonian is
computed, and the bands at Gamma are known exactly: those of the small crystal at the k-points
that fold to it. Each row runs in a process of its own. One factorisation counts the electrons
(column "count"); bands_near does that once more and finds 20 bands ("bands", in all).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_info

from ase_nextham import bands, hdf5
from ase_nextham.bands.factorization import atom_levels

SILICON = Path(__file__).parents[1] / "tests/data/bands/Si2.h5"
SHAPES = {
    "compact": [(2, 2, 2), (3, 3, 3), (4, 4, 4), (5, 5, 5), (5, 6, 8), (5, 10, 10)],
    "long": [(2, 2, 4), (2, 2, 16), (2, 2, 31), (2, 2, 62), (2, 2, 125)],
}
LARGEST_DENSE = 3500  # rows; the dense solver is timed up to here
NBANDS = 20
GAMMA = np.zeros(3)
HEADER = (
    "   cell      atoms  rows  fill  levels  fold   count   bands    peak   dense   error\n"
    "                             %               s       s       s      GB       s      eV"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SILICON)
    parser.add_argument("--atoms", type=int, default=1000, help="size of the largest cell")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.file, tuple(json.loads(options.cell)))))
        return
    natoms = len(hdf5.read(options.file).atoms)
    threads = max(pool["num_threads"] for pool in threadpool_info())
    print(f"{options.file.name}: {NBANDS} bands near E_F at Gamma, {threads} BLAS threads")
    for shape, cells in SHAPES.items():
        print(f"\n{shape} cells\n{HEADER}")
        rows = []
        for cell in cells:
            if natoms * np.prod(cell) <= options.atoms:
                rows.append(in_own_process(options.file, cell))
                print(line(cell, rows[-1]), flush=True)
        if len(rows) > 1:
            print(growth(rows[-2:]))


def in_own_process(file: Path, cell: tuple[int, int, int]) -> dict:
    command = [sys.executable, __file__, str(file), "--cell", json.dumps(cell)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(file: Path, cell: tuple[int, int, int]) -> dict:
    data = hdf5.read(file)
    data = replace(data, hamiltonian=data.best_hamiltonian(), h0=None, position=None)
    folding = np.indices(cell).reshape(3, -1).T / cell
    folded = bands.eigenvalues(data.hamiltonian, data.overlap, folding)
    weights = np.full(len(folding), bands.spin_degeneracy(data.hamiltonian.spin) / len(folding))
    energy = bands.fermi_level(folded, weights, data.nelectrons)

    start = time.perf_counter()
    supercell = data.repeated(cell)
    fold = time.perf_counter() - start
    h, s = supercell.hamiltonian, supercell.overlap

    start = time.perf_counter()
    bands.electrons_below(h, s, [GAMMA], [1.0], energy)
    count = time.perf_counter() - start
    start = time.perf_counter()
    eps, first = bands.bands_near(h, s, GAMMA, energy, NBANDS)
    found = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    exact = np.sort(folded.reshape(len(folded), -1), axis=1)
    error = max(
        np.abs(e - known[n : n + len(e)]).max()
        for e, n, known in zip(eps, first, exact, strict=True)
    )
    dense = None
    if h.dimension <= LARGEST_DENSE and h.spin == "unpolarised":
        dense_h, dense_s = (m.sparse_at_k(GAMMA).toarray() for m in (h, s))
        start = time.perf_counter()
        eigh(dense_h, dense_s, eigvals_only=True, overwrite_a=True, overwrite_b=True)
        dense = time.perf_counter() - start
    return {
        "atoms": len(supercell.atoms),
        "rows": h.dimension,
        "fill": 100 * h.sparse_at_k(GAMMA).nnz / h.dimension**2,
        "levels": int(atom_levels(h.pairs, len(h.symbols)).max()) + 1,
        "fold": fold,
        "count": count,
        "bands": found,
        "peak": peak,
        "dense": dense,
        "error": float(error),
    }


def line(cell: tuple[int, int, int], row: dict) -> str:
    dense = "      -" if row["dense"] is None else f"{row['dense']:7.1f}"
    return (
        f"{'x'.join(map(str, cell)):>9} {row['atoms']:8d} {row['rows']:6d} {row['fill']:5.1f} "
        f"{row['levels']:6d} {row['fold']:6.1f} {row['count']:7.1f} {row['bands']:7.1f} "
        f"{row['peak']:7.1f} {dense} {row['error']:8.0e}"
    )


def growth(rows: list[dict]) -> str:
    ratio = np.log(rows[1]["atoms"] / rows[0]["atoms"])
    powers = [
        f"{key} N^{np.log(rows[1][key] / rows[0][key]) / ratio:.1f}" for key in ("bands", "peak")
    ]
    return f"between the last two rows: {', '.join(powers)}"


if __name__ == "__main__":
    main()
