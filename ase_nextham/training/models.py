"""The model that is trained: a new one for the elements of a data set, or one that goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from ase_nextham import model
from ase_nextham.expansion import RadialFunctions, even_tempered
from ase_nextham.model import bundle
from ase_nextham.model.bundle import ModelInfo
from ase_nextham.model.density_network import DensityArchitecture
from ase_nextham.model.predict import pseudopotentials_of
from ase_nextham.potential_head.descriptor import ELEMENT_SCALARS
from ase_nextham.training.config import ModelConfig, TrainConfig
from ase_nextham.training.dataset import Dataset, Sample

_ARCHITECTURE = (
    "features",
    "layers",
    "heads",
    "gaussians",
    "invariants",
    "tracegrad",
    "inputs",
    "reads",
    "corrects",
)


def model_to_train(config: TrainConfig, dataset: Dataset) -> model.Model:
    """The model with which a run begins.

    Raises
    ------
    ValueError
        If the configuration is impossible, or the model that it starts from does not fit.
    """
    if config.model.start is not None:
        return started_model(config.model, dataset)
    if config.model.head == "density":
        return new_density_model(config, dataset)
    return new_model(config.model, dataset, config.run.seed)


def new_model(config: ModelConfig, dataset: Dataset, seed: int) -> model.Model:
    """A model with random weights for the elements of a data set, whose dH is zero.

    Raises
    ------
    ValueError
        If the configuration is impossible.
    """
    hyperparameters = {name: getattr(config, name) for name in _ARCHITECTURE}
    info = ModelInfo(
        network="nextham",
        **_with_elements(dataset, {}, {}, {}),
        windows=config.windows,
        cutoff=config.windows[-1],
        spin=config.corrects,
        h0=_h0(dataset[0]),
        xc=config.xc,
        citation=config.citation,
        hyperparameters=hyperparameters | {"target": config.target},
    )
    module = _built(info, seed)
    for expert in module.experts:
        for weights in (expert.decode_onsite.second, expert.decode_bonds.second):
            for weight in weights.parameters():
                nn.init.zeros_(weight)
    return model.Model(info, module)


def new_density_model(config: TrainConfig, dataset: Dataset) -> model.Model:
    """A model of the density with random weights for the elements of a data set.

    Raises
    ------
    ValueError
        If the configuration is impossible.
    """
    density = config.density
    functions = RadialFunctions.coulomb(even_tempered(density.counts, *density.exponents))
    architecture = DensityArchitecture(
        counts=functions.counts,
        scalars=len(ELEMENT_SCALARS),
        network=density.network,
        hidden=density.hidden,
        layers=density.layers,
        cutoff=density.cutoff,
        first_density=density.first_density,
    )
    hyperparameters = asdict(architecture) | {
        "members": density.members,
        "functions": bundle.functions_entry(functions),
    }
    del hyperparameters["counts"]  # the functions tell
    info = ModelInfo(
        network="density",
        **_with_elements(dataset, {}, {}, {}),
        windows=(0.0, density.cutoff),
        cutoff=density.cutoff,
        h0=_h0(dataset[0]),
        xc=config.model.xc,
        citation=config.model.citation,
        hyperparameters=hyperparameters,
    )
    return model.Model(info, _built(info, config.run.seed))


def _built(info: ModelInfo, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return bundle.build(info)


def started_model(config: ModelConfig, dataset: Dataset) -> model.Model:
    """A model from disk, to be trained on; it learns the elements of the data set as well.

    Raises
    ------
    ValueError
        If the model has another head, or an element has other orbitals than those the model was
        trained with, or more than it has room for.
    """
    info, module = bundle.read(config.start)
    if info.head != config.head:
        raise ValueError(
            f"{config.start}: a model with head = {info.head!r}, but [model] head = {config.head!r}"
        )
    known = _with_elements(dataset, info.shells, info.orbitals, info.pseudopotentials)
    wider = replace(info, **known, citation=config.citation or info.citation)
    if wider.padded_shells != info.padded_shells:
        raise ValueError(
            f"{config.start}: the model has room for the shells {list(info.padded_shells)}, but "
            f"the elements of the data set need {list(wider.padded_shells)}; train a new one"
        )
    started = model.Model(wider, module)
    for sample in _one_of_each(dataset):
        try:
            started.check(sample.data)
        except ValueError as err:
            raise ValueError(f"{sample.entry.name}: {err}") from err
    return started


def save_model(path: str | os.PathLike, info: ModelInfo, module: nn.Module) -> None:
    """Write a model, in the place of one that is there already; never is there half of one."""
    path = Path(path)
    new, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    for rest in (new, old):
        shutil.rmtree(rest, ignore_errors=True)
    bundle.save(new, info, module)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _one_of_each(dataset: Dataset) -> Iterator[Sample]:
    """Samples in which every species occurs."""
    seen: set[str] = set()
    for index, entry in enumerate(dataset.entries):
        if not seen.issuperset(entry.species):
            seen.update(entry.species)
            yield dataset.sample(index, ())


def _with_elements(
    dataset: Dataset, shells: Mapping, orbitals: Mapping, pseudopotentials: Mapping
) -> dict[str, dict]:
    """Shells and files of the elements of a data set beside those that were known before."""
    known = {
        "shells": dict(shells),
        "orbitals": dict(orbitals),
        "pseudopotentials": dict(pseudopotentials),
    }
    for sample in _one_of_each(dataset):
        data = sample.data
        files = pseudopotentials_of(data)
        elements = data.atoms.get_chemical_symbols()
        for species, element in zip(data.symbols, elements, strict=True):
            own = {
                "shells": data.basis.shells[species],
                "orbitals": data.basis.fingerprint.get(species),
                "pseudopotentials": files.get(species, files.get(element)),
            }
            for what, value in own.items():
                if value is not None:
                    known[what].setdefault(element, value)
    return known


def _h0(sample: Sample) -> dict:
    source = sample.data.source
    return {name: source[name] for name in ("code", "version", "engine") if name in source}


__all__ = ["model_to_train", "new_density_model", "new_model", "save_model", "started_model"]
