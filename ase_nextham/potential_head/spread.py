"""How far the members of an ensemble are apart about a structure, and what that says of the error.

Members learned the same in different ways; where training data decide what is right, they agree.
How large errors were where they were so far apart is known from structures that they did not learn
from (:mod:`ase_nextham.training.density_calibration`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ase_nextham.comparison import WINDOW, band_mae, gauge_mae, reference
from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix

DOUBTFUL = 0.3
"""A prediction that is wrong by more of the correction than this is hardly one."""

_ROUNDING = 1e-6  # of the correction


@dataclass(frozen=True)
class Spread:
    """How much the members of an ensemble disagree about one structure, and what that means.

    Errors and spreads are counted alike, see :mod:`ase_nextham.comparison`.

    Parameters
    ----------
    dh
        Mean over members of the gauge MAE of each member's H against that of all together, in eV.
        (Where members leave out compositions, a root mean square is that of the one that left out
        the most similar crystal, and goes less with the error.)
    bands
        The same of the energies of the bands, in eV.
    correction
        Gauge MAE of H(0) against the predicted H: how much is predicted; in eV.
    expected_dh, expected_bands
        The errors that went with such a spread on structures that the model was not trained on,
        or None if that is not known; in eV.
    """

    dh: float
    bands: float
    correction: float
    expected_dh: float | None = None
    expected_bands: float | None = None

    @property
    def silent(self) -> bool:
        """Whether the members differ by no more than rounding, as a single one does of itself."""
        return self.dh <= _ROUNDING * self.correction

    @property
    def doubtful(self) -> bool:
        """Whether the error expected of H, or else the spread, is above :data:`DOUBTFUL` of dH."""
        error = self.dh if self.expected_dh is None else self.expected_dh
        return error > DOUBTFUL * self.correction

    def in_words(self) -> str:
        """A sentence for people; one more if the prediction is doubtful."""
        if self.silent:
            return (
                "the networks of the model do not differ, so they tell nothing about the error; "
                "train several members to know more"
            )
        if self.expected_dh is None or self.expected_bands is None:
            error = self.dh
            text = (
                f"the networks of the model disagree by {_mev(self.dh)} about elements of H and "
                f"by {_mev(self.bands)} about bands; it was not calibrated, so the error is not "
                "known"
            )
        else:
            error = self.expected_dh
            text = (
                f"expected error: {_mev(self.expected_dh)} of elements of H, "
                f"{_mev(self.expected_bands)} of bands up to {WINDOW:g} eV above the Fermi level, "
                f"on average (the networks of the model disagree by {_mev(self.dh)} and "
                f"{_mev(self.bands)})"
            )
        if self.doubtful:
            share = 100 * error / self.correction if self.correction else np.inf
            text += (
                f". That is {share:.0f} % of the correction to H(0) itself: the model hardly knows "
                "such a crystal"
            )
        return text


def disagreement(data: LCAOData, members: Iterable[LCAOMatrix]) -> tuple[float, float]:
    """How far Hamiltonians are from that of a structure, in the mean over them.

    Parameters
    ----------
    data
        With ``hamiltonian``, the prediction of all members together.
    members
        Hamiltonians of each member in eV.

    Returns
    -------
    (float, float)
        Of elements and of bands, in eV.
    """
    # the Fermi level of the source, if it has one, is not on the scale of the prediction
    bands = reference(replace(data, fermi_level=None))
    found = [
        (gauge_mae(one, data.hamiltonian, data.overlap), band_mae(one, data.overlap, bands))
        for one in members
    ]
    of_elements, of_bands = np.mean(found, axis=0)
    return float(of_elements), float(of_bands)


def _mev(energy: float) -> str:
    """Two digits, without a power of ten."""
    return f"{float(f'{1e3 * energy:.2g}'):.15g} meV"


__all__ = ["DOUBTFUL", "Spread", "disagreement"]
