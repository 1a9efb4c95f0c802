"""Conductivity and dielectric function: the laws they obey, and PYATB against our own formula."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose
from scipy import constants

from ase_nextham import hdf5
from ase_nextham.bands import eigenstates, eigenvalues, kmesh
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.matrix import SPINS, AtomPairs, LCAOMatrix
from ase_nextham.optics import (
    PyatbFailed,
    PyatbUnavailable,
    adapter,
    dielectric_function,
    kubo,
    optical_conductivity,
    pyatb_bands,
)
from ase_nextham.testing import random_lcao
from ase_nextham.units import CONDUCTIVITY

OMEGA = np.linspace(0, 10, 51)
K = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 3))


@pytest.fixture(scope="module")
def silicon(root) -> LCAOData:
    return hdf5.read(root / "tests/data/optics/Si2.h5")


@pytest.fixture(scope="module")
def gaas(root) -> LCAOData:
    return hdf5.read(root / "examples/data/GaAs_soc.h5")


@pytest.fixture(scope="session")
def pyatb() -> None:
    """Skips where PYATB cannot be loaded."""
    try:
        pyatb_bands(random_lcao(0), K[:1])
    except PyatbUnavailable as err:
        pytest.skip(str(err))


def with_pyatb(test):
    return pytest.mark.pyatb(pytest.mark.usefixtures("pyatb")(test))


def crystal(data: LCAOData) -> kubo.Crystal:
    return kubo.Crystal(data.best_hamiltonian(), data.overlap, data.position, data.atoms.cell.array)


def velocities(data: LCAOData, kpts: np.ndarray) -> np.ndarray:
    eps, states = eigenstates(data.hamiltonian, data.overlap, kpts)
    return kubo.velocities(crystal(data), kpts, eps, states)


def with_exchanged_vectors(data: LCAOData) -> LCAOData:
    """The same crystal, with the first two cell vectors exchanged."""
    atoms = data.atoms.copy()
    atoms.set_cell(data.atoms.cell.array[[1, 0, 2]])
    pairs, order = AtomPairs.sort(data.pairs.i, data.pairs.j, data.pairs.R[:, [1, 0, 2]])
    moved = [
        m.move_blocks(pairs, np.argsort(order))
        for m in (data.overlap, data.hamiltonian, *data.position)
    ]
    return replace(
        data, atoms=atoms, overlap=moved[0], h0=None, hamiltonian=moved[1], position=moved[2:]
    )


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest element."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def orthogonal_model(seed: int, gap: float) -> LCAOData:
    """S = 1, r diagonal; the first atom's orbitals lie ``gap`` eV above those of the second."""
    data = random_lcao(seed, "SiSi", cutoff=2.5)
    on_site = (data.pairs.i == data.pairs.j) & ~data.pairs.R.any(axis=1)
    S, shift = np.zeros_like(data.overlap.data), np.zeros_like(data.overlap.data)
    r = np.zeros((3, *S.shape))
    for p in np.flatnonzero(on_site):
        inside = slice(*data.overlap.offsets[p : p + 2])
        atom = data.pairs.i[p]
        S[inside] = np.eye(data.overlap.norbitals[atom]).ravel()
        shift[inside] = gap * (atom == 0) * S[inside]
        r[:, inside] = data.atoms.positions[atom][:, None] * S[inside]
    return replace(
        data,
        overlap=replace(data.overlap, data=S),
        hamiltonian=replace(data.hamiltonian, data=0.3 * data.hamiltonian.data + shift),
        position=tuple(replace(data.overlap, data=x) for x in r),
    )


# --- velocities --------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", SPINS)
def test_velocities_are_hermitian(spin):
    v = velocities(random_lcao(1, spin=spin, magnetic=True), K)
    assert_allclose(v, v.conj().swapaxes(-1, -2), atol=1e-11)  # eV Angstrom


@pytest.mark.parametrize("spin", SPINS)
def test_velocity_of_a_band_is_its_slope(spin):
    data = random_lcao(2, spin=spin, magnetic=True)
    v = np.diagonal(velocities(data, K), axis1=-2, axis2=-1)
    step = 1e-5  # 1/Angstrom
    for axis in range(3):
        shift = step * data.atoms.cell.array[:, axis] / (2 * np.pi)
        up, down = (eigenvalues(data.hamiltonian, data.overlap, K + s * shift) for s in (1, -1))
        assert_allclose(v[axis], (up - down) / (2 * step), atol=1e-6)  # eV Angstrom


def test_velocities_do_not_depend_on_the_cell_to_which_an_atom_is_counted():
    data = random_lcao(3, "GaAsSi", spin="spinor", magnetic=True)
    moved = data.translated(np.array([[1, 0, -2], [0, 3, 1], [-1, -1, 0]]))
    assert_allclose(np.abs(velocities(moved, K)), np.abs(velocities(data, K)), atol=1e-10)


# --- absolute numbers --------------------------------------------------------------------------


def test_two_levels_are_the_lorentz_oscillator_of_the_textbooks():
    # one s and one p shell on one atom of a crystal without hopping, dipole d between s and p
    gap, dipole, length, eta = 5.0, 0.7, 4.0, 0.1
    pairs = AtomPairs(np.zeros(1, int), np.zeros(1, int), np.zeros((1, 3), int))
    basis = Basis({"He": (0, 1)})

    def operator(elements) -> LCAOMatrix:
        return LCAOMatrix(basis, ("He",), pairs, "unpolarised", np.ravel(elements))

    r = np.zeros((3, 4, 4))
    for axis, m in enumerate((2, 3, 1)):  # the order of the p orbitals is z x y
        r[axis, 0, m] = r[axis, m, 0] = dipole
    data = LCAOData(
        atoms=Atoms("He", cell=[length] * 3, pbc=True),
        overlap=operator(np.eye(4)),
        hamiltonian=operator(np.diag([0, gap, gap, gap])),
        position=tuple(map(operator, r)),
        nelectrons=2,
    )
    z = OMEGA + 1j * eta
    coupling = constants.e / (constants.epsilon_0 * constants.angstrom)  # e^2 / eps0 in eV Angstrom
    lorentz = 1 + 2 * coupling / length**3 * 2 * gap * dipole**2 / (gap**2 - z**2)
    epsilon = dielectric_function(data, OMEGA, (1, 1, 1), "kubo", eta=eta)
    expected = np.eye(3)[:, :, None] * lorentz
    assert_allclose(epsilon, expected, rtol=1e-8, atol=1e-8)


def test_high_frequencies_obey_the_sum_rule():
    # omega Im sigma -> e^2 / (hbar V) <[r, [H, r]]>, whatever the transitions are
    data = orthogonal_model(seed=5, gap=6.0)
    mesh = kmesh(data.atoms, (6, 6, 6), symmetry=False)
    filled = data.overlap.norbitals[1]
    vectors = (
        data.atoms.positions[data.pairs.j]
        - data.atoms.positions[data.pairs.i]
        + data.pairs.R @ data.atoms.cell.array
    )
    H = data.hamiltonian
    sizes = np.diff(H.offsets)
    _, states = eigenstates(H, data.overlap, mesh.kpts)
    expected = np.zeros(3)
    for axis in range(3):
        commutator = replace(H, data=-np.repeat(vectors[:, axis] ** 2, sizes) * H.data)
        values = np.einsum(
            "kmn,kml,kln->k",
            states[0, ..., :filled].conj(),
            commutator.at_k(mesh.kpts),
            states[0, ..., :filled],
        )
        expected[axis] = 2 * CONDUCTIVITY / data.atoms.cell.volume * (mesh.weights @ values.real)
    infinite = 1e6
    sigma = optical_conductivity(
        data, [infinite], (6, 6, 6), "kubo", nelectrons=2 * filled, eta=0.1
    )
    found = infinite * np.diagonal(sigma[..., 0]).imag
    assert_allclose(found, expected, rtol=1e-4)  # the mesh converges exponentially


def test_silicon_has_the_dielectric_constant_of_pbe(silicon):
    # 11.7 in experiment; the gap of PBE is too small, which makes it 12.8 on a converged mesh
    epsilon = dielectric_function(silicon, [0.0], (12, 12, 12), "kubo")[..., 0]
    assert_allclose(epsilon, 12.8 * np.eye(3), rtol=0, atol=0.2)


# --- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kubo", pytest.param("pyatb", marks=pytest.mark.pyatb)])
@pytest.mark.parametrize(
    ("change", "mesh"),
    [
        (lambda data: data.translated(np.array([[1, 0, -2], [0, 3, 1]])), (4, 4, 4)),
        (lambda data: data.permuted([1, 0]), (4, 4, 4)),
        (lambda data: data.repeated((2, 1, 1)), (2, 4, 4)),
        (with_exchanged_vectors, (4, 4, 4)),
    ],
    ids=["moved atoms", "permuted atoms", "supercell", "left-handed cell"],
)
def test_conductivity_does_not_depend_on_how_a_crystal_is_written(
    silicon, method, change, mesh, request
):
    if method == "pyatb":
        request.getfixturevalue("pyatb")
    expected = optical_conductivity(silicon, OMEGA, (4, 4, 4), "kubo")
    found = optical_conductivity(change(silicon), OMEGA, mesh, method)
    # PYATB reads half of r and S, which ABACUS prints with 8 digits
    assert error(found, expected) < (1e-11 if method == "kubo" else 1e-6)


def test_conductivity_of_a_magnet_does_not_depend_on_how_it_is_written():
    data = random_lcao(4, spin="spinor", magnetic=True)
    shifts = np.array([[0, 1, -1], [2, 0, 0]])
    expected = optical_conductivity(data, OMEGA, (4, 3, 2), "kubo", nelectrons=10)
    for other, mesh in (
        (data.translated(shifts).permuted([1, 0]), (4, 3, 2)),
        (data.repeated((1, 1, 2)).translated(np.tile(shifts, (2, 1))), (4, 3, 1)),
    ):
        electrons = 10 * len(other.atoms) // 2
        found = optical_conductivity(other, OMEGA, mesh, "kubo", nelectrons=electrons)
        assert error(found, expected) < 1e-9


def test_left_handed_cells_are_what_the_test_says(silicon):
    # the file as ABACUS wrote it is right-handed
    assert np.linalg.det(silicon.atoms.cell.array) > 0
    assert np.linalg.det(with_exchanged_vectors(silicon).atoms.cell.array) < 0


@pytest.mark.parametrize("name", ["silicon", "gaas"])
def test_cubic_crystals_are_isotropic(name, request):
    sigma = optical_conductivity(request.getfixturevalue(name), OMEGA, (2, 2, 2), "kubo")
    isotropic = np.trace(sigma) / 3 * np.eye(3)[:, :, None]
    # the real-space grid of ABACUS breaks the symmetry of H by about 1e-5 eV
    assert error(sigma, isotropic) < 1e-4


@pytest.mark.parametrize("spin", SPINS)
def test_light_is_absorbed_and_never_emitted(spin):
    data = random_lcao(6, spin=spin, magnetic=True)
    sigma = optical_conductivity(data, OMEGA, (2, 2, 2), "kubo").transpose(2, 0, 1)
    absorption = (sigma + sigma.conj().swapaxes(1, 2)) / 2
    lowest = np.linalg.eigvalsh(absorption)[:, 0]
    assert lowest.min() > 0


def test_real_and_imaginary_part_obey_kramers_and_kronig():
    data = random_lcao(7, "SiSi")
    step = 0.02
    middle = np.arange(-8000, 8000) * step + step / 2  # far beyond all transitions
    sigma = optical_conductivity(
        data, np.abs(middle[8000:]), (2, 2, 2), "kubo", nelectrons=6, eta=0.2
    )[0, 0]
    real = np.concatenate([sigma.real[::-1], sigma.real])  # even in omega
    omega = np.arange(100, 500, 25) * step  # between the points of the sum
    principal = -step / np.pi * np.sum(real / (middle - omega[:, None]), axis=1)
    imaginary = np.interp(omega, middle[8000:], sigma.imag)
    # what lies beyond 160 eV is missing from the sum
    assert_allclose(principal, imaginary, rtol=0, atol=5e-3 * np.abs(sigma).max())


def test_spinors_and_collinear_spins_of_a_magnet_agree():
    data = random_lcao(8, spin="collinear", magnetic=True)
    spinor = replace(data, h0=None, hamiltonian=data.hamiltonian.with_spin("spinor"))
    expected = optical_conductivity(data, OMEGA, (2, 2, 2), "kubo")
    assert error(optical_conductivity(spinor, OMEGA, (2, 2, 2), "kubo"), expected) < 1e-9


def test_equal_spins_may_be_written_twice(silicon):
    collinear = silicon.hamiltonian.with_spin("collinear")
    expected = optical_conductivity(silicon, OMEGA, (2, 2, 2), "kubo")
    found = optical_conductivity(silicon, OMEGA, (2, 2, 2), "kubo", hamiltonian=collinear)
    assert error(found, expected) < 1e-12


def test_time_reversal_only_saves_work(gaas):
    data = crystal(gaas)
    assert data.obeys_time_reversal()
    occupied = int(gaas.nelectrons)
    results = []
    for paired in (True, False):
        mesh = kmesh(gaas.atoms, (3, 3, 3), symmetry=False, time_reversal=paired)
        f = np.zeros((1, len(mesh.kpts), gaas.hamiltonian.dimension))
        f[..., :occupied] = 1
        results.append(
            kubo.interband_conductivity(
                data, OMEGA, mesh.kpts, mesh.weights, f, eta=0.1, paired=paired
            )
        )
    # ABACUS prints H with 1e-8 Ry, which breaks time reversal
    assert error(*results) < 1e-6


def test_magnets_have_a_hall_conductivity_and_others_do_not():
    for magnetic in (False, True):
        data = random_lcao(9, spin="spinor", magnetic=magnetic)
        sigma = optical_conductivity(data, OMEGA, (2, 2, 2), "kubo")
        hall = np.abs(sigma - sigma.swapaxes(0, 1)).max() / np.abs(sigma).max()
        assert hall > 1e-2 if magnetic else hall == 0


def test_metals_are_filled_up_to_the_fermi_level():
    data = random_lcao(10)  # 11 electrons do not fill pairs of states
    sharp, smeared = (
        optical_conductivity(data, OMEGA, (4, 4, 4), "kubo", width=width) for width in (1e-6, 0.3)
    )
    assert np.isfinite(sharp).all()
    assert error(smeared, sharp) > 1e-3


# --- PYATB -------------------------------------------------------------------------------------


@with_pyatb
@pytest.mark.parametrize(("name", "mesh"), [("silicon", (4, 4, 4)), ("gaas", (2, 2, 2))])
def test_pyatb_and_our_formula_give_the_same_conductivity(name, mesh, request):
    data = request.getfixturevalue(name)
    expected = optical_conductivity(data, OMEGA, mesh, "kubo")
    found = optical_conductivity(data, OMEGA, mesh, "pyatb")
    assert error(found, expected) < 1e-6  # 1e-8 Ry and Bohr are the last digits of the files


@with_pyatb
def test_pyatb_alone_agrees_where_its_range_holds_all_transitions(silicon):
    # nothing of our own formula is added here, in contrast to optical_conductivity
    omega = np.linspace(0, 160, 161)
    eps = eigenvalues(silicon.hamiltonian, silicon.overlap, kmesh(silicon.atoms, (3, 3, 3)).kpts)
    assert adapter.largest_transition(omega) > eps.max() - eps.min()
    level = eps[..., 3].max() + 0.1
    sigma, epsilon = adapter.conductivity(silicon, omega, (3, 3, 3), level, 0.1)
    assert error(sigma, optical_conductivity(silicon, omega, (3, 3, 3), "kubo")) < 1e-6
    assert error(epsilon, dielectric_function(silicon, omega, (3, 3, 3), "kubo")) < 1e-6


@with_pyatb
def test_what_pyatb_leaves_out_depends_on_the_range_and_is_added(silicon):
    wide = optical_conductivity(silicon, OMEGA, (2, 2, 2), "pyatb")
    narrow = optical_conductivity(silicon, OMEGA[:6], (2, 2, 2), "pyatb")  # up to 1 eV
    single = optical_conductivity(silicon, OMEGA[5:6], (2, 2, 2), "pyatb")
    assert error(narrow, wide[..., :6]) < 1e-6
    assert error(single, wide[..., 5:6]) < 1e-6
    alone, _ = adapter.conductivity(silicon, OMEGA[:6], (2, 2, 2), 6.5, 0.1)
    assert np.abs(alone).max() < 0.1 * np.abs(narrow).max()


@with_pyatb
@pytest.mark.parametrize("magnetic", [False, True])
def test_pyatb_agrees_for_spinors_in_metals(magnetic):
    data = random_lcao(11, spin="spinor", magnetic=magnetic)
    found, expected = (
        optical_conductivity(data, OMEGA, (3, 2, 2), method, nelectrons=8.5, width=1e-7)
        for method in ("pyatb", "kubo")
    )
    assert error(found, expected) < 1e-8


@with_pyatb
@pytest.mark.parametrize("spin", SPINS)
def test_bands_from_pyatb_are_ours(spin):
    data = random_lcao(12, "GaAsSi", spin=spin, magnetic=True)
    for written in (data, with_exchanged_vectors(data)):
        found = pyatb_bands(written, K)
        expected = eigenvalues(written.hamiltonian, written.overlap, K)
        assert_allclose(found, expected, rtol=0, atol=1e-9)  # eV


@with_pyatb
@pytest.mark.parametrize("name", ["silicon", "gaas"])
def test_bands_of_real_crystals_from_pyatb_are_ours(name, request):
    data = request.getfixturevalue(name)
    expected = eigenvalues(data.hamiltonian, data.overlap, K)
    assert_allclose(pyatb_bands(data, K), expected, rtol=0, atol=1e-6)  # eV


@with_pyatb
def test_pyatb_leaves_no_trace(silicon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyatb_bands(silicon, K)
    optical_conductivity(silicon, OMEGA, (1, 1, 1), "pyatb")
    assert os.getcwd() == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- without PYATB, or with one that fails -------------------------------------------------------


def imitate_pyatb(folder, monkeypatch, *, package: str, tb: str = "") -> None:
    """Put a package named pyatb with this code, and an mpi4py, before all others."""
    (folder / "pyatb").mkdir()
    (folder / "pyatb/__init__.py").write_text(package)
    (folder / "pyatb/tb.py").write_text(tb)
    (folder / "mpi4py.py").write_text("")
    monkeypatch.syspath_prepend(folder)


def test_without_pyatb_our_formula_is_used_aloud(silicon, monkeypatch):
    find = adapter.importlib.util.find_spec
    monkeypatch.setattr(
        adapter.importlib.util, "find_spec", lambda name: None if name == "pyatb" else find(name)
    )
    with pytest.warns(UserWarning, match=r"pyatb not installed: pip install 'ase_nextham\[pyatb"):
        found = optical_conductivity(silicon, OMEGA, (2, 2, 2))
    assert error(found, optical_conductivity(silicon, OMEGA, (2, 2, 2), "kubo")) == 0
    with pytest.raises(PyatbUnavailable, match="pip install"):
        pyatb_bands(silicon, K)


def test_without_an_mpi_library_our_formula_is_used_aloud(silicon, tmp_path, monkeypatch):
    imitate_pyatb(tmp_path, monkeypatch, package="raise RuntimeError('cannot load MPI library')")
    with pytest.warns(UserWarning, match="cannot load MPI library") as caught:
        found = dielectric_function(silicon, OMEGA, (2, 2, 2))
    assert "method='kubo'" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert error(found, dielectric_function(silicon, OMEGA, (2, 2, 2), "kubo")) == 0


def test_collinear_spins_are_left_to_our_formula_aloud(silicon):
    data = replace(silicon, hamiltonian=silicon.hamiltonian.with_spin("collinear"))
    with pytest.warns(UserWarning, match="PYATB computes no conductivity for collinear spins"):
        found = optical_conductivity(data, OMEGA, (2, 2, 2), "pyatb")
    assert error(found, optical_conductivity(silicon, OMEGA, (2, 2, 2), "kubo")) < 1e-12


def test_a_crash_of_pyatb_is_an_error_with_its_last_words(silicon, tmp_path, monkeypatch):
    crash = "import os, signal; print('before the end', flush=True); "
    crash += "os.kill(os.getpid(), signal.SIGSEGV)"
    imitate_pyatb(tmp_path, monkeypatch, package="", tb=crash)
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    monkeypatch.chdir(workplace)
    with pytest.raises(PyatbFailed, match=r"(?s)exit status -11.*before the end"):
        pyatb_bands(silicon, K)
    assert os.getcwd() == str(workplace)
    assert list(workplace.iterdir()) == []


def test_an_error_inside_pyatb_is_told(silicon, tmp_path, monkeypatch):
    imitate_pyatb(tmp_path, monkeypatch, package="", tb="raise ValueError('HR and SR mismatch !!')")
    with pytest.raises(PyatbFailed, match="HR and SR mismatch"):
        pyatb_bands(silicon, K)


# --- what the caller gets wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"omega": [[1.0]]}, "shape"),
        ({"omega": []}, "shape"),
        ({"omega": [-1.0, 0.0]}, "not negative"),
        ({"omega": [0.0, np.nan]}, "finite"),
        ({"omega": [0.0, 1.0, 3.0], "method": "pyatb"}, "evenly spaced"),
        ({"omega": [1.0, 0.0], "method": "pyatb"}, "ascending"),
        ({"kpts": (4, 4)}, "three sizes"),
        ({"kpts": (4, 4, 0)}, "positive integers"),
        ({"kpts": (4.0, 4.0, 4.0)}, "positive integers"),
        ({"method": "magic"}, "known methods: pyatb, kubo"),
        ({"eta": 0.0}, "eta must be an energy"),
        ({"eta": np.nan}, "eta must be an energy"),
        ({"width": -0.1}, "width must be an energy"),
        ({"nelectrons": 0}, "electrons"),
        ({"nelectrons": 1000}, "electrons"),
    ],
)
def test_arguments_out_of_range_are_refused(silicon, arguments, message):
    given = {"omega": OMEGA, "kpts": (2, 2, 2), "method": "kubo"} | arguments
    with pytest.raises(ValueError, match=message):
        optical_conductivity(silicon, **given)


def test_a_missing_position_operator_is_explained(silicon):
    with pytest.raises(ValueError, match=r"out_mat_r 1.*position=True"):
        optical_conductivity(replace(silicon, position=None), OMEGA, (2, 2, 2), "kubo")


def test_a_position_operator_of_another_crystal_is_refused(silicon):
    r = silicon.position
    data = replace(silicon, position=(r[1], r[0], r[2]))
    with pytest.raises(ValueError, match="does not belong to the overlap and cell"):
        optical_conductivity(data, OMEGA, (2, 2, 2), "kubo")


def test_a_hamiltonian_that_is_not_hermitian_is_refused(silicon):
    broken = silicon.hamiltonian.data.copy()
    broken[5] += 1e-3
    H = replace(silicon.hamiltonian, data=broken)
    with pytest.raises(ValueError, match=r"not Hermitian.*0\.001 eV"):
        optical_conductivity(silicon, OMEGA, (2, 2, 2), "kubo", hamiltonian=H)
    with pytest.raises(ValueError, match="not Hermitian"):
        pyatb_bands(silicon, K, hamiltonian=H)


def test_an_unknown_number_of_electrons_is_asked_for():
    data = random_lcao(13)
    basis = replace(data.basis, valence={})
    matrices = {name: replace(getattr(data, name), basis=basis) for name in ("overlap", "h0")}
    position = tuple(replace(m, basis=basis) for m in data.position)
    data = replace(data, hamiltonian=None, nelectrons=None, position=position, **matrices)
    with pytest.raises(ValueError, match="or pass nelectrons"):
        optical_conductivity(data, OMEGA, (2, 2, 2), "kubo")


def test_an_overlap_that_is_none_is_refused(silicon):
    broken = replace(silicon, overlap=-1 * silicon.overlap, position=None)
    with pytest.raises(ValueError, match="overlap is not positive definite"):
        pyatb_bands(broken, K)
    broken = replace(broken, position=tuple(-1 * r for r in silicon.position))
    with pytest.raises(ValueError, match="positive definite"):
        optical_conductivity(broken, OMEGA, (2, 2, 2), "pyatb")


@pytest.mark.parametrize("kpts", [np.zeros(3), np.zeros((0, 3)), [[0, 0, np.inf]]])
def test_kpts_of_the_wrong_shape_are_refused(silicon, kpts):
    with pytest.raises(ValueError, match="kpts must be finite numbers of shape"):
        pyatb_bands(silicon, kpts)


def test_a_nearly_singular_overlap_is_not_given_to_pyatb(silicon, monkeypatch):
    monkeypatch.setattr("ase_nextham.bands.dense.NEARLY_SINGULAR", 0.1)
    with (
        pytest.warns(UserWarning, match="nearly"),
        pytest.raises(ValueError, match="nearly singular, which PYATB cannot handle"),
    ):
        optical_conductivity(silicon, OMEGA, (1, 1, 1), "pyatb")


def test_the_adapter_alone_refuses_collinear_spins():
    data = random_lcao(14, spin="collinear")
    with pytest.raises(ValueError, match="no conductivity for collinear spins; use method='kubo'"):
        adapter.conductivity(data, OMEGA, (1, 1, 1), 0.0, 0.1)
