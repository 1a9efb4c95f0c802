"""Real spherical harmonics in ABACUS's order and sign, fast, and their Gaunt coefficients.

Of one l they stand as m = 0, 1, -1, 2, -2, ...; of several l one l after another, so that the
harmonic (l, m) has the index l^2 + (2m - 1 if m > 0 else -2m). Signs are those of the row
``"abacus"`` of :data:`ase_nextham.basis.CONVENTIONS`.
"""

from __future__ import annotations

from functools import lru_cache
from math import factorial

import numpy as np
from numpy import ndarray


def solid_harmonics(lmax: int, vectors: ndarray) -> ndarray:
    """r^l Y_lm(r) for all l up to ``lmax``.

    Parameters
    ----------
    vectors
        Shape (n, 3).

    Returns
    -------
    ndarray
        Shape (n, (lmax + 1)^2).

    Notes
    -----
    The recurrences of the associated Legendre functions without their sqrt(1 - z^2), times
    (x + iy)^m: polynomials, hence regular everywhere.
    """
    x, y, z = np.asarray(vectors, float).T
    r2 = x * x + y * y + z * z
    result = np.empty((len(x), (lmax + 1) ** 2))
    cosine, sine = np.ones_like(x), np.zeros_like(x)  # (-1)^m Re, Im (x + iy)^m
    double_factorial = 1.0  # (2m - 1)!!
    for m in range(lmax + 1):
        if m:
            cosine, sine = y * sine - x * cosine, -(x * sine + y * cosine)
            double_factorial *= 2 * m - 1
        before, legendre = np.zeros_like(z), np.full_like(z, double_factorial)
        for l in range(m, lmax + 1):
            norm = (2 * l + 1) / (4 * np.pi) * factorial(l - m) / factorial(l + m)
            norm = np.sqrt(norm if m == 0 else 2 * norm)
            if m == 0:
                result[:, l * l] = norm * legendre
            else:
                result[:, l * l + 2 * m - 1] = norm * legendre * cosine
                result[:, l * l + 2 * m] = norm * legendre * sine
            following = ((2 * l + 1) * z * legendre - (l + m) * r2 * before) / (l + 1 - m)
            before, legendre = legendre, following
    return result


@lru_cache(maxsize=1024)
def gaunt(l1: int, l2: int, l: int) -> ndarray:
    """Integrals of three harmonics over the unit sphere.

    Returns
    -------
    ndarray
        Shape (2 l1 + 1, 2 l2 + 1, 2 l + 1); exact zeros where the selection rules say so.

    Notes
    -----
    Gauss-Legendre quadrature in cos(theta) times the trapezoid sum in phi, exact for polynomials
    of degree l1 + l2 + l.
    """
    degree = l1 + l2 + l
    z, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    phi = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    s = np.sqrt(1 - z * z)[:, None]
    points = np.stack(
        [s * np.cos(phi), s * np.sin(phi), np.broadcast_to(z[:, None], s.shape) + 0 * phi]
    )
    values = solid_harmonics(max(l1, l2, l), points.reshape(3, -1).T)
    of = [values[:, n * n : (n + 1) ** 2] for n in (l1, l2, l)]
    weights = np.repeat(weights, len(phi)) * (2 * np.pi / len(phi))
    result = np.einsum("p,pa,pb,pc->abc", weights, *of, optimize=True)
    result[np.abs(result) < 1e-13] = 0
    result.flags.writeable = False
    return result
