"""Whether resuming is exact for this model, asked of the very runs that a sweep rests on.

A model whose blocks cannot be run singly, or not over recorded keys and values, whose parts do not add up to its
residual stream, or whose blocks are given something beside it that differs between prompts, is found out here, and so
is one that computes on without what a hook returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.core.sites import Site, block_hook, position_axis
from actpatch.engine.entering import PatchedRows
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.memory import rows_fit
from actpatch.engine.plan import Batch, Route
from actpatch.engine.resume import Resumption
from actpatch.models.runner import Read, is_out_of_memory

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest error of a run, relative to the largest value, that is taken for rounding."""

CHOOSING = ("q", "k", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_attn_scores", "pattern")
"""What chooses among positions to attend to: of a single one it changes nothing."""


@dataclass(frozen=True)
class Exactness:
    """Which shortcuts reproduce this model's own runs. Each is exact where it holds, and tried before it is used."""

    resume: bool = True
    """Running the blocks singly, from a recorded residual stream."""
    prefix: bool = True
    """Running them over recorded keys and values."""
    linear: bool = True
    """Adding a change to the recorded residual stream."""
    narrow: bool = True
    """Computing, in the last layer, what follows the attention at the position that is read alone."""
    logits: bool = True
    """Computing only the logits that are read."""
    padded: bool = True
    """Running prompts of several lengths together."""
    together: bool = True
    """Running several prompts together."""

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the shortcuts that hold."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))

    def without_resuming(self) -> Exactness:
        """Full runs, as many at once as before."""
        return replace(self, resume=False, prefix=False, linear=False, narrow=False)

    def weakened(self) -> Exactness:
        """The next way of resuming to try: without one of two shortcuts, without both, without the prefix too."""
        if self.narrow:
            return replace(self, narrow=False)
        if self.linear:
            return replace(self, linear=False, narrow=True)
        return replace(self, prefix=False) if self.prefix else self.without_resuming()


ONE_PROMPT = Exactness(**dict.fromkeys((field.name for field in fields(Exactness)), False))
"""No shortcut: each run is the model's own, of one prompt."""


def sentence_on(lost: Mapping[str, str]) -> str:
    """What it means that these shortcuts do not hold, with the reasons; empty for none."""
    if "together" in lost:
        return f"every run is one of a whole prompt alone, which takes long ({lost['together']})"
    said = []
    if "padded" in lost:
        said.append(f"only prompts of one length are run together ({lost['padded']})")
    if "logits" in lost:
        said.append(f"all logits are computed ({lost['logits']})")
    if "resume" in lost:
        said.append(
            f"this model's blocks cannot be resumed exactly ({lost['resume']}), so every patch is a full run: slower, "
            "and the same as the model's own run of a prompt alone"
        )
    elif parts := [name for name in ("prefix", "linear", "narrow") if name in lost]:
        reasons = "; ".join(dict.fromkeys(lost[name] for name in parts))
        said.append(f"runs take longer without the shortcut{'s' * (len(parts) > 1)} {', '.join(parts)} ({reasons})")
    return "; ".join(said)


def error_of_resuming(
    experiment: Experiment, chunk: Chunk, exactness: Exactness, routes: Sequence[Route]
) -> str | None:
    """What differs when pairs are resumed with no change wherever patches enter; None where nothing does.

    What each patch writes on entering is written, with the values that are there. Rows of two pairs stand in one batch,
    whose first is not that by which the blocks' other arguments were found.
    """
    if not _are_called_alike(experiment, chunk, exactness):
        return "what its blocks are given beside the residual stream depends on the prompt"
    pairs = _two_pairs(chunk)
    patches = _one_of_each_kind(routes)
    rows = [(patch, pairs[i % 2]) for i, patch in enumerate(patches)]
    rows.insert(1, (patches[0], pairs[1]))  # both pairs pass every block that is run
    return _error_of_rows(experiment, chunk, exactness, routes, rows)


def _are_called_alike(experiment: Experiment, chunk: Chunk, exactness: Exactness) -> bool:
    every = range(len(chunk.pairs))
    start, length = _checked_start(chunk, every) if exactness.prefix else 0, int(chunk.lengths.max())
    try:
        return experiment.runner.blocks_are_called_alike(chunk.base, start, length)
    except Exception as failure:  # an unknown architecture's, which is asked again with the rows of two pairs
        if is_out_of_memory(failure):
            raise
        return True


def _error_of_rows(
    experiment: Experiment,
    chunk: Chunk,
    exactness: Exactness,
    routes: Sequence[Route],
    rows: Sequence[tuple[int, int]],
) -> str | None:
    """The same for these patches and pairs, in one batch, or in several where memory holds no more."""
    patches, pairs = map(list, zip(*rows))
    length = int(chunk.lengths[pairs].max())
    start = _checked_start(chunk, pairs) if exactness.prefix else 0
    if len(rows) > 1 and not rows_fit(experiment, len(rows), start, length):
        return _error_of_halves(experiment, chunk, exactness, routes, rows)
    batch = Batch.of(patches, pairs, start, length)
    seen: dict[str, Tensor] = {}
    hooked = {site.hook_point for route in routes for site in route.hooked}
    runner = experiment.runner
    try:
        unchanged, resumption = _unchanged(experiment, chunk, exactness, routes, batch, compares=True)
        with runner.hooks(runner.recording_hooks(hooked, seen)):
            logits = resumption.run(runner.begin(chunk.base, start, length))
    except Exception as failure:  # whatever an unknown architecture does when its blocks are called singly
        if not is_out_of_memory(failure):
            return f"{type(failure).__name__}: {failure}"
        if len(rows) == 1:
            raise
        return _error_of_halves(experiment, chunk, exactness, routes, rows)
    for in_full, recorded in unchanged.compared or ():
        if reason := too_far("computing the output of heads or neurons in full", in_full, recorded, "values"):
            return reason
    last = runner.n_layers - 1
    for name, value in seen.items():
        found = value.shape[position_axis(name)]
        is_narrowed = resumption.narrowed is not None and found == 1 and Site(name).layer == last
        if found != length - start and not is_narrowed:
            return f"{name} then holds {found} positions instead of {length - start}"
    expected = chunk.base.logits[pairs]
    if experiment.reads_all:
        expected = expected[:, start:length]
        is_padding = torch.arange(start, length) >= chunk.lengths[pairs][:, None]
        logits = torch.where(is_padding[..., None].to(logits.device), expected, logits)
    return too_far("resuming with no change", logits, expected)


def _error_of_halves(
    experiment: Experiment,
    chunk: Chunk,
    exactness: Exactness,
    routes: Sequence[Route],
    rows: Sequence[tuple[int, int]],
) -> str | None:
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return next(filter(None, (_error_of_rows(experiment, chunk, exactness, routes, half) for half in halves)), None)


def resumed_with_no_change(
    experiment: Experiment, chunk: Chunk, exactness: Exactness, routes: Sequence[Route], pair: int
) -> Float[Tensor, "row read token"]:
    """What is read of a pair's run, resumed with no change wherever patches enter, as long as the pair is."""
    patches, length = _one_of_each_kind(routes), int(chunk.lengths[pair])
    start = _checked_start(chunk, [pair]) if exactness.prefix else 0
    batch = Batch.of(patches, [pair] * len(patches), start, length)
    call = experiment.runner.begin(chunk.base, start, length)
    logits = _unchanged(experiment, chunk, exactness, routes, batch, in_full=True)[1].run(call)
    if not experiment.reads_all:
        return logits
    return torch.cat([chunk.base.logits[pair, :start].expand(len(logits), -1, -1), logits], dim=1)


def _checked_start(chunk: Chunk, pairs: Sequence[int]) -> int:
    """From where these pairs are resumed for a check: their first change, but one prefix and all that is read."""
    return min(max(int(chunk.first_change[pairs].min()), 1), int(chunk.ends[pairs].min()) - 1)


def _unchanged(
    experiment: Experiment,
    chunk: Chunk,
    exactness: Exactness,
    routes: Sequence[Route],
    batch: Batch,
    **options: bool,
) -> tuple[PatchedRows, Resumption]:
    """A batch into which the values are written that are there, each at its own position."""
    as_it_is = replace(chunk, source=chunk.base.activations)
    rows = PatchedRows(experiment, batch, as_it_is, [replace(route, hooked=()) for route in routes], **options)
    how = {"narrow": exactness.narrow, "logits_alone": exactness.logits}
    return rows, Resumption(rows, experiment.vocabulary, **how)


def too_far(what: str, found: Tensor, expected: Tensor, of: str = "logits") -> str | None:
    """A sentence on how far these numbers are off, where that is more than rounding; NaN in both is none."""
    found = found.to(expected.device)
    same = (found == expected) | (found.isnan() & expected.isnan())
    error = float(torch.where(same, 0, (found - expected).abs()).max())
    allowed = allowed_error(expected)
    return None if error <= allowed else f"{what} gives {of} that are {error:.2g} off, {allowed:.2g} is allowed"


def allowed_error(values: Tensor) -> float:
    """What may be rounding, of values of this type and size."""
    finite = values[values.isfinite()]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    return TOLERANCE.get(values.dtype, 1e-5) * max(1.0, largest)


def check_writing(experiment: Experiment, chunk: Chunk, exactness: Exactness, hooked: Iterable[Sequence[Site]]) -> None:
    """Check that what the hooks write is computed on with, and that writing what is there changes nothing.

    Raises:
        RuntimeError: where hooks fire but what they return is not used (of an attention that is already over, say), and
            where the model computes otherwise for the very reason that a hook returns something.
    """
    of_a_kind: dict[tuple[str, Any], set[str]] = {}
    for site in {site.hook_point: site for sites in hooked for site in sites}.values():
        kind = site.component, _build_of_block(experiment, site.layer)
        of_a_kind.setdefault(kind, set()).add(site.hook_point)
    longest = int(chunk.lengths.argmax())
    for (component, _), names in of_a_kind.items():
        name = min(names)
        as_it_is = _run_written(experiment, name, chunk, exactness, None)
        try:
            rewritten = _run_written(experiment, name, chunk, exactness, _the_same)
        except (AttributeError, LookupError, TypeError) as failure:
            raise RuntimeError(
                f"writing to {name} ends this model's run in {type(failure).__name__} ({failure}): it cannot "
                "be patched there"
            ) from failure
        finite = as_it_is[as_it_is.isfinite()].abs()
        allowed = max(allowed_error(as_it_is), TOLERANCE[torch.float32] * float(finite.max() if len(finite) else 0))
        if not float((rewritten - as_it_is).abs().nan_to_num().max()) <= allowed:
            raise RuntimeError(
                f"writing to {name} what is there changes this model's run: it computes otherwise where a hook returns "
                "a value, so it cannot be patched there"
            )
        if chunk.lengths[longest] == 1 and component in CHOOSING:
            continue
        if not any(_is_used(experiment, name, chunk, exactness) for name in sorted(names)):
            raise RuntimeError(
                f"writing to {name} changes nothing in this model: it computes on without what the hook returns, so it "
                "cannot be patched there"
            )


def _build_of_block(experiment: Experiment, layer: int | None) -> tuple[tuple[str, type], ...]:
    """Names and classes of a block's modules: a model may have blocks of several kinds."""
    block = None if layer is None else experiment.runner.model.blocks[layer]
    return () if block is None else tuple((name, type(module)) for name, module in block.named_modules())


def _is_used(experiment: Experiment, name: str, chunk: Chunk, exactness: Exactness) -> bool:
    """Whether the model computes on with what is written to a hook point."""
    as_it_is, disturbed = (_run_written(experiment, name, chunk, exactness, write) for write in (None, _disturbed))
    return not torch.equal(as_it_is, disturbed)


def _the_same(value: Tensor, hook: Any) -> Tensor:
    return value.clone()


def _disturbed(value: Tensor, hook: Any) -> Tensor:
    return 2 * value + torch.linspace(0, 1, value.numel(), device=value.device).view_as(value).to(value.dtype)


def _run_written(
    experiment: Experiment, name: str, chunk: Chunk, exactness: Exactness, write: Callable[..., Tensor] | None
) -> Tensor:
    """A run of the longest prompt with this written to a hook point: of its block, where blocks are run singly."""
    runner, layer, pair = experiment.runner, Site(name).layer, int(chunk.lengths.argmax())
    tokens = chunk.base.tokens[pair : pair + 1]
    with runner.hooks([] if write is None else runner.writing_hooks(name, write)):
        if layer is None or not exactness.resume:
            return runner.run(tokens, Read(alone=exactness.logits))
        resid = chunk.base.activations[block_hook(layer, "resid_pre")][pair : pair + 1]
        return runner.run_block(layer, resid, None, runner.begin(chunk.base, 0, resid.shape[1]))


def _two_pairs(chunk: Chunk) -> list[int]:
    """The pair with the earliest change, and the one whose prompt differs most from its own; one twice."""
    earliest = int(chunk.first_change.argmin())
    differing = (chunk.base.tokens != chunk.base.tokens[earliest]).sum(dim=1)
    return [earliest, int(differing.argmax())]


def _one_of_each_kind(routes: Sequence[Route]) -> list[int]:
    """Of the patches that enter at one place by one kind of change the last, ordered by entry."""
    last = {(route.order, tuple(site.component for site in route.on_entry)): i for i, route in enumerate(routes)}
    return sorted(last.values(), key=lambda i: routes[i].order)
