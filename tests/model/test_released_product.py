"""The published tensor products: in the frame of the bond as in that of the crystal."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

torch = pytest.importorskip("torch", reason="the model extra is not installed")

from ase_nextham.model.aligned import BondFrames, sectors  # noqa: E402
from ase_nextham.model.angular import harmonics, wigner_3j  # noqa: E402
from ase_nextham.model.released import FEATURES  # noqa: E402
from ase_nextham.model.released_layers import Layout, parse  # noqa: E402
from ase_nextham.model.released_product import LMAX, Product  # noqa: E402

SMALL = parse("3x0e+2x1o+2x1e+2x2e+1x3o")


def random(*shape):
    return torch.tensor(np.random.default_rng(len(shape)).normal(size=shape))


def path_by_path(blocks, targets, x, vectors, weights):
    """The definition: every path by its 3j symbols; outputs (n, 2l+1, channels) by irrep."""
    Y = harmonics(LMAX, vectors)
    found, start = {}, 0
    for mul, (li, pi) in blocks:
        for lj in range(LMAX + 1):
            for l in range(abs(li - lj), li + lj + 1):
                irrep = (l, pi * (-1) ** lj)
                if irrep in targets:
                    coupling = np.sqrt(2 * l + 1) * torch.tensor(wigner_3j(li, lj, l))
                    t = torch.einsum("ijk,niu,nj->nku", coupling, x[li, pi], Y[lj])
                    found.setdefault(irrep, []).append(t * weights[:, None, start : start + mul])
                    start += mul
    assert start == weights.shape[1]
    return {irrep: torch.cat(some, dim=2) for irrep, some in found.items()}


def setting(blocks):
    """Product, features, bonds (one of length zero), frames."""
    product = Product(blocks, [irrep for _, irrep in blocks])
    layout = Layout(blocks)
    vectors = random(4, 3)
    vectors[0] = torch.tensor([0.0, 0.0, -1.7])
    frames = BondFrames(vectors, max(l for l, _ in layout.muls), torch.float64)
    return product, layout.split(random(4, sum(layout.sizes))), vectors, frames


@pytest.mark.parametrize("blocks", [SMALL, *FEATURES.values()], ids=["small", *FEATURES])
def test_paths_with_weights_of_each_edge_are_those_of_the_3j_symbols(blocks):
    product, x, vectors, frames = setting(blocks)
    targets = {irrep for _, irrep in blocks}
    weights = random(4, product.size)
    expected = path_by_path(blocks, targets, x, vectors, weights)
    assert product.output == tuple(
        (expected[irrep].shape[2], irrep) for irrep in sorted(expected, key=lambda i: (i[0], -i[1]))
    )
    linear = {irrep: random(t.shape[2], 2) for irrep, t in expected.items()}
    found = product.weighted(
        frames.align(x), weights.T[product.weight_order], product.after_weights(linear)
    )
    aligned = [
        torch.cat([found[irrep, sector] for irrep in some], dim=2) if some else x[0, 1][:, :, :0]
        for sector, some in enumerate(sectors(targets))
    ]
    result = frames.restore(aligned, dict.fromkeys(targets, 2))
    for irrep, t in expected.items():
        assert_allclose(result[irrep], t @ linear[irrep], atol=1e-11)


@pytest.mark.parametrize("blocks", [SMALL, *FEATURES.values()], ids=["small", *FEATURES])
@pytest.mark.parametrize("alone", [False, True])
def test_paths_with_common_weights_are_merged_with_the_layer_after_them(blocks, alone):
    product, x, vectors, frames = setting(blocks)
    targets = {irrep for _, irrep in blocks}
    weights = random(product.size)
    length_zero = torch.zeros_like(vectors) if alone else vectors
    expected = path_by_path(blocks, targets, x, length_zero, weights.expand(4, -1))
    linear = {irrep: random(t.shape[2], 3) for irrep, t in expected.items()}
    matrices = product.merged(weights, linear, alone=alone)
    aligned = [y @ matrix for y, matrix in zip(frames.align(x), matrices, strict=True)]
    result = frames.restore(aligned, dict.fromkeys(targets, 3))
    for irrep, t in expected.items():
        assert_allclose(result[irrep], t @ linear[irrep], atol=1e-11)
