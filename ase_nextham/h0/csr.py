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

from ase_nextham.basis import Basis
from ase_nextham.files import replacing
from ase_nextham.h0.csr_binary import read_binary, read_npz
from ase_nextham.h0.csr_matrix import DROPPED, MAX_R, NEGLIGIBLE, CSRMatrix, MatrixFileError
from ase_nextham.h0.csr_text import looks_like_text, read_text
from ase_nextham.h0.csr_writer import Record, write_binary, write_legacy_text, write_new_text
from ase_nextham.matrix import AtomPairs, LCAOMatrix, formula
from ase_nextham.units import BOHR, RYDBERG

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

UNITS: Mapping[str, float] = {
    "overlap": 1.0,
    "h0": RYDBERG,
    "hamiltonian": RYDBERG,
    "kinetic": RYDBERG,
    "position x": BOHR,
    "position y": BOHR,
    "position z": BOHR,
}
"""Operators by name, and the units that ABACUS writes them in, in eV or Angstrom."""

_LABELS = {"overlap": "S", "h0": "H", "hamiltonian": "H", "kinetic": "T"}  # others: r
_SPIN_TOLERANCE = 1e-8  # of S and r, from spins up and down: more than the digits printed
_SPINLESS = ("overlap", "position x", "position y", "position z")


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


def lcao_matrices(
    named: Mapping[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]],
    basis: Basis,
    symbols: Sequence[str],
) -> dict[str, LCAOMatrix]:
    """Matrices of one structure, on the union of their pairs, in eV and Angstrom.

    Parameters
    ----------
    named
        Records by the names of :data:`UNITS`; two (up, down) make a collinear matrix.
    basis
        The orbitals, in ABACUS's convention.
    symbols
        Species of the atoms in the order of the file.

    Returns
    -------
    dict
        ``"overlap"`` and ``"position ..."`` are unpolarised also where the file has them for
        spinors; other matrices are unpolarised, collinear or spinors as the files are.

    Raises
    ------
    MatrixFileError
        If the dimension does not fit the orbitals; if a block lacks its partner (j, i, -R), as
        happens when a file is cut off; if S or r of spinors is not the same for both spins.

    Notes
    -----
    ABACUS drops elements of up to 1e-10, so a partner may be missing where a block has none larger
    than 1e-9 (in the units of the file); it is then added with zeros. r(R) obeys
    r(R) = r(-R)^T + R S(R), so that only S must have the partners.
    """
    if basis.convention != "abacus":
        raise ValueError(f"ABACUS's files are in the convention 'abacus', not {basis.convention!r}")
    channels = {}
    for name, records in named.items():
        if name not in UNITS:
            raise ValueError(f"unknown operator {name!r}; known: {', '.join(UNITS)}")
        several = (records,) if isinstance(records, CSRMatrix) else tuple(records)
        for record in several:
            if not len(record.value) and not name.startswith("position"):
                raise MatrixFileError(
                    f"{record.path}: this {name} matrix has no elements at all; ABACUS "
                    "3.11.0-beta.1 writes such files for H(R) of nspin 2: use another version"
                )
        channels[name] = [_elements(name, record, basis, symbols) for record in several]
        if len(several) == 2 and any(e.spinor for e in channels[name]):
            raise MatrixFileError(f"{several[0].path}: spinor matrices have no spin up and down")
    grid = _Grid.of([e for several in channels.values() for e in several], len(symbols))
    runs = {name: [_Runs.of(e, grid) for e in several] for name, several in channels.items()}
    keys = _complete_keys(channels, runs, grid)
    pairs = grid.pairs(keys)
    return {
        name: _lcao_matrix(name, channels[name], runs[name], keys, pairs, basis, symbols)
        for name in named
    }


@dataclass(frozen=True)
class _Elements:
    """The elements of one matrix, and the atom of each of its rows."""

    path: str
    spinor: bool
    R: ndarray
    row: ndarray  # in the matrices of all R one below the other
    column: ndarray
    value: ndarray
    atom: ndarray  # (dimension,)
    first: ndarray  # (natoms + 1,): first row of each atom


def _elements(name: str, record: CSRMatrix, basis: Basis, symbols: Sequence[str]) -> _Elements:
    norbitals = np.array([basis.norbitals(symbol) for symbol in symbols], np.int64)
    total = int(norbitals.sum())
    spinor = record.dimension == 2 * total
    if record.dimension not in (total, 2 * total):
        raise MatrixFileError(
            f"{record.path}: matrix dimension is {record.dimension}, but the orbitals of "
            f"{formula(list(symbols))} give {total} ({2 * total} for spinors); "
            "are these the .orb files and the STRU of this calculation?"
        )
    row, column, value = record.row(), record.column, record.value
    if name in _SPINLESS:
        if spinor:
            row, column, value = _without_spin(record)
            spinor = False
        value = _real(record, value)
    if spinor:
        norbitals = 2 * norbitals
    first = np.concatenate([[0], np.cumsum(norbitals)])
    atom = np.repeat(np.arange(len(symbols)), norbitals)
    return _Elements(record.path, spinor, record.R, row, column, value, atom, first)


def _real(record: CSRMatrix, value: ndarray) -> ndarray:
    imaginary = np.abs(value.imag).max(initial=0)
    if imaginary > _SPIN_TOLERANCE:
        raise MatrixFileError(
            f"{record.path}: an overlap or position matrix is real, but this one has imaginary "
            f"parts up to {imaginary:.3g}"
        )
    return value.real


def _without_spin(record: CSRMatrix) -> tuple[ndarray, ndarray, ndarray]:
    """Row, column and value of the up-up part, after proof that spin plays no role."""
    row, column = record.row(), record.column
    mixed = (row ^ column) & 1 == 1
    largest = np.abs(record.value[mixed]).max(initial=0)
    if largest > _SPIN_TOLERANCE:
        raise MatrixFileError(
            f"{record.path}: an overlap or position matrix is diagonal in spin, but this one has "
            f"elements up to {largest:.3g} between up and down"
        )
    # the dimension is even, so that halving a row of the stacked matrix halves the orbital index
    row, column, spin = row >> 1, column >> 1, row & 1
    key = row * (record.dimension // 2) + column
    up, down = (np.flatnonzero(~mixed & (spin == s)) for s in (0, 1))
    if not np.array_equal(key[up], key[down]):
        up, down = (part[np.argsort(key[part])] for part in (up, down))
    if np.array_equal(key[up], key[down]):
        value_up, value_down = record.value[up], record.value[down]
        row, column = row[up], column[up]
    else:
        both, place = np.unique(key[np.concatenate([up, down])], return_inverse=True)
        value_up, value_down = np.zeros((2, len(both)), record.value.dtype)
        value_up[place[: len(up)]] = record.value[up]
        value_down[place[len(up) :]] = record.value[down]
        row, column = np.divmod(both, record.dimension // 2)
    difference = np.abs(value_up - value_down)
    if (difference > _SPIN_TOLERANCE * (1 + np.abs(value_up))).any():
        raise MatrixFileError(
            f"{record.path}: an overlap or position matrix is the same for up and down, but this "
            f"one differs by {difference.max():.3g}"
        )
    return row, column, value_up


@dataclass(frozen=True)
class _Grid:
    """Atoms and all R of several matrices: one integer for each pair, that sorts as pairs do."""

    natoms: int
    R: ndarray  # sorted, and with R there is -R

    @classmethod
    def of(cls, elements: Sequence[_Elements], natoms: int) -> _Grid:
        R = np.concatenate([e.R for e in elements])
        return cls(natoms, np.unique(np.concatenate([R, -R]), axis=0))

    def key(self, i: ndarray, j: ndarray, r: ndarray) -> ndarray:
        return (i * self.natoms + j) * len(self.R) + r

    def split(self, key: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        ij, r = np.divmod(key, len(self.R))
        return *np.divmod(ij, self.natoms), r

    def reverse(self, key: ndarray) -> ndarray:
        i, j, r = self.split(key)
        # lattice vectors in reverse order are their negatives
        return self.key(j, i, len(self.R) - 1 - r)

    def pairs(self, keys: ndarray) -> AtomPairs:
        i, j, r = self.split(keys)
        return AtomPairs(i, j, self.R[r])

    def index(self, R: ndarray) -> ndarray:
        """Place of each R among those of the grid."""
        return np.searchsorted(_code(self.R), _code(R))


def _code(R: ndarray) -> ndarray:
    """One integer for each R, that sorts as R does; :class:`CSRMatrix` keeps R small."""
    x, y, z = R.T + MAX_R
    return (x * (2 * MAX_R + 1) + y) * (2 * MAX_R + 1) + z


@dataclass(frozen=True)
class _Runs:
    """Runs of elements in one row that belong to one pair of atoms."""

    start: ndarray
    length: ndarray
    key: ndarray
    row: ndarray  # inside the block
    column: ndarray  # of the first element, inside the block

    @classmethod
    def of(cls, e: _Elements, grid: _Grid) -> _Runs:
        dimension = len(e.atom)
        j = e.atom[e.column]
        new = np.ones(len(j), bool)
        new[1:] = (j[1:] != j[:-1]) | (e.row[1:] != e.row[:-1])
        start = np.flatnonzero(new)
        r, mu = np.divmod(e.row[start], dimension)
        i, j = e.atom[mu], j[start]
        r = grid.index(e.R)[r] if len(e.R) else r
        length = np.diff(start, append=len(new))
        return cls(start, length, grid.key(i, j, r), mu - e.first[i], e.first[j])


def _complete_keys(
    channels: Mapping[str, Sequence[_Elements]],
    runs: Mapping[str, Sequence[_Runs]],
    grid: _Grid,
) -> ndarray:
    """Keys of the pairs of all matrices, sorted, after the check that none lacks its partner."""
    own = {name: [np.unique(r.key) for r in several] for name, several in runs.items()}
    everything = np.unique(np.concatenate([k for several in own.values() for k in several]))
    for name, several in own.items():
        for e, r, keys in zip(channels[name], runs[name], several, strict=True):
            # r(R) may vanish where its partner does not, so S vouches for its pairs
            partners = everything if name.startswith("position") else keys
            alone = keys[~np.isin(grid.reverse(keys), partners, assume_unique=True)]
            if len(alone):
                _check_negligible(e, r, alone, grid)
    return np.union1d(everything, grid.reverse(everything))


def _check_negligible(e: _Elements, runs: _Runs, alone: ndarray, grid: _Grid) -> None:
    inside = np.repeat(np.isin(runs.key, alone), runs.length)
    size = np.abs(np.where(inside, e.value, 0))
    if size.max() > NEGLIGIBLE:
        n = int(np.searchsorted(runs.start, np.argmax(size), side="right")) - 1
        i, j, r = (int(x) for x in grid.split(runs.key[n]))
        R = grid.R[r]
        raise MatrixFileError(
            f"{e.path}: the block of atoms {i} and {j} at R = {R.tolist()} has elements up to "
            f"{size.max():.3g}, but its partner (atoms {j} and {i} at R = {(-R).tolist()}) is "
            "missing: the file is incomplete"
        )


def _lcao_matrix(
    name: str,
    channels: Sequence[_Elements],
    runs: Sequence[_Runs],
    keys: ndarray,
    pairs: AtomPairs,
    basis: Basis,
    symbols: Sequence[str],
) -> LCAOMatrix:
    first = channels[0].first
    norbitals = np.diff(first)
    columns = norbitals[pairs.j]
    offsets = np.concatenate([[0], np.cumsum(norbitals[pairs.i] * columns)])
    dtype = np.result_type(*(e.value for e in channels))
    data = np.zeros((len(channels), offsets[-1]), dtype)
    for out, e, r in zip(data, channels, runs, strict=True):
        pair = np.searchsorted(keys, r.key)
        begin = offsets[pair] + r.row * columns[pair] - r.column
        out[np.repeat(begin, r.length) + e.column] = e.value
    data *= UNITS[name]
    spin = "collinear" if len(channels) == 2 else "spinor" if channels[0].spinor else "unpolarised"
    return LCAOMatrix(basis, tuple(symbols), pairs, spin, data if spin == "collinear" else data[0])


# --- the other way -----------------------------------------------------------------------------


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
    place = np.searchsorted(_code(R), _code(listed.R))
    row = place[listed.pair] * dimension + listed.row
    shape = (len(R) * dimension, dimension)
    stacked = coo_array((listed.value, (row, listed.column)), shape=shape).tocsr()
    stacked.sort_indices()
    return CSRMatrix(
        path=name,
        layout="memory",
        operator=_LABELS.get(name, "r"),
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
