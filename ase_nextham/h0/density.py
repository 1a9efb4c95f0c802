"""Self-consistent densities: ABACUS's files, and a compact form for data sets.

ABACUS leaves the density of every calculation, with all digits, in
``OUT.SUFFIX/SUFFIX-CHARGE-DENSITY.restart``, unless ``out_chg`` is -1: Fortran records, each
between two copies of its length. With ``out_chg 1`` there are cube files as well, ``chg.cube`` or
one for each spin, which other programs write, too.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy import ndarray

from ase_nextham.h0.cube import Cube, read_cube
from ase_nextham.units import BOHR

RESTART = "-CHARGE-DENSITY.restart"
"""What the name of ABACUS's file ends with; it begins with the suffix of the run."""

CUBES = ("chg.cube", "chgs1.cube", "SPIN1_CHG.cube")
"""Names of ABACUS's cube files, of the first spin: 3.11 for nspin 1, for others, and up to 3.10."""

# what numpy and zipfile raise for files that make no sense
_DAMAGE = (
    BadZipFile,
    EOFError,
    IndexError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class Density:
    """A density as a sum of plane waves, ``rho(r) = sum_m rho_m exp(i m.reciprocal.r)``.

    Parameters
    ----------
    miller
        Integers m, of G and of -G, shape (n, 3).
    coefficients
        In Bohr^-3, complex, shape (n,); of both spins together.
    reciprocal
        Directions and relative lengths of the reciprocal vectors, as rows: ABACUS's file does not
        say in which unit they are.
    """

    miller: ndarray
    coefficients: ndarray
    reciprocal: ndarray

    def nelectrons(self, cell: ndarray) -> float:
        """Electrons in one cell with these vectors, in Angstrom.

        Raises
        ------
        ValueError
            If the density is of a cell of another shape.
        """
        product = self.reciprocal @ np.asarray(cell, float).T
        error = np.abs(product / (np.trace(product) / 3) - np.eye(3)).max()
        if not error < 1e-4:
            raise ValueError(
                "the density is of another cell: products of its reciprocal vectors and the "
                f"structure's cell vectors deviate from a multiple of 1 by {error:.2g} of it"
            )
        average = self.coefficients[(self.miller == 0).all(axis=1)].sum().real
        return float(average * abs(np.linalg.det(np.asarray(cell) / BOHR)))


def read_density(path: str | os.PathLike) -> Density:
    """Read a density.

    Parameters
    ----------
    path
        One of

        * a folder of ABACUS's output (``OUT.*``): its restart file, else its cube files;
        * ABACUS's restart file;
        * a cube file in Bohr^-3 (.cube). Where ABACUS wrote it for one of two spins, the file of
          the other spin is read from the same folder and added. ABACUS writes three decimals of
          each value unless told otherwise, which moves dH of silicon by 1e-4 meV;
        * an .npz file with ``miller`` (n, 3), ``rho_g`` (nspin, n) in Bohr^-3 and
          ``reciprocal_vectors`` (3, 3), with the vectors as columns as in ABACUS's.

    Raises
    ------
    ValueError
        If a file is damaged or incomplete, naming it, or is of a magnetisation.
    FileNotFoundError
        If there is no density in the folder, or the file of the other spin is missing.
    """
    path = Path(path)
    if path.is_dir():
        folder, path = path, density_file(path)
        if path is None:
            raise FileNotFoundError(
                f"{folder} holds no density, which is SUFFIX{RESTART} or one of "
                f"{', '.join(CUBES)}: give ABACUS's folder OUT.SUFFIX, or run it with out_chg 1"
            )
    if path.suffix == ".cube":
        return _from_cubes(path)
    if path.suffix == ".npz":
        miller, rho, columns = _read_npz(path)
    else:
        miller, rho, columns = _read_restart(path)
    n = len(miller)
    if miller.shape != (n, 3) or rho.ndim != 2 or rho.shape[1] != n or columns.shape != (3, 3):
        raise ValueError(
            f"{path}: plane waves {miller.shape}, coefficients {rho.shape} and reciprocal vectors "
            f"{columns.shape} do not fit together"
        )
    # with nspin 4 the density comes first and the magnetisation after it
    total = rho[0] if len(rho) in (1, 4) else rho.sum(axis=0)
    if not np.isfinite(total).all():
        raise ValueError(f"{path}: some coefficients are not finite")
    return Density(miller, total, columns.T)


def density_file(folder: Path) -> Path | None:
    """The density in a folder of ABACUS's output: its restart file, else a cube file, or None.

    Raises
    ------
    ValueError
        If there are those of several runs.
    """
    found = sorted(folder.glob(f"*{RESTART}"))
    own = [path for path in found if folder.name == f"OUT.{path.name.removesuffix(RESTART)}"]
    if len(found) > 1 and not own:
        raise ValueError(
            f"{folder} holds densities of several runs, {found[0].name} and {found[1].name}: give "
            "one of the files"
        )
    cubes = [folder / name for name in CUBES if (folder / name).is_file()]
    return next(iter([*own, *found, *cubes]), None)


def _from_cubes(path: Path) -> Density:
    cube = read_cube(path)
    values = cube.values
    # "2 # number of spin directions" of ABACUS 3.11, "2 (nspin)" of earlier ones
    said = re.match(r"([124]) (?:# number of spin|\(nspin\))", cube.comment[1])
    if said and said[1] != "1":
        # with nspin 4 the density comes first and the magnetisation after it
        name = re.fullmatch(r"(chgs|SPIN)([1-4])(.*\.cube)", path.name)
        if not name or (said[1] == "4" and name[2] != "1"):
            raise ValueError(
                f"{path} is one of {said[1]} components of a calculation with spin, and its name "
                "is not that of the density; rename it as ABACUS did (chgs1.cube) or read that"
            )
        if said[1] == "2":
            values = values + _other_spin(path, cube, {"1": "2", "2": "1"}[name[2]], name)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: some values are not finite")
    # half of the plane waves at the edge of an even grid are missing, so none of them are kept
    shape = values.shape
    m = [np.arange(-((n - 1) // 2), (n + 1) // 2) for n in shape]
    miller = np.stack(np.meshgrid(*m, indexing="ij"), axis=-1).reshape(-1, 3)
    waves = np.fft.fftn(values, norm="forward")[tuple((miller % shape).T)]
    return Density(miller, waves, np.linalg.inv(cube.cell).T)


def _other_spin(path: Path, cube: Cube, spin: str, name: re.Match) -> ndarray:
    other = path.with_name(f"{name[1]}{spin}{name[3]}")
    if not other.is_file():
        raise FileNotFoundError(f"{path} is of one spin, and {other.name} is not beside it")
    found = read_cube(other)
    if found.values.shape != cube.values.shape or not np.array_equal(found.cell, cube.cell):
        raise ValueError(f"{path} and {other} are of different cells or grids")
    return found.values


def _read_npz(path: Path) -> tuple[ndarray, ndarray, ndarray]:
    with open(path, "rb") as file:  # numpy leaves it open if it is damaged
        try:
            arrays = np.load(file, allow_pickle=False)
            return (
                arrays["miller"].astype(int),
                arrays["rho_g"].astype(complex),
                arrays["reciprocal_vectors"],
            )
        except KeyError as error:
            raise ValueError(f"{path} has no array {error}; it is not a density") from error
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged, or no .npz file: {error!r}") from error


def _read_restart(path: Path) -> tuple[ndarray, ndarray, ndarray]:
    content = path.read_bytes()
    place = 0

    def record(dtype: str, count: int, what: str) -> ndarray:
        nonlocal place
        size = np.dtype(dtype).itemsize * count
        end = place + 4 + size + 4
        if count < 0 or end > len(content):
            raise ValueError(
                f"{path}: {what} would end at byte {end}, but the file has {len(content)}; it is "
                "incomplete or not a restart file of ABACUS"
            )
        values = np.frombuffer(content, dtype, count, place + 4)
        place = end
        return values

    half, nwaves, nspin = record("<i4", 3, "the header")
    if half:
        raise ValueError(
            f"{path} holds half of the plane waves (gamma_only_pw); run ABACUS without it"
        )
    if nwaves < 1 or nspin not in (1, 2, 4):
        raise ValueError(f"{path}: {nwaves} plane waves and {nspin} spins are not a density's")
    columns = record("<f8", 9, "reciprocal vectors").reshape(3, 3)
    miller = record("<i4", 3 * int(nwaves), "the plane waves").reshape(-1, 3)
    rho = [record("<c16", int(nwaves), f"the density {s + 1}") for s in range(nspin)]
    return miller.astype(int), np.array(rho), columns
