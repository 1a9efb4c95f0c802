"""Loewdin orthogonalisation keeps bands and velocities, and the crystal's laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from ase_nextham.bands import eigenvalues
from ase_nextham.bands.loewdin import (
    LARGEST,
    SQUEEZED,
    converged,
    identity,
    interpolation_error,
    is_orthonormal,
    orthogonalised,
)
from ase_nextham.optics import optical_conductivity
from ase_nextham.testing import random_lcao

MESH = np.indices((3, 4, 5)).reshape(3, -1).T / (3, 4, 5)


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_bands_are_kept_on_the_mesh(spin):
    data = random_lcao(0, "HAs", spin=spin, magnetic=True)
    found = orthogonalised(data, (3, 4, 5))
    assert is_orthonormal(found.overlap, tolerance=0.0)
    for name in ("h0", "hamiltonian"):
        H, new = getattr(data, name), getattr(found, name)
        assert new.hermitian_error() < 1e-13
        exact = eigenvalues(H, data.overlap, MESH[::7])
        assert_allclose(eigenvalues(new, found.overlap, MESH[::7]), exact, atol=1e-11)  # eV
    assert found.position_error() < 1e-13
    assert np.isrealobj(found.hamiltonian.data) == (spin != "spinor")


def test_bands_between_the_points_of_the_mesh_converge_exponentially():
    data = random_lcao(0, "HAs")
    errors = [interpolation_error(orthogonalised(data, (n, n, n)), data) for n in (3, 5, 7)]
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
def test_light_is_absorbed_as_before(spin):
    data = random_lcao(2, "H2", spin=spin, magnetic=True)
    omega = np.linspace(0, 12, 7)
    sigma = optical_conductivity(data, omega, (3, 3, 3), "kubo", eta=0.3)
    size = np.abs(sigma).max()
    errors = []
    for n in (5, 9):
        new = orthogonalised(data, (n, n, n))
        found = optical_conductivity(new, omega, (3, 3, 3), "kubo", eta=0.3)
        errors.append(np.abs(found - sigma).max() / size)
    assert errors[1] < 1e-5
    assert errors[1] < errors[0] / 30


def test_orthogonal_orbitals_turn_with_the_crystal():
    data = replace(random_lcao(1, "GaH"), position=None)
    turn = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix() @ np.diag([1, 1, -1])
    atoms = data.atoms.copy()
    atoms.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    turned = replace(
        data,
        atoms=atoms,
        overlap=data.overlap.rotated(turn),
        h0=data.h0.rotated(turn),
        hamiltonian=data.hamiltonian.rotated(turn),
    )
    expected = orthogonalised(data, (4, 3, 4)).hamiltonian.rotated(turn)
    difference = orthogonalised(turned, (4, 3, 4)).hamiltonian - expected
    assert np.abs(difference.data).max() < 1e-12  # eV


def test_the_cell_to_which_an_atom_is_counted_makes_no_difference():
    data = random_lcao(1, "GaH")
    shifts = np.array([[1, -2, 0], [0, 0, 3]])
    expected = orthogonalised(data, (3, 3, 3)).translated(shifts)
    found = orthogonalised(data.translated(shifts), (3, 3, 3))
    assert np.abs((found.hamiltonian - expected.hamiltonian).data).max() < 1e-12
    for a, b in zip(found.position, expected.position, strict=True):
        assert np.abs((a - b).data).max() < 1e-11


def test_bands_below_an_energy_are_kept_and_those_above_squeezed():
    data = random_lcao(0, "HAs")
    exact = eigenvalues(data.hamiltonian, data.overlap, MESH[::7])
    limit = float(np.median(exact))
    new = orthogonalised(data, (3, 4, 5), exact_below=limit)
    found = eigenvalues(new.hamiltonian, new.overlap, MESH[::7])
    below = exact <= limit
    assert_allclose(found[below], exact[below], atol=1e-11)
    assert found.max() < limit + SQUEEZED
    assert (found[~below] > limit).all()


def test_an_orthonormal_basis_stays_what_it_is():
    data = random_lcao(3, "AsH")
    once = orthogonalised(data, (3, 3, 3))
    twice = orthogonalised(once, (3, 3, 3))
    assert np.abs((once.hamiltonian - twice.hamiltonian).data).max() < 1e-13
    assert not is_orthonormal(data.overlap)
    assert_allclose(identity(data.basis, data.symbols).at_k((0.1, 0, 0)), np.eye(18), atol=0)


def test_the_orbitals_are_not_taken_for_those_of_the_files():
    data = random_lcao(3, "AsH")
    new = orthogonalised(data, (2, 2, 2))
    assert new.basis.difference(data.basis) is not None
    assert new.basis.valence == data.basis.valence
    assert not new.basis.radius


def test_the_mesh_grows_until_the_bands_are_right():
    data = random_lcao(0, "H2")
    new, mesh, error = converged(data, 1e-4)
    assert error <= 1e-4
    assert error == interpolation_error(new, data)
    assert new.position is not None
    assert new.h0 is not None
    assert np.prod(mesh) * data.hamiltonian.dimension**2 <= LARGEST
    coarse, _, worse = converged(data, 1e-1)
    assert error < worse <= 1e-1
    assert len(coarse.pairs) < len(new.pairs)


def test_a_mesh_grows_only_where_the_crystal_does(monkeypatch):
    monkeypatch.setattr("ase_nextham.bands.loewdin.LARGEST", 3000)
    data = random_lcao(0, "H2")
    layer = data.pairs.R[:, 2] == 0
    pairs = type(data.pairs)(data.pairs.i[layer], data.pairs.j[layer], data.pairs.R[layer])
    data = replace(
        data,
        overlap=data.overlap.cut_to(pairs)[0],
        hamiltonian=data.hamiltonian.cut_to(pairs)[0],
        h0=None,
        position=None,
    )
    _, mesh, error = converged(data, 1e-12)
    assert mesh[2] == 1
    assert min(mesh[:2]) > 1
    assert error > 1e-12  # but not beyond the largest size


def test_dependent_orbitals_and_wrong_meshes_are_refused():
    data = random_lcao(0, "H2")
    twin = data.overlap.data.copy()
    block = data.overlap.block(0, 0, (0, 0, 0)).copy()
    block[0, 1] = block[1, 0] = 1.0
    p = data.pairs.find(0, 0, (0, 0, 0))[0]
    twin[data.overlap.offsets[p] : data.overlap.offsets[p + 1]] = block.ravel()
    singular = replace(data, overlap=replace(data.overlap, data=twin), position=None)
    with pytest.raises(ValueError, match=r"overlap has an eigenvalue of .*linearly dependent"):
        orthogonalised(singular, (2, 2, 2))
    for kpts in ((2, 2), (2, 2, 0), (2.5, 2, 2), 4):
        with pytest.raises(ValueError, match="kpts must be three positive integers"):
            orthogonalised(data, kpts)
