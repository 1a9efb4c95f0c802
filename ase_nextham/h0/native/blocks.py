"""Compact blocks of grid points, and the atoms whose orbitals reach each of them.

The blocks cut a reduced cell of the lattice into nearly cubic pieces, whatever cell the crystal is
given in: a long, thin block would touch many more orbitals than it has points inside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce
from numba import njit
from numpy import ndarray

_compiled = njit(cache=True, nogil=True, error_model="numpy")


@dataclass(frozen=True, eq=False)
class GridBlocks:
    """Grid points, grouped by where they are.

    Parameters
    ----------
    shape
        Number of grid points along each vector of the cell given.
    cell
        A reduced cell of the same lattice in Bohr, shape (3, 3); points lie inside.
    operation
        Integer matrix with ``cell = operation @ given cell``.
    points
        Index of each grid point in the flattened grid, block after block, shape (npoints,).
    first
        Where each block begins in ``points``, and the end, shape (nblocks + 1,).
    centers
        Cartesian, in Bohr, shape (nblocks, 3).
    radius
        No point is farther from the centre of its block, in Bohr.
    """

    shape: tuple[int, int, int]
    cell: ndarray
    operation: ndarray
    points: ndarray
    first: ndarray
    centers: ndarray
    radius: float

    def __len__(self):
        return len(self.centers)

    @property
    def fractions(self) -> ndarray:
        """Matrix F with which point (i1, i2, i3) is at ``((i1, i2, i3) @ F mod 1) @ cell``."""
        inverse = np.rint(np.linalg.inv(self.operation))
        return inverse / np.array(self.shape)[:, None]


@dataclass(frozen=True, eq=False)
class Images:
    """Atoms in the cells around, sorted by atom and lattice vector.

    Parameters
    ----------
    atom
        Shape (nimages,).
    shift
        Lattice vector R in units of the given cell, integer, shape (nimages, 3).
    position
        ``tau[atom] + shift @ cell`` in Bohr, shape (nimages, 3).
    reach
        Cutoff of the orbitals in Bohr, shape (nimages,).
    """

    atom: ndarray
    shift: ndarray
    position: ndarray
    reach: ndarray


def grid_blocks(cell: ndarray, shape: tuple[int, int, int], size: int) -> GridBlocks:
    """Divide a grid into blocks of about ``size`` points."""
    cell = np.asarray(cell, float)
    reduced, operation = minkowski_reduce(cell)
    operation = np.rint(operation)
    reduced = operation @ cell
    lengths = np.linalg.norm(reduced, axis=1)
    # blocks have the angles of the cell; this edge gives them the volume of `size` points
    edge = (size * np.prod(lengths) / np.prod(shape)) ** (1 / 3)
    counts = np.maximum(1, np.rint(lengths / edge)).astype(np.int64)
    points = np.empty(np.prod(shape), np.uint32 if np.prod(shape) < 2**32 else np.int64)
    first = np.zeros(np.prod(counts) + 1, np.int64)
    fractions = np.rint(np.linalg.inv(operation)) / np.array(shape)[:, None]
    _sort_points(np.array(shape), fractions, counts, points, first)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), axis=-1)
    centers = ((index.reshape(-1, 3) + 0.5) / counts) @ reduced
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    radius = np.linalg.norm(corners * 0.5 / counts @ reduced, axis=1).max()
    return GridBlocks(
        tuple(shape), reduced, operation, points, first, centers, float(radius) + 1e-6
    )


def images_near(blocks: GridBlocks, tau: ndarray, reach: ndarray) -> Images:
    """All images of the atoms whose orbitals may reach into the cell of the blocks.

    Parameters
    ----------
    tau
        Cartesian positions in Bohr, shape (natoms, 3); they need not be inside the cell.
    reach
        Cutoff of the orbitals of each atom in Bohr, shape (natoms,).
    """
    inverse = np.linalg.inv(blocks.cell)
    fractional = tau @ inverse
    margin = np.asarray(reach)[:, None] * np.linalg.norm(inverse, axis=0)
    low = np.ceil(-margin - fractional).astype(np.int64)
    high = np.floor(1 + margin - fractional).astype(np.int64)
    counts = np.prod(high - low + 1, axis=1)
    atom = np.repeat(np.arange(len(tau)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    widths = (high - low + 1)[atom]
    steps = np.column_stack(
        [
            number // (widths[:, 1] * widths[:, 2]),
            number // widths[:, 2] % widths[:, 1],
            number % widths[:, 2],
        ]
    )
    shift = np.rint((low[atom] + steps) @ blocks.operation).astype(np.int64)
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], atom))
    position = tau[atom] + (low[atom] + steps) @ blocks.cell
    return Images(
        atom[order], shift[order], np.ascontiguousarray(position[order]), reach[atom[order]]
    )


def block_images(blocks: GridBlocks, images: Images) -> tuple[ndarray, ndarray]:
    """Which images may reach into each block, by cell lists.

    Returns
    -------
    tuple
        ``first`` (nblocks + 1,) and ``index``: the images of block b are
        ``index[first[b] : first[b + 1]]``, ascending.
    """
    inverse = np.linalg.inv(blocks.cell)
    heights = 1 / np.linalg.norm(inverse, axis=0)
    reach = float(images.reach.max(initial=0.0)) + blocks.radius
    width = 0.5 * reach / heights  # of one cell of the lists, in fractions of the cell
    fractional = images.position @ inverse
    origin = fractional.min(axis=0, initial=0.0)
    cells = (np.floor((fractional - origin) / width)).astype(np.int64)
    counts = cells.max(axis=0, initial=0) + 1
    flat = (cells[:, 0] * counts[1] + cells[:, 1]) * counts[2] + cells[:, 2]
    order = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[order], np.arange(np.prod(counts) + 1))
    arguments = (
        blocks.centers,
        blocks.centers @ inverse,
        blocks.radius,
        images.position,
        images.reach,
        origin,
        width,
        reach / heights,
        counts,
        starts,
        order,
    )
    first = np.zeros(len(blocks) + 1, np.int64)
    _list_images(*arguments, first, np.empty(0, np.int32))
    first = np.concatenate([[0], np.cumsum(first[:-1])])
    index = np.empty(first[-1], np.int32)
    _list_images(*arguments, first, index)
    return first, index


@_compiled
def _sort_points(shape, fractions, counts, points, first):
    """Counting sort of the grid points by block."""
    bins = np.empty(points.size, np.int32)
    for step in range(2):
        p = 0
        for i in range(shape[0]):
            for j in range(shape[1]):
                for k in range(shape[2]):
                    if step == 0:
                        b = 0
                        for axis in range(3):
                            x = (
                                i * fractions[0, axis]
                                + j * fractions[1, axis]
                                + k * fractions[2, axis]
                            )
                            x -= np.floor(x)
                            cell = min(int(x * counts[axis]), counts[axis] - 1)
                            b = b * counts[axis] + cell
                        bins[p] = b
                        first[b + 1] += 1
                    else:
                        b = bins[p]
                        points[first[b]] = p
                        first[b] += 1
                    p += 1
        if step == 0:
            for b in range(first.size - 1):
                first[b + 1] += first[b]
    for b in range(first.size - 1, 0, -1):
        first[b] = first[b - 1]
    first[0] = 0


@_compiled
def _list_images(
    centers,
    fractional,
    radius,
    position,
    reach,
    origin,
    width,
    extent,
    counts,
    starts,
    order,
    first,
    index,
):
    """Count the images of each block in ``first``; or list them, where ``index`` has room."""
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for b in range(centers.shape[0]):
        for axis in range(3):
            x = fractional[b, axis] - origin[axis]
            low[axis] = max(0, int(np.floor((x - extent[axis]) / width[axis])))
            high[axis] = min(counts[axis] - 1, int(np.floor((x + extent[axis]) / width[axis])))
        if low[2] > high[2]:
            low[0] = high[0] + 1  # nothing is near
        found = 0
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                row = (i * counts[1] + j) * counts[2]
                for k in range(starts[row + low[2]], starts[row + high[2] + 1]):
                    image = order[k]
                    dx = position[image, 0] - centers[b, 0]
                    dy = position[image, 1] - centers[b, 1]
                    dz = position[image, 2] - centers[b, 2]
                    limit = reach[image] + radius
                    if dx * dx + dy * dy + dz * dz < limit * limit:
                        if index.size:
                            index[first[b] + found] = image
                        found += 1
        if index.size:
            index[first[b] : first[b] + found].sort()
        else:
            first[b] = found
