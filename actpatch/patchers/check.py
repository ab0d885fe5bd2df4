"""Whether a dataset is fit for a model, asked before a sweep: does the model do the task, and is the data sound?

`check_dataset` runs the clean and the corrupted prompts once, patches nothing, and answers: are prompts and answers
well formed, does the model do the task, does the corruption break it, can each pair's effect be divided by its
baselines, which tokens does the corruption change, do pairs align, do they repeat. What a sweep would refuse is told
of all pairs at once. What it finds in the baselines is what sweeps warn of (`results.baselines`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool

from actpatch.core.text import MOST_LISTED
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.noise import GaussianNoise
from actpatch.metrics.answers import Accuracy, LogitDifference
from actpatch.metrics.base import Answers, AnswerSequences
from actpatch.metrics.chosen import AnyMetric, MetricFunction
from actpatch.metrics.distribution import KLDivergence
from actpatch.metrics.names import metric_key
from actpatch.metrics.registry import NAMED_METRICS, right_above
from actpatch.metrics.sequence import (
    SequenceAccuracy,
    SequenceLogProbability,
    SequenceLogProbabilityDifference,
    SequenceMetric,
)
from actpatch.patchers.answered import answer_sets, short_or_whole
from actpatch.patchers.changes import changes_of
from actpatch.patchers.spelling import OtherSpelling, other_spelling
from actpatch.patchers.texts import text_findings, tokens_at_names, unnamed_changes
from actpatch.results.answers import NO_ANSWER, AnswerSet
from actpatch.results.baselines import (
    ACCURACIES,
    SEVERITIES,
    Finding,
    chosen,
    finite_pairs,
    not_finite,
    of_pairs,
    repeated,
    share_of_pairs,
    unbroken,
    unusable,
    wrong_answers,
)
from actpatch.results.check import DatasetCheck, PairCheck
from actpatch.results.sweep import MetricValues, usable_pairs
from actpatch.statistics.groups import FEWEST_OF_A_GROUP
from actpatch.statistics.resampling import FEWEST_PAIRS
from actpatch.tasks.answers import Known, checked_sequences, checked_targets, has_own_metric
from actpatch.tasks.dataset import CleanPrompts, PatchingDataset, pairs_of
from actpatch.tasks.encoding import EncodedPairs, chosen_indices, encode_pairs
from actpatch.tasks.tokens import WrongTokenizer, token_ids
from actpatch.tasks.unmatched import unmatched_sentence

STILL_RIGHT = 0.75
"""Where so large a share of the corrupted runs is right, the corruption does not change the answer."""
_NO_ANSWERS = Finding(
    "note",
    "No pair has a right answer, so the metric is the KL divergence from the clean run",
    f"Give the sweep metrics={KLDivergence.key!r} too: its default needs answers",
)


def check_dataset(
    model: Any,
    dataset: PatchingDataset,
    *,
    pair_indices: Sequence[int] | None = None,
    metric: str | AnyMetric | MetricFunction | None = None,
    noise: GaussianNoise | None = None,
) -> DatasetCheck:
    """Check a dataset for a model: `print(check_dataset(model, dataset))`.

    Each prompt is run once, and nothing is patched. Pairs that a sweep would refuse are named all together, and the
    others are checked without them.

    Args:
        model: the model, as for `ActivationPatcher`.
        dataset: prompt pairs and metric.
        pair_indices: which pairs of the dataset; None for all.
        metric: what effects are going to be computed from, a name (`METRICS`), a `Metric` or a function of (logits,
            pair_idx). None for the dataset's own; where it has none for the log-probability of the right answer if
            there are no wrong ones, for metrics of whole answers if these have several tokens, and for the KL
            divergence if there are no answers at all.
        noise: makes the corrupted run out of the clean prompt, whose partner in the pair is then not looked at.

    Raises:
        TypeError: for a model or a dataset of another class.
        ValueError: for an empty dataset, one that was made for another model's tokenizer or has nothing but texts
            for a model without one, a pair index out of range or given twice, and a metric that cannot be measured.
    """
    if not isinstance(dataset, PatchingDataset):
        raise TypeError(
            f"dataset is {dataset!r:.60}, expected a PatchingDataset: one of the tasks, or PromptPairs for pairs of "
            "your own"
        )
    engine = PatchingEngine(model, show_progress=False)
    prompts = dataset if noise is None else CleanPrompts(dataset)
    asked = chosen_indices(dataset.name, len(pairs_of(prompts)), pair_indices)
    without = metric is None and not has_own_metric(dataset) and _has_no_answers(prompts, asked)
    metric = KLDivergence.key if without else metric
    encoded, faults = _faults(model, prompts, asked, _answers_read(dataset, metric))
    sound = tuple(i for i in asked if i not in faults)
    findings: list[Finding | None] = [_refused(faults, asked), _NO_ANSWERS if without else None]
    checked = {i: PairCheck(i, fault=fault) for i, fault in faults.items()}
    measured: MetricValues | None = None
    if sound:
        pairs = encode_pairs(model, prompts, sound) if encoded is None or faults else encoded
        answers, unknown = _answers(pairs)
        findings += [None if without else unknown, _first_token(pairs, answers)]
        if metric is None and answers and not pairs.has_own_metric:
            metric, finding = _instead_of_logits(answers)
            findings.append(finding)
        spelling = other_spelling(model, answers) if answers else None
        runs = _run(engine, pairs, answers, metric, noise, spelling)
        measured = runs.metric
        findings += [*_about_runs(runs, pairs, noise, engine.dtype), *_about_prompts(pairs, noise)]
        given = pairs_of(dataset)
        texts = [given[i] for i in sound]
        findings += text_findings(model, texts, pairs)
        if noise is None:
            findings.append(unnamed_changes(pairs))
        if spelling and runs.spellings:
            clean = [pair if isinstance(pair, str) else pair[0] for pair in texts]
            findings.append(spelling.finding(model, clean, *(values.clean for values in runs.spellings)))
        sides = answer_sets(model, answers) if answers else ((), ())
        checked |= {i: _pair_check(pairs, runs, j, *sides) for j, i in enumerate(sound)}
    return DatasetCheck(
        task=dataset.name,
        model=engine.model_name,
        metric=measured.name if measured else "",
        unit=measured.unit if measured else "",
        more_is_better=measured.more_is_better if measured else True,
        varies=prompts.varies,
        noise=noise.label if noise else "",
        pairs=tuple(checked[i] for i in asked),
        findings=tuple(sorted(filter(None, findings), key=lambda finding: SEVERITIES.index(finding.severity))),
    )


@dataclass(frozen=True)
class _Runs:
    """What was measured on the pairs that can be run."""

    metric: MetricValues
    preference: MetricValues | None
    """Logit difference, or that of the log-probabilities of whole answers; None where a pair lacks an answer."""
    accuracy: MetricValues | None
    spellings: tuple[MetricValues, ...] = ()
    """Log-probability of the answers as they are written, and of their other spelling; none where there is none."""

    def of_pairs(self, kept: Bool[np.ndarray, " pair"]) -> _Runs:
        """The same of these pairs alone."""
        runs = (self.metric, self.preference, self.accuracy)
        metric, preference, accuracy = (None if values is None else of_pairs(values, kept) for values in runs)
        assert metric is not None
        return _Runs(metric, preference, accuracy)


def _run(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    answers: Answers | AnswerSequences | None,
    metric: str | AnyMetric | MetricFunction | None,
    noise: GaussianNoise | None,
    spelling: OtherSpelling | None,
) -> _Runs:
    chosen: list[AnyMetric] = [pairs.metrics(metric)[0]]
    both = answers is not None and all(answers.incorrect)
    if isinstance(answers, AnswerSequences):
        chosen += [SequenceAccuracy(answers), *([SequenceLogProbabilityDifference(answers)] if both else [])]
    elif answers:
        chosen += [Accuracy(answers, "accuracy"), *([LogitDifference(answers)] if both else [])]
    judges = len(chosen)
    chosen += spelling.metrics if spelling else ()
    metrics = engine.baselines(pairs, chosen, noise=noise)
    runs = zip(chosen, metrics.patched, metrics.clean, metrics.corrupted)
    measured = [MetricValues(m.name, m.unit, m.more_is_better, *values) for m, *values in runs]
    first, *more = measured[:judges]
    preference, accuracy = more[1] if len(more) > 1 else None, more[0] if more else None
    return _Runs(first, preference, accuracy, tuple(measured[judges:]))


def _has_no_answers(dataset: PatchingDataset, indices: Sequence[int]) -> bool:
    """Whether no pair has a right answer; where that cannot be said, what is wrong is told of each pair."""
    try:
        return not any(token_ids(dataset.get_target_tokens(i)[0]) for i in indices)
    except (AssertionError, IndexError, NotImplementedError, TypeError, ValueError):
        return False


_ReadAnswers: TypeAlias = Callable[[Any, PatchingDataset, int, Known], tuple[Sequence[Any], Sequence[Any]]]
"""Model, dataset, index of a pair, and what is known of others -> its right and its wrong answers, checked."""


def _answers_read(dataset: PatchingDataset, metric: str | AnyMetric | MetricFunction | None) -> _ReadAnswers | None:
    """How answers are read for what is measured; None where they are not."""
    if metric is None:
        return None if has_own_metric(dataset) else _short_or_whole
    named = NAMED_METRICS.get(metric_key(metric)) if isinstance(metric, str) else None
    if named is None or not named.needs_answers:
        return None
    return checked_sequences if issubclass(named, SequenceMetric) else checked_targets


def _short_or_whole(
    model: Any, dataset: PatchingDataset, index: int, known: Known
) -> tuple[Sequence[Any], Sequence[Any]]:
    """A pair's answers of one token each, or the whole of them where they have more."""
    try:
        return checked_targets(model, dataset, index, known)
    except ValueError:
        return checked_sequences(model, dataset, index)


def _faults(
    model: Any, dataset: PatchingDataset, indices: Sequence[int], read: _ReadAnswers | None
) -> tuple[EncodedPairs | None, dict[int, str]]:
    """The pairs as tokens, None where they cannot be, and pair -> why a sweep would refuse it.

    Raises what is wrong with all of them: the model's tokenizer.
    """
    refused: dict[int, ValueError] = {}
    encoded: EncodedPairs | None = None
    try:
        encoded = encode_pairs(model, dataset, indices)
    except ValueError:
        for i in indices:
            try:
                encode_pairs(model, dataset, [i])
            except ValueError as error:
                refused[i] = error
        if len(refused) == len(indices) and all(isinstance(error, WrongTokenizer) for error in refused.values()):
            raise
    faults = {i: str(error) for i, error in refused.items()}
    known: Known = {}
    for i in indices:
        if read is None:
            break
        try:
            correct, _ = read(model, dataset, i, known)
            if not correct:
                faults.setdefault(i, "get_target_tokens gives no right answer, which metric='kl_divergence' needs not")
        except ValueError as error:
            faults.setdefault(i, str(error))
    return encoded, {i: fault.removeprefix(f"pair {i}: ") for i, fault in faults.items()}


def _refused(faults: Mapping[int, str], asked: Sequence[int]) -> Finding | None:
    if not faults:
        return None
    listed = [f"pair {i}: {faults[i]}" for i in asked if i in faults]
    more = f"; and {len(listed) - MOST_LISTED} more" if len(listed) > MOST_LISTED else ""
    return Finding(
        "fault",
        f"A sweep would refuse {len(faults)} of {len(asked)} pairs: {'; '.join(listed[:MOST_LISTED])}{more}",
        "Mend them, or leave them out with pair_indices=check.sound_pairs",
        tuple(i for i in asked if i in faults),
    )


def _answers(pairs: EncodedPairs) -> tuple[Answers | AnswerSequences | None, Finding | None]:
    """The answers, of one token each or whole, or why it is not known how often the model is right: a metric of the
    dataset's own needs none."""
    try:
        answers = short_or_whole(pairs)
        if all(answers.correct):
            return answers, None
        reason = "there are pairs without a right answer"
    except (ValueError, NotImplementedError) as error:
        reason = str(error) or "get_target_tokens is not implemented"
    return None, Finding("note", f"How often the model is right cannot be said: {reason}")


def _instead_of_logits(answers: Answers | AnswerSequences) -> tuple[str | None, Finding | None]:
    """What is measured where the logit difference cannot be, and that it is; None where it can."""
    if isinstance(answers, AnswerSequences):
        several = [size > 1 for size in answers.longest.tolist()]
        metric = (SequenceLogProbabilityDifference if all(answers.incorrect) else SequenceLogProbability).key
        return metric, Finding(
            "note",
            f"{share_of_pairs(several, answers.pair_indices)} have answers of several tokens, so the metric is the "
            f"{NAMED_METRICS[metric].name}",
            f"Give the sweep metrics={metric!r} too, or the dataset first_token=True: its default reads one token",
            chosen(several, answers.pair_indices),
        )
    if all(answers.incorrect):
        return None, None
    return "log_probability", _no_wrong_answer(answers)


def _no_wrong_answer(answers: Answers) -> Finding:
    lacking = np.array([not ids for ids in answers.incorrect])
    return Finding(
        "note",
        f"{share_of_pairs(lacking, answers.pair_indices)} have no wrong answer, so the metric is the "
        "log-probability of the right one",
        "Give the sweep metrics='log_probability' too: its default needs a wrong answer",
        chosen(lacking, answers.pair_indices),
    )


def _about_runs(whole: _Runs, all_pairs: EncodedPairs, noise: GaussianNoise | None, dtype: str) -> list[Finding | None]:
    broken, kept = not_finite(whole.metric, all_pairs.indices, dtype), finite_pairs(whole.metric)
    if not kept.any():
        return [broken]
    runs, indices = whole.of_pairs(kept), chosen(kept, all_pairs.indices)
    judged = runs.preference or runs.accuracy
    findings = [broken, unbroken(runs.metric, indices), unusable(runs.metric, indices)]
    if judged is None:
        return findings
    unlikely = wrong_answers(runs.accuracy, indices) if runs.preference and runs.accuracy else None
    return [
        wrong_answers(judged, indices),
        _same_answer(judged, indices, noise),
        *findings,
        dataclasses.replace(unlikely, severity="note", remedy="") if unlikely else None,
    ]


def _same_answer(judged: MetricValues, pairs: Sequence[int], noise: GaussianNoise | None) -> Finding | None:
    """Where the corrupted runs are right as well: what answers the clean prompt answers the corrupted one."""
    above = right_above(judged.name)
    if above is None:
        return None
    right = judged.corrupted > above
    if right.mean() < STILL_RIGHT:
        return None
    kept = judged.corrupted.mean() / judged.clean.mean() > 0.5 if judged.clean.mean() > 0 else True
    answer = "the right answer is the likeliest" if judged.name in ACCURACIES else "the model prefers the right answer"
    return Finding(
        "fault" if kept else "care",
        f"The answer does not change: {answer} in {share_of_pairs(right, pairs, 'corrupted runs')} too",
        "Use more noise, or put it on tokens that decide the answer"
        if noise
        else "Use a corruption to which another answer is right; of IOIDataset, swap_names or flip_subject",
        chosen(right, pairs),
    )


def _first_token(pairs: EncodedPairs, answers: Answers | AnswerSequences | None) -> Finding | None:
    sentence = pairs.first_token_alone if answers else ""
    return Finding("note", f"{sentence[0].upper()}{sentence[1:]}") if sentence else None


def _about_prompts(pairs: EncodedPairs, noise: GaussianNoise | None) -> list[Finding | None]:
    clean, corrupted = ([tuple(prompt.tolist()) for prompt in run] for run in (pairs.clean, pairs.corrupted))
    again = repeated(list(zip(clean, corrupted)), pairs.indices)
    if noise:  # which is another one in each run
        findings = [dataclasses.replace(again, severity="note") if again else None]
    else:
        same = np.array([one == other for one, other in zip(clean, corrupted)])
        findings = [again, _same_prompts(same, pairs.indices), _same_clean(clean, corrupted, pairs.indices)]
        findings += [_unmatched(pairs.in_direction(direction)) for direction in ("noising", "denoising")]
    lengths = sorted(set(pairs.lengths.tolist()))
    if len(lengths) > 1:
        findings.append(
            Finding(
                "note",
                f"The pairs have {', '.join(map(str, lengths[:-1]))} and {lengths[-1]} tokens",
                "A map over all positions needs one length: align pairs by the names of positions, or choose some "
                "with pair_indices",
            )
        )
    groups = Counter(filter(None, pairs.groups))
    if len(groups) > 1 and sorted(groups.values())[-2] < FEWEST_OF_A_GROUP:
        findings.append(
            Finding(
                "note",
                f"The {len(groups)} groups of pairs have too few to compare effects between them",
                f"Use at least {FEWEST_OF_A_GROUP} pairs of two groups: a mean over both may be of neither",
            )
        )
    if len(pairs) < FEWEST_PAIRS:
        findings.append(Finding("note", f"Intervals need at least {FEWEST_PAIRS} pairs, here are {len(pairs)}"))
    return findings


def _unmatched(pairs: EncodedPairs) -> Finding | None:
    """Positions of the run that would be patched which stand for none in the other."""
    left_alone = unmatched_sentence(pairs)
    return Finding("note", left_alone) if left_alone else None


def _same_prompts(same: Bool[np.ndarray, " pair"], indices: Sequence[int]) -> Finding | None:
    if not same.any():
        return None
    return Finding(
        "fault" if same.all() else "care",
        f"Clean and corrupted prompt are the same in {share_of_pairs(same, indices)}",
        "Give these pairs another corrupted prompt",
        chosen(same, indices),
    )


def _same_clean(clean: Sequence[Hashable], corrupted: Sequence[Hashable], indices: Sequence[int]) -> Finding | None:
    """Clean prompts that come again with another corrupted one."""
    distinct = list(dict.fromkeys(zip(clean, corrupted)))
    again = len(distinct) - len({one for one, _ in distinct})
    if not again:
        return None
    return Finding(
        "note", f"{again} of {len(indices)} pairs have the clean prompt of an earlier one, corrupted otherwise"
    )


def _pair_check(
    pairs: EncodedPairs, runs: _Runs, j: int, correct: Sequence[AnswerSet], incorrect: Sequence[AnswerSet]
) -> PairCheck:
    clean, corrupted = runs.metric.clean[j : j + 1], runs.metric.corrupted[j : j + 1]
    prefers_right, corrupted_prefers_right = _right(runs.preference, j)
    says_right, corrupted_says_right = _right(runs.accuracy, j)
    n_matched = len(pairs.matches[j]) if pairs.matches else len(pairs.clean[j])
    return PairCheck(
        pair=pairs.indices[j],
        clean=float(clean[0]),
        corrupted=float(corrupted[0]),
        usable=bool(usable_pairs(clean, corrupted)[0]),
        prefers_right=prefers_right,
        corrupted_prefers_right=corrupted_prefers_right,
        says_right=says_right,
        corrupted_says_right=corrupted_says_right,
        n_tokens=len(pairs.clean[j]),
        template=pairs.templates[j],
        group=pairs.groups[j],
        positions=tuple(pairs.positions[j]),
        named_tokens=tuple(token for _, token in tokens_at_names(pairs, j)),
        correct=correct[j] if correct else NO_ANSWER,
        incorrect=incorrect[j] if incorrect else NO_ANSWER,
        changes=changes_of(pairs, j),
        n_corrupted_tokens=len(pairs.corrupted[j]),
        unmatched=len(pairs.clean[j]) - n_matched,
        corrupted_unmatched=len(pairs.corrupted[j]) - n_matched,
    )


def _right(values: MetricValues | None, j: int) -> tuple[bool | None, bool | None]:
    """Whether the clean and the corrupted run of a pair are right."""
    above = None if values is None else right_above(values.name)
    if values is None or above is None:
        return None, None
    return bool(values.clean[j] > above), bool(values.corrupted[j] > above)
