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
