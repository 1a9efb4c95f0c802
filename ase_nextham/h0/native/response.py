"""How the local potential changes with the density: first derivatives, exact, and their transpose.

``dV = 8 pi / G^2 drho + (dv/dn drho + dv/dg . grad drho) - div (dh/dn drho + dh/dg . grad drho)``
with v, h and the thresholds of :mod:`.xc`. Where the density is positive, v and h are derivatives
of one energy, so that the transpose differs only in what is done first: the projection onto the
plane waves below the cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from ase_nextham.h0.native.planewaves import PlaneWaves
from ase_nextham.h0.native.xc import Rules, respond, unpolarised_slopes

if TYPE_CHECKING:
    from ase_nextham.h0.native.localpart import LocalPart


@dataclass(frozen=True, eq=False)
class Response:
    """Derivatives of the local potential at one density, made by :meth:`LocalPart.response`.

    Seven numbers a point are kept.

    Parameters
    ----------
    part
        Of the structure.
    gradient
        Of the density with cores, shape (3, npoints).
    slopes
        Of exchange and correlation there, see :func:`.xc.unpolarised_slopes`.
    """

    part: LocalPart
    gradient: ndarray
    slopes: tuple[ndarray, ndarray, ndarray, ndarray, ndarray]

    @classmethod
    def of(cls, part: LocalPart, density: ndarray, rules: Rules) -> Response:
        """At a density with cores, plane-wave coefficients in Bohr^-3; overwritten."""
        waves = part.waves
        gradient = waves.gradient(density).reshape(3, -1)
        n = waves.to_grid(density).reshape(-1)
        return cls(part, gradient, unpolarised_slopes(n, gradient, rules, waves.threads))

    def along(self, direction: ndarray) -> ndarray:
        """Derivative of the potential along a change of the density.

        Parameters
        ----------
        direction
            In Bohr^-3, coefficients :attr:`LocalPart.inside`, shape (ng,).

        Returns
        -------
        ndarray
            In Ry, shape (n1, n2, n3).
        """
        part = self.part
        values = part.to_grid(direction)
        result = self._respond(values, part.spread(direction), self.slopes)
        coefficients = part.spread(part.coulomb * direction)
        part.waves.subtract_divergence(result, coefficients)
        return values + part.waves.to_grid(coefficients)

    def transposed(self, values: ndarray) -> ndarray:
        """The transpose of :meth:`along`.

        Parameters
        ----------
        values
            Derivatives of anything with the potential at each point, shape (n1, n2, n3).

        Returns
        -------
        ndarray
            y of ``Re sum_G conj(y(G)) drho(G)``, the first-order change of that thing with the
            density; coefficients :attr:`LocalPart.inside`.
        """
        part = self.part
        inside = part.from_grid(values)
        dv_n, dv_g, dh_n, s, t = self.slopes
        values = np.array(values, float)
        result = self._respond(values, part.spread(inside), (dv_n, dh_n, dv_g, s, t))
        coefficients = part.spread(part.coulomb * inside + part.from_grid(values))
        part.waves.subtract_divergence(result, coefficients)
        return values.size * part.multiplicity * coefficients[part.inside]

    def _respond(self, values: ndarray, coefficients: ndarray, slopes) -> ndarray:
        """Changes of v, in place of ``values``, and of h, with the gradient of coefficients."""
        waves: PlaneWaves = self.part.waves
        change = waves.gradient(coefficients)
        respond(values.reshape(-1), change.reshape(3, -1), self.gradient, slopes, waves.threads)
        return change
