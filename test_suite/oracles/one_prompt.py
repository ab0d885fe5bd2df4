"""Patching with one prompt per run, by the model's own hooked forward pass: what a user would write by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actpatch.core.sites import Site, head_axis, position_axis
from actpatch.tasks.encoding import EncodedPairs


def run(model: Any, tokens: Tensor, hooks: Sequence[tuple[str, Callable[..., Any]]] = ()) -> Tensor:
    """Logits at all positions of one prompt."""
    with torch.no_grad():
        return model.run_with_hooks(tokens[None], fwd_hooks=list(hooks))[0]


def recorded(model: Any, tokens: Tensor, hook_point: str) -> Tensor:
    """What one prompt's run holds at a hook point."""
    return all_recorded(model, tokens, [hook_point])[hook_point]


def all_recorded(model: Any, tokens: Tensor, hook_points: Iterable[str]) -> dict[str, Tensor]:
    """What one prompt's run holds at each hook point."""
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        found[name] = value.detach().clone()

    run(model, tokens, [(name, functools.partial(keep, name=name)) for name in dict.fromkeys(hook_points)])
    return found


def patched(
    model: Any, pairs: EncodedPairs, sites: Sequence[Site], metric: Any, *, zero: bool = False
) -> list[np.ndarray]:
    """The metric of the patched [site, pair], the clean and the corrupted runs [pair].

    What is written into the corrupted run is the clean one's activation, or zeros.
    """
    found = np.empty((len(sites), len(pairs)))
    clean, corrupted = np.empty((2, len(pairs)))
    for pair, (good, bad) in enumerate(zip(pairs.clean, pairs.corrupted)):
        clean[pair], corrupted[pair] = (_measured(metric, run(model, tokens), pair) for tokens in (good, bad))
        sources = all_recorded(model, good, [site.hook_point for site in sites])
        for i, site in enumerate(sites):
            source = sources[site.hook_point]
            write = _writer(site, torch.zeros_like(source) if zero else source, pair)
            found[i, pair] = _measured(metric, run(model, bad, [(site.hook_point, write)]), pair)
    return [found, clean, corrupted]


def _measured(metric: Any, logits: Tensor, pair: int) -> float:
    seen = logits[None] if metric.reads_all_positions else logits[None, -1:]
    return float(metric.measure(seen[..., metric.tokens] if metric.tokens is not None else seen, torch.tensor([pair])))


def index_of(site: Site, ndim: int, pair: int) -> tuple[Any, ...]:
    """Where a site lies in its hook point's tensor, of so many axes, in a run of the pair."""
    index: list[Any] = [slice(None)] * ndim
    if site.head is not None:
        heads = head_axis(site.hook_point)
        assert heads is not None
        index[heads] = site.head
    if site.position is not None:
        at = site.position[pair] if isinstance(site.position, tuple) else site.position
        index[position_axis(site.hook_point)] = at
    if site.neuron is not None:
        index[-1] = site.neuron
    return tuple(index)


def _writer(site: Site, source: Tensor, pair: int) -> Callable[..., Tensor]:
    def write(value: Tensor, hook: Any) -> Tensor:
        value, where = value.clone(), index_of(site, value.ndim, pair)
        value[where] = source[where]
        return value

    return write
