from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from ase_nextham import AtomPairs
from ase_nextham.testing import check_backend, check_rotation, random_lcao

SPINS = ["unpolarised", "collinear", "spinor"]


def random_shifts(data, seed=0):
    return np.random.default_rng(seed).integers(-2, 3, (len(data.atoms), 3))


def test_random_structures_obey_the_laws():
    data = random_lcao(0, "GaAsGaAs", spin="spinor")
    assert data.hamiltonian.hermitian_error() == 0
    assert data.position_error() < 1e-14
    assert len(data.overlap.cut_to(data.pairs)[0].pairs) == len(data.hamiltonian.pairs)


@pytest.mark.parametrize("spin", SPINS)
def test_bands_do_not_change_when_atoms_move_by_lattice_vectors(spin, energies):
    data = random_lcao(1, "GaAsGaAs", spin=spin, magnetic=True)
    moved = data.translated(random_shifts(data))
    assert not np.allclose(moved.atoms.positions, data.atoms.positions)
    assert_allclose(energies(moved), energies(data), atol=1e-10)
    assert moved.position_error() < 1e-13


@pytest.mark.parametrize("spin", SPINS)
def test_bands_do_not_change_when_atoms_are_reordered(spin, energies):
    data = random_lcao(2, "GaAsGaAs", spin=spin, magnetic=True)
    mixed = data.permuted([2, 0, 3, 1])
    assert mixed.atoms.get_chemical_symbols() == ["Ga", "Ga", "As", "As"]
    assert_allclose(energies(mixed), energies(data), atol=1e-10)
    assert mixed.position_error() < 1e-13


def test_moving_and_reordering_can_be_undone():
    data = random_lcao(3, "GaAsGaAs")
    shifts = random_shifts(data)
    back = data.translated(shifts).translated(-shifts)
    order = np.array([3, 1, 0, 2])
    back = back.permuted(order).permuted(np.argsort(order))
    assert back.pairs.same_as(data.pairs)
    assert_allclose(back.h0.data, data.h0.data, atol=0)
    for a, b in zip(back.position, data.position, strict=True):
        assert_allclose(a.data, b.data, atol=1e-12)


@pytest.mark.parametrize("spin", SPINS)
def test_supercell_folds_the_bands(spin, energies):
    data = random_lcao(4, spin=spin, magnetic=True)
    big = data.repeated((2, 1, 3))
    assert big.nelectrons == 6 * data.nelectrons
    assert_allclose(big.atoms.positions, data.atoms.repeat((2, 1, 3)).positions)
    k = np.array([0.2, 0.1, -0.3])
    folded = [energies(data, (k + [a, 0, c]) / [2, 1, 3]) for a in range(2) for c in range(3)]
    assert_allclose(energies(big, k), np.sort(np.concatenate(folded)), atol=1e-10)
    assert big.position_error() < 1e-13


def test_all_operators_share_the_union_of_pairs():
    data = random_lcao(5)
    onsite, _ = AtomPairs.sort([0, 1], [0, 1], np.zeros((2, 3), int))
    small = replace(data, overlap=data.overlap.cut_to(onsite)[0])
    assert small.overlap.pairs.same_as(data.pairs)


def test_operators_of_other_atoms_are_refused():
    data = random_lcao(7)
    with pytest.raises(ValueError, match="h0 is for atoms Si2, the overlap for As1 Ga1"):
        replace(data, h0=random_lcao(7, "SiSi").h0)
    with pytest.raises(ValueError, match="the overlap must be unpolarised"):
        replace(data, overlap=data.overlap.with_spin("spinor"))
    with pytest.raises(ValueError, match="3 atoms, but the overlap is for 2"):
        replace(data, atoms=random_lcao(7, "GaAsGa").atoms)


def test_wrong_moves_are_refused():
    data = random_lcao(7)
    with pytest.raises(ValueError, match="order must be a permutation of 0 ... 1"):
        data.permuted([0, 0])
    with pytest.raises(ValueError, match="shifts must be integers of shape"):
        data.translated(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="three positive integers"):
        data.repeated((2, 0, 1))


def test_electrons_that_are_not_known_are_not_guessed():
    assert random_lcao(7).electron_count() == random_lcao(7).nelectrons
    with pytest.raises(ValueError, match="number of valence electrons of .* is not known"):
        replace(random_lcao(7), nelectrons=None).electron_count()


def test_a_structure_without_hamiltonian_says_so():
    data = replace(random_lcao(7), h0=None, hamiltonian=None)
    with pytest.raises(ValueError, match="holds no Hamiltonian, only the overlap"):
        data.best_hamiltonian()


# --- the check of backends that is shipped -----------------------------------------------------


class Lookup:
    """A backend that finds the structure it was made for, in any order and cell image."""

    def __init__(self, data):
        self.data = data

    def compute(self, atoms):
        scaled = self.data.atoms.get_scaled_positions(wrap=False)
        order, shifts = [], []
        for position in atoms.get_scaled_positions(wrap=False):
            offset = position - scaled
            shift = np.round(offset)
            a = int(np.abs(offset - shift).sum(axis=1).argmin())
            order.append(a)
            shifts.append(shift[a].astype(int))
        return self.data.permuted(order).translated(np.array(shifts))


def test_a_lawful_backend_passes_the_check():
    data = random_lcao(8, "GaAsGa")
    check_backend(Lookup(data).compute, data.atoms, tolerance=1e-9)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda d: replace(d, overlap=2 * d.overlap), "orbitals of atom 0 are not normalised"),
        (lambda d: replace(d, h0=None), "returned no H"),
        (lambda d: replace(d, h0=_not_hermitian(d.h0)), "is not Hermitian"),
    ],
)
def test_unlawful_backends_fail_the_check(fault, message):
    data = random_lcao(8, "GaAsGa")
    with pytest.raises(AssertionError, match=message):
        check_backend(Lookup(fault(data)).compute, data.atoms, tolerance=1e-9)


def test_a_backend_that_ignores_the_order_of_atoms_fails_the_check():
    data = random_lcao(8, "GaGaGa")
    with pytest.raises(AssertionError, match="changes by .* eV when atoms are reordered"):
        check_backend(lambda atoms: data, data.atoms, tolerance=1e-9)


class Turning(Lookup):
    """A backend that finds its structure turned by any orthogonal matrix."""

    def compute(self, atoms):
        rotation = np.linalg.solve(self.data.atoms.cell.array, atoms.cell.array).T
        return replace(
            self.data,
            overlap=self.data.overlap.rotated(rotation),
            h0=self.data.h0.rotated(rotation),
            hamiltonian=None,
            position=None,
        )


ROTATION = -Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()


def test_a_backend_that_turns_with_the_crystal_passes_the_check():
    data = random_lcao(8, "GaAs", spin="spinor")
    check_rotation(Turning(data).compute, data.atoms, ROTATION, tolerance=1e-10)


def test_a_backend_that_does_not_turn_fails_the_check():
    data = random_lcao(8, "GaAs", spin="spinor")
    with pytest.raises(AssertionError, match="overlap changes by .* more than it turns"):
        check_rotation(lambda atoms: data, data.atoms, ROTATION, tolerance=1e-10)
    spinless = Turning(data)
    turning = spinless.compute
    spinless.compute = lambda atoms: replace(turning(atoms), h0=data.h0)
    with pytest.raises(AssertionError, match="h0 changes by"):
        check_rotation(spinless.compute, data.atoms, ROTATION, tolerance=1e-10)


def _not_hermitian(matrix):
    values = matrix.data.copy()
    values[1] += 0.1
    return replace(matrix, data=values)


def test_operators_that_do_not_belong_together_are_refused():
    data = random_lcao(9)
    with pytest.raises(ValueError, match="h0 and overlap have different bases: orbital conven"):
        replace(data, h0=data.h0.in_convention("deeph"))
    with pytest.raises(ValueError, match="position must be three matrices"):
        replace(data, position=data.position[:2])
    with pytest.raises(ValueError, match="there is no position operator"):
        replace(data, position=None).position_error()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda d: replace(d, overlap=_with_negative_eigenvalue(d.overlap)), "not positive defin"),
        (lambda d: d.permuted([2, 0, 1]), "atoms come back in another order"),
    ],
)
def test_more_unlawful_backends_fail_the_check(fault, message):
    data = random_lcao(8, "GaAsGa")
    with pytest.raises(AssertionError, match=message):
        check_backend(lambda atoms: fault(data), data.atoms, tolerance=1e9)


def _with_negative_eigenvalue(overlap):
    """Ones on the diagonal, and off it so much that orbitals overlap by more than themselves."""
    values = overlap.data.copy()
    block = np.full((overlap.norbitals[0],) * 2, 3.0)
    np.fill_diagonal(block, 1.0)
    p = overlap.pairs.find(0, 0, (0, 0, 0))[0]
    values[overlap.offsets[p] : overlap.offsets[p + 1]] = block.ravel()
    return replace(overlap, data=values)
