"""What ABACUS's running logs are read for: the version, the Fermi level, and whether it converged.

Their wording changes with every release, so nothing else is taken from them: the structure is in
STRU, the basis in the orbital files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ase_nextham.files import read_text

# one expression, one pass: logs can be long, and what counts is which line comes last
_LINES = re.compile(
    r"""
      ABACUS\ v(?P<version>\S+)
    | \bION(?:\ MOVE\#|\s*=)\s*(?P<ion>\d+)                      # 3.11: #ION MOVE#; before: ION=
    | ^\s*EFERMI\s*=\s*(?P<efermi>\S+)\s*eV                      # up to 3.9, once converged
    | ^\s*E_Fermi\s+\S+\s+(?P<table>\S+)                         # all versions, Ry and eV
    | (?P<converged>charge\ density\ convergence\ is\ achieved|\#SCF\ IS\ CONVERGED\#)
    | (?P<unconverged>convergence\ has\ (?:not|NOT)\ been\ achieved|SCF\ IS\ NOT\ CONVERGED)
    | (?P<autoset>Autoset\ magnetism\ for\ this\ atom)
    """,
    re.VERBOSE | re.MULTILINE,
)


@dataclass(frozen=True)
class RunningLog:
    """What a running log says.

    Parameters
    ----------
    version
        For example ``"3.9.0"``; None if the log does not say.
    fermi_levels
        In eV, by ionic step counted from 0: the last one printed in each. Empty where there are
        two (``nupdown``), or no self-consistent loop.
    converged
        Whether the self-consistent loop converged, by ionic step; no entry if the log is silent.
    moments_autoset
        Whether ABACUS magnetised all atoms because STRU gave no moment (see
        ``Autoset magnetism`` in the log): (1, 1, 1) with ``nspin 4``, 1 with ``nspin 2``.
    """

    version: str | None = None
    fermi_levels: Mapping[int, float] = field(default_factory=dict)
    converged: Mapping[int, bool] = field(default_factory=dict)
    moments_autoset: bool = False


def read_log(path: str | os.PathLike) -> RunningLog:
    """Read a ``running_*.log`` of any version from 3.2 to 3.11.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    version, autoset, step = None, False, 0
    fermi_levels: dict[int, float] = {}
    converged: dict[int, bool] = {}
    for match in _LINES.finditer(read_text(Path(path))):
        kind, text = match.lastgroup, match.group(match.lastgroup)
        if kind == "version":
            version = version or text
        elif kind == "ion":
            step = max(int(text) - 1, 0)
        elif kind in ("efermi", "table"):
            try:
                fermi_levels[step] = float(text)
            except ValueError:
                continue  # a table heading, or a number that ran into its neighbour
        elif kind == "autoset":
            autoset = True
        else:
            converged[step] = kind == "converged"
    return RunningLog(version, fermi_levels, converged, autoset)
