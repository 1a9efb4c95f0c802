"""What a run says of itself: CSV files, TensorBoard where it is wanted, a progress bar."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ase_nextham.files import write_atomically
from ase_nextham.training.measure import GAUGE_MAE, Measure, Validation

STEPS, VALIDATIONS = "steps.csv", "validation.csv"
"""Names of the files, one line for each step and for each validation."""


class Table:
    """A CSV file that grows line by line.

    Parameters
    ----------
    path
        Of the file. Lines of an earlier part of the run stay.
    columns
        Names of the columns; the first is the number of the step.
    steps
        Number of steps done: later lines, of a run that was cut off, are dropped.
    """

    def __init__(self, path: Path, columns: Sequence[str], steps: int):
        self.columns = tuple(columns)
        lines = [self.columns]
        if path.is_file():
            with path.open(newline="") as file:
                # the last line may have been cut off
                old = [line for line in list(csv.reader(file))[1:] if len(line) == len(columns)]
            lines += [line for line in old if int(line[0]) <= steps]
        write_atomically(path, "".join(",".join(line) + "\n" for line in lines))
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def add(self, values: Mapping[str, float]) -> None:
        """Write a line; columns without a value stay empty."""
        self._writer.writerow([_text(values.get(name)) for name in self.columns])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _text(value) -> str:
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)


def tensorboard_writer() -> type:
    """The class that writes TensorBoard's files.

    Raises
    ------
    ImportError
        If TensorBoard is not installed; it says how to install it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise ImportError(
            "[run] tensorboard = true needs TensorBoard: pip install tensorboard"
        ) from err
    return SummaryWriter


class Log:
    """All that is written while a run goes on.

    Parameters
    ----------
    folder
        Of the run.
    steps
        Done before.
    total
        Steps of the whole run.
    progress, tensorboard
        As in :class:`~ase_nextham.training.config.RunConfig`.
    measure
        What is measured of the kind of model that is trained.

    Raises
    ------
    ImportError
        If TensorBoard is wanted and not installed.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        total: int,
        progress: bool,
        tensorboard: bool,
        measure: Measure = GAUGE_MAE,
    ):
        self.measure = measure
        self._writer = self._bar = None
        if tensorboard:
            # steps from this one on, of a run that was cut off, are not shown
            self._writer = tensorboard_writer()(folder / "tensorboard", purge_step=steps + 1)
        self._steps = Table(folder / STEPS, measure.step_columns, steps)
        # before the first step nothing is done, not even a validation
        done = steps or -1
        self._validations = Table(folder / VALIDATIONS, measure.validation_columns, done)
        if progress:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=steps, unit="step", desc="training")

    def step(self, values: Mapping[str, float]) -> None:
        """A step was done."""
        self._steps.add(values)
        self._board("train", values)
        if self._bar is not None:
            self._bar.update()
            error = f"{values[self.measure.column]:.3g} {self.measure.unit}"
            self._bar.set_postfix(loss=f"{values['loss']:.3g}", error=error)

    def validation(
        self, found: Validation, *, step: int, epoch: float, seconds: float, best: bool
    ) -> None:
        """The model was validated, after so many steps, epochs and seconds."""
        place = {"step": step, "epoch": epoch, "seconds": seconds}
        values = place | found.columns() | {"best": int(best)}
        self._validations.add(values)
        self._board("validation", values)
        if self._bar is not None:
            self._bar.write(f"epoch {epoch:.1f}: validation {found}")

    def say(self, text: str) -> None:
        """A line for the reader."""
        if self._bar is not None:
            self._bar.write(text)

    def close(self) -> None:
        """Close everything."""
        self._steps.close()
        self._validations.close()
        for thing in (self._writer, self._bar):
            if thing is not None:
                thing.close()

    def _board(self, group: str, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(f"{group}/{name}", value, values["step"])


__all__ = ["STEPS", "VALIDATIONS", "Log", "Table", "tensorboard_writer"]
