"""The density of H(0)'s states and what is made of it: sum rules and symmetries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from scipy.spatial.transform import Rotation

from ase_nextham import bands
from ase_nextham.potential_head import standard_expansion
from ase_nextham.potential_head.descriptor import (
    ELEMENT_SCALARS,
    coulomb_gram,
    describe,
    descriptor_of_change,
)
from ase_nextham.potential_head.first_density import density_matrix, first_density

MESH = (2, 2, 2)


def expansion_of(part):
    return standard_expansion(
        "density", zip(dict.fromkeys(part.symbols), part.elements, strict=True)
    )


def change_of(backend, atoms, kpts=MESH):
    """Local part of a structure and the change of its density."""
    data, part = backend.compute(atoms), backend.local_part(atoms)
    return part, first_density(part, data.h0, data.overlap, data.nelectrons, kpts=kpts)


def descriptor_of(backend, atoms, kpts=MESH):
    part, change = change_of(backend, atoms, kpts)
    return descriptor_of_change(part, expansion_of(part), change)


def distance(part, change, other) -> float:
    """In the Coulomb metric, relative to ``other``."""
    weights = part.coulomb * part.multiplicity
    squares = [np.sum(weights * np.abs(one) ** 2) for one in (change - other, other)]
    return float(np.sqrt(squares[0] / squares[1]))


def largest(found, expected) -> float:
    """Largest difference relative to the largest number."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# --- the density of H(0)'s states ----------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
def test_the_density_matrix_is_the_sum_over_all_states_of_the_mesh(engine, radical, spin):
    data = engine().compute(radical)
    h0 = data.h0.with_spin(spin)
    mesh = bands.kmesh(radical, (2, 3, 1), symmetry=False)
    assert len(mesh.kpts) < len(mesh.full_kpts)
    p, energies = density_matrix(h0, data.overlap, data.pairs, data.nelectrons, mesh, width=0.3)
    eps, c = bands.eigenstates(h0, data.overlap, mesh.full_kpts)
    weights = np.full(6, bands.spin_degeneracy(spin) / 6)
    level = bands.fermi_level(eps, weights, data.nelectrons, width=0.3)
    filled = weights[0] * bands.occupations(eps, level, width=0.3)[0]
    c = c[0].reshape(6, data.overlap.dimension, -1, eps.shape[-1])
    dense = np.einsum("kn,kisn,kjsn->kij", filled, c.conj(), c)
    first = data.overlap.first_orbital
    for n in range(0, len(p.pairs), 7):
        i, j, R = p.pairs.i[n], p.pairs.j[n], p.pairs.R[n]
        phases = np.exp(2j * np.pi * mesh.full_kpts @ R)
        block = np.einsum("k,kij->ij", phases, dense)
        block = block[first[i] : first[i + 1], first[j] : first[j + 1]]
        assert np.abs(block - p.block(i, j, R)).max() < 1e-10  # the imaginary part is zero
    assert p.data @ data.overlap.data == pytest.approx(data.nelectrons, abs=1e-8)
    assert p.hermitian_error() < 1e-10
    expected = bands.eigenvalues(h0, data.overlap, mesh.kpts)[0]
    assert np.abs(energies - expected).max() < 1e-9  # eV


def test_spinors_without_spin_orbit_coupling_have_the_same_density(engine, radical):
    part, change = change_of(engine(), radical)
    data = engine().compute(radical)
    for spin in ("spinor", "collinear"):
        h0 = data.h0.with_spin(spin)
        found = first_density(part, h0, data.overlap, data.nelectrons, kpts=MESH)
        assert distance(part, found, change) < 1e-10
    _, found = change_of(engine(nspin=4, spin_orbit=False), radical)
    # exchange and correlation of nspin 4 have other thresholds where the density is low
    assert distance(part, found, change) < 1e-2


def test_two_different_spins_are_refused(engine, radical):
    data, part = engine().compute(radical), engine().local_part(radical)
    h0 = data.h0.with_spin("collinear")
    h0 = replace(h0, data=h0.data * np.array([[1.0], [1.001]]))
    with pytest.raises(ValueError, match="use H\\(0\\) without magnetic moments"):
        first_density(part, h0, data.overlap, data.nelectrons)


def test_matrices_of_another_structure_are_refused(engine, radical):
    data = engine().compute(radical)
    moved = radical.copy()
    moved.positions[1] += radical.cell[0]
    with pytest.raises(ValueError, match="same atoms at the same positions"):
        first_density(engine().local_part(moved), data.h0, data.overlap, data.nelectrons)


# --- the descriptor ------------------------------------------------------------------------------


def test_describe_is_the_descriptor_of_the_first_density(engine, radical):
    data, part = engine().compute(radical), engine().local_part(radical)
    expansion = expansion_of(part)
    change = first_density(part, data.h0, data.overlap, data.nelectrons)
    found = describe(part, expansion, data)
    expected = descriptor_of_change(part, expansion, change, gram=coulomb_gram(part, expansion))
    assert found.symbols == ("O", "H")
    assert found.elements.shape == (2, len(ELEMENT_SCALARS))
    assert list(found.elements[:, 0]) == [0.6, 0.1]
    assert np.abs(found.induced - expected.induced).max() == 0
    assert np.abs(found.field - expected.field).max() == 0
    assert abs(expansion.charges(part.symbols) @ found.induced) < 1e-12


@pytest.mark.parametrize("sign", [1, -1], ids=["proper", "improper"])
def test_the_descriptor_turns_with_the_crystal(engine, radical, sign):
    turn = sign * Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    turned = radical.copy()
    turned.set_cell(radical.cell.array @ turn.T)
    turned.set_positions(radical.positions @ turn.T)
    expansion = expansion_of(engine().local_part(radical))
    before, after = descriptor_of(engine(), radical), descriptor_of(engine(), turned)
    for name in ("induced", "field"):
        expected = expansion.rotated(before.symbols, getattr(before, name), turn)
        assert largest(getattr(after, name), expected) < 1e-6
    assert np.array_equal(after.elements, before.elements)


def test_the_descriptor_turns_with_atoms_in_a_cubic_cell(engine):
    atoms = Atoms("OH", [[0.1, -0.2, 0.05], [0.65, 0.4, 0.6]], cell=[4.5] * 3, pbc=True)
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    turned = atoms.copy()
    turned.positions = atoms.positions @ turn.T
    expansion = expansion_of(engine().local_part(atoms))
    before, after = descriptor_of(engine(), atoms), descriptor_of(engine(), turned)
    for name in ("induced", "field"):
        expected = expansion.rotated(before.symbols, getattr(before, name), turn)
        assert largest(getattr(after, name), expected) < 1e-6


def test_lattice_translations_and_permutations_of_atoms_leave_the_descriptor(engine, radical):
    part = engine().local_part(radical)
    expansion, before = expansion_of(part), descriptor_of(engine(), radical)
    moved = radical.copy()
    moved.positions += np.array([[1, -2, 0], [0, 1, 3]]) @ moved.cell.array
    found, swapped = descriptor_of(engine(), moved), descriptor_of(engine(), moved[::-1])
    atoms = np.split(np.arange(len(before.field)), expansion.offsets(part.symbols)[1:-1])
    order = np.concatenate(atoms[::-1])
    for name in ("induced", "field"):
        expected = getattr(before, name)
        assert largest(getattr(found, name), expected) < 1e-6
        assert largest(getattr(swapped, name), expected[order]) < 1e-6
    assert np.array_equal(swapped.elements, before.elements[::-1])


def test_a_supercell_has_the_descriptor_of_its_cell(engine, radical):
    before, after = (
        descriptor_of(engine(), radical, (4, 2, 2)),
        descriptor_of(engine(), radical.repeat((2, 1, 1)), (2, 2, 2)),
    )
    shapes = [engine().local_part(radical.repeat((n, 1, 1))).waves.shape for n in (1, 2)]
    assert shapes[1] == (2 * shapes[0][0], *shapes[0][1:])
    for name in ("induced", "field"):
        assert largest(getattr(after, name), np.tile(getattr(before, name), 2)) < 1e-6


def test_expansions_of_a_potential_are_refused(engine, radical):
    part = engine().local_part(radical)
    elements = zip(dict.fromkeys(part.symbols), part.elements, strict=True)
    with pytest.raises(ValueError, match="that of a density"):
        coulomb_gram(part, standard_expansion("potential", elements))


def test_data_without_h0_is_refused(engine, radical):
    backend = engine()
    part = backend.local_part(radical)
    data = replace(backend.compute(radical), h0=None)
    with pytest.raises(ValueError, match=r"holds no H\(0\), which the descriptor is made of"):
        describe(part, expansion_of(part), data)
