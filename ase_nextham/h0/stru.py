"""ABACUS's structure file STRU: the cell, the atoms, and which files describe each species.

Atoms come in the order of the file, grouped by species, and where ABACUS puts them: it moves
fractional coordinates into [0, 1) before it computes anything, and the lattice vectors R of its
matrices refer to the moved atoms. ``INPUT`` is read elsewhere; only its ``latname`` is needed here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy import ndarray

from ase_nextham.files import read_text, write_atomically
from ase_nextham.units import BOHR

SECTIONS = (
    "ATOMIC_SPECIES",
    "NUMERICAL_ORBITAL",
    "NUMERICAL_DESCRIPTOR",
    "ABFS_ORBITAL",
    "ABFS_JLES_ORBITAL",
    "PAW_FILES",
    "LATTICE_CONSTANT",
    "LATTICE_VECTORS",
    "LATTICE_PARAMETERS",
    "ATOMIC_POSITIONS",
)
"""Headings of STRU; each stands alone on its line."""

LATNAMES: Mapping[str, str] = {
    "sc": "",
    "fcc": "",
    "bcc": "",
    "hexagonal": "c/a",
    "trigonal": "cos_ab",
    "st": "c/a",
    "bct": "c/a",
    "so": "b/a c/a",
    "baco": "b/a c/a",
    "fco": "b/a c/a",
    "bco": "b/a c/a",
    "sm": "b/a c/a cos_ab",
    "bacm": "b/a c/a cos_ab",
    "triclinic": "b/a c/a cos_ab cos_ac cos_bc",
}
"""Bravais lattices that INPUT may name, and what LATTICE_PARAMETERS then holds."""


@dataclass(frozen=True)
class Species:
    """One kind of atom of a STRU file.

    Parameters
    ----------
    label
        As written, for example ``"Fe1"``.
    symbol
        Chemical symbol.
    mass
        In u, as written.
    pseudopotential, orbital
        File names as written; None where STRU gives none.
    """

    label: str
    symbol: str
    mass: float
    pseudopotential: str | None = None
    orbital: str | None = None


@dataclass(frozen=True, eq=False)
class Structure:
    """What a STRU file says.

    Parameters
    ----------
    atoms
        In file order, at the positions ABACUS uses: fractional coordinates in [0, 1). Initial
        magnetic moments are set if any is not zero: one number an atom, or vectors if the file
        gives vectors or angles.
    labels
        Label of the species of each atom.
    species
        All species, in file order, those without atoms included.
    images
        Integer, shape (natoms, 3): the file has atom a at ``positions[a] + images[a] @ cell``.
    """

    atoms: Atoms
    labels: tuple[str, ...]
    species: tuple[Species, ...]
    images: ndarray

    def __getitem__(self, label: str) -> Species:
        """The species with a label."""
        for species in self.species:
            if species.label == label:
                return species
        raise KeyError(label)


def wrapped(fractional: ndarray) -> tuple[ndarray, ndarray]:
    """Fractional coordinates as ABACUS moves them into the cell, and the integers it removes.

    ABACUS computes ``fmod(x + 10000, 1)`` (``unitcell::check_dtau``), which takes -1e-13 to 0
    and not to 1 - 1e-13: adding 10000 first rounds x to 1.8e-12.

    Returns
    -------
    (ndarray, ndarray)
        ``fractional - images`` and the integer ``images``, both of the shape of the argument. The
        first keeps all its digits, so it can be a rounding error below 0.
    """
    fractional = np.asarray(fractional, float)
    images = np.rint(fractional - np.fmod(fractional + 10000.0, 1.0)).astype(int)
    return fractional - images, images


def lattice_vectors(latname: str, parameters: Sequence[float]) -> ndarray:
    """Cell vectors of one of ABACUS's named Bravais lattices, in units of the lattice constant.

    Parameters
    ----------
    latname
        A key of :data:`LATNAMES`.
    parameters
        The numbers of LATTICE_PARAMETERS, in the order :data:`LATNAMES` tells.

    Returns
    -------
    ndarray
        Rows, shape (3, 3), as in ``unitcell::read_lattice_constant`` of ABACUS. (For ``bct``
        its manual has c/a in the third column; the program uses c/(2a), and so does this.)

    Raises
    ------
    ValueError
        For an unknown name, too few parameters, or angles that no cell has.
    """
    if latname not in LATNAMES:
        raise ValueError(f"unknown latname {latname!r}; ABACUS knows {', '.join(LATNAMES)}")
    wanted = LATNAMES[latname].split()
    if len(parameters) < len(wanted):
        raise ValueError(
            f"latname {latname} needs {len(wanted)} numbers in LATTICE_PARAMETERS "
            f"({', '.join(wanted)}), but there are {len(parameters)}"
        )
    value = dict(zip(wanted, parameters, strict=False))
    b, c = value.get("b/a", 1.0), value.get("c/a", 1.0)
    cos_ab, cos_ac, cos_bc = (value.get(name, 0.0) for name in ("cos_ab", "cos_ac", "cos_bc"))
    squared_volume = 1 + 2 * cos_ab * cos_ac * cos_bc - cos_ab**2 - cos_ac**2 - cos_bc**2
    if latname == "trigonal":
        squared_volume = (1 + 2 * cos_ab) * (1 - cos_ab)
    if abs(cos_ab) >= 1 or squared_volume <= 0:
        raise ValueError(f"LATTICE_PARAMETERS {list(parameters)} of {latname} describe no cell")
    sin_ab = np.sqrt(1 - cos_ab**2)
    if latname == "trigonal":
        x, z = np.sqrt((1 - cos_ab) / 2), np.sqrt((1 + 2 * cos_ab) / 3)
        y = x / np.sqrt(3)
        vectors = [[x, -y, z], [0, 2 * y, z], [-x, -y, z]]
    else:
        in_plane = [b * cos_ab, b * sin_ab, 0]
        vectors = {
            "sc": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            "fcc": [[-0.5, 0, 0.5], [0, 0.5, 0.5], [-0.5, 0.5, 0]],
            "bcc": [[0.5, 0.5, 0.5], [-0.5, 0.5, 0.5], [-0.5, -0.5, 0.5]],
            "hexagonal": [[1, 0, 0], [-0.5, np.sqrt(3) / 2, 0], [0, 0, c]],
            "st": [[1, 0, 0], [0, 1, 0], [0, 0, c]],
            "bct": [[0.5, -0.5, c / 2], [0.5, 0.5, c / 2], [-0.5, -0.5, c / 2]],
            "so": [[1, 0, 0], [0, b, 0], [0, 0, c]],
            "baco": [[0.5, b / 2, 0], [-0.5, b / 2, 0], [0, 0, c]],
            "fco": [[0.5, 0, c / 2], [0.5, b / 2, 0], [0, b / 2, c / 2]],
            "bco": [[0.5, b / 2, c / 2], [-0.5, b / 2, c / 2], [-0.5, -b / 2, c / 2]],
            "sm": [[1, 0, 0], in_plane, [0, 0, c]],
            "bacm": [[0.5, 0, -c / 2], in_plane, [0.5, 0, c / 2]],
            "triclinic": [
                [1, 0, 0],
                in_plane,
                [
                    c * cos_ac,
                    c * (cos_bc - cos_ac * cos_ab) / sin_ab,
                    c * np.sqrt(squared_volume) / sin_ab,
                ],
            ],
        }[latname]
    return np.array(vectors, float)


def chemical_symbol(label: str) -> str:
    """The element that a species label such as ``"Fe1"`` or ``"O_top"`` stands for.

    Raises
    ------
    ValueError
        If the label does not begin with a chemical symbol, or names a ghost atom.
    """
    if "empty" in label:
        raise ValueError(
            f"species {label!r} is a ghost atom (orbitals without a nucleus), which has no place "
            "in an ase.Atoms; ghost atoms are not supported"
        )
    for candidate in (label[:2], label[:1], label[:2].capitalize(), label[:1].upper()):
        if candidate in atomic_numbers and candidate != "X":
            return candidate
    if label[0] in "DT":  # deuterium, tritium
        return "H"
    raise ValueError(f"species label {label!r} does not begin with a chemical symbol")


def read_stru(path: str | os.PathLike, *, latname: str = "user_defined_lattice") -> Structure:
    """Read a STRU file.

    Parameters
    ----------
    latname
        ``latname`` of INPUT: a key of :data:`LATNAMES`, or ABACUS's default (``"none"`` in old
        versions), with which STRU holds LATTICE_VECTORS.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        Naming the file and what is wrong in it.
    """
    path = Path(path)
    try:
        sections = _sections(read_text(path))
        species = _species(sections)
        lat0 = _number_rows(sections, "LATTICE_CONSTANT")[0]
        if not lat0 or lat0[0] <= 0:
            raise ValueError("LATTICE_CONSTANT must be a positive number, in Bohr")
        vectors = _vectors(sections, latname)
        atoms, labels, images = _atoms(sections, species, vectors, lat0[0])
    except (ValueError, LookupError) as err:
        raise ValueError(f"{path}: {err}") from err
    return Structure(atoms, labels, species, images)


def _sections(text: str) -> dict[str, list[str]]:
    """Lines without comments, by heading."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        # a file name may contain //, so that a comment begins only where a word does
        for position, word in enumerate(words):
            if word.startswith("//"):
                words = words[:position]
                break
        if not words:
            continue
        if words[0] in SECTIONS:
            # ABACUS searches each heading from the top, so the first of two wins
            current = [] if words[0] in sections else sections.setdefault(words[0], [])
        elif current is not None:
            current.append(" ".join(words))
    return sections


def _section(sections: Mapping[str, list[str]], name: str) -> list[str]:
    if not sections.get(name):
        raise ValueError(f"there is no section {name}, or it is empty")
    return sections[name]


def _number_rows(sections: Mapping[str, list[str]], name: str) -> list[list[float]]:
    """The numbers at the beginning of each line; what follows them is a remark."""
    rows = []
    for line in _section(sections, name):
        row: list[float] = []
        for word in line.split("//", 1)[0].split():
            try:
                row.append(_number(word))
            except ValueError:
                break
        rows.append(row)
    return rows


def _number(word: str) -> float:
    value = float(word)
    if not np.isfinite(value):
        raise ValueError(f"{word!r} is not a finite number")
    return value


def _species(sections: Mapping[str, list[str]]) -> tuple[Species, ...]:
    rows = []
    for line in _section(sections, "ATOMIC_SPECIES"):
        words = line.split()
        try:
            mass = _number(words[1])
        except (IndexError, ValueError):
            raise ValueError(
                f"ATOMIC_SPECIES: expected 'label mass pseudopotential', found {line!r}"
            ) from None
        rows.append((words[0], mass, words[2] if len(words) > 2 else None))
    labels = [label for label, _, _ in rows]
    if len(set(labels)) < len(labels):
        raise ValueError(f"ATOMIC_SPECIES has a label twice: {' '.join(labels)}")
    orbitals: list[str | None] = " ".join(sections.get("NUMERICAL_ORBITAL", [])).split()
    if orbitals and len(orbitals) < len(rows):
        raise ValueError(
            f"NUMERICAL_ORBITAL names {len(orbitals)} files for {len(rows)} species "
            f"({' '.join(labels)})"
        )
    orbitals = orbitals or [None] * len(rows)
    return tuple(
        Species(label, chemical_symbol(label), mass, pseudopotential, orbital)
        for (label, mass, pseudopotential), orbital in zip(rows, orbitals, strict=False)
    )


def _vectors(sections: Mapping[str, list[str]], latname: str) -> ndarray:
    if latname in ("user_defined_lattice", "none"):
        if "LATTICE_VECTORS" not in sections and "LATTICE_PARAMETERS" in sections:
            raise ValueError(
                "LATTICE_PARAMETERS needs the kind of lattice, which `latname` of INPUT gives"
            )
        rows = _number_rows(sections, "LATTICE_VECTORS")
        if len(rows) < 3 or min(len(row) for row in rows[:3]) < 3:
            raise ValueError("LATTICE_VECTORS needs three lines of three numbers")
        rows = np.array([row[:3] for row in rows[:3]])
    else:
        if "LATTICE_VECTORS" in sections:
            raise ValueError(f"LATTICE_VECTORS contradicts latname {latname} of INPUT")
        given = "LATTICE_PARAMETERS" in sections
        parameters = _number_rows(sections, "LATTICE_PARAMETERS")[0] if given else []
        rows = lattice_vectors(latname, parameters)
    if abs(np.linalg.det(rows)) < 1e-12:
        raise ValueError(f"the lattice vectors span no volume: {rows.tolist()}")
    return rows


def _atoms(
    sections: Mapping[str, list[str]],
    species: Sequence[Species],
    vectors: ndarray,
    lat0: float,
) -> tuple[Atoms, tuple[str, ...], ndarray]:
    lines = iter(_section(sections, "ATOMIC_POSITIONS"))
    kind = next(lines).split()[0]
    labels, coordinates, moments = [], [], []
    for one in species:
        label = _next(lines, f"the label of species {one.label}").split()[0]
        if label != one.label:
            raise ValueError(
                f"ATOMIC_POSITIONS: expected species {one.label}, found {label!r}; species stand "
                "in the order of ATOMIC_SPECIES, each with its number of atoms"
            )
        line = _next(lines, f"the magnetisation of species {label}")
        moment = _number(line.split()[0])
        line = _next(lines, f"the number of atoms of species {label}")
        if not re.fullmatch(r"\d+", line.split()[0]):
            raise ValueError(f"{label}: expected a number of atoms, found {line!r}")
        for a in range(int(line.split()[0])):
            line = _next(lines, f"atom {a + 1} of species {label}")
            try:
                position, m = _atom(line, moment)
            except ValueError as err:
                raise ValueError(f"atom {a + 1} of species {label}: {err}: {line!r}") from None
            labels.append(label)
            coordinates.append(position)
            moments.append(m)
    if not labels:
        raise ValueError("there are no atoms")
    cell = vectors * lat0 * BOHR
    fractional = _fractional(kind, np.array(coordinates), cell, lat0)
    if np.abs(fractional).max() >= 10000:
        raise ValueError("an atom is more than 10000 cells away, where ABACUS loses it")
    fractional, images = wrapped(fractional)
    symbols = {one.label: one.symbol for one in species}
    atoms = Atoms(
        [symbols[label] for label in labels], positions=fractional @ cell, cell=cell, pbc=True
    )
    if np.any(np.concatenate([np.atleast_1d(m) for m in moments])):
        if any(np.ndim(m) for m in moments):
            moments = [m if np.ndim(m) else np.array([0.0, 0.0, m]) for m in moments]
        atoms.set_initial_magnetic_moments(np.array(moments))
    return atoms, tuple(labels), images


def _next(lines: Iterator[str], what: str) -> str:
    line = next(lines, None)
    if line is None:
        raise ValueError(f"the file ends where {what} should stand")
    return line


def _atom(line: str, moment: float) -> tuple[list[float], float | ndarray]:
    """Coordinates and magnetic moment of one line, read as ABACUS's parse_atom_properties does."""
    # a remark may follow without a space: "0.25 0.25 0.25 1 1 1//position"
    words = line.split("//", 1)[0].split()
    if len(words) < 3:
        raise ValueError("expected three coordinates")
    position = [_number(word) for word in words[:3]]
    angles = {"angle1": 0.0, "angle2": 0.0}
    angles_given = False
    result: float | ndarray = moment
    at = 3
    while at < len(words):
        word = words[at]
        at += 1
        if word[0].isdigit():  # move flags without a keyword
            at += 2
        elif word in ("m", "v", "vel", "velocity"):
            at += 3
        elif word in ("mag", "magmom", "lambda", "sc"):
            values = [_number(w) for w in words[at : at + 1]]
            if not values:
                raise ValueError(f"a number must follow {word!r}")
            # ABACUS takes two more numbers if the next word begins with a digit or a minus
            if at + 1 < len(words) and (words[at + 1][0].isdigit() or words[at + 1][0] == "-"):
                values += [_number(w) for w in words[at + 1 : at + 3]]
                if len(values) < 3:
                    raise ValueError(f"one or three numbers must follow {word!r}")
            at += len(values)
            if word in ("mag", "magmom"):
                result = values[0] if len(values) == 1 else np.array(values)
        elif word in angles and at < len(words):
            angles[word] = np.deg2rad(_number(words[at]))
            angles_given = True
            at += 1
    if angles_given:
        polar, azimuth = angles["angle1"], angles["angle2"]
        modulus = np.linalg.norm(result) if np.ndim(result) else result
        result = modulus * np.array(
            [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
        )
    return position, result


def _fractional(kind: str, coordinates: ndarray, cell: ndarray, lat0: float) -> ndarray:
    if kind == "Direct":
        return coordinates
    if kind == "Cartesian":
        cartesian = coordinates * (lat0 * BOHR)
    elif kind == "Cartesian_au":
        cartesian = coordinates * BOHR
    elif kind == "Cartesian_angstrom":
        cartesian = coordinates
    elif re.fullmatch(r"Cartesian_angstrom_center_(xy|xz|yz|xyz)", kind):
        centred = [axis in kind.rpartition("_")[2] for axis in "xyz"]
        cartesian = coordinates + np.where(centred, cell.sum(axis=0) / 2, 0.0)
    else:
        raise ValueError(
            f"unknown kind of coordinates {kind!r}; ABACUS knows Direct, Cartesian, Cartesian_au, "
            "Cartesian_angstrom and Cartesian_angstrom_center_xy, _xz, _yz, _xyz"
        )
    return np.linalg.solve(cell.T, cartesian.T).T


def write_stru(path: str | os.PathLike, structure: Structure) -> None:
    """Write a STRU file with Direct coordinates and a lattice constant of 1 Angstrom.

    The images are written, too: atoms stand where the file that was read had them.

    Raises
    ------
    ValueError
        If the atoms are not grouped by species, which STRU cannot express.
    """
    atoms = structure.atoms
    expected = [s.label for s in structure.species for _ in range(structure.labels.count(s.label))]
    if expected != list(structure.labels):
        raise ValueError(
            f"STRU groups atoms by species in the order {' '.join(dict.fromkeys(expected))}; "
            "sort the atoms first"
        )
    lines = ["ATOMIC_SPECIES"]
    lines += [
        f"{s.label} {s.mass:.6f} {s.pseudopotential or ''}".rstrip() for s in structure.species
    ]
    if all(s.orbital for s in structure.species):
        lines += ["", "NUMERICAL_ORBITAL", *(str(s.orbital) for s in structure.species)]
    lines += ["", "LATTICE_CONSTANT", f"{1 / BOHR!r}  // Bohr: 1 Angstrom", "", "LATTICE_VECTORS"]
    lines += [_row(vector) for vector in atoms.cell.array]
    lines += ["", "ATOMIC_POSITIONS", "Direct"]
    fractional = np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T + structure.images
    moments = atoms.get_initial_magnetic_moments() if atoms.has("initial_magmoms") else None
    labels = np.array(structure.labels)
    for species in structure.species:
        members = np.flatnonzero(labels == species.label)
        lines += ["", species.label, "0.0", str(len(members))]
        for a in members:
            line = f"{_row(fractional[a])} m 1 1 1"
            if moments is not None:
                line += f" mag {_row(np.atleast_1d(moments[a]))}"
            lines.append(line)
    write_atomically(path, "\n".join(lines) + "\n")


def _row(numbers: ndarray) -> str:
    return " ".join(repr(float(x)) for x in numbers)
