"""The published networks' tensor products with harmonics, evaluated in the frame of the bond.

A published product takes every path (l_i, l_j, l) from a feature and a harmonic to an output
apart, and gives each channel of each path a weight. In the frame of the bond (:mod:`.aligned`) a
path is one number for each sector, and the linear layer that follows is one matrix for each output
and sector.

Bonds of length zero have no frame; their harmonics are zero but for l = 0, whose paths (``alone``)
are the only ones that they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ase_nextham.model.aligned import BondFrames, Sectors, sectors
from ase_nextham.model.angular import wigner_3j
from ase_nextham.model.irreps import Irrep
from ase_nextham.model.released_layers import EVEN, Blocks

LMAX = 5
"""Highest harmonic."""


@dataclass(frozen=True, eq=False)
class Term:
    """The channels of all paths to one output irrep in one sector.

    Parameters
    ----------
    rows
        Where they stand in the published input of the linear layer.
    weights
        Their weights, as places in the published order.
    places
        The same, as places in the order of :attr:`Product.weight_order`; a slice if possible.
    channels
        The channel of the features that each takes, as places in the sector.
    factors
        The number that the path is in this sector.
    alone
        1 for paths of the harmonic l = 0, else 0.
    """

    rows: Tensor
    weights: Tensor
    places: Tensor | slice
    channels: Tensor
    factors: ndarray
    alone: ndarray


class Product:
    """A depthwise tensor product of features with harmonics.

    Parameters
    ----------
    blocks
        Of the features, each irrep once, in published order.
    targets
        Irreps to keep, beside even scalars.

    Attributes
    ----------
    size
        Number of weights: one for each path and channel.
    output
        Irreps and their channels in published order, the input of the next linear layer.
    terms
        :class:`Term` by output irrep and sector.
    weight_order
        Published place of each weight when those of one output stand together.
    alone
        Which weights in this order are those of the harmonic l = 0.

    Notes
    -----
    ``t_u = sqrt(2l+1) sum 3j(l_i, l_j, l) x_u Y_j``, with ``Y_j0 = sqrt(2 l_j + 1)`` in the frame.
    """

    def __init__(self, blocks: Blocks, targets: Sequence[Irrep]):
        kept = set(targets) | {EVEN}
        self.size = 0
        paths: dict[Irrep, list] = {}  # by output: (input irrep, l_j, first weight, first row, mul)
        total: dict[Irrep, int] = {}
        for mul, (li, pi) in blocks:
            for lj in range(LMAX + 1):
                for l in range(abs(li - lj), li + lj + 1):
                    irrep = (l, pi * (-1) ** lj)
                    if irrep in kept:
                        row = total.get(irrep, 0)
                        paths.setdefault(irrep, []).append(((li, pi), lj, self.size, row, mul))
                        total[irrep] = row + mul
                        self.size += mul
        even_first = sorted(total, key=lambda irrep: (irrep[0], -irrep[1]))
        self.output: Blocks = tuple((total[irrep], irrep) for irrep in even_first)
        self._muls = {irrep: mul for mul, irrep in sorted(blocks, key=lambda block: block[1])}
        channels = _sector_channels(self._muls)
        self.terms: dict[tuple[Irrep, int], Term] = {}
        order, alone = [], []
        for irrep in sorted(paths):
            # those that reach high sectors first: then each sector takes the first so many
            some = sorted(paths[irrep], key=lambda path: -path[0][0])
            self._add_terms(irrep, some, channels, sum(map(len, order)))
            for _, lj, weight, _, mul in some:
                order.append(np.arange(weight, weight + mul))
                alone.append(np.full(mul, lj == 0))
        self.weight_order = torch.from_numpy(np.concatenate(order))
        self.alone = torch.from_numpy(np.concatenate(alone))
        self._on_device: dict[torch.device, dict] = {}

    def _add_terms(self, irrep: Irrep, paths: list, channels: list[dict], start: int) -> None:
        for sector, place in enumerate(channels):
            found = []
            begin = start
            for source, lj, weight, row, mul in paths:
                if source in place and irrep in place:
                    factor = path_factors(source, lj, irrep)[sector]
                    own = np.arange(mul)
                    columns = (row + own, weight + own, begin + own, place[source] + own)
                    found.append((*columns, np.full(mul, factor), np.full(mul, lj == 0)))
                begin += mul
            if found:
                rows, weights, places, taken, factors, alone = map(
                    np.concatenate, zip(*found, strict=True)
                )
                whole = np.array_equal(places, np.arange(places[0], places[0] + len(places)))
                self.terms[irrep, sector] = Term(
                    torch.from_numpy(rows),
                    torch.from_numpy(weights),
                    slice(places[0], places[-1] + 1) if whole else torch.from_numpy(places),
                    torch.from_numpy(taken),
                    factors,
                    alone.astype(float),
                )

    # --- matrices of the layers that follow -----------------------------------------------------

    def after_weights(self, linear: Mapping[Irrep, Tensor]) -> dict[tuple[Irrep, int], Tensor]:
        """Matrices of a linear layer behind paths that each edge weights differently."""
        return {
            (irrep, sector): linear[irrep][term.rows.to(linear[irrep].device)]
            * torch.as_tensor(term.factors).to(linear[irrep])[:, None]
            for (irrep, sector), term in self.terms.items()
        }

    def merged(
        self, weights: Tensor, linear: Mapping[Irrep, Tensor], *, alone: bool
    ) -> list[Tensor]:
        """One matrix for each sector: paths with weights common to all edges and a linear layer.

        Parameters
        ----------
        weights
            Of all paths and channels, in published order.
        linear
            Matrices of the layer, by irrep.
        alone
            Whether only for paths of the harmonic l = 0.
        """
        muls = self._muls
        merged = []
        for sector, some in enumerate(sectors(muls)):
            rows = sum(muls[irrep] for irrep in some)
            pieces = []
            for irrep in some:
                term = self.terms[irrep, sector]
                factors = term.factors * term.alone if alone else term.factors
                device = weights.device
                factors = weights[term.weights.to(device)] * torch.as_tensor(factors).to(weights)
                matrix = linear[irrep][term.rows.to(device)] * factors[:, None]
                empty = matrix.new_zeros(rows, matrix.shape[1])
                pieces.append(empty.index_add(0, term.channels.to(device), matrix))
            merged.append(torch.cat(pieces, dim=1))
        return merged

    # --- evaluation -----------------------------------------------------------------------------

    def weighted(
        self, x: Sectors, weights: Tensor, matrices: Mapping[tuple[Irrep, int], Tensor]
    ) -> dict[tuple[Irrep, int], Tensor]:
        """All paths with the weights of each edge, and the layer :meth:`after_weights`.

        Parameters
        ----------
        x
            Features in the frame of the bond.
        weights
            Shape (size, n), in :attr:`weight_order`.

        Returns
        -------
        dict
            By output irrep and sector, (n, 1 or 2, outputs).
        """
        # channels first: to repeat one is then to copy a row
        rows = [sector.permute(2, 0, 1).contiguous() for sector in x]
        weights = weights[:, :, None]
        found = {}
        for (irrep, sector), (channels, places) in self._indices(weights.device).items():
            taken = rows[sector].index_select(0, channels)
            if isinstance(places, slice):
                taken = taken * weights[places]
            else:
                taken = taken * weights.index_select(0, places)
            found[irrep, sector] = (taken.flatten(1).T @ matrices[irrep, sector]).view(
                *taken.shape[1:], -1
            )
        return found

    def _indices(self, device: torch.device) -> dict:
        """Channels and places of the terms on a device, brought there once."""
        if device not in self._on_device:
            self._on_device[device] = {
                key: (
                    term.channels.to(device),
                    term.places if isinstance(term.places, slice) else term.places.to(device),
                )
                for key, term in self.terms.items()
            }
        return self._on_device[device]


def _sector_channels(muls: Mapping[Irrep, int]) -> list[dict[Irrep, int]]:
    """For each sector where the channels of its irreps begin."""
    found = []
    for some in sectors(muls):
        starts = np.cumsum([0, *(muls[irrep] for irrep in some)])
        found.append(dict(zip(some, starts.tolist(), strict=False)))
    return found


@cache
def _in_frame(irrep: Irrep) -> tuple[ndarray, ...]:
    """Components of an irrep in each sector of the frame of a bond along z, as rows."""
    l, _ = irrep
    frames = BondFrames(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), l, torch.float64)
    aligned = frames.align({irrep: torch.eye(2 * l + 1, dtype=torch.float64)[None]})
    return tuple(rows[0].numpy() for rows in aligned)


@cache
def path_factors(source: Irrep, lj: int, target: Irrep) -> dict[int, float]:
    """What a path of the tensor product with harmonics is in each sector."""
    coupling = wigner_3j(source[0], lj, target[0])[:, lj]
    coupling = sqrt((2 * target[0] + 1) * (2 * lj + 1)) * coupling
    found = {}
    pairs = zip(_in_frame(source), _in_frame(target), strict=False)
    for sector, (rows, columns) in enumerate(pairs):
        if rows.shape[1] and columns.shape[1]:
            found[sector] = float((rows @ coupling @ columns.T)[0, 0])
    return found
