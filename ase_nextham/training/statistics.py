"""How large the labels are: what the results of networks are multiplied with.

On-site elements of semicore shells change by whole eV, those of distant atoms by less than a meV.
Each channel of the result of each network has its own scale, so that all of them learn numbers of
the size of 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ase_nextham.model.graph import Graph
from ase_nextham.model.layers import irrep_name
from ase_nextham.training.example import Example
from ase_nextham.training.loss import error
from ase_nextham.training.objective import Objective, shell_traces, shells_of

FLOOR = 1e-6
"""Smallest scale in eV; for channels that vanish in all labels."""


def set_units(objective: Objective, examples: Iterable[Example]) -> None:
    """Set the units of the loss from labels: those of errors, and those of traces."""
    errors, squared = [], objective.norm == "squared"
    total = torch.zeros_like(objective.trace_scale)
    count = torch.zeros_like(objective.trace_scale)
    for example in examples:
        errors.append(error(example.label, objective.norm))
        if objective.has_traces and not objective.patterns:
            _add_traces(total, count, objective.module, example)
    value = torch.stack(errors).mean().clamp(min=1e-30)
    objective.unit.copy_(value.sqrt() if squared else value)
    if objective.has_traces and not objective.patterns:
        scale = (total / count.clamp(min=1e-30)).clamp(min=FLOOR**2)
        objective.trace_scale.copy_(scale)


def _add_traces(total: Tensor, count: Tensor, module: nn.Module, example: Example) -> None:
    graph = example.graph
    exists = shells_of(graph.corrects, module.shells)[graph.corrects.kind]
    exists = exists & (graph.corrects.block >= 0).view(-1, 1, 1)
    pairs = torch.arange(len(graph), device=graph.i.device)
    traces = shell_traces(graph.corrects.blocks(example.label, pairs), module.shells)
    for k in range(len(module.experts)):
        weight = module.weight(k, graph)
        for bond in (0, 1):
            share = (weight * ((graph.distance > 0) == bond)).to(traces.dtype).view(-1, 1, 1)
            total[k, bond] += (share * exists * traces).sum(dim=0)
            count[k, bond] += (share * exists).sum(dim=0)


def set_scales(module: nn.Module, examples: Iterable[Example]) -> None:
    """Give every network the root mean square of the labels in its window, channel by channel."""
    sums = [
        [{irrep: [0.0, 0.0] for irrep in expert.part.multiplicities} for _ in range(2)]
        for expert in module.experts
    ]
    for example in examples:
        graph, results = example.graph, _results(module, example)
        for k, expert in enumerate(module.experts):
            weight = module.weight(k, graph) * (graph.corrects.block >= 0)
            for bond in (0, 1):
                pairs = torch.nonzero((weight > 0) & ((graph.distance > 0) == bond)).flatten()
                if len(pairs):
                    _add(sums[k][bond], expert, graph, results, pairs, weight[pairs])
    for expert, both in zip(module.experts, sums, strict=True):
        for scales, some in zip((expert.onsite_scale, expert.bond_scale), both, strict=True):
            for irrep, (total, count) in some.items():
                if torch.is_tensor(total):
                    scale = (total / count.clamp(min=1e-30)).sqrt().clamp(min=FLOOR)
                    scales.get_buffer(irrep_name(irrep)).copy_(scale)


def _results(module: nn.Module, example: Example) -> Tensor:
    """What networks have to give: dH, or H itself."""
    if getattr(module, "target", "correction") == "hamiltonian":
        return example.label + example.graph.h0.to(example.label.dtype)
    return example.label


def _add(
    sums: dict, expert: nn.Module, graph: Graph, results: Tensor, pairs: Tensor, weight: Tensor
) -> None:
    corrects = graph.corrects
    irreps = expert.part.to_irreps(corrects.blocks(results, pairs))
    ones = torch.ones_like(results)
    # of blocks that are 1 where there is an orbital, the channels that exist are not zero
    exists = expert.part.to_irreps(_distinct(corrects.blocks(ones, pairs)))
    weight = weight.to(ones.real.dtype)
    for irrep, x in irreps.items():
        there = (exists[irrep].square().sum(dim=1) > 1e-12) * weight[:, None]
        sums[irrep][0] = sums[irrep][0] + (there * x.square().mean(dim=1)).sum(dim=0)
        sums[irrep][1] = sums[irrep][1] + there.sum(dim=0)


def _distinct(mask: Tensor) -> Tensor:
    """Numbers that no symmetry makes vanish, where the mask is 1."""
    generator = torch.Generator().manual_seed(0)
    real = mask.real
    numbers = torch.rand(real.shape[1:], generator=generator, dtype=real.dtype) + 0.5
    numbers = numbers.to(mask.device)
    return mask * (torch.complex(numbers, numbers.flip(-1)) if mask.is_complex() else numbers)


__all__ = ["FLOOR", "set_scales", "set_units"]
