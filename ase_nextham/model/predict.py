"""A trained model at work: LCAOData with H(0) in, the correction dH out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ase_nextham.data import LCAOData
from ase_nextham.matrix import LCAOMatrix
from ase_nextham.model import bundle
from ase_nextham.model.bundle import ModelInfo
from ase_nextham.model.parts import with_elements


class Model:
    """The correction dH = H - H(0) of any structure made of the elements that the model knows.

    Build it with :func:`load`, or from an info and a module.

    Parameters
    ----------
    info
        What the model is, and for which data.
    module
        The networks, as :func:`ase_nextham.model.bundle.build` makes them.
    """

    def __init__(self, info: ModelInfo, module: nn.Module):
        self.info = info
        self.module = module.eval()

    def __repr__(self):
        elements = ", ".join(self.info.elements)
        return f"Model({self.info.network}, {len(self.module.experts)} experts; {elements})"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which it computes."""
        return next(self.module.parameters()).dtype

    def to(self, device=None, dtype: torch.dtype | None = None) -> Model:
        """The same model, moved to another device or precision; changes this one."""
        self.module.to(device=device, dtype=dtype)
        return self

    def predict(self, data: LCAOData, *, memory: float = 1.0) -> LCAOMatrix:
        """The correction dH of one structure.

        Parameters
        ----------
        data
            Structure with H(0).
        memory
            GiB for temporary arrays; bonds are worked on in portions that keep to it. Besides,
            features take some 3 kB a bond, and matrices what they take.

        Returns
        -------
        LCAOMatrix
            In eV, with the spin of ``data.h0`` and on its pairs; Hermitian.

        Raises
        ------
        ValueError
            If there is no H(0), or it was made with elements, shells, orbital files or
            pseudopotentials that differ from those that the model was trained with.
        """
        return self.predict_all([data], memory=memory)[0]

    def predict_all(self, several: Sequence[LCAOData], *, memory: float = 1.0) -> list[LCAOMatrix]:
        """:meth:`predict` for several structures in one pass, faster than one by one if small."""
        if not several:
            return []
        for data in several:
            self.check(data)
        graph = self.module.graph(several).to(self.device)
        portion = max(1, int(memory * 2**30 / self.module.bytes_per_bond))
        with torch.inference_mode():
            elements = self.module(graph, portion)
        if not torch.isfinite(elements.abs().sum()):
            raise ValueError(
                "the model gave numbers that are not finite; is H(0) what it was trained on?"
            )
        pieces = graph.corrects.split(elements)
        return [
            with_elements(piece, self.module.part, data.h0)
            for piece, data in zip(pieces, several, strict=True)
        ]

    def check(self, data: LCAOData) -> None:
        """Raise ValueError if data is not of the kind that the model was trained with.

        Warns where the orbital or pseudopotential files of the data are not known, although those
        of the model are.
        """
        check_data(self.info, data)


def check_data(info: ModelInfo, data: LCAOData, *, new_elements: bool = False) -> None:
    """Raise ValueError if data is not of the kind that a model was trained with.

    Parameters
    ----------
    new_elements
        Whether elements that the model was not trained with are allowed, with a warning.
    """
    if data.h0 is None:
        raise ValueError(f"{data!r} has no H(0), from which the model predicts")
    if data.basis.convention != info.convention:
        raise ValueError(
            f"the model reads the orbital convention {info.convention!r}, the data has "
            f"{data.basis.convention!r}; use LCAOMatrix.in_convention"
        )
    files = {
        "orbital file": (info.orbitals, data.basis.fingerprint),
        "pseudopotential": (info.pseudopotentials, pseudopotentials_of(data)),
    }
    species = dict(zip(data.symbols, data.atoms.get_chemical_symbols(), strict=True))
    unknown, new = [], []
    for name, element in species.items():
        if element not in info.shells:
            if not new_elements:
                raise ValueError(
                    f"{element}: the model was not trained with this element; it knows "
                    f"{', '.join(info.elements)}"
                )
            new.append(element)
            continue
        own, trained = data.basis.shells[name], info.shells[element]
        if own != trained:
            raise ValueError(
                f"{name}: orbitals {list(own)} (l of each shell) differ from {list(trained)} "
                "that the model was trained with"
            )
        for what, (expected, found) in files.items():
            theirs, ours = expected.get(element), found.get(name, found.get(element))
            if theirs and ours and theirs != ours:
                raise ValueError(
                    f"{name}: {what} differs from the one the model was trained with (sha256 "
                    f"{ours[:8]}... instead of {theirs[:8]}...); compute H(0) with that one"
                )
            if theirs and not ours:
                unknown.append(f"{name} ({what})")
    if new:
        warnings.warn(
            f"the model was not trained with {', '.join(sorted(set(new)))}, only with "
            f"{', '.join(info.elements)}; expect larger errors",
            stacklevel=4,
        )
    if unknown:
        warnings.warn(
            "it is not known with which files H(0) was made, so they were not compared with "
            f"those of the model: {', '.join(unknown)}",
            stacklevel=4,
        )


def pseudopotentials_of(data: LCAOData) -> Mapping[str, str]:
    """sha256 of the pseudopotential files that H(0) was made with, by species, where noted.

    Our engine notes them for the whole, ABACUS's runs have them with each species.
    """
    found = dict(data.source.get("pseudopotentials", {}))
    runs = [data.source, *data.source.get("runs", {}).values()]
    for run in runs:
        if run.get("operator") == "h0":
            for label, files in run.get("species", {}).items():
                found[label] = files.get("pseudopotential_sha256")
    return {name: value for name, value in found.items() if isinstance(value, str)}


def load(
    path: str | os.PathLike, *, device: str | torch.device = "cpu", dtype: str | None = None
) -> Model:
    """Read a model.

    Parameters
    ----------
    path
        Folder with ``model.json``.
    device
        ``"cpu"``, ``"cuda"``, ...
    dtype
        ``"float32"`` or ``"float64"``; None: as the weights were written.

    Raises
    ------
    FileNotFoundError, ValueError
        If the model is not there or damaged; see :func:`ase_nextham.model.bundle.read`.
    """
    types = {None: None, "float32": torch.float32, "float64": torch.float64}
    if dtype not in types:
        raise ValueError(f"models compute in 'float32' or 'float64', not {dtype!r}")
    info, module = bundle.read(path)
    if info.head != "pairs":
        raise ValueError(
            f"{path}: this model predicts the {info.head}, of which dH is made with "
            "pseudopotentials and orbitals; use ase_nextham.load_model"
        )
    return Model(info, module).to(device, types[dtype])
