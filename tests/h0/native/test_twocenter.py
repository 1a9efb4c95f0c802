"""Two-centre integrals against formulas and laws."""

from __future__ import annotations

import numpy as np
import pytest

from ase_nextham.basis import rotation_matrix
from ase_nextham.h0.native.harmonics import solid_harmonics
from ase_nextham.h0.native.radial import UniversalMesh
from ase_nextham.h0.native.twocenter import (
    KINETIC,
    TwoCentreTable,
    moment_set,
    projector_set,
    radial_set,
)

MESH = UniversalMesh(9.0)
R = 0.01 * np.arange(901)
WIDE, NARROW = 0.7, 1.3  # exponents of Gaussians that have vanished at 9 Bohr


def gaussians(l, exponents):
    values = [R**own * np.exp(-a * R**2) for own, a in zip(l, exponents, strict=True)]
    return tuple(l), R, np.array(values)


VECTORS = np.random.default_rng(0).normal(scale=1.5, size=(12, 3))


def test_overlap_and_kinetic_energy_of_gaussians():
    bra, ket = (radial_set(MESH, *gaussians([0], [a])) for a in (WIDE, NARROW))
    total, reduced = WIDE + NARROW, WIDE * NARROW / (WIDE + NARROW)
    d2 = (VECTORS**2).sum(axis=1)
    exact = (np.pi / total) ** 1.5 * np.exp(-reduced * d2) / (4 * np.pi)
    overlap = TwoCentreTable(MESH, bra, ket).blocks(VECTORS)[:, 0, 0]
    np.testing.assert_allclose(overlap, exact, atol=1e-10)
    kinetic = TwoCentreTable(MESH, bra, ket, KINETIC).blocks(VECTORS)[:, 0, 0]
    np.testing.assert_allclose(kinetic, reduced * (6 - 4 * reduced * d2) * exact, atol=1e-8)


L, EXPONENTS = [0, 0, 1, 2, 3], [0.7, 1.1, 0.8, 1.0, 0.9]


@pytest.fixture(scope="module")
def shells():
    return radial_set(MESH, *gaussians(L, EXPONENTS))


def quadrature(vector, weight=1.0):
    """Overlap on a grid in space, which converges exponentially for Gaussians."""
    x = np.arange(-7, 7.01, 0.2)
    points = np.stack(np.meshgrid(x, x, x, indexing="ij"), axis=-1).reshape(-1, 3)

    def orbitals(r):
        harmonics, r2 = solid_harmonics(3, r), (r**2).sum(axis=1)
        columns = [
            harmonics[:, l * l : (l + 1) ** 2] * np.exp(-a * r2)[:, None]
            for l, a in zip(L, EXPONENTS, strict=True)
        ]
        return np.concatenate(columns, axis=1)

    weights = 0.2**3 * (weight(points) if callable(weight) else np.ones(len(points)))
    return orbitals(points).T @ (orbitals(points - vector) * weights[:, None])


def test_overlaps_of_all_shells_are_those_of_a_sum_in_space(shells):
    vector = np.array([0.6, -0.9, 1.1])
    found = TwoCentreTable(MESH, shells, shells).blocks(vector[None])[0]
    np.testing.assert_allclose(found, quadrature(vector), atol=1e-8)


@pytest.mark.parametrize("axis", range(3))
def test_moments_are_those_of_a_sum_in_space(shells, axis):
    vector = np.array([0.6, -0.9, 1.1])
    moments, coefficients = moment_set(MESH, *gaussians(L, EXPONENTS))
    table = TwoCentreTable(MESH, moments, shells)
    found = coefficients[axis] @ table.blocks(vector[None])[0]
    np.testing.assert_allclose(found, quadrature(vector, lambda r: r[:, axis]), atol=1e-8)


@pytest.mark.parametrize("power", [2, KINETIC])
def test_integrals_turn_with_the_vector(shells, power):
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    table = TwoCentreTable(MESH, shells, shells, power)
    D = np.zeros((17, 17))
    first = 0
    for l in L:
        D[first : first + 2 * l + 1, first : first + 2 * l + 1] = rotation_matrix(l, rotation)
        first += 2 * l + 1
    turned = table.blocks(VECTORS @ rotation.T)
    np.testing.assert_allclose(turned, D @ table.blocks(VECTORS) @ D.T, atol=1e-11)


@pytest.mark.parametrize("power", [2, KINETIC])
def test_integrals_are_symmetric_and_smooth_at_zero_distance(shells, power):
    table = TwoCentreTable(MESH, shells, shells, power)
    there, back = table.blocks(VECTORS), table.blocks(-VECTORS)
    np.testing.assert_allclose(there, back.swapaxes(1, 2), atol=1e-11)
    near = table.blocks(np.array([[0.0, 0, 0], [0, 1e-9, 0]]))
    np.testing.assert_allclose(near[1], near[0], atol=1e-7)
    norms = [np.trace(block) for block in near]
    assert np.isfinite(norms).all()


def test_projectors_end_where_they_are_cut():
    r_beta = np.array([R * np.exp(-R), R**2 * np.exp(-R)])
    cut = projector_set(MESH, [0, 1], R, r_beta, [201, 301])
    for l, n, beta, values in zip([0, 1], [201, 301], r_beta, cut.values, strict=True):
        expected = MESH.to_k(l, MESH.resampled(R[:n], beta[:n]) * MESH.r)
        np.testing.assert_allclose(values, expected, atol=1e-14)


def test_species_without_projectors_have_empty_tables(shells):
    empty = projector_set(MESH, [], R, np.zeros((0, len(R))), [])
    assert TwoCentreTable(MESH, shells, empty).blocks(VECTORS).shape == (12, 17, 0)
