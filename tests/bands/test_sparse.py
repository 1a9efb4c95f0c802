"""Bands of large cells near one energy, and electron counts without all eigenvalues."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from ase_nextham import hdf5
from ase_nextham.bands import (
    bands_near,
    eigenvalues,
    electrons_below,
    fermi_level,
    fermi_level_sparse,
    kmesh,
    sparse,
    spin_degeneracy,
)
from ase_nextham.bands.factorization import SingularMatrixError, atom_levels, factorize
from ase_nextham.data import LCAOData
from ase_nextham.matrix import SPINS
from ase_nextham.testing import random_lcao

GAMMA, ZONE_FACE, GENERAL = (0.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.1, -0.3, 0.2)


@pytest.fixture(scope="module")
def silicon(root) -> LCAOData:
    return hdf5.read(root / "tests/data/bands/Si2.h5")


@pytest.fixture(scope="module")
def aluminium(root) -> LCAOData:
    return hdf5.read(root / "tests/data/bands/Al.h5")


def unfolded(kpts, repeat) -> np.ndarray:
    """k-points of the primitive cell that a supercell has at ``kpts``, one after another."""
    inside = np.indices(repeat).reshape(3, -1).T
    return ((np.atleast_2d(kpts)[:, None] + inside) / repeat).reshape(-1, 3)


def folded_bands(data: LCAOData, k, repeat) -> np.ndarray:
    eps = eigenvalues(data.hamiltonian, data.overlap, unfolded(k, repeat))
    return np.sort(eps.reshape(len(eps), -1), axis=1)


def assert_bands(found, expected: np.ndarray, atol: float = 1e-9) -> None:
    eps, first = found
    for spin, (energies, start) in enumerate(zip(eps, first, strict=True)):
        bands = expected[spin, start : start + len(energies)]
        assert_allclose(energies, bands, rtol=0, atol=atol)  # eV


# --- bands near an energy -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [GAMMA, ZONE_FACE, GENERAL])
@pytest.mark.parametrize("repeat", [(3, 3, 3), (1, 1, 25), (1, 2, 9)])
def test_bands_near_the_gap_of_a_silicon_supercell_are_the_folded_bands(silicon, k, repeat):
    supercell = silicon.repeated(repeat)
    found = bands_near(supercell.hamiltonian, supercell.overlap, k, 6.7, 16)
    assert_bands(found, folded_bands(silicon, k, repeat))


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize("k", [GAMMA, GENERAL])
def test_bands_near_an_energy_are_those_of_the_dense_solver(spin, k):
    data = random_lcao(1, "GaAsGaAsSi", spin=spin, magnetic=True)
    dense = eigenvalues(data.hamiltonian, data.overlap, np.array([k]))[:, 0]
    for energy in (-2.0, 0.3):
        found = bands_near(data.hamiltonian, data.overlap, k, energy, 9)
        assert_bands(found, dense)
        nearest = np.sort(np.argsort(np.abs(dense - energy), axis=1)[:, :9], axis=1)
        assert_array_equal(nearest[:, 0], found[1])


def test_windows_anywhere_hold_all_copies_of_degenerate_bands(silicon):
    repeat = (3, 3, 3)  # 16-fold degeneracies at Gamma
    supercell = silicon.repeated(repeat)
    expected = folded_bands(silicon, GAMMA, repeat)
    rng = np.random.default_rng(0)
    for energy, nbands in zip(rng.uniform(-6, 30, 8), rng.integers(1, 40, 8), strict=True):
        found = bands_near(supercell.hamiltonian, supercell.overlap, GAMMA, energy, int(nbands))
        assert_bands(found, expected)


def test_equal_atoms_that_do_not_interact_have_all_their_copies():
    atom = random_lcao(1, "Si", cutoff=1.0)
    repeat = (3, 3, 4)  # every level 36 times; K^-1 S has only as many eigenvalues as the atom
    crystal = atom.repeated(repeat)
    expected = folded_bands(atom, GAMMA, repeat)
    energy = expected[0, 100] + 0.01
    assert_bands(bands_near(crystal.hamiltonian, crystal.overlap, GAMMA, energy, 80), expected)


@pytest.mark.parametrize("distance", [0.0, 1e-13, 1e-7, -3e-6, 2e-5])
def test_an_energy_on_a_band_is_no_obstacle(silicon, distance):
    repeat = (2, 2, 2)
    supercell = silicon.repeated(repeat)
    expected = folded_bands(silicon, GENERAL, repeat)
    energy = expected[0, 31] + distance
    found = bands_near(supercell.hamiltonian, supercell.overlap, GENERAL, energy, 5)
    assert_bands(found, expected)
    assert found[1][0] <= 31 < found[1][0] + 5


def test_all_bands_of_a_small_matrix_can_be_asked_for(silicon):
    expected = eigenvalues(silicon.hamiltonian, silicon.overlap, np.array([GENERAL]))[:, 0]
    eps, first = bands_near(silicon.hamiltonian, silicon.overlap, GENERAL, 6.7, 26)
    assert_allclose(eps, expected, rtol=0, atol=1e-9)  # eV
    assert first[0] == 0


def test_the_same_call_gives_the_same_numbers(silicon):
    supercell = silicon.repeated((2, 2, 2))
    found = [bands_near(supercell.hamiltonian, supercell.overlap, GAMMA, 6.7) for _ in range(2)]
    assert_array_equal(found[0][0], found[1][0])


def test_spin_orbit_bands_of_a_gaas_supercell_are_the_folded_bands(root):
    data = hdf5.read(root / "examples/data/GaAs_soc.h5")
    data = LCAOData(data.atoms, data.overlap, hamiltonian=data.hamiltonian)
    repeat = (1, 1, 4)
    supercell = data.repeated(repeat)
    found = bands_near(supercell.hamiltonian, supercell.overlap, GENERAL, 7.7, 12)
    assert_bands(found, folded_bands(data, GENERAL, repeat))


def test_a_number_of_bands_that_there_is_not_is_refused(silicon):
    for nbands in (0, 27):
        with pytest.raises(ValueError, match="nbands must be between 1 and 26"):
            bands_near(silicon.hamiltonian, silicon.overlap, GAMMA, 6.7, nbands)


def test_too_little_memory_is_said_before_the_work_begins(silicon, monkeypatch):
    supercell = silicon.repeated((2, 2, 2))
    monkeypatch.setattr(sparse, "available_bytes", lambda: 10**5)
    for k, advice in ((GENERAL, r" \(half of it at Gamma"), (GAMMA, ", but")):
        with pytest.raises(MemoryError, match=f"dimension 208 takes 0.0 GB{advice}"):
            bands_near(supercell.hamiltonian, supercell.overlap, k, 6.7)


def test_an_unstable_block_factorisation_gives_way_to_the_dense_one(silicon, monkeypatch):
    backward_error = sparse._backward_error

    def unstable(matrix, factorization):
        return 1.0 if len(factorization.blocks) > 1 else backward_error(matrix, factorization)

    repeat = (1, 1, 9)
    supercell = silicon.repeated(repeat)
    monkeypatch.setattr(sparse, "_backward_error", unstable)
    with pytest.warns(UserWarning, match="unstable at 6.7.* as one dense matrix instead"):
        found = bands_near(supercell.hamiltonian, supercell.overlap, GAMMA, 6.7, 6)
    assert_bands(found, folded_bands(silicon, GAMMA, repeat))


def test_a_hamiltonian_that_is_not_hermitian_is_refused(silicon):
    for wrong in (1e-3, np.nan):
        values = silicon.hamiltonian.data.copy()
        values[5] += wrong
        hamiltonian = replace(silicon.hamiltonian, data=values)
        with pytest.raises(ValueError, match="is not Hermitian, or not finite"):
            bands_near(hamiltonian, silicon.overlap, GENERAL, 6.7, 4)


def test_bands_that_fail_the_test_of_their_residual_are_not_returned(silicon, monkeypatch):
    monkeypatch.setattr(sparse, "RESIDUAL_TOLERANCE", 1e-18)
    with pytest.raises(ArithmeticError, match=r"residual \|\|H c - eps S c\|\|"):
        bands_near(silicon.hamiltonian, silicon.overlap, GENERAL, 6.7, 4)


# --- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", SPINS)
def test_electrons_below_an_energy_are_counted_as_from_all_eigenvalues(spin):
    data = random_lcao(2, "GaAsSi", spin=spin, magnetic=True)
    kpts = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 3))
    weights = spin_degeneracy(spin) * np.array([0.2, 0.3, 0.5])
    eps = eigenvalues(data.hamiltonian, data.overlap, kpts)
    for energy in (-50.0, -1.0, 0.2, 50.0):
        expected = weights @ (eps < energy).sum(axis=(0, 2))
        found = electrons_below(data.hamiltonian, data.overlap, kpts, weights, energy)
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("guess", [0.0, 6.8, 40.0])
@pytest.mark.parametrize("width", [0.01, 0.05])
def test_the_fermi_level_of_a_large_insulator_is_that_from_all_bands(silicon, guess, width):
    assert_same_fermi_level(silicon, (2, 2, 2), guess=guess, width=width)


@pytest.mark.parametrize("width", [0.01, 0.05])
def test_the_fermi_level_of_a_large_metal_is_that_from_all_bands(aluminium, width):
    assert_same_fermi_level(aluminium, (3, 3, 3), guess=8.0, width=width)


def test_the_fermi_level_is_found_across_a_gap_wider_than_the_window():
    data = random_lcao(1, "Si", cutoff=1.0)  # levels of an atom, 2 electrons
    levels = np.linalg.eigvalsh(data.hamiltonian.at_k(GAMMA))
    crystal = replace(data, nelectrons=2.0).repeated((2, 2, 3))
    level = fermi_level_sparse(
        crystal.hamiltonian, crystal.overlap, [GAMMA], [2.0], 24.0, guess=levels[0], nbands=4
    )
    assert level == pytest.approx(levels[:2].mean(), abs=0.02)  # eV; degeneracies shift it by kT


@pytest.mark.parametrize("spin", ["collinear", "spinor"])
def test_the_fermi_level_of_a_magnet_is_that_from_all_bands(spin):
    data = random_lcao(3, "GaAsSi", spin=spin, magnetic=True)
    kpts, weights = np.array([GAMMA, GENERAL]), np.array([0.4, 0.6])
    expected = fermi_level(
        eigenvalues(data.hamiltonian, data.overlap, kpts), weights, 17.0, width=0.01
    )
    found = fermi_level_sparse(data.hamiltonian, data.overlap, kpts, weights, 17.0, nbands=8)
    assert found == pytest.approx(expected, abs=1e-6)  # eV


def assert_same_fermi_level(data: LCAOData, repeat, guess: float, width: float) -> None:
    supercell = data.repeated(repeat)
    mesh = kmesh(supercell.atoms, (2, 1, 1), symmetry=False)
    kpts = unfolded(mesh.kpts, repeat)
    eps = eigenvalues(data.hamiltonian, data.overlap, kpts)
    share = np.repeat(mesh.weights, np.prod(repeat)) / np.prod(repeat)
    expected = fermi_level(eps, 2 * share, data.nelectrons, width=width)
    found = fermi_level_sparse(
        supercell.hamiltonian,
        supercell.overlap,
        mesh.kpts,
        2 * mesh.weights,
        supercell.nelectrons,
        guess=guess,
        width=width,
    )
    assert found == pytest.approx(expected, abs=1e-6)  # eV; the tail beyond 12 widths is cut


@pytest.mark.parametrize("nelectrons", [0.0, 52.0, -3.0])
def test_electrons_that_the_bands_cannot_hold_are_refused(silicon, nelectrons):
    with pytest.raises(ValueError, match="hold between 0 and 52 electrons"):
        fermi_level_sparse(silicon.hamiltonian, silicon.overlap, [GAMMA], [2.0], nelectrons)


def test_the_benchmark_prints_a_table_with_exact_bands(root):
    script = root / "benchmarks/supercell_bands.py"
    run = subprocess.run(
        [sys.executable, script, "--atoms", "40"], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in run.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [(row[0], row[1]) for row in rows] == [("2x2x2", "16"), ("2x2x4", "32")]
    assert all(float(row[-1]) < 1e-9 for row in rows)  # eV


# --- the factorisation --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("sizes", [(1,), (60,), (1, 30, 80, 17), (200, 150)])
def test_a_block_factorisation_solves_and_counts_as_numpy_does(dtype, sizes):
    rng = np.random.default_rng(0)
    n = sum(sizes)
    levels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    matrix = rng.normal(size=(n, n)).astype(dtype)
    if dtype is complex:
        matrix += 1j * rng.normal(size=(n, n))
    matrix = matrix + matrix.conj().T
    matrix[np.abs(levels[:, None] - levels) > 1] = 0
    factorization = factorize(csr_array(matrix), levels)
    assert factorization.negative == (np.linalg.eigvalsh(matrix) < 0).sum()
    rhs = rng.normal(size=(n, 3)).astype(dtype)
    assert_allclose(matrix @ factorization.solve(rhs), rhs, rtol=0, atol=1e-9)


def test_pivots_of_two_rows_count_one_negative_eigenvalue():
    swap = np.kron(np.eye(4), [[0.0, 2.0], [2.0, 0.0]])  # no diagonal to pivot on
    factorization = factorize(csr_array(swap), np.zeros(8, int))
    assert factorization.negative == 4
    assert_allclose(factorization.solve(np.eye(8)), swap / 4, atol=1e-15)


def test_a_singular_matrix_is_said_to_be_so():
    with pytest.raises(SingularMatrixError, match="pivot 2 is zero"):
        factorize(csr_array(np.diag([1.0, 0.0, 2.0])), np.zeros(3, int))


@pytest.mark.parametrize("repeat", [(2, 2, 2), (1, 1, 12), (1, 5, 1)])
def test_atoms_of_pairs_are_in_the_same_or_adjacent_levels(silicon, repeat):
    supercell = silicon.repeated(repeat)
    levels = atom_levels(supercell.pairs, len(supercell.atoms))
    assert np.abs(levels[supercell.pairs.i] - levels[supercell.pairs.j]).max() <= 1
    assert_array_equal(np.unique(levels), np.arange(levels.max() + 1))
    if repeat == (1, 1, 12):
        assert levels.max() >= 3


def test_atoms_without_connection_share_the_levels():
    crystal = random_lcao(1, "Si", cutoff=1.0).repeated((2, 2, 1))
    assert_array_equal(atom_levels(crystal.pairs, 4), 0)


def test_a_shift_that_makes_a_pivot_zero_is_moved(silicon, monkeypatch):
    shifts = []

    def fails_at_first(matrix, levels):
        shifts.append(matrix)
        if len(shifts) == 1:
            raise SingularMatrixError("pivot 1 is zero")
        return factorize(matrix, levels)

    expected = bands_near(silicon.hamiltonian, silicon.overlap, [0, 0, 0], 6.0, 4)[0]
    monkeypatch.setattr(sparse, "factorize", fails_at_first)
    found = bands_near(silicon.hamiltonian, silicon.overlap, [0, 0, 0], 6.0, 4)[0]
    assert len(shifts) == 2
    assert_allclose(found, expected, atol=1e-9)  # eV


def test_a_matrix_that_is_always_singular_is_given_up(silicon, monkeypatch):
    def fails(matrix, levels):
        raise SingularMatrixError("pivot 1 is zero")

    monkeypatch.setattr(sparse, "factorize", fails)
    with (
        pytest.warns(UserWarning, match="the block factorisation is unstable at"),
        pytest.raises(ArithmeticError, match="H - sigma S cannot be factorised at .* is S"),
    ):
        bands_near(silicon.hamiltonian, silicon.overlap, [0, 0, 0], 6.0, 4)
