from dataclasses import replace

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ase_nextham import hdf5
from ase_nextham.matrix import AtomPairs
from ase_nextham.testing import random_lcao

NAMES = ("overlap", "h0", "hamiltonian", "position x", "position y", "position z")


def operators(data):
    return [data.overlap, data.h0, data.hamiltonian, *data.position]


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_everything_comes_back_to_the_last_bit(spin, tmp_path):
    data = random_lcao(1, "GaAsGaAs", spin=spin, magnetic=True)
    data.atoms.set_initial_magnetic_moments([1.0, 0.0, -1.0, 0.5])
    hdf5.write(tmp_path / "x.h5", data)
    back = hdf5.read(tmp_path / "x.h5")
    for a, b in zip(operators(back), operators(data), strict=True):
        assert a.spin == b.spin
        assert_array_equal(a.data, b.data)
    assert back.pairs.same_as(data.pairs)
    assert back.atoms == data.atoms
    assert back.nelectrons == data.nelectrons
    assert back.fermi_level is None
    assert dict(back.source) == dict(data.source)
    assert dict(back.basis.fingerprint) == dict(data.basis.fingerprint)


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_what_is_written_slab_by_slab_is_what_is_written_at_once(spin, tmp_path, monkeypatch):
    data = random_lcao(1, "GaAsH", spin=spin, magnetic=True)
    none = AtomPairs([], [], np.zeros((0, 3), int))
    named = dict(zip(NAMES, operators(data), strict=True))
    hollow = [replace(matrix, pairs=none, data=matrix.data[..., :0]) for matrix in operators(data)]
    without = replace(
        data,
        overlap=hollow[0],
        h0=hollow[1],
        hamiltonian=hollow[2],
        position=tuple(hollow[3:]),
    )
    asked = []

    def blocks(name, p):
        asked.append(len(p))
        matrix = named[name]
        parts = [matrix.data[..., slice(*matrix.offsets[n : n + 2])] for n in p]
        return np.concatenate(parts, axis=-1)

    monkeypatch.setattr(hdf5, "_SLAB", 4000)
    hdf5.write(tmp_path / "once.h5", data)
    hdf5.write_slabs(tmp_path / "slabs.h5", without, data.pairs, blocks)
    assert len(asked) > 50
    with h5py.File(tmp_path / "once.h5") as a, h5py.File(tmp_path / "slabs.h5") as b:
        assert dict(a.attrs) == dict(b.attrs)
        found = []
        a.visit(found.append)
        for path in found:
            assert dict(a[path].attrs) == dict(b[path].attrs)
            if isinstance(a[path], h5py.Dataset):
                assert a[path].dtype == b[path].dtype
                assert a[path].chunks == b[path].chunks
                assert_array_equal(a[path][()], b[path][()])


def test_the_structure_is_read_without_the_matrices(tmp_path):
    data = replace(random_lcao(1), hamiltonian=None)
    hdf5.write(tmp_path / "x.h5", data)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["operators/h0/upper"]  # would be missed if it were read
    atoms, operators = hdf5.read_structure(tmp_path / "x.h5")
    assert atoms == data.atoms
    assert operators == {"overlap", "h0", "position"}


def test_what_is_not_hermitian_comes_back_as_it_is(tmp_path):
    data = random_lcao(1)
    values = data.h0.data + np.random.default_rng(0).normal(size=data.h0.data.shape)
    data = replace(data, h0=replace(data.h0, data=values))
    hdf5.write(tmp_path / "x.h5", data)
    assert_array_equal(hdf5.read(tmp_path / "x.h5").h0.data, values)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    hdf5.write(path, random_lcao(1))
    before = path.read_bytes()

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(hdf5, "_write_operator", fail)
    with pytest.raises(KeyboardInterrupt):
        hdf5.write(path, random_lcao(2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_files_that_are_not_native_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        hdf5.read(tmp_path / "absent.h5")
    text = tmp_path / "text.h5"
    text.write_text("STEP: 0")
    with pytest.raises(ValueError, match=r"text.h5: not an HDF5 file, or cut short"):
        hdf5.read(text)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match=r"other.h5: not a native file .* 'format' is None"):
        hdf5.read(tmp_path / "other.h5")


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    hdf5.write(path, random_lcao(1))
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(ValueError, match="format version 99, but this release reads"):
        hdf5.read(path)


@pytest.mark.parametrize("item", ["operators/overlap", "pairs/R", "atoms/species"])
def test_damaged_files_are_refused(item, tmp_path):
    path = tmp_path / "x.h5"
    hdf5.write(path, random_lcao(1))
    with h5py.File(path, "a") as file:
        del file[item]
    with pytest.raises(ValueError, match=r"x.h5: the file is damaged or incomplete"):
        hdf5.read(path)


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    hdf5.write(path, random_lcao(1))
    content = path.read_bytes()
    for fraction in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(fraction * len(content))])
        with pytest.raises(ValueError, match=r"x.h5"):
            hdf5.read(path)


def test_damage_among_the_names_and_attributes_is_told_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "x.h5"
    hdf5.write(path, random_lcao(0, "Si", cutoff=1.5))
    content = path.read_bytes()
    messages = []
    for place in range(800, 2800, 16):
        path.write_bytes(content[:place] + b"damaged!" + content[place + 8 :])
        try:
            hdf5.read(path)
        except ValueError as err:
            messages.append(str(err))
    assert len(messages) > 30
    assert all(str(path) in message for message in messages)


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        hdf5.write(tmp_path / "no" / "x.h5", random_lcao(1))


def test_files_of_the_first_format_still_open(root):
    data = hdf5.read(root / "tests" / "data" / "native_v1.h5")
    expected = random_lcao(0, "HH", spin="collinear", magnetic=True)
    for a, b in zip(operators(data), operators(expected), strict=True):
        # random numbers may differ in the last bit between machines
        np.testing.assert_allclose(a.data, b.data, atol=1e-12)


def test_numbers_and_spins_that_cannot_be_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    data = random_lcao(1)
    hdf5.write(path, data)
    with h5py.File(path, "a") as file:
        file["operators/h0/upper"][0] = np.nan
    with pytest.raises(ValueError, match="/operators/h0 holds numbers that are not finite"):
        hdf5.read(path)
    hdf5.write(path, data)
    with h5py.File(path, "a") as file:
        file["operators/overlap"].attrs["spin"] = "up"
    with pytest.raises(ValueError, match="/operators/overlap has unknown spin 'up'"):
        hdf5.read(path)


def test_one_atom_without_neighbours_can_be_stored(tmp_path):
    data = random_lcao(2, "H", cutoff=1.0)
    assert len(data.pairs) == 1  # no pair has another one as its partner
    hdf5.write(tmp_path / "x.h5", data)
    assert_array_equal(hdf5.read(tmp_path / "x.h5").h0.data, data.h0.data)
