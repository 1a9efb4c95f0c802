"""Matrices as both DeepH formats keep them: blocks of orbitals in DeepH's order, spin outermost.

A block of a spinful matrix is ``[[uu, ud], [du, dd]]``, and so is that of collinear spin, with
zeros for ud and du. Here such blocks, one after another and in any order of pairs, become an
:class:`LCAOMatrix` and back, without a loop over blocks. Where they are stored is for the modules
of the formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.matrix import AtomPairs, LCAOMatrix

_FARTHEST = 9999
"""Largest component of R, in cells."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of one file.

    Parameters
    ----------
    path
        The file, for messages.
    R, i, j
        Lattice vectors (nblocks, 3) and atoms (nblocks,) counted from 0, as the file has them.
    entries
        Blocks one after another, each row-major; shape (size,), or (3, size) for x, y, z.
    """

    path: Path
    R: ndarray
    i: ndarray
    j: ndarray
    entries: ndarray

    def name(self, block: int) -> str:
        """A block in words, for messages; atoms are counted from 0."""
        x, y, z = self.R[block]
        return f"block (i={self.i[block]}, j={self.j[block]}, R={x},{y},{z})"

    def starts(self, norbitals: ndarray) -> ndarray:
        """Where each block begins in ``entries``, and the end; shape (nblocks + 1,)."""
        return np.concatenate([[0], np.cumsum(norbitals[self.i] * norbitals[self.j])])


def block_entries(matrix: LCAOMatrix, convention: str, *, spinful: bool) -> ndarray:
    """The elements of all blocks in the order of ``matrix.pairs``, as DeepH has them.

    Parameters
    ----------
    convention
        Of the orbitals: ``"deeph"`` or ``"openmx"``.
    spinful
        Whether blocks have spin indices; they must for all but unpolarised matrices, and an
        unpolarised one becomes ``[[A, 0], [0, A]]``.

    Returns
    -------
    ndarray
        Shape (size,); real if the matrix is.
    """
    if not spinful:
        return _rearranged(matrix, matrix.data, _orders(matrix, convention, spinor=False))
    if matrix.spin == "spinor":
        return _rearranged(matrix, matrix.data, _orders(matrix, convention, spinor=True))
    channels = matrix.data if matrix.spin == "collinear" else (matrix.data, matrix.data)
    orders = _orders(matrix, convention, spinor=False)
    entries = np.zeros(4 * matrix.offsets[-1], matrix.data.dtype)
    up, down = (_rearranged(matrix, channel, orders) for channel in channels)
    for _, _, _, elements in matrix.block_groups():
        inside = _spin_places(4 * elements[:, 0, 0], *elements.shape[1:])
        entries[inside] = up[elements]
        entries[inside + _down(*elements.shape[1:])] = down[elements]
    return entries


def lcao_matrix(
    blocks: Blocks,
    entries: ndarray,
    basis: Basis,
    symbols: Sequence[str],
    spin: str,
    convention: str,
    *,
    spinful: bool,
) -> LCAOMatrix:
    """The matrix whose blocks a file has.

    Parameters
    ----------
    entries
        ``blocks.entries`` or one component of it.
    basis
        In the convention of ABACUS, which the result has.
    spin
        Of the result. Of spinful blocks, ``"collinear"`` takes uu and dd.
    convention, spinful
        As of :func:`block_entries`.

    Raises
    ------
    ValueError
        Where a pair is there twice.

    Notes
    -----
    Where a file has (i, j, R) and not (j, i, -R), the latter is the Hermitian conjugate: old
    DeepH drops blocks of small elements, one partner at times without the other.
    """
    pairs, which = _sorted_pairs(blocks)
    factor = 2 if spinful else 1
    norbitals = np.array([basis.norbitals(name) for name in symbols], np.int64)
    starts = blocks.starts(factor * norbitals)[np.maximum(which, 0)]
    size = int(np.sum(norbitals[pairs.i] * norbitals[pairs.j]))
    if spin == "spinor":
        size *= 4
    data = np.empty((2, size) if spin == "collinear" else size, entries.dtype)
    matrix = LCAOMatrix(basis, symbols, pairs, spin, data)  # its view of data is read-only
    orders = _orders(matrix, convention, spinor=spin == "spinor")
    for a, b, p, elements in matrix.block_groups():
        rows, columns = elements.shape[1:]
        (index_a, sign_a), (index_b, sign_b) = (_inverse(*orders[name]) for name in (a, b))
        sign = sign_a[:, None] * sign_b
        if spin == "collinear":
            places = _spin_places(starts[p], rows, columns)[:, index_a[:, None], index_b]
            for channel, shift in zip(data, (0, _down(rows, columns)), strict=True):
                channel[elements] = entries[places + shift] * sign
        else:
            inside = index_a[:, None] * columns + index_b
            data[elements] = entries[starts[p][:, None, None] + inside] * sign
    if (which < 0).any():  # these have the numbers of block 0 so far
        for _, _, p, elements in matrix.block_groups():
            absent = which[p] < 0
            partner = matrix.partner_elements(p[absent], elements[absent])
            data[..., elements[absent]] = data[..., partner].conj()
    return matrix


def content_spin(blocks: Blocks, norbitals: ndarray) -> str:
    """Which spin spinful blocks are of: collinear if they are real without ud and du, else spinor.

    Parameters
    ----------
    norbitals
        Of each atom, without spin.
    """
    if np.iscomplexobj(blocks.entries):
        return "spinor"
    starts = blocks.starts(2 * norbitals)[:-1]
    shapes = np.column_stack([norbitals[blocks.i], norbitals[blocks.j]])
    for rows, columns in np.unique(shapes, axis=0):
        of_shape = starts[(shapes == (rows, columns)).all(axis=1)]
        places = _spin_places(of_shape, rows, columns)
        for shift in (columns, rows * 2 * columns):  # ud, du
            if blocks.entries[places + shift].any():
                return "spinor"
    return "collinear"


def check_pairs(blocks: Blocks, natoms: int) -> None:
    """Refuse blocks of atoms that are not there, or in cells that are too far away.

    Raises
    ------
    ValueError
        Naming the file and the block.
    """
    wrong = (np.minimum(blocks.i, blocks.j) < 0) | (np.maximum(blocks.i, blocks.j) >= natoms)
    if wrong.any():
        raise ValueError(
            f"{blocks.path}: {blocks.name(int(np.argmax(wrong)))} is of atoms that are not among "
            f"the {natoms} of the structure"
        )
    wrong = ((blocks.R < -_FARTHEST) | (blocks.R > _FARTHEST)).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"{blocks.path}: {blocks.name(int(np.argmax(wrong)))} is no neighbour in a crystal"
        )


def check_finite(blocks: Blocks, starts: ndarray) -> None:
    """Refuse numbers that are not finite.

    Parameters
    ----------
    starts
        Where each block begins, and the end, as of :meth:`Blocks.starts`.

    Raises
    ------
    ValueError
        Naming the file and the block.
    """
    finite = np.isfinite(blocks.entries)
    if not finite.all():
        first = np.argwhere(~finite)[0][-1]
        block = int(np.searchsorted(starts, first, side="right")) - 1
        raise ValueError(f"{blocks.path}: {blocks.name(block)} holds a number that is not finite")


def _sorted_pairs(blocks: Blocks) -> tuple[AtomPairs, ndarray]:
    """The pairs of a file with all partners, and which of its blocks each is, -1 for none."""
    rows = np.column_stack([blocks.i, blocks.j, blocks.R])
    order = np.lexsort(rows.T[::-1])
    twice = (np.diff(rows[order], axis=0) == 0).all(axis=1)
    if twice.any():
        raise ValueError(f"{blocks.path}: {blocks.name(order[np.argmax(twice)])} is there twice")
    partners = np.column_stack([blocks.j, blocks.i, -blocks.R])
    if np.array_equal(partners[np.lexsort(partners.T[::-1])], rows[order]):
        return AtomPairs(*rows[order, :2].T, rows[order, 2:]), order
    rows, first = np.unique(np.concatenate([rows, partners]), axis=0, return_index=True)
    return AtomPairs(*rows[:, :2].T, rows[:, 2:]), np.where(first < len(order), first, -1)


def _orders(matrix: LCAOMatrix, convention: str, *, spinor: bool) -> Mapping[str, tuple]:
    """For each species: which of our rows DeepH's rows are, and their signs."""
    orders = {}
    for name in set(matrix.symbols):
        change = matrix.basis.transformation(name, convention)  # a signed permutation
        index = np.abs(change).argmax(axis=1)
        sign = change[np.arange(len(index)), index]
        if spinor:
            index, sign = np.concatenate([2 * index, 2 * index + 1]), np.tile(sign, 2)
        orders[name] = index, sign
    return orders


def _inverse(index: ndarray, sign: ndarray) -> tuple[ndarray, ndarray]:
    inverse = np.argsort(index)
    return inverse, sign[inverse]


def _rearranged(matrix: LCAOMatrix, data: ndarray, orders: Mapping[str, tuple]) -> ndarray:
    """Blocks with rows and columns in DeepH's order and sign, in the places of the old ones."""
    entries = np.empty_like(data)
    for a, b, _, elements in matrix.block_groups():
        (index_a, sign_a), (index_b, sign_b) = orders[a], orders[b]
        inside = index_a[:, None] * elements.shape[2] + index_b
        entries[elements] = data[elements[:, :1, :1] + inside] * (sign_a[:, None] * sign_b)
    return entries


def _spin_places(starts: ndarray, rows: int, columns: int) -> ndarray:
    """Where uu of spinful blocks is, shape (n, rows, columns)."""
    return starts[:, None, None] + np.arange(rows)[:, None] * (2 * columns) + np.arange(columns)


def _down(rows: int, columns: int) -> int:
    """How far dd is from uu."""
    return rows * 2 * columns + columns


__all__ = ["Blocks", "block_entries", "check_finite", "check_pairs", "content_spin", "lcao_matrix"]
