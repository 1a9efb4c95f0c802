"""Tensor products with the harmonics of a bond, done in the frame of the bond.

A product of features with the spherical harmonics ``Y(r_ij)``, summed over all couplings by 3j
symbols, is the same for every direction of the bond once the features are turned so that the bond
points along z. There ``Y`` has m = 0 only, and what is left of the 3j symbols is that m and the
mirror planes through the bond are conserved: the group C_inf,v with its irreps Sigma+, Sigma-, Pi,
Delta, ... (as in the bond integrals of Slater and Koster). So the tensor product is one matrix
product for each of these *sectors*, for all bonds together, instead of a sum over hundreds of
small couplings. It is the same set of maps: for features of l1 and l3 there are as many free
weights as there are l2 in |l1-l3| ... l1+l3 (Passaro and Zitnick, arXiv:2302.03655, there for
SO(3) without parity).

How a bond is turned about itself is arbitrary and drops out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from math import sqrt

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from ase_nextham.model.angular import rotation
from ase_nextham.model.irreps import Irrep, Irreps

Sectors = list[Tensor]
"""Features in the frame of the bond: Sigma+ and Sigma- (n, 1, channels), then for m = 1, 2, ...
(n, 2, channels). The channels are those of all irreps that take part, in ascending order."""


def sectors(irreps: Iterable[Irrep]) -> list[list[Irrep]]:
    """The irreps that take part in Sigma+, Sigma-, Pi, Delta, ..., each in ascending order."""
    irreps = sorted(irreps)
    lmax = max((l for l, _ in irreps), default=0)
    sigma = [[(l, p) for l, p in irreps if p == sign * (-1) ** l] for sign in (1, -1)]
    return sigma + [[(l, p) for l, p in irreps if l >= m] for m in range(1, lmax + 1)]


def sector_channels(multiplicities: Mapping[Irrep, int]) -> list[int]:
    """Number of channels in each of :func:`sectors`."""
    return [sum(multiplicities[irrep] for irrep in some) for some in sectors(multiplicities)]


class BondFrames:
    """The rotations that turn bonds onto the z axis, for features up to some l.

    Parameters
    ----------
    vectors
        Bonds, shape (n, 3), float64, none of length zero.
    lmax
        Largest l of the features.
    dtype
        Of the features.
    """

    def __init__(self, vectors: Tensor, lmax: int, dtype: torch.dtype):
        x, y, z = (vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)).unbind(1)
        across = torch.hypot(x, y)
        along_z = across == 0
        safe = torch.where(along_z, 1, across)
        polar = _powers(torch.complex(z, across), lmax)
        azimuth = _powers(torch.complex(torch.where(along_z, 1, x / safe), y / safe), lmax)
        self._turn: dict[Irrep, Tensor] = {}
        for l in range(lmax + 1):
            table = torch.as_tensor(_polar_rotation(l), device=vectors.device)
            tilt = torch.cat([polar.real[:, : l + 1], polar.imag[:, 1 : l + 1]], dim=1) @ table
            tilt = tilt.view(-1, 2 * l + 1, 2 * l + 1)
            real, imaginary = azimuth.real[:, 1 : l + 1], azimuth.imag[:, 1 : l + 1]
            cosine = torch.cat([real.flip(1), torch.ones_like(x)[:, None], real], dim=1)
            sine = torch.cat([imaginary.flip(1), torch.zeros_like(x)[:, None], -imaginary], dim=1)
            turn = tilt * cosine[:, None] + tilt.flip(2) * sine[:, None]
            natural = (-1) ** l
            self._turn[l, natural] = turn.to(dtype)
            # irreps of the other parity are odd where these are even in a mirror plane: times i
            swap = [0, *(k for m in range(1, l + 1) for k in (2 * m, 2 * m - 1))]
            sign = turn.new_tensor([1.0] + [-1.0, 1.0] * l)
            self._turn[l, -natural] = (turn[:, swap] * sign[:, None]).to(dtype)

    def align(self, features: Irreps) -> Sectors:
        """Features in the frame of the bond."""
        turned = {irrep: torch.bmm(self._turn[irrep], features[irrep]) for irrep in features}
        found = []
        for k, some in enumerate(sectors(features)):
            rows = slice(0, 1) if k < 2 else slice(2 * k - 3, 2 * k - 1)
            pieces = [turned[irrep][:, rows] for irrep in some]
            if pieces:
                found.append(torch.cat(pieces, dim=2))
            else:
                first = next(iter(features.values()))
                found.append(first.new_zeros(len(first), 1, 0))
        return found

    def restore(self, aligned: Sectors, multiplicities: Mapping[Irrep, int]) -> Irreps:
        """Features in the frame of the crystal again; the inverse of :meth:`align`."""
        rows: dict[Irrep, list[Tensor]] = {irrep: [] for irrep in sorted(multiplicities)}
        for some, sector in zip(sectors(multiplicities), aligned, strict=True):
            if some:
                pieces = sector.split([multiplicities[irrep] for irrep in some], dim=2)
                for irrep, piece in zip(some, pieces, strict=True):
                    rows[irrep].append(piece)
        return {
            irrep: torch.bmm(self._turn[irrep].transpose(1, 2), torch.cat(some, dim=1))
            for irrep, some in rows.items()
        }


def _powers(unit: Tensor, highest: int) -> Tensor:
    """unit^0 ... unit^highest of complex numbers, shape (n, highest + 1)."""
    powers = [torch.ones_like(unit)]
    for _ in range(highest):
        powers.append(powers[-1] * unit)
    return torch.stack(powers, dim=1)


@cache
def _polar_rotation(l: int) -> ndarray:
    """The rotation by -theta about y as a linear function of cos(k theta) and sin(k theta).

    Returns
    -------
    ndarray
        Shape (2l+1, (2l+1)^2): from 1, cos(theta) ... cos(l theta), sin(theta) ... sin(l theta)
        to the matrix, whose rows are ordered m = 0, 1, -1, 2, -2, ...
    """
    z_to_y = rotation(l, np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]))
    order = [l, *(l + sign * m for m in range(1, l + 1) for sign in (1, -1))]
    terms = np.zeros((2 * l + 1, 2 * l + 1, 2 * l + 1))
    terms[0, l, l] = 1
    for m in range(1, l + 1):
        terms[m, l + m, l + m] = terms[m, l - m, l - m] = 1
        terms[l + m, l + m, l - m] = 1
        terms[l + m, l - m, l + m] = -1
    return (z_to_y @ terms @ z_to_y.T)[:, order].reshape(2 * l + 1, -1)


class AlignedLinear(nn.Module):
    """A linear map of features in the frame of the bond: one matrix for each sector.

    Parameters
    ----------
    inputs, outputs
        Channels of each irrep.
    scalars
        Further invariant channels, which stand last in Sigma+ of the output.
    highest
        Largest m of the inputs, where they are known to be zero beyond it.
    """

    def __init__(
        self,
        inputs: Mapping[Irrep, int],
        outputs: Mapping[Irrep, int],
        scalars: int = 0,
        *,
        highest: int | None = None,
    ):
        super().__init__()
        self.widths = sector_channels(outputs)
        self.widths[0] += scalars
        widths = sector_channels(inputs)
        if highest is not None:
            widths = widths[: 2 + highest]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(a, b) / sqrt(max(a, 1)))
            for a, b in zip(widths, self.widths, strict=False)
        )

    def forward(self, aligned: Sectors) -> Sectors:
        """Sectors of the outputs; zero for an m that the inputs lack."""
        products = [x @ weight for x, weight in zip(aligned, self.weights, strict=False)]
        first = aligned[0]
        return products + [
            first.new_zeros(len(first), 2, width) for width in self.widths[len(products) :]
        ]
