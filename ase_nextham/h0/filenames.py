"""Which files of an ABACUS run may hold H(R), S(R) and r(R), by name.

A name finds a candidate and tells what its content may not: the operator of the layouts without a
label, the spin channel, and the ionic step. What is in it, and in which layout, is for
:mod:`ase_nextham.h0.csr` to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# (pattern, operator, versions of ABACUS). The groups: spin counts from 0, channel from 1;
# `before` is a step counted from 0, `geometry` one counted from 1 (from 0 in rrg<n>.csr)
_PATTERNS = tuple(
    (re.compile(pattern), operator, versions)
    for pattern, operator, versions in (
        (r"(?:(?P<before>\d+)_)?data-HR-sparse_SPIN(?P<spin>[01])\.csr", "H", "old"),
        (r"(?:(?P<before>\d+)_)?data-SR-sparse_SPIN0\.csr", "S", "old"),
        (r"(?:(?P<before>\d+)_)?data-rR-sparse\.csr", "r", "old"),
        (r"hrs(?P<channel>[12])(?:g(?P<geometry>\d+))?_nao\.(?:csr|dat|npz)", "H", "new"),
        (r"s(?:rs1|r)(?:g(?P<geometry>\d+))?_nao\.(?:csr|dat|npz)", "S", "new"),
        (r"rr(?:g(?P<before>\d+))?\.csr", "r", "new"),
        (r"rr(?:g(?P<geometry>\d+))?_nao\.(?:csr|txt|dat)", "r", "new"),
        (r"r(?P<axis>[xyz])rs1(?:g(?P<geometry>\d+))?_nao\.(?:csr|dat)", "r", "new"),
        (r"output_HR(?P<spin>[01])\.npz", "H", "any"),
        (r"output_SR\.npz", "S", "any"),
        (r"SR\.csr", "S", "any"),
    )
)


@dataclass(frozen=True)
class MatrixFile:
    """A file that may hold a matrix.

    Parameters
    ----------
    path
        Where it is.
    operator
        ``"H"``, ``"S"`` or ``"r"``, by its name.
    spin
        Channel of H, 0 or 1; always 0 with ``nspin`` 1 and 4.
    axis
        0, 1, 2 where the file holds one component of r only; else None.
    step
        Ionic step by its name, counted from 0; None if the name does not say.
    versions
        ``"old"`` for the names up to ABACUS 3.9, ``"new"`` for those since 2025, ``"any"``.
    """

    path: Path
    operator: str
    spin: int
    axis: int | None
    step: int | None
    versions: str


def matrix_files(output: Path, run: Path | None = None) -> list[MatrixFile]:
    """All matrix files of a run, sorted by path.

    Parameters
    ----------
    output
        The folder ``OUT.<suffix>``; its subfolder ``matrix`` (molecular dynamics) is searched, too.
    run
        The folder that holds INPUT: old versions of ``get_S`` write ``SR.csr`` there.

    Raises
    ------
    ValueError
        If files of two versions of ABACUS lie beside each other, naming one of each.
    """
    found = []
    for folder in (output, output / "matrix"):
        if folder.is_dir():
            found += [file for path in sorted(folder.iterdir()) for file in _recognised(path)]
    if run is not None and (run / "SR.csr").is_file():
        found += _recognised(run / "SR.csr")
    old = [file.path for file in found if file.versions == "old"]
    new = [file.path for file in found if file.versions == "new"]
    if old and new:
        raise ValueError(
            f"{output} holds matrix files of two versions of ABACUS, for example {old[0].name} and "
            f"{new[0].name}, and they may belong to different calculations; remove those of one"
        )
    return found


def is_matrix_file(path: Path) -> bool:
    """Whether a name is one that ABACUS gives to a file with H(R), S(R) or r(R)."""
    return any(pattern.fullmatch(path.name) for pattern, _, _ in _PATTERNS)


def _recognised(path: Path) -> Iterator[MatrixFile]:
    for pattern, operator, versions in _PATTERNS:
        match = pattern.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        groups = match.groupdict()
        spin = int(groups["spin"]) if groups.get("spin") else 0
        if groups.get("channel"):
            spin = int(groups["channel"]) - 1
        axis = "xyz".index(groups["axis"]) if groups.get("axis") else None
        step = int(groups["before"]) if groups.get("before") else None
        if groups.get("geometry"):
            step = int(groups["geometry"]) - 1
        yield MatrixFile(path, operator, spin, axis, step, versions)
        return


def named_steps(files: Sequence[MatrixFile]) -> list[int]:
    """The ionic steps that names of H files tell of, ascending; of S files if there is no H."""
    for operator in "HS":
        steps = {f.step for f in files if f.operator == operator and f.step is not None}
        if steps:
            return sorted(steps)
    return []
