"""Every number of a card is found by another way: loops over patterns, whole products of weights, other sweeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens import head_detector

from activation_patching import ActivationPatcher, InductionDataset, IOIDataset, PatchingDataset
from actpatch.core.components import PATCH_TYPES
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.patchers.head_attention import repetition_scores
from actpatch.results.cards import PARTS, HeadCards
from actpatch.tasks.random_tokens import repeated_tokens
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT, SINGLE
from test_suite.helpers.induction import (
    CONTEXT,
    FORGOTTEN,
    INDUCTION_HEAD,
    PREVIOUS_TOKEN_HEAD,
    TOKENS,
    induction_model,
)
from test_suite.helpers.models import (
    HAS_HOOKED,
    fresh_hooked,
    model_parameters,
    needs_hooked,
    small_model,
    smollm2,
    token_pairs,
)
from test_suite.helpers.prompts import Words

DIRECTIONS = ("denoising", "noising")


class Ids(PatchingDataset):
    """Prompts of token ids, with their answers, and names for positions if wanted."""

    name = "ids"

    def __init__(self, pairs: list, answers: list, positions: list | None = None) -> None:
        self.pairs, self.answers, self.positions = pairs, answers, positions

    def get_clean_corrupt_pairs(self) -> list:
        return self.pairs

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return self.answers[pair_idx]

    def get_positions(self, pair_idx: int) -> dict[str, int]:
        return {} if self.positions is None else self.positions[pair_idx]


def cards_of(model: Any, dataset: Any, heads: Any, **options: Any) -> HeadCards:
    return HeadPatcher(model, show_progress=False).describe_heads(dataset, heads, **options)


def named_words(n_pairs: int = 3) -> Words:
    pairs = token_pairs(([9, 7, 9] * 2)[:n_pairs], [(3, 6), (2, 4), (5, 6)] * 2)
    names = [{"A": 4, "B": 6, "END": -1}, {"A": 3, "B": 5, "END": -1}, {"A": 6, "B": 7, "END": -1}]
    return Words(pairs, [names[i % 3] for i in range(n_pairs)])


def patterns_of(model: Any, prompt: Any, layer: int, head: int) -> np.ndarray:
    """One head's pattern in the model's own run of one prompt."""
    kept: list[torch.Tensor] = []
    tokens = model.to_tokens(prompt) if isinstance(prompt, str) else torch.as_tensor(prompt)[None]
    with torch.no_grad():
        hooks = [(block_hook(layer, "pattern"), lambda value, hook: kept.append(value.detach().clone()))]
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return kept[0][0, head].double().numpy()


# --- effects ---


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name", model_parameters("hooked:grouped", "bridge:gpt2", slow=["bridge:llama", "hooked:learned"])
)
def test_effects_are_those_of_sweeps_of_all_heads(name):
    model, dataset = small_model(name), named_words(6)
    patcher = HeadPatcher(model, show_progress=False)
    cards = patcher.describe_heads(dataset, ["L0H1", (2, 3), (-1, 2)], n_sequences=1)
    group = model.cfg.n_heads // (getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads)
    for part in PARTS:
        both = patcher.run_all_heads_experiment(dataset, part, direction="both")
        for direction in DIRECTIONS:
            matrix = getattr(both, direction).matrix()
            for card in cards:
                head = card.head // group if part in ("k", "v") else card.head
                expected = matrix[card.layer, head]
                assert card.effect(part, direction).effect == pytest.approx(expected, rel=0, abs=EXACT * 100)
    assert [card.label for card in cards] == ["L0H1", "L2H3", "L2H2"]
    assert cards[1].key_value_head == (None if group == 1 else 1)
    assert cards[1].shares_with == (() if group == 1 else ("L2H2",))


def test_places_are_effects_of_the_output_at_each_name(tiny, ioi):
    patcher = HeadPatcher(tiny, show_progress=False)
    (card,) = patcher.describe_heads(ioi, [(1, 0)], n_sequences=1)
    assert [place.position for place in card.places] == ["IO", "S1", "S1+1", "S2", "END"]
    for place in card.places:
        for direction in DIRECTIONS:
            swept = patcher.run_all_heads_experiment(ioi, position=place.position, direction=direction)
            assert getattr(place, direction) == pytest.approx(swept.matrix()[1, 0], rel=0, abs=EXACT)
    sizes = {place.position: place.size for place in card.places}
    assert card.main_query == max(sizes, key=sizes.__getitem__) == "S2"
    assert list(dict.fromkeys(each.query for each in card.attention)) == ["S2", "END"]


@pytest.mark.slow
def test_significance_is_corrected_over_all_parts_of_all_heads_asked_for(tiny):
    patcher, ioi = HeadPatcher(tiny, show_progress=False), IOIDataset(tiny, 12, corruption="flip_subject")
    one, two = (patcher.describe_heads(ioi, heads, n_sequences=1) for heads in ([(1, 0)], [(1, 0), (0, 0)]))
    many = [each for card in two for each in card.effects if each.direction == "denoising"]
    assert len(many) == 2 * len(PARTS)
    alone = one["L1H0"].effect("output")
    assert alone.significant and not np.isnan(alone.low)
    sites = [Patch((Site(block_hook(layer, PATCH_TYPES[part].name), head=0),)) for layer in (1, 0) for part in PARTS]
    expected = ActivationPatcher(tiny, show_progress=False).sweep(ioi, sites).statistics()
    assert [each.p_corrected for each in many] == pytest.approx(expected.p_corrected.tolist(), rel=1e-6)
    assert [each.significant for each in many] == expected.significant.tolist()
    assert [each.low for each in many] == pytest.approx(expected.low.tolist(), rel=1e-6, nan_ok=True)
    strict = patcher.describe_heads(ioi, [(1, 0)], n_sequences=1, alpha=1e-6)
    assert not strict[0].effect("output").significant and "not significant in either direction" in strict[0].summary


# --- attention ---


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge:llama", slow=["hooked:rotary"]))
def test_attention_by_role_is_the_mean_of_the_model_s_own_patterns(name):
    model, dataset = small_model(name), named_words()
    for card in cards_of(model, dataset, [(0, 1), (2, 3)], n_sequences=1):
        for run in (0, 1):
            patterns = [
                patterns_of(model, pair[run], card.layer, card.head) for pair in dataset.get_clean_corrupt_pairs()
            ]
            for each in card.attention:
                weights = []
                for pair, pattern in enumerate(patterns):
                    length, at = len(pattern), dataset.get_positions(pair)
                    query = at[each.query] % length
                    named = {key: there % length for key, there in at.items()} | {"BOS": 0}
                    seen = {key for key in named if all(sees(dataset, p, each.query, key) for p in range(3))}
                    if each.key == "rest":
                        others = set(range(query + 1)) - {named[key] for key in seen}
                        weights.append(sum(pattern[query, k] for k in others))
                    else:
                        weights.append(pattern[query, named[each.key]])
                found = (each.clean, each.corrupted)[run]
                assert found == pytest.approx(np.mean(weights), rel=0, abs=SINGLE)
        from_end = [each for each in card.attention if each.query == "END"]
        assert {each.key for each in from_end} == {"A", "B", "END", "BOS", "rest"}
        assert sum(each.clean for each in from_end) == pytest.approx(1)  # no two roles share a position here


def sees(dataset: Words, pair: int, query: str, key: str) -> bool:
    at, length = dataset.get_positions(pair), len(dataset.pairs.clean[pair])
    return key == "BOS" or at[key] % length <= at[query] % length


def test_without_names_attention_is_told_by_place():
    model, dataset = small_model("bridge:gpt2"), Words(token_pairs([9, 7], [(3, 6), (2, 4)]))
    (card,) = cards_of(model, dataset, ["L1H2"], n_sequences=1)
    assert {each.query for each in card.attention} == {"END"} and not card.places and not card.query_key
    patterns = [patterns_of(model, pair[0], 1, 2)[-1] for pair in dataset.get_clean_corrupt_pairs()]
    expected = {
        "BOS": np.mean([row[0] for row in patterns]),
        "previous token": np.mean([row[-2] for row in patterns]),
        "itself": np.mean([row[-1] for row in patterns]),
        "rest": np.mean([row[1:-2].sum() for row in patterns]),
    }
    assert {each.key: each.clean for each in card.attention} == pytest.approx(expected, rel=0, abs=SINGLE)


def test_names_that_some_pairs_lack_are_left_out_and_told():
    model = small_model("bridge:gpt2")
    dataset = Words(token_pairs([9, 9], [(3,), (4,)]), [{"A": 2, "B": 3}, {"A": 2}])
    cards = cards_of(model, dataset, [(0, 0)], n_sequences=1)
    assert {each.key for each in cards[0].attention} == {"A", "BOS", "rest"}
    assert any("some pairs lack them: B" in note for note in cards.notes)


def test_a_task_that_ends_elsewhere_has_its_last_token_named_so():
    dataset = Words(token_pairs([9], [(3,)]), [{"END": 5}])
    (card,) = cards_of(small_model("bridge:gpt2"), dataset, [(0, 0)], n_sequences=1)
    assert "last token" in {each.query for each in card.attention}


def test_prompts_without_bos_call_their_first_token_so():
    pairs = [([5, 6, 7, 8, 9], [5, 6, 3, 8, 9])]
    model = small_model("bridge:gpt2")
    (card,) = cards_of(model, Ids(pairs, [(4, 5)], [{"A": 2}]), [(0, 0)], n_sequences=1)
    assert {each.key for each in card.attention} == {"A", "first token", "rest"}
    (card,) = cards_of(model, Ids(pairs, [(4, 5)], [{"A": 0}]), [(0, 0)], n_sequences=1)
    assert {each.key for each in card.attention if each.query == "END"} == {"A", "rest"}


# --- random tokens ---


@pytest.mark.parametrize("with_bos", [True, False])
def test_scores_are_those_of_transformer_lens_head_detector(with_bos):
    """It divides the same sums of weights by all rows of the pattern, and counts the first token's look at BOS."""
    model = fresh_hooked(with_bos=with_bos) if HAS_HOOKED else small_model("bridge:gpt2")
    if not HAS_HOOKED and not with_bos:
        pytest.skip("a bridge prepends BOS where its tokenizer has one")
    card, repeated = cards_of(model, named_words(1), [(1, 2)], n_sequences=3)[0], repeated_tokens(model, 3, 50, 0)
    assert (repeated.start == 1) is with_bos
    assert repeated.length == (model.cfg.n_ctx - repeated.start) // 2 == card_length(model, with_bos)
    sums: dict[str, list[float]] = {}
    for tokens in repeated.tokens:
        pattern = torch.tensor(patterns_of(model, tokens, 1, 2))
        for name in ("previous_token", "duplicate_token", "induction"):
            wanted = getattr(head_detector, f"get_{name}_head_detection_pattern")(tokens[None])
            score = head_detector.compute_head_attention_similarity_score(
                pattern, wanted, exclude_bos=False, exclude_current_token=False, error_measure="mul"
            )
            first = float(pattern[1, 0]) if name == "previous_token" and with_bos else 0.0
            sums.setdefault(name, []).append(score * len(tokens) - first)
    n = repeated.length
    assert card.previous_token == pytest.approx(np.mean(sums["previous_token"]) / (2 * n - 1), rel=1e-6)
    assert card.duplicate_token == pytest.approx(np.mean(sums["duplicate_token"]) / n, rel=1e-6)
    assert card.induction == pytest.approx(np.mean(sums["induction"]) / n, rel=1e-6)


def card_length(model: Any, with_bos: bool) -> int:
    return (model.cfg.n_ctx - with_bos) // 2


def test_scores_of_patterns_that_are_what_they_look_for():
    repeated = repeated_tokens(small_model("bridge:gpt2"), 2, 5, 0)
    length = repeated.tokens.shape[1]
    previous, duplicate, induction = np.zeros((3, 2, length, length))
    for query in range(1, length):
        previous[:, query, query - 1] = 1
        if query > 5:
            duplicate[:, query, query - 5] = 1
            induction[:, query, query - 4] = 1
    assert repetition_scores(previous, repeated) == (1, 0, 0)
    assert repetition_scores(duplicate, repeated)[1:] == (1, 0)
    assert repetition_scores(induction, repeated)[1:] == (0, 1)


def test_other_seeds_draw_other_tokens_and_the_same_seed_the_same():
    model, dataset = small_model("bridge:gpt2"), named_words(1)
    one, again, other = (cards_of(model, dataset, [(1, 0)], n_sequences=2, seed=seed)[0] for seed in (3, 3, 4))
    assert one.induction == again.induction != other.induction


@needs_hooked
def test_a_model_that_reads_too_little_has_no_scores_and_says_why():
    model = fresh_hooked(n_ctx=4)
    (card,) = cards_of(model, Words(token_pairs([3], [(1,)])), [(1, 0)])
    assert np.isnan([card.previous_token, card.duplicate_token, card.induction]).all()
    assert card.absent["random tokens"].startswith("the model reads 4 tokens") and "no random tokens" in str(card)


@needs_hooked
def test_the_hand_built_heads_are_what_they_were_built_as():
    model = induction_model()
    random = np.random.default_rng(0)
    pairs, answers = [], []
    for _ in range(12):
        *tokens, other = random.permutation(np.arange(1, TOKENS))[:9].tolist()
        clean = [0, *tokens, *tokens[:4]]
        corrupted = list(clean)
        corrupted[FORGOTTEN] = other
        pairs.append((clean, corrupted))
        answers.append((tokens[4], tokens[5]))
    dataset = Ids(pairs, answers, [{"PREVIOUS": FORGOTTEN, "PREVIOUS+1": FORGOTTEN + 1, "END": -1}] * 12)
    cards = cards_of(model, dataset, [PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD, (2, 1)])
    previous, induction, idle = cards
    assert cards.sequence_length == CONTEXT // 2
    assert previous.previous_token == pytest.approx(1, abs=EXACT) and previous.induction == pytest.approx(0, abs=EXACT)
    # The first token, which has none before it, has itself in that place: its repetition looks at both alike.
    assert induction.induction == pytest.approx(1 - 0.5 / (CONTEXT // 2), abs=EXACT)
    assert "attends like a previous token head (score 1.00)" in previous.summary
    assert "attends like an induction head (score 0.96)" in induction.summary
    assert "moved by what it reads: its values alone carry 1.00" in previous.summary
    assert "From PREVIOUS+1 it attends most to PREVIOUS (1.00 on clean, 1.00 on corrupted)" in previous.summary
    assert "moved by where it looks: its pattern alone carries 1.00" in induction.summary
    assert "its keys alone 1.00" in induction.summary and "its queries" not in induction.summary
    assert "From END it attends most to PREVIOUS+1 (1.00 on clean" in induction.summary
    assert "weights copy 100% of the tokens at PREVIOUS+1" in induction.summary
    assert induction.eigenvalue_score == pytest.approx(1, abs=EXACT)
    assert "copy" not in previous.summary  # it writes where the unembedding does not read
    assert "the unembedding reads" in previous.absent["OV eigenvalues"]
    assert "Nothing is claimed of its effect" in idle.summary and "head (score" not in idle.summary


# --- weights ---


def full_circuit(model: Any, layer: int, head: int) -> torch.Tensor:
    """W_E W_V W_O W_U, vocabulary × vocabulary, with the gains and the centring of both norms written out."""

    def gain(norm: Any) -> torch.Tensor:
        return getattr(norm, "w", torch.ones(model.cfg.d_model)).double()

    def centred(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=-1, keepdim=True) if model.cfg.normalization_type in ("LN", "LNPre") else x

    attn = model.blocks[layer].attn
    read = centred(model.W_E.double()) * gain(model.blocks[layer].ln1)
    written = centred(read @ attn.W_V[head].double() @ attn.W_O[head].double()) * gain(getattr(model, "ln_final", None))
    circuit = written @ model.W_U.double()
    return (circuit - circuit.mean(dim=1, keepdim=True)).detach()


@pytest.mark.parametrize(
    "name",
    model_parameters("hooked:learned", "hooked:grouped", "hooked:attn_only", slow=["hooked:gated", "hooked:no_norm"]),
)
def test_eigenvalues_are_those_of_the_whole_circuit(name):
    model = small_model(name)
    for card in cards_of(model, named_words(1), [(1, 3), (2, 0)], n_sequences=1):
        eigenvalues = np.linalg.eigvals(full_circuit(model, card.layer, card.head).numpy())
        expected = eigenvalues.sum().real / np.abs(eigenvalues).sum()
        assert card.eigenvalue_score == pytest.approx(expected, rel=0, abs=1e-6)  # zeros of the whole have rounding
        assert -1 <= card.eigenvalue_score <= 1 and abs(card.eigenvalue_score) > 0.01


@pytest.mark.parametrize(
    "name", model_parameters("hooked:learned", "hooked:grouped", slow=["hooked:gated", "hooked:rotary"])
)
def test_copying_is_counted_by_hand(name):
    """By the model's own modules, with the constant of the norm's bias taken off, token by token."""
    model, dataset = small_model(name), named_words()
    for layer, head in ((0, 1), (2, 3)):
        (card,) = cards_of(model, dataset, [(layer, head)], n_sequences=1)
        block = model.blocks[layer]
        for role in ("A", "B", "END"):
            hits = {1: 0, -1: 0}
            for pair, (clean, _) in enumerate(dataset.get_clean_corrupt_pairs()):
                with torch.no_grad():
                    tokens = model.to_tokens(clean)
                    _, cache = model.run_with_cache(tokens)
                    at = dataset.get_positions(pair)[role]
                    stream = cache["blocks.0.hook_resid_post" if layer else "blocks.0.hook_resid_pre"][:, [at]]
                    read = block.ln1(stream) - getattr(block.ln1, "b", 0)
                    written = read @ block.attn.W_V[head] @ block.attn.W_O[head]
                    for sign in hits:
                        logits = model.unembed(model.ln_final(sign * written))[0, 0]
                        hits[sign] += int(tokens[0, at] in logits.topk(5).indices)
            (found,) = [each for each in card.copying if each.tokens == role]
            assert (found.copied, found.suppressed, found.n_tokens) == (hits[1] / 3, hits[-1] / 3, 3)


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
def test_query_key_scores_are_those_of_a_run_on_embeddings_alone(name):
    """The stream before the head's layer is replaced by embeddings, without positions; no turn of positions remains."""
    model, dataset = small_model(name), named_words()
    layer, head = 2, 1
    (card,) = cards_of(model, dataset, [(layer, head)], n_sequences=1)
    sums: dict[tuple[str, str], list[float]] = {}
    for pair, (clean, _) in enumerate(dataset.get_clean_corrupt_pairs()):
        tokens = model.to_tokens(clean)
        kept: list[torch.Tensor] = []
        hooks = [
            (block_hook(layer, "resid_pre"), lambda value, hook, t=tokens: model.W_E[t].to(value)),
            (f"blocks.{layer}.attn.hook_attn_scores", lambda value, hook, k=kept: k.append(value.detach().clone())),
        ]
        with torch.no_grad():
            model.run_with_hooks(tokens, fwd_hooks=hooks)
        at = {key: there % tokens.shape[1] for key, there in dataset.get_positions(pair).items()} | {"BOS": 0}
        for each in card.query_key:
            score = float(kept[0][0, head, at[each.query], at[each.key]])
            sums.setdefault((each.query, each.key), []).append(score)
    assert {(each.query, each.key) for each in card.query_key} >= {("END", "A"), ("END", "B"), ("END", "BOS")}
    for each in card.query_key:
        assert each.score == pytest.approx(np.mean(sums[each.query, each.key]), rel=0, abs=1e-5)


@needs_hooked
@pytest.mark.parametrize("architecture", ["learned", pytest.param("gated", marks=pytest.mark.slow)])
def test_folded_and_raw_weights_give_the_same_scores(architecture):
    raw, whole = fresh_hooked(architecture), fresh_hooked(architecture)
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    pre = {"LN": "LNPre", "RMS": "RMSPre"}[whole.cfg.normalization_type]
    processed = fresh_hooked(architecture, normalization_type=pre)
    processed.load_and_process_state_dict(state)
    dataset, heads = named_words(), [(0, 1), (2, 3)]
    raw_attn, folded_attn = raw.blocks[2].attn, processed.blocks[2].attn
    assert not torch.allclose(raw_attn.W_V, folded_attn.W_V)
    for one, other in zip(
        cards_of(raw, dataset, heads, n_sequences=2), cards_of(processed, dataset, heads, n_sequences=2)
    ):
        assert one.eigenvalue_score == pytest.approx(other.eigenvalue_score, abs=1e-6)
        assert one.copying == other.copying
        for mine, its in zip(one.query_key, other.query_key):
            assert mine.score == pytest.approx(its.score, abs=1e-5)


@pytest.mark.parametrize("name", model_parameters("bridge:gpt2", "bridge:llama", slow=["bridge:neox"]))
def test_a_bridge_gives_the_scores_of_its_other_setting(name):
    one, other = (
        cards_of(small_model(each), named_words(), [(1, 2)], n_sequences=1)[0]
        for each in (name, name.replace("bridge:", "bridge+:"))
    )
    assert one.eigenvalue_score == pytest.approx(other.eigenvalue_score, abs=1e-5)
    assert one.copying == other.copying and not one.absent and not other.absent


NOT_SAID = {
    "hooked:sandwich": {"copying": "normalized once more", "OV eigenvalues": "normalized once more"},
    "hooked:qk_norm": {"query · key": "do not make its attention scores"},
    "hooked:shortformer": {"query · key": "do not make its attention scores"},
    "hooked:soft_capped": {"query · key": "do not make its attention scores"},
    "bridge:gemma2": {"copying": "normalized once more", "OV eigenvalues": "normalized once more"},
    "bridge:olmo2": {"copying": "", "OV eigenvalues": "", "query · key": "do not make its attention scores"},
    "bridge:bloom": {
        "OV eigenvalues": "embeddings are normalized before the first block",
        "query · key": "do not make its attention scores",
    },
    "bridge:qwen3": {"query · key": "do not make its attention scores"},
    "bridge:scaled_residual": {},
    "hooked:alibi": {"query · key": "do not make its attention scores"},
}
ALIKE = ("hooked:shortformer", "hooked:soft_capped", "bridge:gemma2", "bridge:qwen3")
"""Of which others say the same for the same reason."""


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", model_parameters(*(name for name in NOT_SAID if name not in ALIKE), slow=ALIKE))
def test_what_a_model_s_weights_do_not_say_is_left_out_with_the_reason(name):
    (card,) = cards_of(small_model(name), named_words(1), [(1, 1)], n_sequences=1)
    assert set(card.absent) == set(NOT_SAID[name])
    for what, reason in NOT_SAID[name].items():
        assert reason in card.absent[what]
        assert f"no {what}" in str(card)
    assert bool(card.query_key) is ("query · key" not in card.absent)
    assert bool(card.copying) is ("copying" not in card.absent)
    assert np.isnan(card.eigenvalue_score) == ("OV eigenvalues" in card.absent)


@needs_hooked
def test_a_model_that_answers_in_another_vocabulary_has_no_copying():
    (card,) = cards_of(fresh_hooked(d_vocab_out=12), named_words(1), [(1, 1)], n_sequences=1)
    assert "another vocabulary" in card.absent["copying"] and "not square" in card.absent["OV eigenvalues"]


def test_weights_that_are_not_what_runs_are_found_out():
    """A hook of the user's own that changes values: the weights no longer say what the head does."""
    model = small_model("bridge:gpt2")
    with model.hooks(fwd_hooks=[(block_hook(1, "v"), lambda value, hook: value * 2)]):
        (card,) = cards_of(model, named_words(1), [(1, 1)], n_sequences=1)
    assert "W_V of the normalized stream is not what it reads" in card.absent["copying"]
    assert not card.copying and np.isnan(card.eigenvalue_score)


# --- arguments, and the model as found ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": []}, "heads is empty"),
        ({"heads": "L0H1"}, r"heads is 'L0H1', expected a list: \['L0H1'\]"),
        ({"heads": ["L0KV1"]}, "head 'L0KV1' is no head"),
        ({"heads": ["L99H0"]}, "layer 99 is out of range"),
        ({"heads": ["L0H1", (0, 1)]}, "names a head twice"),
        ({"n_sequences": 0}, "n_sequences is 0, expected at least 1"),
        ({"sequence_length": 1}, "sequence_length is 1, expected at least 2"),
        ({"metric": "nonsense"}, "nonsense"),
        ({"alpha": 2}, "alpha"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_is_wrong_is_told_before_any_run(options, message):
    model = small_model("bridge:gpt2")
    options = {"heads": [(0, 1)], **options}
    heads = options.pop("heads")

    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was run")

    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", run)]), pytest.raises(ValueError, match=message):
        cards_of(model, named_words(1), heads, **options)


def test_the_model_is_left_as_found():
    model = small_model("bridge:gpt2")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    cards_of(model, named_words(1), [(0, 1)], n_sequences=1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values() if hasattr(point, "fwd_hooks"))


def test_pairs_and_metric_are_those_asked_for(tiny, ioi):
    cards = cards_of(tiny, ioi, ["L1H0"], pair_indices=[1, 3], metric="probability", n_sequences=1)
    assert cards.pair_indices == (1, 3) and cards.metric == cards[0].metric != "logit difference"
    assert "2 pairs cannot tell" in cards[0].summary


# --- a real model ---


@pytest.mark.slow
def test_an_induction_head_of_smollm2_is_one_by_every_number():
    model = smollm2()
    dataset = InductionDataset(model, 6, n_words=8, n_repeated=5)
    patcher = HeadPatcher(model, show_progress=False)
    cards = patcher.describe_heads(dataset, patcher.run_all_heads_experiment(dataset).top(6), n_sequences=3)
    best = max(cards, key=lambda card: card.induction)
    assert best.induction > 0.5 and "an induction head" in best.summary and not best.absent
    looks = {each.key: each.clean for each in best.attention if each.query == "END"}
    assert looks["PREVIOUS+1"] == max(looks.values())
