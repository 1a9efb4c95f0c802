"""Running ABACUS: input, order of atoms, spins and every way to fail.

Most tests run ``replay_abacus.py``, which answers with recorded output of the real ABACUS and
refuses input other than the recorded one. Those marked ``abacus`` run the real one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, ReadError
from ase.config import Config
from ase.neighborlist import primitive_neighbor_list
from scipy.spatial.transform import Rotation

from ase_nextham.h0 import abacus, elementfiles
from ase_nextham.h0.abacus import AbacusH0
from ase_nextham.h0.folder import read_folder
from ase_nextham.testing import check_rotation

pytest.importorskip("abacuslite", reason="abacuslite is not installed")
from abacuslite import AbacusProfile

REPLAY = Path(__file__).with_name("replay_abacus.py")


def alternating() -> Atoms:
    """H He H He: an order that STRU cannot hold, with atoms outside a triclinic cell."""
    cell = np.array([[8.6, 0.3, 0.0], [-0.4, 8.9, 0.2], [0.5, 0.0, 9.2]])
    fractional = [[0.1, 0.1, 0.1], [1.32, 0.2, -0.85], [-0.62, 0.3, 0.2], [0.25, 2.45, 0.3]]
    return Atoms(["H", "He", "H", "He"], positions=fractional @ cell, cell=cell, pbc=True)


def pair(magmoms=None) -> Atoms:
    """He and H across a cell boundary."""
    positions = [[0.5, 0.5, -0.4], [0.5, 1.1, 0.7]]
    atoms = Atoms(["He", "H"], positions=positions, cell=[9.0, 9.5, 10.0], pbc=True)
    if magmoms is not None:
        atoms.set_initial_magnetic_moments(magmoms)
    return atoms


def water() -> Atoms:
    positions = [[3.5, 3.75, 4.2981545], [3.5, 4.513239, 3.7018455], [3.5, 2.986761, 3.7018455]]
    return Atoms("OH2", positions=positions, cell=[7.0, 7.5, 8.0], pbc=True)


@pytest.fixture(scope="session")
def recordings(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    with tarfile.open(root / "tests" / "data" / "abacus_runs" / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def replay(recordings, tmp_path, monkeypatch):
    """Function that makes a backend whose executable replays a recording."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(abacus, "_without_get_hs", set())

    def replay(name, *fault, **options) -> AbacusH0:
        command = shlex.join([sys.executable, str(REPLAY), str(recordings / name), *fault])
        options = {
            "pseudo_dir": recordings / "pseudo",
            "orbital_dir": recordings / "orbital",
        } | options
        return AbacusH0(AbacusProfile(command), **options)

    return replay


def folder_in(message) -> Path:
    return Path(re.search(r"in (/\S+?):", str(message)).group(1))


# --- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("recording", ["v3.8.1_nspin1", "v3.11.0_nspin1"])
def test_pairs_are_those_of_the_atoms_given_in_their_order_and_cell(replay, recording):
    atoms = alternating()
    data = replay(recording, nspin=1, position=True).compute(atoms)
    assert data.symbols == ("H", "He", "H", "He")
    np.testing.assert_array_equal(data.atoms.positions, atoms.positions)

    # orbitals overlap exactly where two spheres do
    reach = 2 * data.basis.radius["H"]
    assert data.basis.radius["H"] == data.basis.radius["He"]
    i, j, R = primitive_neighbor_list(
        "ijS", atoms.pbc, atoms.cell, atoms.positions, reach, self_interaction=True
    )
    expected = set(zip(i, j, map(tuple, R), strict=True))
    overlapping = {
        (data.pairs.i[p], data.pairs.j[p], tuple(data.pairs.R[p]))
        for p in range(len(data.pairs))
        if np.abs(data.overlap.data[data.overlap.offsets[p] : data.overlap.offsets[p + 1]]).max()
    }
    # at the rim of the spheres the overlap is below the 1e-10 from which ABACUS prints
    assert overlapping <= expected
    vectors = np.array(
        [
            atoms.positions[j] + R @ atoms.cell - atoms.positions[i]
            for i, j, R in expected - overlapping
        ]
    )
    assert (np.linalg.norm(vectors.reshape(-1, 3), axis=1) > 0.95 * reach).all()
    assert len(overlapping) > 20

    for a in range(4):
        np.testing.assert_allclose(np.diag(data.overlap.block(a, a, (0, 0, 0))), 1, atol=1e-8)
    assert data.h0.hermitian_error() < 1e-6  # eV
    assert data.position_error() < 1e-6  # Angstrom
    assert data.nelectrons == 6


def test_both_layouts_hold_the_same_numbers(replay):
    old, new = (
        replay(name, nspin=1, position=True).compute(alternating())
        for name in ("v3.8.1_nspin1", "v3.11.0_nspin1")
    )
    assert np.abs((old.h0 - new.h0).data).max() < 1e-7  # eV, the digits printed
    assert np.abs((old.overlap - new.overlap).data).max() < 1e-8
    for x, y in zip(old.position, new.position, strict=True):
        assert np.abs((x - y).data).max() < 1e-7  # Angstrom


def test_spinors_without_moments_obey_time_reversal_to_the_last_digit(replay):
    data = replay("v3.11.0_soc").compute(pair())
    assert data.h0.spin == "spinor"
    assert data.h0.time_reversal_error() < 1e-9  # eV
    assert np.abs(data.h0.data).max() > 1


def test_the_majority_spin_lies_lower_and_comes_first(replay):
    atoms = pair([0.0, 1.0])
    data = replay("v3.11.0_nspin2", nspin=2, moments="initial").compute(atoms)
    assert data.h0.spin == "collinear"
    up, down = data.h0.block(1, 1, (0, 0, 0))
    assert up[0, 0] < down[0, 0] - 1  # eV; the s orbital of the hydrogen with 1 mu_B


def test_get_hs_is_used_where_the_version_has_it(replay, recordings, tmp_path):
    directory = tmp_path / "run"
    data = replay("v3.9.0_get_hs", nspin=1, directory=directory).compute(water())
    assert data.source["input"]["calculation"] == "get_hs"
    assert (directory / "calls").read_text().split() == ["get_hs"]
    assert data.h0 is not None
    assert data.hamiltonian is None


def test_a_version_without_get_hs_is_asked_once(replay, tmp_path):
    directory = tmp_path / "run"
    for _ in range(2):
        backend = replay("v3.8.1_nspin1", nspin=1, position=True, directory=directory)
        data = backend.compute(alternating())
    assert data.source["input"]["calculation"] == "scf"
    assert (directory / "calls").read_text().split() == ["get_hs", "scf", "scf"]


def test_the_source_tells_how_h0_was_made(replay):
    source = replay("v3.11.0_soc").compute(pair()).source
    assert source["version"].startswith("3.11.0")
    assert source["moments"] == "zero"
    assert source["input"]["ecutwfc"] == "100"
    assert source["pseudopotentials"].keys() == {"H", "He"}
    assert all(len(fingerprint) == 64 for fingerprint in source["pseudopotentials"].values())


def test_results_do_not_depend_on_what_else_the_atoms_carry(replay):
    atoms = alternating()
    atoms.set_masses([1, 4, 2, 3])  # isotopes, which abacuslite would refuse
    atoms.set_velocities(np.ones((4, 3)))
    atoms.pbc = False
    data = replay("v3.11.0_nspin1", nspin=1, position=True).compute(atoms)
    assert not data.atoms.pbc.any()


def test_the_temporary_folder_is_removed_after_success_and_kept_after_failure(replay, tmp_path):
    replay("v3.11.0_soc").compute(pair())
    assert not list((tmp_path / "temporary").iterdir())
    with pytest.raises(CalculationFailed) as error:
        replay("v3.11.0_soc", "crash").compute(pair())
    assert folder_in(error.value).parent == tmp_path / "temporary"
    assert (folder_in(error.value) / "INPUT").exists()


# --- moments -----------------------------------------------------------------------------------


def magnetic_lines(backend, atoms, tmp_path) -> list[str]:
    """What STRU says about the moment of each atom, in its order."""
    directory = tmp_path / "moments"
    backend.directory = directory
    with pytest.raises(CalculationFailed, match="differs from the recorded"):
        backend.compute(atoms)
    lines = (directory / "STRU").read_text().splitlines()
    return [line.partition("mag")[2].strip() for line in lines if " m 1 1 1" in line]


def test_presets_are_written_out_so_that_the_version_does_not_matter(replay, tmp_path):
    shifted = pair()
    shifted.rattle(0.1, seed=1)  # not the recorded one: only STRU matters here
    backend = replay("v3.11.0_soc", moments="abacus39_auto")
    root3 = pytest.approx(3**0.5)
    assert [float(m) for m in magnetic_lines(backend, shifted, tmp_path)] == [root3, root3]
    backend = replay("v3.11.0_nspin2", moments="abacus39_auto", nspin=2)
    assert magnetic_lines(backend, shifted, tmp_path) == ["1.0", "1.0"]
    assert magnetic_lines(replay("v3.11.0_soc"), shifted, tmp_path) == ["2e-05 angle1 90", ""]


def test_the_moments_of_abacus39_are_on_every_atom(replay):
    data = replay("v3.11.0_auto", moments="abacus39_auto").compute(pair())
    assert data.source["moments"] == "abacus39_auto"
    np.testing.assert_allclose(data.atoms.get_initial_magnetic_moments(), 3**0.5)
    assert data.h0.time_reversal_error() > 0.1  # eV


def test_initial_moments_may_be_vectors(replay, tmp_path):
    backend = replay("v3.11.0_soc", moments="initial")
    lines = magnetic_lines(backend, pair([[0.0, 0.0, 0.0], [0.3, 0.0, -0.4]]), tmp_path)
    assert lines == ["", "0.3 0.0 -0.4"]
    assert "noncolin 1" in (tmp_path / "moments" / "INPUT").read_text()


def test_initial_moments_that_are_ignored_are_mentioned(replay):
    with pytest.warns(UserWarning, match=r"up to 1 mu_B that moments='zero' ignores"):
        replay("v3.11.0_soc").compute(pair([0.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "magmoms", "message"),
    [
        ({"nspin": 1}, [0.0, 1.0], "nspin=1 cannot hold"),
        ({"nspin": 2}, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], "vectors need nspin=4"),
        ({"nspin": 2}, None, "these have none"),
    ],
)
def test_initial_moments_that_do_not_fit_nspin_are_refused(replay, options, magmoms, message):
    with pytest.raises(ValueError, match=message):
        replay("v3.11.0_soc", moments="initial", **options).compute(pair(magmoms))


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nspin": 3}, "nspin=3 must be 1, 2 or 4"),
        ({"nspin": 1, "spin_orbit": True}, "needs spinors, nspin=4"),
        ({"moments": "none"}, "unknown moments 'none'; known: zero, initial, abacus39_auto"),
        ({"nspin": 2}, "twice the H\\(0\\) of nspin=1"),
        ({"inp": {"init_chg": "file", "nspin": 4}}, "must not contain init_chg, nspin"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AbacusH0(AbacusProfile("abacus"), **options)


def test_further_keywords_reach_input(replay, tmp_path):
    backend = replay("v3.11.0_soc", inp={"ks_solver": "lapack"}, directory=tmp_path / "run")
    with pytest.raises(CalculationFailed):
        backend.compute(pair())
    assert "ks_solver lapack" in (tmp_path / "run" / "INPUT").read_text()


def configure(monkeypatch, text):
    config = Config()
    config.parser.read_string(text)
    monkeypatch.setattr(elementfiles, "cfg", config)


def test_command_and_folders_come_from_the_configuration_of_ase(monkeypatch, recordings):
    configure(
        monkeypatch,
        f"[abacus]\ncommand = {shlex.join([sys.executable, str(REPLAY)])} "
        f"{recordings / 'v3.11.0_soc'}\n"
        f"pseudo_dir = {recordings / 'pseudo'}\norbital_dir = {recordings / 'orbital'}\n",
    )
    assert AbacusH0().compute(pair()).h0.spin == "spinor"


def test_an_executable_may_be_named_relative_to_where_python_runs(
    recordings, tmp_path, monkeypatch
):
    script = tmp_path / "my-abacus"
    command = shlex.join([sys.executable, str(REPLAY), str(recordings / "v3.11.0_soc")])
    script.write_text(f"#!/bin/sh\nexec {command}\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    folders = {"pseudo_dir": recordings / "pseudo", "orbital_dir": recordings / "orbital"}
    assert AbacusH0(AbacusProfile("./my-abacus"), **folders).compute(pair()).h0 is not None


def test_without_configuration_abacus_is_searched_on_path(monkeypatch, tmp_path):
    configure(monkeypatch, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CalculatorSetupError, match=r"'abacus' .* not on PATH(.|\n)*\[abacus\]"):
        AbacusH0().compute(pair())


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def library(recordings, tmp_path) -> Path:
    """A folder with pseudopotentials and orbitals that a test may change."""
    folder = tmp_path / "library"
    shutil.copytree(recordings / "pseudo", folder)
    shutil.copytree(recordings / "orbital", folder, dirs_exist_ok=True)
    return folder


def in_library(replay, library, **options):
    return replay("v3.11.0_soc", pseudo_dir=library, orbital_dir=library, **options)


def test_several_files_for_an_element_are_listed_and_one_can_be_chosen(replay, library):
    shutil.copy(library / "He.upf", library / "He_other.UPF")
    with pytest.raises(CalculatorSetupError, match=r"He: 2 files .*\(He.upf, He_other.UPF\)"):
        in_library(replay, library).compute(pair())
    backend = in_library(replay, library, pseudopotentials={"He": library / "He.upf"})
    assert backend.compute(pair()).nelectrons == 3


def test_files_may_lie_in_several_folders(replay, library, tmp_path):
    (library / "sub").mkdir()
    moved = next(library.glob("He_*.orb")).rename(library / "sub" / "helium.orb")
    options = {"orbitals": {"He": "sub/helium.orb"}, "directory": tmp_path / "run"}
    with pytest.raises(CalculationFailed):  # the recording has another name
        in_library(replay, library, **options).compute(pair())
    assert "sub/helium.orb" in (tmp_path / "run" / "STRU").read_text()
    assert moved.exists()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("He.upf", "He: no pseudopotential in"), ("He_*.orb", "He: no orbital in")],
)
def test_missing_files_are_named(replay, library, pattern, message):
    next(library.glob(pattern)).unlink()
    with pytest.raises(CalculatorSetupError, match=message):
        in_library(replay, library).compute(pair())


@pytest.mark.parametrize("kind", ["pseudopotential", "orbital"])
def test_files_of_another_element_are_refused(replay, library, kind):
    pattern = {"pseudopotential": "{}.upf", "orbital": "{}_*.orb"}[kind]
    hydrogen, helium = (next(library.glob(pattern.format(e))) for e in ("H", "He"))
    shutil.copy(hydrogen, helium)
    with pytest.raises(CalculatorSetupError, match=rf"He: the {kind} file .* is for H"):
        in_library(replay, library).compute(pair())


def test_files_that_are_no_pseudopotentials_are_refused(replay, library):
    (library / "He.upf").write_text("<html>404</html>")
    with pytest.raises(CalculatorSetupError, match=r"He.upf: there is no PP_HEADER"):
        in_library(replay, library).compute(pair())


def test_files_named_but_absent_are_named(replay):
    backend = replay("v3.11.0_soc", pseudopotentials={"He": "helium.upf"})
    with pytest.raises(CalculatorSetupError, match=r"He: the pseudopotential .*helium.upf does"):
        backend.compute(pair())


def test_spin_orbit_coupling_needs_fully_relativistic_pseudopotentials(replay, library, tmp_path):
    upf = library / "He.upf"
    upf.write_text(re.sub(r'has_so="\w+"', 'has_so="F"', upf.read_text()))
    with pytest.raises(CalculatorSetupError, match=r"fully relativistic .* those of He are not"):
        in_library(replay, library, nspin=4).compute(pair())
    directory = tmp_path / "run"
    with pytest.raises(CalculationFailed):
        in_library(replay, library, directory=directory).compute(pair())
    assert "nspin 1" in (directory / "INPUT").read_text()


def test_paths_that_abacus_cannot_read_are_refused(replay, library):
    spaced = library.rename(library.with_name("my library"))
    with pytest.raises(CalculatorSetupError, match="spaces or '#': .*my library"):
        in_library(replay, spaced).compute(pair())


def test_no_folder_for_pseudopotentials_is_said_so(recordings, monkeypatch):
    monkeypatch.delenv("ABACUS_PP_PATH", raising=False)
    backend = AbacusH0(AbacusProfile(sys.executable), orbital_dir=recordings / "orbital")
    with pytest.raises(CalculatorSetupError, match="give pseudo_dir, or set it"):
        backend.compute(pair())


# --- failures ----------------------------------------------------------------------------------


def test_a_structure_without_cell_is_refused(replay):
    with pytest.raises(CalculatorSetupError, match="add vacuum"):
        replay("v3.11.0_soc").compute(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]]))


def test_a_crash_shows_status_folder_and_last_lines(replay):
    with pytest.raises(CalculationFailed, match=r"status 139 in /\S+:(.|\n)*SIGSEGV"):
        replay("v3.11.0_soc", "crash").compute(pair())


def test_a_refusal_with_status_0_shows_its_notice(replay):
    with pytest.raises(CalculationFailed, match="wrote no matrices(.|\n)*Something wrong during"):
        replay("v3.8.1_nspin1", "quiet", nspin=1, position=True).compute(alternating())


def test_an_unknown_keyword_is_named(replay):
    with pytest.raises(CalculationFailed, match="THE PARAMETER NAME 'frobnicate'(.|\n)*Bad param"):
        replay("v3.11.0_soc", "unknown", inp={"frobnicate": 1}).compute(pair())


@pytest.mark.parametrize("recording", ["v3.8.1_nspin1", "v3.11.0_nspin1"])
def test_truncated_matrices_are_an_error_that_names_the_folder(replay, recording):
    with pytest.raises(ReadError, match=r"cannot read what ABACUS wrote in /\S+:"):
        replay(recording, "truncated", nspin=1, position=True).compute(alternating())


def test_a_version_that_writes_no_position_operator_is_named(replay):
    backend = replay("v3.11.0_nspin1", "lacking", nspin=1, position=True)
    with pytest.raises(CalculationFailed, match=r"wrote no r\(R\) in /\S+: version 3.11.0-beta.1"):
        backend.compute(alternating())


def test_a_version_that_magnetises_atoms_against_the_input_is_found_out(
    replay, recordings, tmp_path
):
    # what "abacus39_auto" gives stands in for a version that sets moments in spite of STRU
    disobedient = shutil.copytree(recordings / "v3.11.0_auto", tmp_path / "disobedient")
    for name in ("INPUT", "STRU", "KPT"):
        shutil.copy(recordings / "v3.11.0_soc" / name, disobedient)
    with pytest.raises(CalculationFailed, match=r"breaks time reversal by [\d.]+ eV"):
        replay(disobedient).compute(pair())


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_run_that_takes_too_long_is_stopped_with_its_children(replay, tmp_path):
    directory = tmp_path / "run"
    backend = replay("v3.11.0_soc", "hang", timeout=2, directory=directory)
    with pytest.raises(CalculationFailed, match=r"timeout of 2 s in /\S+:(.|\n)*ITER 1"):
        backend.compute(pair())
    pids = [int(pid) for pid in (directory / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_the_folder_of_another_calculation_is_not_overwritten(replay, tmp_path):
    (tmp_path / "INPUT").write_text("INPUT_PARAMETERS\nsuffix ABACUS\n")
    with pytest.raises(CalculatorSetupError, match="INPUT of another calculation"):
        replay("v3.11.0_soc", directory=tmp_path).compute(pair())


def test_results_of_the_last_run_are_not_taken_for_those_of_this_one(replay, tmp_path):
    replay("v3.11.0_soc", directory=tmp_path).compute(pair())
    assert list((tmp_path / "OUT.h0").glob("*.csr"))
    with pytest.raises(CalculationFailed):
        replay("v3.11.0_soc", "crash", directory=tmp_path).compute(pair())
    assert not list((tmp_path / "OUT.h0").glob("*.csr"))


# --- the real one ------------------------------------------------------------------------------


@pytest.fixture
def real(shared_data):
    """Function that makes a backend for the executable on PATH."""
    if shutil.which("abacus") is None:
        pytest.skip("there is no `abacus` on PATH")

    def real(**options) -> AbacusH0:
        folders = {"pseudo_dir": shared_data / "pseudo", "orbital_dir": shared_data / "orbital"}
        return AbacusH0(AbacusProfile("abacus"), **folders, **options)

    return real


@pytest.fixture
def stored(shared_data, tmp_path):
    """Function of a group and a name in data/abacus: that run of ABACUS 3.9.0, as data."""

    def stored(group, name):
        with tarfile.open(shared_data / "abacus" / group / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        run = next(stru.parent for stru in tmp_path.rglob("STRU") if stru.parent.name != "scf")
        folders = {"pseudo_dir": shared_data / "pseudo", "orbital_dir": shared_data / "orbital"}
        return read_folder(run, **folders)

    return stored


def difference(a, b) -> tuple[float, float]:
    """Largest difference of two H(0) in meV, and of two overlaps."""
    return 1e3 * np.abs((a.h0 - b.h0).data).max(), np.abs((a.overlap - b.overlap).data).max()


@pytest.mark.abacus
@pytest.mark.parametrize(
    ("group", "name", "options", "tolerance"),
    [
        # 3.9.0 by get_hs, this one perhaps by a step of scf: equal to the digits printed (meV)
        ("h0", "H2O_nspin1", {"nspin": 1}, 1e-5),
        ("h0", "Si2_nspin1", {"nspin": 1}, 1e-5),
        ("h0", "Si2_soc_auto", {"moments": "abacus39_auto"}, 1e-5),
        # these have 2e-5 mu_B along z on an atom, and ours no moment at all
        ("h0", "Si2_soc_zero", {}, 0.02),
        ("h0", "H2O_soc_zero", {}, 0.02),
        ("scf", "GaAs_soc_zero", {}, 0.02),
    ],
)
def test_h0_is_that_of_version_3_9(real, stored, group, name, options, tolerance):
    reference = stored(group, name)
    atoms = reference.atoms.copy()
    atoms.set_initial_magnetic_moments(None)
    data = real(**options).compute(atoms)
    h0, overlap = difference(data, reference)
    version = data.source["version"]
    print(f"{name}, {version}: H(0) differs by {h0:.2g} meV, S by {overlap:.2g}")
    assert h0 < tolerance
    assert overlap < 1e-8
    assert data.nelectrons == reference.nelectrons


@pytest.mark.abacus
@pytest.mark.slow
def test_order_and_image_of_atoms_change_labels_only(real):
    atoms = alternating()
    atoms.set_cell(0.6 * atoms.cell, scale_atoms=True)
    backend = real(nspin=1, position=True)
    data = backend.compute(atoms)
    expected = data.permuted([3, 0, 2, 1])  # He H H He: helium becomes the first species
    expected = expected.translated(np.array([[1, 0, 0], [0, -2, 1], [0, 0, 0], [-1, 1, 3]]))
    moved = backend.compute(expected.atoms)
    h0, overlap = difference(moved, expected)
    assert h0 < 1e-5  # meV; the same points of the grid, so only rounding is left
    assert overlap < 1e-8
    for ours, theirs in zip(moved.position, expected.position, strict=True):
        assert np.abs((ours - theirs).data).max() < 1e-8  # Angstrom
    assert moved.position_error() < 1e-6


@pytest.mark.abacus
def test_a_repeated_cell_in_alternating_order_has_the_folded_h0(real):
    # Ga As Ga As, which STRU cannot hold; the grid of the double cell has the same points
    primitive = bulk("GaAs", "zincblende", a=5.653)
    backend = real(nspin=1)
    double = backend.compute(primitive.repeat((1, 1, 2)))
    assert double.symbols == ("Ga", "As", "Ga", "As")
    h0, overlap = difference(double, backend.compute(primitive).repeated((1, 1, 2)))
    assert h0 < 1e-5  # meV
    assert overlap < 1e-8


@pytest.mark.abacus
def test_h0_turns_with_the_crystal(real):
    # spinors, and orbitals up to f; STRU has 10 digits or so of the turned cell
    rotation = -Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    check_rotation(real().compute, bulk("GaAs", "zincblende", a=5.653), rotation, tolerance=1e-5)


@pytest.mark.abacus
def test_a_left_handed_cell_has_the_same_bands(real, energies):
    right = bulk("GaAs", "zincblende", a=5.653)
    left = right.copy()
    left.set_cell(right.cell.array[[1, 0, 2]])
    backend = real(nspin=1)
    a, b = backend.compute(right), backend.compute(left)
    np.testing.assert_allclose(
        energies(a, (0.1, 0.2, 0.3)), energies(b, (0.2, 0.1, 0.3)), atol=1e-6
    )


def small_pair(magmoms) -> Atoms:
    atoms = pair(magmoms)
    atoms.set_cell([4.0, 4.5, 5.0])
    return atoms


@pytest.mark.abacus
def test_reversed_moments_exchange_the_spins(real):
    backend = real(nspin=2, moments="initial")
    plus, minus = (backend.compute(small_pair([0.0, m])).h0.data for m in (1.0, -1.0))
    assert np.abs(plus[0] - plus[1]).max() > 1  # eV
    np.testing.assert_allclose(plus, minus[::-1], atol=1e-7)


@pytest.mark.abacus
def test_without_spin_orbit_coupling_the_direction_of_the_moment_is_free(real, energies):
    backend = real(nspin=4, spin_orbit=False, moments="initial")
    along_z = backend.compute(small_pair([0.0, 1.0]))
    aslant = backend.compute(small_pair([[0.0, 0.0, 0.0], [0.36, 0.48, 0.8]]))
    # collinear and noncollinear spin have densities and thresholds of their own
    np.testing.assert_allclose(energies(aslant), energies(along_z), atol=1e-5)  # eV


@pytest.mark.abacus
def test_the_real_one_can_be_stopped(real):
    with pytest.raises(CalculationFailed, match="timeout of 0.1 s"):
        real(nspin=1, timeout=0.1).compute(alternating())


def test_no_atoms_and_no_folder_are_refused(replay, tmp_path):
    with pytest.raises(ValueError, match="there are no atoms"):
        replay("v3.11.0_nspin1").compute(Atoms(cell=[5, 5, 5]))
    backend = replay("v3.11.0_nspin1", orbital_dir=tmp_path / "absent")
    with pytest.raises(CalculatorSetupError, match=r"orbital_dir='.*absent' is not a folder"):
        backend.compute(alternating())


def test_without_abacuslite_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "abacuslite.core", None)
    with pytest.raises(CalculatorSetupError, match="pip install 'abacuslite>=1.2,<2'"):
        AbacusH0()


def test_a_program_that_cannot_be_run_is_named(replay, tmp_path):
    program = tmp_path / "abacus"
    program.write_bytes(b"\x7fELF and then nothing")
    program.chmod(0o755)
    backend = replay("v3.11.0_nspin1")
    backend.profile.command = str(program)
    with pytest.raises(CalculatorSetupError, match=f"cannot run {program}: .*[Ff]ormat error"):
        backend.compute(alternating())
