"""Wannier functions as orbitals of atoms: between the text of a file and ``LCAOData``.

The text has dense matrices over all functions for each R, the data has blocks for pairs of atoms.
Functions are put on atoms as :mod:`.wannier90` describes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham.bands.loewdin import identity
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix

from .sidecar import noted_basis
from .wannier90_structure import WannierStructure
from .wannier90_text import WannierText

_NOT_HERMITIAN = 1e-4  # eV; Wannier90 prints six decimals
_NOT_ZERO = 1e-6  # Angstrom
_SAME_CENTRE = 1e-2  # Angstrom


def noted_data(path: Path, text: WannierText, note: Mapping) -> LCAOData:
    """What our own writer wrote, with the orbitals of its note."""
    extra = note["extra"]
    atoms = Atoms(numbers=extra["numbers"], positions=extra["positions"], cell=extra["cell"])
    return _lcao(path, text, atoms, noted_basis(note), tuple(note["species"]), extra["spin"])


# --- functions of other programs -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sites:
    """Atoms with Wannier functions.

    Parameters
    ----------
    symbols, positions
        Of the atoms.
    owner
        Atom of each function, shape (n,).
    moves
        Lattice vectors from the atom that owns a function to its image beside the function,
        integer, shape (n, 3).
    doubt
        Why the atoms are no atoms but the sites of functions, or None.
    """

    symbols: tuple[str, ...]
    positions: ndarray
    owner: ndarray
    moves: ndarray
    doubt: str | None = None


def foreign_data(path: Path, text: WannierText, structure: WannierStructure) -> LCAOData:
    """What another program wrote, with one s-like orbital for each function."""
    cell = structure.cell if text.cell is None else text.cell
    if cell is None:
        raise ValueError(
            f"{path}: the file does not tell the cell; put the .win or .wout of the same seedname "
            "beside it, or read the _tb.dat"
        )
    if abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError(f"{path}: the cell vectors {np.asarray(cell).tolist()} span no volume")
    n = text.hamiltonian.shape[1]
    centres = structure.centres
    if text.position is not None:
        diagonal = np.diagonal(text.position[:, _home(path, text.R)], axis1=1, axis2=2)
        centres = diagonal.real.T
    if centres is not None and len(centres) != n:
        raise ValueError(
            f"{path}: {n} functions, but {len(centres)} centres in the files beside it"
        )
    spin, step = ("spinor", 2) if structure.spinors else ("unpolarised", 1)
    if n % step:
        raise ValueError(f"{path}: {n} functions cannot be pairs of spin up and down")
    sites = _sites(None if centres is None else centres[::step], n // step, structure, cell)
    text = _moved(text, np.repeat(sites.moves, step, axis=0), cell)
    order = np.argsort(sites.owner, kind="stable")
    order = (step * order[:, None] + np.arange(step)).ravel()
    position = text.position
    if position is not None:
        position = position[..., order, :][..., order]
    text = replace(text, hamiltonian=text.hamiltonian[:, order][..., order], position=position)
    count = np.bincount(sites.owner, minlength=len(sites.symbols))
    labels = _labels(sites.symbols, count)
    basis = Basis({name: (0,) * int(count[labels.index(name)]) for name in labels})
    atoms = Atoms(sites.symbols, sites.positions, cell=cell, pbc=True)
    data = _lcao(path, text, atoms, basis, labels, spin)
    if sites.doubt is not None:
        warnings.warn(f"{path}: {sites.doubt}", stacklevel=4)
    if data.position is not None:
        data = replace(data, position=_hermitian_position(path, data.position))
    return replace(data, source={"format": "wannier90", "comment": text.comment})


def _hermitian_position(path: Path, position: Sequence[LCAOMatrix]) -> tuple[LCAOMatrix, ...]:
    """The Hermitian part of r: Wannier90's, of finite differences in k, has another part, too."""
    error = max(r.hermitian_error() for r in position)
    if error < _NOT_ZERO:
        return tuple(position)
    warnings.warn(
        f"{path}: r is not Hermitian: elements differ from those of its conjugate by up to "
        f"{error:.2g} Angstrom; its Hermitian part is used",
        stacklevel=5,
    )
    parts = []
    for r in position:
        data = r.data.copy()
        for _, _, p, elements in r.block_groups():
            partner = r.partner_elements(p, elements)
            data[elements] = (r.data[elements] + r.data[partner].conj()) / 2
        parts.append(replace(r, data=data))
    return tuple(parts)


def _sites(centres: ndarray | None, n: int, structure: WannierStructure, cell: ndarray) -> _Sites:
    if centres is None:
        doubt = "nothing tells where the functions are: they all sit on one atom X"
        return _Sites(("X",), np.zeros((1, 3)), np.zeros(n, int), np.zeros((n, 3), int), doubt)
    doubt = "nothing tells the atoms: the functions sit on an atom X for each of their centres"
    if structure.positions is not None and len(structure.positions):
        owner, moves = _closest(structure.positions, centres, cell)
        if len(set(owner.tolist())) == len(structure.positions):
            return _Sites(structure.symbols, structure.positions, owner, moves)
        doubt = "not every atom has functions: they sit on an atom X for each of their centres"
    distances = np.linalg.norm(centres[:, None] - centres, axis=-1)
    first = np.argmax(distances < _SAME_CENTRE, axis=1)
    distinct, owner = np.unique(first, return_inverse=True)
    moves = np.zeros((n, 3), int)
    return _Sites(("X",) * len(distinct), centres[distinct], owner, moves, doubt)


def _closest(positions: ndarray, centres: ndarray, cell: ndarray) -> tuple[ndarray, ndarray]:
    """The atom closest to each centre, and the lattice vector of its closest image."""
    vectors = centres[:, None] - positions
    home = np.round(np.linalg.solve(cell.T, vectors.reshape(-1, 3).T).T).astype(int)
    moves = home.reshape(*vectors.shape[:2], 1, 3) + np.indices((3, 3, 3)).reshape(3, 27).T - 1
    distances = np.linalg.norm(vectors[:, :, None] - moves @ cell, axis=-1)
    owner, image = np.divmod(distances.reshape(len(centres), -1).argmin(axis=1), 27)
    return owner, moves[np.arange(len(centres)), owner, image]


def _moved(text: WannierText, moves: ndarray, cell: ndarray) -> WannierText:
    """The operators with function m moved by minus ``moves[m]``: R of (m, n) grows by T_n - T_m."""
    if not moves.any():
        return text
    kinds, kind = np.unique(moves, axis=0, return_inverse=True)
    several = text.R + (kinds[:, None] - kinds).reshape(-1, 1, 3)
    R = np.unique(several.reshape(-1, 3), axis=0)
    place = {tuple(row): p for p, row in enumerate(R.tolist())}
    operators = [text.hamiltonian[None]] + ([] if text.position is None else [text.position])
    results = []
    for operator in operators:
        result = np.zeros((len(operator), len(R), *operator.shape[2:]), complex)
        for a, left in enumerate(kinds):
            for b, right in enumerate(kinds):
                rows, columns = np.flatnonzero(kind == a), np.flatnonzero(kind == b)
                to = [place[tuple(row)] for row in (text.R + right - left).tolist()]
                for old, new in zip(operator, result, strict=True):
                    new[np.ix_(to, rows, columns)] = old[:, rows][..., columns]
        results.append(result)
    position = None
    if text.position is not None:
        position = results[1]
        functions = np.arange(len(moves))
        position[:, place[0, 0, 0], functions, functions] -= (moves @ cell).T
    return replace(text, R=R, hamiltonian=results[0][0], position=position)


def _labels(symbols: Sequence[str], count: ndarray) -> tuple[str, ...]:
    """Species: elements, numbered where atoms of one have different numbers of functions."""
    counts = {name: [] for name in symbols}
    for name, number in zip(symbols, count, strict=True):
        if number not in counts[name]:
            counts[name].append(number)
    return tuple(
        name if len(counts[name]) == 1 else f"{name}{counts[name].index(number) + 1}"
        for name, number in zip(symbols, count, strict=True)
    )


# --- dense matrices and blocks -------------------------------------------------------------------


def _home(path: Path, R: ndarray) -> int:
    places = np.flatnonzero((R == 0).all(axis=1))
    if not len(places):
        raise ValueError(f"{path}: there is no R = 0 0 0")
    return int(places[0])


def _lcao(
    path: Path, text: WannierText, atoms: Atoms, basis: Basis, labels: tuple[str, ...], spin: str
) -> LCAOData:
    n = sum(basis.norbitals(name) for name in labels) * (2 if spin == "spinor" else 1)
    if text.hamiltonian.shape[1] != n:
        raise ValueError(
            f"{path}: {text.hamiltonian.shape[1]} functions, but the note beside it is for {n}"
        )
    H = _matrix(path, text.R, text.hamiltonian, basis, labels, spin)
    error = H.hermitian_error()
    if error > _NOT_HERMITIAN:
        raise ValueError(
            f"{path}: H is not Hermitian: elements of H(R) and of the conjugate of H(-R) differ by "
            f"up to {error:.2g} eV"
        )
    position = text.position
    if position is not None and spin == "spinor":
        position = _without_spin(path, position)
    if position is not None:
        position = tuple(_matrix(path, text.R, r, basis, labels, "unpolarised") for r in position)
    overlap = identity(basis, labels)
    return LCAOData(atoms, overlap, hamiltonian=H, position=position)


def _without_spin(path: Path, position: ndarray) -> ndarray | None:
    """r between orbitals, from r between spinors with the spin as the fastest index."""
    up = position[..., 0::2, 0::2]
    difference = np.abs(position[..., 1::2, 1::2] - up).max()
    mixing = max(np.abs(position[..., 0::2, 1::2]).max(), np.abs(position[..., 1::2, 0::2]).max())
    if max(difference, mixing) < _NOT_ZERO:
        return up
    warnings.warn(
        f"{path}: r is not the same for spin up and down and zero between them (by up to "
        f"{max(difference, mixing):.2g} Angstrom), so these spinors are no orbitals times spins; r "
        "is left out. spin='unpolarised' keeps it, but then each band counts twice",
        stacklevel=6,
    )
    return None


def _matrix(
    path: Path, R: ndarray, dense: ndarray, basis: Basis, labels: tuple[str, ...], spin: str
) -> LCAOMatrix:
    """The blocks that are not zero, or whose partners are not."""
    order = np.lexsort(R.T[::-1])
    R, dense = R[order], dense[order]
    factor = 2 if spin == "spinor" else 1
    first = factor * np.concatenate([[0], np.cumsum([basis.norbitals(name) for name in labels])])
    held = np.logical_or.reduceat(dense != 0, first[:-1], axis=1)
    held = np.logical_or.reduceat(held, first[:-1], axis=2)
    held[_home(path, R)] |= np.eye(len(labels), dtype=bool)
    place = {tuple(row): p for p, row in enumerate(R.tolist())}
    reverse = np.array([place.get(tuple(row), -1) for row in (-R).tolist()])
    alone = (reverse < 0) & held.any(axis=(1, 2))
    if alone.any():
        p = int(np.argmax(alone))
        raise ValueError(
            f"{path}: not Hermitian: there is R = {' '.join(map(str, R[p]))}, but not its negative"
        )
    held |= held[reverse].swapaxes(1, 2) & (reverse >= 0)[:, None, None]
    i, j, p = np.nonzero(held.transpose(1, 2, 0))
    pairs = AtomPairs(i, j, R[p])
    if not dense.imag.any():
        dense = dense.real
    parts = [np.zeros(0, dense.dtype)]
    for start, stop in zip(pairs.groups[:-1], pairs.groups[1:], strict=True):
        rows, columns = (slice(*first[a[start] : a[start] + 2]) for a in (i, j))
        parts.append(dense[p[start:stop], rows, columns].ravel())
    return LCAOMatrix(basis, labels, pairs, spin, np.concatenate(parts))


def wannier_text(data: LCAOData, comment: str) -> WannierText:
    """Orthonormal data as what a file holds; r for both components of spinors."""
    H = data.hamiltonian
    R, place = np.unique(data.pairs.R, axis=0, return_inverse=True)
    position = None
    if data.position is not None:
        position = np.stack([_dense(r.with_spin(H.spin), len(R), place) for r in data.position])
    return WannierText(comment, R, _dense(H, len(R), place), data.atoms.cell.array.copy(), position)


def _dense(matrix: LCAOMatrix, nR: int, place: ndarray) -> ndarray:
    n, first, pairs = matrix.dimension, matrix.first_orbital, matrix.pairs
    dense = np.zeros((nR, n, n), complex)
    for start, stop in zip(pairs.groups[:-1], pairs.groups[1:], strict=True):
        rows, columns = (slice(*first[a[start] : a[start] + 2]) for a in (pairs.i, pairs.j))
        blocks = matrix.data[matrix.offsets[start] : matrix.offsets[stop]]
        shape = (stop - start, rows.stop - rows.start, columns.stop - columns.start)
        dense[place[start:stop], rows, columns] = blocks.reshape(shape)
    return dense


def centres_of(data: LCAOData) -> ndarray:
    """Where the functions are in Angstrom, shape (n, 3): <r> where known, else their atoms."""
    H = data.hamiltonian
    if data.position is None:
        return np.repeat(data.atoms.positions, H.norbitals, axis=0)
    centres = np.empty((H.dimension, 3))
    for axis, r in enumerate(data.position):
        r = r.with_spin(H.spin)
        for atom in range(len(data.atoms)):
            block = r.block(atom, atom, (0, 0, 0))
            centres[slice(*H.first_orbital[atom : atom + 2]), axis] = np.diagonal(block).real
    return centres
