"""What Wannier90 and its input say of the structure: cell, atoms, centres, spinors.

``seedname.win`` has the cell and the atoms as they were given, ``seedname.wout`` the same and the
centres of the Wannier functions, ``seedname_centres.xyz`` centres and atoms. None has to be there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from ase.units import Bohr  # Wannier90's value, unlike ABACUS's, is that of CODATA
from numpy import ndarray

from ase_nextham.files import read_text

_UNITS = {"ang": 1.0, "angstrom": 1.0, "bohr": Bohr}


@dataclass(frozen=True, eq=False)
class WannierStructure:
    """What is known; None where nothing is.

    Parameters
    ----------
    cell
        In Angstrom, rows, shape (3, 3).
    symbols
        Of the atoms; ``"X"`` where a label is no element.
    positions
        Of the atoms in Angstrom, shape (natoms, 3).
    centres
        Of the Wannier functions in Angstrom, shape (n, 3).
    spinors
        Whether the functions are spinors.
    """

    cell: ndarray | None = None
    symbols: tuple[str, ...] | None = None
    positions: ndarray | None = None
    centres: ndarray | None = None
    spinors: bool = False


def read_structure(folder: str | os.PathLike, seedname: str) -> WannierStructure:
    """What the files of one seedname say together; ``.win`` first.

    Raises
    ------
    ValueError
        If one of the files is damaged.
    """
    win, wout, xyz = (
        Path(folder) / f"{seedname}{end}" for end in (".win", ".wout", "_centres.xyz")
    )
    known = {}
    for path, read in ((xyz, _read_centres), (wout, _read_wout), (win, _read_win)):
        if path.is_file():
            try:
                found = read(path)
            except (ValueError, IndexError, KeyError) as err:
                raise ValueError(f"{path}: not a readable file of Wannier90 ({err})") from err
            known |= {name: value for name, value in found.items() if value is not None}
    return WannierStructure(**known)


def _read_centres(path: Path) -> Mapping:
    lines = read_text(path).splitlines()
    rows = [line.split() for line in lines[2 : 2 + int(lines[0])]]
    centres = [row[1:4] for row in rows if row[0].upper() == "X"]
    return {"centres": np.array(centres, float).reshape(-1, 3)}


def _read_wout(path: Path) -> Mapping:
    text = read_text(path)
    number = r"(-?\d+\.\d+)\s*"
    found = {}
    cell = re.search(r"Lattice Vectors \((\w+)\)\s*" + rf"a_\d\s+{3 * number}" * 3, text)
    if cell:
        unit = _UNITS[cell[1].lower()]  # of all lengths in the file
        found["cell"] = unit * np.array(cell.groups()[1:], float).reshape(3, 3)
        table = re.findall(
            rf"^ \|\s*([A-Za-z]\w*)\s+\d+\s+{3 * number}\|\s*{3 * number}\|", text, re.M
        )
        found["symbols"] = tuple(_element(row[0].lower()) for row in table)
        found["positions"] = unit * np.array([row[4:] for row in table], float).reshape(-1, 3)
        centre = r"WF centre and spread\s+\d+\s+\(\s*" + r",\s*".join([number] * 3) + r"\)"
        last = text.rpartition("Final State")[2] if "Final State" in text else ""
        centres = re.findall(centre, last)
        found["centres"] = unit * np.array(centres, float) if centres else None
    return found


def _read_win(path: Path) -> Mapping:
    text = re.sub(r"[!#].*", "", read_text(path)).lower()
    blocks = dict(re.findall(r"^\s*begin\s+(\w+)\s*$(.*?)^\s*end\s+\1\b", text, re.M | re.S))
    found = {}
    if "unit_cell_cart" in blocks:
        rows, unit = _rows(blocks["unit_cell_cart"])
        found["cell"] = unit * np.array([row[:3] for row in rows], float).reshape(3, 3)
    name = "atoms_cart" if "atoms_cart" in blocks else "atoms_frac"
    if name in blocks:
        rows, unit = _rows(blocks[name])
        positions = unit * np.array([row[1:4] for row in rows], float).reshape(-1, 3)
        found["symbols"] = tuple(_element(row[0]) for row in rows)
        found["positions"] = positions @ found["cell"] if name == "atoms_frac" else positions
    spinors = re.search(r"^\s*spinors\s*[=:]?\s*(\S+)", text, re.M)
    if spinors:
        found["spinors"] = spinors[1].strip(".").startswith("t")
    return found


def _rows(block: str) -> tuple[list[list[str]], float]:
    """Lines of a block, split, and the unit of its lengths in Angstrom."""
    rows = [line.replace(",", " ").split() for line in block.splitlines() if line.strip()]
    unit = 1.0
    if rows and len(rows[0]) == 1:
        unit = _UNITS[rows.pop(0)[0]]
    return rows, unit


def _element(label: str) -> str:
    name = re.match(r"[a-z]*", label)[0].capitalize()
    for symbol in (name, name[:2], name[:1]):
        if symbol in chemical_symbols:
            return symbol
    return "X"


__all__ = ["WannierStructure", "read_structure"]
