"""Statistics of a data set: the error of H(0), counted element by element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ase_nextham.comparison import THRESHOLD
from ase_nextham.matrix import aligned
from ase_nextham.testing import random_lcao
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source
from ase_nextham.training.dataset_statistics import describe, statistics


def dataset_of(tmp_path, **named) -> Dataset:
    sources = [Source(name, lambda data=data: data) for name, data in named.items()]
    assert not build(sources, tmp_path / "set", nkpts=0).failed
    return Dataset(tmp_path / "set")


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_the_total_is_the_mean_over_the_elements_that_are_there(tmp_path, spin):
    data = random_lcao(0, spin=spin)
    found = statistics(dataset_of(tmp_path, GaAs=data))
    hamiltonian, _ = aligned(data.hamiltonian, data.h0, data.overlap)
    error = np.abs((hamiltonian - data.h0).data)[np.abs(hamiltonian.data) > THRESHOLD]
    assert found.total.count == len(error)
    assert found.total.mean == pytest.approx(error.mean(), rel=1e-12)
    assert found.total.largest == pytest.approx(error.max(), rel=1e-12)


def test_every_element_is_in_one_species_or_pair_and_in_one_range(tmp_path):
    dataset = dataset_of(tmp_path, a=random_lcao(0, "GaAs"), b=random_lcao(1, "SiH", spin="spinor"))
    found = statistics(dataset)
    onsite_and_bonds = [*found.onsite.values(), *found.bonds.values()]
    for errors in (found.distance.values(), found.by_composition.values(), onsite_and_bonds):
        assert sum(error.count for error in errors) == found.total.count
        mean = sum(error.count * error.mean for error in errors) / found.total.count
        assert mean == pytest.approx(found.total.mean, rel=1e-12)
    assert set(found.onsite) == {"As", "Ga", "H", "Si"}
    assert set(found.bonds) == {"As-As", "As-Ga", "Ga-Ga", "H-H", "H-Si", "Si-Si"}
    assert found.elements == {"As": 1, "Ga": 1, "H": 1, "Si": 1}
    assert found.spins == {("spinor", "spinor"): 1, ("unpolarised", "unpolarised"): 1}


def test_only_elements_of_a_pair_that_differ_show_there(tmp_path):
    data = random_lcao(0, "GaAs")
    hamiltonian = data.h0
    values = hamiltonian.data.copy()
    for name, _, p, elements in hamiltonian.block_groups():
        onsite = (data.pairs.i[p] == data.pairs.j[p]) & (data.pairs.R[p] == 0).all(axis=1)
        if name == "Ga" and onsite.any():
            # without trace, so that the energy zero stays where it is
            block = elements[onsite][0]
            values[block[0, 1]] += 0.25
            values[block[1, 0]] += 0.25
    changed = replace(data, hamiltonian=replace(hamiltonian, data=values))
    found = statistics(dataset_of(tmp_path, GaAs=changed))
    assert found.mu[0] == pytest.approx(0, abs=1e-12)
    assert found.onsite["Ga"].largest == pytest.approx(0.25)
    assert found.onsite["As"].largest < 1e-12
    assert found.distance["on site"].largest == pytest.approx(0.25)
    assert max(error.largest for error in found.bonds.values()) < 1e-12


def test_the_mini_set_has_the_errors_that_were_measured_before(shared_data, tmp_path):
    from functools import partial

    from ase_nextham.converters import guess_format, read
    from ase_nextham.training.dataset_sources import from_paths

    reader = partial(read, pseudo_dir=shared_data / "pseudo", orbital_dir=shared_data / "orbital")
    names = ("NaCl_0", "Si_2")
    paths = [shared_data / "abacus" / "mini" / f"{name}.tar.xz" for name in names]
    sources = from_paths(paths, reader, lambda path: (path / "scf").is_dir() and guess_format(path))
    assert not build(sources, tmp_path / "set", nkpts=0).failed
    found = statistics(Dataset(tmp_path / "set"))
    # meV; another program found 1.7 and 1.9 on average over four deformations
    assert 1e3 * found.by_composition["NaCl"].mean == pytest.approx(1.7, abs=0.1)
    assert 1e3 * found.by_composition["Si"].mean == pytest.approx(1.9, abs=0.1)


def test_the_tables_name_everything_that_was_found(tmp_path):
    dataset = dataset_of(tmp_path, a=random_lcao(0, "GaAs"), b=random_lcao(1, "SiH"))
    text = describe(statistics(dataset))
    for word in ("2 of 2 structures: 2 unpolarised", "2s2p1d1f", "As-Ga", "on site", "HSi"):
        assert word in text


def test_an_empty_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="there are no samples"):
        statistics(dataset_of(tmp_path))
