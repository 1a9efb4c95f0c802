"""Functions of the distance: Simpson's rule, and Bessel transforms on ABACUS's universal mesh.

Two-centre integrals are products in reciprocal space. ABACUS takes all radial functions of a
structure to one mesh whose extent is set by the largest cutoff among its orbitals and projectors
(``TwoCenterBundle::tabulate``), so that tables depend on the set of species through that number
alone: :class:`UniversalMesh`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray
from scipy.interpolate import CubicSpline
from scipy.special import spherical_jn

MESH_SPACING = 0.01
"""Bohr; what ABACUS divides the largest cutoff by to get the number of points."""


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


@dataclass(frozen=True)
class UniversalMesh:
    """Uniform meshes in r and k that belong together: r_n = n dr, k_m = m pi / (n_max dr).

    Parameters
    ----------
    cutoff
        The largest cutoff of the orbitals and projectors in Bohr; r goes up to twice that.
    """

    cutoff: float

    @property
    def npoints(self) -> int:
        """Points of either mesh, both ends included."""
        return int(self.cutoff / MESH_SPACING) + 1

    @property
    def r(self) -> ndarray:
        """Distances in Bohr, shape (npoints,)."""
        return np.arange(self.npoints) * (2 * self.cutoff / (self.npoints - 1))

    @property
    def k(self) -> ndarray:
        """Wave numbers in 1/Bohr, shape (npoints,)."""
        return np.arange(self.npoints) * (np.pi / (2 * self.cutoff))

    def resampled(self, r: ndarray, values: ndarray) -> ndarray:
        """Functions on another mesh taken to this one by not-a-knot splines, zero outside.

        Parameters
        ----------
        r
            Distances in Bohr, shape (n,).
        values
            Shape (..., n).
        """
        inside = (self.r >= r[0]) & (self.r <= r[-1])
        result = np.zeros((*values.shape[:-1], self.npoints))
        result[..., inside] = CubicSpline(r, values, axis=-1)(self.r[inside])
        return result

    def to_k(self, l: int, r2_values: ndarray) -> ndarray:
        """sqrt(2 / pi) * integral of r^2 f(r) j_l(k r) dr, for r^2 f on the mesh.

        Parameters
        ----------
        r2_values
            Shape (..., npoints).

        Returns
        -------
        ndarray
            Shape (..., npoints), on ``k``.
        """
        return _transform(l, r2_values) * (self.r[1] * np.sqrt(2 / np.pi))

    def to_r(self, l: int, values: ndarray) -> ndarray:
        """4 pi * integral of f(k) j_l(k r) dk, for f on the mesh; shape of the argument."""
        return _transform(l, values) * (4 * np.pi * self.k[1])

    def limit(self, l: int, values: ndarray) -> ndarray:
        """The r -> 0 limit of :meth:`to_r` over r^l by Simpson's rule, shape (...)."""
        factorial = np.prod(np.arange(2 * l + 1, 0, -2, dtype=float))  # (2l + 1)!!
        weights = simpson_weights(self.npoints) * (4 * np.pi * self.k[1] / factorial)
        return values @ (weights * self.k**l)


def _transform(l: int, values: ndarray) -> ndarray:
    """Sums of values times Bessel functions, with the weights of ABACUS.

    ``SphericalBesselTransformer::radrfft`` makes plain sums without the last point by Fourier
    transforms, and avoids these where they lose digits: at zero (a plain sum with the last point)
    and at the next few points for large l (Simpson's rule). The rules differ by up to 0.003 meV in
    kinetic energies of f orbitals.
    """
    n = values.shape[-1]
    bessel = bessel_matrix(n, l)
    result = values[..., :-1] @ bessel[:-1]
    if l == 0:
        result[..., 0] += values[..., -1]
        return result
    direct = 1 + int(n * 1e-8 ** (1 / l))
    result[..., 1:direct] = (values * simpson_weights(n)) @ bessel[:, 1:direct]
    return result


@lru_cache(maxsize=16)
def bessel_matrix(npoints: int, l: int) -> ndarray:
    """j_l(k_m r_n) on a :class:`UniversalMesh`, shape (npoints, npoints), symmetric."""
    n = np.arange(npoints)
    matrix = spherical_jn(l, np.outer(n, n) * (np.pi / (npoints - 1)))
    matrix.flags.writeable = False
    return matrix
