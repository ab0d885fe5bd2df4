"""Whether what is recorded is the model's own run: `model(prompt)`, one prompt at a time, as a user calls it.

Everything else rests on it. A model may compute something else where prompts of several lengths are padded, where
several run together, where its unembedding is not run as a whole, or where it is handed a cache; and all shortcuts take
it that later tokens leave earlier positions alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.engine.exactness import ONE_PROMPT, Exactness, allowed_error, too_far
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.full import run_in_full
from actpatch.engine.plan import Batch
from actpatch.engine.writes import noise_hook
from actpatch.models.runner import Read, Recording

MANY = 8
"""Where no logit of so many pairs is a number, those of the others are taken not to be either."""


@dataclass(frozen=True)
class Alone:
    """One prompt of a chunk, run alone: of the corrupted run, which no row of a recording begins with."""

    pair: int
    """Which pair of the chunk."""
    logits: Float[Tensor, "read token"]
    """What is read of them."""


def run_alone(experiment: Experiment, chunk: Chunk) -> Alone:
    """One prompt of the chunk as the model runs it alone: where lengths differ one of the shortest, else the last."""
    lengths = chunk.lengths_of(_corrupted_run(experiment, chunk))
    pair = int(lengths.argmin()) if len(set(lengths.tolist())) > 1 else len(lengths) - 1
    return Alone(pair, prompt_alone(experiment, chunk, _corrupted_run(experiment, chunk), pair))


def _corrupted_run(experiment: Experiment, chunk: Chunk) -> Recording:
    return chunk.base if experiment.direction == "denoising" else chunk.other


def prompt_alone(experiment: Experiment, chunk: Chunk, run: Recording, pair: int) -> Float[Tensor, "read token"]:
    """What is read of a pair's run, by the model's own forward pass of this prompt alone."""
    runner, length = experiment.runner, int(chunk.lengths_of(run)[pair])
    reads = chunk.reads_of(run)
    at = None if reads is None else reads[pair : pair + 1]
    noise = chunk.base_noise if run is chunk.base else chunk.other_noise
    with runner.hooks([] if noise is None else [noise_hook(noise[pair : pair + 1, :length])]):
        read = Read(at, experiment.vocabulary, alone=runner.unembeds_by_a_product)
        return runner.run(run.tokens[pair : pair + 1, :length], read)[0]


def error_of_recording(experiment: Experiment, chunk: Chunk, alone: Alone) -> str | None:
    """How far the recorded run is off the prompt's own; None where it is not."""
    corrupted = _corrupted_run(experiment, chunk)
    checked = [(corrupted, alone.pair, alone.logits)]
    clean = chunk.other if corrupted is chunk.base else chunk.base
    if int(chunk.lengths_of(clean).min()) < int(
        chunk.lengths_of(corrupted).min()
    ):  # what is padded most is of that run
        pair = int(chunk.lengths_of(clean).argmin())
        checked.append((clean, pair, prompt_alone(experiment, chunk, clean, pair)))
    errors = (
        too_far("running it as the sweep does", run.logits[pair, : len(logits)], logits)
        for run, pair, logits in checked
    )
    return next(filter(None, errors), None)


def error_of_full_runs(experiment: Experiment, chunk: Chunk, exactness: Exactness) -> str | None:
    """The same of full runs, batched as the sweep batches them, against the recorded ones."""
    n_rows = len(chunk.pairs) if exactness.together else 1
    rows = [(row + 1) % n_rows for row in range(n_rows)]  # none where it was recorded
    batch = Batch.of([0] * len(rows), rows, 0, int(chunk.lengths[rows].max()))
    logits = run_in_full(experiment, batch, chunk, alone=exactness.logits, patched=False)
    return too_far("a full run as the sweep makes it", logits, chunk.base.logits[rows, : logits.shape[1]])


def ways_to_agree(exactness: Exactness) -> Iterator[tuple[Exactness, str]]:
    """What may be left out so that the recorded run is the model's own, one thing after the other, with the reason."""
    if exactness.logits:
        yield replace(exactness, logits=False), "its unembedding computes more than a product with its weights"
    if exactness.padded:
        yield replace(exactness, padded=False), "prompts of several lengths change each other when they run together"
    if exactness.prefix:
        yield replace(exactness, prefix=False), "it computes something else when its keys and values are kept"
    yield ONE_PROMPT, "prompts change each other when they run together"


def are_all_nan(chunk: Chunk) -> bool:
    """Whether no logit that is read of any of the chunk's prompts is a number."""
    return not (chunk.base.logits.isfinite().any() or chunk.other.logits.isfinite().any())


def check_finite(experiment: Experiment, chunk: Chunk, n_nan: int) -> None:
    """Raises ValueError where logits are NaN on all prompts, or on many from the first one on.

    Args:
        n_nan: on how many pairs they are, from the first one on.
    """
    if n_nan >= min(MANY, len(experiment.pairs)):
        dtype = str(chunk.base.logits.dtype).removeprefix("torch.")
        raise ValueError(
            f"the logits of this model are NaN on all of {2 * n_nan} prompts (in {dtype}): "
            f"{'load it in float32 or bfloat16' if dtype == 'float16' else 'look at its weights'}"
        )


def check_causal(experiment: Experiment, chunk: Chunk) -> None:
    """Look whether a later token moves earlier positions.

    The clean and the corrupted run are alike up to their first difference: what was recorded there is compared. Where
    that shows nothing, two prompts that differ late are run for it.

    Raises:
        ValueError: where it does.
    """
    moved = _moved_before_the_change(experiment, chunk)
    if moved is None:
        moved = _moved_by_a_later_token(experiment, chunk)
    if moved and experiment.runner.quantizes_activations:
        raise ValueError(
            "this model's quantized layers scale by what all positions hold (another token at the end changes what "
            "stands before it): load it without quantized activations"
        )
    if moved:
        raise ValueError(
            "this model attends to later positions (another token at the end changes what stands before it): only "
            "causal models can be patched"
        )


def _moved_before_the_change(experiment: Experiment, chunk: Chunk) -> bool | None:
    """Whether what was recorded differs before the runs' first difference: the logits, where those of all positions are
    read, or the keys of the last layer; None where that is not known."""
    runner, last = experiment.runner, experiment.runner.n_layers - 1
    pairs, noise = experiment.pairs, experiment.noise
    first = (pairs.first_difference if noise is None else noise.first_change)[chunk.pairs]
    known = ((first > 0) & (first < chunk.lengths)).nonzero().flatten()
    if not len(known):
        return None
    start = int(first[known[0]])
    if experiment.reads_all:
        logits, others = (run.logits[known[0], :start] for run in (chunk.base, chunk.other))
        return too_far("", others, logits) is not None
    if not last or chunk.base.keys_values is None or chunk.other.keys_values is None:
        return None
    pair = known[:1].to(runner.index_device)
    runs = [runner.prefix(run, last, pair, start) for run in (chunk.base, chunk.other)]
    (keys, _), (others, _) = (run for run in runs if run is not None)
    return not float((keys - others).abs().max()) <= allowed_error(keys) if keys.isfinite().all() else None


def _moved_by_a_later_token(experiment: Experiment, chunk: Chunk) -> bool:
    """Whether the logits before a difference of two prompts differ: of a pair's, or of one with another last token."""
    at = experiment.pairs.first_difference[chunk.pairs]
    known = ((at > 0) & (at < chunk.lengths)).nonzero().flatten().tolist()
    pair = known[0] if known else int(chunk.lengths.argmax())
    length = int(chunk.lengths[pair])
    before = int(at[pair]) if known else length - 1
    if not before:
        return False
    prompt, other = (run.tokens[pair : pair + 1, :length] for run in (chunk.base, chunk.other))
    if not known:
        other = prompt.clone()
        other[:, -1] = (other[:, -1] + 1) % experiment.runner.model.cfg.d_vocab
    logits, moved = (experiment.runner.run(tokens, Read(alone=False))[:, :before] for tokens in (prompt, other))
    return too_far("", moved, logits) is not None


@dataclass(frozen=True)
class Rounding:
    """The logits of both runs of one pair, run in ways that differ by rounding alone."""

    pair: int
    """Index of the pair within the experiment."""
    clean_length: int
    corrupted_length: int
    clean: Float[Tensor, "way_of_clean read token"]
    """Of the clean run: alone first, then among others, then resumed with no change, if it is resumed."""
    corrupted: Float[Tensor, "way_of_corrupted read token"]


def rounding_of(
    experiment: Experiment, chunk: Chunk, alone: Alone, resumed: Float[Tensor, "row read token"] | None
) -> Rounding:
    """What rounding does to the pair that was run alone.

    Args:
        resumed: the run that is patched, resumed with no change; None where it is not resumed.
    """
    pair, in_denoising = alone.pair, experiment.direction == "denoising"
    clean_run, corrupted_run = (chunk.other, chunk.base) if in_denoising else (chunk.base, chunk.other)
    of_clean = prompt_alone(experiment, chunk, clean_run, pair)
    clean = torch.stack([of_clean, clean_run.logits[pair, : len(of_clean)]])
    corrupted = torch.stack([alone.logits, corrupted_run.logits[pair, : len(alone.logits)]])
    if resumed is not None:
        clean, corrupted = (
            (clean, torch.cat([corrupted, resumed])) if in_denoising else (torch.cat([clean, resumed]), corrupted)
        )
    n_clean, n_corrupted = (int(chunk.lengths_of(run)[pair]) for run in (clean_run, corrupted_run))
    return Rounding(int(chunk.pairs[pair]), n_clean, n_corrupted, clean, corrupted)
