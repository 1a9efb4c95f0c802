"""Figures: what they show, and that they disturb nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk
from ase.spectrum.band_structure import BandStructure
from numpy.testing import assert_allclose

from ase_nextham import plot

CELL = bulk("Si").cell


def two_bands(gap: float, *, shift: float = 0.0, path: str = "LGXU,KG") -> BandStructure:
    """A valence band with its top and a conduction band with its bottom at Gamma."""
    band_path = CELL.bandpath(path, npoints=60)
    distance = np.linalg.norm(band_path.cartesian_kpts(), axis=1)
    eps = np.stack([-distance, gap + 2 * distance], axis=-1) + shift
    return BandStructure(band_path, eps[None], reference=shift + gap / 2)


def curves(ax) -> list[np.ndarray]:
    """Energies of lines that follow bands."""
    return [line.get_ydata() for line in ax.lines if len(line.get_ydata()) > 30]


def test_bands_are_aligned_at_their_valence_band_maxima():
    figure = plot.plot_bands([(two_bands(1.0), "DFT"), (two_bands(1.0, shift=3.0), "H(0)")])
    (ax,) = figure.axes
    first, second = curves(ax)[:2], curves(ax)[2:]
    assert_allclose(first, second, atol=1e-12)
    assert np.nanmax(first[0]) == 0
    assert "VBM" in ax.get_ylabel()


def test_the_legend_names_bands_and_their_gaps():
    figure = plot.plot_bands([(two_bands(1.0), "DFT"), (two_bands(1.234), "H(0)")])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["DFT, gap 1.00 eV", "H(0), gap 1.23 eV"]


def test_gap_edges_are_marked():
    figure = plot.plot_bands([(two_bands(1.0), "DFT")])
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert sorted({y for line in dots for y in line.get_ydata()}) == pytest.approx([0.0, 1.0])


def test_one_metal_moves_all_bands_to_their_fermi_levels():
    metal = two_bands(-0.5)
    figure = plot.plot_bands([(two_bands(1.0, shift=2.0), "DFT"), (metal, "H(0)")])
    (ax,) = figure.axes
    assert "F" in ax.get_ylabel()
    assert "VBM" not in ax.get_ylabel()
    assert_allclose(np.nanmax(curves(ax)[0]), -0.5)  # valence band maximum below mid-gap
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["DFT, gap 1.00 eV", "H(0)"]


def test_special_points_are_labelled_and_lines_break_where_the_path_jumps():
    ax = plot.plot_bands([(two_bands(1.0), "DFT")]).axes[0]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == [
        r"$\mathrm{L}$",
        r"$\Gamma$",
        r"$\mathrm{X}$",
        r"$\mathrm{U}$|$\mathrm{K}$",
        r"$\Gamma$",
    ]
    assert np.isnan(curves(ax)[0]).sum() == 1


def test_special_points_that_nearly_coincide_are_not_written_over_each_other():
    slab = bulk("Si", cubic=True).repeat((1, 1, 12))
    path = slab.cell.bandpath("GXMGZ", npoints=200)
    eps = np.zeros((1, len(path.kpts), 2)) + [-1, 1]
    ax = plot.plot_bands([(BandStructure(path, eps, 0.0), "DFT")]).axes[0]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == [r"$\Gamma$", r"$\mathrm{X}$", r"$\mathrm{M}$", r"$\Gamma$", ""]


def test_both_spins_are_drawn():
    up = two_bands(1.0)
    both = BandStructure(up.path, np.concatenate([up.energies, up.energies + 0.1]), 0.5)
    ax = plot.plot_bands([(both, "Fe")]).axes[0]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["Fe, gap 0.90 eV, spin up", "Fe, gap 0.90 eV, spin down"]
    assert len(curves(ax)) == 4
    assert len({line.get_linestyle() for line in ax.lines if len(line.get_ydata()) > 30}) == 2


def test_bands_on_different_paths_are_refused():
    with pytest.raises(ValueError, match=r"'H\(0\)' is on another path of k-points than 'DFT'"):
        plot.plot_bands([(two_bands(1.0), "DFT"), (two_bands(1.0, path="LGX"), "H(0)")])
    with pytest.raises(ValueError, match="no bands"):
        plot.plot_bands([])


def test_equal_components_share_a_line_and_negligible_ones_have_none():
    omega = np.linspace(0, 5, 11)
    sigma = np.zeros((3, 3, 11), complex)
    sigma[0, 0] = sigma[1, 1] = 2e6 + 1e6j
    sigma[2, 2] = 1e6
    sigma[0, 1] = 1e3
    upper, lower = plot.plot_optical_conductivity(omega, sigma).axes
    texts = [text.get_text() for text in upper.get_legend().get_texts()]
    assert texts == ["xx = yy", "zz"]
    assert_allclose(upper.lines[0].get_ydata(), 2.0)  # 10^6 S/m
    assert_allclose(lower.lines[0].get_ydata(), 1.0)
    assert "10^{6}" in upper.get_ylabel()
    assert "eV" in lower.get_xlabel()


def test_a_hall_conductivity_is_drawn():
    sigma = np.zeros((3, 3, 11), complex)
    sigma[0, 0] = sigma[1, 1] = sigma[2, 2] = 50.0
    sigma[0, 1], sigma[1, 0] = 20.0, -20.0
    upper, _ = plot.plot_optical_conductivity(np.linspace(0, 5, 11), [(sigma, "Fe")]).axes
    texts = [text.get_text() for text in upper.get_legend().get_texts()]
    assert texts == ["Fe: xx = yy = zz", "Fe: xy", "Fe: yx"]
    assert upper.get_ylabel() == r"Re $\sigma$ (S/m)"


def test_spin_down_states_are_below_the_axis():
    energies = np.linspace(-3, 3, 61)
    dos = np.exp(-(energies**2)) * np.array([[1.0], [2.0]])
    ax = plot.plot_dos(energies, dos, {"Fe d": 0.5 * dos}, fermi_level=1.0).axes[0]
    total_up, total_down, part_up, part_down = (line.get_ydata() for line in ax.lines[:4])
    assert_allclose(total_up, dos[0])
    assert_allclose(total_down, -dos[1])
    assert_allclose(part_up, dos[0] / 2)
    assert_allclose(part_down, -dos[1] / 2)
    assert_allclose(ax.lines[0].get_xdata(), energies - 1.0)


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plot.plot_bands([(two_bands(1.0), "DFT")]),
        lambda: plot.plot_dos(np.linspace(0, 1, 5), np.ones(5)),
        lambda: plot.plot_optical_conductivity(np.arange(5.0), np.ones((3, 3, 5), complex)),
    ],
)
def test_figures_are_written_as_png(figure, tmp_path):
    figure().savefig(tmp_path / "figure.png")
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_pyplot_is_not_touched():
    code = (
        "import sys, numpy as np; from ase_nextham import plot; assert 'matplotlib' not in "
        "sys.modules; plot.plot_dos(np.arange(3.0), np.ones(3)); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("nparts", [1, 6, 20])
def test_long_legends_stay_inside_the_figure(nparts):
    energies = np.linspace(0, 1, 5)
    parts = {f"element number {n}": np.full(5, n) for n in range(nparts)}
    figure = plot.plot_dos(energies, np.ones(5), parts)
    figure.canvas.draw()
    box = figure.axes[0].get_legend().get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height


def test_bands_beside_each_other_are_drawn_from_their_references():
    dft, model = two_bands(1.0), two_bands(1.5, shift=3.0)
    figure = plot.plot_bands_beside((dft, "DFT"), [(two_bands(0.5), "H(0)"), (model, "model")])
    left, right = figure.axes
    for ax, other in ((left, "H(0)"), (right, "model")):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["DFT", other]
        assert np.nanmax(curves(ax)[0]) == pytest.approx(-0.5)
        assert ax.lines[0].get_linestyle() == "-"
        assert ax.lines[2].get_linestyle() != "-"
    assert np.nanmax(curves(right)[2]) == pytest.approx(-0.75)
    assert left.get_ylim() == right.get_ylim() == (-10, 5)


def test_bands_beside_each_other_need_the_same_path_and_something_to_compare():
    with pytest.raises(ValueError, match="no bands to compare"):
        plot.plot_bands_beside((two_bands(1.0), "DFT"), [])
    with pytest.raises(ValueError, match="'H\\(0\\)' is on another path"):
        plot.plot_bands_beside((two_bands(1.0), "DFT"), [(two_bands(1.0, path="GX"), "H(0)")])
