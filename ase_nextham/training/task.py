"""What the loop has to know of a kind of model: its examples, its loss, its errors.

The loop (:mod:`.loop`) does steps, averages, validations and checkpoints without knowing what is
learned. A :class:`Task` tells it. :class:`PairTask` is that of networks that predict the blocks of
dH of all pairs of atoms; that of the density is in :mod:`.density_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from ase_nextham.model import Model
from ase_nextham.training.config import LossConfig, TrainConfig
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.distributed import Processes
from ase_nextham.training.example import Example, Examples
from ase_nextham.training.loss import Weights, gauge_mae
from ase_nextham.training.measure import GAUGE_MAE, Measure
from ase_nextham.training.objective import Batch, Objective
from ase_nextham.training.statistics import set_scales, set_units

STATISTICS = 500
"""Largest number of samples from which the scales of labels are taken."""

Draw = Callable[[int, int], ndarray]
"""Function of how many things there are and how many are wanted: indices, at random, ascending."""


class Task(Protocol):
    """A kind of model in training.

    Attributes
    ----------
    measure
        What is logged, and what the error of a model is.
    fitted
        Whether a new model is of use before the first step, and therefore validated then.
    objective
        Function of a batch: the loss, and a dict of terms without gradient for each structure, with
        ``"loss"`` and ``measure.term`` among them. Its attribute ``expert`` is the number of the
        network that is trained alone, or None; its own buffers belong to checkpoints.
    """

    measure: Measure
    fitted: bool
    objective: nn.Module

    def examples(self, samples: Dataset, *, learned: bool) -> Examples:
        """Samples as tensors, each with its ``name`` and a method ``to(device)``.

        Parameters
        ----------
        learned
            Whether they are learned from, not validated on.
        """
        ...

    def batch(self, examples: Sequence, draws: Sequence[Draw] | None) -> Any:
        """Some examples together; ``len`` is their number.

        Parameters
        ----------
        draws
            For each example how to choose what a step shows of it; None, in validation: all.
        """
        ...

    def begin(self, examples: Examples, device: torch.device, *, scales: bool) -> None:
        """Take from the training set what is not learned in steps; before the first one.

        Parameters
        ----------
        scales
            Whether the model is a new one, whose own scales and start are taken from it, too.
        """
        ...

    def reference(self, example: Any) -> Tensor:
        """With which the error for an example is compared."""
        ...


def task_of(config: TrainConfig, model: Model, dtype: torch.dtype, processes: Processes) -> Task:
    """The task for a kind of model.

    Parameters
    ----------
    dtype
        Precision of weights and examples.
    processes
        That train together.

    Raises
    ------
    ValueError
        If the configuration is not for this kind of model.
    """
    if model.info.head == "density":
        from ase_nextham.training.density_task import DensityTask

        return DensityTask(config, model, dtype, processes)
    return PairTask(config, model.module, dtype)


def some_of(examples: Examples, number: int, device: torch.device) -> Iterator:
    """At most so many examples on a device, evenly from all of them."""
    number = min(len(examples), number)
    for index in np.linspace(0, len(examples) - 1, number).round().astype(int):
        yield examples[int(index)].to(device)


class PairTask:
    """dH of all pairs of atoms, by an :class:`~ase_nextham.model.ensemble.Ensemble` or its like.

    Parameters
    ----------
    config
        Of the run.
    module
        The networks.
    dtype
        Precision of weights and labels.
    """

    measure = GAUGE_MAE
    fitted = False

    def __init__(self, config: TrainConfig, module: nn.Module, dtype: torch.dtype):
        mixed = torch.bfloat16 if config.optimiser.precision == "bfloat16" else None
        if mixed is not None and not getattr(module, "mixed_precision", True):
            raise ValueError(
                "[optimiser] precision = 'bfloat16' is not for published networks, which are "
                "written for one precision; use 'float32' or 'tf32'"
            )
        weights = _weights(config.loss)
        self.objective = Objective(module, weights, config.loss.norm, mixed)
        self._module, self._dtype, self._memory = module, dtype, config.data.memory
        self._kpts = config.loss.kpts if weights.needs_k_space else 0

    def examples(self, samples: Dataset, *, learned: bool) -> Examples:
        """As :meth:`Task.examples`."""
        module = self._module
        make = partial(Example.of, graph_of=module.graph, part=module.part, dtype=self._dtype)
        return Examples(samples, make, memory=self._memory)

    def batch(self, examples: Sequence[Example], draws: Sequence[Draw] | None) -> Batch:
        """As :meth:`Task.batch`: a step shows some of the k-points of each structure."""
        kpts = []
        for k, example in enumerate(examples):
            there = 0 if example.states is None else len(example.states)
            if draws is None:
                kpts.append(range(there) if there else None)
            else:
                kpts.append(draws[k](there, self._kpts) if there and self._kpts else None)
        return Batch.of(examples, kpts)

    def begin(self, examples: Examples, device: torch.device, *, scales: bool) -> None:
        """As :meth:`Task.begin`: scales of the results of networks, and the units of the loss."""
        if scales:
            set_scales(self._module, some_of(examples, STATISTICS, device))
        set_units(self.objective, some_of(examples, STATISTICS, device))

    def reference(self, example: Example) -> Tensor:
        """Gauge MAE of H(0) in eV."""
        label, overlap = example.label, example.overlap
        if example.graph.corrects.part == "collinear":
            label = torch.stack([label[0] + label[1], label[0] - label[1]])
        return gauge_mae(label, overlap.expand_as(label), example.present)


def _weights(config: LossConfig) -> Weights:
    return Weights(config.real, config.low, config.high, config.coupling, config.trace)


__all__ = ["Draw", "PairTask", "Task", "some_of", "task_of"]
