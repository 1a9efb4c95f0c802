"""The published networks as a model: four of them, each for one window of distances.

They see all pairs of atoms within 8 Angstrom, take all of a spinor H(0), and correct the real part
that both spins share, up to 6 Angstrom.

The published programs add the real part of the up-up block to both spins
(:func:`.released_layout.correction_of_vector`). That has a moment along z in it, so that it does
not turn with the crystal, and it is not Hermitian. Here the mean of up-up and down-down is taken,
which does turn with it, and its Hermitian part; how much that changes is told.

They can be trained on (:mod:`ase_nextham.training`): for this correction, and for the traces that
they were published with, which are patterns without size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_nextham.data import LCAOData
from ase_nextham.model.graph import Graph
from ase_nextham.model.released import WINDOWS, ReleasedNetwork
from ase_nextham.model.released_layout import SHELLS, blocks_of_vector, vector_of_blocks
from ase_nextham.units import RYDBERG

CUTOFF = 8.0
"""How far an atom sees, in Angstrom."""

ENERGY_UNITS = {"main": 13.6056980659, "v1.1": 13.6}
"""eV for a Rydberg in the H(0) that the published programs give to their networks."""

_BYTES_PER_EDGE = 600_000  # measured: 0.5 MB, most of it vectors of 5832 numbers

_log = logging.getLogger(__name__)


class Traces(NamedTuple):
    """What a network says of the traces of some pairs.

    Parameters
    ----------
    pairs
        Indices of the pairs in the graph, shape (n,).
    trace
        Pattern of the traces of each two shells
        (:func:`ase_nextham.training.objective.trace_patterns`), shape (n, shells, shells).
    """

    pairs: Tensor
    trace: Tensor


class ReleasedEnsemble(nn.Module):
    """The correction dH by a published set of networks.

    Parameters
    ----------
    version
        ``"main"`` or ``"v1.1"``.

    Attributes
    ----------
    experts
        One network for each of :data:`.released.WINDOWS`.
    asymmetry
        Of the last correction: the largest difference of an element from what the published
        programs would have, in eV. None before there is one.
    """

    part = "scalar"
    shells = SHELLS
    trace_patterns, mixed_precision = True, False  # for training
    bytes_per_bond = _BYTES_PER_EDGE

    def __init__(self, version: str):
        super().__init__()
        self.version = version
        self.experts = nn.ModuleList(ReleasedNetwork(version, window) for window in WINDOWS)
        self.asymmetry: float | None = None

    def graph(self, several: Sequence[LCAOData]) -> Graph:
        """The tensors that :meth:`forward` takes."""
        return Graph.of(several, SHELLS, CUTOFF, reads="spinor", corrects="scalar")

    def forward(self, graph: Graph, portion: int | None = None) -> Tensor:
        """Elements of dH in eV, of ``graph.corrects.shape``, Hermitian.

        Parameters
        ----------
        graph
            From :meth:`graph`, on the device of the weights.
        portion
            Number of pairs that are worked on at once; None: all.
        """
        published, scalar = self.assembled(graph, portion)
        elements = graph.corrects.hermitian(scalar)
        self.asymmetry = float((published - elements).abs().max()) if len(elements) else 0.0
        _log.info(
            "the published networks' correction is symmetrised: made Hermitian and free of a "
            "moment along z, which changes its elements by up to %.1f meV",
            1e3 * self.asymmetry,
        )
        return elements

    def assembled(self, graph: Graph, portion: int | None = None) -> tuple[Tensor, Tensor]:
        """Elements of the correction in eV: as the published programs have it, and its scalar part.

        The first is the real part of the up-up blocks, the second its mean with that of the
        down-down blocks. Neither is Hermitian.
        """
        published, scalar = (graph.corrects.zeros(self._like) for _ in range(2))
        vectors = self._vectors(graph, portion)
        for k in range(len(self.experts)):
            for some, blocks in self._blocks(k, graph, vectors, portion, None):
                up, down = blocks[:, ::2, ::2], blocks[:, 1::2, 1::2]
                graph.corrects.put(published, some, up)
                graph.corrects.put(scalar, some, (up + down) / 2)
        return published[..., :-1], scalar[..., :-1]

    def weight(self, k: int, graph: Graph) -> Tensor:
        """Whether the word of network ``k`` counts for each pair: 1 in its window, and 0."""
        begin, end = self.experts[k].window
        return ((graph.distance >= begin) & (graph.distance < end)).to(graph.distance.dtype)

    def expert_elements(
        self,
        k: int,
        graph: Graph,
        portion: int | None = None,
        *,
        traces: list[Traces] | None = None,
    ) -> Tensor:
        """What one network adds to the correction, in eV; not yet Hermitian.

        What it says of traces is appended to ``traces``, if given.
        """
        elements = graph.corrects.zeros(self._like)
        vectors = self._vectors(graph, portion)
        for some, blocks in self._blocks(k, graph, vectors, portion, traces):
            graph.corrects.put(elements, some, (blocks[:, ::2, ::2] + blocks[:, 1::2, 1::2]) / 2)
        return elements[..., :-1]

    @property
    def _like(self) -> Tensor:
        weight = next(self.parameters())
        return weight.new_zeros(())

    def _vectors(self, graph: Graph, portion: int | None) -> Tensor:
        """H(0) of all pairs as the networks take it."""
        unit = ENERGY_UNITS[self.version] / RYDBERG
        pairs = torch.arange(len(graph), device=graph.distance.device)
        with torch.no_grad():
            return torch.cat(
                [
                    vector_of_blocks(unit * graph.reads.blocks(graph.h0, some)).to(self._like.dtype)
                    for some in pairs.split(portion or len(pairs))
                ]
            )

    def _blocks(
        self, k: int, graph: Graph, vectors: Tensor, portion: int | None, traces: list | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs in the window of a network, and the real part of their spinor blocks in eV."""
        unit, expert = ENERGY_UNITS[self.version] / RYDBERG, self.experts[k]
        portion = portion or max(1, len(graph))
        expert.chunk = min(portion, 256)
        ham, trace = expert(vectors, graph.vectors, graph.i, graph.j)
        inside = torch.nonzero(self.weight(k, graph)).flatten()
        if traces is not None:
            traces.append(Traces(inside, trace[inside].unflatten(1, (len(SHELLS), len(SHELLS)))))
        for some in inside.split(portion):
            yield some, blocks_of_vector(ham[some]).real / unit


__all__ = ["CUTOFF", "ENERGY_UNITS", "ReleasedEnsemble", "Traces"]
