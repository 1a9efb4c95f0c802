"""What the density head learns from: of each sample the best coefficients and how errors count.

A prediction c of the change of the density drho is judged in the Coulomb metric,

``|drho - drho(c)|^2 = left + (c - c*).gram.(c - c*)``

for coefficients c without charge, where c* is the least-squares fit. Raw coefficients are never
compared, because neighbouring functions say nearly the same. The equation holds but for the ridge
of the fit, which moves the loss by 0.2 % of it where it is smallest, and by 1e-5 elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham.expansion import Expansion, RadialFunctions, even_tempered
from ase_nextham.expansion.fit import RIDGE
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.potential_head import EXPONENTS, fit_density, fit_matrix
from ase_nextham.potential_head.apply import COUNTS
from ase_nextham.potential_head.descriptor import Descriptor, coulomb_gram, describe
from ase_nextham.training.dataset import Dataset, Entry

FITTED = {"density": "the density", "dh": "dH"}
"""What labels are fitted to, and how it is called: dH where there is no converged density."""


@dataclass(frozen=True, eq=False)
class DensityLabel:
    """One structure to learn the change of its density from.

    Parameters
    ----------
    name
        Of the sample.
    fitted
        One of :data:`FITTED`.
    coefficients
        c*, without charge, in the order of :class:`~ase_nextham.expansion.Expansion`, shape
        (ncoefficients,).
    gram
        Coulomb energies of the functions with each other in Ry, shape (ncoefficients,
        ncoefficients).
    norm
        ``|drho|^2`` in Ry. Fitted to dH the density itself is not known, and it is that of c*.
    left
        ``|drho - drho(c*)|^2`` in Ry; 0 where the density is not known.
    residual
        Norm of what c* leaves of what it was fitted to, over the norm of all of it.
    charges
        What each coefficient adds to the integral over a cell, shape (ncoefficients,).
    descriptor
        What a model sees of the structure.
    """

    name: str
    fitted: str
    coefficients: ndarray
    gram: ndarray
    norm: float
    left: float
    residual: float
    charges: ndarray
    descriptor: Descriptor

    def __repr__(self):
        left = f"{100 * self.residual:.3g} % of {FITTED[self.fitted]} left"
        return f"DensityLabel({self.name!r}, {left})"

    def error(self, coefficients: ndarray) -> float:
        """``|drho - drho(c)| / |drho|`` of coefficients without charge.

        Parameters
        ----------
        coefficients
            Shape (ncoefficients,).
        """
        d = np.asarray(coefficients) - self.coefficients
        return float(np.sqrt((self.left + d @ self.gram @ d) / self.norm))


def expansion_of(dataset: Dataset) -> Expansion:
    """The standard functions of a density for the elements of a data set.

    The same as :func:`~ase_nextham.potential_head.standard_expansion` makes.
    """
    functions = RadialFunctions.coulomb(even_tempered(COUNTS["density"], *EXPONENTS))
    return Expansion("density", dict.fromkeys(sorted(dataset.basis.shells), functions))


def label(
    dataset: Dataset,
    index: int,
    expansion: Expansion,
    engine: NativeH0,
    *,
    ridge: float = RIDGE,
) -> DensityLabel:
    """The label of one sample: fitted to its density, or to its dH where it has none.

    Parameters
    ----------
    index
        Of the sample.
    expansion
        Of a density.
    engine
        With the pseudopotentials and orbitals of the sample, and its spin.
    ridge
        As of :func:`ase_nextham.expansion.fit`.

    Raises
    ------
    ValueError
        If the engine's files are others than those of the sample, the density does not belong to
        the structure, or H has two spins and there is no density.
    CalculatorSetupError
        If a pseudopotential or an orbital is missing or damaged.
    """
    if expansion.kind != "density":
        raise ValueError(f"the expansion is of kind {expansion.kind!r}; labels are of a density")
    sample, density = dataset.sample(index, kpts=()), dataset.density(index)
    entry, data = sample.entry, sample.data
    part = engine.local_part(entry.atoms)
    _check_files(part, entry, data.source)
    gram = coulomb_gram(part, expansion)
    gram = (gram + gram.T) / 2  # half of it is kept, and the last digit differs
    if density is not None:
        fit = fit_density(part, expansion, density, ridge=ridge, gram=gram)
        fitted, norm, left = "density", fit.norm, fit.left
    else:
        dh = data.hamiltonian - data.h0
        fit = fit_matrix(part, expansion, dh, data.overlap, ridge=ridge)
        fitted, norm, left = "dh", float(fit.coefficients @ gram @ fit.coefficients), 0.0
    return DensityLabel(
        name=entry.name,
        fitted=fitted,
        coefficients=fit.coefficients,
        gram=gram,
        norm=norm,
        left=left,
        residual=fit.residual,
        charges=expansion.charges(part.symbols),
        descriptor=describe(part, expansion, data, gram=gram),
    )


def _check_files(part: LocalPart, entry: Entry, source: Mapping) -> None:
    """Refuse pseudopotentials and orbitals that are not those of the sample."""
    symbols = tuple(entry.atoms.symbols)
    if symbols != entry.species:
        a = next(a for a, name in enumerate(entry.species) if name != symbols[a])
        raise ValueError(
            f"atom {a} is of the species {entry.species[a]!r}, but the engine has one set of "
            f"orbitals for all {symbols[a]}"
        )
    reason = part.basis.difference(entry.basis)
    if reason:
        raise ValueError(
            f"the orbitals are not those of the sample: {reason}; give the folder with those that "
            "the data set was made with (orbital_dir)"
        )
    noted = _pseudopotentials(source)
    for symbol, element in zip(dict.fromkeys(symbols), part.elements, strict=True):
        found = element.pseudopotential.header.fingerprint
        if noted.get(symbol) and found not in noted[symbol]:
            raise ValueError(
                f"{symbol}: the pseudopotential is not that of the sample (sha256 {found[:8]}... "
                f"instead of {min(noted[symbol])[:8]}...); give the folder with those that the "
                "data set was made with (pseudo_dir)"
            )


def _pseudopotentials(source: Mapping) -> dict[str, set[str]]:
    """sha256 of the pseudopotentials, by label of the species, that a source tells of."""
    found: dict[str, set[str]] = {}
    for key, value in source.items():
        if key == "species":
            pairs = [(name, one.get("pseudopotential_sha256")) for name, one in value.items()]
        elif key == "pseudopotentials":
            pairs = list(value.items())
        elif isinstance(value, Mapping):
            pairs = [(name, one) for name, some in _pseudopotentials(value).items() for one in some]
        else:
            continue
        for name, fingerprint in pairs:
            if fingerprint:
                found.setdefault(name, set()).add(fingerprint)
    return found


__all__ = ["FITTED", "DensityLabel", "expansion_of", "label"]
