"""Fourier sums and derivatives on ABACUS's grid, with the plane waves that ABACUS keeps.

Real functions only, so that half of the coefficients is enough. Coefficients are those of
``f(r) = sum_G f(G) exp(i G.r)``; plane waves with ``|G|^2 > 4 ecut`` are left out of every sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy import ndarray
from scipy import fft

from ase_nextham.h0.native.fftgrid import fft_grid
from ase_nextham.h0.native.threads import in_threads

_compiled = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@dataclass(frozen=True, eq=False)
class PlaneWaves:
    """The grid of a cell and its plane waves.

    Parameters
    ----------
    cell
        Cell vectors in Bohr as rows, shape (3, 3).
    ecut
        Cutoff of wave functions in Ry; functions here have plane waves up to four times as much.
    threads
        Threads to work with.
    """

    cell: ndarray
    ecut: float
    threads: int = 1

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of grid points along each cell vector."""
        return fft_grid(self.cell, self.ecut)

    @cached_property
    def volume(self) -> float:
        """Of the cell, in Bohr^3."""
        return float(abs(np.linalg.det(self.cell)))

    @cached_property
    def reciprocal(self) -> ndarray:
        """Reciprocal vectors in 1/Bohr as rows, with the factor 2 pi."""
        return np.ascontiguousarray(2 * np.pi * np.linalg.inv(np.asarray(self.cell, float)).T)

    @property
    def limit(self) -> float:
        """Largest |G|^2 in 1/Bohr^2."""
        return 4 * self.ecut

    @cached_property
    def indices(self) -> tuple[ndarray, ndarray, ndarray]:
        """Integers m of ``G = m @ reciprocal`` along each axis of the coefficients."""
        n1, n2, n3 = self.shape
        both = [np.rint(np.fft.fftfreq(n, 1 / n)) for n in (n1, n2)]
        return both[0], both[1], np.arange(n3 // 2 + 1.0)

    def empty(self) -> ndarray:
        """Room for the coefficients of one function."""
        return np.empty(tuple(len(m) for m in self.indices), complex)

    def to_grid(self, coefficients: ndarray) -> ndarray:
        """Values on the grid; the coefficients may be overwritten."""
        return fft.irfftn(
            coefficients, self.shape, norm="forward", workers=self.threads, overwrite_x=True
        )

    def from_grid(self, values: ndarray) -> ndarray:
        """Coefficients of values on the grid, also beyond the cutoff."""
        return fft.rfftn(values, norm="forward", workers=self.threads)

    def gradient(self, coefficients: ndarray) -> ndarray:
        """Gradient on the grid, shape (3, n1, n2, n3), per Bohr."""
        result = np.empty((3, *self.shape))
        room = self.empty()
        for axis in range(3):
            in_threads(
                _derivative,
                self.shape[0],
                self.threads,
                *self.indices,
                self.reciprocal,
                axis,
                coefficients,
                room,
            )
            result[axis] = self.to_grid(room)
        return result

    def subtract_divergence(self, vectors: ndarray, coefficients: ndarray) -> None:
        """Subtract the coefficients of a divergence.

        Parameters
        ----------
        vectors
            A vector field on the grid, shape (3, n1, n2, n3).
        coefficients
            Changed in place.
        """
        for axis in range(3):
            in_threads(
                _subtract_derivative,
                self.shape[0],
                self.threads,
                *self.indices,
                self.reciprocal,
                axis,
                self.limit,
                self.from_grid(vectors[axis]),
                coefficients,
            )


@_compiled
def _derivative(start, stop, m1, m2, m3, reciprocal, axis, source, result):
    b1, b2, b3 = reciprocal[0, axis], reciprocal[1, axis], reciprocal[2, axis]
    for i in range(start, stop):
        for j in range(m2.size):
            g = m1[i] * b1 + m2[j] * b2
            for k in range(m3.size):
                result[i, j, k] = source[i, j, k] * complex(0, g + m3[k] * b3)


@_compiled
def _subtract_derivative(start, stop, m1, m2, m3, reciprocal, axis, limit, source, result):
    for i in range(start, stop):
        for j in range(m2.size):
            x = m1[i] * reciprocal[0, 0] + m2[j] * reciprocal[1, 0]
            y = m1[i] * reciprocal[0, 1] + m2[j] * reciprocal[1, 1]
            z = m1[i] * reciprocal[0, 2] + m2[j] * reciprocal[1, 2]
            g = m1[i] * reciprocal[0, axis] + m2[j] * reciprocal[1, axis]
            for k in range(m3.size):
                gx = x + m3[k] * reciprocal[2, 0]
                gy = y + m3[k] * reciprocal[2, 1]
                gz = z + m3[k] * reciprocal[2, 2]
                if gx * gx + gy * gy + gz * gz <= limit:
                    factor = g + m3[k] * reciprocal[2, axis]
                    result[i, j, k] -= source[i, j, k] * complex(0, factor)
