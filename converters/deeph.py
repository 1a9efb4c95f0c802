"""Folders of DeepH: POSCAR, info.json and an HDF5 file for each operator.

The layout of DeepH-pack 1.x and DeepH-dock. In each HDF5 file ``atom_pairs`` (n, 5) has R1, R2, R3,
i, j of each block, ``chunk_shapes`` (n, 2) and ``chunk_boundaries`` (n + 1,) its shape and place in
``entries``. Energies are in eV, lengths in Angstrom, orbitals go from m = -l to l with standard
signs, and H(k) = sum_R exp(2 pi i k.R) H(R), as here. All files of a folder have the same pairs,
so S has zeros where only H is not zero.

The older layout of DeepH is another format: :mod:`.deeph_legacy`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from numpy import ndarray

from ase_nextham.basis import MAX_L, Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import replacing_folder
from ase_nextham.matrix import AtomPairs

from .deeph_blocks import Blocks, check_pairs
from .deeph_data import Content, content
from .deeph_folder import (
    Layout,
    entries_in_memory,
    has_operators,
    read_folder,
    write_info,
    write_operators,
)
from .deeph_hdf5 import opened, read_dataset
from .deeph_info import info_number, read_info
from .deeph_poscar import read_poscar, write_poscar

SUFFIXES = ()
HOLDS = ("overlap", "h0", "hamiltonian", "position")


def recognises(path: Path) -> bool:
    """Whether a path is a folder with POSCAR, info.json and an operator."""
    if not all((path / name).is_file() for name in LAYOUT.tied):
        return False
    return has_operators(path, LAYOUT)


def read(path: str | os.PathLike, *, hamiltonian: str | None = None) -> LCAOData:
    """Read a folder.

    Parameters
    ----------
    hamiltonian
        ``"dft"``: that of hamiltonian.h5; ``"predicted"``: that of hamiltonian_pred.h5. By
        default the latter is read where there is no other.

    Returns
    -------
    LCAOData
        H(0) is that of zeroth_hamiltonian.h5. A Hamiltonian with spin that is real and has
        nothing between up and down is collinear. Where info.json tells that the energy zero was
        moved on writing, it is moved back, and the Fermi level with it, also for a predicted
        Hamiltonian.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a file is missing, damaged, or does not fit the others.

    Notes
    -----
    Warns of density_matrix.h5, which is not read.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    info = read_info(path / "info.json")
    atoms = read_poscar(path / "POSCAR")
    species = atoms.get_chemical_symbols()
    basis = _basis(path / "info.json", info, species)
    return read_folder(path, LAYOUT, info, atoms, species, basis, hamiltonian)


def write(path: str | os.PathLike, data: LCAOData, *, energy_zero: str = "kept") -> None:
    """Write a folder, which must not be there yet or be empty.

    H goes to hamiltonian.h5, or H(0) where there is no H; where there are both, H(0) goes to
    zeroth_hamiltonian.h5, of which DeepH takes no notice. Atoms are grouped by element; their
    order, the names of species and whatever else DeepH has no place for is noted in
    nextham.json, so that :func:`read` gives back what was written.

    Parameters
    ----------
    energy_zero
        ``"kept"``, or ``"standardized"``: H - mu S is written, with mu = <H, S> / <S, S>, which
        DeepH trains on; H(0) and the Fermi level are moved by the same mu, which info.json tells.

    Raises
    ------
    FileExistsError
        If there is something at ``path``.
    ValueError
        For species of one element with different orbitals, which DeepH does not have, and for
        complex matrices without spin.
    """
    path = Path(path)
    written = content(path, data, energy_zero)
    write_files(path, data, written, data.pairs, entries_in_memory(LAYOUT, data, written))


def write_files(
    path: Path,
    data: LCAOData,
    written: Content,
    pairs: AtomPairs,
    entries: Callable[[str], Iterator[ndarray]],
) -> None:
    """Write a folder whose matrices need not be in memory.

    Parameters
    ----------
    data, written
        What is written, and what :func:`.deeph_data.content` makes of it.
    pairs, entries
        As of :func:`.deeph_folder.write_operators`.

    Raises
    ------
    FileExistsError, ValueError
        As :func:`write`.
    """
    elements = data.atoms.get_chemical_symbols()
    shells = _shells_of_elements(path, data, elements)
    order = [a for element in shells for a, other in enumerate(elements) if other == element]
    info = {
        "atoms_quantity": len(elements),
        "orbits_quantity": int(data.overlap.norbitals.sum()),
        "elements_orbital_map": shells,
    }
    if data.nelectrons is not None:
        info["occupation"] = data.nelectrons
    with replacing_folder(path) as folder:
        write_poscar(folder / "POSCAR", data.atoms[order])
        write_info(folder, LAYOUT, written, info)
        write_operators(folder, LAYOUT, data, written, order, pairs, entries)


def _shells_of_elements(path: Path, data: LCAOData, elements: Sequence[str]) -> dict:
    """The shells of each element in order of appearance, if it has one set of orbitals."""
    basis, first = data.basis, {}
    for element, name in zip(elements, data.symbols, strict=True):
        other = first.setdefault(element, name)
        same_file = basis.fingerprint.get(name) == basis.fingerprint.get(other)
        if basis.shells[name] != basis.shells[other] or not same_file:
            raise ValueError(
                f"{path}: DeepH has one set of orbitals for an element, but {other} "
                f"({basis.label(other)}) and {name} ({basis.label(name)}) are both {element} and "
                "have different ones"
            )
    return {element: list(basis.shells[name]) for element, name in first.items()}


def _basis(path: Path, info: Mapping, species: Sequence[str]) -> Basis:
    """The orbitals of the elements, from info.json."""
    shells = info.get("elements_orbital_map")
    if not isinstance(shells, dict):
        raise ValueError(f"{path}: there is no 'elements_orbital_map'")
    for name in dict.fromkeys(species):
        ls = shells.get(name)
        if not isinstance(ls, list) or not ls or not all(_is_l(l) for l in ls):
            raise ValueError(
                f"{path}: the orbitals of {name} are {ls!r}, expected a list of l = 0 ... {MAX_L}"
            )
    basis = Basis({name: tuple(shells[name]) for name in dict.fromkeys(species)})
    for key, found in (
        ("atoms_quantity", len(species)),
        ("orbits_quantity", sum(basis.norbitals(name) for name in species)),
    ):
        if info_number(path, info, key) not in (None, found):
            raise ValueError(
                f"{path}: {key!r} is {info[key]}, but the atoms of POSCAR give {found}"
            )
    return basis


def _is_l(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_L


def _read_blocks(
    path: Path, norbitals: ndarray, *, spinful: bool = False, components: int = 1
) -> Blocks:
    """The blocks of a file, whose shapes and places are as they must be; see :class:`Layout`."""
    with opened(path) as file:
        pairs = read_dataset(file, path, "atom_pairs", "iu", 2)
        shapes = read_dataset(file, path, "chunk_shapes", "iu", 2)
        boundaries = read_dataset(file, path, "chunk_boundaries", "iu", 1)
        entries = read_dataset(
            file, path, "entries", "fc" if spinful else "f", 1 + (components > 1)
        )
    n = len(pairs)
    if pairs.shape != (n, 5) or shapes.shape != (n, 2) or boundaries.shape != (n + 1,):
        raise ValueError(
            f"{path}: atom_pairs {pairs.shape}, chunk_shapes {shapes.shape} and chunk_boundaries "
            f"{boundaries.shape} do not belong together; expected (n, 5), (n, 2) and (n + 1,)"
        )
    blocks = Blocks(path, pairs[:, :3], pairs[:, 3], pairs[:, 4], _as_double(entries))
    check_pairs(blocks, len(norbitals))
    blocks = replace(blocks, **{name: getattr(blocks, name).astype(np.int64) for name in "Rij"})
    expected = np.column_stack([norbitals[blocks.i], norbitals[blocks.j]])
    wrong = (shapes != expected).any(axis=1)
    if wrong.any():
        p = int(np.argmax(wrong))
        raise ValueError(
            f"{path}: {blocks.name(p)} has shape {' x '.join(map(str, shapes[p]))}, but the "
            f"orbitals in info.json give {' x '.join(map(str, expected[p]))}"
        )
    starts = blocks.starts(norbitals)
    if not np.array_equal(boundaries, starts):
        p = int(np.argmax(boundaries != starts))
        raise ValueError(
            f"{path}: chunk_boundaries[{p}] is {boundaries[p]}, but the blocks before it end at "
            f"{starts[p]}"
        )
    shape = (starts[-1],) if components == 1 else (components, starts[-1])
    if entries.shape != shape:
        raise ValueError(f"{path}: 'entries' has shape {entries.shape}, but blocks need {shape}")
    return blocks


def _as_double(numbers: ndarray) -> ndarray:
    return numbers.astype(complex if np.iscomplexobj(numbers) else float, copy=False)


def _write_blocks(path: Path, rows: ndarray, shapes: ndarray, entries: Iterator[ndarray]) -> None:
    """Write one file: pairs as R1, R2, R3, i, j, shapes of blocks, and their elements in pieces."""
    boundaries = np.concatenate([[0], np.cumsum(shapes[:, 0] * shapes[:, 1])])
    with h5py.File(path, "w") as file:
        file["atom_pairs"] = rows
        file["chunk_shapes"] = shapes
        file["chunk_boundaries"] = boundaries
        dataset, begin = None, 0
        for piece in entries:
            if dataset is None:
                shape = (*piece.shape[:-1], boundaries[-1])
                dataset = file.create_dataset("entries", shape, piece.dtype)
            dataset[..., begin : begin + piece.shape[-1]] = piece
            begin += piece.shape[-1]


LAYOUT = Layout(
    convention="deeph",
    files={
        "overlap": "overlap.h5",
        "hamiltonian": "hamiltonian.h5",
        "hamiltonian_pred": "hamiltonian_pred.h5",
        "zeroth_hamiltonian": "zeroth_hamiltonian.h5",
        "position_matrix": "position_matrix.h5",
    },
    density_matrix="density_matrix.h5",
    tied=("POSCAR", "info.json"),
    keys={
        "spinful": "spinful",
        "orthogonal": "orthogonal_basis",
        "fermi_level": "fermi_energy_eV",
        "nelectrons": "occupation",
    },
    read_blocks=_read_blocks,
    write_blocks=_write_blocks,
)

__all__ = ["HOLDS", "LAYOUT", "SUFFIXES", "read", "recognises", "write", "write_files"]
