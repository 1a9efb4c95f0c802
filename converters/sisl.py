"""Objects and files of sisl: :func:`to_sisl`, :func:`from_sisl`, and SIESTA's HSX and TSHS files.

sisl orders the harmonics of a shell as SIESTA does, m = -l ... l, with the sign (-1)^m, that of
ABACUS. Energies are in eV, lengths in Angstrom, and H(k) = sum_R exp(2 pi i k.R) H(R), as here.
Files are in Rydberg and Bohr, with sisl's values of them (CODATA 2018) and 64-bit numbers. A
``.HSX`` file has the orbitals, a ``.TSHS`` file only how many there are, so that its reader needs
the note beside it or another file with the basis, which sisl finds through the ``.fdf``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy import ndarray
from scipy.sparse import csr_array, csr_matrix

from ase_nextham.bands.loewdin import identity
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.files import replacing
from ase_nextham.matrix import AtomPairs, LCAOMatrix, formula

from .sidecar import noted_basis, read_sidecar, restored, sidecar_path, write_sidecar

if TYPE_CHECKING:
    import sisl

SUFFIXES = (".hsx", ".tshs")
HOLDS = ("overlap", "hamiltonian")

_TEXT_OR_NETCDF = (".fdf", ".nc")


def recognises(path: Path) -> bool:
    """Whether a path is a file that sisl reads a Hamiltonian of SIESTA from."""
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    if suffix in _TEXT_OR_NETCDF:
        return True
    if suffix not in SUFFIXES:
        return False
    with path.open("rb") as file:
        head = file.read(12)
    if len(head) < 12:
        return False
    # a Fortran record of one integer, the version; before there were versions, of several
    first, version, last = np.frombuffer(head, "<i4").tolist()
    return first in (12, 16) or (first == last == 4 and 0 <= version < 9)


def read(path: str | os.PathLike) -> LCAOData:
    """Read the Hamiltonian and overlap of a file that sisl reads them from.

    Raises
    ------
    ValueError
        If sisl is not installed or cannot read the file, or as :func:`from_sisl`.
    """
    sisl = _sisl()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        hamiltonian = _sile(path, "r").read_hamiltonian()
    except Exception as err:  # sisl raises anything, depending on where it stumbles
        raise ValueError(f"{path}: sisl {sisl.__version__} cannot read it: {err}") from err
    if hamiltonian is None:
        raise ValueError(f"{path}: sisl {sisl.__version__} finds no Hamiltonian in it")
    note = read_sidecar(sidecar_path(path), [path])
    if note is None:
        try:
            return from_sisl(hamiltonian)
        except ValueError as err:
            raise ValueError(f"{path}: {err}") from err
    basis, species = noted_basis(note), tuple(note["species"])
    norbitals = [basis.norbitals(name) for name in species]
    if list(hamiltonian.geometry.orbitals) != norbitals:
        raise ValueError(f"{path}: the note beside it is for other atoms, {formula(species)}")
    data = _lcao_data(hamiltonian, species, basis, _places(basis))
    atoms = data.atoms.copy()
    atoms.numbers = note["extra"]["numbers"]  # which .TSHS does not have
    return restored(replace(data, atoms=atoms), note)


def write(path: str | os.PathLike, data: LCAOData) -> None:
    """Write a ``.HSX`` or ``.TSHS`` file.

    What the file has no place for is noted beside it, so that :func:`read` gives back what was
    written.

    Raises
    ------
    ValueError
        If sisl is not installed, the name has another ending, there is no Hamiltonian, or it is
        complex without spin, for which the files have no place.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: sisl's Hamiltonians are written to files named *.HSX or *.TSHS")
    hamiltonian = to_sisl(data)
    if np.dtype(hamiltonian.dtype).kind == "c":
        raise ValueError(
            f"{path}: the Hamiltonian is complex, but SIESTA's without spin-orbit coupling is real"
        )
    with replacing(path) as temporary:
        _sile(temporary, "w").write_hamiltonian(hamiltonian)
    extra = {"numbers": data.atoms.numbers.tolist()}
    write_sidecar(sidecar_path(path), data, [path], extra=extra)


def _sisl():
    try:
        import sisl
    except ImportError as err:
        raise ValueError(f"this needs sisl ({err}); install it with: pip install sisl") from err
    return sisl


def _sile(path: Path, mode: str):
    siles = {".hsx": "hsxSileSiesta", ".tshs": "tshsSileSiesta"}
    if path.suffix.lower() in siles:  # sisl looks at the case of the ending
        return getattr(import_module("sisl.io.siesta"), siles[path.suffix.lower()])(path, mode)
    return _sisl().get_sile(path, mode)


# --- to sisl -------------------------------------------------------------------------------------


def to_sisl(data: LCAOData) -> sisl.Hamiltonian:
    """The Hamiltonian and overlap as a sisl object.

    Parameters
    ----------
    data
        With a Hamiltonian: :meth:`LCAOData.best_hamiltonian` is taken. Unpolarised, collinear and
        spinor become sisl's unpolarized, polarized and spin-orbit.

    Returns
    -------
    sisl.Hamiltonian
        With overlap, in eV; atoms as here, tagged with their species, orbitals in sisl's order
        with l, m, zeta and the principal quantum number l + 1.

    Raises
    ------
    ValueError
        If sisl is not installed, or there is no Hamiltonian.
    """
    sisl = _sisl()
    H, S = data.best_hamiltonian(), data.overlap
    reach = np.abs(data.pairs.R).max(axis=0, initial=0)
    species = {name: _sisl_atom(sisl, data, name) for name in set(data.symbols)}
    geometry = sisl.Geometry(
        data.atoms.positions,
        atoms=[species[name] for name in data.symbols],
        lattice=sisl.Lattice(data.atoms.cell.array, nsc=2 * reach + 1),
    )
    R = np.asarray(geometry.lattice.sc_off)
    cells = np.empty(tuple(2 * reach + 1), np.int64)
    cells[tuple((R + reach).T)] = np.arange(len(R))
    where = _Elements(S, _places(S.basis), cells[tuple((S.pairs.R + reach).T)], len(R))
    if H.spin == "spinor":
        uu, ud, du, dd = (_component(H, a, b) for a in (0, 1) for b in (0, 1))
        parts = [uu.real, dd.real, ud.real, ud.imag, uu.imag, dd.imag, du.real, du.imag]
    else:
        parts = list(H.data) if H.spin == "collinear" else [H.data]
    dtype = np.result_type(S.data, *parts)
    names = {"unpolarised": "unpolarized", "collinear": "polarized", "spinor": "spin-orbit"}
    return sisl.Hamiltonian.fromsp(
        geometry,
        [where.sparse(values.astype(dtype)) for values in parts],
        S=where.sparse(S.data.astype(dtype)),
        spin=sisl.Spin(names[H.spin]),
    )


def _sisl_atom(sisl, data: LCAOData, name: str):
    basis = data.basis
    number = data.atoms.numbers[data.symbols.index(name)]
    zetas: dict[int, int] = {}
    orbitals = []
    for l in basis.shells[name]:
        zetas[l] = zetas.get(l, 0) + 1
        for m in range(-l, l + 1):
            radius = basis.radius.get(name, -1.0)
            orbitals.append(sisl.AtomicOrbital(n=l + 1, l=l, m=m, zeta=zetas[l], R=radius))
    return sisl.Atom(int(number), orbitals, tag=name)


def _places(basis: Basis) -> Mapping[str, ndarray]:
    """For each species: which of our orbitals sisl's are, where it goes through our shells."""
    places = {}
    for name, shells in basis.shells.items():
        found, start = [], 0
        for l in shells:
            ms = basis.quantum_numbers(name)[start : start + 2 * l + 1, 2]
            found.append(start + np.argsort(ms))
            start += 2 * l + 1
        places[name] = np.concatenate(found)
    return places


def _component(matrix: LCAOMatrix, row: int, column: int) -> ndarray:
    """One spin component of a spinor matrix, as the data of one without spin."""
    values = np.empty(matrix.offsets[-1] // 4, complex)
    for _, _, p, elements in matrix.block_groups():
        part = elements[:, row::2, column::2]
        inside = np.arange(part[0].size).reshape(part.shape[1:])
        values[matrix.offsets[p][:, None, None] // 4 + inside] = matrix.data[part]
    return values


class _Elements:
    """Where the elements of matrices without spin are in sisl's sparse matrices."""

    def __init__(self, matrix: LCAOMatrix, places: Mapping, cell: ndarray, ncells: int):
        first, n = matrix.first_orbital, matrix.dimension
        self.shape = (n, n * ncells)
        self.rows = np.empty(matrix.offsets[-1], np.int64)
        self.columns = np.empty(matrix.offsets[-1], np.int64)
        theirs = {name: np.argsort(ours) for name, ours in places.items()}
        for a, b, p, elements in matrix.block_groups():
            i, j = matrix.pairs.i[p], matrix.pairs.j[p]
            self.rows[elements] = first[i][:, None, None] + theirs[a][:, None]
            self.columns[elements] = (first[j] + n * cell[p])[:, None, None] + theirs[b]

    def sparse(self, values: ndarray) -> csr_matrix:
        return csr_matrix((values, (self.rows, self.columns)), self.shape)


# --- from sisl -----------------------------------------------------------------------------------


def from_sisl(hamiltonian: sisl.Hamiltonian) -> LCAOData:
    """The data of a sisl object.

    Parameters
    ----------
    hamiltonian
        Unpolarized, polarized, non-collinear or spin-orbit, orthogonal or not. Its atoms need
        orbitals with quantum numbers: ``sisl.AtomicOrbital``, complete shells of them.

    Returns
    -------
    LCAOData
        With ``hamiltonian``. Species are chemical symbols; where atoms of one element differ, they
        are the tags of sisl's atoms, or the symbols with a number.

    Raises
    ------
    ValueError
        If sisl is not installed, orbitals have no quantum numbers, or for other kinds of spin.
    """
    _sisl()
    geometry = hamiltonian.geometry
    kinds: list = []
    for number in dict.fromkeys(geometry.atoms.species.tolist()):
        atom = geometry.atoms.atom[number]
        if atom not in kinds:  # by equality: the hash of equal atoms is not always the same
            kinds.append(atom)
    names = _species_names(kinds)
    shells, places = {}, {}
    for kind, name in zip(kinds, names, strict=True):
        shells[name], places[name] = _shells_of(kind, name)
    species = tuple(names[kinds.index(atom)] for atom in geometry.atoms)
    radius = {
        name: float(kind.maxR()) for kind, name in zip(kinds, names, strict=True) if kind.maxR() > 0
    }
    return _lcao_data(hamiltonian, species, Basis(shells, radius=radius), places)


def _species_names(kinds: Sequence) -> list[str]:
    elements = [chemical_symbols[kind.Z] if 0 < kind.Z < 119 else "X" for kind in kinds]
    tags = [str(kind.tag) for kind in kinds]
    if len(set(elements)) == len(elements):
        return elements
    if len(set(tags)) == len(tags) and all(tags):
        return [e if elements.count(e) == 1 else t for e, t in zip(elements, tags, strict=True)]
    return [
        e if elements.count(e) == 1 else f"{e}{elements[: n + 1].count(e)}"
        for n, e in enumerate(elements)
    ]


def _shells_of(atom, name: str) -> tuple[tuple[int, ...], ndarray]:
    """The l of each shell, and which of our orbitals those of a sisl atom are."""
    shells: list[tuple] = []  # (n, l, zeta) and {m: index of sisl's orbital}
    for index, orbital in enumerate(atom):
        n, l, m, zeta = (getattr(orbital, word, None) for word in ("n", "l", "m", "zeta"))
        if l is None or m is None:
            raise ValueError(
                f"{name}: orbital {index} is {type(orbital).__name__}, without quantum numbers l "
                "and m; read the geometry with its basis (from a .fdf or .HSX file), or give the "
                "atoms sisl.AtomicOrbital"
            )
        same = (held for key, held in shells if key == (n, l, zeta) and m not in held)
        held = next(same, None)
        if held is None:
            shells.append(((n, l, zeta), held := {}))
        held[m] = index
    start, places = 0, np.empty(len(atom), np.int64)
    ls = tuple(key[1] for key, _ in shells)
    for l, (_, held) in zip(ls, shells, strict=True):
        if sorted(held) != list(range(-l, l + 1)):
            raise ValueError(f"{name}: a shell l = {l} has orbitals m = {sorted(held)} only")
        ms = Basis({name: (l,)}).quantum_numbers(name)[:, 2]
        for ours, m in enumerate(ms.tolist()):
            places[held[m]] = start + ours
        start += 2 * l + 1
    return ls, places


def _lcao_data(
    hamiltonian, species: tuple[str, ...], basis: Basis, places: Mapping[str, ndarray]
) -> LCAOData:
    geometry, spin = hamiltonian.geometry, hamiltonian.spin
    if not (spin.is_unpolarized or spin.is_polarized or spin.is_noncolinear or spin.is_spinorbit):
        raise ValueError(f"sisl's {spin} has no counterpart here; no superconductors")
    hamiltonian.finalize()
    atoms = Atoms(
        numbers=[atom.Z if 0 < atom.Z < 119 else 0 for atom in geometry.atoms],
        positions=geometry.xyz,
        cell=geometry.cell,
        pbc=geometry.lattice.pbc,
    )
    blocks = _Blocks(hamiltonian, species, basis, places)
    dimensions = hamiltonian.shape[2] - (0 if hamiltonian.orthogonal else 1)
    parts = [blocks.data(n) for n in range(dimensions)]

    def matrix(data: ndarray, kind: str) -> LCAOMatrix:
        return LCAOMatrix(basis, species, blocks.pairs, kind, data)

    overlap = identity(basis, species)
    if not hamiltonian.orthogonal:
        overlap = matrix(blocks.data(hamiltonian.S_idx), "unpolarised")
    if spin.is_unpolarized:
        H = matrix(parts[0], "unpolarised")
    elif spin.is_polarized:
        H = matrix(np.stack(parts[:2]), "collinear")
    else:
        H = matrix(blocks.spinor(*_spin_components(parts)), "spinor")
    return LCAOData(atoms, overlap, hamiltonian=H, source={"code": "sisl"})


def _spin_components(parts: Sequence[ndarray]) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """uu, ud, du, dd of sisl's components, which are real or complex."""
    if np.iscomplexobj(parts[0]):
        uu, dd, ud = parts[:3]
        return uu, ud, parts[3] if len(parts) > 3 else ud.conj(), dd
    uu, dd, ud = parts[0], parts[1], parts[2] + 1j * parts[3]
    if len(parts) == 4:
        return uu, ud, ud.conj(), dd
    return uu + 1j * parts[4], ud, parts[6] + 1j * parts[7], dd + 1j * parts[5]


class _Blocks:
    """Elements of sisl's sparse matrices, put into blocks of atoms."""

    def __init__(self, hamiltonian, species: tuple[str, ...], basis: Basis, places: Mapping):
        self.hamiltonian = hamiltonian
        n = np.array([basis.norbitals(name) for name in species], np.int64)
        if list(hamiltonian.geometry.orbitals) != n.tolist():
            raise ValueError("the orbitals of the atoms are not those of the matrix")
        place = np.concatenate([places[name] for name in species])
        natoms, norbitals = len(species), int(n.sum())
        atom = np.repeat(np.arange(natoms), n)
        # all components of a sisl matrix have the same elements
        pattern = csr_array(hamiltonian.tocsr(0))
        rows = np.repeat(np.arange(norbitals), np.diff(pattern.indptr))
        cells, columns = np.divmod(pattern.indices, norbitals)
        cells = cells.astype(np.int64)
        blocks, which = np.unique(
            (atom[rows] * natoms + atom[columns]) * hamiltonian.geometry.n_s + cells,
            return_inverse=True,
        )
        ij, cell = np.divmod(blocks, hamiltonian.geometry.n_s)
        i, j = np.divmod(ij, natoms)
        R = np.asarray(hamiltonian.geometry.lattice.sc_off, np.int64)[cell]
        onsite = np.arange(natoms)
        found = np.concatenate(
            [
                np.column_stack([i, j, R]),
                np.column_stack([j, i, -R]),
                np.column_stack([onsite, onsite, np.zeros((natoms, 3), int)]),
            ]
        )
        found = np.unique(found, axis=0)
        self.pairs = AtomPairs(found[:, 0], found[:, 1], found[:, 2:])
        self.n = n
        sizes = n[self.pairs.i] * n[self.pairs.j]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        starts = self.offsets[self.pairs.find(i, j, R)][which]
        self.targets = starts + place[rows] * n[atom[columns]] + place[columns]

    def data(self, dimension: int) -> ndarray:
        """One component, as the data of a matrix without spin."""
        values = csr_array(self.hamiltonian.tocsr(dimension)).data
        data = np.zeros(self.offsets[-1], np.result_type(values, float))
        data[self.targets] = values
        return data

    def spinor(self, uu: ndarray, ud: ndarray, du: ndarray, dd: ndarray) -> ndarray:
        """The four components, as the data of a spinor matrix."""
        result = np.empty(4 * self.offsets[-1], complex)
        i, j = self.pairs.i, self.pairs.j
        shapes = np.column_stack([self.n[i], self.n[j]])
        for rows, columns in np.unique(shapes, axis=0):
            p = np.flatnonzero((shapes == (rows, columns)).all(axis=1))
            inside = np.arange(rows * columns).reshape(rows, columns)
            one = self.offsets[p][:, None, None] + inside
            blocks = np.empty((len(p), rows, 2, columns, 2), complex)
            for (a, b), part in zip(np.ndindex(2, 2), (uu, ud, du, dd), strict=True):
                blocks[:, :, a, :, b] = part[one]
            four = 4 * self.offsets[p][:, None] + np.arange(4 * rows * columns)
            result[four] = blocks.reshape(len(p), -1)
        return result


__all__ = ["HOLDS", "SUFFIXES", "from_sisl", "read", "recognises", "to_sisl", "write"]
