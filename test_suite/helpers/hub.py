"""A home directory with a model in the Hugging Face hub's cache."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

from actpatch.models.load import TINY


@functools.cache
def home_with_gpt2() -> Path:
    """A Hugging Face home whose cache holds `gpt2`, of its own depth and number of heads, but narrow and random."""
    home = Path(tempfile.mkdtemp(prefix="activation-patching-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    repository = home / "hub" / "models--gpt2"
    revision = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=48, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, n_ctx=1024)
    transformers.GPT2LMHeadModel(config).save_pretrained(repository / "snapshots" / revision)
    tokenizer.save_pretrained(repository / "snapshots" / revision)
    return home
