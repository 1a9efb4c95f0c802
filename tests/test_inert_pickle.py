"""Pickles and torch files are read for their numbers, and nothing in them is ever run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ase_nextham import inert_pickle
from ase_nextham.inert_pickle import Global, Record, read_npy, read_npz, read_pickle, read_torch

torch = pytest.importorskip("torch")

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Attack:
    """Leaves a file behind when it is unpickled by the real thing."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Plain:
    """A class that the reader does not know."""

    def __init__(self):
        self.weight = np.arange(3.0)


# --- honest content ----------------------------------------------------------------------------

ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ATOMS |= st.binary() | st.complex_numbers(allow_nan=False)
TREES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text(), st.text()), inner)
        | st.sets(st.text() | st.integers())
        | st.frozensets(st.text())
    ),
    max_leaves=20,
)


@given(TREES, st.sampled_from(PROTOCOLS))
@settings(max_examples=300, deadline=None)
def test_containers_survive_every_protocol(tree, protocol):
    assert read_pickle(pickle.dumps(tree, protocol)) == tree


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6, dtype="i4").reshape(2, 3).T,
        np.arange(3, dtype=">f8"),
        np.array([1 + 2j, 3], np.complex64),
        np.array([True, False]),
        np.array(["a", "été"]),
        np.array([b"ab", b"c"]),
        np.zeros((0, 4)),
        np.float32(2.5),
        np.int64(-3),
    ],
    ids=lambda a: f"{a.dtype.str}{np.shape(a)}",
)
def test_arrays_survive_every_protocol(array, protocol):
    content = pickle.dumps(array, protocol)
    found = read_pickle(content)
    assert found.dtype == pickle.loads(content).dtype  # NumPy makes some byte orders native
    assert_array_equal(found, array)


def test_shared_and_cyclic_objects_stay_what_they_are():
    inner = [1]
    tree = {"a": inner, "b": inner}
    tree["self"] = tree
    found = read_pickle(pickle.dumps(tree))
    assert found["a"] is found["b"]
    assert found["self"] is found


def torch_objects():
    base = torch.arange(24.0).reshape(2, 3, 4)
    return {
        "view": base[1, :, ::2],
        "transposed": base.permute(2, 0, 1),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "expanded": torch.ones(1).expand(5),
        "empty": torch.zeros(0, 3),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "half": torch.tensor([1.5], dtype=torch.float16),
        "list": [torch.tensor([1, 2]), torch.tensor([True, False])],
        "bytes": torch.tensor([-1, 3], dtype=torch.int8),
        "unsigned": torch.tensor([7], dtype=torch.uint16),
    }


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_torch_files_hold_what_torch_loads(tmp_path, new):
    path = tmp_path / "x.pth"
    objects = torch_objects()
    if not new:
        del objects["unsigned"]  # which torch itself cannot read from a stream
    torch.save(objects, path, _use_new_zipfile_serialization=new)
    found, expected = read_torch(path), torch.load(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        for a, b in zip(
            *([v] if name != "list" else v for v in (found[name], tensor)), strict=True
        ):
            assert_array_equal(a, b.detach().resolve_conj().numpy(), strict=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_in_a_plain_pickle_are_read(protocol):
    found = read_pickle(pickle.dumps(torch_objects(), protocol))
    for name, tensor in torch_objects().items():
        if name != "list":
            assert_array_equal(found[name], tensor.detach().resolve_conj().numpy())


def test_bfloat16_becomes_float32(tmp_path):
    torch.save(torch.tensor([1.5, -2.0, 3e38], dtype=torch.bfloat16), tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt")
    assert found.dtype == np.float32
    assert_array_equal(found, torch.load(tmp_path / "x.pt").float().numpy())


def test_big_endian_files_are_read(tmp_path):
    path = tmp_path / "x.pt"
    torch.save([torch.tensor([1.0, 2.0]), torch.tensor([3])], path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["x/byteorder"] = b"big"
    content["x/data/0"] = np.array([1.0, 2.0], ">f4").tobytes()
    content["x/data/1"] = np.array([3], ">i8").tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    a, b = read_torch(path)
    assert_array_equal(a, [1, 2])
    assert_array_equal(b, [3])


def test_a_state_dict_is_a_dict_of_arrays(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt")
    assert found["epoch"] == 3
    for name, tensor in model.state_dict().items():
        assert_array_equal(found["state_dict"][name], tensor.numpy())


def test_a_whole_module_comes_out_as_records_of_its_state(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    model.activation = torch.sigmoid
    torch.save(model, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: .* asks for torch.nn.modules.container.Sequenti"):
        read_torch(tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt", records="any")
    assert isinstance(found, Record)
    linear = found.state["_modules"]["0"]
    assert (linear.module, linear.name) == ("torch.nn.modules.linear", "Linear")
    assert_array_equal(linear.state["_parameters"]["weight"], model[0].weight.detach().numpy())
    # a bound builtin: what it would be is written down, and not looked up
    assert found.state["activation"].args[1] == "sigmoid"


def test_modules_of_e3nn_come_out_with_their_weights(tmp_path):
    o3 = pytest.importorskip("e3nn.o3")
    irreps = o3.Irreps("2x0e+1x1o")
    module = o3.FullyConnectedTensorProduct(irreps, irreps, "3x0e+1x1e")
    torch.save(module, tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt", records="any")
    weight = found.state["_parameters"]["weight"]
    assert_array_equal(weight, module.weight.detach().numpy())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_of_allowed_modules_come_out_as_records(protocol):
    content = pickle.dumps([Plain(), Plain], protocol)
    found, cls = read_pickle(content, records=[Plain.__module__])
    assert isinstance(found, Record)
    assert found.name == "Plain"
    assert_array_equal(found.state["weight"], np.arange(3.0))
    assert cls == Global(Plain.__module__, "Plain")
    with pytest.raises(ValueError, match="Plain, which is refused"):
        read_pickle(content, records=["elsewhere"])


@pytest.mark.parametrize("compress", [False, True])
def test_object_arrays_in_numpy_files_are_read(tmp_path, compress):
    objects = np.array({0: [torch.arange(3), "a"]}, dtype=object)
    save = np.savez_compressed if compress else np.savez
    save(tmp_path / "x.npz", graph=objects, plain=np.eye(3, order="F"), text=np.array(["ab"]))
    found = read_npz(tmp_path / "x.npz")
    assert list(found) == ["graph", "plain", "text"]
    assert_array_equal(found["graph"].item()[0][0], [0, 1, 2])
    assert_array_equal(found["plain"], np.eye(3))
    assert_array_equal(found["text"], ["ab"])
    np.save(tmp_path / "x.npy", objects)
    assert read_npy(tmp_path / "x.npy").item()[0][1] == "a"


def test_a_large_file_is_mapped_and_not_read(tmp_path):
    torch.save([torch.zeros(8_000_000), torch.ones(3)], tmp_path / "x.pt")
    tracemalloc.start()
    found = read_torch(tmp_path / "x.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_array_equal(found[1], 1)
    assert peak < 1_000_000  # bytes; the file has 32 million


# --- attacks -----------------------------------------------------------------------------------


def hostile_pickles(path):
    """Pickles that make a folder when they are run, one for each way to call."""
    mkdir = b"cos\nmkdir\n"
    argument = b"X" + struct.pack("<I", len(str(path))) + str(path).encode()
    one = argument + b"\x85"
    yield "REDUCE", mkdir + one + b"R."
    yield "NEWOBJ", b"\x80\x02" + mkdir + one + b"\x81."
    yield "NEWOBJ_EX", b"\x80\x04" + mkdir + one + b"}\x92."
    yield "INST", b"(" + argument + b"ios\nmkdir\n."
    yield "OBJ", b"(" + mkdir + argument + b"o."
    yield "STACK_GLOBAL", b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + one + b"R."
    yield "posix", b"cposix\nmkdir\n" + one + b"R."
    yield "nested name", b"\x80\x04\x8c\x05numpy\x8c\x08os.mkdir\x93" + one + b"R."
    yield "getattr", b"cbuiltins\ngetattr\n(cos\npath\nX\x05\x00\x00\x00mkdirtR."
    yield "eval", b"cbuiltins\neval\n" + one + b"R."
    yield "__builtin__", b"c__builtin__\nexec\n" + one + b"R."
    yield "in a key", b"}" + mkdir + one + b"RNs."
    yield "BUILD", b"cos\nmkdir\n}b."
    yield "thrown away", mkdir + one + b"R0N."
    yield "numpy", b"cnumpy.testing._private.utils\nrunstring\n" + one + b"R."
    yield "torch", b"ctorch.hub\nload\n" + one + b"R."
    yield "reconstructor", b"ccopy_reg\n_reconstructor\n(" + mkdir + b"c__builtin__\nobject\nNtR."
    yield "call of a result", b"ccollections\nOrderedDict\n)R" + one + b"R."


@pytest.mark.parametrize("records", [(), "any"])
def test_nothing_hostile_is_called(tmp_path, records):
    target = tmp_path / "made"
    for name, content in hostile_pickles(target):
        allowed = records == "any" and name in ("nested name", "numpy", "torch")
        if allowed:  # names that no list knows: written down, and not called
            assert isinstance(read_pickle(content, records=records), Record)
        else:
            with pytest.raises(ValueError, match="refused|damaged"):
                read_pickle(content, records=records)
        assert not target.exists(), name


def test_the_error_names_the_file_and_what_was_asked(tmp_path):
    target = tmp_path / "made"
    name = f"{os.mkdir.__module__}.mkdir"
    for wrapped in (Attack(target), [1, {"a": (Attack(target),)}], np.array([Attack(target)])):
        torch.save(wrapped, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=rf"x.pth: .* asks for {name}, which is refused"):
            read_torch(tmp_path / "x.pth")
        np.savez(tmp_path / "x.npz", graph=np.array(wrapped, dtype=object))
        with pytest.raises(ValueError, match=rf"x.npz: .* asks for {name}, which is refused"):
            read_npz(tmp_path / "x.npz")
        torch.save(wrapped, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        with pytest.raises(ValueError, match=rf"old.pth: .* asks for {name}, which is refused"):
            read_torch(tmp_path / "old.pth")
    assert not target.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_attack_inside_the_bytes_of_a_tensor_is_refused(tmp_path, protocol):
    class Nested:
        def __reduce__(self):
            inner = io.BytesIO()
            torch.save(Attack(tmp_path / "made"), inner)
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    with pytest.raises(ValueError, match="asks for .*mkdir, which is refused"):
        read_pickle(pickle.dumps(Nested(), protocol))
    assert not (tmp_path / "made").exists()


def test_torch_files_within_torch_files_end_somewhere():
    class Deep:
        def __init__(self, depth):
            self.depth = depth

        def __reduce__(self):
            inner = io.BytesIO()
            torch.save(Deep(self.depth - 1) if self.depth else 0, inner)
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    with pytest.raises(ValueError, match="within each other, 3 deep"):
        read_pickle(pickle.dumps(Deep(10)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x82\x01.", "extension registry"),
        (b"\x83\x01\x00.", "extension registry"),
        (b"\x84\x01\x00\x00\x00.", "extension registry"),
        (b"\x80\x05\x97.", "buffers outside itself"),
        (b"P1\n.", "data outside itself"),
        (b"K\x01Q.", "data outside itself"),
        (b"\x80\x09N.", "protocol 9"),
        (b"h\x07.", "an object 7 that it has not made"),
        (b"R.", "damaged pickle"),
        (b"0.", "damaged pickle"),
        (b"t.", "damaged pickle"),
        (b"NN.", "more or less than one object"),
        (b"(N.", "more or less than one object"),
        (b"(NK\x01Nd.", "a key without a value"),
        (b"Na.", "damaged pickle"),
        (b"K\x01Na.", "appends to a int"),
        (b"]}NNsb.", "sets the state of a list"),
        (b"\xff.", "damaged pickle"),
        (b"", "damaged pickle"),
        (b"N", "damaged pickle"),
        (b"X\xff\xff\xff\x7fabc", "damaged pickle"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f" + b"abc", "damaged pickle"),
        (b"\x8b\xff\xff\xff\x7f\x01", "damaged pickle"),
        (b"\x80\x04\x95" + b"\xff" * 8, "damaged pickle"),
        (b"Nr\xff\xff\xff\xff\x85" + b"j\xff\xff\xff\xff.", "more or less"),
        (b"]N" + b"]s.", "damaged pickle"),
        (b"}]Ns.", "a list as key"),
        (b"\x80\x04\x8f(\x8f\x90.", "a set as key of a dict or member of a set"),
        (b"ctorch\nFloatStorage\n)R.", "asks to call torch.FloatStorage"),
        (b"cnumpy\nndarray\n)R.", "asks to call numpy.ndarray"),
        (b"ccollections\nOrderedDict\nNR.", "arguments of a call are not a tuple"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "not made of pairs"),
        (b"I" + b"9" * 10000 + b"\n.", "damaged pickle"),
    ],
)
def test_damaged_pickles_are_refused_with_a_reason(content, message):
    with pytest.raises(ValueError, match=message):
        read_pickle(content)


def test_a_key_that_takes_forever_to_hash_is_refused():
    nested = b")" + b"2\x86" * 60  # each tuple holds the one before twice: 2**60 leaves
    with pytest.raises(ValueError, match="a tuple as key"):
        read_pickle(b"}" + nested + b"Ns.")
    assert isinstance(read_pickle(nested + b"."), tuple)


def test_deep_nesting_needs_no_recursion():
    found = read_pickle(b"]" * 100_000 + b"a" * 99_999 + b".")
    for _ in range(10):
        (found,) = found


def test_too_many_opcodes_are_refused(monkeypatch):
    monkeypatch.setattr("ase_nextham.inert_pickle.interpreter.MAX_OPCODES", 1000)
    with pytest.raises(ValueError, match="more than 1000 pickle opcodes"):
        read_pickle(b"]" + b"N0" * 1000 + b".")


@pytest.mark.parametrize("opcodes", [b"\x8f", b"}", b"]0]", b"N\x94", b"(d"])
def test_many_small_objects_are_refused_before_they_fill_the_memory(monkeypatch, opcodes):
    monkeypatch.setattr("ase_nextham.inert_pickle.interpreter._FREE", 2**20)
    with pytest.raises(ValueError, match="objects would need .* bytes in all"):
        read_pickle(b"\x80\x04(" + opcodes * 100_000 + b"t.")


def array_pickle(shape, code="f8", content=b"", order=b"\x89"):
    """A pickle of an array whose state says whatever one wants."""
    text = code.encode()
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
    type_ = b"cnumpy\ndtype\nU" + bytes([len(text)]) + text + b"K\x00K\x01\x87R"
    lengths = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape)
    raw = b"\x8e" + struct.pack("<Q", len(content)) + content
    return head + b"K\x01(" + lengths + b"t" + type_ + order + raw + b"tb."


def test_arrays_that_claim_more_than_they_hold_are_refused():
    assert_array_equal(read_pickle(array_pickle((2,), content=bytes(16))), [0, 0])
    for shape in [(2**40,), (2**31, 2**31, 2**31), (3,), (-1,), (-2, -1), (1,)]:
        with pytest.raises(ValueError, match="damaged pickle|as a length|size of its type"):
            read_pickle(array_pickle(shape, content=bytes(16)))
    with pytest.raises(ValueError, match="arrays of type V8 are not read"):
        read_pickle(array_pickle((2,), "V8", bytes(16)))
    with pytest.raises(ValueError, match="an array of objects has not as many"):
        read_pickle(array_pickle((2,), "O8", bytes(16)))
    twice = array_pickle((2,), content=bytes(16))
    with pytest.raises(ValueError, match="fills an array twice"):
        read_pickle(twice[:-1] + b"Nb.")


def altered(tmp_path, change, objects=None, name="x.pt"):
    """A zip file of torch.save whose entries (a dict of bytes) were changed."""
    path = tmp_path / name
    torch.save({"a": torch.arange(6.0)} if objects is None else objects, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in content.items():
            archive.writestr(entry, data)
    return path


def replaced(old, new):
    def change(content):
        assert old in content["x/data.pkl"]
        content["x/data.pkl"] = content["x/data.pkl"].replace(old, new)

    return change


def test_tensors_stay_inside_their_storage(tmp_path):
    whole = altered(tmp_path, lambda content: None)
    assert_array_equal(read_torch(whole)["a"], np.arange(6))
    count = b"K\x06t"
    for change, message in [
        (
            replaced(count, b"J\xff\xff\xff\x7ft"),
            "a storage of 2147483647 float32 needs 8589934588",
        ),
        (replaced(count, b"\x8a\x08" + b"\xff" * 7 + b"\x7ft"), "a storage of 9223372036854775807"),
        (replaced(count, b"J\xff\xff\xff\xfft"), "without key or size"),
        (replaced(count, b"K\x05t"), "reaches element 5 of a storage of 5"),
        (replaced(b"QK\x00K\x06\x85", b"QK\x01K\x06\x85"), "reaches element 6 of a storage of 6"),
        (replaced(b"QK\x00K\x06\x85", b"QK\x00K\x07\x85"), "reaches element 6"),
        (replaced(b"QK\x00", b"QJ\xff\xff\xff\xff"), "size, strides and offset do not fit"),
        (replaced(b"FloatStorage", b"NoteStorage"), "asks for torch.NoteStorage"),
        (replaced(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"), "refers to data 7, which"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_torch(altered(tmp_path, change))


def test_persistent_ids_name_entries_of_the_archive_and_nothing_else(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(24))
    for key in (str(secret), "../../secret", "../data.pkl/../../secret", "0\x00"):
        text = b"X" + struct.pack("<I", len(key)) + key.encode()
        path = altered(tmp_path, replaced(b"X\x01\x00\x00\x000", text))
        with pytest.raises(ValueError, match="refers to data .*, which the archive does not hold"):
            read_torch(path)


def test_an_expanded_tensor_that_would_fill_the_memory_is_refused(tmp_path):
    torch.save(torch.zeros(1).expand(10**12), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="would need 40000000.* bytes in all"):
        read_torch(tmp_path / "x.pt")
    one = torch.zeros(1)
    torch.save([one.as_strided((10**6 - n,), (0,)) for n in range(100)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="would need [67]"):  # many steps of 4 MB
        read_torch(tmp_path / "x.pt")


def test_zip_archives_that_lie_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(4)}, path)
    good = path.read_bytes()
    directory = good.rindex(b"PK\x01\x02", 0, good.index(b"PK\x05\x06"))
    for at, what in [(20, "two sizes"), (42, "is not where|reaches|damaged"), (8, "encrypted")]:
        bad = bytearray(good)
        bad[directory + at] ^= 0x21
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=what):
            read_torch(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps(list(range(100)), 2))
    with pytest.raises(ValueError, match="data.pkl is compressed"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x/data.pkl", b"N.")
    with pytest.raises(ValueError, match="stands twice"):
        read_torch(path)


def test_a_program_is_not_a_data_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
        archive.writestr("x/constants.pkl", b"N.")
    with pytest.raises(ValueError, match="a TorchScript program, which holds code"):
        read_torch(tmp_path / "x.pt")


def test_a_zip_bomb_is_not_inflated(tmp_path):
    path = tmp_path / "x.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as f,
    ):
        for _ in range(100):
            f.write(bytes(1_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match="a.npy would have 100000000 bytes in a file of"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_npy_headers_that_lie_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(4.0))
    good = path.read_bytes()
    for old, new, message in [
        (b"(4,)", b"(9,)", "needs 72 bytes, there are 32"),
        (b"(4,), ", b"(9**9)", "no readable NPY"),
        (b"'<f8'", b"'|O'  ", "damaged pickle"),
        (b"NUMPY\x01", b"NUMPY\x07", "no NPY file of format"),
        (b"(4,)", b"(-4,", "no readable NPY"),
        (b"(4,)", b"-4  ", "not a tuple"),
        (b"(4,)", b"(4.)", "not a tuple"),
        (b"'<f8'", b"'<V8'", "arrays of type <V8"),
        (b"'<f8'", b"9**9 ", "no readable NPY"),
    ]:
        assert old in good
        path.write_bytes(good.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_npy(path)


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    """Name, reader and content of a small file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    objects = [OrderedDict(a=torch.arange(3.0)), ("x", 1.5)]
    torch.save(objects, folder / "zip.pt")
    torch.save(objects, folder / "stream.pt", _use_new_zipfile_serialization=False)
    np.savez(folder / "objects.npz", a=np.array(objects, dtype=object))
    np.savez_compressed(folder / "deflated.npz", a=np.array(objects, dtype=object))
    (folder / "plain.pkl").write_bytes(pickle.dumps(objects))
    readers = {"zip.pt": read_torch, "stream.pt": read_torch, "plain.pkl": read_pickle}
    readers |= {"objects.npz": read_npz, "deflated.npz": read_npz}
    return [(name, read, (folder / name).read_bytes()) for name, read in readers.items()]


def test_a_file_cut_at_any_byte_is_refused(tmp_path, good_files):
    for name, read, whole in good_files:
        cut = tmp_path / f"cut_{name}"
        cut.write_bytes(whole)
        found = read(cut)
        assert len(found["a"] if name.endswith("npz") else found) == 2
        for length in range(0, len(whole), 1 if name in ("stream.pt", "plain.pkl") else 7):
            cut.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=f"cut_{name}"):
                read(cut)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_never_raise_anything_but_a_value_error(tmp_path_factory, good_files, data):
    name, read, whole = data.draw(st.sampled_from(good_files))
    bad = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"bad_{name}"
    path.write_bytes(bad)
    try:
        read(path)
    except ValueError as err:
        assert f"bad_{name}" in str(err)  # noqa: PT017


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_raise_anything_but_a_value_error(content):
    try:
        read_pickle(content, records="any")
    except ValueError as err:
        assert str(err).startswith("pickle: ")  # noqa: PT017


def test_empty_and_foreign_files_are_told(tmp_path):
    for content, message in [
        (b"", "not a file of torch.save"),
        (b"hello", "not a file of torch.save"),
        (b"PK\x03\x04", "damaged or incomplete zip"),
    ]:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_torch(tmp_path / "x")
        with pytest.raises(ValueError, match=r"x: "):
            read_npz(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "none")


def test_entry_names_need_no_reading(tmp_path):
    np.savez(tmp_path / "x.npz", a=1, b=2)
    assert inert_pickle.entry_names(tmp_path / "x.npz") == ("a.npy", "b.npy")
