"""The 54 x 54 blocks of NextHAM's programs: 4s2p2d1f for every atom, twice for spin.

Each atom has 27 places: shells of l = 0, 0, 0, 0, 1, 1, 2, 2, 3, with the order and signs of
``"openmx"`` inside a shell. Elements with fewer shells leave the last ones of each l empty; a mask
of ones and zeros beside the blocks says which places are taken. Spin is the slower index:
27 places of spin up, then 27 of spin down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy import ndarray

from ase_nextham.basis import Basis, convention_matrix
from ase_nextham.matrix import AtomPairs, LCAOMatrix

SHELLS = (0, 0, 0, 0, 1, 1, 2, 2, 3)
"""Angular momentum of each of the nine shells of an atom."""

PLACES = 27
"""Places of an atom, without spin."""

SIZE = 2 * PLACES
"""Rows of a block."""

_FIRST = np.cumsum([0, *(2 * l + 1 for l in SHELLS)])
_CHUNK = 1024  # edges that are worked on at once: 24 MB a block of complex64
_ORDERS = ("up first, then down", "up and down in turn", "permuted twice")


def shells_of_mask(taken: ndarray) -> tuple[tuple[int, ...], str]:
    """Shells of an atom, from the places that the mask says are taken.

    Parameters
    ----------
    taken
        Diagonal of the mask of the atom with itself, of ones and zeros, shape (54,).

    Returns
    -------
    (tuple of int, str)
        Angular momentum of each shell, and the order of spin in the mask in words. Released
        programs that do not belong together leave masks in other orders than the blocks.

    Raises
    ------
    ValueError
        If no order of spin makes whole shells of it.
    """
    taken = np.asarray(taken) != 0
    orders = [np.arange(SIZE)]
    # where each place of a spin-major mask is found after 0, 1, ... permutations too few or many
    interleaved = np.arange(SIZE).reshape(PLACES, 2).T.ravel()
    orders += [interleaved, np.argsort(interleaved)]
    for order, words in zip(orders, _ORDERS, strict=True):
        up, down = taken[order].reshape(2, PLACES)
        shells = [up[a:b] for a, b in pairwise(_FIRST)]
        there = [bool(shell.all()) for shell in shells]
        whole = all(shell.all() or not shell.any() for shell in shells)
        # missing shells are the last of their l
        ordered = all(there[n] or not there[n + 1] for n in range(8) if SHELLS[n] == SHELLS[n + 1])
        if np.array_equal(up, down) and whole and ordered and any(there):
            return tuple(l for l, is_there in zip(SHELLS, there, strict=True) if is_there), words
    raise ValueError(
        "the places that its mask says are taken are not whole shells of 4s2p2d1f, the same for "
        "both spins"
    )


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the orbitals of one species stand.

    Parameters
    ----------
    place
        Row in a block of each orbital with spin, index ``2 * orbital + spin``.
    sign
        1 or -1: ours times this is what stands there.
    """

    place: ndarray
    sign: ndarray

    @classmethod
    def of(cls, shells: Sequence[int], species: str) -> Rows:
        """For shells in any order.

        Raises
        ------
        ValueError
            If there are more than 4s2p2d1f, naming the species.
        """
        places, signs, used = [], [], set()
        for l in shells:
            free = [n for n, other in enumerate(SHELLS) if other == l and n not in used]
            if not free:
                raise ValueError(
                    f"{species} has {list(shells).count(l)} shells of l = {l}, but NextHAM's "
                    "blocks have place for 4s2p2d1f only"
                )
            used.add(free[0])
            change = convention_matrix(l, "openmx") @ convention_matrix(l, "abacus").T
            new = np.argmax(np.abs(change), axis=0)
            places.append(_FIRST[free[0]] + new)
            signs.append(change[new, np.arange(2 * l + 1)])
        place = np.concatenate(places)[:, None] + PLACES * np.arange(2)
        return cls(place.ravel(), np.repeat(np.concatenate(signs), 2))


def rows_by_species(basis: Basis) -> dict[str, Rows]:
    """:class:`Rows` of every species of a basis in ABACUS's convention."""
    return {name: Rows.of(shells, name) for name, shells in basis.shells.items()}


def matrix_of_blocks(
    blocks: ndarray, edge: ndarray, basis: Basis, symbols: Sequence[str], pairs: AtomPairs
) -> LCAOMatrix:
    """A spinor operator from blocks of 54 x 54.

    Parameters
    ----------
    blocks
        Shape (nedges, 54, 54).
    edge
        Which block belongs to each pair, shape (npairs,).

    Returns
    -------
    LCAOMatrix
        Places that are not taken are left out, whatever stands there.
    """
    rows = rows_by_species(basis)
    norbitals = np.array([2 * basis.norbitals(name) for name in symbols])
    data = np.empty(int((norbitals[pairs.i] * norbitals[pairs.j]).sum()), complex)
    matrix = LCAOMatrix(basis, tuple(symbols), pairs, "spinor", data)
    for a, b, p, elements in _groups(matrix):
        here = np.ix_(edge[p], rows[a].place, rows[b].place)
        data[elements] = blocks[here] * (rows[a].sign[:, None] * rows[b].sign)
    return LCAOMatrix(basis, tuple(symbols), pairs, "spinor", data)


def blocks_of_matrix(matrix: LCAOMatrix, edge: ndarray, nedges: int) -> ndarray:
    """Blocks of 54 x 54, complex64, of a spinor operator; zero where no orbital is.

    Parameters
    ----------
    edge
        Where the block of each pair goes, -1 for pairs to leave out; shape (npairs,).
    """
    rows = rows_by_species(matrix.basis)
    blocks = np.zeros((nedges, SIZE, SIZE), np.complex64)
    for a, b, p, elements in _groups(matrix):
        kept = edge[p] >= 0
        here = np.ix_(edge[p[kept]], rows[a].place, rows[b].place)
        blocks[here] = matrix.data[elements[kept]] * (rows[a].sign[:, None] * rows[b].sign)
    return blocks


def _groups(matrix: LCAOMatrix) -> Iterator[tuple[str, str, ndarray, ndarray]]:
    """Groups of pairs of two species as the matrix yields them, in portions."""
    for a, b, p, elements in matrix.block_groups():
        for start in range(0, len(p), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield a, b, p[part], elements[part]


@cache
def flat_order() -> ndarray:
    """Place in a flattened block of each number of NextHAM's flat blocks, shape (4, 729).

    For the spins up-up, up-down, down-up, down-down: the blocks of 9 x 9 pairs of shells one
    after another, each row-major.
    """
    index = np.arange(SIZE * SIZE).reshape(2, PLACES, 2, PLACES)
    order = [
        np.concatenate(
            [
                index[s, _FIRST[a] : _FIRST[a + 1], t, _FIRST[b] : _FIRST[b + 1]].ravel()
                for a in range(9)
                for b in range(9)
            ]
        )
        for s in range(2)
        for t in range(2)
    ]
    return np.array(order)
