"""The dimensions of ABACUS's grid."""

from __future__ import annotations

import re
import tarfile

import numpy as np
import pytest

from ase_nextham.h0.native.fftgrid import fft_grid


def test_a_grid_holds_every_plane_wave_and_has_small_primes():
    rng = np.random.default_rng(5)
    for _ in range(20):
        cell = np.eye(3) * rng.uniform(5, 12, 3) + rng.normal(size=(3, 3))
        ecut = rng.uniform(5, 12)
        reciprocal = 2 * np.pi * np.linalg.inv(cell).T
        reach = np.ceil(np.sqrt(4 * ecut) * np.linalg.norm(cell, axis=1) / (2 * np.pi)) + 1
        m = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach)), axis=-1).reshape(-1, 3)
        inside = m[((m @ reciprocal) ** 2).sum(axis=1) <= 4 * ecut]
        least = 2 * np.abs(inside).max(axis=0) + 1
        for n, smallest in zip(fft_grid(cell, ecut), least, strict=True):
            assert smallest <= n < 1.4 * smallest + 8
            assert n == 2 ** _power(n, 2) * 3 ** _power(n, 3) * 5 ** _power(n, 5)


def test_the_grids_of_reference_runs_are_reproduced(shared_data):
    archives = [
        *(shared_data / "abacus" / "mini").glob("*_1.tar.xz"),
        *(shared_data / "abacus" / "h0").glob("[HCM]*_soc_[az]*.tar.xz"),
    ]
    checked = 0
    for path in archives:
        with tarfile.open(path) as archive:
            for name in archive.getnames():
                if not re.search(r"running_(get_hs|scf)\.log$", name):
                    continue
                log = archive.extractfile(name).read().decode(errors="replace")
                stru = archive.extractfile(name.split("/OUT.")[0] + "/STRU").read().decode()
                found = re.search(r"fft grid for charge/potential = \[ (\d+), (\d+), (\d+) \]", log)
                expected = tuple(int(n) for n in found.groups())
                assert fft_grid(_cell(stru), 100.0) == expected, name
                checked += 1
    assert checked >= 15


def test_a_flat_cell_is_refused():
    with pytest.raises(ValueError, match="spans no volume"):
        fft_grid(np.diag([5.0, 5.0, 0.0]), 100)


def test_a_cutoff_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        fft_grid(np.eye(3) * 5, 0)


def _power(n: int, prime: int) -> int:
    return 0 if n % prime else 1 + _power(n // prime, prime)


def _cell(stru: str) -> np.ndarray:
    words = stru.split("LATTICE_CONSTANT")[1].split()
    start = words.index("LATTICE_VECTORS") + 1
    return float(words[0]) * np.array(words[start : start + 9], float).reshape(3, 3)
