"""Projectors of pseudopotentials and their spin-orbit coupling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ase_nextham.basis import rotation_matrix
from ase_nextham.h0.native.projectors import angular_momentum, projectors
from ase_nextham.h0.native.upf import read_pseudopotential


@pytest.fixture
def oxygen(pseudo_dir):
    return read_pseudopotential(pseudo_dir / "O.upf")


@pytest.mark.parametrize("l", range(5))
def test_angular_momentum_obeys_its_commutators(l):
    x, y, z = 1j * angular_momentum(l)
    np.testing.assert_allclose(x @ y - y @ x, 1j * z, atol=1e-13)
    np.testing.assert_allclose(y @ z - z @ y, 1j * x, atol=1e-13)
    total = x @ x + y @ y + z @ z
    np.testing.assert_allclose(total, l * (l + 1) * np.eye(2 * l + 1), atol=1e-13)


@pytest.mark.parametrize("axis", range(3))
def test_angular_momentum_generates_rotations(axis):
    angle = 1e-6
    rotation = np.eye(3)
    b, c = (axis + 1) % 3, (axis + 2) % 3
    rotation[[b, c, b, c], [b, c, c, b]] = [
        np.cos(angle),
        np.cos(angle),
        -np.sin(angle),
        np.sin(angle),
    ]
    # Y(rotation @ r) = D Y(r), and the function f(r) = c.Y(r) turned by it has D c: exp(-i angle L)
    generator = (rotation_matrix(2, rotation) - np.eye(5)) / angle
    np.testing.assert_allclose(generator, angular_momentum(2)[axis], atol=1e-5)


def test_coefficients_project_on_total_angular_momentum(oxygen):
    unit = replace(oxygen, dij=np.eye(8))
    D, A_x, A_y, A_z = projectors(unit, spin_orbit=True).coefficients
    sigma = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
    full = np.kron(D, np.eye(2)) + 1j * sum(
        np.kron(A, s) for A, s in zip((A_x, A_y, A_z), sigma, strict=True)
    )
    first = 0
    for l, j in zip(oxygen.beta_l, oxygen.beta_j, strict=True):
        size = 2 * (2 * l + 1)
        P = full[first : first + size, first : first + size]
        np.testing.assert_allclose(P @ P, P, atol=1e-13)
        np.testing.assert_allclose(P, P.conj().T, atol=1e-13)
        assert np.trace(P).real == pytest.approx(2 * j + 1)
        first += size


def test_projectors_are_cut_at_an_odd_number_of_points(oxygen):
    kb = projectors(oxygen, spin_orbit=True)
    assert (kb.npoints % 2 == 1).all()
    for n, f in zip(kb.npoints, kb.r_beta, strict=True):
        assert np.abs(f[n + 1 :]).max() <= 1e-10
    assert 1 < kb.cutoff < 3
    assert kb.cutoff == kb.r[kb.npoints.max() - 1]


def test_averaging_what_does_not_depend_on_j_changes_nothing(oxygen):
    beta, dij = oxygen.beta.copy(), np.diag(oxygen.dij).copy()
    for p in (2, 4, 6):
        beta[p + 1], dij[p + 1] = beta[p], dij[p]
    averaged = projectors(replace(oxygen, beta=beta, dij=np.diag(dij)), spin_orbit=False)
    np.testing.assert_array_equal(averaged.l, [0, 0, 1, 1, 2])
    np.testing.assert_allclose(averaged.r_beta, beta[[0, 1, 2, 4, 6]])
    np.testing.assert_allclose(np.diag(averaged.coefficients[0])[:5], dij[[0, 1, 2, 2, 2]])


def test_averages_are_weighted_by_degeneracy(oxygen):
    averaged = projectors(oxygen, spin_orbit=False)
    lower, upper = (np.diag(oxygen.dij)[2], np.diag(oxygen.dij)[3])
    assert oxygen.beta_j[2] < oxygen.beta_j[3]
    assert averaged.coefficients[0][2, 2] == pytest.approx((lower + 2 * upper) / 3)


def test_projectors_in_another_order_give_the_same_ones(oxygen):
    order = [6, 2, 0, 3, 7, 4, 1, 5]
    mixed = replace(
        oxygen,
        beta=oxygen.beta[order],
        beta_l=oxygen.beta_l[order],
        beta_j=oxygen.beta_j[order],
        dij=oxygen.dij[np.ix_(order, order)],
    )
    found, expected = (projectors(data, spin_orbit=True) for data in (mixed, oxygen))
    np.testing.assert_array_equal(found.l, expected.l)
    np.testing.assert_allclose(
        [np.trace(c @ c.T) for c in found.coefficients],
        [np.trace(c @ c.T) for c in expected.coefficients],
    )


def test_impossible_requests_are_refused(oxygen):
    scalar = replace(oxygen, beta_j=None)
    with pytest.raises(ValueError, match="O: spin-orbit coupling needs a fully relativistic"):
        projectors(scalar, spin_orbit=True)
    alone = replace(
        oxygen,
        beta=oxygen.beta[:3],
        beta_l=oxygen.beta_l[:3],
        beta_j=oxygen.beta_j[:3],
        dij=oxygen.dij[:3, :3],
    )
    with pytest.raises(ValueError, match=r"O: projector 3 with l = 1, j = 0.5 is not followed by"):
        projectors(alone, spin_orbit=False)
    coupled = oxygen.dij.copy()
    coupled[2, 4] = coupled[4, 2] = 0.3
    with pytest.raises(ValueError, match="O: projectors that are coupled .* cannot be averaged"):
        projectors(replace(oxygen, dij=coupled), spin_orbit=False)
