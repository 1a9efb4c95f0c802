"""The parts of the published networks, with their names and shapes of weights, on grouped irreps.

Each module has the parameters of the published one of the same name, so that a published state
dict fits by name. It evaluates them for all channels of an irrep at once: what is a product for
each path there is one matrix product for each irrep here, weights that follow one another without
a nonlinearity in between are multiplied first, and parts of the published modules that never
reach the output do not exist.

Features are flat, (n, numbers): irreps in ascending order of (l, parity), each as
(2l+1, channels).
"""

from __future__ import annotations

from functools import cached_property
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_nextham.model.irreps import Irrep, Irreps

Blocks = tuple[tuple[int, Irrep], ...]
"""(multiplicity, irrep) one after another, as published; an irrep may occur more than once."""

EVEN = (0, 1)
"""The irrep of scalars."""


def parse(text: str) -> Blocks:
    """Blocks from a text like ``"32x0e+16x1o"``."""
    terms = (term.split("x") for term in text.split("+"))
    return tuple((int(mul), (int(ir[:-1]), {"e": 1, "o": -1}[ir[-1]])) for mul, ir in terms)


class Layout:
    """How the irreps of some blocks stand in flat features."""

    def __init__(self, blocks: Blocks):
        self.muls: dict[Irrep, int] = {}
        for mul, irrep in sorted(blocks, key=lambda block: block[1]):
            self.muls[irrep] = self.muls.get(irrep, 0) + mul
        self.sizes = [(2 * l + 1) * mul for (l, _), mul in self.muls.items()]

    def split(self, flat: Tensor) -> Irreps:
        """Each irrep as a view (n, 2l+1, channels)."""
        parts = flat.split(self.sizes, dim=1)
        return {
            (l, p): part.unflatten(1, (2 * l + 1, mul))
            for ((l, p), mul), part in zip(self.muls.items(), parts, strict=True)
        }

    def join(self, irreps: Irreps) -> Tensor:
        """The reverse of :meth:`split`."""
        return torch.cat([irreps[irrep].flatten(1) for irrep in self.muls], dim=1)

    @staticmethod
    def published_order(blocks: Blocks) -> torch.Tensor:
        """Where each number of the flat features stands in published ones, channels slowest."""
        place: dict[Irrep, list] = {}
        start = 0
        for mul, (l, p) in blocks:
            size = (2 * l + 1) * mul
            numbers = np.arange(start, start + size).reshape(mul, 2 * l + 1).T
            place.setdefault((l, p), []).append(numbers)
            start += size
        return torch.from_numpy(
            np.concatenate(
                [np.concatenate(place[irrep], axis=1).ravel() for irrep in sorted(place)]
            )
        )


class Prepared(nn.Module):
    """A module whose weights are brought to their final form once, not in each evaluation.

    While gradients of weights are wanted, :meth:`prepare` runs in each evaluation.
    """

    def prepare(self):
        """The final form of the weights."""
        raise NotImplementedError

    def prepared(self):
        """What :meth:`prepare` returns, from memory if no weight has changed since."""
        weights = list(self.parameters())
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            return self.prepare()
        key = [(w.data_ptr(), w._version, w.dtype, w.device) for w in weights]
        if getattr(self, "_key", None) != key:
            # kept tensors must serve gradients of the input, too
            with torch.inference_mode(False), torch.no_grad():
                self._key, self._value = key, self.prepare()
        return self._value


class Weight(nn.Module):
    """A flat weight, called ``<module>.tp.weight`` in the published files."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


class Linear(nn.Module):
    """Linear layer between equal irreps; bias on even scalars.

    The flat weight holds a matrix (mul_in, mul_out) for every pair of an input and an output
    block of the same irrep, input blocks outermost.
    """

    def __init__(self, ins: Blocks, outs: Blocks, *, bias: bool = True):
        super().__init__()
        width = {irrep: 0 for _, irrep in ins + outs}
        rows, columns = {}, {}
        index = {}
        for blocks, starts in ((ins, rows), (outs, columns)):
            total = dict.fromkeys(width, 0)
            for number, (mul, irrep) in enumerate(blocks):
                starts[number] = total[irrep]
                total[irrep] += mul
            starts["total"] = total
        size = 0
        for a, (mul_a, irrep) in enumerate(ins):
            for b, (mul_b, other) in enumerate(outs):
                if irrep != other:
                    continue
                shape = (rows["total"][irrep], columns["total"][irrep])
                place = index.setdefault(irrep, np.zeros(shape, np.int64))
                numbers = np.arange(size, size + mul_a * mul_b).reshape(mul_a, mul_b)
                place[rows[a] : rows[a] + mul_a, columns[b] : columns[b] + mul_b] = numbers
                size += mul_a * mul_b
        self.tp = Weight(size)
        self._index = {irrep: torch.from_numpy(index[irrep]) for irrep in sorted(index)}
        if bias:
            self.bias = nn.ParameterList(
                nn.Parameter(torch.empty(size)) for size in _runs_of_scalars(outs)
            )

    def matrices(self) -> dict[Irrep, Tensor]:
        """(inputs, outputs) for each irrep that has both."""
        weight = self.tp.weight
        return {irrep: weight[index.to(weight.device)] for irrep, index in self._index.items()}

    def scalar_bias(self) -> Tensor:
        """What is added to the even scalars."""
        return torch.cat(list(self.bias))


def _runs_of_scalars(blocks: Blocks) -> list[int]:
    """Lengths of the runs of even scalars, each of which has a bias of its own."""
    runs, before = [], None
    for mul, irrep in blocks:
        if irrep == EVEN and before == EVEN:
            runs[-1] += mul
        elif irrep == EVEN:
            runs.append(mul)
        before = irrep
    return runs


def apply(matrices: dict[Irrep, Tensor], x: Irreps, bias: Tensor | None = None) -> Irreps:
    """One matrix product for each irrep."""
    y = {irrep: x[irrep] @ matrix for irrep, matrix in matrices.items()}
    if bias is not None:
        y[EVEN] = y[EVEN] + bias
    return y


class EquivariantNorm(nn.Module):
    """Each irrep divided by its root mean square; even scalars centred before."""

    def __init__(self, blocks: Blocks):
        super().__init__()
        self.blocks = blocks
        self.affine_weight = nn.Parameter(torch.empty(sum(mul for mul, _ in blocks)))
        self.affine_bias = nn.Parameter(torch.empty(sum(_runs_of_scalars(blocks))))

    def forward(self, x: Irreps) -> Irreps:
        y, start = {}, 0
        for mul, irrep in self.blocks:
            feature = x[irrep]
            if irrep == EVEN:
                feature = feature - feature.mean(dim=2, keepdim=True)
            scale = (feature.square().mean(dim=(1, 2), keepdim=True) + 1e-5).rsqrt()
            y[irrep] = feature * (scale * self.affine_weight[start : start + mul])
            start += mul
        y[EVEN] = y[EVEN] + self.affine_bias
        return y


class Gate:
    """SiLU on the scalars, and every other channel times a sigmoid of a scalar of its own."""

    SILU, SIGMOID = 1.6791767923989418, 1.8467055342154763
    # factors that give both unit second moment for normally distributed input

    def __init__(self, blocks: Blocks):
        self.scalars = next(mul for mul, irrep in blocks if irrep == EVEN)
        self.gated = [(mul, irrep) for mul, irrep in blocks if irrep != EVEN]
        gates = sum(mul for mul, _ in self.gated)
        self.input: Blocks = ((self.scalars + gates, EVEN), *self.gated)

    def __call__(self, scalars: Tensor) -> tuple[Tensor, Irreps]:
        """The scalars themselves, and the factors of every other irrep; from all scalars."""
        active = functional.silu(scalars[..., : self.scalars]) * self.SILU
        gates = scalars[..., self.scalars :].sigmoid() * self.SIGMOID
        pieces = gates.split([mul for mul, _ in self.gated], dim=-1)
        return active, {irrep: gate for (_, irrep), gate in zip(self.gated, pieces, strict=True)}


class InvariantFeatures(Prepared):
    """Non-linear invariant features z of an edge, and how they change with its features f.

    All scalar products of two channels of the same irrep go through a small network; the
    gradient of the sum of z with respect to f is the one that the features are moved along
    (TraceGrad).
    """

    def __init__(self, blocks: Blocks, hidden: int, width: int = 256):
        super().__init__()
        self.blocks = blocks
        pairs = sum(mul * mul for mul, _ in blocks)
        self.fctp = Weight(pairs * hidden)
        layers: list[nn.Module] = []
        for size in (hidden, width, width):
            layers += [nn.Linear(size, width), nn.LayerNorm(width, eps=1e-6), nn.SiLU()]
        self.nonlinear_layers = nn.Sequential(*layers, nn.Linear(width, width))
        self.hidden, self.pairs = hidden, pairs

    @cached_property
    def _triangles(self) -> dict[Irrep, tuple[Tensor, Tensor, Tensor]]:
        """For each irrep: pairs u <= v, and the place of each (u, v) among them."""
        tables = {}
        for mul, irrep in sorted(self.blocks, key=lambda block: block[1]):
            u, v = torch.triu_indices(mul, mul)
            place = torch.empty(mul, mul, dtype=torch.int64)
            place[u, v] = place[v, u] = torch.arange(len(u))
            tables[irrep] = (u, v, place.flatten())
        return tables

    def prepare(self) -> Tensor:
        """Matrix from all scalar products with u <= v to the input of the first norm."""
        matrices, start = {}, 0
        for mul, irrep in self.blocks:
            stop = start + mul * mul * self.hidden
            weight = self.fctp.weight[start:stop].view(mul, mul, self.hidden)
            u, v, _ = self._triangles[irrep]
            once = torch.where((u == v)[:, None], 0.5, 1.0).to(weight)
            both = (weight[u, v] + weight[v, u]) * once
            matrices[irrep] = both / sqrt((2 * irrep[0] + 1) * self.pairs)
            start = stop
        products = torch.cat([matrices[irrep] for irrep in self._triangles])
        return products @ self.nonlinear_layers[0].weight.T

    def forward(self, x: Irreps, matrix: Tensor, *, gradient: bool) -> tuple[Tensor, Irreps | None]:
        """z, (n, width), and the gradient of sum(z) if asked for.

        ``matrix`` is what :meth:`prepare` makes of the weights.
        """
        products = []
        for irrep, (u, v, _) in self._triangles.items():
            gram = x[irrep].transpose(1, 2) @ x[irrep]
            upper = u * gram.shape[1] + v
            products.append(gram.flatten(1).index_select(1, upper.to(gram.device)))
        a = torch.cat(products, dim=1) @ matrix + self.nonlinear_layers[0].bias
        states = []
        for number in (1, 4, 7):
            norm, linear = self.nonlinear_layers[number], self.nonlinear_layers[number + 2]
            centred = a - a.mean(dim=1, keepdim=True)
            scale = (centred.square().mean(dim=1, keepdim=True) + norm.eps).rsqrt()
            unit = centred * scale
            n = unit * norm.weight + norm.bias
            states.append((unit, scale, n))
            a = linear(functional.silu(n))
        return a, self._gradient(x, matrix, states) if gradient else None

    def _gradient(self, x: Irreps, matrix: Tensor, states: list) -> Irreps:
        """Backwards through the network by hand: it stays differentiable, and keeps no graph."""
        g = self.nonlinear_layers[9].weight.sum(dim=0)
        for number, (unit, scale, n) in zip((7, 4, 1), reversed(states), strict=True):
            sigmoid = n.sigmoid()
            g = g * (sigmoid * (1 + n * (1 - sigmoid))) * self.nonlinear_layers[number].weight
            g = g - g.mean(dim=1, keepdim=True) - unit * (g * unit).mean(dim=1, keepdim=True)
            g = g * scale
            if number > 1:
                g = g @ self.nonlinear_layers[number - 1].weight
        g = g @ matrix.T
        y, start = {}, 0
        for irrep, (u, v, place) in self._triangles.items():
            part = g[:, start : start + len(u)]
            part = part * torch.where(u == v, 2.0, 1.0).to(part)
            mul = x[irrep].shape[2]
            part = part.index_select(1, place.to(part.device))
            y[irrep] = x[irrep] @ part.unflatten(1, (mul, mul))
            start += len(u)
        return y
