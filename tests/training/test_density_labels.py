"""Labels of the density head: what they say of a density, and how they are kept."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from ase_nextham import converters
from ase_nextham.cli import main
from ase_nextham.data import LCAOData
from ase_nextham.h0.density import Density, read_density
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.potential_head import (
    dh_from_coefficients,
    plane_wave_sums,
    standard_expansion,
)
from ase_nextham.testing import random_lcao
from ase_nextham.training import density_label_files
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source, from_paths
from ase_nextham.training.density_label_files import fingerprint, labels, summaries
from ase_nextham.training.density_labels import expansion_of, label

FEW = (3, 2, 1)
"""Gaussians of an expansion that is fitted quickly."""


@pytest.fixture(scope="module")
def files(root, abacus_folders, tmp_path_factory) -> dict[str, Path]:
    """Folders of the pseudopotentials and orbitals of H and O."""
    folder = tmp_path_factory.mktemp("elements")
    with tarfile.open(root / "tests" / "data" / "native" / "pseudo.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (folder / "orbital").mkdir()
    for name in ("H_1s1p.orb", "O_1s1p.orb"):
        shutil.copy(abacus_folders / "orbital" / name, folder / "orbital")
    return {"pseudo_dir": folder / "pseudo", "orbital_dir": folder / "orbital"}


@pytest.fixture(scope="module")
def engine(files) -> NativeH0:
    """With a coarse grid, good enough for the density of the radical."""
    return NativeH0(**files, nspin=1, ecutwfc=20, threads=1, position=False)


@pytest.fixture(scope="module")
def densities(root, tmp_path_factory) -> Path:
    """Folder with the density that ABACUS gives OH in a skewed cell."""
    folder = tmp_path_factory.mktemp("densities")
    (folder / "OH").mkdir()
    with tarfile.open(root / "tests" / "data" / "density" / "oh.tar.xz") as archive:
        archive.extractall(folder / "OH", filter="data")
    return folder


@pytest.fixture(scope="module")
def data(engine, densities) -> LCAOData:
    """S, H(0), and H with that density."""
    atoms = Atoms(
        "OH",
        [[0.1, -0.2, 0.05], [0.65, 0.4, 0.6]],
        cell=[[4.4, 0.3, -0.2], [0.5, 4.7, 0.4], [-0.3, 0.6, 5.1]],
        pbc=True,
    )
    part, computed = engine.local_part(atoms), engine.compute(atoms)
    density = read_density(densities / "OH")
    potential = part.potential(change(part, density))
    return replace(computed, hamiltonian=computed.h0 + part.matrix(potential - part.v0))


def change(part, density: Density) -> np.ndarray:
    """Plane waves of the density without those of the superposed atoms."""
    listed = part.on_waves(density.miller, np.ones(len(density.miller)))
    return part.on_waves(density.miller, density.coefficients) - listed * part.valence


def dataset_of(folder: Path, densities: Path | None = None, **named: LCAOData) -> Dataset:
    sources = [Source(name, lambda data=data: data) for name, data in named.items()]
    assert not build(sources, folder, nkpts=0, densities=densities).failed
    return Dataset(folder)


def few(dataset: Dataset):
    """Few functions for each element."""
    elements = [(symbol, None) for symbol in dataset.basis.shells]
    return standard_expansion("density", elements, counts=FEW)


# --- what a label says ---------------------------------------------------------------------------


def test_the_standard_functions_are_those_of_the_engines_elements(tmp_path, data, engine):
    part = engine.local_part(data.atoms)
    expected = standard_expansion("density", zip(part.symbols, part.elements, strict=True))
    dataset = dataset_of(tmp_path, OH=data)
    assert expansion_of(dataset).fingerprint == expected.fingerprint


def test_a_label_knows_the_distance_of_any_coefficients_from_the_density(
    tmp_path, data, densities, engine
):
    dataset = dataset_of(tmp_path, densities, OH=data)
    expansion = expansion_of(dataset)
    found = label(dataset, 0, expansion, engine)
    assert (found.name, found.fitted) == ("OH", "density")
    assert found.residual < 0.1  # a sharp cutoff of 10 Ry: not of atom-centred functions
    assert abs(found.charges @ found.coefficients) < 1e-10  # electrons
    part = engine.local_part(data.atoms)
    sums = plane_wave_sums(part, expansion)
    weights = part.waves.volume * part.coulomb * part.multiplicity
    target = change(part, dataset.density(0))
    norm = np.sum(weights * np.abs(target) ** 2)
    assert found.norm == pytest.approx(norm, rel=1e-6)
    rng = np.random.default_rng(0)
    for scale in (0.0, 1e-3, 1e-2, 1.0):
        c = found.coefficients + scale * rng.normal(size=len(found.coefficients))
        c = expansion.neutral(part.symbols, c)
        left = target - sums.plane_waves(c)
        expected = np.sqrt(np.sum(weights * np.abs(left) ** 2) / norm)
        assert found.error(c) == pytest.approx(expected, rel=2e-3)  # the ridge of the fit
    assert found.error(found.coefficients) == pytest.approx(found.residual, rel=1e-12)
    assert found.error(0 * found.coefficients) == pytest.approx(1, rel=1e-4)


def test_a_label_holds_what_a_model_sees(tmp_path, data, densities, engine):
    dataset = dataset_of(tmp_path, densities, OH=data)
    found = label(dataset, 0, expansion_of(dataset), engine)
    seen = found.descriptor
    assert seen.symbols == ("O", "H")
    assert seen.induced.shape == seen.field.shape == found.coefficients.shape
    # the states of H(0) say more than nothing of where electrons go
    part = found.coefficients @ found.gram @ seen.induced
    sizes = [c @ found.gram @ c for c in (found.coefficients, seen.induced)]
    assert part > 0.5 * np.sqrt(np.prod(sizes))


def test_without_a_density_dh_is_fitted(tmp_path, data, engine):
    dataset = dataset_of(tmp_path, OH=data)
    expansion = few(dataset)
    found = label(dataset, 0, expansion, engine)
    assert found.fitted == "dh"
    assert repr(found) == f"DensityLabel('OH', {100 * found.residual:.3g} % of dH left)"
    assert abs(found.charges @ found.coefficients) < 1e-10  # electrons
    # the residual is that of dH, without what a shift of the energy zero can say
    dh = data.hamiltonian - data.h0
    left = dh - dh_from_coefficients(engine.local_part(data.atoms), expansion, found.coefficients)
    assert found.residual == pytest.approx(size(left, data) / size(dh, data), rel=1e-6)
    assert found.residual < 0.5
    c = found.coefficients
    assert (found.left, found.norm) == (0, pytest.approx(c @ found.gram @ c, rel=1e-12))
    assert found.error(2 * c) == pytest.approx(1, rel=1e-12)


def size(matrix, data) -> float:
    s = data.overlap.on_pairs(matrix.pairs).data
    return float(np.linalg.norm(matrix.data - s * (matrix.data @ s / (s @ s))))


def test_spinor_samples_have_the_label_of_their_density(tmp_path, data, densities, engine, files):
    spinor = NativeH0(**files, nspin=4, ecutwfc=20, threads=1, position=False)
    with_spin = replace(
        spinor.compute(data.atoms), hamiltonian=data.hamiltonian.with_spin("spinor")
    )
    one = dataset_of(tmp_path / "1", densities, OH=data)
    two = dataset_of(tmp_path / "2", densities, OH=with_spin)
    a, b = (label(d, 0, few(one), e) for d, e in ((one, engine), (two, spinor)))
    np.testing.assert_allclose(a.coefficients, b.coefficients, rtol=1e-10)
    # the pseudopotentials are averaged over j in one of them
    np.testing.assert_allclose(a.descriptor.induced, b.descriptor.induced, atol=5e-3)


def test_labels_of_real_crystals_leave_a_percent(shared_data, tmp_path):
    files = {"pseudo_dir": shared_data / "pseudo", "orbital_dir": shared_data / "orbital"}
    path = shared_data / "abacus" / "mini" / "NaCl_1.tar.xz"
    sources = from_paths(
        [path], partial(converters.read, **files), lambda one: (one / "scf").is_dir()
    )
    build(sources, tmp_path, nkpts=0, densities=shared_data / "abacus" / "mini_density")
    dataset = Dataset(tmp_path)
    found = labels(dataset, expansion_of(dataset), **files, threads=1)[0]
    assert found.fitted == "density"
    assert found.residual < 0.01
    # the states of H(0) know something of the change from superposed atoms
    assert found.error(found.descriptor.induced) < 0.8


# --- what is refused -----------------------------------------------------------------------------


def test_an_expanded_potential_is_refused(tmp_path, data, engine):
    dataset = dataset_of(tmp_path, OH=data)
    part = engine.local_part(data.atoms)
    elements = zip(part.symbols, part.elements, strict=True)
    with pytest.raises(ValueError, match="of kind 'potential'; labels are of a density"):
        label(dataset, 0, standard_expansion("potential", elements), engine)


def test_orbitals_and_pseudopotentials_of_others_are_refused(
    tmp_path, data, engine, files, abacus_folders
):
    dataset = dataset_of(tmp_path / "set", OH=data)
    shutil.copytree(files["orbital_dir"], tmp_path / "orbital")
    with open(tmp_path / "orbital" / "H_1s1p.orb", "a") as file:
        file.write("\n")
    other = NativeH0(files["pseudo_dir"], tmp_path / "orbital", nspin=1, position=False)
    with pytest.raises(ValueError, match=r"not those of the sample: H: orbital files differ"):
        label(dataset, 0, few(dataset), other)
    shutil.copytree(files["pseudo_dir"], tmp_path / "pseudo")
    [upf] = (tmp_path / "pseudo").glob("O*")
    upf.write_text(upf.read_text() + "\n")
    other = NativeH0(tmp_path / "pseudo", files["orbital_dir"], nspin=1, position=False)
    with pytest.raises(ValueError, match="O: the pseudopotential is not that of the sample"):
        label(dataset, 0, few(dataset), other)


def test_several_kinds_of_one_element_are_refused(tmp_path, engine):
    data = random_lcao(0, "HH")
    basis = replace(
        data.basis,
        **{
            name: {label: one for label in ("H1", "H2") for one in values.values()}
            for name in ("shells", "radius", "fingerprint", "valence")
            if (values := getattr(data.basis, name))
        },
    )
    changed = {
        name: replace(getattr(data, name), basis=basis, symbols=("H1", "H2"))
        for name in ("overlap", "h0", "hamiltonian")
    }
    dataset = dataset_of(tmp_path, HH=replace(data, position=None, **changed))
    expansion = standard_expansion("density", [("H", None)], counts=FEW)
    with pytest.raises(ValueError, match="atom 0 is of the species 'H1'"):
        label(dataset, 0, expansion, engine)


# --- on disk -------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path, data, densities) -> Dataset:
    return dataset_of(tmp_path / "set", densities, OH=data)


def assert_same(one, two) -> None:
    for name in ("name", "fitted", "norm", "left", "residual"):
        assert getattr(one, name) == getattr(two, name)
    for name in ("coefficients", "gram", "charges"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.descriptor.symbols == two.descriptor.symbols
    for name in ("induced", "field", "elements"):
        np.testing.assert_array_equal(getattr(one.descriptor, name), getattr(two.descriptor, name))


@pytest.fixture
def refuse(monkeypatch) -> None:
    """Labels must not be made again."""

    def refuse(*arguments, **options):
        raise AssertionError("a label was made again")

    monkeypatch.setattr(density_label_files, "label", refuse)


def test_what_was_made_is_kept_to_the_last_digit(dataset, files):
    expansion = few(dataset)
    found = labels(dataset, expansion, **files, threads=1)
    assert len(found) == 1
    assert found.folder == dataset.path / "labels" / fingerprint(expansion)[:16]
    expected = label(dataset, 0, expansion, NativeH0(**files, nspin=1, threads=1, position=False))
    np.testing.assert_array_equal(expected.gram, expected.gram.T)
    assert_same(pickle.loads(pickle.dumps(found))[0], expected)


def test_labels_that_are_there_need_no_files_of_elements(dataset, files, refuse_later, tmp_path):
    expansion = few(dataset)
    first = labels(dataset, expansion, **files, threads=1)[0]
    refuse_later()
    nowhere = {"pseudo_dir": tmp_path / "none", "orbital_dir": tmp_path / "none"}
    assert_same(labels(dataset, expansion, **nowhere)[0], first)
    # a copy has other times, and the same content
    shutil.copytree(dataset.path, tmp_path / "copy", copy_function=shutil.copyfile)
    assert_same(labels(Dataset(tmp_path / "copy"), expansion, **nowhere)[0], first)


@pytest.fixture
def refuse_later(request):
    return lambda: request.getfixturevalue("refuse")


def test_samples_that_changed_and_other_expansions_get_other_labels(
    tmp_path, data, densities, files
):
    dataset = dataset_of(tmp_path / "set", OH=data)
    expansion = few(dataset)
    assert labels(dataset, expansion, **files, threads=1)[0].fitted == "dh"
    dataset = dataset_of(tmp_path / "set", densities, OH=data)
    assert labels(dataset, expansion, **files, threads=1)[0].fitted == "density"
    assert len({fingerprint(expansion), fingerprint(expansion, 1e-3)}) == 2
    assert fingerprint(expansion) != fingerprint(expansion_of(dataset))


def test_damaged_labels_are_told_and_made_again(dataset, files):
    expansion = few(dataset)
    found = labels(dataset, expansion, **files, threads=1)
    first = found[0]
    path = found.folder / "OH.npz"
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[content.index(b"gram.npy") + 2000] ^= 1
    for bad in (content[:-100], content[:10], b"", bytes(damaged)):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"OH\.npz: damaged .* make the labels again"):
            found[0]
        with pytest.warns(UserWarning, match=r"OH\.npz: damaged .* made again"):
            again = labels(dataset, expansion, **files, threads=1)
        assert_same(again[0], first)
        assert path.read_bytes() == content


def test_one_that_fails_does_not_stop_the_others(tmp_path, data, densities, files):
    dataset = dataset_of(tmp_path / "set", densities, OH=data, GaAs=random_lcao(0))
    expansion = few(dataset)
    with pytest.raises(ValueError, match=r"1 of 2 labels could not be made") as error:
        labels(dataset, expansion, **files, threads=1)
    assert "GaAs: " in str(error.value)
    assert "Ga" in str(error.value).split("GaAs: ")[1]
    kept = labels(dataset.subset([1]), expansion, pseudo_dir=tmp_path, orbital_dir=tmp_path)
    assert kept[0].name == "OH"


def test_an_interrupt_keeps_what_was_made(tmp_path, data, densities, files, monkeypatch):
    (tmp_path / "densities").mkdir()
    for name in ("OH", "moved"):
        shutil.copytree(densities / "OH", tmp_path / "densities" / name)
    moved = data.atoms.copy()
    moved.positions[1] += 0.05
    other = replace(data, atoms=moved)
    dataset = dataset_of(tmp_path / "set", tmp_path / "densities", OH=data, moved=other)
    expansion = few(dataset)
    real = density_label_files.label

    def interrupted(dataset, index, *arguments, **options):
        if index:
            raise KeyboardInterrupt
        return real(dataset, index, *arguments, **options)

    monkeypatch.setattr(density_label_files, "label", interrupted)
    with pytest.raises(KeyboardInterrupt):
        labels(dataset, expansion, **files, threads=1)
    [folder] = (dataset.path / "labels").iterdir()
    assert [path.name for path in folder.iterdir()] == ["OH.npz"]
    [summary] = summaries(dataset)
    assert (summary.fitted, list(summary.residuals)) == ("density", ["OH"])


def test_the_report_of_a_data_set_names_the_worst(dataset, files, capsys):
    assert main(["dataset", "info", str(dataset.path)]) == 0
    text = capsys.readouterr().out
    assert "densities    1 samples" in text
    assert "labels " not in text
    found = labels(dataset, few(dataset), **files, threads=1)
    assert main(["dataset", "info", str(dataset.path)]) == 0
    percent = f"{100 * found[0].residual:.3g} %"
    line = f"fitted to the density: {percent} left (median), at most {percent} (OH)"
    assert line in capsys.readouterr().out
