"""Positions of the run that is patched, and those of the other run that stand for them, where these are not the same.

Everything else in the engine counts positions in the run that is patched: what is written is put in its order here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.sites import position_axis


def first_change(
    partners: Int[Tensor, "pair longest"], first_difference: Int[Tensor, " pair"], lengths: Int[Tensor, " pair"]
) -> Int[Tensor, " pair"]:
    """First position of each pair at which what is written may differ from what is there; its length for none.

    What stands before the first difference of the prompts is the same in both runs, where it stands in the same place.
    """
    every = torch.arange(partners.shape[1])
    changes = (partners >= 0) & ((partners != every) | (every >= first_difference[:, None]))
    return torch.where(changes.any(dim=1), changes.int().argmax(dim=1), lengths)


def written_positions(
    at: Int[Tensor, "pair _"] | None, partners: Int[Tensor, "pair longest"] | None
) -> Int[Tensor, "pair _"] | None:
    """Of the positions that are asked for those that have a partner, -1 in the place of others; None for all."""
    if partners is None:
        return at
    asked = torch.arange(partners.shape[1]).expand_as(partners) if at is None else at
    has_partner = partners.gather(1, asked.clamp(min=0)) >= 0
    return torch.where((asked >= 0) & has_partner, asked, -1)


def in_order_of_base(
    activations: Mapping[str, Tensor], partners: Int[Tensor, "pair longest"], longest: int
) -> dict[str, Tensor]:
    """The other run's activations, each where it is written. Where nothing is written stands what is of no account.

    Args:
        activations: hook point -> what the other run holds there, one row per pair.
        partners: of these pairs.
        longest: to how many positions the run that is patched is padded.
    """
    rows = torch.arange(len(partners))[:, None]
    taken = partners[:, :longest].clamp(min=0)
    placed = {}
    for name, value in activations.items():
        axis = position_axis(name)
        placed[name] = value.movedim(axis, 1)[rows.to(value.device), taken.to(value.device)].movedim(1, axis)
    return placed
