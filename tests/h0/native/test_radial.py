"""Integrals and transforms of radial functions."""

from __future__ import annotations

import numpy as np
import pytest

from ase_nextham.h0.native.orbitals import normalised_functions
from ase_nextham.h0.native.radial import UniversalMesh, simpson_weights
from ase_nextham.h0.orb import read_orb


@pytest.mark.parametrize("n", [3, 4, 7, 10, 701])
def test_simpsons_rule_is_exact_for_cubic_polynomials(n):
    x = np.linspace(-1, 2, n)
    values = 4 * x**3 - 3 * x**2 + 2 * x - 5
    exact = (2**4 - 1) - (2**3 + 1) + (2**2 - 1) - 15
    assert simpson_weights(n) @ values * (x[1] - x[0]) == pytest.approx(exact, abs=1e-12)


def test_the_mesh_is_that_of_abacus():
    mesh = UniversalMesh(7.0)
    assert mesh.npoints == 701
    assert mesh.r[1] == pytest.approx(0.02)
    assert mesh.r[-1] == pytest.approx(14)
    assert mesh.k[-1] == pytest.approx(np.pi / 0.02)


@pytest.mark.parametrize("l", range(5))
def test_the_transform_of_a_gaussian_is_a_gaussian(l):
    mesh = UniversalMesh(7.0)
    found = mesh.to_k(l, mesh.r ** (l + 2) * np.exp(-(mesh.r**2)))
    exact = mesh.k**l * np.exp(-(mesh.k**2) / 4) / 2 ** (l + 1.5)
    np.testing.assert_allclose(found, exact, atol=1e-10)


@pytest.mark.parametrize("l", range(5))
def test_there_and_back_is_the_function_with_its_limit(l):
    mesh = UniversalMesh(7.0)
    function = mesh.r**l * np.exp(-(mesh.r**2))
    transform = mesh.to_k(l, mesh.r**2 * function)
    back = mesh.to_r(l, mesh.k**2 * transform) / (4 * np.pi) * np.sqrt(2 / np.pi)
    np.testing.assert_allclose(back, function, atol=1e-10)
    limit = mesh.limit(l, mesh.k**2 * transform) / (4 * np.pi) * np.sqrt(2 / np.pi)
    assert limit == pytest.approx(1, abs=1e-6)  # high powers of k weigh rounding


def test_resampled_functions_end_where_they_ended():
    mesh = UniversalMesh(7.0)
    r = 0.01 * np.arange(301)
    found = mesh.resampled(r, np.stack([np.cos(r), r**3]))
    np.testing.assert_allclose(found[:, mesh.r <= 3], [np.cos(mesh.r[:151]), mesh.r[:151] ** 3])
    assert not found[:, mesh.r > 3.005].any()


def test_orbitals_have_the_norm_one(orbital_dir):
    orbitals = read_orb(orbital_dir / "O_gga_7au_100Ry_2s2p1d.orb")
    functions = normalised_functions(orbitals)
    norm = (functions**2 * orbitals.mesh**2) @ simpson_weights(701) * orbitals.spacing
    np.testing.assert_allclose(norm, 1, rtol=1e-14)
    np.testing.assert_allclose(functions, orbitals.functions, rtol=1e-3)
