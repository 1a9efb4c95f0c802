"""Files and structures that the tests of the engine share."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from ase import Atoms

from ase_nextham.h0.native.engine import NativeH0


@pytest.fixture(scope="session")
def pseudo_dir(root, tmp_path_factory) -> Path:
    """Folder with the pseudopotentials of H and O; not to be changed."""
    folder = tmp_path_factory.mktemp("native")
    with tarfile.open(root / "tests" / "data" / "native" / "pseudo.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "pseudo"


@pytest.fixture(scope="session")
def orbital_dir(abacus_folders) -> Path:
    """Folder with orbitals of H and O; not to be changed."""
    return abacus_folders / "orbital"


@pytest.fixture(scope="session")
def small_orbitals() -> dict[str, str]:
    """Files with few orbitals, for tests of laws; they reach as far as any others."""
    return {"H": "H_1s1p.orb", "O": "O_1s1p.orb"}


@pytest.fixture(scope="session")
def native(pseudo_dir, orbital_dir, small_orbitals):
    """Function that makes a backend, with a coarse grid and few orbitals unless told."""

    def native(**options) -> NativeH0:
        defaults = {"orbitals": small_orbitals, "ecutwfc": 20, "threads": 1}
        return NativeH0(pseudo_dir, orbital_dir, **(defaults | options))

    return native


@pytest.fixture
def radical() -> Atoms:
    """OH in a skewed cell, atoms partly outside of it; each sees images of the other."""
    return Atoms(
        "OH",
        [[0.1, -0.2, 0.05], [0.65, 0.4, 0.6]],
        cell=[[4.4, 0.3, -0.2], [0.5, 4.7, 0.4], [-0.3, 0.6, 5.1]],
        pbc=True,
    )
