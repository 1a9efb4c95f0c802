"""What a step is: its samples, its k-points and its learning rate, functions of its number alone.

Nothing random is kept between steps, so that a run that was interrupted goes on as if it had not
been, and processes agree without talking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class Sampler:
    """The order in which samples are seen: one random permutation after the other.

    Parameters
    ----------
    size
        Number of samples.
    batch
        Samples in a step. An epoch need not be a whole number of steps.
    seed
        Of the permutations.
    """

    size: int
    batch: int
    seed: int

    def __post_init__(self):
        if self.size < 1:
            raise ValueError("there are no samples to train on")

    def samples(self, step: int) -> ndarray:
        """The samples of a step, counted from 0."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, inside = np.divmod(places, self.size)
        orders = {int(e): self._order(int(e)) for e in np.unique(epochs)}
        return np.array([orders[int(e)][k] for e, k in zip(epochs, inside, strict=True)])

    def _order(self, epoch: int) -> ndarray:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(self.size)

    def kpts(self, step: int, sample: int, there: int, wanted: int) -> ndarray:
        """Which of its k-points a sample shows in a step, ascending."""
        generator = np.random.default_rng([self.seed, 1, step, sample])
        return np.sort(generator.choice(there, min(there, wanted), replace=False))

    def steps(self, epochs: float) -> int:
        """Number of steps in so many epochs."""
        return max(1, round(epochs * self.size / self.batch))


@dataclass(frozen=True)
class LearningRate:
    """A linear rise, then half a period of a cosine.

    Parameters
    ----------
    steps, warm_up
        Number of all steps, and of those in which it rises.
    first, highest, lowest
        Learning rate of the first step, after the rise, and at the end.
    """

    steps: int
    warm_up: int
    first: float
    highest: float
    lowest: float

    def __call__(self, step: int) -> float:
        if step < self.warm_up:
            return self.first + (self.highest - self.first) * step / self.warm_up
        part = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.lowest + (self.highest - self.lowest) * (1 + math.cos(math.pi * part)) / 2


__all__ = ["LearningRate", "Sampler"]
