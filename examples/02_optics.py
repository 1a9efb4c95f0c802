"""Optical conductivity of GaAs with spin-orbit coupling from the DFT Hamiltonian and from H(0)."""

from pathlib import Path

import numpy as np

from ase_nextham import optics, plot
from ase_nextham.converters import read

data = read(Path(__file__).parent / "data" / "GaAs_soc.h5")
omega = np.linspace(0.5, 8, 151)
curves = []
for label, hamiltonian in (("DFT", data.hamiltonian), ("H(0)", data.h0)):
    sigma = optics.optical_conductivity(data, omega, (8, 8, 8), hamiltonian=hamiltonian, eta=0.1)
    peak = omega[sigma[0, 0].real.argmax()]
    print(f"{label:>5}: largest Re sigma_xx {sigma[0, 0].real.max():.3g} S/m at {peak:.2f} eV")
    curves.append((sigma, label))

plot.plot_optical_conductivity(omega, curves).savefig("GaAs_optics.png", dpi=200)
print("optical conductivity: GaAs_optics.png")
