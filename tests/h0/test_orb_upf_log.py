"""Orbital files, headers of pseudopotentials, and running logs."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham.h0.log import RunningLog, read_log
from ase_nextham.h0.orb import read_orb
from ase_nextham.h0.upf import read_upf
from ase_nextham.units import BOHR

# --- orbitals ------------------------------------------------------------------------------------


@pytest.fixture
def oxygen(abacus_folders):
    return abacus_folders / "orbital" / "O_gga_7au_100Ry_2s2p1d.orb"


def test_orbitals_have_shells_radius_and_fingerprint(oxygen):
    found = read_orb(oxygen)
    assert found.element == "O"
    assert found.shells == (0, 0, 1, 1, 2)
    assert_allclose(found.radius, 7 * BOHR)
    assert found.fingerprint == hashlib.sha256(oxygen.read_bytes()).hexdigest()
    assert found.functions.shape == (5, 701)
    assert_allclose(found.mesh[[0, 1, -1]], [0, 0.01, 7.0])
    assert not found.functions.flags.writeable


def test_radial_functions_are_normalised_and_those_of_one_shell_orthogonal(oxygen):
    found = read_orb(oxygen)
    weighted = found.mesh * found.functions
    overlap = weighted @ weighted.T * found.spacing
    assert_allclose(np.diag(overlap), 1, atol=1e-12)
    assert_allclose([overlap[0, 1], overlap[2, 3]], 0, atol=1e-6)
    assert_allclose(found.functions[:, -1], 0, atol=1e-12)


def test_values_are_those_printed(oxygen):
    text = oxygen.read_text()
    first = re.search(r"Type\s+L\s+N\s+0\s+0\s+0\s+(\S+)", text).group(1)
    assert read_orb(oxygen).functions[0, 0] == float(first)


def test_functions_that_the_header_does_not_announce_are_left_out(oxygen, tmp_path):
    text = oxygen.read_text().replace("Sorbital-->       2", "Sorbital-->       1")
    (tmp_path / "O.orb").write_text(text)
    found, whole = read_orb(tmp_path / "O.orb"), read_orb(oxygen)
    assert found.shells == (0, 1, 1, 2)
    assert (found.functions == whole.functions[[0, 2, 3, 4]]).all()
    assert found.fingerprint != whole.fingerprint


def test_all_orbitals_of_the_library_are_read(shared_data):
    for path in (shared_data / "orbital").glob("*.orb"):
        found = read_orb(path)
        label = "".join(f"{found.shells.count(l)}{'spdf'[l]}" for l in sorted(set(found.shells)))
        assert label in path.name
        assert found.element == path.name.split("_")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[: len(t) // 2], "lacks the one with l = 1, N = |is cut short or garbled"),
        (lambda t: t[:-200], "values on a mesh of 701; the file is cut short"),
        (lambda t: t.replace("SUMMARY", ""), "no line 'SUMMARY  END'"),
        (lambda t: t.replace("Element ", "Elements"), "no line 'Element'"),
        (lambda t: t.replace("Lmax                        2", ""), "no line 'Lmax'"),
        (lambda t: t.replace("Mesh ", "mesh "), "no line 'Mesh'"),
        (lambda t: t.replace("701", "601"), "the mesh ends at 6 Bohr, the cutoff is 7"),
        (lambda t: t.replace("Lmax                        2", "Lmax  9"), "Lmax is 9"),
        (lambda t: t.replace("Dorbital-->       1", "Dorbital-->       2"), "l = 2, N = 1"),
        (lambda t: t.replace("e-0", "e+0"), "has the norm"),
        (lambda t: t.replace("e+00", "e+00x", 1), "radial function 1 is garbled"),
        (lambda t: t.replace("1.", "nan.", 1).replace("nan.", "nan "), "garbled|not finite|values"),
    ],
)
def test_a_damaged_orbital_file_is_refused_with_the_reason(oxygen, tmp_path, change, message):
    path = tmp_path / "O.orb"
    text = oxygen.read_text()
    head, mark, body = text.partition("Type")
    changed = change(text) if "nan" not in message else head + mark + change(body)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(path))}.*({message})"):
        read_orb(path)


@pytest.mark.parametrize(
    ("pattern", "new", "message"),
    [
        (r"(orbital-->\s+)\d+", r"\g<1>0", "the header announces no orbitals"),
        (r"(\ndr\s+)\S+", r"\g<1>-0.01", "mesh of 701 points with spacing -0.01 Bohr"),
        (r"(\ndr\s+)\S+", r"\g<1>wide", "dr is 'wide', not a number"),
        (r"( 0 +0 +0\s+)\S+", r"\g<1>nan", r"function 1 \(l = 0\) holds values that are not fini"),
    ],
)
def test_numbers_that_cannot_be_are_refused(oxygen, tmp_path, pattern, new, message):
    path = tmp_path / "O.orb"
    text, count = re.subn(pattern, new, oxygen.read_text())
    assert count
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_orb(path)


def test_a_function_that_does_not_vanish_at_the_cutoff_is_refused(oxygen, tmp_path):
    text = oxygen.read_text()
    start = text.index("Type", text.index("Type") + 1)
    numbers = text[:start].rstrip()
    last = numbers.split()[-len(["Type"]) :][0]
    path = tmp_path / "O.orb"
    path.write_text(numbers[: -len(last)] + "1.0e-01\n" + text[start - 16 :])
    with pytest.raises(ValueError, match=r"radial function 1 \(l = 0\) is 0.1 at the cutoff"):
        read_orb(path)


# --- pseudopotentials ----------------------------------------------------------------------------

UPF = """\
<UPF version="2.0.1">
<PP_INFO>
<PP_HEADER element="Xx" z_valence="99"/>  & not XML <at all
</PP_INFO>
<!-- header -->
<PP_HEADER
{}/>
<PP_MESH>
"""
ATTRIBUTES = (
    'element="Si"\nrelativistic = \'full\' has_so=".TRUE." core_correction="F"\n'
    'comment="a > b / c" functional="PBE" z_valence="  4.0D+00" mesh_size=" 1528 "'
)


def test_the_header_of_a_pseudopotential_is_read(tmp_path):
    path = tmp_path / "Si.upf"
    path.write_text(UPF.format(ATTRIBUTES))
    found = read_upf(path)
    assert (found.element, found.valence, found.mesh_size) == ("Si", 4.0, 1528)
    assert (found.has_so, found.core_correction) == (True, False)
    assert (found.relativistic, found.functional) == ("full", "PBE")
    assert found.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_pseudopotentials_of_the_runs_are_read(abacus_folders):
    hydrogen, oxygen = (read_upf(abacus_folders / "pseudo" / f"{e}.upf") for e in "HO")
    assert (hydrogen.valence, oxygen.valence) == (1.0, 6.0)
    assert oxygen.has_so
    assert oxygen.core_correction
    assert (oxygen.relativistic, oxygen.functional) == ("full", "PBE")


def test_all_pseudopotentials_of_the_library_are_read(shared_data):
    for path in (shared_data / "pseudo").glob("*.upf"):
        found = read_upf(path)
        assert found.element == path.stem
        assert found.has_so
        assert 1 <= found.valence <= 20


def test_upf_version_1_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "Si.UPF"
    path.write_text("<PP_INFO>\n</PP_INFO>\n<PP_HEADER>\n   0   Version Number\n</PP_HEADER>\n")
    with pytest.raises(ValueError, match="UPF version 1; convert it to version 2, for example"):
        read_upf(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no PP_HEADER, so this is not a UPF file"),
        (UPF.format('element="Si"'), "PP_HEADER: there is no attribute 'z_valence'"),
        (UPF.format(ATTRIBUTES.replace("4.0D+00", "four")), "z_valence is 'four', not a number"),
        (UPF.format('element="Si z_valence=4'), "expected an attribute, found 'element="),
    ],
)
def test_a_damaged_pseudopotential_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "Si.upf"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_upf(path)


# --- logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("v3.8.1/h2o", RunningLog("3.8.1", {0: 0.48668033149}, {0: True})),
        ("v3.11.0-beta.1/h2o", RunningLog("3.11.0-beta.1", {0: 0.4866803315}, {0: True})),
        ("v3.8.1/h2o_step1", RunningLog("3.8.1", {0: -2.0533870674}, {0: False})),
        ("v3.11.0-beta.1/h2o_step1", RunningLog("3.11.0-beta.1", {0: -2.0533870674}, {0: False})),
        ("v3.9.0/h2o_get_hs", RunningLog("3.9.0", {}, {})),
        (
            "v3.8.1/oh_soc_auto",
            RunningLog("3.8.1", {0: -7.9818097942}, {0: False}, moments_autoset=True),
        ),
        (
            "v3.11.0-beta.1/oh_soc_auto",
            RunningLog("3.11.0-beta.1", {0: -7.9818097942}, {0: False}, moments_autoset=True),
        ),
    ],
)
def test_logs_of_all_versions_give_fermi_level_and_convergence(abacus_folders, run, expected):
    (path,) = (abacus_folders / run).glob("OUT.ABACUS/running_*.log")
    assert read_log(path) == expected


@pytest.mark.parametrize("version", ["v3.8.1", "v3.11.0-beta.1"])
def test_every_ionic_step_has_its_own_fermi_level(abacus_folders, version):
    log = read_log(abacus_folders / version / "h2o_relax" / "OUT.ABACUS" / "running_relax.log")
    assert_allclose([log.fermi_levels[0], log.fermi_levels[1]], [0.48668, -3.20660], atol=1e-4)
    assert log.converged == {0: True, 1: True}


@pytest.mark.parametrize(
    ("text", "fermi_levels"),
    [
        # 3.2 and 3.4 print no ionic step in the same way; 3.11 no EFERMI
        (
            "      E_Fermi               +0.494804756627                +6.73216408763\n"
            " charge density convergence is achieved\n EFERMI = 6.732899138490768 eV\n",
            {0: 6.732899138490768},
        ),
        ("E_Fermi                1.4127725402        19.2217565246\n", {0: 19.2217565246}),
        (" E_Fermi_up     0.1   1.36\n E_Fermi_dw     0.2   2.72\n", {}),
        ("", {}),
    ],
)
def test_fermi_level_in_the_wording_of_other_versions(tmp_path, text, fermi_levels):
    (tmp_path / "log").write_text(text)
    assert read_log(tmp_path / "log").fermi_levels == fermi_levels
