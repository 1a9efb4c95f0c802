"""Every ABACUS matrix layout <-> :class:`~ase_nextham.matrix.LCAOMatrix`.

:func:`read_csr` reads a file of any layout, told apart by content and never by name, into
:class:`~ase_nextham.h0.csr_matrix.CSRMatrix`, in the units and the order of the file.
:func:`lcao_matrices` makes :class:`LCAOMatrix` on common pairs of them, in eV and Angstrom;
:func:`csr_matrices` and :func:`write_csr` go the other way. Structure, basis and atom order are
the matter of :mod:`ase_nextham.h0.folder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy import ndarray
from scipy.sparse import coo_array

from ase_nextham.files import replacing
from ase_nextham.h0.csr_binary import read_binary, read_npz
from ase_nextham.h0.csr_blocks import UNITS, code, lcao_matrices
from ase_nextham.h0.csr_matrix import DROPPED, CSRMatrix, MatrixFileError
from ase_nextham.h0.csr_text import looks_like_text, read_text
from ase_nextham.h0.csr_writer import Record, write_binary, write_legacy_text, write_new_text
from ase_nextham.matrix import LCAOMatrix

__all__ = [
    "DROPPED",
    "UNITS",
    "CSRMatrix",
    "MatrixFileError",
    "csr_matrices",
    "lcao_matrices",
    "read_csr",
    "write_csr",
]


def read_csr(path: str | Path) -> list[CSRMatrix]:
    """All records of an ABACUS matrix file: one for every ionic step, for r(R) three.

    The layout is told by the content, never by the name. Nothing is converted.

    Raises
    ------
    MatrixFileError
        If the file is damaged or of no known layout; the message names the place.
    OSError
        If it cannot be read.
    """
    data = Path(path).read_bytes()
    if looks_like_text(data):
        return read_text(str(path), data)
    if data.startswith(b"PK"):
        return read_npz(str(path), data)
    return read_binary(str(path), data)


def label(name: str) -> str:
    """The letter that files have for an operator."""
    return {"overlap": "S", "h0": "H", "hamiltonian": "H", "kinetic": "T"}.get(name, "r")


def csr_matrices(
    named: Mapping[str, LCAOMatrix],
) -> dict[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]]:
    """Records to be written for matrices of one structure, in the units of ABACUS.

    All of them have the same R in the same order, which PYATB relies on. Where one is for spinors,
    all are: S complex with equal blocks for up and down, r real, as ABACUS writes them. Elements
    of up to :data:`DROPPED` (in the units of the file) are left out.

    Parameters
    ----------
    named
        Matrices by the names of :data:`UNITS`, atoms in the order that the file shall have.

    Returns
    -------
    dict
        The inverse of :func:`lcao_matrices`: two records (up, down) for a collinear matrix.

    Raises
    ------
    ValueError
        For an unknown name, orbitals in another convention than ABACUS's, or collinear beside
        spinor matrices.
    """
    spins = {matrix.spin for matrix in named.values()}
    if {"collinear", "spinor"} <= spins:
        raise ValueError("collinear and spinor matrices cannot be written for one structure")
    spinor = "spinor" in spins
    listed = {}
    for name, matrix in named.items():
        if name not in UNITS:
            raise ValueError(f"unknown operator {name!r}; known: {', '.join(UNITS)}")
        if matrix.basis.convention != "abacus":
            raise ValueError(
                f"{name} is in the orbital convention {matrix.basis.convention!r}; use "
                ".in_convention('abacus') before writing files for ABACUS"
            )
        channels = matrix.data if matrix.spin == "collinear" else matrix.data[None]
        listed[name] = [_listed(name, matrix, data, spinor) for data in channels]
    R = np.unique(
        np.concatenate([one.used_R() for several in listed.values() for one in several]), axis=0
    )
    result = {}
    for name, several in listed.items():
        records = [_record(name, R, channel, one) for channel, one in enumerate(several)]
        result[name] = tuple(records) if len(records) == 2 else records[0]
    return result


@dataclass(frozen=True)
class _Listed:
    """The elements of a matrix that are not dropped."""

    R: ndarray  # of each pair of atoms
    pair: ndarray
    row: ndarray  # in the matrix of one R
    column: ndarray
    value: ndarray
    dimension: int

    def used_R(self) -> ndarray:
        """Lattice vectors of the pairs that have elements."""
        return self.R[np.bincount(self.pair, minlength=len(self.R)) > 0]


def _listed(name: str, matrix: LCAOMatrix, data: ndarray, spinor: bool) -> _Listed:
    pairs, first = matrix.pairs, matrix.first_orbital
    data = data / UNITS[name]
    element = np.flatnonzero(np.abs(data) > DROPPED)
    pair = np.searchsorted(matrix.offsets, element, side="right") - 1
    mu, nu = np.divmod(element - matrix.offsets[pair], matrix.norbitals[pairs.j[pair]])
    row, column = first[pairs.i[pair]] + mu, first[pairs.j[pair]] + nu
    value, dimension = data[element], matrix.dimension
    if spinor and matrix.spin != "spinor":
        pair, value = np.tile(pair, 2), np.tile(value, 2)
        row = np.concatenate([2 * row, 2 * row + 1])
        column = np.concatenate([2 * column, 2 * column + 1])
        dimension *= 2
        if not name.startswith("position"):
            value = value.astype(complex)
    return _Listed(pairs.R, pair, row, column, value, dimension)


def _record(name: str, R: ndarray, channel: int, listed: _Listed) -> CSRMatrix:
    dimension = listed.dimension
    place = np.searchsorted(code(R), code(listed.R))
    row = place[listed.pair] * dimension + listed.row
    shape = (len(R) * dimension, dimension)
    stacked = coo_array((listed.value, (row, listed.column)), shape=shape).tocsr()
    stacked.sort_indices()
    return CSRMatrix(
        path=name,
        layout="memory",
        operator=label(name),
        step=0,
        dimension=dimension,
        R=R,
        indptr=stacked.indptr,
        column=stacked.indices,
        value=stacked.data,
        spin_index=channel,
        component="xyz".index(name[-1]) if name.startswith("position") else None,
    )


def write_csr(
    path: str | Path,
    records: Sequence[CSRMatrix | Record],
    layout: str,
    *,
    digits: int = 8,
    atoms: Atoms | None = None,
    species: Sequence[str] | None = None,
    spin_directions: int = 1,
) -> None:
    """Write records into one file, as ABACUS does.

    Parameters
    ----------
    records
        One for each ionic step; for r the x, y and z of each step, one after another.
    layout
        ``"legacy text"`` (with ``STEP``: what PYATB and ABACUS up to 3.10 read), ``"new text"``
        (ABACUS from 3.11 on) or ``"binary"`` (``.dat`` with 64-bit row pointers).
    digits
        Decimals of the numbers in text.
    atoms
        The structure in the order of the matrices, for the header of ``"new text"``.
    species
        Labels of the atoms there; by default the chemical symbols.
    spin_directions
        How many files the operator has: 2 for a collinear Hamiltonian. ``"new text"`` says so.

    Raises
    ------
    ValueError
        If a layout cannot hold the records.
    """
    if layout not in ("legacy text", "new text", "binary"):
        raise ValueError(
            f"unknown layout {layout!r}; known for writing: 'legacy text', 'new text', 'binary'"
        )
    is_r = any(record.operator == "r" for record in records)
    unnamed = [record for record in records if record.operator is None]
    if layout == "binary" and is_r:
        raise ValueError("r(R) is written as 'legacy text', also beside binary H(R) and S(R)")
    if layout != "binary" and unnamed:
        raise ValueError(f"{unnamed[0].path}: text files name the operator, but it is not known")
    if layout == "new text" and (atoms is None or is_r):
        raise ValueError(
            "'new text' has the structure in its header, so atoms are needed, and no place for "
            "r(R), which ABACUS writes as 'legacy text'"
        )
    with replacing(path) as temporary, temporary.open("wb") as file:
        if layout == "binary":
            write_binary(file, records)
        elif layout == "legacy text":
            write_legacy_text(file, records, digits)
        else:
            cell = _cell_lines(atoms, species or atoms.get_chemical_symbols())
            write_new_text(file, records, digits, spin_directions, cell)


def _cell_lines(atoms: Atoms, species: Sequence[str]) -> str:
    groups = [(name, len(list(group))) for name, group in groupby(species)]
    if len({name for name, _ in groups}) < len(groups) or len(species) != len(atoms):
        raise ValueError(
            f"atoms must be grouped by species, as in STRU, but they are {' '.join(species)}"
        )
    rows = [" user_defined_lattice", " 1"]
    rows += [" " + " ".join(f"{x:.15g}" for x in vector) for vector in atoms.cell.array]
    rows += ["".join(f" {name}" for name, _ in groups), "".join(f" {n}" for _, n in groups)]
    rows.append(" Direct")
    scaled = atoms.get_scaled_positions(wrap=False)
    rows += [" " + " ".join(f"{x:.15g}" for x in position) for position in scaled]
    return "\n".join(rows) + "\n"
