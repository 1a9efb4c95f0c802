"""What a model of the density sees of a structure: numbers of each atom that H(0) answers with.

The density of H(0)'s eigenstates differs from that of the superposed atoms by ``drho1``
(:mod:`ase_nextham.potential_head.first_density`). Its coefficients, and its Coulomb potential as
the functions of each atom see it, turn with the crystal as the coefficients of the self-consistent
change do. What an element is, is said by its free atom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ase_nextham.data import LCAOData
from ase_nextham.expansion import Expansion, fit
from ase_nextham.expansion.fit import RIDGE
from ase_nextham.h0.native.element import Element
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.potential_head.apply import plane_wave_sums
from ase_nextham.potential_head.first_density import first_density

VERSION = 1
"""Rises when descriptors come to hold other numbers: those that were kept are then made again."""

_DENSITY_AT = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # 1/Bohr
_CORE_AT = (1.0, 2.0, 3.0)
_LOCAL_AT = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)

ELEMENT_SCALARS = (
    "valence / 10",
    *(f"density({q:g}) / valence" for q in _DENSITY_AT),
    *(f"core({q:g})" for q in _CORE_AT),
    *(f"vloc({q:g}) / 50" for q in _LOCAL_AT),
)
"""What :attr:`Descriptor.elements` holds of each atom: electrons and form factors of
:class:`~ase_nextham.h0.native.formfactors.FormFactors` at lengths in 1/Bohr, all of the order
one."""


@dataclass(frozen=True, eq=False)
class Descriptor:
    """One structure as a model of the density sees it.

    Parameters
    ----------
    symbols
        Of each atom.
    induced
        Coefficients of the change of the density that H(0)'s eigenstates make, without charge,
        in the order of :class:`~ase_nextham.expansion.Expansion`, shape (ncoefficients,).
    field
        Coulomb energy in Ry of that change with each function, shape (ncoefficients,).
    elements
        :data:`ELEMENT_SCALARS` of each atom's element, shape (natoms, nscalars).
    """

    symbols: tuple[str, ...]
    induced: ndarray
    field: ndarray
    elements: ndarray


def describe(
    part: LocalPart, expansion: Expansion, data: LCAOData, *, gram: ndarray | None = None
) -> Descriptor:
    """The descriptor of a structure, by one diagonalisation of H(0) on a coarse mesh.

    Parameters
    ----------
    part
        Of the structure, from ``NativeH0.local_part``.
    expansion
        Of a density.
    data
        With S and H(0) of the same structure, from anywhere.
    gram
        :func:`coulomb_gram`, if it is known.

    Raises
    ------
    ValueError
        If the expansion is of the potential, there is no H(0), or as of :func:`.first_density`.
    """
    if data.h0 is None:
        raise ValueError(f"{data!r} holds no H(0), which the descriptor is made of")
    change = first_density(part, data.h0, data.overlap, data.electron_count())
    return descriptor_of_change(part, expansion, change, gram=gram)


def descriptor_of_change(
    part: LocalPart, expansion: Expansion, change: ndarray, *, gram: ndarray | None = None
) -> Descriptor:
    """The descriptor from the change of the density that :func:`.first_density` gave.

    Parameters
    ----------
    change
        On the plane waves of ``part``, in Bohr^-3, shape (ng,).
    """
    weights, sums = _weights(part, expansion), plane_wave_sums(part, expansion)
    if gram is None:
        gram = sums.gram(weights)
    field = sums.transpose(weights * change)
    # functions have the norm 1 on an atom alone; with images, by the cell. The ridge is to be the
    # same in every cell, so that supercells have the numbers of their cell
    ridge = RIDGE * len(gram) / np.trace(gram)
    return Descriptor(
        symbols=part.symbols,
        induced=fit(gram, field, ridge=ridge, zero=expansion.charges(part.symbols)),
        field=field,
        elements=element_table(part),
    )


def coulomb_gram(part: LocalPart, expansion: Expansion) -> ndarray:
    """Coulomb energies of all functions with each other in Ry, (ncoefficients, ncoefficients)."""
    return plane_wave_sums(part, expansion).gram(_weights(part, expansion))


def element_table(part: LocalPart) -> ndarray:
    """:data:`ELEMENT_SCALARS` of each atom, shape (natoms, nscalars)."""
    return np.stack([element_scalars(part.elements[kind]) for kind in part.kinds])


def element_scalars(element: Element) -> ndarray:
    """:data:`ELEMENT_SCALARS` of one element, shape (nscalars,)."""
    factors = element.form_factors
    q = factors.spacing * np.arange(len(factors.density))
    return np.concatenate(
        [
            [factors.valence / 10],
            np.interp(_DENSITY_AT, q, factors.density) / factors.valence,
            np.interp(_CORE_AT, q, factors.core),
            np.interp(_LOCAL_AT, q, factors.vloc) / 50,
        ]
    )


def _weights(part: LocalPart, expansion: Expansion) -> ndarray:
    """Coulomb metric on the plane waves of a structure, in Ry, shape (ng,)."""
    if expansion.kind != "density":
        raise ValueError(
            f"the expansion is of kind {expansion.kind!r}; the descriptor needs that of a density"
        )
    return part.waves.volume * part.coulomb * part.multiplicity
