"""sisl: the same bands there and here, the same data after a round trip, and refusals."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.bands import eigenvalues
from ase_nextham.basis import Basis, real_harmonics
from ase_nextham.converters import guess_format, read, write
from ase_nextham.converters import sisl as format_sisl
from ase_nextham.converters.sisl import from_sisl, to_sisl
from ase_nextham.matrix import AtomPairs, LCAOMatrix
from ase_nextham.testing import random_lcao

K = np.array([[0.1, -0.3, 0.45], [0.27, 0.11, -0.2]])
SPINS = ["unpolarised", "collinear", "spinor"]


@pytest.fixture
def sisl():
    return pytest.importorskip("sisl", reason="sisl is not installed")


def some(spin="unpolarised", symbols="GaAs", seed=0):
    data = random_lcao(seed, symbols, spin=spin, magnetic=True)
    return replace(data, h0=None, position=None)


def test_without_sisl_it_is_told_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sisl", None)
    (tmp_path / "a.HSX").write_bytes(np.array([4, 1, 4], "<i4").tobytes())
    assert guess_format(tmp_path / "a.HSX") == "sisl"
    for call in (
        lambda: read(tmp_path / "a.HSX"),
        lambda: write(tmp_path / "b.HSX", some()),
        lambda: from_sisl(None),
    ):
        with pytest.raises(ValueError, match="this needs sisl .*install it with: pip install sisl"):
            call()
    assert not (tmp_path / "b.HSX").exists()


def test_other_files_are_not_taken(tmp_path):
    for name, content in (("a.HSX", b"HSX"), ("a.TSHS", b"\0" * 100), ("a.txt", b"\4\0\0\0" * 3)):
        (tmp_path / name).write_bytes(content)
        assert not format_sisl.recognises(tmp_path / name)
    assert not format_sisl.recognises(tmp_path)


@pytest.mark.parametrize("spin", SPINS)
def test_sisl_finds_our_bands(sisl, spin):
    data = some(spin, "GaAsH")
    theirs = to_sisl(data)
    expected = eigenvalues(data.hamiltonian, data.overlap, K)
    channels = [{"spin": 0}, {"spin": 1}] if spin == "collinear" else [{}]
    found = [[theirs.eigh(k, **options) for k in K] for options in channels]
    assert_allclose(found, expected, atol=1e-11)  # eV


@pytest.mark.parametrize("l", range(5))
def test_the_harmonics_of_sisl_are_those_of_its_orbitals(sisl, l):
    """m = -l ... l with the sign (-1)^m: what the order of orbitals here rests on."""
    points = np.random.default_rng(l).normal(size=(20, 3))
    r = np.linspace(0, 10, 50)
    radial = sisl.SphericalOrbital(l, (r, np.ones_like(r)), R=10.0)
    for orbital in radial.toAtomicOrbital(n=l + 1):
        expected = (-1) ** orbital.m * real_harmonics(l, points)[:, orbital.m + l]
        assert_allclose(orbital.psi(points), expected, atol=1e-12)


@pytest.mark.parametrize("spin", SPINS)
def test_objects_survive_the_round_trip(sisl, spin):
    data = some(spin, "GaAsGaAs")
    found = from_sisl(to_sisl(data))
    assert found.symbols == data.symbols
    assert found.basis.shells == data.basis.shells
    assert found.hamiltonian.spin == spin
    assert_array_equal((found.hamiltonian - data.hamiltonian).data, 0)
    assert_array_equal((found.overlap - data.overlap).data, 0)
    assert_array_equal(found.atoms.positions, data.atoms.positions)
    assert_allclose(found.basis.radius["Ga"], data.basis.radius["Ga"])


@pytest.mark.parametrize("spin", SPINS)
def test_hsx_files_hold_everything_but_the_note(sisl, tmp_path, spin):
    data = some(spin, "GaAsGaAs").translated(np.random.default_rng(1).integers(-2, 3, (4, 3)))
    write(tmp_path / "a.HSX", data)
    (tmp_path / "a.HSX.nextham.json").unlink()
    found = read(tmp_path / "a.HSX")
    assert found.symbols == data.symbols
    assert found.basis.shells == data.basis.shells
    assert np.abs((found.hamiltonian - data.hamiltonian).data).max() < 1e-14
    assert np.abs((found.overlap - data.overlap).data).max() == 0
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-14)


def test_tshs_files_need_the_note(sisl, tmp_path):
    data = replace(some("spinor"), fermi_level=1.25)
    write(tmp_path / "a.TSHS", data)
    found = read(tmp_path / "a.TSHS")
    assert found.atoms.get_chemical_symbols() == ["Ga", "As"]
    assert np.abs((found.hamiltonian - data.hamiltonian).data).max() < 1e-14
    assert found.fermi_level == data.fermi_level
    (tmp_path / "a.TSHS.nextham.json").unlink()
    with pytest.raises(ValueError, match=r"a.TSHS: .*without quantum numbers l and m; read"):
        read(tmp_path / "a.TSHS")


def test_labels_of_one_element_survive_as_tags(sisl, tmp_path):
    data = some(symbols="H2")
    basis = Basis({"H1": (0, 0, 1), "H2": (0, 0, 1)})
    matrices = {
        name: LCAOMatrix(basis, ("H1", "H2"), m.pairs, m.spin, m.data)
        for name, m in (("overlap", data.overlap), ("hamiltonian", data.hamiltonian))
    }
    data = replace(data, **matrices)
    write(tmp_path / "a.HSX", data)
    (tmp_path / "a.HSX.nextham.json").unlink()
    for found in (read(tmp_path / "a.HSX"), from_sisl(to_sisl(data))):
        assert found.symbols == ("H1", "H2")
        assert found.atoms.get_chemical_symbols() == ["H", "H"]


def test_orthogonal_and_noncollinear_objects_of_sisl_are_read(sisl):
    s = [sisl.AtomicOrbital(n=1, l=0, m=0, zeta=1, R=1.1)]
    chain = sisl.Geometry(
        [[0, 0, 0]], sisl.Atom(1, s), lattice=sisl.Lattice([1, 10, 10], [3, 1, 1])
    )
    H = sisl.Hamiltonian(chain, spin="non-collinear")
    H[0, 0] = [0.5, -0.5, 0.25, 0.125]  # uu, dd, Re ud, Im ud
    H[0, 0, (1, 0, 0)] = H[0, 0, (-1, 0, 0)] = [1.0, 2.0, 0.0, 0.0]
    data = from_sisl(H)
    assert data.symbols == ("H",)
    assert_allclose(data.overlap.at_k((0.3, 0, 0)), np.eye(1))
    expected = [[0.5, 0.25 + 0.125j], [0.25 - 0.125j, -0.5]]
    assert_allclose(data.hamiltonian.block(0, 0, (0, 0, 0)), expected)
    k = (0.1, 0, 0)
    assert_allclose(np.linalg.eigvalsh(data.hamiltonian.at_k(k)), H.eigh(k), atol=1e-14)


def test_orbitals_may_stand_in_any_order(sisl):
    p = [sisl.AtomicOrbital(n=2, l=1, m=m, zeta=1, R=2.0) for m in (0, 1, -1)]
    s = [sisl.AtomicOrbital(n=2, l=0, m=0, zeta=1, R=2.0)]
    orbitals = [p[1], s[0], p[0], p[2]]
    molecule = sisl.Geometry([[0, 0, 0]], sisl.Atom("C", orbitals), lattice=[9, 9, 9])
    H = sisl.Hamiltonian(molecule)
    numbers = np.arange(16.0).reshape(4, 4)
    numbers = numbers + numbers.T
    for i, j in np.ndindex(4, 4):
        H[i, j] = numbers[i, j]
    data = from_sisl(H)
    assert data.basis.shells["C"] == (1, 0)
    ours = [2, 0, 3, 1]  # m = 0, 1, -1, and s
    assert_allclose(data.hamiltonian.block(0, 0, (0, 0, 0)), numbers[np.ix_(ours, ours)])


def test_what_has_no_counterpart_is_refused(sisl, tmp_path):
    plain = sisl.Hamiltonian(sisl.geom.graphene())
    with pytest.raises(ValueError, match="C: orbital 0 is .*without quantum numbers l and m"):
        from_sisl(plain)
    half = [sisl.AtomicOrbital(n=2, l=1, m=m, zeta=1, R=2.0) for m in (0, 1)]
    geometry = sisl.Geometry([[0, 0, 0]], sisl.Atom("C", half), lattice=[9, 9, 9])
    with pytest.raises(ValueError, match=r"C: a shell l = 1 has orbitals m = \[0, 1\] only"):
        from_sisl(sisl.Hamiltonian(geometry))
    full = [sisl.AtomicOrbital(n=1, l=0, m=0, zeta=1, R=2.0)]
    geometry = sisl.Geometry([[0, 0, 0]], sisl.Atom("C", full), lattice=[9, 9, 9])
    with pytest.raises(ValueError, match="no superconductors"):
        from_sisl(sisl.Hamiltonian(geometry, spin="nambu", dtype=complex))
    with pytest.raises(ValueError, match=r"are written to files named \*.HSX or \*.TSHS"):
        write(tmp_path / "a.xyz", some(), format="sisl")
    with pytest.raises(ValueError, match="holds no Hamiltonian"):
        write(tmp_path / "a.HSX", replace(some(), hamiltonian=None))
    H = some().hamiltonian
    pairs = AtomPairs([0, 0], [0, 0], [[-1, 0, 0], [1, 0, 0]])
    n = H.norbitals[0] ** 2
    hop = LCAOMatrix(H.basis, H.symbols, pairs, H.spin, np.repeat([1j, -1j], n))
    with pytest.raises(
        ValueError, match="the Hamiltonian is complex, but SIESTA's without spin-or"
    ):
        write(tmp_path / "a.HSX", replace(some(), hamiltonian=hop))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "absent.HSX", "sisl")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6))
def test_truncated_files_are_refused(sisl, tmp_path, length):
    path = tmp_path / "a.HSX"
    if not (tmp_path / "good.HSX").exists():
        write(tmp_path / "good.HSX", some(symbols="H2"))
    content = (tmp_path / "good.HSX").read_bytes()
    path.write_bytes(content[: length % len(content)])
    with pytest.raises(ValueError, match=r"a.HSX: "):
        read(path, "sisl")
