"""From coefficients to plane waves and back, exactly.

``f(G) = sum_a,nlm c_a,nlm (-i)^l F_nl(|G|) Y_lm(G) exp(-i G.tau_a) / volume`` is linear in the
coefficients. Its transpose takes the gradient of any real function of f to that of c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from ase_nextham.basis import convention_matrix, real_harmonics
from ase_nextham.expansion.expansion import Expansion
from ase_nextham.expansion.gram import NOTHING, gram
from ase_nextham.expansion.radial import RadialFunctions

_PORTION = (256, 2048)
"""Plane waves that are worked on at a time, at least and at most."""

_SHARES = 40
"""Portions that plane waves are divided into between these limits. They are sorted by length: the
fewer there are in a portion, the more often a Gaussian is zero in all of it."""


@dataclass(frozen=True, eq=False)
class _Portion:
    """Plane waves of about the same length.

    Parameters
    ----------
    places
        Which they are, ascending in length, shape (ng,).
    lengths
        Of their vectors.
    harmonics
        Y_lm(G) / volume of each l, shape (2l + 1, ng).
    """

    places: ndarray
    lengths: ndarray
    harmonics: list[ndarray]


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
        gaussians = self._to_gaussians(np.asarray(coefficients, float))
        result = np.zeros(len(self.vectors), complex)
        for part in self._portions:
            phases = self._phases(part)
            for (symbol, atoms, _), own in zip(self._species, gaussians, strict=True):
                sums = np.zeros((len(atoms), len(part.places)), complex)
                for l, active, transforms in self._active(symbol, part):
                    values = own[l][:, :, active] @ transforms
                    sums += (-1j) ** l * np.einsum("amg,mg->ag", values, part.harmonics[l])
                result[part.places] += np.einsum("ag,ag->g", sums, phases[atoms])
        return result

    def transpose(self, plane_waves: ndarray) -> ndarray:
        """Real part of ``sum_G conj(df(G)/dc) y(G)``, shape (ncoefficients,).

        With ``y = w f`` and weights w of plane waves this is the gradient of
        ``sum_G w |f(G)|^2 / 2``.
        """
        y = np.asarray(plane_waves, complex)
        if y.shape != (len(self.vectors),):
            raise ValueError(f"{y.shape} coefficients, but there are {len(self.vectors)} waves")
        gaussians = self._to_gaussians(np.zeros(self.size))
        for part in self._portions:
            turned = self._phases(part).conj() * y[part.places]
            for (symbol, atoms, _), own in zip(self._species, gaussians, strict=True):
                for l, active, transforms in self._active(symbol, part):
                    values = (1j**l * turned[atoms]).real[:, None] * part.harmonics[l]
                    own[l][:, :, active] += values @ transforms.T
        return self._from_gaussians(gaussians)

    def matrix(self) -> ndarray:
        """df(G)/dc, complex, shape (ncoefficients, ng)."""
        result = np.empty((self.size, len(self.vectors)), complex)
        for part in self._portions:
            phases = self._phases(part)
            for symbol, atoms, index in self._species:
                functions = self.expansion.of(symbol)
                rows = [
                    functions.transforms(l, part.lengths)[:, None] * ((-1j) ** l * harmonics)
                    for l, harmonics in enumerate(part.harmonics[: functions.lmax + 1])
                ]
                rows = np.concatenate([one.reshape(-1, len(part.places)) for one in rows])
                result[index[:, :, None], part.places] = rows * phases[atoms][:, None]
        return result

    def gram(self, weights: ndarray) -> ndarray:
        """``Re sum_G w(G) conj(df/dc_k) df/dc_l``, shape (ncoefficients, ncoefficients)."""
        there = self.lengths > 1e-9
        symbols = [symbol for symbol, _, _ in self._species]
        return gram(
            [self.expansion.of(symbol) for symbol in symbols],
            np.array([symbols.index(symbol) for symbol in self.symbols]),
            self.tau,
            self.vectors[there],
            np.asarray(weights, float)[there] / self.volume**2,
        )

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
    def _portions(self) -> list[_Portion]:
        lmax = max(self.expansion.of(symbol).lmax for symbol in self.symbols)
        order = np.argsort(self.lengths, kind="stable")
        harmonics = [self._harmonics(l, order) for l in range(lmax + 1)]
        size = int(np.clip(len(order) // _SHARES, *_PORTION))
        slices = [slice(start, start + size) for start in range(0, len(order), size)]
        return [
            _Portion(order[part], self.lengths[order[part]], [one[:, part] for one in harmonics])
            for part in slices
        ]

    def _harmonics(self, l: int, places: ndarray) -> ndarray:
        """Y_lm(G) / volume, shape (2l + 1, ng); zero at G = 0."""
        there = self.lengths[places] > 1e-9
        directions = np.where(there[:, None], self.vectors[places], [0, 0, 1])
        values = convention_matrix(l, "abacus") @ real_harmonics(l, directions).T
        return values * (there / self.volume)

    def _phases(self, part: _Portion) -> ndarray:
        """exp(-i G.tau), shape (natoms, ng)."""
        return np.exp(-1j * (self.tau @ self.vectors[part.places].T))

    def _active(self, symbol: str, part: _Portion) -> Iterator[tuple[int, ndarray, ndarray]]:
        """Of each l the Gaussians that are not zero there, and their transforms, (n, ng)."""
        functions = self.expansion.of(symbol)
        for l, reach in enumerate(self._reach[symbol]):
            active = np.flatnonzero(reach > part.lengths[0])
            if len(active):
                yield l, active, functions.gaussians(l, part.lengths, active)

    @cached_property
    def _reach(self) -> dict[str, list[ndarray]]:
        """Of each species and l where the transforms of its Gaussians end, in 1/Bohr."""
        return {
            symbol: [functions.reach(l, NOTHING) for l in range(functions.lmax + 1)]
            for symbol, functions in self.expansion.radial.items()
            if symbol in self.symbols
        }

    def _to_gaussians(self, coefficients: ndarray) -> list[list[ndarray]]:
        """Coefficients of Gaussians by species and l, shape (natoms, 2l + 1, nprimitives)."""
        found = []
        for symbol, _, index in self._species:
            functions = self.expansion.of(symbol)
            blocks = zip(functions.combinations, _by_l(functions, coefficients[index]), strict=True)
            found.append([np.einsum("pn,anm->amp", b, block) for b, block in blocks])
        return found

    def _from_gaussians(self, gaussians: list[list[ndarray]]) -> ndarray:
        """The transpose of :meth:`_to_gaussians`."""
        result = np.empty(self.size)
        for (symbol, _, index), own in zip(self._species, gaussians, strict=True):
            functions = self.expansion.of(symbol)
            blocks = [
                np.einsum("pn,amp->anm", b, one).reshape(len(index), -1)
                for b, one in zip(functions.combinations, own, strict=True)
            ]
            result[index] = np.concatenate(blocks, axis=1)
        return result


def _by_l(functions: RadialFunctions, coefficients: ndarray) -> Iterator[ndarray]:
    """Coefficients of atoms, shape (natoms, size), as (natoms, nradial, 2l + 1) of each l."""
    start = 0
    for l, count in enumerate(functions.counts):
        stop = start + (2 * l + 1) * count
        yield coefficients[:, start:stop].reshape(-1, count, 2 * l + 1)
        start = stop
