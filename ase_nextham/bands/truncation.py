"""What it costs to cut a Hamiltonian to the pairs of the overlap, as many programs do.

H reaches further than S, through the projectors of the pseudopotential: two orbitals that do not
overlap may both overlap with a projector of a third atom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham.bands.dense import eigenvalues
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix


@dataclass(frozen=True)
class Truncation:
    """The pairs that only the Hamiltonian has, and what dropping them does.

    Parameters
    ----------
    npairs
        How many there are.
    nearest, farthest
        Their distances in Angstrom; nan where there are none.
    largest
        Largest matrix element on them in eV.
    error
        Largest change of a band energy in eV, over all bands at the k-points looked at; None
        where it was not asked for.
    occupied_error
        The same over the bands that hold the electrons; None where their number is not known.
    """

    npairs: int
    nearest: float
    farthest: float
    largest: float
    error: float | None
    occupied_error: float | None


def truncation(data: LCAOData, hamiltonian: LCAOMatrix, kpts: ndarray | None = None) -> Truncation:
    """Compare a Hamiltonian with itself cut to the pairs on which the overlap is not zero.

    Parameters
    ----------
    data
        Structure, overlap and number of electrons.
    hamiltonian
        Of the same atoms and orbitals, in eV.
    kpts
        Where bands are compared, shape (nkpts, 3); without them only matrix elements are.
    """
    S = data.overlap
    of_element = np.repeat(np.arange(len(S.pairs)), np.diff(S.offsets))
    largest = np.zeros(len(S.pairs))
    np.maximum.at(largest, of_element, np.abs(S.data))
    kept = largest > 0
    kept |= kept[S.pairs.reverse]
    near = AtomPairs(S.pairs.i[kept], S.pairs.j[kept], S.pairs.R[kept])
    cut, dropped = hamiltonian.cut_to(near)
    own = hamiltonian.pairs
    alone = near.find(own.i, own.j, own.R) < 0
    vectors = data.atoms.positions[own.j] - data.atoms.positions[own.i]
    distances = np.linalg.norm(vectors + own.R @ data.atoms.cell.array, axis=1)[alone]
    error = occupied_error = None
    if kpts is not None:
        change = np.abs(eigenvalues(cut, S, kpts) - eigenvalues(hamiltonian, S, kpts))
        error = float(np.nanmax(change))
        if data.nelectrons is not None:
            # of collinear bands as many of each spin as would hold half of the electrons
            per_band = 1 if hamiltonian.spin == "spinor" else 2
            nbands = int(np.ceil(data.nelectrons / per_band))
            occupied_error = float(np.nanmax(change[..., :nbands], initial=0))
    return Truncation(
        int(alone.sum()),
        float(distances.min()) if alone.any() else np.nan,
        float(distances.max()) if alone.any() else np.nan,
        dropped,
        error,
        occupied_error,
    )


__all__ = ["Truncation", "truncation"]
