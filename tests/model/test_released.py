"""The published networks: the same numbers from the same weights, and which files are refused."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from numpy.testing import assert_allclose

torch = pytest.importorskip("torch", reason="the model extra is not installed")

from ase_nextham.model import released  # noqa: E402
from ase_nextham.model.released_layout import vector_of_blocks  # noqa: E402

TAGS = {"main": "train_main", "v1.1": "infer_v11"}
VERSIONS = list(TAGS)


@pytest.fixture(scope="module")
def copied(root):
    """A part of the published numbers that is small enough for the repository."""
    return np.load(root / "tests" / "data" / "released" / "golden.npz")


@pytest.fixture(scope="module")
def graph(copied):
    """H(0) as vectors in double precision, vectors, sources and targets of the edges."""
    blocks = np.zeros((len(copied["edge_vec"]), 54, 54), complex)
    blocks.flat[copied["h0_places"]] = copied["h0_values"]
    blocks = blocks.reshape(-1, 2, 27, 2, 27).transpose(0, 2, 1, 4, 3).reshape(-1, 54, 54)
    vectors, *edges = (torch.tensor(copied[name]) for name in ("edge_vec", "edge_src", "edge_dst"))
    return (vector_of_blocks(torch.tensor(blocks), "openmx"), vectors, *(x.long() for x in edges))


def weight(name, shape):
    """The weight that the published numbers were made with."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 2 and "ele_embed" not in name:  # a linear layer
        z = z / np.sqrt(shape[1])
    elif name.endswith("offset"):
        z = 0.5 * z
    elif name.endswith("weight") and "tp.weight" not in name and len(shape) == 1:  # a norm
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.tensor(z.astype(np.float32))


@pytest.fixture(scope="module")
def weights():
    """For each version the weights of one network."""
    return {
        version: {
            name: weight(name, tuple(p.shape))
            for name, p in released.ReleasedNetwork(version).named_parameters()
        }
        for version in VERSIONS
    }


@pytest.fixture(scope="module")
def double(weights):
    """Both networks in double precision."""
    return {v: released.load(v, weights[v], torch.float64) for v in VERSIONS}


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = shared_data.parent / "golden" / "released"
    if not folder.is_dir():
        pytest.skip(f"the arrays of the published networks are not at {folder}")
    return folder


@pytest.fixture(scope="module")
def expected(golden):
    return {v: np.load(golden / f"forward_{tag}.npz") for v, tag in TAGS.items()}


@pytest.fixture(scope="module")
def described(golden):
    """For each version names and shapes of all that is in a published file."""
    return {v: json.loads((golden / f"state_{tag}.json").read_text()) for v, tag in TAGS.items()}


def assert_same(ours, theirs, relative):
    """Equal to a fraction of the largest number."""
    assert ours.shape == theirs.shape
    assert_allclose(ours.detach(), theirs, rtol=0, atol=relative * abs(theirs).max())


# --- the same numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sample_of_the_correction_and_the_trace_is_the_published_one(
    double, graph, copied, version
):
    ham, trace = double[version](*graph)
    assert_same(ham[:, ::53], copied[f"ham_{version}"], 1e-10)
    assert_same(trace[:, ::5], copied[f"trace_{version}"], 1e-10)


@pytest.mark.parametrize("version", VERSIONS)
def test_correction_and_trace_are_the_published_ones(double, graph, expected, version):
    ham, trace = double[version](*graph)
    assert_same(ham, expected[version]["ham_f64"], 1e-10)
    assert_same(trace, expected[version]["trace_f64"], 1e-10)


@pytest.mark.parametrize("version", VERSIONS)
def test_single_precision_gives_five_digits(weights, graph, expected, version):
    network = released.load(version, weights[version], torch.float32)
    ham, trace = network(*graph)
    assert ham.dtype == trace.dtype == torch.float32
    assert_same(ham, expected[version]["ham_f32"], 1e-5)
    assert_same(trace, expected[version]["trace_f32"], 1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_features_of_nodes_and_edges_are_the_published_ones(double, graph, expected, version):
    network, seen = double[version], []
    hooks = [b.register_forward_hook(lambda m, i, out: seen.append(out)) for b in network.blocks]
    network(*graph)
    for hook in hooks:
        hook.remove()
    theirs = network.layout.published_order(released.FEATURES[version])
    by_target = torch.argsort(graph[3], stable=True)
    assert len(seen) == 3
    for k, (node, edge) in enumerate(seen):
        assert_same(node, expected[version][f"f64_block{k}_0"][:, theirs], 1e-10)
        assert_same(edge, expected[version][f"f64_block{k}_1"][by_target][:, theirs], 1e-10)


@pytest.mark.parametrize("version", VERSIONS)
def test_invariant_features_and_their_gradients_are_the_published_ones(
    double, graph, expected, version
):
    network, seen = double[version], []
    hooks = [
        module.register_forward_hook(lambda m, i, out: seen.append(out))
        for module in network.edge_feature_nonlin_block
    ]
    network(*graph)
    for hook in hooks:
        hook.remove()
    theirs = network.layout.published_order(released.FEATURES[version])
    by_target = torch.argsort(graph[3], stable=True)
    for k, (z, gradient) in enumerate(seen):
        assert_same(z, expected[version][f"f64_tg{k}_0"][by_target], 1e-10)
        if version == "main" and k < 3:
            gradient = network.layout.join(gradient)
            assert_same(gradient, expected[version][f"f64_tg{k}_1"][by_target][:, theirs], 1e-10)
        else:
            assert gradient is None


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_of_the_weights_are_the_published_ones(weights, graph, described, version):
    network = released.load(version, weights[version], torch.float64).requires_grad_()
    ham, trace = network(*graph)
    (ham.square().sum() + trace.square().sum()).backward()
    norms = {name: float(p.grad.norm()) for name, p in network.named_parameters()}
    expected = described[version]["grad_norms"]
    assert norms.keys() == {p["name"] for p in described[version]["params"] if p["live"]}
    for name, norm in norms.items():
        assert norm == pytest.approx(expected[name], rel=1e-9), name


@pytest.mark.parametrize("version", VERSIONS)
def test_outside_of_its_window_a_network_gives_zero(weights, graph, expected, version):
    network = released.load(version, weights[version], torch.float64, window=(2.0, 4.0))
    ham, trace = network(*graph)
    mask = expected[version]["mask_dis_2_4"]
    assert 0 < mask.sum() < len(mask)
    assert_same(ham, expected[version]["ham_f64"] * mask, 1e-10)
    assert_same(trace, expected[version]["trace_f64"] * mask, 1e-10)


# --- our own evaluation -----------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_chunks_of_edges_do_not_change_the_result(double, graph, version, monkeypatch):
    network = double[version]
    ham, trace = network(*graph)
    monkeypatch.setattr(network, "chunk", 3)
    for ours, whole in zip(network(*graph), (ham, trace), strict=True):
        assert_same(ours, whole.numpy(), 1e-13)


def test_the_order_of_edges_does_not_matter(double, graph):
    shuffled = torch.tensor(np.random.default_rng(0).permutation(len(graph[0])))
    ham, _ = double["main"](*(x[shuffled] for x in graph))
    assert_same(ham, double["main"](*graph)[0][shuffled].numpy(), 1e-13)


def test_new_weights_are_seen(weights, graph):
    network = released.load("main", weights["main"], torch.float64)
    before = network(*graph)[0]
    with torch.no_grad():
        network.blocks[1].ga.sep_act.lin.tp.weight.mul_(1.1)
    assert (network(*graph)[0] - before).abs().max() > 1e-6


@pytest.mark.parametrize("version", VERSIONS)
def test_a_window_with_few_or_no_edges_gives_little_or_nothing(weights, double, graph, version):
    onsite = released.load(version, weights[version], torch.float64, window=(0.0, 1.0))
    length = graph[1].norm(dim=1)
    whole, _ = double[version](*graph)
    assert_same(onsite(*graph)[0], (whole * (length < 1)[:, None]).numpy(), 1e-13)
    none = released.load(version, weights[version], torch.float64, window=(7.0, 8.0))
    assert not none(*graph)[0].any()


def test_no_edges_give_no_corrections(double, graph):
    ham, trace = double["main"](*(x[:0] for x in graph))
    assert ham.shape == (0, 5832)
    assert trace.shape == (0, 81)


def test_inference_mode_is_understood_and_leaves_no_trace(weights, graph):
    network = released.load("main", weights["main"], torch.float64)
    with torch.inference_mode():
        ham, _ = network(*graph)
    h0 = graph[0].clone().requires_grad_()
    again, _ = network(h0, *graph[1:])
    assert_same(again, ham.numpy(), 1e-15)
    again.sum().backward()
    assert h0.grad.abs().max() > 0


# --- which files are refused ------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_what_never_reaches_the_output_is_named(weights, described, version):
    live = {p["name"] for p in described[version]["params"] if p["live"]}
    dead = {p["name"]: p["shape"] for p in described[version]["params"] if not p["live"]}
    # node_lin is in files that were written before the published code dropped it
    dead |= described[version]["buffers"] | {"node_lin.tp.weight": [16896]}
    state = weights[version] | {name: torch.zeros(shape) for name, shape in dead.items()}
    network = released.load(version, state)
    assert set(network.unused) == dead.keys()
    assert dict(network.named_parameters()).keys() == live


def test_a_partial_file_is_refused_by_the_names_of_what_it_lacks(weights):
    state = dict(weights["main"])
    del state["blocks.2.ga.pre_lin.tp.weight"]
    with pytest.raises(ValueError, match=r"lacks blocks\.2\.ga\.pre_lin\.tp\.weight of"):
        released.load("main", state)
    with pytest.raises(ValueError, match=r"lacks input_rs.* and \d+ more of the published"):
        released.load("main", {})


def test_unknown_weights_are_refused_by_name(weights):
    state = weights["main"] | {"blocks.7.ga.pre_lin.tp.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"has blocks\.7\.ga\.pre_lin\.tp\.weight, which"):
        released.load("main", state)


def test_the_weights_of_the_other_version_are_refused(weights):
    with pytest.raises(ValueError, match=r"shape \(11264,\).*the published network's has \(\d+,\)"):
        released.load("v1.1", weights["main"])


def test_unknown_versions_are_refused():
    with pytest.raises(ValueError, match=r"'v2'; known: main, v1\.1"):
        released.ReleasedNetwork("v2")


def test_vectors_of_another_length_are_refused(double, graph):
    with pytest.raises(ValueError, match=r"must have shape \(23, 5832\), not \(23, 729\)"):
        double["main"](graph[0][:, :729], *graph[1:])
