"""Total energies of densities that are not self-consistent, against ABACUS's that are.

    python benchmarks/harris_energy.py [--all | --only GaAs NaCl_2] [--terms]

The Harris-Foulkes energy of the mini crystals with three densities: the converged one, which has
to give ABACUS's energy; that of coefficients fitted to it; and the superposed atoms, H(0). The
Hamiltonian is made of the same density. Errors are in meV per atom. ``--terms`` prints the parts
beside those of ABACUS's log. The last lines also tell how far errors of the deformed copies of one
crystal differ: a constant error would not matter.

Predicted coefficients are compared by ``crystal.energy(change_of_density(crystal.part, expansion,
coefficients))`` with a :class:`Crystal`. ``--data`` is the folder with ``pseudo``, ``orbital`` and
``abacus``, by default ``../shared/data`` beside the repository. Times are those of the processor.
"""

from __future__ import annotations

import argparse
import os
import re
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase import Atoms

from ase_nextham.bands import eigenvalues, kmesh
from ase_nextham.h0.density import read_density
from ase_nextham.h0.inputfile import read_input
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.h0.stru import read_stru
from ase_nextham.potential_head import fit_density, standard_expansion
from ase_nextham.potential_head.energy import HarrisFoulkes, change_of_density, harris_foulkes
from ase_nextham.units import RYDBERG

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SUBSET = ("Si_0", "C_1", "GaAs_0", "MgO_0", "NaCl_0", "LiF_0", "AlN_2", "BP_3")
TERMS = {
    "E_band": "band",
    "E_one_elec": "one_electron",
    "E_Hartree": "hartree",
    "E_xc": "exchange_correlation",
    "E_Ewald": "ewald",
    "E_entropy(-TS)": "entropy",
    "E_KohnSham": "total",
}
"""ABACUS's names of the parts."""


class Crystal:
    """What the energies of one structure share.

    Parameters
    ----------
    kpts
        Points of the mesh along each reciprocal vector; it contains Gamma.
    width
        Of the Gaussian smearing in eV.
    """

    def __init__(self, engine: NativeH0, atoms: Atoms, kpts: tuple[int, int, int], width: float):
        self.part = engine.local_part(atoms)
        self.h0 = engine.compute(atoms)
        self.mesh = kmesh(atoms, kpts, symmetry=False)
        self.width = width

    def energy(self, change: np.ndarray) -> HarrisFoulkes:
        """With a changed density, as of :func:`harris_foulkes`."""
        part = self.part
        matrix = self.h0.h0 + part.matrix(part.potential(change) - part.v0)
        (eps,) = eigenvalues(matrix, self.h0.overlap, self.mesh.kpts)
        electrons = (1 if part.nspin == 4 else 2) * self.mesh.weights
        return harris_foulkes(part, change, eps, electrons, width=self.width, smearing="gaussian")


@dataclass(frozen=True)
class Run:
    """What ABACUS was told, and the energies in eV that it printed last."""

    atoms: Atoms
    kpts: tuple[int, int, int]
    width: float
    printed: dict[str, float]


def read_run(path: Path) -> Run:
    """Of an archive with one self-consistent run."""
    with TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            names = ("INPUT", "KPT", "STRU", "running_scf.log")
            wanted = [one for one in archive if "/scf/" in one.name and one.name.endswith(names)]
            archive.extractall(folder, wanted, filter="data")
        (inputs,) = Path(folder).rglob("INPUT")
        values = read_input(inputs)
        if not values["smearing_method"].startswith("gauss"):
            raise ValueError(f"{path}: smearing is {values['smearing_method']}, not Gaussian")
        atoms = read_stru(inputs.parent / "STRU").atoms
        kind, mesh = (inputs.parent / "KPT").read_text().split("\n")[2:4]
        if kind.strip() != "Gamma" or mesh.split()[3:] not in ([], ["0"] * 3):
            raise ValueError(f"{path}: the mesh {kind} {mesh} is not one that contains Gamma")
        (log,) = Path(folder).rglob("running_scf.log")
        rows = re.findall(r"^ (E_\S+) +\S+ +(\S+) *$", log.read_text(), re.MULTILINE)
    atoms.set_initial_magnetic_moments(None)
    return Run(
        atoms,
        tuple(int(n) for n in mesh.split()[:3]),
        RYDBERG * float(values["smearing_sigma"]),
        {name: float(value) for name, value in rows},
    )


def errors(arguments, name: str, engine: NativeH0, run: Run) -> list[float]:
    """Print one structure's line; errors in meV per atom of the three densities."""
    crystal = Crystal(engine, run.atoms, run.kpts, run.width)
    part = crystal.part
    density = read_density(arguments.data / "abacus" / "mini_density" / f"{name}.npz")
    elements = zip(dict.fromkeys(part.symbols), part.elements, strict=True)
    expansion = standard_expansion("density", elements)
    label = fit_density(part, expansion, density)
    densities = [
        part.on_waves(density.miller, density.coefficients) - part.valence,
        change_of_density(part, expansion, label.coefficients),
        np.zeros(len(part.vectors)),
    ]
    start = time.process_time()
    energies = [crystal.energy(change) for change in densities]
    spent = (time.process_time() - start) / len(energies)
    expected = run.printed["E_KohnSham"]
    found = [1e3 * (one.total - expected) / len(run.atoms) for one in energies]
    print(f"{name:<10}{expected:16.6f}{found[0]:12.4f}{found[1]:12.4f}{found[2]:12.2f}{spent:8.2f}")
    if arguments.terms:
        for theirs, ours in TERMS.items():
            values = "".join(f"{getattr(one, ours):16.6f}" for one in energies)
            print(f"  {theirs:<16}{run.printed[theirs]:16.6f}{values}")
    return found


def summary(names: list[str], rows: np.ndarray) -> None:
    """Print what all structures say."""
    kinds = np.array([name.rsplit("_", 1)[0] for name in names])
    print("\nmeV per atom             mean of sizes    largest    differences of copies, rms")
    for what, column in zip(("converged", "fitted", "superposed"), rows.T, strict=True):
        copies = [column[kinds == kind] for kind in dict.fromkeys(kinds)]
        apart = np.concatenate([one - one.mean() for one in copies if len(one) > 1] or [[np.nan]])
        print(
            f"{what:<25}{np.abs(column).mean():13.4f}{np.abs(column).max():11.4f}"
            f"{np.sqrt(np.mean(apart**2)):15.4f}"
        )


def main() -> None:
    """Print the table and its summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--all", action="store_true", help="all structures of the mini set")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="names that contain a word")
    parser.add_argument("--terms", action="store_true", help="print the parts of the energy, too")
    arguments = parser.parse_args()
    archives = sorted((arguments.data / "abacus" / "mini").glob("*.tar.xz"))
    names = [path.name.removesuffix(".tar.xz") for path in archives]
    if arguments.only:
        names = [name for name in names if any(word in name for word in arguments.only)]
    elif not arguments.all:
        names = [name for name in names if name in SUBSET]
    engine = NativeH0(
        arguments.data / "pseudo",
        arguments.data / "orbital",
        nspin=1,
        threads=1,
        position=False,
    )
    print(f"{'':<10}{'ABACUS':>16}{'converged':>12}{'fitted':>12}{'superposed':>12}{'time':>8}")
    print(f"{'':<10}{'E / eV':>16}{'error':>12}{'error':>12}{'error':>12}{'s':>8}")
    rows = []
    for name in names:
        run = read_run(arguments.data / "abacus" / "mini" / f"{name}.tar.xz")
        rows.append(errors(arguments, name, engine, run))
    summary(names, np.array(rows))


if __name__ == "__main__":
    main()
