"""The networks whose weights are published: the same numbers, evaluated by our own code.

``"main"`` is the network of NextHAM, ``"v1.1"`` that of NextHAM_V1_1_Inference. What is published
for each are four state dicts, one for each window of distances (:data:`WINDOWS`); their corrections
add up. Their vectors are those of :mod:`.released_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from ase_nextham.model.irreps import Irrep
from ase_nextham.model.released_attention import (
    AttentionBlock,
    Block,
    Edges,
    of_heads,
)
from ase_nextham.model.released_layers import (
    EVEN,
    Blocks,
    InvariantFeatures,
    Layout,
    Linear,
    Prepared,
    apply,
    parse,
)
from ase_nextham.model.released_layout import SIZE, blocks
from ase_nextham.model.released_weights import assign

WINDOWS = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 6.0))
"""Distances in Angstrom, from and below, that the four published state dicts of a set are for."""

FEATURES = {
    "main": parse("32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"),
    "v1.1": parse("32x0e+16x0o+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e+8x4o+4x5e+4x5o+1x6e+1x6o+1x7e"),
}
"""Irreps of the features of nodes and edges, by version."""

TRACES = 81
"""Numbers of the trace output: one for each pair of shells."""

SCALARS = 32
"""Even scalars of the last edge features that the trace sees."""


class ReleasedNetwork(Prepared):
    """One of the four networks of a published set.

    Made by :func:`load`. Parameters have the published names; those that are left out of
    :meth:`state_dict` never reach the output.

    Parameters
    ----------
    version
        ``"main"`` or ``"v1.1"``.
    window
        Distances in Angstrom, from and below, outside of which the output is zero.

    Attributes
    ----------
    chunk
        Edges that are evaluated together; memory for what is between two layers grows with it.
    """

    chunk = 256

    def __init__(self, version: str, window: tuple[float, float] = (0.0, 10.0)):
        super().__init__()
        if version not in FEATURES:
            raise ValueError(f"unknown published network {version!r}; known: {', '.join(FEATURES)}")
        self.version, self.window = version, window
        features = FEATURES[version]
        output: Blocks = tuple((1, irrep) for irrep, _ in blocks())
        lifted: Blocks = ((SCALARS, EVEN), *((mul, ir) for ir, mul in Layout(output).muls.items()))
        self.layout, self.output_layout = Layout(features), Layout(output)
        self.input_rs = Linear(output, features, bias=False)
        self.blocks = nn.ModuleList(
            [*(Block(features) for _ in range(3)), AttentionBlock(features, lifted)]
        )
        self.edge_feature_nonlin_block = nn.ModuleList(
            [
                *(InvariantFeatures(features, 1024) for _ in range(3)),
                InvariantFeatures(((SCALARS, EVEN),), 512),
            ]
        )
        self.edge_lin = Linear(lifted, output)
        sizes = [4 * 256, 512, 512, 512, TRACES]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.nonlinear_layers_for_norm_reg = nn.Sequential(*layers[:-1])
        self._output_order = Layout.published_order(output)

    def prepare(self) -> dict:
        """Matrices from the last values to the correction, and to what the trace sees."""
        last = self.blocks[3].ga.edge_proj
        lift, bias = last.matrices(), last.scalar_bias()
        decode = self.edge_lin.matrices()
        matrices = {irrep: lift[irrep] @ decode[irrep] for irrep in lift}
        return {
            "input": self.input_rs.matrices(),
            "output": matrices,
            "output_bias": bias @ decode[EVEN] + self.edge_lin.scalar_bias(),
            "scalars": lift[EVEN][:, :SCALARS],
            "scalars_bias": bias[:SCALARS],
        }

    def forward(
        self, h0_irreps: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The correction and the trace of every edge.

        Parameters
        ----------
        h0_irreps
            H(0) of each edge in eV, as :func:`.released_layout.vector_of_blocks` gives it,
            shape (nedges, 5832).
        edge_vec
            From atom ``edge_src`` to atom ``edge_dst``, x, y, z in Angstrom, shape (nedges, 3).
            All pairs within 8 Angstrom belong to the graph, each atom with itself, too.
        edge_src, edge_dst
            Atoms at the rows and the columns of the block, integer, shape (nedges,).

        Returns
        -------
        (Tensor, Tensor)
            Correction in eV, (nedges, 5832), and 81 numbers for each edge, the normalised
            pattern of its squares; both zero outside of the window.
        """
        dtype, device = self.input_rs.tp.weight.dtype, self.input_rs.tp.weight.device
        if h0_irreps.shape != (len(edge_vec), SIZE):
            raise ValueError(
                f"H(0) of {len(edge_vec)} edges must have shape ({len(edge_vec)}, {SIZE}), "
                f"not {tuple(h0_irreps.shape)}"
            )
        h0_irreps, edge_vec = h0_irreps.to(device, dtype), edge_vec.to(device, dtype)
        source, target = edge_src.to(device, torch.int64), edge_dst.to(device, torch.int64)
        ham = h0_irreps.new_zeros(len(edge_vec), SIZE)
        trace = h0_irreps.new_zeros(len(edge_vec), TRACES)
        order = torch.argsort(target, stable=True)
        source, target, edge_vec = source[order], target[order], edge_vec[order]
        length = torch.linalg.vector_norm(edge_vec, dim=1)
        inside = (length >= self.window[0]) & (length < self.window[1])
        if not inside.any():
            return ham, trace
        w = self.prepared()
        edges = Edges.cut(source, target, edge_vec, self.chunk, self.layout)
        edge = self._embedded(h0_irreps, w["input"])[order]
        onsite = torch.nonzero((source == target) & (length < 1e-5)).flatten()
        node = edge.new_zeros(int(max(source.max(), target.max())) + 1, edge.shape[1])
        node = node.index_add(0, source[onsite], edge[onsite])
        features = []
        for block, invariants in zip(
            self.blocks[:3], self.edge_feature_nonlin_block[:3], strict=True
        ):
            node, edge = block(node, edge, edges)
            edge, z = self._moved(invariants, edge, inside)
            features.append(z)
        if not inside.all():  # the last block is for the output only
            edge, vectors = edge[inside], edge_vec[inside]
            edges = Edges.cut(source[inside], target[inside], vectors, self.chunk, self.layout)
        for chunk, y, z in self._decoded(node, edge, edges):
            place = order[inside][chunk]
            ham[place] = y * torch.exp(-0.2 * length[inside][chunk])[:, None]
            z = torch.cat([*(some[chunk] for some in features), z], dim=1)
            trace[place] = self.nonlinear_layers_for_norm_reg(z)
        return ham, trace

    def _embedded(self, h0_irreps: Tensor, matrices: dict[Irrep, Tensor]) -> Tensor:
        """First features of the edges, linear in H(0)."""
        features, order = [], self._output_order.to(h0_irreps.device)
        for chunk in h0_irreps.split(self.chunk):
            x = self.output_layout.split(chunk.index_select(1, order))
            features.append(self.layout.join(apply(matrices, x)))
        return torch.cat(features)

    def _moved(
        self, invariants: InvariantFeatures, edge: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Edge features after TraceGrad, and the invariant features of the edges inside.

        Only the network of NextHAM moves them, by a fifth of their norm; that of V1.1 does not.
        """
        matrix = invariants.prepared()
        if self.version != "main":
            zs = [
                invariants(self.layout.split(chunk), matrix, gradient=False)[0]
                for chunk in edge[inside].split(self.chunk)
            ]
            return edge, torch.cat(zs)
        moved, zs = [], []
        for chunk in edge.split(self.chunk):
            z, y = invariants(self.layout.split(chunk), matrix, gradient=True)
            y = self.layout.join(y)
            norm, step = (
                torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True) for x in (chunk, y)
            )
            moved.append(chunk + 0.2 * norm / (step + 1e-5) * y)
            zs.append(z)
        return torch.cat(moved), torch.cat(zs)[inside]

    def _decoded(self, node: Tensor, edge: Tensor, edges: Edges) -> Iterator:
        """Chunk, correction and last invariant features, for one chunk after another."""
        w = self.prepared()
        last, invariants = self.blocks[3], self.edge_feature_nonlin_block[3]
        matrix = invariants.prepared()
        order = torch.argsort(self._output_order).to(edge.device)
        muls = self.output_layout.muls
        for chunk, _, values, logits in last.values(node, edge, edges):
            values = of_heads(values, logits)
            y = apply(w["output"], values, w["output_bias"])
            for irrep in muls.keys() - y.keys():  # of which the features have none
                y[irrep] = edge.new_zeros(len(values[EVEN]), 2 * irrep[0] + 1, muls[irrep])
            ham = self.output_layout.join(y).index_select(1, order)
            scalars = values[EVEN] @ w["scalars"] + w["scalars_bias"]
            z, _ = invariants({EVEN: scalars}, matrix, gradient=False)
            yield chunk, ham, z


def load(
    version: str,
    state_dict: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    *,
    window: tuple[float, float] = (0.0, 10.0),
) -> ReleasedNetwork:
    """A published network with its weights, ready for inference.

    Parameters
    ----------
    version
        ``"main"`` (NextHAM) or ``"v1.1"`` (NextHAM_V1_1_Inference).
    state_dict
        One published state dict, of the weights of one window.
    dtype
        ``torch.float32`` or ``torch.float64``.
    window
        Distances in Angstrom that these weights are for; of :data:`WINDOWS` in use.

    Returns
    -------
    ReleasedNetwork
        In evaluation mode, without gradients of its parameters. ``unused`` names the entries
        of the state dict that do not reach the output.

    Raises
    ------
    ValueError
        For weights that are missing, have another shape or are not known, by name.
    """
    network = ReleasedNetwork(version, window)
    network.unused = assign(network, state_dict, dtype)
    return network.to(dtype).eval().requires_grad_(False)
