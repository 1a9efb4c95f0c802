"""Matrix elements of a local potential by summation over ABACUS's grid.

``<i mu 0|V|j nu R> = sum_p phi_mu(r_p - tau_i) V(r_p) phi_nu(r_p - tau_j - R) volume / npoints``

The points are taken in compact blocks. In one block, all orbitals that reach it form a matrix
Phi (orbitals, points), and the sums of all pairs are ``Phi V Phi^T``. Points with V > 0 and V < 0
are kept apart, so that each part is ``+- A A^T`` with ``A = Phi sqrt|V|``: BLAS computes half of a
symmetric product in half of the time of a general one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray
from scipy.interpolate import CubicSpline
from scipy.linalg.blas import dsyrk, dtrmm, ssyrk
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ase_nextham.basis import MAX_L
from ase_nextham.h0.native.blocks import GridBlocks, Images, block_images, grid_blocks, images_near
from ase_nextham.h0.native.gridkernels import complete, evaluate, fold, gather, scale, scatter

BLOCK_SIZE = {"float64": 216, "float32": 125}
"""Grid points of a block, about. Larger ones sum more zeros, smaller ones cost more calls; and
single precision rounds more in longer sums (Ca2Au4: 0.02 meV with 125 points, 0.05 with 343)."""


@dataclass(frozen=True, eq=False)
class GridOrbitals:
    """The orbitals of one element in the form the grid needs; plain arrays, made to be kept.

    Parameters
    ----------
    shells
        Angular momentum of each radial function, shape (nshells,).
    spacing
        Distance of the points of the radial mesh in Bohr.
    cutoff
        In Bohr.
    coefficients
        Cubic splines, shape (nintervals, 4, nshells): in interval n the functions are
        ``c[0] + c[1] t + c[2] t^2 + c[3] t^3`` with ``t = r - n spacing``.
    """

    shells: ndarray
    spacing: float
    cutoff: float
    coefficients: ndarray

    @property
    def size(self) -> int:
        """Number of orbitals."""
        return int(np.sum(2 * np.asarray(self.shells) + 1))


def grid_orbitals(
    functions: ndarray, shells: Sequence[int], spacing: float, cutoff: float
) -> GridOrbitals:
    """Prepare radial functions for the grid.

    Parameters
    ----------
    functions
        f(r) in Bohr^(-3/2) on the mesh ``spacing * (0, 1, ...)``, shape (nshells, nmesh).
    shells
        Angular momentum of each function.
    spacing, cutoff
        In Bohr.

    Notes
    -----
    ABACUS resamples the functions on a mesh ten times as fine. A cubic spline on the mesh of the
    file with the boundary conditions of its derivatives gives the same integrals to 0.003 meV:
    slope zero at both ends for even l, curvature zero at both ends for odd l.
    """
    shells = np.asarray(shells, np.int64)
    functions = np.asarray(functions, float)
    if functions.shape[0] != len(shells):
        raise ValueError(f"{functions.shape[0]} radial functions, but {len(shells)} shells")
    r = spacing * np.arange(functions.shape[1])
    coefficients = np.empty((functions.shape[1] - 1, 4, len(shells)))
    for k, (l, f) in enumerate(zip(shells, functions, strict=True)):
        spline = CubicSpline(r, f, bc_type="natural" if l % 2 else "clamped")
        coefficients[:, :, k] = spline.c[::-1].T
    return GridOrbitals(shells, float(spacing), float(cutoff), coefficients)


def grid_integral(
    potential: ndarray,
    cell: ndarray,
    tau: ndarray,
    species_index: Sequence[int],
    orbitals: Sequence[GridOrbitals],
    i: ndarray,
    j: ndarray,
    R: ndarray,
    *,
    threads: int = 1,
    dtype: str = "float64",
    progress: bool = False,
) -> ndarray:
    """Matrix elements of a potential that is given on the grid.

    Parameters
    ----------
    potential
        In Ry, shape (ncomponents, n1, n2, n3), as :class:`.potential.Potential` holds it; any
        real function.
    cell, tau
        Cell vectors (3, 3) and atoms (natoms, 3) in Bohr, Cartesian.
    species_index
        Position of each atom's species in ``orbitals``, shape (natoms,).
    orbitals
        Of each species.
    i, j, R
        Pairs of atoms, as in :class:`ase_nextham.matrix.AtomPairs`; with (i, j, R) there must be
        (j, i, -R).
    threads
        Threads to work with; they share one result, so memory does not grow with them.
    dtype
        ``"float64"``, or ``"float32"`` for orbitals and products of one block, which takes half
        of the time and adds an error of 0.02 meV; sums over blocks are float64 always.
    progress
        Whether to report on standard error.

    Returns
    -------
    ndarray
        Shape (ncomponents, nelements): the blocks of the pairs one after another, each row-major,
        in ABACUS's orbital convention, in Ry. Pairs whose orbitals share no grid point are zero.

    Raises
    ------
    ValueError
        If the potential has no four axes, an unknown dtype is asked for, or a pair is listed
        without its reverse.
    """
    potential = np.ascontiguousarray(potential, float)
    job = _job(potential, cell, tau, species_index, orbitals, i, j, R, dtype)
    _run(job, max(1, threads), progress)
    pairs = job.pairs
    weight = abs(np.linalg.det(cell)) / np.prod(potential.shape[1:])
    complete(
        job.result, weight, pairs.summed, pairs.offset, pairs.rows, pairs.columns, pairs.reverse
    )
    return job.result


def grid_integral_transpose(
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
    threads: int = 1,
) -> ndarray:
    """How a function of the matrix elements changes with the potential at each point.

    Parameters
    ----------
    gradient
        Its derivatives with the elements that :func:`grid_integral` returns, each counted as if
        it were independent, shape (nelements,).
    shape
        Of the grid.

    Returns
    -------
    ndarray
        ``G(r) = sum g_ij phi_i(r) phi_j(r) volume / npoints``, shape ``shape``. All other
        parameters are those of :func:`grid_integral`.
    """
    gradient = np.asarray(gradient, float)
    nothing = np.zeros((1, *shape))
    job = _job(nothing, cell, tau, species_index, orbitals, i, j, R, "float64")
    pairs = job.pairs
    if gradient.shape != (pairs.nelements,):
        raise ValueError(
            f"the gradient has shape {gradient.shape}, but the pairs have {pairs.nelements} "
            "elements"
        )
    half = job.result[0]
    half[:] = gradient
    fold(half, gradient, pairs.summed, pairs.offset, pairs.rows, pairs.columns, pairs.reverse)
    _run(job, max(1, threads), False, _gather_block)
    return nothing[0] * (abs(np.linalg.det(cell)) / np.prod(shape))


def _job(potential, cell, tau, species_index, orbitals, i, j, R, dtype) -> _Job:
    """What there is to do for arguments as of :func:`grid_integral`."""
    if potential.ndim != 4:
        raise ValueError(
            f"the potential must have shape (ncomponents, n1, n2, n3), not {potential.shape}"
        )
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype is {dtype!r}; known: 'float64', 'float32'")
    cell, tau = np.asarray(cell, float), np.asarray(tau, float)
    species = np.asarray(species_index, np.int64)
    pairs = HalfPairs.of(i, j, R, np.array([one.size for one in orbitals])[species])
    blocks = grid_blocks(cell, potential.shape[1:], BLOCK_SIZE[dtype])
    cutoffs = np.array([one.cutoff for one in orbitals])
    images = images_near(blocks, tau, cutoffs[species])
    first, index = block_images(blocks, images)
    result = np.zeros((len(potential), pairs.nelements))
    return _Job(
        potential.reshape(len(potential), -1),
        blocks,
        images,
        first,
        index,
        species,
        _Tables.of(orbitals, np.dtype(dtype)),
        pairs,
        result,
    )


@dataclass(frozen=True, eq=False)
class HalfPairs:
    """Pairs (i, j, R), one of each two that are each other's transpose, sorted by i for search.

    Parameters
    ----------
    start
        Where the pairs of each atom i begin, and the end, shape (natoms + 1,).
    key
        Number that stands for j and R, ascending for each i, shape (nhalf,).
    place
        Where the block of the pair begins in the result, shape (nhalf,).
    radix
        With what ``key`` was made: ``((j * n + R_x) * n + R_y) * n + R_z``, each component of R
        increased by (n - 1) / 2.
    summed, offset, rows, columns, reverse
        Of all pairs: whether it is one of the half, begin and shape of its block, and the index
        of (j, i, -R).
    nelements
        Elements of all blocks.
    """

    start: ndarray
    key: ndarray
    place: ndarray
    radix: int
    summed: ndarray
    offset: ndarray
    rows: ndarray
    columns: ndarray
    reverse: ndarray
    nelements: int

    @classmethod
    def of(cls, i, j, R, norbitals: ndarray) -> HalfPairs:
        """Sort the pairs; ``norbitals`` (natoms,) gives the sizes of the blocks."""
        i, j = np.asarray(i, np.int64), np.asarray(j, np.int64)
        R = np.asarray(R, np.int64).reshape(-1, 3)
        reach = int(np.abs(R).max(initial=0))
        radix, natoms = 2 * reach + 1, len(norbitals)

        def keys(i, j, R):
            code = ((j * radix + R[:, 0] + reach) * radix + R[:, 1] + reach) * radix
            return code + R[:, 2] + reach + i * natoms * radix**3

        if natoms**2 * float(radix) ** 3 > 2.0**62:
            raise ValueError(f"{natoms} atoms with lattice vectors up to {reach} are too many")
        own = keys(i, j, R)
        order = np.argsort(own, kind="stable")
        theirs = keys(j, i, -R)
        where = np.searchsorted(own[order], theirs).clip(max=max(len(i) - 1, 0))
        reverse = order[where] if len(i) else order
        missing = np.flatnonzero(own[reverse] != theirs)
        if len(missing):
            p = missing[0]
            raise ValueError(
                f"pair (i={i[p]}, j={j[p]}, R={R[p].tolist()}) is listed without its reverse"
            )
        rows, columns = norbitals[i], norbitals[j]
        offset = np.concatenate([[0], np.cumsum(rows * columns)])
        # of (i, i, R) and (i, i, -R) the one that the sum over ordered images meets
        summed = (i < j) | ((i == j) & (own >= theirs))
        half = order[summed[order]]
        start = np.searchsorted(i[half], np.arange(natoms + 1))
        return cls(
            start,
            own[half] - i[half] * natoms * radix**3,
            offset[half],
            radix,
            summed,
            offset[:-1],
            rows,
            columns,
            reverse,
            int(offset[-1]),
        )


@dataclass(frozen=True, eq=False)
class _Tables:
    """The orbitals of all species in flat arrays."""

    start: ndarray  # of each species in `coefficients`
    coefficients: ndarray
    first_shell: ndarray  # of each species in `shells`, and the end
    shells: ndarray
    size: ndarray
    spacing: ndarray
    cutoff: ndarray
    lmax: int

    @classmethod
    def of(cls, orbitals: Sequence[GridOrbitals], dtype) -> _Tables:
        flat = [one.coefficients.ravel() for one in orbitals]
        shells = [np.asarray(one.shells, np.int64) for one in orbitals]
        lmax = int(max(l.max() for l in shells))
        if lmax > MAX_L:
            raise ValueError(f"orbitals have l = {lmax}; up to {MAX_L} are supported")
        return cls(
            np.concatenate([[0], np.cumsum([len(c) for c in flat])]),
            np.concatenate(flat).astype(dtype),
            np.concatenate([[0], np.cumsum([len(l) for l in shells])]),
            np.concatenate(shells),
            np.array([one.size for one in orbitals]),
            np.array([one.spacing for one in orbitals]),
            np.array([one.cutoff for one in orbitals]),
            lmax,
        )


@dataclass(frozen=True, eq=False)
class _Job:
    potential: ndarray
    blocks: GridBlocks
    images: Images
    first: ndarray
    index: ndarray
    species: ndarray
    tables: _Tables
    pairs: HalfPairs
    result: ndarray

    @cached_property
    def fractions(self) -> ndarray:
        return self.blocks.fractions

    @cached_property
    def centers(self) -> ndarray:
        """Centres of the blocks in fractions of the reduced cell."""
        return self.blocks.centers @ np.linalg.inv(self.blocks.cell)


@dataclass(frozen=True, eq=False)
class _Room:
    """Working memory of one thread."""

    points: ndarray
    position: ndarray
    weight: ndarray
    local: ndarray
    interval: ndarray
    radial: ndarray
    harmonics: ndarray
    phi: ndarray
    scaled: ndarray
    product: ndarray
    kept: ndarray
    column: ndarray

    @classmethod
    def of(cls, job: _Job) -> _Room:
        npoints = int(np.diff(job.blocks.first).max())
        sizes = job.tables.size[job.species[job.images.atom]]
        total = np.concatenate([[0], np.cumsum(sizes[job.index])])
        norbitals = int((total[job.first[1:]] - total[job.first[:-1]]).max(initial=0))
        nimages = int(np.diff(job.first).max(initial=0))
        nshells = int(np.diff(job.tables.first_shell).max())
        dtype = job.tables.coefficients.dtype
        several = len(job.potential) > 1
        return cls(
            points=np.empty(npoints, np.int64),
            position=np.empty((3, npoints)),
            weight=np.empty(npoints),
            local=np.empty((5, npoints), dtype),
            interval=np.empty((2, npoints), np.int64),
            radial=np.empty((nshells, npoints), dtype),
            harmonics=np.empty((4 * (job.tables.lmax + 1) ** 2, npoints), dtype),
            phi=np.empty(norbitals * npoints, dtype),
            scaled=np.empty(norbitals * npoints if several else 0, dtype),
            product=np.empty(norbitals**2, dtype),
            kept=np.empty(nimages, np.int64),
            column=np.empty(nimages + 1, np.int64),
        )


def _evaluate(job: _Job, room: _Room, b: int, weighted: bool) -> tuple[int, int]:
    """The orbitals at the points of one block, as of :func:`.gridkernels.evaluate`."""
    blocks, images, tables = job.blocks, job.images, job.tables
    own = job.index[job.first[b] : job.first[b + 1]]
    points = blocks.points[blocks.first[b] : blocks.first[b + 1]]
    if not len(own) or not len(points):
        return 0, 0
    return evaluate(
        points,
        job.fractions,
        blocks.cell,
        blocks.shape,
        job.centers[b],
        job.potential[0],
        weighted,
        own,
        images.atom,
        images.position,
        job.species,
        tables.start,
        tables.coefficients,
        tables.first_shell,
        tables.shells,
        tables.size,
        tables.spacing,
        tables.cutoff,
        room.points,
        room.position,
        room.weight,
        room.local,
        room.interval,
        room.radial,
        room.harmonics,
        room.phi,
        room.kept,
        room.column,
    )


def _sum_block(job: _Job, room: _Room, b: int, lock: threading.Lock) -> None:
    """Add the products of one block to the result."""
    images, pairs = job.images, job.pairs
    single = len(job.potential) == 1
    kept, positive = _evaluate(job, room, b, single)
    if not kept:
        return
    n = int(room.column[kept])
    npoints = int(job.blocks.first[b + 1] - job.blocks.first[b])
    syrk = dsyrk if room.product.dtype == np.float64 else ssyrk
    product = room.product[: n * n].reshape(n, n).T
    for component in range(len(job.potential)):
        source = room.phi
        if not single:
            source = room.scaled
            positive = scale(
                room.phi, source, n, npoints, job.potential[component], room.points, room.weight
            )
        beta = 0.0
        for sign, begin, count in ((1, 0, positive), (-1, positive, npoints - positive)):
            if count:
                part = source[n * begin : n * (begin + count)].reshape(n, count)
                product = syrk(sign, part.T, beta=beta, c=product, trans=1, lower=1, overwrite_c=1)
                beta = 1.0
        with lock:
            scatter(
                product.T,
                room.kept[:kept],
                room.column,
                images.atom,
                images.shift,
                pairs.start,
                pairs.key,
                pairs.place,
                pairs.radix,
                job.result[component],
            )


def _gather_block(job: _Job, room: _Room, b: int, lock: threading.Lock) -> None:
    """Sum products of orbitals with the elements in ``result`` at the points of one block."""
    kept, _ = _evaluate(job, room, b, False)
    if not kept:
        return
    n, pairs = int(room.column[kept]), job.pairs
    npoints = int(job.blocks.first[b + 1] - job.blocks.first[b])
    product = room.product[: n * n].reshape(n, n)
    gather(
        product,
        room.kept[:kept],
        room.column,
        job.images.atom,
        job.images.shift,
        pairs.start,
        pairs.key,
        pairs.place,
        pairs.radix,
        job.result[0],
    )
    phi = room.phi[: n * npoints].reshape(n, npoints)
    # half the work of a product with a full matrix
    other = dtrmm(1.0, product.T, phi.T, side=1, lower=1).T
    # no other block has these points
    job.potential[0, room.points[:npoints]] = np.einsum("ip,ip->p", other, phi)


def _run(job: _Job, threads: int, progress: bool, block: Callable = _sum_block) -> None:
    """Work on all blocks, with ``block(job, room, number, lock)`` on each."""
    nblocks = len(job.blocks)
    # neighbouring blocks add to the same pairs, so a thread takes a run of them
    chunk = max(1, min(64, nblocks // (4 * threads)))
    starts = iter(range(0, nblocks, chunk))
    lock = threading.Lock()
    bar = tqdm(total=nblocks, desc="grid", unit=" blocks", disable=not progress)

    def work() -> None:
        room = _Room.of(job)
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            stop = min(start + chunk, nblocks)
            for b in range(start, stop):
                block(job, room, b, lock)
            with lock:
                bar.update(stop - start)

    with bar, threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(work) for _ in range(threads)]:
            task.result()
