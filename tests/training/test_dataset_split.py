"""Splits: seeded, complete, without leaks, and kept by name."""

from __future__ import annotations

import json
from functools import partial

import pytest

from ase_nextham.testing import random_lcao
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source
from ase_nextham.training.dataset_split import (
    composition_hold_out,
    composition_split,
    deformation_hold_out,
    random_split,
    read_split,
    write_split,
)

FORMULAS = ("GaAs", "SiH", "Si", "GaH", "AsH")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Four deformations of five compositions."""
    sources = [
        Source(f"{formula}_{n}", partial(random_lcao, 10 * k + n, formula, cutoff=1.5))
        for k, formula in enumerate(FORMULAS)
        for n in range(4)
    ]
    folder = tmp_path_factory.mktemp("split")
    assert not build(sources, folder / "set", nkpts=0).failed
    return Dataset(folder / "set")


def parts(dataset, split, key):
    return {part: {key(dataset.entries[index]) for index in some} for part, some in split.items()}


@pytest.mark.parametrize("make", [random_split, composition_split])
def test_random_splits_depend_on_the_seed_alone_and_take_every_sample_once(dataset, make):
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    split = make(dataset, shares, seed=3)
    assert sorted(index for some in split.values() for index in some) == list(range(20))
    assert {part: len(some) for part, some in split.items()} == {
        "train": 12,
        "validation": 4,
        "test": 4,
    }
    assert make(dataset, shares, seed=3) == split
    assert any(make(dataset, shares, seed=seed) != split for seed in range(3))


def test_a_random_split_does_not_depend_on_the_order_of_samples(dataset):
    turned = dataset.subset(range(len(dataset))[::-1])
    here = parts(dataset, random_split(dataset), lambda entry: entry.name)
    assert parts(turned, random_split(turned), lambda entry: entry.name) == here


def test_a_split_by_composition_shares_no_composition(dataset):
    split = composition_split(dataset, {"train": 0.8, "validation": 0.2}, seed=1)
    formulas = parts(dataset, split, lambda entry: entry.formula)
    assert not formulas["train"] & formulas["validation"]


def test_chosen_compositions_are_held_out_in_whatever_order_they_are_written(dataset):
    split = composition_hold_out(dataset, validation=["AsGa"], test=["Si2"])
    assert parts(dataset, split, lambda entry: entry.structure[:-2]) == {
        "train": {"SiH", "GaH", "AsH"},
        "validation": {"GaAs"},
        "test": {"Si"},
    }
    with pytest.raises(ValueError, match="holds no GaN; it holds"):
        composition_hold_out(dataset, validation=["GaN"])


def test_deformations_are_held_out_by_their_number(dataset):
    split = deformation_hold_out(dataset, validation=[3])
    assert parts(dataset, split, lambda entry: int(entry.structure[-1])) == {
        "train": {0, 1, 2},
        "validation": {3},
    }
    with pytest.raises(ValueError, match="the part 'test' of the split would be empty"):
        deformation_hold_out(dataset, test=[7])


def test_a_structure_with_and_without_spin_stays_in_one_part(tmp_path):
    class Spinors:
        def compute(self, atoms):
            return next(
                data
                for data in (
                    random_lcao(seed, "Si", spin="spinor", cutoff=1.5) for seed in range(6)
                )
                if (data.atoms.positions == atoms.positions).all()
            )

    sources = [Source(f"Si_{n}", partial(random_lcao, n, "Si", cutoff=1.5)) for n in range(6)]
    for backend in (None, Spinors()):
        assert not build(sources, tmp_path / "set", spinor_h0=backend, nkpts=0).failed
    dataset = Dataset(tmp_path / "set")
    assert len(dataset) == 12
    split = random_split(dataset, {"train": 0.5, "validation": 0.5})
    structures = parts(dataset, split, lambda entry: entry.structure)
    assert not structures["train"] & structures["validation"]
    assert {len(some) for some in split.values()} == {6}
    assert deformation_hold_out(dataset, validation=[5])["validation"] == [10, 11]


def test_a_split_on_disk_outlives_samples_that_are_added(dataset, tmp_path):
    some = dataset.subset(range(5, 20))
    split = random_split(some)
    write_split(tmp_path / "split.json", some, split)
    again = read_split(tmp_path / "split.json", dataset)
    assert again == {part: [index + 5 for index in indices] for part, indices in split.items()}


def test_a_split_of_other_samples_is_refused(dataset, tmp_path):
    write_split(tmp_path / "split.json", dataset, random_split(dataset))
    with pytest.raises(ValueError, match="split.json: the sample '.*' is not in"):
        read_split(tmp_path / "split.json", dataset.subset([0]))
    content = json.loads((tmp_path / "split.json").read_text())
    content["parts"]["test"].append(content["parts"]["train"][0])
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is in train and test"):
        read_split(tmp_path / "split.json", dataset)
    (tmp_path / "split.json").write_text("[]")
    with pytest.raises(ValueError, match="not a split of a data set"):
        read_split(tmp_path / "split.json", dataset)


def test_shares_that_do_not_sum_to_one_are_refused(dataset):
    with pytest.raises(ValueError, match="must sum to 1"):
        random_split(dataset, {"train": 0.8, "test": 0.1})
