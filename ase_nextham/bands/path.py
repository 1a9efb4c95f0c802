"""Bands along a path, as ASE's ``BandStructure``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ase import Atoms
from ase.dft.kpoints import BandPath
from ase.lattice import celldiff
from ase.spectrum.band_structure import BandStructure

from ase_nextham.bands.dense import eigenvalues
from ase_nextham.bands.filling import fermi_level as level_of
from ase_nextham.bands.filling import spin_degeneracy
from ase_nextham.bands.mesh import kmesh_for
from ase_nextham.matrix import LCAOMatrix

_CELL_TOLERANCE = 1e-6  # as ase.spectrum.band_structure.calculate_band_structure


def band_structure(
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    path: BandPath,
    *,
    nelectrons: float | None = None,
    fermi_level: float | None = None,
    atoms: Atoms | None = None,
    kpts: Sequence[int] | Mapping | float = 3.5,
    width: float = 0.05,
    progress: bool = False,
) -> BandStructure:
    """Bands along a path, with the Fermi level as reference.

    Parameters
    ----------
    hamiltonian, overlap
        As in :func:`~ase_nextham.bands.eigenvalues`.
    path
        For example ``atoms.cell.bandpath("LGX", npoints=100, pbc=atoms.pbc)``.
    nelectrons
        Electrons per cell; the Fermi level is that of the mesh ``kpts``, never of the path.
    fermi_level
        In eV, instead of ``nelectrons``, where it is known already.
    atoms
        The crystal. With it, path and crystal are checked against each other, and its symmetry
        shortens the sum over the mesh.
    kpts
        Mesh for the Fermi level, as in :func:`~ase_nextham.bands.kmesh`; a number is a density
        in points per 1/Angstrom.
    width
        Fermi-Dirac width in eV.
    progress
        Show a progress bar.

    Returns
    -------
    ase.spectrum.band_structure.BandStructure
        Absolute energies in eV, shape (nspins, nkpts, nbands); ``reference`` is the Fermi level.

    Raises
    ------
    ValueError
        If the path belongs to another cell than the atoms, or if not exactly one of
        ``nelectrons`` and ``fermi_level`` is given.
    """
    if (nelectrons is None) == (fermi_level is None):
        raise ValueError(
            "give either nelectrons (LCAOData.nelectrons), from which the Fermi level follows, or "
            "fermi_level in eV"
        )
    if atoms is None:
        atoms = Atoms(cell=path.cell, pbc=path.cell.any(1))
    else:
        _check_path(path, atoms)
    if fermi_level is None:
        mesh = kmesh_for(hamiltonian, atoms, kpts)
        eps_skn = eigenvalues(hamiltonian, overlap, mesh.kpts, progress=progress)
        weights = mesh.weights * spin_degeneracy(hamiltonian.spin)
        fermi_level = level_of(eps_skn, weights, nelectrons, width=width)
    energies = eigenvalues(hamiltonian, overlap, path.kpts, progress=progress)
    return BandStructure(path, energies, reference=fermi_level)


def _check_path(path: BandPath, atoms: Atoms) -> None:
    if (path.cell.any(1) != atoms.pbc).any():
        raise ValueError(
            f"the path belongs to a cell that is periodic along {path.cell.any(1).tolist()}, the "
            f"atoms are periodic along {atoms.pbc.tolist()}; use "
            "atoms.cell.bandpath(..., pbc=atoms.pbc)"
        )
    difference = celldiff(path.cell, atoms.cell.uncomplete(atoms.pbc))
    if difference > _CELL_TOLERANCE:
        raise ValueError(
            f"the path belongs to another cell than the atoms (they differ by {difference:.2g}): "
            f"lengths and angles {path.cell.cellpar().round(4).tolist()} and "
            f"{atoms.cell.cellpar().round(4).tolist()}; use atoms.cell.bandpath(...)"
        )
