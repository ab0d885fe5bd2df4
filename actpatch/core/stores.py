"""Where a long experiment keeps what it has measured, as a value. Nothing here touches a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from actpatch.core.indices import is_integer
from actpatch.core.text import described


@dataclass(frozen=True)
class Store:
    """A folder in which an experiment is stored while it runs.

    `store="runs/ioi-edges"` is `store=Store("runs/ioi-edges")`.

    Raises:
        ValueError: for what is no path, and for a size of units that is no whole number from 1 on.
    """

    folder: str | Path
    """The folder, which is made where it does not exist. It belongs to one experiment."""
    rows_per_unit: int | None = None
    """About how many rows (a row is one patch on one pair) are finished together and lost together; None for some
    seconds of compute. It counts when the folder is begun; from then on the folder's own units hold."""

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)) or not str(self.folder).strip():
            raise ValueError(f"store is {self.folder!r}, expected the path of a folder: store='runs/my-run'")
        object.__setattr__(self, "folder", Path(self.folder).expanduser())
        rows = self.rows_per_unit
        if rows is not None and (not is_integer(rows) or rows < 1):
            raise ValueError(f"rows_per_unit is {rows!r}, expected at least 1, or None for some seconds of compute")


def as_store(given: object) -> Store | None:
    """What the argument `store` stands for.

    Raises:
        ValueError: for what is neither a path nor a `Store`.
    """
    if given is None or isinstance(given, Store):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Store(Path(given) if str(given).strip() else "")
    raise ValueError(f"store is {described(given)}, expected the path of a folder, or Store(folder)")
