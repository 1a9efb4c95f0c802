"""The two-centre tables of a structure's species, kept for the next structure.

Tables depend on two species and on the universal mesh, hence on the largest cutoff in the
structure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

from ase_nextham.h0.native.element import Element
from ase_nextham.h0.native.operators import OrbitalTables, orbital_tables
from ase_nextham.h0.native.projectors import Projectors
from ase_nextham.h0.native.radial import UniversalMesh
from ase_nextham.h0.native.twocenter import TwoCentreTable, projector_set, radial_set

KEPT_BYTES = 2**28
"""Memory for tables that no structure is using; the ones not used for longest go first."""

_kept: OrderedDict[tuple, OrbitalTables | TwoCentreTable] = OrderedDict()
_lock = Lock()


class SpeciesTables:
    """Tables between the species of one structure, made when they are first asked for.

    Parameters
    ----------
    elements, projectors
        Of each species.
    """

    def __init__(self, elements: Sequence[Element], projectors: Sequence[Projectors]):
        self.elements, self.projectors = elements, projectors
        cutoffs = [element.cutoff for element in elements]
        self.mesh = UniversalMesh(max(cutoffs + [kb.cutoff for kb in projectors]))
        self._used: dict[tuple, OrbitalTables | TwoCentreTable] = {}

    def orbitals(self, a: int, b: int) -> OrbitalTables:
        """Tables between the orbitals of two species."""

        def build() -> OrbitalTables:
            return orbital_tables(self.mesh, *(_functions(self.elements[n]) for n in (a, b)))

        return self._get(("orbitals", self.elements[a].key, self.elements[b].key), build)

    def overlaps(self, a: int, b: int) -> TwoCentreTable:
        """Overlaps of the orbitals of species ``a`` and the projectors of species ``b``."""
        kb = self.projectors[b]

        def build() -> TwoCentreTable:
            beta = projector_set(self.mesh, kb.l, kb.r, kb.r_beta, kb.npoints)
            return TwoCentreTable(
                self.mesh, radial_set(self.mesh, *_functions(self.elements[a])), beta
            )

        spin_orbit = len(kb.coefficients) == 4
        return self._get((spin_orbit, self.elements[a].key, self.elements[b].key), build)

    def _get(self, key: tuple, build: Callable):
        if key not in self._used:
            self._used[key] = _from_kept((self.mesh.cutoff, *key), build)
        return self._used[key]


def _functions(element: Element) -> tuple:
    return element.shells, element.mesh, element.functions


def _from_kept(key: tuple, build: Callable):
    with _lock:
        table = _kept.pop(key, None)
    if table is None:
        table = build()
    with _lock:
        _kept[key] = table
        while len(_kept) > 1 and sum(one.nbytes for one in _kept.values()) > KEPT_BYTES:
            _kept.popitem(last=False)
    return table
