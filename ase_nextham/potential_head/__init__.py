"""dH from about a hundred numbers per atom: where the expansion meets the engine of H(0).

``dH_ij(R) = <i 0| dV |j R>`` with a local potential dV without spin. Either dV itself is expanded
in atom-centred functions (kind ``"potential"``), or the change of the density is (kind
``"density"``), and the Hartree, exchange and correlation potentials are computed from it.
Hermiticity, the sparsity of S and all symmetries of dH hold by form.
"""

from ase_nextham.potential_head.apply import (
    EXPONENTS,
    change_of_potential,
    coefficient_gradient,
    dh_from_coefficients,
    hamiltonian_from_coefficients,
    plane_wave_sums,
    standard_expansion,
)
from ase_nextham.potential_head.labels import Label, fit_density
from ase_nextham.potential_head.matrix_fit import fit_matrix

__all__ = [
    "EXPONENTS",
    "Label",
    "change_of_potential",
    "coefficient_gradient",
    "dh_from_coefficients",
    "fit_density",
    "fit_matrix",
    "hamiltonian_from_coefficients",
    "plane_wave_sums",
    "standard_expansion",
]
