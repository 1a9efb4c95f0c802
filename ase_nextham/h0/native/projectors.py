"""The nonlocal part of a pseudopotential (Kleinman-Bylander), with spin-orbit coupling.

``V = sum_pq |beta_p> D_pq <beta_q|`` over the projectors of every atom. With j-dependent
projectors D acts on spin, too: ``D = D_0 + i (A_x sigma_x + A_y sigma_y + A_z sigma_z)`` with four
real matrices, D_0 symmetric and A antisymmetric, so that V obeys time reversal to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy import ndarray

from ase_nextham.h0.native.upf import PseudopotentialData

_VANISHING = 1e-10
"""ABACUS takes projectors to end at the last point where |r beta| exceeds this."""

_DROPPED = 1e-8
"""ABACUS drops coefficients that are not larger than this, in Ry."""


@dataclass(frozen=True, eq=False)
class Projectors:
    """The projectors of one species.

    Parameters
    ----------
    l
        Angular momentum of each, ascending, shape (nproj,).
    r
        Radial mesh in Bohr, shape (nmesh,).
    r_beta
        r * beta(r), shape (nproj, nmesh).
    npoints
        Points after which ABACUS cuts each projector, shape (nproj,).
    coefficients
        D_0, or D_0, A_x, A_y and A_z, in Ry between the harmonics of all projectors, shape
        (1 or 4, norbitals, norbitals).
    """

    l: ndarray
    r: ndarray
    r_beta: ndarray
    npoints: ndarray
    coefficients: ndarray

    @property
    def cutoff(self) -> float:
        """Where the longest projector ends, in Bohr; negative if there are none."""
        return float(self.r[self.npoints - 1].max(initial=-1.0))


def projectors(data: PseudopotentialData, spin_orbit: bool) -> Projectors:
    """The projectors as they are, or without their spin-orbit coupling.

    Raises
    ------
    ValueError
        If ``spin_orbit`` is asked for and the pseudopotential has none; or if it is to be averaged
        away and projectors with j = l - 1/2 and l + 1/2 do not follow each other in pairs.
    """
    element = data.header.element
    if spin_orbit and data.beta_j is None:
        raise ValueError(
            f"{element}: spin-orbit coupling needs a fully relativistic pseudopotential (has_so "
            "in the UPF header), which this one is not"
        )
    if not spin_orbit and data.beta_j is not None:
        try:
            data = _averaged(data)
        except ValueError as err:
            raise ValueError(f"{element}: {err}") from None
    order = np.argsort(data.beta_l, kind="stable")
    l, beta, dij = data.beta_l[order], data.beta[order], data.dij[np.ix_(order, order)]
    j = data.beta_j[order] if spin_orbit else None
    npoints = np.array([_npoints(f) for f in beta], int)
    return Projectors(l, data.r, beta, npoints, _coefficients(l, j, dij))


def _npoints(r_beta: ndarray) -> int:
    # InfoNonlocal::Set_NonLocal: as many points as the index of the last one, made odd
    last = np.flatnonzero(np.abs(r_beta) > _VANISHING)
    n = int(last[-1]) if len(last) else len(r_beta)
    return min(n + (n % 2 == 0), len(r_beta))


def _coefficients(l: ndarray, j: ndarray | None, dij: ndarray) -> ndarray:
    """D_0 and, with j, A_x, A_y, A_z between harmonics."""
    first = np.concatenate([[0], np.cumsum(2 * l + 1)])
    result = np.zeros((1 if j is None else 4, first[-1], first[-1]))
    for p in range(len(l)):
        for q in range(len(l)):
            if l[p] != l[q] or (j is not None and j[p] != j[q]):
                continue
            size = 2 * l[p] + 1
            block = result[:, first[p] : first[p + 1], first[q] : first[q + 1]]
            if j is None:
                block[0] = dij[p, q] * np.eye(size)
                continue
            # (2l + 1) times the projector on j = l + 1/2 is l + 1 + L.sigma; on l - 1/2: l - ...
            upper = j[p] > l[p]
            block[0] = dij[p, q] * (l[p] + 1 if upper else l[p]) / size * np.eye(size)
            block[1:] = dij[p, q] * (1 if upper else -1) / size * angular_momentum(int(l[p]))
    return _without_small(result)


def _without_small(coefficients: ndarray) -> ndarray:
    """ABACUS's threshold, for the complex elements uu = D_0 + i A_z and ud = A_y + i A_x."""
    for one, other in ((0, 3), (2, 1)):
        if other < len(coefficients):
            small = np.maximum(*np.abs(coefficients[[one, other]])) <= _DROPPED
            coefficients[one][small] = coefficients[other][small] = 0
    if len(coefficients) == 1:
        coefficients[np.abs(coefficients) <= _DROPPED] = 0
    return coefficients


@lru_cache(maxsize=16)
def angular_momentum(l: int) -> ndarray:
    """Real antisymmetric A with L = i A between harmonics in ABACUS's order and sign.

    Returns
    -------
    ndarray
        For x, y and z, shape (3, 2l + 1, 2l + 1).
    """
    m = np.arange(-l, l + 1)
    raising = np.diag(np.sqrt(l * (l + 1) - m[:-1] * (m[:-1] + 1)), -1)  # <m + 1| L+ |m>
    x, y, z = (raising + raising.T) / 2, (raising - raising.T) / 2j, np.diag(m)
    # real harmonics in terms of the complex ones, these with the Condon-Shortley phase
    change = np.zeros((2 * l + 1, 2 * l + 1), complex)
    change[0, l] = 1
    for n in range(1, l + 1):
        sign = (-1) ** n
        change[2 * n - 1, [l + n, l - n]] = np.array([1, sign]) / np.sqrt(2)
        change[2 * n, [l + n, l - n]] = np.array([-1j, 1j * sign]) / np.sqrt(2)
    result = np.stack([(change.conj() @ component @ change.T).imag for component in (x, y, z)])
    result.flags.writeable = False
    return result


def _averaged(data: PseudopotentialData) -> PseudopotentialData:
    """Projectors averaged over j, as ABACUS does without spin-orbit coupling.

    ``Pseudopot_upf::average_p``: D = [(l + 1) D+ + l D-] / (2l + 1), and the projectors likewise
    with weights sqrt(D+- / D).
    """
    if np.abs(data.dij - np.diag(np.diag(data.dij))).max(initial=0) > 1e-6:
        raise ValueError(
            "projectors that are coupled (off-diagonal PP_DIJ) cannot be averaged over j; use a "
            "scalar-relativistic pseudopotential, or spin-orbit coupling"
        )
    diagonal, beta, ls, coefficients = np.diag(data.dij), [], [], []
    for pair in _pairs_of_j(data.beta_l, data.beta_j):
        l = int(data.beta_l[pair[0]])
        if len(pair) == 1:
            d, f = diagonal[pair[0]], data.beta[pair[0]]
        else:
            weights = np.array([l, l + 1]) / (2 * l + 1)
            d = weights @ diagonal[pair]
            if abs(d) < _DROPPED:
                d = 0.1
            f = (weights * np.sqrt(np.abs(diagonal[pair] / d))) @ data.beta[pair]
        beta.append(f)
        ls.append(l)
        coefficients.append(d)
    return replace(
        data,
        beta=np.reshape(beta, (len(ls), len(data.r))),
        beta_l=np.array(ls, int),
        beta_j=None,
        dij=np.diag(coefficients),
    )


def _pairs_of_j(l: ndarray, j: ndarray) -> Sequence[list[int]]:
    """Projectors that are averaged: one of l = 0, or l - 1/2 and l + 1/2 in this order."""
    groups, p = [], 0
    while p < len(l):
        if l[p] == 0:
            groups.append([p])
            p += 1
            continue
        if p + 1 == len(l) or l[p + 1] != l[p] or j[p + 1] == j[p]:
            raise ValueError(
                f"projector {p + 1} with l = {l[p]}, j = {j[p]} is not followed by its partner "
                "with the other j, so the two cannot be averaged"
            )
        groups.append([p, p + 1] if j[p] < j[p + 1] else [p + 1, p])
        p += 2
    return groups
