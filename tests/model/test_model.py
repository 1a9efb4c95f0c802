"""A model at work: the laws that dH obeys, and the data that is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from ase_nextham import bands
from ase_nextham.model import Model, ModelInfo, bundle
from ase_nextham.testing import SHELLS, check_model, random_lcao

TINY = {
    "features": "8x0e+4x0o+4x1o+4x1e+4x2e+4x2o+4x3o",
    "layers": 2,
    "heads": 2,
    "gaussians": 12,
    "invariants": 16,
}
SINGLE, DOUBLE = (torch.float32, 1e-4), (torch.float64, 1e-10)


def model_with(dtype=torch.float64, windows=(0, 1, 2.5, 4), part="scalar", **options) -> Model:
    torch.manual_seed(0)
    info = ModelInfo(
        network="nextham",
        shells=SHELLS,
        windows=windows,
        cutoff=windows[-1],
        spin=part,
        orbitals={"Ga": f"{31:064x}"},
        hyperparameters=TINY | {"corrects": part} | options,
    )
    return Model(info, bundle.build(info).to(dtype))


def data_with(spin: str = "unpolarised", **options):
    return random_lcao(0, "GaAs", spin=spin, **options)  # Ga has f shells


# --- laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [SINGLE, DOUBLE])
@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_the_scalar_correction_obeys_all_laws(spin, dtype, tolerance):
    check_model(model_with(dtype), data_with(spin), tolerance=tolerance, smooth=False)


def test_the_correction_is_smooth_when_an_atom_moves():
    check_model(model_with(layers=1), data_with(), tolerance=1e-10, smooth=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [SINGLE, DOUBLE])
@pytest.mark.parametrize("part", ["collinear", "spinor"])
def test_magnetic_corrections_obey_all_laws(part, dtype, tolerance):
    model = model_with(dtype, part=part, reads=part, layers=1, windows=(0, 3))
    check_model(model, data_with(part, magnetic=True), tolerance=tolerance, smooth=False)


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": "elements"},
        {"target": "hamiltonian"},
        {"inputs": "elements", "target": "hamiltonian"},
        {"tracegrad": False},
        {"windows": (0, 4)},
        {"reads": "spinor", "windows": (0, 4)},
    ],
    ids=str,
)
def test_every_ablation_runs_and_obeys_all_laws(options):
    check_model(model_with(**options), data_with("spinor"), tolerance=1e-10, smooth=False)


def test_check_model_finds_what_breaks_a_law():
    class Broken(Model):
        def __init__(self, break_):
            model = model_with(layers=1, windows=(0, 3))
            super().__init__(model.info, model.module)
            self.break_ = break_

        def predict_all(self, several, *, memory=1.0):
            found = super().predict_all(several, memory=memory)
            return [self.break_(dh, data) for dh, data in zip(found, several, strict=True)]

    def in_one_triangle(dh, data):
        upper = np.repeat(dh.pairs.i <= dh.pairs.j, np.diff(dh.offsets))
        return replace(dh, data=dh.data * upper)

    def along_x(dh, data):
        return dh * float(1 + abs(data.atoms.cell[0, 0]))

    def larger_for_the_first(dh, data):
        first = np.repeat((dh.pairs.i == 0) & (dh.pairs.j == 0), np.diff(dh.offsets))
        return replace(dh, data=dh.data * (1 + first))

    for break_, message in (
        (lambda dh, data: dh * 0.0, "zero everywhere"),
        (in_one_triangle, "not Hermitian"),
        (along_x, "does not turn"),
        (larger_for_the_first, "changes when atoms are reordered"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_model(Broken(break_), data_with(), tolerance=1e-10)


def test_check_model_finds_jumps():
    class Jumping:
        def predict(self, data, *, memory=1.0):
            return self.predict_all([data])[0]

        def predict_all(self, several, *, memory=1.0):
            # invariant, but not continuous: every block times a step of the distance
            return [replace(data.h0, data=self.steps(data) * data.h0.data) for data in several]

        def steps(self, data):
            pairs, atoms = data.pairs, data.atoms
            vectors = atoms.positions[pairs.j] - atoms.positions[pairs.i]
            r = np.linalg.norm(vectors + pairs.R @ atoms.cell.array, axis=1)
            return np.repeat(np.round(4 * r), np.diff(data.h0.offsets))

    with pytest.raises(AssertionError, match="not smooth"):
        check_model(Jumping(), data_with(), tolerance=1e-10)


def test_the_same_seed_gives_the_same_bits():
    data = data_with()
    assert_array_equal(model_with().predict(data).data, model_with().predict(data).data)


def test_predicting_needs_no_graph_and_changes_nothing():
    model, data = model_with(), data_with()
    model.predict(data)
    assert all(w.grad is None for w in model.module.parameters())
    assert not model.module.training


def test_no_structures_give_no_corrections():
    assert model_with().predict_all([]) == []


def test_the_correction_reaches_the_bands():
    data = data_with("spinor")
    H = data.h0 + model_with().predict(data)
    kpts = np.array([[0.1, 0.2, 0.3]])
    before = bands.eigenvalues(data.h0, data.overlap, kpts)
    after = bands.eigenvalues(H, data.overlap, kpts)
    assert np.abs(after - before).max() > 1e-3
    # time reversal and inversion-free spin splitting aside, as many bands as before
    assert after.shape == before.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_gpu_gives_the_same_bits_each_time_and_the_numbers_of_the_cpu():
    data, model = data_with("spinor"), model_with()
    expected = model.predict(data).data
    model.to("cuda")
    first, second = model.predict(data).data, model.predict(data).data
    assert_array_equal(first, second)
    assert np.abs(first - expected).max() < 1e-10 * np.abs(expected).max()


# --- data of another kind --------------------------------------------------------------------


def with_basis(data, **changes):
    basis = replace(data.basis, **changes)
    return replace(
        data,
        overlap=replace(data.overlap, basis=basis),
        h0=replace(data.h0, basis=basis),
        hamiltonian=None,
        position=None,
    )


def test_other_elements_are_refused():
    model = model_with()
    info = replace(model.info, shells={"As": SHELLS["As"]}, orbitals={})
    with pytest.raises(
        ValueError, match="Ga: the model was not trained with this element; it knows As"
    ):
        Model(info, model.module).predict(data_with())


def test_other_shells_are_refused():
    model = model_with()
    shells = SHELLS | {"Ga": (0, 0, 1, 2, 2)}
    with pytest.raises(ValueError, match=r"Ga: orbitals \[0, 0, 1, 1, 2, 3\] .* differ from"):
        Model(replace(model.info, shells=shells), model.module).predict(data_with())


def test_other_orbitals_are_refused():
    data = with_basis(data_with(), fingerprint={"Ga": "cd" * 32})
    with pytest.raises(ValueError, match="Ga: orbital file differs from the one the model was"):
        model_with().predict(data)


def test_other_pseudopotentials_are_refused():
    model = model_with()
    model = Model(replace(model.info, pseudopotentials={"As": "ef" * 32}), model.module)
    data = replace(data_with(), source={"pseudopotentials": {"As": "01" * 32}})
    with pytest.raises(ValueError, match="As: pseudopotential differs from the one the model"):
        model.predict(data)
    model.predict(replace(data, source={"pseudopotentials": {"As": "ef" * 32}}))


def test_files_that_are_not_known_are_warned_about():
    data = with_basis(data_with(), fingerprint={})
    with pytest.warns(
        UserWarning, match=r"were not compared with those of the model: Ga \(orbital"
    ):
        model_with().predict(data)


def test_data_without_h0_is_refused():
    data = replace(data_with(), h0=None, hamiltonian=None)
    with pytest.raises(ValueError, match="has no H\\(0\\), from which the model predicts"):
        model_with().predict(data)


def test_data_in_another_convention_is_refused():
    data = data_with()
    other = replace(
        data,
        overlap=data.overlap.in_convention("deeph"),
        h0=data.h0.in_convention("deeph"),
        hamiltonian=None,
        position=None,
    )
    with pytest.raises(ValueError, match="'abacus', the data has 'deeph'"):
        model_with().predict(other)


def test_a_species_label_is_known_by_its_element():
    data = data_with()
    names = {"Ga": "Ga1", "As": "As"}
    basis = type(data.basis)(
        {names[n]: ls for n, ls in data.basis.shells.items()},
        radius={names[n]: r for n, r in data.basis.radius.items()},
        fingerprint={names[n]: f for n, f in data.basis.fingerprint.items()},
    )
    symbols = tuple(names[n] for n in data.symbols)
    labelled = replace(
        data,
        overlap=replace(data.overlap, basis=basis, symbols=symbols),
        h0=replace(data.h0, basis=basis, symbols=symbols),
        hamiltonian=None,
        position=None,
    )
    model = model_with()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.predict(labelled)
    assert np.abs(found.data - model.predict(data).data).max() < 1e-12


def test_numbers_that_are_not_finite_are_reported():
    data = data_with()
    h0 = replace(data.h0, data=np.where(np.arange(data.h0.data.size) == 7, np.nan, data.h0.data))
    with pytest.raises(ValueError, match="numbers that are not finite"):
        model_with().predict(replace(data, h0=h0, hamiltonian=None))


def test_other_pseudopotentials_of_an_abacus_run_are_refused():
    model = model_with()
    model = Model(replace(model.info, pseudopotentials={"As": "ef" * 32}), model.module)
    run = {"operator": "h0", "species": {"As": {"pseudopotential_sha256": "01" * 32}}}
    for source in (run, {"runs": {"get_hs": run}}):
        with pytest.raises(ValueError, match="As: pseudopotential differs from the one the model"):
            model.check(replace(data_with(), source=source))
    # that of another Hamiltonian of the structure plays no role
    other = {"runs": {"scf": run | {"operator": "hamiltonian"}}}
    with pytest.warns(UserWarning, match=r"not known with which files.*As \(pseudopotential\)"):
        model.check(replace(data_with(), source=other))
