"""What was asked, as data: what `spec.json` of a folder holds, and in what two such calls differ.

Everything that changes numbers is part of it: tokens, patches, metrics, what is written, precision, the attention
kernel, the weights. What does not is left out, so that a run goes on with another batch size, on another device, with
more or fewer workers. Nothing here touches a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from actpatch.core.estimates import Estimate
from actpatch.core.text import shortened
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.sources import References
from actpatch.models.fingerprint import fingerprint, identity
from actpatch.models.load import Loaded, loaded_as
from actpatch.results.answers import AnswerSet
from actpatch.results.shapes import KINDS, SweepResults
from actpatch.runs.asked import Asked
from actpatch.runs.metrics import metric_as_data, metric_from_data
from actpatch.runs.patches import patches_as_data, patches_from_data, tuples
from actpatch.runs.units import Units, units_of
from actpatch.tasks.encoding import EncodedPairs

FORMAT = 1
"""Raised whenever what a folder holds changes."""
_TOKENS = ("clean", "corrupted")
_AS_THEY_ARE = ("task", "varies", "seed")
_PER_PAIR = (
    "indices", "clean_tokens", "corrupted_tokens", "templates", "groups", "positions", "corrupted_positions", "matches"
)  # fmt: skip
_IDENTITY = (
    "results", "model", "weights", "precision", "attention kernel", "code on the model", "pairs", "direction",
    "patches", "metrics", "source", "noise", "estimate"
)  # fmt: skip
"""Parts that say which run it is."""
PARTS = ("format", *_IDENTITY, "loaded", "said", "versions", "units")
"""All parts that a specification has."""
_TOLD_WHOLE = ("results", "model", "precision", "attention kernel", "code on the model", "direction", "noise")


@dataclass(frozen=True)
class Spec:
    """What was asked of a run."""

    data: Mapping[str, Any]
    """Plain values, as `spec.json` holds them."""

    @cached_property
    def id(self) -> str:
        """A hash over all that says which run it is and how it is cut into units, which each part names."""
        said = {name: self.data[name] for name in (*_IDENTITY, "units")}
        return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]

    @cached_property
    def units(self) -> Units:
        return Units.from_data(self.data["units"])

    @property
    def kind(self) -> str:
        """The shape of its results."""
        return str(self.data["results"])

    @property
    def shape(self) -> type[SweepResults]:
        """The class of that name.

        Raises:
            ValueError: for one that is not known.
        """
        if self.kind not in KINDS:
            raise ValueError(
                f"the results of this run are {self.kind!r}, expected one of {', '.join(KINDS)}: import the class of "
                "that name first"
            )
        return KINDS[self.kind]

    @property
    def loaded(self) -> Loaded | None:
        """What `load_model` was given; None where somebody else loaded the model."""
        return Loaded(**self.data["loaded"]) if self.data["loaded"] else None

    @cached_property
    def asked(self) -> Asked:
        """The experiment, made again from what was written.

        Raises:
            ValueError: for a metric of somebody's own.
        """
        return self.asked_with(None)

    @cached_property
    def asked_to_read(self) -> Asked:
        """The same for reading alone: of metrics no more than what they are called, so that any will do."""
        return self.asked_with(tuple(Told(m["name"], m["unit"], m["more_is_better"]) for m in self.data["metrics"]))

    def asked_with(self, metrics: Any) -> Asked:
        """The same with these metrics in the place of those that were written down; None for those."""
        data, shared = self.data, self.data["said"]
        pairs = _pairs(data["pairs"])
        if metrics is None:
            metrics = tuple(metric_from_data(metric, pairs.indices) for metric in data["metrics"])
        every = [AnswerSet(*map(tuples, (stored["ids"], stored["texts"]))) for stored in shared["answers"]]
        of_first = patches_from_data(data["patches"]["each"][0])
        each = [of_first, *map(patches_from_data, data["patches"]["each"][1:])]
        return Asked(
            pairs=pairs,
            patches={way: each[i if i < len(each) else 0] for i, way in enumerate(data["direction"])},
            metrics=metrics,
            references=_references(data["source"]["references"]),
            noise=None if data["noise"] is None else GaussianNoise(**tuples_in(data["noise"])),
            estimate=None if data["estimate"] is None else Estimate(**data["estimate"]),
            correct=tuple(every[place] for place in shared["correct"]),
            incorrect=tuple(every[place] for place in shared["incorrect"]),
            source_of_values=data["source"]["label"],
            source_kind=data["source"]["kind"],
            versions=data["versions"],
            notes={way: tuple(notes) for way, notes in shared["notes"].items()},
            **{name: shared[name] for name in _OF_MODEL},
        )

    def differences(self, other: Spec) -> list[str]:
        """In what another call differs from this one, in words; empty where it goes on with the same run."""
        return [
            _difference(name, self.data[name], other.data[name])
            for name in _IDENTITY
            if self.data[name] != other.data[name]
        ]

    def differences_of_model(self, model: Any) -> list[str]:
        """In what a model differs from the one that this run is of, in words."""
        found = {"weights": fingerprint(model), **identity(model)}
        return [_difference(name, self.data[name], found[name]) for name in found if self.data[name] != found[name]]


@dataclass(frozen=True)
class Told:
    """What a metric is called."""

    name: str
    unit: str
    more_is_better: bool


_OF_MODEL = ("model", "n_layers", "n_heads", "n_key_value_heads", "dtype")


def spec_of(engine: PatchingEngine, asked: Asked, kind: str, rows_per_unit: int | None = None) -> Spec:
    """What is asked of this engine, as data.

    Args:
        engine: whose model it is.
        asked: the experiment.
        kind: name of the shape of its results.
        rows_per_unit: about how many rows each unit has; None for some seconds of compute.
    """
    model = engine.runner.model
    loaded = loaded_as(model)
    distinct = list(dict.fromkeys((*asked.correct, *asked.incorrect)))
    places = {answers: place for place, answers in enumerate(distinct)}
    each = [patches_as_data(patches) for patches in asked.patches.values()]
    data = {
        "format": FORMAT,
        "results": kind,
        **identity(model),
        "weights": fingerprint(model),
        "loaded": None if loaded is None else dataclasses.asdict(loaded),
        "pairs": _pairs_as_data(asked.pairs),
        "direction": list(asked.patches),
        "patches": {"n": asked.n_patches, "each": each[:1] if each[0] == each[-1] else each},
        "metrics": [metric_as_data(metric) for metric in asked.metrics],
        "source": {
            "label": asked.source_of_values,
            "kind": asked.source_kind,
            "references": _references_as_data(asked.references),
        },
        "noise": None if asked.noise is None else dataclasses.asdict(asked.noise),
        "estimate": None if asked.estimate is None else dataclasses.asdict(asked.estimate),
        "said": {
            **{name: getattr(asked, name) for name in _OF_MODEL},
            "answers": [dataclasses.asdict(answers) for answers in distinct],
            "correct": [places[answers] for answers in asked.correct],
            "incorrect": [places[answers] for answers in asked.incorrect],
            "notes": {way: list(notes) for way, notes in asked.notes.items()},
        },
        "versions": dict(asked.versions),
        "units": units_of(engine, asked, rows_per_unit).as_data(),
    }
    return Spec(json.loads(json.dumps(data, allow_nan=False)))  # as it is read back: lists for tuples


def tuples_in(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuples(value) for name, value in data.items()}


def _pairs_as_data(pairs: EncodedPairs) -> dict[str, Any]:
    return {
        **{name: [prompt.tolist() for prompt in getattr(pairs, name)] for name in _TOKENS},
        **{name: _plain(getattr(pairs, name)) for name in (*_PER_PAIR, *_AS_THEY_ARE)},
    }


def _pairs(data: Mapping[str, Any]) -> EncodedPairs:
    per_pair: dict[str, Any] = {name: tuples(data[name]) for name in _PER_PAIR}
    for name in ("positions", "corrupted_positions"):
        per_pair[name] = tuple(tuples_in(names) for names in data[name])
    tokens: dict[str, Any] = {name: _prompts(data[name]) for name in _TOKENS}
    return EncodedPairs(**tokens, **per_pair, **{name: data[name] for name in _AS_THEY_ARE})


def _prompts(stored: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(prompt, dtype=torch.long) for prompt in stored)


def _references_as_data(references: References | None) -> dict[str, Any] | None:
    if references is None:
        return None
    groups = [[prompt.tolist() for prompt in group] for group in references.groups]
    return {"groups": groups, "of_pair": list(references.of_pair), "samples": references.samples}


def _references(data: Mapping[str, Any] | None) -> References | None:
    if data is None:
        return None
    return References(tuple(map(_prompts, data["groups"])), tuple(data["of_pair"]), data["samples"])


def _plain(value: Any) -> Any:
    """Mappings and tuples, however deep, as JSON has them."""
    if isinstance(value, Mapping):
        return {name: _plain(of) for name, of in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def _difference(name: str, stood: Any, asked: Any) -> str:
    """What differs in one part of two specs, the first thing of it."""
    if name == "weights":
        return f"the weights are others (fingerprint {stood[:8]} in the folder, {asked[:8]} now)"
    if name in _TOLD_WHOLE or not isinstance(stood, type(asked)):
        return f"{name}: {_differing(stood, asked)}"
    if name == "patches" and stood["n"] != asked["n"]:
        return f"patches: {stood['n']} in the folder, {asked['n']} now"
    if name == "pairs" and stood["indices"] != asked["indices"]:
        n = len(stood["indices"]), len(asked["indices"])
        return f"pairs: {n[0]} in the folder, {n[1]} now" if n[0] != n[1] else "pairs: others of the dataset"
    if name == "metrics" and (names := [[m["name"] for m in of] for of in (stood, asked)])[0] != names[1]:
        return f"metrics: {', '.join(names[0])} in the folder, {', '.join(names[1])} now"
    return f"{name}: {_differing(stood, asked)}"


def _differing(stood: Any, asked: Any, at: str = "") -> str:
    """The first values in which they differ, and where."""
    if isinstance(stood, dict) and isinstance(asked, dict):
        for key in (*stood, *(key for key in asked if key not in stood)):
            if stood.get(key) != asked.get(key):
                return _differing(stood.get(key), asked.get(key), f"{at}{'.' * bool(at)}{key}")
    if isinstance(stood, list) and isinstance(asked, list) and len(stood) == len(asked):
        for i, (one, other) in enumerate(zip(stood, asked)):
            if one != other:
                return _differing(one, other, f"{at}[{i}]")
    return f"{f'{at} is ' if at else ''}{shortened(stood)} in the folder, {shortened(asked)} now"
