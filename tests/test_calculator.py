import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase.calculators.calculator import CalculatorSetupError, PropertyNotImplementedError
from ase.dft.dos import DOS
from ase.spectrum.band_structure import BandStructure
from numpy.testing import assert_allclose

from ase_nextham import LCAOData, NextHAMCalculator, hdf5
from ase_nextham.converters import read, write
from ase_nextham.testing import random_lcao

DATA = random_lcao(3, "GaAs")


class Recorded:
    """A backend that counts how often it is asked, whatever the structure."""

    def __init__(self, data: LCAOData = DATA):
        self.data, self.calls = data, 0

    def compute(self, atoms):
        self.calls += 1
        return self.data


def calculator(**parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no model has a test of its own
        return NextHAMCalculator(**{"h0": Recorded(), "kpts": (2, 2, 2), **parameters})


@pytest.fixture
def atoms():
    return DATA.atoms.copy()


def test_without_a_model_the_hamiltonian_is_h0_and_it_says_so(atoms):
    with pytest.warns(UserWarning, match=r"no model given: the Hamiltonian is H\(0\)"):
        calc = NextHAMCalculator(h0=Recorded())
    assert calc.get_hamiltonian(atoms) is DATA.h0
    assert calc.get_overlap(atoms) is DATA.overlap
    assert calc.get_data(atoms).hamiltonian is None  # DATA has a self-consistent one


class Shift:
    """A model whose correction moves all bands by one energy."""

    def __init__(self, energy: float):
        self.energy, self.calls = energy, 0

    def predict(self, data):
        self.calls += 1
        return self.energy * data.overlap.with_spin(data.h0.spin)


def test_the_hamiltonian_is_h0_and_what_the_model_adds(atoms):
    model, bare = Shift(0.25), calculator()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # with a model there is nothing to warn of
        calc = NextHAMCalculator(model, h0=Recorded(), kpts=(2, 2, 2))
    expected = DATA.h0 + 0.25 * DATA.overlap
    assert_allclose(calc.get_hamiltonian(atoms).data, expected.data, atol=1e-12)
    assert_allclose(calc.get_fermi_level(atoms), bare.get_fermi_level(atoms) + 0.25, atol=1e-9)
    path = atoms.cell.bandpath(npoints=5)
    moved, straight = (c.band_structure(atoms, path).energies for c in (calc, bare))
    assert_allclose(moved, straight + 0.25, atol=1e-9)
    assert model.calls == 1
    calc.set(model=None)
    assert calc.get_hamiltonian(atoms) is DATA.h0


def test_a_model_that_is_not_there_is_named(atoms, tmp_path):
    calc = calculator(model=tmp_path / "soc")
    with pytest.raises(FileNotFoundError, match="soc: there is no model here: model.json is miss"):
        calc.get_hamiltonian(atoms)


def test_nothing_is_computed_twice_for_the_same_structure(atoms):
    calc = calculator()
    calc.get_fermi_level(atoms)
    calc.get_hamiltonian(atoms.copy())
    calc.band_structure(atoms, atoms.cell.bandpath(npoints=10))
    calc.set(kpts=(3, 3, 3))
    calc.get_fermi_level(atoms)
    assert calc.parameters.h0.calls == 1


def test_a_moved_atom_is_another_structure(atoms):
    calc = calculator()
    calc.get_hamiltonian(atoms)
    atoms.positions[0, 0] += 1e-6
    calc.get_hamiltonian(atoms)
    assert calc.parameters.h0.calls == 2


def test_a_new_mesh_gives_new_eigenvalues(atoms):
    calc = calculator()
    before = calc.get_property("eigenvalues", atoms)
    calc.set(kpts=(3, 3, 3))
    after = calc.get_property("eigenvalues", atoms)
    assert before.shape[0] == after.shape[0] == 1
    assert before.shape[1] < after.shape[1]


def test_a_new_backend_is_asked_again(atoms):
    calc = calculator()
    calc.get_hamiltonian(atoms)
    other = Recorded()
    calc.set(h0=other)
    calc.get_hamiltonian(atoms)
    assert other.calls == 1


def test_results_are_those_that_ase_knows(atoms):
    calc = calculator()
    atoms.calc = calc
    calc.get_property("fermi_level", atoms)
    properties = calc.export_properties()
    assert properties["eigenvalues"].shape == properties["occupations"].shape
    assert calc.get_number_of_spins() == 1
    assert_allclose(calc.get_k_point_weights().sum(), 1)
    electrons = (calc.get_k_point_weights()[:, None] * properties["occupations"][0]).sum()
    assert electrons == pytest.approx(DATA.nelectrons, abs=1e-8)


def test_ase_dos_works(atoms):
    atoms.calc = calc = calculator()
    calc.get_fermi_level(atoms)
    dos = DOS(calc, width=0.2, npts=1001, window=(-40, 40))
    integral = dos.get_dos().sum() * (dos.get_energies()[1] - dos.get_energies()[0])
    assert integral == pytest.approx(2 * DATA.overlap.dimension, rel=0.01)


def test_bands_come_as_ase_band_structure_with_the_fermi_level_of_the_mesh(atoms, tmp_path):
    calc = calculator()
    structure = calc.band_structure(atoms, path=atoms.cell.bandpath(npoints=12))
    assert isinstance(structure, BandStructure)
    assert structure.energies.shape == (1, 12, DATA.overlap.dimension)
    assert structure.reference == pytest.approx(calc.get_fermi_level(atoms))
    structure.write(tmp_path / "bands.json")


def test_metal_and_insulator_are_told_apart(atoms, root):
    assert calculator().get_band_gap(atoms) is None
    gaas = hdf5.read(root / "examples" / "data" / "GaAs_soc.h5")
    gap = calculator(h0=Recorded(gaas), kpts=(4, 4, 4)).get_band_gap(gaas.atoms)
    assert gap.indirect == pytest.approx(0.9627, abs=1e-3)


def test_energy_and_forces_are_refused_with_the_reason(atoms):
    for calc in (calculator(), calculator(model=Shift(0.1))):
        atoms.calc = calc
        with pytest.raises(PropertyNotImplementedError, match="not the total energy"):
            atoms.get_potential_energy()
        for ask in (atoms.get_forces, atoms.get_stress):
            with pytest.raises(
                PropertyNotImplementedError, match="its bands, not '(forces|stress)'"
            ):
                ask()
        assert calc.parameters.h0.calls == 0


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="no parameter kptz; it has h0, kpts"):
        calculator(kptz=3)
    with pytest.raises(TypeError, match="no parameter kptz"):
        calculator().set(kptz=3)


def test_a_structure_must_be_given_first(atoms):
    calc = calculator()
    with pytest.raises(ValueError, match="no structure yet: pass atoms"):
        calc.get_hamiltonian()
    calc.get_hamiltonian(atoms)
    assert calc.get_hamiltonian() is DATA.h0


def test_a_path_of_another_cell_is_refused(atoms):
    other = atoms.cell.array * 1.1
    with pytest.raises(ValueError, match="path belongs to another cell"):
        calculator().band_structure(atoms, type(atoms.cell)(other).bandpath(npoints=10))


def test_conductivity_through_the_calculator(atoms):
    sigma = calculator().get_optical_conductivity(
        atoms, omega=np.linspace(1, 5, 3), kpts=(2, 2, 2), method="kubo"
    )
    assert sigma.shape == (3, 3, 3)


@pytest.mark.parametrize(("format", "name"), [("native", "x.h5"), ("abacus", "folder")])
def test_what_is_written_can_be_read(atoms, tmp_path, format, name, energies):
    calc = calculator()
    calc.write(tmp_path / name, atoms, format=format)
    back = read(tmp_path / name)
    assert back.hamiltonian is None
    assert_allclose(energies(back), energies(replace(DATA, hamiltonian=None)), atol=1e-6)


def test_unknown_formats_are_refused(atoms, tmp_path):
    with pytest.raises(ValueError, match="unknown format 'deeph'; calc.write knows 'native'"):
        calculator().write(tmp_path / "x", atoms, format="deeph")


def test_stored_files_are_a_backend(root, tmp_path):
    path = root / "examples" / "data" / "GaAs_soc.h5"
    data = hdf5.read(path)
    swapped = data.atoms[[1, 0]]
    swapped.positions += swapped.cell[0]
    calc = calculator(h0=path)
    H = calc.get_hamiltonian(swapped)
    assert H.symbols == ("As", "Ga")
    assert calc.get_fermi_level(swapped) == pytest.approx(
        calculator(h0=Recorded(data)).get_fermi_level(data.atoms), abs=1e-6
    )


def test_stored_folders_take_the_folder_of_orbitals(tmp_path, root):
    data = hdf5.read(root / "examples" / "data" / "GaAs_soc.h5")
    write(tmp_path / "runs", data, format="abacus")
    for sidecar in tmp_path.rglob("nextham.json"):
        sidecar.unlink()  # as if ABACUS had written the folder, which then needs its orbitals
    calc = calculator(h0=tmp_path / "runs", orbital_dir=tmp_path, pseudo_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=f"species Ga is in none of {tmp_path}"):
        calc.get_hamiltonian(data.atoms)


def test_stored_files_of_another_structure_are_refused(root, atoms):
    calc = calculator(h0=root / "examples" / "data" / "GaAs_soc.h5")
    with pytest.raises(ValueError, match=r"GaAs_soc\.h5"):
        calc.get_hamiltonian(atoms)


def test_calculators_can_be_copied_and_atoms_with_them(atoms):
    atoms.calc = calculator()
    atoms.calc.get_fermi_level(atoms)
    twin = copy.deepcopy(atoms)
    assert twin.calc.get_fermi_level(twin) == atoms.calc.get_fermi_level(atoms)


def test_without_electron_number_there_is_no_fermi_level(atoms):
    calc = calculator(h0=Recorded(replace(DATA, nelectrons=None)))
    calc.get_hamiltonian(atoms)
    with pytest.raises(ValueError, match="number of valence electrons of .* is not known"):
        calc.get_fermi_level(atoms)


def test_a_backend_without_h0_is_named(atoms):
    with pytest.raises(CalculatorSetupError, match="gave no H\\(0\\)"):
        calculator(h0=Recorded(replace(DATA, h0=None))).get_hamiltonian(atoms)


def test_special_points_are_enough_for_a_path(atoms):
    structure = calculator().band_structure(atoms, "GX", npoints=7)
    assert structure.path.path == "GX"
    assert structure.energies.shape[1] == 7


def test_backends_by_name_get_the_folders_and_whether_r_is_needed(atoms, tmp_path, monkeypatch):
    given = []

    def from_name(name, **options):
        given.append((name, options))
        return Recorded(DATA if options["position"] else replace(DATA, position=None))

    monkeypatch.setattr("ase_nextham.h0.from_name", from_name)
    calc = calculator(h0="abacus", directory=tmp_path, pseudo_dir="here", orbital_dir="there")
    assert repr(calc) == "NextHAMCalculator(h0='abacus', kpts=(2, 2, 2))"
    calc.get_hamiltonian(atoms)
    calc.get_optical_conductivity(atoms, omega=np.ones(1), kpts=(1, 1, 1), method="kubo")
    folders = {"pseudo_dir": "here", "orbital_dir": "there", "directory": str(tmp_path)}
    assert given == [
        ("abacus", {**folders, "position": False}),
        ("abacus", {**folders, "position": True}),
    ]


def test_spin_is_for_backends_that_compute(root, atoms):
    calc = calculator(h0=root / "examples" / "data" / "GaAs_soc.h5", nspin=1)
    with pytest.raises(CalculatorSetupError, match="nspin and moments are for what computes H"):
        calc.get_hamiltonian(atoms)
