"""Which component feeds which? The door to `PathPatcher`: edges and paths between components, exactly.

The library is the package `actpatch`; this module re-exports what path patching needs.
"""

from __future__ import annotations

from actpatch import EdgePatchingResult as EdgePatchingResult
from actpatch import EdgeResults as EdgeResults
from actpatch import Graph as Graph
from actpatch import PathPatcher as PathPatcher
from actpatch import PathPatchingResult as PathPatchingResult
from actpatch import PathResults as PathResults
from actpatch import from_mib_json as from_mib_json
from actpatch import graph_of as graph_of
from actpatch import to_mib_json as to_mib_json
