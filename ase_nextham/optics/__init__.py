"""How a crystal answers to light: conductivity and dielectric function of independent electrons.

Two ways lead to the same numbers. ``"pyatb"`` runs PYATB, ``"kubo"`` is our own formula
(:mod:`ase_nextham.optics.kubo`), which needs neither MPI nor PYATB, takes collinear spins, and is
the check of the first. Both need the position operator <i 0|r|j R>.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy import ndarray

from ase_nextham.bands import (
    band_gap,
    eigenvalues,
    fermi_level,
    kmesh,
    occupations,
    spin_degeneracy,
)
from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.optics import adapter, kubo
from ase_nextham.optics.adapter import PyatbFailed, PyatbUnavailable
from ase_nextham.units import PERMITTIVITY

METHODS = ("pyatb", "kubo")
"""Known values of ``method``."""


def optical_conductivity(
    data: LCAOData,
    omega: ndarray,
    kpts: Sequence[int],
    method: str = "pyatb",
    *,
    hamiltonian: LCAOMatrix | None = None,
    nelectrons: float | None = None,
    eta: float = 0.1,
    width: float = 0.05,
) -> ndarray:
    """Optical conductivity from transitions between bands.

    Parameters
    ----------
    data
        With the position operator, and a Hamiltonian unless one is given.
    omega
        Photon energies in eV, shape (nomega,); evenly spaced for ``"pyatb"``.
    kpts
        Points of the Gamma-centred mesh along each reciprocal vector, for example (8, 8, 8).
    method
        ``"pyatb"`` or ``"kubo"``. Where PYATB cannot be loaded, and for collinear spins, which it
        refuses, ``"pyatb"`` warns and does ``"kubo"``.
    hamiltonian
        In place of ``data.best_hamiltonian()``.
    nelectrons
        Electrons per cell, in place of ``data.nelectrons``.
    eta
        Broadening in eV: a transition is a Lorentzian with half its height at +-eta.
    width
        Fermi-Dirac width in eV for a metal. An insulator, which has a gap on the mesh, is filled
        by counting. PYATB fills sharply, up to the Fermi level that this width gives.

    Returns
    -------
    ndarray
        sigma_ab in S/m, complex, shape (3, 3, nomega), for fields exp(-i omega t). In a cell with
        vacuum it refers to the volume of the cell.

    Raises
    ------
    ValueError
        If the position operator is missing or does not belong to the overlap, the Hamiltonian is
        not Hermitian to 1e-6 eV, the overlap is not positive definite, or an argument is out of
        its range.
    PyatbFailed
        If PYATB ends without a result.

    Notes
    -----
    The formula is in :mod:`ase_nextham.optics.kubo`. The Drude term of a metal, due to electrons
    that stay in their band, is not included. PYATB leaves out transitions above 1.5 times the
    highest of the ``omega``, which matters for the imaginary part (0.2 % of the maximum of Si for
    0 to 10 eV, everything for energies far below a gap); they are added with our own formula.
    """
    return _conductivity(data, omega, kpts, method, hamiltonian, nelectrons, eta, width)


def dielectric_function(
    data: LCAOData,
    omega: ndarray,
    kpts: Sequence[int],
    method: str = "pyatb",
    *,
    hamiltonian: LCAOMatrix | None = None,
    nelectrons: float | None = None,
    eta: float = 0.1,
    width: float = 0.05,
) -> ndarray:
    """Relative dielectric function from transitions between bands.

    Arguments and errors are those of :func:`optical_conductivity`.

    Returns
    -------
    ndarray
        epsilon_ab, complex, shape (3, 3, nomega).

    Notes
    -----
    ``epsilon = 1 + i sigma(omega) / (eps0 (omega + i eta))``: the field is switched on with the
    same exp(eta t) here and in sigma. So it is finite at omega = 0, where it is the static
    dielectric constant up to terms in (eta / gap)^2, and it equals what PYATB prints for crystals
    that obey time reversal. For others PYATB leaves out the part that the Hall conductivity at
    omega = 0 contributes; here it is included. A metal has in addition its Drude term.
    """
    sigma = _conductivity(data, omega, kpts, method, hamiltonian, nelectrons, eta, width)
    z = np.asarray(omega, float) + 1j * eta
    return np.eye(3)[:, :, None] + 1j * sigma / (PERMITTIVITY * z)


def pyatb_bands(data: LCAOData, kpts: ndarray, *, hamiltonian: LCAOMatrix | None = None) -> ndarray:
    """Energies of all bands as PYATB computes them.

    Parameters
    ----------
    data
        With a Hamiltonian unless one is given.
    kpts
        In units of the reciprocal vectors, shape (nkpts, 3).
    hamiltonian
        In place of ``data.best_hamiltonian()``.

    Returns
    -------
    ndarray
        In eV, shape (nspins, nkpts, nbands).

    Raises
    ------
    ValueError
        If the Hamiltonian is not Hermitian to 1e-6 eV or the overlap not positive definite.
    PyatbUnavailable
        If PYATB, mpi4py or the MPI library cannot be loaded.
    PyatbFailed
        If PYATB ends without a result.
    """
    kpts = np.asarray(kpts, float)
    if kpts.ndim != 2 or kpts.shape[1] != 3 or not len(kpts) or not np.isfinite(kpts).all():
        raise ValueError(f"kpts must be finite numbers of shape (nkpts, 3), not {kpts.shape}")
    data = _with_hamiltonian(data, hamiltonian)
    try:
        np.linalg.cholesky(data.overlap.at_k(kpts))
    except np.linalg.LinAlgError:
        raise ValueError(
            "the overlap is not positive definite at all of the k-points, which PYATB does not "
            "notice; were all pairs of overlapping atoms read?"
        ) from None
    return adapter.bands(data, kpts)


def _conductivity(data, omega, kpts, method, hamiltonian, nelectrons, eta, width) -> ndarray:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known methods: {', '.join(METHODS)}")
    omega, size = _photon_energies(omega), _mesh_size(kpts)
    _check_energy("eta", eta, smallest=1e-6)
    _check_energy("width", width, smallest=0.0)
    data = _with_hamiltonian(data, hamiltonian)
    _check_position(data)
    H = data.best_hamiltonian()
    if method == "pyatb" and H.spin == "collinear":
        _warn_of_kubo("PYATB computes no conductivity for collinear spins")
        method = "kubo"
    cut = adapter.largest_transition(omega) if method == "pyatb" else 0.0

    crystal = kubo.Crystal(H, data.overlap, data.position, data.atoms.cell.array)
    paired = crystal.obeys_time_reversal()
    mesh = kmesh(data.atoms, {"size": size, "gamma": True}, symmetry=False, time_reversal=paired)
    eps = eigenvalues(H, data.overlap, mesh.kpts)
    electrons = data.electron_count() if nelectrons is None else float(nelectrons)
    gap = band_gap(eps, electrons, H.spin)
    if gap is None:
        capacity = mesh.weights * spin_degeneracy(H.spin)
        level = fermi_level(eps, capacity, electrons, width=width)
    else:
        level, width = (gap.vbm + gap.cbm) / 2, 0.0

    def transitions(width: float, above: float = 0.0) -> ndarray:
        occupied = occupations(eps, level, width=width)
        return kubo.interband_conductivity(
            crystal, omega, mesh.kpts, mesh.weights, occupied, eta=eta, paired=paired, above=above
        )

    if method == "pyatb":
        if np.isnan(eps).any():
            raise ValueError(
                "the overlap is nearly singular, which PYATB cannot handle; use method='kubo'"
            )
        try:
            sigma, _ = adapter.conductivity(data, omega, size, level, eta)
        except PyatbUnavailable as err:
            _warn_of_kubo(str(err))
        else:
            return sigma + transitions(0.0, above=cut)
    return transitions(width)


def _warn_of_kubo(reason: str) -> None:
    # the line that called one of the public functions
    warnings.warn(f"{reason}\nComputing with method='kubo' instead.", stacklevel=4)


def _photon_energies(omega) -> ndarray:
    omega = np.asarray(omega, float)
    if omega.ndim != 1 or not len(omega) or not np.isfinite(omega).all() or omega.min() < 0:
        raise ValueError(
            "omega must be photon energies in eV, finite and not negative, in an array of shape "
            f"(nomega,); got shape {omega.shape}"
        )
    return omega


def _mesh_size(kpts) -> tuple[int, int, int]:
    size = np.asarray(kpts)
    if size.shape != (3,) or not np.issubdtype(size.dtype, np.integer) or size.min() < 1:
        raise ValueError(
            f"kpts must be the three sizes of a mesh, positive integers such as (8, 8, 8); "
            f"got {kpts!r}"
        )
    return tuple(int(n) for n in size)


def _check_energy(name: str, value: float, *, smallest: float) -> None:
    if not smallest <= value < np.inf:
        raise ValueError(f"{name} must be an energy of at least {smallest:g} eV, not {value!r}")


def _with_hamiltonian(data: LCAOData, hamiltonian: LCAOMatrix | None) -> LCAOData:
    """The data with the Hamiltonian to be used as its best one."""
    if hamiltonian is not None:
        data = replace(data, hamiltonian=hamiltonian)
    error = data.best_hamiltonian().hermitian_error()
    if not error <= 1e-6:
        raise ValueError(
            f"the Hamiltonian is not Hermitian: elements differ from those of its conjugate by up "
            f"to {error:.2g} eV, where 1e-6 eV is allowed"
        )
    return data


def _check_position(data: LCAOData) -> None:
    if data.position is None:
        raise ValueError(
            f"{data!r} holds no position operator <i 0|r|j R>, which optics needs: run ABACUS with "
            "out_mat_r 1, or the H(0) backend with position=True"
        )
    error = data.position_error()
    if not error <= 1e-4:
        raise ValueError(
            "the position operator does not belong to the overlap and cell: r(R) differs from "
            f"r(-R)^T + R S(R) by up to {error:.2g} Angstrom; were both written by one calculation?"
        )


__all__ = [
    "PyatbFailed",
    "PyatbUnavailable",
    "dielectric_function",
    "optical_conductivity",
    "pyatb_bands",
]
