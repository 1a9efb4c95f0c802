"""Run folders of ABACUS: what is read from them, by its laws, and what is refused.

The folders in tests/data were written by ABACUS 3.8.1, 3.9.0 and 3.11.0-beta.1 (README there).
"""

from __future__ import annotations

import re
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.config import Config
from numpy.testing import assert_allclose

from ase_nextham.h0.csr import read_csr
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.folder import as_atoms, read_folder, write_folder
from ase_nextham.h0.matching import NoMatch, match
from ase_nextham.h0.run import find_runs
from ase_nextham.testing import random_lcao
from ase_nextham.units import BOHR, RYDBERG

VERSIONS = ["v3.8.1", "v3.11.0-beta.1"]
RUNS = ["h2o", "h2o_step1", "h2o_labels", "h2o_soc", "oh_soc", "oh_soc_auto"]


def difference(a, b) -> float:
    """Largest difference of two operators, in their units."""
    return float(np.abs((a - b).data).max())


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("run", RUNS)
def test_matrices_obey_the_laws_of_operators(abacus_folders, version, run):
    data = read_folder(abacus_folders / version / run)
    assert data.best_hamiltonian().hermitian_error() < 1e-7  # eV; nine digits are printed
    assert data.overlap.hermitian_error() < 1e-9
    for atom in range(len(data.atoms)):
        norm = np.diagonal(data.overlap.block(atom, atom, (0, 0, 0)))
        assert_allclose(norm, 1, atol=1e-7)
    if data.position is not None:
        assert data.position_error() < 1e-7  # Angstrom


@pytest.mark.parametrize("run", RUNS)
def test_two_versions_give_the_same_numbers(abacus_folders, run):
    old, new = (read_folder(abacus_folders / version / run) for version in VERSIONS)
    assert difference(old.best_hamiltonian(), new.best_hamiltonian()) < 2e-6  # eV; scf_thr 1e-8
    assert difference(old.overlap, new.overlap) < 1e-8
    assert (old.h0 is None) == (new.h0 is None) == (run == "h2o" or run == "h2o_soc")
    assert_allclose(old.atoms.positions, new.atoms.positions, atol=1e-12)
    assert_allclose(old.fermi_level, new.fermi_level, atol=1e-7)
    assert dict(old.basis.fingerprint) == dict(new.basis.fingerprint)
    for a, b in zip(old.position or (), new.position or (), strict=True):
        assert difference(a, b) < 1e-7  # Angstrom


def test_energies_are_in_ev_and_lengths_in_angstrom(abacus_folders):
    folder = abacus_folders / "v3.8.1" / "h2o"
    data = read_folder(folder)
    (record,) = read_csr(folder / "OUT.ABACUS" / "data-HR-sparse_SPIN0.csr")
    lowest = record.value.min() * RYDBERG
    assert_allclose(data.hamiltonian.data.min(), lowest, rtol=1e-15)
    x, _, _ = read_csr(folder / "OUT.ABACUS" / "data-rR-sparse.csr")
    assert_allclose(data.position[0].data.max(), x.value.max() * BOHR, rtol=1e-15)


def test_pairs_are_the_union_of_those_of_h_and_s(abacus_folders):
    data = read_folder(abacus_folders / "v3.11.0-beta.1" / "h2o")
    only_h = read_folder(abacus_folders / "v3.11.0-beta.1" / "h2o_get_s")
    assert len(data.pairs) == 71
    assert len(only_h.pairs) == 67  # S alone: H reaches further, through the projectors
    assert only_h.h0 is None
    assert only_h.hamiltonian is None


@pytest.mark.parametrize(
    ("run", "operator"),
    [
        ("v3.9.0/h2o_get_hs", "h0"),
        ("v3.8.1/h2o_step1", "h0"),
        ("v3.11.0-beta.1/h2o_step1", "h0"),
        ("v3.8.1/oh_nspin2_mix0", "h0"),
        ("v3.8.1/h2o", "hamiltonian"),
        ("v3.11.0-beta.1/h2o", "hamiltonian"),
        ("v3.8.1/oh_nspin2", "hamiltonian"),
    ],
)
def test_h_of_superposed_atoms_is_h0_and_a_converged_one_is_not(abacus_folders, run, operator):
    data = read_folder(abacus_folders / run)
    assert getattr(data, operator) is data.best_hamiltonian()
    assert (data.h0 is None) == (operator != "h0")
    assert data.source["operator"] == operator


def test_one_step_from_another_density_is_not_h0(copied_run):
    run = copied_run("v3.8.1/h2o_step1")
    (run / "INPUT").write_text((run / "INPUT").read_text() + "init_chg file\n")
    with pytest.warns(UserWarning, match="did not converge"):
        data = read_folder(run)
    assert data.h0 is None


def test_an_unconverged_hamiltonian_is_warned_of_and_marked(copied_run):
    run = copied_run("v3.8.1/h2o")
    log = run / "OUT.ABACUS" / "running_scf.log"
    done = "charge density convergence is achieved"
    log.write_text(log.read_text().replace(done, "!! convergence has not been achieved @_@"))
    with pytest.warns(UserWarning, match="the self-consistent loop did not converge"):
        data = read_folder(run)
    assert data.source["converged"] is False


def test_terms_that_input_switches_off_are_warned_of(copied_run):
    run = copied_run("v3.8.1/h2o_step1")
    (run / "INPUT").write_text((run / "INPUT").read_text() + "vnl_in_h 0\n")
    with pytest.warns(UserWarning, match="H\\(R\\) is incomplete, INPUT switches off vnl_in_h"):
        read_folder(run)


def test_spin_and_moments_follow_nspin(abacus_folders):
    spins = {"h2o": "unpolarised", "oh_nspin2": "collinear", "oh_soc": "spinor"}
    for run, spin in spins.items():
        assert read_folder(abacus_folders / "v3.8.1" / run).best_hamiltonian().spin == spin
    plain = read_folder(abacus_folders / "v3.8.1" / "h2o")
    assert not plain.atoms.has("initial_magmoms")
    assert "moments" not in plain.source
    collinear = read_folder(abacus_folders / "v3.8.1" / "oh_nspin2").atoms
    assert collinear.get_initial_magnetic_moments().tolist() == [1.0, 0.0]
    noncollinear = read_folder(abacus_folders / "v3.8.1" / "oh_soc")
    assert_allclose(noncollinear.atoms.get_initial_magnetic_moments()[0], [0.8, 0.0, 0.6])
    assert noncollinear.source["moments"] == "initial"


def test_moments_that_abacus_sets_unasked_are_told(abacus_folders):
    data = read_folder(abacus_folders / "v3.8.1" / "oh_soc_auto")
    assert data.source["moments"] == "abacus39_auto"
    # noncolin 0: the length of (1, 1, 1) along z, on every atom
    moments = data.atoms.get_initial_magnetic_moments()
    assert_allclose(moments, [[0, 0, np.sqrt(3)]] * 2)
    assert data.h0.time_reversal_error() > 1.0  # eV


def test_time_reversal_holds_where_there_is_no_moment(abacus_folders):
    data = read_folder(abacus_folders / "v3.8.1" / "h2o_soc")
    assert data.source["moments"] == "zero"
    # 2e-5 mu_B keep ABACUS from setting moments of its own
    assert data.hamiltonian.time_reversal_error() < 1e-4  # eV


def test_spin_up_and_down_are_exchanged_by_time_reversal_only_without_moments(abacus_folders):
    assert read_folder(abacus_folders / "v3.8.1" / "oh_nspin2").hamiltonian.data.shape[0] == 2
    error = read_folder(abacus_folders / "v3.8.1" / "oh_nspin2").hamiltonian.time_reversal_error()
    assert error > 1.0  # eV


def test_electrons_are_counted_from_the_pseudopotentials(abacus_folders):
    assert read_folder(abacus_folders / "v3.8.1" / "h2o").nelectrons == 8.0
    assert read_folder(abacus_folders / "v3.8.1" / "oh_soc").nelectrons == 7.0


@pytest.mark.parametrize(("line", "expected"), [("nelec 7.5", 7.5), ("nelec_delta -1", 7.0)])
def test_electrons_that_input_sets_count(copied_run, line, expected):
    run = copied_run("v3.8.1/h2o")
    (run / "INPUT").write_text((run / "INPUT").read_text() + line + "\n")
    assert read_folder(run).nelectrons == expected


def test_without_pseudopotentials_only_the_number_of_electrons_is_lost(copied_run, tmp_path):
    run = copied_run("v3.8.1/h2o")
    shutil.rmtree(tmp_path / "pseudo")
    data = read_folder(run)
    assert data.nelectrons is None
    assert data.fermi_level is not None


def test_a_pseudopotential_of_upf_1_is_warned_of(copied_run, tmp_path):
    run = copied_run("v3.8.1/h2o")
    (tmp_path / "pseudo" / "O.upf").write_text("<PP_HEADER>\n 0 Version Number\n</PP_HEADER>\n")
    with pytest.warns(UserWarning, match="electrons is unknown: .*UPF version 1"):
        assert read_folder(run).nelectrons is None


def test_source_tells_where_the_numbers_come_from(abacus_folders):
    source = read_folder(abacus_folders / "v3.11.0-beta.1" / "h2o").source
    assert source["version"] == "3.11.0-beta.1"
    assert source["files"] == {
        "hamiltonian": ["hrs1_nao.csr"],
        "overlap": ["srs1_nao.csr"],
        "position": ["rr.csr"],
    }
    assert source["layouts"] == {
        "hamiltonian": "new text",
        "overlap": "new text",
        "position": "legacy text",
    }
    assert source["units"] == {"Ry": 13.605698, "Bohr": 0.529177}
    assert source["input"]["ecutwfc"] == "30"
    assert source["kpoints"] == "Gamma 4 1 1 0 0 0"
    assert source["species"]["O"]["orbital"] == "O_1s1p.orb"
    assert "pseudo_dir" not in source["input"]


# --- where things are ----------------------------------------------------------------------------


def test_the_output_folder_stands_for_the_run(abacus_folders):
    folder = abacus_folders / "v3.8.1" / "h2o"
    inside = read_folder(folder / "OUT.ABACUS")
    assert difference(inside.hamiltonian, read_folder(folder).hamiltonian) == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_parameters_that_abacus_repeats_stand_in_for_a_missing_input(copied_run, version):
    run = copied_run(f"{version}/h2o")
    (run / "INPUT").unlink()
    data = read_folder(run / "OUT.ABACUS")
    assert data.hamiltonian is not None
    assert data.source["input"]["nspin"] == "1"


def test_another_suffix_is_followed(copied_run):
    run = copied_run("v3.8.1/h2o")
    (run / "OUT.ABACUS").rename(run / "OUT.water")
    assert read_folder(run).hamiltonian is not None  # the only OUT.* there is
    (run / "OUT.other").mkdir()
    with pytest.raises(
        ValueError, match=r"write to OUT.ABACUS, which is not there \(only OUT.other"
    ):
        read_folder(run)
    text = (run / "INPUT").read_text().replace("suffix ABACUS", "suffix water")
    (run / "INPUT").write_text(text)
    assert read_folder(run).hamiltonian is not None


def test_matrices_beside_input_are_found(copied_run):
    run = copied_run("v3.8.1/h2o")
    for path in (run / "OUT.ABACUS").glob("*.csr"):
        path.rename(run / path.name)
    shutil.rmtree(run / "OUT.ABACUS")
    assert read_folder(run).hamiltonian is not None


def test_orbitals_are_looked_for_where_told_then_in_input_then_in_the_configuration(
    copied_run, tmp_path, monkeypatch
):
    run = copied_run("v3.8.1/h2o")
    (tmp_path / "orbital").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"O_1s1p.orb: the orbital file of species O is in"):
        read_folder(run)
    assert read_folder(run, orbital_dir=tmp_path / "elsewhere").nelectrons == 8
    config = Config()
    config.parser["abacus"] = {"orbital_dir": str(tmp_path / "elsewhere")}
    with monkeypatch.context() as configured:
        configured.setattr("ase_nextham.h0.elementfiles.cfg", config)
        assert read_folder(run).nelectrons == 8
    monkeypatch.setenv("ABACUS_ORB_PATH", str(tmp_path / "elsewhere"))
    assert read_folder(run).nelectrons == 8


def test_a_folder_that_stru_names_may_be_gone(copied_run):
    run = copied_run("v3.8.1/h2o")
    text = (run / "STRU").read_text().replace("O_1s1p.orb", "old/place/O_1s1p.orb")
    (run / "STRU").write_text(text)
    assert read_folder(run).symbols == ("O", "H", "H")


def test_two_labels_with_different_orbitals_are_species_of_their_own(abacus_folders):
    data = read_folder(abacus_folders / "v3.8.1" / "h2o_labels")
    assert data.symbols == ("O", "H1", "H2")
    assert data.basis.shells["H1"] == (0,)
    assert data.basis.shells["H2"] == (0, 1)
    assert data.atoms.get_chemical_symbols() == ["O", "H", "H"]


def test_two_labels_with_the_same_orbitals_are_one_species(copied_run):
    labels, plain = copied_run("v3.8.1/h2o_labels", "labels"), copied_run("v3.8.1/h2o", "plain")
    text = (labels / "STRU").read_text().replace("H_1s1p.orb", "H_1s.orb")
    (plain / "STRU").write_text(text)
    assert read_folder(plain).symbols == ("O", "H", "H")


@pytest.mark.parametrize("version", VERSIONS)
def test_s_and_h_of_two_runs_are_joined(copied_run, version):
    scf, whole = copied_run(f"{version}/h2o", "scf"), copied_run(f"{version}/h2o", "whole")
    get_s, step1 = copied_run(f"{version}/h2o_get_s", "get_s"), copied_run(f"{version}/h2o_step1")
    for name in ("srs1_nao.csr", "data-SR-sparse_SPIN0.csr"):
        (scf / "OUT.ABACUS" / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"no overlap S\(R\) .*get_s has one: read both"):
        read_folder(scf)
    joined, expected = read_folder([scf, get_s]), read_folder(whole)
    assert difference(joined.hamiltonian, expected.hamiltonian) == 0
    assert difference(joined.overlap, expected.overlap) < 1e-8
    assert joined.position is not None
    assert joined.fermi_level == expected.fermi_level
    assert set(joined.source["runs"]) == {"scf", "get_s"}
    both = read_folder([step1, whole])
    assert both.h0 is not None
    assert both.hamiltonian is not None
    assert both.fermi_level == expected.fermi_level


def test_a_folder_of_runs_of_one_structure_is_joined(copied_run):
    copied_run("v3.8.1/h2o", "scf")
    step1 = copied_run("v3.8.1/h2o_step1", "step1")
    data = read_folder(step1.parent)
    assert data.h0 is not None
    assert data.hamiltonian is not None


def test_runs_that_do_not_belong_together_are_not_joined(copied_run):
    scf, step1 = copied_run("v3.8.1/h2o", "scf"), copied_run("v3.8.1/h2o_step1", "step1")
    with pytest.raises(ValueError, match="scf and .*scf both hold a hamiltonian; give one"):
        read_folder([scf, scf])
    other = copied_run("v3.8.1/oh_soc_auto", "other")
    with pytest.raises(ValueError, match="hold different atoms, or in another order: H2 O1 and H1"):
        read_folder([scf, other])
    text = (step1 / "STRU").read_text()
    (step1 / "STRU").write_text(text.replace("0.85 0.78 0.05", "0.85 0.80 0.05"))
    with pytest.raises(ValueError, match=r"different structures: .* atom 1 \(H\) by 0.02"):
        read_folder([scf, step1])
    (step1 / "STRU").write_text(text)
    source = step1 / "OUT.ABACUS" / "data-SR-sparse_SPIN0.csr"
    source.write_text(source.read_text().replace("1.00000000e+00", "9.99000000e-01"))
    with pytest.raises(ValueError, match="the overlaps in .* differ by 0.001"):
        read_folder([scf, step1])
    spinors = copied_run("v3.8.1/h2o_soc", "spinors")
    (step1 / "STRU").write_text(text)
    source.write_text(source.read_text().replace("9.99000000e-01", "1.00000000e+00"))
    with pytest.raises(ValueError, match=r"has nspin 1, the Hamiltonian in .*spinors 4; give runs"):
        read_folder([step1, spinors])
    labels = copied_run("v3.8.1/h2o_labels", "labels")
    with pytest.raises(ValueError, match="different atoms"):
        read_folder([scf, labels])


# --- ionic steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "steps"),
    [
        ("v3.11.0-beta.1/h2o_relax", "0, 1"),
        ("v3.11.0-beta.1/h2o_md", "0, 1"),
        ("v3.8.1/h2o_md", "0, 1, 2"),
    ],
)
def test_of_several_ionic_steps_one_must_be_chosen(abacus_folders, run, steps):
    with pytest.raises(ValueError, match=rf"ionic steps \({steps}\); choose one with step="):
        read_folder(abacus_folders / run)
    with pytest.raises(ValueError, match="holds the ionic steps .*, but not 7|no matrix"):
        read_folder(abacus_folders / run, step=7)


@pytest.mark.parametrize("run", ["h2o_relax", "h2o_md"])
def test_a_later_step_has_its_own_structure_and_the_numbers_of_both_versions(abacus_folders, run):
    first = read_folder(abacus_folders / "v3.11.0-beta.1" / run, step=0)
    old, new = (read_folder(abacus_folders / version / run, step=1) for version in VERSIONS)
    moved = np.abs(new.atoms.positions - first.atoms.positions)
    moved = np.minimum(moved, np.abs(moved - new.atoms.cell.lengths()))
    assert 0.001 < moved.max() < 0.5  # Angstrom
    assert_allclose(old.atoms.positions, new.atoms.positions, atol=1e-6)
    assert difference(old.hamiltonian, new.hamiltonian) < 1e-4  # eV; scf_thr 1e-6
    assert new.position_error() < 1e-7
    assert new.fermi_level != first.fermi_level


def test_the_structure_of_a_later_step_is_that_of_the_matrices(abacus_folders):
    # 3.11 repeats the coordinates in the header of each step, with 15 digits
    path = abacus_folders / "v3.11.0-beta.1" / "h2o_relax" / "OUT.ABACUS" / "hrs1_nao.csr"
    second = path.read_text().split("--- Ionic Step 2 ---")[1].split("Direct\n")[1]
    printed = np.array([line.split() for line in second.splitlines()[:3]], float)
    data = read_folder(abacus_folders / "v3.11.0-beta.1" / "h2o_relax", step=1)
    assert_allclose(data.atoms.get_scaled_positions(), printed, atol=1e-9)


def test_the_only_step_that_is_there_may_be_a_later_one(abacus_folders):
    data = read_folder(abacus_folders / "v3.8.1" / "h2o_relax")  # it keeps the last step only
    assert data.source["step"] == 1
    assert_allclose(data.atoms.positions[0, 1], 0.19390, atol=1e-4)


def test_without_its_structure_a_later_step_is_refused_unless_atoms_are_given(copied_run):
    run = copied_run("v3.8.1/h2o_relax")
    whole = read_folder(run)
    for path in (run / "OUT.ABACUS").glob("STRU_ION*"):
        path.unlink()
    with pytest.raises(
        ValueError, match="of ionic step 1 belong to a structure that STRU does not"
    ):
        read_folder(run)
    atoms = whole.atoms[[1, 0, 2]]
    atoms.positions += [[1, 0, 0], [0, -2, 0], [0, 0, 1]] @ atoms.cell.array
    given = read_folder(run, atoms=atoms)
    assert given.symbols == ("H", "O", "H")
    back = as_atoms(given, whole.atoms)
    assert difference(back.hamiltonian, whole.hamiltonian) == 0
    with pytest.raises(ValueError, match="atoms are HO, but STRU has H2O"):
        read_folder(run, atoms=whole.atoms[[0, 1]])


# --- order and images ----------------------------------------------------------------------------


def test_atoms_come_back_in_the_order_and_images_asked_for(abacus_folders, energies):
    folder = abacus_folders / "v3.8.1" / "h2o"
    data = read_folder(folder)
    atoms = data.atoms[[2, 0, 1]]
    atoms.positions += [[1, -2, 0], [0, 0, 3], [0, 1, 0]] @ atoms.cell.array
    moved = read_folder(folder, atoms=atoms)
    assert moved.symbols == ("H", "O", "H")
    assert (moved.atoms.positions == atoms.positions).all()
    assert moved.position_error() < 1e-7
    assert_allclose(energies(moved), energies(data), atol=1e-10)
    # O moved by (0, 0, 3) and H by (1, -2, 0), so that H is seen from O the difference away
    R = data.pairs.R[(data.pairs.i == 0) & (data.pairs.j == 2)][0]
    block = data.hamiltonian.block(0, 2, R)
    assert (moved.hamiltonian.block(1, 0, R + [-1, 2, 3]) == block).all()


def test_moments_stay_those_of_the_data(abacus_folders):
    data = read_folder(abacus_folders / "v3.8.1" / "oh_nspin2")
    atoms = Atoms("HO", positions=data.atoms.positions[[1, 0]], cell=data.atoms.cell)
    placed = as_atoms(data, atoms)
    assert placed.atoms.get_initial_magnetic_moments().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.positions.__setitem__((2, 0), a.positions[2, 0] + 0.1), "nearest H is 0.1 A"),
        (lambda a: a.set_cell(a.cell.array * 1.001), "cell vectors differ by up to 0.0072"),
        (lambda a: a.pop(), "the atoms are H2O, not HO"),
        (lambda a: a.set_cell([4, 4, 0]), "no cell in three dimensions"),
        (lambda a: a.positions.__setitem__(1, a.positions[2]), "atoms 1 and 2 stand in the same"),
    ],
)
def test_other_atoms_are_refused_with_the_first_difference(abacus_folders, change, message):
    folder = abacus_folders / "v3.8.1" / "h2o"
    atoms = read_folder(folder).atoms
    change(atoms)
    with pytest.raises(NoMatch, match=message):
        read_folder(folder, atoms=atoms)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_and_images_are_found_in_a_skewed_cell(seed):
    rng = np.random.default_rng(seed)
    cell = [[3, 0, 0], [20, 3, 0], [-15, 8, 4]]
    stored = Atoms("Si8Ge8", scaled_positions=rng.uniform(0, 1, (16, 3)), cell=cell, pbc=True)
    order = rng.permutation(16)
    shifts = rng.integers(-3, 4, (16, 3))
    wanted = stored[order]
    wanted.positions += shifts @ wanted.cell.array + rng.uniform(-4e-4, 4e-4, (16, 3))
    found, moves = match(stored, wanted)
    assert (found == order).all()
    assert (moves == shifts).all()


# --- what is refused -----------------------------------------------------------------------------


def test_gamma_only_is_refused_with_the_reason(copied_run):
    run = copied_run("v3.8.1/h2o")
    (run / "INPUT").write_text((run / "INPUT").read_text().replace("gamma_only 0", "gamma_only 1"))
    with pytest.raises(ValueError, match="folds all R into one matrix, from which no k-point but"):
        read_folder(run)


def test_a_folded_file_is_refused_with_the_reason(copied_run):
    run = copied_run("v3.11.0-beta.1/h2o")
    path = run / "OUT.ABACUS" / "hrs1_nao.csr"
    head = " # print H matrix in real space H(R)\n"
    folded = head + " # representation: gamma-only folded matrix; sum over R\n"
    path.write_text(path.read_text().replace(head, folded))
    with pytest.raises(ValueError, match="a gamma-only matrix, folded over all R"):
        read_folder(run)


def test_get_hs_with_two_spins_is_refused(copied_run):
    run = copied_run("v3.8.1/oh_nspin2")
    text = (run / "INPUT").read_text().replace("calculation scf", "calculation get_hs")
    (run / "INPUT").write_text(text)
    with pytest.raises(ValueError, match="by get_hs with nspin 2 is not used"):
        read_folder(run)


def test_one_step_with_two_spins_is_refused_where_abacus_mixes_two_steps(abacus_folders):
    # spin up of 3.8.1 has the potential of the density after the step
    with pytest.raises(
        ValueError, match="spin down of the first step beside spin up of the second"
    ):
        read_folder(abacus_folders / "v3.8.1" / "oh_nspin2_step1")


def test_the_empty_matrices_of_a_broken_version_are_refused(abacus_folders):
    with pytest.raises(ValueError, match="no elements at all"):
        read_folder(abacus_folders / "v3.11.0-beta.1" / "oh_nspin2")


def test_files_of_two_versions_in_one_folder_are_refused(copied_run, abacus_folders):
    run = copied_run("v3.8.1/h2o")
    shutil.copy(
        abacus_folders / "v3.11.0-beta.1" / "h2o" / "OUT.ABACUS" / "hrs1_nao.csr",
        run / "OUT.ABACUS",
    )
    with pytest.raises(
        ValueError, match="two versions of ABACUS, for example data-HR.* and hrs1_nao"
    ):
        read_folder(run)


def test_two_files_with_the_same_matrix_are_refused(copied_run):
    run = copied_run("v3.11.0-beta.1/h2o")
    output = run / "OUT.ABACUS"
    shutil.copy(output / "srs1_nao.csr", output / "sr_nao.csr")
    with pytest.raises(ValueError, match=r"both hold S\(R\) of ionic step 0; remove one"):
        read_folder(run)


def test_name_and_header_must_agree(copied_run):
    run = copied_run("v3.8.1/h2o")
    output = run / "OUT.ABACUS"
    shutil.copy(output / "data-HR-sparse_SPIN0.csr", output / "data-SR-sparse_SPIN0.csr")
    with pytest.raises(ValueError, match=r"by its name this is S\(R\), but its header says H\(R\)"):
        read_folder(run)
    new = copied_run("v3.11.0-beta.1/h2o", "new")
    path = new / "OUT.ABACUS" / "hrs1_nao.csr"
    path.write_text(path.read_text().replace("1 # spin index", "2 # spin index"))
    with pytest.raises(ValueError, match="this is spin channel 1, but its header says 2"):
        read_folder(new)


def test_spin_channels_must_fit_nspin(copied_run):
    run = copied_run("v3.8.1/oh_nspin2")
    second = run / "OUT.ABACUS" / "data-HR-sparse_SPIN1.csr"
    text = (run / "INPUT").read_text()
    (run / "INPUT").write_text(text.replace("nspin 2", "nspin 1"))
    with pytest.raises(ValueError, match="nspin 1, which has no second spin channel"):
        read_folder(run)
    (run / "INPUT").write_text(text)
    second.unlink()
    with pytest.raises(ValueError, match=r"H\(R\) of spin down \(SPIN1, hrs2\) is not there"):
        read_folder(run)
    (run / "INPUT").write_text(text.replace("nspin 2", "nspin 3"))
    with pytest.raises(ValueError, match="nspin is 3; ABACUS has 1, 2 and 4"):
        read_folder(run)


def test_the_dimension_must_fit_nspin_and_orbitals(copied_run):
    run = copied_run("v3.8.1/h2o_soc")
    text = (run / "INPUT").read_text()
    (run / "INPUT").write_text(text.replace("nspin 4", "nspin 1").replace("lspinorb 1", ""))
    with pytest.raises(ValueError, match="dimension is 12, but the orbitals of H2 O1 with nspin 1"):
        read_folder(run)
    (run / "INPUT").write_text(text)
    (run / "STRU").write_text((run / "STRU").read_text().replace("H_1s.orb", "H_1s1p.orb"))
    with pytest.raises(ValueError, match="matrix dimension is 12, but the orbitals of"):
        read_folder(run)


def test_folders_that_are_no_runs_are_refused(copied_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folder(tmp_path / "absent")
    with pytest.raises(
        ValueError, match="not the folder of an ABACUS run, which holds INPUT, STRU"
    ):
        read_folder(tmp_path)
    run = copied_run("v3.8.1/h2o")
    with pytest.raises(ValueError, match="a file; matrices need the structure"):
        read_folder(run / "OUT.ABACUS" / "data-HR-sparse_SPIN0.csr")
    with pytest.raises(ValueError, match="at least one folder"):
        read_folder([])
    for path in (run / "OUT.ABACUS").glob("*.csr"):
        path.unlink()
    with pytest.raises(ValueError, match="no matrix file .*run ABACUS with out_mat_hs2 1"):
        read_folder(run)
    shutil.rmtree(run / "OUT.ABACUS")
    with pytest.raises(
        ValueError, match=r"which is not there \(no OUT.\* at all\); has ABACUS run"
    ):
        read_folder(run)
    (run / "STRU").unlink()
    (run / "OUT.ABACUS").mkdir()
    (run / "OUT.ABACUS" / "SR.csr").write_text("")
    with pytest.raises(ValueError, match="SR.csr"):
        read_folder(run)


def test_names_of_all_versions_are_known(tmp_path):
    names = {
        "data-HR-sparse_SPIN1.csr": ("H", 1, None),
        "data-SR-sparse_SPIN0.csr": ("S", 0, None),
        "matrix/3_data-HR-sparse_SPIN0.csr": ("H", 0, 3),
        "matrix/3_data-rR-sparse.csr": ("r", 0, 3),
        "SR.csr": ("S", 0, None),
    }
    newer = {
        "hrs2_nao.csr": ("H", 1, None),
        "hrs1g4_nao.dat": ("H", 0, 3),
        "hrs1_nao.npz": ("H", 0, None),
        "srs1g1_nao.csr": ("S", 0, 0),
        "sr_nao.csr": ("S", 0, None),
        "srg2_nao.dat": ("S", 0, 1),
        "rr.csr": ("r", 0, None),
        "matrix/rrg0.csr": ("r", 0, 0),
        "rr_nao.txt": ("r", 0, None),
        "rxrs1_nao.csr": ("r", 0, None),
    }
    for number, expected in enumerate((names, newer)):
        folder = tmp_path / str(number)
        (folder / "matrix").mkdir(parents=True)
        for name in (*expected, "trs1_nao.csr", "dmrs1_nao.csr", "data-TR-sparse_SPIN0.csr"):
            (folder / name).write_text("")
        found = {str(f.path.relative_to(folder)): f for f in matrix_files(folder)}
        assert {n: (f.operator, f.spin, f.step) for n, f in found.items()} == expected
    assert found["rxrs1_nao.csr"].axis == 0


# --- written folders -----------------------------------------------------------------------------


def test_pyatb_and_abacus_find_complete_folders(tmp_path):
    data = random_lcao(3, "GaAsGaAs", spin="collinear")
    write_folder(tmp_path / "x", data, pseudo_dir="/pp", orbital_dir="/orb")
    for sub, steps in (("h0", "1"), ("scf", "100")):
        run = tmp_path / "x" / sub
        assert (run / "KPT").read_text() == "K_POINTS\n0\nGamma\n1 1 1 0 0 0\n"
        (found,) = find_runs(run)
        assert found.nspin == 2
        assert found.inputs["scf_nmax"] == steps
        assert found.inputs["pseudo_dir"] == "/pp"
        assert found.inputs["orbital_dir"] == "/orb"
        assert {path.name for path in (run / "OUT.ABACUS").iterdir()} == {
            "data-HR-sparse_SPIN0.csr",
            "data-HR-sparse_SPIN1.csr",
            "data-SR-sparse_SPIN0.csr",
            "data-rR-sparse.csr",
        }
        # atoms inside the cell and grouped by species, as ABACUS reads them
        text = (run / "STRU").read_text()
        assert text.index("\nGa\n0.0\n2\n") < text.index("\nAs\n0.0\n2\n")


def test_what_input_said_is_said_again(abacus_folders, tmp_path):
    data = read_folder(abacus_folders / "v3.8.1" / "h2o_soc")
    write_folder(tmp_path / "x", data, layout="new text")
    (run,) = find_runs(tmp_path / "x")
    assert run.inputs["ecutwfc"] == "30"
    assert run.inputs["lspinorb"] == "1"
    assert run.inputs["scf_thr"] == "1e-8"
    assert "4 1 1" in (tmp_path / "x" / "KPT").read_text()
    stru = (tmp_path / "x" / "STRU").read_text()
    assert "O_1s1p.orb" in stru
    assert "mag 2e-05" in stru
    assert {p.name for p in (tmp_path / "x" / "OUT.ABACUS").iterdir()} == {
        "hrs1_nao.csr",
        "srs1_nao.csr",
        "rr.csr",
    }


def test_a_charge_is_written_as_number_of_electrons(tmp_path):
    data = replace(random_lcao(3, "GaAs"), nelectrons=10.5)
    write_folder(tmp_path / "x", data)
    assert find_runs(tmp_path / "x")[0].inputs["nelec"] == "10.5"
    assert read_folder(tmp_path / "x").nelectrons == 10.5


def test_only_the_overlap_can_be_written(tmp_path):
    data = replace(random_lcao(3, "GaAs"), h0=None, hamiltonian=None)
    write_folder(tmp_path / "x", data)
    found = read_folder(tmp_path / "x")
    assert found.h0 is None
    assert difference(found.overlap, data.overlap) < 1e-12


def test_a_written_folder_may_be_called_as_an_output_folder_and_lie_in_a_run(copied_run):
    run = copied_run("v3.8.1/h2o")
    data = random_lcao(3, "GaAs")
    write_folder(run / "OUT.predicted", replace(data, hamiltonian=None))
    assert difference(read_folder(run / "OUT.predicted").h0, data.h0) < 1e-11
    assert read_folder(run).symbols == ("O", "H", "H")


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "x").mkdir()
    data = random_lcao(3, "GaAs")
    write_folder(tmp_path / "x", data)  # empty: fine
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        write_folder(tmp_path / "x", data)
    with pytest.raises(ValueError, match="unknown layout 'csr'; known: 'legacy text', 'new text'"):
        write_folder(tmp_path / "y", data, layout="csr")


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    data = random_lcao(3, "GaAs")
    in_other = {
        "overlap": data.overlap.in_convention("deeph"),
        "h0": None,
        "hamiltonian": None,
        "position": None,
    }
    with pytest.raises(ValueError, match="convention 'deeph'"):
        write_folder(tmp_path / "x", replace(data, **in_other))
    assert not list(tmp_path.iterdir())


def test_a_changed_stru_makes_the_notes_beside_it_void(tmp_path, copied_run):
    data = read_folder(copied_run("v3.8.1/h2o")).permuted([1, 0, 2])
    folder = tmp_path / "written"
    write_folder(folder, data, orbital_dir=tmp_path / "orbital", pseudo_dir=tmp_path / "pseudo")
    assert read_folder(folder).symbols == ("H", "O", "H")
    (folder / "STRU").write_text((folder / "STRU").read_text() + "\n# edited\n")
    assert read_folder(folder).symbols == ("H", "H", "O")
    notes = (folder / "nextham.json").read_text()
    for text, message in (
        ("{", r"nextham.json: damaged .*; remove it to read"),
        (notes.replace('"order"', '"orders"'), "there is no 'order'"),
        (notes.replace('"format_version": 1', '"format_version": 9'), "a newer ase_nextham wrote"),
    ):
        (folder / "nextham.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_folder(folder)


@pytest.mark.parametrize("name", ["H2O_soc_zero", "Si2_soc_zero", "MoS2_soc_zero"])
def test_time_reversal_holds_in_the_zero_sets(shared_data, tmp_path, name):
    with tarfile.open(shared_data / "abacus" / "h0" / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    data = read_folder(
        tmp_path / name, pseudo_dir=shared_data / "pseudo", orbital_dir=shared_data / "orbital"
    )
    assert data.h0.time_reversal_error() < 5e-5  # eV: of the 2e-5 mu_B that mean zero
    assert data.h0.hermitian_error() < 1e-7
    if data.position is not None:
        assert data.position_error() < 1e-6


def test_a_missing_stru_is_named(copied_run):
    run = copied_run("v3.8.1/h2o")
    (run / "STRU").unlink()
    with pytest.raises(FileNotFoundError, match="STRU: the structure file of the run is not there"):
        read_folder(run)


def test_an_overlap_that_is_nowhere_is_asked_for(copied_run):
    run = copied_run("v3.8.1/h2o")
    (run / "OUT.ABACUS" / "data-SR-sparse_SPIN0.csr").unlink()
    with pytest.raises(ValueError, match=r"no overlap S\(R\) .*give the folder of another run"):
        read_folder(run)


def test_a_run_of_plane_waves_has_no_orbitals(copied_run):
    run = copied_run("v3.8.1/h2o")
    text = (run / "STRU").read_text()
    start, stop = text.index("NUMERICAL_ORBITAL"), text.index("LATTICE_CONSTANT")
    (run / "STRU").write_text(text[:start] + text[stop:])
    with pytest.raises(ValueError, match="there is no NUMERICAL_ORBITAL section"):
        read_folder(run)


def test_a_later_structure_with_other_atoms_is_refused(copied_run):
    run = copied_run("v3.8.1/h2o_md")
    (later,) = run.rglob("STRU_MD_2")
    later.write_text(re.sub(r"\bH\b", "He", (run / "STRU").read_text()))
    with pytest.raises(ValueError, match="STRU_MD_2 has other atoms than STRU"):
        read_folder(run, step=2)


def test_notes_of_another_program_are_refused(tmp_path):
    write_folder(tmp_path / "x", replace(random_lcao(0), h0=None))
    path = tmp_path / "x" / "nextham.json"
    path.write_text(path.read_text().replace("ase_nextham ABACUS folder", "something else"))
    with pytest.raises(ValueError, match="format is 'something else'.*remove it to read"):
        read_folder(tmp_path / "x")
