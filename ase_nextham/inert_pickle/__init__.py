"""Pickles, files of ``torch.save`` and NumPy's object arrays, read without running what is in them.

``pickle.load`` and ``torch.load`` execute what a file says. These readers do not: they interpret
the opcodes with a table of our own functions, need neither PyTorch nor the classes that were
pickled, and refuse what the table does not have, by name. Sizes are compared to the file before
anything is allocated.

- Tensors come out as NumPy arrays (bfloat16 as float32), read-only views of the file where
  possible: a file is mapped, and only what is used of it is read. Shared storages stay shared;
  gradients, hooks and devices are left out.
- ``OrderedDict`` comes out as dict, ``torch.Size`` as tuple, ``torch.device`` as its name, dtypes
  and other names as :class:`Global`.
- Objects of other classes are refused, or, where ``records`` allows them, come out as
  :class:`Record`: class, arguments and state as the file tells them, and no code.

What a file may ask for is 64 MiB and 32 times its own size, whatever it says; honest files need
little more than what is used of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO

from numpy import ndarray

from ase_nextham.inert_pickle import arrays, tensors
from ase_nextham.inert_pickle.buffer import mapped, zip_directory
from ase_nextham.inert_pickle.calls import TABLE
from ase_nextham.inert_pickle.interpreter import Context, Global, PickleError, Record, run

__all__ = [
    "Global",
    "PickleError",
    "Record",
    "entry_names",
    "read_npy",
    "read_npz",
    "read_pickle",
    "read_torch",
]


def read_torch(path: str | os.PathLike, *, records: Sequence[str] | str = ()) -> object:
    """What ``torch.save`` wrote: a state dict, containers of tensors, or a whole module.

    Parameters
    ----------
    path
        A file in torch's zip format, or in the stream format before torch 1.6.
    records
        Beginnings of module names (``"torch_geometric."``) whose classes may come out as
        :class:`Record`, or ``"any"``, for whole modules.

    Raises
    ------
    PickleError
        If the file is damaged, is of another kind, or asks for what is refused; a ValueError
        that names the file.
    OSError
        If it cannot be read.
    """
    buffer = mapped(path)
    return tensors.load(Context(str(path), len(buffer), records), buffer, TABLE)


def read_pickle(source: bytes | str | os.PathLike, *, records: Sequence[str] | str = ()) -> object:
    """The object in a plain pickle of protocol 0 to 5.

    Parameters
    ----------
    source
        The pickle itself, or the path of a file that holds one.
    records
        As of :func:`read_torch`.

    Raises
    ------
    PickleError, OSError
        As of :func:`read_torch`.
    """
    buffer = source if isinstance(source, bytes) else mapped(source)
    where = "pickle" if isinstance(source, bytes) else str(source)
    file = BytesIO(buffer) if isinstance(buffer, bytes) else buffer
    return run(file, Context(where, len(buffer), records), TABLE)


def read_npy(path: str | os.PathLike, *, records: Sequence[str] | str = ()) -> ndarray:
    """The array in a ``.npy`` file, of objects too.

    Parameters
    ----------
    records
        As of :func:`read_torch`.

    Raises
    ------
    PickleError, OSError
        As of :func:`read_torch`.
    """
    buffer = mapped(path)
    return arrays.read_npy(Context(str(path), len(buffer), records), "it", buffer[:], TABLE)


def read_npz(
    path: str | os.PathLike, *, records: Sequence[str] | str = ()
) -> Mapping[str, ndarray]:
    """The arrays in a ``.npz`` file by name, of objects too.

    Parameters
    ----------
    records
        As of :func:`read_torch`.

    Raises
    ------
    PickleError, OSError
        As of :func:`read_torch`.
    """
    buffer = mapped(path)
    return arrays.read_npz(Context(str(path), len(buffer), records), buffer, TABLE)


def entry_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Names of the entries of a zip archive: of ``.npz`` and files of ``torch.save``.

    Raises
    ------
    PickleError, OSError
        As of :func:`read_torch`.
    """
    buffer = mapped(path)
    return tuple(zip_directory(Context(str(path), len(buffer)), buffer))
