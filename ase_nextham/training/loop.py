"""The loop: step after step, checkpoints between them, and the best model by validation.

A :class:`Trainer` holds what changes. Everything that it needs to go on where it stopped is in
:meth:`Trainer.checkpoint`; the rest follows from the number of the step (:mod:`.schedule`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ase_nextham.model import Model
from ase_nextham.training.checkpoint import Checkpoint, optimiser_tensors, restore_optimiser
from ase_nextham.training.config import TrainConfig
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.distributed import Processes
from ase_nextham.training.example import Examples
from ase_nextham.training.measure import Validation
from ase_nextham.training.schedule import LearningRate, Sampler
from ase_nextham.training.task import Draw, task_of


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
    batch_of
        Function of examples and draws that puts them together: :meth:`Task.batch`.
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
        batch_of: Callable[[Sequence, Sequence[Draw]], Any],
        device: torch.device,
    ):
        self.examples, self.sampler, self.share = examples, sampler, share
        self.micro_batch, self.batch_of, self.device = micro_batch, batch_of, device
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: dict[int, Future] = {}

    def batches(self, step: int) -> list:
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

    def _make(self, step: int) -> list:
        own = [int(index) for index in self.sampler.samples(step)[self.share]]
        examples = [self.examples[index].to(self.device) for index in own]
        draws = [partial(self.sampler.kpts, step, index) for index in own]
        size = self.micro_batch or len(own)
        return [
            self.batch_of(examples[k : k + size], draws[k : k + size])
            for k in range(0, len(own), size)
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
        Validation with the smallest error so far, or None.
    seconds
        Time that the run has taken.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        training: Dataset,
        validation: Dataset,
        processes: Processes,
    ):
        self.config, self.model, self.processes = config, model, processes
        optimiser = config.optimiser
        self.dtype = torch.float64 if optimiser.precision == "float64" else torch.float32
        module = model.to(processes.device, self.dtype).module.train()
        self.module = module
        self.task = task_of(config, model, self.dtype, processes)
        self.objective = self.task.objective.to(processes.device)
        self.examples = self.task.examples(training, learned=True)
        self.validation = self.task.examples(validation, learned=False)
        self.sampler = Sampler(len(training), optimiser.batch, config.run.seed)
        self.loader = Loader(
            self.examples,
            self.sampler,
            processes.share(optimiser.batch),
            optimiser.micro_batch,
            self.task.batch,
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
        self.average = self._weights()
        self._begin_stage(0)

    def begin(self, *, scales: bool) -> None:
        """Take from the training set what is not learned in steps; before the first one.

        Parameters
        ----------
        scales
            Whether the scales of the model itself are taken from it, too.
        """
        self.task.begin(self.examples, self.processes.device, scales=scales)
        self.average = self._weights()

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

    @property
    def epoch(self) -> float:
        """How often every sample was seen."""
        return self.step * self.sampler.batch / self.sampler.size

    # --- steps -----------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """Do one step.

        Returns
        -------
        dict
            The columns of ``steps.csv``.

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
        measure = self.task.measure
        return {
            "step": self.step,
            "epoch": self.epoch,
            "seconds": round(self.seconds, 3),
            "learning_rate": rate,
            "gradient": norm,
            measure.column: measure.factor * values.pop(measure.term),
            **values,
        }

    def _gradients(self, batches: Sequence) -> list[dict[str, Tensor]]:
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
        measure = self.task.measure
        wanted = ("loss", *measure.terms, measure.term)
        names = [name for name in wanted if name in terms[0]]
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

    def _report_nonfinite(self, batches: Sequence, terms) -> None:
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
        own = self._weights()
        try:
            self._set_weights(self.average)
            yield
        finally:
            self._set_weights(own)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(weights[name])

    def validate(self) -> Validation | None:
        """Errors of the averaged weights on the validation set; None if there is none."""
        if not len(self.validation):
            return None
        rank, size, measure = self.processes.rank, self.processes.size, self.task.measure
        expert, self.objective.expert = self.objective.expert, None
        rows = []
        with self.averaged(), torch.no_grad():
            for index in range(rank, len(self.validation), size):
                example = self.validation[index].to(self.processes.device)
                _, (terms,) = self.objective(self.task.batch([example], None))
                found = [terms["loss"], terms[measure.term], self.task.reference(example)]
                rows.append(torch.stack(found).double().cpu())
        self.objective.expert = expert
        missing = -(-len(self.validation) // size) - len(rows)
        rows += [torch.full((3,), math.nan, dtype=torch.float64)] * missing
        means = torch.nanmean(self.processes.gathered(torch.stack(rows)), dim=0)
        return Validation(*means.tolist(), measure)

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
        best = self.best
        values = {
            "step": self.step,
            "stage": self.stage,
            "best": None if best is None else [best.loss, best.error, best.reference],
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
            for name, value in groups.get("units", {}).items():
                self.objective.get_buffer(name).copy_(value)
        values = checkpoint.values
        if values["stage"] != self.stage:
            self._begin_stage(values["stage"])
        restore_optimiser(self.optimiser, groups.get("optimiser", {}))
        self.step, self.seconds = values["step"], values["seconds"]
        self._bad = values["nonfinite"]
        best = values["best"]
        self.best = None if best is None else Validation(*best, self.task.measure)


__all__ = ["Loader", "Trainer"]
