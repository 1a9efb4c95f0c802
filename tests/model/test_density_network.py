"""The networks of the density head: laws, and the bundle that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ase_nextham.expansion import Expansion, RadialFunctions, even_tempered
from ase_nextham.model import bundle
from ase_nextham.model.bundle import ModelInfo, functions_entry
from ase_nextham.model.density_network import (
    AtomInputs,
    DensityArchitecture,
    DensityEnsemble,
    to_coefficients,
    to_irreps,
)
from ase_nextham.model.irreps import common_shells
from ase_nextham.testing import random_lcao

FUNCTIONS = RadialFunctions.coulomb(even_tempered((4, 3, 3, 2, 2)))
SCALARS = 5
NETWORKS = ["linear", "two-layer", "transformer"]
HIDDEN = "8x0e+4x0o+4x1o+4x1e+4x2e+4x2o+2x3o+2x4e"


@pytest.fixture(autouse=True)
def double_precision():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def architecture(network: str) -> DensityArchitecture:
    return DensityArchitecture(FUNCTIONS.counts, SCALARS, network, HIDDEN, cutoff=4.0)


def ensemble(network: str, data, members: int = 2) -> DensityEnsemble:
    shells = common_shells(data.basis.shells.values())
    module = DensityEnsemble(architecture(network), FUNCTIONS.charges, shells, members)
    for member in module.experts:  # so that what training finds small is not small
        for name, weight in member.named_parameters():
            if "second" in name:
                weight.data.mul_(20)
    return module


def structure(seed: int, symbols: str = "GaAsGaAs"):
    """Data with H(0), and random numbers in the places of a descriptor."""
    data = random_lcao(seed, symbols)
    rng = np.random.default_rng(seed)
    natoms = len(data.atoms)
    induced, field = rng.normal(size=(2, natoms * FUNCTIONS.size))
    return data, induced, field, rng.normal(size=(natoms, SCALARS))


def outputs(module: DensityEnsemble, data, induced, field, elements) -> np.ndarray:
    graph = module.graph([data]) if module.needs_graph else None
    inputs = AtomInputs.of(module.architecture, induced, field, elements, graph)
    with torch.no_grad():
        return module(inputs).numpy()


def expansion(data) -> Expansion:
    return Expansion("density", dict.fromkeys(data.atoms.get_chemical_symbols(), FUNCTIONS))


def turned(data, rotation):
    atoms = data.atoms.copy()
    atoms.set_cell(atoms.cell.array @ rotation.T)
    atoms.positions = atoms.positions @ rotation.T
    return replace(
        data,
        atoms=atoms,
        overlap=data.overlap.rotated(rotation),
        h0=data.h0.rotated(rotation),
        hamiltonian=None,
        position=None,
    )


def random_orthogonal(seed: int, determinant: int) -> np.ndarray:
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * np.sign(np.linalg.det(matrix)) * determinant


def test_coefficients_survive_the_way_to_irreps_and_back():
    coefficients = torch.randn(3 * FUNCTIONS.size)
    there = to_irreps(coefficients, FUNCTIONS.counts)
    assert_allclose(to_coefficients(there, FUNCTIONS.counts), coefficients, atol=1e-14)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("determinant", [1, -1])
def test_coefficients_turn_with_the_crystal(network, determinant):
    data, induced, field, elements = structure(1)
    module = ensemble(network, data)
    rotation = random_orthogonal(3, determinant)
    own = expansion(data)
    symbols = data.atoms.get_chemical_symbols()

    def rotated(x):
        return own.rotated(symbols, x, rotation)

    before = outputs(module, data, induced, field, elements)
    after = outputs(module, turned(data, rotation), rotated(induced), rotated(field), elements)
    assert_allclose(after, [rotated(x) for x in before], atol=1e-10)
    assert np.abs(before[0] - before[1]).max() > 1e-3  # members differ


@pytest.mark.parametrize("network", NETWORKS)
def test_no_charge_comes_or_goes(network):
    data, *inputs = structure(2)
    found = outputs(ensemble(network, data), data, *inputs)
    charges = expansion(data).charges(data.atoms.get_chemical_symbols())
    assert_allclose(found @ charges, 0, atol=1e-10 * np.abs(found).max())
    assert np.abs(found).max() > 1e-3


def test_a_network_sees_the_free_atom_and_h0():
    data, induced, field, elements = structure(4)
    module = ensemble("transformer", data)
    before = outputs(module, data, induced, field, elements)
    other = elements.copy()
    other[0] += 1
    assert np.abs(outputs(module, data, induced, field, other) - before).max() > 1e-4
    changed = replace(data, h0=1.5 * data.h0)
    assert np.abs(outputs(module, changed, induced, field, elements) - before).max() > 1e-4


def test_the_linear_network_is_linear():
    data, induced, field, elements = structure(5)
    module = ensemble("linear", data)
    once = outputs(module, data, induced, field, elements)
    assert_allclose(outputs(module, data, 3 * induced, 3 * field, elements), 3 * once, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "cubic"}, "unknown network 'cubic'"),
        ({"hidden": "4x1o"}, "need scalars"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"counts": ()}, "at least one function"),
        ({"cutoff": 0.2}, "at least 2 and 1"),
    ],
)
def test_impossible_architectures_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DensityArchitecture(**{"counts": (2, 1), "scalars": 3, **options})


def test_inputs_of_another_size_are_refused():
    own = architecture("linear")
    with pytest.raises(ValueError, match=r"induced has shape \(7,\), but 2 atoms"):
        AtomInputs.of(own, np.zeros(7), np.zeros(7), np.zeros((2, SCALARS)))
    right = np.zeros(2 * FUNCTIONS.size)
    with pytest.raises(ValueError, match=r"\(2, 5\) are expected"):
        AtomInputs.of(own, right, right, np.zeros((2, 3)))


def model_info(network: str = "two-layer") -> ModelInfo:
    return ModelInfo(
        network="density",
        shells={"Ga": (0, 0, 1, 2), "As": (0, 1)},
        windows=(0, 4),
        cutoff=4.0,
        hyperparameters={
            "functions": functions_entry(FUNCTIONS),
            "scalars": SCALARS,
            "network": network,
            "hidden": HIDDEN,
            "cutoff": 4.0,
            "members": 3,
        },
    )


def test_a_model_comes_back_from_disk(tmp_path):
    info = model_info()
    module = bundle.build(info)
    bundle.save(tmp_path / "model", info, module)
    again, other = bundle.read(tmp_path / "model")
    assert (again.head, again.elements) == ("density", ("Ga", "As"))
    assert len(other.experts) == 3
    data, *inputs = structure(6, "GaAs")
    assert_allclose(outputs(other, data, *inputs), outputs(module, data, *inputs), atol=0)
    assert bundle.expansion_of(again).of("Ga").size == FUNCTIONS.size


def test_radial_functions_that_were_changed_are_refused(tmp_path):
    info = model_info()
    bundle.save(tmp_path / "model", info, bundle.build(info))
    file = tmp_path / "model" / "model.json"
    content = json.loads(file.read_text())
    content["hyperparameters"]["functions"]["exponents"][0][0] *= 1.001
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model\.json: the radial functions are not those"):
        bundle.read(tmp_path / "model")


def test_the_loader_of_pair_models_says_who_reads_this_one(tmp_path):
    from ase_nextham.model import load

    info = model_info()
    bundle.save(tmp_path / "model", info, bundle.build(info))
    with pytest.raises(ValueError, match=r"use ase_nextham\.load_model"):
        load(tmp_path / "model")


def test_without_the_first_density_h0_alone_decides():
    data, induced, field, elements = structure(7)
    own = replace(architecture("transformer"), first_density=False)
    shells = common_shells(data.basis.shells.values())
    module = DensityEnsemble(own, FUNCTIONS.charges, shells, 1)
    before = outputs(module, data, induced, field, elements)
    nothing = np.zeros_like(induced)
    assert_allclose(outputs(module, data, nothing, nothing, elements), before, atol=0)
    changed = replace(data, h0=1.5 * data.h0)
    assert np.abs(outputs(module, changed, nothing, nothing, elements) - before).max() > 1e-4
    with pytest.raises(ValueError, match="only the transformer sees"):
        replace(architecture("two-layer"), first_density=False)


def test_damaged_functions_and_impossible_ensembles_are_refused():
    info = model_info()
    for damage in ({"functions": {}}, {"functions": {"fingerprint": "", "exponents": 3}}):
        with pytest.raises(ValueError, match="the radial functions are damaged"):
            bundle.build(replace(info, hyperparameters=dict(info.hyperparameters) | damage))
    with pytest.raises(ValueError, match="members = 0: there is at least one network"):
        bundle.build(replace(info, hyperparameters=dict(info.hyperparameters) | {"members": 0}))
    with pytest.raises(ValueError, match="unknown hyperparameters depth"):
        bundle.build(replace(info, hyperparameters=dict(info.hyperparameters) | {"depth": 3}))
