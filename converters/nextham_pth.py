"""Samples and predictions of NextHAM's released programs: ``.pth`` files.

Their blocks are 54 x 54 in single precision (:mod:`.nextham_layout`), for pairs of atoms closer
than 8 Angstrom (:mod:`.nextham_sample`), in Rydberg times a constant that is not always the same
(:mod:`.nextham_units`). Nothing in a file is run. Only training samples hold cell, positions and
overlap; for the others these come from ``reference``, a folder or file of the same structure.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import replacing
from ase_nextham.inert_pickle import PickleError, read_torch
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.units import RYDBERG

from . import registry
from .nextham_layout import (
    blocks_of_matrix,
    matrix_of_blocks,
    shells_of_mask,
)
from .nextham_sample import Sample, kind_of, lattice_vectors, read_sample, sorted_pairs
from .nextham_training import inference_items, training_items
from .nextham_units import constant_of_sample
from .sidecar import noted_basis, read_sidecar, restored, sidecar_path, write_sidecar

SUFFIXES = (".pth",)
HOLDS = ("overlap", "h0", "hamiltonian")

NETWORK_RANGE = 7.0
"""Angstrom up to which the released programs take the network's blocks, H(0)'s beyond."""

_SPIN_TOLERANCE = 1e-6  # of S, from spins up and down, in single precision


def recognises(path: Path) -> bool:
    """Whether a path is a torch file with a sample or a prediction."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            if file.read(4) not in (b"PK\x03\x04", b"\x80\x02\x8a\n"):
                return False
        return kind_of(read_torch(path)) is not None
    except (PickleError, OSError):
        return False


def read(
    path: str | os.PathLike,
    *,
    reference: str | os.PathLike | LCAOData | None = None,
    rydberg: float | None = None,
) -> LCAOData:
    """Read a sample or a prediction.

    Parameters
    ----------
    reference
        Data of the same structure, or the path of such in any format: the run folder from which
        the sample was made. Needed for all but training samples, which have neither cell nor
        overlap. Where it holds H(0), its scale tells that of the sample.
    rydberg
        eV that one Rydberg was taken for when the file was made; by default found out, see
        :mod:`.nextham_units`.

    Returns
    -------
    LCAOData
        Spinor Hamiltonians in eV. Of training samples overlap, H(0) and H; of inference samples
        H(0), the overlap of the reference; of predictions the reference with
        :func:`combined`.

    Raises
    ------
    ValueError
        If the file is damaged, unsafe, no sample, or not of the structure of the reference.

    Warns
    -----
    UserWarning
        If energies are not Rydberg times 13.6056980659, and how that was found out.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: a folder; a sample is one file, and a folder of them is read file by file"
        )
    sample = read_sample(path)
    note = read_sidecar(sidecar_path(path), [path]) if sidecar_path(path).is_file() else None
    if isinstance(reference, (str, os.PathLike)):
        reference = registry.read(reference)
    if sample.kind == "training":
        data = _training_data(sample, reference, rydberg, note)
        return data if note is None else restored(_with_noted_spin(data, note), note)
    if reference is None:
        raise ValueError(
            f"{path}: {'a' if sample.kind == 'prediction' else 'an'} {sample.kind} file has "
            "neither cell nor overlap; give reference=, the folder of the run from which it was "
            "made (or another file with this structure and its overlap)"
        )
    if sample.kind == "prediction":
        return combined(reference, _predicted(sample, reference, rydberg))
    return _inference_data(sample, reference, rydberg)


def read_prediction(
    path: str | os.PathLike, reference: LCAOData, *, rydberg: float | None = None
) -> LCAOMatrix:
    """The Hamiltonian in the output of a released network: H(0) + dH up to 8 Angstrom, in eV.

    Parameters
    ----------
    reference
        The structure; where it holds H(0), its scale tells that of the prediction.
    rydberg
        As of :func:`read`.

    Raises
    ------
    ValueError
        If the file is no prediction, or one for another structure.
    """
    sample = read_sample(path)
    if sample.kind != "prediction":
        raise ValueError(f"{path}: not a prediction, but a file of kind {sample.kind!r}")
    return _predicted(sample, reference, rydberg)


def combined(data: LCAOData, predicted: LCAOMatrix, *, cutoff: float = NETWORK_RANGE) -> LCAOData:
    """Data with a predicted Hamiltonian, which is H(0) beyond the range of the network.

    Parameters
    ----------
    data
        With H(0) on all its pairs.
    predicted
        H of the pairs that the network saw, of the same atoms and orbitals.
    cutoff
        In Angstrom: pairs up to this have the predicted blocks, all others those of H(0). The
        default is what the released programs take; their networks correct pairs up to 6.

    Returns
    -------
    LCAOData
        ``data`` with that as its Hamiltonian.

    Raises
    ------
    ValueError
        If there is no H(0), or the two do not belong together.
    """
    if data.h0 is None:
        raise ValueError(
            f"{data!r} holds no H(0), which the Hamiltonian is beyond the range of the network"
        )
    h0 = data.h0.with_spin(predicted.spin)
    pairs = predicted.pairs
    positions, cell = data.atoms.positions, data.atoms.cell.array
    apart = positions[pairs.j] - positions[pairs.i] + pairs.R @ cell
    near = np.linalg.norm(apart, axis=1) <= cutoff
    both = AtomPairs(pairs.i[near], pairs.j[near], pairs.R[near])
    # H = H(0) + (predicted - H(0)) on the near pairs
    change = predicted.cut_to(both)[0] - h0.cut_to(both)[0]
    hamiltonian = h0 + change
    source = {**data.source, "hamiltonian": f"network up to {cutoff:g} Angstrom, H(0) beyond"}
    return replace(data, hamiltonian=hamiltonian, source=source)


def write(
    path: str | os.PathLike,
    data: LCAOData,
    *,
    kind: str | None = None,
    kpts: Sequence[int] = (4, 4, 4),
) -> None:
    """Write a sample that the released programs load; needs PyTorch.

    Numbers are in single precision, and pairs of atoms 8 Angstrom or more apart are left out: both
    are the format's.

    Parameters
    ----------
    kind
        ``"training"``: overlap, H(0), H and wave functions, with 13.6056980659 eV per Rydberg;
        ``"inference"``: H(0) alone, with 13.6, as the network that takes it was used. By
        default the first where there is a Hamiltonian beside H(0).
    kpts
        Mesh of the wave functions in training samples.

    Raises
    ------
    ValueError
        If there is no H(0), if orbitals are more than 4s2p2d1f, or if the Fermi level is not
        known for a training sample.
    ImportError
        If PyTorch is not installed.

    Warns
    -----
    UserWarning
        If pairs are left out.
    """
    if kind is None:
        kind = "training" if data.hamiltonian is not None else "inference"
    if kind not in ("training", "inference"):
        raise ValueError(f"unknown kind of sample {kind!r}; known: training, inference")
    if data.h0 is None or (kind == "training" and data.hamiltonian is None):
        raise ValueError(
            f"{path}: {data!r} lacks {'H(0)' if data.h0 is None else 'the Hamiltonian'}, without "
            f"which there is no {kind} sample of NextHAM"
        )
    training = kind == "training"
    items = training_items(path, data, kpts) if training else inference_items(path, data)
    import torch

    with replacing(path) as temporary:
        torch.save([_tensor(item) for item in items], temporary)
    extra = {
        "cell": data.atoms.cell.array.tolist(),
        "positions": data.atoms.positions.tolist(),
        "spin": {
            name: getattr(data, name).spin
            for name in ("h0", "hamiltonian")
            if getattr(data, name) is not None
        },
    }
    write_sidecar(sidecar_path(path), data, [path], extra=extra)


def _tensor(item: object) -> object:
    import torch

    return torch.from_numpy(np.asarray(item, order="C")) if isinstance(item, ndarray) else item


# --- reading -----------------------------------------------------------------------------------


def _training_data(
    sample: Sample, reference: LCAOData | None, rydberg: float | None, note: dict | None
) -> LCAOData:
    if note is None:
        cell, positions = sample.cell, sample.positions
    else:  # in double precision
        cell, positions = (np.array(note["extra"][name]) for name in ("cell", "positions"))
    atoms = Atoms(sample.elements, cell=cell, positions=positions, pbc=True)
    if note is None:
        basis, species = _basis(sample, len(atoms))
    else:
        basis, species = noted_basis(note), tuple(note["species"])
    R = lattice_vectors(sample, atoms.cell.array, atoms.positions, 1e-3)
    pairs, edge = sorted_pairs(sample, R, _used(sample, R))
    matrices = {
        name: matrix_of_blocks(blocks, edge, basis, species, pairs)
        for name, blocks in sample.blocks.items()
    }
    _check_nothing_lost(sample, matrices)
    h0_blocks = None if reference is None else _reference_blocks(sample, reference)
    of_h0, of_h = constant_of_sample(sample, rydberg, h0_blocks)
    h0 = (RYDBERG / of_h0) * matrices["h0"]
    return LCAOData(
        atoms=atoms,
        overlap=_without_spin(sample, matrices["overlap"]),
        h0=h0,
        hamiltonian=(RYDBERG / of_h) * (matrices["h0"] + matrices["change"]),
        source={
            "format": "NextHAM training sample",
            "name": sample.name,
            "eV per Rydberg in the file": of_h0,
        },
    )


def _inference_data(sample: Sample, reference: LCAOData, rydberg: float | None) -> LCAOData:
    pairs, edge = _pairs_of_reference(sample, reference)
    constant, _ = constant_of_sample(sample, rydberg, _reference_blocks(sample, reference))
    matrices = {
        name: matrix_of_blocks(blocks, edge, reference.basis, reference.symbols, pairs)
        for name, blocks in sample.blocks.items()
    }
    _check_nothing_lost(sample, matrices)
    hamiltonian = None
    if "change" in matrices:
        hamiltonian = (RYDBERG / constant) * (matrices["h0"] + matrices["change"])
    return LCAOData(
        atoms=reference.atoms,
        overlap=reference.overlap,
        h0=(RYDBERG / constant) * matrices["h0"],
        hamiltonian=hamiltonian,
        nelectrons=reference.nelectrons,
        source={
            "format": f"NextHAM {sample.kind} sample",
            "eV per Rydberg in the file": constant,
        },
    )


def _predicted(sample: Sample, reference: LCAOData, rydberg: float | None) -> LCAOMatrix:
    pairs, edge = _pairs_of_reference(sample, reference)
    constant, _ = constant_of_sample(sample, rydberg, _reference_blocks(sample, reference))
    matrix = matrix_of_blocks(
        sample.blocks["hamiltonian"], edge, reference.basis, reference.symbols, pairs
    )
    return (RYDBERG / constant) * matrix


def _pairs_of_reference(sample: Sample, reference: LCAOData) -> tuple[AtomPairs, ndarray]:
    """Pairs of the edges of a sample without structure, after a check that they fit."""
    natoms = len(reference.atoms)
    largest = int(max(sample.i.max(initial=-1), sample.j.max(initial=-1)))
    if largest != natoms - 1:
        raise ValueError(
            f"{sample.where}: it is for {largest + 1} atoms, but the reference has {natoms}"
        )
    symbols = reference.atoms.get_chemical_symbols()
    for atom, (ours, theirs) in enumerate(zip(sample.elements or symbols, symbols, strict=True)):
        if ours != theirs:
            raise ValueError(
                f"{sample.where}: atom {atom} is {ours}, but {theirs} in the reference; "
                "samples have the order of STRU"
            )
    basis, species = _basis(sample, natoms)
    for atom, (ours, theirs) in enumerate(zip(species, reference.symbols, strict=True)):
        if sorted(basis.shells[ours]) != sorted(reference.basis.shells[theirs]):
            raise ValueError(
                f"{sample.where}: atom {atom} ({symbols[atom]}) has the orbitals "
                f"{basis.label(ours)}, but {reference.basis.label(theirs)} in the reference"
            )
    R = lattice_vectors(sample, reference.atoms.cell.array, reference.atoms.positions, 1e-2)
    return sorted_pairs(sample, R, np.ones(len(R), bool))


def _reference_blocks(sample: Sample, reference: LCAOData) -> ndarray | None:
    """H(0) of the reference in Rydberg, as blocks on the edges of the sample."""
    if reference.h0 is None:
        return None
    pairs, edge = _pairs_of_reference(sample, reference)
    h0 = reference.h0.with_spin("spinor")
    place = pairs.find(h0.pairs.i, h0.pairs.j, h0.pairs.R)
    of_pair = np.where(place >= 0, edge[place], -1)
    return blocks_of_matrix((1 / RYDBERG) * h0, of_pair, len(sample.i))


def _basis(sample: Sample, natoms: int) -> tuple[Basis, tuple[str, ...]]:
    """Shells of each atom from the mask, and the species that they make.

    Atoms of one element with other orbitals become species of their own: Fe1, Fe2.
    """
    onsite = (sample.i == sample.j) & (np.linalg.norm(sample.vectors, axis=1) < 1e-5)
    symbols = sample.elements or ("X",) * natoms
    shells: list = [None] * natoms
    for edge in np.flatnonzero(onsite):
        try:
            shells[sample.i[edge]], order = shells_of_mask(np.diagonal(sample.mask[edge]))
        except ValueError as err:
            raise ValueError(f"{sample.where}: atom {sample.i[edge]}: {err}") from err
    if None in shells:
        raise ValueError(f"{sample.where}: atom {shells.index(None)} has no edge to itself")
    if order != "up first, then down" and sample.kind != "intermediate":
        warnings.warn(
            f"{sample.where}: its mask has the order of spins {order!r}, other than its blocks; "
            "programs that do not belong together made it. The blocks are read as they should be",
            stacklevel=5,
        )
    kinds: dict = {}
    for symbol, ls in zip(symbols, shells, strict=True):
        kinds.setdefault(symbol, {}).setdefault(ls, len(kinds.get(symbol, {})) + 1)
    species = tuple(
        symbol if len(kinds[symbol]) == 1 else f"{symbol}{kinds[symbol][ls]}"
        for symbol, ls in zip(symbols, shells, strict=True)
    )
    return Basis(dict(zip(species, shells, strict=True))), species


def _used(sample: Sample, R: ndarray) -> ndarray:
    """Edges that hold anything: beside them there are those of R at which no orbitals meet."""
    used = (sample.i == sample.j) & (R == 0).all(axis=1)
    for blocks in sample.blocks.values():
        used |= np.array([bool(block.any()) for block in blocks])
    # an element may vanish by rounding where its partner does not
    code = np.column_stack([sample.i, sample.j, R])
    partner = np.column_stack([sample.j, sample.i, -R])
    needed = {tuple(row) for row in partner[used].tolist()}
    return used | np.array([tuple(row) in needed for row in code.tolist()])


def _check_nothing_lost(sample: Sample, matrices: dict[str, LCAOMatrix]) -> None:
    for name, matrix in matrices.items():
        inside, there = np.count_nonzero(matrix.data), np.count_nonzero(sample.blocks[name])
        if inside != there:
            raise ValueError(
                f"{sample.where}: {name} has {there - inside} elements at places where its mask "
                "says that there is no orbital"
            )


def _without_spin(sample: Sample, overlap: LCAOMatrix) -> LCAOMatrix:
    """The overlap of orbitals, after a check that spin plays no role in it."""
    data, error = _spin_channels(overlap)
    up, down = data
    error = max(error, np.abs(up - down).max(initial=0), np.abs(up.imag).max(initial=0))
    if error > _SPIN_TOLERANCE:
        raise ValueError(
            f"{sample.where}: an overlap is real, the same for both spins and zero between them, "
            f"but this one is not, by {error:.2g}"
        )
    return replace(overlap, spin="unpolarised", data=up.real)


def _spin_channels(matrix: LCAOMatrix) -> tuple[ndarray, float]:
    """Up-up and down-down elements, shape (2, size), and the largest element between the two."""
    spinless = LCAOMatrix(
        matrix.basis, matrix.symbols, matrix.pairs, "unpolarised", np.zeros(len(matrix.data) // 4)
    )
    channels = np.empty((2, len(spinless.data)), complex)
    between = 0.0
    groups = zip(matrix.block_groups(), spinless.block_groups(), strict=True)
    for (_, _, _, both), (_, _, _, one) in groups:
        block = matrix.data[both]
        channels[0, one], channels[1, one] = block[:, ::2, ::2], block[:, 1::2, 1::2]
        between = max(
            between,
            float(np.abs(block[:, ::2, 1::2]).max(initial=0)),
            float(np.abs(block[:, 1::2, ::2]).max(initial=0)),
        )
    return channels, between


def _with_noted_spin(data: LCAOData, note: dict) -> LCAOData:
    """Hamiltonians with as much spin as they had when they were written."""
    changed = {}
    for name, spin in note["extra"]["spin"].items():
        matrix = getattr(data, name)
        if spin == "spinor":
            continue
        channels, _ = _spin_channels(matrix)
        values = channels.real if not np.any(channels.imag) else channels
        changed[name] = replace(
            matrix, spin=spin, data=values if spin == "collinear" else values[0]
        )
    return replace(data, **changed)
