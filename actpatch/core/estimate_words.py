"""The words in which results say that effects are estimates, so that none is taken for one that was measured.

None stands for effects of patches that were run, of which nothing of the kind is said.
"""

from __future__ import annotations

from actpatch.core.estimates import Estimate


def method_of(estimate: Estimate | None) -> str:
    """The method with its steps and grid: `eap_ig (5 steps, midpoint grid)`; empty for exact effects."""
    if estimate is None:
        return ""
    return f"{estimate.method} ({estimate.path})" if estimate.path else estimate.method


def estimated_by(estimate: Estimate | None) -> str:
    """`estimated by atp`, with the steps and the grid of a method that has them; empty for exact effects."""
    return "" if estimate is None else f"estimated by {method_of(estimate)}"


def estimated_from(estimate: Estimate | None) -> str:
    """`estimated by atp (gradient in the run that is patched)`; empty for exact effects."""
    return "" if estimate is None else f"estimated by {estimate.described}"


def exact_or_estimated(estimate: Estimate | None) -> str:
    """`exact`, or by which method it is estimated, where both kinds stand beside each other."""
    return estimated_by(estimate) or "exact"


def named(estimate: Estimate | None, what: str = "effect") -> str:
    """What a number is: `effect`, or `estimated effect`."""
    return what if estimate is None else f"estimated {what}"


def named_shortly(estimate: Estimate | None, what: str = "effect") -> str:
    """As `named`, for the headings of narrow columns: `est. effect`."""
    return what if estimate is None else f"est. {what}"


def titled(estimate: Estimate | None, title: str) -> str:
    """A title about effects, which says that they are estimated: of `Effect of each head`, `Estimated effect of each
    head`. The first `effect` of the title is the one that is estimated."""
    if estimate is None:
        return title
    before, found, after = title.partition("Effect" if title.startswith("Effect") else "effect")
    return f"{before}{'Estimated' if found == 'Effect' else 'estimated'} {found.lower()}{after}"


def of_estimates(estimate: Estimate | None) -> str:
    """What intervals and p-values of estimates are about; empty for exact effects."""
    if estimate is None:
        return ""
    return f"intervals and p-values are about the estimate by {method_of(estimate)}, not about the exact effect"


def untested(estimate: Estimate | None) -> str:
    """Why no estimate is significant; empty where estimates have a sign, and for exact effects."""
    if estimate is None or not estimate.what.is_absolute:
        return ""
    return f"{estimate.method} estimates sizes without sign, which are above 0 whether a patch matters or not"


def named_with_method(estimate: Estimate | None, what: str = "effect", more: str = "") -> str:
    """What an axis shows, and in brackets the method and what else is told: `estimated effect (atp; 0 = corrupted)`."""
    in_brackets = "; ".join(filter(None, ["" if estimate is None else estimate.method, more]))
    return f"{named(estimate, what)} ({in_brackets})" if in_brackets else what
