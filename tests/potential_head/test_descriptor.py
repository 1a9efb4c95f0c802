"""The density of H(0)'s states and what is made of it: sum rules and symmetries."""

from __future__ import annotations

import numpy as np
import pytest

from ase_nextham.potential_head import standard_expansion
from ase_nextham.potential_head.descriptor import coulomb_gram, describe, descriptor_of_change
from ase_nextham.potential_head.first_density import first_density


def expansion_of(part):
    return standard_expansion(
        "density", zip(dict.fromkeys(part.symbols), part.elements, strict=True)
    )


def distance(part, change, other) -> float:
    """In the Coulomb metric, relative to ``other``."""
    weights = part.coulomb * part.multiplicity
    return float(
        np.sqrt(np.sum(weights * abs(change - other) ** 2) / np.sum(weights * abs(other) ** 2))
    )


def test_spinors_without_spin_orbit_coupling_have_the_same_density(engine, radical):
    backend = engine()
    data, part = backend.compute(radical), backend.local_part(radical)
    change = first_density(part, data.h0, data.overlap, data.nelectrons)
    for spin in ("spinor", "collinear"):
        found = first_density(part, data.h0.with_spin(spin), data.overlap, data.nelectrons)
        assert distance(part, found, change) < 1e-10
    backend = engine(nspin=4, spin_orbit=False)
    data, part = backend.compute(radical), backend.local_part(radical)
    found = first_density(part, data.h0, data.overlap, data.nelectrons)
    # exchange and correlation of nspin 4 have other thresholds where the density is low
    assert distance(part, found, change) < 1e-2


def test_describe_is_the_descriptor_of_the_first_density(engine, radical):
    backend = engine()
    data, part = backend.compute(radical), backend.local_part(radical)
    expansion = expansion_of(part)
    change = first_density(part, data.h0, data.overlap, data.nelectrons)
    found = describe(part, expansion, data)
    expected = descriptor_of_change(part, expansion, change, gram=coulomb_gram(part, expansion))
    assert found.symbols == ("O", "H")
    assert found.elements.shape == (2, 16)
    assert np.abs(found.induced - expected.induced).max() == 0
    assert np.abs(found.field - expected.field).max() == 0
    assert abs(expansion.charges(part.symbols) @ found.induced) < 1e-12


def test_expansions_of_a_potential_are_refused(engine, radical):
    part = engine().local_part(radical)
    elements = zip(dict.fromkeys(part.symbols), part.elements, strict=True)
    with pytest.raises(ValueError, match="that of a density"):
        coulomb_gram(part, standard_expansion("potential", elements))
