"""One block of the published transformers: graph attention that updates nodes and edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ase_nextham.model.aligned import BondFrames, Sectors, sectors
from ase_nextham.model.irreps import Irreps
from ase_nextham.model.released_layers import (
    EVEN,
    Blocks,
    EquivariantNorm,
    Gate,
    Layout,
    Linear,
    Prepared,
    Weight,
    apply,
)
from ase_nextham.model.released_product import Product

HEADS = 4
WIDTH = 64
"""Distance features, and width of the networks that see them."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Edges that are evaluated together: all those of some consecutive targets.

    Parameters
    ----------
    edges, targets
        First and last edge, and target.
    frames
        Of the bonds; of a bond of length zero, any.
    zero
        Which of the edges have length zero, counted from the first edge of the chunk.
    """

    edges: slice
    targets: slice
    frames: BondFrames
    zero: Tensor


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges in the order of their target, and what is known of them before any layer.

    Parameters
    ----------
    source, target
        Atom at the row and the column of the block, shape (nedges,); ``target`` ascends.
    distances
        Gaussians of the distance, shape (nedges, 64).
    chunks
        How they are evaluated.
    """

    source: Tensor
    target: Tensor
    distances: Tensor
    chunks: list[Chunk]

    @classmethod
    def cut(
        cls, source: Tensor, target: Tensor, vectors: Tensor, size: int, layout: Layout
    ) -> Edges:
        """Edges in chunks of at most ``size``, but never fewer than those of one target.

        Parameters
        ----------
        vectors
            From source to target in Angstrom, shape (nedges, 3), in the precision of the network.
        layout
            Of the features that the frames are for.
        """
        targets, counts = target.unique_consecutive(return_counts=True)
        bounds, start, stop, first, last = [], 0, 0, None, None
        for atom, count in zip(targets.tolist(), counts.tolist(), strict=True):
            if first is not None and stop + count - start > size:
                bounds.append((slice(start, stop), slice(first, last + 1)))
                start, first = stop, None
            first = atom if first is None else first
            last, stop = atom, stop + count
        if first is not None:
            bounds.append((slice(start, stop), slice(first, last + 1)))
        lmax = max(l for l, _ in layout.muls)
        up = vectors.new_tensor([0.0, 0.0, 1.0])
        chunks = []
        for edges, atoms in bounds:
            zero = (vectors[edges] == 0).all(dim=1)
            some = torch.where(zero[:, None], up, vectors[edges])
            frames = BondFrames(some.double(), lmax, vectors.dtype)
            chunks.append(Chunk(edges, atoms, frames, torch.nonzero(zero).flatten()))
        return cls(source, target, gaussians(torch.linalg.vector_norm(vectors, dim=1)), chunks)


def gaussians(length: Tensor) -> Tensor:
    """Distance features, shape (n, 64), of lengths in Angstrom."""
    centres = torch.as_tensor(np.linspace(0, 10, WIDTH), dtype=length.dtype, device=length.device)
    width = 0.5 * 10 / WIDTH
    return torch.exp(-((length[:, None] - centres) ** 2) / (2 * width**2))


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

    def __init__(self, product: Product, gate: Gate):
        super().__init__()
        self.dtp_rad = Radial(product.size)
        self.lin = Linear(product.output, gate.input)


class Value(nn.Module):
    """``sep_value``: a second product with harmonics, with weights of its own."""

    def __init__(self, product: Product, outs: Blocks):
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
        self.product = Product(blocks, irreps)
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
        order = self.product.weight_order.to(bias.device)
        message = self.sep_act.lin.matrices()
        # of the features for the attention, only those of the first head are looked at
        first_head = slice(0, self.scalars)
        alpha = self.sep_alpha.matrices()[EVEN][:, first_head]
        message[EVEN] = torch.cat([alpha, message[EVEN]], dim=1)
        message_bias = torch.cat(
            [self.sep_alpha.scalar_bias()[first_head], self.sep_act.lin.scalar_bias()]
        )
        weights, value = self.sep_value.dtp.tp.weight, self.sep_value.lin.matrices()
        return {
            "source": source,
            "target": target,
            "edge": edge,
            "merge_bias": bias,
            "radial": self.sep_act.dtp_rad.net[6].weight[order],
            "offset": self.sep_act.dtp_rad.offset[order][:, None],
            "message": self.product.after_weights(message),
            "message_bias": message_bias,
            "value": self.product.merged(weights, value, alone=False),
            "value_alone": self.product.merged(weights, value, alone=True),
            "value_bias": self.sep_value.lin.scalar_bias(),
        }

    def at_nodes(self, node: Irreps, w: dict) -> tuple[Tensor, Tensor]:
        """What a node contributes to messages that it sends and receives."""
        source = self.layout.join(apply(w["source"], node, w["merge_bias"]))
        return source, self.layout.join(apply(w["target"], node))

    def forward(
        self, edge: Irreps, ends: Tensor, distances: Tensor, chunk: Chunk, w: dict
    ) -> tuple[Irreps, Tensor]:
        """Values and logits of some edges.

        Parameters
        ----------
        edge
            Their normalised features.
        ends
            What :meth:`at_nodes` has for the nodes at their two ends, added.
        distances
            As in :class:`Edges`.
        chunk
            Their frames.
        w
            What :meth:`prepare` makes of the weights.

        Returns
        -------
        (Irreps, Tensor)
            Values of all heads, channels of one head together; logits (n, heads).
        """
        flat = self.layout.join(apply(w["edge"], edge)) + ends
        hidden = self.sep_act.dtp_rad.net[:6](distances)
        weights = torch.addmm(w["offset"], w["radial"], hidden.T)
        weights[:, chunk.zero] *= self.product.alone.to(weights)[:, None]
        message = self.product.weighted(
            chunk.frames.align(self.layout.split(flat)), weights, w["message"]
        )
        scalars = message[EVEN, 0] + w["message_bias"]
        logits = self.lin_alpha(torch.cat([distances, scalars[:, 0, : self.scalars]], dim=1))
        values = self._gated(scalars[..., self.scalars :], message)
        result = []
        for x, matrix, alone in zip(values, w["value"], w["value_alone"], strict=True):
            y = x @ matrix
            y[chunk.zero] = x[chunk.zero] @ alone
            result.append(y)
        restored = chunk.frames.restore(result, self.head_layout.muls)
        restored[EVEN] = restored[EVEN] + w["value_bias"]
        return restored, logits

    def _gated(self, scalars: Tensor, message: dict) -> Sectors:
        """Sectors of the messages after the gate."""
        active, gates = self.gate(scalars)
        found = []
        for sector, some in enumerate(sectors(self.layout.muls)):
            pieces = [
                active if irrep == EVEN else message[irrep, sector] * gates[irrep] for irrep in some
            ]
            found.append(torch.cat(pieces, dim=2))
        return found


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
        x = apply(self.fctp_1.matrices(), x, self.fctp_1.scalar_bias())
        x[EVEN], gates = self.gate(x[EVEN])
        x = {irrep: x[irrep] * gates[irrep] if irrep in gates else x[irrep] for irrep in x}
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
        for chunk in edges.chunks:
            own = chunk.edges
            values, logits = self.ga(
                self.norm_edge(self.layout.split(edge[own])),
                source[edges.source[own]] + target[edges.target[own]],
                edges.distances[own],
                chunk,
                w,
            )
            yield own, chunk.targets, values, logits


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
