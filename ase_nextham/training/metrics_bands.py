"""How far the bands of a Hamiltonian are from the self-consistent ones.

Matrix elements that are right to a millielectronvolt can give bands that are wrong by electronvolts
where orbitals are nearly linearly dependent, so bands have errors of their own. Which bands are
compared, and on which scale of energy, is said in :mod:`ase_nextham.comparison`.

A "ghost state" is a band energy that is wrong by more than :data:`GHOST` at a k-point (NextHAM,
section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.dft.kpoints import BandPath
from numpy import ndarray

from ase_nextham import bands
from ase_nextham.comparison import VALENCE, WINDOW, Reference, gap_of, reference, valence_shift
from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.training.dataset_statistics import Error
from ase_nextham.training.metrics import merged, merged_by_label

ENERGIES = {
    f"below E_F - {VALENCE:g} eV": (-np.inf, -VALENCE),
    f"E_F - {VALENCE:g} eV to E_F": (-VALENCE, 0.0),
    f"E_F to E_F + {WINDOW:g} eV": (0.0, WINDOW),
}
"""Ranges of energy by which errors are told apart, in eV from the Fermi level."""

GHOST = 0.5
"""eV by which a band energy must be wrong to be called a ghost state."""

_LATTICE = 0.1  # how far, in the words of ASE, a deformed cell may be from its Bravais lattice


@dataclass(frozen=True, eq=False)
class BandErrors:
    """|E - E_sc| of the bands of one structure, or of several.

    Parameters
    ----------
    total
        Of the bands below the self-consistent Fermi level + :data:`WINDOW`; each counts once for
        each point of the full mesh, or of the path.
    ghosts
        How many band energies of the same count are wrong by more than :data:`GHOST`. Those that
        are in the window only in one of the two Hamiltonians are looked at, too: a state in the
        gap is a ghost although the one that it replaces is far above.
    by_energy
        Errors in the ranges of :data:`ENERGIES`, by the self-consistent energy.
    ghosts_by_energy
        Ghosts in the same ranges, by the lower one of the two energies.
    """

    total: Error
    ghosts: int
    by_energy: Mapping[str, Error]
    ghosts_by_energy: Mapping[str, int]

    @property
    def near_fermi_level(self) -> Error:
        """Errors of the bands between the Fermi level - :data:`VALENCE` and + :data:`WINDOW`."""
        _, *others = ENERGIES
        return merged(self.by_energy[name] for name in others)


@dataclass(frozen=True)
class WorstBand:
    """The band energy of one structure that is most wrong, of those that may be ghost states.

    Parameters
    ----------
    band
        Its number, from 1 for the lowest.
    spin
        ``"up"`` or ``"down"``; None where bands have no such spin.
    kpt
        In units of the reciprocal vectors; one of several that are equivalent.
    energy
        Self-consistent, from the Fermi level, in eV.
    error
        In eV, positive where the energy is too high.
    ghosts
        At how many points of the full mesh this band is a ghost state.
    """

    band: int
    spin: str | None
    kpt: tuple[float, float, float]
    energy: float
    error: float
    ghosts: int

    def __str__(self):
        band = f"band {self.band}" + (f" of spin {self.spin}" if self.spin else "")
        side = "below" if self.energy < 0 else "above"
        where = ", ".join(f"{round(x, 6) + 0.0:.3g}" for x in self.kpt)  # no -0
        wrong = "high" if self.error > 0 else "low"
        ghosts = "nowhere a ghost state"
        if self.ghosts:
            points = "1 point" if self.ghosts == 1 else f"{self.ghosts} points"
            ghosts = f"a ghost state at {points} of the mesh"
        return (
            f"{band}, {abs(self.energy):.2f} eV {side} E_F, is {abs(self.error):.3g} eV too "
            f"{wrong} at k = ({where}); {ghosts}"
        )


@dataclass(frozen=True, eq=False)
class MeshErrors(BandErrors):
    """Errors of the bands on a mesh.

    Parameters
    ----------
    shift
        Added to the energies in eV; smallest and largest of the structures.
    gap_error
        Of the gap in eV: of one structure with its sign, of several the mean of its modulus.
        None where it is not known.
    at_kpts
        Mean and largest error at each inequivalent k-point in eV, shape (2, nkpts), of the bands
        that are compared and are not below the Fermi level - :data:`VALENCE`: semicore states are
        wrong for other reasons than what S does. Of several structures one after another.
    by_condition
        Errors of the same bands by the condition number of S(k), in decades: ``"1e2 - 1e3"``.
    worst
        The band energy that is most wrong, of those in :attr:`total` and those that are
        looked at for ghost states; None where there is nothing to compare.
    """

    shift: tuple[float, float]
    gap_error: float | None
    at_kpts: ndarray
    by_condition: Mapping[str, Error]
    worst: WorstBand | None


def mesh_errors(matrix: LCAOMatrix, data: LCAOData, reference: Reference) -> MeshErrors:
    """Errors of the bands of a Hamiltonian on the mesh of the reference.

    Parameters
    ----------
    matrix
        In eV.
    data
        With the overlap and, where known, the number of electrons.
    reference
        Of the same structure.
    """
    eps = bands.eigenvalues(matrix, data.overlap, reference.kpts)
    shift = valence_shift(eps, reference)
    errors = band_errors(eps + shift, reference.eps, reference.fermi_level, reference.multiplicity)
    difference = np.abs(eps + shift - reference.eps)
    distance = reference.eps - reference.fermi_level
    inside = (distance >= -VALENCE) & (distance < WINDOW) & ~np.isnan(difference)
    number = np.maximum(inside.sum(axis=(0, 2)), 1)
    mean = np.where(inside, difference, 0).sum(axis=(0, 2)) / number
    gap_error = None
    if reference.gap is not None:
        gap_error = gap_of(eps, data.electron_count(), matrix.spin) - reference.gap
    return MeshErrors(
        **vars(errors),
        shift=(shift, shift),
        gap_error=gap_error,
        at_kpts=np.stack([mean, np.where(inside, difference, 0).max(axis=(0, 2))]),
        by_condition=_by_condition(difference, inside, reference),
        worst=_worst(eps + shift, reference),
    )


def band_errors(
    eps: ndarray, reference: ndarray, fermi_level: float, multiplicity: ndarray
) -> BandErrors:
    """Errors of band energies on the same scale.

    Parameters
    ----------
    eps, reference
        In eV, ascending, shape (nspins, nkpts, nbands); nan, where S is nearly singular, is not
        compared.
    fermi_level
        Of the reference, in eV.
    multiplicity
        How often each k-point counts, integer, shape (nkpts,).
    """
    difference = np.abs(eps - reference)
    times = np.broadcast_to(multiplicity[:, None], difference.shape)
    compared = reference - fermi_level
    lower = np.fmin(reference, eps) - fermi_level
    by_energy, ghosts = {}, {}
    for name, (bottom, top) in ENERGIES.items():
        inside = (compared >= bottom) & (compared < top) & ~np.isnan(difference)
        by_energy[name] = _error(difference[inside], times[inside])
        inside = (lower >= bottom) & (lower < top) & (difference > GHOST)
        ghosts[name] = int(times[inside].sum())
    total = merged(by_energy.values())
    return BandErrors(total, sum(ghosts.values()), by_energy, ghosts)


def band_path(atoms: Atoms, npoints: int) -> BandPath | None:
    """The path of a structure along which bands are compared.

    It is ASE's path of the Bravais lattice that the cell is close to, so that a strained crystal
    has the special points of the crystal without strain.

    Parameters
    ----------
    npoints
        Number of k-points.

    Returns
    -------
    BandPath or None
        None where nothing is periodic.
    """
    if not atoms.pbc.any():
        return None
    path = atoms.cell.bandpath(npoints=npoints, pbc=atoms.pbc, eps=_LATTICE)
    return BandPath(
        cell=atoms.cell.uncomplete(atoms.pbc),
        kpts=path.kpts,
        special_points=path.special_points,
        path=path.path,
    )


def merged_band_errors(several: Iterable[BandErrors]) -> BandErrors:
    """The errors of several structures together: each band energy counts the same."""
    several = list(several)
    by_energy = merged_by_label(errors.by_energy for errors in several)
    return BandErrors(
        total=merged(errors.total for errors in several),
        ghosts=sum(errors.ghosts for errors in several),
        by_energy={name: by_energy[name] for name in ENERGIES},
        ghosts_by_energy={
            name: sum(errors.ghosts_by_energy[name] for errors in several) for name in ENERGIES
        },
    )


def merged_mesh_errors(several: Iterable[MeshErrors]) -> MeshErrors:
    """The errors of several structures together: each band energy counts the same."""
    several = list(several)
    both = merged_band_errors(several)
    gaps = [abs(errors.gap_error) for errors in several if errors.gap_error is not None]
    return MeshErrors(
        **vars(both),
        shift=(min(e.shift[0] for e in several), max(e.shift[1] for e in several)),
        gap_error=float(np.mean(gaps)) if gaps else None,
        at_kpts=np.concatenate([errors.at_kpts for errors in several], axis=1),
        by_condition=merged_by_label(
            (errors.by_condition for errors in several), order=lambda name: float(name.split()[0])
        ),
        worst=max(
            (errors.worst for errors in several if errors.worst is not None),
            key=lambda worst: abs(worst.error),
            default=None,
        ),
    )


def _worst(eps: ndarray, reference: Reference) -> WorstBand | None:
    error = eps - reference.eps
    lower = np.fmin(reference.eps, eps) - reference.fermi_level
    size = np.where((lower < WINDOW) & ~np.isnan(error), np.abs(error), -1)
    if size.max(initial=-1) < 0:
        return None
    spin, k, band = (int(n) for n in np.unravel_index(size.argmax(), size.shape))
    return WorstBand(
        band=band + 1,
        spin=None if len(eps) == 1 else ("up", "down")[spin],
        kpt=tuple(float(x) for x in reference.kpts[k]),
        energy=float(reference.eps[spin, k, band] - reference.fermi_level),
        error=float(error[spin, k, band]),
        ghosts=int(reference.multiplicity[size[spin, :, band] > GHOST].sum()),
    )


def _error(values: ndarray, times: ndarray) -> Error:
    count = int(times.sum())
    return Error(count, float(values @ times / max(count, 1)), float(values.max(initial=0)))


def _by_condition(difference: ndarray, inside: ndarray, reference: Reference) -> dict[str, Error]:
    decade = np.floor(np.log10(reference.condition)).astype(int)
    times = np.broadcast_to(reference.multiplicity[:, None], difference.shape)
    errors = {}
    for power in np.unique(decade):
        some = inside & (decade == power)[:, None]
        errors[f"1e{power} - 1e{power + 1}"] = _error(difference[some], times[some])
    return errors


__all__ = [
    "ENERGIES",
    "GHOST",
    "VALENCE",
    "WINDOW",
    "BandErrors",
    "MeshErrors",
    "Reference",
    "WorstBand",
    "band_errors",
    "band_path",
    "merged_band_errors",
    "merged_mesh_errors",
    "mesh_errors",
    "reference",
    "valence_shift",
]
