"""Which edges do the job alone? The door to circuits: found, run, judged, and compared with known ones.

The library is the package `actpatch`; this module re-exports what circuits need.
"""

from __future__ import annotations

from actpatch import Circuit as Circuit
from actpatch import CircuitComparison as CircuitComparison
from actpatch import CircuitEvaluation as CircuitEvaluation
from actpatch import CircuitMeasurements as CircuitMeasurements
from actpatch import CircuitPatcher as CircuitPatcher
from actpatch import FaithfulnessCurve as FaithfulnessCurve
from actpatch import ProgramDataset as ProgramDataset
from actpatch import PublishedHeads as PublishedHeads
from actpatch import SelfTest as SelfTest
from actpatch import SensitivityCard as SensitivityCard
from actpatch import Truth as Truth
from actpatch import TruthComparison as TruthComparison
from actpatch import Variation as Variation
from actpatch import circuit_from_mib_json as circuit_from_mib_json
from actpatch import evaluate_circuit as evaluate_circuit
from actpatch import faithfulness_curve as faithfulness_curve
from actpatch import find_circuit as find_circuit
from actpatch import program_model as program_model
from actpatch import program_truths as program_truths
from actpatch import published_heads as published_heads
from actpatch import published_truths as published_truths
from actpatch import selftest as selftest
from actpatch import sensitivity_card as sensitivity_card
