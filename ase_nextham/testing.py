"""Structures with random operators, checks of backends and models: for tests here and elsewhere.

The numbers are random, the laws are not: what :func:`random_lcao` returns is Hermitian, its overlap
is positive definite, its position operator obeys the translation identity, and its Hamiltonian
reaches further than its overlap, as that of every real calculation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.neighborlist import neighbor_list
from ase.symbols import string2symbols
from scipy.spatial.transform import Rotation

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix

SHELLS: Mapping[str, tuple[int, ...]] = {
    "H": (0, 0, 1),
    "As": (0, 0, 1, 1, 2),
    "Ga": (0, 0, 1, 1, 2, 3),
    "Si": (0, 1, 2),
}
"""Orbitals of the species that :func:`random_lcao` knows."""


def random_lcao(
    seed: int,
    symbols: str = "GaAs",
    *,
    spin: str = "unpolarised",
    magnetic: bool = False,
    cutoff: float = 3.2,
) -> LCAOData:
    """A periodic structure with S, H(0), H and r that obey the laws of real ones.

    Parameters
    ----------
    seed
        Of ``numpy.random.default_rng``.
    symbols
        Chemical formula, for example ``"GaAsGaAs"``; elements of :data:`SHELLS`.
    spin
        Of the two Hamiltonians: ``"unpolarised"``, ``"collinear"`` or ``"spinor"``.
    magnetic
        Whether collinear and spinor Hamiltonians break time reversal.
    cutoff
        Reach of S and r in Angstrom; H reaches 1.3 times as far.
    """
    rng = np.random.default_rng(seed)
    species = string2symbols(symbols)
    cell = np.diag(rng.uniform(2.4, 3.0, 3)) + rng.uniform(-0.4, 0.4, (3, 3))
    # one slab of the cell for each atom along the first axis keeps atoms apart
    slab = np.arange(len(species))[:, None] + rng.uniform(0.1, 0.9, (len(species), 3))
    fractional = slab / len(species)
    fractional[:, 1:] = rng.permuted(fractional[:, 1:], axis=0)
    atoms = Atoms(species, cell=cell, scaled_positions=fractional, pbc=True)
    names = sorted(set(species))
    basis = Basis(
        {name: SHELLS[name] for name in names},
        radius=dict.fromkeys(names, cutoff / 2),
        fingerprint={name: f"{atomic_numbers[name]:064x}" for name in names},
        valence={name: float(len(SHELLS[name])) for name in names},
    )
    near, far = _pairs(atoms, cutoff), _pairs(atoms, 1.3 * cutoff)
    overlap = _random_matrix(rng, atoms, basis, near, "unpolarised", identity=True)
    h0 = _random_hamiltonian(rng, atoms, basis, far, spin, magnetic)
    hamiltonian = h0 + 0.1 * _random_hamiltonian(rng, atoms, basis, far, spin, magnetic)
    position = tuple(_random_position(rng, atoms, overlap, axis) for axis in range(3))
    return LCAOData(
        atoms=atoms,
        overlap=overlap,
        h0=h0,
        hamiltonian=hamiltonian,
        position=position,
        nelectrons=basis.nelectrons(species),
        source={"code": "random_lcao", "seed": seed},
    )


def _pairs(atoms: Atoms, cutoff: float) -> AtomPairs:
    i, j, R = neighbor_list("ijS", atoms, cutoff)
    onsite = np.arange(len(atoms))
    pairs, _ = AtomPairs.sort(
        np.concatenate([i, onsite]),
        np.concatenate([j, onsite]),
        np.concatenate([R, np.zeros((len(atoms), 3), int)]),
    )
    return pairs


def _random_matrix(rng, atoms, basis, pairs, spin, *, identity=False, dtype=float) -> LCAOMatrix:
    """Hermitian, decaying with distance; the identity plus something small if asked."""
    symbols = tuple(atoms.get_chemical_symbols())
    factor = 2 if spin == "spinor" else 1
    n = factor * np.array([basis.norbitals(name) for name in symbols])
    sizes = n[pairs.i] * n[pairs.j]
    shape = (2, sizes.sum()) if spin == "collinear" else (sizes.sum(),)
    data = rng.normal(size=shape).astype(dtype)
    if dtype is complex:
        data += 1j * rng.normal(size=shape)
    vectors = atoms.positions[pairs.j] - atoms.positions[pairs.i] + pairs.R @ atoms.cell.array
    distance = np.linalg.norm(vectors, axis=1)
    scale = (0.02 if identity else 1.0) * np.exp(-distance)
    random = LCAOMatrix(basis, symbols, pairs, spin, data * np.repeat(scale, sizes))
    matrix = random.filled_by_hermiticity()
    values = matrix.data.copy()
    for atom in range(len(symbols)):
        p = pairs.find(atom, atom, (0, 0, 0))[0]
        inside = slice(matrix.offsets[p], matrix.offsets[p + 1])
        block = values[..., inside].reshape(*shape[:-1], n[atom], n[atom])
        block = (block + np.swapaxes(block.conj(), -1, -2)) / 2
        if identity:
            block = np.eye(n[atom])
        values[..., inside] = block.reshape(*shape[:-1], -1)
    return LCAOMatrix(basis, symbols, pairs, spin, values)


def _random_hamiltonian(rng, atoms, basis, pairs, spin, magnetic) -> LCAOMatrix:
    if spin == "unpolarised" or (spin == "collinear" and not magnetic):
        return _random_matrix(rng, atoms, basis, pairs, "unpolarised").with_spin(spin)
    if spin == "collinear":
        return _random_matrix(rng, atoms, basis, pairs, spin)
    matrix = _random_matrix(rng, atoms, basis, pairs, spin, dtype=complex)
    return matrix if magnetic else 0.5 * (matrix + _time_reversed(matrix))


def _time_reversed(matrix: LCAOMatrix) -> LCAOMatrix:
    sigma = np.array([[0, 1], [-1, 0]])
    data = np.empty_like(matrix.data)
    for _, _, _, elements in matrix.block_groups():
        rows, columns = elements.shape[1:]
        left = np.kron(np.eye(rows // 2), sigma)
        right = np.kron(np.eye(columns // 2), sigma)
        data[elements] = left @ matrix.data[elements].conj() @ right.T
    return LCAOMatrix(matrix.basis, matrix.symbols, matrix.pairs, matrix.spin, data)


def _random_position(rng, atoms, overlap: LCAOMatrix, axis: int) -> LCAOMatrix:
    """Symmetric part at random; the other part follows from r(R) = r(-R)^T + (R @ cell) S(R)."""
    pairs = overlap.pairs
    symmetric = _random_matrix(rng, atoms, overlap.basis, pairs, "unpolarised").data
    sizes = np.diff(overlap.offsets)
    # about the middle of the two atoms r is symmetric, so the centre times S is what is left over
    middle = atoms.positions[pairs.i] + atoms.positions[pairs.j] + pairs.R @ atoms.cell.array
    data = 0.1 * symmetric + np.repeat(middle[:, axis] / 2, sizes) * overlap.data
    return LCAOMatrix(overlap.basis, overlap.symbols, pairs, "unpolarised", data)


def check_backend(compute: Callable[[Atoms], LCAOData], atoms: Atoms, *, tolerance: float) -> None:
    """Assert that an H(0) backend obeys the laws that every backend must obey.

    Hermiticity, normalised orbitals, a positive definite overlap, and the same H(0) for the same
    crystal with its atoms in another order and moved by lattice vectors.

    Parameters
    ----------
    compute
        The backend's method: Atoms -> LCAOData with ``overlap`` and ``h0``.
    atoms
        Any periodic structure with at least two atoms.
    tolerance
        In eV: how well H(0) is reproduced. Grids that are fixed in space make it finite.

    Raises
    ------
    AssertionError
        Naming the law that does not hold, and by how much.
    """
    data = compute(atoms)
    if data.h0 is None:
        raise AssertionError("the backend returned no H(0)")
    for name, matrix, limit in (("overlap", data.overlap, 1e-7), ("H(0)", data.h0, tolerance)):
        error = matrix.hermitian_error()
        if error > limit:
            raise AssertionError(f"{name} is not Hermitian: {error:.2g}")
    for atom in range(len(atoms)):
        norm = np.diagonal(data.overlap.block(atom, atom, (0, 0, 0)))
        if np.abs(norm - 1).max() > 1e-6:
            raise AssertionError(f"orbitals of atom {atom} are not normalised: {norm}")
    kpts = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 3))
    lowest = np.linalg.eigvalsh(data.overlap.at_k(kpts)).min()
    if lowest <= 0:
        raise AssertionError(f"the overlap is not positive definite: {lowest:.2g}")

    order = np.arange(len(atoms))[::-1]
    shifts = np.random.default_rng(1).integers(-1, 2, (len(atoms), 3))
    moved = atoms[order].copy()
    moved.positions += shifts @ moved.cell.array
    expected = data.permuted(order).translated(shifts)
    found = compute(moved)
    if found.symbols != expected.symbols:
        raise AssertionError(f"atoms come back in another order: {found.symbols}")
    error = np.abs((found.h0 - expected.h0).data).max(initial=0)
    if error > tolerance:
        raise AssertionError(
            f"H(0) changes by {error:.2g} eV when atoms are reordered and moved by lattice vectors"
        )


def check_rotation(
    compute: Callable[[Atoms], LCAOData], atoms: Atoms, rotation: np.ndarray, *, tolerance: float
) -> None:
    """Assert that H(0) and S turn with the crystal: orbitals, signs and spinors at once.

    For backends that compute, not for those that look structures up.

    Parameters
    ----------
    compute
        The backend's method: Atoms -> LCAOData with ``overlap`` and ``h0``.
    atoms
        Any periodic structure without magnetic moments.
    rotation
        Orthogonal matrix, shape (3, 3); may be improper.
    tolerance
        In eV, and for the overlap in units of 1e-2. Grids that are fixed to the cell turn with it.

    Raises
    ------
    AssertionError
        Naming the operator that does not turn as it must, and by how much it fails.
    """
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ np.transpose(rotation), scale_atoms=True)
    before, after = compute(atoms), compute(turned)
    for name, limit in (("overlap", 1e-2 * tolerance), ("h0", tolerance)):
        expected = getattr(before, name).rotated(rotation)
        error = np.abs((getattr(after, name) - expected).data).max(initial=0)
        if error > limit:
            raise AssertionError(f"{name} changes by {error:.2g} more than it turns")


def check_model(model, data: LCAOData, *, tolerance: float, smooth: bool = True) -> None:
    """Assert that a model obeys the laws that every correction dH must obey.

    It is Hermitian; turns with the crystal, inversion included; stays with its atoms when they
    are put in another order, moved by lattice vectors or repeated in a supercell; does not depend
    on what else is predicted in the same pass or in which portions; and is smooth when an atom
    moves.

    Parameters
    ----------
    model
        Anything with the methods ``predict`` and ``predict_all`` of
        :class:`ase_nextham.model.Model`.
    data
        A periodic structure with H(0) and two atoms at least.
    tolerance
        Relative to the largest element of dH: about 1e-10 in float64, 1e-4 in float32.
    smooth
        Whether to check smoothness, which takes double precision.

    Raises
    ------
    AssertionError
        Naming the law that does not hold, and by how much.
    """
    data = replace(data, hamiltonian=None, position=None)
    dh = model.predict(data)
    if not dh.pairs.same_as(data.h0.pairs) or dh.spin != data.h0.spin:
        raise AssertionError(f"dH is not a matrix like H(0): {dh} and {data.h0}")
    size = np.abs(dh.data).max(initial=0)
    if not size > 0:
        raise AssertionError("dH is zero everywhere, so that nothing can be checked")

    def expect(found: LCAOMatrix, expected: LCAOMatrix, what: str) -> None:
        error = np.abs((found - expected).data).max(initial=0) / size
        if not error <= tolerance:
            raise AssertionError(f"dH {what}: relative error {error:.2g}")

    error = dh.hermitian_error() / size
    if error > tolerance:
        raise AssertionError(f"dH is not Hermitian: relative error {error:.2g}")
    for rotation in (_random_rotation(0), -_random_rotation(1), -np.eye(3)):
        expect(model.predict(_turned(data, rotation)), dh.rotated(rotation), "does not turn")
    rng = np.random.default_rng(0)
    order = np.roll(np.arange(len(data.atoms))[::-1], 1 if len(data.atoms) > 2 else 0)
    shifts = rng.integers(-2, 3, (len(data.atoms), 3))
    with_dh = replace(data, hamiltonian=dh)
    moves = {
        "changes when atoms are reordered": lambda data: data.permuted(order),
        "changes when atoms move by lattice vectors": lambda data: data.translated(shifts),
        "changes in a supercell": lambda data: data.repeated((1, 2, 1)),
    }
    for what, move in moves.items():
        expect(model.predict(move(data)), move(with_dh).hamiltonian, what)
    several = [data, data.permuted(order), data]
    for found, one in zip(model.predict_all(several), several, strict=True):
        expect(found, model.predict(one), "depends on what else is predicted")
    expect(model.predict(data, memory=0.01), dh, "depends on the size of portions")
    if smooth:
        _check_smoothness(model, data, size)


def turned_in_cell(matrix: LCAOMatrix, cell: np.ndarray, rotation: np.ndarray) -> LCAOMatrix:
    """The operator of the structure whose atoms were turned about the origin, but not its cell.

    Parameters
    ----------
    matrix
        As :meth:`LCAOMatrix.rotated` takes it.
    cell
        Cell vectors as rows, shape (3, 3).
    rotation
        Orthogonal matrix that maps the lattice onto itself, shape (3, 3).

    Raises
    ------
    ValueError
        If it does not map the lattice onto itself.
    """
    cell, rotation = np.asarray(cell, float), np.asarray(rotation, float)
    change = cell @ rotation.T @ np.linalg.inv(cell)
    if np.abs(change - np.rint(change)).max() > 1e-6:
        raise ValueError(f"the rotation {rotation.tolist()} is no symmetry of the lattice")
    turned = matrix.rotated(rotation)
    R = matrix.pairs.R @ np.rint(change).astype(int)
    pairs, order = AtomPairs.sort(matrix.pairs.i, matrix.pairs.j, R)
    blocks = np.split(turned.data, turned.offsets[1:-1], axis=-1)
    data = np.concatenate([blocks[p] for p in order], axis=-1)
    return replace(turned, pairs=pairs, data=data)


def _random_rotation(seed: int) -> np.ndarray:
    return Rotation.random(random_state=np.random.default_rng(seed)).as_matrix()


def _turned(data: LCAOData, rotation: np.ndarray) -> LCAOData:
    atoms = data.atoms.copy()
    atoms.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
    h0, overlap = data.h0.rotated(rotation), data.overlap.rotated(rotation)
    return replace(data, atoms=atoms, h0=h0, overlap=overlap)


def _check_smoothness(model, data: LCAOData, size: float) -> None:
    """Second differences along a path of an atom must fall with the square of the step."""
    direction = np.random.default_rng(2).normal(size=3)
    direction /= np.linalg.norm(direction)
    largest = []
    for step in (0.02, 0.01):  # Angstrom
        images = []
        for k in range(round(0.2 / step)):
            atoms = data.atoms.copy()
            atoms.positions[0] += k * step * direction
            images.append(replace(data, atoms=atoms))  # H(0) stays: the model alone is tested
        values = np.array([dh.data for dh in model.predict_all(images)])
        largest.append(np.abs(np.diff(values, 2, axis=0)).max() / size)
    # 1/4 where it is smooth, 1/2 for a kink, 1 for a step
    if largest[1] > 1e-9 and largest[1] / largest[0] > 0.45:
        raise AssertionError(
            "dH is not smooth when an atom moves: second differences of "
            f"{largest[0]:.2g} for steps of 0.02 Angstrom, of {largest[1]:.2g} for half of it"
        )


__all__ = [
    "SHELLS",
    "check_backend",
    "check_model",
    "check_rotation",
    "random_lcao",
    "turned_in_cell",
]
