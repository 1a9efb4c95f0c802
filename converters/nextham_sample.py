"""What stands in the ``.pth`` files of NextHAM's programs.

All of them are lists or tuples, told apart by their length:

- 22 items, a **training** sample: structure, H(0), S, the correction, and wave functions;
- 8 items, an **inference** sample: H(0) and the edges, neither cell nor overlap;
- 9 items, a **prediction**: the network's Hamiltonian on the edges;
- 2 items, what their first step leaves, before energies are made eV: **intermediate**.

Energies are Rydberg times a constant, which is 13.6056980659 in one of their programs and 13.6 in
the others. Edges are pairs of atoms closer than 8 Angstrom, with the vector between them for R.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
from ase.data import atomic_numbers
from numpy import ndarray

from ase_nextham.inert_pickle import read_torch
from ase_nextham.matrix import AtomPairs

from .nextham_layout import SIZE

CUTOFF = 8.0
"""Angstrom: pairs of atoms that are farther from each other are in no sample."""

PRECISE = 13.6056980659
"""eV per Rydberg in samples of ``run_convert``."""

ROUNDED = 13.6
"""eV per Rydberg in samples of ``combine_data``, and in all inference samples and predictions."""

KINDS = ("training", "inference", "prediction", "intermediate")

_LENGTHS = {22: "training", 8: "inference", 9: "prediction", 2: "intermediate"}


@dataclass(frozen=True, eq=False)
class Sample:
    """One structure, as a file holds it.

    Parameters
    ----------
    where
        The file, for messages.
    kind
        Of :data:`KINDS`.
    i, j, vectors
        Edges: atoms, and the vector from one to the other in Angstrom, shapes (n,), (n,), (n, 3).
    elements
        Chemical symbol of each atom, or None in predictions.
    blocks
        Shape (n, 54, 54), by name: ``"h0"``, ``"change"``, ``"hamiltonian"``, ``"overlap"``.
    mask
        Ones where both orbitals exist, shape (n, 54, 54).
    rydberg
        eV per Rydberg, as far as the file tells; None if it does not.
    cell, positions
        In Angstrom, single precision; None but in training samples.
    name
        Of the sample, where it has one.
    """

    where: str
    kind: str
    i: ndarray
    j: ndarray
    vectors: ndarray
    elements: tuple[str, ...] | None
    blocks: Mapping[str, ndarray]
    mask: ndarray
    rydberg: float | None
    cell: ndarray | None = None
    positions: ndarray | None = None
    name: str | None = None


def kind_of(content: object) -> str | None:
    """Which of :data:`KINDS` the content of a torch file is, or None."""
    if not isinstance(content, (list, tuple)) or len(content) not in _LENGTHS:
        return None
    kind = _LENGTHS[len(content)]
    block = {"training": 18, "inference": 6, "prediction": 1}
    if kind == "intermediate":
        content = content[0]
        if not isinstance(content, (list, tuple)) or len(content) != 8:
            return None
        block["intermediate"] = 0
    array = content[block[kind]]
    fits = isinstance(array, ndarray) and array.ndim >= 3 and array.shape[-1] in (27, SIZE)
    return kind if fits else None


def read_sample(path: str | os.PathLike) -> Sample:
    """The sample in a file; the numbers stay in the file until they are used.

    Raises
    ------
    ValueError
        If the file is damaged, unsafe, or no sample, naming what was found.
    """
    content = read_torch(path)
    kind = kind_of(content)
    if kind is None:
        found = f"{len(content)} items" if isinstance(content, (list, tuple, dict)) else "no list"
        raise ValueError(
            f"{path}: not a sample of NextHAM: a {type(content).__name__} of {found}; expected "
            "lists of 22 items (training), 8 (inference), 9 (prediction) or 2 (intermediate), with "
            "blocks of 54 x 54"
        )
    return {
        "training": _training,
        "inference": _inference,
        "prediction": _prediction,
        "intermediate": _intermediate,
    }[kind](str(path), content)


def _training(where: str, items: Sequence) -> Sample:
    cell = _array(where, "lattice", items[1], (3, 3))
    positions = _array(where, "positions", items[2], (-1, 3))
    blocks = {"h0": items[18], "overlap": items[19], "change": items[21]}
    sample = _sample(where, "training", items[12:16], blocks, items[20], len(positions))
    origin, name = (item if isinstance(item, str) else "" for item in (items[0], items[16]))
    # run_convert stores the name under which it saves; combine_data the file that it started
    # from, and a number for a name
    itself = PurePath(origin.replace("\\", "/")).name in (name, f"{name}.pth")
    rydberg = None
    if name and itself:
        rydberg = PRECISE
    elif name.isdigit() and origin:
        rydberg = ROUNDED
    return replace(sample, cell=cell, positions=positions, name=name, rydberg=rydberg)


def _inference(where: str, items: Sequence) -> Sample:
    sample = _sample(where, "inference", items[2:6], {"h0": items[6]}, items[7])
    return replace(sample, rydberg=ROUNDED)


def _prediction(where: str, items: Sequence) -> Sample:
    edges = (*items[5:8], None)
    sample = _sample(where, "prediction", edges, {"hamiltonian": items[1]}, items[4])
    return replace(sample, rydberg=ROUNDED)


def _intermediate(where: str, items: Sequence) -> Sample:
    data, label = items
    blocks = {"h0": data[0], "overlap": data[1]}
    if isinstance(label, (list, tuple)) and label:
        blocks["change"] = label[0]
    sample = _sample(where, "intermediate", data[3:7], blocks, data[2])
    return replace(sample, rydberg=1.0)


def _sample(
    where: str,
    kind: str,
    edges: Sequence,
    blocks: Mapping[str, object],
    mask: object,
    natoms: int | None = None,
) -> Sample:
    vectors = _array(where, "edge vectors", edges[0], (-1, 3))
    n = len(vectors)
    i, j = (_array(where, f"atoms of edges ({k})", edges[k], (n,)) for k in (1, 2))
    for k, atoms in ((1, i), (2, j)):
        if n and (atoms.dtype.kind != "i" or atoms.min() < 0 or atoms.max() >= (natoms or n)):
            raise ValueError(
                f"{where}: the atoms of its edges ({k}) are not integers from 0 to "
                f"{(natoms or n) - 1}"
            )
    checked = {
        name: _array(where, f"blocks of {name}", array, (n, SIZE, SIZE))
        for name, array in blocks.items()
        if array is not None or kind != "intermediate"  # which may lack the overlap
    }
    mask = _array(where, "mask", mask, (n, SIZE, SIZE))
    elements = None
    if edges[3] is not None:
        elements = _elements(where, edges[3], i, j, natoms)
    return Sample(where, kind, i, j, vectors.astype(float), elements, checked, mask, None)


def _array(where: str, name: str, array: object, shape: tuple[int, ...]) -> ndarray:
    """An array of the shape, -1 for any length; a leading axis of 1 more is dropped."""
    found = np.shape(array) if isinstance(array, ndarray) else f"a {type(array).__name__}"
    if isinstance(array, ndarray):
        if array.ndim == len(shape) + 1 and len(array) == 1:
            array = array[0]
        fits = array.ndim == len(shape) and all(
            n in (-1, m) for n, m in zip(shape, array.shape, strict=True)
        )
        if fits and array.dtype.kind in "fciub":
            return array
    wanted = ", ".join("n" if n < 0 else str(n) for n in shape)
    hint = ""
    if isinstance(found, tuple) and found[-1:] == (27,):
        hint = "; samples without spin (27 x 27) are of no released program"
    raise ValueError(f"{where}: {name}: found {found}, expected numbers ({wanted}){hint}")


def _elements(
    where: str, listed: object, i: ndarray, j: ndarray, natoms: int | None
) -> tuple[str, ...]:
    """Element of each atom, from those of the edges."""
    pairs = listed if isinstance(listed, (list, tuple)) and len(listed) == len(i) else None
    if pairs is None or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise ValueError(f"{where}: it lists no pair of elements for each of its {len(i)} edges")
    natoms = int(max(i.max(initial=-1), j.max(initial=-1))) + 1 if natoms is None else natoms
    elements: list = [None] * natoms
    for edge, (pair, ends) in enumerate(
        zip(pairs, zip(i.tolist(), j.tolist(), strict=True), strict=True)
    ):
        for symbol, atom in zip(pair, ends, strict=True):
            if not isinstance(symbol, str) or symbol not in atomic_numbers or symbol == "X":
                raise ValueError(f"{where}: edge {edge} names an element that there is not")
            if elements[atom] not in (None, symbol):
                raise ValueError(
                    f"{where}: atom {atom} is {elements[atom]} in one edge and {symbol} in edge "
                    f"{edge}"
                )
            elements[atom] = symbol
    if None in elements:
        raise ValueError(f"{where}: atom {elements.index(None)} is in no edge")
    return tuple(elements)


def lattice_vectors(sample: Sample, cell: ndarray, positions: ndarray, tolerance: float) -> ndarray:
    """R of each edge, integer, shape (n, 3).

    Raises
    ------
    ValueError
        If one is not an integer, naming the edge: the edges are of another structure.
    """
    apart = sample.vectors - (positions[sample.j] - positions[sample.i])
    with np.errstate(invalid="ignore"):
        exact = np.linalg.solve(np.asarray(cell, float).T, apart.T).T
        R = np.rint(exact)
        wrong = ~(np.abs(exact - R) <= tolerance).all(axis=1) | (np.abs(R) > 10**6).any(axis=1)
    if wrong.any():
        e = int(np.argmax(wrong))
        vector = ", ".join(f"{x:.4f}" for x in sample.vectors[e])
        found = ", ".join(f"{x:.4f}" for x in exact[e])
        raise ValueError(
            f"{sample.where}: edge {e} (atoms {sample.i[e]} and {sample.j[e]}, {vector} Angstrom) "
            f"gives R = ({found}), which is not integer; its cell and positions are not those of "
            "its edges"
        )
    return R.astype(np.int64)


def sorted_pairs(sample: Sample, R: ndarray, kept: ndarray) -> tuple[AtomPairs, ndarray]:
    """The pairs of the edges that are kept, and the edge of each pair.

    Raises
    ------
    ValueError
        If an edge stands twice, or lacks its partner.
    """
    edge = np.flatnonzero(kept)
    try:
        pairs, order = AtomPairs.sort(sample.i[edge], sample.j[edge], R[edge])
    except ValueError as err:
        raise ValueError(f"{sample.where}: its edges do not make a matrix: {err}") from err
    return pairs, edge[order]
