"""Small pieces of messages and of what is printed. Nothing here knows what is written about."""

from __future__ import annotations

import html


def count(n: int, what: str) -> str:
    """`1 pair`, `3 pairs`."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def described(given: object) -> str:
    """What was given in the place of something else: `the class Zero`, `a str`."""
    return f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"


def escaped(text: str) -> str:
    """Plotly and browsers show it as it is: no tags, no entities, and no `$`, which starts TeX in notebooks."""
    return html.escape(text, quote=False).replace("$", "&#36;")
