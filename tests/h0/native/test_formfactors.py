"""Form factors of atoms against integrals that are known or done by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import erf

from ase_nextham.h0.native.formfactors import FormFactors, form_factors
from ase_nextham.h0.native.radial import simpson_weights
from ase_nextham.h0.native.upf import PseudopotentialData, read_pseudopotential
from ase_nextham.h0.upf import Pseudopotential


@pytest.fixture(scope="module")
def gaussians() -> PseudopotentialData:
    """A pseudo-atom of Gaussians: 4 electrons, a core, and the potential of a charge 4."""
    r = 0.01 * np.arange(1801)
    header = Pseudopotential("X", 4.0, False, True, "PBE", "scalar", len(r), "")
    density = 3.9 * (1.3 / np.pi) ** 1.5 * np.exp(-1.3 * r**2)  # to be scaled to 4
    with np.errstate(invalid="ignore"):
        vloc = np.where(r > 0, -8 * erf(0.8 * r) / r, -8 * 0.8 * 2 / np.sqrt(np.pi))
    empty = np.zeros((0, len(r)))
    return PseudopotentialData(
        header, r, np.full(len(r), 0.01), vloc, 4 * np.pi * r**2 * density, np.exp(-2 * r**2),
        empty, np.zeros(0, int), None, np.zeros((0, 0)),
    )  # fmt: skip


def interpolated(factors: FormFactors, q: np.ndarray) -> np.ndarray:
    n = (q / factors.spacing).astype(int)
    t = q - n * factors.spacing
    powers = t[:, None, None] ** np.arange(4)
    return (factors.splines()[n] * powers).sum(axis=2).T


def test_gaussians_are_transformed_exactly(gaussians):
    q = np.linspace(0, 19.9, 400)
    density, core, vloc = interpolated(form_factors(gaussians, 100.0), q)
    assert_allclose(density, 4 * np.exp(-(q**2) / 5.2), atol=1e-9)
    assert_allclose(core, (np.pi / 2) ** 1.5 * np.exp(-(q**2) / 8), atol=1e-9)
    q = q[1:]
    full = vloc[1:] - 8 * np.pi * 4 * np.exp(-(q**2) / 4) / q**2
    assert_allclose(full, -8 * np.pi * 4 * np.exp(-(q**2) / 2.56) / q**2, atol=1e-7)  # Ry Bohr^3


def test_the_average_of_the_local_potential_is_that_of_its_short_range(gaussians):
    # integral of 8 (1 - erf(a r)) / r over space is 8 pi / a^2
    assert form_factors(gaussians, 20.0).vloc_average == pytest.approx(8 * np.pi / 0.64, rel=1e-7)


def test_a_pseudo_atom_without_core_has_none(gaussians):
    assert not form_factors(replace(gaussians, rho_core=None), 20.0).core.any()


def test_a_pseudo_atom_without_density_is_refused(gaussians):
    empty = replace(gaussians, rho_atom=np.zeros_like(gaussians.r))
    with pytest.raises(ValueError, match="X: PP_RHOATOM holds 0 electrons"):
        form_factors(empty, 20.0)


@pytest.mark.parametrize("element", ["Si", "Te", "H"])
def test_tables_agree_with_the_integrals_between_their_points(shared_data, element):
    data = read_pseudopotential(shared_data / "pseudo" / f"{element}.upf")
    factors = form_factors(data, 100.0)
    assert factors.density[0] == pytest.approx(data.header.valence, abs=1e-12)
    points = min(1501, len(data.r))
    r, rab = data.r[:points], data.rab[:points]
    weights = simpson_weights(points) * rab
    scale = data.header.valence / (weights @ data.rho_atom[:points])
    for q in (0.005, 0.777, 3.1415, 19.998):
        sine = np.sinc(q * r / np.pi)
        density, core, vloc = interpolated(factors, np.array([q]))[:, 0]
        exact = scale * (weights * sine) @ data.rho_atom[:points]
        assert density == pytest.approx(exact, abs=1e-8)  # electrons
        if data.rho_core is not None:
            shell = 4 * np.pi * r**2 * data.rho_core[:points]
            assert core == pytest.approx((weights * sine) @ shell, abs=1e-8)
        short = r * data.vloc[:points] + 2 * data.header.valence * erf(r)
        assert vloc == pytest.approx(4 * np.pi * (weights * sine * r) @ short, abs=1e-7)
