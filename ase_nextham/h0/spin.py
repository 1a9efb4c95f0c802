"""How the spins of a structure are treated in H(0), and which moments its atoms have.

The same words mean the same to every backend that computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError
from numpy import ndarray

MOMENTS = ("zero", "initial", "abacus39_auto")
"""What the atomic densities are magnetised with.

``"zero"``: not at all. ``"initial"``: with the initial magnetic moments of the Atoms, numbers
(along z) or vectors. ``"abacus39_auto"``: with what ABACUS 3.8 to 3.11-beta put on **every** atom
when the input has no moments, sqrt(3) mu_B along z for nspin 4 and 1 mu_B for nspin 2.
"""

NO_MOMENT = 1e-5
"""mu_B; ABACUS takes atoms whose moments are all below this for atoms without given moments."""

WORTH_SAYING = 1e-3
"""mu_B; smaller moments are what inputs of ABACUS have so that it does not set its own."""

_ABACUS39_AUTO = {1: 0.0, 2: 1.0, 4: 3.0**0.5}


@dataclass(frozen=True, eq=False)
class Spin:
    """How spins are treated.

    Parameters
    ----------
    nspin
        1, 2 or 4 as in ABACUS: one matrix for both spins, one for each, spinors.
    spin_orbit
        Whether there is spin-orbit coupling.
    moments
        The preset that was used, one of :data:`MOMENTS`; ``"zero"`` where it gave none.
    magmoms
        Moments in mu_B, along z (natoms,) or as vectors (natoms, 3).
    """

    nspin: int
    spin_orbit: bool
    moments: str
    magmoms: ndarray

    @property
    def noncollinear(self) -> bool:
        """Whether the moments are vectors."""
        return self.magmoms.ndim == 2


def check_spin_options(nspin: int | None, spin_orbit: bool | None, moments: str) -> None:
    """Refuse options that contradict each other, before there is a structure.

    Raises
    ------
    ValueError
        Naming the option.
    """
    if nspin not in (None, 1, 2, 4):
        raise ValueError(f"nspin={nspin!r} must be 1, 2 or 4")
    if spin_orbit and nspin in (1, 2):
        raise ValueError(f"spin_orbit=True needs spinors, nspin=4, not nspin={nspin}")
    if moments not in MOMENTS:
        raise ValueError(f"unknown moments {moments!r}; known: {', '.join(MOMENTS)}")
    if moments == "zero" and nspin == 2:
        raise ValueError(
            "nspin=2 without magnetic moments is twice the H(0) of nspin=1: use nspin=1, or "
            "give the atoms initial magnetic moments and moments='initial'"
        )


def spin_treatment(
    atoms: Atoms,
    has_so: Mapping[str, bool],
    nspin: int | None,
    spin_orbit: bool | None,
    moments: str,
) -> Spin:
    """Spin treatment and moments of one structure, checked against its pseudopotentials.

    Parameters
    ----------
    has_so
        By element, whether its pseudopotential is fully relativistic.
    nspin
        None stands for 4 if all pseudopotentials are fully relativistic; else for 2 with
        ``"initial"`` moments that are there; else for 1.
    spin_orbit
        None stands for nspin 4.

    Raises
    ------
    CalculatorSetupError
        If spin-orbit coupling is wanted and a pseudopotential has none.
    ValueError
        If the moments cannot be held by nspin.
    """
    given = atoms.get_initial_magnetic_moments()
    magnetic = bool(np.abs(given).max() > NO_MOMENT)
    scalar = [element for element, relativistic in has_so.items() if not relativistic]
    if nspin is None:
        if spin_orbit or (spin_orbit is None and not scalar):
            nspin = 4
        else:
            nspin = 2 if magnetic and moments == "initial" else 1
    spin_orbit = nspin == 4 if spin_orbit is None else spin_orbit
    if spin_orbit and scalar:
        raise CalculatorSetupError(
            "spin-orbit coupling needs fully relativistic pseudopotentials (has_so in the UPF "
            f"header), which those of {', '.join(scalar)} are not; use others, or "
            "spin_orbit=False"
        )
    magmoms = np.zeros(len(atoms))
    if moments == "initial" and magnetic:
        _check_initial(nspin, given)
        magmoms = given
    elif moments == "initial" and nspin == 2:
        raise ValueError(
            "nspin=2 with moments='initial' needs atoms with initial magnetic moments, and "
            "these have none: set them, or use nspin=1"
        )
    elif np.abs(given).max() > WORTH_SAYING:
        warnings.warn(
            f"the atoms have initial magnetic moments of up to {np.abs(given).max():.3g} mu_B "
            f"that moments={moments!r} ignores; moments='initial' starts with them",
            stacklevel=3,  # the caller of the backend's compute
        )
    if moments == "abacus39_auto":
        magmoms = magmoms + _ABACUS39_AUTO[nspin]
    return Spin(nspin, spin_orbit, moments if magmoms.any() else "zero", magmoms)


def _check_initial(nspin: int, magmoms: ndarray) -> None:
    if nspin == 1:
        raise ValueError(
            "moments='initial': the atoms have initial magnetic moments, which nspin=1 cannot "
            "hold; use nspin=2 or 4"
        )
    if nspin == 2 and magmoms.ndim == 2:
        raise ValueError("initial magnetic moments that are vectors need nspin=4, not nspin=2")
