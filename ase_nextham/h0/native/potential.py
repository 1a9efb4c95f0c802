"""The local potential of superposed atoms on the grid: pseudopotentials, Hartree, PBE.

Everything is periodic, so the potentials of ions and electrons have no average of their own:
ABACUS sets that of the Hartree potential to zero and keeps the part of the ions that is not
Coulomb's. So does this module; H(0) contains the resulting constant times S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy import ndarray

from ase_nextham.h0.native.formfactors import FormFactors
from ase_nextham.h0.native.planewaves import PlaneWaves
from ase_nextham.h0.native.threads import in_threads
from ase_nextham.h0.native.xc import (
    Rules,
    collinear_potential,
    unpolarised_potential,
)


@dataclass(frozen=True, eq=False)
class Potential:
    """A potential on the grid.

    Parameters
    ----------
    v
        In Ry, shape (ncomponents, n1, n2, n3): one component for both spins, or up and down. The
        point (i1, i2, i3) is at ``(i1/n1, i2/n2, i3/n3) @ cell``.
    cell
        Cell vectors in Bohr as rows, shape (3, 3).
    """

    v: ndarray
    cell: ndarray

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of points along each cell vector."""
        return self.v.shape[1:]


@dataclass(frozen=True, eq=False)
class Superposition:
    """Densities and electrostatic potential of superposed atoms, as plane-wave coefficients.

    Parameters
    ----------
    density
        Valence density with the partial cores, in Bohr^-3.
    magnetization
        Density of spin up minus that of spin down, or None.
    electrostatic
        Local pseudopotentials and Hartree potential, in Ry.
    """

    density: ndarray
    magnetization: ndarray | None
    electrostatic: ndarray


def local_potential(
    cell: ndarray,
    tau: ndarray,
    species_index: Sequence[int],
    form_factors: Sequence[FormFactors],
    moments: Sequence[float] | None,
    nspin: int,
    ecut: float,
    *,
    threads: int = 1,
) -> Potential:
    """The potential that ABACUS makes of superposed neutral atoms.

    Parameters
    ----------
    cell, tau
        Cell vectors (3, 3) and atoms (natoms, 3) in Bohr, Cartesian.
    species_index
        Position of each atom's species in ``form_factors``, shape (natoms,).
    form_factors
        Of each species, tabulated to ``ecut`` at least.
    moments
        z component of each atom's magnetic moment in mu_B, shape (natoms,), or None for none.
    nspin
        1, 2 or 4, which differ in the thresholds of exchange and correlation.
    ecut
        Plane-wave cutoff of wave functions in Ry.

    Returns
    -------
    Potential
        With one component without moments, else with two.

    Raises
    ------
    ValueError
        If there are moments with ``nspin 1``, or the tables end too early.

    Notes
    -----
    The steps are those of ``Charge::atomic_rho``, ``PotLocal``, ``H_Hartree_pw`` and
    ``XC_Functional::v_xc`` of ABACUS 3.9.
    """
    waves = PlaneWaves(np.asarray(cell, float), float(ecut), threads)
    rules = Rules.of(nspin)
    atoms = superposition(waves, tau, species_index, form_factors, moments)
    if atoms.magnetization is not None and nspin == 1:
        raise ValueError("there are magnetic moments, but nspin 1 has no spin; use nspin 2 or 4")
    if atoms.magnetization is None:
        v = potential_of_density(waves, atoms.density, atoms.electrostatic, rules)
        return Potential(v[None], waves.cell)
    gradient = waves.gradient(atoms.density)
    v = waves.to_grid(atoms.density)
    gradient_m = waves.gradient(atoms.magnetization)
    split = waves.to_grid(atoms.magnetization)
    collinear_potential(
        v.reshape(-1),
        split.reshape(-1),
        gradient.reshape(3, -1),
        gradient_m.reshape(3, -1),
        rules,
        threads,
    )
    waves.subtract_divergence(gradient, atoms.electrostatic)
    v += waves.to_grid(atoms.electrostatic)
    coefficients = waves.empty()
    coefficients[:] = 0
    waves.subtract_divergence(gradient_m, coefficients)
    split += waves.to_grid(coefficients)
    return Potential(np.stack([v + split, v - split]), waves.cell)


def potential_of_density(
    waves: PlaneWaves, density: ndarray, electrostatic: ndarray, rules: Rules
) -> ndarray:
    """Exchange and correlation of a density without spin, and an electrostatic potential.

    Parameters
    ----------
    density
        With the partial cores, plane-wave coefficients in Bohr^-3; overwritten.
    electrostatic
        Plane-wave coefficients in Ry; overwritten.

    Returns
    -------
    ndarray
        On the grid in Ry, shape (n1, n2, n3).
    """
    gradient = waves.gradient(density)
    v = waves.to_grid(density)
    unpolarised_potential(v.reshape(-1), gradient.reshape(3, -1), rules, waves.threads)
    waves.subtract_divergence(gradient, electrostatic)
    del gradient
    v += waves.to_grid(electrostatic)
    return v


def superposition(
    waves: PlaneWaves,
    tau: ndarray,
    species_index: Sequence[int],
    form_factors: Sequence[FormFactors],
    moments: Sequence[float] | None,
) -> Superposition:
    """Sum densities and local potentials of atoms; arguments as of :func:`local_potential`."""
    species_index = np.asarray(species_index, int)
    _check_tables(form_factors, waves.limit)
    if moments is None or not np.any(moments):
        moments = np.zeros(len(species_index))
    moments = np.asarray(moments, float)
    # atoms of a group share everything but the phase
    kinds, group = np.unique(np.column_stack([species_index, moments]), axis=0, return_inverse=True)
    species = kinds[:, 0].astype(int)
    valence = np.array([factors.valence for factors in form_factors])
    splines = np.stack([factors.splines() for factors in _common_length(form_factors)])
    fractional = np.asarray(tau, float) @ waves.reciprocal.T / (2 * np.pi)
    phases = [
        np.exp(-2j * np.pi * np.outer(fractional[:, axis], waves.indices[axis]))
        for axis in range(3)
    ]
    members = [np.flatnonzero(group.ravel() == g) for g in range(len(kinds))]
    polarised = bool(np.any(moments))
    density, electrostatic = waves.empty(), waves.empty()
    magnetization = waves.empty() if polarised else np.empty((0, 0, 0), complex)
    constants = (
        *waves.indices,
        waves.reciprocal,
        waves.limit,
        waves.volume,
        splines,
        form_factors[0].spacing,
        species,
        valence,
        kinds[:, 1] / valence[species],
        np.array([factors.vloc_average for factors in form_factors]),
    )

    def planes(start: int, stop: int) -> None:
        for i in range(start, stop):
            # structure factors of one plane of the reciprocal lattice, by one product each
            factors = np.stack(
                [(phases[0][at, i] * phases[1][at].T) @ phases[2][at] for at in members]
            )
            _sum_plane(i, factors, *constants, density, electrostatic, magnetization)

    in_threads(planes, waves.shape[0], waves.threads)
    return Superposition(density, magnetization if polarised else None, electrostatic)


def _check_tables(form_factors: Sequence[FormFactors], limit: float) -> None:
    for number, factors in enumerate(form_factors):
        end = factors.spacing * (len(factors.density) - 1)
        if end < np.sqrt(limit):
            raise ValueError(
                f"the form factors of species {number} end at |G| = {end:.4g} / Bohr; tabulate "
                f"them up to {np.sqrt(limit):.4g}, with the cutoff of the calculation"
            )
        if factors.spacing != form_factors[0].spacing:
            raise ValueError("the form factors of the species have tables of different spacing")


def _common_length(form_factors: Sequence[FormFactors]) -> list[FormFactors]:
    points = min(len(factors.density) for factors in form_factors)
    return [
        FormFactors(
            factors.valence,
            factors.spacing,
            factors.density[:points],
            factors.core[:points],
            factors.vloc[:points],
            factors.vloc_average,
        )
        for factors in form_factors
    ]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _sum_plane(
    i,
    structure,
    m1,
    m2,
    m3,
    reciprocal,
    limit,
    volume,
    splines,
    spacing,
    species,
    valence,
    polarisation,
    vloc_average,
    density,
    electrostatic,
    magnetization,
):
    """Plane i of the coefficients, from the structure factors of each group of atoms."""
    for j in range(m2.size):
        x = m1[i] * reciprocal[0, 0] + m2[j] * reciprocal[1, 0]
        y = m1[i] * reciprocal[0, 1] + m2[j] * reciprocal[1, 1]
        z = m1[i] * reciprocal[0, 2] + m2[j] * reciprocal[1, 2]
        for k in range(m3.size):
            gx = x + m3[k] * reciprocal[2, 0]
            gy = y + m3[k] * reciprocal[2, 1]
            gz = z + m3[k] * reciprocal[2, 2]
            g2 = gx * gx + gy * gy + gz * gz
            rho = core = mag = vloc = complex(0, 0)
            if g2 <= limit:
                q = np.sqrt(g2)
                n = int(q / spacing)
                t = q - n * spacing
                long_range = 0.0 if g2 < 1e-12 else 8 * np.pi * np.exp(-g2 / 4) / g2
                for group in range(species.size):
                    s = structure[group, j, k] / volume
                    kind = species[group]
                    c = splines[kind, n]
                    f = c[0, 0] + t * (c[0, 1] + t * (c[0, 2] + t * c[0, 3]))
                    rho += f * s
                    mag += polarisation[group] * f * s
                    core += (c[1, 0] + t * (c[1, 1] + t * (c[1, 2] + t * c[1, 3]))) * s
                    v = c[2, 0] + t * (c[2, 1] + t * (c[2, 2] + t * c[2, 3]))
                    if g2 < 1e-12:
                        v = vloc_average[kind]
                    vloc += (v - valence[kind] * long_range) * s
                if g2 >= 1e-12:
                    vloc += 8 * np.pi / g2 * rho
            density[i, j, k] = rho + core
            electrostatic[i, j, k] = vloc
            if magnetization.size:
                magnetization[i, j, k] = mag
