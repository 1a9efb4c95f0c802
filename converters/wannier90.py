"""Wannier90's ``_hr.dat`` and ``_tb.dat``: Hamiltonians in orthonormal functions, read and written.

**Writing.** The atomic orbitals are orthogonalised (:mod:`ase_nextham.bands.loewdin`): one function
per orbital, in the order of the basis. Bands are exact on the mesh of k-points; the error between
its points is in the first line of the file and in the note beside it, it is logged, and a warning
tells if it is above ``tolerance``. The target says what is written: ``x_hr.dat`` holds H,
``x_tb.dat`` H and r; any other name becomes a folder with ``wannier90_hr.dat``, if r is known
``wannier90_tb.dat``, and ``wannier90.win`` and ``wannier90_centres.xyz`` with the structure.
Spinor functions are in Wannier90's order, up and down of one orbital next to each other. Wannier90
has a file for each spin of a collinear calculation: write them one by one.

**Reading.** Without our note nothing is known of orbitals. Each function becomes an s-like orbital
of the atom that its centre is closest to, if files beside tell the atoms, the centres are known
(from r, ``_centres.xyz`` or ``.wout``) and every atom gets functions; elements whose atoms have
different numbers of functions become labels such as Fe1 and Fe2. Otherwise the functions sit on
atoms "X", one for each distinct centre, or one at the origin where centres are not known. Elements
are those of the file, of r its Hermitian part; R counts from the atoms to which the functions
belong. ``_wsvec.dat`` beside the file is obeyed (:mod:`.wannier90_wsvec`), as in Wannier90's bands.
Spinors (``spinors = .true.`` in ``.win``, or ``spin="spinor"``) need the order above; read others
with ``spin="unpolarised"``, and remember that each of their bands then counts as two.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ase_nextham import __version__
from ase_nextham.bands import loewdin
from ase_nextham.data import LCAOData
from ase_nextham.files import replacing, replacing_folder, write_atomically

from .sidecar import read_sidecar, restored, sidecar_path, write_sidecar
from .wannier90_sites import centres_of, foreign_data, noted_data, wannier_text
from .wannier90_structure import read_structure
from .wannier90_text import kind_of_text, read_text, write_hr, write_tb
from .wannier90_wsvec import on_closest_images

SUFFIXES = ("_hr.dat", "_tb.dat")
HOLDS = ("overlap", "hamiltonian", "position")

SEEDNAME = "wannier90"
"""Seedname of the files in a folder that was written."""

_log = logging.getLogger("ase_nextham")


def recognises(path: Path) -> bool:
    """Whether a path is a file of this kind, or a folder that has one."""
    if path.is_dir():
        return any(kind_of_text(_head(file)) for file in _files(path))
    return kind_of_text(_head(path)) is not None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def _files(folder: Path) -> list[Path]:
    """The matrix files of a folder, those that say more first."""
    return [
        path
        for end in reversed(SUFFIXES)
        for path in sorted(folder.glob(f"*{end}"))
        if path.is_file()
    ]


def read(path: str | os.PathLike, *, spin: str | None = None) -> LCAOData:
    """Read a ``_hr.dat`` or ``_tb.dat`` file, or the folder of one.

    Parameters
    ----------
    spin
        ``"unpolarised"`` or ``"spinor"``, where the files beside do not tell or tell wrong.

    Raises
    ------
    ValueError
        If the file is damaged, H is not Hermitian to 1e-4 eV, the cell is not known, or the
        functions are no spinors.

    Warns
    -----
    UserWarning
        If the functions sit on atoms "X", or r is not Hermitian.
    """
    if spin not in (None, "unpolarised", "spinor"):
        raise ValueError(f"spin must be 'unpolarised' or 'spinor', not {spin!r}")
    path = _single_file(Path(path))
    text = read_text(path)
    note = read_sidecar(sidecar_path(path), [path])
    if note is not None:
        return restored(noted_data(path, text, note), note)
    seedname = re.sub(r"_(hr|tb)\.dat$", "", path.name)
    structure = read_structure(path.parent, seedname)
    if spin is not None:
        structure = replace(structure, spinors=spin == "spinor")
    images = path.with_name(f"{seedname}_wsvec.dat")
    if images.is_file():
        text = on_closest_images(images, text)
    return foreign_data(path, text, structure)


def _single_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = [file for file in _files(path) if kind_of_text(_head(file))]
    seednames = sorted({file.name[: -len("_hr.dat")] for file in files})
    if len(seednames) != 1:
        raise ValueError(
            f"{path}: expected the _hr.dat or _tb.dat of one seedname, found those of "
            f"{', '.join(seednames) or 'none'}; give the file"
        )
    return files[0]


def write(
    path: str | os.PathLike,
    data: LCAOData,
    *,
    kpts: Sequence[int] | None = None,
    tolerance: float = 1e-3,
    exact_below: float | None = None,
) -> None:
    """Write ``_hr.dat``, ``_tb.dat``, or a folder with both.

    Parameters
    ----------
    kpts
        Mesh of the orthogonalisation; by default one so fine that the error of the bands between
        its points is below ``tolerance``, up to files of about 0.5 GB.
    tolerance
        In eV.
    exact_below
        Keep the bands up to this energy in eV and squeeze those above into 10 eV, which takes two
        orders of magnitude off the error; see :mod:`ase_nextham.bands.loewdin`.

    Raises
    ------
    ValueError
        For collinear spin, r that is missing or an overlap that is singular.

    Warns
    -----
    UserWarning
        If the error is above ``tolerance``, or r finds no place in ``_hr.dat``.

    Notes
    -----
    A basis that is orthonormal is written as it is.
    """
    path = Path(path)
    kind = next((end for end in SUFFIXES if path.name.lower().endswith(end)), None)
    data = _checked(path, data, kind)
    data, extra = _orthonormal(path, data, kpts, tolerance, exact_below)
    if kind is not None:
        _write_file(path, data, extra)
        return
    with replacing_folder(path) as folder:
        _write_file(folder / f"{SEEDNAME}_hr.dat", replace(data, position=None), extra)
        if data.position is not None:
            _write_file(folder / f"{SEEDNAME}_tb.dat", data, extra)
        _write_structure(folder, data)


def _checked(path: Path, data: LCAOData, kind: str | None) -> LCAOData:
    """The data with what is to be written alone."""
    data = replace(data, hamiltonian=data.best_hamiltonian(), h0=None)
    if data.hamiltonian.spin == "collinear":
        raise ValueError(
            f"{path}: Wannier90 has a file for each spin of a collinear calculation; choose one, "
            "up or down, and write the other to another file"
        )
    if kind == "_tb.dat" and data.position is None:
        raise ValueError(f"{path}: _tb.dat holds r, which is not known here; write a _hr.dat")
    if kind == "_hr.dat" and data.position is not None:
        warnings.warn(
            f"{path}: _hr.dat has no place for r(R), left out; a _tb.dat has", stacklevel=4
        )
        data = replace(data, position=None)
    return data


def _orthonormal(
    path: Path,
    data: LCAOData,
    kpts: Sequence[int] | None,
    tolerance: float,
    exact_below: float | None,
) -> tuple[LCAOData, dict]:
    """The data in orthonormal functions, and what the note is to say of it."""
    if loewdin.is_orthonormal(data.overlap):
        if kpts is not None or exact_below is not None:
            raise ValueError(
                f"{path}: the basis is orthonormal and is written as it is; kpts and exact_below "
                "mean nothing"
            )
        return data, {}
    if kpts is None:
        new, kpts, error = loewdin.converged(data, tolerance, exact_below=exact_below)
    else:
        new = loewdin.orthogonalised(data, kpts, exact_below=exact_below)
        error = loewdin.interpolation_error(new, data, below=exact_below)
    kpts = [int(n) for n in kpts]
    mesh = " x ".join(map(str, kpts))
    bands = "all bands" if exact_below is None else f"bands below {exact_below:g} eV"
    message = f"{path}: {bands} within {error:.2g} eV between the points of the mesh {mesh}"
    _log.info(message)
    if error > tolerance:
        advice = "give a finer mesh with kpts"
        if exact_below is None:
            advice += ", or exact_below, the energy up to which bands are needed"
        warnings.warn(f"{message}, tolerance is {tolerance:g} eV; {advice}", stacklevel=4)
    extra = {"kpts": kpts, "interpolation_error": error, "exact_below": exact_below}
    return new, extra


def _write_file(path: Path, data: LCAOData, extra: dict) -> None:
    comment = f"written by ase_nextham {__version__}"
    if extra:
        mesh = " x ".join(map(str, extra["kpts"]))
        below = "" if extra["exact_below"] is None else f" below {extra['exact_below']:g} eV"
        comment += f", Loewdin on {mesh}, bands{below} within {extra['interpolation_error']:.2g} eV"
    text = wannier_text(data, comment)
    with replacing(path) as temporary, temporary.open("w", encoding="ascii") as file:
        (write_hr if text.position is None else write_tb)(file, text)
    atoms = data.atoms
    extra = extra | {
        "spin": data.hamiltonian.spin,
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
    }
    write_sidecar(sidecar_path(path), data, [path], extra=extra)


def _write_structure(folder: Path, data: LCAOData) -> None:
    """``.win`` and ``_centres.xyz``: what other programs read the structure from."""

    def rows(vectors) -> str:
        return "".join("{:20.12f}{:20.12f}{:20.12f}\n".format(*vector) for vector in vectors)

    def named(symbols, positions) -> str:
        lines = rows(positions).splitlines(keepends=True)
        return "".join(f"{name:4s}{line}" for name, line in zip(symbols, lines, strict=True))

    spinors = data.hamiltonian.spin == "spinor"
    centres = centres_of(data)
    symbols, positions = data.atoms.get_chemical_symbols(), data.atoms.positions
    win = (
        f"num_wann = {len(centres)}\n"
        f"spinors = {'.true.' if spinors else '.false.'}\n\n"
        f"begin unit_cell_cart\nAng\n{rows(data.atoms.cell.array)}end unit_cell_cart\n\n"
        f"begin atoms_cart\nAng\n{named(symbols, positions)}end atoms_cart\n"
    )
    write_atomically(folder / f"{SEEDNAME}.win", win)
    xyz = f"{len(centres) + len(symbols)}\nWannier centres, written by ase_nextham {__version__}\n"
    xyz += named(["X"] * len(centres), centres) + named(symbols, positions)
    write_atomically(folder / f"{SEEDNAME}_centres.xyz", xyz)
