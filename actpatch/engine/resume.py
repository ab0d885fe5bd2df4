"""One batch, resumed: carried up through the layers over the recorded runs, while its rows enter where they change.

The blocks are run singly from the recorded residual stream. Nothing here decides what is run, or whether that is exact.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.core.components import COMPONENTS, SHORT_NAMES, component_of, in_forward_order
from actpatch.core.sites import Site, block_hook
from actpatch.engine.experiment import Chunk, Experiment, resid_name
from actpatch.engine.plan import Batch, Route, Stage
from actpatch.engine.writes import (
    Where,
    WhereWritten,
    check_fired,
    put,
    runs_of_equal,
    where_written,
    write_hooks,
    writes_of,
)
from actpatch.models.forwards import at_positions, outputs_at, reading, replaced_forward
from actpatch.models.runner import Runner


class Resumption:
    """One batch, carried up through the layers while its rows enter."""

    def __init__(
        self, experiment: Experiment, batch: Batch, chunk: Chunk, routes: Sequence[Route], *, narrow: bool
    ) -> None:
        self.experiment, self.runner, self.batch, self.chunk = experiment, experiment.runner, batch, chunk
        self.routes = [routes[patch] for patch in batch.patches]
        self.orders = [route.order for route in self.routes]
        device = self.runner.device
        self.pairs = torch.tensor(batch.pairs, device=device)
        self.read = (chunk.lengths[list(batch.pairs)] - 1 - batch.start).to(device)
        self.writes = writes_of(batch, [route.hooked for route in routes])
        self.narrow = narrow and self._can_narrow_last_layer()

    def run(self, call: Any) -> Float[Tensor, "row read token"]:
        hooks, fired = write_hooks(self.experiment, self.batch, self.chunk, self.writes)
        last = self.runner.n_layers - 1
        resid: Tensor | None = None
        with self.runner.hooks(hooks), self._narrowed_z(last):  # what is written to z is narrowed too
            for layer in range(self.routes[0].layer, last + 1):
                resid = self._joined(resid, layer)
                resid = self._run_layer(resid, layer, call)
        resid = self._joined(resid, last + 1)
        check_fired(self.writes, fired)
        resid = resid if self.experiment.reads_all else at_positions(resid, self.read)
        return self.runner.unembed(resid, self.experiment.vocabulary)

    def _narrowed_z(self, last: int) -> contextlib.AbstractContextManager[None]:
        """The last layer with its heads' outputs narrowed to what is read, if that can be done."""
        if not self.narrow:
            return contextlib.nullcontext()
        return outputs_at(self.runner.model.hook_dict[block_hook(last, "z")], self.read)

    def _entered(self, layer: int, stage: Stage) -> int:
        """How many rows have entered by then; rows are ordered by entry."""
        return bisect.bisect_right(self.orders, (layer, stage))

    def _joined(self, resid: Tensor | None, layer: int) -> Tensor:
        """The residual stream with the rows that enter before this layer, changed as their patches say."""
        begin = 0 if resid is None else len(resid)
        end = self._entered(layer, Stage.BLOCK)
        entering = self._recorded_resid(layer, begin, end)
        base, source = self.chunk.base.activations, self.chunk.source
        for rows, sites, written in self._on_entry(begin, end):
            if neurons := [site for site in sites if site.component == "mlp_post"]:
                entering[rows] += self._change_by_neurons(
                    neurons, slice(begin + rows.start, begin + rows.stop), written
                )
            for site in sites[len(neurons) :]:
                value = source[site.hook_point]
                if site.component == "mlp_out":
                    value = base[resid_name(layer, self.runner.n_layers)] + (value - base[site.hook_point])
                put(entering[rows], value, replace(site, hook_point=block_hook(0, "resid_pre")), *written(site))
        return entering if resid is None else torch.cat([resid, entering])

    def _run_layer(self, resid: Tensor, layer: int, call: Any) -> Tensor:
        entered, total = len(resid), self._entered(layer, Stage.ATTENTION)
        if not total:
            return resid
        prefix = self.runner.prefix(self.chunk.base, layer, self.pairs[:entered], self.batch.start)
        block = self.runner.model.blocks[layer]
        with contextlib.ExitStack() as stack:
            narrowed = layer == self.runner.n_layers - 1 and self.narrow
            if total > entered:
                outputs = self._attention_outputs(layer, entered, total)
                if narrowed:
                    outputs = at_positions(outputs, self.read[entered:total])
                stack.enter_context(self._given_attention(block.attn, outputs, entered, total))
                resid = torch.cat([resid, self._recorded_resid(layer, entered, total)])
            if narrowed and getattr(block, "mlp", None) is not None:
                stack.enter_context(reading(block.mlp, self.read[:total]))
            return self.runner.run_block(layer, resid, prefix, call)

    def _given_attention(self, attn: Any, given: Tensor, entered: int, total: int) -> Any:
        """The attention with its outputs given for the rows after `entered`, run only for those before."""
        original = attn.forward

        def rows_before(value: Any) -> Any:
            return value[:entered] if isinstance(value, Tensor) and len(value) == total else value

        def forward(*args: Any, **kwargs: Any) -> Any:
            outputs = given
            if entered:
                run = original(*map(rows_before, args), **{name: rows_before(v) for name, v in kwargs.items()})
                outputs = torch.cat([run[0] if isinstance(run, tuple) else run, given])
            return self.runner.attention_output(outputs)

        return replaced_forward(attn, forward)

    def _attention_outputs(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        """Attention outputs of the rows that enter there, changed as their patches say."""
        base, source = self.chunk.base.activations, self.chunk.source
        name = block_hook(layer, "attn_out")
        outputs = self._slice(base[name], begin, end)
        for rows, sites, written in self._on_entry(begin, end):
            if heads := [site for site in sites if site.kind.head_axis is not None]:
                outputs[rows] += self._change_by_heads(heads, slice(begin + rows.start, begin + rows.stop), written)
            for site in sites[len(heads) :]:
                value = source[site.hook_point]
                if site.component == "resid_mid":
                    value = base[name] + (value - base[site.hook_point])
                put(outputs[rows], value, replace(site, hook_point=name), *written(site))
        return outputs

    def _change_by_heads(self, sites: Sequence[Site], rows: slice, written: WhereWritten) -> Float[Tensor, "row pos d"]:
        """What these rows' attention output changes by when the sites, all of one hook point, are replaced."""
        name = sites[0].hook_point
        before = self._slice(self.chunk.base.activations[name], rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            put(after, self.chunk.source[name], site, *written(site))
        heads = sorted({site.head for site in sites if site.head is not None})
        every = any(site.head is None for site in sites)
        return added_by_heads(self.runner, sites[0], after - before, None if every else heads)

    def _change_by_neurons(
        self, sites: Sequence[Site], rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """What these rows' MLP output changes by when the sites, neurons of one layer, are replaced."""
        name, layer = sites[0].hook_point, sites[0].layer
        assert layer is not None
        base, source = self.chunk.base.activations[name], self.chunk.source[name]
        weight = mlp_output_weight(self.runner, layer)
        assert weight is not None, "checked before any change is added"
        chosen = sorted({site.neuron for site in sites if site.neuron is not None})
        if all(site.neuron is not None for site in sites):
            base, source, weight = base[..., chosen], source[..., chosen], weight[chosen]
        else:
            chosen = list(range(len(weight)))
        before = self._slice(base, rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            column = None if site.neuron is None else chosen.index(site.neuron)
            put(after, source, replace(site, neuron=column), *written(site))
        return (after - before) @ weight

    def _recorded_resid(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        return self._slice(self.chunk.base.activations[resid_name(layer, self.runner.n_layers)], begin, end)

    def _slice(self, recorded: Tensor, begin: int, end: int) -> Tensor:
        """A copy of what was recorded for these rows, at the positions that are computed."""
        return recorded[self.pairs[begin:end], self.batch.start : self.batch.length]

    def _on_entry(self, begin: int, end: int) -> Iterator[tuple[slice, Sequence[Site], WhereWritten]]:
        """For each patch that enters: its rows, counted from `begin`; its sites, upstream first; where those write."""
        for patch, rows in runs_of_equal(self.batch.patches, begin, end):
            here = functools.partial(self._where, patch, rows)
            yield slice(rows.start - begin, rows.stop - begin), self.routes[rows.start].on_entry, here

    def _where(self, patch: int, rows: slice, site: Site) -> Where:
        index = self.experiment.patches[patch].sites.index(site)
        return where_written(self.experiment, self.chunk, self.batch, patch, index, rows)

    def _can_narrow_last_layer(self) -> bool:
        """Whether in the last layer only the position that is read has to be computed beyond the values and keys."""
        if self.experiment.reads_all or self.batch.length - self.batch.start == 1:
            return False
        last = self.runner.n_layers - 1
        if block_hook(last, "z") not in self.runner.hook_points:
            return False
        z = in_forward_order(component_of(SHORT_NAMES["z"]))
        sites = [site for route in self.routes for site in route.hooked if site.layer == last]
        return all(site.kind in COMPONENTS and in_forward_order(site.kind) <= z for site in sites)


def added_by_heads(
    runner: Runner, site: Site, change: Float[Tensor, "row pos head d"], heads: Sequence[int] | None
) -> Float[Tensor, "row pos d_model"]:
    """What a change of z or of the heads' results adds to the attention output; None for all heads."""
    if heads is not None:
        change = change[:, :, heads]
    if site.component != "z":
        return change.sum(dim=2)
    weight = runner.model.blocks[site.layer].attn.W_O
    return torch.einsum("bphd,hdm->bpm", change, weight if heads is None else weight[heads])


def mlp_output_weight(runner: Runner, layer: int) -> Float[Tensor, "neuron d_model"] | None:
    """What each neuron of a layer writes into the MLP's output; None where the model does not give it as one matrix."""
    weight = getattr(getattr(runner.model.blocks[layer], "mlp", None), "W_out", None)
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 else None
