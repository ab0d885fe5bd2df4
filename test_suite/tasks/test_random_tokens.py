"""Random tokens that come twice: of the vocabulary's own words, after BOS where the model has one."""

from __future__ import annotations

import pytest

from actpatch.tasks.random_tokens import bos_token, ordinary_tokens, repeated_tokens, too_short_to_repeat
from test_suite.helpers.induction import CONTEXT, TOKENS, induction_model
from test_suite.helpers.models import D_VOCAB, N_CONTEXT, bundled, fresh_hooked, needs_hooked, small_model


def test_tokens_come_twice_and_none_is_special():
    model = bundled()
    repeated = repeated_tokens(model, 4, 20, 0)
    assert repeated.tokens.shape == (4, 1 + 2 * 20) and repeated.start == 1 and repeated.length == 20
    special = set(model.tokenizer.all_special_ids)
    assert special
    for tokens in repeated.tokens.tolist():
        bos, first, second = tokens[0], tokens[1:21], tokens[21:]
        assert bos == model.tokenizer.bos_token_id and first == second
        assert len(set(first)) == 20 and not special & set(first)
    assert len({tuple(tokens) for tokens in repeated.tokens.tolist()}) == 4
    assert repeated.second.tolist() == list(range(21, 41))


def test_the_seed_says_which_tokens():
    model = small_model("bridge:gpt2")
    one, again, other = (repeated_tokens(model, 2, 8, seed).tokens.tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_a_short_context_shortens_them():
    repeated = repeated_tokens(small_model("bridge:gpt2"), 1, 50, 0)
    assert repeated.length == (N_CONTEXT - 1) // 2 and repeated.tokens.shape[1] <= N_CONTEXT


@needs_hooked
def test_a_model_without_bos_or_without_tokenizer_has_none():
    bare, built = fresh_hooked(with_bos=False), induction_model()
    assert bos_token(bare) is None and repeated_tokens(bare, 1, 5, 0).start == 0
    assert bos_token(built) is None and ordinary_tokens(built) == list(range(TOKENS))
    assert repeated_tokens(built, 1, 50, 0).length == CONTEXT // 2


@needs_hooked
def test_ids_that_the_tokenizer_does_not_have_are_left_out():
    assert max(ordinary_tokens(fresh_hooked(d_vocab=D_VOCAB + 9))) == D_VOCAB - 1


@needs_hooked
@pytest.mark.parametrize("n_ctx", [3, 4])
def test_a_model_that_reads_too_little_is_told(n_ctx):
    model = fresh_hooked(n_ctx=n_ctx)
    assert (
        too_short_to_repeat(model) == f"the model reads {n_ctx} tokens and knows 38: too few to repeat two random ones"
    )
    with pytest.raises(ValueError, match="too few to repeat two random ones"):
        repeated_tokens(model, 1, 5, 0)
    assert not too_short_to_repeat(fresh_hooked(n_ctx=5))
