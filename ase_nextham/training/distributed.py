"""One process or many: who writes, who works on what, and sums over all.

``torchrun`` starts the processes and tells each of them its place in the environment. With one
process everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Parameters
    ----------
    rank, size
        Place of this process among them, and their number.
    device
        On which this one works.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def share(self, number: int) -> range:
        """Which of so many things this process works on; a whole share for each.

        Raises
        ------
        ValueError
            If the number is not a multiple of the processes.
        """
        if number % self.size:
            raise ValueError(
                f"[optimiser] batch = {number} cannot be shared among {self.size} processes"
            )
        each = number // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def wrapped(self, objective: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over all processes."""
        if self.size == 1:
            return objective
        # networks whose window holds no pair of a batch take no part in it
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            objective, devices, find_unused_parameters=True, broadcast_buffers=False
        )

    def local(self, wrapped: nn.Module):
        """A context in which gradients are summed here and not yet averaged."""
        return wrapped.no_sync() if self.size > 1 else nullcontext()

    def gathered(self, values: Tensor) -> Tensor:
        """Values of all processes one after another, of the same shape in each."""
        if self.size == 1:
            return values
        own = values.to(self.device)
        pieces = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(pieces, own)
        return torch.cat(pieces).to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether it is true for one of the processes."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def chosen_device(name: str) -> torch.device:
    """The device that a name of :class:`~ase_nextham.training.config.RunConfig` means here.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{rank}"
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ValueError(f"[run] device = {name!r} is not the name of a device: {err}") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"[run] device = {name!r}, but there are {torch.cuda.device_count()} CUDA devices; "
            "'cpu' always works"
        )
    return device


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone.

    Parameters
    ----------
    device
        As in :class:`~ase_nextham.training.config.RunConfig`; processes talk by NCCL on graphics
        processors and by Gloo elsewhere.
    """
    own = chosen_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(0, 1, own)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), size, own)
    finally:
        dist.destroy_process_group()


__all__ = ["Processes", "chosen_device", "processes"]
