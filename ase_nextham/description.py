"""What data, and the files that hold them, are: in words, line by line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from ase import Atoms

from ase_nextham import bands
from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.h0.csr import read_csr
from ase_nextham.matrix import LCAOMatrix

_LARGEST_DIAGONALISED = 2000  # about ten seconds


def contents(data: LCAOData) -> str:
    """Names of the operators that are there."""
    held = {
        "overlap": data.overlap,
        "H(0)": data.h0,
        "Hamiltonian": data.hamiltonian,
        "position r": data.position,
    }
    return ", ".join(name for name, value in held.items() if value is not None)


def describe(data: LCAOData) -> str:
    """What an LCAOData holds, line by line."""
    atoms, basis, S = data.atoms, data.basis, data.overlap
    lengths = ", ".join(f"{x:.4g}" for x in atoms.cell.lengths())
    angles = ", ".join(f"{x:.4g}" for x in atoms.cell.angles())
    orbitals = "; ".join(
        f"{name} {basis.label(name)}"
        + (f" to {basis.radius[name]:.2f} Angstrom" if name in basis.radius else "")
        for name in dict.fromkeys(data.symbols)
    )
    small = S.dimension <= _LARGEST_DIAGONALISED
    kpts = np.array([[0, 0, 0], [0.31, 0.17, -0.23]]) if small else None
    lines = [
        ("structure", f"{atoms.get_chemical_formula('metal')}, {len(atoms)} atoms"),
        ("cell", f"{lengths} Angstrom; {angles} degrees; {atoms.cell.volume:.4g} Angstrom^3"),
        ("orbitals", f"{orbitals}; {S.dimension} in all, {basis.convention} convention"),
        ("pairs", f"{len(S.pairs)} pairs of atoms; S reaches {_reach(S, atoms):.2f} Angstrom"),
        ("holds", contents(data)),
    ]
    if data.nelectrons is not None:
        lines.append(("electrons", f"{data.nelectrons:g}"))
    if data.fermi_level is not None:
        lines.append(("Fermi level", f"{data.fermi_level:.6g} eV, as the source states it"))
    checks = []
    if kpts is not None:
        lowest = np.linalg.eigvalsh(S.at_k(kpts)).min()
        checks.append(f"smallest eigenvalue of S(k) at two k-points {lowest:.3g}")
    for name, matrix in (("H(0)", data.h0), ("Hamiltonian", data.hamiltonian)):
        if matrix is not None:
            reach = _reach(matrix, atoms)
            kind = f"{matrix.spin}, dimension {matrix.dimension}, reaches {reach:.2f} Angstrom"
            lines.append((name, kind))
            checks.append(
                f"{name} is Hermitian to {matrix.hermitian_error():.1g} eV and invariant under "
                f"time reversal to {matrix.time_reversal_error():.1g} eV"
            )
            checks.append(f"{name} {_describe_truncation(data, matrix, kpts)}")
    if data.position is not None:
        checks.append(f"r obeys its translation identity to {data.position_error():.1g} Angstrom")
    lines += [("check", text) for text in checks]
    lines += [("source", text) for text in _describe_source(data.source)]
    return "\n".join(f"  {name:<12} {text}" for name, text in lines)


def _reach(matrix: LCAOMatrix, atoms: Atoms) -> float:
    """Distance of the farthest pair with an element that is not zero, in Angstrom."""
    pairs = matrix.pairs
    vectors = atoms.positions[pairs.j] - atoms.positions[pairs.i] + pairs.R @ atoms.cell.array
    nonzero = (matrix.data != 0).reshape(-1, matrix.offsets[-1]).any(axis=0)
    of_element = np.repeat(np.arange(len(pairs)), np.diff(matrix.offsets))
    return float(np.linalg.norm(vectors[np.unique(of_element[nonzero])], axis=1).max(initial=0))


def _describe_truncation(data: LCAOData, matrix: LCAOMatrix, kpts: np.ndarray | None) -> str:
    """What cutting a Hamiltonian to the pairs of S would cost."""
    cut = bands.truncation(data, matrix, kpts)
    if not cut.npairs or not cut.largest:
        return "has no elements on pairs where S has none"
    text = (
        f"has elements up to {1e3 * cut.largest:.2g} meV on pairs where S has none, "
        f"{cut.nearest:.2f} to {cut.farthest:.2f} Angstrom apart"
    )
    if cut.error is not None:
        text += f"; without them bands change by up to {1e3 * cut.error:.2g} meV"
    if cut.occupied_error is not None:
        text += f", occupied ones by {1e3 * cut.occupied_error:.2g} meV"
    return text


def _describe_source(source: Mapping, name: str = "") -> list[str]:
    """Provenance, a line for every entry that is not a mapping of mappings."""
    lines, plain = [], []
    for key, value in source.items():
        if isinstance(value, Mapping):
            lines += _describe_source(value, f"{name}{key}: ")
        else:
            words = ", ".join(map(str, value)) if isinstance(value, list) else value
            plain.append(f"{key} {words}")
    return ([name + "; ".join(plain)] if plain else []) + lines


def describe_matrices(path: str | os.PathLike) -> str:
    """What an ABACUS matrix file holds, record by record."""
    lines = []
    for record in read_csr(path):
        operator = record.operator or "operator not named in the file"
        if record.component is not None:
            operator += f", component {'xyz'[record.component]}"
        kind = "complex" if np.iscomplexobj(record.value) else "real"
        lines.append(
            f"  step {record.step}: {operator}; {record.layout}; {kind}, dimension "
            f"{record.dimension}, {len(record.R)} lattice vectors, {len(record.value)} elements"
            + ("; folded to gamma, no k-points" if record.gamma_folded else "")
        )
    return "\n".join([f"{path}: ABACUS matrix file", *lines])


_HEADS = {
    "pairs": "pairs: dH of each pair of atoms",
    "density": "density: its change from the superposed atoms, of whose potential dH is the matrix",
}


def describe_model(path: str | os.PathLike) -> str:
    """What a model is, line by line."""
    from ase_nextham.model.bundle import read_info

    info = read_info(path)
    of_shells: dict[str, list[str]] = {}
    basis = Basis(info.shells)
    for element in info.elements:
        of_shells.setdefault(basis.label(element), []).append(element)
    known = sorted(info.orbitals.keys() & info.pseudopotentials.keys())
    lines = [
        ("head", _HEADS[info.head]),
        ("network", f"{info.network}, format {info.format}"),
        *(("elements", f"{label}: {' '.join(names)}") for label, names in of_shells.items()),
        (
            "files",
            f"sha256 of orbitals and pseudopotentials known for {len(known)} of "
            f"{len(info.elements)} elements",
        ),
    ]
    if info.head == "pairs":
        windows = ", ".join(f"{a:g} to {b:g}" for a, b in pairwise(info.windows))
        lines += [
            ("corrects", f"the {info.spin} part of H, {windows} Angstrom apart"),
            ("sees", f"atoms up to {info.cutoff:g} Angstrom away"),
        ]
    hyperparameters = dict(info.hyperparameters)
    functions = hyperparameters.pop("functions", None)
    if functions is not None:
        counts = [len(b[0]) for b in functions["combinations"]]
        size = sum((2 * l + 1) * n for l, n in enumerate(counts))
        text = f"{size} of each atom ({', '.join(map(str, counts))} for l = 0, 1, ...)"
        lines.append(("coefficients", f"{text}; {functions['fingerprint'][:16]}"))
    for name, values in (
        ("h0", info.h0),
        ("hyperparameters", hyperparameters),
        ("training", info.training),
    ):
        lines += [(name, text) for text in _describe_source(values)]
    lines += [("functional", info.xc), ("cite", info.citation or "-")]
    return "\n".join([f"{path}: model", *(f"  {name:<16} {text}" for name, text in lines)])
