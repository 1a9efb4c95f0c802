"""A data set of random crystals, small enough to train on in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ase_nextham.data import LCAOData
from ase_nextham.testing import random_lcao
from ase_nextham.training.config import TrainConfig
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source


def crystal(seed: int, symbols: str) -> LCAOData:
    """Random matrices whose dH goes to zero where orbitals cease to overlap."""
    data = random_lcao(seed, symbols, cutoff=3.0)
    i, j, R = data.pairs.i, data.pairs.j, data.pairs.R
    positions, cell = data.atoms.positions, data.atoms.cell.array
    distance = np.linalg.norm(positions[j] - positions[i] + R @ cell, axis=1)
    weight = 0.1 * np.clip(1 - (distance / 3.0) ** 2, 0, None) ** 3
    dh = data.hamiltonian - data.h0
    weight = np.repeat(weight, np.diff(dh.offsets))
    return replace(data, hamiltonian=data.h0 + replace(dh, data=weight * dh.data))


@pytest.fixture(scope="session")
def crystals(tmp_path_factory) -> Path:
    """Folder of a data set of six samples: H_0 ... H_3 and Si_0, Si_1, with two k-points each."""
    folder = tmp_path_factory.mktemp("crystals") / "set"
    names = ["H_0", "H_1", "H_2", "H_3", "Si_0", "Si_1"]
    sources = [
        Source(name, partial(crystal, seed, name.split("_")[0])) for seed, name in enumerate(names)
    ]
    assert not build(sources, folder, nkpts=2).failed
    return folder


@pytest.fixture
def config(crystals, tmp_path) -> Callable[..., TrainConfig]:
    """Function of tables: a short run on some of the crystals, with other keys as given."""

    def config(**tables) -> TrainConfig:
        content = {
            "data": {"path": str(crystals), "train": ["*_[01]"], "validation": ["H_[23]"]},
            "model": {
                "windows": [0, 1, 4],
                "features": "4x0e+2x1o+2x2e",
                "layers": 1,
                "heads": 2,
                "gaussians": 8,
                "invariants": 8,
            },
            "optimiser": {"epochs": 3, "warm_up": 1, "learning_rate": 3e-3, "batch": 2},
            "run": {"folder": str(tmp_path / "run"), "progress": False, "device": "cpu"},
        }
        for table, values in tables.items():
            content.setdefault(table, {}).update(values)
        return TrainConfig.from_dict(content)

    return config
