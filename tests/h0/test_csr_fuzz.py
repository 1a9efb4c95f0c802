"""Damaged matrix files: an error that names the file, or what a naive reader makes of them.

A digit that became another digit cannot be noticed, so the numbers are compared with those of a
reader that goes through the file token by token and knows no shortcuts.
"""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from random import Random

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ase_nextham.h0.csr import CSRMatrix, MatrixFileError, read_csr, write_csr

FUZZ = settings(
    max_examples=150,
    deadline=timedelta(seconds=5),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def record(*, complex_values=False, step=0, operator="H", component=None, dimension=3):
    """A small matrix, one of its three R empty."""
    rng = np.random.default_rng(step + 7 * (component or 0))
    blocks = rng.normal(size=(3, dimension, dimension)) * (
        rng.random((3, dimension, dimension)) < 0.7
    )
    if complex_values:
        blocks = blocks * (1 + 0.5j)
    blocks[1] = 0
    n, mu, nu = np.nonzero(blocks)
    count = np.bincount(n * dimension + mu, minlength=3 * dimension)
    return CSRMatrix(
        path="fuzz",
        layout="memory",
        operator=operator,
        step=step,
        dimension=dimension,
        R=np.array([[-1, 0, 12], [0, 0, 0], [1, 0, -12]]),
        indptr=np.concatenate([[0], np.cumsum(count)]),
        column=nu,
        value=blocks[n, mu, nu],
        component=component,
    )


def npz_bytes():
    file = io.BytesIO()
    blocks = {}
    for i, j in ((0, 0), (0, 1), (1, 1)):
        for x in (-1, 0, 1):
            blocks[f"mat_{i}_{j}_{x}_0_0"] = np.full(
                (2 - i, 2 - j), 1.5 + i + j + 0.1 * x * (i != j)
            )
    np.savez(
        file,
        lattice_vectors=np.eye(3).ravel(),
        atom_info=np.array([[0, 14, 0, 0, 0], [1, 1, 0.5, 0.5, 0.5]]),
        orbital_info_0=np.zeros((2, 3)),
        orbital_info_1=np.zeros((1, 3)),
        **blocks,
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of every layout, as bytes."""
    path = tmp_path_factory.mktemp("fuzz") / "x"
    steps = [record(step=step) for step in range(2)]
    spinor = [record(complex_values=True)]
    atoms = Atoms("HHH", cell=np.eye(3))
    written = {
        "legacy text": (steps, "legacy text"),
        "legacy text, complex": (spinor, "legacy text"),
        "legacy text, r": ([record(operator="r", component=a) for a in range(3)], "legacy text"),
        "new text": (steps, "new text"),
        "new text, complex": (spinor, "new text"),
        "binary": (steps, "binary"),
        "binary, complex": (spinor, "binary"),
    }
    content = {}
    for name, (records, layout) in written.items():
        write_csr(path, records, layout, atoms=atoms, digits=4)
        content[name] = path.read_bytes()
    content["legacy binary"] = legacy_binary(steps)
    content["npz"] = npz_bytes()
    return content


def legacy_binary(records):
    parts = []
    for one in records:
        parts.append(struct.pack("<3i", one.step, one.dimension, len(one.R)))
        for n, R in enumerate(one.R.tolist()):
            rows = one.indptr[n * one.dimension : (n + 1) * one.dimension + 1]
            elements = slice(rows[0], rows[-1])
            parts.append(struct.pack("<4i", *R, rows[-1] - rows[0]))
            if rows[-1] > rows[0]:
                parts.append(one.value[elements].tobytes())
                parts.append(one.column[elements].astype("<i4").tobytes())
                parts.append((rows - rows[0]).astype("<i4").tobytes())
    return b"".join(parts)


# --- the naive reader --------------------------------------------------------------------------


@dataclass
class Naive:
    """Tokens of a text one after another."""

    tokens: list[str]
    at: int = 0

    def word(self):
        self.at += 1
        return self.tokens[self.at - 1]

    def integer(self):
        return int(self.word())

    def values(self, number):
        tokens = [self.word() for _ in range(number)]
        if any("(" in token for token in tokens):
            return [complex(*map(float, token.strip("()").split(","))) for token in tokens]
        return [float(token) for token in tokens]

    def arrays(self, number, dimension):
        value = self.values(number)
        column = [self.integer() for _ in range(number)]
        rows = [self.integer() for _ in range(dimension + 1)] if number else [0] * (dimension + 1)
        return value, column, rows


def naive_text(content):
    text = content.decode("ascii", "replace").replace("\r\n", "\n")
    text = re.sub(r"\(\s*([^\s(),]+)\s*,\s*([^\s(),]+)\s*\)", r" (\1,\2) ", text)
    if "--- Ionic Step" in text:
        return naive_new_text(text)
    tokens = Naive(re.sub(r"(STEP|\(R\)):", r"\1: ", text).split())
    found, steps = [], 0
    while tokens.at < len(tokens.tokens):
        word = tokens.word()
        step = steps
        if word in ("STEP:", "IONIC_STEP:"):
            step = tokens.integer() - (word == "IONIC_STEP:")
            word = tokens.word()
        assert (word, tokens.word(), tokens.word()) == ("Matrix", "Dimension", "of")
        operator, dimension = tokens.word(), tokens.integer()
        assert [tokens.word() for _ in range(3)] == ["Matrix", "number", "of"]
        tokens.word()
        several = [[], [], []] if operator == "r(R):" else [[]]
        for _ in range(tokens.integer()):
            R = [tokens.integer() for _ in range(3)]
            for component in several:
                component.append((R, *tokens.arrays(tokens.integer(), dimension)))
        found += [(max(step, 0), dimension, component) for component in several]
        steps = max(step, 0) + 1
    return found


def naive_new_text(text):
    found = []
    for part in re.split(r"(?m)^[ \t]*--- Ionic Step ", text)[1:]:
        step = max(int(part.split()[0]) - 1, 0)
        dimension = int(re.search(r"(\d+) # number of localized basis", part)[1])
        body = re.split(r"(?m)^[ \t]*#.*#[ \t]*$", part)[-1]
        # arrays of a matrix without elements, where there are any, hold zeros only
        zeros = rf"(\s*0\b){{{dimension + 1}}}"
        body = re.sub(rf"#\s*CSR values\s*#.*\s*#.*\n{zeros}", "", body)
        tokens, component = Naive(re.sub(r"#.*", "", body).split()), []
        while tokens.at < len(tokens.tokens):
            R = [tokens.integer() for _ in range(3)]
            component.append((R, *tokens.arrays(tokens.integer(), dimension)))
        found.append((step, dimension, component))
    return found


def naive_binary(content, value, pointer, if_empty):
    at, found = 0, []

    def read(dtype, number):
        nonlocal at
        if number < 0:
            raise ValueError("a negative number of numbers")
        array = np.frombuffer(content, dtype, number, at)
        at += array.nbytes
        return array.tolist()

    while at < len(content):
        step, dimension, nR = read("<i4", 3)
        component = []
        for _ in range(nR):
            *R, number = read("<i4", 4)
            value_, column = read(value, number), read("<i4", number)
            rows = read(pointer, dimension + 1) if number or if_empty else [0] * (dimension + 1)
            component.append((R, value_, column, rows))
        found.append((step, dimension, component))
    return found


def naive_readings(name, content):
    """What a file may mean: one reading for text, one for every binary variant that fits."""
    if "binary" not in name:
        return [[naive_contents(*one) for one in naive_text(content)]]
    readings = []
    for value, pointer, if_empty in product(("<f8", "<c16"), ("<i4", "<i8"), (True, False)):
        with suppress(ValueError, IndexError):
            steps = naive_binary(content, value, pointer, if_empty)
            readings.append([naive_contents(*one) for one in steps])
    return readings


def dense(R, dimension, rows_of, columns_of, values_of):
    """Every element that is stored, by R, row and column."""
    elements = {}
    for n, vector in enumerate(R):
        elements[tuple(vector)] = {}
        rows, columns, values = rows_of(n), columns_of(n), values_of(n)
        for mu in range(dimension):
            for e in range(rows[mu], rows[mu + 1]):
                elements[tuple(vector)][mu, int(columns[e])] = complex(values[e])
    return elements


def contents(matrix):
    d = matrix.dimension
    elements = dense(
        matrix.R.tolist(),
        d,
        lambda n: matrix.indptr[n * d : (n + 1) * d + 1].tolist(),
        lambda n: matrix.column,
        lambda n: matrix.value,
    )
    return matrix.step, d, elements


def naive_contents(step, dimension, component):
    elements = dense(
        [R for R, *_ in component],
        dimension,
        lambda n: component[n][3],
        lambda n: component[n][2],
        lambda n: component[n][1],
    )
    return step, dimension, elements


def check(path, name, content, original=None):
    path.write_bytes(content)
    try:
        matrices = read_csr(path)
    except MatrixFileError as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert str(path) in message
        return
    found = [contents(matrix) for matrix in matrices]
    if name == "npz":  # with its checksums, nothing that matters can change
        assert found == [contents(matrix) for matrix in original]
    else:
        assert found in naive_readings(name, content)


LAYOUTS = (
    "legacy text",
    "legacy text, complex",
    "legacy text, r",
    "new text",
    "new text, complex",
    "binary",
    "binary, complex",
    "legacy binary",
    "npz",
)


@pytest.fixture(params=LAYOUTS)
def case(request, files, tmp_path):
    """Name of a layout, its file as bytes, and what it holds."""
    path = tmp_path / "original"
    path.write_bytes(files[request.param])
    return request.param, files[request.param], read_csr(path)


def test_the_naive_reader_agrees_on_intact_files(case, tmp_path):
    name, content, original = case
    check(tmp_path / "x", name, content, original)


def test_a_file_cut_off(case, tmp_path):
    name, content, original = case
    for size in range(0, len(content), 1 + len(content) // 1000):
        check(tmp_path / "x", name, content[:size], original)


@FUZZ
@given(data=st.data())
def test_bytes_changed_inserted_or_deleted(case, tmp_path, data):
    name, content, original = case
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        at = data.draw(st.integers(0, len(content) - 1), "at")
        kind = data.draw(
            st.sampled_from(["bit", "byte", "digit", "insert", "delete", "cut"]), "kind"
        )
        if kind == "bit":
            content[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
        elif kind == "byte":
            content[at] = data.draw(st.integers(0, 255), "byte")
        elif kind == "digit":
            content[at] = data.draw(st.sampled_from(b"0123456789-+.eE (),\n#"), "character")
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=4), "inserted")
        else:
            del content[at : at + (1 if kind == "delete" else data.draw(st.integers(1, 99), "n"))]
        if not content:
            break
    check(tmp_path / "x", name, bytes(content), original)


@FUZZ
@given(
    seed=st.integers(0, 2**32), kind=st.sampled_from(["swap", "drop", "repeat", "shuffle", "join"])
)
def test_lines_swapped_dropped_repeated_or_joined(case, tmp_path, seed, kind):
    name, content, original = case
    random = Random(seed)
    lines = content.split(b"\n")
    a, b = random.randrange(len(lines)), random.randrange(len(lines))
    if kind == "swap":
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == "drop":
        del lines[a]
    elif kind == "repeat":
        lines.insert(b, lines[a])
    elif kind == "shuffle":
        random.shuffle(lines)
    else:
        lines[a : a + 2] = [b" ".join(lines[a : a + 2])]
    check(tmp_path / "x", name, b"\n".join(lines), original)


@settings(FUZZ, max_examples=300)
@given(content=st.binary(max_size=400), start=st.sampled_from([b"", b"STEP: 0\n", b"PK\x03\x04"]))
@example(content=b"--- Ionic Step 1 ---" + b"\n" * 50, start=b"")
def test_garbage(tmp_path, content, start):
    path = tmp_path / "x"
    path.write_bytes(start + content)
    with pytest.raises(MatrixFileError, match="x"):
        read_csr(path)


HUGE = 2**30
TEXT_HEADER = "STEP: 0\nMatrix Dimension of {}(R): {}\nMatrix number of {}(R): {}\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT_HEADER.format("H", HUGE // 2, "H", 1) + "0 0 0 0\n",
        TEXT_HEADER.format("H", 2, "H", HUGE // 2),
        TEXT_HEADER.format("H", 2, "H", 1) + "0 0 0 999999999\n 1.0\n 0\n 0 1 1\n",
        TEXT_HEADER.format("r", HUGE // 2, "r", 1) + "0 0 0\n0\n0\n0\n",
        " --- Ionic Step 1 ---\n # print H matrix in real space H(R)\n"
        f" {HUGE // 2} # number of localized basis\n 1 # number of Bravais lattice vector R\n"
        " #-----#\n #-----#\n 0 0 0 0\n",
        struct.pack("<7i", 0, HUGE, 1, 0, 0, 0, 0),
        struct.pack("<7i", 0, HUGE, HUGE, 0, 0, 0, HUGE),
        struct.pack("<7i", 0, 2, 1, 0, 0, 0, HUGE),
    ],
)
def test_sizes_in_headers_are_not_believed(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    tracemalloc.start()
    try:
        with pytest.raises(MatrixFileError):
            read_csr(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000  # bytes
    finally:
        tracemalloc.stop()


def test_sizes_in_archives_are_not_believed(tmp_path):
    path = tmp_path / "x"
    content = npz_bytes()
    shape = b"'shape': (2, 2)"
    assert shape in content
    path.write_bytes(content.replace(shape, b"'shape': (2,99)"))
    with pytest.raises(MatrixFileError, match="not a readable NPZ archive: Bad CRC"):
        read_csr(path)
    np.savez_compressed(path.with_suffix(".npz"), mat_0_0_0_0_0=np.zeros((3000, 3000)))
    with pytest.raises(MatrixFileError, match="an entry is larger than the archive"):
        read_csr(path.with_suffix(".npz"))


def test_spinor_records_have_complex_numbers_throughout(tmp_path):
    path = tmp_path / "x"
    write_csr(path, [record(complex_values=True)], "legacy text")
    real = replace(record(), step=0)
    write_csr(tmp_path / "y", [real], "legacy text")
    mixed = path.read_text().splitlines()
    other = (tmp_path / "y").read_text().splitlines()
    mixed[-3] = other[-3]
    path.write_text("\n".join(mixed) + "\n")
    with pytest.raises(MatrixFileError, match="line"):
        read_csr(path)
