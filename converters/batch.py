"""Many structures at once: several processes, resumable, and a list of what failed and why."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from .conversion import convert
from .registry import guess_format, writable


@dataclass(frozen=True)
class Batch:
    """What came of :func:`convert_many`, each by the name of its source.

    Parameters
    ----------
    done
        Converted now.
    skipped
        There already, from an earlier run.
    failed
        Why each that failed did.
    remarks
        Warnings, by source.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]
    remarks: Mapping[str, tuple[str, ...]]


def convert_many(
    sources: Sequence[str | os.PathLike],
    target: str | os.PathLike,
    source_format: str | None = None,
    *,
    target_format: str,
    jobs: int = 1,
    progress: bool = False,
    **options,
) -> Batch:
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

    Raises
    ------
    ValueError
        If there is no source, or two of them have the same name.
    """
    module = writable(target_format)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    ending = module.SUFFIXES[0] if module.SUFFIXES else ""
    target = Path(target)
    named: dict[str, Path] = {}
    for path in _expanded(sources, source_format):
        name = path.resolve().name
        if path.is_file():
            name = name.removesuffix(path.suffix)
        if name in named:
            raise ValueError(
                f"{named[name]} and {path} would both become {target / (name + ending)}; "
                "convert them one after the other"
            )
        named[name] = path
    target.mkdir(parents=True, exist_ok=True)
    results = {name: target / f"{name}{ending}" for name in named}
    skipped = tuple(name for name, path in results.items() if path.exists())
    tasks = {
        name: (named[name], results[name], source_format, target_format, options)
        for name in named
        if name not in skipped
    }
    done, failed, remarks = [], {}, {}
    with tqdm(total=len(tasks), unit="structure", disable=not progress) as bar:
        for name, reason, said in _outcomes(tasks, jobs):
            if reason is None:
                done.append(name)
            else:
                failed[name] = reason
            if said:
                remarks[name] = said
            bar.update()
    return Batch(tuple(done), skipped, failed, remarks)


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


def _outcomes(tasks: Mapping[str, tuple], jobs: int):
    """(name, why it failed or None, warnings) of each task as it ends."""
    if jobs == 1:
        for name, task in tasks.items():
            yield name, *_one(*task)
        return
    # a fresh interpreter each: a forked one would inherit locks of threads that are gone
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_one, *task): name for name, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _one(source, target, source_format, target_format, options) -> tuple[str | None, tuple]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            convert(source, target, source_format, target_format, **options)
            reason = None
        except (ValueError, TypeError, KeyError, OSError, ImportError, MemoryError) as err:
            reason = f"{type(err).__name__}: {err}"
    return reason, tuple(dict.fromkeys(str(warning.message) for warning in caught))


__all__ = ["Batch", "convert_many"]
