"""Which model? The door to `load_model`: the bundled model, TransformerLens' names, local checkpoints.

The library is the package `actpatch`.
"""

from __future__ import annotations

from actpatch import can_be_loaded, load_model

__all__ = ["can_be_loaded", "load_model"]
