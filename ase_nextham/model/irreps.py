"""Blocks of matrices <-> irreps of rotations and inversion, for the shells of any basis.

A block <i mu|O|j nu> of two shells l1, l2 is a tensor of rank l1 x l2 that turns with the crystal.
Here it is taken apart into irreps (l, parity), orthogonally: the sum of squares stays, and the
inverse is the transpose. For spinors, the four spin blocks are first combined to a scalar and an
axial vector (1/2 x 1/2 = 0 + 1), of which the latter is coupled with the orbital part.

:class:`PaddedBlocks` brings the blocks of a matrix, whose shapes depend on the species, to one
shape; :class:`BlockIrreps` turns these into irreps. Irreps are a dictionary from (l, parity) to
a tensor (n, 2l+1, channels), so that a linear layer is one matrix product per irrep. Components
are those of :mod:`.angular`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ase_nextham.basis import convention_matrix
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.model.angular import wigner_3j

Irrep = tuple[int, int]
"""Angular momentum and parity (1 or -1)."""

Irreps = dict[Irrep, Tensor]
"""For each irrep its channels, shape (n, 2l+1, channels)."""


# --- padding --------------------------------------------------------------------------------


def common_shells(shells: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The smallest set of shells, in order of l, in which those of every species find a place."""
    count: dict[int, int] = {}
    for ls in shells:
        for l in ls:
            count[l] = max(count.get(l, 0), list(ls).count(l))
    return tuple(l for l in sorted(count) for _ in range(count[l]))


def slots(shells: Sequence[int], padded: Sequence[int], species: str = "basis") -> ndarray:
    """Where the orbitals of one species stand among those of a larger set of shells.

    The first radial function of an l takes the first place of that l, and so on.

    Parameters
    ----------
    shells, padded
        Angular momentum of each shell, of the species and of the larger set.
    species
        Name of the species for the message.

    Returns
    -------
    ndarray
        Integer, shape (orbitals of the species,).

    Raises
    ------
    ValueError
        If the larger set has too few shells of some l.
    """
    first = np.cumsum([0, *(2 * l + 1 for l in padded)])
    places = []
    for l in shells:
        free = [k for k, other in enumerate(padded) if other == l and k not in places]
        if not free:
            raise ValueError(
                f"{species} has {list(shells).count(l)} shells of l = {l}, but there is place for "
                f"{list(padded).count(l)} only"
            )
        places.append(free[0])
    return np.concatenate([np.arange(first[k], first[k + 1]) for k in places])


class PaddedBlocks:
    """Where the elements of a matrix stand in blocks of one shape, zero where no orbital is.

    Parameters
    ----------
    matrix
        Its basis, species, pairs and spin count, not its numbers. Spinor blocks keep their index
        ``2 * orbital + spin``; collinear matrices are padded one spin at a time.
    shells
        Angular momentum of each shell of the padded blocks; if None, the smallest set in which
        those of all species find a place.

    Raises
    ------
    ValueError
        If a species has more shells of some l than ``shells``.

    Attributes
    ----------
    shape
        (npairs, rows, columns) of the padded blocks.
    where
        Position of each matrix element in the flattened padded blocks, shape (elements,).
    """

    def __init__(self, matrix: LCAOMatrix, shells: Sequence[int] | None = None):
        species = sorted(set(matrix.symbols))
        own = {name: matrix.basis.shells[name] for name in species}
        self.shells = common_shells(own.values()) if shells is None else tuple(shells)
        factor = 2 if matrix.spin == "spinor" else 1
        size = factor * sum(2 * l + 1 for l in self.shells)
        self.shape = (len(matrix.pairs), size, size)
        place = {}
        for name in species:
            orbital = slots(own[name], self.shells, name)
            place[name] = (factor * orbital[:, None] + np.arange(factor)).ravel()
        where = np.empty(matrix.offsets[-1], np.int64)
        for a, b, p, elements in matrix.block_groups():
            where[elements] = (p[:, None] * size + place[a])[:, :, None] * size + place[b]
        self.where = torch.from_numpy(where)

    def pad(self, data: Tensor) -> Tensor:
        """Blocks of :attr:`shape` from matrix elements, shape (elements,)."""
        blocks = data.new_zeros(int(np.prod(self.shape)))
        return blocks.index_copy(0, self.where.to(data.device), data).view(self.shape)

    def unpad(self, blocks: Tensor) -> Tensor:
        """Matrix elements, shape (elements,), from padded blocks; the reverse of :meth:`pad`."""
        return blocks.reshape(-1)[self.where.to(blocks.device)]


# --- irreps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Channel:
    """Where one channel of an irrep comes from.

    Parameters
    ----------
    row, column
        Index of the two shells.
    spin
        0 for spin scalars (and without spin), 1 for the axial vector.
    L
        Angular momentum of the orbital part, which a spin vector couples to l.
    time_reversal
        1 if time reversal leaves the channel as it is, -1 if it changes sign. Without magnetic
        order, only those with 1 occur: the real part of scalars, the imaginary part of vectors.
    """

    row: int
    column: int
    spin: int
    L: int
    time_reversal: int


class BlockIrreps:
    """The transform between padded blocks and irreps.

    Parameters
    ----------
    shells
        Angular momentum of each shell of the rows, in ascending order.
    spin
        ``"unpolarised"``: blocks are real, (n, N, N). ``"spinor"``: complex, (n, 2N, 2N) with
        the index ``2 * orbital + spin``.
    convention
        Order and sign of the orbitals in the blocks, of :data:`ase_nextham.basis.CONVENTIONS`.
    columns
        Shells of the columns, if not those of the rows.

    Attributes
    ----------
    channels
        :class:`Channel` of every channel, by irrep in ascending order of (l, parity).

    Notes
    -----
    ``c_LM = sqrt(2L+1) sum_ab 3j(L, l1, l2)_Mab B_ab``, and for the spin vector
    ``c_lm = sqrt(2l+1) sum_Mk 3j(l, L, 1)_mMk c_LM,k`` with k = y, z, x. Parity is (-1)^(l1+l2):
    the spin is an axial vector. Tensors may be on any device, of float32 or float64, and carry
    gradients.
    """

    def __init__(
        self,
        shells: Sequence[int],
        spin: str = "unpolarised",
        *,
        convention: str = "abacus",
        columns: Sequence[int] | None = None,
    ):
        if spin not in ("unpolarised", "spinor"):
            raise ValueError(
                f"blocks are transformed as 'unpolarised' or 'spinor', not as {spin!r}; "
                "transform the two channels of a collinear matrix one by one"
            )
        self.rows = tuple(shells)
        self.columns = self.rows if columns is None else tuple(columns)
        self.spin, self.convention = spin, convention
        for ls in (self.rows, self.columns):
            if list(ls) != sorted(ls) or not ls:
                raise ValueError(f"shells must be in ascending order of l, not {ls}")
        self._parts = 2 if spin == "spinor" else 1
        self._spins = (0, 1) if spin == "spinor" else (0,)
        self._couplings = {
            pair: _coupling_matrix(*pair, self._spins, convention)
            for pair in product(sorted(set(self.rows)), sorted(set(self.columns)))
        }
        self.channels: dict[Irrep, tuple[Channel, ...]] = self._channels()
        self._cache: dict = {}

    def _channels(self) -> dict[Irrep, tuple[Channel, ...]]:
        found: dict[Irrep, list[Channel]] = {}
        for l1, l2 in self._couplings:
            rows = [k for k, l in enumerate(self.rows) if l == l1]
            columns = [k for k, l in enumerate(self.columns) if l == l2]
            for l, terms in _coupled(l1, l2, self._spins).items():
                found.setdefault((l, (-1) ** (l1 + l2)), []).extend(
                    Channel(row, column, spin, L, 1 - 2 * part)
                    for part in range(self._parts)
                    for row in rows
                    for column in columns
                    for spin, L in terms
                )
        return {irrep: tuple(found[irrep]) for irrep in sorted(found)}

    @property
    def multiplicities(self) -> dict[Irrep, int]:
        """Number of channels of each irrep."""
        return {irrep: len(channels) for irrep, channels in self.channels.items()}

    def to_irreps(self, blocks: Tensor) -> Irreps:
        """Irreps of padded blocks, each (n, 2l+1, channels)."""
        size = len(self._spins) * sum(2 * l + 1 for l in self.rows)
        width = len(self._spins) * sum(2 * l + 1 for l in self.columns)
        if blocks.shape[1:] != (size, width):
            raise ValueError(
                f"{self.spin} blocks of shells {self.rows} and {self.columns} have shape "
                f"(n, {size}, {width}), not {tuple(blocks.shape)}"
            )
        n = len(blocks)
        if self.spin == "spinor":
            if not blocks.is_complex():
                blocks = torch.complex(blocks, torch.zeros_like(blocks))
            x = torch.view_as_real(blocks).view(n, size // 2, 2, width // 2, 2, 2)
            x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, size // 2, width // 2, 8)
            x = (x @ self._tensor("spin", x)).view(n, size // 2, width // 2, 2, 4)
        elif blocks.is_complex():
            raise ValueError("blocks without spin must be real")
        else:
            x = blocks.reshape(n, size, width, 1, 1)
        pieces: dict[Irrep, list[Tensor]] = {irrep: [] for irrep in self.channels}
        for (l1, l2), (rows, columns) in self._places().items():
            q = x.shape[-1]
            y = x[:, rows, columns].unflatten(2, (-1, 2 * l2 + 1)).unflatten(1, (-1, 2 * l1 + 1))
            y = y.permute(0, 5, 1, 3, 6, 2, 4)  # n, part, row, column, q, a, b
            y = y.reshape(*y.shape[:4], q * (2 * l1 + 1) * (2 * l2 + 1))
            y = y @ self._tensor((l1, l2), x)
            start = 0
            for l, terms in _coupled(l1, l2, self._spins).items():
                stop = start + (2 * l + 1) * len(terms)
                z = y[..., start:stop].unflatten(-1, (2 * l + 1, len(terms)))
                z = z.permute(0, 4, 1, 2, 3, 5).reshape(n, 2 * l + 1, -1)
                pieces[l, (-1) ** (l1 + l2)].append(z)
                start = stop
        return {irrep: torch.cat(some, dim=2) for irrep, some in pieces.items()}

    def to_blocks(self, irreps: Irreps) -> Tensor:
        """Padded blocks of irreps; the inverse and the transpose of :meth:`to_irreps`."""
        first = next(iter(irreps.values()))
        n, parts, q = len(first), self._parts, self._parts**2
        sizes = [sum(2 * l + 1 for l in ls) for ls in (self.rows, self.columns)]
        x = first.new_zeros(n, *sizes, parts, q)
        used = dict.fromkeys(irreps, 0)
        for (l1, l2), (rows, columns) in self._places().items():
            counts = (parts, self.rows.count(l1), self.columns.count(l2))
            pieces = []
            for l, terms in _coupled(l1, l2, self._spins).items():
                irrep = (l, (-1) ** (l1 + l2))
                stop = used[irrep] + counts[0] * counts[1] * counts[2] * len(terms)
                z = irreps[irrep][:, :, used[irrep] : stop].unflatten(2, (*counts, len(terms)))
                pieces.append(z.permute(0, 2, 3, 4, 1, 5).flatten(4))
                used[irrep] = stop
            y = torch.cat(pieces, dim=-1) @ self._tensor((l1, l2), x).T
            y = y.unflatten(-1, (q, 2 * l1 + 1, 2 * l2 + 1)).permute(0, 2, 5, 3, 6, 1, 4)
            x[:, rows, columns] = y.flatten(3, 4).flatten(1, 2)
        if self.spin != "spinor":
            return x.view(n, *sizes)
        x = (x.flatten(3) @ self._tensor("spin", x).T).view(n, *sizes, 2, 2, 2)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous()
        return torch.view_as_complex(x).view(n, 2 * sizes[0], 2 * sizes[1])

    def _places(self) -> dict[tuple[int, int], tuple[slice, slice]]:
        """Rows and columns of all shells of two angular momenta."""

        def place(shells, l):
            before = sum(2 * other + 1 for other in shells if other < l)
            return slice(before, before + (2 * l + 1) * shells.count(l))

        return {
            (l1, l2): (place(self.rows, l1), place(self.columns, l2)) for l1, l2 in self._couplings
        }

    def _tensor(self, name, like: Tensor) -> Tensor:
        """A table as a tensor of the type and on the device of another."""
        key = (name, like.dtype, like.device)
        if key not in self._cache:
            table = _SPIN if name == "spin" else self._couplings[name]
            with torch.inference_mode(False):  # kept tensors must serve training, too
                self._cache[key] = torch.tensor(table, dtype=like.dtype, device=like.device)
        return self._cache[key]


def _coupled(l1: int, l2: int, spins: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """For each total l that two shells give, the (spin, L) it comes from."""
    terms: dict[int, list[tuple[int, int]]] = {}
    for spin in spins:
        for L in range(abs(l1 - l2), l1 + l2 + 1):
            for l in range(abs(L - spin), L + spin + 1):
                terms.setdefault(l, []).append((spin, L))
    return dict(sorted(terms.items()))


def _coupling_matrix(l1: int, l2: int, spins: Sequence[int], convention: str) -> ndarray:
    """Orthogonal matrix from (q, a, b) to all (l, m, terms) of :func:`_coupled`.

    q is the spin component (scalar, y, z, x); a and b count the orbitals of the two shells.
    """
    change1, change2 = convention_matrix(l1, convention), convention_matrix(l2, convention)
    orbital = {
        L: np.einsum("Mxy,ax,by->Mab", sqrt(2 * L + 1) * wigner_3j(L, l1, l2), change1, change2)
        for L in range(abs(l1 - l2), l1 + l2 + 1)
    }
    columns = []
    for l, terms in _coupled(l1, l2, spins).items():
        matrix = np.zeros((4 if 1 in spins else 1, 2 * l1 + 1, 2 * l2 + 1, 2 * l + 1, len(terms)))
        for t, (spin, L) in enumerate(terms):
            if spin == 0:
                matrix[0, ..., t] = np.moveaxis(orbital[L], 0, -1)
            else:
                coupling = sqrt(2 * l + 1) * wigner_3j(l, L, 1)
                matrix[1:, ..., t] = np.einsum("mMk,Mab->kabm", coupling, orbital[L])
        columns.append(matrix.reshape(-1, (2 * l + 1) * len(terms)))
    return np.concatenate(columns, axis=1)


def _spin_matrix() -> ndarray:
    """Orthogonal matrix from (spin of the row, spin of the column, re/im) to (part, q).

    ``M = (h_0 + h_y sigma_y + h_z sigma_z + h_x sigma_x) / sqrt(2)``. Part 0 is what time
    reversal leaves alone, the real part of h_0 and the imaginary part of the vector h; part 1
    is the rest.
    """
    pauli = np.array([[[1, 0], [0, 1]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]], [[0, 1], [1, 0]]])
    adjoint = pauli.conj() / sqrt(2)
    matrix = np.zeros((2, 2, 2, 2, 4))
    for q in range(4):
        real, imaginary = (0, 1) if q == 0 else (1, 0)
        # re, im of h = conj(A) M from re, im of M
        matrix[..., 0, real, q] = matrix[..., 1, imaginary, q] = adjoint[q].real
        matrix[..., 0, imaginary, q] = adjoint[q].imag
        matrix[..., 1, real, q] = -adjoint[q].imag
    return matrix.reshape(8, 8)


_SPIN = _spin_matrix()
