"""Results of heads at single positions: a list by layer, head and position, and its table. Knows no figure."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import pd
from actpatch.core.sites import Patch
from actpatch.results.items import HeadPositionPatchingResult, head_label
from actpatch.results.patches import column_of
from actpatch.results.shapes import HeadResults, OfHeads, head_of


class HeadPositionResults(OfHeads[HeadPositionPatchingResult]):
    """One `HeadPositionPatchingResult` per head and position, in order of layer, head and position.

    Positions go by the names that the task gives them, or by number; pairs in which a name stands elsewhere are aligned
    by it. The whole sweep is in `.sweep`.
    """

    def _item(self, patch: Patch, **over_pairs: Any) -> HeadPositionPatchingResult:
        layer, head = head_of(patch)
        return HeadPositionPatchingResult(
            layer=layer,
            head=head,
            position=_position_of(patch),
            patch_type=self.patch_type,
            is_key_value_head=self.counts_key_value_heads,
            **over_pairs,
        )

    @property
    def kind(self) -> str:
        return "site"

    @property
    def labels(self) -> list[str]:
        return [_label(patch, self.counts_key_value_heads) for patch in self.sweep.patches]

    @property
    def positions(self) -> list[int | str]:
        """The positions that were patched, in the order in which they were asked for."""
        return list(dict.fromkeys(_position_of(patch) for patch in self.sweep.entire.patches))

    def at(self, position: int | str) -> HeadResults:
        """The heads at one position, as results of heads. Their p-values stay corrected over all heads and positions.

        Raises:
            ValueError: where it was not patched.
        """
        numbers = [i for i, patch in enumerate(self.sweep.patches) if _position_of(patch) == position]
        if not numbers:
            patched = ", ".join(map(repr, self.positions))
            raise ValueError(f"position {position!r} was not patched: expected one of {patched}")
        return HeadResults(self.sweep.of_patches(numbers))

    @overload
    def matrix(self, position: None = None) -> pd.DataFrame: ...

    @overload
    def matrix(self, position: int | str) -> Float[np.ndarray, "layer head"]: ...

    def matrix(self, position: int | str | None = None) -> pd.DataFrame | Float[np.ndarray, "layer head"]:
        """Effects as a table, a row per layer and head and a column per position; NaN where a cell was not measured.

        Of one position they are an array by layer and head, as `HeadResults.matrix` has it.

        Raises:
            ValueError: for a position that was not patched.
        """
        if position is not None:
            return self.at(position).matrix()
        rows = [range(self.sweep.n_layers), range(self.heads_per_layer)]
        index = pd.MultiIndex.from_product(rows, names=["layer", "head"])
        positions = self.positions
        columns = pd.Index(positions, name="position", dtype=object)
        table = np.full((len(index), len(columns)), np.nan)
        for result in self:
            row = result.layer * self.heads_per_layer + result.head
            table[row, positions.index(result.position)] = result.effect
        return pd.DataFrame(table, index, columns)


def _position_of(patch: Patch) -> int | str:
    """The patch's position as it was asked for: a number, if its name is one.

    Raises:
        ValueError: for a patch of all positions, and for one that lies elsewhere on every pair and has no name.
    """
    column = column_of(patch)
    if column is None:
        raise ValueError(
            f"{patch.label} has no place in a table of heads and positions: it needs a head and a position, with a "
            "position_name where pairs have it in other places"
        )
    return int(column) if column.removeprefix("-").isdecimal() else column


def _label(patch: Patch, counts_key_value_heads: bool) -> str:
    return f"{head_label(*head_of(patch), counts_key_value_heads)} @{_position_of(patch)}"
