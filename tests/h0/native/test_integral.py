"""The sum over the grid: against plain sums, analytic overlaps, and laws of periodic crystals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.interpolate import CubicSpline

from ase_nextham.basis import convention_matrix, real_harmonics
from ase_nextham.h0.native.blocks import block_images, grid_blocks, images_near
from ase_nextham.h0.native.integral import (
    GridOrbitals,
    grid_integral,
    grid_integral_transpose,
    grid_orbitals,
)

CELL = np.array([[3.1, 0.2, 0.0], [-1.0, 3.6, 0.3], [2.9, 0.4, 4.2]])  # Bohr, skewed
SHAPE = (15, 16, 24)
TAU = np.array([[0.3, 0.2, 0.1], [1.9, 2.1, 2.6]])
SPACING = 0.01
SHELLS = [(0, 0, 1, 2, 4), (1, 3)]
CUTOFFS = [2.2, 1.7]


def radial(l: int, number: int, cutoff: float) -> np.ndarray:
    """A function that vanishes smoothly at the cutoff."""
    r = SPACING * np.arange(round(cutoff / SPACING) + 1)
    return r**l * np.exp(-(0.5 + 0.3 * number) * r**2) * (1 - (r / cutoff) ** 2) ** 3


def functions(species: int) -> np.ndarray:
    return np.array([radial(l, k, CUTOFFS[species]) for k, l in enumerate(SHELLS[species])])


ORBITALS = [grid_orbitals(functions(s), SHELLS[s], SPACING, CUTOFFS[s]) for s in (0, 1)]


def pairs_of(cell, tau, cutoffs):
    """All pairs closer than the sum of their cutoffs, sorted as AtomPairs."""
    reach = np.arange(-4, 5)
    R = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
    rows = []
    for i in range(len(tau)):
        for j in range(len(tau)):
            distance = np.linalg.norm(tau[j] + R @ cell - tau[i], axis=1)
            rows += [(i, j, *one) for one in R[distance < cutoffs[i] + cutoffs[j]]]
    rows = np.array(rows)
    return rows[:, 0], rows[:, 1], rows[:, 2:]


def integral(v, cell=CELL, tau=TAU, species=(0, 1), pairs=None, **options):
    pairs = pairs or pairs_of(cell, tau, np.array(CUTOFFS)[list(species)])
    return grid_integral(v, cell, tau, species, ORBITALS, *pairs, **options)


def matrices(flat, i, j, species=(0, 1)):
    """Blocks of one component, as a list."""
    sizes = np.array([one.size for one in ORBITALS])[list(species)]
    ends = np.cumsum(sizes[i] * sizes[j])
    return [
        part.reshape(sizes[a], sizes[b])
        for part, a, b in zip(np.split(flat, ends[:-1]), i, j, strict=True)
    ]


@pytest.fixture(scope="module")
def v():
    """Two components without symmetry, of both signs."""
    x, y, z = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in SHAPE), indexing="ij")
    wave = np.sin(x + 2 * y - z) + 0.3 * np.cos(3 * z + 1)
    return np.stack([wave - 0.4, 0.5 * np.cos(x - 1) + 0.2 * wave])


def orbitals_at(points, atom, species):
    """All orbitals of one atom by textbook formulas, shape (norbitals, npoints)."""
    d = points - atom
    r = np.linalg.norm(d, axis=1)
    inside = r < CUTOFFS[species] - 1e-10
    mesh = SPACING * np.arange(functions(species).shape[1])
    rows = []
    for l, f in zip(SHELLS[species], functions(species), strict=True):
        spline = CubicSpline(mesh, f, bc_type="natural" if l % 2 else "clamped")
        harmonics = real_harmonics(l, d) @ convention_matrix(l, "abacus").T
        rows.append((np.where(inside, spline(r), 0)[:, None] * harmonics).T)
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def plain_sums(v):
    """The same matrix elements, orbital by orbital on all points of the cells around."""
    fractions = np.stack(
        np.meshgrid(*(np.arange(n) / n for n in SHAPE), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    i, j, R = pairs_of(CELL, TAU, np.array(CUTOFFS))
    reach = np.arange(-2, 3)
    cells = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
    weight = abs(np.linalg.det(CELL)) / len(fractions)
    result = [np.zeros((2, ORBITALS[a].size, ORBITALS[b].size)) for a, b in zip(i, j, strict=True)]
    for cell in cells:
        points = (fractions + cell) @ CELL
        near = np.linalg.norm(points - TAU[:, None], axis=2) < np.array(CUTOFFS)[:, None]
        for atom in range(2):
            own = near[atom]
            left = orbitals_at(points[own], TAU[atom], atom)
            for p in np.flatnonzero(i == atom):
                right = orbitals_at(points[own], TAU[j[p]] + R[p] @ CELL, j[p])
                for c in range(2):
                    values = v[c].ravel()[own]
                    result[p][c] += weight * np.einsum("ap,p,bp->ab", left, values, right)
    return np.concatenate([block.reshape(2, -1) for block in result], axis=1)


def test_elements_are_plain_sums_over_the_grid(v, plain_sums):
    assert np.abs(plain_sums).max() > 0.01
    assert_allclose(integral(v), plain_sums, atol=1e-13)


def test_one_component_is_summed_as_two_are(v, plain_sums):
    assert_allclose(integral(v[1:]), plain_sums[1:], atol=1e-13)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(v, plain_sums, threads):
    assert_allclose(integral(v, threads=threads), plain_sums, atol=1e-13)


def test_single_precision_is_close(v, plain_sums):
    found = integral(v, dtype="float32")
    assert found.dtype == np.float64
    assert_allclose(found, plain_sums, atol=1e-6 * np.abs(plain_sums).max())
    assert not np.allclose(found, plain_sums, rtol=0, atol=1e-13)


def test_result_is_exactly_hermitian(v):
    i, j, R = pairs = pairs_of(CELL, TAU, np.array(CUTOFFS))
    blocks = matrices(integral(v, pairs=pairs)[0], i, j)
    index = {(a, b, *c): p for p, (a, b, c) in enumerate(zip(i, j, R.tolist(), strict=True))}
    for p, (a, b, c) in enumerate(zip(i, j, R, strict=True)):
        assert_allclose(blocks[p], blocks[index[(b, a, *-c)]].T, rtol=0, atol=0)


def test_the_result_is_linear_in_the_potential(v):
    total = integral(v[:1] + 2 * v[1:])
    assert_allclose(total, integral(v[:1]) + 2 * integral(v[1:]), atol=1e-13)


def test_a_constant_potential_gives_the_overlap_of_gaussians():
    width, spacing, cutoff = 0.9, 0.02, 6.0
    r = spacing * np.arange(301)
    gaussian = np.sqrt(4 * np.pi) * (2 * width / np.pi) ** 0.75 * np.exp(-width * r**2)
    orbitals = [grid_orbitals(gaussian[None], (0,), spacing, cutoff)]
    cell, tau = np.diag([7.0, 6.0, 5.0]), np.array([[0.4, 0.2, 6.1], [3.0, 2.0, 1.0]])
    i, j, R = pairs_of(cell, tau, np.array([cutoff, cutoff]))
    found = grid_integral(np.ones((1, 36, 32, 27)), cell, tau, (0, 0), orbitals, i, j, R)[0]
    d2 = ((tau[j] + R @ cell - tau[i]) ** 2).sum(axis=1)
    assert_allclose(found, np.exp(-width * d2 / 2), atol=1e-8)


def test_an_atom_may_move_by_a_lattice_vector(v):
    i, j, R = pairs_of(CELL, TAU, np.array(CUTOFFS))
    shift = np.array([[0, 0, 0], [1, -2, 1]])
    moved = integral(v, tau=TAU + shift @ CELL, pairs=(i, j, R + shift[i] - shift[j]))
    assert_allclose(moved, integral(v, pairs=(i, j, R)), atol=1e-13)


def test_another_cell_of_the_same_lattice_gives_the_same(v):
    # b' = b + a, and the potential on the points of the same grid, which must be square in a and b
    n = 16
    square = np.random.default_rng(0).normal(size=(1, n, n, 18))
    cell = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) @ CELL
    i, j, R = pairs_of(CELL, TAU, np.array(CUTOFFS))
    k = np.arange(n)
    sheared = square[:, (k[:, None] + k) % n, k[None, :]]
    other = R.copy()
    other[:, 0] -= R[:, 1]
    assert_allclose(
        integral(sheared, cell=cell, pairs=(i, j, other)),
        integral(square, pairs=(i, j, R)),
        atol=1e-13,
    )


def test_a_supercell_folds_back(v):
    i, j, R = pairs_of(CELL, TAU, np.array(CUTOFFS))
    single = matrices(integral(v, pairs=(i, j, R))[0], i, j)
    single = {(a, b, *c): m for a, b, c, m in zip(i, j, R.tolist(), single, strict=True)}
    cell = CELL * np.array([[1], [2], [1]])
    tau, species = np.concatenate([TAU, TAU + CELL[1]]), (0, 1, 0, 1)
    i, j, R = pairs_of(cell, tau, np.array(CUTOFFS * 2))
    double = integral(np.concatenate([v, v], axis=2), cell, tau, species, (i, j, R))
    for a, b, c, block in zip(i, j, R, matrices(double[0], i, j, species), strict=True):
        y = 2 * c[1] + b // 2 - a // 2
        assert_allclose(block, single[(a % 2, b % 2, c[0], y, c[2])], atol=1e-13)


def test_order_of_the_pairs_is_that_of_the_result(v):
    i, j, R = pairs_of(CELL, TAU, np.array(CUTOFFS))
    order = np.random.default_rng(1).permutation(len(i))
    sorted_blocks = matrices(integral(v, pairs=(i, j, R))[0], i, j)
    shuffled = integral(v, pairs=(i[order], j[order], R[order]))[0]
    for p, block in zip(order, matrices(shuffled, i[order], j[order]), strict=True):
        assert_allclose(block, sorted_blocks[p], atol=1e-15)


def test_pairs_out_of_reach_are_zero(v):
    i, j, R = np.array([0, 0, 0]), np.array([0, 0, 0]), np.array([[0, 0, -7], [0, 0, 0], [0, 0, 7]])
    found = integral(v, pairs=(i, j, R))[0].reshape(3, -1)
    assert not found[0].any()
    assert not found[2].any()
    assert found[1].any()


def test_atoms_without_pairs_give_nothing(v):
    none = np.zeros(0, int)
    assert integral(v, pairs=(none, none, np.zeros((0, 3), int))).shape == (2, 0)


def test_orbitals_of_l_six_are_supported():
    r = 0.02 * np.arange(151)
    functions = np.array([r**6 * np.exp(-(r**2)) * (1 - (r / 3) ** 2) ** 3])
    orbitals = [grid_orbitals(functions, (6,), 0.02, 3.0)]
    cell, zero = np.eye(3) * 6.5, np.zeros(1, int)
    ones = np.ones((1, 40, 40, 40))
    tau = np.array([[0.1, 3.0, -1.0]])
    block = grid_integral(ones, cell, tau, zero, orbitals, zero, zero, np.zeros((1, 3), int))
    block = block.reshape(13, 13)
    norm = np.sum(r**2 * functions[0] ** 2) * 0.02
    assert_allclose(block / norm, np.eye(13), atol=2e-5)


@pytest.mark.parametrize("size", [40, 125, 700])
def test_blocks_hold_every_point_once_near_its_centre(size):
    blocks = grid_blocks(CELL, SHAPE, size)
    assert sorted(blocks.points) == list(range(np.prod(SHAPE)))
    index = np.stack(np.unravel_index(blocks.points.astype(int), SHAPE), axis=1)
    fractions = index @ blocks.fractions
    center = np.repeat(blocks.centers, np.diff(blocks.first), axis=0)
    d = fractions - center @ np.linalg.inv(blocks.cell)
    distance = np.linalg.norm((d - np.rint(d)) @ blocks.cell, axis=1)
    assert distance.max() <= blocks.radius
    # compact: the cell of the crystal is three times as long as it is wide
    assert blocks.radius < 1.6 * (size * abs(np.linalg.det(CELL)) / np.prod(SHAPE)) ** (1 / 3)


def test_cell_lists_find_every_atom_near_a_block():
    rng = np.random.default_rng(3)
    tau = rng.uniform(-1, 2, size=(7, 3)) @ CELL
    reach = rng.uniform(0.5, 3, 7)
    blocks = grid_blocks(CELL, SHAPE, 60)
    images = images_near(blocks, tau, reach)
    assert_allclose(images.position, tau[images.atom] + images.shift @ CELL, atol=1e-12)
    first, index = block_images(blocks, images)
    distance = np.linalg.norm(images.position - blocks.centers[:, None], axis=2)
    for b, near in enumerate(distance < images.reach + blocks.radius):
        assert list(index[first[b] : first[b + 1]]) == list(np.flatnonzero(near))


def test_a_pair_without_its_reverse_is_refused(v):
    with pytest.raises(ValueError, match=r"i=0, j=1, R=\[0, 0, 0\]\) is listed without its rev"):
        integral(v, pairs=(np.array([0]), np.array([1]), np.zeros((1, 3), int)))


def test_a_potential_without_components_is_refused(v):
    with pytest.raises(ValueError, match=r"shape \(ncomponents, n1, n2, n3\), not \(15, 16, 24\)"):
        integral(v[0])


def test_an_unknown_precision_is_refused(v):
    with pytest.raises(ValueError, match="'float16'; known: 'float64', 'float32'"):
        integral(v, dtype="float16")


def test_shells_and_functions_must_go_together():
    with pytest.raises(ValueError, match="2 radial functions, but 1 shells"):
        grid_orbitals(np.zeros((2, 5)), (0,), 0.1, 0.4)


def test_orbitals_tell_their_size():
    assert [one.size for one in ORBITALS] == [1 + 1 + 3 + 5 + 9, 3 + 7]
    assert isinstance(ORBITALS[0], GridOrbitals)


@pytest.fixture
def on_torch(monkeypatch):
    """The torch version on a CPU, in several batches."""
    pytest.importorskip("torch")
    from ase_nextham.h0.native import integral_torch

    monkeypatch.setattr(integral_torch, "BLOCK_SIZE", {"float64": 100, "float32": 80})
    monkeypatch.setattr(integral_torch, "MEMORY", 2**22)

    def on_torch(v, pairs, **options):
        return integral_torch.grid_integral_torch(
            v, CELL, TAU, (0, 1), ORBITALS, *pairs, device="cpu", **options
        )

    return on_torch


def test_torch_gives_the_same(v, plain_sums, on_torch):
    pairs = pairs_of(CELL, TAU, np.array(CUTOFFS))
    assert_allclose(on_torch(v, pairs), plain_sums, atol=1e-13)
    single = on_torch(v, pairs, dtype="float32")
    assert_allclose(single, plain_sums, atol=1e-6 * np.abs(plain_sums).max())


def test_the_transpose_on_torch_is_that_of_the_processor(on_torch):
    from ase_nextham.h0.native.integral_torch import grid_integral_transpose_torch

    pairs = pairs_of(CELL, TAU, np.array(CUTOFFS))
    sizes = np.array([one.size for one in ORBITALS])
    gradient = np.random.default_rng(5).normal(size=(sizes[pairs[0]] * sizes[pairs[1]]).sum())
    arguments = (SHAPE, CELL, TAU, (0, 1), ORBITALS, *pairs)
    expected = grid_integral_transpose(gradient, *arguments)
    found = grid_integral_transpose_torch(gradient, *arguments, device="cpu")
    assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())
    with pytest.raises(ValueError, match="the gradient has shape"):
        grid_integral_transpose_torch(gradient[1:], *arguments, device="cpu")


def test_torch_says_when_it_has_no_such_device(v):
    torch = pytest.importorskip("torch")
    from ase_nextham.h0.native.integral_torch import grid_integral_torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    none = np.zeros(0, int)
    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        grid_integral_torch(v, CELL, TAU, (0, 1), ORBITALS, none, none, np.zeros((0, 3), int))
