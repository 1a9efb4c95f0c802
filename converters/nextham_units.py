"""What NextHAM's programs multiplied Rydberg by, and how to tell.

One of their programs makes eV of Rydberg by 13.6056980659, the others by 13.6, which moves every
element by 4.2e-4 of itself: 0.02 eV of an on-site element of 50 eV. Nothing in a file states the
constant, but some things tell it:

- the layout of a training sample tells which program made it;
- H(0) of the same structure from another source, compared element by element;
- what the correction leaves alone: the elements between the spins and the imaginary parts, which
  are spin-orbit coupling, and all elements of atoms more than 6 Angstrom apart. There H and H(0)
  are equal, and a common factor of all of them can only be one of constants.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy import ndarray

from .nextham_sample import PRECISE, ROUNDED, Sample

_TOLERANCE = 2e-5  # of a ratio; the two constants differ by 4.2e-4
_FAR = 6.0  # Angstrom
_ENOUGH = 500  # edges that are looked at


def constant_of_sample(
    sample: Sample, given: float | None, h0: ndarray | None
) -> tuple[float, float]:
    """eV per Rydberg of H(0) and of the Hamiltonian in a sample.

    Parameters
    ----------
    given
        What the user says; nothing is asked then.
    h0
        H(0) of the same structure in Rydberg, as blocks on the edges of the sample, if there is
        one.

    Raises
    ------
    ValueError
        If the H(0) in the sample is not that of ``h0``.

    Warns
    -----
    UserWarning
        Unless the constant is the precise one and the file tells so.
    """
    where = sample.where
    if given is not None:
        return given, given
    if sample.kind == "intermediate":
        return 1.0, 1.0
    if h0 is not None:
        constant = _compared(sample, h0)
        if constant is not None:
            if constant == ROUNDED:
                _warn(where, ROUNDED, "as H(0) of the reference tells")
            return constant, constant
    if sample.kind == "training":
        mixed = _mixed(sample)
        if mixed is not None:
            warnings.warn(
                f"{where}: H(0) is Rydberg times {mixed[0]:g}, but H is Rydberg times "
                f"{mixed[1]:g}, as the elements tell that a correction does not change; both "
                "were brought to eV, each by its own constant",
                stacklevel=4,
            )
            return mixed
    if sample.rydberg is None:
        warnings.warn(
            f"{where}: nothing tells whether its energies are Rydberg times {PRECISE:g} or times "
            f"{ROUNDED:g}; the first was taken. If it is the other, give rydberg={ROUNDED:g}, or "
            "reference=, a folder with H(0) of this structure",
            stacklevel=4,
        )
        return PRECISE, PRECISE
    if sample.rydberg == ROUNDED:
        told = {
            "training": "as the layout of the sample tells",
            "inference": "as all released programs make inference samples",
            "prediction": "as all released programs make predictions",
        }[sample.kind]
        _warn(where, ROUNDED, told)
    return sample.rydberg, sample.rydberg


def _warn(where: str, constant: float, told: str) -> None:
    warnings.warn(
        f"{where}: its energies are Rydberg times {constant:g}, {told}; they were multiplied by "
        f"{PRECISE / constant:.7f} to be eV",
        stacklevel=5,
    )


def _compared(sample: Sample, h0: ndarray) -> float | None:
    """The constant by comparison with H(0); None if there is nothing to compare."""
    name = "hamiltonian" if sample.kind == "prediction" else "h0"
    parts = ((False, _closest(sample)),) if name == "h0" else _unchanged_parts(sample)
    for part in parts:
        ours, theirs = _values(h0, *part), _values(sample.blocks[name], *part)
        ratio, rest = _ratio(ours, theirs)
        if ratio is None:
            continue
        for constant in (PRECISE, ROUNDED):
            if abs(ratio / constant - 1) < _TOLERANCE and rest < 1e-3 * np.linalg.norm(theirs):
                return constant
        if name == "h0":
            raise ValueError(
                f"{sample.where}: its H(0) is {ratio:.6f} times that of the reference in Rydberg, "
                f"and differs by {rest / np.linalg.norm(theirs):.1e} of itself beside that; "
                f"expected {PRECISE:g} or {ROUNDED:g}. Is the reference of the same structure, "
                "with the same orbitals?"
            )
    return None


def _mixed(sample: Sample) -> tuple[float, float] | None:
    """The constants of H(0) and H, if what no correction changes shows that they differ."""
    for part in _unchanged_parts(sample):
        h0, change = (_values(sample.blocks[name], *part) for name in ("h0", "change"))
        slope, rest = _ratio(h0, change)
        if slope is None or rest > 0.05 * np.linalg.norm(change):
            continue
        for first, second in ((ROUNDED, PRECISE), (PRECISE, ROUNDED)):
            if abs(1 + slope - second / first) < _TOLERANCE:
                return first, second
    return None


def _unchanged_parts(sample: Sample) -> tuple[tuple[bool, ndarray], ...]:
    """Arguments for :func:`_values`: spin-orbit coupling of close pairs, then all of far pairs."""
    length = np.linalg.norm(sample.vectors, axis=1)
    far = np.flatnonzero(length >= _FAR)
    return (True, _closest(sample)), (False, far[np.argsort(length[far])[:_ENOUGH]])


def _closest(sample: Sample) -> ndarray:
    return np.argsort(np.linalg.norm(sample.vectors, axis=1), kind="stable")[:_ENOUGH]


def _values(blocks: ndarray, spin_orbit: bool, edges: ndarray) -> ndarray:
    """Elements of some blocks: all of them, or those that spin-orbit coupling alone makes."""
    some = blocks[np.sort(edges)].astype(complex)
    if not spin_orbit:
        return some.ravel()
    n = blocks.shape[1] // 2
    return np.concatenate([some[:, :n, n:].ravel(), some[:, :n, :n].imag.ravel()])


def _ratio(a: ndarray, b: ndarray) -> tuple[float | None, float]:
    """c of the best ``b = c a``, and the norm of ``b - c a``; None where a is nearly zero."""
    total = float(np.vdot(a, a).real)
    if total < 1e-6:
        return None, 0.0
    ratio = float(np.vdot(a, b).real) / total
    return ratio, float(np.linalg.norm(b - ratio * a))
