"""Converged densities of samples: where they come from, what is refused, and adding them later."""

from __future__ import annotations

import json
import shutil
import struct
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from ase_nextham import converters
from ase_nextham.cli import main
from ase_nextham.data import LCAOData
from ase_nextham.h0.density import Density, read_density
from ase_nextham.testing import random_lcao
from ase_nextham.training.dataset import FORMAT_VERSION, Dataset
from ase_nextham.training.dataset_build import SPINOR, build
from ase_nextham.training.dataset_sources import Source, from_paths
from ase_nextham.units import BOHR


def density_of(data: LCAOData, seed: int = 0, *, electrons: float | None = None) -> Density:
    """A real density of few plane waves with the cell and the electrons of a structure."""
    cell = data.atoms.cell.array
    half = np.array([[1, 0, 0], [0, 1, -2], [-3, 1, 1]])
    c = np.random.default_rng(seed).normal(scale=1e-3, size=(2, 3))
    c = c[0] + 1j * c[1]
    average = (data.nelectrons if electrons is None else electrons) / abs(
        np.linalg.det(cell / BOHR)
    )
    return Density(
        np.concatenate([[[0, 0, 0]], half, -half]),
        np.concatenate([[average], c, c.conj()]),
        np.linalg.inv(cell).T,
    )


def write_npz(path: Path, density: Density) -> Path:
    np.savez(
        path,
        miller=density.miller,
        rho_g=density.coefficients[None],
        reciprocal_vectors=density.reciprocal.T,
    )
    return path


def write_restart(path: Path, density: Density) -> Path:
    """ABACUS's records."""
    n = len(density.miller)
    records = [
        struct.pack("<3i", 0, n, 1),
        density.reciprocal.T.astype("<f8").tobytes(),
        density.miller.astype("<i4").tobytes(),
        density.coefficients.astype("<c16").tobytes(),
    ]
    mark = struct.pack("<i", 0)
    path.write_bytes(b"".join(mark + record + mark for record in records))
    return path


def assert_kept(found: Density, expected: Density) -> None:
    np.testing.assert_array_equal(found.miller, expected.miller)
    np.testing.assert_array_equal(found.reciprocal, expected.reciprocal)
    np.testing.assert_array_equal(
        found.coefficients, expected.coefficients.astype(np.complex64).astype(complex)
    )


def sources(**seeds: int) -> list[Source]:
    return [Source(name, partial(random_lcao, seed)) for name, seed in seeds.items()]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Densities of the sources a (seed 1) and b (seed 2)."""
    folder = tmp_path / "densities"
    folder.mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        write_npz(folder / f"{name}.npz", density_of(random_lcao(seed), seed))
    return folder


# --- what comes out ------------------------------------------------------------------------------


def test_densities_of_a_folder_are_kept_with_the_samples(tmp_path, folder):
    outcome = build(sources(a=1, b=2, c=3), tmp_path / "set", nkpts=0, densities=folder)
    assert outcome.done == ("a", "b", "c")
    assert outcome.remarks == {"c": (f"{folder} holds no density of c",)}
    dataset = Dataset(tmp_path / "set")
    assert [entry.density is None for entry in dataset.entries] == [False, False, True]
    assert dataset.density(2) is None
    for index, seed in enumerate((1, 2)):
        assert_kept(dataset.density(index), density_of(random_lcao(seed), seed))
    # the index and the files say the same
    (dataset.path / "index.json").unlink()
    digests = [entry.density for entry in dataset.entries]
    assert [entry.density for entry in Dataset(dataset.path).entries] == digests
    assert digests[0] != digests[1]


def test_large_miller_indices_are_kept(tmp_path, folder):
    density = density_of(random_lcao(1))
    density.miller[1] = [40000, 0, -70000]
    density.miller[4] = [-40000, 0, 70000]
    write_npz(folder / "a.npz", density)
    build(sources(a=1), tmp_path / "set", nkpts=0, densities=folder)
    assert_kept(Dataset(tmp_path / "set").density(0), density)


@pytest.mark.parametrize("place", ["c", "c/OUT.ABACUS"])
def test_folders_with_the_file_of_abacus_are_found_by_name(tmp_path, folder, place):
    data = random_lcao(3)
    (folder / place).mkdir(parents=True)
    write_restart(folder / place / "h0-CHARGE-DENSITY.restart", density_of(data))
    build([Source("c", lambda: data)], tmp_path / "set", nkpts=0, densities=folder)
    assert_kept(Dataset(tmp_path / "set").density(0), density_of(data))


def test_the_density_that_abacus_left_is_taken_from_the_run_or_its_archive(copied_run, tmp_path):
    run = copied_run("v3.11.0-beta.1/h2o", "scf")
    other = copied_run("v3.11.0-beta.1/h2o_step1", "step1")
    data = converters.read(run.parent)
    write_restart(run / "OUT.ABACUS" / "ABACUS-CHARGE-DENSITY.restart", density_of(data))
    # of the step from superposed atoms; were it read, it would be refused
    write_restart(
        other / "OUT.ABACUS" / "ABACUS-CHARGE-DENSITY.restart", density_of(data, electrons=1.0)
    )
    shutil.make_archive(str(tmp_path / "packed"), "gztar", run.parent)
    (tmp_path / "empty").mkdir()
    read = partial(
        converters.read, pseudo_dir=tmp_path / "pseudo", orbital_dir=tmp_path / "orbital"
    )
    for path, target in ((run.parent, "set"), (tmp_path / "packed.tar.gz", "set2")):
        given = from_paths([path], read, holds_run)
        outcome = build(given, tmp_path / target, nkpts=0, densities=tmp_path / "empty")
        assert not outcome.failed
        assert not outcome.remarks
        assert_kept(Dataset(tmp_path / target).density(0), density_of(data))


def holds_run(path: Path) -> bool:
    try:
        return converters.guess_format(path) == "abacus"
    except ValueError:
        return False


# --- what is refused -----------------------------------------------------------------------------


def test_densities_of_other_structures_are_refused_by_name(tmp_path, folder):
    write_npz(folder / "b.npz", density_of(random_lcao(2), electrons=12.0))
    write_npz(folder / "c.npz", density_of(random_lcao(4)))
    (folder / "d.npz").write_bytes((folder / "a.npz").read_bytes()[:300])
    names = sources(a=1, b=2, c=3, d=4)
    outcome = build(names, tmp_path / "set", nkpts=0, densities=folder)
    assert outcome.done == ("a",)
    assert "holds 12.0000 electrons in a cell and the structure" in outcome.failed["b"]
    assert "of another cell" in outcome.failed["c"]
    assert "d.npz" in outcome.failed["d"]


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of densities"):
        build(sources(a=1), tmp_path / "set", densities=tmp_path / "none")


def test_damage_of_a_kept_density_is_told(tmp_path, folder):
    build(sources(a=1), tmp_path / "set", nkpts=0, densities=folder)
    dataset = Dataset(tmp_path / "set")
    with h5py.File(dataset.file(0), "a") as file:
        del file["training/density/coefficients"]
    with pytest.raises(ValueError, match=r"a\.h5: the density cannot be read"):
        dataset.density(0)


# --- added later ---------------------------------------------------------------------------------


def test_samples_that_are_there_get_their_densities_and_change_in_nothing_else(tmp_path, folder):
    target = tmp_path / "set"
    build(sources(a=1, c=3), target, nkpts=2)
    before = Dataset(target)
    untouched = before.file(1).stat()
    outcome = build(sources(a=1, b=2, c=3), target, nkpts=2, densities=folder)
    assert (outcome.done, outcome.skipped, outcome.failed) == (("a", "b"), ("c",), {})
    after = Dataset(target)
    assert after.names == ("a", "b", "c")
    assert after.file(2).stat() == untouched
    assert_kept(after.density(0), density_of(random_lcao(1), 1))
    old, new = before[0], after[0]
    for name in ("overlap", "h0", "hamiltonian"):
        np.testing.assert_array_equal(getattr(new.data, name).data, getattr(old.data, name).data)
    np.testing.assert_array_equal(new.k_space.coefficients, old.k_space.coefficients)
    content = new.entry.to_json()
    assert content.pop("density") == new.entry.density
    assert content == {k: v for k, v in old.entry.to_json().items() if k != "density"}
    # once more: nothing is left to do
    state = after.file(0).stat()
    outcome = build(sources(a=1, b=2, c=3), target, nkpts=2, densities=folder)
    assert (outcome.done, outcome.skipped) == ((), ("a", "b", "c"))
    assert after.file(0).stat() == state


def test_a_wrong_density_leaves_the_sample_that_is_there_as_it_is(tmp_path, folder):
    build(sources(a=1), tmp_path / "set", nkpts=0)
    write_npz(folder / "a.npz", density_of(random_lcao(1), electrons=12.0))
    state = Dataset(tmp_path / "set").file(0).stat()
    outcome = build(sources(a=1), tmp_path / "set", nkpts=0, densities=folder)
    assert "the density holds 12.0000 electrons" in outcome.failed["a"]
    assert Dataset(tmp_path / "set").file(0).stat() == state
    assert Dataset(tmp_path / "set").density(0) is None


def test_samples_with_and_without_spin_share_the_density_of_their_structure(tmp_path, folder):
    class Backend:
        def compute(self, atoms):
            return random_lcao(1, spin="spinor")

    build(sources(a=1), tmp_path / "set", nkpts=0)
    outcome = build(sources(a=1), tmp_path / "set", nkpts=0, spinor_h0=Backend(), densities=folder)
    assert outcome.done == ("a", "a" + SPINOR)
    one, two = Dataset(tmp_path / "set").entries
    assert one.density == two.density is not None


def test_sets_of_before_have_no_densities(tmp_path):
    build(sources(a=1), tmp_path / "set", nkpts=0)
    dataset = Dataset(tmp_path / "set")
    index = json.loads((dataset.path / "index.json").read_text())
    assert (index["format_version"], FORMAT_VERSION) == (2, 2)
    index["format_version"] = 1
    del index["samples"]["a"]["entry"]["density"]
    content = json.dumps(index)
    (dataset.path / "index.json").write_text(content)
    assert Dataset(dataset.path).entries[0].density is None
    (dataset.path / "index.json").unlink()
    with h5py.File(dataset.file(0), "a") as file:
        del file["training/entry"]
        file["training/entry"] = json.dumps(index["samples"]["a"]["entry"])
    assert Dataset(dataset.path).density(0) is None


def test_densities_are_given_on_the_command_line(tmp_path, folder, capsys):
    from ase_nextham import hdf5

    (tmp_path / "runs").mkdir()
    for name, seed in (("a", 1), ("c", 3)):
        hdf5.write(tmp_path / "runs" / f"{name}.h5", random_lcao(seed))
    command = ["dataset", "build", str(tmp_path / "runs"), "-o", str(tmp_path / "set")]
    command += ["--nkpts", "0", "--densities", str(folder)]
    assert main(command) == 0
    output = capsys.readouterr()
    assert "2 samples done" in output.out
    assert "holds no density of c" in output.err
    assert Dataset(tmp_path / "set").entries[0].density


def test_densities_of_real_crystals_fit_their_runs(shared_data, tmp_path):
    read = partial(
        converters.read,
        pseudo_dir=shared_data / "pseudo",
        orbital_dir=shared_data / "orbital",
    )
    given = from_paths([shared_data / "abacus" / "mini" / "LiF_0.tar.xz"], read, holds_run)
    folder = shared_data / "abacus" / "mini_density"
    build(given, tmp_path / "set", nkpts=0, densities=folder)
    dataset = Dataset(tmp_path / "set")
    found, expected = dataset.density(0), read_density(folder / "LiF_0.npz")
    np.testing.assert_array_equal(found.coefficients, expected.coefficients)
    assert dataset.file(0).stat().st_size < 1e6  # bytes
