"""Eigenvectors at some k-points, split where the bands that matter end.

The loss in reciprocal space compares Hamiltonians in the basis of the self-consistent eigenvectors:
those below E_F + 10 eV span the space P, the others Q (NextHAM, appendix F).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham import bands
from ase_nextham.data import LCAOData

WINDOW = 10.0
"""eV above the Fermi level up to which eigenvectors belong to P."""

_DENSITY = 3.0  # k-points per Angstrom^-1 where a Fermi level has to be computed


@dataclass(frozen=True, eq=False)
class KSpace:
    """Self-consistent eigenstates at some k-points.

    Parameters
    ----------
    kpts
        In units of the reciprocal vectors, shape (nkpts, 3).
    eps
        In eV, ascending, on the scale of the Hamiltonian that they belong to, shape
        (nspins, nkpts, nbands); nspins is 2 for collinear spin. nan where S is nearly singular and
        combinations of orbitals were left out; their coefficients are zero.
    coefficients
        Columns with C^dagger S(k) C = 1, shape (nspins, nkpts, dimension, nbands).
    nlow
        Number of bands in P: those below the Fermi level + :data:`WINDOW` at this k-point, shape
        (nspins, nkpts). They are the first; Q is the rest.
    """

    kpts: ndarray
    eps: ndarray
    coefficients: ndarray
    nlow: ndarray

    def __repr__(self):
        return f"KSpace({len(self.kpts)} k-points, {self.eps.shape[-1]} bands)"


def random_kpts(number: int, name: str) -> ndarray:
    """k-points that fill the Brillouin zone evenly, whatever their number.

    Parameters
    ----------
    name
        Where the sequence begins depends on it, and on it alone.

    Returns
    -------
    ndarray
        Between -1/2 and 1/2 in units of the reciprocal vectors, shape (number, 3).

    Notes
    -----
    The additive recurrence in three dimensions whose steps are powers of the root of
    x^4 = x + 1: M. Roberts, The unreasonable effectiveness of quasirandom sequences (2018).
    """
    step = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    begin = np.random.default_rng(seed).random(3)
    return (begin + np.arange(number)[:, None] * step) % 1 - 0.5


def k_space(data: LCAOData, kpts: ndarray, *, fermi_level: float) -> KSpace:
    """Eigenstates of the self-consistent Hamiltonian, split into P and Q.

    Parameters
    ----------
    data
        With the Hamiltonian.
    kpts
        Shape (nkpts, 3).
    fermi_level
        In eV, on the scale of the Hamiltonian.

    Raises
    ------
    ValueError
        If S is not positive definite.
    """
    eps, coefficients = bands.eigenstates(data.hamiltonian, data.overlap, kpts)
    nlow = (eps < fermi_level + WINDOW).sum(axis=-1)  # nan is not below
    return KSpace(np.array(kpts, float), eps, coefficients, nlow)


def fermi_level_of(data: LCAOData) -> float:
    """The Fermi level of the source, else that by electron count on a mesh; in eV.

    Raises
    ------
    ValueError
        If the source states none and the number of electrons is not known.
    """
    if data.fermi_level is not None:
        return data.fermi_level
    mesh = bands.kmesh_for(data.hamiltonian, data.atoms, _DENSITY)
    eps = bands.eigenvalues(data.hamiltonian, data.overlap, mesh.kpts)
    weights = mesh.weights * bands.spin_degeneracy(data.hamiltonian.spin)
    return bands.fermi_level(eps, weights, data.electron_count())


__all__ = ["WINDOW", "KSpace", "fermi_level_of", "k_space", "random_kpts"]
