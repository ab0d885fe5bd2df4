"""AtP* (Kramár et al. 2024, "AtP*: An efficient and scalable method for localizing LLM behaviour to components").

Attribution patching misses what saturated attention hides, and what cancels on its way. AtP* mends both:

- *QK fix*: for queries, and for keys one position at a time, attention is computed anew with what is written; the
  change of the head's output takes the place of the first-order one. It is the model's own attention that is run.
- *GradDrop*: the gradient is taken once for each layer with nothing flowing back through what this layer adds to the
  stream. The score is the mean of the sizes, Σ_l |score_l| / (L - 1): the pass that drops a component's own layer gives
  0.

So scores are sizes, without a sign.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.estimates import Estimate
from actpatch.core.sites import Site, block_hook
from actpatch.engine.backward import Dropping
from actpatch.engine.estimating import ComponentEstimator, Scores, products
from actpatch.engine.exactness import too_far
from actpatch.engine.gradients import Differentiator
from actpatch.engine.readers import Readers


class StarEstimator(ComponentEstimator):
    """Estimates by AtP*.

    Args:
        differentiator: runs them.
        estimate: how they are estimated.
        most_tokens: most rows × positions of which attention is computed anew together.
    """

    def __init__(self, differentiator: Differentiator, estimate: Estimate, most_tokens: int) -> None:
        super().__init__(differentiator, estimate)
        self.most_tokens = most_tokens
        self._seen: set[int] = set()

    def scores(self, rows: Int[Tensor, " row"]) -> Scores:
        recomputed = {name for name in self.names if Site(name).component in ("q", "k")}
        plain = [name for name in self.names if name not in recomputed]
        outputs = sorted({_z_of(name) for name in recomputed})
        dropping = Dropping(self.differentiator.runner)
        layers = range(self.differentiator.runner.n_layers)
        of_outputs: list[list[dict[str, Tensor]]] = []
        tables: list[dict[str, Tensor]] = []
        changes = {name: self.differences(name, rows) for name in plain}
        running = self.differentiator.running(
            self.differentiator.at_base, rows, list(dict.fromkeys([*plain, *outputs])), dropping.rules
        )
        with running as run:
            for layer in layers if len(layers) > 1 else [None]:
                with dropping.of(layer):
                    each = [run.slopes(metric, [*plain, *outputs]) for metric in range(len(run.values))]
                of_outputs.append([{name: slopes[name] for name in outputs} for slopes in each])
                tables.append({name: products(name, change, each) for name, change in changes.items()})
        for name in recomputed:
            for table, of_drop in zip(self._recomputed(name, rows, of_outputs), tables):
                of_drop[name] = table
        total = sum(self.summed(of_drop, rows).abs() for of_drop in tables)
        assert isinstance(total, Tensor)
        sizes = total / max(1, len(layers) - 1)
        return sizes * self._towards_source(rows)[:, None].to(sizes)

    def _towards_source(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "metric row"]:
        """The sign of what copying everything does to each metric, so that effects are sizes too."""
        with torch.no_grad():
            runs = (self.chunk.base, self.chunk.other)
            base, other = (
                self.differentiator.measure(run.logits[rows], rows=rows, lengths=self.chunk.lengths_of(run))
                for run in runs
            )
        return torch.where(other >= base, 1.0, -1.0)

    def _recomputed(
        self, name: str, rows: Int[Tensor, " row"], of_outputs: list[list[dict[str, Tensor]]]
    ) -> Float[Tensor, "drop metric row pos head"]:
        """What attention, computed anew, changes of each head's output, times its gradient in each pass."""
        layer, kind = Site(name).layer, Site(name).component
        assert layer is not None
        slopes = torch.stack([torch.stack([each[_z_of(name)] for each in of_drop]) for of_drop in of_outputs])
        readers = self._readers()
        self._check(readers, layer, rows)
        base = self.chunk.base.activations
        there, z = base[name], base[_z_of(name)][rows]
        written = self.chunk.source[name][rows].to(there)
        if kind == "q":
            change = readers.heads_with(layer, "q", rows, written) - z
            return torch.einsum("nmbphd,bphd->nmbph", slopes, change.to(slopes))
        n_heads = there.shape[2]
        found = slopes.new_zeros(*slopes.shape[:4], n_heads)
        for position in range(z.shape[1]):
            keys = there[rows].clone()
            keys[:, position] = written[:, position]
            change = readers.heads_with(layer, "k", rows, keys) - z
            of_heads = torch.einsum("nmbphd,bphd->nmbh", slopes, change.to(slopes))
            found[..., position, :] = of_heads.unflatten(-1, (n_heads, -1)).sum(dim=-1)
        return found

    def _readers(self) -> Readers:
        runner, length = self.differentiator.runner, self.chunk.base.tokens.shape[1]
        return Readers(runner, self.chunk, 0, length, runner.begin(self.chunk.base, 0, length), self.most_tokens)

    def _check(self, readers: Readers, layer: int, rows: Int[Tensor, " row"]) -> None:
        """Raise a RuntimeError where attention that is run by itself is not that of the recorded run."""
        if layer in self._seen:
            return
        self._seen.add(layer)
        name = block_hook(layer, "q")
        base = self.chunk.base.activations
        found = readers.heads_with(layer, "q", rows[:1], base[name][rows[:1]])
        if reason := too_far("", found, base[_z_of(name)][rows[:1]]):
            raise RuntimeError(f"atp_star cannot recompute the attention of layer {layer}: {reason.strip()}")


def _z_of(name: str) -> str:
    """The output of the heads whose queries or keys stand at a hook point."""
    layer = Site(name).layer
    assert layer is not None
    return block_hook(layer, "z")
