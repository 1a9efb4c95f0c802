"""Loewdin orthogonalisation: the same bands in a basis of orthonormal orbitals.

Programs for Wannier functions know no overlap. The Bloch sums of atomic orbitals times
``T(k) = S(k)^(-1/2)`` are orthonormal, and closest to them of all orthonormal functions; they turn
with the crystal as the orbitals do, so that atoms, shells and signs keep their meaning. On a mesh
of N k-points::

    H'(k) = T H T                  r'(k) = T r T - i (dT/dk) T^-1

    O'_ij(R) = 1/N sum_k exp(-2 pi i k.R) O'_ij(k)

The second term of r' comes from the lattice vectors by which an orthogonal orbital reaches into
other cells. With r(k)^+ = r(k) + i dS/dk it makes r' Hermitian. O'(R) is periodic in R with the
period of the mesh; of all equivalent R each pair of atoms has the one with the shortest distance
between them, or equal shares of the several shortest ones. Bands are exact on the mesh. Between
its points they are off by how much of O' lies beyond the period: S^(-1/2) decays exponentially,
and the more slowly the closer S is to singular.

P.-O. Loewdin, J. Chem. Phys. 18, 365 (1950).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase.geometry import minkowski_reduce
from numpy import ndarray

from ase_nextham.bands.dense import NEARLY_SINGULAR, eigenvalues
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix, ranges

_AT_ONCE = 2**20  # elements of one operator at a batch of k-points, 16 MB
_EQUALLY_FAR = 1e-5  # difference of distances in Angstrom that counts as none


def is_orthonormal(overlap: LCAOMatrix, tolerance: float = 1e-10) -> bool:
    """Whether an overlap is the identity, so that there is nothing to orthogonalise."""
    identity = _identity(overlap)
    return float(np.abs((overlap - identity).data).max(initial=0)) <= tolerance


def orthogonalised(data: LCAOData, kpts: Sequence[int]) -> LCAOData:
    """The same structure and bands, with an overlap that is the identity.

    Parameters
    ----------
    data
        With one Hamiltonian or two, with or without the position operator.
    kpts
        Sizes of the Gamma-centred mesh on which the bands are kept.

    Returns
    -------
    LCAOData
        On pairs that reach half as far as the crystal that the mesh stands for. Basis and atoms
        are as before, but for the fingerprints of the orbitals, which are marked as "loewdin", and
        their radius, which they no longer have.

    Raises
    ------
    ValueError
        If S is singular somewhere on the mesh, or ``kpts`` is not a mesh.
    """
    size = np.asarray(kpts)
    if size.shape != (3,) or not np.issubdtype(size.dtype, np.integer) or size.min() < 1:
        raise ValueError(f"kpts must be three positive integers such as (6, 6, 6), not {kpts!r}")
    on_mesh = _on_mesh(data, size)
    pairs, shares, places = _nearest_images(data, size)
    basis = replace(
        data.basis,
        radius={},
        fingerprint={name: f"loewdin {x}" for name, x in data.basis.fingerprint.items()},
    )

    def matrix(name: str, spin: str) -> LCAOMatrix:
        values = _gathered(on_mesh[name], data, pairs, places, shares, spin)
        return LCAOMatrix(basis, data.symbols, pairs, spin, values)

    new = {name: matrix(name, m.spin) for name, m in _hamiltonians(data).items()}
    if data.position is not None:
        new["position"] = tuple(matrix(axis, "unpolarised") for axis in "xyz")
    overlap = _identity(LCAOMatrix(basis, data.symbols, *_nothing(data)))
    return replace(data, overlap=overlap, **new)


def interpolation_error(
    orthogonal: LCAOData, data: LCAOData, kpts: ndarray | None = None, *, nbands: int | None = None
) -> float:
    """How far the bands of an orthogonalised Hamiltonian are from what they were.

    Parameters
    ----------
    orthogonal
        As :func:`orthogonalised` made it from ``data``.
    kpts
        In units of the reciprocal vectors, shape (nkpts, 3); by default eight at random, the same
        in every call.
    nbands
        Look at the lowest bands only; all by default.

    Returns
    -------
    float
        In eV, the largest difference of two eigenvalues.
    """
    if kpts is None:
        kpts = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 3))
    exact = eigenvalues(data.best_hamiltonian(), data.overlap, kpts)[..., :nbands]
    found = eigenvalues(orthogonal.best_hamiltonian(), orthogonal.overlap, kpts)[..., :nbands]
    return float(np.abs(found - exact).max(initial=0))


def _hamiltonians(data: LCAOData) -> dict[str, LCAOMatrix]:
    named = {"h0": data.h0, "hamiltonian": data.hamiltonian}
    return {name: matrix for name, matrix in named.items() if matrix is not None}


def _nothing(data: LCAOData):
    atoms = np.arange(len(data.atoms))
    pairs, _ = AtomPairs.sort(atoms, atoms, np.zeros((len(atoms), 3), int))
    n = data.overlap.norbitals
    return pairs, "unpolarised", np.zeros(int((n**2).sum()))


def _identity(like: LCAOMatrix) -> LCAOMatrix:
    pairs, _, values = _nothing_like(like)
    matrix = LCAOMatrix(like.basis, like.symbols, pairs, "unpolarised", values)
    for atom, n in enumerate(matrix.norbitals):
        start = matrix.offsets[atom]
        values[start : start + n * n : n + 1] = 1
    return LCAOMatrix(like.basis, like.symbols, pairs, "unpolarised", values)
