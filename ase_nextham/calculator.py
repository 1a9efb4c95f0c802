"""An ASE calculator whose result is a Hamiltonian: caching and ASE's words, nothing else.

What it calls is in :mod:`ase_nextham.h0` (Atoms -> S, H(0)), :mod:`ase_nextham.bands` and
:mod:`ase_nextham.optics`, and works without it.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ase import Atoms
from ase.calculators.abc import GetOutputsMixin
from ase.calculators.calculator import (
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
    compare_atoms,
)
from numpy import ndarray

from ase_nextham import bands, h0, hdf5, optics
from ase_nextham.data import LCAOData
from ase_nextham.h0.folder import write_folder
from ase_nextham.matrix import LCAOMatrix

if TYPE_CHECKING:
    from ase_nextham.potential_head.predict import Spread

_ENERGIES = {"energy", "free_energy"}
_REFUSED = {"forces", "stress", "stresses", "energies"}


class NextHAMCalculator(GetOutputsMixin, Calculator):
    """Hamiltonian, bands and optics of any periodic Atoms, without a self-consistent loop.

    >>> atoms = bulk("GaAs", "zincblende", a=5.653)
    >>> atoms.calc = calc = NextHAMCalculator("models/soc", h0="native", kpts=(8, 8, 8))
    >>> bs = calc.band_structure(atoms, path=atoms.cell.bandpath("LGX"))    # eV
    >>> H = calc.get_hamiltonian(atoms)                                     # LCAOMatrix, eV

    ASE properties: ``eigenvalues`` and ``fermi_level`` in eV, ``occupations``, ``ibz_kpoints``
    and ``kpoint_weights`` on the k mesh; with a model of the density ``free_energy`` and
    ``energy``, without the entropy of the smearing, of the density that the states of H make
    (:func:`ase_nextham.potential_head.energy.kohn_sham`). No forces, and from a Hamiltonian alone
    no energy.

    The structure-dependent part (S, H(0), H) and the k-dependent part (eigenvalues) are cached
    separately: a new k mesh does not compute H(0) again.

    Parameters
    ----------
    model
        The network that predicts the correction to H(0): ``"default"``, the one that comes with
        the package; the folder of a model; or what :func:`ase_nextham.load_model` returns. None:
        the Hamiltonian is H(0) itself, which a warning says.
    h0
        Where H(0) and S come from: ``"native"`` (computed here), ``"abacus"`` (runs ABACUS),
        ``"auto"`` (the first where the files below are known, else the second), the path of a
        native file or of ABACUS folders computed earlier, or any object with
        ``compute(atoms) -> LCAOData``.
    kpts
        k mesh for Fermi level, gap and DOS: ``(8, 8, 8)`` with Gamma, ``{"density": 3.5}``, ...;
        see :func:`ase_nextham.bands.kmesh`.
    width
        Fermi-Dirac width in eV.
    pseudo_dir, orbital_dir
        Folders of pseudopotentials and orbitals for backends that compute H(0); else those of
        the section ``[abacus]`` of ASE's configuration, or of the environment variables
        ``ABACUS_PP_PATH`` and ``ABACUS_ORB_PATH``.
    nspin, moments
        For backends that compute H(0), as of
        :class:`~ase_nextham.h0.native.engine.NativeH0`: None is their default, which is
        spin-orbit coupling where the pseudopotentials have it, and no moments.
    device
        Where the network computes: ``"cpu"``, ``"cuda"``, ...
    directory
        Where backends that run programs do so; ``"."`` stands for a temporary folder that is
        removed afterwards.
    """

    implemented_properties: ClassVar[list[str]] = [
        "eigenvalues",
        "fermi_level",
        "occupations",
        "ibz_kpoints",
        "kpoint_weights",
        "energy",
        "free_energy",
    ]
    default_parameters: ClassVar[dict] = {
        "h0": "auto",
        "kpts": (8, 8, 8),
        "width": 0.05,
        "pseudo_dir": None,
        "orbital_dir": None,
        "nspin": None,
        "moments": None,
        "model": None,
        "device": "cpu",
    }
    discard_results_on_any_change = True

    def __init__(self, model=None, *, directory=".", **parameters):
        self._data: LCAOData | None = None
        self._model = None
        super().__init__(directory=str(directory), model=model, **parameters)
        if model is None:
            warnings.warn(
                "no model given: the Hamiltonian is H(0), the zeroth step from superposed atomic "
                "densities, without the correction",
                stacklevel=2,
            )

    def __repr__(self):
        model = self.parameters.model
        first = "" if model is None else f"{str(model)!r}, "
        return f"NextHAMCalculator({first}h0={self.parameters.h0!r}, kpts={self.parameters.kpts})"

    # --- ASE -----------------------------------------------------------------------------------

    def set(self, **changes) -> dict:
        """Change parameters; results that depend on them are dropped.

        Raises
        ------
        TypeError
            For a name that is not a parameter.
        """
        unknown = changes.keys() - self.default_parameters.keys()
        if unknown:
            raise TypeError(
                f"NextHAMCalculator has no parameter {', '.join(sorted(unknown))}; it has "
                f"{', '.join(self.default_parameters)}"
            )
        changed = super().set(**changes)
        if changed.keys() & {"model", "device", "pseudo_dir", "orbital_dir", "h0"}:
            self._model = None
        if changed.keys() & set(self.default_parameters) - {"kpts", "width"}:
            self._data = None
        return changed

    def get_property(self, name, atoms=None, allow_calculation=True):
        """As ASE's, with the reason why there are no forces."""
        if name in _REFUSED:
            raise PropertyNotImplementedError(
                f"NextHAM gives the Hamiltonian and its bands, not {name!r}; use a DFT calculator"
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(self, atoms=None, properties=("fermi_level",), system_changes=all_changes):
        """Eigenvalues on the k mesh and the Fermi level, or energies; called by
        ``get_property``.
        """
        super().calculate(atoms, properties, system_changes)
        energies = not _ENERGIES.isdisjoint(properties)
        if energies and getattr(getattr(self._network(), "info", None), "head", "") != "density":
            raise PropertyNotImplementedError(
                "NextHAM gives the Hamiltonian, not the total energy: the double-counting terms "
                "need the density; use a model with the density head, calc.get_hamiltonian() "
                "here, or a DFT calculator"
            )
        data = self.get_data(self.atoms)
        kept = {} if system_changes else self.results
        found = {}
        if not _ENERGIES.issuperset(properties):
            found |= self._bands(data)
        if energies:
            found |= self._energies(data)
        self.results = {**kept, **found}

    def _bands(self, data: LCAOData) -> dict:
        H = data.best_hamiltonian()
        mesh = bands.kmesh_for(H, self.atoms, self.parameters.kpts)
        width = self.parameters.width
        electrons = bands.spin_degeneracy(H.spin)
        eps_skn = bands.eigenvalues(H, data.overlap, mesh.kpts)
        level = bands.fermi_level(
            eps_skn, electrons * mesh.weights, data.electron_count(), width=width
        )
        return {
            "eigenvalues": eps_skn,
            "fermi_level": level,
            "occupations": electrons * bands.occupations(eps_skn, level, width=width),
            "ibz_kpoints": mesh.kpts,
            "kpoint_weights": mesh.weights,
        }

    def _energies(self, data: LCAOData) -> dict[str, float]:
        from ase_nextham.potential_head.energy import total_energy

        kpts, width = self.parameters.kpts, self.parameters.width
        found = total_energy(self._network(), data, kpts, width=width)
        return {"energy": found.extrapolated, "free_energy": found.total}

    def _outputmixin_get_results(self) -> dict:
        return self.results  # what GetOutputsMixin takes get_eigenvalues and the like from

    def get_fermi_level(self, atoms=None) -> float:
        """Fermi level in eV by electron count on the k mesh."""
        return self.get_property("fermi_level", atoms)

    # --- Hamiltonians --------------------------------------------------------------------------

    def get_data(self, atoms: Atoms | None = None, *, position: bool = False) -> LCAOData:
        """S, H(0) and, with a model, H of a structure, in its order and images; computed once.

        Parameters
        ----------
        atoms
            The structure; None: that of the last call.
        position
            Whether r(R) is needed, too.
        """
        atoms = self._structure(atoms)
        known = self._data is not None and not compare_atoms(self._data_atoms, atoms, tol=1e-15)
        if not known or (position and self._data.position is None):
            data = self._backend(position).compute(atoms)
            if data.h0 is None:
                raise CalculatorSetupError(f"h0={self.parameters.h0!r} gave no H(0)")
            self._data, self._data_atoms = self._predicted(data), atoms.copy()
        return self._data

    def _predicted(self, data: LCAOData) -> LCAOData:
        """With H = H(0) + dH; a stored self-consistent H is not what this calculator gives."""
        model = self._network()
        if model is None:
            return replace(data, hamiltonian=None)
        predicted = data.h0 + model.predict(data)
        source = {**data.source, "model": str(self.parameters.model)}
        return replace(data, hamiltonian=predicted, source=source)

    def _network(self):
        """The model, read when it is first needed; None where there is none."""
        given = self.parameters.model
        if self._model is None:
            self._model = given
            if isinstance(given, (str, os.PathLike)):
                from ase_nextham.prediction import load_model

                self._model = load_model(
                    given,
                    device=self.parameters.device,
                    pseudo_dir=self._folder("pseudo_dir"),
                    orbital_dir=self._folder("orbital_dir"),
                )
        return self._model

    def _folder(self, name: str) -> str | os.PathLike | None:
        """Where pseudopotentials or orbitals are: as said here, or as the backend was told."""
        return self.parameters[name] or getattr(self.parameters.h0, name, None)

    def get_spread(self, atoms: Atoms | None = None) -> Spread | None:
        """How far the networks of the model are apart about a structure, and what error that means.

        Returns
        -------
        Spread or None
            None without a model, and for models whose networks do not check each other.
        """
        data = self.get_data(atoms)
        spread = getattr(self._model, "spread", None)
        return None if spread is None else spread(data)

    def get_hamiltonian(self, atoms: Atoms | None = None) -> LCAOMatrix:
        """H in eV; without a model H(0)."""
        return self.get_data(atoms).best_hamiltonian()

    def get_overlap(self, atoms: Atoms | None = None) -> LCAOMatrix:
        """S, dimensionless."""
        return self.get_data(atoms).overlap

    # --- what follows from them ----------------------------------------------------------------

    def band_structure(self, atoms: Atoms | None = None, path=None, npoints: int | None = None):
        """Bands along a path, as ASE's ``BandStructure``.

        ASE's own ``calculate_band_structure`` asks for an energy first and so cannot be used.

        Parameters
        ----------
        path
            An ASE ``BandPath``, or special points such as ``"LGX"``; None: ASE's standard path.
        npoints
            Number of k-points, where ``path`` is not a ``BandPath``.

        Returns
        -------
        ase.spectrum.band_structure.BandStructure
            Absolute energies in eV, shape (nspins, nkpts, nbands); the reference is the Fermi
            level of the k mesh.
        """
        atoms = self._structure(atoms)
        if path is None or isinstance(path, str):
            path = atoms.cell.bandpath(path, npoints=npoints, pbc=atoms.pbc)
        data = self.get_data(atoms)
        level = self.get_fermi_level(atoms)
        return bands.band_structure(
            data.best_hamiltonian(), data.overlap, path, atoms=atoms, fermi_level=level
        )

    def get_band_gap(self, atoms: Atoms | None = None) -> bands.Gap | None:
        """Fundamental and direct gap on the k mesh by electron count; None for a metal."""
        atoms = self._structure(atoms)
        eps_skn = self.get_property("eigenvalues", atoms)
        data = self.get_data(atoms)
        return bands.band_gap(eps_skn, data.electron_count(), data.best_hamiltonian().spin)

    def get_optical_conductivity(
        self,
        atoms: Atoms | None = None,
        *,
        omega: ndarray,
        kpts,
        method: str = "pyatb",
        eta: float = 0.1,
    ) -> ndarray:
        """Optical conductivity tensor in S/m, complex, shape (3, 3, nomega).

        See :func:`ase_nextham.optics.optical_conductivity`. Needs r(R), which is computed if the
        backend can.

        Parameters
        ----------
        omega
            Photon energies in eV, shape (nomega,).
        kpts
            k mesh, three integers.
        method
            ``"pyatb"``, or ``"kubo"`` for our own formula.
        eta
            Broadening in eV.
        """
        data = self.get_data(atoms, position=True)
        H = data.best_hamiltonian()
        return optics.optical_conductivity(data, omega, kpts, method=method, hamiltonian=H, eta=eta)

    def write(
        self, path: str | os.PathLike, atoms: Atoms | None = None, format: str = "native"
    ) -> None:
        """Write S, H(0) and, where known, H and r as a native file or an ABACUS folder.

        Parameters
        ----------
        format
            ``"native"`` (HDF5) or ``"abacus"``. For others see
            ``ase_nextham.converters.write(path, calc.get_data(atoms), format)``.
        """
        data = self.get_data(atoms)
        if format == "native":
            hdf5.write(path, data)
        elif format == "abacus":
            write_folder(path, data)
        else:
            raise ValueError(
                f"unknown format {format!r}; calc.write knows 'native' and 'abacus', "
                "ase_nextham.converters.write(path, calc.get_data(atoms), format) knows more"
            )

    # --- inside --------------------------------------------------------------------------------

    def _structure(self, atoms: Atoms | None) -> Atoms:
        if atoms is not None:
            return atoms
        if self._data is None:
            raise ValueError("no structure yet: pass atoms")
        return self._data_atoms

    def _backend(self, position: bool) -> h0.H0Backend:
        options = {
            name: self.parameters[name]
            for name in ("pseudo_dir", "orbital_dir", "nspin", "moments")
            if self.parameters[name] is not None
        }
        if self.parameters.h0 in h0.NAMES:  # else a path, or a backend that is one already
            options["position"] = position
            if self.directory != ".":
                options["directory"] = self.directory
        elif options.keys() & {"nspin", "moments"}:
            raise CalculatorSetupError(
                f"nspin and moments are for what computes H(0) ({', '.join(h0.NAMES)}), not for "
                f"h0={self.parameters.h0!r}, which has it already"
            )
        return h0.from_name(self.parameters.h0, **options)
