"""Parts of data, other spins, and conversions as a trial."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ase_nextham import hdf5
from ase_nextham.converters import (
    check_conversion,
    conversion,
    convert,
    native,
    streaming,
    write,
)
from ase_nextham.testing import random_lcao


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.h5"
    hdf5.write(path, random_lcao(0, spin="collinear", magnetic=True))
    return path


def test_only_what_is_asked_for_is_written(source, tmp_path):
    result = convert(source, tmp_path / "x.h5", only=["h0", "overlap"])
    assert result.operators == ("overlap", "h0")
    found = hdf5.read(tmp_path / "x.h5")
    assert found.hamiltonian is None
    assert found.position is None
    assert_array_equal(found.h0.data, hdf5.read(source).h0.data)


@pytest.mark.parametrize(("spin", "channel"), [("up", 0), ("down", 1)])
def test_one_channel_of_a_collinear_hamiltonian_can_be_taken(source, tmp_path, spin, channel):
    convert(source, tmp_path / "x.h5", spin=spin)
    found = hdf5.read(tmp_path / "x.h5").hamiltonian
    assert found.spin == "unpolarised"
    assert_array_equal(found.data, hdf5.read(source).hamiltonian.data[channel])


def test_more_spin_gives_the_same_bands(source, tmp_path, energies):
    convert(source, tmp_path / "x.h5", spin="spinor")
    found = hdf5.read(tmp_path / "x.h5")
    assert found.hamiltonian.spin == "spinor"
    assert np.abs(energies(found) - energies(hdf5.read(source))).max() < 1e-10  # eV


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"only": ["H"]}, "unknown operator 'H'; known: overlap, h0, hamiltonian, position"),
        ({"spin": "left"}, "unknown spin 'left'; known: up, down"),
        ({"spin": "unpolarised"}, "unknown spin"),
        ({"write_options": {"layout": "x"}}, "option 'layout' means nothing for format 'native'"),
        ({"read_options": {"step": 1}}, "option 'step' means nothing for format 'native'; it take"),
    ],
)
def test_choices_that_mean_nothing_are_refused(source, tmp_path, choice, message):
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "x.h5", **choice)
    assert not (tmp_path / "x.h5").exists()


def test_what_the_source_lacks_cannot_be_asked_for(tmp_path):
    hdf5.write(tmp_path / "x.h5", replace(random_lcao(0), position=None))
    with pytest.raises(ValueError, match="'position' is asked for, but the source holds"):
        convert(tmp_path / "x.h5", tmp_path / "y.h5", only=["position"])
    with pytest.raises(ValueError, match="spin 'up' is asked for, but the Hamiltonian is unpolar"):
        convert(tmp_path / "x.h5", tmp_path / "y.h5", spin="up")


def test_a_check_compares_and_leaves_nothing(source, tmp_path):
    before = sorted(os.listdir(tmp_path))
    errors = check_conversion(source, tmp_path / "new" / "x", target_format="abacus")
    assert set(errors) == {"h0", "hamiltonian"}
    assert 0 < max(error.all for error in errors.values()) < 1e-9  # eV: text of 13 digits
    assert all(error.occupied <= error.all for error in errors.values())
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "new"])
    assert not os.listdir(tmp_path / "new")


def test_remarks_of_a_check_name_the_target(source, tmp_path):
    with pytest.warns(UserWarning, match=f"^{tmp_path / 'x'}: deeph-legacy has no place for r"):
        check_conversion(source, tmp_path / "x", target_format="deeph-legacy")


def test_a_check_sees_a_wrong_result(source, tmp_path, monkeypatch):
    def spoiled(path, data):
        hdf5.write(path, replace(data, h0=data.h0 + 1e-3 * data.overlap.with_spin("collinear")))

    monkeypatch.setattr(native, "write", spoiled)
    errors = check_conversion(source, tmp_path / "x.h5")
    assert abs(errors["h0"].all - 1e-3) < 1e-9  # eV: mu S moves every band by mu
    assert abs(errors["h0"].occupied - 1e-3) < 1e-9
    assert errors["hamiltonian"].all == 0


def test_a_check_sees_bands_that_got_lost(source, tmp_path, monkeypatch):
    def spoiled(path, data):
        hdf5.write(path, random_lcao(0, "Ga"))

    monkeypatch.setattr(native, "write", spoiled)
    with pytest.raises(ValueError, match=r"66 spin bands were written as native, and 40 read back"):
        check_conversion(source, tmp_path / "x.h5")


def test_a_check_needs_a_hamiltonian(tmp_path):
    hdf5.write(tmp_path / "s.h5", replace(random_lcao(0), h0=None, hamiltonian=None))
    with pytest.raises(ValueError, match="there is no Hamiltonian whose eigenvalues"):
        check_conversion(tmp_path / "s.h5", tmp_path / "x.h5")


def test_large_matrix_files_are_streamed(tmp_path, monkeypatch):
    write(tmp_path / "run", random_lcao(0), format="abacus")
    convert(tmp_path / "run", tmp_path / "a.h5", only=["h0"])
    monkeypatch.setattr(streaming, "LARGE", 1)
    monkeypatch.setattr(conversion, "read", None)  # what is not streamed would need it
    result = convert(tmp_path / "run", tmp_path / "b.h5", only=["h0"])
    assert result.operators == ("overlap", "h0")
    a, b = (hdf5.read(tmp_path / name) for name in ("a.h5", "b.h5"))
    assert_array_equal(a.h0.data, b.h0.data)
    with pytest.raises(TypeError):  # another spin is made in memory
        convert(tmp_path / "run", tmp_path / "c.h5", spin="spinor")
