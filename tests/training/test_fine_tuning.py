"""Published weights, imported as a model, are trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose

from ase_nextham import model
from ase_nextham.model import released
from ase_nextham.model.published import import_checkpoint
from ase_nextham.training.distributed import Processes
from ase_nextham.training.loop import Trainer
from ase_nextham.training.models import save_model, started_model
from ase_nextham.training.run import chosen_samples

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def published(request, tmp_path_factory):
    """A model of weights that have the names and shapes of the published ones, but are random."""
    version = getattr(request, "param", "main")
    folder = tmp_path_factory.mktemp("published")
    generator = torch.Generator().manual_seed(0)
    for k in range(4):
        weights = {
            name: 0.05 * torch.randn(p.shape, generator=generator)
            for name, p in released.ReleasedNetwork(version).named_parameters()
        }
        torch.save(weights, folder / f"{k}.pth")
    import_checkpoint(sorted(folder.glob("*.pth")), folder / "model")
    yield folder / "model"
    shutil.rmtree(folder)  # 400 MB


def fine_tuner(config, start, **optimiser) -> Trainer:
    """On one sample of hydrogen; its H(0) without spin is read as one of spinors."""
    options = {"learning_rate": 1e-4, "first": 1e-4, "warm_up": 0, "average": 0, "batch": 1}
    settings = config(
        data={"train": ["H_0"], "validation": ["H_1"]},
        model={"start": str(start)},
        optimiser=options | {"epochs": 10} | optimiser,
    )
    training, validation = chosen_samples(settings.data, 1)
    made = Trainer(settings, started_model(settings.model, training), training, validation, ALONE)
    made.begin(scales=False)
    return made


def test_steps_from_published_weights_make_the_loss_smaller(config, published, tmp_path):
    made = fine_tuner(config, published)
    first, second = made.advance(), made.advance()
    made.loader.close()
    for name in ("loss", "real", "trace"):  # traces as they were published: patterns
        assert first[name] > second[name] > 0
    info = replace(made.model.info, training={"samples": 1})
    save_model(tmp_path / "model", info, made.module)
    trained = model.load(tmp_path / "model")
    assert trained.info.network == "released"
    assert trained.info.elements[-1] == "Bi"
    sample = made.examples.samples[0].data
    dh = trained.predict(sample)
    assert dh.hermitian_error() < 1e-6  # eV, single precision
    assert abs(dh.data).max() > 1e-6
    shutil.rmtree(tmp_path / "model")  # 200 MB


@pytest.mark.parametrize("published", ["v1.1"], indirect=True)
def test_published_networks_trained_one_by_one_leave_each_other_alone(config, published):
    made = fine_tuner(config, published, experts="one by one")
    before = [{n: p.clone() for n, p in e.named_parameters()} for e in made.module.experts]
    first = made.advance()
    assert made.advance()["loss"] < first["loss"]
    made.loader.close()
    changed = [
        any(not torch.equal(p, old[n]) for n, p in expert.named_parameters())
        for expert, old in zip(made.module.experts, before, strict=True)
    ]
    assert changed == [True, False, False, False]


def test_published_networks_one_by_one_add_up_to_the_correction(config, published):
    made = fine_tuner(config, published, precision="float64")
    graph, module = made.examples[0].graph, made.module
    with torch.no_grad():
        pieces = [module.expert_elements(k, graph) for k in range(4)]
        assert_allclose(graph.corrects.hermitian(sum(pieces)), module(graph), atol=1e-12)  # eV
    made.loader.close()


def test_published_networks_are_not_trained_in_mixed_precision(config, published):
    with pytest.raises(ValueError, match="'bfloat16' is not for published networks.*use 'float32'"):
        fine_tuner(config, published, precision="bfloat16")
