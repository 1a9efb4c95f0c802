"""DeepH's new layout: what stands in its files, what comes back, what is refused."""

from __future__ import annotations

import json
import shutil
import tarfile
import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.converters import deeph, deeph_legacy, guess_format, read
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.testing import random_lcao

# place of each harmonic of ABACUS (m = 0, 1, -1, 2, -2, ...) among those with m = -l ... l; the
# sign is (-1)^m
PLACES = {0: [0], 1: [1, 2, 0], 2: [2, 3, 1, 4, 0], 3: [3, 4, 2, 5, 1, 6, 0]}


@pytest.fixture
def written(tmp_path):
    """A small folder with everything in it, and the data."""
    data = random_lcao(5, "HSi", spin="spinor", magnetic=True, cutoff=1.8)
    data = replace(data, fermi_level=0.75)
    deeph.write(tmp_path / "x", data)
    return tmp_path / "x", data


def assert_equal(found: LCAOData, expected: LCAOData, atol: float = 0.0) -> None:
    """The same operators on the pairs that either has; a missing pair counts as zeros."""
    for name in ("overlap", "h0", "hamiltonian"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.spin == b.spin
            assert np.abs((a - b).data).max() <= atol, name
    assert (found.position is None) == (expected.position is None)
    for a, b in zip(found.position or (), expected.position or (), strict=True):
        assert np.abs((a - b).data).max() <= atol


def without_note(folder):
    (folder / "nextham.json").unlink()
    return folder


# --- what is written ----------------------------------------------------------------------------


def dictionary(path):
    """Blocks of a file as DeepH's documentation reads them."""
    with h5py.File(path) as file:
        pairs, shapes = file["atom_pairs"][:], file["chunk_shapes"][:]
        ends, entries = file["chunk_boundaries"][:], file["entries"][:]
    return {
        tuple(pair.tolist()): entries[..., ends[p] : ends[p + 1]].reshape(
            *entries.shape[:-1], *shapes[p]
        )
        for p, pair in enumerate(pairs)
    }


def orbitals(shells):
    """For each orbital of ABACUS its place in DeepH's order, and its sign."""
    places, signs = [], []
    for l in shells:
        start = len(places)
        places += [start + place for place in PLACES[l]]
        signs += [(-1) ** abs(place - l) for place in PLACES[l]]
    return places, signs


def naive(matrix: LCAOMatrix, place, spinful: bool) -> dict:
    """The blocks that the conventions imply, element by element."""
    blocks = {}
    for i, j, R in zip(matrix.pairs.i, matrix.pairs.j, matrix.pairs.R.tolist(), strict=True):
        (rows, row_signs), (columns, column_signs) = (
            orbitals(matrix.basis.shells[matrix.symbols[atom]]) for atom in (i, j)
        )
        a, b = len(rows), len(columns)
        ours = matrix.block(i, j, R)
        block = np.zeros((2 * a, 2 * b) if spinful else (a, b), matrix.data.dtype)
        for m in range(a):
            for n in range(b):
                sign = row_signs[m] * column_signs[n]
                if matrix.spin == "spinor":
                    for s in range(2):
                        for t in range(2):
                            value = ours[2 * m + s, 2 * n + t]
                            block[s * a + rows[m], t * b + columns[n]] = sign * value
                elif matrix.spin == "collinear":
                    for s in range(2):
                        block[s * a + rows[m], s * b + columns[n]] = sign * ours[s, m, n]
                else:
                    block[rows[m], columns[n]] = sign * ours[m, n]
        blocks[*R, int(place[i]), int(place[j])] = block
    return blocks


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_blocks_are_those_that_the_conventions_imply(tmp_path, spin):
    data = random_lcao(1, "GaAsGa", spin=spin, magnetic=True, cutoff=2.4)
    deeph.write(tmp_path / "x", data)
    place = [0, 2, 1]  # Ga, Ga, As
    spinful = spin != "unpolarised"
    expected = {
        "overlap": naive(data.overlap, place, False),
        "hamiltonian": naive(data.hamiltonian, place, spinful),
        "zeroth_hamiltonian": naive(data.h0, place, spinful),
    }
    r = [naive(component, place, False) for component in data.position]
    expected["position_matrix"] = {key: np.stack([x[key] for x in r]) for key in r[0]}
    for name, blocks in expected.items():
        found = dictionary(tmp_path / "x" / f"{name}.h5")
        assert found.keys() == blocks.keys(), name
        for key, block in blocks.items():
            assert_array_equal(found[key], block)
    with h5py.File(tmp_path / "x" / "hamiltonian.h5") as file:
        assert file["entries"].dtype == (complex if spin == "spinor" else float)
        assert file["atom_pairs"].dtype == np.int64


def test_info_and_poscar_say_what_deeph_needs(tmp_path):
    data = replace(random_lcao(1, "GaAsGa", spin="collinear"), fermi_level=-2.5)
    deeph.write(tmp_path / "x", data)
    assert json.loads((tmp_path / "x" / "info.json").read_text()) == {
        "atoms_quantity": 3,
        "orbits_quantity": 2 * 20 + 13,
        "orthogonal_basis": False,
        "spinful": True,
        "fermi_energy_eV": -2.5,
        "elements_orbital_map": {"Ga": [0, 0, 1, 1, 2, 3], "As": [0, 0, 1, 1, 2]},
        "occupation": 17.0,
    }
    lines = (tmp_path / "x" / "POSCAR").read_text().splitlines()
    assert lines[5:8] == ["Ga As", "2 1", "Cartesian"]
    stored = [[float(word) for word in line.split()] for line in lines[8:]]
    assert_array_equal(stored, data.atoms.positions[[0, 2, 1]])


def axial_blocks(folder):
    """Overlaps of pairs of atoms, turned so that the second is above the first."""
    found = deeph.read(folder)
    S, atoms = found.overlap, found.atoms
    deeph_basis = replace(S.basis, convention="deeph")
    for (x, y, z, i, j), block in dictionary(folder / "overlap.h5").items():
        d = atoms.positions[j] - atoms.positions[i] + np.array([x, y, z]) @ atoms.cell.array
        length = np.linalg.norm(d)
        if length < 0.1 or not block.any():
            continue
        w = d / length - [0, 0, 1]  # a reflection that takes d to the z axis
        turn = np.eye(3)
        if np.linalg.norm(w) > 1e-8:
            turn -= 2 * np.outer(w, w) / (w @ w)
        left, right = (deeph_basis.rotation(S.symbols[atom], turn) for atom in (i, j))
        m_i, m_j = (deeph_basis.quantum_numbers(S.symbols[atom])[:, 2] for atom in (i, j))
        yield left @ block @ right.T, m_i, m_j


def largest_off_axis(folder) -> float:
    """Largest overlap of orbitals with different m along the axis, which symmetry forbids."""
    return max(
        np.abs(np.where(m_i[:, None] == m_j, 0, block)).max()
        for block, m_i, m_j in axial_blocks(folder)
    )


def test_written_overlaps_have_the_symmetry_of_two_atoms(abacus_folders, tmp_path):
    deeph.write(tmp_path / "x", read(abacus_folders / "v3.8.1" / "h2o"))
    assert largest_off_axis(tmp_path / "x") < 1e-8


def test_written_overlaps_of_d_and_f_shells_have_that_symmetry(shared_data, tmp_path):
    """The raw file, with rotations in DeepH's convention: orders and signs up to f at once."""
    with tarfile.open(shared_data / "abacus" / "scf" / "GaAs_soc_zero.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folders = {f"{kind}_dir": shared_data / kind for kind in ("pseudo", "orbital")}
    runs = [tmp_path / "GaAs_soc_zero" / name for name in ("get_hs", "scf")]
    data = read(runs, "abacus", **folders)
    deeph.write(tmp_path / "x", data)
    assert largest_off_axis(tmp_path / "x") < 1e-8
    assert_equal(deeph.read(tmp_path / "x"), data)


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
@pytest.mark.parametrize("magnetic", [False, True])
def test_everything_comes_back_to_the_last_bit(tmp_path, spin, magnetic):
    data = random_lcao(2, "GaAsGaAs", spin=spin, magnetic=magnetic, cutoff=2.4)
    data = data.translated(np.random.default_rng(0).integers(-2, 3, (4, 3)))
    deeph.write(tmp_path / "x", data)
    assert guess_format(tmp_path / "x") == "deeph"
    found = deeph.read(tmp_path / "x")
    assert found.atoms == data.atoms
    assert_equal(found, data)


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_without_the_note_files_are_read_for_what_they_say(tmp_path, spin, energies):
    data = random_lcao(2, "GaAsGaAs", spin=spin, magnetic=True, cutoff=2.4)
    deeph.write(tmp_path / "x", replace(data, fermi_level=1.5))
    found = deeph.read(without_note(tmp_path / "x"))
    assert found.symbols == ("Ga", "Ga", "As", "As")
    assert_equal(found, data.permuted([0, 2, 1, 3]))
    assert (found.fermi_level, found.nelectrons) == (1.5, data.nelectrons)
    assert_allclose(energies(found), energies(data), atol=1e-12)


def test_two_hamiltonians_of_different_spin_come_back_as_they_were(tmp_path):
    plain, spinor = (random_lcao(3, "AsH", spin=spin) for spin in ("unpolarised", "spinor"))
    for h0 in (plain.h0, plain.h0.with_spin("collinear")):
        data = replace(spinor, h0=h0)
        name = h0.spin
        deeph.write(tmp_path / name, data)
        assert_equal(deeph.read(tmp_path / name), data)
    data = replace(plain, h0=plain.h0, hamiltonian=plain.h0.with_spin("spinor"))
    deeph.write(tmp_path / "real spinor", data)
    assert_equal(deeph.read(tmp_path / "real spinor"), data)


def test_h0_alone_is_the_hamiltonian_that_deeph_sees(tmp_path):
    data = replace(random_lcao(3, "AsH"), hamiltonian=None)
    deeph.write(tmp_path / "x", data)
    assert not (tmp_path / "x" / "zeroth_hamiltonian.h5").exists()
    assert_equal(deeph.read(tmp_path / "x"), data)
    found = deeph.read(without_note(tmp_path / "x"))
    assert found.h0 is None
    assert np.abs((found.hamiltonian - data.h0).data).max() == 0


def test_an_overlap_alone_is_enough(tmp_path):
    data = replace(random_lcao(3, "AsH"), hamiltonian=None, h0=None, position=None)
    deeph.write(tmp_path / "x", data)
    assert guess_format(tmp_path / "x") == "deeph"
    assert_equal(deeph.read(tmp_path / "x"), data)


def test_a_predicted_hamiltonian_is_read_where_there_is_no_other_or_when_asked_for(written):
    folder, data = written
    with h5py.File(folder / "hamiltonian.h5") as file:
        arrays = {name: file[name][()] for name in file}
    arrays["entries"] = 2 * arrays["entries"].astype(np.complex64)
    with h5py.File(folder / "hamiltonian_pred.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    predicted = 2 * data.hamiltonian
    assert_equal(deeph.read(folder), data)
    assert_equal(deeph.read(folder, hamiltonian="dft"), data)
    found = deeph.read(folder, hamiltonian="predicted")
    assert_equal(found, replace(data, hamiltonian=predicted), atol=1e-6)
    assert found.source == {**data.source, "hamiltonian": "predicted by DeepH"}
    (folder / "hamiltonian.h5").unlink()
    assert_equal(deeph.read(folder), replace(data, hamiltonian=predicted), atol=1e-6)
    with pytest.raises(ValueError, match="x: there is no dft Hamiltonian in this folder"):
        deeph.read(folder, hamiltonian="dft")
    with pytest.raises(ValueError, match="unknown hamiltonian 'pred'; choose one of dft, pred"):
        deeph.read(folder, hamiltonian="pred")


def test_a_prediction_beside_h0_is_the_hamiltonian(tmp_path):
    data = replace(random_lcao(3, "AsH"), hamiltonian=None)
    deeph.write(tmp_path / "x", data)
    shutil.copy(tmp_path / "x" / "hamiltonian.h5", tmp_path / "x" / "hamiltonian_pred.h5")
    assert_equal(deeph.read(tmp_path / "x"), replace(data, hamiltonian=data.h0))


def test_labels_of_an_element_with_the_same_orbitals_come_back(tmp_path):
    data = relabelled(random_lcao(3, "HHSi"), ["H1", "H2", "Si"])
    deeph.write(tmp_path / "x", data)
    assert (tmp_path / "x" / "POSCAR").read_text().splitlines()[5] == "H Si"
    found = deeph.read(tmp_path / "x")
    assert found.symbols == ("H1", "H2", "Si")
    assert_equal(found, data)


def relabelled(data: LCAOData, symbols, fingerprint=None) -> LCAOData:
    """The same operators for species of other names."""
    basis = data.basis
    names = dict(zip(symbols, data.symbols, strict=True))
    basis = replace(
        basis,
        shells={label: basis.shells[name] for label, name in names.items()},
        radius={},
        fingerprint=fingerprint or {},
        valence={},
    )

    def moved(matrix):
        return replace(matrix, basis=basis, symbols=tuple(symbols))

    return replace(
        data,
        overlap=moved(data.overlap),
        h0=moved(data.h0),
        hamiltonian=moved(data.hamiltonian),
        position=tuple(moved(r) for r in data.position),
    )


def test_half_of_a_hermitian_operator_is_enough(written):
    folder, data = written
    data = replace(data, position=None)
    (folder / "position_matrix.h5").unlink()
    for name in ("overlap", "hamiltonian", "zeroth_hamiltonian"):
        path = folder / f"{name}.h5"
        with h5py.File(path) as file:
            arrays = {key: file[key][()] for key in file}
        half = [p for p, row in enumerate(arrays["atom_pairs"].tolist()) if row[:3] >= [0, 0, 0]]
        pieces = np.split(arrays["entries"], arrays["chunk_boundaries"][1:-1])
        with h5py.File(path, "w") as file:
            file["atom_pairs"] = arrays["atom_pairs"][half]
            file["chunk_shapes"] = arrays["chunk_shapes"][half]
            sizes = [pieces[p].size for p in half]
            file["chunk_boundaries"] = np.concatenate([[0], np.cumsum(sizes)])
            file["entries"] = np.concatenate([pieces[p] for p in half])
    assert_equal(deeph.read(folder), data, atol=1e-15)


def test_files_need_not_have_the_same_pairs(written):
    folder, data = written
    near = data.overlap.pairs.R[:, 0] == 0
    pairs = AtomPairs(data.pairs.i[near], data.pairs.j[near], data.pairs.R[near])
    cut = data.overlap.cut_to(pairs)[0]
    alone = LCAOData(atoms=data.atoms, overlap=cut)
    deeph.write(folder.parent / "near", alone)
    shutil.copy(folder.parent / "near" / "overlap.h5", folder / "overlap.h5")
    found = deeph.read(folder)
    assert len(found.pairs) == len(data.pairs)
    assert_equal(found, replace(data, overlap=cut.on_pairs(data.pairs)))


def test_an_orthogonal_basis_needs_no_overlap(written):
    folder, data = written
    (folder / "overlap.h5").unlink()
    with pytest.raises(ValueError, match="there is no overlap.h5, and the basis is not orthogonal"):
        deeph.read(folder)
    change_info(folder, orthogonal_basis=True)
    found = deeph.read(without_note(folder))
    assert_allclose(found.overlap.at_k([0.1, 0.2, 0.3]), np.eye(data.overlap.dimension))
    assert np.abs((found.hamiltonian - data.hamiltonian).data).max() == 0


def test_a_density_matrix_is_left_alone_and_that_is_said(written):
    folder, data = written
    shutil.copy(folder / "hamiltonian.h5", folder / "density_matrix.h5")
    with pytest.warns(UserWarning, match="x: density_matrix.h5 is not read"):
        assert_equal(deeph.read(folder), data)


# --- the energy zero ----------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
@pytest.mark.parametrize("noted", [True, False])
def test_the_energy_zero_is_moved_as_asked_and_moved_back(tmp_path, spin, noted, energies):
    data = random_lcao(7, "AsH", spin=spin, magnetic=True)
    data = replace(data, hamiltonian=data.hamiltonian + 13.0 * data.overlap.with_spin(spin))
    data = replace(data, fermi_level=2.0)
    deeph.write(tmp_path / "x", data, energy_zero="standardized")
    H, S = (dictionary(tmp_path / "x" / f"{name}.h5") for name in ("hamiltonian", "overlap"))
    if spin != "unpolarised":
        S = {key: np.kron(np.eye(2), block) for key, block in S.items()}
    assert abs(sum(np.vdot(S[key], H[key]) for key in H)) < 1e-10  # eV
    info = json.loads((tmp_path / "x" / "info.json").read_text())
    mu = info["energy_zero_shift_eV"]
    assert mu == pytest.approx(13.0, abs=2.0)
    assert info["fermi_energy_eV"] == pytest.approx(2.0 - mu, abs=1e-12)
    found = deeph.read(tmp_path / "x" if noted else without_note(tmp_path / "x"))
    assert_equal(found, data, atol=1e-13)
    assert found.fermi_level == pytest.approx(2.0, abs=1e-13)
    change_info(tmp_path / "x", energy_zero_shift_eV=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the note is for the info.json of before
        moved = deeph.read(tmp_path / "x")
    assert_allclose(energies(moved), energies(data) - mu, atol=1e-12)


def test_the_energy_zero_of_nothing_cannot_be_moved(tmp_path):
    data = replace(random_lcao(3, "AsH"), hamiltonian=None, h0=None)
    with pytest.raises(ValueError, match="x: there is no Hamiltonian whose energy zero could be"):
        deeph.write(tmp_path / "x", data, energy_zero="standardized")
    with pytest.raises(ValueError, match="'mean'; choose one of kept, standardized"):
        deeph.write(tmp_path / "x", data, energy_zero="mean")


# --- what is refused ----------------------------------------------------------------------------


def test_species_of_one_element_with_different_orbitals_are_refused(abacus_folders, tmp_path):
    data = read(abacus_folders / "v3.8.1" / "h2o_labels")
    message = r"one set of orbitals for an element, but H1 \(1s\) and H2 \(1s1p\) are both H"
    with pytest.raises(ValueError, match=message):
        deeph.write(tmp_path / "x", data)
    assert not (tmp_path / "x").exists()
    files = {"H1": "a" * 64, "H2": "b" * 64}
    data = relabelled(random_lcao(3, "HHSi"), ["H1", "H2", "Si"], files)
    with pytest.raises(ValueError, match=r"H1 \(2s1p\) and H2 \(2s1p\) are both H and have diff"):
        deeph.write(tmp_path / "x", data)


def test_complex_numbers_without_spin_are_refused(tmp_path):
    data = random_lcao(3, "AsH")
    twisted = replace(data, hamiltonian=(1 + 0.25j) * data.hamiltonian)
    message = "hamiltonian has imaginary parts up to .*; write it as spinor"
    with pytest.raises(ValueError, match=message):
        deeph.write(tmp_path / "x", twisted)
    real = replace(data, hamiltonian=(1 + 0j) * data.hamiltonian)
    deeph.write(tmp_path / "x", real)
    assert_equal(deeph.read(tmp_path / "x"), data)


def test_folders_with_something_in_them_are_not_overwritten(written):
    folder, data = written
    with pytest.raises(FileExistsError, match="x exists and is not empty"):
        deeph.write(folder, data)


def test_folders_of_others_are_not_claimed(written, tmp_path, abacus_folders):
    folder, _ = written
    assert not deeph.recognises(folder / "POSCAR")
    assert not deeph.recognises(tmp_path / "absent")
    assert not deeph.recognises(abacus_folders / "v3.8.1" / "h2o")
    assert not deeph_legacy.recognises(folder)
    (folder / "info.json").unlink()
    assert not deeph.recognises(folder)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        deeph.read(tmp_path / "absent")


def change_info(folder, **values):
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(info | values))


def change(folder, name, **arrays):
    """Other datasets in a file; None removes one."""
    with h5py.File(folder / name, "r+") as file:
        for key, array in arrays.items():
            if key in file:
                del file[key]
            if array is not None:
                file[key] = array


def datasets(folder, name="hamiltonian.h5"):
    with h5py.File(folder / name) as file:
        return {key: file[key][()] for key in file}


def changed(folder, key, place, value, name="hamiltonian.h5"):
    array = datasets(folder, name)[key]
    array[place] = value
    change(folder, name, **{key: array})


def repeat_a_pair(folder):
    pairs = datasets(folder)["atom_pairs"]
    first, second = np.flatnonzero((pairs[:, 3:] == [0, 1]).all(axis=1))[:2]
    changed(folder, "atom_pairs", second, pairs[first])


DAMAGES = {
    "info.json: no such file": lambda f: (f / "info.json").unlink(),
    "POSCAR: no such file": lambda f: (f / "POSCAR").unlink(),
    "info.json: not readable as JSON": lambda f: (f / "info.json").write_text("{"),
    "info.json: a JSON object is expected, not list": lambda f: (f / "info.json").write_text("[]"),
    "'spinful' is 1, expected true or false": lambda f: change_info(f, spinful=1),
    "'fermi_energy_eV' is 'x', expected a number": lambda f: change_info(f, fermi_energy_eV="x"),
    "'atoms_quantity' is 3, but the atoms of POSCAR": lambda f: change_info(f, atoms_quantity=3),
    "there is no 'elements_orbital_map'": lambda f: change_info(f, elements_orbital_map=None),
    r"the orbitals of Si are \[9\], expected a list": lambda f: change_info(
        f, elements_orbital_map={"H": [0], "Si": [9]}
    ),
    r"block \(i=0, j=0, .*\) has shape .* but the orbitals in": lambda f: change_info(
        f, elements_orbital_map={"H": [0], "Si": [0, 1, 2]}, orbits_quantity=10
    ),
    "there is no dataset 'entries'": lambda f: change(f, "hamiltonian.h5", entries=None),
    "'entries' is float64 of shape \\(4,\\), expected 2 axes": lambda f: change(
        f, "position_matrix.h5", entries=np.zeros(4)
    ),
    "'atom_pairs' is float64": lambda f: change(f, "overlap.h5", atom_pairs=np.zeros((3, 5))),
    "do not belong together": lambda f: change(f, "overlap.h5", atom_pairs=np.zeros((3, 5), int)),
    r"block \(i=0, j=7, .* is of atoms that are not among the 2": lambda f: changed(
        f, "atom_pairs", (0, 4), 7
    ),
    "is no neighbour in a crystal": lambda f: changed(f, "atom_pairs", (0, 0), -(2**63)),
    r"block \(i=\d, j=\d, .*\) is there twice": lambda f: repeat_a_pair(f),
    r"chunk_boundaries\[1\] is 5, but the blocks before": lambda f: changed(
        f, "chunk_boundaries", 1, 5
    ),
    r"hamiltonian.h5: block \(i=0, j=0, .*\) holds a number that is not": lambda f: changed(
        f, "entries", 3, np.nan
    ),
    r"position_matrix.h5: block .* holds a number that is not finite": lambda f: changed(
        f, "entries", (2, 3), np.inf, "position_matrix.h5"
    ),
    r"'entries' has shape \(10,\), but blocks need": lambda f: change(
        f, "hamiltonian.h5", entries=np.zeros(10)
    ),
    "overlap.h5: 'entries' is complex128": lambda f: change(
        f, "overlap.h5", entries=np.zeros(10, complex)
    ),
    "overlap.h5: not an HDF5 file, or cut short": lambda f: (f / "overlap.h5").write_text("no"),
}


@pytest.mark.filterwarnings("ignore:.*changed after this note was written")
@pytest.mark.parametrize("message", DAMAGES)
def test_what_is_wrong_in_a_folder_is_named(written, message):
    folder, _ = written
    DAMAGES[message](folder)
    with pytest.raises(ValueError, match=message):
        deeph.read(folder)


def test_damaged_poscars_are_named(written):
    folder, _ = written
    lines = (folder / "POSCAR").read_text().splitlines()
    for number, line, message in (
        (1, "-20.0", "the scale '-20.0' is not one or three positive numbers"),
        (2, "1 2", "a line that should begin with three numbers does not"),
        (2, lines[3], "span no volume"),
        (5, "H Xx", "'Xx' is not an element"),
        (6, "1", "2 elements have the numbers of atoms"),
        (6, "1 99999999999999", "atoms need more"),
        (6, "1 -1", "2 elements have the numbers of atoms"),
        (7, "Selective dynamics", "line 8 is 'Selective dynamics'"),
        (8, "nan 0 0", "a line that should begin with three numbers does not"),
    ):
        changed_lines = [*lines[:number], line, *lines[number + 1 :]]
        (folder / "POSCAR").write_text("\n".join(changed_lines))
        with pytest.raises(ValueError, match=f"POSCAR: .*{message}"):
            deeph.read(without_note(folder) if (folder / "nextham.json").exists() else folder)


def test_scaled_and_direct_poscars_are_read(written):
    folder, data = written
    without_note(folder)
    atoms = data.atoms
    fractions = atoms.get_scaled_positions(wrap=False)
    rows = [*(atoms.cell.array / 2).tolist(), *fractions.tolist()]
    rows = [" ".join(map(repr, row)) for row in rows]
    lines = ["x", "2.0", *rows[:3], "H Si", "1 1", "Direct", *rows[3:]]
    (folder / "POSCAR").write_text("\n".join(lines) + "\n")
    found = deeph.read(folder)
    assert_allclose(found.atoms.positions, atoms.positions, atol=1e-12)
    assert_allclose(found.atoms.cell.array, atoms.cell.array, atol=1e-12)


def test_numbers_that_are_not_in_the_file_are_not_fetched_or_allocated(written, tmp_path):
    folder, _ = written
    arrays = datasets(folder)
    size = arrays["entries"].size
    (tmp_path / "secret").write_bytes(bytes(16 * size))
    hostile = {
        "says that it has 16000000000000000 bytes, but the file holds 0": lambda file: (
            file.create_dataset("entries", shape=(10**15,), dtype=complex)
        ),
        "but the file holds 0 of them": lambda file: file.create_dataset(
            "entries", shape=(10**15,), dtype=complex, compression="gzip"
        ),
        "'entries' is not a dataset of this file": lambda file: file.__setitem__(
            "entries", h5py.ExternalLink(str(folder / "overlap.h5"), "/entries")
        ),
        "'entries' is not a dataset": lambda file: file.create_group("entries"),
        "numbers of 'entries' are in another file": lambda file: file.create_dataset(
            "entries", (size,), complex, external=[(str(tmp_path / "secret"), 0, 16 * size)]
        ),
        "the numbers of 'entries' are in another": lambda file: file.create_virtual_dataset(
            "entries", virtual(folder / "overlap.h5", size)
        ),
    }
    for message, make in hostile.items():
        with h5py.File(folder / "hamiltonian.h5", "r+") as file:
            del file["entries"]
            make(file)
        with pytest.raises(ValueError, match=f"hamiltonian.h5: .*{message}"):
            deeph.read(folder)


def virtual(path, size):
    layout = h5py.VirtualLayout(shape=(size,), dtype=complex)
    layout[:] = h5py.VirtualSource(path, "entries", shape=(size,))
    return layout


@pytest.fixture(scope="module", params=[deeph, deeph_legacy], ids=["new", "old"])
def tiny(request, tmp_path_factory):
    """A layout, a folder of it without a note, and the content of its files."""
    module = request.param
    folder = tmp_path_factory.mktemp("tiny") / "x"
    data = random_lcao(5, "H", spin="spinor", magnetic=True, cutoff=1.5)
    module.write(folder, replace(data, h0=None))
    return module, without_note(folder), {path: path.read_bytes() for path in folder.iterdir()}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(draw=st.data())
def test_damaged_files_are_refused_or_hold_a_crystal(tiny, draw):
    module, folder, files = tiny
    path = draw.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[path])
    if draw.draw(st.booleans()):
        content = content[: draw.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(draw.draw(st.integers(1, 4))):
            content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        data = module.read(folder)
        assert np.isfinite(data.overlap.data).all()
    except ValueError as err:
        if str(folder) not in str(err):  # an error must name the file, and no other may come
            raise
    finally:
        path.write_bytes(files[path])
