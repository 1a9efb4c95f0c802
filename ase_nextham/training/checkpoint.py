"""The state of a run on disk: one safetensors file, complete or not there, that runs nothing.

Tensors are the weights, their running average, the state of the optimiser and the units of the
loss; everything else is JSON in the header of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ase_nextham.files import replacing

FORMAT = "ase_nextham checkpoint 1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State of a run.

    Parameters
    ----------
    tensors
        By name.
    values
        Plain values that JSON has.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def write(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the last one, which stays if this fails.

    Raises
    ------
    OSError
        If it cannot be written, because the disk is full for instance.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in checkpoint.tensors.items()}
    header = {"format": FORMAT, "values": json.dumps(checkpoint.values)}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=header)
            with temporary.open("rb") as file:  # in the place of the last one only what is on disk
                os.fsync(file.fileno())
    except (SafetensorError, OSError) as err:
        kept = "; the last one is as it was" if Path(path).exists() else ""
        raise OSError(f"{path}: the checkpoint could not be written{kept}: {err}") from err


def read(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is damaged, or no checkpoint of this version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != FORMAT:
            raise ValueError(f"format {header.get('format')!r}, but this version reads {FORMAT!r}")
        values = json.loads(header["values"])
    except (SafetensorError, OSError, KeyError, ValueError) as err:
        raise ValueError(f"{path}: not a checkpoint, or damaged: {err}") from err
    return Checkpoint(tensors, values)


# --- optimisers ----------------------------------------------------------------------------------


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimiser, by parameter and name."""
    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state of :func:`optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    content = optimiser.state_dict()
    optimiser.load_state_dict({**content, "state": state})


__all__ = ["Checkpoint", "optimiser_tensors", "read", "restore_optimiser", "write"]
