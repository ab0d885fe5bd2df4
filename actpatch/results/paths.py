"""Results of paths: a list by path. Knows no figure."""

from __future__ import annotations

from typing import Any

from actpatch.core.sites import Patch
from actpatch.results.items import PathPatchingResult
from actpatch.results.shapes import RowResults


class PathResults(RowResults[PathPatchingResult]):
    """One `PathPatchingResult` per path, in the order that was asked for, with the whole sweep in `.sweep`."""

    def _item(self, patch: Patch, **over_pairs: Any) -> PathPatchingResult:
        return PathPatchingResult(path=patch.label, pair_indices=self.sweep.pair_indices, **over_pairs)

    @property
    def kind(self) -> str:
        return "path"
