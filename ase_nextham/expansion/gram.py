"""Products of atom-centred Gaussians with each other, summed over plane waves.

The product of the transforms of two Gaussians is again powers of |G|, a Gaussian and spherical
harmonics. With all functions of two atoms there are far fewer different products than pairs of
functions, and they end sooner than their factors: each is summed once for each pair of atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy import ndarray

from ase_nextham.basis import convention_matrix, real_harmonics
from ase_nextham.expansion.radial import RadialFunctions, reach

NOTHING = 1e-14
"""Share of its largest value below which the transform of a Gaussian is zero."""

_PORTION = 1024
"""Plane waves that are worked on at a time."""

_PAIRS = 2048
"""Pairs of atoms that are worked on at a time."""


class GaussianProducts:
    """What the products of the Gaussians of some species are made of.

    Parameters
    ----------
    functions
        Of each species.
    """

    def __init__(self, functions: Sequence[RadialFunctions]):
        self.functions = list(functions)
        lmax = max(one.lmax for one in self.functions)
        self.lmax = lmax
        found = [[] for _ in range(2 * lmax + 1)]
        for a in self.functions:
            for b in self.functions:
                for l in range(a.lmax + 1):
                    for k in range(b.lmax + 1):
                        found[l + k].append(_widths(a.exponents[l], b.exponents[k]).ravel())
        # kappa of |G|^n exp(-kappa G^2), for each n
        self.widths = [np.unique(np.concatenate(one)) for one in found]
        self.reach = [reach(n, 1 / (4 * kappa), NOTHING) for n, kappa in enumerate(self.widths)]

    def sums(self, tau: ndarray, atoms: range, waves: Iterable) -> dict:
        """Sums of all products over the plane waves, for pairs of atoms.

        Parameters
        ----------
        tau
            Shape (natoms, 3).
        atoms
            The first atoms of the pairs; the second ones are the same and all after it.
        waves
            Vectors, lengths and weights in portions, the shortest first.

        Returns
        -------
        dict
            For n and L: ``sum_G w |G|^n exp(-kappa G^2) Y_LM(G)`` times the cosine or, for odd n,
            the sine of ``G.(tau_first - tau_second)``, shape (npairs, nwidths, 2 L + 1).
        """
        npairs = sum(len(tau) - a for a in atoms)
        result = {
            (n, L): np.zeros((npairs, len(kappa), 2 * L + 1))
            for n, kappa in enumerate(self.widths)
            for L in range(n % 2, n + 1, 2)
        }
        for vectors, lengths, weights in waves:
            waving = _differences(tau @ vectors.T, atoms)
            needed = [n for n, end in enumerate(self.reach) if end.max() > lengths[0]]
            harmonics = [
                real_harmonics(L, vectors).T * weights for L in range(max(needed, default=-1) + 1)
            ]
            for n, kappa in enumerate(self.widths):
                active = np.flatnonzero(self.reach[n] > lengths[0])
                if not len(active):
                    continue
                radial = lengths**n * np.exp(-kappa[active, None] * lengths**2)
                for L in range(n % 2, n + 1, 2):
                    columns = (radial[:, None] * harmonics[L]).reshape(-1, len(lengths))
                    values = waving[n % 2] @ columns.T
                    result[n, L][:, active] += values.reshape(npairs, len(active), -1)
        return result

    def block(self, sums: dict, a: RadialFunctions, b: RadialFunctions, which: ndarray) -> ndarray:
        """Gram matrices of the functions of two atoms.

        Parameters
        ----------
        sums
            From :meth:`sums`.
        a, b
            Functions of the first and of the second atom of the pairs ``which`` (n,).

        Returns
        -------
        ndarray
            Shape (n, a.size, b.size).
        """
        result = np.empty((len(which), a.size, b.size))
        row = 0
        for l, (alpha, left) in enumerate(zip(a.exponents, a.combinations, strict=True)):
            column, below = 0, row + left.shape[1] * (2 * l + 1)
            for k, (beta, right) in enumerate(zip(b.exponents, b.combinations, strict=True)):
                places = np.searchsorted(self.widths[l + k], _widths(alpha, beta))
                total = np.zeros((len(which), left.shape[1], 2 * l + 1, right.shape[1], 2 * k + 1))
                left_, right_ = _prefactors(l, alpha) * left, _prefactors(k, beta) * right
                for L, coupling in _couplings(l, k):
                    values = sums[l + k, L][which[:, None, None], places]
                    values = np.einsum("qabM,an,bN->qnNM", values, left_, right_, optimize=True)
                    total += np.einsum("qnNM,mkM->qnmNk", values, coupling)
                # Re of i^l (-i)^k exp(i x) is a cosine, or minus a sine
                turn = 1j**l * (-1j) ** k
                total *= -turn.imag if (l + k) % 2 else turn.real
                right_end = column + right.shape[1] * (2 * k + 1)
                result[:, row:below, column:right_end] = total.reshape(
                    len(which), below - row, right_end - column
                )
                column = right_end
            row = below
        return result


def gram(
    functions: Sequence[RadialFunctions],
    kinds: ndarray,
    tau: ndarray,
    vectors: ndarray,
    weights: ndarray,
) -> ndarray:
    """``Re sum_G w(G) conj(F_k) F_l`` with ``F = (-i)^l F_nl(|G|) Y_lm(G) exp(-i G.tau)``.

    Parameters
    ----------
    functions
        Of each species.
    kinds
        Species of each atom, shape (natoms,).
    tau
        Positions in Bohr, shape (natoms, 3).
    vectors
        G in 1/Bohr without G = 0, shape (ng, 3).
    weights
        Of each, shape (ng,).

    Returns
    -------
    ndarray
        In the order of :class:`~ase_nextham.expansion.Expansion`.
    """
    products = GaussianProducts(functions)
    offsets = np.concatenate([[0], np.cumsum([functions[kind].size for kind in kinds])])
    result = np.empty((offsets[-1], offsets[-1]))
    step = max(1, _PAIRS // len(kinds))
    for start in range(0, len(kinds), step):
        atoms = range(start, min(start + step, len(kinds)))
        sums = products.sums(tau, atoms, _by_length(vectors, weights))
        i = np.repeat(atoms, [len(kinds) - a for a in atoms])
        j = np.concatenate([np.arange(a, len(kinds)) for a in atoms])
        for a, one in enumerate(functions):
            for b, other in enumerate(functions):
                which = np.flatnonzero((kinds[i] == a) & (kinds[j] == b))
                if not len(which):
                    continue
                blocks = products.block(sums, one, other, which)
                for n, block in zip(which, blocks, strict=True):
                    rows, columns = (slice(*offsets[x : x + 2]) for x in (i[n], j[n]))
                    result[rows, columns] = block
                    result[columns, rows] = block.T
    return result


def _differences(angles: ndarray, atoms: range) -> ndarray:
    """Cosine and sine of x_a - x_b, shape (2, npairs, ng), from x (natoms, ng).

    For each a of ``atoms`` and b = a, a + 1, ...
    """
    c, s = np.cos(angles), np.sin(angles)
    result = np.empty((2, sum(len(c) - a for a in atoms), c.shape[1]))
    start = 0
    for a in atoms:
        stop = start + len(c) - a
        np.multiply(c[a:], c[a], out=result[0, start:stop])
        np.multiply(c[a:], s[a], out=result[1, start:stop])
        result[0, start:stop] += s[a:] * s[a]
        result[1, start:stop] -= s[a:] * c[a]
        start = stop
    return result


def _by_length(vectors: ndarray, weights: ndarray) -> Iterator[tuple[ndarray, ndarray, ndarray]]:
    """Vectors, lengths and weights in portions, ascending in length."""
    lengths = np.linalg.norm(vectors, axis=1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), _PORTION):
        some = order[start : start + _PORTION]
        yield vectors[some], lengths[some], weights[some]


def _widths(alpha: ndarray, beta: ndarray) -> ndarray:
    """kappa of the products of Gaussians with these exponents, shape (nalpha, nbeta)."""
    return 1 / (4 * alpha[:, None]) + 1 / (4 * beta)


def _prefactors(l: int, alpha: ndarray) -> ndarray:
    """Of ``|G|^l exp(-G^2 / 4 alpha)`` in :meth:`RadialFunctions.gaussians`, shape (n, 1)."""
    return ((np.pi / alpha) ** 1.5 / (2 * alpha) ** l)[:, None]


@lru_cache(maxsize=256)
def _couplings(l: int, k: int) -> tuple[tuple[int, ndarray], ...]:
    """``Y_lm Y_km' = sum_LM C_mm'M Y_LM`` for each L, with the conventions of both sides.

    L is in the standard order, the others are in ABACUS's. The integrals are exact: Gauss and
    Legendre's points for the polar angle, an even mesh for the other.
    """
    z, weight = np.polynomial.legendre.leggauss(l + k + 1)
    phi = 2 * np.pi * np.arange(2 * (l + k) + 1) / (2 * (l + k) + 1)
    z, phi = (one.ravel() for one in np.meshgrid(z, phi, indexing="ij"))
    weight = np.repeat(weight, 2 * (l + k) + 1) * 2 * np.pi / (2 * (l + k) + 1)
    radius = np.sqrt(1 - z * z)
    points = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=1)
    left, right = (
        real_harmonics(one, points) @ convention_matrix(one, "abacus").T for one in (l, k)
    )
    return tuple(
        (L, np.einsum("p,pm,pk,pM->mkM", weight, left, right, real_harmonics(L, points)))
        for L in range(abs(l - k), l + k + 1, 2)
    )
