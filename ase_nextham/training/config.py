"""What a training run is told: ``train.toml`` as a dataclass.

Each table of the file is one of the dataclasses here, and each key one of their fields::

    [data]
    path = "mini"
    train = ["*_[0-2]"]
    validation = ["*_3"]

    [optimiser]
    epochs = 200

Everything else has a default. Keys that are not known are refused, with the nearest one that is.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ase_nextham.files import read_text

_HEADS = ("pairs", "density")
_NETWORKS = ("linear", "two-layer", "transformer")
_FOR_ALL_HEADS = {"head", "start", "xc", "citation"}
_NORMS = ("squared", "absolute")
_TOGETHER = ("together", "one by one")
_ALGORITHMS = ("adam", "adamw")
_PRECISIONS = ("float32", "float64", "tf32", "bfloat16")


@dataclass(frozen=True)
class DataConfig:
    """What is learned.

    Parameters
    ----------
    path
        Folder of a data set (``nextham dataset build``).
    split
        A split on disk, whose parts ``train`` and ``validation`` are taken. Without it:
    train, validation
        Names of samples, in which ``*``, ``?`` and ``[...]`` are wildcards. Without ``train``:
        all that are not for validation. Without both: a tenth of the structures, drawn with the
        seed of the run, for validation.
    memory
        GiB for samples that are kept as tensors; others are read again each time.
    """

    path: str
    split: str | None = None
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    memory: float = 4.0


@dataclass(frozen=True)
class ModelConfig:
    """What learns.

    Parameters
    ----------
    head
        What is predicted: ``"pairs"``, the elements of dH for each pair of atoms, or
        ``"density"``, the change of the density, from which dH is computed. The latter is
        described by [density]; of the keys here and in [loss], only ``start``, ``xc`` and
        ``citation`` are for it.
    start
        A model to start from, whose weights are trained on, such as one of published weights
        (``nextham import-checkpoint``). All other keys but ``citation`` are then its own, and
        those of [density] that say what a model is.
    windows
        Ends of the distance windows in Angstrom, one expert for each; the last is the cutoff.
    target
        ``"correction"`` (dH) or ``"hamiltonian"``.
    features, layers, heads, gaussians, invariants, tracegrad, inputs, reads, corrects
        Of :class:`ase_nextham.model.network.Architecture`.
    xc, citation
        For the description of the model.
    """

    head: str = "pairs"
    start: str | None = None
    windows: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0)
    target: str = "correction"
    features: str = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
    layers: int = 4
    heads: int = 4
    gaussians: int = 64
    invariants: int = 256
    tracegrad: bool = True
    inputs: str = "h0"
    reads: str = "scalar"
    corrects: str = "scalar"
    xc: str = "PBE"
    citation: str = ""


@dataclass(frozen=True)
class DensityConfig:
    """What learns, if it is the change of the density.

    Parameters
    ----------
    network, hidden, cutoff, layers, first_density
        Of :class:`ase_nextham.model.density_network.DensityArchitecture`; ``cutoff`` and ``layers``
        are those of the transformer.
    members
        Networks whose mean is predicted, and whose spread tells how sure that is.
    folds
        Whether each member leaves out another part of the compositions in training.
    dh, bands
        Weights of the errors of dH and of bands, relative to those of H(0), beside that of the
        density: for the last stretch, from a model that was trained without them (``start``),
        because every step then takes sums over the grid.
    counts, exponents
        Gaussians for l = 0, 1, ..., and their smallest and largest exponent in 1/Bohr^2.
    ridge
        Of the linear map with which all of them start, which is fitted in closed form.
    pseudo_dir, orbital_dir
        Folders of the pseudopotentials and orbitals of the data set; by default those that are
        configured (see :class:`ase_nextham.h0.native.engine.NativeH0`).
    """

    network: str = "two-layer"
    hidden: str = "32x0e+16x1o+12x2e+10x3o+8x4e"
    members: int = 4
    folds: bool = False
    dh: float = 0.0
    bands: float = 0.0
    counts: tuple[int, ...] = (7, 6, 5, 6, 4)
    exponents: tuple[float, ...] = (0.15, 8.0)
    ridge: float = 1e-3
    cutoff: float = 5.0
    layers: int = 1
    first_density: bool = True
    pseudo_dir: str | None = None
    orbital_dir: str | None = None


@dataclass(frozen=True)
class LossConfig:
    """What is minimised for pairs of atoms; see :mod:`ase_nextham.training.loss`.

    Parameters
    ----------
    norm
        ``"squared"`` as in the paper, or ``"absolute"``.
    real, low, high, coupling, trace
        lambda_R, lambda_P, lambda_Q, lambda_PQ, lambda_C of the paper.
    kpts
        Number of k-points of each structure in a step, drawn from those of its sample.
    """

    norm: str = "squared"
    real: float = 0.99955
    low: float = 2e-4
    high: float = 1e-4
    coupling: float = 1.5e-4
    trace: float = 0.2
    kpts: int = 1


@dataclass(frozen=True)
class OptimiserConfig:
    """How it is minimised.

    Parameters
    ----------
    algorithm
        ``"adam"`` or ``"adamw"``.
    learning_rate, lowest, first
        Largest learning rate, that at the end, and that of the first step.
    epochs, warm_up
        Length of the training, and of the linear rise of the learning rate at its beginning. A
        cosine follows.
    batch
        Structures in a step, over all processes.
    micro_batch
        Structures that a process works on at once; gradients of several are summed until ``batch``
        is reached. 0: all of its share.
    clip
        Largest norm of the gradient; the loss of H(0) is about 1. 0: no limit.
    weight_decay
        Of AdamW.
    average
        Decay of the running average of the weights in a step, which is what is validated and kept;
        0: no average.
    experts
        ``"together"``, with the energy zero that suits all of them best, or ``"one by one"``, for
        ``epochs`` each, which takes less memory.
    precision
        ``"float32"``; ``"float64"``; ``"tf32"``, float32 with products in TF32; ``"bfloat16"``,
        mixed: networks in bfloat16, loss and weights in float32.
    nonfinite
        So many steps in a row may give numbers that are not finite and are left out.
    """

    algorithm: str = "adam"
    learning_rate: float = 5e-4
    lowest: float = 1e-5
    first: float = 1e-6
    epochs: float = 100.0
    warm_up: float = 5.0
    batch: int = 1
    micro_batch: int = 0
    clip: float = 10.0
    weight_decay: float = 0.0
    average: float = 0.999
    experts: str = "together"
    precision: str = "float32"
    nonfinite: int = 10


@dataclass(frozen=True)
class RunConfig:
    """Where, and what is written.

    Parameters
    ----------
    folder
        For everything that is written. If it holds a checkpoint, the run goes on from there.
    seed
        Of initial weights, the order of samples and the choice of k-points.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...; ``"auto"``: a graphics processor where there is
        one.
    checkpoint_minutes
        Between checkpoints.
    validate_epochs
        Between validations.
    progress
        Show progress bars.
    tensorboard
        Write TensorBoard's files, too.
    """

    folder: str = "training"
    seed: int = 1
    device: str = "auto"
    checkpoint_minutes: float = 10.0
    validate_epochs: float = 1.0
    progress: bool = True
    tensorboard: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    density: DensityConfig = field(default_factory=DensityConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self):
        for table, key, words in (
            ("model", "head", _HEADS),
            ("density", "network", _NETWORKS),
            ("loss", "norm", _NORMS),
            ("optimiser", "algorithm", _ALGORITHMS),
            ("optimiser", "experts", _TOGETHER),
            ("optimiser", "precision", _PRECISIONS),
        ):
            value = getattr(getattr(self, table), key)
            if value not in words:
                raise ValueError(f"[{table}] {key} is one of {', '.join(words)}, not {value!r}")
        positive = {
            "data": ("memory",),
            "density": ("members", "cutoff", "layers"),
            "loss": ("kpts",),
            "optimiser": ("learning_rate", "epochs", "batch"),
            "run": ("checkpoint_minutes", "validate_epochs"),
        }
        not_negative = {
            "density": ("ridge", "dh", "bands"),
            "loss": ("real", "low", "high", "coupling", "trace"),
            "optimiser": ("lowest", "first", "warm_up", "clip", "weight_decay", "nonfinite"),
            "run": ("seed",),
        }
        for names, lowest, what in ((positive, 0, "above 0"), (not_negative, None, "at least 0")):
            for table, keys in names.items():
                for key in keys:
                    value = getattr(getattr(self, table), key)
                    if value < 0 or value == lowest:
                        raise ValueError(f"[{table}] {key} must be {what}, not {value}")
        optimiser = self.optimiser
        if not 0 <= optimiser.average < 1:
            raise ValueError(f"[optimiser] average is from 0 to below 1, not {optimiser.average}")
        if not 0 <= self.loss.trace < 1:
            raise ValueError(f"[loss] trace is from 0 to below 1, not {self.loss.trace}")
        if optimiser.micro_batch < 0 or optimiser.batch % (optimiser.micro_batch or 1):
            raise ValueError(
                f"[optimiser] batch = {optimiser.batch} is not a multiple of micro_batch = "
                f"{optimiser.micro_batch}"
            )
        self._check_head()

    def _check_head(self) -> None:
        head, exponents = self.model.head, self.density.exponents
        for table, keys in self._unused().items():
            for f in fields(getattr(self, table)):
                if f.name in keys and getattr(getattr(self, table), f.name) != f.default:
                    other = "density" if head == "pairs" else "pairs"
                    raise ValueError(
                        f"[{table}] {f.name} is for models with [model] head = {other!r}, but "
                        f"this one is {head!r}; leave it out"
                    )
        if len(exponents) != 2 or not 0 < exponents[0] < exponents[1]:
            raise ValueError(
                f"[density] exponents are a smallest and a largest one, not {list(exponents)}"
            )
        counts = self.density.counts
        if not counts or min(counts) < 1 or max(counts) > counts[0]:
            raise ValueError(
                f"[density] counts = {list(counts)} must be at least 1, and none above the first"
            )
        if head == "density" and self.optimiser.precision == "bfloat16":
            raise ValueError(
                "[optimiser] precision = 'bfloat16' is not for head = 'density'; use 'float32'"
            )

    def _unused(self) -> dict[str, set[str]]:
        """Keys of each table that mean nothing to the head."""
        every = {t.name: {f.name for f in fields(getattr(self, t.name))} for t in fields(self)}
        if self.model.head == "pairs":
            return {"density": every["density"]}
        return {"model": every["model"] - _FOR_ALL_HEADS, "loss": every["loss"]}

    @classmethod
    def read(cls, path: str | os.PathLike) -> TrainConfig:
        """Read ``train.toml``; paths in it are relative to its folder.

        Raises
        ------
        FileNotFoundError
            If it does not exist.
        ValueError
            If it is not TOML, lacks a key, or a key is unknown or of another type; it names the
            file, the key, and the nearest key that is known.
        """
        path = Path(path)
        try:
            content = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as err:
            raise ValueError(f"{path}: not TOML: {err}") from err
        try:
            return cls.from_dict(content).relative_to(path.parent)
        except (TypeError, ValueError) as err:
            raise ValueError(f"{path}: {err}") from err

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainConfig:
        """From tables of plain values.

        Raises
        ------
        TypeError, ValueError
            As :meth:`read`.
        """
        return _built(cls, content, "")

    def relative_to(self, folder: Path) -> TrainConfig:
        """The same with paths taken from a folder."""

        def path(given: str | None) -> str | None:
            return None if given is None else str(folder / given)

        data, model, density, run = self.data, self.model, self.density, self.run
        return replace(
            self,
            data=replace(data, path=path(data.path), split=path(data.split)),
            model=replace(model, start=path(model.start)),
            density=replace(
                density,
                pseudo_dir=path(density.pseudo_dir),
                orbital_dir=path(density.orbital_dir),
            ),
            run=replace(run, folder=path(run.folder)),
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Tables of plain values, defaults included; without None, and what the head ignores."""
        tables, unused = {}, self._unused()
        for table in fields(self):
            values = getattr(self, table.name)
            tables[table.name] = {
                f.name: list(value) if isinstance(value, tuple) else value
                for f in fields(values)
                if (value := getattr(values, f.name)) is not None
                and f.name not in unused.get(table.name, ())
            }
        return {name: values for name, values in tables.items() if values}

    def to_toml(self, remarks: Mapping[str, str] | None = None) -> str:
        """The whole as ``train.toml``, with remarks as comments before it."""
        lines = [f"# {name}: {text}" for name, text in (remarks or {}).items()]
        for table, values in self.to_dict().items():
            lines += ["", f"[{table}]", *(f"{k} = {_toml(v)}" for k, v in values.items())]
        return "\n".join(lines).lstrip("\n") + "\n"


def _built(cls: type, content: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table; ``where`` is the name of the table."""
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    what = "key" if where else "table"
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            place = f" in [{where}]" if where else ""
            raise ValueError(f"unknown {what} {name!r}{place}; {hint}known: {', '.join(known)}")
    values = {}
    for name, f in known.items():
        if name in content:
            place = f"[{where}] {name}" if where else f"[{name}]"
            values[name] = _checked(content[name], hints[name], place)
        elif f.default is MISSING and f.default_factory is MISSING:
            place = f"[{where}] {name}" if where else f"the table [{name}]"
            raise ValueError(f"{place} is missing")
    return cls(**values)


def _checked(value: Any, kind: Any, where: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"{where} must be a table, not {_shown(value)}")
        return _built(kind, value, where.strip("[]"))
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            raise TypeError(f"{where} must be a list, not {_shown(value)}")
        return tuple(_checked(v, inner, f"{where}[{k}]") for k, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        words = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}
        raise TypeError(f"{where} must be {words[kind]}, not {_shown(value)}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, not {value}")
    return value


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else f"\\{c}" if c in '\\"' else c
            for c in value
        )
        return f'"{escaped}"'
    return repr(value)


__all__ = [
    "DataConfig",
    "DensityConfig",
    "LossConfig",
    "ModelConfig",
    "OptimiserConfig",
    "RunConfig",
    "TrainConfig",
]
