"""Make a data set of many sources, or add to one; interrupted, it goes on where it stopped."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ase_nextham.h0 import H0Backend
from ase_nextham.h0.matching import NoMatch, match
from ase_nextham.tasks import EXPECTED, Outcome, results
from ase_nextham.training.dataset import (
    SAMPLES,
    Dataset,
    Entry,
    check_same_orbitals,
    sample_path,
    write_index,
    write_sample,
)
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
    jobs
        Processes at a time.
    progress
        Show a progress bar.

    Returns
    -------
    Outcome
        By names of samples; an archive that cannot be opened fails by the name of its file.

    Raises
    ------
    ValueError
        If two sources have the same name, or the folder holds something else.
    OSError
        If the folder cannot be written to, or another process is building in it.
    """
    target = Path(target)
    ending = "" if spinor_h0 is None else SPINOR
    named: dict[str, Source | Archive] = {}
    for source in sources:
        if source.name in named:
            raise ValueError(f"two sources are named {source.name!r}; give one another name")
        named[source.name] = source
    with _building(target) as folder:
        entries = {entry.name: entry for entry in Dataset(target).entries}
        skipped = [name + ending for name in named if name + ending in entries]
        tasks = {
            name: (source, folder, ending, frozenset(entries), h0, spinor_h0, nkpts)
            for name, source in named.items()
            if name + ending not in entries
        }
        done: list[str] = []
        failed: dict[str, str] = {}
        remarks: dict[str, tuple[str, ...]] = {}
        try:
            for result in results(_make, tasks, jobs, progress):
                if result.remarks:
                    remarks[result.name] = result.remarks
                if result.reason is not None:
                    failed[result.name] = result.reason
                    continue
                for name, made in result.value.items():
                    if made is None:
                        skipped.append(name)
                        continue
                    reason = made if isinstance(made, str) else _fault(made, entries, target)
                    if reason is None:
                        os.replace(folder / f"{name}.h5", sample_path(target, name))
                        entries[name] = made
                        done.append(name)
                    else:
                        failed[name] = reason
        finally:
            write_index(target, entries)
    return Outcome(tuple(done), tuple(skipped), failed, remarks)


def _make(
    source: Source | Archive,
    folder: Path,
    ending: str,
    there: frozenset[str],
    h0: H0Backend | None,
    spinor_h0: H0Backend | None,
    nkpts: int,
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
                prepared = prepare(one.read(), one.name, h0=h0, spinor_h0=spinor_h0, nkpts=nkpts)
                entry = Entry.of(name, one.name, prepared)
                write_sample(folder / f"{name}.h5", entry, prepared)
            except EXPECTED as err:
                made[name] = str(err) or type(err).__name__
            else:
                made[name] = entry
    return made


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
