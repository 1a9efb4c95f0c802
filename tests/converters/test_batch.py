"""Many structures at once: each by itself, resumable, failures listed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ase_nextham import hdf5
from ase_nextham.cli import main
from ase_nextham.converters import convert_many, write
from ase_nextham.testing import random_lcao


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "sources"
    for seed, symbols in enumerate(["Si", "Ga", "HAs"]):
        write(folder / symbols, random_lcao(seed, symbols), format="abacus")
    return folder


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_structure_of_a_folder_is_converted(sources, tmp_path, jobs):
    batch = convert_many([sources], tmp_path / "out", target_format="native", jobs=jobs)
    assert sorted(batch.done) == ["Ga", "HAs", "Si"]
    assert not batch.failed
    for seed, symbols in enumerate(["Si", "Ga", "HAs"]):
        found, expected = hdf5.read(tmp_path / "out" / f"{symbols}.h5"), random_lcao(seed, symbols)
        assert np.abs((found.h0 - expected.h0).data).max() < 1e-11  # eV: text of 13 digits


def test_what_is_there_already_is_skipped(sources, tmp_path):
    convert_many([sources / "Si"], tmp_path / "out", target_format="native")
    stamp = (tmp_path / "out" / "Si.h5").stat().st_mtime_ns
    batch = convert_many([sources], tmp_path / "out", target_format="native")
    assert batch.skipped == ("Si",)
    assert sorted(batch.done) == ["Ga", "HAs"]
    assert (tmp_path / "out" / "Si.h5").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_that_fails_does_not_stop_the_others(sources, tmp_path, jobs):
    (matrix,) = (sources / "Ga" / "scf").rglob("data-HR*")
    matrix.write_bytes(matrix.read_bytes()[:1000])
    (sources / "empty").mkdir()
    batch = convert_many([*sources.iterdir()], tmp_path / "out", target_format="native", jobs=jobs)
    assert sorted(batch.done) == ["HAs", "Si"]
    assert sorted(batch.failed) == ["Ga", "empty"]
    assert "data-HR" in batch.failed["Ga"]
    assert "of no known format" in batch.failed["empty"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["HAs.h5", "Si.h5"]


def test_warnings_come_back_with_the_name_of_the_source(sources, tmp_path):
    batch = convert_many([sources], tmp_path / "out", target_format="deeph-legacy")
    assert sorted(batch.remarks) == ["Ga", "HAs", "Si"]
    assert "no place for r(R)" in batch.remarks["Ga"][0]


def test_two_sources_of_one_name_are_refused(sources, tmp_path):
    shutil.copytree(sources / "Si", tmp_path / "other" / "Si")
    with pytest.raises(ValueError, match=r"would both become .*Si\.h5"):
        convert_many([sources / "Si", tmp_path / "other" / "Si"], tmp_path, target_format="native")
    with pytest.raises(ValueError, match="no source was given"):
        convert_many([], tmp_path, target_format="native")
    with pytest.raises(ValueError, match="jobs must be at least 1, not 0"):
        convert_many([sources], tmp_path, target_format="native", jobs=0)


def test_the_command_lists_what_failed(sources, tmp_path, capsys):
    (sources / "Ga" / "scf" / "STRU").unlink()
    command = ["convert", "--each", str(sources), str(tmp_path / "out"), "--to", "native"]
    assert main(command) == 1
    output = capsys.readouterr()
    assert "2 structures done, 0 there already, 1 failed" in output.out
    assert "  Ga: " in output.err
    assert main(command) == 1
    assert "0 structures done, 2 there already, 1 failed" in capsys.readouterr().out


def test_links_keep_their_own_names(sources, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(sources / "Si")
    batch = convert_many([tmp_path / "a", tmp_path / "b"], tmp_path / "out", target_format="native")
    assert batch.done == ("a", "b")
