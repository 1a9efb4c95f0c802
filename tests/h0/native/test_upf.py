"""Pseudopotential files: what is read, and what is said about bad ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_nextham.h0.native.upf import read_pseudopotential


def test_all_sections_are_read_on_an_odd_mesh(pseudo_dir):
    data = read_pseudopotential(pseudo_dir / "O.upf")
    assert data.header.element == "O"
    assert data.header.mesh_size == 936
    for values in (data.r, data.rab, data.vloc, data.rho_atom, data.rho_core):
        assert values.shape == (935,)  # the last point of an even mesh is dropped
    np.testing.assert_allclose(data.r, 0.01 * np.arange(935))
    # far out the local potential is that of the valence charge, in Ry
    np.testing.assert_allclose(data.vloc[-1], -2 * 6 / data.r[-1], rtol=1e-6)
    np.testing.assert_allclose(data.rho_atom @ data.rab, 6, atol=1e-3)
    assert data.beta.shape == (8, 935)
    np.testing.assert_array_equal(data.beta_l, [0, 0, 1, 1, 1, 1, 2, 2])
    assert set(np.abs(data.beta_j - data.beta_l)) == {0.5}
    assert data.dij.shape == (8, 8)


def test_without_core_correction_there_is_no_core(pseudo_dir):
    assert read_pseudopotential(pseudo_dir / "H.upf").rho_core is None


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"<PP_RHOATOM.*?</PP_RHOATOM>", "", "H: .*bad.upf: there is no section PP_RHOATOM"),
        (r"</PP_LOCAL>", "", "PP_LOCAL: the section has no end"),
        (r"(<PP_R type[^>]*>\s*)0.0000", r"\1", "PP_R: 1165 numbers where .* announces 1166"),
        (r"(<PP_RAB[^>]*>\s*)\S+", r"\1 abc", "PP_RAB: could not convert"),
        (r"(<PP_RAB[^>]*>\s*)\S+", r"\1 nan", "PP_RAB: there are numbers that are not finite"),
        (r"(<PP_R type[^>]*>\s*)0.0000", r"\1 9.0", "PP_R: the mesh points do not increase"),
        (r'pseudo_type="NC"', 'pseudo_type="US"', "H: .* of type US; norm-conserving"),
        (r'jjj="0.5"', 'jjj="1.5"', "PP_RELBETA.1: l = 0, j = 1.5 does not go with l = 0"),
        (r'jjj="0.5"', "", "PP_RELBETA.1: lll and jjj must be numbers"),
        (r"<PP_RELBETA.1 ", "<PP_OTHER ", "there is no PP_RELBETA.1, which tells j"),
        (r'angular_momentum="0"', 'angular_momentum="9"', "angular_momentum is 9, expected"),
        (r'number_of_proj="\d+"', "", "there is no attribute 'number_of_proj'"),
        (r'number_of_proj="\d+"', 'number_of_proj="x"', "number_of_proj is 'x', not an integer"),
        (r'mesh_size="\s*1166"', 'mesh_size="999999999"', "mesh_size is 999999999"),
        (r"(<PP_DIJ[^>]*>\s*\S+\s+)\S+", r"\g<1>5.0", "PP_DIJ: .* not symmetric"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(pseudo_dir, tmp_path, pattern, replacement, message):
    text = (pseudo_dir / "H.upf").read_text()
    changed, count = re.subn(pattern, replacement, text, count=1, flags=re.DOTALL)
    assert count == 1
    (tmp_path / "bad.upf").write_text(changed)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        read_pseudopotential(tmp_path / "bad.upf")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fraction=st.floats(0, 0.99))
def test_a_file_cut_short_is_refused(pseudo_dir, tmp_path, fraction):
    content = (pseudo_dir / "H.upf").read_bytes()
    (tmp_path / "cut.upf").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"cut\.upf"):
        read_pseudopotential(tmp_path / "cut.upf")


def test_numbers_in_the_notation_of_fortran_are_read(pseudo_dir, tmp_path):
    text = (pseudo_dir / "H.upf").read_text()
    head, tail = text.split("<PP_LOCAL", 1)
    section, rest = tail.split("</PP_LOCAL>", 1)
    (tmp_path / "d.upf").write_text(f"{head}<PP_LOCAL{section.replace('E', 'D')}</PP_LOCAL>{rest}")
    expected = read_pseudopotential(pseudo_dir / "H.upf").vloc
    np.testing.assert_array_equal(read_pseudopotential(tmp_path / "d.upf").vloc, expected)
