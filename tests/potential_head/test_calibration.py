"""What a spread says about errors: laws of the factors, and models that know theirs."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from ase.io import write as write_atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_nextham import load_model
from ase_nextham.cli import main
from ase_nextham.expansion import Expansion, RadialFunctions, even_tempered
from ase_nextham.model import bundle
from ase_nextham.potential_head.descriptor import ELEMENT_SCALARS, Descriptor
from ase_nextham.potential_head.spread import Spread
from ase_nextham.training import (
    density_calibration,
    density_label_files,
    metrics,
    metrics_bands,
)
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source
from ase_nextham.training.density_calibration import (
    Calibration,
    Case,
    Relation,
    calibrate,
    calibrate_model,
)
from ase_nextham.training.density_labels import DensityLabel

COUNTS, EXPONENTS = (2, 1), (0.3, 2.0)
POSITIVE = st.floats(1e-6, 1.0)


def case(spread: float, error: float, name: str = "Si_0") -> Case:
    return Case(name, "Si", Spread(spread, 10 * spread, 1e-3), error, 20 * error, 1e-3)


def calibration(*pairs: tuple[float, float]) -> Calibration:
    return Calibration(tuple(case(*pair) for pair in pairs))


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=12), POSITIVE)
def test_factors_are_positive_and_scale_as_errors_do(pairs, factor):
    spreads, errors = np.array(pairs).T
    relation = Relation(spreads, errors)
    assert relation.factor > 0
    assert Relation(spreads, factor * errors).factor == pytest.approx(factor * relation.factor)
    assert Relation(factor * spreads, errors).factor == pytest.approx(relation.factor / factor)
    below = np.mean(errors <= relation.factor * spreads * (1 + 1e-9))
    assert below >= 0.5


def test_a_few_structures_that_are_far_off_do_not_change_the_factor():
    pairs = [(1e-4, 2e-4)] * 9
    assert calibration(*pairs, (1e-4, 1.0)).dh.factor == pytest.approx(2)
    assert calibration(*pairs, (1e-4, 1.0)).bands.factor == pytest.approx(4)


def test_the_rank_correlation_tells_whether_errors_rise_with_spreads():
    spreads = np.array([1.0, 2, 3, 4, 5])
    assert Relation(spreads, spreads**3).rank == pytest.approx(1)
    assert Relation(spreads, -spreads).rank == pytest.approx(-1)
    assert Relation(spreads, np.array([1.0, 2, 3, 5, 4])).rank == pytest.approx(0.9)


@pytest.mark.parametrize("spreads", [[1.0, 2.0], [1.0, 1.0, 1.0]])
def test_ranks_of_nothing_to_order_are_not_given(spreads):
    relation = Relation(np.array(spreads), np.arange(1.0, 1 + len(spreads)))
    assert relation.rank is None
    assert relation.factor > 0


def test_members_that_agree_have_no_factors_and_it_is_said():
    found = calibration((0.0, 1e-3), (1e-12, 2e-3), (0.0, 3e-3))
    assert found.as_dict() == {"samples": 3}
    assert (
        str(found) == "the networks of the model do not differ, so they tell nothing about errors"
    )
    assert found.table().count("-") >= 4


def test_without_structures_there_is_no_calibration():
    with pytest.raises(ValueError, match="no structures to calibrate with"):
        Calibration(())


def test_a_table_has_all_structures_and_quartiles():
    found = calibration(*((1e-3, k * 1e-3) for k in range(1, 6)))
    lines = found.table().splitlines()
    first = ["Si_0", "1.000", "1.0000", "1.0000", "1.00", "10.0000", "20.0000", "2.00"]
    assert lines[2].split() == first
    assert [line.split()[-2:] for line in lines[-4:]] == [
        ["3.00", "6.00"],
        ["2.00", "4.00"],
        ["4.00", "8.00"],
        ["-", "-"],
    ]
    assert "of 5 structures" in str(found)
    assert "3 for elements of H (rank correlation -), 6 for bands (-)" in str(found)


# --- models and data -----------------------------------------------------------------------------


@pytest.fixture
def dataset(engine, radical, random_model, tmp_path) -> Dataset:
    """Four copies, whose self-consistent H is that of a network with other random weights."""

    def copy(k: int):
        atoms = radical.copy()
        atoms.positions[1] += 0.05 * k
        data = engine().compute(atoms)
        dh = random_model(data, 5).predict(data)
        return replace(data, hamiltonian=data.h0 + dh)

    sources = [Source(f"OH_{k}", partial(copy, k)) for k in range(4)]
    assert not build(sources, tmp_path / "set", nkpts=0).failed
    return Dataset(tmp_path / "set")


def test_errors_are_those_of_evaluation(dataset, random_model):
    sample = dataset[0]
    model = random_model(sample.data)
    found = calibrate(model, dataset)
    assert [one.name for one in found.cases] == list(dataset.names)
    first = found.cases[0]
    predicted = sample.data.h0 + model.predict(sample.data)
    expected = metrics.matrix_errors(predicted, sample.data).total.mean
    assert first.dh == pytest.approx(expected, rel=1e-9)
    bands = metrics_bands.mesh_errors(
        predicted, sample.data, metrics_bands.reference(sample.data, 3.0)
    )
    assert first.bands == pytest.approx(bands.total.mean, rel=1e-9)
    assert first.h0 == pytest.approx(metrics.matrix_errors(sample.data.h0, sample.data).total.mean)
    assert first.spread == model.spread(sample.data)
    assert found.as_dict().keys() == {"dh", "bands", "samples", "rank_dh", "rank_bands"}


def test_of_many_samples_some_are_taken(dataset, random_model, monkeypatch):
    monkeypatch.setattr(density_calibration, "LARGEST", 2)
    found = calibrate(random_model(dataset[0].data), dataset)
    assert [one.name for one in found.cases] == ["OH_0", "OH_3"]


def test_a_sample_that_the_model_is_not_for_is_named(dataset, random_model):
    model = random_model(dataset[0].data, known={"convention": "siesta"})
    with pytest.raises(ValueError, match="sample OH_0: the model reads the orbital convention"):
        calibrate(model, dataset)


def test_a_model_on_disk_is_given_what_came_of_it(dataset, random_network, files, tmp_path):
    info, module = random_network(dataset[0].data)
    path = tmp_path / "model"
    bundle.save(path, replace(info, training={"epochs": 3}), module)
    dataset = dataset.subset([0, 1, 3])
    weights = (path / "expert_0.safetensors").read_bytes()
    found = calibrate_model(path, dataset, **files)
    assert (path / "expert_0.safetensors").read_bytes() == weights
    assert {one.name for one in path.parent.iterdir()} >= {"model"}
    assert bundle.read_info(path).training == {"epochs": 3, "calibration": found.as_dict()}
    model, data = load_model(path, **files), dataset[1].data
    spread = model.spread(data)
    assert spread.expected_dh == pytest.approx(found.dh.factor * spread.dh)
    assert spread.expected_bands == pytest.approx(found.bands.factor * spread.bands)
    again = calibrate_model(path, dataset, **files)
    assert again.as_dict() == pytest.approx(found.as_dict())
    assert not list(tmp_path.glob("model.*"))


def test_models_of_pairs_have_nothing_to_calibrate(root, dataset):
    with pytest.raises(ValueError, match="mini_model: only models of the density"):
        calibrate_model(root / "examples" / "data" / "mini_model", dataset)


def with_labels(dataset: Dataset) -> Dataset:
    """Random labels, so that nothing is to be fitted."""
    functions = RadialFunctions.coulomb(even_tempered(COUNTS, *EXPONENTS))
    expansion = Expansion("density", dict.fromkeys(("H", "O"), functions))
    folder = dataset.path / density_label_files.LABELS
    folder /= density_label_files.fingerprint(expansion)[:16]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, entry in enumerate(dataset.entries):
        symbols = tuple(entry.atoms.symbols)
        induced, field = rng.normal(size=(2, 2 * functions.size))
        label = DensityLabel(
            name=entry.name,
            fitted="density",
            coefficients=expansion.neutral(symbols, 0.1 * induced),
            gram=np.eye(len(induced)),
            norm=1.0,
            left=1e-4,
            residual=0.01,
            charges=expansion.charges(symbols),
            descriptor=Descriptor(
                symbols, induced, field, rng.normal(size=(2, len(ELEMENT_SCALARS)))
            ),
        )
        state = density_label_files._state(dataset.file(index))
        density_label_files._write(folder / f"{entry.name}.npz", label, state)
    return dataset


def settings_of(dataset: Dataset, files, **changes) -> str:
    values = {"folds": "false", "members": 2, **changes}
    density = "\n".join(f"{name} = {value}" for name, value in values.items())
    return f"""
[data]
path = "{dataset.path}"
train = ["OH_0"]
validation = ["OH_[123]"]
[model]
head = "density"
[density]
counts = {list(COUNTS)}
exponents = {list(EXPONENTS)}
hidden = "4x0e+2x1o"
pseudo_dir = "{files["pseudo_dir"]}"
orbital_dir = "{files["orbital_dir"]}"
{density}
[optimiser]
epochs = 2
warm_up = 0
[run]
folder = "run"
progress = false
device = "cpu"
"""


def test_training_calibrates_and_a_prediction_names_the_expected_error(
    dataset, files, radical, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text(settings_of(with_labels(dataset), files))
    write_atoms("POSCAR", radical, format="vasp")
    command = ["predict", "POSCAR", "--model", "run/model", "-o", "out.h5", "--nspin", "1"]
    command += [x for k, v in files.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    with caplog.at_level(logging.INFO):
        assert main(["train", "train.toml"]) == 0
    assert "errors of 3 structures not learned from" in caplog.text
    found = bundle.read_info("run/model").training["calibration"]
    assert found["samples"] == 3
    assert main(command) == 0
    assert "expected error: " in capsys.readouterr().out
    before = (tmp_path / "run" / "model" / "model.json").stat().st_mtime_ns
    assert main(["train", "train.toml"]) == 0  # is finished, and calibrated
    assert (tmp_path / "run" / "model" / "model.json").stat().st_mtime_ns == before
    (tmp_path / "on.toml").write_text(
        settings_of(dataset, files)
        .replace('folder = "run"', 'folder = "on"')
        .replace('head = "density"', 'head = "density"\nstart = "run/model"')
        .replace('validation = ["OH_[123]"]', 'validation = ["OH_[12]"]')
    )
    assert main(["train", "on.toml"]) == 0  # not with the factors of the model that it began with
    assert bundle.read_info("on/model").training["calibration"]["samples"] == 2


def test_a_model_that_cannot_be_calibrated_is_kept_and_it_is_said(
    dataset, files, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text(settings_of(with_labels(dataset), files))
    calls = []

    def refuse(*arguments, **options):
        calls.append(arguments)
        raise ValueError("sample OH_1: no")

    monkeypatch.setattr(density_calibration, "calibrate", refuse)
    assert main(["train", "train.toml"]) == 0
    assert "was not calibrated: sample OH_1: no" in caplog.text
    assert "calibration" not in bundle.read_info("run/model").training
    one = settings_of(dataset, files, members=1).replace('folder = "run"', 'folder = "one"')
    (tmp_path / "one.toml").write_text(one)
    assert main(["train", "one.toml"]) == 0
    assert len(calls) == 1  # one network has no spread
    assert (tmp_path / "one" / "model" / "model.json").is_file()
