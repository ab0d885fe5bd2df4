"""Models are loaded by name, by directory and from the hub's cache, and what cannot be loaded is refused at once."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants

import model_loading
from activation_patching import ActivationPatcher, IOIDataset
from actpatch.models.load import TINY, can_be_loaded, load_model
from head_patching import HeadPatcher
from test_suite.helpers.hub import home_with_gpt2
from test_suite.helpers.models import CLASSES, HAS_HOOKED, bundled, needs_hooked, smollm2
from test_suite.helpers.prompts import MARY
from test_suite.helpers.refusals import refused

ROOT = Path(model_loading.__file__).resolve().parent


@pytest.fixture(scope="module")
def copied_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "my-model"
    shutil.copytree(TINY, folder)
    return folder


def test_a_directory_is_loaded_like_the_bundled_model(tiny, copied_checkpoint):
    with torch.no_grad():
        expected = tiny(MARY)
        for path in (copied_checkpoint, str(copied_checkpoint)):
            model = load_model(path, device="cpu", model_class=type(tiny).__name__)
            torch.testing.assert_close(model(MARY), expected)
    assert model.cfg.model_name == "my-model" and not model.training


@needs_hooked
def test_both_classes_give_the_same_numbers():
    models = [bundled(name) for name in ("HookedTransformer", "TransformerBridge")]
    sweeps = [HeadPatcher(m, show_progress=False).run_all_heads_experiment(IOIDataset(m, 5)).sweep for m in models]
    np.testing.assert_allclose(sweeps[0].patched, sweeps[1].patched, atol=1e-4)
    assert sweeps[0].clean_tokens == sweeps[1].clean_tokens


def test_default_class_is_hooked_transformer_where_there_is_one():
    model = load_model("tiny", device="cpu")
    assert type(model).__name__ == ("HookedTransformer" if HAS_HOOKED else "TransformerBridge")
    assert not model.training and model.cfg.model_name == "tiny"


def test_model_that_cannot_be_loaded_is_refused_in_one_sentence(tmp_path):
    with refused("TransformerLens knows no model 'gpt2-smal'"):
        load_model("gpt2-smal")
    for path in (tmp_path, str(tmp_path), "./nowhere", "some/where/else"):
        with refused("holds no Hugging Face checkpoint: expected a directory with a config.json"):
            load_model(path)
    with refused("model_class 'Hooked' is unknown: expected HookedTransformer or TransformerBridge"):
        load_model("tiny", model_class="Hooked")  # type: ignore[arg-type]
    for device in ("gpu", "", 99):
        with refused(f"the device '{device}' cannot be used .*: try 'cpu'"):
            load_model("tiny", device=device)
    with refused("name_or_path is None, expected 'tiny', a name such as 'gpt2-small', or a path"):
        load_model(None)  # type: ignore[arg-type]
    if not HAS_HOOKED:
        with refused("has no HookedTransformer .* use TransformerBridge"):
            load_model("tiny", model_class="HookedTransformer")


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_checkpoint_without_its_tokenizer_is_refused(model_class, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path)
    with refused("holds no tokenizer: expected its files beside the checkpoint"):
        load_model(tmp_path, device="cpu", model_class=model_class)


@contextlib.contextmanager
def silent_hub() -> Iterator[str]:
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def answering_hub(status: int) -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("offline", [True, False])
def test_unreachable_hub_is_found_out_within_five_seconds(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with silent_hub() as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        begin = time.monotonic()
        with refused(r"'nobody/nothing' is not in the local cache .* load_model\('tiny'\) .* work", ConnectionError):
            load_model("nobody/nothing")
        assert time.monotonic() - begin < (0.5 if offline else 5.0)


def test_hub_that_refuses_the_connection_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with silent_hub() as address:
        pass  # the port is free again
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert not can_be_loaded("nobody/nothing")


@pytest.mark.parametrize("status", [200, 404])
def test_hub_that_answers_is_within_reach(monkeypatch, status):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with answering_hub(status) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert can_be_loaded("nobody/nothing")


@pytest.mark.slow
def test_gpt2_small_is_loaded_by_name_from_the_cache(tmp_path):
    classes = ["HookedTransformer", "TransformerBridge"][not HAS_HOOKED :]
    code = f"""
import json, torch
from model_loading import can_be_loaded, load_model
assert can_be_loaded("gpt2-small") and not can_be_loaded("gpt2-medium")
for model_class in {classes}:
    model = load_model("gpt2-small", device="cpu", model_class=model_class)
    with torch.no_grad():
        logits = model({MARY!r})[0, -1].log_softmax(-1).tolist()
    print(json.dumps([type(model).__name__, model.cfg.n_layers, model.cfg.n_heads, model.training, logits]))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home_with_gpt2()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = next((home_with_gpt2() / "hub" / "models--gpt2" / "snapshots").iterdir())
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(MARY)["input_ids"]
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[0, *tokens]]))
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(classes)
    for model_class, line in zip(classes, lines):
        *found, logits = json.loads(line)
        assert found == [model_class, 12, 12, False]
        torch.testing.assert_close(torch.tensor(logits), plain.logits[0, -1].log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", CLASSES)
def test_snippets_give_sensible_numbers_on_a_real_language_model(model_class):
    model = smollm2(model_class)
    dataset = IOIDataset(model, 5)
    layers = ActivationPatcher(model, show_progress=False).run_patching_experiment(dataset, ["attn_out"])
    assert (layers.sweep.clean > 0).all() and (layers.sweep.corrupted < 0).all()
    heads = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, patch_type="output")
    assert all(head.effect > 0 for head in heads.top(3))
    keys = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, patch_type="k", layers=[10])
    assert keys.counts_key_value_heads and len(keys) == model.cfg.n_key_value_heads == 3
    assert keys[0].label == "L10KV0" and keys.matrix().shape == (30, 3)
