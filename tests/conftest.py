"""Fixtures and paths that several test files use."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import eigh

try:
    import ase_nextham.converters  # noqa: F401
except ImportError as err:
    raise pytest.UsageError(
        "ase_nextham is not installed: run `pip install -e .` in the root of the repository "
        f"(PYTHONPATH=. cannot find ase_nextham.converters): {err}"
    ) from err

# results of threaded BLAS depend on how many threads there are, in the last digits
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of ABACUS output, orbitals and pseudopotentials that is too large for the repo."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data is not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def abacus_folders(root, tmp_path_factory) -> Path:
    """Small run folders of several versions of ABACUS, ``<version>/<run>``; not to be changed."""
    folder = tmp_path_factory.mktemp("abacus")
    with tarfile.open(root / "tests" / "data" / "abacus_folders.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def copied_run(abacus_folders, tmp_path) -> Callable[..., Path]:
    """Function that copies a run, with its orbitals, to where a test may change it."""

    def copy(run: str, name: str = "run") -> Path:
        for files in ("orbital", "pseudo"):
            shutil.copytree(abacus_folders / files, tmp_path / files, dirs_exist_ok=True)
        target = tmp_path / "runs" / name
        shutil.copytree(abacus_folders / run, target)
        return target

    return copy


@pytest.fixture(scope="session")
def energies() -> Callable[..., np.ndarray]:
    """Function of LCAOData and one k-point: all eigenvalues in eV, both spins together, sorted."""

    def energies(data, k=(0.1, -0.3, 0.45)):
        matrix = data.best_hamiltonian()
        S = data.overlap.with_spin("spinor") if matrix.spin == "spinor" else data.overlap
        H = matrix.at_k(k) if matrix.spin == "collinear" else matrix.at_k(k)[None]
        return np.sort(np.concatenate([eigh(h, S.at_k(k), eigvals_only=True) for h in H]))

    return energies
