"""The radial functions of a pseudopotential in UPF version 2.

The header is left to :mod:`ase_nextham.h0.upf`. Like there, the file is scanned as text and not
parsed as XML.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from ase_nextham.h0.upf import Pseudopotential, read_attributes, read_header, read_upf


@dataclass(frozen=True, eq=False)
class PseudopotentialData:
    """A norm-conserving pseudopotential on its radial mesh, in Bohr and Rydberg.

    The mesh has an odd number of points: ABACUS drops the last one where the file has an even
    number, so that Simpson's rule applies.

    Parameters
    ----------
    header
        Element, valence and what else the header says; ``mesh_size`` is that of the file.
    r, rab
        Points and their weights dr/di, shape (nmesh,).
    vloc
        Local potential in Ry, shape (nmesh,).
    rho_atom
        Density of the pseudo-atom, 4 pi r^2 rho(r), shape (nmesh,).
    rho_core
        Partial core density rho(r), shape (nmesh,), or None.
    beta
        Projectors r * beta(r), shape (nproj, nmesh), in the order of the file.
    beta_l
        Angular momentum of each projector, shape (nproj,).
    beta_j
        Total angular momentum of each projector, shape (nproj,); None without spin-orbit coupling.
    dij
        Coefficients of the projectors in Ry, shape (nproj, nproj), symmetric.
    """

    header: Pseudopotential
    r: ndarray
    rab: ndarray
    vloc: ndarray
    rho_atom: ndarray
    rho_core: ndarray | None
    beta: ndarray
    beta_l: ndarray
    beta_j: ndarray | None
    dij: ndarray


def read_pseudopotential(path: str | os.PathLike) -> PseudopotentialData:
    """Read a UPF 2 file with all that H(0) needs.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is UPF version 1, ultrasoft or PAW, or a section is missing, cut short or garbled;
        the message names element, file and section.
    """
    path = Path(path)
    header = read_upf(path)
    attributes, text = read_header(path, path.read_bytes().decode("utf-8", errors="replace"))
    kind = attributes.get("pseudo_type", "NC").upper()
    if kind not in ("NC", "SL"):
        raise ValueError(
            f"{header.element}: {path} is a pseudopotential of type {kind}; norm-conserving ones "
            "(NC) are needed"
        )
    try:
        return _read(header, attributes, text)
    except ValueError as err:
        raise ValueError(f"{header.element}: {path}: {err}") from err


def _read(header: Pseudopotential, attributes: dict[str, str], text: str) -> PseudopotentialData:
    nmesh, nproj = header.mesh_size, _integer(attributes, "number_of_proj", "PP_HEADER")
    if not 3 <= nmesh <= len(text):
        raise ValueError(f"PP_HEADER: mesh_size is {nmesh}")
    if not 0 <= nproj <= len(text):
        raise ValueError(f"PP_HEADER: number_of_proj is {nproj}")
    odd = nmesh - 1 + nmesh % 2
    functions = {
        name: _section(text, name, nmesh)[1][:odd]
        for name in ("PP_R", "PP_RAB", "PP_LOCAL", "PP_RHOATOM")
    }
    if (np.diff(functions["PP_R"]) <= 0).any() or functions["PP_R"][0] < 0:
        raise ValueError("PP_R: the mesh points do not increase from 0 on")
    core = _section(text, "PP_NLCC", nmesh)[1][:odd] if header.core_correction else None
    beta, beta_l, beta_j = np.zeros((nproj, odd)), np.zeros(nproj, int), np.zeros(nproj)
    for p in range(nproj):
        name = f"PP_BETA.{p + 1}"
        tag, values = _section(text, name, nmesh)
        beta[p], beta_l[p] = values[:odd], _integer(tag, "angular_momentum", name)
        if not 0 <= beta_l[p] <= 4:
            raise ValueError(f"{name}: angular_momentum is {beta_l[p]}, expected 0 ... 4")
        if header.has_so:
            beta_j[p] = _total_angular_momentum(text, p, beta_l[p])
    dij = _section(text, "PP_DIJ", nproj**2)[1].reshape(nproj, nproj) if nproj else np.zeros((0, 0))
    if not np.allclose(dij, dij.T, rtol=0, atol=1e-6):
        raise ValueError("PP_DIJ: the coefficients of the projectors are not symmetric")
    return PseudopotentialData(
        header,
        functions["PP_R"],
        functions["PP_RAB"],
        functions["PP_LOCAL"],
        functions["PP_RHOATOM"],
        core,
        beta,
        beta_l,
        beta_j if header.has_so else None,
        dij,
    )


def _section(text: str, name: str, size: int) -> tuple[dict[str, str], ndarray]:
    """Attributes and numbers of one section, the latter checked for their number."""
    start = re.search(rf"<{re.escape(name)}(?=[\s>])", text)
    if start is None:
        raise ValueError(f"there is no section {name}, which H(0) needs")
    attributes, position = read_attributes(text, start.end())
    end = text.find(f"</{name}>", position)
    if text[position] != ">" or end < 0:
        raise ValueError(f"{name}: the section has no end; the file is cut short or garbled")
    try:
        # Fortran may write 1.0D-03
        values = np.array(text[position + 1 : end].replace("D", "E").split(), float)
    except ValueError as err:
        raise ValueError(f"{name}: {err}") from None
    if len(values) != size:
        raise ValueError(f"{name}: {len(values)} numbers where the header announces {size}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: there are numbers that are not finite")
    return attributes, values


def _total_angular_momentum(text: str, p: int, l: int) -> float:
    name = f"PP_RELBETA.{p + 1}"
    start = re.search(rf"<{re.escape(name)}(?=\s)", text)
    if start is None:
        raise ValueError(f"there is no {name}, which tells j of a projector, but has_so is set")
    attributes, _ = read_attributes(text, start.end())
    try:
        own_l, j = int(attributes["lll"]), float(attributes["jjj"])
    except (KeyError, ValueError):
        raise ValueError(f"{name}: lll and jjj must be numbers, found {attributes}") from None
    if own_l != l or abs(j - l) != 0.5 or j < 0:
        raise ValueError(f"{name}: l = {own_l}, j = {j} does not go with l = {l} of the projector")
    return j


def _integer(attributes: dict[str, str], name: str, section: str) -> int:
    try:
        return int(attributes[name])
    except KeyError:
        raise ValueError(f"{section}: there is no attribute {name!r}") from None
    except ValueError:
        raise ValueError(f"{section}: {name} is {attributes[name]!r}, not an integer") from None
