"""Graphs of HamGNN give back the matrices of ABACUS that they were made of."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ase_nextham import hdf5
from ase_nextham.converters import guess_format, hamgnn, read, registry
from ase_nextham.testing import random_lcao

torch = pytest.importorskip("torch")

BOHR, RYDBERG = 0.529177, 13.605698
RY_TO_HARTREE = 13.60580 / 27.21138506  # HamGNN's
TABLES = {  # of HamGNN's tables for ABACUS: first place of each shell
    27: {"s": [0, 1, 2, 3], "p": [4, 7], "d": [10, 15], "f": [20]},
    15: {"s": [0, 1, 2, 3], "p": [4, 7], "d": [10]},
    13: {"s": [0, 1], "p": [2, 5], "d": [8]},
    40: {"s": [0, 1, 2, 3], "p": [4, 7, 10, 13], "d": [16, 21], "f": [26, 33]},
}


def places(shells, nao):
    table = {name: list(first) for name, first in TABLES[nao].items()}
    taken = []
    for l in shells:
        first = table["spdf"[l]].pop(0)
        taken += range(first, first + 2 * l + 1)
    return taken


@pytest.fixture
def torch_geometric(monkeypatch):
    """The two classes that files name, so that they can be pickled without the library."""
    made = {}
    for package in ("torch_geometric", "torch_geometric.data"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    names = {"data": ["Data", "DataEdgeAttr"], "storage": ["GlobalStorage"]}
    for module, classes in names.items():
        whole = types.ModuleType(f"torch_geometric.data.{module}")
        for name in classes:
            cls = type(name, (), {"__module__": whole.__name__, "__qualname__": name})
            setattr(whole, name, cls)
            made[name] = cls
        monkeypatch.setitem(sys.modules, whole.__name__, whole)
    return made


@pytest.fixture
def save(torch_geometric, tmp_path):
    """Function that writes graphs (dicts of tensors) as HamGNN's interface does."""

    def save(*graphs, name="graph_data.npz", old=False):
        wrapped = {}
        for number, fields in enumerate(graphs):
            graph = torch_geometric["Data"]()
            if old:
                graph.__dict__.update(fields)
            else:
                store = torch_geometric["GlobalStorage"]()
                store._mapping, store._parent = fields, graph
                graph._edge_attr_cls, graph._store = torch_geometric["DataEdgeAttr"], store
            wrapped[number] = graph
        np.savez(tmp_path / name, graph=wrapped)
        return tmp_path / name

    return save


@pytest.fixture
def data(abacus_folders):
    """Water: two elements, and overlaps with directions."""
    return read(abacus_folders / "v3.8.1" / "h2o")


@pytest.fixture(scope="module")
def gallium_arsenide(root):
    """Shells up to f; the Hamiltonian is the real part of that of spin up."""
    data = hdf5.read(root / "examples" / "data" / "GaAs_soc.h5")
    values = np.empty(len(data.overlap.data))
    groups = zip(data.hamiltonian.block_groups(), data.overlap.block_groups(), strict=True)
    for (_, _, _, both), (_, _, _, one) in groups:
        values[one] = data.hamiltonian.data[both][:, ::2, ::2].real
    H = replace(data.overlap, data=values)
    return replace(data, hamiltonian=H, h0=None, position=None)


def fields_of(data, nao=27):
    """A graph of a structure, by the description of HamGNN's interface to ABACUS."""
    pairs, cell = data.pairs, data.atoms.cell.array
    onsite = (pairs.i == pairs.j) & (pairs.R == 0).all(axis=1)
    rows = {}
    scale = {"S": 1.0, "H": RY_TO_HARTREE / RYDBERG}
    for letter, matrix in (("S", data.overlap), ("H", data.best_hamiltonian())):
        blocks = np.zeros((len(pairs), nao, nao), "f4")
        for p, (i, j, R) in enumerate(zip(pairs.i, pairs.j, pairs.R, strict=True)):
            here = np.ix_(*(places(data.basis.shells[data.symbols[a]], nao) for a in (i, j)))
            blocks[p][here] = scale[letter] * matrix.block(i, j, R)
        rows[letter] = torch.from_numpy(blocks.reshape(len(pairs), -1))
    R = pairs.R[~onsite]
    edge_index = np.stack([pairs.i, pairs.j])[:, ~onsite]
    return {
        "edge_index": torch.from_numpy(edge_index),
        "pos": torch.from_numpy((data.atoms.positions / BOHR).astype("f4")),
        "z": torch.from_numpy(data.atoms.numbers),
        "cell": torch.from_numpy((cell / BOHR).astype("f4")[None]),
        "total_energy": torch.tensor([-17.0]),
        "inv_edge_idx": torch.from_numpy(pairs.reverse[~onsite]),
        "nbr_shift": torch.from_numpy((R @ cell / BOHR).astype("f4")),
        "cell_shift": torch.from_numpy(R),
        "Hon": rows["H"][onsite],
        "Hoff": rows["H"][~onsite],
        "Hon0": 0.9 * rows["H"][onsite],
        "Hoff0": 0.9 * rows["H"][~onsite],
        "Son": rows["S"][onsite],
        "Soff": rows["S"][~onsite],
        "doping_charge": torch.tensor([0.0]),
    }


@pytest.mark.parametrize("old", [False, True], ids=["store", "attributes"])
@pytest.mark.parametrize(
    ("crystal", "nao"),
    [("data", 13), ("data", 15), ("data", 27), ("data", 40), ("gallium_arsenide", 27)],
)
def test_a_graph_holds_the_matrices_of_its_calculation(request, save, energies, crystal, nao, old):
    data = request.getfixturevalue(crystal)
    path = save(fields_of(data, nao), old=old)
    assert guess_format(path) == "hamgnn"
    found = read(path)
    assert found.symbols == data.symbols
    assert found.basis.shells == data.basis.shells
    assert found.h0 is None
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-6)  # Angstrom
    assert np.abs((found.overlap - data.overlap).data).max() < 1e-7
    H = data.best_hamiltonian()
    # single precision of elements of up to 40 eV
    assert np.abs((found.hamiltonian - H).data).max() < 1e-7 * np.abs(H.data).max()
    # an overlap in single precision moves the highest bands of GaAs by 5e-6 of themselves
    assert_allclose(energies(found), energies(data), rtol=1e-5, atol=1e-5)  # eV
    assert found.source == {"format": "HamGNN graph", "graph": 0, "doping charge": 0.0}


def test_one_of_several_graphs_is_chosen(save, data):
    path = save(fields_of(data), fields_of(data.permuted([0, 2, 1])))
    with pytest.raises(ValueError, match=r"it has 2 graphs; give sample=0 ... 1"):
        read(path)
    found = read(path, sample=1)
    assert np.abs((found.overlap - data.permuted([0, 2, 1]).overlap).data).max() < 1e-7
    with pytest.raises(ValueError, match=r"no graph 2, but 0 ... 1"):
        read(path, sample=2)


def test_what_prediction_starts_from_is_not_taken_for_the_hamiltonian(save, data):
    fields = fields_of(data)
    fields |= {"Hon0": fields["Hon"], "Hoff0": fields["Hoff"]}
    found = read(save(fields))
    assert found.hamiltonian is None
    assert "starting point" in found.source["hamiltonian"]


def test_it_is_for_reading_only(tmp_path):
    assert "hamgnn" in registry.FORMATS
    with pytest.raises(ValueError, match="'hamgnn' is for reading only"):
        registry.write(tmp_path / "x", random_lcao(0), format="hamgnn")


# --- what is refused ---------------------------------------------------------------------------


def swapped_p(fields):
    """The order x, y, z of p orbitals, as OpenMX has it."""
    order = np.arange(27)
    order[[4, 5, 6]] = 5, 6, 4
    for name in ("Son", "Soff", "Hon", "Hoff"):
        fields[name] = fields[name].reshape(-1, 27, 27)[:, order][:, :, order].reshape(-1, 729)


def without(name):
    def change(fields):
        del fields[name]

    return change


def setting(name, value):
    def change(fields):
        fields[name] = value(fields[name]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped_p, "does not point from one atom to the other .* another program"),
        (setting("iHon", torch.zeros(2)), "spin-orbit coupling .iHon."),
        (setting("ham_type", "openmx"), "it is of 'openmx'"),
        (
            setting("Son", lambda x: x[:, :676]),
            "rows of 676 numbers.*14, 19 and 26 are of .* OpenMX",
        ),
        (setting("Son", lambda x: x[:, :700]), "rows of 700 numbers"),
        (setting("Son", lambda x: 2 * x), "has 2 in a shell of l = 0"),
        (setting("Son", lambda x: 0 * x), "have none, or not the same orbitals"),
        (setting("Hoff", lambda x: x[:-1]), "Hoff has shape"),
        (setting("Hoff", None), "there is no Hoff; it has edge_index"),
        (without("cell"), "there is no cell"),
        (setting("cell", lambda x: x[0, :2]), r"cell has shape \(2, 3\), expected \(3, 3\)"),
        (setting("z", lambda x: 0 * x), "no atomic numbers"),
        (setting("z", lambda x: x[:0]), "no atomic numbers"),
        (setting("edge_index", lambda x: x + 1), "edges name atom 3, but there are 3 atoms"),
        (setting("edge_index", lambda x: x.float()), "edge_index are not integers"),
        (setting("cell_shift", lambda x: x + 1), "a shift that is not that lattice vector"),
        (setting("edge_index", lambda x: 0 * x), "do not make a matrix"),
        (setting("pos", "here"), "there is no pos"),
    ],
)
def test_graphs_that_do_not_fit_are_refused_with_a_reason(save, data, change, message):
    fields = fields_of(data)
    change(fields)
    with pytest.raises(ValueError, match=message) as caught:
        read(save(fields))
    assert "graph_data.npz: graph 0" in str(caught.value)


def test_nothing_in_a_file_is_run(save, data, tmp_path):
    class Attack:
        def __reduce__(self):
            return (sys.modules["os"].mkdir, (str(tmp_path / "made"),))

    path = save(fields_of(data) | {"z": Attack()})
    assert hamgnn.recognises(path)
    with pytest.raises(ValueError, match="graph_data.npz: .*mkdir, which is refused"):
        read(path)
    assert not (tmp_path / "made").exists()


def test_other_archives_are_not_taken_for_graphs(tmp_path, save, data):
    np.savez(tmp_path / "numbers.npz", graph=np.eye(3))
    np.savez(tmp_path / "several.npz", graph=np.array({}, object), more=1)
    np.savez(tmp_path / "hrs1_nao.npz", mat_0_0_0_0_0=np.eye(3))
    torch.save([1], tmp_path / "x.npz")
    (tmp_path / "text.npz").write_text("graph.npy")
    for name in ("numbers.npz", "several.npz", "hrs1_nao.npz", "x.npz", "text.npz"):
        assert not hamgnn.recognises(tmp_path / name), name
    assert not hamgnn.recognises(tmp_path)
    np.savez(tmp_path / "other.npz", graph=np.array({"a": [1]}, object))
    with pytest.raises(ValueError, match="its graphs are not PyTorch Geometric's"):
        read(tmp_path / "other.npz", format="hamgnn")
    np.savez(tmp_path / "empty.npz", graph=np.array({}, object))
    with pytest.raises(ValueError, match="'graph' is no dict of graphs"):
        read(tmp_path / "empty.npz", format="hamgnn")
    np.savez(tmp_path / "a.npz", a=1)
    with pytest.raises(ValueError, match="no array of objects 'graph', but a"):
        read(tmp_path / "a.npz", format="hamgnn")


def test_a_file_cut_anywhere_is_refused(save, data, tmp_path):
    whole = save(fields_of(data, 13)).read_bytes()
    for length in np.linspace(0, len(whole) - 1, 60, dtype=int):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        assert not hamgnn.recognises(tmp_path / "cut.npz")
        with pytest.raises(ValueError, match="cut.npz"):
            read(tmp_path / "cut.npz", format="hamgnn")


@given(
    content=st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(max_examples=50, deadline=None)
def test_objects_of_any_kind_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.npz"
    whole = np.empty((), object)
    whole[()] = content
    np.savez(path, graph=whole)
    assert hamgnn.recognises(path)
    with pytest.raises(ValueError, match="any.npz"):
        read(path)


def test_lattice_vectors_are_kept_where_atoms_stand_outside_the_cell(save, data):
    moved = data.translated(np.array([[1, 0, -2], [0, 1, 0], [0, 0, 0]]))
    found = read(save(fields_of(moved)))
    assert np.abs((found.overlap - moved.overlap).data).max() < 1e-7
    H = moved.best_hamiltonian()
    assert np.abs((found.hamiltonian - H).data).max() < 1e-7 * np.abs(H.data).max()
