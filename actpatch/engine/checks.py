"""Whether the model and the pairs have the sites of an experiment, asked before anything is run."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.alignment import Matches, Span, identity, span_of
from actpatch.core.hook_points import expand_hook_points
from actpatch.core.indices import is_integer
from actpatch.core.sites import Site, head_axis, kind_of, position_axis
from actpatch.engine.entering import mlp_output_weight
from actpatch.models.facts import n_key_value_heads
from actpatch.models.runner import Runner
from actpatch.tasks.alignment import checked_span
from actpatch.tasks.encoding import EncodedPairs


def n_neurons(runner: Runner, layer: int) -> int:
    """Number of neurons of a layer's MLP."""
    weight = mlp_output_weight(runner, layer)
    return runner.model.cfg.d_mlp if weight is None else len(weight)


def checked_positions(
    runner: Runner, site: Site, pairs: EncodedPairs, known: Collection[str], found: dict[str, Int[Tensor, "pair _"]]
) -> Int[Tensor, "pair _"] | None:
    """The site's positions in each pair, -1 behind those of a pair that has fewer than others; None for all positions.

    Args:
        runner: of the model.
        site: the site.
        pairs: the pairs, seen from the run that is patched.
        known: the model's hook points.
        found: what is known already of other sites of the same pairs, by their positions; more is put into it.

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
    key = repr(site.position)  # 1 and True are equal, and only one of them is a position
    if key not in found:
        found[key] = _positions_in_pairs(site.position, pairs)
    return found[key]


def _positions_in_pairs(position: int | tuple[Span, ...], pairs: EncodedPairs) -> Int[Tensor, "pair _"]:
    per_pair = position if isinstance(position, tuple) else (position,) * len(pairs)
    if len(per_pair) != len(pairs):
        raise ValueError(f"{len(per_pair)} positions were given for {len(pairs)} pairs: give one per pair")
    where = zip(per_pair, pairs.indices, pairs.lengths.tolist())
    spans = [span_of(checked_span(at, n, f"position (in pair {pair}, of {n} tokens)")) for at, pair, n in where]
    width = max(map(len, spans))
    return torch.tensor([[*span, *[-1] * (width - len(span))] for span in spans])


def check_can_be_aligned(hook_points: Collection[str], pairs: EncodedPairs) -> None:
    """Raises ValueError for attention patterns and scores of prompts whose positions do not go together one by one."""
    if not pairs.matches or not (patterns := [name for name in sorted(hook_points) if head_axis(name) == 1]):
        return
    other = next(i for i, matches in enumerate(pairs.matches) if not _is_identity(pairs, i, matches))
    raise ValueError(
        f"{patterns[0]} has a column for every token that is looked at, so what it is in one prompt means nothing in "
        f"another with other tokens in these places (pair {pairs.indices[other]}: {len(pairs.clean[other])} and "
        f"{len(pairs.corrupted[other])} tokens). Patch q, k, v or z, or choose pairs of one length with pair_indices"
    )


def _is_identity(pairs: EncodedPairs, pair: int, matches: Matches) -> bool:
    length = len(pairs.clean[pair])
    return len(pairs.corrupted[pair]) == length and matches == identity(length)


def check_shape(hook_point: str, value: Tensor | None, tokens: torch.Size, runner: Runner) -> None:
    """Check the axes of what a run of these tokens holds at a hook point.

    Raises:
        RuntimeError: where it holds nothing.
        ValueError: where an axis of prompts, positions, keys or heads is not where it should be, or not as long.
    """
    if value is None:
        raise RuntimeError(f"the hook point {hook_point} did not fire in a run of this model: it cannot be patched")
    expected = {0: tokens[0], position_axis(hook_point): tokens[1]}
    kind = kind_of(hook_point)
    if kind.head_axis is not None:
        expected[kind.head_axis] = (
            n_key_value_heads(runner.model) if kind.per_key_value_head else runner.model.cfg.n_heads
        )
    if kind.head_axis == 1:
        expected[3] = tokens[1]
    if value.ndim <= max(expected) or any(value.shape[axis] != size for axis, size in expected.items()):
        heads = (
            "" if kind.head_axis is None else f" in which {expected[kind.head_axis]} heads are on axis {kind.head_axis}"
        )
        raise ValueError(
            f"{hook_point} holds a tensor of shape {tuple(value.shape)} for {tokens[0]} prompts of {tokens[1]} tokens: "
            f"only activations with a prompt and a position axis can be patched{heads and ','}{heads}"
        )


def positions_are_ambiguous(hook_point: str, value: Tensor) -> bool:
    """Whether an axis that is none of prompts, positions or keys is as long as that of the positions."""
    axis = position_axis(hook_point)
    others = {0, axis, 3} if kind_of(hook_point).head_axis == 1 else {0, axis}
    return any(size == value.shape[axis] for at, size in enumerate(value.shape) if at not in others)


def _check_head(runner: Runner, site: Site, head: int) -> None:
    if site.kind.head_axis is None:
        raise ValueError(f"{site.hook_point} has no head axis, so head {head} cannot be patched there")
    n_heads = runner.model.cfg.n_heads
    size = n_key_value_heads(runner.model) if site.kind.per_key_value_head else n_heads
    if not is_integer(head) or not 0 <= head < size:
        kind = "key-value head" if site.kind.per_key_value_head and size != n_heads else "head"
        raise ValueError(f"{kind} {head!r} is out of range: expected 0 to {size - 1}")


def _check_neuron(runner: Runner, site: Site, neuron: int) -> None:
    if site.layer is None or not site.kind.has_neurons:
        raise ValueError(f"{site.hook_point} has no axis of neurons, so neuron {neuron} cannot be patched there")
    size = n_neurons(runner, site.layer)
    if not is_integer(neuron) or not 0 <= neuron < size:
        raise ValueError(f"neuron {neuron!r} is out of range: expected 0 to {size - 1}")
