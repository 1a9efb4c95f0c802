"""Matrix files read in pieces: the same numbers and the same errors as at once."""

from __future__ import annotations

import re
import shutil
import tracemalloc
from datetime import timedelta

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ase_nextham.h0 import csr_stream
from ase_nextham.h0.csr import CSRMatrix, MatrixFileError, csr_matrices, read_csr, write_csr
from ase_nextham.h0.csr_stream import FileBytes, open_csr
from ase_nextham.testing import random_lcao

LAYOUTS = ("legacy text", "new text", "binary")
HEADER = ("path", "layout", "operator", "step", "dimension", "fermi_level", "spin_index")
HEADER += ("gamma_folded", "component")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Pieces and blocks so small that small files have many."""
    monkeypatch.setattr(csr_stream, "PIECE", 50)
    monkeypatch.setattr(csr_stream, "_BLOCK", 300)
    monkeypatch.setattr(csr_stream, "_NEAR", 40)


def put_together(stream):
    """The record that the pieces of a stream make up."""
    cuts = list(range(0, stream.dimension, 3)) + [stream.dimension]
    places = {tuple(R): n for n, R in enumerate(stream.R.tolist())}
    lengths = np.zeros((len(stream.R), stream.dimension), int)
    parts, order = [], []
    for piece in stream.pieces(cuts):
        lengths[places[tuple(piece.R[0])]] += piece.row_lengths(0)
        rows = np.flatnonzero(piece.row_lengths(0))
        order.append((places[tuple(piece.R[0])], rows[0]))
        parts.append(piece)
    assert order == sorted(order)
    dtype = complex if stream.complex else float
    return CSRMatrix(
        **{name: getattr(stream, name) for name in HEADER},
        R=stream.R,
        indptr=np.concatenate([[0], np.cumsum(lengths.ravel())]),
        column=np.concatenate([np.zeros(0, np.int32), *(p.column for p in parts)]),
        value=np.concatenate([np.zeros(0, dtype), *(p.value for p in parts)]),
    )


def assert_same_records(streams, records):
    assert len(streams) == len(records)
    for stream, record in zip(streams, records, strict=True):
        found = put_together(stream)
        for name in HEADER:
            assert getattr(found, name) == getattr(record, name)
        for name in ("R", "indptr", "column", "value"):
            assert_array_equal(getattr(found, name), getattr(record, name))
        assert found.value.dtype == record.value.dtype
        assert stream.nnz == record.nnz


def records_of(spin, steps=1):
    """H of a small structure, its numbers different in every step."""
    data = random_lcao(1, "HH", spin=spin, cutoff=2.4)
    records = csr_matrices({"h0": data.h0, "overlap": data.overlap})["h0"]
    first = records[0] if spin == "collinear" else records
    return data.atoms, [
        CSRMatrix(
            **{name: getattr(first, name) for name in HEADER if name not in ("step", "path")},
            path="x",
            step=step,
            R=first.R,
            indptr=first.indptr,
            column=first.column,
            value=first.value * (1 + step),
        )
        for step in range(steps)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
def test_pieces_make_up_what_is_read_at_once(tmp_path, layout, spin):
    atoms, records = records_of(spin, steps=3)
    write_csr(tmp_path / "x", records, layout, atoms=atoms, digits=9)
    streams = open_csr(tmp_path / "x")
    assert [stream.step for stream in streams] == [0, 1, 2]
    assert_same_records(streams, read_csr(tmp_path / "x"))


def test_real_files_are_read_as_at_once(abacus_folders, root):
    paths = [*abacus_folders.rglob("*.csr"), *(root / "tests" / "data" / "csr").rglob("*.csr")]
    assert len(paths) > 10
    for path in paths:
        assert_same_records(open_csr(path), read_csr(path))


def test_lines_may_end_as_on_windows_and_the_last_one_not_at_all(abacus_folders, tmp_path):
    for name in ("v3.8.1/h2o/OUT.ABACUS/data-HR-sparse_SPIN0.csr", "v3.11.0-beta.1/h2o"):
        path = abacus_folders / name
        path = path / "OUT.ABACUS" / "hrs1_nao.csr" if path.is_dir() else path
        data = path.read_bytes()
        for changed in (data.replace(b"\n", b"\r\n"), data.rstrip(b"\n")):
            (tmp_path / "x").write_bytes(changed)
            assert_same_records(open_csr(tmp_path / "x"), read_csr(tmp_path / "x"))


def test_a_file_without_elements_is_known_by_its_content(tmp_path):
    record = CSRMatrix("x", "memory", None, 0, 4, [[0, 0, 0]], np.zeros(5), [], [])
    write_csr(tmp_path / "x", [record], "binary")
    assert_same_records(open_csr(tmp_path / "x"), read_csr(tmp_path / "x"))


def test_pieces_are_cut_only_where_they_may_be(tmp_path, monkeypatch):
    atoms, records = records_of("unpolarised")
    write_csr(tmp_path / "x", records, "legacy text", atoms=atoms)
    monkeypatch.setattr(csr_stream, "PIECE", 1)
    (stream,) = open_csr(tmp_path / "x")
    half = stream.dimension // 2
    parts = [np.flatnonzero(p.row_lengths(0)) // half for p in stream.pieces([0, half, 2 * half])]
    assert len(parts) > len(stream.R)
    assert all(len(set(part)) == 1 for part in parts)


def outcome(read, path):
    """Numbers, or the error that there is instead."""
    try:
        records = read(path)
    except MatrixFileError as err:
        return str(err)
    return [(r.R.tolist(), r.indptr.tolist(), r.column.tolist(), r.value.tolist()) for r in records]


def in_pieces(path):
    return [put_together(stream) for stream in open_csr(path)]


@settings(
    max_examples=60,
    deadline=timedelta(seconds=5),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damage_is_noticed_in_pieces_where_it_is_noticed_at_once(tmp_path, data):
    layout = data.draw(st.sampled_from(LAYOUTS))
    atoms, records = records_of(data.draw(st.sampled_from(["unpolarised", "spinor"])), steps=2)
    path = tmp_path / "x"
    write_csr(path, records, layout, atoms=atoms, digits=3)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(["cut", "remove", "change"]))
    if change == "cut":
        del content[place:]
    elif change == "remove":
        del content[place]
    else:
        content[place] = data.draw(st.sampled_from(b"0-.e() \n#\x00\xff9"))
    path.write_bytes(content)
    once, pieces = outcome(read_csr, path), outcome(in_pieces, path)
    assert isinstance(once, str) == isinstance(pieces, str), (once, pieces)
    if not isinstance(once, str):
        assert once == pieces


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-01", "-0x", r"line \d+: expected a number, found '.*-0x'"),
        ("e-02", "e-02 1.0e-02", r"line \d+: 37 values of R = .*, expected 36"),
        (" 0 1 2 ", " 0 0 2 ", "column 0 stands twice in row 0"),
        (" 0 1 2 ", " 0 1 9 ", "column 9 is outside the matrix, whose dimension is 6"),
        (" 0 6 12 ", " 0 12 6 ", "the row pointers of R = .* decrease"),
        (" 30 36\n", " 30 35\n", r"row pointers of R = .* go from 0 to 35, expected 0 to 36"),
    ],
)
def test_errors_are_in_the_words_of_the_reader_of_whole_files(tmp_path, old, new, message):
    rng = np.random.default_rng(0)
    record = CSRMatrix(
        "x", "memory", "H", 0, 6, [[0, 0, 0]], 6 * np.arange(7), np.tile(np.arange(6), 6),
        rng.uniform(0.01, 0.2, 36),
    )  # fmt: skip
    write_csr(tmp_path / "x", [record], "legacy text", digits=3)
    text = (tmp_path / "x").read_text()
    assert old in text
    (tmp_path / "x").write_text(text.replace(old, new, 1))
    for read in (read_csr, in_pieces):
        with pytest.raises(MatrixFileError, match=message):
            read(tmp_path / "x")


def test_new_text_that_lacks_a_lattice_vector_is_refused(abacus_folders, tmp_path):
    path = abacus_folders / "v3.11.0-beta.1" / "h2o" / "OUT.ABACUS" / "hrs1_nao.csr"
    text = path.read_text()
    (announced,) = re.findall(r"(\d+) # number of Bravais", text)
    (tmp_path / "x").write_text(text.rstrip().rpartition("\n\n")[0] + "\n\n")
    for read in (read_csr, in_pieces):
        with pytest.raises(MatrixFileError, match=f"announces {announced} matrices, .* no partner"):
            read(tmp_path / "x")


def test_npz_archives_are_read_though_they_stay_in_memory(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        lattice_vectors=np.eye(3).ravel(),
        atom_info=np.array([[0, 1, 0, 0, 0], [0, 1, 0.5, 0.5, (0.5).real]]),
        orbital_info_0=np.zeros((2, 3)),
        **{f"mat_{i}_{j}_0_0_0": np.full((2, 2), 1.5 + i + j) for i in (0, 1) for j in (0, 1)},
    )
    assert_same_records(open_csr(tmp_path / "x.npz"), read_csr(tmp_path / "x.npz"))


def test_a_file_behaves_like_its_bytes(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(97, 100, 2000, np.uint8).tobytes()
    (tmp_path / "x").write_bytes(data)
    file = FileBytes(tmp_path / "x")
    assert len(file) == len(data)
    for start, stop in rng.integers(-10, 2010, (50, 2)).tolist():
        assert file[start:stop] == data[start:stop]
        start, stop = abs(start), abs(stop)
        assert file.count(b"a", start, stop) == data.count(b"a", start, stop)
        for sub in (b"a", b"abc", b"aaaaaa", b"x"):
            assert file.find(sub, start, stop) == data.find(sub, start, stop)
            assert file.find(sub, start) == data.find(sub, start)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_is_that_of_pieces(tmp_path, monkeypatch, layout):
    monkeypatch.undo()
    n = 700
    value = np.random.default_rng(0).normal(size=(2, n * n))
    record = CSRMatrix(
        "x", "memory", "H", 0, n, [[0, 0, 0], [1, 0, 0]], n * np.arange(2 * n + 1),
        np.tile(np.arange(n), 2 * n), value.ravel(),
    )  # fmt: skip
    write_csr(tmp_path / "x", [record], layout, atoms=Atoms("H", cell=np.eye(3)))
    monkeypatch.setattr(csr_stream, "PIECE", 1 << 15)
    monkeypatch.setattr(csr_stream, "_BLOCK", 1 << 18)
    peaks = []
    for read in (lambda: read_csr(tmp_path / "x"), lambda: pass_through(tmp_path / "x")):
        tracemalloc.start()
        read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 8e6 < 16e6 < peaks[0]


def pass_through(path):
    (stream,) = open_csr(path)
    for _ in stream.pieces(np.arange(0, stream.dimension + 1)):
        pass


def test_a_file_that_shrinks_is_noticed(tmp_path, abacus_folders):
    path = abacus_folders / "v3.8.1" / "h2o" / "OUT.ABACUS" / "data-HR-sparse_SPIN0.csr"
    shutil.copy(path, tmp_path / "x")
    (stream,) = open_csr(tmp_path / "x")
    (tmp_path / "x").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(OSError, match="x: the file became shorter while it was read"):
        for _ in stream.pieces([0, stream.dimension]):
            pass
