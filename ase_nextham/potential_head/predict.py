"""A model with the density head at work: LCAOData with H(0) in, the correction dH out.

What it needs beside the data are the pseudopotentials and orbitals with which H(0) was made: dH is
the matrix of a potential, which is integrated as that of H(0) was.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np
import torch
from numpy import ndarray

from ase_nextham.comparison import gauge_mae
from ase_nextham.data import LCAOData
from ase_nextham.expansion import Expansion
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.model.bundle import ModelInfo, expansion_of
from ase_nextham.model.density_network import AtomInputs, DensityEnsemble
from ase_nextham.model.predict import check_data, pseudopotentials_of
from ase_nextham.potential_head.apply import plane_wave_sums
from ase_nextham.potential_head.descriptor import Descriptor, describe, element_table
from ase_nextham.potential_head.spread import Spread, disagreement


@dataclass(eq=False)
class _Known:
    """What was found out about a structure, which is often asked for twice.

    Parameters
    ----------
    h0
        By which it is recognised, as long as anyone else keeps it.
    part
        The engine's view of it.
    coefficients
        Of each member, shape (members, ncoefficients).
    potential, dh
        The predicted potential in Ry on the grid, and the correction, once it was asked for.
    """

    h0: weakref.ref
    part: LocalPart
    coefficients: ndarray
    potential: ndarray | None = None
    dh: LCAOMatrix | None = None


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
        self._last: _Known | None = None

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
        known = self._known(data)
        if known.dh is None:
            part, mean = known.part, known.coefficients.mean(axis=0)
            (known.potential,) = self._potentials(part, [mean])
            known.dh = _on_pairs_of(data.h0, part.matrix(known.potential - part.v0))
        return known.dh

    def spread(self, data: LCAOData) -> Spread:
        """How far the members of the ensemble are apart about a structure.

        It takes one sum over the grid, which is the longer the more members there are, and the
        eigenvalues of each member's H on a mesh.

        Raises
        ------
        ValueError
            As :meth:`predict`.
        """
        predicted = data.h0 + self.predict(data)
        known = self._known(data)
        differences = self._potentials(known.part, known.coefficients) - known.potential
        members = (
            predicted + _on_pairs_of(data.h0, one)
            # small differences: single precision loses nothing that counts
            for one in known.part.matrices(differences, dtype="float32")
        )
        of_dh, of_bands = disagreement(replace(data, hamiltonian=predicted), members)
        factors: Mapping = self.info.training.get("calibration", {})
        return Spread(
            dh=of_dh,
            bands=of_bands,
            correction=gauge_mae(data.h0, predicted, data.overlap),
            expected_dh=of_dh * factors["dh"] if "dh" in factors else None,
            expected_bands=of_bands * factors["bands"] if "bands" in factors else None,
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
        known = self._known(data)
        return known.part, known.coefficients

    def expansion_on(self, part: LocalPart) -> Expansion:
        """With functions for the elements of a structure, which are the same for every element."""
        functions = next(iter(self.expansion.radial.values()))
        return Expansion("density", dict.fromkeys(part.symbols, functions))

    # --- inside --------------------------------------------------------------------------------

    def _known(self, data: LCAOData) -> _Known:
        if self._last is not None and self._last.h0() is data.h0:
            return self._last
        self.check(data)
        part = self._local_part(data)
        descriptor = self._describe(part, data)
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
        self._last = _Known(weakref.ref(data.h0), part, found)
        return self._last

    def _describe(self, part: LocalPart, data: LCAOData) -> Descriptor:
        expansion = self.expansion_on(part)
        if self.module.architecture.first_density:
            return describe(part, expansion, data)
        nothing = np.zeros(expansion.offsets(part.symbols)[-1])
        return Descriptor(part.symbols, nothing, nothing, element_table(part))

    def _potentials(self, part: LocalPart, several: Sequence[ndarray]) -> ndarray:
        """The local potential of H with several sets of coefficients in Ry, (n, n1, n2, n3)."""
        expansion = self.expansion_on(part)
        sums = plane_wave_sums(part, expansion)
        neutral = [expansion.neutral(part.symbols, own) for own in several]
        return np.stack([part.potential(sums.plane_waves(own)) for own in neutral])

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
        self._check_pseudopotentials(part, data, engine)
        return part

    def _check_pseudopotentials(self, part: LocalPart, data: LCAOData, engine: NativeH0) -> None:
        """That the engine has those of H(0), or else, where they are not known, of the model."""
        own = pseudopotentials_of(data)
        for name, element, kind in zip(data.symbols, part.symbols, part.kinds, strict=True):
            expected = own.get(name, own.get(element, self.info.pseudopotentials.get(element)))
            found = part.elements[kind].pseudopotential.header.fingerprint
            if expected and found != expected:
                raise ValueError(
                    f"{element}: the pseudopotential in {engine.pseudo_dir} (sha256 "
                    f"{found[:8]}...) is not the one that H(0) or the model was made with "
                    f"({expected[:8]}...); say where that is with pseudo_dir"
                )


def _on_pairs_of(h0: LCAOMatrix, dh: LCAOMatrix) -> LCAOMatrix:
    """dh on the pairs of H(0), which reach further, through projectors, or were cut in a file."""
    return dh.cut_to(h0.pairs)[0].on_pairs(h0.pairs)


def _has_moments(data: LCAOData) -> bool:
    return bool(np.any(np.abs(data.atoms.get_initial_magnetic_moments()) > 1e-3))


def density_model(
    info: ModelInfo,
    module: DensityEnsemble,
    pseudo_dir: str | PathLike | None,
    orbital_dir: str | PathLike | None,
) -> DensityModel:
    """A model that takes pseudopotentials and orbitals from two folders.

    It computes in double precision, whatever its weights were stored in: networks take no time, and
    with single precision dH would obey the symmetry of a crystal to 1e-7 only.
    """
    return DensityModel(info, module.double(), NativeH0(pseudo_dir, orbital_dir))


__all__ = ["DensityModel", "Spread", "density_model"]
