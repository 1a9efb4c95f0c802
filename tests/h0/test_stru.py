"""STRU and INPUT: every way ABACUS lets one write a structure, and where atoms then stand."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ase_nextham.h0 import inputfile
from ase_nextham.h0.inputfile import read_input, write_input
from ase_nextham.h0.stru import (
    LATNAMES,
    Species,
    Structure,
    chemical_symbol,
    lattice_vectors,
    read_stru,
    wrapped,
    write_stru,
)
from ase_nextham.units import BOHR

TEXT = """\
ATOMIC_SPECIES
Fe1 55.845 Fe.upf upf201  // label; mass; file; type
Fe2 55.845 ../pp//Fe.upf  # another label
O   15.999 O.upf

NUMERICAL_ORBITAL
Fe_4s2p2d1f.orb // first
sub/Fe_2s1p.orb
O.orb # last

LATTICE_CONSTANT
8.0 // Bohr

LATTICE_VECTORS
1.0 0.0 0.0 // a
0.1 1.2 0.0 #b
0.0 0.3 0.9//c

NUMERICAL_DESCRIPTOR
jle.orb

ATOMIC_POSITIONS
{kind}

Fe1 // species
2.0 // moment of each atom
1
{0} m 0 1 0

Fe2
0.0
1
{1} 1 1 1 mag -1.5 v 0.1 0.2 0.3

O
0.0
2
{2} mag 0.5 angle1 90 angle2 180 lambda 0.1 // words
{3} velocity 0 0 0 #mag 3
"""
FRACTIONAL = np.array([[0.1, 0.2, 0.3], [0.5, 0.25, 0.75], [0.9, 0.05, 0.4], [0.3, 0.6, 0.95]])
VECTORS = np.array([[1.0, 0.0, 0.0], [0.1, 1.2, 0.0], [0.0, 0.3, 0.9]])


def structure(tmp_path, kind="Direct", coordinates=FRACTIONAL, text=TEXT):
    rows = [" ".join(map(repr, map(float, row))) for row in coordinates]
    (tmp_path / "STRU").write_text(text.format(*rows, kind=kind))
    return read_stru(tmp_path / "STRU")


def test_species_keep_label_files_and_order(tmp_path):
    found = structure(tmp_path)
    assert found.labels == ("Fe1", "Fe2", "O", "O")
    assert found.atoms.get_chemical_symbols() == ["Fe", "Fe", "O", "O"]
    assert found["Fe1"].orbital == "Fe_4s2p2d1f.orb"
    assert found["Fe2"] == Species("Fe2", "Fe", 55.845, "../pp//Fe.upf", "sub/Fe_2s1p.orb")


def test_lengths_are_in_bohr_of_abacus(tmp_path):
    atoms = structure(tmp_path).atoms
    assert_allclose(atoms.cell.array, VECTORS * 8.0 * BOHR, rtol=1e-15)
    assert_allclose(atoms.get_scaled_positions(), FRACTIONAL, atol=1e-14)
    assert atoms.pbc.all()


@pytest.mark.parametrize(
    ("kind", "unit", "centred"),
    [
        ("Cartesian", 8.0 * BOHR, ""),
        ("Cartesian_au", BOHR, ""),
        ("Cartesian_angstrom", 1.0, ""),
        ("Cartesian_angstrom_center_xy", 1.0, "xy"),
        ("Cartesian_angstrom_center_xz", 1.0, "xz"),
        ("Cartesian_angstrom_center_yz", 1.0, "yz"),
        ("Cartesian_angstrom_center_xyz", 1.0, "xyz"),
    ],
)
def test_every_kind_of_coordinates_gives_the_same_positions(tmp_path, kind, unit, centred):
    cell = VECTORS * 8.0 * BOHR
    centre = np.where([axis in centred for axis in "xyz"], cell.sum(axis=0) / 2, 0.0)
    found = structure(tmp_path, kind, (FRACTIONAL @ cell - centre) / unit)
    assert_allclose(found.atoms.positions, FRACTIONAL @ cell, atol=1e-12)


def test_moments_of_species_of_atoms_and_by_angles(tmp_path):
    moments = structure(tmp_path).atoms.get_initial_magnetic_moments()
    assert_allclose(moments, [[0, 0, 2.0], [0, 0, -1.5], [-0.5, 0, 0], [0, 0, 0]], atol=1e-15)


def test_moments_are_scalars_where_no_vector_is_given(tmp_path):
    text = TEXT.replace("angle1 90 angle2 180", "")
    moments = structure(tmp_path, text=text).atoms.get_initial_magnetic_moments()
    assert moments.tolist() == [2.0, -1.5, 0.5, 0.0]


def test_a_vector_moment_is_three_numbers_after_mag(tmp_path):
    text = TEXT.replace("mag -1.5", "mag 0.1 -0.2 0.3 m 1 1 1")
    moments = structure(tmp_path, text=text).atoms.get_initial_magnetic_moments()
    assert_allclose(moments[1], [0.1, -0.2, 0.3])


def test_no_moments_are_set_where_all_are_zero(tmp_path):
    text = TEXT.replace("2.0 // moment", "0.0 //").replace("mag", "#")
    assert not structure(tmp_path, text=text).atoms.has("initial_magmoms")


@given(
    fractional=st.lists(st.floats(-50, 50), min_size=3, max_size=3),
    move=st.lists(st.integers(-20, 20), min_size=3, max_size=3),
)
def test_atoms_are_wrapped_as_abacus_does(fractional, move):
    inside, images = wrapped(np.array(fractional))
    expected = np.fmod(np.array(fractional) + 10000, 1.0)
    assert np.abs(inside - expected).max() < 2e-12
    assert_allclose(inside + images, fractional, atol=1e-14)
    again, further = wrapped(inside)
    assert_allclose(again, inside, rtol=0, atol=0)
    assert not further.any()
    moved, _ = wrapped(np.array(fractional) + move)
    apart = np.abs(moved - inside)
    assert np.minimum(apart, 1 - apart).max() < 2e-12


def test_a_coordinate_just_below_zero_is_taken_to_zero_and_not_to_one():
    inside, images = wrapped(np.array([-1e-13, 1 - 1e-13, -1e-11]))
    assert images.tolist() == [0, 1, -1]
    assert np.abs(inside[:2]).max() < 2e-13


def test_atoms_outside_the_cell_are_moved_in_and_the_images_kept(tmp_path):
    away = np.array([[1, 0, -1], [0, 0, 0], [-2, 3, 0], [0, -1, 0]])
    found = structure(tmp_path, coordinates=FRACTIONAL + away)
    assert found.images.tolist() == away.tolist()
    assert_allclose(found.atoms.get_scaled_positions(wrap=False), FRACTIONAL, atol=1e-13)


# --- Bravais lattices ----------------------------------------------------------------------------

PARAMETERS = {"b/a": 1.3, "c/a": 1.7, "cos_ab": 0.2, "cos_ac": -0.1, "cos_bc": 0.3}
B, C, GAMMA = 1.3, 1.7, np.sqrt(1 - 0.2**2)
VOLUMES = {
    "sc": 1,
    "fcc": 1 / 4,
    "bcc": 1 / 2,
    "hexagonal": C * np.sqrt(3) / 2,
    "trigonal": (1 - 0.2) * np.sqrt(1 + 2 * 0.2),
    "st": C,
    "bct": C / 2,
    "so": B * C,
    "baco": B * C / 2,
    "fco": B * C / 4,
    "bco": B * C / 2,
    "sm": B * C * GAMMA,
    "bacm": B * C * GAMMA / 2,
    "triclinic": B * C * np.sqrt(1 + 2 * 0.2 * -0.1 * 0.3 - 0.2**2 - 0.1**2 - 0.3**2),
}


@pytest.mark.parametrize("latname", LATNAMES)
def test_named_lattices_have_the_volume_of_their_bravais_lattice(latname):
    vectors = lattice_vectors(latname, [PARAMETERS[name] for name in LATNAMES[latname].split()])
    assert_allclose(abs(np.linalg.det(vectors)), VOLUMES[latname], rtol=1e-12)


def test_named_lattices_have_the_angles_that_are_given():
    v = lattice_vectors("triclinic", list(PARAMETERS.values()))
    lengths = np.linalg.norm(v, axis=1)
    assert_allclose(lengths, [1, 1.3, 1.7])
    cosines = (v @ v.T) / np.outer(lengths, lengths)
    assert_allclose(cosines[[0, 0, 1], [1, 2, 2]], [0.2, -0.1, 0.3])
    v = lattice_vectors("trigonal", [0.2])
    assert_allclose(v @ v.T, np.where(np.eye(3) == 1, 1.0, 0.2), atol=1e-15)


def test_a_cell_by_latname_is_the_one_abacus_used(abacus_folders):
    # `so` with b/a 1.7 and c/a 1.8, atoms about the middle of the cell; numbers from its log
    found = read_stru(abacus_folders / "v3.8.1" / "h2o_latname" / "STRU", latname="so")
    assert_allclose(found.atoms.cell.lengths(), 7.5589 * BOHR * np.array([1, 1.7, 1.8]))
    printed = [0.5250000248, 0.9000000497, 0.8624999627]
    assert_allclose(found.atoms.positions[0] / (7.5589 * BOHR), printed, atol=1e-10)


def test_positions_agree_with_those_abacus_prints(abacus_folders):
    found = read_stru(abacus_folders / "v3.8.1" / "h2o" / "STRU").atoms
    unit = 1.8897261254578281 * BOHR
    printed = [
        [0.1000000398, 0.4000000796, 7.0499999403],
        [0.8500003384, 0.7800003105, 0.0500000199],
    ]
    assert_allclose(found.positions[:2] / unit, printed, atol=1e-9)


# --- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LATTICE_CONSTANT\n8.0", "LATTICE_CONSTANT\n-8.0", "must be a positive number"),
        ("LATTICE_VECTORS", "LATTICE_VECTOR", "no section LATTICE_VECTORS"),
        ("0.1 1.2 0.0 #b", "0.1 1.2", "three lines of three numbers"),
        ("0.1 1.2 0.0 #b", "2.0 0.0 0.0", "span no volume"),
        ("Direct", "Directly", "unknown kind of coordinates 'Directly'"),
        ("\nFe2\n0.0", "\nCo\n0.0", "expected species Fe2, found 'Co'"),
        ("Fe2 55.845", "Fe1 55.845", "a label twice"),
        ("Fe2 55.845", "Qq 55.845", "'Qq' does not begin with a chemical symbol"),
        ("Fe2 55.845", "Fe_empty 55.845", "ghost atom"),
        ("O   15.999 O.upf", "O", "expected 'label mass pseudopotential', found 'O'"),
        ("O.orb", "", "names 2 files for 3 species"),
        ("0.5 0.25 0.75", "0.5 nan 0.75", "atom 1 of species Fe2: 'nan' is not a finite number"),
        ("0.5 0.25 0.75", "0.5 0.25 x", "atom 1 of species Fe2"),
        ("0.3 0.6 0.95 velocity 0 0 0 #mag 3\n", "", "the file ends where atom 2 of species O"),
        ("O\n0.0\n2", "O\n0.0\ntwo", "O: expected a number of atoms, found 'two'"),
        ("0.1 0.2 0.3", "0.1 0.2 123456.3", "10000 cells away"),
        ("0.5 0.25 0.75", "0.5 //", "expected three coordinates"),
        ("0.5 0.25 0.75", "0.5 0.25 0.75 mag //", "a number must follow 'mag'"),
        ("0.5 0.25 0.75", "0.5 0.25 0.75 mag 1 2 //", "one or three numbers must follow 'mag'"),
    ],
)
def test_what_is_wrong_in_stru_is_said(tmp_path, old, new, message):
    rows = [" ".join(map(str, row)) for row in FRACTIONAL]
    text = TEXT.format(*rows, kind="Direct")
    assert old in text
    (tmp_path / "STRU").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_stru(tmp_path / "STRU")


def test_latname_and_lattice_sections_must_agree(tmp_path):
    structure(tmp_path)
    with pytest.raises(ValueError, match="LATTICE_VECTORS contradicts latname fcc of INPUT"):
        read_stru(tmp_path / "STRU", latname="fcc")
    (tmp_path / "STRU").write_text(
        (tmp_path / "STRU").read_text().replace("LATTICE_VECTORS\n", "LATTICE_PARAMETERS\n")
    )
    with pytest.raises(ValueError, match="which `latname` of INPUT gives"):
        read_stru(tmp_path / "STRU")
    with pytest.raises(ValueError, match="unknown latname 'cubic'; ABACUS knows sc, fcc"):
        read_stru(tmp_path / "STRU", latname="cubic")
    with pytest.raises(ValueError, match="triclinic needs 5 numbers"):
        read_stru(tmp_path / "STRU", latname="triclinic")
    with pytest.raises(ValueError, match="describe no cell"):
        lattice_vectors("trigonal", [-0.6])


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 900), junk=st.text(max_size=20))
def test_a_garbled_stru_raises_a_value_error_and_nothing_else(tmp_path_factory, cut, junk):
    rows = [" ".join(map(str, row)) for row in FRACTIONAL]
    text = TEXT.format(*rows, kind="Direct")
    path = tmp_path_factory.getbasetemp() / "garbled"
    path.write_text(text[:cut] + junk + text[cut + len(junk) :], encoding="utf-8")
    message = str(path)
    try:
        read_stru(path)
    except ValueError as err:
        message = str(err)
    assert str(path) in message


@pytest.mark.parametrize(
    ("label", "symbol"),
    [("Fe1", "Fe"), ("O_top", "O"), ("H12", "H"), ("Cu2a", "Cu"), ("Hup", "H"), ("si", "Si")]
    + [("D", "H"), ("C", "C"), ("Sc", "Sc")],
)
def test_labels_begin_with_the_element(label, symbol):
    assert chemical_symbol(label) == symbol


# --- writing -------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    found = structure(tmp_path, coordinates=FRACTIONAL + [[0, 1, -2]])
    write_stru(tmp_path / "copy", found)
    again = read_stru(tmp_path / "copy")
    assert again.labels == found.labels
    assert again.species == found.species
    assert again.images.tolist() == found.images.tolist()
    assert_allclose(again.atoms.positions, found.atoms.positions, atol=1e-14)
    assert_allclose(again.atoms.cell.array, found.atoms.cell.array, rtol=1e-15)
    assert_allclose(
        again.atoms.get_initial_magnetic_moments(), found.atoms.get_initial_magnetic_moments()
    )


def test_atoms_that_are_not_grouped_by_species_are_refused(tmp_path):
    species = (Species("Ga", "Ga", 69.7), Species("As", "As", 74.9))
    atoms = Atoms("GaAsGa", cell=[3, 3, 3], pbc=True)
    zeros = np.zeros((3, 3), int)
    with pytest.raises(ValueError, match="groups atoms by species in the order Ga As"):
        write_stru(tmp_path / "x", Structure(atoms, ("Ga", "As", "Ga"), species, zeros))


# --- INPUT ---------------------------------------------------------------------------------------


def test_input_keywords_are_lower_case_and_comments_are_dropped(tmp_path):
    path = tmp_path / "INPUT"
    path.write_text(
        "# a remark\nINPUT_PARAMETERS\n#Parameters (1.System)\nNSPIN  4 # spinors\n"
        "out_mat_hs2 1  12 // digits\n! nothing\npseudo_dir ../../pp//x/\nsuffix\n"
        "ecutwfc 100\necutwfc 100\n"
    )
    values = read_input(path)
    assert values == {
        "nspin": "4",
        "out_mat_hs2": "1 12",
        "pseudo_dir": "../../pp//x/",
        "suffix": "",
        "ecutwfc": "100",
    }
    write_input(path, values)
    assert read_input(path) == values


def test_switches_take_all_spellings_of_abacus():
    for word in ("1", "true", "T", "yes", ".TRUE.", "on"):
        assert inputfile.boolean({"x": word}, "x", False)
    for word in ("0", "false", "F", "no", ".false."):
        assert not inputfile.boolean({"x": word}, "x", True)
    assert inputfile.boolean({}, "x", True)
    assert inputfile.number({}, "x", 3.0) == 3.0
    with pytest.raises(ValueError, match="x of INPUT must be 0 or 1, not 'maybe'"):
        inputfile.boolean({"x": "maybe"}, "x", False)
    with pytest.raises(ValueError, match="x of INPUT must be a number, not 'many'"):
        inputfile.number({"x": "many"}, "x", 1)


def test_input_without_heading_or_with_a_contradiction_is_refused(tmp_path):
    path = tmp_path / "INPUT"
    path.write_text("nspin 1\n")
    with pytest.raises(ValueError, match="no line INPUT_PARAMETERS"):
        read_input(path)
    path.write_text("INPUT_PARAMETERS\nnspin 1\nNspin 2\n")
    with pytest.raises(ValueError, match="line 3: nspin is '2' here and '1' above"):
        read_input(path)
