"""The engine: laws of physics, ABACUS's matrices, and what is said about impossible requests."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError

from ase_nextham import NextHAMCalculator, hdf5, testing
from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.native import engine
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.matrix import AtomPairs
from ase_nextham.units import RYDBERG


def largest(array) -> float:
    """Largest modulus."""
    return float(np.abs(array).max(initial=0))


def difference(a, b) -> float:
    """Largest difference of two operators, wherever one of them has blocks."""
    pairs = AtomPairs.union(a.pairs, b.pairs)
    return largest(a.on_pairs(pairs).data - b.on_pairs(pairs).data)


SPINS = [
    {"nspin": 1},
    {"nspin": 2, "moments": "abacus39_auto"},
    {"nspin": 4},
    {"nspin": 4, "moments": "abacus39_auto"},
    {"nspin": 4, "spin_orbit": False},
]


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", SPINS, ids=str)
def test_every_law_of_a_backend_holds(native, radical, spin):
    data = native(**spin).compute(radical)
    kind = {1: "unpolarised", 2: "collinear", 4: "spinor"}[spin["nspin"]]
    assert data.h0.spin == kind
    assert data.h0.hermitian_error() < 1e-10 * RYDBERG
    assert data.position_error() < 1e-10  # Angstrom
    assert data.nelectrons == 7
    if spin.get("moments") is None:
        assert data.h0.time_reversal_error() < 1e-10 * RYDBERG
    else:
        assert data.h0.time_reversal_error() > 0.1
    testing.check_backend(native(**spin).compute, radical, tolerance=1e-9 * RYDBERG)


def test_atoms_moved_by_lattice_vectors_give_the_same_position_operator(native, radical):
    shifts = np.array([[1, -2, 0], [0, 1, 3]])
    moved = radical.copy()
    moved.positions += shifts @ moved.cell.array
    expected = native().compute(radical).translated(shifts)
    found = native().compute(moved)
    assert found.pairs.same_as(expected.pairs)
    for ours, theirs in zip(found.position, expected.position, strict=True):
        assert difference(ours, theirs) < 1e-9  # Angstrom


def test_all_but_the_grid_turns_with_the_crystal(native, radical):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    compute = native(terms=["kinetic", "nonlocal"]).compute
    testing.check_rotation(compute, radical, rotation, tolerance=1e-8 * RYDBERG)


def test_all_turns_with_cell_and_grid(native, radical):
    # the points are fixed to the cell vectors, so that they turn with the crystal
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    testing.check_rotation(native().compute, radical, rotation, tolerance=1e-7 * RYDBERG)


def test_a_supercell_folds_back(native):
    # with these edges the grid of the supercell has twice the points, 20 and 40
    atoms = Atoms("OH", [[0.3, 0.2, 0.1], [1.0, 0.9, 0.8]], cell=[3.2, 3.2, 3.2], pbc=True)
    small, large = native().compute(atoms), native().compute(atoms.repeat((2, 1, 1)))
    assert large.source["grid"] == [2 * small.source["grid"][0], *small.source["grid"][1:]]
    folded = small.repeated((2, 1, 1))
    assert difference(large.overlap, folded.overlap) < 1e-10
    assert difference(large.h0, folded.h0) < 1e-9 * RYDBERG
    for ours, theirs in zip(large.position, folded.position, strict=True):
        assert difference(ours, theirs) < 1e-9  # Angstrom


@pytest.mark.parametrize("spin", SPINS, ids=str)
def test_the_parts_add_up(native, radical, spin):
    parts = [native(terms=[term], **spin).compute(radical).h0 for term in engine.TERMS]
    total = native(**spin).compute(radical).h0
    assert difference(parts[0] + parts[1] + parts[2], total) < 1e-9  # eV
    assert min(largest(part.data) for part in parts) > 1  # eV


def test_up_and_down_differ_by_the_sign_of_the_moments(native, radical):
    radical.set_initial_magnetic_moments([0.5, -0.2])
    compute = native(nspin=2, moments="initial").compute
    data = compute(radical)
    np.testing.assert_array_equal(data.atoms.get_initial_magnetic_moments(), [0.5, -0.2])
    radical.set_initial_magnetic_moments([-0.5, 0.2])
    opposite = compute(radical)
    np.testing.assert_allclose(opposite.h0.data, data.h0.data[::-1], atol=1e-9)  # eV


def test_spinors_without_spin_orbit_coupling_are_two_collinear_spins(native, radical):
    radical.set_initial_magnetic_moments([0.5, -0.2])
    collinear = native(nspin=2, moments="initial").compute(radical).h0
    spinor = native(nspin=4, spin_orbit=False, moments="initial").compute(radical).h0
    assert difference(collinear.with_spin("spinor"), spinor) < 1e-4  # eV; other thresholds


def test_spin_orbit_coupling_has_no_trace_over_spin(native, radical):
    full = native(nspin=4).compute(radical).h0
    scalar = native(nspin=4, spin_orbit=False).compute(radical).h0
    # averaging projectors over j is no exact average of the operator: close, not equal
    for _, _, _, elements in full.block_groups():
        a, b = (
            h.data[elements][:, 0::2, 0::2] + h.data[elements][:, 1::2, 1::2]
            for h in (full, scalar)
        )
        assert largest(a - b) < 0.05  # eV
    assert difference(full, scalar) > 1e-3


def test_threads_and_single_precision_change_little(native, radical):
    data = native().compute(radical)
    assert difference(native(threads=2).compute(radical).h0, data.h0) < 1e-9  # eV
    assert 0 < difference(native(dtype="float32").compute(radical).h0, data.h0) < 1e-4  # eV


# --- ABACUS's matrices ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("v3.8.1/h2o_step1", {"nspin": 1}),
        ("v3.11.0-beta.1/h2o_step1", {"nspin": 1}),
        ("v3.8.1/h2o_latname", {"nspin": 1}),
        ("v3.8.1/oh_nspin2_mix0", {"nspin": 2, "moments": "initial"}),
        ("v3.8.1/oh_soc_auto", {"nspin": 4, "moments": "abacus39_auto"}),
    ],
)
def test_small_runs_of_abacus_are_reproduced(native, abacus_folders, run, options):
    expected = read_folder(abacus_folders / run)
    atoms = expected.atoms.copy()
    if options.get("moments") != "initial":
        atoms.set_initial_magnetic_moments(None)
    names = (abacus_folders / run / "STRU").read_text().split()
    orbitals = {name.split("_")[0]: name for name in names if name.endswith(".orb")}
    data = native(orbitals=orbitals, ecutwfc=30, **options).compute(atoms)
    assert (data.pairs.find(expected.pairs.i, expected.pairs.j, expected.pairs.R) >= 0).all()
    assert difference(data.overlap, expected.overlap) < 1e-8
    assert difference(data.h0, expected.best_hamiltonian()) < 1e-5  # eV
    assert data.basis.difference(expected.basis) is None
    assert data.basis.radius == pytest.approx(expected.basis.radius)
    assert data.nelectrons == expected.nelectrons
    if expected.position is not None:
        for ours, theirs in zip(data.position, expected.position, strict=True):
            assert difference(ours, theirs) < 1e-5  # Angstrom


# --- what is around ------------------------------------------------------------------------------


def test_provenance_tells_what_the_numbers_depend_on(native, radical):
    data = native(nspin=4, moments="abacus39_auto").compute(radical)
    source = data.source
    assert (source["engine"], source["moments"], source["nspin"]) == (
        "ase_nextham native",
        "abacus39_auto",
        4,
    )
    assert len(source["grid"]) == 3
    assert source["orbitals"] == dict(data.basis.fingerprint)
    assert {len(digest) for digest in source["pseudopotentials"].values()} == {64}
    np.testing.assert_allclose(data.atoms.get_initial_magnetic_moments(), np.sqrt(3))


def test_relativistic_pseudopotentials_mean_spinors_and_position_can_be_left_out(native, radical):
    data = native(position=False).compute(radical)
    assert data.h0.spin == "spinor"
    assert data.position is None


def test_the_calculator_computes_with_it(
    pseudo_dir, abacus_folders, small_orbitals, tmp_path, radical
):
    orbital_dir = tmp_path / "orbital"
    orbital_dir.mkdir()
    for name in small_orbitals.values():
        (orbital_dir / name).symlink_to(abacus_folders / "orbital" / name)
    for name in ("native", "auto"):
        with pytest.warns(UserWarning, match="no model given"):
            radical.calc = NextHAMCalculator(
                h0=name,
                pseudo_dir=pseudo_dir,
                orbital_dir=orbital_dir,
                kpts=(1, 1, 1),
                directory=tmp_path / "unused",
            )
        assert np.isfinite(radical.calc.get_fermi_level(radical))
        assert radical.calc.get_hamiltonian().spin == "spinor"


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nspin": 3}, "nspin=3 must be 1, 2 or 4"),
        ({"moments": "auto"}, "unknown moments 'auto'"),
        ({"ecutwfc": -1}, "ecutwfc=-1 must be an energy"),
        ({"terms": ["kinetik"]}, "must be some of kinetic, nonlocal, local"),
        ({"terms": []}, "must be some of"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"device": "gpu"}, "unknown device 'gpu'; known: 'cpu', 'cuda'"),
        ({"threads": 0}, "threads=0 must be at least 1"),
    ],
)
def test_options_are_checked_at_once(native, options, message):
    with pytest.raises(ValueError, match=message):
        native(**options)


def test_what_a_structure_lacks_is_said(native, radical):
    with pytest.raises(ValueError, match="there are no atoms"):
        native().compute(Atoms(cell=[5, 5, 5]))
    molecule = Atoms("OH", [[0, 0, 0], [1, 0, 0]])
    with pytest.raises(CalculatorSetupError, match="no complete cell"):
        native().compute(molecule)
    molecule.set_cell([5, 5, 0])
    with pytest.raises(CalculatorSetupError, match="no complete cell"):
        native().compute(molecule)


def test_missing_and_foreign_files_are_named(native, small_orbitals, radical, pseudo_dir, tmp_path):
    nitrogen = radical.copy()
    nitrogen.symbols[0] = "N"
    with pytest.raises(CalculatorSetupError, match="N: no pseudopotential in .*pseudo"):
        native().compute(nitrogen)
    with pytest.raises(CalculatorSetupError, match=r"O: the orbital file .*H_1s1p\.orb is for H"):
        native(orbitals=small_orbitals | {"O": "H_1s1p.orb"}).compute(radical)
    text = (pseudo_dir / "O.upf").read_text().replace("PP_RHOATOM", "PP_NOTHING")
    (tmp_path / "O.upf").write_text(text)
    with pytest.raises(CalculatorSetupError, match=r"O: .*O\.upf: there is no section PP_RHOATOM"):
        native(pseudopotentials={"O": tmp_path / "O.upf"}).compute(radical)


def test_pseudopotentials_for_another_functional_are_refused(native, radical, pseudo_dir, tmp_path):
    text = (pseudo_dir / "O.upf").read_text().replace('functional="PBE"', 'functional="PZ"')
    (tmp_path / "O.upf").write_text(text)
    with pytest.raises(CalculatorSetupError, match="O: the pseudopotential was made for PZ"):
        native(pseudopotentials={"O": tmp_path / "O.upf"}).compute(radical)


def test_vectors_as_moments_are_refused(native, radical):
    radical.set_initial_magnetic_moments([[0.1, 0, 0], [0, 0, 0]])
    with pytest.raises(CalculatorSetupError, match="moments along z only"):
        native(moments="initial").compute(radical)


def test_a_preset_replaces_vectors_that_the_atoms_bring(native, radical):
    radical.set_initial_magnetic_moments([[0, 0, 0.5], [0, 0, -0.2]])
    with pytest.warns(UserWarning, match="moments='abacus39_auto' ignores"):
        data = native(nspin=4, moments="abacus39_auto").compute(radical)
    np.testing.assert_allclose(data.atoms.get_initial_magnetic_moments(), np.sqrt(3))


def test_moments_that_are_not_used_are_mentioned(native, radical):
    radical.set_initial_magnetic_moments([0.5, 0])
    with pytest.warns(UserWarning, match="moments='zero' ignores"):
        data = native().compute(radical)
    assert not data.atoms.get_initial_magnetic_moments().any()


def test_a_potential_that_does_not_fit_is_refused(native, radical):
    prepared = native().prepare(radical)
    v = prepared.local_part.v0
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\), but the grid of this structure has"):
        prepared.compute(np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="there is nothing to compute"):
        prepared.compute(with_h0=False)
    with pytest.raises(ValueError, match="leave out what the potential would replace"):
        native(terms=["kinetic"]).prepare(radical).compute(v)
    magnetic = native(nspin=4, moments="abacus39_auto").prepare(radical)
    with pytest.raises(CalculatorSetupError, match="moments='zero'"):
        magnetic.compute(v)


def test_a_device_that_is_not_there_is_named(native, radical):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(CalculatorSetupError, match="device='cuda', but torch finds no CUDA device"):
        native(device="cuda").compute(radical)


def test_sums_of_a_device_and_their_transpose_are_those_of_torch(native, radical, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    from ase_nextham.h0.native import integral_torch

    asked = []
    found_device = integral_torch._Device.of

    def processor(device, dtype):  # torch there, without its graphics processor
        asked.append(device)
        return found_device("cpu", dtype)

    expected, part = (native(device=d).local_part(radical) for d in ("cpu", "cuda:1"))
    monkeypatch.setattr(integral_torch._Device, "of", processor)
    elements = part.integrate(part.v0[None])
    assert largest(elements - expected.integrate(part.v0[None])) < 1e-12 * largest(elements)
    density = part.transposed(part.waves.shape, elements[0])
    error = largest(density - expected.transposed(part.waves.shape, elements[0]))
    assert error < 1e-12 * largest(density)
    assert asked == ["cuda:1", "cuda:1"]


def test_too_large_a_cell_is_refused_before_it_is_begun(native, radical, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    with pytest.raises(CalculatorSetupError, match=r"2 atoms .* needs about .* GB of memory"):
        native().compute(radical)


def test_large_cells_say_what_they_need(native, radical, monkeypatch, caplog):
    monkeypatch.setattr(engine, "LARGE", 2)
    with caplog.at_level("INFO"):
        native(terms=["kinetic"]).compute(radical)
    assert "H(0) of 2 atoms" in caplog.text


def test_gaas_with_spin_orbit_coupling_is_that_of_abacus(root):
    """Recorded by ABACUS 3.9.0 (examples/data/README.md): f orbitals, core correction, SOC."""
    folder = root / "examples" / "data"
    stored = hdf5.read(folder / "GaAs_soc.h5")
    found = NativeH0(folder / "pseudo", folder / "orbital", threads=1).compute(stored.atoms)
    error = 1e3 * np.abs((found.h0 - stored.h0).data)
    assert error.max() < 0.05  # meV; most of it from 2e-5 mu_B that the stored one has
    assert error.mean() < 1e-4
    assert np.abs((found.overlap - stored.overlap).data).max() < 1e-8
    for a, b in zip(found.position, stored.position, strict=True):
        assert np.abs((a - b).data).max() < 1e-5  # Angstrom
    assert found.basis.fingerprint == stored.basis.fingerprint
    assert found.nelectrons == stored.nelectrons
