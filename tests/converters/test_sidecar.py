"""Notes beside foreign files: they give back what was written, for their own files only."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ase_nextham.converters.sidecar import (
    NAME,
    read_sidecar,
    restored,
    sidecar_path,
    write_sidecar,
)
from ase_nextham.testing import random_lcao


@pytest.fixture
def noted(tmp_path):
    """Data, the reordered and moved data that a format holds, and the note between them."""
    data = random_lcao(0, "GaAsH")
    order, shifts = [2, 0, 1], np.array([[1, 0, 0], [0, -2, 0], [0, 0, 3]])
    (tmp_path / "POSCAR").write_text("structure")
    write_sidecar(
        tmp_path / NAME, data, [tmp_path / "POSCAR"], order=order, shifts=shifts, extra={"x": 1}
    )
    return data, data.permuted(order).translated(shifts), tmp_path


def test_order_and_cell_images_are_undone(noted):
    data, stored, folder = noted
    note = read_sidecar(sidecar_path(folder), [folder / "POSCAR"])
    found = restored(stored, note)
    assert note["extra"] == {"x": 1}
    assert found.symbols == data.symbols
    assert_allclose(found.atoms.positions, data.atoms.positions, atol=1e-12)  # Angstrom
    assert np.abs((found.h0 - data.h0).data).max() == 0
    assert found.source == data.source


def test_a_note_is_not_used_for_files_that_changed(noted):
    _, _, folder = noted
    (folder / "POSCAR").write_text("another structure")
    with pytest.warns(UserWarning, match="POSCAR changed after this note was written"):
        assert read_sidecar(folder / NAME, [folder / "POSCAR"]) is None
    assert read_sidecar(folder / "absent.json", []) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": [0, 0, 1]}, "'order' is no permutation of 3 atoms"),
        ({"shifts": [[0, 0]]}, r"'shifts' has shape \(1, 2\), expected \(3, 3\)"),
        ({"pbc": [True]}, "'pbc' is not three words"),
        ({"format": "else"}, "format is 'else', expected"),
        ({"format_version": 99, "pbc": []}, "format version 99, but this release reads"),
    ],
)
def test_a_damaged_or_newer_note_is_told(noted, change, message):
    path = noted[2] / NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_sidecar(path, [noted[2] / "POSCAR"])


def test_what_is_not_json_is_told(noted):
    path = noted[2] / NAME
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="not a readable note of ase_nextham"):
        read_sidecar(path, [])


def test_a_note_for_other_atoms_is_refused(noted):
    data, _, folder = noted
    note = read_sidecar(folder / NAME, [folder / "POSCAR"])
    with pytest.raises(ValueError, match="is for atoms H Ga As, but they hold Ga As H"):
        restored(data, note)


def test_images_are_integers(noted):
    data, _, folder = noted
    with pytest.raises(TypeError, match="shifts must be integers, not float64"):
        write_sidecar(folder / "x.json", data, [], shifts=np.zeros((3, 3)))
