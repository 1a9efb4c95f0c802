"""How the potential of a density changes: against differences, and its transpose."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(params=[1, 4])
def part(native, radical, request):
    """A density above all thresholds, where the potential would jump: dense, and on a fine grid."""
    radical.set_cell(0.62 * radical.cell.array, scale_atoms=True)
    return native(nspin=request.param, ecutwfc=60).local_part(radical)


def waves(part, seed):
    """A random change of the density, smooth and smaller than the density is anywhere."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, len(part.vectors)))
    smooth = np.exp(-np.einsum("gx,gx->g", part.vectors, part.vectors) / 4)
    change = part.to_grid(smooth * (values[0] + 1j * values[1]))
    return part.from_grid(3e-4 * change / np.abs(change).max())


def test_the_response_is_the_derivative_of_the_potential(part):
    base, direction = waves(part, 0), waves(part, 1)
    found = part.response(base).along(direction)
    x = 0.05
    v = [part.potential(base + k * x * direction) for k in (-2, -1, 1, 2)]
    expected = (v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * x)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.median(np.abs(found - expected)) < 1e-8 * np.abs(expected).max()


def test_the_response_and_its_transpose_belong_together(part):
    response = part.response(waves(part, 0))
    direction = waves(part, 1)
    values = np.random.default_rng(2).normal(size=part.waves.shape)
    change = response.along(direction)
    left = np.vdot(values, change)
    right = np.vdot(response.transposed(values), direction).real
    assert abs(left - right) < 1e-12 * np.linalg.norm(values) * np.linalg.norm(change)


def test_the_response_of_exchange_and_correlation_is_symmetric(part):
    # it is the second derivative of an energy: which change comes first does not matter
    response = part.response(waves(part, 0))
    one, two = waves(part, 1), waves(part, 2)
    left = np.vdot(part.to_grid(two), response.along(one))
    right = np.vdot(part.to_grid(one), response.along(two))
    scale = np.linalg.norm(part.to_grid(two)) * np.linalg.norm(response.along(one))
    assert abs(left - right) < 1e-10 * scale
