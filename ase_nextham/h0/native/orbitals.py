"""The radial functions of numerical orbitals as ABACUS uses them."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from ase_nextham.h0.native.radial import simpson_weights
from ase_nextham.h0.orb import Orbitals


def normalised_functions(orbitals: Orbitals) -> ndarray:
    """The radial functions, normalised once more by Simpson's rule on their own mesh.

    Returns
    -------
    ndarray
        chi(r) in Bohr^(-3/2), shape (nshells, nmesh), on ``orbitals.mesh``.
    """
    weights = simpson_weights(orbitals.functions.shape[1]) * orbitals.spacing
    norm = (orbitals.functions**2 * orbitals.mesh**2) @ weights
    return orbitals.functions / np.sqrt(norm)[:, None]
