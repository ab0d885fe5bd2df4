"""The weights that are read are those the model computes with, whatever its class, its norms and their folding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actpatch.core.sites import block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.models.runner import make_runner
from actpatch.models.weights import Weights
from test_suite.helpers.closeness import EXACT, SINGLE, rounds_to_single
from test_suite.helpers.models import fresh_hooked, model_parameters, needs_hooked, small_model

TOKENS = torch.tensor([[1, 5, 9, 3, 20, 7, 11]])
LAYER, HEAD = 1, 3
READ = (
    *("hooked:learned", "hooked:rotary", "hooked:gated", "hooked:grouped", "hooked:ungrouped", "hooked:parallel"),
    *("hooked:attn_only", "hooked:alibi", "hooked:no_norm", "hooked:scaled_by_layer", "bridge:gpt2", "bridge+:gpt2"),
    *("bridge:llama", "bridge+:llama", "bridge:neox", "bridge+:neox", "bridge:qwen2", "bridge:opt", "bridge:phi"),
)


def written_alone(model: Any, layer: int, head: int) -> torch.Tensor:
    """What a head adds to the stream, from the model's own runs: with its output alone, less with no head's at all."""

    def attention_output(keep: bool) -> torch.Tensor:
        kept: list[torch.Tensor] = []

        def only(z: torch.Tensor, hook: Any) -> torch.Tensor:
            alone = torch.zeros_like(z)
            alone[:, :, head] = z[:, :, head] if keep else 0
            return alone

        def note(value: torch.Tensor, hook: Any) -> None:
            kept.append(value.detach().clone())

        hooks = [(block_hook(layer, "z"), only), (block_hook(layer, "attn_out"), note)]
        with torch.no_grad():
            model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        return kept[0]

    return (attention_output(True) - attention_output(False))[0]


def recorded(model: Any, *names: str) -> list[torch.Tensor]:
    found = PatchingEngine(model, show_progress=False).record(TOKENS, names).activations
    return [found[name] for name in names]


@pytest.mark.parametrize("name", model_parameters(*READ))
def test_values_and_output_weights_make_what_the_head_writes(name):
    model = small_model(name)
    resid, pattern = recorded(model, block_hook(LAYER, "resid_pre"), block_hook(LAYER, "pattern"))
    runner = make_runner(model)
    with runner.as_found(()):
        weights = Weights(runner)
        head = weights.head(LAYER, HEAD)
        read = weights.read(LAYER, resid)[0]
    made = pattern[0, HEAD] @ (read @ head.value + head.value_bias) @ head.output
    expected = written_alone(model, LAYER, HEAD)
    scale = float(expected.abs().max())
    assert scale > 0
    np.testing.assert_allclose(made.numpy(), expected.numpy(), rtol=0, atol=EXACT * max(1, scale))


@pytest.mark.parametrize("name", model_parameters(*READ))
def test_a_norm_and_what_stands_behind_it_are_one_product(name):
    """Up to the number that the norm divides each vector by, which is read off another product of the same vector."""
    model, runner = small_model(name), make_runner(small_model(name))
    x = torch.randn(6, model.cfg.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with runner.as_found(()):
        weights = Weights(runner)
        norm = weights.norm(LAYER)
        read = weights.read(LAYER, x)
    matrix = torch.randn(model.cfg.d_model, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    product, behind = x @ norm.before(matrix), (read - norm.bias) @ matrix
    size = (product * behind).sum(dim=1, keepdim=True) / (behind * behind).sum(dim=1, keepdim=True)
    assert bool((size > 0).all())
    precision = SINGLE if rounds_to_single(model) else EXACT  # norms of Hugging Face round whatever they are given
    terms = model.cfg.d_model * x.abs().max() * matrix.abs().max()
    assert float((product - size * behind).abs().max()) < precision * float(terms)


@needs_hooked
@pytest.mark.parametrize(("architecture", "centres"), [("learned", True), ("gated", False), ("no_norm", False)])
def test_a_norm_s_gain_bias_and_centring_are_its_own(architecture, centres):
    model = fresh_hooked(architecture)
    runner = make_runner(model)
    with runner.as_found(()):
        norm = Weights(runner).norm(0)
    module = model.blocks[0].ln1
    gain = getattr(module, "w", torch.ones(model.cfg.d_model, dtype=torch.float64)).detach()
    np.testing.assert_allclose(norm.gain.numpy(), (gain / gain.abs().mean()).numpy(), rtol=1e-9)
    bias = getattr(module, "b", torch.zeros(model.cfg.d_model, dtype=torch.float64)).detach()
    np.testing.assert_allclose(norm.bias.numpy(), bias.numpy(), atol=EXACT, rtol=0)
    assert norm.centres is centres


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge:llama", "bridge+:llama"))
def test_heads_of_a_group_have_its_keys_and_values_and_their_own_queries(name):
    model, runner = small_model(name), make_runner(small_model(name))
    with runner.as_found(()):
        heads = [Weights(runner).head(0, head) for head in range(4)]
    for part in ("key", "value"):
        assert torch.equal(getattr(heads[0], part), getattr(heads[1], part))
        assert not torch.equal(getattr(heads[1], part), getattr(heads[2], part))
    assert not torch.equal(heads[0].query, heads[1].query)
    assert model.cfg.n_key_value_heads == 2


def test_the_vocabulary_comes_whole_in_parts(monkeypatch):
    monkeypatch.setattr("actpatch.models.weights.CHUNK", 7)
    model = small_model("bridge:gpt2")
    parts = list(Weights(make_runner(model)).vocabulary())
    assert len(parts) == 6
    assert torch.equal(torch.cat([embedding for embedding, _ in parts]), model.W_E.double())
    assert torch.equal(torch.cat([unembedding for _, unembedding in parts], dim=1), model.unembed.W_U.double())


def test_a_vocabulary_that_is_no_square_is_told():
    with pytest.raises(ValueError, match="embeddings are normalized before the first block"):
        list(Weights(make_runner(small_model("bridge:bloom"))).vocabulary())


@needs_hooked
def test_a_model_that_answers_in_another_vocabulary_has_no_circuit_of_tokens():
    model = fresh_hooked(d_vocab_out=7)
    weights = Weights(make_runner(model))
    assert not weights.answers_in_its_vocabulary
    with pytest.raises(ValueError, match="reads 40 tokens and answers in 7"):
        list(weights.vocabulary())
