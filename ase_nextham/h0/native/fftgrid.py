"""The real-space grid of ABACUS: its dimensions follow from the cell and the plane-wave cutoff.

Matrix elements are plain sums over this grid, and they depend on it by up to 0.5 meV, so the
rule must be followed exactly. ABACUS also rounds up to whole "big cells", blocks of 2 to 5 points;
this changes nothing, as it chooses edges that divide the number of points, and every product of
2, 3 and 5 above 2 has one.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray


def fft_grid(cell: ndarray, ecut: float) -> tuple[int, int, int]:
    """Dimensions of the grid for densities and potentials.

    Parameters
    ----------
    cell
        Cell vectors in Bohr as rows, shape (3, 3).
    ecut
        Plane-wave cutoff of wave functions (``ecutwfc``) in Ry; that of densities is four times
        as large.

    Returns
    -------
    tuple
        The number of points along each cell vector: at least ``2 max |m| + 1``, with the largest
        index m of a plane wave with ``|m.B|^2 <= 4 ecut``, and a product of 2, 3 and 5.

    Raises
    ------
    ValueError
        If the cell has no volume or the cutoff is not positive.
    """
    cell = np.asarray(cell, float)
    if cell.shape != (3, 3) or abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError(f"the cell {cell.tolist()} (in Bohr) spans no volume")
    if not ecut > 0:
        raise ValueError(f"the plane-wave cutoff is {ecut} Ry; it must be positive")
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    metric = reciprocal @ reciprocal.T
    return tuple(_smooth(2 * _largest_index(metric, axis, 4 * ecut) + 1) for axis in range(3))


def _largest_index(metric: ndarray, axis: int, limit: float) -> int:
    """Largest integer m[axis] of all integer m with ``m @ metric @ m <= limit``."""
    others = [k for k in range(3) if k != axis]
    inner = metric[np.ix_(others, others)]
    inverse = np.linalg.inv(inner)
    coupling = metric[axis, others]
    # what remains of the form when m[others] is chosen best, as real numbers
    least = metric[axis, axis] - coupling @ inverse @ coupling
    for m in range(int(np.sqrt(limit / least)) + 1, 0, -1):
        center = -m * inverse @ coupling
        reach = np.sqrt(max(limit - m * m * least, 0) * np.diag(inverse)) + 1e-9
        a, b = (
            np.arange(np.ceil(low), np.floor(high) + 1)
            for low, high in zip(center - reach, center + reach, strict=True)
        )
        a, b = a[:, None], b[None]
        form = (
            m * m * metric[axis, axis]
            + 2 * m * (coupling[0] * a + coupling[1] * b)
            + inner[0, 0] * a * a
            + 2 * inner[0, 1] * a * b
            + inner[1, 1] * b * b
        )
        if (form <= limit).any():
            return m
    return 0


def _smooth(n: int) -> int:
    """The smallest product of 2, 3 and 5 that is not below n."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
