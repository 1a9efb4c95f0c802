"""Where S and H(0) come from: backends that turn ``Atoms`` into :class:`LCAOData`.

A backend is any object with ``compute(atoms)``. This package has two: ABACUS is run
(:class:`ase_nextham.h0.abacus.AbacusH0`), or what was computed earlier is read
(:class:`ase_nextham.h0.stored.StoredH0`). :func:`from_name` picks one by a word or a path.
"""

from __future__ import annotations

from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Protocol

from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError

from ase_nextham.data import LCAOData

NAMES = ("abacus", "auto", "native")
"""The words that :func:`from_name` knows; everything else is a path."""


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
        ``"abacus"``: run ABACUS. ``"auto"``: the same where it is configured, else an error that
        says what to do. A path: a file or folder with S and H(0) computed earlier. An object
        with ``compute(atoms)`` is returned as it is.
    options
        Keywords of the backend, for ``"abacus"`` those of
        :class:`~ase_nextham.h0.abacus.AbacusH0`.

    Raises
    ------
    CalculatorSetupError
        If ``"auto"`` finds no ABACUS.
    ValueError
        For a word that is no backend and no path.
    """
    if callable(getattr(name, "compute", None)):
        if options:
            raise TypeError(f"{type(name).__name__} is a backend already and takes no options")
        return name
    word = str(name)
    if word in ("abacus", "auto"):
        from ase_nextham.h0.abacus import AbacusH0, configured_command

        if word == "auto" and configured_command() is None:
            raise CalculatorSetupError(
                "no H(0) backend is available: there is no `abacus` on PATH and no section "
                "[abacus] with a `command` in ASE's configuration (~/.config/ase/config.ini); "
                "install ABACUS (for example `conda install -c conda-forge abacus`) or name a "
                "file or folder with S and H(0) computed earlier, h0='path'"
            )
        return AbacusH0(**options)
    if word == "native":
        raise ValueError(
            "h0='native': this release has no H(0) engine of its own; use h0='abacus', "
            "or the path of S and H(0) computed earlier"
        )
    if not Path(name).exists():
        close = get_close_matches(word, NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"h0={word!r}: {hint}It is neither a backend ({', '.join(NAMES)}) nor a file or "
            "folder that exists"
        )
    from ase_nextham.h0.stored import StoredH0

    return StoredH0(name, **options)
