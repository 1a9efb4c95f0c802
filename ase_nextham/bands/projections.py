"""Densities of states, whole and by atom, element or angular momentum, and the parts of bands.

Parts are Mulliken's: orbital M has the share ``Re conj(C_M) (S C)_M`` in a band, which can be
slightly negative and sums to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from ase_nextham.bands.dense import Solution, map_kpts
from ase_nextham.matrix import LCAOMatrix

_KINDS = ("atom", "element", "l")


def fat_bands(
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    kpts: ndarray,
    by: str | Sequence[str] = "element",
    *,
    progress: bool = False,
) -> tuple[ndarray, ndarray, list[str]]:
    """Energies of all bands, and the share that each group of orbitals has in them.

    Parameters
    ----------
    hamiltonian, overlap, kpts, progress
        As in :func:`~ase_nextham.bands.eigenvalues`.
    by
        What makes a group: ``"atom"``, ``"element"``, ``"l"``, or several of them:
        ``("element", "l")`` gives groups such as ``"Ga d"``.

    Returns
    -------
    (ndarray, ndarray, list)
        eps in eV, shape (nspins, nkpts, nbands); the shares, shape
        (nspins, nkpts, nbands, ngroups), summing to 1 over the groups; and the groups' names.
        Both spin components of a spinor count for its orbital.
    """
    names, group = _groups(hamiltonian, by)
    member = (group == np.arange(len(names))[:, None]).astype(float)

    def shares(solution: Solution) -> tuple[ndarray, ndarray]:
        c, s = solution.coefficients, solution.overlap
        (nspins, nkpts, _, nbands), norbitals = c.shape, s.shape[-1]
        sc = (s @ c.reshape(nspins, nkpts, norbitals, -1)).reshape(c.shape)
        share = (c.conj() * sc).real.reshape(nspins, nkpts, norbitals, -1, nbands).sum(axis=3)
        return solution.eps, np.swapaxes(member @ share, -1, -2)

    pairs = map_kpts(hamiltonian, overlap, kpts, shares, True, progress)
    eps, share = zip(*pairs, strict=True)
    return np.concatenate(eps, axis=1), np.concatenate(share, axis=1), names


def dos(eps: ndarray, weights: ndarray, energies: ndarray, *, width: float = 0.1) -> ndarray:
    """Density of states with Gaussians in place of levels.

    Parameters
    ----------
    eps
        Eigenvalues in eV, shape (nspins, nkpts, nbands).
    weights
        Electrons per band at each k-point, shape (nkpts,), as in
        :func:`~ase_nextham.bands.fermi_level`.
    energies
        In eV, shape (nenergies,).
    width
        Standard deviation of the Gaussians in eV.

    Returns
    -------
    ndarray
        In electrons per eV and cell, shape (nspins, nenergies).
    """
    return pdos(eps, weights, np.ones((*np.shape(eps), 1)), energies, width=width)[:, 0]


def pdos(
    eps: ndarray, weights: ndarray, shares: ndarray, energies: ndarray, *, width: float = 0.1
) -> ndarray:
    """Density of states of each group of orbitals; over all groups they sum to :func:`dos`.

    Parameters
    ----------
    eps, shares
        Of :func:`fat_bands`.
    weights, energies, width
        As in :func:`dos`.

    Returns
    -------
    ndarray
        In electrons per eV and cell, shape (nspins, ngroups, nenergies).
    """
    if width <= 0:
        raise ValueError(f"the width must be positive, and is {width} eV")
    energies = np.asarray(energies, float)
    nspins, nkpts, _, ngroups = shares.shape
    result = np.zeros((nspins, ngroups, len(energies)))
    for spin in range(nspins):
        for k in range(nkpts):
            level = np.isfinite(eps[spin, k])
            x = (energies - eps[spin, k, level, None]) / width
            gaussian = np.exp(-0.5 * x**2) / (width * np.sqrt(2 * np.pi))
            result[spin] += weights[k] * (shares[spin, k, level].T @ gaussian)
    return result


def _groups(matrix: LCAOMatrix, by: str | Sequence[str]) -> tuple[list[str], ndarray]:
    """Names of the groups, in the order of the atoms, and the group of each orbital."""
    kinds = (by,) if isinstance(by, str) else tuple(by)
    unknown = [kind for kind in kinds if kind not in _KINDS]
    if unknown or not kinds:
        raise ValueError(f"unknown group of orbitals {by!r}; known: {', '.join(_KINDS)}")
    labels = []
    for atom, symbol in enumerate(matrix.symbols):
        words = {"atom": f"{symbol}{atom}", "element": symbol}
        for l in matrix.basis.quantum_numbers(symbol)[:, 0]:
            words["l"] = "spdfghi"[l]
            labels.append(" ".join(words[kind] for kind in kinds))
    names = list(dict.fromkeys(labels))
    return names, np.array([names.index(label) for label in labels])
