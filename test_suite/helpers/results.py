"""Results of random metrics, for tests of what is drawn, told, saved or compared: no model is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from activation_patching import BothDirections
from actpatch.core.edge_patches import ALL_POSITIONS, EdgePatches, edge_patches
from actpatch.core.graph import Graph
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.results.attention import AttentionPatterns
from actpatch.results.cards import Copying, HeadCard, HeadCards, PartEffect, PlaceEffect, QueryKeyScore, RoleAttention
from actpatch.results.edges import EdgeResults
from actpatch.results.head_positions import HeadPositionResults
from actpatch.results.metric_values import MetricValues
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults, LayerResults
from actpatch.results.sweep import Sweep

CLEAN_TOKENS = ("<s>", "When", " Mary", " and", " John")
CORRUPTED_TOKENS = ("<s>", "When", " John", " and", " Mary")


def made_up_sweep(sites: list[Site] | EdgePatches, n_layers: int, n_heads: int, n_pairs: int = 5, **changes) -> Sweep:
    """A sweep of random metrics; what it shows is only that figures repeat it."""
    random = np.random.default_rng(0)
    values = {
        "name": "logit difference",
        "unit": "logits",
        "more_is_better": True,
        "patched": random.normal(size=(len(sites), n_pairs)),
        "clean": random.normal(3.5, 0.5, n_pairs),
        "corrupted": random.normal(-3.0, 0.5, n_pairs),
    }
    values |= {name: changes.pop(name) for name in set(values) & set(changes)}
    fields = {
        "patches": sites if isinstance(sites, EdgePatches) else tuple(Patch((site,)) for site in sites),
        "measured": (MetricValues(**values),),
        "direction": "denoising",
        "model": "made-up",
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_key_value_heads": n_heads,
        "task": "IOI",
        "pair_indices": tuple(range(10, 10 + n_pairs)),
        "clean_tokens": (CLEAN_TOKENS,) * n_pairs,
        "corrupted_tokens": (CORRUPTED_TOKENS,) * n_pairs,
        "versions": {"torch": "2.13.0"},
    }
    return Sweep(**{**fields, **changes})


def made_up_heads(n_layers: int = 4, n_heads: int = 3, component: str = "z", **changes) -> HeadResults:
    per_layer = changes.get("n_key_value_heads", n_heads) if component in ("k", "v") else n_heads
    sites = [Site(block_hook(layer, component), head) for layer in range(n_layers) for head in range(per_layer)]
    return HeadResults(made_up_sweep(sites, n_layers, n_heads, **changes))


def made_up_layers(components: tuple[str, ...] = ("attn_out", "mlp_out"), n_layers: int = 4, **changes) -> LayerResults:
    sites = [Site(block_hook(layer, component)) for component in components for layer in range(n_layers)]
    return LayerResults(made_up_sweep(sites, n_layers, 3, **changes))


def made_up_positions(n_layers: int = 2, tokens: tuple[str, ...] = CLEAN_TOKENS, **changes) -> PositionResults:
    sites = [
        Site(block_hook(layer, component), position=position)
        for component in ("resid_pre", "mlp_out")
        for layer in range(n_layers)
        for position in range(len(tokens))
    ]
    return PositionResults(made_up_sweep(sites, n_layers, 3, **changes))


def of_no_experiment(results: HeadResults) -> list[Any]:
    """The same entries, made anew: they do not know what was run."""
    return [dataclasses.replace(item) for item in results]


def made_up_head_positions(
    n_layers: int = 4, n_heads: int = 3, positions: tuple[str, ...] = ("S2", "END"), component: str = "z", **changes
) -> HeadPositionResults:
    per_layer = changes.get("n_key_value_heads", n_heads) if component in ("k", "v") else n_heads
    n_pairs = changes.get("n_pairs", 5)
    sites = [
        Site(block_hook(layer, component), head, position=(3 - column,) * n_pairs, position_name=name)
        for layer in range(n_layers)
        for head in range(per_layer)
        for column, name in enumerate(positions)
    ]
    return HeadPositionResults(made_up_sweep(sites, n_layers, n_heads, **changes))


GRAPH = Graph("made-up", (2, 0, 4), (2, 0, 2), (True, True, False))
"""A layer with an attention and an MLP, one with an MLP alone, one whose heads share keys and values; 62 edges."""


def made_up_edges(
    graph: Graph = GRAPH, places: Sequence[Sequence[Site]] = ALL_POSITIONS, *, senders=None, receivers=None, **changes
) -> EdgeResults:
    edges = edge_patches(graph, senders, receivers, places)
    return EdgeResults(made_up_sweep(edges, graph.n_layers, max(graph.heads), **changes))


def same_metrics(n_pairs: int = 5) -> dict[str, np.ndarray]:
    return {"clean": np.full(n_pairs, 2.0), "corrupted": np.full(n_pairs, 2.0)}


N_PAIRS = 12


def clear(make, every: int = 3, **changes):
    """Results of 12 pairs in which every third patch has an effect of about a third, and others none to speak of."""
    made = make(n_pairs=N_PAIRS, **changes)
    sweep = made.sweep
    random = np.random.default_rng(1)
    effects = random.normal(0, 0.01, sweep.patched.shape)
    effects[::every] += random.normal(0.3, 0.05, (len(effects[::every]), 1))
    return make(n_pairs=N_PAIRS, **changes, patched=sweep.base + effects * (sweep.source - sweep.base))


def both_ways(**changes) -> BothDirections[HeadResults]:
    return BothDirections(
        clear(made_up_heads, **changes), clear(made_up_heads, every=2, direction="noising", **changes)
    )


def patterns(tokens: tuple[str, ...] = ("<s>", " Mary", " and"), n_heads: int = 2) -> AttentionPatterns:
    random = np.random.default_rng(0)
    values = np.tril(random.random((2, n_heads, len(tokens), len(tokens))))
    values /= values.sum(axis=-1, keepdims=True)
    return AttentionPatterns(
        heads=tuple((1, head) for head in range(n_heads)),
        clean=values[0],
        corrupted=values[1],
        clean_tokens=tokens,
        corrupted_tokens=(tokens[0], " John", *tokens[2:]),
        model="made-up",
        task="IOI",
        pair_index=3,
    )


def made_up_card(head: int = 0, *, grouped: bool = False, **changes) -> HeadCard:
    """A card whose numbers a test chooses: by default a head that is moved by where it looks."""
    effects = {"output": 0.6, "pattern": 0.54, "q": 0.5, "k": 0.01, "v": 0.02, **changes.pop("effects", {})}
    significant = changes.pop("significant", ("output", "pattern", "q"))
    p_values = {part: 0.001 if part in significant else 0.4 for part in effects}
    fields = {
        "layer": 1,
        "head": head,
        "effects": tuple(
            PartEffect(part, direction, effect, effect - 0.1, effect + 0.1, p_values[part], p_values[part] < 0.05)
            for direction in ("denoising", "noising")
            for part, effect in effects.items()
        ),
        "metric": "logit difference",
        "n_pairs": 12,
        "alpha": 0.05,
        "key_value_head": 0 if grouped else None,
        "shares_with": ("L1H1", "L1H2") if grouped else (),
        "places": (PlaceEffect("S2", 0.1, 0.1), PlaceEffect("END", 0.5, 0.5)),
        "attention": (
            RoleAttention("END", "IO", 0.62, 0.08),
            RoleAttention("END", "BOS", 0.30, 0.50),
            RoleAttention("END", "rest", 0.08, 0.42),
        ),
        "previous_token": 0.01,
        "duplicate_token": 0.02,
        "induction": 0.97,
        "copying": (Copying("IO", 0.95, 0.0, 12), Copying("random tokens", 0.7, 0.1, 500)),
        "eigenvalue_score": 0.83,
        "query_key": (QueryKeyScore("END", "IO", 3.2),),
    }
    return HeadCard(**{**fields, **changes})


def made_up_cards(*cards: HeadCard, **changes) -> HeadCards:
    fields = {
        "cards": cards or (made_up_card(), made_up_card(2)),
        "model": "made-up",
        "task": "IOI",
        "metric": "logit difference",
        "unit": "logits",
        "more_is_better": True,
        "clean_metric": 3.5,
        "corrupted_metric": -3.0,
        "pair_indices": tuple(range(13)),
        "n_usable": 12,
        "varies": "which token the subject is",
        "level": 0.95,
        "alpha": 0.05,
        "correction": "Benjamini-Hochberg",
        "n_sequences": 10,
        "sequence_length": 50,
        "seed": 0,
        "top_k": 5,
        "dtype": "float32",
        "notes": ("something that a reader should know",),
        "versions": {"torch": "2.13.0"},
    }
    return HeadCards(**{**fields, **changes})
