"""Which samples are for training, which for validation and testing.

A split maps words (``"train"``, ``"validation"``, ``"test"``) to indices of samples. Samples of one
structure, which may be there with and without spin, always go together. On disk a split holds
names, so that it outlives samples that are added.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np

from ase_nextham.files import read_text, write_atomically
from ase_nextham.training.dataset import Dataset, Entry, reduced_formula

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Shares of the parts by default."""

FORMAT = "ase_nextham split"
FORMAT_VERSION = 1

_DEFORMATION = re.compile(r"(.+)_(\d+)")

Split = dict[str, list[int]]


def random_split(
    dataset: Dataset, fractions: Mapping[str, float] = FRACTIONS, *, seed: int = 0
) -> Split:
    """Structures at random.

    Parameters
    ----------
    fractions
        Share of each part; they sum to 1.
    seed
        The same seed gives the same split of the same structures.

    Raises
    ------
    ValueError
        If the shares do not sum to 1, or a part would be empty.
    """
    return _random(dataset, fractions, seed, lambda entry: entry.structure)


def composition_split(
    dataset: Dataset, fractions: Mapping[str, float] = FRACTIONS, *, seed: int = 0
) -> Split:
    """Whole compositions at random: no part holds a composition of another one.

    Parameters and errors are those of :func:`random_split`; shares are of compositions.
    """
    return _random(dataset, fractions, seed, lambda entry: entry.formula)


def composition_hold_out(dataset: Dataset, **parts: Collection[str]) -> Split:
    """Chosen compositions in parts of their own, all others for training.

    >>> composition_hold_out(dataset, validation=["AlP", "SiC"])           # doctest: +SKIP

    Parameters
    ----------
    parts
        Compositions of each part, in the order of elements that chemists use or any other.

    Raises
    ------
    ValueError
        If there is no such composition, or nothing is left for training.
    """
    there = {entry.formula for entry in dataset.entries}
    part_of = {}
    for part, formulas in parts.items():
        for given in formulas:
            formula = reduced_formula(given)
            if formula not in there:
                raise ValueError(
                    f"{dataset.path} holds no {given}; it holds {', '.join(sorted(there))}"
                )
            if part_of.setdefault(formula, part) != part:
                raise ValueError(f"{given} was given for {part_of[formula]} and for {part}")
    return _assigned(dataset, ["train", *parts], lambda e: part_of.get(e.formula, "train"))


def deformation_hold_out(dataset: Dataset, **parts: Collection[int]) -> Split:
    """Some deformations of every structure in parts of their own, all others for training.

    >>> deformation_hold_out(dataset, validation=[3])                      # doctest: +SKIP

    Parameters
    ----------
    parts
        Numbers of the deformations of each part: N of structures named ``X_N``, as ``GaAs_3``.

    Raises
    ------
    ValueError
        If a structure is not named like that, or a part would be empty.
    """
    part_of = {}
    for part, numbers in parts.items():
        for number in numbers:
            if part_of.setdefault(number, part) != part:
                raise ValueError(f"{number} was given for {part_of[number]} and for {part}")

    def part(entry: Entry) -> str:
        found = _DEFORMATION.fullmatch(entry.structure)
        if found is None:
            raise ValueError(
                f"{dataset.path}: {entry.structure} is not named like X_0, X_1, ..., so that it is "
                "not known which deformation it is; use another split"
            )
        return part_of.get(int(found[2]), "train")

    return _assigned(dataset, ["train", *parts], part)


def write_split(path: str | os.PathLike, dataset: Dataset, split: Mapping[str, list[int]]) -> None:
    """Write the names of the samples of each part as JSON."""
    names = {part: [dataset.names[index] for index in some] for part, some in split.items()}
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "parts": names}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_split(path: str | os.PathLike, dataset: Dataset) -> Split:
    """A split that was written, as indices of the samples of a data set.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no split, a sample of it is not in the data set, or is in two parts.
    """
    try:
        content = json.loads(read_text(path))
        found, version = content["format"], int(content["format_version"])
        parts = {str(part): list(names) for part, names in content["parts"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{path}: not a split of a data set ({err!r})") from err
    if found != FORMAT or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path}: format {found!r}, version {version}; expected {FORMAT!r} up to version "
            f"{FORMAT_VERSION}"
        )
    index = {name: k for k, name in enumerate(dataset.names)}
    part_of: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if name not in index:
                raise ValueError(f"{path}: the sample {name!r} is not in {dataset.path}")
            if part_of.setdefault(name, part) != part:
                raise ValueError(f"{path}: the sample {name!r} is in {part_of[name]} and {part}")
    return {part: [index[name] for name in names] for part, names in parts.items()}


def _random(
    dataset: Dataset, fractions: Mapping[str, float], seed: int, key: Callable[[Entry], str]
) -> Split:
    if min(fractions.values(), default=-1) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"the shares {dict(fractions)} must not be negative and must sum to 1")
    # sorted, so that the order of samples does not matter
    groups = sorted({key(entry) for entry in dataset.entries})
    order = np.random.default_rng(seed).permutation(len(groups))
    ends = np.rint(np.cumsum(list(fractions.values())) * len(groups)).astype(int)
    part_of = {}
    for place, group in enumerate(order):
        part = list(fractions)[int(np.searchsorted(ends, place, side="right"))]
        part_of[groups[group]] = part
    return _assigned(
        dataset, [part for part, share in fractions.items() if share], lambda e: part_of[key(e)]
    )


def _assigned(dataset: Dataset, parts: Collection[str], part_of: Callable[[Entry], str]) -> Split:
    split: Split = {part: [] for part in parts}
    for index, entry in enumerate(dataset.entries):
        split[part_of(entry)].append(index)
    for part, indices in split.items():
        if not indices:
            raise ValueError(
                f"{dataset.path}: the part {part!r} of the split would be empty; there are "
                f"{len(dataset)} samples of "
                f"{len({entry.formula for entry in dataset.entries})} compositions"
            )
    return split


__all__ = [
    "FRACTIONS",
    "composition_hold_out",
    "composition_split",
    "deformation_hold_out",
    "random_split",
    "read_split",
    "write_split",
]
