"""Numbers in text, read by the million.

ABACUS prints all numbers of an array with the same number of digits, ``-1.23456789e-03``. That
lets NumPy read a chunk of text at once: the places of the ``e`` give fixed windows around them,
eight digits become an integer in six operations on 64-bit words, and one division makes it the
number. The result is the correctly rounded one, bit for bit what ``float()`` gives, and every
byte of the chunk is proven to belong to a number or to be blank. Whatever does not look like this
goes to :func:`float` and :func:`int`, token by token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy import ndarray

CHUNK = 1 << 19
"""Bytes that are read at once: the temporary arrays then stay in the cache of one core."""

_PAD = b" " * 32  # windows reach this far beyond a number
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TOKEN = re.compile(rb"[^\s(),]+|[(),]")


class BadNumber(ValueError):
    """Something that is not a number, at ``offset`` bytes from the beginning of the text."""

    def __init__(self, offset: int, message: str):
        super().__init__(message)
        self.offset = offset


def read_numbers(
    text: bytes, spans: Sequence[tuple[int, int]], kind: str
) -> tuple[ndarray, ndarray]:
    """All numbers in some stretches of a text, and how many each stretch holds.

    Parameters
    ----------
    spans
        First byte of each stretch and the byte after it.
    kind
        ``"real"``, ``"complex"`` (each number as ``(re,im)``) or ``"integer"`` (without sign).

    Returns
    -------
    (ndarray, ndarray)
        The numbers, float64, complex128 or int64; the counts, shape (nspans,).

    Raises
    ------
    BadNumber
        For anything else than numbers and blanks. Numbers too large for the type come out as inf.
    """
    fast, slow = (
        (_fast_integers, _slow_integers) if kind == "integer" else (_fast_reals, _slow_reals)
    )
    counts = np.zeros(len(spans), np.int64)
    parts = []
    view = memoryview(text)
    for pieces in _groups(text, spans, b")" if kind == "complex" else b" "):
        chunk = b" ".join([_PAD, *(view[start:stop] for _, start, stop in pieces), _PAD])
        lengths = np.array([stop - start for _, start, stop in pieces])
        begins = len(_PAD) + 1 + np.cumsum(lengths + 1) - (lengths + 1)
        found = fast(chunk, kind)
        if found is not None:
            numbers, places = found
            number = np.diff(np.searchsorted(places, begins), append=len(places))
            if kind == "complex":
                found = None if (number % 2).any() else found
                number //= 2
        if found is None:
            several = [slow(text, start, stop, kind) for _, start, stop in pieces]
            numbers = np.concatenate(several)
            number = np.array([len(values) for values in several])
        np.add.at(counts, [n for n, _, _ in pieces], number)
        parts.append(numbers)
    dtype = {"real": float, "complex": complex, "integer": np.int64}[kind]
    return np.concatenate(parts) if parts else np.zeros(0, dtype), counts


def _groups(
    text: bytes, spans: Sequence[tuple[int, int]], end: bytes
) -> Iterator[list[tuple[int, int, int]]]:
    """Stretches of text put together or cut up (after an ``end``) to about one chunk."""
    pieces, size = [], 0
    for n, (start, stop) in enumerate(spans):
        while start < stop:
            cut = stop
            if stop - start > CHUNK:
                cut = text.rfind(end, start, start + CHUNK) + 1 or stop
            pieces.append((n, start, cut))
            size += cut - start
            start = cut
            if size > CHUNK // 2:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces


# --- the general way ---------------------------------------------------------------------------


def _slow_reals(text: bytes, start: int, stop: int, kind: str) -> ndarray:
    piece = text[start:stop]
    if kind == "complex":
        for mark in (b"(", b",", b")"):
            piece = piece.replace(mark, b" " + mark + b" ")
        tokens = piece.split()
        n = len(tokens) // 5
        marks = [tokens[k::5] for k in (0, 2, 4)]
        if len(tokens) % 5 or marks != [[b"("] * n, [b","] * n, [b")"] * n]:
            _complain(text, start, stop, "expected complex numbers as (re,im)")
        values = _floats(text, start, stop, [t for k, t in enumerate(tokens) if k % 5 in (1, 3)])
        return values.view(complex)
    return _floats(text, start, stop, piece.split())


def _floats(text: bytes, start: int, stop: int, tokens: list[bytes]) -> ndarray:
    # float() alone would take "nan", "inf" and "1_0", too
    if text[start:stop].translate(None, b"0123456789+-.eE(), \n\t"):
        _complain(text, start, stop, "expected a number")
    try:
        return np.fromiter(map(float, tokens), float, len(tokens))
    except ValueError:
        _complain(text, start, stop, "expected a number")


def _slow_integers(text: bytes, start: int, stop: int, kind: str) -> ndarray:
    piece = text[start:stop]
    tokens = piece.split()
    if piece.translate(None, b"0123456789 \n\t") or max(map(len, tokens), default=0) > 18:
        _complain(text, start, stop, "expected an integer", re.compile(rb"\d{1,18}"))
    return np.fromiter(map(int, tokens), np.int64, len(tokens))


def _complain(text: bytes, start: int, stop: int, what: str, pattern=_NUMBER) -> None:
    for match in _TOKEN.finditer(text, start, stop):
        token = match.group()
        if token not in (b"(", b",", b")") and not pattern.fullmatch(token):
            shown = token[:40].decode("ascii", "backslashreplace")
            raise BadNumber(match.start(), f"expected a number, found {shown!r}")
    raise BadNumber(start, what)


# --- the fast way ------------------------------------------------------------------------------

_WORD = np.dtype("<u8")
_TENS = 10.0 ** np.arange(23)  # exact in double precision
_LONG_TENS = np.array([np.longdouble(f"1e{k}") for k in range(128)])


def _word(mask: bytes) -> np.uint64:
    return np.frombuffer(mask, _WORD)[0]


_ASCII_ZEROS = _word(b"0" * 8)
_TOO_LARGE = _word(b"\x76" * 8)  # added to 0 ... 9 it leaves the highest bit alone
_HIGHEST = _word(b"\x80" * 8)


def _windows(chunk: bytes, starts: ndarray, words: int) -> ndarray:
    """``8 * words`` bytes from each start on, shape (n, 8 * words)."""
    size = 8 * words
    # a view of overlapping items; void, because integers would have to be aligned
    items = np.ndarray(len(chunk) - size + 1, f"V{size}", chunk, strides=(1,))
    return items[starts].view(np.uint8).reshape(-1, size)


def _are_digits(words: ndarray) -> bool:
    """Whether all bytes are 0 ... 9."""
    return not ((words + _TOO_LARGE | words) & _HIGHEST).any()


def _number(words: ndarray) -> ndarray:
    """The number whose eight digits are the bytes 0 ... 9 of a word."""
    words = words * np.uint64(2561) >> np.uint64(8)
    words = (words & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6553601) >> np.uint64(16)
    return (words & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42949672960001) >> np.uint64(32)


def _blanks(data: ndarray) -> int:
    return sum(np.count_nonzero(data == blank) for blank in b" \n\t")


def _fast_reals(chunk: bytes, kind: str) -> tuple[ndarray, ndarray] | None:
    """Numbers ``[-]d.ddde[+-]dd``, all with the same digits, and the places of their ``e``.

    None where anything in the chunk is not of this form.
    """
    data = np.frombuffer(chunk, np.uint8)
    places = np.flatnonzero(data == ord("e"))
    if not len(places) or (kind == "complex" and len(places) % 2):
        return None
    first = int(places[0])
    digits = first - chunk.rfind(b".", 0, first) - 1
    if not 1 <= digits <= 17:
        return None
    # windows reach from before the sign to the separator after the exponent
    before = 8 * ((digits + 10) // 8)
    windows = _windows(chunk, places - before, before // 8 + 1)
    mantissa = _mantissa(windows[:, :before].view(_WORD), digits)
    exponent = _exponent(windows[:, before:])
    if mantissa is None or exponent is None:
        return None
    negative = windows[:, before - digits - 3] == ord("-")
    length = len(places) * (digits + 6) + np.count_nonzero(negative)
    after = windows[:, before + 4]
    if kind == "complex":
        opening = data[places[0::2] - digits - 3 - negative[0::2]]
        marked = (opening == ord("(")) & (after[0::2] == ord(",")) & (after[1::2] == ord(")"))
        length += 3 * len(marked)
    else:
        marked = after <= ord(" ")
    # Every number is complete and something else follows it, so no two overlap. If they and the
    # marks make up all that is not blank, there is nothing else in the chunk.
    if not marked.all() or length + _blanks(data) != len(data):
        return None
    values = _scaled(mantissa, digits - exponent)
    np.negative(values, out=values, where=negative)
    return (values.view(complex) if kind == "complex" else values), places


def _mantissa(words: ndarray, digits: int) -> ndarray | None:
    """The number ``d.ddd`` at the end of each window, without its point."""
    layout = (b"d." + b"f" * digits).rjust(8 * words.shape[1], b"\x00")
    total = np.zeros(len(words), np.uint64)
    for n, word in enumerate(words.T):
        part = layout[8 * n : 8 * n + 8]
        if not any(part):
            continue
        word = word ^ _word(part.translate(bytes.maketrans(b"df", b"00")))
        if b"." in part and (word & _mask(part, b".")).any():
            return None
        if not _are_digits(word & _mask(part, b"d.f")):
            return None
        if b"d" in part:
            lead = word >> np.uint64(8 * part.index(b"d")) & np.uint64(15)
        if b"f" in part:
            total = total * np.uint64(10**8) + _number(word & _mask(part, b"f"))
    return (total + lead * np.uint64(10**digits)).view(np.int64)


def _mask(layout: bytes, letters: bytes) -> np.uint64:
    return _word(bytes(255 * (c in letters) for c in layout))


def _exponent(windows: ndarray) -> ndarray | None:
    """The exponent, of two digits, of the window ``e-03...``."""
    negative = windows[:, 1] == ord("-")
    tens, ones = windows[:, 2] - ord("0"), windows[:, 3] - ord("0")
    if max(tens.max(), ones.max()) > 9 or not (negative | (windows[:, 1] == ord("+"))).all():
        return None
    exponent = (10 * tens + ones).astype(np.int64)
    return np.negative(exponent, out=exponent, where=negative)


def _scaled(mantissa: ndarray, power: ndarray) -> ndarray:
    """``mantissa / 10**power``, correctly rounded: bit for bit what float() gives."""
    # both exact in double precision, so that the one division is all the rounding there is
    exact = (mantissa < 2**53) & (power >= 0) & (power < len(_TENS))
    if exact.all():
        return mantissa / _TENS[power]
    values = mantissa / _TENS[np.where(exact, power, 0)]
    rest = np.flatnonzero(~exact)
    long, k = mantissa[rest].astype(np.longdouble), power[rest]
    long = np.where(
        k < 0, long * _LONG_TENS[np.maximum(-k, 0)], long / _LONG_TENS[np.maximum(k, 0)]
    )
    # Both ends of the error interval of the extended number round to the same double: this is it.
    margin = 4 * np.finfo(np.longdouble).eps
    low, high = (long * (1 - margin)).astype(float), (long * (1 + margin)).astype(float)
    values[rest] = low
    for n in rest[low != high]:
        values[n] = float(f"{mantissa[n]}e{-power[n]}")
    return values


def _fast_integers(chunk: bytes, kind: str) -> tuple[ndarray, ndarray] | None:
    """Integers of up to eight digits, and the places of their last digits."""
    data = np.frombuffer(chunk, np.uint8)
    filled = data > ord(" ")
    edges = np.flatnonzero(filled[1:] != filled[:-1])
    before, last = edges[0::2], edges[1::2]
    length = last - before
    if not len(last) or length.max() > 8 or length.sum() + _blanks(data) != len(data):
        return None
    words = _windows(chunk, last - 7, 1).view(_WORD)[:, 0]
    # push out of the word what stands before the number
    shift = (64 - 8 * length).astype(np.uint64)
    words = (words ^ _ASCII_ZEROS) >> shift << shift
    return (_number(words).view(np.int64), last) if _are_digits(words) else None
