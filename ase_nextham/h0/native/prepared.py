"""One structure made ready: S, r(R), H(0), and H with another local potential.

A Hamiltonian of a structure is ``T + V_nl + V`` with a local potential V. That of the superposed
atoms makes H(0); everything else is the same for each V.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError
from numpy import ndarray

from ase_nextham.data import LCAOData
from ase_nextham.h0.native.fftgrid import fft_grid
from ase_nextham.h0.native.gridsums import GridSums
from ase_nextham.h0.native.kleinman_bylander import add_nonlocal_potential
from ase_nextham.h0.native.operators import TwoCentreOperators, two_centre_operators
from ase_nextham.h0.native.pairs import Layout, vectors
from ase_nextham.h0.native.structure import Structure
from ase_nextham.h0.native.tables import SpeciesTables
from ase_nextham.h0.spin import Spin
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.units import BOHR, RYDBERG

if TYPE_CHECKING:
    from ase_nextham.h0.native.localpart import LocalPart


@dataclass(frozen=True, eq=False)
class PreparedH0:
    """One structure and what its Hamiltonians share; made by ``NativeH0.prepare``.

    >>> prepared = NativeH0().prepare(atoms)                                # doctest: +SKIP
    >>> data = prepared.compute()                   # S, H(0)                 doctest: +SKIP
    >>> v = prepared.local_part.v0 + change         # Ry, on the grid         doctest: +SKIP
    >>> H = prepared.compute(v, with_h0=False).hamiltonian                  # doctest: +SKIP

    Parameters
    ----------
    atoms
        As given.
    structure, spin
        The same in the engine's terms, and the treatment of its spins.
    sums
        Over its grid.
    ecutwfc, position, terms
        As of :class:`~ase_nextham.h0.native.engine.NativeH0`.
    source
        What :attr:`LCAOData.source` shall say, without the grid.
    """

    atoms: Atoms
    structure: Structure
    spin: Spin
    sums: GridSums
    ecutwfc: float
    position: bool
    terms: tuple[str, ...]
    source: Mapping

    @cached_property
    def local_part(self) -> LocalPart:
        """The part of H(0) that changes of the density and of the potential change.

        Raises
        ------
        CalculatorSetupError
            For initial magnetic moments that are not ignored.
        """
        from ase_nextham.h0.native.localpart import LocalPart

        if self.spin.magmoms.any():
            raise CalculatorSetupError(
                "there are initial magnetic moments; changes of the density and of the potential "
                "have no spin here: use moments='zero'"
            )
        work = self.structure
        pairs, direct = work.layout.pairs, work.layout.direct
        return LocalPart(
            symbols=tuple(self.atoms.get_chemical_symbols()),
            cell=work.cell,
            tau=work.tau,
            kinds=work.kinds,
            elements=tuple(work.elements),
            basis=work.basis(),
            pairs=AtomPairs(pairs.i[direct], pairs.j[direct], pairs.R[direct]),
            nspin=self.spin.nspin,
            ecutwfc=self.ecutwfc,
            threads=self.sums.threads,
            integrate=self.sums.integral,
            transposed=self.sums.transposed,
        )

    def compute(self, potential: ndarray | None = None, *, with_h0: bool = True) -> LCAOData:
        """S, H(0) and, if wanted, r(R); with a potential H as well.

        Parameters
        ----------
        potential
            Local potential of ``hamiltonian`` in Ry, shape (n1, n2, n3), in place of the one of
            H(0), :attr:`LocalPart.v0`. None: no ``hamiltonian``.
        with_h0
            Whether H(0) is wanted beside the ``hamiltonian``; each takes one sum over the grid.

        Returns
        -------
        LCAOData
            In eV and Angstrom, for the atoms in the order and at the positions given, with the
            initial magnetic moments that were used.

        Raises
        ------
        ValueError
            If the potential is of another grid, or there is none and nothing else is wanted.
        CalculatorSetupError
            For a potential where there are initial magnetic moments.
        """
        from threadpoolctl import threadpool_limits

        self._check(potential, with_h0)
        with threadpool_limits(self.sums.threads, user_api="blas"):
            operators, nonlocal_part = self._without_local()
        scalars = self._local(potential, with_h0, operators.kinetic.size)
        kinetic = operators.kinetic if "kinetic" in self.terms else 0.0
        basis, symbols = self.structure.basis(), self.atoms.get_chemical_symbols()
        pairs = self.structure.layout.pairs
        kind = {1: "unpolarised", 2: "collinear", 4: "spinor"}[self.spin.nspin]
        found = {}
        for name in list(scalars):
            scalar = scalars.pop(name)
            scalar += kinetic
            if self.spin.nspin == 2 and len(scalar) == 1:  # no term that depends on spin
                scalar = np.concatenate([scalar, scalar])
            matrix = nonlocal_part.copy() if scalars else nonlocal_part
            matrix = _finished(matrix, scalar, self.structure.layout)
            found[name] = LCAOMatrix(basis, symbols, pairs, kind, matrix)
        position = operators.position
        if position is not None:
            position *= BOHR
            position = tuple(LCAOMatrix(basis, symbols, pairs, "unpolarised", r) for r in position)
        source = dict(self.source)
        if "local" in self.terms:
            source["grid"] = [int(n) for n in fft_grid(self.structure.cell, self.ecutwfc)]
        return LCAOData(
            self._placed(),
            LCAOMatrix(basis, symbols, pairs, "unpolarised", operators.overlap),
            position=position,
            nelectrons=basis.nelectrons(symbols),
            source=source,
            **found,
        )

    # --- inside --------------------------------------------------------------------------------

    def _check(self, potential: ndarray | None, with_h0: bool) -> None:
        if potential is None:
            if not with_h0:
                raise ValueError("without H(0) and without a potential there is nothing to compute")
            return
        shape = self.local_part.waves.shape
        if np.shape(potential) != shape:
            raise ValueError(
                f"the potential has shape {np.shape(potential)}, but the grid of this structure "
                f"has {shape}"
            )
        if "local" not in self.terms:
            raise ValueError(f"terms={self.terms!r} leave out what the potential would replace")

    def _without_local(self) -> tuple[TwoCentreOperators, ndarray]:
        """S, T and r; half of the nonlocal potential."""
        work = self.structure
        tables = SpeciesTables(work.elements, work.projectors)
        operators = two_centre_operators(
            work.layout, work.kinds, tables.orbitals, work.origins if self.position else None
        )
        if self.spin.nspin == 4:
            matrix = np.zeros(4 * work.layout.offsets[-1], complex)
        else:
            matrix = np.zeros(work.layout.offsets[-1])
        if "nonlocal" in self.terms:
            add_nonlocal_potential(
                matrix,
                work.layout,
                work.images,
                work.kinds,
                work.reach,
                vectors(work.cell, work.tau, work.reach.i, work.reach.j, work.reach.R),
                tables.overlaps,
                [kb.coefficients for kb in work.projectors],
            )
        return operators, matrix

    def _local(self, potential: ndarray | None, with_h0: bool, size: int) -> dict[str, ndarray]:
        """Local potentials of the direct pairs in Ry, by what they are for.

        Each has shape (1 or 2, size), with two for up and down if they differ.
        """
        if "local" not in self.terms:
            return {"h0": np.zeros((1, size))}
        if potential is None:
            return {"h0": self.sums.integral(self._superposed())}
        if not with_h0:
            return {"hamiltonian": self.sums.integral(np.asarray(potential)[None])}
        both = self.sums.integral(np.stack([self.local_part.v0, potential]))
        return {"h0": both[:1], "hamiltonian": both[1:]}

    def _superposed(self) -> ndarray:
        """The local potential of H(0), shape (1 or 2, n1, n2, n3)."""
        if not self.spin.magmoms.any():
            return self.local_part.v0[None]
        from ase_nextham.h0.native.potential import local_potential

        work = self.structure
        return local_potential(
            work.cell,
            work.tau,
            work.kinds,
            [element.form_factors for element in work.elements],
            self.spin.magmoms,
            self.spin.nspin,
            self.ecutwfc,
            threads=self.sums.threads,
        ).v

    def _placed(self) -> Atoms:
        placed, magmoms = self.atoms.copy(), self.spin.magmoms
        placed.set_initial_magnetic_moments(None)  # ASE keeps the shape, which may be of vectors
        placed.set_initial_magnetic_moments(magmoms if magmoms.any() else None)
        return placed


def _finished(matrix: ndarray, scalar: ndarray, blocks: Layout) -> ndarray:
    """All of H(0) in eV: both halves, and both spins where ``scalar`` has two."""
    from ase_nextham.h0.native.kernels import finish_real, finish_spinor

    where = (blocks.offsets, blocks.rows, blocks.columns, blocks.half, blocks.pairs.reverse)
    if np.iscomplexobj(matrix):
        finish_spinor(matrix, scalar[0], scalar[-1], blocks.direct_offsets, where, RYDBERG)
        return matrix
    spins = np.stack([matrix] * len(scalar)) if len(scalar) > 1 else matrix[None]
    for one, own in zip(spins, scalar, strict=True):
        finish_real(one, own, blocks.direct_offsets, where, RYDBERG)
    return spins if len(scalar) > 1 else spins[0]
