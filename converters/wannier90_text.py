"""The text of ``_hr.dat`` and ``_tb.dat`` files: operators between Wannier functions.

Both begin with a comment line; ``_tb.dat`` goes on with the cell vectors in Angstrom. Then both
have the number of functions, the number of lattice vectors R, and a degeneracy of each R, 15 to a
line.
``_hr.dat`` has lines ``Rx Ry Rz m n re im`` with H in eV; ``_tb.dat`` has for each R an empty line,
R, and lines ``m n re im``, and after all of H the same for r in Angstrom with six numbers
(x, y, z). m, the bra in the home cell, and n, the ket in cell R, count from 1; m is the fastest.
Bloch sums are ``O(k) = sum_R exp(2 pi i k.R) O(R) / degeneracy(R)``.

The degeneracies share elements at the border of the Wigner-Seitz cell among equivalent R. They are
divided out on reading; what is written has them in the elements and 1 in their place, because not
all programs look at them (PYATB 1.1.2 does not).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import numpy as np
from numpy import ndarray

_CHUNK = 1 << 24  # bytes of text that are looked at at once
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NOT_IN_NUMBERS = bytes(c for c in range(256) if c not in b"0123456789+-.eE \t\r\n")
_DEGENERACIES_PER_LINE = 15


@dataclass(frozen=True, eq=False)
class WannierText:
    """What a file says.

    Parameters
    ----------
    comment
        The first line.
    R
        Lattice vectors, integer, shape (nR, 3), each once.
    hamiltonian
        In eV, complex, shape (nR, n, n), degeneracies divided out.
    cell
        Cell vectors in Angstrom as rows, shape (3, 3), or None (``_hr.dat``).
    position
        In Angstrom, complex, shape (3, nR, n, n), degeneracies divided out; None in ``_hr.dat``.
    """

    comment: str
    R: ndarray
    hamiltonian: ndarray
    cell: ndarray | None = None
    position: ndarray | None = None


def kind_of_text(head: bytes) -> str | None:
    """``"hr"`` or ``"tb"`` if a file that begins with these bytes is one, else None."""
    lines = head.split(b"\n")[1:7]
    for kind, first in (("tb", 3), ("hr", 0)):
        counts = lines[first : first + 3]
        if len(counts) == 3 and all(re.fullmatch(rb"\s*\d+\s*", line) for line in counts[:2]):
            cell = b" ".join(lines[:first]).split()
            shares = re.fullmatch(rb"\s*\d+(\s+\d+)*\s*", counts[2])
            if shares and len(cell) == 3 * first and all(map(_NUMBER.fullmatch, cell)):
                return kind
    return None


def read_text(path: str | os.PathLike) -> WannierText:
    """Read a ``_hr.dat`` or ``_tb.dat`` file; the content says which it is.

    Raises
    ------
    ValueError
        For anything but the complete file, with the line at fault.
    """
    data = Path(path).read_bytes()
    kind = kind_of_text(data[:4096])
    if kind is None:
        raise ValueError(
            f"{path}: expected a comment, (for _tb.dat: three cell vectors,) the numbers of "
            "Wannier functions and of lattice vectors, and degeneracies; this is no _hr.dat or "
            "_tb.dat of Wannier90"
        )
    file = _File(path, data)
    cell = np.array([file.line().split() for _ in range(3)], float) if kind == "tb" else None
    n, nR = int(file.line()), int(file.line())
    needed = nR * n * n * (7 if kind == "hr" else 12) + nR
    if n < 1 or nR < 1 or needed > len(data) // 2:
        raise ValueError(
            f"{path}: {n} functions and {nR} lattice vectors need {needed} numbers, which "
            f"{len(data)} bytes cannot hold; is the file complete?"
        )
    degeneracy = file.degeneracies(nR)
    numbers = file.numbers()
    if kind == "hr":
        R, hamiltonian = _hr_elements(file, numbers, n, nR)
        position = None
    else:
        R, hamiltonian, position = _tb_elements(file, numbers, n, nR)
    if len(np.unique(R, axis=0)) != nR:
        raise ValueError(f"{path}: a lattice vector R occurs twice")
    weight = 1 / degeneracy[:, None, None]
    return WannierText(
        file.comment,
        R,
        hamiltonian * weight,
        cell,
        None if position is None else position * weight,
    )


class _File:
    """The bytes of a file and how far they have been read."""

    def __init__(self, path: str | os.PathLike, data: bytes):
        self.path = path
        self.data = data
        self.offset = 0
        self.lines = 0
        self.comment = self.line().decode("utf-8", "replace").strip()

    def line(self) -> bytes:
        """The next line."""
        end = self.data.find(b"\n", self.offset)
        end = len(self.data) if end < 0 else end
        line = self.data[self.offset : end]
        self.offset = end + 1
        self.lines += 1
        return line

    def degeneracies(self, number: int) -> ndarray:
        """So many positive integers, on as many lines as they take."""
        found = []
        while len(found) < number:
            words = self.line().split()
            if not words or not all(re.fullmatch(rb"0*[1-9]\d{0,8}", word) for word in words):
                self.fault(self.lines, f"expected {number} degeneracies, positive integers")
            found += map(int, words)
        if len(found) > number:
            self.fault(self.lines, f"{len(found)} degeneracies for {number} lattice vectors")
        return np.array(found)

    def numbers(self) -> ndarray:
        """All that is left, as one array."""
        parts = [np.zeros(0)]
        start = self.offset
        while start < len(self.data):
            stop = self.data.rfind(b"\n", start, start + _CHUNK) + 1
            if stop == 0 or len(self.data) - start <= _CHUNK:
                stop = len(self.data)
            piece = self.data[start:stop]
            if piece.translate(None, _NOT_IN_NUMBERS) != piece:
                self._complain(start, stop)
            try:
                parts.append(np.fromstring(piece, sep=" ") if piece.strip() else parts[0])
            except ValueError:
                self._complain(start, stop)
            start = stop
        return np.concatenate(parts)

    def _complain(self, start: int, stop: int) -> NoReturn:
        number = self.data.count(b"\n", 0, start)
        for line in self.data[start:stop].split(b"\n"):
            number += 1
            for word in line.split():
                if not _NUMBER.fullmatch(word):
                    shown = word[:40].decode("ascii", "backslashreplace")
                    self.fault(number, f"expected a number, found {shown!r}")
        raise AssertionError("numpy refused what looks like numbers")

    def fault(self, line: int, message: str) -> NoReturn:
        raise ValueError(f"{self.path}, line {line}: {message}")

    def line_with(self, index: int) -> int:
        """The line that holds the number ``index`` of :meth:`numbers`."""
        count = 0
        for number, line in enumerate(self.data[self.offset :].split(b"\n"), self.lines + 1):
            count += len(line.split())
            if count > index:
                return number
        return number

    def check_count(self, found: int, expected: int, what: str) -> None:
        if found != expected:
            raise ValueError(
                f"{self.path}: {found} numbers after the degeneracies, but {what} have {expected}; "
                + ("is the file complete?" if found < expected else "the counts on top are wrong")
            )


def _hr_elements(file: _File, numbers: ndarray, n: int, nR: int) -> tuple[ndarray, ndarray]:
    file.check_count(len(numbers), 7 * nR * n * n, f"{n} x {n} elements for {nR} lattice vectors")
    rows = numbers.reshape(nR, n * n, 7)
    R = rows[:, :1, :3]
    wrong = (rows[:, :, :3] != R).any(axis=2)
    if wrong.any():
        row = int(np.argmax(wrong))
        file.fault(file.line_with(7 * row), f"R changes before all {n} x {n} elements were given")
    values = _elements(file, rows[:, :, 3:5], rows[:, :, 5:], lambda row: 7 * row + 3)
    return _integer_R(file, R[:, 0], lambda point: 7 * n * n * point), values[0]


def _tb_elements(
    file: _File, numbers: ndarray, n: int, nR: int
) -> tuple[ndarray, ndarray, ndarray]:
    length = nR * (3 + 4 * n * n), nR * (3 + 8 * n * n)
    what = f"H and r of {n} x {n} elements for {nR} lattice vectors"
    file.check_count(len(numbers), sum(length), what)
    found = []
    for start, width in ((0, 4), (length[0], 8)):
        size = 3 + width * n * n
        blocks = numbers[start : start + nR * size].reshape(nR, size)

        def first_of_row(row: int, start=start, size=size, width=width) -> int:
            return start + row // (n * n) * size + 3 + row % (n * n) * width

        R = _integer_R(
            file, blocks[:, :3], lambda point, start=start, size=size: start + point * size
        )
        rows = blocks[:, 3:].reshape(nR, n * n, width)
        found.append((R, _elements(file, rows[:, :, :2], rows[:, :, 2:], first_of_row)))
    (R, hamiltonian), (again, position) = found
    if not np.array_equal(R, again):
        point = int(np.argmax((again != R).any(axis=1)))
        line = file.line_with(length[0] + point * (3 + 8 * n * n))
        file.fault(line, "r has other lattice vectors than H, or another order of them")
    return R, hamiltonian[0], position


def _integer_R(file: _File, R: ndarray, place) -> ndarray:
    wrong = (np.round(R) != R).any(axis=1) | (np.abs(R) > 10**6).any(axis=1)
    if wrong.any():
        point = int(np.argmax(wrong))
        file.fault(file.line_with(place(point)), "expected a lattice vector, three integers")
    return R.astype(int)


def _elements(file: _File, indices: ndarray, parts: ndarray, place) -> ndarray:
    """Elements put where their m and n say, shape (ncomponents, nR, n, n), complex."""
    nR, nn = indices.shape[:2]
    n = round(nn**0.5)
    m_fastest = np.indices((n, n)).reshape(2, nn)[::-1].T + 1
    ordered = (indices == m_fastest).all(axis=2)
    values = np.ascontiguousarray(parts).view(complex)
    finite = np.isfinite(values).all(axis=2)
    if not finite.all():
        file.fault(file.line_with(place(int(np.argmin(finite)))), "a number is too large")
    if not ordered.all():
        inside = (indices >= 1) & (indices <= n) & (indices == np.round(indices))
        if not inside.all():
            row = int(np.argmin(inside.all(axis=2)))
            file.fault(file.line_with(place(row)), f"expected m and n from 1 to {n}")
        where = (indices[..., 1] - 1) * n + indices[..., 0] - 1
        order = np.argsort(where, axis=1, kind="stable")
        if (np.take_along_axis(where, order, 1) != np.arange(nn)).any():
            raise ValueError(f"{file.path}: an element (m, n) is given twice for one R")
        values = np.take_along_axis(values, order[:, :, None], 1)
    # rows run over n slowly and m fast
    return values.transpose(2, 0, 1).reshape(-1, nR, n, n).swapaxes(2, 3)


# --- writing -------------------------------------------------------------------------------------


def write_hr(file: TextIO, text: WannierText) -> None:
    """The lines of a ``_hr.dat`` file."""
    _write_head(file, text)
    n = text.hamiltonian.shape[1]
    form = "".join(f"@{m:5d}{k:5d} %.13e %.13e\n" for k in range(1, n + 1) for m in range(1, n + 1))
    for R, block in zip(text.R.tolist(), text.hamiltonian, strict=True):
        file.write(_filled(form.replace("@", "{:5d}{:5d}{:5d}".format(*R)), block[None]))


def write_tb(file: TextIO, text: WannierText) -> None:
    """The lines of a ``_tb.dat`` file."""
    _write_head(file, text)
    n = text.hamiltonian.shape[1]
    for operator in (text.hamiltonian[None], text.position):
        item = " %.13e %.13e" * len(operator)
        form = "".join(f"{m:5d}{k:5d}{item}\n" for k in range(1, n + 1) for m in range(1, n + 1))
        for point, R in enumerate(text.R.tolist()):
            file.write("\n{:5d}{:5d}{:5d}\n".format(*R) + _filled(form, operator[:, point]))


def _write_head(file: TextIO, text: WannierText) -> None:
    file.write(f" {text.comment}\n")
    if text.position is not None:
        file.writelines(" {:.16f} {:.16f} {:.16f}\n".format(*vector) for vector in text.cell)
    file.write(f"{text.hamiltonian.shape[1]:12d}\n{len(text.R):12d}\n")
    file.writelines(_degeneracies(len(text.R)))


def _degeneracies(number: int) -> Iterator[str]:
    for start in range(0, number, _DEGENERACIES_PER_LINE):
        yield f"{1:5d}" * min(_DEGENERACIES_PER_LINE, number - start) + "\n"


def _filled(form: str, blocks: ndarray) -> str:
    """A format with the elements of one R, (ncomponents, n, n), m fastest, in it."""
    values = np.ascontiguousarray(blocks.transpose(2, 1, 0), dtype=complex)
    return form % tuple(values.view(float).ravel().tolist())
