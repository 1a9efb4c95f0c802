"""Two processes learn what one does."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ase_nextham.training.distributed import Processes
from ase_nextham.training.run import train

CODE = """
import sys, torch
torch.set_num_threads(1)
from ase_nextham.training.config import TrainConfig
from ase_nextham.training.run import train
result = train(TrainConfig.read(sys.argv[1]))
assert result.finished
"""


def table(path, *names) -> np.ndarray:
    with path.open(newline="") as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def test_two_processes_have_the_losses_of_one(config, tmp_path):
    options = {"batch": 4, "epochs": 5, "precision": "float64", "micro_batch": 1}
    one = train(config(optimiser=options, run={"folder": str(tmp_path / "one")}))
    two = config(optimiser=options, run={"folder": str(tmp_path / "two")})
    (tmp_path / "train.toml").write_text(two.to_toml())
    (tmp_path / "program.py").write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["program.py", "train.toml"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    columns = ("step", "gradient", "loss", "trace", "mae_meV")
    steps = [table(tmp_path / name / "steps.csv", *columns) for name in ("two", "one")]
    assert len(steps[1]) == one.steps == 5
    assert_allclose(*steps, rtol=1e-8)
    errors = [
        table(tmp_path / name / "validation.csv", "loss", "mae_meV", "h0_mae_meV")
        for name in ("two", "one")
    ]
    assert_allclose(*errors, rtol=1e-8)
    assert (tmp_path / "two" / "model" / "model.json").is_file()


def test_work_is_shared_evenly():
    parts = [Processes(rank, 3, torch.device("cpu")).share(6) for rank in range(3)]
    assert [list(part) for part in parts] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="batch = 4 cannot be shared among 3 processes"):
        Processes(0, 3, torch.device("cpu")).share(4)
