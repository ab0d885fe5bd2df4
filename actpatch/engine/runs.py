"""One experiment while it runs: pairs recorded in chunks, patches run in batches, each on the shortest exact way.

Nothing here measures anything: it hands out logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.direction import Direction
from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.sites import Site, head_axis
from actpatch.core.text import MOST_LISTED
from actpatch.core.warn import warn_user
from actpatch.engine.agreement import (
    Rounding,
    are_all_nan,
    check_causal,
    check_finite,
    error_of_full_runs,
    error_of_recording,
    rounding_of,
    run_alone,
    ways_to_agree,
)
from actpatch.engine.circuits import CircuitRuns
from actpatch.engine.edges import error_of_edges, error_of_writers, patches_that_enter_alike
from actpatch.engine.entering import PatchWork, Work
from actpatch.engine.estimators import estimator_of, rows_with_gradients
from actpatch.engine.exactness import (
    ONE_PROMPT,
    Exactness,
    check_writing,
    error_of_resuming,
    resumed_with_no_change,
    sentence_on,
)
from actpatch.engine.experiment import Chunk, Experiment, resid_name
from actpatch.engine.full import run_in_full
from actpatch.engine.gradients import Measure
from actpatch.engine.memory import pairs_that_fit, parts_that_fit, tokens_that_fit
from actpatch.engine.needed import names_to_record
from actpatch.engine.paths import graph_work
from actpatch.engine.plan import Batch, Route, plan, route
from actpatch.engine.recording import Recorder
from actpatch.engine.resume import Resumption
from actpatch.models.runner import is_out_of_memory

HALF = (torch.float16, torch.bfloat16)
"""Types in which rounding is told of."""
THROUGH_FOREIGN_CODE = (
    "gradients are taken through code on the model that is not its own: where it detaches what it passes on, estimates "
    "lack that part; verify them, or take it off"
)
"""What is said of estimates on a model that somebody's hooks or modules are on."""
FIRST_FEW = 2
"""Most pairs of the first chunk where edges are patched, so that a model whose graph is another is refused at once."""
CHECKED_CHUNKS = 2
"""So many chunks are looked at for edges: the first few pairs, and the first chunk of as many as fit."""


class Runs:
    """An experiment, in one direction or in both of them.

    Args:
        experiments: the experiment, once per direction; all else is the same in each.
        batch_size: most rows run together; None adapts it to the free memory.
    """

    def __init__(self, experiments: Sequence[Experiment], batch_size: int | None) -> None:
        self.experiments = experiments
        self.experiment = experiments[0]
        self.runner, self.pairs, self.patches = (
            self.experiment.runner,
            self.experiment.pairs,
            self.experiment.patches,
        )
        self._checked = [standing_for(experiment) for experiment in experiments]
        self._lengths = [*zip(self.pairs.lengths.tolist(), self.pairs.other_lengths.tolist())]
        self.batch_size = batch_size
        self.notes: list[str] = []
        """What a reader of the numbers should know of how they were run."""
        self.rounding: Rounding | None = None
        """What rounding does to one pair; None where the model computes in single precision or better."""
        self._reasons: dict[str, str] = {}
        self.exactness = self._first_try()
        self._check_blocks_are_run_singly()
        if self.experiment.estimate is not None and self.runner.foreign:
            self.notes.append(THROUGH_FOREIGN_CODE)
            warn_user(THROUGH_FOREIGN_CODE)
        self.max_tokens = tokens_that_fit(self.experiment)
        self._recorder = Recorder(experiments, self._pairs_at_once)
        self._routes: dict[tuple[Direction, bool], list[Route]] = {}
        self._ways: Iterator[tuple[Exactness, str]] | None = None
        self._is_checked = False
        self._chunks_of_edges = 0
        self._run_circuits: set[Direction] = set()
        """Directions in which circuits were seen to be run as they should be."""
        self._nan: set[int] | None = set()
        """The first pairs, as long as no logits are numbers; None from where some are."""

    def routes(self, experiment: Experiment) -> list[Route]:
        """How each patch is run in this direction; empty where all are run in full."""
        if not self.exactness.resume:
            return []
        key = experiment.direction, self.exactness.linear
        if key not in self._routes:
            self._routes[key] = [route(patch, self.exactness.linear) for patch in experiment.patches]
        return self._routes[key]

    def chunks(self) -> Iterator[tuple[Chunk, ...]]:
        """The pairs, recorded a few at a time, as seen in each direction.

        Those of like length, references and first change are recorded together, where edges are patched a few before
        all others. Each chunk is checked before it is handed out; where a shortcut does not hold it is left out from
        there on, and the chunk recorded again.

        Raises:
            ValueError: where the model is not causal, or its logits are all NaN.
            RuntimeError: where no way of recording gives the logits of the model's own run.
        """
        lengths, first, references = self._lengths, self.experiment.first_change, self.experiment.references
        group = [0] * len(self.pairs) if references is None else references.of_pair
        waiting = sorted(range(len(self.pairs)), key=lambda i: (lengths[i], group[i], int(first[i])))
        most = self._pairs_at_once()
        while waiting:
            is_first = isinstance(self.patches, GraphPatches) and not self._is_checked
            indices = self._next(waiting, min(most, FIRST_FEW) if is_first else most)
            try:
                chunks = self._recorder.record(torch.tensor(indices), *self._names(), exactness=self.exactness)
                if not self._settled(chunks):
                    continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(indices) == 1:
                    raise
                most = len(indices) // 2
                continue
            del waiting[: len(indices)]
            yield chunks

    def _next(self, waiting: Sequence[int], most: int) -> list[int]:
        """The first pairs of those waiting that may be recorded together."""
        if not self.exactness.together:
            return list(waiting[:1])
        some, lengths = waiting[:most], self._lengths
        if self.exactness.padded:
            return list(some)
        return [i for i in some if lengths[i] == lengths[some[0]]]

    def batches(self, experiment: Experiment, chunk: Chunk) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
        """Each batch with its patched logits: of what the metric reads, positions and vocabulary entries."""
        edges = experiment.patches
        if isinstance(edges, CircuitPatches):
            yield from self.circuit_batches(self.circuit_runs(experiment, chunk), edges)
            return
        if not isinstance(edges, EdgePatches):
            yield from self._batches(experiment, chunk)
            return
        for numbers in parts_that_fit(experiment, edges, len(chunk.pairs)):
            for batch, logits in self._batches(replace(experiment, patches=edges.taken(numbers)), chunk):
                yield replace(batch, patches=numbers[batch.patches]), logits

    def circuit_runs(self, experiment: Experiment, chunk: Chunk) -> CircuitRuns:
        """What runs circuits on the pairs of a chunk, checked once in each direction.

        Raises:
            RuntimeError: where circuits of this model cannot be run.
        """
        runs = CircuitRuns(experiment, chunk, self.exactness)
        if experiment.direction not in self._run_circuits:
            if reason := runs.check():
                self.exactness = self._left_out(self.exactness, self.exactness.without_resuming(), reason)
                self._tell()
                runs = CircuitRuns(experiment, chunk, self.exactness)
                if reason := runs.check():
                    raise RuntimeError(f"circuits of this model cannot be run: {reason}")
            self._run_circuits.add(experiment.direction)
        return runs

    def circuit_batches(
        self, runs: CircuitRuns, circuits: CircuitPatches
    ) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
        """Each batch of circuits with its logits."""
        return runs.batches(circuits, self.max_tokens, self.batch_size if self.exactness.together else 1)

    def scores(
        self, experiment: Experiment, chunk: Chunk, measure: Measure
    ) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "metric patch row"]]]:
        """Estimates: some pairs of the chunk at a time, and by how much each patch would move each metric of them."""
        estimator = estimator_of(experiment, chunk, measure, self.exactness, self.max_tokens)
        waiting = torch.arange(len(chunk.pairs))
        most = rows_with_gradients(experiment, chunk, self.max_tokens) if self.exactness.together else 1
        if self.batch_size is not None:
            most = min(most, self.batch_size)
        while len(waiting):
            rows = waiting[:most]
            try:
                scores = estimator.scores(rows)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(rows) == 1:
                    raise
                most = len(rows) // 2
                continue
            waiting = waiting[len(rows) :]
            yield rows, scores

    def _batches(self, experiment: Experiment, chunk: Chunk) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
        """The batches of patches of which all that they share is held at once."""
        work = self._work(experiment, chunk)
        starts = work.starts
        if not self.exactness.prefix:
            starts = torch.where(starts < chunk.lengths, 0, starts)
        most = self.batch_size if self.exactness.together else 1
        waiting = plan(work.order, starts, chunk.lengths, self.max_tokens, most)[::-1]
        calls: dict[tuple[int, int], Any] = {}
        while waiting:
            batch = waiting.pop()
            try:
                yield batch, self._run(experiment, batch, chunk, work, calls)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.max_tokens = batch.tokens // 2
                waiting = [part for b in [*waiting, batch] for part in reversed(b.parts(self.max_tokens))]

    def _run(
        self,
        experiment: Experiment,
        batch: Batch,
        chunk: Chunk,
        work: Work,
        calls: dict[tuple[int, int], Any],
    ) -> Float[Tensor, "row read token"]:
        if not self.exactness.resume:
            return run_in_full(experiment, batch, chunk, alone=self.exactness.logits)
        key = (batch.start, batch.length)
        if key not in calls:
            calls[key] = self.runner.begin(chunk.base, *key)
        how = {"narrow": self.exactness.narrow, "logits_alone": self.exactness.logits}
        logits = Resumption(work.rows(batch, calls[key]), experiment.vocabulary, **how).run(calls[key])
        if experiment.reads_all and batch.start:
            before = chunk.base.logits[batch.pairs, : batch.start]
            logits = torch.cat([before, logits], dim=1)
        return logits

    def _work(self, experiment: Experiment, chunk: Chunk) -> Work:
        patches = experiment.patches
        if not isinstance(patches, GraphPatches):
            return PatchWork(experiment, chunk, self.routes(experiment))
        while True:  # paths and senders are run as far as their receivers
            try:
                return graph_work(experiment, patches, chunk, self.exactness, self.max_tokens, self.batch_size)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.max_tokens <= chunk.base.tokens.shape[1]:
                    raise
                self.max_tokens //= 2

    def _pairs_at_once(self) -> int:
        base, source = self._names()
        recorded = [len(base), len(source)] if len(self.experiments) == 1 else [len(base | source)] * 2
        return pairs_that_fit(self.experiment, recorded)

    def _names(self) -> tuple[set[str], set[str]]:
        """Hook points that both runs are recorded at."""
        checked = self._checked[0]
        routes = self.routes(checked) if self.experiment.enters else []  # of the same hook points in each direction
        return names_to_record(self.experiment, checked.patches, routes)

    def _first_try(self) -> Exactness:
        """All shortcuts but those that this experiment, or what is on the model, leaves out from the start."""
        sites = [site for patch in self._checked[0].patches for site in patch.sites]
        exactness = Exactness()
        if not sites or any(site.layer is None for site in sites):
            exactness = exactness.without_resuming()
        if any(site.hook_point.startswith("unembed.") for site in sites):
            exactness = replace(exactness, logits=False)
        if not self.runner.unembedding_has_weights:
            reason = "the weights of its unembedding cannot be read"
            exactness = self._left_out(exactness, replace(exactness, logits=False), reason)
        has_keys = any(head_axis(site.hook_point) == 1 for site in sites)
        if has_keys and self.experiment.references is not None:  # what is written has a meaning for padding too
            exactness = replace(exactness, padded=False)
        if self.runner.positions_depend_on_the_longest and len({n for both in self._lengths for n in both}) > 1:
            reason = "its position embeddings grow with the longest prompt"
            exactness = self._left_out(exactness, replace(exactness, padded=False), reason)
        known, n_layers = set(self.runner.hook_points), self.runner.n_layers
        streams = [resid_name(layer, n_layers) for layer in range(n_layers + 1)]
        if exactness.resume and (lacking := [name for name in streams if name not in known]):
            exactness = self._left_out(exactness, exactness.without_resuming(), f"it has no {lacking[0]}")
        if foreign := self.runner.foreign:
            more = f" and {len(foreign) - MOST_LISTED} more" if len(foreign) > MOST_LISTED else ""
            where = f"{', '.join(foreign[:MOST_LISTED])}{more}"
            exactness = self._left_out(exactness, ONE_PROMPT, f"code that is not its own runs at {where}")
        return exactness

    def _settled(self, chunks: tuple[Chunk, ...]) -> bool:
        """Whether the chunk's runs are the model's own, and its patches exact, as they are run now.

        Where not, the shortcuts are others from here on, and the chunk has to be recorded again.
        """
        chunk = chunks[0]
        self._check_finite(chunk)
        if self.exactness.resume and (chunk.base.is_masked or chunk.other.is_masked):
            without = self.exactness.without_resuming()
            self.exactness = self._left_out(self.exactness, without, "they are given a mask of padding")
            return False
        if self.exactness.prefix and chunk.base.keys_values is None:
            without = replace(self.exactness, prefix=False)
            self.exactness = self._left_out(self.exactness, without, "it keeps no keys and values")
        alone = run_alone(self.experiment, chunk)
        reason = error_of_recording(self.experiment, chunk, alone)
        if reason is None and self.patches and self.experiment.resumes and not self.exactness.resume:
            reason = error_of_full_runs(self.experiment, chunk, self.exactness)
        if reason is not None:
            self._record_otherwise(reason)
            return False
        self._ways = None
        if not self._is_checked:
            check_causal(self.experiment, chunk)
        resumes = self.exactness.resume and self.experiment.resumes
        if resumes and (reason := next(filter(None, map(self._error, self._checked, chunks)), None)):
            self.exactness = self._left_out(self.exactness, self.exactness.weakened(), reason)
            return False
        self._check_edges(chunks)
        if not self._is_checked:
            self._is_checked = True
            if not self.experiment.enters:
                self._tell()
                return True
            embedding = [(Site("hook_embed"),)] if self.experiment.noise is not None else []
            routes = self.routes(self._checked[0])
            hooked = [way.hooked for way in routes] or [patch.sites for patch in self.patches]
            check_writing(self.experiment, chunk, self.exactness, [*hooked, *embedding])
            if self.runner.computes_in & {*HALF}:
                resumed = None
                if self.exactness.resume:
                    how = self.exactness, routes, alone.pair
                    resumed = resumed_with_no_change(self._checked[0], chunk, *how)
                self.rounding = rounding_of(self.experiment, chunk, alone, resumed)
        self._tell()
        return True

    def _check_edges(self, chunks: tuple[Chunk, ...]) -> None:
        """Check that edges are what their graph says; of other patches nothing is asked.

        Raises:
            RuntimeError: where this model's blocks cannot be resumed, what it writes does not add up, or its heads and
                MLPs read something else.
        """
        self._check_blocks_are_run_singly()
        if not isinstance(self.patches, GraphPatches):
            return
        if self._chunks_of_edges == CHECKED_CHUNKS:
            return
        self._chunks_of_edges += 1
        for experiment, chunk in zip(self.experiments, chunks):
            edges = experiment.patches
            assert isinstance(edges, GraphPatches)
            if not experiment.enters:
                if reason := error_of_writers(experiment.runner, edges, chunk):
                    raise RuntimeError(f"single edges of this model cannot be told apart: {reason}")
                continue
            try:
                reason = error_of_edges(experiment, edges, chunk, self.exactness.prefix, self.max_tokens)
            except Exception as failure:  # whatever an unknown architecture does when its blocks are called singly
                if is_out_of_memory(failure):
                    raise
                reason = f"its blocks are not run singly ({type(failure).__name__}: {failure})"
            if reason is not None:
                raise RuntimeError(f"single edges of this model cannot be patched: {reason}")

    def _check_blocks_are_run_singly(self) -> None:
        """Raises RuntimeError where edges are asked for, or attention that is run anew, and blocks are not."""
        if not self.experiment.resumes or self.exactness.resume:
            return
        if self.experiment.estimate is not None:
            what = "atp_star runs attention of queries and keys anew, which this model does not let"
        elif isinstance(self.patches, GraphPatches):
            what = "single edges of this model cannot be patched"
        else:
            return
        raise RuntimeError(f"{what}: its blocks are not run singly ({self._reasons['resume']})")

    def _check_finite(self, chunk: Chunk) -> None:
        if self._nan is not None:
            self._nan = self._nan | {*chunk.pairs.tolist()} if are_all_nan(chunk) else None
        if self._nan:
            check_finite(self.experiment, chunk, len(self._nan))

    def _record_otherwise(self, reason: str) -> None:
        """Take the next way in which the recorded run may be the model's own.

        Raises:
            RuntimeError: where there is none left.
        """
        self._ways = self._ways or iter([*ways_to_agree(self.exactness)])
        found = next(self._ways, None)
        if found is None:
            raise RuntimeError(
                f"this model cannot be patched: {reason}, and no other way of running it gives those of a prompt run "
                "alone. Does it draw something at random in each run?"
            )
        other, cause = found
        self.exactness = self._left_out(self.exactness, other, f"{cause}: {reason}")

    def _left_out(self, before: Exactness, after: Exactness, reason: str) -> Exactness:
        """The weaker of the two, and a note of the reason for each shortcut that it lacks."""
        self._reasons.update(dict.fromkeys({*before.held} - {*after.held}, reason))
        return after

    def _tell(self) -> None:
        """Say, once, which shortcuts were found not to hold; with a warning, where that takes much longer."""
        lost = {name: reason for name, reason in self._reasons.items() if name not in self.exactness.held}
        sentence = sentence_on(lost)
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)
            if {*lost} - {"linear", "narrow"}:
                warn_user(sentence)

    def _error(self, experiment: Experiment, chunk: Chunk) -> str | None:
        """What is not exact with the present shortcuts on the run that is patched in this direction."""
        return error_of_resuming(experiment, chunk, self.exactness, self.routes(experiment))


def standing_for(experiment: Experiment) -> Experiment:
    """The experiment with one patch for all edges that enter alike, whose ways of being run are checked; any other
    experiment as it is."""
    if not isinstance(experiment.patches, GraphPatches):
        return experiment
    patches = patches_that_enter_alike(experiment.patches)
    return replace(experiment, patches=patches, positions=[[None]] * len(patches))
