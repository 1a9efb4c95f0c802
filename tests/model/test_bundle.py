"""A model on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ase_nextham import model
from ase_nextham.model import ModelInfo, bundle
from ase_nextham.testing import SHELLS, random_lcao

INFO = ModelInfo(
    network="nextham",
    shells={"As": SHELLS["As"], "Ga": SHELLS["Ga"]},
    windows=(0, 2, 4),
    cutoff=4,
    orbitals={"Ga": f"{31:064x}"},
    pseudopotentials={"Ga": "ab" * 32},
    h0={"engine": "native", "moments": "zero"},
    training={"data": "random numbers", "epochs": 0},
    citation="S. Yin et al.",
    hyperparameters={
        "features": "4x0e+2x1o",
        "layers": 1,
        "heads": 2,
        "gaussians": 8,
        "invariants": 8,
        "target": "correction",
    },
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "tiny"
    bundle.save(path, INFO, bundle.build(INFO).double())
    return path


def changed(path, **entries):
    content = json.loads((path / "model.json").read_text())
    content |= entries
    content = {name: value for name, value in content.items() if value is not None}
    (path / "model.json").write_text(json.dumps(content))


def test_a_model_comes_back_as_it_was(saved):
    torch.manual_seed(0)
    before = bundle.build(INFO).double()
    info, after = bundle.read(saved)
    assert info == INFO
    expected, found = before.state_dict(), after.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_predictions_survive_the_disk_bit_by_bit(saved, tmp_path):
    first = model.load(saved)
    bundle.save(tmp_path / "copy", first.info, first.module)
    data = random_lcao(0)
    data = replace(data, source={"pseudopotentials": {"Ga": "ab" * 32}})
    again = model.load(tmp_path / "copy").predict(data)
    assert (again.data == first.predict(data).data).all()


def test_the_description_can_be_read_by_eye(saved):
    text = (saved / "model.json").read_text()
    lines = text.splitlines()
    assert lines[1] == '  "format": 1,'
    assert '    "Ga": [0, 0, 1, 1, 2, 3],' in lines
    assert max(map(len, lines)) < 100
    assert ModelInfo.from_json(text) == INFO


def test_elements_are_in_the_order_of_the_periodic_table():
    assert INFO.elements == ("Ga", "As")
    assert INFO.padded_shells == (0, 0, 1, 1, 2, 3)


def test_weights_can_be_loaded_in_another_precision(saved):
    assert model.load(saved).dtype == torch.float64
    assert model.load(saved, dtype="float32").dtype == torch.float32
    with pytest.raises(ValueError, match="'float32' or 'float64', not 'float16'"):
        model.load(saved, dtype="float16")


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model here: model.json is missing"):
        model.load(tmp_path)


def test_missing_weights_are_named(saved):
    file = saved / "expert_1.safetensors"
    weights = load_file(file)
    del weights["embed_node.bias"]
    weights["strange"] = torch.zeros(1)
    save_file(weights, file)
    with pytest.raises(
        ValueError, match="expert_1.safetensors: misses the weights: embed_node.bias"
    ):
        model.load(saved)
    weights["embed_node.bias"] = torch.zeros(4)
    save_file(weights, file)
    with pytest.raises(ValueError, match="has the unknown weights: strange"):
        model.load(saved)


def test_weights_of_another_shape_are_named(saved):
    file = saved / "expert_0.safetensors"
    save_file(load_file(file) | {"embed_node.bias": torch.zeros(5)}, file)
    with pytest.raises(
        ValueError, match=r"another shape: embed_node.bias \(5,\) instead of \(4,\)"
    ):
        model.load(saved)


def test_weights_that_are_not_finite_are_named(saved):
    file = saved / "expert_0.safetensors"
    save_file(load_file(file) | {"embed_node.bias": torch.full((4,), torch.nan)}, file)
    with pytest.raises(ValueError, match="weights that are not finite: embed_node.bias"):
        model.load(saved)


def test_a_missing_expert_is_named(saved):
    (saved / "expert_1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="expert_1.safetensors is missing; 2 windows"):
        model.load(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"{}" * 100])
def test_damaged_weights_are_reported_with_their_file(saved, content):
    (saved / "expert_0.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="expert_0.safetensors: damaged"):
        model.load(saved)


def test_truncated_weights_are_reported_with_their_file(saved):
    file = saved / "expert_0.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expert_0.safetensors: damaged"):
        model.load(saved)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": 99}, "model.json: format 99, but this version reads 1; update ase_nextham"),
        ({"format": None}, "it has no entry 'format'"),
        ({"windows": None}, "model.json: lacks windows"),
        ({"wibdows": [0, 1]}, "model.json: has the unknown wibdows"),
        ({"network": "other"}, "model.json: unknown network 'other'; known: nextham"),
        ({"cutoff": 5}, "the last window ends at 4.0 Angstrom, not at the cutoff 5"),
        ({"spin": "spinor"}, "spin is 'spinor', but it corrects 'scalar'"),
        ({"hyperparameters": {"width": 3}}, "model.json: unknown hyperparameters width"),
        ({"shells": {"Xx": [0]}}, "model.json: 'Xx' is not the symbol of an element"),
        ({"shells": 3}, "model.json: "),
        ({"orbitals": {"Au": "00"}}, "orbitals names Au, of which the model has no shells"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(saved, entries, message):
    changed(saved, **entries)
    with pytest.raises(ValueError, match=message):
        model.load(saved)


def test_text_that_is_not_json_is_refused(saved):
    (saved / "model.json").write_bytes(b'{"format": 1,\xff')
    with pytest.raises(ValueError, match="model.json: not JSON"):
        model.load(saved)


def test_a_failed_save_leaves_nothing(tmp_path):
    class Broken:
        experts = (torch.nn.Linear(2, 2), None)

    with pytest.raises(AttributeError):
        bundle.save(tmp_path / "tiny", INFO, Broken())
    assert not list(tmp_path.iterdir())


def test_a_model_does_not_overwrite_another(saved):
    with pytest.raises(FileExistsError, match="choose another folder"):
        bundle.save(saved, INFO, bundle.build(INFO))
