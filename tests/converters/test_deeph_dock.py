"""Both DeepH layouts as DeepH-dock writes them: read here for the same numbers."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham.converters import deeph, deeph_legacy, read
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs

RUNS = ["h2o", "oh_nspin2", "h2o_soc"]


@pytest.fixture(scope="session")
def dock_folders(root, tmp_path_factory):
    """Folders written by DeepH-dock, ``<command>/<name>``; not to be changed."""
    folder = tmp_path_factory.mktemp("dock")
    with tarfile.open(root / "tests" / "data" / "deeph" / "dock_folders.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def assert_same_numbers(found: LCAOData, expected: LCAOData, atol: float) -> None:
    """The same operators; a missing pair counts as zeros."""
    assert found.hamiltonian.spin == expected.hamiltonian.spin
    matrices = [(found.overlap, expected.overlap), (found.hamiltonian, expected.hamiltonian)]
    if expected.position is not None:
        matrices += zip(found.position, expected.position, strict=True)
    for a, b in matrices:
        assert np.abs((a - b).data).max() <= atol


def cut_to_overlap(data: LCAOData) -> LCAOData:
    """H only where S has an element that is not zero, as DeepH-dock has it."""
    S = data.overlap
    largest = np.maximum.reduceat(np.abs(S.data), S.offsets[:-1])
    kept = largest > 0
    pairs = AtomPairs(S.pairs.i[kept], S.pairs.j[kept], S.pairs.R[kept])
    return LCAOData(
        atoms=data.atoms,
        overlap=S.cut_to(pairs)[0],
        hamiltonian=data.best_hamiltonian().cut_to(pairs)[0],
        position=None if data.position is None else [r.cut_to(pairs)[0] for r in data.position],
        fermi_level=data.fermi_level,
    )


@pytest.mark.parametrize("run", RUNS)
def test_what_deeph_dock_makes_of_a_run_is_what_we_read_there(abacus_folders, dock_folders, run):
    """Up to what it cuts away, H beyond the pairs of S, and to the digits of its structures."""
    expected = cut_to_overlap(read(abacus_folders / "v3.8.1" / run))
    found = deeph.read(dock_folders / "abacus" / run)
    assert found.symbols == expected.symbols
    assert_allclose(found.atoms.cell.array, expected.atoms.cell.array, atol=1e-5)
    shifts = found.atoms.get_scaled_positions(wrap=False)
    shifts = shifts - expected.atoms.get_scaled_positions(wrap=False)
    assert_allclose(shifts, np.round(shifts), atol=1e-5)
    # it has the positions of ABACUS's log, in the cell, to which the pairs belong
    expected = expected.translated(np.round(shifts).astype(int))
    assert_same_numbers(found, expected, 1e-13)
    assert found.fermi_level == pytest.approx(expected.fermi_level, abs=1e-9)


@pytest.mark.parametrize("run", RUNS)
def test_standardized_is_what_deeph_dock_makes_of_it(dock_folders, tmp_path, run):
    data = deeph.read(dock_folders / "abacus" / run)
    deeph.write(tmp_path / "x", data, energy_zero="standardized")
    (tmp_path / "x" / "nextham.json").unlink()
    info = json.loads((tmp_path / "x" / "info.json").read_text())
    del info["energy_zero_shift_eV"]  # so that it is not moved back
    (tmp_path / "x" / "info.json").write_text(json.dumps(info))
    found = deeph.read(tmp_path / "x")
    expected = deeph.read(dock_folders / "abacus_standardized" / run)
    assert np.abs((found.hamiltonian - expected.hamiltonian).data).max() < 1e-12  # eV


@pytest.mark.parametrize("run", RUNS)
def test_the_old_layout_holds_the_same_numbers(dock_folders, run):
    new = deeph.read(dock_folders / "abacus" / run)
    old = deeph_legacy.read(dock_folders / "abacus_downgraded" / run)
    assert (old.symbols, old.fermi_level) == (new.symbols, new.fermi_level)
    assert_allclose(old.atoms.positions, new.atoms.positions, atol=1e-15)
    assert_same_numbers(old, replace(new, position=None), 0.0)


def test_orbitals_up_to_f_change_places_as_deeph_dock_changes_them(dock_folders):
    ours = deeph.read(dock_folders / "ours" / "GaAs")
    downgraded = deeph_legacy.read(dock_folders / "ours_downgraded" / "GaAs")
    assert_same_numbers(downgraded, ours, 0.0)
    ours = deeph_legacy.read(dock_folders / "ours_legacy" / "AsGa")
    upgraded = deeph.read(dock_folders / "ours_upgraded" / "AsGa")
    assert_same_numbers(upgraded, ours, 0.0)
    assert_same_numbers(ours.permuted([1, 0]), downgraded, 0.0)
