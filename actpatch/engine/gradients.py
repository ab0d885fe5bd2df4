"""Runs with gradients: the derivative of each metric of each run, at hook points, from the model's own full run.

The stream before the first block is the first place that has a gradient; the weights have none, whatever they ask for,
and get none. What a run computes must be what was recorded of it, also under backward rules (`engine.backward`), which
change derivatives alone. Nothing here knows what gradients are multiplied with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.engine.backward import Rules
from actpatch.engine.edges import INPUT
from actpatch.engine.exactness import too_far
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.writes import noise_hook
from actpatch.models.found import modules_of
from actpatch.models.runner import Hook, Read, Recording, Runner

Measure: TypeAlias = Callable[..., Float[Tensor, "metric row"]]
"""Metrics of logits, of the runs of a chunk."""


@dataclass(frozen=True)
class Run:
    """A run of some pairs, whose metrics can be differentiated."""

    values: Float[Tensor, "metric row"]
    """The metrics, with the graph of how they were computed."""
    held: dict[str, Tensor]
    """Hook point -> its activation, in that graph."""

    def slopes(self, metric: int, names: Sequence[str]) -> dict[str, Float[Tensor, "row ..."]]:
        """The gradient of a metric at these hook points. The graph is kept."""
        return self.slopes_at(metric, {name: self.held[name] for name in names})

    def slopes_at(self, metric: int, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of a metric at these tensors of the graph.

        Raises:
            RuntimeError: where the metric does not depend on one of them: the model computes on with a copy.
        """
        value = self.values[metric]
        if not value.requires_grad:  # of several that are measured together, one may count and not measure
            return {name: torch.zeros_like(one) for name, one in at.items()}
        slopes = torch.autograd.grad(value.sum(), [*at.values()], retain_graph=True, allow_unused=True)
        found = {name: slope for name, slope in zip(at, slopes) if slope is not None}
        if missing := [name for name in at if name not in found]:
            raise RuntimeError(
                f"the gradient does not reach {missing[0]}: this model, or code that was put on it, computes on with "
                "a copy of what is held there; run the patches themselves"
            )
        return found


@dataclass(frozen=True)
class Point:
    """Where gradients are taken: of which run, changed by what."""

    run: Recording
    """The recorded run whose tokens are run again."""
    noise: Float[Tensor, "pair pos d_model"] | None
    """What is added to its embeddings."""
    writes: Mapping[str, Float[Tensor, "pair ..."]] = field(default_factory=dict)
    """Hook point -> what stands there in the place of what is computed; of all pairs of the chunk."""


class Differentiator:
    """Runs the pairs of a chunk with gradients.

    Args:
        experiment: what is estimated.
        chunk: its recorded runs.
        measure: the metrics.
        alone: whether no logits are computed but those that are read.
    """

    def __init__(self, experiment: Experiment, chunk: Chunk, measure: Measure, alone: bool) -> None:
        self.experiment, self.chunk, self.measure, self.alone = experiment, chunk, measure, alone
        self.runner = experiment.runner

    @property
    def at_base(self) -> Point:
        """The run that is patched."""
        return Point(self.chunk.base, self.chunk.base_noise)

    @property
    def at_other(self) -> Point:
        """The other run of each pair."""
        return Point(self.chunk.other, self.chunk.other_noise)

    @contextlib.contextmanager
    def running(
        self, point: Point, rows: Int[Tensor, " row"], names: Sequence[str], rules: Rules | None = None
    ) -> Iterator[Run]:
        """A run of these pairs of the chunk, with the activations at these hook points held.

        Args:
            point: which run, and what is changed in it.
            rows: which pairs.
            names: hook points.
            rules: what changes derivatives, and nothing else.

        Raises:
            ValueError: where no metric has a gradient.
            RuntimeError: where the run is not the recorded one, and where a rule has no effect.
        """
        rules = rules or Rules()
        held: dict[str, Tensor] = {}
        recording, writes = point.run, {name: value[rows] for name, value in point.writes.items()}
        length = recording.tokens.shape[1]
        hooks = [] if point.noise is None else [noise_hook(point.noise[rows, :length])]
        hooks_of_rules = [*rules.before, *rules.behind]
        hooks += [*rules.before, *holding_hooks(self.runner, names, held, writes), *rules.behind]
        reads = self.chunk.reads_of(recording)
        read = Read(None if reads is None else reads[rows], self.experiment.vocabulary, self.alone)
        with torch.enable_grad(), weights_without_gradients(self.runner):
            with self.runner.hooks(hooks), rules.modules():
                logits = self._run(recording.tokens[rows].clone(), read, bool(hooks_of_rules))
            if missing := [name for name in names if name not in held]:
                raise RuntimeError(f"the hook point {missing[0]} did not fire, so it has no gradient")
            if not writes and (reason := _error_of(logits.detach(), recording.logits[rows], rules)):
                raise RuntimeError(f"effects cannot be estimated for this model: {reason}")
            values = self.measure(logits, rows=rows, lengths=self.chunk.lengths_of(recording))
            if not values.requires_grad:
                raise ValueError(
                    "the metric has no gradient: expected a tensor that torch computes from the logits, without "
                    ".item() and float(); or run the patches themselves"
                )
            rules.check_in_use(values)
            yield Run(values, held)

    def _run(self, tokens: Int[Tensor, "row pos"], read: Read, has_rules: bool) -> Float[Tensor, "row read token"]:
        try:
            return self.runner.run(tokens, read)
        except (AttributeError, LookupError, TypeError) as failure:
            if not has_rules or self.runner.foreign:  # it may be that of the user's own code
                raise
            raise RuntimeError(
                f"the backward rules cannot be set for this model: with them its run ends in {type(failure).__name__} "
                f"({failure}); use another method"
            ) from failure


def _error_of(logits: Tensor, recorded: Tensor, rules: Rules) -> str | None:
    """How far a run is off the recorded one. Under rules, a model in double precision may compute parts in single."""
    if (rules.expected or rules.before) and recorded.dtype == torch.float64:
        logits, recorded = (values.to(torch.float32) for values in (logits, recorded))
    return too_far("a run with gradients", logits, recorded)


def holding_hooks(
    runner: Runner, names: Sequence[str], held: dict[str, Tensor], writes: Mapping[str, Tensor]
) -> list[Hook]:
    """Hooks that keep activations with their graph, and put what is written into the place of others.

    The first activation that is met has no graph yet: it becomes the beginning of one.
    """

    def keep(name: str) -> Callable[..., Tensor]:
        def hold(value: Tensor, hook: Any) -> Tensor:
            if name in writes or not value.requires_grad:
                value = writes.get(name, value).to(value).detach().clone().requires_grad_()
            held[name] = value
            return value  # also as it is: a hook point may show another layout of what it passes on

        return hold

    hooks: list[Hook] = []
    for name in dict.fromkeys((*names, *writes, INPUT)):
        hooks += runner.writing_hooks(name, keep(name))
    return hooks


@contextlib.contextmanager
def weights_without_gradients(runner: Runner) -> Iterator[None]:
    """The model's weights as constants: no graph is kept for their gradients; what they ask for is put back."""
    weights = [weight for module in modules_of(runner.model) for weight in module.parameters(recurse=False)]
    asking = [weight for weight in weights if weight.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)
