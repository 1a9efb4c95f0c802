"""The change of the density as what is trained: labels, compositions to leave out, the start.

Labels are made before the first step, where they are not there, and kept beside the samples
(:mod:`.density_label_files`). Members of the ensemble all start with the best linear map, which is
found in closed form.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ase_nextham.expansion import Expansion
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.model import Model
from ase_nextham.model.bundle import expansion_of
from ase_nextham.training.config import TrainConfig
from ase_nextham.training.dataset import Dataset, Sample
from ase_nextham.training.density_label_files import DensityLabels, labels
from ase_nextham.training.density_matrix import MatrixTarget
from ase_nextham.training.density_objective import (
    DensityBatch,
    DensityExample,
    DensityObjective,
    fit_start,
)
from ase_nextham.training.distributed import Processes
from ase_nextham.training.example import Examples
from ase_nextham.training.measure import DENSITY_ERROR, DH_ERROR
from ase_nextham.training.task import Draw, some_of

STATISTICS = 2000
"""Largest number of samples from which the linear map is found."""


class DensityTask:
    """Coefficients of the change of the density, by a
    :class:`~ase_nextham.model.density_network.DensityEnsemble`.

    Parameters
    ----------
    config
        Of the run.
    model
        With the networks and the functions in which they expand.
    dtype
        Precision of weights and labels.
    processes
        That train together; each makes its share of the labels.
    """

    fitted = True

    def __init__(self, config: TrainConfig, model: Model, dtype: torch.dtype, processes: Processes):
        own = config.density
        self.tuned = own.dh > 0 or own.bands > 0
        self.measure = DH_ERROR if self.tuned else DENSITY_ERROR
        self.objective = DensityObjective(model.module, own.dh, own.bands)
        self._config, self._dtype, self._processes = config, dtype, processes
        self._module = model.module
        self._functions = next(iter(expansion_of(model.info).radial.values()))

    def examples(self, samples: Dataset, *, learned: bool) -> Examples:
        """As :meth:`~ase_nextham.training.task.Task.examples`; makes labels that are missing."""
        folds = self._folds(samples) if learned else {}
        found, module = self._labels(samples), self._module

        def example(index: int) -> DensityExample:
            entry, graph, matrix = samples.entries[index], None, None
            if module.needs_graph or self.tuned:
                sample = samples.sample(index, None if self.tuned else ())
                graph = module.graph([sample.data]) if module.needs_graph else None
                matrix = self._matrix(sample) if self.tuned else None
            return DensityExample.of(
                found[index],
                entry.name,
                module.architecture,
                graph,
                dtype=self._dtype,
                fold=folds.get(entry.formula),
                matrix=matrix,
            )

        return Examples(range(len(samples)), example, memory=self._config.data.memory)

    def batch(
        self, examples: Sequence[DensityExample], draws: Sequence[Draw] | None
    ) -> DensityBatch:
        """As :meth:`~ase_nextham.training.task.Task.batch`; nothing is drawn."""
        return DensityBatch.of(examples)

    def begin(self, examples: Examples, device: torch.device, *, scales: bool) -> None:
        """As :meth:`~ase_nextham.training.task.Task.begin`: scales and the linear maps."""
        if scales:
            some = list(some_of(examples, STATISTICS, device))
            fit_start(self._module, some, self._config.density.ridge)

    def reference(self, example: DensityExample) -> Tensor:
        """All of the change, in which errors are counted."""
        return example.label.new_ones(())

    # --- inside --------------------------------------------------------------------------------

    def _matrix(self, sample: Sample) -> MatrixTarget:
        own, group = self._config.density, self._processes
        engine = NativeH0(
            own.pseudo_dir,
            own.orbital_dir,
            nspin=4 if sample.entry.spin == "spinor" else 1,
            threads=max(1, (os.cpu_count() or 1) // group.size),
        )
        part = engine.local_part(sample.data.atoms)
        expansion = Expansion("density", dict.fromkeys(part.symbols, self._functions))
        return MatrixTarget.of(sample, part, expansion)

    def _labels(self, samples: Dataset) -> DensityLabels:
        config, group = self._config, self._processes
        # all elements of the data set: labels of each subset of it are the same ones
        species = sorted(Dataset(samples.path).basis.shells)
        expansion = Expansion("density", dict.fromkeys(species, self._functions))
        options = {
            "pseudo_dir": config.density.pseudo_dir,
            "orbital_dir": config.density.orbital_dir,
            "progress": config.run.progress and group.first,
        }
        if group.size > 1:
            own = samples.subset(range(group.rank, len(samples), group.size))
            threads = max(1, (os.cpu_count() or 1) // group.size)
            labels(own, expansion, threads=threads, **options)
            group.wait()
        return labels(samples, expansion, **options)

    def _folds(self, samples: Dataset) -> Mapping[str, int]:
        """For each composition the member that does not learn from it."""
        members = len(self._module.experts)
        formulas = sorted({entry.formula for entry in samples.entries})
        if not self._config.density.folds or members < 2 or len(formulas) < 2:
            return {}
        order = np.random.default_rng([self._config.run.seed, 2]).permutation(len(formulas))
        return {formulas[k]: place % members for place, k in enumerate(order)}


__all__ = ["DensityTask"]
