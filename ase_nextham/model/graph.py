"""Structures as tensors: the atoms, all pairs within a cutoff, and the blocks of H(0) on them.

Here, and only here, NumPy becomes torch. A :class:`Graph` holds one structure or several; matrix
elements stay in the flat order of :class:`~ase_nextham.matrix.LCAOMatrix` (one structure after
another) until the blocks of some pairs are asked for, so that memory is that of the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from ase.neighborlist import neighbor_list
from numpy import ndarray
from torch import Tensor

from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.model.irreps import slots
from ase_nextham.model.parts import part_elements


@dataclass(frozen=True, eq=False)
class Elements:
    """Where the matrix elements of one part of a Hamiltonian stand.

    Parameters
    ----------
    part
        Which part, of :data:`ase_nextham.model.parts.PARTS`.
    block
        First element of each pair's block, -1 where the matrices have none, shape (npairs,).
    kind
        Row of ``places`` for each pair, shape (npairs,).
    places
        Where the elements of a padded block stand in a block, -1 for orbitals that do not exist,
        shape (nkinds, rows, columns); rows and columns are doubled for spinors.
    partner
        For each element that of its Hermitian conjugate, shape (size,).
    sizes
        Number of elements of each structure; they add up to ``size``.
    """

    part: str
    block: Tensor
    kind: Tensor
    places: Tensor
    partner: Tensor
    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(size,), or (2, size) if collinear."""
        return (2, sum(self.sizes)) if self.part == "collinear" else (sum(self.sizes),)

    def _positions(self, pairs: Tensor) -> Tensor:
        """Where the elements of padded blocks stand; ``size`` for those that stand nowhere."""
        inside = self.places[self.kind[pairs]]
        first = self.block[pairs][:, None, None]
        return torch.where((inside < 0) | (first < 0), sum(self.sizes), first + inside)

    def blocks(self, elements: Tensor, pairs: Tensor) -> Tensor:
        """Padded blocks of some pairs, zero where there are no elements.

        Parameters
        ----------
        elements
            Of :attr:`shape`.
        pairs
            Indices, shape (n,).

        Returns
        -------
        Tensor
            Shape (n, rows, columns), or (n, 2, rows, columns) if collinear.
        """
        positions = self._positions(pairs)
        nowhere = positions == sum(self.sizes)
        blocks = elements[..., positions.masked_fill(nowhere, 0)].masked_fill(nowhere, 0)
        return blocks if elements.dim() == 1 else blocks.movedim(0, 1)

    def zeros(self, like: Tensor) -> Tensor:
        """Elements for :meth:`put`, of the type and on the device of another tensor."""
        *leading, size = self.shape
        # one place more, for what belongs to orbitals that do not exist
        return like.new_zeros(*leading, size + 1)

    def put(self, elements: Tensor, pairs: Tensor, blocks: Tensor) -> None:
        """Write padded blocks of some pairs into what :meth:`zeros` returned."""
        positions = self._positions(pairs).flatten()
        if elements.dim() == 2:
            blocks = blocks.movedim(1, 0)
        elements.index_copy_(-1, positions, blocks.flatten(-3))

    def hermitian(self, elements: Tensor) -> Tensor:
        """The Hermitian part: the mean of each block and the adjoint of that of (j, i, -R)."""
        partner = elements[..., self.partner]
        return (elements + (partner.conj() if elements.is_complex() else partner)) / 2

    def split(self, elements: Tensor) -> list[ndarray]:
        """Elements of each structure, as NumPy arrays of double precision."""
        elements = elements.detach().cpu()
        elements = elements.to(torch.complex128 if elements.is_complex() else torch.float64)
        return [piece.numpy() for piece in elements.split(list(self.sizes), dim=-1)]


@dataclass(frozen=True, eq=False)
class Graph:
    """Atoms and pairs of one structure or several, as tensors on one device.

    Pairs are all ordered pairs of atoms closer than the cutoff, those of an atom with itself
    included. They are sorted by (i, j, R) as in :class:`~ase_nextham.matrix.AtomPairs`.

    Parameters
    ----------
    numbers
        Atomic number of each atom, shape (natoms,).
    structure
        To which structure each atom belongs, shape (natoms,).
    i, j
        Atoms of each pair, counted through all structures, shape (npairs,).
    R
        Lattice vectors, integer, shape (npairs, 3).
    vectors
        From i to j, in Angstrom, float64, shape (npairs, 3); exactly zero on site.
    distance
        Their lengths, shape (npairs,).
    reverse
        Index of (j, i, -R), shape (npairs,).
    reach
        Sum of the radii of the orbitals of i and j in Angstrom, infinite where not known, shape
        (npairs,).
    reads, corrects
        Where elements stand in the part of H(0) that is read and in that of H that is corrected.
    h0
        Elements of H(0), of ``reads.shape``; zero where data had no H(0).
    """

    numbers: Tensor
    structure: Tensor
    i: Tensor
    j: Tensor
    R: Tensor
    vectors: Tensor
    distance: Tensor
    reverse: Tensor
    reach: Tensor
    reads: Elements
    corrects: Elements
    h0: Tensor

    @classmethod
    def of(
        cls,
        several: Sequence[LCAOData],
        shells: Sequence[int],
        cutoff: float,
        *,
        reads: str = "scalar",
        corrects: str = "scalar",
    ) -> Graph:
        """The graph of one structure or several.

        Parameters
        ----------
        several
            Structures with H(0). Without it, its elements are zero.
        shells
            Angular momentum of each shell of a padded block.
        cutoff
            In Angstrom.
        reads, corrects
            Parts of H(0) and of H.

        Raises
        ------
        ValueError
            If a species has more shells of some l than ``shells``, if matrices are not in the
            convention of ABACUS, or if H(0) lacks the part that is to be read.
        """
        if not several:
            raise ValueError("a graph needs at least one structure")
        for data in several:
            if data.basis.convention != "abacus":
                raise ValueError(
                    f"the network reads matrices in the convention 'abacus', not "
                    f"{data.basis.convention!r}; use LCAOMatrix.in_convention"
                )
        near = [_near(data, cutoff) for data in several]
        elements = {part: _elements(several, near, shells, part) for part in {reads, corrects}}
        atoms = np.cumsum([0, *(len(data.atoms) for data in several)])
        pairs = np.cumsum([0, *(len(some) for some in near)])
        h0 = [
            part_elements(data.h0, reads)
            if data.h0 is not None
            else np.zeros_like(part_elements(data.overlap, reads))
            for data in several
        ]
        vectors = _joined([_vectors(d, p) for d, p in zip(several, near, strict=True)])
        return cls(
            numbers=_joined([data.atoms.numbers.astype(np.int64) for data in several]),
            structure=_joined([np.full(len(data.atoms), k) for k, data in enumerate(several)]),
            i=_joined([some.i + first for some, first in zip(near, atoms[:-1], strict=True)]),
            j=_joined([some.j + first for some, first in zip(near, atoms[:-1], strict=True)]),
            R=_joined([some.R for some in near]),
            vectors=vectors,
            distance=torch.linalg.vector_norm(vectors, dim=1),
            reverse=_joined(
                [some.reverse + first for some, first in zip(near, pairs[:-1], strict=True)]
            ),
            reach=_joined([_reach(d, p) for d, p in zip(several, near, strict=True)]),
            reads=elements[reads],
            corrects=elements[corrects],
            h0=torch.from_numpy(np.concatenate(h0, axis=-1)),
        )

    def __len__(self):
        return len(self.i)

    def to(self, device) -> Graph:
        """The same graph on a device."""
        reads = _moved(self.reads, device)
        corrects = reads if self.corrects is self.reads else _moved(self.corrects, device)
        return replace(_moved(self, device), reads=reads, corrects=corrects)

    @property
    def onsite(self) -> Tensor:
        """The pair of each atom with itself, shape (natoms,)."""
        return torch.nonzero((self.i == self.j) & (self.R == 0).all(dim=1)).flatten()

    @property
    def bonds(self) -> Tensor:
        """All other pairs, in ascending order."""
        return torch.nonzero((self.i != self.j) | (self.R != 0).any(dim=1)).flatten()


def _moved(tensors, device):
    values = {f.name: getattr(tensors, f.name) for f in fields(tensors)}
    return replace(tensors, **{k: v.to(device) for k, v in values.items() if torch.is_tensor(v)})


def _joined(arrays: Sequence[ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _near(data: LCAOData, cutoff: float) -> AtomPairs:
    """All pairs within the cutoff, and each atom with itself."""
    i, j, R = neighbor_list("ijS", data.atoms, cutoff)
    own = np.arange(len(data.atoms))
    here = np.zeros((len(own), 3), int)
    pairs, _ = AtomPairs.sort(np.append(i, own), np.append(j, own), np.concatenate([R, here]))
    return pairs


def _vectors(data: LCAOData, pairs: AtomPairs) -> ndarray:
    positions, cell = data.atoms.positions, data.atoms.cell.array
    vectors = positions[pairs.j] - positions[pairs.i] + pairs.R @ cell
    # rounding must not tell a pair from its reverse
    return (vectors - vectors[pairs.reverse]) / 2


def _reach(data: LCAOData, pairs: AtomPairs) -> ndarray:
    radius = np.array([data.basis.radius.get(name, np.inf) for name in data.symbols])
    return radius[pairs.i] + radius[pairs.j]


def _elements(
    several: Sequence[LCAOData], near: Sequence[AtomPairs], shells: Sequence[int], part: str
) -> Elements:
    species: dict[tuple[str, tuple[int, ...]], int] = {}
    for data in several:  # an element may have other orbitals in another structure
        for name in data.symbols:
            species.setdefault((name, data.basis.shells[name]), len(species))
    blocks, kinds, partners, sizes = [], [], [], []
    for data, pairs in zip(several, near, strict=True):
        like = data.overlap.with_spin("spinor") if part == "spinor" else data.overlap
        kind = np.array([species[name, data.basis.shells[name]] for name in data.symbols])
        where = like.pairs.find(pairs.i, pairs.j, pairs.R)
        blocks.append(np.where(where < 0, -1, like.offsets[where] + sum(sizes)))
        kinds.append(kind[pairs.i] * len(species) + kind[pairs.j])
        partners.append(_partners(like) + sum(sizes))
        sizes.append(int(like.offsets[-1]))
    return Elements(
        part=part,
        block=_joined(blocks),
        kind=_joined(kinds),
        places=torch.from_numpy(_places(list(species), shells, 2 if part == "spinor" else 1)),
        partner=_joined(partners),
        sizes=tuple(sizes),
    )


def _places(
    species: Sequence[tuple[str, tuple[int, ...]]], shells: Sequence[int], factor: int
) -> ndarray:
    """Where the elements of padded blocks stand in blocks, for each two species."""
    size = factor * sum(2 * l + 1 for l in shells)
    orbitals = []
    for name, own in species:
        orbital = slots(own, shells, name)
        orbitals.append((factor * orbital[:, None] + np.arange(factor)).ravel())
    places = np.full((len(species), len(species), size, size), -1, np.int64)
    for a, rows in enumerate(orbitals):
        for b, columns in enumerate(orbitals):
            inside = np.arange(len(rows) * len(columns)).reshape(len(rows), len(columns))
            places[a, b][np.ix_(rows, columns)] = inside
    return places.reshape(-1, size, size)


def _partners(matrix: LCAOMatrix) -> ndarray:
    partner = np.empty(matrix.offsets[-1], np.int64)
    for _, _, p, elements in matrix.block_groups():
        partner[elements] = matrix.partner_elements(p, elements)
    return partner
