"""The sums of :mod:`.integral` with torch, for graphics processors.

Lists of what touches what are made on the host, as for the CPU. Blocks with about the same number
of orbitals are then padded to the same size and computed together: orbitals by species, one
batched matrix product, and a sum of the pieces that belong to each pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

from ase_nextham.h0.native.blocks import GridBlocks, Images, block_images, grid_blocks, images_near
from ase_nextham.h0.native.gridkernels import complete, fold, pairs_of_blocks
from ase_nextham.h0.native.integral import GridOrbitals, HalfPairs

BLOCK_SIZE = {"float64": 512, "float32": 216}
"""Grid points of a block, about: more than on a CPU, for larger matrix products."""

MEMORY = 2**30
"""Bytes of orbitals and products that are worked on at a time, about."""


def grid_integral_torch(
    potential: ndarray,
    cell: ndarray,
    tau: ndarray,
    species_index: Sequence[int],
    orbitals: Sequence[GridOrbitals],
    i: ndarray,
    j: ndarray,
    R: ndarray,
    *,
    device: str = "cuda",
    dtype: str = "float64",
    progress: bool = False,
) -> ndarray:
    """Matrix elements of a potential that is given on the grid, computed by a device of torch.

    Arguments and result are those of :func:`ase_nextham.h0.native.integral.grid_integral`, with
    the name of the device. Sums over blocks are float64 always; their order, and with it the last
    digits, may differ from run to run.

    Raises
    ------
    ValueError
        As there, or if torch has no such device.
    """
    potential = np.ascontiguousarray(potential, float)
    if potential.ndim != 4:
        raise ValueError(
            f"the potential must have shape (ncomponents, n1, n2, n3), not {potential.shape}"
        )
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype is {dtype!r}; known: 'float64', 'float32'")
    work = _Device.of(device, dtype)
    pairs, lists, arrays = _job(
        work, potential.shape[1:], cell, tau, species_index, orbitals, i, j, R
    )
    v = work.real(potential.reshape(len(potential), -1))
    result = work.zeros(len(potential), pairs.nelements, dtype=torch.float64)
    batches = lists.batches(torch.finfo(work.dtype).bits // 8)
    with torch.inference_mode():
        for batch in tqdm(batches, desc="grid", unit=" batches", disable=not progress):
            _sum_batch(work, arrays, lists, batch, v, result)
    result = result.cpu().numpy()
    weight = abs(np.linalg.det(cell)) / np.prod(potential.shape[1:])
    complete(result, weight, pairs.summed, pairs.offset, pairs.rows, pairs.columns, pairs.reverse)
    return result


def grid_integral_transpose_torch(
    gradient: ndarray,
    shape: tuple[int, int, int],
    cell: ndarray,
    tau: ndarray,
    species_index: Sequence[int],
    orbitals: Sequence[GridOrbitals],
    i: ndarray,
    j: ndarray,
    R: ndarray,
    *,
    device: str = "cuda",
) -> ndarray:
    """How a function of the matrix elements changes with the potential, by a device of torch.

    Arguments and result are those of
    :func:`ase_nextham.h0.native.integral.grid_integral_transpose`, with the name of the device.

    Raises
    ------
    ValueError
        As there, or if torch has no such device.
    """
    gradient = np.asarray(gradient, float)
    work = _Device.of(device, "float64")
    pairs, lists, arrays = _job(work, tuple(shape), cell, tau, species_index, orbitals, i, j, R)
    if gradient.shape != (pairs.nelements,):
        raise ValueError(
            f"the gradient has shape {gradient.shape}, but the pairs have {pairs.nelements} "
            "elements"
        )
    half = gradient.copy()
    fold(half, gradient, pairs.summed, pairs.offset, pairs.rows, pairs.columns, pairs.reverse)
    half = work.real(half)
    result = work.zeros(int(np.prod(shape)))
    with torch.inference_mode():
        for batch in lists.batches(8):
            _gather_batch(work, arrays, lists, batch, half, result)
    weight = abs(np.linalg.det(cell)) / np.prod(shape)
    return weight * result.cpu().numpy().reshape(shape)


def _job(
    work: _Device, shape, cell, tau, species_index, orbitals, i, j, R
) -> tuple[HalfPairs, _Lists, _Arrays]:
    """What there is to do for arguments as of :func:`grid_integral_torch`."""
    cell, tau = np.asarray(cell, float), np.asarray(tau, float)
    species = np.asarray(species_index, np.int64)
    pairs = HalfPairs.of(i, j, R, np.array([one.size for one in orbitals])[species])
    blocks = grid_blocks(cell, shape, BLOCK_SIZE[str(work.dtype).removeprefix("torch.")])
    images = images_near(blocks, tau, np.array([one.cutoff for one in orbitals])[species])
    lists = _Lists.of(blocks, images, species, orbitals, pairs)
    return pairs, lists, _Arrays.of(work, shape, blocks, images, orbitals)


@dataclass(frozen=True, eq=False)
class _Device:
    """Makes tensors in one place."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str, dtype: str) -> _Device:
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={device!r}, but torch finds no CUDA device; use device='cpu'")
        return cls(torch.device(device), getattr(torch, dtype))

    def zeros(self, *shape: int, dtype=None) -> Tensor:
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def array(self, array: ndarray) -> Tensor:
        """Integers as int64, numbers as float64."""
        array = np.asarray(array)
        wanted = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64
        return torch.from_numpy(np.array(array, wanted)).to(self.device)

    def real(self, array: ndarray) -> Tensor:
        """In working precision."""
        return self.array(array).to(self.dtype)


@dataclass(frozen=True, eq=False)
class _Lists:
    """What touches what, on the host: of each block its images, of each block its pairs."""

    npoints: ndarray  # (nblocks,)
    first: ndarray  # (nblocks + 1,), into index, species and column
    index: ndarray  # images
    species: ndarray  # of the images
    column: ndarray  # first orbital of the images in their block
    norbitals: ndarray  # (nblocks,)
    first_pair: ndarray  # (nblocks + 1,), into the next four
    left: ndarray  # position in index
    right: ndarray
    place: ndarray  # in the result
    sizes: ndarray  # orbitals of each species

    @classmethod
    def of(
        cls,
        blocks: GridBlocks,
        images: Images,
        species: ndarray,
        orbitals: Sequence[GridOrbitals],
        pairs: HalfPairs,
    ) -> _Lists:
        first, index = block_images(blocks, images)
        sizes = np.array([one.size for one in orbitals])
        own = species[images.atom[index]]
        total = np.concatenate([[0], np.cumsum(sizes[own])])
        column = total[:-1] - np.repeat(total[first[:-1]], np.diff(first))
        arguments = (first, index, images.atom, images.shift, pairs.start, pairs.key, pairs.radix)
        count = pairs_of_blocks(*arguments, np.empty((0, 4), np.int64))
        found = np.empty((count, 4), np.int64)
        pairs_of_blocks(*arguments, found)
        block = found[:, 0]
        return cls(
            np.diff(blocks.first),
            first,
            index,
            own,
            column,
            total[first[1:]] - total[first[:-1]],
            np.searchsorted(block, np.arange(len(blocks) + 1)),
            first[block] + found[:, 1],
            first[block] + found[:, 2],
            pairs.place[found[:, 3]],
            sizes,
        )

    def batches(self, bytes_per_number: int) -> list[ndarray]:
        """Blocks to be computed together: similar in size, and together within the memory."""
        order = np.argsort(-self.norbitals, kind="stable")
        order = order[(self.norbitals[order] > 0) & (self.npoints[order] > 0)]
        # orbitals, the same times V, their intermediate steps, and the products
        npoints = int(self.npoints.max(initial=1))
        need = self.norbitals * (6 * npoints + 2 * self.norbitals) * bytes_per_number
        batches, start = [], 0
        while start < len(order):
            count = max(1, int(MEMORY // need[order[start]]))
            # padding beyond an eighth is waste
            similar = np.searchsorted(
                -self.norbitals[order], -7 * self.norbitals[order[start]] // 8, side="right"
            )
            stop = min(start + count, max(int(similar), start + 1))
            batches.append(order[start:stop])
            start = stop
        return batches


@dataclass(frozen=True, eq=False)
class _Arrays:
    """What the device keeps: points, images, orbitals."""

    shape: tuple[int, int, int]
    points: Tensor
    first_point: Tensor
    fractions: Tensor
    cell: Tensor
    centers: Tensor  # of blocks, in fractions of the reduced cell
    position: Tensor  # of images
    orbitals: list[tuple[tuple[int, ...], float, float, Tensor]]

    @classmethod
    def of(
        cls,
        work: _Device,
        shape: tuple[int, int, int],
        blocks: GridBlocks,
        images: Images,
        orbitals: Sequence[GridOrbitals],
    ) -> _Arrays:
        return cls(
            shape,
            work.array(blocks.points),
            work.array(blocks.first),
            work.array(blocks.fractions),
            work.array(blocks.cell),
            work.array(blocks.centers @ np.linalg.inv(blocks.cell)),
            work.array(images.position),
            [
                (
                    tuple(int(l) for l in one.shells),
                    one.spacing,
                    one.cutoff,
                    work.real(one.coefficients),
                )
                for one in orbitals
            ],
        )


def _sum_batch(
    work: _Device, arrays: _Arrays, lists: _Lists, batch: ndarray, v: Tensor, result: Tensor
) -> None:
    """Add the products of several blocks to the result, for potentials (ncomponents, npoints)."""
    index, phi, place = _batch(work, arrays, lists, batch)
    for component, own in enumerate(v):
        weighted = phi * torch.where(index >= 0, own[index.clamp(min=0)], 0)[:, None]
        product = torch.bmm(weighted, phi.mT).view(-1)
        for source, target in _places(work, lists, batch, place, phi.shape[1]):
            result[component].index_add_(0, target, product[source].to(torch.float64))


def _gather_batch(
    work: _Device, arrays: _Arrays, lists: _Lists, batch: ndarray, half: Tensor, result: Tensor
) -> None:
    """Sum products of orbitals with the elements ``half`` at the points of several blocks."""
    index, phi, place = _batch(work, arrays, lists, batch)
    width = phi.shape[1]
    product = work.zeros(len(batch) * width * width)
    for source, target in _places(work, lists, batch, place, width):
        product[source] = half[target]
    values = (torch.bmm(product.view(-1, width, width), phi) * phi).sum(dim=1)
    inside = index >= 0
    # no other block has these points
    result[index[inside]] = values[inside]


def _batch(
    work: _Device, arrays: _Arrays, lists: _Lists, batch: ndarray
) -> tuple[Tensor, Tensor, ndarray]:
    """Several blocks padded to one size.

    Returns
    -------
    tuple
        Index of the points of each block (nbatch, npoints; -1: none); orbitals there (nbatch,
        norbitals, npoints); and where the square matrix of the block of each image begins among
        those of the batch (nimages; -1: in none).
    """
    width, npoints = int(lists.norbitals[batch].max()), int(lists.npoints[batch].max())
    index, position = _points(work, arrays, batch, npoints)
    # entries: the images of all blocks of the batch
    counts = lists.first[batch + 1] - lists.first[batch]
    entry = _ranges(lists.first[batch], counts)
    block = np.repeat(np.arange(len(batch)), counts)
    phi = work.zeros(len(batch) * width, npoints)
    for kind, (shells, spacing, cutoff, coefficients) in enumerate(arrays.orbitals):
        own = lists.species[entry] == kind
        if not own.any():
            continue
        size = lists.sizes[kind]
        at = work.array(block[own])
        vectors = position[at] - arrays.position[work.array(lists.index[entry[own]])][:, None]
        values = _orbitals(vectors, shells, spacing, cutoff, coefficients)
        rows = (block[own] * width + lists.column[entry[own]])[:, None] + np.arange(size)
        phi[work.array(rows.ravel())] = values.reshape(-1, npoints)
    place = np.full(len(lists.index), -1)
    place[entry] = block * width * width
    return index, phi.view(len(batch), width, npoints), place


def _points(work: _Device, arrays: _Arrays, batch: ndarray, npoints: int) -> tuple[Tensor, Tensor]:
    """Index (nbatch, npoints; -1: none) and position (..., 3) of the points of each block."""
    blocks = work.array(batch)
    first, last = arrays.first_point[blocks], arrays.first_point[blocks + 1]
    at = first[:, None] + torch.arange(npoints, device=work.device)
    inside = at < last[:, None]
    index = arrays.points[torch.where(inside, at, first[:, None])]
    _, n2, n3 = arrays.shape
    triple = torch.stack([index // (n2 * n3), index // n3 % n2, index % n3], dim=-1)
    x = triple.to(torch.float64) @ arrays.fractions
    x -= torch.round(x - arrays.centers[blocks][:, None])
    return torch.where(inside, index, -1), x @ arrays.cell


def _orbitals(
    vectors: Tensor, shells: tuple[int, ...], spacing: float, cutoff: float, coefficients: Tensor
) -> Tensor:
    """Orbitals of one species, shape (nentries, norbitals, npoints), at ``vectors`` (..., 3)."""
    r = torch.linalg.vector_norm(vectors, dim=-1)
    unit = (vectors / r.clamp(min=1e-9)[..., None]).to(coefficients.dtype)
    inside = r < cutoff - 1e-10
    interval = torch.floor(r / spacing).clamp(max=len(coefficients) - 1)
    t = torch.where(inside, r - interval * spacing, 0).to(coefficients.dtype)[..., None]
    n = interval.long()
    radial = coefficients[n, 3]
    for power in (2, 1, 0):
        radial = radial * t + coefficients[n, power]
    radial = torch.where(inside[..., None], radial, 0)
    harmonics = _harmonics(*unit.unbind(-1), max(shells))
    columns = [
        radial[..., k, None] * harmonics[..., l * l : (l + 1) * (l + 1)]
        for k, l in enumerate(shells)
    ]
    return torch.cat(columns, dim=-1).mT


def _harmonics(x: Tensor, y: Tensor, z: Tensor, lmax: int) -> Tensor:
    """Real harmonics of unit vectors in ABACUS's order and sign, last axis l^2 + m."""
    cosine, sine = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(lmax):
        a, b = cosine[-1], sine[-1]
        cosine.append(x * a - y * b)
        sine.append(x * b + y * a)
    rows: dict[int, Tensor] = {}
    start = np.sqrt(0.25 / np.pi)
    for m in range(lmax + 1):
        if m:
            start *= np.sqrt((2 * m + 1) / (2 * m))
        sign = np.sqrt(2.0) * (-1) ** m
        previous, current = torch.zeros_like(z), torch.full_like(z, start)
        for l in range(m, lmax + 1):
            if m == 0:
                rows[l * l] = current
            else:
                rows[l * l + 2 * m - 1] = sign * current * cosine[m]
                rows[l * l + 2 * m] = sign * current * sine[m]
            # the recursion of the normalised Legendre functions, to l + 1
            factor = np.sqrt((4 * (l + 1) ** 2 - 1) / ((l + 1) ** 2 - m * m))
            other = factor * np.sqrt((l * l - m * m) / (4 * l * l - 1)) if l > m else 0.0
            previous, current = current, factor * z * current - other * previous
    return torch.stack([rows[row] for row in range((lmax + 1) ** 2)], dim=-1)


def _places(
    work: _Device, lists: _Lists, batch: ndarray, place: ndarray, width: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Where elements of pairs stand in the square matrices of a batch, and in the result."""
    pair = _ranges(lists.first_pair[batch], np.diff(lists.first_pair)[batch])
    left, right = lists.left[pair], lists.right[pair]
    source = place[left] + lists.column[left] * width + lists.column[right]
    for a, rows in enumerate(lists.sizes):
        for b, columns in enumerate(lists.sizes):
            own = np.flatnonzero((lists.species[left] == a) & (lists.species[right] == b))
            mu, nu = (torch.arange(n, device=work.device) for n in (rows, columns))
            inner = (mu[:, None] * width + nu).view(-1)
            target = torch.arange(rows * columns, device=work.device)
            for part in np.array_split(own, max(1, len(own) * rows * columns * 24 // MEMORY)):
                if not len(part):
                    continue
                sources = work.array(source[part])[:, None] + inner
                targets = work.array(lists.place[pair[part]])[:, None] + target
                yield sources.view(-1), targets.view(-1)


def _ranges(starts: ndarray, counts: ndarray) -> ndarray:
    """``[starts[0], starts[0] + 1, ..., starts[1], ...]``, so many of each as ``counts`` says."""
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(counts[:-1])]), counts)
    return offsets + np.arange(counts.sum())
