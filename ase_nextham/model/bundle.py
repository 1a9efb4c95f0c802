"""A model on disk: ``model.json``, which says what it is, and the weights of each expert.

A model is a folder. ``model.json`` is a :class:`ModelInfo`, readable by eye; the weights are
``expert_0.safetensors``, ``expert_1.safetensors``, ... in the order of the windows. Neither can
hold anything that runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ase_nextham.expansion import Expansion, RadialFunctions
from ase_nextham.files import replacing_folder, write_atomically
from ase_nextham.model.density_network import DensityEnsemble, architecture_of
from ase_nextham.model.ensemble import Ensemble
from ase_nextham.model.irreps import common_shells
from ase_nextham.model.network import Architecture
from ase_nextham.model.released_ensemble import ReleasedEnsemble

FORMAT = 1
"""Version of the format, which rises when older readers would misread a newer model."""

ANY = "any"
"""In place of an element, where radial functions are those of all."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, for which data, and how it was made: the content of ``model.json``.

    Parameters
    ----------
    network
        Kind of network, a key of :data:`NETWORKS`.
    shells
        Angular momentum of every radial function, for each element that the model knows.
    windows
        Ends of the ranges of distances in Angstrom; one expert for each range.
    cutoff
        How far an atom sees, in Angstrom.
    spin
        Which part of H is corrected, of :data:`ase_nextham.model.parts.PARTS`.
    convention
        Orbital convention of the correction, of :data:`ase_nextham.basis.CONVENTIONS`.
    orbitals, pseudopotentials
        sha256 of the files, for each element where known. Data made with others is refused.
    h0
        The H(0) it was trained on: ``engine``, preset of the ``moments``, ...
    xc
        Exchange-correlation functional.
    training
        Data set, epochs, errors, ...
    citation
        What to cite.
    hyperparameters
        Arguments of the network.
    format
        Version of the format.
    """

    network: str
    shells: Mapping[str, tuple[int, ...]]
    windows: tuple[float, ...]
    cutoff: float
    spin: str = "scalar"
    convention: str = "abacus"
    orbitals: Mapping[str, str] = field(default_factory=dict)
    pseudopotentials: Mapping[str, str] = field(default_factory=dict)
    h0: Mapping[str, Any] = field(default_factory=dict)
    xc: str = "PBE"
    training: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self):
        shells = {name: tuple(int(l) for l in ls) for name, ls in self.shells.items()}
        for name in shells:
            if name not in atomic_numbers:
                raise ValueError(f"{name!r} is not the symbol of an element")
        shells = dict(sorted(shells.items(), key=lambda item: atomic_numbers[item[0]]))
        object.__setattr__(self, "shells", shells)
        object.__setattr__(self, "windows", tuple(float(end) for end in self.windows))
        for name in ("orbitals", "pseudopotentials"):
            strangers = getattr(self, name).keys() - shells.keys()
            if strangers:
                raise ValueError(
                    f"{name} names {', '.join(sorted(strangers))}, of which the model has no shells"
                )

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements that the model knows, by atomic number."""
        return tuple(self.shells)

    @property
    def head(self) -> str:
        """What its networks give: ``"density"`` (its change, from which dH follows), or ``"pairs"``
        (dH of each pair of atoms).
        """
        return "density" if self.network == "density" else "pairs"

    @property
    def padded_shells(self) -> tuple[int, ...]:
        """The shells in which those of every element find a place."""
        return common_shells(self.shells.values())

    def to_json(self) -> str:
        """One line for each entry, and one for each entry of those that have several."""
        lines = []
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Mapping) and value:
                inner = ",\n".join(
                    f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()
                )
                lines.append(f'  "{f.name}": {{\n{inner}\n  }}')
            else:
                lines.append(f'  "{f.name}": {json.dumps(value)}')
        return "{\n" + ",\n".join(sorted(lines, key=lambda line: '"format"' not in line)) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, path: str | os.PathLike = "model.json") -> ModelInfo:
        """The reverse of :meth:`to_json`.

        Raises
        ------
        ValueError
            If the text is not JSON, of a newer format, or lacks an entry; it names ``path``.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as err:
            raise ValueError(f"{path}: not JSON: {err}") from err
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError(f"{path}: not the description of a model: it has no entry 'format'")
        if content["format"] != FORMAT:
            raise ValueError(
                f"{path}: format {content['format']!r}, but this version reads {FORMAT}; "
                "update ase_nextham"
            )
        known = {f.name: f for f in fields(cls)}
        required = {name for name, f in known.items() if _is_required(f)}
        for problem, names in (
            ("lacks", required - content.keys()),
            ("has the unknown", content.keys() - known.keys()),
        ):
            if names:
                raise ValueError(f"{path}: {problem} {', '.join(sorted(names))}")
        try:
            return cls(**content)
        except (TypeError, ValueError, AttributeError) as err:
            raise ValueError(f"{path}: {err}") from err


def _is_required(f) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _ensemble(info: ModelInfo) -> nn.Module:
    if info.cutoff != info.windows[-1]:
        raise ValueError(
            f"the last window ends at {info.windows[-1]} Angstrom, not at the cutoff {info.cutoff}"
        )
    hyperparameters = dict(info.hyperparameters)
    target = hyperparameters.pop("target", "correction")
    unknown = hyperparameters.keys() - {f.name for f in fields(Architecture)}
    if unknown:
        raise ValueError(f"unknown hyperparameters {', '.join(sorted(unknown))}")
    architecture = Architecture(**hyperparameters)
    if architecture.corrects != info.spin:
        raise ValueError(f"spin is {info.spin!r}, but it corrects {architecture.corrects!r}")
    return Ensemble(architecture, info.padded_shells, info.windows, target)


def _released(info: ModelInfo) -> nn.Module:
    return ReleasedEnsemble(**info.hyperparameters)


def expansion_of(info: ModelInfo) -> Expansion:
    """The functions in which a model with the density head expands, the same for all its elements.

    Raises
    ------
    ValueError
        If they are damaged.
    """
    functions = _functions(info)
    return Expansion("density", dict.fromkeys(info.elements, functions))


def functions_entry(functions: RadialFunctions) -> dict:
    """Radial functions as :attr:`ModelInfo.hyperparameters` keeps them."""
    content = Expansion("density", {ANY: functions}).as_dict()["radial"][ANY]
    return {**content, "fingerprint": _fingerprint(functions)}


def _functions(info: ModelInfo) -> RadialFunctions:
    try:
        entry = dict(info.hyperparameters["functions"])
        expected = entry.pop("fingerprint")
        functions = RadialFunctions(tuple(entry["exponents"]), tuple(entry["combinations"]))
    except (KeyError, TypeError) as err:
        raise ValueError(f"the radial functions are damaged: {err!r}") from err
    if _fingerprint(functions) != expected:
        raise ValueError("the radial functions are not those whose fingerprint stands beside them")
    return functions


def _fingerprint(functions: RadialFunctions) -> str:
    return Expansion("density", {ANY: functions}).fingerprint


def _density(info: ModelInfo) -> nn.Module:
    functions = _functions(info)
    hyperparameters = dict(info.hyperparameters) | {"counts": functions.counts}
    del hyperparameters["functions"]
    members = hyperparameters.pop("members", 1)
    architecture = architecture_of(hyperparameters)
    return DensityEnsemble(architecture, functions.charges, info.padded_shells, members)


NETWORKS: Mapping[str, Callable[[ModelInfo], nn.Module]] = {
    "nextham": _ensemble,
    "released": _released,
    "density": _density,
}
"""Kinds of networks, and how each is made from a :class:`ModelInfo`, its weights at random.

A module has its networks in ``experts`` (a ``ModuleList``). Those of the pair head have the methods
and properties of :class:`~ase_nextham.model.ensemble.Ensemble` that
:class:`~ase_nextham.model.predict.Model` calls: ``graph``, ``forward``, ``part`` and
``bytes_per_bond``. That of the density head is
:class:`~ase_nextham.model.density_network.DensityEnsemble`.
"""


def build(info: ModelInfo) -> nn.Module:
    """The module that an info describes, with random weights.

    Raises
    ------
    ValueError
        If the kind of network is not known, or its hyperparameters are not.
    """
    if info.network not in NETWORKS:
        raise ValueError(f"unknown network {info.network!r}; known: {', '.join(NETWORKS)}")
    return NETWORKS[info.network](info)


def save(path: str | os.PathLike, info: ModelInfo, module: nn.Module) -> None:
    """Write a model as a new folder, complete or not at all.

    Raises
    ------
    FileExistsError
        If ``path`` is there already and is not an empty folder.
    """
    with replacing_folder(path) as folder:
        write_atomically(folder / "model.json", info.to_json())
        for k, expert in enumerate(module.experts):
            weights = {name: w.detach().cpu().contiguous() for name, w in _weights(expert).items()}
            save_file(weights, folder / _weights_name(k), metadata={"expert": str(k)})


def read_info(path: str | os.PathLike) -> ModelInfo:
    """What a model is, without its weights.

    Raises
    ------
    FileNotFoundError
        If there is no ``model.json`` in the folder.
    ValueError
        If it cannot be read.
    """
    file = Path(path) / "model.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: there is no model here: {file.name} is missing")
    return ModelInfo.from_json(file.read_text(encoding="utf-8", errors="replace"), file)


def read(path: str | os.PathLike) -> tuple[ModelInfo, nn.Module]:
    """A model and what it is; weights in the precision in which they were written.

    Raises
    ------
    FileNotFoundError
        If ``model.json`` or the weights of an expert are missing.
    ValueError
        If a file is damaged, or holds weights that are missing, unknown, of another shape or not
        finite; it names the file and the weights.
    """
    info = read_info(path)
    try:
        module = build(info)
    except (TypeError, ValueError) as err:
        raise ValueError(f"{Path(path) / 'model.json'}: {err}") from err
    for k, expert in enumerate(module.experts):
        file = Path(path) / _weights_name(k)
        if not file.is_file():
            raise FileNotFoundError(
                f"{path}: {file.name} is missing; {len(module.experts)} windows need as many files"
            )
        try:
            weights = load_file(file)
        except (SafetensorError, OSError) as err:
            raise ValueError(f"{file}: damaged, or not a safetensors file: {err}") from err
        load_weights(expert, weights, file)
    return info, module.eval()


def load_weights(
    network: nn.Module, weights: Mapping[str, torch.Tensor], source: str | os.PathLike
) -> None:
    """Give a network its weights, all of them and no others, in their own precision.

    Raises
    ------
    ValueError
        Naming the weights that are missing, unknown, of another shape or not finite, and
        ``source``.
    """
    expected = _weights(network)
    wrong = {
        "misses the weights": sorted(expected.keys() - weights.keys()),
        "has the unknown weights": sorted(weights.keys() - expected.keys()),
        "has weights of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(w.shape)}"
            for name, w in expected.items()
            if name in weights and weights[name].shape != w.shape
        ],
        "has weights that are not finite": [
            name for name, w in weights.items() if not torch.isfinite(w).all()
        ],
    }
    for problem, names in wrong.items():
        if names:
            raise ValueError(f"{source}: {problem}: {_listed(names)}")
    types = {w.dtype for w in weights.values() if w.is_floating_point()}
    if len(types) == 1:
        network.to(types.pop())
    network.load_state_dict(dict(weights))


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return network.state_dict()


def _weights_name(k: int) -> str:
    return f"expert_{k}.safetensors"


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
