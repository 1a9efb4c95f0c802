"""Hamiltonians in numerical atomic orbitals without the self-consistent loop.

An ASE calculator for H(0) and predicted Hamiltonians, their bands and optics, and readers and
writers for the files of ABACUS and others. ``NextHAMCalculator`` is the place to start.
"""

from ase_nextham.basis import Basis
from ase_nextham.data import LCAOData
from ase_nextham.matrix import AtomPairs, LCAOMatrix

__version__ = "0.1.0"

__all__ = [
    "AtomPairs",
    "Basis",
    "LCAOData",
    "LCAOMatrix",
    "NextHAMCalculator",
    "__version__",
    "load_model",
]


def __getattr__(name: str):
    # the calculator brings h5py and more, which a script that only reads a matrix need not load
    if name == "NextHAMCalculator":
        from ase_nextham.calculator import NextHAMCalculator

        return NextHAMCalculator
    if name == "load_model":
        from ase_nextham.prediction import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
