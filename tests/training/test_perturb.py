"""Displaced and strained structures: seeded, bounded, and read back from their files."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read

from ase_nextham.training.perturb import perturbed, standardised, write_structures

needs_phonopy = pytest.mark.skipif(
    find_spec("phonopy") is None,
    reason="phonopy is not installed",
)
GAAS = bulk("GaAs", "zincblende", a=5.653, cubic=True)


def strain_of(atoms: Atoms, ideal: Atoms) -> np.ndarray:
    return np.linalg.solve(ideal.cell.array, atoms.cell.array) - np.eye(3)


@needs_phonopy
def test_atoms_move_and_cells_deform_within_bounds():
    ideal = standardised(GAAS)
    moved_by, strains = [], []
    for atoms in perturbed(GAAS, 20, displacement=0.07, strain=0.03):
        strain = strain_of(atoms, ideal)
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)
        strained = ideal.copy()
        strained.set_cell(atoms.cell, scale_atoms=True)
        moved_by.append(np.linalg.norm(atoms.positions - strained.positions, axis=1))
        strains.append(strain)
    assert np.max(moved_by) <= 0.07  # Angstrom
    assert np.ptp(np.max(moved_by, axis=1)) > 0.03
    assert 0.02 < np.max(np.abs(strains)) <= 0.03
    assert np.abs(np.mean(strains, axis=0)).max() < 0.01


@needs_phonopy
def test_the_seed_decides_and_more_copies_begin_with_the_same_ones():
    few, many, others = perturbed(GAAS, 2), perturbed(GAAS, 4), perturbed(GAAS, 2, seed=1)
    for a, b, c in zip(few, many, others, strict=False):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.cell, b.cell)
        assert np.abs(a.positions - c.positions).max() > 1e-3
    assert np.abs(many[0].positions - many[1].positions).max() > 1e-3


@needs_phonopy
def test_only_what_is_asked_for_changes():
    ideal = standardised(GAAS)
    for atoms in perturbed(GAAS, 2, strain=0):
        np.testing.assert_array_equal(atoms.cell, ideal.cell)
    for atoms in perturbed(GAAS, 2, displacement=0):
        fractional = atoms.get_scaled_positions()
        np.testing.assert_allclose(fractional, ideal.get_scaled_positions(), atol=1e-12)
    (atoms,) = perturbed(GAAS, 1, cell="as given", supercell=(1, 2, 1))
    assert atoms.get_chemical_symbols() == GAAS.get_chemical_symbols() * 2


def test_the_cell_is_standardised():
    assert len(standardised(GAAS)) == 2
    assert len(standardised(bulk("Si"), "conventional")) == 8
    assert standardised(GAAS).cell.volume == pytest.approx(5.653**3 / 4)
    assert len(standardised(GAAS, "as given")) == 8


@needs_phonopy
def test_moments_stay_where_the_cell_does():
    iron = bulk("Fe", "bcc", a=2.87)
    iron.set_initial_magnetic_moments([2.2])
    with pytest.raises(ValueError, match="magnetic moments, which these atoms have"):
        perturbed(iron, 1)
    (atoms,) = perturbed(iron, 1, cell="as given")
    assert atoms.get_initial_magnetic_moments().tolist() == [2.2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "at least 1, not 0"),
        ({"displacement": -0.1}, r"displacement=-0.1 must be between 0 and 1.0"),
        ({"strain": 2}, r"strain=2 must be between 0 and 0.3"),
        ({"supercell": (1, 0, 1)}, "three positive integers"),
        ({"cell": "small"}, "known: primitive, conventional, as given"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        perturbed(GAAS, **{"number": 1} | options)


def test_structures_without_a_standard_cell_are_refused():
    with pytest.raises(ValueError, match="three cell vectors"):
        standardised(Atoms("H"))
    with pytest.raises(ValueError, match="do atoms coincide"):
        standardised(Atoms("H2", positions=np.zeros((2, 3)), cell=[3, 3, 3], pbc=True))
    with pytest.raises(ValueError, match="not periodic in all directions"):
        standardised(Atoms("H", cell=[3, 3, 20], pbc=(True, True, False)))


@needs_phonopy
def test_structures_are_written_by_number_and_never_over_others(tmp_path):
    structures = perturbed(GAAS, 3)
    paths = write_structures(structures, tmp_path / "GaAs", "GaAs")
    assert [path.name for path in paths] == ["GaAs_0.extxyz", "GaAs_1.extxyz", "GaAs_2.extxyz"]
    again = read(paths[1])
    np.testing.assert_allclose(again.positions, structures[1].positions, atol=1e-7)  # Angstrom
    np.testing.assert_allclose(again.cell, structures[1].cell, atol=1e-7)
    with pytest.raises(FileExistsError, match=r"GaAs_0.extxyz is there already"):
        write_structures(structures, tmp_path / "GaAs", "GaAs")
