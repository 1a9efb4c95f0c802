"""HDF5 files of DeepH, which may come from anywhere: what is read is in the file and fits it.

Links and datasets that lead to other files are not followed, and no array is allocated that the
bytes in the file cannot fill.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5l

_COMPRESSION = 1100
"""No filter of HDF5 makes numbers smaller by more than this (deflate: 1032)."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A file to read from; what HDF5 finds wrong inside is told as damage.

    Raises
    ------
    ValueError
        If it is not an HDF5 file, or damaged.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as err:
        raise ValueError(f"{path}: not an HDF5 file, or cut short ({err})") from err
    with file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError, OverflowError, MemoryError) as err:
            raise ValueError(f"{path}: the file is damaged: {err}") from err


def read_dataset(file: h5py.File, path: Path, name: str, kinds: str, ndim: int) -> np.ndarray:
    """A whole dataset.

    Parameters
    ----------
    kinds
        Which numbers it may have: letters of ``dtype.kind``.

    Raises
    ------
    ValueError
        If it is not there, is something else, is not in this file, or is larger than the file.
    """
    key = name.encode()
    if not file.id.links.exists(key):
        raise ValueError(f"{path}: there is no dataset {name!r}")
    dataset = file[name] if is_hard(file, key) else None
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}: {name!r} is not a dataset of this file")
    if dataset.dtype.kind not in kinds or dataset.ndim != ndim:
        raise ValueError(
            f"{path}: {name!r} is {dataset.dtype} of shape {dataset.shape}, expected "
            f"{ndim} axes of {' or '.join(_WORDS[kind] for kind in kinds)}"
        )
    check_storage(dataset.id, path, name)
    return dataset[()]


_WORDS = {"i": "integers", "u": "unsigned integers", "f": "real", "c": "complex numbers"}


def is_hard(file: h5py.File, key: bytes) -> bool:
    """Whether a link leads to something in the same file."""
    return file.id.links.get_info(key).type == h5l.TYPE_HARD


def check_storage(dataset: h5d.DatasetID, path: Path, name: str) -> None:
    """Refuse datasets whose numbers are elsewhere, or are not all there.

    Raises
    ------
    ValueError
        Saying so.
    """
    layout = dataset.get_create_plist()
    if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count():
        raise ValueError(f"{path}: the numbers of {name!r} are in another file")
    size = dataset.get_space().get_simple_extent_npoints() * dataset.get_type().get_size()
    stored = dataset.get_storage_size()
    filters = layout.get_nfilters() if layout.get_layout() == h5d.CHUNKED else 0
    if size > stored * (_COMPRESSION if filters else 1):
        raise ValueError(
            f"{path}: {name!r} says that it has {size} bytes, but the file holds {stored} of them"
        )


__all__ = ["check_storage", "is_hard", "opened", "read_dataset"]
