"""Matrix files of ABACUS: every layout, there and back, and what is wrong with them in words."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose, assert_array_equal

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.h0.csr import (
    CSRMatrix,
    MatrixFileError,
    csr_matrices,
    lcao_matrices,
    read_csr,
    write_csr,
)
from ase_nextham.h0.csr_numbers import BadNumber, read_numbers
from ase_nextham.h0.csr_text import read_text
from ase_nextham.testing import random_lcao

LAYOUTS = ("legacy text", "new text", "binary")
HEH = Basis({"He": (0, 0, 1), "H": (0, 0, 1)})
NAMES = {
    "v311": {"H": "hrs1_nao.csr", "S": "srs1_nao.csr", "r": "rr.csr"},
    "v381": {
        "H": "data-HR-sparse_SPIN0.csr",
        "S": "data-SR-sparse_SPIN0.csr",
        "r": "data-rR-sparse.csr",
    },
}
CELL = np.array([[3.1, 0.2, 0.0], [0.0, 7.9, 0.0], [0.0, 0.3, 8.1]])
POSITIONS = [[0.31, 0.22, 0.13], [1.72, 0.64, 0.85]]


@pytest.fixture
def golden(root):
    return root / "tests" / "data" / "csr"


def golden_matrices(golden, version, nspin, *, with_r=True):
    """LCAO matrices of the files of one ABACUS version."""
    folder, names = golden / f"{version}_n{nspin}", NAMES[version]
    named = {"hamiltonian": read_csr(folder / names["H"])[0]}
    named["overlap"] = read_csr(folder / names["S"])[0]
    if with_r:
        components = read_csr(folder / names["r"])
        named |= {f"position {x}": r for x, r in zip("xyz", components, strict=True)}
    return lcao_matrices(named, HEH, ["He", "H"])


def named_operators(data):
    return {
        "overlap": data.overlap,
        "hamiltonian": data.hamiltonian,
        **{f"position {x}": r for x, r in zip("xyz", data.position, strict=True)},
    }


def grouped(symbols, **options):
    """A random structure with its atoms in the order that STRU has: species by species."""
    data = random_lcao(3, symbols, **options)
    return data.permuted(sorted(range(len(data.symbols)), key=lambda a: data.symbols[a]))


def as_tuple(records):
    return (records,) if isinstance(records, CSRMatrix) else records


def random_record(seed, *, dimension=6, complex_values=False, step=0, operator="H"):
    """A Hermitian sparse matrix without physics, an empty R among the others."""
    rng = np.random.default_rng(seed)
    R = np.array([[-1, 0, 2], [0, -1, 0], [0, 0, 0], [0, 1, 0], [1, 0, -2]])
    blocks = rng.normal(size=(5, dimension, dimension))
    if complex_values:
        blocks = blocks + 1j * rng.normal(size=blocks.shape)
    blocks *= 10.0 ** rng.integers(-9, 3, blocks.shape) * (rng.random(blocks.shape) < 0.6)
    blocks = blocks + blocks[::-1].conj().transpose(0, 2, 1)
    blocks[[0, -1]] = 0
    n, mu, nu = np.nonzero(blocks)
    count = np.bincount(n * dimension + mu, minlength=5 * dimension)
    return CSRMatrix(
        path="random",
        layout="memory",
        operator=operator,
        step=step,
        dimension=dimension,
        R=R,
        indptr=np.concatenate([[0], np.cumsum(count)]),
        column=nu,
        value=blocks[n, mu, nu],
    )


def assert_same_record(record, other, *, rtol=0.0):
    assert record.step == other.step
    assert record.dimension == other.dimension
    assert_array_equal(record.R, other.R)
    assert_array_equal(record.indptr, other.indptr)
    assert_array_equal(record.column, other.column)
    assert np.iscomplexobj(record.value) == np.iscomplexobj(other.value)
    for part in ("real", "imag"):
        assert_allclose(getattr(record.value, part), getattr(other.value, part), rtol=rtol, atol=0)


def write_text(path, text):
    path.write_text(text)
    return path


LEGACY = """\
STEP: 0
Matrix Dimension of H(R): 2
Matrix number of H(R): 3
-1 0 0 1
 1.00000000e-02
 1
 0 1 1
0 0 0 2
 -5.00000000e-01 2.50000000e-01
 0 1
 0 1 2
1 0 0 1
 1.00000000e-02
 0
 0 0 1
"""

NEW = """\
 --- Ionic Step 1 ---
 # print H matrix in real space H(R)
 1 # number of spin directions
 1 # spin index
 2 # number of localized basis
 3 # number of Bravais lattice vector R

 user_defined_lattice
 10
 1 0 0
 0 1 0
 0 0 1
 H
 2
 Direct
 0 0 0
 0.5 0 0

 #----------------------------------------------------------------------#
 #                               CSR Format                             #
 #----------------------------------------------------------------------#

 -1 0 0 1
 # CSR values
 1.00000000e-02
 # CSR column indices
 1
 # CSR row pointers
 0 1 1

 0 0 0 2
 # CSR values
 -5.00000000e-01 2.50000000e-01
 # CSR column indices
 0 1
 # CSR row pointers
 0 1 2

 1 0 0 1
 # CSR values
 1.00000000e-02
 # CSR column indices
 0
 # CSR row pointers
 0 0 1

"""


def assert_is_the_small_matrix(record):
    assert (record.operator, record.step, record.dimension) == ("H", 0, 2)
    assert_array_equal(record.R, [[-1, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert_array_equal(record.indptr, [0, 1, 1, 2, 3, 3, 4])
    assert_array_equal(record.column, [1, 0, 1, 0])
    assert_array_equal(record.value, [0.01, -0.5, 0.25, 0.01])


# --- files that ABACUS wrote -------------------------------------------------------------------


@pytest.mark.parametrize("nspin", [1, 4])
def test_the_layouts_of_two_abacus_versions_hold_the_same_matrices(golden, nspin):
    new = golden_matrices(golden, "v311", nspin, with_r=nspin == 1)
    old = golden_matrices(golden, "v381", nspin)
    for name, matrix in new.items():
        atol = 0.0 if name in ("hamiltonian", "overlap") else 6e-9  # Angstrom; 9 digits against 17
        assert_allclose((matrix - old[name]).data, 0, atol=atol)


@pytest.mark.parametrize("nspin", [1, 4])
def test_matrices_of_abacus_obey_their_laws(golden, nspin):
    named = golden_matrices(golden, "v381", nspin)
    atoms = Atoms("HeH", cell=CELL, positions=POSITIONS, pbc=True)
    data = LCAOData(
        atoms=atoms,
        overlap=named["overlap"],
        hamiltonian=named["hamiltonian"],
        position=tuple(named[f"position {x}"] for x in "xyz"),
    )
    assert data.hamiltonian.spin == ("spinor" if nspin == 4 else "unpolarised")
    assert data.hamiltonian.hermitian_error() < 1e-6  # eV, the digits printed
    assert data.hamiltonian.time_reversal_error() < 2e-3  # eV; mag 0.00002 on each atom
    assert data.overlap.hermitian_error() < 1e-8
    for atom in range(2):
        assert_allclose(np.diag(data.overlap.block(atom, atom, (0, 0, 0))), 1, atol=1e-8)
    assert data.position_error() < 2e-6  # Angstrom; ABACUS's cell has 6 digits


def test_two_files_of_nspin_2_make_a_collinear_matrix(golden):
    up, down = (
        read_csr(golden / "v381_n2" / f"data-HR-sparse_SPIN{spin}.csr")[0] for spin in (0, 1)
    )
    H = lcao_matrices({"hamiltonian": (up, down)}, HEH, ["He", "H"])["hamiltonian"]
    assert H.spin == "collinear"
    only_up = lcao_matrices({"hamiltonian": up}, HEH, ["He", "H"])["hamiltonian"]
    assert_array_equal(H.data[0], only_up.data)
    assert np.abs(H.data[0] - H.data[1]).max() > 0.1  # eV


def test_h_without_elements_is_refused_with_the_version_that_writes_it(golden):
    empty = read_csr(golden / "v311_n2" / "hrs1_nao.csr")[0]
    assert (len(empty.R), len(empty.value), empty.spin_index) == (5, 0, 0)
    with pytest.raises(MatrixFileError, match=r"hrs1_nao.csr: .*no elements.*3.11.0-beta.1"):
        lcao_matrices({"hamiltonian": (empty, empty)}, HEH, ["He", "H"])


@pytest.mark.parametrize("nspin", [1, 4])
def test_files_of_abacus_are_rewritten_to_the_last_byte(golden, tmp_path, nspin):
    records = csr_matrices(golden_matrices(golden, "v381", nspin))
    several = {
        "H": [records["hamiltonian"]],
        "S": [records["overlap"]],
        "r": [records[f"position {x}"] for x in "xyz"],
    }
    for operator, name in NAMES["v381"].items():
        write_csr(tmp_path / name, several[operator], "legacy text")
        theirs = (golden / f"v381_n{nspin}" / name).read_bytes()
        assert (tmp_path / name).read_bytes() == theirs


@pytest.mark.parametrize("nspin", [1, 4])
def test_new_text_is_rewritten_to_the_last_byte(golden, tmp_path, nspin):
    records = csr_matrices(golden_matrices(golden, "v311", nspin, with_r=False))
    atoms = Atoms("HeH", cell=CELL, positions=POSITIONS)
    for operator, name in (("H", "hamiltonian"), ("S", "overlap")):
        path = tmp_path / NAMES["v311"][operator]
        write_csr(path, [records[name]], "new text", atoms=atoms)
        theirs = (golden / f"v311_n{nspin}" / path.name).read_bytes()
        # all but the positions, of which ABACUS prints other last digits
        ours, theirs = (re.sub(rb"Direct\n( .+\n)+", b"", t) for t in (path.read_bytes(), theirs))
        assert ours == theirs


def test_reference_data_is_hermitian(shared_data):
    name = "Si2_nspin1/get_hs/OUT.ABACUS/data-HR-sparse_SPIN0.csr"
    with tarfile.open(shared_data / "abacus" / "scf" / "Si2_nspin1.tar.xz") as archive:
        member = next(m for m in archive if m.name.endswith(name))
        (record,) = read_text(name, archive.extractfile(member).read())
    H = lcao_matrices({"h0": record}, Basis({"Si": (0, 0, 1, 1, 2)}), ["Si", "Si"])["h0"]
    assert H.hermitian_error() < 1e-10  # eV


PYATB = """
import json, numpy as np, pyatb
options = json.load(open("options.json"))
model = pyatb.init_tb(
    package="ABACUS", lattice_constant=1.0, lattice_vector=np.array(options["cell"]),
    nspin=options["nspin"], HR_route="H", HR_unit="Ry", SR_route="S",
    need_rR=True, rR_route="r", rR_unit="Bohr",
)
_, energies = model.tb_solver.diago_H(np.array([options["k"]]))
np.save("energies.npy", energies)
"""


@pytest.mark.pyatb
@pytest.mark.parametrize(("spin", "nspin"), [("unpolarised", 1), ("spinor", 4)])
def test_pyatb_reads_what_is_written(tmp_path, energies, spin, nspin):
    if not find_spec("pyatb"):
        pytest.skip("PYATB is not installed")
    data = grouped("GaAs", spin=spin)
    records = csr_matrices(named_operators(data))
    write_csr(tmp_path / "H", [records["hamiltonian"]], "legacy text", digits=14)
    write_csr(tmp_path / "S", [records["overlap"]], "legacy text", digits=14)
    write_csr(tmp_path / "r", [records[f"position {x}"] for x in "xyz"], "legacy text", digits=14)
    k = [0.1, -0.3, 0.45]
    options = {"cell": data.atoms.cell.array.tolist(), "nspin": nspin, "k": k}
    (tmp_path / "options.json").write_text(json.dumps(options))
    # in a process and folder of its own: importing PYATB writes ./Out
    subprocess.run([sys.executable, "-c", PYATB], cwd=tmp_path, check=True, capture_output=True)
    theirs = np.sort(np.load(tmp_path / "energies.npy").ravel())
    # PYATB's Rydberg is 13.605698066 eV
    assert_allclose(theirs, energies(data, k), rtol=2e-8, atol=1e-6)  # eV


def run_abacus(folder, shared_data, golden, *lines):
    """Iterations that a self-consistent run of the golden structure takes, with more keywords."""
    keywords = [
        f"pseudo_dir {shared_data / 'pseudo'}",
        f"orbital_dir {shared_data / 'orbital'}",
        "INPUT_PARAMETERS\ncalculation scf\nbasis_type lcao\nks_solver scalapack_gvx\nsymmetry 0",
        "ecutwfc 60\nscf_thr 1e-8\nscf_nmax 60\nout_mat_hs2 1 12\nsuffix ABACUS",
    ]
    (folder / "INPUT").write_text("\n".join([keywords[2], *keywords[:2], keywords[3], *lines, ""]))
    for name in ("STRU", "KPT"):
        shutil.copy(golden / name, folder)
    done = subprocess.run(["abacus"], cwd=folder, check=True, capture_output=True, text=True)
    return len(re.findall(r"^ (?:GV|GE)\d+ ", done.stdout, re.MULTILINE))


@pytest.mark.abacus
def test_abacus_starts_from_the_h_that_is_written(tmp_path, shared_data, golden):
    if shutil.which("abacus") is None:
        pytest.skip("there is no `abacus` on PATH")
    version = subprocess.run(["abacus", "--version"], capture_output=True, text=True, check=True)
    if tuple(map(int, re.search(r"v(\d+)\.(\d+)", version.stdout).groups())) < (3, 11):
        pytest.skip("init_chg hr and the new text layout came with ABACUS 3.11")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    from_atoms = run_abacus(first, shared_data, golden)
    (record,) = read_csr(first / "OUT.ABACUS" / "hrs1_nao.csr")
    H = lcao_matrices({"hamiltonian": record}, HEH, ["He", "H"])
    (record,) = csr_matrices(H).values()
    atoms = Atoms("HeH", cell=CELL, positions=POSITIONS)
    write_csr(second / "hrs1_nao.csr", [record], "new text", atoms=atoms, digits=12)
    from_file = run_abacus(second, shared_data, golden, "init_chg hr", "read_file_dir ./")
    assert from_file <= 3 < 8 < from_atoms


# --- layouts -----------------------------------------------------------------------------------


def written_and_read(path, records, layout, atoms):
    """Records as another file has them, under a name that says nothing."""
    write_csr(path, records, layout, digits=16, atoms=atoms)
    back = read_csr(path)
    assert {record.layout for record in back} == {layout}
    return back


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spin", ["unpolarised", "collinear", "spinor"])
def test_round_trip_of_a_structure(tmp_path, layout, spin):
    data = grouped("GaAsGaAs", spin=spin)
    operators = named_operators(data)
    records = csr_matrices(operators)
    position = [records.pop(f"position {x}") for x in "xyz"]
    read = {}
    for name, several in records.items():
        back = [
            written_and_read(tmp_path / "x", [record], layout, data.atoms)[0]
            for record in as_tuple(several)
        ]
        read[name] = tuple(back) if len(back) == 2 else back[0]
    if layout == "legacy text":
        back = written_and_read(tmp_path / "x", position, layout, data.atoms)
        read |= {f"position {x}": r for x, r in zip("xyz", back, strict=True)}
    for name, matrix in lcao_matrices(read, data.basis, data.symbols).items():
        assert matrix.spin == operators[name].spin
        # elements of up to 1e-10 Rydberg, Bohr or 1 are not written
        assert_allclose((matrix - operators[name]).data, 0, atol=1.4e-9)


@pytest.mark.parametrize("complex_values", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_come_back_exactly_and_text_to_its_digits(tmp_path, layout, complex_values):
    records = [random_record(s, complex_values=complex_values, step=s) for s in range(3)]
    atoms = Atoms("H6", cell=np.eye(3))
    for digits in (5, 8, 12, 16):
        write_csr(tmp_path / "x", records, layout, digits=digits, atoms=atoms)
        exact = layout == "binary" or digits == 16
        for record, back in zip(records, read_csr(tmp_path / "x"), strict=True):
            assert_same_record(back, record, rtol=0 if exact else 0.51 * 10.0**-digits)


def test_position_components_come_back_for_every_step(tmp_path):
    records = []
    for step in range(2):
        for axis in range(3):
            record = random_record(10 * step + axis, operator="r", step=step)
            records.append(replace(record, component=axis))
    write_csr(tmp_path / "x", records, "legacy text", digits=16)
    back = read_csr(tmp_path / "x")
    assert [(r.step, r.component) for r in back] == list(product((0, 1), (0, 1, 2)))
    for record, one in zip(records, back, strict=True):
        assert_same_record(one, record)


def test_all_matrices_of_a_structure_are_written_with_the_same_lattice_vectors():
    # PYATB refuses files whose lists differ; H reaches further than S
    records = csr_matrices(named_operators(grouped("GaAs", spin="spinor")))
    for record in records.values():
        assert_array_equal(record.R, records["hamiltonian"].R)
        assert record.dimension == records["hamiltonian"].dimension
    assert np.iscomplexobj(records["overlap"].value)
    assert not np.iscomplexobj(records["position x"].value)
    assert (np.diff(records["overlap"].indptr[:: records["overlap"].dimension]) == 0).any()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t, id="as it is"),
        pytest.param(lambda t: t.replace("STEP: 0\n", ""), id="before version 3.1"),
        pytest.param(lambda t: t.replace("STEP: 0", "IONIC_STEP: 1"), id="IONIC_STEP"),
        pytest.param(lambda t: t.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(lambda t: t + "\n\n", id="blank lines at the end"),
        pytest.param(lambda t: t.rstrip("\n"), id="no line end at the end"),
        pytest.param(lambda t: t.replace("e-02", "E-02"), id="capital E"),
        pytest.param(lambda t: t.replace("1.00000000e-02", "0.01"), id="short numbers"),
        pytest.param(lambda t: t.replace(" 0 1\n", "  0\t1 \n"), id="other blanks"),
    ],
)
def test_legacy_text_in_its_variants(tmp_path, change):
    path = tmp_path / "x"
    path.write_bytes(change(LEGACY).encode())
    (record,) = read_csr(path)
    assert record.layout == "legacy text"
    assert_is_the_small_matrix(record)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t, id="as it is"),
        pytest.param(lambda t: t.replace("column indices", "column_indices"), id="column_indices"),
        pytest.param(lambda t: t.replace("row pointers", "row_indptr"), id="row_indptr"),
        pytest.param(lambda t: t.replace(" 0 1 2\n", " 0\n 1\n 2\n"), id="wrapped pointers"),
        pytest.param(lambda t: t.replace("01 2.5", "01\n 2.5"), id="wrapped values"),
        pytest.param(lambda t: t.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(lambda t: t.rstrip("\n") + "\n", id="no blank line at the end"),
        pytest.param(lambda t: t.replace(" 3 # number of B", " 5 # number of B"), id="R left out"),
        pytest.param(lambda t: t.replace(" 0 0 0 2", " 0 0 0\t2"), id="other blanks"),
        pytest.param(lambda t: t.replace("\n\n", "\n \t\n"), id="blanks on blank lines"),
        pytest.param(
            lambda t: (
                "Matrix Dimension of H(R): 2\nMatrix number of H(R): 3\n" + t[t.index(" #---") :]
            ),
            id="old header",
        ),
    ],
)
def test_new_text_in_its_variants(tmp_path, change):
    path = tmp_path / "x"
    path.write_bytes(change(NEW).encode())
    (record,) = read_csr(path)
    assert_is_the_small_matrix(record)


def test_new_text_with_lattice_vectors_that_have_no_elements(tmp_path):
    # as 3.11.0-beta.1 writes them, without a blank line; wrapped, as older ones do; and bare
    empty = """\
 -2 0 0 0
 # CSR values

 # CSR column indices

 # CSR row pointers
 0 0 0
 -3 0 0 0
 # CSR values
 # CSR column indices
 # CSR row pointers
 0 0
 0

 -4 0 0 0
"""
    text = NEW.replace(" -1 0 0 1\n", empty + " -1 0 0 1\n").replace(" 3 # num", " 6 # num")
    (record,) = read_csr(write_text(tmp_path / "x", text))
    assert_array_equal(record.R[:, 0], [-2, -3, -4, -1, 0, 1])
    assert_array_equal(record.indptr, [0] * 6 + [0, 1, 1, 2, 3, 3, 4])


def test_headers_say_fermi_level_spin_and_folding(tmp_path):
    text = NEW.replace(
        " 1 # spin index\n",
        " 2 # spin index, E_Fermi = -5.43 eV\n"
        " # representation: gamma-only folded matrix; all R are summed\n",
    )
    (record,) = read_csr(write_text(tmp_path / "x", text))
    assert (record.fermi_level, record.spin_index, record.gamma_folded) == (-5.43, 1, True)
    (plain,) = read_csr(write_text(tmp_path / "x", NEW))
    assert (plain.fermi_level, plain.spin_index, plain.gamma_folded) == (None, 0, False)


def test_components_of_r_in_files_of_their_own(tmp_path):
    text = NEW.replace("print H matrix in real space H(R)", "print ry matrix in real space ry(R)")
    (record,) = read_csr(write_text(tmp_path / "x", text))
    assert (record.operator, record.component) == ("r", 1)


def test_writer_and_reader_agree_on_the_fermi_level(tmp_path):
    record = replace(random_record(1), fermi_level=6.789012345, spin_index=1)
    atoms = Atoms("H6", cell=np.eye(3))
    write_csr(tmp_path / "x", [record], "new text", atoms=atoms, spin_directions=2)
    (back,) = read_csr(tmp_path / "x")
    assert (back.fermi_level, back.spin_index) == (6.789012345, 1)


def test_several_ionic_steps_in_new_text(tmp_path):
    text = NEW + NEW.replace("Ionic Step 1", "Ionic Step 2").replace("-5.0", "-6.0")
    first, second = read_csr(write_text(tmp_path / "x", text))
    assert (first.step, second.step) == (0, 1)
    assert (first.value[1], second.value[1]) == (-0.5, -0.6)


# --- binary ------------------------------------------------------------------------------------


def binary_file(records, *, pointer, pointers_if_empty, r=False):
    """The bytes that ABACUS's sources say; with ``r`` each record is a list of x, y, z."""
    parts = []
    for record in records:
        several = record if r else [record]
        first = several[0]
        parts.append(struct.pack("<3i", first.step, first.dimension, len(first.R)))
        for n, R in enumerate(first.R.tolist()):
            parts.append(struct.pack("<3i", *R))
            for one in several:
                rows = one.indptr[n * one.dimension : (n + 1) * one.dimension + 1]
                start, stop = rows[0], rows[-1]
                parts.append(struct.pack("<i", stop - start))
                parts.append(one.value[start:stop].tobytes())
                parts.append(one.column[start:stop].astype("<i4").tobytes())
                if stop > start or pointers_if_empty:
                    parts.append((rows - start).astype(pointer).tobytes())
    return b"".join(parts)


@pytest.mark.parametrize("complex_values", [False, True])
@pytest.mark.parametrize("pointers_if_empty", [False, True])
@pytest.mark.parametrize("pointer", ["<i4", "<i8"])
def test_binary_variants_are_told_apart(tmp_path, pointer, pointers_if_empty, complex_values):
    records = [random_record(s, complex_values=complex_values, step=s) for s in range(2)]
    path = tmp_path / "x.csr"
    path.write_bytes(binary_file(records, pointer=pointer, pointers_if_empty=pointers_if_empty))
    for record, back in zip(records, read_csr(path), strict=True):
        assert back.layout == ("binary" if pointer == "<i8" else "legacy binary")
        assert back.operator is None
        assert_same_record(back, record)


@pytest.mark.parametrize("pointers_if_empty", [False, True])
@pytest.mark.parametrize("pointer", ["<i4", "<i8"])
def test_binary_position_operators(tmp_path, pointer, pointers_if_empty):
    components = [random_record(axis) for axis in range(3)]
    path = tmp_path / "x"
    path.write_bytes(
        binary_file([components], pointer=pointer, pointers_if_empty=pointers_if_empty, r=True)
    )
    back = read_csr(path)
    assert [(r.operator, r.component) for r in back] == [("r", 0), ("r", 1), ("r", 2)]
    for record, one in zip(components, back, strict=True):
        assert_same_record(one, record)


# --- NPZ ---------------------------------------------------------------------------------------


def npz_file(path, data, *, half, **changes):
    """As ABACUS's io_npz.cpp says: the blocks of H in Rydberg, only i <= j from MPI builds."""
    H, species = data.hamiltonian, sorted(set(data.symbols))
    kinds = [species.index(name) for name in data.symbols]
    entries = {
        "lattice_vectors": data.atoms.cell.array.ravel() / 0.529177,
        "atom_info": np.column_stack(
            [kinds, data.atoms.numbers, data.atoms.get_scaled_positions()]
        ),
    }
    for n, name in enumerate(species):
        entries[f"orbital_info_{n}"] = data.basis.quantum_numbers(name).astype(float)
    for i, j, R in zip(H.pairs.i, H.pairs.j, H.pairs.R.tolist(), strict=True):
        if not half or i <= j:
            block = H.block(i, j, R) / 13.605698
            entries[f"mat_{i}_{j}_{R[0]}_{R[1]}_{R[2]}"] = block
    np.savez(
        path, **{name: array for name, array in (entries | changes).items() if array is not None}
    )
    return path


@pytest.mark.parametrize("spin", ["unpolarised", "spinor"])
@pytest.mark.parametrize("half", [True, False])
def test_npz_archives_with_half_and_all_blocks(tmp_path, half, spin):
    data = grouped("GaAs", spin=spin)
    path = npz_file(tmp_path / "x.npz", data, half=half)
    (record,) = read_csr(path)
    assert record.layout == "npz"
    H = lcao_matrices({"hamiltonian": record}, data.basis, data.symbols)["hamiltonian"]
    assert_allclose((H - data.hamiltonian).data, 0, atol=1e-12)  # eV
    assert H.hermitian_error() < 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lattice_vectors": None}, "no lattice_vectors"),
        ({"lattice_vectors": np.zeros(8)}, r"\(8,\).*expected \(9,\)"),
        ({"atom_info": np.zeros((2, 4))}, r"\(2, 4\), expected"),
        ({"orbital_info_1": None}, "atom 1 is of species 1, of which there is no orbital_info"),
        ({"mat_0_0_0_0_0": np.zeros((3, 3))}, "block of atoms 0 and 0 at R = .* shape"),
        ({"mat_0_7_0_0_0": np.zeros((3, 3))}, "names an atom of 2"),
        ({"extra": np.zeros(3)}, "unknown entry 'extra'"),
        ({"mat_0_0_0_0_0": np.array(["a"])}, "type <U1"),
        ({"mat_0_0_0_0_0": np.array([None])}, "type object"),
    ],
)
def test_npz_archives_that_do_not_fit_are_refused(tmp_path, changes, message):
    path = npz_file(tmp_path / "x.npz", grouped("GaAs"), half=True, **changes)
    with pytest.raises(MatrixFileError, match=message):
        read_csr(path)


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 5, 6, 7, 8, 12, 14, 15, 16, 17, 20])
def test_numbers_are_those_of_float_bit_for_bit(digits):
    rng = np.random.default_rng(digits)
    values = rng.normal(size=3000) * 10.0 ** rng.integers(-30, 30, 3000)
    values[::50] = 0.0
    values[25::50] = -0.0
    text = "".join(f" {x:.{digits}e}" for x in values).encode()
    numbers, counts = read_numbers(text, [(0, len(text))], "real")
    expected = np.array([float(token) for token in text.split()])
    assert counts == [3000]
    assert_array_equal(numbers.view(np.int64), expected.view(np.int64))
    pairs = "".join(f" ({a:.{digits}e},{b:.{digits}e})" for a, b in values.reshape(-1, 2)).encode()
    numbers, counts = read_numbers(pairs, [(0, len(pairs))], "complex")
    assert counts == [1500]
    assert_array_equal(numbers.view(np.int64), expected.view(np.int64))


def test_numbers_halfway_between_two_doubles_are_rounded_to_even():
    # 2^53 + 1 and neighbours have 16 digits and no double of their own
    text = b"9.007199254740993e+15 9.007199254740995e+15 9.007199254740991e+15"
    numbers, _ = read_numbers(text, [(0, len(text))], "real")
    assert_array_equal(numbers, [9007199254740992, 9007199254740996, 9007199254740991])


def test_long_texts_are_cut_between_numbers():
    values = np.random.default_rng(0).normal(size=90_000)
    spans, text = [], ""
    for part in (values[:10], values[10:80_000], values[80_000:80_000], values[80_000:]):
        start = len(text)
        text += "".join(f" {x:.8e}" for x in part)
        spans.append((start, len(text)))
    numbers, counts = read_numbers(text.encode(), spans, "real")
    assert_array_equal(counts, [10, 79_990, 0, 10_000])
    assert_allclose(numbers, values, rtol=1e-8)
    integers, counts = read_numbers(b" 12 3 456789012 7", [(0, 5), (5, 17)], "integer")
    assert_array_equal(integers, [12, 3, 456789012, 7])
    assert_array_equal(counts, [2, 2])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b" 1.50e-03.50e-03 7", "real"),  # two numbers that share a digit, and one to make up
        (b" 1.50e-031.50e-03", "real"),
        (b" 1.50e-03 nan", "real"),
        (b" 1.50e-03 inf", "real"),
        (b" 1_0", "real"),
        (b" 1.50e-03\x001.50e-03", "real"),
        (b" 1.50e-03 --1.50e-03", "real"),
        (b" 0x10", "real"),
        ("1.50e-03 \N{ARABIC-INDIC DIGIT ONE}".encode(), "real"),
        (b" (1.50e-03,2.50e-03", "complex"),
        (b" (1.50e-03 2.50e-03)", "complex"),
        (b" (1.50e-03,2.50e-03) 1.50e-03", "complex"),
        (b" 1.50e-03,(2.50e-03)", "complex"),
        (b" (1.50e-03,2.50e-03,3.50e-03)", "complex"),
        (b" 1 2.0", "integer"),
        (b" 1 -2", "integer"),
        (b" 1 1234567890123456789012", "integer"),
    ],
)
def test_what_is_not_a_number_is_refused(text, kind):
    with pytest.raises(BadNumber):
        read_numbers(text, [(0, len(text))], kind)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2.50000000e-01", "2.5x", "line 9: expected a number, found '2.5x'"),
        ("2.50000000e-01", "nan", "line 9: expected a number, found 'nan'"),
        ("2.50000000e-01", "1e999", r"R = \[0, 0, 0\]: the value inf is not a number"),
        ("2.50000000e-01", "", r"line 9: 1 values of R = \[0, 0, 0\], expected 2"),
        ("2.50000000e-01", "1 2", r"line 9: 3 values of R = \[0, 0, 0\], expected 2"),
        ("\n 0 1\n", "\n 0 2\n", "column 2 is outside the matrix, whose dimension is 2"),
        ("\n 0 1\n", "\n 0 -1\n", "line 10: expected a number, found '-1'"),
        ("\n 0 1 2\n", "\n 0 1 1\n", "line 11: row pointers .* from 0 to 1, expected 0 to 2"),
        ("\n 0 1 2\n", "\n 0 3 2\n", r"the row pointers of R = \[0, 0, 0\] decrease"),
        ("\n 0 1 2\n", "\n 0 2\n", r"line 11: 2 row pointers of R = \[0, 0, 0\], expected 3"),
        ("-1 0 0 1\n", "1 0 0 1\n", r"R = \[1, 0, 0\] stands there twice"),
        ("-1 0 0 1\n", "-1 0 0\n", "line 4: expected 'Rx Ry Rz nnz' of matrix 1 of 3, found"),
        ("-1 0 0 1\n", "-1 0 0 -1\n", "a negative number of elements"),
        ("-1 0 0 1\n", "-99999 0 0 1\n", "cannot be a lattice vector"),
        ("number of H(R): 3", "number of H(R): 2", "line 12: expected 'Matrix Dimension of"),
        (
            "number of H(R): 3",
            "number of H(R): 4",
            "at the end of the file: expected .*matrix 4 of 4",
        ),
        ("H(R): 3", "H(R): 999999999", "cannot hold 999999999 matrices"),
        ("Dimension of H(R): 2", "Dimension of H(R): 0", "line 2: expected 'Matrix Dimension"),
        ("Dimension of H(R): 2", "Dimension of H(R): 999999", "expected 1000000"),
        ("Matrix number", "Matrix lumber", "line 3: expected 'Matrix number of H"),
    ],
)
def test_damaged_legacy_text_is_refused_with_the_place(tmp_path, old, new, message):
    assert old in LEGACY
    path = write_text(tmp_path / "H.csr", LEGACY.replace(old, new, 1))
    with pytest.raises(MatrixFileError, match=message) as caught:
        read_csr(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# CSR values", "# values", "line 24: expected '# CSR values'"),
        ("# CSR column indices", "# columns", "line 26: expected '# CSR column indices'"),
        ("# CSR row pointers", "# rows", "line 28: expected '# CSR row pointers'"),
        ("2 # number of localized basis", "", "line 1: this header has no line .*localized basis"),
        ("# print H matrix in real space H(R)", "", "line 1: this header has no line .*# print"),
        (" 0 1 1\n\n", " 0 1 1\n", "expected a number, found '#'"),
        (" 0 1 1\n\n", " 0 1\n\n", r"2 row pointers of R = \[-1, 0, 0\], expected 3"),
        (" 3 # number", " 2 # number", "announces 2 matrices, but 3 were found"),
    ],
)
def test_damaged_new_text_is_refused_with_the_place(tmp_path, old, new, message):
    assert old in NEW
    path = write_text(tmp_path / "H.csr", NEW.replace(old, new, 1))
    with pytest.raises(MatrixFileError, match=message) as caught:
        read_csr(path)
    assert str(path) in str(caught.value)


def test_new_text_that_ends_between_two_lattice_vectors_is_noticed(tmp_path):
    path = write_text(tmp_path / "x", NEW[: NEW.index(" 1 0 0 1\n #")])
    with pytest.raises(MatrixFileError, match=r"announces 3 .* 2 were found.*R = \[-1, 0, 0\]"):
        read_csr(path)


def test_a_column_that_stands_twice_in_a_row_is_refused():
    record = random_record(0)
    column = record.column.copy()
    first = int(np.flatnonzero(np.diff(record.indptr) > 1)[0])
    begin = record.indptr[first]
    column[begin + 1] = column[begin]
    with pytest.raises(MatrixFileError, match=f"column {column[begin]} stands twice in row"):
        replace(record, column=column)


def test_columns_of_a_row_in_any_order_are_the_same_matrix(tmp_path):
    text = LEGACY.replace("0 0 0 2\n -5.0", "0 0 0 3\n 1.25e-01 -5.0")
    text = text.replace("\n 0 1\n 0 1 2", "\n 1 0 1\n 0 2 3")
    (record,) = read_csr(write_text(tmp_path / "x", text))
    H = lcao_matrices({"h0": record}, Basis({"H": (0, 0)}), ["H"])["h0"]
    assert_allclose(H.block(0, 0, (0, 0, 0)) / 13.605698, [[-0.5, 0.125], [0, 0.25]])


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"hello world\n", b"PK\x03\x04", b"\x7fELF" * 9, b"\x00" * 64]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(MatrixFileError, match="x: "):
        read_csr(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_csr(tmp_path / "no.csr")


def test_other_orbitals_are_refused(golden):
    record = read_csr(golden / "v381_n1" / NAMES["v381"]["H"])[0]
    message = r"SPIN0.csr: matrix dimension is 10, but the orbitals of H1 He1 give 9 \(18 for spin"
    with pytest.raises(MatrixFileError, match=message):
        lcao_matrices({"h0": record}, Basis({"He": (0, 0, 1), "H": (0, 1)}), ["He", "H"])


def test_other_conventions_and_unknown_names_are_refused(golden, tmp_path):
    record = read_csr(golden / "v381_n1" / NAMES["v381"]["H"])[0]
    with pytest.raises(ValueError, match="unknown operator 'H'; known: overlap, h0"):
        lcao_matrices({"H": record}, HEH, ["He", "H"])
    with pytest.raises(ValueError, match="convention 'abacus', not 'deeph'"):
        lcao_matrices({"h0": record}, Basis(dict(HEH.shells), "deeph"), ["He", "H"])
    data = grouped("GaAs")
    with pytest.raises(ValueError, match="use .in_convention"):
        csr_matrices({"overlap": data.overlap.in_convention("deeph")})
    with pytest.raises(ValueError, match="unknown operator 'S'"):
        csr_matrices({"S": data.overlap})
    collinear = data.hamiltonian.with_spin("collinear")
    with pytest.raises(ValueError, match="collinear and spinor matrices cannot be written"):
        csr_matrices({"h0": collinear, "hamiltonian": data.hamiltonian.with_spin("spinor")})


def without_block(record, n):
    """A record without its n-th R."""
    dimension = record.dimension
    start, stop = record.indptr[n * dimension], record.indptr[(n + 1) * dimension]
    keep = np.delete(np.arange(len(record.R)), n)
    length = np.delete(np.diff(record.indptr).reshape(-1, dimension), n, axis=0).ravel()
    elements = np.delete(np.arange(len(record.value)), np.s_[start:stop])
    return replace(
        record,
        R=record.R[keep],
        indptr=np.concatenate([[0], np.cumsum(length)]),
        column=record.column[elements],
        value=record.value[elements],
    )


def test_blocks_without_their_partner_are_refused(golden):
    record = without_block(read_csr(golden / "v381_n1" / NAMES["v381"]["H"])[0], 4)
    with pytest.raises(MatrixFileError, match=r"R = \[-2, 0, 0\] has elements.*R = \[2, 0, 0\]"):
        lcao_matrices({"hamiltonian": record}, HEH, ["He", "H"])


def test_partners_that_were_too_small_to_be_printed_are_added_with_zeros(golden):
    record = read_csr(golden / "v381_n1" / NAMES["v381"]["H"])[0]
    tiny = replace(record, value=np.where(record.row() < record.dimension, 5e-10, record.value))
    H = lcao_matrices({"hamiltonian": without_block(tiny, 4)}, HEH, ["He", "H"])["hamiltonian"]
    assert (H.block(0, 0, (2, 0, 0)) == 0).all()
    assert np.abs(H.block(0, 0, (-2, 0, 0))).max() == pytest.approx(5e-10 * 13.605698)


def test_position_blocks_need_only_the_overlap_to_have_their_partner(golden):
    folder = golden / "v381_n1"
    S = read_csr(folder / NAMES["v381"]["S"])[0]
    x = without_block(read_csr(folder / NAMES["v381"]["r"])[0], 0)
    matrices = lcao_matrices({"overlap": S, "position x": x}, HEH, ["He", "H"])
    assert (matrices["position x"].block(0, 0, (-2, 0, 0)) == 0).all()
    with pytest.raises(MatrixFileError, match="its partner .* is missing"):
        lcao_matrices({"position x": x}, HEH, ["He", "H"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row, col, v: np.where(row % 2 == 1, 1.1 * v, v), "same for up and down"),
        (lambda row, col, v: v + 1e-6j, "imaginary parts up to 1e-06"),
    ],
)
def test_an_overlap_that_depends_on_spin_is_refused(golden, change, message):
    S = read_csr(golden / "v381_n4" / NAMES["v381"]["S"])[0]
    wrong = replace(S, value=change(S.row(), S.column, S.value))
    with pytest.raises(MatrixFileError, match=message):
        lcao_matrices({"overlap": wrong}, HEH, ["He", "H"])


def test_an_overlap_between_up_and_down_is_refused(golden):
    H = read_csr(golden / "v381_n4" / NAMES["v381"]["H"])[0]
    with pytest.raises(MatrixFileError, match="diagonal in spin, but .* between up and down"):
        lcao_matrices({"overlap": H}, HEH, ["He", "H"])


def test_an_overlap_element_printed_for_one_spin_only_may_be_tiny(golden):
    S = read_csr(golden / "v381_n4" / NAMES["v381"]["S"])[0]
    value = S.value.copy()
    value[0] = 3e-10
    keep = np.arange(len(value)) > 0
    length = np.diff(S.indptr)
    length[S.row()[0]] -= 1
    indptr = np.concatenate([[0], np.cumsum(length)])
    cut = replace(S, indptr=indptr, column=S.column[keep], value=value[keep])
    with pytest.raises(MatrixFileError, match="same for up and down"):
        lcao_matrices({"overlap": cut}, HEH, ["He", "H"])
    partner = int(np.flatnonzero((S.row() == S.row()[0] + 1) & (S.column == S.column[0] + 1))[0])
    small = cut.value.copy()
    small[partner - 1] = 3e-10
    lcao_matrices({"overlap": replace(cut, value=small)}, HEH, ["He", "H"])


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("xml", {}, "unknown layout 'xml'; known for writing"),
        ("new text", {}, "atoms are needed"),
        ("new text", {"atoms": Atoms("HHeH", cell=np.eye(3))}, "grouped by species.* H He H"),
    ],
)
def test_writing_what_cannot_be_leaves_no_file(tmp_path, layout, options, message):
    with pytest.raises(ValueError, match=message):
        write_csr(tmp_path / "x", [random_record(0)], layout, **options)
    assert not list(tmp_path.iterdir())


def test_position_components_are_written_as_legacy_text_and_together(tmp_path):
    x = replace(random_record(0, operator="r"), component=0)
    for layout in ("binary", "new text"):
        with pytest.raises(ValueError, match="legacy text"):
            write_csr(tmp_path / "x", [x, x, x], layout, atoms=Atoms("H"))
    with pytest.raises(ValueError, match="three records, x, y, z"):
        write_csr(tmp_path / "x", [x, x, x], "legacy text")
    with pytest.raises(ValueError, match="operator, but it is not known"):
        write_csr(tmp_path / "x", [replace(x, operator=None)], "legacy text")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "x", "old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_csr(path, [random_record(0)], "binary")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_spinors_have_no_two_channels():
    data = grouped("GaAs", spin="spinor")
    record = csr_matrices({"hamiltonian": data.hamiltonian})["hamiltonian"]
    with pytest.raises(MatrixFileError, match="spinor matrices have no spin up and down"):
        lcao_matrices({"hamiltonian": (record, record)}, data.basis, data.symbols)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indptr": np.zeros(3, np.int64)}, "3 row pointers, but 5 matrices of .* have 31"),
        ({"column": np.zeros(2, np.int32)}, "row pointers from 0 to .*, but 2 columns and"),
    ],
)
def test_records_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(MatrixFileError, match=message):
        replace(random_record(0), **changes)
