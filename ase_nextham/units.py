"""The units of this package, and the factors to those of ABACUS.

Inside, energies are in eV and lengths in Angstrom. ABACUS writes matrices in
Rydberg and Bohr. The factors are ABACUS's own (``source_base/constants.h``,
``Ry_to_eV`` and ``BOHR_TO_A``), not CODATA's: with CODATA's Rydberg the
eigenvalues of a matrix file differ from those in ABACUS's own log by 2e-5 eV,
with these by less than 1e-6 eV.
"""

RYDBERG = 13.605698
"""eV per Rydberg, as in ABACUS."""

BOHR = 0.529177
"""Angstrom per Bohr, as in ABACUS."""

CONDUCTIVITY = 2.434134807664e6
"""S/m per (e^2 / hbar) / Angstrom (CODATA 2018; exact since the SI of 2019)."""

PERMITTIVITY = 1.3451879321e4
"""S/m per eV: eps0 * omega for a photon of 1 eV (CODATA 2018)."""
