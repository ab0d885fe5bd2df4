"""Edges of the residual graph, patched as one would by hand: hooked runs of the whole model for each edge.

Patching an edge changes what its reader alone reads, *the stream before its normalization*, by what the writer writes
in the other run less what it writes in this one. Two ways lead there. `split` sets the switches by which a
`HookedTransformer` gives every reader a copy of the stream, and adds to that copy in one run. `two_runs` needs no
switch: in a first run the whole block reads the changed stream, and what the reader makes of it (a head's queries, the
MLP's output) is noted; in a second one that alone is written. Nothing of the engine is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from actpatch.core.graph import Reader, Writer
from test_suite.oracles.one_prompt import run

Hooks = Sequence[tuple[str, Callable[..., Any]]]
Activations = Mapping[str, Tensor]
"""What a run holds at hook points, [pos, ...]."""
Way = Literal["split", "two_runs"]
EMBEDDED = "blocks.0.hook_resid_pre"


def activations(model: Any, tokens: Tensor, hooks: Hooks = ()) -> dict[str, Tensor]:
    """All that writers are read from, of one prompt's run with these hooks: by hook point, [pos, ...]."""
    names = [EMBEDDED]
    for layer in range(model.cfg.n_layers):
        names += [f"blocks.{layer}.attn.hook_z", *([f"blocks.{layer}.hook_mlp_out"] * has_mlp(model, layer))]
    return noted(model, tokens, names, hooks)


def noted(model: Any, tokens: Tensor, names: Sequence[str], hooks: Hooks = ()) -> dict[str, Tensor]:
    """What one prompt's run holds at these hook points once these hooks are through: [pos, ...]."""
    found: dict[str, Tensor] = {}

    def keeping(name: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            found[name] = value.detach()[0].clone()

        return keep

    run(model, tokens, [*hooks, *((name, keeping(name)) for name in names)])
    assert not (missing := {*names} - {*found}), f"the run did not pass {sorted(missing)}"
    return found


def written(model: Any, held: Activations, writer: Writer) -> Tensor:
    """What a writer adds to the stream, [pos, d_model]. No head writes the attention's output bias."""
    if writer.kind == "input":
        return held[EMBEDDED]
    if writer.kind == "mlp":
        return held[f"blocks.{writer.layer}.hook_mlp_out"]
    return held[f"blocks.{writer.layer}.attn.hook_z"][:, writer.head] @ W_O(model, writer.layer)[writer.head]


def change_of(model: Any, base: Activations, source: Activations, writer: Writer) -> Tensor:
    """What a writer writes in the source less what it writes in the base, [pos, d_model]."""
    return written(model, source, writer) - written(model, base, writer)


def logits_of_edge(
    model: Any,
    base: Tensor,
    source: Tensor | Activations,
    writer: Writer,
    reader: Reader,
    *,
    at: Sequence[int] | None = None,
    way: Way | None = None,
    hooks: Hooks = (),
) -> Tensor:
    """Logits of the base with one edge patched, [pos, d_vocab].

    Args:
        base: tokens of the run that is patched.
        source: tokens of the other run; or what the writers are read from in it (`activations`), for means and zeros.
        at: positions at which the reader reads what is changed; None for all.
        way: None for `split` where the model has the switches.
        hooks: part of the base, as noise on its embeddings.
    """
    return logits_of_edges(model, base, source, [(writer, reader)], at=at, way=way, hooks=hooks)[0]


def logits_of_edges(
    model: Any,
    base: Tensor,
    source: Tensor | Activations,
    edges: Iterable[tuple[Writer, Reader]],
    *,
    at: Sequence[int] | None = None,
    way: Way | None = None,
    hooks: Hooks = (),
) -> Tensor:
    """The same of each of these edges, patched alone, [edge, pos, d_vocab]: the two runs are made once for all."""
    held = activations(model, base, hooks)
    other = activations(model, source) if isinstance(source, Tensor) else source
    return torch.stack(
        [
            logits_with_changed_input(
                model, base, reader, change_of(model, held, other, writer), at=at, way=way, hooks=hooks
            )
            for writer, reader in edges
        ]
    )


def logits_with_changed_input(
    model: Any,
    base: Tensor,
    reader: Reader,
    change: Tensor,
    *,
    at: Sequence[int] | None = None,
    way: Way | None = None,
    hooks: Hooks = (),
) -> Tensor:
    """Logits of the base where one reader reads the stream plus a change, [pos, d_model]."""
    with reading(model, base, reader, change, at=at, way=way, hooks=hooks) as changed:
        return run(model, base, changed)


@contextlib.contextmanager
def reading(
    model: Any,
    base: Tensor,
    reader: Reader,
    change: Tensor,
    *,
    at: Sequence[int] | None = None,
    way: Way | None = None,
    hooks: Hooks = (),
) -> Iterator[Hooks]:
    """Hooks under which the reader reads the base's stream plus a change, and the switches that they need."""
    if at is not None:
        kept = torch.zeros_like(change)
        kept[list(at)] = change[list(at)]
        change = kept
    if reader.kind == "logits":
        yield [*hooks, adding(f"blocks.{reader.layer}.hook_resid_post", change)]
    elif (way or ("two_runs" if isinstance(model, TransformerBridge) else "split")) == "split":
        with _switched_on(model, reader):
            name = "mlp_in" if reader.kind == "mlp" else f"{reader.kind}_input"
            yield [*hooks, adding(f"blocks.{reader.layer}.hook_{name}", change, reader.head)]
    else:
        yield [*hooks, *_of_two_runs(model, base, reader, change, hooks)]


def _of_two_runs(model: Any, base: Tensor, reader: Reader, change: Tensor, hooks: Hooks) -> Hooks:
    """Writes what the reader makes of the changed stream, which a run in which all its block reads that one says."""
    name = made_at(reader)
    through = "hook_attn_out" if reader.kind == "mlp" and not is_parallel(model, reader.layer) else "hook_resid_pre"
    made = noted(model, base, [name], [*hooks, adding(f"blocks.{reader.layer}.{through}", change)])[name]
    return [writing(name, made, reader.head)]


def made_at(reader: Reader) -> str:
    """The hook point of what the reader makes of what it reads: queries, keys or values, or the MLP's output."""
    return f"blocks.{reader.layer}." + ("hook_mlp_out" if reader.kind == "mlp" else f"attn.hook_{reader.kind}")


def adding(name: str, change: Tensor, head: int | None = None) -> tuple[str, Callable[..., Tensor]]:
    """Adds a change, [pos, d_model], to what one head reads at a hook point; to all of it, for None."""

    def add(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        if head is None:
            value += change
        else:
            value[:, :, head] += change
        return value

    return name, add


def writing(name: str, other: Tensor, head: int | None = None) -> tuple[str, Callable[..., Tensor]]:
    """Writes what another run holds at a hook point, [pos, ...]; of heads, one head's part alone."""

    def write(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        if head is None:
            value[0] = other
        else:
            value[0, :, head] = other[:, head]
        return value

    return name, write


def W_O(model: Any, layer: int) -> Tensor:
    """Output weights of a layer's heads, [head, d_head, d_model]."""
    return model.blocks[layer].attn.W_O.detach()


def has_mlp(model: Any, layer: int) -> bool:
    """Whether the layer has an MLP."""
    return getattr(model.blocks[layer], "mlp", None) is not None  # an attention-only model has its hook points


def is_parallel(model: Any, layer: int) -> bool:
    """Whether the MLP is left as it is where the attention's output changes: seen in a run, not read in a config."""
    name, tokens = f"blocks.{layer}.hook_mlp_out", torch.arange(2, 5)
    change = torch.linspace(-1, 1, model.cfg.d_model).to(W_O(model, layer))
    with_it = noted(model, tokens, [name], [adding(f"blocks.{layer}.hook_attn_out", change)])
    return torch.equal(with_it[name], noted(model, tokens, [name])[name])


def heads_of(model: Any, reader: Reader) -> list[int]:
    """The heads that make something of what the reader reads: one, or the group that shares these keys or values."""
    assert reader.head is not None
    if not reader.is_key_value_head:
        return [reader.head]
    per_group = model.cfg.n_heads // model.cfg.n_key_value_heads
    return list(range(reader.head * per_group, (reader.head + 1) * per_group))


@contextlib.contextmanager
def _switched_on(model: Any, reader: Reader) -> Iterator[None]:
    """The switch by which the reader has a copy of the stream of its own; put back as it was."""
    switch = "use_hook_mlp_in" if reader.kind == "mlp" else "use_split_qkv_input"
    before = getattr(model.cfg, switch)
    try:
        getattr(model, f"set_{switch}")(True)
        yield
    finally:
        getattr(model, f"set_{switch}")(before)
