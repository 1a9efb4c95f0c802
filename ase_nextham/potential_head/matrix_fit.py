"""Coefficients from dH alone: damped least squares, with derivatives that are applied, not stored.

The derivatives of all elements with all coefficients would take one integral for each coefficient
and as many numbers as both together. Products of them with a vector take one integral, forth or
back, so the normal equations are solved by conjugate gradients. What makes these few is a metric
of the potential on the grid, ``integral n(r) |dV - average|^2`` with the density n of all
orbitals, which is close to the sum over matrix elements and costs no integral.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy.linalg import cho_factor, cho_solve

from ase_nextham.expansion import Expansion, PlaneWaveSums
from ase_nextham.expansion.fit import RIDGE
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.potential_head.apply import change_of_potential, plane_wave_sums
from ase_nextham.potential_head.labels import Label
from ase_nextham.units import RYDBERG

_DAMPING = 1e-3
"""Of the first step, relative to the mean diagonal of the normal equations.

Far from the solution the density can change by as much as there is where it is low, and undamped
steps would go where derivatives mean nothing."""

_GAIN = 0.02
"""Least relative decrease of the squared residual for which there is another step."""

_PROGRESS = 0.02
"""Least relative decrease of the squared residual in five iterations of conjugate gradients."""

_FLOOR = 1e-5
"""Added to the metric, relative to its mean diagonal: it is not exact where it is small."""


def fit_matrix(
    part: LocalPart,
    expansion: Expansion,
    dh: LCAOMatrix,
    overlap: LCAOMatrix,
    *,
    ridge: float = RIDGE,
    steps: int = 8,
    iterations: int = 20,
) -> Label:
    """Coefficients from dH alone, by least squares over its elements, up to a multiple of S.

    Parameters
    ----------
    dh
        H - H(0) in eV; of spinors the part without spin counts.
    overlap
        S of the same structure.
    ridge
        As of :func:`ase_nextham.expansion.fit`, relative to an estimate of the mean diagonal.
    steps
        How often derivatives are taken at most: dH is not linear in a density.
    iterations
        Of conjugate gradients in one step, at most; an expanded potential has the iterations of
        all steps in one. Each takes two integrals.

    Returns
    -------
    Label
        With the residual of dH.

    Notes
    -----
    Gauss and Newton's method with the damping of K. Levenberg, Q. Appl. Math. 2, 164 (1944) and
    D. W. Marquardt, J. Soc. Ind. Appl. Math. 11, 431 (1963).
    """
    sums = plane_wave_sums(part, expansion)
    s = _scalar_elements(part, overlap)
    target = _without(_scalar_elements(part, dh), s)
    best, left = np.zeros(sums.size), target
    if not target.any():
        return Label(best, 0.0, 0.0)

    def missing(coefficients: ndarray) -> ndarray:
        potential = change_of_potential(part, expansion, coefficients)
        return target - _without(RYDBERG * part.integrate(potential[None])[0], s)

    linear = expansion.kind == "potential"
    if linear:
        derivative = _Derivative(part, expansion, sums, s, best)
        best = derivative.step(left, best, ridge, 0.0, steps * iterations)
        left = missing(best)
    else:
        damping, derivative = _DAMPING, None
        for _ in range(steps):
            if derivative is None:
                derivative = _Derivative(part, expansion, sums, s, best)
            step = derivative.step(left, best, ridge, damping, iterations)
            after = missing(best + step)
            gain = 1 - (after @ after) / (left @ left)
            if gain > 0:
                best, left, damping, derivative = best + step, after, damping / 10, None
            else:
                damping *= 100
            if 0 < gain < _GAIN:
                break
        best = expansion.neutral(part.symbols, best)  # but for rounding it is
    return Label(best, float(left @ left), float(target @ target))


class _Derivative:
    """How the elements of dH in eV, without their part along S, change with the coefficients."""

    def __init__(
        self,
        part: LocalPart,
        expansion: Expansion,
        sums: PlaneWaveSums,
        s: ndarray,
        coefficients: ndarray,
    ):
        self.part, self.expansion, self.sums, self.s = part, expansion, sums, s
        self.response = None
        if expansion.kind == "density":
            self.response = part.response(sums.plane_waves(self._neutral(coefficients)))
        self.metric = self._metric()

    def applied(self, change: ndarray) -> ndarray:
        """First-order change of the elements with the coefficients."""
        potential = self._potential(self.sums.plane_waves(self._neutral(change)))
        return _without(RYDBERG * self.part.integrate(potential[None])[0], self.s)

    def transposed(self, elements: ndarray) -> ndarray:
        """The transpose of :meth:`applied`."""
        part = self.part
        elements = RYDBERG * _without(elements, self.s)
        values = part.transposed(part.waves.shape, elements)
        if self.response is None:
            return self.sums.transpose(part.to_grid_transposed(values))
        return self._neutral(self.sums.transpose(self.response.transposed(values)))

    def step(
        self, left: ndarray, now: ndarray, ridge: float, damping: float, iterations: int
    ) -> ndarray:
        """Change of the coefficients that takes most of ``left`` away.

        Minimises ``|left - J x|^2 + scale (ridge |now + x|^2 + damping |x|^2)``.
        """
        right = self.transposed(left)
        trial = _solver(self.metric, damping + _FLOOR)(right)
        image = self.applied(trial)
        metric = self.metric * (image @ image) / (trial @ self.metric @ trial)
        scale = np.trace(metric) / len(metric)
        solved = _solver(metric, damping + _FLOOR)
        rest = right - ridge * scale * self._neutral(now)
        x, residuals = np.zeros_like(rest), [left @ left]
        direction = solved(rest)
        product = rest @ direction
        for _ in range(iterations):
            curved = self.transposed(self.applied(direction))
            curved += scale * (ridge + damping) * direction
            length = product / (direction @ curved)
            x += length * direction
            rest -= length * curved
            # what the linear equations say, with the ridge
            residuals.append(residuals[-1] - length * product)
            if len(residuals) > 5 and residuals[-1] > (1 - _PROGRESS) * residuals[-6]:
                break
            corrected = solved(rest)
            product, before = rest @ corrected, product
            direction = corrected + product / before * direction
        return x

    # --- inside --------------------------------------------------------------------------------

    def _neutral(self, coefficients: ndarray) -> ndarray:
        if self.expansion.kind == "potential":
            return coefficients
        return self.expansion.neutral(self.part.symbols, coefficients)

    def _potential(self, plane_waves: ndarray) -> ndarray:
        if self.expansion.kind == "potential":
            return self.part.to_grid(plane_waves)
        return self.response.along(plane_waves)

    def _metric(self) -> ndarray:
        """Products of changes of the potential on the grid, (ncoefficients, ncoefficients)."""
        part, size = self.part, self.sums.size
        # every other point of a fine grid says enough
        every = (slice(None, None, 2 if part.weight.size >= 64 * size else 1),) * 3
        weight = part.weight[every].ravel()
        constant = weight / np.linalg.norm(weight)
        rows = []
        for atom, symbol in enumerate(part.symbols):
            # one atom at a time, because plane waves of all functions are many numbers
            own = PlaneWaveSums(
                self.expansion, [symbol], part.tau[[atom]], part.vectors, part.waves.volume
            )
            for waves in own.matrix():
                row = weight * self._potential(waves)[every].ravel()
                rows.append(row - constant * (constant @ row))
        rows = np.array(rows)
        if self.expansion.kind == "potential":
            return rows @ rows.T
        q = self.expansion.charges(part.symbols)
        rows -= np.outer(q, q @ rows) / (q @ q)
        return rows @ rows.T


def _solver(metric: ndarray, damping: float):
    """Function that solves linear equations with a damped metric."""
    shift = damping * np.trace(metric) / len(metric)
    factor = cho_factor(metric + shift * np.eye(len(metric)))
    return lambda right: cho_solve(factor, right)


def _scalar_elements(part: LocalPart, matrix: LCAOMatrix) -> ndarray:
    """Elements of :attr:`LocalPart.pairs`, of spinors the mean of up-up and down-down."""
    if matrix.spin == "collinear":
        raise ValueError("dH of collinear spins has two potentials; one without spin is expected")
    kept, _ = matrix.cut_to(part.pairs)
    data = kept.on_pairs(part.pairs).data
    if matrix.spin == "unpolarised":
        return data.real
    bare = LCAOMatrix(
        matrix.basis, matrix.symbols, part.pairs, "unpolarised", np.zeros(data.size // 4)
    )
    result = np.empty(data.size // 4)
    own = {(a, b): elements for a, b, _, elements in bare.block_groups()}
    for a, b, _, elements in kept.on_pairs(part.pairs).block_groups():
        values = data[elements]
        result[own[a, b]] = (values[:, ::2, ::2] + values[:, 1::2, 1::2]).real / 2
    return result


def _without(values: ndarray, s: ndarray) -> ndarray:
    """Elements, shape (..., nelements), without their part along S."""
    return values - np.multiply.outer(values @ s / (s @ s), s)
