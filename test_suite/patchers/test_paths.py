"""Edges and paths as they are asked of `PathPatcher`: numbers by hand, results, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch import (
    BothDirections,
    EdgeResults,
    GaussianNoise,
    HeadPatcher,
    HeadResults,
    PatchingDataset,
    PathPatcher,
    Zero,
    load_results,
    summarize_results,
)
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.tasks.encoding import encode_pairs
from test_suite.engine.test_left_as_found import assert_same_state, state_of
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.edges import edge_model
from test_suite.helpers.induction import (
    CIRCUIT,
    assert_the_circuit_acts_at_its_positions,
    assert_the_circuit_is_found,
    induction_model,
)
from test_suite.helpers.models import (
    HAS_HOOKED,
    fresh_model,
    model_parameters,
    needs_hooked,
    small_model,
    token_pairs,
)
from test_suite.helpers.prompts import Words
from test_suite.helpers.refusals import refused
from test_suite.helpers.thinned import thinned
from test_suite.oracles.edges import logits_of_edge
from test_suite.oracles.paths import logits_of_path_patching
from test_suite.oracles.transformer_lens import HAS_DIRECT_PATHS, direct_paths

# Random models do no task, of which sweeps warn.
pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)|runs take")

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge:gpt2"
GROUPED = "hooked:grouped" if HAS_HOOKED else "bridge:llama"
MODELS = model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", slow=("bridge:llama",))
DIRECTIONS: tuple[Any, ...] = ("denoising", "noising")


class Named(Words):
    """Pairs in two groups, with a name for a span."""

    def get_group(self, pair_idx: int) -> str:
        return ("one", "two", "one")[pair_idx]


NAMES = [{"A": 4, "B": (3, 5), "END": -1}, {"A": 3, "B": (2, 3, 4), "END": -1}, {"A": 6, "B": (7,), "END": -1}]
AT = {"A": [[4], [3], [6]], "END": [[8], [6], [8]], "A + B": [[3, 4, 5], [2, 3, 4], [6, 7]], 5: [[5], [5], [5]]}


def named(lacking: str = "") -> Named:
    pairs = token_pairs([9, 7, 9], [(3, 6), (2, 4), (5, 6)])
    names = [{name: at for name, at in of_pair.items() if name != lacking} for of_pair in NAMES]
    return Named(pairs, names)  # type: ignore[arg-type]


def path_patcher(name: str, **options: Any) -> PathPatcher:
    return path_patcher_of(edge_model(name), **options)


def path_patcher_of(model: Any, **options: Any) -> PathPatcher:
    return PathPatcher(model, show_progress=False, **options)


def metric_of(logits: Tensor, pair: int) -> float:
    return float(logits[-1, 2 + pair] - logits[-1, 8 + pair])


def runs_of(model: Any, direction: str) -> list[tuple[Tensor, Tensor]]:
    """Base and source of each pair."""
    pairs = encode_pairs(model, named(), None)
    both = (pairs.corrupted, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupted)
    return [*zip(*both)]


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_edges_at_names_and_numbers_in_both_directions(name: str) -> None:
    positions: Any = ["A", "END", ["A", "B"], 5]
    chosen: Any = {"senders": ["input", "L0H2", "L1 MLP"], "receivers": ["L2H1 q", "L1", "logits"]}
    both = path_patcher(name).run_all_edges_experiment(named(), positions=positions, direction="both", **chosen)
    assert isinstance(both, BothDirections)
    assert both.denoising.positions == [*AT]
    graph, rng = both.denoising.graph, np.random.default_rng(0)
    for direction, results in zip(DIRECTIONS, (both.denoising, both.noising)):
        runs = runs_of(edge_model(name), direction)
        for i in rng.choice(len(results), 16, replace=False):
            item, edges = results[int(i)], results.edges
            writer, reader = graph.writers[edges.writers[i]], graph.readers[edges.readers[i]]
            assert (item.sender, item.receiver) == (writer.label, reader.label)
            assert item.id == f"{writer.id}->{reader.id}"
            for pair, (base, source) in enumerate(runs):
                logits = logits_of_edge(edge_model(name), base, source, writer, reader, at=AT[item.position][pair])
                assert results.sweep.patched[i, pair] == pytest.approx(metric_of(logits, pair), rel=0, abs=EXACT)
                gap = results.sweep.source[pair] - results.sweep.base[pair]
                effect = (metric_of(logits, pair) - results.sweep.base[pair]) / gap
                if results.sweep.usable[pair]:
                    assert item.pair_effects[pair] == pytest.approx(effect, rel=0, abs=1e-8)


@pytest.mark.quick(1)
@pytest.mark.parametrize("through", ["nothing", "mlps"])
@pytest.mark.parametrize("name", MODELS)
def test_results_of_heads_are_path_patching(name: str, through: Any) -> None:
    model, patcher = edge_model(name), path_patcher(name)
    own = "KV1" if patcher.graph.is_grouped else "H1"
    receivers = ["L2H1 q", f"L2{own} v", "L1 MLP"]
    results = patcher.run_all_heads_experiment(named(), receivers, through, direction="noising", position=["A", "B"])
    assert isinstance(results, HeadResults)
    readers = [patcher.graph.readers[number] for number in patcher.graph.readers_named(receivers)]
    runs, sweep = runs_of(model, "noising"), results.sweep
    for item, row in zip(results, sweep.patched):
        number = patcher.graph.writer((item.layer, item.head))
        reached = [r for r in readers if number < patcher.graph.n_writers_before[patcher.graph.reader(r.id)]]
        for pair, (base, source) in enumerate(runs):
            if not reached:
                assert row[pair] == sweep.base[pair]
                continue
            at, head = AT["A + B"][pair], (item.layer, item.head)
            logits = logits_of_path_patching(model, base, source, head, reached, through, at=at)
            assert row[pair] == pytest.approx(metric_of(logits, pair), rel=0, abs=EXACT)
        usable = sweep.usable
        effect = (row - sweep.base)[usable].mean() / (sweep.source - sweep.base)[usable].mean()
        assert item.effect == pytest.approx(effect, rel=0, abs=1e-8)
        assert results.matrix()[item.layer, item.head] == item.effect
    assert np.abs(results.matrix()[:2]).min() > 0 and (results.matrix()[2] == 0).all()


@pytest.mark.parametrize("name", model_parameters("hooked:attn_only", "hooked:parallel", "bridge:phi"))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_of_heads_that_only_the_logits_read_the_edge_is_the_node(name: str, direction: Any) -> None:
    nodes = HeadPatcher(edge_model(name), show_progress=False).run_all_heads_experiment(
        named(), layers=[-1], direction=direction
    )
    edges = path_patcher(name).run_all_edges_experiment(
        named(), senders=[(2, head) for head in range(4)], receivers="logits", direction=direction
    )
    np.testing.assert_allclose(edges.sweep.patched, nodes.sweep.patched, atol=EXACT, rtol=0)
    assert np.abs(edges.sweep.effects).min() > 1e-6


@pytest.mark.skipif(not HAS_DIRECT_PATHS, reason="TransformerLens 3 has no direct paths")
@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("name", model_parameters("bridge:gpt2", "bridge:llama", slow=("bridge+:gpt2", "bridge:phi")))
def test_edges_between_heads_are_the_direct_paths_of_transformer_lens(name: str, component: Any) -> None:
    model, patcher = edge_model(name), path_patcher(name)
    if component != "q" and patcher.graph.is_grouped:
        pytest.skip("it refuses keys and values that heads share")
    metric = LogitDifference(Answers(((2,),), ((8,),)))
    for head in (0, 3):
        results = patcher.run_all_edges_experiment(
            named(), senders=(0, head), receivers=[f"L1 {component}", f"L2 {component}"], pair_indices=[0]
        )
        theirs = direct_paths(model, encode_pairs(model, named(), [0]), metric, (0, head), component)
        np.testing.assert_allclose(results.sweep.patched[:, 0], theirs[1:].flatten().numpy(), atol=EXACT, rtol=0)


# --- a model whose circuit is known -----------------------------------------------------------------------------------


class Repeated(PatchingDataset):
    """Sequences that start again; in the corrupted ones the token that is asked for has not occurred."""

    orders = ((7, 3, 12, 5, 9, 17, 6, 14), (2, 16, 4, 11, 8, 19, 13, 10), (15, 1, 18, 6, 3, 2, 22, 5))

    @property
    def name(self) -> str:
        return "repeated"

    def get_clean_corrupt_pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        for order in self.orders:
            clean = [0, *order, *order[:4]]
            yield clean, [*clean[:4], 20, *clean[5:]]

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return self.orders[pair_idx][4], self.orders[pair_idx][5]


@needs_hooked
def test_the_circuit_of_a_known_model_is_found_and_nothing_else() -> None:
    both = PathPatcher(induction_model(), show_progress=False).run_all_edges_experiment(Repeated(), direction="both")
    for results in (both.denoising, both.noising):
        assert len(results) == len(results.graph)
        assert_the_circuit_is_found({item.id: item.effect for item in results}, 0.05)
        assert {item.id for item in results.top(3)} == {*CIRCUIT}
        for pair in range(3):
            assert_the_circuit_is_found({item.id: item.pair_effects[pair] for item in results}, EXACT)


@needs_hooked
def test_it_is_found_at_its_positions_and_as_a_path() -> None:
    patcher = PathPatcher(induction_model(), show_progress=False)
    results = patcher.run_all_edges_experiment(Repeated(), positions=range(13), pair_indices=[0, 2])  # type: ignore[arg-type]
    found = {(item.id, item.position): item.effect for item in results}
    assert len(found) == 13 * len(results.graph)
    assert_the_circuit_acts_at_its_positions(found, EXACT)  # type: ignore[arg-type]
    whole = "input → L0H1 v → L1H2 k → logits"
    others = [
        "input → L0H1 k → L1H2 k → logits",
        "input → L0H1 v → L1H2 q → logits",
        "input → L0H0 v → L1H2 k → logits",
    ]
    paths = patcher.run_path_experiment(Repeated(), [whole, *others])
    np.testing.assert_allclose([item.effect for item in paths], [1, 0, 0, 0], atol=EXACT)
    heads = patcher.run_all_heads_experiment(Repeated(), "L1H2 k", "nothing").matrix()
    expected = np.zeros((3, 4))
    expected[0, 1] = 1
    np.testing.assert_allclose(heads, expected, atol=EXACT)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grouped() -> PathPatcher:
    return path_patcher(GROUPED)


@pytest.fixture(scope="module")
def edges(grouped: PathPatcher) -> EdgeResults:
    return grouped.run_all_edges_experiment(named(), positions=["A", "END"], metrics=["logit_difference", "rank"])


@pytest.fixture(scope="module")
def of_all_kinds(grouped: PathPatcher, edges: EdgeResults) -> list[Any]:
    metrics: Any = ["logit_difference", "rank"]
    heads = grouped.run_all_heads_experiment(named(), ["L2H0 q", "L2KV1 k"], "mlps", metrics=metrics)
    paths = ["input → L1H2 v → L2H3 q → logits", "m0 -> m1", "L0H1 → L2H3 k → logits"]
    return [edges, heads, grouped.run_path_experiment(named(), paths, metrics=metrics, direction="noising")]


def test_results_are_saved_and_loaded_as_they_are(of_all_kinds: Sequence[Any], tmp_path: Any) -> None:
    for number, results in enumerate(of_all_kinds):
        again = load_results(results.save(tmp_path / f"{number}.json"))
        assert type(again) is type(results) and again == results
        assert again.sweep.path == results.sweep.path and again.metrics == ("logit difference", "rank")
        np.testing.assert_array_equal(
            again.by_metric(again.metrics[1]).sweep.patched, results.sweep.measured[1].patched
        )


def test_long_tables_tell_sender_receiver_and_path(of_all_kinds: Sequence[Any]) -> None:
    edges, heads, paths = (results.to_dataframe() for results in of_all_kinds)
    for table, results in zip((edges, heads, paths), of_all_kinds):
        assert len(table) == len(results) * 3 * 2
        one = table[(table["pair"] == 1) & (table["metric"] == "logit difference")]
        np.testing.assert_array_equal(one["patched"], results.sweep.patched[:, 1])
    first = edges[edges["site"] == "L0H1 → L2KV1 k @END"].iloc[0]
    assert (first["sender"], first["layer"], first["head"], first["position_name"]) == ("a0.h1", 2, 1, "END")
    assert first["position"] == 8 and first["hook_point"] == "blocks.2.hook_k_input"
    assert {*heads["path"]} == {"to L2H0 q and L2KV1 k, all other heads frozen, MLPs recomputed"}
    assert {*edges["path"]} == {*paths["path"]} == {""}
    assert [*paths["site"].drop_duplicates()] == [
        "input → L1H2 v → L2H3 q → logits",
        "L0 MLP → L1 MLP",
        "L0H1 → L2H3 k → logits",
    ]
    assert {*paths["direction"]} == {"noising"}


def test_summaries_say_what_was_frozen(of_all_kinds: Sequence[Any], capsys: pytest.CaptureFixture[str]) -> None:
    edges, heads, paths = of_all_kinds
    summarize_results(heads)
    printed = capsys.readouterr().out
    assert "path: to L2H0 q and L2KV1 k, all other heads frozen, MLPs recomputed" in printed
    assert heads.sweep.path == "to L2H0 q and L2KV1 k, all other heads frozen, MLPs recomputed"
    assert heads[0].label in printed and "denoising" in printed
    for results in (edges, paths):
        summarize_results(results, top_k=2)
        printed = capsys.readouterr().out
        best = max(results, key=lambda item: abs(item.effect))
        assert best.label in printed and f"{best.effect:+.3f}" in printed and "path: to" not in printed
    assert "nothing" not in edges.sweep.path


def test_groups_metrics_and_parts_are_those_of_the_whole(of_all_kinds: Sequence[Any]) -> None:
    for results in of_all_kinds:
        groups = results.by_group()
        assert [*groups] == ["one", "two"]
        np.testing.assert_array_equal(groups["one"].sweep.patched, results.sweep.patched[:, [0, 2]])
        rank = results.by_metric("rank")
        np.testing.assert_array_equal(rank.sweep.patched, results.sweep.measured[1].patched)
        top = results.top(2)
        assert [item.label for item in top] == [
            item.label for item in sorted(results, key=lambda item: -abs(item.effect))[:2]
        ]
        whole, part = results.statistics(), top.statistics()
        numbers = [results.labels.index(item.label) for item in top]
        np.testing.assert_array_equal(part.p_corrected, whole.p_corrected[numbers])
        np.testing.assert_array_equal(part.low, whole.low[numbers])


def test_narrowed_experiments_are_parts_of_the_whole_one(grouped: PathPatcher) -> None:
    whole = grouped.run_all_edges_experiment(named())
    assert len(whole) == len(grouped.graph)
    for senders, receivers in (("heads", "L2"), (["input", (0, 3), "m1"], ["q", "logits"]), (None, "mlps")):
        part = grouped.run_all_edges_experiment(named(), senders=senders, receivers=receivers)  # type: ignore[arg-type]
        same = whole.of(senders, receivers)  # type: ignore[arg-type]
        assert part.labels == same.labels
        np.testing.assert_allclose(part.sweep.patched, same.sweep.patched, atol=EXACT, rtol=0)
        item = part[-1]
        assert part.matrix().loc[item.sender, item.receiver] == item.effect
        assert item.effect == pytest.approx(whole[item.id].effect, rel=0, abs=1e-8)


def test_sources_and_noise_are_told(grouped: PathPatcher) -> None:
    chosen: Any = {"senders": "L0H1", "receivers": "L2H0 q"}
    zero = grouped.run_all_edges_experiment(named(), source=Zero(), **chosen).sweep
    assert (zero.direction, zero.source_of_values) == ("noising", "zero")
    noised = grouped.run_all_edges_experiment(named(), noise=GaussianNoise("A", samples=2), **chosen).sweep
    assert "Gaussian noise at A" in noised.noise and noised.direction == "denoising"


# --- what is refused, before any run ----------------------------------------------------------------------------------

E, H, P = "run_all_edges_experiment", "run_all_heads_experiment", "run_path_experiment"
REFUSED = [
    (E, {"senders": "L2H0", "receivers": "L1H0 q"}, "the sender 'L2H0' has no edge to any .* behind it, L2 MLP"),
    (E, {"senders": ["L0H0", "L2H3"], "receivers": ["L2H0 q"]}, "the sender 'L2H3' has no edge to any receiver"),
    (E, {"senders": ["L1H0", "m2"], "receivers": ["L1 MLP", "L1H0 q", "logits"]}, "the receiver 'L1H0 q' has no edge"),
    (E, {"senders": "L5H9"}, r"no writer is called 'L5H9' \(in senders\): .* the nearest names are L2H3"),
    (E, {"receivers": ["L2H3 q", "L2H3 z"]}, r"no reader is called 'L2H3 z' \(in receivers\): .* names are L2H3 q"),
    (E, {"receivers": "L2H3 k"}, "heads share keys and values in this model, give L2KV1 k"),
    (E, {"receivers": "L2H3"}, "heads share keys and values in this model, give L2H3 q and L2KV1"),
    (E, {"receivers": (2, 1)}, "heads share keys and values in this model, give L2H1 q and L2KV0"),
    (E, {"senders": []}, "senders is empty"),
    (E, {"receivers": []}, "receivers is empty"),
    (E, {"senders": 3}, "no writer is called 3 .*expected an id, a label or"),
    (E, {"senders": [1.5]}, "no writer is called 1.5 .*expected an id, a label or"),
    (E, {"receivers": [None]}, "no reader is called None"),
    (E, {"senders": (7, 1)}, r"no writer is called \(7, 1\)"),
    (E, {"positions": ["B"]}, "1 of 3 pairs|3 of 3 pairs have no position named 'B'"),
    (E, {"positions": [99]}, r"position \(in pair 0, of 9 tokens\) 99 is out of range"),
    (E, {"positions": []}, "positions is empty"),
    (E, {"positions": [1.5]}, "position 1.5 is not an integer"),
    (E, {"direction": "sideways"}, "direction 'sideways' is unknown"),
    (E, {"source": "zero"}, "source is 'zero', expected"),
    (E, {"source": Zero(), "direction": "both"}, "direction 'both' exchanges activations"),
    (E, {"noise": GaussianNoise("A"), "source": Zero()}, "noise makes the corrupted run"),
    (E, {"metrics": "logits"}, "the metric 'logits' is unknown"),
    (E, {"pair_indices": [9]}, "pair index 9 is out of range"),
    (H, {"receivers": "logits", "through": "mlp"}, "through is 'mlp', expected one of 'nothing', 'mlps'"),
    (H, {"receivers": "logits", "through": None}, "through is None, expected one of"),
    (H, {"receivers": ["logits", "L2H0 q"], "through": "mlps"}, "receivers holds the logits beside others"),
    (H, {"receivers": None, "through": "mlps"}, "receivers holds the logits beside others"),
    (H, {"receivers": [], "through": "mlps"}, "receivers is empty"),
    (H, {"receivers": "L0H0 q", "through": "nothing"}, "the receiver 'L0H0 q' has no edge from any sender"),
    (H, {"receivers": ["L0H0 q", "L2H0 q"], "through": "mlps"}, "'L0H0 q' has .* writes behind it; leave it out$"),
    (H, {"receivers": "L2H3 v", "through": "mlps"}, "give L2KV1 v"),
    (H, {"receivers": "logits", "through": "mlps", "layers": [3]}, "layer 3 is out of range"),
    (H, {"receivers": "logits", "through": "mlps", "layers": []}, "layers is empty"),
    (H, {"receivers": "L1H0 q", "through": "mlps", "layers": [2]}, "the receiver 'L1H0 q' has no edge from any"),
    (H, {"receivers": "logits", "through": "mlps", "position": "B"}, "have no position named 'B'"),
    (P, {"paths": []}, "paths is empty: give at least one"),
    (P, {"paths": 5}, "paths is 5, expected texts such as"),
    (P, {"paths": None}, "paths is None, expected texts such as"),
    (P, {"paths": [3]}, r"paths is \[3\], expected texts such as"),
    (P, {"paths": [["L0H0", 3]]}, "expected texts such as"),
    (P, {"paths": {"L0H0 -> logits": 1}}, "expected texts such as"),
    (P, {"paths": ["L0H0", "L1H1 q"]}, "the path 'L0H0' has no arrow"),
    (P, {"paths": "L2H0 -> L1H1 q -> logits"}, "goes backwards: L2H0 does not write before L1H1 q reads"),
    (P, {"paths": "L1H0 → L1H1 q → logits"}, "goes backwards"),
    (P, {"paths": "L0H0 → logits → L1H1 q"}, "goes on behind logits, where every path ends"),
    (P, {"paths": "L0H0 → L1KV0 k → logits"}, "behind L1KV0 k, which several heads read: name the one .*L1H0 k or"),
    (P, {"paths": "L0H0 → L1H0 → logits"}, "no reader is called 'L1H0': heads share keys and values"),
    (P, {"paths": "L0H0 → "}, "the path 'L0H0 → ' lacks a name"),
    (P, {"paths": "L0H0 → → logits"}, "lacks a name"),
    (P, {"paths": "L0H0 q → logits"}, "no writer is called 'L0H0 q'.*nearest names are L0H0"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "asked", "message"), REFUSED)
def test_what_is_asked_wrongly_is_refused_before_any_run(
    method: str, asked: dict[str, Any], message: str, grouped: PathPatcher
) -> None:
    dataset = named(lacking="B")
    before = repr(vars(dataset))
    with refused(message):
        getattr(grouped, method)(dataset, **asked)
    assert repr(vars(dataset)) == before
    with pytest.raises(ValueError, match=message) as failure:
        getattr(grouped, method)(dataset, **asked)
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 330


def test_through_has_to_be_said(grouped: PathPatcher) -> None:
    with refused("missing 1 required positional argument: 'through'", TypeError):
        grouped.run_all_heads_experiment(named(), "logits")  # type: ignore[call-overload]


@pytest.mark.parametrize("model", [None, "gpt2", torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with refused("expected a TransformerLens HookedTransformer or TransformerBridge", TypeError):
        PathPatcher(model)
    with refused("the dataset is a NoneType, expected a PatchingDataset"):
        path_patcher(PLAIN).run_all_edges_experiment(None)  # type: ignore[call-overload]


ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    (E, {}),
    (H, {"receivers": "logits", "through": "mlps"}),
    (H, {"receivers": ["L2H0 q", "L1 MLP"], "through": "mlps"}),
    (P, {"paths": ["L0H0 → L1 MLP → logits", "L1H0 → L2 MLP"]}),
)


@pytest.mark.parametrize(
    "name", model_parameters("bridge:gemma2", "bridge:olmo2", "hooked:sandwich", "bridge:opt_post")
)
def test_post_norm_models_are_refused_before_any_run(name: str) -> None:
    patcher = PathPatcher(small_model(name), show_progress=False)
    for method, asked in ASKED:
        with refused("has post-norm blocks: .* outputs of heads do not add up and single edges cannot be patched"):
            getattr(patcher, method)(named(), **asked)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("bridge:scaled_residual", "adding up the heads of layer 0 gives values that are .* off"),
        pytest.param("bridge:bloom", "its blocks are not run singly"),
        pytest.param(
            "bridge:some_attention", "its blocks are not run singly|the residual stream behind layer [02] is not"
        ),
        pytest.param(
            "bridge:linear_attention", "its blocks are not run singly|the residual stream", marks=pytest.mark.slow
        ),
    ],
)
def test_models_that_compute_otherwise_than_their_graph_says_are_refused(name: str, reason: str) -> None:
    """Granite scales what its blocks add; BLOOM's biases are for so many rows; hybrids have layers without heads."""
    patcher = PathPatcher(small_model(name), show_progress=False)
    n_heads = patcher.graph.heads[2]
    for method, asked in ASKED if n_heads else ASKED[:2]:
        with pytest.raises(RuntimeError, match=f"^single edges of this model cannot be patched: ({reason})") as failure:
            getattr(patcher, method)(named(), **asked)
        assert len(str(failure.value)) < 330


@pytest.mark.parametrize(("number", "direction"), thinned(range(len(ASKED)), [*DIRECTIONS, "both"]))
def test_they_are_refused_by_a_few_pairs_before_the_others_are_run(number: int, direction: Any) -> None:
    method, asked = ASKED[number]
    model, dataset = small_model("bridge:scaled_residual"), Words(token_pairs([9] * 12, [(3,)] * 12))
    pairs, seen = encode_pairs(model, dataset, None), set()
    prompts = {tuple(prompt.tolist()): i for run in (pairs.clean, pairs.corrupted) for i, prompt in enumerate(run)}
    assert len(prompts) == 24

    patcher = path_patcher_of(model)
    for name in ("record", "run"):
        function = getattr(patcher.engine.runner, name)

        def noting(tokens: Tensor, *given: Any, function: Any = function, **options: Any) -> Any:
            seen.update(tuple(row) for row in tokens.tolist())
            return function(tokens, *given, **options)

        setattr(patcher.engine.runner, name, noting)
    with pytest.raises(RuntimeError, match="adding up the heads of layer 0"):
        getattr(patcher, method)(dataset, direction=direction, **asked)
    assert {prompts[prompt] for prompt in seen & {*prompts}} == {0, 1}


@pytest.mark.quick(1)
@pytest.mark.parametrize("receivers", ["L2H0 q", ["L2H0 q", "L2H1 q"], "logits"])
def test_layers_that_are_passed_on_the_way_are_checked_though_their_heads_send_nothing(receivers: Any) -> None:
    """Here the first layer alone adds to the stream what its heads and its MLP give."""
    model = fresh_model("bridge:scaled_residual")
    model.original_model.model.layers[0].residual_multiplier = model.blocks[0].residual_contribution_scale = 1.0
    patcher = path_patcher_of(model)
    asked: dict[str, Any] = {"receivers": receivers, "layers": [0]}
    with pytest.raises(RuntimeError, match=r"^single edges of this model .* adding up the heads of layer 1"):
        patcher.run_all_heads_experiment(named(), through="mlps", **asked)
    found = patcher.run_all_heads_experiment(named(), receivers="L2H0 q", through="nothing", layers=[0]).sweep
    graph = patcher.graph
    for head, (pair, (base, source)) in itertools.product((0, 3), enumerate(runs_of(model, "denoising"))):
        reader = graph.readers[graph.reader("L2H0 q")]
        expected = metric_of(logits_of_edge(model, base, source, graph.writers[graph.writer((0, head))], reader), pair)
        assert found.patched[head, pair] == pytest.approx(expected, rel=0, abs=EXACT)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "senders", "receivers"),
    [("bridge:scaled_residual", "input", None), ("bridge:bloom", None, "logits"), ("bridge:cohere", None, "L2")],
)
def test_what_such_models_can_be_asked_is_right(name: str, senders: Any, receivers: Any) -> None:
    model = small_model(name)
    patcher = PathPatcher(model, show_progress=False)
    results = patcher.run_all_edges_experiment(named(), senders=senders, receivers=receivers)
    edges, graph = results.edges, results.graph
    for i in range(0, len(results), 7):
        writer, reader = graph.writers[edges.writers[i]], graph.readers[edges.readers[i]]
        for pair, (base, source) in enumerate(runs_of(model, "denoising")):
            expected = metric_of(logits_of_edge(model, base, source, writer, reader), pair)
            assert results.sweep.patched[i, pair] == pytest.approx(expected, rel=0, abs=EXACT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
@pytest.mark.parametrize(("method", "asked"), ASKED)
def test_an_interrupted_sweep_leaves_the_model_as_found(name: str, method: str, asked: dict[str, Any]) -> None:
    model, dataset = fresh_model(name), named()
    patcher = PathPatcher(model, show_progress=False, batch_size=2)
    getattr(patcher, method)(dataset, **asked)
    model.train()
    before, calls, when = state_of(model), itertools.count(), 6 if method == P else 15
    function = patcher.engine.runner.activation_in_block if method != P else patcher.engine.runner.run_block

    def interrupted(*given: Any) -> Any:
        if next(calls) == when:
            raise KeyboardInterrupt
        return function(*given)

    setattr(patcher.engine.runner, function.__name__, interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(patcher, method)(dataset, **asked)
    assert next(calls) == when + 1
    assert_same_state(before, state_of(model))
