"""What the files of a DeepH folder mean: the same for its two formats.

DeepH knows S and one Hamiltonian. That is H, or H(0) where there is no H; where there are both,
H(0) goes to a file that DeepH does not look at. All matrices of a folder have spin or none has;
DeepH has no collinear spin, which is written as spin with zeros between up and down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix

from .deeph_blocks import Blocks, check_finite, content_spin, lcao_matrix
from .sidecar import noted_basis, restored

ENERGY_ZEROS = ("kept", "standardized")
"""The energy zero of what is written: that of the data, or the one at which <H, S> = 0."""

HAMILTONIANS = ("dft", "predicted")
"""Which Hamiltonian of a folder to read."""


@dataclass(frozen=True, eq=False)
class Content:
    """What is to be written.

    Parameters
    ----------
    overlap
        As real numbers, which DeepH's is.
    hamiltonians
        By the name of their files in the new format: ``"hamiltonian"``, ``"zeroth_hamiltonian"``.
    spinful
        Whether they are to be written with spin.
    shift
        mu in eV, which has been subtracted as mu S.
    fermi_level
        In eV, moved by mu with H.
    extra
        For the note beside the files.
    """

    overlap: LCAOMatrix
    hamiltonians: Mapping[str, LCAOMatrix]
    spinful: bool
    shift: float
    fermi_level: float | None
    extra: Mapping


def content(path: Path, data: LCAOData, energy_zero: str) -> Content:
    """What to write for some data.

    Raises
    ------
    ValueError
        For an unknown energy zero, for ``"standardized"`` without a Hamiltonian, and for complex
        matrices without spin, which DeepH does not have.
    """
    if energy_zero not in ENERGY_ZEROS:
        raise ValueError(
            f"unknown energy zero {energy_zero!r}; choose one of {', '.join(ENERGY_ZEROS)}"
        )
    only_h0 = data.hamiltonian is None and data.h0 is not None
    named = {"hamiltonian": data.h0 if only_h0 else data.hamiltonian}
    named["zeroth_hamiltonian"] = None if only_h0 else data.h0
    named = {name: matrix for name, matrix in named.items() if matrix is not None}
    spinful = any(matrix.spin != "unpolarised" for matrix in named.values())
    shift = 0.0
    if energy_zero == "standardized":
        if "hamiltonian" not in named:
            raise ValueError(f"{path}: there is no Hamiltonian whose energy zero could be moved")
        shift = energy_shift(named["hamiltonian"], data.overlap)
        named = {name: _shifted(m, data.overlap, -shift) for name, m in named.items()}
    named = {name: m if m.spin == "spinor" else _real(path, name, m) for name, m in named.items()}
    return Content(
        overlap=_real(path, "overlap", data.overlap),
        hamiltonians=named,
        spinful=spinful,
        shift=shift,
        fermi_level=None if data.fermi_level is None else data.fermi_level - shift,
        extra={
            "hamiltonian_is": "h0" if only_h0 else "hamiltonian",
            "spin": {name: matrix.spin for name, matrix in named.items()},
        },
    )


def energy_shift(hamiltonian: LCAOMatrix, overlap: LCAOMatrix) -> float:
    """mu in eV for which H - mu S is orthogonal to S: <H, S> / <S, S> over all elements.

    DeepH moves the energy zero of a data set to this ("standardize"), because Hamiltonians that
    differ by a multiple of S are the same physics.
    """
    overlap = overlap.with_spin(hamiltonian.spin)
    return float(overlap.inner(hamiltonian).real / overlap.inner(overlap).real)


def _shifted(matrix: LCAOMatrix, overlap: LCAOMatrix, mu: float) -> LCAOMatrix:
    return matrix + mu * overlap.with_spin(matrix.spin)


def _real(path: Path, name: str, matrix: LCAOMatrix) -> LCAOMatrix:
    if not np.iscomplexobj(matrix.data):
        return matrix
    refuse_imaginary(path, name, float(np.abs(matrix.data.imag).max(initial=0)))
    return replace(matrix, data=matrix.data.real)


def refuse_imaginary(path: Path, name: str, largest: float) -> None:
    """Refuse a matrix without spin that has imaginary parts up to ``largest``, unless it is 0.

    Raises
    ------
    ValueError
        Saying so.
    """
    if largest:
        raise ValueError(
            f"{path}: {name} has imaginary parts up to {largest:.3g}, but DeepH's matrices are "
            "real without spin-orbit coupling; write it as spinor"
        )


@dataclass(frozen=True, eq=False)
class Folder:
    """What a folder holds, read but not yet understood.

    Parameters
    ----------
    path
        The folder.
    atoms
        In the order of the files.
    species
        Of each atom, as the files themselves tell them apart.
    basis
        Of these species, in the convention of ABACUS.
    convention
        That the files are in.
    spinful
        Whether Hamiltonians have spin.
    fermi_level, nelectrons, shift
        As far as the files tell them; the Fermi level as it stands there.
    blocks
        By the name of the file in the new format, ``"overlap"``, ``"hamiltonian"``,
        ``"hamiltonian_pred"``, ``"zeroth_hamiltonian"``, ``"position_matrix"``. Without the first,
        the basis is orthogonal.
    """

    path: Path
    atoms: Atoms
    species: tuple[str, ...]
    basis: Basis
    convention: str
    spinful: bool
    fermi_level: float | None
    nelectrons: float | None
    shift: float
    blocks: Mapping[str, Blocks]

    @property
    def norbitals(self) -> ndarray:
        """Of each atom, without spin."""
        return np.array([self.basis.norbitals(name) for name in self.species], np.int64)


def sources(
    path: Path, names: Collection[str], hamiltonian: str | None, note: Mapping | None
) -> dict[str, str]:
    """Which file, of those that a folder has, holds which Hamiltonian.

    Parameters
    ----------
    path
        The folder, for messages.
    names
        Of the files, as in :class:`Folder`.
    hamiltonian
        Of :data:`HAMILTONIANS`; None takes the predicted one only where there is no other.

    Returns
    -------
    dict
        ``"h0"`` and ``"hamiltonian"``, as far as there are.

    Raises
    ------
    ValueError
        If what is asked for is not there.
    """
    if hamiltonian is not None and hamiltonian not in HAMILTONIANS:
        raise ValueError(
            f"unknown hamiltonian {hamiltonian!r}; choose one of {', '.join(HAMILTONIANS)}"
        )
    noted_h0 = note is not None and note["extra"].get("hamiltonian_is") == "h0"
    files = {}
    if noted_h0 and "hamiltonian" in names:
        files["h0"] = "hamiltonian"
    elif "zeroth_hamiltonian" in names:
        files["h0"] = "zeroth_hamiltonian"
    if "hamiltonian" in names and not noted_h0 and hamiltonian != "predicted":
        files["hamiltonian"] = "hamiltonian"
    elif "hamiltonian_pred" in names and hamiltonian != "dft":
        files["hamiltonian"] = "hamiltonian_pred"
    if hamiltonian is not None and "hamiltonian" not in files:
        raise ValueError(f"{path}: there is no {hamiltonian} Hamiltonian in this folder")
    return files


def lcao_data(folder: Folder, files: Mapping[str, str], note: Mapping | None) -> LCAOData:
    """The data that a folder holds, as they were given to ``write`` where a note tells that.

    Parameters
    ----------
    files
        As of :func:`sources`.
    note
        Of :func:`read_sidecar`.

    Raises
    ------
    ValueError
        If blocks do not belong to the structure, or the note to other atoms.
    """
    basis, symbols = folder.basis, folder.species
    if note is not None:
        basis, symbols = _noted_species(folder, note)
    position = None
    if "position_matrix" in folder.blocks:
        blocks = folder.blocks["position_matrix"]
        position = tuple(_matrix(folder, blocks, r, basis, symbols) for r in blocks.entries)
        if len(position[0].pairs) != len(blocks.i):
            # r(-R)^T = r(R) - R S: not for guessing
            raise ValueError(f"{blocks.path}: there are pairs (i, j, R) without (j, i, -R)")
    if "overlap" in folder.blocks:
        blocks = folder.blocks["overlap"]
        overlap = _matrix(folder, blocks, blocks.entries, basis, symbols)
    else:
        overlap = _identity(basis, symbols)
    hamiltonians = {
        role: _hamiltonian(folder, name, basis, symbols, note) for role, name in files.items()
    }
    if folder.shift:
        hamiltonians = {
            role: _shifted(matrix, overlap, folder.shift) for role, matrix in hamiltonians.items()
        }
    fermi_level = None if folder.fermi_level is None else folder.fermi_level + folder.shift
    data = LCAOData(
        atoms=folder.atoms,
        overlap=overlap,
        h0=hamiltonians.get("h0"),
        hamiltonian=hamiltonians.get("hamiltonian"),
        position=position,
        nelectrons=folder.nelectrons,
        fermi_level=fermi_level,
        source={"code": "DeepH"},
    )
    if note is not None:
        data = restored(data, note)
    if files.get("hamiltonian") == "hamiltonian_pred":
        data = replace(data, source={**data.source, "hamiltonian": "predicted by DeepH"})
    return data


def _noted_species(folder: Folder, note: Mapping) -> tuple[Basis, tuple[str, ...]]:
    """The species that were written, which must have the orbitals that the files tell."""
    basis = noted_basis(note)
    symbols = tuple(note["species"][a] for a in note["order"])
    shells = [basis.shells.get(name) for name in symbols]
    if shells != [folder.basis.shells[name] for name in folder.species]:
        raise ValueError(
            f"{folder.path}: the note beside the files is for atoms {' '.join(symbols)}, which "
            f"do not have the orbitals of those in the files, {' '.join(folder.species)}"
        )
    return basis, symbols


def _matrix(folder: Folder, blocks: Blocks, entries: ndarray, basis, symbols) -> LCAOMatrix:
    spin, convention = "unpolarised", folder.convention
    check_finite(blocks, blocks.starts(folder.norbitals))
    return lcao_matrix(blocks, entries, basis, symbols, spin, convention, spinful=False)


def _hamiltonian(folder: Folder, name: str, basis, symbols, note: Mapping | None) -> LCAOMatrix:
    blocks = folder.blocks[name]
    if not folder.spinful:
        return _matrix(folder, blocks, blocks.entries, basis, symbols)
    check_finite(blocks, blocks.starts(2 * folder.norbitals))
    spin = content_spin(blocks, folder.norbitals)
    noted = None if note is None else note["extra"].get("spin", {}).get(name)
    if spin == "collinear" and noted == "spinor":  # it is real and has no ud
        spin = "spinor"
    convention = folder.convention
    matrix = lcao_matrix(blocks, blocks.entries, basis, symbols, spin, convention, spinful=True)
    if noted == "unpolarised" and spin == "collinear" and (matrix.data[0] == matrix.data[1]).all():
        return replace(matrix, spin="unpolarised", data=matrix.data[0])
    return matrix


def _identity(basis: Basis, symbols: Sequence[str]) -> LCAOMatrix:
    """The overlap of an orthogonal basis."""
    atoms = np.arange(len(symbols))
    pairs = AtomPairs(atoms, atoms, np.zeros((len(atoms), 3), int))
    blocks = [np.eye(basis.norbitals(name)).ravel() for name in symbols]
    return LCAOMatrix(basis, symbols, pairs, "unpolarised", np.concatenate(blocks))


__all__ = [
    "ENERGY_ZEROS",
    "HAMILTONIANS",
    "Content",
    "Folder",
    "content",
    "energy_shift",
    "lcao_data",
    "refuse_imaginary",
    "sources",
]
