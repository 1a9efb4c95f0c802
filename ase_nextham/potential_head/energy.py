"""The total energy of a density that was predicted.

A Hamiltonian whose local potential is that of a density ``n`` has eigenstates, and these have a
density ``m``. With the energies of the occupied states there are two estimates of the energy of the
self-consistent density, both wrong in second order:

``E[n, m'] = sum f eps - TS - integral (V_H + V_xc)[n] m' + E_H[m'] + E_xc[m' + core] + E_ions``

with ``m' = n``, after Harris and Foulkes, or with ``m' = m``, the functional of Kohn and Sham,
which is never too low. The second is much the better one here: what an expansion in atom-centred
functions cannot hold is short-ranged, and electrons hardly answer to it, so that it is not in m.
What is left of its error is mostly the screening of long-ranged errors, which ``m - n`` tells
(:func:`kohn_sham`).

They need the density itself: of an expanded potential, or of dH alone, there is no energy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray
from scipy.special import entr

from ase_nextham.bands import fermi_level, occupations, spin_degeneracy
from ase_nextham.data import LCAOData
from ase_nextham.expansion import Expansion
from ase_nextham.h0.native.energy import (
    energy_in_potential,
    ewald_energy,
    exchange_correlation_energy,
    hartree_energy,
    nelectrons,
)
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.potential_head.apply import plane_wave_sums
from ase_nextham.potential_head.first_density import mesh_of_density, output_density
from ase_nextham.units import RYDBERG

if TYPE_CHECKING:
    from ase_nextham.potential_head.predict import DensityModel

UNCERTAIN = 2e-3
"""In eV per atom: an energy whose second-order error is estimated as more brings a warning."""

_THOMAS_FERMI = 1.563
"""Weight of that term in the screening of Cappellini and others."""


@dataclass(frozen=True)
class TotalEnergy:
    """Parts of a total energy, in eV per cell.

    Parameters
    ----------
    band
        Sum of the occupied eigenvalues.
    entropy
        ``-TS`` of the smearing.
    hartree, exchange_correlation
        Of the density whose energy this is.
    twice
        ``integral (V_H + V_xc) rho``: what the eigenvalues hold of these two.
    ewald
        Of the ions.
    screening
        What is added for the difference between the densities of Hamiltonian and eigenstates.
    fermi_level
        In eV on the scale of the eigenvalues; no part of the sum.
    """

    band: float
    entropy: float
    hartree: float
    exchange_correlation: float
    twice: float
    ewald: float
    screening: float
    fermi_level: float

    @property
    def one_electron(self) -> float:
        """Kinetic energy and that in the potential of the ions."""
        return self.band - self.twice

    @property
    def total(self) -> float:
        """Free energy of the electrons, with the ions: ABACUS's ``E_KohnSham``."""
        interaction = self.hartree + self.exchange_correlation + self.ewald
        return self.one_electron + self.entropy + interaction + self.screening

    @property
    def extrapolated(self) -> float:
        """To a smearing of zero width: half of ``-TS`` is taken off.

        M. J. Gillan, J. Phys.: Condens. Matter 1, 689 (1989).
        """
        return self.total - self.entropy / 2


def change_of_density(part: LocalPart, expansion: Expansion, coefficients: ndarray) -> ndarray:
    """The change of the density that coefficients say, without what is left of its charge.

    Returns
    -------
    ndarray
        Plane waves as :meth:`LocalPart.potential` takes them, in Bohr^-3, shape (ng,).

    Raises
    ------
    ValueError
        If the expansion is of the potential.
    """
    if expansion.kind != "density":
        raise ValueError(
            f"the expansion is of kind {expansion.kind!r}; an energy needs that of a density"
        )
    coefficients = expansion.neutral(part.symbols, coefficients)
    return plane_wave_sums(part, expansion).plane_waves(coefficients)


def harris_foulkes(
    part: LocalPart,
    change: ndarray,
    eps: ndarray,
    weights: ndarray,
    *,
    width: float = 0.05,
    smearing: str = "fermi-dirac",
) -> TotalEnergy:
    """Total energy of the neutral cell from the density that its Hamiltonian was made of.

    Parameters
    ----------
    part
        Of the structure, from ``NativeH0.local_part``.
    change
        What is added to the density of the superposed atoms, plane waves in Bohr^-3, shape
        (ng,): from :func:`change_of_density`, or zeros for superposed atoms.
    eps
        Eigenvalues of the Hamiltonian with that density,
        ``h0 + part.matrix(part.potential(change) - part.v0)``, in eV, shape (nkpts, nbands) or
        (nspins, nkpts, nbands).
    weights
        Electrons per band at each k-point, shape (nkpts,).
    width, smearing
        As of :func:`ase_nextham.bands.occupations`.

    Raises
    ------
    ValueError
        If the bands cannot hold the electrons of the neutral atoms.

    Notes
    -----
    J. Harris, Phys. Rev. B 31, 1770 (1985); W. M. C. Foulkes, R. Haydock, Phys. Rev. B 39, 12520
    (1989).
    """
    return _energy(part, change, change, eps, weights, width, smearing)


def kohn_sham(
    part: LocalPart,
    change: ndarray,
    output: ndarray,
    eps: ndarray,
    weights: ndarray,
    *,
    width: float = 0.05,
    smearing: str = "fermi-dirac",
    screened: bool = True,
) -> TotalEnergy:
    """Total energy of the neutral cell from the density of the Hamiltonian's eigenstates.

    Parameters
    ----------
    part, change, eps, weights, width, smearing
        As of :func:`harris_foulkes`.
    output
        What the eigenstates of the Hamiltonian add to the density of the superposed atoms, as
        ``change``: with ``eps`` from :func:`.first_density.output_density`, with the same
        occupations.
    screened
        Whether the second-order error is estimated and taken off; without that, the energy is
        above that of the self-consistent density.

    Raises
    ------
    ValueError
        As :func:`harris_foulkes`.

    Notes
    -----
    Of the density m of the eigenstates, with rho the self-consistent one, ``K`` the derivative of
    ``V_H + V_xc`` and ``chi`` that of the density of independent electrons with the potential,

    ``E[m] - E[rho] = 1/2 <m - rho| K - 1/chi |m - rho>``

    in second order. To first order ``m - rho = chi K (n - rho)``, so that this is
    ``1/2 <m - rho| K |m - n>``, and ``m - n = -(1 - chi K)(n - rho)``, so that
    ``m - rho = (1 - 1/epsilon)(m - n)`` with ``epsilon = 1 - chi K``. Both hold exactly: with the
    converged rho 0.1 meV is left at most. What is taken off has K and epsilon in the random-phase
    approximation, ``K = 8 pi / G^2`` and a dielectric function without a parameter of the crystal
    but the average density of its valence electrons:

    ``1 / (epsilon - 1) = 1.563 (G / q_TF)^2 + G^4 / (4 omega_p^2)``

    of G. Cappellini, R. Del Sole, L. Reining, F. Bechstedt, Phys. Rev. B 47, 9892 (1993), without
    the constant that stands for a gap at G = 0.
    """
    plain = _energy(part, change, output, eps, weights, width, smearing)
    if not screened:
        return plain
    return replace(plain, screening=RYDBERG * _screening(part, output - change))


def total_energy(
    model: DensityModel,
    data: LCAOData,
    kpts: Sequence[int] | Mapping | float,
    *,
    width: float = 0.05,
    smearing: str = "fermi-dirac",
) -> TotalEnergy:
    """What a model says about the energy of a structure.

    Parameters
    ----------
    model
        With the density head.
    data
        With S and H(0).
    kpts
        Mesh, as of :func:`ase_nextham.bands.kmesh`. Time reversal alone makes it smaller: the
        density is needed.
    width, smearing
        As of :func:`ase_nextham.bands.occupations`.

    Raises
    ------
    ValueError
        As :meth:`DensityModel.predict`.

    Warns
    -----
    UserWarning
        If the density that was predicted is so far from that of its own eigenstates that the
        energy is not to be trusted to :data:`UNCERTAIN`.
    """
    part, coefficients = model.coefficients(data)
    change = change_of_density(part, model.expansion_on(part), coefficients.mean(axis=0))
    hamiltonian = data.h0 + model.predict(data)
    mesh = mesh_of_density(part, hamiltonian, kpts)
    options = {"width": width, "smearing": smearing}
    output, eps = output_density(part, hamiltonian, data.overlap, nelectrons(part), mesh, **options)
    weights = spin_degeneracy(hamiltonian.spin) * mesh.weights
    found = kohn_sham(part, change, output, eps, weights, **options)
    estimate = abs(found.screening) / len(part.symbols)
    if estimate > UNCERTAIN:
        warnings.warn(
            f"the total energy is uncertain by about {1e3 * estimate:.1f} meV per atom: the "
            "predicted density is not that of the states of its own Hamiltonian",
            stacklevel=2,
        )
    return found


def _energy(
    part: LocalPart,
    change: ndarray,
    density: ndarray,
    eps: ndarray,
    weights: ndarray,
    width: float,
    smearing: str,
) -> TotalEnergy:
    """E[n, m'] of the module; both densities as changes."""
    eps, weights = np.asarray(eps, float), np.asarray(weights, float)
    level = fermi_level(eps, weights, nelectrons(part), width=width, smearing=smearing)
    filled = occupations(eps, level, width=width, smearing=smearing)
    band = np.sum(weights[:, None] * np.where(filled > 0, filled * eps, 0))
    entropy = np.sum(weights[:, None] * _entropy(eps, filled, level, width, smearing))
    valences = np.array([one.form_factors.valence for one in part.elements])
    return TotalEnergy(
        band=float(band),
        entropy=float(entropy),
        hartree=RYDBERG * hartree_energy(part, density),
        exchange_correlation=RYDBERG * exchange_correlation_energy(part, density),
        twice=RYDBERG * energy_in_potential(part, change, density),
        ewald=RYDBERG * ewald_energy(part.cell, part.tau, valences[part.kinds]),
        screening=0.0,
        fermi_level=level,
    )


def _screening(part: LocalPart, residual: ndarray) -> float:
    """``-1/2 <(1 - 1/epsilon) r| 8 pi / G^2 |r>`` in Ry."""
    density = nelectrons(part) / part.waves.volume
    thomas_fermi = 4 * (3 * density / np.pi) ** (1 / 3)  # q_TF^2
    plasma = 4 * np.pi * density  # omega_p^2 in Hartree^2
    squared = 8 * np.pi / part.coulomb
    inverse = _THOMAS_FERMI * squared / thomas_fermi + squared**2 / (4 * plasma)
    # 1 - 1 / epsilon = 1 / (1 + 1 / (epsilon - 1))
    energies = part.multiplicity * part.coulomb * np.abs(residual) ** 2 / (1 + inverse)
    return float(-part.waves.volume / 2 * energies.sum())


def _entropy(
    eps: ndarray, filled: ndarray, level: float, width: float, smearing: str
) -> ndarray | float:
    """``-TS`` of each state: what makes the energy stationary in the occupations."""
    if width == 0:
        return 0.0
    if smearing == "fermi-dirac":
        return -width * (entr(filled) + entr(1 - filled))
    x = np.where(np.isnan(eps), np.inf, (eps - level) / width)
    return -width / (2 * np.sqrt(np.pi)) * np.exp(-(x**2))
