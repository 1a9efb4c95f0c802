"""One structure and its operators: what files hold and what backends return.

:class:`LCAOData` keeps the overlap, the Hamiltonians and the position operator of one structure on
one set of pairs, and moves, reorders or repeats the atoms of all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

import numpy as np
from ase import Atoms

from ase_nextham.basis import Basis
from ase_nextham.matrix import AtomPairs, LCAOMatrix, formula, ranges


@dataclass(frozen=True, eq=False)
class LCAOData:
    """One structure and its operators: what files hold and backends return.

    All operators share one :class:`AtomPairs`, the union of those given, because H reaches
    further than S (through the nonlocal projectors) and both are needed on the same pairs.

    Parameters
    ----------
    atoms
        The structure. R of the pairs refers to these positions as they stand.
    overlap
        S, always ``"unpolarised"``, dimensionless.
    h0
        Zeroth-step Hamiltonian of the superposed atomic densities, in eV.
    hamiltonian
        Self-consistent or predicted Hamiltonian, in eV.
    position
        <i 0| r |j R> for x, y, z in Angstrom, ``"unpolarised"``, with the origin of the home
        cell. Obeys r(R) = r(-R)^T + (R @ cell) S(R); not symmetric on its own.
    nelectrons
        Valence electrons in the cell.
    fermi_level
        In eV, where the source states it.
    source
        Where the numbers come from: plain values that can be written as JSON.
    """

    atoms: Atoms
    overlap: LCAOMatrix
    h0: LCAOMatrix | None = None
    hamiltonian: LCAOMatrix | None = None
    position: tuple[LCAOMatrix, LCAOMatrix, LCAOMatrix] | None = None
    nelectrons: float | None = None
    fermi_level: float | None = None
    source: Mapping = field(default_factory=dict)

    def __reduce__(self):  # mapping proxies cannot be copied
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return _rebuilt, (values | {"source": dict(self.source)},)

    def __post_init__(self):
        atoms = self.atoms.copy()
        atoms.calc = None
        object.__setattr__(self, "atoms", atoms)
        object.__setattr__(self, "source", MappingProxyType(dict(self.source)))
        operators = self._operators()
        if self.overlap.spin != "unpolarised":
            raise ValueError("the overlap must be unpolarised: it is the same for both spins")
        if len(atoms) != len(self.overlap.symbols):
            raise ValueError(
                f"{len(atoms)} atoms, but the overlap is for {len(self.overlap.symbols)}"
            )
        for name, matrix in operators.items():
            if matrix.symbols != self.overlap.symbols:
                raise ValueError(
                    f"{name} is for atoms {formula(matrix.symbols)}, the overlap for "
                    f"{formula(self.overlap.symbols)}, or they stand in another order"
                )
            reason = matrix.basis.difference(self.overlap.basis)
            if reason:
                raise ValueError(f"{name} and overlap have different bases: {reason}")
        pairs = AtomPairs.union(*(matrix.pairs for matrix in operators.values()))
        self._set_operators({name: m.on_pairs(pairs) for name, m in operators.items()})

    def _operators(self) -> dict[str, LCAOMatrix]:
        named = {"overlap": self.overlap, "h0": self.h0, "hamiltonian": self.hamiltonian}
        if self.position is not None:
            if len(self.position) != 3:
                raise ValueError("position must be three matrices: x, y, z")
            named |= {f"position {axis}": m for axis, m in zip("xyz", self.position, strict=True)}
        return {name: matrix for name, matrix in named.items() if matrix is not None}

    def _set_operators(self, named: Mapping[str, LCAOMatrix]) -> None:
        for name in ("overlap", "h0", "hamiltonian"):
            object.__setattr__(self, name, named.get(name))
        if self.position is not None:
            position = tuple(named[f"position {axis}"] for axis in "xyz")
            object.__setattr__(self, "position", position)

    def __repr__(self):
        held = ", ".join(self._operators())
        name = self.atoms.get_chemical_formula("metal")
        return f"LCAOData({name}, {len(self.pairs)} pairs: {held})"

    @property
    def pairs(self) -> AtomPairs:
        """The pairs that all operators share."""
        return self.overlap.pairs

    @property
    def basis(self) -> Basis:
        """The orbitals of each species."""
        return self.overlap.basis

    @property
    def symbols(self) -> tuple[str, ...]:
        """Species of each atom: the keys of ``basis.shells``."""
        return self.overlap.symbols

    def best_hamiltonian(self) -> LCAOMatrix:
        """The self-consistent or predicted Hamiltonian where there is one, else H(0).

        Raises
        ------
        ValueError
            If there is neither.
        """
        matrix = self.hamiltonian if self.hamiltonian is not None else self.h0
        if matrix is None:
            raise ValueError(f"{self!r} holds no Hamiltonian, only the overlap")
        return matrix

    def electron_count(self) -> float:
        """Valence electrons in the cell.

        Raises
        ------
        ValueError
            If they are not known, because no pseudopotentials were found.
        """
        if self.nelectrons is None:
            raise ValueError(
                f"the number of valence electrons of {self!r} is not known, because its "
                "pseudopotentials were not found, and without it there is no Fermi level; read the "
                "source again with pseudo_dir, or pass nelectrons"
            )
        return self.nelectrons

    def position_error(self) -> float:
        """max |r(R) - r(-R)^T - (R @ cell) S(R)| in Angstrom; zero for an exact r and S."""
        if self.position is None:
            raise ValueError("there is no position operator")
        vectors = self.pairs.R @ self.atoms.cell.array
        error = 0.0
        for axis, r in enumerate(self.position):
            for _, _, p, elements in r.block_groups():
                partner = r.partner_elements(p, elements)
                shift = vectors[p, axis][:, None, None] * self.overlap.data[elements]
                difference = r.data[elements] - r.data[partner] - shift
                error = max(error, float(np.abs(difference).max(initial=0)))
        return error

    def permuted(self, order: Sequence[int]) -> LCAOData:
        """The same structure with its atoms in another order: new atom a is old ``order[a]``."""
        order = np.asarray(order)
        if sorted(order.tolist()) != list(range(len(self.atoms))):
            raise ValueError(f"order must be a permutation of 0 ... {len(self.atoms) - 1}")
        place = np.argsort(order)
        pairs, where = AtomPairs.sort(place[self.pairs.i], place[self.pairs.j], self.pairs.R)
        symbols = tuple(self.symbols[a] for a in order)
        inverse = np.argsort(where)
        moved = {
            name: matrix.move_blocks(pairs, inverse, symbols)
            for name, matrix in self._operators().items()
        }
        return self._replaced(self.atoms[order], moved)

    def translated(self, shifts) -> LCAOData:
        """The same crystal with atoms moved by lattice vectors.

        Parameters
        ----------
        shifts
            Integer, shape (natoms, 3): atom a moves by ``shifts[a] @ cell``.
        """
        shifts = np.asarray(shifts)
        if shifts.shape != (len(self.atoms), 3) or not np.issubdtype(shifts.dtype, np.integer):
            raise ValueError(f"shifts must be integers of shape ({len(self.atoms)}, 3)")
        i, j = self.pairs.i, self.pairs.j
        # the atom that was at (j, R) seen from i is, after the move, at (j, R + T_i - T_j)
        pairs, where = AtomPairs.sort(i, j, self.pairs.R + shifts[i] - shifts[j])
        inverse = np.argsort(where)
        operators = self._operators()
        sizes = np.diff(self.overlap.offsets)
        for axis, name in enumerate("xyz"):
            if self.position is not None:
                origin = (shifts @ self.atoms.cell.array)[i, axis]
                r = operators[f"position {name}"]
                data = r.data + np.repeat(origin, sizes) * self.overlap.data
                operators[f"position {name}"] = replace(r, data=data)
        atoms = self.atoms.copy()
        atoms.positions += shifts @ atoms.cell.array
        return self._replaced(
            atoms, {n: m.move_blocks(pairs, inverse) for n, m in operators.items()}
        )

    def repeated(self, repeat: Sequence[int]) -> LCAOData:
        """The same crystal in a supercell, its atoms in the order of ``ase.Atoms.repeat``."""
        repeat = np.asarray(repeat)
        if repeat.shape != (3,) or (repeat < 1).any():
            raise ValueError(f"repeat must be three positive integers, not {repeat.tolist()}")
        natoms, npairs = len(self.atoms), len(self.pairs)
        cells = np.indices(repeat).reshape(3, -1).T
        target = cells[:, None, :] + self.pairs.R[None]
        R, inside = np.divmod(target, repeat)
        cell_of_j = (inside[..., 0] * repeat[1] + inside[..., 1]) * repeat[2] + inside[..., 2]
        i = (np.arange(len(cells))[:, None] * natoms + self.pairs.i).ravel()
        j = (cell_of_j * natoms + self.pairs.j).ravel()
        pairs, where = AtomPairs.sort(i, j, R.reshape(-1, 3))
        old_pair = where % npairs
        origin = (cells @ self.atoms.cell.array)[where // npairs]
        symbols = self.symbols * len(cells)
        sizes = np.diff(self.overlap.offsets)[old_pair]
        operators = self._operators()
        spins = {matrix.spin == "spinor": matrix.offsets for matrix in operators.values()}
        elements = {
            spinor: ranges(offsets[old_pair], np.diff(offsets)[old_pair])
            for spinor, offsets in spins.items()
        }
        folded = {}
        for name, matrix in operators.items():
            data = matrix.data[..., elements[matrix.spin == "spinor"]]
            if name.startswith("position"):
                shift = np.repeat(origin[:, "xyz".index(name[-1])], sizes)
                data = data + shift * self.overlap.data[elements[False]]
            folded[name] = replace(matrix, symbols=symbols, pairs=pairs, data=data)
        data = self._replaced(self.atoms.repeat(repeat), folded)
        if self.nelectrons is not None:
            data = replace(data, nelectrons=self.nelectrons * len(cells))
        return data

    def _replaced(self, atoms: Atoms, operators: Mapping[str, LCAOMatrix]) -> LCAOData:
        position = None
        if self.position is not None:
            position = tuple(operators[f"position {axis}"] for axis in "xyz")
        return replace(
            self,
            atoms=atoms,
            overlap=operators["overlap"],
            h0=operators.get("h0"),
            hamiltonian=operators.get("hamiltonian"),
            position=position,
        )


def _rebuilt(values: Mapping) -> LCAOData:
    return LCAOData(**values)
