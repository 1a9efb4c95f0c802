"""Bands of large cells near one energy, and electron counts without all eigenvalues.

Shift and invert: with ``K = H(k) - sigma S(k)`` factorised once, the bands next to sigma are the
large eigenvalues of ``K^-1 S``, which a block Lanczos iteration with full orthogonalisation in
the inner product of S finds in a few dozen solutions (T. Ericsson and A. Ruhe, Math. Comp. 35,
1251 (1980)). The same factorisation counts the bands below sigma (Sylvester's law of inertia), so
that every band found has its absolute index, and electrons can be counted, without
diagonalising the whole matrix.

What grows with the cell is the factorisation, :mod:`~ase_nextham.bands.factorization`. Its
memory is estimated first; k-points where the matrices are real (Gamma) take half of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_array, eye_array, kron
from threadpoolctl import threadpool_limits

from ase_nextham.bands.dense import HERMITIAN_TOLERANCE, check_belong_together
from ase_nextham.bands.factorization import (
    Factorization,
    SingularMatrixError,
    atom_levels,
    available_bytes,
    factorization_bytes,
    factorize,
)
from ase_nextham.bands.filling import fermi_level
from ase_nextham.matrix import AtomPairs, LCAOMatrix

RESIDUAL_TOLERANCE = 1e-6
"""Largest ||H c - eps S c|| in eV of a band that is returned (c normalised in S)."""

_CONVERGED = 1e-8  # eV, first-order bound on the error of an energy; the error is its square
_TOUCHING = 1e-5  # eV; a band this close to sigma spoils the accuracy of all others
_NUDGE = 1e-7  # eV, by which sigma moves where the factorisation fails
_BACKWARD_ERROR = 1e-9  # relative, of one solution; 1e-16 without growth of the elements
_BLOCK = 8  # vectors that are solved for together
_STEPS_AFTER_RESTART = 6  # in which a missed band grows from noise above the found ones
_MOST_STEPS = 100  # and as many as bands; some 50 are usual
_CROWD = 0.05  # eV
_TAIL = 12.0  # widths: Fermi-Dirac occupations this far from E_F are 0 or 1 within 1e-5


def bands_near(
    hamiltonian: LCAOMatrix, overlap: LCAOMatrix, k: ndarray, energy: float, nbands: int = 20
) -> tuple[ndarray, ndarray]:
    """The bands next to an energy at one k-point of a large cell.

    Parameters
    ----------
    hamiltonian, overlap
        As in :func:`~ase_nextham.bands.eigenvalues`.
    k
        In units of the reciprocal vectors, shape (3,).
    energy
        In eV.
    nbands
        How many of the bands closest to it to find, for each spin.

    Returns
    -------
    (ndarray, ndarray)
        Energies in eV, ascending, shape (nspins, nbands), and the index of the first of them
        among all bands, shape (nspins,): ``eps[s, n]`` is band ``first[s] + n`` of
        ``eigenvalues(...)[s]``.

    Raises
    ------
    MemoryError
        If the factorisation would not fit into memory.
    ArithmeticError
        If a band does not converge or fails the test of its residual.

    Notes
    -----
    Degenerate bands are found with all their copies: after convergence the iteration goes on
    from random vectors until nothing new appears. :func:`electrons_below` at the ends of the
    window is an independent proof. S is taken to be positive definite, as Lanczos and the counting
    need it; :func:`~ase_nextham.bands.eigenvalues` of a small cell tells whether it is.
    """
    results = [
        _bands_near(pencil, float(energy), nbands)
        for pencil in _pencils(hamiltonian, overlap, np.asarray(k, float))
    ]
    return np.stack([eps for eps, _ in results]), np.array([first for _, first in results])


def electrons_below(
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    kpts: ndarray,
    weights: Sequence[float],
    energy: float,
) -> float:
    """Electrons per cell in bands below an energy, exactly and without eigenvalues.

    Parameters
    ----------
    hamiltonian, overlap
        As in :func:`~ase_nextham.bands.eigenvalues`.
    kpts
        Shape (nkpts, 3).
    weights
        Electrons per band at each k-point, shape (nkpts,), as in
        :func:`~ase_nextham.bands.fermi_level`.
    energy
        In eV. Bands on it within 1e-12 eV or so may count as below or above.

    Raises
    ------
    MemoryError
        If the factorisation would not fit into memory.
    """
    count = 0.0
    for k, weight in zip(np.asarray(kpts, float), weights, strict=True):
        for pencil in _pencils(hamiltonian, overlap, k):
            count += weight * pencil.factorized(float(energy))[0].negative
    return count


def fermi_level_sparse(
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    kpts: ndarray,
    weights: Sequence[float],
    nelectrons: float,
    *,
    guess: float = 0.0,
    width: float = 0.01,
    nbands: int = 20,
) -> float:
    """The Fermi level of a large cell, from the bands next to it alone.

    The energy at which the first k-point has the right number of bands below it is bracketed by
    counting; bands next to it at all k-points, with their absolute indices, then give the Fermi
    level exactly as :func:`~ase_nextham.bands.fermi_level` does from all bands.

    Parameters
    ----------
    hamiltonian, overlap
        As in :func:`~ase_nextham.bands.eigenvalues`.
    kpts, weights
        As in :func:`electrons_below`.
    nelectrons
        Electrons per cell.
    guess
        An energy near the Fermi level in eV, for example that of the primitive cell. A good one
        saves factorisations.
    width
        Fermi-Dirac width in eV. All bands within 12 widths of the Fermi level are computed.
    nbands
        Bands to compute at each k-point; more are taken where they do not reach that far.

    Raises
    ------
    ValueError
        If the bands cannot hold that many electrons.
    MemoryError, ArithmeticError
        As :func:`bands_near`.
    """
    kpts, weights = np.asarray(kpts, float), np.asarray(weights, float)
    nspins, dimension = 1 + (hamiltonian.spin == "collinear"), hamiltonian.dimension
    capacity = weights.sum() * nspins * dimension
    if not 0 < nelectrons < capacity:
        raise ValueError(
            f"the bands hold between 0 and {capacity:g} electrons per cell, not {nelectrons:g}"
        )
    sigma = _energy_with_count(
        hamiltonian, overlap, kpts[0], nelectrons / weights.sum(), guess, nbands / 3
    )
    nbands, previous = min(nbands, dimension), 0
    while True:
        windows = [bands_near(hamiltonian, overlap, k, sigma, nbands) for k in kpts]
        eps = np.stack([window[0] for window in windows], axis=1)
        first = np.stack([window[1] for window in windows], axis=1)
        # all bands closer to sigma than the farthest one that was found are known
        reach = np.maximum(sigma - eps[..., 0], eps[..., -1] - sigma).min()
        inside = nelectrons - float(first.sum(axis=0) @ weights)
        if inside <= 0 or inside >= weights.sum() * nspins * nbands:
            # go on across a gap; a crowd of bands, or one on each side of it, needs more of them
            direction = 1 if inside > 0 else -1
            if reach < _CROWD or direction == -previous:
                nbands = min(2 * nbands, dimension)
            sigma, previous = sigma + direction * max(reach, _CROWD), direction
            continue
        level = fermi_level(eps, weights, inside, width=width)
        low = min(level, eps[eps < level].max(initial=eps.min())) - _TAIL * width
        high = max(level, eps[eps > level].min(initial=eps.max())) + _TAIL * width
        if nbands == dimension or (sigma - reach <= low + 1e-9 and sigma + reach >= high - 1e-9):
            return level
        sigma, nbands = level, min(2 * nbands, dimension)


def _energy_with_count(
    hamiltonian: LCAOMatrix,
    overlap: LCAOMatrix,
    k: ndarray,
    target: float,
    guess: float,
    tolerance: float,
) -> float:
    """An energy with ``target`` bands of both spins below it at one k-point, within tolerance."""
    pencils = list(_pencils(hamiltonian, overlap, k))

    def excess(energy: float) -> float:
        return sum(pencil.factorized(energy)[0].negative for pencil in pencils) - target

    low = high = guess
    below = above = found = excess(guess)
    step = 1.0
    while below * above > 0 and abs(found) > tolerance:
        if found < 0:
            low, below = high, found
            high += step
            found = above = excess(high)
        else:
            high, above = low, found
            low -= step
            found = below = excess(low)
        step *= 2
    energy = low if found == below else high
    bisect = False
    while abs(found) > tolerance and high - low > 1e-3:  # else a flat band sits there
        share = 0.5 if bisect else np.clip(below / (below - above), 0.1, 0.9)
        energy = low + share * (high - low)
        found = excess(energy)
        if found < 0:
            low, below = energy, found
        else:
            high, above = energy, found
        bisect = not bisect
    return energy


class _Pencil:
    """H(k) and S(k) of one spin as sparse matrices, and how their rows are put into levels."""

    def __init__(self, h: csr_array, s: csr_array, levels: ndarray, k: ndarray):
        self.h, self.s, self.levels, self.k = h, s, levels, k

    def factorized(self, sigma: float) -> tuple[Factorization, float]:
        """The factorisation of H - sigma S, or of one for a sigma close by, and that sigma."""
        levels = self.levels
        for attempt in range(4):
            if attempt == 3:
                warnings.warn(
                    f"the block factorisation is unstable at {sigma:.6g} eV and "
                    f"k = {self.k.tolist()}; all rows are factorised as one dense matrix instead",
                    stacklevel=4,
                )
                levels = np.zeros_like(levels)
            self._check_memory(levels)
            shifted = csr_array(self.h - sigma * self.s)
            try:
                factorization = factorize(shifted, levels)
            except SingularMatrixError:
                sigma += _NUDGE
                continue
            if _backward_error(shifted, factorization) < _BACKWARD_ERROR:
                return factorization, sigma
            sigma += _NUDGE
        raise ArithmeticError(
            f"H - sigma S cannot be factorised at {sigma:.6g} eV and k = {self.k.tolist()}; is S "
            "singular? eigenvalues() tells"
        )

    def _check_memory(self, levels: ndarray) -> None:
        itemsize = np.result_type(self.h.dtype, self.s.dtype).itemsize
        needed = factorization_bytes(np.bincount(levels), itemsize)
        needed += 3 * self.h.nnz * (itemsize + self.h.indices.itemsize)  # H - sigma S and copies
        available = available_bytes()
        if needed > available:
            real = "" if itemsize == 8 else " (half of it at Gamma, where the matrices are real)"
            raise MemoryError(
                f"factorising H - sigma S of dimension {self.h.shape[0]} takes "
                f"{needed / 1e9:.1f} GB{real}, but {available / 1e9:.1f} GB are available; use a "
                "machine with more memory, a smaller cell, or a cell that is longer and thinner"
            )


def _pencils(hamiltonian: LCAOMatrix, overlap: LCAOMatrix, k: ndarray) -> Iterator[_Pencil]:
    check_belong_together(hamiltonian, overlap)
    pairs = AtomPairs.union(hamiltonian.pairs, overlap.pairs)
    levels = np.repeat(atom_levels(pairs, len(overlap.symbols)), hamiltonian.norbitals)
    h, s = hamiltonian.sparse_at_k(k), overlap.sparse_at_k(k)
    s = s.copy()
    s.eliminate_zeros()  # S reaches less far than H, and is applied in every step
    if hamiltonian.spin == "spinor":
        s = csr_array(kron(s, eye_array(2), format="csr"))
    for one in h if hamiltonian.spin == "collinear" else (h,):
        error = abs(one - one.conj().T).max()
        if not error <= HERMITIAN_TOLERANCE:  # true also for nan
            raise ValueError(
                f"the Hamiltonian at k = {k.tolist()} is not Hermitian, or not finite: it differs "
                f"from its conjugate transpose by {error:.2g}; check where its blocks come from"
            )
        yield _Pencil(one, s, levels, k)


def _backward_error(matrix: csr_array, factorization: Factorization) -> float:
    rhs = np.random.default_rng(0).normal(size=(matrix.shape[0], 1))
    x = factorization.solve(rhs)
    scale = np.abs(matrix.data).max(initial=0) * np.abs(x).max() + np.abs(rhs).max()
    error = np.abs(matrix @ x - rhs).max() / scale
    return float(error) if np.isfinite(error) else np.inf


def _bands_near(pencil: _Pencil, energy: float, nbands: int) -> tuple[ndarray, int]:
    n = pencil.h.shape[0]
    if not 0 < nbands <= n:
        raise ValueError(f"nbands must be between 1 and {n}, not {nbands}")
    for shift in (0, 3, -7, 17, -37):
        found = _counted(pencil, energy + 10 * _TOUCHING * shift, nbands)
        if found is not None:
            break
    else:
        raise ArithmeticError(
            f"there are bands within {_TOUCHING:g} eV of all energies tried near {energy:.6g} eV"
        )
    eps, first = found
    # the nearest ones without holes, also where degenerate bands are equally near
    distances = np.convolve(np.abs(eps - energy), np.ones(nbands), "valid")
    start = int(np.argmin(distances))
    return eps[start : start + nbands], int(first + start)


def _counted(pencil: _Pencil, sigma: float, nbands: int) -> tuple[ndarray, int] | None:
    """Bands nearest to sigma and the index of the first one; None if one touches sigma."""
    factorization, sigma = pencil.factorized(sigma)
    # threads do not pay for a few columns at a time, least of all those of two BLAS libraries
    # (NumPy's and SciPy's) that wait for each other
    with threadpool_limits(1, user_api="blas"):
        found = _nearest(factorization, pencil, sigma, nbands)
        if found is None:
            return None
        eps, vectors = found
        _check_residuals(pencil, eps, vectors)
    return eps, factorization.negative - np.count_nonzero(eps < sigma)


def _check_residuals(pencil: _Pencil, eps: ndarray, vectors: ndarray) -> None:
    residual = np.linalg.norm(pencil.h @ vectors - (pencil.s @ vectors) * eps, axis=0)
    worst = int(np.argmax(residual))
    if not residual[worst] <= RESIDUAL_TOLERANCE:
        raise ArithmeticError(
            f"the band at {eps[worst]:.6f} eV at k = {pencil.k.tolist()} has the residual "
            f"||H c - eps S c|| = {residual[worst]:.2g} eV, which is more than "
            f"{RESIDUAL_TOLERANCE:g}; S may be nearly singular, which eigenvalues() tells"
        )


class _KrylovSpace:
    """Vectors orthonormal in S, and the projection of ``K^-1 S`` on them."""

    def __init__(self, factorization: Factorization, s: csr_array, dtype):
        self.factorization, self.s = factorization, s
        self.q = np.zeros((s.shape[0], 16 * _BLOCK), dtype, order="F")
        self.sq = np.zeros_like(self.q)
        self.t = np.zeros((0, 0), dtype)
        self.size = 0  # vectors in the space
        self.done = 0  # those of them that K^-1 S has been applied to
        self.rest = np.zeros((0, 0), dtype)  # Gram matrix of what of their images is outside
        self.rng = np.random.default_rng(0)

    def add_random(self, number: int) -> None:
        """Enlarge the space by random vectors."""
        number = min(number, len(self.q) - self.size)
        w = self.rng.normal(size=(len(self.q), number)).astype(self.q.dtype)
        self._add(self._orthogonal(w)[0])

    def step(self) -> bool:
        """Apply ``K^-1 S`` to the vectors that are new, and add the results to the space.

        False, and nothing done, if that shows an eigenvalue of K which is nearly 0.
        """
        new = slice(self.done, self.size)
        w, coefficients = self._orthogonal(self.factorization.solve(self.sq[:, new]))
        if not np.abs(coefficients).max() < 1 / _TOUCHING:  # true also for nan
            return False
        t = np.zeros((self.size, self.size), self.q.dtype)
        t[: self.done, : self.done] = self.t
        t[:, new] = coefficients
        t[new, : self.done] = coefficients[: self.done].conj().T
        t[new, new] = (t[new, new] + t[new, new].conj().T) / 2
        self.t, self.done = t, self.size
        self.rest = self._add(w)
        return True

    def _orthogonal(self, w: ndarray) -> tuple[ndarray, ndarray]:
        coefficients = 0
        q, sq = self.q[:, : self.size], self.sq[:, : self.size]
        for _ in range(2):  # the second time removes what rounding left
            part = (w.conj().T @ sq).conj().T  # copies the smaller of the two
            w = w - q @ part
            coefficients = coefficients + part
        return w, coefficients

    def _add(self, w: ndarray) -> ndarray:
        """Add vectors that are orthogonal to the space but for rounding; their Gram matrix."""
        gram = w.conj().T @ (self.s @ w)
        values, vectors = np.linalg.eigh(gram)
        kept = values > 1e-28 * values.max(initial=0)
        w, _ = self._orthogonal(w @ (vectors[:, kept] / np.sqrt(values[kept])))
        sw = self.s @ w
        values, vectors = np.linalg.eigh(w.conj().T @ sw)
        kept = values > 0.5  # what has become shorter was nothing but rounding
        turn = vectors[:, kept] / np.sqrt(values[kept])
        w, sw = w @ turn, sw @ turn
        stop = min(self.size + w.shape[1], len(self.q))
        if stop > self.q.shape[1]:
            more = ((0, 0), (0, stop))
            self.q = np.asfortranarray(np.pad(self.q, more))
            self.sq = np.asfortranarray(np.pad(self.sq, more))
        self.q[:, self.size : stop] = w[:, : stop - self.size]
        self.sq[:, self.size : stop] = sw[:, : stop - self.size]
        self.size = stop
        return gram

    def ritz(self, number: int) -> tuple[ndarray, ndarray, ndarray]:
        """The largest eigenvalues by modulus, their vectors in the basis, and their residuals."""
        theta, y = np.linalg.eigh(self.t)
        largest = np.argsort(-np.abs(theta), kind="stable")[:number]
        theta, y = theta[largest], y[:, largest]
        last = y[self.done - len(self.rest) :]
        squared = np.einsum("in,ij,jn->n", last.conj(), self.rest, last).real
        return theta, y, np.sqrt(squared.clip(min=0))


def _nearest(
    factorization: Factorization, pencil: _Pencil, sigma: float, nbands: int
) -> tuple[ndarray, ndarray] | None:
    """At least ``nbands`` bands nearest to sigma, ascending, and their coefficients.

    None if one of them touches sigma.
    """
    n = pencil.h.shape[0]
    wanted = min(nbands + _BLOCK, n)  # the outermost ones are where a missed band would hide
    space = _KrylovSpace(factorization, pencil.s, pencil.h.dtype)
    space.add_random(_BLOCK)
    previous, steps, next_look = None, 0, wanted
    for _ in range(_MOST_STEPS + wanted):
        if not space.step():
            return None
        steps += 1
        if space.size == space.done == n:
            break
        if space.size == space.done:  # an invariant subspace, for example of a symmetry
            space.add_random(_BLOCK)
            continue
        if space.done < next_look or (previous is not None and steps < _STEPS_AFTER_RESTART):
            continue
        next_look = 1.05 * space.done  # looking costs the cube of this
        theta, _, residual = space.ritz(wanted)
        if np.abs(theta).max() > 1 / _TOUCHING:
            return None
        if (residual > _CONVERGED * theta**2).any():
            continue
        values = np.sort(1 / theta)
        if previous is not None and np.abs(values - previous).max() < 1e-6:
            break
        previous, steps = values, 0
        space.add_random(_BLOCK)
    else:
        raise ArithmeticError(
            f"{nbands} bands near {sigma:.6g} eV at k = {pencil.k.tolist()} did not converge in "
            f"{_MOST_STEPS + wanted} steps; ask for fewer bands"
        )
    theta, y, _ = space.ritz(wanted)
    if np.abs(theta).max() > 1 / _TOUCHING:
        return None
    order = np.argsort(1 / theta)
    vectors = space.q[:, : space.done] @ y[:, order]
    return sigma + 1 / theta[order], vectors
