"""PYATB as a library: matrices go in from memory, energies and conductivities come out.

PYATB is run in a process and a folder of its own (:mod:`ase_nextham.optics.worker`), because
importing it starts MPI, creates ``./Out`` and truncates ``./Out/running.log``, and misuse makes it
end without a Python error. What else a caller is shielded from:

* Left-handed cells: PYATB divides by the signed volume, which turns the sign of the conductivity.
  Two lattice vectors are exchanged, in the cell, in R and in the mesh; the tensor stays Cartesian.
* It reads the upper triangle of each matrix only, and needs H, S and r on the same R.
* It loses the last photon energy when the division of the range by the step rounds down.
* It leaves out transitions above about 1.5 times the highest photon energy asked for
  (:func:`largest_transition`), so that its result depends on the range; callers add the rest.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy import ndarray

from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.optics import worker

INSTALL = "pip install 'ase_nextham[pyatb]' installs PYATB together with an MPI library"

# what mpiexec tells its processes: inherited, it would make the MPI of the worker wait for others
_LAUNCHER = (
    "PMI_", "PMIX_", "HYDI_", "HYDRA_", "MPI_LOCAL", "OMPI_COMM_", "OMPI_UNIVERSE_",
    "OMPI_MCA_orte_", "OMPI_MCA_ess", "OMPI_MCA_pmix", "PRTE_",
)  # fmt: skip


class PyatbUnavailable(ImportError):
    """PYATB, mpi4py or the MPI library cannot be loaded."""


class PyatbFailed(RuntimeError):
    """PYATB was loaded, and ended without a result."""


def check_installed() -> None:
    """Raise :class:`PyatbUnavailable` if PYATB or mpi4py is not installed."""
    missing = [name for name in ("pyatb", "mpi4py") if importlib.util.find_spec(name) is None]
    if missing:
        raise PyatbUnavailable(f"{' and '.join(missing)} not installed: {INSTALL}")


def largest_transition(omega: ndarray) -> float:
    """The energy in eV above which PYATB leaves out transitions, for evenly spaced ``omega``."""
    start, step = _range(omega)
    return start + int(1.5 * len(omega)) * step


def conductivity(
    data: LCAOData, omega: ndarray, size: tuple[int, int, int], fermi_level: float, eta: float
) -> tuple[ndarray, ndarray]:
    """What PYATB's ``Optical_Conductivity`` returns, untouched but for the sign of the volume.

    Parameters
    ----------
    data
        With a Hamiltonian, unpolarised or spinor, and the position operator.
    omega
        Evenly spaced photon energies in eV, shape (nomega,).
    size
        Points of the Gamma-centred mesh along each reciprocal vector.
    fermi_level
        In eV; states up to it are filled.
    eta
        Broadening in eV.

    Returns
    -------
    (ndarray, ndarray)
        Conductivity in S/m and dielectric function, shape (3, 3, nomega), complex.

    Raises
    ------
    PyatbUnavailable, PyatbFailed
        If PYATB cannot be loaded, or ends without a result.
    ValueError
        If ``omega`` is not evenly spaced or spins are collinear.
    """
    if data.best_hamiltonian().spin == "collinear":
        raise ValueError("PYATB computes no conductivity for collinear spins; use method='kubo'")
    start, step = _range(omega)
    axes = _right_handed(data)
    request = _operators(data, axes, position=True) | {
        "start": start,
        "step": step,
        "number": len(omega),
        "eta": eta,
        "size": np.array(size)[axes],
        "fermi_level": fermi_level,
    }
    answer = _run(request)
    return tuple(answer[name].reshape(3, 3, -1) for name in ("sigma", "epsilon"))


def bands(data: LCAOData, kpts: ndarray) -> ndarray:
    """Energies in eV from PYATB, shape (nspins, nkpts, nbands).

    Raises
    ------
    PyatbUnavailable, PyatbFailed
        If PYATB cannot be loaded, or ends without a result.
    """
    axes = _right_handed(data)
    return _run(_operators(data, axes, position=False) | {"kpts": kpts[:, axes]})["eps"]


def _range(omega: ndarray) -> tuple[float, float]:
    """First photon energy and step."""
    if len(omega) == 1:
        return float(omega[0]), 1.0
    step = (omega[-1] - omega[0]) / (len(omega) - 1)
    even = omega[0] + step * np.arange(len(omega))
    if step <= 0 or np.abs(even - omega).max() > 1e-6 * step:
        raise ValueError(
            "PYATB takes evenly spaced photon energies in ascending order, which these are not; "
            "use numpy.linspace, or method='kubo' for any others"
        )
    return float(omega[0]), float(step)


def _right_handed(data: LCAOData) -> list[int]:
    return [0, 1, 2] if np.linalg.det(data.atoms.cell.array) > 0 else [1, 0, 2]


def _operators(data: LCAOData, axes: list[int], *, position: bool) -> dict[str, ndarray]:
    """Cell and operators with lattice vectors in the order ``axes``, upper triangles only."""
    hamiltonian = data.best_hamiltonian()
    spin = "spinor" if hamiltonian.spin == "spinor" else "unpolarised"
    R, number_of_R = np.unique(data.pairs.R[:, axes], axis=0, return_inverse=True)
    row, column, elements = _upper_triangle(hamiltonian, number_of_R.ravel())
    result = {
        "cell": data.atoms.cell.array[axes],
        "R": R,
        "row": row,
        "column": column,
        "dimension": hamiltonian.dimension,
        "capacity": 2 if hamiltonian.spin == "unpolarised" else 1,
        "hamiltonian": np.atleast_2d(hamiltonian.data)[:, elements],
        "overlap": data.overlap.with_spin(spin).data[elements],
    }
    if position:
        r = [matrix.with_spin(spin).data[elements] for matrix in data.position]
        result["position"] = np.array(r)
    return result


def _upper_triangle(matrix: LCAOMatrix, number_of_R: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """PYATB's place of each element of an upper triangle: row, column; and its position in data.

    There is a row for each R and a column for each element on or above the diagonal, row by row.
    """
    rows, columns, positions = [], [], []
    for _, _, p, elements in matrix.block_groups():
        first_i = matrix.first_orbital[matrix.pairs.i[p]][:, None, None]
        first_j = matrix.first_orbital[matrix.pairs.j[p]][:, None, None]
        mu = first_i + np.arange(elements.shape[1])[:, None]
        nu = first_j + np.arange(elements.shape[2])
        place = mu * matrix.dimension - mu * (mu - 1) // 2 + nu - mu
        upper = mu <= nu
        rows.append(np.broadcast_to(number_of_R[p][:, None, None], upper.shape)[upper])
        columns.append(place[upper])
        positions.append(elements[upper])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(positions)


def _run(request: Mapping[str, ndarray]) -> dict[str, ndarray]:
    """Hand arrays to the worker and take the arrays that it returns."""
    check_installed()
    with TemporaryDirectory(prefix="ase_nextham-pyatb-") as folder:
        folder = Path(folder)
        np.savez(folder / "input.npz", **request)
        run = subprocess.run(
            [sys.executable, "-P", worker.__file__],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        tail = "\n".join(run.stdout.strip().splitlines()[-12:]) or "(it printed nothing)"
        if not (folder / worker.IMPORTED).exists():
            raise PyatbUnavailable(f"PYATB could not be loaded. {INSTALL}. It said:\n{tail}")
        if run.returncode or not (folder / "output.npz").exists():
            raise PyatbFailed(f"PYATB ended with exit status {run.returncode}. It said:\n{tail}")
        with np.load(folder / "output.npz") as file:
            answer = dict(file)
    broken = [name for name, values in answer.items() if not np.isfinite(values).all()]
    if broken:
        raise PyatbFailed(
            f"PYATB returned numbers that are not finite ({', '.join(broken)}). Two things do "
            "that: an overlap that is almost singular, and a metal with states of the same energy "
            "on both sides of the Fermi level"
        )
    return answer


def _environment() -> dict[str, str]:
    """The environment without the marks of an MPI launcher, and with this process's sys.path."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith(_LAUNCHER)}
    kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    return kept
