"""The local part of H(0), potential and integral together, against ABACUS's."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest

from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.native.element import load_element
from ase_nextham.h0.native.integral import grid_integral
from ase_nextham.h0.native.potential import local_potential
from ase_nextham.units import BOHR, RYDBERG


@pytest.mark.parametrize(("dtype", "largest"), [("float64", 0.005), ("float32", 0.02)])
def test_the_local_part_of_lead_telluride_is_that_of_abacus(shared_data, local_run, dtype, largest):
    atoms, pairs, up, down = local_run
    names = ["Pb", "Te"]
    elements = [
        load_element(
            name,
            shared_data / "pseudo" / f"{name}.upf",
            shared_data / "orbital" / f"{name}_gga_7au_100Ry_2s2p2d1f.orb",
            100.0,
        )
        for name in names
    ]
    cell, tau = atoms.cell.array / BOHR, atoms.positions / BOHR
    species = [names.index(symbol) for symbol in atoms.symbols]
    form_factors = [element.form_factors for element in elements]
    # ABACUS v3.9 gave each atom sqrt(3) mu_B along z
    potential = local_potential(cell, tau, species, form_factors, [np.sqrt(3)] * 2, 4, 100.0)
    assert potential.grid == (60, 60, 60)
    orbitals = [element.grid_orbitals for element in elements]
    found = grid_integral(
        potential.v, cell, tau, species, orbitals, pairs.i, pairs.j, pairs.R, dtype=dtype
    )
    error = 1e3 * np.abs(found * RYDBERG - [up, down])
    assert error.mean() < 2e-5  # meV
    assert error.max() < largest  # meV


@pytest.fixture(scope="module")
def local_run(shared_data, tmp_path_factory):
    """Atoms, pairs, and the local part for spin up and down in eV, made by ABACUS v3.9.0."""
    folder = tmp_path_factory.mktemp("PbTe")
    with tarfile.open(shared_data / "abacus" / "h0" / "PbTe_soc_Vlocal_only.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with pytest.warns(UserWarning, match="INPUT switches off"):
        data = read_folder(
            folder / "PbTe_soc_Vlocal_only",
            pseudo_dir=shared_data / "pseudo",
            orbital_dir=shared_data / "orbital",
        )
    spins: list[list[np.ndarray]] = [[], []]
    for i, j, R in zip(data.h0.pairs.i, data.h0.pairs.j, data.h0.pairs.R, strict=True):
        block = data.h0.block(i, j, R)
        assert not block[::2, 1::2].any()
        for spin in range(2):
            spins[spin].append(block[spin::2, spin::2].real.ravel())
    return data.atoms, data.h0.pairs, np.concatenate(spins[0]), np.concatenate(spins[1])
