"""The published networks as a model: four of them, each for one window of distances.

They see all pairs of atoms within 8 Angstrom, take all of a spinor H(0), and correct the real part
that both spins share, up to 6 Angstrom. What they give is not Hermitian, and does not turn with the
crystal where it is assembled (:func:`.released_layout.correction_of_vector`); the Hermitian part is
taken here, and how much that changes is told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_nextham.data import LCAOData
from ase_nextham.model.graph import Graph
from ase_nextham.model.released import WINDOWS, ReleasedNetwork
from ase_nextham.model.released_layout import SHELLS, correction_of_vector, vector_of_blocks
from ase_nextham.units import RYDBERG

CUTOFF = 8.0
"""How far an atom sees, in Angstrom."""

ENERGY_UNITS = {"main": 13.6056980659, "v1.1": 13.6}
"""eV for a Rydberg in the H(0) that the published programs give to their networks."""

_BYTES_PER_EDGE = 600_000  # measured: 0.5 MB, most of it vectors of 5832 numbers

_log = logging.getLogger(__name__)


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
        Of the last correction, in eV: the largest element of its anti-Hermitian part, which is
        left out. None before there is one.
    """

    part = "scalar"
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
        raw = self.raw(graph, portion)
        elements = graph.corrects.hermitian(raw)
        self.asymmetry = float((raw - elements).abs().max()) if len(raw) else 0.0
        _log.info(
            "the published network's correction is Hermitian to %.1f meV; its Hermitian part is "
            "taken",
            2e3 * self.asymmetry,
        )
        return elements

    def raw(self, graph: Graph, portion: int | None = None) -> Tensor:
        """What the networks give, as the published programs assemble it, in eV."""
        unit = ENERGY_UNITS[self.version] / RYDBERG
        dtype = next(self.parameters()).dtype
        pairs = torch.arange(len(graph), device=graph.distance.device)
        portion = len(pairs) if portion is None else portion
        vectors = torch.cat(
            [
                vector_of_blocks(unit * graph.reads.blocks(graph.h0, some)).to(dtype)
                for some in pairs.split(max(1, portion))
            ]
        )
        elements = graph.corrects.zeros(vectors.new_zeros(()))
        for expert in self.experts:
            expert.chunk = max(1, min(portion, 256))
            ham, _ = expert(vectors, graph.vectors, graph.i, graph.j)
            begin, end = expert.window
            inside = torch.nonzero((graph.distance >= begin) & (graph.distance < end)).flatten()
            for some in inside.split(max(1, portion)):
                graph.corrects.put(elements, some, correction_of_vector(ham[some]) / unit)
        return elements[..., :-1]


__all__ = ["CUTOFF", "ENERGY_UNITS", "ReleasedEnsemble"]
