"""What is projected for a Llama 8B: its edges, the units that the library cuts, and how costs are put together."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from actpatch.core.edge_patches import edge_patches
from actpatch.models.graph import graph_of
from actpatch.runs.units import MOST_PATCHES, MOST_ROWS, MOST_UNITS, units_of
from actpatch.runs.work import work_of_recording
from benchmarks.scale import N_PAIRS, asked_of, llama, llama_graph, sized
from test_suite.helpers.models import bundled

N_EDGES = 805_681


@functools.cache
def model():
    """Without weights."""
    return llama()


def test_a_llama_8b_has_as_many_edges_as_its_sizes_say():
    graph = llama_graph()
    assert len(graph) == len(edge_patches(graph)) == N_EDGES
    before = [1 + 33 * layer for layer in range(32)]  # writers before each layer
    assert sum((32 + 8 + 8) * n + (n + 32) for n in before) + 1 + 33 * 32 == N_EDGES
    assert {*graph_of(model()).writers} == {*graph.writers} and graph_of(model()).readers == graph.readers


def test_all_of_its_edges_on_many_pairs_are_units_that_can_be_listed():
    """Cut by work alone they would be 3.1 million, of 256 rows each."""
    engine, asked = asked_of(model(), edge_patches(graph_of(model())), N_PAIRS)
    units = units_of(engine, asked)
    assert MOST_UNITS <= len(units) < 1.02 * MOST_UNITS
    assert N_EDGES * N_PAIRS / len(units) < MOST_ROWS
    assert max(np.diff(units.patches)) <= 2 * MOST_PATCHES  # edges into late layers, of little work each, too
    assert max(np.diff(units.pairs)) * max(np.diff(units.patches)) <= 2 * MOST_ROWS
    few = units_of(engine, asked.part(range(1), slice(None)))
    assert len(few) == -(-N_EDGES // 256)  # what is short keeps its units of some seconds
    assert units_of(engine, asked, 5000).blocks_of_patches == -(-N_EDGES // 5000)  # and whoever asks, those asked for


def test_the_work_of_units_is_that_of_the_plan():
    engine, asked = asked_of(bundled(), edge_patches(graph_of(bundled())), 7)
    whole, cut = (sized(engine, asked, units_of(engine, asked, rows)) for rows in (10**6, 90))
    assert len(whole.work) == 1 and len(cut.work) == len(cut.units) > 30
    recording = 7 * (cut.units.blocks_of_patches - 1) * work_of_recording(engine, asked)
    assert cut.work.sum() == pytest.approx(whole.work.sum() + recording)
    of_pairs = cut.work.reshape(cut.units.blocks_of_pairs, -1)
    assert (of_pairs == of_pairs[0]).all() and cut.n_rows == 7 * asked.n_patches
