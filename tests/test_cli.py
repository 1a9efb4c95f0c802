import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from ase.io import write as write_atoms

from ase_nextham import hdf5
from ase_nextham.cli import main
from ase_nextham.testing import random_lcao


@pytest.fixture
def gaas(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "examples" / "data" / "GaAs_soc.h5", "GaAs.h5")
    return "GaAs.h5"


def test_info_tells_what_a_native_file_holds(gaas, capsys):
    assert main(["info", gaas]) == 0
    text = capsys.readouterr().out
    for words in ("native format", "Ga 2s2p2d1f", "270 pairs", "spinor, dimension 76", "18"):
        assert words in text


def test_bands_writes_numbers_and_a_picture(gaas, capsys, tmp_path):
    command = f"bands {gaas} --path LGX --npoints 30 --kpts 4 4 4 -o bands.json --plot bands.png"
    assert main(command.split()) == 0
    text = capsys.readouterr().out
    assert "H(0): Fermi level" in text
    assert "direct" in text
    stored = json.loads((tmp_path / "bands.json").read_text())
    assert "energies" in stored
    assert (tmp_path / "bands.png").read_bytes().startswith(b"\x89PNG")


def test_optics_writes_a_table(gaas, tmp_path):
    command = f"optics {gaas} --kpts 2 2 2 --omega 1 5 5 --method kubo --hamiltonian h0"
    assert main([*command.split(), "-o", "sigma.csv", "--plot", "sigma.png"]) == 0
    table = np.loadtxt(tmp_path / "sigma.csv", delimiter=",")
    assert table.shape == (5, 19)
    assert (table[:, 1] > 0).all()  # absorption
    assert (tmp_path / "sigma.png").exists()


def test_convert_there_and_back(gaas, tmp_path):
    assert main(["convert", gaas, "folder", "--to", "abacus"]) == 0
    assert main(["convert", "folder", "back.h5"]) == 0
    data, back = hdf5.read(gaas), hdf5.read("back.h5")
    error = np.abs((back.hamiltonian - data.hamiltonian).data).max()
    assert error < 1e-5  # eV: nine digits of semicore levels of some 100 eV


def test_convert_writes_the_layout_asked_for(gaas, capsys, tmp_path):
    assert main(["convert", gaas, "folder", "--to", "abacus", "--layout", "new text"]) == 0
    (matrix,) = (tmp_path / "folder" / "scf").rglob("hrs1_nao.csr")
    assert main(["info", str(matrix)]) == 0
    assert "step 0: H; new text; complex, dimension 76" in capsys.readouterr().out


def test_a_step_that_is_not_there_is_refused(gaas, capsys):
    main(["convert", gaas, "folder", "--to", "abacus"])
    assert main(["bands", "folder", "--step", "3"]) == 1
    assert "holds the ionic steps 0, but not 3" in capsys.readouterr().err


def test_info_tells_what_a_matrix_file_holds(gaas, capsys, tmp_path):
    main(["convert", gaas, "folder", "--to", "abacus"])
    capsys.readouterr()
    matrix = sorted(tmp_path.rglob("*HR*.csr"))[0]
    assert main(["info", str(matrix)]) == 0
    assert "H; legacy text; complex, dimension 76" in capsys.readouterr().out


@pytest.mark.filterwarnings("default::UserWarning")  # that there is no model yet
def test_predict_takes_any_structure_file(gaas, capsys, tmp_path):
    atoms = hdf5.read(gaas).atoms
    write_atoms("POSCAR", atoms, format="vasp")
    assert main(["predict", "POSCAR", "--h0", gaas, "-o", "out.h5"]) == 0
    output = capsys.readouterr()
    assert "out.h5: overlap, H(0)" in output.out
    assert "no model given" in output.err
    assert hdf5.read("out.h5").atoms.get_chemical_symbols() == atoms.get_chemical_symbols()


@pytest.mark.filterwarnings("default::UserWarning")
def test_predict_takes_stru(gaas, tmp_path):
    main(["convert", gaas, "folder", "--to", "abacus"])
    shutil.copy(tmp_path / "folder" / "scf" / "STRU", "STRU.gaas")
    assert main(["predict", "STRU.gaas", "--h0", gaas, "-o", "out.h5"]) == 0
    assert hdf5.read("out.h5").atoms.get_chemical_symbols() == ["Ga", "As"]


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("info absent.h5", "absent.h5"),
        ("convert GaAs.h5 out --to abacsu", "unknown format 'abacsu'"),
        ("convert GaAs.h5", "convert needs a source and a target"),
        ("bands GaAs.h5 --path LGX -o no/such/bands.json", "the folder no/such does not exist"),
        ("predict GaAs.h5 --h0 nowhere -o x.h5", "neither a backend"),
        ("optics GaAs.h5 --kpts 0 2 2 --method kubo", "kpts"),
    ],
)
def test_errors_are_one_sentence(gaas, capsys, command, message):
    assert main(command.split()) == 1
    error = capsys.readouterr().err
    assert "nextham: error: " in error
    assert message in error
    assert "Traceback" not in error


def test_a_missing_hamiltonian_is_named(tmp_path, capsys):
    path = str(tmp_path / "h0.h5")
    hdf5.write(path, replace(random_lcao(0), hamiltonian=None))
    assert main(["bands", path, "--hamiltonian", "hamiltonian"]) == 1
    assert "holds overlap, H(0), position r, no hamiltonian" in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "ase_nextham.cli", "--version"], capture_output=True, text=True
    )
    assert run.stdout.startswith("ase_nextham 0.")


def test_a_reader_that_stops_reading_gets_no_complaint(gaas):
    command = [sys.executable, "-m", "ase_nextham.cli", "info", gaas]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("info GaAs.h5 --step 2", "option 'step' means nothing for format 'native'"),
        ("predict junk.cif -o x.h5", "junk.cif: ASE cannot read a structure from it"),
    ],
)
def test_more_errors_are_one_sentence(gaas, capsys, tmp_path, command, message):
    (tmp_path / "junk.cif").write_text("no structure at all")
    assert main(command.split()) == 1
    assert message in capsys.readouterr().err


def test_the_traceback_can_be_asked_for(gaas):
    with pytest.raises(ValueError, match="'step' means nothing"):
        main(["--traceback", "info", gaas, "--step", "2"])


def test_components_of_r_are_named(gaas, capsys, tmp_path):
    main(["convert", gaas, "folder", "--to", "abacus"])
    matrix = sorted(tmp_path.rglob("*rR*.csr"))[0]
    assert main(["info", str(matrix)]) == 0
    assert "r, component z; legacy text; real, dimension 76" in capsys.readouterr().out


@pytest.fixture
def model(gaas):
    """A model with random weights of the size of a test."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from ase_nextham.model import ModelInfo, bundle

    shells = hdf5.read(gaas).basis.shells
    options = {"features": "4x0e+4x1o+4x2e", "layers": 1, "heads": 2, "invariants": 4}
    torch.manual_seed(0)
    info = ModelInfo("nextham", shells, (0, 4), 4, hyperparameters=options)
    bundle.save("model", info, bundle.build(info))
    return "model"


def test_predict_adds_what_the_model_says(gaas, model, capsys):
    assert main(["predict", gaas, "--h0", gaas, "--model", model, "-o", "out.h5"]) == 0
    output = capsys.readouterr()
    assert "out.h5: overlap, H(0), Hamiltonian" in output.out
    assert "no model given" not in output.err
    data = hdf5.read("out.h5")
    assert np.abs((data.hamiltonian - data.h0).data).max() > 1e-6  # eV
    assert data.source["model"] == "model"


def test_info_tells_what_a_model_is(model, capsys):
    assert main(["info", model]) == 0
    text = capsys.readouterr().out
    for words in ("network          nextham", "2s2p2d1f: Ga", "0 to 4 Angstrom apart"):
        assert words in text


def test_published_weights_become_a_model(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from ase_nextham.model.released import ReleasedNetwork

    monkeypatch.chdir(tmp_path)
    network = ReleasedNetwork("main")
    state = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    torch.save({**state, "node_lin.tp.weight": torch.zeros(2)}, "w.pth")
    command = ["import-checkpoint", *4 * ["w.pth"], "-o", "published"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "w.pth: 1 entries never reach the result: node_lin.tp.weight" in text
    assert "published: model of the published weights 'main'" in text
    assert main(["info", "published"]) == 0
    assert "4s2p2d1f: Sc Ti" in capsys.readouterr().out


def test_a_check_tells_the_change_of_the_bands_and_writes_nothing(gaas, capsys, tmp_path):
    assert main(["convert", gaas, "x", "--to", "deeph", "--check"]) == 0
    text = capsys.readouterr().out
    assert "Hamiltonian: eigenvalues at random k-points change by" in text
    assert "occupied ones by" in text
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("convert --each GaAs.h5 out", "many structures at once need the format"),
        ("convert --each GaAs.h5 out --to deeph --check", "--check is for one structure"),
        ("convert GaAs.h5 out --to deeph --jobs 2", "--jobs is for many structures"),
    ],
)
def test_options_that_contradict_each_other_are_refused(gaas, capsys, command, message):
    assert main(command.split()) == 1
    assert message in capsys.readouterr().err
