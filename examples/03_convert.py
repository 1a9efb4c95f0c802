"""From one format to another and back, without losing a digit that matters."""

from pathlib import Path

import numpy as np

from ase_nextham.converters import read, write

source = Path(__file__).parent / "data" / "GaAs_soc.h5"
data = read(source)
write("GaAs_abacus", data, format="abacus")  # STRU, INPUT, KPT and matrices for ABACUS and PYATB
back = read("GaAs_abacus")

for name in ("overlap", "hamiltonian"):
    difference = getattr(back, name) - getattr(data, name)
    print(f"{name}: changed by at most {np.abs(difference.data).max():.1g}")
