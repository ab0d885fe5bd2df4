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
from jaxtyping import Bool, Float, Int
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

    def slopes(
        self, metric: int, names: Sequence[str], *, all_reached: bool = True
    ) -> dict[str, Float[Tensor, "row ..."]]:
        """The gradient of a metric at these hook points. The graph is kept."""
        return self.slopes_at(metric, {name: self.held[name] for name in names}, all_reached=all_reached)

    def slopes_at(self, metric: int, at: Mapping[str, Tensor], *, all_reached: bool = True) -> dict[str, Tensor]:
        """The gradient of a metric at these tensors of the graph.

        Args:
            metric: its number.
            at: the tensors, by name.
            all_reached: whether the metric depends on each; False for a gradient of 0 where it does not.

        Raises:
            RuntimeError: where the metric does not depend on one of them: the model computes on with a copy.
        """
        slopes = torch.autograd.grad(self.values[metric].sum(), [*at.values()], retain_graph=True, allow_unused=True)
        found = {name: slope for name, slope in zip(at, slopes) if slope is not None}
        if not all_reached:
            found |= {name: torch.zeros_like(one) for name, one in at.items() if name not in found}
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
    cuts: Mapping[str, Bool[Tensor, "pair ..."]] = field(default_factory=dict)
    """Hook point -> where a value is held as it is, whatever comes before it: what is written elsewhere does not change
    it, since it is written itself. Of all pairs of the chunk."""


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
            ValueError: where a metric has no gradient.
            RuntimeError: where no gradient reaches the logits, where the run is not the recorded one, and where a rule
                has no effect.
        """
        rules = rules or Rules()
        held: dict[str, Tensor] = {}
        recording, writes = point.run, {name: value[rows] for name, value in point.writes.items()}
        cuts = {name: mask[rows] for name, mask in point.cuts.items()}
        length = recording.tokens.shape[1]
        hooks = [] if point.noise is None else [noise_hook(point.noise[rows, :length])]
        hooks_of_rules = [*rules.before, *rules.behind]
        hooks += [*rules.before, *holding_hooks(self.runner, names, held, writes, cuts), *rules.behind]
        reads = self.chunk.reads_of(recording)
        read = Read(None if reads is None else reads[rows], self.experiment.vocabulary, self.alone)
        with torch.enable_grad(), weights_without_gradients(self.runner):
            with self.runner.hooks(hooks), rules.modules():
                logits = self._run(recording.tokens[rows].clone(), read, bool(hooks_of_rules))
            if missing := [name for name in names if name not in held]:
                raise RuntimeError(f"the hook point {missing[0]} did not fire, so it has no gradient")
            if not writes and (reason := _error_of(logits.detach(), recording.logits[rows], rules)):
                raise RuntimeError(f"effects cannot be estimated for this model: {reason}")
            if not logits.requires_grad:
                raise RuntimeError(
                    "no gradient reaches the logits: this model, or code that was put on it, computes on with a copy "
                    "of what comes before; run the patches themselves"
                )
            values = self.measure(logits, rows=rows, lengths=self.chunk.lengths_of(recording))
            rules.check_in_use(values)
            yield Run(values, held)

    def check_path(self) -> None:
        """Raise a RuntimeError where a run that begins with the other run's stream is not the other run: the model then
        reads its tokens elsewhere too, and no path between the two streams leads from one run to the other."""
        chunk, first = self.chunk, torch.zeros(1, dtype=torch.long)
        stream = chunk.other.activations[INPUT][first]
        read = Read(None if chunk.reads is None else chunk.reads[first], self.experiment.vocabulary, self.alone)
        with self.runner.hooks([(INPUT, lambda value, hook: stream.to(value))]):
            logits = self.runner.run(chunk.base.tokens[first], read)
        if reason := too_far("a run of the other run's embeddings", logits, chunk.other.logits[first]):
            raise RuntimeError(
                "'eap_ig' goes along the stream before the first block, but this model reads its tokens elsewhere too "
                f"({reason}): choose another method"
            )

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
    runner: Runner,
    names: Sequence[str],
    held: dict[str, Tensor],
    writes: Mapping[str, Tensor],
    cuts: Mapping[str, Tensor],
) -> list[Hook]:
    """Hooks that keep activations with their graph, and put what is written into the place of others.

    The first activation that is met has no graph yet: it becomes the beginning of one.
    """

    def keep(name: str) -> Callable[..., Tensor]:
        def hold(value: Tensor, hook: Any) -> Tensor:
            if name in writes or not value.requires_grad:
                value = writes.get(name, value).to(value).detach().clone().requires_grad_()
            elif name in cuts:
                held[name] = value.detach().clone().requires_grad_()
                return torch.where(cuts[name], held[name], value)
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
