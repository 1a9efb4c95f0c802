"""NumPy arrays, scalars and types in pickles, and the ``.npy`` and ``.npz`` files around them."""

from __future__ import annotations

import ast
import math
import re
import zlib
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from numpy import ndarray

from ase_nextham.inert_pickle.buffer import Buffer, zip_directory
from ase_nextham.inert_pickle.interpreter import Context, Global, Table, run, shown

MAX_INFLATION = 100
"""Compressed entries that grow by more than this, and to more than 64 MiB, are refused."""

_TYPE_CODE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|O[48]?|[SU]\d{1,6})")
_SIMPLE_SIZE = 64 * 2**20
_MAX_HEADER = 10_000  # bytes; as NumPy's own limit


def counted(context: Context, shape: object) -> int:
    """Number of elements of a shape, after the check that it is one."""
    if not isinstance(shape, (tuple, list)) or len(shape) > 32:
        raise context.error("the shape of an array is not a tuple of at most 32 numbers")
    for length in shape:
        if type(length) is not int or not 0 <= length < 2**62:
            raise context.error(f"{shown(str(type(length).__name__))} as a length of an array")
    return math.prod(shape)


# --- calls -------------------------------------------------------------------------------------


def dtype(context: Context, code: object, align: object = False, copy: object = False) -> np.dtype:
    """``numpy.dtype(code)`` for plain numbers, text, bytes and objects."""
    if not isinstance(code, str) or not _TYPE_CODE.fullmatch(code):
        raise context.error(f"arrays of type {shown(str(code)[:80])} are not read")
    return np.dtype(code, align=False, copy=True)


def fill_dtype(context: Context, target: np.dtype, state: object) -> None:
    """``BUILD`` of a dtype: only the byte order is taken from the state."""
    if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
        raise context.error("arrays of structured types are not read")
    if state[1] not in ("<", ">", "|", "="):
        raise context.error("a byte order that is none of < > | =")
    if state[1] == ">":
        size = target.itemsize if target.kind in "SU" else -1
        align = target.alignment if target.kind in "SU" else -1
        target.__setstate__((3, ">", None, None, None, size, align, 0))


def empty_array(context: Context, cls: object, shape: object, code: object) -> ndarray:
    """``numpy.core.multiarray._reconstruct``: an array that ``BUILD`` fills."""
    if cls != Global("numpy", "ndarray") or shape != (0,):
        raise context.error(f"arrays of class {shown(str(cls)[:80])} are not read")
    return np.empty(0, "b")


def fill_array(context: Context, target: ndarray, state: object) -> None:
    """``BUILD`` of an array that :func:`empty_array` made."""
    if target.shape != (0,) or target.dtype != np.dtype("b") or target.base is not None:
        raise context.error("damaged pickle: it fills an array twice")
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], np.dtype):
        raise context.error("damaged pickle: the state of an array is not five values")
    _, shape, type_, fortran, content = state
    count = counted(context, shape)
    if type_.hasobject:
        if not isinstance(content, list) or len(content) != count:
            raise context.error("damaged pickle: an array of objects has not as many as its shape")
    else:
        content = _raw(context, content)
        if len(content) != count * type_.itemsize:
            raise context.error(
                f"damaged pickle: an array of shape {shape} and type {type_} has {len(content)} "
                "bytes"
            )
        context.spend(len(content), "an array")
    target.__setstate__((1, tuple(shape), type_, bool(fortran), content))


def from_buffer(
    context: Context, content: object, type_: object, shape: object, order: object
) -> ndarray:
    """``numpy.core.numeric._frombuffer``: an array of protocol 5."""
    content = _raw(context, content)
    count = counted(context, shape)
    if not isinstance(type_, np.dtype) or type_.hasobject or order not in ("C", "F"):
        raise context.error("damaged pickle: an array without type or order")
    if len(content) != count * type_.itemsize:
        raise context.error(f"damaged pickle: an array of shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, type_).reshape(shape, order=order)


def scalar(context: Context, type_: object, content: object) -> np.generic:
    """``numpy.core.multiarray.scalar``."""
    content = _raw(context, content)
    if not isinstance(type_, np.dtype) or type_.hasobject or len(content) != type_.itemsize:
        raise context.error("damaged pickle: a scalar has not the size of its type")
    return np.frombuffer(content, type_)[0] if content else type_.type()


def _raw(context: Context, content: object) -> bytes | bytearray:
    if isinstance(content, str):  # pickles of Python 2
        context.spend(len(content), "an array")
        content = content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise context.error("damaged pickle: the content of an array is not bytes")
    return content


# --- files -------------------------------------------------------------------------------------


def read_npy(context: Context, name: str, content: bytes, table: Table) -> ndarray:
    """One ``.npy`` file; arrays of objects through the interpreter."""
    shape, fortran, type_, begin = _header(context, name, content)
    count = counted(context, shape)
    if type_ == np.dtype(object):
        file = BytesIO(content)
        file.seek(begin)
        array = run(file, context, table)
        if not isinstance(array, ndarray) or array.shape != shape:
            raise context.error(f"{shown(name)}: the pickle holds no array of shape {shape}")
        return array
    if count * type_.itemsize != len(content) - begin:
        raise context.error(
            f"{shown(name)}: shape {shape} of {type_} needs {count * type_.itemsize} bytes, there "
            f"are {len(content) - begin}"
        )
    if not count:
        return np.empty(shape, type_)
    array = np.frombuffer(content, type_, count, begin)
    return array.reshape(shape, order="F" if fortran else "C")


def _header(context: Context, name: str, content: bytes) -> tuple[tuple, bool, np.dtype, int]:
    """Shape, order, type, and where the data begin; NumPy's own parser would warn, and guess."""
    version = content[6:8]
    if content[:6] != b"\x93NUMPY" or version not in (b"\x01\x00", b"\x02\x00"):
        raise context.error(f"{shown(name)} is no NPY file of format 1.0 or 2.0")
    begin = 10 if version == b"\x01\x00" else 12
    end = begin + int.from_bytes(content[8:begin], "little")
    if end > min(len(content), _MAX_HEADER):
        raise context.error(f"{shown(name)} is no readable NPY file: its header is too long")
    try:
        header = ast.literal_eval(content[begin:end].decode("latin1").strip())
        shape, fortran, code = (header[key] for key in ("shape", "fortran_order", "descr"))
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as err:
        raise context.error(f"{shown(name)} is no readable NPY file: {shown(str(err))}") from err
    return shape, bool(fortran), dtype(context, code), end


def read_npz(context: Context, buffer: Buffer, table: Table) -> Mapping[str, ndarray]:
    """All arrays of an ``.npz`` archive, by name."""
    arrays = {}
    for name, entry in zip_directory(context, buffer).items():
        raw = entry.content
        if entry.compressed:
            if entry.size > max(_SIMPLE_SIZE, MAX_INFLATION * len(buffer)):
                raise context.error(
                    f"{shown(name)} would have {entry.size} bytes in a file of {len(buffer)}"
                )
            raw = _inflated(context, name, raw, entry.size)
        arrays[name.removesuffix(".npy")] = read_npy(context, name, bytes(raw), table)
    return arrays


def _inflated(context: Context, name: str, raw, size: int) -> bytes:
    machine = zlib.decompressobj(-15)
    try:
        content = machine.decompress(raw, size + 1)
    except zlib.error as err:
        raise context.error(f"{shown(name)} is damaged: {err}") from err
    if len(content) != size or not machine.eof:
        raise context.error(f"{shown(name)} has not the {size} bytes that the archive says")
    return content
