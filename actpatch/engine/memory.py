"""How much runs at once: rows of a batch, pairs of a recording, by the free memory. Nothing here runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Int

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.path_patches import HeadPaths
from actpatch.engine.experiment import Experiment
from actpatch.models.runner import Runner

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768, "mps": 8192}
"""Most rows × positions in one batch: on a CPU, activations beyond this leave the caches and nothing is gained."""
MEMORY_SHARE = 0.25
"""Share of the free memory that recordings, and separately one batch, may take."""
MOST_RECORDED_BYTES = 512 * 2**20


def tokens_that_fit(experiment: Experiment) -> int:
    """Most rows × positions of a batch, by the device's kind and its free memory."""
    cfg, device = experiment.runner.model.cfg, experiment.runner.device
    longest = experiment.pairs.longest
    per_token = _values_per_token(cfg, longest) * _bytes_per_value(experiment.runner.model)
    if experiment.vocabulary is None:  # logits, of each position or of a row that may compute one position alone
        per_token += (2 if experiment.reads is None else experiment.reads.shape[1]) * cfg.d_vocab * 4
    most = TOKENS_PER_BATCH.get(device.type, 8192)
    return int(max(1, min(most, MEMORY_SHARE * _free_memory(device) // per_token)))


def pairs_that_fit(experiment: Experiment, recorded: Sequence[int]) -> int:
    """Number of pairs whose recordings fit into memory together, with what senders of edges or paths change there.

    Args:
        experiment: what is run.
        recorded: how many hook points are recorded of either run.
    """
    cfg = experiment.runner.model.cfg
    longest = experiment.pairs.longest
    per_token = (2 * cfg.n_layers + sum(recorded)) * cfg.d_model
    logits = cfg.d_vocab * (longest if experiment.reads is None else experiment.reads.shape[1]) * 2
    per_pair = (per_token * longest + logits) * _bytes_per_value(experiment.runner.model)
    per_pair += _changes_held(experiment.patches) * _bytes_of_change(experiment)
    return max(1, min(len(experiment.pairs), int(_most_recorded(experiment) // per_pair)))


def prompts_that_fit(runner: Runner, longest: int) -> int:
    """Number of prompts of this many tokens that are recorded in one pass: what attention makes of every position and
    every other grows with the square of their number."""
    per_prompt = longest * _values_of_pass(runner.model.cfg, longest) * _bytes_per_value(runner.model)
    return max(1, int(MEMORY_SHARE * _free_memory(runner.device) // per_prompt))


def rows_fit(experiment: Experiment, n_rows: int, start: int, length: int) -> bool:
    """Whether so many rows fit into memory, computed at these positions over what is kept of those before."""
    cfg = experiment.runner.model.cfg
    per_row = (length - start) * _values_of_pass(cfg, length) + 4 * cfg.d_model * start
    share = MEMORY_SHARE * _free_memory(experiment.runner.device)
    return n_rows * per_row * _bytes_per_value(experiment.runner.model) <= share


def parts_that_fit(experiment: Experiment, edges: EdgePatches, n_pairs: int) -> list[Int[np.ndarray, " edge"]]:
    """The numbers of edges that are run together: of as many senders as what these change on the pairs fits into memory
    of, so that a part has one sender at least."""
    most = max(1, int(_most_recorded(experiment) // (n_pairs * _bytes_of_change(experiment))))
    order, senders = np.argsort(edges.writers, kind="stable"), edges.used_writers
    ends = np.searchsorted(edges.writers[order], senders[most::most])
    return [np.sort(part) for part in np.split(order, ends)]


def most_memory(model: Any, longest: int) -> int:
    """Bytes that running takes at most besides the weights: of recordings, and of one batch.

    Args:
        model: the model.
        longest: tokens of the longest prompt.
    """
    device = next(model.parameters()).device
    share = MEMORY_SHARE * _free_memory(device)
    of_batch = TOKENS_PER_BATCH.get(device.type, 8192) * _values_per_token(model.cfg, longest) * _bytes_per_value(model)
    return int(min(MOST_RECORDED_BYTES, share) + min(of_batch, share))


def _values_per_token(cfg: Any, longest: int) -> int:
    """What a pass takes, and the gathered prefix of keys and values."""
    return _values_of_pass(cfg, longest) + 4 * cfg.d_model * longest


def _values_of_pass(cfg: Any, longest: int) -> int:
    """Of one position: residual streams, attention and hidden activations, and scores."""
    widest = max(cfg.d_model, getattr(cfg, "d_mlp", None) or 0)
    return 12 * cfg.d_model + 5 * widest + 4 * cfg.n_heads * longest


def _changes_held(patches: Sequence[Any]) -> int:
    """Of how many senders, or paths, what they change is held for each pair."""
    if isinstance(patches, EdgePatches):
        return len(patches.used_writers)
    if isinstance(patches, CircuitPatches):
        return len(patches.graph.writers)
    if isinstance(patches, HeadPaths):
        return len(patches) * (1 + len(patches.receivers))
    return len(patches) if isinstance(patches, GraphPatches) else 0


def _bytes_of_change(experiment: Experiment) -> int:
    """What a sender changes on one pair, and what the heads of a layer make of it, twice while more is added."""
    cfg = experiment.runner.model.cfg
    values = experiment.pairs.longest * (cfg.d_model + 2 * cfg.n_heads * cfg.d_head)
    return values * _bytes_per_value(experiment.runner.model)


def _most_recorded(experiment: Experiment) -> float:
    return min(MOST_RECORDED_BYTES, MEMORY_SHARE * _free_memory(experiment.runner.device))


def _bytes_per_value(model: Any) -> int:
    return next(model.parameters()).element_size()


def _free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
