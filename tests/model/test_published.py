"""Published checkpoints become models that predict, and run nothing that is in them."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from numpy.testing import assert_allclose, assert_array_equal  # noqa: E402

from ase_nextham import hdf5  # noqa: E402
from ase_nextham.model import load, released  # noqa: E402
from ase_nextham.model.published import SHELLS, import_checkpoint, state_dict  # noqa: E402
from ase_nextham.model.released_ensemble import ENERGY_UNITS  # noqa: E402
from ase_nextham.model.released_layout import (  # noqa: E402
    blocks_of_vector,
    correction_of_vector,
    vector_of_blocks,
)
from ase_nextham.testing import check_model  # noqa: E402
from ase_nextham.units import RYDBERG  # noqa: E402


def weights(version: str, seed: int) -> dict:
    """Random weights of a size that keeps numbers in bounds, and an entry of older files."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: 0.05 * torch.randn(p.shape, generator=generator)
        for name, p in released.ReleasedNetwork(version).named_parameters()
    }
    return state | {"node_lin.tp.weight": torch.zeros(4)}


@pytest.fixture(scope="module")
def states():
    return [weights("main", seed) for seed in range(4)]


@pytest.fixture(scope="module")
def files(states, tmp_path_factory):
    """The four files of a set: a bare state dict, two checkpoints, one of parallel training."""
    folder = tmp_path_factory.mktemp("published")
    contents = [
        states[0],
        {"model": states[1], "epoch": 7},
        {"state_dict": states[2]},
        {f"module.{name}": value for name, value in states[3].items()},
    ]
    for k, content in enumerate(contents):
        torch.save(content, folder / f"{k}.pth")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def gaas(root):
    return hdf5.read(root / "examples" / "data" / "GaAs_soc.h5")


@pytest.fixture(scope="module")
def model(files, tmp_path_factory):
    target = tmp_path_factory.mktemp("models") / "main"
    import_checkpoint(files, target)
    return target


def test_every_weight_is_in_the_model_and_unused_ones_are_named(files, states, tmp_path):
    info, unused = import_checkpoint(files, tmp_path / "model")
    assert info.network == "released"
    assert info.hyperparameters == {"version": "main"}
    assert info.windows == (0.0, 1.0, 2.0, 4.0, 6.0)
    assert set(unused) == {str(path) for path in files}
    assert all(names == ["node_lin.tp.weight"] for names in unused.values())
    for expert, state in zip(load(tmp_path / "model").module.experts, states, strict=True):
        for name, value in expert.state_dict().items():
            assert_array_equal(value, state[name])


def test_the_correction_is_the_sum_over_the_windows_symmetrised(model, states, gaas):
    found = load(model, dtype="float64").predict(gaas)
    assert found.hermitian_error() < 1e-12  # eV
    assert found.time_reversal_error() < 1e-12
    # by another way: one pair and its partner, every window's network on the whole graph
    module = load(model, dtype="float64").module
    graph = module.graph([gaas])
    unit = ENERGY_UNITS["main"] / RYDBERG
    pairs = torch.arange(len(graph))
    vectors = vector_of_blocks(unit * graph.reads.blocks(graph.h0, pairs))
    total = torch.zeros_like(vectors)
    for state, window in zip(states, released.WINDOWS, strict=True):
        network = released.load("main", state, torch.float64, window=window)
        total += network(vectors, graph.vectors, graph.i, graph.j)[0]
    blocks = blocks_of_vector(total).real / unit
    blocks = (blocks[:, ::2, ::2] + blocks[:, 1::2, 1::2]) / 2
    blocks = (blocks + blocks[graph.reverse].transpose(1, 2)) / 2
    with torch.no_grad():
        published, _ = module.assembled(graph)
    raw = graph.corrects.zeros(total.new_zeros(()))
    graph.corrects.put(raw, pairs, correction_of_vector(total) / unit)
    assert_allclose(published, raw[:-1], atol=1e-10)  # as the published programs have it
    p = int(torch.nonzero((graph.i == 0) & (graph.j == 1) & (graph.distance < 3)).flatten()[0])
    ours = found.block(0, 1, graph.R[p].numpy())
    ga = [0, 1, *range(4, 27)]  # 2s2p2d1f among 4s2p2d1f
    arsenic = [0, 1, *range(4, 15)]
    expected = blocks[p].numpy()[np.ix_(ga, arsenic)]
    assert np.abs(expected).max() > 1e-6
    assert_allclose(ours[::2, ::2], expected, atol=1e-10)
    assert_allclose(ours[1::2, 1::2], expected, atol=1e-10)
    assert not ours[::2, 1::2].any()


def test_it_says_how_far_the_published_correction_was_from_symmetric(model, gaas, caplog):
    caplog.set_level("INFO", logger="ase_nextham")
    loaded = load(model)
    loaded.predict(gaas)
    assert loaded.module.asymmetry > 0
    (record,) = caplog.records
    assert f"{1e3 * loaded.module.asymmetry:.1f} meV" in record.getMessage()


def test_the_symmetrised_correction_turns_with_the_crystal(model, gaas):
    data = replace(gaas, hamiltonian=None, position=None)
    check_model(load(model, dtype="float64"), data, tolerance=1e-8, smooth=False)


def test_beyond_six_angstrom_nothing_is_corrected(model, gaas):
    dh = load(model).predict(gaas)
    pairs = gaas.pairs
    vectors = gaas.atoms.positions[pairs.j] - gaas.atoms.positions[pairs.i]
    distance = np.linalg.norm(vectors + pairs.R @ gaas.atoms.cell.array, axis=1)
    far = np.repeat(distance >= 6, np.diff(dh.offsets))
    assert far.any()
    assert not dh.data[far].any()
    assert np.abs(dh.data[~far]).max() > 0


def test_portions_do_not_change_the_correction(model, gaas):
    loaded = load(model, dtype="float64")
    whole = loaded.predict(gaas)
    portions = loaded.predict(gaas, memory=0.02)
    assert np.abs((whole - portions).data).max() < 1e-12  # eV


def test_a_pickled_module_gives_the_weights_of_its_state_dict(tmp_path):
    inner = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module = torch.nn.ModuleDict({"a": inner, "b": torch.nn.Linear(2, 2, bias=False)})
    torch.save({"model": module}, tmp_path / "x.pth")
    found = state_dict(tmp_path / "x.pth")
    assert found.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert_array_equal(found[name], value)


class _Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_nothing_in_a_checkpoint_is_run(tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    with open("x.pth", "wb") as file:
        pickle.dump({"model": _Harmful()}, file)
    with pytest.raises(ValueError, match=r"x\.pth"):
        import_checkpoint(["x.pth", *files[1:]], "model")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "model").exists()


def test_a_partial_file_says_which_weights_are_missing(files, states, tmp_path):
    state = dict(states[2])
    del state["edge_lin.tp.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: not a network 'main'.*lacks edge_lin.tp.wei"):
        import_checkpoint([*files[:2], tmp_path / "part.pth", files[3]], tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": 3}, "there are no weights in this file; it holds optimizer"),
        ([1, 2], "expected weights by name, found list"),
        ({"conv.weight": torch.ones(2)}, "no weight in this file is of a published network"),
    ],
)
def test_other_files_are_refused(files, tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"other.pth: {message}"):
        import_checkpoint([tmp_path / "other.pth", *files[1:]], tmp_path / "model")


def test_weights_that_are_not_finite_are_refused(files, states, tmp_path):
    name = next(n for n in states[0] if n.startswith("edge_lin") and "bias" in n)
    bad = states[0] | {name: torch.full_like(states[0][name], torch.nan)}
    torch.save(bad, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=f"nan.pth: weight {name} holds numbers that are not fin"):
        import_checkpoint([tmp_path / "nan.pth", *files[1:]], tmp_path / "model")


def test_a_set_has_four_files(files, tmp_path):
    with pytest.raises(ValueError, match="has 4 files, one for each window.*; 3 were given"):
        import_checkpoint(files[:3], tmp_path / "model")


def test_files_of_another_version_do_not_mix(files, tmp_path):
    torch.save(weights("v1.1", 0), tmp_path / "v11.pth")
    with pytest.raises(ValueError, match=r"v11\.pth: not a network 'main'"):
        import_checkpoint([*files[:3], tmp_path / "v11.pth"], tmp_path / "model")


def test_orbitals_of_training_can_be_noted(files, tmp_path, abacus_folders):
    folder = tmp_path / "orbital"
    folder.mkdir()
    source = abacus_folders / "orbital" / "O_gga_7au_100Ry_2s2p1d.orb"
    (folder / source.name).write_bytes(source.read_bytes())
    info, _ = import_checkpoint(files, tmp_path / "model", orbital_dir=folder)
    assert list(info.orbitals) == ["O"]
    with pytest.raises(ValueError, match="O has several files"):
        import_checkpoint(files, tmp_path / "x", orbital_dir=_doubled(folder, source))
    with pytest.raises(ValueError, match=r"there is no file Element\.\.\.\.upf"):
        import_checkpoint(files, tmp_path / "x", pseudo_dir=folder)


def _doubled(folder, source):
    (folder / "O_other.orb").write_bytes(source.read_bytes())
    return folder


def test_68_elements_are_known_with_their_orbitals():
    assert len(SHELLS) == 68
    assert SHELLS["Ga"] == (0, 0, 1, 1, 2, 2, 3)
    assert SHELLS["H"] == (0, 0, 1)
    assert sum(2 * l + 1 for l in SHELLS["Au"]) == 27
