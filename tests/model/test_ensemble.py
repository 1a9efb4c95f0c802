"""Experts for ranges of distances, and the correction that they make together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ase_nextham.model.ensemble import Ensemble
from ase_nextham.model.irreps import common_shells
from ase_nextham.model.network import Architecture
from ase_nextham.model.parts import part_elements, with_elements
from ase_nextham.testing import random_lcao

TINY = {"features": "8x0e+4x1o+4x1e+4x2e", "layers": 1, "heads": 2, "gaussians": 12}
WINDOWS = (0.0, 1.0, 2.5, 4.5)


def ensemble_for(data, windows=WINDOWS, target="correction", **options) -> Ensemble:
    torch.manual_seed(0)
    architecture = Architecture(**(TINY | {"invariants": 16} | options))
    shells = common_shells(data.basis.shells.values())
    return Ensemble(architecture, shells, windows, target).double()


def correction(ensemble: Ensemble, data):
    with torch.no_grad():
        graph = ensemble.graph([data])
        (elements,) = graph.corrects.split(ensemble(graph))
    return with_elements(elements, ensemble.part, data.h0)


def test_the_words_of_all_experts_count_one_together():
    data = random_lcao(0)
    data = replace(
        data,
        overlap=replace(data.overlap, basis=replace(data.basis, radius={})),
        h0=None,
        hamiltonian=None,
        position=None,
    )
    ensemble = ensemble_for(data)
    graph = ensemble.graph([data])
    total = sum(ensemble.weight(k, graph) for k in range(3))
    inside = graph.distance < WINDOWS[-1] - 1
    assert_allclose(total[inside], 1, atol=1e-14)
    assert 0 < total[~inside].min() < 0.1


def test_each_expert_has_its_window():
    ensemble = ensemble_for(data := random_lcao(0))
    graph = ensemble.graph([data])
    first, second, third = (ensemble.weight(k, graph) > 0 for k in range(3))
    r = graph.distance
    assert set(torch.nonzero(first).flatten().tolist()) >= set(graph.onsite.tolist())
    assert r[first].max() < 1.1
    assert r[second].min() > 0.9
    assert r[second].max() < 2.6
    assert r[third].min() > 2.4


def test_the_correction_ends_where_orbitals_cease_to_overlap():
    data = random_lcao(0, cutoff=3.2)  # twice the radius of its orbitals
    dh = correction(ensemble_for(data), data)
    pairs, atoms = dh.pairs, data.atoms
    vectors = atoms.positions[pairs.j] - atoms.positions[pairs.i] + pairs.R @ atoms.cell.array
    r = np.linalg.norm(vectors, axis=1)
    largest = np.maximum.reduceat(np.abs(dh.data), dh.offsets[:-1])
    assert largest[r > 3.2].max() == 0
    assert largest[r < 3.1].min() > 0


def test_hermitian_by_construction_before_any_training():
    data = random_lcao(0, spin="spinor")
    assert correction(ensemble_for(data), data).hermitian_error() < 1e-14


def test_the_scalar_correction_is_real_and_the_same_for_both_spins():
    data = random_lcao(0, spin="spinor")
    dh = correction(ensemble_for(data), data)
    for _, _, _, elements in dh.block_groups():
        block = dh.data[elements]
        assert np.array_equal(block[:, 0::2, 0::2], block[:, 1::2, 1::2])
        assert not block[:, 0::2, 1::2].any()
    assert not np.imag(dh.data).any()


def test_h0_without_spin_and_with_spin_get_the_same_correction():
    data = random_lcao(0)
    ensemble = ensemble_for(data)
    scalar = correction(ensemble, data)
    spinor = correction(ensemble, replace(data, h0=data.h0.with_spin("spinor"), hamiltonian=None))
    assert_allclose(spinor.data, scalar.with_spin("spinor").data, atol=1e-12)


@pytest.mark.parametrize("part", ["collinear", "spinor"])
def test_no_magnetism_comes_from_an_h0_without_it(part):
    data = random_lcao(0, spin=part, magnetic=False)
    dh = correction(ensemble_for(data, reads=part, corrects=part), data)
    assert dh.time_reversal_error() < 1e-12
    assert np.abs(dh.data).max() > 0.01


@pytest.mark.parametrize("part", ["collinear", "spinor"])
def test_reversing_time_in_h0_reverses_it_in_the_correction(part):
    data = random_lcao(0, spin=part, magnetic=True)
    ensemble = ensemble_for(data, reads=part, corrects=part)
    dh = correction(ensemble, data)
    assert dh.time_reversal_error() > 1e-3
    reversed_dh = correction(
        ensemble, replace(data, h0=reversed_in_time(data.h0), hamiltonian=None)
    )
    assert_allclose(reversed_dh.data, reversed_in_time(dh).data, atol=1e-12)


def reversed_in_time(matrix):
    if matrix.spin == "collinear":
        return replace(matrix, data=matrix.data[::-1])
    values = np.empty_like(matrix.data)
    for _, _, _, elements in matrix.block_groups():
        block, turned = matrix.data[elements].conj(), np.empty(elements.shape, complex)
        turned[:, 0::2, 0::2], turned[:, 1::2, 1::2] = block[:, 1::2, 1::2], block[:, 0::2, 0::2]
        turned[:, 0::2, 1::2], turned[:, 1::2, 0::2] = -block[:, 1::2, 0::2], -block[:, 0::2, 1::2]
        values[elements] = turned
    return replace(matrix, data=values)


def test_networks_that_give_the_hamiltonian_replace_h0():
    data = random_lcao(0)
    ensemble = ensemble_for(data, target="hamiltonian", inputs="elements")
    other = replace(data, h0=2.0 * data.h0, hamiltonian=None)
    H, same_H = (d.h0 + correction(ensemble, d) for d in (data, other))
    graph = ensemble.graph([data])
    inside = graph.i[(sum(ensemble.weight(k, graph) for k in range(3)) == 1)]
    assert len(inside)
    for p in torch.nonzero(graph.distance < 2).flatten().tolist():
        key = int(graph.i[p]), int(graph.j[p]), graph.R[p].numpy()
        assert_allclose(H.block(*key), same_H.block(*key), atol=1e-12)


def test_gradients_reach_every_expert():
    data = random_lcao(0)
    ensemble = ensemble_for(data)
    graph = ensemble.graph([data])
    target = torch.from_numpy(part_elements(data.hamiltonian - data.h0, "scalar"))
    (ensemble(graph) - target).abs().mean().backward()
    for expert in ensemble.experts:
        assert expert.embed_node.weights["0e"].grad.abs().max() > 0


def test_an_expert_learns_the_correction_of_one_structure():
    data = random_lcao(0)
    ensemble = ensemble_for(data, windows=(0, 4.5))
    graph = ensemble.graph([data])
    target = 0.1 * torch.from_numpy(part_elements(data.h0, "scalar"))
    inside = ensemble(graph).detach() != 0
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (ensemble(graph) - target)[inside].abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": (0, 4, 2)}, "must rise by at least 0.2"),
        ({"windows": (1, 4)}, "windows are distances from 0 to the cutoff"),
        ({"target": "H"}, "unknown target 'H'"),
        ({"target": "hamiltonian", "reads": "spinor"}, "read the part that they give"),
    ],
)
def test_impossible_ensembles_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ensemble_for(random_lcao(0), **arguments)
