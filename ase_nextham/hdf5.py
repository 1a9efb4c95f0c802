"""The native file: one :class:`~ase_nextham.data.LCAOData` in one HDF5 file.

Layout, version 1::

    /                attributes: format "ase_nextham LCAOData", format_version, creator, and as
                     JSON: basis, source; nelectrons and fermi_level (eV) where known
    /atoms           numbers, positions (Angstrom), cell (Angstrom), pbc,
                     initial_magmoms where set, species
    /pairs           i, j, R
    /operators/NAME  upper, lower (eV, 1 or Angstrom) with the attribute spin;
                     NAME: overlap, h0, hamiltonian, position_x, position_y, position_z

``upper`` holds the blocks of the pairs with ``p <= pairs.reverse[p]``. ``lower`` holds those of the
other pairs as 64-bit integers: the bits of each number, exclusive-or those of the Hermitian
conjugate of its partner. For a Hermitian operator they are zero but for rounding and take no
space, and in any case the numbers come back to the last bit.

A file is complete or not there: it is written under a temporary name
and then renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham import __version__
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import replacing
from ase_nextham.matrix import SPINS, AtomPairs, LCAOMatrix, ranges

FORMAT = "ase_nextham LCAOData"
FORMAT_VERSION = 1

_SLAB = 1 << 20  # elements of one operator that are in memory when it is written slab by slab

# what h5py, and what is done with numbers that make no sense, may raise
_DAMAGE = (KeyError, IndexError, AttributeError, OSError, RuntimeError, TypeError, ValueError)

_NAMES = ("overlap", "h0", "hamiltonian", "position_x", "position_y", "position_z")


def write(path: str | os.PathLike, data: LCAOData) -> None:
    """Write a native file, replacing one that is there.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written to.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        _write(file, data)


def write_slabs(
    path: str | os.PathLike,
    data: LCAOData,
    pairs: AtomPairs,
    blocks: Callable[[str, ndarray], ndarray],
) -> None:
    """Write a native file of operators that are not in memory, slab by slab.

    The file holds what :func:`write` would give it.

    Parameters
    ----------
    data
        The structure and the rest; its operators tell their spin and whether they are complex, and
        have no pairs.
    pairs
        Of all operators.
    blocks
        Function of the name of an operator (``"overlap"``, ``"h0"``, ``"hamiltonian"``,
        ``"position x"`` ...) and of indices of pairs. It gives their blocks one after another,
        shape (size,), or (2, size) when collinear.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        _write_structure(file, data, pairs)
        for name, matrix in _operators(data).items():
            group = file.create_group(f"operators/{name}")
            _write_slabs(group, matrix, pairs, partial(blocks, name.replace("_", " ")))


def _write(file: h5py.File, data: LCAOData) -> None:
    _write_structure(file, data, data.pairs)
    for name, matrix in _operators(data).items():
        _write_operator(file.create_group(f"operators/{name}"), matrix)


def _write_structure(file: h5py.File, data: LCAOData, pairs: AtomPairs) -> None:
    basis = data.basis
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["creator"] = f"ase_nextham {__version__}"
    file.attrs["basis"] = json.dumps(
        {
            "shells": {name: list(ls) for name, ls in basis.shells.items()},
            "convention": basis.convention,
            "radius": dict(basis.radius),
            "fingerprint": dict(basis.fingerprint),
            "valence": dict(basis.valence),
        }
    )
    file.attrs["source"] = json.dumps(dict(data.source))
    for name in ("nelectrons", "fermi_level"):
        value = getattr(data, name)
        if value is not None:
            file.attrs[name] = float(value)

    atoms = file.create_group("atoms")
    atoms["numbers"] = data.atoms.numbers
    atoms["positions"] = data.atoms.positions
    atoms["cell"] = data.atoms.cell.array
    atoms["pbc"] = data.atoms.pbc
    if data.atoms.has("initial_magmoms"):
        atoms["initial_magmoms"] = data.atoms.get_initial_magnetic_moments()
    atoms["species"] = json.dumps(data.symbols)

    group = file.create_group("pairs")
    for name in "ijR":
        array = getattr(pairs, name).astype(np.int32)
        group.create_dataset(name, data=array, compression="gzip", shuffle=True)


def _operators(data: LCAOData) -> dict[str, LCAOMatrix]:
    operators = {"overlap": data.overlap, "h0": data.h0, "hamiltonian": data.hamiltonian}
    if data.position is not None:
        operators |= {
            f"position_{axis}": matrix for axis, matrix in zip("xyz", data.position, strict=True)
        }
    return {name: matrix for name, matrix in operators.items() if matrix is not None}


def _write_operator(group: h5py.Group, matrix: LCAOMatrix) -> None:
    group.attrs["spin"] = matrix.spin
    upper = _upper_elements(matrix.pairs, matrix.offsets)
    is_lower = np.ones(matrix.offsets[-1], bool)
    is_lower[upper] = False
    conjugate = matrix.filled_by_hermiticity().data[..., is_lower]
    _write_numbers(group, "upper", matrix.data[..., upper])
    _write_numbers(group, "lower", _bits(matrix.data[..., is_lower]) ^ _bits(conjugate))


def _write_slabs(
    group: h5py.Group, matrix: LCAOMatrix, pairs: AtomPairs, blocks: Callable[[ndarray], ndarray]
) -> None:
    """As :func:`_write_operator`; ``matrix`` tells spin and type only."""
    group.attrs["spin"] = matrix.spin
    rows, columns = matrix.norbitals[pairs.i], matrix.norbitals[pairs.j]
    is_upper = np.arange(len(pairs)) <= pairs.reverse
    integers = 2 if np.iscomplexobj(matrix.data) else 1
    for name, p, dtype, factor in (
        ("upper", np.flatnonzero(is_upper), matrix.data.dtype, 1),
        ("lower", np.flatnonzero(~is_upper), np.dtype(np.int64), integers),
    ):
        ends = np.cumsum(rows[p] * columns[p])
        size = factor * int(ends[-1]) if len(ends) else 0
        compression = {"compression": "gzip", "compression_opts": 4} if size else {}
        shape = (*matrix.data.shape[:-1], size)
        dataset = group.create_dataset(name, shape, dtype, **compression)
        cuts = np.flatnonzero(np.diff((ends - 1) // _SLAB)) + 1
        begin = 0
        for some in np.split(p, cuts) if size else ():
            values = blocks(some)
            if name == "lower":
                partner = blocks(pairs.reverse[some])
                conjugate = _conjugates(partner, rows[some], columns[some])
                values = _bits(values) ^ _bits(conjugate)
            dataset[..., begin : begin + values.shape[-1]] = values
            begin += values.shape[-1]


def _conjugates(partners: ndarray, rows: ndarray, columns: ndarray) -> ndarray:
    """Hermitian conjugates of blocks one after another, which become rows x columns."""
    begin = np.cumsum(rows * columns) - rows * columns
    result = np.empty_like(partners)
    for m, n in np.unique(np.column_stack([rows, columns]), axis=0):
        first = begin[(rows == m) & (columns == n), None, None]
        given = first + np.arange(n) * m + np.arange(m)[:, None]
        result[..., first + np.arange(m)[:, None] * n + np.arange(n)] = partners[..., given].conj()
    return result


def _bits(numbers: ndarray) -> ndarray:
    """The same memory as 64-bit integers, twice as many if complex."""
    return np.ascontiguousarray(numbers).view(np.int64)


def _write_numbers(group: h5py.Group, name: str, values: ndarray) -> None:
    if values.size:
        group.create_dataset(name, data=values, compression="gzip", compression_opts=4)
    else:  # HDF5 cannot compress what is empty
        group.create_dataset(name, data=values)


def _upper_elements(pairs: AtomPairs, offsets: ndarray) -> ndarray:
    """Positions of the elements of all pairs with p <= reverse[p]."""
    upper = np.flatnonzero(np.arange(len(pairs)) <= pairs.reverse)
    return ranges(offsets[upper], np.diff(offsets)[upper])


def read(path: str | os.PathLike) -> LCAOData:
    """Read a native file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a native file, of a newer format than this release knows, or damaged.
    """
    with _opened(path) as file:
        return _read(file)


def read_structure(path: str | os.PathLike) -> tuple[Atoms, frozenset[str]]:
    """The structure in a native file and the names of its operators, without their numbers.

    Returns
    -------
    (Atoms, frozenset)
        Names are ``"overlap"``, ``"h0"``, ``"hamiltonian"`` and ``"position"``.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read`.
    """
    with _opened(path) as file:
        names = frozenset(name.partition("_")[0] for name in file["operators"])
        return _read_atoms(file), names


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[h5py.File]:
    """A native file of a known version; what goes wrong inside is told as damage."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as err:
        raise ValueError(f"{path}: not an HDF5 file, or cut short ({err})") from err
    with file:
        try:
            found = file.attrs.get("format")
            version = int(file.attrs.get("format_version", 0))
        except _DAMAGE as err:
            raise ValueError(f"{path}: the file is damaged or incomplete: {err}") from err
        if found != FORMAT:
            raise ValueError(
                f"{path}: not a native file of ase_nextham (attribute 'format' is {found!r}, "
                f"expected {FORMAT!r})"
            )
        if not 1 <= version <= FORMAT_VERSION:
            raise ValueError(
                f"{path}: format version {version}, but this release reads versions up to "
                f"{FORMAT_VERSION}; a newer ase_nextham wrote it"
            )
        try:
            yield file
        except _DAMAGE as err:
            raise ValueError(f"{path}: the file is damaged or incomplete: {err}") from err


def _read(file: h5py.File) -> LCAOData:
    stored = json.loads(file.attrs["basis"])
    shells = {name: tuple(ls) for name, ls in stored.pop("shells").items()}
    basis = Basis(shells, **stored)
    symbols = tuple(json.loads(file["atoms"]["species"][()]))
    pairs = AtomPairs(*(file["pairs"][name][()] for name in "ijR"))
    matrices = {
        name: _read_operator(file["operators"][name], basis, symbols, pairs)
        for name in _NAMES
        if name in file["operators"]
    }
    position = None
    if "position_x" in matrices:
        position = tuple(matrices[f"position_{axis}"] for axis in "xyz")
    return LCAOData(
        atoms=_read_atoms(file),
        overlap=matrices["overlap"],
        h0=matrices.get("h0"),
        hamiltonian=matrices.get("hamiltonian"),
        position=position,
        nelectrons=_number(file.attrs, "nelectrons"),
        fermi_level=_number(file.attrs, "fermi_level"),
        source=json.loads(file.attrs["source"]),
    )


def _read_atoms(file: h5py.File) -> Atoms:
    group = file["atoms"]
    atoms = Atoms(
        numbers=group["numbers"][()],
        positions=group["positions"][()],
        cell=group["cell"][()],
        pbc=group["pbc"][()],
    )
    if "initial_magmoms" in group:
        atoms.set_initial_magnetic_moments(group["initial_magmoms"][()])
    return atoms


def _number(attributes: Mapping, name: str) -> float | None:
    return float(attributes[name]) if name in attributes else None


def _read_operator(group, basis: Basis, symbols, pairs: AtomPairs) -> LCAOMatrix:
    spin = group.attrs["spin"]
    if spin not in SPINS:
        raise ValueError(f"{group.name} has unknown spin {spin!r}")
    upper, lower = group["upper"][()], group["lower"][()]
    factor = 2 if spin == "spinor" else 1
    n = factor * np.array([basis.norbitals(name) for name in symbols], np.int64)
    offsets = np.concatenate([[0], np.cumsum(n[pairs.i] * n[pairs.j])])
    is_lower = np.ones(offsets[-1], bool)
    is_lower[_upper_elements(pairs, offsets)] = False
    data = np.zeros((*upper.shape[:-1], offsets[-1]), upper.dtype)
    data[..., ~is_lower] = upper
    data = LCAOMatrix(basis, symbols, pairs, spin, data).filled_by_hermiticity().data.copy()
    data[..., is_lower] = (lower ^ _bits(data[..., is_lower])).view(data.dtype)
    if not np.isfinite(data).all():
        raise ValueError(f"{group.name} holds numbers that are not finite")
    return LCAOMatrix(basis, symbols, pairs, spin, data)


__all__ = ["FORMAT", "FORMAT_VERSION", "read", "read_structure", "write", "write_slabs"]
