"""Bands of SiC from H(0), from the Hamiltonian that a network predicts, and from DFT.

The model was trained on other strains and displacements of 15 crystals, SiC among them. Trained on
runs without spin, it serves H(0) with spin-orbit coupling, too: of GaAs in this example.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ase_nextham import bands, hdf5, plot
from ase_nextham.matrix import aligned
from ase_nextham.model import load

folder = Path(__file__).parent / "data"
model = load(folder / "mini_model")
for name in ("GaAs_soc", "SiC"):
    stored = hdf5.read(folder / f"{name}.h5")
    predicted = stored.h0 + model.predict(replace(stored, hamiltonian=None))
    for label, hamiltonian in (("H(0)", stored.h0), ("predicted", predicted)):
        moved, _ = aligned(hamiltonian, stored.hamiltonian, stored.overlap)
        mae = 1e3 * np.abs((moved - stored.hamiltonian).data).mean()
        print(f"{name:>8}, {label:>9}: mean absolute error of H {mae:.2f} meV")

points = {"G": [0, 0, 0], "X": [0.5, 0, 0.5], "L": [0.5, 0.5, 0.5]}  # of fcc: the cell is strained
path = stored.atoms.cell.bandpath("LGX", npoints=120, special_points=points)
curves = []
for label, hamiltonian in (("DFT", stored.hamiltonian), ("H(0)", stored.h0), ("model", predicted)):
    structure = bands.band_structure(
        hamiltonian, stored.overlap, path, nelectrons=stored.nelectrons, atoms=stored.atoms
    )
    gap = bands.band_gap(structure.energies, stored.nelectrons, hamiltonian.spin)
    print(f"{label:>9}: gap along the path {gap}")
    curves.append((structure, label))

plot.plot_bands(curves, emin=-16).savefig("SiC_bands.png", dpi=200)
print("bands: SiC_bands.png")
