"""Folders of ABACUS runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ase_nextham.data import LCAOData
from ase_nextham.h0.csr_text import looks_like_text
from ase_nextham.h0.filenames import is_matrix_file
from ase_nextham.h0.folder import read_folder, write_folder
from ase_nextham.h0.run import find_runs

SUFFIXES = ()
HOLDS = ("overlap", "h0", "hamiltonian", "position")


def recognises(path: Path) -> bool:
    """Whether a path is a run folder, a folder of run folders, or a matrix file."""
    if path.is_dir():
        try:
            return bool(find_runs(path))
        except ValueError:
            # a damaged run is to be read as one, so that its damage is what the error tells
            return (path / "INPUT").is_file() and (path / "STRU").is_file()
    if is_matrix_file(path):
        return True
    with path.open("rb") as file:
        return looks_like_text(file.read(4096))


def read(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    step: int | None = None,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
) -> LCAOData:
    """See :func:`ase_nextham.h0.folder.read_folder`."""
    return read_folder(path, step=step, pseudo_dir=pseudo_dir, orbital_dir=orbital_dir)


def write(
    path: str | os.PathLike,
    data: LCAOData,
    *,
    layout: str = "legacy text",
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
) -> None:
    """See :func:`ase_nextham.h0.folder.write_folder`."""
    write_folder(path, data, layout=layout, pseudo_dir=pseudo_dir, orbital_dir=orbital_dir)
