"""H(0) by running ABACUS: write the input, run the executable, read the matrices back.

H(0) is the Hamiltonian of the superposed atomic densities, the one that ABACUS diagonalises in
the first step of a self-consistent run. Builds with ``calculation get_hs`` stop right before; in
all others one step of ``calculation scf`` writes the same matrix. Input files and the command go
through abacuslite, which only this module knows. Reading the output is left to
:mod:`ase_nextham.h0.folder`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, ReadError
from ase.units import Bohr

from ase_nextham.data import LCAOData
from ase_nextham.files import read_text, write_atomically
from ase_nextham.h0.elementfiles import abacus_section, find_files
from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.inputfile import read_input
from ase_nextham.h0.orb import read_orb
from ase_nextham.h0.spin import Spin, check_spin_options, spin_treatment
from ase_nextham.h0.upf import Pseudopotential, read_upf
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.units import BOHR

SUFFIX = "h0"
"""Results go to ``OUT.h0``; by this name a folder of ours is told from one with other results."""

STDOUT, STDERR = "abacus.out", "abacus.err"

GRACE = 10.0
"""Seconds that ABACUS and mpirun get to end by themselves before they are killed."""

# INPUT keywords that decide what is computed and where it goes; none of them can be passed on
_OWN = {"calculation", "suffix", "stru_file", "kpoint_file", "kspacing", "pseudo_dir"}
_OWN |= {"orbital_dir", "basis_type", "gamma_only", "symmetry", "nspin", "lspinorb", "noncolin"}
_OWN |= {"ecutwfc", "scf_nmax", "init_chg", "out_mat_hs2", "out_mat_r"}

# just above the moment from which on ABACUS takes moments for given, spin.NO_MOMENT
_TOKEN_MOMENT = 2e-5

# get_hs comes with a patch, so that no version tells whether a build has it. Each executable is
# asked once: it does it, or refuses within a second and before anything is computed, in the words
# of 3.8 and 3.11 or of versions before 3.6.
_GET_HS_REFUSED = re.compile(r"parameter calculation must be|check 'calculation'")
_without_get_hs: set[tuple] = set()


class AbacusH0:
    """Overlap and H(0) of a structure by running ABACUS.

    >>> backend = AbacusH0(pseudo_dir="pseudo", orbital_dir="orbital")      # doctest: +SKIP
    >>> data = backend.compute(bulk("GaAs", "zincblende", a=5.653))         # doctest: +SKIP

    Parameters
    ----------
    profile
        An ``abacuslite.AbacusProfile``. By default that of the section ``[abacus]`` of ASE's
        configuration (``command``, ``pseudo_dir``, ``orbital_dir``), and without a command there
        the executable ``abacus`` on PATH.
    pseudo_dir, orbital_dir
        Folders that hold the pseudopotentials (UPF) and numerical orbitals (.orb). By default
        those of the profile, which takes ``ABACUS_PP_PATH`` and ``ABACUS_ORB_PATH`` where it has
        none.
    pseudopotentials, orbitals
        File by element, relative to those folders or absolute. Elements that are not named here
        are looked up: exactly one file must be called ``Ga.upf``, ``Ga_*.upf``, ``Ga-*.upf`` or
        ``Ga.*.upf`` (in capitals or not), and the same for ``.orb``.
    nspin
        1, 2 or 4 as in ABACUS: one matrix for both spins, one for each, spinors. By default 4 if
        all pseudopotentials are fully relativistic, because with 1 or 2 ABACUS would average the
        spin-orbit coupling that they carry away; else 2 with ``moments="initial"`` and a
        structure that has some; else 1.
    spin_orbit
        Spin-orbit coupling. By default whether nspin is 4.
    ecutwfc
        Plane-wave cutoff of the integration grid in Rydberg.
    moments
        How the atomic densities are magnetised. ``"zero"``: not at all. ``"initial"``: with the
        initial magnetic moments of the Atoms, numbers (along z) or vectors. ``"abacus39_auto"``:
        with what ABACUS 3.8 to 3.11-beta put on **every** atom when the input has no moments,
        sqrt(3) mu_B along z for nspin 4 and 1 mu_B for nspin 2, for networks that were trained
        on such an H(0).
    position
        Also compute r(R), which can take longer than all the rest.
    inp
        Further INPUT keywords, such as ``{"ks_solver": "lapack", "dft_functional": "pbe"}``.
    directory
        Folder to run in; files stay there, and the next run replaces them. By default a temporary
        one (see ``tempfile.gettempdir``) that is removed unless the run fails. With MPI over
        several nodes give one that all of them see.
    timeout
        Seconds after which ABACUS is stopped with all processes that it started.

    Notes
    -----
    Atoms come back in the order and at the positions given, though ABACUS groups them by species
    and moves them into the cell. ABACUS repeats the cell along all three vectors whatever ``pbc``
    says, so along open directions there must be vacuum, twice the orbital radius and more.

    nspin 2 is run as nspin 4 with moments along z and without spin-orbit coupling, which gives
    the same two matrices. With nspin 2 itself, ABACUS 3.11-beta writes no elements at all, 3.8
    writes spin up of the second step, and ``get_hs`` exchanges the spins.

    One k-point is used: H(0)(R) does not depend on k. No ``ks_solver`` is written, because each
    build then takes one that it has (ELPA, ScaLAPACK or, if serial, LAPACK).

    Moments are always written out, so that the result does not depend on what a version does with
    atoms that have none. For ``"zero"`` with nspin 4 the first atom gets 2e-5 mu_B in the xy plane:
    enough to be a moment for ABACUS, which then sets no others, and without effect, because with
    ``noncolin 0`` only the z component counts. H(0) then obeys time reversal to the last digit.
    """

    def __init__(
        self,
        profile=None,
        *,
        pseudo_dir: str | PathLike | None = None,
        orbital_dir: str | PathLike | None = None,
        pseudopotentials: Mapping[str, str | PathLike] | None = None,
        orbitals: Mapping[str, str | PathLike] | None = None,
        nspin: int | None = None,
        spin_orbit: bool | None = None,
        ecutwfc: float = 100,
        moments: str = "zero",
        position: bool = False,
        inp: Mapping | None = None,
        directory: str | PathLike | None = None,
        timeout: float | None = None,
    ):
        check_spin_options(nspin, spin_orbit, moments)
        own = sorted(_OWN & {key.lower() for key in inp or {}})
        if own:
            raise ValueError(
                f"inp must not contain {', '.join(own)}: this backend decides about them, "
                "partly through its own keywords"
            )
        self.profile = _default_profile() if profile is None else profile
        self.pseudo_dir = pseudo_dir if pseudo_dir is not None else self.profile.pseudo_dir
        self.orbital_dir = orbital_dir if orbital_dir is not None else self.profile.orbital_dir
        self.pseudopotentials = dict(pseudopotentials or {})
        self.orbitals = dict(orbitals or {})
        self.nspin = nspin
        self.spin_orbit = spin_orbit
        self.ecutwfc = ecutwfc
        self.moments = moments
        self.position = position
        self.inp = dict(inp or {})
        self.directory = directory
        self.timeout = timeout

    def __repr__(self):
        return f"AbacusH0({self.profile.command!r}, moments={self.moments!r})"

    def compute(self, atoms: Atoms) -> LCAOData:
        """Run ABACUS for a structure and read S, H(0) and, if asked for, r.

        Returns
        -------
        LCAOData
            In eV and Angstrom, for the atoms in the order and at the positions given, with the
            initial magnetic moments that were used. ``source`` tells the version, the INPUT, the
            preset of moments and the sha256 of every pseudopotential.

        Raises
        ------
        CalculatorSetupError
            If the executable, a pseudopotential or an orbital is missing, ambiguous or does not
            fit, or the structure has no cell.
        CalculationFailed
            If ABACUS fails or takes too long; the message has its folder and its reason.
        ReadError
            If its output cannot be read.
        """
        if not len(atoms):
            raise ValueError("there are no atoms")
        if atoms.cell.rank < 3 or atoms.cell.volume < 1e-9:
            raise CalculatorSetupError(
                "the structure has no complete cell, and ABACUS is periodic in all directions: "
                "add vacuum, for example with atoms.center(vacuum=8)"
            )
        elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
        command = self._command()
        files = _Files(
            find_files(elements, self.pseudopotentials, self.pseudo_dir, "pseudopotential", ".upf"),
            find_files(elements, self.orbitals, self.orbital_dir, "orbital", ".orb"),
        )
        upf = _headers(files)
        has_so = {element: header.has_so for element, header in upf.items()}
        spin = spin_treatment(atoms, has_so, self.nspin, self.spin_orbit, self.moments)
        with _working_folder(self.directory) as folder:
            self._run(command, folder, atoms, spin, files)
            try:
                data = read_folder(folder, atoms=atoms)
            except (OSError, ValueError) as error:
                raise ReadError(f"cannot read what ABACUS wrote in {folder}: {error}") from error
            self._check(data, spin, folder)
        placed = data.atoms.copy()
        placed.set_initial_magnetic_moments(spin.magmoms if spin.magmoms.any() else None)
        source = {
            **data.source,
            "nspin": spin.nspin,
            "moments": spin.moments,
            "pseudopotentials": {element: upf[element].fingerprint for element in elements},
        }
        h0 = _collinear(data.h0) if spin.nspin == 2 else data.h0
        return replace(data, atoms=placed, h0=h0, source=source)

    def _command(self) -> list[str]:
        command = self.profile.get_command(None)
        executable = shutil.which(command[0])
        if executable is None:
            raise CalculatorSetupError(
                f"the executable {command[0]!r} of the command {self.profile.command!r} is not on "
                "PATH; install ABACUS, or set the command in ~/.config/ase/config.ini:\n"
                "[abacus]\ncommand = mpirun -n 4 /path/to/abacus"
            )
        return [os.path.abspath(executable), *command[1:]]  # it runs in another folder

    def _run(
        self, command: Sequence[str], folder: Path, atoms: Atoms, spin: Spin, files: _Files
    ) -> None:
        """Run ABACUS, with ``get_hs`` where it has that."""
        executable = tuple(_identity(word) for word in command)
        kind = "scf" if executable in _without_get_hs else "get_hs"
        status = self._attempt(kind, command, folder, atoms, spin, files)
        if kind == "get_hs" and _GET_HS_REFUSED.search(read_text(folder / STDOUT)):
            _without_get_hs.add(executable)
            kind = "scf"
            status = self._attempt(kind, command, folder, atoms, spin, files)
        self._check_ended(status, folder)

    def _attempt(
        self,
        kind: str,
        command: Sequence[str],
        folder: Path,
        atoms: Atoms,
        spin: Spin,
        files: _Files,
    ) -> int:
        shutil.rmtree(folder / f"OUT.{SUFFIX}", ignore_errors=True)
        self._write_input(folder, kind, atoms, spin, files)
        return _execute(command, folder, self.timeout)

    def _check_ended(self, status: int, folder: Path) -> None:
        # 3.8 ends with status 0 when it refuses its input, so the matrices are looked for, too
        if status != 0 or not list((folder / f"OUT.{SUFFIX}").glob("*.csr")):
            ended = f"status {status}" if status else "status 0, but wrote no matrices,"
            raise CalculationFailed(f"ABACUS ended with {ended} in {folder}:\n{_why(folder)}")

    def _write_input(
        self, folder: Path, kind: str, atoms: Atoms, spin: Spin, files: _Files
    ) -> None:
        generalio = _abacuslite().io.generalio
        pseudo_dir, pseudo = _below_one_folder(files.pseudo)
        orbital_dir, orbital = _below_one_folder(files.orbital)
        parameters = {
            "suffix": SUFFIX,
            "calculation": kind,
            "pseudo_dir": pseudo_dir,
            "orbital_dir": orbital_dir,
            "basis_type": "lcao",
            "gamma_only": 0,
            "symmetry": 0,
            "nspin": 4 if spin.nspin == 2 else spin.nspin,
            "lspinorb": int(spin.spin_orbit),
            "noncolin": int(spin.noncollinear),
            "ecutwfc": self.ecutwfc,
            "out_mat_hs2": 1,
            "out_mat_r": int(self.position),
            "out_chg": -1,  # the charge density would take more disk than the matrices
        }
        if kind == "scf":
            parameters["scf_nmax"] = 1
        generalio.write_input({**parameters, **self.inp}, folder / "INPUT")
        one_k = {"mode": "mp-sampling", "gamma-centered": True, "nk": (1, 1, 1)}
        generalio.write_kpt({**one_k, "kshift": (0, 0, 0)}, folder / "KPT")

        # nothing but what matters: masses, velocities and constraints could be refused
        scale = Bohr / BOHR  # abacuslite divides by the first, this package means the second
        plain = Atoms(
            atoms.numbers, positions=atoms.positions * scale, cell=atoms.cell.array * scale
        )
        token = spin.nspin == 4 and not spin.magmoms.any()
        magmoms = spin.magmoms
        if token:
            magmoms = np.zeros(len(atoms))
            magmoms[0] = _TOKEN_MOMENT
        if spin.nspin > 1:
            plain.set_initial_magnetic_moments(magmoms)
        stru = Path(generalio.write_stru(plain, folder, pp_file=pseudo, orb_file=orbital))
        if token:
            # in the xy plane, which abacuslite can only write for noncolin 1
            text, count = re.subn(r"mag \S+$", r"\g<0> angle1 90", read_text(stru), flags=re.M)
            if count != 1:
                raise AssertionError(f"{stru}: expected the moment of one atom, found {count}")
            write_atomically(stru, text)

    def _check(self, data: LCAOData, spin: Spin, folder: Path) -> None:
        """Refuse results that are not what was asked for."""
        if data.h0 is None:
            raise CalculationFailed(f"ABACUS wrote no H(R) in {folder}:\n{_why(folder)}")
        if self.position and data.position is None:
            raise CalculationFailed(
                f"ABACUS wrote no r(R) in {folder}: version {data.source['version']} cannot do "
                "that here; use another, or position=False"
            )
        if spin.nspin == 4 and spin.moments == "zero":
            error = data.h0.time_reversal_error()
            if error > 1e-3:
                raise CalculationFailed(
                    f"H(0) breaks time reversal by {error:.2g} eV, though no atom was given a "
                    f"moment: this version of ABACUS sets its own ({folder})"
                )


def _collinear(spinor: LCAOMatrix) -> LCAOMatrix:
    """The matrices of spin up and down of an operator that does not mix them."""
    data = np.empty((2, spinor.offsets[-1] // 4))
    for _, _, _, elements in spinor.block_groups():
        block = spinor.data[elements]
        up, down = block[:, 0::2, 0::2], block[:, 1::2, 1::2]
        mixing = max(np.abs(block[:, 0::2, 1::2]).max(), np.abs(block[:, 1::2, 0::2]).max())
        imaginary = max(np.abs(up.imag).max(), np.abs(down.imag).max())
        if max(mixing, imaginary) > 1e-8:
            raise ReadError(
                f"H(0) with moments along z and without spin-orbit coupling mixes the spins by "
                f"{mixing:.2g} eV and has imaginary parts of {imaginary:.2g} eV; expected neither"
            )
        first = elements[:, :1, :1] // 4
        inside = first + np.arange(up[0].size).reshape(up[0].shape)
        data[0, inside], data[1, inside] = up.real, down.real
    return replace(spinor, spin="collinear", data=data)


@dataclass(frozen=True)
class _Files:
    pseudo: Mapping[str, Path]
    orbital: Mapping[str, Path]


def _identity(word: str) -> tuple[str, int | None]:
    """A word of a command and, if it is a program, its age: a new build may know more."""
    path = shutil.which(word)
    return word, os.stat(path).st_mtime_ns if path else None


def configured_command() -> str | None:
    """The command in section ``[abacus]`` of ASE's configuration, else ``abacus`` if on PATH."""
    command = abacus_section().get("command")
    if command is None and shutil.which("abacus") is not None:
        command = "abacus"
    return command


def _abacuslite():
    try:
        import abacuslite.core
        import abacuslite.io.generalio
    except ImportError as error:
        raise CalculatorSetupError(
            "running ABACUS needs the package abacuslite: pip install 'abacuslite>=1.2,<2'"
        ) from error
    return abacuslite


def _default_profile():
    section = abacus_section()
    return _abacuslite().core.AbacusProfile(
        section.get("command", "abacus"),
        pseudo_dir=section.get("pseudo_dir"),
        orbital_dir=section.get("orbital_dir"),
    )


def _headers(files: _Files) -> dict[str, Pseudopotential]:
    """Headers of the pseudopotentials, after a look whether all files are for their elements."""
    try:
        headers = {element: read_upf(path) for element, path in files.pseudo.items()}
        orbitals = {element: read_orb(path) for element, path in files.orbital.items()}
    except (OSError, ValueError) as error:
        raise CalculatorSetupError(str(error)) from error
    for what, paths, contents in (
        ("pseudopotential", files.pseudo, headers),
        ("orbital", files.orbital, orbitals),
    ):
        for element, content in contents.items():
            if content.element != element:
                raise CalculatorSetupError(
                    f"{element}: the {what} file {paths[element]} is for {content.element}"
                )
    return headers


def _below_one_folder(paths: Mapping[str, Path]) -> tuple[str, dict[str, str]]:
    """A folder that holds all files, at some depth, and their paths relative to it."""
    for path in paths.values():
        if re.search(r"[\s#]", str(path)):
            raise CalculatorSetupError(f"ABACUS cannot read paths with spaces or '#': {path}")
    root = os.path.commonpath([path.parent for path in paths.values()])
    names = {element: os.path.relpath(path, root) for element, path in paths.items()}
    return os.path.join(root, ""), names


@contextmanager
def _working_folder(directory: str | PathLike | None) -> Iterator[Path]:
    """The folder given, or a temporary one that stays behind only after an error."""
    if directory is None:
        folder = Path(tempfile.mkdtemp(prefix="nextham-h0-"))
        yield folder
        shutil.rmtree(folder)
        return
    folder = Path(directory).expanduser()
    if (folder / "INPUT").exists() and not _is_ours(folder / "INPUT"):
        raise CalculatorSetupError(
            f"{folder} holds the INPUT of another calculation, which would be overwritten; "
            "choose another directory"
        )
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _is_ours(path: Path) -> bool:
    try:
        return read_input(path).get("suffix") == SUFFIX
    except ValueError:  # not even an INPUT of ABACUS
        return False


def _execute(command: Sequence[str], folder: Path, timeout: float | None) -> int:
    """Exit status of the command run in a folder, with its output in files there."""
    with open(folder / STDOUT, "wb") as out, open(folder / STDERR, "wb") as err:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # so that everything it starts can be stopped together
            )
        except OSError as error:
            raise CalculatorSetupError(f"cannot run {' '.join(command)}: {error}") from error
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            _stop(process)
            raise CalculationFailed(
                f"ABACUS did not end within the timeout of {timeout} s in {folder}:\n{_why(folder)}"
            ) from error
        except BaseException:  # Ctrl-C does not reach the session of its own
            _stop(process)
            raise


def _stop(process: subprocess.Popen) -> None:
    """End a process and its children: politely, so that mpirun can stop its ranks, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _why(folder: Path, lines: int = 10) -> str:
    """What ABACUS says about its failure, or the last lines of its output and logs."""
    said = _read_if_there(folder / STDOUT)
    notice = re.search(r"(?:NOTICE|ERROR!)[\s!*-]*(.+?)\s+CHECK IN FILE", said, re.DOTALL)
    parts = [line.strip() for line in re.findall(r"THE PARAMETER NAME.*", said)]
    output = folder / f"OUT.{SUFFIX}"
    if notice:
        parts.append(notice.group(1).strip())
        logs = [folder / STDERR, output / "warning.log"]
    else:
        logs = [folder / STDERR, folder / STDOUT, *sorted(output.glob("running*.log"))]
    for log in logs:
        text = _read_if_there(log).partition("TIME STATISTICS")[0].splitlines()
        text = [line.rstrip() for line in text if line.strip(" -!*")]
        if text:
            parts += [f"--- the end of {log.relative_to(folder)}:", *text[-lines:]]
    return "\n".join(parts) or "it wrote no output"


def _read_if_there(path: Path) -> str:
    return read_text(path) if path.exists() else ""
