"""One ABACUS run on disk: where its files are, and the structure and orbitals they describe.

Matrices are left to :mod:`ase_nextham.h0.folder`.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from ase import Atoms

from ase_nextham.basis import Basis
from ase_nextham.files import read_text
from ase_nextham.h0 import inputfile
from ase_nextham.h0.elementfiles import VARIABLES, configured_folder
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.log import RunningLog, read_log
from ase_nextham.h0.orb import read_orb
from ase_nextham.h0.stru import Structure, read_stru, wrapped
from ase_nextham.h0.upf import Pseudopotential, read_upf

SIDECAR = "nextham.json"
"""What a folder written by this package holds beside ABACUS's files: see :func:`read_sidecar`."""

SIDECAR_FORMAT = "ase_nextham ABACUS folder"
SIDECAR_VERSION = 1

_SIDECAR_KEYS = ("order", "shifts", "species", "basis", "nelectrons", "fermi_level", "source")


@dataclass(frozen=True)
class Run:
    """Where the files of one run are.

    Parameters
    ----------
    folder
        Holds INPUT and STRU.
    output
        ``OUT.<suffix>``, or whatever folder holds the matrices.
    inputs
        Keywords of INPUT.
    """

    folder: Path
    output: Path
    inputs: Mapping[str, str]

    @property
    def nspin(self) -> int:
        """1, 2 or 4: ABACUS sets 4 where spin-orbit coupling or noncollinear spin is on."""
        if any(inputfile.boolean(self.inputs, name, False) for name in ("lspinorb", "noncolin")):
            return 4
        nspin = int(inputfile.number(self.inputs, "nspin", 1))
        if nspin not in (1, 2, 4):
            raise ValueError(f"{self.folder / 'INPUT'}: nspin is {nspin}; ABACUS has 1, 2 and 4")
        return nspin


def find_runs(path: str | os.PathLike) -> list[Run]:
    """The run of a folder with INPUT or of its ``OUT.<suffix>``; or the runs of its subfolders.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is no ABACUS run.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder")
    if not path.is_dir():
        raise ValueError(
            f"{path}: a file; matrices need the structure and the orbitals, so give the folder of "
            "the ABACUS run, which holds INPUT, STRU and OUT.<suffix>"
        )
    # an output folder may hold a copy of INPUT, but no file STRU
    if (path / "INPUT").is_file() and (path / "STRU").is_file():
        return [_run_of(path)]
    place = path.resolve()
    holds_run = any((place.parent / name).is_file() for name in ("INPUT", "STRU"))
    if holds_run and place.name.startswith("OUT."):
        return [Run(place.parent, path, _inputs(place.parent, path))]
    if (path / "INPUT").is_file():
        return [_run_of(path)]
    if holds_run and matrix_files(path):
        return [Run(place.parent, path, _inputs(place.parent, path))]
    inner = [sub for sub in sorted(path.iterdir()) if (sub / "INPUT").is_file()]
    if inner:
        return [run for sub in inner for run in find_runs(sub)]
    raise ValueError(
        f"{path}: not the folder of an ABACUS run, which holds INPUT, STRU and OUT.<suffix>"
    )


def _run_of(folder: Path) -> Run:
    inputs = inputfile.read_input(folder / "INPUT")
    output = folder / f"OUT.{inputs.get('suffix') or 'ABACUS'}"
    if output.is_dir():
        return Run(folder, output, inputs)
    others = [sub for sub in sorted(folder.glob("OUT.*")) if sub.is_dir()]
    if len(others) == 1:
        return Run(folder, others[0], inputs)
    if not others and matrix_files(folder):
        return Run(folder, folder, inputs)
    found = f"only {', '.join(sub.name for sub in others)}" if others else "no OUT.* at all"
    raise ValueError(
        f"{folder}: INPUT makes ABACUS write to {output.name}, which is not there ({found}); "
        "has ABACUS run?"
    )


def _inputs(folder: Path, output: Path) -> dict[str, str]:
    # ABACUS writes all its parameters, defaults included, to the output folder
    for candidate in (folder / "INPUT", output / "INPUT", output / "INPUT.info"):
        if candidate.is_file():
            return inputfile.read_input(candidate)
    raise ValueError(f"{output}: there is no INPUT in {folder}, nor a copy of it here")


def read_running_log(run: Run) -> RunningLog | None:
    """The running log, or None if there is none (or several, of which it cannot be told)."""
    calculation = run.inputs.get("calculation", "scf").lower()
    logs = list(run.output.glob("running_*.log"))
    named = [log for log in logs if log.name.lower() == f"running_{calculation}.log"]
    chosen = named or logs
    return read_log(chosen[0]) if len(chosen) == 1 else None


def read_kpoints(run: Run) -> str | None:
    """The mesh of KPT as there, for example ``"Gamma 4 4 4 0 0 0"``; None for lists and lines."""
    path = run.folder / (run.inputs.get("kpoint_file") or "KPT")
    if not path.is_file():
        return None
    lines = [line.split("//")[0].split("#")[0].split() for line in read_text(path).splitlines()]
    lines = [words for words in lines if words]
    if len(lines) < 4 or lines[2][0].lower() not in ("gamma", "mp"):
        return None
    return " ".join([lines[2][0], *lines[3]])


def read_sidecar(run: Run) -> dict:
    """What :func:`ase_nextham.h0.folder.write_folder` noted that ABACUS's files have no place for.

    Returns
    -------
    dict
        ``order`` and ``shifts`` (atom a of the data is atom order[a] of STRU, moved by
        ``shifts[a] @ cell``), ``species`` by label of STRU, ``basis``, ``nelectrons``,
        ``fermi_level`` and ``source``. Empty if there is no such file, or if STRU was changed
        after it was written.

    Raises
    ------
    ValueError
        If the file is damaged, or written by a newer release.
    """
    path = run.folder / SIDECAR
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
        if content["format"] != SIDECAR_FORMAT:
            raise ValueError(f"format is {content['format']!r}, expected {SIDECAR_FORMAT!r}")
        version = int(content["format_version"])
        digest = content["stru_sha256"]
        missing = [key for key in _SIDECAR_KEYS if key not in content]
        if missing:
            raise ValueError(f"there is no {missing[0]!r}")
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{path}: damaged ({err!r}); remove it to read ABACUS's files") from err
    if version > SIDECAR_VERSION:
        raise ValueError(
            f"{path}: version {version}, but this release reads versions up to "
            f"{SIDECAR_VERSION}; a newer ase_nextham wrote it"
        )
    return content if digest == stru_digest(run.folder) else {}


def stru_digest(folder: Path) -> str:
    """sha256 of the STRU file of a folder."""
    return hashlib.sha256((folder / "STRU").read_bytes()).hexdigest()


def read_structure(run: Run) -> Structure:
    """The structure of STRU, which is that of the first ionic step."""
    name = run.inputs.get("stru_file") or "STRU"
    path = run.folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the structure file of the run is not there")
    return read_stru(path, latname=run.inputs.get("latname") or "user_defined_lattice")


def structure_at(run: Run, first: Structure, step: int, atoms: Atoms | None) -> Structure:
    """The structure of a later ionic step.

    Parameters
    ----------
    first
        That of STRU.
    step
        Counted from 0.
    atoms
        The structure, for where ABACUS did not keep it; per species in the order of STRU.

    Raises
    ------
    ValueError
        If it is found nowhere.
    """
    if step == 0:
        return first
    # ABACUS prints the relaxed structure after step n as STRU_ION<n>_D, counting from 1: that is
    # the structure with which step n, counted from 0, begins
    names = [f"STRU_ION{step}_D", f"STRU_MD_{step}"]
    for folder in (run.output, run.output / "STRU"):
        for name in names:
            if (folder / name).is_file():
                structure = read_stru(folder / name)
                if structure.labels != first.labels:
                    raise ValueError(f"{folder / name} has other atoms than STRU")
                return structure
    if atoms is None:
        raise ValueError(
            f"{run.output}: the matrices of ionic step {step} belong to a structure that STRU does "
            f"not hold (it is that of step 0), and there is no {' or '.join(names)}; pass it as "
            "atoms=..., or let ABACUS write it (out_stru 1; md_restartfreq 1)"
        )
    return _regrouped(first, atoms)


def _regrouped(first: Structure, atoms: Atoms) -> Structure:
    """Atoms in the order of STRU and inside the cell, as ABACUS has them."""
    symbols = first.atoms.get_chemical_symbols()
    if sorted(symbols) != sorted(atoms.get_chemical_symbols()):
        raise ValueError(
            f"atoms are {atoms.get_chemical_formula('metal')}, but STRU has "
            f"{first.atoms.get_chemical_formula('metal')}"
        )
    order = np.empty(len(atoms), int)
    for symbol in set(symbols):
        mine = np.flatnonzero(np.array(symbols) == symbol)
        order[mine] = np.flatnonzero(np.array(atoms.get_chemical_symbols()) == symbol)
    cell = atoms.cell.array
    fractional, images = wrapped(np.linalg.solve(cell.T, atoms.positions[order].T).T)
    moved = first.atoms.copy()
    moved.set_cell(cell)
    moved.positions = fractional @ cell
    return Structure(moved, first.labels, first.species, images)


@dataclass(frozen=True, eq=False)
class SpeciesData:
    """The orbitals of a structure.

    Parameters
    ----------
    basis
        By species: the chemical symbol, or the label of STRU where two labels of one element
        differ in their files.
    species
        Key of the basis for each label of STRU.
    pseudopotentials
        sha256 of the pseudopotential of each label, where its file was found.
    """

    basis: Basis
    species: Mapping[str, str]
    pseudopotentials: Mapping[str, str]


def read_species(
    run: Run,
    structure: Structure,
    sidecar: Mapping,
    pseudo_dir: str | os.PathLike | None,
    orbital_dir: str | os.PathLike | None,
) -> SpeciesData:
    """Orbital and pseudopotential files of all species that have atoms.

    Parameters
    ----------
    sidecar
        As of :func:`read_sidecar`: tells the orbitals of species whose files are not found.
    pseudo_dir, orbital_dir
        Where the files are; by default where INPUT says, else section ``[abacus]`` of ASE's
        configuration, else the environment variables ``ABACUS_PP_PATH`` and ``ABACUS_ORB_PATH``.

    Raises
    ------
    FileNotFoundError
        If an orbital file is not found, naming the places. A pseudopotential may be missing:
        then its species has no valence.
    """
    orbitals: dict[str, tuple] = {}
    fingerprints: dict[str, str] = {}
    for label in dict.fromkeys(structure.labels):
        species = structure[label]
        if not species.orbital:
            raise ValueError(
                f"{run.folder / 'STRU'}: there is no NUMERICAL_ORBITAL section; matrices in "
                "orbitals need it"
            )
        path, searched = _find(species.orbital, "orbital_dir", orbital_dir, run)
        known = sidecar.get("species", {}).get(label)
        if path is not None:
            orb = read_orb(path)
            entry = (orb.shells, orb.radius, orb.fingerprint)
        elif known is not None:
            stored = sidecar["basis"]
            entry = (
                tuple(stored["shells"][known]),
                stored["radius"].get(known),
                stored["fingerprint"].get(known),
            )
        else:
            raise FileNotFoundError(
                f"{species.orbital}: the orbital file of species {label} is in none of "
                f"{', '.join(map(str, searched))}; pass orbital_dir=..., or set it in "
                "INPUT, in section [abacus] of ASE's configuration, or in the environment as "
                f"{VARIABLES['orbital_dir']}"
            )
        pseudopotential = _pseudopotential(run, species, pseudo_dir)
        valence = None
        if pseudopotential is not None:
            valence, fingerprints[label] = pseudopotential.valence, pseudopotential.fingerprint
        elif known is not None:
            valence = sidecar["basis"]["valence"].get(known)
        orbitals[label] = (*entry, valence)
    keys = {}
    for label in orbitals:
        symbol = structure[label].symbol
        same = {orbitals[other] for other in orbitals if structure[other].symbol == symbol}
        keys[label] = symbol if len(same) == 1 else label
    by_key = {keys[label]: entry for label, entry in orbitals.items()}
    radius, fingerprint, valence = (
        {key: entry[n] for key, entry in by_key.items() if entry[n] is not None} for n in (1, 2, 3)
    )
    shells = {key: entry[0] for key, entry in by_key.items()}
    basis = Basis(shells, "abacus", radius, fingerprint, valence)
    return SpeciesData(basis, MappingProxyType(keys), MappingProxyType(fingerprints))


def _pseudopotential(run: Run, species, pseudo_dir) -> Pseudopotential | None:
    if not species.pseudopotential:
        return None
    path, _ = _find(species.pseudopotential, "pseudo_dir", pseudo_dir, run)
    if path is None:
        return None
    try:
        return read_upf(path)
    except ValueError as err:
        # the matrices are complete without it; only the number of electrons is not known
        warnings.warn(f"the number of electrons is unknown: {err}", stacklevel=2)
        return None


def _find(
    name: str, keyword: str, given: str | os.PathLike | None, run: Run
) -> tuple[Path | None, list[Path]]:
    """A file that STRU names, and the folders it was looked for in."""
    if given is not None:
        folders = [Path(given)]
    else:
        folders = [run.folder / run.inputs.get(keyword, "")]
        configured = configured_folder(keyword)
        if configured is not None:
            folders.append(Path(configured))
    for folder in folders:
        # STRU may name a subfolder that a copy of the files no longer has
        for path in (folder / name, folder / Path(name).name):
            if path.is_file():
                return path, folders
    return None, folders
