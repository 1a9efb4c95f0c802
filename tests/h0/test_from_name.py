"""Backends by name."""

from __future__ import annotations

import pytest
from ase.calculators.calculator import CalculatorSetupError
from ase.config import Config

from ase_nextham import h0
from ase_nextham.h0 import abacus, elementfiles
from ase_nextham.testing import random_lcao


class Fixed:
    """The smallest backend."""

    def compute(self, atoms):
        return random_lcao(seed=0)


@pytest.fixture
def no_abacus(monkeypatch, tmp_path):
    monkeypatch.setattr(elementfiles, "cfg", Config())
    monkeypatch.setenv("PATH", str(tmp_path))


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


def test_auto_without_abacus_says_what_to_do(no_abacus):
    with pytest.raises(CalculatorSetupError, match=r"section \[abacus\](.|\n)*computed earlier"):
        h0.from_name("auto")


def test_auto_takes_a_configured_abacus(no_abacus, monkeypatch):
    pytest.importorskip("abacuslite", reason="abacuslite is not installed")
    config = Config()
    config.parser.read_string("[abacus]\ncommand = mpirun -n 2 abacus\n")
    monkeypatch.setattr(elementfiles, "cfg", config)
    assert h0.from_name("auto").profile.command == "mpirun -n 2 abacus"


def test_native_is_not_there_yet():
    with pytest.raises(ValueError, match="no H\\(0\\) engine of its own; use h0='abacus'"):
        h0.from_name("native")


@pytest.mark.parametrize(("name", "hint"), [("abcus", "did you mean 'abacus'"), ("OUT.X", "nor a")])
def test_unknown_names_get_help(name, hint):
    with pytest.raises(ValueError, match=hint):
        h0.from_name(name)


def test_a_path_is_a_stored_h0(tmp_path):
    from ase_nextham.h0.stored import StoredH0

    (tmp_path / "run").mkdir()
    assert isinstance(h0.from_name(tmp_path / "run"), StoredH0)
    assert isinstance(h0.from_name(str(tmp_path / "run")), StoredH0)
