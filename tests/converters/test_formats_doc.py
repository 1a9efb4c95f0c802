"""The tables of docs/formats.md are what the code and the recorded files say."""

from __future__ import annotations

import warnings
from collections import defaultdict

import pytest

from ase_nextham.converters import FORMATS, registry
from ase_nextham.h0.csr import MatrixFileError, read_csr
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.run import find_runs

WORDS = {"overlap": "S", "h0": "H(0)", "hamiltonian": "H", "position": "r"}


def table_of_formats() -> str:
    lines = ["| name | what | read | write | holds |", "|---|---|---|---|---|"]
    for name, words in FORMATS.items():
        module = registry.module_of(name)
        written = "yes" if hasattr(module, "write") else "-"
        held = ", ".join(WORDS[operator] for operator in module.HOLDS)
        lines.append(f"| `{name}` | {words} | yes | {written} | {held} |")
    return "\n".join(lines)


def table_of_abacus(folders) -> str:
    """What is read from the recorded output of each version, for each layout and nspin."""
    read: dict = defaultdict(lambda: defaultdict(set))
    refused: dict = defaultdict(lambda: defaultdict(set))
    versions = sorted(folders.glob("v*"), key=lambda path: [*map(_number, path.name.split("."))])
    for version in versions:
        for folder in sorted(version.iterdir()):
            (run,) = find_runs(folder)
            files = matrix_files(run.output, run.folder)
            records = {file.operator: read_csr(file.path) for file in files}
            layouts = {operator: several[0].layout for operator, several in records.items()}
            last = max(record.step for several in records.values() for record in several)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read_folder(folder, step=last)
            except MatrixFileError:
                refused[version.name, layouts["H"]][run.nspin].add("H has no elements")
            except ValueError:
                refused[version.name, layouts["H"]][run.nspin].add("one step: refused")
            else:
                for operator, layout in layouts.items():
                    read[version.name, layout][run.nspin].add(operator)
    lines = ["| ABACUS | layout | nspin 1 | nspin 2 | nspin 4 |", "|---|---|---|---|---|"]
    for key in dict.fromkeys([*read, *refused]):
        cells = []
        for nspin in (1, 2, 4):
            operators = [name for name in "HSr" if name in read[key][nspin]]
            cells.append("; ".join([", ".join(operators)] * bool(operators)))
            remarks = sorted(refused[key][nspin])
            cells[-1] = "; ".join(filter(None, [cells[-1], *remarks])) or "-"
        lines.append(f"| {key[0].removeprefix('v')} | {key[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(word: str) -> int:
    return int("".join(c for c in word if c.isdigit()) or 0)


@pytest.mark.parametrize("which", ["formats", "abacus"])
def test_the_tables_are_up_to_date(root, abacus_folders, which):
    text = (root / "docs" / "formats.md").read_text()
    start, end = f"<!-- table of {which} -->\n", "\n<!-- end -->"
    stated = text[text.index(start) + len(start) :]
    stated = stated[: stated.index(end)]
    expected = table_of_formats() if which == "formats" else table_of_abacus(abacus_folders)
    assert stated == expected, f"docs/formats.md should have this table:\n{expected}"
