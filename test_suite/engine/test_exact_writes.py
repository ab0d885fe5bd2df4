"""What a patch writes stands there exactly, also where it is reached by way of a sum; downstream wins in any order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.interventions.sources import References
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from test_suite.helpers.closeness import ROUNDINGS, SINGLE, allowed
from test_suite.helpers.models import (
    fresh_hooked,
    fresh_model,
    last_position_metric,
    model_parameters,
    needs_hooked,
    small_model,
    smollm2,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.sweeps import single as singles
from test_suite.helpers.thinned import thinned
from test_suite.oracles import one_prompt
from test_suite.oracles.plain import largest_error

PAIRS = token_pairs([9, 7], [(3,), (4,)])
ADDED = ("z", "attn_out", "resid_mid", "mlp_post", "mlp_out")
"""Components whose change reaches the residual stream by addition."""


def with_a_huge_stream(name: str) -> Any:
    """The model in single precision, with a huge value in some entries of the stream, as language models have it."""
    kind, architecture = name.split(":")
    if kind == "hooked":
        model = fresh_hooked(architecture, dtype=torch.float32)
        bias = model.blocks[0].mlp.b_out
    else:
        model = fresh_model(name).float()
        bias = model.original_model.transformer.h[0].mlp.c_proj.bias
    with torch.no_grad():
        bias[:3] = 30_000
    return model


def zeroed(model: Any, sites: Sequence[Site], pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    """The metrics of runs with zeros written at each site, by the library and by hand."""
    metric, references = last_position_metric(len(pairs), model.cfg.d_vocab), References(((),), (0,) * len(pairs))
    found = engine_on(model).sweep(pairs, singles(sites), [metric], references=references)
    expected = one_prompt.patched(model, pairs, sites, metric, zero=True)[0]
    return found.patched[0], expected


@pytest.mark.parametrize(("name", "short"), thinned(model_parameters("hooked:learned", "hooked:rotary"), ADDED))
def test_zeros_are_zeros_in_a_stream_of_huge_values(name: str, short: str) -> None:
    """A residue of rounding in the place of a zero is blown up by the normalization."""
    model = with_a_huge_stream(name)
    sites = [Site(block_hook(layer, short), position=at) for layer in range(3) for at in (None, 5, -1)]
    if short == "mlp_post":
        sites += [Site(block_hook(1, short), neuron=neuron) for neuron in (0, 17)]
    found, expected = zeroed(model, sites, PAIRS)
    np.testing.assert_allclose(found, expected, atol=ROUNDINGS * SINGLE * float(np.abs(expected).max()) * 10, rtol=0)


@needs_hooked
def test_a_neuron_that_carries_the_stream_is_removed_without_a_residue() -> None:
    """What its output leaves is small, and not what rounding makes of a difference of huge numbers."""
    model = fresh_hooked("rotary", dtype=torch.float32)
    with torch.no_grad():
        model.blocks[1].mlp.W_out[7] *= 1e6
    sites = [Site(block_hook(1, "mlp_post"), neuron=7), Site(block_hook(1, "mlp_post"), neuron=7, position=-1)]
    found, expected = zeroed(model, sites, PAIRS)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("name", ["bridge:gpt2", "bridge+:gpt2"])
def test_zeros_are_zeros_on_a_bridge(name: str) -> None:
    """A stream that is zero behind a layer's attention says the same in every prompt, to the last bit."""
    model, pairs = with_a_huge_stream(name), token_pairs([7, 7, 7], [(3,), (4,), (1,)])
    read = LogitDifference(Answers(((3,),) * 3, ((9,),) * 3))
    sites = [Site(block_hook(1, "resid_mid")), Site(block_hook(2, "resid_mid"), position=-1)]
    zeros = References(((),), (0, 0, 0))
    # One prompt at a time: in a batch, rows of the same numbers are rounded otherwise with another number of threads.
    found = engine_on(model, batch_size=1).sweep(pairs, singles(sites), [read], references=zeros).patched[0]
    assert np.ptp(found, axis=1).max() == 0
    assert np.ptp(engine_on(model).baselines(pairs, [read]).clean) > 1e-4


SETS = [
    ("v", "resid_mid", "resid_pre"),
    ("resid_pre", "attn_out", "resid_mid"),
    ("z", "attn_out", "mlp_out"),
    ("resid_mid", "mlp_out", "resid_post"),
    ("mlp_post", "mlp_out", "attn_out"),
]


@pytest.mark.parametrize(
    ("name", "components"),
    thinned(
        model_parameters(
            "hooked:rotary", "bridge:gpt2", "bridge:mpt", slow=("bridge:llama", "bridge:falcon", "bridge+:gptj")
        ),
        [pytest.param(components, id=" ".join(components)) for components in SETS],
    ),
)
def test_the_order_of_a_set_and_its_neighbours_do_not_matter(name: str, components: tuple[str, ...]) -> None:
    model, metric = small_model(name), last_position_metric(2)
    known = set(model.hook_dict)
    sites = [Site(block_hook(1, short), position=5) for short in components if block_hook(1, short) in known]
    orders = [Patch(tuple(order)) for order in itertools.permutations(sites)]
    beside = [Patch((Site(block_hook(1, "resid_pre"), position=4),)), Patch((Site(block_hook(1, "z"), head=0),))]
    together = engine_on(model).sweep(PAIRS, [*beside, *orders], [metric]).patched[0][len(beside) :]
    alone = engine_on(model).sweep(PAIRS, orders[-1:], [metric]).patched[0]
    bound = allowed(model, PAIRS.clean)
    np.testing.assert_allclose(together, np.tile(together[0], (len(orders), 1)), atol=bound, rtol=0)
    np.testing.assert_allclose(together[-1:], alone, atol=bound, rtol=0)
    found = engine_on(model).sweep(PAIRS, orders[:1], [metric])
    in_order = Patch(tuple(sorted(sites, key=lambda site: components_in_order.index(site.component))))
    error, where = largest_error(model, PAIRS, [in_order], "denoising", [(metric, _Swept(found))])
    assert error <= bound, where


components_in_order = ("resid_pre", "v", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")


class _Swept:
    def __init__(self, found: Any) -> None:
        self.patched = found.patched[0]


@pytest.mark.slow
@pytest.mark.parametrize("short", [*ADDED[:2], pytest.param("resid_mid", marks=needs_hooked), *ADDED[3:]])
def test_zeros_are_zeros_in_smollm2(short: str) -> None:
    """Its stream holds values of 25,000; zeros at resid_mid were up to 13.6 logits off by way of a difference."""
    model = smollm2()
    pairs = token_pairs([9, 12], [(4,), (6,)], d_vocab=1000)
    layers = (1, 15, 21)
    sites = [Site(block_hook(layer, short), position=at) for layer in layers for at in (None, -1)]
    found, expected = zeroed(model, sites, pairs)
    bound = allowed(model, [*pairs.clean, *pairs.corrupted])
    assert np.abs(found - expected).max() <= bound, (found, expected)
