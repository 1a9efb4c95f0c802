"""Eigenvalues of ABACUS's matrix files against those that ABACUS printed.

    python benchmarks/abacus_eigenvalues.py [FOLDER ...] [--pseudo-dir DIR] [--orbital-dir DIR]

Each FOLDER holds runs of one crystal (S in one of them, H in one with ``istate.info``); without
any, runs of molecules by ABACUS v3.8.1 among the test data are taken. All k-points and bands are
compared. Bands far above the Fermi level that are made of nearly linearly dependent orbitals
amplify the rounding of the files to nine digits.
"""

from __future__ import annotations

import argparse
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ase_nextham import bands
from ase_nextham.converters import read

RUNS = Path(__file__).parents[1] / "tests" / "data" / "abacus_folders.tar.xz"


def istate(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """k-points, and energies in eV, shape (nkpts, nbands), of ABACUS up to 3.9, nspin 1 and 4."""
    blocks = re.split(r"BAND .*?Kpoint = *\d+ *\((.*?)\)", path.read_text())[1:]
    kpts = [[float(x) for x in text.split()] for text in blocks[::2]]
    return np.array(kpts), np.array(
        [np.array(text.split(), float).reshape(-1, 3)[:, 1] for text in blocks[1::2]]
    )


def table(folders: Iterable[Path], **options) -> None:
    """Print a line for each folder."""
    print("largest difference in eV, of bands up to ... above E_F")
    print(f"{'':<18}{'k-points':>9}{'bands':>6}{'0 eV':>9}{'5 eV':>9}{'15 eV':>9}{'all':>9}")
    for folder in folders:
        data = read(folder, **options)
        kpts, printed = istate(next(folder.rglob("istate.info")))
        found = bands.eigenvalues(data.best_hamiltonian(), data.overlap, kpts)[0]
        error = np.abs(found[:, : printed.shape[1]] - printed)
        limits = [data.fermi_level + up for up in (0, 5, 15, np.inf)]
        worst = "".join(f"{error[printed <= limit].max():9.1e}" for limit in limits)
        print(f"{folder.name:<18}{len(kpts):9}{printed.shape[1]:6}{worst}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--pseudo-dir")
    parser.add_argument("--orbital-dir")
    options = parser.parse_args()
    if options.folders:
        where = {"pseudo_dir": options.pseudo_dir, "orbital_dir": options.orbital_dir}
        table(options.folders, **where)
    else:
        with TemporaryDirectory() as folder, tarfile.open(RUNS) as archive:
            archive.extractall(folder, filter="data")
            table(Path(folder) / "v3.8.1" / name for name in ("h2o", "h2o_soc", "oh_soc"))
