"""Labels of the density head on disk, beside the samples: made once, read in training.

``labels/FINGERPRINT/NAME.npz`` in the folder of a data set, one file for each sample. The
fingerprint is of all that labels depend on beside the sample; what the sample's file was when its
label was made, the label's file says. Interrupted, the work goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy import ndarray

from ase_nextham.expansion import Expansion
from ase_nextham.expansion.fit import RIDGE
from ase_nextham.files import replacing
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.potential_head.descriptor import VERSION as DESCRIPTOR_VERSION
from ase_nextham.potential_head.descriptor import Descriptor
from ase_nextham.tasks import results
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.density_labels import DensityLabel, label

FORMAT_VERSION = 1  # rises, too, when fits come to give other coefficients

LABELS = "labels"
"""Folder in that of a data set."""

# what numpy and zipfile raise for files that make no sense
_DAMAGE = (
    *(AttributeError, BadZipFile, EOFError, IndexError, KeyError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)


class DensityLabels(Sequence):
    """The labels of the samples of a data set, in their order; read when asked for, not kept.

    It can be pickled and sent to other processes.

    Parameters
    ----------
    folder
        That holds the files.
    names
        Of the samples.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder = Path(folder)
        self.names = tuple(names)

    def __repr__(self):
        return f"DensityLabels({str(self.folder)!r}, {len(self)} samples)"

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index: int) -> DensityLabel:
        path = _path(self.folder, self.names[index])
        try:
            return _read(path)[0]
        except FileNotFoundError:
            raise
        except _DAMAGE as error:
            raise ValueError(
                f"{path}: damaged ({error!r}); remove it and make the labels again"
            ) from error


def labels(
    dataset: Dataset,
    expansion: Expansion,
    *,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
    ridge: float = RIDGE,
    threads: int | None = None,
    progress: bool = False,
) -> DensityLabels:
    """The labels of all samples, made where they are not there or are of another sample.

    Parameters
    ----------
    expansion
        Of a density; :func:`~ase_nextham.training.density_labels.expansion_of` gives one.
    pseudo_dir, orbital_dir
        As of :class:`~ase_nextham.h0.native.engine.NativeH0`. They are not needed for labels that
        are there.
    ridge
        As of :func:`ase_nextham.expansion.fit`.
    threads
        To work with; by default as many as there are processors.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        If some could not be made, naming their samples; the others are kept.

    Warns
    -----
    UserWarning
        For a file that is damaged, before it is made again.
    """
    folder = dataset.path / LABELS / fingerprint(expansion, ridge)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for index, entry in enumerate(dataset.entries):
        if not _is_there(_path(folder, entry.name), dataset.file(index)):
            engine = NativeH0(
                pseudo_dir,
                orbital_dir,
                nspin=4 if entry.spin == "spinor" else 1,
                position=False,
                threads=threads,
            )
            tasks[entry.name] = (dataset, index, expansion, engine, ridge, folder)
    failed = {}
    for result in results(_make, tasks, 1, progress and bool(tasks)):
        for remark in result.remarks:
            warnings.warn(f"{result.name}: {remark}", stacklevel=2)
        if result.reason is not None:
            failed[result.name] = result.reason
    if failed:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise ValueError(
            f"{dataset.path}: {len(failed)} of {len(tasks)} labels could not be made, the others "
            f"are kept:\n{reasons}"
        )
    return DensityLabels(folder, dataset.names)


def fingerprint(expansion: Expansion, ridge: float = RIDGE) -> str:
    """sha256 of what all labels of a data set depend on."""
    content = (FORMAT_VERSION, DESCRIPTOR_VERSION, expansion.fingerprint, float(ridge))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class Summary:
    """How well the labels of one expansion fit.

    Parameters
    ----------
    folder
        That holds them.
    fitted
        What they were fitted to, one of :data:`~ase_nextham.training.density_labels.FITTED`.
    residuals
        Of each sample that has one, by its name.
    """

    folder: Path
    fitted: str
    residuals: Mapping[str, float]


def summaries(dataset: Dataset) -> list[Summary]:
    """The labels that are there, by expansion and by what they were fitted to."""
    found: dict[tuple[Path, str], dict[str, float]] = {}
    for folder in sorted((dataset.path / LABELS).glob("*")):
        for index, name in enumerate(dataset.names):
            path = _path(folder, name)
            try:
                with open(path, "rb") as file:
                    arrays = np.load(file, allow_pickle=False)
                    plain = json.loads(str(arrays["plain"]))
                if _same_file(plain["sample"], dataset.file(index)):
                    key = folder, plain["fitted"]
                    found.setdefault(key, {})[name] = float(plain["residual"])
            except _DAMAGE:  # it will be made again
                continue
    return [Summary(*key, residuals) for key, residuals in found.items()]


def _make(
    dataset: Dataset,
    index: int,
    expansion: Expansion,
    engine: NativeH0,
    ridge: float,
    folder: Path,
) -> None:
    state = _state(dataset.file(index))
    made = label(dataset, index, expansion, engine, ridge=ridge)
    _write(_path(folder, made.name), made, state)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def _write(path: Path, made: DensityLabel, state: Mapping) -> None:
    plain = {name: getattr(made, name) for name in ("name", "fitted", "norm", "left", "residual")}
    plain |= {"symbols": made.descriptor.symbols, "sample": state}
    with replacing(path) as temporary:
        np.savez(
            temporary,
            plain=np.array(json.dumps(plain)),
            coefficients=made.coefficients,
            # symmetric; in single precision it would not be positive
            gram=made.gram[np.triu_indices(len(made.gram))],
            charges=made.charges,
            induced=made.descriptor.induced,
            field=made.descriptor.field,
            elements=made.descriptor.elements,
        )


def _read(path: Path) -> tuple[DensityLabel, dict]:
    """A label, and what the file of its sample was; raises some of :data:`_DAMAGE`."""
    with open(path, "rb") as file:  # numpy leaves it open if it is damaged
        arrays = dict(np.load(file, allow_pickle=False))
    plain = json.loads(str(arrays["plain"]))
    coefficients = arrays["coefficients"]
    n = len(coefficients)
    for name in ("coefficients", "charges", "induced", "field"):
        if arrays[name].shape != (n,) or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} are not {n} numbers")
    descriptor = Descriptor(
        tuple(plain["symbols"]), arrays["induced"], arrays["field"], arrays["elements"]
    )
    made = DensityLabel(
        name=plain["name"],
        fitted=plain["fitted"],
        coefficients=coefficients,
        gram=_symmetric(arrays["gram"], n),
        norm=float(plain["norm"]),
        left=float(plain["left"]),
        residual=float(plain["residual"]),
        charges=arrays["charges"],
        descriptor=descriptor,
    )
    return made, plain["sample"]


def _symmetric(upper: ndarray, n: int) -> ndarray:
    result = np.empty((n, n))
    rows, columns = np.triu_indices(n)
    result[rows, columns] = upper
    result[columns, rows] = upper
    return result


def _is_there(path: Path, sample: Path) -> bool:
    """Whether there is a label of this sample as it is now."""
    if not path.is_file():
        return False
    try:
        _, state = _read(path)
        return _same_file(state, sample)
    except _DAMAGE as error:
        warnings.warn(f"{path}: damaged ({error!r}); it is made again", stacklevel=3)
        return False


def _state(sample: Path) -> dict:
    """By what the file of a sample is known to be the same."""
    status = sample.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": _sha256(sample),
    }


def _same_file(state: Mapping, sample: Path) -> bool:
    status = sample.stat()
    if status.st_size != state["size"]:
        return False
    # a copy has another time
    return status.st_mtime_ns == state["mtime_ns"] or _sha256(sample) == state["sha256"]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["LABELS", "DensityLabels", "Summary", "fingerprint", "labels", "summaries"]
