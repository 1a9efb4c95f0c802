"""From coefficients to plane waves and back, exactly.

``f(G) = sum_a,nlm c_a,nlm (-i)^l F_nl(|G|) Y_lm(G) exp(-i G.tau_a) / volume`` is linear in the
coefficients. Its transpose takes the gradient of any real function of f to that of c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy import ndarray

from ase_nextham.basis import convention_matrix, real_harmonics
from ase_nextham.expansion.expansion import Expansion

_PORTION = 8192
"""Plane waves that are worked on at a time."""


class PlaneWaveSums:
    """The plane waves of one structure and its expansion there.

    Parameters
    ----------
    expansion
        With functions for all symbols.
    symbols
        Of each atom.
    tau
        Positions in Bohr, Cartesian, shape (natoms, 3); any lattice vector may be added.
    vectors
        Reciprocal lattice vectors G in 1/Bohr, shape (ng, 3). What is at G = 0 is left out of
        every sum: a constant potential is gauge, and a change of the density has no charge.
    volume
        Of the cell in Bohr^3.
    """

    def __init__(
        self,
        expansion: Expansion,
        symbols: Sequence[str],
        tau: ndarray,
        vectors: ndarray,
        volume: float,
    ):
        self.expansion = expansion
        self.symbols = tuple(symbols)
        self.tau = np.asarray(tau, float)
        self.vectors = np.asarray(vectors, float)
        self.volume = float(volume)
        self.offsets = expansion.offsets(self.symbols)
        self.lengths = np.linalg.norm(self.vectors, axis=1)

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return int(self.offsets[-1])

    def plane_waves(self, coefficients: ndarray) -> ndarray:
        """f(G) of coefficients (ncoefficients,): complex, shape (ng,)."""
        self.expansion.blocks(self.symbols, coefficients)  # checks the shape
        coefficients = np.asarray(coefficients, float)
        result = np.zeros(len(self.vectors), complex)
        for part in self._portions():
            phases = self._phases(part)
            for symbol, atoms, index in self._species:
                # over atoms first, so that functions are multiplied once per element
                summed = coefficients[index].T @ phases[atoms]
                for l, rows, radial, angular in self._functions(symbol, part):
                    own = summed[rows].reshape(len(radial), 2 * l + 1, -1)
                    result[part] += np.einsum("ng,mg,nmg->g", radial, angular, own, optimize=True)
        return result

    def transpose(self, plane_waves: ndarray) -> ndarray:
        """Real part of ``sum_G conj(df(G)/dc) y(G)``, shape (ncoefficients,).

        With ``y = w f`` and weights w of plane waves this is the gradient of
        ``sum_G w |f(G)|^2 / 2``.
        """
        y = np.asarray(plane_waves, complex)
        if y.shape != (len(self.vectors),):
            raise ValueError(f"{y.shape} coefficients, but there are {len(self.vectors)} waves")
        result = np.zeros(self.size)
        for part in self._portions():
            for _, index, rows in self._rows(part):
                result[index] += (rows.conj() @ y[part]).real
        return result

    def matrix(self, part: slice = slice(None)) -> ndarray:
        """df(G)/dc for the plane waves of a slice, complex, shape (ncoefficients, ng)."""
        result = np.zeros((self.size, len(self.vectors[part])), complex)
        for _, index, rows in self._rows(part):
            result[index] = rows
        return result

    def gram(self, weights: ndarray) -> ndarray:
        """``Re sum_G w(G) conj(df/dc_k) df/dc_l``, shape (ncoefficients, ncoefficients)."""
        result = np.zeros((self.size, self.size))
        for part in self._portions():
            rows = self.matrix(part) * np.sqrt(weights[part])
            real = np.concatenate([rows.real, rows.imag], axis=1)
            result += real @ real.T
        return result

    # --- inside --------------------------------------------------------------------------------

    @cached_property
    def _species(self) -> list[tuple[str, ndarray, ndarray]]:
        """Of each species its atoms and their coefficients' places, shape (natoms, size)."""
        found = []
        for symbol in dict.fromkeys(self.symbols):
            atoms = np.flatnonzero(np.array(self.symbols) == symbol)
            size = self.expansion.of(symbol).size
            found.append((symbol, atoms, self.offsets[atoms][:, None] + np.arange(size)))
        return found

    @cached_property
    def _harmonics(self) -> list[ndarray]:
        """(-i)^l Y_lm(G) / volume of each l, shape (2l + 1, ng); zero at G = 0."""
        there = self.lengths > 1e-9
        directions = np.where(there[:, None], self.vectors, [0, 0, 1])
        lmax = max(self.expansion.of(symbol).lmax for symbol in self.symbols)
        return [
            convention_matrix(l, "abacus")
            @ real_harmonics(l, directions).T
            * (there * (-1j) ** l / self.volume)
            for l in range(lmax + 1)
        ]

    def _portions(self) -> Iterator[slice]:
        for start in range(0, len(self.vectors), _PORTION):
            yield slice(start, start + _PORTION)

    def _phases(self, part: slice) -> ndarray:
        return np.exp(-1j * (self.tau @ self.vectors[part].T))

    def _functions(self, symbol: str, part: slice):
        """Of each l its rows among an atom's coefficients, F_nl and Y_lm."""
        functions, start = self.expansion.of(symbol), 0
        for l, count in enumerate(functions.counts):
            stop = start + count * (2 * l + 1)
            radial = functions.transforms(l, self.lengths[part])
            yield l, slice(start, stop), radial, self._harmonics[l][:, part]
            start = stop

    def _rows(self, part: slice) -> Iterator[tuple[int, ndarray, ndarray]]:
        """Of each atom its coefficients' places and df(G)/dc, shape (size, ng)."""
        phases = self._phases(part)
        for symbol, atoms, index in self._species:
            pieces = [
                (radial[:, None] * angular[None]).reshape(-1, radial.shape[1])
                for _, _, radial, angular in self._functions(symbol, part)
            ]
            common = np.concatenate(pieces)
            for atom, places in zip(atoms, index, strict=True):
                yield atom, places, common * phases[atom]
