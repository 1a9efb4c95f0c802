"""Errors of matrix elements and of bands: exact values, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham import bands, comparison
from ase_nextham.comparison import THRESHOLD
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.testing import random_lcao
from ase_nextham.training import metrics, metrics_bands
from ase_nextham.training.dataset_statistics import Error

SPINS = ["unpolarised", "collinear", "spinor"]


def changed(matrix: LCAOMatrix, values: np.ndarray) -> LCAOMatrix:
    return replace(matrix, data=values)


def same(first: Error, second: Error, *, times: int = 1) -> None:
    assert first.count == times * second.count
    assert first.mean == pytest.approx(second.mean, rel=1e-9, abs=1e-12)  # eV
    assert first.largest == pytest.approx(second.largest, rel=1e-9, abs=1e-12)


def with_error_in(data, i: int, j: int, R, row: int, column: int, size: float) -> LCAOMatrix:
    """The self-consistent Hamiltonian with one element wrong, and the one that belongs to it."""
    matrix = data.hamiltonian
    values = matrix.data.copy()
    shape = matrix.norbitals[i], matrix.norbitals[j]
    p = int(matrix.pairs.find(i, j, R)[0])
    q = int(matrix.pairs.reverse[p])
    values[matrix.offsets[p] + row * shape[1] + column] += size
    values[matrix.offsets[q] + column * shape[0] + row] += np.conj(size)
    return changed(matrix, values)


# --- matrix elements -----------------------------------------------------------------------------


@pytest.mark.parametrize("spin", SPINS)
def test_the_gauge_error_is_that_of_least_squares_over_the_elements_that_are_there(spin):
    data = random_lcao(0, spin=spin)
    found = metrics.matrix_errors(data.h0, data)
    S = data.overlap.with_spin(spin).data
    difference = data.h0.data - data.hamiltonian.data
    mu = -np.vdot(S, difference).real / np.vdot(S, S).real
    counted = np.abs(data.hamiltonian.data) > THRESHOLD
    error = np.abs(difference + mu * S)[counted]
    assert found.mu == (pytest.approx(mu),) * 2
    assert found.total.count == counted.sum()
    assert found.total.mean == pytest.approx(error.mean(), rel=1e-12)
    assert found.total.largest == pytest.approx(error.max(), rel=1e-12)
    assert found.plain.mean == pytest.approx(np.abs(difference)[counted].mean(), rel=1e-12)


@pytest.mark.parametrize("spin", SPINS)
def test_a_multiple_of_the_overlap_changes_mu_and_the_plain_error_alone(spin):
    data = random_lcao(1, spin=spin)
    S = data.overlap.with_spin(spin)
    before = metrics.matrix_errors(data.h0, data)
    after = metrics.matrix_errors(data.h0 + 0.7 * S, data)
    assert after.mu[0] == pytest.approx(before.mu[0] - 0.7, abs=1e-12)
    assert abs(after.plain.mean - before.plain.mean) > 1e-4
    for kind in metrics.KINDS:
        for name, error in before.by[kind].items():
            same(after.by[kind][name], error)


def test_the_zero_of_the_source_gives_the_errors_of_its_own_hamiltonian():
    data = random_lcao(1)
    own = metrics.matrix_errors(data.h0, data)
    moved = replace(data, hamiltonian=data.hamiltonian + 0.3 * data.overlap)
    found = metrics.matrix_errors(data.h0, moved, zero=0.3)
    same(found.plain, own.plain)
    same(found.total, own.total)
    assert found.mu[0] == pytest.approx(own.mu[0], abs=1e-12)


@pytest.mark.parametrize("spin", SPINS)
def test_every_element_has_one_label_of_each_kind(spin):
    data = random_lcao(2, "GaAsH", spin=spin)
    found = metrics.matrix_errors(data.h0, data)
    for kind in ("element", "pair", "shells", "distance"):
        same(metrics.merged(found.by[kind].values()), found.total)
    assert set(found.by["element"]) == {"As", "Ga", "H"}
    assert set(found.by["pair"]) >= {"As on site", "Ga on site", "H on site", "As-Ga", "Ga-H"}
    assert set(found.by["shells"]) == {f"{a}-{b}" for a, b in _pairs("spdf")}


def _pairs(letters: str) -> list[tuple[str, str]]:
    return [(a, b) for k, a in enumerate(letters) for b in letters[k:]]


def test_one_wrong_element_shows_in_its_places_and_in_no_other():
    data = random_lcao(3, "GaAs")
    pairs = data.pairs
    distance = np.linalg.norm(
        data.atoms.positions[pairs.j]
        - data.atoms.positions[pairs.i]
        + pairs.R @ data.atoms.cell.array,
        axis=1,
    )
    p = int(np.flatnonzero((pairs.i == 0) & (pairs.j == 1) & (distance > 2) & (distance < 4))[0])
    # orbital 3 of Ga (2s2p1d1f) is of p, orbital 8 of As (2s2p1d) of d
    wrong = with_error_in(data, 0, 1, pairs.R[p], 3, 8, 0.4)
    found = metrics.matrix_errors(wrong, data)
    where = {
        kind: {name for name, error in found.by[kind].items() if error.largest > 0.2}
        for kind in metrics.KINDS
    }
    assert where == {
        "spin": {"scalar"},
        "element": {"Ga", "As"},
        "pair": {"As-Ga"},
        "shells": {"p-d"},
        "distance": {"2 - 4 A"},
    }


def test_elements_that_are_zero_in_the_self_consistent_hamiltonian_do_not_count():
    data = random_lcao(3, "GaAs")
    values = data.hamiltonian.data.copy()
    values[np.abs(values) < 0.1] = 0
    data = replace(data, hamiltonian=changed(data.hamiltonian, values))
    found = metrics.matrix_errors(data.h0, data)
    assert found.total.count == (np.abs(values) >= 0.1).sum() < len(values)


def test_a_spin_flip_of_the_error_is_of_the_vector_part():
    data = random_lcao(4, spin="spinor")
    orbitals = random_lcao(4).h0
    spins = np.array([[0, 1e-3j], [-1e-3j, 0]])  # along y
    values = np.zeros(data.hamiltonian.data.shape, complex)
    for (_, _, _, spinor), (_, _, _, orbital) in zip(
        data.hamiltonian.block_groups(), orbitals.block_groups(), strict=True
    ):
        values[spinor] = np.kron(np.ones(orbital.shape[1:]), spins)
    found = metrics.matrix_errors(changed(data.hamiltonian, data.hamiltonian.data + values), data)
    by = found.by["spin"]
    assert found.mu[0] == pytest.approx(0, abs=1e-12)
    for name in ("ud imaginary", "du imaginary", "vector"):
        assert by[name].mean == pytest.approx(1e-3, rel=1e-9)
    for name in ("uu real", "uu imaginary", "dd real", "dd imaginary", "ud real", "scalar"):
        assert by[name].largest < 1e-12
    flips = by["ud real"].count + by["du real"].count
    assert found.total.mean == pytest.approx(1e-3 * flips / found.total.count, rel=1e-9)
    assert 0.49 < flips / found.total.count <= 0.5  # those that time reversal forbids do not count


def test_the_parts_of_collinear_spin_are_half_sum_and_half_difference():
    data = random_lcao(5, spin="collinear", magnetic=True)
    values = data.hamiltonian.data + np.array([[0.004], [-0.002]])
    found = metrics.matrix_errors(changed(data.hamiltonian, values), data).by["spin"]
    mu = metrics.matrix_errors(changed(data.hamiltonian, values), data).mu[0]
    expected = np.abs(0.001 + mu * data.overlap.data)
    assert found["vector"].mean == pytest.approx(0.003, rel=1e-9)
    assert found["scalar"].mean == pytest.approx(expected.mean(), rel=1e-9)


@pytest.mark.parametrize("spin", SPINS)
def test_errors_do_not_depend_on_the_order_of_atoms_or_on_their_cells(spin):
    data = random_lcao(6, "GaAsH", spin=spin)
    expected = metrics.matrix_errors(data.h0, data)
    moved = data.permuted([2, 0, 1]).translated(np.array([[1, 0, 0], [0, -2, 1], [0, 0, 0]]))
    found = metrics.matrix_errors(moved.h0, moved)
    same(found.total, expected.total)
    for kind in metrics.KINDS:
        assert found.by[kind].keys() == expected.by[kind].keys()
        for name, error in expected.by[kind].items():
            same(found.by[kind][name], error)


def test_a_supercell_has_the_same_mean_errors():
    data = random_lcao(7)
    expected = metrics.matrix_errors(data.h0, data)
    repeated = data.repeated((2, 1, 3))
    found = metrics.matrix_errors(repeated.h0, repeated)
    for kind in metrics.KINDS:
        for name, error in expected.by[kind].items():
            same(found.by[kind][name], error, times=6)


def test_several_structures_weigh_by_their_elements():
    first, second = random_lcao(8, "GaAs"), random_lcao(9, "SiH")
    errors = [metrics.matrix_errors(data.h0, data) for data in (first, second)]
    found = metrics.merged_matrix_errors(errors)
    one, two = (e.total for e in errors)
    assert found.total.count == one.count + two.count
    mean = (one.count * one.mean + two.count * two.mean) / found.total.count
    assert found.total.mean == pytest.approx(mean, rel=1e-12)
    assert found.total.largest == max(one.largest, two.largest)
    assert list(found.by["element"]) == ["As", "Ga", "H", "Si"]
    same(found.by["element"]["Si"], errors[1].by["element"]["Si"])
    assert list(found.by["shells"])[:3] == ["s-s", "s-p", "s-d"]
    assert found.mu == tuple(sorted(e.mu[0] for e in errors))


def test_a_perfect_correction_is_on_the_diagonal_of_the_parity():
    data = random_lcao(10)
    counts = metrics.parity(data.hamiltonian + 0.5 * data.overlap, data)
    assert counts.sum() == (np.abs(data.hamiltonian.data) > THRESHOLD).sum()
    assert counts.sum() - np.trace(counts) <= 1e-3 * counts.sum()  # rounding at the edges of bins
    of_h0 = metrics.parity(data.h0, data)
    assert of_h0.sum() == counts.sum()
    assert_allclose(of_h0.sum(axis=1), counts.sum(axis=1))  # what is right does not depend on it


def test_without_a_self_consistent_hamiltonian_there_is_an_error():
    data = replace(random_lcao(0), hamiltonian=None)
    with pytest.raises(ValueError, match="no self-consistent Hamiltonian"):
        metrics.matrix_errors(data.h0, data)
    with pytest.raises(ValueError, match="no self-consistent Hamiltonian"):
        metrics_bands.reference(data, (2, 2, 2))


# --- bands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", SPINS)
def test_a_hamiltonian_with_another_energy_zero_has_the_same_bands(spin):
    data = random_lcao(0, spin=spin)
    reference = metrics_bands.reference(data, (2, 2, 2))
    moved = data.hamiltonian + 0.8 * data.overlap.with_spin(spin)
    found = metrics_bands.mesh_errors(moved, data, reference)
    assert found.shift[0] == pytest.approx(-0.8, abs=1e-9)
    assert found.total.count > 0
    assert found.total.largest < 1e-9
    assert found.ghosts == 0
    assert found.gap_error == pytest.approx(0, abs=1e-9)


def test_band_errors_do_not_depend_on_symmetry_or_on_the_order_of_atoms():
    data = random_lcao(1, "GaAsH")
    expected = metrics_bands.mesh_errors(data.h0, data, metrics_bands.reference(data, (3, 2, 2)))
    moved = data.permuted([1, 2, 0])
    found = metrics_bands.mesh_errors(moved.h0, moved, metrics_bands.reference(moved, (3, 2, 2)))
    same(found.total, expected.total)
    assert found.ghosts == expected.ghosts
    kpts = bands.kmesh(data.atoms, (3, 2, 2), symmetry=False, time_reversal=False).kpts
    reference = metrics_bands.reference(data, (3, 2, 2))
    eps = [bands.eigenvalues(h, data.overlap, kpts) for h in (data.h0, data.hamiltonian)]
    every = metrics_bands.band_errors(
        eps[0] + expected.shift[0], eps[1], reference.fermi_level, np.ones(len(kpts), int)
    )
    assert len(kpts) > len(reference.kpts)
    same(every.total, expected.total)
    assert every.ghosts == expected.ghosts


@pytest.mark.parametrize("spin", SPINS)
def test_the_spread_of_predictions_is_counted_as_errors_are(spin):
    data = random_lcao(2, spin=spin)
    reference = comparison.reference(data, (2, 2, 2))
    elements = comparison.gauge_mae(data.h0, data.hamiltonian, data.overlap)
    assert elements == pytest.approx(metrics.matrix_errors(data.h0, data).total.mean, rel=1e-12)
    of_bands = comparison.band_mae(data.h0, data.overlap, reference)
    expected = metrics_bands.mesh_errors(data.h0, data, reference).total.mean
    assert of_bands == pytest.approx(expected, rel=1e-12)
    assert min(elements, of_bands) > 1e-3  # eV


def levels(*energies: float, nkpts: int = 4) -> np.ndarray:
    """Flat bands at ``nkpts`` k-points."""
    return np.tile(np.array(energies, float), (1, nkpts, 1))


def flat(*energies: float, filled: int, fermi_level: float = 0.0) -> metrics_bands.Reference:
    eps = levels(*energies)
    occupations = np.zeros_like(eps)
    occupations[..., :filled] = 1
    return metrics_bands.Reference(
        kpts=np.zeros((4, 3)),
        multiplicity=np.array([1, 2, 2, 3]),
        eps=eps,
        occupations=occupations,
        fermi_level=fermi_level,
        gap=1.0,
        condition=np.array([5.0, 50.0, 60.0, 700.0]),
    )


def test_the_window_ends_5_ev_above_the_fermi_level():
    reference = levels(-20, -3, 2, 4.9, 5.1)
    eps = reference + np.array([0.1, 0.01, 0.02, 0.03, 0.3])
    found = metrics_bands.band_errors(eps, reference, 0.0, np.array([1, 2, 2, 3]))
    assert found.total.count == 4 * 8
    assert found.total.mean == pytest.approx((0.1 + 0.01 + 0.02 + 0.03) / 4)
    assert found.total.largest == pytest.approx(0.1)
    assert [error.mean for error in found.by_energy.values()] == pytest.approx([0.1, 0.01, 0.025])
    assert found.ghosts == 0


def test_one_ghost_state_at_one_k_point_is_counted_as_often_as_the_k_point_counts():
    reference = levels(-20, -3, 2, 7)
    eps = reference.copy()
    eps[0, 3, 1] += 0.51
    eps[0, 0, 2] -= 0.49
    found = metrics_bands.band_errors(eps, reference, 0.0, np.array([1, 2, 2, 3]))
    assert found.ghosts == 3
    assert list(found.ghosts_by_energy.values()) == [0, 3, 0]


def test_a_state_in_the_gap_is_a_ghost_although_the_right_one_is_above_the_window():
    reference = levels(-6, -5, 8)
    eps = reference.copy()
    eps[0, 1, 2] = 0.5
    found = metrics_bands.band_errors(eps, reference, 0.0, np.ones(4, int))
    assert found.ghosts == 1
    assert list(found.ghosts_by_energy.values()) == [0, 0, 1]
    assert found.total.largest == 0  # the error itself is of the bands of the reference


def test_neither_semicore_states_nor_one_ghost_move_the_energy_zero():
    reference = flat(-22, -21, -20, -3, -2, 2, filled=5)
    eps = reference.eps - 0.25
    eps[..., :3] += 1.5
    eps[0, 2, 3] -= 3.0
    assert metrics_bands.valence_shift(eps, reference) == pytest.approx(0.25)


def test_a_k_point_has_as_much_say_in_the_energy_zero_as_it_stands_for():
    reference = flat(-3, 2, filled=1)
    eps = reference.eps.copy()
    eps[0, 2:] -= 0.4  # five points of eight
    assert metrics_bands.valence_shift(eps, reference) == pytest.approx(0.4)


def test_semicore_states_say_the_energy_zero_where_there_is_no_other():
    reference = flat(-20, 4, filled=1)
    assert metrics_bands.valence_shift(reference.eps + 0.125, reference) == pytest.approx(-0.125)


def test_the_energy_zero_is_in_the_middle_of_two_equal_halves():
    reference = flat(-3, -2, 2, filled=2)
    eps = reference.eps + np.array([0.3, 0.1, 0.9])
    assert metrics_bands.valence_shift(eps, reference) == pytest.approx(-0.2)


def test_the_worst_band_is_told_in_words():
    reference = flat(-22, -20, -3, 2, 7, filled=3)
    reference.kpts[:] = [[0, 0, 0], [-1e-17, 0.25, 1 / 3], [0.5, 0, 0], [0.5, 0.5, 0]]
    eps = reference.eps.copy()
    eps[0, :, 0] += [0.7, 0.8, 0.1, 0.6]
    eps[0, 2, 4] += 3  # far above the Fermi level before and after
    worst = metrics_bands._worst(eps, reference)
    assert (worst.band, worst.spin, worst.ghosts) == (1, None, 1 + 2 + 3)
    assert str(worst) == (
        "band 1, 22.00 eV below E_F, is 0.8 eV too high at k = (0, 0.25, 0.333); "
        "a ghost state at 6 points of the mesh"
    )
    eps[0, 2, 4] = 0.5  # in the gap
    assert str(metrics_bands._worst(eps, reference)).startswith(
        "band 5, 7.00 eV above E_F, is 6.5 eV too low at k = (0.5, 0, 0); a ghost state at 2 points"
    )
    assert metrics_bands._worst(np.full_like(eps, np.nan), reference) is None


@pytest.mark.parametrize("spin", SPINS)
def test_the_worst_band_is_where_the_largest_error_is(spin):
    data = random_lcao(6, spin=spin)
    reference = metrics_bands.reference(data, (2, 2, 2))
    found = metrics_bands.mesh_errors(data.h0, data, reference)
    worst = found.worst
    assert abs(worst.error) >= found.total.largest > 0
    s = {"up": 0, "down": 1}.get(worst.spin, 0)
    kpt = np.array([worst.kpt])
    exact, eps = (
        bands.eigenvalues(h, data.overlap, kpt)[s, 0, worst.band - 1]
        for h in (data.hamiltonian, data.h0)
    )
    assert worst.energy == pytest.approx(exact - reference.fermi_level, abs=1e-9)
    assert worst.error == pytest.approx(eps + found.shift[0] - exact, abs=1e-9)
    assert (worst.spin is not None) == (spin == "collinear")


def test_bands_that_are_missing_are_not_compared():
    reference = levels(-3, 2, np.nan)
    eps = levels(-3.1, 2, np.nan)
    found = metrics_bands.band_errors(eps, reference, 0.0, np.ones(4, int))
    assert found.total.count == 8
    assert found.total.mean == pytest.approx(0.05)


def test_a_planted_ghost_state_is_found_in_the_bands_of_a_matrix():
    data = random_lcao(2)
    gamma = np.zeros((1, 3))
    _, c = bands.eigenstates(data.hamiltonian, data.overlap, gamma)
    sc = data.overlap.at_k(gamma[0]) @ c[0, 0, :, 0]
    ghost = -0.9 * np.outer(sc, sc.conj()).real  # moves the lowest state, which is real, alone
    values, first = data.hamiltonian.data.copy(), data.hamiltonian.first_orbital
    for i, j in np.ndindex(2, 2):
        p = int(data.pairs.find(i, j, (0, 0, 0))[0])
        block = ghost[first[i] : first[i + 1], first[j] : first[j + 1]]
        values[data.hamiltonian.offsets[p] : data.hamiltonian.offsets[p + 1]] += block.ravel()
    wrong = changed(data.hamiltonian, values)
    reference = metrics_bands.reference(data, (1, 1, 1))
    assert_allclose(reference.kpts, gamma)
    found = metrics_bands.mesh_errors(wrong, data, reference)
    assert found.ghosts == 1
    assert found.total.largest == pytest.approx(0.9, abs=1e-6)
    assert found.total.mean == pytest.approx(0.9 / found.total.count, abs=1e-6)


def test_errors_stand_by_the_condition_number_of_the_overlap():
    data = random_lcao(3)
    reference = metrics_bands.reference(data, (3, 3, 3))
    values = np.linalg.eigvalsh(data.overlap.at_k(reference.kpts))
    assert_allclose(reference.condition, values[:, -1] / values[:, 0], rtol=1e-9)
    found = metrics_bands.mesh_errors(data.h0, data, reference)
    above = found.near_fermi_level
    same(metrics.merged(found.by_condition.values()), above)
    assert found.at_kpts[1].max() == pytest.approx(above.largest)
    distance = reference.eps - reference.fermi_level
    number = ((distance >= -10) & (distance < 5)).sum(axis=(0, 2))
    weight = number * reference.multiplicity
    assert found.at_kpts[0] @ weight / weight.sum() == pytest.approx(above.mean)


def test_the_gap_of_one_structure_has_a_sign_and_of_several_a_mean_error():
    data = random_lcao(4)
    reference = metrics_bands.reference(data, (2, 2, 2))
    gap = bands.band_gap(reference.eps, data.nelectrons, "unpolarised")
    assert reference.gap == (0 if gap is None else gap.indirect)
    one = metrics_bands.mesh_errors(data.h0, data, reference)
    several = [replace(one, gap_error=value) for value in (-0.3, 0.1, None)]
    found = metrics_bands.merged_mesh_errors(several)
    assert found.gap_error == pytest.approx(0.2)
    same(found.total, one.total, times=3)
    assert found.at_kpts.shape == (2, 3 * len(reference.kpts))


def test_without_electrons_the_fermi_level_is_that_of_the_data():
    data = replace(random_lcao(5), nelectrons=None, fermi_level=0.25)
    reference = metrics_bands.reference(data, (2, 2, 2))
    assert reference.fermi_level == 0.25
    assert metrics_bands.mesh_errors(data.h0, data, reference).gap_error is None
    with pytest.raises(ValueError, match="valence electrons"):
        metrics_bands.reference(replace(data, fermi_level=None), (2, 2, 2))


def test_a_strained_crystal_has_the_path_of_the_crystal_without_strain():
    from ase.build import bulk

    crystal = bulk("GaAs", "zincblende", a=5.65)
    strained = crystal.copy()
    strain = np.eye(3) + 0.01 * np.array([[1, 0.5, 0], [0.5, -1, 0.3], [0, 0.3, 0.4]])
    strained.set_cell(crystal.cell.array @ strain, scale_atoms=True)
    expected, found = (metrics_bands.band_path(atoms, 40) for atoms in (crystal, strained))
    assert found.path == expected.path
    difference = found.special_points["L"] - expected.special_points["L"]
    assert_allclose(difference, np.round(difference), atol=1e-9)  # an equivalent point
    assert_allclose(found.cell.array, strained.cell.array)
    molecule = crystal.copy()
    molecule.pbc = False
    assert metrics_bands.band_path(molecule, 40) is None
