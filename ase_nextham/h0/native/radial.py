"""Functions of the distance on uniform meshes: integrals."""

from __future__ import annotations

import numpy as np
from numpy import ndarray


def simpson_weights(n: int) -> ndarray:
    """Weights of Simpson's rule on ``n`` points at distance 1, shape (n,).

    For an even number of points the last three intervals go by the 3/8 rule, as in ABACUS.
    """
    if n < 2 or n == 2:
        return np.full(max(n, 0), 0.5)
    weights = np.zeros(n)
    odd = n if n % 2 else n - 3
    if odd > 1:
        weights[:odd] = 2 / 3
        weights[1:odd:2] = 4 / 3
        weights[[0, odd - 1]] = 1 / 3
    if n % 2 == 0:
        weights[-4:] += np.array([3, 9, 9, 3]) / 8
    return weights
