"""Figures of an evaluation and of a training run.

Each function returns a ``matplotlib.figure.Figure``, as those of :mod:`ase_nextham.plot`, whose
colours and fonts they share; :func:`write_figures` writes all of them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.spectrum.band_structure import BandStructure
from numpy import ndarray

from ase_nextham import bands, plot
from ase_nextham.files import replacing
from ase_nextham.training.dataset import Dataset, Sample
from ase_nextham.training.evaluate import chosen, hamiltonians, loaded_model
from ase_nextham.training.figures_periodic_table import periodic_table
from ase_nextham.training.logs import STEPS, VALIDATIONS
from ase_nextham.training.measure import GAUGE_MAE, MEASURES, Measure
from ase_nextham.training.metrics import PARITY_EDGES
from ase_nextham.training.metrics_bands import GHOST, band_path, mesh_errors, reference
from ase_nextham.training.report import H0, PREDICTED, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ase_nextham.model import Model
    from ase_nextham.potential_head.predict import DensityModel

COLOURS = {H0: plot.COLOURS[1], PREDICTED: plot.COLOURS[2]}
"""Of the two Hamiltonians in all figures."""

_FONT = 10
_MEV_TICKS = (1, 10, 100, 1000)


def write_figures(
    report: Report,
    folder: str | os.PathLike,
    dataset: Dataset | str | os.PathLike,
    model: Model | DensityModel | str | os.PathLike | None = None,
    **options,
) -> list[Path]:
    """Draw an evaluation.

    ``elements.png``, ``distance.png``, ``condition.png``, with a model ``parity.png``, and
    ``bands_NAME.png`` of the structures with the smallest, the median and the largest error of the
    bands near the Fermi level (of the model where there is one).

    Parameters
    ----------
    report
        Of :func:`~ase_nextham.training.evaluate.evaluate`.
    folder
        Where to write; it is made if need be.
    dataset, model
        Those of the evaluation, for the bands.
    options
        Of :func:`ase_nextham.load_model`, where the model is to be read.

    Returns
    -------
    list of Path
        What was written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "elements": errors_by_element(report),
        "distance": errors_by_distance(report),
        "condition": errors_by_condition(report),
    }
    if report.parity is not None:
        drawn["parity"] = parity(report.parity)
    for name, figure in _bands_of_some(report, dataset, model, options):
        drawn[f"bands_{name}"] = figure
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        with replacing(paths[-1]) as temporary:
            figure.savefig(temporary)
    return paths


def _bands_of_some(report: Report, dataset, model, options: Mapping):
    name = list(report.errors)[-1]
    ordered = sorted(report.structures, key=lambda one: one.errors[name].mesh.near_fermi_level.mean)
    names = [one.name for one in (ordered[0], ordered[len(ordered) // 2], ordered[-1])]
    some = chosen(dataset, dict.fromkeys(names), None, "")
    loaded, _ = loaded_model(model, **options)
    for index in range(len(some)):
        figure = sample_bands(some.sample(index, kpts=()), loaded, kpts=report.kpts)
        if figure is not None:
            yield some.names[index], figure


# --- bands ---------------------------------------------------------------------------------------


def sample_bands(
    sample: Sample,
    model: Model | None = None,
    *,
    kpts=3.0,
    npoints: int = 200,
    emin: float = -10.0,
    emax: float = 5.0,
) -> Figure | None:
    """DFT bands of a sample against those of H(0) and of a model, beside each other.

    Energies are from the self-consistent Fermi level, after the energy zero of each Hamiltonian was
    moved as in :mod:`~ase_nextham.training.metrics_bands`; the legend gives the mean error of the
    bands shown, along the path.

    Parameters
    ----------
    kpts
        Mesh for the Fermi level and the energy zero.
    npoints
        k-points of the path.
    emin, emax
        Range in eV.

    Returns
    -------
    Figure or None
        None where nothing is periodic.
    """
    data = sample.data
    path = band_path(data.atoms, npoints)
    if path is None:
        return None
    of_reference = reference(data, kpts)
    level = of_reference.fermi_level
    exact = bands.eigenvalues(data.hamiltonian, data.overlap, path.kpts)
    shown = (exact > level + emin) & (exact < level + emax)
    others = []
    for name, matrix in hamiltonians(sample, model).items():
        shift = mesh_errors(matrix, data, of_reference).shift[0]
        eps = bands.eigenvalues(matrix, data.overlap, path.kpts)
        error = 1e3 * np.abs(eps + shift - exact)[shown].mean()
        others.append(
            (BandStructure(path, eps, reference=level - shift), f"{name}, MAE {_digits(error)} meV")
        )
    own = BandStructure(path, exact, reference=level)
    figure = plot.plot_bands_beside((own, "DFT"), others, emin=emin, emax=emax)
    figure.suptitle(sample.entry.name.replace("$", r"\$"), fontsize=_FONT + 1)
    return figure


# --- errors of an evaluation ---------------------------------------------------------------------


def errors_by_element(report: Report) -> Figure:
    """Mean gauge error of the structures that hold each element, on the periodic table.

    The colour is that of the model where there is one, and the small number that of H(0).
    """
    if PREDICTED not in report.errors:
        return periodic_table(
            _in_mev(report.by_element(H0)), label="Gauge MAE of H(0) in meV, mean of structures"
        )
    return periodic_table(
        _in_mev(report.by_element(PREDICTED)),
        small=_in_mev(report.by_element(H0)),
        label="Gauge MAE of the prediction in meV, mean of structures (small: H(0))",
    )


def _digits(value: float) -> str:
    """A tenth of small numbers, the ones of large ones."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _in_mev(values: Mapping[str, float]) -> dict[str, float]:
    return {name: 1e3 * value for name, value in values.items()}


def errors_by_distance(report: Report) -> Figure:
    """Mean gauge error of the blocks in each range of distance."""
    tables = {name: errors.matrix.by["distance"] for name, errors in report.errors.items()}
    labels = list(tables[H0])
    figure, ax = plot.blank_figure(6.6, 3.8)
    width = 0.8 / len(tables)
    means = {
        name: 1e3 * np.array([table[label].mean for label in labels])
        for name, table in tables.items()
    }
    positive = [value for values in means.values() for value in values if value > 0]
    bottom = 10.0 ** np.floor(np.log10(min(positive))) if positive else 1e-3
    bottom = max(bottom, 1e-5)
    for number, (name, values) in enumerate(means.items()):
        x = np.arange(len(labels)) + width * (number - (len(tables) - 1) / 2)
        ax.bar(x, values, width, bottom=0, color=COLOURS[name], label=name, zorder=2)
        for place, value in zip(x, values, strict=True):
            ax.annotate(
                _short(value),
                (place, max(value, bottom)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=_FONT - 3,
            )
    ax.set_yscale("log")
    ax.set_ylim(bottom, 3 * max(positive, default=1.0))
    names = [label.replace(" - ", "\N{EN DASH}").replace(" A", " Å") for label in labels]
    ax.set_xticks(np.arange(len(labels)), names)
    ax.tick_params(axis="x", which="both", length=0)
    ax.set_xlabel("Distance of the two atoms")
    ax.set_ylabel("Gauge MAE (meV)")
    ax.yaxis.grid(True, color="0.9", zorder=0)
    plot.legend_above(ax)
    return figure


def _short(value: float) -> str:
    """Two digits."""
    if value == 0:
        return "0"
    if value < 0.01:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:#.2g}" if value < 10 else f"{value:.0f}"


def errors_by_condition(report: Report) -> Figure:
    """Largest error of the bands at each k-point against the condition number of S(k) there.

    Semicore states, whose errors have other reasons, are left out.
    """
    figure, ax = plot.blank_figure(5.6, 4.0)
    condition = np.concatenate([one.condition for one in report.structures])
    largest = 1e3 * np.concatenate([errors.mesh.at_kpts[1] for errors in report.errors.values()])
    for name, errors in report.errors.items():
        ax.plot(
            condition,
            1e3 * errors.mesh.at_kpts[1],
            ".",
            markersize=3 if len(condition) > 1000 else 6,
            markeredgewidth=0,
            alpha=0.5,
            color=COLOURS[name],
            label=name,
            rasterized=True,
            zorder=2,
        )
    ax.axhline(1e3 * GHOST, color="0.3", linewidth=1.0, linestyle=plot.DASHES[1], zorder=3)
    ax.annotate(
        "ghost states above",
        (0.99, 1e3 * GHOST),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=_FONT - 1,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        zorder=4,
    )
    ax.set_xscale("log")
    ax.set_yscale("log")
    if (largest > 0).any():  # a few lucky k-points must not take up most of the axis
        bottom = np.percentile(largest[largest > 0], 0.5)
        ax.set_ylim(bottom / 2, 2 * max(largest.max(), 1e3 * GHOST))
    ax.set_xlabel(r"Condition number of $S(\mathbf{k})$")
    ax.set_ylabel(r"Largest band error at $\mathbf{k}$ (meV)")
    plot.legend_above(ax)
    for handle in ax.get_legend().legend_handles:
        handle.set(markersize=9, alpha=1)
    return figure


def parity(counts: ndarray) -> Figure:
    """Predicted against true corrections, by how many matrix elements there are.

    Parameters
    ----------
    counts
        Of :func:`ase_nextham.training.metrics.parity`.
    """
    from matplotlib.colors import LogNorm

    edges = 1e3 * PARITY_EDGES
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    reach = np.abs(edges[[used.min(), used.max() + 1]]).max() if used.size else 1.0
    figure, ax = plot.blank_figure(5.6, 4.6)
    scaled = np.arcsinh(edges)
    image = ax.pcolormesh(
        scaled,
        scaled,
        np.ma.masked_equal(counts.T, 0),
        norm=LogNorm(vmin=1, vmax=max(counts.max(), 2)),
        cmap="viridis",
        rasterized=True,
    )
    limit = float(np.arcsinh(reach))
    ax.plot([-limit, limit], [-limit, limit], color="0.2", linewidth=0.8, linestyle=plot.DASHES[1])
    ticks = [0.0, *(sign * t for t in _MEV_TICKS if t <= reach for sign in (-1, 1))]
    labels = [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(np.arcsinh(ticks), labels)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.set_box_aspect(1)
    ax.tick_params(labelsize=_FONT - 1)
    ax.set_xlabel(r"$H - H^{(0)}$ (meV)")
    ax.set_ylabel(r"Predicted $\Delta H$ (meV)")
    bar = figure.colorbar(image, cax=ax.inset_axes([1.03, 0, 0.05, 1]))
    bar.set_label("Matrix elements", size=_FONT)
    bar.ax.tick_params(labelsize=_FONT - 1, direction="in")
    return figure


# --- a training run ------------------------------------------------------------------------------


def learning_curve(folder: str | os.PathLike) -> Figure:
    """Loss and error over the epochs of a run.

    Parameters
    ----------
    folder
        Of the run, with ``steps.csv`` and ``validation.csv`` as :mod:`ase_nextham.training.logs`
        writes them: columns ``epoch``, ``loss``, and those of one of
        :data:`~ase_nextham.training.measure.MEASURES`, ``mae_meV`` and ``h0_mae_meV`` for models
        that correct pairs.

    Raises
    ------
    FileNotFoundError
        If one of them is not there.
    ValueError
        If a column is missing, or there is no step yet.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    folder = Path(folder)
    measure = _measure(folder / STEPS)
    column, reference = measure.column, measure.reference_column
    compared = () if measure.reference is None else (reference,)
    steps = _columns(folder / STEPS, "epoch", "loss", column)
    validation = _columns(folder / VALIDATIONS, "epoch", "loss", column, *compared)
    if not len(steps["epoch"]):
        raise ValueError(f"{folder / STEPS}: no step was done yet")
    figure, (upper, lower) = plot.blank_figure(5.6, 5.2, rows=2)
    train, valid = plot.COLOURS[2], plot.COLOURS[1]
    for ax, name in ((upper, "loss"), (lower, column)):
        _curve(ax, steps["epoch"], steps[name], train)
        ax.plot(
            validation["epoch"],
            validation[name],
            color=valid,
            linewidth=1.5,
            marker="o",
            markersize=3 if len(validation["epoch"]) < 60 else 0,
            label="validation",
            zorder=4,
        )
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.grid(True, color="0.92", zorder=0)
    if compared and len(validation["epoch"]):
        lower.axhline(  # the same each time; one validation has no length
            validation[reference][-1],
            color="0.3",
            linewidth=1.2,
            linestyle=plot.DASHES[1],
            label=f"{measure.reference}, validation",
        )
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("Loss")
    lower.set_ylabel(f"{measure.name[0].upper()}{measure.name[1:]} ({measure.unit})")
    lower.set_xlabel("Epoch")
    lower.set_xlim(0, max(steps["epoch"].max(), validation["epoch"].max(initial=0)))
    handles, labels = lower.get_legend_handles_labels()
    for handle, label in zip(handles, labels, strict=True):
        if label not in upper.get_legend_handles_labels()[1]:
            upper.plot([], [], label=label, color=handle.get_color(), ls=handle.get_linestyle())
    plot.legend_above(upper)
    return figure


def _curve(ax: Axes, epoch: ndarray, values: ndarray, colour: str) -> None:
    """Every step faintly, and the mean of each epoch, in which every structure comes once."""
    kept = np.isfinite(values) & (values > 0)
    epoch, values = epoch[kept], values[kept]
    ax.plot(epoch, values, color=colour, linewidth=0.5, alpha=0.25, zorder=2)
    numbers, index = np.unique(np.ceil(epoch), return_inverse=True)  # epoch 1 ends at 1.0
    count = np.maximum(np.bincount(index, minlength=len(numbers)), 1)
    ax.plot(
        np.bincount(index, epoch, len(numbers)) / count,
        np.bincount(index, values, len(numbers)) / count,
        color=colour,
        linewidth=1.5,
        label="training",
        zorder=3,
    )


def _measure(path: Path) -> Measure:
    """What was measured in a run, by the header of its table of steps."""
    header = (_rows(path) or [[]])[0]
    return next((one for one in MEASURES if one.column in header), GAUGE_MAE)


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def _columns(path: Path, *names: str) -> dict[str, ndarray]:
    """Columns of a CSV file with a header; empty cells are nan."""
    rows = _rows(path)
    header = rows[0] if rows else []
    missing = [name for name in names if name not in header]
    if missing:
        raise ValueError(
            f"{path}: there is no column {missing[0]!r}; the columns are {', '.join(header)}"
        )
    # the last line of a run that is going on may be half written
    rows = [row for row in rows[1:] if len(row) == len(header)]
    return {
        name: np.array([float(row[header.index(name)] or "nan") for row in rows]) for name in names
    }


__all__ = [
    "errors_by_condition",
    "errors_by_distance",
    "errors_by_element",
    "learning_curve",
    "parity",
    "sample_bands",
    "write_figures",
]
