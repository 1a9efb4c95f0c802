"""From elements of H(R) to blocks of H(k) in the basis of eigenvectors, with gradients.

What :meth:`~ase_nextham.matrix.LCAOMatrix.at_k` does in NumPy, for the elements of one part of a
Hamiltonian (:mod:`ase_nextham.model.parts`) in torch. A correction without spin acts on
eigenvectors with spin as well, on both components alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.training.dataset_kspace import KSpace
from ase_nextham.training.loss import KBlocks


@dataclass(frozen=True, eq=False)
class BlochSum:
    """Where the elements of one structure go in O(k).

    Parameters
    ----------
    R
        Lattice vector of each pair, shape (npairs, 3).
    sizes
        Number of elements of each pair.
    places
        Place of each element in the flattened O(k).
    dimension
        Rows of O(k).
    """

    R: Tensor
    sizes: Tensor
    places: Tensor
    dimension: int

    @classmethod
    def of(cls, data: LCAOData, part: str) -> BlochSum:
        """For the elements of one part."""
        return cls.on(data.overlap.with_spin("spinor") if part == "spinor" else data.overlap)

    @classmethod
    def on(cls, like: LCAOMatrix) -> BlochSum:
        """For the elements of a matrix."""
        places = np.empty(like.offsets[-1], np.int64)
        first, pairs = like.first_orbital, like.pairs
        for _, _, p, elements in like.block_groups():
            rows = first[pairs.i[p]][:, None] + np.arange(elements.shape[1])
            columns = first[pairs.j[p]][:, None] + np.arange(elements.shape[2])
            places[elements] = rows[:, :, None] * like.dimension + columns[:, None, :]
        return cls(
            R=torch.tensor(pairs.R),
            sizes=torch.from_numpy(np.diff(like.offsets)),
            places=torch.from_numpy(places),
            dimension=like.dimension,
        )

    def __call__(self, elements: Tensor, kpt: Tensor) -> Tensor:
        """``sum_R exp(2 pi i k.R) O(R)``, complex.

        Parameters
        ----------
        elements
            Shape (..., size).
        kpt
            In units of the reciprocal vectors, shape (3,), double precision.

        Returns
        -------
        Tensor
            Shape (..., dimension, dimension).
        """
        angle = 2 * torch.pi * (self.R.to(kpt.dtype) @ kpt)
        phase = torch.polar(torch.ones_like(angle), angle)
        phase = phase.to(elements.dtype.to_complex())
        terms = elements * phase.repeat_interleave(self.sizes)
        flat = terms.new_zeros(*terms.shape[:-1], self.dimension**2)
        flat = flat.index_add(-1, self.places, terms)
        return flat.unflatten(-1, (self.dimension, self.dimension))


@dataclass(frozen=True, eq=False)
class States:
    """Eigenvectors of one structure at some k-points, as tensors.

    Parameters
    ----------
    kpts
        Shape (nkpts, 3), double precision.
    coefficients
        Shape (nspins, nkpts, dimension, nbands), complex.
    nlow, nbands
        Bands in P, and bands that there are; shape (nspins, nkpts).
    """

    kpts: Tensor
    coefficients: Tensor
    nlow: Tensor
    nbands: Tensor

    @classmethod
    def of(cls, k_space: KSpace) -> States:
        """From the eigenvectors of a data set, in single precision."""
        return cls(
            kpts=torch.tensor(k_space.kpts, dtype=torch.float64),
            coefficients=torch.tensor(k_space.coefficients, dtype=torch.complex64),
            nlow=torch.tensor(k_space.nlow),
            # combinations of orbitals that were left out have no energy and stand last
            nbands=torch.tensor(np.isfinite(k_space.eps).sum(axis=-1)),
        )

    def __len__(self):
        return len(self.kpts)

    def some(self, index: Tensor) -> States:
        """At some of the k-points."""
        return States(
            self.kpts[index],
            self.coefficients[:, index],
            self.nlow[:, index],
            self.nbands[:, index],
        )


def k_blocks(elements: Tensor, part: str, bloch: BlochSum, states: States) -> list[KBlocks]:
    """The blocks of P, Q and their coupling, for every k-point and spin.

    Parameters
    ----------
    elements
        Of one part of a Hamiltonian: (size,), or (2, size) if collinear.
    """
    found = []
    for k, kpt in enumerate(states.kpts):
        matrices = _by_spin(bloch(elements, kpt), part)
        for spin, coefficients in enumerate(states.coefficients[:, k]):
            c = coefficients[:, : states.nbands[spin, k]].to(matrices[0].dtype)
            matrix = _projected(matrices[min(spin, len(matrices) - 1)], c)
            n = int(states.nlow[spin, k])
            found.append(KBlocks(matrix[:n, :n], matrix[n:, n:], matrix[:n, n:]))
    return found


def _by_spin(matrix: Tensor, part: str) -> list[Tensor]:
    if part != "collinear":
        return [matrix]
    mean, half = matrix
    return [mean + half, mean - half]


def _projected(matrix: Tensor, c: Tensor) -> Tensor:
    """C^dagger O C; O without spin acts on both components of a spinor, the faster index of C."""
    if len(c) == len(matrix):
        return c.mH @ (matrix @ c)
    both = c.unflatten(0, (-1, 2))
    return sum(both[:, s].mH @ (matrix @ both[:, s]) for s in range(2))


__all__ = ["BlochSum", "States", "k_blocks"]
