"""Orbital conventions against reality: ABACUS's matrices of a crystal have its symmetry.

A space-group operation maps each pair of atoms onto another, and the block of the other must be
D B D^T with the matrices D of the convention. A wrong order or sign of one orbital shows at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import spglib

from ase_nextham import hdf5
from ase_nextham.basis import CONVENTIONS

# spglib 2.7 and 2.8 warn about their own way of reporting errors
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")

ROOT = Path(__file__).parents[1]


def operations(atoms):
    """(rotation in Cartesian axes, image atom of each atom, lattice vector it lands in)."""
    cell = (atoms.cell.array, atoms.get_scaled_positions(wrap=False), atoms.numbers)
    symmetry = spglib.get_symmetry_dataset(cell, symprec=1e-4)
    vectors = atoms.cell.array.T
    scaled = cell[1]
    for rotation, translation in zip(symmetry.rotations, symmetry.translations, strict=True):
        images = scaled @ rotation.T + translation
        offset = images[:, None, :] - scaled[None]
        lattice = np.round(offset).astype(int)
        distance = np.abs(offset - lattice).max(axis=2)
        where = distance.argmin(axis=1)
        assert distance.min(axis=1).max() < 1e-4
        shift = lattice[np.arange(len(atoms)), where]
        yield vectors @ rotation @ np.linalg.inv(vectors), rotation, where, shift


def largest_fault(matrix, atoms) -> float:
    """max |block of the image pair - transformed block| over operations and pairs."""
    pairs, fault = matrix.pairs, 0.0
    for cartesian, rotation, where, shift in operations(atoms):
        turned = matrix.rotated(cartesian)
        R = pairs.R @ rotation.T + shift[pairs.j] - shift[pairs.i]
        image = pairs.find(where[pairs.i], where[pairs.j], R)
        assert (image >= 0).all(), "the pairs do not have the symmetry of the crystal"
        for _, _, p, elements in turned.block_groups():
            target = matrix.offsets[image[p]][:, None, None] + elements[0] - elements[0, 0, 0]
            difference = turned.data[elements] - matrix.data[target]
            fault = max(fault, float(np.abs(difference).max()))
    return fault


@pytest.fixture(scope="module")
def gaas():
    return hdf5.read(ROOT / "examples" / "data" / "GaAs_soc.h5")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_overlap_of_gaas_has_its_symmetry_in_every_convention(convention, gaas):
    # s, p, d and f orbitals; 8 printed digits after the point, larger rounding in STRU's positions
    assert largest_fault(gaas.overlap.in_convention(convention), gaas.atoms) < 1e-7


def test_a_wrong_sign_breaks_the_symmetry(gaas):
    """What the test above would see if ABACUS's harmonics were taken as the textbook's."""
    wrong = replace(gaas.overlap, basis=replace(gaas.basis, convention="deeph"))
    assert largest_fault(wrong, gaas.atoms) > 0.1


def test_h0_with_spin_orbit_coupling_has_the_symmetry_of_orbitals_and_spins(gaas):
    # the real-space grid of ABACUS breaks the symmetry of the crystal by less than a meV
    assert largest_fault(gaas.h0, gaas.atoms) < 1e-3  # eV
