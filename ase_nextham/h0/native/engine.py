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
from os import PathLike
from typing import TYPE_CHECKING

from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError

from ase_nextham.data import LCAOData
from ase_nextham.h0.elementfiles import configured_folder, find_files
from ase_nextham.h0.native.element import Element, load_element
from ase_nextham.h0.native.gridsums import GridSums
from ase_nextham.h0.native.prepared import PreparedH0
from ase_nextham.h0.native.projectors import projectors
from ase_nextham.h0.native.structure import Structure
from ase_nextham.h0.spin import Spin, check_spin_options, spin_treatment

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
        return self._prepared(atoms, elements, spin).compute()

    def prepare(self, atoms: Atoms) -> PreparedH0:
        """The structure made ready, for H(0) and for H with other local potentials.

        Raises
        ------
        CalculatorSetupError
            As :meth:`compute`.
        """
        elements = self._elements(atoms)
        spin = spin_treatment(atoms, _has_so(elements), self.nspin, self.spin_orbit, self.moments)
        return self._prepared(atoms, elements, spin)

    def local_part(self, atoms: Atoms) -> LocalPart:
        """The part of H(0) that changes of the density and of the potential change.

        Raises
        ------
        CalculatorSetupError
            As :meth:`compute`, and for initial magnetic moments that are not ignored.
        """
        return self.prepare(atoms).local_part

    # --- inside --------------------------------------------------------------------------------

    def _prepared(self, atoms: Atoms, elements: Mapping[str, Element], spin: Spin) -> PreparedH0:
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
        work = Structure.of(atoms, list(elements), list(elements.values()), kb)
        self._check_memory(work, spin)
        return PreparedH0(
            atoms=atoms.copy(),
            structure=work,
            spin=spin,
            sums=GridSums(
                work, self.device, self.dtype, self._nthreads(), self._shows_progress(work)
            ),
            ecutwfc=self.ecutwfc,
            position=self.position,
            terms=self.terms,
            source=self._source(work, spin),
        )

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

    def _nthreads(self) -> int:
        if self.threads is not None:
            return self.threads
        # only Linux tells how many processors this process may use
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def _shows_progress(self, work: Structure) -> bool:
        if self.progress is None:
            return len(work.tau) >= LARGE and sys.stderr.isatty()
        return self.progress

    def _source(self, work: Structure, spin: Spin) -> dict:
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
