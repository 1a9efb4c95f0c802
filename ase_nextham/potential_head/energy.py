"""The total energy of a density that was predicted, after Harris and Foulkes.

A Hamiltonian whose local potential is that of a density ``rho`` gives

``E = sum f eps - TS - integral (V_H + V_xc) rho + E_H[rho] + E_xc[rho + core] + E_ions``,

which differs from the self-consistent energy in second order of the error of ``rho``. It needs
the density itself: of an expanded potential, or of dH alone, there is no energy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.special import entr

from ase_nextham.bands import fermi_level, occupations
from ase_nextham.expansion import Expansion
from ase_nextham.h0.native.energy import (
    ewald_energy,
    exchange_correlation_energy,
    hartree_energy,
    nelectrons,
)
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.potential_head.apply import plane_wave_sums
from ase_nextham.units import RYDBERG


@dataclass(frozen=True)
class HarrisFoulkes:
    """Parts of a total energy, in eV per cell.

    Parameters
    ----------
    band
        Sum of the occupied eigenvalues.
    entropy
        ``-TS`` of the smearing.
    hartree, exchange_correlation
        Of the density that the Hamiltonian was made of.
    twice
        ``integral (V_H + V_xc) rho``: what the eigenvalues hold of these two.
    ewald
        Of the ions.
    fermi_level
        In eV on the scale of the eigenvalues; no part of the sum.
    """

    band: float
    entropy: float
    hartree: float
    exchange_correlation: float
    twice: float
    ewald: float
    fermi_level: float

    @property
    def one_electron(self) -> float:
        """Kinetic energy and that in the potential of the ions."""
        return self.band - self.twice

    @property
    def total(self) -> float:
        """Free energy of the electrons, with the ions: ABACUS's ``E_KohnSham``."""
        interaction = self.hartree + self.exchange_correlation + self.ewald
        return self.one_electron + self.entropy + interaction


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
) -> HarrisFoulkes:
    """Total energy of the neutral cell.

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
    eps, weights = np.asarray(eps, float), np.asarray(weights, float)
    level = fermi_level(eps, weights, nelectrons(part), width=width, smearing=smearing)
    filled = occupations(eps, level, width=width, smearing=smearing)
    band = np.sum(weights[:, None] * np.where(filled > 0, filled * eps, 0))
    entropy = np.sum(weights[:, None] * _entropy(eps, filled, level, width, smearing))
    hartree = hartree_energy(part, change)
    exchange_correlation, held = exchange_correlation_energy(part, change)
    valences = np.array([one.form_factors.valence for one in part.elements])
    return HarrisFoulkes(
        band=float(band),
        entropy=float(entropy),
        hartree=RYDBERG * hartree,
        exchange_correlation=RYDBERG * exchange_correlation,
        twice=RYDBERG * (2 * hartree + held),
        ewald=RYDBERG * ewald_energy(part.cell, part.tau, valences[part.kinds]),
        fermi_level=level,
    )


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
