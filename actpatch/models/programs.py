"""Small models whose weights are set by hand, so that it is known which edges carry what they do.

The residual stream is made of parts that are kept apart: this token, its position, a token that is carried, the
prediction (which alone is unembedded), flags, and junk. A program uses a few heads and neurons, each of which reads and
writes what is said here; all others have random weights and read the whole stream, but write only into junk, which
nothing that matters reads. There are no norms. Attention that is meant is one-hot in floating point.

Compiled programs of this kind are from Lindner et al. 2023, "Tracr: Compiled Transformers as a Laboratory for
Interpretability"; these are written by hand. Nothing here knows prompts or effects (`tasks.programs`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from actpatch.core.graph import Graph
from actpatch.models.load import ModelClass

ProgramName = Literal["induction", "copy", "reverse", "lookup", "fraction", "or_gate", "backup_head", "cancelling_mlp"]
"""Names of the programs."""

N_LAYERS, N_HEADS, D_HEAD, D_MLP = 3, 3, 16, 4
N_TOKENS, N_CONTEXT = 16, 12
BOS, END = 0, 1
MARKED, OTHER_MARKED = 2, 3
"""Tokens that programs look for."""
YES, NO = 14, 15
"""The answers of programs that say yes or no."""
TOKENS = range(2, 14)
"""Tokens of prompts."""
PROMPT_LENGTH = 5
"""Of the prompts in which heads look for a token: even attention over it, times it, is whether the token is there."""

TOKEN = slice(0, N_TOKENS)
POSITION = slice(TOKEN.stop, TOKEN.stop + N_CONTEXT)
CARRIED = slice(POSITION.stop, POSITION.stop + N_TOKENS)
PREDICTION = slice(CARRIED.stop, CARRIED.stop + N_TOKENS)
FLAGS = slice(PREDICTION.stop, PREDICTION.stop + 2)
JUNK = slice(FLAGS.stop, FLAGS.stop + 6)
D_MODEL = JUNK.stop

CERTAIN = 400.0
"""Attention score of the key that is meant, above all others."""
LOGIT = 4.0
"""Logit of a token that is all of the prediction."""

_SAYS_YES = PREDICTION.start + YES
_FLAG, _OTHER_FLAG = FLAGS.start, FLAGS.start + 1
_ATTENTION_ONLY = ("induction", "copy", "reverse", "lookup")


def program_model(
    name: ProgramName, *, model_class: ModelClass | None = None, dtype: torch.dtype = torch.float64
) -> Any:
    """The model that runs a program, on the CPU and in evaluation mode. It has no tokenizer: prompts are token ids.

    Args:
        name: of the program (`tasks.programs.ProgramDataset` says what each does).
        model_class: `HookedTransformer` or `TransformerBridge`; None for the former where TransformerLens has it. A
            bridge can be made by TransformerLens 4 alone.
        dtype: type of its weights.

    Raises:
        ValueError: for an unknown name, and for a class that cannot be made with the installed TransformerLens.
    """
    import transformer_lens

    check_program(name)
    has_hooked = "HookedTransformer" in vars(transformer_lens)
    if model_class is None:
        model_class = "HookedTransformer" if has_hooked else "TransformerBridge"
    if model_class not in ("HookedTransformer", "TransformerBridge"):
        raise ValueError(f"model_class {model_class!r} is unknown: expected HookedTransformer or TransformerBridge")
    if (model_class == "HookedTransformer") != has_hooked:
        raise ValueError(
            f"programs cannot be made as {model_class} with TransformerLens {version('transformer_lens')}: leave "
            "model_class out"
        )
    weights = _Weights()
    _PROGRAMS[name](weights)
    weights.fill_the_rest()
    make = _hooked if has_hooked else _bridge
    return make(name, weights, dtype).eval()


def program_graph(name: ProgramName) -> Graph:
    """The graph of a program's model, without making it.

    Raises:
        ValueError: for an unknown name.
    """
    check_program(name)
    heads = (N_HEADS,) * N_LAYERS
    return Graph(_called(name), heads, heads, (name not in _ATTENTION_ONLY,) * N_LAYERS, d_model=D_MODEL)


def check_program(name: object) -> None:
    """Raises ValueError for what is no name of a program."""
    if name not in get_args(ProgramName):
        raise ValueError(f"program {name!r} is unknown: expected one of {', '.join(get_args(ProgramName))}")


class _Weights:
    """Weights in the layout of `HookedTransformer`: zeros, of which a program sets some and the rest become junk."""

    def __init__(self) -> None:
        self.embed = _zeros(N_TOKENS, D_MODEL)
        self.position = _zeros(N_CONTEXT, D_MODEL)
        self.unembed = _zeros(D_MODEL, N_TOKENS)
        self.embed[:, TOKEN] = torch.eye(N_TOKENS)
        self.position[:, POSITION] = torch.eye(N_CONTEXT)
        self.unembed[PREDICTION] = LOGIT * torch.eye(N_TOKENS)
        self.q, self.k, self.v = (_zeros(N_LAYERS, N_HEADS, D_MODEL, D_HEAD) for _ in "qkv")
        self.o = _zeros(N_LAYERS, N_HEADS, D_HEAD, D_MODEL)
        self.mlp_in = _zeros(N_LAYERS, D_MODEL, D_MLP)
        self.mlp_bias = _zeros(N_LAYERS, D_MLP)
        self.mlp_out = _zeros(N_LAYERS, D_MLP, D_MODEL)
        self.used: set[tuple[int, int]] = set()
        self.n_neurons = [0] * N_LAYERS

    def attend(self, head: tuple[int, int], queries: tuple[slice, Tensor], keys: tuple[slice, Tensor]) -> None:
        """A head attends where these parts of the stream, through these matrices, are the same one-hot vector."""
        score = (CERTAIN * D_HEAD**0.5) ** 0.5
        for weight, (part, matrix) in ((self.q, queries), (self.k, keys)):
            weight[(*head, part, slice(matrix.shape[1]))] = score * matrix

    def move(self, head: tuple[int, int], read: slice, write: slice) -> None:
        """A head copies a token that it attends to."""
        self.used.add(head)
        self.v[(*head, read)] = torch.eye(N_TOKENS)
        self.o[(*head, slice(None), write)] = torch.eye(N_TOKENS)

    def look_for(self, head: tuple[int, int], token: int, *into: int) -> None:
        """A head writes 1 into these directions if the token is in the prompt, which it attends to evenly."""
        self.used.add(head)
        self.v[(*head, token, 0)] = PROMPT_LENGTH
        for direction in into:
            self.o[(*head, 0, direction)] = 1.0

    def fill_the_rest(self) -> None:
        """What the program does not use gets random weights, and writes into junk."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        n_junk = JUNK.stop - JUNK.start
        for layer in range(N_LAYERS):
            for head in range(N_HEADS):
                if (layer, head) not in self.used:
                    for weight in (self.q, self.k, self.v):
                        weight[layer, head] = random(D_MODEL, D_HEAD)
                    self.o[layer, head, :, JUNK] = random(D_HEAD, n_junk)
            rest = slice(self.n_neurons[layer], D_MLP)
            n_rest = D_MLP - rest.start
            self.mlp_in[layer, :, rest], self.mlp_bias[layer, rest] = random(D_MODEL, n_rest), random(n_rest)
            self.mlp_out[layer, rest, JUNK] = random(n_rest, n_junk)


def _induction(weights: _Weights) -> None:
    """L0H1 carries the token before, by position; L1H2 finds what followed this token before, and predicts it."""
    weights.attend((0, 1), (POSITION, torch.eye(N_CONTEXT)), (POSITION, _later_by(1)))
    weights.move((0, 1), TOKEN, CARRIED)
    weights.attend((1, 2), (TOKEN, torch.eye(N_TOKENS)), (CARRIED, torch.eye(N_TOKENS)))
    weights.move((1, 2), TOKEN, PREDICTION)


def _copy(weights: _Weights) -> None:
    """L0H1 carries the token two places back, L1H0 what is carried there: together four places back."""
    for head, read, write in (((0, 1), TOKEN, CARRIED), ((1, 0), CARRIED, PREDICTION)):
        weights.attend(head, (POSITION, torch.eye(N_CONTEXT)), (POSITION, _later_by(2)))
        weights.move(head, read, write)


def _reverse(weights: _Weights) -> None:
    """L1H2 predicts the token at position 9 less this one: after four tokens and END, these four backwards."""
    mirrored = torch.zeros(N_CONTEXT, N_CONTEXT)
    mirrored[range(10), range(9, -1, -1)] = 1.0
    weights.attend((1, 2), (POSITION, torch.eye(N_CONTEXT)), (POSITION, mirrored))
    weights.move((1, 2), TOKEN, PREDICTION)


def _lookup(weights: _Weights) -> None:
    """L0H1 brings END the pointer, a token from 2 to 5; L1H2 predicts the token at the position of that number."""
    pointers = range(2, 6)
    asks, is_pointer = torch.zeros(N_TOKENS, 1), torch.zeros(N_TOKENS, 1)
    asks[END], is_pointer[pointers] = 1.0, 1.0
    weights.attend((0, 1), (TOKEN, asks), (TOKEN, is_pointer))
    weights.used.add((0, 1))
    for pointer in pointers:
        weights.v[0, 1, pointer, pointer] = weights.o[0, 1, pointer, CARRIED.start + pointer] = 1.0
    weights.attend((1, 2), (CARRIED, torch.eye(N_TOKENS, N_CONTEXT)), (POSITION, torch.eye(N_CONTEXT)))
    weights.move((1, 2), TOKEN, PREDICTION)


def _fraction(weights: _Weights) -> None:
    """L0 MLP flags the marked token; L1H0 attends evenly, so that YES is the share of flagged tokens."""
    weights.mlp_in[0, MARKED, 0] = weights.mlp_out[0, 0, _FLAG] = 1.0
    weights.v[1, 0, _FLAG, 0] = weights.o[1, 0, 0, _SAYS_YES] = 1.0
    weights.used.add((1, 0))
    weights.n_neurons[0] = 1


def _or_gate(weights: _Weights) -> None:
    """L0H0 and L0H1 each look for a token; L0 MLP says YES, min(1, both together), if either has found its own."""
    weights.look_for((0, 0), MARKED, _FLAG)
    weights.look_for((0, 1), OTHER_MARKED, _OTHER_FLAG)
    weights.mlp_in[0, FLAGS, :2] = 1.0
    weights.mlp_bias[0, 1] = -1.0
    weights.mlp_out[0, :2, _SAYS_YES] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    weights.n_neurons[0] = 2


def _backup_head(weights: _Weights) -> None:
    """L0H0 says YES if the token is there, and flags it; L1H1 says YES in its place where it does not.

    If the flag is there, the backup's queries attend to BOS, which says nothing; else it attends evenly, and finds the
    token itself.
    """
    weights.look_for((0, 0), MARKED, _SAYS_YES, _FLAG)
    weights.look_for((1, 1), MARKED, _SAYS_YES)
    is_bos = torch.zeros(N_TOKENS, 1)
    is_bos[BOS] = 1.0
    weights.attend((1, 1), (slice(_FLAG, _FLAG + 1), torch.ones(1, 1)), (TOKEN, is_bos))


def _cancelling_mlp(weights: _Weights) -> None:
    """L0H0 and L0H1 both say YES if the token is there; L0 MLP takes back what L0H1 says, 2 max(0, x - 1/2) for its x.

    So L0H1 as a whole does nothing, and the slope of what takes it back is 0 where it is silent, 2 where it speaks.
    """
    weights.look_for((0, 0), MARKED, _SAYS_YES)
    weights.look_for((0, 1), MARKED, _SAYS_YES, _FLAG)
    weights.mlp_in[0, _FLAG, 0], weights.mlp_bias[0, 0] = 1.0, -0.5
    weights.mlp_out[0, 0, _SAYS_YES] = -2.0
    weights.n_neurons[0] = 1


_PROGRAMS: dict[ProgramName, Callable[[_Weights], None]] = {
    "induction": _induction,
    "copy": _copy,
    "reverse": _reverse,
    "lookup": _lookup,
    "fraction": _fraction,
    "or_gate": _or_gate,
    "backup_head": _backup_head,
    "cancelling_mlp": _cancelling_mlp,
}


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def _later_by(places: int) -> Tensor:
    """Position p -> the one-hot vector of p + places."""
    return torch.diag(torch.ones(N_CONTEXT - places), places)


def _called(name: ProgramName) -> str:
    return f"program-{name}"


def _config(name: ProgramName) -> dict[str, Any]:
    return {
        "n_layers": N_LAYERS,
        "n_heads": N_HEADS,
        "d_model": D_MODEL,
        "d_head": D_HEAD,
        "d_mlp": D_MLP,
        "n_ctx": N_CONTEXT,
        "d_vocab": N_TOKENS,
        "attn_only": name in _ATTENTION_ONLY,
        "act_fn": "relu",
        "normalization_type": None,
        "model_name": _called(name),
    }


def _hooked(name: ProgramName, weights: _Weights, dtype: torch.dtype) -> Any:
    import transformer_lens

    make: Any = vars(transformer_lens)
    config = make["HookedTransformerConfig"](**_config(name), device="cpu", dtype=dtype, init_weights=False)
    model = make["HookedTransformer"](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E.copy_(weights.embed)
        model.W_pos.copy_(weights.position)
        model.W_U.copy_(weights.unembed)
        for layer, block in enumerate(model.blocks):
            for letter in "QKVO":
                getattr(block.attn, f"W_{letter}").copy_(getattr(weights, letter.lower())[layer])
            if not config.attn_only:
                block.mlp.W_in.copy_(weights.mlp_in[layer])
                block.mlp.b_in.copy_(weights.mlp_bias[layer])
                block.mlp.W_out.copy_(weights.mlp_out[layer])
    return model


def _bridge(name: ProgramName, weights: _Weights, dtype: torch.dtype) -> Any:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import native

    boot: Any = vars(native)["boot"]  # 3.x has the module, but not this function
    model = boot(TransformerBridgeConfig(**_config(name)), device="cpu", dtype=dtype, model_name=_called(name))
    state = {
        "tok_embed.weight": weights.embed,
        "pos.weight": weights.position,
        "head.weight": weights.unembed.T,
        "head.bias": torch.zeros(N_TOKENS),
    }
    for layer in range(N_LAYERS):
        block = f"layers.{layer}"
        for letter in "qkv":
            per_head = getattr(weights, letter)[layer].transpose(1, 2)  # [head, d_head, d_model]
            state[f"{block}.attn.{letter}.weight"] = per_head.reshape(-1, D_MODEL)
            state[f"{block}.attn.{letter}.bias"] = torch.zeros(N_HEADS * D_HEAD)
        state[f"{block}.attn.o.weight"] = weights.o[layer].reshape(-1, D_MODEL).T
        state[f"{block}.attn.o.bias"] = torch.zeros(D_MODEL)
        if name not in _ATTENTION_ONLY:
            state[f"{block}.mlp.fc_in.weight"] = weights.mlp_in[layer].T
            state[f"{block}.mlp.fc_in.bias"] = weights.mlp_bias[layer]
            state[f"{block}.mlp.fc_out.weight"] = weights.mlp_out[layer].T
            state[f"{block}.mlp.fc_out.bias"] = torch.zeros(D_MODEL)
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=False)
    return model
