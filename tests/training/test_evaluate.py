"""The evaluation of a model on a data set: what it counts, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ase_nextham.matrix import aligned
from ase_nextham.testing import SHELLS, random_lcao
from ase_nextham.training import metrics, metrics_bands
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source
from ase_nextham.training.dataset_split import composition_hold_out, write_split
from ase_nextham.training.evaluate import evaluate
from ase_nextham.training.report import H0, PREDICTED

MESH = {"kpts": (2, 2, 2), "npoints": 7}
STRUCTURES = {
    "GaAs_0": random_lcao(0),
    "GaAs_1": random_lcao(1),
    "SiH_0": random_lcao(2, "SiH", spin="spinor"),
}


class Share:
    """Stands for a model that predicts a share of the right correction, in its own energy zero."""

    def __init__(self, share: float, mu: float = 0.0):
        self.share, self.mu = share, mu

    def predict(self, data):
        S = data.overlap.with_spin(data.h0.spin)
        return self.share * (data.hamiltonian - data.h0) + self.mu * S


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("evaluate") / "set"
    sources = [Source(name, lambda data=data: data) for name, data in STRUCTURES.items()]
    assert not build(sources, folder, nkpts=0).failed
    return Dataset(folder)


@pytest.fixture(scope="module")
def report(dataset):
    return evaluate(Share(0.75, mu=0.4), dataset, **MESH)


def test_the_error_of_h0_is_measured_without_a_model(dataset, report):
    found = evaluate(None, dataset.path, **MESH)
    assert found.model is None
    assert found.parity is None
    assert list(found.errors) == [H0]
    assert found.errors[H0].matrix.total == report.errors[H0].matrix.total
    assert [one.name for one in found.structures] == list(STRUCTURES)


def test_a_model_that_predicts_three_quarters_leaves_a_quarter_of_the_gauge_error(report):
    first, second = (report.errors[name].matrix for name in (H0, PREDICTED))
    assert second.total.count == first.total.count
    assert second.total.mean == pytest.approx(first.total.mean / 4, rel=1e-9)
    assert second.total.largest == pytest.approx(first.total.largest / 4, rel=1e-9)
    for kind in metrics.KINDS:
        for name, error in second.by[kind].items():
            assert error.mean == pytest.approx(first.by[kind][name].mean / 4, rel=1e-6, abs=1e-12)


def test_a_perfect_model_has_perfect_bands(dataset):
    found = evaluate(Share(1.0, mu=-0.3), dataset, **MESH).errors[PREDICTED]
    for errors in (found.mesh, found.path):
        assert errors.total.count > 0
        assert errors.total.largest < 1e-8  # eV
        assert errors.ghosts == 0
    assert found.mesh.gap_error < 1e-8


def test_the_error_without_mu_is_that_of_the_hamiltonian_as_it_was_computed(dataset, report):
    for one in report.structures:
        data = STRUCTURES[one.name]
        error = np.abs((data.h0 - data.hamiltonian).data)[np.abs(data.hamiltonian.data) > 1e-9]
        assert one.errors[H0].matrix.plain.mean == pytest.approx(error.mean(), rel=1e-6)
        _, mu = aligned(data.h0, data.hamiltonian, data.overlap)
        assert one.errors[H0].matrix.mu == (pytest.approx(mu, abs=1e-9),) * 2
        level = metrics_bands.reference(data, MESH["kpts"]).fermi_level
        assert one.fermi_level == pytest.approx(level, abs=1e-6)


def test_the_whole_is_the_mean_over_elements_not_over_structures(report):
    errors = [one.errors[H0].matrix.total for one in report.structures]
    weighted = sum(e.count * e.mean for e in errors) / sum(e.count for e in errors)
    assert report.errors[H0].matrix.total.mean == pytest.approx(weighted, rel=1e-12)
    by_element = report.by_element(H0)
    assert by_element["Ga"] == pytest.approx((errors[0].mean + errors[1].mean) / 2)
    assert by_element["Si"] == by_element["H"] == pytest.approx(errors[2].mean)


def test_a_report_can_be_written_and_read_as_json(report, tmp_path):
    report.write(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["units"] == "eV"
    assert content["kpts"] == [2, 2, 2]
    assert [one["name"] for one in content["structures"]] == list(STRUCTURES)
    predicted = content["errors"][PREDICTED]
    assert predicted["gauge"]["mean"] == report.errors[PREDICTED].matrix.total.mean
    assert predicted["bands"]["ghosts"] == report.errors[PREDICTED].mesh.ghosts
    assert (
        sum(e["count"] for e in predicted["by"]["distance"].values())
        == (predicted["gauge"]["count"])
    )


def test_the_table_says_what_was_gained_and_by_which_structure(report):
    text = report.table()
    (line,) = [line for line in text.splitlines() if line.startswith("gauge MAE of H")]
    first, second, share = line.split()[4:7]
    assert float(first) == pytest.approx(1e3 * report.errors[H0].matrix.total.mean, abs=0.06)
    assert float(second) == pytest.approx(
        1e3 * report.errors[PREDICTED].matrix.total.mean, abs=0.06
    )
    assert share == "25.0"
    for word in ("ghost states", "without mu S", "condition number", "ud imaginary", "SiH_0"):
        assert word in text
    for name in (H0, PREDICTED):
        structure, worst = report.worst_band(name)
        assert f"worst band of {name}: {structure}: {worst}" in text
    assert "SiH_0" not in "\n".join(
        line for line in report.table(structures=False).splitlines() if "worst band" not in line
    )


def test_the_worst_band_is_that_of_the_worst_structure(report):
    structure, worst = report.worst_band(H0)
    every = {one.name: one.errors[H0].mesh.worst for one in report.structures}
    assert worst == every[structure] == report.errors[H0].mesh.worst
    assert abs(worst.error) == max(abs(one.error) for one in every.values())
    content = report.to_json()
    assert content["worst_band"][H0]["structure"] == structure
    assert content["worst_band"][H0]["error"] == worst.error
    assert content["structures"][0]["errors"][H0]["bands"]["worst"]["band"] == every["GaAs_0"].band


def test_samples_are_chosen_by_name_or_by_the_part_of_a_split(dataset, tmp_path):
    some = evaluate(None, dataset, names=["SiH_0", "GaAs_0"], kpts=(1, 1, 1), npoints=0)
    assert [one.name for one in some.structures] == ["SiH_0", "GaAs_0"]
    assert some.errors[H0].path is None
    some = evaluate(None, dataset, names=["GaAs_1", "*_[01]"], kpts=(1, 1, 1), npoints=0)
    assert [one.name for one in some.structures] == ["GaAs_1", "GaAs_0", "SiH_0"]
    split = tmp_path / "split.json"
    write_split(split, dataset, composition_hold_out(dataset, validation=["SiH"]))
    found = evaluate(None, dataset, split=split, kpts=(1, 1, 1), npoints=0)
    assert [one.name for one in found.structures] == ["SiH_0"]
    found = evaluate(None, dataset, split=split, part="train", kpts=(1, 1, 1), npoints=0)
    assert [one.name for one in found.structures] == ["GaAs_0", "GaAs_1"]
    with pytest.raises(ValueError, match="no part 'test'; it has train, validation"):
        evaluate(None, dataset, split=split, part="test")
    with pytest.raises(ValueError, match="either names of samples or a split"):
        evaluate(None, dataset, split=split, names=["SiH_0"])
    with pytest.raises(ValueError, match="no sample is named like 'Si_7'"):
        evaluate(None, dataset, names=["Si_7"])
    with pytest.raises(ValueError, match="there are no samples"):
        evaluate(None, dataset, names=[])


def test_a_model_is_read_and_a_structure_that_it_does_not_know_is_named(dataset, tmp_path):
    torch = pytest.importorskip("torch")
    from ase_nextham.model import Model, ModelInfo, bundle

    torch.manual_seed(0)
    info = ModelInfo(
        network="nextham",
        shells={name: SHELLS[name] for name in ("As", "Ga")},
        windows=(0, 3),
        cutoff=3,
        hyperparameters={
            "features": "4x0e+4x0o+2x1o+2x1e+2x2e+2x2o+2x3o",
            "layers": 1,
            "heads": 1,
            "gaussians": 4,
            "invariants": 4,
        },
    )
    module = bundle.build(info)
    bundle.save(tmp_path / "model", info, module)
    options = {"names": ["GaAs_0"], "kpts": (1, 1, 1), "npoints": 0}
    found = evaluate(tmp_path / "model", dataset, **options)
    assert found.model == str(tmp_path / "model")
    sample = dataset.sample(0, kpts=())
    expected = sample.data.h0 + Model(info, module).predict(sample.data)
    total = metrics.matrix_errors(expected, sample.data).total
    assert found.errors[PREDICTED].matrix.total.mean == pytest.approx(total.mean, rel=1e-6)
    with pytest.raises(ValueError, match="sample SiH_0: .*not trained with this element"):
        evaluate(tmp_path / "model", dataset, **MESH)


def test_several_kinds_of_spin_are_put_together(report):
    spins = report.errors[H0].matrix.by["spin"]
    assert {"scalar", "vector", "uu real", "ud imaginary"} <= spins.keys()
    spinor = report.structures[2].errors[H0].matrix
    scalar = [one.errors[H0].matrix.by["spin"]["scalar"] for one in report.structures]
    assert spins["scalar"].count == sum(error.count for error in scalar)
    assert spins["ud real"] == spinor.by["spin"]["ud real"]


def test_a_molecule_has_no_path(tmp_path):
    data = random_lcao(3)
    atoms = data.atoms.copy()
    atoms.pbc = False
    home = (data.pairs.R == 0).all(axis=1)
    pairs = type(data.pairs)(data.pairs.i[home], data.pairs.j[home], data.pairs.R[home])
    cut = {name: getattr(data, name).cut_to(pairs)[0] for name in ("overlap", "h0", "hamiltonian")}
    molecule = replace(data, atoms=atoms, position=None, **cut)
    assert not build([Source("m", lambda: molecule)], tmp_path / "set", nkpts=0).failed
    found = evaluate(None, tmp_path / "set", **MESH)
    assert found.errors[H0].path is None
    assert "along the paths" not in str(found)


def test_h0_of_gallium_arsenide_has_the_errors_that_were_measured_before(shared_data, tmp_path):
    from functools import partial

    from ase_nextham.converters import guess_format, read
    from ase_nextham.training.dataset_sources import from_paths

    folders = {f"{kind}_dir": shared_data / kind for kind in ("pseudo", "orbital")}
    archive = shared_data / "abacus" / "scf" / "GaAs_soc_zero.tar.xz"
    sources = from_paths(
        [archive],
        partial(read, **folders),
        lambda path: (path / "scf").is_dir() and guess_format(path),
    )
    assert not build(sources, tmp_path / "set", nkpts=0).failed
    (errors,) = evaluate(None, tmp_path / "set", kpts=(4, 4, 4), npoints=0).errors.values()
    assert 1e3 * errors.matrix.total.mean == pytest.approx(0.57, abs=0.005)  # meV
    spin = errors.matrix.by["spin"]
    # dH is a scalar potential: half of the elements, those between spins, are right already
    assert 1e3 * spin["vector"].mean < 1e-4
    assert spin["uu real"].mean == pytest.approx(spin["dd real"].mean, rel=1e-4)
    assert spin["uu real"].mean == pytest.approx(2 * errors.matrix.total.mean, rel=0.15)
    # gallium's 3d are wrong relative to the valence bands, which are not far off themselves
    deep, valence, conduction = (1e3 * error.mean for error in errors.mesh.by_energy.values())
    assert deep > 600
    assert max(valence, conduction) < 120
    deep, valence, conduction = errors.mesh.ghosts_by_energy.values()
    assert deep == 64 * 10  # of 64 k-points
    assert valence == conduction == 0
