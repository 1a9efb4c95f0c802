"""Bands of SiC from H(0), from the Hamiltonian that the model predicts, and from DFT.

The model that comes with the package was trained on other strains and displacements of 15
crystals, SiC among them. Trained on runs without spin, it serves H(0) with spin-orbit coupling,
too: of GaAs in this example.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ase_nextham import bands, hdf5, load_model, plot
from ase_nextham.matrix import aligned

folder = Path(__file__).parent / "data"
model = load_model("default", pseudo_dir=folder / "pseudo", orbital_dir=folder / "orbital")
for name in ("GaAs_soc", "SiC"):
    stored = hdf5.read(folder / f"{name}.h5")
    data = replace(stored, hamiltonian=None)
    predicted = stored.h0 + model.predict(data)
    for label, hamiltonian in (("H(0)", stored.h0), ("predicted", predicted)):
        moved, _ = aligned(hamiltonian, stored.hamiltonian, stored.overlap)
        mae = 1e3 * np.abs((moved - stored.hamiltonian).data).mean()
        print(f"{name:>8}, {label:>9}: mean absolute error of H {mae:.3f} meV")
    print(f"{name:>8}, {model.spread(data).in_words()}")

points = {"G": [0, 0, 0], "X": [0.5, 0, 0.5], "L": [0.5, 0.5, 0.5]}  # of fcc: the cell is strained
path = stored.atoms.cell.bandpath("LGX", npoints=120, special_points=points)
curves = []
for label, matrix in {"DFT": stored.hamiltonian, "H(0)": stored.h0, "model": predicted}.items():
    structure = bands.band_structure(matrix, stored.overlap, path, nelectrons=stored.nelectrons)
    gap = bands.band_gap(structure.energies, stored.nelectrons, matrix.spin)
    print(f"{label:>9}: gap along the path {gap}")
    curves.append((structure, label))

plot.plot_bands(curves, emin=-16).savefig("SiC_bands.png", dpi=200)
print("bands: SiC_bands.png")
