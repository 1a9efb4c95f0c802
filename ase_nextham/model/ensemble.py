"""Several networks, each for one range of distances, and the correction that they make together.

Every expert sees the whole structure; its word counts for the pairs in its window. What comes out
is Hermitian, zero on orbitals that do not exist, keeps time reversal where H(0) does, and is
smooth in the positions of the atoms: at the ends of the windows one expert hands over to the next
within :data:`HANDOVER`, and where the orbitals of two atoms cease to overlap, or at the cutoff, the
correction goes to zero within :data:`FADE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ase_nextham.data import LCAOData
from ase_nextham.model.graph import Graph
from ase_nextham.model.irreps import Irreps
from ase_nextham.model.layers import smooth_step
from ase_nextham.model.network import Architecture, Corrections, Network

WINDOWS = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0)
"""Ends of the windows in Angstrom: the four of the paper, and one up to the cutoff."""

HANDOVER = 0.2
"""Width in Angstrom of the range in which two experts share a pair, about the end of a window."""

FADE = 1.0
"""Width in Angstrom of the range in which the correction goes to zero."""

TARGETS = ("correction", "hamiltonian")
"""What networks give: dH, or H itself (the paper's ablation)."""


class Ensemble(nn.Module):
    """The correction dH by one expert for each window.

    Parameters
    ----------
    architecture
        Of every expert.
    shells
        Angular momentum of each shell of the padded blocks, in ascending order.
    windows
        Ends of the windows in Angstrom, from 0 to the cutoff; (0, cutoff) is a single network.
    target
        ``"correction"``: the experts give dH. ``"hamiltonian"``: they give the part of H that is
        corrected, from which that of H(0) is subtracted.
    """

    def __init__(
        self,
        architecture: Architecture,
        shells: Sequence[int],
        windows: Sequence[float] = WINDOWS,
        target: str = "correction",
    ):
        super().__init__()
        windows = tuple(float(end) for end in windows)
        if len(windows) < 2 or windows[0] != 0 or windows[-1] < FADE:
            raise ValueError(
                f"windows are distances from 0 to the cutoff, at least {FADE} Angstrom, not "
                f"{windows}"
            )
        if min(b - a for a, b in pairwise(windows)) < HANDOVER:
            raise ValueError(f"windows {windows} must rise by at least {HANDOVER} Angstrom")
        if target not in TARGETS:
            raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
        self.architecture, self.shells = architecture, tuple(shells)
        self.windows, self.target = windows, target
        # the part of H(0) that is subtracted from H must be in the graph
        whole = target == "hamiltonian" or architecture.inputs != "h0"
        self.reads = architecture.corrects if whole else architecture.reads
        if architecture.inputs == "h0" and self.reads != architecture.reads:
            raise ValueError(
                "networks that give the Hamiltonian itself read the part that they give, "
                f"{architecture.corrects!r}, not {architecture.reads!r}"
            )
        self.experts = nn.ModuleList(
            Network(architecture, shells, windows[-1]) for _ in windows[1:]
        )

    @property
    def cutoff(self) -> float:
        """In Angstrom."""
        return self.windows[-1]

    @property
    def part(self) -> str:
        """Which part of H is corrected, of :data:`ase_nextham.model.parts.PARTS`."""
        return self.architecture.corrects

    @property
    def bytes_per_bond(self) -> int:
        """Memory for temporary arrays of one bond at inference; an upper bound, measured."""
        expert = self.experts[0]
        components = sum(
            (2 * l + 1) * n
            for channels in (expert.features, expert.features, expert.descriptor.edge)
            for (l, _), n in channels.items()
        )
        return 5 * components * torch.finfo(expert.dtype).bits // 8

    def graph(self, several: Sequence[LCAOData]) -> Graph:
        """The tensors that :meth:`forward` takes."""
        return Graph.of(several, self.shells, self.cutoff, reads=self.reads, corrects=self.part)

    def weight(self, k: int, graph: Graph) -> Tensor:
        """How much the word of expert ``k`` counts for each pair, between 0 and 1.

        The weights of all experts add up to 1 up to :data:`FADE` below the end of the reach of the
        orbitals or the cutoff.
        """
        r = graph.distance
        begin, end = self.windows[k : k + 2]
        weight = torch.ones_like(r)
        if k > 0:
            weight = smooth_step((r - begin) / HANDOVER + 0.5)
        if k + 2 < len(self.windows):
            weight = weight * smooth_step((end - r) / HANDOVER + 0.5)
        return weight * smooth_step((graph.reach.clamp(max=self.cutoff) - r) / FADE)

    def forward(self, graph: Graph, portion: int | None = None) -> Tensor:
        """Elements of dH in eV, of ``graph.corrects.shape``, Hermitian.

        Parameters
        ----------
        graph
            From :meth:`graph`, on the device of the weights.
        portion
            Number of bonds that are worked on at once; None: all.
        """
        total = sum(self.expert_elements(k, graph, portion) for k in range(len(self.experts)))
        return graph.corrects.hermitian(total)

    def expert_elements(
        self,
        k: int,
        graph: Graph,
        portion: int | None = None,
        *,
        traces: list[Corrections] | None = None,
    ) -> Tensor:
        """What one expert adds to dH, in eV, of ``graph.corrects.shape``; not yet Hermitian.

        What it says of traces is appended to ``traces``, if given.
        """
        expert = self.experts[k]
        if expert.part.odd is None:
            return self._elements(k, graph, portion, traces=traces)
        # even channels of the result are even functions of what time reversal turns round, odd
        # channels odd ones: hence no magnetism comes from H(0) without any
        first = self._elements(k, graph, portion, traces=traces)
        return (first + self._elements(k, graph, portion, time_reversed=True)) / 2

    def _elements(
        self,
        k: int,
        graph: Graph,
        portion: int | None,
        *,
        time_reversed: bool = False,
        traces: list[Corrections] | None = None,
    ) -> Tensor:
        expert, weight = self.experts[k], self.weight(k, graph)
        elements = None
        options = {"portion": portion, "time_reversed": time_reversed}
        for found in expert(graph, weight > 0, trace=traces is not None, **options):
            if traces is not None:
                traces.append(found)
            irreps = _reversed(found.irreps, expert.part.odd) if time_reversed else found.irreps
            blocks = expert.part.to_blocks(irreps)
            if self.target == "hamiltonian":
                blocks = blocks - graph.reads.blocks(graph.h0, found.pairs).to(blocks.dtype)
            factor = weight[found.pairs].to(expert.dtype).view(-1, *[1] * (blocks.dim() - 1))
            if elements is None:
                elements = graph.corrects.zeros(blocks)
            graph.corrects.put(elements, found.pairs, factor * blocks)
        if elements is None:
            like = torch.zeros((), dtype=expert.dtype, device=graph.distance.device)
            complex_like = torch.complex(like, like) if self.part == "spinor" else like
            elements = graph.corrects.zeros(complex_like)
        return elements[..., :-1]


def _reversed(irreps: Irreps, odd) -> Irreps:
    """Irreps of the matrix reversed in time."""
    return {
        irrep: torch.where(torch.from_numpy(odd[irrep]).to(x.device), -x, x)
        for irrep, x in irreps.items()
    }
