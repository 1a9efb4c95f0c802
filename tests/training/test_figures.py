"""Figures of evaluations and of training runs: what they show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from ase_nextham import bands
from ase_nextham.testing import random_lcao
from ase_nextham.training import figures
from ase_nextham.training.dataset import Dataset
from ase_nextham.training.dataset_build import build
from ase_nextham.training.dataset_sources import Source
from ase_nextham.training.evaluate import evaluate
from ase_nextham.training.figures_periodic_table import periodic_table
from ase_nextham.training.measure import GAUGE_MAE
from ase_nextham.training.metrics import DISTANCES, PARITY_EDGES
from ase_nextham.training.metrics_bands import band_path, reference
from ase_nextham.training.report import H0, PREDICTED

KPTS = (2, 2, 2)


class Share:
    """Stands for a model that predicts a share of the right correction."""

    def __init__(self, share: float):
        self.share = share

    def predict(self, data):
        return self.share * (data.hamiltonian - data.h0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("figures") / "set"
    structures = {"GaAs_0": random_lcao(0), "SiH_0": random_lcao(1, "SiH")}
    sources = [Source(name, lambda data=data: data) for name, data in structures.items()]
    assert not build(sources, folder, nkpts=0).failed
    return Dataset(folder)


@pytest.fixture(scope="module")
def report(dataset):
    return evaluate(Share(0.5), dataset, kpts=KPTS, npoints=0)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def inside(figure) -> None:
    """No text sticks out of the figure."""
    figure.canvas.draw()
    box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    width, height = figure.canvas.get_width_height()
    assert box.x0 >= -1
    assert box.y0 >= -1
    assert box.x1 <= width + 1
    assert box.y1 <= height + 1


def test_all_figures_of_an_evaluation_are_written(report, dataset, tmp_path):
    written = figures.write_figures(report, tmp_path / "drawn", dataset, Share(0.5))
    assert {path.name for path in written} == {
        "elements.png",
        "distance.png",
        "condition.png",
        "parity.png",
        "bands_GaAs_0.png",
        "bands_SiH_0.png",
    }
    for path in written:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_a_model_there_is_no_parity(dataset, tmp_path):
    report = evaluate(None, dataset, names=["SiH_0"], kpts=KPTS, npoints=0)
    written = figures.write_figures(report, tmp_path, dataset)
    names = {path.name for path in written}
    assert names == {"elements.png", "distance.png", "condition.png", "bands_SiH_0.png"}


def test_bands_are_drawn_from_the_fermi_level_with_the_mean_error_of_those_that_show(dataset):
    sample = dataset.sample(0, kpts=())
    figure = figures.sample_bands(sample, Share(1.0), kpts=KPTS, npoints=20, emin=-3, emax=3)
    left, right = figure.axes
    path = band_path(sample.data.atoms, 20)
    exact = bands.eigenvalues(sample.data.hamiltonian, sample.data.overlap, path.kpts)[0]
    exact = exact - reference(sample.data, KPTS).fermi_level
    lines = [line for line in right.lines if np.isfinite(line.get_ydata()).sum() == 20]
    drawn = np.array([line.get_ydata()[np.isfinite(line.get_ydata())] for line in lines])
    assert_allclose(drawn[: exact.shape[1]], exact.T, atol=1e-12)
    assert_allclose(drawn[exact.shape[1] :], exact.T, atol=1e-6)  # a perfect prediction
    labels = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (left, right)]
    assert labels[1] == ["DFT", "predicted, MAE 0.0 meV"]
    assert labels[0][0] == "DFT"
    assert labels[0][1].startswith("H(0), MAE ")
    assert left.get_ylim() == (-3, 3)
    assert "mathrm{F}" in left.get_ylabel()
    inside(figure)


def test_the_periodic_table_shows_the_mean_of_the_structures_with_each_element(report):
    figure = figures.errors_by_element(report)
    shown = texts(figure.axes[0])
    for element in ("Ga", "As", "Si", "H"):
        place = shown.index(element)
        expected = 1e3 * report.by_element(PREDICTED)[element]
        assert float(shown[place + 1]) == pytest.approx(expected, rel=0.02)
        assert float(shown[place + 2]) == pytest.approx(2 * float(shown[place + 1]), rel=0.02)
    inside(figure)


def test_elements_stand_where_they_belong():
    everything = dict.fromkeys(("H", "He", "B", "Fe", "La", "Lu", "U", "Og"), 1.0)
    ax = periodic_table(everything, label="eV").axes[0]
    where = {text.get_text(): text.get_position() for text in ax.texts}
    column = {symbol: int(where[symbol][0]) for symbol in everything}
    row = {symbol: int(where[symbol][1]) for symbol in everything}
    assert column == {"H": 0, "He": 17, "B": 12, "Fe": 7, "La": 3, "Lu": 2, "U": 6, "Og": 17}
    assert {s: row[s] for s in ("H", "He", "B", "Fe", "Lu", "Og")} == {
        "H": 0, "He": 0, "B": 1, "Fe": 3, "Lu": 5, "Og": 6
    }  # fmt: skip
    assert row["U"] == row["La"] + 1 > row["Og"]
    assert len({position for text, position in where.items() if text.isalpha()}) == 118


def test_the_periodic_table_ends_with_the_period_that_is_needed():
    ax = periodic_table({"Si": 0.0}, label="eV").axes[0]
    assert "Kr" in texts(ax)
    assert "Rb" not in texts(ax)
    with pytest.raises(ValueError, match="'Xx' is not the symbol of an element"):
        periodic_table({"Xx": 1.0}, label="eV")
    with pytest.raises(ValueError, match="no elements"):
        periodic_table({}, label="eV")


def test_bars_are_the_errors_in_each_range_of_distance(report):
    figure = figures.errors_by_distance(report)
    ax = figure.axes[0]
    for name, bars in zip((H0, PREDICTED), ax.containers, strict=True):
        table = report.errors[name].matrix.by["distance"]
        assert [bar.get_height() for bar in bars] == pytest.approx(
            [1e3 * table[label].mean for label in DISTANCES if label in table]
        )
        assert to_hex(bars[0].get_facecolor()) == figures.COLOURS[name].lower()
    assert "meV" in ax.get_ylabel()
    inside(figure)


def test_each_k_point_is_a_dot_at_its_condition_number(report):
    ax = figures.errors_by_condition(report).axes[0]
    dots = {line.get_label(): line for line in ax.lines if line.get_marker() == "."}
    condition = np.concatenate([one.condition for one in report.structures])
    for name in (H0, PREDICTED):
        assert_allclose(dots[name].get_xdata(), condition)
        assert_allclose(dots[name].get_ydata(), 1e3 * report.errors[name].mesh.at_kpts[1])


def test_the_parity_plot_has_the_truth_from_left_to_right():
    counts = np.zeros((len(PARITY_EDGES) - 1,) * 2, int)
    counts[100, 90] = 7
    ax = figures.parity(counts).axes[0]
    (mesh,) = ax.collections
    drawn = mesh.get_array()
    assert drawn[90, 100] == 7  # rows go up
    assert drawn.count() == 1
    low, high = ax.get_xlim()
    assert low == -high
    assert np.sinh(high) == pytest.approx(1e3 * PARITY_EDGES[101], rel=1e-9)


def write_run(folder, steps: str, validation: str) -> None:
    (folder / "steps.csv").write_text("step,epoch,seconds,loss,mae_meV\n" + steps)
    (folder / "validation.csv").write_text("step,epoch,loss,mae_meV,h0_mae_meV,best\n" + validation)


def test_the_learning_curve_has_means_of_epochs_and_the_error_of_h0(tmp_path):
    steps = "1,0.5,1,1,8\n2,1,2,3,4\n3,1.5,3,,nan\n4,2,4,0.5,2\n5,2."  # going on
    write_run(tmp_path, steps, "2,1,1.5,5,6,1\n4,2,1.25,3,6,1\n")
    upper, lower = figures.learning_curve(tmp_path).axes
    for ax, means, validated in ((upper, [2, 0.5], [1.5, 1.25]), (lower, [6, 2], [5, 3])):
        lines = {line.get_label(): line for line in ax.lines}
        assert_allclose(lines["training"].get_ydata(), means)
        assert_allclose(lines["training"].get_xdata(), [0.75, 2])
        assert_allclose(lines["validation"].get_ydata(), validated)
    lines = {line.get_label(): line for line in lower.lines}
    assert_allclose(lines["H(0), validation"].get_ydata(), [6, 6])
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == ["training", "validation", "H(0), validation"]


def test_one_validation_is_enough_to_see_the_error_of_h0(tmp_path):
    write_run(tmp_path, "1,0.5,1,1,8\n2,1,1,1,8\n", "2,1,1.5,5,6,1\n")
    _, lower = figures.learning_curve(tmp_path).axes
    (line,) = [line for line in lower.lines if line.get_label() == "H(0), validation"]
    assert np.ptp(line.get_xdata()) == 1  # of the width of the axes
    assert_allclose(line.get_ydata(), 6)


def test_a_run_without_a_validation_has_a_learning_curve(tmp_path):
    write_run(tmp_path, "1,0.5,1,1,8\n", "")
    figure = figures.learning_curve(tmp_path)
    assert len(figure.axes) == 2
    inside(figure)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"steps\.csv"):
        figures.learning_curve(tmp_path)
    write_run(tmp_path, "", "")
    with pytest.raises(ValueError, match="no step was done yet"):
        figures.learning_curve(tmp_path)
    (tmp_path / "steps.csv").write_text("step,epoch,loss\n")
    with pytest.raises(ValueError, match=r"steps\.csv: there is no column 'mae_meV'"):
        figures.learning_curve(tmp_path)


def test_the_columns_are_those_that_the_training_loop_writes():
    assert {"epoch", "loss", "mae_meV"} <= set(GAUGE_MAE.step_columns)
    assert {"epoch", "loss", "mae_meV", "h0_mae_meV"} <= set(GAUGE_MAE.validation_columns)
