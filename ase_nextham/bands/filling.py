"""How many electrons the bands hold: Fermi level, occupations and gap.

Everything here works on energies alone. Bands that are missing (nan, see
:func:`ase_nextham.bands.eigenvalues`) count as empty bands far above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.special import erfc, expit

SMEARINGS = ("fermi-dirac", "gaussian")

SMALLEST_GAP = 1e-6
"""In eV: bands closer than this touch, as eigenvalues are not more accurate than this."""

_COUNT = 1e-8  # electrons: rounding of weights and electron numbers
_REACH = 60.0  # widths: a state farther away than this weighs less by exp(-60)


def spin_degeneracy(spin: str) -> int:
    """Electrons that one band holds at one k-point: 2 if ``"unpolarised"``, else 1."""
    return 2 if spin == "unpolarised" else 1


def occupations(
    eps: ndarray, fermi_level: float, *, width: float = 0.05, smearing: str = "fermi-dirac"
) -> ndarray:
    """Occupations between 0 and 1 of bands with energies ``eps``, in the shape of ``eps``.

    Parameters
    ----------
    eps, fermi_level
        In eV.
    width
        In eV; 0 is a step, with 1/2 at the Fermi level.
    smearing
        ``"fermi-dirac"``, 1 / (exp(x) + 1), or ``"gaussian"``, erfc(x) / 2, with
        x = (eps - fermi_level) / width.
    """
    _check_smearing(width, smearing)
    distance = fermi_level - np.asarray(eps, float)
    return _filled(_scaled(np.where(np.isnan(distance), -np.inf, distance), width), smearing)


def _check_smearing(width: float, smearing: str) -> None:
    if not width >= 0:
        raise ValueError(f"the width must not be negative, and is {width} eV")
    if smearing not in SMEARINGS:
        raise ValueError(f"unknown smearing {smearing!r}; known: {', '.join(SMEARINGS)}")


def _scaled(distance: ndarray, width: float) -> ndarray:
    if width == 0:
        return np.where(distance == 0, 0.0, np.copysign(np.inf, distance))
    return distance / width


def _filled(x: ndarray, smearing: str) -> ndarray:
    """Occupation at ``x`` widths below the Fermi level; accurate also where it is tiny."""
    return expit(x) if smearing == "fermi-dirac" else 0.5 * erfc(-x)


def fermi_level(
    eps: ndarray,
    weights: ndarray,
    nelectrons: float,
    *,
    width: float = 0.05,
    smearing: str = "fermi-dirac",
) -> float:
    """Energy at which the bands hold ``nelectrons``.

    Parameters
    ----------
    eps
        Eigenvalues in eV, shape (nkpts, nbands) or (nspins, nkpts, nbands).
    weights
        Electrons per band at each k-point, shape (nkpts,):
        ``mesh.weights * spin_degeneracy(hamiltonian.spin)``. They sum to 2 for unpolarised bands
        and to 1 for collinear (two spins) and spinor bands.
    nelectrons
        Electrons per cell.
    width
        Of the smearing in eV.
    smearing
        ``"fermi-dirac"`` or ``"gaussian"``, see :func:`occupations`.

    Returns
    -------
    float
        In eV, on the scale of ``eps``. In a gap: its middle, for width -> 0. If all bands are
        full: their top.

    Raises
    ------
    ValueError
        If the bands cannot hold that many electrons.

    Notes
    -----
    Bisection on ``N(mu) = sum_kn w_k f((eps_kn - mu) / width)``, which is monotonic.
    N. D. Mermin, Phys. Rev. 137, A1441 (1965). What is compared with zero are the electrons above
    less the holes below the level of zero width, so that E_F is well defined also in a gap that
    is so much wider than ``width`` that N(mu) is constant in it to machine precision. Where even
    these tails vanish, the middle of the interval is taken.
    """
    _check_smearing(width, smearing)
    eps = np.asarray(eps, float)
    weight = np.broadcast_to(np.asarray(weights, float)[:, None], eps.shape)[~np.isnan(eps)]
    eps = eps[~np.isnan(eps)]
    order = np.argsort(eps, kind="stable")
    eps, weight = eps[order], weight[order]
    capacity = weight.sum()
    if not 0 < nelectrons <= capacity + _COUNT:
        raise ValueError(
            f"the bands hold between 0 and {capacity:g} electrons per cell, not {nelectrons:g}; "
            "are the weights electrons per band (summing to 2 without spin, else to 1), and is "
            "the electron number that of the valence?"
        )
    below = np.cumsum(weight) - weight
    filled = np.clip(np.where(nelectrons - below > _COUNT, (nelectrons - below) / weight, 0), 0, 1)
    filled[(1 - filled) * weight < _COUNT] = 1
    if filled[-1] == 1:
        return float(eps[-1])
    highest = eps[np.flatnonzero(filled)[-1]]
    lowest = eps[np.flatnonzero(filled < 1)[0]]
    low, high = highest - _REACH * width, lowest + _REACH * width
    near = (eps >= low) & (eps <= high)
    eps, weight, filled = eps[near], weight[near], filled[near]

    def excess(mu: float) -> float:
        x = _scaled(mu - eps, width)
        electrons = (1 - filled) * _filled(x, smearing)
        holes = filled * _filled(-x, smearing)
        return float(weight @ (electrons - holes))

    first = _first(lambda mu: excess(mu) >= 0, low, high)
    last = _first(lambda mu: excess(mu) > 0, low, high)
    return float((first + last) / 2)


def _first(condition, low: float, high: float) -> float:
    """The smallest number at which a condition holds that holds from some number on."""
    while low < (middle := low + (high - low) / 2) < high:
        if condition(middle):
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True)
class Gap:
    """The gap between the filled and the empty bands, on the k-points that were given.

    Parameters
    ----------
    indirect, direct
        Smallest distance of an empty from a filled band at any two k-points, and at the same one
        with the same spin, in eV.
    vbm, cbm
        Highest filled and lowest empty energy in eV.
    vbm_at, cbm_at, direct_at
        Where they are: (spin, k-point) indices.
    """

    indirect: float
    direct: float
    vbm: float
    cbm: float
    vbm_at: tuple[int, int]
    cbm_at: tuple[int, int]
    direct_at: tuple[int, int]

    def __str__(self):
        if self.vbm_at[1] == self.cbm_at[1]:
            return f"{self.indirect:.4f} eV, direct"
        return f"{self.indirect:.4f} eV, indirect (direct: {self.direct:.4f} eV)"


def band_gap(eps_skn: ndarray, nelectrons: float, spin: str) -> Gap | None:
    """The gap by electron count.

    Parameters
    ----------
    eps_skn
        Eigenvalues in eV, shape (nspins, nkpts, nbands): on a mesh, or along a path
        (``band_structure(...).energies``).
    nelectrons
        Electrons per cell.
    spin
        ``hamiltonian.spin``.

    Returns
    -------
    Gap or None
        None for a metal: the bands overlap, touch to :data:`SMALLEST_GAP`, or the electrons do
        not fill a whole number of them.

    Raises
    ------
    ValueError
        If the bands cannot hold that many electrons.
    """
    eps = np.where(np.isnan(eps_skn), np.inf, eps_skn)
    nspins, _, nbands = eps.shape
    states = nelectrons / spin_degeneracy(spin)
    if not 0 < states <= nspins * nbands:
        raise ValueError(
            f"{nspins * nbands} bands ({spin}) cannot hold {nelectrons:g} electrons per cell"
        )
    count = round(states)
    if abs(states - count) > _COUNT or count == nspins * nbands:
        return None
    # if a gap goes through all k-points, filling the first one tells the bands below it
    lowest = np.argsort(eps[:, 0].ravel(), kind="stable")[:count]
    nfilled = np.bincount(lowest // nbands, minlength=nspins)
    band = np.arange(nbands)
    isfilled = band < nfilled[:, None, None]
    top = np.where(isfilled, eps, -np.inf).max(axis=2)
    bottom = np.where(isfilled, np.inf, eps).min(axis=2)
    vbm_at, cbm_at, direct_at = (
        tuple(int(i) for i in np.unravel_index(np.argmin(values), values.shape))
        for values in (-top, bottom, bottom - top)
    )
    vbm, cbm = float(top[vbm_at]), float(bottom[cbm_at])
    if cbm - vbm < SMALLEST_GAP:
        return None
    direct = float(bottom[direct_at] - top[direct_at])
    return Gap(cbm - vbm, direct, vbm, cbm, vbm_at, cbm_at, direct_at)
