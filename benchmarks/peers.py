"""How else can one patch?  TransformerLens' own sweeps, a plain loop of hooked runs, and nnsight.

Each peer runs as its users would run it: the clean prompts once with what is copied kept, then all pairs together in
one forward pass per patch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import patching
from transformers import AutoModelForCausalLM

from actpatch.core.sites import Patch, Site, head_axis
from benchmarks.rows import Row, Task, checkpoint

TRANSFORMER_LENS, LOOP, NNSIGHT = "TransformerLens", "plain loop", "nnsight"
HAS_NNSIGHT = importlib.util.find_spec("nnsight") is not None

_OWN_SWEEPS = {
    "z": patching.get_act_patch_attn_head_out_all_pos,
    "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
    "resid_pre": patching.get_act_patch_resid_pre,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
}


class Peer(Protocol):
    """One way to run a sweep."""

    def record(self) -> None:
        """Run the clean prompts and keep what the patches copy."""

    def patched(self, patches: Sequence[Patch]) -> Float[Tensor, "patch pair"]:
        """The metric of each pair under each patch."""


def peers(row: Row, model: Any, task: Task) -> dict[str, Peer]:
    """All peers that can run this row, by name. nnsight is asked for heads' outputs alone."""
    found: dict[str, Peer] = {TRANSFORMER_LENS: OwnSweep(row, model, task), LOOP: PlainLoop(model, task)}
    if HAS_NNSIGHT and row.component == "z":
        found[NNSIGHT] = NNsightLoop(row, model.cfg.d_head, task)
    return found


class OwnSweep:
    """`transformer_lens.patching`, on the same model."""

    def __init__(self, row: Row, model: Any, task: Task) -> None:
        self.model, self.task = model, task
        self.sweep: functools.partial[Tensor] = _OWN_SWEEPS[row.component]

    def record(self) -> None:
        _, self.cache = self.model.run_with_cache(torch.stack(self.task.pairs.clean))

    def patched(self, patches: Sequence[Patch]) -> Float[Tensor, "patch pair"]:
        sites = [patch.sites[0] for patch in patches]
        indices = [(site.layer, site.position if site.head is None else site.head) for site in sites]
        options = {**self.sweep.keywords, "index_axis_names": None}
        values: list[Tensor] = []

        def score(logits: Tensor) -> Tensor:
            values.append(_measured(self.task, logits[:, -1]))
            return values[-1].mean()

        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            self.sweep.func(
                self.model,
                torch.stack(self.task.pairs.corrupted),
                self.cache,
                score,
                index_df=pd.DataFrame(indices, columns=list(self.sweep.keywords["index_axis_names"])),
                **options,
            )
        return torch.stack(values)


class PlainLoop:
    """One `run_with_hooks` per patch, on the same model."""

    def __init__(self, model: Any, task: Task) -> None:
        self.model, self.task = model, task
        self.names = {patch.sites[0].hook_point for patch in task.patches}

    def record(self) -> None:
        clean = torch.stack(self.task.pairs.clean)
        _, self.cache = self.model.run_with_cache(clean, names_filter=lambda name: name in self.names)

    def patched(self, patches: Sequence[Patch]) -> Float[Tensor, "patch pair"]:
        corrupted, values = torch.stack(self.task.pairs.corrupted), []
        for patch in patches:
            site = patch.sites[0]
            hook = functools.partial(_write, source=self.cache[site.hook_point], site=site)
            logits = self.model.run_with_hooks(corrupted, fwd_hooks=[(site.hook_point, hook)])
            values.append(_measured(self.task, logits[:, -1]))
        return torch.stack(values)


class NNsightLoop:
    """One nnsight trace per head, on the Hugging Face model with the same weights.

    A head's z is its slice of what the attention's output projection is given.
    """

    def __init__(self, row: Row, d_head: int, task: Task) -> None:
        import nnsight

        self.d_head, self.task = d_head, task
        self.model = nnsight.NNsight(_hugging_face(row.model))
        is_gpt2 = hasattr(self.model._module, "transformer")
        blocks = self.model.transformer.h if is_gpt2 else self.model.model.layers
        self.projections = [block.attn.c_proj if is_gpt2 else block.self_attn.o_proj for block in blocks]

    def record(self) -> None:
        import nnsight

        model, projections = self.model, self.projections
        with model.trace(torch.stack(self.task.pairs.clean)):
            recorded = nnsight.save([])
            for projection in projections:
                recorded.append(projection.input)
        self.recorded = recorded

    def patched(self, patches: Sequence[Patch]) -> Float[Tensor, "patch pair"]:
        model, corrupted, values = self.model, torch.stack(self.task.pairs.corrupted), []
        for site in (patch.sites[0] for patch in patches):
            assert site.layer is not None and site.head is not None
            head = slice(site.head * self.d_head, (site.head + 1) * self.d_head)
            projection, clean = self.projections[site.layer], self.recorded[site.layer]
            with model.trace(corrupted):
                projection.input[:, :, head] = clean[:, :, head]
                logits = model.lm_head.output[:, -1].save()
            values.append(_measured(self.task, logits))
        return torch.stack(values)


@functools.cache
def _hugging_face(model: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(checkpoint(model)), dtype=torch.float32).eval()


def _write(value: Tensor, hook: Any, *, source: Tensor, site: Site) -> Tensor:
    index: list[Any] = [slice(None)] * value.ndim
    heads = head_axis(site.hook_point)
    if heads is not None:
        index[heads] = site.head
    else:
        index[1] = site.position
    value = value.clone()
    value[tuple(index)] = source[tuple(index)]
    return value


def _measured(task: Task, last: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
    """The metric, from the logits at the last position."""
    return task.metric.measure(last[:, None, task.metric.tokens], torch.arange(len(last)))
