"""HamGNN's ``graph_data.npz`` of ABACUS calculations, for reading only.

The file is a pickled dict of graphs of PyTorch Geometric; nothing in it is run. In a graph, ``Hon``
and ``Son`` have the blocks of each atom with itself, ``Hoff`` and ``Soff`` those of the edges, in
rows of ``nao_max`` squared, in Hartree and single precision; ``cell_shift`` is the integer R.
Orbitals have the order and signs of the program that computed them, at places that only
``nao_max`` tells, and the places of an atom that are taken are told by the ones on the diagonal of
its overlap. That the program was ABACUS is checked by the physics: the overlap of an s orbital
with the three of a p shell points along the line between the two atoms.

What cannot be had from such a file: ``Hon0`` and ``Hoff0`` are kinetic energy, nonlocal and local
pseudopotential, which is not our H(0) (that has the Hartree and exchange-correlation potential of
the atomic densities, too), so they are not read. The graph has the edges of that operator, and
elements of H beyond them are lost. Of spin-polarised runs it has spin up alone, without saying so.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.inert_pickle import Record, read_npz
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.units import BOHR, RYDBERG

SUFFIXES = ()
HOLDS = ("overlap", "hamiltonian")

LAYOUTS: Mapping[int, tuple[int, ...]] = {
    13: (0, 0, 1, 1, 2),
    15: (0, 0, 0, 0, 1, 1, 2),
    27: (0, 0, 0, 0, 1, 1, 2, 2, 3),
    40: (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3),
}
"""Shells of an atom by ``nao_max``, as HamGNN's interface to ABACUS has them."""

HARTREE = RYDBERG * 27.21138506 / 13.60580
"""eV per Hartree of these files: Rydberg of ABACUS, divided by the ratio that HamGNN takes."""

_ALONG = 5e-3  # how far an s-p overlap may point elsewhere, of its length
_CLASSES = ("torch_geometric.",)


def recognises(path: Path) -> bool:
    """Whether a path is an ``.npz`` archive with one array of objects, ``graph``."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != ["graph.npy"]:
                return False
            with archive.open("graph.npy") as entry:
                return b"'descr': '|O'" in entry.read(200)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return False


def read(path: str | os.PathLike, *, sample: int | None = None) -> LCAOData:
    """Read one graph of a file.

    Parameters
    ----------
    sample
        Which graph, counted from 0; needed where there are several.

    Returns
    -------
    LCAOData
        Overlap and, unless the file was made to predict it, the Hamiltonian; both unpolarised.

    Raises
    ------
    ValueError
        If the file is damaged, unsafe, no HamGNN file, has spin-orbit coupling, or is of another
        program than ABACUS.
    """
    graphs = _graphs(path)
    if sample is None and len(graphs) > 1:
        raise ValueError(
            f"{path}: it has {len(graphs)} graphs; give sample=0 ... {len(graphs) - 1}"
        )
    number = 0 if sample is None else sample
    if not 0 <= number < len(graphs):
        raise ValueError(f"{path}: there is no graph {number}, but 0 ... {len(graphs) - 1}")
    fields = _fields(path, graphs[number])
    where = f"{path}: graph {number}"
    _refuse_others(where, fields)
    z = _array(where, fields, "z", (-1,)).astype(int)
    natoms = len(z)
    if not natoms or z.min() < 1 or z.max() >= len(chemical_symbols):
        raise ValueError(f"{where}: z has numbers that are no atomic numbers")
    species = tuple(chemical_symbols[n] for n in z)
    cell = BOHR * _array(where, fields, "cell", (3, 3)).astype(float)
    positions = BOHR * _array(where, fields, "pos", (natoms, 3)).astype(float)
    atoms = Atoms(species, cell=cell, positions=positions, pbc=True)
    i, j, R = _edges(where, fields, natoms, cell)
    nao = _size(where, fields, natoms)
    overlaps, hamiltonians = (_blocks(where, fields, name, natoms, len(i), nao) for name in "SH")
    shells = _shells(where, species, overlaps[:natoms], LAYOUTS[nao])
    onsite = np.arange(natoms)
    try:
        pairs, row = AtomPairs.sort(
            np.concatenate([onsite, i]),
            np.concatenate([onsite, j]),
            np.concatenate([np.zeros((natoms, 3), int), R]),
        )
    except ValueError as err:
        raise ValueError(f"{where}: its edges do not make a matrix: {err}") from err
    basis = Basis(shells)
    overlap = _matrix(overlaps, row, basis, species, pairs, LAYOUTS[nao])
    _check_directions(where, overlap, atoms)
    hamiltonian = None
    if not _is_starting_point(fields):
        hamiltonian = HARTREE * _matrix(hamiltonians, row, basis, species, pairs, LAYOUTS[nao])
    source = {"format": "HamGNN graph", "graph": number}
    charge = fields.get("doping_charge")
    if isinstance(charge, ndarray) and charge.size == 1:
        source["doping charge"] = float(charge.ravel()[0])
    if hamiltonian is None:
        source["hamiltonian"] = "none: the file has HamGNN's starting point in its place"
    return LCAOData(atoms, overlap, hamiltonian=hamiltonian, source=source)


# --- the file ----------------------------------------------------------------------------------


def _graphs(path: str | os.PathLike) -> list:
    arrays = read_npz(path, records=_CLASSES)
    graphs = arrays.get("graph")
    if graphs is None or graphs.dtype != np.dtype(object):
        raise ValueError(
            f"{path}: not a file of HamGNN: there is no array of objects 'graph', but "
            f"{', '.join(arrays) or 'nothing'}"
        )
    content = graphs.item() if graphs.ndim == 0 else list(graphs.ravel())
    content = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: not a file of HamGNN: 'graph' is no dict of graphs")
    return content


def _fields(path: str | os.PathLike, graph: object) -> Mapping:
    """What a graph holds: PyTorch Geometric 2 keeps it in a store, 1 in the object itself."""
    state = graph.state if isinstance(graph, Record) else None
    if isinstance(state, dict) and isinstance(state.get("_store"), Record):
        state = state["_store"].state
        state = state.get("_mapping") if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a file of HamGNN: its graphs are not PyTorch Geometric's")
    return state


def _refuse_others(where: str, fields: Mapping) -> None:
    if any(fields.get(name) is not None for name in ("iHon", "iHoff")):
        raise ValueError(
            f"{where}: it has spin-orbit coupling (iHon), which HamGNN's interface to ABACUS "
            "cannot write, so that there is nothing to say what the rows mean; such data are read "
            "from ABACUS's own files"
        )
    program = fields.get("ham_type", "abacus")
    if program != "abacus":
        raise ValueError(
            f"{where}: it says that it is of {str(program)[:40]!r}; only data of ABACUS are read, "
            "since orbitals keep the order and signs of the program"
        )


def _array(where: str, fields: Mapping, name: str, shape: tuple[int, ...]) -> ndarray:
    array = fields.get(name)
    if not isinstance(array, ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"{where}: there is no {name}; it has {', '.join(map(str, fields))[:200]}")
    if array.ndim == len(shape) + 1 and len(array) == 1:  # the batch, of one
        array = array[0]
    fits = array.ndim == len(shape) and all(
        n in (-1, m) for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("n" if n < 0 else str(n) for n in shape)
        raise ValueError(f"{where}: {name} has shape {array.shape}, expected ({wanted})")
    return array


def _edges(
    where: str, fields: Mapping, natoms: int, cell: ndarray
) -> tuple[ndarray, ndarray, ndarray]:
    i, j = _array(where, fields, "edge_index", (2, -1))
    R = _array(where, fields, "cell_shift", (len(i), 3))
    for name, array in (("edge_index", i), ("edge_index", j), ("cell_shift", R)):
        if array.dtype.kind not in "iu":
            raise ValueError(f"{where}: {name} are not integers")
    ends = np.concatenate([i, j])
    if len(ends) and (ends.min() < 0 or ends.max() >= natoms):
        raise ValueError(f"{where}: edges name atom {ends.max()}, but there are {natoms} atoms")
    shift = BOHR * _array(where, fields, "nbr_shift", (len(i), 3)).astype(float)
    wrong = np.abs(shift - R @ cell).max(axis=1, initial=0) > 1e-3
    if wrong.any():
        e = int(np.argmax(wrong))
        raise ValueError(
            f"{where}: edge {e} (atoms {i[e]} and {j[e]}) has R = {R[e].tolist()}, but a shift "
            "that is not that lattice vector"
        )
    return i.astype(np.int64), j.astype(np.int64), R.astype(np.int64)


def _size(where: str, fields: Mapping, natoms: int) -> int:
    width = _array(where, fields, "Son", (natoms, -1)).shape[1]
    nao = isqrt(width)
    if nao**2 != width or nao not in LAYOUTS:
        raise ValueError(
            f"{where}: rows of {width} numbers; HamGNN's interface to ABACUS writes the squares of "
            f"{', '.join(map(str, LAYOUTS))}. 14, 19 and 26 are of its interface to OpenMX, whose "
            "orbitals are not ABACUS's"
        )
    return nao


def _blocks(where: str, fields: Mapping, name: str, natoms: int, nedges: int, nao: int) -> ndarray:
    """Blocks of the atoms, then of the edges, shape (natoms + nedges, nao, nao)."""
    onsite = _array(where, fields, f"{name}on", (natoms, nao**2))
    between = _array(where, fields, f"{name}off", (nedges, nao**2))
    return np.concatenate([onsite, between]).reshape(-1, nao, nao)


# --- orbitals ----------------------------------------------------------------------------------


def _shells(
    where: str, species: tuple[str, ...], onsite: ndarray, layout: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shells of each element, from the ones on the diagonal of the overlap."""
    first = np.cumsum([0, *(2 * l + 1 for l in layout)])
    found: dict[str, tuple[int, ...]] = {}
    for atom, name in enumerate(species):
        norm = np.diagonal(onsite[atom])
        shells, missing = [], set()
        for l, a, b in zip(layout, first[:-1], first[1:], strict=True):
            there = np.abs(norm[a:b] - 1) < 1e-3
            if there.all() and l not in missing:
                shells.append(l)
            elif not norm[a:b].any():
                missing.add(l)
            else:
                raise ValueError(
                    f"{where}: the overlap of atom {atom} ({name}) with itself has {norm[a]:.4g} "
                    f"in a shell of l = {l}; expected ones for shells that exist, the first of "
                    "each l, and zeros for the rest"
                )
        if not shells or found.setdefault(name, tuple(shells)) != tuple(shells):
            raise ValueError(f"{where}: atoms of {name} have none, or not the same orbitals")
    return found


def _places(shells: tuple[int, ...], layout: tuple[int, ...]) -> ndarray:
    """Where the orbitals of an element stand; the first shells of each l are there."""
    first = np.cumsum([0, *(2 * l + 1 for l in layout)])
    left = {l: shells.count(l) for l in shells}
    places = []
    for l, a, b in zip(layout, first[:-1], first[1:], strict=True):
        if left.get(l):
            left[l] -= 1
            places += range(a, b)
    return np.array(places)


def _matrix(
    blocks: ndarray,
    row: ndarray,
    basis: Basis,
    species: tuple[str, ...],
    pairs: AtomPairs,
    layout: tuple[int, ...],
) -> LCAOMatrix:
    places = {name: _places(shells, layout) for name, shells in basis.shells.items()}
    sizes = np.array([basis.norbitals(name) for name in species])
    data = np.empty(int((sizes[pairs.i] * sizes[pairs.j]).sum()))
    matrix = LCAOMatrix(basis, species, pairs, "unpolarised", data)
    for a, b, p, elements in matrix.block_groups():
        data[elements] = blocks[np.ix_(row[p], places[a], places[b])]
    return LCAOMatrix(basis, species, pairs, "unpolarised", data)


def _check_directions(where: str, overlap: LCAOMatrix, atoms: Atoms) -> None:
    """That p orbitals are ABACUS's: z, -x, -y, as only ABACUS has them."""
    pairs = overlap.pairs
    apart = atoms.positions[pairs.j] - atoms.positions[pairs.i] + pairs.R @ atoms.cell.array
    for a, b, p, elements in overlap.block_groups():
        numbers = overlap.basis.quantum_numbers(a), overlap.basis.quantum_numbers(b)
        s, shell = (
            np.flatnonzero((n[:, 0] == l) & (n[:, 1] == 0))
            for n, l in zip(numbers, (0, 1), strict=True)
        )
        if not len(s) or not len(shell):
            continue
        found = overlap.data[elements[:, s[0]][:, shell]]
        length = np.linalg.norm(found, axis=1)
        x, y, z = apart[p].T
        line = np.column_stack([z, -x, -y])
        line /= np.maximum(np.linalg.norm(line, axis=1), 1e-9)[:, None]
        across = np.linalg.norm(found - (found * line).sum(axis=1)[:, None] * line, axis=1)
        wrong = (across > _ALONG * length) & (length > 1e-3)
        if wrong.any():
            pair = pairs.name(p[np.argmax(wrong)])
            raise ValueError(
                f"{where}: the overlap of s and p orbitals of pair {pair} does not point from one "
                "atom to the other in the order and with the signs of ABACUS (z, -x, -y): these "
                "are data of another program, which are not read"
            )


def _is_starting_point(fields: Mapping) -> bool:
    """Whether H was replaced by HamGNN's H0, as in files made for prediction."""
    return all(
        isinstance(fields.get(f"{name}0"), ndarray)
        and np.array_equal(fields[name], fields[f"{name}0"])
        for name in ("Hon", "Hoff")
    )
