"""What a head's weights do by themselves: whether it copies what it reads, and which tokens' queries meet which keys.

- *Copying* (Wang et al. 2022, section 3.1 and appendix): the residual stream of a prompt after block 0 (its MLP
  included) at a token, normalized as the head's layer reads it, goes through W_V W_O, the final norm and the
  unembedding; a token is copied where it is itself among the `TOP_K` largest logits, ties counting against it. With
  the sign of W_V W_O turned around it is suppressed (the negative copy score). The stream before block 0 is taken for
  heads of layer 0, which read that. Left out is what the head writes whatever it reads, b_V and the norm's bias through
  W_V.
- *Eigenvalues* (Elhage et al. 2021, "Summarizing OV/QK matrices"): Σλ / Σ|λ| over the eigenvalues of
  W_E W_V W_O W_U, from -1 to 1; positive eigenvalues copy. They are those of the d_head × d_head product
  W_O W_U W_E W_V, but for zeros. The gains and the centring of the head's and of the final norm stand between the
  factors, W_U is taken less its mean over the vocabulary (a constant on all logits changes no probability), so that it
  does not matter whether the model's layer norms are folded; that norms divide by each vector's own size is left out.
- *Query-key scores*: (e_q W_Q + b_Q) · (e_k W_K + b_K) / scale, the raw score before the softmax, of tokens'
  embeddings, normalized as the head's layer reads them. Positions, rotary turns and biases by distance, and all that
  earlier layers add to the stream are left out.

`faults` compares what the weights make with what the model's own run holds: what does not agree is not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.sites import block_hook
from actpatch.models.weights import HeadWeights, Weights

TOP_K = 5
"""A token is copied where it is among so many largest logits (Wang et al. 2022)."""
ROWS = 64
"""Tokens whose logits are held at once."""
LARGEST_DEVIATION = 0.01
"""Share of the largest value by which weights and run may differ; three times that in half precision."""
SCORES = "attn.hook_attn_scores"


def copying(
    weights: Weights,
    head: HeadWeights,
    layer: int,
    resid: Float[Tensor, "token d_model"],
    tokens: Int[Tensor, " token"],
) -> tuple[float, float]:
    """(share of these tokens that are copied, share that are suppressed).

    Args:
        weights: of the model.
        head: of the head.
        layer: its layer.
        resid: the residual stream at each token.
        tokens: their ids.
    """
    read = weights.read(layer, resid) - weights.norm(layer).bias
    written = read @ head.value @ head.output
    found = []
    for sign in (1, -1):
        hits = 0
        for start in range(0, len(tokens), ROWS):
            logits = weights.logits(sign * written[start : start + ROWS])
            own = logits.gather(1, tokens[start : start + ROWS, None])
            hits += int(((logits >= own).sum(dim=1) <= TOP_K).sum())
        found.append(hits / len(tokens))
    return found[0], found[1]


def eigenvalue_score(weights: Weights, head: HeadWeights, layer: int) -> float:
    """Σλ / Σ|λ| of the circuit from the tokens that are read to the tokens that are said.

    Raises:
        ValueError: where there is no such square circuit (`Weights.vocabulary`), or it is zero.
    """
    value = weights.norm(layer).before(head.value)
    final = weights.norm(None)
    d_head, size = len(head.output), 0
    product, reads, writes = torch.zeros(d_head, d_head), torch.zeros(d_head), torch.zeros(d_head)
    product, reads, writes = product.double(), reads.double(), writes.double()
    for embedding, unembedding in weights.vocabulary():
        read, written = embedding @ value, head.output @ final.before(unembedding)
        product += written @ read
        reads += read.sum(dim=0)
        writes += written.sum(dim=1)
        size += len(embedding)
    eigenvalues = torch.linalg.eigvals(product - torch.outer(writes, reads) / size)
    total = float(eigenvalues.abs().sum())
    if total == 0:
        raise ValueError("the head's weights write nothing that the unembedding reads")
    return float(eigenvalues.real.sum()) / total


def query_key_scores(
    weights: Weights,
    head: HeadWeights,
    layer: int,
    queries: Float[Tensor, "pair d_model"],
    keys: Float[Tensor, "pair d_model"],
) -> Float[Tensor, " pair"]:
    """The raw score of each pair's query and key token, from their embeddings alone."""
    query = weights.read(layer, queries) @ head.query + head.query_bias
    key = weights.read(layer, keys) @ head.key + head.key_bias
    return (query * key).sum(dim=-1) / head.scale


def hook_points_to_compare(layer: int, n_layers: int) -> list[str]:
    """Hook points whose activations `faults` compares; a model may lack some."""
    names = [block_hook(layer, name) for name in ("resid_pre", "pattern", "z", "attn_out")]
    return [*names, f"blocks.{layer}.{SCORES}", block_hook(n_layers - 1, "resid_post")]


def faults(
    weights: Weights,
    head: HeadWeights,
    layer: int,
    index: int,
    recorded: Mapping[str, Tensor],
    logits: Float[Tensor, "1 pos d_vocab"],
    n_layers: int,
) -> dict[str, str]:
    """Which of a head's weights do not make what the model's own run holds, and why they cannot be used.

    Args:
        weights: of the model.
        head: of the head.
        layer: its layer.
        index: its number among the layer's query heads.
        recorded: activations of one prompt at `hook_points_to_compare`, as far as the model has them.
        logits: of that run.
        n_layers: of the model.

    Returns:
        `ov` and `qk` -> the reason, for those that cannot be used.
    """
    half = recorded[block_hook(layer, "resid_pre")].dtype in (torch.float16, torch.bfloat16)
    most = LARGEST_DEVIATION * (3 if half else 1)
    run = {name: value.detach().to(device="cpu", dtype=torch.float64) for name, value in recorded.items()}
    read = weights.read(layer, recorded[block_hook(layer, "resid_pre")])[0]
    z = run[block_hook(layer, "z")][0, :, index]

    def values() -> float:
        pattern = run[block_hook(layer, "pattern")][0, index]
        return _deviation(pattern @ (read @ head.value + head.value_bias), z)

    def output() -> float:
        written = weights.attention_output(layer, recorded[block_hook(layer, "z")])
        return _deviation(written, run[block_hook(layer, "attn_out")], up_to_a_factor=True)

    def unembedding() -> float:
        made = weights.logits(recorded[block_hook(n_layers - 1, "resid_post")])[0, -1]
        said = logits[0, -1].detach().to(device="cpu", dtype=torch.float64)
        ordered = said[made.argsort()]  # a soft cap bends logits, and keeps their order
        return float((ordered.cummax(dim=0).values - ordered).max() / (said.max() - said.min()).clamp_min(1e-30))

    def scores() -> float:
        made = ((read @ head.query + head.query_bias) * (read @ head.key + head.key_bias)).sum(dim=-1) / head.scale
        return _deviation(made, run[f"blocks.{layer}.{SCORES}"][0, index].diagonal())  # no turn by distance there

    found: dict[str, str] = {}
    if weights.normalizes_output(layer):
        found["ov"] = "what its layer's attention writes is normalized once more before it is added to the stream"
    checks: tuple[tuple[str, Callable[[], float], str], ...] = (
        ("ov", values, "W_V of the normalized stream is not what it reads"),
        ("ov", output, "W_O of its output is not what its layer's attention writes"),
        ("ov", unembedding, "final norm and W_U do not make the model's logits"),
        ("qk", scores, "W_Q and W_K do not make its attention scores (norms, caps or positions stand between)"),
    )
    for what, deviation, reason in checks:
        if what in found:
            continue
        try:
            size = deviation()
        except KeyError as missing:
            found[what] = f"the model does not show {missing.args[0]}, by which weights are checked"
            continue
        if not size <= most:
            found[what] = f"{reason}: they differ by {size:.0%}"
    return found


def _deviation(made: Tensor, run: Tensor, *, up_to_a_factor: bool = False) -> float:
    """Largest difference as a share of the largest value; with the best positive factor where one does not matter."""
    if up_to_a_factor:
        factor = float((made * run).sum() / (made * made).sum().clamp_min(1e-30))
        made = made * max(factor, 0.0)
    return float((made - run).abs().max() / run.abs().max().clamp_min(1e-30))
