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

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.graph import Reader, Writer
from actpatch.core.sites import Patch, Site, head_axis
from benchmarks.rows import DIRECT_PATHS, EDGES, Row, Task, checkpoint

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

    def calls(self) -> list[list[int]]:
        """The patches that it runs in one call each: their numbers."""

    def record(self) -> None:
        """Run the clean prompts and keep what the patches copy."""

    def patched(self, patches: Sequence[Patch]) -> Float[Tensor, "patch pair"]:
        """The metric of each pair under each patch."""


def peers(row: Row, model: Any, task: Task) -> dict[str, Peer]:
    """All peers that can run this row, by name. nnsight is asked for heads' outputs alone.

    TransformerLens has a sweep over edges from its fourth version on, and of edges between heads alone.
    """
    if row.component == EDGES:
        return {LOOP: EdgeLoop(model, task)}
    if row.component == DIRECT_PATHS:
        return {TRANSFORMER_LENS: DirectPaths(model, task), LOOP: EdgeLoop(model, task)}
    found: dict[str, Peer] = {TRANSFORMER_LENS: OwnSweep(row, model, task), LOOP: PlainLoop(model, task)}
    if HAS_NNSIGHT and row.component == "z":
        found[NNSIGHT] = NNsightLoop(row, model.cfg.d_head, task)
    return found


class OwnSweep:
    """`transformer_lens.patching`, on the same model."""

    def __init__(self, row: Row, model: Any, task: Task) -> None:
        self.model, self.task = model, task
        self.sweep: functools.partial[Tensor] = _OWN_SWEEPS[row.component]

    def calls(self) -> list[list[int]]:
        return _one_by_one(self.task)

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

    def calls(self) -> list[list[int]]:
        return _one_by_one(self.task)

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

    def calls(self) -> list[list[int]]:
        return _one_by_one(self.task)

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


class EdgeLoop:
    """One `run_with_hooks` per edge, on the same model.

    What the sender writes in the other run less what it writes in this one is added to what the receiver alone reads,
    of which TransformerLens gives every receiver a copy where a switch is on: for the edges that need it.
    """

    def __init__(self, model: Any, task: Task) -> None:
        self.model, self.task = model, task

    def calls(self) -> list[list[int]]:
        return _one_by_one(self.task)

    def record(self) -> None:
        read = ("hook_z", "hook_mlp_out", "blocks.0.hook_resid_pre")
        runs = [torch.stack(prompts) for prompts in (self.task.pairs.clean, self.task.pairs.corrupted)]
        self.clean, self.corrupted = (
            self.model.run_with_cache(run, names_filter=lambda name: name.endswith(read))[1] for run in runs
        )

    def patched(self, patches: Sequence[Patch]) -> Float[Tensor, "patch pair"]:
        assert isinstance(patches, EdgePatches)
        corrupted, values = torch.stack(self.task.pairs.corrupted), []
        with _Switches(self.model) as switches:
            for i in range(len(patches)):
                writer = patches.graph.writers[patches.writers[i]]
                reader = patches.graph.readers[patches.readers[i]]
                change = self._written(self.clean, writer) - self._written(self.corrupted, writer)
                switches.set_for(reader)
                hook = functools.partial(_add, change=change, head=reader.head)
                logits = self.model.run_with_hooks(corrupted, fwd_hooks=[(self._read_at(reader), hook)])
                values.append(_measured(self.task, logits[:, -1]))
        return torch.stack(values)

    def _written(self, cache: Any, writer: Writer) -> Float[Tensor, "pair pos d_model"]:
        if writer.kind == "input":
            return cache["blocks.0.hook_resid_pre"]
        if writer.head is None:
            return cache[f"blocks.{writer.layer}.hook_mlp_out"]
        z = cache[f"blocks.{writer.layer}.attn.hook_z"]
        return z[:, :, writer.head] @ self.model.blocks[writer.layer].attn.W_O[writer.head]

    def _read_at(self, reader: Reader) -> str:
        if reader.kind == "logits":
            return f"blocks.{reader.layer}.hook_resid_post"
        if reader.kind != "mlp":
            return f"blocks.{reader.layer}.hook_{reader.kind}_input"
        is_bridge = isinstance(self.model, TransformerBridge)
        return f"blocks.{reader.layer}.{'ln2.hook_in' if is_bridge else 'hook_mlp_in'}"


class DirectPaths:
    """TransformerLens' own sweep from one head to the queries, keys or values of all heads of later layers.

    A run of it takes as long wherever the head lies, so that of the sweep those are a fair sample that have few.
    """

    def __init__(self, model: Any, task: Task) -> None:
        assert isinstance(task.patches, EdgePatches)
        self.model, self.task, self.edges = model, task, task.patches
        self.sweep: Any = vars(patching)["get_act_patch_direct_path"]  # not in every version

    def calls(self) -> list[list[int]]:
        return [numbers.tolist() for _, numbers in _by_sender_and_kind(self.edges)]

    def record(self) -> None:
        _, self.clean = self.model.run_with_cache(torch.stack(self.task.pairs.clean))
        _, self.corrupted = self.model.run_with_cache(torch.stack(self.task.pairs.corrupted))

    def patched(self, patches: Sequence[Patch]) -> Float[Tensor, "patch pair"]:
        assert isinstance(patches, EdgePatches)
        found = torch.empty(len(patches), len(self.task.pairs))
        for (sender, kind), numbers in _by_sender_and_kind(patches):
            values: list[Tensor] = []

            def score(logits: Tensor, values: list[Tensor] = values) -> Tensor:
                values.append(_measured(self.task, logits[:, -1]))
                return values[-1].mean()

            writer = patches.graph.writers[sender]
            self.sweep(
                self.model,
                torch.stack(self.task.pairs.corrupted),
                self.clean,
                self.corrupted,
                score,
                writer.layer,
                writer.head,
                component=kind,
                verbose=False,
            )
            found[torch.from_numpy(numbers)] = torch.stack(values)  # by layer and head, as the edges are ordered
        return found


def _by_sender_and_kind(edges: EdgePatches) -> list[tuple[tuple[int, str], Int[np.ndarray, " edge"]]]:
    """The numbers of the edges from one sender to receivers of one kind."""
    kinds = np.array([reader.kind for reader in edges.graph.readers])[edges.readers]
    return [
        ((int(sender), kind), np.flatnonzero((edges.writers == sender) & (kinds == kind)))
        for kind in np.unique(kinds).tolist()
        for sender in np.unique(edges.writers[kinds == kind])
    ]


class _Switches:
    """The switches by which receivers have copies of the stream, put back afterwards."""

    def __init__(self, model: Any) -> None:
        self.model = model
        has_switches = ["use_split_qkv_input", *([] if isinstance(model, TransformerBridge) else ["use_hook_mlp_in"])]
        self.before = {name: bool(getattr(model.cfg, name)) for name in has_switches}

    def __enter__(self) -> _Switches:
        return self

    def __exit__(self, *error: object) -> None:
        self._set(self.before)

    def set_for(self, reader: Reader) -> None:
        """What the receiver needs alone: copies for queries, keys and values cost time."""
        self._set({name: (reader.kind == "mlp") == ("mlp" in name) and reader.kind != "logits" for name in self.before})

    def _set(self, switches: dict[str, bool]) -> None:
        for name, is_on in switches.items():
            if bool(getattr(self.model.cfg, name)) != is_on:
                getattr(self.model, f"set_{name}")(is_on)


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


def _add(value: Tensor, hook: Any, *, change: Tensor, head: int | None) -> Tensor:
    value = value.clone()
    if head is None:
        value += change
    else:
        value[:, :, head] += change
    return value


def _one_by_one(task: Task) -> list[list[int]]:
    return [[number] for number in range(len(task.patches))]


def _measured(task: Task, last: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
    """The metric, from the logits at the last position."""
    return task.metric.measure(last[:, None, task.metric.tokens], torch.arange(len(last)))
