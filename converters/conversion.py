"""From one format to another: what is kept, with which spin, and a check of what was written."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy import ndarray

from ase_nextham import bands
from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix

from .registry import format_of_name, guess_format, read, writable, write

OPERATORS = ("overlap", "h0", "hamiltonian", "position")
"""What can be asked for with ``only``."""

SPINS = ("up", "down", "collinear", "spinor")
"""What can be asked for with ``spin``: one channel of a collinear Hamiltonian, or more spin."""


@dataclass(frozen=True, eq=False)
class Converted:
    """What a conversion has written.

    Parameters
    ----------
    atoms
        The structure.
    operators
        Names of what was read and not left out, of :data:`OPERATORS`.
    """

    atoms: Atoms
    operators: tuple[str, ...]


@dataclass(frozen=True)
class BandError:
    """How much band energies changed.

    Parameters
    ----------
    all
        Largest change over all bands, in eV.
    occupied
        Over those that hold the electrons; None where their number is not known.
    """

    all: float
    occupied: float | None


def convert(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    target: str | os.PathLike,
    source_format: str | None = None,
    target_format: str | None = None,
    *,
    only: Collection[str] | None = None,
    spin: str | None = None,
    read_options: Mapping | None = None,
    write_options: Mapping | None = None,
) -> Converted:
    """Read in one format, write in another.

    Parameters
    ----------
    source, source_format, read_options
        As the arguments of :func:`read`.
    target, target_format, write_options
        As the arguments of :func:`write`.
    only
        Operators to keep, of :data:`OPERATORS`; the overlap is always kept.
    spin
        ``"up"`` or ``"down"``: that channel of collinear Hamiltonians, as unpolarised ones;
        ``"collinear"`` or ``"spinor"``: the same Hamiltonians with more spin.

    Raises
    ------
    ValueError
        As :func:`read` and :func:`write`; an unknown target format before anything is read.

    Notes
    -----
    Large matrix files of ABACUS are not held in memory as a whole where the target allows it: see
    :mod:`.streaming`.
    """
    if target_format is None:
        target_format = format_of_name(target)
    writable(target_format)
    read_options, write_options = dict(read_options or {}), dict(write_options or {})
    if spin is None and _is_streamed(source, source_format, target_format, write_options):
        from .streaming import convert_streaming

        done = convert_streaming(
            source, target, target_format, only=only, **read_options, **write_options
        )
        return Converted(done.atoms, done.operators)
    data = selected(read(source, source_format, **read_options), only, spin)
    write(target, data, target_format, **write_options)
    return Converted(data.atoms, _names(data))


def _is_streamed(source, source_format: str | None, target_format: str, options: Mapping) -> bool:
    from .streaming import TARGETS, worth_streaming

    if target_format not in TARGETS or not options.keys() <= {"layout"}:
        return False
    if source_format is None:
        first = source if isinstance(source, (str, os.PathLike)) else next(iter(source), None)
        source_format = None if first is None else guess_format(first)
    return source_format == "abacus" and worth_streaming(source)


def check_conversion(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    target: str | os.PathLike,
    source_format: str | None = None,
    target_format: str | None = None,
    *,
    only: Collection[str] | None = None,
    spin: str | None = None,
    read_options: Mapping | None = None,
    write_options: Mapping | None = None,
    nkpts: int = 4,
) -> dict[str, BandError]:
    """Try a conversion: write, read back, compare the eigenvalues, and leave nothing behind.

    Parameters
    ----------
    target
        Where the result would go; it is written beside it and removed.
    nkpts
        Random k-points (seeded) at which eigenvalues are compared.

    Returns
    -------
    dict
        For ``"h0"`` and ``"hamiltonian"``, as far as both sides have them.

    Raises
    ------
    ValueError
        As :func:`convert`; or if the result holds no Hamiltonian, or another number of bands.
    """
    if target_format is None:
        target_format = format_of_name(target)
    writable(target_format)
    data = selected(read(source, source_format, **(read_options or {})), only, spin)
    parent = Path(target).absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{Path(target).name}.") as folder:
        trial = Path(folder) / Path(target).name
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            write(trial, data, target_format, **(write_options or {}))
            found = read(trial, target_format)
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        # the user knows the target, not where it was tried out
        warnings.warn(message.replace(str(trial), str(target)), stacklevel=2)
    kpts = np.random.default_rng(0).uniform(-0.5, 0.5, (nkpts, 3))
    before = {name: getattr(data, name) for name in ("h0", "hamiltonian")}
    after = {name: getattr(found, name) for name in ("h0", "hamiltonian")}
    if before["hamiltonian"] is None and after["h0"] is None:
        # a format without a place for H(0) has it where others have H
        after = {"h0": after["hamiltonian"], "hamiltonian": None}
    errors = {}
    for name in before:
        if before[name] is None or after[name] is None:
            continue
        expected = _spectrum(before[name], data, kpts)
        result = _spectrum(after[name], found, kpts)
        if result.shape != expected.shape:
            raise ValueError(
                f"{target}: {expected.shape[1]} spin bands were written as {target_format}, and "
                f"{result.shape[1]} read back"
            )
        change = np.abs(result - expected)
        occupied = None
        if data.nelectrons is not None:
            occupied = float(np.nanmax(change[:, : int(np.ceil(data.nelectrons))], initial=0))
        errors[name] = BandError(float(np.nanmax(change)), occupied)
    if not errors:
        raise ValueError(f"{source}: there is no Hamiltonian whose eigenvalues could be compared")
    return errors


def selected(data: LCAOData, only: Collection[str] | None, spin: str | None) -> LCAOData:
    """The part of the data that is asked for; see :func:`convert`.

    Raises
    ------
    ValueError
        For unknown words, an operator that the data do not hold, or a spin that they cannot have.
    """
    if only is not None:
        for name in only:
            if name not in OPERATORS:
                raise ValueError(f"unknown operator {name!r}; known: {', '.join(OPERATORS)}")
            if getattr(data, name) is None:
                raise ValueError(f"{name!r} is asked for, but the source holds {_names(data)}")
        left_out = [name for name in OPERATORS[1:] if name not in only]
        data = replace(data, **dict.fromkeys(left_out))
    if spin is None:
        return data
    if spin not in SPINS:
        raise ValueError(f"unknown spin {spin!r}; known: {', '.join(SPINS)}")
    changed = {
        name: _with_spin(getattr(data, name), spin)
        for name in ("h0", "hamiltonian")
        if getattr(data, name) is not None
    }
    return replace(data, **changed)


def _with_spin(matrix: LCAOMatrix, spin: str) -> LCAOMatrix:
    if spin not in ("up", "down"):
        return matrix.with_spin(spin)
    if matrix.spin != "collinear":
        raise ValueError(f"spin {spin!r} is asked for, but the Hamiltonian is {matrix.spin}")
    return replace(matrix, spin="unpolarised", data=matrix.data[("up", "down").index(spin)])


def _names(data: LCAOData) -> tuple[str, ...]:
    return tuple(name for name in OPERATORS if getattr(data, name) is not None)


def _spectrum(matrix: LCAOMatrix, data: LCAOData, kpts: ndarray) -> ndarray:
    """All eigenvalues of both spins, sorted, so that kinds of spin can be compared."""
    eps = bands.eigenvalues(matrix, data.overlap, kpts)
    if matrix.spin == "unpolarised":
        eps = np.concatenate([eps, eps])
    return np.sort(np.concatenate(list(eps), axis=1), axis=1)


__all__ = [
    "OPERATORS",
    "SPINS",
    "BandError",
    "Converted",
    "check_conversion",
    "convert",
    "selected",
]
