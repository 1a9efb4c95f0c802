"""ABACUS run folders <-> :class:`~ase_nextham.data.LCAOData`.

The structure comes from STRU, the basis from the orbital files, the matrices from whatever layout
the version of ABACUS wrote; the log is asked for the Fermi level and for convergence only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.h0 import inputfile
from ase_nextham.h0.csr import CSRMatrix
from ase_nextham.h0.filenames import MatrixFile, matrix_files, named_steps
from ase_nextham.h0.folder_writer import write_folder
from ase_nextham.h0.joining import AXES, InMemory, Part, Reader, joined
from ase_nextham.h0.log import RunningLog
from ase_nextham.h0.matching import match
from ase_nextham.h0.run import (
    Run,
    SpeciesData,
    find_runs,
    read_kpoints,
    read_running_log,
    read_sidecar,
    read_species,
    read_structure,
    structure_at,
)
from ase_nextham.h0.stru import Structure
from ase_nextham.matrix import formula
from ase_nextham.units import BOHR, RYDBERG

__all__ = ["as_atoms", "operator_of", "read_folder", "write_folder"]

_TERMS = ("t_in_h", "vl_in_h", "vnl_in_h", "vh_in_h", "vion_in_h")


def read_folder(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    step: int | None = None,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
    atoms: Atoms | None = None,
) -> LCAOData:
    """Read the matrices of an ABACUS run.

    Parameters
    ----------
    path
        The folder that holds INPUT, or its ``OUT.<suffix>``; or several of them, or a folder with
        several of them, that hold operators of one structure (S is often with one run and the
        self-consistent H with another).
    step
        Ionic step, counted from 0; needed only where there are several.
    pseudo_dir, orbital_dir
        Folders of the pseudopotentials and orbitals; by default those INPUT names, else those of
        the section ``[abacus]`` of ASE's configuration. Without pseudopotentials the number of
        electrons is not known.
    atoms
        The same crystal in the order and the cell images wanted.

    Returns
    -------
    LCAOData
        In the order of STRU with the atoms inside the cell, where ABACUS puts them; with ``atoms``
        in their order and at their positions. H(R) of ``get_hs``, or of one step from superposed
        atomic densities, is ``h0``; any other is ``hamiltonian``. Initial magnetic moments are
        set where spin is polarised. ``source`` tells the version, files and INPUT keywords.

    Raises
    ------
    FileNotFoundError
        If a folder, STRU or an orbital file is missing.
    ValueError
        If the files contradict each other or INPUT, S is missing, or the matrices cannot be used
        (``gamma_only``, ``get_hs`` with ``nspin 2``).

    Notes
    -----
    Names tell the spin channel and the operator of layouts without a label; else the content
    counts. Energies are scaled with ABACUS's own Rydberg, lengths with its Bohr.
    """
    data = read_by(InMemory(), path, step, pseudo_dir, orbital_dir, atoms)
    return data if atoms is None else as_atoms(data, atoms)


def read_by(
    reader: Reader,
    path: str | os.PathLike | Sequence[str | os.PathLike],
    step: int | None = None,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
    atoms: Atoms | None = None,
) -> LCAOData:
    """As :func:`read_folder` (without :func:`as_atoms`), with matrices as a reader has them."""
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not paths:
        raise ValueError("read_folder needs at least one folder")
    runs = [run for one in paths for run in find_runs(one)]
    parts = [_read_run(reader, run, step, pseudo_dir, orbital_dir, atoms) for run in runs]
    return joined(reader, parts)


def as_atoms(data: LCAOData, atoms: Atoms) -> LCAOData:
    """The same data for the same crystal in the order and at the positions of ``atoms``.

    Magnetic moments stay those of the data.

    Raises
    ------
    NoMatch
        If it is another crystal, naming the first atom without a partner.
    """
    order, shifts = match(data.atoms, atoms)
    if (order != np.arange(len(atoms))).any():
        data = data.permuted(order)
    if shifts.any():
        data = data.translated(shifts)
    placed = data.atoms.copy()
    placed.set_cell(atoms.cell)
    placed.positions = atoms.positions
    placed.pbc = atoms.pbc
    return replace(data, atoms=placed)


def _read_run(reader: Reader, run: Run, step, pseudo_dir, orbital_dir, atoms: Atoms | None) -> Part:
    if inputfile.boolean(run.inputs, "gamma_only", False):
        raise ValueError(
            f"{run.folder}: gamma_only 1 folds all R into one matrix, from which no k-point but "
            "Gamma can be had; run ABACUS with gamma_only 0 (a KPT of Gamma alone will do)"
        )
    files = matrix_files(run.output, run.folder)
    if not files:
        raise ValueError(
            f"{run.output}: there is no matrix file (H(R) and S(R) are data-HR-sparse_SPIN0.csr "
            "and data-SR-sparse_SPIN0.csr, or hrs1_nao.csr and srs1_nao.csr); run ABACUS with "
            "out_mat_hs2 1"
        )
    records, step = _records(reader, run, files, step)
    kind = operator_of(run)
    log = read_running_log(run)
    sidecar = read_sidecar(run)
    structure = structure_at(run, read_structure(run), step, atoms)
    species = read_species(run, structure, sidecar, pseudo_dir, orbital_dir)
    symbols = tuple(species.species[label] for label in structure.labels)
    named = _named(run, records, kind, species.basis, symbols)
    moments = _set_moments(run, structure.atoms, log)
    converged = log.converged.get(step) if log else None
    if kind in named:
        _warn(run, kind, converged)
    fermi_level = log.fermi_levels.get(step) if log else None
    if fermi_level is None and kind in named:
        first = named[kind][0] if isinstance(named[kind], tuple) else named[kind]
        fermi_level = first.fermi_level
    nelectrons = species.basis.nelectrons(symbols)
    if inputfile.number(run.inputs, "nelec", 0):
        nelectrons = inputfile.number(run.inputs, "nelec", 0)
    if nelectrons is not None:
        nelectrons += inputfile.number(run.inputs, "nelec_delta", 0)
    if sidecar and log is None:  # the matrices are still those the sidecar was written with
        source = sidecar["source"]
        nelectrons = nelectrons if sidecar["nelectrons"] is None else sidecar["nelectrons"]
        fermi_level = sidecar["fermi_level"] if fermi_level is None else fermi_level
    else:
        source = _source(run, structure, species, step, named, kind, log, converged, moments)
    return Part(
        run,
        structure.atoms,
        symbols,
        species.basis,
        named,
        sidecar,
        nelectrons,
        fermi_level,
        source,
    )


def _records(
    reader: Reader, run: Run, files: Sequence[MatrixFile], step: int | None
) -> tuple[dict[tuple[str, int], CSRMatrix], int]:
    """Records of one ionic step by operator and channel (or axis), and the step."""
    named = named_steps(files)
    if step is None and len(named) > 1:
        raise _several_steps(run, named)
    if step is None and named:
        step = named[0]
    found: dict[tuple[str, int, int], CSRMatrix] = {}
    for file in files:
        if None not in (step, file.step) and file.step != step:
            continue  # a run of thousands of steps is not read to find one
        for record in reader.records(file.path):
            key = (*_slot(file, record), record.step if file.step is None else file.step)
            if key in found:
                raise ValueError(
                    f"{found[key].path} and {record.path} both hold {key[0]}(R) of ionic step "
                    f"{key[2]}; remove one of them"
                )
            found[key] = record
    steps = sorted({s for operator, _, s in found if operator == "H"} or {s for *_, s in found})
    if step is None and len(steps) > 1:
        raise _several_steps(run, steps)
    if step is None:
        step = steps[0]
    if step not in steps:
        raise ValueError(
            f"{run.output} holds the ionic steps {', '.join(map(str, steps))}, but not {step}"
        )
    return {(operator, n): r for (operator, n, s), r in found.items() if s == step}, step


def _several_steps(run: Run, steps: Sequence[int]) -> ValueError:
    shown = ", ".join(map(str, steps[:10])) + (", ..." if len(steps) > 10 else "")
    return ValueError(
        f"{run.output} holds {len(steps)} ionic steps ({shown}); choose one with step=..."
    )


def _slot(file: MatrixFile, record: CSRMatrix) -> tuple[str, int]:
    """Operator, and channel of H or axis of r, after comparing name and content."""
    if record.gamma_folded:
        raise ValueError(
            f"{file.path}: a gamma-only matrix, folded over all R, from which no k-point but Gamma "
            "can be had; run ABACUS with gamma_only 0"
        )
    if record.operator not in (None, file.operator):
        raise ValueError(
            f"{file.path}: by its name this is {file.operator}(R), but its header says "
            f"{record.operator}(R)"
        )
    if file.operator == "r":
        axes = [axis for axis in (file.axis, record.component) if axis is not None]
        if len(set(axes)) != 1:
            raise ValueError(f"{file.path}: it is not known which component of r this is")
        return "r", axes[0]
    if file.operator == "H" and record.spin_index not in (None, file.spin):
        raise ValueError(
            f"{file.path}: by its name this is spin channel {file.spin + 1}, but its header says "
            f"{record.spin_index + 1}"
        )
    return file.operator, file.spin


def operator_of(run: Run) -> str:
    """Which operator the H(R) of a run is: ``"h0"`` or ``"hamiltonian"``."""
    calculation = run.inputs.get("calculation", "scf").lower()
    from_atoms = run.inputs.get("init_chg", "atomic") in ("", "atomic")
    one_step = calculation == "scf" and inputfile.number(run.inputs, "scf_nmax", 100) == 1
    # the matrix that is written is the one the first step diagonalised
    return "h0" if calculation == "get_hs" or (one_step and from_atoms) else "hamiltonian"


def _named(
    run: Run,
    records: Mapping[tuple[str, int], CSRMatrix],
    kind: str,
    basis: Basis,
    symbols: Sequence[str],
) -> dict[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]]:
    """Records by operator, after comparing them with nspin of INPUT and with the orbitals."""
    named: dict[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]] = {}
    up, down = records.get(("H", 0)), records.get(("H", 1))
    if run.nspin == 2 and (up or down):
        if up is None or down is None:
            missing = "down (SPIN1, hrs2)" if down is None else "up (SPIN0, hrs1)"
            raise ValueError(f"{run.output}: nspin is 2, but H(R) of spin {missing} is not there")
        if kind == "h0":
            _check_collinear_h0(run, up)
        named[kind] = (up, down)
    elif down is not None:
        raise ValueError(
            f"{down.path}: INPUT says nspin {run.nspin}, which has no second spin channel; is the "
            "file left over from another calculation?"
        )
    elif up is not None:
        named[kind] = up
    if ("S", 0) in records:
        named["overlap"] = records["S", 0]
    axes = [records.get(("r", axis)) for axis in range(3)]
    if all(record is not None for record in axes):
        named |= dict(zip(AXES, axes, strict=True))
    expected = sum(basis.norbitals(name) for name in symbols) * (2 if run.nspin == 4 else 1)
    for record in (up, down):
        if record is not None and record.dimension != expected:
            raise ValueError(
                f"{record.path}: matrix dimension is {record.dimension}, but the orbitals of "
                f"{formula(list(symbols))} with nspin {run.nspin} give {expected}; are INPUT, STRU "
                "and the orbital files those of this calculation?"
            )
    return named


def _check_collinear_h0(run: Run, up: CSRMatrix) -> None:
    """Refuse H(0) of two spins from versions that write one of them wrong."""
    if run.inputs.get("calculation", "").lower() == "get_hs":
        raise ValueError(
            f"{run.folder}: H(0) by get_hs with nspin 2 is not used: the channel it names up is "
            "the one that the first step of a self-consistent run names down; run `calculation "
            "scf` with `scf_nmax 1` and nspin 4, or nspin 1"
        )
    frozen = run.inputs.get("mixing_type", "").lower() == "plain" and all(
        abs(inputfile.number(run.inputs, name, 1.0)) < 1e-8
        for name in ("mixing_beta", "mixing_beta_mag")
    )
    if up.layout.startswith("legacy") and not frozen:
        # ModuleIO::output_HSR saves spin down as it was diagonalised, then computes spin up anew,
        # with the potential of the density that the step gave: 1.3 eV off in OH with 3.8.1
        raise ValueError(
            f"{run.folder}: with nspin 2 this version of ABACUS writes spin down of the first step "
            "beside spin up of the second, so that one step gives no H(0), unless the density is "
            "kept from changing: run with `mixing_type plain`, `mixing_beta 1e-12` and "
            "`mixing_beta_mag 1e-12`"
        )


def _set_moments(run: Run, atoms: Atoms, log: RunningLog | None) -> str | None:
    """Give the atoms the moments the run began with; returns how they were chosen."""
    nspin, noncolin = run.nspin, inputfile.boolean(run.inputs, "noncolin", False)
    moments = atoms.get_initial_magnetic_moments()
    if nspin == 4 and not noncolin and moments.ndim == 2:
        moments = moments * [0.0, 0.0, 1.0]  # ABACUS uses the z components only
    elif nspin == 2 and moments.ndim == 2:
        moments = moments[:, 2]
    if log is not None and log.moments_autoset and nspin > 1:
        one = 1.0
        if nspin == 4:
            # without noncolin, ABACUS puts the length of (1, 1, 1) on z
            one = np.ones(3) if noncolin else np.array([0.0, 0.0, np.sqrt(3.0)])
        moments = np.array([one] * len(atoms))
        preset = "abacus39_auto"
    else:
        preset = "initial" if np.abs(moments).max() > 1e-3 else "zero"
    atoms.set_initial_magnetic_moments(moments if nspin > 1 and np.any(moments) else None)
    return preset if nspin > 1 else None


def _warn(run: Run, kind: str, converged: bool | None) -> None:
    if kind == "hamiltonian" and converged is False:
        warnings.warn(
            f"{run.folder}: the self-consistent loop did not converge; its Hamiltonian is that of "
            "the last step",
            stacklevel=5,
        )
    off = [term for term in _TERMS if not inputfile.boolean(run.inputs, term, True)]
    if off:
        warnings.warn(
            f"{run.folder}: H(R) is incomplete, INPUT switches off {', '.join(off)}", stacklevel=5
        )


def _source(
    run: Run,
    structure: Structure,
    species: SpeciesData,
    step: int,
    named: Mapping[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]],
    kind: str,
    log: RunningLog | None,
    converged: bool | None,
    moments: str | None,
) -> dict:
    files, layouts = {}, {}
    for name, records in named.items():
        several = records if isinstance(records, tuple) else (records,)
        operator = name.split()[0]  # x, y and z of the position are mostly in one file
        names = [Path(record.path).name for record in several]
        files[operator] = list(dict.fromkeys(files.get(operator, []) + names))
        layouts[operator] = several[0].layout
    hidden = ("pseudo_dir", "orbital_dir", "read_file_dir")  # folders of somebody's machine
    source = {
        "code": "ABACUS",
        "version": log.version if log else None,
        "nspin": run.nspin,
        "step": step,
        "files": files,
        "layouts": layouts,
        "units": {"Ry": RYDBERG, "Bohr": BOHR},
        "input": {key: value for key, value in run.inputs.items() if key not in hidden},
    }
    source["species"] = {
        label: {"orbital": structure[label].orbital, "mass": structure[label].mass}
        | {"pseudopotential": structure[label].pseudopotential}
        | {"pseudopotential_sha256": species.pseudopotentials.get(label)}
        for label in dict.fromkeys(structure.labels)
    }
    kpoints = read_kpoints(run)
    if kpoints is not None:
        source["kpoints"] = kpoints
    if kind in named:
        source["operator"] = kind
        if converged is not None:
            source["converged"] = converged
    if moments is not None:
        source["moments"] = moments
    return source
