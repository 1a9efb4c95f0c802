"""Errors of dH and of bands of predicted coefficients, and their gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from numpy.testing import assert_allclose

from ase_nextham import bands
from ase_nextham.expansion import Expansion, RadialFunctions, even_tempered
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.potential_head import dh_from_coefficients
from ase_nextham.training.dataset import Entry, Sample
from ase_nextham.training.dataset_kspace import KSpace
from ase_nextham.training.dataset_prepare import prepare
from ase_nextham.training.density_matrix import MatrixTarget

FUNCTIONS = RadialFunctions.coulomb(even_tempered((3, 2, 1)))


@pytest.fixture(scope="module")
def crystal(root):
    """GaAs, the engine's part of it, and coefficients with which H - H(0) of the sample is made."""
    data_dir = root / "examples/data"
    engine = NativeH0(data_dir / "pseudo", data_dir / "orbital", nspin=1, position=False)
    prepared = engine.prepare(bulk("GaAs", "zincblende", a=5.653))
    data, part = prepared.compute(), prepared.local_part
    expansion = Expansion("density", dict.fromkeys(part.symbols, FUNCTIONS))
    size = expansion.offsets(part.symbols)[-1]
    rng = np.random.default_rng(0)
    coefficients = expansion.neutral(part.symbols, 0.01 * rng.normal(size=size))
    dh = dh_from_coefficients(part, expansion, coefficients).on_pairs(data.h0.pairs)
    prepared = prepare(replace(data, hamiltonian=data.h0 + dh), "GaAs", nkpts=2)
    sample = Sample(Entry.of("GaAs", "GaAs", prepared), prepared.data, prepared.k_space)
    return sample, part, expansion, coefficients


def test_errors_are_zero_where_dh_is_right_and_one_without_any(crystal):
    sample, part, expansion, coefficients = crystal
    target = MatrixTarget.of(sample, part, expansion)
    of_dh, of_bands = target.errors(torch.tensor(coefficients))
    # eigenvectors are stored in single precision
    assert_allclose([of_dh, of_bands], 0, atol=1e-6)
    assert_allclose(target.errors(torch.zeros(len(coefficients))), 1, atol=1e-6)


def test_band_errors_are_those_of_the_bands_to_first_order(crystal):
    sample, part, expansion, coefficients = crystal
    target = MatrixTarget.of(sample, part, expansion)
    almost = (1 - 1e-4) * coefficients
    data, k_space = sample.data, sample.k_space
    found = data.h0 + dh_from_coefficients(part, expansion, almost).on_pairs(data.h0.pairs)
    eps = bands.eigenvalues(found, data.overlap, k_space.kpts)[0]
    counted = k_space.eps[0] < data.fermi_level + 5
    shift = (eps - k_space.eps[0])[counted]
    expected = np.abs(shift - shift.mean()).mean() / target.h0_band_error
    assert_allclose(target.errors(torch.tensor(almost))[1], expected, rtol=1e-2)


def test_gradients_are_those_of_finite_differences(crystal):
    sample, part, expansion, coefficients = crystal
    target = MatrixTarget.of(sample, part, expansion)
    at = 0.5 * coefficients  # half of dH is missing: few elements are near a kink
    for k in range(2):
        c = torch.tensor(at, requires_grad=True)
        target.errors(c)[k].backward()
        direction = c.grad.numpy() / np.linalg.norm(c.grad)
        direction *= 1e-5 * np.linalg.norm(at)
        after, before = (target.errors(torch.tensor(at + s * direction))[k] for s in (1, -1))
        assert_allclose(c.grad.numpy() @ direction, float(after - before) / 2, rtol=1e-3)


def test_spinor_states_give_the_errors_of_those_without_spin(crystal):
    sample, part, expansion, coefficients = crystal
    k = sample.k_space
    doubled = np.repeat(k.coefficients, 2, axis=2)
    up = np.where(np.arange(doubled.shape[2])[:, None] % 2 == 0, doubled, 0)
    spinor = replace(sample, k_space=KSpace(k.kpts, k.eps, up, k.nlow))
    some = torch.tensor(0.3 * coefficients)
    expected = MatrixTarget.of(sample, part, expansion).errors(some)
    found = MatrixTarget.of(spinor, part, expansion).errors(some)
    assert_allclose(found, expected, rtol=1e-6)


def test_a_sample_without_eigenvectors_is_refused_by_name(crystal):
    sample, part, expansion, _ = crystal
    with pytest.raises(ValueError, match="GaAs: the sample has no eigenvectors"):
        MatrixTarget.of(replace(sample, k_space=None), part, expansion)


def test_a_sample_whose_dh_is_nothing_is_refused_by_name(crystal):
    sample, part, expansion, _ = crystal
    nothing = replace(sample, data=replace(sample.data, hamiltonian=sample.data.h0))
    with pytest.raises(ValueError, match="GaAs: dH changes nothing"):
        MatrixTarget.of(nothing, part, expansion)
