"""Loewdin orthogonalisation: the same bands in a basis of orthonormal orbitals.

Programs for Wannier functions know no overlap. The Bloch sums of atomic orbitals times
``T(k) = S(k)^(-1/2)`` are orthonormal, and closest to them of all orthonormal functions; they turn
with the crystal as the orbitals do, so that atoms, shells and signs keep their meaning. On a mesh
of N k-points, for all operators O::

    H'(k) = T H T                  r'(k) = T r T - i (dT/dk) T^-1

    O'(R) = 1/N sum_k exp(-2 pi i k.R) O'(k)

The second term of r' comes from the lattice vectors by which an orthogonal orbital reaches into
other cells. With r(k)^+ = r(k) + i dS/dk it makes r' Hermitian. O'(R) is periodic in R with the
period of the mesh; of all equivalent R each pair of atoms gets the one with the shortest distance
between them, or equal shares of the several shortest ones. Bands are exact on the mesh. Between
its points they are off by how much of O' lies beyond the period: S^(-1/2) decays exponentially,
and the more slowly the closer S is to singular.

That is slow for good sets of orbitals, whose S has eigenvalues of 1e-3 and less. They belong to
states hundreds of eV up, whose energies make H' large and long-ranged. With ``exact_below``, the
energies above it are squeezed together, E -> E0 + w tanh((E - E0) / w) with w = 10 eV, which leaves
the states and everything below as they are and takes two orders of magnitude off the error.

P.-O. Loewdin, J. Chem. Phys. 18, 365 (1950).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from ase.geometry import minkowski_reduce
from numpy import ndarray
from scipy.fft import fftn

from ase_nextham.bands.dense import NEARLY_SINGULAR, eigenvalues
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix

SQUEEZED = 10.0
"""Width in eV of the window into which the energies above ``exact_below`` are squeezed."""

LARGEST = 2**23
"""Elements of H' up to which :func:`converged` lets a mesh grow: 0.5 GB of text."""

_AT_ONCE = 2**20  # elements of one operator at a batch of k-points, 16 MB
_EQUALLY_FAR = 1e-5  # difference of distances in Angstrom that counts as none


def identity(basis: Basis, symbols: Sequence[str]) -> LCAOMatrix:
    """The overlap of orthonormal orbitals."""
    atoms = np.arange(len(symbols))
    pairs = AtomPairs(atoms, atoms, np.zeros((len(atoms), 3), int))
    blocks = [np.eye(basis.norbitals(name)).ravel() for name in symbols]
    values = np.concatenate([np.zeros(0), *blocks])
    return LCAOMatrix(basis, tuple(symbols), pairs, "unpolarised", values)


def is_orthonormal(overlap: LCAOMatrix, tolerance: float = 1e-10) -> bool:
    """Whether an overlap is the identity, so that there is nothing to orthogonalise."""
    difference = overlap - identity(overlap.basis, overlap.symbols)
    return float(np.abs(difference.data).max(initial=0)) <= tolerance


def orthogonalised(
    data: LCAOData, kpts: Sequence[int], *, exact_below: float | None = None
) -> LCAOData:
    """The same structure and bands, with an overlap that is the identity.

    Parameters
    ----------
    data
        With or without Hamiltonians and the position operator.
    kpts
        Sizes of the Gamma-centred mesh on which the bands are kept.
    exact_below
        Keep the bands up to this energy in eV and squeeze those above; None: keep all.

    Returns
    -------
    LCAOData
        With pairs up to half the period of the mesh. Atoms and shells are as before. Orbitals
        have no radius any more, and their fingerprints begin with "loewdin", so that nothing takes
        them for the orbitals of the files.

    Raises
    ------
    ValueError
        If S is singular somewhere on the mesh, or ``kpts`` is not a mesh.
    """
    size = np.asarray(kpts)
    if size.shape != (3,) or not np.issubdtype(size.dtype, np.integer) or size.min() < 1:
        raise ValueError(f"kpts must be three positive integers such as (6, 6, 6), not {kpts!r}")
    basis = replace(
        data.basis,
        radius={},
        fingerprint={
            name: f"loewdin {words.removeprefix('loewdin ')}"
            for name, words in data.basis.fingerprint.items()
        },
    )
    hamiltonians = {
        name: matrix
        for name, matrix in (("h0", data.h0), ("hamiltonian", data.hamiltonian))
        if matrix is not None
    }
    pairs, images = _nearest_images(data, size)
    periodic = _on_supercell(data, hamiltonians, size, exact_below)
    operators = {}
    for name in tuple(periodic):
        spin = hamiltonians[name].spin if name in hamiltonians else "unpolarised"
        values = _blocks(periodic.pop(name), data.overlap.first_orbital, pairs, *images, spin)
        operators[name] = LCAOMatrix(basis, data.symbols, pairs, spin, values)
    if data.position is not None:
        operators["position"] = tuple(operators.pop(axis) for axis in "xyz")
    return replace(data, overlap=identity(basis, data.symbols), **operators)


def converged(
    data: LCAOData, tolerance: float = 1e-3, *, exact_below: float | None = None
) -> tuple[LCAOData, tuple[int, int, int], float]:
    """:func:`orthogonalised` on a mesh that is fine enough, if it may be that fine.

    Parameters
    ----------
    data
        With a Hamiltonian.
    tolerance
        Largest :func:`interpolation_error` in eV.
    exact_below
        As in :func:`orthogonalised`; the error is then that of the bands below.

    Returns
    -------
    (LCAOData, tuple, float)
        The orthogonalised data, the mesh, and the error in eV. It is above ``tolerance`` where a
        finer mesh would have given more than :data:`LARGEST` elements.
    """
    lengths = data.atoms.cell.lengths()
    reach = np.abs(data.pairs.R).max(axis=0, initial=0)
    periodic = reach > 0
    cheap = replace(data, h0=None, hamiltonian=data.best_hamiltonian(), position=None)
    elements = cheap.hamiltonian.dimension**2
    extent = np.min((2 * reach + 1) * lengths, where=periodic, initial=np.inf)  # Angstrom
    size, error = None, np.inf
    while error > tolerance:
        finer = np.where(periodic, np.ceil(extent / lengths), 1).astype(int)
        if size is not None and (np.prod(finer) * elements > LARGEST or (finer == 1).all()):
            break
        size = tuple(int(n) for n in finer)
        found = orthogonalised(cheap, size, exact_below=exact_below)
        error = interpolation_error(found, cheap, below=exact_below)
        extent *= 1.25
    if data.position is not None or data.h0 is not None:
        found = orthogonalised(data, size, exact_below=exact_below)
    return found, size, error


def interpolation_error(
    orthogonal: LCAOData, data: LCAOData, kpts: ndarray | None = None, *, below: float | None = None
) -> float:
    """How far the bands of an orthogonalised Hamiltonian are from what they were.

    Parameters
    ----------
    orthogonal
        As :func:`orthogonalised` made it from ``data``.
    kpts
        In units of the reciprocal vectors, shape (nkpts, 3); by default eight at random, the same
        in every call.
    below
        Look only at bands with at most this energy in eV.

    Returns
    -------
    float
        In eV, the largest difference of two eigenvalues.
    """
    if kpts is None:
        kpts = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 3))
    exact = eigenvalues(data.best_hamiltonian(), data.overlap, kpts)
    found = eigenvalues(orthogonal.best_hamiltonian(), orthogonal.overlap, kpts)
    wanted = np.isfinite(exact) if below is None else exact <= below
    return float(np.abs(found - exact)[wanted].max(initial=0))


def _on_supercell(
    data: LCAOData,
    hamiltonians: Mapping[str, LCAOMatrix],
    size: ndarray,
    exact_below: float | None,
) -> dict[str, ndarray]:
    """O'(R) for R in the parallelepiped of the mesh, (nspins, nR, dimension, dimension), each."""
    operators = {**hamiltonians, **dict(zip("xyz", data.position or (), strict=False))}
    n = int(np.prod(size))
    grid = np.indices(size).reshape(3, n).T
    opposite = np.ravel_multi_index(tuple((-grid % size).T), size)
    real = not any(np.iscomplexobj(m.data) for m in (data.overlap, *operators.values()))
    # O(-k) is the conjugate of O(k) where all O(R) are real
    points = np.flatnonzero(np.arange(n) <= opposite) if real else np.arange(n)
    results = {}
    for name, matrix in operators.items():
        nspins = 2 if matrix.spin == "collinear" else 1
        results[name] = np.empty((nspins, n, matrix.dimension, matrix.dimension), complex)
    largest = max((matrix.dimension for matrix in operators.values()), default=1)
    for batch in _batches(points, _AT_ONCE // largest**2):
        for name, values in _at_kpts(data, hamiltonians, grid[batch] / size, exact_below):
            results[name][:, batch] = values
            if real:
                results[name][:, opposite[batch]] = values.conj()
    for name, values in results.items():
        shape = values.shape
        values = fftn(values.reshape(shape[0], *size, *shape[2:]), axes=(1, 2, 3), norm="forward")
        values = values.reshape(shape)
        results[name] = values.real.copy() if real else values
    return results


def _batches(points: ndarray, length: int) -> list[ndarray]:
    return np.array_split(points, -(-len(points) // max(length, 1)))


def _at_kpts(
    data: LCAOData,
    hamiltonians: Mapping[str, LCAOMatrix],
    kpts: ndarray,
    exact_below: float | None,
) -> Iterator[tuple[str, ndarray]]:
    """O'(k) of all operators, (nspins or none, nkpts, dimension, dimension)."""
    s, U = np.linalg.eigh(data.overlap.at_k(kpts))
    if s.min(initial=1) < NEARLY_SINGULAR:
        raise ValueError(
            f"the overlap has an eigenvalue of {s.min():.2g}: its orbitals are linearly dependent, "
            "or pairs of atoms are missing, and cannot be orthogonalised"
        )
    root = np.sqrt(s)
    adjoint = U.conj().swapaxes(-1, -2)
    T = (U / root[:, None, :]) @ adjoint
    for name, matrix in hamiltonians.items():
        left = np.kron(T, np.eye(2)) if matrix.spin == "spinor" else T
        H = left @ matrix.at_k(kpts) @ left
        yield name, H if exact_below is None else _squeezed(H, exact_below)
    if data.position is None:
        return
    # first derivative of s^(-1/2) between eigenvalues a and b: (1/sqrt a - 1/sqrt b) / (a - b)
    a, b = root[:, :, None], root[:, None, :]
    slope = -1 / (a * b * (a + b))
    inverse = (U * root[:, None, :]) @ adjoint
    gradient = data.overlap.gradient_at_k(kpts, data.atoms.cell.array)
    for axis, r, dS in zip("xyz", data.position, gradient, strict=True):
        dT = U @ (slope * (adjoint @ dS @ U)) @ adjoint
        yield axis, T @ r.at_k(kpts) @ T - 1j * dT @ inverse


def _squeezed(H: ndarray, exact_below: float) -> ndarray:
    eps, states = np.linalg.eigh(H)
    excess = (eps - exact_below) / SQUEEZED
    eps = np.where(excess > 0, exact_below + SQUEEZED * np.tanh(excess), eps)
    return (states * eps[..., None, :]) @ states.conj().swapaxes(-1, -2)


def _nearest_images(data: LCAOData, size: ndarray) -> tuple[AtomPairs, tuple[ndarray, ndarray]]:
    """The pairs that represent the mesh, the R of each within the mesh, and its share."""
    cell, positions = data.atoms.cell.array, data.atoms.positions
    n = int(np.prod(size))
    grid = np.indices(size).reshape(3, n).T
    period, change = minkowski_reduce(cell * size[:, None])
    steps = np.indices((3, 3, 3)).reshape(3, 27).T - 1
    rows, shares = [], []
    for i in range(len(positions)):
        for j in range(len(positions)):
            vectors = positions[j] - positions[i] + grid @ cell
            # into the cell around the origin; the shortest is then that or one of its neighbours
            home = -np.round(np.linalg.solve(period.T, vectors.T).T).astype(int)
            moves = home[:, None] + steps
            distances = np.linalg.norm(vectors[:, None] + moves @ period, axis=-1)
            chosen = distances <= distances.min(axis=1, keepdims=True) + _EQUALLY_FAR
            point, move = np.nonzero(chosen)
            R = grid[point] + (moves[point, move] @ change) * size
            atoms = np.broadcast_to([i, j], (len(R), 2))
            rows.append(np.column_stack([atoms, R, point]))
            shares.append(1 / chosen.sum(axis=1)[point])
    rows = np.concatenate(rows)
    pairs, order = AtomPairs.sort(rows[:, 0], rows[:, 1], rows[:, 2:5])
    return pairs, (rows[order, 5], np.concatenate(shares)[order])


def _blocks(
    periodic: ndarray, first: ndarray, pairs: AtomPairs, points: ndarray, shares: ndarray, spin: str
) -> ndarray:
    """The blocks of all pairs out of O'(R), as the data of an LCAOMatrix."""
    factor = 2 if spin == "spinor" else 1
    parts = []
    for start, stop in zip(pairs.groups[:-1], pairs.groups[1:], strict=True):
        i, j = pairs.i[start], pairs.j[start]
        rows, columns = (slice(*(factor * first[a : a + 2])) for a in (i, j))
        blocks = periodic[:, points[start:stop], rows, columns]
        parts.append((blocks * shares[start:stop, None, None]).reshape(len(periodic), -1))
    values = np.concatenate(parts, axis=1)
    return values if spin == "collinear" else values[0]


__all__ = [
    "LARGEST",
    "SQUEEZED",
    "converged",
    "identity",
    "interpolation_error",
    "is_orthonormal",
    "orthogonalised",
]
