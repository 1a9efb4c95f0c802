"""Folders of the first DeepH: text files for the structure, an HDF5 dataset for each block.

The layout of the DeepH-pack of 2022. In hamiltonians.h5 and overlaps.h5 each block has the name
``[R1, R2, R3, i, j]``, atoms counted from 1. Energies are in eV, lengths in Angstrom, orbitals have
the order of OpenMX and standard signs, and H(k) = sum_R exp(2 pi i k.R) H(R), as here. In lat.dat,
rlat.dat (with 2 pi) and site_positions.dat the vectors are columns; orbital_types.dat has a line
with the l of each shell for every atom. There is no place for the position operator.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
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
from ase_nextham.matrix import AtomPairs

from .deeph_blocks import Blocks, block_entries, check_pairs
from .deeph_data import SHIFT, Folder, content, lcao_data, real_overlap, sources
from .deeph_hdf5 import check_storage, is_hard, opened
from .deeph_info import info_flag, info_number, read_info
from .sidecar import read_sidecar, sidecar_path, write_sidecar

SUFFIXES = ()
HOLDS = ("overlap", "h0", "hamiltonian")

_FILES = {
    "overlap": "overlaps.h5",
    "hamiltonian": "hamiltonians.h5",
    "hamiltonian_pred": "hamiltonians_pred.h5",
    "zeroth_hamiltonian": "zeroth_hamiltonians.h5",
}
"""Files by the names of those with the same content in the new format."""

_TIED = ("info.json", "lat.dat", "site_positions.dat", "element.dat", "orbital_types.dat")
_SHELLS = [str(l) for l in range(MAX_L + 1)]
_KEY = re.compile(rb"\[ ?(-?\d{1,9}), ?(-?\d{1,9}), ?(-?\d{1,9}), ?(\d{1,9}), ?(\d{1,9}) ?\]")


def recognises(path: Path) -> bool:
    """Whether a path is a folder with the text files and an operator."""
    if not all((path / name).is_file() for name in _TIED[1:]):
        return False
    return any((path / name).is_file() for name in _FILES.values())


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
    names = [name for name, file in _FILES.items() if (path / file).is_file()]
    info_path = path / "info.json"
    info = read_info(info_path)
    atoms = _read_atoms(path)
    species, basis = _read_species(path / "orbital_types.dat", atoms)
    if "overlap" not in names and not info_flag(info_path, info, "isorthogonal"):
        raise ValueError(f"{path}: there is no overlaps.h5, and the basis is not orthogonal")
    if (path / "density_matrices.h5").is_file():
        warnings.warn(f"{path}: the density matrix is not read", stacklevel=2)
    note = read_sidecar(sidecar_path(path), [path / name for name in _TIED])
    files = sources(path, names, hamiltonian, note)
    spinful = info_flag(info_path, info, "isspinful")
    norbitals = np.array([basis.norbitals(name) for name in species], np.int64)
    blocks = {}
    for name in names:
        if name in files.values():
            factor = 2 if spinful else 1
            blocks[name] = _read_blocks(path / _FILES[name], norbitals * factor, spinful=spinful)
        elif name == "overlap":
            blocks[name] = _read_blocks(path / _FILES[name], norbitals, spinful=False)
    folder = Folder(
        path=path,
        atoms=atoms,
        species=species,
        basis=basis,
        convention="openmx",
        spinful=spinful,
        fermi_level=info_number(info_path, info, "fermi_level"),
        nelectrons=None,
        shift=info_number(info_path, info, SHIFT) or 0.0,
        blocks=blocks,
    )
    return lcao_data(folder, files, note)


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
    overlap = real_overlap(path, data.overlap)
    info = {
        "nsites": len(data.atoms),
        "isorthogonal": False,
        "isspinful": written.spinful,
        "fermi_level": written.fermi_level,
    }
    if written.shift:
        info[SHIFT] = written.shift
    with replacing_folder(path) as folder:
        write_atomically(folder / "info.json", json.dumps(info) + "\n")
        _write_atoms(folder, data)
        norbitals = data.overlap.norbitals
        entries = block_entries(overlap, "openmx", spinful=False)
        _write_blocks(folder / _FILES["overlap"], data.pairs, norbitals, entries)
        for name, matrix in written.hamiltonians.items():
            entries = block_entries(matrix, "openmx", spinful=written.spinful)
            factor = 2 if written.spinful else 1
            _write_blocks(folder / _FILES[name], data.pairs, norbitals * factor, entries)
        tied = [folder / name for name in _TIED]
        write_sidecar(sidecar_path(folder), data, tied, extra=written.extra)


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


def _read_blocks(path: Path, norbitals: ndarray, *, spinful: bool) -> Blocks:
    """The blocks of a file, whose shapes are as they must be.

    Parameters
    ----------
    norbitals
        Rows of the blocks of each atom.
    spinful
        Whether numbers may be complex.
    """
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


def _write_blocks(path: Path, pairs: AtomPairs, norbitals: ndarray, entries: ndarray) -> None:
    """Write one file; ``norbitals`` are the rows of the blocks of each atom."""
    shapes = np.column_stack([norbitals[pairs.i], norbitals[pairs.j]])
    ends = np.cumsum(shapes.prod(axis=1)).tolist()
    kind = h5t.py_create(entries.dtype, logical=True)
    spaces = {tuple(shape): h5s.create_simple(tuple(shape)) for shape in np.unique(shapes, axis=0)}
    keys = np.column_stack([pairs.R, pairs.i + 1, pairs.j + 1]).tolist()
    start = 0
    with h5py.File(path, "w") as file:
        for key, shape, end in zip(keys, map(tuple, shapes), ends, strict=True):
            dataset = h5d.create(file.id, str(key).encode(), kind, spaces[shape])
            dataset.write(h5s.ALL, h5s.ALL, entries[start:end].reshape(shape))
            start = end


__all__ = ["HOLDS", "SUFFIXES", "read", "recognises", "write"]
