"""Layers on irreps: linear maps, normalisation, gates, distances.

Features are :data:`~ase_nextham.model.irreps.Irreps`, a tensor (n, 2l+1, channels) for each irrep.
How many channels of which irreps there are is written as in e3nn: ``"32x0e+16x1o"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ase_nextham.model.irreps import Irrep, Irreps

SCALAR: Irrep = (0, 1)
"""The invariant irrep, 0e."""


def multiplicities(text: str) -> dict[Irrep, int]:
    """Channels of each irrep from words such as ``"32x0e+16x1o"``.

    Raises
    ------
    ValueError
        If the text is not of this form, or names an irrep twice.
    """
    found: dict[Irrep, int] = {}
    for term in text.replace(" ", "").split("+"):
        match = re.fullmatch(r"(\d+)x(\d+)([eo])", term)
        if not match:
            raise ValueError(f"{text!r}: expected terms like '16x1o' joined by '+', not {term!r}")
        irrep = (int(match[2]), 1 if match[3] == "e" else -1)
        if irrep in found:
            raise ValueError(f"{text!r} names {match[2]}{match[3]} twice")
        found[irrep] = int(match[1])
    return dict(sorted(found.items()))


def irrep_name(irrep: Irrep) -> str:
    """``"1o"`` for (1, -1)."""
    l, parity = irrep
    return f"{l}{'e' if parity == 1 else 'o'}"


def summed(*several: Mapping[Irrep, int]) -> dict[Irrep, int]:
    """Channels of several sets of features side by side."""
    irreps = sorted(set().union(*several))
    return {irrep: sum(some.get(irrep, 0) for some in several) for irrep in irreps}


def joined(*several: Irreps) -> Irreps:
    """Several sets of features side by side, the channels of the first before the others'."""
    irreps = sorted(set().union(*several))
    return {
        irrep: torch.cat([some[irrep] for some in several if irrep in some], dim=2)
        for irrep in irreps
    }


def added(first: Irreps, second: Irreps) -> Irreps:
    """The sum of two sets of the same features."""
    return {irrep: x + second[irrep] for irrep, x in first.items()}


def taken(features: Irreps, index) -> Irreps:
    """Some rows of features, by a slice or by integers."""
    if isinstance(index, slice):
        return {irrep: x[index] for irrep, x in features.items()}
    return {irrep: x.index_select(0, index) for irrep, x in features.items()}


class Linear(nn.Module):
    """Mixes the channels of each irrep: one matrix product per irrep; a bias on scalars.

    Outputs of an irrep that the inputs lack are zero.
    """

    def __init__(
        self, inputs: Mapping[Irrep, int], outputs: Mapping[Irrep, int], *, bias: bool = True
    ):
        super().__init__()
        self.outputs = dict(outputs)
        self.weights = nn.ParameterDict(
            {
                irrep_name(irrep): nn.Parameter(
                    torch.randn(inputs[irrep], width) / sqrt(max(inputs[irrep], 1))
                )
                for irrep, width in outputs.items()
                if irrep in inputs
            }
        )
        bias = bias and SCALAR in outputs
        self.bias = nn.Parameter(torch.zeros(outputs[SCALAR])) if bias else None

    def forward(self, features: Irreps) -> Irreps:
        first = next(iter(features.values()))
        mixed = {}
        for irrep, width in self.outputs.items():
            if irrep_name(irrep) in self.weights:
                mixed[irrep] = features[irrep] @ self.weights[irrep_name(irrep)]
            else:
                mixed[irrep] = first.new_zeros(len(first), 2 * irrep[0] + 1, width)
        if self.bias is not None:
            mixed[SCALAR] = mixed[SCALAR] + self.bias
        return mixed


class LayerNorm(nn.Module):
    """Scalars to mean 0 and variance 1; all other irreps, together, to a mean square of 1.

    Irreps of l > 0 share one factor, in which every irrep has the same weight, so that those that
    vanish by symmetry stay small beside the others (Liao et al., arXiv:2306.12059). ``SMALL`` keeps
    features that vanish altogether, as those of an atom alone, from becoming rounding errors
    blown up.
    """

    EPSILON = 1e-5
    SMALL = 1e-3

    def __init__(self, channels: Mapping[Irrep, int]):
        super().__init__()
        self.weights = nn.ParameterDict(
            {irrep_name(irrep): nn.Parameter(torch.ones(n)) for irrep, n in channels.items()}
        )
        self.bias = nn.Parameter(torch.zeros(channels[SCALAR]))

    def forward(self, features: Irreps) -> Irreps:
        scalars = features[SCALAR]
        others = {irrep: x for irrep, x in features.items() if irrep != SCALAR}
        weight = self.weights[irrep_name(SCALAR)]
        normal = {
            SCALAR: nn.functional.layer_norm(
                scalars, scalars.shape[2:], weight, self.bias, self.EPSILON
            )
        }
        if others:
            squares = [
                x.square().sum(dim=(1, 2)) / (x.shape[1] * x.shape[2]) for x in others.values()
            ]
            factor = (sum(squares) / len(squares) + self.SMALL).rsqrt()[:, None, None]
            for irrep, x in others.items():
                normal[irrep] = x * (factor * self.weights[irrep_name(irrep)])
        return {irrep: normal[irrep] for irrep in features}


class FeedForward(nn.Module):
    """Linear map, gate, linear map.

    The gate passes scalars through SiLU and multiplies each channel of the other irreps by the
    sigmoid of a scalar of its own, which leaves its direction alone.
    """

    def __init__(
        self,
        inputs: Mapping[Irrep, int],
        hidden: Mapping[Irrep, int],
        outputs: Mapping[Irrep, int],
    ):
        super().__init__()
        self.hidden = dict(hidden)
        gates = sum(width for irrep, width in hidden.items() if irrep != SCALAR)
        wide = self.hidden | {SCALAR: hidden[SCALAR] + gates}
        self.first = Linear(inputs, wide)
        self.second = Linear(hidden, outputs)

    def forward(self, features: Irreps) -> Irreps:
        x = self.first(features)
        others = {irrep: width for irrep, width in self.hidden.items() if irrep != SCALAR}
        scalars, *gates = x[SCALAR].split([self.hidden[SCALAR], *others.values()], dim=2)
        x[SCALAR] = silu(scalars)
        for irrep, gate in zip(others, gates, strict=True):
            x[irrep] = x[irrep] * torch.sigmoid(gate)
        return self.second(x)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for first, second in pairwise(widths):
        layers += [nn.Linear(first, second), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class Gaussians(nn.Module):
    """Distances as a set of Gaussians, ``exp(-(r - d_k)^2 / (2 sigma^2))``: eq. (18) of the paper.

    Their centres are spread evenly over 0 ... ``cutoff``, ``sigma`` is their spacing.
    """

    def __init__(self, count: int, cutoff: float):
        super().__init__()
        self.count, self.spacing = count, cutoff / (count - 1)

    def forward(self, distance: Tensor) -> Tensor:
        """Shape (n, count) for distances (n,) in Angstrom."""
        k = torch.arange(self.count, dtype=distance.dtype, device=distance.device)
        return torch.exp(-0.5 * (distance[:, None] / self.spacing - k).square())


class DistanceWeights(nn.Module):
    """Factors for the channels of each sector that depend on the distance.

    They begin near 1.
    """

    def __init__(self, gaussians: int, widths: Sequence[int]):
        super().__init__()
        self.widths = list(widths)
        self.network = mlp(gaussians, gaussians, sum(self.widths))

    def forward(self, gaussians: Tensor) -> list[Tensor]:
        """For each sector, shape (n, 1, channels)."""
        return list((1 + self.network(gaussians))[:, None].split(self.widths, dim=2))


def smooth_step(x: Tensor) -> Tensor:
    """0 for x < 0, 1 for x > 1, and twice continuously differentiable between them."""
    x = x.clamp(0, 1)
    return x**3 * (10 - 15 * x + 6 * x**2)
