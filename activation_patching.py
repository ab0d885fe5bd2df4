"""Which layers, positions and neurons cause a behaviour? The door to `ActivationPatcher`, the tasks and the results.

The library is the package `actpatch`; this module re-exports what layer patching needs.
"""

from __future__ import annotations

from actpatch import ActivationPatcher as ActivationPatcher
from actpatch import AgreementDataset as AgreementDataset
from actpatch import BothDirections as BothDirections
from actpatch import CapitalsDataset as CapitalsDataset
from actpatch import DatasetCheck as DatasetCheck
from actpatch import Direction as Direction
from actpatch import DocstringDataset as DocstringDataset
from actpatch import Finding as Finding
from actpatch import GaussianNoise as GaussianNoise
from actpatch import GenderedPronounDataset as GenderedPronounDataset
from actpatch import GreaterThanDataset as GreaterThanDataset
from actpatch import HeadPatchingResult as HeadPatchingResult
from actpatch import HeadResults as HeadResults
from actpatch import InductionDataset as InductionDataset
from actpatch import IOIDataset as IOIDataset
from actpatch import LayerResults as LayerResults
from actpatch import Mean as Mean
from actpatch import NeuronPatchingResult as NeuronPatchingResult
from actpatch import NeuronResults as NeuronResults
from actpatch import OtherRun as OtherRun
from actpatch import Patch as Patch
from actpatch import PatchingDataset as PatchingDataset
from actpatch import PatchingResult as PatchingResult
from actpatch import PositionResults as PositionResults
from actpatch import PromptPair as PromptPair
from actpatch import PromptPairs as PromptPairs
from actpatch import Resample as Resample
from actpatch import Site as Site
from actpatch import SweepResults as SweepResults
from actpatch import Zero as Zero
from actpatch import check_dataset as check_dataset
from actpatch import load_results as load_results
from actpatch import summarize_results as summarize_results
