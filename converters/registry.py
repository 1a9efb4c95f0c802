"""The formats by name, and how their modules are found, read and written.

A format is a module in this folder, named as the format with ``_`` for ``-``, and one line in
:data:`FORMATS`. The module has

- ``read(path, *, ...) -> LCAOData`` and ``write(path, data, *, ...)``, whose keywords are the
  options of the format; a module without ``write`` is for reading only;
- ``recognises(path) -> bool``, by content;
- ``SUFFIXES``: ends of the names that mean it on writing;
- ``HOLDS``: the operators it has a place for.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from ase_nextham.data import LCAOData

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "deeph": "folder of DeepH: POSCAR, info.json, hamiltonian.h5, overlap.h5",
        "deeph-legacy": "folder of old DeepH: hamiltonians.h5, overlaps.h5, element.dat, ...",
        "deeptb": "folder of dftio and DeePTB: hamiltonians.h5, overlaps.h5, basis.dat, ...",
        "hamgnn": "graph_data.npz of HamGNN, of ABACUS calculations",
        "nextham-pth": "sample or prediction of NextHAM's released programs (.pth)",
        "abacus": "folder of an ABACUS run: INPUT, STRU, OUT.*/ with H(R), S(R), r(R)",
        "wannier90": "_hr.dat or _tb.dat file, or a folder with them",
        "sisl": "file of SIESTA that sisl reads H from: .HSX, .TSHS, .fdf, .nc",
        "native": "HDF5 file of this package (.h5, .hdf5)",
    }
)
"""Known formats in words; each is the module of that name."""


def read(
    path: str | os.PathLike | Sequence[str | os.PathLike], format: str | None = None, **options
) -> LCAOData:
    """Read a structure and its operators.

    Parameters
    ----------
    path
        A file or folder; for ``"abacus"`` also several folders of one structure.
    format
        A key of :data:`FORMATS`; by default guessed from the content.
    options
        Of the format: see ``read`` in its module.

    Raises
    ------
    FileNotFoundError
        If there is no such path.
    ValueError
        For an unknown format, or content that is not of the format.
    """
    single = isinstance(path, (str, os.PathLike))
    paths = [path] if single else list(path)
    if not paths:
        raise ValueError("there is nothing to read: no path was given")
    name = guess_format(paths[0]) if format is None else format
    module = module_of(name)
    if not single and len(paths) > 1 and name != "abacus":
        raise ValueError(f"format {name!r} is read from one path, not from {len(paths)}")
    _check_options(module.read, name, options)
    return module.read(paths if len(paths) > 1 else paths[0], **options)


def write(path: str | os.PathLike, data: LCAOData, format: str | None = None, **options) -> None:
    """Write a structure and its operators.

    Parameters
    ----------
    format
        A key of :data:`FORMATS`; by default guessed from the suffix of ``path``.
    options
        Of the format: see ``write`` in its module.

    Raises
    ------
    ValueError
        For an unknown format or suffix, or data that the format cannot express.

    Notes
    -----
    Warns where the format has no place for an operator, which is left out; of two Hamiltonians
    that is H(0).
    """
    if format is None:
        format = format_of_name(path)
    module = writable(format)
    _check_options(module.write, format, options)
    module.write(path, _held(data, module.HOLDS, f"{path}: {format}"), **options)


def format_of_name(path: str | os.PathLike) -> str:
    """The format that the end of a name means on writing.

    Raises
    ------
    ValueError
        If it means none.
    """
    endings = {ending: name for name in FORMATS for ending in module_of(name).SUFFIXES}
    named = [ending for ending in endings if Path(path).name.lower().endswith(ending)]
    if not named:
        raise ValueError(
            f"{path}: the name does not tell the format; give one of {', '.join(FORMATS)}"
        )
    return endings[max(named, key=len)]


def writable(format: str):
    """The module of a format that can be written.

    Raises
    ------
    ValueError
        For an unknown format, or one for reading only.
    """
    module = module_of(format)
    if not hasattr(module, "write"):
        names = [name for name in FORMATS if hasattr(module_of(name), "write")]
        raise ValueError(f"{format!r} is for reading only; writable are {', '.join(names)}")
    return module


def _held(data: LCAOData, holds: Sequence[str], where: str) -> LCAOData:
    """The operators that a format has a place for."""
    names = ("overlap", "h0", "hamiltonian", "position")
    dropped = [name for name in names if name not in holds and getattr(data, name) is not None]
    if dropped == ["h0"] and data.hamiltonian is None and "hamiltonian" in holds:
        return replace(data, h0=None, hamiltonian=data.h0)
    lost = [name for name in dropped if name != "overlap"]
    if lost:
        words = {"h0": "H(0)", "hamiltonian": "the Hamiltonian", "position": "r(R)"}
        warnings.warn(
            f"{where} has no place for {' and '.join(words[name] for name in lost)}, left out",
            stacklevel=4,
        )
    return replace(data, **dict.fromkeys(lost))


def guess_format(path: str | os.PathLike) -> str:
    """The format that the content of a file or folder is of.

    Raises
    ------
    FileNotFoundError
        If there is no such path.
    ValueError
        If it is none of :data:`FORMATS`.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for name in FORMATS:
        if module_of(name).recognises(Path(path)):
            return name
    known = "; ".join(f"{name}: {words}" for name, words in FORMATS.items())
    raise ValueError(f"{path}: the content is of no known format. Known are {known}")


def _check_options(function, format: str, options: Mapping) -> None:
    known = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for name in options:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"option {name!r} means nothing for format {format!r}; {takes}")


def module_of(name: str):
    """The module of a format, for whatever it is wanted.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    if name not in FORMATS:
        close = get_close_matches(str(name).lower(), FORMATS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown format {name!r}; known formats: {', '.join(FORMATS)}{hint}")
    return import_module(f".{name.replace('-', '_')}", __package__)


__all__ = ["FORMATS", "format_of_name", "guess_format", "module_of", "read", "writable", "write"]
