"""Densities in files: ABACUS's layouts, and what is said about damaged ones."""

from __future__ import annotations

import struct
import tarfile

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


SHAPE = (6, 5, 8)


def test_damaged_files_of_the_compact_form_are_named(tmp_path):
    rho = np.ones((1, 3), complex)
    whole = tmp_path / "a.npz"
    np.savez_compressed(whole, miller=MILLER, rho_g=rho, reciprocal_vectors=CELL)
    content = whole.read_bytes()
    bad = tmp_path / "bad.npz"
    for length in range(0, len(content), 37):
        bad.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"bad\.npz is damaged, or no \.npz file"):
            read_density(bad)
    rng, messages = np.random.default_rng(0), []
    for _ in range(50):
        damaged, place = bytearray(content), rng.integers(len(content) - 4)
        damaged[place : place + 4] = rng.bytes(4)
        bad.write_bytes(damaged)
        try:
            read_density(bad)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 25
    assert all("bad.npz" in message for message in messages)


def cube(path, values, *, nspin=1, comment="{} # number of spin directions 0.5 # Fermi energy"):
    """Write what ABACUS writes, with all digits."""
    lines = ["Ionic_Step 1  Cubefile created from ABACUS", comment.format(nspin), "1 0.0 0.0 0.0 "]
    for n, vector in zip(values.shape, CELL / BOHR, strict=True):
        lines.append(f"{n} " + " ".join(f"{x / n:.6f}" for x in vector))
    lines.append(" 14 4.000000 0.0 0.1 0.2")
    lines += [" " + " ".join(f"{x:.16e}" for x in row) for row in values.reshape(-1, SHAPE[2])]
    path.write_text("\n".join(lines) + "\n")
    return path


def on_grid(density) -> np.ndarray:
    """The sum of plane waves at the points of the grid."""
    points = np.stack(np.indices(SHAPE), axis=-1) / SHAPE
    phases = np.exp(2j * np.pi * points @ density.miller.T)
    return (phases @ density.coefficients).real


@pytest.fixture
def values():
    """On the grid, of plane waves that it can say, with two electrons in the cell."""
    points = np.stack(np.indices(SHAPE), axis=-1) / SHAPE
    angles = 2 * np.pi * points @ [[1, 0], [-2, 1], [3, -2]]
    return (2 + np.cos(angles[..., 0]) + np.sin(angles[..., 1])) / np.linalg.det(CELL / BOHR)


def test_a_cube_file_is_read(tmp_path, values):
    density = read_density(cube(tmp_path / "chg.cube", values))
    assert np.abs(on_grid(density) - values).max() < 1e-12 * values.max()
    assert density.nelectrons(CELL) == pytest.approx(2, rel=1e-12)
    with pytest.raises(ValueError, match="of another cell"):
        density.nelectrons(CELL.T)


@pytest.mark.parametrize(
    ("names", "comment"),
    [
        (("chgs1.cube", "chgs2.cube"), "{} # number of spin directions 0.5 # Fermi energy"),
        (("SPIN1_CHG.cube", "SPIN2_CHG.cube"), "{} (nspin) 0.5 (fermi energy, in Ry)"),
    ],
)
def test_cube_files_of_both_spins_are_added(tmp_path, values, names, comment):
    for name, share in zip(names, (0.75, 0.25), strict=True):
        cube(tmp_path / name, share * values, nspin=2, comment=comment)
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        assert np.abs(on_grid(read_density(path)) - values).max() < 1e-12 * values.max()
    cube(tmp_path / names[1], values[:, :, ::2], nspin=2, comment=comment)
    with pytest.raises(ValueError, match="are of different cells or grids"):
        read_density(tmp_path)
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{names[1]} is not beside it"):
        read_density(tmp_path)


def test_of_spinors_the_first_cube_file_is_the_density(tmp_path, values):
    cube(tmp_path / "chgs1.cube", values, nspin=4)
    cube(tmp_path / "chgs2.cube", 0.1 * values, nspin=4)
    found = read_density(tmp_path)
    assert found.nelectrons(CELL) == pytest.approx(2, rel=1e-12)
    with pytest.raises(ValueError, match=r"chgs2\.cube is one of 4 components"):
        read_density(tmp_path / "chgs2.cube")


def test_the_restart_file_has_the_suffix_of_its_run(tmp_path):
    folder = tmp_path / "OUT.h0"
    folder.mkdir()
    for name, electrons in (("h0", 1.0), ("left", 2.0)):
        restart(folder / f"{name}-CHARGE-DENSITY.restart", [[electrons, 0.1, 0.1]])
    assert read_density(folder).coefficients[0] == 1.0
    other = folder.rename(tmp_path / "output")
    with pytest.raises(ValueError, match=r"several runs, h0-CHARGE.* and left-CHARGE"):
        read_density(other)
    (other / "h0-CHARGE-DENSITY.restart").unlink()
    assert read_density(other).coefficients[0] == 2.0


def test_a_folder_without_a_density_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no density, which is SUFFIX-.*out_chg 1"):
        read_density(tmp_path)


def test_cube_and_restart_of_one_calculation_agree(root, tmp_path):
    with tarfile.open(root / "tests" / "data" / "density" / "oh.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    restart, cube = read_density(tmp_path), read_density(tmp_path / "chg.cube")
    places = {tuple(m): n for n, m in enumerate(cube.miller.tolist())}
    own = [places[tuple(m)] for m in restart.miller.tolist()]
    error = np.abs(cube.coefficients[own] - restart.coefficients).max()
    # eight decimals were written; beyond the cutoff the cube file has more
    assert error < 1e-8 * np.abs(restart.coefficients).max()
    assert len(cube.miller) > len(restart.miller)


def test_damaged_cube_files_are_named(tmp_path, values):
    content = cube(tmp_path / "chg.cube", values).read_text()
    bad = tmp_path / "bad.cube"
    for length in [*range(0, 200, 11), *range(200, len(content) - 2, 501)]:
        bad.write_text(content[:length])
        with pytest.raises(ValueError, match=r"bad\.cube: "):
            read_density(bad)
    for old, new, message in [
        ("\n6 ", "\n6000000 ", "do not fit into"),
        ("\n6 ", "\n-6 ", "positive integers are expected"),
        ("\n6 ", "\n7 ", "values, but"),
        ("\n1 0.0", "\n-1 0.0", "positive integers are expected"),
        ("\n1 0.0", "\n1 0.5", "instead of the origin"),
        ("e-02 ", "e-0x ", "is not a number"),
        ("e-02 ", "e+999 ", "not finite"),
    ]:
        assert old in content
        bad.write_text(content.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            read_density(bad)
