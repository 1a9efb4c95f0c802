"""Structures as tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.matrix import AtomPairs
from ase_nextham.model.graph import Graph
from ase_nextham.model.irreps import slots
from ase_nextham.model.parts import part_elements, with_elements
from ase_nextham.testing import random_lcao

SHELLS = (0, 0, 1, 1, 2, 3)
CUTOFF = 5.0  # Angstrom


def graph_of(*several, **options) -> Graph:
    return Graph.of(several, SHELLS, CUTOFF, **options)


def test_pairs_are_all_those_within_the_cutoff():
    data = random_lcao(0, "GaAsSi")
    graph = graph_of(data)
    atoms = data.atoms
    R = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for i in range(3):
        for j in range(3):
            vectors = atoms.positions[j] - atoms.positions[i] + R @ atoms.cell.array
            inside = np.linalg.norm(vectors, axis=1) < CUTOFF
            here = (graph.i == i) & (graph.j == j)
            assert_array_equal(graph.R[here].numpy(), R[inside])
            assert_allclose(graph.vectors[here].numpy(), vectors[inside], atol=1e-12)


def test_every_pair_knows_its_reverse():
    graph = graph_of(random_lcao(0, "GaAsSi"), random_lcao(1))
    assert_array_equal(graph.i[graph.reverse], graph.j)
    assert_array_equal(graph.R[graph.reverse], -graph.R)
    assert_array_equal(graph.vectors[graph.reverse], -graph.vectors)


def test_pairs_on_site_are_those_of_an_atom_with_itself_and_not_with_its_image():
    graph = graph_of(random_lcao(0, "GaAsSi"))
    assert_array_equal(graph.i[graph.onsite], [0, 1, 2])
    assert graph.distance[graph.onsite].abs().max() == 0
    assert graph.distance[graph.bonds].min() > 0.5
    assert len(graph.onsite) + len(graph.bonds) == len(graph)


def test_padded_blocks_hold_the_blocks_of_h0_and_zeros():
    data = random_lcao(0, "GaH")
    graph = graph_of(data)
    pairs = torch.arange(len(graph))
    blocks = graph.reads.blocks(graph.h0, pairs).numpy()
    place = {name: slots(data.basis.shells[name], SHELLS) for name in data.symbols}
    known = 0
    for p, block in enumerate(blocks):
        expected = np.zeros_like(block)
        i, j, R = int(graph.i[p]), int(graph.j[p]), graph.R[p].numpy()
        if data.pairs.find(i, j, R)[0] >= 0:
            known += 1
            rows, columns = place[data.symbols[i]], place[data.symbols[j]]
            expected[np.ix_(rows, columns)] = data.h0.block(i, j, R)
        assert_array_equal(block, expected)
    assert 0 < known < len(graph), "the cutoff should reach beyond H(0)"


@pytest.mark.parametrize(
    ("part", "spin"),
    [("scalar", "unpolarised"), ("collinear", "collinear"), ("spinor", "spinor")],
)
def test_elements_go_to_blocks_and_back(part, spin):
    several = [random_lcao(seed, spin=spin, magnetic=True) for seed in range(2)]
    graph = graph_of(*several, reads=part, corrects=part)
    pairs = torch.arange(len(graph))
    elements = graph.corrects.zeros(graph.h0)
    graph.corrects.put(elements, pairs, graph.reads.blocks(graph.h0, pairs))
    for data, piece in zip(several, graph.corrects.split(elements[..., :-1]), strict=True):
        inside = distances(data) < CUTOFF
        matrix = with_elements(piece, part, data.h0)
        near, _ = AtomPairs.sort(data.pairs.i[inside], data.pairs.j[inside], data.pairs.R[inside])
        assert_allclose(matrix.cut_to(near)[0].data, data.h0.cut_to(near)[0].data, atol=1e-12)


def distances(data):
    pairs, atoms = data.pairs, data.atoms
    vectors = atoms.positions[pairs.j] - atoms.positions[pairs.i] + pairs.R @ atoms.cell.array
    return np.linalg.norm(vectors, axis=1)


def test_several_structures_stand_one_after_another():
    first, second = random_lcao(0, "GaAsSi"), random_lcao(1, "HAs")
    both, alone = graph_of(first, second), graph_of(second)
    begin = len(both) - len(alone)
    assert_array_equal(both.i[begin:] - 3, alone.i)
    assert_array_equal(both.reverse[begin:] - begin, alone.reverse)
    assert_array_equal(both.structure, [0, 0, 0, 1, 1])
    pairs = torch.arange(len(alone))
    assert_array_equal(
        both.reads.blocks(both.h0, pairs + begin), alone.reads.blocks(alone.h0, pairs)
    )


@pytest.mark.parametrize("part", ["scalar", "spinor"])
def test_the_hermitian_part_is_that_of_the_matrix(part):
    data = random_lcao(0, spin="spinor")
    graph = graph_of(data, corrects=part)
    rng = np.random.default_rng(0)
    elements = torch.from_numpy(rng.normal(size=graph.corrects.shape))
    if part == "spinor":
        elements = torch.complex(elements, torch.from_numpy(rng.normal(size=elements.shape)))
    matrix = with_elements(graph.corrects.hermitian(elements).numpy(), part, data.h0)
    assert matrix.hermitian_error() < 1e-14
    twice = graph.corrects.hermitian(graph.corrects.hermitian(elements))
    assert_allclose(twice, graph.corrects.hermitian(elements), atol=1e-14)


def test_the_scalar_part_is_the_same_without_spin_and_with_it():
    data = random_lcao(0)
    elements = part_elements(data.h0, "scalar")
    for spin in ("collinear", "spinor"):
        assert_allclose(part_elements(data.h0.with_spin(spin), "scalar"), elements, atol=1e-14)


def test_the_scalar_part_of_spinors_leaves_out_what_depends_on_spin():
    data = random_lcao(0, spin="spinor", magnetic=True)
    scalar = with_elements(part_elements(data.h0, "scalar"), "scalar", data.h0)
    rest = data.h0 - scalar
    assert np.abs(part_elements(rest, "scalar")).max() < 1e-14
    assert np.abs(rest.data).max() > 0.1


def test_parts_that_a_matrix_does_not_have_are_refused():
    data = random_lcao(0, spin="spinor")
    with pytest.raises(ValueError, match="a spinor matrix has no collinear part"):
        part_elements(data.h0, "collinear")
    with pytest.raises(ValueError, match="cannot be added to a matrix that is unpolarised"):
        with_elements(data.h0.data, "spinor", data.overlap)
    with pytest.raises(ValueError, match="unknown part of a Hamiltonian 'up'"):
        graph_of(data, reads="up")


def test_orbitals_without_a_place_are_refused_by_name():
    with pytest.raises(ValueError, match="Ga has 2 shells of l = 1, but there is place for 1"):
        Graph.of([random_lcao(0)], (0, 0, 1, 2, 3), CUTOFF)


def test_other_conventions_are_refused():
    data = random_lcao(0)
    data = type(data)(data.atoms, data.overlap.in_convention("deeph"))
    with pytest.raises(ValueError, match="convention 'abacus', not 'deeph'"):
        graph_of(data)
