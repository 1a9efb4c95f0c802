"""Runs of one structure put together: S is often with one run and H with another.

What a run folder holds is a :class:`Part`; :func:`joined` makes one
:class:`~ase_nextham.data.LCAOData` of several. A :class:`Reader` says how the numbers are had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.h0.csr import CSRMatrix, lcao_matrices, read_csr
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.run import Run
from ase_nextham.matrix import LCAOMatrix, formula

AXES = ("position x", "position y", "position z")
"""The position operator among the records of a run."""


class Reader(Protocol):
    """How matrices are had from files: :class:`InMemory`, or something that needs less memory."""

    def records(self, path: Path) -> Sequence[CSRMatrix]:
        """All records of a file, or what has their attributes but not their elements."""

    def matrices(
        self,
        named: Mapping[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]],
        basis: Basis,
        symbols: Sequence[str],
    ) -> Mapping[str, LCAOMatrix]:
        """As :func:`~ase_nextham.h0.csr.lcao_matrices`."""

    def overlap_difference(
        self, one: CSRMatrix, two: CSRMatrix, basis: Basis, symbols: Sequence[str]
    ) -> float:
        """Largest difference between the elements of two overlaps of one structure."""

    def arranged(self, data: LCAOData, order: ndarray, shifts: ndarray) -> LCAOData:
        """``data.permuted(order).translated(shifts)``."""


class InMemory:
    """Files are read as a whole."""

    records = staticmethod(read_csr)
    matrices = staticmethod(lcao_matrices)

    def overlap_difference(self, one, two, basis, symbols) -> float:
        """See :class:`Reader`."""
        a, b = (
            lcao_matrices({"overlap": record}, basis, symbols)["overlap"] for record in (one, two)
        )
        return float(np.abs((a - b).data).max(initial=0))

    def arranged(self, data: LCAOData, order: ndarray, shifts: ndarray) -> LCAOData:
        """See :class:`Reader`."""
        return data.permuted(order).translated(shifts)


@dataclass(frozen=True, eq=False)
class Part:
    """What one run folder holds."""

    run: Run
    atoms: Atoms
    symbols: tuple[str, ...]
    basis: Basis
    records: Mapping[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]]
    sidecar: Mapping
    nelectrons: float | None
    fermi_level: float | None
    source: Mapping


def joined(reader: Reader, parts: Sequence[Part]) -> LCAOData:
    """The operators of all runs, which must be runs of one structure.

    Raises
    ------
    ValueError
        If they are not, if two hold the same Hamiltonian, or if there is no overlap.
    """
    first = parts[0]
    records: dict = {}
    origin: dict[str, Part] = {}
    for part in parts:
        _check_same(first, part)
        for name, record in part.records.items():
            if name not in records:
                records[name], origin[name] = record, part
            elif name in ("h0", "hamiltonian"):
                raise ValueError(
                    f"{origin[name].run.folder} and {part.run.folder} both hold a {name}; give one"
                )
            elif name == "overlap":
                _check_same_overlap(reader, origin[name], part)
    if "overlap" not in records:
        raise ValueError(_no_overlap(parts))
    spins = {origin[name].run.nspin for name in ("h0", "hamiltonian") if name in origin}
    if len(spins) > 1:
        a, b = origin["h0"].run, origin["hamiltonian"].run
        raise ValueError(
            f"H(0) in {a.folder} has nspin {a.nspin}, the Hamiltonian in {b.folder} {b.nspin}; "
            "give runs of the same kind"
        )
    basis = first.basis
    matrices = reader.matrices(records, basis, first.symbols)
    chosen = origin.get("hamiltonian") or origin.get("h0") or first
    known = [part.nelectrons for part in (chosen, *parts) if part.nelectrons is not None]
    data = LCAOData(
        atoms=chosen.atoms,
        overlap=matrices["overlap"],
        h0=matrices.get("h0"),
        hamiltonian=matrices.get("hamiltonian"),
        position=tuple(matrices[axis] for axis in AXES) if AXES[0] in matrices else None,
        nelectrons=known[0] if known else None,
        fermi_level=chosen.fermi_level,
        source=_joined_source(parts, origin),
    )
    if first.sidecar:
        order = np.array(first.sidecar["order"])
        shifts = np.array(first.sidecar["shifts"])
        data = reader.arranged(data, order, shifts)
    return data


def _joined_source(parts: Sequence[Part], origin: Mapping[str, Part]) -> dict:
    if len({id(part) for part in origin.values()}) == 1:
        return dict(next(iter(origin.values())).source)
    if all(part.source == parts[0].source for part in parts):
        return dict(parts[0].source)
    common = {
        name: parts[0].source.get(name)
        for name in ("code", "version", "nspin")
        if all(part.source.get(name) == parts[0].source.get(name) for part in parts)
    }
    return common | {"runs": {part.run.folder.name: dict(part.source) for part in parts}}


def _check_same(first: Part, other: Part) -> None:
    a, b = first.run.folder, other.run.folder
    if first.symbols != other.symbols:
        raise ValueError(
            f"{a} and {b} hold different atoms, or in another order: "
            f"{formula(list(first.symbols))} and {formula(list(other.symbols))}"
        )
    cell = np.abs(first.atoms.cell.array - other.atoms.cell.array).max()
    moved = np.abs(first.atoms.positions - other.atoms.positions).max(axis=1)
    if max(cell, moved.max()) > 1e-4:
        raise ValueError(
            f"{a} and {b} hold different structures: cells differ by {cell:.2g} Angstrom, atom "
            f"{int(np.argmax(moved))} ({first.symbols[int(np.argmax(moved))]}) by "
            f"{moved.max():.2g}; give the folders of one structure"
        )
    reason = first.basis.difference(other.basis)
    if reason:
        raise ValueError(f"{a} and {b} were computed with different orbitals: {reason}")


def _check_same_overlap(reader: Reader, a: Part, b: Part) -> None:
    one, two = a.records["overlap"], b.records["overlap"]
    difference = reader.overlap_difference(one, two, a.basis, a.symbols)
    if difference > 1e-6:
        raise ValueError(
            f"the overlaps in {a.run.folder} and {b.run.folder} differ by {difference:.2g}: they "
            "were not computed with the same structure or orbitals"
        )


def _no_overlap(parts: Sequence[Part]) -> str:
    folders = [part.run.folder for part in parts]
    message = (
        f"{', '.join(map(str, folders))}: there is no overlap S(R) (data-SR-sparse_SPIN0.csr, "
        "srs1_nao.csr, sr_nao.csr or SR.csr); "
    )
    given = {folder.resolve() for folder in folders}
    for sibling in sorted(folders[0].resolve().parent.iterdir()):
        if sibling in given or not (sibling / "INPUT").is_file():
            continue
        for output in sibling.glob("OUT.*"):
            if any(file.operator == "S" for file in matrix_files(output, sibling)):
                return message + (
                    f"{sibling} has one: read both, read_folder([{str(sibling)!r}, ...]), if it is "
                    "of the same structure"
                )
    return message + (
        "give the folder of another run of the same structure, too, or run ABACUS with "
        "`calculation get_s` there"
    )
