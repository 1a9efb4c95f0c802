"""The table of what a pickle may ask for: the one place that says what "calling" means here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy import ndarray

from ase_nextham.inert_pickle import arrays, tensors
from ase_nextham.inert_pickle.interpreter import Context, Global, Record, Table, hashable


def _dict(context: Context, pairs: object = ()) -> dict:
    """``collections.OrderedDict``: a dict; pickles of protocol 0 and 1 give its pairs at once."""
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise context.error("damaged pickle: an OrderedDict that is not made of pairs")
    return {hashable(context, key): value for key, value in pairs}


def _set(kind: type) -> Callable:
    def make(context: Context, members: object = ()) -> object:
        if not isinstance(members, (list, tuple, set, frozenset)):
            raise context.error(f"damaged pickle: a {kind.__name__} of something else than a list")
        return kind([hashable(context, member) for member in members])

    return make


def _bytes(kind: type) -> Callable:
    def make(context: Context, content: object = b"", encoding: object = "latin1") -> object:
        if isinstance(content, str) and encoding == "latin1":
            content = _encode(context, content, encoding)
        if not isinstance(content, bytes):
            raise context.error(f"damaged pickle: a {kind.__name__} of something else than bytes")
        context.spend(len(content), "bytes")
        return kind(content)

    return make


def _encode(context: Context, text: object, encoding: object = "utf-8") -> bytes:
    """``_codecs.encode``, with which protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "utf-8"):
        raise context.error("damaged pickle: it encodes something else than text in latin1")
    context.spend(len(text), "bytes")
    return text.encode(encoding)


def _complex(context: Context, real: object, imaginary: object) -> complex:
    if not all(isinstance(part, (int, float)) for part in (real, imaginary)):
        raise context.error("damaged pickle: a complex number that is not made of two numbers")
    return complex(real, imaginary)


def _reconstructed(context: Context, cls: object, base: object, state: object) -> Record:
    """``copyreg._reconstructor``: an object of a class, in protocols 0 and 1."""
    if not isinstance(cls, Global) or not context.allows_record(cls.module, cls.name):
        raise context.error(f"this pickle asks for an object of {cls}, which is refused")
    return Record(cls.module, cls.name, () if state is None else (state,))


def _fill(context: Context, target: object, state: object) -> None:
    """``BUILD`` of what the table made; attributes of dicts and tensors are left out."""
    if isinstance(target, np.dtype):
        arrays.fill_dtype(context, target, state)
    elif isinstance(target, ndarray):
        arrays.fill_array(context, target, state)
    elif not isinstance(target, dict):
        # state dicts carry a version in the attributes of their OrderedDict: nothing is lost
        raise context.error(f"damaged pickle: it sets the state of a {type(target).__name__}")


def _table() -> Table:
    return TABLE


_CALLS: Mapping[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _dict,
    ("builtins", "set"): _set(set),
    ("builtins", "frozenset"): _set(frozenset),
    ("builtins", "bytes"): _bytes(bytes),
    ("builtins", "bytearray"): _bytes(bytearray),
    ("builtins", "complex"): _complex,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("numpy", "dtype"): arrays.dtype,
    ("numpy.core.multiarray", "_reconstruct"): arrays.empty_array,
    ("numpy.core.multiarray", "scalar"): arrays.scalar,
    ("numpy.core.numeric", "_frombuffer"): arrays.from_buffer,
    ("torch.storage", "_load_from_bytes"): tensors.nested(_table),
    **tensors.CALLS,
}

TABLE = Table(
    _CALLS,
    lambda module, name: tensors.is_value(module, name) or (module, name) == ("builtins", "object"),
    _fill,
)
"""What pickles of numbers, containers, arrays and tensors need, and nothing else."""
