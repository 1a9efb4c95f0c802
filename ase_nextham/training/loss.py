"""What is minimised: errors of H(R) and of H(k), after the best shift of the energy zero.

Appendix G of the NextHAM paper. The difference of two Hamiltonians is compared element by element
in real space, and at k-points in the basis of the self-consistent eigenvectors, where it is split
into the low-energy block P, the rest Q, and the coupling between them (:mod:`.kspace`). ``mu S`` is
added to the label with the mu of eq. (28), so that the zero of energy, which bands do not know, is
nothing to be learned. Traces supervise the invariants of TraceGrad.

Squared errors are the paper's; the published networks were trained with absolute errors, and with
traces that have no size (:func:`ase_nextham.training.objective.trace_patterns`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("squared", "absolute")
"""How errors are summed: ``|z|^2``, or ``|Re z| + |Im z|``."""

TRACE_FLOOR = 0.01
"""Error of the traces, in units of their typical size, below which they lose weight."""


@dataclass(frozen=True)
class Weights:
    """How much each term counts; the defaults are the paper's.

    Parameters
    ----------
    real
        lambda_R, of H(R).
    low, high, coupling
        lambda_P, lambda_Q and lambda_PQ, of the blocks of H(k).
    trace
        lambda_C: which part of the first term is taken over by the traces.
    """

    real: float = 0.99955
    low: float = 2e-4
    high: float = 1e-4
    coupling: float = 1.5e-4
    trace: float = 0.2

    @property
    def needs_k_space(self) -> bool:
        """Whether eigenvectors are needed."""
        return max(self.low, self.high, self.coupling) > 0


@dataclass(frozen=True, eq=False)
class KBlocks:
    """A Hamiltonian, or a difference of two, in the basis of eigenvectors at one k-point.

    Parameters
    ----------
    low, high
        Blocks of P and Q, shapes (nP, nP) and (nQ, nQ).
    coupling
        Between them, shape (nP, nQ).
    """

    low: Tensor
    high: Tensor
    coupling: Tensor

    def shifted(self, mu: Tensor | float) -> KBlocks:
        """Minus mu S, which is mu times the identity here."""
        return KBlocks(_minus_identity(self.low, mu), _minus_identity(self.high, mu), self.coupling)


def _minus_identity(block: Tensor, mu: Tensor | float) -> Tensor:
    return block - mu * torch.eye(len(block), dtype=block.dtype, device=block.device)


def best_shift(
    difference: Tensor, overlap: Tensor, blocks: Sequence[KBlocks], weights: Weights, count: int
) -> Tensor:
    """The mu for which the squared error of ``H - (H_gt + mu S)`` is smallest: eq. (28).

    Parameters
    ----------
    difference
        Elements of H - H_gt in eV.
    overlap
        S at the same places.
    blocks
        The same difference at k-points; their terms are averaged.
    weights
        Of the terms.
    count
        Number of matrix elements N_R over which H(R) is averaged.

    Returns
    -------
    Tensor
        In eV, without gradient: where the squared error is smallest, it has none.
    """
    factor = weights.real / count
    numerator = factor * (difference.detach() * overlap.conj()).sum().real
    denominator = factor * (overlap * overlap.conj()).sum().real
    for block in blocks:
        for weight, part in ((weights.low, block.low), (weights.high, block.high)):
            if len(part):
                share = weight / (len(blocks) * len(part))
                numerator = numerator + share * part.detach().diagonal().real.mean()
                denominator = denominator + share
    return numerator / denominator


def error(difference: Tensor, norm: str, count: int | None = None) -> Tensor:
    """Mean error of some elements, real and imaginary parts added.

    Parameters
    ----------
    difference
        In eV, real or complex.
    norm
        Of :data:`NORMS`.
    count
        By what the sum is divided; by default the number of elements, of which there may be none.
    """
    parts = torch.view_as_real(difference) if difference.is_complex() else difference
    total = parts.square().sum() if norm == "squared" else parts.abs().sum()
    return total / max(difference.numel() if count is None else count, 1)


def k_errors(blocks: Sequence[KBlocks], norm: str) -> dict[str, Tensor]:
    """Errors of P, Q and their coupling, each averaged over k-points."""
    return {
        name: sum(error(getattr(block, name), norm) for block in blocks) / len(blocks)
        for name in ("low", "high", "coupling")
    }


def combined(terms: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """The loss of one structure, eq. (26).

    Parameters
    ----------
    terms
        ``"real"``; ``"low"``, ``"high"`` and ``"coupling"`` where there are k-points; ``"trace"``
        where there are traces.

    Notes
    -----
    ``real ((1 - lambda_C) + lambda_C trace / NoGrad(trace))``: the traces take over a part of the
    value of the first term, whatever their own scale. Once they are right to
    :data:`TRACE_FLOOR` of their typical size they count for less; otherwise their gradient, which
    is that of a logarithm, would grow without limit and drown all others.
    """
    real = terms["real"]
    if "trace" in terms:
        trace = terms["trace"]
        gamma = weights.trace * real.detach() / trace.detach().clamp(min=TRACE_FLOOR)
        real = (1 - weights.trace) * real + gamma * trace
    total = weights.real * real
    for name in ("low", "high", "coupling"):
        if name in terms:
            total = total + getattr(weights, name) * terms[name]
    return total


# --- the error that is reported ------------------------------------------------------------------


def gauge_mae(difference: Tensor, overlap: Tensor, present: Tensor) -> Tensor:
    """Mean |H - H_gt - mu S| over the elements that are there, with mu of least squares, in eV."""
    mu = (difference * overlap.conj()).real.sum() / overlap.abs().square().sum()
    return (difference - mu * overlap).abs()[..., present].mean()


__all__ = [
    "NORMS",
    "KBlocks",
    "Weights",
    "best_shift",
    "combined",
    "error",
    "gauge_mae",
    "k_errors",
]
