"""Facts on a real language model, traced: in which layer, and at which token, is it that the subject matters?

    python -m docs.causal_tracing MODEL

MODEL is what `load_model` takes, for instance a directory with a checkpoint of SmolLM2-135M-Instruct. Prints the map,
layer × position, and writes docs/pictures/facts-map.png and facts-map-dark.png. Needs `playwright` (the extra `test`)
and Chromium. Everything is drawn from seed 0.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd

from actpatch import ActivationPatcher, GaussianNoise, PositionResults, PromptPairs, create_position_heatmap, load_model
from docs.report_picture import screenshots

CITY, COUNTRY = "{} is located in the city of", "{} is located in the country of"
FACTS = [
    ("The Eiffel Tower", CITY, "Paris"),
    ("The Colosseum", CITY, "Rome"),
    ("The Acropolis", CITY, "Athens"),
    ("The Great Wall", COUNTRY, "China"),
    ("Machu Picchu", COUNTRY, "Peru"),
    ("The Taj Mahal", COUNTRY, "India"),
    ("The Great Barrier Reef", COUNTRY, "Australia"),
    ("The Great Pyramid of Giza", COUNTRY, "Egypt"),
]
"""Subject, prompt and what it goes on with."""
COLUMNS = ["SUBJECT[0]", "SUBJECT[-1]", "END"]
SAMPLES = 1
WIDTH = 520


def facts(model: Any) -> PromptPairs:
    """The facts as a dataset: a prompt, its subject and the answer; the corrupted run is made by noise."""
    table = pd.DataFrame(
        [
            {"prompt": prompt, "subject": subject, "attribute": f" {answer}", "position:END": -1}
            for subject, prompt, answer in FACTS
        ]
    )
    names = {"clean": "prompt", "subject": "subject", "correct": "attribute", "corrupted": None, "incorrect": None}
    return PromptPairs.from_dataframe(model, table, name="landmarks", **names)


def traced(model: Any) -> PositionResults:
    """The share of the answer's probability that comes back when the clean residual stream is put into the noised run,
    one layer and one token at a time."""
    return ActivationPatcher(model, show_progress=False).run_position_experiment(
        facts(model),
        "resid_pre",
        positions=COLUMNS,
        noise=GaussianNoise("SUBJECT", samples=SAMPLES),
        metrics=["probability", "accuracy"],
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's directory, or a name that load_model knows")
    found = traced(load_model(parser.parse_args(argv).model, device="cpu"))
    for measured in found.sweep.measured:
        print(f"{measured.name}: clean {measured.clean.mean():.3f}, with noise {measured.corrupted.mean():.3f}")
    print(f"layer  {'  '.join(COLUMNS)}")
    for layer, effects in enumerate(found.matrix()):
        print(layer, *(f"{effect:.2f}" for effect in effects.round(2) + 0))
    screenshots({"facts-map": create_position_heatmap(found, title="Facts traced: residual stream")}, width=WIDTH)


if __name__ == "__main__":
    main()
