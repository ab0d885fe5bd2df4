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
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload
from huggingface_hub import constants
from transformer_lens.model_bridge import TransformerBridge

import model_loading
from activation_patching import ActivationPatcher, IOIDataset
from actpatch.models import load
from actpatch.models.graph import graph_of
from actpatch.models.load import TINY, can_be_loaded, load_model
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT, folded
from test_suite.helpers.hub import home_with_gpt2
from test_suite.helpers.models import (
    CLASSES,
    HAS_HOOKED,
    bundled,
    checkpoint,
    needs_hooked,
    small_model,
    smollm2,
    word_tokenizer,
)
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
            model = load_model(path, device="cpu", model_class=type(tiny).__name__, dtype=torch.float64)
            torch.testing.assert_close(model(MARY), expected)
    assert model.cfg.model_name == "my-model" and not model.training


@needs_hooked
def test_both_classes_give_the_same_numbers():
    models = [bundled(name) for name in ("HookedTransformer", "TransformerBridge")]
    sweeps = [HeadPatcher(m, show_progress=False).run_all_heads_experiment(IOIDataset(m, 5)).sweep for m in models]
    np.testing.assert_allclose(sweeps[0].patched, sweeps[1].patched, atol=EXACT, rtol=0)
    assert sweeps[0].clean_tokens == sweeps[1].clean_tokens


def test_default_class_is_hooked_transformer_where_there_is_one():
    model = load_model("tiny", device="cpu")
    assert type(model).__name__ == ("HookedTransformer" if HAS_HOOKED else "TransformerBridge")
    assert not model.training and model.cfg.model_name == "tiny" and model(MARY).dtype == torch.float32


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


def test_a_map_of_devices_that_cannot_be_is_refused_in_one_sentence():
    for given in ({}, 3):
        with refused("expected 'auto', 'balanced', 'sequential', or a device for each module"):
            load_model("tiny", device_map=given)  # type: ignore[arg-type]
    for kept in ({"transformer": "disk"}, {"transformer": "cpu", "lm_head": "cuda:0"}):
        with refused("device_map keeps weights on disk, or on the CPU beside other devices"):
            load_model("tiny", device_map=kept)
    with refused("the device 'gpu' cannot be used .*: try 'cpu'"):
        load_model("tiny", device_map={"": "gpu"})
    with refused("device and device_map both say where the model goes: give one of them"):
        load_model("tiny", device="cpu", device_map="auto")
    if HAS_HOOKED:
        with refused("device_map spreads a TransformerBridge: leave model_class out"):
            load_model("tiny", device_map="auto", model_class="HookedTransformer")


def test_a_map_of_one_device_is_that_device():
    model = load_model("tiny", device_map={"": "cpu"}, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(MARY), bundled("TransformerBridge")(MARY))


def test_weights_that_are_not_in_memory_are_refused():
    """As Accelerate keeps them elsewhere until a module is called."""
    path = checkpoint("llama")
    whole = transformers.AutoModelForCausalLM.from_pretrained(path)
    cpu_offload(whole.model.layers[1])
    model = TransformerBridge.boot_transformers(str(path), hf_model=whole, tokenizer=word_tokenizer())
    with refused("the weights .* are not in memory, offloaded to the CPU or to disk by the model's device_map"):
        ActivationPatcher(model)


def test_a_model_without_weights_has_a_graph_and_is_not_run():
    path = checkpoint("llama")
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(path))
    options = {"device": "meta", "hf_model": empty, "tokenizer": word_tokenizer()}
    model = TransformerBridge.boot_transformers(str(path), **options)
    assert len(graph_of(model)) == len(graph_of(small_model("bridge:llama")))
    with refused("has no weights, all are on the device meta: load it with them"):
        ActivationPatcher(model, show_progress=False).run_with_cache(torch.tensor([1, 2]), ["z"])


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_checkpoint_without_its_tokenizer_is_refused(model_class, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path)
    with refused("holds no tokenizer: expected its files beside the checkpoint"):
        load_model(tmp_path, device="cpu", model_class=model_class)


@contextlib.contextmanager
def silent_hub() -> Iterator[socket.socket]:
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


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


NOWHERE = r"'nobody/nothing' is not in the local cache .* load_model\('tiny'\) .* work"


def test_the_hub_is_waited_for_less_than_five_seconds():
    assert 0 < load.HUB_TIMEOUT < 5


def test_a_hub_that_never_answers_is_asked_once_and_given_up(monkeypatch):
    """Given up while it is still silent: else this test would not end."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(load, "HUB_TIMEOUT", 0.2)
    urlopen, allowed = urllib.request.urlopen, []

    def note(request, timeout):
        allowed.append(timeout)
        return urlopen(request, timeout=60)  # the caller has to give up, not the request

    monkeypatch.setattr(urllib.request, "urlopen", note)
    with silent_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", address_of(server))
        with refused(NOWHERE, ConnectionError):
            load_model("nobody/nothing")
        asked, _ = server.accept()
        with asked:
            assert asked.recv(999).startswith(b"HEAD /nobody/nothing/resolve/main/config.json ")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert allowed == [0.2]


def test_a_host_name_that_is_looked_up_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(load, "HUB_TIMEOUT", 0.2)
    looked_up, given_up = [], threading.Event()

    def look_up(host, *rest):
        looked_up.append(host)
        given_up.wait()
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with refused(NOWHERE, ConnectionError):
            load_model("nobody/nothing")
    finally:
        given_up.set()
    assert set(looked_up) <= {"hub.invalid"}


def test_an_offline_hub_is_not_asked_at_all(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with silent_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", address_of(server))
        with refused(NOWHERE, ConnectionError):
            load_model("nobody/nothing")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_hub_that_refuses_the_connection_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with silent_hub() as server:
        address = address_of(server)  # whose port is free again behind this block
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
    model = load_model("gpt2-small", device="cpu", model_class=model_class, dtype=torch.float64)
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
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(
            torch.tensor([[0, *tokens]])
        )
    expected = plain.logits[0, -1].log_softmax(-1)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(classes)
    for model_class, line in zip(classes, lines):
        *found, logits = json.loads(line)
        assert found == [model_class, 12, 12, False]
        torch.testing.assert_close(torch.tensor(logits, dtype=torch.float64), expected, atol=folded(expected), rtol=0)


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
