"""Colours on light and dark: numbers are legible in every cell, both schemes tell the same, dark figures stay dark."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from actpatch.figures import colours as figure_colours
from actpatch.figures.colours import DARK, DIVERGING, FLIP, changes_on_dark
from test_suite.helpers.results import both_ways, clear, made_up_heads, patterns
from visualize import (
    create_attention_patterns,
    create_comparison,
    create_direction_quadrant,
    create_effect_distribution,
    create_head_heatmap,
    create_metric_scatter,
    create_top_heads_bar,
    on_dark,
)


def rgb(colour: str) -> np.ndarray:
    if colour.startswith("#"):
        return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=float)
    return np.array([255.0] * 3 if colour == "white" else [float(part) for part in re.findall(r"[\d.]+", colour)][:3])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG 2.2."""
    parts = np.array([one, other]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)


def shade(share: float, scheme: str) -> np.ndarray:
    """The colour of an effect at this share of the scale's end."""
    stops = [2 * at - 1 for at, _ in DIVERGING]
    colours = np.array([rgb(shown(colour, scheme)) for _, colour in DIVERGING])
    return np.array([np.interp(share, stops, channel) for channel in colours.T])


def shown(colour: str, scheme: str) -> str:
    return DARK[colour] if scheme == "dark" else colour


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_are_legible_on_every_colour_of_the_scale(scheme):
    for share in np.linspace(-1, 1, 401):
        name = "INK_ON_STRONG" if abs(share) > FLIP else "INK_ON_PALE"
        assert contrast(rgb(shown(getattr(figure_colours, name), scheme)), shade(share, scheme)) >= 4.5, share


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_stronger_effects_stand_out_more_and_red_is_never_blue(scheme):
    ground = rgb(shown(figure_colours.PAPER, scheme))
    for sign in (-1, 1):
        contrasts = [contrast(shade(sign * share, scheme), ground) for share in np.linspace(0, 1, 21)]
        assert (np.diff(contrasts) > 0).all()
    for share in np.linspace(0.2, 1, 9):
        red, blue = shade(-share, scheme), shade(share, scheme)
        assert red[0] > red[2] + 10 and blue[2] > blue[0] + 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_and_text_stand_out_from_the_paper(scheme):
    ground = rgb(shown(figure_colours.PAPER, scheme))
    for names, least in ((("INK", "SOFT"), 4.5), (("BLUE", "RED", "ORANGE", "VIOLET", "GREY", "ZERO_LINE"), 3)):
        for name in names:
            assert contrast(rgb(shown(getattr(figure_colours, name), scheme)), ground) >= least, name


FIGURES = {
    "heads": lambda: create_head_heatmap(clear(made_up_heads)),
    "bars": lambda: create_top_heads_bar(clear(made_up_heads)),
    "distribution": lambda: create_effect_distribution(clear(made_up_heads)),
    "scatter": lambda: create_metric_scatter(clear(made_up_heads)),
    "quadrant": lambda: create_direction_quadrant(both_ways()),
    "comparison": lambda: create_comparison(both_ways().denoising, both_ways().noising),
    "attention": lambda: create_attention_patterns(patterns()),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_on_dark_has_no_colour_of_light_paper_and_the_same_numbers(kind):
    figure = FIGURES[kind]()
    before = figure.to_json()
    dark = on_dark(figure)
    assert json.loads(figure.to_json()) == json.loads(before)
    assert changes_on_dark(dark) == [] and on_dark(dark) == dark
    assert not re.search(r"color\w*\"\s*:\s*\"(" + "|".join(map(re.escape, DARK)) + ')"', dark.to_json())
    assert len(changes_on_dark(figure)) > 10
    for one, other in zip(figure.data, dark.data):
        for values in ("x", "y", "z", "text", "hovertext"):
            if values in one:
                np.testing.assert_array_equal(one[values], other[values])
    # Every other explicit colour would be the same on both, and so illegible on one of them.
    colours = set(re.findall(r"#[0-9a-f]{6}|rgba?\([\d., ]+\)", before)) - {"rgba(0,0,0,0)"}
    assert colours <= set(DARK), colours - set(DARK)
