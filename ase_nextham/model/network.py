"""The network of the paper: a correction for every pair of atoms from H(0) of all pairs.

Section 2 and appendices D, E and I of the NextHAM paper; docs/network.md goes through it equation
by equation. Atoms carry the on-site blocks of H(0), bonds those between two atoms. The bonds are
worked through in portions, so that memory at inference is that of the features alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ase_nextham.model.attention import BondProduct, Bonds, GraphAttention
from ase_nextham.model.graph import Graph
from ase_nextham.model.irreps import Irrep, Irreps
from ase_nextham.model.layers import (
    SCALAR,
    FeedForward,
    Gaussians,
    LayerNorm,
    Linear,
    added,
    irrep_name,
    mlp,
    multiplicities,
    smooth_step,
    summed,
    taken,
)
from ase_nextham.model.parts import PartIrreps, check_part
from ase_nextham.model.tracegrad import TraceGrad


@dataclass(frozen=True)
class Architecture:
    """What a network is made of; the defaults are the paper's.

    Parameters
    ----------
    features
        Channels of atoms and bonds between the layers.
    layers, heads
        Number of blocks, and of heads of their attention.
    gaussians
        Number of Gaussians of the distance.
    invariants
        Width of the invariants of TraceGrad.
    tracegrad
        Whether there is TraceGrad.
    inputs
        ``"h0"``: blocks of H(0). ``"elements"``: an embedding of each element instead.
    reads, corrects
        Which part of H(0) is read and which part of H is corrected, of
        :data:`ase_nextham.model.parts.PARTS`.
    """

    features: str = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
    layers: int = 4
    heads: int = 4
    gaussians: int = 64
    invariants: int = 256
    tracegrad: bool = True
    inputs: str = "h0"
    reads: str = "scalar"
    corrects: str = "scalar"

    def __post_init__(self):
        if SCALAR not in multiplicities(self.features):
            raise ValueError(f"the features {self.features!r} need scalars (0e)")
        if self.inputs not in ("h0", "elements"):
            raise ValueError(f"inputs are 'h0' or 'elements', not {self.inputs!r}")
        for name in ("layers", "heads", "invariants"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.gaussians < 2:
            raise ValueError(f"gaussians must be at least 2, not {self.gaussians}")
        check_part(self.reads)
        check_part(self.corrects)


@dataclass
class Corrections:
    """What the network says of some pairs.

    Parameters
    ----------
    pairs
        Indices of the pairs in the graph, shape (n,).
    irreps
        Irreps of their blocks, in eV.
    trace
        tr(B B^dagger) of the blocks B of each two shells, shape (n, shells, shells), if asked for.
    """

    pairs: Tensor
    irreps: Irreps
    trace: Tensor | None


class H0Descriptor(nn.Module):
    """Blocks of H(0) as features: their irreps, compressed.

    Elements of H(0) go from tens of eV on site to less than 1 meV between distant atoms. Each
    channel of an irrep enters twice, its norm x replaced by asinh(x / s) with s = 0.01 eV and
    1 eV: its direction stays, its size counts in orders of magnitude, and it is smooth where the
    block goes to zero.
    """

    SCALES = (0.01, 1.0)

    def __init__(self, shells: Sequence[int], part: str):
        super().__init__()
        self.part = PartIrreps(shells, part)
        self.node = {irrep: 2 * n for irrep, n in self.part.multiplicities.items()}
        self.edge = self.node
        for irrep, odd in (self.part.odd or {}).items():
            sign = torch.where(torch.from_numpy(odd), -1.0, 1.0)
            self.register_buffer(f"sign_{irrep_name(irrep)}", sign, persistent=False)

    def forward(
        self, graph: Graph, pairs: Tensor, dtype: torch.dtype, time_reversed: bool
    ) -> Irreps:
        """Features of pairs, those on site included; of H(0) reversed in time if asked for."""
        blocks = graph.reads.blocks(graph.h0, pairs)
        real = torch.zeros((), dtype=dtype)
        blocks = blocks.to(torch.complex(real, real).dtype if blocks.is_complex() else dtype)
        features = {}
        for irrep, x in self.part.to_irreps(blocks).items():
            if time_reversed and self.part.odd:
                x = x * self.get_buffer(f"sign_{irrep_name(irrep)}")
            # the norm of zero has no gradient, and h0 needs none; its inverse is kept finite
            norm = x.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
            features[irrep] = torch.cat(
                [x * (torch.asinh(norm / scale) / norm) for scale in self.SCALES], dim=2
            )
        return features

    on_atoms = on_bonds = forward


class ElementDescriptor(nn.Module):
    """Elements as features: 32 learned numbers each, for bonds those of both atoms."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(119, width)
        self.node, self.edge = {SCALAR: width}, {SCALAR: 2 * width}

    def on_atoms(
        self, graph: Graph, pairs: Tensor, dtype: torch.dtype, time_reversed: bool
    ) -> Irreps:
        return {SCALAR: self.embedding(graph.numbers[graph.i[pairs]])[:, None].to(dtype)}

    def on_bonds(
        self, graph: Graph, pairs: Tensor, dtype: torch.dtype, time_reversed: bool
    ) -> Irreps:
        both = graph.numbers[torch.stack([graph.i[pairs], graph.j[pairs]], dim=1)]
        return {SCALAR: self.embedding(both).flatten(1)[:, None].to(dtype)}


class Block(nn.Module):
    """Attention, feed-forward and TraceGrad, each added to what was there before.

    Parameters
    ----------
    architecture
        Of the network.
    channels
        Of atoms and bonds at the entrance and of bonds at the exit.
    outputs
        Of atoms at the exit.
    """

    def __init__(
        self,
        architecture: Architecture,
        channels: Mapping[Irrep, int],
        outputs: Mapping[Irrep, int],
    ):
        super().__init__()
        self.outputs = dict(outputs)
        self.node_norm, self.edge_norm = LayerNorm(channels), LayerNorm(channels)
        self.attention = GraphAttention(
            channels, outputs, architecture.heads, architecture.gaussians
        )
        self.lift = None
        if dict(outputs) != dict(channels):
            self.lift = Linear(channels, outputs, bias=False)
        self.node_tail = _Tail(architecture, outputs)
        self.edge_tail = _Tail(architecture, channels)

    def forward(
        self, node: Irreps, edges: list[Irreps], portions: list[Bonds], wanted: list[Tensor] | None
    ) -> tuple[Irreps, list[Irreps], Tensor | None, list[Tensor | None]]:
        """Features of atoms and bonds, and their invariants z.

        Parameters
        ----------
        wanted
            For each portion, which of its bonds are needed further on; None: all.
        """
        normal = self.node_norm(node)
        natoms = len(next(iter(node.values())))
        totals = self.attention.totals(next(iter(node.values())), natoms)
        new_edges, invariants = [], []
        for k, bonds in enumerate(portions):
            edge = edges[k]
            features = bonds.with_ends(normal, self.edge_norm(edge))
            values, logits = self.attention.messages(bonds, features)
            self.attention.collect(totals, bonds, values, logits)
            if wanted is not None:
                edge, values = taken(edge, wanted[k]), taken(values, wanted[k])
                logits = logits[wanted[k]]
            edge = added(edge, self.attention.edge_update(values, logits))
            edge, z = self.edge_tail(edge)
            new_edges.append(edge)
            invariants.append(z)
        if self.lift is not None:
            node = self.lift(node)
        node, z = self.node_tail(added(node, self.attention.node_update(totals)))
        return node, new_edges, z, invariants


class _Tail(nn.Module):
    """Feed-forward and TraceGrad, for atoms and for bonds."""

    def __init__(self, architecture: Architecture, channels: Mapping[Irrep, int]):
        super().__init__()
        wide = {irrep: 2 * n for irrep, n in channels.items()}
        self.norm = LayerNorm(channels)
        self.feed_forward = FeedForward(channels, wide, channels)
        self.tracegrad = self.invariant_norm = None
        if architecture.tracegrad:
            self.invariant_norm = LayerNorm(channels)
            self.tracegrad = TraceGrad(channels, architecture.invariants)

    def forward(self, features: Irreps) -> tuple[Irreps, Tensor | None]:
        features = added(features, self.feed_forward(self.norm(features)))
        if self.tracegrad is None:
            return features, None
        z, gradient = self.tracegrad(self.invariant_norm(features))
        return added(features, gradient), z


class Network(nn.Module):
    """One network: for every pair that is asked for, a block of matrix elements.

    Parameters
    ----------
    architecture
        What it is made of.
    shells
        Angular momentum of each shell of the blocks, in ascending order; species with fewer
        shells find a place in them.
    cutoff
        In Angstrom: how far an atom sees.

    Attributes
    ----------
    onsite_scale, bond_scale
        Typical size in eV of each channel of the result, by irrep; buffers with which the result
        is multiplied. Training sets them from its data.
    """

    def __init__(self, architecture: Architecture, shells: Sequence[int], cutoff: float):
        super().__init__()
        self.architecture, self.shells, self.cutoff = architecture, tuple(shells), float(cutoff)
        self.features = features = multiplicities(architecture.features)
        self.part = PartIrreps(shells, architecture.corrects)
        # the last block lifts atoms to every irrep that blocks have
        irreps = self.part.multiplicities
        lifted = {k: max(features.get(k, 0), irreps.get(k, 0)) for k in summed(features, irreps)}
        k = architecture.gaussians
        if architecture.inputs == "h0":
            self.descriptor = H0Descriptor(shells, architecture.reads)
        else:
            self.descriptor = ElementDescriptor()
        self.gaussians = Gaussians(k, cutoff)
        self.embed_node = Linear(self.descriptor.node, features)
        self.embed_edge = BondProduct(features, self.descriptor.edge, features, k)
        outputs = [features] * (architecture.layers - 1) + [lifted]
        self.blocks = nn.ModuleList(Block(architecture, features, some) for some in outputs)
        self.node_norm, self.edge_norm = LayerNorm(lifted), LayerNorm(features)
        wide = {k: 2 * n for k, n in lifted.items() if k in irreps or k == SCALAR}
        self.decode_onsite = FeedForward(lifted, wide, irreps)
        self.decode_bonds = BondProduct(lifted, features, irreps, k, hidden=lifted)
        self.onsite_scale, self.bond_scale = _Scales(irreps), _Scales(irreps)
        self.lmax = max(l for l, _ in summed(lifted, self.descriptor.edge))
        self.decode_trace = None
        if architecture.tracegrad:
            z, n = architecture.invariants, len(self.shells)
            self.decode_trace = mlp(architecture.layers * z, z, z, n * n)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embed_node.bias.dtype

    def forward(
        self,
        graph: Graph,
        wanted: Tensor | None = None,
        *,
        portion: int | None = None,
        trace: bool = False,
        time_reversed: bool = False,
    ) -> Iterator[Corrections]:
        """Corrections of some pairs, those on site first, then portion by portion.

        Parameters
        ----------
        graph
            Structures on the device of the weights.
        wanted
            Whether a pair is wanted, bool, shape (npairs,). None: all.
        portion
            Number of bonds that are worked on at once. None: all of them, as training needs it.
        trace
            Whether to give the invariants on which TraceGrad is trained, if there is TraceGrad.
        time_reversed
            Whether to read H(0) reversed in time.
        """
        if wanted is None:
            wanted = torch.ones(len(graph), dtype=torch.bool, device=graph.i.device)
        trace = trace and self.decode_trace is not None
        onsite = graph.onsite
        portions = self._portions(graph, portion)
        node = self.embed_node(self.descriptor.on_atoms(graph, onsite, self.dtype, time_reversed))
        edges = [self._embed_bonds(graph, node, bonds, time_reversed) for bonds in portions]
        rows = [torch.nonzero(wanted[bonds.index]).flatten() for bonds in portions]
        node_z, edge_z = [], []
        for layer, block in enumerate(self.blocks):
            last = layer == len(self.blocks) - 1
            node, edges, z, z_bonds = block(node, edges, portions, rows if last else None)
            if trace:
                node_z.append(z)
                edge_z.append(
                    z_bonds if last else [x[some] for x, some in zip(z_bonds, rows, strict=True)]
                )
        node = self.node_norm(node)
        atoms = torch.nonzero(wanted[onsite]).flatten()
        if len(atoms):
            found = self.decode_onsite(taken(node, atoms))
            z = [x[atoms] for x in node_z] if trace else None
            yield Corrections(onsite[atoms], self.onsite_scale(found), self._trace(z))
        for k, bonds in enumerate(portions):
            if len(rows[k]):
                some = self._bonds(graph, bonds.index[rows[k]])
                features = some.with_ends(node, self.edge_norm(edges[k]))
                found, _ = self.decode_bonds(some.frames(), some.gaussians, features)
                z = [layer[k] for layer in edge_z] if trace else None
                yield Corrections(some.index, self.bond_scale(found), self._trace(z))

    def _portions(self, graph: Graph, size: int | None) -> list[Bonds]:
        bonds = graph.bonds
        if not len(bonds):
            return []
        pieces = [bonds] if size is None else bonds.split(size)
        return [self._bonds(graph, piece, len(pieces) == 1) for piece in pieces]

    def _bonds(self, graph: Graph, index: Tensor, keep: bool = False) -> Bonds:
        distance = graph.distance[index]
        ramp = smooth_step(self.cutoff - distance)  # over the last Angstrom
        return Bonds(
            index,
            graph.i[index],
            graph.j[index],
            graph.vectors[index],
            self.gaussians(distance.to(self.dtype)),
            ramp[:, None].to(self.dtype),
            lmax=self.lmax,
            keep=keep,
        )

    def _embed_bonds(self, graph: Graph, node: Irreps, bonds: Bonds, time_reversed: bool) -> Irreps:
        """Eq. (17)."""
        h0 = self.descriptor.on_bonds(graph, bonds.index, self.dtype, time_reversed)
        edge, _ = self.embed_edge(bonds.frames(), bonds.gaussians, bonds.with_ends(node, h0))
        return edge

    def _trace(self, z: list[Tensor] | None) -> Tensor | None:
        if z is None:
            return None
        n = len(self.shells)
        return self.decode_trace(torch.cat(z, dim=1)).view(-1, n, n)


class _Scales(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: Mapping[Irrep, int]):
        super().__init__()
        for irrep, n in channels.items():
            self.register_buffer(irrep_name(irrep), torch.ones(n))

    def forward(self, features: Irreps) -> Irreps:
        return {irrep: x * self.get_buffer(irrep_name(irrep)) for irrep, x in features.items()}
