"""Labels: two runs of ABACUS for each structure, resumable, with failures listed.

Most tests replay recorded output of the real ABACUS, which refuses input other than the recorded
one. The one marked ``abacus`` runs the real one.
"""

from __future__ import annotations

import shlex
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculatorSetupError

from ase_nextham.converters import guess_format, read
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import from_paths
from ase_nextham.training.label import label

if find_spec("abacuslite") is None:
    pytest.skip("abacuslite is not installed", allow_module_level=True)
from abacuslite import AbacusProfile

DOUBLE = """
import runpy, sys
from pathlib import Path

replay, h0, scf, faults, calls = map(Path, sys.argv[1:])
words = Path("INPUT").read_text().split()
whole = words[words.index("calculation") + 1] == "scf" and "scf_nmax 100" in " ".join(words)
with open(calls, "a") as log:
    log.write("scf\\n" if whole else "h0\\n")
fault = faults.read_text().split() if faults.exists() and whole else []
sys.argv = [str(replay), str(scf if whole else h0)] + [f for f in fault if f != "unconverged"]
runpy.run_path(str(replay), run_name="__main__")
if "unconverged" in fault:
    log = Path("OUT.h0/running_scf.log")
    log.write_text(log.read_text().replace("#SCF IS CONVERGED#", "!!SCF IS NOT CONVERGED!!"))
"""


def alternating() -> Atoms:
    """H He H He: an order that STRU cannot hold, with atoms outside a triclinic cell."""
    cell = np.array([[8.6, 0.3, 0.0], [-0.4, 8.9, 0.2], [0.5, 0.0, 9.2]])
    fractional = [[0.1, 0.1, 0.1], [1.32, 0.2, -0.85], [-0.62, 0.3, 0.2], [0.25, 2.45, 0.3]]
    return Atoms(["H", "He", "H", "He"], positions=fractional @ cell, cell=cell, pbc=True)


def holds_structure(path: Path) -> bool:
    try:
        guess_format(path)
    except ValueError:
        return False
    return True


class Program:
    """A stand-in for ABACUS that answers for :func:`alternating`, and the labels it makes."""

    def __init__(self, root: Path, folder: Path):
        recordings = folder / "recordings"
        for archive in ("abacus_runs", "training"):
            with tarfile.open(root / "tests" / "data" / archive / "runs.tar.xz") as packed:
                packed.extractall(recordings, filter="data")
        (folder / "double.py").write_text(DOUBLE)
        self.faults, self.log = folder / "faults", folder / "calls"
        command = [sys.executable, folder / "double.py", root / "tests" / "h0" / "replay_abacus.py"]
        command += [recordings / "v3.11.0_nspin1", recordings / "v3.11.0_nspin1_scf"]
        self.command = shlex.join(map(str, [*command, self.faults, self.log]))
        self.recordings, self.target = recordings, folder / "labels"

    def label(self, *names: str, **options):
        return label(
            dict.fromkeys(names, alternating()),
            self.target,
            **{
                "kpts": (1, 1, 1),
                "profile": AbacusProfile(self.command),
                "pseudo_dir": self.recordings / "pseudo",
                "orbital_dir": self.recordings / "orbital",
                "position": True,
            }
            | options,
        )

    def calls(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture
def program(root, tmp_path, monkeypatch) -> Program:
    monkeypatch.setattr("ase_nextham.h0.abacus._without_get_hs", set())
    return Program(root, tmp_path)


def test_a_labelled_structure_becomes_a_sample(program, tmp_path):
    outcome = program.label("HHe_0")
    assert (outcome.done, outcome.failed) == (("HHe_0",), {})
    # the first h0 is get_hs, which this version refuses
    assert program.calls() == ["h0", "h0", "scf"]
    assert sorted(path.name for path in (program.target / "HHe_0").iterdir()) == ["get_hs", "scf"]

    sources = from_paths([program.target], read, holds_structure)
    outcome = build(sources, tmp_path / "set", nkpts=3)
    assert outcome.done == ("HHe_0",)
    sample = Dataset(tmp_path / "set")[0]
    correction = (sample.data.hamiltonian - sample.data.h0).data
    assert 0.01 < np.abs(correction).max() < 10  # eV
    assert sample.data.hamiltonian.hermitian_error() < 1e-6  # eV
    occupied = sample.k_space.eps < sample.entry.fermi_level
    assert (2 * occupied.sum(axis=-1) == 6).all()  # electrons


def test_what_is_labelled_is_not_computed_again(program):
    program.label("HHe_0")
    outcome = program.label("HHe_0", "HHe_1")
    assert (outcome.done, outcome.skipped) == (("HHe_1",), ("HHe_0",))
    assert program.calls() == ["h0", "h0", "scf", "h0", "scf"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "ABACUS ended with status 139"),
        ("quiet", "Something wrong during read_atom_positions"),
        ("truncated", "cannot read what ABACUS wrote"),
        ("unconverged", "the self-consistent loop did not converge"),
    ],
)
def test_what_failed_is_told_kept_and_tried_again(program, fault, reason):
    program.faults.write_text(fault)
    outcome = program.label("HHe_0")
    assert outcome.done == ()
    assert reason in outcome.failed["HHe_0"]
    failed = program.target / ".failed-HHe_0"
    assert (failed / "scf" / "INPUT").exists()
    if fault != "unconverged":
        assert str(failed / "scf") in outcome.failed["HHe_0"]
    with pytest.raises(FileNotFoundError):
        from_paths([program.target / "HHe_0"], read, holds_structure)

    program.faults.unlink()
    assert program.label("HHe_0").done == ("HHe_0",)
    assert [path.name for path in program.target.iterdir()] == ["HHe_0"]


def test_what_a_killed_process_left_is_in_nobodys_way(program):
    left = program.target / ".unfinished-HHe_0" / "get_hs"
    left.mkdir(parents=True)
    (left / "INPUT").write_text("INPUT_PARAMETERS\nsuffix other\n")
    assert program.label("HHe_0").done == ("HHe_0",)
    assert [path.name for path in program.target.iterdir()] == ["HHe_0"]


def test_several_at_a_time_give_the_same(program):
    outcome = program.label("a", "b", "c", jobs=2)
    assert (sorted(outcome.done), outcome.failed) == (["a", "b", "c"], {})
    one, other = (read(program.target / name) for name in "ac")
    np.testing.assert_array_equal(one.hamiltonian.data, other.hamiltonian.data)


def test_a_structure_that_fails_does_not_stop_the_others(program):
    structures = {"wrong": Atoms("H", cell=[0, 0, 0]), "right": alternating()}
    outcome = label(
        structures,
        program.target,
        kpts=(1, 1, 1),
        profile=AbacusProfile(program.command),
        pseudo_dir=program.recordings / "pseudo",
        orbital_dir=program.recordings / "orbital",
        position=True,
    )
    assert outcome.done == ("right",)
    assert "no complete cell" in outcome.failed["wrong"]


def test_keywords_and_mesh_reach_the_self_consistent_run(program):
    program.label("HHe_0", kpts=2.5, inp={"scf_thr": 1e-9, "mixing_beta": 0.2})
    # the recorded input is another one, so that the double refuses it
    written = program.target / ".failed-HHe_0"
    assert not (written / "scf").exists()  # mixing_beta goes to both runs

    program.label("HHe_0", kpts=2.5, inp={"scf_thr": 1e-9})
    words = (written / "scf" / "INPUT").read_text().split()
    assert words[words.index("scf_thr") + 1] == "1e-09"
    assert words[words.index("scf_nmax") + 1] == "100"
    assert (written / "scf" / "KPT").read_text() == "K_POINTS\n0\nGamma\n2 2 2 0 0 0\n"


def test_options_that_make_no_sense_are_refused_before_anything_runs(program):
    with pytest.raises(ValueError, match="nspin=2: labels are computed with 1 or 4"):
        program.label("HHe_0", nspin=2)
    with pytest.raises(ValueError, match=r"the name '\.\./x' of a structure must be"):
        program.label("../x")
    with pytest.raises(ValueError, match="inp must not contain suffix"):
        program.label("HHe_0", inp={"suffix": "x"})
    with pytest.raises(CalculatorSetupError, match="the executable 'no-such-abacus'"):
        program.label("HHe_0", profile=AbacusProfile("no-such-abacus"))
    assert not program.log.exists()


@pytest.mark.abacus
@pytest.mark.slow
@pytest.mark.skipif(which("abacus") is None, reason="there is no `abacus` on PATH")
def test_labels_of_the_real_program_are_near_h0(shared_data, tmp_path):
    silicon = bulk("Si")
    silicon.rattle(0.05, seed=0)
    outcome = label(
        {"Si_0": silicon},
        tmp_path / "labels",
        kpts=(2, 2, 2),
        pseudo_dir=shared_data / "pseudo",
        orbital_dir=shared_data / "orbital",
        profile=AbacusProfile("abacus"),
    )
    assert outcome.failed == {}
    sources = from_paths([tmp_path / "labels"], read, holds_structure)
    assert build(sources, tmp_path / "set", nkpts=0).done == ("Si_0",)
    data = Dataset(tmp_path / "set")[0].data
    error = np.abs((data.hamiltonian - data.h0).data)
    # 1.9 meV on average for silicon with a 4 x 4 x 4 mesh
    assert 0.5e-3 < error.mean() < 5e-3  # eV
