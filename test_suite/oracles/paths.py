"""Paths through the residual graph, and path patching, as one would do them by hand: hooked runs of the whole model.

*A path* carries what it says and nothing else: its first writer's difference between the two runs changes what the next
component reads; the change of *that* component's output goes on; and so forth to the last reader, after which all is
computed as usual. It is the path of Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching". *Path
patching* of a head is that of Wang et al. 2022, "Interpretability in the Wild", section 3.1: between the sender and the
receivers all other heads are frozen, and the MLPs too or not, so that it is no edge. Nothing of the engine is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from actpatch.core.graph import Reader, Writer
from test_suite.oracles.edges import (
    Activations,
    Hooks,
    Way,
    activations,
    change_of,
    has_mlp,
    heads_of,
    logits_with_changed_input,
    made_at,
    noted,
    reading,
    writing,
)
from test_suite.oracles.one_prompt import run

Path: TypeAlias = "Sequence[Writer | Reader]"
"""A writer, then readers. The component of a reader writes what the next one reads: of keys or values that several
heads share, all of these, or the one that is named by a writer between the two."""


def logits_of_paths(
    model: Any,
    base: Tensor,
    source: Tensor | Activations,
    paths: Sequence[Path],
    *,
    at: Sequence[Sequence[int] | None] | None = None,
    way: Way | None = None,
    hooks: Hooks = (),
) -> Tensor:
    """Logits of the base with each path patched alone, [path, pos, d_vocab].

    Args:
        base: tokens of the run that is patched.
        source: tokens of the other run; or what the first writers are read from in it.
        at: for each reader of the paths in turn the positions at which it reads what is changed; None for all.
        way: as of `logits_of_edge`.
        hooks: part of the base.
    """
    held = activations(model, base, hooks)
    other = activations(model, source) if isinstance(source, Tensor) else source
    found = []
    for path in paths:
        first, *rest = path
        assert isinstance(first, Writer)
        assert isinstance(rest[-1], Reader)
        change, where = change_of(model, held, other, first), list(at or [])
        while len(rest) > 1:
            reader, *rest = rest
            through = [rest.pop(0)] if isinstance(rest[0], Writer) else _writers_of(model, reader)
            positions = where.pop(0) if where else None
            change = _carried(model, base, held, reader, through, change, at=positions, way=way, hooks=hooks)
        positions = where.pop(0) if where else None
        found.append(logits_with_changed_input(model, base, rest[0], change, at=positions, way=way, hooks=hooks))
    return torch.stack(found)


def _writers_of(model: Any, reader: Reader) -> list[Writer]:
    """The writers that make their output of what the reader reads."""
    if reader.kind == "mlp":
        return [Writer("mlp", reader.layer)]
    return [Writer("head", reader.layer, head) for head in heads_of(model, reader)]


def _carried(
    model: Any,
    base: Tensor,
    held: Activations,
    reader: Reader,
    through: Sequence[Writer],
    change: Tensor,
    **options: Any,
) -> Tensor:
    """By how much these writers' output changes where the reader alone reads the changed stream, [pos, d_model]."""
    name = f"blocks.{reader.layer}." + ("hook_mlp_out" if reader.kind == "mlp" else "attn.hook_z")
    with reading(model, base, reader, change, **options) as changed:
        then = noted(model, base, [name], changed)
    return torch.stack([change_of(model, held, then, writer) for writer in through]).sum(dim=0)


def logits_of_path_patching(
    model: Any,
    base: Tensor,
    source: Tensor | Activations,
    sender_head: tuple[int, int],
    receivers: Sequence[Reader],
    through: Literal["nothing", "mlps"] = "nothing",
    *,
    at: Sequence[int] | None = None,
    hooks: Hooks = (),
) -> Tensor:
    """Logits of the base with what the receivers make of the sender's change written into it, [pos, d_vocab].

    One run finds what they make: the sender's output is the source's, every other head's is the base's, and every MLP's
    too where nothing but the stream and the normalizations lies between. What the receivers read in it, each by itself,
    is what another run of the base is given, all of them together; whatever comes after them is computed as usual.

    Args:
        base: tokens of the run that is patched.
        source: tokens of the other run; or what the sender is read from in it.
        sender_head: layer and head.
        receivers: what is written in the last run: queries, keys and values of heads, outputs of MLPs, and for the
            logits the stream that they are read from, in place of all that came before.
        through: `nothing` freezes MLPs, `mlps` recomputes them; a receiver itself is never frozen.
        at: positions at which the sender is changed; None for all.
        hooks: part of the base.
    """
    assert through in ("nothing", "mlps")
    held = activations(model, base, hooks)
    other = activations(model, source) if isinstance(source, Tensor) else source
    layer, head = sender_head
    where = slice(None) if at is None else list(at)
    between: list[tuple[str, Callable[..., Any]]] = list(hooks)
    for i in range(model.cfg.n_layers):
        name = f"blocks.{i}.attn.hook_z"
        z = held[name].clone()
        if i == layer:
            z[where, head] = other[name][where, head]
        between.append(writing(name, z))
    made: dict[str, Tensor] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(value: Tensor, hook: Any) -> None:
            made[name] = value.detach()[0].clone()

        return note

    names = {reader: _made_at(reader) for reader in receivers}
    between += [(name, noting(name)) for name in {*names.values()}]
    if through == "nothing":
        mlps = [f"blocks.{i}.hook_mlp_out" for i in range(model.cfg.n_layers) if has_mlp(model, i)]
        between += [writing(name, held[name]) for name in mlps]  # frozen only after they are noted
    run(model, base, between)
    return run(model, base, [*hooks, *(writing(name, made[name], reader.head) for reader, name in names.items())])


def _made_at(reader: Reader) -> str:
    return f"blocks.{reader.layer}.hook_resid_post" if reader.kind == "logits" else made_at(reader)
