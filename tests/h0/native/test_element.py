"""What is kept of elements, in memory and on disk."""

from __future__ import annotations

import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from ase_nextham.h0.native import element as element_module
from ase_nextham.h0.native.element import load_element


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(element_module, "_memory", {})


@pytest.fixture
def files(pseudo_dir, orbital_dir):
    return "H", pseudo_dir / "H.upf", orbital_dir / "H_gga_7au_100Ry_2s1p.orb", 20.0


def arrays(element):
    content = {"functions": element.functions} | vars(element.pseudopotential)
    content |= {f"form factor {name}": value for name, value in vars(element.form_factors).items()}
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def assert_equal(a, b):
    assert arrays(a).keys() == arrays(b).keys()
    for name, value in arrays(a).items():
        np.testing.assert_array_equal(value, arrays(b)[name], err_msg=name)
    assert (a.shells, a.spacing, a.orbital_fingerprint, a.key) == (
        b.shells,
        b.spacing,
        b.orbital_fingerprint,
        b.key,
    )
    assert a.pseudopotential.header == b.pseudopotential.header


def test_the_same_files_are_read_once_wherever_they_are(files, tmp_path):
    symbol, pseudo, orbital, ecut = files
    copy = shutil.copy(pseudo, tmp_path / "other_name.upf")
    assert load_element(symbol, copy, orbital, ecut) is load_element(*files)


def test_other_content_or_another_cutoff_is_another_element(files, tmp_path):
    symbol, pseudo, orbital, ecut = files
    changed = tmp_path / pseudo.name
    changed.write_text(pseudo.read_text() + "\n")
    first = load_element(*files)
    assert load_element(symbol, changed, orbital, ecut) is not first
    assert load_element(symbol, pseudo, orbital, 25.0).key != first.key


def test_a_later_process_finds_the_same_numbers_on_disk(files, tmp_path, monkeypatch):
    first = load_element(*files, cache=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 1
    element_module._memory.clear()

    def unexpected(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(element_module, "_compute", unexpected)
    assert_equal(load_element(*files, cache=tmp_path / "kept"), first)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", "half", "foreign"])
def test_a_damaged_entry_is_made_again(files, tmp_path, damage):
    first = load_element(*files, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    content = entry.read_bytes()
    if damage == "foreign":
        np.savez(entry, functions=np.zeros(3))
    else:
        entry.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    element_module._memory.clear()
    assert_equal(load_element(*files, cache=tmp_path), first)
    assert entry.read_bytes()[:2] == b"PK"
    element_module._memory.clear()
    assert element_module._read(entry) is not None


def test_processes_share_a_folder(files, tmp_path):
    with ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(load_element, *files, cache=tmp_path) for _ in range(4)]
        elements = [future.result() for future in futures]
    for element in elements[1:]:
        assert_equal(element, elements[0])
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_files_of_another_element_are_refused(files, pseudo_dir, orbital_dir):
    _, pseudo, orbital, ecut = files
    with pytest.raises(ValueError, match=r"O: the pseudopotential file .*H\.upf is for H"):
        load_element("O", pseudo, orbital, ecut)
    with pytest.raises(ValueError, match=r"O: the orbital file .*H_gga\S+ is for H"):
        load_element("O", pseudo_dir / "O.upf", orbital, ecut)
    load_element(*files)
    with pytest.raises(ValueError, match=r"O: the pseudopotential file .*H\.upf is for H"):
        load_element("O", pseudo, orbital, ecut)
