"""Continuations: every token is that of a plain hooked loop, and of a loop over the patched prompt's cache."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from actpatch.core.sites import Patch, Site
from actpatch.engine.generation import Said, generate
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import (
    BRIDGE_MODELS,
    HOOKED_MODELS,
    encoded,
    fresh_model,
    model_parameters,
    needs_hooked,
    sampled_sites,
    small_model,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on
from test_suite.oracles import generation as by_hand

N_NEW = 4
OFTEN = ("hooked:grouped", "hooked:alibi", "bridge:gpt2", "bridge+:llama")
RARELY = [name for name in (*HOOKED_MODELS, *BRIDGE_MODELS) if name not in OFTEN]
CACHING = [name for name in RARELY if name != "hooked:ungrouped"]  # whose cache TransformerLens makes too small


def run(model: Any, pairs: Any, sites: Any, direction: str = "denoising", n_new: int = N_NEW, stops: Any = ()) -> Any:
    patch = Patch(tuple(sites))
    said = generate(engine_on(model), pairs, patch, direction, max_new_tokens=n_new, stops=stops)
    return said.clean, said.corrupted, said.patched


def assert_same(found: Said, expected: by_hand.Spoken, what: str) -> None:
    ids, log_probabilities = expected
    assert list(found.ids) == ids, what
    torch.testing.assert_close(list(found.log_probabilities), log_probabilities, atol=EXACT, rtol=0, msg=what)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", model_parameters(*OFTEN, slow=RARELY))
def test_every_hook_point_says_what_a_plain_hooked_loop_says(name: str) -> None:
    model = small_model(name)
    sites = _one_of_each(sampled_sites(name, [None, -1, 3], offset=len(name)), model.cfg.n_layers)
    changed = 0
    for i, site in enumerate(sites):
        pairs = token_pairs([8], [(1, 3, 4)], seed=i)
        direction = ("denoising", "noising")[i % 2]
        source, base = pairs.clean[0], pairs.corrupted[0]
        if direction == "noising":
            source, base = base, source
        clean, corrupted, patched = run(model, pairs, [site], direction)
        assert_same(patched, by_hand.plain(model, base, N_NEW, [site], source), f"{site.label}, {direction}")
        unpatched = corrupted if direction == "denoising" else clean
        changed += patched.log_probabilities != unpatched.log_probabilities
        if not i:
            assert_same(clean, by_hand.plain(model, pairs.clean[0], N_NEW), "clean")
            assert_same(corrupted, by_hand.plain(model, pairs.corrupted[0], N_NEW), "corrupted")
    assert changed > len(sites) / 2


def _one_of_each(sites: list[Site], n_layers: int) -> list[Site]:
    """One site of each component, in layers that take turns."""
    components = list(dict.fromkeys(site.component for site in sites))
    of_layer = {(site.component, site.layer): site for site in sites}
    return [of_layer[component, i % n_layers] for i, component in enumerate(components)]


@pytest.mark.parametrize("name", model_parameters(*OFTEN, slow=CACHING))
def test_new_tokens_see_the_keys_and_values_of_the_patched_prompt(name: str) -> None:
    model = small_model(name)
    pairs = token_pairs([9], [(2, 5)], seed=3)
    sites = sampled_sites(name, [None, 5], offset=1)
    for together in (sites[::4], sites[1::4]):
        _, _, patched = run(model, pairs, _without_the_middle(together))
        expected = by_hand.cached(model, pairs.corrupted[0], N_NEW, _without_the_middle(together), pairs.clean[0])
        assert_same(patched, expected, " + ".join(site.label for site in together))


def _without_the_middle(sites: list[Site]) -> list[Site]:
    """Without resid_mid, which on a bridge is written by way of other hook points, in an order of its own."""
    return [site for site in sites if site.component != "resid_mid"]


@pytest.mark.parametrize("name", model_parameters("hooked:rotary", "bridge:llama", "bridge:bloom"))
def test_the_whole_stream_patched_says_what_the_source_says(name: str) -> None:
    model, pairs = small_model(name), token_pairs([9], [(2, 5)], seed=3)
    clean, corrupted, patched = run(model, pairs, [Site("blocks.0.hook_resid_pre")])
    torch.testing.assert_close(patched.log_probabilities, clean.log_probabilities, atol=EXACT, rtol=0)
    assert patched.ids == clean.ids and clean.log_probabilities[0] != corrupted.log_probabilities[0]
    clean, corrupted, patched = run(model, pairs, [Site("blocks.0.hook_resid_pre")], "noising")
    torch.testing.assert_close(patched.log_probabilities, corrupted.log_probabilities, atol=EXACT, rtol=0)
    assert patched.ids == corrupted.ids


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:llama"))
def test_prompts_of_one_token_and_logits_themselves(name: str) -> None:
    model = small_model(name)
    pairs = encoded([torch.tensor([5])], [torch.tensor([9])])
    for site in (Site("blocks.1.hook_resid_pre"), Site("hook_embed"), Site("unembed.hook_in")):
        if site.hook_point not in model.hook_dict:
            continue
        _, _, patched = run(model, pairs, [site])
        assert_same(patched, by_hand.plain(model, pairs.corrupted[0], N_NEW, [site], pairs.clean[0]), site.label)


def counting(model: Any, *, forgets: bool = False) -> tuple[Any, list[int]]:
    """An engine on the model, and how many tokens each of its runs was given; it may forget what it has read."""
    engine, given = engine_on(model), []

    class Counting(type(engine.runner)):  # type: ignore[misc]
        def run(self, tokens: Any, read: Any, **options: Any) -> Any:
            given.append(tokens.shape[1])
            return super().run(tokens, read, **options)

        def reader(self) -> Any:
            return self.run if forgets else super().reader()

    engine.runner = Counting(model)
    return engine, given


def patched_alike(engine: Any, n_new: int = N_NEW) -> Any:
    """What is said with one site patched, each token as a plain loop over whole runs says it."""
    pairs, sites = token_pairs([9], [(2, 5)], seed=3), [Site("blocks.1.hook_resid_pre", position=2)]
    said = generate(engine, pairs, Patch(tuple(sites)), "denoising", max_new_tokens=n_new, stops=())
    clean, corrupted = pairs.clean[0], pairs.corrupted[0]
    model = engine.runner.model
    assert_same(said.patched, by_hand.plain(model, corrupted, n_new, sites, clean), "patched")
    assert_same(said.clean, by_hand.plain(model, clean, n_new), "clean")
    assert_same(said.corrupted, by_hand.plain(model, corrupted, n_new), "corrupted")
    return said


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "hooked:alibi", "bridge:llama", "bridge:gemma2"))
def test_each_new_token_is_run_alone_and_the_whole_text_once_more(name: str) -> None:
    engine, given = counting(small_model(name))
    assert patched_alike(engine).notes == ()
    of_a_run = [9, *[1] * (N_NEW - 1), 9 + N_NEW - 1]
    assert given[-len(of_a_run) * 3 :] == of_a_run * 3
    given.clear()
    patched_alike(engine, 1)
    assert given[-3:] == [9, 9, 9]


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:rotary", "bridge:gpt2", "bridge:llama"))
def test_keys_and_values_that_are_not_the_models_own_are_left_out(name: str) -> None:
    engine, given = counting(small_model(name), forgets=True)
    (note,) = patched_alike(engine).notes
    assert note.startswith("every new token took a run of the whole text, which takes long (reading on over kept keys")
    assert given[-N_NEW:] == [9 + i for i in range(N_NEW)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bridge:gptj", "over kept keys .* off"),
        ("bridge:mpt", "no keys and values|over kept keys"),
        pytest.param("hooked:ungrouped", r"kept keys and values it fails with AssertionError\)", marks=needs_hooked),
    ],
)
def test_a_model_that_cannot_read_on_takes_whole_runs(name: str, reason: str) -> None:
    (note,) = patched_alike(engine_on(fresh_model(name))).notes
    assert re.search(reason, note)


def test_positions_that_grow_with_the_longest_text_are_those_of_whole_runs() -> None:
    pairs, site = token_pairs([9], [(2, 5)], seed=3), Site("blocks.1.hook_resid_pre", position=2)
    engine = engine_on(fresh_model("bridge:growing_rope"))
    said = generate(engine, pairs, Patch((site,)), "denoising", max_new_tokens=N_NEW, stops=())
    assert said.notes[-1].endswith("(its position embeddings grow with the longest prompt)")
    model = fresh_model("bridge:growing_rope")  # it remembers the longest it has seen
    assert_same(said.patched, by_hand.plain(model, pairs.corrupted[0], N_NEW, [site], pairs.clean[0]), "patched")


@needs_hooked
def test_a_token_that_pads_is_read_within_a_prompt() -> None:
    model = fresh_model("hooked:learned")
    model.tokenizer.padding_side = "left"
    pairs, site = token_pairs([8], [(1, 3)]), Site("blocks.0.attn.hook_z", head=1, position=3)
    prompt = pairs.corrupted[0]
    prompt[2] = model.tokenizer.pad_token_id or 0
    _, _, patched = run(model, pairs, [site])
    assert_same(patched, by_hand.plain(model, prompt, N_NEW, [site], pairs.clean[0]), "padding within")


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
def test_a_run_stops_behind_the_first_token_that_ends_it(name: str) -> None:
    model, pairs, sites = small_model(name), token_pairs([8], [(1, 3)]), [Site("blocks.1.hook_resid_pre")]
    endless = run(model, pairs, sites, n_new=9)
    end = endless[0].ids[4]
    for found, whole in zip(run(model, pairs, sites, n_new=9, stops={end}), endless):
        cut = whole.ids.index(end) + 1 if end in whole.ids else 9
        assert found == Said(whole.ids[:cut], whole.log_probabilities[:cut])


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:llama"))
def test_own_hooks_take_part_and_the_model_is_left_as_it_was(name: str) -> None:
    model, pairs, site = fresh_model(name), token_pairs([8], [(1, 3)]), Site("blocks.1.attn.hook_z", head=1)
    model.train()
    model.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value * 1.5)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="every run is one of a whole prompt alone"):
        _, _, patched = run(model, pairs, [site])
    assert model.training and torch.is_grad_enabled()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    model.eval()
    expected = by_hand.plain(model, pairs.corrupted[0], N_NEW, [site], pairs.clean[0])
    assert_same(patched, expected, name)
    model.reset_hooks(including_permanent=True)
    assert list(patched.log_probabilities) != by_hand.plain(model, pairs.corrupted[0], N_NEW, [site], pairs.clean[0])[1]


def test_a_hook_that_writes_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"writing to blocks\.0\.attn\.hook_pattern changes nothing in this model"):
        run(small_model("bridge:opt"), token_pairs([8], [(1, 3)]), [Site("blocks.0.attn.hook_pattern")])


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:llama"))
def test_it_leaves_the_shortcuts_of_the_last_sweep(name: str) -> None:
    engine, pairs, site = engine_on(small_model(name)), token_pairs([8], [(1, 3)]), Site("blocks.1.hook_resid_pre")
    assert engine.shortcuts is None
    generate(engine, pairs, Patch((site,)), "denoising", max_new_tokens=2, stops=())
    assert engine.shortcuts is None
