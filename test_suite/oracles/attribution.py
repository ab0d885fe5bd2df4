"""Attribution by gradients with respect to split inputs, one prompt pair at a time, by autograd and the model's hooks.

Each reader gets a nudge of its own, zeros that need a gradient and are added to what that reader alone reads, before
its normalization: the gradient at the nudge is that at the reader's input. Each hook point gets one in the same way.
A score is (what is written less what is there) times that gradient; here the products are given before they are summed
over positions and widths. The run that is patched, the *base*, is the corrupted one in denoising and the clean one in
noising; the *source* is the other one, or zeros. Nothing of the engine is used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from actpatch.core.graph import Reader, Writer
from test_suite.oracles.backward_rules import PLAIN, RULES, Hook, Rules
from test_suite.oracles.edges import EMBEDDED, activations, adding, change_of, is_parallel, made_at, noted

MetricOfLogits = Callable[[Tensor], Tensor]
"""A metric of one prompt's logits, [pos, d_vocab], as a scalar."""
Direction = Literal["denoising", "noising"]
Source = Literal["other run", "zero"]
EDGE_METHODS = ("eap", "eap_ig", "clean_corrupted", "relp", "gim")
COMPONENT_METHODS = ("atp", "eap_ig", "clean_corrupted", "ig_activations", "relp", "gim", "atp_star")
_SHIFTS = {"left": 0.0, "midpoint": 0.5, "right": 1.0}


def edge_scores(
    model: Any,
    clean: Tensor,
    corrupted: Tensor,
    metric: MetricOfLogits,
    edges: Sequence[tuple[Writer, Reader]],
    *,
    direction: Direction = "denoising",
    method: str = "eap",
    steps: int = 5,
    grid: str = "midpoint",
    source: Source = "other run",
    at: Sequence[int] | None = None,
) -> np.ndarray:
    """Scores of edges, [edge]: how far patching each alone raises the metric, to first order.

    Args:
        clean, corrupted: tokens, [pos], as many in both.
        at: positions at which the reader reads what is changed; None for all.
    """
    options: dict[str, Any] = {"direction": direction, "method": method, "steps": steps, "grid": grid, "source": source}
    products = edge_products(model, clean, corrupted, metric, edges, **options)
    return (products if at is None else products[:, list(at)]).sum(axis=1)


def edge_products(
    model: Any,
    clean: Tensor,
    corrupted: Tensor,
    metric: MetricOfLogits,
    edges: Sequence[tuple[Writer, Reader]],
    *,
    direction: Direction = "denoising",
    method: str = "eap",
    steps: int = 5,
    grid: str = "midpoint",
    source: Source = "other run",
) -> np.ndarray:
    """The same by position at which the reader reads, [edge, pos]."""
    assert method in EDGE_METHODS
    base, other = _base_and_source(clean, corrupted, direction)
    held = activations(model, base)
    given = activations(model, other) if source == "other run" else {name: 0 * value for name, value in held.items()}
    readers = list(dict.fromkeys(reader for _, reader in edges))
    runs = _runs_with_gradients(model, clean, corrupted, base, method, steps, grid)
    rules = RULES.get(method, PLAIN)
    found = [gradients_of_readers(model, tokens, metric, readers, hooks=hooks, rules=rules) for tokens, hooks in runs]
    gradients = {reader: torch.stack([each[reader] for each in found]).mean(dim=0) for reader in readers}
    products = [(change_of(model, held, given, writer) * gradients[reader]).sum(dim=-1) for writer, reader in edges]
    return torch.stack(products).numpy()


def gradients_of_readers(
    model: Any,
    tokens: Tensor,
    metric: MetricOfLogits,
    readers: Iterable[Reader],
    *,
    hooks: Sequence[Hook] = (),
    rules: Rules = PLAIN,
) -> dict[Reader, Tensor]:
    """The metric's gradient at what each reader alone reads, before its normalization, [pos, d_model]."""
    like = noted(model, tokens, [EMBEDDED], hooks)[EMBEDDED]
    nudges = {reader: torch.zeros_like(like, requires_grad=True) for reader in readers}
    carried = _carrying(model, tokens, nudges, hooks, rules)
    moved = metric(_logits(model, tokens, [*hooks, *carried], rules))
    return dict(zip(nudges, torch.autograd.grad(moved, [*nudges.values()])))


def component_products(
    model: Any,
    clean: Tensor,
    corrupted: Tensor,
    metric: MetricOfLogits,
    hook_point: str,
    *,
    direction: Direction = "denoising",
    method: str = "atp",
    steps: int = 5,
    grid: str = "midpoint",
    source: Source = "other run",
) -> np.ndarray:
    """(What is written less what is there) times the gradient at a hook point, of the hook point's shape.

    That is [pos, head, d_head], [head, query pos, key pos] or [pos, width], without a batch axis. Of `atp_star` there
    is one such array for each layer that is dropped, [dropped, ...], or one alone, of nothing dropped, where the model
    has one layer; sums over a component go into `size_of_dropped`. Its products at keys are scalars, [dropped, key pos,
    head], of the key at one position replaced alone.
    """
    assert method in COMPONENT_METHODS
    base, other = _base_and_source(clean, corrupted, direction)
    held = noted(model, base, [hook_point])[hook_point]
    written = noted(model, other, [hook_point])[hook_point] if source == "other run" else torch.zeros_like(held)
    if method == "atp_star":
        return _dropped_products(model, base, metric, hook_point, held, written).numpy()
    if method == "ig_activations":
        shares = _shares(steps, grid)
        runs = [(base, [_writing(hook_point, held + share * (written - held))]) for share in shares]
    else:
        runs = _runs_with_gradients(model, clean, corrupted, base, method, steps, grid)
    rules = RULES.get(method, PLAIN)
    found = [gradient_at(model, tokens, metric, hook_point, hooks=hooks, rules=rules) for tokens, hooks in runs]
    return ((written - held) * torch.stack(found).mean(dim=0)).numpy()


def gradient_at(
    model: Any,
    tokens: Tensor,
    metric: MetricOfLogits,
    hook_point: str,
    *,
    hooks: Sequence[Hook] = (),
    rules: Rules = PLAIN,
    dropped: int | None = None,
) -> Tensor:
    """The metric's gradient at a hook point, of the hook point's shape.

    Args:
        hooks: part of the run; the gradient is taken at what they write.
        dropped: the layer whose attention and MLP pass no gradient to what they add to the stream.
    """
    nudge = torch.zeros_like(noted(model, tokens, [hook_point], hooks)[hook_point], requires_grad=True)
    added = (hook_point, lambda value, hook: value + nudge)
    logits = _logits(model, tokens, [*hooks, added, *_dropping(model, dropped)], rules)
    may_be_cut = dropped is not None
    (found,) = torch.autograd.grad(metric(logits), nudge, allow_unused=may_be_cut, materialize_grads=may_be_cut)
    return found


def size_of_dropped(sums: np.ndarray) -> float:
    """The score of `atp_star` from what its passes say of one component, [dropped]: without a sign.

    A pass that drops the component's own layer says nothing, so that one fewer are counted than were made.
    """
    return float(np.abs(sums).sum() / max(len(sums) - 1, 1))


def _dropped_products(
    model: Any, base: Tensor, metric: MetricOfLogits, hook_point: str, held: Tensor, written: Tensor
) -> Tensor:
    """Products of each pass, [dropped, ...]; of queries and keys, with attention computed again."""
    layers: list[int | None] = [*range(model.cfg.n_layers)] if model.cfg.n_layers > 1 else [None]
    block, name = hook_point.split(".hook_")
    if name not in ("q", "k"):
        found = [gradient_at(model, base, metric, hook_point, dropped=layer) for layer in layers]
        return torch.stack([(written - held) * gradient for gradient in found])
    z = f"{block}.hook_z"
    at_z = torch.stack([gradient_at(model, base, metric, z, dropped=layer) for layer in layers])
    before = noted(model, base, [z])[z]

    def change(positions: Sequence[int], head: int) -> Tensor:
        """How far z moves where one head's queries or keys are replaced at these positions alone."""
        replaced = held.clone()
        replaced[list(positions), head] = written[list(positions), head]
        return noted(model, base, [z], [_writing(hook_point, replaced)])[z] - before

    n_positions, n_heads = held.shape[:2]
    if name == "q":
        moved = torch.stack([change(range(n_positions), head)[:, head] for head in range(n_heads)], dim=1)
        return moved * at_z
    products = torch.zeros(len(layers), n_positions, n_heads, dtype=held.dtype)
    for position in range(n_positions):
        for head in range(n_heads):
            products[:, position, head] = (change([position], head) * at_z).sum(dim=(1, 2, 3))
    return products


def _carrying(
    model: Any, tokens: Tensor, nudges: dict[Reader, Tensor], hooks: Sequence[Hook], rules: Rules
) -> list[Hook]:
    """Hooks that change no value and let the gradient flow into what each of these readers alone reads.

    What a reader makes of the nudged stream is made in a run in which all its block reads that one, a row for each
    reader; in the run of the metric it is added less itself to what the reader makes there.
    """
    carried, rows = [], defaultdict(list)
    mlps = [reader.layer for reader in nudges if reader.kind == "mlp"]
    between = "hook_resid_pre" if mlps and is_parallel(model, mlps[0]) else "hook_attn_out"
    for reader, nudge in nudges.items():
        if reader.kind == "logits":
            carried.append(adding(f"blocks.{reader.layer}.hook_resid_post", nudge))
        else:
            rows[f"blocks.{reader.layer}.{between if reader.kind == 'mlp' else 'hook_resid_pre'}"].append(reader)
    for read_at, readers in rows.items():
        made = _made(model, tokens, read_at, {reader: nudges[reader] for reader in readers}, hooks, rules)
        carried += [_adding_nothing(made_at(reader), part, reader.head) for reader, part in made.items()]
    return carried


def _made(
    model: Any, tokens: Tensor, read_at: str, nudges: dict[Reader, Tensor], hooks: Sequence[Hook], rules: Rules
) -> dict[Reader, Tensor]:
    """What each reader makes where all that is read here is nudged by its nudge, [pos, ...]; of heads, its own."""
    seen: dict[str, Tensor] = {}

    def keeping(name: str) -> Callable[..., None]:
        return lambda value, hook: seen.update({name: value})

    all_nudged = (read_at, lambda value, hook: value + torch.stack([*nudges.values()]))
    notes = [(name, keeping(name)) for name in dict.fromkeys(map(made_at, nudges))]
    _run(model, tokens.expand(len(nudges), -1), [*hooks, all_nudged, *notes], rules)
    rows = {reader: seen[made_at(reader)][row] for row, reader in enumerate(nudges)}
    return {reader: part if reader.head is None else part[:, reader.head] for reader, part in rows.items()}


def _adding_nothing(name: str, made: Tensor, head: int | None) -> Hook:
    """Adds to one head, or to all, what is made less itself."""

    def add(value: Tensor, hook: Any) -> Tensor:
        value, zero = value.clone(), made - made.detach()
        if head is None:
            value += zero
        else:
            value[:, :, head] += zero
        return value

    return name, add


def _logits(model: Any, tokens: Tensor, hooks: Sequence[Hook], rules: Rules) -> Tensor:
    """Logits of one prompt, [pos, d_vocab], from which gradients flow back by the rules."""
    return _run(model, tokens[None], hooks, rules)[0]


def _run(model: Any, tokens: Tensor, hooks: Sequence[Hook], rules: Rules) -> Tensor:
    with torch.enable_grad(), rules.on(model) as of_rules:
        return model.run_with_hooks(tokens, fwd_hooks=[*hooks, *of_rules])


def _writing(name: str, other: Tensor) -> Hook:
    """Writes this, without a batch axis, into every row."""
    return name, lambda value, hook: other.expand_as(value).clone()


def _dropping(model: Any, layer: int | None) -> list[Hook]:
    names = [] if layer is None else [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"]
    return [(name, lambda value, hook: value.detach()) for name in names if name in model.hook_dict]


def _runs_with_gradients(
    model: Any, clean: Tensor, corrupted: Tensor, base: Tensor, method: str, steps: int, grid: str
) -> list[tuple[Tensor, list[Hook]]]:
    """Tokens and hooks of the runs of whose gradients a method takes the mean."""
    if method == "clean_corrupted":
        return [(clean, []), (corrupted, [])]
    if method != "eap_ig":
        return [(base, [])]
    ends = [noted(model, tokens, [EMBEDDED])[EMBEDDED] for tokens in (corrupted, clean)]
    return [(base, [_writing(EMBEDDED, ends[0] + share * (ends[1] - ends[0]))]) for share in _shares(steps, grid)]


def _shares(steps: int, grid: str) -> list[float]:
    return [(step + _SHIFTS[grid]) / steps for step in range(steps)]


def _base_and_source(clean: Tensor, corrupted: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    return (corrupted, clean) if direction == "denoising" else (clean, corrupted)
