"""The potential of superposed atoms: sum rules, symmetry, limits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham.h0.native.formfactors import FormFactors
from ase_nextham.h0.native.planewaves import PlaneWaves
from ase_nextham.h0.native.potential import local_potential, superposition

CELL = np.array([[6.0, 0.3, 0.0], [-1.0, 5.5, 0.4], [0.2, 0.9, 6.5]])
TAU = np.array([[0.3, 0.2, 0.1], [2.9, 3.1, 3.6], [5.0, 1.0, 2.0]])
SPECIES = [0, 1, 0]
ECUT = 12.0


def gaussian_atom(charge: float, width: float, core: float = 0.0) -> FormFactors:
    """Electrons, and an ion whose charge is a Gaussian; both transforms are known."""
    q = 0.01 * np.arange(720)
    smooth = np.exp(-(q**2) / (4 * width))
    with np.errstate(invalid="ignore"):
        vloc = 8 * np.pi * charge * (np.exp(-(q**2) / 4) - np.exp(-(q**2) / 8)) / q**2
    vloc[0] = 8 * np.pi * charge * (1 / 8 - 1 / 4)
    # erf(r) is the potential of a Gaussian of exponent 1, the ion here has exponent 2
    return FormFactors(charge, 0.01, charge * smooth, core * smooth, vloc, 8 * np.pi * charge / 8)


ATOMS = [gaussian_atom(3.0, 0.8, core=0.5), gaussian_atom(5.0, 1.1)]


def potential(tau=TAU, species=SPECIES, atoms=ATOMS, moments=None, nspin=4, cell=CELL, **options):
    return local_potential(cell, tau, species, atoms, moments, nspin, ECUT, **options)


def test_superposed_atoms_hold_their_electrons():
    waves = PlaneWaves(CELL, ECUT)
    total = superposition(waves, TAU, SPECIES, ATOMS, [1.0, -0.5, 0.25])
    # the cores of the two atoms of the first species are part of the density
    assert_allclose(total.density[0, 0, 0] * waves.volume, 11 + 2 * 0.5, atol=1e-10)
    assert_allclose(total.magnetization[0, 0, 0] * waves.volume, 0.75, atol=1e-10)
    assert_allclose(waves.to_grid(total.density).mean() * waves.volume, 12, atol=1e-10)


def test_the_electrostatic_potential_is_that_of_the_gaussian_charges():
    waves = PlaneWaves(CELL, ECUT)
    total = superposition(waves, TAU, SPECIES, ATOMS, None)
    n = waves.shape
    for m in [(1, 0, 0), (-2, 1, 3), (0, -3, 2)]:
        g = np.array(m) @ waves.reciprocal
        g2 = g @ g
        expected = 0
        for tau, kind in zip(TAU, SPECIES, strict=True):
            charge, width = (3.0, 0.8) if kind == 0 else (5.0, 1.1)
            net = charge * (np.exp(-g2 / (4 * width)) - np.exp(-g2 / 8))
            expected += 8 * np.pi / g2 * net * np.exp(-1j * g @ tau) / waves.volume
        found = total.electrostatic[m[0] % n[0], m[1] % n[1], m[2]]
        assert_allclose(found, expected, atol=1e-10)  # Ry


def test_waves_beyond_the_cutoff_are_left_out():
    waves = PlaneWaves(CELL, ECUT)
    total = superposition(waves, TAU, SPECIES, ATOMS, None)
    m = np.stack(np.meshgrid(*waves.indices, indexing="ij"), axis=-1)
    beyond = ((m @ waves.reciprocal) ** 2).sum(axis=-1) > 4 * ECUT
    assert beyond.any()
    assert not total.density[beyond].any()
    assert total.density[~beyond].all()


def test_gradient_and_divergence_are_those_of_a_plane_wave():
    waves = PlaneWaves(CELL, ECUT)
    fractions = np.stack(
        np.meshgrid(*(np.arange(n) / n for n in waves.shape), indexing="ij"), axis=-1
    )
    m = np.array([2, -1, 1])
    g = m @ waves.reciprocal
    coefficients = waves.empty()
    coefficients[:] = 0
    coefficients[2, -1, 1] = 0.5  # cos(G.r), the other half stands for -G
    angle = 2 * np.pi * fractions @ m
    gradient = waves.gradient(coefficients)
    assert_allclose(gradient, -np.sin(angle) * g[:, None, None, None], atol=1e-12)
    laplacian = waves.empty()
    laplacian[:] = 0
    waves.subtract_divergence(gradient, laplacian)
    assert_allclose(waves.to_grid(laplacian), g @ g * np.cos(angle), atol=1e-11)


@pytest.mark.parametrize("moments", [None, [0.7, -0.2, 0.7]])
def test_an_atom_may_move_by_a_lattice_vector(moments):
    moved = TAU + np.array([[0, 0, 0], [1, -2, 0], [0, 0, 3]]) @ CELL
    assert_allclose(potential(moved, moments=moments).v, potential(moments=moments).v, atol=1e-10)


def test_moving_all_atoms_by_a_grid_step_moves_the_potential():
    v = potential().v
    n = v.shape[1:]
    moved = potential(TAU + np.array([3 / n[0], 0, -2 / n[2]]) @ CELL).v
    assert_allclose(moved, np.roll(v, (3, -2), axis=(1, 3)), atol=1e-10)  # Ry


def test_a_supercell_repeats_the_potential():
    cell = np.diag([4.0, 6.0, 6.5])
    v = potential(cell=cell).v
    double = np.diag([1.0, 1.0, 2.0]) @ cell
    tau = np.concatenate([TAU, TAU + cell[2]])
    twice = potential(tau, SPECIES * 2, cell=double).v
    assert twice.shape[3] == 2 * v.shape[3]  # which not every cell has
    assert_allclose(twice, np.concatenate([v, v], axis=3), atol=1e-9)  # Ry


def test_reversed_moments_exchange_the_spins():
    moments = np.array([0.7, -0.2, 0.4])
    up, down = potential(moments=moments).v
    down_, up_ = potential(moments=-moments).v
    assert_allclose([up, down], [up_, down_], atol=1e-12)
    assert np.abs(up - down).max() > 0.01


def test_no_moments_are_the_limit_of_small_moments():
    v = potential().v[0]
    up, down = potential(moments=[1e-7] * 3).v
    assert_allclose(0.5 * (up + down), v, atol=1e-6)
    assert_allclose(up, down, atol=1e-5)
    assert potential(moments=[0.0] * 3).v.shape[0] == 1


def test_different_moments_of_one_species_count_for_each_atom():
    # an atom of its own species with the same tables must give the same
    moments = [0.7, 0.1, -0.3]
    one = potential(moments=moments).v
    two = potential(species=[0, 1, 2], atoms=[*ATOMS, ATOMS[0]], moments=moments).v
    assert_allclose(one, two, atol=1e-12)


def test_numbers_of_spins_differ_only_where_the_density_nearly_vanishes():
    assert_allclose(potential(nspin=1).v, potential(nspin=4).v, atol=2e-4)


def test_threads_change_nothing():
    one, two = potential().v, potential(threads=3).v
    assert_allclose(one, two, atol=1e-12)


def test_moments_without_spin_are_refused():
    with pytest.raises(ValueError, match="nspin 1 has no spin"):
        potential(moments=[1.0, 0, 0], nspin=1)


def test_tables_of_a_smaller_cutoff_are_refused():
    with pytest.raises(ValueError, match="species 0 end at"):
        local_potential(CELL, TAU, SPECIES, ATOMS, None, 1, 40.0)
