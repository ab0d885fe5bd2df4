"""One batch, resumed: carried up through the layers over the recorded runs, while its rows enter where they change.

The blocks are run singly from the recorded residual stream. Nothing here decides what is run, whether that is exact, or
with what a row enters.
"""

from __future__ import annotations

import bisect
import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.components import COMPONENTS, SHORT_NAMES, component_of, in_forward_order
from actpatch.core.sites import block_hook
from actpatch.engine.entering import Rows
from actpatch.engine.plan import Stage
from actpatch.models.forwards import at_positions, outputs_at, reading, replaced_forward
from actpatch.models.runner import Read


class Resumption:
    """One batch, carried up through the layers while its rows enter.

    Args:
        rows: the rows, ordered by entry.
        vocabulary: entries of the vocabulary whose logits are read; None for all.
        narrow: whether, in the last layer, what follows the attention is computed only where it is read.
        logits_alone: whether no logits are computed but those that are read.
    """

    def __init__(
        self, rows: Rows, vocabulary: Int[Tensor, " token"] | None, *, narrow: bool, logits_alone: bool
    ) -> None:
        self.rows, self.runner, self.batch, self.chunk = rows, rows.runner, rows.batch, rows.chunk
        self.vocabulary = vocabulary
        self.orders, self.pairs = rows.orders, rows.pairs
        reads = self.chunk.reads
        self.read = None if reads is None else (reads[self.batch.pairs] - self.batch.start).to(self.runner.index_device)
        self.narrowed = self.read if narrow and self._can_narrow_last_layer() else None
        """Positions that alone are computed in the last layer after its attention; None for all."""
        self.logits_alone = logits_alone

    def run(self, call: Any) -> Float[Tensor, "row read token"]:
        last = self.runner.n_layers - 1
        resid: Tensor | None = None
        with self.rows.written(), self._narrowed_z(last):  # what is written to z is narrowed too
            for layer in range(self.orders[0][0], last + 1):
                resid = self._joined(resid, layer)
                resid = self._run_layer(resid, layer, call)
        resid = self._joined(resid, last + 1)
        resid = resid if self.read is None else at_positions(resid, self.read)
        if self.logits_alone:
            return self.runner.unembed(resid, self.vocabulary)
        return Read(None, self.vocabulary).taken(self.runner.unembed(resid, None))

    def _narrowed_z(self, last: int) -> contextlib.AbstractContextManager[None]:
        """The last layer with its heads' outputs narrowed to what is read, if that can be done."""
        if self.narrowed is None:
            return contextlib.nullcontext()
        return outputs_at(self.runner.model.hook_dict[block_hook(last, "z")], self.narrowed)

    def _entered(self, layer: int, stage: Stage) -> int:
        """How many rows have entered by then; rows are ordered by entry."""
        return bisect.bisect_right(self.orders, (layer, stage))

    def _joined(self, resid: Tensor | None, layer: int) -> Tensor:
        """The residual stream with the rows that enter before this layer, changed as their patches say."""
        begin = 0 if resid is None else len(resid)
        end = self._entered(layer, Stage.BLOCK)
        if begin == end and resid is not None:
            return resid
        entering = self.rows.before_block(layer, begin, end)
        return entering if resid is None else torch.cat([resid.to(entering.device), entering])

    def _run_layer(self, resid: Tensor, layer: int, call: Any) -> Tensor:
        entered, total = len(resid), self._entered(layer, Stage.ATTENTION)
        if not total:
            return resid
        prefix = self.runner.prefix(self.chunk.base, layer, self.pairs[:entered], self.batch.start)
        block = self.runner.model.blocks[layer]
        with contextlib.ExitStack() as stack:
            narrowed = self.narrowed if layer == self.runner.n_layers - 1 else None
            if total > entered:
                entering, outputs = self.rows.after_attention(layer, entered, total)
                if narrowed is not None:
                    outputs = at_positions(outputs, narrowed[entered:total])
                stack.enter_context(self._given_attention(block.attn, outputs, entered, total))
                resid = torch.cat([resid.to(entering.device), entering])
            if narrowed is not None and getattr(block, "mlp", None) is not None:
                stack.enter_context(reading(block.mlp, narrowed[:total]))
            return self.runner.run_block(layer, resid, prefix, call)

    def _given_attention(self, attn: Any, given: Tensor, entered: int, total: int) -> Any:
        """The attention with its outputs given for the rows after `entered`, run only for those before."""
        original = attn.forward

        def rows_before(value: Any) -> Any:
            return value[:entered] if isinstance(value, Tensor) and len(value) == total else value

        def forward(*args: Any, **kwargs: Any) -> Any:
            outputs = given
            if entered:
                run = original(*map(rows_before, args), **{name: rows_before(v) for name, v in kwargs.items()})
                outputs = torch.cat([run[0] if isinstance(run, tuple) else run, given])
            return self.runner.attention_output(outputs)

        return replaced_forward(attn, forward)

    def _can_narrow_last_layer(self) -> bool:
        """Whether in the last layer only the position that is read has to be computed beyond the values and keys.

        Of several it has to be done in full: the one position is added to the stream of all by broadcasting.
        """
        if self.read is None or self.read.shape[1] > 1 or self.batch.length - self.batch.start == 1:
            return False
        last = self.runner.n_layers - 1
        if block_hook(last, "z") not in self.runner.hook_points:
            return False
        z = in_forward_order(component_of(SHORT_NAMES["z"]))
        sites = [site for site in self.rows.hooked if site.layer == last]
        return all(site.kind in COMPONENTS and in_forward_order(site.kind) <= z for site in sites)
