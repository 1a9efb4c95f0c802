"""What is in a data set, and how far H(0) is from the self-consistent H: the error to be learned.

Errors are of the elements with |H| above 1e-12 Ry, after the energy zero of H was moved onto that
of H(0) ("gauge MAE"); complex elements count with their modulus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.comparison import THRESHOLD
from ase_nextham.data import LCAOData
from ase_nextham.training.dataset import Dataset, Entry
from ase_nextham.training.density_label_files import Summary, summaries
from ase_nextham.training.density_labels import FITTED

EDGES = (2.0, 4.0, 6.0, 7.0, 8.0)
"""Where the ranges of distance end, in Angstrom."""


@dataclass(frozen=True)
class Error:
    """|H - H(0)| of some elements.

    Parameters
    ----------
    count
        How many.
    mean, largest
        In eV.
    """

    count: int
    mean: float
    largest: float


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is in a data set.

    Parameters
    ----------
    nsamples, nstructures
        Structures may be there with and without spin.
    basis
        Orbitals of all species.
    elements
        In how many samples each species stands.
    compositions
        Samples of each reduced composition.
    spins
        Samples by (spin of H(0), spin of the self-consistent run).
    natoms, npairs, dimension, nkpts
        Smallest, median and largest of all samples.
    nbytes
        On disk.
    mu
        Smallest and largest shift of the energy zero, in eV.
    total
        Error of all elements.
    by_composition
        Errors by reduced composition.
    onsite
        Errors of the blocks of an atom with itself, by species.
    bonds
        Errors of all other blocks, by both species: ``"As-Ga"``.
    distance
        Errors by ranges of distance, those of :data:`EDGES`.
    ndensities
        Samples with a converged density.
    labels
        What the density head can learn from: how well it fits, see
        :mod:`ase_nextham.training.density_label_files`.
    """

    nsamples: int
    nstructures: int
    basis: Basis
    elements: Mapping[str, int]
    compositions: Mapping[str, int]
    spins: Mapping[tuple[str, str], int]
    natoms: tuple[float, float, float]
    npairs: tuple[float, float, float]
    dimension: tuple[float, float, float]
    nkpts: tuple[float, float, float]
    nbytes: int
    mu: tuple[float, float]
    total: Error
    by_composition: Mapping[str, Error]
    onsite: Mapping[str, Error]
    bonds: Mapping[str, Error]
    distance: Mapping[str, Error]
    ndensities: int
    labels: tuple[Summary, ...]


def statistics(dataset: Dataset, *, progress: bool = False) -> Statistics:
    """Read every sample once and count.

    Raises
    ------
    ValueError
        If the data set is empty, or a sample is damaged.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.path}: there are no samples")
    sums: dict[str, dict[str, _Sum]] = {
        name: {} for name in ("total", "by_composition", "onsite", "bonds", "distance")
    }
    indices = range(len(dataset))
    if progress:
        from tqdm import tqdm

        indices = tqdm(indices, unit="sample")
    for index in indices:
        sample = dataset.sample(index, kpts=())
        _add(sums, sample.entry, sample.data)
    errors = {
        kind: {label: one.error() for label, one in some.items()} for kind, some in sums.items()
    }
    order = [label for label in _labels() if label in errors["distance"]]
    entries = dataset.entries
    return Statistics(
        nsamples=len(entries),
        nstructures=len({entry.structure for entry in entries}),
        basis=dataset.basis,
        elements=_counted(name for entry in entries for name in set(entry.species)),
        compositions=_counted(entry.formula for entry in entries),
        spins=_counted((entry.spin, entry.label_spin) for entry in entries),
        natoms=_spread([len(entry.atoms) for entry in entries]),
        npairs=_spread([entry.npairs for entry in entries]),
        dimension=_spread([entry.dimension for entry in entries]),
        nkpts=_spread([entry.nkpts for entry in entries]),
        nbytes=sum(dataset.file(index).stat().st_size for index in range(len(entries))),
        mu=(min(entry.mu for entry in entries), max(entry.mu for entry in entries)),
        total=errors["total"]["all"],
        by_composition=dict(sorted(errors["by_composition"].items())),
        onsite=dict(sorted(errors["onsite"].items())),
        bonds=dict(sorted(errors["bonds"].items())),
        distance={label: errors["distance"][label] for label in order},
        ndensities=sum(entry.density is not None for entry in entries),
        labels=tuple(summaries(dataset)),
    )


def describe(found: Statistics) -> str:
    """The statistics as tables."""
    kinds = ", ".join(
        f"{n} {spin}" + ("" if label == spin else f" with dH of {label} runs")
        for (spin, label), n in found.spins.items()
    )
    lines = [
        f"samples      {found.nsamples} of {found.nstructures} structures: {kinds}",
        f"size         {found.nbytes / 1e6:.1f} MB",
        *(
            f"{name:<12} {low:g} to {high:g}, median {median:g}"
            for name, (low, median, high) in (
                ("atoms", found.natoms),
                ("pairs", found.npairs),
                ("dimension", found.dimension),
                ("k-points", found.nkpts),
            )
        ),
        f"energy zero  moved by {found.mu[0]:.3f} to {found.mu[1]:.3f} eV",
        *([f"densities    {found.ndensities} samples"] if found.ndensities else []),
        *(_labels_line(one) for one in found.labels),
        "",
        "element   orbitals      radius (A)   samples",
        *(
            f"{name:<9} {found.basis.label(name):<13} {_radius(found.basis, name):>10}   {count:>7}"
            for name, count in found.elements.items()
        ),
        "",
        "|H - H(0)| in meV, elements with |H| > 1e-12 Ry, energy zero of H moved onto that of H(0)",
        f"{'':<16}{'elements':>12}{'mean':>12}{'largest':>12}",
        _row("all", found.total),
    ]
    for title, errors in (
        ("by composition", found.by_composition),
        ("on site", found.onsite),
        ("bonds", found.bonds),
        ("by distance", found.distance),
    ):
        lines += [f"{title}:", *(_row(f"  {label}", error) for label, error in errors.items())]
    return "\n".join(lines)


class _Sum:
    def __init__(self):
        self.count, self.sum, self.largest = 0, 0.0, 0.0

    def add(self, values: ndarray) -> None:
        if values.size:
            self.count += values.size
            self.sum += float(values.sum())
            self.largest = max(self.largest, float(values.max()))

    def error(self) -> Error:
        return Error(self.count, self.sum / max(self.count, 1), self.largest)


def _add(sums: Mapping[str, dict[str, _Sum]], entry: Entry, data: LCAOData) -> None:
    difference = np.abs((data.hamiltonian - data.h0).data)
    counted = np.abs(data.hamiltonian.data) > THRESHOLD
    pairs, positions = data.pairs, data.atoms.positions
    vectors = positions[pairs.j] - positions[pairs.i] + pairs.R @ data.atoms.cell.array
    distance = np.linalg.norm(vectors, axis=1)
    onsite = (pairs.i == pairs.j) & (pairs.R == 0).all(axis=1)
    labels = _labels()
    range_of = np.where(onsite, 0, 1 + np.searchsorted(EDGES, distance, side="right"))

    def add(kind: str, label: str, elements: ndarray) -> None:
        values = difference[..., elements][counted[..., elements]]
        sums[kind].setdefault(label, _Sum()).add(values)

    for a, b, p, elements in data.hamiltonian.block_groups():
        add("onsite", a, elements[onsite[p]])
        add("bonds", "-".join(sorted((a, b))), elements[~onsite[p]])
        for k in np.unique(range_of[p]):
            add("distance", labels[k], elements[range_of[p] == k])
    everything = np.arange(difference.shape[-1])
    add("total", "all", everything)
    add("by_composition", entry.formula, everything)


def _labels_line(found: Summary) -> str:
    residuals = found.residuals
    worst = max(residuals, key=residuals.get)
    return (
        f"labels       {len(residuals)} samples, fitted to {FITTED[found.fitted]}: "
        f"{100 * np.median(list(residuals.values())):.3g} % left (median), at most "
        f"{100 * residuals[worst]:.3g} % ({worst}); {found.folder.name}"
    )


def _labels() -> list[str]:
    middle = [f"{begin:g} - {end:g} A" for begin, end in pairwise(EDGES)]
    return ["on site", f"< {EDGES[0]:g} A", *middle, f"> {EDGES[-1]:g} A"]


def _counted(values) -> dict:
    return dict(sorted(Counter(values).items()))


def _spread(values: Sequence[int]) -> tuple[float, float, float]:
    return float(min(values)), float(np.median(values)), float(max(values))


def _radius(basis: Basis, name: str) -> str:
    return f"{basis.radius[name]:.2f}" if name in basis.radius else "unknown"


def _row(label: str, error: Error) -> str:
    return f"{label:<16}{error.count:>12}{1e3 * error.mean:>12.4f}{1e3 * error.largest:>12.2f}"


__all__ = ["EDGES", "Error", "Statistics", "describe", "statistics"]
