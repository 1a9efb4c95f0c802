"""Two-centre integrals: overlap, kinetic energy and position from one-dimensional tables.

``<f_a(r) Y_l1m1(r) | O | f_b(r - d) Y_l2m2(r - d)>`` is a sum over l of a function of |d|, tabled
once for two species, times harmonics of d (O the identity or -nabla^2, in Ry). The tables are
those of ABACUS (``TwoCenterTable``): S_l(d) / d^l on the universal mesh, cubic splines with
vanishing slopes at both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray
from scipy.interpolate import CubicSpline

from ase_nextham.h0.native.harmonics import gaunt, solid_harmonics
from ase_nextham.h0.native.radial import UniversalMesh

OVERLAP, KINETIC = 2, 4
"""Powers of k in the integrand: that of the volume element, and with that of -nabla^2."""


@dataclass(frozen=True, eq=False)
class RadialSet:
    """Functions of one atom, radial parts times all harmonics of each.

    Parameters
    ----------
    l
        Angular momentum of each function, ascending, shape (nfunctions,).
    values
        Bessel transforms on ``UniversalMesh.k``, shape (nfunctions, npoints).
    """

    l: tuple[int, ...]
    values: ndarray

    def __post_init__(self):
        assert list(self.l) == sorted(self.l)

    @property
    def norbitals(self) -> int:
        """Number of functions with their harmonics."""
        return sum(2 * l + 1 for l in self.l)

    @cached_property
    def groups(self) -> list[tuple[int, slice, slice]]:
        """(l, functions, orbitals) for each l there is."""
        groups, function, orbital = [], 0, 0
        for l in sorted(set(self.l)):
            n = self.l.count(l)
            groups.append(
                (l, slice(function, function + n), slice(orbital, orbital + n * (2 * l + 1)))
            )
            function, orbital = groups[-1][1].stop, groups[-1][2].stop
        return groups


def radial_set(mesh: UniversalMesh, l: Sequence[int], r: ndarray, values: ndarray) -> RadialSet:
    """Functions f(r) given on another mesh, shape (nfunctions, len(r)), zero beyond it."""
    return _transformed(mesh, l, mesh.resampled(r, values) * mesh.r**2)


def projector_set(
    mesh: UniversalMesh, l: Sequence[int], r: ndarray, r_beta: ndarray, npoints: Sequence[int]
) -> RadialSet:
    """Projectors r * beta(r), each cut after its own number of points."""
    resampled = [mesh.resampled(r[:n], f[:n]) for n, f in zip(npoints, r_beta, strict=True)]
    return _transformed(mesh, l, np.reshape(resampled, (len(l), mesh.npoints)) * mesh.r)


def moment_set(
    mesh: UniversalMesh, l: Sequence[int], r: ndarray, values: ndarray
) -> tuple[RadialSet, ndarray]:
    """Functions whose combinations are x, y and z times given ones.

    Returns
    -------
    (RadialSet, ndarray)
        The functions, and the coefficients (3, norbitals of the arguments, norbitals of the set).
    """
    r3_values = mesh.resampled(r, values) * mesh.r**3
    shells = [(below, n) for n, own in enumerate(l) for below in (own - 1, own + 1) if below >= 0]
    shells.sort()
    moment_l = [new for new, _ in shells]
    result = _transformed(mesh, moment_l, r3_values[[n for _, n in shells]])
    first = np.concatenate([[0], np.cumsum(2 * np.array(l) + 1)])
    coefficients = np.zeros((3, first[-1], result.norbitals))
    column = 0
    for new, n in shells:
        # r_x = -sqrt(4 pi / 3) r Y_1,1 in ABACUS's sign; harmonics of l = 1 are z, -x, -y
        z, x, y = np.moveaxis(gaunt(l[n], new, 1), -1, 0) * np.sqrt(4 * np.pi / 3)
        rows, columns = slice(first[n], first[n + 1]), slice(column, column + 2 * new + 1)
        coefficients[:, rows, columns] = [-x, -y, z]
        column = columns.stop
    return result, coefficients


def _transformed(mesh: UniversalMesh, l: Sequence[int], r2_values: ndarray) -> RadialSet:
    values = np.empty(r2_values.shape)
    for own in set(l):
        mine = np.equal(l, own)
        values[mine] = mesh.to_k(own, r2_values[mine])
    return RadialSet(tuple(int(own) for own in l), values)


class TwoCentreTable:
    """Integrals between the functions of two species, for any vector between them.

    Parameters
    ----------
    mesh
        On which both sets were transformed.
    bra, ket
        The functions of either species.
    power
        :data:`OVERLAP` or :data:`KINETIC`.
    """

    def __init__(self, mesh: UniversalMesh, bra: RadialSet, ket: RadialSet, power: int = OVERLAP):
        self.bra, self.ket, self.spacing = bra, ket, mesh.r[1]
        self._groups, columns = [], []
        for l1, functions1, orbitals1 in bra.groups:
            for l2, functions2, orbitals2 in ket.groups:
                products = bra.values[functions1, None] * ket.values[None, functions2]
                products = (products * mesh.k**power).reshape(-1, mesh.npoints)
                start, angular = sum(len(column) for _, column in columns), []
                for l in range(abs(l1 - l2), l1 + l2 + 1, 2):
                    sign = 1 - (l1 - l2 - l) % 4  # i^(l1 - l2 - l), where l + l1 + l2 is even
                    angular.append((l, sign * gaunt(l1, l2, l).reshape(-1, 2 * l + 1).T))
                    columns.append((l, products))
                shape = (functions1.stop - functions1.start, -1, 2 * l1 + 1, 2 * l2 + 1)
                self._groups.append((start, len(products), shape, angular, orbitals1, orbitals2))
        self._lmax = max((l for l, _ in columns), default=0)
        self._values, self._slopes = _splines(mesh, columns)

    @property
    def width(self) -> int:
        """Radial functions that are evaluated for each vector; tells the memory needed."""
        return self._values.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return self._values.nbytes + self._slopes.nbytes

    def blocks(self, vectors: ndarray) -> ndarray:
        """Integrals with the ket at ``vectors`` from the bra.

        Parameters
        ----------
        vectors
            In Bohr, shape (n, 3), none longer than the mesh.

        Returns
        -------
        ndarray
            Shape (n, norbitals of the bra, norbitals of the ket).
        """
        n = len(vectors)
        result = np.empty((n, self.bra.norbitals, self.ket.norbitals))
        radial = self._radial(np.linalg.norm(vectors, axis=1))
        harmonics = solid_harmonics(self._lmax, vectors)
        for start, size, (n1, _, m1, m2), angular, rows, columns in self._groups:
            block = np.zeros((n, size, m1 * m2))
            for number, (l, factors) in enumerate(angular):
                values = radial[:, start + number * size : start + (number + 1) * size]
                turned = harmonics[:, l * l : (l + 1) ** 2] @ factors
                block += values[:, :, None] * turned[:, None, :]
            block = block.reshape(n, n1, size // n1, m1, m2).transpose(0, 1, 3, 2, 4)
            result[:, rows, columns] = block.reshape(n, n1 * m1, -1)
        return result

    def _radial(self, distances: ndarray) -> ndarray:
        """S_l(d) / d^l of all functions, shape (n, width)."""
        place = distances / self.spacing
        interval = np.minimum(place.astype(int), len(self._values) - 2)
        x = (place - interval)[:, None]
        weights = (  # of Hermite's cubic polynomials
            (1 + 2 * x) * (1 - x) ** 2,
            x**2 * (3 - 2 * x),
            self.spacing * x * (1 - x) ** 2,
            self.spacing * x**2 * (x - 1),
        )
        result = np.zeros((len(distances), self.width))
        ends = (self._values, 0), (self._values, 1), (self._slopes, 0), (self._slopes, 1)
        for weight, (table, end) in zip(weights, ends, strict=True):
            result += weight * np.take(table, interval + end, axis=0)
        return result


def _splines(
    mesh: UniversalMesh, columns: Sequence[tuple[int, ndarray]]
) -> tuple[ndarray, ndarray]:
    """S_l(d) / d^l on the mesh and the slopes of its splines, shape (npoints, functions) each."""
    ls = np.array([l for l, products in columns for _ in products], int)
    products = np.concatenate([np.zeros((0, mesh.npoints)), *(own for _, own in columns)])
    tables = np.empty((mesh.npoints, len(ls)))
    for l in np.unique(ls):
        mine = ls == l
        values = mesh.to_r(l, products[mine])
        tables[1:, mine] = (values[:, 1:] / mesh.r[1:] ** l).T
        tables[0, mine] = mesh.limit(l, products[mine]) if l else values[:, 0]
    slopes = np.zeros(tables.shape)
    if not len(ls):
        return tables, slopes
    flat = (1, np.zeros(len(ls)))
    slopes[:-1] = CubicSpline(mesh.r, tables, bc_type=(flat, flat)).c[2]
    return tables, slopes
