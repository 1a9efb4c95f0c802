"""H(0) of GaAs with spin-orbit coupling, computed here and compared with that of ABACUS."""

import time
from pathlib import Path

import numpy as np

from ase_nextham import bands, hdf5
from ase_nextham.h0.native.engine import NativeH0

folder = Path(__file__).parent / "data"
stored = hdf5.read(folder / "GaAs_soc.h5")  # of ABACUS 3.9.0
engine = NativeH0(folder / "pseudo", folder / "orbital")

engine.compute(stored.atoms)  # the first time compiles, and reads the files
start = time.perf_counter()
data = engine.compute(stored.atoms)
print(f"H(0), S and r of {data.atoms.symbols}: {time.perf_counter() - start:.2f} s")

error = 1e3 * np.abs((data.h0 - stored.h0).data)
print(f"against ABACUS: at most {error.max():.3f} meV, on average {error.mean():.1e} meV")

kpts = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 3))
eps = [bands.eigenvalues(d.h0, d.overlap, kpts)[..., :26] for d in (data, stored)]
change = 1e3 * np.abs(eps[0] - eps[1]).max()
print(f"bands up to some 10 eV above the gap: at most {change:.3f} meV")
