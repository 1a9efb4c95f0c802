"""Blocks of operators on disk, for conversions of matrices that are larger than memory.

:class:`SpoolingReader` reads ABACUS runs as :class:`~ase_nextham.h0.joining.InMemory` does, with
the same checks, but puts the blocks into temporary files and returns matrices without pairs. What
it keeps in memory is, for each operator, which pairs have a block and where.
:meth:`SpoolingReader.blocks` gives them back, in the order and the cell images that the atoms were
brought to.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray
from tqdm import tqdm

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.h0.csr_blocks import (
    SPINLESS,
    UNITS,
    Elements,
    Grid,
    OwnPairs,
    Runs,
    checked_channels,
    complete_keys,
    is_spinor,
)
from ase_nextham.h0.csr_stream import CSRStream, open_csr
from ase_nextham.matrix import AtomPairs, LCAOMatrix, ranges

NO_PAIRS = AtomPairs(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3), int))
"""The pairs of a matrix whose blocks are elsewhere."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Pairs of atoms, and what has become of those that were read.

    Parameters
    ----------
    pairs
        As they are now.
    origin
        Which pair, as read, each of them is; shape (npairs,).
    moves
        By how much the home atom of each pair was moved, in Angstrom, in the order of the moves;
        each of shape (npairs, 3). The position operator changes by that times S.
    """

    pairs: AtomPairs
    origin: ndarray
    moves: tuple[ndarray, ...] = ()

    def permuted(self, order: ndarray) -> Arrangement:
        """As ``LCAOData.permuted``."""
        if np.array_equal(order, np.arange(len(order))):
            return self
        place = np.argsort(order)
        return self._sorted(place[self.pairs.i], place[self.pairs.j], self.pairs.R, self.moves)

    def translated(self, shifts: ndarray, cell: ndarray) -> Arrangement:
        """As ``LCAOData.translated``."""
        if not shifts.any():
            return self
        i, j = self.pairs.i, self.pairs.j
        moves = (*self.moves, (shifts @ cell)[i])
        return self._sorted(i, j, self.pairs.R + shifts[i] - shifts[j], moves)

    def _sorted(self, i, j, R, moves: Sequence[ndarray]) -> Arrangement:
        pairs, where = AtomPairs.sort(i, j, R)
        return Arrangement(pairs, self.origin[where], tuple(move[where] for move in moves))


class SpoolingReader:
    """Reads ABACUS runs with their blocks in temporary files, which vanish with it.

    Parameters
    ----------
    folder
        Where the temporary files are. They are as large as the blocks in memory would be.
    wanted
        Operators whose blocks will be asked for, of ``"overlap"``, ``"h0"``, ``"hamiltonian"``,
        ``"position"``; of others only the pairs are kept. By default all.
    """

    def __init__(self, folder: Path, wanted: Collection[str] | None = None):
        self.folder = folder
        self.wanted = wanted
        self.arrangement = Arrangement(NO_PAIRS, np.zeros(0, int))
        self._keys = np.zeros(0, int)
        self._spools: dict[str, tuple[Spool, ...]] = {}
        self._files = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._files.close()

    # --- as ase_nextham.h0.joining.Reader ------------------------------------------------------

    def records(self, path: Path) -> list[CSRStream]:
        """All records of a file, without their elements."""
        return open_csr(path)

    def matrices(
        self,
        named: Mapping[str, CSRStream | tuple[CSRStream, CSRStream]],
        basis: Basis,
        symbols: Sequence[str],
    ) -> dict[str, LCAOMatrix]:
        """Read all elements; returns matrices that have their spin and type, but no pairs."""
        channels = checked_channels(named, basis, symbols)
        streams = [stream for several in channels.values() for stream in several]
        grid = Grid.of([stream.R for stream in streams], len(symbols))
        with progress_bar("reading", sum(stream.nnz for stream in streams)) as bar:
            self._spools = {
                name: tuple(self._spool(name, s, basis, symbols, grid, bar) for s in several)
                for name, several in channels.items()
            }
        own = {name: [s.own_pairs() for s in spools] for name, spools in self._spools.items()}
        self._keys = complete_keys(own, grid)
        for spools in self._spools.values():
            for spool in spools:
                spool.checked()
        pairs = grid.pairs(self._keys)
        self.arrangement = Arrangement(pairs, np.arange(len(pairs)))
        return {
            name: _without_pairs(spools, basis, symbols) for name, spools in self._spools.items()
        }

    def overlap_difference(
        self, one: CSRStream, two: CSRStream, basis: Basis, symbols: Sequence[str]
    ) -> float:
        """Largest difference between the elements of two overlaps of one structure."""
        spools = []
        grid = Grid.of([one.R, two.R], len(symbols))
        with progress_bar("comparing overlaps", one.nnz + two.nnz) as bar:
            for stream in (one, two):
                checked_channels({"overlap": stream}, basis, symbols)
                spools.append(self._spool("overlap", stream, basis, symbols, grid, bar))
                complete_keys({"overlap": [spools[-1].own_pairs()]}, grid)
        keys = np.union1d(spools[0].keys, spools[1].keys)
        difference = 0.0
        for some in slabs(spools[0].sizes(keys), keys):
            a, b = (spool.blocks(some) for spool in spools)
            difference = max(difference, float(np.abs(a - b).max(initial=0)))
        for spool in spools:
            spool.close()
        return difference

    def arranged(self, data: LCAOData, order: ndarray, shifts: ndarray) -> LCAOData:
        """``data.permuted(order).translated(shifts)``, of the blocks as well."""
        self.arrangement = self.moved(data, order, shifts)
        return data.permuted(order).translated(shifts)

    # --- blocks --------------------------------------------------------------------------------

    def moved(self, data: LCAOData, order: ndarray, shifts: ndarray) -> Arrangement:
        """That of ``data.permuted(order).translated(shifts)``."""
        return self.arrangement.permuted(order).translated(shifts, data.atoms.cell.array)

    def blocks(self, arrangement: Arrangement, name: str, p: ndarray) -> ndarray:
        """Blocks of pairs one after another, in eV or Angstrom.

        Parameters
        ----------
        name
            As in ``ase_nextham.h0.csr_blocks.UNITS``.
        p
            Indices among ``arrangement.pairs``.

        Returns
        -------
        ndarray
            Shape (size,), or (2, size) where there are two spins.
        """
        keys = self._keys[arrangement.origin[p]]
        several = [spool.blocks(keys) for spool in self._spools[name]]
        if name.startswith("position") and arrangement.moves:
            (overlap,) = self._spools["overlap"]
            S, sizes = overlap.blocks(keys), overlap.sizes(keys)
            for move in arrangement.moves:
                several[0] = several[0] + np.repeat(move[p, "xyz".index(name[-1])], sizes) * S
        return several[0] if len(several) == 1 else np.stack(several)

    def largest_imaginary(self, name: str) -> float:
        """Largest modulus of the imaginary part of an element."""
        return max(spool.imaginary for spool in self._spools[name])

    def _spool(
        self,
        name: str,
        stream: CSRStream,
        basis: Basis,
        symbols: Sequence[str],
        grid: Grid,
        bar: tqdm,
    ) -> Spool:
        """Read one record into a spool."""
        norbitals = np.array([basis.norbitals(symbol) for symbol in symbols], np.int64)
        factor = 2 if is_spinor(stream, basis, symbols) else 1
        rows = norbitals if name in SPINLESS else factor * norbitals
        keep = self.wanted is None or name == "overlap" or name.split()[0] in self.wanted
        spool = Spool(self.folder, stream.path, UNITS[name], rows, grid, keep=keep)
        self._files.callback(spool.close)
        for piece in stream.pieces(factor * np.concatenate([[0], np.cumsum(norbitals)])):
            e = Elements.of(name, piece, basis, symbols)
            spool.add(e, Runs.of(e, grid))
            bar.update(piece.nnz)
        spool.finish()
        return spool


def _without_pairs(spools: Sequence[Spool], basis: Basis, symbols: Sequence[str]) -> LCAOMatrix:
    norbitals = sum(basis.norbitals(symbol) for symbol in symbols)
    dtype = np.result_type(*(spool.dtype for spool in spools))
    if len(spools) == 2:
        return LCAOMatrix(basis, tuple(symbols), NO_PAIRS, "collinear", np.zeros((2, 0), dtype))
    spin = "spinor" if spools[0].norbitals.sum() == 2 * norbitals else "unpolarised"
    return LCAOMatrix(basis, tuple(symbols), NO_PAIRS, spin, np.zeros(0, dtype))


class Spool:
    """The blocks of one record in a temporary file, in the order in which they were read.

    Parameters
    ----------
    path
        The file they come from, for messages.
    unit
        What elements are multiplied with.
    norbitals
        Rows of the blocks of each atom.
    keep
        Whether the blocks will be asked for.
    """

    def __init__(
        self, folder: Path, path: str, unit: float, norbitals: ndarray, grid: Grid, *, keep: bool
    ):
        # it has no name, so that nothing of it is left however this process ends
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self.folder = folder
        self.path = path
        self.keep = keep
        self.unit = unit
        self.norbitals = norbitals
        self.grid = grid
        self.dtype = np.dtype(float)
        self.imaginary = 0.0
        self.keys = np.zeros(0, np.int64)
        self._start = np.zeros(0, np.int64)
        self._largest = np.zeros(0)
        self._size = 0
        self._parts: list[tuple[ndarray, ndarray, ndarray]] = []

    def add(self, e: Elements, runs: Runs) -> None:
        """Put the elements of whole rows of blocks into the file."""
        if not len(runs.key):  # nothing but negligible elements between spins
            return
        keys, place = np.unique(runs.key, return_inverse=True)
        i, j, _ = self.grid.split(keys)
        columns = self.norbitals[j]
        ends = np.cumsum(self.norbitals[i] * columns)
        start = np.concatenate([[0], ends[:-1]])
        blocks = np.zeros(ends[-1], e.value.dtype)
        runs.fill(blocks, e, start[place], columns[place])
        self._parts.append((keys, start + self._size, np.maximum.reduceat(np.abs(blocks), start)))
        self._size += len(blocks)
        self.dtype = blocks.dtype
        if np.iscomplexobj(blocks):
            self.imaginary = max(self.imaginary, float(np.abs(blocks.imag).max()))
        if self.keep:
            blocks *= self.unit
            self._write(memoryview(blocks).cast("B"))

    def _write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as err:
            raise OSError(
                err.errno,
                f"{err.strerror}, where the blocks of {self.path} are kept meanwhile",
                str(self.folder),
            ) from err

    def finish(self) -> None:
        """No more is to come."""
        if self._parts:
            keys, start, largest = map(np.concatenate, zip(*self._parts, strict=True))
            order = np.argsort(keys)
            self.keys, self._start, self._largest = keys[order], start[order], largest[order]
        self._parts = []

    def own_pairs(self) -> OwnPairs:
        """The pairs of this record, for :func:`~ase_nextham.h0.csr_blocks.complete_keys`."""
        return OwnPairs(
            self.path, self.keys, lambda keys: self._largest[np.searchsorted(self.keys, keys)]
        )

    def checked(self) -> None:
        """:meth:`own_pairs` is no longer needed."""
        self._largest = np.zeros(0)

    def sizes(self, keys: ndarray) -> ndarray:
        """Elements of the blocks of some pairs."""
        i, j, _ = self.grid.split(keys)
        return self.norbitals[i] * self.norbitals[j]

    def blocks(self, keys: ndarray) -> ndarray:
        """Blocks of some pairs one after another; zero where the record has none."""
        sizes = self.sizes(keys)
        out = np.zeros(int(sizes.sum()), self.dtype)
        begin = np.cumsum(sizes) - sizes
        place = np.searchsorted(self.keys, keys).clip(max=max(len(self.keys) - 1, 0))
        there = self.keys[place] == keys if len(self.keys) else np.zeros(len(keys), bool)
        start, begin, sizes = self._start[place[there]], begin[there], sizes[there]
        order = np.argsort(start)
        start, begin, sizes = start[order], begin[order], sizes[order]
        read = np.empty(int(sizes.sum()), self.dtype)
        # what is together in the file is read at once
        new = np.flatnonzero(start[1:] != start[:-1] + sizes[:-1]) + 1
        first = np.concatenate([[0], new]) if len(start) else new
        ends = np.append((np.cumsum(sizes) - sizes)[new], len(read))
        target, width, done = memoryview(read).cast("B"), self.dtype.itemsize, 0
        for n, end in zip(first.tolist(), ends.tolist(), strict=False):
            self._read(target[done * width : end * width], int(start[n]) * width)
            done = end
        out[ranges(begin, sizes)] = read
        return out

    def _read(self, target: memoryview, at: int) -> None:
        while target:
            number = os.preadv(self._file.fileno(), [target], at)
            if not number:
                raise OSError(f"the temporary file beside {self.path} was cut off")
            target, at = target[number:], at + number

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def slabs(sizes: ndarray, items: ndarray, limit: int = 1 << 20) -> Iterator[ndarray]:
    """Items in their order, as many at a time as have about so many elements together."""
    ends = np.cumsum(sizes)
    cuts = np.flatnonzero(np.diff((ends - 1) // limit)) + 1
    return iter(np.split(items, cuts) if len(items) else ())


def progress_bar(what: str, elements: int | None = None) -> tqdm:
    """A bar that counts matrix elements, where standard error is a terminal."""
    quiet = not sys.stderr.isatty()
    return tqdm(total=elements, desc=what, unit=" elements", unit_scale=True, disable=quiet)
