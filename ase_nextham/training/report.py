"""The errors of a model on some samples: as plain values, and as tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy import ndarray

from ase_nextham import __version__
from ase_nextham.files import write_atomically
from ase_nextham.training.dataset_statistics import Error
from ase_nextham.training.metrics import KINDS, MatrixErrors
from ase_nextham.training.metrics_bands import (
    ENERGIES,
    GHOST,
    VALENCE,
    WINDOW,
    BandErrors,
    MeshErrors,
    WorstBand,
)

H0, PREDICTED = "H(0)", "predicted"
"""Names of the Hamiltonians: the second one is H(0) + dH of the model."""

FORMAT, FORMAT_VERSION = "ase_nextham evaluation", 1


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The errors of one Hamiltonian of one structure.

    Parameters
    ----------
    matrix
        Of its matrix elements.
    mesh
        Of its bands on a mesh.
    path
        Of its bands along the path of :func:`~ase_nextham.training.metrics_bands.band_path`, with
        the energy zero of the mesh; None where nothing is periodic, or no path was asked for.
    """

    matrix: MatrixErrors
    mesh: MeshErrors
    path: BandErrors | None


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure of an evaluation.

    Parameters
    ----------
    name, formula, natoms, spin
        Of the sample.
    elements
        Its elements.
    fermi_level
        Of the self-consistent Hamiltonian as its source wrote it, in eV.
    gap
        Self-consistent, in eV; 0 for a metal, None where not known.
    condition
        Condition number of S(k) at each inequivalent point of the mesh.
    errors
        By the name of the Hamiltonian.
    """

    name: str
    formula: str
    natoms: int
    spin: str
    elements: tuple[str, ...]
    fermi_level: float
    gap: float | None
    condition: ndarray
    errors: Mapping[str, Evaluated]


@dataclass(frozen=True, eq=False)
class Report:
    """The errors of a model on some samples.

    Parameters
    ----------
    dataset, model
        Where they are; ``model`` is None for H(0) alone.
    kpts
        The mesh that was asked for.
    npoints
        k-points of the paths.
    structures
        One by one.
    errors
        All structures together, by the name of the Hamiltonian: every matrix element and every band
        energy counts the same.
    parity
        :func:`ase_nextham.training.metrics.parity` of all structures, or None without model.
    """

    dataset: str
    model: str | None
    kpts: Sequence[int] | Mapping | float
    npoints: int
    structures: tuple[Structure, ...]
    errors: Mapping[str, Evaluated]
    parity: ndarray | None

    def by_element(self, name: str) -> dict[str, float]:
        """Mean gauge error in eV of the structures that hold each element (NextHAM, fig. 3).

        Parameters
        ----------
        name
            Of the Hamiltonian.
        """
        means: dict[str, list[float]] = {}
        for structure in self.structures:
            for element in structure.elements:
                means.setdefault(element, []).append(structure.errors[name].matrix.total.mean)
        return {element: float(np.mean(values)) for element, values in sorted(means.items())}

    def worst_band(self, name: str) -> tuple[str, WorstBand] | None:
        """The band energy on the meshes that is most wrong, and the structure that it is of.

        Parameters
        ----------
        name
            Of the Hamiltonian.
        """
        found = [(one.name, one.errors[name].mesh.worst) for one in self.structures]
        found = [(structure, worst) for structure, worst in found if worst is not None]
        return max(found, key=lambda pair: abs(pair[1].error), default=None)

    def to_json(self) -> dict:
        """Plain values, energies in eV; what they are stands in this class and those it holds."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "ase_nextham": __version__,
            "dataset": self.dataset,
            "model": self.model,
            "kpts": _plain(self.kpts),
            "npoints": self.npoints,
            "units": "eV",
            "errors": {name: _errors_json(errors) for name, errors in self.errors.items()},
            "mean_by_structures_with_element": {
                name: self.by_element(name) for name in self.errors
            },
            "worst_band": {name: self._worst_json(name) for name in self.errors},
            "structures": [
                {
                    "name": one.name,
                    "formula": one.formula,
                    "natoms": one.natoms,
                    "spin": one.spin,
                    "fermi_level": one.fermi_level,
                    "gap": one.gap,
                    "condition": [float(one.condition.min()), float(one.condition.max())],
                    "errors": {name: _errors_json(errors) for name, errors in one.errors.items()},
                }
                for one in self.structures
            ],
        }

    def _worst_json(self, name: str) -> dict | None:
        found = self.worst_band(name)
        return None if found is None else {"structure": found[0], **asdict(found[1])}

    def write(self, path: str | os.PathLike) -> None:
        """Write :meth:`to_json` to a file."""
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    def table(self, *, structures: bool = True) -> str:
        """The errors as tables, in meV.

        Parameters
        ----------
        structures
            Whether each of them has its line at the end.
        """
        lines = [
            f"{len(self.structures)} structures of {self.dataset}; "
            f"model {self.model if self.model else '-'}; meV unless said otherwise",
            "",
            _line(
                "", [*self.errors, "predicted / H(0)"] if PREDICTED in self.errors else self.errors
            ),
            *self._summary(),
        ]
        for kind in KINDS:
            first = self.errors[H0].matrix.by[kind]
            lines += ["", f"gauge MAE by {kind}"]
            lines += [
                self._row(f"  {label}", lambda e, k=kind, n=label: e.matrix.by[k][n].mean)
                for label in first
            ]
        lines += ["", f"band MAE above E_F - {VALENCE:g} eV by condition number of S(k)"]
        lines += [
            self._row(f"  {label}", lambda e, n=label: e.mesh.by_condition[n].mean)
            for label in self.errors[H0].mesh.by_condition
        ]
        if structures:
            lines += ["", *self._structure_lines()]
        return "\n".join(lines)

    def __str__(self):
        return self.table(structures=len(self.structures) <= 100)

    def _summary(self) -> list[str]:
        every = {name: [one.errors[name] for one in self.structures] for name in self.errors}
        lines = [
            self._row("gauge MAE of H", lambda e: e.matrix.total.mean),
            _means("  mean of structures", every, lambda e: e.matrix.total.mean),
            self._row("  largest", lambda e: e.matrix.total.largest),
            self._row("MAE of H without mu S", lambda e: e.matrix.plain.mean),
            self._row(f"band MAE below E_F + {WINDOW:g} eV, mesh", lambda e: e.mesh.total.mean),
            _means("  mean of structures", every, lambda e: e.mesh.total.mean),
            self._row("  largest", lambda e: e.mesh.total.largest),
            *(self._row(f"  {n}", lambda e, n=n: e.mesh.by_energy[n].mean) for n in ENERGIES),
        ]
        if all(errors.path is not None for errors in self.errors.values()):
            lines += [
                self._row("band MAE along the paths", lambda e: e.path.total.mean),
                self._row("  largest", lambda e: e.path.total.largest),
            ]
        if all(errors.mesh.gap_error is not None for errors in self.errors.values()):
            lines.append(self._row("gap, mean error", lambda e: e.mesh.gap_error))
        lines += [
            _line(
                f"ghost states (off by > {GHOST:g} eV), mesh",
                [f"{e.mesh.ghosts} of {e.mesh.total.count}" for e in self.errors.values()],
            ),
            *(
                _line(f"  {name}", [e.mesh.ghosts_by_energy[name] for e in self.errors.values()])
                for name in ENERGIES
            ),
            _line(
                "  structures with ghost states",
                [sum(e.mesh.ghosts > 0 for e in some) for some in every.values()],
            ),
            *self._worst_lines(),
        ]
        return lines

    def _worst_lines(self) -> list[str]:
        """In words, for each Hamiltonian."""
        found = {name: self.worst_band(name) for name in self.errors}
        return [
            f"worst band of {name}: {worst[0]}: {worst[1]}"
            for name, worst in found.items()
            if worst
        ]

    def _row(self, label: str, value) -> str:
        return _values(label, [value(errors) for errors in self.errors.values()])

    def _structure_lines(self) -> list[str]:
        names = list(self.errors)
        head = f"{'structure':<20}{'atoms':>6}{'gap (eV)':>10}{'condition':>11}"
        for name in names:
            head += f" | {name + ' gauge':>15}{'bands':>9}{'largest':>9}{'ghosts':>8}"
        lines = [head]
        for one in self.structures:
            gap = "" if one.gap is None else f"{one.gap:.3f}"
            line = f"{one.name:<20}{one.natoms:>6}{gap:>10}{one.condition.max():>11.1e}"
            for name in names:
                errors = one.errors[name]
                total = errors.mesh.total
                line += f" | {1e3 * errors.matrix.total.mean:>15.3f}{1e3 * total.mean:>9.1f}"
                line += f"{1e3 * total.largest:>9.0f}{errors.mesh.ghosts:>8}"
            lines.append(line)
        return lines


# --- as JSON -------------------------------------------------------------------------------------


def _errors_json(errors: Evaluated) -> dict:
    matrix, mesh = errors.matrix, errors.mesh
    return {
        "gauge": _error_json(matrix.total),
        "without_mu": _error_json(matrix.plain),
        "mu": list(matrix.mu),
        "by": {kind: _table_json(table) for kind, table in matrix.by.items()},
        "bands": _bands_json(mesh)
        | {
            "shift": list(mesh.shift),
            "gap_error": mesh.gap_error,
            "by_condition": _table_json(mesh.by_condition),
            "worst": None if mesh.worst is None else asdict(mesh.worst),
        },
        "path": None if errors.path is None else _bands_json(errors.path),
    }


def _bands_json(errors: BandErrors) -> dict:
    return {
        **_error_json(errors.total),
        "ghosts": errors.ghosts,
        "by_energy": _table_json(errors.by_energy),
        "ghosts_by_energy": dict(errors.ghosts_by_energy),
    }


def _table_json(table: Mapping[str, Error]) -> dict:
    return {name: _error_json(error) for name, error in table.items()}


def _error_json(error: Error) -> dict:
    return {"count": error.count, "mean": error.mean, "largest": error.largest}


def _plain(kpts: Sequence[int] | Mapping | float):
    if isinstance(kpts, Mapping):
        return dict(kpts)
    return kpts if np.ndim(kpts) == 0 else [int(n) for n in kpts]


# --- as a table ----------------------------------------------------------------------------------


def _line(label: str, cells: Iterable) -> str:
    return f"{label:<40}" + "".join(f"{cell!s:>18}" for cell in cells)


def _values(label: str, values: Sequence[float]) -> str:
    cells = [_millielectronvolts(value) for value in values]
    if len(values) == 2:
        cells.append(f"{100 * values[1] / values[0]:.1f} %" if values[0] else "-")
    return _line(label, cells)


def _millielectronvolts(value: float) -> str:
    value = 1e3 * value
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _means(label: str, every: Mapping[str, Sequence[Evaluated]], value) -> str:
    return _values(label, [float(np.mean([value(e) for e in some])) for some in every.values()])


__all__ = ["H0", "PREDICTED", "Evaluated", "Report", "Structure"]
