"""The local part of one structure's H(0), and what it becomes when density or potential change.

The self-consistent Hamiltonian differs from H(0) by a local potential without spin,
``V_HXC[rho] - V_HXC[rho0]``: nothing else in it depends on the density. This module makes such a
potential of a change of the density, and matrix elements of any potential.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.h0.native.element import Element
from ase_nextham.h0.native.planewaves import PlaneWaves
from ase_nextham.h0.native.potential import Superposition, potential_of_density, superposition
from ase_nextham.h0.native.response import Response
from ase_nextham.h0.native.xc import Rules
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.units import RYDBERG

_WEIGHT_SPACING = 0.02  # 1/Bohr, of the transform of the sum of squared orbitals


@dataclass(frozen=True, eq=False)
class LocalPart:
    """Grid, plane waves and integrals of one structure: ``NativeH0.prepare(atoms).local_part``.

    Parameters
    ----------
    symbols
        Of each atom.
    cell, tau
        Cell vectors (3, 3) and atoms (natoms, 3), inside the cell, in Bohr.
    kinds
        Position of each atom's species in ``elements``, shape (natoms,).
    elements
        Of each species.
    basis
        Of the matrices.
    pairs
        Those whose orbitals overlap, with R for the positions as they were given.
    nspin
        As of ABACUS, 1 or 4; there are no magnetic moments.
    ecutwfc
        Plane-wave cutoff in Ry.
    threads
        To work with.
    integrate
        From potentials in Ry on the grid, shape (n, n1, n2, n3), to the elements of ``pairs`` in
        Ry, shape (n, nelements); a second argument is the precision, where it is to be another one
        than that of H(0).
    transposed
        From the shape of the grid and derivatives with these elements, shape (nelements,), to
        those with the potential at each point, shape (n1, n2, n3).
    """

    symbols: tuple[str, ...]
    cell: ndarray
    tau: ndarray
    kinds: ndarray
    elements: tuple[Element, ...]
    basis: Basis
    pairs: AtomPairs
    nspin: int
    ecutwfc: float
    threads: int
    integrate: Callable[..., ndarray]
    transposed: Callable[[tuple[int, int, int], ndarray], ndarray]

    @cached_property
    def waves(self) -> PlaneWaves:
        """The grid."""
        return PlaneWaves(np.asarray(self.cell, float), float(self.ecutwfc), self.threads)

    # --- plane waves ---------------------------------------------------------------------------

    @cached_property
    def inside(self) -> ndarray:
        """Which coefficients of the grid are of plane waves below the cutoff, and not of G = 0.

        Shape of :meth:`PlaneWaves.empty`. Of G and -G one is there, but for the last index 0,
        where both are; :attr:`multiplicity` makes up for it.
        """
        return (self._lengths2 <= self.waves.limit) & (self._lengths2 > 1e-12)

    @cached_property
    def vectors(self) -> ndarray:
        """G of the coefficients that are :attr:`inside`, in 1/Bohr, shape (ng, 3)."""
        return self._grid_vectors[self.inside]

    @cached_property
    def multiplicity(self) -> ndarray:
        """Plane waves that each coefficient :attr:`inside` stands for, 1 or 2, shape (ng,)."""
        return np.where(np.nonzero(self.inside)[2] == 0, 1.0, 2.0)

    @cached_property
    def coulomb(self) -> ndarray:
        """``8 pi / G^2`` of the coefficients :attr:`inside` in Ry Bohr^3, shape (ng,)."""
        return 8 * np.pi / self._lengths2[self.inside]

    def to_grid(self, plane_waves: ndarray) -> ndarray:
        """Values of functions on the grid.

        Parameters
        ----------
        plane_waves
            Coefficients :attr:`inside`, shape (..., ng).

        Returns
        -------
        ndarray
            Shape (..., n1, n2, n3).
        """
        plane_waves = np.asarray(plane_waves)
        result = np.empty((*plane_waves.shape[:-1], *self.waves.shape))
        for index in np.ndindex(plane_waves.shape[:-1]):
            result[index] = self.waves.to_grid(self.spread(plane_waves[index]))
        return result

    def from_grid(self, values: ndarray) -> ndarray:
        """Coefficients :attr:`inside` of a function on the grid, shape (ng,)."""
        return self.waves.from_grid(values)[self.inside]

    def to_grid_transposed(self, values: ndarray) -> ndarray:
        """The transpose of :meth:`to_grid`.

        Parameters
        ----------
        values
            Derivatives of anything with a function at each point, shape (n1, n2, n3).

        Returns
        -------
        ndarray
            y of ``Re sum_G conj(y(G)) f(G)``, the first-order change of that thing with the
            plane waves of the function; coefficients :attr:`inside`, shape (ng,).
        """
        return np.size(values) * self.multiplicity * self.from_grid(values)

    def spread(self, plane_waves: ndarray) -> ndarray:
        """Coefficients :attr:`inside` at their places among all, which are zero."""
        room = np.zeros(self.inside.shape, complex)
        room[self.inside] = plane_waves
        return room

    def on_waves(self, miller: ndarray, coefficients: ndarray) -> ndarray:
        """Coefficients :attr:`inside` of a real function whose plane waves are listed.

        Parameters
        ----------
        miller
            Integers m of ``G = m @ reciprocal``, both of G and -G, shape (n, 3).
        coefficients
            Complex, shape (n,). Plane waves that are not listed are zero.

        Raises
        ------
        ValueError
            If a plane wave does not fit onto the grid.
        """
        miller, shape = np.asarray(miller, int), np.array(self.waves.shape)
        if miller.ndim != 2 or miller.shape[1:] != (3,) or len(coefficients) != len(miller):
            raise ValueError(
                f"plane waves (n, 3) with n coefficients are needed, not {miller.shape} with "
                f"{len(coefficients)}"
            )
        largest = np.abs(miller).max(axis=0, initial=0)
        if (2 * largest > shape).any():
            raise ValueError(
                f"the function has plane waves up to {largest.tolist()}, which the grid "
                f"{shape.tolist()} has not: it was made with a larger cutoff or for another cell"
            )
        half = miller[:, 2] >= 0
        room = np.zeros(self.inside.shape, complex)
        room[tuple((miller[half] % shape).T)] = np.asarray(coefficients)[half]
        return room[self.inside]

    # --- densities and potentials --------------------------------------------------------------

    @cached_property
    def valence(self) -> ndarray:
        """Density of the superposed atoms without cores, coefficients :attr:`inside`."""
        factors = [one.form_factors for one in self.elements]
        bare = [replace(one, core=np.zeros_like(one.core)) for one in factors]
        atoms = superposition(self.waves, self.tau, self.kinds, bare, None)
        return atoms.density[self.inside]

    @cached_property
    def v0(self) -> ndarray:
        """The local potential of H(0) in Ry, shape (n1, n2, n3)."""
        atoms = self._atoms
        density, electrostatic = atoms.density.copy(), atoms.electrostatic.copy()
        return potential_of_density(self.waves, density, electrostatic, Rules.of(self.nspin))

    def potential(self, change: ndarray) -> ndarray:
        """The local potential with a changed density.

        Parameters
        ----------
        change
            What is added to the density of the superposed atoms, in Bohr^-3: coefficients
            :attr:`inside`. It has no charge.

        Returns
        -------
        ndarray
            In Ry, shape (n1, n2, n3).
        """
        atoms = self._atoms
        density, electrostatic = atoms.density.copy(), atoms.electrostatic.copy()
        density[self.inside] += change
        electrostatic[self.inside] += self.coulomb * change
        return potential_of_density(self.waves, density, electrostatic, Rules.of(self.nspin))

    def response(self, change: ndarray) -> Response:
        """First derivatives of :meth:`potential` with the density, at a changed density.

        Parameters
        ----------
        change
            As of :meth:`potential`.
        """
        density = self._atoms.density + self.spread(change)
        return Response.of(self, density, Rules.of(self.nspin))

    def matrix(self, potential: ndarray) -> LCAOMatrix:
        """Matrix elements of a potential in eV, with the spin of H(0).

        Parameters
        ----------
        potential
            In Ry, shape (n1, n2, n3).
        """
        (found,) = self.matrices(np.asarray(potential)[None])
        return found

    def matrices(self, potentials: ndarray, *, dtype: str | None = None) -> list[LCAOMatrix]:
        """:meth:`matrix` of several potentials, faster than one by one.

        Parameters
        ----------
        potentials
            In Ry, shape (n, n1, n2, n3).
        dtype
            ``"float32"``: in half of the time, with errors of some 1e-6 of the elements; None: as
            H(0) was integrated.
        """
        spin = "spinor" if self.nspin == 4 else "unpolarised"
        return [
            LCAOMatrix(
                self.basis, self.symbols, self.pairs, "unpolarised", RYDBERG * elements
            ).with_spin(spin)
            for elements in self.integrate(np.asarray(potentials), dtype)
        ]

    @cached_property
    def weight(self) -> ndarray:
        """``sqrt(sum_i phi_i(r)^2)`` of all orbitals: where a potential counts, (n1, n2, n3).

        In Bohr^(-3/2).
        """
        transforms = np.zeros(len(self.vectors), complex)
        lengths = np.sqrt(self._lengths2[self.inside])
        average = 0.0
        q = np.arange(0, np.sqrt(self.waves.limit) + 2 * _WEIGHT_SPACING, _WEIGHT_SPACING)
        for kind, element in enumerate(self.elements):
            r = element.mesh
            integrand = 4 * np.pi * r**2 * squared_orbitals(element) * element.spacing
            table = np.sinc(np.outer(q, r) / np.pi) @ integrand
            atoms = self.tau[self.kinds == kind]
            phases = np.exp(-1j * (self.vectors @ atoms.T)).sum(axis=1)
            transforms += np.interp(lengths, q, table) * phases / self.waves.volume
            average += table[0] * len(atoms) / self.waves.volume
        return np.sqrt(np.maximum(self.to_grid(transforms) + average, 0))

    # --- inside --------------------------------------------------------------------------------

    @cached_property
    def _atoms(self) -> Superposition:
        factors = [one.form_factors for one in self.elements]
        return superposition(self.waves, self.tau, self.kinds, factors, None)

    @cached_property
    def _grid_vectors(self) -> ndarray:
        m = np.stack(np.meshgrid(*self.waves.indices, indexing="ij"), axis=-1)
        return m @ self.waves.reciprocal

    @cached_property
    def _lengths2(self) -> ndarray:
        return np.einsum("...x,...x", self._grid_vectors, self._grid_vectors)


def squared_orbitals(element: Element) -> ndarray:
    """Sum of the squares of all orbitals of a free atom on its radial mesh, in Bohr^-3."""
    degeneracy = (2 * np.asarray(element.shells) + 1) / (4 * np.pi)
    return degeneracy @ element.functions**2
