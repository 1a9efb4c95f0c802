"""A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ase_nextham.training import checkpoint, logs
from ase_nextham.training.logs import Log, Table
from ase_nextham.training.run import train


def curve(folder) -> np.ndarray:
    """Step, learning rate, gradient, loss and MAE of every step."""
    with (folder / "steps.csv").open(newline="") as file:
        names = ("step", "learning_rate", "gradient", "loss", "mae_meV")
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def best(folder) -> list[str]:
    with (folder / "validation.csv").open(newline="") as file:
        return [row["mae_meV"] for row in csv.DictReader(file)]


def end_after(folder, lines: int) -> threading.Thread:
    """A thread that sends SIGTERM to this process when so many steps are done."""

    def end():
        path = folder / "steps.csv"
        while not path.is_file() or len(path.read_text().splitlines()) <= lines:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    return thread


@pytest.mark.parametrize("experts", ["together", "one by one"])
def test_a_run_ended_by_sigterm_goes_on_with_the_same_losses(config, tmp_path, experts):
    options = {"experts": experts, "epochs": 5, "batch": 2, "average": 0.9}
    whole = train(config(optimiser=options, run={"folder": str(tmp_path / "whole")}))
    settings = config(optimiser=options, run={"folder": str(tmp_path / "parts")})
    # at random steps, not so late that the run ends before the signal comes
    stops = np.random.default_rng(0).integers(1, int(0.7 * whole.steps), 2)
    for stop in sorted(stops):
        thread = end_after(tmp_path / "parts", stop)
        result = train(settings)
        thread.join()
        assert not result.finished
        assert stop <= result.step < whole.steps
    result = train(settings)
    assert result.finished
    assert_allclose(curve(tmp_path / "parts"), curve(tmp_path / "whole"), rtol=1e-6)
    assert best(tmp_path / "parts") == best(tmp_path / "whole")
    ours, theirs = (
        checkpoint.read(tmp_path / name / "checkpoint.safetensors").tensors
        for name in ("parts", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(config, tmp_path):
    options = {"epochs": 100, "batch": 2}
    run = {"folder": str(tmp_path / "killed"), "checkpoint_minutes": 1e-9}
    killed = config(optimiser=options, run=run)
    (tmp_path / "train.toml").write_text(killed.to_toml())
    code = "import sys; from ase_nextham.training.config import TrainConfig; "
    code += "from ase_nextham.training.run import train; train(TrainConfig.read(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "train.toml"])
    log = tmp_path / "killed" / "steps.csv"
    while not log.is_file() or len(log.read_text().splitlines()) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()  # nothing can be saved after this
    process.wait()
    done = checkpoint.read(tmp_path / "killed" / "checkpoint.safetensors").values["step"]
    assert 6 <= done < 200
    whole = config(optimiser=options, run={"folder": str(tmp_path / "whole")})
    for folder, settings in (("killed", killed), ("whole", whole)):
        thread = end_after(tmp_path / folder, done + 3)
        train(settings)
        thread.join()
    curves = [curve(tmp_path / folder) for folder in ("killed", "whole")]
    common = min(map(len, curves))
    assert common > done
    assert_allclose(curves[0][:common], curves[1][:common], rtol=1e-6)


def test_a_finished_run_is_not_begun_again(config):
    first = train(config())
    before = curve(first.folder)
    again = train(config())
    assert again.finished
    assert again.best == first.best
    assert_allclose(curve(first.folder), before)


def test_a_run_that_was_begun_before_a_key_was_known_goes_on(config):
    settings = config()
    first = train(settings)
    path = first.folder / "checkpoint.safetensors"
    saved = checkpoint.read(path)
    older = {table: dict(keys) for table, keys in saved.values["config"].items()}
    del older["model"]["head"], older["optimiser"]["nonfinite"]
    checkpoint.write(path, replace(saved, values={**saved.values, "config": older}))
    assert train(settings).finished
    older["model"]["layers"] = 3
    checkpoint.write(path, replace(saved, values={**saved.values, "config": older}))
    with pytest.raises(ValueError, match=r"begun with \[model\] layers = 3, now it is 1"):
        train(settings)


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "x.csv"
    table = Table(path, ("step", "loss"), 0)
    for step in (1, 2, 3):
        table.add({"step": step, "loss": 0.5})
    table.close()
    with path.open("a") as file:
        file.write("4")  # cut off
    table = Table(path, ("step", "loss"), 2)
    table.add({"step": 3, "loss": 0.25})
    table.close()
    assert path.read_text() == "step,loss\n1,0.5\n2,0.5\n3,0.25\n"


def test_tensorboard_keeps_what_was_done_before_the_checkpoint(tmp_path, monkeypatch):
    shown = []

    class Board:
        """TensorBoard does not show what was written of the step ``purge_step`` and later ones."""

        def __init__(self, folder, purge_step):
            shown[:] = [step for step in shown if step < purge_step]

        def add_scalar(self, name, value, step):
            shown.append(step)

        def close(self):
            pass

    monkeypatch.setattr(logs, "tensorboard_writer", lambda: Board)
    for done, last in ((0, 5), (3, 6)):  # cut off at 5 steps, of which 3 are in the checkpoint
        log = Log(tmp_path, done, 6, progress=False, tensorboard=True)
        for step in range(done + 1, last + 1):
            log.step({"step": step, "loss": 0.5})
        log.close()
    assert shown == [1, 2, 3, 4, 5, 6]
