"""From operators as they are read to a sample: checked, with its energy zero on that of H(0).

What is refused here never reaches training: operators that do not belong together, a loop that did
not converge, numbers that are not finite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ase_nextham.data import LCAOData
from ase_nextham.h0 import H0Backend
from ase_nextham.h0.density import Density
from ase_nextham.matrix import LCAOMatrix, aligned
from ase_nextham.training.dataset_density import check_density
from ase_nextham.training.dataset_kspace import KSpace, fermi_level_of, k_space, random_kpts

HERMITIAN_TOLERANCE = 1e-6
"""Largest |O - O^dagger| that passes, in eV and for S in 1: the digits that files carry."""

OVERLAP_TOLERANCE = 1e-5
"""Largest difference between the overlap of a source and the one that was computed here. Two
implementations agree to 1e-7 or better; other orbitals or another structure differ by 1e-2."""

_PRESENT = 1e-3  # eV: a block with smaller elements may be missing in a file


@dataclass(frozen=True, eq=False)
class Prepared:
    """What becomes a sample.

    Parameters
    ----------
    data
        Overlap, H(0) and the Hamiltonian on its scale, ``H + mu S``; the Fermi level is moved by
        mu, too.
    mu
        In eV.
    label_spin
        Spin of the Hamiltonian as it was read.
    k_space
        Eigenstates, or None.
    density
        Self-consistent, or None.
    """

    data: LCAOData
    mu: float
    label_spin: str
    k_space: KSpace | None
    density: Density | None = None


def prepare(
    data: LCAOData,
    name: str,
    *,
    h0: H0Backend | None = None,
    spinor_h0: H0Backend | None = None,
    nkpts: int = 0,
    density: Density | None = None,
) -> Prepared:
    """A sample of the operators of one structure.

    Parameters
    ----------
    data
        With overlap, Hamiltonian and, unless ``h0`` is given, H(0).
    name
        Of the structure: decides the k-points.
    h0, spinor_h0, nkpts
        As in :func:`ase_nextham.training.dataset_build.build`.
    density
        Of the self-consistent run, where it is known.

    Raises
    ------
    ValueError
        Saying what is missing, or does not belong together.
    """
    data = replace(data, position=None)
    if data.hamiltonian is None:
        raise ValueError(
            "there is no self-consistent Hamiltonian to learn from; was the self-consistent run "
            "given together with that of H(0)?"
        )
    _check_converged(data)
    if h0 is not None:
        data = _with_h0_of(data, h0)
    if data.h0 is None:
        raise ValueError(
            "there is no H(0); give the run that wrote it (get_hs) as well, or have it computed "
            "(h0='native')"
        )
    label_spin = data.hamiltonian.spin
    _check(data)
    if density is not None:
        check_density(density, data.atoms, data.nelectrons)
    hamiltonian, mu = aligned(data.hamiltonian, data.h0, data.overlap)
    fermi_level = None
    if nkpts or data.fermi_level is not None:
        fermi_level = fermi_level_of(data) + mu
    data = replace(data, hamiltonian=hamiltonian, fermi_level=fermi_level)
    if spinor_h0 is not None:
        data = _on_spinor_h0(data, spinor_h0)
    states = None
    if nkpts:
        states = k_space(data, random_kpts(nkpts, name), fermi_level=fermi_level)
    return Prepared(data, mu, label_spin, states, density)


def _check_converged(data: LCAOData) -> None:
    runs = [data.source, *data.source.get("runs", {}).values()]
    # a run of one step, which gave H(0), has not converged either
    labels = [run for run in runs if run.get("operator") != "h0"]
    if any(run.get("converged") is False for run in labels):
        raise ValueError(
            "the self-consistent loop did not converge, so that its Hamiltonian is no label; run "
            "it with more steps or another mixing"
        )


def _check(data: LCAOData) -> None:
    """Refuse operators that are damaged or do not belong together."""
    if data.h0.spin != data.hamiltonian.spin:
        raise ValueError(
            f"H(0) is {data.h0.spin} and the Hamiltonian {data.hamiltonian.spin}; both have to be "
            "computed with the same nspin. Labels without spin serve spinor H(0), too: see "
            "spinor_h0"
        )
    named = {"the overlap": data.overlap, "H(0)": data.h0, "the Hamiltonian": data.hamiltonian}
    for name, matrix in named.items():
        if not np.isfinite(matrix.data).all():
            raise ValueError(f"{name} holds numbers that are not finite")
        error = matrix.hermitian_error()
        if error > HERMITIAN_TOLERANCE:
            raise ValueError(
                f"{name} is not Hermitian: elements differ from their conjugates by {error:.2g}, "
                f"and {HERMITIAN_TOLERANCE:g} is allowed; is its file complete?"
            )
    _check_pairs(data)


def _check_pairs(data: LCAOData) -> None:
    """Refuse H(0) and H of which one was cut to fewer pairs."""
    size = {name: _largest(matrix) for name, matrix in (("H(0)", data.h0), ("H", data.hamiltonian))}
    for here, there in (("H(0)", "H"), ("H", "H(0)")):
        lost = np.where(size[there] == 0, size[here], 0)
        p = int(np.argmax(lost)) if len(lost) else 0
        if len(lost) and lost[p] > _PRESENT:
            raise ValueError(
                f"{here} has elements up to {lost[p]:.3g} eV at the pair {data.pairs.name(p)}, "
                f"where {there} has none: one of them was cut to fewer pairs"
            )


def _largest(matrix: LCAOMatrix) -> np.ndarray:
    """Largest element of each block, shape (npairs,)."""
    if not len(matrix.pairs):
        return np.zeros(0)
    size = np.abs(matrix.data).reshape(-1, matrix.offsets[-1]).max(axis=0)
    return np.maximum.reduceat(size, matrix.offsets[:-1])


def _with_h0_of(data: LCAOData, backend: H0Backend) -> LCAOData:
    """The data with H(0) as a backend computes it."""
    computed = _computed(data, backend)
    if computed.h0.spin != data.hamiltonian.spin:
        raise ValueError(
            f"the backend gives a {computed.h0.spin} H(0), but the Hamiltonian is "
            f"{data.hamiltonian.spin}; give it the same nspin. Labels without spin serve spinor "
            "H(0) through spinor_h0"
        )
    nelectrons = computed.nelectrons if data.nelectrons is None else data.nelectrons
    source = {**data.source, "h0": dict(computed.source)}
    return replace(data, h0=computed.h0, nelectrons=nelectrons, source=source)


def _on_spinor_h0(data: LCAOData, backend: H0Backend) -> LCAOData:
    """The correction without spin, added to an H(0) with spin-orbit coupling.

    dH comes from the density, which hardly knows of spin-orbit coupling.
    """
    if data.hamiltonian.spin != "unpolarised":
        raise ValueError(
            f"the Hamiltonian is {data.hamiltonian.spin}; only a correction without spin can be "
            "moved to a spinor H(0)"
        )
    computed = _computed(data, backend)
    if computed.h0.spin != "spinor":
        raise ValueError(
            f"spinor_h0 gives a H(0) that is {computed.h0.spin}; it needs nspin=4 and fully "
            "relativistic pseudopotentials"
        )
    correction = (data.hamiltonian - data.h0).with_spin("spinor")
    source = {**data.source, "spinor_h0": dict(computed.source)}
    return replace(data, h0=computed.h0, hamiltonian=computed.h0 + correction, source=source)


def _computed(data: LCAOData, backend: H0Backend) -> LCAOData:
    computed = backend.compute(data.atoms)
    reason = computed.basis.difference(data.basis)
    if reason:
        raise ValueError(f"H(0) was computed with other orbitals than the Hamiltonian: {reason}")
    difference = np.abs((computed.overlap - data.overlap).data).max(initial=0)
    if difference > OVERLAP_TOLERANCE:
        raise ValueError(
            f"the overlap of {backend!r} differs from the one beside the Hamiltonian by "
            f"{difference:.2g}; is it the same structure, with the same orbitals?"
        )
    return computed


__all__ = ["HERMITIAN_TOLERANCE", "OVERLAP_TOLERANCE", "Prepared", "prepare"]
