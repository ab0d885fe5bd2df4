"""A map over positions: every layer of a component patched at every position of the prompts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from actpatch.core.sites import Patch
from actpatch.results.patches import column_of
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep


class PositionResults(SweepResults):
    """Every layer of one component patched at every position: a layer × position map.

    Positions are counted in the prompts themselves, so all pairs need the same number of tokens; or they go by name,
    and pairs in which a name stands elsewhere are aligned by it.
    """

    def __init__(self, sweep: Sweep) -> None:
        for patch in sweep.patches:
            if patch.sites[0].layer is None or column_of(patch) is None:
                raise ValueError(
                    f"{patch.label} has no place in a layer × position map: it needs a layer and a position"
                )
        super().__init__(sweep)

    @property
    def kind(self) -> str:
        return "site"

    @property
    def names(self) -> list[str] | None:
        """The positions' names, one per column; None where the columns are the prompts' own positions.

        Several positions that were patched together have one column, their names joined by ` + `.
        """
        if all(site.position_name is None for patch in self.sweep.patches for site in patch.sites):
            return None
        return list(dict.fromkeys(str(column_of(patch)) for patch in self.sweep.patches))

    @property
    def columns(self) -> list[int]:
        """The column of each patch of `sweep`."""
        names, columns = self.names, [str(column_of(patch)) for patch in self.sweep.patches]
        return [int(column) if names is None else names.index(column) for column in columns]

    @property
    def components(self) -> list[str]:
        """Short names of the components that were patched."""
        return list(dict.fromkeys(patch.sites[0].component for patch in self.sweep.patches))

    @property
    def of_all_heads(self) -> list[str]:
        """Those of `components` that heads have, and that were patched in all heads together."""
        sites = [patch.sites[0] for patch in self.sweep.patches]
        return list(dict.fromkeys(site.component for site in sites if site.is_of_all_heads))

    def top(self, k: int = 10) -> list[tuple[Patch, float]]:
        """The k patches of largest |effect|, largest first, each with its effect."""
        return self.sweep.top(k)

    def matrix(self, component: str | None = None) -> Float[np.ndarray, "layer pos"]:
        """Effects of a component (the first, if not named) by layer and position; NaN where not measured.

        The columns are the positions from 0 on, or `names`.
        """
        component = self.components[0] if component is None else component
        if component not in self.components:
            raise ValueError(f"component {component!r} was not patched: expected one of {', '.join(self.components)}")
        names = self.names
        width = len(self.sweep.base_tokens[0]) if names is None else len(names)
        table = np.full((self.sweep.n_layers, width), np.nan)
        for patch, column, effect in zip(self.sweep.patches, self.columns, self.sweep.effects):
            site = patch.sites[0]
            if site.component == component:
                table[site.layer, column] = effect
        return table
