"""Numerical atomic orbitals: which shells an element has, and in what order and sign they stand.

An orbital is ``f(r) * Y_lm(r)`` with a real spherical harmonic ``Y_lm``. Codes agree on
neither the order nor the sign of the 2l+1 harmonics of a shell, so every matrix carries the
name of its convention. :data:`CONVENTIONS` is the one table of them. What the package stores
is always in ABACUS's; other conventions appear only where data enters or leaves.

The reference to which the table refers are the standard real harmonics (no Condon-Shortley
sign, ``Y_1m`` proportional to y, z, x for m = -1, 0, 1; ``m > 0`` goes with cos, ``m < 0``
with sin), as listed in every textbook and by :func:`real_harmonics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy import ndarray
from numpy.polynomial import Legendre
from numpy.polynomial.legendre import legval

MAX_L = 6
"""Largest angular momentum of the tables: l = 6 (i shells)."""


def _alternating(l: int) -> list[int]:
    return [0] + [sign * m for m in range(1, l + 1) for sign in (1, -1)]


def _openmx(l: int) -> list[int]:
    if l == 1:
        return [1, -1, 0]
    if l == 2:
        return [0, 2, -2, 1, -1]
    return _alternating(l)


CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "abacus": "m = 0, 1, -1, 2, -2, ...; sign (-1)^m",
        "deeph": "m = -l ... l; standard sign (new DeepH, dftio, DeePTB)",
        "openmx": "p: x y z; d: z2 x2-y2 xy xz yz; f: m = 0, 1, -1, ...; standard sign (old DeepH)",
        "e3nn": "the order and axes of e3nn.o3.spherical_harmonics (l = 1: x y z)",
    }
)
"""Orbital conventions by name, in words; :func:`convention_matrix` has the numbers."""


def real_harmonics(l: int, vectors: ndarray) -> ndarray:
    """Standard real spherical harmonics of degree ``l``, for m = -l ... l.

    Parameters
    ----------
    vectors
        Directions, shape (..., 3), of any length but 0.

    Returns
    -------
    ndarray
        Shape (..., 2l+1), orthonormal on the unit sphere.
    """
    vectors = np.asarray(vectors, float)
    directions = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(directions, -1, 0).copy()  # each of them contiguous
    result = np.empty((*z.shape, 2 * l + 1))
    plane = np.sqrt((2 * l + 1) / (4 * np.pi)) * np.ones(z.shape, complex)
    for m in range(l + 1):
        polar = legval(z, _derivative(l, m))
        result[..., l - m] = polar * plane.imag
        result[..., l + m] = polar * plane.real
        # to the next m: (x + iy)^m, and sqrt((l - m)! / (l + m)!) of the norm
        plane = plane * (x + 1j * y) / np.sqrt(max(l - m, 1) * (l + m + 1))
        if m == 0:
            plane *= np.sqrt(2)
    return result


@lru_cache(maxsize=256)
def _derivative(l: int, m: int) -> ndarray:
    """The m-th derivative of the Legendre polynomial P_l as a series of Legendre polynomials."""
    return Legendre.basis(l).deriv(m).coef


@lru_cache(maxsize=256)
def _directions(l: int) -> ndarray:
    # any set of directions on which the harmonics are independent will do; seeded, hence fixed
    return np.random.default_rng(l).normal(size=(4 * l + 6, 3))


def rotation_matrix(l: int, rotation: ndarray, convention: str = "abacus") -> ndarray:
    """How the harmonics of one shell mix under an orthogonal transformation.

    A block of a structure turned by ``rotation`` is ``D_i B D_j^T``, with the block ``B`` of the
    original structure and D of each atom's shells.

    Parameters
    ----------
    rotation
        Orthogonal matrix, shape (3, 3), acting on column vectors; may be improper.

    Returns
    -------
    ndarray
        Orthogonal, shape (2l+1, 2l+1): ``Y(rotation @ r) = D @ Y(r)``.
    """
    points = _directions(l)
    before = real_harmonics(l, points)
    after = real_harmonics(l, points @ np.asarray(rotation, float).T)
    standard = np.linalg.lstsq(before, after, rcond=None)[0].T
    change = convention_matrix(l, convention)
    return change @ standard @ change.T


@lru_cache(maxsize=256)
def convention_matrix(l: int, convention: str) -> ndarray:
    """Orthogonal matrix C with ``Y_convention = C @ Y_standard`` for one shell.

    Returns
    -------
    ndarray
        Shape (2l+1, 2l+1). A signed permutation, except for ``"e3nn"``, whose polar axis is y.

    Raises
    ------
    ValueError
        For an unknown name, or ``l`` above :data:`MAX_L`.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"unknown orbital convention {convention!r}; known: {', '.join(CONVENTIONS)}"
        )
    if not 0 <= l <= MAX_L:
        raise ValueError(f"angular momentum l = {l} is outside 0 ... {MAX_L}")
    if convention == "e3nn":
        # e3nn evaluates the standard formulas with the axes (x, y, z) renamed to (y, z, x)
        points = _directions(l)
        standard = real_harmonics(l, points)
        theirs = real_harmonics(l, points[:, [2, 0, 1]])
        matrix = np.linalg.lstsq(standard, theirs, rcond=None)[0].T
    else:
        order = {"abacus": _alternating, "openmx": _openmx}.get(
            convention, lambda l: list(range(-l, l + 1))
        )(l)
        matrix = np.zeros((2 * l + 1, 2 * l + 1))
        for row, m in enumerate(order):
            matrix[row, m + l] = (-1) ** m if convention == "abacus" else 1
    matrix.flags.writeable = False
    return matrix


@dataclass(frozen=True, eq=False)
class Basis:
    """The atomic orbitals of each species, and where they came from.

    Parameters
    ----------
    shells
        Angular momentum of every radial function, by species and in order:
        ``{"Ga": (0, 0, 1, 1, 2, 2, 3)}`` is 2s2p2d1f. Species are chemical symbols; a
        label such as ``"Fe1"`` stands where atoms of one element have different orbitals.
    convention
        Order and sign of the harmonics of a shell, a key of :data:`CONVENTIONS`.
    radius
        Cutoff of the orbitals in Angstrom, by species, where known.
    fingerprint
        sha256 of the ``.orb`` file, by species, where known. Two sets of orbitals with the same
        shells give matrices of the same shape and different numbers; this tells them apart.
    valence
        Valence electrons of the pseudopotential, by species, where known.
    """

    shells: Mapping[str, tuple[int, ...]]
    convention: str = "abacus"
    radius: Mapping[str, float] = field(default_factory=dict)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    valence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        convention_matrix(0, self.convention)
        shells = {str(name): tuple(int(l) for l in ls) for name, ls in self.shells.items()}
        for name, ls in shells.items():
            if not ls or min(ls) < 0 or max(ls) > MAX_L:
                raise ValueError(f"{name}: shells {ls} must be angular momenta 0 ... {MAX_L}")
        object.__setattr__(self, "shells", MappingProxyType(shells))
        for name in ("radius", "fingerprint", "valence"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __repr__(self):
        content = ", ".join(f"{name}: {self.label(name)}" for name in self.shells)
        return f"Basis({content}; {self.convention})"

    def __reduce__(self):  # mapping proxies cannot be copied
        return Basis, (
            dict(self.shells),
            self.convention,
            dict(self.radius),
            dict(self.fingerprint),
            dict(self.valence),
        )

    def label(self, species: str) -> str:
        """Shells in words, for example ``2s2p1d``."""
        ls = self.shells[species]
        return "".join(f"{ls.count(l)}{'spdfghi'[l]}" for l in sorted(set(ls)))

    def norbitals(self, species: str) -> int:
        """Number of orbitals of one atom, without spin."""
        try:
            return sum(2 * l + 1 for l in self.shells[species])
        except KeyError:
            raise ValueError(
                f"the basis has no orbitals for {species!r}; it has {', '.join(self.shells)}"
            ) from None

    def quantum_numbers(self, species: str) -> ndarray:
        """(l, zeta, m) of every orbital, shape (norbitals, 3).

        ``zeta`` counts the radial functions of one l from 0. In the ``"e3nn"`` convention,
        where orbitals of l > 1 are not eigenstates of |m|, ``m`` is the running index - l.
        """
        rows, seen = [], {}
        for l in self.shells[species]:
            zeta = seen[l] = seen.get(l, -1) + 1
            ms = np.arange(-l, l + 1)
            if self.convention != "e3nn":
                ms = np.abs(convention_matrix(l, self.convention)) @ ms
            rows += [(l, zeta, round(m)) for m in ms]
        return np.array(rows)

    def transformation(self, species: str, convention: str) -> ndarray:
        """Orthogonal matrix from this basis's orbitals to those of another convention."""
        return _block_diagonal(
            [
                convention_matrix(l, convention) @ convention_matrix(l, self.convention).T
                for l in self.shells[species]
            ]
        )

    def rotation(self, species: str, rotation: ndarray) -> ndarray:
        """:func:`rotation_matrix` of all orbitals of one atom, shape (norbitals, norbitals)."""
        blocks = {l: rotation_matrix(l, rotation, self.convention) for l in self.shells[species]}
        return _block_diagonal([blocks[l] for l in self.shells[species]])

    def difference(self, other: Basis) -> str | None:
        """Why matrices in the two bases cannot be combined, or None if they can."""
        if self.convention != other.convention:
            return f"orbital conventions differ: {self.convention} and {other.convention}"
        for name in self.shells.keys() & other.shells.keys():
            if self.shells[name] != other.shells[name]:
                return f"{name}: orbitals differ: {self.label(name)} and {other.label(name)}"
            ours, theirs = self.fingerprint.get(name), other.fingerprint.get(name)
            if ours and theirs and ours != theirs:
                return f"{name}: orbital files differ (sha256 {ours[:8]}... and {theirs[:8]}...)"
        return None

    def nelectrons(self, species: Sequence[str]) -> float | None:
        """Valence electrons of a neutral structure, or None where a species has no entry."""
        if any(name not in self.valence for name in species):
            return None
        return float(sum(self.valence[name] for name in species))


def _block_diagonal(blocks: Sequence[ndarray]) -> ndarray:
    size = sum(len(block) for block in blocks)
    matrix = np.zeros((size, size))
    start = 0
    for block in blocks:
        stop = start + len(block)
        matrix[start:stop, start:stop] = block
        start = stop
    return matrix
