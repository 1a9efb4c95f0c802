"""Bands along a path as ASE's BandStructure."""

from __future__ import annotations

import numpy as np
import pytest
from ase.io.jsonio import read_json
from numpy.testing import assert_allclose

from ase_nextham import hdf5
from ase_nextham.bands import band_gap, band_structure, eigenvalues, fermi_level, kmesh
from ase_nextham.data import LCAOData
from ase_nextham.testing import random_lcao


@pytest.fixture(scope="module")
def silicon(root) -> LCAOData:
    return hdf5.read(root / "tests/data/bands/Si2.h5")


@pytest.fixture(scope="module")
def graphene(root) -> LCAOData:
    return hdf5.read(root / "tests/data/bands/graphene.h5")


def test_energies_are_absolute_and_the_reference_is_the_fermi_level_of_the_mesh(silicon):
    path = silicon.atoms.cell.bandpath("LGX", npoints=30)
    matrix, overlap = silicon.hamiltonian, silicon.overlap
    bs = band_structure(matrix, overlap, path, nelectrons=8, atoms=silicon.atoms, kpts=(4, 4, 4))
    assert bs.energies.shape == (1, 30, 26)
    assert_allclose(bs.energies, eigenvalues(matrix, overlap, path.kpts))
    mesh = kmesh(silicon.atoms, (4, 4, 4), symmetry=False)
    expected = fermi_level(eigenvalues(matrix, overlap, mesh.kpts), 2 * mesh.weights, 8)
    assert bs.reference == pytest.approx(expected, abs=1e-6)  # eV
    without_atoms = band_structure(matrix, overlap, path, nelectrons=8, kpts=(4, 4, 4))
    assert without_atoms.reference == pytest.approx(expected, abs=1e-6)


def test_the_gap_of_silicon_is_indirect_between_gamma_and_x(silicon):
    path = silicon.atoms.cell.bandpath("LGX", npoints=100)
    bs = band_structure(silicon.hamiltonian, silicon.overlap, path, fermi_level=6.8)
    gap = band_gap(bs.energies, 8, "unpolarised")
    assert bs.reference == 6.8
    assert 0.4 < gap.indirect < 0.8  # eV; PBE: 0.6
    assert_allclose(path.kpts[gap.vbm_at[1]], 0)
    assert 0.35 < path.kpts[gap.cbm_at[1]].max() < 0.48  # X is at 1/2


def test_the_dirac_point_of_graphene_is_at_k_and_at_the_fermi_level(graphene):
    graphene = on_two_axes(graphene)
    path = graphene.atoms.cell.bandpath("K", npoints=1, pbc=graphene.atoms.pbc)
    bs = band_structure(
        graphene.hamiltonian, graphene.overlap, path, nelectrons=8, atoms=graphene.atoms, kpts=6.0
    )
    assert_allclose(
        bs.energies[0, 0, 3:5], bs.reference, rtol=0, atol=0.02
    )  # eV; the mesh is finite


def on_two_axes(data: LCAOData) -> LCAOData:
    atoms = data.atoms.copy()
    atoms.pbc = (True, True, False)
    return LCAOData(atoms, data.overlap, hamiltonian=data.hamiltonian)


def test_the_result_is_read_and_plotted_by_ase(silicon, tmp_path):
    path = silicon.atoms.cell.bandpath("GX", npoints=5)
    bs = band_structure(silicon.hamiltonian, silicon.overlap, path, fermi_level=6.8)
    bs.write(tmp_path / "bands.json")
    again = read_json(tmp_path / "bands.json")
    assert_allclose(again.energies, bs.energies)
    assert again.reference == bs.reference


def test_collinear_bands_have_two_spins():
    data = random_lcao(0, spin="collinear", magnetic=True)
    path = data.atoms.cell.bandpath(npoints=7)
    bs = band_structure(data.hamiltonian, data.overlap, path, nelectrons=10, kpts=(2, 2, 2))
    assert bs.energies.shape == (2, len(path.kpts), data.hamiltonian.dimension)
    assert np.abs(bs.energies[0] - bs.energies[1]).max() > 0.01  # eV


def test_a_path_of_another_cell_is_refused(silicon, graphene):
    path = silicon.atoms.cell.bandpath("GX", npoints=5)
    stretched = silicon.atoms.copy()
    stretched.set_cell(1.01 * stretched.cell.array)
    with pytest.raises(ValueError, match=r"path belongs to another cell than the atoms"):
        band_structure(silicon.hamiltonian, silicon.overlap, path, nelectrons=8, atoms=stretched)
    sheet = on_two_axes(graphene)
    path = sheet.atoms.cell.bandpath("GK", npoints=5)
    with pytest.raises(ValueError, match=r"use atoms.cell.bandpath\(..., pbc=atoms.pbc\)"):
        band_structure(sheet.hamiltonian, sheet.overlap, path, nelectrons=8, atoms=sheet.atoms)


def test_the_fermi_level_needs_exactly_one_source(silicon):
    path = silicon.atoms.cell.bandpath("GX", npoints=5)
    for given in ({}, {"nelectrons": 8, "fermi_level": 6.8}):
        with pytest.raises(ValueError, match="give either nelectrons"):
            band_structure(silicon.hamiltonian, silicon.overlap, path, **given)
