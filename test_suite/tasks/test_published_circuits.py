"""Published circuits: the rules written out here give as many edges as the authors of the encodings count."""

from __future__ import annotations

import re
from typing import get_args

import numpy as np
import pytest

from actpatch.core.circuits import Circuit
from actpatch.core.truth import OTHER_RUN, PublishedHeads
from actpatch.tasks.published_circuits import (
    ATTN_ONLY_4L,
    GPT2_SMALL,
    PublishedName,
    published_heads,
    published_truths,
)

NAMES = get_args(PublishedName)
EDGE = re.compile(r"a(\d+)\.h(\d+)")


def test_counts_are_those_that_were_published():
    (direct, with_mlps), (greater_than,), (docstring,) = map(published_truths, NAMES)
    ioi = published_heads("ioi").encodings
    # ACDC's 183 have the way from the input to the logits besides.
    assert len(direct) == ioi["ACDC, edges without MLPs"] - 1 == 182
    assert len(with_mlps) == ioi["ACDC, edges"] == 963
    assert ioi["ACDC, edges and steps inside heads"] - len(with_mlps) == 26 * 3  # queries, keys and values of each head
    assert set(direct.edges) < set(with_mlps.edges)
    assert len(greater_than) == published_heads("greater_than").encodings["auto-circuit"] == 235
    assert len(docstring) == published_heads("docstring").encodings["auto-circuit"] == 24
    assert (len(GPT2_SMALL), len(ATTN_ONLY_4L)) == (32_491, 1_281)


def test_edges_without_mlps_are_those_of_the_names():
    kept = [edge for edge in published_truths("ioi")[1].edges if "m" not in edge]
    assert sorted(kept) == sorted([*published_truths("ioi")[0].edges, "input->logits"])


@pytest.mark.parametrize("name", NAMES)
def test_edges_are_of_the_published_heads_and_all_lie_on_a_way_to_the_logits(name):
    heads = published_heads(name)
    for truth in published_truths(name):
        named = {tuple(map(int, found)) for edge in truth.edges for found in EDGE.findall(edge)}
        assert named <= set(heads.heads)
        assert named == set(heads.heads) or name == "docstring"
        circuit = Circuit.of(truth.graph, truth.edges)
        # The paper has nothing that feeds what induction and S-inhibition heads are asked, so their own stay fed by k.
        assert circuit.pruned() == circuit
        assert truth.ablation == OTHER_RUN and truth.source and truth.note and not truth.hidden
        assert truth.graph.model == heads.model and truth.model_names == heads.model_names


def test_heads_by_class():
    ioi = published_heads("ioi")
    assert len(ioi) == 26 and {len(heads) for heads in ioi.classes.values()} == {2, 3, 4, 8}
    assert ioi.classes["name mover"] == ((9, 6), (9, 9), (10, 0))
    assert published_heads("greater_than").mlps == (0, 1, 2, 3, 8, 9, 10, 11)
    for name in NAMES:
        heads = published_heads(name)
        assert heads.mask().sum() == len(heads) and heads.source and heads.ablation


def test_docstring_edges_by_hand():
    circuit = Circuit.of(ATTN_ONLY_4L, published_truths("docstring")[0].edges)
    assert circuit.heads == ((0, 5), (1, 2), (1, 4), (2, 0), (3, 0), (3, 6))
    into_movers = circuit.patches.readers >= len(ATTN_ONLY_4L.readers) - 25
    assert np.sum(into_movers) == 12  # of each: one into q, two into k, two into v, and its way to the logits


def test_unknown_names_are_refused():
    for published in (published_heads, published_truths):
        with pytest.raises(ValueError, match="'sports' is unknown: expected one of ioi, greater_than, docstring"):
            published("sports")


def test_mlps_of_published_heads_are_checked():
    ioi = published_heads("ioi")
    with pytest.raises(ValueError, match="names the MLP of layer 12, expected one of 12 layers"):
        PublishedHeads("x", "gpt2", 12, 12, ioi.classes, "", "", {}, mlps=(12,))
