"""Densities of states and the parts of bands."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import trapezoid

from ase_nextham import hdf5
from ase_nextham.bands import dos, eigenvalues, fat_bands, fermi_level, kmesh_for, pdos
from ase_nextham.bands import spin_degeneracy as degeneracy
from ase_nextham.matrix import SPINS
from ase_nextham.testing import random_lcao

K = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 3))
ENERGIES = np.linspace(-30, 30, 2001)


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize("by", ["atom", "element", "l", ("element", "l"), ("atom", "l")])
def test_the_parts_of_a_band_sum_to_one_and_those_of_the_dos_to_the_dos(spin, by):
    data = random_lcao(1, "GaAsGa", spin=spin, magnetic=True)
    eps, shares, names = fat_bands(data.hamiltonian, data.overlap, K, by)
    assert shares.shape == (*eps.shape, len(names))
    assert_allclose(shares.sum(axis=3), 1, atol=1e-11)
    weights = degeneracy(spin) * np.array([0.1, 0.2, 0.3, 0.4])
    whole = dos(eps, weights, ENERGIES)
    assert_allclose(pdos(eps, weights, shares, ENERGIES).sum(axis=1), whole, atol=1e-10)


def test_groups_have_names_in_the_order_of_the_atoms():
    data = random_lcao(1, "GaAsGa")
    names = {by: fat_bands(data.hamiltonian, data.overlap, K, by)[2] for by in ("atom", "element")}
    assert names == {"atom": ["Ga0", "As1", "Ga2"], "element": ["Ga", "As"]}
    both = fat_bands(data.hamiltonian, data.overlap, K, ("element", "l"))[2]
    assert both == ["Ga s", "Ga p", "Ga d", "Ga f", "As s", "As p", "As d"]


def test_the_part_of_an_element_is_the_sum_over_its_atoms_and_over_its_shells():
    data = random_lcao(2, "GaAsGa", spin="spinor")
    shares = {
        by: fat_bands(data.hamiltonian, data.overlap, K, by)[1]
        for by in ("atom", "element", ("element", "l"))
    }
    assert_allclose(shares["element"][..., 0], shares["atom"][..., [0, 2]].sum(axis=3), atol=1e-12)
    by_shell = shares["element", "l"]
    assert_allclose(shares["element"][..., 0], by_shell[..., :4].sum(axis=3), atol=1e-12)


@pytest.mark.parametrize("spin", SPINS)
def test_the_dos_integrates_to_the_electrons_up_to_the_fermi_level(spin):
    data = random_lcao(3, spin=spin)
    mesh = kmesh_for(data.hamiltonian, data.atoms, (4, 4, 4))
    eps = eigenvalues(data.hamiltonian, data.overlap, mesh.kpts)
    weights = mesh.weights * degeneracy(spin)
    energies = np.linspace(eps.min() - 3, eps.max() + 3, 4001)
    density = dos(eps, weights, energies, width=0.3).sum(axis=0)
    step = energies[1] - energies[0]
    capacity = 2 * data.overlap.dimension
    assert density.sum() * step == pytest.approx(capacity, abs=1e-8)  # electrons
    # Gaussian levels filled up to E are Gaussian smearing with sqrt(2) times the width
    level = fermi_level(eps, weights, 7.0, width=0.3 * np.sqrt(2), smearing="gaussian")
    below = np.linspace(eps.min() - 3, level, 4001)
    electrons = trapezoid(dos(eps, weights, below, width=0.3).sum(axis=0), below)
    assert electrons == pytest.approx(7.0, abs=1e-5)


def test_the_upper_valence_band_of_silicon_is_mostly_p_and_its_bottom_is_s(root):
    data = hdf5.read(root / "tests/data/bands/Si2.h5")
    eps, shares, names = fat_bands(data.hamiltonian, data.overlap, np.zeros((1, 3)), "l")
    assert names == ["s", "p", "d"]
    assert shares[0, 0, 0, 0] > 0.9
    assert (shares[0, 0, 1:4, 1] > 0.8).all()
    by_atom = fat_bands(data.hamiltonian, data.overlap, np.zeros((1, 3)), "atom")[1]
    assert_allclose(by_atom[0, 0, :4].sum(axis=0), [2, 2], atol=1e-6)
    assert eps[0, 0, 3] - eps[0, 0, 0] == pytest.approx(12, abs=0.5)  # eV; the valence band's width


def test_the_d_bands_of_gaas_belong_to_gallium(root):
    data = hdf5.read(root / "examples/data/GaAs_soc.h5")
    eps, shares, names = fat_bands(data.hamiltonian, data.overlap, K, ("element", "l"))
    d_bands = (eps > -9) & (eps < -7)
    assert (shares[d_bands][:, names.index("Ga d")] > 0.9).sum() == 10 * len(K)


def test_missing_bands_have_no_density():
    eps = np.array([[[0.0, np.nan]]])
    shares = np.array([[[[1.0], [0.0]]]])
    assert_allclose(pdos(eps, [2.0], shares, ENERGIES)[:, 0], dos(eps[..., :1], [2.0], ENERGIES))


def test_unknown_groups_and_widths_are_refused():
    data = random_lcao(0)
    with pytest.raises(ValueError, match="unknown group of orbitals 'm'; known: atom, element, l"):
        fat_bands(data.hamiltonian, data.overlap, K, "m")
    with pytest.raises(ValueError, match="width must be positive"):
        dos(np.zeros((1, 1, 1)), [2.0], ENERGIES, width=0)
