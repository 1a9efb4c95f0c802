"""The engine against matrices of ABACUS v3.9.0 with d and f orbitals, vacuum, and spin-orbit."""

from __future__ import annotations

import tarfile
import warnings

import numpy as np
import pytest

from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.native.engine import NativeH0


@pytest.fixture
def reference(shared_data, tmp_path):
    """Function of the name of a run: what ABACUS wrote, and a function that makes our backend."""

    def reference(name):
        with tarfile.open(shared_data / "abacus" / "h0" / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        folders = shared_data / "pseudo", shared_data / "orbital"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # runs of single terms are incomplete on purpose
            data = read_folder(tmp_path / name, pseudo_dir=folders[0], orbital_dir=folders[1])
        return data, lambda **options: NativeH0(*folders, threads=1, **options)

    return reference


def differences(ours, theirs):
    """Mean and largest difference on the blocks of ABACUS, none of which may be missing."""
    where = ours.pairs.find(theirs.pairs.i, theirs.pairs.j, theirs.pairs.R)
    assert (where >= 0).all()
    error = np.abs(ours.data - theirs.on_pairs(ours.pairs).data)
    return error.mean(), error.max()


@pytest.mark.parametrize(
    ("name", "options", "mean", "largest"),  # meV
    [
        ("PbTe_soc_T_only", {"terms": ["kinetic"]}, 1e-6, 2e-4),
        ("PbTe_soc_Vnl_only", {"terms": ["nonlocal"]}, 1e-6, 2e-4),
        ("PbTe_soc_Vlocal_only", {"terms": ["local"], "moments": "abacus39_auto"}, 1e-4, 0.02),
        ("GaAs_soc_auto", {"moments": "abacus39_auto"}, 1e-4, 0.05),
        ("GaAs_soc_auto", {"moments": "abacus39_auto", "dtype": "float32"}, 1e-3, 0.1),
        ("MoS2_soc_zero", {}, 1e-4, 0.05),
        ("Si2_soc_zero", {}, 1e-4, 0.05),
        ("Si2_nspin1", {"nspin": 1}, 1e-4, 0.05),
    ],
    ids=str,
)
def test_matrices_of_abacus_are_reproduced(reference, name, options, mean, largest):
    expected, backend = reference(name)
    atoms = expected.atoms.copy()
    atoms.set_initial_magnetic_moments(None)
    data = backend(**options).compute(atoms)
    assert differences(data.overlap, expected.overlap)[1] < 1e-8
    found = differences(data.h0, expected.best_hamiltonian())
    assert found[0] < 1e-3 * mean
    assert found[1] < 1e-3 * largest
    if expected.position is not None:
        for ours, theirs in zip(data.position, expected.position, strict=True):
            assert differences(ours, theirs)[1] < 1e-5  # Angstrom


def test_the_moment_with_which_abacus_was_kept_from_setting_its_own_explains_the_rest(reference):
    expected, backend = reference("H2O_soc_zero")
    with_moment = backend(moments="initial").compute(expected.atoms)
    expected.atoms.set_initial_magnetic_moments(None)
    without = backend().compute(expected.atoms)
    assert without.h0.time_reversal_error() < 1e-9  # eV
    assert differences(with_moment.h0, expected.h0)[0] < 1e-7  # eV
    assert differences(without.h0, expected.h0)[0] > differences(with_moment.h0, expected.h0)[0]
