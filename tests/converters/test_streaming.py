"""Conversion piece by piece gives what conversion in memory gives, in less memory."""

from __future__ import annotations

import filecmp
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ase_nextham import hdf5
from ase_nextham.converters import convert, stream_abacus, stream_spool, streaming, write
from ase_nextham.converters.streaming import convert_streaming, worth_streaming
from ase_nextham.h0 import csr_stream
from ase_nextham.h0.csr import read_csr, write_csr
from ase_nextham.h0.folder_writer import LAYOUTS
from ase_nextham.testing import random_lcao

TARGETS = [("native", {}), ("deeph", {}), *(("abacus", {"layout": name}) for name in LAYOUTS)]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Pieces so small that the small structures here have many."""
    monkeypatch.setattr(csr_stream, "PIECE", 2000)
    monkeypatch.setattr(csr_stream, "_BLOCK", 20000)
    monkeypatch.setattr(hdf5, "_SLAB", 5000)
    whole = stream_spool.slabs
    for module in (stream_spool, streaming, stream_abacus):
        monkeypatch.setattr(module, "slabs", lambda sizes, items, **_: whole(sizes, items, 3000))


def assert_same_content(a: Path, b: Path):
    if a.is_dir():
        names = sorted(path.relative_to(a) for path in a.rglob("*") if path.is_file())
        assert names == sorted(path.relative_to(b) for path in b.rglob("*") if path.is_file())
        for name in names:
            assert_same_content(a / name, b / name)
    elif a.suffix != ".h5":
        assert filecmp.cmp(a, b, shallow=False), a.name
    else:
        with h5py.File(a) as x, h5py.File(b) as y:
            assert content(x) == content(y)
            for name in content(x):
                if isinstance(x[name], h5py.Dataset):
                    assert x[name].dtype == y[name].dtype
                    assert_array_equal(x[name][()], y[name][()])


def content(file):
    """Names and attributes of all that is in an HDF5 file."""
    found = {"/": dict(file.attrs)}
    file.visititems(lambda name, item: found.update({name: dict(item.attrs)}))
    return found


def assert_converted_alike(source, folder, format, options, **both):
    """Convert both ways and compare all files; returns what the streaming way says."""
    folder.mkdir()
    step = both.pop("step", None)
    once, streamed = folder / "once.h5", folder / "streamed.h5"
    converted = convert(
        source,
        once,
        "abacus",
        format,
        read_options={"step": step},
        write_options=options,
        **both,
    )
    found = convert_streaming(source, streamed, format, step=step, **options, **both)
    assert {path.name for path in folder.iterdir()} == {"once.h5", "streamed.h5"}
    assert_same_content(once, streamed)
    assert found.operators == converted.operators
    assert found.atoms == converted.atoms
    return found


@pytest.mark.parametrize(("format", "options"), TARGETS)
@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_every_number_is_the_same(tmp_path, spin, format, options):
    data = random_lcao(0, "HAsH", spin=spin, magnetic=True, cutoff=2.6)  # STRU regroups this
    data = data.translated(np.random.default_rng(1).integers(-2, 3, (3, 3)))
    layout = {"unpolarised": "legacy text", "collinear": "new text", "spinor": "binary"}[spin]
    write(tmp_path / "source", data, "abacus", layout=layout)
    found = assert_converted_alike(tmp_path / "source", tmp_path / "x", format, options)
    assert found.npairs == len(data.pairs)
    assert found.species == data.symbols


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_every_layout_is_read(tmp_path, spin, layout):
    data = random_lcao(3, "HH", spin=spin, magnetic=True, cutoff=2.6)
    write(tmp_path / "source", data, "abacus", layout=layout)
    assert_converted_alike(tmp_path / "source", tmp_path / "x", "native", {})


@pytest.mark.parametrize(("format", "options"), TARGETS[:3])
@pytest.mark.parametrize(
    "run",
    ["v3.8.1/h2o", "v3.8.1/oh_nspin2", "v3.8.1/h2o_get_s", "v3.11.0-beta.1/h2o_soc"],
)
def test_real_runs_are_converted_alike(abacus_folders, tmp_path, run, format, options):
    assert_converted_alike(abacus_folders / run, tmp_path / "x", format, options)


@pytest.mark.parametrize("run", ["h2o_relax", "h2o_md"])
@pytest.mark.parametrize("step", [0, 1])
def test_of_several_ionic_steps_the_one_asked_for_is_converted(abacus_folders, tmp_path, run, step):
    source = abacus_folders / "v3.11.0-beta.1" / run
    assert_converted_alike(source, tmp_path / "x", "deeph", {}, step=step)
    with pytest.raises(ValueError, match=r"ionic steps \(0, 1\); choose one with step="):
        convert_streaming(source, tmp_path / "y", "deeph")


def test_runs_of_one_structure_are_joined(abacus_folders, tmp_path):
    for runs in (("h2o_step1", "h2o"), ("h2o", "h2o_get_s")):
        sources = [abacus_folders / "v3.8.1" / run for run in runs]
        found = assert_converted_alike(sources, tmp_path / runs[0], "native", {})
        assert "hamiltonian" in found.operators


def test_overlaps_of_two_runs_that_differ_are_refused(copied_run, tmp_path):
    a, b = copied_run("v3.8.1/h2o", "a"), copied_run("v3.8.1/h2o_step1", "b")
    path = b / "OUT.ABACUS" / "data-SR-sparse_SPIN0.csr"
    (record,) = read_csr(path)
    write_csr(path, [replace(record, value=record.value * (1 + 1e-4))], "legacy text")
    messages = []
    for how in (convert, convert_streaming):
        with pytest.raises(ValueError, match="the overlaps in .* differ by 0.0001") as error:
            how([a, b], tmp_path / "x.h5", target_format="native")
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("only", [["overlap"], ["h0", "overlap"], ["hamiltonian", "position"]])
def test_only_what_is_asked_for_is_kept(tmp_path, only):
    write(tmp_path / "source", random_lcao(5, "HH", cutoff=2.6), "abacus")
    for format, options in TARGETS[:3]:
        found = assert_converted_alike(
            tmp_path / "source", tmp_path / format, format, options, only=only
        )
        assert set(found.operators) == {"overlap", *only}


def test_labels_of_one_element_survive_or_are_refused_by_name(abacus_folders, tmp_path):
    source = abacus_folders / "v3.8.1" / "h2o_labels"
    assert_converted_alike(source, tmp_path / "x", "native", {})
    with pytest.raises(ValueError, match="DeepH has one set of orbitals for an element, but H1"):
        convert_streaming(source, tmp_path / "y", "deeph")
    assert {path.name for path in tmp_path.iterdir()} == {"x"}


def changed(path, operator, change):
    """Change the elements of a file; ``change`` gets the record and returns what to replace."""
    (record,) = read_csr(path)
    write_csr(path, [replace(record, operator=operator, **change(record))], "legacy text")


def without_a_lattice_vector(record):
    last = record.indptr[(len(record.R) - 1) * record.dimension]
    rows = (len(record.R) - 1) * record.dimension
    return {
        "R": record.R[:-1],
        "indptr": record.indptr[: rows + 1],
        "column": record.column[:last],
        "value": record.value[:last],
    }


def no_elements(record):
    return {"indptr": 0 * record.indptr, "column": record.column[:0], "value": record.value[:0]}


def one_orbital(record):
    number = len(record.R)
    return {
        "dimension": 1,
        "indptr": np.arange(number + 1),
        "column": np.zeros(number, int),
        "value": np.ones(number),
    }


@pytest.mark.parametrize(
    ("operator", "change", "message"),
    [
        ("H", without_a_lattice_vector, "its partner .* is missing: the file is incomplete"),
        ("S", no_elements, "this overlap matrix has no elements at all"),
        ("S", lambda record: {"value": record.value * (1 + 1e-3j)}, "is real, but this one has"),
        ("H", one_orbital, "matrix dimension is 1, but the orbitals of H2 O1 with nspin 1 give"),
    ],
)
def test_what_is_refused_in_memory_is_refused_in_the_same_words(
    copied_run, tmp_path, operator, change, message
):
    run = copied_run("v3.8.1/h2o")
    changed(run / "OUT.ABACUS" / f"data-{operator}R-sparse_SPIN0.csr", operator, change)
    before = set(tmp_path.iterdir())
    messages = []
    for how in (convert, convert_streaming):
        with pytest.raises(ValueError, match=message) as error:
            how(run, tmp_path / "x.h5", target_format="native")
        # the largest element of all, or of the piece at hand
        messages.append(re.sub(r"up to [\d.e-]+", "up to ...", str(error.value)))
    assert messages[0] == messages[1]
    assert set(tmp_path.iterdir()) == before


def test_numbers_that_are_not_finite_and_files_cut_short_are_refused(copied_run, tmp_path):
    run = copied_run("v3.8.1/h2o")
    path = run / "OUT.ABACUS" / "data-HR-sparse_SPIN0.csr"
    text = path.read_text()
    before = set(tmp_path.iterdir())
    for damaged, message in (
        (text.replace("e-01", "e+999", 1), "expected a number|is not a number"),
        (text[: len(text) // 2], "expected"),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=rf"data-HR-sparse_SPIN0.csr.*({message})"):
            convert_streaming(run, tmp_path / "x.h5", "native")
    assert set(tmp_path.iterdir()) == before


def test_complex_matrices_without_spin_are_refused_for_deeph(copied_run, tmp_path):
    run = copied_run("v3.8.1/h2o")
    path = run / "OUT.ABACUS" / "data-HR-sparse_SPIN0.csr"
    for factor in (1 + 0j, 1 + 1e-3j):
        changed(path, "H", lambda record, factor=factor: {"value": record.value.real * factor})
        if factor.imag:
            with pytest.raises(ValueError, match="imaginary parts up to .* DeepH's matrices"):
                convert_streaming(run, tmp_path / "y", "deeph")
            assert not (tmp_path / "y").exists()
        else:
            assert_converted_alike(run, tmp_path / "x", "deeph", {})


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path, abacus_folders):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(FileExistsError, match="full exists and is not empty"):
        convert_streaming("absent", tmp_path / "full", "deeph")
    with pytest.raises(ValueError, match="'wannier90' is not written piece by piece; that can be"):
        convert_streaming("absent", tmp_path / "x", "wannier90")
    with pytest.raises(ValueError, match="option 'layout' means nothing for format 'deeph'"):
        convert_streaming("absent", tmp_path / "x", "deeph", layout="binary")
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        convert_streaming("absent", tmp_path / "no" / "x.h5", "native")
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        convert_streaming("absent", tmp_path / "x.h5", "native")
    run = abacus_folders / "v3.8.1" / "h2o"
    with pytest.raises(ValueError, match="unknown layout 'xml'"):
        convert_streaming(run, tmp_path / "x", "abacus", layout="xml")
    with pytest.raises(ValueError, match="unknown operator 'H'; known: overlap"):
        convert_streaming(run, tmp_path / "x", "native", only=["H"])
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_large_runs_of_abacus_are_worth_it(abacus_folders, tmp_path, monkeypatch):
    run = abacus_folders / "v3.8.1" / "h2o"
    assert not worth_streaming(run)
    size = sum(path.stat().st_size for path in (run / "OUT.ABACUS").glob("data-*"))
    monkeypatch.setattr(streaming, "LARGE", size - 1)
    assert worth_streaming(run)
    assert worth_streaming([run])
    monkeypatch.setattr(streaming, "LARGE", size)
    assert not worth_streaming(run)
    assert worth_streaming([run, abacus_folders / "v3.8.1" / "h2o_step1"])
    hdf5.write(tmp_path / "x.h5", random_lcao(0))
    for other in (tmp_path / "x.h5", tmp_path, tmp_path / "absent"):
        assert not worth_streaming(other)


@pytest.mark.parametrize(("format", "options"), [*TARGETS[:2], TARGETS[-1]])
def test_memory_stays_far_below_the_size_of_the_files(tmp_path, monkeypatch, format, options):
    data = replace(random_lcao(2, "GaAs", spin="spinor", cutoff=2.8), h0=None, position=None)
    write(tmp_path / "source", data.repeated((2, 2, 1)), "abacus", layout="binary")
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.dat"))
    peaks = []
    for n, how in enumerate((convert, convert_streaming)):
        extra = {"write_options": options} if how is convert else options
        tracemalloc.start()
        how(tmp_path / "source", tmp_path / f"{n}.h5", target_format=format, **extra)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < size / 2 < 2 * size < peaks[0]
