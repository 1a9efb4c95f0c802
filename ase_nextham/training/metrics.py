"""How far a Hamiltonian is from the self-consistent one, element by element.

What is compared is said in :mod:`ase_nextham.comparison`; the same ``mu`` serves all parts of a
structure.

The definition is that of NextHAM (eq. 4, table 1) but for ``mu``, which is there the one that makes
the mean absolute error smallest. That of least squares has a closed form and is the one of training
(eq. 28). The mean can only be larger with it, for H(0) of 60 two-atom crystals by 6 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy import ndarray

from ase_nextham.comparison import THRESHOLD, counted, gauge_difference, hamiltonian_of
from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix, aligned
from ase_nextham.training.dataset_statistics import EDGES, Error

DISTANCES = (
    "on site",
    f"< {EDGES[0]:g} A",
    *(f"{begin:g} - {end:g} A" for begin, end in pairwise(EDGES)),
    f"> {EDGES[-1]:g} A",
)
"""Ranges of distance, as :mod:`~ase_nextham.training.dataset_statistics` counts them."""

KINDS = ("spin", "element", "pair", "shells", "distance")
"""By what errors are told apart, see :class:`MatrixErrors`."""

_SPIN_PARTS = (
    "scalar",
    "vector",
    "up",
    "down",
    *(f"{block} {part}" for block in ("uu", "ud", "du", "dd") for part in ("real", "imaginary")),
)
_ORDER: Mapping[str, Callable[[str], Any]] = {
    "spin": _SPIN_PARTS.index,
    "shells": lambda name: ["spdfghi".index(l) for l in name.split("-")],
    "distance": DISTANCES.index,
}

_PARITY_BINS = 160
_PARITY_REACH = 10.0  # arsinh(x / 1 meV): 11 eV

PARITY_EDGES = 1e-3 * np.sinh(np.linspace(-_PARITY_REACH, _PARITY_REACH, _PARITY_BINS + 1))
"""Bins of :func:`parity` in eV: evenly spaced in arsinh(x / 1 meV)."""


@dataclass(frozen=True, eq=False)
class MatrixErrors:
    """|H - H_sc| of the elements of one structure, or of several.

    Parameters
    ----------
    mu
        ``H + mu S`` is closest to H_sc as its source wrote it, in eV; smallest and largest of the
        structures.
    plain
        Errors of H as it stands, without mu.
    total
        Gauge errors of all elements.
    by
        Gauge errors by :data:`KINDS`. ``"spin"``: the ``scalar`` part (uu + dd) / 2 and the
        ``vector`` part, with the norm of its three components; spinors also ``uu``, ``ud``,
        ``du``, ``dd``, each real and imaginary, and collinear Hamiltonians ``up`` and ``down``.
        ``"element"``: that of the atom of the row, so that each block between two elements counts
        for both. ``"pair"``: ``"Ga on site"`` are blocks of an atom with itself, ``"As-Ga"`` all
        others between the two elements, in both orders. ``"shells"``: ``"s-p"``, likewise.
        ``"distance"``: ranges of :data:`DISTANCES`.
    """

    mu: tuple[float, float]
    plain: Error
    total: Error
    by: Mapping[str, Mapping[str, Error]]


def matrix_errors(matrix: LCAOMatrix, data: LCAOData, *, zero: float = 0.0) -> MatrixErrors:
    """Errors of a Hamiltonian against the self-consistent one of the same structure.

    Parameters
    ----------
    matrix
        In eV, with the spin of ``data.hamiltonian``.
    data
        With the self-consistent Hamiltonian.
    zero
        ``data.hamiltonian - zero * overlap`` is that of the source, in eV:
        :attr:`ase_nextham.training.dataset.Entry.mu`. It matters for ``mu`` and ``plain`` only.

    Raises
    ------
    ValueError
        If there is no self-consistent Hamiltonian, or the two do not belong together.
    """
    reference = hamiltonian_of(data)
    overlap = data.overlap.with_spin(reference.spin)
    difference = (matrix - reference).on_pairs(reference.pairs)
    moved, mu = gauge_difference(difference, data.overlap)
    some = counted(reference)
    values = np.abs(moved.data)
    by = {"spin": _by_spin(moved, reference)}
    for kind, (names, index) in _labels(reference, data).items():
        by[kind] = _by_label(names, index, values, some)
    return MatrixErrors(
        mu=(mu - zero, mu - zero),
        plain=_error(np.abs(difference.data + zero * overlap.data)[some]),
        total=_error(values[some]),
        by=by,
    )


def merged(errors: Iterable[Error]) -> Error:
    """The error of several sets of elements together: each element counts the same."""
    errors = list(errors)
    count = sum(error.count for error in errors)
    total = sum(error.count * error.mean for error in errors)
    largest = max((error.largest for error in errors), default=0.0)
    return Error(count, total / max(count, 1), largest)


def merged_matrix_errors(several: Iterable[MatrixErrors]) -> MatrixErrors:
    """The errors of several structures together: each matrix element counts the same."""
    several = list(several)
    by = {
        kind: merged_by_label((errors.by[kind] for errors in several), order=_ORDER.get(kind))
        for kind in KINDS
    }
    return MatrixErrors(
        mu=(min(errors.mu[0] for errors in several), max(errors.mu[1] for errors in several)),
        plain=merged(errors.plain for errors in several),
        total=merged(errors.total for errors in several),
        by=by,
    )


def merged_by_label(
    tables: Iterable[Mapping[str, Error]], *, order: Callable[[str], Any] | None = None
) -> dict[str, Error]:
    """Tables of errors put together label by label, sorted by ``order`` of the labels."""
    collected: dict[str, list[Error]] = {}
    for table in tables:
        for name, error in table.items():
            collected.setdefault(name, []).append(error)
    return {name: merged(collected[name]) for name in sorted(collected, key=order)}


def parity(matrix: LCAOMatrix, data: LCAOData) -> ndarray:
    """How often each correction was predicted where another one was right.

    Parameters
    ----------
    matrix
        A Hamiltonian in eV; mu S is added to it as in :func:`matrix_errors`.
    data
        With H(0) and the self-consistent Hamiltonian.

    Returns
    -------
    ndarray
        Number of elements whose self-consistent minus H(0) lies in the bin of the first index,
        and whose ``matrix`` minus H(0) in that of the second; bins of :data:`PARITY_EDGES`, real
        parts, values beyond the last bin counted in it.
    """
    reference = hamiltonian_of(data)
    some = counted(reference)
    moved, _ = aligned(matrix, reference, data.overlap)
    bins = []
    for hamiltonian in (reference, moved):
        correction = (hamiltonian - data.h0).on_pairs(reference.pairs).data[some].real
        scaled = np.arcsinh(1e3 * correction) / _PARITY_REACH  # from -1 to 1
        place = np.floor((scaled + 1) / 2 * _PARITY_BINS).astype(int)
        bins.append(place.clip(0, _PARITY_BINS - 1))
    counts = np.bincount(bins[0] * _PARITY_BINS + bins[1], minlength=_PARITY_BINS**2)
    return counts.reshape(_PARITY_BINS, _PARITY_BINS)


def _error(values: ndarray) -> Error:
    return Error(
        values.size, float(values.mean()) if values.size else 0.0, float(values.max(initial=0))
    )


def _by_label(
    names: Mapping[str, int], index: ndarray, values: ndarray, counted: ndarray
) -> dict[str, Error]:
    """Errors of the elements with each label."""
    label, some = np.broadcast_to(index, values.shape)[counted], values[counted]
    count = np.bincount(label, minlength=len(names))
    total = np.bincount(label, some, minlength=len(names))
    largest = np.zeros(len(names))
    np.maximum.at(largest, label, some)
    return {
        name: Error(int(count[k]), float(total[k] / count[k]), float(largest[k]))
        for name, k in sorted(names.items())
        if count[k]
    }


def _labels(matrix: LCAOMatrix, data: LCAOData) -> dict[str, tuple[Mapping[str, int], ndarray]]:
    """For each kind, names with their numbers, and the number of each element of ``matrix``."""
    pairs, positions = matrix.pairs, data.atoms.positions
    vectors = positions[pairs.j] - positions[pairs.i] + pairs.R @ data.atoms.cell.array
    onsite = (pairs.i == pairs.j) & (pairs.R == 0).all(axis=1)
    distance = np.linalg.norm(vectors, axis=1)
    ranges = np.where(onsite, 0, 1 + np.searchsorted(EDGES, distance, side="right"))
    symbol = dict(zip(data.symbols, data.atoms.get_chemical_symbols(), strict=True))
    names: dict[str, dict[str, int]] = {kind: {} for kind in KINDS[1:]}
    names["distance"] = {name: k for k, name in enumerate(DISTANCES)}
    index = {kind: np.empty(matrix.offsets[-1], np.int16) for kind in names}

    def number(kind: str, name: str) -> int:
        return names[kind].setdefault(name, len(names[kind]))

    for a, b, p, elements in matrix.block_groups():
        first, second = symbol[a], symbol[b]
        index["element"][elements] = number("element", first)
        bond = number("pair", "-".join(sorted((first, second))))
        own = number("pair", f"{first} on site") if onsite[p].any() else bond
        index["pair"][elements] = np.where(onsite[p], own, bond)[:, None, None]
        index["distance"][elements] = ranges[p][:, None, None]
        shells = [
            [number("shells", _shell_pair(row, column)) for column in _angular_momenta(matrix, b)]
            for row in _angular_momenta(matrix, a)
        ]
        index["shells"][elements] = np.array(shells)
    return {kind: (names[kind], index[kind]) for kind in names}


def _angular_momenta(matrix: LCAOMatrix, species: str) -> ndarray:
    """l of each row that an atom has, in the order of the spinor index."""
    ls = matrix.basis.quantum_numbers(species)[:, 0]
    return np.repeat(ls, 2) if matrix.spin == "spinor" else ls


def _shell_pair(first: int, second: int) -> str:
    return "-".join("spdfghi"[l] for l in sorted((first, second)))


def _by_spin(error: LCAOMatrix, reference: LCAOMatrix) -> dict[str, Error]:
    """Errors of the parts of a Hamiltonian that act differently on the spin."""
    if error.spin == "unpolarised":
        return {"scalar": _error(np.abs(error.data)[np.abs(reference.data) > THRESHOLD])}
    if error.spin == "collinear":
        (up, down), (first, second) = error.data, reference.data
        parts = {"up": (up, first), "down": (down, second)}
        parts["scalar"] = ((up + down) / 2, (first + second) / 2)
        parts["vector"] = ((up - down) / 2, (first - second) / 2)
        return {
            name: _error(np.abs(value)[np.abs(size) > THRESHOLD])
            for name, (value, size) in parts.items()
        }
    collected: dict[str, list[Error]] = {}

    def add(name: str, values: ndarray, sizes: ndarray) -> None:
        collected.setdefault(name, []).append(_error(values[sizes > THRESHOLD]))

    for _, _, _, elements in error.block_groups():
        wrong, right = _spin_blocks(error, elements), _spin_blocks(reference, elements)
        for name, block in wrong.items():
            size = np.abs(right[name])
            add(f"{name} real", np.abs(block.real), size)
            add(f"{name} imaginary", np.abs(block.imag), size)
        parts = _scalar_and_vector(**wrong), _scalar_and_vector(**right)
        for name, values, sizes in zip(("scalar", "vector"), *parts, strict=True):
            add(name, values, sizes)
    return {name: merged(errors) for name, errors in collected.items()}


def _spin_blocks(matrix: LCAOMatrix, elements: ndarray) -> dict[str, ndarray]:
    blocks = matrix.data[elements]
    return {s + t: blocks[:, a::2, b::2] for a, s in enumerate("ud") for b, t in enumerate("ud")}


def _scalar_and_vector(
    uu: ndarray, ud: ndarray, du: ndarray, dd: ndarray
) -> tuple[ndarray, ndarray]:
    """|h| and |b| of ``h + b . sigma``, for each pair of orbitals."""
    vector = np.array([ud + du, 1j * (ud - du), uu - dd]) / 2
    return np.abs(uu + dd) / 2, np.linalg.norm(vector, axis=0)


__all__ = [
    "DISTANCES",
    "KINDS",
    "PARITY_EDGES",
    "MatrixErrors",
    "matrix_errors",
    "merged",
    "merged_by_label",
    "merged_matrix_errors",
    "parity",
]
