"""Is every metric right?  Each against SciPy and NumPy on plain model runs; several in one pass against each alone."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from activation_patching import ActivationPatcher, IOIDataset, PatchingDataset
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import Baselines, PatchingEngine
from actpatch.metrics import chosen as metric_sets
from actpatch.metrics.base import Answers, KLDivergence, LogitDifference, Metric, Probability, Rank
from actpatch.metrics.chosen import ANSWER_METRICS, MetricSet
from actpatch.results.sweep import MetricValues
from actpatch.tasks.dataset import EncodedPairs, dataset_metrics
from head_patching import HeadPatcher
from test_suite.helpers.models import HAS_HOOKED, bundled, everything_metric, model_parameters, small_model, token_pairs
from test_suite.helpers.refusals import refused
from test_suite.oracles.metrics import NAMED, by_hand, hand_measured, plain_logits
from test_suite.oracles.plain import PlainPatching

DIRECTIONS = ("denoising", "noising")
SEVERAL = model_parameters("hooked:learned", "hooked:grouped", "bridge+:gpt2")
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
SETS = Answers(correct=((3,), (5, 9, 30), (12, 4)), incorrect=((8, 2), (11,), (20, 21, 22)))
SINGLE = Answers(correct=((3,), (5,), (12,)), incorrect=((8,), (11,), (20,)))


def named_metrics(answers: Answers) -> list[Metric]:
    return [ANSWER_METRICS[name](answers) if name in ANSWER_METRICS else KLDivergence() for name in NAMED]


def pairs_of_three_lengths() -> EncodedPairs:
    return token_pairs([9, 12, 7], [(3,), (5, 7), (2,)])


PATCHES = [
    Patch((Site(block_hook(1, "z"), head=2),)),
    Patch((Site(block_hook(0, "mlp_out"), position=-2),)),
    Patch((Site(block_hook(2, "pattern"), head=1), Site(block_hook(1, "resid_mid"), position=5))),
]


def engine_on(model: Any, **options: Any) -> PatchingEngine:
    return PatchingEngine(model, show_progress=False, **options)


# --- against other ways of computing it --------------------------------------------------------------------------


@pytest.mark.parametrize("with_all_positions", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SEVERAL)
def test_every_metric_of_every_run_agrees_with_scipy_on_plain_runs(
    name: str, direction: str, with_all_positions: bool
) -> None:
    """Also beside a metric that reads all positions, where the others read each prompt's last one."""
    model, pairs = small_model(name), pairs_of_three_lengths()
    metrics = named_metrics(SETS) + [everything_metric(3)] * with_all_positions
    found = engine_on(model).sweep(pairs, PATCHES, metrics, direction)
    clean, corrupted = (plain_logits(model, run) for run in (pairs.clean, pairs.corrupted))
    n = len(NAMED)
    np.testing.assert_allclose(found.clean[:n], hand_measured(clean, clean, SETS), atol=2e-5, rtol=0)
    np.testing.assert_allclose(found.corrupted[:n], hand_measured(corrupted, clean, SETS), atol=2e-5, rtol=0)
    plain = PlainPatching(model, pairs, [site.hook_point for patch in PATCHES for site in patch.sites], direction)
    for i, logits in enumerate(plain.logits(PATCHES)):
        patched = [run[-1].double().numpy() for run in logits]
        np.testing.assert_allclose(found.patched[:n, i], hand_measured(patched, clean, SETS), atol=2e-5, rtol=0)
    base = found.corrupted if direction == "denoising" else found.clean
    assert (abs(found.patched - base[:, None]).max(axis=(1, 2)) > 1e-3).sum() >= 5, "the patches move too little"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_metrics_by_name_agree_with_scipy_on_the_bundled_model(direction: Any) -> None:
    model = bundled()
    dataset = IOIDataset(model, 5)
    patcher = ActivationPatcher(model, show_progress=False)
    sweep = patcher.run_patching_experiment(dataset, "attn_out", direction=direction, metrics=NAMED).sweep
    assert [metric_sets.metric_key(name) for name in sweep.metrics] == list(NAMED)
    runs = zip(*dataset.get_clean_corrupt_pairs())
    clean, corrupted = (plain_logits(model, [model.to_tokens(p)[0] for p in prompts]) for prompts in runs)
    targets = [dataset.get_target_tokens(i) for i in range(5)]
    answers = Answers(tuple((io,) for io, _ in targets), tuple((s,) for _, s in targets))
    for logits, run in ((clean, "clean"), (corrupted, "corrupted")):
        found = [getattr(sweep.by_metric(name), run) for name in NAMED]
        np.testing.assert_allclose(found, hand_measured(logits, clean, answers), atol=1e-4, rtol=1e-5)
    assert (sweep.by_metric("accuracy").clean == 1).all() and (sweep.by_metric("accuracy").corrupted == 0).all()


def test_rank_and_accuracy_of_ties_count_the_better_place() -> None:
    logits = torch.tensor([[[1.0, 4.0, 4.0, 2.0]], [[1.0, 4.0, 4.0, 2.0]]])
    answers = Answers(correct=((2,), (3, 0)), incorrect=((), ()))
    pairs = torch.tensor([0, 1])
    assert Rank(answers).measure(logits, pairs).tolist() == [1, 3]
    assert metric_sets.Accuracy(answers).measure(logits, pairs).tolist() == [1, 0]


def test_logits_that_are_no_numbers_give_no_numbers() -> None:
    """A model that overflows must not look as if its answer were the best."""
    logits = torch.randn(3, 1, 40)
    logits[:, :, 30] = math.nan
    values = MetricSet(tuple(named_metrics(SETS))).measure(
        logits, torch.randn(3, 1, 40), rows=torch.arange(3), pairs=torch.arange(3), lengths=torch.ones(3).long()
    )
    whole = [i for i, name in enumerate(NAMED) if name != "logit_difference"]
    assert values[whole].isnan().all()


def test_tokens_that_are_ruled_out_in_both_runs_add_nothing_to_the_kl_divergence() -> None:
    torch.manual_seed(0)
    logits, clean = torch.randn(2, 1, 2, 10).unbind(0)
    logits, clean = (torch.cat([run[0][:, None], torch.full((2, 1, 3), -math.inf)], dim=2) for run in (logits, clean))
    found = KLDivergence().measure(logits, torch.arange(2), clean)
    for i in range(2):
        p, q = (scipy.special.softmax(run[i, 0, :10].double().numpy()) for run in (clean, logits))
        assert float(found[i]) == pytest.approx(scipy.special.rel_entr(p, q).sum(), abs=1e-6)


def test_shapes_that_signatures_state_are_checked_while_the_suite_runs() -> None:
    logits = torch.zeros(2, 1, 5)
    with pytest.raises(TypeCheckError, match="pairs"):
        KLDivergence().measure(logits, torch.arange(3), logits)
    with pytest.raises(TypeCheckError, match="corrupted"):
        MetricValues("x", "", True, patched=np.zeros((4, 2)), clean=np.zeros(2), corrupted=np.zeros(3))


# --- sets of answers ---------------------------------------------------------------------------------------------


def test_logit_difference_of_single_answers_is_the_plain_difference_to_the_last_bit() -> None:
    """Also where other pairs have several answers."""
    torch.manual_seed(0)
    logits = 30 * torch.randn(2000, 1, 40)
    pairs = torch.arange(2000) % 3
    mixed = Answers(correct=((3,), (5, 9), (12, 4)), incorrect=((8,), (11,), (20, 21, 22)))
    for answers, single_pairs in ((SINGLE, (0, 1, 2)), (mixed, (0,))):
        metric = LogitDifference(answers)
        found = metric.measure(logits[..., metric.tokens], pairs)
        for pair in single_pairs:
            (correct,), (incorrect,) = answers.correct[pair], answers.incorrect[pair]
            here = logits[pairs == pair, -1]
            assert torch.equal(found[pairs == pair], here[:, correct] - here[:, incorrect])


def test_several_answers_are_worth_the_sum_of_their_probabilities() -> None:
    """exp of the logit difference is the ratio of the two probabilities, and the parts of a set add up to it."""
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    parts = [Probability(Answers(((a,), (b,), (c,)), ((),) * 3), name=f"part {i}") for i, (a, b, c) in PARTS.items()]
    whole = Answers(correct=tuple(zip(*PARTS.values())), incorrect=SINGLE.incorrect)
    metrics = [Probability(whole), LogitDifference(whole), Probability(Answers(whole.incorrect, ((),) * 3), "wrong")]
    found = engine_on(model).sweep(pairs, PATCHES, [*metrics, *parts])
    right, difference, wrong, *each = found.patched
    np.testing.assert_allclose(right, sum(each), rtol=1e-5)
    np.testing.assert_allclose(np.exp(difference), right / wrong, rtol=1e-4)


PARTS = {0: (3, 5, 12), 1: (7, 6, 4)}


# --- several in one pass -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def forward_passes(model: Any) -> Iterator[Counter[str]]:
    """How often each of the model's modules is run; the unembedding as a whole, which may be run in part."""
    names = {module: name for name, module in model.named_modules() if not name.startswith("unembed.")}
    ran: Counter[str] = Counter()

    def count(module: Any, args: Any) -> None:
        if module in names:
            ran[names[module]] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        yield ran
    finally:
        handle.remove()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SEVERAL)
def test_several_metrics_cost_the_runs_of_one_and_each_is_what_it_is_alone(name: str, direction: Any) -> None:
    model, pairs = small_model(name), pairs_of_three_lengths()
    metrics = named_metrics(SETS)
    with forward_passes(model) as together:
        found = engine_on(model).sweep(pairs, PATCHES, metrics, direction)
    for i, metric in enumerate(metrics):
        with forward_passes(model) as alone:
            expected = engine_on(model).sweep(pairs, PATCHES, [metric], direction)
        assert alone == together and alone["blocks.2"] >= 3, metric.name
        assert_same(found, expected, i, metric)


def test_metrics_beside_one_of_all_positions_cost_its_runs() -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    with forward_passes(model) as alone:
        expected = engine_on(model).sweep(pairs, PATCHES, [everything_metric(3)])
    with forward_passes(model) as together:
        found = engine_on(model).sweep(pairs, PATCHES, [KLDivergence(), everything_metric(3), Rank(SETS)])
    assert alone == together and alone["blocks.2"] >= 3
    np.testing.assert_array_equal(found.patched[1], expected.patched[0])


def assert_same(found: Baselines, expected: Baselines, i: int, metric: Metric) -> None:
    """To the last bit; but for rounding where a metric alone has less of the vocabulary multiplied out."""
    allowed = 0 if metric.tokens is None else 1e-5
    for run in ("patched", "clean", "corrupted"):
        together, alone = getattr(found, run)[i], getattr(expected, run)[0]
        np.testing.assert_allclose(together, alone, atol=allowed, rtol=0, err_msg=metric.name)


def test_order_and_company_of_metrics_do_not_matter() -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    other = LogitDifference(Answers(((30,), (1,), (2,)), ((4, 39), (5,), (6,))), name="other answers")
    both = engine_on(model).sweep(pairs, PATCHES, [LogitDifference(SETS), other])
    back = engine_on(model).sweep(pairs, PATCHES, [other, LogitDifference(SETS)])
    np.testing.assert_array_equal(both.patched, back.patched[::-1])  # both read the same
    assert MetricSet((LogitDifference(SETS), other)).tokens.tolist() == sorted(
        {*SETS.tokens.tolist(), *other.tokens.tolist()}
    )


def test_only_what_is_read_is_unembedded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    engine = engine_on(model)
    asked: list[int | None] = []
    unembed = type(engine.runner).unembed

    def noting(self: Any, resid: Tensor, tokens: Tensor | None) -> Tensor:
        asked.append(None if tokens is None else len(tokens))
        return unembed(self, resid, tokens)

    monkeypatch.setattr(type(engine.runner), "unembed", noting)
    engine.sweep(pairs, PATCHES, [LogitDifference(SINGLE)])
    engine_reads = asked[1:]  # the first is the engine's check of itself
    assert engine_reads and set(engine_reads) == {6}
    asked.clear()
    engine.sweep(pairs, PATCHES, [LogitDifference(SINGLE), Rank(SINGLE)])
    assert set(asked[1:]) == {None}


def test_measuring_in_slices_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    whole = engine_on(model).sweep(pairs, PATCHES * 4, named_metrics(SETS))
    monkeypatch.setattr(metric_sets, "LARGEST_SLICE", 80)
    sliced = engine_on(model).sweep(pairs, PATCHES * 4, named_metrics(SETS))
    np.testing.assert_array_equal(whole.patched, sliced.patched)


# --- theorems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SEVERAL)
def test_the_whole_stream_carries_every_metric_to_its_value_in_the_source_run(name: str, direction: Any) -> None:
    pairs = pairs_of_three_lengths()
    patches = [Patch((Site(block_hook(layer, "resid_pre")),)) for layer in range(3)]
    found = engine_on(small_model(name)).sweep(pairs, patches, named_metrics(SETS), direction)
    source = found.clean if direction == "denoising" else found.corrupted
    np.testing.assert_allclose(found.patched, np.repeat(source[:, None], 3, axis=1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", SEVERAL)
def test_the_clean_run_is_its_own_reference_in_both_directions(name: str) -> None:
    """Its KL divergence is exactly 0; the corrupted run's is that from clean, whichever is patched."""
    pairs = pairs_of_three_lengths()
    there, back = (engine_on(small_model(name)).sweep(pairs, PATCHES, [KLDivergence()], d) for d in DIRECTIONS)
    assert (there.clean == 0).all() and (back.clean == 0).all()
    assert (there.corrupted > 1e-3).all()
    np.testing.assert_allclose(there.corrupted, back.corrupted, atol=1e-6, rtol=0)
    assert (there.patched >= 0).all() and (back.patched >= 0).all()


def test_effects_have_the_same_sense_where_less_is_better() -> None:
    """Restoring is 1 and doing nothing is 0 for every metric."""
    model = bundled()
    patcher = ActivationPatcher(model, show_progress=False)
    sites = [Patch((Site("blocks.0.hook_resid_pre"),)), Patch((Site("blocks.0.hook_resid_pre", position=0),))]
    sweep = patcher.sweep(IOIDataset(model, 4), sites, metrics=NAMED)
    assert [sweep.by_metric(name).more_is_better for name in NAMED] == [
        name not in ("rank", "kl_divergence") for name in NAMED
    ]
    for name in NAMED:
        np.testing.assert_allclose(sweep.by_metric(name).effects, [1, 0], atol=1e-5)


# --- choosing ----------------------------------------------------------------------------------------------------


class Animals(PatchingDataset):
    """Two pairs with whatever answers are given; with a metric of its own, if wanted."""

    name = "animals"

    def __init__(self, targets: Callable[[int], Any] = lambda pair: (5, 6)) -> None:
        self.targets = targets

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [(f"The cat sat on the {place}", f"The dog sat on the {place}") for place in ("mat", "rug")]

    def get_target_tokens(self, pair_idx: int) -> Any:
        return self.targets(pair_idx)


class WithItsOwn(Animals):
    def compute_metric(self, logits: Tensor, pair_idx: int) -> float:
        return float(logits[0, 1:].mean() + logits[0, -1, 7 + pair_idx])


@pytest.fixture(name="bundled")
def bundled_model() -> Any:
    return bundled()


def test_none_and_dataset_are_the_datasets_own_metric(bundled: Any) -> None:
    for dataset, own in ((Animals(), "logit difference"), (WithItsOwn(), "compute_metric")):
        for asked in (None, "dataset", ["dataset"]):
            assert [metric.name for metric in dataset_metrics(bundled, dataset, [0, 1], asked)] == [own]
    both = dataset_metrics(bundled, WithItsOwn(), [1], ["KL divergence", "dataset", "logit_difference"])
    assert [metric.name for metric in both] == ["KL divergence", "compute_metric", "logit difference"]


@pytest.mark.filterwarnings("ignore:.*barely differ")
def test_own_metric_beside_named_ones_is_what_it_is_alone(bundled: Any) -> None:
    patcher = HeadPatcher(bundled, show_progress=False)
    alone = patcher.run_all_heads_experiment(WithItsOwn())
    several = patcher.run_all_heads_experiment(WithItsOwn(), metrics=["kl_divergence", "dataset", Rank(TWO)])
    assert several.metrics == ("KL divergence", "compute_metric", "rank") and several.sweep.metric == "KL divergence"
    assert several.by_metric("compute_metric") == alone.__class__(several.sweep.by_metric("compute metric"))
    np.testing.assert_array_equal(several.by_metric("compute_metric").sweep.patched, alone.sweep.patched)
    logits = [plain_logits(bundled, [bundled.to_tokens(pair[0])[0]])[0] for pair in Animals().get_clean_corrupt_pairs()]
    ranks = [by_hand("rank", run, run, ids, ()) for run, ids in zip(logits, TWO.correct)]
    assert several.by_metric("rank").sweep.clean.tolist() == ranks


TWO = Answers(correct=((5,), (9, 11)), incorrect=((6,), (7,)))


def test_what_needs_no_answers_asks_for_none(bundled: Any) -> None:
    def none(pair: int) -> Any:
        raise AssertionError("asked")

    (metric,) = dataset_metrics(bundled, Animals(none), [0, 1], "kl_divergence")
    assert metric.name == "KL divergence"


def test_several_acceptable_answers_may_come_from_the_dataset(bundled: Any) -> None:
    dataset = Animals(lambda pair: ((5, 9), 6) if pair else (5, (6, 7)))
    for metric in dataset_metrics(bundled, dataset, [1, 0], ["logit_difference", "rank"]):
        assert metric.answers.correct == ((5, 9), (5,)) and metric.answers.incorrect == ((6,), (6, 7))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "logit_dif",
            r"metric 'logit_dif' is unknown: the nearest names are logit_difference;.*expected one of",
        ),
        (
            "zzz",
            "metric 'zzz' is unknown: expected one of logit_difference, .* dataset, or a Metric object",
        ),
        (["rank", "probabilty"], "metric 'probabilty' is unknown: the nearest names are probability"),
        ([], "metrics is empty: give at least one, or None"),
        (["rank", "Rank"], "two of the metrics are called 'rank': give each once"),
        (["dataset", "logit_difference"], "called 'logit difference'.*'dataset' is the logit difference where"),
        (Rank, r"the class Rank is no metric: metrics takes names \(logit_difference"),
        (
            len,
            "a builtin_function_or_method is no metric: .* give a function of your own as",
        ),
        ([None], "a NoneType is no metric"),
        ({"rank"}, "a set is no metric: .*one or a list of them"),
        (Rank(SETS), "metric 'rank' has answers for 3 pairs, the experiment has 2: make it for these pairs"),
        (Rank(Answers(((5,), (10**6,)), ((), ()))), "metric 'rank' has the answer 1000000, outside the vocabulary of"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused(bundled: Any, asked: Any, message: str) -> None:
    patcher, heads = (kind(bundled, show_progress=False) for kind in (ActivationPatcher, HeadPatcher))
    with refused(message):
        patcher.run_patching_experiment(Animals(), "attn_out", metrics=asked)
    with refused(message):
        patcher.run_position_experiment(Animals(), metrics=asked)
    with refused(message):
        heads.run_all_heads_experiment(Animals(), metrics=asked)


def test_an_object_that_is_half_a_metric_is_told_what_it_lacks(bundled: Any) -> None:
    class Half:
        name, unit, tokens, reads_all_positions = "half", "", None, False

        def measure(self, logits: Tensor, pairs: Tensor) -> Tensor:
            return logits[:, -1, 0]

    with refused(r"a Half is no metric \(it has no more_is_better, reads_clean\)"):
        dataset_metrics(bundled, Animals(), [0], Half())  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, (), []])
def test_metrics_that_need_an_answer_name_the_pairs_that_have_none(bundled: Any, given: Any) -> None:
    without_wrong = Animals(lambda pair: (5, given if pair else 6))
    without_right = Animals(lambda pair: (given, 6))
    patcher = ActivationPatcher(bundled, show_progress=False)
    for name in ("logit_difference", "probability_difference", None):
        with refused(r"needs a wrong answer for every pair, 1 of 2 pairs have none \(pair 1\): .*measure probability"):
            patcher.run_patching_experiment(without_wrong, "attn_out", metrics=name)
    for name in NAMED[:-1]:
        with refused(r"needs a right answer for every pair, 2 of 2 pairs have none \(pair 0, 1\): .*kl_divergence"):
            patcher.run_patching_experiment(without_right, "attn_out", metrics=name)
    for name in ("probability", "log_probability", "rank", "accuracy", "kl_divergence"):
        dataset_metrics(bundled, without_wrong, [0, 1], name)
    dataset_metrics(bundled, without_right, [0, 1], "kl_divergence")


def test_answers_are_checked() -> None:
    with refused("right answers for 1 pairs and wrong ones for 2"):
        Answers(((1,),), ((2,), (3,)))
    for correct, incorrect in (((1,), (1,)), ((1, 1), (2,)), ((-1,), (2,))):
        with refused(r"pair 7 has the right answers .* expected token ids of at least 0, each given once"):
            Answers((correct,), (incorrect,), pair_indices=(7,))


def test_a_metric_that_was_not_measured_is_refused_with_those_that_were(bundled: Any) -> None:
    results = ActivationPatcher(bundled, show_progress=False).run_patching_experiment(
        IOIDataset(bundled, 2), "attn_out", metrics=["kl_divergence", "rank"]
    )
    with refused("metric 'ranks' was not measured: did you mean 'rank'.*have kl_divergence, rank; ask for more with"):
        results.by_metric("ranks")
    with refused("metric 'accuracy' was not measured: These results have kl_divergence, rank"):
        results.by_metric("accuracy")
