"""The graph of a model is what its modules do: which heads and MLPs it has, and who reads whom, is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from actpatch import graph_of
from actpatch.core.graph import Graph
from actpatch.core.sites import block_hook
from actpatch.models.facts import n_key_value_heads
from test_suite.helpers.models import (
    BRIDGE_ARCHITECTURES,
    D_VOCAB,
    HOOKED_ARCHITECTURES,
    MORE_BRIDGE_ARCHITECTURES,
    MORE_HOOKED_ARCHITECTURES,
    N_LAYERS,
    bundled,
    fresh_hooked,
    fresh_model,
    model_parameters,
    needs_hooked,
    small_model,
    word_tokenizer,
)
from test_suite.helpers.refusals import refused

ODD = ("latent", "state_space", "scaled_residual", "cohere", "neox_sequential", "some_attention", "linear_attention")
BRIDGES = [f"bridge:{name}" for name in (*BRIDGE_ARCHITECTURES, *MORE_BRIDGE_ARCHITECTURES, *ODD)]
HOOKED = [f"hooked:{name}" for name in HOOKED_ARCHITECTURES | MORE_HOOKED_ARCHITECTURES]
NORMED_OUTPUT = ["hooked:sandwich", *(f"bridge:{name}" for name in ("gemma2", "gemma3", "olmo2", "olmo3", "exaone4"))]
NORMED_STREAM = ["bridge:opt_post", "bridge:bloom_post"]
ADDING = [name for name in HOOKED + BRIDGES if name not in NORMED_OUTPUT]
PARALLEL = [
    *("hooked:parallel", "hooked:parallel_grouped"),
    *(f"bridge:{name}" for name in ("neox", "phi", "falcon", "gptj", "cohere")),
]
KEY_VALUE_HEADS = {
    **dict.fromkeys(["hooked:grouped", "hooked:parallel_grouped"], 2),
    **{f"bridge:{name}": 2 for name in ("llama", "qwen2", "mistral", "qwen3", "state_space", "scaled_residual")},
    **{f"bridge:{name}": 2 for name in ("cohere", "some_attention", "linear_attention")},
    "bridge:falcon": 1,
}
"""Of those that have fewer than 4."""


def read_at(model: Any, asked: list[str], hooks: list[tuple[str, Callable[..., Tensor]]]) -> dict[str, Tensor]:
    """What a run with these hooks computes at some hook points."""
    found: dict[str, Tensor] = {}

    def reading(name: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            found[name] = value.detach().clone()

        return keep

    with torch.no_grad():
        model.run_with_hooks(
            torch.tensor([[1, 5, 9, 3]]), fwd_hooks=[*hooks, *((name, reading(name)) for name in asked)]
        )
    return found


def added(noise: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda value, hook: value + noise(value)


def wave(value: Tensor) -> Tensor:
    return torch.arange(value.numel(), dtype=value.dtype).cos().reshape(value.shape)


@pytest.mark.parametrize("name", model_parameters(*ADDING))
def test_the_layers_are_those_of_the_model(name: str) -> None:
    attends = [False, True, False] if name.endswith(("some_attention", "linear_attention")) else [True] * N_LAYERS
    keys = KEY_VALUE_HEADS.get(name, 4)
    assert graph_of(small_model(name)) == Graph(
        str(small_model(name).cfg.model_name),
        tuple(4 * one for one in attends),
        tuple(keys * one for one in attends),
        (name != "hooked:attn_only",) * N_LAYERS,
        name in PARALLEL,
        32,
    )


@pytest.mark.parametrize("name", model_parameters(*ADDING))
def test_an_mlp_reads_its_own_layers_attention_unless_blocks_are_parallel(name: str) -> None:
    model, of = small_model(name), graph_of(small_model(name))
    mlp = block_hook(1, "mlp_out")
    if name == "hooked:attn_only":
        assert not of.mlps[1] and not read_at(model, [mlp], [])
        return
    before = read_at(model, [mlp], [])[mlp]
    after = read_at(model, [mlp], [(block_hook(1, "attn_out"), added(wave))])[mlp]
    reads = of.n_writers_before[of.reader("m1")] > of.writer((1, 3))
    assert reads == (not torch.equal(before, after)) == (not of.is_parallel)


@pytest.mark.quick(17)
@pytest.mark.parametrize("name", model_parameters(*HOOKED, *BRIDGES, *NORMED_OUTPUT[-2:]))
def test_models_are_refused_whose_heads_do_not_add_up(name: str) -> None:
    """Changes of two halves of the heads, alone and together, at what attention adds to the residual stream."""
    model = small_model(name)
    z, written = block_hook(1, "z"), block_hook(1, "attn_out")

    def half(of: int) -> Callable[[Tensor], Tensor]:
        def noise(value: Tensor) -> Tensor:
            noisy = wave(value).reshape(*value.shape[:2], -1).clone()
            middle = noisy.shape[-1] // 2
            noisy[..., slice(None, middle) if of else slice(middle, None)] = 0
            return noisy.reshape(value.shape)

        return noise

    base, first, second, both = (
        read_at(model, [written], [(z, added(noise))] if noise else [])[written]
        for noise in (None, half(0), half(1), wave)
    )
    together, apart = both - base, (first - base) + (second - base)
    assert together.abs().max() > 0.05
    if (together - apart).abs().max() < 1e-9:
        graph_of(model)
    else:
        assert name in NORMED_OUTPUT
        with refused(
            r"has post-norm blocks: attention's output is normalized before it is added to the residual stream, so "
            r"that outputs of heads do not add up .*; patch whole heads and layers with HeadPatcher and ActivationP"
        ):
            graph_of(model)


@pytest.mark.parametrize("name", model_parameters(*NORMED_STREAM, "bridge:per_layer_inputs", "bridge+:gemma2"))
def test_models_are_refused_whose_residual_stream_is_normalized(name: str) -> None:
    with refused("has post-norm blocks: (attention's output|the residual stream) is normalized (before|after)"):
        graph_of(fresh_model(name))


def test_compatibility_mode_changes_no_graph() -> None:
    for name in ("gpt2", "llama", "neox"):
        assert graph_of(small_model(f"bridge:{name}")) == graph_of(small_model(f"bridge+:{name}"))


@needs_hooked
def test_both_classes_of_a_model_have_one_graph() -> None:
    assert graph_of(bundled("HookedTransformer")) == graph_of(bundled("TransformerBridge"))
    assert graph_of(bundled("HookedTransformer")).model == "tiny"


@needs_hooked
def test_keys_and_values_that_a_model_ungroups_are_those_of_each_head() -> None:
    model = fresh_hooked("grouped")
    assert graph_of(model).key_value_heads == (2, 2, 2) and n_key_value_heads(model) == 2
    model.set_ungroup_grouped_query_attention(True)
    assert graph_of(model).key_value_heads == (4, 4, 4) and n_key_value_heads(model) == 4


@needs_hooked
def test_the_attention_only_model_of_four_layers() -> None:
    model = fresh_hooked("attn_only", n_layers=4, n_heads=8, d_model=32, d_head=4)
    assert len(graph_of(model)) == 1_281


@pytest.mark.parametrize("name", ["bridge:experts"])
def test_experts_are_one_mlp(name: str) -> None:
    assert graph_of(small_model(name)).mlps == (True,) * N_LAYERS


def test_what_has_no_graph_is_refused() -> None:
    with refused("has no attention heads", ValueError):
        graph_of(small_model("bridge:mixers"))
    with refused("model is a str, expected a TransformerLens HookedTransformer or TransformerBridge", TypeError):
        graph_of("gpt2")


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": D_VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model = TransformerBridge.boot_transformers(str(tmp_path), device="cpu", tokenizer=word_tokenizer())
    with refused("T5ForConditionalGeneration is an encoder-decoder: only decoder-only models can be patched"):
        graph_of(model)
