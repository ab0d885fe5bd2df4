"""How a circuit's edges, positions and pairs are called, and read from what was given. Knows no circuit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, TypeAlias

from actpatch.core.edge_patches import ends_of
from actpatch.core.graph import Graph
from actpatch.core.indices import check_index, is_integer
from actpatch.core.text import shortened

CircuitPosition: TypeAlias = int | str | tuple[int | str, ...]
"""A position, a name of one or of a span of tokens, or several that count as one."""


def pair_key(clean: Sequence[str], corrupted: Sequence[str]) -> str:
    """What tells a pair from others: a digest of the tokens of its prompts."""
    return sha256(json.dumps([list(clean), list(corrupted)]).encode()).hexdigest()[:16]


def split_name(edge: Any) -> tuple[Any, CircuitPosition | None]:
    """An edge and its position, None where it has none."""
    if not isinstance(edge, str) or "@" not in edge:
        return edge, None
    name, _, at = edge.partition("@")
    return name.strip(), position_named(at)


def position_named(name: str) -> CircuitPosition:
    """The position of this name; several that count as one are joined by ` + `."""
    each = [one.strip() for one in name.split(" + ")]
    parts = [int(one) if one.removeprefix("-").isdecimal() else one for one in each]
    return parts[0] if len(parts) == 1 else tuple(parts)


def checked_position(given: Any) -> CircuitPosition:
    """A position as it was given or stored, as a plain value; ValueError for what is none."""
    if isinstance(given, (list, tuple)) and given and not any(isinstance(one, (list, tuple)) for one in given):
        return tuple(map(checked_position, given))  # type: ignore[arg-type]
    if is_integer(given):
        return int(given)
    if not isinstance(given, str) or not given:
        raise ValueError(f"{shortened(given)} is no position: expected a number, a name, or several of these")
    return given


def number_of(graph: Graph, edge: object) -> int:
    """Number of an edge among all of the graph, by its id, its label or this very number."""
    if isinstance(edge, str):
        writer, reader = ends_of(graph, edge)
        return int(graph.first_edge[reader]) + writer
    return check_index(edge, len(graph), "edge")  # type: ignore[arg-type]
