"""Converged densities of the samples of a data set: where they are found, and how they are kept.

In the file of a sample, below ``/training/density``:

    miller        integers of the plane waves, G and -G, shape (n, 3)
    coefficients  in Bohr^-3, in single precision, shape (n,)
    reciprocal    rows: see :class:`~ase_nextham.h0.density.Density`, shape (3, 3)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms

from ase_nextham.h0.density import Density, density_file, read_density
from ase_nextham.h0.folder import operator_of
from ase_nextham.h0.run import find_runs

GROUP = "training/density"

ELECTRONS_TOLERANCE = 1e-3
"""Largest relative difference of the number of electrons: cells of another volume differ more."""


def density_of_run(path: Path) -> Density | None:
    """The density that a self-consistent run of ABACUS left, or None if it left none.

    Parameters
    ----------
    path
        Folder of a run or of several, or anything else, which has no density.

    Raises
    ------
    ValueError
        If its file is damaged.
    """
    if not path.is_dir():
        return None
    try:
        runs = find_runs(path)
    except ValueError:
        return None
    # a run of one step leaves a density, too, which belongs to no label
    outputs = [run.output for run in runs if operator_of(run) == "hamiltonian"]
    return _first(outputs)


def density_in(folder: Path, name: str) -> Density | None:
    """The density of one structure in a folder of many, or None if there is none.

    Parameters
    ----------
    folder
        Holds ``NAME.npz`` or ``NAME.cube`` as :func:`~ase_nextham.h0.density.read_density` reads
        them, or a folder ``NAME``: of runs, of their output, or with ABACUS's file in it.
    name
        Of the structure.

    Raises
    ------
    ValueError
        If a file is damaged.
    """
    for ending in (".npz", ".cube"):
        file = folder / f"{name}{ending}"
        if file.is_file():
            return read_density(file)
    inner = folder / name
    found = density_of_run(inner)
    if found is not None:
        return found
    places = [inner, *sorted(inner.glob("OUT.*"))]
    return _first(places)


def _first(folders: Iterable[Path]) -> Density | None:
    """The density in the first folder that holds one."""
    files = (density_file(folder) for folder in folders)
    return next((read_density(file) for file in files if file is not None), None)


def check_density(density: Density, atoms: Atoms, nelectrons: float | None) -> None:
    """ValueError unless the density has the structure's cell and number of electrons.

    Parameters
    ----------
    nelectrons
        In the cell; None where they are not known and are not compared.
    """
    held = density.nelectrons(atoms.cell.array)
    if nelectrons is not None and abs(held - nelectrons) > ELECTRONS_TOLERANCE * nelectrons:
        raise ValueError(
            f"the density holds {held:.4f} electrons in a cell and the structure {nelectrons:g}: "
            "it is of another structure, or of one with another charge"
        )


def digest(density: Density) -> str:
    """sha256 of a density as it is kept."""
    found = hashlib.sha256()
    for values, dtype in (
        (density.miller, "<i4"),
        (density.coefficients, "<c8"),
        (density.reciprocal, "<f8"),
    ):
        found.update(np.ascontiguousarray(values, dtype).tobytes())
    return found.hexdigest()


def write_density(file: h5py.File, density: Density) -> None:
    """Keep a density in the file of a sample that has none."""
    group = file.create_group(GROUP)
    small = np.abs(density.miller).max(initial=0) < 2**15
    # single precision moves dH by 2e-7 of it; see write_sample for the checksums
    for name, values in (
        ("miller", density.miller.astype("int16" if small else "int32")),
        ("coefficients", density.coefficients.astype(np.complex64)),
    ):
        group.create_dataset(name, data=values, compression="gzip", shuffle=True, fletcher32=True)
    group.create_dataset("reciprocal", data=density.reciprocal, fletcher32=True)


def read_stored_density(file: h5py.File) -> Density:
    """The density that :func:`write_density` kept.

    Raises
    ------
    KeyError, OSError, ValueError
        If it is damaged.
    """
    group = file[GROUP]
    return Density(
        group["miller"][()].astype(int),
        group["coefficients"][()].astype(complex),
        group["reciprocal"][()],
    )
