"""Where S and H(0) come from: backends that turn ``Atoms`` into :class:`LCAOData`.

A backend is any object with ``compute(atoms)``. This package has three: its own engine
(:class:`ase_nextham.h0.native.engine.NativeH0`), ABACUS, which is run
(:class:`ase_nextham.h0.abacus.AbacusH0`), and what was computed earlier, which is read
(:class:`ase_nextham.h0.stored.StoredH0`). :func:`from_name` picks one by a word or a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Protocol

from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError

from ase_nextham.data import LCAOData

NAMES = ("abacus", "auto", "native")
"""The words that :func:`from_name` knows; everything else is a path."""

_ABACUS_ONLY = {"profile", "inp", "timeout"}
"""Options that only a program that is run understands."""


class H0Backend(Protocol):
    """What every source of H(0) offers; a class needs no more than this to be one."""

    def compute(self, atoms: Atoms) -> LCAOData:
        """The overlap and H(0) of a structure.

        Returns
        -------
        LCAOData
            With ``overlap`` and ``h0`` set, for the atoms in the order and at the positions
            given; ``basis`` tells which orbitals.

        Raises
        ------
        CalculatorSetupError, CalculationFailed, ReadError
            Of ``ase.calculators.calculator``: before, during and after the computation.
        """


def from_name(name: str | PathLike | H0Backend, **options) -> H0Backend:
    """The backend that a word or a path stands for.

    Parameters
    ----------
    name
        ``"native"``: compute it here. ``"abacus"``: run ABACUS. ``"auto"``: the first where the
        folders of pseudopotentials and orbitals are known, by keyword or configuration, and all
        options are its; else the second where ABACUS is configured; else an error that says what
        to do. A path: a file or folder with S and H(0) computed earlier. An object with
        ``compute(atoms)`` is returned as it is.
    options
        Keywords of the backend: those of
        :class:`~ase_nextham.h0.native.engine.NativeH0` and
        :class:`~ase_nextham.h0.abacus.AbacusH0`, which share the names of what they share.
        ``directory``, where a program runs, means nothing to ``"native"`` and is dropped.

    Raises
    ------
    CalculatorSetupError
        If ``"auto"`` finds neither files for the first nor ABACUS.
    ValueError
        For a word that is no backend and no path.
    """
    if callable(getattr(name, "compute", None)):
        if options:
            raise TypeError(f"{type(name).__name__} is a backend already and takes no options")
        return name
    word = str(name)
    if word == "auto":
        word = _automatic(options)
    if word == "native":
        from ase_nextham.h0.native.engine import NativeH0

        return NativeH0(**{key: value for key, value in options.items() if key != "directory"})
    if word == "abacus":
        from ase_nextham.h0.abacus import AbacusH0

        return AbacusH0(**options)
    if not Path(name).exists():
        close = get_close_matches(word, NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"h0={word!r}: {hint}It is neither a backend ({', '.join(NAMES)}) nor a file or "
            "folder that exists"
        )
    from ase_nextham.h0.stored import StoredH0

    return StoredH0(name, **options)


def _automatic(options: Mapping) -> str:
    """What ``"auto"`` stands for with these options."""
    from ase_nextham.h0.abacus import configured_command
    from ase_nextham.h0.elementfiles import configured_folder

    missing = [
        keyword
        for keyword, files in (("pseudo_dir", "pseudopotentials"), ("orbital_dir", "orbitals"))
        if not (options.get(keyword) or options.get(files) or configured_folder(keyword))
    ]
    if options.keys() & _ABACUS_ONLY:
        return "abacus"
    if not missing:
        return "native"
    if configured_command() is not None:
        return "abacus"
    raise CalculatorSetupError(
        f"no H(0) backend is available: {' and '.join(missing)} not given, so that it cannot be "
        "computed here, and there is no ABACUS to run. Give the folders of pseudopotentials and "
        "orbitals, or set them in section [abacus] of ASE's configuration "
        "(~/.config/ase/config.ini) as pseudo_dir and orbital_dir, or in the environment as "
        "ABACUS_PP_PATH and ABACUS_ORB_PATH; or name a file or folder with S and H(0) computed "
        "earlier, h0='path'"
    )
