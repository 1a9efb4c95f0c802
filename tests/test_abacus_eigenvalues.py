"""Eigenvalues of the matrices that are read against those ABACUS prints itself."""

from __future__ import annotations

import re
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import eigh

from ase_nextham.h0.folder import read_folder
from ase_nextham.units import BOHR, RYDBERG

LATTICE_CONSTANT = 1.8897261254578281 * BOHR  # of all these runs, in Angstrom


def istate(path):
    """k-points (fractional) and energies (nspins, nkpts, nbands) of istate.info (up to 3.9)."""
    kpts, rows = [], []
    for line in path.read_text().splitlines():
        head = re.search(r"Kpoint = *\d+ *\((.*)\)", line)
        if head:
            kpts.append([float(x) for x in head[1].split()])
            rows.append([])
        elif line.split():
            rows[-1].append([float(x) for x in line.split()[1::2]])
    return np.array(kpts), np.moveaxis(np.array(rows), -1, 0)


def eig_occ(path, cell):
    """The same of the last ionic step in eig_occ.txt (3.11), for nspin 1 and 4."""
    kpts, rows = [], []
    for line in path.read_text().split("# ionic step")[-1].splitlines():
        head = re.search(r"k-point=\d+/\d+ Cartesian=(\S+) (\S+) (\S+)", line)
        if head:
            kpts.append([float(x) for x in head.groups()])  # in 2 pi / lattice constant
            rows.append([])
        elif re.fullmatch(r"\s*\d+ \S+ \S+", line):
            rows[-1].append(float(line.split()[1]))
    return np.array(kpts) @ cell.T / LATTICE_CONSTANT, np.array(rows)[None]


def solve(data, k):
    """Energies and coefficients of both spins at one k-point."""
    H = data.best_hamiltonian()
    S = data.overlap.with_spin(H.spin) if H.spin == "spinor" else data.overlap
    matrices = H.at_k(k) if H.spin == "collinear" else H.at_k(k)[None]
    return [eigh(matrix, S.at_k(k)) for matrix in matrices]


def largest_difference(data, kpts, printed) -> float:
    error = 0.0
    for k, expected in zip(kpts, np.moveaxis(printed, 1, 0), strict=True):
        for (found, _), energies in zip(solve(data, k), expected, strict=True):
            error = max(error, np.abs(found[: len(energies)] - energies).max())
    return error


@pytest.mark.parametrize(
    ("run", "step"),
    [
        ("h2o", None),
        ("h2o_step1", None),
        ("h2o_labels", None),
        ("h2o_soc", None),
        ("oh_soc", None),
        ("oh_soc_auto", None),
        ("h2o_relax", 1),
    ],
)
@pytest.mark.parametrize("version", ["v3.8.1", "v3.11.0-beta.1"])
def test_eigenvalues_are_those_of_abacus(abacus_folders, version, run, step):
    folder = abacus_folders / version / run
    data = read_folder(folder, step=step)
    if version == "v3.8.1":
        kpts, printed = istate(folder / "OUT.ABACUS" / "istate.info")
    else:
        kpts, printed = eig_occ(folder / "OUT.ABACUS" / "eig_occ.txt", data.atoms.cell.array)
    assert printed.shape[0] == 1
    assert largest_difference(data, kpts, printed) < 1e-6  # eV


@pytest.mark.parametrize("run", ["oh_nspin2", "oh_nspin2_mix0"])
def test_eigenvalues_of_both_spins_are_those_of_abacus(abacus_folders, run):
    folder = abacus_folders / "v3.8.1" / run
    kpts, printed = istate(folder / "OUT.ABACUS" / "istate.info")
    assert printed.shape[0] == 2
    # istate.info has six digits where there are two spins
    assert largest_difference(read_folder(folder), kpts, printed) < 6e-5  # eV


def test_eigenvalues_do_not_depend_on_order_and_images(abacus_folders):
    folder = abacus_folders / "v3.8.1" / "h2o_soc"
    kpts, printed = istate(folder / "OUT.ABACUS" / "istate.info")
    atoms = read_folder(folder).atoms[[2, 0, 1]]
    atoms.positions += [[1, -2, 0], [0, 0, 3], [0, 1, 0]] @ atoms.cell.array
    assert largest_difference(read_folder(folder, atoms=atoms), kpts, printed) < 1e-6  # eV


# --- larger crystals, outside the repository ------------------------------------------------------

CRYSTALS = [
    "Al_nspin1",
    "Au_soc_zero",
    "GaAs_soc_zero",
    "MgO_nspin1",
    "MoS2_soc_zero",
    "Si2_nspin1",
    "graphene_nspin1",
]


def rounding(matrix, unit):
    """Half a unit in the last of the nine digits that are printed, as a matrix."""

    def half_unit(values):
        values = np.abs(values) / unit
        magnitude = np.floor(np.log10(np.where(values == 0, 1.0, values)))
        # what is not printed is below 1e-10
        return np.where(values == 0, 1e-10, 0.5 * 10.0 ** (magnitude - 8)) * unit

    data = half_unit(matrix.data.real)
    if np.iscomplexobj(matrix.data):
        data = data + half_unit(matrix.data.imag)
    return replace(matrix, data=data).at_k([0, 0, 0]).real  # the sum over all R


@pytest.mark.parametrize("name", CRYSTALS)
def test_eigenvalues_of_crystals_are_those_of_abacus(shared_data, tmp_path, name):
    """1e-6 eV up to 15 eV above the Fermi level, and everywhere what nine digits allow.

    Of the bands far above, those made of orbitals that are nearly linearly dependent amplify the
    rounding of the files: to 4e-4 eV in aluminium, 200 eV above the Fermi level. First order
    perturbation theory bounds it: |c|^T (dH + |E| dS) |c|.
    """
    with tarfile.open(shared_data / "abacus" / "scf" / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_folder(
            [folder / "get_hs", folder / "scf"],
            pseudo_dir=shared_data / "pseudo",
            orbital_dir=shared_data / "orbital",
        )
    assert data.h0 is not None
    assert data.hamiltonian.hermitian_error() < 1e-6  # eV
    if data.position is not None:
        assert data.position_error() < 1e-6  # Angstrom
    kpts, printed = istate(folder / "scf" / "OUT.ABACUS" / "istate.info")
    S = data.overlap.with_spin(data.hamiltonian.spin)
    dH, dS = rounding(data.hamiltonian, RYDBERG), rounding(S, 1.0)
    some = slice(None, None, max(1, len(kpts) // 16))
    for k, expected in zip(kpts[some], printed[0][some], strict=True):
        ((found, c),) = solve(data, k)
        n = len(expected)
        found, c = found[:n], np.abs(c[:, :n])
        error = np.abs(found - expected)
        assert error[found < data.fermi_level + 15].max() < 1e-6  # eV
        allowed = np.einsum("in,ij,jn->n", c, dH, c)
        allowed += np.abs(found) * np.einsum("in,ij,jn->n", c, dS, c)
        assert (error < allowed).all()
