"""Samples to train on, on disk: one native file for each in one folder.

Layout of a data set::

    samples/NAME.h5  a native file (:mod:`ase_nextham.hdf5`) with overlap, h0 and hamiltonian, and
                     /training/entry: JSON, see :class:`Entry`
                     /training/k_space: kpts, eps, nlow, coefficients, see
                     :class:`~ase_nextham.training.dataset_kspace.KSpace`; one k-point can be
                     read without the others
                     /training/density: the converged density, where it is known, see
                     :mod:`~ase_nextham.training.dataset_density`
    index.json       the entries of all samples again. It may be missing or behind: samples that it
                     lacks, or that have changed since, are asked themselves

Each file takes its name when it is complete, so that a crash costs at most the samples that are
being made, and samples are added by adding files. Every sample can be opened by whatever reads
native files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms
from ase.formula import Formula

from ase_nextham import hdf5
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import replacing, write_atomically
from ase_nextham.h0.density import Density
from ase_nextham.training.dataset_density import digest, read_stored_density, write_density
from ase_nextham.training.dataset_kspace import KSpace
from ase_nextham.training.dataset_prepare import Prepared

FORMAT = "ase_nextham data set"
FORMAT_VERSION = 2  # 2: samples may have a density

SAMPLES, INDEX = "samples", "index.json"

# what h5py, and what is made of numbers that make no sense, may raise
_DAMAGE = (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class Entry:
    """What is known of a sample without reading its matrices.

    Parameters
    ----------
    name
        Of the sample.
    structure
        Name of the structure: that of its source. Samples of one structure that differ in their
        spin share it, so that no split puts one of them in training and another in validation.
    atoms
        The structure.
    species
        Keys of the basis, by atom.
    basis
        Orbitals of its species, with their fingerprints.
    spin
        Of H(0) and H.
    label_spin
        Of the self-consistent run: ``"unpolarised"`` where its dH was added to a spinor H(0).
    npairs, dimension, nkpts
        Pairs of atoms, rows of H(k), and k-points with eigenvectors.
    mu
        H on disk is the one of the source + mu S, on the scale of H(0); in eV.
    fermi_level
        In eV on that scale, or None where not known.
    density
        sha256 of the converged density that is with the sample, or None where there is none.
    """

    name: str
    structure: str
    atoms: Atoms
    species: tuple[str, ...]
    basis: Basis
    spin: str
    label_spin: str
    npairs: int
    dimension: int
    nkpts: int
    mu: float
    fermi_level: float | None
    density: str | None = None

    def __repr__(self):
        return f"Entry({self.name!r}, {self.atoms.get_chemical_formula('metal')}, {self.spin})"

    @property
    def formula(self) -> str:
        """The composition, reduced: ``"GaAs"`` for Ga4As4."""
        return reduced_formula(str(self.atoms.symbols))

    @classmethod
    def of(cls, name: str, structure: str, prepared: Prepared) -> Entry:
        """The entry of a sample that is to be written."""
        data, states = prepared.data, prepared.k_space
        return cls(
            name=name,
            structure=structure,
            atoms=data.atoms,
            species=data.symbols,
            basis=data.basis,
            spin=data.h0.spin,
            label_spin=prepared.label_spin,
            npairs=len(data.pairs),
            dimension=data.h0.dimension,
            nkpts=0 if states is None else len(states.kpts),
            mu=prepared.mu,
            fermi_level=data.fermi_level,
            density=None if prepared.density is None else digest(prepared.density),
        )

    def to_json(self) -> dict:
        """Plain values."""
        plain = ("name", "structure", "spin", "label_spin", "npairs", "dimension", "nkpts", "mu")
        return {name: getattr(self, name) for name in (*plain, "fermi_level", "density")} | {
            "numbers": self.atoms.numbers.tolist(),
            "positions": self.atoms.positions.tolist(),
            "cell": self.atoms.cell.tolist(),
            "pbc": self.atoms.pbc.tolist(),
            "species": list(self.species),
            "basis": {
                "shells": {name: list(ls) for name, ls in self.basis.shells.items()},
                "convention": self.basis.convention,
                "radius": dict(self.basis.radius),
                "fingerprint": dict(self.basis.fingerprint),
                "valence": dict(self.basis.valence),
            },
        }

    @classmethod
    def from_json(cls, content: Mapping) -> Entry:
        """The entry that :meth:`to_json` wrote."""
        values = dict(content)
        atoms = Atoms(
            **{name: values.pop(name) for name in ("numbers", "positions", "cell", "pbc")}
        )
        basis = Basis(**values.pop("basis"))
        return cls(atoms=atoms, basis=basis, species=tuple(values.pop("species")), **values)


@dataclass(frozen=True, eq=False)
class Sample:
    """One structure to learn from.

    Parameters
    ----------
    entry
        What is known of it without its matrices.
    data
        With overlap, h0 and hamiltonian on the same pairs and the same scale of energy.
    k_space
        Eigenstates at the k-points asked for, or None where the sample has none.
    """

    entry: Entry
    data: LCAOData
    k_space: KSpace | None

    def __repr__(self):
        return f"Sample({self.entry.name!r}, {self.data!r}, {self.k_space!r})"


class Dataset(Sequence):
    """A data set on disk. Samples are read when they are asked for, and not kept.

    It can be pickled and sent to other processes, and holds no open file.

    >>> dataset = Dataset("mini")                                           # doctest: +SKIP
    >>> dataset[0].data.hamiltonian                                         # doctest: +SKIP

    Parameters
    ----------
    path
        Folder of the data set.
    names
        Samples to take, in this order; by default all of them, by name.

    Attributes
    ----------
    path
        The folder.
    entries
        One :class:`Entry` for each sample.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is no data set, a sample is damaged, an element has other orbitals in one sample than
        in another, or a name is not there.
    """

    def __init__(self, path: str | os.PathLike, names: Iterable[str] | None = None):
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder")
        if not (self.path / SAMPLES).is_dir():
            raise ValueError(
                f"{path}: not a data set, which has a folder '{SAMPLES}'; `nextham dataset build` "
                "makes one"
            )
        entries = _entries(self.path)
        check_same_orbitals(entries.values(), self.path)
        chosen = sorted(entries) if names is None else list(names)
        missing = [name for name in chosen if name not in entries]
        if missing:
            raise ValueError(
                f"{path}: there is no sample {missing[0]!r}"
                + (f", nor {len(missing) - 1} more of those asked for" if missing[1:] else "")
            )
        self.entries: tuple[Entry, ...] = tuple(entries[name] for name in chosen)

    def __repr__(self):
        return f"Dataset({str(self.path)!r}, {len(self)} samples)"

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each sample."""
        return tuple(entry.name for entry in self.entries)

    @property
    def basis(self) -> Basis:
        """Orbitals of all species."""
        return joint_basis(self.entries)

    def subset(self, indices: Iterable[int]) -> Dataset:
        """The data set of some of the samples."""
        chosen = object.__new__(Dataset)
        chosen.path = self.path
        chosen.entries = tuple(self.entries[index] for index in indices)
        return chosen

    def file(self, index: int) -> Path:
        """The native file of a sample."""
        return sample_path(self.path, self.entries[index].name)

    def sample(self, index: int, kpts: Sequence[int] | None = None) -> Sample:
        """Read one sample.

        Parameters
        ----------
        kpts
            Which of its k-points to read eigenvectors of; by default all, ``()`` for none.

        Raises
        ------
        ValueError
            If its file is damaged, naming it.
        """
        entry, path = self.entries[index], self.file(index)
        data = hdf5.read(path)
        if not _same_structure(data.atoms, entry.atoms):
            raise ValueError(
                f"{path}: the structure is another one than when the data set was opened; the file "
                "is damaged, or was replaced"
            )
        states = None
        if entry.nkpts and (kpts is None or len(kpts)):
            states = _read_k_space(path, range(entry.nkpts) if kpts is None else kpts)
        return Sample(entry, data, states)

    def density(self, index: int) -> Density | None:
        """The converged density of a sample, or None where the data set does not have it.

        Raises
        ------
        ValueError
            If its file is damaged, naming it.
        """
        if self.entries[index].density is None:
            return None
        path = self.file(index)
        try:
            with h5py.File(path, "r") as file:
                return read_stored_density(file)
        except _DAMAGE as err:
            raise ValueError(f"{path}: the density cannot be read: {err}") from err


def reduced_formula(formula: str) -> str:
    """A composition as it stands in :attr:`Entry.formula`, whatever order it is given in."""
    return Formula(formula).reduce()[0].format("metal")


def sample_path(folder: Path, name: str) -> Path:
    """The file of a sample."""
    return folder / SAMPLES / f"{name}.h5"


def write_sample(path: Path, entry: Entry, prepared: Prepared) -> None:
    """Write the file of a sample; it is complete or not there."""
    with replacing(path) as temporary:
        hdf5.write(temporary, prepared.data)
        with h5py.File(temporary, "a") as file:
            file["training/entry"] = json.dumps(entry.to_json())
            states = prepared.k_space
            if states is not None:
                group = file.create_group("training/k_space")
                chunks = (1, 1, *states.coefficients.shape[2:])
                # single precision: an error of 1e-7 in the basis in which differences are compared
                coefficients = states.coefficients.astype(np.complex64)
                # checksums, because what is not compressed can be damaged without anyone noticing
                group.create_dataset(
                    "coefficients", data=coefficients, chunks=chunks, fletcher32=True
                )
                for name in ("kpts", "eps", "nlow"):
                    group.create_dataset(name, data=getattr(states, name), fletcher32=True)
            if prepared.density is not None:
                write_density(file, prepared.density)


def write_sample_with_density(path: Path, old: Path, entry: Entry, density: Density) -> Entry:
    """Write the file of a sample again, with the density that it lacked; returns its entry."""
    entry = replace(entry, density=digest(density))
    with replacing(path) as temporary:
        shutil.copyfile(old, temporary)
        with h5py.File(temporary, "a") as file:
            del file["training/entry"]
            file["training/entry"] = json.dumps(entry.to_json())
            write_density(file, density)
    return entry


def write_index(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Write down what is known of all samples, to be read at once."""
    known = {
        name: {**_state(sample_path(folder, name)), "entry": entry.to_json()}
        for name, entry in sorted(entries.items())
    }
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "samples": known}
    write_atomically(folder / INDEX, json.dumps(content))


def check_same_orbitals(entries: Iterable[Entry], where: object) -> None:
    """ValueError, naming two samples, unless every species has the same orbitals in all of them."""
    first: dict[str, Entry] = {}
    for entry in entries:
        for species in entry.basis.shells:
            other = first.setdefault(species, entry)
            reason = None if other is entry else entry.basis.difference(other.basis)
            if reason:
                raise ValueError(
                    f"{where}: the sample {entry.name} has another basis than {other.name}: "
                    f"{reason}; one network learns from one set of orbitals"
                )


def joint_basis(entries: Iterable[Entry]) -> Basis:
    """Orbitals of all species of some samples."""
    parts: dict[str, dict] = {"shells": {}, "radius": {}, "fingerprint": {}, "valence": {}}
    convention = "abacus"
    for entry in entries:
        convention = entry.basis.convention
        for name, values in parts.items():
            for species, value in getattr(entry.basis, name).items():
                values.setdefault(species, value)
    return Basis(convention=convention, **parts)


def _same_structure(a: Atoms, b: Atoms) -> bool:
    pairs = ((a.numbers, b.numbers), (a.positions, b.positions), (a.cell.array, b.cell.array))
    return all(np.array_equal(x, y) for x, y in pairs)


def _entries(folder: Path) -> dict[str, Entry]:
    """The entries of all samples, from the index where it is not behind."""
    known = _read_index(folder / INDEX)
    entries = {}
    for path in sorted((folder / SAMPLES).glob("*.h5")):
        noted = known.get(path.stem)
        if noted is not None and _state(path).items() <= noted.items():
            entries[path.stem] = Entry.from_json(noted["entry"])
        else:
            entries[path.stem] = _read_entry(path)
    return entries


def _read_index(path: Path) -> Mapping[str, Mapping]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        found, version = content["format"], int(content["format_version"])
        samples = content["samples"]
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{path}: damaged ({err!r}); remove it, the samples know what it says"
        ) from err
    if found != FORMAT or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path}: format {found!r}, version {version}, but this release reads {FORMAT!r} up "
            f"to version {FORMAT_VERSION}; a newer ase_nextham wrote it"
        )
    return samples


def _state(path: Path) -> dict[str, int]:
    """By what a file is known to be the one that was indexed."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_entry(path: Path) -> Entry:
    try:
        with h5py.File(path, "r") as file:
            entry = Entry.from_json(json.loads(file["training/entry"][()]))
    except _DAMAGE as err:
        raise ValueError(
            f"{path}: not a sample of a data set, or damaged ({err}); remove it and build again"
        ) from err
    if entry.name != path.stem:
        raise ValueError(f"{path}: the file holds the sample {entry.name!r}; it was renamed")
    return entry


def _read_k_space(path: Path, kpts: Sequence[int]) -> KSpace:
    try:
        with h5py.File(path, "r") as file:
            group = file["training/k_space"]
            some = list(kpts)
            eps, nlow = group["eps"][()], group["nlow"][()]
            coefficients = np.stack([group["coefficients"][:, k] for k in some], axis=1)
            return KSpace(group["kpts"][()][some], eps[:, some], coefficients, nlow[:, some])
    except _DAMAGE as err:
        raise ValueError(f"{path}: the eigenvectors cannot be read: {err}") from err


__all__ = ["Dataset", "Entry", "Sample"]
