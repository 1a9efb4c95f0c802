"""Reading a model, whichever head it has.

What comes back has ``info`` (:class:`~ase_nextham.model.bundle.ModelInfo`), ``check(data)`` and
``predict(data)``, which takes LCAOData with H(0) and gives dH.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase_nextham.model import Model
    from ase_nextham.potential_head.predict import DensityModel


DEFAULT = "default"
"""Name of the model that comes with the package."""


def load_model(
    path: str | os.PathLike,
    *,
    device: str = "cpu",
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
) -> Model | DensityModel:
    """Read a model from its folder.

    Parameters
    ----------
    path
        Folder with ``model.json``; ``"default"`` for the model that comes with the package.
    device
        Where its networks compute: ``"cpu"``, ``"cuda"``, ...
    pseudo_dir, orbital_dir
        Pseudopotentials and orbitals for models with the density head, which need them to make dH
        of the density; by default those of ASE's configuration or of the environment (see
        :class:`~ase_nextham.h0.native.engine.NativeH0`).

    Raises
    ------
    FileNotFoundError, ValueError
        If the model is not there or damaged.
    """
    from ase_nextham.model import bundle

    path = model_folder(path)
    if bundle.read_info(path).head == "pairs":
        from ase_nextham.model import load

        return load(path, device=device)
    from ase_nextham.potential_head.predict import density_model

    return density_model(*bundle.read(path), pseudo_dir, orbital_dir).to(device)


def model_folder(path: str | os.PathLike) -> Path:
    """Where a model is: ``"default"`` is not a folder of the user's, unless there is one."""
    if path == DEFAULT and not Path(path).exists():
        return Path(__file__).with_name("default_model")
    return Path(path)


__all__ = ["DEFAULT", "load_model", "model_folder"]
