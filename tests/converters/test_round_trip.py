"""Every format gives back what was written, in every layout and for every kind of spin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham import hdf5
from ase_nextham.converters import FORMATS, convert, guess_format, read, write
from ase_nextham.h0.folder_writer import LAYOUTS
from ase_nextham.testing import random_lcao

# the largest change of a matrix element: text keeps 13 digits, and what moves atoms into the cell
# adds their positions to r and takes them away again
TOLERANCE = {"native": 0.0, "abacus": 1e-11}

CASES = [(name, {}) for name in FORMATS if name != "abacus"]
CASES += [("abacus", {"layout": layout}) for layout in LAYOUTS]


def assert_same(found, expected, tolerance):
    assert found.symbols == expected.symbols
    assert_allclose(found.atoms.positions, expected.atoms.positions, atol=1e-13)
    assert_allclose(found.atoms.cell.array, expected.atoms.cell.array, rtol=1e-15)
    moments = (d.atoms.get_initial_magnetic_moments() for d in (found, expected))
    assert_allclose(*moments, atol=1e-15)
    for name in ("overlap", "h0", "hamiltonian"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if b is not None:
            assert a.spin == b.spin
            assert np.abs((a - b).data).max() <= tolerance
    assert (found.position is None) == (expected.position is None)
    for a, b in zip(found.position or (), expected.position or (), strict=True):
        assert np.abs((a - b).data).max() <= tolerance
    assert found.nelectrons == expected.nelectrons
    assert found.fermi_level == expected.fermi_level
    assert found.source == expected.source
    for name in ("shells", "radius", "fingerprint", "valence", "convention"):
        assert getattr(found.basis, name) == getattr(expected.basis, name)


@pytest.mark.parametrize(("format", "options"), CASES)
@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_round_trip(tmp_path, format, options, spin):
    data = random_lcao(0, "GaAsGaAs", spin=spin, magnetic=True)  # an order that STRU regroups
    rng = np.random.default_rng(1)
    data = data.translated(rng.integers(-2, 3, (4, 3)))  # and atoms outside the cell
    atoms = data.atoms.copy()
    if spin != "unpolarised":
        atoms.set_initial_magnetic_moments(rng.normal(size=(4, 3) if spin == "spinor" else 4))
    data = replace(data, atoms=atoms, fermi_level=1.25)
    write(tmp_path / "x", data, format=format, **options)
    assert_same(read(tmp_path / "x"), data, TOLERANCE[format])
    assert guess_format(tmp_path / "x") == format


@pytest.mark.parametrize(("format", "options"), CASES)
@pytest.mark.parametrize("missing", ["h0", "hamiltonian", "position", "nelectrons"])
def test_what_is_not_there_does_not_appear(tmp_path, format, options, missing):
    data = replace(random_lcao(4, "AsH2"), **{missing: None})
    write(tmp_path / "x", data, format=format, **options)
    found = read(tmp_path / "x", format=format)
    if missing == "nelectrons":  # a run folder has pseudopotentials, and they know it
        data = replace(data, nelectrons=found.nelectrons)
    assert_same(found, data, TOLERANCE[format])


@pytest.mark.parametrize(("format", "options"), CASES)
@pytest.mark.parametrize("run", ["v3.8.1/h2o", "v3.8.1/oh_nspin2", "v3.11.0-beta.1/h2o_soc"])
def test_real_data_survive_every_format(abacus_folders, tmp_path, format, options, run, energies):
    data = read(abacus_folders / run)
    data = data.permuted(np.arange(len(data.atoms))[::-1])
    write(tmp_path / "x", data, format=format, **options)
    found = read(tmp_path / "x")
    assert_same(found, data, TOLERANCE[format])
    assert_allclose(energies(found), energies(data), atol=1e-9)


def test_several_labels_of_an_element_survive(abacus_folders, tmp_path):
    data = read(abacus_folders / "v3.8.1" / "h2o_labels").permuted([2, 0, 1])
    for format in FORMATS:
        write(tmp_path / format, data, format=format)
        assert_same(read(tmp_path / format), data, TOLERANCE[format])


def test_what_is_converted_is_what_was_read(abacus_folders, tmp_path):
    data = read(abacus_folders / "v3.8.1" / "h2o")
    convert(abacus_folders / "v3.8.1" / "h2o", tmp_path / "h2o.h5")
    assert_same(hdf5.read(tmp_path / "h2o.h5"), data, 0.0)
    convert(tmp_path / "h2o.h5", tmp_path / "folder", target_format="abacus")
    assert_same(read(tmp_path / "folder", format="abacus"), data, 1e-11)


def test_several_folders_are_read_as_one(abacus_folders):
    runs = [abacus_folders / "v3.8.1" / name for name in ("h2o_step1", "h2o")]
    data = read(runs)
    assert data.h0 is not None
    assert data.hamiltonian is not None


def test_unknown_formats_are_refused_with_the_known_ones(tmp_path, abacus_folders):
    data = random_lcao(0)
    with pytest.raises(ValueError, match="'abacs'; known formats: abacus, native; did you"):
        write(tmp_path / "x", data, format="abacs")
    with pytest.raises(ValueError, match="the name does not tell the format; give one of abacus"):
        write(tmp_path / "x", data)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes.txt: the content is of no known format. Known"):
        read(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match="no path was given"):
        read([])
    with pytest.raises(ValueError, match="unknown format 'deeph'"):
        convert(abacus_folders / "v3.8.1" / "h2o", tmp_path / "y", target_format="deeph")
    hdf5.write(tmp_path / "a.h5", data)
    with pytest.raises(ValueError, match="format 'native' is read from one path, not from 2"):
        read([tmp_path / "a.h5", tmp_path / "a.h5"])


def test_the_format_of_a_matrix_file_is_told_though_it_cannot_be_read_alone(abacus_folders):
    path = abacus_folders / "v3.11.0-beta.1" / "h2o" / "OUT.ABACUS" / "hrs1_nao.csr"
    assert guess_format(path) == "abacus"
    with pytest.raises(ValueError, match="a file; matrices need the structure and the orbitals"):
        read(path)


def test_a_damaged_run_is_refused_for_its_damage(copied_run):
    run = copied_run("v3.8.1/h2o")
    (run / "INPUT").write_text("nothing")
    with pytest.raises(ValueError, match="no line INPUT_PARAMETERS"):
        read(run)
