"""Fermi level, occupations and gap from energies alone, and those of crystals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham import hdf5
from ase_nextham.bands import (
    Gap,
    band_gap,
    eigenvalues,
    fermi_level,
    kmesh_for,
    occupations,
    spin_degeneracy,
)
from ase_nextham.bands.filling import SMEARINGS
from ase_nextham.units import RYDBERG


def random_metal(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    eps = np.sort(rng.normal(0, 3, (2, 30, 8)), axis=2)
    return eps, rng.dirichlet(np.ones(30))


@pytest.mark.parametrize("smearing", SMEARINGS)
@pytest.mark.parametrize("width", [0.01, 0.1, 1.0])
def test_the_fermi_level_holds_the_electrons(smearing, width):
    eps, weights = random_metal()
    level = fermi_level(eps, weights, 6.3, width=width, smearing=smearing)
    filled = occupations(eps, level, width=width, smearing=smearing)
    assert_allclose(weights @ filled.sum(axis=(0, 2)), 6.3, rtol=0, atol=1e-10)  # electrons


@pytest.mark.parametrize("smearing", SMEARINGS)
@pytest.mark.parametrize("width", [0.0, 1e-6, 1e-3, 0.1, 1.0])
def test_the_fermi_level_of_two_levels_is_half_way_between_them(smearing, width):
    eps = np.array([[-1.3, 0.7]])
    level = fermi_level(eps, [2.0], 2.0, width=width, smearing=smearing)
    assert level == pytest.approx(-0.3, abs=1e-12)  # eV


@pytest.mark.parametrize("width", [0.005, 0.02, 0.1])
def test_a_doubly_degenerate_empty_level_pushes_the_fermi_level_down_by_half_kt_log_2(width):
    level = fermi_level(np.array([[-1.0, 1.0, 1.0]]), [2.0], 2.0, width=width)
    expected = -0.5 * width * np.log(2)  # where exp(-1 / width) << 1
    assert level == pytest.approx(expected, abs=1e-4 * width)  # eV


@pytest.mark.parametrize("smearing", SMEARINGS)
def test_the_fermi_level_tends_to_the_middle_of_the_gap_for_small_widths(smearing):
    rng = np.random.default_rng(1)
    eps = np.concatenate([rng.uniform(-6, 0, (20, 4)), rng.uniform(1.5, 9, (20, 7))], axis=1)
    middle = (eps[:, :4].max() + eps[:, 4:].min()) / 2
    for width in (0.05, 1e-3, 1e-9, 0.0):
        level = fermi_level(eps, np.full(20, 0.1), 8.0, width=width, smearing=smearing)
        assert level == pytest.approx(middle, abs=3 * width + 1e-12)  # eV


def test_a_partly_filled_level_is_the_fermi_level_for_zero_width():
    assert fermi_level(np.array([[-1.0, 0.25, 3.0]]), [2.0], 3.0, width=0.0) == 0.25
    assert_allclose(occupations(np.array([-1.0, 0.25, 3.0]), 0.25, width=0.0), [1, 0.5, 0])


def test_full_bands_give_their_top_and_missing_bands_are_empty():
    assert fermi_level(np.array([[-1.0, 2.0]]), [2.0], 4.0) == 2.0
    eps = np.array([[-1.3, 0.7, np.nan]])
    assert fermi_level(eps, [2.0], 2.0) == pytest.approx(-0.3, abs=1e-12)
    assert_allclose(occupations(eps, 5.0, width=0.01), [[1, 1, 0]])


def test_unequal_weights_that_do_not_sum_exactly_still_find_the_gap():
    weights = np.array([1 / 3, 2 / 3]) * (2 + 1e-12)
    level = fermi_level(np.array([[-1.0, 1.0], [-0.5, 2.0]]), weights, 2.0, width=1e-4)
    assert level == pytest.approx(0.25, abs=1e-3)  # eV


@pytest.mark.parametrize("nelectrons", [0.0, -1.0, 4.1])
def test_bands_that_cannot_hold_the_electrons_are_refused(nelectrons):
    with pytest.raises(ValueError, match=r"hold between 0 and 4 electrons per cell, not"):
        fermi_level(np.array([[-1.0, 2.0]]), [2.0], nelectrons)
    with pytest.raises(ValueError, match="cannot hold"):
        band_gap(np.array([[[-1.0, 2.0]]]), nelectrons, "unpolarised")


def test_unknown_smearing_and_negative_width_are_refused():
    with pytest.raises(ValueError, match="unknown smearing 'cold'; known: fermi-dirac, gaussian"):
        occupations(np.zeros(2), 0.0, smearing="cold")
    with pytest.raises(ValueError, match="width must not be negative"):
        fermi_level(np.array([[-1.0, 2.0]]), [2.0], 1.0, width=-0.1)


def test_the_gap_knows_where_it_is():
    eps = np.array([[[-2.0, 0.0, 3.0], [-1.0, 0.5, 2.5], [-2.0, 0.2, 2.0]]])
    gap = band_gap(eps, 4.0, "unpolarised")
    assert gap == Gap(1.5, 1.8, 0.5, 2.0, (0, 1), (0, 2), (0, 2))
    assert str(gap) == "1.5000 eV, indirect (direct: 1.8000 eV)"
    assert str(band_gap(eps[:, :1], 4.0, "unpolarised")) == "3.0000 eV, direct"


def test_the_gap_of_a_ferromagnet_counts_each_spin_by_itself():
    eps = np.array([[[-3.0, -1.0, 2.0], [-3.1, -1.2, 2.2]], [[-2.0, 1.0, 4.0], [-2.5, 1.5, 4.0]]])
    gap = band_gap(eps, 3.0, "collinear")
    assert (gap.vbm, gap.cbm, gap.vbm_at, gap.cbm_at) == (-1.0, 1.0, (0, 0), (1, 0))


@pytest.mark.parametrize(
    ("eps", "nelectrons"),
    [
        ([[[-1.0, 1.0]]], 1.0),  # half a band
        ([[[-1.0, 1.0], [1.5, 3.0]]], 2.0),  # overlap
        ([[[-1.0, -1.0 + 1e-9]]], 2.0),  # touch
        ([[[-1.0, 1.0]]], 4.0),  # nothing empty
    ],
)
def test_a_metal_has_no_gap(eps, nelectrons):
    assert band_gap(np.array(eps), nelectrons, "unpolarised") is None


@pytest.mark.parametrize(("name", "size"), [("Al", (8, 8, 8)), ("graphene", (9, 9, 1))])
def test_fermi_levels_of_metals_are_those_of_abacus(root, name, size):
    data = hdf5.read(root / f"tests/data/bands/{name}.h5")
    mesh = kmesh_for(data.hamiltonian, data.atoms, {"size": size, "gamma": True})
    eps = eigenvalues(data.hamiltonian, data.overlap, mesh.kpts)
    level = fermi_level(
        eps, 2 * mesh.weights, data.nelectrons, width=0.002 * RYDBERG, smearing="gaussian"
    )
    assert level == pytest.approx(data.fermi_level, abs=1e-6)  # eV
    assert band_gap(eps, data.nelectrons, "unpolarised") is None


@pytest.mark.parametrize(
    ("path", "size"),
    [("tests/data/bands/Si2.h5", (6, 6, 6)), ("examples/data/GaAs_soc.h5", (4, 4, 4))],
)
def test_fermi_levels_of_insulators_are_in_the_middle_of_the_gap_and_abacus_s_is_in_it(
    root, path, size
):
    data = hdf5.read(root / path)
    spin = data.hamiltonian.spin
    mesh = kmesh_for(data.hamiltonian, data.atoms, {"size": size, "gamma": True})
    eps = eigenvalues(data.hamiltonian, data.overlap, mesh.kpts)
    weights = mesh.weights * spin_degeneracy(spin)
    gap = band_gap(eps, data.nelectrons, spin)
    level = fermi_level(eps, weights, data.nelectrons, width=1e-4)
    assert level == pytest.approx((gap.vbm + gap.cbm) / 2, abs=1e-3)  # eV
    assert gap.vbm < data.fermi_level < gap.cbm
