"""The native HDF5 file."""

from __future__ import annotations

import os
from pathlib import Path

from ase_nextham import hdf5
from ase_nextham.data import LCAOData

SUFFIXES = (".h5", ".hdf5")
HOLDS = ("overlap", "h0", "hamiltonian", "position")

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def recognises(path: Path) -> bool:
    """Whether a path is an HDF5 file; that it is one of ours is for :func:`read` to say."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def read(path: str | os.PathLike) -> LCAOData:
    """See :func:`ase_nextham.hdf5.read`."""
    return hdf5.read(path)


def write(path: str | os.PathLike, data: LCAOData) -> None:
    """See :func:`ase_nextham.hdf5.write`."""
    hdf5.write(path, data)
