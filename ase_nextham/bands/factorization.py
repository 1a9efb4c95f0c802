"""L D L^dagger of sparse Hermitian matrices by dense blocks: solutions, and the count of negative
eigenvalues.

Atoms are put into levels: the first holds one atom, each next one the atoms that interact with the
level before. The matrix is then block tridiagonal, and is eliminated block by block with LAPACK's
pivoted factorisation of each Schur complement. In a cell that is long against the reach of the
Hamiltonian the blocks stay small, and time and memory grow linearly with its length; in a compact
cell two or three levels hold all atoms, and this is the dense factorisation. It runs at the speed
of matrix multiplication in both, which a general sparse factorisation does not for matrices as
full as those of atomic orbitals.

Sylvester's law of inertia: the matrix has as many negative eigenvalues as the D of all blocks
together (E. V. Haynsworth, Linear Algebra Appl. 1, 73 (1968)).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray
from scipy.linalg import blas, lapack
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from ase_nextham.matrix import AtomPairs

_PANEL = 1024  # columns of a Schur complement that are updated at a time


class SingularMatrixError(ArithmeticError):
    """The matrix, or a leading part of it, has an eigenvalue that is exactly zero."""


def atom_levels(pairs: AtomPairs, natoms: int) -> ndarray:
    """A level for each atom such that atoms of pairs are in the same or in adjacent levels.

    Returns
    -------
    ndarray
        Integer, shape (natoms,), from 0 on without holes.
    """
    graph = csr_array((np.ones(len(pairs)), (pairs.i, pairs.j)), shape=(natoms, natoms))
    levels = _distances(graph, np.zeros(natoms))
    # beginning at an atom far from the first one makes more and smaller levels, if there are ends
    again = _distances(graph, -levels)
    return again if again.max() > levels.max() else levels


def _distances(graph: csr_array, preference: ndarray) -> ndarray:
    """Bonds between each atom and the first one by preference in its connected part."""
    distance = np.full(graph.shape[0], np.inf)
    for start in np.argsort(preference, kind="stable"):
        if np.isinf(distance[start]):
            distance = np.minimum(distance, dijkstra(graph, indices=start, unweighted=True))
        if np.isfinite(distance).all():
            break
    return distance.astype(int)


def factorization_bytes(sizes: ndarray, itemsize: int) -> int:
    """Memory that the factorisation of levels with ``sizes`` rows takes at its peak."""
    sizes = np.asarray(sizes, float)
    panel = min(_PANEL, sizes.max())
    factors = (sizes**2).sum() + (sizes[1:] * sizes[:-1]).sum()
    return int(itemsize * (factors + 2 * panel * sizes.max()))


def available_bytes() -> int:
    """Memory that is free or can be freed, as far as the system says."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, eq=False)
class Factorization:
    """Of a Hermitian matrix; see :func:`factorize`.

    Parameters
    ----------
    negative
        How many of its eigenvalues are negative.
    order
        Rows of the matrix, level by level, shape (n,).
    blocks
        Factors of the Schur complement of each level.
    couplings
        L^-1 P times the block between each level and the next.
    """

    negative: int
    order: ndarray
    blocks: list[_Block]
    couplings: list[ndarray]

    def solve(self, rhs: ndarray) -> ndarray:
        """The solutions of ``matrix @ x = rhs``, shape (n, nrhs)."""
        x = np.empty(rhs.shape, np.result_type(rhs, self.blocks[0].lower), order="F")
        ends = np.cumsum([len(block.permutation) for block in self.blocks])
        parts = np.split(rhs[self.order], ends[:-1])
        forward = []
        for level, block in enumerate(self.blocks):
            part = parts[level]
            if level:
                part = part - _adjoint_times(self.couplings[level - 1], forward[-1])
            forward.append(block.divided(block.forward(part)))
        solution = None
        for level in range(len(self.blocks) - 1, -1, -1):
            block, part = self.blocks[level], forward[level]
            if solution is not None:
                part = part - block.divided(self.couplings[level] @ solution)
            solution = block.backward(part)
            parts[level] = solution
        x[self.order] = np.concatenate(parts)
        return x


def _adjoint_times(a: ndarray, b: ndarray) -> ndarray:
    """``a^dagger b`` without a conjugated copy of the larger matrix ``a``."""
    return (b.conj().T @ a).conj().T


def factorize(matrix: csr_array, levels: ndarray) -> Factorization:
    """L D L^dagger of a Hermitian matrix.

    Parameters
    ----------
    matrix
        Real or complex, shape (n, n).
    levels
        Level of each row, shape (n,): rows of levels that are not adjacent have no element
        together.

    Raises
    ------
    SingularMatrixError
        If a pivot is exactly zero.
    """
    order = np.argsort(levels, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(levels))])
    matrix = matrix[order][:, order]
    blocks, couplings, negative = [], [], 0
    for level in range(len(bounds) - 1):
        inside = slice(*bounds[level : level + 2])
        # row by row, a Hermitian matrix is the conjugate of the same one column by column
        schur = np.conj(matrix[inside, inside].toarray()).T
        if level:
            _subtract(schur, couplings[-1], blocks[-1])
        blocks.append(_Block.of(schur))
        negative += blocks[-1].negative
        if level + 2 < len(bounds):
            following = slice(*bounds[level + 1 : level + 3])
            coupling = np.conj(matrix[following, inside].toarray()).T
            couplings.append(blocks[-1].forward(coupling))
    return Factorization(negative, order, blocks, couplings)


def _subtract(schur: ndarray, coupling: ndarray, block: _Block) -> None:
    """``schur -= Y^dagger D^-1 Y``, the lower triangle only."""
    n = len(schur)
    gemm = blas.get_blas_funcs("gemm", (schur,))
    for start in range(0, n, _PANEL):
        stop = min(start + _PANEL, n)
        right = block.divided(coupling[:, start:stop])
        panel = gemm(1, coupling[:, start:], right, trans_a=2)
        schur[start:, start:stop] -= panel


@dataclass(frozen=True, eq=False)
class _Block:
    """``P A P^T = L D L^dagger`` of one dense block, with the inverse of D.

    D has blocks of one and two rows: ``diagonal`` and ``below`` hold D^-1, ``below[k]`` its element
    (k + 1, k).
    """

    lower: ndarray
    permutation: ndarray
    diagonal: ndarray
    below: ndarray
    negative: int

    @classmethod
    def of(cls, matrix: ndarray) -> _Block:
        """Factors of a Hermitian matrix in Fortran order, whose memory they take over."""
        iscomplex = np.iscomplexobj(matrix)
        trf, lwork, convert = lapack.get_lapack_funcs(
            ("hetrf", "hetrf_lwork", "syconv") if iscomplex else ("sytrf", "sytrf_lwork", "syconv"),
            (matrix,),
        )
        size, _ = lwork(len(matrix), lower=1)
        lower, pivots, info = trf(matrix, lower=1, lwork=int(size.real), overwrite_a=1)
        if info > 0:
            raise SingularMatrixError(f"pivot {info} is zero")
        lower, below, _ = convert(lower, pivots, lower=1, overwrite_a=1)
        below = below[:-1]
        diagonal = lower.diagonal().real.copy()
        pair = np.flatnonzero(below)  # first rows of the blocks of two
        single = np.ones(len(diagonal), bool)
        single[pair] = single[pair + 1] = False
        determinant = diagonal[pair] * diagonal[pair + 1] - np.abs(below[pair]) ** 2
        both = 2 * ((determinant > 0) & (diagonal[pair] < 0))
        negative = np.count_nonzero(diagonal[single] < 0) + int(
            np.where(determinant < 0, 1, both).sum()
        )
        inverse = np.empty_like(diagonal)
        inverse[single] = 1 / diagonal[single]
        inverse[pair] = diagonal[pair + 1] / determinant
        inverse[pair + 1] = diagonal[pair] / determinant
        below[pair] = -below[pair] / determinant
        return cls(lower, _permutation(pivots), inverse, below, negative)

    def forward(self, rhs: ndarray) -> ndarray:
        """L^-1 P rhs."""
        return self._triangular(np.asfortranarray(rhs[self.permutation]), 0)

    def divided(self, rhs: ndarray) -> ndarray:
        """D^-1 rhs."""
        result = self.diagonal[:, None] * rhs
        result[1:] += self.below[:, None] * rhs[:-1]
        result[:-1] += self.below.conj()[:, None] * rhs[1:]
        return result

    def backward(self, rhs: ndarray) -> ndarray:
        """P^T L^-dagger rhs."""
        result = np.empty_like(rhs)
        result[self.permutation] = self._triangular(np.asfortranarray(rhs), 2)
        return result

    def _triangular(self, rhs: ndarray, trans: int) -> ndarray:
        rhs = rhs.astype(np.result_type(rhs, self.lower), copy=False)
        trsm = blas.get_blas_funcs("trsm", (self.lower, rhs))
        return trsm(1, self.lower, rhs, lower=1, diag=1, trans_a=trans, overwrite_b=1)


def _permutation(pivots: ndarray) -> ndarray:
    """Rows in the order that LAPACK's interchanges of a lower factorisation bring them to."""
    order = list(range(len(pivots)))
    k = 0
    while k < len(pivots):
        # a negative pair of pivots is a block of two, whose second row was interchanged
        width = 1 if pivots[k] > 0 else 2
        row, other = k + width - 1, abs(int(pivots[k + width - 1])) - 1
        order[row], order[other] = order[other], order[row]
        k += width
    return np.array(order)
