"""A dataset is used with the tokenizer that it was made for: others are refused, models that share it are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from activation_patching import (
    GaussianNoise,
    IOIDataset,
    Mean,
    PatchingDataset,
    PromptPair,
    PromptPairs,
    check_dataset,
)
from actpatch.patchers.heads import HeadPatcher
from actpatch.tasks import vocabulary
from actpatch.tasks.dataset import CleanPrompts
from actpatch.tasks.encoding import encode_pairs
from test_suite.helpers.ids import bare_model
from test_suite.helpers.models import D_VOCAB, HAS_HOOKED, bundled, fresh_model, model_parameters, small_model, smollm2
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on

ANOTHER = "^this dataset was made for another model's tokenizer: make it anew for this model"
SMALL = model_parameters("hooked:rotary", "bridge:llama", "bridge+:gpt2")
TWO_CLASSES = ["bridge:gpt2", *["hooked:grouped"] * HAS_HOOKED]

pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)")


class Own(PatchingDataset):
    """Written as a user would; `model` is whatever is given."""

    def __init__(self, model: Any = None, prompts: tuple[Any, Any] = (" w3 w4", " w5 w4")) -> None:
        if model is not None:
            self.model = model
        self.prompts = prompts

    @property
    def name(self) -> str:
        return "own"

    def get_clean_corrupt_pairs(self) -> list[tuple[Any, Any]]:
        return [self.prompts]

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return 6, 7


def pairs_for(model: Any) -> PromptPairs:
    return PromptPairs(model, [PromptPair(" w3 w4", " w5 w4", (" w6",), (" w7",))])


def tokenizer_of(vocabulary: dict[str, int]) -> Any:
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w1", "pad_token": "w1"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def with_tokenizer(name: str, tokenizer: Any) -> Any:
    """A new model of which nothing else is changed."""
    model = fresh_model(name)
    give(model, tokenizer)
    return model


def give(model: Any, tokenizer: Any) -> None:
    model.tokenizer = None
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = False


def swapped() -> Any:
    """`w6` and `w7` have each other's id."""
    return tokenizer_of({f"w{i}": {6: 7, 7: 6}.get(i, i) for i in range(D_VOCAB)})


# --- others are refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("made", [pairs_for, Own])
def test_a_dataset_of_another_vocabulary_is_refused_everywhere(name: str, made: Callable[[Any], Any]) -> None:
    model, other = small_model(name), with_tokenizer(TWO_CLASSES[0], swapped())
    dataset, patcher, heads = made(other), patcher_on(model), HeadPatcher(model, show_progress=False)
    for run in (
        lambda: patcher.run_patching_experiment(dataset, "attn_out"),
        lambda: patcher.run_position_experiment(dataset, positions=[1], noise=GaussianNoise(1)),
        lambda: patcher.run_patching_experiment(made(model), "attn_out", source=Mean(dataset)),
        lambda: heads.run_all_heads_experiment(CleanPrompts(dataset)),
        lambda: heads.attention_patterns(dataset, [(0, 0)]),
        lambda: check_dataset(model, dataset),
        lambda: check_dataset(model, dataset, noise=GaussianNoise(1), pair_indices=[0]),
    ):
        with refused(ANOTHER):
            run()
    patcher_on(other).run_patching_experiment(dataset, "attn_out")


@pytest.mark.slow
def test_tasks_of_the_bundled_model_are_refused_on_a_language_model_and_the_other_way_round() -> None:
    tiny, smol = bundled("TransformerBridge"), smollm2("TransformerBridge")
    for one, other in ((tiny, smol), (smol, tiny)):
        with refused(ANOTHER):
            patcher_on(other).run_patching_experiment(IOIDataset(one, 2), "attn_out")


def test_tasks_of_the_bundled_model_are_refused_on_a_small_one() -> None:
    for name in TWO_CLASSES:
        with refused(rf"{ANOTHER} \(dataset 'IOI .*'\)$"):
            patcher_on(small_model(name)).run_patching_experiment(IOIDataset(bundled(), 2), "attn_out")


@pytest.mark.parametrize("name", SMALL)
def test_another_way_of_prepending_bos_is_another_tokenizer(name: str) -> None:
    model, other = small_model(name), fresh_model(name)
    other.cfg.default_prepend_bos = not other.cfg.default_prepend_bos
    with refused(ANOTHER):
        encode_pairs(model, pairs_for(other))
    ids = Own(other, ([3, 4], [5, 4]))
    assert encode_pairs(model, ids).clean[0].tolist() == [3, 4], "BOS has no part in ids"


@pytest.mark.parametrize("name", SMALL)
def test_answers_made_before_the_tokenizer_was_changed_are_refused(name: str) -> None:
    model = fresh_model(name)
    dataset = pairs_for(model)
    encode_pairs(model, dataset)
    give(model, swapped())
    with refused(ANOTHER):
        encode_pairs(model, dataset)
    with refused(ANOTHER):
        encode_pairs(model, CleanPrompts(dataset))
    encode_pairs(model, pairs_for(model))


# --- models that share it are not -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_models_that_share_a_tokenizer_share_datasets(name: str) -> None:
    expected = encode_pairs(small_model(name), pairs_for(small_model(name)))
    for other in (fresh_model(name), *(small_model(one) for one in TWO_CLASSES)):
        found = encode_pairs(small_model(name), pairs_for(other))
        assert [ids.tolist() for ids in found.clean] == [ids.tolist() for ids in expected.clean]
        assert found.answers == expected.answers


@pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has one class alone")
def test_both_classes_of_one_checkpoint_share_datasets() -> None:
    hooked, bridge = bundled("HookedTransformer"), bundled("TransformerBridge")
    for one, other in ((hooked, bridge), (bridge, hooked)):
        pairs = [encode_pairs(model, IOIDataset(one, 3)) for model in (one, other)]
        assert (
            all((a == b).all() for a, b in zip(pairs[0].clean, pairs[1].clean)) and pairs[0].answers == pairs[1].answers
        )


def test_a_vocabulary_with_a_few_tokens_more_is_the_same() -> None:
    larger = tokenizer_of({f"w{i}": i for i in range(D_VOCAB + 3)})
    for name in TWO_CLASSES:
        model, other = small_model(name), with_tokenizer(name, larger)
        encode_pairs(model, pairs_for(other))
        encode_pairs(other, pairs_for(model))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("model", [None, "gpt2", 3, object(), transformers, np.arange(3)])
def test_what_is_called_model_without_being_one_is_not_looked_at(name: str, model: Any) -> None:
    encode_pairs(small_model(name), Own(model))
    encode_pairs(small_model(name), CleanPrompts(Own(model)))


def test_a_dataset_may_say_what_it_is_made_for() -> None:
    class Scored(Own):
        """Its `model` is a judge of its own, and has no part in the tokens."""

        @property
        def made_for(self) -> Any:
            return small_model("bridge:llama")

    model, judge = small_model("bridge:gpt2"), with_tokenizer("bridge:gpt2", swapped())
    encode_pairs(model, Scored(judge))
    with refused(ANOTHER):
        encode_pairs(judge, Scored(model))


def test_models_without_a_tokenizer_have_none_that_could_differ() -> None:
    ids = ([3, 4], [5, 4])
    for name in ("bridge:gpt2", "bridge+:llama"):
        encode_pairs(bare_model(name), Own(small_model(name), ids))
        encode_pairs(small_model(name), Own(bare_model(name), ids))


def test_two_tokenizers_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = fresh_model("bridge:gpt2"), fresh_model("bridge:llama")
    asked = []
    agree = vocabulary._agree
    monkeypatch.setattr(vocabulary, "_agree", lambda *both: asked.append(1) or agree(*both))
    dataset, own = pairs_for(other), pairs_for(model)
    for _ in range(3):
        encode_pairs(model, own)
        assert not asked
    for _ in range(3):
        encode_pairs(model, dataset)
    assert len(asked) == 1
    other.tokenizer.add_tokens(["w99"])
    encode_pairs(model, dataset)
    assert len(asked) == 2, "it has another token since"
