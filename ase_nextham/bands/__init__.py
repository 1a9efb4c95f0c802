"""Bands of a Hamiltonian in atomic orbitals, and what follows from their energies.

``H(k) C = S(k) C eps`` at any k-points (:mod:`~ase_nextham.bands.dense`), and near one energy in
large cells (:mod:`~ase_nextham.bands.sparse`); meshes of k-points
(:mod:`~ase_nextham.bands.mesh`); Fermi level and gap by electron count
(:mod:`~ase_nextham.bands.filling`); densities of states and their parts
(:mod:`~ase_nextham.bands.projections`). Paths, cells and plots of band structures are ASE's:
:func:`band_structure` returns ASE's object.

Energies are in eV on the scale of the Hamiltonian, k-points in units of the reciprocal vectors.
Eigenvalues have the axes (spin, k-point, band) with two spins for collinear Hamiltonians and one
otherwise; a spinor Hamiltonian has twice as many bands.
"""

from ase_nextham.bands.dense import eigenstates, eigenvalues
from ase_nextham.bands.filling import (
    Gap,
    band_gap,
    fermi_level,
    occupations,
    spin_degeneracy,
)
from ase_nextham.bands.mesh import KMesh, kmesh, kmesh_for
from ase_nextham.bands.path import band_structure
from ase_nextham.bands.projections import dos, fat_bands, pdos
from ase_nextham.bands.sparse import bands_near, electrons_below, fermi_level_sparse
from ase_nextham.bands.truncation import Truncation, truncation

__all__ = [
    "Gap",
    "KMesh",
    "Truncation",
    "band_gap",
    "band_structure",
    "bands_near",
    "dos",
    "eigenstates",
    "eigenvalues",
    "electrons_below",
    "fat_bands",
    "fermi_level",
    "fermi_level_sparse",
    "kmesh",
    "kmesh_for",
    "occupations",
    "pdos",
    "spin_degeneracy",
    "truncation",
]
