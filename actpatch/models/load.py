"""Loads a model: `load_model("tiny")`, a name that TransformerLens knows, or a local Hugging Face directory.

The class is `HookedTransformer` where TransformerLens has it (up to 3.x) and `TransformerBridge` in its compatibility
mode where it does not (from 4.0 on): both then fold layer norms and centre weights alike, so activations agree.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import urllib.error
import urllib.request
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from actpatch.models.facts import check_in_memory

ModelClass = Literal["HookedTransformer", "TransformerBridge"]
DeviceMap = str | Mapping[str, str | int]
"""`auto`, `balanced`, `balanced_low_0` or `sequential`, or module -> device, as Hugging Face takes it."""
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")

TINY = Path(__file__).resolve().parent / "tiny"
"""The bundled model: a small GPT-2 trained on the tasks of this library, see its README.md."""

HUB_TIMEOUT = 4.0
"""Seconds after which the Hugging Face hub counts as out of reach."""


@dataclass(frozen=True)
class Loaded:
    """What `load_model` was given, from which another process loads the same."""

    name_or_path: str
    """`tiny`, a name, or the absolute path of a directory."""
    dtype: str
    """For instance `float32`."""
    model_class: ModelClass
    device_map: DeviceMap | None = None
    """How it was spread over devices; None for one device."""

    def load(self, device: str | torch.device | None = None) -> Any:
        """The model, on this device; None spreads it as it was, or takes CUDA where there is one, else the CPU."""
        dtype, device_map = getattr(torch, self.dtype), self.device_map if device is None else None
        how: dict[str, Any] = {"dtype": dtype, "model_class": self.model_class, "device_map": device_map}
        return load_model(self.name_or_path, device=device, **how)


_LOADED: weakref.WeakKeyDictionary[Any, Loaded] = weakref.WeakKeyDictionary()


def loaded_as(model: Any) -> Loaded | None:
    """What `load_model` was given to load this model; None for one that it did not load."""
    return _LOADED.get(model)


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    model_class: ModelClass | None = None,
    device_map: DeviceMap | None = None,
) -> Any:
    """A model to patch, in evaluation mode.

    Args:
        name_or_path: `tiny` for the bundled model, a model name (`gpt2-small`), or a directory that holds a Hugging
            Face checkpoint with its tokenizer.
        device: where to put it; None for CUDA where there is one, else the CPU.
        dtype: type of its weights.
        model_class: `HookedTransformer` or `TransformerBridge`; None for the former where TransformerLens has it and
            the model is on one device.
        device_map: spreads a `TransformerBridge` over several devices in the place of `device`: `auto`, or module ->
            device (`{"model.embed_tokens": 0, "model.layers.0": 0, …}`), as Hugging Face takes it.

    Raises:
        ValueError: for a directory without a checkpoint or without its tokenizer, a name that TransformerLens does not
            know, a device that is not there, or a class that the installed TransformerLens does not have. For a map of
            devices that keeps weights on disk, or on the CPU beside other devices; and where TransformerLens cannot
            fold the last norm into an unembedding that lies elsewhere.
        ConnectionError: where the model would have to be downloaded and the hub cannot be reached.
    """
    import transformer_lens

    hooked: Any = vars(transformer_lens).get("HookedTransformer")  # asking 4.x for the attribute raises ImportError
    if model_class is None:
        model_class = "TransformerBridge" if hooked is None or device_map is not None else "HookedTransformer"
    if model_class not in ("HookedTransformer", "TransformerBridge"):
        raise ValueError(f"model_class {model_class!r} is unknown: expected HookedTransformer or TransformerBridge")
    if model_class == "HookedTransformer" and hooked is None:
        raise ValueError("this TransformerLens has no HookedTransformer (4.0 removed it): use TransformerBridge")
    place: dict[str, Any]
    if device_map is not None:
        _check_device_map(device_map, device, model_class)
        place = {"device_map": device_map if isinstance(device_map, str) else dict(device_map)}
    else:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        _check_device(device)
        place = {"device": device}
    directory = _directory(name_or_path)
    model = _loaded(name_or_path, directory, hooked, place, dtype, model_class)
    where = str(directory) if directory not in (None, TINY) else str(name_or_path)
    _LOADED[model] = Loaded(where, str(dtype).removeprefix("torch."), model_class, place.get("device_map"))
    return model


def can_be_loaded(name: str) -> bool:
    """Whether a model is in the local cache or the hub answers; decided within five seconds."""
    from huggingface_hub import try_to_load_from_cache

    name = _known_name(name)
    cached = try_to_load_from_cache(name, "config.json")
    return isinstance(cached, str) or _hub_answers(name)


def _loaded(
    name_or_path: str | Path,
    directory: Path | None,
    hooked: Any,
    place: dict[str, Any],
    dtype: torch.dtype,
    kind: ModelClass,
) -> Any:
    if directory is None:
        name = _known_name(str(name_or_path))
        if not can_be_loaded(name):
            raise ConnectionError(
                f"the model {str(name_or_path)!r} is not in the local cache and the Hugging Face hub cannot be "
                "reached. Without it, load_model('tiny') (the bundled model) and load_model(DIRECTORY) work"
            )
        with _off_stdout(with_bars=sys.stderr.isatty()):  # a download may take long
            if kind == "HookedTransformer":
                return hooked.from_pretrained(name, dtype=dtype, **place).eval()
            return _bridge(name, place, dtype)
    with _off_stdout(with_bars=False):
        if kind == "HookedTransformer":
            model = _hooked_from_directory(hooked, directory, place["device"], dtype)
        else:
            model = _bridge(str(directory), place, dtype)
    if len(model.tokenizer) <= len(model.tokenizer.all_special_tokens):  # what Transformers makes of missing files
        raise ValueError(
            f"{directory} holds no tokenizer: expected its files beside the checkpoint, as "
            "tokenizer.save_pretrained(DIRECTORY) writes them"
        )
    return model


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {str(device)!r} cannot be used ({reason}): try 'cpu'") from None


def _check_device_map(device_map: Any, device: Any, model_class: str) -> None:
    if device is not None:
        raise ValueError("device and device_map both say where the model goes: give one of them")
    if model_class != "TransformerBridge":
        raise ValueError("device_map spreads a TransformerBridge: leave model_class out, or give 'TransformerBridge'")
    if isinstance(device_map, str) and device_map in _STRATEGIES:
        return
    if not isinstance(device_map, (str, Mapping)) or not device_map:
        raise ValueError(
            f"device_map is {device_map!r}, expected 'auto', 'balanced', 'sequential', or a device for each module"
        )
    devices = [device_map] if isinstance(device_map, str) else list(dict.fromkeys(device_map.values()))
    if "disk" in devices or ("cpu" in devices and len(devices) > 1):
        raise ValueError(
            "device_map keeps weights on disk, or on the CPU beside other devices, where modules that are run singly "
            "would miss them: spread the model over devices that hold all of it"
        )
    for one in devices:
        _check_device(one)


@contextlib.contextmanager
def _off_stdout(*, with_bars: bool) -> Iterator[None]:
    """What TransformerLens prints goes to stderr, since stdout is for results; with or without bars of progress."""
    from transformers.utils import logging

    had_bars = logging.is_progress_bar_enabled()
    if not with_bars:
        logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if had_bars:
            logging.enable_progress_bar()


def _directory(name_or_path: str | Path) -> Path | None:
    """The directory that is meant, or None where a name is meant."""
    if not isinstance(name_or_path, (str, Path)):
        raise ValueError(f"name_or_path is {name_or_path!r}, expected 'tiny', a name such as 'gpt2-small', or a path")
    if name_or_path == "tiny":
        if not (TINY / "config.json").exists():
            raise ValueError(f"the bundled model is not in {TINY}: it comes with the package, so install that again")
        return TINY
    path = Path(name_or_path).expanduser()
    if (path / "config.json").exists():
        return path.resolve()
    looks_like_path = (
        isinstance(name_or_path, Path) or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    )
    if looks_like_path or path.is_dir():
        raise ValueError(f"{path} holds no Hugging Face checkpoint: expected a directory with a config.json")
    return None


def _known_name(name: str) -> str:
    """The hub's name for a model or its alias."""
    from transformer_lens import supported_models

    aliases = supported_models.MODEL_ALIASES
    for official, short in aliases.items():
        if name.lower() in {official.lower(), *(alias.lower() for alias in short)}:
            return official
    if name in supported_models.OFFICIAL_MODEL_NAMES or "/" in name:
        return name
    raise ValueError(
        f"TransformerLens knows no model {name!r}: expected 'tiny', a name such as 'gpt2-small' or "
        "'EleutherAI/pythia-160m', or a directory"
    )


def _hub_answers(name: str) -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # an error of the hub's own: it can be reached, and loading will say what is wrong
        except OSError:
            pass

    # A thread, because looking up a host name does not heed the timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT)
    return answered.is_set()


def _hooked_from_directory(hooked: Any, directory: Path, device: Any, dtype: torch.dtype) -> Any:
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(directory)
    checkpoint = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    config = get_pretrained_model_config(path, fold_ln=True, device=device, dtype=dtype)
    architecture = type(checkpoint).__name__
    if config.original_architecture != architecture:  # it goes by words such as "llama" anywhere in the path
        raise ValueError(
            f"TransformerLens takes {path} for {config.original_architecture} because of its name, but it holds "
            f"{architecture}: rename the directory, or use model_class='TransformerBridge'"
        )
    model = hooked(config, AutoTokenizer.from_pretrained(path), move_to_device=False)
    model.load_and_process_state_dict(get_pretrained_state_dict(path, config, hf_model=checkpoint, dtype=dtype))
    model.cfg.model_name = directory.name
    model.move_model_modules_to_device()
    return model.to(dtype, print_details=False).eval()


def _bridge(name: str, place: dict[str, Any], dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(name, dtype=dtype, **place)
    check_in_memory(model)
    try:
        model.enable_compatibility_mode(disable_warnings=True)
    except RuntimeError as failure:
        if "same device" not in str(failure):
            raise
        raise ValueError(
            f"TransformerLens cannot fold the norms of {name} into weights that lie on another device, as an "
            "unembedding does that is tied to the embedding: load it unfolded, by "
            "TransformerBridge.boot_transformers(..., device_map=...)"
        ) from failure
    model.cfg.model_name = Path(name).name
    return model.eval()
