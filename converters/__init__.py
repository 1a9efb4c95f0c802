"""Read and write the formats of other programs, and the native file, as ``LCAOData``.

A format is a module in this folder with ``read(path, **options) -> LCAOData``,
``write(path, data, **options)``, ``recognises(path) -> bool``, the ``SUFFIXES`` of paths that mean
it on writing, and one line in :data:`FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from ase_nextham.data import LCAOData

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "abacus": "folder of an ABACUS run: INPUT, STRU, OUT.*/ with H(R), S(R), r(R)",
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
    module = _module(name)
    if not single and len(paths) > 1 and name != "abacus":
        raise ValueError(f"format {name!r} is read from one path, not from {len(paths)}")
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
        For an unknown format or suffix.
    """
    if format is None:
        suffix = Path(path).suffix.lower()
        named = [name for name in FORMATS if suffix and suffix in _module(name).SUFFIXES]
        if not named:
            raise ValueError(
                f"{path}: the name does not tell the format; give one of {', '.join(FORMATS)}"
            )
        format = named[0]
    _module(format).write(path, data, **options)


def convert(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    target: str | os.PathLike,
    source_format: str | None = None,
    target_format: str | None = None,
    *,
    read_options: Mapping | None = None,
    write_options: Mapping | None = None,
) -> LCAOData:
    """Read in one format, write in another; returns what was read.

    Parameters
    ----------
    source, source_format, read_options
        As the arguments of :func:`read`.
    target, target_format, write_options
        As the arguments of :func:`write`.

    Raises
    ------
    ValueError
        As :func:`read` and :func:`write`; an unknown target format before anything is read.
    """
    if target_format is not None:
        _module(target_format)
    data = read(source, source_format, **(read_options or {}))
    write(target, data, target_format, **(write_options or {}))
    return data


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
        if _module(name).recognises(Path(path)):
            return name
    known = "; ".join(f"{name}: {words}" for name, words in FORMATS.items())
    raise ValueError(f"{path}: the content is of no known format. Known are {known}")


def _module(name: str):
    if name not in FORMATS:
        close = get_close_matches(str(name).lower(), FORMATS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown format {name!r}; known formats: {', '.join(FORMATS)}{hint}")
    return import_module(f".{name}", __package__)


__all__ = ["FORMATS", "convert", "guess_format", "read", "write"]
