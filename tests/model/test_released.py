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
def golden(shared_data):
    folder = shared_data.parent / "golden" / "released"
    if not folder.is_dir():
        pytest.skip(f"the arrays of the published networks are not at {folder}")
    return folder


@pytest.fixture(scope="module")
def graph(golden):
    """H(0) as vectors in double precision, vectors, sources and targets of the edges."""
    data = np.load(golden / "graph_tiny.npz")
    blocks = data["H0_raw"].astype(complex).reshape(-1, 2, 27, 2, 27)
    blocks = torch.tensor(blocks.transpose(0, 2, 1, 4, 3).reshape(-1, 54, 54))
    edges = (torch.tensor(data[name]) for name in ("edge_vec", "edge_src", "edge_dst"))
    return (vector_of_blocks(blocks, "openmx"), *edges)


def random_weight(name, shape, fill):
    """The weights that the golden arrays were made with, of the name and the kind of each."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if fill == "linear":
        return torch.tensor((z / np.sqrt(shape[1])).astype(np.float32))
    factor = {"ln_scale": 0.1, "bias": 0.1, "offset": 0.5, "other": 0.1}[fill]
    return torch.tensor(((fill == "ln_scale") + factor * z).astype(np.float32))


@pytest.fixture(scope="module")
def published(golden):
    """For each version the description of the golden network, and its whole state dict."""
    found = {}
    for version, tag in TAGS.items():
        description = json.loads((golden / f"state_{tag}.json").read_text())
        state = {p["name"]: random_weight(**_without(p, "live")) for p in description["params"]}
        state |= {name: torch.zeros(shape) for name, shape in description["buffers"].items()}
        found[version] = (description, state)
    return found


def _without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


@pytest.fixture(scope="module")
def double(published):
    """Both networks in double precision."""
    return {v: released.load(v, published[v][1], torch.float64) for v in VERSIONS}


@pytest.fixture(scope="module")
def expected(golden):
    return {v: np.load(golden / f"forward_{tag}.npz") for v, tag in TAGS.items()}


def assert_same(ours, theirs, relative):
    """Equal to a fraction of the largest number."""
    assert ours.shape == theirs.shape
    assert_allclose(ours.detach(), theirs, rtol=0, atol=relative * abs(theirs).max())


# --- the same numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_correction_and_trace_are_the_published_ones(double, graph, expected, version):
    ham, trace = double[version](*graph)
    assert_same(ham, expected[version]["ham_f64"], 1e-10)
    assert_same(trace, expected[version]["trace_f64"], 1e-10)


@pytest.mark.parametrize("version", VERSIONS)
def test_single_precision_gives_five_digits(published, graph, expected, version):
    network = released.load(version, published[version][1], torch.float32)
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
def test_gradients_of_the_weights_are_the_published_ones(published, graph, version):
    description, state = published[version]
    network = released.load(version, state, torch.float64).requires_grad_()
    ham, trace = network(*graph)
    (ham.square().sum() + trace.square().sum()).backward()
    norms = {name: float(p.grad.norm()) for name, p in network.named_parameters()}
    expected = description["grad_norms"]
    assert norms.keys() == {p["name"] for p in description["params"] if p["live"]}
    for name, norm in norms.items():
        assert norm == pytest.approx(expected[name], rel=1e-9), name


@pytest.mark.parametrize("version", VERSIONS)
def test_outside_of_its_window_a_network_gives_zero(published, graph, expected, version):
    network = released.load(version, published[version][1], torch.float64, window=(2.0, 4.0))
    ham, trace = network(*graph)
    mask = expected[version]["mask_dis_2_4"]
    assert 0 < mask.sum() < len(mask)
    assert_same(ham, expected[version]["ham_f64"] * mask, 1e-10)
    assert_same(trace, expected[version]["trace_f64"] * mask, 1e-10)


# --- our own evaluation -----------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_chunks_of_edges_do_not_change_the_result(published, graph, version, monkeypatch):
    network = released.load(version, published[version][1], torch.float64)
    ham, trace = network(*graph)
    monkeypatch.setattr(network, "chunk", 3)
    for ours, whole in zip(network(*graph), (ham, trace), strict=True):
        assert_same(ours, whole.numpy(), 1e-13)


def test_the_order_of_edges_does_not_matter(double, graph):
    shuffled = torch.tensor(np.random.default_rng(0).permutation(len(graph[0])))
    ham, _ = double["main"](*(x[shuffled] for x in graph))
    assert_same(ham, double["main"](*graph)[0][shuffled].numpy(), 1e-13)


def test_new_weights_are_seen(published, graph):
    network = released.load("main", published["main"][1], torch.float64)
    before = network(*graph)[0]
    with torch.no_grad():
        network.blocks[1].ga.sep_act.lin.tp.weight.mul_(1.1)
    assert (network(*graph)[0] - before).abs().max() > 1e-6


def test_no_edges_give_no_corrections(double, graph):
    ham, trace = double["main"](*(x[:0] for x in graph))
    assert ham.shape == (0, 5832)
    assert trace.shape == (0, 81)


def test_inference_mode_is_understood(double, graph):
    with torch.inference_mode():
        ham, _ = double["main"](*graph)
    assert_same(ham, double["main"](*graph)[0].numpy(), 1e-15)


# --- which files are refused ------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_what_never_reaches_the_output_is_named(published, version):
    description, state = published[version]
    network = released.load(version, state | {"node_lin.tp.weight": torch.zeros(16896)})
    live = {p["name"] for p in description["params"] if p["live"]}
    assert network.unused[-1] == "node_lin.tp.weight"
    assert set(network.unused) == state.keys() - live | {"node_lin.tp.weight"}


def test_a_partial_file_is_refused_by_the_names_of_what_it_lacks(published):
    state = _without(published["main"][1], "blocks.2.ga.pre_lin.tp.weight")
    with pytest.raises(ValueError, match=r"lacks blocks\.2\.ga\.pre_lin\.tp\.weight"):
        released.load("main", state)


def test_unknown_weights_are_refused_by_name(published):
    with pytest.raises(ValueError, match=r"has blocks\.7\.ga\.pre_lin\.tp\.weight, which"):
        released.load(
            "main", published["main"][1] | {"blocks.7.ga.pre_lin.tp.weight": torch.ones(1)}
        )


def test_the_weights_of_the_other_version_are_refused(published):
    with pytest.raises(ValueError, match="another version"):
        released.load("v1.1", published["main"][1])


def test_unknown_versions_are_refused():
    with pytest.raises(ValueError, match=r"'v2'; known: main, v1\.1"):
        released.ReleasedNetwork("v2")


def test_vectors_of_another_length_are_refused(double, graph):
    with pytest.raises(ValueError, match=r"must have shape \(23, 5832\), not \(23, 729\)"):
        double["main"](graph[0][:, :729], *graph[1:])
