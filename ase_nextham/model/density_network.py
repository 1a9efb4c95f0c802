"""Networks of the density head: the change of the density from the one that H(0) makes.

The density of H(0)'s own eigenstates differs from that of the superposed atoms by the *first*
change. Screening turns it into the self-consistent one. Here both are coefficients of atom-centred
functions (:mod:`ase_nextham.expansion`); each atom's are predicted from its own of the first
change, from the Coulomb potential that the first change of all atoms makes at its functions, and
from a few numbers that describe the free atom. None of these names an element, so that elements
which a network has not seen have a meaning for it.

Three networks, each with the one before inside:

``"linear"``
    One matrix for each l, the same for all atoms: linear response.
``"two-layer"``
    Added to it, a linear map, a gate and another linear map.
``"transformer"``
    Instead of the first map, attention blocks of the paper's network, with pair features of H(0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from ase_nextham.basis import convention_matrix
from ase_nextham.model.attention import BondProduct, Bonds
from ase_nextham.model.graph import Graph
from ase_nextham.model.irreps import Irrep, Irreps
from ase_nextham.model.layers import (
    SCALAR,
    FeedForward,
    Gaussians,
    LayerNorm,
    Linear,
    added,
    irrep_name,
    joined,
    multiplicities,
    smooth_step,
    summed,
)
from ase_nextham.model.network import Architecture, Block, H0Descriptor

NETWORKS = ("linear", "two-layer", "transformer")
"""Kinds of networks."""

_OUTPUT = 0.05
"""Size of the initial weights after the gate: training begins near the linear map."""

_SPREAD = 0.05
"""Added to the spread of the numbers of free atoms, some of which hardly differ."""


@dataclass(frozen=True)
class DensityArchitecture:
    """What a network of the density head is made of.

    Parameters
    ----------
    counts
        Radial functions of l = 0, 1, ... of every element.
    scalars
        How many numbers describe a free atom.
    network
        One of :data:`NETWORKS`.
    hidden
        Channels between the maps.
    layers, heads, gaussians, cutoff
        Of the transformer: blocks, heads of their attention, Gaussians of the distance, and how
        far an atom sees, in Angstrom.
    first_density
        Whether the first change of the density is read. Without it H(0) is never diagonalised,
        and a transformer has to do with blocks of H(0) alone.
    """

    counts: tuple[int, ...]
    scalars: int
    network: str = "two-layer"
    hidden: str = "32x0e+16x1o+12x2e+10x3o+8x4e"
    layers: int = 1
    heads: int = 2
    gaussians: int = 12
    cutoff: float = 5.0
    first_density: bool = True

    def __post_init__(self):
        object.__setattr__(self, "counts", tuple(int(n) for n in self.counts))
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts={self.counts}: there is at least one function of each l")
        if self.network not in NETWORKS:
            raise ValueError(
                f"unknown network {self.network!r}; known: {', '.join(map(repr, NETWORKS))}"
            )
        if SCALAR not in multiplicities(self.hidden):
            raise ValueError(f"the channels {self.hidden!r} need scalars (0e)")
        if not self.first_density and self.network != "transformer":
            raise ValueError(
                "without the first density only the transformer sees anything of a structure; the "
                f"network is {self.network!r}"
            )
        for name in ("scalars", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.gaussians < 2 or self.cutoff < 1:
            raise ValueError(
                f"gaussians = {self.gaussians} and cutoff = {self.cutoff} must be at least 2 and 1"
            )

    @property
    def coefficients(self) -> dict[Irrep, int]:
        """Irreps of the coefficients of an atom."""
        return {(l, (-1) ** l): n for l, n in enumerate(self.counts)}

    @property
    def size(self) -> int:
        """Coefficients of an atom."""
        return sum((2 * l + 1) * n for l, n in enumerate(self.counts))


@dataclass(frozen=True, eq=False)
class AtomInputs:
    """What is known of the atoms of one structure or several, as tensors on one device.

    Parameters
    ----------
    induced
        Coefficients of the first change of the density, irreps (natoms, 2l+1, counts[l]).
    field
        Its Coulomb potential at the functions of each atom, in Ry, of the same shapes.
    elements
        Numbers that describe the free atoms, shape (natoms, scalars).
    structure
        To which structure each atom belongs, shape (natoms,).
    graph
        Neighbours and H(0), for the transformer.
    """

    induced: Irreps
    field: Irreps
    elements: Tensor
    structure: Tensor
    graph: Graph | None = None

    @classmethod
    def of(
        cls,
        architecture: DensityArchitecture,
        induced: ndarray,
        field: ndarray,
        elements: ndarray,
        graph: Graph | None = None,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> AtomInputs:
        """The tensors of one structure.

        Parameters
        ----------
        induced, field
            As :class:`ase_nextham.expansion.Expansion` orders coefficients, (ncoefficients,).
        elements
            Shape (natoms, scalars).
        graph
            From :meth:`DensityEnsemble.graph`.

        Raises
        ------
        ValueError
            If sizes do not fit the architecture.
        """
        natoms = len(elements)
        for name, values in (("induced", induced), ("field", field)):
            if np.shape(values) != (natoms * architecture.size,):
                raise ValueError(
                    f"{name} has shape {np.shape(values)}, but {natoms} atoms have "
                    f"({natoms * architecture.size},) coefficients"
                )
        if np.shape(elements) != (natoms, architecture.scalars):
            raise ValueError(
                f"{np.shape(elements)} numbers describe the atoms, ({natoms}, "
                f"{architecture.scalars}) are expected"
            )
        return cls(
            induced=to_irreps(torch.tensor(induced, dtype=dtype), architecture.counts),
            field=to_irreps(torch.tensor(field, dtype=dtype), architecture.counts),
            elements=torch.tensor(elements, dtype=dtype),
            structure=torch.zeros(natoms, dtype=torch.int64),
            graph=graph,
        )

    def __len__(self):
        return len(self.elements)

    def to(self, device=None, dtype: torch.dtype | None = None) -> AtomInputs:
        """The same on a device or in another precision."""

        def moved(features: Irreps) -> Irreps:
            return {irrep: x.to(device=device, dtype=dtype) for irrep, x in features.items()}

        return replace(
            self,
            induced=moved(self.induced),
            field=moved(self.field),
            elements=self.elements.to(device=device, dtype=dtype),
            structure=self.structure.to(device=device),
            graph=None if self.graph is None or device is None else self.graph.to(device),
        )


def to_irreps(coefficients: Tensor, counts: Sequence[int]) -> Irreps:
    """Irreps (natoms, 2l+1, counts[l]) of coefficients (ncoefficients,) in ABACUS's order."""
    sizes = [(2 * l + 1) * n for l, n in enumerate(counts)]
    pieces = coefficients.reshape(-1, sum(sizes)).split(sizes, dim=1)
    found = {}
    for l, (n, piece) in enumerate(zip(counts, pieces, strict=True)):
        turn = torch.tensor(convention_matrix(l, "abacus"), dtype=piece.dtype, device=piece.device)
        found[l, (-1) ** l] = (piece.reshape(-1, n, 2 * l + 1) @ turn).transpose(1, 2)
    return found


def to_coefficients(features: Irreps, counts: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_irreps`."""
    pieces = []
    for l in range(len(counts)):
        x = features[l, (-1) ** l]
        turn = torch.tensor(convention_matrix(l, "abacus"), dtype=x.dtype, device=x.device)
        pieces.append((x.transpose(1, 2) @ turn.T).flatten(1))
    return torch.cat(pieces, dim=1).flatten()


class DensityNetwork(nn.Module):
    """One member: coefficients of the change of the density, without charge.

    Parameters
    ----------
    architecture
        What it is made of.
    charges
        What each function of l = 0 adds to the charge of a cell, shape (counts[0],).
    shells
        Of the padded blocks of H(0), for the transformer.

    Attributes
    ----------
    scale_induced, scale_field, scale_...
        Buffers by which inputs are multiplied, and the result is divided by that of ``induced``;
        training sets them from its data.
    mean, spread
        Of the numbers of free atoms in training data.
    """

    def __init__(
        self,
        architecture: DensityArchitecture,
        charges: Sequence[float],
        shells: Sequence[int],
    ):
        super().__init__()
        self.architecture = architecture
        own = architecture.coefficients
        inputs = summed(own, own) if architecture.first_density else {}
        for irrep in own:
            for name in ("induced", "field"):
                self.register_buffer(f"scale_{name}_{irrep_name(irrep)}", torch.ones(()))
        self.register_buffer("mean", torch.zeros(architecture.scalars))
        self.register_buffer("spread", torch.ones(architecture.scalars))
        self.register_buffer("charges", torch.tensor(charges, dtype=torch.get_default_dtype()))
        self.response = Linear(inputs, own, bias=False) if inputs else None
        self.correction = None
        atom = summed(inputs, {SCALAR: architecture.scalars})
        if architecture.network == "two-layer":
            self.correction = FeedForward(atom, multiplicities(architecture.hidden), own)
            last = self.correction.second
        elif architecture.network == "transformer":
            self.correction = _Attention(architecture, atom, own, shells)
            last = self.correction.decode.second
        if self.correction is not None:
            with torch.no_grad():
                for weight in last.weights.values():
                    weight.mul_(_OUTPUT)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def set_scales(self, several: Sequence[AtomInputs]) -> None:
        """Take the typical size of the inputs from some structures."""
        for name in ("induced", "field"):
            for irrep in self.architecture.coefficients:
                every = torch.cat([getattr(one, name)[irrep].flatten() for one in several])
                size = every.double().square().mean().sqrt()
                self._scale(name, irrep).fill_(1 / size if size > 0 else 1)
        elements = torch.cat([one.elements for one in several])
        self.mean.copy_(elements.mean(dim=0))
        self.spread.copy_(elements.std(dim=0, unbiased=False) + _SPREAD)

    def features(self, inputs: AtomInputs) -> Irreps:
        """First change and field in their typical sizes: what :attr:`response` maps."""
        return joined(*(self._scaled(inputs, name) for name in ("induced", "field")))

    def forward(self, inputs: AtomInputs) -> Tensor:
        """Coefficients, shape (ncoefficients,), as the expansion orders them."""
        features = {} if self.response is None else self.features(inputs)
        found = None if self.response is None else self.response(features)
        if self.correction is not None:
            # further from what was trained on than this, nothing is known anyway
            elements = ((inputs.elements - self.mean) / self.spread).clamp(-3, 3)
            atom = joined(features, {SCALAR: elements[:, None]})
            if isinstance(self.correction, _Attention):
                change = self.correction(atom, inputs.graph)
            else:
                change = self.correction(atom)
            found = change if found is None else added(found, change)
        found = {irrep: x / self._scale("induced", irrep) for irrep, x in found.items()}
        found[SCALAR] = self.neutral(found[SCALAR], inputs.structure)
        return to_coefficients(found, self.architecture.counts)

    def neutral(self, scalars: Tensor, structure: Tensor) -> Tensor:
        """As :meth:`ase_nextham.expansion.Expansion.neutral` does it."""
        charge = scalars[:, 0] @ self.charges
        count = int(structure[-1]) + 1
        total = charge.new_zeros(count).index_add(0, structure, charge)
        atoms = torch.bincount(structure, minlength=count).to(charge.dtype)
        excess = total / (atoms * (self.charges @ self.charges))
        return scalars - excess[structure][:, None, None] * self.charges

    def _scaled(self, inputs: AtomInputs, name: str) -> Irreps:
        features = getattr(inputs, name)
        return {irrep: x * self._scale(name, irrep) for irrep, x in features.items()}

    def _scale(self, name: str, irrep: Irrep) -> Tensor:
        return self.get_buffer(f"scale_{name}_{irrep_name(irrep)}")


class _Attention(nn.Module):
    """Blocks of the paper's network, with H(0) on atoms and bonds; what atoms have at the end."""

    def __init__(
        self,
        architecture: DensityArchitecture,
        atom: Mapping[Irrep, int],
        outputs: Mapping[Irrep, int],
        shells: Sequence[int],
    ):
        super().__init__()
        hidden, k = multiplicities(architecture.hidden), architecture.gaussians
        own = Architecture(
            features=architecture.hidden,
            layers=architecture.layers,
            heads=architecture.heads,
            gaussians=k,
            tracegrad=False,
        )
        self.cutoff = architecture.cutoff
        self.descriptor = H0Descriptor(shells, "scalar")
        self.gaussians = Gaussians(k, architecture.cutoff)
        self.embed_node = Linear(summed(self.descriptor.node, atom), hidden)
        self.embed_edge = BondProduct(hidden, self.descriptor.edge, hidden, k)
        self.blocks = nn.ModuleList(Block(own, hidden, hidden) for _ in range(architecture.layers))
        self.norm = LayerNorm(hidden)
        wide = {irrep: 2 * n for irrep, n in hidden.items()}
        self.decode = FeedForward(hidden, wide, outputs)
        self.lmax = max(l for l, _ in summed(hidden, self.descriptor.edge))

    def forward(self, atom: Irreps, graph: Graph) -> Irreps:
        dtype = atom[SCALAR].dtype
        h0 = self.descriptor.on_atoms(graph, graph.onsite, dtype, False)
        node = self.embed_node(joined(h0, atom))
        index = graph.bonds
        distance = graph.distance[index]
        bonds = Bonds(
            index,
            graph.i[index],
            graph.j[index],
            graph.vectors[index],
            self.gaussians(distance.to(dtype)),
            smooth_step(self.cutoff - distance)[:, None].to(dtype),
            lmax=self.lmax,
            keep=True,
        )
        pairs = self.descriptor.on_bonds(graph, index, dtype, False)
        edge, _ = self.embed_edge(bonds.frames(), bonds.gaussians, bonds.with_ends(node, pairs))
        edges = [edge]
        for block in self.blocks:
            node, edges, _, _ = block(node, edges, [bonds], None)
        return self.decode(self.norm(node))


class DensityEnsemble(nn.Module):
    """Several networks that differ in what they began with; their spread tells what they know.

    Parameters
    ----------
    architecture
        Of every member.
    charges, shells
        As of :class:`DensityNetwork`.
    members
        Number of networks.
    """

    def __init__(
        self,
        architecture: DensityArchitecture,
        charges: Sequence[float],
        shells: Sequence[int],
        members: int = 4,
    ):
        super().__init__()
        if members < 1:
            raise ValueError(f"members = {members}: there is at least one network")
        self.architecture, self.shells = architecture, tuple(shells)
        self.experts = nn.ModuleList(
            DensityNetwork(architecture, charges, shells) for _ in range(members)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.experts[0].dtype

    @property
    def needs_graph(self) -> bool:
        """Whether inputs need :attr:`AtomInputs.graph`."""
        return self.architecture.network == "transformer"

    def graph(self, several) -> Graph:
        """Neighbours and H(0) of some LCAOData."""
        return Graph.of(several, self.shells, self.architecture.cutoff)

    def forward(self, inputs: AtomInputs) -> Tensor:
        """Coefficients of each member, shape (members, ncoefficients)."""
        return torch.stack([member(inputs) for member in self.experts])


def architecture_of(values: Mapping) -> DensityArchitecture:
    """An architecture from plain values.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    known = {f.name for f in fields(DensityArchitecture)}
    unknown = values.keys() - known
    if unknown:
        raise ValueError(f"unknown hyperparameters {', '.join(sorted(unknown))}")
    return DensityArchitecture(**values)


__all__ = [
    "NETWORKS",
    "AtomInputs",
    "DensityArchitecture",
    "DensityEnsemble",
    "DensityNetwork",
    "architecture_of",
    "to_coefficients",
    "to_irreps",
]
