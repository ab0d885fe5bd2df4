"""One batch, resumed: carried up through the layers over the recorded runs, while its rows enter where they change.

The blocks are run singly from the recorded residual stream. Nothing here decides what is run, or whether that is exact.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
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
from actpatch.models.runner import Read, Runner

MOST_CANCELLED = 4
"""By which factor a changed output may be smaller than before and still be reached by adding the change to it."""


class Resumption:
    """One batch, carried up through the layers while its rows enter.

    Args:
        experiment: what is run.
        batch: the rows.
        chunk: the recorded runs of their pairs.
        routes: how each patch is run.
        narrow: whether, in the last layer, what follows the attention is computed only where it is read.
        logits_alone: whether no logits are computed but those that are read.
        compares: whether maps that are taken for linear are also computed in full, where nothing changes.
        in_full: whether no output of a linear map is reached by adding a change to it.
    """

    def __init__(
        self,
        experiment: Experiment,
        batch: Batch,
        chunk: Chunk,
        routes: Sequence[Route],
        *,
        narrow: bool,
        logits_alone: bool,
        compares: bool = False,
        in_full: bool = False,
    ) -> None:
        self.experiment, self.runner, self.batch, self.chunk = experiment, experiment.runner, batch, chunk
        self.routes = [routes[patch] for patch in batch.patches]
        self.orders = [route.order for route in self.routes]
        device = self.runner.device
        self.pairs = torch.tensor(batch.pairs, device=device)
        self.read = None if chunk.reads is None else (chunk.reads[list(batch.pairs)] - batch.start).to(device)
        self.writes = writes_of(batch, [route.hooked for route in routes])
        self.narrowed = self.read if narrow and self._can_narrow_last_layer() else None
        """Positions that alone are computed in the last layer after its attention; None for all."""
        self.logits_alone = logits_alone
        self.in_full = in_full
        self.compared: list[tuple[Tensor, Tensor]] | None = [] if compares else None
        """Outputs of linear maps, computed in full from their input, and as they were recorded."""

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
        resid = resid if self.read is None else at_positions(resid, self.read)
        if self.logits_alone:
            return self.runner.unembed(resid, self.experiment.vocabulary)
        return Read(None, self.experiment.vocabulary).taken(self.runner.unembed(resid, None))

    def _narrowed_z(self, last: int) -> contextlib.AbstractContextManager[None]:
        """The last layer with its heads' outputs narrowed to what is read, if that can be done."""
        if self.narrowed is None:
            return contextlib.nullcontext()
        return outputs_at(self.runner.model.hook_dict[block_hook(last, "z")], self.narrowed)

    def _entered(self, layer: int, stage: Stage) -> int:
        """How many rows have entered by then; rows are ordered by entry."""
        return bisect.bisect_right(self.orders, (layer, stage))

    def _joined(self, resid: Tensor | None, layer: int) -> Tensor:
        """The residual stream with the rows that enter before this layer, changed as their patches say."""
        begin = 0 if resid is None else len(resid)
        end = self._entered(layer, Stage.BLOCK)
        entering = self._recorded_resid(layer, begin, end)
        for rows, sites, written in self._on_entry(begin, end):
            entering[rows] = self._written_resid(
                entering[rows], sites, layer, slice(begin + rows.start, begin + rows.stop), written
            )
        return entering if resid is None else torch.cat([resid, entering])

    def _written_resid(
        self, resid: Tensor, sites: Sequence[Site], layer: int, rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream before a layer, as these sites change it: what is written downstream wins."""
        source = self.chunk.source
        for is_below, group in itertools.groupby(sites, lambda site: site.component in ("mlp_post", "mlp_out")):
            of_group = list(group)
            if is_below:
                resid = self._mid(layer - 1, rows) + self._mlp_output(layer - 1, of_group, rows, written)
                continue
            for site in of_group:
                put(
                    resid, source[site.hook_point], replace(site, hook_point=block_hook(0, "resid_pre")), *written(site)
                )
        return resid

    def _run_layer(self, resid: Tensor, layer: int, call: Any) -> Tensor:
        entered, total = len(resid), self._entered(layer, Stage.ATTENTION)
        if not total:
            return resid
        prefix = self.runner.prefix(self.chunk.base, layer, self.pairs[:entered], self.batch.start)
        block = self.runner.model.blocks[layer]
        with contextlib.ExitStack() as stack:
            narrowed = self.narrowed if layer == self.runner.n_layers - 1 else None
            if total > entered:
                entering, outputs = self._entering_after_attention(layer, entered, total)
                if narrowed is not None:
                    outputs = at_positions(outputs, narrowed[entered:total])
                stack.enter_context(self._given_attention(block.attn, outputs, entered, total))
                resid = torch.cat([resid, entering])
            if narrowed is not None and getattr(block, "mlp", None) is not None:
                stack.enter_context(reading(block.mlp, narrowed[:total]))
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

    def _entering_after_attention(
        self, layer: int, begin: int, end: int
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]]:
        """Residual streams and attention outputs, of which the block makes a sum, of the rows that enter there.

        Where their sum is what is written (`resid_mid`), it is written as it is: the stream gives nothing to it.
        """
        source, name = self.chunk.source, block_hook(layer, "attn_out")
        resid = self._recorded_resid(layer, begin, end)
        outputs = self._slice(self.chunk.base.activations[name], begin, end)
        for rows, sites, written in self._on_entry(begin, end):
            of_all = slice(begin + rows.start, begin + rows.stop)
            if heads := [site for site in sites if site.kind.head_axis is not None]:
                outputs[rows] = self._output_of_heads(heads, of_all, written)
            for site in sites[len(heads) :]:
                value, where = source[site.hook_point], written(site)
                put(outputs[rows], value, replace(site, hook_point=name), *where)
                if site.component == "resid_mid":
                    put(resid[rows], torch.zeros_like(value), replace(site, hook_point=name), *where)
        return resid, outputs

    def _output_of_heads(
        self, sites: Sequence[Site], rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """These rows' attention output with the sites, all of one hook point, replaced."""
        name, layer, is_z = sites[0].hook_point, sites[0].layer, sites[0].component == "z"
        assert layer is not None
        attn = self.runner.model.blocks[layer].attn
        before = self._slice(self.chunk.base.activations[name], rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            put(after, self.chunk.source[name], site, *written(site))
        if not is_z:
            return _with_bias(after.sum(dim=2), attn, "b_O")
        heads = sorted({site.head for site in sites if site.head is not None})
        if any(site.head is None for site in sites):
            heads = list(range(after.shape[2]))
        weight, whole = attn.W_O, attn.W_O.flatten(0, 1)
        output = self._slice(self.chunk.base.activations[block_hook(layer, "attn_out")], rows.start, rows.stop)
        return self._linear_output(
            output,
            (before[:, :, heads].flatten(2), after[:, :, heads].flatten(2), weight[heads].flatten(0, 1)),
            lambda at: _with_bias(after[at].flatten(1) @ whole, attn, "b_O"),
        )

    def _mlp_output(
        self, layer: int, sites: Sequence[Site], rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """These rows' MLP output with the sites, neurons of the layer or the output itself, replaced."""
        name = block_hook(layer, "mlp_out")
        output = self._slice(self.chunk.base.activations[name], rows.start, rows.stop)
        if neurons := [site for site in sites if site.component == "mlp_post"]:
            output = self._output_of_neurons(layer, output, neurons, rows, written)
        for site in sites[len(neurons) :]:
            put(output, self.chunk.source[name], site, *written(site))
        return output

    def _output_of_neurons(
        self, layer: int, output: Tensor, sites: Sequence[Site], rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """These rows' MLP output with the sites, neurons of the layer, replaced."""
        name, mlp = sites[0].hook_point, self.runner.model.blocks[layer].mlp
        base, source = self.chunk.base.activations[name], self.chunk.source[name]
        weight = mlp_output_weight(self.runner, layer)
        if weight is None:
            raise RuntimeError("its MLP's output is no product with one matrix")
        chosen = list(range(len(weight)))
        if all(site.neuron is not None for site in sites):
            chosen = sorted({site.neuron for site in sites if site.neuron is not None})
        before = self._slice(base[..., chosen], rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            column = None if site.neuron is None else chosen.index(site.neuron)
            put(after, source[..., chosen], replace(site, neuron=column), *written(site))

        def in_full(at: Tensor) -> Tensor:
            every = self._slice(base, rows.start, rows.stop)[at]
            every[..., chosen] = after[at]
            return _with_bias(every @ weight, mlp, "b_out")

        return self._linear_output(output, (before, after, weight[chosen]), in_full)

    def _linear_output(
        self,
        output: Float[Tensor, "row pos d_model"],
        change: tuple[Float[Tensor, "row pos part"], Float[Tensor, "row pos part"], Float[Tensor, "part d_model"]],
        in_full: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "row pos d_model"]:
        """The output of a linear map, a part of whose input changes.

        Args:
            output: what it is before.
            change: that part before and after, and what the map does to it.
            in_full: the changed output at some rows and positions, not by way of a difference. What cancels leaves a
                residue of rounding of its own size: where little remains, it is not left there.
        """
        before, after, weight = change
        if self.compared is not None:
            everywhere = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
            self.compared.append((in_full(everywhere).view_as(output), output))
        changed = output + (after - before) @ weight
        most = 0.0 if self.in_full else MOST_CANCELLED
        cancelled = output.abs().amax(dim=-1) > most * changed.abs().amax(dim=-1)
        if bool(cancelled.any()):
            changed[cancelled] = in_full(cancelled).to(changed.dtype)
        return changed

    def _mid(self, layer: int, rows: slice) -> Float[Tensor, "row pos d_model"]:
        """The recorded residual stream between attention and MLP, as the block adds it up."""
        output = self.chunk.base.activations[block_hook(layer, "attn_out")]
        return self._recorded_resid(layer, rows.start, rows.stop) + self._slice(output, rows.start, rows.stop)

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
        """Whether in the last layer only the position that is read has to be computed beyond the values and keys.

        Of several it has to be done in full: the one position is added to the stream of all by broadcasting.
        """
        if self.read is None or self.read.shape[1] > 1 or self.batch.length - self.batch.start == 1:
            return False
        last = self.runner.n_layers - 1
        if block_hook(last, "z") not in self.runner.hook_points:
            return False
        z = in_forward_order(component_of(SHORT_NAMES["z"]))
        sites = [site for route in self.routes for site in route.hooked if site.layer == last]
        return all(site.kind in COMPONENTS and in_forward_order(site.kind) <= z for site in sites)


def _with_bias(output: Tensor, module: Any, name: str) -> Tensor:
    bias = getattr(module, name, None)
    return output + bias if isinstance(bias, Tensor) else output


def mlp_output_weight(runner: Runner, layer: int) -> Float[Tensor, "neuron d_model"] | None:
    """What each neuron of a layer writes into the MLP's output; None where the model does not give it as one matrix."""
    weight = getattr(getattr(runner.model.blocks[layer], "mlp", None), "W_out", None)
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 else None
