"""The loop: step after step, checkpoints between them, and the best model by validation.

A :class:`Trainer` holds what changes. Everything that it needs to go on where it stopped is in
:meth:`Trainer.checkpoint`; the rest follows from the number of the step (:mod:`.schedule`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ase_nextham.model import Model
from ase_nextham.training.checkpoint import Checkpoint, optimiser_tensors, restore_optimiser
from ase_nextham.training.config import LossConfig, TrainConfig
from ase_nextham.training.distributed import Processes
from ase_nextham.training.example import Example, Examples
from ase_nextham.training.loss import Weights, gauge_mae
from ase_nextham.training.objective import Batch, Objective
from ase_nextham.training.schedule import LearningRate, Sampler
from ase_nextham.training.statistics import set_scales, set_units

STATISTICS = 500
"""Largest number of samples from which the scales of labels are taken."""

_LOGGED = ("loss", "real", "trace", "low", "high", "coupling")


@dataclass(frozen=True)
class Validation:
    """How well a model does on samples that it was not trained on.

    Parameters
    ----------
    loss
        As in training, mean over samples.
    mae, h0_mae
        Gauge MAE of H and of H(0) in eV, mean over samples.
    """

    loss: float
    mae: float
    h0_mae: float

    @property
    def ratio(self) -> float:
        """Error of H as a part of that of H(0)."""
        return self.mae / self.h0_mae if self.h0_mae else math.nan


class Loader:
    """The batches of a step, of which those of the next are made meanwhile in a thread.

    Parameters
    ----------
    examples, sampler
        Samples to train on, and their order.
    share
        Which samples of each step this process works on.
    micro_batch
        Structures in a batch.
    kpts
        k-points of each structure in a step.
    device
        To which batches go.

    Attributes
    ----------
    waited
        Seconds for which a step had to wait for its batches.
    """

    def __init__(
        self,
        examples: Examples,
        sampler: Sampler,
        share: range,
        micro_batch: int,
        kpts: int,
        device: torch.device,
    ):
        self.examples, self.sampler, self.share = examples, sampler, share
        self.micro_batch, self.kpts, self.device = micro_batch, kpts, device
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: dict[int, Future] = {}

    def batches(self, step: int) -> list[Batch]:
        """The batches of a step."""
        begin = time.perf_counter()
        future = self._ahead.pop(step, None) or self._thread.submit(self._make, step)
        batches = future.result()
        self.waited += time.perf_counter() - begin
        self._ahead = {step + 1: self._thread.submit(self._make, step + 1)}
        return batches

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int) -> list[Batch]:
        own = self.sampler.samples(step)[self.share]
        examples, kpts = [], []
        for index in own:
            example = self.examples[int(index)]
            there = 0 if example.states is None or not self.kpts else len(example.states)
            chosen = self.sampler.kpts(step, int(index), there, self.kpts) if there else None
            examples.append(example.to(self.device))
            kpts.append(chosen)
        size = self.micro_batch or len(own)
        return [
            Batch.of(examples[k : k + size], kpts[k : k + size]) for k in range(0, len(own), size)
        ]


class Trainer:
    """A model on its way. Call :meth:`begin` or :meth:`restore` before the first step.

    Parameters
    ----------
    config
        Of the run.
    model
        To be trained; its weights are changed.
    training, validation
        Samples; of the latter there may be none.
    processes
        That train together.

    Attributes
    ----------
    step
        Number of steps done.
    steps
        Of the whole run.
    best
        Validation with the smallest gauge MAE so far, or None.
    seconds
        Time that the run has taken.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        training: Sequence,
        validation: Sequence,
        processes: Processes,
    ):
        self.config, self.model, self.processes = config, model, processes
        optimiser = config.optimiser
        self.dtype = torch.float64 if optimiser.precision == "float64" else torch.float32
        module = model.to(processes.device, self.dtype).module.train()
        self.module = module
        weights = _weights(config.loss)
        mixed = torch.bfloat16 if optimiser.precision == "bfloat16" else None
        if mixed is not None and not getattr(module, "mixed_precision", True):
            raise ValueError(
                "[optimiser] precision = 'bfloat16' is not for published networks, which are "
                "written for one precision; use 'float32' or 'tf32'"
            )
        self.objective = Objective(module, weights, config.loss.norm, mixed).to(processes.device)
        kept = [module.graph, module.part, self.dtype]
        self.examples = Examples(training, *kept, memory=config.data.memory)
        self.validation = Examples(validation, *kept, memory=config.data.memory)
        self.sampler = Sampler(len(training), optimiser.batch, config.run.seed)
        self.loader = Loader(
            self.examples,
            self.sampler,
            processes.share(optimiser.batch),
            optimiser.micro_batch,
            config.loss.kpts if weights.needs_k_space else 0,
            processes.device,
        )
        one_by_one = optimiser.experts == "one by one"
        self.stages: list[int | None] = list(range(len(module.experts))) if one_by_one else [None]
        self.stage_steps = self.sampler.steps(optimiser.epochs)
        self.steps = self.stage_steps * len(self.stages)
        self.rate = LearningRate(
            self.stage_steps,
            self.sampler.steps(optimiser.warm_up) if optimiser.warm_up else 0,
            optimiser.first,
            optimiser.learning_rate,
            optimiser.lowest,
        )
        self.step, self.best, self.seconds, self._bad = 0, None, 0.0, 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._begin_stage(0)

    def begin(self, *, scales: bool) -> None:
        """Take the units of the loss from the training set; before the first step.

        Parameters
        ----------
        scales
            Whether those of the results of the networks are taken from it, too.
        """
        if scales:
            set_scales(self.module, self._typical())
        set_units(self.objective, self._typical())

    def _typical(self) -> Iterator[Example]:
        """Samples enough to know how large labels are."""
        number = min(len(self.examples), STATISTICS)
        for index in np.linspace(0, len(self.examples) - 1, number).round().astype(int):
            yield self.examples[int(index)].to(self.processes.device)

    def _begin_stage(self, stage: int) -> None:
        self.stage, expert = stage, self.stages[stage]
        for k, network in enumerate(self.module.experts):
            network.requires_grad_(expert is None or k == expert)
        self.objective.expert = expert
        config = self.config.optimiser
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.algorithm]
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimiser = kind(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.wrapped = self.processes.wrapped(self.objective)

    # --- steps -----------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """Do one step.

        Returns
        -------
        dict
            What :data:`~ase_nextham.training.logs.STEP_COLUMNS` names.

        Raises
        ------
        FloatingPointError
            If too many steps in a row gave numbers that are not finite.
        """
        begin = time.perf_counter()
        stage = self.step // self.stage_steps
        if stage != self.stage:
            self._end_stage()
            self._begin_stage(stage)
        rate = self.rate(self.step - stage * self.stage_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        batches = self.loader.batches(self.step)
        terms = self._gradients(batches)
        limit = self.config.optimiser.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        values = self._means(terms)
        if math.isfinite(norm) and math.isfinite(values["loss"]):
            self.optimiser.step()
            self._update_average()
            self._bad = 0
        else:
            self._report_nonfinite(batches, terms)
        self.step += 1
        self.seconds += time.perf_counter() - begin
        epoch = self.step * self.sampler.batch / self.sampler.size
        return {
            "step": self.step,
            "epoch": epoch,
            "seconds": round(self.seconds, 3),
            "learning_rate": rate,
            "gradient": norm,
            "mae_meV": 1e3 * values.pop("mae"),
            **values,
        }

    def _gradients(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        found = []
        total = sum(len(batch) for batch in batches)
        for k, batch in enumerate(batches):
            last = k == len(batches) - 1
            with nullcontext() if last else self.processes.local(self.wrapped):
                loss, terms = self.wrapped(batch)
                if not loss.requires_grad:  # no pair of this batch is in the window
                    loss = loss + 0 * self.parameters[0].sum()
                (loss * (len(batch) / total)).backward()
            found += terms
        return found

    def _means(self, terms: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Terms averaged over the structures of all processes."""
        names = [name for name in (*_LOGGED, "mae") if name in terms[0]]
        table = torch.stack([torch.stack([own[name].double() for name in names]) for own in terms])
        means = self.processes.gathered(table.cpu()).mean(dim=0)
        return dict(zip(names, means.tolist(), strict=True))

    def _update_average(self) -> None:
        decay = self.config.optimiser.average
        decay = min(decay, (1 + self.step) / (10 + self.step)) if decay else 0.0
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                if p.requires_grad:
                    self.average[name].lerp_(p, 1 - decay)

    def _report_nonfinite(self, batches: Sequence[Batch], terms) -> None:
        self._bad += 1
        names = [example.name for batch in batches for example in batch.examples]
        bad = [n for n, own in zip(names, terms, strict=True) if not torch.isfinite(own["loss"])]
        what = f"the loss of {', '.join(bad)}" if bad else f"the gradient of {', '.join(names)}"
        message = f"step {self.step + 1}: {what} is not finite; the weights were left as they are"
        if self._bad > self.config.optimiser.nonfinite:
            raise FloatingPointError(
                f"{message}; so it was in this step and {self._bad - 1} before it; use a smaller "
                "learning_rate or clip, or look at these samples"
            )
        warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _end_stage(self) -> None:
        """What is kept of a network that was trained alone is the average of its weights."""
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(self.average[name])

    # --- validation ------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block in which the networks have the average of their weights."""
        own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        try:
            self._set_weights(self.average)
            yield
        finally:
            self._set_weights(own)

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(weights[name])

    def validate(self) -> Validation | None:
        """Errors of the averaged weights on the validation set; None if there is none."""
        if not len(self.validation):
            return None
        rank, size = self.processes.rank, self.processes.size
        expert, self.objective.expert = self.objective.expert, None
        rows = []
        with self.averaged(), torch.no_grad():
            for index in range(rank, len(self.validation), size):
                example = self.validation[index].to(self.processes.device)
                kpts = None if example.states is None else list(range(len(example.states)))
                _, (terms,) = self.objective(Batch.of([example], [kpts]))
                part = example.graph.corrects.part
                h0 = gauge_mae(*_spins(example.label, example.overlap, part), example.present)
                rows.append(torch.stack([terms["loss"], terms["mae"], h0]).double().cpu())
        self.objective.expert = expert
        missing = -(-len(self.validation) // size) - len(rows)
        rows += [torch.full((3,), math.nan, dtype=torch.float64)] * missing
        loss, mae, h0 = torch.nanmean(self.processes.gathered(torch.stack(rows)), dim=0).tolist()
        return Validation(loss, mae, h0)

    # --- checkpoints -----------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Everything that is needed to go on from here."""
        objective = dict(self.objective.named_buffers(recurse=False))
        groups = {
            "weights": self.module.state_dict(),
            "average": self.average,
            "optimiser": optimiser_tensors(self.optimiser),
            "units": objective,
        }
        tensors = {f"{g}/{name}": x for g, some in groups.items() for name, x in some.items()}
        best = None if self.best is None else [self.best.loss, self.best.mae, self.best.h0_mae]
        values = {
            "step": self.step,
            "stage": self.stage,
            "best": best,
            "seconds": self.seconds,
            "nonfinite": self._bad,
        }
        return Checkpoint(tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in checkpoint.tensors.items():
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = value
        self.module.load_state_dict(groups["weights"])
        with torch.no_grad():
            for name, value in groups["average"].items():
                self.average[name].copy_(value)
            for name, value in groups["units"].items():
                self.objective.get_buffer(name).copy_(value)
        values = checkpoint.values
        if values["stage"] != self.stage:
            self._begin_stage(values["stage"])
        restore_optimiser(self.optimiser, groups.get("optimiser", {}))
        self.step, self.seconds = values["step"], values["seconds"]
        self._bad = values["nonfinite"]
        self.best = None if values["best"] is None else Validation(*values["best"])


def _weights(config: LossConfig) -> Weights:
    return Weights(config.real, config.low, config.high, config.coupling, config.trace)


def _spins(label: Tensor, overlap: Tensor, part: str) -> tuple[Tensor, Tensor]:
    if part == "collinear":
        label = torch.stack([label[0] + label[1], label[0] - label[1]])
    return label, overlap.expand_as(label)


__all__ = ["Loader", "Trainer", "Validation"]
