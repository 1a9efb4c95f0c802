"""Matrix files that are larger than memory: read in pieces of some rows of one R.

:func:`open_csr` finds the records of a file and where their arrays stand. :meth:`CSRStream.pieces`
then reads the elements, each piece as a :class:`~ase_nextham.h0.csr_matrix.CSRMatrix` of its own,
so that it is checked as a whole file is. Numbers are the same, bit for bit, as those that
:func:`~ase_nextham.h0.csr.read_csr` gives, and damage is told in the same words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy import ndarray

from ase_nextham.h0.csr_binary import Block, Misfit, Step, Variant, fitting_variants, read_npz
from ase_nextham.h0.csr_matrix import CSRMatrix, MatrixFileError, check_R, check_size
from ase_nextham.h0.csr_numbers import BadNumber, read_numbers
from ase_nextham.h0.csr_text import (
    HERMITIAN,
    Header,
    Spans,
    Text,
    bad_pointers,
    check_alone,
    indexed,
    looks_like_text,
    without_partner,
)

PIECE = 1 << 19
"""Elements that a piece holds at most, unless one atom alone has more."""

_BLOCK = 1 << 21  # bytes that are read from a file at once
_NEAR = 1 << 17  # bytes of a file that are kept, because what is asked for next is near by


class _Numbers(Protocol):
    """An array in a file, read from its beginning on."""

    def take(self, number: int) -> ndarray:
        """The next numbers."""

    def finish(self) -> None:
        """Check that there are no more than were announced."""


class _Arrays(Protocol):
    """Where the elements of a record are."""

    def pointers(self, n: int) -> ndarray:
        """Row pointers of the n-th R, from 0, shape (dimension + 1,)."""

    def values(self, n: int) -> _Numbers: ...

    def columns(self, n: int) -> _Numbers: ...


@dataclass(frozen=True, eq=False)
class CSRStream:
    """One record of a matrix file, its elements still in the file.

    Attributes are those of :class:`CSRMatrix`, without the elements. It can be used as long as the
    file stays where it is, unchanged.

    Parameters
    ----------
    complex
        Whether the values are complex.
    counts
        Elements of each R, shape (nR,).
    announced
        Number of R that the header announces; some versions leave out those without elements.
    """

    path: str
    layout: str
    operator: str | None
    step: int
    dimension: int
    R: ndarray
    complex: bool
    counts: ndarray
    announced: int
    arrays: _Arrays
    fermi_level: float | None = None
    spin_index: int | None = None
    gamma_folded: bool = False
    component: int | None = None

    def __post_init__(self):
        check_R(self.path, self.R)

    @property
    def nnz(self) -> int:
        """Number of elements."""
        return int(self.counts.sum())

    def pieces(self, cuts: Sequence[int]) -> Iterator[CSRMatrix]:
        """The elements, in the order of the file.

        Parameters
        ----------
        cuts
            Rows at which a piece may begin or end, from 0 to ``dimension``, ascending.

        Yields
        ------
        CSRMatrix
            One R and all elements of the rows between two of the cuts; other rows are empty.

        Raises
        ------
        MatrixFileError
            As :func:`~ase_nextham.h0.csr.read_csr`.
        """
        cuts = np.asarray(cuts)
        alone = np.zeros(len(self.R), bool)
        if len(self.R) < self.announced and self.operator in HERMITIAN:
            alone = without_partner(self.R)
        for n in np.flatnonzero(self.counts):
            for piece in self._pieces_of(int(n), cuts):
                if alone[n]:
                    largest = float(np.abs(piece.value).max(initial=0))
                    check_alone(self.path, self.R, n, self.announced, largest)
                yield piece

    def _pieces_of(self, n: int, cuts: ndarray) -> Iterator[CSRMatrix]:
        pointers = self.arrays.pointers(n)
        if (np.diff(pointers) < 0).any():
            raise MatrixFileError(
                f"{self.path}: the row pointers of R = {self.R[n].tolist()} decrease"
            )
        values, columns = self.arrays.values(n), self.arrays.columns(n)
        ends = pointers[cuts]
        begin = 0
        while begin < len(cuts) - 1:
            # as many rows as fit into a piece, but at least those up to the next cut
            stop = int(np.searchsorted(ends, ends[begin] + PIECE, side="right")) - 1
            stop = max(stop, begin + 1)
            number = int(ends[stop] - ends[begin])
            if number:
                value, column = values.take(number), columns.take(number)
                indptr = np.clip(pointers, ends[begin], ends[stop]) - ends[begin]
                yield self._matrix(n, indptr, column, value)
            begin = stop
        values.finish()
        columns.finish()

    def _matrix(self, n: int, indptr: ndarray, column: ndarray, value: ndarray) -> CSRMatrix:
        if column.max() >= 2**31:
            raise MatrixFileError(f"{self.path}: column {column.max()} is outside the matrix")
        return CSRMatrix(
            path=self.path,
            layout=self.layout,
            operator=self.operator,
            step=self.step,
            dimension=self.dimension,
            R=self.R[n : n + 1],
            indptr=indptr,
            column=column,
            value=value,
            component=self.component,
        )


def open_csr(path: str | os.PathLike) -> list[CSRStream]:
    """All records of an ABACUS matrix file, as :func:`~ase_nextham.h0.csr.read_csr` finds them.

    Headers and the places of all arrays are read; of the elements none are, except those of NPZ
    archives, which stay in memory.

    Raises
    ------
    MatrixFileError
        If the file is damaged or of no known layout; the message names the place.
    OSError
        If it cannot be read.
    """
    data = FileBytes(path)
    head = data[:4096]
    if looks_like_text(head):
        data.as_text(crlf=b"\r\n" in head)
        return _text_streams(Text(str(path), data))
    if head.startswith(b"PK"):
        return [_in_memory(record) for record in read_npz(str(path), Path(path).read_bytes())]
    return _binary_streams(str(path), data)


class FileBytes:
    """A file that behaves like ``bytes``, of which only what is asked for is in memory.

    Not a memory map, whose pages would stay and count as memory of the process.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.size = self.length = self.path.stat().st_size
        self.crlf = False
        self._held = (0, b"")  # a block, and where it begins: what is asked for is often near by

    def as_text(self, *, crlf: bool) -> None:
        """From now on, lines end with a newline alone, also the last one."""
        if self.size and self[self.size - 1 :] != b"\n":
            self.length = self.size + 1
        self.crlf = crlf
        self._held = (0, b"")

    def __len__(self):
        return self.length

    def _read(self, start: int, stop: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) < min(stop, self.size) - start:
            raise OSError(f"{self.path}: the file became shorter while it was read")
        if stop > self.size:
            data += b"\n"
        # the same length, so that places stay the same; blanks at the end of lines mean nothing
        return data.replace(b"\r", b" ") if self.crlf else data

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.length)
        if stop <= start:
            return b""
        at, block = self._held
        if start < at or stop > at + len(block):
            if stop - start > _NEAR:
                return self._read(start, stop)
            at, block = start, self._read(start, min(start + _NEAR, self.length))
            self._held = (at, block)
        return block[start - at : stop - at]

    def find(self, sub: bytes, start: int = 0, stop: int | None = None) -> int:
        """As ``bytes.find``."""
        stop = self.length if stop is None else min(stop, self.length)
        size = 256  # most lines are short; blocks grow while nothing is found
        while start < stop:
            end = min(start + size, stop)
            place = self[start:end].find(sub)
            if place >= 0:
                return start + place
            if end == stop:
                break
            start = end - len(sub) + 1
            size = min(4 * size, _BLOCK)
        return -1

    def count(self, sub: bytes, start: int, stop: int) -> int:
        """As ``bytes.count``, of a single byte."""
        return sum(
            self[at : min(at + _BLOCK, stop)].count(sub) for at in range(start, stop, _BLOCK)
        )


# --- text --------------------------------------------------------------------------------------


def _text_streams(text: Text) -> list[CSRStream]:
    streams = []
    for header, several in indexed(text):
        for component, spans in several:
            streams.append(_text_stream(text, header, spans, component))
    return streams


def _text_stream(text: Text, header: Header, spans: Spans, component: int | None) -> CSRStream:
    counts = np.array(spans.nnz, np.int64)
    if (counts < 0).any():
        raise MatrixFileError(f"{text.path}: a negative number of elements")
    check_size(text.path, len(counts), header.dimension, len(text.data))
    start, stop = spans.values[0] if spans.values else (0, 0)
    is_complex = text.data.find(b"(", start, min(stop, start + 4096)) >= 0
    return CSRStream(
        path=text.path,
        layout=header.layout,
        operator=header.operator,
        step=header.step,
        dimension=header.dimension,
        R=np.array(spans.R, np.int64).reshape(-1, 3),
        complex=is_complex,
        counts=counts,
        announced=header.nR,
        arrays=_TextArrays(text, spans, header.dimension, is_complex),
        fermi_level=header.fermi_level,
        spin_index=header.spin_index,
        gamma_folded=header.gamma_folded,
        component=component,
    )


@dataclass(frozen=True)
class _TextArrays:
    text: Text
    spans: Spans
    dimension: int
    complex: bool

    def _numbers(self, n: int, places: Sequence, kind: str, what: str, number: int):
        filled = int(np.count_nonzero(self.spans.nnz[:n]))
        return _TextNumbers(self.text, places[filled], kind, what, self.spans.R[n], number)

    def pointers(self, n: int) -> ndarray:
        number = self.dimension + 1
        numbers = self._numbers(n, self.spans.pointers, "integer", "row pointers", number)
        found = numbers.take(number)
        numbers.finish()
        if found[0] != 0 or found[-1] != self.spans.nnz[n]:
            raise bad_pointers(self.text, self.spans, n, found)
        return found

    def values(self, n: int) -> _TextNumbers:
        kind = "complex" if self.complex else "real"
        return self._numbers(n, self.spans.values, kind, "values", self.spans.nnz[n])

    def columns(self, n: int) -> _TextNumbers:
        nnz = self.spans.nnz[n]
        return self._numbers(n, self.spans.columns, "integer", "column indices", nnz)


class _TextNumbers:
    """The numbers in a stretch of a text, of which the expected number is known."""

    def __init__(
        self,
        text: Text,
        span: tuple[int, int],
        kind: str,
        what: str,
        R: tuple[int, ...],
        expected: int,
    ):
        self.text = text
        self.begin, self.stop = span
        self.at = self.begin
        self.kind, self.what, self.R, self.expected = kind, what, R, expected
        self.read = 0
        self.held = read_numbers(b"", [], kind)[0]

    def take(self, number: int) -> ndarray:
        parts, missing = [self.held[:number]], number - len(self.held)
        self.held = self.held[number:]
        while missing > 0:
            if self.at == self.stop:
                raise self._wrong_number()
            numbers = self._next()
            parts.append(numbers[:missing])
            self.held = numbers[missing:] if missing < len(numbers) else numbers[:0]
            missing -= len(numbers)
        return np.concatenate(parts)

    def finish(self) -> None:
        while self.at < self.stop:
            self._next()
        if self.read != self.expected:
            raise self._wrong_number()

    def _wrong_number(self) -> MatrixFileError:
        return self.text.error(
            f"{self.read} {self.what} of R = {list(self.R)}, expected {self.expected}", self.begin
        )

    def _next(self) -> ndarray:
        """The numbers of the next block, which ends between two of them."""
        size = _BLOCK
        end = b")" if self.kind == "complex" else b" "
        while True:
            stop = min(self.at + size, self.stop)
            block = self.text.data[self.at : stop]
            cut = len(block) if stop == self.stop else block.rfind(end) + 1
            if cut:
                break
            size *= 2
        try:
            numbers, _ = read_numbers(block[:cut], [(0, cut)], self.kind)
        except BadNumber as err:
            raise self.text.error(str(err), self.at + err.offset) from None
        self.at += cut
        self.read += len(numbers)
        return numbers


# --- binary ------------------------------------------------------------------------------------


def _binary_streams(path: str, data: FileBytes) -> list[CSRStream]:
    fitting, best = fitting_variants(data)
    # where all R have elements, it makes no difference whether the others have row pointers
    different = [
        (variant, steps)
        for n, (variant, steps) in enumerate(fitting)
        if all(variant.value != v.value or steps != other for v, other in fitting[:n])
    ]
    if len(different) == 1:
        return _streams_of_variant(path, data, *different[0])
    # the counts fit several variants: the content of one will make sense
    for variant, steps in different:
        try:
            streams = _streams_of_variant(path, data, variant, steps)
            for stream in streams:
                for _ in stream.pieces(np.arange(stream.dimension + 1)):
                    pass
        except MatrixFileError as err:
            best = Misfit(len(data), str(err).removeprefix(f"{path}: "))
        else:
            return streams
    raise best.error(path, len(data))


def _streams_of_variant(
    path: str, data: FileBytes, variant: Variant, steps: Sequence[Step]
) -> list[CSRStream]:
    streams = []
    is_r = variant.components == 3
    for step in steps:
        check_size(path, len(step.R), step.dimension, len(data))
        for component, blocks in enumerate(step.components):
            streams.append(
                CSRStream(
                    path=path,
                    layout=variant.layout,
                    operator="r" if is_r else None,
                    step=step.step,
                    dimension=step.dimension,
                    R=np.array(step.R, np.int64).reshape(-1, 3),
                    complex=variant.value == "<c16",
                    counts=np.array([block.nnz for block in blocks], np.int64),
                    announced=len(step.R),
                    arrays=_BinaryArrays(path, data, variant, step, component),
                    component=component if is_r else None,
                )
            )
    return streams


@dataclass(frozen=True)
class _BinaryArrays:
    path: str
    data: FileBytes
    variant: Variant
    step: Step
    component: int

    def _block(self, n: int) -> Block:
        return self.step.components[self.component][n]

    def pointers(self, n: int) -> ndarray:
        number = self.step.dimension + 1
        found = _BinaryNumbers(self.data, self._block(n).pointers, self.variant.pointer)
        return found.take(number).astype(np.int64)

    def values(self, n: int) -> _BinaryNumbers:
        return _BinaryNumbers(self.data, self._block(n).values, self.variant.value)

    def columns(self, n: int) -> _BinaryNumbers:
        return _BinaryNumbers(self.data, self._block(n).columns, "<i4")


class _BinaryNumbers:
    """Numbers of a fixed size, one after another in a file."""

    def __init__(self, data: FileBytes, at: int, dtype: str):
        self.data, self.at, self.dtype = data, at, np.dtype(dtype)

    def take(self, number: int) -> ndarray:
        start, self.at = self.at, self.at + number * self.dtype.itemsize
        return np.frombuffer(self.data[start : self.at], self.dtype)

    def finish(self) -> None:
        """Their number is that of the header: the next array begins after it."""


# --- NPZ ---------------------------------------------------------------------------------------


def _in_memory(record: CSRMatrix) -> CSRStream:
    ends = record.indptr[:: record.dimension]
    return CSRStream(
        path=record.path,
        layout=record.layout,
        operator=record.operator,
        step=record.step,
        dimension=record.dimension,
        R=record.R,
        complex=np.iscomplexobj(record.value),
        counts=np.diff(ends),
        announced=len(record.R),
        arrays=_HeldArrays(record),
    )


@dataclass(frozen=True)
class _HeldArrays:
    record: CSRMatrix

    def pointers(self, n: int) -> ndarray:
        return np.concatenate([[0], np.cumsum(self.record.row_lengths(n))])

    def values(self, n: int) -> _HeldNumbers:
        return _HeldNumbers(*(value for value, _ in self.record.pieces(n)))

    def columns(self, n: int) -> _HeldNumbers:
        return _HeldNumbers(*(column for _, column in self.record.pieces(n)))


class _HeldNumbers:
    """Numbers that are in memory."""

    def __init__(self, numbers: ndarray):
        self.numbers = numbers

    def take(self, number: int) -> ndarray:
        found, self.numbers = np.split(self.numbers, [number])
        return found

    def finish(self) -> None:
        """They were counted when they were read."""
