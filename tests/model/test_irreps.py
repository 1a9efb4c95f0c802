"""Blocks of matrices <-> irreps: orthogonal, equivariant, and those of the published networks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from ase_nextham.basis import Basis, rotation_matrix
from ase_nextham.testing import random_lcao

torch = pytest.importorskip("torch", reason="the model extra is not installed")

from ase_nextham.model.angular import harmonics, wigner_3j  # noqa: E402
from ase_nextham.model.irreps import (  # noqa: E402
    BlockIrreps,
    PaddedBlocks,
    common_shells,
    slots,
)

SPINS = ["unpolarised", "spinor"]
SHELLS = (0, 0, 1, 1, 2, 3)
IMPROPER = -Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
PROPER = Rotation.from_rotvec([-0.3, 0.2, 2.1]).as_matrix()


def random_blocks(n, shells, spin, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    size = sum(2 * l + 1 for l in shells) * (2 if spin == "spinor" else 1)
    blocks = rng.normal(size=(n, size, size))
    if spin == "spinor":
        blocks = blocks + 1j * rng.normal(size=blocks.shape)
    blocks = torch.from_numpy(blocks)
    return blocks if dtype == torch.float64 else blocks.to(torch.complex64)


def irreps_of(matrix, shells):
    padding = PaddedBlocks(matrix, shells)
    transform = BlockIrreps(shells, matrix.spin)
    return transform.to_irreps(padding.pad(torch.tensor(matrix.data)))


def wigner_matrix(l, rotation):
    """Like basis.rotation_matrix, but for l = 7, too, where blocks of f shells with spin end."""
    points = torch.tensor(np.random.default_rng(l).normal(size=(60, 3)))
    before = harmonics(l, points)[l]
    after = harmonics(l, points @ torch.tensor(rotation).T)[l]
    return torch.linalg.lstsq(before, after).solution.T


def turned(irreps, rotation):
    """Irreps after a rotation or rotoinversion: D^l, and the parity where det = -1."""
    proper = rotation * np.sign(np.linalg.det(rotation))
    result = {}
    for (l, parity), x in irreps.items():
        sign = parity if np.linalg.det(rotation) < 0 else 1
        result[l, parity] = sign * wigner_matrix(l, proper) @ x
    return result


# --- 3j symbols and harmonics -----------------------------------------------------------------


def test_3j_symbols_are_those_of_e3nn():
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")
    for l1 in range(8):
        for l2 in range(6):
            for l3 in range(abs(l1 - l2), min(l1 + l2, 7) + 1):
                theirs = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
                assert_allclose(wigner_3j(l1, l2, l3), theirs, atol=1e-14)


def test_3j_symbols_do_not_change_under_rotations():
    for l1, l2, l3 in [(1, 1, 1), (2, 3, 4), (6, 1, 7), (3, 3, 5), (5, 2, 6)]:
        D = [wigner_matrix(l, PROPER) for l in (l1, l2, l3)]
        rotated = np.einsum("ai,bj,ck,ijk->abc", *D, wigner_3j(l1, l2, l3))
        assert_allclose(rotated, wigner_3j(l1, l2, l3), atol=1e-12)


def test_3j_symbols_of_no_triangle_are_refused():
    with pytest.raises(ValueError, match="0, 1, 2 do not form a triangle"):
        wigner_3j(0, 1, 2)


def test_harmonics_turn_like_orbitals_and_have_norm_2l_plus_1():
    vectors = torch.tensor(np.random.default_rng(0).normal(size=(7, 3)))
    before, after = harmonics(5, vectors), harmonics(5, vectors @ torch.tensor(IMPROPER).T)
    for l in range(6):
        assert_allclose((before[l] ** 2).sum(1), 2 * l + 1, rtol=1e-12)
        assert_allclose(
            after[l], before[l].numpy() @ rotation_matrix(l, IMPROPER, "deeph").T, atol=1e-11
        )


def test_harmonics_of_the_zero_vector_are_isotropic():
    values = harmonics(3, torch.zeros(1, 3, dtype=torch.float64))
    assert values[0].item() == 1
    assert all((value == 0).all() for value in values[1:])


# --- padding ----------------------------------------------------------------------------------


def test_common_shells_hold_those_of_every_species():
    assert common_shells([(0, 0, 1), (0, 1, 1, 2), (3, 0)]) == (0, 0, 1, 1, 2, 3)


def test_each_shell_takes_the_first_free_place_of_its_l():
    assert slots((0, 1, 0), (0, 0, 0, 1, 1)).tolist() == [0, 3, 4, 5, 1]


def test_shells_without_a_place_are_refused_by_name():
    with pytest.raises(ValueError, match="Ga has 2 shells of l = 2, but there is place for 1 only"):
        slots((0, 2, 2), (0, 2), "Ga")


@pytest.mark.parametrize("spin", SPINS)
def test_padding_and_its_reverse_give_the_matrix_back(spin):
    matrix = random_lcao(1, "GaAsGaAs", spin=spin).h0
    padding = PaddedBlocks(matrix)
    blocks = padding.pad(torch.tensor(matrix.data))
    assert blocks.shape == padding.shape
    assert_allclose(padding.unpad(blocks), matrix.data, rtol=0)
    assert_allclose((blocks.abs() ** 2).sum(), (abs(matrix.data) ** 2).sum(), rtol=1e-12)


def test_a_padded_block_has_its_orbitals_where_the_slots_say():
    matrix = random_lcao(1, "GaAs").h0
    shells = (0, 0, 0, 1, 1, 2, 2, 3)
    padding = PaddedBlocks(matrix, shells)
    p = int(matrix.pairs.find(0, 1, [0, 0, 0])[0])
    rows, columns = (slots(matrix.basis.shells[name], shells) for name in matrix.symbols)
    block = padding.pad(torch.tensor(matrix.data))[p].numpy()
    assert_allclose(block[np.ix_(rows, columns)], matrix.block(0, 1, (0, 0, 0)), rtol=0)


# --- the transform ----------------------------------------------------------------------------


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize("convention", ["abacus", "openmx", "e3nn"])
def test_the_transform_is_orthogonal_and_has_its_inverse(spin, convention):
    transform = BlockIrreps(SHELLS, spin, convention=convention)
    blocks = random_blocks(3, SHELLS, spin)
    irreps = transform.to_irreps(blocks)
    norm = sum((x**2).sum(dim=(1, 2)) for x in irreps.values())
    assert_allclose(norm, (blocks.abs() ** 2).sum(dim=(1, 2)), rtol=1e-12)
    assert_allclose(transform.to_blocks(irreps), blocks, atol=1e-13)


@pytest.mark.parametrize("spin", SPINS)
def test_irreps_without_a_block_do_not_exist(spin):
    transform = BlockIrreps(SHELLS, spin)
    numbers = sum((2 * l + 1) * mul for (l, _), mul in transform.multiplicities.items())
    orbitals = sum(2 * l + 1 for l in SHELLS)
    assert numbers == orbitals**2 * (8 if spin == "spinor" else 1)
    for irrep, x in transform.to_irreps(random_blocks(1, SHELLS, spin)).items():
        assert x.shape == (1, 2 * irrep[0] + 1, len(transform.channels[irrep]))


@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize("rotation", [PROPER, IMPROPER, -np.eye(3)])
def test_irreps_of_a_turned_matrix_are_turned_irreps(spin, rotation):
    matrix = random_lcao(2, "GaAsGa", spin=spin, magnetic=True).hamiltonian
    before = turned(irreps_of(matrix, (0, 0, 0, 1, 1, 2, 3, 3)), rotation)
    after = irreps_of(matrix.rotated(rotation), (0, 0, 0, 1, 1, 2, 3, 3))
    for irrep in before:
        assert_allclose(after[irrep], before[irrep], atol=1e-11)  # eV


@pytest.mark.parametrize("spin", SPINS)
def test_irreps_turn_with_the_wigner_matrices_of_e3nn(spin):
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")
    matrix = random_lcao(4, "GaH", spin=spin).hamiltonian
    axes = torch.eye(3, dtype=torch.float64)[[1, 2, 0]]  # ours are e3nn's with x renamed to y ...
    theirs = axes @ torch.tensor(IMPROPER) @ axes.T
    before, after = (irreps_of(m, (0, 0, 1, 1, 2, 3)) for m in (matrix, matrix.rotated(IMPROPER)))
    for (l, parity), x in before.items():
        # e3nn keeps the generators that this is made of in float32
        D = o3.Irrep(l, parity).D_from_matrix(theirs)
        assert_allclose(after[l, parity], D @ x, atol=2e-5)


def test_time_reversal_leaves_half_of_the_channels_empty():
    matrix = random_lcao(5, "GaAs", spin="spinor", magnetic=False).hamiltonian
    assert matrix.time_reversal_error() < 1e-12  # eV
    transform = BlockIrreps(SHELLS, "spinor")
    for irrep, x in irreps_of(matrix, SHELLS).items():
        odd = torch.tensor([c.time_reversal < 0 for c in transform.channels[irrep]])
        assert x[:, :, odd].abs().max() < 1e-12  # eV
        assert odd.sum() * 2 == len(odd)
        assert x[:, :, ~odd].abs().max() > 1e-3


def test_time_reversal_changes_the_sign_of_the_other_half():
    matrix = random_lcao(5, "GaAs", spin="spinor", magnetic=True).hamiltonian
    flip = np.array([[0, 1], [-1, 0]])  # i sigma_y
    blocks = PaddedBlocks(matrix, SHELLS).pad(torch.tensor(matrix.data))
    u = torch.tensor(np.kron(np.eye(blocks.shape[1] // 2), flip)) + 0j
    transform = BlockIrreps(SHELLS, "spinor")
    before, after = transform.to_irreps(blocks), transform.to_irreps(u @ blocks.conj() @ u.T)
    for irrep, channels in transform.channels.items():
        sign = torch.tensor([c.time_reversal for c in channels])
        assert_allclose(after[irrep], before[irrep] * sign, atol=1e-12)


def test_spin_scalar_channels_of_a_spinor_are_those_without_spin():
    matrix = random_lcao(6, "GaAs").hamiltonian
    plain, spinor = irreps_of(matrix, SHELLS), irreps_of(matrix.with_spin("spinor"), SHELLS)
    channels = BlockIrreps(SHELLS, "spinor").channels
    for irrep, x in plain.items():
        scalar = [c.spin == 0 and c.time_reversal > 0 for c in channels[irrep]]
        assert_allclose(spinor[irrep][:, :, scalar], np.sqrt(2) * x, atol=1e-12)
        assert spinor[irrep][:, :, ~np.array(scalar)].abs().max() < 1e-12


def test_rows_and_columns_may_have_different_shells():
    transform = BlockIrreps((0, 1, 2), columns=(0, 0, 3))
    blocks = torch.tensor(np.random.default_rng(0).normal(size=(2, 9, 9)))
    assert_allclose(transform.to_blocks(transform.to_irreps(blocks)), blocks, atol=1e-13)


@pytest.mark.parametrize("spin", SPINS)
def test_single_precision_is_kept_and_as_good_as_it_can_be(spin):
    transform = BlockIrreps(SHELLS, spin)
    blocks = random_blocks(2, SHELLS, spin)
    single = blocks.to(torch.complex64 if spin == "spinor" else torch.float32)
    irreps = transform.to_irreps(single)
    assert all(x.dtype == torch.float32 for x in irreps.values())
    back = transform.to_blocks(irreps)
    assert back.dtype == single.dtype
    assert_allclose(back, blocks, atol=1e-5)


@pytest.mark.parametrize("spin", SPINS)
def test_gradients_pass_through_both_ways(spin):
    shells = (0, 1, 2)
    transform = BlockIrreps(shells, spin)
    blocks = random_blocks(1, shells, spin).requires_grad_()
    weights = {
        irrep: torch.randn(x.shape, dtype=x.dtype, generator=torch.manual_seed(0))
        for irrep, x in transform.to_irreps(blocks).items()
    }
    loss = sum((x * weights[irrep]).sum() for irrep, x in transform.to_irreps(blocks).items())
    (gradient,) = torch.autograd.grad(loss, blocks)
    # an orthogonal map: the gradient is the transpose, hence the inverse, of the weights
    assert_allclose(gradient, transform.to_blocks(weights), atol=1e-13)


def test_gradients_can_be_had_after_inference_mode():
    transform = BlockIrreps((0, 1))
    blocks = random_blocks(1, (0, 1), "unpolarised")
    with torch.inference_mode():
        transform.to_irreps(blocks)
    sum(x.square().sum() for x in transform.to_irreps(blocks.requires_grad_()).values()).backward()
    assert_allclose(blocks.grad, 2 * blocks.detach(), atol=1e-13)


def test_wrong_shapes_and_spins_are_refused():
    with pytest.raises(ValueError, match="one by one"):
        BlockIrreps((0, 1), "collinear")
    with pytest.raises(ValueError, match="ascending order of l"):
        BlockIrreps((1, 0))
    with pytest.raises(ValueError, match=r"have shape \(n, 8, 8\), not \(1, 4, 4\)"):
        BlockIrreps((0, 1), "spinor").to_irreps(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="must be real"):
        BlockIrreps((0, 1)).to_irreps(torch.zeros(1, 4, 4, dtype=torch.complex64))


def test_shells_come_from_the_basis():
    basis = Basis({"Hf": (0, 0, 0, 0, 1, 1, 2, 2, 3, 3), "H": (0, 0, 1)})
    assert common_shells(basis.shells.values()) == (0, 0, 0, 0, 1, 1, 2, 2, 3, 3)
