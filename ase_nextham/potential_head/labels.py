"""Coefficients to learn from: fitted to a converged density, or to dH where there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham.expansion import Expansion, PlaneWaveSums, fit
from ase_nextham.expansion.fit import RIDGE
from ase_nextham.h0.density import Density
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.potential_head.apply import change_of_potential, plane_wave_sums
from ase_nextham.units import BOHR, RYDBERG

_PORTION = 8
"""Potentials that are integrated together."""

_REPEATED = 8
"""Steps at most with the same derivatives, which cost far more than a step."""


@dataclass(frozen=True, eq=False)
class Label:
    """Coefficients of one structure and how well they say what they were fitted to.

    Parameters
    ----------
    coefficients
        Shape (ncoefficients,).
    left, norm
        Squared norm of what they leave, and of all of it, in the metric of the fit: Ry for a
        density, eV^2 for dH.
    """

    coefficients: ndarray
    left: float
    norm: float

    @property
    def residual(self) -> float:
        """Norm of what is left over the norm of all of it."""
        return float(np.sqrt(self.left / self.norm)) if self.norm > 0 else 0.0


def fit_density(
    part: LocalPart,
    expansion: Expansion,
    density: Density,
    *,
    ridge: float = RIDGE,
    gram: ndarray | None = None,
) -> Label:
    """Coefficients from a converged density.

    Parameters
    ----------
    density
        Self-consistent, without partial cores, of the same structure.
    ridge
        As of :func:`ase_nextham.expansion.fit`.
    gram
        :func:`~ase_nextham.potential_head.descriptor.coulomb_gram`, if it is known; for densities.

    Returns
    -------
    Label
        Of kind ``"density"``, closest to the change of the density in the Coulomb metric, without
        charge. Of kind ``"potential"``, closest to the change of the potential up to a constant,
        with the weight :attr:`LocalPart.weight`.

    Raises
    ------
    ValueError
        If the density is of another cell, or holds other electrons than the neutral atoms.

    Notes
    -----
    A potential is fitted in real space, which takes eight bytes for each coefficient and point of
    the grid.
    """
    electrons = sum(part.elements[kind].form_factors.valence for kind in part.kinds)
    held = density.nelectrons(part.cell * BOHR)
    if abs(held - electrons) > 1e-3 * electrons:
        raise ValueError(
            f"the density holds {held:.4f} electrons in a cell, the neutral atoms "
            f"{electrons:g}: it is of a charged or of another structure"
        )
    # a run with a smaller cutoff lacks plane waves of the superposed atoms, too
    listed = part.on_waves(density.miller, np.ones(len(density.miller))).real
    change = part.on_waves(density.miller, density.coefficients) - listed * part.valence
    if expansion.kind == "potential":
        return _fit_potential(part, expansion, part.potential(change) - part.v0, ridge)
    sums = plane_wave_sums(part, expansion)
    weights = part.waves.volume * part.coulomb * part.multiplicity
    coefficients = fit(
        sums.gram(weights) if gram is None else gram,
        sums.transpose(weights * change),
        ridge=ridge,
        zero=expansion.charges(part.symbols),
    )
    left = change - sums.plane_waves(coefficients)
    norms = [float(np.sum(weights * np.abs(one) ** 2)) for one in (left, change)]
    return Label(coefficients, *norms)


def _fit_potential(part: LocalPart, expansion: Expansion, target: ndarray, ridge: float) -> Label:
    """Closest to a potential on the grid, up to a constant."""
    sums = plane_wave_sums(part, expansion)
    columns = _on_grid(part, sums.matrix())
    volume = part.waves.volume / target.size
    root = np.sqrt(part.weight.ravel() * volume)
    target = target.ravel() * root
    columns *= root
    # what the constant can say is taken out of everything else
    constant = root / np.linalg.norm(root)
    target = target - constant * (constant @ target)
    columns -= np.outer(columns @ constant, constant)
    coefficients = fit(columns @ columns.T, columns @ target, ridge=ridge)
    left = target - coefficients @ columns
    return Label(coefficients, float(left @ left), float(target @ target))


def _on_grid(part: LocalPart, plane_waves: ndarray) -> ndarray:
    return part.to_grid(plane_waves).reshape(len(plane_waves), -1)


def fit_matrix(
    part: LocalPart,
    expansion: Expansion,
    dh: LCAOMatrix,
    overlap: LCAOMatrix,
    *,
    ridge: float = RIDGE,
    steps: int = 2,
) -> Label:
    """Coefficients from dH alone, by least squares over its elements, up to a multiple of S.

    Parameters
    ----------
    dh
        H - H(0) in eV; of spinors the part without spin counts.
    overlap
        S of the same structure.
    ridge
        As of :func:`ase_nextham.expansion.fit`.
    steps
        How often derivatives are taken, for a density: exchange and correlation are not linear in
        it. An expanded potential takes one.

    Returns
    -------
    Label
        With the residual of dH.

    Notes
    -----
    Gauss and Newton's method, as long as it makes the residual smaller. Derivatives need the
    integral of one potential for each coefficient. PBE has kinks where the density is low, and
    there the fit of a density can stop early (NaCl: 12 % of the gauge error left, where a fit to
    its density leaves 0.6 %); the residual tells.
    """
    sums = plane_wave_sums(part, expansion)
    s = _scalar_elements(part, overlap)
    target = _without(_scalar_elements(part, dh), s)

    def missing(coefficients: ndarray) -> ndarray:
        potential = change_of_potential(part, expansion, coefficients)
        return target - _without(RYDBERG * part.integrate(potential[None])[0], s)

    best, left = np.zeros(sums.size), target
    if not target.any():
        return Label(best, 0.0, 0.0)
    linear = expansion.kind == "potential"
    charges = None if linear else expansion.charges(part.symbols)
    for _ in range(1 if linear else steps):
        columns = _without(_columns(part, expansion, sums, best), s)
        gram = columns @ columns.T
        for _ in range(1 if linear else _REPEATED):
            # the ridge pulls the coefficients towards zero, not towards the ones before
            found = fit(gram, columns @ (left + best @ columns), ridge=ridge, zero=charges)
            after = missing(found)
            if after @ after >= left @ left:
                break
            best, left = found, after
    return Label(best, float(left @ left), float(target @ target))


def _columns(
    part: LocalPart, expansion: Expansion, sums: PlaneWaveSums, coefficients: ndarray
) -> ndarray:
    """How the elements of dH in eV change with each coefficient, (ncoefficients, nelements)."""
    waves = sums.matrix()
    if expansion.kind == "density":
        response = part.response(sums.plane_waves(coefficients))
    pieces = []
    for start in range(0, sums.size, _PORTION):
        some = waves[start : start + _PORTION]
        if expansion.kind == "potential":
            potentials = part.to_grid(some)
        else:
            potentials = np.stack([response.along(one) for one in some])
        pieces.append(RYDBERG * part.integrate(potentials))
    return np.concatenate(pieces)


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
