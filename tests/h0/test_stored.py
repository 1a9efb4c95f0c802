"""H(0) and S that were computed earlier, found by structure."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from ase_nextham import hdf5
from ase_nextham.h0 import from_name
from ase_nextham.h0.folder import read_folder, write_folder
from ase_nextham.h0.stored import StoredH0
from ase_nextham.testing import check_backend, random_lcao


def difference(a, b) -> float:
    return float(np.abs((a - b).data).max())


@pytest.fixture
def library(tmp_path, copied_run):
    """Native files and ABACUS folders of six structures, two of them with H as well."""
    folder = tmp_path / "library"
    (folder / "random").mkdir(parents=True)
    for seed, symbols in enumerate(("GaAs", "Si2", "GaAsGaAs")):
        hdf5.write(folder / "random" / f"{symbols}.h5", random_lcao(seed, symbols))
    write_folder(folder / "written", random_lcao(3, "GaAs"))
    for run in ("h2o_step1", "h2o_latname"):
        shutil.copytree(copied_run(f"v3.8.1/{run}", run), folder / run)
    return folder


@pytest.fixture
def stored(library, tmp_path):
    return StoredH0(library, orbital_dir=tmp_path / "orbital", pseudo_dir=tmp_path / "pseudo")


@pytest.mark.parametrize("form", ["native", "abacus"])
def test_stored_data_pass_for_a_backend(tmp_path, form):
    data = random_lcao(5, "GaAsGaAs", spin="spinor", magnetic=True)
    path = tmp_path / ("x.h5" if form == "native" else "x")
    (hdf5.write if form == "native" else write_folder)(path, data)
    check_backend(from_name(path).compute, data.atoms, tolerance=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_of_many_the_structure_asked_for_is_found(stored, seed):
    symbols = ("GaAs", "Si2", "GaAsGaAs", "GaAs")[seed]
    data = random_lcao(seed, symbols)
    found = stored.compute(data.atoms)
    assert difference(found.h0, data.h0) < 1e-10
    assert (found.atoms.positions == data.atoms.positions).all()


def test_atoms_in_another_order_and_image_are_recognised(stored, energies):
    data = random_lcao(2, "GaAsGaAs")
    atoms = data.atoms[[3, 1, 0, 2]]
    atoms.positions += [[1, 0, 0], [0, -2, 0], [0, 0, 0], [3, 1, -1]] @ atoms.cell.array
    found = stored.compute(atoms)
    assert found.symbols == ("As", "As", "Ga", "Ga")
    assert (found.atoms.positions == atoms.positions).all()
    assert_allclose(energies(found), energies(data), atol=1e-9)


def test_an_abacus_run_among_others_is_found(stored, abacus_folders):
    expected = read_folder(abacus_folders / "v3.8.1" / "h2o_step1")
    found = stored.compute(expected.atoms[[1, 2, 0]])
    assert found.symbols == ("H", "H", "O")
    assert difference(found.permuted([2, 0, 1]).h0, expected.h0) == 0


def test_runs_that_complete_each_other_are_one_entry(copied_run, tmp_path):
    step1 = copied_run("v3.8.1/h2o_step1", "h0")
    copied_run("v3.8.1/h2o_get_s", "get_s")
    for path in step1.glob("OUT.ABACUS/data-SR*"):
        path.unlink()
    found = StoredH0(step1.parent).compute(read_folder(copied_run("v3.8.1/h2o", "scf")).atoms)
    assert found.h0 is not None


def test_another_structure_is_refused_with_the_nearest_and_its_distance(stored):
    atoms = random_lcao(1, "Si2").atoms
    atoms.positions[1] += [0.0, 0.03, 0.04]
    with pytest.raises(ValueError, match=r"nearest of 6 is .*Si2.h5 \(Si2\): .*is 0.05 Angstrom"):
        stored.compute(atoms)
    with pytest.raises(ValueError, match="does not hold .* with these positions"):
        stored.compute(Atoms("Au", cell=[4, 4, 4], pbc=True))


def test_a_structure_stored_twice_is_refused(library, stored):
    shutil.copy(library / "random" / "Si2.h5", library / "again.hdf5")
    with pytest.raises(ValueError, match=r"several times: .*again.hdf5, .*Si2.h5; name one"):
        stored.compute(random_lcao(1, "Si2").atoms)


def test_a_structure_without_h0_is_refused(tmp_path):
    data = random_lcao(1, "Si2")
    hdf5.write(tmp_path / "x.h5", replace(data, h0=None))
    with pytest.raises(ValueError, match="but not the overlap and H.0.: hamiltonian, overlap"):
        StoredH0(tmp_path / "x.h5").compute(data.atoms)


def test_one_damaged_entry_does_not_hide_the_others(library, stored):
    (library / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    data = random_lcao(1, "Si2")
    assert difference(stored.compute(data.atoms).h0, data.h0) == 0
    data.atoms.positions[0] += 0.1
    moved = data.atoms.copy()
    moved.positions[0] += 0.1
    with pytest.raises(ValueError, match=r"\(1 could not be read; the first: .*broken.h5"):
        stored.compute(moved)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        StoredH0(tmp_path / "absent")
    with pytest.raises(ValueError, match="neither a native file"):
        StoredH0(tmp_path).compute(Atoms("H", cell=[4, 4, 4], pbc=True))


def test_distance_is_measured_across_the_cell_boundary(tmp_path):
    data = random_lcao(1, "Si2")
    hdf5.write(tmp_path / "x.h5", data)
    atoms = data.atoms.copy()
    atoms.positions[0] += atoms.cell.array[0] - [5e-4, 0, 0]
    assert StoredH0(tmp_path / "x.h5").compute(atoms).h0 is not None
