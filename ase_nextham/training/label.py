"""Labels: H(0), S and the self-consistent H of many structures, computed by ABACUS.

Each structure gets a folder with two runs, ``get_hs`` (S and H(0)) and ``scf`` (the self-consistent
H), from which :mod:`~ase_nextham.training.dataset_build` makes a sample. Input, command and reading
are those of :class:`~ase_nextham.h0.abacus.AbacusH0`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, kpts2sizeandoffsets

from ase_nextham.data import LCAOData
from ase_nextham.files import write_atomically
from ase_nextham.h0.abacus import AbacusH0
from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.spin import Spin
from ase_nextham.tasks import EXPECTED, Outcome, results
from ase_nextham.training.dataset_prepare import prepare

SELF_CONSISTENT: Mapping[str, Any] = {
    "scf_nmax": 100,
    "scf_thr": 1e-7,
    "smearing_method": "gauss",
    "smearing_sigma": 0.002,
    "mixing_type": "broyden",
    "out_chg": 0,  # keep the density, which is about as large as H: the density head learns it
}
"""INPUT keywords of the self-consistent run, unless others are given."""

RUNS = ("get_hs", "scf")
"""Folders of the two runs of a structure."""

_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*")
# hidden, so that whoever reads all structures of the target leaves them out
_UNFINISHED, _FAILED = ".unfinished-", ".failed-"


@dataclass(frozen=True)
class _Task:
    """How one structure is computed."""

    target: Path
    kpts: tuple[int, int, int] | float
    inp: Mapping[str, Any]
    options: Mapping[str, Any]


def label(
    structures: Mapping[str, Atoms],
    target: str | os.PathLike,
    *,
    kpts: Sequence[int] | float = 3.0,
    nspin: int = 1,
    inp: Mapping | None = None,
    jobs: int = 1,
    progress: bool = False,
    **options,
) -> Outcome:
    """Compute labels of structures, several at a time.

    A structure whose folder is there already is skipped, so that an interrupted call goes on where
    it stopped. One that fails does not stop the others; its files stay in ``.failed-NAME``, and it
    is tried again by the next call.

    Parameters
    ----------
    structures
        By name; folders are named after them.
    target
        Folder of the results. It is made if need be.
    kpts
        Gamma-centred mesh of the self-consistent run, such as ``(6, 6, 6)``, or points per
        1/Angstrom.
    nspin
        1 or 4. Without magnetism 1 serves spin-orbit coupling as well, because dH hardly knows of
        it, and takes a seventh of the time.
    inp
        Further INPUT keywords of both runs, such as ``{"ks_solver": "lapack"}``. Those of
        :data:`SELF_CONSISTENT` replace its values.
    jobs
        Structures at a time. Threads and processes of each run are a matter of the command and of
        ``OMP_NUM_THREADS``.
    progress
        Show a progress bar.
    options
        Keywords of :class:`~ase_nextham.h0.abacus.AbacusH0`: ``profile``, ``pseudo_dir``,
        ``orbital_dir``, ``ecutwfc``, ``moments``, ``timeout`` and others.

    Returns
    -------
    Outcome
        By name.

    Raises
    ------
    CalculatorSetupError
        If ABACUS is not configured.
    ValueError
        For options that contradict each other, and names that are no file names.
    """
    if nspin not in (1, 4):
        raise ValueError(
            f"nspin={nspin}: labels are computed with 1 or 4, because no version of ABACUS writes "
            "both matrices of nspin 2 as they should be; moments along z go with nspin=4"
        )
    for name in structures:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"the name {name!r} of a structure must be letters, digits, '_', '+', '.' and '-'"
            )
    target = Path(target).absolute()
    options = {**options, "nspin": nspin}
    kpts = float(kpts) if isinstance(kpts, (int, float)) else tuple(int(n) for n in kpts)
    # what is wrong with the options is wrong with all structures
    task = _Task(target, kpts, {**SELF_CONSISTENT, **(inp or {})}, options)
    _SelfConsistent(task)._command()
    target.mkdir(parents=True, exist_ok=True)
    skipped = tuple(name for name in structures if (target / name).is_dir())
    tasks = {name: (name, atoms, task) for name, atoms in structures.items() if name not in skipped}
    done, failed, remarks = [], {}, {}
    for result in results(_label, tasks, jobs, progress):
        if result.remarks:
            remarks[result.name] = result.remarks
        if result.reason is None:
            done.append(result.name)
        else:
            failed[result.name] = result.reason
    return Outcome(tuple(done), skipped, failed, remarks)


def _label(name: str, atoms: Atoms, task: _Task) -> None:
    """Both runs of one structure in one folder, which gets its name when they are good."""
    folder = task.target / f"{_UNFINISHED}{name}"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    failed = task.target / f"{_FAILED}{name}"
    common = {key: value for key, value in task.inp.items() if key not in SELF_CONSISTENT}
    try:
        AbacusH0(**task.options, inp=common, directory=folder / "get_hs").compute(atoms)
        _SelfConsistent(task, folder / "scf").compute(atoms)
        prepare(read_folder([folder / run for run in RUNS]), name)
    except EXPECTED as err:
        shutil.rmtree(failed, ignore_errors=True)
        if folder.is_dir():
            os.replace(folder, failed)
        raise CalculationFailed(str(err).replace(str(folder), str(failed))) from err
    shutil.rmtree(failed, ignore_errors=True)
    os.replace(folder, task.target / name)


class _SelfConsistent(AbacusH0):
    """A self-consistent run in place of H(0), by the same machinery."""

    def __init__(self, task: _Task, directory: Path | None = None):
        others = {key: value for key, value in task.inp.items() if key != "scf_nmax"}
        super().__init__(**task.options, inp=others, directory=directory)
        # the base class keeps this one for H(0), which takes one step
        self.inp["scf_nmax"] = task.inp["scf_nmax"]
        self.kpts = task.kpts

    def _run(self, command, folder: Path, atoms: Atoms, spin: Spin, files) -> None:
        status = self._attempt("scf", command, folder, atoms, spin, files)
        self._check_ended(status, folder)

    def _write_input(self, folder: Path, kind: str, atoms: Atoms, spin: Spin, files) -> None:
        super()._write_input(folder, kind, atoms, spin, files)
        size = self.kpts
        if isinstance(size, float):
            size, _ = kpts2sizeandoffsets(density=size, atoms=atoms)
        mesh = " ".join(str(n) for n in size)
        write_atomically(folder / "KPT", f"K_POINTS\n0\nGamma\n{mesh} 0 0 0\n")

    def _check(self, data: LCAOData, spin: Spin, folder: Path) -> None:
        if data.hamiltonian is None:
            raise CalculationFailed(f"ABACUS wrote no self-consistent H(R) in {folder}")


__all__ = ["RUNS", "SELF_CONSISTENT", "label"]
