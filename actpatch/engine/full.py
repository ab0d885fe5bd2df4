"""One batch by the model's own full forward passes, with hooks: for what cannot be resumed."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.plan import Batch
from actpatch.engine.writes import check_fired, noise_hook, write_hooks, writes_of
from actpatch.models.runner import Read


def run_in_full(
    experiment: Experiment, batch: Batch, chunk: Chunk, *, alone: bool, patched: bool = True
) -> Float[Tensor, "row read token"]:
    """What is read of the logits of a batch, by the model's own full forward passes.

    Args:
        alone: whether only the logits that are read are computed (`Read.alone`).
        patched: False runs it as it is.
    """
    rows = torch.from_numpy(batch.pairs)
    batch = replace(batch, start=0)
    writes = writes_of(batch, [patch.sites for patch in experiment.patches]) if patched else []
    hooks, fired = write_hooks(experiment, batch, chunk, writes)
    read = Read(None if chunk.reads is None else chunk.reads[rows], experiment.vocabulary, alone)
    if chunk.base_noise is not None:
        hooks.insert(0, noise_hook(chunk.base_noise[rows, : batch.length]))
    with experiment.runner.hooks(hooks):
        logits = experiment.runner.run(chunk.base.tokens[rows, : batch.length], read)
    check_fired(writes, fired)
    return logits
