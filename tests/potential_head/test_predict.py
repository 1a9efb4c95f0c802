"""A model of the density at work: laws of its dH, what it refuses, and how sure it says it is."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.calculator import CalculatorSetupError
from numpy.testing import assert_allclose

from ase_nextham import load_model
from ase_nextham.calculator import NextHAMCalculator
from ase_nextham.comparison import band_mae, gauge_mae, reference
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.matrix import AtomPairs
from ase_nextham.model import bundle
from ase_nextham.potential_head import dh_from_coefficients
from ase_nextham.potential_head.predict import DensityModel
from ase_nextham.potential_head.spread import Spread


@pytest.fixture
def data(engine, radical):
    return engine().compute(radical)


# --- dH ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nspin", [1, 4])
def test_dh_is_hermitian_and_invariant_under_time_reversal_on_the_pairs_of_h0(
    engine, radical, random_model, nspin
):
    data = engine(nspin=nspin).compute(radical)
    dh = random_model(data).predict(data)
    assert dh.spin == data.h0.spin == ("spinor" if nspin == 4 else "unpolarised")
    assert dh.pairs.same_as(data.h0.pairs)
    assert np.abs(dh.data).max() > 1e-3  # eV
    assert dh.hermitian_error() < 1e-12
    assert dh.time_reversal_error() < 1e-12
    assert not np.iscomplexobj(dh.data) or not dh.data.imag.any()


def test_a_network_does_not_see_the_spin_of_h0(engine, radical, random_model):
    scalar = engine().compute(radical)
    lifted = replace(scalar, h0=scalar.h0.with_spin("spinor"))
    _, expected = random_model(scalar).coefficients(scalar)
    part, found = random_model(scalar).coefficients(lifted)
    assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
    assert part.nspin == 4


def test_dh_of_spinors_is_a_scalar(engine, radical, random_model):
    data = engine(nspin=4).compute(radical)
    dh = random_model(data).predict(data)
    for _, _, _, elements in dh.block_groups():
        block = dh.data[elements]
        assert np.array_equal(block[:, ::2, ::2], block[:, 1::2, 1::2])
        assert not block[:, ::2, 1::2].any()
        assert not block[:, 1::2, ::2].any()


def test_dh_is_that_of_the_mean_of_the_members(data, random_model):
    model = random_model(data)
    part, coefficients = model.coefficients(data)
    assert len(coefficients) == 3
    expected = dh_from_coefficients(part, model.expansion, coefficients.mean(axis=0))
    found = model.predict(data)
    assert_allclose(found.data, expected.on_pairs(found.pairs).data, atol=1e-12)  # eV
    first = dh_from_coefficients(part, model.expansion, coefficients[0])
    assert np.abs((first - expected).data).max() > 1e-4


def test_dh_has_no_pairs_that_h0_has_not(data, random_model):
    largest = np.maximum.reduceat(np.abs(data.overlap.data), data.overlap.offsets[:-1])
    kept = largest > 1e-4
    pairs = AtomPairs(data.pairs.i[kept], data.pairs.j[kept], data.pairs.R[kept])
    assert 2 < len(pairs) < len(data.pairs)
    cut = {name: getattr(data, name).cut_to(pairs)[0] for name in ("overlap", "h0")}
    model, own = random_model(data), replace(data, **cut)
    part, coefficients = model.coefficients(own)
    dh = dh_from_coefficients(part, model.expansion, coefficients.mean(axis=0))
    found = model.predict(own)
    assert found.pairs.same_as(pairs)
    assert_allclose(found.data, dh.cut_to(pairs)[0].data, atol=1e-12)  # eV


def test_a_structure_is_worked_on_once(data, random_model, monkeypatch):
    calls = []
    original = NativeH0.local_part
    monkeypatch.setattr(NativeH0, "local_part", lambda *a: calls.append(a) or original(*a))
    model = random_model(data)
    first = model.predict(data)
    model.spread(data)
    assert model.predict(data) is first
    assert len(calls) == 1
    model.predict(replace(data, h0=1.001 * data.h0))
    assert len(calls) == 2


def test_single_precision_gives_the_same_to_its_digits(data, random_model):
    model = random_model(data)
    before = model.predict(data)
    after = model.to(dtype=torch.float32).predict(data)
    difference = np.abs((after - before).data).max()
    assert 0 < difference < 1e-4 * np.abs(before.data).max()


# --- what is refused -----------------------------------------------------------------------------


def test_magnetic_structures_are_refused(engine, radical, data, random_model):
    model = random_model(data)
    radical.set_initial_magnetic_moments([1.0, 0.0])
    collinear = engine(nspin=2, moments="initial").compute(radical)
    for magnetic in (collinear, replace(data, atoms=radical)):
        with pytest.raises(ValueError, match="the structure is magnetic; the model changes dens"):
            model.predict(magnetic)


def test_data_without_h0_is_refused(data, random_model):
    with pytest.raises(ValueError, match=r"has no H\(0\), from which the model predicts"):
        random_model(data).predict(replace(data, h0=None, hamiltonian=data.h0))


def test_orbitals_that_are_not_those_of_h0_are_refused(engine, radical, data, random_model):
    model = random_model(data, orbitals={"H": "H_1s.orb", "O": "O_1s1p.orb"})
    with pytest.raises(ValueError, match="H.0. was made with other orbitals than those in .*: H"):
        model.predict(data)
    other = engine(orbitals={"H": "H_1s.orb", "O": "O_1s1p.orb"}).compute(radical)
    with pytest.raises(ValueError, match="H: orbitals .* differ from .* was trained with"):
        random_model(data).predict(other)


def test_pseudopotentials_that_are_not_those_of_training_are_refused(data, random_model):
    known = {"pseudopotentials": {"O": "0" * 64}}
    with pytest.raises(ValueError, match="O: pseudopotential differs from the one"):
        random_model(data, known=known).predict(data)


@pytest.mark.filterwarnings("ignore:it is not known with which files")
@pytest.mark.parametrize("noted", ["with H(0)", "by the model"])
def test_pseudopotentials_that_are_not_those_of_h0_are_refused(
    noted, engine, data, random_network, files, tmp_path
):
    info, module = random_network(data)
    if noted == "by the model":
        info = replace(info, pseudopotentials=data.source["pseudopotentials"])
        data = replace(data, source={})
    folder = tmp_path / "pseudo"
    folder.mkdir()
    for path in Path(files["pseudo_dir"]).glob("*.upf"):
        (folder / path.name).write_text(path.read_text() + ("\n" if path.name == "O.upf" else ""))
    other = engine()
    other.pseudo_dir = folder
    model = DensityModel(info, module, other)
    with pytest.raises(ValueError, match=f"O: the pseudopotential in {folder} .* say where that"):
        model.predict(data)


def test_folders_without_the_files_are_named(data, random_network, tmp_path, monkeypatch):
    info, module = random_network(data)
    with pytest.raises(CalculatorSetupError, match=f"no pseudopotential in {tmp_path}"):
        DensityModel(info, module, NativeH0(tmp_path, tmp_path)).predict(data)
    monkeypatch.delenv("ABACUS_PP_PATH", raising=False)
    with pytest.raises(CalculatorSetupError, match="no pseudopotential: give pseudo_dir"):
        DensityModel(info, module).predict(data)


def test_an_element_that_was_not_seen_brings_a_warning_and_a_prediction(
    engine, radical, data, random_model
):
    alone = radical.copy()
    alone.numbers[:] = 1
    model = random_model(engine().compute(alone))
    assert model.info.elements == ("H",)
    with pytest.warns(UserWarning, match="was not trained with O, only with H; expect larger"):
        dh = model.predict(data)
    assert np.abs(dh.data).max() > 1e-3  # eV


def test_weights_that_are_not_finite_are_told(data, random_model):
    model = random_model(data)
    next(model.module.parameters()).data[:] = torch.inf
    with pytest.raises(ValueError, match="gave numbers that are not finite"):
        model.predict(data)


# --- reading -------------------------------------------------------------------------------------


def test_a_model_is_read_with_the_head_that_it_has(root, data, random_network, files, tmp_path):
    bundle.save(tmp_path / "model", *random_network(data))
    model = load_model(tmp_path / "model", **files)
    assert model.info.head == "density"
    assert repr(model) == "DensityModel(3 members; H, O)"
    assert model.engine.pseudo_dir == files["pseudo_dir"]
    assert model.device.type == "cpu"
    pairs = load_model(root / "examples" / "data" / "mini_model", **files)
    assert pairs.info.head == "pairs"
    assert not hasattr(pairs, "spread")


# --- the spread ----------------------------------------------------------------------------------


def test_the_spread_is_the_mean_over_members(data, random_model):
    model = random_model(data)
    part, coefficients = model.coefficients(data)
    together = data.h0 + model.predict(data)
    bands = reference(replace(data, hamiltonian=together))
    members = [
        data.h0 + dh_from_coefficients(part, model.expansion, own).on_pairs(data.pairs)
        for own in coefficients
    ]
    elements = [gauge_mae(one, together, data.overlap) for one in members]
    energies = [band_mae(one, data.overlap, bands) for one in members]
    spread = model.spread(data)
    assert spread.dh == pytest.approx(np.mean(elements), rel=1e-4)
    assert spread.bands == pytest.approx(np.mean(energies), rel=1e-4)
    assert spread.correction == pytest.approx(gauge_mae(data.h0, together, data.overlap))
    assert (spread.expected_dh, spread.expected_bands) == (None, None)
    assert min(spread.dh, spread.bands) > 1e-5  # eV


def test_the_spread_of_spinors_is_counted_as_that_without_spin(engine, radical, random_model):
    scalar = engine().compute(radical)
    lifted = replace(scalar, h0=scalar.h0.with_spin("spinor"))
    first, second = (random_model(scalar).spread(data) for data in (scalar, lifted))
    # but for exchange and correlation of thin densities, where ABACUS takes other formulas
    assert second.bands == pytest.approx(first.bands, rel=0.1)
    assert second.dh / second.correction == pytest.approx(first.dh / first.correction, rel=0.1)


def test_a_calibration_turns_spreads_into_errors(data, random_model):
    known = {"training": {"calibration": {"dh": 2.0, "bands": 3.0, "samples": 5}}}
    spread = random_model(data, known=known).spread(data)
    assert spread.expected_dh == pytest.approx(2 * spread.dh)
    assert spread.expected_bands == pytest.approx(3 * spread.bands)


@pytest.mark.parametrize("members", [1, 3])
def test_members_that_do_not_differ_say_so(data, random_model, members):
    model = random_model(data, members)
    for member in model.module.experts[1:]:
        member.load_state_dict(model.module.experts[0].state_dict())
    spread = model.spread(data)
    assert spread.silent
    assert not spread.doubtful
    assert spread.dh < 1e-9 * spread.correction
    assert "do not differ, so they tell nothing about the error" in spread.in_words()


def test_a_spread_is_said_in_plain_words():
    spread = Spread(dh=1.234e-5, bands=0.14149, correction=1e-3)
    assert spread.in_words() == (
        "the networks of the model disagree by 0.012 meV about elements of H and by 140 meV about "
        "bands; it was not calibrated, so the error is not known"
    )
    spread = replace(spread, expected_dh=2.5e-5, expected_bands=0.2)
    assert spread.in_words() == (
        "expected error: 0.025 meV of elements of H, 200 meV of bands up to 5 eV above the Fermi "
        "level, on average (the networks of the model disagree by 0.012 meV and 140 meV)"
    )


@pytest.mark.parametrize("expected", [None, 4.5e-4])
def test_a_model_says_that_it_hardly_knows_a_crystal(expected):
    spread = Spread(4.5e-4 if expected is None else 2e-4, 0.1, 1e-3, expected, expected)
    assert spread.doubtful
    text = "That is 45 % of the correction to H(0) itself: the model hardly knows such a crystal"
    assert spread.in_words().endswith(text)
    assert not replace(spread, correction=2e-3).doubtful


def test_a_correction_of_nothing_is_doubtful_where_members_differ():
    spread = Spread(1e-4, 1e-3, 0.0)
    assert spread.doubtful
    assert "inf % of the correction" in spread.in_words()
    assert Spread(0.0, 0.0, 0.0).silent


# --- beside it -----------------------------------------------------------------------------------


def test_the_calculator_gives_the_spread(data, radical, engine, random_model):
    model = random_model(data)
    calc = NextHAMCalculator(model, h0=engine(), kpts=(1, 1, 1))
    spread = calc.get_spread(radical)
    assert spread == model.spread(calc.get_data(radical))
    assert copy.deepcopy(calc).get_spread(radical) == spread
    calc.set(model=None)
    assert calc.get_spread(radical) is None


def test_a_calculator_without_a_model_has_no_spread(radical, engine):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no model
        calc = NextHAMCalculator(h0=engine(), kpts=(1, 1, 1))
    assert calc.get_spread(radical) is None
