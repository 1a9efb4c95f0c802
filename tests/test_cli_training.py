"""Data sets from the command line."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read as read_atoms
from ase.io import write as write_atoms

from ase_nextham import hdf5
from ase_nextham.cli import main
from ase_nextham.testing import random_lcao


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for seed, symbols in enumerate(["GaAs", "SiH"]):
        hdf5.write(tmp_path / "runs" / f"{symbols}.h5", random_lcao(seed, symbols))
    return "runs"


def test_a_data_set_is_built_added_to_and_described(sources, tmp_path, capsys):
    command = ["dataset", "build", sources, "-o", "set", "--nkpts", "2"]
    assert main(command) == 0
    assert "set: 2 samples done, 0 there already, 0 failed" in capsys.readouterr().out
    hdf5.write(tmp_path / "runs" / "Si.h5", random_lcao(7, "Si"))
    assert main(command) == 0
    assert "set: 1 samples done, 2 there already, 0 failed" in capsys.readouterr().out
    assert main(["dataset", "info", "set"]) == 0
    text = capsys.readouterr().out
    for words in ("3 of 3 structures", "k-points     2 to 2", "As-Ga", "|H - H(0)| in meV"):
        assert words in text


def test_what_fails_is_listed(sources, tmp_path, capsys):
    hdf5.write(tmp_path / "runs" / "bad.h5", random_lcao(3, "As"))
    path = tmp_path / "runs" / "bad.h5"
    path.write_bytes(path.read_bytes()[:5000])
    assert main(["dataset", "build", sources, "-o", "set"]) == 1
    output = capsys.readouterr()
    assert "2 samples done, 0 there already, 1 failed" in output.out
    assert "bad" in output.err


def test_crystals_are_displaced_and_strained(tmp_path, monkeypatch, capsys):
    pytest.importorskip("phonopy", reason="phonopy is not installed")
    monkeypatch.chdir(tmp_path)
    write_atoms("Si.cif", bulk("Si"))
    command = "dataset perturb Si.cif -n 3 -o out --strain 0.01 --seed 4"
    assert main(command.split()) == 0
    assert "out: 3 structures of 2 atoms" in capsys.readouterr().out
    cells = [read_atoms(path).cell.array for path in sorted((tmp_path / "out").iterdir())]
    assert len(cells) == 3
    assert np.abs(cells[0] - cells[1]).max() > 1e-4  # Angstrom


def test_a_folder_without_structures_is_told(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    command = ["dataset", "label", str(tmp_path / "empty"), "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "there are no structures in this folder" in capsys.readouterr().err


CONFIG = """
[data]
path = "set"
validation = ["SiH"]

[model]
windows = [0, 4]
features = "4x0e+2x1o+2x2e"
layers = 1
heads = 2
gaussians = 8
invariants = 8

[optimiser]
epochs = 2
warm_up = 1

[run]
folder = "run"
progress = false
device = "cpu"
"""


def test_a_model_is_trained_evaluated_and_predicts(sources, tmp_path, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    hdf5.write(tmp_path / "runs" / "AsSi.h5", random_lcao(5, "AsSi"))
    hdf5.write(tmp_path / "runs" / "AsH.h5", random_lcao(6, "AsH"))
    assert main(["dataset", "build", sources, "-o", "set", "--nkpts", "1"]) == 0
    (tmp_path / "train.toml").write_text(CONFIG)
    capsys.readouterr()
    assert main(["train", "train.toml"]) == 0
    text = capsys.readouterr().out
    assert "finished" in text
    assert "best validation: gauge MAE" in text
    (path,) = (line.removesuffix(": model") for line in text.splitlines() if "model" in line)
    assert main(["evaluate", path, "set", "--names", "SiH", "-o", "report.json"]) == 0
    text = capsys.readouterr().out
    for words in ("1 structures of set", "gauge MAE of H", "ghost states", "report.json: report"):
        assert words in text
    command = ["predict", "runs/SiH.h5", "--h0", "runs/SiH.h5", "--model", path, "-o", "out.h5"]
    assert main(command) == 0
    assert hdf5.read("out.h5").hamiltonian is not None


def test_the_baseline_is_evaluated_without_a_model(sources, capsys):
    main(["dataset", "build", sources, "-o", "set", "--nkpts", "0"])
    assert main(["evaluate", "h0", "set", "--density", "1"]) == 0
    assert "2 structures of set; model -" in capsys.readouterr().out


def test_a_mistyped_key_is_named_with_the_nearest(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text(CONFIG.replace("epochs", "epoch"))
    assert main(["train", "train.toml"]) == 1
    assert "did you mean 'epochs'" in capsys.readouterr().err
