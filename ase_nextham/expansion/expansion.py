"""Which functions each element has, what they add up to, and where each coefficient stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy import ndarray

from ase_nextham.basis import rotation_matrix
from ase_nextham.expansion.radial import RadialFunctions

KINDS = ("density", "potential")
"""What an expansion is of: the change of the density in Bohr^-3, or of the potential in Ry."""


@dataclass(frozen=True, eq=False)
class Expansion:
    """Atom-centred functions for the elements of a model.

    Coefficients of a structure are one array: atom after atom; of one atom l after l; of one l
    shape (nradial, 2l + 1) row-major, with m = 0, 1, -1, 2, -2, ... in ABACUS's signs.

    Parameters
    ----------
    kind
        One of :data:`KINDS`.
    radial
        The radial functions of each element, by symbol.
    """

    kind: str
    radial: Mapping[str, RadialFunctions]

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; known: {', '.join(KINDS)}")
        if not self.radial:
            raise ValueError("an expansion needs the functions of one element at least")
        object.__setattr__(self, "radial", MappingProxyType(dict(self.radial)))

    def __repr__(self):
        sizes = ", ".join(f"{symbol}: {one.size}" for symbol, one in self.radial.items())
        return f"Expansion({self.kind}; {sizes})"

    def __reduce__(self):  # mapping proxies cannot be copied
        return Expansion, (self.kind, dict(self.radial))

    def of(self, symbol: str) -> RadialFunctions:
        """The functions of one element.

        Raises
        ------
        ValueError
            If there are none, naming those that have some.
        """
        try:
            return self.radial[symbol]
        except KeyError:
            raise ValueError(
                f"the expansion has no functions for {symbol!r}; it has {', '.join(self.radial)}"
            ) from None

    def offsets(self, symbols: Sequence[str]) -> ndarray:
        """Where the coefficients of each atom begin, and the end; shape (natoms + 1,)."""
        return np.concatenate([[0], np.cumsum([self.of(one).size for one in symbols], dtype=int)])

    def blocks(self, symbols: Sequence[str], coefficients: ndarray) -> list[list[ndarray]]:
        """Views of the coefficients by atom and l, each of shape (nradial, 2l + 1).

        Raises
        ------
        ValueError
            If there are not as many coefficients as the structure has.
        """
        offsets = self.offsets(symbols)
        coefficients = np.asarray(coefficients)
        if coefficients.shape != (offsets[-1],):
            raise ValueError(
                f"coefficients have shape {coefficients.shape}, but {len(symbols)} atoms of "
                f"{self} have ({offsets[-1]},)"
            )
        result = []
        for start, symbol in zip(offsets, symbols, strict=False):
            atom = []
            for l, count in enumerate(self.of(symbol).counts):
                stop = start + count * (2 * l + 1)
                atom.append(coefficients[start:stop].reshape(count, 2 * l + 1))
                start = stop
            result.append(atom)
        return result

    def rotated(self, symbols: Sequence[str], coefficients: ndarray, rotation) -> ndarray:
        """Coefficients of the structure turned by an orthogonal matrix, proper or not."""
        coefficients = np.array(coefficients, float)
        for atom in self.blocks(symbols, coefficients):
            for l, block in enumerate(atom):
                block[:] = block @ rotation_matrix(l, rotation).T
        return coefficients

    def charges(self, symbols: Sequence[str]) -> ndarray:
        """What each coefficient adds to the integral over a cell, shape (ncoefficients,)."""
        result = np.zeros(self.offsets(symbols)[-1])
        for start, symbol in zip(self.offsets(symbols), symbols, strict=False):
            own = self.of(symbol).charges
            result[start : start + len(own)] = own
        return result

    def neutral(self, symbols: Sequence[str], coefficients: ndarray) -> ndarray:
        """The nearest coefficients whose integral over a cell is zero.

        Linear, and its own transpose: the projection along :meth:`charges`.
        """
        q = self.charges(symbols)
        coefficients = np.asarray(coefficients, float)
        return coefficients - q * ((q @ coefficients) / (q @ q))

    # --- on disk -----------------------------------------------------------------------------

    def as_dict(self) -> dict:
        """All of it in lists and numbers, for JSON; floats survive exactly."""
        return {
            "kind": self.kind,
            "radial": {
                symbol: {
                    "exponents": [array.tolist() for array in one.exponents],
                    "combinations": [array.tolist() for array in one.combinations],
                }
                for symbol, one in self.radial.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> Expansion:
        """The inverse of :meth:`as_dict`.

        Raises
        ------
        ValueError
            If anything is missing or does not fit.
        """
        try:
            radial = {
                str(symbol): RadialFunctions(tuple(one["exponents"]), tuple(one["combinations"]))
                for symbol, one in values["radial"].items()
            }
            return cls(values["kind"], radial)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this does not describe an expansion: {error!r}") from error

    @property
    def fingerprint(self) -> str:
        """sha256 of all numbers: coefficients mean the same where it is the same."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
