"""Coefficients to learn from, fitted to a converged density."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham.expansion import Expansion, fit
from ase_nextham.expansion.fit import RIDGE
from ase_nextham.h0.density import Density
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.potential_head.apply import plane_wave_sums
from ase_nextham.units import BOHR


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
