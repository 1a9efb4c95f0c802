"""Which part of a Hamiltonian a network reads and which it corrects, said once.

``"scalar"``
    The real part that is the same for both spins, (up-up + down-down) / 2. It turns with the
    crystal as a matrix without spin does, and is all that changes on the way to self-consistency
    where there is no magnetism: dH is the matrix of a local potential. H(0) without spin and H(0)
    with spin-orbit coupling have nearly the same one.
``"collinear"``
    The mean of spin up and down, and half their difference.
``"spinor"``
    All four spin blocks, real and imaginary.

Of the last two, some channels change sign under time reversal (for collinear spin: when up and
down are exchanged). They are known by :attr:`PartIrreps.odd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ase_nextham.matrix import LCAOMatrix
from ase_nextham.model.irreps import BlockIrreps, Irrep, Irreps

PARTS = ("scalar", "collinear", "spinor")
"""Names of the parts."""


def check_part(part: str) -> None:
    """Raise ValueError for a name that is not in :data:`PARTS`."""
    if part not in PARTS:
        raise ValueError(f"unknown part of a Hamiltonian {part!r}; known: {', '.join(PARTS)}")


def part_elements(matrix: LCAOMatrix, part: str) -> ndarray:
    """One part of a matrix, its elements in the order of ``LCAOMatrix.data``.

    Returns
    -------
    ndarray
        ``"scalar"``: real, shape (size,), as an unpolarised matrix on the same pairs.
        ``"collinear"``: real, (2, size), mean and half the difference. ``"spinor"``: complex,
        (size,).

    Raises
    ------
    ValueError
        If the matrix does not have that part: collinear of a spinor matrix.
    """
    check_part(part)
    if part == "spinor":
        return matrix.with_spin("spinor").data.astype(complex)
    if matrix.spin == "spinor":
        if part == "collinear":
            raise ValueError("a spinor matrix has no collinear part; use 'scalar' or 'spinor'")
        scalar = np.empty(matrix.offsets[-1] // 4)
        for places, spinor in _scalar_places(matrix):
            up, down = spinor[:, 0::2, 0::2], spinor[:, 1::2, 1::2]
            scalar[places] = (matrix.data[up].real + matrix.data[down].real) / 2
        return scalar
    up, down = matrix.data.real if matrix.spin == "collinear" else (matrix.data.real,) * 2
    mean = (up + down) / 2
    return mean if part == "scalar" else np.stack([mean, (up - down) / 2])


def with_elements(elements: ndarray, part: str, like: LCAOMatrix) -> LCAOMatrix:
    """The matrix whose one part has these elements and whose others are zero.

    Parameters
    ----------
    elements
        As :func:`part_elements` returns them for ``like``.
    like
        Matrix with the basis, pairs and spin of the result.

    Raises
    ------
    ValueError
        If that part needs more spin than ``like`` has.
    """
    check_part(part)
    if part == "spinor":
        if like.spin != "spinor":
            raise ValueError(f"a spinor correction cannot be added to a matrix that is {like.spin}")
        return replace(like, data=elements)
    if part == "collinear":
        if like.spin != "collinear":
            raise ValueError(
                f"a collinear correction cannot be added to a matrix that is {like.spin}"
            )
        mean, half = elements
        return replace(like, data=np.stack([mean + half, mean - half]))
    return replace(like, spin="unpolarised", data=elements).with_spin(like.spin)


def _scalar_places(matrix: LCAOMatrix):
    """For the groups of blocks of a spinor matrix: places without spin, and places with it."""
    for _, _, _, elements in matrix.block_groups():
        rows, columns = elements.shape[1] // 2, elements.shape[2] // 2
        inside = np.arange(rows * columns).reshape(rows, columns)
        yield (elements[:, 0, 0] // 4)[:, None, None] + inside, elements


class PartIrreps:
    """The irreps of one part, for the padded blocks of some shells.

    Parameters
    ----------
    shells
        Angular momentum of each shell of a padded block, in ascending order.
    part
        One of :data:`PARTS`.

    Attributes
    ----------
    multiplicities
        Number of channels of each irrep.
    leading
        Shape of the axes before rows and columns: (2,) for ``"collinear"``.
    """

    def __init__(self, shells: Sequence[int], part: str):
        check_part(part)
        self.part = part
        self.leading = (2,) if part == "collinear" else ()
        self._blocks = BlockIrreps(shells, "spinor" if part == "spinor" else "unpolarised")
        factor = 2 if part == "collinear" else 1
        self.multiplicities: dict[Irrep, int] = {
            irrep: factor * n for irrep, n in self._blocks.multiplicities.items()
        }

    @property
    def odd(self) -> dict[Irrep, ndarray] | None:
        """Which channels change sign under time reversal; None if none does."""
        if self.part == "scalar":
            return None
        if self.part == "collinear":
            return {i: np.arange(n) >= n // 2 for i, n in self.multiplicities.items()}
        return {
            irrep: np.array([channel.time_reversal < 0 for channel in channels])
            for irrep, channels in self._blocks.channels.items()
        }

    def to_irreps(self, blocks: Tensor) -> Irreps:
        """Irreps of blocks (n, *leading, rows, columns)."""
        if self.part != "collinear":
            return self._blocks.to_irreps(blocks)
        mean, half = (self._blocks.to_irreps(blocks[:, k]) for k in range(2))
        return {irrep: torch.cat([mean[irrep], half[irrep]], dim=2) for irrep in mean}

    def to_blocks(self, irreps: Irreps) -> Tensor:
        """Blocks of irreps; the inverse of :meth:`to_irreps`."""
        if self.part != "collinear":
            return self._blocks.to_blocks(irreps)
        halves = {irrep: x.chunk(2, dim=2) for irrep, x in irreps.items()}
        parts = [
            self._blocks.to_blocks({irrep: some[k].contiguous() for irrep, some in halves.items()})
            for k in range(2)
        ]
        return torch.stack(parts, dim=1)
