"""From the elements of ABACUS's matrix files to blocks of pairs of atoms, in eV and Angstrom.

:func:`lcao_matrices` does so with whole files in memory. The steps it consists of work on any part
of a record that holds whole rows of atoms, so that files larger than memory can go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.h0.csr_matrix import MAX_R, NEGLIGIBLE, CSRMatrix, MatrixFileError
from ase_nextham.matrix import AtomPairs, LCAOMatrix, formula
from ase_nextham.units import BOHR, RYDBERG

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

SPINLESS = ("overlap", "position x", "position y", "position z")
"""Operators that are the same for both spins, also where files have them with spin."""

_SPIN_TOLERANCE = 1e-8  # of S and r, from spins up and down: more than the digits printed


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
    channels = {
        name: [Elements.of(name, record, basis, symbols) for record in several]
        for name, several in checked_channels(named, basis, symbols).items()
    }
    grid = Grid.of([e.R for several in channels.values() for e in several], len(symbols))
    runs = {name: [Runs.of(e, grid) for e in several] for name, several in channels.items()}
    own = {
        name: [_own_pairs(e, r) for e, r in zip(several, runs[name], strict=True)]
        for name, several in channels.items()
    }
    keys = complete_keys(own, grid)
    pairs = grid.pairs(keys)
    return {
        name: _lcao_matrix(name, channels[name], runs[name], keys, pairs, basis, symbols)
        for name in named
    }


def checked_channels(
    named: Mapping[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]],
    basis: Basis,
    symbols: Sequence[str],
) -> dict[str, tuple[CSRMatrix, ...]]:
    """The records of each operator, one or two, after all checks that need no elements.

    Raises
    ------
    ValueError, MatrixFileError
        As :func:`lcao_matrices`.
    """
    if basis.convention != "abacus":
        raise ValueError(f"ABACUS's files are in the convention 'abacus', not {basis.convention!r}")
    channels = {}
    for name, records in named.items():
        if name not in UNITS:
            raise ValueError(f"unknown operator {name!r}; known: {', '.join(UNITS)}")
        several = tuple(records) if isinstance(records, tuple) else (records,)
        for record in several:
            if not record.nnz and not name.startswith("position"):
                raise MatrixFileError(
                    f"{record.path}: this {name} matrix has no elements at all; ABACUS "
                    "3.11.0-beta.1 writes such files for H(R) of nspin 2: use another version"
                )
        spinor = [is_spinor(record, basis, symbols) for record in several]
        if len(several) == 2 and any(spinor) and name not in SPINLESS:
            raise MatrixFileError(f"{several[0].path}: spinor matrices have no spin up and down")
        channels[name] = several
    return channels


def is_spinor(record: CSRMatrix, basis: Basis, symbols: Sequence[str]) -> bool:
    """Whether the rows of a record have a spin index.

    Raises
    ------
    MatrixFileError
        If the dimension fits the orbitals neither with spin nor without.
    """
    total = sum(basis.norbitals(symbol) for symbol in symbols)
    if record.dimension not in (total, 2 * total):
        raise MatrixFileError(
            f"{record.path}: matrix dimension is {record.dimension}, but the orbitals of "
            f"{formula(list(symbols))} give {total} ({2 * total} for spinors); "
            "are these the .orb files and the STRU of this calculation?"
        )
    return record.dimension == 2 * total


@dataclass(frozen=True)
class Elements:
    """The elements of one matrix, and the atom of each of its rows."""

    path: str
    spinor: bool
    R: ndarray
    row: ndarray  # in the matrices of all R one below the other
    column: ndarray
    value: ndarray
    atom: ndarray  # (dimension,)
    first: ndarray  # (natoms + 1,): first row of each atom

    @classmethod
    def of(cls, name: str, record: CSRMatrix, basis: Basis, symbols: Sequence[str]) -> Elements:
        """Those of a record, or of a part of it with whole rows of atoms.

        Raises
        ------
        MatrixFileError
            If the dimension does not fit the orbitals; if S or r of spinors depends on spin.
        """
        norbitals = np.array([basis.norbitals(symbol) for symbol in symbols], np.int64)
        spinor = is_spinor(record, basis, symbols)
        row, column, value = record.row(), record.column, record.value
        if name in SPINLESS:
            if spinor:
                row, column, value = _without_spin(record)
                spinor = False
            value = _real(record, value)
        if spinor:
            norbitals = 2 * norbitals
        first = np.concatenate([[0], np.cumsum(norbitals)])
        atom = np.repeat(np.arange(len(symbols)), norbitals)
        return cls(record.path, spinor, record.R, row, column, value, atom, first)


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
class Grid:
    """Atoms and all R of several matrices: one integer for each pair, that sorts as pairs do."""

    natoms: int
    R: ndarray  # sorted, and with R there is -R

    @classmethod
    def of(cls, several: Sequence[ndarray], natoms: int) -> Grid:
        """That of the R of several matrices, each (nR, 3)."""
        R = np.concatenate(several)
        return cls(natoms, np.unique(np.concatenate([R, -R]), axis=0))

    def key(self, i: ndarray, j: ndarray, r: ndarray) -> ndarray:
        """The integer for atoms i and j and the r-th R."""
        return (i * self.natoms + j) * len(self.R) + r

    def split(self, key: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """i, j and r of an integer."""
        ij, r = np.divmod(key, len(self.R))
        return *np.divmod(ij, self.natoms), r

    def reverse(self, key: ndarray) -> ndarray:
        """The integer for (j, i, -R)."""
        i, j, r = self.split(key)
        # lattice vectors in reverse order are their negatives
        return self.key(j, i, len(self.R) - 1 - r)

    def pairs(self, keys: ndarray) -> AtomPairs:
        """The pairs that sorted integers stand for."""
        i, j, r = self.split(keys)
        return AtomPairs(i, j, self.R[r])

    def index(self, R: ndarray) -> ndarray:
        """Place of each R among those of the grid."""
        return np.searchsorted(code(self.R), code(R))


def code(R: ndarray) -> ndarray:
    """One integer for each R, that sorts as R does; :class:`CSRMatrix` keeps R small."""
    x, y, z = R.T + MAX_R
    return (x * (2 * MAX_R + 1) + y) * (2 * MAX_R + 1) + z


@dataclass(frozen=True)
class Runs:
    """Runs of elements in one row that belong to one pair of atoms."""

    start: ndarray
    length: ndarray
    key: ndarray
    row: ndarray  # inside the block
    column: ndarray  # of the first element, inside the block

    @classmethod
    def of(cls, e: Elements, grid: Grid) -> Runs:
        """The runs of all elements, in their order."""
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

    def fill(self, out: ndarray, e: Elements, begin: ndarray, columns: ndarray) -> None:
        """Put the elements into blocks.

        Parameters
        ----------
        out
            Blocks one after another, each row-major.
        begin, columns
            Where the block of each run begins in ``out``, and how many columns it has.
        """
        first = begin + self.row * columns - self.column
        out[np.repeat(first, self.length) + e.column] = e.value


@dataclass(frozen=True)
class OwnPairs:
    """The pairs of one matrix that have elements.

    Parameters
    ----------
    keys
        As of :class:`Grid`, sorted.
    largest
        Function of some of the keys: the largest modulus of an element of each, in the units of
        the file.
    """

    path: str
    keys: ndarray
    largest: Callable[[ndarray], ndarray]


def _own_pairs(e: Elements, runs: Runs) -> OwnPairs:
    def largest(keys: ndarray) -> ndarray:
        some = np.isin(runs.key, keys)
        size = np.zeros(len(keys))
        of_runs = np.maximum.reduceat(np.abs(e.value), runs.start)
        np.maximum.at(size, np.searchsorted(keys, runs.key[some]), of_runs[some])
        return size

    return OwnPairs(e.path, np.unique(runs.key), largest)


def complete_keys(own: Mapping[str, Sequence[OwnPairs]], grid: Grid) -> ndarray:
    """Keys of the pairs of all matrices, sorted, after the check that none lacks its partner.

    Raises
    ------
    MatrixFileError
        If one does, and is not negligible.
    """
    everything = np.unique(
        np.concatenate([one.keys for several in own.values() for one in several])
    )
    for name, several in own.items():
        for one in several:
            # r(R) may vanish where its partner does not, so S vouches for its pairs
            partners = everything if name.startswith("position") else one.keys
            alone = one.keys[~np.isin(grid.reverse(one.keys), partners, assume_unique=True)]
            if len(alone):
                _check_negligible(one, alone, grid)
    return np.union1d(everything, grid.reverse(everything))


def _check_negligible(own: OwnPairs, alone: ndarray, grid: Grid) -> None:
    size = own.largest(alone)
    if size.max() > NEGLIGIBLE:
        i, j, r = (int(x) for x in grid.split(alone[np.argmax(size)]))
        R = grid.R[r]
        raise MatrixFileError(
            f"{own.path}: the block of atoms {i} and {j} at R = {R.tolist()} has elements up to "
            f"{size.max():.3g}, but its partner (atoms {j} and {i} at R = {(-R).tolist()}) is "
            "missing: the file is incomplete"
        )


def _lcao_matrix(
    name: str,
    channels: Sequence[Elements],
    runs: Sequence[Runs],
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
        r.fill(out, e, offsets[pair], columns[pair])
    data *= UNITS[name]
    spin = "collinear" if len(channels) == 2 else "spinor" if channels[0].spinor else "unpolarised"
    return LCAOMatrix(basis, tuple(symbols), pairs, spin, data if spin == "collinear" else data[0])
