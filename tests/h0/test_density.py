"""Densities in files: ABACUS's layout, and what is said about damaged ones."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ase_nextham.h0.density import read_density
from ase_nextham.units import BOHR

CELL = np.array([[0.0, 2.7, 2.8], [2.6, 0.1, 2.7], [2.7, 2.5, 0.0]])  # Angstrom
MILLER = np.array([[0, 0, 0], [1, -2, 0], [-1, 2, 0]])


def restart(path, rho, *, half=0):
    """Write what ABACUS writes, by the list of its records."""
    rho = np.asarray(rho, complex)
    columns = np.linalg.inv(CELL) * 10.2  # in units of the lattice constant
    with open(path, "wb") as file:
        for count, values in [
            (3, struct.pack("<3i", half, len(MILLER), len(rho))),
            (9, columns.astype("<f8").tobytes()),
            (3 * len(MILLER), MILLER.astype("<i4").tobytes()),
            *((len(MILLER), one.astype("<c16").tobytes()) for one in rho),
        ]:
            file.write(struct.pack("<i", count) + values + struct.pack("<i", count))
    return path


@pytest.mark.parametrize("nspin", [1, 2, 4])
def test_the_restart_file_of_abacus_is_read(tmp_path, nspin):
    rho = np.random.default_rng(0).normal(size=(nspin, 3)) + 0j
    density = read_density(restart(tmp_path / "ABACUS-CHARGE-DENSITY.restart", rho))
    total = rho[0] + rho[1] if nspin == 2 else rho[0]
    assert np.array_equal(density.miller, MILLER)
    assert np.array_equal(density.coefficients, total)
    volume = abs(np.linalg.det(CELL / BOHR))
    assert density.nelectrons(CELL) == pytest.approx(total[0].real * volume, rel=1e-12)


def test_the_compact_form_holds_the_same(tmp_path):
    rho = np.array([[0.1, 0.2 + 0.1j, 0.2 - 0.1j]])
    np.savez(tmp_path / "a.npz", miller=MILLER, rho_g=rho, reciprocal_vectors=np.linalg.inv(CELL))
    found = read_density(tmp_path / "a.npz")
    expected = read_density(restart(tmp_path / "a.restart", rho))
    assert np.array_equal(found.coefficients, expected.coefficients)
    assert found.nelectrons(CELL) == pytest.approx(expected.nelectrons(CELL), rel=1e-12)


def test_another_cell_is_noticed(tmp_path):
    density = read_density(restart(tmp_path / "a.restart", np.ones((1, 3))))
    with pytest.raises(ValueError, match="of another cell"):
        density.nelectrons(CELL.T)


def test_damage_is_named(tmp_path):
    whole = restart(tmp_path / "a.restart", np.ones((1, 3)))
    content = whole.read_bytes()
    cut = tmp_path / "cut.restart"
    for length in range(0, len(content), 7):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="incomplete or not a restart file"):
            read_density(cut)
    with pytest.raises(ValueError, match="half of the plane waves"):
        read_density(restart(tmp_path / "half.restart", np.ones((1, 3)), half=1))
    with pytest.raises(ValueError, match="3 spins"):
        read_density(restart(tmp_path / "three.restart", np.ones((3, 3))))
    with pytest.raises(ValueError, match="not finite"):
        read_density(restart(tmp_path / "nan.restart", np.full((1, 3), np.nan)))
    np.savez(tmp_path / "b.npz", miller=MILLER)
    with pytest.raises(ValueError, match="rho_g"):
        read_density(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", miller=MILLER, rho_g=np.ones((1, 2)), reciprocal_vectors=CELL)
    with pytest.raises(ValueError, match="do not fit together"):
        read_density(tmp_path / "c.npz")
