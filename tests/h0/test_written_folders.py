"""Folders that this package writes, in the hands of the programs they are for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham.h0.folder import read_folder, write_folder
from ase_nextham.h0.inputfile import read_input, write_input
from ase_nextham.units import RYDBERG

PYATB_RYDBERG = 13.605698066  # eV

PYATB_SCRIPT = """
import json, sys
import numpy as np
import pyatb

nspin, out, cell, kpts = json.loads(sys.argv[1])
H = [f"{out}/data-HR-sparse_SPIN{s}.csr" for s in range(2 if nspin == 2 else 1)]
model = pyatb.init_tb(
    package="ABACUS", nspin=nspin, lattice_constant=1.0, lattice_vector=np.array(cell),
    HR_route=H if nspin == 2 else H[0], HR_unit="Ry",
    SR_route=f"{out}/data-SR-sparse_SPIN0.csr",
    need_rR=True, rR_route=f"{out}/data-rR-sparse.csr", rR_unit="Bohr",
)
solvers = [model.tb_solver] if nspin != 2 else [model.tb_solver_up, model.tb_solver_dn]
energies = [[solver.diago_H(np.array([k]))[1].ravel().tolist() for k in kpts] for solver in solvers]
print("energies", json.dumps(energies))
"""


@pytest.mark.pyatb
@pytest.mark.parametrize(("run", "nspin"), [("h2o", 1), ("oh_nspin2", 2), ("h2o_soc", 4)])
def test_pyatb_reads_what_is_written(abacus_folders, tmp_path, energies, run, nspin):
    pytest.importorskip("pyatb", reason="PYATB is not installed")
    data = read_folder(abacus_folders / "v3.8.1" / run)
    data = data.permuted(np.arange(len(data.atoms))[::-1])
    write_folder(tmp_path / "x", data)
    kpts = [[0, 0, 0], [0.1, -0.3, 0.45]]
    arguments = json.dumps(
        [nspin, str(tmp_path / "x" / "OUT.ABACUS"), data.atoms.cell.array.tolist(), kpts]
    )
    # PYATB writes where it is imported, hence the process of its own
    done = subprocess.run(
        [sys.executable, "-c", PYATB_SCRIPT, arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads(re.search(r"^energies (.*)$", done.stdout, re.M).group(1)))
    found = np.sort(found.transpose(1, 0, 2).reshape(len(kpts), -1)) * RYDBERG / PYATB_RYDBERG
    for k, theirs in zip(kpts, found, strict=True):
        assert_allclose(theirs, energies(data, k), atol=1e-9)  # eV


def total_energies(log) -> list[float]:
    """Of every step of the self-consistent loop, in eV."""
    return [float(x) for x in re.findall(r"E_KohnSham\s+\S+\s+(\S+)", log.read_text())]


@pytest.mark.abacus
@pytest.mark.parametrize("run", ["h2o", "h2o_soc"])
def test_abacus_starts_from_what_is_written_and_is_converged(
    abacus_folders, shared_data, tmp_path, run
):
    if shutil.which("abacus") is None:
        pytest.skip("there is no executable `abacus` on PATH")
    source = abacus_folders / "v3.8.1" / run
    data = read_folder(source)
    data = replace(data.permuted(np.arange(len(data.atoms))[::-1]), position=None)
    folder = tmp_path / "x"
    write_folder(
        folder,
        data,
        layout="new text",
        pseudo_dir=shared_data / "pseudo",
        orbital_dir=abacus_folders / "orbital",
    )
    values = read_input(folder / "INPUT")
    values |= {"init_chg": "hr", "read_file_dir": "OUT.ABACUS", "suffix": "restart"}
    write_input(folder / "INPUT", values)
    done = subprocess.run(["abacus"], cwd=folder, capture_output=True, text=True, timeout=300)
    if "parameter init_chg must be" in done.stdout:  # 3.8 says so and ends with status 0
        pytest.skip("this version of ABACUS has no `init_chg hr`")
    assert done.returncode == 0, done.stdout[-2000:]
    before = total_energies(source / "OUT.ABACUS" / "running_scf.log")
    after = total_energies(folder / "OUT.restart" / "running_scf.log")
    assert len(before) > 5
    assert len(after) == 1  # H is self-consistent: nothing is left to do
    assert_allclose(after[0], before[-1], atol=1e-7)  # eV
