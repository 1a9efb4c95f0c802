"""Training of the density head: labels are made up, everything else is as in a real run."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ase_nextham.cli import main
from ase_nextham.expansion import Expansion, RadialFunctions, even_tempered
from ase_nextham.matrix import aligned
from ase_nextham.model import bundle
from ase_nextham.model.density_network import DensityArchitecture
from ase_nextham.potential_head.descriptor import ELEMENT_SCALARS, Descriptor
from ase_nextham.prediction import load_model
from ase_nextham.training import checkpoint, density_label_files
from ase_nextham.training.config import TrainConfig
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.density_labels import DensityLabel
from ase_nextham.training.density_objective import DensityExample
from ase_nextham.training.density_task import DensityTask
from ase_nextham.training.distributed import Processes
from ase_nextham.training.loop import Trainer
from ase_nextham.training.models import model_to_train, save_model
from ase_nextham.training.run import chosen_samples, train

ALONE = Processes(0, 1, torch.device("cpu"))
COUNTS, EXPONENTS = (3, 2), (0.3, 3.0)
FUNCTIONS = RadialFunctions.coulomb(even_tempered(COUNTS, *EXPONENTS))


def made_up(name: str, symbols: tuple[str, ...], expansion: Expansion) -> DensityLabel:
    """A label that is a linear map of what a model sees, and a little that is not."""
    rng = np.random.default_rng(list(name.encode()))
    charges = expansion.charges(symbols)
    induced = expansion.neutral(symbols, rng.normal(size=len(charges)))
    field = rng.normal(size=len(charges))
    coefficients = 0.0
    for l, x in enumerate(np.random.default_rng(0).normal(size=2)):
        some = np.zeros(len(charges))
        for atom, given in zip(
            expansion.blocks(symbols, some), expansion.blocks(symbols, induced), strict=True
        ):
            atom[l][:] = x * given[l]
        coefficients = coefficients + some
    coefficients = coefficients + 0.1 * induced * np.tanh(field)
    factor = rng.normal(size=(len(charges),) * 2)
    gram = np.eye(len(charges)) + factor @ factor.T / len(charges)
    coefficients = expansion.neutral(symbols, coefficients)
    whole = coefficients @ gram @ coefficients
    scalars = [[ord(s[0]) / 100] * len(ELEMENT_SCALARS) for s in symbols]
    descriptor = Descriptor(symbols, induced, field, np.array(scalars))
    return DensityLabel(
        name=name,
        fitted="density",
        coefficients=coefficients,
        gram=gram,
        norm=whole / 0.9999,
        left=1e-4 * whole / 0.9999,
        residual=0.01,
        charges=charges,
        descriptor=descriptor,
    )


@pytest.fixture
def labelled(crystals, tmp_path) -> Callable[..., TrainConfig]:
    """Function of tables: a short run on crystals that have labels, so that no files are needed."""
    folder = tmp_path / "set"
    shutil.copytree(crystals, folder)
    dataset = Dataset(folder)
    expansion = Expansion("density", dict.fromkeys(sorted(dataset.basis.shells), FUNCTIONS))
    labels = folder / density_label_files.LABELS / density_label_files.fingerprint(expansion)[:16]
    labels.mkdir(parents=True)
    for index, entry in enumerate(dataset.entries):
        state = density_label_files._state(dataset.file(index))
        label = made_up(entry.name, tuple(entry.atoms.symbols), expansion)
        density_label_files._write(labels / f"{entry.name}.npz", label, state)

    def labelled(**tables) -> TrainConfig:
        content = {
            "data": {"path": str(folder), "train": ["*_[01]"], "validation": ["H_[23]"]},
            "model": {"head": "density"},
            "density": {
                "counts": COUNTS,
                "exponents": EXPONENTS,
                "hidden": "8x0e+4x1o",
                "members": 2,
            },
            "optimiser": {"epochs": 4, "warm_up": 1, "learning_rate": 3e-3, "batch": 2},
            "run": {"folder": str(tmp_path / "run"), "progress": False, "device": "cpu"},
        }
        for table, values in tables.items():
            content.setdefault(table, {}).update(values)
        return TrainConfig.from_dict(content)

    return labelled


def trainer(config: TrainConfig) -> Trainer:
    training, validation = chosen_samples(config.data, config.run.seed)
    made = Trainer(config, model_to_train(config, training), training, validation, ALONE)
    made.begin(scales=True)
    return made


def rows(path) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [
            {k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)
        ]


def test_a_run_leaves_a_model_its_tables_and_a_picture(labelled):
    options = {"epochs": 60, "average": 0.5, "learning_rate": 1e-2}
    settings = labelled(density={"folds": False}, optimiser=options)
    result = train(settings)
    assert result.finished
    errors = rows(result.folder / "validation.csv")
    assert list(errors[0]) == ["step", "epoch", "seconds", "loss", "error_percent", "best"]
    assert [row["step"] for row in errors] == list(range(0, 121, 2))
    assert_allclose(min(r["error_percent"] for r in errors), 100 * result.best.error, rtol=1e-6)
    assert result.best.ratio == result.best.error
    assert str(result.best).startswith("error of the density ")
    learned = [row["error_percent"] for row in rows(result.folder / "steps.csv")]
    assert sum(learned[-2:]) < 0.5 * sum(learned[:2])  # of the last epoch and the first
    assert (result.folder / "learning_curve.png").stat().st_size > 10_000
    info, module = bundle.read(result.model)
    assert (info.head, info.elements, info.windows) == ("density", ("H", "Si"), (0.0, 5.0))
    assert bundle.expansion_of(info).of("Si").counts == COUNTS
    assert info.training["config"] == settings.to_dict()
    described = {"samples": 2, "density_error_percent": 100 * result.best.error}
    assert info.training["validation"] == pytest.approx(described)
    assert len(module.experts) == 2


def test_the_model_on_disk_has_the_error_that_was_reported(labelled):
    settings = labelled(optimiser={"precision": "float64"})
    result = train(settings)
    _, module = bundle.read(result.model)
    made = trainer(settings)
    errors = []
    for example in made.validation:
        mean = module(example.inputs).mean(dim=0).detach()
        missing = mean - example.label
        errors.append(float(torch.sqrt(example.left + missing @ example.gram @ missing)))
    assert_allclose(np.mean(errors), result.best.error, rtol=1e-9)
    made.loader.close()


def test_a_new_model_starts_with_the_best_linear_map(labelled):
    options = {"folds": False, "network": "linear", "ridge": 1e-10}
    made = trainer(labelled(density=options, optimiser={"precision": "float64"}))
    batch = made.task.batch(list(made.examples), None)

    def square() -> torch.Tensor:
        found = made.module.experts[0](batch.inputs).split([len(e.label) for e in batch.examples])
        pairs = zip(found, made.examples, strict=True)
        return sum((c - e.label) @ e.gram @ (c - e.label) for c, e in pairs)

    start = square()
    assert start < 0.2 * len(batch)  # of the changes themselves
    start.backward()
    for weight in made.module.experts[0].parameters():
        assert weight.grad.abs().max() < 1e-6
    made.loader.close()


def test_each_member_leaves_out_another_composition(labelled):
    made = trainer(labelled(density={"folds": True}, optimiser={"weight_decay": 0, "batch": 2}))
    folds = {example.name: example.fold for example in made.examples}
    assert folds["H_0"] == folds["H_1"] != folds["Si_0"] == folds["Si_1"]
    assert all(example.fold is None for example in made.validation)
    starts = [member.response.weights["0e"] for member in made.module.experts]
    assert not torch.allclose(*starts)
    for example in made.examples:
        loss, _ = made.objective(made.task.batch([example], None))
        loss.backward()
        changed = [
            any(p.grad is not None and p.grad.abs().max() > 0 for p in member.parameters())
            for member in made.module.experts
        ]
        assert changed == [example.fold != 0, example.fold != 1]
        made.module.zero_grad()
    made.loader.close()


@pytest.mark.parametrize("options", [{"folds": False}, {"members": 1}])
def test_members_learn_from_all_where_there_are_no_folds(labelled, options):
    made = trainer(labelled(density=options))
    assert [example.fold for example in made.examples] == [None] * 4
    made.loader.close()


def test_one_composition_is_left_out_by_nobody(labelled):
    made = trainer(labelled(data={"train": ["H_[01]"]}))
    assert [example.fold for example in made.examples] == [None] * 2
    made.loader.close()


@pytest.mark.parametrize(
    ("network", "experts"),
    [("two-layer", "together"), ("two-layer", "one by one"), ("transformer", "together")],
)
def test_a_run_ended_after_any_step_goes_on_with_the_same_losses(
    labelled, tmp_path, network, experts
):
    tables = {
        "density": {"network": network, "cutoff": 4.0},
        "optimiser": {"experts": experts, "average": 0.9},
    }
    whole = train(labelled(**tables, run={"folder": str(tmp_path / "whole")}))
    settings = labelled(**tables, run={"folder": str(tmp_path / "parts")})
    parts = trainer(settings)
    for _ in range(3):
        parts.advance()
    state = parts.checkpoint()
    parts.loader.close()
    values = {**state.values, "config": settings.to_dict()}
    (tmp_path / "parts").mkdir()
    path = tmp_path / "parts" / "checkpoint.safetensors"
    checkpoint.write(path, replace(state, values=values))
    assert train(settings).finished
    ours, theirs = (
        rows(tmp_path / name / "steps.csv")[-(whole.steps - 3) :] for name in ("parts", "whole")
    )
    for row in (*ours, *theirs):
        row.pop("seconds")
    assert ours == theirs
    ours, theirs = (
        checkpoint.read(tmp_path / name / "checkpoint.safetensors").tensors
        for name in ("parts", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_have_the_losses_of_one(labelled, tmp_path):
    options = {"batch": 4, "epochs": 5, "precision": "float64", "micro_batch": 1}
    train(labelled(optimiser=options, run={"folder": str(tmp_path / "one")}))
    two = labelled(optimiser=options, run={"folder": str(tmp_path / "two")})
    (tmp_path / "train.toml").write_text(two.to_toml())
    code = "import sys, torch; torch.set_num_threads(1)\n"
    code += "from ase_nextham.training.config import TrainConfig\n"
    code += "from ase_nextham.training.run import train\n"
    code += "assert train(TrainConfig.read(sys.argv[1])).finished\n"
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["program.py", "train.toml"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    for name in ("steps.csv", "validation.csv"):
        both = [rows(tmp_path / folder / name) for folder in ("one", "two")]
        assert len(both[0]) > 4
        for column in ("step", "loss", "error_percent"):
            assert_allclose(*([row[column] for row in some] for some in both), rtol=1e-8)


def test_a_model_is_trained_on(labelled, tmp_path):
    first = train(labelled(optimiser={"epochs": 20}))
    tables = {"model": {"start": str(first.model)}, "run": {"folder": str(tmp_path / "second")}}
    on = train(labelled(**tables, optimiser={"learning_rate": 1e-7, "first": 0, "epochs": 1}))
    begun = rows(on.folder / "validation.csv")[0]
    assert_allclose(begun["error_percent"], 100 * first.best.error, rtol=1e-5)


def test_a_model_with_another_head_is_refused(labelled, config, tmp_path):
    pairs = config()
    training, _ = chosen_samples(pairs.data, 1)
    start = model_to_train(pairs, training)
    save_model(tmp_path / "pairs", start.info, start.module)
    with pytest.raises(ValueError, match="with head = 'pairs', but .* head = 'density'"):
        train(labelled(model={"start": str(tmp_path / "pairs")}))


def test_processes_share_the_making_of_labels(labelled, monkeypatch):
    settings = labelled()
    training, _ = chosen_samples(settings.data, 1)
    asked = []

    def labels(dataset, expansion, **options):
        asked.append((dataset.names, options.get("threads")))

    monkeypatch.setattr("ase_nextham.training.density_task.labels", labels)
    monkeypatch.setattr(Processes, "wait", lambda self: asked.append("wait"))
    group = Processes(1, 2, torch.device("cpu"))
    model = model_to_train(settings, training)
    DensityTask(settings, model, torch.float32, group).examples(training, learned=True)
    assert asked[0][0] == ("H_1", "Si_1")
    assert asked[1:] == ["wait", (training.names, None)]


def test_what_is_learned_of_a_real_crystal_says_its_hamiltonian(shared_data, tmp_path, capsys):
    files = ["--pseudo-dir", shared_data / "pseudo", "--orbital-dir", shared_data / "orbital"]
    mini = shared_data / "abacus"
    command = ["dataset", "build", *(mini / "mini" / f"MgO_{k}.tar.xz" for k in (0, 1, 3))]
    command += ["-o", tmp_path / "set", "--nkpts", "0", "--densities", mini / "mini_density"]
    assert main([str(word) for word in command + files]) == 0
    (tmp_path / "train.toml").write_text(f"""
[data]
path = "set"
validation = ["MgO_3"]

[model]
head = "density"

[density]
members = 1
network = "linear"
pseudo_dir = "{shared_data / "pseudo"}"
orbital_dir = "{shared_data / "orbital"}"

[optimiser]
epochs = 1

[run]
folder = "run"
progress = false
device = "cpu"
""")
    assert main(["train", str(tmp_path / "train.toml")]) == 0
    assert "best validation: error of the density " in capsys.readouterr().out
    data = Dataset(tmp_path / "set", ["MgO_3"])[0].data
    folders = {f"{kind}_dir": shared_data / kind for kind in ("pseudo", "orbital")}
    dh = load_model(tmp_path / "run" / "model", **folders).predict(data)

    def gauge_mae(h) -> float:
        moved, _ = aligned(h, data.hamiltonian, data.overlap)
        return float(np.abs((moved - data.hamiltonian).data).mean())

    assert gauge_mae(data.h0 + dh) < 0.05 * gauge_mae(data.h0)


def test_samples_that_teach_nothing_are_refused_by_name():
    expansion = Expansion("density", {"H": FUNCTIONS})
    label = made_up("H_0", ("H", "H"), expansion)
    own = DensityArchitecture(FUNCTIONS.counts, len(ELEMENT_SCALARS), "linear")
    with pytest.raises(ValueError, match="H_0: the density does not change"):
        DensityExample.of(replace(label, norm=0.0), "H_0", own)
    with pytest.raises(ValueError, match="H_0: induced has shape"):
        DensityExample.of(label, "H_0", replace(own, counts=(2,)))
