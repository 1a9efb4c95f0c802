"""What the spread of an ensemble says about errors, learned from structures not learned from.

The members of an ensemble agree too well: all of them make the errors that the data, the functions
and the network make in common. On the structures of a validation set, the true errors are compared
with the spread; both are counted alike (:mod:`ase_nextham.comparison`). One factor for elements
of H and one for bands turn a spread into the error to be expected. Each is the median of error /
spread over the structures: half of them were more wrong than that. So the factor does not depend on
the size of errors, which differ tenfold between crystals, and a few crystals that are far off do
not decide it, as they would with the ratio of root mean squares.

Members that differ in their seeds alone agree much too well. Of 15 compositions of two atoms that
were held out one by one (``benchmarks/uncertainty.py``), errors of H were 4.5 times the spread and
hardly rose with it (rank correlation 0.30); with members that leave out different compositions
they were 1.4 times the spread (0.60). For bands these were 5.9 (0.76) and 1.6 (0.75).

Factors hold for structures that differ from those of training as those of validation do: deformed
copies of known crystals calibrate for deformed crystals, other compositions for other compositions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy import ndarray
from scipy.stats import spearmanr

from ase_nextham.comparison import band_mae, gauge_mae, reference
from ase_nextham.model import bundle
from ase_nextham.potential_head.predict import DensityModel, density_model
from ase_nextham.potential_head.spread import Spread
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.models import save_model

LARGEST = 100
"""Structures to calibrate with, at most: evenly from all."""

_FEWEST = 3  # structures of which ranks are correlated


@dataclass(frozen=True)
class Case:
    """One structure that was not learned from.

    Parameters
    ----------
    name, formula
        Of the sample.
    spread
        Of the members, and the size of the predicted correction.
    dh, bands
        The true errors of elements of H and of bands, in eV.
    h0
        Error of H(0) in elements, in eV.
    """

    name: str
    formula: str
    spread: Spread
    dh: float
    bands: float
    h0: float


@dataclass(frozen=True, eq=False)
class Relation:
    """Spreads and errors of some structures.

    Parameters
    ----------
    spreads, errors
        In eV, shape (n,).
    """

    spreads: ndarray
    errors: ndarray

    @property
    def ratios(self) -> ndarray:
        """Error / spread of each structure for which members differ."""
        some = (self.spreads > 0) & (self.errors > 0)
        return self.errors[some] / self.spreads[some]

    @property
    def factor(self) -> float | None:
        """By which a spread is multiplied to give the expected error; None if members agree."""
        ratios = self.ratios
        return float(np.median(ratios)) if len(ratios) else None

    @property
    def rank(self) -> float | None:
        """Spearman's rank correlation; None where there is nothing to order."""
        both = (self.spreads, self.errors)
        if len(self.errors) < _FEWEST or any(np.ptp(values) == 0 for values in both):
            return None
        return float(spearmanr(*both).statistic)


@dataclass(frozen=True)
class Calibration:
    """What came of structures that were not learned from.

    Parameters
    ----------
    cases
        One for each structure.
    """

    cases: tuple[Case, ...]

    def __post_init__(self):
        if not self.cases:
            raise ValueError("there are no structures to calibrate with")

    @property
    def dh(self) -> Relation:
        """Of elements of H."""
        return self._relation(lambda case: (case.spread.dh, case.dh))

    @property
    def bands(self) -> Relation:
        """Of bands."""
        return self._relation(lambda case: (case.spread.bands, case.bands))

    def as_dict(self) -> dict[str, float]:
        """As ``ModelInfo.training["calibration"]`` keeps it; without what is not known."""
        values = {
            "dh": self.dh.factor,
            "bands": self.bands.factor,
            "samples": len(self.cases),
            "rank_dh": self.dh.rank,
            "rank_bands": self.bands.rank,
        }
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self):
        if self.dh.factor is None or self.bands.factor is None:
            return "the networks of the model do not differ, so they tell nothing about errors"
        number = len(self.cases)
        ranks = [_text(one.rank, ".2f") for one in (self.dh, self.bands)]
        return (
            f"errors of {number} structure{'s' * (number != 1)} not learned from, over the "
            f"disagreement of the networks: {self.dh.factor:.2g} for elements of H (rank "
            f"correlation {ranks[0]}), {self.bands.factor:.2g} for bands ({ranks[1]})"
        )

    def table(self) -> str:
        """All structures, and what follows from them, in meV."""
        lines = [
            f"{'':<16}{'elements of H':^40}{'bands':^30}",
            f"{'':<16}{'H(0)':>10}{'spread':>10}{'error':>10}{'ratio':>10}"
            f"{'spread':>10}{'error':>10}{'ratio':>10}",
        ]
        for case in self.cases:
            row = f"{case.name:<16}{1e3 * case.h0:10.3f}"
            for spread, error in (
                (case.spread.dh, case.dh),
                (case.spread.bands, case.bands),
            ):
                ratio = _text(error / spread if spread else None, ".2f")
                row += f"{1e3 * spread:10.4f}{1e3 * error:10.4f}{ratio:>10}"
            lines.append(row)
        lines += ["", f"{'':<28}{'elements of H':>16}{'bands':>16}"]
        both = (self.dh, self.bands)
        rows: dict[str, Callable[[Relation], float | None]] = {
            "error / spread, median": lambda one: one.factor,
            "  quarter below": lambda one: _quantile(one.ratios, 0.25),
            "  quarter above": lambda one: _quantile(one.ratios, 0.75),
            "rank correlation": lambda one: one.rank,
        }
        for name, value in rows.items():
            lines.append(f"{name:<28}" + "".join(f"{_text(value(x), '.2f'):>16}" for x in both))
        return "\n".join(lines)

    def _relation(self, of: Callable[[Case], tuple[float, float]]) -> Relation:
        # members that agree to rounding have no spread
        found = [(0.0, of(one)[1]) if one.spread.silent else of(one) for one in self.cases]
        return Relation(*np.array(found).T)


def calibrate(model: DensityModel, dataset: Dataset, *, progress: bool = False) -> Calibration:
    """Compare spreads with true errors.

    Parameters
    ----------
    model
        An ensemble.
    dataset
        Samples that it was not trained on; of more than :data:`LARGEST`, so many.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        If there are no samples, or the model is not for one of them, which is named.
    ase.calculators.calculator.CalculatorSetupError
        If pseudopotentials or orbitals are not found.
    """
    number = min(len(dataset), LARGEST)
    indices: Iterable[int] = np.linspace(0, len(dataset) - 1, number).round().astype(int)
    if progress:
        from tqdm import tqdm

        indices = tqdm(indices, unit="structure", desc="calibrating")
    return Calibration(tuple(_case(model, dataset, int(index)) for index in indices))


def calibrate_model(
    path: str | os.PathLike,
    dataset: Dataset,
    *,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Calibration:
    """Calibrate a model on disk, and write down in it what came of it.

    Parameters
    ----------
    path
        Folder of the model; it is complete at every moment.
    dataset, progress
        As of :func:`calibrate`.
    pseudo_dir, orbital_dir, device
        As of :func:`ase_nextham.load_model`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the model is not there or damaged, and as :func:`calibrate`.
    """
    info, module = bundle.read(path)
    if info.head != "density":
        raise ValueError(f"{Path(path)}: only models of the density have several that can differ")
    dtype = module.dtype  # of the weights on disk, in which they stay
    model = density_model(info, module, pseudo_dir, orbital_dir).to(device)
    found = calibrate(model, dataset, progress=progress)
    training = {**info.training, "calibration": found.as_dict()}
    save_model(path, replace(info, training=training), module.to(dtype))
    return found


def _case(model: DensityModel, dataset: Dataset, index: int) -> Case:
    sample = dataset.sample(index, kpts=())
    data, entry = sample.data, sample.entry
    try:
        predicted = data.h0 + model.predict(data)
        spread = model.spread(data)
    except ValueError as err:
        raise ValueError(f"sample {entry.name}: {err}") from err
    return Case(
        name=entry.name,
        formula=entry.formula,
        spread=spread,
        dh=gauge_mae(predicted, data.hamiltonian, data.overlap),
        bands=band_mae(predicted, data.overlap, reference(data)),
        h0=gauge_mae(data.h0, data.hamiltonian, data.overlap),
    )


def _quantile(values: ndarray, share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None


def _text(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


__all__ = ["LARGEST", "Calibration", "Case", "Relation", "calibrate", "calibrate_model"]
