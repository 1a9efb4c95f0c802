"""ABACUS's files of numerical atomic orbitals, ``.orb``: shells, cutoff and radial functions."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from ase_nextham.basis import MAX_L
from ase_nextham.units import BOHR

_LETTERS = "SPDFGHIKLM"


@dataclass(frozen=True, eq=False)
class Orbitals:
    """The orbitals of one element, ``f(r) Y_lm``.

    The radial functions stay in atomic units, in which their integrals are computed.

    Parameters
    ----------
    element
        As the file states it.
    shells
        Angular momentum of each radial function, ascending, as in
        :attr:`ase_nextham.basis.Basis.shells`.
    radius
        Cutoff in Angstrom.
    spacing
        Distance of the mesh points in Bohr; the first is at r = 0.
    functions
        f(r) in Bohr^(-3/2), shape (nshells, nmesh); zero at the last point, with
        ``integral r^2 f^2 dr = 1`` as written in the file (ABACUS normalises once more).
    fingerprint
        sha256 of the file.
    """

    element: str
    shells: tuple[int, ...]
    radius: float
    spacing: float
    functions: ndarray
    fingerprint: str

    @property
    def mesh(self) -> ndarray:
        """Distances r in Bohr, shape (nmesh,)."""
        return self.spacing * np.arange(self.functions.shape[1])


def read_orb(path: str | os.PathLike) -> Orbitals:
    """Read an ``.orb`` file and check that its functions are orbitals.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is cut short or garbled, a function is not normalised to 1 %, or does not
        vanish at the cutoff.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        return _parse(content.decode("utf-8", errors="replace"), content)
    except ValueError as err:
        raise ValueError(f"{path}: not a usable orbital file: {err}") from err


def _parse(text: str, content: bytes) -> Orbitals:
    header, found, body = text.partition("SUMMARY")
    if not found:
        raise ValueError("there is no line 'SUMMARY  END' after the header")
    element = re.search(r"Element\s+(\S+)", header)
    if element is None:
        raise ValueError("the header has no line 'Element'")
    cutoff = _header_number(r"Radius Cutoff\s*\(a\.?u\.?\)\s+(\S+)", header, "Radius Cutoff(a.u.)")
    lmax = int(_header_number(r"Lmax\s+(\d+)", header, "Lmax"))
    if lmax > MAX_L:
        raise ValueError(f"Lmax is {lmax}; orbitals up to l = {MAX_L} are supported")
    shells = []
    for l in range(lmax + 1):
        label = f"Number of {_LETTERS[l]}orbital-->"
        shells += [l] * int(_header_number(rf"{label}\s+(\d+)", header, label))
    if not shells:
        raise ValueError("the header announces no orbitals")
    nmesh = int(_header_number(r"Mesh\s+(\d+)", body, "Mesh"))
    spacing = _header_number(r"dr\s+(\S+)", body, "dr")
    if nmesh < 3 or spacing <= 0:
        raise ValueError(f"mesh of {nmesh} points with spacing {spacing} Bohr")
    if abs((nmesh - 1) * spacing - cutoff) > 1.5 * spacing:
        raise ValueError(
            f"the mesh ends at {(nmesh - 1) * spacing:g} Bohr, the cutoff is {cutoff:g} Bohr"
        )
    functions = _functions(body, shells, nmesh)
    _check(functions, shells, spacing)
    functions.flags.writeable = False
    return Orbitals(
        element.group(1),
        tuple(shells),
        cutoff * BOHR,
        spacing,
        functions,
        hashlib.sha256(content).hexdigest(),
    )


def _header_number(pattern: str, text: str, name: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"there is no line {name!r}")
    try:
        return float(match.group(1))
    except ValueError:
        raise ValueError(f"{name} is {match.group(1)!r}, not a number") from None


def _functions(body: str, shells: list[int], nmesh: int) -> ndarray:
    blocks = re.split(r"Type\s+L\s+N\s", body)[1:]
    seen: dict[tuple[int, int], ndarray] = {}
    for number, block in enumerate(blocks, 1):
        words = block.split()
        try:
            l, zeta = int(words[1]), int(words[2])
            values = np.array(words[3:], float)
        except (IndexError, ValueError):
            raise ValueError(f"radial function {number} is garbled or cut short") from None
        if len(values) != nmesh:
            raise ValueError(
                f"radial function {number} (l = {l}) has {len(values)} values on a mesh of "
                f"{nmesh}; the file is cut short or garbled"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"radial function {number} (l = {l}) holds values that are not finite")
        seen[l, zeta] = values
    # the header decides: ABACUS's own test orbitals have functions more than it announces
    announced = [(l, zeta) for l in sorted(set(shells)) for zeta in range(shells.count(l))]
    missing = [key for key in announced if key not in seen]
    if missing:
        raise ValueError(
            f"the header announces {len(shells)} radial functions, but the file lacks the one with "
            "l = {}, N = {}".format(*missing[0])
        )
    return np.array([seen[key] for key in announced])


def _check(functions: ndarray, shells: list[int], spacing: float) -> None:
    r = spacing * np.arange(functions.shape[1])
    for number, (l, f) in enumerate(zip(shells, functions, strict=True), 1):
        # the trapezoid sum is enough to tell an orbital from something else
        norm = np.sum(r**2 * f**2) * spacing
        if abs(norm - 1) > 1e-2:
            raise ValueError(
                f"radial function {number} (l = {l}) has the norm {norm:.4g} instead of 1"
            )
        if abs(f[-1]) > 1e-3 * np.abs(f).max():
            raise ValueError(
                f"radial function {number} (l = {l}) is {f[-1]:.3g} at the cutoff, where orbitals "
                "vanish"
            )
