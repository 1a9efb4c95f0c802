"""Fourier transforms of atomic densities and local pseudopotentials, as tables per element.

ABACUS integrates over the radial mesh for every length |G| of every structure. The functions
depend on the element only, so they are tabulated once and interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.interpolate import CubicSpline
from scipy.special import erf

from ase_nextham.h0.native.radial import simpson_weights
from ase_nextham.h0.native.upf import PseudopotentialData

SPACING = 0.01
"""Distance of the table points in 1/Bohr; interpolation errs by less than 1e-8 electrons."""

_RADIUS = 15.0  # Bohr; ABACUS's pseudo_rcut


@dataclass(frozen=True, eq=False)
class FormFactors:
    """Transforms ``integral f(r) exp(-i G.r) d3r`` of one element, on points ``q = |G|``.

    Parameters
    ----------
    valence
        Electrons of the neutral pseudo-atom.
    spacing
        Distance of the points in 1/Bohr; the first is q = 0.
    density
        Of the valence density, shape (nq,); the number of electrons at q = 0.
    core
        Of the partial core density, shape (nq,); zeros where there is none.
    vloc
        Of the short-ranged part of the local potential, ``vloc(r) + 2 Z erf(r) / r``, in
        Ry Bohr^3, shape (nq,). For q > 0 the transform of the potential is this minus
        ``8 pi Z exp(-q^2 / 4) / q^2``.
    vloc_average
        Integral of ``vloc(r) + 2 Z / r`` in Ry Bohr^3, which ABACUS uses at q = 0.
    """

    valence: float
    spacing: float
    density: ndarray
    core: ndarray
    vloc: ndarray
    vloc_average: float

    def splines(self) -> ndarray:
        """Coefficients of cubic splines, shape (nq - 1, 3, 4).

        The second axis is density, core and vloc; in interval n the value is
        ``c[0] + c[1] t + c[2] t^2 + c[3] t^3`` with ``t = q - n spacing``.
        """
        values = np.stack([self.density, self.core, self.vloc], axis=1)
        q = self.spacing * np.arange(len(values))
        # transforms of radial functions are even in q
        spline = CubicSpline(q, values, bc_type=((1, np.zeros(3)), "not-a-knot"))
        return np.ascontiguousarray(spline.c[::-1].transpose(1, 2, 0))


def form_factors(data: PseudopotentialData, ecut: float) -> FormFactors:
    """Tabulate the form factors of one element.

    Parameters
    ----------
    ecut
        Plane-wave cutoff of wave functions in Ry; tables end just above ``sqrt(4 ecut)``.

    Returns
    -------
    FormFactors
        The density is scaled to hold exactly ``data.header.valence`` electrons; the core is
        taken as it is. The radial integrals end at 15 Bohr, as ABACUS's.

    Raises
    ------
    ValueError
        If the pseudo-atom of the file has no valence density.
    """
    points = _mesh_size(data.r)
    r = data.r[:points]
    weights = simpson_weights(points) * data.rab[:points]
    charge = data.header.valence
    electrons = weights @ data.rho_atom[:points]
    if not electrons > 1e-8:
        raise ValueError(
            f"{data.header.element}: PP_RHOATOM holds {electrons:g} electrons; the density of the "
            "superposed atoms cannot be made from it"
        )
    # the integrand of each transform, without sin(q r) / (q r)
    density = weights * data.rho_atom[:points] * (charge / electrons)
    core = np.zeros(points)
    if data.rho_core is not None:
        core = weights * 4 * np.pi * r**2 * data.rho_core[:points]
    potential = r * data.vloc[:points]
    vloc = weights * 4 * np.pi * r * (potential + 2 * charge * erf(r))
    q = SPACING * np.arange(int(np.ceil(np.sqrt(4 * ecut) / SPACING)) + 3)
    integrands = np.stack([density, core, vloc], axis=1)
    table = np.concatenate(
        [np.sinc(part[:, None] * r / np.pi) @ integrands for part in np.array_split(q, 16)]
    )
    return FormFactors(
        valence=charge,
        spacing=SPACING,
        density=table[:, 0],
        core=table[:, 1],
        vloc=table[:, 2],
        vloc_average=float((weights * 4 * np.pi * r) @ (potential + 2 * charge)),
    )


def _mesh_size(r: ndarray) -> int:
    """Points of the radial mesh up to the first beyond 15 Bohr, made odd as ABACUS does."""
    beyond = np.flatnonzero(r > _RADIUS)
    last = int(beyond[0]) if len(beyond) else len(r)
    return min(2 * ((last + 2) // 2) - 1, len(r) - 1 + len(r) % 2)
