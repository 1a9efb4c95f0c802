"""Optical conductivity by PYATB and by our own Kubo formula: agreement and time.

    python benchmarks/conductivity.py

Silicon and GaAs with spin-orbit coupling, on the mesh and the energies of each row; "left" is the
same crystal with two lattice vectors exchanged. "difference" is the largest difference of any
component, from 0.5 eV on, over the largest component. "as it is" is PYATB's own result, without
the transitions that it leaves out. PYATB's time includes the start of its process.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from ase_nextham import AtomPairs, LCAOData, bands, hdf5
from ase_nextham.optics import adapter, optical_conductivity, pyatb_bands

ROOT = Path(__file__).parents[1]
CASES = [
    ("Si", ROOT / "tests/data/optics/Si2.h5", 8, np.linspace(0, 10, 201)),
    ("GaAs", ROOT / "examples/data/GaAs_soc.h5", 4, np.linspace(0, 8, 81)),
]


def left_handed(data: LCAOData) -> LCAOData:
    """The same crystal with the first two lattice vectors exchanged."""
    axes = [1, 0, 2]
    atoms = data.atoms.copy()
    atoms.set_cell(atoms.cell.array[axes])
    pairs, order = AtomPairs.sort(data.pairs.i, data.pairs.j, data.pairs.R[:, axes])
    place = np.argsort(order)
    return LCAOData(
        atoms,
        data.overlap.move_blocks(pairs, place),
        hamiltonian=data.hamiltonian.move_blocks(pairs, place),
        position=tuple(matrix.move_blocks(pairs, place) for matrix in data.position),
        nelectrons=data.nelectrons,
    )


def timed(function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def difference(a: np.ndarray, b: np.ndarray, omega: np.ndarray) -> float:
    some = omega >= 0.5
    return np.abs(a - b)[..., some].max() / np.abs(b)[..., some].max()


if __name__ == "__main__":
    print(" " * 14 + "difference    as it is    bands/eV  PYATB/s   Kubo/s ratio")
    for name, path, n, omega in CASES:
        data = replace(hdf5.read(path), h0=None)
        for label, crystal in ((name, data), (f"{name} left", left_handed(data))):
            mesh = (n, n, n)
            time_pyatb, theirs = timed(optical_conductivity, crystal, omega, mesh, "pyatb")
            time_kubo, ours = timed(optical_conductivity, crystal, omega, mesh, "kubo")
            kpts = bands.kmesh(crystal.atoms, mesh, symmetry=False).kpts
            eps = bands.eigenvalues(crystal.hamiltonian, crystal.overlap, kpts)
            gap = bands.band_gap(eps, crystal.nelectrons, crystal.hamiltonian.spin)
            plain, _ = adapter.conductivity(crystal, omega, mesh, (gap.vbm + gap.cbm) / 2, 0.1)
            energies = np.abs(pyatb_bands(crystal, kpts) - eps).max()
            print(
                f"{label:<12}{difference(theirs, ours, omega):12.1e}"
                f"{difference(plain, ours, omega):12.1e}{energies:12.1e}"
                f"{time_pyatb:9.2f}{time_kubo:9.2f}{time_pyatb / time_kubo:6.1f}"
            )
