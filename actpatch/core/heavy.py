"""Libraries that take long to import, each imported when something of it is first used.

Looking at saved results should not wait for what only runs and figures need. A module that uses one of these takes it
from here: `from actpatch.core.heavy import pd`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from scipy import optimize, stats
else:

    class _Later:
        """Stands for a module until something of it is used."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    go, optimize, pd, stats = map(_Later, ("plotly.graph_objects", "scipy.optimize", "pandas", "scipy.stats"))

__all__ = ["go", "optimize", "pd", "stats"]
