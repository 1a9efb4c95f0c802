"""Meshes of k-points and their reduction by symmetry.

Sizes, densities and shifts are those of ASE; what is added is the reduction to inequivalent points
with weights. Symmetry operations come from spglib. Only those that map the mesh onto itself are
used, and only those that the Hamiltonian has: :func:`kmesh_for` finds out which these are.

A Hamiltonian that a code integrated on a real-space grid has the symmetry of the crystal only as
far as the grid has it. In ABACUS's matrices of Al, Si, MgO, GaAs, Au, MoS2 and graphene, equivalent
k-points have the same occupied bands to 2e-5 eV and the same highest bands to 4e-4 eV; where atoms
do not sit on points of the grid, expect up to 1 meV. ``symmetry=False`` reduces by time reversal
alone, which is exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import kpts2sizeandoffsets
from ase.dft.kpoints import monkhorst_pack
from numpy import ndarray

from ase_nextham.matrix import LCAOMatrix

TIME_REVERSAL_TOLERANCE = 1e-3
"""In eV: a Hamiltonian that breaks time reversal by more is magnetic. Rounding breaks it by 1e-6
eV, the start moments that some versions of ABACUS set without being asked by 0.1 eV and more."""

_NO_MOMENT = 1e-6  # Bohr magnetons


@dataclass(frozen=True, eq=False)
class KMesh:
    """Inequivalent k-points of a mesh.

    Parameters
    ----------
    size
        Points along each reciprocal vector, shape (3,).
    kpts
        In units of the reciprocal vectors, shape (nkpts, 3).
    weights
        Share of the full mesh that each of them stands for, shape (nkpts,); they sum to 1.
    full_kpts
        All points of the mesh, shape (nfull, 3).
    index
        Which of ``kpts`` each of ``full_kpts`` is equivalent to, shape (nfull,).
    """

    size: ndarray
    kpts: ndarray
    weights: ndarray
    full_kpts: ndarray
    index: ndarray

    def __repr__(self):
        size = " x ".join(str(n) for n in self.size)
        return f"KMesh({size}, {len(self.kpts)} inequivalent k-points)"


def kmesh(
    atoms: Atoms,
    kpts: Sequence[int] | Mapping | float = (8, 8, 8),
    *,
    magmoms: ndarray | None = None,
    time_reversal: bool = True,
    symmetry: bool = True,
    species: Sequence[str] | None = None,
) -> KMesh:
    """A Monkhorst-Pack mesh without equivalent points.

    Parameters
    ----------
    atoms
        The crystal; its ``initial_magmoms`` are not looked at.
    kpts
        In the forms of ASE: ``(8, 8, 8)``, ``{"size": (8, 8, 8), "even": True}``,
        ``{"density": 3.5}`` (points per 1/Angstrom), or the density alone. The mesh contains
        Gamma, as ABACUS's and PYATB's do and as extrema at Gamma need, unless a mapping says
        otherwise: ``"gamma": False`` leaves it out, ``"gamma": None`` is ASE's default, the mesh
        of Monkhorst and Pack, which contains it if the number of points is odd.
    magmoms
        Magnetic moments that operations must keep. Shape (natoms,): of up and down electrons
        that spin-orbit coupling does not mix, hence labels of the atoms. Shape (natoms, 3):
        axial vectors of a spinor Hamiltonian; operations combined with time reversal are then
        used as well. None: no moments.
    time_reversal
        Whether k and -k have the same energies. True without magnetic order, and also for
        collinear spins without spin-orbit coupling, where the Hamiltonian is real. Not used
        together with moments that are vectors.
    symmetry
        Whether to look for rotations and reflections at all.
    species
        What makes atoms different, shape (natoms,), where it is more than the element.

    Raises
    ------
    ValueError
        If ``kpts`` is not a mesh.
    """
    size, shifted = _size_and_offsets(atoms, kpts)
    full = monkhorst_pack(size) + shifted
    operations = [np.eye(3, dtype=int)]
    vectors = magmoms is not None and np.ndim(magmoms) == 2 and np.abs(magmoms).max() > _NO_MOMENT
    if symmetry and len(atoms):
        kinds = atoms.get_chemical_symbols() if species is None else list(species)
        if magmoms is not None and np.ndim(magmoms) == 1:
            steps = np.round(np.asarray(magmoms, float) / (10 * _NO_MOMENT)).astype(int)
            kinds = [f"{kind} {step}" for kind, step in zip(kinds, steps, strict=True)]
        operations = _operations(atoms, kinds, np.asarray(magmoms, float) if vectors else None)
    if time_reversal and not vectors:
        operations = [sign * rotation for rotation in operations for sign in (1, -1)]
    representative = _representatives(full, size, operations)
    chosen, index, counts = np.unique(representative, return_inverse=True, return_counts=True)
    return KMesh(np.array(size), full[chosen], counts / len(full), full, index)


def kmesh_for(
    hamiltonian: LCAOMatrix, atoms: Atoms, kpts: Sequence[int] | Mapping | float = (8, 8, 8)
) -> KMesh:
    """A mesh reduced by no more symmetry than the Hamiltonian has.

    Time reversal is tested on the Hamiltonian. Where that is magnetic, the moments are the
    ``initial_magmoms`` of the atoms (along z if they are numbers); if there are none although the
    Hamiltonian is magnetic, nothing is known about their pattern and no rotation is used. Nor is
    one used where atoms are no elements ("X", as of Wannier functions): the crystal is then not
    known, and the sites of functions can be more symmetric than it is.

    Parameters
    ----------
    kpts
        As in :func:`kmesh`.
    """
    species = hamiltonian.symbols
    if (atoms.numbers == 0).any():
        reverses = hamiltonian.time_reversal_error() < TIME_REVERSAL_TOLERANCE
        return kmesh(atoms, kpts, symmetry=False, time_reversal=reverses)
    if hamiltonian.spin == "unpolarised":
        return kmesh(atoms, kpts, species=species)
    collinear = hamiltonian.spin == "collinear"
    if hamiltonian.time_reversal_error() < TIME_REVERSAL_TOLERANCE:
        return kmesh(atoms, kpts, species=species)
    moments = atoms.get_initial_magnetic_moments()
    if np.abs(moments).max(initial=0) < _NO_MOMENT:
        return kmesh(atoms, kpts, symmetry=False, time_reversal=collinear)
    if collinear:
        if moments.ndim == 2:
            return kmesh(atoms, kpts, symmetry=False)
        return kmesh(atoms, kpts, magmoms=moments, species=species)
    if moments.ndim == 1:
        moments = moments[:, None] * np.array([0.0, 0.0, 1.0])
    return kmesh(atoms, kpts, magmoms=moments, species=species)


def _size_and_offsets(atoms: Atoms, kpts) -> tuple[ndarray, ndarray]:
    if isinstance(kpts, Mapping):
        unknown = kpts.keys() - {"size", "density", "gamma", "even"}
        if unknown:
            raise ValueError(
                f"a k mesh is given by size or density, gamma and even, not by {sorted(unknown)}"
            )
        asked = {"gamma": True, **kpts}
    elif np.ndim(kpts) == 0:
        asked = {"density": float(kpts), "gamma": True}
    else:
        asked = {"size": kpts, "gamma": True}
    size = np.asarray(asked.get("size", (1, 1, 1)))
    if size.shape != (3,) or not np.issubdtype(size.dtype, np.integer) or size.min() < 1:
        raise ValueError(
            f"kpts={kpts!r} is not a mesh: give three positive integers such as (8, 8, 8), "
            '{"size": (8, 8, 8), "gamma": True} or {"density": 3.5}'
        )
    size, offsets = kpts2sizeandoffsets(atoms=atoms, **asked)
    return np.asarray(size), np.asarray(offsets, float)


def _operations(atoms: Atoms, kinds: Sequence[str], moments: ndarray | None) -> list[ndarray]:
    """Matrices W with energies(k @ W) = energies(k), from the space group of the crystal."""
    import spglib

    numbers = np.unique(kinds, return_inverse=True)[1] + 1
    cell = (atoms.cell.array, atoms.get_scaled_positions(), numbers)
    with warnings.catch_warnings():
        # spglib 2.7 and 2.8 warn about their own way of reporting errors, which changes in 3
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            if moments is None:
                found = spglib.get_symmetry_dataset(cell)
                return [np.eye(3, dtype=int)] if found is None else list(found.rotations)
            found = spglib.get_magnetic_symmetry((*cell, moments), is_axial=True)
        except getattr(spglib, "SpglibError", ()):
            found = None
    if found is None:  # atoms that nearly coincide, for example; the identity is always right
        return [np.eye(3, dtype=int)]
    signs = np.where(found["time_reversals"], -1, 1)
    return list(signs[:, None, None] * found["rotations"])


def _representatives(kpts: ndarray, size: ndarray, operations: Sequence[ndarray]) -> ndarray:
    """For each point of a mesh, the first one that an operation maps it to; shape (nkpts,)."""
    # k = a / (2 size) with integers a that are all even or all odd along each axis
    numerators = np.round(kpts * 2 * size).astype(int)
    common = int(np.lcm.reduce(2 * size))
    step = common // (2 * size)
    strides = np.array([size[1] * size[2], size[2], 1])
    representative = np.arange(len(kpts))
    for operation in operations:
        image = (numerators * step) @ np.asarray(operation, int)
        on_mesh = (image % step == 0).all()
        shift = image // step - numerators[0]
        if on_mesh and (shift % 2 == 0).all():  # else it is no symmetry of this mesh
            representative = np.minimum(representative, (shift // 2 % size) @ strides)
    return representative
