"""Backends by name."""

from __future__ import annotations

import pytest
from ase.calculators.calculator import CalculatorSetupError
from ase.config import Config

from ase_nextham import h0
from ase_nextham.h0 import abacus, elementfiles
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.testing import random_lcao


class Fixed:
    """The smallest backend."""

    def compute(self, atoms):
        return random_lcao(seed=0)


@pytest.fixture
def nothing_configured(monkeypatch, tmp_path):
    monkeypatch.setattr(elementfiles, "cfg", Config())
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in elementfiles.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


def configure(monkeypatch, text):
    config = Config()
    config.parser.read_string(text)
    monkeypatch.setattr(elementfiles, "cfg", config)


def test_an_object_that_computes_is_a_backend():
    backend = Fixed()
    assert h0.from_name(backend) is backend
    with pytest.raises(TypeError, match="Fixed is a backend already and takes no options"):
        h0.from_name(backend, nspin=4)


def test_abacus_gets_its_options():
    pytest.importorskip("abacuslite", reason="abacuslite is not installed")
    backend = h0.from_name("abacus", nspin=1, ecutwfc=70)
    assert isinstance(backend, abacus.AbacusH0)
    assert (backend.nspin, backend.ecutwfc) == (1, 70)
    with pytest.raises(TypeError, match="ecut_wfc"):
        h0.from_name("abacus", ecut_wfc=70)


def test_auto_without_anything_says_what_to_do(nothing_configured):
    with pytest.raises(CalculatorSetupError, match=r"pseudo_dir and orbital_dir not given(.|\n)*"):
        h0.from_name("auto")
    with pytest.raises(CalculatorSetupError, match="available: orbital_dir not given"):
        h0.from_name("auto", pseudo_dir="pseudo")


def test_auto_takes_a_configured_abacus(nothing_configured, monkeypatch):
    pytest.importorskip("abacuslite", reason="abacuslite is not installed")
    configure(monkeypatch, "[abacus]\ncommand = mpirun -n 2 abacus\n")
    assert h0.from_name("auto").profile.command == "mpirun -n 2 abacus"


def test_auto_computes_itself_where_the_files_are_known(nothing_configured, monkeypatch):
    backend = h0.from_name("auto", pseudo_dir="pseudo", orbital_dir="orbital", directory="run")
    assert isinstance(backend, NativeH0)

    monkeypatch.setenv("ABACUS_PP_PATH", "from/the/environment")
    monkeypatch.setenv("ABACUS_ORB_PATH", "from/the/environment")
    backend = h0.from_name("auto", nspin=1)
    assert (backend.pseudo_dir, backend.nspin) == ("from/the/environment", 1)

    configure(monkeypatch, "[abacus]\ncommand = abacus\npseudo_dir = a\norbital_dir = b\n")
    backend = h0.from_name("auto")
    assert isinstance(backend, NativeH0)
    assert (backend.pseudo_dir, backend.orbital_dir) == ("a", "b")


def test_auto_runs_abacus_for_options_that_only_a_program_has(nothing_configured, monkeypatch):
    pytest.importorskip("abacuslite", reason="abacuslite is not installed")
    configure(monkeypatch, "[abacus]\ncommand = abacus\npseudo_dir = a\norbital_dir = b\n")
    assert isinstance(h0.from_name("auto", timeout=60), abacus.AbacusH0)


def test_native_gets_its_options():
    backend = h0.from_name("native", pseudo_dir="a", orbital_dir="b", ecutwfc=70)
    assert backend.ecutwfc == 70
    with pytest.raises(TypeError, match="ecut_wfc"):
        h0.from_name("native", ecut_wfc=70)


@pytest.mark.parametrize(("name", "hint"), [("abcus", "did you mean 'abacus'"), ("OUT.X", "nor a")])
def test_unknown_names_get_help(name, hint):
    with pytest.raises(ValueError, match=hint):
        h0.from_name(name)


def test_a_path_is_a_stored_h0(tmp_path):
    from ase_nextham.h0.stored import StoredH0

    (tmp_path / "run").mkdir()
    assert isinstance(h0.from_name(tmp_path / "run"), StoredH0)
    assert isinstance(h0.from_name(str(tmp_path / "run")), StoredH0)
