"""DeepH's old layout: what stands in its files, what comes back, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.converters import deeph, deeph_legacy, guess_format, read
from ase_nextham.testing import random_lcao

ABACUS = {0: [0], 1: [0, 1, -1], 2: [0, 1, -1, 2, -2], 3: [0, 1, -1, 2, -2, 3, -3]}
"""m of the harmonics of a shell; their signs are (-1)^m."""

OPENMX = {0: [0], 1: [1, -1, 0], 2: [0, 2, -2, 1, -1], 3: [0, 1, -1, 2, -2, 3, -3]}
"""p: x y z; d: z2 x2-y2 xy xz yz; all signs +."""


def assert_equal(found, expected, atol=0.0):
    """The same S and Hamiltonians; a missing pair counts as zeros."""
    for name in ("overlap", "h0", "hamiltonian"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.spin == b.spin
            assert np.abs((a - b).data).max() <= atol, name


def data_of(symbols, seed=2, **options):
    return replace(random_lcao(seed, symbols, **options), position=None)


@pytest.fixture
def written(tmp_path):
    """A small folder with both Hamiltonians, and the data."""
    data = data_of("HSi", 5, spin="spinor", magnetic=True, cutoff=1.8)
    deeph_legacy.write(tmp_path / "x", data)
    return tmp_path / "x", data


def without_note(folder):
    (folder / "nextham.json").unlink()
    return folder


# --- what is written ----------------------------------------------------------------------------


def change_of_orbitals(shells):
    """Signed permutation from ABACUS's orbitals to OpenMX's."""
    n = sum(2 * l + 1 for l in shells)
    change, start = np.zeros((n, n)), 0
    for l in shells:
        for row, m in enumerate(OPENMX[l]):
            change[start + row, start + ABACUS[l].index(m)] = (-1) ** m
        start += 2 * l + 1
    return change


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_blocks_are_those_that_the_conventions_imply(tmp_path, spin):
    data = data_of("GaAsGa", 1, spin=spin, magnetic=True, cutoff=2.4)
    deeph_legacy.write(tmp_path / "x", data)
    change = {name: change_of_orbitals(ls) for name, ls in data.basis.shells.items()}
    names = {"overlaps": "overlap", "hamiltonians": "hamiltonian", "zeroth_hamiltonians": "h0"}
    for name, operator in names.items():
        matrix = getattr(data, operator)
        pairs = matrix.pairs
        with h5py.File(tmp_path / "x" / f"{name}.h5") as file:
            assert len(file) == len(pairs)
            for i, j, R in zip(pairs.i, pairs.j, pairs.R.tolist(), strict=True):
                u, v = change[matrix.symbols[i]], change[matrix.symbols[j]]
                block = matrix.block(i, j, R)
                if matrix.spin == "collinear":
                    up, down = (u @ b @ v.T for b in block)
                    block = np.block([[up, 0 * up], [0 * up, down]])
                elif matrix.spin == "spinor":
                    rows = [[u @ block[s::2, t::2] @ v.T for t in (0, 1)] for s in (0, 1)]
                    block = np.block(rows)
                else:
                    block = u @ block @ v.T
                found = file[f"[{R[0]}, {R[1]}, {R[2]}, {i + 1}, {j + 1}]"]
                assert found.dtype == block.dtype
                assert_array_equal(found[()], block)


def test_text_files_have_vectors_in_columns(tmp_path):
    data = replace(data_of("AsGaAs", spin="collinear"), fermi_level=-1.25)
    deeph_legacy.write(tmp_path / "x", data)
    table = {path.stem: np.loadtxt(path) for path in (tmp_path / "x").glob("[!o]*.dat")}
    assert_array_equal(table["lat"], data.atoms.cell.array.T)
    assert_array_equal(table["site_positions"], data.atoms.positions.T)
    assert_array_equal(table["element"], [33, 31, 33])
    assert_allclose(table["lat"].T @ table["rlat"], 2 * np.pi * np.eye(3), atol=1e-13)
    lines = (tmp_path / "x" / "orbital_types.dat").read_text().splitlines()
    assert lines == ["0 0 1 1 2", "0 0 1 1 2 3", "0 0 1 1 2"]
    assert json.loads((tmp_path / "x" / "info.json").read_text()) == {
        "nsites": 3,
        "isorthogonal": False,
        "isspinful": True,
        "fermi_level": -1.25,
    }


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
@pytest.mark.parametrize("noted", [True, False])
def test_everything_comes_back_to_the_last_bit(tmp_path, spin, noted):
    data = data_of("GaAsGaAs", spin=spin, magnetic=True, cutoff=2.4)
    data = data.translated(np.random.default_rng(0).integers(-2, 3, (4, 3)))
    data = replace(data, fermi_level=0.5)
    deeph_legacy.write(tmp_path / "x", data)
    assert guess_format(tmp_path / "x") == "deeph-legacy"
    found = read(tmp_path / "x" if noted else without_note(tmp_path / "x"))
    assert found.atoms == data.atoms
    assert (found.symbols, found.fermi_level) == (data.symbols, 0.5)
    assert_equal(found, data)


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_old_and_new_layout_hold_the_same_numbers(tmp_path, spin):
    data = data_of("GaAsGa", spin=spin, magnetic=True, cutoff=2.4)
    deeph.write(tmp_path / "new", data)
    deeph_legacy.write(tmp_path / "old from new", deeph.read(tmp_path / "new"))
    deeph_legacy.write(tmp_path / "old", data)
    deeph.write(tmp_path / "new from old", deeph_legacy.read(tmp_path / "old"))
    for new in ("overlap.h5", "hamiltonian.h5", "zeroth_hamiltonian.h5", "POSCAR"):
        files = [tmp_path / name / new for name in ("new", "new from old")]
        assert files[0].read_bytes() == files[1].read_bytes()
        if new.endswith("h5"):
            old = new.replace(".h5", "s.h5")
            a, b = (h5py.File(tmp_path / name / old) for name in ("old", "old from new"))
            with a, b:
                assert a.keys() == b.keys()
                assert all(np.array_equal(a[key][()], b[key][()]) for key in a)


def test_atoms_of_one_element_may_have_different_orbitals(abacus_folders, tmp_path):
    data = replace(read(abacus_folders / "v3.8.1" / "h2o_labels"), position=None)
    data = data.permuted([2, 0, 1])
    deeph_legacy.write(tmp_path / "x", data)
    found = deeph_legacy.read(tmp_path / "x")
    assert found.symbols == data.symbols
    assert_equal(found, data)
    found = deeph_legacy.read(without_note(tmp_path / "x"))
    assert found.symbols == ("H1", "O", "H2")  # in order of appearance
    shells = [found.basis.shells[name] for name in found.symbols]
    assert shells == [data.basis.shells[name] for name in data.symbols]
    assert np.abs(found.overlap.data - data.overlap.data).max() == 0


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_the_energy_zero_is_moved_as_asked_and_moved_back(tmp_path, spin):
    data = replace(data_of("AsH", 7, spin=spin, magnetic=True), fermi_level=2.0)
    deeph.write(tmp_path / "new", data, energy_zero="standardized")
    deeph_legacy.write(tmp_path / "old", data, energy_zero="standardized")
    infos = [json.loads((tmp_path / name / "info.json").read_text()) for name in ("new", "old")]
    assert infos[0]["energy_zero_shift_eV"] == infos[1]["energy_zero_shift_eV"] != 0
    assert infos[0]["fermi_energy_eV"] == infos[1]["fermi_level"]
    mu = infos[1]["energy_zero_shift_eV"]
    assert infos[1]["fermi_level"] == pytest.approx(2.0 - mu, abs=1e-12)
    found = deeph_legacy.read(without_note(tmp_path / "old"))
    assert_equal(found, data, atol=1e-13)
    assert found.fermi_level == pytest.approx(2.0, abs=1e-13)


def test_h0_alone_is_the_hamiltonian_that_deeph_sees(tmp_path):
    data = replace(data_of("AsH"), hamiltonian=None)
    deeph_legacy.write(tmp_path / "x", data)
    assert not (tmp_path / "x" / "zeroth_hamiltonians.h5").exists()
    assert_equal(deeph_legacy.read(tmp_path / "x"), data)
    found = deeph_legacy.read(without_note(tmp_path / "x"))
    assert_equal(found, replace(data, h0=None, hamiltonian=data.h0))


def test_a_predicted_hamiltonian_is_read_where_there_is_no_other_or_when_asked_for(written):
    folder, data = written
    shutil.copy(folder / "zeroth_hamiltonians.h5", folder / "hamiltonians_pred.h5")
    predicted = replace(data, hamiltonian=data.h0)
    assert_equal(deeph_legacy.read(folder), data)
    assert_equal(deeph_legacy.read(folder, hamiltonian="predicted"), predicted)
    (folder / "hamiltonians.h5").unlink()
    found = deeph_legacy.read(folder)
    assert_equal(found, predicted)
    assert found.source == {**data.source, "hamiltonian": "predicted by DeepH"}
    (folder / "hamiltonians_pred.h5").unlink()
    assert_equal(deeph_legacy.read(folder), replace(data, hamiltonian=None))


def test_blocks_that_deeph_dropped_as_small_are_zero_or_their_partners_conjugate(written):
    """DeepH-pack drops them from H and S each on its own, and not always both partners."""
    folder, data = written
    H, S = data.hamiltonian, data.overlap
    smallest = np.argsort([np.abs(H.block(*pair)).max() for pair in pairs_of(data)])[:4]
    dropped = set()
    for p in smallest:
        i, j, R = pairs_of(data)[p]
        dropped |= {key(i, j, R), key(j, i, [-x for x in R])}
    with h5py.File(folder / "overlaps.h5", "r+") as file:
        for name in dropped:
            del file[name]
    i, j, R = next(
        pair for pair in pairs_of(data) if key(*pair) not in dropped and pair[0] != pair[1]
    )
    with h5py.File(folder / "hamiltonians.h5", "r+") as file:
        del file[key(i, j, R)]
    found = deeph_legacy.read(folder)
    assert len(found.pairs) == len(data.pairs)
    assert np.abs((found.hamiltonian - H).data).max() < 1e-15
    for pair in pairs_of(data):
        expected = 0 * S.block(*pair) if key(*pair) in dropped else S.block(*pair)
        assert_array_equal(found.overlap.block(*pair), expected)


def pairs_of(data):
    pairs = data.pairs
    return list(zip(pairs.i.tolist(), pairs.j.tolist(), pairs.R.tolist(), strict=True))


def key(i, j, R):
    return str([*R, i + 1, j + 1])


def test_a_density_matrix_is_left_alone_and_that_is_said(written):
    folder, data = written
    shutil.copy(folder / "hamiltonians.h5", folder / "density_matrices.h5")
    with pytest.warns(UserWarning, match="x: density_matrices.h5 is not read"):
        assert_equal(deeph_legacy.read(folder), data)


# --- what is refused ----------------------------------------------------------------------------


def change(folder, old, new, name="hamiltonians.h5"):
    """Another dataset or link in the place of a block, or under another name."""
    with h5py.File(folder / name, "r+") as file:
        if isinstance(new, str):
            file.move(old, new)
        else:
            del file[old]
            new(file)


ONSITE = "[0, 0, 0, 1, 1]"

DAMAGES = {
    "info.json: no such file": lambda f: (f / "info.json").unlink(),
    "lat.dat: no such file": lambda f: (f / "lat.dat").unlink(),
    "orbital_types.dat: no such file": lambda f: (f / "orbital_types.dat").unlink(),
    "there is no overlaps.h5, and the basis": lambda f: (f / "overlaps.h5").unlink(),
    "lat.dat: not three vectors that span a cell": lambda f: (f / "lat.dat").write_text("1 2"),
    "lat.dat: not a table of numbers": lambda f: (f / "lat.dat").write_text("1 2\n3\n"),
    "lat.dat: not a table of finite": lambda f: (f / "lat.dat").write_text("1 nan 0\n"),
    "element.dat: not the atomic numbers": lambda f: (f / "element.dat").write_text("1\n0.5\n"),
    r"site_positions.dat: shape \(3, 2\), but the 1": lambda f: (f / "element.dat").write_text("1"),
    "orbital_types.dat: 1 lines for 2 atoms": lambda f: (f / "orbital_types.dat").write_text("0\n"),
    "orbital_types.dat, line 2: '0 17', expected l = 0 ... 6": lambda f: (
        f / "orbital_types.dat"
    ).write_text("0\n0 17\n"),
    r"block \[.*\] has shape \(.*\), but the orbitals of its atoms": lambda f: (
        f / "orbital_types.dat"
    ).write_text("0 0\n0 0\n"),
    r"'\[0, 0, 0, 1\]' is not the name of a block": lambda f: change(f, ONSITE, "[0, 0, 0, 1]"),
    r"'\[0, 0, 0, 1, 1\]; x' is not the name": lambda f: change(f, ONSITE, ONSITE + "; x"),
    r"'__import__\(1\)' is not the name": lambda f: change(f, ONSITE, "__import__(1)"),
    r"block \(i=6, j=0, .* is of atoms that are not among the 2": lambda f: change(
        f, ONSITE, "[0, 0, 0, 7, 1]"
    ),
    r"block \(i=-1, j=0, .* is of atoms that are not among": lambda f: change(
        f, ONSITE, "[0, 0, 0, 0, 1]"
    ),
    "is no neighbour in a crystal": lambda f: change(f, ONSITE, "[12345, 0, 0, 1, 1]"),
    r"block \(i=0, j=0, R=0,0,0\) is there twice": lambda f: change(
        f, "[0, 0, 0, 2, 2]", lambda file: file.copy(ONSITE, "[0,0,0,1,1]")
    ),
    r"'\[0, 0, 0, 1, 1\]' is not a dataset of this file": lambda f: change(
        f, ONSITE, lambda file: file.create_group(ONSITE)
    ),
    r"1, 1\]' is not a dataset of this file": lambda f: change(
        f, ONSITE, lambda file: file.__setitem__(ONSITE, h5py.ExternalLink("overlaps.h5", ONSITE))
    ),
    "holds int64, expected real or complex numbers": lambda f: change(
        f, ONSITE, lambda file: file.__setitem__(ONSITE, np.zeros((10, 10), int))
    ),
    "holds complex128, expected real numbers": lambda f: change(
        f,
        ONSITE,
        lambda file: file.__setitem__(ONSITE, np.zeros((5, 5), complex)),
        "overlaps.h5",
    ),
    r"block \(i=0, j=0, R=0,0,0\) holds a number that is not finite": lambda f: change(
        f, ONSITE, lambda file: file.__setitem__(ONSITE, np.full((10, 10), np.nan))
    ),
    "says that it has 1600 bytes, but the file holds 0": lambda f: change(
        f, ONSITE, lambda file: file.create_dataset(ONSITE, (10, 10), complex)
    ),
    r"the numbers of '\[0, 0, 0, 1, 1\]' are in another file": lambda f: change(
        f,
        ONSITE,
        lambda file: file.create_dataset(
            ONSITE, (10, 10), complex, external=[(str(f / "element.dat"), 0, 1600)]
        ),
    ),
    "overlaps.h5: not an HDF5 file, or cut short": lambda f: (f / "overlaps.h5").write_text("no"),
}


@pytest.mark.filterwarnings("ignore:.*changed after this note was written")
@pytest.mark.parametrize("message", DAMAGES)
def test_what_is_wrong_in_a_folder_is_named(written, message):
    folder, _ = written
    DAMAGES[message](folder)
    with pytest.raises(ValueError, match=message):
        deeph_legacy.read(folder)


def test_folders_of_others_are_not_claimed(written, tmp_path, abacus_folders):
    folder, data = written
    assert not deeph_legacy.recognises(folder / "lat.dat")
    assert not deeph_legacy.recognises(tmp_path / "absent")
    assert not deeph_legacy.recognises(abacus_folders / "v3.8.1" / "h2o")
    assert not deeph.recognises(folder)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        deeph_legacy.read(tmp_path / "absent")
    with pytest.raises(FileExistsError, match="x exists and is not empty"):
        deeph_legacy.write(folder, data)
