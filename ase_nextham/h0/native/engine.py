"""H(0), S and r(R) of a structure without another program.

:class:`NativeH0` puts together what the other modules of this folder compute: two-centre
integrals, the nonlocal pseudopotential, and the local potential of the superposed atoms on the
grid. It adds what ABACUS adds, so that the result can stand in for ABACUS's.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError
from numpy import ndarray

from ase_nextham.data import LCAOData
from ase_nextham.h0.elementfiles import configured_folder, find_files
from ase_nextham.h0.native.element import Element, load_element
from ase_nextham.h0.native.kleinman_bylander import add_nonlocal_potential
from ase_nextham.h0.native.operators import two_centre_operators
from ase_nextham.h0.native.pairs import Layout, vectors
from ase_nextham.h0.native.projectors import projectors
from ase_nextham.h0.native.structure import Structure
from ase_nextham.h0.native.tables import SpeciesTables
from ase_nextham.h0.spin import Spin, check_spin_options, spin_treatment
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.units import BOHR, RYDBERG

if TYPE_CHECKING:
    from ase_nextham.h0.native.localpart import LocalPart

TERMS = ("kinetic", "nonlocal", "local")
"""The parts of H(0); the local one is pseudopotential, Hartree, and exchange and correlation."""

LARGE = 64
"""From so many atoms on, progress is shown on a terminal and the memory needed is logged."""

_log = logging.getLogger(__name__)


class NativeH0:
    """Overlap, H(0) and r(R) of a structure, computed here, with the numbers of ABACUS.

    >>> backend = NativeH0(pseudo_dir="pseudo", orbital_dir="orbital")      # doctest: +SKIP
    >>> data = backend.compute(bulk("GaAs", "zincblende", a=5.653))         # doctest: +SKIP

    Parameters
    ----------
    pseudo_dir, orbital_dir
        Folders that hold the pseudopotentials (UPF) and numerical orbitals (.orb). By default
        those of section ``[abacus]`` of ASE's configuration, else of the environment variables
        ``ABACUS_PP_PATH`` and ``ABACUS_ORB_PATH``.
    pseudopotentials, orbitals
        File by element, as in :class:`~ase_nextham.h0.abacus.AbacusH0`.
    nspin
        1, 2 or 4 as in ABACUS: one matrix for both spins, one for each, spinors. By default 4 if
        all pseudopotentials are fully relativistic; else 2 with ``moments="initial"`` and a
        structure that has some; else 1. With 1 and 2 pseudopotentials are averaged over j.
    spin_orbit
        Spin-orbit coupling. By default whether nspin is 4.
    ecutwfc
        Plane-wave cutoff in Rydberg, which sets the integration grid.
    moments
        How the atomic densities are magnetised, along z: ``"zero"``, ``"initial"`` or
        ``"abacus39_auto"``, see :data:`ase_nextham.h0.spin.MOMENTS`.
    position
        Also compute r(R).
    terms
        Which parts of H(0) to add up, of :data:`TERMS`; all but for comparisons.
    device
        Where the sums over the grid are done: ``"cpu"``, or ``"cuda"`` or ``"cuda:N"`` with torch.
    dtype
        ``"float64"``, or ``"float32"`` for the sums over one block of the grid: half of the time
        there for an error of 0.02 meV.
    threads
        Threads to use; by default as many as this process may have processors.
    cache
        Folder in which the radial functions and form factors of elements are kept for later
        processes. In memory they are kept always.
    progress
        Whether to show a progress bar on standard error. By default for large cells and a
        terminal.

    Notes
    -----
    Exchange and correlation are PBE, so the pseudopotentials have to be made for it.

    Atoms come back in the order and at the positions given. The cell repeats along all three
    vectors whatever ``pbc`` says, as in ABACUS, so along open directions there must be vacuum.
    """

    def __init__(
        self,
        pseudo_dir: str | PathLike | None = None,
        orbital_dir: str | PathLike | None = None,
        *,
        pseudopotentials: Mapping[str, str | PathLike] | None = None,
        orbitals: Mapping[str, str | PathLike] | None = None,
        nspin: int | None = None,
        spin_orbit: bool | None = None,
        ecutwfc: float = 100,
        moments: str = "zero",
        position: bool = True,
        terms: Sequence[str] = TERMS,
        device: str = "cpu",
        dtype: str = "float64",
        threads: int | None = None,
        cache: str | PathLike | None = None,
        progress: bool | None = None,
    ):
        check_spin_options(nspin, spin_orbit, moments)
        if not 1 <= ecutwfc <= 10000:
            raise ValueError(f"ecutwfc={ecutwfc!r} must be an energy in Rydberg, for example 100")
        unknown = sorted(set(terms) - set(TERMS))
        if unknown or not terms:
            raise ValueError(f"terms={terms!r} must be some of {', '.join(TERMS)}")
        if dtype not in ("float64", "float32"):
            raise ValueError(f"unknown dtype {dtype!r}; known: 'float64', 'float32'")
        if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
            raise ValueError(f"unknown device {device!r}; known: 'cpu', 'cuda', 'cuda:N'")
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        self.pseudo_dir = configured_folder("pseudo_dir") if pseudo_dir is None else pseudo_dir
        self.orbital_dir = configured_folder("orbital_dir") if orbital_dir is None else orbital_dir
        self.pseudopotentials = dict(pseudopotentials or {})
        self.orbitals = dict(orbitals or {})
        self.nspin = nspin
        self.spin_orbit = spin_orbit
        self.ecutwfc = ecutwfc
        self.moments = moments
        self.position = position
        self.terms = tuple(terms)
        self.device = device
        self.dtype = dtype
        self.threads = threads
        self.cache = cache
        self.progress = progress

    def __repr__(self):
        folders = f"{str(self.pseudo_dir)!r}, {str(self.orbital_dir)!r}"
        return f"NativeH0({folders}, moments={self.moments!r})"

    def compute(self, atoms: Atoms) -> LCAOData:
        """S, H(0) and, unless switched off, r(R) of a structure.

        Returns
        -------
        LCAOData
            In eV and Angstrom, for the atoms in the order and at the positions given, with the
            initial magnetic moments that were used. ``source`` tells the version, the preset of
            moments, the grid and the sha256 of every file.

        Raises
        ------
        CalculatorSetupError
            If a pseudopotential or an orbital is missing, ambiguous, damaged or does not fit, the
            structure has no cell, or the result does not fit into memory.
        """
        elements = self._elements(atoms)
        spin = spin_treatment(atoms, _has_so(elements), self.nspin, self.spin_orbit, self.moments)
        work = self._structure(atoms, elements, spin)
        self._check_memory(work, spin)
        return self._compute(atoms, work, spin)

    def local_part(self, atoms: Atoms) -> LocalPart:
        """The part of H(0) that changes of the density and of the potential change.

        Raises
        ------
        CalculatorSetupError
            As :meth:`compute`, and for initial magnetic moments that are not ignored.
        """
        from ase_nextham.h0.native.localpart import LocalPart

        elements = self._elements(atoms)
        spin = spin_treatment(atoms, _has_so(elements), self.nspin, self.spin_orbit, self.moments)
        if spin.magmoms.any():
            raise CalculatorSetupError(
                "there are initial magnetic moments; changes of the density and of the potential "
                "have no spin here: use moments='zero'"
            )
        work = self._structure(atoms, elements, spin)
        pairs, direct = work.layout.pairs, work.layout.direct
        return LocalPart(
            symbols=tuple(atoms.get_chemical_symbols()),
            cell=work.cell,
            tau=work.tau,
            kinds=work.kinds,
            elements=tuple(work.elements),
            basis=work.basis(),
            pairs=AtomPairs(pairs.i[direct], pairs.j[direct], pairs.R[direct]),
            nspin=spin.nspin,
            ecutwfc=self.ecutwfc,
            threads=self._nthreads(),
            integrate=partial(self._integral, work),
            transposed=partial(self._transposed_integral, work),
        )

    # --- inside --------------------------------------------------------------------------------

    def _structure(self, atoms: Atoms, elements: Mapping[str, Element], spin: Spin) -> Structure:
        """The structure in the engine's terms."""
        if spin.noncollinear:
            raise CalculatorSetupError(
                "the initial magnetic moments are vectors; this engine has moments along z only: "
                "give numbers, or use h0='abacus'"
            )
        for symbol, element in elements.items():
            _check_functional(symbol, element)
        try:
            kb = [projectors(one.pseudopotential, spin.spin_orbit) for one in elements.values()]
        except ValueError as error:
            raise CalculatorSetupError(str(error)) from error
        return Structure.of(atoms, list(elements), list(elements.values()), kb)

    def _elements(self, atoms: Atoms) -> dict[str, Element]:
        """What is known of each element, after checks of the structure."""
        if not len(atoms):
            raise ValueError("there are no atoms")
        if atoms.cell.rank < 3 or atoms.cell.volume < 1e-9:
            raise CalculatorSetupError(
                "the structure has no complete cell, and H(0) is periodic in all directions: add "
                "vacuum, for example with atoms.center(vacuum=8)"
            )
        symbols = list(dict.fromkeys(atoms.get_chemical_symbols()))
        pseudo = find_files(
            symbols, self.pseudopotentials, self.pseudo_dir, "pseudopotential", ".upf"
        )
        orbital = find_files(symbols, self.orbitals, self.orbital_dir, "orbital", ".orb")
        try:
            return {
                symbol: load_element(
                    symbol, pseudo[symbol], orbital[symbol], self.ecutwfc, self.cache
                )
                for symbol in symbols
            }
        except (OSError, ValueError) as error:
            raise CalculatorSetupError(str(error)) from error

    def _check_memory(self, work: Structure, spin: Spin) -> None:
        """Say beforehand what large cells need, and refuse what cannot work."""
        need = work.memory(spin, self.position, self.ecutwfc)
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        name = f"H(0) of {len(work.tau)} atoms with {len(work.layout.pairs)} pairs"
        if need > have:
            raise CalculatorSetupError(
                f"{name} needs about {need / 1e9:.1f} GB of memory, and this machine has "
                f"{have / 1e9:.1f} GB; "
                + ("position=False or " if self.position else "")
                + "a smaller cell needs less"
            )
        if len(work.tau) >= LARGE:
            _log.info("%s needs about %.1f GB of memory", name, need / 1e9)

    def _compute(self, atoms: Atoms, work: Structure, spin: Spin) -> LCAOData:
        from threadpoolctl import threadpool_limits

        tables = SpeciesTables(work.elements, work.projectors)
        with threadpool_limits(self._nthreads(), user_api="blas"):
            operators = two_centre_operators(
                work.layout, work.kinds, tables.orbitals, work.origins if self.position else None
            )
            if spin.nspin == 4:
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
        position = operators.position
        if position is not None:
            position *= BOHR
        scalar, grid = self._scalar(work, spin, operators.kinetic)
        if spin.nspin == 2 and len(scalar) == 1:  # no term that depends on spin
            scalar = np.concatenate([scalar, scalar])
        matrix = _finished(matrix, scalar, work.layout)
        basis = work.basis()
        symbols = atoms.get_chemical_symbols()
        kind = {1: "unpolarised", 2: "collinear", 4: "spinor"}[spin.nspin]
        if position is not None:
            position = tuple(
                LCAOMatrix(basis, symbols, work.layout.pairs, "unpolarised", r) for r in position
            )
        placed = atoms.copy()
        placed.set_initial_magnetic_moments(None)  # ASE keeps the shape, which may be of vectors
        placed.set_initial_magnetic_moments(spin.magmoms if spin.magmoms.any() else None)
        return LCAOData(
            placed,
            LCAOMatrix(basis, symbols, work.layout.pairs, "unpolarised", operators.overlap),
            h0=LCAOMatrix(basis, symbols, work.layout.pairs, kind, matrix),
            position=position,
            nelectrons=basis.nelectrons(symbols),
            source=self._source(work, spin, grid),
        )

    def _scalar(
        self, work: Structure, spin: Spin, kinetic: ndarray
    ) -> tuple[ndarray, tuple[int, int, int] | None]:
        """Kinetic energy and local potential of the direct pairs, for up and down if they differ.

        Returns
        -------
        (ndarray, tuple or None)
            In Ry, shape (1 or 2, size); and the grid.
        """
        kinetic = kinetic[None]
        if "kinetic" not in self.terms:
            kinetic[:] = 0
        if "local" not in self.terms:
            return kinetic, None
        from ase_nextham.h0.native.potential import local_potential

        potential = local_potential(
            work.cell,
            work.tau,
            work.kinds,
            [element.form_factors for element in work.elements],
            spin.magmoms if spin.magmoms.any() else None,
            spin.nspin,
            self.ecutwfc,
            threads=self._nthreads(),
        )
        result = self._integral(work, potential.v)
        result += kinetic
        return result, potential.grid

    def _integral(self, work: Structure, potential: ndarray) -> ndarray:
        arguments = (potential, *work.grid_arguments())
        options = {"dtype": self.dtype, "progress": self._shows_progress(work)}
        if self.device == "cpu":
            from ase_nextham.h0.native.integral import grid_integral

            return grid_integral(*arguments, threads=self._nthreads(), **options)
        try:
            from ase_nextham.h0.native.integral_torch import grid_integral_torch
        except ImportError as error:
            raise CalculatorSetupError(
                f"device={self.device!r} needs the package torch: pip install torch"
            ) from error
        try:
            return grid_integral_torch(*arguments, device=self.device, **options)
        except ValueError as error:
            raise CalculatorSetupError(str(error)) from error

    def _transposed_integral(
        self, work: Structure, shape: tuple[int, int, int], gradient: ndarray
    ) -> ndarray:
        from ase_nextham.h0.native.integral import grid_integral_transpose

        return grid_integral_transpose(
            gradient, shape, *work.grid_arguments(), threads=self._nthreads()
        )

    def _nthreads(self) -> int:
        if self.threads is not None:
            return self.threads
        # only Linux tells how many processors this process may use
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def _shows_progress(self, work: Structure) -> bool:
        if self.progress is None:
            return len(work.tau) >= LARGE and sys.stderr.isatty()
        return self.progress

    def _source(self, work: Structure, spin: Spin, grid) -> dict:
        from ase_nextham import __version__

        source = {
            "engine": "ase_nextham native",
            "version": __version__,
            "nspin": spin.nspin,
            "spin_orbit": spin.spin_orbit,
            "moments": spin.moments,
            "ecutwfc": self.ecutwfc,
            "xc": "PBE",
            "dtype": self.dtype,
            "pseudopotentials": {
                symbol: element.pseudopotential.header.fingerprint
                for symbol, element in zip(work.symbols, work.elements, strict=True)
            },
            "orbitals": {
                symbol: element.orbital_fingerprint
                for symbol, element in zip(work.symbols, work.elements, strict=True)
            },
        }
        if grid is not None:
            source["grid"] = [int(n) for n in grid]
        if self.terms != TERMS:
            source["terms"] = list(self.terms)
        return source


def _has_so(elements: Mapping[str, Element]) -> dict[str, bool]:
    return {symbol: one.pseudopotential.header.has_so for symbol, one in elements.items()}


def _check_functional(symbol: str, element: Element) -> None:
    functional = element.pseudopotential.header.functional
    words = functional.upper().replace("-", " ").split()
    if words not in (["PBE"], ["SLA", "PW", "PBX", "PBC"], ["SLA", "PW", "PBE", "PBE"]):
        raise CalculatorSetupError(
            f"{symbol}: the pseudopotential was made for {functional}, and this engine has PBE "
            "only; use one for PBE, or h0='abacus'"
        )


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
