"""TraceGrad: non-linear invariants of features, and their gradient as new features.

Yin et al. (2025), section 2.2 and appendix D of the NextHAM paper. The gradient is written out,
so that it costs one more pass through a small network, needs no graph at inference, and is
differentiated only once in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ase_nextham.model.irreps import Irrep, Irreps
from ase_nextham.model.layers import SCALAR, irrep_name


class TraceGrad(nn.Module):
    """z, a non-linear function of the invariants of some features, and its gradient.

    The invariants u are the scalars and, of every other irrep, the inner products of each two
    channels, ``sum_m x_ma x_mb / sqrt(2l+1)``: the l = 0 part of the tensor product of the
    features with themselves. ``z`` is a network of three linear layers of them. (The paper also
    multiplies scalars by scalars and has one more linear map before the network; both leave the
    set of functions as it is.)

    Parameters
    ----------
    channels
        Of the features.
    width
        Number of components of z.
    """

    def __init__(self, channels: Mapping[Irrep, int], width: int):
        super().__init__()
        self.tensors = {irrep: n for irrep, n in channels.items() if irrep != SCALAR}
        count = channels[SCALAR]
        for irrep, n in self.tensors.items():
            upper = torch.triu_indices(n, n)
            self.register_buffer(f"upper_{irrep_name(irrep)}", upper[0] * n + upper[1], False)
            # where each element of the symmetric matrix stands in its upper triangle
            place = torch.zeros(n, n, dtype=torch.int64)
            place[upper[0], upper[1]] = place[upper[1], upper[0]] = torch.arange(len(upper[0]))
            self.register_buffer(f"place_{irrep_name(irrep)}", place.flatten(), False)
            count += len(upper[0])
        self.first = nn.Linear(count, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, features: Irreps) -> tuple[Tensor, Irreps]:
        """z, shape (n, width), and the gradient of the sum of its components.

        The gradient has the shape of the features and turns as they do.
        """
        u = torch.cat([features[SCALAR][:, 0], *self._products(features)], dim=1)
        first = self.first(u)
        second = self.second(silu(first))
        z = self.last(silu(second))
        slope = (self.last.weight.sum(0) * _silu_slope(second)) @ self.second.weight
        slope = (slope * _silu_slope(first)) @ self.first.weight
        return z, self._pulled_back(slope, features)

    def _products(self, features: Irreps) -> list[Tensor]:
        products = []
        for irrep in self.tensors:
            x = features[irrep] * (1 / sqrt(sqrt(2 * irrep[0] + 1)))
            gram = torch.bmm(x.transpose(1, 2), x).flatten(1)
            products.append(gram.index_select(1, self.get_buffer(f"upper_{irrep_name(irrep)}")))
        return products

    def _pulled_back(self, slope: Tensor, features: Irreps) -> Irreps:
        """The derivative by the features from that by the invariants."""
        sizes = [features[SCALAR].shape[2]]
        sizes += [n * (n + 1) // 2 for n in self.tensors.values()]
        scalars, *parts = slope.split(sizes, dim=1)
        gradient = {SCALAR: scalars[:, None]}
        for (irrep, n), part in zip(self.tensors.items(), parts, strict=True):
            x = features[irrep] * (1 / sqrt(2 * irrep[0] + 1))
            place = self.get_buffer(f"place_{irrep_name(irrep)}")
            square = part.index_select(1, place).view(-1, n, n)
            # a product of two channels has two derivatives, that of one with itself twice one
            diagonal = torch.diagonal(square, dim1=1, dim2=2)
            gradient[irrep] = torch.bmm(x, square) + x * diagonal[:, None]
        return {irrep: gradient[irrep] for irrep in features}


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))
