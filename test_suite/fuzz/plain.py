"""What a case has to give: plain hooked runs of the model, one prompt each, with nothing of the library's engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from actpatch.core.sites import Patch, Site, block_hook
from test_suite.fuzz.case import Case
from test_suite.helpers.models import words
from test_suite.oracles.metrics import by_hand
from test_suite.oracles.one_prompt import index_of

Hooks = list[tuple[str, Callable[..., Any]]]


class PlainCase:
    """The runs of one case, on a model that is in the state which the case says, in evaluation mode."""

    def __init__(self, case: Case, model: Any, own_metric: Callable[[Tensor, int], float]) -> None:
        self.case, self.model, self.own_metric = case, model, own_metric
        pairs = [tuple(words(prompt) for prompt in pair) for pair in case.prompts]
        self.clean, self.corrupted = ([model.to_tokens(text)[0] for text in run] for run in zip(*pairs))
        self.base = self.corrupted if case.direction == "denoising" else self.clean
        self.clean_logits = [self._logits(tokens) for tokens in self.clean]

    def baselines(self) -> tuple[np.ndarray, np.ndarray]:
        """(clean, corrupted), each [metric, pair]."""
        corrupted = [self._logits(tokens) for tokens in self.corrupted]
        return self._measured(self.clean_logits), self._measured(corrupted)

    def patched(self, patch: Patch) -> np.ndarray:
        """[metric, pair]."""
        return self._measured([self._patched_logits(patch, pair) for pair in range(len(self.base))])

    def _measured(self, logits: Sequence[Tensor]) -> np.ndarray:
        if self.case.metrics is None:
            return np.array([[self.own_metric(run[None], pair) for pair, run in enumerate(logits)]])
        last = [run[-1].numpy() for run in logits]
        return np.array(
            [
                [
                    by_hand(name, run, self.clean_logits[pair][-1].numpy(), *answers(pair))
                    for pair, run in enumerate(last)
                ]
                for name in self.case.metrics
            ]
        )

    def _logits(self, tokens: Tensor, hooks: Hooks | None = None) -> Tensor:
        with torch.no_grad():
            return self.model.run_with_hooks(tokens[None], fwd_hooks=hooks or [])[0]

    def _patched_logits(self, patch: Patch, pair: int) -> Tensor:
        names = sorted({site.hook_point for site in patch.sites})
        source = self._source(tuple(names), pair)
        hooks: Hooks = []
        for name in sorted(names, key=lambda name: Site(name).component == "resid_mid"):  # behind what it adds up
            sites = [site for site in patch.sites if site.hook_point == name]
            hooks += self._writing(name, functools.partial(_write, sites=sites, source=source[name], pair=pair))
        return self._logits(self.base[pair], hooks)

    def _writing(self, name: str, write: Callable[..., Tensor]) -> Hooks:
        if not isinstance(self.model, TransformerBridge) or Site(name).component != "resid_mid":
            return [(name, write)]
        # A bridge computes on with what is written to hook_resid_mid in its MLP alone. Elsewhere it means the residual
        # stream behind the attention: let the attention produce it.
        layer, before = Site(name).layer, list[Tensor]()
        assert layer is not None
        return [
            (block_hook(layer, "resid_pre"), lambda value, hook: before.append(value)),
            (block_hook(layer, "attn_out"), lambda value, hook: write(before[-1] + value, hook) - before[-1]),
        ]

    def _source(self, names: tuple[str, ...], pair: int) -> dict[str, Tensor]:
        """The activations that are written, one prompt's rows or the mean over several prompts."""
        case, other = self.case, self.clean if self.base is self.corrupted else self.corrupted
        if case.source == "other run":
            return self._recorded(other[pair], names)
        if case.source == "zero":
            return {name: torch.zeros_like(value) for name, value in self._recorded(self.base[pair], names).items()}
        over = self.clean if case.source == "mean of clean" else self.corrupted
        alike = [tokens for tokens in over if len(tokens) == len(self.base[pair])]
        runs = [self._recorded(tokens, names) for tokens in alike]
        return {name: torch.stack([run[name] for run in runs]).mean(dim=0) for name in names}

    def _recorded(self, tokens: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, name: str) -> None:
            found[name] = value.detach().clone()

        self._logits(tokens, [(name, functools.partial(keep, name=name)) for name in names])
        return found


def answers(pair: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The right and the wrong answers to a case's pair."""
    return (2 + pair,), (8 + pair,)


def user_hook(kind: str) -> Callable[[Tensor, Any], Tensor]:
    """What a user may have hooked to the model."""

    def steer(value: Tensor, hook: Any) -> Tensor:
        return value + torch.linspace(-1, 1, value.shape[-1], dtype=value.dtype)

    def ablate(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[..., : value.shape[-1] // 2] = 0
        return value

    def clamp(value: Tensor, hook: Any) -> Tensor:
        return value.clamp(-0.3, 0.3)

    def fade(value: Tensor, hook: Any) -> Tensor:
        return value * (1 + torch.arange(value.shape[1], dtype=value.dtype)[:, None] / 8)

    return {"steer": steer, "ablate": ablate, "clamp": clamp, "fade": fade}[kind]


def _write(value: Tensor, hook: Any, *, sites: Sequence[Site], source: Tensor, pair: int) -> Tensor:
    value = value.clone()
    for site in sites:
        where = index_of(site, value.ndim, pair)
        value[where] = source[where]
    return value
