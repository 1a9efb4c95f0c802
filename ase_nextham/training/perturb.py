"""Displaced and strained copies of a crystal: structures to compute and to learn from.

The crystal is standardised by spglib, strained at random, and its atoms are displaced at random by
phonopy.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import spglib
from ase import Atoms
from ase.io import write as write_atoms

from ase_nextham.files import replacing

CELLS = ("primitive", "conventional", "as given")
"""Which cell of a crystal to deform."""

_LARGEST = {"displacement": 1.0, "strain": 0.3}
_SMALLEST_SHARE = 0.1  # of the largest displacement


def perturbed(
    atoms: Atoms,
    number: int,
    *,
    displacement: float = 0.05,
    strain: float = 0.02,
    cell: str = "primitive",
    supercell: Sequence[int] = (1, 1, 1),
    seed: int = 0,
) -> list[Atoms]:
    """Displaced and strained copies of a crystal.

    Parameters
    ----------
    atoms
        A crystal; its symmetry is found with the tolerance of spglib, 1e-5 Angstrom.
    number
        How many.
    displacement
        Largest distance that atoms are moved by, in Angstrom. Each copy draws one distance up to
        it, by which its atoms are moved in random directions.
    strain
        Largest component of the strain. Each copy draws a symmetric tensor, whose six components
        are uniform between -strain and strain.
    cell
        ``"primitive"`` or ``"conventional"``: the standardised cell; ``"as given"``.
    supercell
        Repetitions of that cell.
    seed
        The same seed gives the same copies, and the first ones do not depend on how many follow.

    Returns
    -------
    list of Atoms
        With the cell ``cell @ (1 + strain)`` and atoms displaced from their places in it; periodic
        and with magnetic moments as given.

    Raises
    ------
    ImportError
        If phonopy is not installed.
    ValueError
        If an argument makes no sense, or the cell cannot be standardised.
    """
    if number < 1:
        raise ValueError(f"the number of structures must be at least 1, not {number}")
    for name, value in (("displacement", displacement), ("strain", strain)):
        if not 0 <= value <= _LARGEST[name]:
            raise ValueError(f"{name}={value} must be between 0 and {_LARGEST[name]}")
    if len(supercell) != 3 or min(supercell) < 1:
        raise ValueError(f"supercell={supercell} must be three positive integers")
    ideal = standardised(atoms, cell).repeat(tuple(supercell))
    copies = []
    for child in np.random.SeedSequence(seed).spawn(number):
        rng = np.random.default_rng(child)
        tensor = rng.uniform(-strain, strain, (3, 3))
        tensor = np.triu(tensor) + np.triu(tensor, 1).T
        copy = ideal.copy()
        copy.set_cell(ideal.cell.array @ (np.eye(3) + tensor), scale_atoms=True)
        if displacement:
            copy.positions += _displacements(copy, displacement, int(rng.integers(2**32)))
        copies.append(copy)
    return copies


def standardised(atoms: Atoms, cell: str = "primitive") -> Atoms:
    """The standard cell of a crystal.

    Parameters
    ----------
    cell
        One of :data:`CELLS`.

    Returns
    -------
    Atoms
        Turned as spglib turns it.

    Raises
    ------
    ValueError
        If there is no complete cell, no symmetry is found, or the structure has magnetic moments
        or open directions, which the standard cell would lose.
    """
    if cell not in CELLS:
        raise ValueError(f"cell={cell!r} is unknown; known: {', '.join(CELLS)}")
    if not len(atoms) or atoms.cell.rank < 3:
        raise ValueError("the structure needs atoms and three cell vectors")
    if cell == "as given":
        copy = atoms.copy()
        copy.calc = None
        copy.set_constraint()
        return copy
    if atoms.get_initial_magnetic_moments().any():
        raise ValueError(
            "the standard cell is found without magnetic moments, which these atoms have; use "
            "cell='as given'"
        )
    if not atoms.pbc.all():
        raise ValueError(
            "the standard cell of a structure that is not periodic in all directions may have its "
            "vacuum elsewhere; use cell='as given'"
        )
    given = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    with warnings.catch_warnings():
        # spglib 2.7 and 2.8 warn about their own way of reporting errors, which changes in 3
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            found = spglib.standardize_cell(given, to_primitive=cell == "primitive")
        except getattr(spglib, "SpglibError", ()):
            found = None
    if found is None:
        raise ValueError(
            "spglib finds no symmetry of the structure (do atoms coincide?); use cell='as given'"
        )
    lattice, positions, numbers = found
    return Atoms(numbers, cell=lattice, scaled_positions=positions, pbc=True)


def write_structures(
    structures: Sequence[Atoms], folder: str | os.PathLike, name: str
) -> list[Path]:
    """Write structures as ``NAME_0.extxyz``, ``NAME_1.extxyz``, ...

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    FileExistsError
        If one of them is there already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}_{k}.extxyz" for k in range(len(structures))]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} is there already; choose another folder or name")
    for path, atoms in zip(paths, structures, strict=True):
        with replacing(path) as temporary:
            write_atoms(temporary, atoms, format="extxyz")
    return paths


def _displacements(atoms: Atoms, largest: float, seed: int) -> np.ndarray:
    """Random displacements of all atoms in Angstrom, shape (natoms, 3)."""
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as err:
        raise ImportError(
            "displacements are drawn by phonopy, which is not installed: pip install phonopy"
        ) from err
    unitcell = PhonopyAtoms(
        numbers=atoms.numbers, cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions()
    )
    phonopy = Phonopy(
        unitcell, supercell_matrix=np.eye(3, dtype=int), primitive_matrix="P", is_symmetry=False
    )
    phonopy.generate_displacements(
        distance=_SMALLEST_SHARE * largest,
        max_distance=largest,
        number_of_snapshots=1,
        random_seed=seed,
    )
    return np.array(phonopy.dataset["displacements"][0])


__all__ = ["CELLS", "perturbed", "standardised", "write_structures"]
