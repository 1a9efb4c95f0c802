"""Which blocks there are: pairs of atoms whose orbitals meet, directly or through a projector.

S, T and the local potential join atoms whose orbitals overlap. The nonlocal potential joins, in
addition, atoms whose orbitals both reach a projector of a third one, so that H has blocks where S
has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy import ndarray
from scipy.spatial import cKDTree

from ase_nextham.matrix import AtomPairs, ranges

_PORTION = 2**19
"""Pairs through projectors that are held at a time."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Pairs of an atom ``i`` of the home cell and one ``j`` of cell ``R``, in any order.

    Parameters
    ----------
    i, j
        Shape (n,).
    R
        Integer, shape (n, 3).
    """

    i: ndarray
    j: ndarray
    R: ndarray

    def __len__(self):
        return len(self.i)


def vectors(cell: ndarray, tau: ndarray, i: ndarray, j: ndarray, R: ndarray) -> ndarray:
    """From atom i to atom j in cell R, shape (n, 3), in the units of ``cell`` and ``tau``."""
    return tau[j] - tau[i] + R @ cell


def neighbours(cell: ndarray, tau: ndarray, reach_i: ndarray, reach_j: ndarray) -> Neighbours:
    """All pairs nearer than ``reach_i[i] + reach_j[j]``, strictly; periodic in all directions.

    Parameters
    ----------
    cell, tau
        Cell vectors (3, 3) and positions (natoms, 3), the latter inside the cell.
    reach_i, reach_j
        Shape (natoms,), in the same units. Atoms with a negative reach have no pairs.
    """
    longest = reach_i.max() + reach_j.max()
    images, fractional = _images(cell, tau, longest)
    # an atom in cell R is of use only if it is near the box of the home atoms
    margin = longest * np.linalg.norm(np.linalg.inv(cell), axis=0)
    low, high = fractional.min(axis=0) - margin, fractional.max(axis=0) + margin
    places = fractional[None] + images[:, None]
    cells, atoms = np.nonzero(((places >= low) & (places <= high)).all(axis=2))
    away = cKDTree(tau[atoms] + images[cells] @ cell)
    near = cKDTree(tau).sparse_distance_matrix(away, longest * (1 + 1e-9), output_type="ndarray")
    i, there = near["i"], near["j"]
    j, R = atoms[there], images[cells[there]]
    distances = np.linalg.norm(vectors(cell, tau, i, j, R), axis=1)
    kept = (distances < reach_i[i] + reach_j[j]) & (reach_i[i] >= 0) & (reach_j[j] >= 0)
    return Neighbours(i[kept], j[kept], R[kept])


def _images(cell: ndarray, tau: ndarray, reach: float) -> tuple[ndarray, ndarray]:
    """Cells that may hold an atom within reach of a home atom, and fractional coordinates."""
    inverse = np.linalg.inv(cell)
    fractional = tau @ inverse
    # the columns of the inverse are the reciprocal vectors: 1 / their length is the layer spacing
    layers = reach * np.linalg.norm(inverse, axis=0)
    extent = np.ceil(layers + np.ptp(fractional, axis=0)).astype(int)
    grids = np.meshgrid(*(np.arange(-n, n + 1) for n in extent), indexing="ij")
    return np.stack(grids, axis=-1).reshape(-1, 3), fractional


def through_projectors(
    projectors: Neighbours, ncentres: int
) -> Iterator[tuple[int, int, Neighbours]]:
    """All pairs of atoms that reach the same projectors, for portions of the centres.

    Parameters
    ----------
    projectors
        Pairs of an atom i with orbitals and a centre j of projectors in cell R, sorted by j.

    Yields
    ------
    (first, last, pairs)
        Of the centres first ... last - 1, for every two entries a, b with the same centre, in the
        order of centre, a, b: the atoms a.i and b.i, which are R(a) - R(b) apart. The same pair may
        come several times.
    """
    count = np.bincount(projectors.j, minlength=ncentres)
    start = np.concatenate([[0], np.cumsum(count)])
    portion = np.cumsum(count**2) // _PORTION
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(portion)) + 1, [ncentres]])
    for first, last in pairwise(bounds.tolist()):
        entries = np.arange(start[first], start[last])
        partners = count[projectors.j[entries]]
        a = np.repeat(entries, partners)
        b = ranges(start[projectors.j[entries]], partners)
        # with the centre in the home cell, the atom of entry a is in cell -R(a), that of b in -R(b)
        yield (
            first,
            last,
            Neighbours(projectors.i[a], projectors.i[b], projectors.R[a] - projectors.R[b]),
        )


@dataclass(frozen=True, eq=False)
class Layout:
    """All blocks of S and H: where they are, and which of them have to be computed.

    Parameters
    ----------
    pairs
        Sorted, with R for the positions as given.
    R
        The same cells for the positions inside the cell, shape (npairs, 3).
    vectors
        From atom i to atom j, in Bohr, shape (npairs, 3).
    norbitals
        Of each atom, without spin, shape (natoms,).
    offsets
        Where each block begins, and the end, without spin; shape (npairs + 1,).
    half
        The pairs that are computed, those with p <= reverse[p]; the others are their conjugates.
    direct
        All pairs whose orbitals overlap: those of S, T and the local potential.
    direct_offsets
        Where the block of each pair begins in an array with the blocks of ``direct`` alone, in
        their order, shape (npairs,); -1 for all other pairs.
    """

    pairs: AtomPairs
    R: ndarray
    vectors: ndarray
    norbitals: ndarray
    offsets: ndarray
    half: ndarray
    direct: ndarray
    direct_offsets: ndarray

    @property
    def rows(self) -> ndarray:
        """Orbitals of atom i of each pair, shape (npairs,)."""
        return self.norbitals[self.pairs.i]

    @property
    def columns(self) -> ndarray:
        """Orbitals of atom j of each pair, shape (npairs,)."""
        return self.norbitals[self.pairs.j]


def layout(
    cell: ndarray,
    tau: ndarray,
    images: ndarray,
    norbitals: ndarray,
    orbital_cutoff: ndarray,
    projectors: Neighbours,
) -> Layout:
    """The blocks of a structure.

    Parameters
    ----------
    cell, tau
        Cell vectors and positions inside the cell, in Bohr.
    images
        Atom a is given at ``tau[a] + images[a] @ cell``; integer, shape (natoms, 3).
    norbitals, orbital_cutoff
        Of each atom; the latter in Bohr.
    projectors
        Which orbitals reach which projectors, sorted by j.
    """
    found = neighbours(cell, tau, orbital_cutoff, orbital_cutoff)
    for _, _, joined in through_projectors(projectors, len(tau)):
        found = _unique(found, joined)
    # in cell R + T_i - T_j was the atom that is in cell R since the atoms moved by -T into the cell
    i, j = found.i, found.j
    pairs, _ = AtomPairs.sort(i, j, found.R + images[i] - images[j])
    R = pairs.R - images[pairs.i] + images[pairs.j]
    between = vectors(cell, tau, pairs.i, pairs.j, R)
    sizes = norbitals[pairs.i] * norbitals[pairs.j]
    half = np.arange(len(pairs)) <= pairs.reverse
    reach = orbital_cutoff[pairs.i] + orbital_cutoff[pairs.j]
    direct = np.flatnonzero(np.linalg.norm(between, axis=1) < reach)
    direct_offsets = np.full(len(pairs), -1)
    direct_offsets[direct] = np.cumsum(sizes[direct]) - sizes[direct]
    return Layout(
        pairs,
        R,
        between,
        norbitals,
        np.concatenate([[0], np.cumsum(sizes)]),
        np.flatnonzero(half),
        direct,
        direct_offsets,
    )


def _unique(*several: Neighbours) -> Neighbours:
    """The pairs of several lists, each once."""
    i, j, R = (np.concatenate([getattr(one, name) for one in several]) for name in "ijR")
    reach = np.abs(R).max(axis=0)
    key = i * (int(j.max()) + 1) + j
    for axis in range(3):
        key = key * (2 * reach[axis] + 1) + R[:, axis] + reach[axis]
    where = np.unique(key, return_index=True)[1]
    return Neighbours(i[where], j[where], R[where])
