"""Does it hold for any experiment?  Drawn at random: model, prompts, sites, direction, batch size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actpatch.core.sites import Patch, Site, head_axis
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.sources import References
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import (
    HAS_HOOKED,
    HOOKED_MODELS,
    everything_metric,
    head_count,
    last_position_metric,
    short_hook_points,
    small_model,
    swept,
    token_pairs,
)
from test_suite.oracles.plain import largest_error

FEWEST_NEURONS = 48
"""Every small model has so many in each MLP."""
QUICK_MODELS = (
    ("hooked:learned", "hooked:grouped", "hooked:parallel") if HAS_HOOKED else ("bridge:gpt2", "bridge+:llama")
)
BRIDGES = tuple(f"{kind}:{name}" for name in ("gpt2", "llama", "neox", "gemma2") for kind in ("bridge", "bridge+"))
MODELS = (*(HOOKED_MODELS if HAS_HOOKED else ()), *BRIDGES)

# The checks of shapes look at one random entry of a tuple, which Hypothesis notices and prints at length.
looks_at_random_entries = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@st.composite
def prompt_pairs(draw: st.DrawFn) -> EncodedPairs:
    """One to three pairs of mixed lengths that differ anywhere, or nowhere."""
    lengths = draw(st.lists(st.integers(2, 14), min_size=1, max_size=3))
    differences = [draw(st.sets(st.integers(0, length - 1), max_size=3)) for length in lengths]
    return token_pairs(lengths, [sorted(changed) for changed in differences], seed=draw(st.integers(0, 9)))


@st.composite
def patches_for(draw: st.DrawFn, name: str, pairs: EncodedPairs) -> list[Patch]:
    """A few patches of one to three sites each, listed in any order, overlapping or not."""
    shortest = int(pairs.lengths.min())
    position = st.none() | st.integers(-shortest, shortest - 1)
    patches = []
    for _ in range(draw(st.integers(1, 4))):
        sites = []
        for hook_point in draw(st.lists(st.sampled_from(short_hook_points(name)), min_size=1, max_size=3)):
            heads = head_count(small_model(name), hook_point)
            has_heads = head_axis(hook_point) is not None
            head = draw(st.none() | st.integers(0, heads - 1)) if has_heads else None
            has_neurons = Site(hook_point).kind.has_neurons
            neuron = draw(st.none() | st.integers(0, FEWEST_NEURONS - 1)) if has_neurons else None
            sites.append(Site(hook_point, head, draw(position), neuron))
        patches.append(Patch(tuple(sites)))
    return patches


@st.composite
def references_for(draw: st.DrawFn, pairs: EncodedPairs, patches: list[Patch]) -> References:
    """For each pair no prompt, one or several of its length: its own two or another.

    At least one where resid_mid is patched: of zeros there, a norm divides by what rounding leaves of them.
    """
    fewest = int(any(site.component == "resid_mid" for patch in patches for site in patch.sites))
    prompts = []
    for clean, corrupted in zip(pairs.clean, pairs.corrupted):
        other = token_pairs([len(clean)], [()], seed=draw(st.integers(0, 3))).clean[0]
        prompts.append(tuple(draw(st.lists(st.sampled_from([clean, corrupted, other]), min_size=fewest, max_size=3))))
    return References(tuple(prompts), tuple(range(len(pairs))))


def check_any_experiment(data: st.DataObject, models: tuple[str, ...]) -> None:
    name = data.draw(st.sampled_from(models), label="model")
    pairs = data.draw(prompt_pairs(), label="pairs")
    patches = data.draw(patches_for(name, pairs), label="patches")
    direction: Any = data.draw(st.sampled_from(["denoising", "noising"]), label="direction")
    batch_size = data.draw(st.none() | st.integers(1, 6), label="batch size")
    metric = data.draw(st.sampled_from([last_position_metric, everything_metric]), label="metric")(len(pairs))
    engine = PatchingEngine(small_model(name), batch_size=batch_size, show_progress=False)
    references = data.draw(st.none() | references_for(pairs, patches), label="references")
    found = swept(engine, pairs, patches, metric, direction, references=references)
    written = None if references is None else references.groups
    error, where = largest_error(small_model(name), pairs, patches, direction, [(metric, found)], written)
    assert error <= allowed(small_model(name), pairs.clean), f"{error:.2g} off at {where}"


@looks_at_random_entries
@settings(max_examples=20)
@given(st.data())
def test_any_experiment_agrees_with_plain_patching(data: st.DataObject) -> None:
    check_any_experiment(data, QUICK_MODELS)


@looks_at_random_entries
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25)
@given(data=st.data())
def test_many_experiments_on_every_architecture_agree_with_plain_patching(name: str, data: st.DataObject) -> None:
    check_any_experiment(data, (name,))
