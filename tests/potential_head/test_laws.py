"""Laws of what a model of the density predicts: H(0), descriptor, network and integral together.

The grid and the k-points of the first density belong to the cell. Whatever leaves these two as
they are is exact: the cell turned with its atoms, and the operations of the lattice that turn the
atoms alone. That the grid is fixed to the cell is seen when all atoms move by less than its
spacing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from scipy.spatial.transform import Rotation

from ase_nextham import load_model
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.model import bundle
from ase_nextham.testing import turned_in_cell

EXACT = 1e-8
"""Of the largest element of dH."""

CELL = 4.4 * np.eye(3)
OPERATIONS = {
    "inversion": -np.eye(3),
    "fourfold": np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "threefold": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "mirror": np.diag([1.0, 1, -1]),
}
"""Together they make the cubic group."""


def distance(found: LCAOMatrix, expected: LCAOMatrix) -> float:
    """Largest difference relative to the largest element."""
    pairs = AtomPairs.union(found.pairs, expected.pairs)
    a, b = found.on_pairs(pairs).data, expected.on_pairs(pairs).data
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture(params=[1, 4], ids=["scalar", "spinor"])
def dh_of(request, engine, radical, random_model):
    """Function of Atoms: the dH of a network with random weights, from their own H(0).

    A second argument changes LCAOData that has dH in place of H.
    """
    backend = engine(nspin=request.param)
    model = random_model(backend.compute(radical), nspin=request.param)

    def dh_of(atoms: Atoms, move=lambda data: data) -> LCAOMatrix:
        data = backend.compute(atoms)
        dh = model.predict(data)
        assert 0.01 < np.abs(dh.data).max() < 10  # eV
        return move(replace(data, hamiltonian=dh)).hamiltonian

    return dh_of


def test_dh_is_hermitian_and_has_time_reversal(dh_of, radical):
    dh = dh_of(radical)
    size = np.abs(dh.data).max()
    assert dh.hermitian_error() < EXACT * size
    assert dh.time_reversal_error() < EXACT * size


def test_models_that_are_read_turn_dh_exactly_though_weights_are_of_single_precision(
    engine, radical, random_network, files, tmp_path
):
    backend = engine()
    info, module = random_network(backend.compute(radical))
    bundle.save(tmp_path / "model", info, module.float())
    model = load_model(tmp_path / "model", **files)
    model.engine.ecutwfc = backend.ecutwfc
    turn = Rotation.random(rng=np.random.default_rng(6)).as_matrix()
    turned = radical.copy()
    turned.set_cell(radical.cell.array @ turn.T)
    turned.set_positions(radical.positions @ turn.T)
    before, after = (model.predict(backend.compute(atoms)) for atoms in (radical, turned))
    assert distance(after, before.rotated(turn)) < EXACT


@pytest.mark.parametrize("sign", [1, -1], ids=["proper", "improper"])
def test_dh_turns_with_the_crystal(dh_of, radical, sign):
    turn = sign * Rotation.random(rng=np.random.default_rng(5)).as_matrix()
    turned = radical.copy()
    turned.set_cell(radical.cell.array @ turn.T)
    turned.set_positions(radical.positions @ turn.T)
    assert distance(dh_of(turned), dh_of(radical).rotated(turn)) < EXACT


def test_atoms_moved_by_lattice_vectors_have_the_same_dh(dh_of, radical):
    shifts = np.array([[1, -2, 0], [0, 1, 3]])
    moved = radical.copy()
    moved.positions += shifts @ radical.cell.array
    expected = dh_of(radical, lambda data: data.translated(shifts))
    assert distance(dh_of(moved), expected) < EXACT


def test_atoms_in_another_order_have_the_same_dh(dh_of, radical):
    expected = dh_of(radical, lambda data: data.permuted([1, 0]))
    assert distance(dh_of(radical[[1, 0]]), expected) < EXACT


def test_dh_of_the_inverted_crystal_is_that_of_the_crystal_inverted(dh_of, radical):
    inverted = radical.copy()
    inverted.positions *= -1
    expected = turned_in_cell(dh_of(radical), radical.cell, -np.eye(3))
    assert distance(dh_of(inverted), expected) < EXACT


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_the_lattice_turn_the_atoms_alone(dh_of, name):
    atoms = Atoms("OH", [[0.1, -0.2, 0.05], [0.65, 0.4, 0.6]], cell=CELL, pbc=True)
    turn = OPERATIONS[name]
    turned = atoms.copy()
    turned.positions = atoms.positions @ turn.T
    expected = turned_in_cell(dh_of(atoms), CELL, turn)
    assert distance(dh_of(turned), expected) < EXACT


def test_the_grid_is_seen_when_all_atoms_move_by_less_than_its_spacing(dh_of, radical):
    moved = radical.copy()
    moved.positions += [0.03, 0.05, -0.07]
    # the cutoff is far below what these orbitals need
    assert EXACT < distance(dh_of(moved), dh_of(radical)) < 0.05
