"""ABACUS's matrix files, written from blocks that are on disk.

The records here are to :func:`~ase_nextham.h0.csr.write_csr` what those of
:func:`~ase_nextham.h0.csr.csr_matrices` are, number for number, but hold no elements: these are
taken from the blocks when they are asked for, a few atoms of one R at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from ase_nextham.h0.csr import DROPPED, UNITS, label
from ase_nextham.matrix import AtomPairs, LCAOMatrix, ranges

from .stream_spool import slabs

Rows = tuple[ndarray, ndarray, ndarray]
"""Elements in each row of the matrix, shape (dimension,); their values and columns, row by row."""


def spooled_records(
    named: Mapping[str, LCAOMatrix],
    pairs: AtomPairs,
    blocks: Callable[[str, ndarray], ndarray],
) -> dict[str, SpooledRecord | tuple[SpooledRecord, SpooledRecord]]:
    """Records to be written for the operators of one structure: see ``csr_matrices``.

    Parameters
    ----------
    named
        Matrices without pairs, which tell spin and atoms.
    pairs
        Of all of them.
    blocks
        Function of a name and of indices of pairs: their blocks one after another, in eV or
        Angstrom, with a leading axis of 2 where there are two spins.
    """
    by_R = _PairsByR.of(pairs)
    spinor = any(matrix.spin == "spinor" for matrix in named.values())
    records = {}
    for name, matrix in named.items():
        channels = range(2 if matrix.spin == "collinear" else 1)
        records[name] = tuple(
            SpooledRecord.of(name, matrix, channel, by_R, spinor, blocks) for channel in channels
        )
    used = np.zeros(len(by_R.R), bool)
    for several in records.values():
        for record in several:
            used |= record.lengths.any(axis=1)
    shown = {
        name: tuple(record.with_R(np.flatnonzero(used)) for record in several)
        for name, several in records.items()
    }
    return {name: several if len(several) == 2 else several[0] for name, several in shown.items()}


@dataclass(frozen=True)
class _PairsByR:
    """Pairs sorted by (R, i, j)."""

    pairs: AtomPairs
    R: ndarray
    order: ndarray
    first: ndarray  # where the pairs of each R begin in ``order``, and the end

    @classmethod
    def of(cls, pairs: AtomPairs) -> _PairsByR:
        order = np.lexsort((pairs.j, pairs.i, *pairs.R.T[::-1]))
        new = np.flatnonzero((np.diff(pairs.R[order], axis=0) != 0).any(axis=1)) + 1
        first = np.concatenate([[0], new, [len(order)]])
        return cls(pairs, pairs.R[order[first[:-1]]], order, first)


@dataclass(frozen=True, eq=False)
class SpooledRecord:
    """A record whose elements are taken from blocks: see ``ase_nextham.h0.csr_writer.Record``."""

    path: str
    operator: str
    dimension: int
    spin_index: int
    component: int | None
    matrix: LCAOMatrix
    by_R: _PairsByR
    doubled: bool  # written with a spin index that the blocks do not have
    blocks: Callable[[str, ndarray], ndarray]
    lengths: ndarray  # (nR, dimension), of all R of the pairs
    shown: ndarray  # which R are written
    step: int = 0
    fermi_level: None = None
    _kept: dict = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        matrix: LCAOMatrix,
        channel: int,
        by_R: _PairsByR,
        spinor: bool,
        blocks: Callable[[str, ndarray], ndarray],
    ) -> SpooledRecord:
        """One channel of one operator; goes through all elements to count those of each row."""
        doubled = spinor and matrix.spin != "spinor"
        dimension = matrix.dimension * (2 if doubled else 1)
        record = cls(
            path=name,
            operator=label(name),
            dimension=dimension,
            spin_index=channel,
            component="xyz".index(name[-1]) if name.startswith("position") else None,
            matrix=matrix,
            by_R=by_R,
            doubled=doubled,
            blocks=blocks,
            lengths=np.zeros((len(by_R.R), dimension), np.int32),
            shown=np.arange(len(by_R.R)),
        )
        for n in range(len(by_R.R)):
            for lengths, _, _ in record._rows(n):
                record.lengths[n] += lengths
        return record

    def with_R(self, shown: ndarray) -> SpooledRecord:
        """The same with some of the R."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return SpooledRecord(**values | {"shown": shown, "_kept": {}})

    @property
    def R(self) -> ndarray:
        """Lattice vectors that are written."""
        return self.by_R.R[self.shown]

    def row_lengths(self, n: int) -> ndarray:
        """Elements of each row of the n-th R."""
        return self.lengths[self.shown[n]]

    def pieces(self, n: int) -> Iterator[tuple[ndarray, ndarray]]:
        """Values and columns of the n-th R."""
        # asked for twice, first for the values: keep them if they are one piece
        if n in self._kept:
            yield self._kept[n]
            return
        self._kept.clear()
        number = 0
        for _, value, column in self._rows(int(self.shown[n])):
            number += 1
            if len(value):
                yield value, column
        if number == 1:
            self._kept[n] = value, column

    def _rows(self, n: int) -> Iterator[Rows]:
        """The elements of the n-th R of all, those of a few atoms at a time."""
        p = self.by_R.order[slice(*self.by_R.first[n : n + 2])]
        norbitals, pairs = self.matrix.norbitals, self.by_R.pairs
        sizes = norbitals[pairs.i[p]] * norbitals[pairs.j[p]]
        atom = np.flatnonzero(np.diff(pairs.i[p], prepend=-1))  # first pair of each atom i
        of_atom = np.diff(np.append(atom, len(p)))
        for some in slabs(np.add.reduceat(sizes, atom), np.arange(len(atom))):
            some_p = p[atom[some[0]] : atom[some[-1]] + of_atom[some[-1]]]
            yield self._rows_of(some_p)

    def _rows_of(self, p: ndarray) -> Rows:
        """The elements of all pairs of a few atoms at one R."""
        data = self.blocks(self.path, p)
        data = (data[self.spin_index] if data.ndim == 2 else data) / UNITS[self.path]
        pairs, norbitals, first = self.by_R.pairs, self.matrix.norbitals, self.matrix.first_orbital
        i, j = pairs.i[p], pairs.j[p]
        atoms, start, inverse = np.unique(i, return_index=True, return_inverse=True)
        width = np.add.reduceat(norbitals[j], start)  # elements of a row of each atom
        base = np.concatenate([[0], np.cumsum(norbitals[atoms] * width)])
        left = np.cumsum(norbitals[j]) - norbitals[j]
        left -= left[start][inverse]
        # the blocks consist of runs, one a row, whose places in the whole rows these are
        runs = norbitals[i]
        mu = ranges(np.zeros(len(p), int), runs)
        place = np.repeat(base[inverse] + left, runs) + mu * np.repeat(width[inverse], runs)
        length = np.repeat(norbitals[j], runs)
        where = ranges(place, length)
        value, column = np.empty_like(data), np.empty(len(data), np.int32)
        value[where] = data
        column[where] = ranges(np.repeat(first[j], runs), length)
        kept = np.abs(value) > DROPPED
        rows = ranges(first[atoms], norbitals[atoms])
        row_starts = base[:-1].repeat(norbitals[atoms]) + (
            ranges(np.zeros(len(atoms), int), norbitals[atoms]) * width.repeat(norbitals[atoms])
        )
        lengths = np.zeros(self.matrix.dimension, np.int64)
        lengths[rows] = np.add.reduceat(kept, row_starts, dtype=np.int64)
        value, column = value[kept], column[kept]
        return self._doubled(lengths, value, column) if self.doubled else (lengths, value, column)

    def _doubled(self, lengths: ndarray, value: ndarray, column: ndarray) -> Rows:
        """Each row for spin up, then for spin down."""
        lengths = np.repeat(lengths, 2)
        begin = np.repeat(np.cumsum(lengths[::2]) - lengths[::2], 2)
        which = ranges(begin, lengths)
        spin = np.repeat(np.arange(len(lengths)) & 1, lengths)
        value = value[which]
        if self.component is None:
            value = value.astype(complex)
        return lengths, value, (2 * column[which] + spin).astype(np.int32)
