"""Least squares for coefficients, with a ridge and an optional condition."""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy.linalg import cho_factor, cho_solve, lstsq

RIDGE = 1e-5
"""Added to the diagonal of the normal equations, by default, relative to its mean.

Coefficients of orthonormal functions are of the order one on that scale, so the ridge settles
combinations of neighbouring atoms' functions that the data do not."""


def fit(
    gram: ndarray, right: ndarray, *, ridge: float = RIDGE, zero: ndarray | None = None
) -> ndarray:
    """Minimise ``c.gram.c / 2 - right.c + ridge scale |c|^2 / 2``.

    Parameters
    ----------
    gram
        Symmetric, not negative, shape (n, n).
    right
        Shape (n,).
    ridge
        Relative to ``scale``, the mean of the diagonal of ``gram``.
    zero
        If given, ``zero @ c`` has to vanish, shape (n,).

    Returns
    -------
    ndarray
        Shape (n,).
    """
    if ridge < 0:
        raise ValueError(f"ridge={ridge} must not be negative")
    matrix = np.array(gram, float)
    matrix[np.diag_indices(len(matrix))] += ridge * np.trace(matrix) / len(matrix)
    try:
        # in place: what fills the memory for a large cell is this matrix
        factor = cho_factor(matrix, overwrite_a=True)
    except np.linalg.LinAlgError:  # without a ridge, functions can be dependent
        return _least_norm(gram, right, zero)
    free = cho_solve(factor, right)
    if zero is None:
        return free
    moved = cho_solve(factor, zero)  # where the condition pulls the minimum to
    return free - moved * ((zero @ free) / (zero @ moved))


def _least_norm(gram: ndarray, right: ndarray, zero: ndarray | None) -> ndarray:
    """The minimum without a ridge; where there are several, the smallest."""
    if zero is None:
        return lstsq(gram, right)[0]
    # on the plane of vectors that fulfil the condition: a Householder reflection maps the
    # condition to "the first component is zero"
    mirror = np.array(zero, float)
    mirror /= np.linalg.norm(mirror)
    mirror[0] += 1 if mirror[0] >= 0 else -1
    mirror /= np.linalg.norm(mirror)

    def reflected(vectors: ndarray) -> ndarray:
        return vectors - 2 * np.multiply.outer(mirror, mirror @ vectors)

    inside = reflected(reflected(gram).T)[1:, 1:]
    return reflected(np.concatenate([[0.0], lstsq(inside, reflected(right)[1:])[0]]))
