"""The loss: by its laws, and against numbers of the published training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from ase_nextham.matrix import aligned
from ase_nextham.model import released_layout
from ase_nextham.model.ensemble import Ensemble
from ase_nextham.model.graph import Graph
from ase_nextham.model.network import Architecture
from ase_nextham.model.parts import part_elements
from ase_nextham.testing import random_lcao
from ase_nextham.training.dataset import Entry, Sample
from ase_nextham.training.dataset_kspace import k_space
from ase_nextham.training.dataset_prepare import Prepared
from ase_nextham.training.example import Example, joined
from ase_nextham.training.kspace import BlochSum, States, k_blocks
from ase_nextham.training.loss import KBlocks, Weights, best_shift, combined, error, k_errors
from ase_nextham.training.objective import Batch, Objective, shell_traces, trace_patterns

SHELLS = (0, 0, 1, 1, 2, 3)
KPTS = np.array([[0.1, 0.2, -0.3], [0.4, 0.0, 0.25]])
PART = {"unpolarised": "scalar", "collinear": "collinear", "spinor": "spinor"}


def sample(seed: int, spin: str = "unpolarised", symbols: str = "GaAs") -> Sample:
    """A sample made of random matrices."""
    data = random_lcao(seed, symbols, spin=spin)
    states = k_space(data, KPTS, fermi_level=-8.0)
    entry = Entry.of(f"{symbols}_{seed}", symbols, Prepared(data, 0.0, spin, states))
    return Sample(entry, data, states)


class Told(nn.Module):
    """A network that says what it is told."""

    def __init__(self, shells, answer=None, shift: float = 0.0):
        super().__init__()
        self.ensemble = Ensemble(Architecture("2x0e", 1, 1, 2, 2, False), shells, (0, 8))
        self.answer, self.shift, self.experts = answer, shift, self.ensemble.experts

    def graph(self, several):
        return self.ensemble.graph(several)

    def forward(self, graph):
        return self.answer


def example(one: Sample, part: str = "scalar", dtype=torch.float64) -> Example:
    def graph(several):
        return Graph.of(several, SHELLS, 8.0, reads=part, corrects=part)

    return Example.of(one, graph, part, dtype)


# --- the terms -----------------------------------------------------------------------------------


def test_published_losses_are_reproduced(shared_data):
    folder = shared_data.parent / "golden" / "released"
    if not folder.is_dir():
        pytest.skip(f"the published numbers are not at {folder}")
    golden, graph = np.load(folder / "loss.npz"), np.load(folder / "graph_tiny.npz")
    # in the single precision of the published programs, whose mu has 8 digits
    predicted, label, overlap = (torch.tensor(golden[k]) for k in ("dH_pred", "dH_gt", "S"))
    difference, count = predicted - label, int(graph["mask"].sum())
    weights, cut, nbasis = Weights(), int(golden["cut"]), int(golden["nbasis"])
    rows = 54 * torch.tensor(graph["edge_src"])[:, None] + torch.arange(54)
    columns = 54 * torch.tensor(graph["edge_dst"])[:, None] + torch.arange(54)
    bloch = BlochSum(
        R=torch.tensor(graph["R"]),
        sizes=torch.full((len(rows),), 54**2),
        places=(rows[:, :, None] * 162 + columns[:, None]).flatten(),
        dimension=162,
    )
    # a published block has spin before orbitals; in which order orbitals are does not matter here
    blocks = (label + float(golden["k1_mu"]) * overlap).view(-1, 2, 27, 2, 27)
    blocks = blocks.permute(0, 2, 1, 4, 3).reshape(-1, 54, 54)
    pattern = trace_patterns(blocks, released_layout.SHELLS).flatten(1)
    assert_allclose(pattern, golden["trace_label"], rtol=0, atol=3e-6)  # of up to 8
    assert golden["trace_mask"].all()  # nothing is left out, shells that are not there neither
    trace = error(torch.tensor(golden["trace_pred"]) - pattern, "absolute")
    assert_allclose(trace, golden["trace_loss"], rtol=1e-6)
    for k, kpt in enumerate(torch.tensor(golden["kpts"])):
        c = torch.tensor(golden["evecs"][k * nbasis : (k + 1) * nbasis]).T
        matrix = c.mH @ bloch(difference.flatten(), kpt) @ c
        block = KBlocks(matrix[:cut, :cut], matrix[cut:, cut:], matrix[:cut, cut:])
        mu = best_shift(difference, overlap, [block], weights, count)
        assert_allclose(mu, golden[f"k{k}_mu"], rtol=0, atol=1e-8)  # eV
        for norm, name in (("absolute", "mae"), ("squared", "mse")):
            # of H(R), the published programs compare real parts only
            terms = {"real": error((difference - mu * overlap).real, norm, count)}
            terms |= k_errors([block.shifted(mu)], norm)
            loss = combined(terms, weights)
            assert_allclose(loss, golden[f"k{k}_loss_{name}"], rtol=0, atol=1e-6)  # eV or eV^2


def test_mu_makes_the_squared_error_smallest():
    one = example(sample(0))
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(one.label.shape, generator=generator, dtype=torch.float64)
    blocks = k_blocks(difference, "scalar", one.bloch, one.states)
    weights = Weights(real=0.5, low=0.2, high=0.1, coupling=0.3)

    def loss(mu):
        terms = {"real": error(difference - mu * one.overlap, "squared")}
        return combined(terms | k_errors([b.shifted(mu) for b in blocks], "squared"), weights)

    mu = best_shift(difference, one.overlap, blocks, weights, difference.numel())
    for step in (1e-3, -1e-3, 0.1, -0.1):
        assert loss(mu + step) > loss(mu)
    slope = (loss(mu + 1e-3) - loss(mu - 1e-3)) / 2e-3
    assert abs(slope) < 1e-10


def test_the_loss_does_not_know_the_zero_of_energy():
    one = sample(1)
    ours = example(one)
    for shift in (0.0, 0.7, -3.0):
        objective = Objective(
            Told(SHELLS, 0.3 * ours.label + shift * ours.overlap), Weights(), "squared"
        )
        loss, _ = objective(Batch.of([ours], [[0, 1]]))
        if shift == 0:
            expected = loss
        assert_allclose(loss, expected, rtol=1e-6)  # single precision of the eigenvectors


@pytest.mark.parametrize("norm", ["squared", "absolute"])
def test_the_right_answer_has_no_loss(norm):
    ours = example(sample(2))
    objective = Objective(Told(SHELLS, ours.label + 0.4 * ours.overlap), Weights(), norm)
    loss, (terms,) = objective(Batch.of([ours], [[0, 1]]))
    assert loss < 1e-6
    assert terms["mae"] < 1e-12


def test_traces_take_over_a_part_of_the_loss_whatever_their_scale():
    weights = Weights(real=1, low=0, high=0, coupling=0, trace=0.2)
    for scale in (0.02, 1.0, 1e4):
        real = torch.tensor(0.7, requires_grad=True)
        trace = torch.tensor(scale, requires_grad=True)
        loss = combined({"real": real, "trace": trace}, weights)
        loss.backward()
        assert_allclose(loss.item(), 0.7, rtol=1e-6)
        assert_allclose(real.grad, 0.8, rtol=1e-6)
        assert_allclose(trace.grad * scale, 0.2 * 0.7, rtol=1e-6)


def test_real_and_imaginary_parts_are_added():
    z = torch.tensor([3 + 4j, -1j])
    assert_allclose(error(z, "squared"), (25 + 1) / 2)
    assert_allclose(error(z, "absolute"), (7 + 1) / 2)
    assert error(z[:0], "squared") == 0


# --- reciprocal space ----------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_the_self_consistent_hamiltonian_is_diagonal_in_its_eigenvectors(spin):
    one = sample(3, spin)
    elements = torch.tensor(part_elements(one.data.hamiltonian, PART[spin]))
    states = States.of(one.k_space)
    blocks = k_blocks(elements, PART[spin], BlochSum.of(one.data, PART[spin]), states)
    eps = torch.tensor(one.k_space.eps).transpose(0, 1).flatten(0, 1)  # k before spin
    for block, energies in zip(blocks, eps, strict=True):
        n = len(block.low)
        assert 0 < n < len(energies)
        assert_allclose(block.low, torch.diag(energies[:n]), atol=1e-4)  # eV, single precision
        assert_allclose(block.high, torch.diag(energies[n:]), atol=1e-4)
        assert_allclose(block.coupling, 0, atol=1e-4)


def test_a_correction_without_spin_acts_on_both_spins_alike():
    one = sample(4, "spinor")
    scalar = part_elements(one.data.hamiltonian, "scalar")
    states = States.of(one.k_space)
    bloch = BlochSum.of(one.data, "scalar")
    blocks = k_blocks(torch.tensor(scalar), "scalar", bloch, states)
    overlap = one.data.overlap
    matrix = type(overlap)(overlap.basis, overlap.symbols, overlap.pairs, "unpolarised", scalar)
    for k, block in enumerate(blocks):
        c = one.k_space.coefficients[0, k]
        expected = c.conj().T @ matrix.with_spin("spinor").at_k(KPTS[k]) @ c
        n = len(block.low)
        assert_allclose(block.low, expected[:n, :n], atol=1e-4)  # eV, single precision
        assert_allclose(block.coupling, expected[:n, n:], atol=1e-4)


def test_bands_that_were_left_out_do_not_count():
    one = sample(5)
    eps = one.k_space.eps.copy()
    eps[:, :, -2:] = np.nan
    full = States.of(one.k_space)
    cut = States.of(type(one.k_space)(KPTS, eps, one.k_space.coefficients, one.k_space.nlow))
    elements = torch.tensor(part_elements(one.data.h0, "scalar"))
    bloch = BlochSum.of(one.data, "scalar")
    for a, b in zip(
        k_blocks(elements, "scalar", bloch, full),
        k_blocks(elements, "scalar", bloch, cut),
        strict=True,
    ):
        assert_allclose(b.high, a.high[:-2, :-2])


def test_gradients_reach_elements_through_reciprocal_space():
    one = example(sample(6, symbols="Si"))
    x = torch.zeros_like(one.label, requires_grad=True)
    states = one.states

    def loss(elements):
        blocks = k_blocks(elements, "scalar", one.bloch, states)
        return sum(k_errors(blocks, "squared").values())

    start = one.label + x
    loss(start).backward()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    step = 1e-4 * direction
    numeric = (loss(one.label + step) - loss(one.label - step)) / 2
    assert_allclose((x.grad * step).sum(), numeric, rtol=1e-6)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["scalar", "collinear", "spinor"])
def test_joined_graphs_are_the_graph_of_all(part):
    spin = {"scalar": "unpolarised"}.get(part, part)
    several = [random_lcao(k, s, spin=spin) for k, s in enumerate(("GaAs", "Si", "GaGa"))]
    options = {"reads": part, "corrects": part}
    whole = Graph.of(several, SHELLS, 5.0, **options)
    parts = joined([Graph.of([data], SHELLS, 5.0, **options) for data in several])
    for name in ("numbers", "structure", "i", "j", "R", "vectors", "distance", "reverse", "h0"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    pairs = torch.arange(len(whole))
    assert torch.equal(parts.reads.blocks(parts.h0, pairs), whole.reads.blocks(whole.h0, pairs))
    assert torch.equal(parts.corrects.partner, whole.corrects.partner)
    assert parts.corrects.sizes == whole.corrects.sizes


@pytest.mark.parametrize("part", ["scalar", "collinear", "spinor"])
def test_the_loss_of_a_batch_is_the_mean_of_its_structures(part):
    spin = {"scalar": "unpolarised"}.get(part, part)
    torch.manual_seed(0)
    architecture = Architecture("4x0e+2x1o", 1, 1, 4, 4, reads=part, corrects=part)
    module = Ensemble(architecture, SHELLS, (0, 1, 8)).double()
    examples = [
        Example.of(one, module.graph, part, torch.float64)
        for one in (sample(0, spin), sample(1, spin, "Si"))
    ]
    objective = Objective(module, Weights(), "squared").double()
    both, terms = objective(Batch.of(examples, [[0], [1]]))
    each = [objective(Batch.of([e], [[k]]))[0] for k, e in enumerate(examples)]
    assert {"real", "trace", "low", "high", "coupling", "mae", "loss"} <= terms[0].keys()
    assert_allclose(both.detach(), sum(each).detach() / 2, rtol=1e-12)


def test_networks_trained_apart_have_the_error_of_all_together():
    torch.manual_seed(0)
    module = Ensemble(Architecture("4x0e+2x1o", 1, 1, 4, 4), SHELLS, (0, 1, 2, 8)).double()
    one = sample(0)
    ours = Example.of(one, module.graph, "scalar", torch.float64)
    objective = Objective(module, Weights(), "squared").double()
    batch = Batch.of([ours], [None])
    total = 0
    for k in range(3):
        objective.expert = k
        predicted, label = objective._elements(batch, None)
        total = total + predicted - label
    objective.expert = None
    predicted, label = objective._elements(batch, None)
    reach = (
        module.weight(0, ours.graph) + module.weight(1, ours.graph) + module.weight(2, ours.graph)
    )
    pairs = torch.nonzero(reach > 1 - 1e-12).flatten()  # where no window fades out
    found = ours.graph.corrects.blocks(total, pairs)
    assert len(pairs) > 4
    assert_allclose(
        found.detach(), ours.graph.corrects.blocks(predicted - label, pairs).detach(), atol=1e-12
    )


def test_traces_add_up_to_the_squares_of_a_block():
    blocks = torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0))
    traces = shell_traces(blocks, SHELLS)
    assert traces.shape == (3, 6, 6)
    assert_allclose(traces.sum(dim=(1, 2)), blocks.square().sum(dim=(1, 2)), rtol=1e-5)
    d_f = blocks[:, 8:13, 13:]
    assert_allclose(traces[:, 4, 5], d_f.square().sum(dim=(1, 2)), rtol=1e-5)


def test_the_pattern_of_traces_is_that_of_both_spins_and_has_no_size():
    generator = torch.Generator().manual_seed(0)
    scalar = torch.randn(3, 20, 20, generator=generator, dtype=torch.float64)
    spinor = torch.zeros(3, 20, 2, 20, 2, dtype=torch.complex128)
    spinor[:, :, 0, :, 0] = spinor[:, :, 1, :, 1] = scalar
    pattern = trace_patterns(scalar, SHELLS)
    assert_allclose(pattern, trace_patterns(spinor.view(3, 40, 40), SHELLS), rtol=1e-12)
    assert_allclose(pattern.mean(dim=(1, 2)), 0, atol=1e-12)
    assert_allclose(pattern.square().mean(dim=(1, 2)), 1, rtol=1e-6)
    assert_allclose(trace_patterns(10 * scalar, SHELLS), pattern, atol=1e-5)


def test_the_label_has_the_energy_zero_of_h0():
    one = sample(0)
    shifted = one.data.hamiltonian + 5.0 * one.data.overlap
    moved = replace(one, data=replace(one.data, hamiltonian=shifted))
    assert_allclose(example(moved).label, example(one).label, atol=1e-10)
    expected = aligned(one.data.hamiltonian, one.data.h0, one.data.overlap)[0] - one.data.h0
    assert_allclose(example(one).label, expected.data, atol=1e-12)


def test_samples_without_a_hamiltonian_are_refused():
    one = sample(0)
    with pytest.raises(ValueError, match="GaAs_0: the sample has no Hamiltonian"):
        example(replace(one, data=replace(one.data, hamiltonian=None)))
    data = one.data.h0.data.copy()
    data[5] = np.nan
    with pytest.raises(ValueError, match=r"GaAs_0: H\(0\) has numbers that are not finite"):
        example(replace(one, data=replace(one.data, h0=replace(one.data.h0, data=data))))
