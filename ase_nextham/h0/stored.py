"""H(0) and S that were computed earlier, as a backend: no executable is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_nextham import hdf5
from ase_nextham.data import LCAOData
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.folder import as_atoms, operator_of, read_folder
from ase_nextham.h0.matching import NoMatch, match
from ase_nextham.h0.run import Run, find_runs, read_structure

SUFFIXES = (".h5", ".hdf5")
"""Native files are found in folders by these."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """One stored structure."""

    name: str
    atoms: Atoms
    operators: frozenset[str]
    paths: tuple[Path, ...]
    nspin: int | None = None


class StoredH0:
    """Overlap and H(0) from a native file, an ABACUS folder, or a folder with several of either.

    >>> backend = StoredH0("GaAs.h5")                                       # doctest: +SKIP
    >>> data = backend.compute(bulk("GaAs", "zincblende", a=5.653))         # doctest: +SKIP

    Parameters
    ----------
    path
        A native file; the folder of an ABACUS run, or of several runs that hold the operators of
        one structure; or a folder with any number of these, down to two levels below it.
    pseudo_dir, orbital_dir
        For ABACUS folders, as in :func:`~ase_nextham.h0.folder.read_folder`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        pseudo_dir: str | os.PathLike | None = None,
        orbital_dir: str | os.PathLike | None = None,
    ):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        self._options = {"pseudo_dir": pseudo_dir, "orbital_dir": orbital_dir}

    def __repr__(self):
        return f"StoredH0({str(self.path)!r})"

    def compute(self, atoms: Atoms) -> LCAOData:
        """The stored data of a structure, with its atoms in the order and at the positions given.

        Structures are the same if their cell vectors agree to 1e-4 Angstrom and their atoms,
        in whatever order and moved by whatever lattice vectors, to 1e-3. Magnetic moments are
        not compared; those of the result are the stored ones.

        Raises
        ------
        ValueError
            If the structure is not stored, naming the nearest one and how far it is; if several
            entries have it; or if it is stored without H(0).
        """
        matching, others = [], []
        for entry in self._entries:
            try:
                match(entry.atoms, atoms)
                matching.append(entry)
            except NoMatch as err:
                others.append((err.distance, entry, err))
        usable = [entry for entry in matching if {"overlap", "h0"} <= entry.operators]
        if len(usable) > 1:
            raise ValueError(
                f"{self.path} holds this structure several times: "
                f"{', '.join(entry.name for entry in usable)}; name one of them as the path"
            )
        if matching and not usable:
            held = ", ".join(sorted(matching[0].operators)) or "nothing"
            raise ValueError(
                f"{matching[0].name} holds this structure, but not the overlap and H(0): {held}"
            )
        if not matching:
            _, nearest, reason = min(others, key=lambda other: other[0])
            raise ValueError(
                f"{self.path} does not hold {atoms.get_chemical_formula('metal')} with these "
                f"positions; nearest of {len(others)} is {nearest.name} "
                f"({nearest.atoms.get_chemical_formula('metal')}): {reason}{self._not_read()}"
            )
        return as_atoms(self._read(usable[0]), atoms)

    def _read(self, entry: _Entry) -> LCAOData:
        if entry.paths[0].is_file():
            return hdf5.read(entry.paths[0])
        return read_folder(entry.paths, **self._options)

    @cached_property
    def _index(self) -> tuple[list[_Entry], list[str]]:
        """What is stored, and why some of it cannot be read."""
        skipped: list[str] = []
        return list(_entries(self.path, 2, skipped)), skipped

    @property
    def _entries(self) -> list[_Entry]:
        entries, _ = self._index
        if not entries:
            raise ValueError(
                f"{self.path}: there is neither a native file ({', '.join(SUFFIXES)}) nor an "
                f"ABACUS run, here or two levels below{self._not_read()}"
            )
        return entries

    def _not_read(self) -> str:
        _, skipped = self._index
        return f" ({len(skipped)} could not be read; the first: {skipped[0]})" if skipped else ""


def _entries(path: Path, levels: int, skipped: list[str]) -> Iterator[_Entry]:
    if path.is_file():
        atoms, operators = hdf5.read_structure(path)
        yield _Entry(str(path), atoms, operators, (path,))
        return
    if _is_run(path):
        yield from _complete([_entry(run, path) for run in find_runs(path)])
        return
    children = sorted(path.iterdir())
    runs = []
    for child in children:
        try:
            if child.suffix in SUFFIXES and child.is_file():
                yield from _entries(child, 0, skipped)
            elif child.is_dir() and _is_run(child):
                runs += [_entry(run, child) for run in find_runs(child)]
            elif child.is_dir() and levels:
                yield from _entries(child, levels - 1, skipped)
        except (OSError, ValueError) as err:  # one that is damaged must not hide the others
            skipped.append(str(err))
    yield from _complete(runs)


def _is_run(path: Path) -> bool:
    return (path / "INPUT").is_file() or path.resolve().name.startswith("OUT.")


def _entry(run: Run, path: Path) -> _Entry:
    operators = {file.operator for file in matrix_files(run.output, run.folder)}
    named = {"H": operator_of(run), "S": "overlap", "r": "position"}
    held = frozenset(named[operator] for operator in operators)
    return _Entry(str(path), read_structure(run).atoms, held, (path,), run.nspin)


def _complete(entries: list[_Entry]) -> Iterator[_Entry]:
    """Runs beside each other that complete one another: each holds what the others lack."""
    while entries:
        first, *entries = entries
        rest = []
        for entry in entries:
            try:
                order, shifts = match(first.atoms, entry.atoms)
                same = (order == np.arange(len(order))).all() and not shifts.any()
            except NoMatch:
                same = False
            hamiltonians = {"h0", "hamiltonian"} & first.operators & entry.operators
            lacking = {"overlap", "h0"} - first.operators or {"overlap", "h0"} - entry.operators
            if same and lacking and not hamiltonians and first.nspin == entry.nspin:
                operators = first.operators | entry.operators
                paths = first.paths + entry.paths
                name = f"{first.name} + {entry.name}"
                first = _Entry(name, first.atoms, operators, paths, first.nspin)
            else:
                rest.append(entry)
        entries = rest
        yield first


__all__ = ["StoredH0"]
