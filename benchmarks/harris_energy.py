"""Total energies without self-consistency, against ABACUS's that are self-consistent.

    python benchmarks/harris_energy.py [--all | --names "GaAs_*" NaCl_2] [--terms]
    python benchmarks/harris_energy.py --model MODEL --names "AlP_*" "SiC_*" "LiCl_*"

Of the mini crystals with three densities: the converged one, which has to give ABACUS's energy;
that of coefficients fitted to it; and the superposed atoms, H(0). With ``--model``, of the density
that a model with the density head predicts from H(0); name crystals that it was not trained on.
The Hamiltonian is made of the same density. There are three columns of errors for each, in meV per
atom: the energy of Harris and Foulkes, that of the density of the eigenstates (after Kohn and
Sham), and with an estimate of its second-order error taken off, which is what the calculator gives.
``--terms`` prints the parts of the last beside those of ABACUS's log. The last lines also tell how
far errors of the deformed copies of one crystal differ: a constant error would not matter.

``--data`` is the folder with ``pseudo``, ``orbital`` and ``abacus``, by default
``../shared/data`` beside the repository. Times are those of the processor, for one density.
"""

from __future__ import annotations

import argparse
import os
import re
import tarfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase import Atoms

from ase_nextham.h0.density import read_density
from ase_nextham.h0.inputfile import read_input
from ase_nextham.h0.native.energy import nelectrons
from ase_nextham.h0.native.engine import NativeH0
from ase_nextham.h0.stru import read_stru
from ase_nextham.potential_head import fit_density, standard_expansion
from ase_nextham.potential_head.energy import (
    TotalEnergy,
    change_of_density,
    harris_foulkes,
    kohn_sham,
)
from ase_nextham.potential_head.first_density import mesh_of_density, output_density
from ase_nextham.prediction import load_model
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

FUNCTIONALS = ("Harris", "states", "total")


class Crystal:
    """What the energies of one structure share.

    Parameters
    ----------
    run
        The structure, its k-points and its Gaussian smearing.
    """

    def __init__(self, engine: NativeH0, run: Run):
        self.part = engine.local_part(run.atoms)
        self.data = engine.compute(run.atoms)
        self.mesh = mesh_of_density(self.part, self.data.h0, run.kpts)
        self.smearing = {"width": run.width, "smearing": "gaussian"}

    def energies(self, change: np.ndarray) -> list[TotalEnergy]:
        """Of a changed density, those of :data:`FUNCTIONALS`."""
        part, overlap = self.part, self.data.overlap
        matrix = self.data.h0 + part.matrix(part.potential(change) - part.v0)
        output, eps = output_density(
            part, matrix, overlap, nelectrons(part), self.mesh, **self.smearing
        )
        electrons = (1 if part.nspin == 4 else 2) * self.mesh.weights
        states = (part, change, output, eps, electrons)
        return [
            harris_foulkes(part, change, eps, electrons, **self.smearing),
            kohn_sham(*states, screened=False, **self.smearing),
            kohn_sham(*states, **self.smearing),
        ]


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


def densities(arguments, name: str, crystal: Crystal, model) -> dict[str, np.ndarray]:
    """Changes of the density by what they are."""
    part = crystal.part
    if model is not None:
        _, found = model.coefficients(crystal.data)
        expansion = model.expansion_on(part)
        return {"predicted": change_of_density(part, expansion, found.mean(axis=0))}
    density = read_density(arguments.data / "abacus" / "mini_density" / f"{name}.npz")
    elements = zip(dict.fromkeys(part.symbols), part.elements, strict=True)
    expansion = standard_expansion("density", elements)
    label = fit_density(part, expansion, density)
    return {
        "converged": part.on_waves(density.miller, density.coefficients) - part.valence,
        "fitted": change_of_density(part, expansion, label.coefficients),
        "superposed": np.zeros(len(part.vectors)),
    }


def errors(arguments, name: str, crystal: Crystal, run: Run, model) -> dict[str, list[float]]:
    """Print one structure's line; errors in meV per atom of each density."""
    changes = densities(arguments, name, crystal, model)
    start = time.process_time()
    energies = {what: crystal.energies(change) for what, change in changes.items()}
    spent = (time.process_time() - start) / len(energies)
    expected = run.printed["E_KohnSham"]
    found = {
        what: [1e3 * (one.total - expected) / len(run.atoms) for one in several]
        for what, several in energies.items()
    }
    columns = "".join(f"{x:10.3f}" for several in found.values() for x in several)
    print(f"{name:<10}{expected:16.6f}{columns}{spent:8.2f}", flush=True)
    if arguments.terms:
        for theirs, ours in TERMS.items():
            values = "".join(f"{getattr(one[-1], ours):16.6f}" for one in energies.values())
            print(f"  {theirs:<16}{run.printed[theirs]:16.6f}{values}")
    return found


def summary(names: list[str], rows: list[dict[str, list[float]]]) -> None:
    """Print what all structures say."""
    kinds = np.array([name.rsplit("_", 1)[0] for name in names])
    print("\nmeV per atom               mean  of sizes   largest   differences of copies, rms")
    for what in rows[0]:
        for number, functional in enumerate(FUNCTIONALS):
            column = np.array([row[what][number] for row in rows])
            copies = [column[kinds == kind] for kind in dict.fromkeys(kinds)]
            apart = [one - one.mean() for one in copies if len(one) > 1] or [np.array([np.nan])]
            print(
                f"{what:<12}{functional:<8}{column.mean():11.3f}{np.abs(column).mean():10.3f}"
                f"{np.abs(column).max():10.3f}{np.sqrt(np.mean(np.concatenate(apart) ** 2)):12.3f}"
            )


def main() -> None:
    """Print the table and its summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--all", action="store_true", help="all structures of the mini set")
    parser.add_argument("--names", nargs="+", metavar="PATTERN", help="names of structures")
    parser.add_argument("--model", help="take the density that this model predicts")
    parser.add_argument("--terms", action="store_true", help="print the parts of the energy, too")
    arguments = parser.parse_args()
    archives = sorted((arguments.data / "abacus" / "mini").glob("*.tar.xz"))
    names = [path.name.removesuffix(".tar.xz") for path in archives]
    if arguments.names:
        names = [name for name in names if any(fnmatch(name, one) for one in arguments.names)]
    elif not arguments.all:
        names = [name for name in names if name in SUBSET]
    folders = (arguments.data / "pseudo", arguments.data / "orbital")
    engine = NativeH0(*folders, nspin=1, threads=1, position=False)
    model = arguments.model
    if model is not None:
        model = load_model(model, pseudo_dir=folders[0], orbital_dir=folders[1])
    kinds = ("converged", "fitted", "superposed") if model is None else ("predicted",)
    titles = "".join(f"{'error of ' + what:>30}" for what in kinds)
    print(f"{'':<10}{'ABACUS':>16}{titles}{'time':>8}")
    titles = "".join(f"{one:>10}" for _ in kinds for one in FUNCTIONALS)
    print(f"{'':<10}{'E / eV':>16}{titles}{'s':>8}")
    rows = []
    for name in names:
        run = read_run(arguments.data / "abacus" / "mini" / f"{name}.tar.xz")
        rows.append(errors(arguments, name, Crystal(engine, run), run, model))
    summary(names, rows)


if __name__ == "__main__":
    main()
