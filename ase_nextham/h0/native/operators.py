"""S, T and r(R) of a structure: two-centre tables put into the blocks of all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham.h0.native.pairs import Layout
from ase_nextham.h0.native.radial import UniversalMesh
from ase_nextham.h0.native.twocenter import (
    KINETIC,
    TwoCentreTable,
    moment_set,
    radial_set,
)

_CHUNK = 2**21
"""Numbers that a temporary array of a portion of pairs may have: 16 MB."""


@dataclass(frozen=True, eq=False)
class OrbitalTables:
    """Tables for orbitals of two species, whose functions f(r) are given on meshes r.

    Parameters
    ----------
    overlap, kinetic
        Between the orbitals of the two.
    moment
        Between functions that make r times the orbitals of the first species, and the second.
    coefficients
        Make x, y and z times the orbitals of those functions, shape (3, norbitals, functions).
    """

    overlap: TwoCentreTable
    kinetic: TwoCentreTable
    moment: TwoCentreTable
    coefficients: ndarray

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return self.overlap.nbytes + self.kinetic.nbytes + self.moment.nbytes


def orbital_tables(mesh: UniversalMesh, bra: tuple, ket: tuple) -> OrbitalTables:
    """Tables of two species, each given as (l, r, functions)."""
    first, second = radial_set(mesh, *bra), radial_set(mesh, *ket)
    moments, coefficients = moment_set(mesh, *bra)
    return OrbitalTables(
        TwoCentreTable(mesh, first, second),
        TwoCentreTable(mesh, first, second, KINETIC),
        TwoCentreTable(mesh, moments, second),
        coefficients,
    )


@dataclass(frozen=True, eq=False)
class TwoCentreOperators:
    """What :func:`two_centre_operators` computes.

    Parameters
    ----------
    overlap
        Blocks of all pairs, shape (size,).
    kinetic
        -nabla^2 in Ry, blocks of ``Layout.direct`` alone, zero where not in ``Layout.half``.
    position
        x, y and z in Bohr with the origin of the home cell, blocks of all pairs, shape (3, size);
        or None.
    """

    overlap: ndarray
    kinetic: ndarray
    position: ndarray | None


def two_centre_operators(
    layout: Layout,
    kinds: ndarray,
    tables: Callable[[int, int], OrbitalTables],
    origins: ndarray | None,
) -> TwoCentreOperators:
    """S, T and r of all pairs.

    Parameters
    ----------
    kinds
        Species of each atom, shape (natoms,).
    tables
        Of two species a <= b.
    origins
        Positions of the atoms as given, in Bohr, shape (natoms, 3); None: without r.
    """
    overlap = np.zeros(layout.offsets[-1])
    kinetic = np.zeros(int((layout.rows * layout.columns)[layout.direct].sum()))
    position = None if origins is None else np.zeros((3, layout.offsets[-1]))
    for a, b, p, swapped in _portions(layout, kinds):
        table = tables(a, b)
        # of species (b, a) the reverse pairs (j, i, -R) are computed, whose species are (a, b)
        q, between = (
            (layout.pairs.reverse[p], -layout.vectors[p])
            if swapped
            else (
                p,
                layout.vectors[p],
            )
        )
        reverse = layout.pairs.reverse[q]
        S, T = table.overlap.blocks(between), table.kinetic.blocks(between)
        _put(overlap, layout.offsets[q], S)
        _put(overlap, layout.offsets[reverse], S.swapaxes(1, 2))
        _put(kinetic, layout.direct_offsets[p], T.swapaxes(1, 2) if swapped else T)
        if position is None:
            continue
        moments = table.moment.blocks(between)
        for axis in range(3):
            r = table.coefficients[axis] @ moments
            own = origins[layout.pairs.i[q], axis]
            other = origins[layout.pairs.j[q], axis] - between[:, axis]
            _put(position[axis], layout.offsets[q], r + own[:, None, None] * S)
            r += other[:, None, None] * S
            _put(position[axis], layout.offsets[reverse], r.swapaxes(1, 2))
    return TwoCentreOperators(overlap, kinetic, position)


def _portions(layout: Layout, kinds: ndarray) -> Iterator[tuple[int, int, ndarray, bool]]:
    """Species a <= b, some pairs to compute, and whether their species are (b, a) instead."""
    pairs = np.intersect1d(layout.half, layout.direct, assume_unique=True)
    kind_i, kind_j = kinds[layout.pairs.i[pairs]], kinds[layout.pairs.j[pairs]]
    for a in range(kinds.max() + 1):
        for b in range(kinds.max() + 1):
            alike = pairs[(kind_i == a) & (kind_j == b)]
            if not len(alike):
                continue
            # functions for r have up to twice the orbitals, and their radial tables are as large
            size = 4 * int(layout.rows[alike[0]] * layout.columns[alike[0]])
            for p in np.array_split(alike, -(-len(alike) * size // _CHUNK)):
                yield min(a, b), max(a, b), p, a > b


def _put(data: ndarray, starts: ndarray, blocks: ndarray) -> None:
    """Blocks (n, rows, columns) at the given places of a flat array."""
    size = blocks.shape[1] * blocks.shape[2]
    data[starts[:, None] + np.arange(size)] = blocks.reshape(-1, size)
