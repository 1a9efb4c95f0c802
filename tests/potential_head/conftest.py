"""An engine with few orbitals and a coarse grid, and a structure without any symmetry."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase import Atoms

from ase_nextham.data import LCAOData
from ase_nextham.expansion import RadialFunctions, even_tempered
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.model import ModelInfo, bundle
from ase_nextham.model.density_network import DensityEnsemble
from ase_nextham.potential_head.descriptor import ELEMENT_SCALARS
from ase_nextham.potential_head.predict import DensityModel


@pytest.fixture(scope="session")
def engine(root, abacus_folders, tmp_path_factory) -> Callable[..., NativeH0]:
    """Function that makes an engine for H and O."""
    folder = tmp_path_factory.mktemp("elements")
    with tarfile.open(root / "tests" / "data" / "native" / "pseudo.tar.xz") as archive:
        archive.extractall(folder, filter="data")

    def engine(**options) -> NativeH0:
        defaults = {
            "orbitals": {"H": "H_1s1p.orb", "O": "O_1s1p.orb"},
            "ecutwfc": 20,
            "threads": 1,
            "position": False,
            "nspin": 1,
        }
        return NativeH0(folder / "pseudo", abacus_folders / "orbital", **(defaults | options))

    return engine


@pytest.fixture
def radical() -> Atoms:
    """OH in a skewed cell, atoms partly outside of it; each sees images of the other."""
    return Atoms(
        "OH",
        [[0.1, -0.2, 0.05], [0.65, 0.4, 0.6]],
        cell=[[4.4, 0.3, -0.2], [0.5, 4.7, 0.4], [-0.3, 0.6, 5.1]],
        pbc=True,
    )


@pytest.fixture(scope="session")
def random_network() -> Callable[..., tuple[ModelInfo, DensityEnsemble]]:
    """Function of data and the number of members: a model of its elements with random weights."""

    def random_network(data: LCAOData, members: int = 3, **known):
        functions = RadialFunctions.coulomb(even_tempered((3, 2), 0.3, 2.0))
        described = {
            "network": "density",
            "shells": dict(data.basis.shells),
            "orbitals": dict(data.basis.fingerprint),
            "windows": (0, 4),
            "cutoff": 4.0,
            "hyperparameters": {
                "functions": bundle.functions_entry(functions),
                "scalars": len(ELEMENT_SCALARS),
                "network": "two-layer",
                "hidden": "4x0e+2x1o",
                "members": members,
            },
        }
        info = ModelInfo(**(described | known))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(members)
            module = bundle.build(info).double()
        for weight in module.parameters():  # about as large as what is learned
            weight.data.mul_(0.3)
        return info, module

    return random_network


@pytest.fixture
def random_model(engine, random_network) -> Callable[..., DensityModel]:
    """Function of data, the number of members and the engine's options: a model at work."""

    def random_model(data: LCAOData, members: int = 3, known=None, **options) -> DensityModel:
        return DensityModel(*random_network(data, members, **(known or {})), engine(**options))

    return random_model


@pytest.fixture
def files(engine, tmp_path) -> dict[str, Path]:
    """Folders of pseudopotentials and orbitals, one file for each element."""
    own = engine()
    (tmp_path / "orbital").mkdir()
    for name in own.orbitals.values():
        (tmp_path / "orbital" / name).symlink_to(f"{own.orbital_dir}/{name}")
    return {"pseudo_dir": own.pseudo_dir, "orbital_dir": tmp_path / "orbital"}
