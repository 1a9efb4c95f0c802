"""Gaussian cube files: a function on the grid of a cell, as ABACUS writes densities.

Two lines of comment, the number of atoms and the origin, three lines with a number of points and
the vector from one to the next in Bohr, the atoms, and the values with the last axis fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray


@dataclass(frozen=True, eq=False)
class Cube:
    """What a cube file holds, but for its atoms.

    Parameters
    ----------
    comment
        Its first two lines.
    cell
        Cell vectors in Bohr as rows, shape (3, 3); a file has six decimals of a step of the grid.
    values
        At ``(i1/n1, i2/n2, i3/n3) @ cell``, shape (n1, n2, n3).
    """

    comment: tuple[str, str]
    cell: ndarray
    values: ndarray


def read_cube(path: Path) -> Cube:
    """Read a cube file.

    Raises
    ------
    ValueError
        If the file is damaged or incomplete, or lists orbitals or lengths in Angstrom.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        comment = file.readline().strip(), file.readline().strip()
        natoms, *origin = _numbers(path, file.readline(), 4, "the number of atoms and the origin")
        axes = [_numbers(path, file.readline(), 4, f"axis {axis + 1}") for axis in range(3)]
        shape = [axis[0] for axis in axes]
        if natoms < 0 or any(n < 1 or n != int(n) for n in (*shape, natoms + 1)):
            raise ValueError(
                f"{path}: {natoms:g} atoms and {shape} points along the axes; positive integers "
                "are expected, as for a density with lengths in Bohr"
            )
        shape = [int(n) for n in shape]
        if any(origin):
            raise ValueError(f"{path}: the grid begins at {origin} instead of the origin")
        # a value has a digit and a space at least: nothing is allocated for what is not there
        if natoms + 2 * np.prod(shape, dtype=float) > path.stat().st_size:
            raise ValueError(
                f"{path}: {shape} points do not fit into {path.stat().st_size} bytes; the file is "
                "incomplete or not a cube file"
            )
        for atom in range(int(natoms)):
            _numbers(path, file.readline(), 5, f"atom {atom + 1}")
        try:
            values = np.array(file.read().split(), float)
        except ValueError as error:
            raise ValueError(f"{path}: a value is not a number: {error}") from error
    if values.size != np.prod(shape):
        raise ValueError(
            f"{path}: {values.size} values, but {shape} points have {np.prod(shape)}; the file is "
            "incomplete or holds several functions"
        )
    cell = np.array([np.multiply(axis[1:], n) for axis, n in zip(axes, shape, strict=True)])
    return Cube(comment, cell, values.reshape(shape))


def _numbers(path: Path, line: str, count: int, what: str) -> list[float]:
    words = line.split()
    try:
        if len(words) < count:
            raise ValueError(f"{len(words)} numbers instead of {count}")
        return [float(word) for word in words[:count]]
    except ValueError as error:
        raise ValueError(
            f"{path}: the line of {what} is {line.strip()[:60]!r}; the file is incomplete or not "
            "a cube file"
        ) from error
