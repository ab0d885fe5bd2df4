"""The graph of a model that is at hand: seen from its modules, hook points and settings, without running it."""

from __future__ import annotations

import re
from typing import Any

from actpatch.core.graph import Graph
from actpatch.core.sites import block_hook
from actpatch.models.facts import has_weights, model_name, n_key_value_heads, readable
from actpatch.models.runner import make_runner


def graph_of(model: Any) -> Graph:
    """Which edges a model has.

    What else writes into the residual stream, as a state-space mixer beside or instead of attention, is no node: it
    passes on what it is given, as everything does that an edge does not say. Experts of a layer are one MLP.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.

    Raises:
        TypeError: for anything else.
        ValueError: for one that is no causal decoder; for one without attention heads; for one in whose residual stream
            the outputs of heads do not add up, with the reason; and for one whose heads' weights are packed.
    """
    runner = make_runner(model)
    points, cfg = runner.hook_points, model.cfg
    layers = range(runner.n_layers)
    attends = [block_hook(layer, "z") in points for layer in layers]
    if not any(attends):
        raise ValueError(f"{model_name(model)} has no attention heads: its graph has no edges between heads to patch")
    _check_heads_add_up(model, [layer for layer in layers if attends[layer]])
    if has_weights(model):
        _check_weights_can_be_read(model, [layer for layer in layers if attends[layer]])
    has_mlp = [block_hook(layer, "mlp_out") in points and not getattr(cfg, "attn_only", False) for layer in layers]
    return Graph(
        model_name(model),
        heads=tuple(cfg.n_heads if one else 0 for one in attends),
        key_value_heads=tuple(n_key_value_heads(model) if one else 0 for one in attends),
        mlps=tuple(has_mlp),
        # A block with both has a residual stream between them unless both read what comes into the block.
        is_parallel=any(
            attends[layer] and has_mlp[layer] and block_hook(layer, "resid_mid") not in points for layer in layers
        ),
        d_model=cfg.d_model,
    )


def _check_heads_add_up(model: Any, layers: list[int]) -> None:
    """Whether what a head writes stays in the residual stream as it is, beside what others write."""
    for layer in layers:
        written = block_hook(layer, "attn_out")
        by = model.hook_dict[written].name or written  # a bridge's hook point is that of the module that adds
        if hasattr(model.blocks[layer], "ln1_post") or re.search(r"\.ln\w*\.hook_out$", by):
            raise _not_additive(model, "attention's output is normalized before it is added to the residual stream")
    config = getattr(model.__dict__.get("original_model"), "config", None)
    if getattr(config, "do_layer_norm_before", True) is False:
        raise _not_additive(model, "the residual stream is normalized after each addition (do_layer_norm_before=False)")
    if getattr(config, "apply_residual_connection_post_layernorm", False):
        because = "normalized before each addition (apply_residual_connection_post_layernorm=True)"
        raise _not_additive(model, f"the residual stream is {because}")


def _check_weights_can_be_read(model: Any, layers: list[int]) -> None:
    """Whether what heads write can be multiplied with their weights: packed ones are left as they are."""
    for layer in layers:
        if readable(model.blocks[layer].attn, "W_O") is None:
            raise ValueError(
                f"single edges, paths and circuits of {model_name(model)} cannot be patched or estimated: the weights "
                f"that heads of layer {layer} write with are packed (quantized), or not given as one matrix for each. "
                "Patch heads, layers and neurons with HeadPatcher and ActivationPatcher, or load the model with "
                "weights that are not packed"
            )


def _not_additive(model: Any, because: str) -> ValueError:
    return ValueError(
        f"{model_name(model)} has post-norm blocks: {because}, so that outputs of heads do not add up and single edges "
        "cannot be patched; patch whole heads and layers with HeadPatcher and ActivationPatcher"
    )
