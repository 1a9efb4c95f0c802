"""Folders of dftio and DeePTB: text files for the structure, an HDF5 dataset for each block.

hamiltonians.h5 and overlaps.h5 have a group for each frame, ``0``, ``1``, ..., and in it blocks by
the name ``i_j_R1_R2_R3``, atoms counted from 0. Energies are in eV, lengths in Angstrom, orbitals
have m = -l ... l and standard signs, and H(k) = sum_R exp(2 pi i k.R) H(R), as here. basis.dat says
``{'Si': '2s2p1d'}``. With spin, blocks are ``[[uu, ud], [du, dd]]``; collinear spin, which these
programs do not have, is written so, too. dftio writes 32-bit numbers; here they have 64 bits, which
DeePTB reads as well. info.json is DeePTB's; its ``r_max`` is the reach of the blocks.

The other format of these programs, LMDB, holds pickled Python objects. It is not read: unpickling
runs what is in the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from h5py import h5d, h5s, h5t
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import read_text, replacing_folder, write_atomically
from ase_nextham.matrix import LCAOMatrix, formula

from .deeph_blocks import (
    Blocks,
    block_entries,
    check_finite,
    check_pairs,
    content_spin,
    lcao_matrix,
)
from .deeph_hdf5 import check_storage, is_hard, opened
from .sidecar import noted_basis, read_sidecar, restored, sidecar_path, write_sidecar

SUFFIXES = ()
HOLDS = ("overlap", "hamiltonian")

_HAMILTONIANS = ("hamiltonians.h5", "predicted_hamiltonians.h5")
_OVERLAPS = ("overlaps.h5", "predicted_overlaps.h5")
_TIED = ("cell.dat", "positions.dat", "atomic_numbers.dat", "basis.dat")
_LETTERS = "spdfgh"
_KEY = re.compile(rb"(\d{1,9})_(\d{1,9})_(-?\d{1,9})_(-?\d{1,9})_(-?\d{1,9})")


def recognises(path: Path) -> bool:
    """Whether a path is a folder of this kind, or the LMDB of these programs."""
    if not path.is_dir():
        return False
    if _is_lmdb(path):
        return True
    structure = all((path / name).is_file() for name in _TIED)
    return structure and any((path / name).is_file() for name in _HAMILTONIANS + _OVERLAPS)


def _is_lmdb(path: Path) -> bool:
    folders = [path, *path.glob("data.*.lmdb")]
    return any(
        re.fullmatch(r"data\.\d+\.lmdb", f.name) and (f / "data.mdb").is_file() for f in folders
    )


def read(path: str | os.PathLike, *, frame: int = 0) -> LCAOData:
    """Read one frame of a folder.

    Parameters
    ----------
    frame
        Counted from 0.

    Returns
    -------
    LCAOData
        The Hamiltonian of hamiltonians.h5, or of predicted_hamiltonians.h5 where there is no other.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a file is missing, damaged, or does not fit the others; for LMDB.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    if _is_lmdb(path):
        raise ValueError(
            f"{path}: this is LMDB with pickled Python objects, which can run anything when they "
            "are read; write the data with `dftio parse -f dat` instead (HDF5)"
        )
    hamiltonian = next((path / n for n in _HAMILTONIANS if (path / n).is_file()), None)
    overlap = next((path / n for n in _OVERLAPS if (path / n).is_file()), None)
    if overlap is None:
        raise ValueError(
            f"{path}: there is no overlaps.h5, and these orbitals are not orthogonal; let dftio "
            "write it (`dftio parse --overlap`)"
        )
    folder = _read_structure(path, frame, _nframes(hamiltonian or overlap))
    note = read_sidecar(sidecar_path(path), [path / name for name in _TIED])
    if note is not None:
        folder = _noted(folder, note)
    S = _read_matrix(overlap, frame, folder, None)
    if S.spin != "unpolarised":
        raise ValueError(f"{overlap}: the blocks have spin, which an overlap has not")
    H = None
    if hamiltonian is not None:
        spin = None if note is None else note["extra"].get("spin")
        H = _read_matrix(hamiltonian, frame, folder, spin)
    source = {"code": "DeePTB"}
    if hamiltonian is not None and hamiltonian.name == _HAMILTONIANS[1]:
        source["hamiltonian"] = "predicted by DeePTB"
    data = LCAOData(folder.atoms, S, hamiltonian=H, source=source)
    return data if note is None else restored(data, note)


def write(path: str | os.PathLike, data: LCAOData) -> None:
    """Write a folder, which must not be there yet or be empty.

    What the format has no place for is noted in nextham.json, so that :func:`read` gives back what
    was written.

    Raises
    ------
    FileExistsError
        If there is something at ``path``.
    ValueError
        For atoms of one element with different orbitals, shells that are not in the order of their
        l, and complex matrices without spin, which the format does not have.
    """
    path = Path(path)
    shells = _shells_by_element(path, data)
    H = data.hamiltonian
    overlap, H = (_real(path, name, m) for name, m in (("overlap", data.overlap), ("H", H)))
    atoms, vectors = data.atoms, _pair_vectors(data)
    reach = float(np.linalg.norm(vectors, axis=1).max(initial=0))
    info = {
        "nframes": 1,
        "natoms": len(atoms),
        "pos_type": "cart",
        "pbc": [bool(periodic) for periodic in atoms.pbc],
        "r_max": round(reach + 0.01, 2),
    }
    with replacing_folder(path) as folder:
        write_atomically(folder / "info.json", json.dumps(info, indent=2) + "\n")
        write_atomically(folder / "basis.dat", str(shells))
        write_atomically(folder / "cell.dat", _rows(atoms.cell.array))
        write_atomically(folder / "positions.dat", _rows(atoms.positions))
        write_atomically(folder / "pbc.dat", _rows(atoms.pbc[:, None]))
        numbers = "".join(f"{number}\n" for number in atoms.numbers)
        write_atomically(folder / "atomic_numbers.dat", numbers)
        _write_matrix(folder / _OVERLAPS[0], overlap)
        if H is not None:
            _write_matrix(folder / _HAMILTONIANS[0], H)
        extra = {"spin": None if H is None else H.spin}
        tied = [folder / name for name in _TIED]
        write_sidecar(sidecar_path(folder), data, tied, extra=extra)


# --- structure and basis -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Folder:
    path: Path
    atoms: Atoms
    species: tuple[str, ...]
    basis: Basis


def _read_structure(path: Path, frame: int, nframes: int) -> _Folder:
    """The structure of one frame; files have all frames one after another, or one for all."""
    if not 0 <= frame < nframes:
        raise ValueError(f"{path}: there is no frame {frame}; there are {nframes}, counted from 0")
    positions = _numbers(path / "positions.dat")
    numbers = _numbers(path / "atomic_numbers.dat").ravel()
    cell = _numbers(path / "cell.dat")
    natoms = len(positions) // nframes
    if positions.shape != (natoms * nframes, 3) or len(numbers) not in (natoms, natoms * nframes):
        raise ValueError(
            f"{path}: positions of shape {positions.shape} and {len(numbers)} atomic numbers do "
            f"not belong to {nframes} frames"
        )
    if cell.shape not in ((3, 3), (3 * nframes, 3)):
        raise ValueError(f"{path / 'cell.dat'}: shape {cell.shape}, expected three vectors a frame")
    positions = positions.reshape(nframes, natoms, 3)[frame]
    numbers = numbers[frame * natoms :][:natoms] if len(numbers) > natoms else numbers
    cell = cell[3 * frame :][:3] if len(cell) > 3 else cell
    if abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError(f"{path / 'cell.dat'}: the vectors of frame {frame} span no volume")
    if not np.isin(numbers, np.arange(1, len(chemical_symbols))).all():
        raise ValueError(f"{path / 'atomic_numbers.dat'}: not the atomic numbers of elements")
    if _is_fractional(path):
        positions = positions @ cell
    pbc = True
    if (path / "pbc.dat").is_file():
        pbc = _numbers(path / "pbc.dat").ravel() != 0
        if len(pbc) not in (1, 3):
            raise ValueError(f"{path / 'pbc.dat'}: {len(pbc)} numbers, expected one or three")
    atoms = Atoms(numbers.astype(int), positions, cell=cell, pbc=pbc)
    species, basis = _read_basis(path / "basis.dat", atoms)
    return _Folder(path, atoms, species, basis)


def _numbers(path: Path) -> ndarray:
    """A table of finite numbers."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file, which every folder of this format has")
    try:
        table = np.array(
            [line.split() for line in read_text(path).splitlines() if line.strip()], float
        )
    except ValueError as err:
        raise ValueError(f"{path}: not a table of numbers ({err})") from err
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"{path}: not a table of finite numbers")
    return table


def _is_fractional(path: Path) -> bool:
    info = path / "info.json"
    if not info.is_file():
        return False
    try:
        return json.loads(info.read_bytes()).get("pos_type") == "frac"
    except (ValueError, AttributeError, RecursionError) as err:
        raise ValueError(f"{info}: not readable as a JSON object ({err})") from err


def _read_basis(path: Path, atoms: Atoms) -> tuple[tuple[str, ...], Basis]:
    """``{'Si': '2s2p1d'}``, or as an older DeePTB wrote it, ``2s2p1d`` in a line for each atom."""
    text = read_text(path).strip()
    elements = atoms.get_chemical_symbols()
    if text.startswith("{"):
        entry = r"""\s*['"]([A-Z][a-z]?)['"]\s*:\s*['"](\w+)['"]\s*"""
        if not re.fullmatch(rf"\{{{entry}(,{entry})*,?\s*\}}", text):
            raise ValueError(f"{path}: expected a basis such as {{'Si': '2s2p1d'}}")
        words = dict(re.findall(entry, text))
        missing = sorted(set(elements) - set(words))
        if missing:
            raise ValueError(f"{path}: no orbitals for {', '.join(missing)}")
    else:
        labels = text.split()
        if len(labels) != len(elements):
            raise ValueError(f"{path}: {len(labels)} lines for {len(elements)} atoms")
        words = dict(zip(elements, labels, strict=True))
        if any(words[e] != label for e, label in zip(elements, labels, strict=True)):
            raise ValueError(f"{path}: atoms of one element have different orbitals")
    return tuple(elements), Basis({e: _shells(path, words[e]) for e in dict.fromkeys(elements)})


def _shells(path: Path, label: str) -> tuple[int, ...]:
    if not re.fullmatch(rf"([1-9]\d?[{_LETTERS}])+", label):
        raise ValueError(f"{path}: {label!r} is no set of orbitals such as 2s2p1d")
    found = re.findall(rf"(\d+)([{_LETTERS}])", label)
    return tuple(_LETTERS.index(letter) for number, letter in found for _ in range(int(number)))


def _shells_by_element(path: Path, data: LCAOData) -> dict[str, str]:
    """What basis.dat says of the data."""
    labels: dict[str, str] = {}
    for element, name in zip(data.atoms.get_chemical_symbols(), data.symbols, strict=True):
        shells = data.basis.shells[name]
        if labels.setdefault(element, name) != name:
            raise ValueError(
                f"{path}: DeePTB has one set of orbitals for each element, but "
                f"{labels[element]} and {name} are both {element}"
            )
        if shells != tuple(sorted(shells)) or max(shells) >= len(_LETTERS):
            raise ValueError(
                f"{path}: DeePTB's shells go up in l and up to h; those of {name} are l = {shells}"
            )
    return {element: data.basis.label(name) for element, name in labels.items()}


def _noted(folder: _Folder, note: Mapping) -> _Folder:
    """The species that were written, which must have the orbitals that the files tell."""
    basis, species = noted_basis(note), tuple(note["species"])
    if [basis.shells.get(s) for s in species] != [folder.basis.shells[s] for s in folder.species]:
        raise ValueError(
            f"{folder.path}: the note beside the files is for atoms {formula(species)}, which do "
            f"not have the orbitals of those in the files, {formula(folder.species)}"
        )
    return replace(folder, basis=basis, species=species)


def _rows(vectors: ndarray) -> str:
    return "".join(" ".join(repr(float(x)) for x in row) + "\n" for row in vectors)


def _pair_vectors(data: LCAOData) -> ndarray:
    pairs, positions = data.pairs, data.atoms.positions
    return positions[pairs.j] - positions[pairs.i] + pairs.R @ data.atoms.cell.array


def _real(path: Path, name: str, matrix: LCAOMatrix | None) -> LCAOMatrix | None:
    if matrix is None or matrix.spin == "spinor" or not np.iscomplexobj(matrix.data):
        return matrix
    largest = np.abs(matrix.data.imag).max(initial=0)
    if largest:
        raise ValueError(
            f"{path}: {name} has imaginary parts up to {largest:.3g}, but DeePTB's matrices are "
            "real without spin-orbit coupling; write it as spinor"
        )
    return replace(matrix, data=matrix.data.real)


# --- matrices ------------------------------------------------------------------------------------


def _nframes(path: Path) -> int:
    with opened(path) as file:
        return max(len(file), 1)


def _read_matrix(path: Path, frame: int, folder: _Folder, noted_spin: str | None) -> LCAOMatrix:
    norbitals = np.array([folder.basis.norbitals(name) for name in folder.species], np.int64)
    with opened(path) as file:
        # an older DeePTB counts frames from 1
        name = str(frame if "0" in file else frame + 1)
        if name not in file or not is_hard(file, name.encode()):
            raise ValueError(f"{path}: there is no group for frame {frame}")
        group = file[name]
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{path}: {name!r} is no group of blocks")
        keys: list[bytes] = []
        group.id.links.iterate(keys.append)
        rows = _parsed(path, keys)
        # and atoms, too
        rows[:, :2] -= 0 if b"0_0_0_0_0" in keys else 1
        blocks = Blocks(path, rows[:, 2:], rows[:, 0], rows[:, 1], np.empty(0))
        check_pairs(blocks, len(norbitals))
        factor = _spin_factor(group, keys, norbitals[blocks.i])
        shapes = factor * np.column_stack([norbitals[blocks.i], norbitals[blocks.j]])
        entries = [
            _read_block(group, path, key, tuple(shape)).ravel()
            for key, shape in zip(keys, shapes.tolist(), strict=True)
        ]
    blocks = replace(blocks, entries=np.concatenate([np.empty(0), *entries]))
    check_finite(blocks, blocks.starts(factor * norbitals))
    spin = "unpolarised" if factor == 1 else content_spin(blocks, norbitals)
    if spin == "collinear" and noted_spin == "spinor":  # it is real and has no ud
        spin = "spinor"
    return lcao_matrix(
        blocks, blocks.entries, folder.basis, folder.species, spin, "deeph", spinful=factor == 2
    )


def _parsed(path: Path, keys: Sequence[bytes]) -> ndarray:
    """i, j, R1, R2, R3 of each key as they stand there, shape (nkeys, 5)."""
    rows = np.empty((len(keys), 5), np.int64)
    for n, key in enumerate(keys):
        match = _KEY.fullmatch(key)
        if not match:
            shown = key[:40].decode(errors="replace")
            raise ValueError(f"{path}: {shown!r} is not the name of a block, i_j_R1_R2_R3")
        rows[n] = [int(word) for word in match.groups()]
    return rows


def _spin_factor(group: h5py.Group, keys: Sequence[bytes], rows: ndarray) -> int:
    """2 where the first block has two rows for each orbital."""
    first = group[keys[0]] if keys and is_hard(group, keys[0]) else None
    shape = getattr(first, "shape", None)
    return 2 if shape and shape[0] == 2 * rows[0] else 1


def _read_block(group: h5py.Group, path: Path, key: bytes, shape: tuple[int, int]) -> ndarray:
    # the low level of h5py, because the high one takes several times as long for small datasets
    name = key.decode()
    try:
        dataset = h5d.open(group.id, key) if is_hard(group, key) else None
    except KeyError:  # a group
        dataset = None
    if dataset is None:
        raise ValueError(f"{path}: {name!r} is not a dataset of this file")
    if dataset.shape != shape:
        raise ValueError(
            f"{path}: block {name} has shape {dataset.shape}, but the orbitals of its atoms give "
            f"{shape}"
        )
    if dataset.dtype.kind not in "fc":
        raise ValueError(f"{path}: block {name} holds {dataset.dtype}, expected numbers")
    check_storage(dataset, path, name)
    block = np.empty(shape, complex if dataset.dtype.kind == "c" else float)
    dataset.read(h5s.ALL, h5s.ALL, block)
    return block


def _write_matrix(path: Path, matrix: LCAOMatrix) -> None:
    spinful = matrix.spin != "unpolarised"
    entries = block_entries(matrix, "deeph", spinful=spinful)
    pairs = matrix.pairs
    norbitals = (2 if matrix.spin == "collinear" else 1) * matrix.norbitals
    shapes = np.column_stack([norbitals[pairs.i], norbitals[pairs.j]])
    ends = np.cumsum(shapes.prod(axis=1)).tolist()
    kind = h5t.py_create(entries.dtype, logical=True)
    start = 0
    with h5py.File(path, "w") as file:
        group = file.create_group("0")
        keys = np.column_stack([pairs.i, pairs.j, pairs.R]).tolist()
        for key, shape, end in zip(keys, shapes.tolist(), ends, strict=True):
            name = "_".join(map(str, key)).encode()
            dataset = h5d.create(group.id, name, kind, h5s.create_simple(tuple(shape)))
            dataset.write(h5s.ALL, h5s.ALL, entries[start:end].reshape(shape))
            start = end


__all__ = ["HOLDS", "SUFFIXES", "read", "recognises", "write"]
