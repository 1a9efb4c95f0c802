import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from ase_nextham.basis import CONVENTIONS, Basis, convention_matrix, real_harmonics, rotation_matrix

L = range(5)


def random_rotation(seed, improper=False):
    rotation = Rotation.random(random_state=seed).as_matrix()
    return -rotation if improper else rotation


def test_harmonics_are_the_textbook_formulas():
    x, y, z = v = np.array([0.48, -0.6, 0.64])
    c = np.sqrt(3 / (4 * np.pi))
    assert_allclose(real_harmonics(1, v), [c * y, c * z, c * x], atol=1e-15)
    d = np.sqrt(15 / (4 * np.pi))
    expected = [
        d * x * y,
        d * y * z,
        d / np.sqrt(12) * (3 * z**2 - 1),
        d * x * z,
        d / 2 * (x**2 - y**2),
    ]
    assert_allclose(real_harmonics(2, v), expected, atol=1e-15)


@pytest.mark.parametrize("l", L)
def test_harmonics_are_orthonormal(l):
    # Gauss-Legendre in cos(theta) and a uniform grid in phi integrate them exactly
    cos, weight = np.polynomial.legendre.leggauss(l + 1)
    phi = 2 * np.pi * np.arange(2 * l + 2) / (2 * l + 2)
    sin = np.sqrt(1 - cos**2)
    points = np.stack(
        [
            np.outer(sin, np.cos(phi)),
            np.outer(sin, np.sin(phi)),
            np.outer(cos, np.ones_like(phi)),
        ],
        axis=-1,
    )
    values = real_harmonics(l, points)
    gram = np.einsum("a,abm,abn->mn", weight, values, values) * 2 * np.pi / len(phi)
    assert_allclose(gram, np.eye(2 * l + 1), atol=1e-13)


def test_abacus_orders_0_1_minus1_with_alternating_sign():
    # p: z, -x, -y ; d: z2, -xz, -yz, x2-y2, xy
    x, y, z = v = np.array([0.1, 0.2, 0.7])
    p = convention_matrix(1, "abacus") @ real_harmonics(1, v)
    assert_allclose(p / np.sqrt(3 / (4 * np.pi)), np.array([z, -x, -y]) / np.linalg.norm(v))
    d = convention_matrix(2, "abacus") @ real_harmonics(2, v)
    signs = np.sign(d)
    assert signs.tolist() == [1, -1, -1, -1, 1]


def test_openmx_orders_d_as_z2_x2y2_xy_xz_yz():
    matrix = convention_matrix(2, "openmx")
    assert (matrix @ np.arange(-2, 3)).tolist() == [0, 2, -2, 1, -1]
    assert (convention_matrix(1, "openmx") @ np.arange(-1, 2)).tolist() == [1, -1, 0]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("l", L)
def test_every_convention_is_orthogonal(convention, l):
    matrix = convention_matrix(l, convention)
    assert_allclose(matrix @ matrix.T, np.eye(2 * l + 1), atol=1e-13)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("improper", [False, True])
def test_rotation_matrices_are_a_representation(convention, improper):
    a, b = random_rotation(1, improper), random_rotation(2)
    for l in L:
        product = rotation_matrix(l, a, convention) @ rotation_matrix(l, b, convention)
        assert_allclose(rotation_matrix(l, a @ b, convention), product, atol=1e-12)


def test_e3nn_convention_is_that_of_e3nn():
    torch = pytest.importorskip("torch", reason="e3nn needs torch")
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    rotation = random_rotation(3)
    for l in L:
        ours = real_harmonics(l, vectors) @ convention_matrix(l, "e3nn").T
        theirs = o3.spherical_harmonics(l, torch.tensor(vectors), normalize=True)
        assert_allclose(ours, theirs.numpy(), atol=1e-10)
        D = o3.Irrep(l, (-1) ** l).D_from_matrix(torch.tensor(rotation))
        # e3nn keeps the generators of D in single precision
        assert_allclose(rotation_matrix(l, rotation, "e3nn"), D.numpy(), atol=1e-5)


def test_transformation_of_an_atom_is_block_diagonal_in_shells():
    basis = Basis({"Ga": (0, 1, 1, 2)})
    matrix = basis.transformation("Ga", "deeph")
    assert matrix.shape == (12, 12)
    assert_allclose(matrix[1:4, 1:4], matrix[4:7, 4:7])
    assert_allclose(matrix @ matrix.T, np.eye(12))


def test_quantum_numbers_follow_the_orbital_order():
    numbers = Basis({"Si": (0, 0, 1, 2)}).quantum_numbers("Si")
    assert numbers[:, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert numbers[:2, 1].tolist() == [0, 1]
    assert numbers[5:, 2].tolist() == [0, 1, -1, 2, -2]


def test_bases_with_other_orbital_files_differ():
    a = Basis({"Ga": (0, 1)}, fingerprint={"Ga": "a" * 64})
    b = Basis({"Ga": (0, 1)}, fingerprint={"Ga": "b" * 64})
    assert "Ga: orbital files differ" in a.difference(b)
    assert a.difference(Basis({"Ga": (0, 1)})) is None
    assert "orbitals differ: 1s1p and 2s1p" in a.difference(Basis({"Ga": (0, 0, 1)}))


def test_a_basis_can_be_copied():
    basis = Basis({"Ga": (0, 1)}, radius={"Ga": 4.0}, valence={"Ga": 13.0})
    twin = copy.deepcopy(basis)
    assert twin.shells == basis.shells
    assert twin.nelectrons(["Ga", "Ga"]) == 26
    assert twin.nelectrons(["Ga", "As"]) is None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown orbital convention 'siesta'; known: abacus"):
        Basis({"H": (0,)}, convention="siesta")
    with pytest.raises(ValueError, match="no orbitals for 'As'; it has Ga"):
        Basis({"Ga": (0,)}).norbitals("As")
    with pytest.raises(ValueError, match="Ga: shells .* must be angular momenta"):
        Basis({"Ga": (0, 9)})


def test_angular_momenta_beyond_the_tables_are_refused():
    with pytest.raises(ValueError, match="angular momentum l = 7 is outside 0 ... 6"):
        convention_matrix(7, "abacus")
