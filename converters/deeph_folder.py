"""Folders of DeepH as a whole: which file holds what, alike in its two layouts.

The layouts differ in how they keep the structure, in the names of files and keys, and in how blocks
stand in a file. :class:`Layout` is what this module has to know of that.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import write_atomically
from ase_nextham.matrix import AtomPairs

from .deeph_blocks import Blocks, block_entries
from .deeph_data import Content, Folder, lcao_data, sources
from .deeph_info import info_flag, info_number
from .sidecar import read_sidecar, sidecar_path, write_sidecar

SHIFT = "energy_zero_shift_eV"
"""Key in info.json, of our own: mu where the files hold H - mu S."""


@dataclass(frozen=True)
class Layout:
    """What is particular to one of the two layouts.

    Parameters
    ----------
    convention
        Of the orbitals.
    files
        Names of the files with operators, by ``"overlap"``, ``"hamiltonian"``,
        ``"hamiltonian_pred"``, ``"zeroth_hamiltonian"``, ``"position_matrix"``.
    density_matrix
        Name of the file with the density matrix.
    tied
        Names of the files that fix the structure.
    keys
        In info.json, by ``"spinful"``, ``"orthogonal"``, ``"fermi_level"`` and, where there is
        one, ``"nelectrons"``.
    read_blocks
        Function of a file and the rows of the blocks of each atom; keywords ``spinful``, whether
        numbers may be complex, and ``components``, 3 for the position operator.
    write_blocks
        Function of a file, R1, R2, R3, i, j of each block (n, 5), their shapes (n, 2), and the
        elements of all of them, in pieces of whole blocks.
    """

    convention: str
    files: Mapping[str, str]
    density_matrix: str
    tied: Sequence[str]
    keys: Mapping[str, str]
    read_blocks: Callable[..., Blocks]
    write_blocks: Callable[[Path, ndarray, ndarray, Iterator[ndarray]], None]


def has_operators(path: Path, layout: Layout) -> bool:
    """Whether a folder has S or a Hamiltonian."""
    names = ("overlap", "hamiltonian", "hamiltonian_pred")
    return any((path / layout.files[name]).is_file() for name in names)


def read_folder(
    path: Path,
    layout: Layout,
    info: Mapping,
    atoms: Atoms,
    species: Sequence[str],
    basis: Basis,
    hamiltonian: str | None,
) -> LCAOData:
    """The data that a folder holds, whose structure has been read.

    Parameters
    ----------
    info
        Of info.json.
    species, basis
        Of each atom, as the files tell them apart, and their orbitals.
    hamiltonian
        As of :func:`.deeph_data.sources`.

    Raises
    ------
    ValueError
        If a file is missing, damaged, or does not fit the others.

    Notes
    -----
    Warns of a density matrix, which is not read.
    """
    info_path, keys = path / "info.json", layout.keys
    names = [name for name, file in layout.files.items() if (path / file).is_file()]
    if "overlap" not in names and not info_flag(info_path, info, keys["orthogonal"]):
        raise ValueError(
            f"{path}: there is no {layout.files['overlap']}, and the basis is not orthogonal"
        )
    if (path / layout.density_matrix).is_file():
        warnings.warn(f"{path}: {layout.density_matrix} is not read", stacklevel=3)
    note = read_sidecar(sidecar_path(path), [path / name for name in layout.tied])
    files = sources(path, names, hamiltonian, note)
    spinful = info_flag(info_path, info, keys["spinful"])
    norbitals = np.array([basis.norbitals(name) for name in species], np.int64)
    blocks = {}
    for name in names:
        file = path / layout.files[name]
        if name in files.values():
            rows = norbitals * (2 if spinful else 1)
            blocks[name] = layout.read_blocks(file, rows, spinful=spinful)
        elif name == "overlap":
            blocks[name] = layout.read_blocks(file, norbitals)
        elif name == "position_matrix":
            blocks[name] = layout.read_blocks(file, norbitals, components=3)
    folder = Folder(
        path=path,
        atoms=atoms,
        species=tuple(species),
        basis=basis,
        convention=layout.convention,
        spinful=spinful,
        fermi_level=info_number(info_path, info, keys["fermi_level"]),
        nelectrons=_nelectrons(info_path, info, layout),
        shift=info_number(info_path, info, SHIFT) or 0.0,
        blocks=blocks,
    )
    return lcao_data(folder, files, note)


def _nelectrons(path: Path, info: Mapping, layout: Layout) -> float | None:
    key = layout.keys.get("nelectrons")
    return None if key is None else info_number(path, info, key)


def write_info(folder: Path, layout: Layout, written: Content, others: Mapping) -> None:
    """Write info.json: ``others``, and what both layouts have in it."""
    keys = layout.keys
    info = {
        **others,
        keys["orthogonal"]: False,
        keys["spinful"]: written.spinful,
        keys["fermi_level"]: written.fermi_level,
    }
    if written.shift:
        info[SHIFT] = written.shift
    write_atomically(folder / "info.json", json.dumps(info) + "\n")


def entries_in_memory(
    layout: Layout, data: LCAOData, written: Content
) -> Callable[[str], Iterator[ndarray]]:
    """The elements of each operator in the order of ``data.pairs``, for :func:`write_operators`."""

    def entries(name: str) -> Iterator[ndarray]:
        if name == "position_matrix":
            yield np.stack(
                [block_entries(r, layout.convention, spinful=False) for r in data.position]
            )
        elif name == "overlap":
            yield block_entries(written.overlap, layout.convention, spinful=False)
        else:
            matrix = written.hamiltonians[name]
            yield block_entries(matrix, layout.convention, spinful=written.spinful)

    return entries


def write_operators(
    folder: Path,
    layout: Layout,
    data: LCAOData,
    written: Content,
    order: Sequence[int],
    pairs: AtomPairs,
    entries: Callable[[str], Iterator[ndarray]],
) -> None:
    """Write the operators, and the note on what DeepH has no place for.

    Parameters
    ----------
    folder
        That has info.json and the structure already.
    data, written
        Matrices in them may be without pairs.
    order
        Atom a of the files is ``order[a]`` of the data.
    pairs
        Of all operators.
    entries
        Function of a name of ``layout.files``: the elements of all blocks in the order of
        ``pairs``, in pieces of whole blocks; with a leading axis of 3 for ``"position_matrix"``.
    """
    place = np.argsort(order)
    rows = np.column_stack([pairs.R, place[pairs.i], place[pairs.j]])
    n = data.overlap.norbitals
    shapes = np.column_stack([n[pairs.i], n[pairs.j]])

    factor = {"overlap": 1, **dict.fromkeys(written.hamiltonians, 2 if written.spinful else 1)}
    if data.position is not None and "position_matrix" in layout.files:
        factor["position_matrix"] = 1
    for name in factor:
        path = folder / layout.files[name]
        layout.write_blocks(path, rows, shapes * factor[name], entries(name))
    tied = [folder / name for name in layout.tied]
    write_sidecar(sidecar_path(folder), data, tied, order=order, extra=written.extra)


__all__ = [
    "Layout",
    "entries_in_memory",
    "has_operators",
    "read_folder",
    "write_info",
    "write_operators",
]
