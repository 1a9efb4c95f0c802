"""Radial functions of one element: Gaussians, orthonormalised on one atom.

Neighbouring Gaussians overlap almost completely, so their coefficients would be huge numbers of
alternating sign. The eigenvectors of their Gram matrix are combined instead, in the metric in
which coefficients are fitted; combinations that hardly exist are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.special import gamma

DROPPED = 1e-5
"""Eigenvalues of the Gram matrix of normalised Gaussians below which there is no function."""


def even_tempered(
    counts: Sequence[int], smallest: float = 0.2, largest: float = 8.0
) -> tuple[ndarray, ...]:
    """Exponents in geometric progression, the lowest ones for l > 0.

    Parameters
    ----------
    counts
        Number of Gaussians of l = 0, 1, ..., none larger than the first.
    smallest, largest
        Exponents of l = 0, in Bohr^-2.

    Returns
    -------
    tuple of ndarray
        Ascending, for each l.
    """
    if not counts or min(counts) < 1 or max(counts) > counts[0]:
        raise ValueError(f"counts={tuple(counts)} must be positive, and none larger than the first")
    if not 0 < smallest < largest:
        raise ValueError(f"exponents from {smallest} to {largest} do not ascend from above 0")
    ladder = np.geomspace(smallest, largest, counts[0])
    return tuple(ladder[:count] for count in counts)


@dataclass(frozen=True, eq=False)
class RadialFunctions:
    """Functions ``f_nl(r) = sum_p r^l exp(-alpha_p r^2) b_pn`` of one element.

    Parameters
    ----------
    exponents
        alpha_p of l = 0, 1, ... in Bohr^-2, each of shape (nprimitives,).
    combinations
        b_pn of each l, shape (nprimitives, nradial).
    """

    exponents: tuple[ndarray, ...]
    combinations: tuple[ndarray, ...]

    def __post_init__(self):
        for name in ("exponents", "combinations"):
            arrays = tuple(np.array(array, float) for array in getattr(self, name))
            for array in arrays:
                array.flags.writeable = False
            object.__setattr__(self, name, arrays)
        if len(self.exponents) != len(self.combinations):
            raise ValueError(
                f"exponents for {len(self.exponents)} values of l, but combinations for "
                f"{len(self.combinations)}"
            )
        for l, (alpha, b) in enumerate(zip(self.exponents, self.combinations, strict=True)):
            if b.ndim != 2 or alpha.shape != b.shape[:1] or not np.isfinite(b).all():
                raise ValueError(
                    f"l = {l}: {alpha.shape} exponents do not fit combinations of shape {b.shape}"
                )
            if not (np.isfinite(alpha) & (alpha > 0)).all():
                raise ValueError(f"l = {l}: exponents {alpha} must be positive")

    @classmethod
    def coulomb(cls, exponents: Sequence[ndarray]) -> RadialFunctions:
        """Orthonormal in the Coulomb metric ``2 f(r) f(r') / |r - r'|``, in Ry: for densities.

        In reciprocal space the metric is ``8 pi / G^2``, which gives Gamma functions.
        """
        grams = []
        for l, alpha in enumerate(np.asarray(one, float) for one in exponents):
            a, b = alpha[:, None], alpha[None]
            width = (1 / a + 1 / b) / 4
            moment = gamma(l + 0.5) / (2 * width ** (l + 0.5))
            grams.append((np.pi / a * np.pi / b) ** 1.5 / (4 * a * b) ** l * moment / np.pi**2)
        return cls._orthonormal(exponents, grams)

    @classmethod
    def weighted(cls, exponents: Sequence[ndarray], r: ndarray, w: ndarray) -> RadialFunctions:
        """Orthonormal with a weight of space, ``integral w(r) f(r)^2 d3r``: for potentials.

        Parameters
        ----------
        r, w
            Distances in Bohr on an even mesh and the weight there, shape (nmesh,); the weight is
            zero beyond.
        """
        r = np.asarray(r, float)
        weight = np.gradient(r) * r**2 * np.asarray(w, float)
        weight[[0, -1]] /= 2
        grams = []
        for l, alpha in enumerate(np.asarray(one, float) for one in exponents):
            values = r**l * np.exp(-alpha[:, None] * r**2)
            grams.append((values * weight) @ values.T)
        return cls._orthonormal(exponents, grams)

    @classmethod
    def _orthonormal(cls, exponents, grams: Sequence[ndarray]) -> RadialFunctions:
        combinations = []
        for gram in grams:
            norm = np.sqrt(np.diag(gram))
            values, vectors = np.linalg.eigh(gram / np.outer(norm, norm))
            kept = np.flatnonzero(values > DROPPED)[::-1]  # the best-defined ones first
            vectors = vectors[:, kept] / np.sqrt(values[kept])
            # the sign of an eigenvector is arbitrary, and coefficients are kept between versions
            largest = np.abs(vectors).argmax(axis=0)
            vectors = vectors * np.sign(vectors[largest, np.arange(len(kept))])
            combinations.append(vectors / norm[:, None])
        return cls(tuple(exponents), tuple(combinations))

    @property
    def lmax(self) -> int:
        """Largest angular momentum."""
        return len(self.exponents) - 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of functions of each l."""
        return tuple(b.shape[1] for b in self.combinations)

    @property
    def size(self) -> int:
        """Coefficients of one atom."""
        return sum((2 * l + 1) * n for l, n in enumerate(self.counts))

    @property
    def charges(self) -> ndarray:
        """``integral f(r) Y_00 d3r`` of the functions with l = 0, shape (nradial,)."""
        return self.transforms(0, np.zeros(1))[:, 0] / np.sqrt(4 * np.pi)

    def values(self, l: int, r: ndarray) -> ndarray:
        """f_nl at distances in Bohr, shape (nradial, ...)."""
        r = np.asarray(r, float)
        alpha = self.exponents[l].reshape(-1, *[1] * r.ndim)
        return np.tensordot(self.combinations[l].T, r**l * np.exp(-alpha * r * r), 1)

    def transforms(self, l: int, g: ndarray) -> ndarray:
        """F_nl at |G| in 1/Bohr, shape (nradial, ng).

        The integral of ``f_nl(r) Y_lm(r) exp(-i G.r)`` is ``(-i)^l F_nl(|G|) Y_lm(G)``.
        """
        return self.combinations[l].T @ self.gaussians(l, g)

    def gaussians(self, l: int, g: ndarray, which: slice | ndarray = slice(None)) -> ndarray:
        """The same of some Gaussians ``r^l exp(-alpha_p r^2)`` alone, shape (nprimitives, ng)."""
        g = np.asarray(g, float)
        alpha = self.exponents[l][which, None]
        return (np.pi / alpha) ** 1.5 * (g / (2 * alpha)) ** l * np.exp(-g * g / (4 * alpha))

    def reach(self, l: int, share: float) -> ndarray:
        """|G| beyond which :meth:`gaussians` are below a share of their maximum, (nprimitives,).

        In 1/Bohr.
        """
        return reach(l, self.exponents[l], share)


def reach(power: int, exponents: ndarray, share: float) -> ndarray:
    """|G| beyond which ``|G|^power exp(-G^2 / 4 alpha)`` is below a share of its maximum.

    In 1/Bohr, in the shape of ``exponents``, which are those of Gaussians in space.
    """
    # x^half exp(-x) with x = G^2 / 4 alpha has its maximum at x = half
    half = power / 2
    lowest = np.log(share) + (half * np.log(half) - half if power else 0.0)
    x = half - lowest
    for _ in range(20):
        x = half * np.log(x) - lowest
    return 2 * np.sqrt(exponents * x)
