"""From every format to every other and back: the same bands, atoms, order, cell and R."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.converters import FORMATS, read, registry, write
from ase_nextham.testing import random_lcao

# formats for reading only, and those in which the orbitals are not those of the source
NOT_LOSSLESS = {"hamgnn", "wannier90"}
LOSSLESS = [name for name in FORMATS if name not in NOT_LOSSLESS]
SPINS = ["unpolarised", "collinear", "spinor"]
ENERGY = 1e-8  # eV
K = (0.137, -0.291, 0.413)


@cache
def sample(spin: str):
    """f shells, an order that formats like to regroup, atoms outside the cell."""
    data = random_lcao(5, "GaAsGaAs", spin=spin, magnetic=True)
    shifts = np.random.default_rng(6).integers(-2, 3, (4, 3))
    return replace(data.translated(shifts), fermi_level=-0.75)


def held_by(*formats: str) -> set[str]:
    modules = [registry.writable(name) for name in formats]
    return set.intersection(*(set(module.HOLDS) for module in modules))


def part(data, names: set[str]):
    """The operators that all of the formats have a place for."""
    return replace(data, **dict.fromkeys({"h0", "hamiltonian", "position"} - names))


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize(("first", "second"), permutations(LOSSLESS, 2))
def test_data_survive_two_formats(tmp_path, energies, first, second, spin):
    if "sisl" in (first, second):
        pytest.importorskip("sisl", reason="sisl is not installed")
    data = part(sample(spin), held_by(first, second))
    endings = [(registry.writable(name).SUFFIXES or ("",))[0] for name in (first, second)]
    a, b = tmp_path / f"a{endings[0]}", tmp_path / f"b{endings[1]}"
    write(a, data, format=first)
    write(b, read(a), format=second)
    found = read(b)
    assert found.symbols == data.symbols
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-11)  # Angstrom
    assert_allclose(found.atoms.cell.array, data.atoms.cell.array, atol=1e-11)
    assert_array_equal(found.atoms.numbers, data.atoms.numbers)
    for name in ("overlap", "h0", "hamiltonian"):
        expected, matrix = getattr(data, name), getattr(found, name)
        assert (matrix is None) == (expected is None)
        if expected is not None:
            assert matrix.spin == expected.spin
            # the difference has the union of the pairs: an R that went astray would show
            assert np.abs((matrix - expected).data).max() < ENERGY
    for matrix, expected in zip(found.position or (), data.position or (), strict=True):
        assert np.abs((matrix - expected).data).max() < 1e-8  # Angstrom
    assert np.abs(energies(found, K) - energies(data, K)).max() < ENERGY
    assert found.fermi_level == data.fermi_level
    assert found.basis.fingerprint == data.basis.fingerprint
