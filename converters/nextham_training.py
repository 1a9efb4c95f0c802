"""The items of training and inference samples, from data of this package."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray

from ase_nextham import bands
from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.units import RYDBERG

from .nextham_layout import PLACES, SIZE, blocks_of_matrix, flat_order, rows_by_species
from .nextham_sample import CUTOFF, PRECISE, ROUNDED

_WINDOW = 10.0  # eV above the Fermi level: bands below are told apart from those above
_CHUNK = 256  # edges whose irreps are made at once


class Edges:
    """All pairs of atoms closer than 8 Angstrom at the lattice vectors of some pairs.

    Ordered as NextHAM's programs do, by R and then by atoms; an atom with itself comes first.

    Attributes
    ----------
    i, j, R, vectors
        Shapes (n,), (n,), (n, 3), and (n, 3) in Angstrom.
    of_pair
        Edge of each pair of the data, -1 for those beyond 8 Angstrom.
    """

    def __init__(self, data: LCAOData):
        pairs, positions = data.pairs, data.atoms.positions
        found = []
        for R in np.unique(pairs.R, axis=0):
            apart = positions[None] - positions[:, None] + R @ data.atoms.cell.array
            i, j = np.nonzero(np.linalg.norm(apart, axis=2) < CUTOFF)
            found.append((i, j, np.broadcast_to(R, (len(i), 3)), apart[i, j]))
        self.i, self.j, self.R, self.vectors = (np.concatenate(x) for x in zip(*found, strict=True))
        where = pairs.find(self.i, self.j, self.R)
        self.of_pair = np.full(len(pairs), -1)
        self.of_pair[where[where >= 0]] = np.flatnonzero(where >= 0)

    def __len__(self):
        return len(self.i)


def training_items(path: str | os.PathLike, data: LCAOData, kpts: Sequence[int]) -> list:
    """The 22 items of a training sample, arrays for tensors."""
    edges = Edges(data)
    _warn_of_lost(path, data, edges)
    scale = PRECISE / RYDBERG
    h0 = blocks_of_matrix(scale * _spinor(data.h0), edges.of_pair, len(edges))
    change = scale * (_spinor(data.hamiltonian) - _spinor(data.h0))
    change = blocks_of_matrix(change, edges.of_pair, len(edges))
    overlap = blocks_of_matrix(_spinor(data.overlap), edges.of_pair, len(edges))
    mask = _mask(data, edges)
    return [
        str(path),
        data.atoms.cell.array.astype("f4"),
        data.atoms.positions.astype("f4"),
        2 * data.overlap.dimension,
        *_wave_functions(path, data, kpts),
        irreps(h0),
        *(blocks.reshape(-1, SIZE * SIZE)[:, flat_order()] for blocks in (h0, overlap, mask)),
        *_edge_items(data, edges),
        Path(path).name.removesuffix(".pth"),
        change.reshape(-1, SIZE * SIZE)[:, flat_order()],
        h0,
        overlap,
        mask,
        change,
    ]


def inference_items(path: str | os.PathLike, data: LCAOData) -> list:
    """The 8 items of an inference sample, arrays for tensors."""
    edges = Edges(data)
    _warn_of_lost(path, data, edges)
    h0 = blocks_of_matrix((ROUNDED / RYDBERG) * _spinor(data.h0), edges.of_pair, len(edges))
    return [str(path), irreps(h0), *_edge_items(data, edges), h0, _mask(data, edges)]


def _spinor(matrix: LCAOMatrix) -> LCAOMatrix:
    return matrix.with_spin("spinor")


def _edge_items(data: LCAOData, edges: Edges) -> list:
    symbols = data.atoms.get_chemical_symbols()
    named = [(symbols[i], symbols[j]) for i, j in zip(edges.i, edges.j, strict=True)]
    return [edges.vectors.astype("f4"), edges.i, edges.j, named]


def _mask(data: LCAOData, edges: Edges) -> ndarray:
    taken = np.zeros((len(data.atoms), SIZE), "f4")
    rows = rows_by_species(data.basis)
    for atom, name in enumerate(data.symbols):
        taken[atom, rows[name].place] = 1
    return taken[edges.i][:, :, None] * taken[edges.j][:, None, :]


def irreps(blocks: ndarray) -> ndarray:
    """The 5832 numbers of each block that the released networks take, shape (n, 5832).

    Parameters
    ----------
    blocks
        Shape (n, 54, 54), as they stand in samples.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    """
    import torch

    from ase_nextham.model.released_layout import vector_of_blocks

    spins = blocks.reshape(-1, 2, PLACES, 2, PLACES).transpose(0, 2, 1, 4, 3)
    portions = np.array_split(spins, max(1, math.ceil(len(blocks) / _CHUNK)))
    return np.concatenate(
        [
            vector_of_blocks(torch.from_numpy(part.reshape(-1, SIZE, SIZE)), "openmx").numpy()
            for part in portions
        ]
    )


def _wave_functions(path: str | os.PathLike, data: LCAOData, size: Sequence[int]) -> list:
    """Number of the band to cut at, k-points, and coefficients of all bands at them.

    The mesh stands off Gamma by half a step; the released programs move theirs by a random vector.
    """
    steps = [(np.arange(n) + 0.5) / n for n in size]
    kpts = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    hamiltonian = _spinor(data.hamiltonian)
    eps, coefficients = bands.eigenstates(hamiltonian, data.overlap, kpts)
    level = data.fermi_level
    if level is None:
        if data.nelectrons is None:
            raise ValueError(
                f"{path}: a training sample has a number of bands up to 10 eV above the Fermi "
                "level, but neither this nor the number of electrons is known"
            )
        level = bands.fermi_level(eps, np.full(len(kpts), 1 / len(kpts)), data.nelectrons)
    at_gamma = bands.eigenvalues(hamiltonian, data.overlap, np.zeros((1, 3)))[0, 0]
    above = np.flatnonzero(~(at_gamma < level + _WINDOW))
    cut = (above[0] if len(above) else len(at_gamma)) - 1  # one less than there are, as theirs
    rows, first = rows_by_species(data.basis), hamiltonian.first_orbital
    vectors = coefficients[0].transpose(0, 2, 1).reshape(-1, hamiltonian.dimension)
    placed = np.zeros((len(vectors), SIZE * len(data.symbols)), "c8")
    for atom, name in enumerate(data.symbols):
        columns = SIZE * atom + rows[name].place
        placed[:, columns] = vectors[:, first[atom] : first[atom + 1]] * rows[name].sign
    cut = min(max(int(cut), 1), len(at_gamma) - 1)
    return [np.array(cut), np.array(len(kpts)), kpts, placed]


def _warn_of_lost(path: str | os.PathLike, data: LCAOData, edges: Edges) -> None:
    lost = edges.of_pair < 0
    for name in ("h0", "hamiltonian"):
        matrix = getattr(data, name)
        if matrix is None or not lost.any():
            continue
        sizes = np.diff(matrix.offsets)
        largest = np.abs(matrix.data[..., np.repeat(lost, sizes)]).max(initial=0)
        if largest:
            warnings.warn(
                f"{path}: {int(lost.sum())} pairs of atoms are 8 Angstrom or more apart and have "
                f"no place in samples of NextHAM; their elements of {name}, up to "
                f"{largest:.2g} eV, are left out",
                stacklevel=5,
            )
            return
