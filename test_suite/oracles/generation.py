"""Continuations by hand: a plain loop with hooks at every step, and a loop over a cache that the hooks filled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from actpatch.core.sites import Site, block_hook, head_axis, position_axis
from test_suite.oracles import one_prompt

Spoken = tuple[list[int], list[float]]
"""New tokens, and the log-probability of each."""


def plain(model: Any, prompt: Tensor, n_new: int, sites: Sequence[Site] = (), source: Tensor | None = None) -> Spoken:
    """Every new token from a whole run, in which the sites are written anew at the prompt's positions."""
    hooks = [hook for site in sites for hook in _writing(model, site, source, len(prompt))]

    def step(tokens: Tensor, n_before: int) -> Tensor:
        return one_prompt.run(model, tokens, hooks)[-1]

    return _loop(step, prompt, n_new)


def cached(model: Any, prompt: Tensor, n_new: int, sites: Sequence[Site], source: Tensor | None) -> Spoken:
    """The prompt once, with hooks that write the sites, into a cache; then each new token alone, without a hook."""
    hooks = [hook for site in sites for hook in _writing(model, site, source, len(prompt))]
    call, cache = _caching(model)

    def step(tokens: Tensor, n_before: int) -> Tensor:
        with torch.no_grad(), model.hooks(fwd_hooks=[] if n_before else hooks):
            return call(tokens[None, n_before:], cache)[0, -1]

    return _loop(step, prompt, n_new)


def _caching(model: Any) -> tuple[Callable[[Tensor, Any], Tensor], Any]:
    if isinstance(model, TransformerBridge):
        return (
            lambda tokens, cache: model.original_model(tokens, past_key_values=cache, use_cache=True).logits
        ), DynamicCache()
    from transformer_lens import TransformerLensKeyValueCache

    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
    return (lambda tokens, cache: model(tokens, past_kv_cache=cache)), cache


def _loop(step: Callable[[Tensor, int], Tensor], prompt: Tensor, n_new: int) -> Spoken:
    tokens, seen, ids, log_probabilities = prompt, 0, [], []
    for _ in range(n_new):
        scores = step(tokens, seen).log_softmax(-1)
        seen = len(tokens)
        ids.append(int(scores.argmax()))
        log_probabilities.append(float(scores.max()))
        tokens = torch.cat([tokens, torch.tensor(ids[-1:])])
    return ids, log_probabilities


def _writing(model: Any, site: Site, source: Tensor | None, n: int) -> list[tuple[str, Callable[..., Any]]]:
    assert source is not None
    if isinstance(model, TransformerBridge) and site.component == "resid_mid":
        # Only the MLP sees what is written to a bridge's hook_resid_mid: the attention has to produce it.
        value = sum(
            one_prompt.recorded(model, source, block_hook(site.layer, part)) for part in ("resid_pre", "attn_out")
        )
        before: list[Tensor] = []
        return [
            (block_hook(site.layer, "resid_pre"), lambda resid, hook: before.append(resid)),
            (
                block_hook(site.layer, "attn_out"),
                lambda out, hook: _written(before[-1] + out, value, site, n) - before[-1],
            ),
        ]
    value = one_prompt.recorded(model, source, site.hook_point)
    return [(site.hook_point, lambda now, hook: _written(now, value, site, n))]


def _written(now: Tensor, value: Tensor, site: Site, n: int) -> Tensor:
    """`now` with the source's value at the site, if that names no position at each of the first n."""
    now = now.clone()
    axis, heads = position_axis(site.hook_point), head_axis(site.hook_point)
    where: list[Any] = [slice(None)] * now.ndim
    where[axis] = slice(n) if site.position is None else [site.position % n]
    if heads is not None and site.head is not None:
        where[heads] = slice(site.head, site.head + 1)
    if heads == 1:
        where[3] = slice(n)
    now[tuple(where)] = value[tuple(where)]
    return now
