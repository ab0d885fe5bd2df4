"""Metrics are chosen, and several are measured together.

Metrics are asked for by name or given as objects (`choose_metrics`); a `MetricSet` reads of the logits what any of
them reads, and measures all from the same run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.metrics.base import Answers, Metric
from actpatch.metrics.registry import METRICS, NAMED_METRICS, metric_key

MetricChoice: TypeAlias = "str | Metric | Sequence[str | Metric] | None"
"""What the patchers take: names from `METRICS`, `"dataset"` for the dataset's own metric, and `Metric` objects; None
for the dataset's own alone. The first one is what results show unless another is selected."""

LARGEST_SLICE = 2**24
"""Most logits that are measured at once: a softmax over the vocabulary makes several copies of them."""


def choose_metrics(
    asked: MetricChoice, own: Callable[[], Metric], answers: Callable[[], Answers]
) -> tuple[Metric, ...]:
    """The metrics that were asked for.

    Args:
        asked: names, `Metric` objects, or None for the dataset's own.
        own: makes the dataset's own metric.
        answers: reads the dataset's answers; called only where a metric needs them.

    Raises:
        ValueError: for an unknown name, for what is no metric, where none or one twice is asked for, and where a pair
            lacks an answer that a metric needs.
    """
    if asked is None:
        asked = "dataset"
    each = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
    metrics = tuple(_chosen(one, own, answers) for one in each)
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
    """Several metrics, measured from the same logits."""

    metrics: tuple[Metric, ...]

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
            pairs: the pairs, counted from 0 within the experiment.
            lengths: number of tokens of each pair's prompt in these runs.
            clean_lengths: number of tokens of each pair's clean prompt; None for those of `lengths`.
        """
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
        return metric.measure(read, pairs[rows], beside).cpu().to(torch.float64, copy=True)

    def _narrowed(self, logits: Float[Tensor, "row pos token"], metric: Metric) -> Float[Tensor, "row pos read"]:
        """What the metric reads of these logits, in single precision at least."""
        if metric.tokens is not None:
            read = metric.tokens if self.tokens is None else torch.searchsorted(self.tokens, metric.tokens)
            logits = logits[..., read]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _chosen(asked: Any, own: Callable[[], Metric], answers: Callable[[], Answers]) -> Metric:
    if isinstance(asked, Metric) and not isinstance(asked, type):
        return asked
    if not isinstance(asked, str):
        raise ValueError(_no_metric(asked))
    key = metric_key(asked)
    if key == "dataset":
        return own()
    if key in NAMED_METRICS:
        return NAMED_METRICS[key].made(answers)
    nearest = difflib.get_close_matches(key, METRICS, n=3)
    hint = f"the nearest names are {', '.join(nearest)}; " if nearest else ""
    raise ValueError(f"the metric {asked!r} is unknown: {hint}expected one of {', '.join(METRICS)}, or a Metric object")


def _no_metric(asked: Any) -> str:
    members = [name for name in vars(Metric) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(asked, name)]
    got = f"the class {asked.__name__}" if isinstance(asked, type) else f"a {type(asked).__name__}"
    lacks = f" (it has no {', '.join(missing)})" if 0 < len(missing) < len(members) else ""
    return (
        f"{got} is no metric{lacks}: metrics takes names ({', '.join(METRICS)}) and Metric objects, one or a list of "
        "them; give a function of your own as actpatch.DatasetMetric(function, name=..., unit=...), or as the "
        "dataset's compute_metric"
    )


def _at_last(logits: Float[Tensor, "row pos token"], lengths: Int[Tensor, " row"]) -> Float[Tensor, "row 1 token"]:
    return logits[torch.arange(len(lengths)), lengths - 1].unsqueeze(1)
