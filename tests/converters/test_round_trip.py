"""Every format gives back what was written, in every layout and for every kind of spin."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham import hdf5
from ase_nextham.converters import FORMATS as ALL_FORMATS
from ase_nextham.converters import convert, guess_format, read, registry, write
from ase_nextham.h0.folder_writer import LAYOUTS
from ase_nextham.testing import random_lcao

# Not here: a format for reading only; and one whose orbitals are not those of the source and one in
# single precision, which have tests of their own below.
FORMATS = [name for name in ALL_FORMATS if name not in ("hamgnn", "nextham-pth", "wannier90")]

# The largest change of a matrix element: text keeps 13 digits; what moves atoms into the cell adds
# their positions to r and takes them away again; a text file of positions moves r along with them.
TOLERANCE = {"native": 0.0} | {name: 1e-11 for name in FORMATS if name != "native"}

CASES = [(name, {}) for name in FORMATS if name != "abacus"]
CASES += [("abacus", {"layout": layout}) for layout in LAYOUTS]

SPINS = ["unpolarised", "collinear", "spinor"]


@pytest.fixture(autouse=True)
def _optional_libraries(request):
    names = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    if "sisl" in [name for name in names if isinstance(name, str)]:
        pytest.importorskip("sisl", reason="sisl is not installed")


def named(path, format):
    """A path with an ending that the format likes."""
    return path.with_name(path.name + (*registry.writable(format).SUFFIXES, "")[0])


def part(data, *formats):
    """The operators that all of the formats have a place for."""
    held = set.intersection(*(set(registry.writable(name).HOLDS) for name in formats))
    return replace(data, **dict.fromkeys({"h0", "hamiltonian", "position"} - held))


def assert_same(found, expected, tolerance):
    assert found.symbols == expected.symbols
    assert_allclose(found.atoms.positions, expected.atoms.positions, atol=1e-12)
    assert_allclose(found.atoms.cell.array, expected.atoms.cell.array, atol=1e-12)
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
@pytest.mark.parametrize("spin", SPINS)
def test_round_trip(tmp_path, format, options, spin):
    data = random_lcao(0, "GaAsGaAs", spin=spin, magnetic=True)  # an order that STRU regroups
    rng = np.random.default_rng(1)
    data = data.translated(rng.integers(-2, 3, (4, 3)))  # and atoms outside the cell
    atoms = data.atoms.copy()
    if spin != "unpolarised":
        atoms.set_initial_magnetic_moments(rng.normal(size=(4, 3) if spin == "spinor" else 4))
    data = part(replace(data, atoms=atoms, fermi_level=1.25), format)
    path = named(tmp_path / "x", format)
    write(path, data, format=format, **options)
    assert_same(read(path), data, TOLERANCE[format])
    assert guess_format(path) == format


@pytest.mark.parametrize(("format", "options"), CASES)
@pytest.mark.parametrize("missing", ["h0", "hamiltonian", "position", "nelectrons"])
def test_what_is_not_there_does_not_appear(tmp_path, format, options, missing):
    data = part(replace(random_lcao(4, "AsH2"), **{missing: None}), format)
    path = named(tmp_path / "x", format)
    if data.h0 is None and data.hamiltonian is None:
        pytest.skip(f"{format} has no place for H(0)")
    write(path, data, format=format, **options)
    found = read(path, format=format)
    if missing == "nelectrons":  # a run folder has pseudopotentials, and they know it
        data = replace(data, nelectrons=found.nelectrons)
    assert_same(found, data, TOLERANCE[format])


@pytest.mark.parametrize(("format", "options"), CASES)
@pytest.mark.parametrize("run", ["v3.8.1/h2o", "v3.8.1/oh_nspin2", "v3.11.0-beta.1/h2o_soc"])
def test_real_data_survive_every_format(abacus_folders, tmp_path, format, options, run, energies):
    data = read(abacus_folders / run)
    data = part(data.permuted(np.arange(len(data.atoms))[::-1]), format)
    path = named(tmp_path / "x", format)
    write(path, data, format=format, **options)
    found = read(path)
    assert_same(found, data, TOLERANCE[format])
    assert_allclose(energies(found), energies(data), atol=1e-9)


@pytest.mark.parametrize("format", FORMATS)
def test_several_labels_of_an_element_survive_or_are_refused_by_name(
    abacus_folders, tmp_path, format
):
    data = read(abacus_folders / "v3.8.1" / "h2o_labels").permuted([2, 0, 1])
    data = part(replace(data, hamiltonian=data.h0), format)
    path = named(tmp_path / "x", format)
    if format in ("abacus", "deeph-legacy", "native", "sisl"):
        write(path, data, format=format)
        assert_same(read(path), replace(data, source=read(path).source), TOLERANCE[format])
    else:
        with pytest.raises(ValueError, match="H[12] .*H[12] "):
            write(path, data, format=format)
        assert not path.exists()


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize(("first", "second"), [*permutations(FORMATS, 2)])
def test_data_survive_two_formats_in_turn(tmp_path, energies, first, second, spin):
    data = part(random_lcao(5, "GaAsGaAs", spin=spin, magnetic=True), first, second)
    shifts = np.random.default_rng(6).integers(-2, 3, (4, 3))
    data = replace(data.translated(shifts), fermi_level=-0.75)
    a, b = named(tmp_path / "a", first), named(tmp_path / "b", second)
    write(a, data, format=first)
    write(b, read(a), format=second)
    found = read(b)
    # differences are taken on the union of the pairs: an R that went astray would show
    assert_same(found, replace(data, source=found.source), 1e-11)
    k = (0.137, -0.291, 0.413)
    assert np.abs(energies(found, k) - energies(data, k)).max() < 1e-8  # eV


@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
@pytest.mark.parametrize("format", FORMATS)
def test_wannier_functions_keep_the_bands_of_every_format_and_survive_it(
    tmp_path, energies, format, spin
):
    data = random_lcao(5, "HSi", spin=spin, magnetic=True, cutoff=2.6)
    data = replace(part(data, format), h0=None, position=None, fermi_level=-0.75)
    there, back = named(tmp_path / "a", format), named(tmp_path / "b", format)
    write(there, data, format=format)
    with pytest.warns(UserWarning, match="tolerance is 0.001 eV"):  # the mesh is so coarse
        write(tmp_path / "c_hr.dat", read(there), kpts=(2, 2, 2))
    found = read(tmp_path / "c_hr.dat")
    write(back, found, format=format)
    assert_same(read(back), replace(found, source=read(back).source), 1e-11)
    for k in ((0, 0, 0), (0.5, 0, 0), (0.5, 0.5, 0.5)):  # where the orthogonalisation is exact
        assert np.abs(energies(read(back), k) - energies(data, k)).max() < 1e-8  # eV
    assert found.symbols == data.symbols
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-12)


@pytest.mark.parametrize("format", FORMATS)
def test_samples_of_nextham_come_from_every_format_and_go_to_it(tmp_path, energies, format):
    if "h0" not in registry.writable(format).HOLDS:
        pytest.skip(f"{format} has no place for H(0), without which there is no sample")
    data = random_lcao(5, "GaAs", spin="spinor", cutoff=2.4)
    data = replace(part(data, format, "nextham-pth"), fermi_level=-0.75)
    there, back = named(tmp_path / "a", format), named(tmp_path / "b", format)
    write(there, data, format=format)
    write(tmp_path / "c.pth", read(there), kpts=(1, 1, 1))
    found = read(tmp_path / "c.pth")
    write(back, found, format=format)
    assert_same(read(back), replace(found, source=read(back).source), 1e-11)
    for name in ("overlap", "h0", "hamiltonian"):  # single precision of numbers up to 1
        assert np.abs((getattr(found, name) - getattr(data, name)).data).max() < 1e-6


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
    with pytest.raises(ValueError, match="'abacs'; known formats: .*abacus.*; did you"):
        write(tmp_path / "x", data, format="abacs")
    with pytest.raises(ValueError, match="the name does not tell the format; give one of .*abacus"):
        write(tmp_path / "x", data)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes.txt: the content is of no known format. Known"):
        read(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match="no path was given"):
        read([])
    with pytest.raises(ValueError, match="unknown format 'deepx'"):
        convert(abacus_folders / "v3.8.1" / "h2o", tmp_path / "y", target_format="deepx")
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
