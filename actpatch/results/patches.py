"""What the sites of one patch have in common: how results file it, whatever was patched."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from actpatch.core.sites import Patch, Site

Value = TypeVar("Value", bound=Hashable)


def common(patch: Patch, of: Callable[[Site], Value]) -> Value | None:
    """What is the same for all of the patch's sites; None where it is not. A window is where its middle is."""
    values = {of(site) for site in patch.centre}
    return values.pop() if len(values) == 1 else None


def column_of(patch: Patch) -> str | None:
    """Which column of a map over positions a patch belongs to: its position's name, or its number.

    Several positions that are patched together are joined by ` + `. None for all positions, and for those that differ
    between pairs without having a name.
    """
    names = dict.fromkeys(
        str(site.position) if site.position_name is None and isinstance(site.position, int) else site.position_name
        for site in patch.centre
    )
    return None if None in names else " + ".join(map(str, names))
