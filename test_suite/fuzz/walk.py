"""A case run by the library and by hand, and what came of it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from activation_patching import ActivationPatcher, Mean, OtherRun, PatchingDataset, Zero
from test_suite.fuzz.case import Case, draw
from test_suite.fuzz.plain import PlainCase, answers, user_hook
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import small_model, words


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    case: Case
    kind: Literal["agrees", "refused", "disagrees", "fails"]
    said: str = ""
    """The refusal, the error, or how far off which patch is."""
    moved: bool = False
    """Whether any patch changed a metric: of one that changes none there is little to check."""

    @property
    def command(self) -> str:
        """What runs this case again."""
        return f"python -m test_suite.fuzz --seed {self.case.seed} --cases 1 --only {self.case.model}"


class Drawn(PatchingDataset):
    """A case's prompts as a task."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @property
    def name(self) -> str:
        return "drawn"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [(words(clean), words(corrupted)) for clean, corrupted in self.case.prompts]

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        (correct,), (incorrect,) = answers(pair_idx)
        return correct, incorrect


class DrawnWithMetric(Drawn):
    """It measures every logit at every position."""

    def compute_metric(self, logits: Tensor, pair_idx: int) -> float:
        return everything(logits, pair_idx)


def everything(logits: Tensor, pair: int) -> float:
    """A weighted mean of every logit at every position, other weights for each pair."""
    _, length, d_vocab = logits.shape
    at, token = torch.arange(length)[:, None], torch.arange(d_vocab)
    weights = torch.cos(1.0 + 1.7 * at + 0.9 * token * (at + 1) + 0.3 * pair)
    return float((logits[0].double() * weights).sum() / (length * d_vocab / 2) ** 0.5)


def check(seed: int, only: str | None = None) -> Outcome:
    """Draw the case of this seed and compare what the library finds with plain runs."""
    case = draw(seed, only)
    model = small_model(case.model)
    with _in_state(model, case), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sweep = _swept(model, case)
        except ValueError as refusal:
            return Outcome(case, "refused", str(refusal))
        except RuntimeError as error:
            said = str(error)
            return Outcome(case, "refused" if "cannot be patched" in said else "fails", f"RuntimeError: {said}")
        except Exception as error:
            return Outcome(case, "fails", f"{type(error).__name__}: {error}")
        model.eval()
        return _compared(case, sweep, PlainCase(case, model, everything))


def _swept(model: Any, case: Case) -> Any:
    dataset = Drawn(case) if case.metrics else DrawnWithMetric(case)
    sources = {"other run": OtherRun(), "zero": Zero(), "mean": Mean(), "mean of clean": Mean(run="clean")}
    return ActivationPatcher(model, batch_size=case.batch_size, show_progress=False).sweep(
        dataset,
        case.patches,
        direction=case.direction,  # type: ignore[arg-type]
        source=sources[case.source],
        metrics=None if case.metrics is None else list(case.metrics),
    )


def _compared(case: Case, sweep: Any, plain: PlainCase) -> Outcome:
    clean, corrupted = plain.baselines()
    expected = {"the clean run": clean, "the corrupted run": corrupted}
    found = {
        "the clean run": np.array([metric.clean for metric in sweep.measured]),
        "the corrupted run": np.array([metric.corrupted for metric in sweep.measured]),
    }
    for i, patch in enumerate(case.patches):
        expected[patch.label] = plain.patched(patch)
        found[patch.label] = np.array([metric.patched[i] for metric in sweep.measured])
    worst, where = 0.0, ""
    for name, numbers in expected.items():
        error = float(np.max(_apart(found[name], numbers)))
        if not error <= worst:
            worst, where = error, name
    base = corrupted if case.direction == "denoising" else clean
    moved = any(np.nanmax(abs(expected[patch.label] - base)) > 1e-3 for patch in case.patches)
    if worst <= allowed(plain.model, plain.clean):
        return Outcome(case, "agrees", moved=moved)
    return Outcome(case, "disagrees", f"{worst:.2g} off at {where}", moved)


def _apart(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Distances, relative where numbers are above one; none between what is undefined in both."""
    apart = abs(found - expected) / np.maximum(1, abs(expected))
    same = (np.isnan(found) & np.isnan(expected)) | (found == expected)
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


@contextlib.contextmanager
def _in_state(model: Any, case: Case) -> Iterator[None]:
    """The model as the case's user left it: hooks of their own, training mode, the side on which is padded."""
    padded = model.tokenizer.padding_side
    model.tokenizer.padding_side = case.padding_side
    model.train(case.training)
    try:
        with model.hooks(fwd_hooks=[(name, user_hook(kind)) for name, kind in case.user_hooks]):
            yield
    finally:
        model.eval()
        model.tokenizer.padding_side = padded
