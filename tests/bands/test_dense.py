"""Eigenvalues and eigenvectors at given k-points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from ase_nextham import hdf5
from ase_nextham.bands import eigenstates, eigenvalues
from ase_nextham.data import LCAOData
from ase_nextham.matrix import SPINS, LCAOMatrix
from ase_nextham.testing import random_lcao

K = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 3))


def bands_of(data: LCAOData, kpts=K) -> np.ndarray:
    return eigenvalues(data.hamiltonian, data.overlap, kpts)


@pytest.fixture(scope="module")
def silicon(root) -> LCAOData:
    return hdf5.read(root / "tests/data/bands/Si2.h5")


@pytest.fixture(scope="module")
def gaas(root) -> LCAOData:
    return hdf5.read(root / "examples/data/GaAs_soc.h5")


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize("magnetic", [False, True])
def test_eigenvalues_are_those_of_scipys_generalized_problem(spin, magnetic):
    data = random_lcao(1, "GaAsSi", spin=spin, magnetic=magnetic)
    h, s = data.hamiltonian.at_k(K), data.overlap.at_k(K)
    h = h if spin == "collinear" else h[None]
    s = [np.kron(m, np.eye(2)) if spin == "spinor" else m for m in s]
    expected = [[eigh(a, b, eigvals_only=True) for a, b in zip(m, s, strict=True)] for m in h]
    assert_allclose(bands_of(data), expected, rtol=0, atol=1e-10)  # eV


@pytest.mark.parametrize("spin", SPINS)
def test_eigenvectors_solve_the_problem_and_are_orthonormal_in_s(spin):
    data = random_lcao(2, spin=spin, magnetic=True)
    eps, c = eigenstates(data.hamiltonian, data.overlap, K)
    h, s = data.hamiltonian.at_k(K), data.overlap.at_k(K)
    if spin == "spinor":
        s = np.stack([np.kron(m, np.eye(2)) for m in s])
    h = h if spin == "collinear" else h[None]
    assert_allclose(h @ c, s @ c * eps[:, :, None, :], rtol=0, atol=1e-10)  # eV
    identity = np.broadcast_to(np.eye(c.shape[-1]), c.shape)
    assert_allclose(c.conj().swapaxes(2, 3) @ s @ c, identity, atol=1e-11)
    assert_allclose(bands_of(data), eps, atol=1e-11)


def test_large_matrices_are_transformed_in_blocks_to_the_same_bands():
    data = random_lcao(3, "GaAs" * 8, cutoff=2.8)  # dimension 272: two blocks of rows
    k = K[:1]
    expected = eigh(data.hamiltonian.at_k(k[0]), data.overlap.at_k(k[0]), eigvals_only=True)
    assert_allclose(bands_of(data, k)[0, 0], expected, rtol=0, atol=1e-10)  # eV


def test_gamma_of_a_real_hamiltonian_is_solved_in_real_numbers_with_the_same_result(silicon):
    with_gamma = bands_of(silicon, np.array([[0, 0, 0], [0.1, 0.2, 0.3]]))
    alone = bands_of(silicon, np.zeros((1, 3)))
    assert_allclose(with_gamma[:, :1], alone, rtol=0, atol=1e-11)  # eV


def test_results_do_not_depend_on_how_many_kpoints_come_together(silicon):
    kpts = np.random.default_rng(1).uniform(-0.5, 0.5, (37, 3))
    together = bands_of(silicon, kpts)
    single = np.concatenate([bands_of(silicon, kpts[[k]]) for k in range(len(kpts))], axis=1)
    assert_allclose(together, single, rtol=0, atol=1e-10)  # eV
    assert_array_equal(together, bands_of(silicon, kpts))


@pytest.mark.parametrize("spin", SPINS)
def test_bands_do_not_change_when_atoms_move_by_lattice_vectors(spin):
    data = random_lcao(3, "GaAsSi", spin=spin, magnetic=True)
    moved = data.translated(np.array([[1, 0, -2], [0, 0, 0], [0, 3, 1]]))
    assert_allclose(bands_of(moved), bands_of(data), rtol=0, atol=1e-10)  # eV


@pytest.mark.parametrize("spin", SPINS)
def test_bands_do_not_change_when_atoms_are_permuted(spin):
    data = random_lcao(4, "GaAsGaAs", spin=spin)
    assert_allclose(bands_of(data.permuted([2, 0, 3, 1])), bands_of(data), rtol=0, atol=1e-10)


@pytest.mark.parametrize("spin", SPINS)
def test_bands_are_periodic_in_k(spin):
    data = random_lcao(5, spin=spin, magnetic=True)
    assert_allclose(bands_of(data, K + [1, -2, 3]), bands_of(data), rtol=0, atol=1e-10)  # eV


@pytest.mark.parametrize("spin", SPINS)
def test_bands_of_a_supercell_are_the_folded_bands(spin):
    data = random_lcao(6, spin=spin)
    repeat = np.array([2, 1, 3])
    unfolded = (K[0] + np.indices(repeat).reshape(3, -1).T) / repeat
    expected = np.sort(bands_of(data, unfolded).swapaxes(0, 1).ravel())
    found = bands_of(data.repeated(repeat), K[:1])
    assert_allclose(np.sort(found.ravel()), expected, rtol=0, atol=1e-10)  # eV


def test_bands_of_a_silicon_supercell_are_the_folded_bands(silicon):
    unfolded = (K[0] + np.indices((2, 2, 2)).reshape(3, -1).T) / 2
    found = bands_of(silicon.repeated((2, 2, 2)), K[:1])[0, 0]
    assert_allclose(found, np.sort(bands_of(silicon, unfolded).ravel()), rtol=0, atol=1e-9)  # eV


@pytest.mark.parametrize("spin", SPINS)
def test_adding_mu_s_shifts_all_bands_by_mu(spin):
    data = random_lcao(7, spin=spin, magnetic=True)
    shifted = data.hamiltonian + 1.7 * data.overlap.with_spin(spin)
    assert_allclose(eigenvalues(shifted, data.overlap, K), bands_of(data) + 1.7, atol=1e-10)  # eV


@pytest.mark.parametrize("spin", SPINS)
def test_k_and_minus_k_have_the_same_bands_without_magnetic_order(spin):
    data = random_lcao(8, spin=spin)
    assert_allclose(bands_of(data, -K), bands_of(data), rtol=0, atol=1e-10)  # eV


def test_k_and_minus_k_differ_for_a_magnetic_spinor():
    data = random_lcao(8, spin="spinor", magnetic=True)
    assert np.abs(bands_of(data, -K) - bands_of(data)).max() > 0.01  # eV


def test_collinear_bands_are_those_of_two_unpolarised_hamiltonians():
    data = random_lcao(9, spin="collinear", magnetic=True)
    matrix = data.hamiltonian
    for spin in range(2):
        alone = replace(matrix, spin="unpolarised", data=matrix.data[spin])
        expected = eigenvalues(alone, data.overlap, K)[0]
        assert_allclose(bands_of(data)[spin], expected, rtol=0, atol=1e-10)  # eV


def test_an_unpolarised_hamiltonian_written_with_spinors_doubles_each_band(silicon):
    spinor = silicon.hamiltonian.with_spin("spinor")
    expected = np.repeat(bands_of(silicon), 2, axis=2)
    assert_allclose(eigenvalues(spinor, silicon.overlap, K), expected, rtol=0, atol=1e-10)  # eV


def test_spin_orbit_bands_of_gaas_are_pairs_at_gamma(gaas):
    eps = bands_of(gaas, np.zeros((1, 3)))[0, 0]
    assert_allclose(eps[0::2], eps[1::2], rtol=0, atol=1e-5)  # eV; H has 8 printed digits


# --- ill-conditioned and wrong overlaps ---------------------------------------------------------


ENERGIES = np.array([-5.0, -3.0, -2.0, -2.0, 0.0, 1.0, 1.5, 4.0, 300.0])  # eV


def with_nearly_equal_orbitals(smallest: float) -> LCAOData:
    """A crystal of separate atoms with the levels ENERGIES, whose last two orbitals nearly agree.

    The last one is ``phi * cos + psi * sin`` with the one before it, ``phi``, and ``psi``, which
    has the highest energy: S has the eigenvalue sin^2 / 2.
    """
    data = random_lcao(1, "Si", cutoff=1.0)
    sine = np.sqrt(2 * smallest)
    turn = np.eye(len(ENERGIES))
    turn[-1, -2:] = np.sqrt(1 - sine**2), sine

    def onsite(block: np.ndarray) -> LCAOMatrix:
        return LCAOMatrix(data.basis, data.symbols, data.pairs, "unpolarised", block.ravel())

    assert len(data.pairs) == 1
    overlap, hamiltonian = onsite(turn @ turn.T), onsite(turn * ENERGIES @ turn.T)
    return LCAOData(data.atoms, overlap, hamiltonian=hamiltonian)


@pytest.mark.parametrize("spin", SPINS)
def test_a_nearly_singular_overlap_loses_its_highest_bands_and_says_so(spin):
    data = with_nearly_equal_orbitals(1e-11)
    hamiltonian = data.hamiltonian.with_spin(spin)
    with pytest.warns(UserWarning, match=r"nearly singular at 5 of 5 k-points.*is 1e-11"):
        eps, c = eigenstates(hamiltonian, data.overlap, K)
    lost = 2 if spin == "spinor" else 1
    assert np.isnan(eps[..., -lost:]).all()
    assert np.isfinite(eps[..., :-lost]).all()
    assert (c[..., -lost:] == 0).all()
    assert_allclose(eps[0, 0, :-lost:lost], np.sort(ENERGIES)[:-1], rtol=0, atol=1e-7)  # eV


def test_a_small_eigenvalue_above_the_threshold_keeps_all_bands():
    data = with_nearly_equal_orbitals(1e-7)
    assert_allclose(bands_of(data)[0, 0], np.sort(ENERGIES), rtol=0, atol=1e-6)  # eV


def test_an_overlap_with_a_negative_eigenvalue_is_refused(silicon):
    wrong = silicon.overlap - 2.0 * silicon.overlap.cut_to(silicon.pairs)[0]
    with pytest.raises(ValueError, match=r"overlap has the eigenvalue -.*positive definite"):
        eigenvalues(silicon.hamiltonian, wrong, K)


def test_a_hamiltonian_that_is_not_hermitian_is_refused(silicon):
    values = silicon.hamiltonian.data.copy()
    values[5] += 1e-3
    wrong = replace(silicon.hamiltonian, data=values)
    with pytest.raises(ValueError, match=r"Hamiltonian is not Hermitian at k = .* by 0\.001"):
        eigenvalues(wrong, silicon.overlap, K)


def test_numbers_that_are_not_finite_are_refused(silicon):
    values = silicon.hamiltonian.data.copy()
    values[7] = np.nan
    wrong = replace(silicon.hamiltonian, data=values)
    with pytest.raises(ValueError, match="Hamiltonian at k = .* not finite"):
        eigenvalues(wrong, silicon.overlap, K)


def test_matrices_of_different_atoms_are_refused(silicon):
    other = random_lcao(0, "SiSi")
    with pytest.raises(ValueError, match="different bases"):
        eigenvalues(silicon.hamiltonian, other.overlap, K)
    with pytest.raises(ValueError, match="different atoms"):
        eigenvalues(random_lcao(0, "GaAs").hamiltonian, other.overlap, K)
    with pytest.raises(ValueError, match="overlap must be unpolarised"):
        eigenvalues(silicon.hamiltonian, silicon.overlap.with_spin("spinor"), K)


def test_kpoints_of_another_shape_are_refused(silicon):
    with pytest.raises(ValueError, match=r"shape \(nkpts, 3\), not \(3,\)"):
        eigenvalues(silicon.hamiltonian, silicon.overlap, np.zeros(3))


def test_small_matrices_are_left_to_one_blas_thread(silicon, monkeypatch):
    asked = []

    def recorded(nthreads, user_api):
        asked.append(nthreads)
        return threadpool_limits(nthreads, user_api=user_api)

    monkeypatch.setattr("ase_nextham.bands.dense.threadpool_limits", recorded)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(4), raising=False)
    for threaded in (False, True):
        if threaded:
            monkeypatch.setattr("ase_nextham.bands.dense._THREADED", 1)
        bands_of(silicon, np.zeros((1, 3)))
    assert asked == [1, 4]


def test_a_progress_bar_is_shown_when_asked_for(silicon, capsys):
    eigenvalues(silicon.hamiltonian, silicon.overlap, K, progress=True)
    assert "bands" in capsys.readouterr().err
    bands_of(silicon)
    assert capsys.readouterr().err == ""
