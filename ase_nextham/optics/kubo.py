"""The Kubo-Greenwood formula in a basis of atomic orbitals, with numpy alone.

In the lattice gauge, ``O(k) = sum_R exp(i k.R) O(R)``, hbar times the matrix elements of the
velocity between the solutions C_n and C_m of ``H C = E S C`` are::

    v_nm = C_n^+ [dH/dk - E_n dS/dk + i (E_n - E_m) r(k)] C_m

r(k) is the Bloch sum of <i 0|r|j R>, with the origin of the home cell. It is not Hermitian: the
Bloch sum of r(R) = r(-R)^T + R S(R) is ``r(k)^+ = r(k) + i dS/dk``. That is what makes v Hermitian,
and independent of the cell to which an atom is counted: moving the atom changes r(k) by a lattice
vector times S(k), and dH/dk and dS/dk through the phase of its orbitals, and the two cancel.

With z = omega + i eta and delta = E_m - E_n > 0 the conductivity is::

    sigma_ab = e^2 / (hbar V) sum_k w_k sum_nm (f_n - f_m) / delta
               * [2 i z Re(v^a_nm v^b_mn) - 2 delta Im(v^a_nm v^b_mn)] / (z^2 - delta^2)

which is the Lorentzian form of PYATB, its two poles z = delta and z = -delta taken together.
G. Jin, D. Zheng, L. He, J. Phys.: Condens. Matter 33, 325503 (2021) for the non-orthogonal basis.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from threadpoolctl import threadpool_info, threadpool_limits

from ase_nextham.bands import eigenstates, spin_degeneracy
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.units import CONDUCTIVITY

DEGENERATE = 1e-6
"""In eV: transitions between states closer than this belong to the Drude term."""

_EQUALLY_FILLED = 1e-12  # difference of two occupations below which there is no transition
_HELD = 2**23  # complex numbers of all states held at once, 128 MB
_AT_ONCE = 2**20  # complex numbers of one kind in one thread, 16 MB
_COMPONENTS = ((0, 0), (1, 1), (2, 2), (1, 2), (2, 0), (0, 1))


@dataclass(frozen=True, eq=False)
class Crystal:
    """The operators that the formula needs.

    Parameters
    ----------
    hamiltonian
        In eV, of any spin.
    overlap
        Unpolarised.
    position
        x, y, z of <i 0|r|j R> in Angstrom, unpolarised.
    cell
        Cell vectors in Angstrom as rows, shape (3, 3).
    """

    hamiltonian: LCAOMatrix
    overlap: LCAOMatrix
    position: tuple[LCAOMatrix, LCAOMatrix, LCAOMatrix]
    cell: ndarray

    def obeys_time_reversal(self, tolerance: float = 1e-5) -> bool:
        """Whether -k tells nothing that k does not: to ``tolerance`` in eV.

        Collinear spins count as two scalar crystals, each of which obeys it while real.
        """
        H = self.hamiltonian
        if H.spin == "spinor":
            return H.time_reversal_error() <= tolerance
        return float(np.abs(np.imag(H.data)).max(initial=0)) <= tolerance


def velocities(
    crystal: Crystal,
    kpts: ndarray,
    eps: ndarray,
    states: ndarray,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> ndarray:
    """hbar times the matrix elements of the velocity between Bloch states.

    Parameters
    ----------
    kpts
        In units of the reciprocal vectors, shape (nkpts, 3).
    eps, states
        As :func:`ase_nextham.bands.eigenstates` returns them for ``kpts``.
    rows, columns
        Bands n and m of the elements asked for.

    Returns
    -------
    ndarray
        In eV Angstrom, shape (3, nspins, nkpts, nrows, ncolumns).
    """
    left, right = states[..., rows], states[..., columns]
    e_n, e_m = eps[..., rows, None], eps[..., None, columns]
    dH = crystal.hamiltonian.gradient_at_k(kpts, crystal.cell)
    dS = crystal.overlap.gradient_at_k(kpts, crystal.cell)
    v = np.empty((3, *left.shape[:2], left.shape[-1], right.shape[-1]), complex)
    for axis in range(3):
        v[axis] = _between(left, dH[axis], right)
        v[axis] -= e_n * _between(left, dS[axis], right)
        v[axis] += 1j * (e_n - e_m) * _between(left, crystal.position[axis].at_k(kpts), right)
    return v


def _between(left: ndarray, operator: ndarray, right: ndarray) -> ndarray:
    """C^+ O C for each spin and k-point; O without spin acts on both components of spinors."""
    if operator.shape[-1] == left.shape[-2]:
        return left.conj().swapaxes(-1, -2) @ (operator @ right)
    return sum(_between(left[..., s::2, :], operator, right[..., s::2, :]) for s in range(2))


def interband_conductivity(
    crystal: Crystal,
    omega: ndarray,
    kpts: ndarray,
    weights: ndarray,
    occupations: ndarray,
    *,
    eta: float,
    paired: bool,
    above: float = 0.0,
) -> ndarray:
    """Conductivity due to transitions between different bands.

    Parameters
    ----------
    omega
        Photon energies in eV, shape (nomega,).
    kpts, weights
        k-points in units of the reciprocal vectors, shape (nkpts, 3), and their weights, which
        add up to 1.
    occupations
        Between 0 and 1, shape (nspins, nkpts, nbands).
    eta
        Half the width of a line at half its height, in eV.
    paired
        Whether each k-point stands for -k as well. Time reversal makes the conductivity of the
        two together symmetric.
    above
        Leave out transitions of no more than this energy in eV.

    Returns
    -------
    ndarray
        Complex, in S/m, shape (3, 3, nomega).
    """
    z = np.asarray(omega, float) + 1j * eta
    filled, free = occupations > _EQUALLY_FILLED, occupations < 1 - _EQUALLY_FILLED
    nbands = occupations.shape[-1]
    rows = slice(0, nbands - _first(filled[..., ::-1]))
    columns = slice(_first(free), nbands)

    def transitions(inside: slice, eps: ndarray, states: ndarray) -> ndarray:
        f = occupations[:, inside]
        delta = eps[..., None, columns] - eps[..., rows, None]
        change = f[..., rows, None] - f[..., None, columns]
        wanted = (delta > max(above, DEGENERATE)) & (change > _EQUALLY_FILLED)
        v = velocities(crystal, kpts[inside], eps, states, rows, columns)[:, wanted]
        factor = (weights[inside, None, None] * change)[wanted] / delta[wanted]
        delta = delta[wanted]
        strengths = [factor * (v[a] * v[b].conj()).real for a, b in _COMPONENTS]
        if not paired:
            strengths += [factor * delta * (v[a] * v[b].conj()).imag for a, b in _COMPONENTS[3:]]
        return _resonances(np.array(strengths), delta, z)

    total = np.zeros((6 if paired else 9, len(z)), complex)
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    for batch in _runs(0, len(kpts), _HELD // crystal.hamiltonian.dimension**2):
        eps, states = eigenstates(crystal.hamiltonian, crystal.overlap, kpts[batch])

        def part(inside: slice, eps=eps, states=states, first=batch.start) -> ndarray:
            here = slice(inside.start - first, inside.stop - first)
            return transitions(inside, eps[:, here], states[:, here])

        # numpy's products of many small matrices use one thread each, whatever BLAS is told
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(max(blas, default=1)) as pool:
            size = min(64, _AT_ONCE // crystal.hamiltonian.dimension**2)
            total += sum(pool.map(part, _runs(batch.start, batch.stop, size)))

    sigma = np.zeros((3, 3, len(z)), complex)
    for (a, b), even in zip(_COMPONENTS, total[:6], strict=True):
        sigma[a, b] = sigma[b, a] = 2j * z * even
    for (a, b), odd in zip(_COMPONENTS[3:], total[6:], strict=not paired):
        sigma[a, b] -= 2 * odd
        sigma[b, a] += 2 * odd
    volume = abs(np.linalg.det(crystal.cell))  # the determinant is negative in left-handed cells
    return sigma * (spin_degeneracy(crystal.hamiltonian.spin) * CONDUCTIVITY / volume)


def _first(bands: ndarray) -> int:
    """The lowest band of which anything is true, the number of bands if there is none."""
    return int(np.argmax(bands.any(axis=(0, 1)))) if bands.any() else bands.shape[-1]


def _runs(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, max(size, 1)):
        yield slice(first, min(first + max(size, 1), stop))


def _resonances(strengths: ndarray, delta: ndarray, z: ndarray) -> ndarray:
    """sum_t strengths[:, t] / (z^2 - delta_t^2), shape (nstrengths, nomega)."""
    result = np.zeros((len(strengths), len(z)), complex)
    for inside in _runs(0, len(delta), _AT_ONCE // len(z)):
        poles = 1 / (z**2 - delta[inside, None] ** 2)
        # real times complex as one real product: numpy would copy the real factor to complex
        result += (strengths[:, inside] @ poles.view(float)).view(complex)
    return result
