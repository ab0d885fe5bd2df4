"""Whether the model and the pairs have the sites of an experiment, asked before anything is run."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.hook_points import expand_hook_points
from actpatch.core.indices import check_index, is_integer
from actpatch.core.sites import Site
from actpatch.engine.resume import mlp_output_weight
from actpatch.models.runner import Runner
from actpatch.tasks.encoding import EncodedPairs


def n_key_value_heads(runner: Runner) -> int:
    """Length of the head axis of `hook_k` and `hook_v`."""
    cfg = runner.model.cfg
    if getattr(cfg, "ungroup_grouped_query_attention", False):
        return cfg.n_heads
    return getattr(cfg, "n_key_value_heads", None) or cfg.n_heads


def n_neurons(runner: Runner, layer: int) -> int:
    """Number of neurons of a layer's MLP."""
    weight = mlp_output_weight(runner, layer)
    return runner.model.cfg.d_mlp if weight is None else len(weight)


def checked_positions(
    runner: Runner, site: Site, pairs: EncodedPairs, known: Collection[str]
) -> Int[Tensor, " pair"] | None:
    """The site's position in each pair; None for all positions.

    Raises:
        ValueError: for a hook point that the model lacks, and a head, neuron or position out of range.
    """
    names = expand_hook_points([site.hook_point], known, runner.n_layers)
    if names != [site.hook_point]:
        raise ValueError(f"the site {site.hook_point!r} stands for every layer: name one, for instance {names[0]!r}")
    if site.head is not None:
        _check_head(runner, site, site.head)
    if site.neuron is not None:
        _check_neuron(runner, site, site.neuron)
    if site.position is None:
        return None
    per_pair = site.position if isinstance(site.position, tuple) else (site.position,) * len(pairs)
    if len(per_pair) != len(pairs):
        raise ValueError(f"{len(per_pair)} positions were given for {len(pairs)} pairs: give one per pair")
    where = zip(per_pair, pairs.indices, pairs.lengths.tolist())
    return torch.tensor([check_index(at, n, f"position (in pair {pair}, of {n} tokens)") for at, pair, n in where])


def _check_head(runner: Runner, site: Site, head: int) -> None:
    if site.kind.head_axis is None:
        raise ValueError(f"{site.hook_point} has no head axis, so head {head} cannot be patched there")
    n_heads = runner.model.cfg.n_heads
    size = n_key_value_heads(runner) if site.kind.per_key_value_head else n_heads
    if not is_integer(head) or not 0 <= head < size:
        kind = "key-value head" if site.kind.per_key_value_head and size != n_heads else "head"
        raise ValueError(f"{kind} {head!r} is out of range: expected 0 to {size - 1}")


def _check_neuron(runner: Runner, site: Site, neuron: int) -> None:
    if site.layer is None or not site.kind.has_neurons:
        raise ValueError(f"{site.hook_point} has no axis of neurons, so neuron {neuron} cannot be patched there")
    size = n_neurons(runner, site.layer)
    if not is_integer(neuron) or not 0 <= neuron < size:
        raise ValueError(f"neuron {neuron!r} is out of range: expected 0 to {size - 1}")
