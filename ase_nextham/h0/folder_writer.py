"""Write :class:`~ase_nextham.data.LCAOData` as folders of ABACUS runs.

ABACUS itself (``init_chg hr``), PYATB and all that reads ABACUS's output can go on from there.
What ABACUS's files have no place for is noted beside them, so that
:func:`~ase_nextham.h0.folder.read_folder` gives back what was written: the order of the atoms
(STRU groups them by species), their cell images, and the orbitals where no ``.orb`` file is
at hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_numbers

from ase_nextham.data import LCAOData
from ase_nextham.files import replacing_folder, write_atomically
from ase_nextham.h0 import inputfile
from ase_nextham.h0.csr import csr_matrices, write_csr
from ase_nextham.h0.csr_writer import Record
from ase_nextham.h0.run import SIDECAR, SIDECAR_FORMAT, SIDECAR_VERSION, stru_digest
from ase_nextham.h0.stru import Species, Structure, chemical_symbol, wrapped, write_stru
from ase_nextham.matrix import LCAOMatrix

LAYOUTS = ("legacy text", "new text", "binary")
"""What :func:`write_folder` can write, as in :func:`ase_nextham.h0.csr.write_csr`."""

_NAMES: Mapping[str, tuple[str, str, str]] = {
    "legacy text": (
        "data-HR-sparse_SPIN{spin}.csr",
        "data-SR-sparse_SPIN0.csr",
        "data-rR-sparse.csr",
    ),
    "new text": ("hrs{channel}_nao.csr", "srs1_nao.csr", "rr.csr"),
    "binary": ("hrs{channel}_nao.dat", "sr_nao.dat", "rr.csr"),
}

# 13 digits: bands keep 1e-9 eV even where S is nearly singular. ABACUS's own 9 cost up to 1e-4
_DIGITS = 12

# INPUT keywords of the run the data come from that do not hold for the folder that is written
_NOT_COPIED = {
    "suffix",
    "calculation",
    "stru_file",
    "kpoint_file",
    "kspacing",
    "latname",
    "ntype",
    "nspin",
    "nelec",
    "nelec_delta",
    "nbands",
    "gamma_only",
    "basis_type",
    "init_chg",
    "init_wfc",
    "scf_nmax",
    "pseudo_dir",
    "orbital_dir",
    "read_file_dir",
}


def write_folder(
    path: str | os.PathLike,
    data: LCAOData,
    *,
    layout: str = "legacy text",
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
) -> None:
    """Write the folder of an ABACUS run: INPUT, STRU, KPT and the matrices in ``OUT.ABACUS``.

    One folder holds one H(R). Data with both H(0) and a self-consistent or predicted H are
    written as two, ``h0`` and ``scf`` inside ``path``.

    Parameters
    ----------
    path
        A folder that does not exist or is empty.
    layout
        ``"legacy text"``: what PYATB and ABACUS up to 3.10 read. ``"new text"``: ABACUS from 3.11
        on; run it with ``init_chg hr`` and ``read_file_dir OUT.ABACUS`` to start from this H.
        ``"binary"``: ``.dat`` of ``out_hsr 2``. r(R) is text in all of them.
    pseudo_dir, orbital_dir
        What INPUT shall name; the files themselves are not copied. STRU names those of the run
        that the data came from, else ``Ga.upf`` and ``Ga_2s2p1d.orb``.

    Raises
    ------
    FileExistsError
        If the folder holds something.
    ValueError
        For an unknown layout, or a basis that is not in ABACUS's convention.

    Notes
    -----
    Atoms are grouped by species and moved into the cell, as ABACUS has them; R moves along.
    Elements of up to 1e-10 (Rydberg, Bohr) are left out, as ABACUS does.
    """
    write_runs(path, data, csr_matrices, layout, pseudo_dir, orbital_dir)


def write_runs(
    path: str | os.PathLike,
    data: LCAOData,
    records: Callable[[Mapping[str, LCAOMatrix]], Mapping[str, Record | tuple[Record, ...]]],
    layout: str,
    pseudo_dir: str | os.PathLike | None = None,
    orbital_dir: str | os.PathLike | None = None,
) -> None:
    """As :func:`write_folder`, with another function than ``csr_matrices`` for the numbers.

    Parameters
    ----------
    data
        The matrices may be without pairs.
    records
        Function of the matrices of one run by name, in the order of :func:`abacus_order`.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(map(repr, LAYOUTS))}")
    order, images = abacus_order(data)
    moved = data.permuted(order).translated(-images[order])
    kinds = [kind for kind in ("h0", "hamiltonian") if getattr(data, kind) is not None]
    with replacing_folder(path) as temporary:
        for kind in kinds or [None]:
            folder = temporary
            if len(kinds) == 2:
                folder = temporary / ("h0" if kind == "h0" else "scf")
                folder.mkdir()
            values = _input(data, kind, pseudo_dir, orbital_dir)
            _write_run(folder, moved, kind, layout, values, records)
            _write_sidecar(folder, data, np.argsort(order), images)


def abacus_order(data: LCAOData) -> tuple[np.ndarray, np.ndarray]:
    """Which atom stands where in STRU, and the cell that each atom of the data is in.

    Files hold ``data.permuted(order).translated(-images[order])``.
    """
    species = list(dict.fromkeys(data.symbols))
    order = np.argsort([species.index(name) for name in data.symbols], kind="stable")
    cell = data.atoms.cell.array
    _, images = wrapped(np.linalg.solve(cell.T, data.atoms.positions.T).T)
    return order, images


def _run_source(data: LCAOData, kind: str | None) -> Mapping:
    """The part of the provenance that belongs to one operator."""
    runs = data.source.get("runs", {})
    for run in runs.values():
        if run.get("operator") == kind:
            return run
    return next(iter(runs.values()), data.source)


def _input(data: LCAOData, kind: str | None, pseudo_dir, orbital_dir) -> dict[str, str]:
    given = _run_source(data, kind).get("input", {})
    matrix = getattr(data, kind) if kind else None
    nspin = {"collinear": 2, "spinor": 4}.get(matrix.spin, 1) if matrix is not None else 1
    values = {
        "suffix": "ABACUS",
        "calculation": "scf" if kind else "get_s",
        "basis_type": "lcao",
        "nspin": str(nspin),
        "gamma_only": "0",
    }
    for name, folder in (("pseudo_dir", pseudo_dir), ("orbital_dir", orbital_dir)):
        if folder is not None:
            values[name] = str(folder)
    if nspin == 4:
        values["lspinorb"] = given.get("lspinorb", "1")
        values["noncolin"] = given.get("noncolin", "1" if _noncollinear(data) else "0")
    if kind == "h0":
        values["scf_nmax"] = "1"
        if nspin == 2:  # see ase_nextham.h0.folder: else versions up to 3.10 spoil one channel
            values |= {"mixing_type": "plain", "mixing_beta": "1e-12", "mixing_beta_mag": "1e-12"}
    elif kind == "hamiltonian":
        steps = given.get("scf_nmax", "100")
        # one step from superposed atoms would mean H(0)
        values["scf_nmax"] = "100" if steps == "1" else steps
    if kind:
        values["out_mat_hs2"] = "1"
    if data.position is not None:
        values["out_mat_r"] = "1"
    neutral = data.basis.nelectrons(data.symbols)
    if None not in (data.nelectrons, neutral) and abs(data.nelectrons - neutral) > 1e-9:
        values["nelec"] = repr(float(data.nelectrons))
    copied = {
        name: value
        for name, value in given.items()
        if name not in values and name not in _NOT_COPIED and not name.startswith("out_")
    }
    if nspin != 4:
        copied = {k: v for k, v in copied.items() if k not in ("lspinorb", "noncolin")}
    return values | copied


def _noncollinear(data: LCAOData) -> bool:
    moments = data.atoms.get_initial_magnetic_moments()
    return moments.ndim == 2 and bool(np.any(moments[:, :2]))


def _write_run(
    folder: Path,
    data: LCAOData,
    kind: str | None,
    layout: str,
    values: Mapping[str, str],
    records_of: Callable[[Mapping[str, LCAOMatrix]], Mapping[str, Record | tuple[Record, ...]]],
) -> None:
    inputfile.write_input(folder / "INPUT", values)
    write_stru(folder / "STRU", _structure(data, kind))
    mesh = str(_run_source(data, kind).get("kpoints", "Gamma 1 1 1 0 0 0")).split()
    write_atomically(folder / "KPT", f"K_POINTS\n0\n{mesh[0]}\n{' '.join(mesh[1:])}\n")
    output = folder / "OUT.ABACUS"
    output.mkdir()
    named = {"overlap": data.overlap}
    if kind:
        named[kind] = getattr(data, kind)
    if data.position is not None:
        named |= {f"position {axis}": r for axis, r in zip("xyz", data.position, strict=True)}
    records = records_of(named)
    name_H, name_S, name_r = _NAMES[layout]
    header = {"digits": _DIGITS, "atoms": data.atoms, "species": data.symbols}
    write_csr(output / name_S, [records["overlap"]], layout, **header)
    if kind:
        channels = records[kind] if isinstance(records[kind], tuple) else (records[kind],)
        for spin, record in enumerate(channels):
            name = name_H.format(spin=spin, channel=spin + 1)
            write_csr(output / name, [record], layout, spin_directions=len(channels), **header)
    if data.position is not None:
        write_csr(
            output / name_r,
            [records[f"position {axis}"] for axis in "xyz"],
            "legacy text",
            digits=_DIGITS,
        )


def _structure(data: LCAOData, kind: str | None) -> Structure:
    known = _run_source(data, kind).get("species", {})
    species = []
    for label in dict.fromkeys(data.symbols):
        symbol = chemical_symbol(label)
        files = known.get(label, {})
        species.append(
            Species(
                label,
                symbol,
                files.get("mass") or float(atomic_masses[atomic_numbers[symbol]]),
                files.get("pseudopotential") or f"{symbol}.upf",
                files.get("orbital") or f"{label}_{data.basis.label(label)}.orb",
            )
        )
    zeros = np.zeros((len(data.symbols), 3), int)
    return Structure(data.atoms, data.symbols, tuple(species), zeros)


def _write_sidecar(folder: Path, data: LCAOData, order: np.ndarray, shifts: np.ndarray) -> None:
    basis = data.basis
    content = {
        "format": SIDECAR_FORMAT,
        "format_version": SIDECAR_VERSION,
        "stru_sha256": stru_digest(folder),
        "order": order.tolist(),
        "shifts": shifts.tolist(),
        "species": {label: label for label in dict.fromkeys(data.symbols)},
        "basis": {
            "shells": {name: list(ls) for name, ls in basis.shells.items()},
            "radius": dict(basis.radius),
            "fingerprint": dict(basis.fingerprint),
            "valence": dict(basis.valence),
        },
        "nelectrons": data.nelectrons,
        "fermi_level": data.fermi_level,
        "source": dict(data.source),
    }
    write_atomically(folder / SIDECAR, json.dumps(content) + "\n")
