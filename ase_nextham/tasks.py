"""The same work on many structures: several processes, and a list of what failed and why."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from ase.calculators.calculator import CalculatorError

EXPECTED = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    ImportError,
    MemoryError,
    RuntimeError,
    CalculatorError,
)
"""What goes wrong with one structure and must not stop the others."""


@dataclass(frozen=True)
class Outcome:
    """What came of the work on many structures, each by its name.

    Parameters
    ----------
    done
        Done now.
    skipped
        There already, from an earlier run.
    failed
        Why each that failed did.
    remarks
        Warnings of each that has some.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]
    remarks: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Result:
    """What became of one task.

    Parameters
    ----------
    name
        Of the task.
    value
        What the function returned; None if it failed.
    reason
        Why it failed, or None.
    remarks
        Its warnings, each once.
    """

    name: str
    value: Any
    reason: str | None
    remarks: tuple[str, ...]


def results(
    function: Callable, tasks: Mapping[str, tuple], jobs: int, progress: bool
) -> Iterator[Result]:
    """What the function makes of the arguments of each task, as it ends.

    Parameters
    ----------
    function
        Of a module, not of another function: processes have to find it.
    tasks
        Arguments, by name.
    jobs
        Processes at a time; with 1 everything is done in this one.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        If ``jobs`` is less than 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    outcomes = _one_by_one(function, tasks) if jobs == 1 else _several(function, tasks, jobs)
    if progress:
        from tqdm import tqdm

        outcomes = tqdm(outcomes, total=len(tasks), unit="structure")
    yield from outcomes


def _one_by_one(function: Callable, tasks: Mapping[str, tuple]) -> Iterator[Result]:
    for name, arguments in tasks.items():
        yield _attempt(function, name, arguments)


def _several(function: Callable, tasks: Mapping[str, tuple], jobs: int) -> Iterator[Result]:
    # a fresh interpreter each: a forked one would inherit locks of threads that are gone
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(_attempt, function, name, arguments) for name, arguments in tasks.items()
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _attempt(function: Callable, name: str, arguments: tuple) -> Result:
    value, reason = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = function(*arguments)
        except EXPECTED as err:
            reason = str(err) or type(err).__name__
    remarks = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return Result(name, value, reason, remarks)


__all__ = ["EXPECTED", "Outcome", "Result", "results"]
