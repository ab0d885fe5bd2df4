"""Estimates of edges: what a writer changes, times the gradient of the metric at what one reader reads.

    score(u -> v) = Σ (u written - u recorded) · gradient at the input of v,  before its normalization

(Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery"; Hanna et al. 2024, "Have Faith in
Faithfulness"). No run splits what readers read. What is kept is a head wide: z, and the gradients of queries, keys and
values. They are expanded a layer at a time, z through the head's output weights, the gradient of a query through
its weights and then through the layer's own normalization; products of all writers before the layer with all of its
readers fill the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.estimates import Estimate
from actpatch.core.graph import Graph, Kind, Writer
from actpatch.core.sites import block_hook
from actpatch.engine.edges import written_at, written_by
from actpatch.engine.estimating import RULES, points_of
from actpatch.engine.exactness import too_far
from actpatch.engine.experiment import resid_name
from actpatch.engine.gradients import Differentiator, Run
from actpatch.engine.readers import QUERIES_KEYS_VALUES

MOST_EXPANDED_BYTES = 256 * 2**20
"""Most that writers' changes take, expanded, at the positions that are worked on together."""


@dataclass
class Seen:
    """What a run shows of what a layer's readers read."""

    norms: dict[str, tuple[nn.Module, list[tuple[Tensor, Tensor]]]] = field(default_factory=dict)
    """Name of a normalization -> the module, and what it was given and what it gave, each time. What comes into the
    block stands under an empty name."""
    mlp: Tensor | None = None
    """What the MLP was given, in the graph of the run, for itself alone."""


class EdgeEstimator:
    """Estimates of edges on the pairs of a chunk.

    Args:
        differentiator: runs them.
        estimate: how they are estimated.
    """

    def __init__(self, differentiator: Differentiator, estimate: Estimate) -> None:
        self.differentiator, self.estimate = differentiator, estimate
        self.experiment, self.chunk, self.runner = (
            differentiator.experiment,
            differentiator.chunk,
            differentiator.runner,
        )
        assert isinstance(self.experiment.patches, EdgePatches)
        self.edges: EdgePatches = self.experiment.patches
        self.graph: Graph = self.edges.graph
        rules = RULES.get(estimate.method)
        self.rules = None if rules is None else rules(self.runner)
        readers = [self.graph.readers[number] for number in self.edges.used_readers]
        self.layers = sorted({reader.layer for reader in readers if reader.kind != "logits"})
        self.reads_logits = any(reader.kind == "logits" for reader in readers)
        self.kinds = {reader.kind for reader in readers}
        self._by_weights: dict[tuple[int, str], bool] = {}
        """Of each layer's queries, keys and values, whether they are what their weights make of what is normalized."""

    def scores(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "metric edge pair"]:
        """By how much each edge would move each metric of these pairs of the chunk."""
        points = [*points_of(self.estimate, self.differentiator)]
        found: Tensor | None = None
        for point in points:
            seen: dict[int, Seen] = {}
            with ExitStack() as stack:
                with ExitStack() as watching:
                    for layer in self.layers:
                        _watch(watching, self.runner.model.blocks[layer], seen.setdefault(layer, Seen()))
                    run = stack.enter_context(self.differentiator.running(point, rows, self._names, self.rules))
                stack.enter_context(torch.enable_grad())
                for metric in range(len(run.values)):
                    if found is None:
                        shape = len(run.values), len(self.edges), len(rows)
                        found = torch.zeros(shape, dtype=self._precision, device=self.runner.device)
                    self._fill(found[metric], run, metric, seen, rows, 1 / len(points))
        assert found is not None
        return found

    @property
    def _precision(self) -> torch.dtype:
        return torch.promote_types(next(self.runner.model.parameters()).dtype, torch.float32)

    @property
    def _names(self) -> list[str]:
        """Hook points at which gradients are taken."""
        kinds = [kind for kind in QUERIES_KEYS_VALUES if kind in self.kinds]
        names = [block_hook(layer, kind) for layer in self.layers if self.graph.heads[layer] for kind in kinds]
        return [*names, resid_name(self.graph.n_layers, self.graph.n_layers)]

    def _fill(
        self,
        found: Float[Tensor, "edge row"],
        run: Run,
        metric: int,
        seen: dict[int, Seen],
        rows: Int[Tensor, " row"],
        times: float,
    ) -> None:
        """Add one metric's scores at one point of the path."""
        readers_of = {layer: self._readers(layer) for layer in self.layers}
        inputs = {layer: self._read_by_mlp(layer, seen[layer]) for layer in self.layers if self._has_mlp(layer)}
        read = {f"what MLP {layer} reads": given for layer, given in inputs.items()}
        by_name = run.slopes_at(metric, {name: run.held[name] for name in self._names} | read)
        of_mlps = {layer: by_name[name] for layer, name in zip(inputs, read)}
        masks = written_at(self.experiment, self.chunk)[:, rows]
        for span in self._spans(len(rows), masks):
            senders = Senders(self, rows, span, masks)
            for layer in self.layers:
                parts = [
                    self._slopes_of_heads(run, seen[layer], layer, kind, by_name[block_hook(layer, kind)], span)
                    for kind in QUERIES_KEYS_VALUES
                    if kind in self.kinds and self.graph.heads[layer]
                ]
                if layer in of_mlps:
                    # A model may hand on the positions of all rows as one axis.
                    slope = of_mlps[layer].view_as(by_name[self._names[-1]])[:, None, span]
                    parts.append(
                        self._through_norm(seen[layer], self._norm_of(seen[layer], inputs[layer]), slope, span)
                    )
                if parts:
                    self._add(found, senders, readers_of[layer], torch.cat(parts, dim=1), times)
            if self.reads_logits:
                last = by_name[self._names[-1]][:, None, span]
                self._add(found, senders, [len(self.graph.readers) - 1], last, times)

    def _readers(self, layer: int) -> list[int]:
        """Numbers of a layer's readers of the kinds that are asked for, in the order of the graph."""
        return [
            number
            for number, reader in enumerate(self.graph.readers)
            if reader.layer == layer and reader.kind in self.kinds and reader.kind != "logits"
        ]

    def _spans(self, n_rows: int, masks: Bool[Tensor, "place row pos"]) -> Iterator[slice]:
        """Stretches of positions on which what all writers change fits into the memory that is given to it."""
        first = int(masks.any(dim=0).any(dim=0).int().argmax())
        end = masks.shape[-1]
        width = len(self.edges.used_writers) * n_rows * self.runner.model.cfg.d_model * self._precision.itemsize
        size = max(1, MOST_EXPANDED_BYTES // width)
        for begin in range(first, end, size):
            yield slice(begin, min(begin + size, end))

    def _add(
        self,
        found: Float[Tensor, "edge row"],
        senders: Senders,
        readers: Sequence[int],
        slopes: Float[Tensor, "row reader pos d_model"],
        times: float,
    ) -> None:
        """Add the products of what writers change with these readers' gradients to the scores of their edges."""
        numbers = np.flatnonzero(np.isin(self.edges.readers, readers))
        place = np.searchsorted(readers, self.edges.readers[numbers])
        for column, which in enumerate(senders.columns(self.edges.columns[numbers])):
            if not len(which):
                continue
            of_edges = numbers[which]
            writers = np.searchsorted(self.edges.used_writers, self.edges.writers[of_edges])
            changes = senders.up_to(int(writers.max()) + 1, column)
            table = torch.bmm(changes.flatten(2), slopes.to(changes).flatten(2).transpose(1, 2))
            index = torch.from_numpy(writers), torch.from_numpy(place[which])
            found[torch.from_numpy(of_edges)] += times * table[:, index[0], index[1]].T

    def _slopes_of_heads(
        self, run: Run, seen: Seen, layer: int, kind: Kind, slope: Float[Tensor, "row pos head d_head"], span: slice
    ) -> Float[Tensor, "row head span d_model"]:
        """The gradient at what each head's queries, keys or values read, before the normalization."""
        name = "ln1" if "ln1" in seen.norms else ""
        if (layer, kind) not in self._by_weights:
            self._by_weights[layer, kind] = self._is_by_weights(run, seen, name, layer, kind)
        if self._by_weights[layer, kind]:
            each = self._through_weights(layer, kind, slope[:, span])
        else:  # whatever stands between what is normalized and a query
            one_hot = torch.diag_embed(slope.movedim(2, -1)).movedim((-2, -1), (0, 3))
            each = self._through_graph(run, seen, name, layer, kind, one_hot).transpose(0, 1)[:, :, span]
        return self._through_norm(seen, name, each, span)

    def _is_by_weights(self, run: Run, seen: Seen, name: str, layer: int, kind: Kind) -> bool:
        """Whether queries, keys or values are what their weights make of what the normalization gave.

        From one position to another of one prompt, both change alike, whatever the biases.
        """
        weight = self._weight(layer, kind)
        gave, made = seen.norms[name][1][0][1].detach(), run.held[block_hook(layer, kind)].detach()
        if gave.ndim != 3 or gave.shape[:2] != made.shape[:2] or made.shape[2] > len(weight):
            return False  # an input for each head, or the positions of all rows on one axis
        expected = torch.einsum("pm,hmd->phd", gave[0], weight[:: len(weight) // made.shape[2]].to(gave))
        return too_far("", made[0] - made[0, :1], expected - expected[:1]) is None

    def _weight(self, layer: int, kind: Kind) -> Float[Tensor, "head d_model d_head"]:
        return getattr(self.runner.model.blocks[layer].attn, f"W_{kind.upper()}").detach()

    def _through_weights(
        self, layer: int, kind: Kind, slope: Float[Tensor, "row pos head d_head"]
    ) -> Float[Tensor, "row head pos d_model"]:
        """Gradients at each head's queries, keys or values, as gradients at what the projection reads."""
        weight = self._weight(layer, kind)
        weight = weight[:: len(weight) // slope.shape[2]]  # one of each group, where keys are given once per query head
        return torch.einsum("bphd,hmd->bhpm", slope, weight.to(slope.dtype))

    def _through_graph(
        self, run: Run, seen: Seen, name: str, layer: int, kind: Kind, slopes: Float[Tensor, "n row pos head d_head"]
    ) -> Float[Tensor, "n row pos d_model"]:
        """The same by the graph of the run, of all heads together."""
        gave = list({id(output): output for _, output in seen.norms[name][1]}.values())
        made = run.held[block_hook(layer, kind)]
        found = torch.autograd.grad(made, gave, slopes, retain_graph=True, allow_unused=True, is_grads_batched=True)
        each = torch.stack([one for one in found if one is not None]).sum(dim=0)
        return each.sum(dim=3) if each.ndim == 5 else each  # where each head has an input of its own

    def _has_mlp(self, layer: int) -> bool:
        return "mlp" in self.kinds and self.graph.mlps[layer]

    def _read_by_mlp(self, layer: int, seen: Seen) -> Float[Tensor, "... d_model"]:
        """What the MLP of a layer was given, in the graph; of one that is no module, what its normalization gave."""
        if seen.mlp is not None:
            return seen.mlp
        if "ln2" not in seen.norms:
            raise RuntimeError(f"edges of this model cannot be estimated: it does not show what MLP {layer} reads")
        return seen.norms["ln2"][1][-1][1]

    def _norm_of(self, seen: Seen, given: Float[Tensor, "... d_model"]) -> str:
        """The normalization that gave an MLP what it reads."""
        for name, (_, calls) in reversed(seen.norms.items()):
            if any(gave.shape == given.shape and torch.equal(gave, given) for _, gave in calls):
                return name
        raise RuntimeError("edges of this model cannot be estimated: an MLP reads what no normalization gave")

    def _through_norm(
        self, seen: Seen, name: str, slopes: Float[Tensor, "row reader pos d_model"], span: slice
    ) -> Float[Tensor, "row reader pos d_model"]:
        """Gradients at what a normalization gives, as gradients at what it is given: its own Jacobian, transposed."""
        if not name:
            return slopes
        module, calls = seen.norms[name]
        given = calls[0][0].detach()
        if given.ndim == 4:  # an input for each head
            if not torch.equal(given, given[:, :, :1].expand_as(given)):
                raise RuntimeError(
                    "edges cannot be estimated: code that was put on the model changes what a head reads"
                )
            given = given[:, :, 0]
        given = given.reshape(len(slopes), -1, given.shape[-1])
        if self.runner.foreign:  # code that is not the model's own may count positions
            whole = slopes.new_zeros(*slopes.shape[:2], given.shape[1], slopes.shape[3])
            whole[:, :, span] = slopes
            slopes, taken = whole, span
        else:
            given, taken = given[:, span], slice(None)
        each = given[:, None].expand_as(slopes).flatten(0, 1).requires_grad_()
        with ExitStack() as stack:
            if self.rules is not None:
                stack.enter_context(self.runner.hooks(self.rules.before))
                stack.enter_context(self.rules.modules())
            gave = module(each)
        found = torch.autograd.grad(gave, each, slopes.flatten(0, 1).to(gave.dtype))[0]
        return found.view_as(slopes)[:, :, taken]


class Senders:
    """What writers change at some positions, expanded once, in the order in which readers come to need it."""

    def __init__(
        self,
        estimator: EdgeEstimator,
        rows: Int[Tensor, " row"],
        span: slice,
        masks: Bool[Tensor, "place row pos"],
    ) -> None:
        self.estimator, self.rows, self.span = estimator, rows, span
        self.numbers = estimator.edges.used_writers
        self.masks = masks[:, :, span].to(estimator.runner.device)
        cfg, n_positions = estimator.runner.model.cfg, self.masks.shape[2]
        shape = len(rows), len(self.numbers), n_positions, cfg.d_model
        self.changes = torch.zeros(shape, dtype=estimator._precision, device=estimator.runner.device)
        self.filled = 0

    def columns(self, of_edges: Int[np.ndarray, " edge"]) -> list[Int[np.ndarray, " of_column"]]:
        """Which of these edges are of each place."""
        return [np.flatnonzero(of_edges == column) for column in range(len(self.masks))]

    def up_to(self, end: int, column: int) -> Float[Tensor, "row writer pos d_model"]:
        """What the first so many writers change, at one place."""
        for place in range(self.filled, end):
            self.changes[:, place] = self._change(self.estimator.graph.writers[self.numbers[place]])
        self.filled = max(self.filled, end)
        found = self.changes[:, :end]
        return found if len(self.masks) == 1 else found * self.masks[column][:, None, :, None]

    def _change(self, writer: Writer) -> Float[Tensor, "row pos d_model"]:
        """What a writer writes, less what it has written, in single precision at least."""
        chunk, name = self.estimator.chunk, written_by(writer)
        written, there = (
            values[name][self.rows][:, self.span].to(self.changes) for values in (chunk.source, chunk.base.activations)
        )
        change = written - there
        if writer.head is not None:
            weight = self.estimator.runner.model.blocks[writer.layer].attn.W_O[writer.head]
            change = change[:, :, writer.head] @ weight.detach().to(change)
        return change if len(self.masks) > 1 else change * self.masks[0][:, :, None]


def _watch(stack: ExitStack, block: Any, seen: Seen) -> None:
    """Keep what the normalizations and the MLP of a block are given in its next run."""

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.norms.setdefault(name, (module, []))[1].append((args[0], output))

        return hook

    def split(module: nn.Module, args: Any) -> Any:
        seen.mlp = args[0].view_as(args[0])
        return (seen.mlp, *args[1:])

    def enter(module: nn.Module, args: Any) -> None:
        seen.norms[""] = (nn.Identity(), [(args[0], args[0])])

    stack.callback(block.register_forward_pre_hook(enter).remove)
    for name, module in block.named_children():
        if name.startswith("ln"):
            stack.callback(module.register_forward_hook(note(name)).remove)
    if (mlp := getattr(block, "mlp", None)) is not None:
        stack.callback(mlp.register_forward_pre_hook(split).remove)
