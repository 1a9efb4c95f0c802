"""ABACUS run folders <-> :class:`~ase_nextham.data.LCAOData`.

The structure comes from STRU, the basis from the orbital files, the matrices from whatever layout
the version of ABACUS wrote; the log is asked for the Fermi level and for convergence only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.h0 import inputfile
from ase_nextham.h0.csr import CSRMatrix, lcao_matrices, read_csr
from ase_nextham.h0.filenames import MatrixFile, matrix_files, named_steps
from ase_nextham.h0.folder_writer import write_folder
from ase_nextham.h0.log import RunningLog
from ase_nextham.h0.matching import match
from ase_nextham.h0.run import (
    Run,
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

_AXES = ("position x", "position y", "position z")
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
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not paths:
        raise ValueError("read_folder needs at least one folder")
    runs = [run for one in paths for run in find_runs(one)]
    parts = [_read_run(run, step, pseudo_dir, orbital_dir, atoms) for run in runs]
    data = _joined(parts)
    return data if atoms is None else as_atoms(data, atoms)


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


@dataclass(frozen=True, eq=False)
class _Part:
    """What one run folder holds."""

    run: Run
    atoms: Atoms
    symbols: tuple[str, ...]
    basis: Basis
    records: Mapping[str, CSRMatrix | tuple[CSRMatrix, CSRMatrix]]
    sidecar: Mapping
    nelectrons: float | None
    fermi_level: float | None
    source: Mapping


def _read_run(run: Run, step, pseudo_dir, orbital_dir, atoms: Atoms | None) -> _Part:
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
    records, step = _records(run, files, step)
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
        source = _source(run, structure, step, named, kind, log, converged, moments)
    return _Part(
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
    run: Run, files: Sequence[MatrixFile], step: int | None
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
        for record in read_csr(file.path):
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
        named |= dict(zip(_AXES, axes, strict=True))
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
            stacklevel=4,
        )
    off = [term for term in _TERMS if not inputfile.boolean(run.inputs, term, True)]
    if off:
        warnings.warn(
            f"{run.folder}: H(R) is incomplete, INPUT switches off {', '.join(off)}", stacklevel=4
        )


def _source(
    run: Run,
    structure: Structure,
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


def _joined(parts: Sequence[_Part]) -> LCAOData:
    """The operators of all runs, which must be runs of one structure."""
    first = parts[0]
    records: dict = {}
    origin: dict[str, _Part] = {}
    for part in parts:
        _check_same(first, part)
        for name, record in part.records.items():
            if name not in records:
                records[name], origin[name] = record, part
            elif name in ("h0", "hamiltonian"):
                raise ValueError(
                    f"{origin[name].run.folder} and {part.run.folder} both hold a {name}; give one"
                )
            elif name == "overlap":
                _check_same_overlap(origin[name], part)
    if "overlap" not in records:
        raise ValueError(_no_overlap(parts))
    spins = {origin[name].run.nspin for name in ("h0", "hamiltonian") if name in origin}
    if len(spins) > 1:
        a, b = origin["h0"].run, origin["hamiltonian"].run
        raise ValueError(
            f"H(0) in {a.folder} has nspin {a.nspin}, the Hamiltonian in {b.folder} {b.nspin}; "
            "give runs of the same kind"
        )
    basis = first.basis
    matrices = lcao_matrices(records, basis, first.symbols)
    chosen = origin.get("hamiltonian") or origin.get("h0") or first
    known = [part.nelectrons for part in (chosen, *parts) if part.nelectrons is not None]
    data = LCAOData(
        atoms=chosen.atoms,
        overlap=matrices["overlap"],
        h0=matrices.get("h0"),
        hamiltonian=matrices.get("hamiltonian"),
        position=tuple(matrices[axis] for axis in _AXES) if _AXES[0] in matrices else None,
        nelectrons=known[0] if known else None,
        fermi_level=chosen.fermi_level,
        source=_joined_source(parts, origin),
    )
    if first.sidecar:
        order = np.array(first.sidecar["order"])
        shifts = np.array(first.sidecar["shifts"])
        data = data.permuted(order).translated(shifts)
    return data


def _joined_source(parts: Sequence[_Part], origin: Mapping[str, _Part]) -> dict:
    if len({id(part) for part in origin.values()}) == 1:
        return dict(next(iter(origin.values())).source)
    if all(part.source == parts[0].source for part in parts):
        return dict(parts[0].source)
    common = {
        name: parts[0].source.get(name)
        for name in ("code", "version", "nspin")
        if all(part.source.get(name) == parts[0].source.get(name) for part in parts)
    }
    return common | {"runs": {part.run.folder.name: dict(part.source) for part in parts}}


def _check_same(first: _Part, other: _Part) -> None:
    a, b = first.run.folder, other.run.folder
    if first.symbols != other.symbols:
        raise ValueError(
            f"{a} and {b} hold different atoms, or in another order: "
            f"{formula(list(first.symbols))} and {formula(list(other.symbols))}"
        )
    cell = np.abs(first.atoms.cell.array - other.atoms.cell.array).max()
    moved = np.abs(first.atoms.positions - other.atoms.positions).max(axis=1)
    if max(cell, moved.max()) > 1e-4:
        raise ValueError(
            f"{a} and {b} hold different structures: cells differ by {cell:.2g} Angstrom, atom "
            f"{int(np.argmax(moved))} ({first.symbols[int(np.argmax(moved))]}) by "
            f"{moved.max():.2g}; give the folders of one structure"
        )
    reason = first.basis.difference(other.basis)
    if reason:
        raise ValueError(f"{a} and {b} were computed with different orbitals: {reason}")


def _check_same_overlap(a: _Part, b: _Part) -> None:
    one, two = (
        lcao_matrices({"overlap": part.records["overlap"]}, part.basis, part.symbols)["overlap"]
        for part in (a, b)
    )
    difference = np.abs((one - two).data).max(initial=0)
    if difference > 1e-6:
        raise ValueError(
            f"the overlaps in {a.run.folder} and {b.run.folder} differ by {difference:.2g}: they "
            "were not computed with the same structure or orbitals"
        )


def _no_overlap(parts: Sequence[_Part]) -> str:
    folders = [part.run.folder for part in parts]
    message = (
        f"{', '.join(map(str, folders))}: there is no overlap S(R) (data-SR-sparse_SPIN0.csr, "
        "srs1_nao.csr, sr_nao.csr or SR.csr); "
    )
    given = {folder.resolve() for folder in folders}
    for sibling in sorted(folders[0].resolve().parent.iterdir()):
        if sibling in given or not (sibling / "INPUT").is_file():
            continue
        for output in sibling.glob("OUT.*"):
            if any(file.operator == "S" for file in matrix_files(output, sibling)):
                return message + (
                    f"{sibling} has one: read both, read_folder([{str(sibling)!r}, ...]), if it is "
                    "of the same structure"
                )
    return message + (
        "give the folder of another run of the same structure, too, or run ABACUS with "
        "`calculation get_s` there"
    )
