"""The nonlocal potential of a structure, put into the blocks of all pairs.

Each centre adds ``B_i D B_j^T`` to the pairs of atoms whose orbitals reach its projectors, with
the overlaps ``B_i = <phi_i|beta>``: one matrix product for all its neighbours together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy import ndarray

from ase_nextham.h0.native.pairs import Layout, Neighbours, through_projectors
from ase_nextham.h0.native.twocenter import TwoCentreTable

_CHUNK = 2**21
"""Numbers that a temporary array may have: 16 MB."""


def add_nonlocal_potential(
    matrix: ndarray,
    layout: Layout,
    images: ndarray,
    kinds: ndarray,
    reach: Neighbours,
    between: ndarray,
    tables: Callable[[int, int], TwoCentreTable],
    coefficients: Sequence[ndarray],
) -> None:
    """Add the nonlocal potential to the pairs of ``layout.half``.

    Parameters
    ----------
    matrix
        Blocks of all pairs: real, shape (size,), or complex with the index 2 * orbital + spin,
        shape (4 * size,). In Ry.
    images
        As in :func:`~ase_nextham.h0.native.pairs.layout`.
    kinds
        Species of each atom, shape (natoms,).
    reach
        Pairs of an atom i whose orbitals reach the projectors of atom j in cell R, sorted by j.
    between
        Vectors of these pairs in Bohr.
    tables
        Overlaps of the orbitals of one species and the projectors of another.
    coefficients
        D of each species as in :class:`~ase_nextham.h0.native.projectors.Projectors`: four
        matrices for a complex ``matrix`` with spin-orbit coupling, else one.
    """
    from ase_nextham.h0.native.kernels import add_product, add_spinor_product

    natoms = len(kinds)
    nproj = np.array([d.shape[1] for d in coefficients])[kinds]
    norbitals = layout.norbitals[reach.i]
    starts = np.concatenate([[0], np.cumsum(norbitals * nproj[reach.j])])
    overlaps = _overlaps(starts, kinds, reach, between, tables)
    entries = np.searchsorted(reach.j, np.arange(natoms + 1))
    for first, last, joined in through_projectors(reach, natoms):
        pair = layout.pairs.find(joined.i, joined.j, joined.R + images[joined.i] - images[joined.j])
        pair[pair > layout.pairs.reverse[pair]] = -1
        for centre in range(first, last):
            mine = slice(entries[centre], entries[centre + 1])
            count = mine.stop - mine.start
            own, pair = pair[: count**2].reshape(count, count), pair[count**2 :]
            B = overlaps[starts[mine.start] : starts[mine.stop]].reshape(-1, nproj[centre])
            D = coefficients[kinds[centre]]
            begin = np.concatenate([[0], np.cumsum(norbitals[mine])])
            for a in _panels(count, len(D) * len(B) ** 2):
                rows = begin[a.start : a.stop + 1]
                product = (B[rows[0] : rows[-1]] @ D) @ B.T
                bounds = (rows - rows[0], begin)
                if np.iscomplexobj(matrix):
                    product = np.concatenate([product, np.zeros((4 - len(D), *product.shape[1:]))])
                    add_spinor_product(product, bounds, own[a], layout.offsets, matrix)
                else:
                    add_product(product[0], bounds, own[a], layout.offsets, matrix)


def _overlaps(
    starts: ndarray, kinds: ndarray, reach: Neighbours, between: ndarray, tables: Callable
) -> ndarray:
    """<phi_i|beta> of all entries, one block after another."""
    result = np.empty(starts[-1])
    kind_i, kind_j = kinds[reach.i], kinds[reach.j]
    for a in range(kinds.max() + 1):
        for b in range(kinds.max() + 1):
            alike = np.flatnonzero((kind_i == a) & (kind_j == b))
            if not len(alike):
                continue
            table = tables(a, b)
            size = table.bra.norbitals * table.ket.norbitals
            for some in np.array_split(alike, -(-len(alike) * max(size, table.width) // _CHUNK)):
                place = starts[some][:, None] + np.arange(size)
                result[place] = table.blocks(between[some]).reshape(len(some), size)
    return result


def _panels(count: int, size: int) -> list[slice]:
    """Portions of the neighbours such that products with all others stay small."""
    bounds = np.linspace(0, count, min(count, -(-size // _CHUNK)) + 1).astype(int)
    return [slice(a, b) for a, b in pairwise(bounds.tolist())]
