"""The loop: what it learns, what it writes, and what it does when something goes wrong."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from numpy.testing import assert_allclose

from ase_nextham import model
from ase_nextham.matrix import aligned
from ase_nextham.model.layers import irrep_name
from ase_nextham.training import checkpoint, figures, run
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.distributed import Processes, chosen_device
from ase_nextham.training.loop import Trainer
from ase_nextham.training.models import new_model, save_model
from ase_nextham.training.run import chosen_samples, train
from ase_nextham.training.schedule import LearningRate, Sampler

ALONE = Processes(0, 1, torch.device("cpu"))


def trainer(config, *, begin: bool = True) -> Trainer:
    training, validation = chosen_samples(config.data, config.run.seed)
    made = Trainer(config, new_model(config.model, training, 1), training, validation, ALONE)
    if begin:
        made.begin(scales=True)
    return made


def rows(path) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [
            {k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)
        ]


def gauge_mae(h, data) -> float:
    """In eV, over elements that are there."""
    moved, _ = aligned(h, data.hamiltonian, data.overlap)
    present = np.abs(data.hamiltonian.data) > 1.36e-11
    return np.abs((moved - data.hamiltonian).data[present]).mean()


# --- what is learned -----------------------------------------------------------------------------


def test_a_new_model_says_h0(config):
    found = trainer(config()).validate()
    assert_allclose(found.ratio, 1, rtol=1e-6)
    assert found.h0_mae > 1e-4  # eV


def test_one_structure_is_learned_by_heart(config):
    settings = config(
        data={"train": ["H_0"], "validation": ["H_1"]},
        model={"windows": [0, 4], "features": "8x0e+4x1o+4x2e", "tracegrad": False},
        loss={"norm": "absolute"},
        optimiser={"epochs": 200, "learning_rate": 2e-2, "batch": 1, "warm_up": 10, "average": 0},
        run={"validate_epochs": 200},
    )
    result = train(settings)
    learned = rows(result.folder / "steps.csv")
    assert learned[-1]["mae_meV"] < 0.01 * learned[0]["mae_meV"]


@pytest.mark.parametrize("experts", ["together", "one by one"])
def test_the_model_on_disk_has_the_errors_that_were_reported(config, experts):
    settings = config(optimiser={"experts": experts, "precision": "float64"})
    result = train(settings)
    assert result.finished
    assert result.steps == (12 if experts == "one by one" else 6)
    assert abs(result.best.ratio - 1) > 1e-6  # weights have changed
    predictor = model.load(result.model)
    errors = []
    for sample in Dataset(settings.data.path, ["H_2", "H_3"]):
        dh = predictor.predict(sample.data)
        errors.append(gauge_mae(sample.data.h0 + dh, sample.data))
    assert_allclose(np.mean(errors), result.best.mae, rtol=1e-8)
    last = rows(result.folder / "validation.csv")
    assert_allclose(min(row["mae_meV"] for row in last), 1e3 * result.best.mae, rtol=1e-7)
    assert predictor.info.elements == ("H", "Si")
    assert predictor.info.orbitals["H"].endswith("1")
    assert predictor.info.training["config"] == settings.to_dict()
    assert predictor.info.training["validation"]["samples"] == 2


def test_a_run_leaves_a_picture_of_itself_now_and_then_and_at_its_end(config, monkeypatch):
    drawn = []

    def learning_curve(folder):
        drawn.append(int(rows(folder / "validation.csv")[-1]["step"]))
        return draw(folder)

    draw = figures.learning_curve
    monkeypatch.setattr(figures, "learning_curve", learning_curve)
    monkeypatch.setattr(run, "_CURVE_SECONDS", 0.0)
    result = train(config(optimiser={"epochs": 3, "batch": 2}))
    assert drawn == [2, 6]  # not again at once
    picture = imread(result.folder / "learning_curve.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05  # not empty
    train(config(optimiser={"epochs": 3, "batch": 2}))  # was finished
    assert len(drawn) == 2


def test_experts_one_by_one_leave_each_other_alone(config):
    settings = config(optimiser={"experts": "one by one", "epochs": 1})
    made = trainer(settings)
    before = [{n: p.clone() for n, p in e.named_parameters()} for e in made.module.experts]

    def changed(k):
        return any(
            not torch.equal(p, before[k][n]) for n, p in made.module.experts[k].named_parameters()
        )

    for _ in range(made.stage_steps):
        made.advance()
    assert [changed(0), changed(1)] == [True, False]
    made.advance()
    assert [changed(0), changed(1)] == [True, True]
    made.loader.close()


def test_results_of_networks_are_of_the_size_of_one(config):
    made = trainer(config())
    expert, squares, count = made.module.experts[1], 0.0, 0.0
    for example in made.examples:
        graph = example.graph
        weight = made.module.weight(1, graph) * (graph.distance > 0)
        pairs = torch.nonzero(weight > 0).flatten()
        irreps = expert.part.to_irreps(graph.corrects.blocks(example.label, pairs))
        for irrep, x in irreps.items():
            scaled = x / expert.bond_scale.get_buffer(irrep_name(irrep))
            squares += float((weight[pairs].view(-1, 1, 1) * scaled.square()).sum())
            count += float((weight[pairs].view(-1, 1, 1) * (x != 0)).sum())
    assert 0.8 < math.sqrt(squares / count) < 1.2
    assert made.objective.unit > 0


def test_networks_that_give_h_itself_have_the_scale_of_h(config):
    scales = []
    for target in ("correction", "hamiltonian"):
        made = trainer(config(model={"target": target}))
        assert math.isfinite(made.advance()["loss"])
        made.loader.close()
        scales.append(made.module.experts[0].onsite_scale.get_buffer("0e"))
    assert (scales[1] > 2 * scales[0]).any()


def test_gradients_of_small_batches_add_up(config):
    weights = []
    for micro_batch in (0, 1):
        options = {"batch": 4, "micro_batch": micro_batch, "precision": "float64", "epochs": 2}
        made = trainer(config(optimiser=options))
        made.advance()
        made.advance()
        made.loader.close()
        weights.append(torch.cat([p.detach().flatten() for p in made.module.parameters()]))
    assert_allclose(*weights, rtol=0, atol=1e-9)


def test_mixed_precision_learns_what_single_precision_does(config):
    losses = []
    for precision in ("float32", "bfloat16"):
        made = trainer(config(optimiser={"precision": precision}))
        losses.append([made.advance()["loss"] for _ in range(6)])
        made.loader.close()
        assert all(p.dtype == torch.float32 for p in made.module.parameters())
    assert_allclose(losses[1], losses[0], rtol=0.05)  # bfloat16 has 8 bits


def test_samples_that_do_not_fit_into_memory_are_read_again(config):
    kept = trainer(config())
    made = trainer(config(data={"memory": 1e-5}))
    losses = [[t.advance()["loss"] for _ in range(4)] for t in (kept, made)]
    for t in (kept, made):
        t.loader.close()
    assert losses[0] == losses[1]
    assert kept.examples.made == 4
    assert made.examples.made > 8


# --- going on from a model -----------------------------------------------------------------------


def test_a_model_is_trained_on(config, tmp_path):
    first = train(config(optimiser={"epochs": 10}))
    options = {"model": {"start": str(first.model)}, "run": {"folder": str(tmp_path / "second")}}
    on = train(config(optimiser={"learning_rate": 1e-6, "lowest": 1e-7, "epochs": 1}, **options))
    assert_allclose(on.best.mae, first.best.mae, rtol=1e-3)
    assert model.load(on.model).info.windows == (0, 1, 4)


def test_other_orbitals_than_those_of_the_model_are_refused(config, tmp_path):
    first = train(config(optimiser={"epochs": 1}))
    found = model.load(first.model)
    others = {**found.info.orbitals, "H": "f" * 64}
    save_model(tmp_path / "other", replace(found.info, orbitals=others), found.module)
    with pytest.raises(ValueError, match="H_0: H: orbital file differs from the one the model"):
        train(config(model={"start": str(tmp_path / "other")}, run={"folder": str(tmp_path / "x")}))


def test_a_model_without_room_for_new_elements_is_refused(config, tmp_path):
    settings = config(data={"train": ["H_[01]"], "validation": ["H_[23]"]}, optimiser={"epochs": 1})
    first = train(settings)
    with pytest.raises(ValueError, match="has room for the shells"):
        train(config(model={"start": str(first.model)}, run={"folder": str(tmp_path / "x")}))


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:step .* not finite:RuntimeWarning")
def test_steps_that_are_not_finite_are_reported_and_bounded(config):
    made = trainer(
        config(
            optimiser={"learning_rate": 1e30, "warm_up": 0, "clip": 0, "nonfinite": 2, "epochs": 99}
        )
    )
    made.advance()  # finite; the weights are not useful any more
    with pytest.warns(RuntimeWarning, match=r"step \d+: the (loss|gradient) of .* is not finite"):
        made.advance()
    weights = [p.clone() for p in made.module.parameters()]
    with pytest.warns(RuntimeWarning, match="not finite"):
        made.advance()
    with pytest.raises(FloatingPointError, match="and 2 before it; use a smaller"):
        made.advance()
    assert all(torch.equal(a, b) for a, b in zip(weights, made.module.parameters(), strict=True))
    made.loader.close()


def test_a_damaged_sample_is_named(config, crystals, tmp_path):
    shutil.copytree(crystals, tmp_path / "set")
    settings = config(data={"path": str(tmp_path / "set")})
    file = tmp_path / "set" / "samples" / "Si_1.h5"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="Si_1.h5: "):
        train(settings)


def test_a_full_disk_leaves_the_last_checkpoint(config, tmp_path):
    settings = config()
    train(settings)
    saved = checkpoint.read(tmp_path / "run" / "checkpoint.safetensors")
    code = """
import resource, sys
from ase_nextham.training import checkpoint
path = sys.argv[1]
state = checkpoint.read(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as if no more fitted
checkpoint.write(path, state)
"""
    path = tmp_path / "run" / "checkpoint.safetensors"
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "could not be written; the last one is as it was" in run.stderr, run.stderr
    again = checkpoint.read(path)
    assert again.values == saved.values
    assert again.tensors.keys() == saved.tensors.keys()
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_damaged_checkpoints_are_refused(config, tmp_path):
    settings = config()
    train(settings)
    path = tmp_path / "run" / "checkpoint.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x04pickle", whole[:8] + b"{" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a checkpoint, or damaged"):
            train(settings)


def test_a_run_that_was_configured_otherwise_is_not_continued(config):
    train(config())
    with pytest.raises(ValueError, match=r"begun with \[optimiser\] batch = 2, now it is 4"):
        train(config(optimiser={"batch": 4}))


def test_samples_are_chosen_by_name(config):
    settings = config(data={"train": [], "validation": ["*_3"]})
    training, validation = chosen_samples(settings.data, 1)
    assert training.names == ("H_0", "H_1", "H_2", "Si_0", "Si_1")
    assert validation.names == ("H_3",)
    with pytest.raises(ValueError, match="no sample is named like 'X_\\*'"):
        chosen_samples(config(data={"train": ["X_*"]}).data, 1)
    with pytest.raises(ValueError, match="H_0 would be in training and in validation"):
        chosen_samples(config(data={"validation": ["H_*"]}).data, 1)


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=f"there are {torch.cuda.device_count()} CUDA devices"):
        chosen_device("cuda:99")
    with pytest.raises(ValueError, match="is not the name of a device"):
        chosen_device("warp")


def test_tensorboard_writes_its_files_or_says_what_to_install(config):
    settings = config(run={"tensorboard": True})
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ImportError, match="pip install tensorboard"):
            train(settings)
        assert not Path(settings.run.folder).exists()  # nothing was begun
    else:
        assert any((train(settings).folder / "tensorboard").iterdir())


# --- order and rate ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_every_sample_is_seen_once_an_epoch(batch):
    sampler = Sampler(5, batch, seed=3)
    seen = np.concatenate([sampler.samples(step) for step in range(5 * 4)])
    for epoch in range(len(seen) // 5):
        assert sorted(seen[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert sampler.steps(3) == round(15 / batch)


def test_kpts_are_drawn_without_repeats():
    sampler = Sampler(5, 1, seed=3)
    for step in range(20):
        kpts = sampler.kpts(step, 2, 6, 4)
        assert len(set(kpts)) == 4
        assert set(kpts) <= set(range(6))
    assert list(sampler.kpts(0, 0, 2, 5)) == [0, 1]


def test_the_learning_rate_rises_and_falls():
    rate = LearningRate(steps=110, warm_up=10, first=1e-6, highest=1e-3, lowest=1e-5)
    values = [rate(step) for step in range(111)]
    assert values[0] == 1e-6
    assert_allclose(values[10], 1e-3)
    assert_allclose(values[60], (1e-3 + 1e-5) / 2)
    assert_allclose(values[110], 1e-5)
    assert np.diff(values[:10]).min() > 0
    assert np.diff(values[10:]).max() < 0


def test_a_signal_ends_a_run_after_the_step(config):
    def end():
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    result = train(config(optimiser={"epochs": 100_000}))
    thread.join()
    assert not result.finished
    assert 0 < result.step < result.steps
    saved = checkpoint.read(result.folder / "checkpoint.safetensors")
    assert saved.values["step"] == result.step
