"""Meshes of k-points and their reduction by symmetry."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene
from ase.calculators.calculator import kpts2ndarray
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham import hdf5
from ase_nextham.bands import dos, eigenvalues, fermi_level, kmesh, kmesh_for, spin_degeneracy
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.testing import random_lcao

SILICON = bulk("Si")
WITHOUT_GAMMA = {"size": (4, 4, 4), "gamma": False}
MESHES = [
    (4, 4, 4),
    (3, 3, 3),
    {"size": (4, 4, 4), "gamma": True},
    {"size": (3, 3, 3), "gamma": False},
    {"size": (4, 4, 3), "gamma": None},
    {"size": (2, 3, 4), "gamma": True},
    {"density": 1.5},
    {"density": 1.5, "even": True, "gamma": True},
]


@pytest.mark.parametrize("kpts", MESHES, ids=str)
def test_the_full_mesh_is_that_of_ase(kpts):
    mesh = kmesh(SILICON, kpts, symmetry=False, time_reversal=False)
    asked = kpts if isinstance(kpts, dict) else {"size": kpts}
    assert_allclose(mesh.kpts, kpts2ndarray({"gamma": True, **asked}, SILICON), atol=1e-15)
    assert_allclose(mesh.weights, 1 / len(mesh.kpts))
    assert_array_equal(mesh.index, np.arange(len(mesh.kpts)))


def test_meshes_contain_gamma_unless_asked_not_to():
    assert np.abs(kmesh(SILICON, (4, 4, 4)).kpts).sum(axis=1).min() == 0
    assert np.abs(kmesh(SILICON, 3.0).kpts).sum(axis=1).min() < 1e-15
    assert np.abs(kmesh(SILICON, WITHOUT_GAMMA).kpts).sum(axis=1).min() > 0.1


@pytest.mark.parametrize("kpts", MESHES, ids=str)
def test_a_reduced_mesh_gives_the_sums_of_the_full_one_for_a_function_of_that_symmetry(kpts):
    mesh = kmesh(SILICON, kpts)
    lattice = SILICON.cell.array
    vectors = np.indices((5, 5, 5)).reshape(3, -1).T - 2
    lengths = np.linalg.norm(vectors @ lattice, axis=1)

    def energies(k):  # a band of s orbitals with hoppings that depend on the distance alone
        return np.cos(2 * np.pi * k @ vectors[lengths < 8].T) @ np.exp(-lengths[lengths < 8])

    assert_allclose(energies(mesh.kpts)[mesh.index], energies(mesh.full_kpts), atol=1e-12)
    assert mesh.weights.sum() == pytest.approx(1, abs=1e-14)
    assert mesh.weights @ energies(mesh.kpts) == pytest.approx(energies(mesh.full_kpts).mean())
    assert len(mesh.kpts) < len(mesh.full_kpts)


def test_numbers_of_inequivalent_points_are_the_known_ones():
    gamma = {"size": (8, 8, 8), "gamma": True}
    assert len(kmesh(SILICON, gamma).kpts) == 29
    assert len(kmesh(SILICON, gamma, symmetry=False).kpts) == 260  # (512 + 8) / 2
    assert len(kmesh(graphene(vacuum=5), {"size": (9, 9, 1), "gamma": True}).kpts) == 12
    gaas = bulk("GaAs", "zincblende", a=5.65)
    assert len(kmesh(gaas, gamma).kpts) == 29
    assert len(kmesh(gaas, gamma, time_reversal=False).kpts) == 43  # there is no inversion


def test_operations_that_do_not_map_the_mesh_onto_itself_are_not_used():
    mesh = kmesh(SILICON, {"size": (4, 4, 3), "gamma": True})
    full = {tuple(k) for k in np.round(mesh.full_kpts % 1, 9)}
    assert len(full) == 48
    assert 48 / 6 < len(mesh.kpts) < 48


def test_a_density_means_one_point_along_directions_that_are_not_periodic():
    assert_array_equal(kmesh(graphene(vacuum=5), 2.0).size[2], 1)


def test_species_and_moments_make_atoms_different():
    sheet, size = graphene(vacuum=5), {"size": (6, 6, 1), "gamma": True}
    equal = kmesh(sheet, size, time_reversal=False)
    by_species = kmesh(sheet, size, time_reversal=False, species=["C1", "C2"])
    by_moment = kmesh(sheet, size, time_reversal=False, magmoms=[1.0, -1.0])
    assert len(by_species.kpts) > len(equal.kpts)
    assert_array_equal(by_moment.index, by_species.index)
    same = kmesh(sheet, size, time_reversal=False, magmoms=[1.0, 1.0])
    assert_array_equal(same.index, equal.index)


def test_moments_that_are_vectors_leave_the_rotations_about_them():
    iron = bulk("Fe", "bcc", a=2.87, cubic=True)
    along_z = kmesh(iron, {"size": (4, 4, 4), "gamma": True}, magmoms=np.array([[0, 0, 2.0]] * 2))
    # k_z is different from k_x, as tetragonal; -k is reached by inversion, which keeps moments
    tetragonal = iron.copy()
    tetragonal.set_cell(iron.cell.array * [[1], [1], [1.01]], scale_atoms=True)
    expected = kmesh(tetragonal, {"size": (4, 4, 4), "gamma": True})
    assert_array_equal(along_z.index, expected.index)


@pytest.mark.parametrize("name", ["Al", "Si2", "graphene"])
def test_fermi_level_and_dos_on_the_reduced_mesh_are_those_on_the_full_mesh(root, name):
    data = hdf5.read(root / f"tests/data/bands/{name}.h5")
    size = (6, 6, 1) if name == "graphene" else (5, 5, 5)
    assert_same_sums(data, {"size": size, "gamma": True}, tolerance=1e-5)


def test_fermi_level_and_dos_of_spinor_bands_on_the_reduced_mesh_are_those_on_the_full_mesh(root):
    data = hdf5.read(root / "examples/data/GaAs_soc.h5")
    assert_same_sums(data, {"size": (4, 4, 4), "gamma": True}, tolerance=1e-5)


def assert_same_sums(data: LCAOData, kpts, tolerance: float) -> None:
    """``tolerance`` in eV: H keeps the symmetry of the crystal as far as its grid had it."""
    matrix = data.hamiltonian
    reduced = kmesh_for(matrix, data.atoms, kpts)
    full = kmesh(data.atoms, kpts, symmetry=False, time_reversal=False)
    assert len(reduced.kpts) < len(full.kpts) / 5
    energies = np.linspace(-12, 12, 200)
    levels, densities = [], []
    for mesh in (reduced, full):
        eps = eigenvalues(matrix, data.overlap, mesh.kpts)
        weights = mesh.weights * spin_degeneracy(matrix.spin)
        levels.append(fermi_level(eps, weights, data.nelectrons))
        densities.append(dos(eps, weights, energies, width=0.3))
    assert levels[0] == pytest.approx(levels[1], abs=tolerance)
    assert_allclose(densities[0], densities[1], rtol=0, atol=100 * tolerance)  # 1/eV


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_hamiltonians_without_magnetic_order_use_time_reversal(spin):
    data = random_lcao(0, spin=spin)
    assert len(kmesh_for(data.hamiltonian, data.atoms, WITHOUT_GAMMA).kpts) == 32


def test_a_magnetic_spinor_without_known_moments_uses_no_symmetry_at_all():
    data = random_lcao(0, "SiSi", spin="spinor", magnetic=True)
    crystal = bulk("Si")
    assert len(kmesh_for(data.hamiltonian, crystal, (3, 3, 3)).kpts) == 27


def test_a_magnetic_collinear_hamiltonian_keeps_k_and_minus_k_together():
    data = random_lcao(0, "SiSi", spin="collinear", magnetic=True)
    assert len(kmesh_for(data.hamiltonian, bulk("Si"), (3, 3, 3)).kpts) == 14


def test_moments_of_the_atoms_are_used_where_the_hamiltonian_is_magnetic():
    crystal = bulk("Si")
    crystal.set_initial_magnetic_moments([1.0, 1.0])
    spinor = random_lcao(0, "SiSi", spin="spinor", magnetic=True).hamiltonian
    along_z = kmesh_for(spinor, crystal, (3, 3, 3))
    vectors = kmesh(crystal, (3, 3, 3), magmoms=np.array([[0, 0, 1.0]] * 2))
    assert_array_equal(along_z.index, vectors.index)
    assert len(kmesh(crystal, (3, 3, 3)).kpts) < len(along_z.kpts) < 27
    collinear = random_lcao(0, "SiSi", spin="collinear", magnetic=True).hamiltonian
    assert len(kmesh_for(collinear, crystal, (3, 3, 3)).kpts) == len(kmesh(crystal, (3, 3, 3)).kpts)


@pytest.mark.parametrize("kpts", [(4, 4), (0, 1, 1), (2.0, 2.0, 2.0), [[0, 0, 0], [0.5, 0, 0]]])
def test_what_is_not_a_mesh_is_refused(kpts):
    with pytest.raises(ValueError, match="is not a mesh: give three positive integers"):
        kmesh(SILICON, kpts)


def test_unknown_words_for_a_mesh_are_refused():
    with pytest.raises(ValueError, match=r"not by \['gama'\]"):
        kmesh(SILICON, {"size": (2, 2, 2), "gama": True})


def test_atoms_in_one_place_leave_time_reversal_only():
    twice = Atoms("Si2", positions=[[0, 0, 0], [0, 0, 1e-9]], cell=[3, 3, 3], pbc=True)
    assert len(kmesh(twice, WITHOUT_GAMMA).kpts) == 32


def ferromagnet() -> LCAOData:
    """A spinor Hamiltonian on a simple cubic lattice with the symmetry of a moment along z.

    It is random, averaged over the operations that keep an axial vector along z, and those that
    turn it round together with time reversal.
    """
    atoms = Atoms("Si", cell=3 * np.eye(3), pbc=True, magmoms=[1.0])
    rng = np.random.default_rng(0)
    basis = Basis({"Si": (0, 1)})
    R = np.array(list(np.ndindex(3, 3, 3))) - 1
    pairs, _ = AtomPairs.sort(np.zeros(27, int), np.zeros(27, int), R)
    noise = rng.normal(size=(2, 27 * 64)).T @ [1, 1j]
    start = LCAOMatrix(basis, ("Si",), pairs, "spinor", noise).filled_by_hermiticity()
    start = 0.5 * (start + replace(start, data=hermitian_onsite(start)))
    average = 0 * start
    for axes in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            rotation = np.eye(3)[list(axes)] * np.array(signs)
            moment = np.linalg.det(rotation) * (rotation @ [0, 0, 1])
            if abs(moment[2]) > 0.5:
                turned = start.rotated(rotation)
                where = pairs.find(pairs.i, pairs.j, np.rint(pairs.R @ rotation.T).astype(int))
                turned = turned.move_blocks(pairs, where)
                average = average + (turned if moment[2] > 0 else time_reversed(turned))
    overlap = LCAOMatrix(basis, ("Si",), pairs, "unpolarised", np.zeros(27 * 16))
    identity = overlap.data.copy().reshape(27, 4, 4)
    identity[pairs.find(0, 0, (0, 0, 0))[0]] = np.eye(4)
    return LCAOData(atoms, replace(overlap, data=identity.ravel()), hamiltonian=average * (1 / 16))


def hermitian_onsite(matrix: LCAOMatrix) -> np.ndarray:
    blocks = matrix.data.copy().reshape(27, 8, 8)
    onsite = matrix.pairs.find(0, 0, (0, 0, 0))[0]
    blocks[onsite] = blocks[onsite].conj().T
    return blocks.ravel()


def time_reversed(matrix: LCAOMatrix) -> LCAOMatrix:
    sigma = np.kron(np.eye(4), [[0, 1], [-1, 0]])
    blocks = sigma @ matrix.data.reshape(-1, 8, 8).conj() @ sigma.T
    return replace(matrix, data=blocks.ravel())


def test_bands_of_a_ferromagnet_with_spin_orbit_coupling_obey_its_magnetic_group():
    data = ferromagnet()
    matrix, size = data.hamiltonian, WITHOUT_GAMMA
    assert matrix.time_reversal_error() > 0.1  # eV
    mesh = kmesh_for(matrix, data.atoms, size)
    eps = eigenvalues(matrix, data.overlap, mesh.full_kpts)
    assert len(mesh.kpts) < len(mesh.full_kpts) / 8
    assert_allclose(eigenvalues(matrix, data.overlap, mesh.kpts)[:, mesh.index], eps, atol=1e-10)
    # the rotations of the crystal without its moment are more than its bands have
    cubic = kmesh(data.atoms, size)
    wrong = eigenvalues(matrix, data.overlap, cubic.kpts)[:, cubic.index]
    assert np.abs(wrong - eps).max() > 0.1  # eV


def test_atoms_that_are_no_elements_lend_no_symmetry_to_their_hamiltonian():
    atoms = Atoms("X", cell=np.eye(3), pbc=True)  # a cube, which hops along x alone
    R = np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0]])
    pairs = AtomPairs(np.zeros(3, int), np.zeros(3, int), R)
    for hop, expected in ((1.0, 14), (1j, 27)):  # the second breaks time reversal as well
        data = np.array([np.conj(hop), 0, hop])
        chain = LCAOMatrix(Basis({"X": (0,)}), ("X",), pairs, "unpolarised", data)
        assert len(kmesh_for(chain, atoms, (3, 3, 3)).kpts) == expected
