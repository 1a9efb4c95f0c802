"""What the density head minimises: the energy of the missing charge in its own Coulomb field.

Coefficients c of a structure leave ``|drho - drho(c)|^2 = left + (c - c*) G (c - c*)`` of the
change of the density, with the Gram matrix G of the Coulomb metric and the best coefficients c*.
The loss is the root of that, relative to the whole change, averaged over structures and members:
numbers between 0 and 1 that mean the same for every crystal. Coefficients themselves are never
compared: those of neighbouring atoms can stand in for each other.

To it can be added the errors of dH and of bands, relative to those of H(0)
(:mod:`.density_matrix`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ase_nextham.model.density_network import (
    AtomInputs,
    DensityArchitecture,
    DensityEnsemble,
    DensityNetwork,
    to_coefficients,
)
from ase_nextham.model.graph import Graph
from ase_nextham.model.layers import irrep_name
from ase_nextham.training.density_labels import DensityLabel
from ase_nextham.training.density_matrix import MatrixTarget
from ase_nextham.training.example import joined as joined_graphs

_FLOOR = 1e-9
"""Smallest square of the relative error: the root has a slope there."""


@dataclass(frozen=True, eq=False)
class DensityExample:
    """One structure to learn from, as tensors on one device.

    Parameters
    ----------
    name
        Of the sample.
    inputs
        Of its atoms.
    label
        Best coefficients, shape (ncoefficients,).
    gram
        Of the Coulomb metric, relative to the whole change, shape (ncoefficients, ncoefficients).
    left
        What the best coefficients leave of the whole change, squared.
    fold
        Number of the member that does not learn from it, or None.
    matrix
        dH and bands, where their errors are to be made smaller, too.
    """

    name: str
    inputs: AtomInputs
    label: Tensor
    gram: Tensor
    left: float
    fold: int | None = None
    matrix: MatrixTarget | None = None

    @classmethod
    def of(
        cls,
        label: DensityLabel,
        name: str,
        architecture: DensityArchitecture,
        graph: Graph | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        fold: int | None = None,
        matrix: MatrixTarget | None = None,
    ) -> DensityExample:
        """The tensors of a labelled sample.

        Raises
        ------
        ValueError
            If its density is that of the superposed atoms, or the expansion is another one; it
            names the sample.
        """
        if not label.norm > 0:
            raise ValueError(f"{name}: the density does not change, so nothing is to be learned")
        own = label.descriptor
        try:
            inputs = AtomInputs.of(
                architecture, own.induced, own.field, own.elements, graph, dtype=dtype
            )
        except ValueError as err:
            raise ValueError(f"{name}: {err}") from err
        return cls(
            name=name,
            inputs=inputs,
            label=torch.as_tensor(label.coefficients, dtype=dtype),
            gram=torch.as_tensor(label.gram / label.norm, dtype=dtype),
            left=label.left / label.norm,
            fold=fold,
            matrix=matrix,
        )

    def to(self, device) -> DensityExample:
        """The same on a device."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            label=self.label.to(device),
            gram=self.gram.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Memory that it takes, but for neighbours."""
        features = [*self.inputs.induced.values(), *self.inputs.field.values()]
        own = sum(x.nbytes for x in (*features, self.inputs.elements, self.label, self.gram))
        return own + (0 if self.matrix is None else self.matrix.nbytes)


@dataclass(frozen=True, eq=False)
class DensityBatch:
    """Several examples, whose atoms are worked on together."""

    examples: tuple[DensityExample, ...]
    inputs: AtomInputs

    @classmethod
    def of(cls, examples: Iterable[DensityExample]) -> DensityBatch:
        """The batch of some examples."""
        examples = tuple(examples)
        several = [example.inputs for example in examples]
        graphs = [one.graph for one in several]
        structure = [torch.full_like(one.structure, k) for k, one in enumerate(several)]
        inputs = AtomInputs(
            induced=_beside(one.induced for one in several),
            field=_beside(one.field for one in several),
            elements=torch.cat([one.elements for one in several]),
            structure=torch.cat(structure),
            graph=None if graphs[0] is None else joined_graphs(graphs),
        )
        return cls(examples, inputs)

    def __len__(self):
        return len(self.examples)


def _beside(several) -> dict:
    several = list(several)
    return {irrep: torch.cat([one[irrep] for one in several]) for irrep in several[0]}


class DensityObjective(nn.Module):
    """The loss of a batch.

    Parameters
    ----------
    module
        The networks.
    dh, bands
        Weights of the errors of dH and of bands, for examples that have them.
    """

    def __init__(self, module: DensityEnsemble, dh: float = 0.0, bands: float = 0.0):
        super().__init__()
        self.module = module
        self.weights = {"dh": dh, "bands": bands}
        self.expert: int | None = None

    def forward(self, batch: DensityBatch) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Loss, and for each structure its terms.

        Returns
        -------
        (Tensor, list of dict)
            ``"loss"``, the mean over the members that learn from it (or that of the one that is
            trained alone), and ``"error"``, that of the mean of their coefficients: of those of
            all members where none leaves it out, which is what is predicted. ``"density"``, the
            loss without the errors ``"dh"`` and ``"bands"`` of that mean, where these are added.
        """
        if self.expert is None:
            members = range(len(self.module.experts))
            coefficients = self.module(batch.inputs)
        else:
            members = [self.expert]
            coefficients = self.module.experts[self.expert](batch.inputs)[None]
        sizes = [len(example.label) for example in batch.examples]
        losses, terms = [], []
        for example, own in zip(batch.examples, coefficients.split(sizes, dim=1), strict=True):
            errors = relative_error(example, own)
            learns = [k for k, member in enumerate(members) if member != example.fold]
            loss = errors[learns].mean() if learns else 0 * errors.sum()
            mean = own[learns or slice(None)].mean(dim=0)
            found = {"error": relative_error(example, mean.detach()[None])[0]}
            if example.matrix is not None:
                found["density"] = loss.detach()
                for name, error in zip(self.weights, example.matrix.errors(mean), strict=True):
                    found[name] = error.detach()
                    loss = loss + self.weights[name] * error.to(loss.dtype)
            losses.append(loss)
            terms.append({"loss": loss.detach(), **found})
        return torch.stack(losses).mean(), terms


def relative_error(example: DensityExample, coefficients: Tensor) -> Tensor:
    """Norm of what coefficients (n, ncoefficients) leave, relative to the whole, shape (n,)."""
    missing = coefficients - example.label
    square = example.left + ((missing @ example.gram) * missing).sum(dim=1)
    return square.clamp(min=_FLOOR).sqrt()


def fit_start(
    module: DensityEnsemble, examples: Sequence[DensityExample], ridge: float = 1e-4
) -> None:
    """Set the scales of all members, and their linear maps to the best ones, in closed form.

    Scales are the same for all members, linear maps the best for what each of them learns from.

    Parameters
    ----------
    examples
        Of the training set; on one device.
    ridge
        Added to the diagonal of the normal equations, which is 1.
    """
    examples = list(examples)
    for member in module.experts:
        member.set_scales([example.inputs for example in examples])
    if not module.architecture.first_density:
        return
    sums: dict[int | None, list[Tensor]] = {}
    for example in examples:
        columns = _responses(module.experts[0], example.inputs).double()
        gram = example.gram.double()
        added = (columns @ gram @ columns.T, columns @ (gram @ example.label.double()))
        before = sums.get(example.fold, (0, 0))
        sums[example.fold] = [old + new for old, new in zip(before, added, strict=True)]
    for k, member in enumerate(module.experts):
        learned = [some for fold, some in sums.items() if fold != k]
        matrix, right = (sum(some) for some in zip(*learned, strict=True))
        _set_response(member, _solved(matrix, right, ridge))


def _solved(matrix: Tensor, right: Tensor, ridge: float) -> Tensor:
    size = matrix.diagonal().sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    matrix = matrix / size / size[:, None]
    matrix.diagonal().add_(ridge)
    return torch.linalg.solve(matrix, right / size) / size


def _set_response(member: DensityNetwork, weights: Tensor) -> None:
    own = member.response.weights
    with torch.no_grad():
        for weight, piece in zip(
            own.values(), weights.split([w.numel() for w in own.values()]), strict=True
        ):
            weight.copy_(piece.view(weight.shape))


def _responses(network: DensityNetwork, inputs: AtomInputs) -> Tensor:
    """Coefficients by each weight of the linear map alone, shape (nweights, ncoefficients)."""
    features = network.features(inputs)
    rows = []
    zero = {
        irrep: x.new_zeros(len(inputs), x.shape[1], n)
        for (irrep, n), x in zip(
            network.architecture.coefficients.items(), features.values(), strict=True
        )
    }
    for irrep, n in network.architecture.coefficients.items():
        x = features[irrep] / network.get_buffer(f"scale_induced_{irrep_name(irrep)}")
        for channel in range(x.shape[2]):
            for out in range(n):
                alone = zero[irrep].clone()
                alone[:, :, out] = x[:, :, channel]
                one = zero | {irrep: alone}
                if irrep == (0, 1):
                    one[irrep] = network.neutral(alone, inputs.structure)
                rows.append(to_coefficients(one, network.architecture.counts))
    return torch.stack(rows)


__all__ = ["DensityBatch", "DensityExample", "DensityObjective", "fit_start", "relative_error"]
