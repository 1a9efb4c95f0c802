"""Conversion of ABACUS runs that are larger than memory.

The result is that of :func:`~.conversion.convert`, number for number. Files are read once, some
rows of one R at a time; their blocks wait in temporary files beside the target, from where the
target takes them in the order it needs. In memory are pieces of some megabytes, and the lists of
pairs of atoms.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham import hdf5
from ase_nextham.data import LCAOData
from ase_nextham.files import check_free
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.folder import read_by
from ase_nextham.h0.folder_writer import abacus_order, write_runs
from ase_nextham.h0.run import find_runs
from ase_nextham.matrix import AtomPairs, LCAOMatrix, ranges

from .conversion import OPERATORS, selected
from .deeph import write_files
from .deeph_blocks import block_entries
from .deeph_data import content, refuse_imaginary
from .stream_abacus import spooled_records
from .stream_spool import SpoolingReader, progress_bar, slabs

LARGE = 256 * 2**20
"""Bytes of matrix files above which :func:`worth_streaming` says yes.

In memory, a conversion takes two to three times as much as its text files, of binary ones more.
"""

TARGETS = ("abacus", "deeph", "native")
"""Formats that :func:`convert_streaming` writes."""


@dataclass(frozen=True, eq=False)
class Streamed:
    """What a conversion has written.

    Parameters
    ----------
    atoms
        The structure.
    species
        Of each atom: the keys of ``basis.shells``.
    operators
        Of ``"overlap"``, ``"h0"``, ``"hamiltonian"``, ``"position"``.
    npairs
        Pairs of atoms that they share.
    """

    atoms: Atoms
    species: tuple[str, ...]
    operators: tuple[str, ...]
    npairs: int


def worth_streaming(source: str | os.PathLike | Sequence[str | os.PathLike]) -> bool:
    """Whether the matrix files of ABACUS runs have more than :data:`LARGE` bytes together.

    False for whatever is no folder of ABACUS runs.
    """
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    try:
        runs = [run for path in paths for run in find_runs(path)]
        files = [file for run in runs for file in matrix_files(run.output, run.folder)]
        return sum(file.path.stat().st_size for file in files) > LARGE
    except (OSError, ValueError):
        return False  # and reading it will say what is wrong


def convert_streaming(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    target: str | os.PathLike,
    target_format: str,
    *,
    step: int | None = None,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
    layout: str | None = None,
    only: Collection[str] | None = None,
) -> Streamed:
    """Read ABACUS runs, write another format (or another layout), in little memory.

    Parameters
    ----------
    source, step, pseudo_dir, orbital_dir
        As of :func:`~ase_nextham.h0.folder.read_folder`.
    target
        A file (``"native"``), or a folder that does not exist or is empty. Beside it there must be
        place for temporary files, 8 bytes (16 if complex) for every element of every block.
    target_format
        One of :data:`TARGETS`.
    layout
        Of ``"abacus"``, as of :func:`~ase_nextham.h0.folder.write_folder`.
    only
        Operators to keep; the overlap is always kept. The pairs are those of all operators.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        As reading and writing in memory.

    Notes
    -----
    The numbers of NPZ archives are in memory as a whole.
    """
    target = Path(target)
    if target_format not in TARGETS:
        raise ValueError(
            f"{target_format!r} is not written piece by piece; that can be {', '.join(TARGETS)}"
        )
    options = {} if layout is None else {"layout": layout}
    if options and target_format != "abacus":
        raise ValueError(f"option 'layout' means nothing for format {target_format!r}")
    parent = target.absolute().parent
    if target_format == "native":
        if not parent.is_dir():
            raise FileNotFoundError(f"{target}: the folder {parent} does not exist")
    else:
        check_free(target)
        parent.mkdir(parents=True, exist_ok=True)
    with SpoolingReader(parent, only) as reader:
        data = selected(read_by(reader, source, step, pseudo_dir, orbital_dir), only, None)
        write = {"abacus": _write_abacus, "deeph": _write_deeph, "native": _write_native}
        write[target_format](reader, target, data, **options)
        return Streamed(
            data.atoms,
            data.symbols,
            tuple(name for name in OPERATORS if getattr(data, name) is not None),
            len(reader.arrangement.pairs),
        )


def _write_native(reader: SpoolingReader, target: Path, data: LCAOData) -> None:
    with progress_bar("writing") as bar:

        def blocks(name: str, p: ndarray) -> ndarray:
            found = reader.blocks(reader.arrangement, name, p)
            bar.update(found.size)
            return found

        hdf5.write_slabs(target, data, reader.arrangement.pairs, blocks)


def _write_abacus(
    reader: SpoolingReader, target: Path, data: LCAOData, layout: str = "legacy text"
) -> None:
    order, images = abacus_order(data)
    arrangement = reader.moved(data, order, -images[order])
    with progress_bar("writing") as bar:

        def blocks(name: str, p: ndarray) -> ndarray:
            found = reader.blocks(arrangement, name, p)
            bar.update(found.size)
            return found

        def records(named: Mapping[str, LCAOMatrix]) -> Mapping:
            return spooled_records(named, arrangement.pairs, blocks)

        write_runs(target, data, records, layout)


def _write_deeph(reader: SpoolingReader, target: Path, data: LCAOData) -> None:
    source = {"overlap": "overlap", "hamiltonian": "hamiltonian", "zeroth_hamiltonian": "h0"}
    if data.hamiltonian is None:
        source = {"overlap": "overlap", "hamiltonian": "h0"}
    for name, operator in source.items():
        matrix = getattr(data, operator)
        if matrix is not None and matrix.spin != "spinor":
            refuse_imaginary(target, name, reader.largest_imaginary(operator))
    written = content(target, data, "kept")
    pairs = reader.arrangement.pairs
    norbitals = data.overlap.norbitals
    sizes = norbitals[pairs.i] * norbitals[pairs.j]
    with progress_bar("writing") as bar:

        def entries(name: str) -> Iterator[ndarray]:
            for p in slabs(sizes, np.arange(len(pairs)), limit=1 << 18):
                if name == "position_matrix":
                    names = [f"position {axis}" for axis in "xyz"]
                    matrices = data.position
                else:
                    names = [source[name]]
                    matrices = [data.overlap if name == "overlap" else written.hamiltonians[name]]
                found = [
                    _deeph_entries(reader, one, matrix, p, written.spinful and name in _WITH_SPIN)
                    for one, matrix in zip(names, matrices, strict=True)
                ]
                bar.update(sum(one.size for one in found))
                yield np.stack(found) if len(found) == 3 else found[0]

        write_files(target, data, written, pairs, entries)


_WITH_SPIN = ("hamiltonian", "zeroth_hamiltonian")


def _deeph_entries(
    reader: SpoolingReader, name: str, matrix: LCAOMatrix, p: ndarray, spinful: bool
) -> ndarray:
    """The elements of the blocks of some pairs, as DeepH has them."""
    pairs = reader.arrangement.pairs
    # matrices have the partners of all their pairs; here they stay zero
    both = np.union1d(p, pairs.reverse[p])
    some = AtomPairs(pairs.i[both], pairs.j[both], pairs.R[both])
    hollow = np.zeros((*matrix.data.shape[:-1], _size(matrix, some)), matrix.data.dtype)
    part = replace(matrix, pairs=some, data=hollow)
    where = np.searchsorted(both, p)
    starts, sizes = part.offsets[where], np.diff(part.offsets)[where]
    found = reader.blocks(reader.arrangement, name, p)
    # DeepH's matrices without spin are real, and complex ones have been refused by now
    hollow[..., ranges(starts, sizes)] = found if np.iscomplexobj(hollow) else found.real
    entries = block_entries(part, "deeph", spinful=spinful)
    factor = len(entries) // part.offsets[-1]
    return entries[ranges(factor * starts, factor * sizes)]


def _size(matrix: LCAOMatrix, pairs: AtomPairs) -> int:
    return int((matrix.norbitals[pairs.i] * matrix.norbitals[pairs.j]).sum())


__all__ = ["LARGE", "TARGETS", "Streamed", "convert_streaming", "worth_streaming"]
