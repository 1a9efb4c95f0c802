"""Data sets: what goes in, what is refused, what comes out, and what an interruption costs."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest

from ase_nextham import bands, converters, hdf5
from ase_nextham.matrix import AtomPairs, aligned
from ase_nextham.testing import random_lcao
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import SPINOR, build
from ase_nextham.training.dataset_kspace import WINDOW, k_space, random_kpts
from ase_nextham.training.dataset_sources import Source, from_paths


def holds_structure(path) -> bool:
    try:
        converters.guess_format(path)
    except ValueError:
        return False
    return True


def same(data):
    """A function that gives the data: a source in memory."""
    return lambda: data


def source(name: str, seed: int = 0, **options) -> Source:
    return Source(name, partial(random_lcao, seed, **options))


def built(tmp_path, *sources: Source, **options) -> Dataset:
    outcome = build(sources, tmp_path / "set", **{"nkpts": 2} | options)
    assert not outcome.failed
    return Dataset(tmp_path / "set")


def refused(tmp_path, data, **options) -> str:
    """Why the data does not become a sample."""
    outcome = build([Source("bad", same(data))], tmp_path / "set", **{"nkpts": 1} | options)
    assert outcome.done == ()
    assert list(outcome.failed) == ["bad"]
    assert len(Dataset(tmp_path / "set")) == 0
    return outcome.failed["bad"]


class Backend:
    """An H(0) of the structures of ``random_lcao``, by seed."""

    def __init__(self, seed, **options):
        self.data = random_lcao(seed, **options)

    def compute(self, atoms):
        np.testing.assert_array_equal(atoms.positions, self.data.atoms.positions)
        return replace(self.data, hamiltonian=None)


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_samples_hold_what_was_read_with_the_energy_zero_of_h0(tmp_path, spin):
    data = random_lcao(0, spin=spin)
    moved = replace(data, hamiltonian=data.hamiltonian + 3.7 * data.overlap.with_spin(spin))
    dataset = built(tmp_path, Source("GaAs_0", same(moved)))
    sample = dataset[0]
    expected, mu = aligned(data.hamiltonian, data.h0, data.overlap)
    assert sample.entry.mu == pytest.approx(mu - 3.7, abs=1e-9)  # eV
    np.testing.assert_allclose(sample.data.hamiltonian.data, expected.data, atol=1e-12)  # eV
    np.testing.assert_array_equal(sample.data.h0.data, data.h0.data)
    np.testing.assert_array_equal(sample.data.overlap.data, data.overlap.data)
    assert sample.data.position is None
    assert (sample.entry.spin, sample.entry.label_spin) == (spin, spin)
    assert sample.entry.formula == "GaAs"


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_eigenvectors_diagonalise_the_hamiltonian_and_split_at_the_window(tmp_path, spin):
    sample = built(tmp_path, source("GaAs_0", spin=spin), nkpts=3)[0]
    states, data = sample.k_space, sample.data
    S = data.overlap.with_spin("spinor") if spin == "spinor" else data.overlap
    H = data.hamiltonian.at_k(states.kpts)
    H = H if spin == "collinear" else H[None]
    C = states.coefficients
    adjoint = C.conj().swapaxes(-1, -2)
    identity = np.eye(data.hamiltonian.dimension)
    assert np.abs(adjoint @ S.at_k(states.kpts) @ C - identity).max() < 1e-5
    assert np.abs(adjoint @ H @ C - states.eps[..., None] * identity).max() < 1e-4  # eV
    limit = sample.entry.fermi_level + WINDOW
    np.testing.assert_array_equal(states.nlow, (states.eps < limit).sum(axis=-1))


def test_the_stated_fermi_level_moves_with_the_energy_zero(tmp_path):
    data = random_lcao(0)
    moved = replace(data, hamiltonian=data.hamiltonian + 2.0 * data.overlap, fermi_level=5.0)
    entry = built(tmp_path, Source("GaAs", same(moved))).entries[0]
    assert entry.fermi_level == pytest.approx(5.0 + entry.mu)


def test_without_a_stated_fermi_level_electrons_are_counted(tmp_path):
    sample = built(tmp_path, source("GaAs"))[0]
    mesh = bands.kmesh_for(sample.data.hamiltonian, sample.data.atoms, 3.0)
    eps = bands.eigenvalues(sample.data.hamiltonian, sample.data.overlap, mesh.kpts)
    filled = bands.occupations(eps, sample.entry.fermi_level)
    assert 2 * (mesh.weights @ filled[0]).sum() == pytest.approx(sample.data.nelectrons, abs=1e-6)


def test_one_k_point_is_read_without_the_others(tmp_path):
    dataset = built(tmp_path, source("GaAs"), nkpts=5)
    whole, some = dataset.sample(0).k_space, dataset.sample(0, kpts=[3, 1]).k_space
    for name in ("kpts", "nlow"):
        axis = 0 if name == "kpts" else 1
        expected = getattr(whole, name).take([3, 1], axis=axis)
        np.testing.assert_array_equal(getattr(some, name), expected)
    np.testing.assert_array_equal(some.eps, whole.eps[:, [3, 1]])
    np.testing.assert_array_equal(some.coefficients, whole.coefficients[:, [3, 1]])
    assert dataset.sample(0, kpts=()).k_space is None


def test_stored_eigenvectors_are_those_computed_on_the_fly(tmp_path):
    sample = built(tmp_path, source("GaAs"))[0]
    fresh = k_space(sample.data, random_kpts(2, "GaAs"), fermi_level=sample.entry.fermi_level)
    np.testing.assert_array_equal(sample.k_space.kpts, fresh.kpts)
    np.testing.assert_allclose(sample.k_space.eps, fresh.eps, atol=1e-10)
    np.testing.assert_allclose(
        np.abs(sample.k_space.coefficients), np.abs(fresh.coefficients), atol=1e-5
    )


def test_k_points_are_even_in_the_zone_and_depend_on_the_name_alone():
    kpts = random_kpts(512, "GaAs_0")
    np.testing.assert_array_equal(kpts[:7], random_kpts(7, "GaAs_0"))
    assert np.abs(kpts - random_kpts(512, "GaAs_1")).max() > 0.1
    counts, _ = np.histogramdd(kpts, bins=4, range=[(-0.5, 0.5)] * 3)
    assert counts.min() >= 4
    assert counts.max() <= 12


def test_samples_are_shown_in_one_line(tmp_path):
    dataset = built(tmp_path, source("GaAs"))
    assert repr(dataset).endswith("1 samples)")
    assert repr(dataset.entries[0]) == "Entry('GaAs', GaAs, unpolarised)"
    assert repr(dataset[0]).startswith("Sample('GaAs', LCAOData(GaAs")
    assert repr(dataset[0]).endswith("KSpace(2 k-points, 33 bands))")


def test_every_sample_is_a_native_file(tmp_path):
    dataset = built(tmp_path, source("GaAs"))
    data = hdf5.read(dataset.file(0))
    assert data.symbols == ("Ga", "As")


def test_a_data_set_can_be_sent_to_other_processes(tmp_path):
    dataset = built(tmp_path, source("b", 1), source("a", 2))
    again = pickle.loads(pickle.dumps(dataset.subset([1])))
    assert again.names == ("b",)
    np.testing.assert_array_equal(again[0].data.h0.data, random_lcao(1).h0.data)


def test_samples_can_be_chosen_by_name_and_come_in_that_order(tmp_path):
    built(tmp_path, source("a", 1), source("b", 2), source("c", 3))
    assert Dataset(tmp_path / "set", ["c", "a"]).names == ("c", "a")
    with pytest.raises(ValueError, match="there is no sample 'd', nor 1 more"):
        Dataset(tmp_path / "set", ["d", "a", "e"])


def test_the_basis_is_that_of_all_samples(tmp_path):
    dataset = built(tmp_path, source("a", symbols="GaAs"), source("b", symbols="SiH"))
    assert set(dataset.basis.shells) == {"Ga", "As", "Si", "H"}
    assert dataset.basis.fingerprint["Si"] == random_lcao(0, "Si").basis.fingerprint["Si"]


# --- H(0) that is computed -----------------------------------------------------------------------


def test_h0_of_a_backend_takes_the_place_of_the_one_that_was_read(tmp_path):
    data = random_lcao(0)
    backend = Backend(0)
    backend.data = replace(backend.data, h0=2 * data.h0)
    dataset = built(tmp_path, Source("GaAs", same(replace(data, h0=None))), h0=backend)
    np.testing.assert_array_equal(dataset[0].data.h0.data, 2 * data.h0.data)


def test_a_correction_without_spin_serves_spinor_h0(tmp_path):
    data = random_lcao(0)
    backend = Backend(0, spin="spinor")
    build([Source("GaAs", same(data))], tmp_path / "set", nkpts=2)
    dataset = built(tmp_path, Source("GaAs", same(data)), spinor_h0=backend)
    assert dataset.names == ("GaAs", "GaAs" + SPINOR)
    plain, spinor = dataset[0], dataset[1]
    assert plain.entry.structure == spinor.entry.structure == "GaAs"
    assert (spinor.entry.spin, spinor.entry.label_spin) == ("spinor", "unpolarised")
    np.testing.assert_array_equal(spinor.data.h0.data, backend.data.h0.data)
    correction = (plain.data.hamiltonian - plain.data.h0).with_spin("spinor")
    found = spinor.data.hamiltonian - spinor.data.h0
    assert np.abs((found - correction).data).max() < 1e-12  # eV
    assert spinor.k_space.coefficients.shape[-2] == 2 * plain.k_space.coefficients.shape[-2]


def test_a_backend_with_another_overlap_is_refused(tmp_path):
    data = random_lcao(0)
    backend = Backend(0)
    backend.data = replace(backend.data, overlap=1.001 * backend.data.overlap)
    assert "the overlap of" in refused(tmp_path, data, h0=backend)


def test_a_spinor_backend_is_refused_for_h0_of_labels_without_spin(tmp_path):
    reason = refused(tmp_path, random_lcao(0), h0=Backend(0, spin="spinor"))
    assert "spinor_h0" in reason


# --- what is refused -----------------------------------------------------------------------------


def damaged(matrix, p=3, value=np.nan):
    data = matrix.data.copy()
    data[..., matrix.offsets[p]] = value
    return replace(matrix, data=data)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    data = random_lcao(0)
    reason = refused(tmp_path, replace(data, hamiltonian=damaged(data.hamiltonian)))
    assert reason == "the Hamiltonian holds numbers that are not finite"


def test_operators_that_are_not_hermitian_are_refused(tmp_path):
    data = random_lcao(0)
    reason = refused(tmp_path, replace(data, h0=damaged(data.h0, value=1.0)))
    assert reason.startswith("H(0) is not Hermitian")


def test_a_hamiltonian_cut_to_fewer_pairs_is_refused(tmp_path):
    data = random_lcao(0)
    near = [p for p in range(len(data.pairs)) if np.abs(_block(data.overlap, p)).max() > 0]
    some = AtomPairs(data.pairs.i[near], data.pairs.j[near], data.pairs.R[near])
    cut, lost = data.hamiltonian.cut_to(some)
    assert lost > 1e-3  # eV
    reason = refused(tmp_path, replace(data, hamiltonian=cut))
    assert "one of them was cut to fewer pairs" in reason
    assert "where H has none" in reason


def _block(matrix, p):
    return matrix.data[matrix.offsets[p] : matrix.offsets[p + 1]]


def test_missing_operators_are_named(tmp_path):
    data = random_lcao(0)
    assert "there is no H(0)" in refused(tmp_path, replace(data, h0=None))
    assert "no self-consistent" in refused(tmp_path, replace(data, hamiltonian=None))


def test_a_run_that_did_not_converge_is_no_label(tmp_path):
    data = random_lcao(0)
    for origin in ({"converged": False}, {"runs": {"scf": {"converged": False}}}):
        assert "did not converge" in refused(tmp_path, replace(data, source=origin))
    one_step = {"operator": "h0", "converged": False}
    origin = {"runs": {"one step": one_step, "scf": {"converged": True}}}
    built(tmp_path, Source("GaAs", same(replace(data, source=origin))))


def test_other_orbitals_of_an_element_are_refused(tmp_path):
    dataset = built(tmp_path, source("GaAs", symbols="GaAs"))
    other = random_lcao(1, "Ga")
    basis = replace(other.basis, fingerprint={"Ga": "f" * 64})
    changed = {
        name: replace(getattr(other, name), basis=basis)
        for name in ("overlap", "h0", "hamiltonian")
    }
    other = replace(other, position=None, **changed)
    outcome = build([Source("Ga", same(other))], dataset.path, nkpts=0)
    assert (
        "the sample Ga has another basis than GaAs: Ga: orbital files differ"
        in (outcome.failed["Ga"])
    )
    assert Dataset(dataset.path).names == ("GaAs",)


def test_the_same_structure_is_not_taken_twice(tmp_path):
    data = random_lcao(0)
    moved = data.permuted([1, 0]).translated(np.array([[1, 0, 0], [0, -2, 0]]))
    dataset = built(tmp_path, Source("one", same(data)))
    outcome = build([Source("other", same(moved))], dataset.path, nkpts=0)
    assert "the structure is that of the sample one" in outcome.failed["other"]


def test_names_that_are_no_file_names_are_refused():
    for name in ("../a", "", "a/b", ".hidden", "a b"):
        with pytest.raises(ValueError, match="must be letters, digits"):
            Source(name, same(None))


def test_two_sources_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two sources are named 'a'"):
        build([source("a", 1), source("a", 2)], tmp_path / "set")


# --- damage on disk ------------------------------------------------------------------------------


def test_a_damaged_sample_is_named_when_it_is_read(tmp_path):
    dataset = built(tmp_path, source("a", 1), source("b", 2))
    path = dataset.file(1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="b.h5: not an HDF5 file, or cut short"):
        dataset[1]
    np.testing.assert_array_equal(dataset[0].data.h0.data, random_lcao(1).h0.data)
    with pytest.raises(ValueError, match="b.h5: not a sample of a data set, or damaged"):
        Dataset(dataset.path)


def test_damage_anywhere_in_a_sample_is_told_or_harmless(tmp_path):
    dataset = built(tmp_path, source("GaAs"))
    whole, path = dataset[0], dataset.file(0)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(100):
        damaged, place = bytearray(content), rng.integers(len(content) - 8)
        damaged[place : place + 8] = rng.bytes(8)
        path.write_bytes(damaged)
        try:
            sample = dataset[0]
        except ValueError as err:
            messages.append(str(err))
            continue
        for name in ("overlap", "h0", "hamiltonian"):
            expected = getattr(whole.data, name).data
            np.testing.assert_array_equal(getattr(sample.data, name).data, expected)
        for name in ("eps", "coefficients"):
            np.testing.assert_array_equal(
                getattr(sample.k_space, name), getattr(whole.k_space, name)
            )
    assert len(messages) > 50
    assert all("GaAs.h5" in message for message in messages)


def test_a_sample_of_another_basis_that_was_copied_in_is_named(tmp_path):
    dataset = built(tmp_path / "1", source("GaAs"))
    data = random_lcao(1, "Ga", spin="spinor")
    basis = replace(data.basis, shells={"Ga": (0, 0, 0, 1, 1, 2, 2)})
    other = built(tmp_path / "2", source("Ga", symbols="Ga"))
    shutil.copy(other.file(0), dataset.path / "samples" / "Ga.h5")
    with h5py.File(dataset.path / "samples" / "Ga.h5", "a") as file:
        entry = file["training/entry"][()].decode()
        del file["training/entry"]
        file["training/entry"] = entry.replace("[0, 0, 1, 1, 2, 3]", str(list(basis.shells["Ga"])))
    with pytest.raises(ValueError, match="GaAs has another basis than Ga: Ga: orbitals differ"):
        Dataset(dataset.path)


def test_an_index_that_is_lost_or_behind_is_made_good_by_the_samples(tmp_path):
    dataset = built(tmp_path, source("a", 1), source("b", 2))
    (dataset.path / "index.json").unlink()
    assert Dataset(dataset.path).names == ("a", "b")
    other = built(tmp_path / "2", source("b", 3))
    shutil.copy(other.file(0), dataset.file(1))
    np.testing.assert_allclose(
        Dataset(dataset.path).entries[1].atoms.positions, random_lcao(3).atoms.positions
    )


def test_a_damaged_index_says_what_to_do(tmp_path):
    dataset = built(tmp_path, source("a"))
    (dataset.path / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json: damaged .* remove it"):
        Dataset(dataset.path)


def test_what_is_no_data_set_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Dataset(tmp_path / "none")
    with pytest.raises(ValueError, match="not a data set"):
        Dataset(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="holds something else than a data set"):
        build([source("a")], tmp_path)
    with pytest.raises(ValueError, match="is a file; a data set is a folder"):
        build([source("a")], tmp_path / "something")


# --- interrupted and continued -------------------------------------------------------------------


def test_what_is_there_is_not_made_again(tmp_path):
    built(tmp_path, source("a", 1))

    def fail():
        raise AssertionError("it was read again")

    outcome = build([Source("a", fail), source("b", 2)], tmp_path / "set", nkpts=0)
    assert (outcome.done, outcome.skipped, outcome.failed) == (("b",), ("a",), {})


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    def fail():
        raise OSError("the disk is broken")

    outcome = build([Source("a", fail), source("b", 2)], tmp_path / "set", nkpts=0)
    assert outcome.done == ("b",)
    assert outcome.failed == {"a": "the disk is broken"}


def test_an_interrupt_keeps_what_was_finished(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    sources = [source("a", 1), Source("b", interrupt), source("c", 3)]
    with pytest.raises(KeyboardInterrupt):
        build(sources, tmp_path / "set", nkpts=0)
    assert Dataset(tmp_path / "set").names == ("a",)
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        ".lock",
        "index.json",
        "samples",
    ]


SLOW = """
import sys, time
from functools import partial
from ase_nextham.testing import random_lcao
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source

def make(seed):
    time.sleep(0.02)
    return random_lcao(seed)

build([Source(f"s{k}", partial(make, k)) for k in range(1000)], sys.argv[1], nkpts=1)
"""


def test_a_killed_build_loses_nothing_that_was_finished_and_goes_on(tmp_path):
    target = tmp_path / "set"
    process = subprocess.Popen([sys.executable, "-c", SLOW, target])
    while len(list(target.glob("samples/*.h5"))) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(OSError, match="another process is building"):
        build([source("a", 1)], target)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = Dataset(target)
    assert len(there) >= 5
    for index in range(len(there)):
        there[index]
    outcome = build([source("s0"), source("last", 2000)], target, nkpts=1)
    assert (outcome.done, outcome.skipped) == (("last",), ("s0",))
    assert not list(target.glob(".unfinished*"))


def test_several_processes_make_the_same_set(tmp_path):
    sources = [source(f"s{seed}", seed) for seed in range(3)]
    one = built(tmp_path / "1", *sources)
    two = built(tmp_path / "2", *sources, jobs=2)
    assert one.names == two.names
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.data.hamiltonian.data, b.data.hamiltonian.data)
        np.testing.assert_array_equal(a.k_space.kpts, b.k_space.kpts)


# --- sources on disk -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for seed in range(2):
        hdf5.write(folder / f"GaAs_{seed}.h5", random_lcao(seed))
    return folder


def test_a_folder_stands_for_the_structures_in_it(files, tmp_path):
    converters.write(files / "deeph", random_lcao(5), format="deeph")
    sources = from_paths([files], converters.read, holds_structure)
    assert [one.name for one in sources] == ["GaAs_0", "GaAs_1", "deeph"]
    (tmp_path / "only").mkdir()
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_paths([tmp_path / "none"], converters.read, holds_structure)


@pytest.mark.parametrize("kind", ["xztar", "gztar", "zip"])
def test_archives_are_unpacked_and_leave_nothing_behind(files, tmp_path, monkeypatch, kind):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    packed = shutil.make_archive(str(tmp_path / "packed"), kind, files)
    sources = from_paths([packed], converters.read, holds_structure)
    dataset = built(tmp_path, *sources)
    assert dataset.names == ("packed-GaAs_0", "packed-GaAs_1")
    np.testing.assert_array_equal(dataset[1].data.h0.data, random_lcao(1).h0.data)
    assert not list(temporary.iterdir())
    outcome = build(sources, dataset.path)
    assert set(outcome.skipped) == set(dataset.names)
    assert not outcome.done


def test_an_archive_of_one_structure_gives_it_its_name(files, tmp_path):
    (files / "GaAs_1.h5").unlink()
    packed = shutil.make_archive(str(tmp_path / "first"), "xztar", files)
    dataset = built(tmp_path, *from_paths([packed], converters.read, holds_structure))
    assert dataset.names == ("first",)


def test_archives_that_are_damaged_or_lead_elsewhere_are_refused(tmp_path):
    import tarfile

    evil, broken = tmp_path / "evil.tar", tmp_path / "broken.tar.xz"
    with tarfile.open(evil, "w") as archive:
        archive.add(__file__, arcname="../outside")
    broken.write_bytes(b"\xfd7zXZ\x00 and no more")
    sources = from_paths([evil, broken], converters.read, holds_structure)
    outcome = build(sources, tmp_path / "set")
    assert outcome.failed.keys() == {"evil", "broken"}
    for name, reason in outcome.failed.items():
        assert f"{name}.tar" in reason
        assert "damaged or not safe to unpack" in reason
    assert not (tmp_path / "outside").exists()


def test_two_structures_of_one_name_are_refused(files, tmp_path):
    shutil.copytree(files, tmp_path / "again")
    with pytest.raises(ValueError, match="would both be the sample 'GaAs_0'"):
        from_paths([files, tmp_path / "again"], converters.read, holds_structure)


def test_archives_of_abacus_runs_become_samples(shared_data, tmp_path):
    read = partial(
        converters.read,
        pseudo_dir=shared_data / "pseudo",
        orbital_dir=shared_data / "orbital",
    )
    archives = [shared_data / "abacus" / "mini" / f"{name}.tar.xz" for name in ("LiF_0", "Si_2")]
    dataset = built(tmp_path, *from_paths(archives, read, holds_structure), nkpts=4)
    assert dataset.names == ("LiF_0", "Si_2")
    for sample in dataset:
        # valence bands hold the electrons at every k-point, and the window is above them
        occupied = (sample.k_space.eps < sample.entry.fermi_level).sum(axis=-1)
        assert (2 * occupied == sample.data.nelectrons).all()
        assert (sample.k_space.nlow >= occupied).all()
        assert sample.data.h0.pairs.same_as(sample.data.hamiltonian.pairs)
