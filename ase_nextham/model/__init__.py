"""The network: the correction dH from H(0), by the paper's method and by the released one.

:func:`load` reads a model, ``Model.predict`` gives dH of an LCAOData. :mod:`graph` makes tensors of
structures, :mod:`network` is the paper's network (of :mod:`aligned`, :mod:`layers`,
:mod:`attention` and :mod:`tracegrad`), :mod:`ensemble` puts one for each range of distances
together, :mod:`bundle` is a model on disk. :mod:`angular` has spherical harmonics and 3j symbols,
:mod:`irreps` turns blocks of matrices into irreps and back, :mod:`parts` says which part of a
matrix they are taken from, :mod:`released` evaluates the networks whose weights are published. With
``h0.native`` this is the only folder that imports torch. docs/network.md draws how data flows.
"""

from ase_nextham.model.bundle import ModelInfo
from ase_nextham.model.predict import Model, load

__all__ = ["Model", "ModelInfo", "load"]
