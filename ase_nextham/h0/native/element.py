"""All of one element that does not depend on the structure, kept between structures.

A pseudopotential and an orbital file always give the same radial functions and form factors.
They are computed once per process and, if a folder is given, once for all: entries are found by
the sha256 of both files, never by their names.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy import ndarray

from ase_nextham.files import replacing
from ase_nextham.h0.native.formfactors import FormFactors, form_factors
from ase_nextham.h0.native.integral import GridOrbitals, grid_orbitals
from ase_nextham.h0.native.orbitals import normalised_functions
from ase_nextham.h0.native.upf import PseudopotentialData, read_pseudopotential
from ase_nextham.h0.orb import read_orb
from ase_nextham.h0.upf import Pseudopotential

_FORMAT = 1
"""Rises whenever entries on disk would have other content."""

_memory: dict[str, Element] = {}


@dataclass(frozen=True, eq=False)
class Element:
    """What the engine knows of one element.

    Parameters
    ----------
    shells
        Angular momentum of each radial function of the orbitals.
    spacing
        Of their mesh in Bohr; the first point is r = 0.
    functions
        The radial functions as ABACUS normalises them, in Bohr^(-3/2), shape (nshells, nmesh).
    orbital_fingerprint
        sha256 of the .orb file.
    pseudopotential
        With the sha256 of its file in the header.
    form_factors
        Tabulated up to the cutoff asked for.
    """

    shells: tuple[int, ...]
    spacing: float
    functions: ndarray
    orbital_fingerprint: str
    pseudopotential: PseudopotentialData
    form_factors: FormFactors

    @property
    def key(self) -> str:
        """Tells elements with other files or other form factors apart."""
        fingerprint = self.pseudopotential.header.fingerprint
        points = len(self.form_factors.density)
        return f"{fingerprint} {self.orbital_fingerprint} {points}"

    @property
    def cutoff(self) -> float:
        """Where the orbitals end, in Bohr."""
        return (self.functions.shape[1] - 1) * self.spacing

    @property
    def mesh(self) -> ndarray:
        """Distances of ``functions`` in Bohr, shape (nmesh,)."""
        return self.spacing * np.arange(self.functions.shape[1])

    @cached_property
    def grid_orbitals(self) -> GridOrbitals:
        """The orbitals in the form the grid needs."""
        return grid_orbitals(self.functions, self.shells, self.spacing, self.cutoff)

    @property
    def norbitals(self) -> int:
        """Orbitals of one atom, without spin."""
        return sum(2 * l + 1 for l in self.shells)


def load_element(
    symbol: str,
    pseudopotential: str | os.PathLike,
    orbital: str | os.PathLike,
    ecut: float,
    cache: str | os.PathLike | None = None,
) -> Element:
    """An element from its two files, or from what was kept of them.

    Parameters
    ----------
    symbol
        What both files must be for.
    ecut
        Plane-wave cutoff in Ry up to which form factors are needed.
    cache
        Folder for entries that later processes find. Several processes may use it at once: an
        entry appears complete, under its final name.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming element and file.
    """
    digests = [hashlib.sha256(Path(path).read_bytes()) for path in (pseudopotential, orbital)]
    words = [str(_FORMAT), f"{ecut:.6g}", *(digest.hexdigest() for digest in digests)]
    key = hashlib.sha256(" ".join(words).encode()).hexdigest()
    element = _memory.get(key)
    if element is None and cache is not None:
        element = _read(_entry(cache, key))
    if element is None:
        element = _compute(symbol, pseudopotential, orbital, ecut)
        if cache is not None:
            Path(cache).mkdir(parents=True, exist_ok=True)
            _write(_entry(cache, key), element)
    # the same file may have been given for another element before
    _check(symbol, element.pseudopotential.header.element, pseudopotential, "pseudopotential")
    _memory[key] = element
    return element


def _compute(
    symbol: str, pseudopotential: str | os.PathLike, orbital: str | os.PathLike, ecut: float
) -> Element:
    data, orbitals = read_pseudopotential(pseudopotential), read_orb(orbital)
    _check(symbol, data.header.element, pseudopotential, "pseudopotential")
    _check(symbol, orbitals.element, orbital, "orbital")
    return Element(
        orbitals.shells,
        orbitals.spacing,
        normalised_functions(orbitals),
        orbitals.fingerprint,
        data,
        form_factors(data, ecut),
    )


def _check(symbol: str, found: str, path: str | os.PathLike, what: str) -> None:
    if found != symbol:
        raise ValueError(f"{symbol}: the {what} file {path} is for {found}")


# --- entries on disk -------------------------------------------------------------------------


def _entry(cache: str | os.PathLike, key: str) -> Path:
    return Path(cache) / f"{key}.npz"


def _write(path: Path, element: Element) -> None:
    data, factors = element.pseudopotential, element.form_factors
    plain = {
        "header": asdict(data.header),
        "shells": element.shells,
        "spacing": element.spacing,
        "orbital_fingerprint": element.orbital_fingerprint,
        "form_factors": {
            name: value for name, value in vars(factors).items() if not isinstance(value, ndarray)
        },
    }
    arrays = {"functions": element.functions, "plain": np.array(json.dumps(plain))}
    for prefix, content in (("pseudopotential", data), ("form_factors", factors)):
        arrays |= {
            f"{prefix}.{name}": value
            for name, value in vars(content).items()
            if isinstance(value, ndarray)
        }
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def _read(path: Path) -> Element | None:
    """The entry, or None where there is none or it is damaged; it will be computed again."""
    try:
        with open(path, "rb") as file:  # numpy leaves it open if it is damaged
            arrays = dict(np.load(file, allow_pickle=False))
        plain = json.loads(str(arrays.pop("plain")))
        absent = {"rho_core": None, "beta_j": None}
        return Element(
            tuple(plain["shells"]),
            plain["spacing"],
            arrays["functions"],
            plain["orbital_fingerprint"],
            PseudopotentialData(
                Pseudopotential(**plain["header"]), **absent | _part(arrays, "pseudopotential.")
            ),
            FormFactors(**plain["form_factors"], **_part(arrays, "form_factors.")),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _part(arrays: Mapping[str, ndarray], prefix: str) -> dict[str, ndarray]:
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
