"""What is measured?  The rows of the table, and the models, prompt pairs and patches they stand for."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformer_lens
import transformers
from transformer_lens import patching
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from actpatch.core.edge_patches import EdgePatches, edge_patches
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.models.graph import graph_of
from actpatch.models.load import TINY, ModelClass, load_model
from actpatch.tasks.encoding import EncodedPairs, encode_pairs
from actpatch.tasks.ioi import IOIDataset
from test_suite.helpers.smol_model import converted_smol

GPT2, SMOL, BUNDLED = "GPT-2 small's shape", "SmolLM2-135M", "tiny"
FLIP, SWAP = "flip_subject", "swap_names"
BY_POSITION = ("resid_pre", "attn_out", "mlp_out")
EDGES, DIRECT_PATHS = "edges", "direct_paths"
OF_EDGES = {EDGES: "all edges", DIRECT_PATHS: "edges between heads"}
HAS_DIRECT_PATHS = hasattr(patching, "get_act_patch_direct_path")
"""Whether TransformerLens has a sweep over edges of its own: from heads to queries, keys and values of later ones."""

_SWEEPS = {
    GPT2: [
        ("z", 5, FLIP),
        ("z", 5, SWAP),
        ("resid_pre", 5, FLIP),
        ("pattern", 5, FLIP),
        ("z", 1, FLIP),
        ("z", 32, FLIP),
        ("attn_out", 5, FLIP),
        ("mlp_out", 5, FLIP),
        ("resid_pre", 5, SWAP),
        (EDGES, 1, FLIP),
        (EDGES, 8, FLIP),
        (DIRECT_PATHS, 1, FLIP),
    ],
    SMOL: [
        ("z", 1, FLIP),
        ("z", 5, FLIP),
        ("z", 1, SWAP),
        ("pattern", 1, FLIP),
        ("resid_pre", 1, FLIP),
        (EDGES, 1, FLIP),
    ],
    BUNDLED: [
        ("z", 5, FLIP),
        ("pattern", 5, SWAP),
        ("attn_out", 5, FLIP),
        ("resid_pre", 32, FLIP),
        ("z", 32, SWAP),
        (EDGES, 20, FLIP),
    ],
}
_LONG = {(GPT2, EDGES, 8), (SMOL, EDGES, 1)}
"""Rows whose sweep takes minutes."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    model_class: ModelClass
    component: str
    """Short name of the hook points that are patched, at every head or at every position; or a word for edges."""
    n_pairs: int
    corruption: str

    @property
    def sweep(self) -> str:
        if self.component in OF_EDGES:
            return OF_EDGES[self.component]
        return f"{self.component} by position" if self.component in BY_POSITION else f"heads {self.component}"

    @property
    def is_long(self) -> bool:
        """Whether it is measured once: its sweep takes minutes."""
        return (self.model, self.component, self.n_pairs) in _LONG

    def __str__(self) -> str:
        return f"{self.model} | {self.model_class} | {self.sweep} | {self.n_pairs} | {self.corruption}"


@dataclass(frozen=True)
class Task:
    """A row's pairs, all of one length, its patches and its metric."""

    pairs: EncodedPairs
    patches: Sequence[Patch]
    metric: LogitDifference

    def taken(self, numbers: Sequence[int]) -> Sequence[Patch]:
        """The patches with these numbers."""
        if isinstance(self.patches, EdgePatches):
            return self.patches.taken(numbers)
        return [self.patches[number] for number in numbers]


def all_rows() -> list[Row]:
    """Every row that can be run with what is installed. SmolLM2-135M is run as both of TransformerLens' classes."""
    has_hooked = "HookedTransformer" in vars(transformer_lens)
    classes: list[ModelClass] = ["HookedTransformer", "TransformerBridge"] if has_hooked else ["TransformerBridge"]
    return [
        Row(model, model_class, *sweep)
        for model, sweeps in _SWEEPS.items()
        for model_class in (classes if model == SMOL else classes[:1])
        for sweep in sweeps
        if checkpoint(model) is not None and (sweep[0] != DIRECT_PATHS or HAS_DIRECT_PATHS)
    ]


@functools.cache
def checkpoint(model: str) -> Path | None:
    """Directory of the Hugging Face checkpoint; None where SmolLM2-135M is not installed."""
    transformers.utils.logging.disable_progress_bar()
    if model == GPT2:
        return _random_gpt2()
    return TINY if model == BUNDLED else converted_smol()


def loaded(row: Row) -> Any:
    """The row's model."""
    directory = checkpoint(row.model)
    assert directory is not None
    with contextlib.redirect_stdout(io.StringIO()):  # TransformerLens' notes
        return load_model(directory, device="cpu", model_class=row.model_class)


def task(row: Row, model: Any) -> Task:
    """What is run on the model for this row."""
    pairs, metric = random_ioi(row.n_pairs, row.corruption) if row.model == GPT2 else _ioi(row, model)
    layers, name = range(model.cfg.n_layers), row.component
    if name in OF_EDGES:
        nodes = None if name == EDGES else "heads"
        return Task(pairs, edge_patches(graph_of(model), nodes, nodes), metric)
    if name in BY_POSITION:
        everywhere = range(int(pairs.lengths.max()))
        sites = [Site(block_hook(layer, name), position=at) for layer in layers for at in everywhere]
    else:
        sites = [Site(block_hook(layer, name), head=head) for layer in layers for head in range(model.cfg.n_heads)]
    return Task(pairs, [Patch((site,)) for site in sites], metric)


def _random_gpt2() -> Path:
    """A random model of GPT-2 small's shape; its tokenizer is there because loaders ask for one, and is not used."""
    path = Path(tempfile.mkdtemp(prefix="benchmark-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    torch.manual_seed(0)
    config = GPT2Config(initializer_range=0.06)
    config.n_ctx = config.n_positions  # TransformerLens 3 asks for it by its old name
    GPT2LMHeadModel(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(path)
    return path


def random_ioi(n_pairs: int, corruption: str) -> tuple[EncodedPairs, LogitDifference]:
    """Random tokens laid out as GPT-2 has IOI prompts with a BOS token: 16 tokens, the names at 2, 4 and 11."""
    chooser = torch.Generator().manual_seed(0)
    clean, corrupted, names = [], [], []
    for _ in range(n_pairs):
        prompt = torch.randint(1, 50000, (16,), generator=chooser)
        recipient, subject = torch.randperm(50000, generator=chooser)[:2].tolist()
        prompt[[2, 4, 11]] = torch.tensor([recipient, subject, subject])
        other = prompt.clone()
        first, second = (recipient, subject) if corruption == FLIP else (subject, recipient)
        other[[2, 4, 11]] = torch.tensor([first, second, recipient])
        clean.append(prompt)
        corrupted.append(other)
        names.append((recipient, subject))
    strings = tuple(tuple(map(str, prompt.tolist())) for prompt in clean)
    pairs = EncodedPairs(tuple(range(n_pairs)), tuple(clean), tuple(corrupted), strings, strings)
    correct, incorrect = (tuple((token,) for token in tokens) for tokens in zip(*names))
    return pairs, LogitDifference(Answers(correct, incorrect))


def _ioi(row: Row, model: Any) -> tuple[EncodedPairs, LogitDifference]:
    """IOI pairs of one length, the commonest: the peers take no others together."""
    dataset = IOIDataset(model, n_pairs=8 * row.n_pairs, corruption=row.corruption)
    pairs = encode_pairs(model, dataset)
    length = int(pairs.lengths.mode().values)
    chosen = [i for i, n in enumerate(pairs.lengths.tolist()) if n == length][: row.n_pairs]
    (metric,) = encode_pairs(model, dataset, chosen).metrics()
    assert isinstance(metric, LogitDifference) and len(chosen) == row.n_pairs
    return encode_pairs(model, dataset, chosen), metric
