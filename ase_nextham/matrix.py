"""Operators in a basis of atomic orbitals: the one data type that every part reads or returns.

``<i mu 0| O |j nu R>`` is a block for each pair of atom i in the home cell and atom j in cell R,
an integer vector that is kept from the first reader to the last writer. :class:`AtomPairs` says
which blocks there are, :class:`LCAOMatrix` holds the numbers of one operator.
:mod:`ase_nextham.data` puts the operators of one structure together.

Bloch sums are ``O(k) = sum_R exp(+2 pi i k.R) O(R)`` with k in units of the reciprocal vectors
(the "lattice gauge"). Energies are in eV, lengths in Angstrom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Number

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_array

from ase_nextham.basis import Basis

SPINS = ("unpolarised", "collinear", "spinor")
"""One matrix for both spins; one for each spin; one with the index ``2 * orbital + spin``."""


def _frozen(array, dtype=None) -> ndarray:
    array = np.array(array, dtype=dtype, order="C", copy=None)
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class AtomPairs:
    """Which blocks a matrix has: the sparsity pattern that S, H(0), dH and H share.

    Atom ``j`` of pair ``p`` sits at ``positions[j[p]] + R[p] @ cell``. Pairs are unique, sorted
    by (i, j, R), and complete: with (i, j, R) there is (j, i, -R). Build them with
    :meth:`sort` or :meth:`union` unless they are sorted already.

    Parameters
    ----------
    i, j
        Atom indices, shape (npairs,).
    R
        Lattice vectors in units of the cell vectors, integer, shape (npairs, 3).
    """

    i: ndarray
    j: ndarray
    R: ndarray

    def __post_init__(self):
        for name in "ijR":
            value = np.asarray(getattr(self, name))
            if value.size and not np.issubdtype(value.dtype, np.integer):
                raise TypeError(f"AtomPairs.{name} must be integers, not {value.dtype}")
            object.__setattr__(self, name, _frozen(value, np.int64))
        n = len(self.i)
        if self.i.shape != (n,) or self.j.shape != (n,) or self.R.shape != (n, 3):
            raise ValueError(
                f"AtomPairs needs i (n,), j (n,), R (n, 3); got {self.i.shape}, {self.j.shape}, "
                f"{self.R.shape}"
            )
        if n and min(self.i.min(), self.j.min()) < 0:
            raise ValueError("AtomPairs: atom indices must not be negative")
        step = np.diff(self._keys)
        if (step <= 0).any():
            p = int(np.argmax(step <= 0))
            raise ValueError(
                f"AtomPairs must be sorted by (i, j, R) without repeats, which {self.name(p)} and "
                f"{self.name(p + 1)} are not; use AtomPairs.sort"
            )
        missing = self.reverse < 0
        if missing.any():
            p = int(np.argmax(missing))
            raise ValueError(
                f"pair {self.name(p)} has no partner (j, i, -R); every operator needs both, "
                "because <i 0|O|j R> and <j 0|O|i -R> belong together"
            )

    @classmethod
    def sort(cls, i, j, R) -> tuple[AtomPairs, ndarray]:
        """Pairs in canonical order, and the position of each of them among the arguments."""
        i, j, R = np.asarray(i), np.asarray(j), np.asarray(R).reshape(-1, 3)
        order = np.lexsort((R[:, 2], R[:, 1], R[:, 0], j, i))
        return cls(i[order], j[order], R[order]), order

    @classmethod
    def union(cls, *several: AtomPairs) -> AtomPairs:
        """The pairs that any of several patterns has."""
        first = several[0]
        if all(pairs.same_as(first) for pairs in several[1:]):
            return first
        rows = np.concatenate([pairs._rows for pairs in several])
        _, where = np.unique(_encode(rows, _bounds(rows)), return_index=True)
        rows = rows[where]
        return cls(rows[:, 0], rows[:, 1], rows[:, 2:])

    def __len__(self):
        return len(self.i)

    def __repr__(self):
        return f"AtomPairs({len(self)} pairs)"

    def name(self, p: int) -> str:
        """Pair ``p`` in words, for messages: atoms are counted from 0."""
        x, y, z = self.R[p]
        return f"(i={self.i[p]}, j={self.j[p]}, R={x},{y},{z})"

    def same_as(self, other: AtomPairs) -> bool:
        """Whether two patterns are equal."""
        return self is other or (
            len(self) == len(other)
            and np.array_equal(self.i, other.i)
            and np.array_equal(self.j, other.j)
            and np.array_equal(self.R, other.R)
        )

    def find(self, i, j, R) -> ndarray:
        """Index of each pair asked for, -1 where there is none; shape of ``i``."""
        rows = np.column_stack([np.atleast_1d(i), np.atleast_1d(j), np.reshape(R, (-1, 3))])
        inside = ((rows >= self._bounds[0]) & (rows <= self._bounds[1])).all(axis=1)
        keys = _encode(np.where(inside[:, None], rows, self._bounds[0]), self._bounds)
        where = np.searchsorted(self._keys, keys).clip(max=max(len(self) - 1, 0))
        if not len(self):
            return np.full(len(rows), -1)
        return np.where(inside & (self._keys[where] == keys), where, -1)

    @cached_property
    def reverse(self) -> ndarray:
        """Index of (j, i, -R) for each pair, shape (npairs,)."""
        return _frozen(self.find(self.j, self.i, -self.R))

    @cached_property
    def groups(self) -> ndarray:
        """First pair of every run with the same (i, j), and the end; shape (ngroups + 1,)."""
        change = (np.diff(self.i) != 0) | (np.diff(self.j) != 0)
        return _frozen(np.concatenate([[0], np.flatnonzero(change) + 1, [len(self)]]))

    @cached_property
    def _rows(self) -> ndarray:
        return np.column_stack([self.i, self.j, self.R])

    @cached_property
    def _bounds(self) -> tuple[ndarray, ndarray]:
        return _bounds(self._rows)

    @cached_property
    def _keys(self) -> ndarray:
        return _encode(self._rows, self._bounds)


def _bounds(rows: ndarray) -> tuple[ndarray, ndarray]:
    if not len(rows):
        return np.zeros(5, int), np.zeros(5, int)
    low, high = rows.min(axis=0), rows.max(axis=0)
    # symmetric in R and common to i and j, so that the reverse of a pair is inside, too
    low[:2], high[:2] = low[:2].min(), high[:2].max()
    reach = np.maximum(-low[2:], high[2:])
    low[2:], high[2:] = -reach, reach
    if np.prod((high - low + 1).astype(float)) > 2.0**62:
        raise ValueError(f"lattice vectors R up to {reach.tolist()} are not a crystal's")
    return low, high


def _encode(rows: ndarray, bounds: tuple[ndarray, ndarray]) -> ndarray:
    """One integer a row that sorts as the row does."""
    low, high = bounds
    key = np.zeros(len(rows), np.int64)
    for column in range(5):
        key = key * (high[column] - low[column] + 1) + (rows[:, column] - low[column])
    return key


@dataclass(frozen=True, eq=False)
class LCAOMatrix:
    """An operator in atomic orbitals, ``<i mu 0| O |j nu R>``, sparse in pairs of atoms.

    Parameters
    ----------
    basis
        The orbitals of each species.
    symbols
        Species of each atom: the keys of ``basis.shells``.
    pairs
        Which blocks there are.
    spin
        ``"unpolarised"``: one matrix, the same for both spins. ``"collinear"``: spin up and down.
        ``"spinor"``: blocks of twice the size with the index ``2 * orbital + spin``.
    data
        The blocks one after another in the order of ``pairs``, each row-major; real or complex;
        shape (size,), or (2, size) when collinear.
    """

    basis: Basis
    symbols: tuple[str, ...]
    pairs: AtomPairs
    spin: str
    data: ndarray

    def __post_init__(self):
        object.__setattr__(self, "symbols", tuple(self.symbols))
        if self.spin not in SPINS:
            raise ValueError(f"unknown spin {self.spin!r}; known: {', '.join(SPINS)}")
        data = np.asarray(self.data)
        if data.dtype not in (np.float64, np.complex128):
            data = data.astype(complex if np.iscomplexobj(data) else float)
        object.__setattr__(self, "data", _frozen(data))
        if len(self.pairs) and self.pairs.i.max() >= len(self.symbols):
            raise ValueError(
                f"pairs name atom {self.pairs.i.max()}, but there are {len(self.symbols)} atoms"
            )
        shape = (2, self.offsets[-1]) if self.spin == "collinear" else (self.offsets[-1],)
        if data.shape != shape:
            raise ValueError(
                f"matrix data has shape {data.shape}, but {len(self.pairs)} pairs of "
                f"{self.basis} ({self.spin}) need {shape}"
            )

    def __repr__(self):
        kind = "complex" if np.iscomplexobj(self.data) else "real"
        return (
            f"LCAOMatrix({self.spin}, {kind}, dimension {self.dimension}, "
            f"{len(self.symbols)} atoms, {len(self.pairs)} pairs)"
        )

    # --- sizes -----------------------------------------------------------------------------

    @cached_property
    def norbitals(self) -> ndarray:
        """Rows that each atom has, the spinor index included; shape (natoms,)."""
        factor = 2 if self.spin == "spinor" else 1
        size = {name: factor * self.basis.norbitals(name) for name in set(self.symbols)}
        return _frozen([size[name] for name in self.symbols], np.int64)

    @cached_property
    def first_orbital(self) -> ndarray:
        """First row of each atom in O(k), and the dimension at the end; shape (natoms + 1,)."""
        return _frozen(np.concatenate([[0], np.cumsum(self.norbitals)]))

    @property
    def dimension(self) -> int:
        """Rows of O(k): orbitals, times 2 for spinors."""
        return int(self.first_orbital[-1])

    @cached_property
    def offsets(self) -> ndarray:
        """Where each block begins in ``data``, and the end; shape (npairs + 1,)."""
        sizes = self.norbitals[self.pairs.i] * self.norbitals[self.pairs.j]
        return _frozen(np.concatenate([[0], np.cumsum(sizes)]))

    # --- blocks ----------------------------------------------------------------------------

    def block(self, i: int, j: int, R: Sequence[int]) -> ndarray:
        """The block <i 0|O|j R>, shape (norbitals_i, norbitals_j), with a leading 2 if collinear.

        Raises
        ------
        KeyError
            If there is no such pair, hence no such matrix elements.
        """
        p = int(self.pairs.find(i, j, R)[0])
        if p < 0:
            raise KeyError(f"no pair (i={i}, j={j}, R={tuple(R)}): the operator is zero there")
        shape = (self.norbitals[i], self.norbitals[j])
        block = self.data[..., self.offsets[p] : self.offsets[p + 1]]
        return block.reshape(block.shape[:-1] + shape)

    def block_groups(self) -> Iterator[tuple[str, str, ndarray, ndarray]]:
        """All blocks, those of the same two species together.

        Yields
        ------
        (species_i, species_j, p, elements)
            ``p`` (n,) are the pairs, ``elements`` (n, norbitals_i, norbitals_j) the positions of
            their elements in ``data``.
        """
        species = sorted(set(self.symbols))
        kind = np.array([species.index(name) for name in self.symbols], int)
        kind_i, kind_j = kind[self.pairs.i], kind[self.pairs.j]
        for a, name_a in enumerate(species):
            for b, name_b in enumerate(species):
                p = np.flatnonzero((kind_i == a) & (kind_j == b))
                if len(p):
                    rows = self.norbitals[self.pairs.i[p[0]]]
                    columns = self.norbitals[self.pairs.j[p[0]]]
                    inside = np.arange(rows * columns).reshape(rows, columns)
                    yield name_a, name_b, p, self.offsets[p][:, None, None] + inside

    # --- sums over R -----------------------------------------------------------------------

    def at_k(self, kpts) -> ndarray:
        """Dense O(k) = sum_R exp(2 pi i k.R) O(R).

        Parameters
        ----------
        kpts
            One k-point (3,) or several (nkpts, 3), in units of the reciprocal vectors.

        Returns
        -------
        ndarray
            Complex, shape (dimension, dimension); with a leading nkpts for several k-points and,
            before it, a leading 2 for collinear spin.
        """
        return self._bloch_sum(kpts, None)

    def gradient_at_k(self, kpts, cell) -> ndarray:
        """dO(k)/dk = sum_R i (R @ cell) exp(2 pi i k.R) O(R), in the units of O times Angstrom.

        Parameters
        ----------
        cell
            Cell vectors in Angstrom as rows, shape (3, 3).

        Returns
        -------
        ndarray
            As :meth:`at_k`, with a leading 3 (Cartesian direction) before all other axes.
        """
        vectors = self.pairs.R @ np.asarray(cell, float)
        return np.stack([self._bloch_sum(kpts, 1j * vectors[:, axis]) for axis in range(3)])

    def _bloch_sum(self, kpts, factor: ndarray | None) -> ndarray:
        kpts = np.asarray(kpts, float)
        single = kpts.ndim == 1
        kpts = np.atleast_2d(kpts)
        if kpts.shape[1:] != (3,):
            raise ValueError(f"k-points must have shape (3,) or (nkpts, 3), not {kpts.shape}")
        pairs, first, offsets = self.pairs, self.first_orbital, self.offsets
        channels = self.data if self.spin == "collinear" else self.data[None]
        result = np.zeros((len(channels), len(kpts), self.dimension, self.dimension), complex)
        for start, stop in zip(pairs.groups[:-1], pairs.groups[1:], strict=True):
            if start == stop:
                continue
            phase = np.exp(2j * np.pi * (kpts @ pairs.R[start:stop].T))
            if factor is not None:
                phase *= factor[start:stop]
            i, j = pairs.i[start], pairs.j[start]
            rows, columns = slice(*first[i : i + 2]), slice(*first[j : j + 2])
            for channel, out in zip(channels, result, strict=True):
                blocks = channel[offsets[start] : offsets[stop]].reshape(stop - start, -1)
                if np.iscomplexobj(blocks):
                    total = phase @ blocks
                else:
                    total = phase.real @ blocks + 1j * (phase.imag @ blocks)
                out[:, rows, columns] = total.reshape(
                    len(kpts), rows.stop - rows.start, columns.stop - columns.start
                )
        if single:
            result = result[:, 0]
        return result if self.spin == "collinear" else result[0]

    @cached_property
    def _sparse_pattern(self):
        """CSR structure of O(k), and where the sums over the pairs with the same (i, j) go in it.

        The latter as a list of (pairs, starts, places): ``starts`` says where among ``pairs`` the
        next (i, j) begins, ``places`` (number of starts, rows, columns) where its elements go.
        """
        pairs, n, first = self.pairs, self.norbitals, self.first_orbital
        lengths = np.diff(pairs.groups)
        heads, lengths = pairs.groups[:-1][lengths > 0], lengths[lengths > 0]
        i, j = pairs.i[heads], pairs.j[heads]
        width = np.zeros(len(self.symbols), np.int64)  # stored columns of each row of an atom
        np.add.at(width, i, n[j])
        indptr = np.concatenate([[0], np.cumsum(np.repeat(width, n))])
        integer = np.int32 if indptr[-1] < 2**31 else np.int64  # half the memory where possible
        before = np.cumsum(n[j]) - n[j]  # stored columns left of the block, all atoms i together
        start_of_atom = np.searchsorted(i, np.arange(len(self.symbols)))
        left = before - before[start_of_atom[i].clip(max=max(len(before) - 1, 0))]
        indices = np.empty(indptr[-1], integer)
        sums = []
        for rows, columns in np.unique(np.column_stack([n[i], n[j]]), axis=0):
            alike = np.flatnonzero((n[i] == rows) & (n[j] == columns))
            # in portions, so that temporary arrays stay small beside the matrix
            portions = -(-int(lengths[alike].sum() * rows * columns) // 2**22)
            for some in np.array_split(alike, portions):
                starts = np.cumsum(lengths[some]) - lengths[some]
                corner = indptr[first[i[some]][:, None] + np.arange(rows)] + left[some][:, None]
                places = (corner[:, :, None] + np.arange(columns)).astype(integer)
                indices[places] = (first[j[some]][:, None] + np.arange(columns))[:, None, :]
                sums.append((ranges(heads[some], lengths[some]), starts, places))
        return indptr.astype(integer), indices, sums

    def sparse_at_k(self, k) -> csr_array | tuple[csr_array, csr_array]:
        """O(k) at one k-point as a ``scipy.sparse.csr_array``, two of them if collinear.

        Real where it is real: at k = 0 and the zone faces of a real operator. Every element of a
        pair is stored, so the pattern is the same for S and H on the same pairs.
        """
        k = np.asarray(k, float)
        if k.shape != (3,):
            raise ValueError(f"sparse_at_k takes one k-point of shape (3,), not {k.shape}")
        pairs, offsets = self.pairs, self.offsets
        phase = np.exp(2j * np.pi * (pairs.R @ k))
        if not np.iscomplexobj(self.data) and np.allclose(2 * k, np.round(2 * k), atol=1e-12):
            phase = np.round(phase.real)
        indptr, indices, sums = self._sparse_pattern
        channels = self.data if self.spin == "collinear" else self.data[None]
        matrices = []
        for channel in channels:
            values = np.empty(len(indices), np.result_type(channel, phase))
            for p, starts, places in sums:
                inside = np.arange(places.shape[1] * places.shape[2])
                blocks = channel[offsets[p][:, None] + inside] * phase[p, None]
                values[places] = np.add.reduceat(blocks, starts).reshape(places.shape)
            matrices.append(
                csr_array((values, indices, indptr), shape=(self.dimension, self.dimension))
            )
        return tuple(matrices) if self.spin == "collinear" else matrices[0]

    # --- algebra ---------------------------------------------------------------------------

    def _check_compatible(self, other: LCAOMatrix) -> None:
        if not isinstance(other, LCAOMatrix):
            raise TypeError(f"cannot combine an LCAOMatrix with {type(other).__name__}")
        if self.symbols != other.symbols:
            raise ValueError(
                "the two matrices belong to different atoms: "
                f"{formula(self.symbols)} and {formula(other.symbols)}"
            )
        reason = self.basis.difference(other.basis)
        if reason:
            raise ValueError(f"the two matrices have different bases: {reason}")
        if self.spin != other.spin:
            raise ValueError(
                f"one matrix is {self.spin}, the other {other.spin}; "
                "use .with_spin(...) to promote the simpler one"
            )

    def _combine(self, other, sign) -> LCAOMatrix:
        self._check_compatible(other)
        pairs = AtomPairs.union(self.pairs, other.pairs)
        a, b = self.on_pairs(pairs), other.on_pairs(pairs)
        return replace(a, data=a.data + sign * b.data)

    def __add__(self, other):
        return self._combine(other, 1)

    def __sub__(self, other):
        return self._combine(other, -1)

    def __mul__(self, factor):
        if not isinstance(factor, Number):
            return NotImplemented
        return replace(self, data=self.data * factor)

    __rmul__ = __mul__

    def __neg__(self):
        return self * -1

    def inner(self, other: LCAOMatrix) -> complex:
        """<self, other>: the sum over all stored elements of ``conj(self) * other``."""
        self._check_compatible(other)
        pairs = AtomPairs.union(self.pairs, other.pairs)
        return complex(np.vdot(self.on_pairs(pairs).data, other.on_pairs(pairs).data))

    # --- the same operator, otherwise written ----------------------------------------------

    def on_pairs(self, pairs: AtomPairs) -> LCAOMatrix:
        """The same operator on another pattern, zero on the pairs that are new to it.

        Raises
        ------
        ValueError
            If the pattern lacks a pair on which this operator is not zero.
        """
        if pairs.same_as(self.pairs):
            return self if pairs is self.pairs else replace(self, pairs=pairs)
        where = pairs.find(self.pairs.i, self.pairs.j, self.pairs.R)
        for p in np.flatnonzero(where < 0):
            lost = np.abs(self.data[..., self.offsets[p] : self.offsets[p + 1]]).max(initial=0)
            if lost:
                raise ValueError(
                    f"pair {self.pairs.name(p)} holds elements up to {lost:.3g} and is not among "
                    "the new pairs; use cut_to to drop them on purpose"
                )
        return self.move_blocks(pairs, where)

    def cut_to(self, pairs: AtomPairs) -> tuple[LCAOMatrix, float]:
        """The operator on fewer pairs, and the largest element that was dropped."""
        where = pairs.find(self.pairs.i, self.pairs.j, self.pairs.R)
        sizes = np.diff(self.offsets)
        lost = np.abs(self.data[..., np.repeat(where < 0, sizes)]).max(initial=0.0)
        return self.move_blocks(pairs, where), float(lost)

    def move_blocks(self, pairs: AtomPairs, where: ndarray, symbols=None) -> LCAOMatrix:
        """Blocks put in new places: pair p of self becomes pair where[p] of ``pairs``."""
        symbols = self.symbols if symbols is None else symbols
        factor = 2 if self.spin == "spinor" else 1
        n = np.array([factor * self.basis.norbitals(name) for name in symbols], np.int64)
        offsets = np.concatenate([[0], np.cumsum(n[pairs.i] * n[pairs.j])])
        data = np.zeros((*self.data.shape[:-1], offsets[-1]), self.data.dtype)
        kept = where >= 0
        sizes = np.diff(self.offsets)
        targets = ranges(offsets[where[kept]], sizes[kept])
        if kept.all():
            data[..., targets] = self.data
        else:
            data[..., targets] = self.data[..., np.repeat(kept, sizes)]
        return replace(self, symbols=symbols, pairs=pairs, data=data)

    def with_spin(self, spin: str) -> LCAOMatrix:
        """The same operator for more spin degrees of freedom.

        ``"unpolarised"`` can become ``"collinear"`` or ``"spinor"``, ``"collinear"`` can become
        ``"spinor"`` (moments along z).
        """
        if spin == self.spin:
            return self
        if (self.spin, spin) == ("unpolarised", "collinear"):
            return replace(self, spin=spin, data=np.stack([self.data, self.data]))
        if spin != "spinor" or self.spin == "spinor":
            raise ValueError(f"an operator that is {self.spin} cannot be written as {spin}")
        up, down = self.data if self.spin == "collinear" else (self.data, self.data)
        data = np.zeros(4 * self.offsets[-1], self.data.dtype)
        for _, _, _, elements in self.block_groups():
            rows, columns = elements.shape[1:]
            inside = (4 * elements[:, 0, 0])[:, None, None] + (
                2 * np.arange(rows)[:, None] * 2 * columns + 2 * np.arange(columns)
            )
            data[inside] = up[elements]
            data[inside + 2 * columns + 1] = down[elements]
        return replace(self, spin=spin, data=data)

    def in_convention(self, convention: str) -> LCAOMatrix:
        """The operator with orbitals in the order and sign of another convention.

        The spinor index stays the fastest. See :data:`ase_nextham.basis.CONVENTIONS`.
        """
        change = {name: self.basis.transformation(name, convention) for name in set(self.symbols)}
        return replace(self._transformed(change), basis=replace(self.basis, convention=convention))

    def rotated(self, rotation) -> LCAOMatrix:
        """The operator of the structure that is turned as a whole by an orthogonal matrix.

        Cells and positions ``v`` become ``v @ rotation.T``; R stays. For scalar operators
        (overlap, Hamiltonian without field), not for the position operator. Spinors are turned by
        the SU(2) matrix of the proper part of ``rotation``; the moments of collinear spin are
        not turned.
        """
        rotation = np.asarray(rotation, float)
        if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3)):
            raise ValueError("rotation must be an orthogonal 3 x 3 matrix")
        turn = {name: self.basis.rotation(name, rotation) for name in set(self.symbols)}
        return self._transformed(turn, _spin_rotation(rotation))

    def _transformed(self, orbital: Mapping[str, ndarray], spin: ndarray | None = None):
        """U_i B U_j^dagger for every block, with U = orbital[species] (x) spin for spinors."""
        u = dict(orbital)
        if self.spin == "spinor":
            spin = np.eye(2) if spin is None else spin
            u = {name: np.kron(matrix, spin) for name, matrix in u.items()}
        dtype = np.result_type(self.data, *u.values()) if u else self.data.dtype
        data = np.empty(self.data.shape, dtype)
        for a, b, _, elements in self.block_groups():
            data[..., elements] = u[a] @ self.data[..., elements] @ u[b].conj().T
        return replace(self, data=data)

    # --- checks ----------------------------------------------------------------------------

    def partner_elements(self, p: ndarray, elements: ndarray) -> ndarray:
        """Positions in ``data`` of O_ji(-R)^T for the elements of pairs ``p``.

        Arguments are as :meth:`block_groups` yields them; the result has the shape of
        ``elements``, so ``data[partner].conj()`` is the Hermitian conjugate of ``data[elements]``.
        """
        rows, columns = elements.shape[1:]
        first = self.offsets[self.pairs.reverse[p]]
        return first[:, None, None] + (np.arange(columns) * rows + np.arange(rows)[:, None])

    def hermitian_error(self) -> float:
        """max |O_ij(R) - O_ji(-R)^dagger|, in the units of the operator (eV, or 1 for S)."""
        error = 0.0
        for _, _, p, elements in self.block_groups():
            conjugate = self.data[..., self.partner_elements(p, elements)].conj()
            difference = self.data[..., elements] - conjugate
            error = max(error, float(np.abs(difference).max(initial=0)))
        return error

    def filled_by_hermiticity(self) -> LCAOMatrix:
        """The operator whose pairs p > reverse[p] are the conjugates of their partners.

        For sources that store one of the two blocks (i, j, R) and (j, i, -R) only.
        """
        data = self.data.copy()
        for _, _, p, elements in self.block_groups():
            lower = p > self.pairs.reverse[p]
            if lower.any():
                partner = self.partner_elements(p[lower], elements[lower])
                data[..., elements[lower]] = self.data[..., partner].conj()
        return replace(self, data=data)

    def time_reversal_error(self) -> float:
        """max |O - T O T^-1| over all elements, in the units of the operator.

        T is complex conjugation, for spinors followed by i sigma_y; for collinear spin it
        exchanges up and down. Zero for a crystal without magnetic order.
        """
        if self.spin == "unpolarised":
            return float(np.abs(np.imag(self.data)).max(initial=0))
        if self.spin == "collinear":
            return float(np.abs(self.data[0] - self.data[1].conj()).max(initial=0))
        error = 0.0
        for _, _, _, elements in self.block_groups():
            block = self.data[elements]
            uu, ud = block[:, 0::2, 0::2], block[:, 0::2, 1::2]
            du, dd = block[:, 1::2, 0::2], block[:, 1::2, 1::2]
            error = max(
                error,
                float(np.abs(uu - dd.conj()).max(initial=0)),
                float(np.abs(ud + du.conj()).max(initial=0)),
            )
        return error


def ranges(starts: ndarray, lengths: ndarray) -> ndarray:
    """The integers of several ranges one after another: starts[0], starts[0] + 1, ..."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(np.asarray(starts) - (ends - lengths), lengths) + np.arange(total)


def _spin_rotation(rotation: ndarray) -> ndarray:
    """SU(2) matrix of the proper part of an orthogonal matrix (inversion leaves spins alone)."""
    from scipy.spatial.transform import Rotation

    vector = Rotation.from_matrix(rotation * np.sign(np.linalg.det(rotation))).as_rotvec()
    angle = np.linalg.norm(vector)
    if angle < 1e-15:
        return np.eye(2)
    x, y, z = vector / angle
    sigma = np.array([[z, x - 1j * y], [x + 1j * y, -z]])
    return np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * sigma


def formula(symbols: Sequence[str]) -> str:
    """Species and how many atoms of each, for messages."""
    return " ".join(f"{name}{symbols.count(name)}" for name in sorted(set(symbols)))


def aligned(
    matrix: LCAOMatrix, reference: LCAOMatrix, overlap: LCAOMatrix
) -> tuple[LCAOMatrix, float]:
    """A Hamiltonian with its energy zero moved onto that of another.

    Adding ``mu S`` to H shifts all bands by mu, so the zero of energy carries no physics, and
    two Hamiltonians should be compared only after this. mu minimises
    ``|H + mu S - H_ref|`` over all stored elements.

    Returns
    -------
    (LCAOMatrix, float)
        ``matrix + mu * overlap`` and mu in eV.
    """
    overlap = overlap.with_spin(matrix.spin)
    mu = (overlap.inner(reference - matrix) / overlap.inner(overlap)).real
    return matrix + mu * overlap, float(mu)
