"""One block of the published transformers: graph attention that updates nodes and edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ase_nextham.model.irreps import Irreps
from ase_nextham.model.released_layers import (
    EVEN,
    Blocks,
    Depthwise,
    EquivariantNorm,
    Gate,
    Layout,
    Linear,
    Prepared,
    Weight,
    apply,
)

HEADS = 4
LMAX = 5
WIDTH = 64
"""Distance features, and width of the networks that see them."""


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges in the order of their target, and what is known of them before any layer.

    Parameters
    ----------
    source, target
        Atom at the row and the column of the block, shape (nedges,); ``target`` ascends.
    distances
        Gaussians of the distance, shape (nedges, 64).
    harmonics
        Of the direction, shape (nedges, 36).
    chunks
        Edges that are treated together, all those of some consecutive targets: first and last
        edge, first and last target.
    """

    source: Tensor
    target: Tensor
    distances: Tensor
    harmonics: Tensor
    chunks: list[tuple[slice, slice]]

    def subset(self, which: Tensor, size: int) -> Edges:
        """Some of the edges, a boolean for each, in chunks of ``size``."""
        target = self.target[which]
        return Edges(
            self.source[which],
            target,
            self.distances[which],
            self.harmonics[which],
            self.cut(target, size),
        )

    @staticmethod
    def cut(target: Tensor, size: int) -> list[tuple[slice, slice]]:
        """Chunks of at most ``size`` edges, but never less than those of one target."""
        targets, counts = target.unique_consecutive(return_counts=True)
        chunks, start, stop, first, last = [], 0, 0, None, None
        for atom, count in zip(targets.tolist(), counts.tolist(), strict=True):
            if first is not None and stop + count - start > size:
                chunks.append((slice(start, stop), slice(first, last + 1)))
                start, first = stop, None
            first = atom if first is None else first
            last, stop = atom, stop + count
        if first is not None:
            chunks.append((slice(start, stop), slice(first, last + 1)))
        return chunks


class Radial(nn.Module):
    """Weights of all paths of a tensor product, from the distance."""

    def __init__(self, size: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, size, bias=False),
        )
        self.offset = nn.Parameter(torch.empty(size))


class Message(nn.Module):
    """``sep_act``: product with harmonics, weighted by distance, and the layer after it."""

    def __init__(self, product: Depthwise, gate: Gate):
        super().__init__()
        self.dtp_rad = Radial(product.size)
        self.lin = Linear(product.output, gate.input)


class Value(nn.Module):
    """``sep_value``: a second product with harmonics, with weights of its own."""

    def __init__(self, product: Depthwise, outs: Blocks):
        super().__init__()
        self.dtp = nn.Module()
        self.dtp.tp = Weight(product.size)
        self.lin = Linear(product.output, outs)


class Attention(Prepared):
    """``ga``: messages along the edges, their attention, and the features of edges and nodes.

    Parameters
    ----------
    blocks
        Of the features of nodes and edges before.
    edge_blocks
        Of the features of edges after.
    node
        Whether nodes get new features, too; those of the last block are not used.
    """

    def __init__(self, blocks: Blocks, edge_blocks: Blocks, *, node: bool):
        super().__init__()
        irreps = [irrep for _, irrep in blocks]
        self.layout = Layout(blocks)
        self.gate = Gate(blocks)
        self.product = Depthwise(blocks, LMAX, irreps)
        scalars = next(mul for mul, irrep in blocks if irrep == EVEN)
        heads: Blocks = tuple(
            (HEADS * mul, irrep)
            for mul, irrep in sorted(blocks, key=lambda block: (block[1][0], -block[1][1]))
        )
        self.head_layout = Layout(heads)
        self.merge_src = Linear(blocks, blocks)
        self.merge_dst = Linear(blocks, blocks, bias=False)
        self.pre_lin = Linear(blocks + blocks + blocks, blocks)
        self.lin_alpha = nn.Sequential(
            nn.Linear(WIDTH + scalars, WIDTH),
            nn.LayerNorm(WIDTH, eps=1e-6),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(WIDTH, eps=1e-6),
            nn.SiLU(),
            nn.Linear(WIDTH, HEADS),
        )
        self.sep_act = Message(self.product, self.gate)
        self.sep_alpha = Linear(self.product.output, ((HEADS * scalars, EVEN),))
        self.sep_value = Value(self.product, heads)
        self.edge_proj = Linear(heads, edge_blocks)
        if node:
            self.proj = Linear(heads, blocks)
        self.scalars = scalars

    def prepare(self) -> dict:
        """Matrices of the layers, those that follow each other multiplied."""
        merged = self.pre_lin.matrices()
        source, target, edge = {}, {}, {}
        for irrep, matrix in merged.items():
            first, second, edge[irrep] = matrix.chunk(3)
            source[irrep] = self.merge_src.matrices()[irrep] @ first
            target[irrep] = self.merge_dst.matrices()[irrep] @ second
            if irrep == EVEN:
                bias = self.merge_src.scalar_bias() @ first + self.pre_lin.scalar_bias()
        order = self.product.weight_order
        message = self.sep_act.lin.matrices()
        # of the features for the attention, only those of the first head are looked at
        first_head = slice(0, self.scalars)
        alpha = self.sep_alpha.matrices()[EVEN][:, first_head]
        message[EVEN] = torch.cat([alpha, message[EVEN]], dim=1)
        message_bias = torch.cat(
            [self.sep_alpha.scalar_bias()[first_head], self.sep_act.lin.scalar_bias()]
        )
        return {
            "source": source,
            "target": target,
            "edge": edge,
            "merge_bias": bias,
            "radial": self.sep_act.dtp_rad.net[6].weight[order].T.contiguous(),
            "offset": self.sep_act.dtp_rad.offset[order],
            "message": message,
            "message_bias": message_bias,
            "value": self._value_matrices(),
            "value_bias": self.sep_value.lin.scalar_bias(),
        }

    def _value_matrices(self) -> dict:
        """Matrices of the second product's layer, with the weights of its paths."""
        order = self.product.weight_order
        weights = self.sep_value.dtp.tp.weight[order]
        factors: dict = {irrep: [] for _, irrep in self.product.output}
        start = 0
        for (mul, _), found in zip(self.product.blocks, self.product.paths, strict=True):
            for irrep, ljs in found.items():
                stop = start + mul * len(ljs)
                factors[irrep].append(weights[start:stop])
                start = stop
        return {
            irrep: torch.cat(factors[irrep])[:, None] * matrix
            for irrep, matrix in self.sep_value.lin.matrices().items()
        }

    def at_nodes(self, node: Irreps, w: dict) -> tuple[Tensor, Tensor]:
        """What a node contributes to messages that it sends and receives."""
        source = self.layout.join(apply(w["source"], node, w["merge_bias"]))
        return source, self.layout.join(apply(w["target"], node))

    def forward(
        self, edge: Irreps, ends: Tensor, distances: Tensor, harmonics: Tensor, w: dict
    ) -> tuple[Irreps, Tensor]:
        """Values and logits of some edges.

        Parameters
        ----------
        edge
            Their normalised features.
        ends
            What :meth:`at_nodes` has for the nodes at their two ends, added.
        distances, harmonics
            As in :class:`Edges`.
        w
            What :meth:`prepare` makes of the weights.

        Returns
        -------
        (Irreps, Tensor)
            Values of all heads, channels of one head together; logits (n, heads).
        """
        flat = self.layout.join(apply(w["edge"], edge)) + ends
        couplings = self.product.couplings(harmonics)
        hidden = self.sep_act.dtp_rad.net[:6](distances)
        weights = torch.addmm(w["offset"], hidden, w["radial"])
        t = self.product(self.layout.split(flat), couplings, weights)
        message = apply(w["message"], t, w["message_bias"])
        attention = message[EVEN][:, 0, : self.scalars]
        logits = self.lin_alpha(torch.cat([distances, attention], dim=1))
        message[EVEN] = message[EVEN][..., self.scalars :]
        t = self.product(self.gate(message), couplings)
        return apply(w["value"], t, w["value_bias"]), logits


def of_heads(values: Irreps, factors: Tensor) -> Irreps:
    """Values times a factor for each head, (n, heads)."""
    factors = factors[:, None, :, None]
    return {
        irrep: (value.unflatten(2, (HEADS, -1)) * factors).flatten(2)
        for irrep, value in values.items()
    }


class FeedForward(nn.Module):
    """``ffn``: two layers with a gate between them."""

    def __init__(self, blocks: Blocks):
        super().__init__()
        self.gate = Gate(blocks)
        self.fctp_1 = Linear(blocks, self.gate.input)
        self.fctp_2 = Linear(blocks, blocks)

    def forward(self, x: Irreps) -> Irreps:
        x = self.gate(apply(self.fctp_1.matrices(), x, self.fctp_1.scalar_bias()))
        return apply(self.fctp_2.matrices(), x, self.fctp_2.scalar_bias())


class AttentionBlock(nn.Module):
    """Norms and attention: what the last block consists of, as far as it is used."""

    def __init__(self, blocks: Blocks, edge_blocks: Blocks, *, node: bool = False):
        super().__init__()
        self.layout = Layout(blocks)
        self.norm_1 = EquivariantNorm(blocks)
        self.norm_edge = EquivariantNorm(blocks)
        self.ga = Attention(blocks, edge_blocks, node=node)

    def values(self, node: Tensor, edge: Tensor, edges: Edges) -> Iterator:
        """For one chunk of edges after another: edges, targets, values of the heads and logits."""
        w = self.ga.prepared()
        source, target = self.ga.at_nodes(self.norm_1(self.layout.split(node)), w)
        for chunk, targets in edges.chunks:
            values, logits = self.ga(
                self.norm_edge(self.layout.split(edge[chunk])),
                source[edges.source[chunk]] + target[edges.target[chunk]],
                edges.distances[chunk],
                edges.harmonics[chunk],
                w,
            )
            yield chunk, targets, values, logits


class Block(AttentionBlock):
    """Attention and feed-forward; nodes get theirs added to the normalised features before."""

    def __init__(self, blocks: Blocks):
        super().__init__(blocks, blocks, node=True)
        self.norm_2 = EquivariantNorm(blocks)
        self.ffn = FeedForward(blocks)

    def forward(self, node: Tensor, edge: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """New features of nodes and edges."""
        proj, edge_proj = self.ga.proj, self.ga.edge_proj
        edge_matrices, edge_bias = edge_proj.matrices(), edge_proj.scalar_bias()
        layout = self.ga.head_layout
        new_edge = torch.empty_like(edge)
        received = node.new_zeros(len(node), sum(layout.sizes))
        for chunk, targets, values, logits in self.values(node, edge, edges):
            new = apply(edge_matrices, of_heads(values, logits), edge_bias)
            new_edge[chunk] = self.layout.join(new)
            target = edges.target[chunk] - targets.start
            count = targets.stop - targets.start
            sent = layout.join(of_heads(values, softmax(logits, target, count)))
            received[targets] = sent.new_zeros(count, sent.shape[1]).index_add(0, target, sent)
        update = apply(proj.matrices(), layout.split(received), proj.scalar_bias())
        before = self.norm_1(self.layout.split(node))
        x = self.norm_2({irrep: update[irrep] + before[irrep] for irrep in update})
        change = self.ffn(x)
        return self.layout.join({irrep: change[irrep] + x[irrep] for irrep in x}), new_edge


def softmax(logits: Tensor, target: Tensor, targets: int) -> Tensor:
    """Softmax over the edges with the same target, each column by itself."""
    index = target[:, None].expand_as(logits)
    with torch.no_grad():
        largest = logits.new_full((targets, logits.shape[1]), -torch.inf)
        largest = largest.scatter_reduce(0, index, logits, "amax")
    weights = (logits - largest[target]).exp()
    total = logits.new_zeros(targets, logits.shape[1]).index_add(0, target, weights)
    return weights / (total + 1e-16)[target]
