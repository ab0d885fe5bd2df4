"""One batch of circuits, run: what writers change as it goes on, and the hooks that let readers read it.

    input of v = stream + Σ (what is written of u - what u gives in this run),  over the edges u -> v that are left out

before its normalization, which is computed anew. What a head's queries, keys and values read is normalized for each
head by itself and goes through its own weights. Nothing here decides which circuits are run together, or checks any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.circuit_reach import ReaderGroup, reader_groups
from actpatch.core.graph import Graph, Kind
from actpatch.core.sites import block_hook
from actpatch.engine.exactness import too_far
from actpatch.engine.experiment import Chunk, resid_name
from actpatch.engine.readers import QUERIES_KEYS_VALUES
from actpatch.models.forwards import at_positions, norm_of, replaced_forward
from actpatch.models.runner import Hook, Runner


@dataclass(frozen=True)
class Held:
    """A run of some circuit on the pairs of a chunk, whose parts stand for those that other circuits do not change."""

    kept: Bool[np.ndarray, "place edge"] | None
    """Its edges at each place; None for all edges at all positions."""
    activations: dict[str, Tensor]
    """Hook point -> activation of each pair: streams before each layer and after the last, and what layers give."""
    changes: Float[Tensor, "pair pos writer d_model"]
    """What is written of each writer less what it gives, at the positions that are computed; 0 where none is."""


@dataclass(frozen=True)
class Shared:
    """What batches of circuits on one chunk have in common."""

    runner: Runner
    graph: Graph
    chunk: Chunk
    start: int
    """First position that is computed."""
    is_written: Bool[Tensor, "pair pos"]
    """At which of the positions that are computed anything is written."""
    at_place: Bool[Tensor, "place pair pos"]
    """Which of them each place is."""
    biases: dict[tuple[int, Kind], Tensor]
    """What queries, keys or values have beside what their weights make of what is normalized, once that is known."""

    @property
    def length(self) -> int:
        return self.chunk.base.tokens.shape[1]


class CircuitRows:
    """Rows of circuits on pairs.

    Args:
        shared: by other batches too.
        patches: the circuits.
        circuits: of each row.
        pairs: of each row.
        held: the run that stands for what is not run.
        run: the writers that are run; all others give what they give in the held run.
        read: the writers whose readers read what the circuits say.
        notes_all: whether what every writer changes is noted that is run; else of those alone that a reader leaves out.
    """

    def __init__(
        self,
        shared: Shared,
        patches: CircuitPatches,
        circuits: Int[np.ndarray, " row"],
        pairs: Int[Tensor, " row"],
        held: Held,
        run: Bool[np.ndarray, " writer"],
        read: Bool[np.ndarray, " writer"],
        *,
        notes_all: bool = False,
    ) -> None:
        self.shared, self.patches, self.held, self.run, self.read = shared, patches, held, run, read
        self.runner, self.graph, self.start, self.length = shared.runner, shared.graph, shared.start, shared.length
        self.device = held.changes.device
        self.pairs = pairs.to(self.runner.index_device)
        self.distinct, of_row = np.unique(circuits, return_inverse=True)
        self.of_row = torch.from_numpy(of_row.ravel()).to(self.runner.index_device)
        distinct_pairs, self.of_pair = torch.unique(self.pairs, return_inverse=True)
        self.distinct_pairs: list[int] = distinct_pairs.tolist()
        self.kept = patches.kept[self.distinct]
        self.everywhere, self.anywhere = self.kept.all(axis=(0, 1)), self.kept.any(axis=(0, 1))
        self.apart = patches.tells_positions_apart
        self.groups = {(group.layer, group.kind): group for group in reader_groups(self.graph)}
        self.noted = np.flatnonzero(run & (notes_all | self._left_out_by_any))
        self.slots = np.full(len(self.graph.writers), -1)
        self.slots[self.noted] = np.arange(len(self.noted))
        n_positions, width = self.length - self.start, held.changes.shape[-1]
        self.changes = held.changes.new_zeros(len(circuits), n_positions, len(self.noted), width)
        self.written = self._of_rows(shared.is_written)[..., None]
        self.norms: dict[tuple[int, str], tuple[nn.Module, Tensor, Tensor]] = {}
        self.streams: dict[int, Tensor] = {}
        self.is_inside = False
        self.met: set[tuple[int, str]] = set()

    @property
    def _left_out_by_any(self) -> Bool[np.ndarray, " writer"]:
        """Writers of which any reader that reads what circuits say leaves out an edge, in any row."""
        found = np.zeros(len(self.graph.writers), dtype=bool)
        for group in self.groups.values():
            out = ~group.of(self.everywhere)[self._reading(group)] | self.apart
            found[: group.n_writers] |= out.any(axis=0)
        return found

    def _reading(self, group: ReaderGroup) -> Bool[np.ndarray, " reader"]:
        """Which readers of a group read what circuits say."""
        if group.kind == "logits":
            return np.ones(1, dtype=bool)
        return group.readers_of(self.read & self.run)

    def runs_part(self, layer: int, kind: Kind) -> bool:
        """Whether a layer's heads, or its MLP, are run."""
        group = self.groups.get((layer, kind))
        return group is not None and bool(self.run[group.moved].any())

    def recorded(self, name: str) -> Float[Tensor, "row pos ..."]:
        """What the held run has at a hook point."""
        return self._of_rows(self.held.activations[name][:, self.start : self.length])

    def _of_rows(self, of_pairs: Tensor) -> Tensor:
        """What belongs to the pair of each row; of one pair alone without a copy for each."""
        if len(self.distinct_pairs) > 1:
            return of_pairs[self.pairs]
        return of_pairs[self.distinct_pairs].expand(len(self.pairs), *of_pairs.shape[1:])

    def prepare(self, stack: ExitStack, layers: Sequence[int], *, has_both: bool) -> list[Hook]:
        """See what layers, their normalizations and MLPs are given, and have MLPs read what circuits say.

        Args:
            stack: on which what is put on the model is taken off again.
            layers: those that are run.
            has_both: whether both heads and MLP are run by the block's own code; else one that is not is replaced.

        Returns:
            Hooks by which heads do the same, and that note what is changed.
        """
        return [hook for layer in layers for hook in self._prepare(stack, layer, has_both)]

    def _prepare(self, stack: ExitStack, layer: int, has_both: bool) -> list[Hook]:
        block = self.runner.model.blocks[layer]

        def enter(module: nn.Module, args: Any) -> None:
            self.streams[layer] = args[0].to(self.runner.device_of(layer))

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                if not self.is_inside:
                    self.norms.setdefault((layer, name), (module, args[0], output))

            return hook

        def read(module: nn.Module, args: Any) -> Any:
            return (self._read_by_mlp(layer, args[0]), *args[1:])

        stack.callback(block.register_forward_pre_hook(enter).remove)
        for name, module in block.named_children():
            if name.startswith("ln"):
                stack.callback(module.register_forward_hook(note(name)).remove)
        hooks: list[Hook] = []
        if self.runs_part(layer, "q"):
            hooks += [(block_hook(layer, kind), self._giving(layer, kind)) for kind in QUERIES_KEYS_VALUES]
            hooks += self.runner.writing_hooks(block_hook(layer, "z"), self._giving_heads(layer))
        elif not has_both and self.graph.heads[layer]:
            given = self.recorded(block_hook(layer, "attn_out"))
            stack.enter_context(_returning(block.attn, self.runner.attention_output(given)))
        if self.runs_part(layer, "mlp"):
            stack.callback(block.mlp.register_forward_pre_hook(read).remove)
            hooks.append((block_hook(layer, "mlp_out"), self._noting_mlp(layer)))
        elif not has_both and self.graph.mlps[layer]:
            stack.enter_context(_returning(block.mlp, self.recorded(block_hook(layer, "mlp_out"))))
        return hooks

    def stream_after(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """The stream behind a layer of which nothing is run."""
        n_layers = self.graph.n_layers
        after, before = (self.recorded(resid_name(index, n_layers)) for index in (layer + 1, layer))
        return resid.to(after.device) + (after - before.to(after.device))

    def read_by_logits(self, resid: Tensor, at: Int[Tensor, "row read"] | None = None) -> Tensor:
        """What the logits read of the stream behind the last layer, at some of the positions alone, or at all."""
        added = self._left_out(self.graph.n_layers - 1, "logits", at)
        resid = resid if at is None else at_positions(resid, at)
        return resid if added is None else resid + added[:, :, 0].to(resid.device)

    def check_complete(self) -> None:
        """Raise a RuntimeError where a reader was not met, which would then have read what no circuit says."""
        expected = {key for key, group in self.groups.items() if self._reading(group).any()}
        if missing := sorted(expected - self.met):
            layer, kind = missing[0]
            raise RuntimeError(
                f"circuits of this model cannot be run: it does not show what the {kind} of layer {layer} reads"
            )

    def _giving_heads(self, layer: int) -> Callable[..., Tensor]:
        """A hook by which heads that are not run give what the held run has, and that notes what others change."""
        moved = self.groups[layer, "q"].moved
        run = self.run[moved]
        noted = np.flatnonzero(self.slots[moved] >= 0)

        def give(value: Tensor, hook: Any) -> Tensor:
            if not run.all():
                still = torch.from_numpy(~run).to(value.device)
                value = torch.where(still[:, None], self.recorded(block_hook(layer, "z")), value)
            if len(noted):
                heads = torch.from_numpy(noted).to(value.device)
                source = self._source(block_hook(layer, "z"))
                change = (source[:, :, heads] - value[:, :, heads]) * self.written[..., None].to(value.device)
                weight = self.runner.model.blocks[layer].attn.W_O[heads]
                written = torch.bmm(change.flatten(0, 1).transpose(0, 1), weight)
                slots = torch.from_numpy(self.slots[moved][noted]).to(self.device)
                self.changes.flatten(0, 1)[:, slots] = written.transpose(0, 1).to(self.device)
            return value

        return give

    def _noting_mlp(self, layer: int) -> Callable[..., None]:
        slot = int(self.slots[self.groups[layer, "mlp"].moved.start])

        def note(value: Tensor, hook: Any) -> None:
            if slot >= 0:
                change = self._source(block_hook(layer, "mlp_out")) - value
                self.changes[:, :, slot] = change * self.written.to(value.device)

        return note

    def _source(self, name: str) -> Float[Tensor, "row pos ..."]:
        """What is written at a hook point."""
        return self._of_rows(self.shared.chunk.source[name][:, self.start : self.length])

    def _left_out(
        self, layer: int, kind: Kind, at: Int[Tensor, "row read"] | None = None
    ) -> Float[Tensor, "row pos reader d_model"] | None:
        """What is added to what those readers of a group read that read what circuits say; None where it is nothing."""
        self.met.add((layer, kind))
        group = self.groups[layer, kind]
        readers, n = self._reading(group), group.n_writers
        shared = group.of(self.everywhere)[readers]
        if shared.all() and not self.apart:
            return None
        n_noted = int(np.searchsorted(self.noted, n))
        changes = self.changes[:, :, :n_noted]
        if at is not None:
            changes = at_positions(changes, at)
        if self.apart:
            return self._left_out_at_places(group, readers, changes, at)
        is_shared = np.array_equal(shared, group.of(self.anywhere)[readers])
        off = ~shared[None] if is_shared else ~group.of(self.kept[:, 0])[:, readers]
        of_row = torch.zeros_like(self.of_row) if is_shared else self.of_row
        found = None
        if (constant := off & ~self._is_noted(n)).any():
            found = self._constant(self._weights(constant), of_row, at)
        if (moving := off[..., self.noted[:n_noted]]).any():
            weights = self._weights(moving)[of_row]
            each = weights.repeat_interleave(changes.shape[1], dim=0)
            flat = changes.flatten(0, 1)
            added = torch.bmm(each, flat) if found is None else torch.baddbmm(found.flatten(0, 1), each, flat)
            found = added.unflatten(0, changes.shape[:2])
        return found

    def _is_noted(self, n: int) -> Bool[np.ndarray, " writer"]:
        return self.slots[:n] >= 0

    def _weights(self, off: Bool[np.ndarray, "circuit reader writer"]) -> Tensor:
        return torch.from_numpy(off).to(self.changes)

    def _constant(
        self, weights: Float[Tensor, "circuit reader writer"], of_row: Tensor, at: Tensor | None
    ) -> Float[Tensor, "row pos reader d_model"]:
        """What is added of writers that are not run, computed once for rows of one circuit and pair."""
        changes = self.held.changes[self.distinct_pairs, :, : weights.shape[-1]]
        if at is not None:  # which is the same in all rows of a pair
            first = [int((self.of_pair == number).int().argmax()) for number in range(len(changes))]
            changes = at_positions(changes, at[first])
        flat = weights.flatten(0, 1)
        if len(changes) == 1:
            found = torch.matmul(flat, changes[0]).unflatten(1, weights.shape[:2])
            if len(weights) == 1:
                return found.transpose(0, 1).expand(len(of_row), *(-1,) * 3)
            return found.transpose(0, 1)[of_row]
        found = torch.stack([torch.matmul(flat, of_pair) for of_pair in changes])
        found = found.unflatten(2, weights.shape[:2])  # [pair, pos, circuit, reader, d_model]
        return found[self.of_pair, :, of_row]

    def _left_out_at_places(
        self, group: ReaderGroup, readers: Bool[np.ndarray, " of_group"], changes: Tensor, at: Tensor | None
    ) -> Float[Tensor, "row pos reader d_model"]:
        """The same where edges are left out at some positions, and all of them where no place is."""
        n = group.n_writers
        kept = torch.from_numpy(group.of(self.kept)[:, :, readers]).to(self.changes)
        is_place = self.shared.at_place[:, self.pairs].permute(1, 2, 0).to(self.changes)
        constant = self.held.changes[self.pairs][:, :, :n]
        if at is not None:
            is_place, constant = at_positions(is_place, at), at_positions(constant, at)
        places = torch.bmm(is_place, kept[self.of_row].flatten(2)).unflatten(2, kept.shape[2:])
        off = (places < 0.5).to(self.changes)
        noted = torch.from_numpy(self._is_noted(n)).to(self.device)
        found = torch.matmul(off * ~noted, constant)
        return found + torch.matmul(off[..., noted], changes) if bool(noted.any()) else found

    def _giving(self, layer: int, kind: Kind) -> Callable[..., Tensor | None]:
        """A hook by which queries, keys or values are those of what their heads read."""
        readers = self._reading(self.groups[layer, kind])

        def give(value: Tensor, hook: Any) -> Tensor | None:
            added = self._left_out(layer, kind) if readers.any() else None
            if added is None:
                return None
            stream = self.streams[layer]
            module, gave = self._norm(layer, "ln1", stream)
            each = self._normalized(module, stream[:, :, None] + added.to(stream.device))
            heads = torch.from_numpy(np.flatnonzero(readers)).to(value.device)
            weight = getattr(self.runner.model.blocks[layer].attn, f"W_{kind.upper()}")
            weight = weight[:: len(weight) // value.shape[2]]
            bias = self._bias(layer, kind, value, gave, weight)
            made = torch.bmm(each.flatten(0, 1).transpose(0, 1), weight[heads]).transpose(0, 1)
            value = value.clone()
            value[:, :, heads] = made.unflatten(0, value.shape[:2]) + bias[heads]
            return value

        return give

    def _bias(
        self, layer: int, kind: Kind, value: Tensor, gave: Tensor, weight: Tensor
    ) -> Float[Tensor, "head d_head"]:
        """What queries, keys or values have beside what their weights make of what is normalized.

        Raises:
            RuntimeError: where that is not the same at all positions.
        """
        if (layer, kind) not in self.shared.biases:
            beside = value[0] - torch.einsum("pm,hmd->phd", gave[0], weight)
            if too_far("", value[0] - beside[:1], value[0] - beside):
                raise RuntimeError(
                    f"circuits of this model cannot be run: {kind} of layer {layer} are not what their weights make of "
                    "the normalized stream"
                )
            self.shared.biases[layer, kind] = beside[0]
        return self.shared.biases[layer, kind]

    def _read_by_mlp(self, layer: int, given: Tensor) -> Tensor:
        added = self._left_out(layer, "mlp") if self._reading(self.groups[layer, "mlp"]).any() else None
        if added is None:
            return given
        for (at, _), (module, stream, gave) in reversed(self.norms.items()):
            if at == layer and gave.shape == given.shape and torch.equal(gave, given):
                return self._normalized(module, stream + added[:, :, 0].to(stream.device))
        raise RuntimeError(f"circuits of this model cannot be run: the MLP of layer {layer} reads what no norm gave")

    def _norm(self, layer: int, name: str, stream: Tensor) -> tuple[nn.Module, Tensor]:
        """A normalization of a layer and what it gave; where there is none, what came into the block."""
        module, _, gave = self.norms.get((layer, name), (nn.Identity(), stream, stream))
        return module, gave

    def _normalized(self, module: nn.Module, streams: Float[Tensor, "row pos *reader d_model"]) -> Tensor:
        self.is_inside = True
        try:
            return norm_of(module)(streams.flatten(1, -2)).view_as(streams)
        finally:
            self.is_inside = False


def _returning(module: nn.Module, output: Any) -> Any:
    """The module giving this, whatever it is given."""
    return replaced_forward(module, lambda *args, **kwargs: output)
