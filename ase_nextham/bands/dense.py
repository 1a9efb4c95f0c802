"""All bands at given k-points: the generalized eigenproblem H(k) C = S(k) C eps.

It is reduced to an ordinary one by ``L^-1 H L^-dagger`` with the Cholesky factor of S, for spinors
with that of the overlap of the orbitals alone. Batches of k-points run in threads, each with one
BLAS thread: NumPy's linear algebra works without Python's lock, SciPy's does not.

Orbitals that are almost linearly dependent make S singular. Its eigenvalues below
:data:`NEARLY_SINGULAR` are then left out together with their eigenvectors (canonical
orthogonalisation, P.-O. Lowdin, Adv. Quantum Chem. 5, 185 (1970)).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray
from threadpoolctl import threadpool_limits

from ase_nextham.matrix import LCAOMatrix

NEARLY_SINGULAR = 1e-8
"""Eigenvalues of S below this are dropped. Matrix files carry 8 digits or so, so that a smaller one
is noise; and a combination of orbitals of norm 1e-8 turns noise of 1e-8 eV in H into whole eV."""

NOT_AN_OVERLAP = -1e-6
"""An eigenvalue below this is no rounding error: the matrix is not an overlap."""

HERMITIAN_TOLERANCE = 1e-5
"""Largest |H(k) - H(k)^dagger| in eV that passes, and of S: rounding of files, summed over R."""

_BATCH_BYTES = 2**26  # of all matrices of one batch of k-points
_LARGEST_BATCH = 16  # enough to amortise the sum over R, few enough to share among threads
_THREADED = 256  # rows; smaller matrices are diagonalised faster by one BLAS thread than by several


def eigenvalues(
    hamiltonian: LCAOMatrix, overlap: LCAOMatrix, kpts: ndarray, *, progress: bool = False
) -> ndarray:
    """Energies of all bands.

    Parameters
    ----------
    hamiltonian
        In eV, of any spin.
    overlap
        Unpolarised; of the same atoms and orbitals.
    kpts
        In units of the reciprocal vectors, shape (nkpts, 3).
    progress
        Show a progress bar.

    Returns
    -------
    ndarray
        In eV, ascending, shape (nspins, nkpts, nbands): nspins is 2 for collinear Hamiltonians,
        nbands the number of orbitals, for spinors twice that. Where S is nearly singular, as
        many of the highest bands are nan as combinations of orbitals were left out.

    Raises
    ------
    ValueError
        If the matrices do not belong together, are not Hermitian or not finite, or if S has a
        clearly negative eigenvalue.

    Warns
    -----
    UserWarning
        If S is nearly singular somewhere.
    """
    solutions = map_kpts(hamiltonian, overlap, kpts, lambda s: s.eps, False, progress)
    return np.concatenate(solutions, axis=1)


def eigenstates(
    hamiltonian: LCAOMatrix, overlap: LCAOMatrix, kpts: ndarray, *, progress: bool = False
) -> tuple[ndarray, ndarray]:
    """Energies and coefficients of all bands.

    Parameters
    ----------
    hamiltonian, overlap, kpts, progress
        As in :func:`eigenvalues`.

    Returns
    -------
    (ndarray, ndarray)
        eps in eV, shape (nspins, nkpts, nbands), and C, complex, shape
        (nspins, nkpts, dimension, nbands), with C^dagger S C = 1. Bands that are nan have zeros
        as coefficients. Phases, and bases of degenerate bands, are arbitrary.

    Raises
    ------
    ValueError
        As :func:`eigenvalues`.
    """
    pairs = map_kpts(hamiltonian, overlap, kpts, lambda s: (s.eps, s.coefficients), True, progress)
    eps, coefficients = zip(*pairs, strict=True)
    return np.concatenate(eps, axis=1), np.concatenate(coefficients, axis=1)


@dataclass(frozen=True, eq=False)
class Solution:
    """Bands at a batch of k-points.

    Parameters
    ----------
    eps
        In eV, shape (nspins, nkpts, nbands).
    coefficients
        Shape (nspins, nkpts, dimension, nbands), or None where not asked for.
    overlap
        S(k), shape (nkpts, norbitals, norbitals).
    singular
        (index of k-point, smallest eigenvalue of S, number of bands lost) where S is nearly
        singular.
    """

    eps: ndarray
    coefficients: ndarray | None
    overlap: ndarray
    singular: list[tuple[int, float, int]]


def map_kpts(
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    kpts: ndarray,
    function: Callable[[Solution], Any],
    vectors: bool,
    progress: bool,
) -> list:
    """What ``function`` makes of the bands at each batch of k-points, in their order."""
    check_belong_together(hamiltonian, overlap)
    kpts = np.asarray(kpts, float)
    if kpts.ndim != 2 or kpts.shape[1] != 3 or not len(kpts):
        raise ValueError(f"k-points must have shape (nkpts, 3), not {kpts.shape}")
    bytes_per_kpt = 16 * 6 * hamiltonian.dimension**2 * (1 + (hamiltonian.spin == "collinear"))
    # the size of a batch depends on neither machine nor threads, so that results do not either
    size = int(np.clip(_BATCH_BYTES // max(bytes_per_kpt, 1), 1, _LARGEST_BATCH))
    batches = [kpts[start : start + size] for start in range(0, len(kpts), size)]

    def work(batch: ndarray):
        solution = _solve(hamiltonian, overlap, batch, vectors)
        return function(solution), solution.singular

    ncores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    nworkers = min(ncores, len(batches))
    nthreads = ncores // nworkers if hamiltonian.dimension >= _THREADED else 1
    with (
        threadpool_limits(nthreads, user_api="blas"),
        ThreadPoolExecutor(nworkers) as pool,
    ):
        results = pool.map(work, batches)
        if progress:
            from tqdm import tqdm

            results = tqdm(results, total=len(batches), unit=f"{size} k", desc="bands")
        values, singular = zip(*results, strict=True)
    found = [(n * size + k, *rest) for n, some in enumerate(singular) for k, *rest in some]
    _warn_of_singular_overlap(found, kpts)
    return list(values)


def check_belong_together(hamiltonian: LCAOMatrix, overlap: LCAOMatrix) -> None:
    """ValueError unless the two are of the same atoms and orbitals."""
    if overlap.spin != "unpolarised":
        raise ValueError(f"the overlap must be unpolarised, and is {overlap.spin}")
    if hamiltonian.symbols != overlap.symbols:
        raise ValueError("the Hamiltonian and the overlap belong to different atoms")
    reason = hamiltonian.basis.difference(overlap.basis)
    if reason:
        raise ValueError(f"the Hamiltonian and the overlap have different bases: {reason}")


def _solve(hamiltonian: LCAOMatrix, overlap: LCAOMatrix, kpts: ndarray, vectors: bool) -> Solution:
    h, s = hamiltonian.at_k(kpts), overlap.at_k(kpts)
    _check_hermitian("Hamiltonian", h, kpts)
    _check_hermitian("overlap", s, kpts)
    if not h.imag.any() and not s.imag.any():
        h, s = np.ascontiguousarray(h.real), np.ascontiguousarray(s.real)
    if hamiltonian.spin != "collinear":
        h = h[None]
    nspins, nkpts, dimension, _ = h.shape
    eps = np.full((nspins, nkpts, dimension), np.nan)
    c = np.zeros((nspins, nkpts, dimension, dimension), complex) if vectors else None
    inverse, regular = _inverse_factor(s)
    singular = []
    groups = [(np.flatnonzero(regular), inverse[regular], True)]
    for k in np.flatnonzero(~regular):
        x, smallest = _canonical(s[k], kpts[k])
        lost = (len(s[k]) - len(x)) * dimension // len(s[k])
        groups.append((np.array([k]), x[None], False))
        if lost:
            singular.append((int(k), smallest, lost))
    for where, x, triangular in groups:
        if not len(where):
            continue
        for spin in range(nspins):
            matrix = _transformed(x, h[spin, where], triangular)
            nbands = matrix.shape[-1]
            if vectors:
                eps[spin, where, :nbands], v = np.linalg.eigh(matrix, UPLO="U")
                c[spin, where, :, :nbands] = _times(x.conj().swapaxes(1, 2), v)
            else:
                eps[spin, where, :nbands] = np.linalg.eigvalsh(matrix, UPLO="U")
    return Solution(eps, c, s, singular)


def _check_hermitian(name: str, matrices: ndarray, kpts: ndarray) -> None:
    error = np.abs(matrices - matrices.conj().swapaxes(-1, -2)).max(axis=(-1, -2), initial=0)
    error = error.reshape(-1, len(kpts)).max(axis=0)
    worst = int(np.argmax(error))  # also finds nan
    if not error[worst] <= HERMITIAN_TOLERANCE:
        if np.isfinite(error[worst]):
            raise ValueError(
                f"the {name} is not Hermitian at k = {kpts[worst].tolist()}: it differs from its "
                f"conjugate transpose by {error[worst]:.2g}; check where its blocks come from"
            )
        raise ValueError(
            f"the {name} at k = {kpts[worst].tolist()} holds numbers that are not finite; check "
            "the file or the model that it comes from"
        )


def _inverse_factor(s: ndarray) -> tuple[ndarray, ndarray]:
    """L^-1 of the Cholesky factorisation S = L L^dagger, and where S is surely not singular."""
    try:
        inverse = _inverse_of_lower(np.linalg.cholesky(s))
    except np.linalg.LinAlgError:
        return np.zeros_like(s), np.zeros(len(s), bool)
    # the squared norm of L^-1 is the sum of all 1 / eigenvalue(S), and more than the largest one
    return inverse, 1 / (np.abs(inverse) ** 2).sum(axis=(1, 2)) > NEARLY_SINGULAR


def _inverse_of_lower(matrix: ndarray) -> ndarray:
    """Inverse of lower triangular matrices, by halves: nearly all of it is multiplication."""
    n = matrix.shape[-1]
    if n <= 64:
        return np.tril(np.linalg.inv(matrix))
    m = n // 2
    first, last = _inverse_of_lower(matrix[..., :m, :m]), _inverse_of_lower(matrix[..., m:, m:])
    inverse = np.zeros_like(matrix)
    inverse[..., :m, :m], inverse[..., m:, m:] = first, last
    inverse[..., m:, :m] = -last @ (matrix[..., m:, :m] @ first)
    return inverse


def _canonical(s: ndarray, k: ndarray) -> tuple[ndarray, float]:
    """X with ``X S X^dagger = 1`` without the null space of S; the smallest eigenvalue of S."""
    values, vectors = np.linalg.eigh(s)
    if not values[0] > NOT_AN_OVERLAP:
        raise ValueError(
            f"the overlap has the eigenvalue {values[0]:.3g} at k = {k.tolist()}, but an overlap "
            "is positive definite: blocks are missing, have the wrong sign or belong to other R; "
            "check the pairs and the orbital convention of its source"
        )
    kept = values > NEARLY_SINGULAR
    return (vectors[:, kept] / np.sqrt(values[kept])).conj().T, float(values[0])


def _transformed(x: ndarray, h: ndarray, triangular: bool) -> ndarray:
    """Upper triangle of ``x h x^dagger``; x acts on the orbitals of spinors.

    By blocks of rows, because those of a lower triangular ``x`` end at the diagonal, which saves
    two thirds of the work.
    """
    nkpts, rows, norbitals = x.shape
    f = h.shape[-1] // norbitals  # 2 for spinors: the index is 2 * orbital + spin
    result = np.zeros((nkpts, f * rows, f * rows), np.result_type(x, h))
    for start in range(0, rows, 128):
        stop = min(start + 128, rows)
        end = stop if triangular else norbitals
        last = stop if triangular else rows
        left = _times(x[:, start:stop, :end], h[:, : f * end, : f * end])
        right = _times(x[:, :last, :end], left.conj().swapaxes(1, 2))
        result[:, : f * last, f * start : f * stop] = right
    return result


def _times(x: ndarray, matrix: ndarray) -> ndarray:
    """``(x (x) 1) @ matrix`` where a spinor matrix has twice as many rows as x has columns."""
    nkpts, rows, norbitals = x.shape
    f = matrix.shape[1] // norbitals
    columns = matrix.shape[2]
    product = x @ np.ascontiguousarray(matrix).reshape(nkpts, norbitals, f * columns)
    return product.reshape(nkpts, rows * f, columns)


def _warn_of_singular_overlap(found: list[tuple[int, float, int]], kpts: ndarray) -> None:
    if not found:
        return
    worst, smallest, _ = min(found, key=lambda entry: entry[1])
    warnings.warn(
        f"the overlap is nearly singular at {len(found)} of {len(kpts)} k-points, worst at "
        f"k = {kpts[worst].tolist()}, where its smallest eigenvalue is {smallest:.2g}. Up to "
        f"{max(lost for _, _, lost in found)} combinations of orbitals that are almost linearly "
        "dependent are left out there, and as many of the highest bands are nan. If that is not "
        "expected, check that no two atoms coincide; fewer or shorter orbitals help",
        stacklevel=4,
    )
