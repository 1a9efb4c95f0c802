"""Energies that a density and the ions have, with the conventions of ABACUS.

They are what the sum of the occupied eigenvalues counts twice or leaves out: the electrons'
Hartree energy, their exchange and correlation energy with the partial cores, and the energy of
the ions in a uniform background. Nothing else is missing: the average of the Hartree potential is
zero, as the background of the ions has it, and what the local pseudopotentials have beyond
Coulomb's law at G = 0 is in the Hamiltonian and so in its eigenvalues.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numba import njit
from numpy import ndarray
from scipy.special import erfc

from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.h0.native.planewaves import PlaneWaves
from ase_nextham.h0.native.potential import potential_of_density, superposition
from ase_nextham.h0.native.threads import in_threads
from ase_nextham.h0.native.xc import (
    Rules,
    correlation_gradient,
    exchange_gradient,
    local_density,
)

_REACH = 6.0  # erfc(6) = 2e-17: both of Ewald's sums end where their terms are that small


def hartree_energy(part: LocalPart, change: ndarray) -> float:
    """Of the valence electrons, in Ry.

    Parameters
    ----------
    change
        What is added to the density of the superposed atoms, as of :meth:`LocalPart.potential`.
    """
    squared = np.abs(part.valence + change) ** 2
    return float(part.waves.volume / 2 * np.sum(part.multiplicity * part.coulomb * squared))


def exchange_correlation_energy(part: LocalPart, change: ndarray) -> float:
    """Of the valence electrons with the partial cores, in Ry; arguments as of
    :func:`hartree_energy`.

    Notes
    -----
    As ``XC_Functional::v_xc`` and ``gradcorr`` of ABACUS: an energy per electron of the modulus of
    the density, times the density.
    """
    return _exchange_correlation(part.waves, _with_cores(part, change), Rules.of(part.nspin))


def energy_in_potential(part: LocalPart, change: ndarray, change_of_electrons: ndarray) -> float:
    """``integral (V_H + V_xc)[rho + core] rho'`` in Ry: what eigenvalues hold of the two.

    Parameters
    ----------
    change
        Of the density rho that makes the potentials, as of :func:`hartree_energy`.
    change_of_electrons
        Of the density rho' that is in them, the same way.
    """
    waves, density = part.waves, _with_cores(part, change)
    potential = potential_of_density(waves, density, np.zeros_like(density), Rules.of(part.nspin))
    electrons = part.valence + change_of_electrons
    weights = part.multiplicity * part.coulomb
    hartree = np.sum(weights * ((part.valence + change).conj() * electrons).real)
    valence = part.to_grid(electrons) + nelectrons(part) / waves.volume
    return float(waves.volume * (hartree + np.mean(potential * valence)))


def _with_cores(part: LocalPart, change: ndarray) -> ndarray:
    factors = [one.form_factors for one in part.elements]
    density = superposition(part.waves, part.tau, part.kinds, factors, None).density
    density[part.inside] += change
    return density


def nelectrons(part: LocalPart) -> float:
    """Valence electrons of the neutral atoms in a cell."""
    return float(sum(part.elements[kind].form_factors.valence for kind in part.kinds))


def _exchange_correlation(waves: PlaneWaves, density: ndarray, rules: Rules) -> float:
    gradient = waves.gradient(density)
    values = waves.to_grid(density)
    in_threads(
        _energy_density,
        values.size,
        waves.threads,
        values.reshape(-1),
        gradient.reshape(3, -1),
        rules.gamma,
        rules.total,
    )
    return float(waves.volume * values.mean())


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _energy_density(start, stop, n, gradient, gamma, total):
    """Replace a density with core by its energy per volume in Ry."""
    for p in range(start, stop):
        density = n[p]
        g2 = gradient[0, p] ** 2 + gradient[1, p] ** 2 + gradient[2, p] ** 2
        magnitude = abs(density)
        e = 0.0
        if magnitude > 1e-10:
            e = magnitude * local_density(magnitude)[0]
            # the same thresholds as of the potential, which is the derivative of this
            if total:
                exchange = correlation = magnitude > 1e-6 and g2 >= 1e-10
            else:
                exchange = density > 2e-10 and g2 > 4e-20
                correlation = density > 1e-6 and g2 > 1e-20
            if exchange:
                e += exchange_gradient(magnitude, g2)[0]
            if correlation:
                e += correlation_gradient(magnitude, g2, gamma)[0]
        n[p] = 2 * e if density > 0 else -2 * e


def ewald_energy(cell: ndarray, tau: ndarray, charges: ndarray) -> float:
    """Energy per cell of point charges in a uniform background that makes the cell neutral.

    Parameters
    ----------
    cell
        Cell vectors in Bohr as rows, shape (3, 3).
    tau
        Positions in Bohr, Cartesian, shape (natoms, 3); any lattice vector may be added.
    charges
        In units of e, shape (natoms,).

    Returns
    -------
    float
        In Ry.

    Raises
    ------
    ValueError
        If two charges are at the same place.

    Notes
    -----
    P. P. Ewald, Ann. Phys. 369, 253 (1921). Gaussians are as wide as makes both sums equally
    long; unlike ABACUS's, the sums are complete to machine precision.
    """
    cell, tau = np.asarray(cell, float), np.asarray(tau, float)
    charges = np.asarray(charges, float)
    volume = abs(np.linalg.det(cell))
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    alpha = np.pi * (len(tau) / volume**2) ** (1 / 3)
    root = np.sqrt(alpha)
    g = _lattice_points(reciprocal, 2 * root * _REACH)
    g2 = np.einsum("gx,gx->g", g, g)
    g, g2 = g[g2 > 1e-12], g2[g2 > 1e-12]
    structure = sum(z * np.exp(-1j * (g @ t)) for z, t in zip(charges, tau, strict=True))
    total = 4 * np.pi / volume * np.sum(np.abs(structure) ** 2 * np.exp(-g2 / (4 * alpha)) / g2)
    total -= np.pi * charges.sum() ** 2 / (volume * alpha) + 2 * root / np.sqrt(np.pi) * np.sum(
        charges**2
    )
    # differences are brought near zero, so that the same images do for all pairs
    inverse = np.linalg.inv(cell)
    images = _lattice_points(cell, _REACH / root + np.linalg.norm(cell, axis=1).sum() / 2)
    for z, t in zip(charges, tau, strict=True):
        fractional = (tau - t) @ inverse
        apart = (fractional - np.round(fractional)) @ cell
        r = np.linalg.norm(apart[:, None] + images, axis=2)
        if np.count_nonzero(r < 1e-6) != 1:
            raise ValueError("two ions are at the same place; their energy is infinite")
        r, own = np.where(r < 1e-6, np.inf, r), z * charges
        total += np.sum(own[:, None] * erfc(root * r) / r)
    return float(total)


def _lattice_points(vectors: ndarray, radius: float) -> ndarray:
    """Sums of lattice vectors not longer than a radius, shape (n, 3)."""
    # the planes of a lattice along one vector are as far apart as its dual is short
    most = np.floor(radius * np.linalg.norm(np.linalg.inv(vectors), axis=0)).astype(int)
    points = np.array(list(product(*(range(-m, m + 1) for m in most)))) @ vectors
    return points[np.einsum("nx,nx->n", points, points) <= radius**2]
