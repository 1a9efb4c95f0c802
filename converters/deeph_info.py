"""info.json of a DeepH folder, in either format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path


def read_info(path: Path) -> dict:
    """The content of the file.

    Raises
    ------
    ValueError
        If it is missing or not a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, which every folder of DeepH has")
    try:
        info = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path}: not readable as JSON ({err})") from err
    if not isinstance(info, dict):
        raise ValueError(f"{path}: a JSON object is expected, not {type(info).__name__}")
    return info


def info_flag(path: Path, info: Mapping, key: str) -> bool:
    """A value that is true or false; false where there is none.

    Raises
    ------
    ValueError
        If it is something else.
    """
    value = info.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{path}: {key!r} is {value!r}, expected true or false")
    return value


def info_number(path: Path, info: Mapping, key: str) -> float | None:
    """A number; None where there is none or it is null.

    Raises
    ------
    ValueError
        If it is something else or not finite.
    """
    value = info.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{path}: {key!r} is {value!r}, expected a number")
    return float(value)


__all__ = ["info_flag", "info_number", "read_info"]
