"""Structures from any file: of this package, of the formats it knows, and what ASE reads."""

from __future__ import annotations

from ase import Atoms

from ase_nextham.files import read_text


def read_structure(path: str) -> Atoms:
    """A structure from a native file, an ABACUS folder, STRU, or anything that ASE reads."""
    from ase.io import read as read_atoms

    from ase_nextham.converters import guess_format, read
    from ase_nextham.h0.stru import read_stru

    try:
        known = guess_format(path)
    except ValueError:
        known = None
    if known is not None:
        return read(path).atoms
    if {"LATTICE_CONSTANT", "ATOMIC_POSITIONS"} <= set(read_text(path).split()):
        return read_stru(path).atoms
    try:
        return read_atoms(path)
    except Exception as err:  # ASE's readers raise whatever their parsing stumbles over
        reason = str(err) or type(err).__name__
        raise ValueError(f"{path}: ASE cannot read a structure from it ({reason})") from err
