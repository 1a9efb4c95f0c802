"""Functions of space as sums of atom-centred functions: about a hundred numbers per atom.

A change of the density, or of the potential, of a crystal is written as
``sum_a,nlm c_a,nlm f_nl(|r - tau_a|) Y_lm(r - tau_a)``, repeated with the lattice. The functions
are Gaussians, so their Fourier transforms are known in closed form and the sum over all cells is
exact. Everything here is plain numbers: what makes matrix elements of such a function, or
predicts its coefficients, imports this package and not the other way round.

Lengths are in Bohr and energies in Ry, as in :mod:`ase_nextham.h0.native`; harmonics are in
ABACUS's convention.
"""

from ase_nextham.expansion.expansion import KINDS, Expansion
from ase_nextham.expansion.fit import fit
from ase_nextham.expansion.radial import RadialFunctions, even_tempered
from ase_nextham.expansion.sums import PlaneWaveSums

__all__ = ["KINDS", "Expansion", "PlaneWaveSums", "RadialFunctions", "even_tempered", "fit"]
