"""What a foreign format has no place for, kept in a JSON file beside it.

Formats of other programs regroup atoms by element, name no orbital file and know nothing of H(0)
or of where numbers come from. A small file beside them, which those programs ignore, lets our own
reader give back exactly what was written. It is tied to the files it speaks of by their sha256: a
folder that somebody has changed since is read for what it says itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import write_atomically

NAME = "nextham.json"
"""Name of the file in a folder; a single file ``x`` has ``x.nextham.json`` beside it."""

_FORMAT = "ase_nextham converters sidecar"
_VERSION = 1


def sidecar_path(path: str | os.PathLike) -> Path:
    """Where the sidecar of a folder or file is; a path that is not there yet counts as a file."""
    path = Path(path)
    return path / NAME if path.is_dir() else path.with_name(f"{path.name}.{NAME}")


def write_sidecar(
    path: str | os.PathLike,
    data: LCAOData,
    tied_to: Sequence[str | os.PathLike],
    *,
    order: Sequence[int] | None = None,
    shifts=None,
    extra: Mapping | None = None,
) -> None:
    """Note what the files of a format do not say themselves.

    Parameters
    ----------
    path
        The file to write, as of :func:`sidecar_path`.
    data
        As it was given to the format's ``write``.
    tied_to
        Files that were written, without which this note means nothing: small ones that fix the
        structure.
    order, shifts
        The files hold ``data.permuted(order).translated(shifts)``.
    extra
        What else the format's reader wants back, as plain JSON.
    """
    basis = data.basis
    natoms = len(data.atoms)
    moments = data.atoms.get_initial_magnetic_moments()
    content = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "sha256": {Path(name).name: _digest(name) for name in tied_to},
        "order": list(range(natoms)) if order is None else [int(a) for a in order],
        "shifts": np.zeros((natoms, 3), int).tolist() if shifts is None else _integers(shifts),
        "species": list(data.symbols),
        "pbc": [bool(periodic) for periodic in data.atoms.pbc],
        "initial_magmoms": moments.tolist() if np.any(moments) else None,
        "basis": {
            "shells": {name: list(ls) for name, ls in basis.shells.items()},
            "radius": dict(basis.radius),
            "fingerprint": dict(basis.fingerprint),
            "valence": dict(basis.valence),
        },
        "nelectrons": data.nelectrons,
        "fermi_level": data.fermi_level,
        "source": dict(data.source),
        "extra": dict(extra or {}),
    }
    write_atomically(path, json.dumps(content) + "\n")


def read_sidecar(path: str | os.PathLike, tied_to: Sequence[str | os.PathLike]) -> dict | None:
    """The note of :func:`write_sidecar`, or None where there is none that holds.

    Warns where there is one for other files than those at hand.

    Raises
    ------
    ValueError
        If the file is damaged, or of a newer release.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["format"] != _FORMAT:
            raise ValueError(f"format is {note['format']!r}, expected {_FORMAT!r}")
        version, digests = int(note["format_version"]), dict(note["sha256"])
        if version <= _VERSION:  # a newer one may hold other entries
            _check(note)
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as err:
        raise ValueError(
            f"{path}: not a readable note of ase_nextham ({err}); without this file the folder is "
            "read for what its other files say"
        ) from err
    if version > _VERSION:
        raise ValueError(
            f"{path}: format version {version}, but this release reads versions up to {_VERSION}; "
            "a newer ase_nextham wrote it"
        )
    changed = [Path(name).name for name in tied_to if digests.get(Path(name).name) != _digest(name)]
    if changed:
        warnings.warn(
            f"{path}: {', '.join(changed)} changed after this note was written, so the note is "
            "not used",
            stacklevel=3,
        )
        return None
    return note


def noted_basis(note: Mapping, convention: str = "abacus") -> Basis:
    """The basis that was written, with the species names it had then."""
    stored = note["basis"]
    return Basis(
        {name: tuple(ls) for name, ls in stored["shells"].items()},
        convention,
        stored["radius"],
        stored["fingerprint"],
        stored["valence"],
    )


def restored(stored: LCAOData, note: Mapping) -> LCAOData:
    """The data as they were given to ``write``, from what the files hold.

    ``stored`` must already have the species and the basis of the note (:func:`noted_basis`).

    Raises
    ------
    ValueError
        If the note is for other atoms.
    """
    order, shifts = np.array(note["order"], int), np.array(note["shifts"], int).reshape(-1, 3)
    expected = tuple(note["species"][a] for a in order)
    if stored.symbols != expected:
        raise ValueError(
            f"the note beside the files is for atoms {' '.join(expected)}, but they hold "
            f"{' '.join(stored.symbols)}"
        )
    data = stored
    if shifts.any():
        data = data.translated(-shifts)
    if not np.array_equal(order, np.arange(len(order))):
        data = data.permuted(np.argsort(order))
    atoms = data.atoms.copy()
    atoms.pbc = note["pbc"]
    if note["initial_magmoms"] is not None:
        atoms.set_initial_magnetic_moments(note["initial_magmoms"])
    return replace(
        data,
        atoms=atoms,
        nelectrons=note["nelectrons"],
        fermi_level=note["fermi_level"],
        source=note["source"],
    )


def _check(note: Mapping) -> None:
    """That the note has what :func:`restored` uses, in the right shape."""
    natoms = len(note["species"])
    if sorted(note["order"]) != list(range(natoms)):
        raise ValueError(f"'order' is no permutation of {natoms} atoms")
    if np.shape(note["shifts"]) != (natoms, 3) and natoms:
        raise ValueError(f"'shifts' has shape {np.shape(note['shifts'])}, expected ({natoms}, 3)")
    if len(note["pbc"]) != 3:
        raise ValueError("'pbc' is not three words")
    for name in ("initial_magmoms", "nelectrons", "fermi_level", "source", "extra"):
        note[name]
    noted_basis(note)


def _integers(shifts) -> list:
    shifts = np.asarray(shifts)
    if not np.issubdtype(shifts.dtype, np.integer):
        raise TypeError(f"shifts must be integers, not {shifts.dtype}")
    return shifts.tolist()


def _digest(path: str | os.PathLike) -> str:
    with Path(path).open("rb") as file:  # in pieces: a sample of NextHAM may have gigabytes
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["NAME", "noted_basis", "read_sidecar", "restored", "sidecar_path", "write_sidecar"]
