"""Energies of ions and of a density: Madelung constants, and derivatives that are potentials."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from ase_nextham.h0.native.energy import (
    energy_in_potential,
    ewald_energy,
    exchange_correlation_energy,
    hartree_energy,
    nelectrons,
)
from ase_nextham.h0.native.potential import superposition
from ase_nextham.h0.native.xc import local_density

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
CUBIC = np.eye(3)
SKEWED = np.array([[6.0, 0.3, 0.0], [-1.0, 5.5, 0.4], [0.2, 0.9, 12.5]])
TAU = np.array([[0.3, 0.2, 0.1], [2.9, 3.1, 3.6], [5.0, 1.0, 9.0]])
CHARGES = np.array([3.0, 5.0, 1.0])


@pytest.mark.parametrize(
    ("cell", "second", "distance", "constant"),
    [
        (FCC, [0.5, 0, 0], 0.5, 1.747564594633),  # NaCl
        (CUBIC, [0.5, 0.5, 0.5], np.sqrt(3) / 2, 1.762674773071),  # CsCl
        (FCC, [0.25, 0.25, 0.25], np.sqrt(3) / 4, 1.638055053389),  # ZnS
    ],
    ids=["rock salt", "caesium chloride", "zincblende"],
)
def test_ionic_crystals_have_their_madelung_constants(cell, second, distance, constant):
    a = 7.3
    energy = ewald_energy(a * cell, a * np.array([[0, 0, 0], second]), [2.0, -2.0])
    assert_allclose(energy, -2 * 4 * constant / (a * distance), rtol=1e-11)


def test_one_charge_in_a_background_has_the_energy_of_the_cubic_lattice():
    # the electron gas crystallised on a simple cubic lattice; 2.837297 / (2 L) in Hartree
    assert_allclose(ewald_energy(4 * CUBIC, np.zeros((1, 3)), [1.0]), -2.837297479480 / 4)


def test_the_energy_of_ions_does_not_depend_on_how_the_crystal_is_described():
    expected = ewald_energy(SKEWED, TAU, CHARGES)
    moved = TAU + 0.7 + np.array([[1, -2, 0], [0, 0, 3], [5, 1, 0]]) @ SKEWED
    assert_allclose(ewald_energy(SKEWED, moved, CHARGES), expected, rtol=1e-12)
    other = np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]) @ SKEWED
    assert_allclose(ewald_energy(other, TAU, CHARGES), expected, rtol=1e-12)
    double = SKEWED * np.array([[1], [2], [1]])
    both = np.concatenate([TAU, TAU + SKEWED[1]])
    assert_allclose(ewald_energy(double, both, np.tile(CHARGES, 2)), 2 * expected, rtol=1e-12)


def test_ions_at_the_same_place_are_refused():
    with pytest.raises(ValueError, match="same place"):
        ewald_energy(SKEWED, np.array([TAU[0], TAU[0] + SKEWED[2]]), [1.0, 2.0])


@pytest.fixture(params=[1, 4])
def part(native, request):
    """OH under such pressure that the density is nowhere low, where PBE has no derivative."""
    atoms = Atoms(
        "OH",
        [[0.1, -0.2, 0.05], [0.85, 0.7, 0.8]],
        cell=[[2.4, 0.3, -0.2], [0.5, 2.2, 0.4], [-0.3, 0.6, 2.1]],
        pbc=True,
    )
    return native(nspin=request.param, ecutwfc=30).local_part(atoms)


def direction(part, seed: int = 5) -> np.ndarray:
    """A smooth change of the density."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(2, len(part.vectors))).T @ [1, 1j]
    waves *= np.exp(-np.einsum("gx,gx->g", part.vectors, part.vectors) / 2) / part.waves.volume
    return part.from_grid(part.to_grid(0.1 * waves))  # of a real function


def exchange_correlation_potential(part, change) -> np.ndarray:
    """On the grid: what is not electrostatic of the potential."""
    factors = [one.form_factors for one in part.elements]
    ions = superposition(part.waves, part.tau, part.kinds, factors, None).electrostatic
    waves = ions[part.inside] + part.coulomb * change
    return part.potential(change) - part.to_grid(waves) - ions[0, 0, 0].real


def derivative(function, part, change, along) -> float:
    step = 0.02
    values = [function(part, change + k * step * along) for k in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def test_the_potential_is_the_derivative_of_the_exchange_correlation_energy(part):
    along = direction(part)
    change = 0.3 * direction(part, seed=6)
    slope = derivative(exchange_correlation_energy, part, change, along)
    v = exchange_correlation_potential(part, change)
    expected = part.waves.volume * np.mean(v * part.to_grid(along))
    assert abs(expected) > 1e-3  # Ry
    assert_allclose(slope, expected, rtol=1e-8)


def test_eigenvalues_hold_the_potentials_times_the_valence_density(part):
    change, other = direction(part), direction(part, seed=6)
    v = exchange_correlation_potential(part, change)
    v = v + part.to_grid(part.coulomb * (part.valence + change))
    valence = part.to_grid(part.valence + other) + nelectrons(part) / part.waves.volume
    held = energy_in_potential(part, change, other)
    assert_allclose(held, part.waves.volume * np.mean(v * valence), rtol=1e-11)


def test_the_hartree_energy_is_that_of_its_potential(part):
    change = direction(part)
    v = part.to_grid(part.coulomb * (part.valence + change))
    expected = part.waves.volume / 2 * np.mean(v * part.to_grid(part.valence + change))
    assert expected > 1  # Ry
    assert_allclose(hartree_energy(part, change), expected, rtol=1e-12)


def test_the_uniform_gas_has_the_energy_of_the_local_density(part):
    # atoms and their cores taken away but for the average
    factors = [one.form_factors for one in part.elements]
    density = superposition(part.waves, part.tau, part.kinds, factors, None).density
    energy = exchange_correlation_energy(part, -density[part.inside])
    n = density[0, 0, 0].real
    expected = 2 * n * local_density(n)[0] * part.waves.volume
    assert_allclose(energy, expected, rtol=1e-10)


def test_two_ions_at_one_place_are_refused():
    with pytest.raises(ValueError, match="two ions are at the same place"):
        ewald_energy(SKEWED, np.zeros((2, 3)), [1.0, 2.0])
