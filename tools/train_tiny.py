"""Train and measure the bundled tiny model: a GPT-2-shaped transformer that speaks the words of `tasks.words`.

    python -m tools.train_tiny               train, save into the package, print the tables
    python -m tools.train_tiny --evaluate    print the tables for the saved model

Every task is a function that draws one `Case`: a prompt with its right and wrong answers, its corrupted variants and
the text that teaches it. Training and measuring call the same functions and differ in what these may draw: a hash
decides which name pairs, scenes and combinations of words are held out, so no measured prompt was ever trained on.
"""

from __future__ import annotations

import argparse
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from actpatch.models.load import TINY, load_model
from actpatch.tasks import words as material
from actpatch.tasks.words import fill

BOS, UNKNOWN = "<|endoftext|>", "<unk>"
N_LAYERS, N_HEADS, D_MODEL, N_POSITIONS = 4, 4, 128, 96
FREQUENCIES = torch.linspace(0.03, 3.1, D_MODEL // 2)
"""Radians per position in which the positional embedding starts."""

TOKENS_PER_STEP = 1536
LIST_STEPS = 250
"""The first steps show word lists alone: with the other tasks beside it, induction does not appear for long."""
CONTEXT_WEIGHT = 0.03
"""Loss weight of tokens that are mostly chance (which name, which word); answers weigh 1."""

HELD_OUT_IOI_TEMPLATES = (material.IOI_OPEN_TEMPLATES[2], material.IOI_OPEN_TEMPLATES[3])
"""Sentences that are never trained on, though each of their words is known from the others."""
PRONOUN_TAILS = (" was tired.", " was sick.", " had to work.", " saw the dog.", " wanted to sleep.")
VERB_TAILS = (" old.", " new.", " red.", " very small.", " in the way.")
ANIMAL_TAILS = (" was happy.", " was tired.", " looked up.", " saw the moon.")

T = TypeVar("T")


# --- Cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One prompt of one task, with all that training on it and measuring it needs."""

    prompt: str
    right: tuple[str, ...]
    """The answers that count as right at the end of the prompt."""
    wrong: tuple[str, ...]
    """The answers that the metric subtracts; most corrupted prompts should prefer them."""
    corrupted: dict[str, str]
    """Name of the corruption → corrupted prompt."""
    lesson: tuple[str, str, str]
    """(context, answer, tail): the training text, in which the answer weighs most."""


def is_held_out(*words: str, one_in: int) -> bool:
    """A fixed share of all combinations, the same on every machine and in every run."""
    return zlib.crc32("|".join(words).encode()) % one_in == 0


def pick(choose: Callable[[], T], *others: str, test: bool, one_in: int = 5) -> T:
    """What `choose` draws, drawn again until it is held out (to measure) or is not (to train)."""
    while True:
        chosen = choose()
        words = (chosen,) if isinstance(chosen, str) else tuple(chosen)  # type: ignore[arg-type]
        if is_held_out(*words, *others, one_in=one_in) == test:
            return chosen


def ioi(rng: random.Random, test: bool, template: str | None = None) -> Case:
    """Two people, one gives: the other receives.

    Few name pairs are held out, because a model may otherwise learn which names never answer each other.
    """
    trained = [t for t in material.IOI_TEMPLATES if t not in HELD_OUT_IOI_TEMPLATES]
    template = template or rng.choice(trained)
    pair = pick(lambda: sorted(rng.sample(material.NAMES, 2)), test=test, one_in=20)
    a, b = rng.sample(pair, 2)
    giver, receiver = rng.sample(pair, 2)
    strangers = rng.sample([name for name in material.NAMES if name not in pair], 3)
    place, thing = pick(lambda: (rng.choice(material.PLACES), rng.choice(material.OBJECTS)), template, test=test)

    def sentence(first: str, second: str, subject: str) -> str:
        return fill(template, A=first, B=second, S2=subject, PLACE=place, OBJECT=thing)

    return Case(
        prompt=sentence(a, b, giver),
        right=(" " + receiver,),
        wrong=(" " + giver,),
        corrupted={
            "swapped throughout": sentence(b, a, receiver),
            "subject flip": sentence(a, b, receiver),
            "name order only": sentence(b, a, giver),
            "unrelated names": sentence(*strangers),
        },
        lesson=(sentence(a, b, giver), " " + receiver, "."),
    )


def third_giver(rng: random.Random, test: bool) -> Case:
    """Somebody else gives, so either may receive: what keeps the unrelated-names corruption in distribution.

    The three names are any, held-out pairs among them, because which of them receives is chance.
    """
    prompt = ioi(rng, test).corrupted["unrelated names"]
    names = [word for word in re.findall(r"\w+", prompt) if word in material.NAMES]
    return Case(prompt, (), (), {}, lesson=(prompt, " " + rng.choice(names[:2]), "."))


def induction(rng: random.Random, test: bool, shortest: int = 10) -> Case:
    """Random words, then the same words again."""
    pool = ALL_WORDS if rng.random() < 0.2 else material.INDUCTION_WORDS
    length = min(rng.randint(shortest, 20), rng.randint(shortest, 20))
    start = pick(lambda: rng.sample(pool, 2), test=test)
    *rest, other = rng.sample([word for word in pool if word not in start], length - 1)
    words = start + rest
    cut = rng.randint(1, length - 1)
    changed = [*words[:cut], other, *words[cut + 1 :]]
    return Case(
        prompt=" ".join(words + words[:cut]),
        right=(" " + words[cut],),
        wrong=(" " + other,),
        corrupted={"another word": " ".join(changed + words[:cut])},
        lesson=(" ".join([*words, words[0]]), "".join(" " + word for word in words[1:]), "."),
    )


def greater_than(rng: random.Random, test: bool) -> Case:
    """An end year later than the start year, and seldom much later: a war of fifty years is rare.

    The year 01 stands in every corrupted prompt and is never measured, so now and then it is trained on.
    """
    event, start = pick(
        lambda: (rng.choice(material.GREATER_THAN_EVENTS), rng.choice(material.GREATER_THAN_STARTS)), test=test
    )
    if not test and rng.random() < 0.05:
        start = "01"
    end = min(99, int(start) + rng.randint(1, 20))
    prompt = fill(material.GREATER_THAN_TEMPLATE, EVENT=event, START=start)
    return Case(
        prompt=prompt,
        right=tuple(f"{year:02d}" for year in range(int(start) + 1, 100)),
        wrong=tuple(f"{year:02d}" for year in range(int(start) + 1)),
        corrupted={"start 01": fill(material.GREATER_THAN_TEMPLATE, EVENT=event, START="01")},
        lesson=(prompt, f"{end:02d}", "."),
    )


def pronoun(rng: random.Random, test: bool) -> Case:
    """He or she, by the name."""
    kinds = [(material.MALE_NAMES, material.MALE_PRONOUN), (material.FEMALE_NAMES, material.FEMALE_PRONOUN)]
    (names, right), (other_names, wrong) = rng.sample(kinds, 2)
    template, name = pick(lambda: (rng.choice(material.PRONOUN_TEMPLATES), rng.choice(names)), test=test)
    prompt = fill(template, NAME=name)
    corrupted = {"other gender": fill(template, NAME=rng.choice(other_names))}
    return Case(prompt, (right,), (wrong,), corrupted, lesson=(prompt, right, rng.choice(PRONOUN_TAILS)))


def agreement(rng: random.Random, test: bool) -> Case:
    """Is or are, by the subject and not by the nearer noun."""
    subject, distractor = pick(lambda: (rng.choice(SUBJECTS), rng.choice(DISTRACTORS)), test=test)
    forms = list(zip(subject.split("/"), (material.SINGULAR_VERB, material.PLURAL_VERB)))
    (noun, right), (other_noun, wrong) = rng.sample(forms, 2)
    sentence = partial(
        fill,
        material.AGREEMENT_TEMPLATE,
        PREPOSITION=rng.choice(material.PREPOSITIONS),
        DISTRACTOR=rng.choice(distractor.split("/")),
    )
    corrupted = {"other number": sentence(SUBJECT=other_noun)}
    lesson = (sentence(SUBJECT=noun), right, rng.choice(VERB_TAILS))
    return Case(sentence(SUBJECT=noun), (right,), (wrong,), corrupted, lesson)


def capital(rng: random.Random, test: bool) -> Case:
    """Facts: what is held out is the sentence that asks for one, not the fact."""
    template, country = pick(
        lambda: (rng.choice(material.CAPITAL_TEMPLATES), rng.choice(list(material.CAPITALS))), test=test
    )
    other = rng.choice([name for name in material.CAPITALS if name != country])
    prompt, right = fill(template, COUNTRY=country), " " + material.CAPITALS[country]
    corrupted = {"other country": fill(template, COUNTRY=other)}
    return Case(prompt, (right,), (" " + material.CAPITALS[other],), corrupted, lesson=(prompt, right, "."))


def docstring(rng: random.Random, test: bool) -> Case:
    """The next documented argument is the next one of the signature."""
    b, c = pick(lambda: rng.sample(material.ARGUMENT_NAMES, 2), test=test)
    a, other = rng.sample([name for name in material.ARGUMENT_NAMES if name not in (b, c)], 2)
    about = {f"D{i + 1}": word for i, word in enumerate(rng.sample(material.DESCRIPTION_WORDS, 6))}
    code = partial(fill, material.DOCSTRING_TEMPLATE, FUNCTION=rng.choice(material.FUNCTION_NAMES), A=a, B=b, **about)
    corrupted = {"other argument": code(C=other)}
    return Case(code(C=c), (" " + c,), (" " + other,), corrupted, lesson=(code(C=c), " " + c, ":"))


def animal(rng: random.Random, test: bool) -> Case:
    """A sentence about an animal makes that animal likelier in what follows."""
    one, seat = pick(lambda: (rng.choice(material.ANIMALS), rng.choice(material.SEATS)), test=test)
    other = rng.choice([name for name in material.ANIMALS if name != one])
    sentence = partial(fill, material.ANIMAL_TEMPLATE, SEAT=seat)
    return Case(
        prompt=sentence(ANIMAL=one),
        right=(" " + one,),
        wrong=(" " + other,),
        corrupted={"other animal": sentence(ANIMAL=other)},
        lesson=(sentence(ANIMAL=one) + ". The", " " + one, rng.choice(ANIMAL_TAILS)),
    )


Task = Callable[[random.Random, bool], Case]
WORD_LISTS: Task = partial(induction, shortest=4)
MIXTURE: dict[Task, float] = {
    ioi: 0.44,
    third_giver: 0.02,
    WORD_LISTS: 0.16,
    greater_than: 0.12,
    pronoun: 0.07,
    agreement: 0.06,
    capital: 0.05,
    docstring: 0.05,
    animal: 0.03,
}
"""How often each task is drawn."""
MEASURED: tuple[Task, ...] = (ioi, induction, greater_than, pronoun, agreement, capital, docstring, animal)

SUBJECTS = ["/".join(forms) for forms in material.SUBJECT_NOUNS]
DISTRACTORS = ["/".join(forms) for forms in material.DISTRACTOR_NOUNS]


# --- Tokenizer -------------------------------------------------------------------------------------------------------

PIECES = r' ?\p{L}+| ?\d{1,2}|\n+ *| ?"""| ?[^\s\p{L}\d]|\s'
"""A token is a word, two digits or a mark with the space before it, or a line break with its indentation."""


def _strings(value: object) -> Iterator[str]:
    """All strings inside nested tuples and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(tuple(value.items()))
    elif isinstance(value, tuple):
        for item in value:
            yield from _strings(item)


def _all_words() -> list[str]:
    """Every word of the material, slots left out: what the vocabulary is made of."""
    constants = [value for name, value in vars(material).items() if name.isupper()]
    texts = _strings((*constants, PRONOUN_TAILS, VERB_TAILS, ANIMAL_TAILS))
    return sorted({word for text in texts for word in re.findall("[A-Za-z]+", re.sub(r"\{\w+\}", "", text))})


ALL_WORDS = _all_words()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, the space before it included, as in GPT-2; an unknown word keeps its place in the text."""
    words = ALL_WORDS + [f"{number:02d}" for number in range(100)]
    marks = ["\n", "\n    ", "\n\n    ", '"""', ".", ",", ":", "(", ")"]
    tokens = [BOS, UNKNOWN, *marks, *words, *(" " + word for word in words)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        unk_token=UNKNOWN,
        model_max_length=N_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """GPT-2's architecture, small, and started where the circuits of these tasks are near.

    The MLP keeps GPT-2's width of four times the residual stream and `n_ctx` is written out, because
    `HookedTransformer` takes both from there.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=N_POSITIONS,
        n_ctx=N_POSITIONS,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        _start_embeddings(model, tokenizer)
        _start_copying(model)
        _start_previous_token_head(model)
    return model


def _start_embeddings(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """A word starts near itself with a space before it; one position earlier is the same rotation everywhere."""
    tokens = model.transformer.wte.weight
    tokens.normal_(std=0.1)
    bare, spaced = (tokenizer.convert_tokens_to_ids([space + w for w in ALL_WORDS]) for space in ("", " "))
    tokens[bare] = 0.6 * tokens[bare] + 0.8 * tokens[spaced]
    angles = torch.arange(N_POSITIONS)[:, None] * FREQUENCIES
    model.transformer.wpe.weight.copy_(0.1 * torch.cat((angles.sin(), angles.cos()), dim=1))


def _start_copying(model: GPT2LMHeadModel) -> None:
    """Every head starts by writing a little of what it attends to (W_O ∝ W_Vᵀ), and the MLPs by writing nothing."""
    for block in model.transformer.h:
        values = block.attn.c_attn.weight[:, 2 * D_MODEL :]
        block.attn.c_proj.weight.copy_(0.15 * values.T)
        block.mlp.c_proj.weight.zero_()


def _start_previous_token_head(model: GPT2LMHeadModel) -> None:
    """The last head of layer 0 starts by attending to the previous token.

    Key and query read a quarter of the sines and cosines, the query's turned back by one position. Induction is built
    on such a head, and without one to start from it is not learned in the few minutes that training takes.
    """
    weight = model.transformer.h[0].attn.c_attn.weight
    query, key = weight[:, :D_MODEL], weight[:, D_MODEL : 2 * D_MODEL]
    half = D_MODEL // N_HEADS // 2
    sine = torch.arange(0, len(FREQUENCIES), len(FREQUENCIES) // half)
    cosine = sine + len(FREQUENCIES)
    to_sine = torch.arange(D_MODEL - 2 * half, D_MODEL - half)
    to_cosine = to_sine + half
    turn, scale = FREQUENCIES[sine], 1.3
    query[:, to_sine[0] :], key[:, to_sine[0] :] = 0.0, 0.0
    key[sine, to_sine] = key[cosine, to_cosine] = scale
    query[sine, to_sine] = query[cosine, to_cosine] = scale * turn.cos()
    query[cosine, to_sine], query[sine, to_cosine] = -scale * turn.sin(), scale * turn.sin()


# --- Training --------------------------------------------------------------------------------------------------------


def document(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, length: int, mixture: dict[Task, float]
) -> tuple[list[int], list[float]]:
    """Token ids and loss weights: BOS, then cases one after the other, cut at `length`.

    The first case stands right after BOS, which is how the model is used; the later ones make sure that nothing
    depends on the absolute position.
    """
    ids, weights = [tokenizer.bos_token_id], [0.0]
    while len(ids) < length:
        task = rng.choices(list(mixture), list(mixture.values()))[0]
        context, answer, tail = task(rng, False).lesson
        gap = "" if len(ids) == 1 else "\n" if task is docstring or rng.random() < 0.2 else " "
        prefix = rng.choice(material.IOI_PREFIXES) if task in (ioi, third_giver) and rng.random() < 0.15 else ""
        for text, weight in ((gap + prefix + context, CONTEXT_WEIGHT), (answer, 1.0), (tail, CONTEXT_WEIGHT)):
            tokens = tokenizer.backend_tokenizer.encode(text).ids
            ids += tokens
            weights += [weight] * len(tokens)
    return ids[:length], weights[:length]


def batch(rng: random.Random, tokenizer: PreTrainedTokenizerFast, step: int) -> tuple[Tensor, Tensor]:
    """Token ids and loss weights; short documents teach faster, long ones train every position."""
    lists_only = step < LIST_STEPS
    length = 32 if lists_only else rng.choice((32, 32, 48, N_POSITIONS))
    mixture = {WORD_LISTS: 1.0} if lists_only else MIXTURE
    documents = [document(rng, tokenizer, length, mixture) for _ in range(TOKENS_PER_STEP // length)]
    ids, weights = zip(*documents)
    return torch.tensor(ids), torch.tensor(weights)


def train(tokenizer: PreTrainedTokenizerFast, *, seed: int, steps: int, lr: float, decay: float) -> GPT2LMHeadModel:
    """AdamW with a short warm-up, then a straight line to a twentieth of the learning rate."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 50, 1.0, 1.05 - i / steps))
    begun = time.perf_counter()
    for step in range(steps):
        ids, weights = batch(rng, tokenizer, step)
        logits = model(ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1])).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        weights = weights[:, 1:]
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49 or step == 0:
            answers, seconds = losses[weights == 1].mean().item(), time.perf_counter() - begun
            print(f"step {step + 1:5d}  loss {loss.item():.5f}  on answers {answers:.5f}  {seconds:.0f} s", flush=True)
    return model.eval()


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


# --- Measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def last_logits(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    """The logits ["prompt vocabulary"] after BOS and each prompt. Padding on the right needs no mask."""
    rows = [[tokenizer.bos_token_id, *ids] for ids in tokenizer(prompts)["input_ids"]]
    assert not any(tokenizer.unk_token_id in row for row in rows), "the vocabulary lacks a word of the material"
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    logits = [model(part, attention_mask=torch.ones_like(part)).logits for part in padded.split(64)]
    return torch.cat(logits)[torch.arange(len(rows)), [len(row) - 1 for row in rows]]


def metric(logits: Tensor, right: list[int], wrong: list[int]) -> float:
    """Logit difference of one answer and another; for sets of answers the difference of their probabilities."""
    if len(right) == len(wrong) == 1:
        return (logits[right[0]] - logits[wrong[0]]).item()
    probabilities = logits.softmax(-1)
    return (probabilities[right].sum() - probabilities[wrong].sum()).item()


def held_out_cases(task: Task, number: int, rng: random.Random) -> list[Case]:
    """Cases that were not trained on; of `ioi` at least `number`, equally many of each template."""
    if task is not ioi:
        return [task(rng, True) for _ in range(number)]
    each = -(-number // len(material.IOI_TEMPLATES))
    return [ioi(rng, True, template) for template in material.IOI_TEMPLATES for _ in range(each)]


def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, cases: list[Case]) -> dict[str, Any]:
    """How the model does on some cases of one task.

    Returns:
        `top`, the share of prompts whose likeliest next token is right; `clean`, the metric ["case"] of the prompts;
        and `corrupted`, for the name of each corruption the metric ["case"] of its prompts.
    """
    right = [tokenizer.convert_tokens_to_ids(list(case.right)) for case in cases]
    wrong = [tokenizer.convert_tokens_to_ids(list(case.wrong)) for case in cases]

    def metrics(logits: Tensor) -> Tensor:
        return torch.tensor([metric(*row) for row in zip(logits, right, wrong)])

    logits = last_logits(model, tokenizer, [case.prompt for case in cases])
    return {
        "top": sum(best.item() in answers for best, answers in zip(logits.argmax(-1), right)) / len(cases),
        "clean": metrics(logits),
        "corrupted": {
            name: metrics(last_logits(model, tokenizer, [case.corrupted[name] for case in cases]))
            for name in cases[0].corrupted
        },
    }


def print_task(name: str, cases: list[Case], model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """How often the best token is right and the metric positive; how far each corruption lowers the metric."""
    measured = measure(model, tokenizer, cases)
    clean = measured["clean"]
    positive = (clean > 0).float().mean()
    print(f"{name:22s} {len(cases):7d} {measured['top']:7.1%} {positive:9.1%} {clean.mean():8.2f}")
    for corruption, corrupted in measured["corrupted"].items():
        below, gap = (corrupted < clean).float().mean(), (clean - corrupted).min()
        positive = (corrupted > 0).float().mean()
        print(f"{'  ' + corruption:39s} {positive:9.1%} {corrupted.mean():8.2f} {below:9.1%} {gap:8.2f}")


def print_tasks(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, samples: int) -> None:
    rng = random.Random(1)
    print(f"{'held-out prompts':22s}  number   top-1  positive     mean     below      gap")
    for task in MEASURED:
        print_task(task.__name__, held_out_cases(task, samples, rng), model, tokenizer)  # type: ignore[attr-defined]
        if task is ioi:
            unseen = [ioi(rng, True, template) for template in HELD_OUT_IOI_TEMPLATES for _ in range(samples // 2)]
            print_task("ioi, unseen templates", unseen, model, tokenizer)
    ids = [tokenizer.convert_tokens_to_ids([word]) for word in (" cat", " dog")]
    prompts = ["The cat sat on the mat", "The dog sat on the mat"]
    cat, dog = (metric(logits, *ids) for logits in last_logits(model, tokenizer, prompts))
    print(f"cat − dog after 'The cat sat on the mat': {cat:.2f}, after 'The dog sat on the mat': {dog:.2f}")


@torch.no_grad()
def head_effects(model: Any, cases: list[Case], corruption: str) -> tuple[Tensor, Tensor]:
    """What patching each head's z, all positions, clean → corrupted, adds to the summed logit difference.

    Args:
        cases: of equally many tokens.

    Returns:
        The sums ["layer head"] over the cases and, as denominator, what the clean run adds.
    """
    clean = model.to_tokens([case.prompt for case in cases])
    corrupted = model.to_tokens([case.corrupted[corruption] for case in cases])
    right = [model.to_single_token(case.right[0]) for case in cases]
    wrong = [model.to_single_token(case.wrong[0]) for case in cases]
    rows = torch.arange(len(cases))

    def difference(logits: Tensor) -> Tensor:
        return (logits[rows, -1, right] - logits[rows, -1, wrong]).sum()

    clean_logits, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("attn.hook_z"))

    def with_clean(z: Tensor, hook: Any, head: int) -> Tensor:
        z = z.clone()
        z[:, :, head] = cache[hook.name][:, :, head]
        return z

    base = difference(model(corrupted))
    sums = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer, head in torch.cartesian_prod(*map(torch.arange, sums.shape)).tolist():
        hook = (f"blocks.{layer}.attn.hook_z", partial(with_clean, head=head))
        sums[layer, head] = difference(model.run_with_hooks(corrupted, fwd_hooks=[hook])) - base
    return sums, difference(clean_logits) - base


def print_heads(model: Any, pairs: int) -> None:
    """The effect of each head: ratio of means over all templates, and the best head of each of the five scenes."""
    rng = random.Random(2)
    cases = {template: [ioi(rng, True, template) for _ in range(pairs)] for template in material.IOI_TEMPLATES}
    for corruption in ("swapped throughout", "subject flip"):
        sums = [head_effects(model, group, corruption) for group in cases.values()]
        effects = torch.stack([part for part, _ in sums]).sum(0) / sum(whole for _, whole in sums)
        print(f"\nHead effects on IOI, {corruption}, {pairs} held-out pairs of each of {len(sums)} templates")
        for layer, row in enumerate(effects):
            print(f"  layer {layer}: " + "  ".join(f"{effect:6.3f}" for effect in row))
        best = [(part / whole).max() for part, whole in sums[: len(material.IOI_SCENE_TEMPLATES)]]
        print("  best head in each of the five scenes: " + " ".join(f"{effect:.2f}" for effect in best))


def evaluate(folder: Path, samples: int) -> None:
    """Print every table of the model card for the model in this folder."""

    tokenizer = AutoTokenizer.from_pretrained(folder)
    print_tasks(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer, samples)
    print_heads(load_model(folder, device="cpu"), pairs=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", help="measure the saved model, train nothing")
    parser.add_argument("--out", type=Path, default=TINY, help="folder to save to, or to measure")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the training text")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1, help="more is faster, but changes the last digits")
    parser.add_argument("--samples", type=int, default=500, help="held-out prompts to measure per task")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.evaluate:
        tokenizer = build_tokenizer()
        model = train(tokenizer, seed=args.seed, steps=args.steps, lr=args.lr, decay=args.weight_decay)
        save(model, tokenizer, args.out)
    evaluate(args.out, args.samples)


if __name__ == "__main__":
    main()
