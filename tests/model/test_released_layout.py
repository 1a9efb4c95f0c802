"""The vectors of the published networks: their order, scale and what is added to H(0)."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham.testing import random_lcao

torch = pytest.importorskip("torch", reason="the model extra is not installed")

from ase_nextham.model import released_layout as layout  # noqa: E402
from ase_nextham.model.irreps import PaddedBlocks  # noqa: E402


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = shared_data.parent / "golden" / "released"
    if not folder.is_dir():
        pytest.skip(f"the arrays of the published networks are not at {folder}")
    return folder


def spin_fastest(blocks):
    """Blocks with the index 2 * orbital + spin, of those with spin * 27 + orbital."""
    n = blocks.shape[-1] // 2
    blocks = blocks.reshape(-1, 2, n, 2, n).transpose(0, 2, 1, 4, 3)
    return torch.tensor(blocks.reshape(-1, 2 * n, 2 * n))


def test_a_vector_has_1108_irreps_and_5832_numbers():
    blocks = layout.blocks()
    assert len(blocks) == 1108
    assert sum(2 * l + 1 for (l, _), _ in blocks) == layout.SIZE


def test_the_order_of_the_irreps_is_the_published_one(golden):
    theirs = json.loads((golden / "wigner_eckart_irreps.json").read_text())["spinful"]["irreps"]
    assert "+".join(f"1x{l}{'oe'[p > 0]}" for (l, p), _ in layout.blocks()) == theirs


def test_vectors_of_blocks_are_the_published_ones(golden):
    data = np.load(golden / "wigner_eckart.npz")
    vector = layout.vector_of_blocks(spin_fastest(data["spinful_H"]), "openmx")
    assert_allclose(vector, data["spinful_vec"], rtol=1e-10, atol=1e-10 * abs(vector).max())


def test_blocks_of_vectors_are_the_published_ones(golden):
    data = np.load(golden / "wigner_eckart.npz")
    blocks = layout.blocks_of_vector(torch.tensor(data["spinful_vec"]), "openmx")
    assert_allclose(blocks, spin_fastest(data["spinful_H"]), atol=1e-10)


def test_the_irreps_of_blocks_without_spin_are_the_published_ones(golden):
    data = np.load(golden / "wigner_eckart.npz")
    transform = layout.BlockIrreps(layout.SHELLS, convention="openmx")
    irreps = transform.to_irreps(torch.tensor(data["spinless_H"]))
    # theirs is shell pair by shell pair, each with all its L and a square of 2L+1
    theirs, start = torch.tensor(data["spinless_vec"]), 0
    for row, l1 in enumerate(layout.SHELLS):
        for column, l2 in enumerate(layout.SHELLS):
            for L in range(abs(l1 - l2), l1 + l2 + 1):
                irrep = (L, (-1) ** (l1 + l2))
                number = transform.channels[irrep].index(layout.Channel(row, column, 0, L, 1))
                ours = irreps[irrep][:, :, number] * np.sqrt(2 * L + 1)
                assert_allclose(ours, theirs[:, start : start + 2 * L + 1], atol=1e-10)
                start += 2 * L + 1
    assert start == theirs.shape[1]


def test_conventions_change_the_blocks_and_not_the_vector(golden):
    data = np.load(golden / "reorder.npz")
    rows = data["transform_54"][:27, :27]  # their ABACUS to OpenMX
    H = np.random.default_rng(0).normal(size=(2, 27, 27)) + 0j
    there = np.kron(rows @ H @ rows.T, np.eye(2))
    here = np.kron(H, np.eye(2))
    ours = layout.vector_of_blocks(torch.tensor(here), "abacus")
    assert_allclose(ours, layout.vector_of_blocks(torch.tensor(there), "openmx"), atol=1e-12)


@pytest.mark.parametrize("name", ["train_main", "infer_v11"])
def test_the_correction_is_the_real_part_of_up_up(golden, name):
    data = np.load(golden / f"forward_{name}.npz")
    correction = layout.correction_of_vector(torch.tensor(data["ham_f64"]), "openmx")
    assert_allclose(correction, data["dH27_f64"], atol=1e-10 * abs(data["dH27_f64"]).max())


def test_vectors_and_irreps_are_the_inverse_of_each_other():
    vector = torch.tensor(np.random.default_rng(0).normal(size=(2, layout.SIZE)))
    assert_allclose(layout.vector_of(layout.irreps_of(vector)), vector, rtol=1e-14)
    blocks = layout.blocks_of_vector(vector)
    assert_allclose(layout.vector_of_blocks(blocks), vector, atol=1e-12)


def test_a_matrix_becomes_vectors_and_their_correction_its_real_up_up_part():
    h0 = random_lcao(3, "GaAs", spin="spinor", magnetic=True).h0
    vectors = layout.vector_of_blocks(PaddedBlocks(h0, layout.SHELLS).pad(torch.tensor(h0.data)))
    scalar = random_lcao(3, "GaAs").h0.on_pairs(h0.pairs)
    correction = PaddedBlocks(scalar, layout.SHELLS).unpad(layout.correction_of_vector(vectors))
    for i, j, R in [(0, 0, (0, 0, 0)), (0, 1, (0, 0, 0)), (1, 0, (0, 0, 0))]:
        ours = replace(scalar, data=correction.numpy()).block(i, j, R)
        assert_allclose(ours, h0.block(i, j, R)[::2, ::2].real, atol=1e-12)  # eV


def test_vectors_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"have shape \(n, 5832\), not \(2, 729\)"):
        layout.irreps_of(torch.zeros(2, 729))
