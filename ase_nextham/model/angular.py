"""Spherical harmonics and 3j symbols of the rotation group, in real form.

Features of angular momentum l have the 2l+1 components of the standard real harmonics,
m = -l ... l (``"deeph"`` in :data:`ase_nextham.basis.CONVENTIONS`); for l = 1 these are y, z, x.
They turn with ``basis.rotation_matrix(l, rotation, "deeph")``, which is e3nn's Wigner matrix of
the same rotation with the axes renamed to (y, z, x). The 3j symbols are those of e3nn.
"""

from __future__ import annotations

from functools import cache
from math import factorial, sqrt

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ase_nextham.basis import real_harmonics


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> ndarray:
    """Real 3j symbols: the one tensor, up to its sign, that rotations leave unchanged.

    Returns
    -------
    ndarray
        Shape (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), sum of squares 1; sign and order are e3nn's
        (``e3nn.o3.wigner_3j``). Read-only.

    Raises
    ------
    ValueError
        If l1, l2, l3 do not form a triangle.

    Notes
    -----
    Clebsch-Gordan coefficients by Racah's formula (Edmonds 1957, eq. 3.6.10), with each index
    turned from complex to real harmonics.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"angular momenta {l1}, {l2}, {l3} do not form a triangle")
    coupling = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            if abs(m1 + m2) <= l3:
                coupling[m1 + l1, m2 + l2, m1 + m2 + l3] = _clebsch_gordan(l1, m1, l2, m2, l3)
    real = np.einsum(
        "ia,jb,kc,ijk->abc",
        _complex_from_real(l1),
        _complex_from_real(l2),
        _complex_from_real(l3).conj(),
        coupling,
    ).real
    real /= np.linalg.norm(real)
    real.flags.writeable = False
    return real


def _clebsch_gordan(l1: int, m1: int, l2: int, m2: int, l3: int) -> float:
    """<l1 m1 l2 m2 | l3 m1+m2>."""
    m3 = m1 + m2
    f = factorial
    total = 0.0
    for k in range(max(0, l2 - l3 - m1, l1 + m2 - l3), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
        total += (-1) ** k / (
            f(k)
            * f(l1 + l2 - l3 - k)
            * f(l1 - m1 - k)
            * f(l2 + m2 - k)
            * f(l3 - l2 + m1 + k)
            * f(l3 - l1 - m2 + k)
        )
    squared = (2 * l3 + 1) * f(l1 + l2 - l3) * f(l3 + l1 - l2) * f(l3 + l2 - l1)
    squared *= f(l1 + m1) * f(l1 - m1) * f(l2 + m2) * f(l2 - m2) * f(l3 + m3) * f(l3 - m3)
    return total * sqrt(squared / f(l1 + l2 + l3 + 1))


@cache
def _complex_from_real(l: int) -> ndarray:
    """Unitary matrix: complex components (rows) of the real ones, with a phase i^-l.

    The phase makes every coupling of three real harmonics real, and is e3nn's.
    """
    matrix = np.zeros((2 * l + 1, 2 * l + 1), complex)
    matrix[l, l] = 1
    for m in range(1, l + 1):
        matrix[l - m, l + m] = 1 / sqrt(2)
        matrix[l - m, l - m] = -1j / sqrt(2)
        matrix[l + m, l + m] = (-1) ** m / sqrt(2)
        matrix[l + m, l - m] = 1j * (-1) ** m / sqrt(2)
    return (-1j) ** l * matrix


def rotation(l: int, matrix: ndarray) -> ndarray:
    """How features of angular momentum l turn under a rotation of the vectors, of any l.

    Parameters
    ----------
    matrix
        Proper rotation, shape (3, 3), acting on column vectors.

    Returns
    -------
    ndarray
        Orthogonal, shape (2l+1, 2l+1): ``Y(matrix @ r) = D @ Y(r)``.
    """
    points = np.random.default_rng(l).normal(size=(4 * l + 6, 3))
    before, after = real_harmonics(l, points), real_harmonics(l, points @ matrix.T)
    return np.linalg.lstsq(before, after, rcond=None)[0].T


def harmonics(lmax: int, vectors: Tensor) -> list[Tensor]:
    """Real spherical harmonics of the directions of some vectors.

    Parameters
    ----------
    vectors
        Cartesian x, y, z, shape (n, 3), of any length.

    Returns
    -------
    list of Tensor
        For each l = 0 ... lmax, shape (n, 2l+1), with squares that add up to 2l+1. For a
        vector of length zero those of l > 0 are zero.

    Notes
    -----
    Each l from the one before, ``Y_l ~ 3j(1, l-1, l) Y_1 Y_(l-1)``.
    """
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    direction = vectors / torch.where(length > 0, length, 1)
    first = direction[:, [1, 2, 0]]
    values = [torch.ones_like(length)]
    for l in range(1, lmax + 1):
        step = torch.as_tensor(_next_harmonic(l), dtype=vectors.dtype, device=vectors.device)
        product = (first[:, :, None] * values[-1][:, None, :]).flatten(1)
        values.append(product @ step)
    return values


@cache
def _next_harmonic(l: int) -> ndarray:
    """Matrix (3 * (2l-1), 2l+1) from products of a unit vector with Y_(l-1) to Y_l."""
    # along the polar axis only m = 0 survives, with the value sqrt(2l+1)
    along_z = wigner_3j(1, l - 1, l)[1, l - 1, l]
    scale = sqrt(2 * l + 1) / (along_z * sqrt(2 * l - 1))
    return scale * wigner_3j(1, l - 1, l).reshape(-1, 2 * l + 1)
