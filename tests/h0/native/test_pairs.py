"""The list of pairs is complete and has nothing else."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ase_nextham.h0.native import pairs as pairs_module
from ase_nextham.h0.native.pairs import (
    Neighbours,
    layout,
    neighbours,
    through_projectors,
    vectors,
)

CELLS = {
    "cubic": np.diag([4.0, 4.0, 4.0]),
    "skewed": np.array([[5.0, 0, 0], [4.5, 2.0, 0], [-3.0, 1.5, 6.0]]),
    "flat": np.diag([2.5, 3.0, 25.0]),
}


def rows(some):
    return sorted(
        (int(i), int(j), *map(int, R)) for i, j, R in zip(some.i, some.j, some.R, strict=True)
    )


def structure(name, natoms=4):
    rng = np.random.default_rng(len(name))
    cell = CELLS[name]
    return cell, rng.random((natoms, 3)) @ cell, rng.uniform(1.0, 3.5, natoms)


def brute_force(cell, tau, reach_i, reach_j, extent=9):
    for i, j in product(range(len(tau)), repeat=2):
        for R in product(range(-extent, extent + 1), repeat=3):
            if np.linalg.norm(tau[j] + R @ cell - tau[i]) < reach_i[i] + reach_j[j]:
                yield i, j, *R


@pytest.mark.parametrize("name", CELLS)
def test_neighbours_are_those_of_a_search_through_all_cells(name):
    cell, tau, reach = structure(name)
    found = neighbours(cell, tau, reach, 0.5 * reach)
    assert rows(found) == sorted(brute_force(cell, tau, reach, 0.5 * reach))


def test_atoms_without_reach_have_no_neighbours():
    cell, tau, reach = structure("cubic")
    none = np.where(np.arange(4) == 2, -1.0, reach)
    assert 2 not in neighbours(cell, tau, reach, none).j
    assert 2 in neighbours(cell, tau, reach, none).i


@pytest.fixture(params=CELLS)
def joined(request):
    """A structure, how far its orbitals reach, and which projectors they reach."""
    cell, tau, reach = structure(request.param, natoms=3)
    found = neighbours(cell, tau, reach, 0.4 * reach)
    order = np.argsort(found.j, kind="stable")
    return cell, tau, reach, Neighbours(found.i[order], found.j[order], found.R[order])


def test_pairs_join_through_every_projector_that_both_atoms_reach(joined, monkeypatch):
    _, tau, *_, entries = joined
    monkeypatch.setattr(pairs_module, "_PORTION", 500)  # so that there are several portions
    found, centres = set(), []
    for first, last, some in through_projectors(entries, len(tau)):
        centres += range(first, last)
        found |= set(rows(some))
    assert centres == list(range(len(tau)))
    reached = {}
    for i, k, *R in rows(entries):
        reached.setdefault(i, []).append((k, np.array(R)))
    expected = set()
    for i, j in product(range(len(tau)), repeat=2):
        for (k, R), (other, S) in product(reached[i], reached[j]):
            if k == other:
                expected.add((i, j, *map(int, R - S)))
    assert found == expected


def test_blocks_are_the_direct_pairs_and_those_through_projectors(joined):
    cell, tau, reach, entries = joined
    images = np.array([[0, 0, 0], [1, -2, 0], [0, 3, -1]])
    norbitals = np.array([1, 4, 9])
    blocks = layout(cell, tau, images, norbitals, reach, entries)
    inside = Neighbours(blocks.pairs.i, blocks.pairs.j, blocks.R)
    through = set()
    for _, _, some in through_projectors(entries, len(tau)):
        through |= set(rows(some))
    direct = set(brute_force(cell, tau, reach, reach))
    assert set(rows(inside)) == direct | through
    picked = Neighbours(*(getattr(inside, name)[blocks.direct] for name in "ijR"))
    assert set(rows(picked)) == direct

    given = tau + images @ cell
    found = vectors(cell, given, blocks.pairs.i, blocks.pairs.j, blocks.pairs.R)
    np.testing.assert_allclose(found, blocks.vectors, atol=1e-10)
    sizes = norbitals[blocks.pairs.i] * norbitals[blocks.pairs.j]
    np.testing.assert_array_equal(np.diff(blocks.offsets), sizes)
    np.testing.assert_array_equal(
        np.diff(blocks.direct_offsets[blocks.direct]), sizes[blocks.direct][:-1]
    )


def test_half_of_the_pairs_and_their_reverses_are_all_pairs(joined):
    cell, tau, reach, entries = joined
    blocks = layout(cell, tau, np.zeros((3, 3), int), np.ones(3, int), reach, entries)
    both = np.union1d(blocks.half, blocks.pairs.reverse[blocks.half])
    np.testing.assert_array_equal(both, np.arange(len(blocks.pairs)))
