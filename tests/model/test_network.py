"""The layers of the network and the network itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from ase_nextham.basis import rotation_matrix
from ase_nextham.model.aligned import AlignedLinear, BondFrames
from ase_nextham.model.angular import harmonics, wigner_3j
from ase_nextham.model.attention import Bonds
from ase_nextham.model.graph import Graph
from ase_nextham.model.irreps import common_shells
from ase_nextham.model.layers import LayerNorm, irrep_name, multiplicities, smooth_step
from ase_nextham.model.network import Architecture, Network
from ase_nextham.model.tracegrad import TraceGrad
from ase_nextham.testing import random_lcao

CHANNELS = multiplicities("5x0e+2x0o+3x1o+3x1e+2x2e+2x2o+2x3o+1x4e")
TINY = {
    "features": "8x0e+4x0o+4x1o+4x1e+4x2e+4x2o+4x3o",
    "layers": 2,
    "heads": 2,
    "gaussians": 12,
    "invariants": 16,
}


@pytest.fixture(autouse=True)
def double_precision():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def random_features(n: int, channels=CHANNELS) -> dict:
    return {(l, p): torch.randn(n, 2 * l + 1, width) for (l, p), width in channels.items()}


def turned(features: dict, rotation: np.ndarray) -> dict:
    sign = np.linalg.det(rotation)
    proper = rotation * sign
    return {
        (l, p): torch.einsum(
            "mn,...nc->...mc", torch.tensor(rotation_matrix(l, proper, "deeph")), x
        )
        * (p if sign < 0 else 1)
        for (l, p), x in features.items()
    }


def random_rotation(seed: int) -> np.ndarray:
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * np.linalg.det(matrix)


def assert_same(found: dict, expected: dict, atol: float = 1e-12):
    assert found.keys() == expected.keys()
    for irrep in found:
        assert_allclose(found[irrep].detach(), expected[irrep].detach(), atol=atol)


# --- the frame of the bond -------------------------------------------------------------------


def test_harmonics_of_the_bond_point_along_z_in_its_frame():
    vectors = torch.cat([torch.randn(5, 3), torch.tensor([[0, 0, 1.0], [0, 0, -2.0]])])
    Y = {(l, (-1) ** l): y[:, :, None] for l, y in enumerate(harmonics(5, vectors))}
    aligned = BondFrames(vectors, 5, torch.float64).align(Y)
    expected = np.sqrt(2 * np.arange(6) + 1)
    assert_allclose(aligned[0][:, 0], np.tile(expected, (7, 1)), atol=1e-12)
    for sector in aligned[1:]:
        assert_allclose(sector, 0, atol=1e-12)


def test_restoring_is_the_inverse_of_aligning():
    frames = BondFrames(torch.randn(4, 3), 4, torch.float64)
    features = random_features(4)
    assert_same(frames.restore(frames.align(features), CHANNELS), features)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_product_in_the_frame_of_the_bond_turns_with_the_crystal(sign):
    vectors = torch.cat([torch.randn(4, 3), torch.tensor([[0, 0, 1.0], [1e-9, 0, -2.0]])])
    features, linear = random_features(6), AlignedLinear(CHANNELS, CHANNELS)

    def product(vectors: Tensor, features: dict) -> dict:
        frames = BondFrames(vectors, 4, torch.float64)
        return frames.restore(linear(frames.align(features)), CHANNELS)

    rotation = sign * random_rotation(3)
    moved = vectors @ torch.tensor(rotation).T
    expected = turned(product(vectors, features), rotation)
    assert_same(product(moved, turned(features, rotation)), expected)


@pytest.mark.parametrize(
    ("inner", "outer"), [((1, -1), (2, 1)), ((2, 1), (2, -1)), ((3, -1), (1, -1))]
)
def test_it_is_the_tensor_product_with_harmonics_of_all_l(inner, outer):
    vectors = torch.randn(40, 3)
    x = {inner: torch.randn(40, 2 * inner[0] + 1, 1)}
    Y = harmonics(inner[0] + outer[0], vectors)
    terms = [
        torch.einsum(
            "abc,na,nb->nc", torch.tensor(wigner_3j(inner[0], l, outer[0])), x[inner][..., 0], Y[l]
        )
        for l in range(abs(inner[0] - outer[0]), inner[0] + outer[0] + 1)
        if inner[1] * (-1) ** l == outer[1]
    ]
    basis = torch.stack([term.flatten() for term in terms], dim=1).numpy()
    linear = AlignedLinear({inner: 1}, {outer: 1})
    frames = BondFrames(vectors, 3, torch.float64)
    found = frames.restore(linear(frames.align(x)), {outer: 1})[outer].detach().flatten().numpy()
    weights, *_ = np.linalg.lstsq(basis, found, rcond=None)
    assert_allclose(basis @ weights, found, atol=1e-12)
    # as many free weights as terms, hence the same set of maps
    assert len(terms) == sum(w.numel() for w in linear.weights)


# --- layers ----------------------------------------------------------------------------------


def test_irreps_are_read_from_words():
    assert multiplicities("32x0e+16x1o") == {(0, 1): 32, (1, -1): 16}
    assert irrep_name((1, -1)) == "1o"
    with pytest.raises(ValueError, match="expected terms like '16x1o' joined by '\\+', not '1o'"):
        multiplicities("32x0e+1o")
    with pytest.raises(ValueError, match="names 0e twice"):
        multiplicities("32x0e+1x0e")


def test_a_smooth_step_has_no_slope_or_curvature_at_its_ends():
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    y = smooth_step(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert_allclose(y.detach(), [0, 1])
    assert_allclose(slope.detach(), 0, atol=1e-14)
    assert_allclose(curvature, 0, atol=1e-14)


def test_normalised_features_do_not_depend_on_their_size():
    norm, features = LayerNorm(CHANNELS), random_features(3)
    larger = {irrep: 1e3 * x for irrep, x in features.items()}
    assert_same(norm(larger), norm(features), atol=1e-2)  # but for SMALL


def test_features_that_vanish_stay_zero_when_normalised():
    features = {irrep: torch.zeros_like(x) for irrep, x in random_features(3).items()}
    assert_same(LayerNorm(CHANNELS)(features), features)


def test_the_gradient_of_tracegrad_is_that_of_its_invariants():
    features = {irrep: x.requires_grad_() for irrep, x in random_features(3).items()}
    z, gradient = TraceGrad(CHANNELS, 7)(features)
    expected = torch.autograd.grad(z.sum(), list(features.values()))
    assert_same(gradient, dict(zip(features, expected, strict=True)))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_invariants_of_tracegrad_are_invariant_and_its_gradient_turns(sign):
    tracegrad, features = TraceGrad(CHANNELS, 7), random_features(3)
    rotation = sign * random_rotation(1)
    z, gradient = tracegrad(features)
    z_turned, gradient_turned = tracegrad(turned(features, rotation))
    assert_allclose(z_turned.detach(), z.detach(), atol=1e-12)
    assert_same(gradient_turned, turned(gradient, rotation))


def test_sums_over_the_bonds_of_atoms_are_those_of_a_loop():
    i = torch.tensor([0, 0, 2, 2, 2, 5])
    bonds = Bonds(
        torch.arange(6),
        i,
        i,
        torch.randn(6, 3),
        torch.ones(6, 1),
        torch.ones(6, 1),
        lmax=1,
        keep=False,
    )
    values, totals = torch.randn(6, 3, 2), torch.zeros(6, 3, 2)
    bonds.add_to_atoms(totals, values)
    expected = torch.stack([values[i == atom].sum(0) for atom in range(6)])
    assert_allclose(totals, expected, atol=1e-14)


# --- the network -----------------------------------------------------------------------------


def network_and_graph(data=None, **options):
    data = random_lcao(0, "GaAs") if data is None else data
    shells = common_shells(data.basis.shells.values())
    architecture = Architecture(**(TINY | options))
    graph = Graph.of([data], shells, 4.0, reads=architecture.reads, corrects=architecture.corrects)
    return Network(architecture, shells, 4.0), graph


def test_only_the_pairs_that_are_asked_for_come_back():
    network, graph = network_and_graph()
    wanted = (graph.distance > 1) & (graph.distance < 3)
    with torch.no_grad():
        some, everything = list(network(graph, wanted)), list(network(graph))
    assert_allclose(some[0].pairs, torch.nonzero(wanted).flatten())
    of_all = {int(p): k for k, p in enumerate(everything[1].pairs)}
    rows = [of_all[int(p)] for p in some[0].pairs]
    assert_same(some[0].irreps, {k: x[rows] for k, x in everything[1].irreps.items()})


def test_without_tracegrad_there_are_no_traces():
    network, graph = network_and_graph(tracegrad=False)
    assert all(found.trace is None for found in network(graph, trace=True))


def test_traces_are_those_of_every_two_shells():
    network, graph = network_and_graph()
    shells = len(network.shells)
    for found in network(graph, trace=True):
        assert found.trace.shape == (len(found.pairs), shells, shells)


def test_every_weight_matters():
    # without pseudoscalars, of which H(0) has none, so that their first norm has nothing to do
    network, graph = network_and_graph(features="8x0e+4x1o+4x1e+4x2e+4x2o+4x3o")
    total = 0
    for found in network(graph, trace=True):
        total = total + sum(x.square().sum() for x in found.irreps.values())
        total = total + found.trace.square().sum()
    total.backward()
    dead = [
        name
        for name, w in network.named_parameters()
        if w.numel() and (w.grad is None or not w.grad.any())
    ]
    assert not dead


def test_gradients_are_those_of_finite_differences():
    network, graph = network_and_graph(layers=1)

    def loss() -> Tensor:
        return sum(x.square().sum() for c in network(graph) for x in c.irreps.values())

    loss().backward()
    for name in ("blocks.0.attention.logits.0.weight", "blocks.0.edge_tail.tracegrad.first.weight"):
        weight = network.get_parameter(name)
        direction, step = torch.randn_like(weight), 1e-6
        with torch.no_grad():
            weight += step * direction
            above = loss()
            weight -= 2 * step * direction
            below = loss()
            weight += step * direction
        expected = (above - below) / (2 * step)
        assert_allclose((weight.grad * direction).sum(), expected, rtol=1e-5)


def test_an_atom_without_neighbours_gets_a_correction_on_site():
    data = random_lcao(0, "Ga")
    atoms = data.atoms.copy()
    atoms.set_cell(20 * np.eye(3), scale_atoms=True)
    network, graph = network_and_graph(type(data)(atoms, data.overlap, data.h0))
    (found,) = network(graph)
    assert len(found.pairs) == 1
    assert all(torch.isfinite(x).all() for x in found.irreps.values())


def test_the_correction_of_symmetric_atoms_has_their_symmetry():
    # an atom that sees nothing but itself has, for a spherical H(0), only scalars
    data = random_lcao(0, "H")
    atoms = data.atoms.copy()
    atoms.set_cell(20 * np.eye(3), scale_atoms=True)
    data = type(data)(atoms, data.overlap, data.overlap * 3.0)
    network, graph = network_and_graph(data)
    (found,) = network(graph)
    for (l, _), x in found.irreps.items():
        assert (x.abs().max() > 1e-3) if l == 0 else (x.abs().max() < 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "4x1o"}, "need scalars"),
        ({"inputs": "H0"}, "inputs are 'h0' or 'elements', not 'H0'"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"gaussians": 1}, "gaussians must be at least 2"),
        ({"reads": "real"}, "unknown part of a Hamiltonian 'real'"),
    ],
)
def test_impossible_architectures_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**options)
