"""With what the rows of a batch enter: the recorded runs, changed as their patches say.

Nothing here runs a block.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.sites import Site, block_hook
from actpatch.engine.experiment import Chunk, Experiment, resid_name
from actpatch.engine.plan import Batch, Route, Stage
from actpatch.engine.starts import starts_of
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
from actpatch.models.facts import readable
from actpatch.models.runner import Runner

Change: TypeAlias = tuple[Float[Tensor, "row pos part"], Float[Tensor, "row pos part"], Float[Tensor, "part d_model"]]
"""A part of a linear map's input before and after, and what the map does to it."""

MOST_CANCELLED = 4
"""By which factor a changed output may be smaller than before and still be reached by adding the change to it."""


class Rows(ABC):
    """The rows of a batch: where each enters, with what, and what is written on the way.

    Args:
        runner: of the model.
        batch: the rows, ordered by entry.
        chunk: the recorded runs of their pairs.
    """

    orders: Sequence[tuple[int, Stage]]
    """Where each row enters."""
    hooked: Sequence[Site] = ()
    """What is written by hooks, in any of the rows."""

    def __init__(self, runner: Runner, batch: Batch, chunk: Chunk) -> None:
        self.runner, self.batch, self.chunk = runner, batch, chunk
        self.pairs: Int[Tensor, " row"] = torch.from_numpy(batch.pairs).to(runner.index_device)
        """Index of each row's pair within the chunk."""

    def written(self) -> contextlib.AbstractContextManager[Any]:
        """The model with the hooks that write on the way."""
        return contextlib.nullcontext()

    @abstractmethod
    def before_block(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        """The residual stream before a layer of the rows that enter there; that after the last one, for one more."""

    @abstractmethod
    def after_attention(
        self, layer: int, begin: int, end: int
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]]:
        """Residual streams and attention outputs, of which the block makes a sum, of the rows that enter there."""

    def recorded_resid(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        """What was recorded before a layer, a copy of it."""
        return self.recorded(resid_name(layer, self.runner.n_layers), begin, end)

    def recorded_mid(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        """The recorded residual stream between attention and MLP, as the block adds it up."""
        return self.recorded_resid(layer, begin, end) + self.recorded(block_hook(layer, "attn_out"), begin, end)

    def recorded(self, name: str, begin: int, end: int) -> Float[Tensor, "row pos ..."]:
        """A copy of what was recorded at a hook point for these rows, at the positions that are computed."""
        return self.taken(self.chunk.base.activations[name], begin, end)

    def taken(self, recorded: Tensor, begin: int, end: int) -> Tensor:
        return recorded[self.pairs[begin:end], self.batch.start : self.batch.length]


class Work(ABC):
    """What is changed on the pairs of a chunk: for each change and pair where it begins, and its rows in a batch."""

    @property
    @abstractmethod
    def starts(self) -> Int[Tensor, "change pair"]:
        """First position that each change changes; a pair's length where it changes nothing."""

    @property
    @abstractmethod
    def order(self) -> Int[np.ndarray, "change 2"]:
        """Layer and stage at which the rows of each change enter."""

    @abstractmethod
    def rows(self, batch: Batch, call: Any) -> Rows:
        """The rows of a batch of these changes, whose blocks are called with `call`."""


class PatchWork(Work):
    """Patches on the pairs of a chunk.

    Args:
        experiment: what is run.
        chunk: the recorded runs.
        routes: how each patch is run; none, where all are run in full.
    """

    def __init__(self, experiment: Experiment, chunk: Chunk, routes: Sequence[Route]) -> None:
        self.experiment, self.chunk, self.routes = experiment, chunk, routes

    @property
    def starts(self) -> Int[Tensor, "patch pair"]:
        return starts_of(self.experiment, self.chunk)

    @property
    def order(self) -> Int[np.ndarray, "patch 2"]:
        order = [way.order for way in self.routes] or [(0, 0)] * len(self.experiment.patches)
        return np.array(order, dtype=np.int64).reshape(-1, 2)

    def rows(self, batch: Batch, call: Any) -> Rows:
        return PatchedRows(self.experiment, batch, self.chunk, self.routes)


class PatchedRows(Rows):
    """The rows of patches, into which sites of the chunk's source are written.

    Args:
        experiment: what is run.
        routes: how each patch is run.
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
        compares: bool = False,
        in_full: bool = False,
    ) -> None:
        super().__init__(experiment.runner, batch, chunk)
        self.experiment = experiment
        self.routes = [routes[patch] for patch in batch.patches]
        self.orders = [route.order for route in self.routes]
        self.hooked = [site for route in self.routes for site in route.hooked]
        self.writes = writes_of(batch, [route.hooked for route in routes])
        self.in_full = in_full
        self.compared: list[tuple[Tensor, Tensor]] | None = [] if compares else None
        """Outputs of linear maps, computed in full from their input, and as they were recorded."""

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        hooks, fired = write_hooks(self.experiment, self.batch, self.chunk, self.writes)
        with self.runner.hooks(hooks):
            yield
        check_fired(self.writes, fired)

    def before_block(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        entering = self.recorded_resid(layer, begin, end)
        for rows, sites, written in self._on_entry(begin, end):
            of_all = slice(begin + rows.start, begin + rows.stop)
            entering[rows] = self._written_resid(entering[rows], sites, layer, of_all, written)
        return entering

    def _written_resid(
        self, resid: Tensor, sites: Sequence[Site], layer: int, rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream before a layer, as these sites change it: what is written downstream wins."""
        source = self.chunk.source
        for is_below, group in itertools.groupby(sites, lambda site: site.component in ("mlp_post", "mlp_out")):
            of_group = list(group)
            if is_below:
                resid = self.recorded_mid(layer - 1, rows.start, rows.stop) + self._mlp_output(
                    layer - 1, of_group, rows, written
                )
                continue
            for site in of_group:
                put(
                    resid, source[site.hook_point], replace(site, hook_point=block_hook(0, "resid_pre")), *written(site)
                )
        return resid

    def after_attention(
        self, layer: int, begin: int, end: int
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]]:
        # Where their sum is what is written (`resid_mid`), it is written as it is: the stream gives nothing to it.
        source, name = self.chunk.source, block_hook(layer, "attn_out")
        resid = self.recorded_resid(layer, begin, end)
        outputs = self.taken(self.chunk.base.activations[name], begin, end)
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
        before = self.taken(self.chunk.base.activations[name], rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            put(after, self.chunk.source[name], site, *written(site))
        if not is_z:
            return with_bias(after.sum(dim=2), attn, "b_O")
        heads = sorted({site.head for site in sites if site.head is not None})
        if any(site.head is None for site in sites):
            heads = list(range(after.shape[2]))
        weight = readable(attn, "W_O")
        if weight is None:
            raise RuntimeError("the weights that its heads write with are packed, or not given as one matrix")
        whole = weight.flatten(0, 1)
        output = self.taken(self.chunk.base.activations[block_hook(layer, "attn_out")], rows.start, rows.stop)
        return self._linear_output(
            output,
            (before[:, :, heads].flatten(2), after[:, :, heads].flatten(2), weight[heads].flatten(0, 1)),
            lambda at: with_bias(after[at].flatten(1) @ whole, attn, "b_O"),
        )

    def _mlp_output(
        self, layer: int, sites: Sequence[Site], rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """These rows' MLP output with the sites, neurons of the layer or the output itself, replaced."""
        name = block_hook(layer, "mlp_out")
        output = self.taken(self.chunk.base.activations[name], rows.start, rows.stop)
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
        before = self.taken(base[..., chosen], rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            column = None if site.neuron is None else chosen.index(site.neuron)
            put(after, source[..., chosen], replace(site, neuron=column), *written(site))

        def in_full(at: Tensor) -> Tensor:
            every = self.taken(base, rows.start, rows.stop)[at]
            every[..., chosen] = after[at]
            return with_bias(every @ weight, mlp, "b_out")

        return self._linear_output(output, (before, after, weight[chosen]), in_full)

    def _linear_output(
        self,
        output: Float[Tensor, "row pos d_model"],
        change: Change,
        in_full: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "row pos d_model"]:
        """`changed_output`, noting where it is asked for what the map gives in full."""
        if self.compared is not None:
            everywhere = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
            self.compared.append((in_full(everywhere).view_as(output), output))
        return changed_output(output, change, in_full, most_cancelled=0 if self.in_full else MOST_CANCELLED)

    def _on_entry(self, begin: int, end: int) -> Iterator[tuple[slice, Sequence[Site], WhereWritten]]:
        """For each patch that enters: its rows, counted from `begin`; its sites, upstream first; where those write."""
        for patch, rows in runs_of_equal(self.batch.patches, begin, end):
            here = functools.partial(self._where, patch, rows)
            yield slice(rows.start - begin, rows.stop - begin), self.routes[rows.start].on_entry, here

    def _where(self, patch: int, rows: slice, site: Site) -> Where:
        index = self.experiment.patches[patch].sites.index(site)
        return where_written(self.experiment, self.chunk, self.batch, patch, index, rows)


def changed_output(
    output: Float[Tensor, "row pos d_model"],
    change: Change,
    in_full: Callable[[Tensor], Tensor],
    most_cancelled: float = MOST_CANCELLED,
) -> Float[Tensor, "row pos d_model"]:
    """The output of a linear map, a part of whose input changes.

    Args:
        output: what it is before.
        change: that part before and after, and what the map does to it.
        in_full: the changed output at some rows and positions, not by way of a difference. What cancels leaves a
            residue of rounding of its own size: where little remains, it is not left there.
        most_cancelled: by which factor it may be smaller than before and still be reached by adding the change to it.
    """
    before, after, weight = change
    changed = output + (after - before) @ weight
    cancelled = output.abs().amax(dim=-1) > most_cancelled * changed.abs().amax(dim=-1)
    if bool(cancelled.any()):
        changed[cancelled] = in_full(cancelled).to(changed.dtype)
    return changed


def with_bias(output: Tensor, module: Any, name: str) -> Tensor:
    bias = getattr(module, name, None)
    return output + bias if isinstance(bias, Tensor) else output


def mlp_output_weight(runner: Runner, layer: int) -> Float[Tensor, "neuron d_model"] | None:
    """What each neuron of a layer writes into the MLP's output; None where the model does not give it as one matrix."""
    weight = readable(getattr(runner.model.blocks[layer], "mlp", None), "W_out")
    return weight if weight is not None and weight.ndim == 2 else None
