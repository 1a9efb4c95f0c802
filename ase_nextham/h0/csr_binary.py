"""The binary layouts of ABACUS's matrix files, and its NPZ archives.

Binary files are little-endian and hold for each ionic step::

    int32 step, dimension, nR
    for each R:  int32 Rx, Ry, Rz, nnz;  nnz values;  nnz int32 columns;  dimension + 1 row pointers
    (r(R):       int32 Rx, Ry, Rz;  then nnz, values, columns, row pointers for x, y and z)

What varies is not marked: values are float64 or complex128; row pointers int32 (written before
2026) or int64; an R without elements has row pointers or ends after nnz. The variant is the one
under which every count, pointer and column is possible and the file ends where it should.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy import ndarray

from ase_nextham.h0.csr_matrix import CSRMatrix, MatrixFileError, check_size, stack


@dataclass(frozen=True)
class Variant:
    """What files do not say about themselves."""

    components: int  # 1, or 3 for r(R)
    pointer: str  # NumPy's name of the integers in row pointers
    pointers_if_empty: bool
    value: str

    @property
    def layout(self) -> str:
        """Name of the layout, as ``CSRMatrix`` has it."""
        return "binary" if self.pointer == "<i8" else "legacy binary"


# The documented ones first: a file without any element fits several.
_VARIANTS = [
    Variant(components, pointer, if_empty, value)
    for components, (pointer, if_empty), value in product(
        (1, 3), (("<i8", True), ("<i4", False), ("<i4", True), ("<i8", False)), ("<f8", "<c16")
    )
    if not (components == 3 and value == "<c16")  # r is real, also for spinors
]


class Misfit(Exception):
    """Why bytes are not of a variant, and where."""

    def __init__(self, at: int, reason: str):
        super().__init__(reason)
        self.at = at

    def error(self, path: str, size: int) -> MatrixFileError:
        """The error for a file of so many bytes that got no further than this."""
        return MatrixFileError(
            f"{path}: no text header of ABACUS, and as a binary matrix file it makes sense up to "
            f"byte {self.at} of {size} only: {self}"
        )


@dataclass(frozen=True)
class Block:
    """Where the arrays of one R begin."""

    nnz: int
    values: int
    columns: int
    pointers: int


@dataclass(frozen=True)
class Step:
    """One ionic step: its R, and where their arrays are for each component."""

    step: int
    dimension: int
    R: list[list[int]]
    components: list[list[Block]]


def read_binary(path: str, data: bytes) -> list[CSRMatrix]:
    """All records of a binary file.

    Raises
    ------
    MatrixFileError
        If no variant fits; the message is about the one that fits furthest.
    """
    fitting, best = fitting_variants(data)
    for variant, steps in fitting:
        try:
            return [m for step in steps for m in _matrices(path, data, variant, step)]
        except MatrixFileError as err:  # everything but the content fits
            best = Misfit(len(data), str(err).removeprefix(f"{path}: "))
    raise best.error(path, len(data))


def fitting_variants(data: bytes) -> tuple[list[tuple[Variant, list[Step]]], Misfit]:
    """The variants whose counts fit, with all steps, and what the best of the others fails at.

    Parameters
    ----------
    data
        Bytes, or what has a length and slices as they do.
    """
    fitting, best = [], Misfit(-1, "")
    for variant in _VARIANTS:
        try:
            fitting.append((variant, _walk(data, variant)))
        except Misfit as misfit:
            best = max(best, misfit, key=lambda m: m.at)
    return fitting, best


def _walk(data: bytes, variant: Variant) -> list[Step]:
    """All steps, from the counts alone."""
    at, steps = 0, []
    while at < len(data) or not steps:
        at, step, dimension, nR = _integers(data, at, 3)
        if step < 0 or dimension < 1 or nR < 0:
            raise Misfit(
                at - 12, f"step {step}, dimension {dimension}, {nR} matrices are not possible"
            )
        lattice, blocks = [], [[] for _ in range(variant.components)]
        for _ in range(nR):
            at, *R = _integers(data, at, 3)
            lattice.append(R)
            for component in blocks:
                at, block = _block(data, at, R, dimension, variant)
                component.append(block)
        steps.append(Step(step, dimension, lattice, blocks))
    return steps


def _integers(data: bytes, at: int, number: int) -> tuple[int, ...]:
    stop = at + 4 * number
    if stop > len(data):
        raise Misfit(at, "the file ends in the middle of a record")
    return stop, *struct.unpack(f"<{number}i", data[at:stop])


def _block(
    data: bytes, at: int, R: list[int], dimension: int, variant: Variant
) -> tuple[int, Block]:
    begin = at
    at, nnz = _integers(data, at, 1)
    if not 0 <= nnz <= dimension**2:
        raise Misfit(begin, f"R = {R} cannot have {nnz} elements")
    values = at
    columns = values + nnz * np.dtype(variant.value).itemsize
    pointers = columns + 4 * nnz
    size = np.dtype(variant.pointer).itemsize
    stop = pointers
    if nnz or variant.pointers_if_empty:
        stop += size * (dimension + 1)
        if stop > len(data):
            raise Misfit(begin, f"the file ends within the {nnz} elements of R = {R}")
        code = "<i" if size == 4 else "<q"
        (first,) = struct.unpack(code, data[pointers : pointers + size])
        (last,) = struct.unpack(code, data[stop - size : stop])
        if (first, last) != (0, nnz):
            raise Misfit(
                begin, f"row pointers of R = {R} go from {first} to {last}, expected 0 to {nnz}"
            )
    return stop, Block(nnz, values, columns, pointers)


def _matrices(path: str, data: bytes, variant: Variant, step: Step) -> list[CSRMatrix]:
    dimension = step.dimension
    check_size(path, len(step.R), dimension, len(data))

    def joined(dtype: str, counts: Sequence[int], starts: Sequence[int]) -> ndarray:
        parts = [np.frombuffer(data, dtype, n, s) for n, s in zip(counts, starts, strict=True)]
        return np.concatenate([np.zeros(0, dtype), *parts])

    matrices = []
    for component, blocks in enumerate(step.components):
        nnz = [block.nnz for block in blocks]
        given = [n for n in range(len(nnz)) if nnz[n] or variant.pointers_if_empty]
        starts = [blocks[n].pointers for n in given]
        pointers = joined(variant.pointer, [dimension + 1] * len(given), starts)
        R, indptr = stack(step.R, dimension, given, pointers.reshape(-1, dimension + 1))
        is_r = variant.components == 3
        matrices.append(
            CSRMatrix(
                path=path,
                layout=variant.layout,
                operator="r" if is_r else None,
                step=step.step,
                dimension=dimension,
                R=R,
                indptr=indptr,
                column=joined("<i4", nnz, [block.columns for block in blocks]),
                value=joined(variant.value, nnz, [block.values for block in blocks]),
                component=component if is_r else None,
            )
        )
    return matrices


# --- NPZ ---------------------------------------------------------------------------------------

_BLOCK_NAME = re.compile(r"mat_(\d{1,6})_(\d{1,6})_(-?\d{1,6})_(-?\d{1,6})_(-?\d{1,6})")
_ORBITALS_NAME = re.compile(r"orbital_info_(\d{1,6})")
# what zipfile raises on damaged archives, besides its own error
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
)


def read_npz(path: str, data: bytes) -> list[CSRMatrix]:
    """The matrix in an NPZ archive of ``out_hsr 3``.

    Entries, all float64 (blocks may be complex): ``lattice_vectors`` (9,) in Bohr; ``atom_info``
    (natoms, 5): index of the species, atomic number, fractional positions; ``orbital_info_<n>``
    (norbitals, 3) of each species; ``mat_<i>_<j>_<Rx>_<Ry>_<Rz>`` the block of a pair of atoms,
    of twice the size for spinors.

    ABACUS with MPI writes i <= j only, so blocks without their partner are completed by
    Hermiticity, here and nowhere else. Written from ABACUS's sources (``io_npz.cpp``): no file made
    by ABACUS has been available for a test. Whatever does not fit is refused.
    """
    arrays = _npz_arrays(path, data)
    norbitals = _norbitals(path, arrays)
    blocks = {}
    for name, array in arrays.items():
        found = _BLOCK_NAME.fullmatch(name)
        if found:
            i, j, *R = map(int, found.groups())
            if max(i, j) >= len(norbitals):
                raise MatrixFileError(f"{path}: {name} names an atom of {len(norbitals)}")
            blocks[i, j, *R] = array
    if not blocks:
        raise MatrixFileError(f"{path}: there is no block mat_<i>_<j>_<Rx>_<Ry>_<Rz>")
    (i, j, *_), first = next(iter(blocks.items()))
    factor = 2 if first.shape == (2 * norbitals[i], 2 * norbitals[j]) else 1
    norbitals = factor * norbitals
    for (i, j, *R), block in list(blocks.items()):
        if block.shape != (norbitals[i], norbitals[j]):
            raise MatrixFileError(
                f"{path}: the block of atoms {i} and {j} at R = {R} has shape {block.shape}, but "
                f"their orbitals give {(norbitals[i], norbitals[j])}"
            )
        blocks.setdefault((j, i, *(-x for x in R)), block.conj().T)
    return [_npz_matrix(path, norbitals, blocks, len(data))]


def _npz_matrix(path: str, norbitals: ndarray, blocks: dict, nbytes: int) -> CSRMatrix:
    first = np.concatenate([[0], np.cumsum(norbitals)])
    dimension = int(first[-1])
    index = {}
    rows, columns, values = [], [], []
    for (i, j, *R), block in blocks.items():
        n = index.setdefault(tuple(R), len(index))
        mu, nu = np.nonzero(block)
        rows.append(n * dimension + first[i] + mu)
        columns.append(first[j] + nu)
        values.append(block[mu, nu])
    check_size(path, len(index), dimension, nbytes)
    row, column, value = (np.concatenate(parts) for parts in (rows, columns, values))
    order = np.lexsort((column, row))
    indptr = np.zeros(len(index) * dimension + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=len(index) * dimension), out=indptr[1:])
    return CSRMatrix(
        path=path,
        layout="npz",
        operator=None,
        step=0,
        dimension=dimension,
        R=np.array(list(index)),
        indptr=indptr,
        column=column[order],
        value=value[order],
    )


def _npz_arrays(path: str, data: bytes) -> dict[str, ndarray]:
    """The arrays of an archive; the sizes are checked before anything is allocated."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > len(data):
                raise MatrixFileError(f"{path}: an entry is larger than the archive")
            _check_directory(path, data, entries, archive.start_dir)
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                known = name in ("lattice_vectors", "atom_info")
                if not (known or _BLOCK_NAME.fullmatch(name) or _ORBITALS_NAME.fullmatch(name)):
                    raise MatrixFileError(f"{path}: unknown entry {name!r}")
                if name in arrays:
                    raise MatrixFileError(f"{path}: {name} stands there twice")
                arrays[name] = _npy_array(f"{path}: {name}", archive.read(entry))
    except MatrixFileError:
        raise
    except _ZIP_ERRORS as err:
        raise MatrixFileError(f"{path}: not a readable NPZ archive: {err}") from err
    return arrays


def _check_directory(path: str, data: bytes, entries: Sequence[zipfile.ZipInfo], end: int) -> None:
    """The entries that the directory lists must fill the archive; zipfile would not miss others."""
    at = 0
    for entry in entries:
        if entry.header_offset != at:
            break
        name, extra = struct.unpack_from("<2H", data, at + 26)
        at += 30 + name + extra + entry.compress_size
    if at != end:
        raise MatrixFileError(f"{path}: the archive has a gap at byte {at}: it is damaged")


def _npy_array(where: str, data: bytes) -> ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise MatrixFileError(f"{where}: NPY format {version}, expected (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype not in (np.dtype("<f8"), np.dtype("<c16")):
        raise MatrixFileError(f"{where}: numbers of type {dtype}, expected float64 or complex128")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size != len(data) - file.tell():
        raise MatrixFileError(
            f"{where}: shape {shape} needs {size} bytes, there are {len(data) - file.tell()}"
        )
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(
        shape, order="F" if fortran else "C"
    )


def _norbitals(path: str, arrays: dict[str, ndarray]) -> ndarray:
    """Number of orbitals of each atom, without spin."""
    for name, ndim in (("lattice_vectors", 1), ("atom_info", 2)):
        if name not in arrays or arrays[name].ndim != ndim:
            raise MatrixFileError(f"{path}: there is no {name}, or it has a wrong shape")
    atoms = arrays["atom_info"]
    if arrays["lattice_vectors"].shape != (9,) or atoms.shape[1:] != (5,) or not len(atoms):
        raise MatrixFileError(
            f"{path}: lattice_vectors {arrays['lattice_vectors'].shape} and atom_info "
            f"{atoms.shape}, expected (9,) and (natoms, 5)"
        )
    norbitals = []
    for a, species in enumerate(atoms[:, 0].real.tolist()):
        orbitals = arrays.get(f"orbital_info_{species:.0f}") if species == species // 1 else None
        if orbitals is None or orbitals.ndim != 2 or orbitals.shape[1] != 3 or not len(orbitals):
            raise MatrixFileError(
                f"{path}: atom {a} is of species {species:g}, of which there is no orbital_info "
                "of shape (norbitals, 3)"
            )
        norbitals.append(len(orbitals))
    return np.array(norbitals, np.int64)
