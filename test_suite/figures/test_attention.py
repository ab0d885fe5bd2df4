"""Attention patterns are drawn for both runs, as the model computes them."""

from __future__ import annotations

import numpy as np
import pytest

from activation_patching import IOIDataset, PromptPair, PromptPairs, load_results
from actpatch.tasks.words import IOI_SCENE_TEMPLATES
from head_patching import HeadPatcher
from test_suite.helpers.closeness import SINGLE
from test_suite.helpers.figures import subtitle
from test_suite.helpers.models import model_parameters, small_model
from test_suite.helpers.results import made_up_heads, patterns
from visualize import create_attention_patterns


def test_attention_figure_shows_patterns_and_difference():
    shown = patterns()
    figure = create_attention_patterns(shown)
    expected = [values[head] for head in range(2) for values in (shown.clean, shown.corrupted, shown.difference)]
    seen = np.tril(np.ones((3, 3), dtype=bool))
    for trace, values in zip(figure.data, expected, strict=True):
        np.testing.assert_array_equal(trace.z, np.where(seen, values, np.nan))
    scale = figure.layout.coloraxis2
    assert scale.cmax == -scale.cmin == np.abs(shown.difference).max()
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.xaxis2.ticktext == ("0: &lt;s&gt;", "<b>1: John</b>", "2: and")
    assert figure.layout.xaxis3.ticktext[1] == "<b>1: Mary→John</b>"
    assert "L1H1" in figure.data[-1].hovertext[2][1] and "from 2: ' and'" in figure.data[-1].hovertext[2][1]
    assert "pair 3" in subtitle(figure)


def test_attention_patterns_are_those_of_the_model_s_own_runs(tiny):
    patcher, dataset = HeadPatcher(tiny, show_progress=False), IOIDataset(tiny, 2)
    found = patcher.attention_patterns(dataset, [(1, 0), (-1, 2)], pair_index=1)
    last = tiny.cfg.n_layers - 1
    assert found.heads == ((1, 0), (last, 2)) and found.pair_index == 1
    for prompt, values in zip(dataset.get_clean_corrupt_pairs()[1], (found.clean, found.corrupted)):
        _, run = patcher.patcher.run_with_cache(prompt, "pattern")
        for i, (layer, head) in enumerate(found.heads):
            expected = run[f"blocks.{layer}.attn.hook_pattern"][0, head].numpy()
            np.testing.assert_allclose(values[i], expected, atol=SINGLE, rtol=0)
    np.testing.assert_allclose(found.clean.sum(axis=-1), 1, atol=len(found.clean[0, 0]) * SINGLE, rtol=0)
    assert found.clean_tokens != found.corrupted_tokens
    assert repr(found).startswith(f"AttentionPatterns(L1H0, L{last}H2, ")
    assert "pair 1" in repr(found) and found.effects == () and found.why == ""


def test_of_heads_with_effects_the_pair_nearest_their_mean_effect_is_drawn(heads_patcher, ioi, tmp_path):
    results = heads_patcher.run_all_heads_experiment(ioi, pair_indices=[4, 1, 5, 2])
    effects = np.array([head.pair_effects for head in results])
    for chosen in ([5], [2, 7], [0, 3, 9]):
        heads = [results[i] for i in chosen]
        found = heads_patcher.attention_patterns(ioi, heads)
        away = np.abs(effects[chosen].mean(axis=0) - np.mean([head.effect for head in heads]))
        nearest = int(away.argmin())
        assert found.pair_index == [4, 1, 5, 2][nearest]
        assert found.effects == tuple(effects[chosen, nearest]) and found.mean_effects == tuple(h.effect for h in heads)
        same = heads_patcher.attention_patterns(ioi, [(h.layer, h.head) for h in heads], pair_index=found.pair_index)
        np.testing.assert_array_equal(found.clean, same.clean)
        title = create_attention_patterns(found).layout.title.text
        here, over_all = (f"{np.mean(e):+.2f}".replace("-", "−") for e in (found.effects, found.mean_effects))
        of_whom = "effect" if len(chosen) == 1 else "effect of these heads"
        assert title == f"Attention patterns, pair {found.pair_index}: {of_whom} {here} (over all pairs {over_all})"
        assert "nearest the heads' mean effect" in subtitle(create_attention_patterns(found))
    saved = load_results(results.save(tmp_path / "heads.json"))
    assert (
        heads_patcher.attention_patterns(ioi, saved.top(2)).pair_index
        == heads_patcher.attention_patterns(ioi, results.top(2)).pair_index
    )


def test_a_pair_that_is_asked_for_is_drawn_with_its_effect(heads_patcher, ioi):
    results = heads_patcher.run_all_heads_experiment(ioi, pair_indices=[3, 1])
    found = heads_patcher.attention_patterns(ioi, results[:1], pair_index=-5)
    assert found.pair_index == 1 and found.effects == (results[0].pair_effects[1],) and found.why == ""
    elsewhere = heads_patcher.attention_patterns(ioi, results[:1], pair_index=0)
    assert elsewhere.effects == elsewhere.mean_effects == ()
    others = heads_patcher.run_all_heads_experiment(ioi, pair_indices=[0])
    with pytest.raises(ValueError, match=r"measured on different pairs, .* give pair_index"):
        heads_patcher.attention_patterns(ioi, [results[0], others[1]])


def test_of_heads_without_effects_the_mean_over_pairs_of_one_template_is_drawn(tiny, heads_patcher):
    ioi = IOIDataset(tiny, 7, templates=[*IOI_SCENE_TEMPLATES[:1], "{A} and {B} met, and {S2} gave a book to"])
    found = heads_patcher.attention_patterns(ioi, [(1, 0), (2, 3)])
    lengths = [tiny.to_tokens(clean).shape[1] for clean, _ in ioi.get_clean_corrupt_pairs()]
    kinds = [(ioi.get_template(i), length) for i, length in enumerate(lengths)]
    most = max(kinds, key=kinds.count)
    assert found.averaged == tuple(i for i, kind in enumerate(kinds) if kind == most) and len(found.averaged) > 1
    assert found.pair_index is None and found.effects == ()
    each = [heads_patcher.attention_patterns(ioi, [(1, 0), (2, 3)], pair_index=i) for i in found.averaged]
    for name in ("clean", "corrupted"):
        mean = np.mean([getattr(one, name) for one in each], axis=0)
        np.testing.assert_allclose(getattr(found, name), mean, atol=SINGLE, rtol=0)
    for at, token in enumerate(found.clean_tokens):
        tokens = {one.clean_tokens[at] for one in each}
        assert token == tokens.pop() if len(tokens) == 1 else token.startswith("[") or token.endswith("…")
    assert any(token.startswith("[") for token in found.clean_tokens)
    figure = create_attention_patterns(found)
    assert figure.layout.title.text == f"Attention patterns, mean over {len(found.averaged)} pairs"
    assert "those of one template and length" in subtitle(figure)
    assert f"mean over {len(found.averaged)} pairs" in repr(found)


def test_where_no_two_pairs_can_be_averaged_the_first_is_drawn(tiny, heads_patcher):
    pairs = [
        PromptPair(f"{a} and then", f"{b} and then", (" Mary",), (" John",))
        for a, b in (("Mary", "John"), ("Tom", "Amy"))
    ]
    found = heads_patcher.attention_patterns(PromptPairs(tiny, pairs), [(0, 0)])
    assert found.pair_index == 0 and found.averaged == ()
    assert found.why == "the first, as pairs of one template and length are needed for a mean"
    alone = heads_patcher.attention_patterns(PromptPairs(tiny, pairs[:1]), [(0, 0)])
    assert alone.pair_index == 0 and alone.why == ""


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge:llama"))
def test_under_grouped_query_attention_patterns_go_by_query_head(name):
    model = small_model(name)
    assert model.cfg.n_key_value_heads < model.cfg.n_heads
    patcher = HeadPatcher(model, show_progress=False)
    last = model.cfg.n_heads - 1
    found = patcher.attention_patterns(
        PromptPairs(model, [PromptPair("w3 w4 w5", "w6 w4 w5", ("w7",), ("w8",))]), [(0, last)]
    )
    _, run = patcher.patcher.run_with_cache("w6 w4 w5", "blocks.0.attn.hook_pattern")
    np.testing.assert_allclose(
        found.corrupted[0], run["blocks.0.attn.hook_pattern"][0, last].numpy(), atol=SINGLE, rtol=0
    )


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "heads is empty: give at least one"),
        ([(0, 99)], "head 99 is out of range"),
        ([(99, 0)], "layer 99 is out of range"),
        ([(0, 1), (0, 1)], "names a head twice"),
        ([3], r"head 3 is no head: expected \(layer, head\)"),
        (made_up_heads(30, 9, "k", n_key_value_heads=3)[:1], "L0KV0 is a key-value head, and patterns go by query"),
    ],
)
def test_heads_without_a_pattern_are_told_before_any_run(tiny, heads, message):
    with pytest.raises(ValueError, match=message):
        HeadPatcher(tiny).attention_patterns(IOIDataset(tiny, 1), heads)
