from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham import bands, hdf5
from ase_nextham.testing import random_lcao

KPTS = np.array([[0.1, 0.2, -0.3], [0.45, 0.0, 0.25]])


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_the_cost_of_a_cut_is_the_change_of_the_bands(spin):
    data = random_lcao(2, spin=spin, magnetic=True)
    found = bands.truncation(data, data.h0, KPTS)
    # by another way: elements of H where S has none set to zero, one pair at a time
    values = data.h0.data.copy()
    dropped = []
    for p in range(len(data.pairs)):
        S = data.overlap.data[data.overlap.offsets[p] : data.overlap.offsets[p + 1]]
        if not S.any():
            inside = slice(data.h0.offsets[p], data.h0.offsets[p + 1])
            dropped.append(np.abs(values[..., inside]).max())
            values[..., inside] = 0
    assert found.npairs == len(dropped) > 0
    assert found.largest == max(dropped)
    cut = replace(data.h0, data=values)
    change = np.abs(
        bands.eigenvalues(cut, data.overlap, KPTS) - bands.eigenvalues(data.h0, data.overlap, KPTS)
    )
    assert_allclose(found.error, change.max(), rtol=1e-9)
    filled = int(np.ceil(data.nelectrons / (1 if spin == "spinor" else 2)))
    assert_allclose(found.occupied_error, change[..., :filled].max(), rtol=1e-9)
    assert 3.2 < found.nearest < found.farthest < 1.3 * 3.2  # Angstrom, as random_lcao makes them


def test_a_hamiltonian_within_the_reach_of_the_overlap_loses_nothing():
    data = random_lcao(1)
    inside = replace(data, h0=data.overlap, hamiltonian=None)
    found = bands.truncation(inside, inside.h0, KPTS)
    assert found.largest == 0
    assert found.error == 0


def test_bands_are_compared_only_where_asked():
    data = random_lcao(1)
    found = bands.truncation(data, data.h0)
    assert found.error is None
    assert found.occupied_error is None
    assert bands.truncation(replace(data, nelectrons=None), data.h0, KPTS).occupied_error is None


def test_projectors_of_gaas_reach_further_than_its_orbitals(root):
    data = hdf5.read(root / "examples" / "data" / "GaAs_soc.h5")
    found = bands.truncation(data, data.hamiltonian, KPTS)
    assert found.farthest > 8.5  # Angstrom
    assert found.largest > 1e-3  # eV
    assert found.error > 50 * found.occupied_error > 0
