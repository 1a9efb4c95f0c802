"""The text layouts of ABACUS's matrix files.

Three headers and two bodies are found in files, in any combination::

    STEP: 0                          <- or IONIC_STEP: 1, or nothing in the oldest files
    Matrix Dimension of H(R): 26
    Matrix number of H(R): 93

     --- Ionic Step 1 ---
     # print H matrix in real space H(R)
     1 # number of spin directions
     1 # spin index                  <- newer versions add ", E_Fermi = 5.43 eV"
     26 # number of localized basis
     93 # number of Bravais lattice vector R
     (the unit cell, to few digits: the structure is read elsewhere)

    -2 -1 1 157                      <- body of lines: Rx Ry Rz nnz, then one line each of values,
     3.09e-07 -1.80e-06 ...             columns and row pointers; nothing more for nnz = 0
     13 14 ...
     0 13 26 ...

     -2 -1 1 157                     <- body with marks; arrays wrap over lines; a blank line ends
     # CSR values                       a matrix. R without elements may be left out, although the
     3.09e-07 -1.80e-06 ...             header counts them
     # CSR column indices
     13 14 ...
     # CSR row pointers
     0 13 26 ...

In a body of lines, r(R) has one line ``Rx Ry Rz`` for three matrices, each with a line ``nnz`` of
its own. Elements of up to 1e-10 in the units of the file are not printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from ase_nextham.h0.csr_matrix import NEGLIGIBLE, CSRMatrix, MatrixFileError, check_size, stack
from ase_nextham.h0.csr_numbers import BadNumber, read_numbers

_REAL = rb"[-+]?\d{1,20}\.?\d{0,20}(?:[eE][-+]?\d{1,2})?"
_STEP = re.compile(rb"[ \t]*(IONIC_STEP|STEP):[ \t]*(\d{1,9})[ \t]*")
_DIMENSION = re.compile(rb"[ \t]*Matrix Dimension of (\S+)\(R\):[ \t]*([1-9]\d{0,8})[ \t]*")
_NUMBER = re.compile(rb"[ \t]*Matrix number of (\S+)\(R\):[ \t]*(\d{1,9})[ \t]*")
_IONIC_STEP = re.compile(rb"[ \t]*--- Ionic Step (\d{1,9}) ---[ \t]*")
_LABEL = re.compile(rb"[ \t]*# print .*?(\S+)\(R\)[ \t]*")
_SPIN = re.compile(rb"[ \t]*([12]) # spin index(?:, *E_Fermi *= *(" + _REAL + rb") *eV)?[ \t]*")
_BASIS = re.compile(rb"[ \t]*([1-9]\d{0,8}) # number of localized basis[ \t]*")
_COUNT = re.compile(rb"[ \t]*(\d{1,9}) # number of Bravais lattice vector R[ \t]*")
_FOLDED = re.compile(rb"[ \t]*# *representation: *gamma-only folded.*", re.IGNORECASE)
_COMPONENT = re.compile("r_?[xyz]")
_BOX = re.compile(rb"[ \t]*#-+#[ \t]*")
_BLANK_LINE = re.compile(rb"\n[ \t]*\n")
_COLUMNS = re.compile(rb"# CSR column[ _]ind(?:ices|ex)[ \t]*\n")
_POINTERS = re.compile(rb"# CSR row[ _](?:pointers?|indptr)[ \t]*\n")


def looks_like_text(data: bytes) -> bool:
    """Whether a file begins like one of the text layouts."""
    head = data[:4096].lstrip()
    return head.startswith((b"STEP:", b"IONIC_STEP:", b"Matrix Dimension of", b"--- Ionic Step"))


@dataclass
class Header:
    """What stands above the matrices of one record."""

    layout: str
    step: int
    operator: str
    dimension: int
    nR: int
    marked: bool = False
    spin_index: int | None = None
    fermi_level: float | None = None
    gamma_folded: bool = False


@dataclass
class Spans:
    """Where the arrays of one matrix stand in the text, for each R that has elements."""

    R: list[tuple[int, ...]] = field(default_factory=list)
    nnz: list[int] = field(default_factory=list)
    values: list[tuple[int, int]] = field(default_factory=list)
    columns: list[tuple[int, int]] = field(default_factory=list)
    pointers: list[tuple[int, int]] = field(default_factory=list)


class Text:
    """A text and how far it has been read.

    Parameters
    ----------
    data
        Bytes, or what behaves like them (length, slices, ``find``, ``count``); ends with a newline.
    """

    def __init__(self, path: str, data: bytes):
        self.path = path
        self.data = data
        self.at = 0

    def error(self, message: str, at: int | None = None) -> MatrixFileError:
        """An error that names file and line, by default the one to be read next."""
        at = self.at if at is None else at
        if at >= len(self.data):
            return MatrixFileError(f"{self.path}, at the end of the file: {message}")
        line = self.data.count(b"\n", 0, at) + 1
        return MatrixFileError(f"{self.path}, line {line}: {message}")

    def skip_blank_lines(self) -> bool:
        """Go to the next line that is not blank; False at the end of the file."""
        while self.at < len(self.data):
            stop = self.data.find(b"\n", self.at)
            if self.data[self.at : stop].strip(b" \t"):
                return True
            self.at = stop + 1
        return False

    def peek(self) -> bytes:
        """The next line, without going past it."""
        return self.data[self.at : self.data.find(b"\n", self.at)]

    def line(self) -> tuple[int, int]:
        """Go past a line; where it stands."""
        start = self.at
        stop = self.data.find(b"\n", start)
        if stop < 0:
            raise self.error("expected a line of numbers")
        self.at = stop + 1
        return start, stop

    def match(self, pattern: re.Pattern, what: str) -> re.Match:
        """Go past the next line that is not blank, which must have a certain form."""
        self.skip_blank_lines()
        found = pattern.fullmatch(self.peek())
        if not found:
            shown = self.peek()[:60].decode("ascii", "backslashreplace").strip()
            raise self.error(f"expected {what}, found {shown!r}")
        self.line()
        return found

    def integers(self, number: int, what: str) -> tuple[int, ...]:
        """Go past the next line that is not blank, which must hold so many integers."""
        found = _INTEGERS[number].match(self.data[self.at : self.at + 80])
        if found:
            self.at += found.end()
        else:  # many blanks, or not what it should be
            found = self.match(_INTEGERS_OF_LINE[number], what)
        return tuple(map(int, found.groups()))

    def blank_line(self, start: int, likely: int) -> int:
        """Where the line before the next blank line ends; it is sought in so many bytes first."""
        while True:
            found = _BLANK_LINE.search(self.data[start : start + likely])
            if found:
                return start + found.start()
            if start + likely >= len(self.data):
                return len(self.data)
            likely *= 4


_INTEGERS_OF_LINE = {
    number: re.compile(rb"[ \t]*" + rb"[ \t]+".join([rb"(-?\d{1,9})"] * number) + rb"[ \t]*")
    for number in (1, 3, 4)
}
_INTEGERS = {
    number: re.compile(rb"[ \t\n]*" + pattern.pattern + rb"\n")
    for number, pattern in _INTEGERS_OF_LINE.items()
}


def read_text(path: str, data: bytes) -> list[CSRMatrix]:
    """All records of a file in one of the text layouts."""
    if b"\r\n" in data[:4096]:
        data = data.replace(b"\r\n", b"\n")
    text = Text(path, data if data.endswith(b"\n") else data + b"\n")
    return [
        _matrix(text, header, spans, component)
        for header, several in indexed(text)
        for component, spans in several
    ]


def indexed(text: Text) -> Iterator[tuple[Header, list[tuple[int | None, Spans]]]]:
    """Header of every record, and where its arrays stand; for r(R) those of x, y and z.

    Raises
    ------
    MatrixFileError
        If the text is not of this form. What the arrays hold is not looked at.
    """
    step = 0
    while text.skip_blank_lines():
        header = _read_header(text, step)
        step = header.step + 1
        check_size(text.path, header.nR, 1, len(text.data))
        if header.marked:
            several = [_marked_body(text, header)]
        elif header.operator == "r":
            several = _r_body(text, header)
        else:
            several = [_line_body(text, header)]
        component = None
        if _COMPONENT.fullmatch(header.operator):
            component = "xyz".index(header.operator[-1])
            header.operator = "r"
        yield (
            header,
            [(n if len(several) == 3 else component, spans) for n, spans in enumerate(several)],
        )


def _read_header(text: Text, next_step: int) -> Header:
    if _IONIC_STEP.fullmatch(text.peek()):
        return _new_header(text)
    step = next_step
    found = _STEP.fullmatch(text.peek())
    if found:
        text.line()
        step = int(found[2]) - (found[1] == b"IONIC_STEP")
    found = text.match(_DIMENSION, "'Matrix Dimension of H(R): ...' (or of another operator)")
    operator = found[1].decode("ascii", "backslashreplace")
    nR = int(text.match(_NUMBER, f"'Matrix number of {operator}(R): ...'")[2])
    header = Header("legacy text", max(step, 0), operator, int(found[2]), nR)
    text.skip_blank_lines()
    if text.peek().lstrip().startswith(b"#"):
        header.marked = True
        _skip_box(text)
    return header


def _new_header(text: Text) -> Header:
    found = {}
    start = text.at
    patterns = {
        "step": _IONIC_STEP,
        "operator": _LABEL,
        "spin": _SPIN,
        "dimension": _BASIS,
        "nR": _COUNT,
        "folded": _FOLDED,
    }
    while not _BOX.fullmatch(text.peek()):
        line = text.peek()[:200]  # longer than any of these, and than a backtracking search likes
        if b"# CSR" in line or text.at >= len(text.data):
            break
        for name, pattern in patterns.items():
            match = pattern.fullmatch(line)
            if match and name in found:
                raise text.error("a second header begins before the matrices of the first")
            if match:
                found[name] = match
        text.line()
    _skip_box(text)
    for name, what in (
        ("operator", "# print ... matrix in real space ...(R)"),
        ("dimension", "... # number of localized basis"),
        ("nR", "... # number of Bravais lattice vector R"),
    ):
        if name not in found:
            raise text.error(f"this header has no line {what!r}", start)
    header = Header(
        "new text",
        max(int(found["step"][1]) - 1, 0),
        found["operator"][1].decode("ascii", "backslashreplace"),
        int(found["dimension"][1]),
        int(found["nR"][1]),
        marked=True,
        gamma_folded="folded" in found,
    )
    if "spin" in found:
        header.spin_index = int(found["spin"][1]) - 1
        if found["spin"][2]:
            header.fermi_level = float(found["spin"][2])
    return header


def _skip_box(text: Text) -> None:
    """Go past the comment that explains the format."""
    while text.skip_blank_lines() and text.peek().lstrip().startswith(b"#"):
        text.line()


def _arrays_on_lines(text: Text, spans: Spans, nnz: int) -> None:
    spans.nnz.append(nnz)
    if nnz:
        spans.values.append(text.line())
        spans.columns.append(text.line())
        spans.pointers.append(text.line())


def _line_body(text: Text, header: Header) -> Spans:
    spans = Spans()
    for n in range(header.nR):
        *R, nnz = text.integers(4, f"'Rx Ry Rz nnz' of matrix {n + 1} of {header.nR}")
        spans.R.append(tuple(R))
        _arrays_on_lines(text, spans, nnz)
    return spans


def _r_body(text: Text, header: Header) -> list[Spans]:
    several = [Spans(), Spans(), Spans()]
    for n in range(header.nR):
        R = text.integers(3, f"'Rx Ry Rz' of matrix {n + 1} of {header.nR}")
        for axis, spans in zip("xyz", several, strict=True):
            (nnz,) = text.integers(1, f"the number of elements of {axis} at R = {list(R)}")
            spans.R.append(R)
            _arrays_on_lines(text, spans, nnz)
    return several


def _marked_body(text: Text, header: Header) -> Spans:
    spans = Spans()
    data = text.data
    while text.skip_blank_lines():
        line = text.peek()
        if _IONIC_STEP.fullmatch(line) or _STEP.fullmatch(line) or _DIMENSION.fullmatch(line):
            break
        *R, nnz = text.integers(4, "'Rx Ry Rz nnz'")
        spans.R.append(tuple(R))
        spans.nnz.append(nnz)
        if text.peek().strip() != b"# CSR values":
            if nnz:
                raise text.error("expected '# CSR values'")
            continue
        _, start = text.line()
        arrays = []
        for pattern, what in (
            (_COLUMNS, "# CSR column indices"),
            (_POINTERS, "# CSR row pointers"),
        ):
            stop = data.find(b"#", start)
            end = data.find(b"\n", stop) + 1 if stop >= 0 else 0
            if not pattern.match(data[stop:end]):
                raise text.error(f"expected {what!r}", stop if stop >= 0 else len(data))
            arrays.append((start, stop))
            start = end
        text.at = start
        if nnz:
            stop = text.blank_line(start, 12 * header.dimension + 100)
            text.at = stop + 1
            spans.values.append(arrays[0])
            spans.columns.append(arrays[1])
            spans.pointers.append((start, stop))
        else:
            for begin, end in arrays:
                if data[begin:end].strip():
                    raise text.error(f"R = {R} has no elements, but numbers follow", begin)
            _skip_empty_matrix(text, header.dimension)
    if len(spans.R) > header.nR or (header.nR and not spans.R):
        raise text.error(
            f"the header announces {header.nR} matrices, but {len(spans.R)} were found"
        )
    return spans


def _skip_empty_matrix(text: Text, dimension: int) -> None:
    """Row pointers, all 0, of a matrix without elements, after which no blank line need stand."""
    left = dimension + 1
    while left > 0:
        text.skip_blank_lines()
        tokens = text.peek().split()
        if not tokens or set(tokens) != {b"0"}:
            raise text.error("expected row pointers, all 0")
        left -= len(tokens)
        text.line()
    if left:
        raise text.error(f"more than {dimension + 1} row pointers")


def _matrix(text: Text, header: Header, spans: Spans, component: int | None) -> CSRMatrix:
    dimension, path = header.dimension, text.path
    nnz = np.array(spans.nnz, np.int64)
    if (nnz < 0).any():
        raise MatrixFileError(f"{path}: a negative number of elements")
    filled = np.flatnonzero(nnz)
    start = spans.values[0] if len(filled) else (0, 0)
    kind = "complex" if text.data.find(b"(", *start) >= 0 else "real"
    value = _array(text, spans.values, kind, nnz[filled], "values", spans, filled)
    column = _array(text, spans.columns, "integer", nnz[filled], "column indices", spans, filled)
    rows = np.full(len(filled), dimension + 1)
    pointers = _array(text, spans.pointers, "integer", rows, "row pointers", spans, filled)
    pointers = pointers.reshape(len(filled), dimension + 1)
    wrong = (pointers[:, 0] != 0) | (pointers[:, -1] != nnz[filled])
    if wrong.any():
        n = int(np.argmax(wrong))
        raise bad_pointers(text, spans, filled[n], pointers[n])
    check_size(path, len(nnz), dimension, len(text.data))
    R, indptr = stack(spans.R, dimension, filled, pointers)
    if column.max(initial=0) >= 2**31:
        raise MatrixFileError(f"{path}: column {column.max()} is outside the matrix")
    matrix = CSRMatrix(
        path=path,
        layout=header.layout,
        operator=header.operator,
        step=header.step,
        dimension=dimension,
        R=R,
        indptr=indptr,
        column=column,
        value=value,
        fermi_level=header.fermi_level,
        spin_index=header.spin_index,
        gamma_folded=header.gamma_folded,
        component=component,
    )
    if len(R) < header.nR and header.operator in HERMITIAN:
        for n in np.flatnonzero(without_partner(R)):
            pieces = [np.abs(value).max(initial=0) for value, _ in matrix.pieces(n)]
            check_alone(path, R, n, header.nR, max(pieces, default=0.0))
    return matrix


def bad_pointers(text: Text, spans: Spans, n: int, pointers: ndarray) -> MatrixFileError:
    """The error for row pointers of the n-th R that do not begin or end as they must."""
    filled = int(np.count_nonzero(spans.nnz[:n]))
    return text.error(
        f"row pointers of R = {list(spans.R[n])} go from {pointers[0]} to {pointers[-1]}, "
        f"expected 0 to {spans.nnz[n]}",
        spans.pointers[filled][0],
    )


HERMITIAN = ("H", "S", "T", "DM")
"""Operators that have -R with R."""


def without_partner(R: ndarray) -> ndarray:
    """Whether -R is missing, for each R."""
    present = {tuple(one) for one in R.tolist()}
    return np.array([tuple(-x for x in one) not in present for one in R.tolist()], bool)


def check_alone(path: str, R: ndarray, n: int, announced: int, largest: float) -> None:
    """Refuse a file that ends early: Hermitian operators have -R with R, unless they are tiny.

    Versions that leave out R without elements count them in the header all the same.
    """
    if largest > NEGLIGIBLE:
        raise MatrixFileError(
            f"{path}: the header announces {announced} matrices, {len(R)} were found, and R = "
            f"{R[n].tolist()} has elements up to {largest:.3g} but no partner -R: the file is "
            "incomplete"
        )


def _array(
    text: Text,
    places: Sequence[tuple[int, int]],
    kind: str,
    expected: ndarray,
    what: str,
    spans: Spans,
    filled: ndarray,
) -> ndarray:
    """One of the three arrays of all R together, with as many numbers for each as expected."""
    try:
        numbers, counts = read_numbers(text.data, places, kind)
    except BadNumber as err:
        raise text.error(str(err), err.offset) from None
    wrong = counts != expected
    if wrong.any():
        n = int(np.argmax(wrong))
        raise text.error(
            f"{counts[n]} {what} of R = {list(spans.R[filled[n]])}, expected {expected[n]}",
            places[n][0],
        )
    return numbers
