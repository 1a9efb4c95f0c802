"""Many structures at once: several processes, resumable, and a list of what failed and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ase_nextham.tasks import Outcome, results

from .conversion import convert
from .registry import guess_format, writable


def convert_many(
    sources: Sequence[str | os.PathLike],
    target: str | os.PathLike,
    source_format: str | None = None,
    *,
    target_format: str,
    jobs: int = 1,
    progress: bool = False,
    **options,
) -> Outcome:
    """Convert many structures into one folder, each to the name of its source.

    A source that is there already is skipped, so that an interrupted run goes on where it
    stopped. One that cannot be converted does not stop the others.

    Parameters
    ----------
    sources
        Files or folders of one structure each; a folder that is of no known format itself stands
        for those in it that are.
    target
        Folder of the results. It is made if need be.
    target_format
        Of all results.
    jobs
        Processes at a time.
    options
        Other keywords of :func:`convert`.

    Returns
    -------
    Outcome
        By the names of the sources.

    Raises
    ------
    ValueError
        If there is no source, or two of them have the same name.
    """
    module = writable(target_format)
    ending = module.SUFFIXES[0] if module.SUFFIXES else ""
    target = Path(target)
    named: dict[str, Path] = {}
    for path in _expanded(sources, source_format):
        name = Path(os.path.abspath(path)).name  # of a link, not of what it points to
        if path.is_file():
            name = name.removesuffix(path.suffix)
        if name in named:
            raise ValueError(
                f"{named[name]} and {path} would both become {target / (name + ending)}; "
                "convert them one after the other"
            )
        named[name] = path
    target.mkdir(parents=True, exist_ok=True)
    made = {name: target / f"{name}{ending}" for name in named}
    skipped = tuple(name for name, path in made.items() if path.exists())
    tasks = {
        name: (named[name], made[name], source_format, target_format, options)
        for name in named
        if name not in skipped
    }
    done, failed, remarks = [], {}, {}
    for result in results(_convert, tasks, jobs, progress):
        if result.reason is None:
            done.append(result.name)
        else:
            failed[result.name] = result.reason
        if result.remarks:
            remarks[result.name] = result.remarks
    return Outcome(tuple(done), skipped, failed, remarks)


def _expanded(sources: Sequence[str | os.PathLike], source_format: str | None) -> list[Path]:
    paths = []
    for source in map(Path, sources):
        if source_format is not None or not source.is_dir() or _known(source):
            paths.append(source)
            continue
        # what is of no format at all fails later, by itself, and does not stop the others
        paths += [path for path in sorted(source.iterdir()) if _known(path)] or [source]
    if not paths:
        raise ValueError("there is nothing to convert: no source was given")
    return paths


def _known(path: Path) -> bool:
    try:
        guess_format(path)
    except ValueError:
        return False
    return True


def _convert(source, target, source_format, target_format, options) -> None:
    convert(source, target, source_format, target_format, **options)


__all__ = ["convert_many"]
