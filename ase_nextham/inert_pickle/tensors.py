"""Tensors of PyTorch, as NumPy arrays, and the files of ``torch.save``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy import ndarray
from numpy.lib.stride_tricks import as_strided

from ase_nextham.inert_pickle.arrays import counted
from ase_nextham.inert_pickle.buffer import Buffer, zip_directory
from ase_nextham.inert_pickle.interpreter import (
    MAX_DEPTH,
    Context,
    Global,
    Table,
    run,
    shown,
)

ELEMENT_TYPES: Mapping[str, str] = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "u2",  # made float32 when a tensor is built of it
    "complex128": "c16",
    "complex64": "c8",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "bool": "u1",
}
"""Element types of tensors, and how their bytes are read."""

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers that tensors are views of.

    Parameters
    ----------
    numbers
        One axis; None on the first pass through a legacy file, where they follow the pickle.
    type_
        A key of :data:`ELEMENT_TYPES`.
    """

    numbers: ndarray | None
    type_: str


def is_value(module: str, name: str) -> bool:
    """Whether a global of torch may stand in a pickle without being called."""
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
        return True
    if module == "torch" and name in (*ELEMENT_TYPES, "Tensor", "strided"):
        return True
    return (module, name) in (
        ("torch.nn.parameter", "Parameter"),
        ("torch._tensor", "Tensor"),
        ("numpy", "ndarray"),
    )


# --- calls -------------------------------------------------------------------------------------


def tensor(
    context: Context,
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> ndarray | None:
    """``torch._utils._rebuild_tensor`` and ``_rebuild_tensor_v2``: a view of a storage."""
    if not isinstance(storage, Storage):
        raise context.error("damaged pickle: a tensor without storage")
    count = counted(context, size)
    counted(context, stride)
    if len(size) != len(stride) or type(offset) is not int or offset < 0:
        raise context.error("damaged pickle: a tensor whose size, strides and offset do not fit")
    if storage.numbers is None:
        return None
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and last >= len(storage.numbers):
        raise context.error(
            f"a tensor of size {tuple(size)} reaches element {last} of a storage of "
            f"{len(storage.numbers)}"
        )
    numbers = storage.numbers[offset:] if count else storage.numbers[:0]
    if count > len(storage.numbers):
        # an expanded tensor: small in the file, as large as it says for whoever works with it
        context.spend(count * numbers.itemsize, f"a tensor of size {tuple(size)}")
    strides = [step * numbers.itemsize for step in stride]
    view = as_strided(numbers, tuple(size), strides, writeable=False)
    if not count:
        view = np.empty(tuple(size), numbers.dtype)
    if storage.type_ == "bool":
        context.spend(count, "a tensor")
        view = view != 0
    elif storage.type_ == "bfloat16":
        context.spend(4 * count, "a tensor")
        view = (view.astype("u4") << 16).view("f4")
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        context.spend(view.nbytes, "a tensor")
        view = view.conj() if metadata.get("conj") else view
        view = -view if metadata.get("neg") else view
    return view


def tensor_of_type(
    context: Context,
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    type_: object,
    metadata: object = None,
) -> ndarray | None:
    """``torch._utils._rebuild_tensor_v3``: the element type is said, the storage has none."""
    if not isinstance(type_, Global) or type_.name not in ELEMENT_TYPES:
        raise context.error(f"tensors of type {shown(str(type_)[:80])} are not read")
    if isinstance(storage, Storage):
        numbers = storage.numbers
        if numbers is not None:
            item = np.dtype(ELEMENT_TYPES[type_.name]).newbyteorder(numbers.dtype.byteorder)
            raw = numbers.view("u1")
            numbers = raw[: len(raw) // item.itemsize * item.itemsize].view(item)
        storage = Storage(numbers, type_.name)
    return tensor(context, storage, offset, size, stride, metadata=metadata)


def parameter(context: Context, data: object, *_: object) -> object:
    """``torch._utils._rebuild_parameter``: the tensor in it."""
    return data


def subclass(context: Context, function: object, cls: object, args: object, state: object):
    """``torch._tensor._rebuild_from_type_v2``: a tensor of a subclass, or with attributes."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise context.error("damaged pickle: a tensor of an unknown class")
    own = CALLS.get((function.module, function.name))
    if own not in (tensor, tensor_of_type, parameter):
        raise context.error(f"tensors rebuilt by {function} are not read")
    return own(context, *args)


def size(context: Context, lengths: object = ()) -> tuple:
    """``torch.Size``: a tuple."""
    counted(context, lengths)
    return tuple(lengths)


def device(context: Context, kind: object, index: object = None) -> str:
    """``torch.device``: its name."""
    return shown(kind) if index is None else f"{shown(kind)}:{int(index)}"


def nested(table: Callable[[], Table]) -> Callable[[Context, object], object]:
    """``torch.storage._load_from_bytes``: a storage in a plain pickle is a torch file in bytes."""

    def load_from_bytes(context: Context, content: object) -> object:
        if not isinstance(content, bytes):
            raise context.error("damaged pickle: a tensor whose content is not bytes")
        if context.depth >= MAX_DEPTH:
            raise context.error(f"torch files within each other, {MAX_DEPTH} deep: refused")
        # its header is parsed anew wherever the same bytes are used again
        context.spend(min(len(content), 4096), "a tensor")
        context.depth += 1
        try:
            return load(context, content, table())
        finally:
            context.depth -= 1

    return load_from_bytes


CALLS: Mapping[tuple[str, str], Callable] = {
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_tensor_v3"): tensor_of_type,
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): subclass,
    ("torch", "Size"): size,
    ("torch", "device"): device,
}


# --- files -------------------------------------------------------------------------------------


def load(context: Context, buffer: Buffer, table: Table) -> object:
    """What ``torch.save`` wrote, in its zip format (since 1.6) or the stream before it."""
    if buffer[:4] == b"PK\x03\x04":
        return _load_zip(context, buffer, table)
    if buffer[: len(_LEGACY_MAGIC)] == _LEGACY_MAGIC:
        return _load_stream(context, buffer, table)
    if buffer[257:262] == b"ustar":
        raise context.error("a file of torch before 0.1.10; load it there and save it again")
    raise context.error("not a file of torch.save: no zip archive, and without its mark")


def _load_zip(context: Context, buffer: Buffer, table: Table) -> object:
    entries = zip_directory(context, buffer)
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise context.error("a zip archive without one data.pkl: not a file of torch.save")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise context.error("a TorchScript program, which holds code; export its state dict")
    order = entries.get(f"{root}byteorder")
    big = order is not None and bytes(order.content) == b"big"

    def storage(identifier: object) -> Storage:
        type_, key, count = _storage_identifier(context, identifier)
        entry = entries.get(f"{root}data/{key}")
        if entry is None or entry.compressed:
            raise context.error(f"it refers to data {shown(key)}, which the archive does not hold")
        return _storage(context, entry.content, type_, count, big)

    pickle = entries[f"{root}data.pkl"]
    if pickle.compressed:
        raise context.error("data.pkl is compressed, which torch.save does not do")
    return run(BytesIO(pickle.content), context, table, storage)


def _storage_identifier(context: Context, identifier: object) -> tuple[str, str, int]:
    """Element type, key and number of elements that a persistent id asks for."""
    fits = isinstance(identifier, tuple) and len(identifier) in (5, 6)
    if not fits or identifier[0] != "storage":
        raise context.error("damaged pickle: a persistent id that is not torch's")
    _, cls, key, _, count = identifier[:5]
    if len(identifier) == 6 and identifier[5] is not None:
        raise context.error("a storage that is a view of another (torch before 0.4) is not read")
    if not isinstance(cls, Global) or cls.name not in _STORAGES:
        raise context.error(f"tensors in {shown(str(cls)[:80])} are not read")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise context.error("damaged pickle: a persistent id without key or size")
    return _STORAGES[cls.name], key, count


def _storage(context: Context, content, type_: str, count: int, big: bool) -> Storage:
    item = np.dtype(ELEMENT_TYPES[type_])
    if count * item.itemsize > len(content):
        raise context.error(
            f"a storage of {count} {type_} needs {count * item.itemsize} bytes, but there are "
            f"{len(content)}"
        )
    item = item.newbyteorder(">" if big else "<")
    return Storage(np.frombuffer(content[: count * item.itemsize], item), type_)


def _load_stream(context: Context, buffer: Buffer, table: Table) -> object:
    """The format before torch 1.6: five pickles, then the storages, which the fifth names.

    The object comes before the numbers of its tensors, so it is read twice: first for the types
    of the storages, which tell where each of them ends.
    """
    file = BytesIO(buffer) if isinstance(buffer, bytes) else buffer
    file.seek(0)
    run(file, context, table)
    if run(file, context, table) != _LEGACY_PROTOCOL:
        raise context.error("a protocol of torch.save that is not known")
    system = run(file, context, table)
    big = isinstance(system, dict) and system.get("little_endian") is False
    begin = file.tell()
    asked: dict[str, tuple[str, int]] = {}

    def ask(identifier: object) -> object:
        if isinstance(identifier, tuple) and identifier[:1] == ("module",) and len(identifier) > 1:
            return identifier[1]
        type_, key, count = _storage_identifier(context, identifier)
        if asked.setdefault(key, (type_, count)) != (type_, count):
            raise context.error(f"damaged pickle: storage {shown(key)} has two types or sizes")
        return Storage(None, type_)

    run(file, context, table, ask)
    keys = run(file, context, table)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise context.error("damaged file: the list of storages is none")
    stored, at = {}, file.tell()
    for key in keys:
        if key not in asked:
            raise context.error(f"damaged file: storage {shown(key)} is not used")
        type_, count = asked[key]
        stated = buffer[at : at + 8]
        if len(stated) < 8 or int.from_bytes(stated, "big" if big else "little") != count:
            raise context.error(f"damaged file: storage {shown(key)} has not its {count} elements")
        content = memoryview(buffer)[at + 8 :]
        stored[key] = _storage(context, content, type_, count, big)
        at += 8 + stored[key].numbers.nbytes
    file.seek(begin)

    def fetch(identifier: object) -> object:
        if identifier[0] == "module":
            return identifier[1]
        _, key, _ = _storage_identifier(context, identifier)
        if key not in stored:
            raise context.error(f"it refers to data {shown(key)}, which the file does not hold")
        return stored[key]

    return run(file, context, table, fetch)
