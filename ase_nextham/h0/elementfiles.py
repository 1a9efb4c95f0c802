"""Which pseudopotential and which orbital file each element has.

Files are named one by one, or looked up in a folder by element. Folders come from keywords, from
section ``[abacus]`` of ASE's configuration, or from the environment variables that ABACUS users
set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from ase.calculators.calculator import CalculatorSetupError
from ase.config import cfg

VARIABLES: Mapping[str, str] = {"pseudo_dir": "ABACUS_PP_PATH", "orbital_dir": "ABACUS_ORB_PATH"}
"""Environment variable by keyword, for folders that are configured nowhere else."""


def abacus_section() -> Mapping[str, str]:
    """Section ``[abacus]`` of ASE's configuration, empty if there is none."""
    return cfg.parser["abacus"] if cfg.parser.has_section("abacus") else {}


def configured_folder(keyword: str) -> str | None:
    """``pseudo_dir`` or ``orbital_dir`` of ASE's configuration, else of the environment."""
    return abacus_section().get(keyword) or os.environ.get(VARIABLES[keyword]) or None


def find_files(
    elements: Sequence[str],
    named: Mapping[str, str | PathLike],
    folder: str | PathLike | None,
    what: str,
    suffix: str,
) -> dict[str, Path]:
    """The file of each element: the one named, else the only one in the folder that can be it.

    Parameters
    ----------
    named
        Files by element, relative to ``folder`` or absolute.
    what
        ``"pseudopotential"`` or ``"orbital"``, for messages.
    suffix
        ``".upf"`` or ``".orb"``, in capitals or not.

    Returns
    -------
    dict
        Absolute path by element.

    Raises
    ------
    CalculatorSetupError
        If there is no such file or folder, or there are several.
    """
    found = {}
    keyword = f"{what.removesuffix('potential')}_dir"
    for element in elements:
        if element in named:
            path = Path(folder or ".").expanduser() / Path(named[element]).expanduser()
            if not path.is_file():
                raise CalculatorSetupError(f"{element}: the {what} {path} does not exist")
            found[element] = path
            continue
        if folder is None:
            raise CalculatorSetupError(
                f"{element}: no {what}: give {keyword}, or set it in section [abacus] of "
                f"~/.config/ase/config.ini, or in the environment as {VARIABLES[keyword]}"
            )
        directory = Path(folder).expanduser()
        if not directory.is_dir():
            raise CalculatorSetupError(f"{keyword}={str(folder)!r} is not a folder")
        # Si.upf, Si_gga_7au.orb, Si-sp.UPF, Si.pbe.upf, but not the Si of SiC.upf
        pattern = re.compile(rf"{element}([^a-zA-Z].*)?\{suffix}", re.IGNORECASE)
        candidates = sorted(p for p in directory.iterdir() if pattern.fullmatch(p.name))
        if not candidates:
            raise CalculatorSetupError(
                f"{element}: no {what} in {directory}: looked for {element}{suffix}, "
                f"{element}_*{suffix} and {element}-*{suffix}"
            )
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates)
            raise CalculatorSetupError(
                f"{element}: {len(candidates)} files in {directory} can be its {what} ({names}); "
                f"choose one with {what}s={{{element!r}: {candidates[0].name!r}}}"
            )
        found[element] = candidates[0]
    return {element: Path(os.path.abspath(path)) for element, path in found.items()}
