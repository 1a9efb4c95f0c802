"""How well about a hundred numbers per atom represent dH, crystal by crystal.

    python benchmarks/potential_representation.py [--all] [--kind density potential]
    python benchmarks/potential_representation.py --only GaAs_0 NaCl_2 [--ridge 1e-5]
    python benchmarks/potential_representation.py --from-dh --only Si_0 GaAs_soc Au_soc MoS2_soc

Coefficients are fitted to the converged density, or with ``--from-dh`` to dH alone, and dH is
made of them again. ``left`` is the gauge MAE of what is missing, relative to that of H(0), over
elements above 1e-12 Ry; bands are compared on 12 k-points, occupied ones and four empty ones,
after one common shift, all in meV. ``--data`` is the folder with ``pseudo``, ``orbital`` and
``abacus``, by default ``../shared/data`` beside the repository; runs of ``abacus/scf``, whose
names have no number, have no density, and are fitted to dH. Times are those of the processor.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from ase_nextham import LCAOData
from ase_nextham.bands import eigenvalues
from ase_nextham.expansion.fit import RIDGE
from ase_nextham.h0.density import read_density
from ase_nextham.h0.folder import read_folder
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.h0.native.localpart import LocalPart
from ase_nextham.matrix import LCAOMatrix, aligned
from ase_nextham.potential_head import (
    EXPONENTS,
    dh_from_coefficients,
    fit_density,
    fit_matrix,
    standard_expansion,
)
from ase_nextham.units import RYDBERG

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SUBSET = ("Si_0", "C_1", "GaAs_0", "MgO_0", "NaCl_0", "LiF_0", "AlN_2", "BP_3")
EMPTY = 4


def read_run(path: Path, data: Path) -> LCAOData:
    """What ABACUS wrote, without the moments that only switch its presets."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folders hold different operators
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        parts = sorted(inputs.parent for inputs in Path(folder).rglob("INPUT"))
        run = read_folder(parts, pseudo_dir=data / "pseudo", orbital_dir=data / "orbital")
    run.atoms.set_initial_magnetic_moments(None)
    return run


def kpoints() -> np.ndarray:
    """Gamma and eleven others."""
    rest = np.random.default_rng(0).uniform(-0.5, 0.5, size=(11, 3))
    return np.concatenate([np.zeros((1, 3)), rest])


class Comparison:
    """Errors of Hamiltonians of one structure against the self-consistent one."""

    def __init__(self, run: LCAOData):
        self.run = run
        self.there = np.abs(run.hamiltonian.data) > 1e-12 * RYDBERG
        electrons = run.electron_count()
        occupied = int(np.ceil(electrons / (1 if run.hamiltonian.spin == "spinor" else 2)))
        self.bands = slice(0, occupied + EMPTY * (2 if run.hamiltonian.spin == "spinor" else 1))
        self.expected = self._energies(run.hamiltonian)

    def _energies(self, matrix: LCAOMatrix) -> np.ndarray:
        return eigenvalues(matrix, self.run.overlap, kpoints())[0][:, self.bands]

    def of(self, dh: LCAOMatrix) -> tuple[float, float, float, float]:
        """Gauge MAE and largest error of the elements, mean and largest of the bands, in meV."""
        found = self.run.h0 + dh
        moved, _ = aligned(found, self.run.hamiltonian, self.run.overlap)
        error = moved - self.run.hamiltonian
        kept, _ = error.cut_to(self.run.hamiltonian.pairs)  # ABACUS leaves out zeros
        error = np.abs(kept.data[self.there])
        bands = self._energies(found) - self.expected
        bands = np.abs(bands - bands.mean())
        return tuple(1e3 * float(x) for x in (error.mean(), error.max(), bands.mean(), bands.max()))


def line(arguments, name: str, engine: NativeH0, run: LCAOData) -> list[tuple]:
    """Print what each kind leaves of one structure's errors; (kind, left, worst band)."""
    part: LocalPart = engine.local_part(run.atoms)
    comparison = Comparison(run)
    nothing = comparison.of(0 * run.h0)
    density = arguments.data / "abacus" / "mini_density" / f"{name}.npz"
    found = []
    for kind in arguments.kind:
        elements = zip(dict.fromkeys(part.symbols), part.elements, strict=True)
        expansion = standard_expansion(
            kind, elements, counts=arguments.counts, exponents=tuple(arguments.exponents)
        )
        start = time.process_time()
        if arguments.from_dh or not density.is_file():
            dh = run.hamiltonian - run.h0
            label = fit_matrix(part, expansion, dh, run.overlap, ridge=arguments.ridge)
        else:
            label = fit_density(part, expansion, read_density(density), ridge=arguments.ridge)
        fitted = time.process_time()
        dh = dh_from_coefficients(part, expansion, label.coefficients)
        end = time.process_time()
        error = comparison.of(dh)
        left = 100 * error[0] / nothing[0]
        numbers = len(label.coefficients) / len(part.symbols)
        print(
            f"{name:<16}{kind:<10}{numbers:6.0f}{nothing[0]:9.3f}{left:8.2f}{error[1]:8.1f}"
            f"{nothing[2]:9.0f}{error[2]:8.2f}{error[3]:8.1f}{label.residual:9.4f}"
            f"{fitted - start:7.1f}{end - fitted:7.2f}",
            flush=True,
        )
        found.append((kind, left, error[2], error[3]))
    return found


def main() -> None:
    """Print the table and its summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--all", action="store_true", help="all structures of the mini set")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="names that contain a word")
    parser.add_argument("--kind", nargs="+", default=["density", "potential"])
    parser.add_argument("--from-dh", action="store_true", help="fit to dH, not to densities")
    parser.add_argument("--counts", nargs="+", type=int)
    parser.add_argument("--exponents", nargs=2, type=float, default=EXPONENTS)
    parser.add_argument("--ridge", type=float, default=RIDGE)
    arguments = parser.parse_args()
    folder = arguments.data / "abacus"
    archives = sorted(folder.glob("mini/*.tar.xz")) + sorted(folder.glob("scf/*.tar.xz"))
    names = {path: path.name.removesuffix(".tar.xz") for path in archives}
    if arguments.only:
        chosen = [p for p in archives if any(word in names[p] for word in arguments.only)]
    elif arguments.all:
        chosen = [path for path in archives if path.parent.name == "mini"]
    else:
        chosen = [path for path in archives if names[path] in SUBSET]
    print(f"{'':<26}{'':>6}{'H(0)':>9}{'left':>8}{'largest':>8}", end="")
    print(f"{'bands':>9}{'bands':>8}{'bands':>8}")
    print(f"{'':<26}{'n/atom':>6}{'/ meV':>9}{'/ %':>8}{'/ meV':>8}", end="")
    print(f"{'of H(0)':>9}{'mean':>8}{'max':>8}{'residual':>9}{'fit/s':>7}{'dH/s':>7}")
    rows = []
    for path in chosen:
        run = read_run(path, arguments.data)
        engine = NativeH0(
            arguments.data / "pseudo",
            arguments.data / "orbital",
            nspin=4 if run.h0.spin == "spinor" else 1,
            threads=1,
        )
        rows += line(arguments, names[path], engine, run)
    for kind in arguments.kind:
        left, mean, largest = np.array([row[1:] for row in rows if row[0] == kind]).T
        print(
            f"{kind}, {len(left)} structures: median {np.median(left):.2f} %, "
            f"worst {left.max():.2f} % of H(0)'s gauge MAE left; "
            f"bands: median {np.median(mean):.2f} meV, worst {largest.max():.1f} meV"
        )


if __name__ == "__main__":
    main()
