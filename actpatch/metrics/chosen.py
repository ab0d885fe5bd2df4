"""Metrics are chosen, and several are measured together.

Metrics are asked for by name or given as objects (`choose_metrics`); a `MetricSet` reads of the logits what any of
them reads, and measures all from the same run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.metrics.base import LARGEST_SLICE, Metric, PairAnswers
from actpatch.metrics.names import metric_key
from actpatch.metrics.own import function_metric, no_gradient
from actpatch.metrics.registry import METRICS, NAMED_METRICS
from actpatch.metrics.sequence import SequenceMetric

AnyMetric: TypeAlias = "Metric | SequenceMetric"
"""A metric of single tokens, or of whole answers."""
MetricFunction: TypeAlias = "Callable[[Float[Tensor, '1 pos d_vocab'], int], Any]"
"""`function(logits, pair_idx)` of a run's logits and its pair's index in the dataset; it returns one number."""
MetricChoice: TypeAlias = "str | AnyMetric | MetricFunction | Sequence[str | AnyMetric | MetricFunction] | None"
"""What the patchers take: names from `METRICS`, `"dataset"` for the dataset's own metric, `Metric` objects, and plain
functions, of which more is taken to be better; None for the dataset's own alone. The first one is what results show
unless another is selected."""


def choose_metrics(asked: MetricChoice, own: Callable[[], AnyMetric], pairs: PairAnswers) -> tuple[AnyMetric, ...]:
    """The metrics that were asked for.

    Args:
        asked: names, `Metric` objects, or None for the dataset's own.
        own: makes the dataset's own metric.
        pairs: the pairs, of which answers are asked only where a metric needs them.

    Raises:
        ValueError: for an unknown name, for what is no metric, where none or one twice is asked for, and where a pair
            lacks an answer that a metric needs.
    """
    if asked is None:
        asked = "dataset"
    each = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
    metrics = tuple(_chosen(one, own, pairs) for one in each)
    if not metrics:
        raise ValueError("metrics is empty: give at least one, or None for the dataset's own")
    keys = [metric_key(metric.name) for metric in metrics]
    if twice := [metric.name for i, metric in enumerate(metrics) if keys[i] in keys[:i]]:
        raise ValueError(
            f"two of the metrics are called {twice[0]!r}: give each once, and metrics of your own another name= "
            "('dataset' is the logit difference where the dataset has no compute_metric of its own)"
        )
    return metrics


@dataclass(frozen=True)
class MetricSet:
    """Several metrics of single tokens, measured from the same logits."""

    metrics: tuple[Metric, ...]
    samples: int = 1
    """How many runs of each pair there are, one after the other."""
    continuations: ClassVar[None] = None
    """Nothing is appended to the prompts."""

    def __len__(self) -> int:
        return len(self.metrics)

    @property
    def reads_all_positions(self) -> bool:
        return any(metric.reads_all_positions for metric in self.metrics)

    @cached_property
    def tokens(self) -> Int[Tensor, " token"] | None:
        """Vocabulary entries that some metric reads, ascending; None where one reads all."""
        read = [metric.tokens for metric in self.metrics]
        narrow = [tokens for tokens in read if tokens is not None]
        return torch.unique(torch.cat(narrow)) if len(narrow) == len(read) else None

    def measure(
        self,
        logits: Float[Tensor, "row pos token"],
        clean: Float[Tensor, "pair longest token"],
        *,
        rows: Int[Tensor, " row"],
        pairs: Int[Tensor, " pair"],
        lengths: Int[Tensor, " pair"],
        clean_lengths: Int[Tensor, " pair"] | None = None,
    ) -> Float[Tensor, "metric row"]:
        """Every metric of every run.

        Args:
            logits: the runs' logits of `tokens`, at all positions or at each run's last, as `reads_all_positions` says.
            clean: those of the clean runs, one per pair.
            rows: for each run the place of its pair among `pairs`.
            pairs: the runs of the experiment, counted from 0: each pair once per sample.
            lengths: number of tokens of each pair's prompt in these runs.
            clean_lengths: number of tokens of each pair's clean prompt; None for those of `lengths`.
        """
        pairs = pairs // self.samples
        clean_lengths = lengths if clean_lengths is None else clean_lengths
        last, last_clean = logits, clean
        if self.reads_all_positions:
            last, last_clean = _at_last(logits, lengths[rows]), _at_last(clean, clean_lengths)
        measured = []
        for metric in self.metrics:
            if metric.reads_all_positions:
                each = zip(lengths[rows].tolist(), clean_lengths[rows].tolist())
                runs = [
                    self._measure(metric, logits[i : i + 1, :length], clean[:, :n_clean], rows[i : i + 1], pairs)
                    for i, (length, n_clean) in enumerate(each)
                ]
            else:
                size = max(1, LARGEST_SLICE // last.shape[-1])
                slices = zip(last.split(size), rows.split(size))
                runs = [self._measure(metric, part, last_clean, of, pairs) for part, of in slices]
            measured.append(torch.cat(runs))
        return torch.stack(measured)

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured of each run, as `measure` returns it."""
        return tuple(metric.name for metric in self.metrics)

    def n_runs(self, n_pairs: int) -> int:
        return self.samples * n_pairs

    def of_pairs(self, values: Float[np.ndarray, "metric ... run"]) -> Float[np.ndarray, "metric ... run"]:
        """Every metric of each sample of each pair, which is what was measured."""
        return values

    def _measure(
        self,
        metric: Metric,
        logits: Float[Tensor, "row pos token"],
        clean: Float[Tensor, "pair clean_pos token"],
        rows: Int[Tensor, " row"],
        pairs: Int[Tensor, " pair"],
    ) -> Float[Tensor, " row"]:
        """A metric of the user's may work on its logits in place: it gets a copy of those, which others read too.
        The clean ones are its own already, as picking rows copies; what it returns may be its own as well."""
        beside = self._narrowed(clean[rows], metric) if metric.reads_clean else None
        read = self._narrowed(logits, metric)
        if type(metric) not in NAMED_METRICS.values():
            read = read.clone()
        found = metric.measure(read, pairs[rows], beside)
        if read.requires_grad and not found.requires_grad:
            raise ValueError(no_gradient(f"the metric {metric.name!r}"))
        return found.cpu().to(torch.float64, copy=True)

    def _narrowed(self, logits: Float[Tensor, "row pos token"], metric: Metric) -> Float[Tensor, "row pos read"]:
        """What the metric reads of these logits, in single precision at least."""
        if metric.tokens is not None:
            read = metric.tokens if self.tokens is None else torch.searchsorted(self.tokens, metric.tokens)
            logits = logits[..., read]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _chosen(asked: Any, own: Callable[[], AnyMetric], pairs: PairAnswers) -> AnyMetric:
    if isinstance(asked, (Metric, SequenceMetric)) and not isinstance(asked, type):
        return asked
    if not isinstance(asked, str):
        if callable(asked) and not isinstance(asked, type) and not _members(asked):
            return function_metric(asked)
        raise ValueError(_no_metric(asked))
    key = metric_key(asked)
    if key == "dataset":
        return own()
    if key in NAMED_METRICS:
        return NAMED_METRICS[key].made(pairs)
    nearest = difflib.get_close_matches(key, METRICS, n=3)
    hint = f"the nearest names are {', '.join(nearest)}; " if nearest else ""
    raise ValueError(f"the metric {asked!r} is unknown: {hint}expected one of {', '.join(METRICS)}, or a Metric object")


def _no_metric(asked: Any) -> str:
    members = [name for name in vars(Metric) if not name.startswith("_")]
    missing = [name for name in members if name not in _members(asked)]
    got = f"the class {asked.__name__}" if isinstance(asked, type) else f"a {type(asked).__name__}"
    lacks = f" (it has no {', '.join(missing)})" if 0 < len(missing) < len(members) else ""
    return (
        f"{got} is no metric{lacks}: metrics takes names ({', '.join(METRICS)}), Metric objects and functions of "
        "(logits, pair_idx), one or a list of them; actpatch.DatasetMetric(function, name=..., unit=..., "
        "more_is_better=...) says more of a function"
    )


def _members(asked: Any) -> list[str]:
    """What of a metric it has."""
    return [name for name in vars(Metric) if not name.startswith("_") and hasattr(asked, name)]


def _at_last(logits: Float[Tensor, "row pos token"], lengths: Int[Tensor, " row"]) -> Float[Tensor, "row 1 token"]:
    return logits[torch.arange(len(lengths)), lengths - 1].unsqueeze(1)
