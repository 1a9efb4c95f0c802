"""A model with the density head at work: LCAOData with H(0) in, the correction dH out.

What it needs beside the data are the pseudopotentials and orbitals with which H(0) was made: dH is
the matrix of a potential, which is integrated as that of H(0) was.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from numpy import ndarray

from ase_nextham import bands
from ase_nextham.data import LCAOData
from ase_nextham.expansion import Expansion
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.model.bundle import ModelInfo, expansion_of
from ase_nextham.model.density_network import AtomInputs, DensityEnsemble
from ase_nextham.model.predict import check_data
from ase_nextham.potential_head.apply import change_of_potential
from ase_nextham.potential_head.descriptor import describe

KPOINTS = 2.5
"""Points per 1/Angstrom of the mesh on which the spread of band energies is taken."""

ABOVE = 5.0
"""Bands up to so many eV above the highest occupied one count."""


@dataclass(frozen=True, eq=False)
class Spread:
    """How much the members of an ensemble disagree about one structure, and what that means.

    Parameters
    ----------
    dh
        Root mean square over members of the gauge MAE of each member's dH against their mean, in
        eV.
    bands
        The same of the energies of bands up to :data:`ABOVE` above the highest occupied one, after
        a common shift, in eV.
    expected_dh, expected_bands
        The errors that went with such a spread on structures that the model was not trained on,
        or None if the model was not calibrated; in eV.
    """

    dh: float
    bands: float
    expected_dh: float | None
    expected_bands: float | None

    def in_words(self) -> str:
        """A sentence for people."""
        if self.expected_dh is None or self.expected_bands is None:
            return (
                f"the networks of the model disagree by {1e3 * self.dh:.2g} meV about elements of "
                f"H and by {1e3 * self.bands:.2g} meV about bands; it was not calibrated, so the "
                "error is not known"
            )
        return (
            f"expected error of the elements of H {1e3 * self.expected_dh:.2g} meV, of bands "
            f"{1e3 * self.expected_bands:.2g} meV on average (from how much the networks of the "
            f"model disagree: {1e3 * self.dh:.2g} and {1e3 * self.bands:.2g} meV)"
        )


class DensityModel:
    """The correction dH = H - H(0) from the change of the density.

    Parameters
    ----------
    info
        What the model is, and for which data.
    module
        The networks, as :func:`ase_nextham.model.bundle.build` makes them.
    engine
        With the pseudopotentials and orbitals of the data; None: one with those that are
        configured (see :class:`~ase_nextham.h0.native.engine.NativeH0`).
    """

    def __init__(self, info: ModelInfo, module: DensityEnsemble, engine: NativeH0 | None = None):
        self.info = info
        self.module = module.eval()
        self.engine = engine
        self.expansion: Expansion = expansion_of(info)
        self._last: tuple | None = None  # of the structure before, which is often asked for twice

    def __repr__(self):
        elements = ", ".join(self.info.elements)
        return f"DensityModel({len(self.module.experts)} members; {elements})"

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return next(self.module.parameters()).device

    def to(self, device=None, dtype: torch.dtype | None = None) -> DensityModel:
        """The same model, moved to another device or precision; changes this one."""
        self.module.to(device=device, dtype=dtype)
        self._last = None
        return self

    def check(self, data: LCAOData) -> None:
        """Raise ValueError if data is not of the kind that the model was trained with.

        Elements that it was not trained with bring a warning: it knows them by the density and
        potential of their free atoms.
        """
        check_data(self.info, data, new_elements=True)
        if data.h0.spin == "collinear" or _has_moments(data):
            raise ValueError(
                "the structure is magnetic; the model changes densities without spin, from which "
                "no magnetic dH comes"
            )

    def predict(self, data: LCAOData) -> LCAOMatrix:
        """The correction dH of one structure.

        Returns
        -------
        LCAOMatrix
            In eV, with the spin of ``data.h0`` and on its pairs; Hermitian.

        Raises
        ------
        ValueError
            If there is no H(0), it is magnetic, or was made with orbitals or pseudopotentials that
            differ from those that the model was trained with or that the engine has.
        ase.calculators.calculator.CalculatorSetupError
            If the pseudopotentials or orbitals are not found.
        """
        part, coefficients = self.coefficients(data)
        potential = change_of_potential(part, self._expansion(part), coefficients.mean(axis=0))
        return _on_pairs_of(data.h0, part.matrix(potential))

    def spread(self, data: LCAOData) -> Spread:
        """How far the members of the ensemble are apart about a structure.

        Raises
        ------
        ValueError
            As :meth:`predict`.
        """
        part, coefficients = self.coefficients(data)
        expansion = self._expansion(part)
        mean = change_of_potential(part, expansion, coefficients.mean(axis=0))
        dh = _on_pairs_of(data.h0, part.matrix(mean))
        differences = [
            _on_pairs_of(data.h0, part.matrix(change_of_potential(part, expansion, own) - mean))
            for own in coefficients
        ]
        of_dh, of_bands = _disagreement(data, data.h0 + dh, differences)
        factors: Mapping = self.info.training.get("calibration", {})
        return Spread(
            of_dh,
            of_bands,
            of_dh * factors["dh"] if "dh" in factors else None,
            of_bands * factors["bands"] if "bands" in factors else None,
        )

    def coefficients(self, data: LCAOData) -> tuple[LocalPart, ndarray]:
        """The engine's view of a structure, and the coefficients of each member.

        Returns
        -------
        (LocalPart, ndarray)
            Of shape (members, ncoefficients); see :class:`~ase_nextham.expansion.Expansion`.

        Raises
        ------
        ValueError
            As :meth:`predict`.
        """
        if self._last is not None and self._last[0]() is data.h0:
            return self._last[1:]
        self.check(data)
        part = self._local_part(data)
        descriptor = describe(part, self._expansion(part), data)
        graph = self.module.graph([data]) if self.module.needs_graph else None
        inputs = AtomInputs.of(
            self.module.architecture,
            descriptor.induced,
            descriptor.field,
            descriptor.elements,
            graph,
            dtype=self.module.dtype,
        ).to(self.device)
        with torch.inference_mode():
            found = self.module(inputs).double().cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError(
                "the model gave numbers that are not finite; is H(0) what it was trained on?"
            )
        self._last = (weakref.ref(data.h0), part, found)
        return part, found

    # --- inside --------------------------------------------------------------------------------

    def _expansion(self, part: LocalPart) -> Expansion:
        """With functions for the elements of a structure, which are the same for every element."""
        functions = next(iter(self.expansion.radial.values()))
        return Expansion("density", dict.fromkeys(part.symbols, functions))

    def _local_part(self, data: LCAOData) -> LocalPart:
        engine = copy(NativeH0() if self.engine is None else self.engine)
        engine.nspin = 4 if data.h0.spin == "spinor" else 1
        engine.spin_orbit, engine.moments = None, "zero"
        part = engine.local_part(data.atoms)
        reason = part.basis.difference(data.basis)
        if reason:
            raise ValueError(
                f"H(0) was made with other orbitals than those in {engine.orbital_dir}: {reason}; "
                "say where its own are with orbital_dir"
            )
        return part


def _on_pairs_of(h0: LCAOMatrix, dh: LCAOMatrix) -> LCAOMatrix:
    """dh on the pairs of H(0), which reach further, through projectors, or were cut in a file."""
    return dh.cut_to(h0.pairs)[0].on_pairs(h0.pairs)


def _has_moments(data: LCAOData) -> bool:
    return bool(np.any(np.abs(data.atoms.get_initial_magnetic_moments()) > 1e-3))


def _disagreement(
    data: LCAOData, hamiltonian: LCAOMatrix, differences: list[LCAOMatrix]
) -> tuple[float, float]:
    """Root mean square of the errors that differences of H would be, in elements and in bands."""
    present = np.abs(hamiltonian.data) > 0
    s = data.overlap.with_spin(hamiltonian.spin).on_pairs(hamiltonian.pairs).data
    elements = []
    for one in differences:
        mu = np.vdot(s, one.data).real / np.vdot(s, s).real
        elements.append(np.abs(one.data - mu * s)[present].mean())
    mesh = bands.kmesh_for(hamiltonian, data.atoms, KPOINTS)
    electrons = bands.spin_degeneracy(hamiltonian.spin)
    eps, states = bands.eigenstates(hamiltonian, data.overlap, mesh.kpts)
    level = bands.fermi_level(eps, electrons * mesh.weights, data.electron_count(), width=0.05)
    counted = eps[0] < level + ABOVE
    weights = np.broadcast_to(mesh.weights[:, None], counted.shape)[counted]
    energies = []
    for one in differences:
        # to first order, because differences are small: no other diagonalisation
        matrices = one.at_k(mesh.kpts)
        shift = np.einsum("kin,kij,kjn->kn", states[0].conj(), matrices, states[0], optimize=True)
        shift = shift.real[counted]
        shift = shift - np.average(shift, weights=weights)
        energies.append(np.average(np.abs(shift), weights=weights))
    return tuple(float(np.sqrt(np.mean(np.square(x)))) for x in (elements, energies))


def density_model(
    info: ModelInfo,
    module: DensityEnsemble,
    pseudo_dir: str | PathLike | None,
    orbital_dir: str | PathLike | None,
) -> DensityModel:
    """A model that takes pseudopotentials and orbitals from two folders."""
    return DensityModel(info, module, NativeH0(pseudo_dir, orbital_dir))


__all__ = ["DensityModel", "Spread", "density_model"]
