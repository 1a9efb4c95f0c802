"""Published state dicts: which weights a network takes, and which it can do without."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

NEVER_USED = re.compile(
    r"""
    (.*\.)?_w3j_\d+_\d+_\d+ | .*_w3j_.* | .*output_mask | .*\.tp\.tp\..*   # constants of e3nn
    | .*\.gate\.mul\.weight | .*\.nonlin\.mul\.weight | .*sep_act\.dtp\.tp\.weight
    | atomref
    | blocks\.\d+\.(ga_edge|update_edge|node_update|edge_update|ffn_shortcut)\..*
    | blocks\.\d+\.ga\.alpha_dot
    | blocks\.3\.(ga\.proj|norm_2|ffn)\..*                                # of the last nodes
    | ele_embed\.weight | norm\.affine_(weight|bias) | head\..*
    | node_lin\..*                                            # of files before commit 567503d
    """,
    re.VERBOSE,
)
"""Entries of published files that do not reach the output."""


def assign(network: nn.Module, state_dict: Mapping[str, Tensor], dtype: torch.dtype) -> list[str]:
    """Give a network the weights of a published state dict.

    Returns
    -------
    list of str
        Entries that the network does not need because they never reach the output.

    Raises
    ------
    ValueError
        If a weight is missing, has another shape or is not known, by name.
    """
    own = dict(network.named_parameters())
    missing = [name for name in own if name not in state_dict]
    if missing:
        raise ValueError(
            f"the state dict lacks {_listed(missing)} of the published network; "
            "is it a whole state dict of this version?"
        )
    others = [name for name in state_dict if name not in own]
    unknown = [name for name in others if not NEVER_USED.fullmatch(name)]
    if unknown:
        raise ValueError(
            f"the state dict has {_listed(unknown)}, which the published network has not; "
            "is it one of another version?"
        )
    for name, parameter in own.items():
        value = state_dict[name]
        if value.shape != parameter.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but the published network's has "
                f"{tuple(parameter.shape)}; is the state dict one of another version?"
            )
        parameter.data = value.detach().to(dtype).clone()
    return others


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
