"""Saved results are read back as what was saved, by the name of their kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from actpatch.results.both import BothDirections
from actpatch.results.cards import HeadCards
from actpatch.results.cards_files import read_cards
from actpatch.results.edges import EdgeResults
from actpatch.results.files import read_stored, read_sweeps
from actpatch.results.head_positions import HeadPositionResults
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import KINDS, HeadResults, LayerResults, NeuronResults, SweepResults

SavedResults: TypeAlias = (
    LayerResults | HeadResults | HeadPositionResults | NeuronResults | PositionResults | EdgeResults | SweepResults
)


def load_results(
    path: str | Path,
) -> SavedResults | BothDirections[Any] | HeadCards:
    """The results that `.save(path)` wrote, equal to those that were saved.

    Raises:
        OSError: where the file cannot be read.
        ValueError: where it is no such file, one of another format version, or damaged.
    """
    if read_stored(path).get("kind") == HeadCards.__name__:
        return read_cards(path)
    kind, sweeps = read_sweeps(path)
    if kind not in KINDS:
        raise ValueError(
            f"{path} holds {kind!r}, expected one of {', '.join(KINDS)}: read it with the version that wrote it, or "
            "import the class of that name first"
        )
    results = [KINDS[kind](sweep) for sweep in sweeps]
    return results[0] if len(results) == 1 else BothDirections(*results)
