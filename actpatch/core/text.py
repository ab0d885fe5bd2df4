"""Small pieces of messages and of what is printed. Nothing here knows what is written about.

Minus signs follow one rule. Text (what is printed or returned as `str`, messages, `repr`) has the keyboard's hyphen, so
that its numbers can be searched for and pasted into code: `plain`. Pages and figures (the report, notebooks' tables,
everything drawn, captions) have the true minus: `signed`, and `with_minus` for text that a page takes over.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Sequence

MOST_LISTED = 5
"""How many offenders a message names; it counts them all."""


def count(n: int, what: str) -> str:
    """`1 pair`, `3 patches`."""
    return f"{n} {what if n == 1 else plural(what)}"


def plural(what: str) -> str:
    return f"{what}{'es' if what.endswith('ch') else 's'}"


def shortened(given: object) -> str:
    """What was given, as it is written, on one line and not too long."""
    return textwrap.shorten(repr(given), 120, placeholder=" ...")


def described(given: object) -> str:
    """What was given in the place of something else: `the class Zero`, `a str`."""
    return f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"


def escaped(text: str) -> str:
    """Plotly and browsers show it as it is: no tags, no entities, and no `$`, which starts TeX in notebooks."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def plain(value: float, places: int = 3) -> str:
    """A number for text: with its sign; what rounds to 0 has a plus, `nan` no sign."""
    return "nan" if value != value else f"{round(value, places) + 0.0:+.{places}f}"


def number(value: float, places: int = 2) -> str:
    """A number for sentences: as `plain` has it, without a plus."""
    return plain(value, places).removeprefix("+")


def signed(value: float, places: int = 3) -> str:
    """A number for pages and figures: as `plain` has it, with a true minus."""
    return with_minus(plain(value, places))


def with_minus(text: str) -> str:
    """The text with a true minus (U+2212) where a hyphen stands before a number as its sign."""
    return re.sub(r"(?<![\w.)\]-])-(?=\.?\d|inf)|(?<=\de)-(?=\d)", "\u2212", text)


def share_of_pairs(which: Iterable[bool], pairs: Sequence[int], of: str = "pairs") -> str:
    """`3 of 20 pairs (pairs 4, 7 and 9)`."""
    named = chosen(which, pairs)
    total = f"{len(named)} of {len(pairs)} {of}"
    if len(named) == len(pairs):
        return total
    listed = [str(pair) for pair in named[:MOST_LISTED]]
    if len(named) > MOST_LISTED:
        listed.append(f"{len(named) - MOST_LISTED} more")
    which_ones = f"pairs {', '.join(listed[:-1])} and {listed[-1]}" if len(listed) > 1 else f"pair {listed[0]}"
    return f"{total} ({which_ones})"


def chosen(which: Iterable[bool], pairs: Sequence[int]) -> tuple[int, ...]:
    """Index in the dataset of these pairs."""
    return tuple(pair for pair, is_one in zip(pairs, which) if is_one)
