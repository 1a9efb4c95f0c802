"""From predicted coefficients to the errors of dH and of bands, with gradients.

The Coulomb metric of the density is nearly, but not quite, how errors count in dH and in bands: a
last stretch of training can be done on these. Each evaluation takes one sum over the grid, each
gradient another one (:func:`ase_nextham.potential_head.coefficient_gradient`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ase_nextham.expansion import Expansion
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.model.parts import part_elements
from ase_nextham.potential_head import change_of_potential, coefficient_gradient
from ase_nextham.training.dataset import Sample
from ase_nextham.training.kspace import BlochSum
from ase_nextham.units import RYDBERG

ABOVE = 5.0
"""Bands count up to so many eV above the Fermi level."""


class _Elements(torch.autograd.Function):
    """Elements of dH from coefficients."""

    @staticmethod
    def forward(ctx, coefficients: Tensor, part: LocalPart, expansion: Expansion) -> Tensor:
        values = coefficients.detach().cpu().double().numpy()
        ctx.at = (part, expansion, values)
        potential = change_of_potential(part, expansion, values)
        elements = RYDBERG * part.integrate(potential[None])[0]
        return torch.from_numpy(elements).to(coefficients.device)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        part, expansion, values = ctx.at
        found = coefficient_gradient(part, expansion, gradient.cpu().numpy(), values)
        return torch.from_numpy(found).to(gradient.device), None, None


@dataclass(frozen=True, eq=False)
class MatrixTarget:
    """dH of one structure as it should be, and its bands.

    Parameters
    ----------
    part, expansion
        Of the structure.
    dh, overlap
        Elements of dH in eV and of S on ``part.pairs``, shape (nelements,).
    bloch
        Where they go in matrices of k.
    kpts
        Shape (nkpts, 3).
    states
        Eigenvectors of the self-consistent H that count, of each k-point: (dimension, nbands), for
        spinors twice as many rows.
    h0_error, h0_band_error
        Errors of H(0), in whose units errors are given; eV.
    """

    part: LocalPart
    expansion: Expansion
    dh: Tensor
    overlap: Tensor
    bloch: BlochSum
    kpts: Tensor
    states: tuple[Tensor, ...]
    h0_error: float
    h0_band_error: float

    @classmethod
    def of(cls, sample: Sample, part: LocalPart, expansion: Expansion) -> MatrixTarget:
        """The target that a sample is.

        Raises
        ------
        ValueError
            If it has no eigenvectors, or its dH is a multiple of S; it names the sample.
        """
        data, name = sample.data, sample.entry.name
        if sample.k_space is None:
            raise ValueError(
                f"{name}: the sample has no eigenvectors; build the data set with --nkpts"
            )
        dh = _on_pairs(part, data.hamiltonian - data.h0)
        overlap = _on_pairs(part, data.overlap)
        like = LCAOMatrix(part.basis, part.symbols, part.pairs, "unpolarised", overlap)
        states, level = [], data.fermi_level
        for k in range(len(sample.k_space.kpts)):
            counted = sample.k_space.eps[0, k] < level + ABOVE
            states.append(torch.tensor(sample.k_space.coefficients[0, k][:, counted]).cdouble())
        target = cls(
            part=part,
            expansion=expansion,
            dh=torch.tensor(dh),
            overlap=torch.tensor(overlap),
            bloch=BlochSum.on(like),
            kpts=torch.tensor(sample.k_space.kpts),
            states=tuple(states),
            h0_error=1.0,
            h0_band_error=1.0,
        )
        of_dh, of_bands = target.errors_of(torch.zeros(len(dh), dtype=torch.float64))
        if not (of_dh > 0 and of_bands > 0):
            raise ValueError(f"{name}: dH changes nothing, so nothing is to be learned")
        return replace(target, h0_error=float(of_dh), h0_band_error=float(of_bands))

    def errors(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of dH and of bands relative to those of H(0), of coefficients (ncoefficients,)."""
        found = _Elements.apply(coefficients.double(), self.part, self.expansion)
        of_dh, of_bands = self.errors_of(found)
        return of_dh / self.h0_error, of_bands / self.h0_band_error

    def errors_of(self, dh: Tensor) -> tuple[Tensor, Tensor]:
        """Gauge MAE of elements, and mean error of bands to first order after a common shift."""
        missing = dh - self.dh
        mu = (missing @ self.overlap) / (self.overlap @ self.overlap)
        missing = missing - mu * self.overlap
        shifts = torch.cat(
            [
                _expectation(self.bloch(missing, kpt), own)
                for kpt, own in zip(self.kpts, self.states, strict=True)
            ]
        )
        return missing.abs().mean(), (shifts - shifts.mean()).abs().mean()

    @property
    def nbytes(self) -> int:
        """Memory that it takes; of the grid, about what is kept of it."""
        grid = 12 * 8 * int(np.prod(self.part.waves.shape))
        return grid + sum(x.nbytes for x in (self.dh, self.overlap, *self.states))


def _on_pairs(part: LocalPart, matrix: LCAOMatrix) -> ndarray:
    kept, _ = matrix.cut_to(part.pairs)
    return part_elements(kept.on_pairs(part.pairs), "scalar")


def _expectation(matrix: Tensor, states: Tensor) -> Tensor:
    """<n|O|n> of each state; O without spin acts on both components of a spinor."""
    if len(states) != len(matrix):
        components = states.unflatten(0, (-1, 2))
        return sum(_expectation(matrix, components[:, s]) for s in range(2))
    return (states.conj() * (matrix @ states)).sum(dim=0).real


__all__ = ["ABOVE", "MatrixTarget"]
