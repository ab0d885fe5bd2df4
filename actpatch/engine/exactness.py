"""Whether resuming is exact for this model, asked before each sweep of the very runs that the sweep rests on.

A model whose blocks cannot be run singly, or not over recorded keys and values, or whose parts do not add up to its
residual stream, is found out here, and so is one that computes on without what a hook returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actpatch.core.sites import Site, block_hook
from actpatch.engine.experiment import Chunk, Experiment, resid_name
from actpatch.engine.plan import Batch, Route
from actpatch.engine.resume import Resumption, added_by_heads, mlp_output_weight
from actpatch.models.runner import Hook, Recording

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest error of a resumed run, relative to the largest value, that the self-check accepts."""


@dataclass(frozen=True)
class Exactness:
    """Which shortcuts reproduce this model's recorded runs."""

    resume: bool = True
    """Running the blocks singly, from a recorded residual stream."""
    prefix: bool = True
    """Running them over recorded keys and values."""
    linear: bool = True
    """Adding a change to the recorded residual stream."""
    narrow: bool = True
    """Computing, in the last layer, what follows the attention at the position that is read alone."""

    def weakened(self) -> Exactness:
        """The next set of shortcuts to try."""
        if self.narrow:
            return replace(self, narrow=False)
        if self.linear:
            return replace(self, linear=False)
        return replace(self, prefix=False) if self.prefix else FULL_RUNS


FULL_RUNS = Exactness(resume=False, prefix=False, linear=False, narrow=False)


def error_of_resuming(
    experiment: Experiment, chunk: Chunk, exactness: Exactness, routes: Sequence[Route]
) -> str | None:
    """What differs when a pair is resumed with no change wherever the patches enter; None where nothing does."""
    runner, pair = experiment.runner, int(chunk.first_change.argmin())
    length, first = int(chunk.lengths[pair]), int(chunk.first_change[pair])
    start = min(max(first, 1), length - 1) if exactness.prefix else 0
    entries = sorted({(route.layer, route.stage) for route in routes})
    if len(entries) == 1:  # what some models hand to their blocks fits a batch of one row alone
        entries *= 2
    unchanged = [Route(layer, stage, (), ()) for layer, stage in entries]
    batch = Batch(tuple(range(len(unchanged))), (pair,) * len(unchanged), start, length)
    try:
        resumption = Resumption(experiment, batch, chunk, unchanged, narrow=exactness.narrow)
        logits = resumption.run(runner.begin(chunk.base, start, length))
    except Exception as failure:  # whatever an unknown architecture does when its blocks are called singly
        return f"{type(failure).__name__}: {failure}"
    expected = chunk.base.logits[pair, start:length] if experiment.reads_all else chunk.base.logits[pair]
    error, allowed = float((logits - expected).abs().max()), _allowed_error(expected)
    if error <= allowed:
        return None
    return f"resuming with no change gives logits that are {error:.2g} off, {allowed:.2g} is allowed"


def error_of_adding(experiment: Experiment, base: Recording, routes: Sequence[Route]) -> str | None:
    """Where the recorded parts do not add up as the shortcut for linear writes assumes; None where they do."""
    for site in {Site(site.hook_point) for route in routes for site in route.on_entry}:
        error, allowed = _adding_error(experiment, site, base.activations)
        if not error <= allowed:
            return f"{site.hook_point} does not add up to the residual stream ({error:.2g} off)"
    return None


def check_writing(experiment: Experiment, chunk: Chunk, exactness: Exactness, hooked: Iterable[Sequence[Site]]) -> None:
    """Check that what the hooks write is computed on with.

    Raises:
        RuntimeError: where hooks fire but what they return is not used (of an attention that is already over, say).
    """
    by_component: dict[str, set[str]] = {}
    for site in (site for sites in hooked for site in sites):
        by_component.setdefault(site.component, set()).add(site.hook_point)
    for names in by_component.values():
        if not any(_is_used(experiment, name, chunk, exactness) for name in sorted(names)):
            raise RuntimeError(
                f"writing to {sorted(names)[0]} changes nothing in this model: it computes on without what the hook "
                "returns, so it cannot be patched there"
            )


def _is_used(experiment: Experiment, name: str, chunk: Chunk, exactness: Exactness) -> bool:
    """Whether the model computes on with what is written to a hook point."""

    def disturb(value: Tensor, hook: Any) -> Tensor:
        return 2 * value + torch.linspace(0, 1, value.numel(), device=value.device).view_as(value).to(value.dtype)

    def run(hooks: list[Hook]) -> Tensor:
        with runner.hooks(hooks):
            if layer is None or not exactness.resume:
                return runner.run(tokens, None)
            resid = chunk.base.activations[block_hook(layer, "resid_pre")][:1]
            return runner.run_block(layer, resid, None, runner.begin(chunk.base, 0, resid.shape[1]))

    runner, layer, tokens = experiment.runner, Site(name).layer, chunk.base.tokens[:1]
    return not torch.equal(run([]), run(runner.writing_hooks(name, disturb)))


def _adding_error(experiment: Experiment, site: Site, recorded: dict[str, Tensor]) -> tuple[float, float]:
    """(error, allowed error) of what the site's activation should add up to."""
    layer, component = site.layer, site.component
    if layer is None or not site.kind.is_added or component == "attn_out":
        return 0.0, 0.0
    before = recorded[block_hook(layer, "resid_pre")]
    attn_out = recorded[block_hook(layer, "attn_out")]
    if component == "mlp_post":
        error, allowed = _neuron_error(experiment, site, recorded)
        if not error <= allowed:
            return error, allowed
    if component in ("mlp_post", "mlp_out"):
        expected = recorded[resid_name(layer + 1, experiment.runner.n_layers)]
        found = before + attn_out + recorded[block_hook(layer, "mlp_out")]
    elif component == "resid_mid":
        expected, found = recorded[site.hook_point], before + attn_out
    else:  # z and result: compared between positions, so that the output bias does not matter
        expected = attn_out - attn_out.roll(1, dims=1)
        heads = recorded[site.hook_point]
        found = added_by_heads(experiment.runner, site, heads - heads.roll(1, dims=1), None)
    return float((found - expected).abs().max()), max(_allowed_error(expected), _allowed_error(before))


def _neuron_error(experiment: Experiment, site: Site, recorded: dict[str, Tensor]) -> tuple[float, float]:
    """(error, allowed error) of the MLP's output as its neurons times a matrix; infinite where there is none."""
    layer, neurons = site.layer, recorded[site.hook_point]
    assert layer is not None
    weight = mlp_output_weight(experiment.runner, layer)
    output = recorded.get(block_hook(layer, "mlp_out"))
    if weight is None or output is None or len(weight) != neurons.shape[-1]:
        return float("inf"), 0.0
    expected = output - output.roll(1, dims=1)  # compared between positions, so that the bias does not matter
    found = (neurons - neurons.roll(1, dims=1)) @ weight
    return float((found - expected).abs().max()), max(_allowed_error(expected), _allowed_error(output))


def _allowed_error(values: Tensor) -> float:
    return TOLERANCE.get(values.dtype, 1e-5) * max(1.0, float(values.abs().max()))
