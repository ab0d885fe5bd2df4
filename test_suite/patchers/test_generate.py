"""What a patcher's `generate` takes, refuses and returns. Its numbers are tested beside the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actpatch import Continuation, Generation, Patch, Site
from test_suite.helpers.chats import chat, chat_model
from test_suite.helpers.ids import bare_model
from test_suite.helpers.models import N_CONTEXT, bundled, model_parameters, needs_hooked, small_model
from test_suite.helpers.prompts import FLIPPED, MARY
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on

STREAM = "blocks.0.hook_resid_pre"
SUBJECT = 10
"""Where the two prompts differ."""
MODELS = model_parameters("hooked:learned", "bridge:gpt2")


def test_the_patched_run_says_the_other_name(patcher: Any) -> None:
    found = patcher.generate(MARY, FLIPPED, STREAM, position=SUBJECT, max_new_tokens=4)
    assert (found.clean.tokens[0], found.corrupted.tokens[0]) == (" Mary", " John")
    assert found.patched.text == found.clean.text and found.reading == "The patched run says what the clean run says."
    back = patcher.generate(MARY, FLIPPED, STREAM, position=SUBJECT, max_new_tokens=4, direction="noising")
    assert back.patched.text == back.corrupted.text
    assert back.reading == "The patched run says what the corrupted run says."
    assert len(found.clean.ids) == len(found.clean.tokens) == len(found.clean.log_probabilities) == 4
    assert found.clean.text == "".join(found.clean.tokens) and not found.clean.has_ended
    assert found.clean_tokens[SUBJECT] == " John" and found.corrupted_tokens[SUBJECT] == " Mary"


def test_a_patch_a_site_and_a_name_are_one(patcher: Any) -> None:
    site = Site("blocks.1.attn.hook_z", head=2, position=-1)
    by_name = patcher.generate(MARY, FLIPPED, site.hook_point, head=2, position=-1, max_new_tokens=3)
    for given in (site, Patch((site,))):
        found = patcher.generate(MARY, FLIPPED, given, max_new_tokens=3)
        assert found == by_name and found.patch == Patch((site,))
    both = patcher.generate(MARY, FLIPPED, "blocks.1.hook_attn_out", position=[2, -1], max_new_tokens=2)
    assert [each.position for each in both.patch.sites] == [2, -1]


def test_it_prints_the_three_runs_side_by_side() -> None:
    said = {
        "clean": Continuation(" Mary <b>", (5, 6), (" Mary", " <b>"), (-0.1, -0.2), False),
        "corrupted": Continuation(" John", (7, 0), (" John", "</s>"), (-0.1, -0.2), True),
        "patched": Continuation(" Mary", (5, 0), (" Mary", "</s>"), (-0.1, -0.2), True),
    }
    patch = Patch((Site("blocks.9.attn.hook_z", head=6, position=3, position_name="S2"),))
    found = Generation(**said, patch=patch, direction="denoising", model="gpt2", clean_tokens=(), corrupted_tokens=())
    assert str(found).splitlines() == [
        "gpt2, L9H6 @S2 patched on the prompt, denoising (clean into corrupted)",
        "clean      ' Mary <b>' ...",
        "corrupted  ' John'",
        "patched    ' Mary'",
        "The patched run says what neither of the others says.",
    ]
    assert repr(found) == "Generation(L9H6 @S2, denoising, patched: ' Mary')"
    assert repr(found.clean) == "Continuation(' Mary <b>', 2 tokens)" and str(found.clean) == " Mary <b>"
    page = found._repr_html_()
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count("<tr>") == 4 and found.reading in page


@pytest.mark.parametrize("name", MODELS)
def test_it_stops_at_the_tokenizers_eos(name: str) -> None:
    model = chat_model(name)
    patcher = patcher_on(model)
    ids = [3, 7, 20, 5], [3, 9, 20, 5]
    endless = patcher.generate(*ids, STREAM, max_new_tokens=6, stop_at_eos=False)
    third = endless.clean.ids[2]
    if name.startswith("bridge"):
        model.original_model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = f"w{third}"
    found = patcher.generate(*ids, STREAM, max_new_tokens=6)
    cut = endless.clean.ids.index(third)
    assert found.clean.ids == endless.clean.ids[: cut + 1] and found.clean.has_ended
    assert found.clean.text.split() == list(found.clean.tokens[:-1])
    again = patcher.generate(*ids, STREAM, max_new_tokens=6, stop_at_eos=False)
    assert again.clean.ids == endless.clean.ids and not again.clean.has_ended


def test_it_stops_at_what_the_models_own_settings_name() -> None:
    model = chat_model("bridge:gpt2")
    patcher = patcher_on(model)
    ids = [3, 7, 20, 5], [3, 9, 20, 5]
    endless = patcher.generate(*ids, STREAM, max_new_tokens=6, stop_at_eos=False)
    model.original_model.generation_config.eos_token_id = [39, endless.clean.ids[1]]
    found = patcher.generate(*ids, STREAM, max_new_tokens=6)
    assert found.clean.has_ended and len(found.clean.ids) <= 2


@pytest.mark.parametrize("name", MODELS)
def test_without_a_tokenizer_it_says_ids(name: str) -> None:
    model = bare_model(name)
    found = patcher_on(model).generate([3, 7, 20], np.array([3, 9, 20]), STREAM, max_new_tokens=5)
    assert found.clean.text == " ".join(map(str, found.clean.ids)) and len(found.clean.ids) == 5
    assert not found.clean.has_ended and found.patched.ids == found.clean.ids


@pytest.mark.parametrize("name", MODELS)
def test_chats_go_on_and_roles_name_positions(name: str) -> None:
    model = chat_model(name)
    found = patcher_on(model).generate(chat("w3 w4"), chat("w3 w5"), STREAM, position="USER", max_new_tokens=3)
    assert found.patch.sites[0].position == (3,) and found.patch.label == "L0 resid_pre @USER"
    assert found.patched.ids == found.clean.ids and found.clean_tokens[3].strip() == "w4"


@pytest.mark.parametrize("name", MODELS)
def test_it_says_as_many_tokens_as_the_model_can_read(name: str) -> None:
    patcher, prompt = patcher_on(small_model(name)), [3] * (N_CONTEXT - 2)
    found = patcher.generate(prompt, prompt, STREAM, max_new_tokens=3, stop_at_eos=False)
    assert len(found.clean.ids) == 3
    message = (
        f"max_new_tokens is 4, and the model reads at most {N_CONTEXT} tokens, of which the prompt takes 22: expec"
    )
    with refused(message):
        patcher.generate(prompt, prompt, STREAM, max_new_tokens=4)


@needs_hooked
def test_a_model_that_writes_other_tokens_than_it_reads_is_refused() -> None:
    with refused("this model reads 12 tokens and writes 11 others, so it cannot read on what it says"):
        patcher_on(bare_model("hooked:toy")).generate([1, 2, 11], [3, 2, 11], STREAM, max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": "resid_pre"}, r"'resid_pre' stands for all 4 layers: name one, for instance 'blocks\.0\.hook_resid"),
        ({"patch": "nothing"}, "nothing"),
        ({"patch": None}, "patch is None, expected a Patch, a Site or the full name of a hook point, with head= and"),
        ({"patch": [STREAM]}, r"patch is \['blocks.*'\], expected a Patch, a Site or the full name"),
        ({"patch": Site(STREAM), "position": 3}, "patch is a Site, which says head and position itself: leave out the"),
        ({"patch": Patch((Site(STREAM),)), "head": 0}, "patch is a Patch, which says head and position itself"),
        ({"patch": Site(STREAM, position=15)}, "position .in pair 0, of 15 tokens. 15 is out of range"),
        ({"patch": Site(STREAM, position=(1, 2))}, "2 positions were given for 1 pairs: give one per pair"),
        ({"position": 15}, "position .in pair 0, of 15 tokens. 15 is out of range"),
        ({"position": "USER"}, "1 of 1 pairs have no position named 'USER': pair 0 has none"),
        ({"head": 0}, "blocks.0.hook_resid_pre has no head axis, so head 0 cannot be patched there"),
        ({"direction": "both"}, "direction 'both'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"max_new_tokens": 2.0}, r"max_new_tokens is 2\.0, expected at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected at least 1"),
        ({"stop_at_eos": None}, "stop_at_eos is None, expected True or False"),
        ({"corrupted_prompt": "When Mary"}, "the clean prompt has 15 tokens and the corrupted one 3"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_a_run(options: dict[str, Any], message: str) -> None:
    arguments = {"clean_prompt": MARY, "corrupted_prompt": FLIPPED, "patch": STREAM, **options}
    with refused(message):
        patcher_on(bundled()).generate(**arguments)
