"""The program that :mod:`ase_nextham.optics.adapter` runs to call PYATB; not for import.

Importing PYATB starts MPI and writes into the current folder, and misuse of it ends the process.
Hence a process and a folder of its own: this reads ``input.npz`` from the current folder and leaves
``output.npz`` there. It imports nothing of ase_nextham.
"""

from pathlib import Path

import numpy as np
from scipy.sparse import csc_matrix

IMPORTED = "imported"
"""Name of the file that says that PYATB and MPI could be loaded."""


def model(given, hamiltonian):
    """PYATB's object for a crystal. Its nspin 4 says that a state holds one electron."""
    from pyatb.tb import multiXR, tb

    R, dimension = given["R"], int(given["dimension"])
    where = (given["row"], given["column"])
    shape = (len(R), dimension * (dimension + 1) // 2)

    def operator(name, values):
        result = multiXR(name)
        matrix = csc_matrix((values.astype(complex), where), shape=shape)
        result.set_XR(len(R), R.astype(float), dimension, matrix)
        return result

    # the lattice constant is 1, because the vectors are in Angstrom
    result = tb(1 if given["capacity"] == 2 else 4, 1.0, given["cell"])
    H, S = operator("H", hamiltonian), operator("S", given["overlap"])
    result.set_solver_HSR(H, S, isSparse=True)
    if "position" in given:
        r = [operator(f"r_{axis}", x) for axis, x in zip("xyz", given["position"], strict=True)]
        result.set_solver_rR(*r, isSparse=True)
    return result


def conductivity(given):
    """Conductivity and dielectric function as PYATB returns them, shape (9, nomega)."""
    from pyatb.berry.optical_conductivity import Optical_Conductivity

    start, step, number = float(given["start"]), float(given["step"]), int(given["number"])
    sigma, epsilon = Optical_Conductivity(
        model(given, given["hamiltonian"][0])
    ).calculate_optical_conductivity(
        occ_band=-1,  # that is: all up to fermi_energy
        fermi_energy=float(given["fermi_level"]),
        # PYATB rounds (end - start) / step down, half a step keeps it from losing the last point
        omega=[start, start + (number - 0.5) * step],
        domega=step,
        eta=float(given["eta"]),
        grid=given["size"],
        method=1,
    )
    return {"sigma": sigma, "epsilon": epsilon}


def bands(given):
    """Energies, shape (nspins, nkpts, nbands)."""
    solvers = [model(given, hamiltonian).tb_solver for hamiltonian in given["hamiltonian"]]
    return {"eps": [solver.diago_H_eigenvaluesOnly(given["kpts"]) for solver in solvers]}


if __name__ == "__main__":
    import pyatb  # noqa: F401  (first, so that failing to load it can be told from failing later)

    Path(IMPORTED).touch()
    with np.load("input.npz") as file:
        request = dict(file)
    task = conductivity if "size" in request else bands
    np.savez("output.npz", **task(request))
