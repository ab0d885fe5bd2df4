"""Which attention heads cause a behaviour? The door to `HeadPatcher`.

The library is the package `actpatch`; this module re-exports what head patching needs.
"""

from __future__ import annotations

from actpatch import HeadCard, HeadCards, HeadPatcher, HeadPatchingResult, HeadResults, print_head_results

__all__ = ["HeadCard", "HeadCards", "HeadPatcher", "HeadPatchingResult", "HeadResults", "print_head_results"]
