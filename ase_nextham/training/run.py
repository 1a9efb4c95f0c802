"""A training run from beginning to end: what ``nextham train train.toml`` does.

The folder of a run holds::

    train.toml               the configuration with all defaults, versions as comments
    checkpoint.safetensors   the state from which the run goes on
    model/                   the best model by validation (ase_nextham.model.load)
    steps.csv validation.csv what happened
    learning_curve.png       a picture of it
    tensorboard/             if wanted
"""

from __future__ import annotations

import fnmatch
import logging
import platform
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ase.calculators.calculator import CalculatorSetupError

from ase_nextham.files import replacing, write_atomically
from ase_nextham.model import bundle
from ase_nextham.training import checkpoint as checkpoints
from ase_nextham.training.config import DataConfig, TrainConfig
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_split import random_split, read_split
from ase_nextham.training.distributed import Processes, processes
from ase_nextham.training.logs import Log, tensorboard_writer
from ase_nextham.training.loop import Trainer
from ase_nextham.training.measure import Validation
from ase_nextham.training.models import model_to_train, save_model

_log = logging.getLogger(__name__)

CHECKPOINT, CONFIG, MODEL = "checkpoint.safetensors", "train.toml", "model"
CURVE = "learning_curve.png"

_MAY_CHANGE = {
    "run": {"folder", "device", "checkpoint_minutes", "progress", "tensorboard"},
    "data": {"path", "memory"},
    "density": {"pseudo_dir", "orbital_dir"},
    "optimiser": {"micro_batch", "nonfinite"},
}
"""What may differ when a run goes on."""

_CURVE_SECONDS = 60.0  # at least, between two pictures of a run that goes on


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Parameters
    ----------
    folder
        Of the run.
    model
        Folder of the best model, or None if there is none yet.
    step, steps
        Steps done, and those of the whole run.
    best
        Validation of the best model, or None if there is no validation set.
    finished
        False if a signal ended it; it goes on when it is started again.
    """

    folder: Path
    model: Path | None
    step: int
    steps: int
    best: Validation | None
    finished: bool


def train(config: TrainConfig) -> TrainingResult:
    """Train a model, or go on training it.

    SIGTERM and SIGINT end it after the step that is under way, with a checkpoint. Started again
    with the same configuration, it goes on as if it had not been interrupted. Under ``torchrun``
    all processes call this. An ensemble is calibrated at the end on the validation set
    (:mod:`.density_calibration`), where there is one.

    Parameters
    ----------
    config
        Of the run.

    Raises
    ------
    ValueError
        If the configuration does not fit the data, or the folder holds a run that was configured
        otherwise.
    ImportError
        If TensorBoard's files are wanted and TensorBoard is not installed.
    OSError
        If the disk is full; the last checkpoint is then as it was.
    FloatingPointError
        If too many steps in a row gave numbers that are not finite.
    """
    with processes(config.run.device) as group, _precision(config):
        training, validation = chosen_samples(config.data, config.run.seed)
        return train_samples(config, training, validation, group)


def train_samples(
    config: TrainConfig, training: Dataset, validation: Dataset, group: Processes
) -> TrainingResult:
    """:func:`train` on samples that are chosen already.

    Parameters
    ----------
    training, validation
        Data sets; that for validation may be empty.
    group
        Processes that train together.
    """
    if config.run.tensorboard:
        tensorboard_writer()  # that it is missing is told before any work
    folder = Path(config.run.folder)
    last = folder / CHECKPOINT
    saved = checkpoints.read(last) if last.is_file() else None
    if saved is not None:
        _check_same_run(last, saved.values["config"], config)
    model = model_to_train(config, training)
    trainer = Trainer(config, model, training, validation, group)
    if saved is None:
        trainer.begin(scales=config.model.start is None)
    else:
        trainer.restore(saved)
    group.wait()  # all have read before anyone writes
    if group.first:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, config.to_toml(_versions(trainer)))
    run = _Run(trainer, folder)
    with _signals() as ended:
        result = run.to_the_end(ended)
    if group.first and result.finished and config.model.head == "density" and len(validation):
        _calibrate(config, result.model, validation)
    return result


def _calibrate(config: TrainConfig, model: Path, validation: Dataset) -> None:
    """Write into the model what its spread says about errors, unless it is there already."""
    from ase_nextham.training.density_calibration import calibrate_model

    info = bundle.read_info(model)
    if info.hyperparameters.get("members", 1) < 2 or "calibration" in info.training:
        return
    try:
        found = calibrate_model(
            model,
            validation,
            pseudo_dir=config.density.pseudo_dir,
            orbital_dir=config.density.orbital_dir,
            progress=config.run.progress,
        )
    except (CalculatorSetupError, ValueError) as err:  # the model is there, and good without it
        _log.warning("%s was not calibrated: %s", model, err)
    else:
        _log.info("%s: %s", model, found)


def chosen_samples(config: DataConfig, seed: int) -> tuple[Dataset, Dataset]:
    """Samples for training and for validation.

    Raises
    ------
    FileNotFoundError, ValueError
        If the data set cannot be read, a pattern fits no sample, or a sample would be in both.
    """
    dataset = Dataset(config.path)
    if config.split is not None:
        if config.train or config.validation:
            raise ValueError("[data] has a split and names for train or validation; keep one")
        split = read_split(config.split, dataset)
        if not split.get("train"):
            raise ValueError(f"{config.split}: the split has no part 'train'")
        return dataset.subset(split["train"]), dataset.subset(split.get("validation", ()))
    if not config.train and not config.validation:
        split = random_split(dataset, {"train": 0.9, "validation": 0.1}, seed=seed)
        return dataset.subset(split["train"]), dataset.subset(split["validation"])
    validation = _matching(dataset, config.validation)
    rest = [k for k in range(len(dataset)) if k not in validation]
    training = _matching(dataset, config.train) if config.train else rest
    both = sorted(set(training) & set(validation))
    if both:
        raise ValueError(
            f"{config.path}: {dataset.names[both[0]]} would be in training and in validation"
        )
    if not training:
        raise ValueError(f"{config.path}: no sample is left for training")
    return dataset.subset(training), dataset.subset(validation)


def _matching(dataset: Dataset, patterns: Sequence[str]) -> list[int]:
    found: set[int] = set()
    for pattern in patterns:
        some = {k for k, name in enumerate(dataset.names) if fnmatch.fnmatchcase(name, pattern)}
        if not some:
            raise ValueError(
                f"{dataset.path}: no sample is named like {pattern!r}; there are "
                f"{', '.join(dataset.names[:4])}, ..."
            )
        found |= some
    return sorted(found)


class _Run:
    """The loop around the steps."""

    def __init__(self, trainer: Trainer, folder: Path):
        self.trainer, self.folder, self.group = trainer, folder, trainer.processes
        run = trainer.config.run
        self.log = None
        if self.group.first:
            done, measure = trainer.step, trainer.task.measure
            self.log = Log(folder, done, trainer.steps, run.progress, run.tensorboard, measure)
        self._checkpoint_due = time.monotonic() + 60 * run.checkpoint_minutes
        self._curve_due = time.monotonic() + _CURVE_SECONDS

    def to_the_end(self, ended: threading.Event) -> TrainingResult:
        trainer, begun = self.trainer, self.trainer.step
        try:
            finished = True
            if trainer.step == 0 and trainer.task.fitted:
                self._validate()
            while trainer.step < trainer.steps:
                values = trainer.advance()
                if self.log:
                    self.log.step(values)
                if self._validation_is_due():
                    self._validate()
                    if time.monotonic() > self._curve_due:
                        self._draw_curve()
                if self.group.any(ended.is_set()):
                    finished = trainer.step == trainer.steps
                    break
                if time.monotonic() > self._checkpoint_due:
                    self._write_checkpoint()
            self._write_checkpoint()
            if trainer.step > begun:
                self._draw_curve()
        finally:
            trainer.loader.close()
            if self.log:
                self.log.close()
        model = self.folder / MODEL
        return TrainingResult(
            folder=self.folder,
            model=model if model.exists() else None,
            step=trainer.step,
            steps=trainer.steps,
            best=trainer.best,
            finished=finished,
        )

    def _validation_is_due(self) -> bool:
        trainer = self.trainer
        every = trainer.sampler.steps(trainer.config.run.validate_epochs)
        return trainer.step % every == 0 or trainer.step == trainer.steps

    def _validate(self) -> None:
        trainer = self.trainer
        found = trainer.validate()
        best = found is None or trainer.best is None or found.error < trainer.best.error
        if best:
            trainer.best = found
        if not self.log:
            return
        if best:
            with trainer.averaged():
                info = replace(trainer.model.info, training=self._described(found))
                save_model(self.folder / MODEL, info, trainer.module)
        if found is not None:
            self.log.validation(
                found,
                step=trainer.step,
                epoch=trainer.epoch,
                seconds=round(trainer.seconds, 3),
                best=best,
            )

    def _described(self, validation: Validation | None) -> dict[str, Any]:
        trainer = self.trainer
        described = dict(trainer.model.info.training)
        described.pop("calibration", None)  # of the model that it started from
        described |= {
            "samples": len(trainer.examples),
            "epochs": round(trainer.epoch, 3),
            "seed": trainer.config.run.seed,
            "config": trainer.config.to_dict(),
        }
        if validation is not None:
            described["validation"] = {
                "samples": len(trainer.validation),
                **validation.described(),
            }
        return described

    def _write_checkpoint(self) -> None:
        run = self.trainer.config.run
        if self.group.first:
            state = self.trainer.checkpoint()
            values = {**state.values, "config": self.trainer.config.to_dict()}
            checkpoints.write(self.folder / CHECKPOINT, replace(state, values=values))
        self._checkpoint_due = time.monotonic() + 60 * run.checkpoint_minutes

    def _draw_curve(self) -> None:
        """A picture of the run so far; of a long run it takes a fiftieth of the time at most."""
        if not self.group.first:
            return
        from ase_nextham.training.figures import learning_curve

        begin = time.monotonic()
        with replacing(self.folder / CURVE) as temporary:
            learning_curve(self.folder).savefig(temporary)
        end = time.monotonic()
        self._curve_due = end + max(_CURVE_SECONDS, 50 * (end - begin))


def _check_same_run(path: Path, saved: dict, config: TrainConfig) -> None:
    try:  # what was not there to choose when the run was begun has its default
        saved = TrainConfig.from_dict(saved).to_dict()
    except (TypeError, ValueError) as err:
        raise ValueError(f"{path}: the configuration of this run cannot be read: {err}") from err
    now = config.to_dict()
    for table in sorted(saved.keys() | now.keys()):
        before, after = saved.get(table, {}), now.get(table, {})
        for key in sorted((before.keys() | after.keys()) - _MAY_CHANGE.get(table, set())):
            if before.get(key) != after.get(key):
                raise ValueError(
                    f"{path}: this run was begun with [{table}] {key} = {before.get(key)!r}, now "
                    f"it is {after.get(key)!r}; put it back, or use another [run] folder"
                )


@contextmanager
def _precision(config: TrainConfig) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if config.optimiser.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of ending the process."""
    ended = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield ended
        return
    before = {s: signal.signal(s, lambda *_: ended.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _versions(trainer: Trainer) -> dict[str, str]:
    names = ("ase_nextham", "torch", "numpy", "ase")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    group = trainer.processes
    found["processes"] = f"{group.size} on {group.device.type}"
    found["parameters"] = str(sum(p.numel() for p in trainer.module.parameters()))
    return found


__all__ = ["TrainingResult", "chosen_samples", "train", "train_samples"]
