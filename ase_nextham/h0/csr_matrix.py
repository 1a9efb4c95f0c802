"""One record of an ABACUS matrix file, as it stands there, and the error for files that do not fit.

All layouts (:mod:`~ase_nextham.h0.csr_text`, :mod:`~ase_nextham.h0.csr_binary`) are read into
:class:`CSRMatrix` and written from it; :mod:`~ase_nextham.h0.csr` turns it into an
:class:`~ase_nextham.matrix.LCAOMatrix` and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

DROPPED = 1e-10
"""Elements up to this, in the units of the file, ABACUS leaves out."""

NEGLIGIBLE = 1e-9
"""Elements up to this may lack the partner that they have by Hermiticity."""

MAX_R = 10_000
"""Larger components of R are not those of a crystal."""


class MatrixFileError(ValueError):
    """A matrix file that is damaged, incomplete, or not of a layout that ABACUS writes."""


@dataclass(frozen=True, eq=False)
class CSRMatrix:
    """One operator (or one Cartesian component of r) of one ionic step, in the units of the file.

    The matrices of all R stand one below the other as one sparse matrix of ``nR * dimension``
    rows: row ``n * dimension + mu`` and column ``nu`` is ``<mu 0| O |nu R[n]>``.

    Parameters
    ----------
    path
        The file, for messages.
    layout
        ``"legacy text"``, ``"new text"``, ``"legacy binary"``, ``"binary"`` or ``"npz"``; or
        ``"memory"`` for a record that no file holds yet.
    operator
        ``"H"``, ``"S"``, ``"r"``, ``"T"``, ``"DM"`` ... as the file says; None where the layout has
        no label.
    step
        Ionic step, counted from 0.
    dimension
        Rows of the matrix of one R: orbitals, or twice that for spinors (``2 * orbital + spin``).
    R
        Lattice vectors in units of the cell vectors, integer, shape (nR, 3), in the order of the
        file; none stands twice.
    indptr
        Where each row begins in ``column`` and ``value``, and the end; shape
        (nR * dimension + 1,).
    column
        Counted from 0, shape (nnz,).
    value
        Real or complex, shape (nnz,).
    fermi_level
        In eV, where the file has it.
    spin_index
        0 or 1, where the file has it.
    gamma_folded
        Whether the file says that it holds the sum over all R of a gamma-only calculation, from
        which no k-point but gamma can be had.
    component
        0, 1, 2 for x, y, z of r.

    Raises
    ------
    MatrixFileError
        If this is not a sparse matrix: R repeated, rows out of order, a column that is outside
        or stands twice in a row, a value that is not finite.
    """

    path: str
    layout: str
    operator: str | None
    step: int
    dimension: int
    R: ndarray
    indptr: ndarray
    column: ndarray
    value: ndarray
    fermi_level: float | None = None
    spin_index: int | None = None
    gamma_folded: bool = False
    component: int | None = None

    def __post_init__(self):
        self._set("R", np.asarray(self.R, np.int64).reshape(-1, 3))
        self._set("indptr", np.asarray(self.indptr, np.int64))
        self._set("column", np.asarray(self.column, np.int32))
        value = np.asarray(self.value)
        self._set("value", value.astype(complex if np.iscomplexobj(value) else float, copy=False))
        self._check_rows()
        self._check_columns()
        bad = ~np.isfinite(self.value)
        if bad.any():
            n = int(np.argmax(bad))
            raise MatrixFileError(f"{self.place(n)}: the value {self.value[n]} is not a number")

    def __repr__(self):
        kind = "complex" if np.iscomplexobj(self.value) else "real"
        return (
            f"CSRMatrix({self.operator or 'operator unknown'}, {kind}, step {self.step}, dimension "
            f"{self.dimension}, {len(self.R)} R, {len(self.value)} elements, {self.layout} of "
            f"{self.path})"
        )

    def _set(self, name: str, array: ndarray) -> None:
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        object.__setattr__(self, name, array)

    def _check_rows(self) -> None:
        nR = len(self.R)
        check_R(self.path, self.R)
        if self.indptr.shape != (nR * self.dimension + 1,):
            raise MatrixFileError(
                f"{self.path}: {len(self.indptr)} row pointers, but {nR} matrices of dimension "
                f"{self.dimension} have {nR * self.dimension + 1}"
            )
        length = np.diff(self.indptr)
        if (length < 0).any():
            R = self.R[int(np.argmax(length < 0)) // self.dimension].tolist()
            raise MatrixFileError(f"{self.path}: the row pointers of R = {R} decrease")
        nnz = int(self.indptr[-1])
        if self.indptr[0] != 0 or self.column.shape != (nnz,) or self.value.shape != (nnz,):
            raise MatrixFileError(
                f"{self.path}: row pointers from {self.indptr[0]} to {nnz}, but "
                f"{len(self.column)} columns and {len(self.value)} values"
            )

    def _check_columns(self) -> None:
        if not len(self.column):
            return
        low, high = self.column.min(), self.column.max()
        if low < 0 or high >= self.dimension:
            n = int(np.argmax((self.column < 0) | (self.column >= self.dimension)))
            raise MatrixFileError(
                f"{self.place(n)}: column {self.column[n]} is outside the matrix, whose dimension "
                f"is {self.dimension}"
            )
        # ABACUS sorts the columns of a row; other programs need not, but none may stand twice
        rising = self.column[1:] > self.column[:-1]
        starts = self.indptr[1:-1]
        rising[starts[(starts > 0) & (starts < len(self.column))] - 1] = True
        if not rising.all():
            key = self.row() * self.dimension + self.column
            order = np.argsort(key, kind="stable")
            same = np.diff(key[order]) == 0
            if same.any():
                n = int(order[1:][np.argmax(same)])
                raise MatrixFileError(
                    f"{self.place(n)}: column {self.column[n]} stands twice in row "
                    f"{self.row()[n] % self.dimension}"
                )

    def row(self) -> ndarray:
        """Row of every element in the stacked matrix, ``n * dimension + mu``, shape (nnz,)."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    @property
    def nnz(self) -> int:
        """Number of elements."""
        return len(self.value)

    def row_lengths(self, n: int) -> ndarray:
        """Elements of each row of the n-th R, shape (dimension,)."""
        return np.diff(self.indptr[n * self.dimension : (n + 1) * self.dimension + 1])

    def pieces(self, n: int) -> Iterator[tuple[ndarray, ndarray]]:
        """Values and columns of the n-th R, in one piece: see :mod:`~ase_nextham.h0.csr_writer`."""
        first, last = self.indptr[n * self.dimension], self.indptr[(n + 1) * self.dimension]
        if last > first:
            yield self.value[first:last], self.column[first:last]

    def place(self, element: int) -> str:
        """File and R of an element, for messages."""
        row = int(np.searchsorted(self.indptr, element, side="right")) - 1
        return f"{self.path}: R = {self.R[row // self.dimension].tolist()}"


def check_R(path: str, R: ndarray) -> None:
    """Refuse lattice vectors of which one is too large or stands twice."""
    if np.abs(R).max(initial=0) > MAX_R:
        raise MatrixFileError(
            f"{path}: R = {R[np.abs(R).max(axis=1).argmax()].tolist()} cannot be a lattice vector "
            "of a matrix"
        )
    order = np.lexsort(R.T)
    repeated = (np.diff(R[order], axis=0) == 0).all(axis=1)
    if repeated.any():
        twice = R[order[int(np.argmax(repeated))]].tolist()
        raise MatrixFileError(f"{path}: R = {twice} stands there twice")


def stack(
    R: Sequence[Sequence[int]], dimension: int, given: Sequence[int], pointers: ndarray
) -> tuple[ndarray, ndarray]:
    """R as an array, and the row pointers of all R in one.

    Parameters
    ----------
    given
        Those R for which there are row pointers; the others have no elements.
    pointers
        Row pointers of these, each from 0, shape (ngiven, dimension + 1).
    """
    length = np.zeros((len(R), dimension), np.int64)
    length[given] = np.diff(pointers, axis=1)
    indptr = np.zeros(len(R) * dimension + 1, np.int64)
    np.cumsum(length, out=indptr[1:])
    return np.array(R, np.int64).reshape(-1, 3), indptr


def check_size(path: str, nR: int, dimension: int, nbytes: int) -> None:
    """Refuse a header whose arrays would be out of proportion to the file, before making them."""
    if nR * dimension > 64 * nbytes + 10**6:
        raise MatrixFileError(
            f"{path}: a file of {nbytes} bytes cannot hold {nR} matrices of dimension {dimension}"
        )
