"""Does a real language model compute what was asked for?  Every intervention on SmolLM2-135M, against hooks by hand.

What is expected uses nothing of the library but the prompts and answers: each patched run is one `run_with_hooks` over
one prompt, its values are recorded by another, and named positions are looked up among the tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from activation_patching import ActivationPatcher, GaussianNoise, IOIDataset, Mean, Resample, Zero
from head_patching import HeadPatcher
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import CLASSES, smollm2

TEMPLATES = ["When {A} and {B} met, {S2} gave a book to", "Then, {A} and {B} had a long argument, and {S2} said to"]
PAIRS = [0, 3, 4]
"""Of two templates, two lengths and both name orders; 0 and 4 are alike in all of these."""
ALIKE = {0: [0, 4], 3: [3, 7], 4: [0, 4]}
"""Pairs of the dataset that have the template, order and length of each of `PAIRS`."""

Index = tuple[Any, ...]
Writes = Mapping[str, Sequence[tuple[Index, Tensor]]]
"""Hook point -> where in its activation (without the axis of prompts) which value is written."""


class ByHand:
    """One model, its prompts, and runs of these in which a hook writes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.dataset = IOIDataset(model, 8, corruption="flip_subject", templates=TEMPLATES)
        self.clean, self.corrupted = zip(
            *([model.to_tokens(prompt)[0] for prompt in pair] for pair in self.dataset.get_clean_corrupt_pairs())
        )

    @functools.cached_property
    def within(self) -> float:
        """How far apart two ways to the same metric may be."""
        return allowed(self.model, [run[pair] for run in (self.clean, self.corrupted) for pair in PAIRS])

    def value(self, tokens: Tensor, hook_point: str, noise: Tensor | None = None) -> Tensor:
        seen: list[Tensor] = []
        hooks = [(hook_point, lambda value, hook: seen.append(value[0].detach().clone()))]
        with torch.no_grad():
            self.model.run_with_hooks(tokens[None], fwd_hooks=[*_adding(noise), *hooks])
        return seen[0]

    def metric(self, pair: int, tokens: Tensor, writes: Writes | None = None, noise: Tensor | None = None) -> float:
        hooks = [(name, _writing(each)) for name, each in (writes or {}).items()]
        with torch.no_grad():
            logits = self.model.run_with_hooks(tokens[None], fwd_hooks=[*_adding(noise), *hooks])[0, -1]
        right, wrong = self.dataset.get_target_tokens(pair)
        return float(logits[right] - logits[wrong])

    def places(self, pair: int) -> dict[str, int]:
        """Where the names stand, by looking for the answers' tokens."""
        tokens, (receiver, giver) = self.clean[pair].tolist(), self.dataset.get_target_tokens(pair)
        last = len(tokens) - 1
        return {
            "IO": tokens.index(receiver), "S1": tokens.index(giver), "S2": last - tokens[::-1].index(giver), "END": last
        }  # fmt: skip

    def noises(self, pair: int, noise: GaussianNoise) -> list[Tensor]:
        at = sorted(self.places(pair)[name] for name in ("S1", "S2"))
        deviation = noise.multiple * float(self.model.W_E.detach().double().std(correction=0))
        drawn = []
        for sample in range(noise.samples):
            added = torch.zeros(len(self.clean[pair]), self.model.cfg.d_model)
            normal = np.random.default_rng([noise.seed, pair, sample]).standard_normal((2, self.model.cfg.d_model))
            added[at] = deviation * torch.tensor(normal, dtype=torch.float32)
            drawn.append(added)
        return drawn


def _writing(each: Sequence[tuple[Index, Tensor]]) -> Callable[[Tensor, Any], Tensor]:
    def write(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for index, new in each:
            value[(0, *index)] = new
        return value

    return write


def _adding(noise: Tensor | None) -> list[tuple[str, Callable[[Tensor, Any], Tensor]]]:
    return [] if noise is None else [("hook_embed", lambda value, hook: value + noise)]


def point(layer: int, tail: str) -> str:
    return f"blocks.{layer}.{tail}"


@pytest.fixture(scope="module", params=CLASSES)
def smol_by_hand(request: pytest.FixtureRequest) -> ByHand:
    return ByHand(smollm2(request.param))


def assert_same(results: Any, expected: Sequence[Sequence[float]], by_hand: ByHand, noised: bool = False) -> None:
    """`expected` has a row per patch and a number per pair."""
    sweep = results.sweep
    np.testing.assert_allclose(sweep.patched, expected, atol=by_hand.within, rtol=0)
    clean = [by_hand.metric(p, by_hand.clean[p]) for p in PAIRS]
    np.testing.assert_allclose(sweep.clean, clean, atol=by_hand.within, rtol=0)
    if not noised:
        corrupted = [by_hand.metric(p, by_hand.corrupted[p]) for p in PAIRS]
        np.testing.assert_allclose(sweep.corrupted, corrupted, atol=by_hand.within, rtol=0)
    assert abs(sweep.patched - sweep.base).max() > 100 * by_hand.within, "no patch changed anything"


# --- what is written -------------------------------------------------------------------------------------------------


def donors(source: Any, pair: int) -> list[int]:
    """Pairs whose corrupted prompts are averaged."""
    return [] if isinstance(source, Zero) else ALIKE[pair] if isinstance(source, Mean) else _others(pair)


def _others(pair: int) -> list[int]:
    return [other for other in ALIKE[pair] if other != pair]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "direction"), [(Zero(), "noising"), (Mean(), "denoising"), (Mean(), "noising"), (Resample(1), "noising")]
)
def test_ablations_of_smollm2_are_those_by_hand(smol_by_hand: ByHand, source: Any, direction: Any) -> None:
    by_hand, patcher = smol_by_hand, ActivationPatcher(smol_by_hand.model, show_progress=False)
    names = [point(2, "hook_mlp_out"), point(15, "hook_attn_out"), point(20, "attn.hook_z")]
    options = {"pair_indices": PAIRS, "direction": direction, "source": source}
    found = patcher.run_patching_experiment(by_hand.dataset, names, **options)
    heads = HeadPatcher(by_hand.model, show_progress=False).run_all_heads_experiment(
        by_hand.dataset, layers=[20], position="END", **options
    )
    into = by_hand.clean if direction == "noising" else by_hand.corrupted

    @functools.cache
    def written(pair: int, name: str) -> Tensor:
        values = [by_hand.value(by_hand.corrupted[donor], name) for donor in donors(source, pair)]
        return torch.stack(values).mean(0) if values else torch.zeros_like(by_hand.value(into[pair], name))

    expected = [[by_hand.metric(p, into[p], {name: [((), written(p, name))]}) for p in PAIRS] for name in names]
    assert_same(found, expected, by_hand)
    for head in (0, 8):
        for at, pair in enumerate(PAIRS):
            of_head = by_hand.metric(pair, into[pair], {names[-1]: [((-1, head), written(pair, names[-1])[-1, head])]})
            assert heads.sweep.patched[head, at] == pytest.approx(of_head, rel=0, abs=by_hand.within)


# --- noise, and windows of layers ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_causal_tracing_of_smollm2_is_that_by_hand(smol_by_hand: ByHand, direction: Any) -> None:
    by_hand, patcher = smol_by_hand, ActivationPatcher(smol_by_hand.model, show_progress=False)
    noise = GaussianNoise(["S2", "S1"], samples=2, seed=4)
    layers, windows = (0, 15, 29), {0: (0, 1), 15: (14, 15, 16), 29: (28, 29)}
    found = patcher.run_patching_experiment(
        by_hand.dataset, [point(layer, "hook_mlp_out") for layer in layers],
        pair_indices=PAIRS, position="S2", window=3, noise=noise, direction=direction,
    )  # fmt: skip

    def metric(pair: int, layer: int, added: Tensor) -> float:
        from_noise, into_noise = (None, added) if direction == "denoising" else (added, None)
        tokens, at = by_hand.clean[pair], by_hand.places(pair)["S2"]
        names = [point(each, "hook_mlp_out") for each in windows[layer]]
        writes = {name: [((at,), by_hand.value(tokens, name, from_noise)[at])] for name in names}
        return by_hand.metric(pair, tokens, writes, into_noise)

    drawn = {pair: by_hand.noises(pair, noise) for pair in PAIRS}
    expected = [[np.mean([metric(p, layer, added) for added in drawn[p]]) for p in PAIRS] for layer in layers]
    assert_same(found, expected, by_hand, noised=True)
    corrupted = [np.mean([by_hand.metric(p, by_hand.clean[p], noise=added) for added in drawn[p]]) for p in PAIRS]
    np.testing.assert_allclose(found.sweep.corrupted, corrupted, atol=by_hand.within, rtol=0)


# --- where: sets of sites, neurons, named positions ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_sets_neurons_and_named_positions_of_smollm2_are_those_by_hand(smol_by_hand: ByHand, direction: Any) -> None:
    by_hand, patcher = smol_by_hand, ActivationPatcher(smol_by_hand.model, show_progress=False)
    options: dict[str, Any] = {"pair_indices": PAIRS, "direction": direction}
    take, into = (by_hand.clean, by_hand.corrupted)[:: 1 if direction == "denoising" else -1]

    def metric(pair: int, names: Sequence[str], places: Sequence[str | None], *inner: int) -> float:
        """With these activations at these positions (all, for None), of one neuron if `inner` names it."""
        at = [slice(None) if place is None else by_hand.places(pair)[place] for place in places]
        values = {name: by_hand.value(take[pair], name) for name in names}
        writes = {name: [((i, *inner), values[name][(i, *inner)]) for i in at] for name in names}
        return by_hand.metric(pair, into[pair], writes)

    together = (point(3, "hook_attn_out"), point(15, "hook_mlp_out"), point(27, "attn.hook_z"))
    found = patcher.run_patching_experiment(by_hand.dataset, [together], position=["S2", "END"], **options)
    assert_same(found, [[metric(p, together, ("S2", "END")) for p in PAIRS]], by_hand)

    neurons = patcher.run_neurons_experiment(by_hand.dataset, 29, position="END", **options)
    largest = [neuron.neuron for neuron in neurons.top(3)]
    chosen = patcher.run_neurons_experiment(by_hand.dataset, 29, largest, position="END", **options)
    np.testing.assert_allclose(
        chosen.sweep.patched, neurons.sweep.patched[sorted(largest)], atol=by_hand.within, rtol=0
    )
    post = point(29, "mlp.hook_post")
    assert_same(chosen, [[metric(p, [post], ["END"], n) for p in PAIRS] for n in sorted(largest)], by_hand)

    names, columns = [point(4, "hook_resid_pre"), point(20, "hook_resid_mid")], ["IO", "S2", "END"]
    names = names[:1] if isinstance(by_hand.model, TransformerBridge) else names  # there only ln2 sees resid_mid
    positions = patcher.run_position_experiment(by_hand.dataset, names, positions=columns, **options)
    assert positions.names == columns
    expected = [[metric(p, [name], [column]) for p in PAIRS] for name in names for column in columns]
    assert_same(positions, expected, by_hand)
    at = [[by_hand.places(p)[column] for p in PAIRS] for column in columns]
    assert [list(patch.sites[0].position) for patch in positions.sweep.patches[:3]] == at, "names stand elsewhere"
    assert at[1][0] != at[1][1]
