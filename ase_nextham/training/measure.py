"""What is measured of a kind of model in training: its error, in which unit, and how large it was.

Everything that is written of a run, the columns of its tables and the axes of its figures, is named
after a :class:`Measure`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measure:
    """What the error of a kind of model is.

    Parameters
    ----------
    terms
        Names of the parts of the loss, which are logged in this order.
    term
        Name of the error among what the loss gives for each structure.
    name, unit
        For the reader.
    factor
        From the error in the loop to one in the unit.
    column
        Of ``steps.csv`` and ``validation.csv``, in the unit.
    key
        In the description of a model, in the unit.
    reference
        That with which it is compared, for the reader; None: with 1, which needs no column.
    """

    terms: tuple[str, ...]
    term: str
    name: str
    unit: str
    factor: float
    column: str
    key: str
    reference: str | None = None

    @property
    def reference_column(self) -> str:
        """Column of what it is compared with."""
        return f"h0_{self.column}"

    @property
    def step_columns(self) -> tuple[str, ...]:
        """Of ``steps.csv``."""
        place = ("step", "epoch", "seconds", "learning_rate", "gradient")
        return (*place, "loss", *self.terms, self.column)

    @property
    def validation_columns(self) -> tuple[str, ...]:
        """Of ``validation.csv``."""
        compared = () if self.reference is None else (self.reference_column, "ratio")
        return ("step", "epoch", "seconds", "loss", self.column, *compared, "best")


GAUGE_MAE = Measure(
    terms=("real", "trace", "low", "high", "coupling"),
    term="mae",
    name="gauge MAE",
    unit="meV",
    factor=1e3,
    column="mae_meV",
    key="gauge_mae_meV",
    reference="H(0)",
)
"""Of models that correct pairs of atoms: of H, compared with that of H(0); in eV in the loop."""

DENSITY_ERROR = Measure(
    terms=(),
    term="error",
    name="error of the density",
    unit="%",
    factor=100.0,
    column="error_percent",
    key="density_error_percent",
)
"""Of models that correct the density: in the Coulomb norm, of all that there is to correct."""

DH_ERROR = Measure(
    terms=("error", "density", "dh", "bands"),
    term="dh",
    name="error of dH",
    unit="% of that of H(0)",
    factor=100.0,
    column="dh_percent",
    key="dh_error_percent",
)
"""Of models that correct the density, where the error of dH counts in the loss: its gauge MAE."""

MEASURES = (GAUGE_MAE, DENSITY_ERROR, DH_ERROR)


@dataclass(frozen=True)
class Validation:
    """How well a model does on samples that it was not trained on.

    Parameters
    ----------
    loss
        As in training, mean over samples.
    error
        Of the model, mean over samples; of pairs in eV.
    reference
        That with which it is compared, mean over samples: the error of H(0), or 1.
    measure
        What these errors are.
    """

    loss: float
    error: float
    reference: float
    measure: Measure = field(default=GAUGE_MAE, repr=False)

    @property
    def ratio(self) -> float:
        """The error as a part of that with which it is compared."""
        return self.error / self.reference if self.reference else math.nan

    @property
    def mae(self) -> float:
        """Gauge MAE of H in eV, of models that correct pairs of atoms."""
        return self.error

    @property
    def h0_mae(self) -> float:
        """Gauge MAE of H(0) in eV, of models that correct pairs of atoms."""
        return self.reference

    def __str__(self):
        measure = self.measure
        text = f"{measure.name} {measure.factor * self.error:.3g} {measure.unit}"
        if measure.reference is not None:
            text += f", {100 * self.ratio:.3g} % of that of {measure.reference}"
        return text

    def columns(self) -> dict[str, float]:
        """Values for ``validation.csv``."""
        measure = self.measure
        values = {"loss": self.loss, measure.column: measure.factor * self.error}
        if measure.reference is not None:
            values[measure.reference_column] = measure.factor * self.reference
            values["ratio"] = self.ratio
        return values

    def described(self) -> Mapping[str, float]:
        """Values for the description of a model."""
        measure = self.measure
        values = {measure.key: measure.factor * self.error}
        if measure.reference is not None:
            values[f"h0_{measure.key}"] = measure.factor * self.reference
        return values


__all__ = ["DENSITY_ERROR", "DH_ERROR", "GAUGE_MAE", "MEASURES", "Measure", "Validation"]
