"""Work on ranges of an array in several threads, for compiled loops that release the GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np


def in_threads(function: Callable, size: int, threads: int, *arguments) -> None:
    """Call ``function(start, stop, *arguments)`` on parts of 0 ... size, one in each thread."""
    bounds = np.linspace(0, size, max(1, min(threads, size)) + 1).astype(int)
    if len(bounds) == 2:
        function(0, size, *arguments)
        return
    with ThreadPoolExecutor(len(bounds) - 1) as pool:
        tasks = [pool.submit(function, a, b, *arguments) for a, b in pairwise(bounds)]
        for task in tasks:
            task.result()
