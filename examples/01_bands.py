"""Bands of GaAs with spin-orbit coupling: H(0) beside the self-consistent DFT Hamiltonian."""

from pathlib import Path

from ase_nextham import bands, plot
from ase_nextham.converters import read

data = read(Path(__file__).parent / "data" / "GaAs_soc.h5")
print(f"{data.atoms.symbols}, {data.nelectrons:g} electrons: {data.hamiltonian}")

path = data.atoms.cell.bandpath("LGX", npoints=120)
curves = []
for label, hamiltonian in (("DFT", data.hamiltonian), ("H(0)", data.h0)):
    structure = bands.band_structure(
        hamiltonian, data.overlap, path, nelectrons=data.nelectrons, atoms=data.atoms
    )
    gap = bands.band_gap(structure.energies, data.nelectrons, hamiltonian.spin)
    print(f"{label:>5}: Fermi level {structure.reference:7.3f} eV, gap along L-G-X {gap}")
    curves.append((structure, label))

plot.plot_bands(curves).savefig("GaAs_bands.png", dpi=200)
print("bands: GaAs_bands.png")
