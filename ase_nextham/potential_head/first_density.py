"""The density that the eigenstates of H(0) make, without any loop.

It is not the self-consistent one, but it answers to the same potential that the self-consistent
one will answer to: what it has more or less than the superposed atoms tells where electrons will
go. One diagonalisation on a coarse mesh of k-points is enough, because nothing is iterated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham.bands import KMesh, fermi_level, kmesh, occupations, spin_degeneracy
from ase_nextham.bands.dense import Solution, map_kpts
from ase_nextham.bands.mesh import TIME_REVERSAL_TOLERANCE
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.units import BOHR

KPOINTS = 3.5
"""Points of the mesh per 1/Angstrom along each reciprocal vector: 7 x 7 x 7 for GaAs.

Twice as many change the result by 0.5 % for GaAs and Ge, whose gaps H(0) nearly closes, by 1.3 %
for Al and by less than 0.1 % for C, MgO and graphene, in the Coulomb norm."""

WIDTH = 0.3
"""Of the Fermi-Dirac occupations in eV. Narrower ones need denser meshes: for Al, 0.2 eV doubles
that change."""

_SAME_SPINS = 1e-6  # eV
_TRACE = 1e-6  # electrons lost per electron: files of S and H(0) carry 8 digits
_CHARGE = 1e-2  # the same for the sum over the grid, which cannot resolve semicore shells fully
_EMPTY = 1e-14  # occupation
_PORTION_BYTES = 2**27  # of the density matrices of the k-points that are worked on at a time


def first_density(
    part: LocalPart,
    h0: LCAOMatrix,
    overlap: LCAOMatrix,
    nelectrons: float,
    *,
    kpts: Sequence[int] | Mapping | float = KPOINTS,
    width: float = WIDTH,
) -> ndarray:
    """The change of the density from superposed atoms to the eigenstates of H(0).

    Parameters
    ----------
    part
        Of the structure, from ``NativeH0.local_part``.
    h0, overlap
        Of the same structure at the same positions. H(0) in eV, of any spin; of spinors the
        density of both components counts.
    nelectrons
        Valence electrons in the cell.
    kpts
        The mesh, as of :func:`ase_nextham.bands.kmesh`.
    width
        Of the Fermi-Dirac occupations in eV.

    Returns
    -------
    ndarray
        On the plane waves :attr:`LocalPart.vectors`, in Bohr^-3, complex, shape (ng,).

    Raises
    ------
    ValueError
        If H(0) has two different spins, the matrices are not of the structure of ``part``, or
        they do not hold the electrons.

    Notes
    -----
    ``rho(r) = sum P_ij(R) phi_i(r) phi_j(r - R)`` on the grid of the potential, with the density
    matrix ``P_ij(R) = sum_kn w_k f_kn Re conj(C_i) C_j exp(2 pi i k.R)``. As in ABACUS, the sum is
    scaled to the number of electrons.
    """
    h0 = _without_spins(h0)
    mesh = mesh_of_density(part, h0, kpts)
    return output_density(part, h0, overlap, nelectrons, mesh, width=width)[0]


def output_density(
    part: LocalPart,
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    nelectrons: float,
    mesh: KMesh,
    *,
    width: float,
    smearing: str = "fermi-dirac",
) -> tuple[ndarray, ndarray]:
    """The change of the density from superposed atoms to the eigenstates of a Hamiltonian.

    Parameters
    ----------
    part, overlap, nelectrons
        As of :func:`first_density`.
    hamiltonian
        In eV, unpolarised or spinor, on any pairs.
    mesh
        From :func:`mesh_of_density`.
    width, smearing
        As of :func:`ase_nextham.bands.occupations`.

    Returns
    -------
    (ndarray, ndarray)
        The change as :func:`first_density` gives it, and the eigenvalues in eV, shape
        (nkpts, nbands).

    Raises
    ------
    ValueError
        As :func:`first_density`.
    """
    p, eps = density_matrix(
        hamiltonian, overlap, part.pairs, nelectrons, mesh, width=width, smearing=smearing
    )
    # a file may lack blocks that are zero
    held = overlap.cut_to(part.pairs)[0].on_pairs(part.pairs)
    found = float(p.data @ held.data.real)
    if not abs(found - nelectrons) <= _TRACE * nelectrons:
        raise ValueError(
            f"the density matrix holds {found:.8f} electrons on the pairs of this "
            f"structure whose orbitals overlap, not {nelectrons:g}: are the matrices of the same "
            "atoms at the same positions?"
        )
    shape = part.waves.shape
    density = part.transposed(shape, p.data) * (np.prod(shape) / part.waves.volume)
    found = float(density.mean() * part.waves.volume)
    if not abs(found - nelectrons) <= _CHARGE * nelectrons:
        raise ValueError(
            f"the density of the states holds {found:.6f} electrons on the grid, not "
            f"{nelectrons:g}: the matrices are of other orbitals than the structure, or "
            f"ecutwfc={part.ecutwfc:g} Ry is too small for these orbitals"
        )
    return part.from_grid(density) * (nelectrons / found) - part.valence, eps


def density_matrix(
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    pairs: AtomPairs,
    nelectrons: float,
    mesh: KMesh,
    *,
    width: float,
    smearing: str = "fermi-dirac",
) -> tuple[LCAOMatrix, ndarray]:
    """P_ij(R) without spin, and the energies of the bands that it is made of.

    Parameters
    ----------
    hamiltonian, overlap
        The Hamiltonian in eV, unpolarised or spinor.
    pairs
        Where P is wanted.
    nelectrons
        Valence electrons in the cell.
    mesh
        Of k-points; where one stands for -k as well, the Hamiltonian has time reversal.
    width, smearing
        As of :func:`ase_nextham.bands.occupations`.

    Returns
    -------
    (LCAOMatrix, ndarray)
        P, real and unpolarised, ``sum_kn w_k f_kn Re conj(C_i) C_j exp(2 pi i k.R)`` summed over
        both spins: its inner product with the overlap are the electrons. The eigenvalues in eV,
        shape (nkpts, nbands).
    """
    solved = map_kpts(hamiltonian, overlap, mesh.kpts, _states, True, False)
    eps = np.concatenate([one[0] for one in solved])
    states = [c for one in solved for c in one[1]]
    weights = mesh.weights * spin_degeneracy(hamiltonian.spin)
    level = fermi_level(eps, weights, nelectrons, width=width, smearing=smearing)
    filled = weights[:, None] * occupations(eps, level, width=width, smearing=smearing)
    sizes = overlap.norbitals[pairs.i] * overlap.norbitals[pairs.j]
    offsets, first = np.concatenate([[0], np.cumsum(sizes)]), overlap.first_orbital
    result = np.zeros(offsets[-1])
    portion = max(1, _PORTION_BYTES // (16 * overlap.dimension**2))
    for start in range(0, len(states), portion):
        some = slice(start, start + portion)
        p = np.stack([_filled(*one) for one in zip(states[some], filled[some], strict=True)], 1)
        phases = 2 * np.pi * (pairs.R @ mesh.kpts[some].T)
        phases = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
        # one product for all R of two atoms
        for head, tail in zip(pairs.groups[:-1], pairs.groups[1:], strict=True):
            i, j = pairs.i[head], pairs.j[head]
            block = p[:, :, first[i] : first[i + 1], first[j] : first[j + 1]]
            block = block.reshape(phases.shape[1], -1)
            result[offsets[head] : offsets[tail]] += (phases[head:tail] @ block).ravel()
    return LCAOMatrix(overlap.basis, overlap.symbols, pairs, "unpolarised", result), eps


def _states(solution: Solution) -> tuple[ndarray, ndarray]:
    """eps (nkpts, nbands) and C (nkpts, norbitals, spins * nbands) of one batch."""
    c = solution.coefficients[0]
    return solution.eps[0], c.reshape(len(c), solution.overlap.shape[-1], -1)


def _filled(states: ndarray, filled: ndarray) -> ndarray:
    """Real and imaginary part of ``sum_n f_n C_i conj(C_j)``, shape (2, norbitals, norbitals)."""
    filled = np.tile(filled, states.shape[1] // len(filled))  # of both spins of an orbital
    kept = filled > _EMPTY
    c = states[:, kept] * np.sqrt(filled[kept])
    p = c @ c.conj().T
    return np.stack([p.real, p.imag])


def mesh_of_density(
    part: LocalPart, hamiltonian: LCAOMatrix, kpts: Sequence[int] | Mapping | float
) -> KMesh:
    """Reduced by time reversal where a Hamiltonian has it; no rotation of states is known here.

    Parameters
    ----------
    kpts
        As of :func:`ase_nextham.bands.kmesh`.
    """
    cell = Atoms(cell=part.cell * BOHR, pbc=True)
    reverses = hamiltonian.time_reversal_error() < TIME_REVERSAL_TOLERANCE
    return kmesh(cell, kpts, symmetry=False, time_reversal=reverses)


def _without_spins(h0: LCAOMatrix) -> LCAOMatrix:
    """Collinear matrices whose spins are the same as one."""
    if h0.spin != "collinear":
        return h0
    split = float(np.abs(h0.data[0] - h0.data[1]).max(initial=0))
    if split > _SAME_SPINS:
        raise ValueError(
            f"H(0) has spin up and down that differ by {split:.3g} eV; the change of the density "
            "has no spin here: use H(0) without magnetic moments"
        )
    return replace(h0, spin="unpolarised", data=h0.data[0])
