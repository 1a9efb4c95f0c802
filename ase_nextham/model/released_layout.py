"""The vectors of the published networks: 5832 reals for each spinor block of 4s2p2d1f.

They are the irreps of :class:`~ase_nextham.model.irreps.BlockIrreps` in another order and scale:
pair of shells by pair of shells, spin scalars before spin vectors, 2916 real parts before 2916
imaginary parts, and not normalised: the transform to them multiplies squares by 2L+1 for scalars
and by (2L+1)(2l+1) for vectors.
"""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ase_nextham.model.irreps import BlockIrreps, Channel, Irrep, Irreps

SHELLS = (0, 0, 0, 0, 1, 1, 2, 2, 3)
"""Shells of the padded blocks: 27 orbitals, 54 with spin."""

SIZE = 5832
"""Numbers of one block."""


@cache
def blocks() -> tuple[tuple[Irrep, Channel], ...]:
    """The 1108 irreps of a vector in their order, and the channel that each of them is."""
    found = []
    for part in (0, 1):
        for row, l1 in enumerate(SHELLS):
            for column, l2 in enumerate(SHELLS):
                parity = (-1) ** (l1 + l2)
                orbital = range(abs(l1 - l2), l1 + l2 + 1)
                scalar = 1 - 2 * part  # time reversal: real scalars and imaginary vectors stay
                found += [((L, parity), Channel(row, column, 0, L, scalar)) for L in orbital]
                found += [
                    ((l, parity), Channel(row, column, 1, L, -scalar))
                    for L in orbital
                    for l in range(abs(L - 1), L + 2)
                ]
    return tuple(found)


@cache
def _order_and_scale() -> tuple[ndarray, ndarray]:
    """Place among the flattened irreps of each number of a vector, and its factor."""
    channels = BlockIrreps(SHELLS, "spinor").channels
    place, start = {}, 0
    for (l, parity), some in channels.items():
        for number, channel in enumerate(some):
            place[l, parity, channel] = start + number + len(some) * np.arange(2 * l + 1)
        start += (2 * l + 1) * len(some)
    order, scale = [], []
    for (l, parity), channel in blocks():
        order.append(place[l, parity, channel])
        squared = (2 * channel.L + 1) * (2 * l + 1 if channel.spin else 1)
        scale.append(np.full(2 * l + 1, sqrt(squared)))
    return np.concatenate(order), np.concatenate(scale)


def vector_of(irreps: Irreps) -> Tensor:
    """The published vector, shape (n, 5832), of the irreps of spinor blocks of :data:`SHELLS`."""
    order, scale = _order_and_scale()
    flat = torch.cat([x.flatten(1) for x in irreps.values()], dim=1)
    factor = torch.as_tensor(scale, dtype=flat.dtype, device=flat.device)
    return flat.index_select(1, torch.as_tensor(order, device=flat.device)) * factor


def irreps_of(vector: Tensor) -> Irreps:
    """Irreps of a published vector, shape (n, 5832); the inverse of :func:`vector_of`."""
    if vector.shape[1:] != (SIZE,):
        raise ValueError(f"the published vectors have shape (n, {SIZE}), not {tuple(vector.shape)}")
    order, scale = _order_and_scale()
    back = np.argsort(order)
    factor = torch.as_tensor(1 / scale[back], dtype=vector.dtype, device=vector.device)
    flat = vector.index_select(1, torch.as_tensor(back, device=vector.device)) * factor
    result, start = {}, 0
    for (l, parity), mul in BlockIrreps(SHELLS, "spinor").multiplicities.items():
        stop = start + (2 * l + 1) * mul
        result[l, parity] = flat[:, start:stop].unflatten(1, (2 * l + 1, mul))
        start = stop
    return result


def vector_of_blocks(blocks: Tensor, convention: str = "abacus") -> Tensor:
    """The published vector of padded spinor blocks, complex (n, 54, 54).

    Parameters
    ----------
    blocks
        Index ``2 * orbital + spin``, as :class:`~ase_nextham.model.irreps.PaddedBlocks` makes
        them with :data:`SHELLS`.
    convention
        Of the orbitals in them.
    """
    return vector_of(_transform(convention).to_irreps(blocks))


def blocks_of_vector(vector: Tensor, convention: str = "abacus") -> Tensor:
    """Padded spinor blocks, complex (n, 54, 54), of a published vector, all four spin parts."""
    return _transform(convention).to_blocks(irreps_of(vector))


def correction_of_vector(vector: Tensor, convention: str = "abacus") -> Tensor:
    """What the published programs add to H(0): the real part of the up-up block, (n, 27, 27).

    They add it to both spins alike. It does not turn with the crystal unless the network has
    learnt to give no moments: the spin vector's z is in it, but x and y are left out.
    """
    return blocks_of_vector(vector, convention)[:, ::2, ::2].real


@cache
def _transform(convention: str) -> BlockIrreps:
    return BlockIrreps(SHELLS, "spinor", convention=convention)
