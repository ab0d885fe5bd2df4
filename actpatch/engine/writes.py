"""What hooks write, and where: the source's activations of each row's pair into the rows of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.components import COMPONENTS, in_forward_order
from actpatch.core.sites import Site, head_axis, position_axis
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.plan import Batch
from actpatch.models.runner import Hook

Written = tuple[slice, int, Site]
"""Rows of a batch, their patch, and the site that is written there."""
Where = tuple[Tensor, Tensor | None, int, int, Tensor | None]
"""Pairs of the rows, their positions ([row, position], -1 for none) or None for all, first position, length, and where
the rows' prompts end or None where nothing follows them."""
WhereWritten = Callable[[Site], Where]


def writes_of(batch: Batch, sites: Sequence[Sequence[Site]]) -> list[Written]:
    return [(rows, patch, site) for patch, rows in runs_of_equal(batch.patches, 0, len(batch)) for site in sites[patch]]


def write_hooks(
    experiment: Experiment, batch: Batch, chunk: Chunk, writes: list[Written]
) -> tuple[list[Hook], set[str]]:
    """Hooks that write the source's activations into the rows, and the set of hook points that did."""
    fired: set[str] = set()
    by_hook: dict[str, list[Written]] = {}
    for write in writes:
        by_hook.setdefault(write[2].hook_point, []).append(write)

    def writer(name: str) -> Any:
        source = chunk.source[name]

        def write(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            for rows, patch, site in by_hook[name]:
                index = experiment.patches[patch].sites.index(site)
                put(value[rows], source, site, *where_written(experiment, chunk, batch, patch, index, rows))
            fired.add(name)
            return value

        return write

    hooks = []
    for name in sorted(by_hook, key=_in_forward_order):  # a hook point may be written by way of others' hooks
        hooks += experiment.runner.writing_hooks(name, writer(name))
    return hooks, fired


def _in_forward_order(hook_point: str) -> tuple[int, int]:
    site = Site(hook_point)
    is_known = site.kind in COMPONENTS
    return (-1 if site.layer is None else site.layer, in_forward_order(site.kind) if is_known else -1)


def check_fired(writes: list[Written], fired: set[str]) -> None:
    if silent := {site.hook_point for _, _, site in writes} - fired:
        raise RuntimeError(
            f"the hook {', '.join(sorted(silent))} did not fire, so its patch was not applied: this model computes "
            "without it"
        )


def where_written(experiment: Experiment, chunk: Chunk, batch: Batch, patch: int, index: int, rows: slice) -> Where:
    pairs = torch.tensor(batch.pairs[rows])
    at = experiment.positions[patch][index]
    device = experiment.runner.index_device
    ends = chunk.ends[pairs] if experiment.pairs.appended else None
    return (
        pairs.to(device),
        None if at is None else at[chunk.pairs[pairs]].to(device),
        batch.start,
        batch.length,
        None if ends is None else ends.to(device),
    )


def put(
    target: Tensor,
    source: Tensor,
    site: Site,
    pairs: Tensor,
    at: Tensor | None,
    start: int,
    length: int,
    ends: Tensor | None = None,
) -> None:
    """Write the source's activation of each row's pair into the rows, which hold positions `start` to `length`.

    What is appended to a prompt keeps its own activations, and as keys of an attention its own place.
    """
    axis, heads = position_axis(site.hook_point), head_axis(site.hook_point)
    source = source.to(target.device)
    if site.head is not None and heads is not None:
        target, source = target.select(heads, site.head), source.select(heads, site.head)
        axis -= heads < axis
    if site.neuron is not None:
        target, source = target.select(-1, site.neuron), source.select(-1, site.neuron)
    is_attention = head_axis(site.hook_point) == 1
    if is_attention:
        source, target = source[..., :length], target[..., :length]
    if ends is not None:
        _put_in_prompts(target.movedim(axis, 1), source.movedim(axis, 1), pairs, at, start, ends, is_attention)
        return
    if at is None:
        target.copy_(source[pairs].narrow(axis, start, length - start))
        return
    rows, computed = _computed(at, start)
    target.movedim(axis, 1)[rows, computed - start] = source.movedim(axis, 1)[pairs[rows], computed]


def _put_in_prompts(
    target: Float[Tensor, "row computed ..."],
    source: Float[Tensor, "pair recorded ..."],
    pairs: Int[Tensor, " row"],
    at: Int[Tensor, "row _"] | None,
    start: int,
    ends: Int[Tensor, " row"],
    is_attention: bool,
) -> None:
    """The same where something is appended to the prompts, which end before the positions `ends`."""
    computed = torch.arange(start, start + target.shape[1], device=ends.device)
    chosen = computed < ends[:, None] if at is None else (computed[:, None] == at[:, None, :]).any(dim=2)
    rows, places = chosen.nonzero(as_tuple=True)
    written = source[pairs[rows], computed[places]]
    if is_attention:
        keys = (torch.arange(target.shape[-1], device=ends.device) < ends[rows, None]).to(target.device)
        keys = keys.view(len(rows), *[1] * (written.ndim - 2), -1)
        written = torch.where(keys, written, target[rows, places])
    target[rows, places] = written


def _computed(at: Int[Tensor, "row _"], start: int) -> tuple[Int[Tensor, " write"], Int[Tensor, " write"]]:
    """Row and position of each that is computed. Before the start what is written is there already, so nothing has to
    be."""
    rows, columns = (at >= start).nonzero(as_tuple=True)
    return rows, at[rows, columns]


def runs_of_equal(values: Int[np.ndarray, " row"], begin: int, end: int) -> Iterator[tuple[int, slice]]:
    """(value, where) of each stretch of equal values."""
    if begin >= end:
        return
    changes = begin + 1 + np.flatnonzero(np.diff(values[begin:end]))
    for start, stop in itertools.pairwise([begin, *changes.tolist(), end]):
        yield int(values[start]), slice(start, stop)


def noise_hook(noise: Float[Tensor, "row pos d_model"]) -> Hook:
    """A hook that adds the noise to the token embeddings."""
    return "hook_embed", lambda embedded, hook: embedded + noise.to(embedded)
