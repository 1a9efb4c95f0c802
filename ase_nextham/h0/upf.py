"""The header of a pseudopotential in UPF version 2: valence, spin-orbit, functional.

The file is scanned as text and not parsed as XML: the text in PP_INFO often is not XML, and
nothing in a file of others should make a parser fetch anything.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_ATTRIBUTE = re.compile(r"""([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


@dataclass(frozen=True)
class Pseudopotential:
    """What the PP_HEADER of a UPF file says.

    Parameters
    ----------
    element
        Chemical symbol.
    valence
        Electrons of the neutral pseudo-atom.
    has_so
        Whether the projectors have a total angular momentum j.
    core_correction
        Whether there is a partial core density.
    functional
        Exchange and correlation, as written, for example ``"PBE"``.
    relativistic
        ``"full"``, ``"scalar"`` or ``"no"``.
    mesh_size
        Points of the radial mesh.
    fingerprint
        sha256 of the file.
    """

    element: str
    valence: float
    has_so: bool
    core_correction: bool
    functional: str
    relativistic: str
    mesh_size: int
    fingerprint: str


def read_upf(path: str | os.PathLike) -> Pseudopotential:
    """Read the header of a UPF 2 file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is UPF version 1 or something else, or the header lacks what is needed.
    """
    path = Path(path)
    content = path.read_bytes()
    attributes, _ = read_header(path, content.decode("utf-8", errors="replace"))
    try:
        return _parse(attributes, content)
    except ValueError as err:
        raise ValueError(f"{path}: PP_HEADER: {err}") from err


def read_header(path: str | os.PathLike, text: str) -> tuple[dict[str, str], str]:
    """Attributes of PP_HEADER by name in small letters, and the text that follows it.

    Raises
    ------
    ValueError
        If the text is not that of a UPF 2 file; the message names ``path``.
    """
    # PP_INFO holds the input of the generator and other text, which may look like anything
    start = text.rfind("</PP_INFO>")
    header = re.compile(r"<PP_HEADER\b").search(text, max(start, 0))
    if header is None:
        raise ValueError(f"{path}: there is no PP_HEADER, so this is not a UPF file")
    if re.search(r"<UPF\s+version\s*=\s*[\"']2", text[: header.start()]) is None:
        raise ValueError(
            f"{path}: the pseudopotential is in UPF version 1; convert it to version 2, for "
            "example with `upfconv.x -u` of Quantum ESPRESSO, or take it from a library that "
            "provides UPF 2.0.1"
        )
    try:
        attributes, end = read_attributes(text, header.end())
    except ValueError as err:
        raise ValueError(f"{path}: PP_HEADER: {err}") from err
    return attributes, text[end:]


def read_attributes(text: str, position: int) -> tuple[dict[str, str], int]:
    """Attributes of the tag whose name ends at ``position``, and where the tag ends."""
    attributes: dict[str, str] = {}
    while match := re.compile(r"\s*").match(text, position):
        position = match.end()
        attribute = _ATTRIBUTE.match(text, position)
        if attribute is None:
            break
        name, double, single = attribute.groups()
        attributes[name.lower()] = (double if double is not None else single).strip()
        position = attribute.end()
    if text[position : position + 1] not in ("/", ">"):
        raise ValueError(f"expected an attribute, found {text[position : position + 30]!r}")
    return attributes, position


def _parse(attributes: dict[str, str], content: bytes) -> Pseudopotential:
    return Pseudopotential(
        element=_get(attributes, "element"),
        valence=_float(attributes, "z_valence"),
        has_so=_logical(attributes, "has_so"),
        core_correction=_logical(attributes, "core_correction"),
        functional=_get(attributes, "functional"),
        relativistic=attributes.get("relativistic", "no"),
        mesh_size=int(_float(attributes, "mesh_size")),
        fingerprint=hashlib.sha256(content).hexdigest(),
    )


def _get(attributes: dict[str, str], name: str) -> str:
    if name not in attributes:
        raise ValueError(f"there is no attribute {name!r}")
    return attributes[name]


def _float(attributes: dict[str, str], name: str) -> float:
    word = _get(attributes, name)
    try:
        return float(word.lower().replace("d", "e"))  # Fortran writes 4.0D+00
    except ValueError:
        raise ValueError(f"{name} is {word!r}, not a number") from None


def _logical(attributes: dict[str, str], name: str) -> bool:
    return attributes.get(name, "F").strip(".").lower() in ("t", "true")
