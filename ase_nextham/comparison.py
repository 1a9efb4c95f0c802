"""How far two Hamiltonians of one structure are apart, in elements and in bands: the definitions.

Those of errors against a self-consistent Hamiltonian and of the spread between predictions are the
same, so that one can be told from the other.

Elements: adding ``mu S`` to H changes no physics, so that a Hamiltonian is first given the ``mu``
for which ``H + mu S`` is closest to the reference in the sense of least squares. What is left is
the "gauge" difference. Elements of which the reference has no more than :data:`THRESHOLD` are not
counted; complex ones count once, with the modulus.

Bands: they are compared one by one in the order of energy, after

* the energy zero was moved: by the median of the differences of the valence bands on a mesh, which
  are the occupied ones less than :data:`VALENCE` below the Fermi level of the reference. It makes
  their mean absolute difference smallest, and a few wrong bands do not move it. Semicore states,
  which H(0) has electronvolts away from where they should be relative to the valence bands, have no
  say;
* those more than :data:`WINDOW` above the Fermi level were left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham import bands
from ase_nextham.bands.dense import map_kpts
from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix, aligned
from ase_nextham.units import RYDBERG

THRESHOLD = 1e-12 * RYDBERG
"""Elements of the reference that are not larger, in eV, are not counted."""

WINDOW = 5.0
"""eV above the Fermi level up to which bands are compared."""

VALENCE = 10.0
"""eV below the Fermi level down to which occupied bands say where the energy zero is."""

KPOINTS = 3.0
"""Points per 1/Angstrom of the mesh on which bands are compared, where nothing else is said."""

_WIDTH = 0.05  # eV, of the occupations


@dataclass(frozen=True, eq=False)
class Reference:
    """Bands of the Hamiltonian with which others are compared, on a mesh.

    Parameters
    ----------
    kpts
        Inequivalent ones, in units of the reciprocal vectors, shape (nkpts, 3).
    multiplicity
        Points of the full mesh that each of them stands for, integer, shape (nkpts,).
    eps
        In eV, shape (nspins, nkpts, nbands).
    occupations
        Between 0 and 1, in the shape of ``eps``.
    fermi_level
        In eV.
    gap
        In eV; 0 for a metal, None where the number of electrons is not known.
    condition
        Condition number of S(k), shape (nkpts,).
    """

    kpts: ndarray
    multiplicity: ndarray
    eps: ndarray
    occupations: ndarray
    fermi_level: float
    gap: float | None
    condition: ndarray


def reference(data: LCAOData, kpts: Sequence[int] | Mapping | float = KPOINTS) -> Reference:
    """Bands of the Hamiltonian of a structure.

    Parameters
    ----------
    data
        With the Hamiltonian, self-consistent or not. The Fermi level follows from the number of
        electrons; where that is not known, it is the one of the data.
    kpts
        A mesh as in :func:`ase_nextham.bands.kmesh`; a number is a density in points per
        1/Angstrom.

    Raises
    ------
    ValueError
        If there is no Hamiltonian, or neither electrons nor Fermi level are known.
    """
    hamiltonian = hamiltonian_of(data)
    mesh = bands.kmesh_for(hamiltonian, data.atoms, kpts)
    solutions = map_kpts(
        hamiltonian,
        data.overlap,
        mesh.kpts,
        lambda solution: (solution.eps, np.linalg.eigvalsh(solution.overlap)),
        False,
        False,
    )
    eps = np.concatenate([eps for eps, _ in solutions], axis=1)
    overlaps = np.concatenate([values for _, values in solutions])
    if data.nelectrons is None and data.fermi_level is not None:
        fermi_level, gap = data.fermi_level, None
    else:
        electrons = data.electron_count()
        weights = mesh.weights * bands.spin_degeneracy(hamiltonian.spin)
        fermi_level = bands.fermi_level(eps, weights, electrons, width=_WIDTH)
        gap = gap_of(eps, electrons, hamiltonian.spin)
    return Reference(
        kpts=mesh.kpts,
        multiplicity=np.bincount(mesh.index, minlength=len(mesh.kpts)),
        eps=eps,
        occupations=bands.occupations(eps, fermi_level, width=_WIDTH),
        fermi_level=fermi_level,
        gap=gap,
        condition=overlaps[:, -1] / np.maximum(overlaps[:, 0], np.finfo(float).tiny),
    )


def hamiltonian_of(data: LCAOData) -> LCAOMatrix:
    """The Hamiltonian of a structure, with which others are compared.

    Raises
    ------
    ValueError
        If there is none.
    """
    if data.hamiltonian is None:
        raise ValueError(f"{data!r} has no self-consistent Hamiltonian to compare with")
    return data.hamiltonian


def gap_of(eps: ndarray, nelectrons: float, spin: str) -> float:
    """Indirect gap of bands (nspins, nkpts, nbands) in eV; 0 for a metal."""
    gap = bands.band_gap(eps, nelectrons, spin)
    return 0.0 if gap is None else gap.indirect


# --- elements ------------------------------------------------------------------------------------


def gauge_difference(difference: LCAOMatrix, overlap: LCAOMatrix) -> tuple[LCAOMatrix, float]:
    """What is left of a difference of Hamiltonians when ``mu S`` has no say, and mu in eV."""
    return aligned(difference, 0 * difference, overlap)


def counted(reference: LCAOMatrix) -> ndarray:
    """Which elements of a Hamiltonian count, in the shape of its data."""
    return np.abs(reference.data) > THRESHOLD


def gauge_mae(matrix: LCAOMatrix, reference: LCAOMatrix, overlap: LCAOMatrix) -> float:
    """Mean gauge difference of the elements of two Hamiltonians, in eV.

    Parameters
    ----------
    matrix, reference
        In eV, of the same spin; ``matrix`` has no pairs that ``reference`` has not.
    overlap
        Of the same structure.
    """
    difference = (matrix - reference).on_pairs(reference.pairs)
    moved, _ = gauge_difference(difference, overlap)
    some = np.abs(moved.data)[counted(reference)]
    return float(some.mean()) if some.size else 0.0


# --- bands ---------------------------------------------------------------------------------------


def band_mae(matrix: LCAOMatrix, overlap: LCAOMatrix, reference: Reference) -> float:
    """Mean difference of the bands up to :data:`WINDOW` above the Fermi level, in eV.

    Parameters
    ----------
    matrix
        In eV.
    overlap
        Of the same structure.
    reference
        Of the same structure. Each of its bands counts once for each point of the full mesh.
    """
    eps = bands.eigenvalues(matrix, overlap, reference.kpts)
    difference = np.abs(eps + valence_shift(eps, reference) - reference.eps)
    inside = (reference.eps < reference.fermi_level + WINDOW) & ~np.isnan(difference)
    times = np.broadcast_to(reference.multiplicity[:, None], inside.shape)[inside]
    return float(difference[inside] @ times / max(times.sum(), 1))


def valence_shift(eps: ndarray, reference: Reference) -> float:
    """What to add to ``eps`` to bring its valence bands to those of the reference.

    Parameters
    ----------
    eps
        In eV on the mesh of the reference, in the shape of its ``eps``.

    Returns
    -------
    float
        In eV: the median of the differences of the occupied bands less than :data:`VALENCE` below
        the Fermi level, or of all occupied bands where there are none; weighted by occupation, so
        that states at the Fermi level of a metal come in smoothly, and by multiplicity.
    """
    difference = reference.eps - eps
    weights = reference.occupations * reference.multiplicity[:, None]
    weights = np.where(np.isnan(difference), 0, weights)
    near = np.where(reference.eps > reference.fermi_level - VALENCE, weights, 0)
    weights = near if near.sum() > 0.5 else weights
    some = weights > 1e-6 * weights.max(initial=0)
    return _median(difference[some], weights[some]) if some.any() else 0.0


def _median(values: ndarray, weights: ndarray) -> float:
    """The middle of the numbers whose mean distance from ``values`` is smallest."""
    order = np.argsort(values)
    values, below = values[order], np.cumsum(weights[order])
    # rounding must not decide whether two halves are equal
    first, last = np.searchsorted(below, below[-1] / 2 * np.array([1 - 1e-9, 1 + 1e-9]))
    return float((values[first] + values[last]) / 2)


__all__ = [
    "KPOINTS",
    "THRESHOLD",
    "VALENCE",
    "WINDOW",
    "Reference",
    "band_mae",
    "counted",
    "gap_of",
    "gauge_difference",
    "gauge_mae",
    "hamiltonian_of",
    "reference",
    "valence_shift",
]
