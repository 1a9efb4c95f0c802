"""Numbers for the elements, on the periodic table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from ase_nextham import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PERIODS = (2, 10, 18, 36, 54, 86, 118)  # the last element of each
_LANTHANIDES, _ACTINIDES = range(57, 71), range(89, 103)
_FEWEST_ROWS = 4


def periodic_table(
    values: Mapping[str, float], *, label: str, small: Mapping[str, float] | None = None
) -> Figure:
    """A periodic table, coloured by the numbers of some elements.

    Parameters
    ----------
    values
        By chemical symbol, at least 0. Elements without a number are grey.
    label
        Of the colours.
    small
        Second numbers, printed below the first ones.

    Raises
    ------
    ValueError
        If there are no values, or one is not of an element.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    known = set(chemical_symbols[1:])
    strangers = values.keys() - known
    if strangers or not values:
        raise ValueError(
            f"{min(strangers)!r} is not the symbol of an element" if strangers else "no elements"
        )
    places = _places(max(chemical_symbols.index(symbol) for symbol in values))
    bottom = max(row for _, row in places.values()) + 1
    figure, ax = plot.blank_figure(8.4, 0.1 + 8.3 / 18 * bottom)
    colours = colormaps["YlOrRd"]
    norm = Normalize(0, max(values.values()) or 1.0)
    for symbol, (column, row) in places.items():
        value = values.get(symbol)
        face = "0.95" if value is None else colours(0.05 + 0.8 * norm(value))
        ink = "0.6" if value is None else _ink(face)
        ax.add_patch(
            Rectangle((column, row), 0.94, 0.94, facecolor=face, edgecolor="white", linewidth=0)
        )
        middle = column + 0.47
        if value is None:
            ax.text(middle, row + 0.47, symbol, ha="center", va="center", color=ink, fontsize=8)
            continue
        style = {"ha": "center", "va": "center", "color": ink}
        second = None if small is None else small.get(symbol)
        first, below = (0.30, 0.66) if second is None else (0.24, 0.53)
        ax.text(middle, row + first, symbol, fontsize=9, fontweight="bold", **style)
        ax.text(middle, row + below, _number(value), fontsize=8, **style)
        if second is not None:
            ax.text(middle, row + 0.79, _number(second), fontsize=6, **style)
    ax.set_xlim(0, 18)
    ax.set_ylim(bottom, 0)
    ax.set_aspect("equal")
    ax.axis("off")
    scale = ScalarMappable(norm, colours.resampled(256))
    scale.set_cmap(_part(colours, 0.05, 0.85))
    # in the empty corner above the transition metals
    inset = ax.inset_axes([3.0, 0.75, 8.0, 0.28], transform=ax.transData)
    bar = figure.colorbar(scale, cax=inset, orientation="horizontal")
    bar.set_label(label, size=9)
    bar.ax.xaxis.set_label_position("top")
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_linewidth(0.5)
    return figure


def _places(heaviest: int) -> dict[str, tuple[int, float]]:
    """Column and row of each element of the periods that are needed, from 0."""
    nperiods = max(1 + int(np.searchsorted(_PERIODS, heaviest)), _FEWEST_ROWS)
    places: dict[str, tuple[int, float]] = {}
    first = 1
    for row, last in enumerate(_PERIODS[:nperiods]):
        for number in range(first, last + 1):
            column: int = number - first
            below: float = row
            if number in _LANTHANIDES or number in _ACTINIDES:
                column = 3 + number - (_LANTHANIDES if row == 5 else _ACTINIDES)[0]
                below = nperiods + 0.4 + (row - 5)
            elif column >= 2 or last == 2:
                column = 17 - (last - number)  # counted from the noble gas
            places[chemical_symbols[number]] = (column if number > 1 else 0, below)
        first = last + 1
    return places


def _ink(face) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = face[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _part(colours, begin: float, end: float):
    from matplotlib.colors import ListedColormap

    return ListedColormap(colours(np.linspace(begin, end, 256)))


def _number(value: float) -> str:
    """Three digits at most."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


__all__ = ["periodic_table"]
