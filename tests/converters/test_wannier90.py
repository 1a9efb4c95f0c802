"""Wannier90's files: ours are exact on a mesh of k-points, others' are read for what they say."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.units import Bohr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ase_nextham.bands import eigenvalues, kmesh_for
from ase_nextham.bands.loewdin import is_orthonormal, orthogonalised
from ase_nextham.converters import guess_format, read, wannier90, write
from ase_nextham.testing import random_lcao

K = np.array([[0.1, -0.3, 0.45], [0.27, 0.11, -0.2]])
CELL = np.array([[0.0, 2.7, 2.7], [2.7, 0.0, 2.7], [2.7, 2.7, 0.0]])

# --- files of ours -------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
@pytest.mark.parametrize("name", ["x_hr.dat", "x_tb.dat", "x"])
def test_what_is_written_is_the_orthogonalised_hamiltonian(tmp_path, name, spin):
    data = replace(random_lcao(0, "HSiH", spin=spin, magnetic=True), fermi_level=0.5, h0=None)
    data = data.translated(np.random.default_rng(1).integers(-2, 3, (3, 3)))
    if name == "x_hr.dat":
        data = replace(data, position=None)
    expected = orthogonalised(data, (2, 3, 2))
    with pytest.warns(UserWarning, match="between the points of the mesh 2 x 3 x 2, tolerance is"):
        write(tmp_path / name, data, "wannier90", kpts=(2, 3, 2))
    assert guess_format(tmp_path / name) == "wannier90"
    found = read(tmp_path / name)
    assert is_orthonormal(found.overlap, tolerance=0.0)
    assert found.symbols == data.symbols
    assert found.basis.shells == data.basis.shells
    assert found.basis.difference(data.basis) is not None  # these are other orbitals
    assert found.nelectrons == data.nelectrons
    assert found.fermi_level == data.fermi_level
    assert found.source == data.source
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-13)
    assert_allclose(found.atoms.cell.array, data.atoms.cell.array, rtol=1e-15)
    assert found.hamiltonian.spin == spin
    assert np.abs((found.hamiltonian - expected.hamiltonian).data).max() < 1e-12  # eV
    assert (found.position is None) == (data.position is None)
    for a, b in zip(found.position or (), expected.position or (), strict=True):
        assert np.abs((a - b).data).max() < 1e-12  # Angstrom


def test_bands_on_the_mesh_are_those_of_the_orbitals(tmp_path, energies):
    data = replace(random_lcao(3, "GaH"), position=None, h0=None)
    write(tmp_path / "a_hr.dat", data, kpts=(2, 2, 3), tolerance=10.0)
    found = read(tmp_path / "a_hr.dat")
    for k in ((0.5, 0, -1 / 3), (0, 0.5, 0)):
        assert_allclose(energies(found, k), energies(data, k), atol=1e-10)  # eV


def test_the_error_is_told_everywhere(tmp_path, caplog):
    data = replace(random_lcao(0, "H2"), position=None, h0=None)
    path = tmp_path / "a_hr.dat"
    with caplog.at_level(logging.INFO, "ase_nextham"):
        write(path, data, tolerance=1e-2)
    assert "a_hr.dat: all bands within" in caplog.text
    extra = json.loads((tmp_path / "a_hr.dat.nextham.json").read_text())["extra"]
    assert 0 < extra["interpolation_error"] <= 1e-2
    first = path.read_text().splitlines()[0]
    assert f"bands within {extra['interpolation_error']:.2g} eV" in first
    exact, found = (eigenvalues(d.hamiltonian, d.overlap, K) for d in (data, read(path)))
    assert np.abs(exact - found).max() < 3e-2
    with caplog.at_level(logging.INFO, "ase_nextham"):
        write(path, data, kpts=(3, 3, 3), exact_below=2.0, tolerance=10.0)
    assert "a_hr.dat: bands below 2 eV within" in caplog.text


def test_an_orthonormal_basis_is_written_as_it_is(tmp_path):
    data = orthogonalised(replace(random_lcao(0, "H2", spin="spinor"), h0=None), (2, 2, 2))
    write(tmp_path / "a_tb.dat", data)
    found = read(tmp_path / "a_tb.dat")
    assert np.abs((found.hamiltonian - data.hamiltonian).data).max() < 1e-12
    assert found.hamiltonian.pairs.same_as(data.hamiltonian.pairs)
    with pytest.raises(ValueError, match="the basis is orthonormal and is written as it is"):
        write(tmp_path / "b_tb.dat", data, kpts=(4, 4, 4))


def test_what_the_files_cannot_hold_is_refused(tmp_path):
    data = replace(random_lcao(0, "H2", spin="collinear"), h0=None)
    with pytest.raises(ValueError, match="a file for each spin of a collinear calculation; choose"):
        write(tmp_path / "a_tb.dat", data)
    data = replace(random_lcao(0, "H2"), h0=None)
    with pytest.raises(ValueError, match=r"_tb.dat holds r, which is not known here"):
        write(tmp_path / "a_tb.dat", replace(data, position=None))
    with pytest.warns(UserWarning, match=r"_hr.dat has no place for r\(R\), left out"):
        write(tmp_path / "a_hr.dat", data, kpts=(2, 2, 2), tolerance=10.0)
    with pytest.raises(ValueError, match="holds no Hamiltonian"):
        write(tmp_path / "b_hr.dat", replace(data, hamiltonian=None))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_hr.dat", "a_hr.dat.nextham.json"]


@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
def test_a_folder_of_ours_tells_other_programs_the_same(tmp_path, spin):
    data = replace(random_lcao(0, "HSiH", spin=spin, magnetic=True), h0=None)
    write(tmp_path / "x", data, "wannier90", kpts=(2, 2, 2), tolerance=10.0)
    ours = read(tmp_path / "x")
    for note in (tmp_path / "x").glob("*.json"):
        note.unlink()
    found = read(tmp_path / "x")  # with .win, and r for the centres
    assert found.atoms.get_chemical_symbols() == ["H", "Si", "H"]
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-11)
    assert {name: len(ls) for name, ls in found.basis.shells.items()} == {"H": 5, "Si": 9}
    assert found.hamiltonian.spin == spin
    bands = [eigenvalues(d.hamiltonian, d.overlap, K) for d in (ours, found)]
    assert_allclose(*bands, atol=1e-11)
    assert found.position_error() < 1e-12
    (tmp_path / "x" / "wannier90_tb.dat").unlink()
    found = read(tmp_path / "x")  # with _centres.xyz
    assert found.atoms.get_chemical_symbols() == ["H", "Si", "H"]
    assert_allclose(eigenvalues(found.hamiltonian, found.overlap, K), bands[0], atol=1e-11)


# --- files of others -----------------------------------------------------------------------------


def chain_text() -> str:
    """Wannier90's format: two functions in a cell, R and -R at the border shared by two."""
    R = [(-2, 0, 0), (-1, 0, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0)]
    lines = [" written on  1Jan2026 at 12:00:00 ", "           2", f"{len(R):12d}"]
    lines += ["    2    1    1    1    2"]
    for r in R:
        for n in (1, 2):
            for m in (1, 2):
                value = ELEMENTS[r[0]][m - 1, n - 1]
                head = "".join(f"{number:5d}" for number in (*r, m, n))
                lines.append(f"{head}{value.real:12.6f}{value.imag:12.6f}")
    return "\n".join(lines) + "\n"


A = np.array([[0.25, 0.5 + 0.125j], [-0.75j, 1.5]])
B = np.array([[0.5, 0.25], [0.0, -1.0 + 0.5j]])
ELEMENTS = {
    0: np.array([[-1.0, 0.5j], [-0.5j, 2.0]]),
    1: A,
    -1: A.conj().T,
    2: B,
    -2: B.conj().T,
}


def chain_bands(k: float) -> np.ndarray:
    weights = {0: 1, 1: 1, -1: 1, 2: 0.5, -2: 0.5}
    H = sum(w * np.exp(2j * np.pi * k * r) * ELEMENTS[r] for r, w in weights.items())
    return np.linalg.eigvalsh(H)


WIN = """\
num_wann = 2  ! of the chain
Begin Unit_Cell_Cart
bohr
 10 0 0
 0 12.0 0 # y
 0 0 12
End Unit_Cell_Cart
begin atoms_frac
He1  0.0 0.0 0.0
he2  0.5 0.0 0.0
end atoms_frac
"""


@pytest.fixture
def chain(tmp_path):
    (tmp_path / "chain_hr.dat").write_text(chain_text())
    (tmp_path / "chain.win").write_text(WIN)
    return tmp_path / "chain_hr.dat"


def chain_bands_of(data) -> np.ndarray:
    kpts = np.array([[0.13, 0, 0], [-0.4, 0.2, 0.1]])
    return eigenvalues(data.hamiltonian, data.overlap, kpts)[0]


EXPECTED = np.array([chain_bands(0.13), chain_bands(-0.4)])


def test_degeneracies_are_obeyed(chain):
    with pytest.warns(UserWarning, match="nothing tells where the functions are: .* one atom X"):
        data = read(chain)
    assert guess_format(chain) == "wannier90"
    assert data.symbols == ("X",)
    assert data.basis.shells["X"] == (0, 0)
    assert_allclose(data.atoms.cell.array, np.diag([10, 12, 12]) * Bohr)
    assert_allclose(chain_bands_of(data), EXPECTED, atol=1e-12)
    assert len(kmesh_for(data.hamiltonian, data.atoms, (4, 4, 4)).kpts) == 64  # no false symmetry


def test_functions_go_to_the_atoms_that_they_are_close_to(chain):
    # the second one is closest to an image of the second atom
    centres = f"4\n\nX 0.1 0 0\nX {-4.9 * Bohr} 0.1 0.0\nHe 0 0 0\nHe {5 * Bohr} 0 0\n"
    (chain.parent / "chain_centres.xyz").write_text(centres)
    data = read(chain)
    assert data.symbols == ("He", "He")
    assert_allclose(data.atoms.positions[1], [5 * Bohr, 0, 0])
    assert_allclose(chain_bands_of(data), EXPECTED, atol=1e-12)
    # <1 0|H|2 R> reaches from atom 1 to the image of atom 2 one cell to the left of R
    assert_allclose(data.hamiltonian.block(0, 1, (0, 0, 0)), [[A[0, 1]]])


def test_atoms_with_different_numbers_of_functions_are_different_species(chain):
    (chain.parent / "chain.win").write_text(WIN.replace("num_wann", "!"))
    for centres, message in (("X 0 0 0\nX 0.2 0 0", "not every atom has functions"),):
        (chain.parent / "chain_centres.xyz").write_text(f"2\n\n{centres}\n")
        with pytest.warns(UserWarning, match=f"{message}: they sit on an atom X for each"):
            data = read(chain)
        assert data.symbols == ("X", "X")
        assert_allclose(data.atoms.positions[1], [0.2, 0, 0])
        assert_allclose(chain_bands_of(data), EXPECTED, atol=1e-12)
    one = WIN.replace("he2  0.5 0.0 0.0\n", "")
    (chain.parent / "chain.win").write_text(one)
    assert read(chain).symbols == ("He",)


def test_wout_is_read_where_there_is_no_win(chain):
    (chain.parent / "chain.win").unlink()
    wout = """
                              Lattice Vectors (Bohr)
                    a_1    10.000000   0.000000   0.000000
                    a_2     0.000000  12.000000   0.000000
                    a_3     0.000000   0.000000  12.000000

 |   Site       Fractional Coordinate          Cartesian Coordinate (Bohr)    |
 +----------------------------------------------------------------------------+
 | He   1   0.00000   0.00000   0.00000   |    0.00000   0.00000   0.00000    |
 | He   2   0.50000   0.00000   0.00000   |    5.00000   0.00000   0.00000    |
 *----------------------------------------------------------------------------*
 Initial State
  WF centre and spread    1  (  9.000000,  0.000000,  0.000000 )     9.61259193
 Final State
  WF centre and spread    1  (  5.100000, -0.000000,  0.000000 )     9.61259193
  WF centre and spread    2  (  0.100000, -0.000000,  0.000000 )     9.61259185
  Sum of centres and spreads ( 5.200000,  0.000000,  0.000000 )    38.45036756
"""
    (chain.parent / "chain.wout").write_text(wout)
    data = read(chain)
    assert data.symbols == ("He", "He")
    assert_allclose(data.atoms.positions[1], [5 * Bohr, 0, 0])
    assert_allclose(chain_bands_of(data), EXPECTED, atol=1e-12)
    assert_allclose(data.hamiltonian.block(1, 1, (0, 0, 0)), [[ELEMENTS[0][0, 0]]])


def test_spinors_need_pairs_of_functions(chain):
    (chain.parent / "chain.win").write_text("spinors = .true.\n" + WIN)
    with pytest.warns(UserWarning, match="atom X"):
        data = read(chain)
    assert data.hamiltonian.spin == "spinor"
    assert_allclose(chain_bands_of(data), EXPECTED, atol=1e-12)
    with pytest.warns(UserWarning, match="atom X"):
        assert read(chain, spin="unpolarised").hamiltonian.spin == "unpolarised"
    with pytest.raises(ValueError, match="spin must be 'unpolarised' or 'spinor', not 'up'"):
        read(chain, spin="up")
    chain.write_text("a\n1\n1\n1\n0 0 0 1 1 0.5 0.0\n")
    with pytest.raises(ValueError, match="1 functions cannot be pairs of spin up and down"):
        read(chain)


def tb_text(r: np.ndarray) -> str:
    """``_tb.dat`` of the chain with r (3, 2, 2) at R = 0 and nothing elsewhere."""
    lines = [" written on  1Jan2026", "5.0 0.0 0.0", " 0.0 6.0 0.0", " 0.0 0.0 7.0"]
    lines += ["           2", "           5", "    2    1    1    1    2"]
    for first in (True, False):
        for x in (-2, -1, 0, 1, 2):
            lines += ["", f"{x:5d}    0    0"]
            for n in (0, 1):
                for m in (0, 1):
                    values = [ELEMENTS[x][m, n]] if first else (r[:, m, n] if x == 0 else [0j] * 3)
                    numbers = " ".join(f"{x:15.8E}" for v in values for x in (v.real, v.imag))
                    lines.append(f"{m + 1:5d}{n + 1:5d}   {numbers}")
    return "\n".join(lines) + "\n"


def test_r_is_read_in_angstrom_with_the_centres_as_its_diagonal(tmp_path):
    r = np.zeros((3, 2, 2), complex)
    r[0] = [[1.0, 0.25j], [-0.25j, 3.0]]
    r[2] = [[0.5, 0.0], [0.0, -0.5]]
    (tmp_path / "a_tb.dat").write_text(tb_text(r))
    with pytest.warns(UserWarning, match="nothing tells the atoms: the functions sit on an atom X"):
        data = read(tmp_path / "a_tb.dat")
    assert_allclose(data.atoms.positions, [[1, 0, 0.5], [3, 0, -0.5]])
    assert_allclose(data.atoms.cell.array, np.diag([5, 6, 7]))
    assert_allclose(data.position[0].at_k((0.2, 0, 0)), r[0])
    assert_allclose(chain_bands_of(data), EXPECTED, atol=1e-12)
    r[0, 0, 1] = 0.0
    (tmp_path / "a_tb.dat").write_text(tb_text(r))
    (tmp_path / "a.win").write_text(WIN.replace("bohr", "").replace("he2  0.5 0.0 0.0\n", ""))
    with pytest.warns(UserWarning, match="differ from those of its conjugate by up to 0.25 Ang"):
        data = read(tmp_path / "a_tb.dat")
    # the second function, at 3 of 5 Angstrom, is closer to the atom's image on the right
    assert_allclose(data.position[0].block(0, 0, (0, 0, 0)), [[1, 0], [0, -2]])
    assert_allclose(data.position[0].block(0, 0, (1, 0, 0)), [[0, 0.125j], [0, 0]])


def test_r_that_mixes_spins_is_left_out_loudly(tmp_path):
    r = np.zeros((3, 2, 2), complex)
    r[0] = [[1.0, 0.25j], [-0.25j, 1.0]]
    (tmp_path / "a_tb.dat").write_text(tb_text(r))
    (tmp_path / "a.win").write_text(WIN.replace("he2  0.5 0.0 0.0\n", ""))
    with pytest.warns(UserWarning, match=r"no orbitals times spins; r is left out"):
        data = read(tmp_path / "a_tb.dat", spin="spinor")
    assert data.position is None
    assert read(tmp_path / "a_tb.dat", spin="unpolarised").position is not None


def test_elements_go_to_the_closest_images_that_wannier90_names(chain):
    (chain.parent / "chain_centres.xyz").write_text("1\n\nX 0 0 0\nX 0 0 0\n".replace("1", "2", 1))
    lines = ["## written on 1Jan2026 with use_ws_distance=.true."]
    for x in (-2, -1, 0, 1, 2):
        for m in (1, 2):
            for n in (1, 2):
                images = [0, -4 * x // 2] if abs(x) == 2 and m == n else [0]
                lines += [f"{x:5d}    0    0{m:5d}{n:5d}", f"{len(images):5d}"]
                lines += [f"{T:5d}    0    0" for T in images]
    path = chain.parent / "chain_wsvec.dat"
    path.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="atom X"):
        data = read(chain)
    # half of the diagonal of R = 2, which has half of it already, went to R = -2, and vice versa
    expected = B / 2
    expected[[0, 1], [0, 1]] = np.diag(B + B.conj().T) / 4
    assert_allclose(data.hamiltonian.block(0, 0, (2, 0, 0)), expected)
    path.write_text("\n".join(lines[:-4]) + "\n")
    with pytest.raises(
        ValueError, match=r"chain_wsvec.dat: the images of 19 elements, but the fil"
    ):
        read(chain)
    path.write_text("\n".join(lines).replace("   -2    0    0    1", "   -3    0    0    1"))
    with pytest.raises(ValueError, match=r"has other elements than the file beside it"):
        read(chain)
    path.write_text("\n".join(lines).replace("=.true.", "=.false."))
    with pytest.warns(UserWarning, match="atom X"):
        assert_allclose(chain_bands_of(read(chain)), EXPECTED, atol=1e-12)
    path.write_text("\n".join(lines).replace("    2", "    x", 1))
    with pytest.raises(ValueError, match="expected integers after the first line"):
        read(chain)


def test_elements_may_come_in_another_order(chain):
    lines = chain_text().splitlines()
    shuffled = lines[:4]
    for start in range(4, len(lines), 4):
        shuffled += [lines[start + n] for n in (2, 0, 3, 1)]
    chain.write_text("\n".join(shuffled))
    with pytest.warns(UserWarning, match="atom X"):
        assert_allclose(chain_bands_of(read(chain)), EXPECTED, atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n           2\n", "\n           3\n", r"need 320 numbers.*|numbers after the degen"),
        ("\n           2\n", "\n          -2\n", "this is no _hr.dat or _tb.dat"),
        ("\n           5\n", "\n           9\n", "degeneracies"),
        ("\n           5\n", "\n99999999999\n", "functions and 99999999999 lattice vectors need"),
        (
            "    2    1    1",
            "    0    1    1",
            "line 4: expected 5 degeneracies, positive integers",
        ),
        ("    2    1    1", "    2    1    1    1", "line 4: 6 degeneracies for 5 lattice vectors"),
        (
            "    0    0    0    2    1",
            "    0    0    0    x    1",
            "line 14: expected a number, fou",
        ),
        (
            "    0    0    0    2    1",
            "    0    0    0    3    1",
            "line 14: expected m and n from",
        ),
        ("    0    0    0    2    1", "    0    0    0    1    1", "is given twice for one R"),
        (
            "    0    0    0    2    1",
            "    0    0    1    2    1",
            "line 14: R changes before all 2",
        ),
        (
            "   -1.000000    0.000000",
            "         nan    0.000000",
            "line 13: expected a number, foun",
        ),
        ("   -1.000000    0.000000", "       1e999    0.000000", "line 13: a number is too large"),
        (
            "   -1.000000    0.000000",
            "   -1.000000    0.500000",
            "H is not Hermitian: .* up to 1 eV",
        ),
        (
            "   -1.000000    0.000000",
            "   -1.000000",
            "139 numbers after the degeneracies.*complete",
        ),
        ("   -2    0    0", "    3    0    0", "there is R = 2 0 0, but not its negative"),
        ("   -2    0    0", "    2    0    0", "a lattice vector R occurs twice"),
        ("    0    0    0", "    7    0    0", "not Hermitian|there is no R = 0 0 0"),
        ("   -2    0    0", "-2.5    0    0", "line 5: expected a lattice vector, three integers"),
    ],
)
def test_damage_is_told(chain, old, new, message):
    text = chain_text()
    assert old in text
    everywhere = "0    0" in old and old.count("0") + old.count("2") == 3
    chain.write_text(text.replace(old, new) if everywhere else text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read(chain, "wannier90")


def test_damage_of_tb_files_is_told(tmp_path):
    path = tmp_path / "a_tb.dat"
    text = tb_text(np.zeros((3, 2, 2), complex))
    lines = text.splitlines()
    second = 8 + 5 * 6  # where r begins
    assert lines[second] == "   -2    0    0"
    for old, new, message in (
        (
            lines[second],
            "   -3    0    0",
            f"line {second + 1}: r has other lattice vectors than H",
        ),
        (lines[second], "   -3    0", "H and r of 2 x 2 elements for 5 lattice vectors"),
        ("5.0 0.0 0.0", "0.0 0.0 0.0", "span no volume"),
        ("0.00000000E+00 ", "0.0000000xE+00 ", r"expected a number, found '0.0000000xE\+00'"),
    ):
        at = text.rindex(old) if old == lines[second] else text.index(old)
        path.write_text(text[:at] + new + text[at + len(old) :])
        with pytest.raises(ValueError, match=message):
            read(path, "wannier90")


def test_a_truncated_file_is_never_read_as_a_whole_one(tmp_path, chain):
    for text in (chain_text(), tb_text(np.zeros((3, 2, 2), complex))):
        content = text.rstrip().encode()
        for length in range(0, len(content) - 9, 37):  # the last number could lose digits
            chain.write_bytes(content[:length])
            with pytest.raises(ValueError, match=re.escape(str(chain))):
                read(chain, "wannier90")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 6), st.booleans())
def test_garbled_files_are_refused_or_read(chain, place, piece, lost, tb):
    text = (tb_text(np.zeros((3, 2, 2), complex)) if tb else chain_text()).encode()
    place %= len(text)
    chain.write_bytes(text[:place] + piece + text[place + lost :])
    wannier90.recognises(chain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        try:
            data = read(chain, "wannier90")
        except ValueError as err:
            if str(chain.parent) not in str(err):  # every message names the file
                raise
        else:
            assert np.isfinite(data.hamiltonian.data).all()


def test_structures_that_do_not_fit_are_refused(chain, tmp_path):
    (tmp_path / "chain_centres.xyz").write_text("1\n\nX 0 0 0\n")
    with pytest.raises(ValueError, match="2 functions, but 1 centres in the files beside it"):
        read(chain)
    (tmp_path / "chain_centres.xyz").unlink()
    for content in ("begin unit_cell_cart\n1 2\nend unit_cell_cart", WIN.replace("bohr", "inch")):
        (tmp_path / "chain.win").write_text(content)
        with pytest.raises(ValueError, match="chain.win: not a readable file of Wannier90"):
            read(chain)
    (tmp_path / "chain.win").unlink()
    with pytest.raises(ValueError, match=r"does not tell the cell; put the .win or .wout of the"):
        read(chain)


def test_a_folder_must_have_one_seedname(tmp_path, chain):
    (tmp_path / "other_hr.dat").write_text(chain_text())
    with pytest.raises(ValueError, match="found those of chain, other; give the file"):
        read(tmp_path)
    (tmp_path / "empty").mkdir()
    assert not wannier90.recognises(tmp_path / "empty")


def test_a_file_that_changed_since_is_read_without_its_note(tmp_path):
    data = replace(random_lcao(0, "H2"), h0=None, position=None)
    path = tmp_path / "a_hr.dat"
    write(path, data, kpts=(1, 1, 1), tolerance=100.0)
    path.write_text(path.read_text().replace("written", "changed"))
    with (
        pytest.warns(UserWarning, match="a_hr.dat changed after this note was written"),
        pytest.raises(ValueError, match="does not tell the cell"),
    ):
        read(path)


# --- peers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
@pytest.mark.parametrize("kind", ["tb", "hr"])
def test_sisl_finds_our_bands(tmp_path, spin, kind):
    sisl = pytest.importorskip("sisl", reason="sisl is not installed")
    data = replace(random_lcao(1, "H2", spin=spin, magnetic=True), h0=None)
    write(tmp_path / "x", data, "wannier90", kpts=(2, 2, 2), tolerance=10.0)
    ours = read(tmp_path / "x")
    sile = sisl.get_sile(tmp_path / "x" / "wannier90.win")
    theirs = sile.read_hamiltonian(cutoff=0, dtype=np.complex128, order=[kind])
    expected = eigenvalues(ours.hamiltonian, ours.overlap, K)[0]
    assert_allclose([theirs.eigh(k) for k in K], expected, atol=1e-12)
