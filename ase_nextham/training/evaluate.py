"""How good a model is on the samples of a data set.

Two Hamiltonians are compared with the self-consistent one: H(0), which needs no model and is what a
model must be better than, and H(0) + dH. Errors of matrix elements are those of
:mod:`~ase_nextham.training.metrics`, errors of bands those of
:mod:`~ase_nextham.training.metrics_bands`; :mod:`~ase_nextham.training.report` prints them,
:mod:`~ase_nextham.training.figures` draws them.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ase_nextham import bands
from ase_nextham.comparison import KPOINTS
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.prediction import load_model
from ase_nextham.training.dataset import Dataset, Sample
from ase_nextham.training.dataset_split import read_split
from ase_nextham.training.metrics import matrix_errors, merged_matrix_errors, parity
from ase_nextham.training.metrics_bands import (
    band_errors,
    band_path,
    merged_band_errors,
    merged_mesh_errors,
    mesh_errors,
    reference,
)
from ase_nextham.training.report import H0, PREDICTED, Evaluated, Report, Structure

if TYPE_CHECKING:
    from ase_nextham.model import Model
    from ase_nextham.potential_head.predict import DensityModel


def evaluate(
    model: Model | DensityModel | str | os.PathLike | None,
    dataset: Dataset | str | os.PathLike,
    *,
    names: Iterable[str] | None = None,
    split: str | os.PathLike | None = None,
    part: str = "validation",
    kpts: Sequence[int] | Mapping | float = KPOINTS,
    npoints: int = 60,
    progress: bool = False,
    **options,
) -> Report:
    """Compare H(0) and what a model makes of it with the self-consistent Hamiltonian.

    Parameters
    ----------
    model
        A model or where it is; None for H(0) alone.
    dataset
        A data set or where it is.
    names
        Samples to take, in which ``*``, ``?`` and ``[...]`` are wildcards; by default all.
    split, part
        A file of :func:`~ase_nextham.training.dataset_split.write_split`, and the part of it to
        take instead.
    kpts
        Mesh for the bands as in :func:`ase_nextham.bands.kmesh`; a number is a density in points
        per 1/Angstrom.
    npoints
        k-points of the path through the Brillouin zone; 0 for none.
    progress
        Show a progress bar.
    options
        Of :func:`ase_nextham.load_model`, where the model is to be read.

    Raises
    ------
    FileNotFoundError
        If the data set, the model or the split is not there.
    ValueError
        If there are no samples, or none with a name; names and a split are both given; the split
        has no such part; or
        the model does not know an element or was trained with other orbitals than a sample, which
        is named.
    """
    dataset = chosen(dataset, names, split, part)
    if not len(dataset):
        raise ValueError(f"{dataset.path}: there are no samples")
    loaded, path = loaded_model(model, **options)
    indices: Iterable[int] = range(len(dataset))
    if progress:
        from tqdm import tqdm

        indices = tqdm(indices, unit="structure", desc="evaluating")
    structures, counts = [], None
    for index in indices:
        sample = dataset.sample(index, kpts=())
        named = hamiltonians(sample, loaded)
        structures.append(_evaluated(sample, named, kpts, npoints))
        if loaded is not None:
            more = parity(named[PREDICTED], sample.data)
            counts = more if counts is None else counts + more
    return Report(
        dataset=str(dataset.path),
        model=path,
        kpts=kpts,
        npoints=npoints,
        structures=tuple(structures),
        errors={name: _merged([one.errors[name] for one in structures]) for name in named},
        parity=counts,
    )


def chosen(
    dataset: Dataset | str | os.PathLike,
    names: Iterable[str] | None,
    split: str | os.PathLike | None,
    part: str,
) -> Dataset:
    """Some samples of a data set, as in :func:`evaluate`."""
    if names is not None and split is not None:
        raise ValueError("give either names of samples or a split, not both")
    if not isinstance(dataset, Dataset):
        dataset = Dataset(dataset)
    if split is not None:
        parts = read_split(split, dataset)
        if part not in parts:
            raise ValueError(f"{split}: there is no part {part!r}; it has {', '.join(parts)}")
        return dataset.subset(parts[part])
    if names is None:
        return dataset
    found: dict[int, None] = {}
    for pattern in names:
        some = [
            k
            for k, name in enumerate(dataset.names)
            if name == pattern or fnmatch.fnmatchcase(name, pattern)
        ]
        if not some:
            raise ValueError(f"{dataset.path}: no sample is named like {pattern!r}")
        found |= dict.fromkeys(some)
    return dataset.subset(found)


def loaded_model(
    model: Model | DensityModel | str | os.PathLike | None, **options
) -> tuple[Model | DensityModel | None, str | None]:
    """A model, read if need be with options of :func:`ase_nextham.load_model`, and where it is."""
    if model is None:
        return None, None
    if isinstance(model, str | os.PathLike):
        return load_model(model, **options), str(Path(model))
    return model, repr(model)


def hamiltonians(sample: Sample, model: Model | DensityModel | None) -> dict[str, LCAOMatrix]:
    """H(0), and H(0) + dH where there is a model, by their names.

    Raises
    ------
    ValueError
        If the model cannot be used for the sample, which is named.
    """
    named = {H0: sample.data.h0}
    if model is not None:
        try:
            named[PREDICTED] = sample.data.h0 + model.predict(sample.data)
        except ValueError as err:
            raise ValueError(f"sample {sample.entry.name}: {err}") from err
    return named


def _evaluated(sample: Sample, named: Mapping[str, LCAOMatrix], kpts, npoints: int) -> Structure:
    data, entry = sample.data, sample.entry
    bands_of_reference = reference(data, kpts)
    path = band_path(data.atoms, npoints) if npoints else None
    along_path = None
    if path is not None:
        along_path = bands.eigenvalues(data.hamiltonian, data.overlap, path.kpts)
    errors = {}
    for name, matrix in named.items():
        mesh = mesh_errors(matrix, data, bands_of_reference)
        errors_of_path = None
        if path is not None:
            eps = bands.eigenvalues(matrix, data.overlap, path.kpts) + mesh.shift[0]
            errors_of_path = band_errors(
                eps, along_path, bands_of_reference.fermi_level, np.ones(len(path.kpts), int)
            )
        errors[name] = Evaluated(matrix_errors(matrix, data, zero=entry.mu), mesh, errors_of_path)
    return Structure(
        name=entry.name,
        formula=entry.formula,
        natoms=len(entry.atoms),
        spin=entry.spin,
        elements=tuple(sorted(set(entry.atoms.get_chemical_symbols()))),
        fermi_level=bands_of_reference.fermi_level - entry.mu,
        gap=bands_of_reference.gap,
        condition=bands_of_reference.condition,
        errors=errors,
    )


def _merged(several: Sequence[Evaluated]) -> Evaluated:
    paths = [errors.path for errors in several if errors.path is not None]
    return Evaluated(
        matrix=merged_matrix_errors(errors.matrix for errors in several),
        mesh=merged_mesh_errors(errors.mesh for errors in several),
        path=merged_band_errors(paths) if paths else None,
    )


__all__ = ["evaluate"]
