"""Graph attention in which the bonds carry features of their own.

Developed from Equiformer (Liao and Smidt 2023) as section 2.2 of the NextHAM paper has it: edge
features are kept and updated, weights are computed from nodes, edges and distances, and the same
weights are applied to the update of the edge.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ase_nextham.model.aligned import (
    AlignedLinear,
    BondFrames,
    Sectors,
    sector_channels,
    sectors,
)
from ase_nextham.model.irreps import Irrep, Irreps
from ase_nextham.model.layers import SCALAR, DistanceWeights, Linear, joined, mlp, summed, taken


class BondProduct(nn.Module):
    """Features of two atoms and their bond, multiplied with the harmonics of the bond.

    Two tensor products with a gate between them, in the frame of the bond; the weights of the
    first depend on the distance. Besides the features it gives invariants.

    Parameters
    ----------
    node, edge
        Channels of the features of atoms and bonds.
    outputs
        Channels of the result, also between the two products.
    gaussians
        Number of Gaussians of the distance.
    invariants
        Number of invariants.
    """

    def __init__(
        self,
        node: Mapping[Irrep, int],
        edge: Mapping[Irrep, int],
        outputs: Mapping[Irrep, int],
        gaussians: int,
        invariants: int = 0,
        hidden: Mapping[Irrep, int] | None = None,
    ):
        super().__init__()
        inputs = summed(node, edge, node)
        self.hidden = dict(outputs if hidden is None else hidden)
        self.outputs = dict(outputs)
        gates = _gate_places(self.hidden)
        self.gates = sum(n for irrep, n in self.hidden.items() if irrep != SCALAR)
        for k, places in enumerate(gates):
            self.register_buffer(f"gate_{k}", places, persistent=False)
        self.invariants = invariants
        self.weights = DistanceWeights(gaussians, sector_channels(inputs))
        self.first = AlignedLinear(inputs, self.hidden, self.gates + invariants)
        highest = max(l for l, _ in inputs)  # m is conserved
        self.second = AlignedLinear(self.hidden, self.outputs, highest=highest)

    def forward(
        self, frames: BondFrames, gaussians: Tensor, features: Irreps
    ) -> tuple[Irreps, Tensor]:
        """Features of bonds, and their invariants of shape (n, invariants)."""
        aligned = frames.align(features)
        weighted = [x * w for x, w in zip(aligned, self.weights(gaussians), strict=True)]
        hidden = self.first(weighted)
        width = hidden[0].shape[2] - self.gates - self.invariants
        hidden[0], gates, invariants = hidden[0].split([width, self.gates, self.invariants], dim=2)
        products = self.second(self._gated(hidden, torch.sigmoid(gates)))
        return frames.restore(products, self.outputs), invariants[:, 0]

    def _gated(self, hidden: Sectors, gates: Tensor) -> Sectors:
        scalars = self.hidden[SCALAR]
        first = hidden[0]
        gated = first[:, :, scalars:] * gates.index_select(2, self.gate_0)
        sigma = torch.cat([silu(first[:, :, :scalars]), gated], dim=2)
        others = [
            x * gates.index_select(2, self.get_buffer(f"gate_{k}"))
            for k, x in enumerate(hidden[1:], 1)
        ]
        return [sigma, *others]


def _gate_places(channels: Mapping[Irrep, int]) -> list[Tensor]:
    """For each sector the gate of each of its channels but the scalars, which come first."""
    first, gates = 0, {}
    for irrep, n in sorted(channels.items()):
        if irrep != SCALAR:
            gates[irrep] = torch.arange(first, first + n)
            first += n
    return [
        torch.cat([gates[irrep] for irrep in some if irrep != SCALAR] or [torch.arange(0)])
        for some in sectors(channels)
    ]


class Bonds:
    """What attention needs to know of some bonds.

    Parameters
    ----------
    index
        The pairs of the graph, in ascending order, shape (n,).
    i, j
        Their atoms; sorted by i.
    vectors
        From i to j, float64, shape (n, 3).
    gaussians, envelope
        Distances as Gaussians (n, K), and a factor that goes to zero at the cutoff (n, 1).
    lmax
        Largest l of features.
    keep
        Whether to keep the rotations onto the bonds once they are made: faster, and as large as
        the features.
    """

    def __init__(
        self,
        index: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        gaussians: Tensor,
        envelope: Tensor,
        *,
        lmax: int,
        keep: bool,
    ):
        self.index, self.i, self.j, self.vectors = index, i, j, vectors
        self.gaussians, self.envelope, self.lmax = gaussians, envelope, lmax
        self.atoms, self.degrees = torch.unique_consecutive(i, return_counts=True)
        self._kept = None
        if keep:
            self._kept = self.frames()

    def frames(self) -> BondFrames:
        """The rotations onto the bonds."""
        if self._kept is not None:
            return self._kept
        return BondFrames(self.vectors, self.lmax, self.gaussians.dtype)

    def with_ends(self, node: Irreps, edge: Irreps) -> Irreps:
        """Features of the first atom, the bond and the second atom side by side."""
        return joined(taken(node, self.i), edge, taken(node, self.j))

    def add_to_atoms(self, totals: Tensor, values: Tensor) -> None:
        """Add the sum of the values (n, ...) of the bonds of each atom i to ``totals``.

        In a fixed order on every device, unlike ``index_add``.
        """
        sums = torch.segment_reduce(values.flatten(1), "sum", lengths=self.degrees, axis=0)
        totals[self.atoms] += sums.view(-1, *values.shape[1:])


class GraphAttention(nn.Module):
    """Messages from bonds to their first atom, weighted by attention, and to the bonds.

    Parameters
    ----------
    channels
        Of nodes and edges at the entrance, and of edges at the exit.
    outputs
        Of nodes at the exit.
    heads
        Number of heads; each has its share of the channels of every irrep.
    gaussians
        Number of Gaussians of the distance.

    Notes
    -----
    Weights of atom i are ``u_ij exp(g_ij) / (1 + sum_j u_ij exp(g_ij))`` with the envelope u, so
    that they are continuous when atoms come and go at the cutoff. Logits g are kept between
    -LIMIT and LIMIT, so that the sums need no maximum taken before them and can be done piece by
    piece. To the update of a bond the same logits are applied as sigmoid(g_ij): divided by the sum
    over neighbours it would be the smaller the more neighbours there are.
    """

    LIMIT = 8.0

    def __init__(
        self,
        channels: Mapping[Irrep, int],
        outputs: Mapping[Irrep, int],
        heads: int,
        gaussians: int,
    ):
        super().__init__()
        self.heads = heads
        values = {irrep: -(-n // heads) * heads for irrep, n in outputs.items()}
        self.product = BondProduct(channels, channels, values, gaussians, invariants=gaussians)
        self.logits = mlp(2 * gaussians, gaussians, heads)
        self.to_node = Linear(values, outputs, bias=False)
        self.to_edge = Linear(values, channels, bias=False)

    def messages(self, bonds: Bonds, features: Irreps) -> tuple[Irreps, Tensor]:
        """Values of each bond, (n, 2l+1, heads, channels), and logits (n, heads)."""
        values, invariants = self.product(bonds.frames(), bonds.gaussians, features)
        logits = self.logits(torch.cat([bonds.gaussians, invariants], dim=1))
        logits = self.LIMIT * torch.tanh(logits / self.LIMIT)
        values = {irrep: v.unflatten(2, (self.heads, -1)) for irrep, v in values.items()}
        return values, logits

    def totals(self, like: Tensor, natoms: int) -> dict:
        """Zeros to which :meth:`collect` adds."""
        values = self.product.outputs
        sums = {
            irrep: like.new_zeros(natoms, 2 * irrep[0] + 1, self.heads, n // self.heads)
            for irrep, n in values.items()
        }
        return sums | {None: like.new_zeros(natoms, self.heads)}

    def collect(self, totals: dict, bonds: Bonds, values: Irreps, logits: Tensor) -> None:
        """Add the messages of some bonds to the sums of their atoms."""
        weight = bonds.envelope * torch.exp(logits)
        bonds.add_to_atoms(totals[None], weight)
        for irrep, value in values.items():
            bonds.add_to_atoms(totals[irrep], value * weight[:, None, :, None])

    def node_update(self, totals: dict) -> Irreps:
        """What the atoms receive."""
        norm = 1 / (1 + totals[None])[:, None, :, None]
        return self.to_node(
            {irrep: (x * norm).flatten(2) for irrep, x in totals.items() if irrep is not None}
        )

    def edge_update(self, values: Irreps, logits: Tensor) -> Irreps:
        """What the bonds receive."""
        weight = torch.sigmoid(logits)[:, None, :, None]
        return self.to_edge({irrep: (v * weight).flatten(2) for irrep, v in values.items()})
