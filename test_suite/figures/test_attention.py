"""Attention patterns are drawn for both runs, as the model computes them."""

from __future__ import annotations

import numpy as np
import pytest

from activation_patching import IOIDataset, PromptPair, PromptPairs
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
