"""POSCAR as DeepH has it: with names of elements, Cartesian, in full precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from ase_nextham.files import read_text, write_atomically


def read_poscar(path: Path) -> Atoms:
    """The structure, periodic in all directions, with atoms where the file has them.

    Raises
    ------
    ValueError
        If the file is missing, cut short, or not a POSCAR of version 5.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, which every folder of DeepH has")
    lines = read_text(path).splitlines()
    try:
        scale = np.array([float(word) for word in lines[1].split()])
        if scale.shape not in ((1,), (3,)) or not (scale > 0).all():
            raise ValueError(f"the scale {lines[1].strip()!r} is not one or three positive numbers")
        cell = _vectors(lines[2:5]) * scale
        elements, counts = lines[5].split(), [int(word) for word in lines[6].split()]
        unknown = [name for name in elements if name not in atomic_numbers]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not an element")
        if len(elements) != len(counts) or min(counts) < 1:
            raise ValueError(f"{len(elements)} elements have the numbers of atoms {counts}")
        if len(lines) < 8 + sum(counts):
            raise ValueError(f"it has {len(lines)} lines, but {sum(counts)} atoms need more")
        kind = lines[7].strip()[:1].lower()
        if kind not in ("c", "k", "d"):
            raise ValueError(f"line 8 is {lines[7].strip()!r}, expected Cartesian or Direct")
        positions = _vectors(lines[8 : 8 + sum(counts)])
    except (ValueError, IndexError) as err:
        raise ValueError(f"{path}: not a POSCAR file of DeepH: {err}") from err
    if abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError(f"{path}: the cell vectors {cell.tolist()} span no volume")
    positions = positions @ cell if kind == "d" else positions * scale
    symbols = np.repeat(elements, counts)
    return Atoms(symbols, positions=positions, cell=cell, pbc=True)


def _vectors(lines: list[str]) -> np.ndarray:
    rows = [[float(word) for word in line.split()[:3]] for line in lines]
    if any(len(row) != 3 for row in rows) or not np.isfinite(rows).all():
        raise ValueError("a line that should begin with three numbers does not")
    return np.array(rows)


def write_poscar(path: Path, atoms: Atoms) -> None:
    """Write a structure whose atoms are grouped by element."""
    symbols = atoms.get_chemical_symbols()
    elements = list(dict.fromkeys(symbols))
    rows = ["  ".join(repr(float(x)) for x in vector) for vector in (*atoms.cell, *atoms.positions)]
    lines = [
        atoms.get_chemical_formula("reduce"),
        "1.0",
        *rows[:3],
        " ".join(elements),
        " ".join(str(symbols.count(element)) for element in elements),
        "Cartesian",
        *rows[3:],
    ]
    write_atomically(path, "\n".join(lines) + "\n")


__all__ = ["read_poscar", "write_poscar"]
