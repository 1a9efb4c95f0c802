"""Matrix files of ABACUS, written piece by piece.

What is written need not fit into memory: a record is asked for the lengths of the rows of one R,
then for the elements of this R in pieces, once for the values and once for the columns, because
all layouts have the values of one R before its columns. A
:class:`~ase_nextham.h0.csr_matrix.CSRMatrix` is such a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import numpy as np
from numpy import ndarray

_CHUNK = 1 << 16  # numbers that are formatted at once


class Record(Protocol):
    """What a matrix is written from; the attributes are those of ``CSRMatrix``."""

    path: str
    operator: str | None
    step: int
    dimension: int
    R: ndarray
    fermi_level: float | None
    spin_index: int | None
    component: int | None

    def row_lengths(self, n: int) -> ndarray:
        """Elements of each row of the n-th R, shape (dimension,)."""

    def pieces(self, n: int) -> Iterator[tuple[ndarray, ndarray]]:
        """Values and columns of the n-th R, row by row, in pieces of any length."""


def write_legacy_text(file: BinaryIO, records: Sequence[Record], digits: int) -> None:
    """Lines under headers with ``STEP``; the x, y, z of r in one, as they follow each other."""
    records = list(records)
    while records:
        several = records[:3] if records[0].operator == "r" else records[:1]
        del records[: len(several)]
        first = several[0]
        is_r = first.operator == "r"
        if is_r and (
            [m.component for m in several] != [0, 1, 2]
            or not all(np.array_equal(m.R, first.R) for m in several)
        ):
            raise ValueError("r(R) is written as three records, x, y, z, with the same R")
        file.write(
            f"STEP: {first.step}\n"
            f"Matrix Dimension of {first.operator}(R): {first.dimension}\n"
            f"Matrix number of {first.operator}(R): {len(first.R)}\n".encode()
        )
        for n, (x, y, z) in enumerate(first.R.tolist()):
            file.write(f"{x} {y} {z}".encode() + (b"\n" if is_r else b" "))
            for record in several:
                pointers = _pointers(record, n)
                file.write(f"{pointers[-1]}\n".encode())
                if pointers[-1]:
                    _write_values(file, record, n, digits, None)
                    _write_columns(file, record, n, None)
                    _write_integers(file, pointers, None)


def write_new_text(
    file: BinaryIO, records: Sequence[Record], digits: int, spin_directions: int, cell_lines: str
) -> None:
    """Marked arrays under headers with the unit cell, which ``cell_lines`` has in words."""
    for record in records:
        name = record.operator
        spin = f" {(record.spin_index or 0) + 1} # spin index"
        if record.fermi_level is not None:
            spin += f", E_Fermi = {record.fermi_level!r} eV"
        file.write(
            f" --- Ionic Step {record.step + 1} ---\n"
            f" # print {name} matrix in real space {name}(R)\n"
            f" {spin_directions} # number of spin directions\n"
            f"{spin}\n"
            f" {record.dimension} # number of localized basis\n"
            f" {len(record.R)} # number of Bravais lattice vector R\n"
            f"\n{cell_lines}\n{_EXPLANATION}\n".encode()
        )
        for n, (x, y, z) in enumerate(record.R.tolist()):
            pointers = _pointers(record, n)
            file.write(f" {x} {y} {z} {pointers[-1]}\n # CSR values\n".encode())
            if pointers[-1]:
                _write_values(file, record, n, digits, 6)
                file.write(b" # CSR column indices\n")
                _write_columns(file, record, n, 16)
                file.write(b" # CSR row pointers\n")
                _write_integers(file, pointers, 16)
                file.write(b"\n")
            else:
                file.write(b"\n # CSR column indices\n\n # CSR row pointers\n")
                _write_integers(file, pointers, None)


_EXPLANATION = """\
 #----------------------------------------------------------------------#
 #                               CSR Format                             #
 # The outer loop corresponds to the number of Bravais lattice vectors. #
 # The first line contains the index of the Bravais lattice vector      #
 # (Rx, Ry, Rz), followed by the number of non-zero elements.           #
 # The subsequent lines consist of three blocks of data, which are      #
 # values, column indices, row pointers.                                #
 #----------------------------------------------------------------------#
"""


def write_binary(file: BinaryIO, records: Sequence[Record]) -> None:
    """A ``.dat`` file with 64-bit row pointers, those of empty R included."""
    for record in records:
        file.write(struct.pack("<3i", record.step, record.dimension, len(record.R)))
        for n, R in enumerate(record.R.tolist()):
            pointers = _pointers(record, n)
            file.write(struct.pack("<4i", *R, pointers[-1]))
            for value, _ in record.pieces(n):
                file.write(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
            for _, column in record.pieces(n):
                file.write(column.astype("<i4", copy=False).tobytes())
            file.write(pointers.astype("<i8", copy=False).tobytes())


def _pointers(record: Record, n: int) -> ndarray:
    return np.concatenate([[0], np.cumsum(record.row_lengths(n))])


def _write_values(
    file: BinaryIO, record: Record, n: int, digits: int, per_line: int | None
) -> None:
    lines = None
    for value, _ in record.pieces(n):
        number = f"%.{digits}e"
        if np.iscomplexobj(value):
            number, value = f"({number},{number})", value.astype(complex, copy=False).view(float)
            lines = lines or _Lines(file, number, per_line, 2)
        lines = lines or _Lines(file, number, per_line, 1)
        lines.write(value)
    lines.end()


def _write_columns(file: BinaryIO, record: Record, n: int, per_line: int | None) -> None:
    lines = _Lines(file, "%d", per_line, 1)
    for _, column in record.pieces(n):
        lines.write(column)
    lines.end()


def _write_integers(file: BinaryIO, numbers: ndarray, per_line: int | None) -> None:
    lines = _Lines(file, "%d", per_line, 1)
    lines.write(numbers)
    lines.end()


class _Lines:
    """Numbers in text, with so many (all, if None) on a line, that may come in pieces.

    Each item of the format takes ``width`` numbers.
    """

    def __init__(self, file: BinaryIO, item: str, per_line: int | None, width: int):
        self.file = file
        self.item = f" {item}"
        self.per_line = per_line
        self.width = width
        self.on_line = 0

    def write(self, numbers: ndarray) -> None:
        """Go on with these numbers."""
        for start in range(0, len(numbers), _CHUNK):
            some = numbers[start : start + _CHUNK]
            form = self._form(len(some) // self.width)
            self.file.write((form % tuple(some.tolist())).encode())

    def _form(self, number: int) -> str:
        if self.per_line is None:
            self.on_line += number
            return self.item * number
        form = ""
        if self.on_line:
            first = min(number, self.per_line - self.on_line)
            form = self.item * first
            number -= first
            self.on_line += first
            if self.on_line < self.per_line:
                return form
            form += "\n"
        full, self.on_line = divmod(number, self.per_line)
        return form + (self.item * self.per_line + "\n") * full + self.item * self.on_line

    def end(self) -> None:
        """End the line that is not full."""
        if self.on_line:
            self.file.write(b"\n")
            self.on_line = 0
