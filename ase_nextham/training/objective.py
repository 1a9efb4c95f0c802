"""The network and its loss in one module: a batch goes in, a number to minimise comes out.

One module, so that ``DistributedDataParallel`` can wrap it. The loss is a mean over structures,
each with a mu of its own: how structures are spread over batches and processes changes nothing.
Errors are counted in units of the error of H(0) on the training set, so that the loss of H(0) is
about 1 whatever the norm, and limits of gradients mean something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ase_nextham.model.graph import Elements, Graph
from ase_nextham.training.example import Example, joined
from ase_nextham.training.kspace import States, k_blocks
from ase_nextham.training.loss import (
    NORMS,
    KBlocks,
    Weights,
    best_shift,
    combined,
    error,
    gauge_mae,
    k_errors,
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Structures that are worked on together.

    Parameters
    ----------
    examples
        One for each structure.
    graph
        The graph of all of them.
    states
        For each the eigenvectors at the k-points of this step, or None.
    """

    examples: tuple[Example, ...]
    graph: Graph
    states: tuple[States | None, ...]

    @classmethod
    def of(cls, examples: Sequence[Example], kpts: Sequence[Sequence[int] | None]) -> Batch:
        """A batch.

        Parameters
        ----------
        kpts
            For each example which of its k-points to take, None for none.
        """
        chosen = [
            None if k is None or e.states is None else e.states.some(torch.as_tensor(k))
            for e, k in zip(examples, kpts, strict=True)
        ]
        return cls(tuple(examples), joined([e.graph for e in examples]), tuple(chosen))

    def __len__(self):
        return len(self.examples)


class Objective(nn.Module):
    """The loss of a network on a batch.

    Parameters
    ----------
    module
        The networks, of :data:`ase_nextham.model.bundle.NETWORKS`.
    weights, norm
        Of the loss.
    precision
        Type of automatic mixed precision in the networks, or None.

    Attributes
    ----------
    expert
        The network that is trained, if only one is. The others are then taken to be right, and the
        zero of energy is that of the label, so that those trained apart fit together.
    unit
        Error of H(0) on the training set in eV, in which errors are counted; a buffer.
    has_traces
        Whether traces are compared: those of :func:`shell_traces` in units of ``trace_scale``, or
        of published networks, which were trained so, those of :func:`trace_patterns`.
    trace_scale
        Typical trace of each two shells, for each network on site and between atoms, eV^2; a
        buffer, shape (networks, 2, shells, shells). Patterns have no scale.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Weights,
        norm: str,
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r} of the loss; known: {', '.join(NORMS)}")
        self.module, self.weights, self.norm, self.precision = module, weights, norm, precision
        self.expert: int | None = None
        shells = getattr(module, "shells", ())
        self.patterns = getattr(module, "trace_patterns", False)
        self.has_traces = weights.trace > 0 and (self.patterns or _has_traces(module))
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer(
            "trace_scale", torch.ones(len(module.experts), 2, len(shells), len(shells))
        )

    def forward(self, batch: Batch) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The mean loss of some structures, and the terms of each without gradient.

        Returns
        -------
        (Tensor, list of dict)
            ``loss``, ``real``, ``trace``, ``low``, ``high``, ``coupling`` in units of ``unit`` or
            its square; ``mae``: gauge MAE in eV.
        """
        traces: list | None = [] if self.has_traces else None
        predicted, labels = self._elements(batch, traces)
        sizes = list(batch.graph.corrects.sizes)
        shifts, terms, found = [], [], []
        pieces = zip(predicted.split(sizes, -1), labels.split(sizes, -1), strict=True)
        for example, states, (ours, label) in zip(
            batch.examples, batch.states, pieces, strict=True
        ):
            mu, own = self._terms(ours - label, example, states)
            shifts.append(mu)
            terms.append(own)
        if traces:
            for own, value in zip(terms, self._trace_errors(batch, traces, shifts), strict=True):
                own["trace"] = value
        for own in terms:
            own["loss"] = combined(own, self.weights)
            found.append({name: value.detach() for name, value in own.items()})
        return torch.stack([own["loss"] for own in terms]).mean(), found

    def _elements(self, batch: Batch, traces: list | None) -> tuple[Tensor, Tensor]:
        """Elements of dH that are predicted, and what they should be."""
        graph = batch.graph
        labels = torch.cat([example.label for example in batch.examples], dim=-1)
        device = labels.device.type
        with torch.autocast(device, self.precision, enabled=self.precision is not None):
            if self.expert is not None:
                found: list = [] if traces is not None else None
                elements = self.module.expert_elements(self.expert, graph, traces=found)
                labels = labels * self._share(self.expert, graph, labels)
                if traces is not None:
                    traces += [(self.expert, some) for some in found]
            elif traces is None:
                return self.module(graph).to(labels.dtype), labels
            else:
                elements = 0
                for k in range(len(self.module.experts)):
                    found = []
                    elements = elements + self.module.expert_elements(k, graph, traces=found)
                    traces += [(k, some) for some in found]
        return graph.corrects.hermitian(elements.to(labels.dtype)), labels

    def _share(self, k: int, graph: Graph, like: Tensor) -> Tensor:
        """How much one network counts for each element."""
        weight = self.module.weight(k, graph).to(like.dtype)
        pairs = torch.arange(len(graph), device=weight.device)
        blocks = graph.corrects.blocks(torch.ones_like(like), pairs)
        elements = graph.corrects.zeros(like)
        graph.corrects.put(
            elements, pairs, weight.view(-1, *[1] * (blocks.dim() - 1)).expand_as(blocks)
        )
        return elements[..., :-1]

    def _terms(
        self, difference: Tensor, example: Example, states: States | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """mu in eV, and the terms of one structure but for the traces."""
        blocks: list[KBlocks] = []
        if states is not None and self.weights.needs_k_space:
            blocks = k_blocks(difference, example.graph.corrects.part, example.bloch, states)
        by_spin = _by_spin(difference, example.graph.corrects.part)
        overlap = example.overlap.expand_as(by_spin)
        if self.expert is None:
            mu = best_shift(by_spin, overlap, blocks, self.weights, by_spin.numel())
        else:
            mu = difference.new_zeros((), dtype=overlap.dtype)
        square = self.unit.to(overlap.dtype) ** (2 if self.norm == "squared" else 1)
        terms = {"real": error(by_spin - mu * overlap, self.norm) / square}
        if blocks:
            k_terms = k_errors([block.shifted(mu) for block in blocks], self.norm)
            terms |= {name: value / square for name, value in k_terms.items()}
        terms["mae"] = gauge_mae(by_spin.detach(), overlap, example.present)
        return mu, terms

    def _trace_errors(self, batch: Batch, traces: list, shifts: Sequence[Tensor]) -> Tensor:
        """Mean |T - T_gt| in units of the typical trace, of each structure."""
        graph = batch.graph
        targets = [
            example.label + mu * _on_part(example.overlap, graph.corrects.part)
            for example, mu in zip(batch.examples, shifts, strict=True)
        ]
        target = torch.cat(targets, dim=-1)
        total = target.real.new_zeros(len(batch))
        count = torch.zeros_like(total)
        for k, found in traces:
            label, there = self._trace_labels(k, graph, target, found.pairs)
            errors = (found.trace.to(label.dtype) - label).abs() * there
            structure = graph.structure[graph.i[found.pairs]]
            total = total.index_add(0, structure, errors.sum(dim=(1, 2)))
            count = count.index_add(0, structure, there.sum(dim=(1, 2)).to(count.dtype))
        return total / count.clamp(min=1)

    def _trace_labels(
        self, k: int, graph: Graph, target: Tensor, pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What a network should say of the traces of some pairs, and which of them count."""
        corrects, shells = graph.corrects, self.module.shells
        blocks = corrects.blocks(target, pairs)
        stored = (corrects.block[pairs] >= 0).view(-1, 1, 1)
        if self.patterns:  # zeros of shells that an element has not are a part of the pattern
            return trace_patterns(blocks, shells), stored.expand(-1, len(shells), len(shells))
        scale = self.trace_scale[k][(graph.distance[pairs] > 0).long()]
        there = shells_of(corrects, shells)[corrects.kind[pairs]] & stored
        return shell_traces(blocks, shells) / scale, there


def shell_traces(blocks: Tensor, shells: Sequence[int]) -> Tensor:
    """tr(B B^dagger) of the part B of each block that belongs to two shells.

    Parameters
    ----------
    blocks
        Padded blocks, shape (n, ..., rows, columns).
    shells
        Angular momentum of each shell.

    Returns
    -------
    Tensor
        Shape (n, shells, shells); eV^2.
    """
    squares = blocks.abs().square()
    if squares.dim() == 4:  # collinear: mean and half the difference of both spins
        squares = squares.sum(dim=1)
    factor = squares.shape[-1] // sum(2 * l + 1 for l in shells)
    shell = torch.arange(len(shells), device=blocks.device)
    sizes = torch.tensor([factor * (2 * l + 1) for l in shells], device=blocks.device)
    member = torch.nn.functional.one_hot(shell.repeat_interleave(sizes)).to(squares.dtype)
    return member.T @ squares @ member


def trace_patterns(blocks: Tensor, shells: Sequence[int]) -> Tensor:
    """The traces of blocks without their size, as the published networks are trained to give them.

    Those of all pairs of shells, of one block with both spins in it, less their mean and divided
    by their standard deviation. (Equation (24) of the paper has the traces themselves.)

    Parameters
    ----------
    blocks
        Padded blocks, shape (n, rows, columns), of spinors, or of both spins alike.
    shells
        Angular momentum of each shell.

    Returns
    -------
    Tensor
        Shape (n, shells, shells). 1e-5 eV^4 is added to the variance: small blocks give less.
    """
    traces = shell_traces(blocks, shells)
    if blocks.shape[-1] == sum(2 * l + 1 for l in shells):
        traces = 2 * traces  # of both spins
    return layer_norm(traces, traces.shape[1:], eps=1e-5)


def shells_of(elements: Elements, shells: Sequence[int]) -> Tensor:
    """Which two shells each kind of pair has, bool, shape (nkinds, shells, shells)."""
    factor = elements.places.shape[-1] // sum(2 * l + 1 for l in shells)
    first = [factor * sum(2 * l + 1 for l in shells[:k]) for k in range(len(shells))]
    return elements.places[:, first][:, :, first] >= 0


def _has_traces(module: nn.Module) -> bool:
    """Whether networks of our own were made with an output for traces."""
    return all(getattr(expert, "decode_trace", None) is not None for expert in module.experts)


def _by_spin(elements: Tensor, part: str) -> Tensor:
    """Elements of each spin; those of a collinear part are the mean and half the difference."""
    if part != "collinear":
        return elements
    return torch.stack([elements[0] + elements[1], elements[0] - elements[1]])


def _on_part(overlap: Tensor, part: str) -> Tensor:
    """S as that part: without difference between the spins."""
    return torch.stack([overlap, torch.zeros_like(overlap)]) if part == "collinear" else overlap


__all__ = ["Batch", "Objective", "shell_traces", "shells_of", "trace_patterns"]
