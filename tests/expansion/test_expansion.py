"""Atom-centred functions: norms, symmetries, transposes, and what is said about misfits."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ase_nextham.basis import convention_matrix, real_harmonics
from ase_nextham.expansion import Expansion, PlaneWaveSums, RadialFunctions, even_tempered, fit

LADDER = even_tempered((5, 4, 3, 2, 1), 0.2, 6.0)
CELL = np.array([[6.1, 0.3, -0.4], [0.5, 6.7, 0.2], [-0.3, 0.6, 7.1]])  # Bohr
SYMBOLS = ("O", "H", "O")
TAU = np.array([[0.1, -0.2, 0.05], [1.65, 0.4, 0.6], [3.0, 2.9, 3.3]])


@pytest.fixture(scope="module")
def expansion() -> Expansion:
    """Two elements with different functions."""
    mesh = np.linspace(0, 7, 701)
    return Expansion(
        "potential",
        {
            "H": RadialFunctions.coulomb(even_tempered((3, 2), 0.3, 4.0)),
            "O": RadialFunctions.weighted(LADDER, mesh, np.exp(-mesh)),
        },
    )


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """All reciprocal vectors up to 8 / Bohr, that of G = 0 among them."""
    m = np.stack(np.meshgrid(*[np.arange(-11, 12)] * 3, indexing="ij"), -1).reshape(-1, 3)
    g = m @ (2 * np.pi * np.linalg.inv(CELL).T)
    return g[np.linalg.norm(g, axis=1) < 8]


def sums(expansion, vectors, tau=TAU, symbols=SYMBOLS) -> PlaneWaveSums:
    return PlaneWaveSums(expansion, symbols, tau, vectors, abs(np.linalg.det(CELL)))


@pytest.fixture(scope="module")
def coefficients(expansion) -> np.ndarray:
    return np.random.default_rng(0).normal(size=expansion.offsets(SYMBOLS)[-1])


# --- radial functions ----------------------------------------------------------------------------


def test_functions_are_orthonormal_on_one_atom_in_the_coulomb_metric():
    functions = RadialFunctions.coulomb(LADDER)
    g = np.linspace(0, 30, 6001)
    for l in range(functions.lmax + 1):
        f = functions.transforms(l, g)
        # d3G / (2 pi)^3 8 pi / G^2 without the angles
        gram = np.trapezoid(f[:, None] * f[None], g) / np.pi**2
        assert np.abs(gram - np.eye(len(f))).max() < 1e-7


def test_functions_are_orthonormal_on_one_atom_with_a_weight():
    mesh = np.linspace(0, 7, 701)
    w = np.exp(-mesh)
    functions = RadialFunctions.weighted(LADDER, mesh, w)
    for l in range(functions.lmax + 1):
        f = functions.values(l, mesh)
        gram = np.trapezoid(f[:, None] * f[None] * w * mesh**2, mesh)
        assert np.abs(gram - np.eye(len(f))).max() < 1e-8


def test_combinations_that_hardly_exist_are_dropped():
    dense = RadialFunctions.coulomb(even_tempered((20,), 0.2, 8.0))
    assert dense.counts[0] < 12
    assert np.abs(dense.combinations[0]).max() < 1e4


def test_transforms_are_integrals_of_the_functions():
    functions = RadialFunctions.coulomb(LADDER)
    r = np.linspace(0, 14, 14001)
    for g in (0.0, 0.7, 3.1):
        expected = np.trapezoid(
            4 * np.pi * r**2 * functions.values(0, r) * np.sinc(g * r / np.pi), r
        )
        assert np.abs(functions.transforms(0, np.array([g]))[:, 0] - expected).max() < 1e-7
    charge = np.trapezoid(np.sqrt(4 * np.pi) * r**2 * functions.values(0, r), r)
    assert np.abs(functions.charges - charge).max() < 1e-7


def test_beyond_their_reach_gaussians_are_a_small_share_of_their_largest_value():
    functions = RadialFunctions.coulomb(LADDER)
    g = np.linspace(0, 30, 6001)
    for l in range(functions.lmax + 1):
        for values, reach in zip(functions.gaussians(l, g), functions.reach(l, 1e-6), strict=True):
            assert np.interp(reach, g, values) == pytest.approx(1e-6 * values.max(), rel=1e-2)
            assert values[g > reach].max(initial=0) < 1.01e-6 * values.max()


@pytest.mark.parametrize("counts", [(), (3, 4), (3, 0)])
def test_counts_that_do_not_descend_are_refused(counts):
    with pytest.raises(ValueError, match="counts="):
        even_tempered(counts)


# --- sums over plane waves -----------------------------------------------------------------------


def test_plane_waves_add_up_to_functions_around_all_images(expansion, coefficients):
    m = np.stack(np.meshgrid(*[np.arange(-22, 23)] * 3, indexing="ij"), -1).reshape(-1, 3)
    vectors = m @ (2 * np.pi * np.linalg.inv(CELL).T)
    points = np.random.default_rng(1).uniform(size=(6, 3)) @ CELL
    waves = sums(expansion, vectors).plane_waves(coefficients)
    found = np.exp(1j * points @ vectors.T) @ waves
    assert np.abs(found.imag).max() < 1e-10 * np.abs(found).max()
    images = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    expected, average = np.zeros(len(points)), 0.0
    for tau, symbol, atom in zip(
        TAU, SYMBOLS, expansion.blocks(SYMBOLS, coefficients), strict=True
    ):
        functions = expansion.of(symbol)
        average += atom[0][:, 0] @ functions.charges / abs(np.linalg.det(CELL))
        away = points[:, None] - tau - images @ CELL
        for l, block in enumerate(atom):
            y = real_harmonics(l, away) @ convention_matrix(l, "abacus").T
            f = functions.values(l, np.linalg.norm(away, axis=-1))
            expected += np.einsum("nm,npi,pim->p", block, f, y)
    # the average is left out
    assert np.abs(found.real - (expected - average)).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("sign", [1, -1], ids=["proper", "improper"])
def test_turning_coefficients_turns_the_function(expansion, coefficients, vectors, sign):
    turn = sign * Rotation.random(rng=np.random.default_rng(2)).as_matrix()
    before = sums(expansion, vectors).plane_waves(coefficients)
    turned = expansion.rotated(SYMBOLS, coefficients, turn)
    after = sums(expansion, vectors @ turn.T, TAU @ turn.T).plane_waves(turned)
    assert np.abs(after - before).max() < 1e-11 * np.abs(before).max()
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(coefficients), rel=1e-12)


def test_lattice_translations_of_single_atoms_change_nothing(expansion, coefficients, vectors):
    before = sums(expansion, vectors).plane_waves(coefficients)
    moved = TAU + np.array([[1, -2, 0], [0, 0, 3], [-1, 0, 0]]) @ CELL
    after = sums(expansion, vectors, moved).plane_waves(coefficients)
    assert np.abs(after - before).max() < 1e-11 * np.abs(before).max()


def test_a_shift_of_the_crystal_is_a_phase(expansion, coefficients, vectors):
    shift = np.array([0.3, -0.7, 1.1])
    before = sums(expansion, vectors).plane_waves(coefficients)
    after = sums(expansion, vectors, TAU + shift).plane_waves(coefficients)
    expected = before * np.exp(-1j * vectors @ shift)
    assert np.abs(after - expected).max() < 1e-11 * np.abs(before).max()


def test_permuting_atoms_permutes_their_coefficients(expansion, coefficients, vectors):
    order, offsets = [2, 0, 1], expansion.offsets(SYMBOLS)
    moved = np.concatenate([coefficients[offsets[a] : offsets[a + 1]] for a in order])
    symbols = [SYMBOLS[a] for a in order]
    before = sums(expansion, vectors).plane_waves(coefficients)
    after = sums(expansion, vectors, TAU[order], symbols).plane_waves(moved)
    assert np.abs(after - before).max() < 1e-12 * np.abs(before).max()


def test_the_transpose_is_the_transpose(expansion, coefficients, vectors):
    both, rng = sums(expansion, vectors), np.random.default_rng(3)
    y = rng.normal(size=len(vectors)) + 1j * rng.normal(size=len(vectors))
    left = np.vdot(both.plane_waves(coefficients), y).real
    right = coefficients @ both.transpose(y)
    assert abs(left - right) < 1e-10 * abs(left)


def test_columns_and_gram_matrix_are_those_of_the_sum(expansion, coefficients, vectors):
    both = sums(expansion, vectors)
    columns = both.matrix()
    waves = both.plane_waves(coefficients)
    assert np.abs(coefficients @ columns - waves).max() < 1e-12 * np.abs(waves).max()
    weights = np.random.default_rng(4).uniform(size=len(vectors))
    gram = both.gram(weights)
    found = coefficients @ gram @ coefficients
    assert found == pytest.approx(np.sum(weights * np.abs(waves) ** 2), rel=1e-12)


def test_the_gram_matrix_does_not_depend_on_how_pairs_are_divided(expansion, vectors, monkeypatch):
    both = sums(expansion, vectors)
    weights = np.random.default_rng(4).uniform(size=len(vectors))
    rows = both.matrix()
    expected = ((rows.conj() * weights) @ rows.T).real
    scale = np.abs(expected).max()
    assert np.abs(both.gram(weights) - expected).max() < 1e-11 * scale
    monkeypatch.setattr("ase_nextham.expansion.gram._PAIRS", 1)
    monkeypatch.setattr("ase_nextham.expansion.gram._PORTION", 100)
    assert np.abs(both.gram(weights) - expected).max() < 1e-11 * scale


# --- coefficients --------------------------------------------------------------------------------


def test_neutral_coefficients_have_no_charge_and_are_the_nearest(expansion, coefficients):
    charges = expansion.charges(SYMBOLS)
    neutral = expansion.neutral(SYMBOLS, coefficients)
    assert abs(charges @ neutral) < 1e-12 * np.abs(charges).sum()
    change = neutral - coefficients
    parallel = charges * (charges @ change) / (charges @ charges)
    assert np.abs(change - parallel).max() < 1e-13
    again = expansion.neutral(SYMBOLS, neutral)
    assert np.abs(again - neutral).max() < 1e-13


def test_an_expansion_survives_json_and_pickle_with_its_fingerprint(expansion):
    again = Expansion.from_dict(json.loads(json.dumps(expansion.as_dict())))
    assert again.fingerprint == expansion.fingerprint
    assert pickle.loads(pickle.dumps(expansion)).fingerprint == expansion.fingerprint
    assert copy.deepcopy(expansion).fingerprint == expansion.fingerprint


def test_the_fingerprint_tells_kinds_and_numbers_apart(expansion):
    assert Expansion("density", expansion.radial).fingerprint != expansion.fingerprint
    values = expansion.as_dict()
    values["radial"]["H"]["exponents"][0][0] *= 1 + 1e-15 * 2
    assert Expansion.from_dict(values).fingerprint != expansion.fingerprint


def test_misfits_are_named(expansion, coefficients, vectors):
    with pytest.raises(ValueError, match="no functions for 'Si'; it has H, O"):
        expansion.offsets(["Si"])
    with pytest.raises(ValueError, match="coefficients have shape"):
        sums(expansion, vectors).plane_waves(coefficients[1:])
    with pytest.raises(ValueError, match="unknown kind 'charge'; known: density, potential"):
        Expansion("charge", expansion.radial)
    with pytest.raises(ValueError, match="does not describe an expansion"):
        Expansion.from_dict({"kind": "density"})
    with pytest.raises(ValueError, match="must be positive"):
        RadialFunctions((np.array([-1.0]),), (np.ones((1, 1)),))


# --- fits ----------------------------------------------------------------------------------------


def test_a_fit_is_a_minimum_and_fulfils_the_condition():
    rng = np.random.default_rng(5)
    a, b, q = rng.normal(size=(30, 8)), rng.normal(size=30), rng.normal(size=8)
    gram, right = a.T @ a, a.T @ b
    free = fit(gram, right, ridge=0)
    assert np.abs(a.T @ (a @ free - b)).max() < 1e-11
    held = fit(gram, right, ridge=1e-2, zero=q)
    assert abs(q @ held) < 1e-13
    slope = gram @ held - right + 1e-2 * np.trace(gram) / 8 * held
    assert np.abs(slope - q * (q @ slope) / (q @ q)).max() < 1e-11


def test_functions_that_depend_on_each_other_get_the_least_coefficients():
    a = np.array([[1.0, 1.0], [2.0, 2.0]])
    assert np.allclose(fit(a.T @ a, a.T @ [3.0, 6.0], ridge=0), [1.5, 1.5], atol=1e-12)
    three = np.column_stack([a, [0.0, 1.0]])
    zero = np.array([0.0, 0.0, 1.0])
    found = fit(three.T @ three, three.T @ [3.0, 6.0], ridge=0, zero=zero)
    assert np.allclose(found, [1.5, 1.5, 0], atol=1e-12)


def test_impossible_expansions_are_refused():
    for options, message in (
        (((1, 0),), "must be positive"),
        (((2,), 3.0, 1.0), "do not ascend from above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            even_tempered(*options)
    with pytest.raises(ValueError, match="exponents for 2 values of l, but combinations for 1"):
        RadialFunctions((np.ones(1), np.ones(1)), (np.ones((1, 1)),))
    with pytest.raises(ValueError, match="exponents do not fit combinations of shape"):
        RadialFunctions((np.ones(2),), (np.ones((1, 1)),))
    with pytest.raises(ValueError, match="needs the functions of one element"):
        Expansion("density", {})
    with pytest.raises(ValueError, match="ridge=-1 must not be negative"):
        fit(np.eye(2), np.ones(2), ridge=-1)
