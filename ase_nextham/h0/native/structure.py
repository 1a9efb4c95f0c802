"""A structure as the rest of this folder wants it: in Bohr, species by number, pairs listed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.h0.native.element import Element
from ase_nextham.h0.native.pairs import Layout, Neighbours, layout, neighbours
from ase_nextham.h0.native.projectors import Projectors
from ase_nextham.h0.spin import Spin
from ase_nextham.h0.stru import wrapped
from ase_nextham.units import BOHR


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure in the engine's terms: Bohr, atoms inside the cell, species by number."""

    symbols: list[str]
    elements: list[Element]
    projectors: list[Projectors]
    kinds: ndarray  # (natoms,)
    cell: ndarray  # (3, 3)
    tau: ndarray  # (natoms, 3), inside the cell
    origins: ndarray  # (natoms, 3), as given
    images: ndarray  # (natoms, 3): origins = tau + images @ cell
    reach: Neighbours
    layout: Layout

    @classmethod
    def of(
        cls,
        atoms: Atoms,
        symbols: list[str],
        elements: list[Element],
        kb: list[Projectors],
    ) -> Structure:
        kinds = np.array([symbols.index(symbol) for symbol in atoms.get_chemical_symbols()])
        cell = atoms.cell.array / BOHR
        origins = atoms.positions / BOHR
        fractional, images = wrapped(np.linalg.solve(cell.T, origins.T).T)
        tau = fractional @ cell
        cutoff = np.array([element.cutoff for element in elements])[kinds]
        reach = neighbours(cell, tau, cutoff, np.array([one.cutoff for one in kb])[kinds])
        order = np.argsort(reach.j, kind="stable")
        reach = Neighbours(reach.i[order], reach.j[order], reach.R[order])
        norbitals = np.array([element.norbitals for element in elements])[kinds]
        blocks = layout(cell, tau, images, norbitals, cutoff, reach)
        return cls(symbols, elements, kb, kinds, cell, tau, origins, images, reach, blocks)

    def basis(self) -> Basis:
        named = list(zip(self.symbols, self.elements, strict=True))
        return Basis(
            {symbol: element.shells for symbol, element in named},
            radius={symbol: element.cutoff * BOHR for symbol, element in named},
            fingerprint={symbol: element.orbital_fingerprint for symbol, element in named},
            valence={symbol: element.pseudopotential.header.valence for symbol, element in named},
        )

    def grid_arguments(self) -> tuple:
        """What sums over the grid need, after the potential."""
        direct = self.layout.direct
        return (
            self.cell,
            self.tau,
            self.kinds,
            [element.grid_orbitals for element in self.elements],
            self.layout.pairs.i[direct],
            self.layout.pairs.j[direct],
            self.layout.R[direct],
        )

    def memory(self, spin: Spin, position: bool, ecut: float) -> float:
        """About how many bytes the computation takes at its peak."""
        blocks = self.layout
        polarised = 2 if spin.magmoms.any() else 1
        direct = float((blocks.rows * blocks.columns)[blocks.direct].sum())
        matrices = 8 * float(blocks.offsets[-1]) * (1 + 3 * position)
        matrices += float(blocks.offsets[-1]) * (64 if spin.nspin == 4 else 8 * polarised)
        points = abs(np.linalg.det(self.cell)) * (4 * ecut) ** 1.5 / np.pi**3 * 1.2
        return matrices + 8 * direct * (1 + polarised) + 100 * points * polarised
