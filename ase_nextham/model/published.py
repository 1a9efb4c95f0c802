"""Published checkpoints of NextHAM become models: four state dicts or pickled modules.

The files are read by :mod:`ase_nextham.inert_pickle`, which runs nothing that is in them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ase_nextham.inert_pickle import Record, read_torch
from ase_nextham.model import bundle
from ase_nextham.model.bundle import ModelInfo
from ase_nextham.model.released import FEATURES, WINDOWS, ReleasedNetwork
from ase_nextham.model.released_ensemble import CUTOFF, ENERGY_UNITS, ReleasedEnsemble
from ase_nextham.model.released_weights import assign

_SHELLS = {
    "2s1p": "H He",
    "4s1p": "Li Be",
    "2s2p1d": "B C N O F Ne Al Si P S Cl Ar As Se Br Kr I Xe",
    "4s2p1d": "Na Mg K Ca Rb Sr Cs Ba",
    "2s2p2d1f": "Ga Ge Pd In Sn Sb Te Tl Pb Bi",
    "4s2p2d1f": "Sc Ti V Cr Mn Fe Co Ni Cu Zn Y Zr Nb Mo Tc Ru Rh Ag Cd Hf Ta W Re Os Ir Pt Au Hg",
}


def _l_of_shells(label: str) -> tuple[int, ...]:
    """Angular momenta of ``2s1p``: (0, 0, 1)."""
    numbers, letters = map(int, label[::2]), label[1::2]
    return tuple("spdf".index(l) for n, l in zip(numbers, letters, strict=True) for _ in range(n))


SHELLS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        element: _l_of_shells(label)
        for label, elements in _SHELLS.items()
        for element in elements.split()
    }
)
"""Orbitals of the elements that the published networks were trained with."""

CITATION = "NextHAM (ICLR 2026), weights published by its authors"

_CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
_DISTRIBUTED = "module."  # what DistributedDataParallel puts before every name


def import_checkpoint(
    files: Sequence[str | os.PathLike],
    target: str | os.PathLike,
    *,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
) -> tuple[ModelInfo, dict[str, list[str]]]:
    """Make a model of the published files of one set.

    Parameters
    ----------
    files
        Four files, in the order of the windows of distances that they are for: 0 to 1, 1 to 2, 2
        to 4 and 4 to 6 Angstrom. State dicts, alone or in a checkpoint, or whole modules.
    target
        The model, a new folder.
    pseudo_dir, orbital_dir
        Folders with the pseudopotentials and orbitals that the networks were trained with. With
        them, H(0) made with others is refused later.

    Returns
    -------
    (ModelInfo, dict)
        What the model is, and for each file the names of weights in it that never reach the
        result.

    Raises
    ------
    FileExistsError
        If there is something at ``target``.
    ValueError
        If there are not four files, or one is not of a published network: it says which weights
        are missing, unknown or of another shape.
    """
    paths = [Path(file) for file in files]
    if len(paths) != len(WINDOWS):
        windows = ", ".join(f"{begin:g} to {end:g}" for begin, end in WINDOWS)
        raise ValueError(
            f"a published model has {len(WINDOWS)} files, one for each window of distances "
            f"({windows} Angstrom), in this order; {len(paths)} were given"
        )
    states = [state_dict(path) for path in paths]
    version = _version(paths[0], states[0])
    ensemble = ReleasedEnsemble(version)
    unused = {}
    for path, expert, weights in zip(paths, ensemble.experts, states, strict=True):
        try:
            unused[str(path)] = assign(expert, weights, torch.float32)
        except ValueError as err:
            raise ValueError(f"{path}: not a network {version!r} of NextHAM: {err}") from err
        for name, weight in expert.state_dict().items():
            if not torch.isfinite(weight).all():
                raise ValueError(f"{path}: weight {name} holds numbers that are not finite")
    info = ModelInfo(
        network="released",
        shells=SHELLS,
        windows=(*(begin for begin, _ in WINDOWS), WINDOWS[-1][1]),
        cutoff=CUTOFF,
        spin="scalar",
        orbitals=_fingerprints(orbital_dir, ".orb"),
        pseudopotentials=_fingerprints(pseudo_dir, ".upf"),
        h0={"spin": "spinor", "rydberg_eV": ENERGY_UNITS[version]},
        training={"files": {path.name: _sha256(path) for path in paths}},
        citation=CITATION,
        hyperparameters={"version": version},
    )
    bundle.save(target, info, ensemble)
    return info, unused


def state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name.

    Raises
    ------
    ValueError
        If the file is damaged, or there are no weights in it.
    """
    content = read_torch(path, records="any")
    for _ in range(3):  # a module in a dict in a checkpoint
        inner = _inner(content)
        if inner is None:
            break
        content = inner
    weights = _of_module(content) if isinstance(content, Record) else content
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path}: expected weights by name, found {type(content).__name__}")
    arrays = {str(name): value for name, value in weights.items() if isinstance(value, np.ndarray)}
    if not arrays:
        names = ", ".join(map(str, list(weights)[:6])) or "nothing"
        raise ValueError(f"{path}: there are no weights in this file; it holds {names}")
    if all(name.startswith(_DISTRIBUTED) for name in arrays):
        arrays = {name.removeprefix(_DISTRIBUTED): value for name, value in arrays.items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def _inner(content):
    """What a checkpoint holds beside its other entries, if that is weights."""
    if not isinstance(content, Mapping):
        return None
    for name in _CONTAINERS:
        if isinstance(content.get(name), (Mapping, Record)):
            return content[name]
    return None


def _of_module(module: Record, prefix: str = "") -> dict[str, np.ndarray]:
    """Parameters and buffers of a pickled module, named as its ``state_dict`` would."""
    weights: dict[str, np.ndarray] = {}
    state = module.state if isinstance(module.state, Mapping) else {}
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, np.ndarray):
                weights[f"{prefix}{name}"] = value
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, Record):
            weights |= _of_module(child, f"{prefix}{name}.")
    return weights


def _version(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Of which published network weights are: the one that most of them fit."""
    fits = {}
    for version in FEATURES:
        own = ReleasedNetwork(version).named_parameters()
        fits[version] = sum(
            name in weights and weights[name].shape == value.shape for name, value in own
        )
    if not any(fits.values()):
        raise ValueError(
            f"{path}: no weight in this file is of a published network of NextHAM; it has "
            f"{', '.join(list(weights)[:4])}, ..."
        )
    return max(fits, key=fits.get)


def _fingerprints(folder: str | os.PathLike | None, ending: str) -> dict[str, str]:
    """sha256 of the file of each element in a folder, named ``Ga.upf`` or ``Ga_....orb``."""
    if folder is None:
        return {}
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        element = path.name.split("_")[0].split(".")[0].split("-")[0]
        if path.suffix.lower() == ending and element in SHELLS:
            found.setdefault(element, []).append(path)
    if not found:
        raise ValueError(f"{folder}: there is no file Element...{ending} in this folder")
    for element, paths in found.items():
        if len(paths) > 1:
            raise ValueError(
                f"{folder}: {element} has several files, {', '.join(p.name for p in paths)}; keep "
                "the one that the networks were trained with"
            )
    return {element: _sha256(paths[0]) for element, paths in found.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


__all__ = ["CITATION", "SHELLS", "import_checkpoint", "state_dict"]
