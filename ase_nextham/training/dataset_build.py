"""Make a data set of many sources, or add to one; interrupted, it goes on where it stopped."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase_nextham import hdf5
from ase_nextham.h0 import H0Backend
from ase_nextham.h0.density import Density
from ase_nextham.h0.matching import NoMatch, match
from ase_nextham.tasks import EXPECTED, Outcome, Result, results
from ase_nextham.training.dataset import (
    SAMPLES,
    Dataset,
    Entry,
    check_same_orbitals,
    sample_path,
    write_index,
    write_sample,
    write_sample_with_density,
)
from ase_nextham.training.dataset_density import check_density, density_in, density_of_run
from ase_nextham.training.dataset_prepare import prepare
from ase_nextham.training.dataset_sources import Archive, Source

SPINOR = "-spinor"
"""What the name of a sample ends with whose dH has no spin and whose H(0) has."""

_UNFINISHED = ".unfinished-"


def build(
    sources: Iterable[Source | Archive],
    target: str | os.PathLike,
    *,
    h0: H0Backend | None = None,
    spinor_h0: H0Backend | None = None,
    nkpts: int = 16,
    densities: str | os.PathLike | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> Outcome:
    """Make a data set, or add samples to it.

    Each source is read, checked and aligned (:mod:`~ase_nextham.training.dataset_prepare`) and
    becomes a file of its own. A sample that is there already is skipped; one that cannot be made
    does not stop the others.

    Parameters
    ----------
    sources
        What to read, see :func:`~ase_nextham.training.dataset_sources.from_paths`.
    target
        Folder of the data set. It is made if need be.
    h0
        Computes H(0) for every structure, in place of the one that is read. It has to give the
        spin of the Hamiltonians.
    spinor_h0
        Computes H(0) with spin-orbit coupling for structures whose self-consistent Hamiltonian
        has no spin. Their dH is added to it; samples are named with :data:`SPINOR` at the end.
        Build twice, with it and without, for both.
    nkpts
        Number of k-points at which eigenvectors are stored; 0 for none.
    densities
        Folder of converged densities by name of the structure, see
        :func:`~ase_nextham.training.dataset_density.density_in`. Samples of the set that have
        none get theirs, too, and are otherwise left as they are. For structures that are not in
        it, and by default, the density that ABACUS left with the self-consistent run is taken.
    jobs
        Processes at a time.
    progress
        Show a progress bar.

    Returns
    -------
    Outcome
        By names of samples; an archive that cannot be opened fails by the name of its file.
        Samples that were given a density are done.

    Raises
    ------
    FileNotFoundError
        If there is no folder of densities.
    ValueError
        If two sources have the same name, or the folder holds something else.
    OSError
        If the folder cannot be written to, or another process is building in it.
    """
    target = Path(target)
    if densities is not None:
        densities = Path(densities)
        if not densities.is_dir():
            raise FileNotFoundError(f"{densities}: no such folder of densities")
    ending = "" if spinor_h0 is None else SPINOR
    named: dict[str, Source | Archive] = {}
    for source in sources:
        if source.name in named:
            raise ValueError(f"two sources are named {source.name!r}; give one another name")
        named[source.name] = source
    with _building(target) as folder:
        report = _Report(target, folder, {e.name: e for e in Dataset(target).entries})
        there = [name + ending for name in named if name + ending in report.entries]
        try:
            if densities is not None:
                tasks = {
                    name: (entry, sample_path(target, name), folder, densities)
                    for name, entry in report.entries.items()
                    if entry.density is None
                }
                report.add_densities(results(_add_density, tasks, jobs, progress))
            known = frozenset(report.entries)
            tasks = {
                name: (source, folder, ending, known, h0, spinor_h0, nkpts, densities)
                for name, source in named.items()
                if name + ending not in known
            }
            report.add_samples(results(_make, tasks, jobs, progress))
        finally:
            write_index(target, report.entries)
    settled = {*report.done, *report.failed}
    skipped = tuple(name for name in [*there, *report.skipped] if name not in settled)
    return Outcome(tuple(report.done), skipped, report.failed, report.remarks)


@dataclass
class _Report:
    """What is in a data set, and what came of the work on it, as it goes on.

    Parameters
    ----------
    target, folder
        Of the data set, and of files that are not yet in it.
    entries
        Of all its samples.
    """

    target: Path
    folder: Path
    entries: dict[str, Entry]
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add_densities(self, found: Iterable[Result]) -> None:
        """Take what :func:`_add_density` wrote."""
        for name, entry in self._values(found):
            if entry is not None:
                self._take(name, entry)

    def add_samples(self, found: Iterable[Result]) -> None:
        """Take what :func:`_make` wrote, unless it does not go with what is there."""
        for _, made in self._values(found):
            for name, one in made.items():
                if one is None:
                    self.skipped.append(name)
                    continue
                reason = one if isinstance(one, str) else _fault(one, self.entries, self.target)
                if reason is None:
                    self._take(name, one)
                else:
                    self.failed[name] = reason

    def _values(self, found: Iterable[Result]) -> Iterator[tuple[str, Any]]:
        for result in found:
            if result.remarks:
                self.remarks[result.name] = result.remarks
            if result.reason is None:
                yield result.name, result.value
            else:
                self.failed[result.name] = result.reason

    def _take(self, name: str, entry: Entry) -> None:
        os.replace(self.folder / f"{name}.h5", sample_path(self.target, name))
        self.entries[name] = entry
        self.done.append(name)


def _make(
    source: Source | Archive,
    folder: Path,
    ending: str,
    there: frozenset[str],
    h0: H0Backend | None,
    spinor_h0: H0Backend | None,
    nkpts: int,
    densities: Path | None,
) -> dict[str, Entry | str | None]:
    """Write the samples of one source; for each its entry, why it failed, or None if there."""
    made: dict[str, Entry | str | None] = {}
    with source.opened() as structures:
        for one in structures:
            name = one.name + ending
            if name in there:
                made[name] = None
                continue
            try:
                prepared = prepare(
                    one.read(),
                    one.name,
                    h0=h0,
                    spinor_h0=spinor_h0,
                    nkpts=nkpts,
                    density=_density(one, densities),
                )
                entry = Entry.of(name, one.name, prepared)
                write_sample(folder / f"{name}.h5", entry, prepared)
            except EXPECTED as err:
                made[name] = str(err) or type(err).__name__
            else:
                made[name] = entry
    return made


def _density(source: Source, densities: Path | None) -> Density | None:
    """The converged density of a structure, from the folder of densities or with its run."""
    found = None
    if densities is not None:
        found = density_in(densities, source.name)
    if found is None and source.path is not None:
        found = density_of_run(source.path)
    if found is None and densities is not None:
        warnings.warn(f"{densities} holds no density of {source.name}", stacklevel=2)
    return found


def _add_density(entry: Entry, path: Path, folder: Path, densities: Path) -> Entry | None:
    """Write a sample again with its density; None if there is none."""
    density = density_in(densities, entry.structure)
    if density is None:
        return None
    check_density(density, entry.atoms, hdf5.read(path).nelectrons)
    return write_sample_with_density(folder / path.name, path, entry, density)


def _fault(entry: Entry, entries: Mapping[str, Entry], target: Path) -> str | None:
    """Why a sample does not go with those that are there, or None."""
    for other in entries.values():
        if other.spin == entry.spin and _same_crystal(entry, other):
            return (
                f"the structure is that of the sample {other.name}, which is there; a structure "
                "that stands twice counts twice in training"
            )
    try:
        check_same_orbitals([*entries.values(), entry], target)
    except ValueError as err:
        return str(err)
    return None


def _same_crystal(a: Entry, b: Entry) -> bool:
    if len(a.atoms) != len(b.atoms) or abs(a.atoms.cell.volume / b.atoms.cell.volume - 1) > 1e-4:
        return False
    try:
        match(a.atoms, b.atoms)
    except NoMatch:
        return False
    return True


@contextmanager
def _building(target: Path) -> Iterator[Path]:
    """A folder beside the samples for files that are being written, for one process at a time."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; a data set is a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / SAMPLES).is_dir():
        raise ValueError(f"{target} holds something else than a data set; choose another folder")
    (target / SAMPLES).mkdir(parents=True, exist_ok=True)
    with open(target / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise OSError(f"{target}: another process is building this data set") from err
        for left in target.glob(f"{_UNFINISHED}*"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=target, prefix=_UNFINISHED) as folder:
            yield Path(folder)


__all__ = ["SPINOR", "build"]
