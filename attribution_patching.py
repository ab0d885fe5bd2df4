"""What would patches do, by their gradients? The door to `AttributionPatcher`: a screen whose picks are then run.

The library is the package `actpatch`; this module re-exports what attribution patching needs.
"""

from __future__ import annotations

from actpatch import AttributionPatcher as AttributionPatcher
from actpatch import Estimate as Estimate
from actpatch import Stability as Stability
from actpatch import Verification as Verification
from actpatch import ensemble as ensemble
from actpatch import stability_of as stability_of
