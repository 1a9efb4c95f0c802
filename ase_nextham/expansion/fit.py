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
    scale = np.trace(gram) / len(gram)
    matrix = gram + ridge * scale * np.eye(len(gram))
    if zero is None:
        return _solved(matrix, right)
    # on the plane of vectors that fulfil the condition: a Householder reflection maps the
    # condition to "the first component is zero"
    mirror = np.array(zero, float)
    mirror /= np.linalg.norm(mirror)
    mirror[0] += 1 if mirror[0] >= 0 else -1
    mirror /= np.linalg.norm(mirror)

    def reflected(vectors: ndarray) -> ndarray:
        return vectors - 2 * np.multiply.outer(mirror, mirror @ vectors)

    inside = reflected(reflected(matrix).T)[1:, 1:]
    return reflected(np.concatenate([[0.0], _solved(inside, reflected(right)[1:])]))


def _solved(matrix: ndarray, right: ndarray) -> ndarray:
    try:
        return cho_solve(cho_factor(matrix), right)
    except np.linalg.LinAlgError:  # without a ridge, functions can be dependent: the least norm
        return lstsq(matrix, right)[0]
