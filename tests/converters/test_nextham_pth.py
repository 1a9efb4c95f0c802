"""Samples of NextHAM's programs hold the Hamiltonians of ABACUS, and predictions go back to it."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.basis import Basis
from ase_nextham.converters import (
    convert,
    guess_format,
    nextham_pth,
    nextham_training,
    read,
    write,
)
from ase_nextham.converters.nextham_layout import SHELLS, Rows, flat_order, shells_of_mask
from ase_nextham.data import LCAOData
from ase_nextham.h0.csr import csr_matrices, lcao_matrices, read_csr
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.testing import random_lcao

torch = pytest.importorskip("torch")

PRECISE, ROUNDED = 13.6056980659, 13.6
SINGLE = 2e-7  # relative: single precision

CLASSES = {5: "2s1p", 7: "4s1p", 13: "2s2p1d", 15: "4s2p1d", 25: "2s2p2d1f", 27: "4s2p2d1f"}


def shells_of(label: str) -> tuple[int, ...]:
    return tuple(l for n, l in zip(label[::2], label[1::2]) for l in ["spdf".index(l)] * int(n))  # noqa: B905


@pytest.fixture(scope="module")
def data():
    return replace(random_lcao(3, "GaAs", spin="spinor", cutoff=2.2), position=None)


@pytest.fixture(scope="module")
def written(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("written") / "sample.pth"
    write(path, data, kpts=(2, 2, 1))
    return path


@pytest.fixture
def sample(tmp_path, written):
    """A training sample without a note, so that it is read for what it says."""
    return Path(shutil.copy(written, tmp_path / "sample.pth"))


def rewritten(path, change, name="changed.pth"):
    """The sample with its list of items changed."""
    items = torch.load(path)
    changed = change(items)
    torch.save(items if changed is None else changed, path.parent / name)
    return path.parent / name


def difference(a, b):
    return np.abs((a - b).data).max()


# --- layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", CLASSES.values())
def test_shells_are_told_from_any_mask_of_a_released_program(label):
    shells = shells_of(label)
    mask = np.zeros(54)
    mask[Rows.of(shells, "X").place] = 1
    interleaved = mask.reshape(2, 27).T.ravel()
    twice = mask.reshape(27, 2).T.ravel()
    assert shells_of_mask(mask) == (shells, "up first, then down")
    assert shells_of_mask(interleaved)[0] == shells
    assert shells_of_mask(twice)[0] == shells


@pytest.mark.parametrize("place", [1, 4, 15, 27, 53])
def test_a_mask_of_broken_shells_is_refused(place):
    mask = np.zeros(54)
    mask[place] = 1
    with pytest.raises(ValueError, match="not whole shells of 4s2p2d1f"):
        shells_of_mask(mask)


def test_shells_in_any_order_find_their_places():
    ordered, mixed = Rows.of((0, 0, 1, 2), "X"), Rows.of((2, 0, 1, 0), "X")
    moved = np.concatenate([ordered.place[10:20], ordered.place[:2], ordered.place[4:10]])
    assert_array_equal(mixed.place, np.concatenate([moved, ordered.place[2:4]]))


# --- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_a_training_sample_gives_back_what_was_written(tmp_path, spin, energies):
    data = random_lcao(5, "GaAsGaAs", spin=spin, magnetic=True, cutoff=1.7)
    data = replace(data, position=None)
    data = data.translated(np.random.default_rng(6).integers(-2, 3, (4, 3)))
    data = replace(data, fermi_level=-0.75)
    write(tmp_path / "a.pth", data, kpts=(1, 1, 2))
    assert guess_format(tmp_path / "a.pth") == "nextham-pth"
    found = read(tmp_path / "a.pth")
    assert found.symbols == data.symbols
    assert_array_equal(found.atoms.positions, data.atoms.positions)
    assert_array_equal(found.atoms.cell.array, data.atoms.cell.array)
    for name in ("overlap", "h0", "hamiltonian"):
        a, b = getattr(found, name), getattr(data, name)
        assert a.spin == b.spin
        assert difference(a, b) < SINGLE * np.abs(b.data).max()
    assert_allclose(energies(found), energies(data), atol=1e-5)  # eV: S has single precision, too
    assert (found.fermi_level, found.nelectrons) == (data.fermi_level, data.nelectrons)
    assert found.source == data.source
    assert found.basis.fingerprint == data.basis.fingerprint


def test_without_the_note_a_sample_says_what_it_holds(sample, data):
    found = read(sample)
    assert found.symbols == data.symbols
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-6)  # Angstrom
    for name in ("overlap", "h0", "hamiltonian"):
        assert difference(getattr(found, name), getattr(data, name)) < 1e-6
    assert found.basis.shells == {"Ga": (0, 0, 1, 1, 2, 3), "As": (0, 0, 1, 1, 2)}
    assert found.source["eV per Rydberg in the file"] == PRECISE


def test_species_of_one_element_with_other_orbitals_stay_apart(tmp_path, data):
    shells = {"Ga1": data.basis.shells["Ga"], "Ga2": data.basis.shells["As"]}
    names = tuple({"Ga": "Ga1", "As": "Ga2"}[name] for name in data.symbols)
    basis = Basis(shells)
    atoms = data.atoms.copy()
    atoms.symbols = ["Ga"] * 2
    renamed = {
        name: replace(getattr(data, name), basis=basis, symbols=names)
        for name in ("overlap", "h0", "hamiltonian")
    }
    mixed = replace(data, atoms=atoms, **renamed)
    write(tmp_path / "x.pth", mixed, kpts=(1, 1, 1))
    (tmp_path / "x.pth.nextham.json").unlink()
    found = read(tmp_path / "x.pth")
    assert found.symbols == names
    assert difference(found.h0, mixed.h0) < 1e-6


def test_an_inference_sample_needs_the_structure_from_elsewhere(tmp_path, data):
    only = replace(data, hamiltonian=None)
    write(tmp_path / "x.pth", only)
    assert len(torch.load(tmp_path / "x.pth")) == 8
    with pytest.raises(ValueError, match="inference file has neither cell nor overlap; give refer"):
        read(tmp_path / "x.pth")
    bare = replace(only, h0=None)
    with pytest.warns(UserWarning, match="Rydberg times 13.6, as all released programs make"):
        found = read(tmp_path / "x.pth", reference=bare)
    assert difference(found.h0, data.h0) < 1e-6
    assert difference(found.overlap, data.overlap) == 0
    write(tmp_path / "x.h5", only)
    with pytest.warns(UserWarning, match=r"Rydberg times 13.6, as H\(0\) of the reference tells"):
        found = read(tmp_path / "x.pth", reference=tmp_path / "x.h5")
    assert difference(found.h0, data.h0) < 1e-6


def test_a_sample_is_what_the_released_programs_expect(tmp_path, sample, data):
    items = torch.load(sample, weights_only=True)  # as they load it
    assert len(items) == 22
    nedges = len(items[12])
    expected = {
        1: ((3, 3), torch.float32),
        2: ((2, 3), torch.float32),
        4: ((), torch.int64),
        5: ((), torch.int64),
        6: ((4, 3), torch.float64),
        7: ((4 * items[3], 2 * 54), torch.complex64),
        8: ((nedges, 5832), torch.float32),
        9: ((nedges, 4, 729), torch.complex64),
        10: ((nedges, 4, 729), torch.complex64),
        11: ((nedges, 4, 729), torch.float32),
        12: ((nedges, 3), torch.float32),
        13: ((nedges,), torch.int64),
        14: ((nedges,), torch.int64),
        17: ((nedges, 4, 729), torch.complex64),
        18: ((nedges, 54, 54), torch.complex64),
        19: ((nedges, 54, 54), torch.complex64),
        20: ((nedges, 54, 54), torch.float32),
        21: ((nedges, 54, 54), torch.complex64),
    }
    for n, (shape, dtype) in expected.items():
        assert (tuple(items[n].shape), items[n].dtype) == (shape, dtype), n
    assert items[3] == 2 * data.overlap.dimension
    lengths = np.linalg.norm(items[12].numpy(), axis=1)
    assert lengths.max() < 8
    # all pairs within 8 Angstrom at the lattice vectors of H, in both directions
    R = np.unique(data.pairs.R, axis=0)
    apart = data.atoms.positions[None] - data.atoms.positions[:, None]
    count = sum((np.linalg.norm(apart + r @ data.atoms.cell.array, axis=2) < 8).sum() for r in R)
    assert nedges == count
    assert items[15][:2] == [("Ga", "Ga"), ("Ga", "As")]


def test_wave_functions_of_a_sample_solve_its_own_hamiltonian(sample):
    items = torch.load(sample)
    i, j = items[13].numpy(), items[14].numpy()
    vec, pos, cell = (items[n].numpy().astype(float) for n in (12, 2, 1))
    R = np.rint((vec - pos[j] + pos[i]) @ np.linalg.inv(cell))
    h, s = items[18].numpy() + items[21].numpy(), items[19].numpy()
    k = items[6].numpy()[3]
    phase = np.exp(2j * np.pi * (R @ k))
    H, S = np.zeros((2, 2, 54, 2, 54), complex)
    for e, (a, b) in enumerate(zip(i, j, strict=True)):
        H[a, :, b] += phase[e] * h[e]
        S[a, :, b] += phase[e] * s[e]
    H, S = H.reshape(108, 108), S.reshape(108, 108)
    C = items[7].numpy().reshape(4, items[3], 108)[3]
    assert_allclose(C.conj() @ S @ C.T, np.eye(len(C)), atol=1e-5)
    energy = C.conj() @ H @ C.T
    assert_allclose(energy, np.diag(np.diagonal(energy).real), atol=2e-4)  # eV, single precision
    assert (np.diff(np.diagonal(energy).real) > -1e-4).all()
    assert 0 < int(items[4]) < items[3]


# --- constants ---------------------------------------------------------------------------------


def scaled(items, h0, change):
    for n, factor in ((8, h0), (9, h0), (18, h0), (17, change), (21, change)):
        items[n] = items[n] * factor


def test_the_rounded_constant_is_told_by_the_layout(sample, data):
    def as_combine_data(items):
        scaled(items, ROUNDED / PRECISE, ROUNDED / PRECISE)
        items[0], items[16] = "/data/GaAs/input_inference_0.pth", "12"

    path = rewritten(sample, as_combine_data)
    with pytest.warns(
        UserWarning, match="13.6, as the layout of the sample tells; .* by 1.0004190"
    ):
        found = read(path)
    assert difference(found.h0, data.h0) < 1e-6
    assert difference(found.hamiltonian, data.hamiltonian) < 1e-6


def test_the_constant_is_told_by_the_reference_where_the_file_is_mute(sample, data):
    def mute(items):
        scaled(items, ROUNDED / PRECISE, ROUNDED / PRECISE)
        items[0] = "elsewhere.pth"

    path = rewritten(sample, mute)
    with pytest.warns(UserWarning, match="nothing tells whether"):
        found = read(path)
    assert difference(found.h0 * (PRECISE / ROUNDED), data.h0) < 1e-6
    with pytest.warns(UserWarning, match=r"13.6, as H\(0\) of the reference tells"):
        found = read(path, reference=data)
    assert difference(found.h0, data.h0) < 1e-6
    found = read(path, rydberg=ROUNDED)
    assert difference(found.h0, data.h0) < 1e-6


@pytest.mark.parametrize(("of_h0", "of_h"), [(ROUNDED, PRECISE), (PRECISE, ROUNDED)])
def test_mixed_constants_are_seen_by_what_no_correction_changes(sample, data, of_h0, of_h):
    # a correction as real ones are: real, and the same for both spins
    def change(items):
        spins = items[21].reshape(-1, 2, 27, 2, 27)
        real = spins[:, 0, :, 0].real.clone()
        spins[:] = 0
        spins[:, 0, :, 0] = spins[:, 1, :, 1] = real.to(spins.dtype)

    plain = rewritten(sample, change, "plain.pth")
    expected = read(plain, rydberg=PRECISE)

    def mix(items):
        items[21] = (items[18] + items[21]) * (of_h / PRECISE) - items[18] * (of_h0 / PRECISE)
        items[18] = items[18] * (of_h0 / PRECISE)

    path = rewritten(plain, mix)
    with pytest.warns(
        UserWarning, match=f"Rydberg times {of_h0:g}, but H is Rydberg times {of_h:g}"
    ):
        found = read(path)
    assert difference(found.h0, expected.h0) < 2e-6
    assert difference(found.hamiltonian, expected.hamiltonian) < 2e-6


def test_a_reference_of_another_calculation_is_refused(sample, data):
    with pytest.raises(ValueError, match=r"its H\(0\) is .* times that of the reference"):
        read(sample, reference=replace(data, h0=1.01 * data.h0))
    other = random_lcao(4, "GaAs", spin="spinor", cutoff=2.2)
    with pytest.raises(ValueError, match="which is not integer"):
        read(sample, reference=other)


# --- predictions -------------------------------------------------------------------------------


def prediction(path, sample, correction=0.1, constant=ROUNDED):
    """What infer.py leaves: H(0) + dH on the edges, dH real and up to 6 Angstrom."""
    items = torch.load(sample)
    H = items[18] * (constant / PRECISE)
    rng = np.random.default_rng(0)
    n = len(H)
    change = torch.from_numpy(rng.normal(scale=correction, size=(n, 27, 27)))
    change[np.linalg.norm(items[12].numpy(), axis=1) >= 6] = 0
    spins = H.reshape(n, 2, 27, 2, 27)
    for s in (0, 1):
        spins[:, s, :, s] += change
    torch.save((None, H, None, None, items[20], *items[12:15], {"Ga": 30}), path)
    return change.numpy()


@pytest.mark.parametrize("constant", [ROUNDED, PRECISE])
def test_a_prediction_is_combined_with_h0_beyond_the_range(tmp_path, sample, data, constant):
    data = replace(data, hamiltonian=None)
    path = tmp_path / "x_out.pth"
    prediction(path, sample, constant=constant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if constant == ROUNDED else "error")
        predicted = nextham_pth.read_prediction(path, data)
        found = read(path, reference=data, format="nextham-pth")
    # what the network leaves alone is H(0) to the last digit that there is
    part = predicted - data.h0
    for a, b, _, elements in part.block_groups():
        block = part.data[elements]
        assert np.abs(block[:, ::2, 1::2]).max() < 1e-6, (a, b)
        assert np.abs(block.imag).max() < 1e-6
        assert np.abs(block.real).max() > 0.1
    change = nextham_pth.combined(data, predicted, cutoff=2.0).hamiltonian - data.h0
    pairs = change.pairs
    apart = data.atoms.positions[pairs.j] - data.atoms.positions[pairs.i]
    length = np.linalg.norm(apart + pairs.R @ data.atoms.cell.array, axis=1)
    far = np.repeat(length > 2.0, np.diff(change.offsets))
    assert np.abs(change.data[far]).max() == 0
    rest = change - (predicted - data.h0).cut_to(pairs)[0]
    assert np.abs(rest.data[~far]).max() < 1e-13
    assert far.sum() > 100
    assert difference(found.hamiltonian, nextham_pth.combined(data, predicted).hamiltonian) == 0
    assert found.h0 is not None


def test_predictions_need_h0_and_the_right_atoms(tmp_path, sample, data):
    path = tmp_path / "x_out.pth"
    prediction(path, sample)
    with pytest.raises(ValueError, match="a prediction file has neither cell nor overlap"):
        read(path)
    with pytest.raises(ValueError, match=r"holds no H\(0\)"):
        read(path, reference=replace(data, h0=None), rydberg=ROUNDED)
    with pytest.raises(ValueError, match="it is for 2 atoms, but the reference has 3"):
        read(path, reference=random_lcao(0, "GaAs2", spin="spinor"))
    with pytest.raises(ValueError, match="atom 0 .Si. has the orbitals 2s2p1d1f, but 1s1p1d"):
        read(path, reference=random_lcao(0, "SiSi", spin="spinor"))
    with pytest.raises(ValueError, match="not a prediction, but a file of kind 'training'"):
        nextham_pth.read_prediction(sample, data)


# --- the reference programs' own numbers -------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared_data):
    """Crystal of all six classes of elements, as CSR files and as their programs' blocks."""
    folder = shared_data.parent / "golden" / "released"
    if not folder.is_dir():
        pytest.skip(f"the reference numbers are not at {folder}")
    arrays = dict(np.load(folder / "reorder.npz"))
    symbols = tuple(str(name) for name in arrays["elements"])
    atoms = Atoms(symbols, cell=arrays["cell"], positions=arrays["positions"], pbc=True)
    basis = Basis(
        {name: shells_of(CLASSES[int(n)]) for name, n in zip(symbols, arrays["norb"], strict=True)}
    )

    def csr(name, operator):
        (record,) = read_csr(folder / "csr" / name)
        return {operator: record}

    named = csr("weak.csr", "h0") | csr("strong.csr", "hamiltonian")
    matrices = lcao_matrices(named, basis, symbols)
    # the reference's overlap is random, with spin: no overlap. Identity stands in its place
    pairs = matrices["h0"].pairs
    sizes = np.array([basis.norbitals(name) for name in symbols])
    onsite = (pairs.i == pairs.j) & (pairs.R == 0).all(axis=1)
    blocks = [
        np.eye(sizes[i], sizes[j]) * here
        for i, j, here in zip(pairs.i, pairs.j, onsite, strict=True)
    ]
    flat = np.concatenate([block.ravel() for block in blocks])
    overlap = LCAOMatrix(basis, symbols, pairs, "unpolarised", flat)
    return folder, arrays, LCAOData(atoms, overlap, **matrices, nelectrons=20.0)


def test_orbitals_and_irreps_are_those_of_the_reference(golden):
    folder, arrays, _ = golden
    rows = Rows.of(SHELLS, "Ti")
    matrix = np.zeros((54, 54))
    spin_major = np.arange(54).reshape(2, 27).T.ravel()
    matrix[rows.place, spin_major] = rows.sign
    assert_array_equal(matrix, arrays["transform_54"])
    blocks = np.load(folder / "wigner_eckart.npz")
    flat = blocks["spinful_H"].reshape(4, -1)[:, flat_order()]
    assert_array_equal(flat, blocks["spinful_flat"])


def tensors(arrays):
    numbers = {name: a for name, a in arrays.items() if a.dtype.kind != "U"}
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in numbers.items()}


def training_list(arrays, constant):
    """A sample as run_convert saves it, from what the reference reader has read."""
    t = tensors(arrays)
    symbols = [str(name) for name in arrays["elements"]]
    i, j = arrays["edge_src"], arrays["edge_dst"]
    named = [(symbols[a], symbols[b]) for a, b in zip(i, j, strict=True)]
    onsite = (i == j) & (arrays["R"] == 0).all(axis=1)
    mask = t["mask"].float()
    overlap = mask * torch.eye(54) * torch.from_numpy(onsite)[:, None, None]
    none = torch.zeros(0)
    return [
        "/out/x.pth",
        t["cell"].float(),
        t["positions"].float(),
        184,
        *[none] * 8,
        t["edge_vec"],
        t["edge_src"],
        t["edge_dst"],
        named,
        "x",
        none,
        t["H0"] * constant,
        overlap,
        mask,
        t["delta_H"] * constant,
    ]


def test_samples_of_the_reference_reader_are_its_csr_files(tmp_path, golden):
    _, arrays, data = golden
    torch.save(training_list(arrays, PRECISE), tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert found.symbols == data.symbols
    assert found.basis.shells == data.basis.shells
    assert difference(found.overlap.cut_to(data.pairs)[0], data.overlap) == 0
    for name in ("h0", "hamiltonian"):
        a, b = getattr(found, name), getattr(data, name)
        assert difference(a, b.cut_to(a.pairs)[0]) < 5e-7 * np.abs(b.data).max()
    with pytest.warns(UserWarning, match="42 pairs of atoms are 8 Angstrom or more apart"):
        write(tmp_path / "own.pth", data, kpts=(1, 1, 1))
    own, theirs = torch.load(tmp_path / "own.pth"), torch.load(tmp_path / "x.pth")
    assert_array_equal(own[13], theirs[13])  # the same edges in the same order
    assert_array_equal(own[14], theirs[14])
    assert own[15] == theirs[15]
    assert_allclose(own[12], theirs[12], atol=1e-6)
    assert_array_equal(own[20], theirs[20])
    for n in (18, 19, 21):
        assert_allclose(own[n], theirs[n], atol=1e-4, rtol=1e-6)


def test_irreps_of_a_sample_are_those_that_the_reference_makes(golden, data, tmp_path):
    folder, _, _ = golden
    blocks = np.load(folder / "wigner_eckart.npz")
    found = nextham_training.irreps(blocks["spinful_H"].astype("c16"))
    assert_allclose(found, blocks["spinful_vec"], rtol=1e-10, atol=1e-10)


def test_predictions_go_back_to_csr_as_the_reference_exporter_writes_them(tmp_path, golden):
    folder, arrays, data = golden
    t = tensors(arrays)
    H = (t["H0"] + t["delta_H"]) * PRECISE
    edges = (t["edge_vec"], t["edge_src"], t["edge_dst"])
    torch.save((None, H, None, None, t["mask"].float(), *edges, {}), tmp_path / "x_out.pth")
    data = replace(data, hamiltonian=None)
    predicted = nextham_pth.read_prediction(tmp_path / "x_out.pth", data, rydberg=PRECISE)
    total = nextham_pth.combined(data, predicted).hamiltonian
    for name, matrix in (("hr_cut", predicted), ("hr_tot", total)):
        (expected,) = read_csr(folder / "csr" / name)
        found = csr_matrices({"hamiltonian": matrix})["hamiltonian"]
        a, b = dense(found), dense(expected)
        assert a.keys() == b.keys()
        a, b = (np.array([blocks[R] for R in a]) for blocks in (a, b))
        for x, y in ((a.real, b.real), (a.imag, b.imag)):
            digit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(y), 1e-30))) - 8)
            # the last of the printed digits may be rounded otherwise; up to 1e-10 ours drops
            assert (np.abs(x - y) <= 1.01 * digit + 1e-10).all(), name


def dense(record):
    """The matrix of each R."""
    matrix = np.zeros((len(record.R) * record.dimension, record.dimension), complex)
    row = np.repeat(np.arange(len(matrix)), np.diff(record.indptr))
    matrix[row, record.column] = record.value
    blocks = matrix.reshape(len(record.R), record.dimension, record.dimension)
    return dict(zip(map(tuple, record.R.tolist()), blocks, strict=True))


# --- what is refused ---------------------------------------------------------------------------


def test_what_a_sample_cannot_say_is_refused(tmp_path, data):
    path = tmp_path / "x.pth"
    with pytest.raises(ValueError, match=r"lacks H\(0\), without which there is no training"):
        write(path, replace(data, h0=None))
    with pytest.raises(ValueError, match="lacks the Hamiltonian"):
        write(path, replace(data, hamiltonian=None), kind="training")
    with pytest.raises(ValueError, match="unknown kind of sample 'test'"):
        write(path, data, kind="test")
    with pytest.raises(ValueError, match="neither this nor the number of electrons is known"):
        write(path, replace(data, nelectrons=None))
    assert not path.exists()


def test_too_many_orbitals_are_refused_by_species():
    with pytest.raises(ValueError, match="Hf has 2 shells of l = 3, but NextHAM's blocks"):
        Rows.of((0, 0, 0, 0, 1, 1, 2, 2, 3, 3), "Hf")
    with pytest.raises(ValueError, match="U has 1 shells of l = 4"):
        Rows.of((0, 4), "U")


def test_pairs_beyond_8_angstrom_are_left_out_with_a_warning(tmp_path):
    data = replace(random_lcao(1, "H", spin="spinor", cutoff=6.5), position=None)
    with pytest.warns(UserWarning, match="8 Angstrom or more apart .* are left out"):
        write(tmp_path / "x.pth", data, kpts=(1, 1, 1))
    found = read(tmp_path / "x.pth")
    common, lost = data.h0.cut_to(found.pairs)
    assert difference(found.h0, common) < 1e-6
    assert lost > 0


@pytest.mark.parametrize(
    ("n", "value", "message"),
    [
        (1, "cell", "lattice: found a str, expected numbers"),
        (2, lambda x: x[:1], "integers from 0 to 0"),
        (2, lambda x: x + torch.eye(3)[:2], "edge .* gives R = .* not integer"),
        (12, lambda x: x[:-1], "atoms of edges .1.: found"),
        (13, lambda x: x.float(), "are not integers from 0 to 1"),
        (13, lambda x: x - 1, "are not integers from 0 to 1"),
        (14, lambda x: x * 0, "is Ga in one edge and As in edge"),
        (15, lambda x: x[:-1], "no pair of elements for each"),
        (15, lambda x: [("Q", "Q")] * len(x), "names an element that there is not"),
        (15, lambda x: [(1, 2)] * len(x), "names an element that there is not"),
        (18, lambda x: x[:, :27, :27], "not a sample of NextHAM|without spin"),
        (18, lambda x: x[:, :, :50], "not a sample of NextHAM"),
        (19, lambda x: x * 1j, "an overlap is real, the same for both spins"),
        (20, lambda x: x[:, :27], "mask: found"),
        (20, lambda x: x * 0, "not whole shells"),
        (20, lambda x: x.amin(0) * torch.ones(len(x), 1, 1), "elements at places where its mask"),
        (21, None, "blocks of change|found a NoneType"),
    ],
)
def test_damaged_samples_are_refused_with_a_reason(sample, n, value, message):
    def change(items):
        items[n] = value(items[n]) if callable(value) else value

    path = rewritten(sample, change)
    with pytest.raises(ValueError, match=message):
        read(path, format="nextham-pth")


def test_an_edge_twice_or_without_partner_is_refused(sample):
    def drop(which):
        def change(items):
            kept = which(len(items[12]))
            for n in (12, 13, 14, 18, 19, 20, 21):
                items[n] = items[n][kept]
            items[15] = [items[15][e] for e in kept]

        return change

    last = rewritten(sample, drop(lambda n: np.arange(n - 1)))
    data = read(sample)
    assert len(data.pairs) > 10
    with pytest.raises(ValueError, match="do not make a matrix: pair .* has no partner"):
        read(rewritten(sample, drop(lambda n: np.delete(np.arange(n), n // 2))))
    with pytest.raises(ValueError, match="do not make a matrix: AtomPairs must be sorted"):
        read(rewritten(sample, drop(lambda n: np.append(np.arange(n), n // 2))))
    assert last.exists()


def test_a_folder_and_other_torch_files_are_told(tmp_path, sample):
    with pytest.raises(ValueError, match="a folder; a sample is one file"):
        read(tmp_path, format="nextham-pth")
    torch.save({"state_dict": {"a": torch.zeros(3)}}, tmp_path / "model.pth")
    assert not nextham_pth.recognises(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="not a sample of NextHAM: a dict of 1 items"):
        read(tmp_path / "model.pth", format="nextham-pth")
    (tmp_path / "text.pth").write_text("hello")
    assert not nextham_pth.recognises(tmp_path / "text.pth")
    assert not nextham_pth.recognises(tmp_path)
    assert nextham_pth.recognises(sample)
    cut = tmp_path / "cut.pth"
    whole = sample.read_bytes()
    for part in np.linspace(0, len(whole) - 1, 20, dtype=int):
        cut.write_bytes(whole[:part])
        assert not nextham_pth.recognises(cut)
        with pytest.raises(ValueError, match="cut.pth"):
            read(cut, format="nextham-pth")


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(), st.just("zeros")), max_size=22))
@settings(max_examples=50, deadline=None)
def test_lists_of_anything_are_refused_and_not_recognised(tmp_path_factory, items):
    path = tmp_path_factory.getbasetemp() / "any.pth"
    items = [torch.zeros(2, 54, 54) if item == "zeros" else item for item in items]
    torch.save(items + [None] * (22 - len(items)), path)
    nextham_pth.recognises(path)
    with pytest.raises(ValueError, match="any.pth"):
        read(path, format="nextham-pth")


def test_samples_convert_to_other_formats(tmp_path, sample, data):
    convert(sample, tmp_path / "x.h5")
    assert difference(read(tmp_path / "x.h5").hamiltonian, data.hamiltonian) < 1e-6


def test_edges_without_any_element_become_no_pairs(sample, data):
    found = read(sample)
    assert len(found.pairs) <= len(data.pairs)
    assert len(AtomPairs.union(found.pairs, data.pairs)) == len(data.pairs)
