"""The PBE functional: derivatives of its energy, limits, and the thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham.h0.native import xc

GAMMA = 0.0310910


def energy(up, down, grad_up, grad_down):
    """PBE energy per volume of a polarised density, Hartree."""
    n, g = up + down, grad_up + grad_down
    zeta = (up - down) / n
    return (
        n * xc.local_density_spin(n, zeta)[0]
        + 0.5 * xc.exchange_gradient(2 * up, 4 * grad_up @ grad_up)[0]
        + 0.5 * xc.exchange_gradient(2 * down, 4 * grad_down @ grad_down)[0]
        + xc.correlation_gradient_spin(n, zeta, g @ g, GAMMA)[0]
    )


def slope(function, x, step):
    # a five-point formula, so that rounding and not the step limits it
    points = [function(x + k * step) for k in (-2, -1, 1, 2)]
    return (points[0] - 8 * points[1] + 8 * points[2] - points[3]) / (12 * np.linalg.norm(step))


@pytest.mark.parametrize("seed", range(6))
def test_potentials_are_derivatives_of_the_energy(seed):
    rng = np.random.default_rng(seed)
    up, down = 10 ** rng.uniform(-3, 0, 2)
    grad = rng.normal(size=(2, 3)) * np.array([[up], [down]])
    n, m = np.array([up + down]), np.array([up - down])
    gradient, gradient_m = (grad[0] + grad[1])[:, None], (grad[0] - grad[1])[:, None]
    xc.collinear_potential(n, m, gradient, gradient_m, xc.Rules.of(4))
    h = 1e-3
    v_up = 2 * slope(lambda x: energy(x, down, *grad), up, h * up)
    v_down = 2 * slope(lambda x: energy(up, x, *grad), down, h * down)
    assert_allclose([n + m, n - m], [[v_up], [v_down]], rtol=1e-8)  # Ry
    for axis in np.eye(3):
        x = 2 * slope(lambda g: energy(up, down, g, grad[1]), grad[0], h * up * axis)
        y = 2 * slope(lambda g: energy(up, down, grad[0], g), grad[1], h * down * axis)
        assert_allclose((gradient + gradient_m)[:, 0] @ axis, x, rtol=1e-7, atol=1e-10)
        assert_allclose((gradient - gradient_m)[:, 0] @ axis, y, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("nspin", [1, 4])
def test_slopes_are_derivatives_of_the_potential(nspin):
    rng = np.random.default_rng(3)
    rules = xc.Rules.of(nspin)
    # below zero as well, where only nspin 1 has a gradient correction
    n = 10 ** rng.uniform(-3, 0.5, 2000) * rng.choice([1, 1, 1, -1], 2000)
    gradient = rng.normal(size=(3, 2000)) * n
    change, change_g = rng.normal(size=2000) * n, rng.normal(size=(3, 2000)) * n

    def potential(x):
        v, h = n + x * change, gradient + x * change_g
        xc.unpolarised_potential(v, h, rules)
        return np.concatenate([v[None], h])

    expected = slope(potential, 0.0, 1e-3)
    slopes = xc.unpolarised_slopes(n, gradient, rules)
    xc.respond(change, change_g, gradient, slopes)
    assert_allclose(change, expected[0], rtol=1e-6, atol=1e-9)  # Ry
    assert_allclose(change_g, expected[1:], rtol=1e-6, atol=1e-8 * np.abs(expected[1:]).max())
    # the second derivatives of an energy do not depend on their order
    assert_allclose(np.sign(n) * slopes[1], slopes[2], rtol=1e-9)


def test_slopes_know_the_thresholds():
    rng = np.random.default_rng(4)
    n = 10 ** rng.uniform(-12, 1, 4000) * rng.choice([1, 1, 1, -1], 4000)
    gradient = rng.normal(size=(3, 4000)) * 10 ** rng.uniform(-12, 0, 4000)
    for nspin in (1, 4):
        v, h = n.copy(), gradient.copy()
        xc.unpolarised_potential(v, h, xc.Rules.of(nspin))
        dv_n, _, _, s, _ = xc.unpolarised_slopes(n, gradient, xc.Rules.of(nspin))
        assert np.array_equal(dv_n != 0, v != 0)
        assert_allclose(s * gradient, h, rtol=1e-9, atol=1e-15)


def test_without_magnetisation_both_routines_agree():
    rng = np.random.default_rng(1)
    # over all thresholds, with densities slightly below zero
    n = 10 ** rng.uniform(-12, 1, 4000) * rng.choice([1, 1, 1, -1], 4000)
    gradient = rng.normal(size=(3, 4000)) * 10 ** rng.uniform(-12, 0, 4000)
    one, two = n.copy(), n.copy()
    m, gradient_m = np.zeros(4000), np.zeros((3, 4000))
    h_one, h_two = gradient.copy(), gradient.copy()
    xc.unpolarised_potential(one, h_one, xc.Rules.of(4))
    xc.collinear_potential(two, m, h_two, gradient_m, xc.Rules.of(4))
    assert_allclose(two, one, rtol=1e-10, atol=1e-14)
    assert_allclose(h_two, h_one, rtol=1e-10, atol=1e-14)
    assert not m.any()
    assert not gradient_m.any()


def test_the_slowly_varying_limit_cancels_between_exchange_and_correlation():
    # mu = pi^2 beta / 3: the linear response of PBE is that of the local density
    n, g2 = 0.02, 1e-10
    exchange = xc.exchange_gradient(n, g2)[0]
    correlation = xc.correlation_gradient(n, g2, (1 - np.log(2)) / np.pi**2)[0]
    assert abs(exchange + correlation) < 1e-5 * abs(exchange)


def test_exchange_keeps_the_lieb_oxford_bound():
    for g2 in 10.0 ** np.arange(-6, 12):
        local = -0.75 * (3 / np.pi) ** (1 / 3) * 0.1 ** (4 / 3)
        enhancement = 1 + xc.exchange_gradient(0.1, g2)[0] / local
        assert 1 <= enhancement < 1.804


def test_correlation_vanishes_for_rapid_variation():
    n = 0.1
    local = xc.local_density(n)[0] + 0.75 * (3 * n / np.pi) ** (1 / 3)
    gradient = xc.correlation_gradient(n, 1e8, (1 - np.log(2)) / np.pi**2)[0] / n
    assert_allclose(gradient, -local, rtol=1e-3)


def test_fully_polarised_exchange_scales_by_the_cube_root_of_two():
    assert_allclose(
        xc.local_density_spin(0.3, 1.0)[1] - _correlation_up(0.3),
        2 ** (1 / 3) * -((3 * 0.3 / np.pi) ** (1 / 3)),
        rtol=1e-12,
    )


def _correlation_up(n):
    """Correlation potential of the fully polarised gas by Perdew and Wang, written out."""
    rs = (3 / (4 * np.pi * n)) ** (1 / 3)

    def e(rs):
        q = 14.1189 * rs**0.5 + 6.1977 * rs + 3.3662 * rs**1.5 + 0.62517 * rs**2
        return -2 * 0.015545 * (1 + 0.20548 * rs) * np.log(1 + 1 / (2 * 0.015545 * q))

    return e(rs) - rs / 3 * slope(e, rs, 1e-3 * rs)


def test_correlation_of_the_uniform_gas_is_that_of_the_table():
    # Perdew and Wang, table I lists -ec in Ry-free units: rs = 2 and 5, unpolarised and polarised
    for rs, zeta, value in [(2, 0, -0.0448), (2, 1, -0.0240), (5, 0, -0.0282), (5, 1, -0.0154)]:
        n = 3 / (4 * np.pi * rs**3)
        spread = 0.5 * ((1 + zeta) ** (4 / 3) + (1 - zeta) ** (4 / 3))
        exchange = -0.75 * (3 * n / np.pi) ** (1 / 3) * spread
        assert xc.local_density_spin(n, float(zeta))[0] - exchange == pytest.approx(value, abs=3e-4)


@pytest.mark.parametrize(
    ("n", "g", "nspin", "local", "corrected"),
    [
        (0.9e-10, 1e-4, 1, False, False),
        (2e-10, 1e-4, 1, True, False),
        (-1e-3, 1e-4, 1, True, True),
        (-1e-3, 1e-4, 4, True, False),
        (1e-3, 0.9e-5, 1, True, False),
        (1e-3, 0.9e-5, 4, True, True),
        (5e-7, 1e-4, 1, True, False),
        (5e-7, 1e-4, 4, True, True),
    ],
)
def test_thresholds_are_those_of_the_number_of_spins(n, g, nspin, local, corrected):
    v, h = np.array([n]), np.array([[g], [0.0], [0.0]])
    xc.unpolarised_potential(v, h, xc.Rules.of(nspin))
    assert (v[0] != 0) == local
    assert (h[0, 0] != 0) == corrected


def test_more_magnetisation_than_density_gets_no_correlation_gradient():
    rules = xc.Rules.of(4)

    def h(m):
        n, spin = np.array([0.01]), np.array([m])
        gradient, gradient_m = np.full((3, 1), 0.01), np.zeros((3, 1))
        xc.collinear_potential(n, spin, gradient, gradient_m, rules)
        exchange = xc.exchange_gradient(0.01 + m, 3e-4)[2]
        return gradient[0, 0] - 0.01 * exchange  # what is left: correlation

    assert abs(h(0.0101)) < 1e-15
    assert abs(h(0.0099)) > 1e-8


def test_threads_change_nothing():
    rng = np.random.default_rng(2)
    n, gradient = rng.uniform(0, 0.1, 1001), rng.normal(size=(3, 1001))
    results = []
    for threads in (1, 3):
        v, h = n.copy(), gradient.copy()
        xc.unpolarised_potential(v, h, xc.Rules.of(1), threads)
        results.append((v, h))
    assert_allclose(results[0][0], results[1][0], rtol=1e-14)
    assert_allclose(results[0][1], results[1][1], rtol=1e-14)
