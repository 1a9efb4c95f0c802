"""From coefficients to dH, by one sum over the grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy import ndarray

from ase_nextham.data import LCAOData
from ase_nextham.expansion import (
    KINDS,
    Expansion,
    PlaneWaveSums,
    RadialFunctions,
    even_tempered,
)
from ase_nextham.h0.native.element import Element
from ase_nextham.h0.native.localpart import LocalPart, squared_orbitals
from ase_nextham.h0.native.prepared import PreparedH0
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.units import RYDBERG

COUNTS = {"density": (7, 6, 5, 6, 4), "potential": (8, 6, 6, 5, 4)}
"""Gaussians of l = 0 ... 4 by kind: at most 129 and 127 coefficients of an atom. A change of the
density needs steep functions of l = 3, where d shells polarise (Ge)."""

EXPONENTS = (0.15, 8.0)
"""Smallest and largest exponent in Bohr^-2. Anions need the small ones (Cl)."""


def standard_expansion(
    kind: str,
    elements: Iterable[tuple[str, Element]],
    *,
    counts: Sequence[int] | None = None,
    exponents: tuple[float, float] = EXPONENTS,
) -> Expansion:
    """The same Gaussians for all elements, orthonormalised in the metric of the fit.

    Parameters
    ----------
    kind
        ``"density"``: the Coulomb metric. ``"potential"``: with the weight
        ``sqrt(sum_i phi_i(r)^2)`` of the free atom's orbitals.
    elements
        Symbol and element, as :attr:`LocalPart.elements` has them.
    counts, exponents
        As of :func:`ase_nextham.expansion.even_tempered`; by default :data:`COUNTS` of the kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    ladder = even_tempered(COUNTS[kind] if counts is None else counts, *exponents)
    radial = {}
    for symbol, element in elements:
        if kind == "potential":
            weight = np.sqrt(squared_orbitals(element))
            radial[symbol] = RadialFunctions.weighted(ladder, element.mesh, weight)
        else:
            radial[symbol] = RadialFunctions.coulomb(ladder)
    return Expansion(kind, radial)


def plane_wave_sums(part: LocalPart, expansion: Expansion) -> PlaneWaveSums:
    """The expansion on the plane waves of a structure, those of :attr:`LocalPart.vectors`."""
    return PlaneWaveSums(expansion, part.symbols, part.tau, part.vectors, part.waves.volume)


def change_of_potential(part: LocalPart, expansion: Expansion, coefficients: ndarray) -> ndarray:
    """dV on the grid.

    Parameters
    ----------
    part
        Of the structure, from ``NativeH0.prepare``.
    coefficients
        As :class:`~ase_nextham.expansion.Expansion` orders them. Of a density, what is left of
        the charge is taken off first.

    Returns
    -------
    ndarray
        In Ry, shape (n1, n2, n3). The average of an expanded potential is zero; that of one from
        the density is what ABACUS's would be.
    """
    if expansion.kind == "potential":
        return part.to_grid(plane_wave_sums(part, expansion).plane_waves(coefficients))
    return _potential(part, expansion, coefficients) - part.v0


def _potential(part: LocalPart, expansion: Expansion, coefficients: ndarray) -> ndarray:
    """The local potential of H in Ry; arguments as of :func:`change_of_potential`."""
    if expansion.kind == "potential":
        return part.v0 + change_of_potential(part, expansion, coefficients)
    neutral = expansion.neutral(part.symbols, coefficients)
    return part.potential(plane_wave_sums(part, expansion).plane_waves(neutral))


def dh_from_coefficients(
    part: LocalPart, expansion: Expansion, coefficients: ndarray
) -> LCAOMatrix:
    """dH = H - H(0) in eV, with the spin of H(0), on the pairs whose orbitals overlap.

    Parameters are those of :func:`change_of_potential`. From an expanded potential, dH is known
    up to a multiple of S.
    """
    return part.matrix(change_of_potential(part, expansion, coefficients))


def hamiltonian_from_coefficients(
    prepared: PreparedH0,
    expansion: Expansion,
    coefficients: ndarray,
    *,
    with_h0: bool = True,
) -> LCAOData:
    """S, H, and H(0) if wanted: for coefficients that are known before H(0) is.

    Coefficients that were predicted from ``data = prepared.compute()`` need no second S and H(0):
    there H is ``data.h0 + dh_from_coefficients(prepared.local_part, ...)``.

    Parameters
    ----------
    prepared
        The structure, from ``NativeH0.prepare``.
    coefficients
        As of :func:`change_of_potential`.
    with_h0
        Whether H(0) is wanted; without it there is one sum over the grid.

    Returns
    -------
    LCAOData
        With ``hamiltonian``, and r(R) if the engine was told so.
    """
    potential = _potential(prepared.local_part, expansion, coefficients)
    return prepared.compute(potential, with_h0=with_h0)


def coefficient_gradient(
    part: LocalPart,
    expansion: Expansion,
    gradient: ndarray,
    coefficients: ndarray | None = None,
) -> ndarray:
    """Derivatives with the coefficients, from those with the elements of dH.

    The transpose of :func:`dh_from_coefficients` to first order, in closed form: one sum over the
    grid, as costly as the integral itself.

    Parameters
    ----------
    gradient
        With each element of dH without spin on ``part.pairs`` in 1/eV, as if all were
        independent; shape (nelements,).
    coefficients
        Where derivatives are taken, shape (ncoefficients,). dH is linear in a potential, so it
        does not matter there.

    Returns
    -------
    ndarray
        Shape (ncoefficients,).

    Raises
    ------
    ValueError
        If coefficients of a density are not given.
    """
    sums = plane_wave_sums(part, expansion)
    if expansion.kind == "density" and coefficients is None:
        raise ValueError(
            "dH is not linear in the density: say at which coefficients derivatives are wanted"
        )
    values = part.transposed(part.waves.shape, RYDBERG * np.asarray(gradient, float))
    if expansion.kind == "potential":
        return sums.transpose(part.to_grid_transposed(values))
    neutral = expansion.neutral(part.symbols, coefficients)
    response = part.response(sums.plane_waves(neutral))
    found = sums.transpose(response.transposed(values))
    return expansion.neutral(part.symbols, found)
