"""Patching as one would write it by hand: full hooked runs, nothing of the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.tasks.encoding import EncodedPairs
from test_suite.oracles.one_prompt import index_of

MOST_PATCHES = 64
"""Most patches that plain patching runs together."""


def measured(metric: Any, logits: Sequence[Tensor]) -> list[float]:
    """The metric of each pair's logits, all positions of which are given."""
    values = []
    for i, run in enumerate(logits):
        seen = run[None] if metric.reads_all_positions else run[None, -1:]
        seen = seen if metric.tokens is None else seen[..., metric.tokens]
        values.append(float(metric.measure(seen, torch.tensor([i]))[0]))
    return values


def source_and_base(pairs: EncodedPairs, direction: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """(prompts whose activations are copied, prompts whose runs are patched)."""
    return (pairs.clean, pairs.corrupted) if direction == "denoising" else (pairs.corrupted, pairs.clean)


class PlainPatching:
    """Patching as one would write it by hand: full hooked runs, a row per patch and pair, of one length at a time.

    Nothing of the engine is used, and nothing is saved but the run whose activations are copied.

    Args:
        written: for each pair the prompts whose mean activation is written, none for zero; None for the other run.
        noise: for each pair what is added to the embeddings of its corrupted run.
    """

    def __init__(
        self,
        model: Any,
        pairs: EncodedPairs,
        hook_points: Iterable[str],
        direction: str,
        *,
        written: Sequence[Sequence[Tensor]] | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> None:
        self.model, self.pairs = model, pairs
        source, base = source_and_base(pairs, direction)
        source_noise, self.base_noise = (None, noise) if direction == "denoising" else (noise, None)
        self.groups = [
            [i for i, prompt in enumerate(base) if len(prompt) == length] for length in sorted({*map(len, base)})
        ]
        self.base = [torch.stack([base[i] for i in group]) for group in self.groups]
        names = set(hook_points)
        if written is None:
            self.recorded = [
                self._record([source[i] for i in group], names, self._noising(source_noise, group))
                for group in self.groups
            ]
        else:
            self.recorded = [self._means([written[i] for i in group], base[group[0]], names) for group in self.groups]

    def _means(self, written: Sequence[Sequence[Tensor]], example: Tensor, hook_points: set[str]) -> dict[str, Tensor]:
        nothing = {name: torch.zeros_like(value) for name, value in self._record([example], hook_points).items()}
        each = [[self._record([prompt], hook_points) for prompt in prompts] or [nothing] for prompts in written]
        return {
            name: torch.cat([torch.stack([found[name] for found in prompts]).mean(dim=0) for prompts in each])
            for name in hook_points
        }

    def _noising(
        self, noise: Sequence[Tensor] | None, group: Sequence[int], times: int = 1
    ) -> list[tuple[str, Callable[..., Any]]]:
        if noise is None:
            return []
        added = torch.stack([noise[i] for i in group]).repeat(times, 1, 1)
        return [("hook_embed", lambda value, hook: value + added)]

    def _record(
        self, prompts: Sequence[Tensor], hook_points: set[str], before: Sequence[tuple[str, Callable[..., Any]]] = ()
    ) -> dict[str, Tensor]:
        recorded: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, name: str) -> None:
            recorded[name] = value.detach().clone()

        hooks = [(name, functools.partial(keep, name=name)) for name in hook_points]
        with torch.no_grad():
            self.model.run_with_hooks(torch.stack(list(prompts)), fwd_hooks=[*before, *hooks])
        return recorded

    def logits(self, patches: Sequence[Patch]) -> list[list[Tensor]]:
        """For each patch the logits of the patched run of each pair, at all positions."""
        found: list[dict[int, Tensor]] = [{} for _ in patches]
        for group, tokens, source in zip(self.groups, self.base, self.recorded):
            for begin in range(0, len(patches), MOST_PATCHES):
                batch = patches[begin : begin + MOST_PATCHES]
                hooks = [*self._noising(self.base_noise, group, len(batch)), *self._hooks(batch, source, group)]
                with torch.no_grad():
                    logits = self.model.run_with_hooks(tokens.repeat(len(batch), 1), fwd_hooks=hooks)
                for of_patch, rows in zip(found[begin:], logits.split(len(group))):
                    of_patch.update(zip(group, rows))
        return [[of_patch[i] for i in range(len(self.pairs))] for of_patch in found]

    def _hooks(
        self, patches: Sequence[Patch], source: dict[str, Tensor], group: Sequence[int]
    ) -> list[tuple[str, Callable[..., Any]]]:
        """Hooks that write each patch's sites, in their order, into the rows of that patch."""
        sites: dict[str, list[tuple[int, Site]]] = {}
        for i, patch in enumerate(patches):
            for site in patch.sites:
                sites.setdefault(site.hook_point, []).append((i * len(group), site))

        def write(value: Tensor, hook: Any, name: str) -> Tensor:
            value = value.clone()
            for begin, site in sites[name]:
                _write_site(value[begin : begin + len(group)], source[name], site, group)
            return value

        names = sorted(sites, key=lambda name: Site(name).component == "resid_mid")  # written after the attention
        return [hook for name in names for hook in self._writing(Site(name), functools.partial(write, name=name))]

    def _writing(self, site: Site, write: Callable[..., Tensor]) -> list[tuple[str, Callable[..., Any]]]:
        if not isinstance(self.model, TransformerBridge) or site.component != "resid_mid":
            return [(site.hook_point, write)]
        # On a bridge only the MLP sees what is written to hook_resid_mid: let the attention produce it instead.
        before: list[Tensor] = []
        return [
            (block_hook(site.layer, "resid_pre"), lambda value, hook: before.append(value)),
            (block_hook(site.layer, "attn_out"), lambda value, hook: write(before[-1] + value, hook) - before[-1]),
        ]


def _write_site(value: Tensor, source: Tensor, site: Site, group: Sequence[int]) -> None:
    """Write the site's activation of the source into the rows of `value`, one per pair of the group."""
    for row, pair in enumerate(group):
        where = (row, *index_of(site, value.ndim, pair)[1:])
        value[where] = source[where]


def largest_error(
    model: Any,
    pairs: EncodedPairs,
    patches: Sequence[Patch],
    direction: str,
    sweeps: Sequence[tuple[Any, Any]],
    written: Sequence[Sequence[Tensor]] | None = None,
) -> tuple[float, str]:
    """The largest difference between swept metrics and plain patching, and where it is.

    Args:
        sweeps: (metric, what the engine found with it) for each metric.
        written: for each pair the prompts whose mean activation is written; None for the other run.
    """
    names = [site.hook_point for patch in patches for site in patch.sites]
    plain = PlainPatching(model, pairs, names, direction, written=written)
    worst, where = 0.0, ""
    for i, (patch, logits) in enumerate(zip(patches, plain.logits(patches))):
        for metric, found in sweeps:
            for pair, expected in enumerate(measured(metric, logits)):
                error = abs(float(found.patched[i, pair]) - expected)
                if not error <= worst:
                    worst, where = error, f"{patch.label} on pair {pair}, {metric.name}, {direction}"
    return worst, where
