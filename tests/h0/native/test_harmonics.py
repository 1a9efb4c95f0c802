"""Spherical harmonics and their Gaunt coefficients."""

from __future__ import annotations

import numpy as np
import pytest

from ase_nextham.basis import MAX_L, convention_matrix, real_harmonics
from ase_nextham.h0.native.harmonics import gaunt, solid_harmonics

VECTORS = np.random.default_rng(1).normal(size=(40, 3))


@pytest.mark.parametrize("l", range(MAX_L + 1))
def test_harmonics_are_those_of_the_table_of_conventions(l):
    expected = real_harmonics(l, VECTORS) @ convention_matrix(l, "abacus").T
    expected *= np.linalg.norm(VECTORS, axis=1)[:, None] ** l
    found = solid_harmonics(MAX_L, VECTORS)[:, l * l : (l + 1) ** 2]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_harmonics_are_defined_at_the_origin():
    values = solid_harmonics(4, np.zeros((1, 3)))[0]
    assert values[0] == pytest.approx(1 / np.sqrt(4 * np.pi))
    assert not values[1:].any()


@pytest.mark.parametrize(("l1", "l2"), [(0, 0), (1, 1), (2, 1), (3, 3), (4, 2)])
def test_products_of_harmonics_are_sums_of_harmonics(l1, l2):
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1)[:, None]
    Y = solid_harmonics(l1 + l2, unit)

    def of(l):
        return Y[:, l * l : (l + 1) ** 2]

    product = np.einsum("pa,pb->pab", of(l1), of(l2))
    total = sum(
        np.einsum("abc,pc->pab", gaunt(l1, l2, l), of(l)) for l in range(abs(l1 - l2), l1 + l2 + 1)
    )
    np.testing.assert_allclose(total, product, atol=1e-13)


def test_integrals_vanish_outside_the_triangle_and_for_odd_sums():
    assert not gaunt(1, 1, 3).any()
    assert not gaunt(2, 1, 2).any()
