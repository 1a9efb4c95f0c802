"""Folders of old DeepH: text files for the structure, an HDF5 dataset for each block.

That of DeepH-pack 0.x and DeepH-E3. In hamiltonians.h5 and overlaps.h5 each block has the name
``[R1, R2, R3, i, j]``, atoms counted from 1. Energies are in eV, lengths in Angstrom, orbitals have
the order of OpenMX and standard signs, and H(k) = sum_R exp(2 pi i k.R) H(R), as here. In lat.dat,
rlat.dat (with 2 pi) and site_positions.dat the vectors are columns; orbital_types.dat has a line
with the l of each shell for every atom. There is no place for the position operator.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from h5py import h5d, h5s, h5t
from numpy import ndarray

from ase_nextham.basis import MAX_L, Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import read_text, replacing_folder, write_atomically

from .deeph_blocks import Blocks, check_pairs
from .deeph_data import content
from .deeph_folder import (
    Layout,
    entries_in_memory,
    has_operators,
    read_folder,
    write_info,
    write_operators,
)
from .deeph_hdf5 import check_storage, is_hard, opened
from .deeph_info import read_info

SUFFIXES = ()
HOLDS = ("overlap", "h0", "hamiltonian")

_SHELLS = [str(l) for l in range(MAX_L + 1)]
_KEY = re.compile(rb"\[ ?(-?\d{1,9}), ?(-?\d{1,9}), ?(-?\d{1,9}), ?(\d{1,9}), ?(\d{1,9}) ?\]")


def recognises(path: Path) -> bool:
    """Whether a path is a folder with the text files and an operator."""
    texts = [name for name in _LAYOUT.tied if name != "info.json"]
    return all((path / name).is_file() for name in texts) and has_operators(path, _LAYOUT)


def read(path: str | os.PathLike, *, hamiltonian: str | None = None) -> LCAOData:
    """Read a folder.

    Parameters
    ----------
    hamiltonian
        ``"dft"``: that of hamiltonians.h5; ``"predicted"``: that of hamiltonians_pred.h5. By
        default the latter is read where there is no other.

    Returns
    -------
    LCAOData
        On the pairs that any of the files has. The species of atoms of one element with different
        orbitals are called Fe1, Fe2, ... Else as of :func:`.deeph.read`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a file is missing, damaged, or does not fit the others.

    Notes
    -----
    Warns of density_matrices.h5, which is not read.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    info = read_info(path / "info.json")
    atoms = _read_atoms(path)
    species, basis = _read_species(path / "orbital_types.dat", atoms)
    return read_folder(path, _LAYOUT, info, atoms, species, basis, hamiltonian)


def write(path: str | os.PathLike, data: LCAOData, *, energy_zero: str = "kept") -> None:
    """Write a folder, which must not be there yet or be empty.

    H goes to hamiltonians.h5, or H(0) where there is no H; where there are both, H(0) goes to
    zeroth_hamiltonians.h5, of which DeepH takes no notice. All files have the same blocks. What
    DeepH has no place for is noted in nextham.json, so that :func:`read` gives back what was
    written, except the position operator.

    Parameters
    ----------
    energy_zero
        As of :func:`.deeph.write`.

    Raises
    ------
    FileExistsError
        If there is something at ``path``.
    ValueError
        For complex matrices without spin, which DeepH does not have.
    """
    path = Path(path)
    written = content(path, data, energy_zero)
    with replacing_folder(path) as folder:
        _write_atoms(folder, data)
        write_info(folder, _LAYOUT, written, {"nsites": len(data.atoms)})
        entries = entries_in_memory(_LAYOUT, data, written)
        order = range(len(data.atoms))
        write_operators(folder, _LAYOUT, data, written, order, data.pairs, entries)


def _write_atoms(folder: Path, data: LCAOData) -> None:
    atoms = data.atoms
    shells = [" ".join(map(str, data.basis.shells[name])) for name in data.symbols]
    texts = {
        "lat.dat": _rows(atoms.cell.array.T),
        "rlat.dat": _rows(2 * np.pi * np.linalg.inv(atoms.cell.array)),
        "site_positions.dat": _rows(atoms.positions.T),
        "element.dat": "\n".join(map(str, atoms.numbers)) + "\n",
        "orbital_types.dat": "\n".join(shells) + "\n",
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)


def _rows(vectors: ndarray) -> str:
    return "".join(" ".join(repr(float(x)) for x in row) + "\n" for row in vectors)


def _read_atoms(path: Path) -> Atoms:
    """The structure, periodic in all directions."""
    cell, positions = (_numbers(path / name).T for name in ("lat.dat", "site_positions.dat"))
    numbers = _numbers(path / "element.dat").ravel()
    if cell.shape != (3, 3) or abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError(f"{path / 'lat.dat'}: not three vectors that span a cell")
    if positions.shape != (len(numbers), 3):
        raise ValueError(
            f"{path / 'site_positions.dat'}: shape {positions.T.shape}, but the {len(numbers)} "
            f"atoms of element.dat need (3, {len(numbers)})"
        )
    if not np.isin(numbers, np.arange(1, len(chemical_symbols))).all():
        raise ValueError(f"{path / 'element.dat'}: not the atomic numbers of elements")
    return Atoms(numbers.astype(int), positions=positions, cell=cell, pbc=True)


def _numbers(path: Path) -> ndarray:
    """A table of finite numbers."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file, which every folder of this format has")
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    try:
        table = np.array([[float(word) for word in row] for row in rows])
    except ValueError as err:
        raise ValueError(f"{path}: not a table of numbers ({err})") from err
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"{path}: not a table of finite numbers")
    return table


def _read_species(path: Path, atoms: Atoms) -> tuple[tuple[str, ...], Basis]:
    """Names for the atoms that tell apart those with different orbitals, and the orbitals."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file, which every folder of this format has")
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if len(lines) != len(atoms):
        raise ValueError(f"{path}: {len(lines)} lines for {len(atoms)} atoms")
    for number, words in enumerate(lines, 1):
        if not all(word in _SHELLS for word in words):
            raise ValueError(
                f"{path}, line {number}: {' '.join(words)!r}, expected l = 0 ... {MAX_L} of shells"
            )
    shells = [tuple(map(int, words)) for words in lines]
    elements = atoms.get_chemical_symbols()
    kinds: dict[str, list] = {}
    for element, ls in zip(elements, shells, strict=True):
        if ls not in kinds.setdefault(element, []):
            kinds[element].append(ls)

    def name(element, ls):
        several = len(kinds[element]) > 1
        return f"{element}{kinds[element].index(ls) + 1}" if several else element

    species = tuple(name(*kind) for kind in zip(elements, shells, strict=True))
    return species, Basis(dict(zip(species, shells, strict=True)))


def _read_blocks(path: Path, norbitals: ndarray, *, spinful: bool = False) -> Blocks:
    """The blocks of a file, whose shapes are as they must be; see :class:`Layout`."""
    with opened(path) as file:
        keys: list[bytes] = []
        file.id.links.iterate(keys.append)
        rows = _parsed(path, keys)
        R, i, j = rows[:, :3], rows[:, 3] - 1, rows[:, 4] - 1
        check_pairs(Blocks(path, R, i, j, np.empty(0)), len(norbitals))
        shapes = np.column_stack([norbitals[i], norbitals[j]]).tolist()
        entries = [
            _read_block(file, path, key, tuple(shape), spinful=spinful).ravel()
            for key, shape in zip(keys, shapes, strict=True)
        ]
    return Blocks(path, R, i, j, np.concatenate([np.empty(0), *entries]))


def _parsed(path: Path, keys: Sequence[bytes]) -> ndarray:
    """R1, R2, R3, i, j of each key as they stand there, shape (nkeys, 5)."""
    rows = np.empty((len(keys), 5), np.int64)
    for n, key in enumerate(keys):
        match = _KEY.fullmatch(key)
        if not match:
            raise ValueError(
                f"{path}: {key.decode(errors='replace')!r} is not the name of a block, "
                "[R1, R2, R3, i, j]"
            )
        rows[n] = [int(word) for word in match.groups()]
    return rows


def _read_block(
    file: h5py.File, path: Path, key: bytes, shape: tuple[int, int], *, spinful: bool
) -> ndarray:
    # the low level of h5py, because the high one takes several times as long for small datasets
    name = key.decode()
    try:
        dataset = h5d.open(file.id, key) if is_hard(file, key) else None
    except KeyError:  # a group
        dataset = None
    if dataset is None:
        raise ValueError(f"{path}: {name!r} is not a dataset of this file")
    if dataset.shape != shape:
        raise ValueError(
            f"{path}: block {name} has shape {dataset.shape}, but the orbitals of its atoms give "
            f"{shape}"
        )
    kind = dataset.dtype.kind
    if kind != "f" and not (kind == "c" and spinful):
        raise ValueError(
            f"{path}: block {name} holds {dataset.dtype}, expected real "
            f"{'or complex ' if spinful else ''}numbers"
        )
    check_storage(dataset, path, name)
    block = np.empty(shape, complex if kind == "c" else float)
    dataset.read(h5s.ALL, h5s.ALL, block)
    return block


def _write_blocks(path: Path, rows: ndarray, shapes: ndarray, entries: Iterator[ndarray]) -> None:
    """Write one file: R1, R2, R3, i, j of blocks, their shapes, and their elements in pieces."""
    spaces = {tuple(shape): h5s.create_simple(tuple(shape)) for shape in np.unique(shapes, axis=0)}
    blocks = zip((rows + [0, 0, 0, 1, 1]).tolist(), map(tuple, shapes.tolist()), strict=True)
    with h5py.File(path, "w") as file:
        for piece in entries:
            kind = h5t.py_create(piece.dtype, logical=True)
            start = 0
            while start < len(piece):
                key, shape = next(blocks)
                end = start + shape[0] * shape[1]
                dataset = h5d.create(file.id, str(key).encode(), kind, spaces[shape])
                dataset.write(h5s.ALL, h5s.ALL, piece[start:end].reshape(shape))
                start = end


_LAYOUT = Layout(
    convention="openmx",
    files={
        "overlap": "overlaps.h5",
        "hamiltonian": "hamiltonians.h5",
        "hamiltonian_pred": "hamiltonians_pred.h5",
        "zeroth_hamiltonian": "zeroth_hamiltonians.h5",
    },
    density_matrix="density_matrices.h5",
    tied=("info.json", "lat.dat", "site_positions.dat", "element.dat", "orbital_types.dat"),
    keys={
        "spinful": "isspinful",
        "orthogonal": "isorthogonal",
        "fermi_level": "fermi_level",
    },
    read_blocks=_read_blocks,
    write_blocks=_write_blocks,
)

__all__ = ["HOLDS", "SUFFIXES", "read", "recognises", "write"]
