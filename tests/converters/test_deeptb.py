"""Folders of dftio and DeePTB: conventions, frames, older variants, and damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.basis import Basis
from ase_nextham.converters import deeptb, guess_format, read, write
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.testing import random_lcao


def some(spin="unpolarised", symbols="GaAs", seed=0):
    data = random_lcao(seed, symbols, spin=spin, magnetic=True)
    return replace(data, h0=None, position=None)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "x", some(), format="deeptb")
    (tmp_path / "x" / "nextham.json").unlink()
    return tmp_path / "x"


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_blocks_have_standard_orbitals_and_spin_outermost(tmp_path, spin):
    data = some(spin)
    write(tmp_path / "x", data, format="deeptb")
    expected = data.hamiltonian.with_spin("spinor") if spin == "collinear" else data.hamiltonian
    expected = expected.in_convention("deeph")
    with h5py.File(tmp_path / "x" / "hamiltonians.h5") as file:
        assert list(file) == ["0"]
        assert len(file["0"]) == len(data.pairs)
        for i, j, R in zip(data.pairs.i, data.pairs.j, data.pairs.R.tolist(), strict=True):
            found = file["0"]["_".join(map(str, (i, j, *R)))][()]
            block = expected.block(i, j, R)
            if spin != "unpolarised":
                up_then_down = [np.r_[0 : len(a) : 2, 1 : len(a) : 2] for a in (block, block.T)]
                block = block[np.ix_(*up_then_down)]
            assert_array_equal(found, block)


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_a_folder_without_our_note_is_read_for_what_it_says(tmp_path, spin):
    data = some(spin, "GaAsGaAs")
    write(tmp_path / "x", data, format="deeptb")
    (tmp_path / "x" / "nextham.json").unlink()
    assert guess_format(tmp_path / "x") == "deeptb"
    found = read(tmp_path / "x")
    assert found.symbols == data.symbols
    assert found.basis.shells == data.basis.shells
    assert found.hamiltonian.spin == spin
    assert_array_equal(found.hamiltonian.data, data.hamiltonian.data)
    assert_array_equal(found.overlap.data, data.overlap.data)
    assert_array_equal(found.atoms.positions, data.atoms.positions)
    assert found.atoms.pbc.all()


def test_the_files_beside_are_those_of_dftio(folder):
    assert (folder / "basis.dat").read_text() == "{'Ga': '2s2p1d1f', 'As': '2s2p1d'}"
    assert (folder / "atomic_numbers.dat").read_text() == "31\n33\n"
    info = json.loads((folder / "info.json").read_text())
    data = read(folder)
    R = data.pairs.R @ data.atoms.cell.array
    vectors = data.atoms.positions[data.pairs.j] - data.atoms.positions[data.pairs.i] + R
    assert 0 < info["r_max"] - np.linalg.norm(vectors, axis=1).max() <= 0.02
    assert (info["nframes"], info["natoms"], info["pos_type"]) == (1, 2, "cart")


def test_frames_are_read_one_by_one(tmp_path, folder):
    # as dftio writes a trajectory: positions one after another, one cell for all
    first, second = some(), some(seed=7)
    second = replace(second, atoms=first.atoms)
    write(tmp_path / "second", second, format="deeptb")
    for name in ("hamiltonians.h5", "overlaps.h5"):
        with h5py.File(folder / name, "a") as file, h5py.File(tmp_path / "second" / name) as other:
            other.copy("0", file, "1")
    moved = first.atoms.positions + 0.125
    with (folder / "positions.dat").open("a") as file:
        np.savetxt(file, moved)
    found = read(folder, frame=1)
    assert_array_equal(found.hamiltonian.data, second.hamiltonian.data)
    assert_allclose(found.atoms.positions, moved)
    assert_array_equal(read(folder).hamiltonian.data, first.hamiltonian.data)
    with pytest.raises(ValueError, match="there is no frame 2; there are 2, counted from 0"):
        read(folder, frame=2)
    with pytest.raises(ValueError, match="there is no frame -1"):
        read(folder, frame=-1)


def test_older_folders_count_from_one_and_have_a_basis_for_each_atom(folder):
    data = some()
    for name in ("hamiltonians.h5", "overlaps.h5"):
        with h5py.File(folder / name, "a") as file:
            for key in list(file["0"]):
                i, j, *R = map(int, key.split("_"))
                file[f"1/{'_'.join(map(str, (i + 1, j + 1, *R)))}"] = file["0"][key][()]
            del file["0"]
    (folder / "basis.dat").write_text("2s2p1d1f\n2s2p1d\n")
    (folder / "pbc.dat").unlink()
    (folder / "info.json").write_text('{"nframes": 1, "pos_type": "frac"}')
    np.savetxt(folder / "positions.dat", data.atoms.get_scaled_positions(wrap=False))
    found = read(folder)
    assert_array_equal(found.hamiltonian.data, data.hamiltonian.data)
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-12)


def test_numbers_of_32_bits_and_halves_of_the_blocks_are_enough(folder):
    data = some()
    for name in ("hamiltonians.h5", "overlaps.h5"):
        with h5py.File(folder / name, "a") as file:
            for p, (i, j) in enumerate(zip(data.pairs.i, data.pairs.j, strict=True)):
                key = "_".join(map(str, (i, j, *data.pairs.R[p])))
                block = file["0"][key][()].astype(np.float32)
                del file["0"][key]
                if p <= data.pairs.reverse[p]:
                    file["0"][key] = block
    found = read(folder)
    assert_allclose(found.hamiltonian.data, data.hamiltonian.data, rtol=1e-6)
    assert found.hamiltonian.pairs.same_as(data.hamiltonian.pairs)


def test_predictions_are_read_as_such(folder):
    (folder / "hamiltonians.h5").rename(folder / "predicted_hamiltonians.h5")
    assert deeptb.recognises(folder)
    assert read(folder).source["hamiltonian"] == "predicted by DeePTB"
    (folder / "predicted_hamiltonians.h5").unlink()
    assert read(folder).hamiltonian is None


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    data = some(symbols="H2")
    moved = Basis({"H": (0, 1, 0)})
    unsorted = replace(
        data,
        overlap=replace(data.overlap, basis=moved),
        hamiltonian=replace(data.hamiltonian, basis=moved),
    )
    with pytest.raises(
        ValueError, match=r"shells go up in l and up to h; those of H are l = \(0, 1"
    ):
        write(tmp_path / "x", unsorted, format="deeptb")
    H = data.hamiltonian
    phase = np.where(H.pairs.i <= H.pairs.j, 1j, -1j)
    turned = LCAOMatrix(
        H.basis, H.symbols, H.pairs, H.spin, H.data * np.repeat(phase, np.diff(H.offsets))
    )
    with pytest.raises(ValueError, match="H has imaginary parts up to .* spin-orbit"):
        write(tmp_path / "x", replace(data, hamiltonian=turned), format="deeptb")
    assert not list(tmp_path.iterdir())


def test_lmdb_is_refused_with_advice(tmp_path):
    folder = tmp_path / "set" / "data.4711.lmdb"
    folder.mkdir(parents=True)
    (folder / "data.mdb").write_bytes(b"\x80\x04.")
    for path in (folder, folder.parent):
        assert guess_format(path) == "deeptb"
        with pytest.raises(ValueError, match="pickled Python objects.*dftio parse -f dat"):
            read(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("basis.dat", "{'Ga': '2s2p1d1f'}", "no orbitals for As"),
        ("basis.dat", "{'Ga': '2s2p1d1f', 'As': __import__('os')}", "expected a basis such as"),
        ("basis.dat", "{'Ga': '2s2p1d1f', 'As': '2s2p1z'}", "'2s2p1z' is no set of orbitals"),
        ("basis.dat", "{'Ga': '2s2p1d1f', 'As': '3s2p1d'}", "block .* has shape"),
        ("basis.dat", "2s2p1d1f", "1 lines for 2 atoms"),
        ("cell.dat", "1 0 0\n0 1 0\n1 1 0\n", "the vectors of frame 0 span no volume"),
        ("cell.dat", "1 0 0\n", "expected three vectors a frame"),
        ("positions.dat", "0 0 0\n", r"positions of shape \(1, 3\) and 2 atomic numbers"),
        ("positions.dat", "0 0 0\n1 1 nan\n", "not a table of finite numbers"),
        ("positions.dat", "0 0 0\n1 1\n", "not a table of numbers"),
        ("atomic_numbers.dat", "31\n333\n", "not the atomic numbers of elements"),
        ("pbc.dat", "1\n1\n", "2 numbers, expected one or three"),
        ("info.json", "[1]", "not readable as a JSON object"),
        ("hamiltonians.h5", "", "not an HDF5 file, or cut short"),
    ],
)
def test_damage_is_told(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(folder, "deeptb")


def test_damaged_blocks_are_told(folder):
    def change(content, key="0_0_0_0_0"):
        with h5py.File(folder / "hamiltonians.h5", "a") as file:
            del file["0"][key]
            if content is not None:
                file["0"][key] = content

    with h5py.File(folder / "hamiltonians.h5") as file:
        good = file["0"]["0_0_0_0_0"][()]
    bad = good.copy()
    bad[3, 2] = np.inf
    for content, message in (
        (bad, r"block \(i=0, j=0, R=0,0,0\) holds a number that is not finite"),
        (good[:-1], "block 0_0_0_0_0 has shape"),
        (good.astype("S8"), "block 0_0_0_0_0 holds .*expected numbers"),
        (h5py.SoftLink("/0/1_1_0_0_0"), "is not a dataset of this file"),
        (h5py.ExternalLink("overlaps.h5", "/0/0_0_0_0_0"), "is not a dataset of this file"),
    ):
        change(content)
        with pytest.raises(ValueError, match=message):
            read(folder)
    change(good)
    for key, message in (
        ("0_0_0_0", "'0_0_0_0' is not the name of a block"),
        ("0_7_0_0_0", "is of atoms that are not among the 2"),
        ("0_0_123456_0_0", "is no neighbour in a crystal"),
    ):
        with h5py.File(folder / "hamiltonians.h5", "a") as file:
            file["0"][key] = good
        with pytest.raises(ValueError, match=message):
            read(folder)
        change(None, key)
    with h5py.File(folder / "hamiltonians.h5", "a") as file:
        file.move("0", "5")
    with pytest.raises(ValueError, match="there is no group for frame 0"):
        read(folder)
    (folder / "overlaps.h5").unlink()
    with pytest.raises(ValueError, match="there is no overlaps.h5, and these orbitals are not"):
        read(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        deeptb.read(folder / "overlaps.h5")


def test_absurd_sizes_are_refused_before_memory_is_taken(folder):
    with h5py.File(folder / "hamiltonians.h5", "a") as file:
        del file["0"]["0_0_0_0_0"]
        file["0"].create_dataset("0_0_0_0_0", (10**6, 10**6), "f8", chunks=(1000, 1000))
    with pytest.raises(ValueError, match="block 0_0_0_0_0 has shape"):
        read(folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6), st.binary(max_size=8), st.integers(0, 3000))
def test_garbled_files_are_refused_or_read(folder, place, piece, lost):
    good = folder.parent / "good"
    if not good.exists():
        shutil.copytree(folder, good)
    names = ("hamiltonians.h5", "basis.dat", "positions.dat", "cell.dat", "info.json", "pbc.dat")
    name = names[place % len(names)]
    content = (good / name).read_bytes()
    place %= len(content)
    (folder / name).write_bytes(content[:place] + piece + content[place + lost :])
    try:
        data = read(folder, "deeptb")
    except ValueError as err:
        if str(folder.parent) not in str(err):  # every message names the folder
            raise
    else:
        assert np.isfinite(data.hamiltonian.data).all()
    shutil.copy(good / name, folder / name)
