"""TransformerLens' own patching of single activations, and of direct paths from head to head.

It collects what it finds in a tensor of PyTorch's default type, which is the model's for as long as it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformer_lens import patching as tl_patching

from actpatch.metrics.answers import LogitDifference
from actpatch.tasks.encoding import EncodedPairs

BY_POSITION = {
    "resid_pre": tl_patching.get_act_patch_resid_pre,
    "resid_mid": tl_patching.get_act_patch_resid_mid,
    "attn_out": tl_patching.get_act_patch_attn_out,
    "mlp_out": tl_patching.get_act_patch_mlp_out,
}
BY_HEAD = {
    "z": tl_patching.get_act_patch_attn_head_out_all_pos,
    "q": tl_patching.get_act_patch_attn_head_q_all_pos,
    "k": tl_patching.get_act_patch_attn_head_k_all_pos,
    "v": tl_patching.get_act_patch_attn_head_v_all_pos,
    "pattern": tl_patching.get_act_patch_attn_head_pattern_all_pos,
}
BY_HEAD_AND_POSITION = {
    "z": tl_patching.get_act_patch_attn_head_out_by_pos,
    "q": tl_patching.get_act_patch_attn_head_q_by_pos,
    "k": tl_patching.get_act_patch_attn_head_k_by_pos,
    "v": tl_patching.get_act_patch_attn_head_v_by_pos,
    "pattern": tl_patching.get_act_patch_attn_head_pattern_by_pos,
}


def reference(function: Any, model: Any, pairs: EncodedPairs, metric: LogitDifference, **options: Any) -> torch.Tensor:
    """What TransformerLens finds for the first pair, by its own loop."""
    _, cache = model.run_with_cache(pairs.clean[0][None])
    (correct,), (incorrect,) = metric.answers.correct[0], metric.answers.incorrect[0]

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, correct] - logits[0, -1, incorrect]

    with torch.no_grad(), _default_type(model.cfg.dtype):
        return function(model, pairs.corrupted[0][None], cache, difference, **options)


HAS_DIRECT_PATHS = hasattr(tl_patching, "get_act_patch_direct_path")


def direct_paths(
    model: Any, pairs: EncodedPairs, metric: LogitDifference, sender: tuple[int, int], component: str
) -> torch.Tensor:
    """What TransformerLens 4 finds for the first pair and one sender: [receiver layer, receiver head].

    It is the metric of the corrupted run with the clean one's part, at all positions, in what one head's queries, keys
    or values alone read; NaN where the receiver is in no later layer, where it gives 0.
    """
    _, clean = model.run_with_cache(pairs.clean[0][None])
    _, corrupted = model.run_with_cache(pairs.corrupted[0][None])
    (correct,), (incorrect,) = metric.answers.correct[0], metric.answers.incorrect[0]

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, correct] - logits[0, -1, incorrect]

    with torch.no_grad(), _default_type(model.cfg.dtype):
        found = tl_patching.get_act_patch_direct_path(
            model, pairs.corrupted[0][None], clean, corrupted, difference, *sender, component=component, verbose=False
        )
    found[: sender[0] + 1] = torch.nan
    return found


@contextlib.contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
