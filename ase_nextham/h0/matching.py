"""Whether two Atoms are the same crystal, and which order and lattice translations lead over.

Programs reorder atoms (STRU groups them by species) and move them by lattice vectors (ABACUS wraps
them into the cell). Both change the labels of matrix elements and nothing else.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from numpy import ndarray
from scipy.spatial import cKDTree

CELL_TOLERANCE = 1e-4
"""Angstrom that a component of a cell vector may differ by."""

POSITION_TOLERANCE = 1e-3
"""Angstrom that an atom may be away from its partner."""


class NoMatch(ValueError):
    """Two structures are not the same crystal.

    Attributes
    ----------
    distance
        How far they are apart, in Angstrom: the largest distance of an atom from its partner, or
        the largest difference of a cell vector component; infinite if atoms or species differ.
    """

    def __init__(self, message: str, distance: float):
        super().__init__(message)
        self.distance = distance


def match(stored: Atoms, wanted: Atoms) -> tuple[ndarray, ndarray]:
    """Order and translations that take the atoms of one structure to those of another.

    Species are compared by chemical symbol, cells vector by vector. The cell is periodic in all
    directions, whatever ``pbc`` says: ABACUS has no other.

    Returns
    -------
    (order, shifts)
        Atom a of ``wanted`` is atom ``order[a]`` of ``stored``, moved by ``shifts[a] @ cell``:
        the arguments of ``LCAOData.permuted`` and ``translated``, in this order.

    Raises
    ------
    NoMatch
        Naming the first atom of ``wanted`` without a partner, or what else differs.
    """
    if sorted(stored.numbers) != sorted(wanted.numbers):
        raise NoMatch(
            f"the atoms are {stored.get_chemical_formula('metal')}, not "
            f"{wanted.get_chemical_formula('metal')}",
            np.inf,
        )
    if wanted.cell.rank < 3:
        raise NoMatch("the atoms asked for have no cell in three dimensions", np.inf)
    cell = stored.cell.array
    difference = float(np.abs(cell - wanted.cell.array).max())
    if difference > CELL_TOLERANCE:
        raise NoMatch(
            f"the cell vectors differ by up to {difference:.3g} Angstrom (equivalent cells with "
            "other vectors are not recognised)",
            difference,
        )
    order = np.full(len(wanted), -1)
    distance = np.zeros(len(wanted))
    # fractions of its own cell each: what the cells differ by is not counted again
    have, want = (np.linalg.solve(a.cell.array.T, a.positions.T).T for a in (stored, wanted))
    for number in np.unique(wanted.numbers):
        ours, theirs = (np.flatnonzero(atoms.numbers == number) for atoms in (stored, wanted))
        near, distance[theirs] = _partners(have[ours], want[theirs], cell)
        order[theirs] = ours[near]
    far = np.flatnonzero(distance > POSITION_TOLERANCE)
    taken, counts = np.unique(order, return_counts=True)
    if len(far):
        a = int(far[0])
        raise NoMatch(
            f"atom {a} ({wanted.symbols[a]}) has no partner: the nearest {wanted.symbols[a]} is "
            f"{distance[a]:.3g} Angstrom away",
            float(distance.max()),
        )
    if (counts > 1).any():
        pair = np.flatnonzero(order == taken[np.argmax(counts > 1)])
        raise NoMatch(f"atoms {pair[0]} and {pair[1]} stand in the same place", np.inf)
    return order, np.rint(want - have[order]).astype(int)


def _partners(ours: ndarray, theirs: ndarray, cell: ndarray) -> tuple[ndarray, ndarray]:
    """For each of ``theirs`` (fractional) the nearest of ``ours``, and its distance in Angstrom."""
    # cKDTree wants [0, 1), and -1e-17 % 1.0 is 1.0
    folded, asked = (np.mod(x, 1.0) % 1.0 for x in (ours, theirs))
    tree = cKDTree(folded, boxsize=1.0)
    # nearest in fractions need not be nearest in space if the cell is skewed: look at several
    near = tree.query(asked, k=range(1, min(len(ours), 8) + 1))[1]
    away = asked[:, None, :] - folded[near]
    away -= np.rint(away)
    distances = np.linalg.norm(away @ cell, axis=-1)
    best = np.argmin(distances, axis=1)
    rows = np.arange(len(theirs))
    return near[rows, best], distances[rows, best]
