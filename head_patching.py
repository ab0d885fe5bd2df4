"""Which attention heads cause a behaviour? The door to `HeadPatcher`.

The library is the package `actpatch`; this module re-exports what head patching needs.
"""

from __future__ import annotations

from actpatch import AttentionPatterns as AttentionPatterns
from actpatch import HeadCard as HeadCard
from actpatch import HeadCards as HeadCards
from actpatch import HeadPatcher as HeadPatcher
from actpatch import HeadPatchingResult as HeadPatchingResult
from actpatch import HeadPositionPatchingResult as HeadPositionPatchingResult
from actpatch import HeadPositionResults as HeadPositionResults
from actpatch import HeadResults as HeadResults
from actpatch import print_head_results as print_head_results
