from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from ase_nextham import AtomPairs, Basis, LCAOMatrix
from ase_nextham.basis import CONVENTIONS
from ase_nextham.matrix import aligned
from ase_nextham.testing import random_lcao

SPINS = ["unpolarised", "collinear", "spinor"]
K = np.array([[0.0, 0.0, 0.0], [0.1, -0.3, 0.45]])


# --- pairs -------------------------------------------------------------------------------------


def test_pairs_know_their_reverse():
    pairs = random_lcao(0).pairs
    back = pairs.reverse
    assert_array_equal(pairs.i[back], pairs.j)
    assert_array_equal(pairs.R[back], -pairs.R)
    assert_array_equal(back[back], np.arange(len(pairs)))


def test_pairs_are_found_and_others_are_not():
    pairs = random_lcao(0).pairs
    assert_array_equal(pairs.find(pairs.i, pairs.j, pairs.R), np.arange(len(pairs)))
    assert pairs.find(0, 0, (99, 0, 0)).tolist() == [-1]
    assert pairs.find(7, 0, (0, 0, 0)).tolist() == [-1]


def test_pairs_without_partner_are_refused():
    with pytest.raises(ValueError, match=r"pair \(i=0, j=1, R=1,0,0\) has no partner"):
        AtomPairs([0, 0, 1], [0, 1, 1], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_pairs_out_of_order_or_twice_are_refused():
    with pytest.raises(ValueError, match="sorted by .* use AtomPairs.sort"):
        AtomPairs([1, 0], [1, 0], np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="without repeats"):
        AtomPairs([0, 0], [0, 0], np.zeros((2, 3), int))


def test_pairs_must_be_integers():
    with pytest.raises(TypeError, match="AtomPairs.R must be integers"):
        AtomPairs([0], [0], np.zeros((1, 3)))


def test_sorting_tells_where_each_pair_was():
    i, j = np.array([1, 0, 0, 1]), np.array([0, 0, 1, 1])
    pairs, order = AtomPairs.sort(i, j, np.zeros((4, 3), int))
    assert pairs.i.tolist() == [0, 0, 1, 1]
    assert_array_equal(i[order], pairs.i)


def test_no_pairs_are_pairs_too():
    empty = AtomPairs(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3), int))
    assert len(empty) == 0
    assert empty.find(0, 0, (0, 0, 0)).tolist() == [-1]
    matrix = LCAOMatrix(Basis({"H": (0,)}), ("H",), empty, "unpolarised", np.zeros(0))
    assert_array_equal(matrix.at_k([0, 0, 0]), [[0]])
    assert matrix.sparse_at_k([0, 0, 0]).nnz == 0


# --- Bloch sums --------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", SPINS)
def test_bloch_sum_is_the_sum_over_R(spin):
    H = random_lcao(1, "GaAs", spin=spin, magnetic=True).hamiltonian
    first = H.first_orbital
    shape = (2, H.dimension, H.dimension) if spin == "collinear" else (H.dimension,) * 2
    expected = np.zeros(shape, complex)
    for i, j, R in zip(H.pairs.i, H.pairs.j, H.pairs.R, strict=True):
        rows, columns = slice(*first[i : i + 2]), slice(*first[j : j + 2])
        expected[..., rows, columns] += np.exp(2j * np.pi * (R @ K[1])) * H.block(i, j, R)
    assert_allclose(H.at_k(K[1]), expected, atol=1e-12)
    several = H.at_k(K)
    assert_allclose(several[:, 1] if spin == "collinear" else several[1], expected, atol=1e-12)


@pytest.mark.parametrize("spin", SPINS)
def test_hermitian_at_every_k(spin):
    H = random_lcao(2, spin=spin, magnetic=True).hamiltonian.at_k(K)
    assert_allclose(H, H.conj().swapaxes(-1, -2), atol=1e-12)


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize("k", K)
def test_sparse_is_dense(spin, k):
    H = random_lcao(3, "GaAsGaAs", spin=spin).hamiltonian
    sparse = H.sparse_at_k(k)
    dense = H.at_k(k)
    for a, b in zip(
        *((sparse, dense) if spin == "collinear" else ([sparse], [dense])), strict=True
    ):
        assert_allclose(a.toarray(), b, atol=1e-12)
        assert a.has_sorted_indices


def test_sparse_is_real_where_the_operator_is():
    S = random_lcao(3).overlap
    assert S.sparse_at_k([0, 0, 0]).dtype == float
    assert S.sparse_at_k([0.5, 0, -0.5]).dtype == float
    assert S.sparse_at_k([0.25, 0, 0]).dtype == complex


def test_gradient_is_the_derivative():
    data = random_lcao(4)
    step = 1e-5
    reciprocal = 2 * np.pi * data.atoms.cell.reciprocal().array  # rows, 1/Angstrom
    gradient = data.hamiltonian.gradient_at_k(K[1], data.atoms.cell)
    for axis in range(3):
        dk = np.linalg.solve(reciprocal.T, np.eye(3)[axis]) * step
        forward, back = data.hamiltonian.at_k(K[1] + dk), data.hamiltonian.at_k(K[1] - dk)
        assert_allclose(gradient[axis], (forward - back) / (2 * step), atol=1e-6)  # eV Angstrom


@pytest.mark.parametrize("spin", SPINS)
def test_time_reversal_pairs_k_with_minus_k(spin, energies):
    data = random_lcao(5, spin=spin)
    assert data.hamiltonian.time_reversal_error() < 1e-14
    assert_allclose(energies(data, K[1]), energies(data, -K[1]), atol=1e-10)


@pytest.mark.parametrize("spin", ["collinear", "spinor"])
def test_magnetism_is_reported_in_eV(spin):
    assert random_lcao(5, spin=spin, magnetic=True).hamiltonian.time_reversal_error() > 0.1


def test_hermitian_error_is_the_size_of_the_fault():
    H = random_lcao(6).hamiltonian
    data = H.data.copy()
    p = int(np.flatnonzero(H.pairs.reverse != np.arange(len(H.pairs)))[0])
    data[H.offsets[p]] += 1e-3
    assert replace(H, data=data).hermitian_error() == pytest.approx(1e-3)


def test_upper_half_gives_the_lower_one():
    H = random_lcao(6, spin="spinor").hamiltonian
    data = H.data.copy()
    for p in np.flatnonzero(np.arange(len(H.pairs)) > H.pairs.reverse):
        data[H.offsets[p] : H.offsets[p + 1]] = 0
    assert_array_equal(replace(H, data=data).filled_by_hermiticity().data, H.data)


# --- algebra -----------------------------------------------------------------------------------


def test_sum_lives_on_the_union_of_pairs():
    data = random_lcao(7)
    near, _ = AtomPairs.sort([0, 1], [0, 1], np.zeros((2, 3), int))
    onsite, dropped = data.overlap.cut_to(near)
    assert dropped > 0
    total = data.hamiltonian + 2.0 * onsite
    assert len(total.pairs) == len(data.pairs)
    assert_allclose(total.at_k(K), data.hamiltonian.at_k(K) + 2 * onsite.at_k(K), atol=1e-12)


def test_cutting_by_accident_is_refused():
    data = random_lcao(7)
    near, _ = AtomPairs.sort([0, 1], [0, 1], np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="holds elements up to .* use cut_to"):
        data.hamiltonian.on_pairs(near)


def test_mu_S_shifts_all_bands_by_mu(energies):
    data = random_lcao(8)
    shifted = replace(data, hamiltonian=data.hamiltonian + 0.7 * data.overlap)
    assert_allclose(energies(shifted), energies(data) + 0.7, atol=1e-10)


@pytest.mark.parametrize("spin", SPINS)
def test_alignment_finds_the_shift(spin):
    data = random_lcao(8, spin=spin)
    H, S = data.hamiltonian, data.overlap.with_spin(spin)
    result, mu = aligned(H + (-1.3) * S, H, data.overlap)
    assert mu == pytest.approx(1.3, abs=1e-10)
    assert_allclose(result.data, H.data, atol=1e-10)


def test_unlike_matrices_do_not_add():
    data = random_lcao(9)
    with pytest.raises(ValueError, match="one matrix is unpolarised, the other spinor"):
        data.hamiltonian + data.hamiltonian.with_spin("spinor")
    with pytest.raises(ValueError, match="different bases: orbital conventions differ"):
        data.hamiltonian + data.hamiltonian.in_convention("deeph")
    with pytest.raises(ValueError, match="different atoms: As1 Ga1 and Si2"):
        data.hamiltonian + random_lcao(9, "SiSi").hamiltonian
    with pytest.raises(TypeError, match="cannot combine an LCAOMatrix with float"):
        data.hamiltonian + 1.0


def test_data_of_the_wrong_size_is_refused():
    H = random_lcao(9).hamiltonian
    with pytest.raises(ValueError, match="matrix data has shape .* need"):
        replace(H, data=H.data[:-1])
    with pytest.raises(ValueError, match="unknown spin 'up'"):
        replace(H, spin="up")


def test_values_cannot_be_changed():
    H = random_lcao(9).hamiltonian
    with pytest.raises(ValueError, match="read-only"):
        H.data[0] = 1.0


def test_missing_blocks_are_named():
    with pytest.raises(KeyError, match="no pair .* the operator is zero there"):
        random_lcao(9).hamiltonian.block(0, 1, (9, 0, 0))


# --- spin --------------------------------------------------------------------------------------


def test_promotion_to_spinor_doubles_every_band(energies):
    data = random_lcao(10)
    spinor = replace(data, hamiltonian=data.hamiltonian.with_spin("spinor"))
    assert_allclose(energies(spinor), np.repeat(energies(data), 2), atol=1e-10)


def test_collinear_becomes_spinor_with_the_same_bands(energies):
    data = random_lcao(10, spin="collinear", magnetic=True)
    spinor = replace(data, hamiltonian=data.hamiltonian.with_spin("spinor"))
    assert_allclose(energies(spinor), energies(data), atol=1e-10)


def test_spin_is_not_thrown_away():
    with pytest.raises(ValueError, match="spinor cannot be written as unpolarised"):
        random_lcao(10, spin="spinor").hamiltonian.with_spin("unpolarised")


# --- conventions and rotations -----------------------------------------------------------------


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("spin", SPINS)
def test_conventions_round_trip_and_keep_the_bands(convention, spin, energies):
    data = random_lcao(11, spin=spin)
    there = replace(
        data,
        overlap=data.overlap.in_convention(convention),
        hamiltonian=data.hamiltonian.in_convention(convention),
        h0=None,
        position=None,
    )
    assert there.basis.convention == convention
    back = there.hamiltonian.in_convention("abacus")
    assert_allclose(back.data, data.hamiltonian.data, atol=1e-13)
    assert_allclose(energies(there), energies(data), atol=1e-10)


@pytest.mark.parametrize("spin", SPINS)
def test_rotation_keeps_the_bands(spin, energies):
    data = random_lcao(12, spin=spin)
    rotation = -Rotation.random(random_state=5).as_matrix()
    turned = replace(
        data,
        overlap=data.overlap.rotated(rotation),
        hamiltonian=data.hamiltonian.rotated(rotation),
        h0=None,
        position=None,
    )
    assert turned.hamiltonian.hermitian_error() < 1e-12
    assert turned.hamiltonian.time_reversal_error() < 1e-12
    assert_allclose(energies(turned), energies(data), atol=1e-10)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], [0], np.zeros((1, 3), int)), r"needs i \(n,\), j \(n,\), R \(n, 3\)"),
        (([-1], [-1], np.zeros((1, 3), int)), "atom indices must not be negative"),
        (([0, 0], [0, 0], [[-(2**40)] * 3, [2**40] * 3]), "are not a crystal's"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AtomPairs(*map(np.asarray, arguments))


def test_pairs_of_atoms_that_do_not_exist_are_refused():
    H = random_lcao(9).hamiltonian
    with pytest.raises(ValueError, match="pairs name atom 1, but there are 1 atoms"):
        LCAOMatrix(H.basis, ("Ga",), H.pairs, H.spin, H.data)


def test_kpoints_and_rotations_of_the_wrong_shape_are_refused():
    H = random_lcao(9).hamiltonian
    with pytest.raises(ValueError, match=r"k-points must have shape \(3,\) or \(nkpts, 3\)"):
        H.at_k([0, 0])
    with pytest.raises(ValueError, match="takes one k-point of shape"):
        H.sparse_at_k(K)
    with pytest.raises(ValueError, match="must be an orthogonal 3 x 3 matrix"):
        H.rotated(2 * np.eye(3))


def test_numbers_of_other_types_become_double_precision():
    H = random_lcao(9).hamiltonian
    assert replace(H, data=H.data.astype(np.float32)).data.dtype == np.float64
    assert replace(H, data=H.data.astype(np.complex64)).data.dtype == np.complex128


def test_only_numbers_multiply_a_matrix():
    H = random_lcao(9).hamiltonian
    assert_array_equal((-H).data, -H.data)
    with pytest.raises(TypeError, match="unsupported operand"):
        H * None


def test_matrices_say_what_they_are():
    H = random_lcao(9).hamiltonian
    assert repr(H) == f"LCAOMatrix(unpolarised, real, dimension 33, 2 atoms, {len(H.pairs)} pairs)"
    assert repr(H.pairs) == f"AtomPairs({len(H.pairs)} pairs)"
