"""Samples as tensors, made once and kept, and several of them as one batch.

Neighbours, the elements of H(0), labels and eigenvectors of a sample never change. An
:class:`Example` holds them; :class:`Examples` makes them when they are asked for and keeps as many
as fit into the memory that it may use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_nextham.data import LCAOData
from ase_nextham.matrix import aligned
from ase_nextham.model.graph import Elements, Graph
from ase_nextham.model.parts import part_elements
from ase_nextham.training.dataset import Sample
from ase_nextham.training.kspace import BlochSum, States

PRESENT = 1.36e-11
"""Elements of H smaller than this (1e-12 Ry), in eV, do not count in the error that is reported."""


@dataclass(frozen=True, eq=False)
class Example:
    """One structure to learn from, as tensors on one device.

    Parameters
    ----------
    name
        Of the sample.
    graph
        Its atoms, pairs and H(0).
    label
        dH in eV with the energy zero of H(0), of ``graph.corrects.shape``.
    overlap
        S at the same places, of the same shape but for a leading 2 if collinear.
    present
        Which elements H has, of the shape of ``overlap``.
    bloch, states
        For the terms in reciprocal space; ``states`` is None where the sample has no k-points.
    """

    name: str
    graph: Graph
    label: Tensor
    overlap: Tensor
    present: Tensor
    bloch: BlochSum
    states: States | None

    @classmethod
    def of(cls, sample: Sample, graph_of: Callable, part: str, dtype: torch.dtype) -> Example:
        """The tensors of a sample.

        Parameters
        ----------
        graph_of
            Function of several LCAOData, the method ``graph`` of a network.
        part
            Which part of H is corrected.
        dtype
            Precision of labels and overlap.

        Raises
        ------
        ValueError
            If H(0) or H is missing, or holds numbers that are not finite; it names the sample.
        """
        data, name = sample.data, sample.entry.name
        for what, matrix in (("H(0)", data.h0), ("Hamiltonian", data.hamiltonian)):
            if matrix is None:
                raise ValueError(f"{name}: the sample has no {what}, so nothing is to be learned")
            if not np.isfinite(matrix.data).all():
                raise ValueError(f"{name}: {what} has numbers that are not finite")
        try:
            graph = graph_of([data])
            label, overlap, present = _label(data, part)
        except ValueError as err:
            raise ValueError(f"{name}: {err}") from err
        return cls(
            name=name,
            graph=graph,
            label=_tensor(label, dtype),
            overlap=_tensor(overlap, dtype),
            present=torch.from_numpy(present),
            bloch=BlochSum.of(data, part),
            states=None if sample.k_space is None else States.of(sample.k_space),
        )

    def to(self, device) -> Example:
        """The same on a device."""
        return _moved(self, device, {})

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum({id(x): x.nbytes for x in _tensors(self)}.values())


def _label(data: LCAOData, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # a common zero, so that networks of different windows that are trained apart fit together
    hamiltonian, _ = aligned(data.hamiltonian, data.h0, data.overlap)
    label = part_elements(hamiltonian - data.h0, part)
    overlap = part_elements(data.overlap, part) if part == "spinor" else data.overlap.data
    size = replace(data.hamiltonian, data=np.abs(data.hamiltonian.data))
    present = np.abs(part_elements(size, part)).reshape(-1, label.shape[-1]).max(axis=0)
    return label, overlap.real, present > PRESENT


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.tensor(array)
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


def _tensors(value) -> list[Tensor]:
    if torch.is_tensor(value):
        return [value]
    if is_dataclass(value):
        return [x for f in fields(value) for x in _tensors(getattr(value, f.name))]
    return []


def _moved(value, device, known: dict):
    """The same on a device; what is one object stays one object."""
    if id(value) in known:
        return known[id(value)]
    moved = value
    if torch.is_tensor(value):
        moved = value.to(device, non_blocking=True)
    elif is_dataclass(value):
        inner = {f.name: getattr(value, f.name) for f in fields(value)}
        moved = replace(value, **{name: _moved(x, device, known) for name, x in inner.items()})
    known[id(value)] = moved
    return moved


# --- several at once -----------------------------------------------------------------------------


def joined(graphs: Sequence[Graph]) -> Graph:
    """One graph of several, which do not see each other."""
    if len(graphs) == 1:
        return graphs[0]
    atoms = _starts([len(graph.numbers) for graph in graphs])
    pairs = _starts([len(graph) for graph in graphs])
    structures = _starts([int(graph.structure.max()) + 1 for graph in graphs])

    def cat(name: str, starts: Sequence[int] | None = None) -> Tensor:
        values = [getattr(graph, name) for graph in graphs]
        if starts is not None:
            values = [value + start for value, start in zip(values, starts, strict=True)]
        return torch.cat(values, dim=-1 if name == "h0" else 0)

    reads = _joined_elements([graph.reads for graph in graphs])
    same = all(graph.corrects is graph.reads for graph in graphs)
    return Graph(
        numbers=cat("numbers"),
        structure=cat("structure", structures),
        i=cat("i", atoms),
        j=cat("j", atoms),
        R=cat("R"),
        vectors=cat("vectors"),
        distance=cat("distance"),
        reverse=cat("reverse", pairs),
        reach=cat("reach"),
        reads=reads,
        corrects=reads if same else _joined_elements([graph.corrects for graph in graphs]),
        h0=cat("h0"),
    )


def _joined_elements(several: Sequence[Elements]) -> Elements:
    starts = _starts([sum(elements.sizes) for elements in several])
    kinds = _starts([len(elements.places) for elements in several])
    blocks = [
        torch.where(elements.block < 0, -1, elements.block + start)
        for elements, start in zip(several, starts, strict=True)
    ]
    return Elements(
        part=several[0].part,
        block=torch.cat(blocks),
        kind=torch.cat([e.kind + kind for e, kind in zip(several, kinds, strict=True)]),
        places=torch.cat([elements.places for elements in several]),
        partner=torch.cat([e.partner + start for e, start in zip(several, starts, strict=True)]),
        sizes=tuple(size for elements in several for size in elements.sizes),
    )


def _starts(sizes: Sequence[int]) -> list[int]:
    return np.cumsum([0, *sizes])[:-1].tolist()


# --- keeping them --------------------------------------------------------------------------------


class Examples(Sequence):
    """The examples of some samples, made when they are first asked for.

    Parameters
    ----------
    samples
        A data set, or any sequence of samples.
    make
        Function of a sample: its tensors, with their size in ``nbytes``.
    memory
        GiB for those that are kept; the ones used longest ago make room.

    Attributes
    ----------
    made
        How often an example had to be made.
    """

    def __init__(self, samples: Sequence, make: Callable, memory: float = 4.0):
        self.samples, self.memory, self.made = samples, memory, 0
        self._make = make
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._bytes = 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        self.made += 1
        example = self._make(self.samples[index])
        self._kept[index] = example
        self._bytes += example.nbytes
        while self._bytes > self.memory * 2**30:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return example


__all__ = ["PRESENT", "Example", "Examples", "joined"]
