"""Figures of bands, densities of states and optical spectra.

Each function returns a ``matplotlib.figure.Figure`` with an Agg canvas; write it with
``figure.savefig("bands.png")``. Nothing here touches pyplot, so no window opens, no display is
needed and the settings of other figures stay as they are.

Colours are those of Okabe and Ito, which readers with any colour vision can tell apart; lines also
differ in their dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.dft.kpoints import BandPath
from ase.spectrum.band_structure import BandStructure
from numpy import ndarray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))

_RESOLUTION = 200  # dots per inch
_FONT = 10
_LEGEND_WIDTH = 0.85  # of the figure, about the width of all axes in a row
_LETTER = 0.017  # width of a letter in widths of the narrowest axes
_TOUCHING = 1e-6  # eV


def plot_bands(
    bands: Sequence[tuple[BandStructure, str]], *, emin: float = -10.0, emax: float = 8.0
) -> Figure:
    """Band structures on the same path, one over the other.

    Where all of them have a gap at their ``reference`` (the Fermi level), the zero of energy is
    the highest filled band of each; otherwise it is each one's reference. Dots mark the edges of
    the gap, and the legend gives its size, both on this path.

    Parameters
    ----------
    bands
        Pairs of an ASE band structure and its name in the legend.
    emin, emax
        Range in eV.

    Raises
    ------
    ValueError
        If there is nothing to plot, or the paths differ.
    """
    if not bands:
        raise ValueError("there are no bands to plot")
    path = _check_same_path(bands)
    edges = [_edges(structure) for structure, _ in bands]
    from_valence = all(edge is not None for edge in edges)

    figure, ax = blank_figure(5.6, 4.2)
    x, ticks, labels = path.get_linear_kpoint_axis()
    for number, ((structure, label), edge) in enumerate(zip(bands, edges, strict=True)):
        zero = edge[0] if from_valence else structure.reference
        style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.3, "zorder": 3 + number}
        name = label if edge is None else f"{label}, gap {edge[1] - edge[0]:.2f} eV"
        for spin, eps in enumerate(structure.energies):
            dashes = DASHES[(number + 2 * spin) % len(DASHES)]
            both = len(structure.energies) == 2
            lines = ax.plot(*_broken(x, eps - zero), linestyle=dashes, **style)
            lines[0].set_label(f"{name}, spin {'up' if spin == 0 else 'down'}" if both else name)
        if edge is not None:
            _mark(ax, x, structure.energies - zero, np.array(edge) - zero, style)
    _axis_of_path(ax, ticks, labels)
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(emin, emax)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    ax.set_ylabel(f"$E - E_\\mathrm{{{'VBM' if from_valence else 'F'}}}$ (eV)")
    legend_above(ax)
    return figure


def plot_bands_beside(
    reference: tuple[BandStructure, str],
    others: Sequence[tuple[BandStructure, str]],
    *,
    emin: float = -10.0,
    emax: float = 5.0,
) -> Figure:
    """One band structure against several others, each in its own panel.

    The zero of energy is the ``reference`` of each band structure. Give the others one that brings
    them to the scale on which they are to be compared.

    Parameters
    ----------
    reference
        A band structure and its name: the solid line of all panels.
    others
        Those that it is compared with, dashed.
    emin, emax
        Range in eV.

    Raises
    ------
    ValueError
        If there is nothing to compare with, or the paths differ.
    """
    if not others:
        raise ValueError("there are no bands to compare with")
    _check_same_path([reference, *others])
    figure, axes = blank_figure(0.8 + 3.6 * len(others), 4.4, columns=len(others))
    x, ticks, labels = reference[0].path.get_linear_kpoint_axis()
    styles = [{"color": COLOURS[0], "linestyle": "-", "linewidth": 1.2, "zorder": 3}]
    styles += [
        {"color": colour, "linestyle": DASHES[1], "linewidth": 1.5, "zorder": 4}
        for colour in COLOURS[1:]
    ]
    for number, other in enumerate(others, start=1):
        ax = np.atleast_1d(axes)[number - 1]
        for (structure, label), style in (
            (reference, styles[0]),
            (other, styles[1 + (number - 1) % len(COLOURS[1:])]),
        ):
            for spin, eps in enumerate(structure.energies - structure.reference):
                lines = ax.plot(*_broken(x, eps), **style, alpha=1 - 0.45 * spin)
                lines[0].set_label("_" if spin else label)
        _axis_of_path(ax, ticks, labels)
        ax.set_xlim(x[0], x[-1])
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=1)
        legend_above(ax)
    first = np.atleast_1d(axes)[0]
    first.set_ylim(emin, emax)
    first.set_ylabel(r"$E - E_\mathrm{F}$ (eV)")
    return figure


def plot_dos(
    energies: ndarray,
    dos: ndarray,
    parts: Mapping[str, ndarray] | None = None,
    *,
    fermi_level: float = 0.0,
) -> Figure:
    """Density of states, spin down below the axis.

    Parameters
    ----------
    energies
        In eV, shape (nenergies,).
    dos
        Total in states/eV, shape (nenergies,) or (nspins, nenergies).
    parts
        Contributions by name, in the shape of ``dos``.
    fermi_level
        In eV, becomes the zero of energy.
    """
    energies = np.asarray(energies, float)
    figure, ax = blank_figure(5.6, 3.6)
    signs = (1, -1)
    for spin, (sign, values) in enumerate(zip(signs, np.atleast_2d(dos), strict=False)):
        ax.fill_between(energies - fermi_level, sign * values, color="0.88", linewidth=0, zorder=1)
        ax.plot(
            energies - fermi_level,
            sign * values,
            color=COLOURS[0],
            linewidth=1.2,
            label=None if spin else "total",
        )
    for number, (name, part) in enumerate((parts or {}).items(), start=1):
        for spin, (sign, values) in enumerate(zip(signs, np.atleast_2d(part), strict=False)):
            ax.plot(
                energies - fermi_level,
                sign * values,
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.3,
                label=None if spin else name,
            )
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    ax.set_xlim(energies[0] - fermi_level, energies[-1] - fermi_level)
    if np.ndim(dos) == 2 and len(dos) == 2:
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.annotate("spin up", (0.02, 0.96), xycoords="axes fraction", va="top")
        ax.annotate("spin down", (0.02, 0.04), xycoords="axes fraction")
    else:
        ax.set_ylim(bottom=0)
    ax.set_xlabel(r"$E - E_\mathrm{F}$ (eV)")
    ax.set_ylabel("Density of states (1/eV)")
    if parts:
        legend_above(ax)
    return figure


def plot_optical_conductivity(
    omega: ndarray, sigma: ndarray | Sequence[tuple[ndarray, str]]
) -> Figure:
    """Real and imaginary part of the optical conductivity.

    Components that agree within 1 % of the largest share a line, components below that are left
    out.

    Parameters
    ----------
    omega
        Photon energies in eV, shape (nomega,).
    sigma
        In S/m, complex, shape (3, 3, nomega); or several of them with their names.
    """
    omega = np.asarray(omega, float)
    several = [(sigma, "")] if isinstance(sigma, np.ndarray) else list(sigma)
    figure, (upper, lower) = blank_figure(5.6, 5.0, rows=2)
    scale, unit = _scale(max(np.abs(tensor).max() for tensor, _ in several))
    number = 0
    for tensor, name in several:
        for component, values in _distinct_components(np.asarray(tensor)):
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "linestyle": DASHES[number % len(DASHES)],
                "linewidth": 1.4,
            }
            label = f"{name}: {component}" if name else component
            upper.plot(omega, values.real / scale, label=label, **style)
            lower.plot(omega, values.imag / scale, **style)
            number += 1
    for ax, part in ((upper, "Re"), (lower, "Im")):
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=1)
        ax.set_xlim(omega[0], omega[-1])
        ax.set_ylabel(rf"{part} $\sigma$ ({unit})")
    upper.tick_params(labelbottom=False)
    lower.set_xlabel(r"Photon energy $\hbar\omega$ (eV)")
    legend_above(upper)
    return figure


def blank_figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, Axes | ndarray]:
    """A figure that knows nothing of pyplot, and its axes.

    Parameters
    ----------
    width, height
        In inches.
    rows, columns
        Number of axes below and beside each other: rows share their x axis, columns their y axis.

    Returns
    -------
    (Figure, Axes or ndarray)
        One of them itself, several as an array.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_RESOLUTION, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex="col", sharey="row", squeeze=False).ravel()
    for ax in axes:
        ax.tick_params(direction="in", top=True, right=True, labelsize=_FONT)
        ax.xaxis.label.set_size(_FONT + 1)
        ax.yaxis.label.set_size(_FONT + 1)
    return figure, axes[0] if len(axes) == 1 else axes


def legend_above(ax: Axes) -> None:
    """A legend above the axes, where it hides no line, in as many columns as fit."""
    figure = ax.figure
    for ncols in range(len(ax.get_legend_handles_labels()[1]), 0, -1):
        legend = ax.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.01),
            ncols=ncols,
            frameon=False,
            fontsize=_FONT,
            handlelength=2.6,
            columnspacing=1.4,
        )
        width = legend.get_window_extent(figure.canvas.get_renderer()).width
        if width < _LEGEND_WIDTH * figure.bbox.width / ax.get_gridspec().ncols:
            break


def _check_same_path(bands: Sequence[tuple[BandStructure, str]]) -> BandPath:
    path = bands[0][0].path
    for structure, label in bands[1:]:
        if structure.path.kpts.shape != path.kpts.shape or not np.allclose(
            structure.path.kpts, path.kpts, atol=1e-6
        ):
            raise ValueError(f"{label!r} is on another path of k-points than {bands[0][1]!r}")
    return path


def _edges(structure: BandStructure) -> tuple[float, float] | None:
    """Highest energy below and lowest above the reference, None if a band crosses it."""
    eps, reference = structure.energies, structure.reference
    low, high = eps.min(axis=1), eps.max(axis=1)  # of each band
    if ((low < reference - _TOUCHING) & (high > reference + _TOUCHING)).any():
        return None
    filled = (low + high) / 2 < reference
    if filled.all() or not filled.any():
        return None
    valence, conduction = high[filled].max(), low[~filled].min()
    return (valence, conduction) if conduction - valence > _TOUCHING else None


def _mark(ax: Axes, x: ndarray, eps: ndarray, edges: ndarray, style: Mapping) -> None:
    """Dots where bands reach the edges of the gap."""
    for edge in edges:
        _, points, _ = np.nonzero(np.abs(eps - edge) < 1e-4)
        points = np.unique(points)
        ax.plot(
            x[points],
            np.full(len(points), edge),
            "o",
            markersize=4.5,
            color=style["color"],
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=20,
            clip_on=False,
        )


def _broken(x: ndarray, eps: ndarray) -> tuple[ndarray, ndarray]:
    """Lines interrupted where the path jumps from one k-point to another at the same x."""
    jumps = np.flatnonzero(np.diff(x) == 0) + 1
    return np.insert(x, jumps, np.nan), np.insert(eps, jumps, np.nan, axis=0)


def _axis_of_path(ax: Axes, ticks: ndarray, labels: Sequence[str]) -> None:
    positions, names = [], []
    for tick, label in zip(ticks, labels, strict=True):
        name = _symmetry_label(label)
        if positions and tick - positions[-1] < 1e-9:
            names[-1] += f"|{name}"
        else:
            positions.append(float(tick))
            names.append(name)
    ax.set_xticks(positions, _without_overlap(positions, names))
    ax.tick_params(axis="x", length=0)
    for position in positions[1:-1]:
        ax.axvline(position, color="0.8", linewidth=0.8, zorder=0)


def _without_overlap(positions: Sequence[float], names: Sequence[str]) -> list[str]:
    """Names of special points, empty where there is no room beside the one before.

    Paths of slabs in tall cells have segments that are next to nothing.
    """
    shown = list(names)
    last = 0
    for k in range(1, len(names)):
        letters = sum(1 + names[n].count("|") for n in (last, k))
        if positions[k] - positions[last] < _LETTER * letters * positions[-1]:
            shown[k] = ""
        else:
            last = k
    return shown


def _symmetry_label(label: str) -> str:
    """``G`` as Gamma, digits as subscripts."""
    letters = label.rstrip("0123456789")
    name = r"\Gamma" if letters in ("G", "Gamma") else rf"\mathrm{{{letters}}}"
    digits = label[len(letters) :]
    return f"${name}_{{{digits}}}$" if digits else f"${name}$"


def _distinct_components(tensor: ndarray) -> list[tuple[str, ndarray]]:
    """Components of a tensor with their names, equal ones together and negligible ones left out."""
    largest = np.abs(tensor).max()
    groups: list[tuple[list[str], ndarray]] = []
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (1, 0), (1, 2), (2, 1), (2, 0), (0, 2)]
    for a, b in order:
        values = tensor[a, b]
        if np.abs(values).max() <= 0.01 * largest and (a, b) != (0, 0):
            continue
        for names, first in groups:
            if np.abs(values - first).max() <= 0.01 * largest:
                names.append("xyz"[a] + "xyz"[b])
                break
        else:
            groups.append((["xyz"[a] + "xyz"[b]], values))
    return [(" = ".join(names), values) for names, values in groups]


def _scale(largest: float) -> tuple[float, str]:
    """A power of ten of S/m that leaves numbers of order one, and its name."""
    exponent = 3 * int(np.floor(np.log10(largest) / 3)) if largest > 0 else 0
    return 10.0**exponent, f"$10^{{{exponent}}}$ S/m" if exponent else "S/m"


__all__ = [
    "COLOURS",
    "DASHES",
    "blank_figure",
    "legend_above",
    "plot_bands",
    "plot_bands_beside",
    "plot_dos",
    "plot_optical_conductivity",
]
