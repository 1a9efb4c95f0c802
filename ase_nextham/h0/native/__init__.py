"""H(0), S and r(R) from pseudopotentials and orbitals alone, with the numbers of ABACUS.

Each term is built as ABACUS builds it, on the same meshes and with the same thresholds, so that
networks trained on its H(0) see the same input. Inside this folder everything is in Rydberg
atomic units (lengths in Bohr, energies in Ry, e^2 = 2, hbar^2 / 2m = 1) and in ABACUS's orbital
convention; :mod:`ase_nextham.h0.native.engine` converts where results leave.
"""
