"""ABACUS's parameter file INPUT: keywords and their values as words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ase_nextham.files import read_text, write_atomically

HEADING = "INPUT_PARAMETERS"

_TRUE = ("true", "1", "t", "yes", "y", "on", ".true.")
_FALSE = ("false", "0", "f", "no", "n", "off", ".false.")


def read_input(path: str | os.PathLike) -> dict[str, str]:
    """Keywords of an INPUT file, in lower case, and their values; several words with one space.

    Keywords that are not there have ABACUS's defaults, which this function does not know.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the heading is missing, or a keyword stands there twice with different values.
    """
    path = Path(path)
    lines = read_text(path).splitlines()
    values: dict[str, str] = {}
    started = False
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if not started:
            started = words[0] == HEADING
            continue
        if words[0][0] in "/!":
            continue
        keyword, kept = words[0].lower(), []
        for word in words[1:]:
            if word[0] == "!" or word.startswith("//"):
                break
            kept.append(word)
        value = " ".join(kept)
        if values.setdefault(keyword, value) != value:
            raise ValueError(
                f"{path}, line {number}: {keyword} is {value!r} here and {values[keyword]!r} "
                "above; remove one of the two"
            )
    if not started:
        raise ValueError(f"{path}: no line {HEADING}, so this is not an INPUT file of ABACUS")
    return values


def write_input(path: str | os.PathLike, values: Mapping[str, str]) -> None:
    """Write an INPUT file."""
    width = max((len(name) for name in values), default=0)
    lines = [HEADING, *(f"{name:<{width}}  {value}".rstrip() for name, value in values.items())]
    write_atomically(path, "\n".join(lines) + "\n")


def boolean(values: Mapping[str, str], keyword: str, default: bool) -> bool:
    """A switch of INPUT, in any of the spellings that ABACUS takes.

    Raises
    ------
    ValueError
        If the value is none of them.
    """
    words = values.get(keyword, "").split()
    if not words:
        return default
    word = words[0].lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{keyword} of INPUT must be 0 or 1, not {values[keyword]!r}")
    return word in _TRUE


def number(values: Mapping[str, str], keyword: str, default: float) -> float:
    """A number of INPUT.

    Raises
    ------
    ValueError
        If the value is none.
    """
    words = values.get(keyword, "").split()
    if not words:
        return default
    try:
        return float(words[0])
    except ValueError:
        raise ValueError(f"{keyword} of INPUT must be a number, not {values[keyword]!r}") from None
