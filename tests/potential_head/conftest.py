"""An engine with few orbitals and a coarse grid, and a structure without any symmetry."""

from __future__ import annotations

import tarfile
from collections.abc import Callable

import pytest
from ase import Atoms

from ase_nextham.h0.native.engine import NativeH0


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
