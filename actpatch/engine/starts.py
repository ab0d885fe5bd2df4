"""From which position on each row has to be computed: before its first change it is what was recorded."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.sites import Site, head_axis
from actpatch.engine.experiment import Chunk, Experiment, resid_name


def starts_of(experiment: Experiment, chunk: Chunk) -> Int[Tensor, "patch pair"]:
    """First position that each patch changes; a pair's length where it changes nothing.

    Before a pair's first change, what is written is what the run that is patched holds there.
    """
    first, lengths = chunk.first_change, chunk.lengths
    starts = torch.empty(len(experiment.patches), len(lengths), dtype=torch.long)
    differences: dict[str, Tensor | None] = {}
    for i, (patch, positions) in enumerate(zip(experiment.patches, experiment.positions)):
        changes = []
        for site, at in zip(patch.sites, positions):
            name = site.hook_point
            if name not in differences:
                differences[name] = _difference(site, experiment.runner.n_layers, chunk)
            of_pairs = None if at is None else at[chunk.pairs]
            same = _is_same(differences[name], site, of_pairs, chunk)
            if of_pairs is None:
                changes.append(torch.where(same, lengths, first))
                continue
            is_changed = (of_pairs >= first[:, None]) & ~same
            changes.append(torch.where(is_changed, of_pairs, lengths[:, None]).amin(dim=1))
        starts[i] = torch.stack(changes).amin(dim=0)
    return starts


def _difference(site: Site, n_layers: int, chunk: Chunk) -> Tensor | None:
    """Where what is written differs from what is there, on the axes pair, pos (and head or neuron).

    None where what is there was not recorded.
    """
    name = site.hook_point
    in_base = name if site.layer is None or site.component != "resid_post" else resid_name(site.layer + 1, n_layers)
    base = chunk.base.activations.get(in_base)
    source = chunk.source[name]
    if base is None:
        return None
    differs = base != source.to(base.device)
    if head_axis(name) == 1:
        differs = differs.movedim(1, 2)
    if not site.kind.has_neurons:
        differs = differs.flatten(2 if head_axis(name) is None else 3).any(dim=-1)
    differs = differs.cpu()
    real = torch.arange(differs.shape[1]) < chunk.ends[:, None]
    return differs & real.view(*real.shape, *[1] * (differs.ndim - 2))


def _is_same(differs: Tensor | None, site: Site, at: Int[Tensor, "pair _"] | None, chunk: Chunk) -> Tensor:
    """For each pair (and each of its positions), whether what is written at the site is the very same that is there, as
    far as that is known."""
    if differs is None:
        return torch.zeros(len(chunk.pairs) if at is None else at.shape, dtype=torch.bool)
    if differs.ndim == 3:
        index = site.neuron if site.head is None else site.head
        differs = differs.any(dim=2) if index is None else differs[:, :, index]
    return ~differs.any(dim=1) if at is None else ~differs.gather(1, at.clamp(min=0))
