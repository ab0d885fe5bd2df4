"""What was printed once, compared with what is printed now."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
LOADING = re.compile(r"^Changing model dtype to .*\n", re.MULTILINE)  # TransformerLens 3 prints it, 4 does not

NO_INTERVAL = re.compile(r" Note: no interval for \d+ sites? with exactly one effect on all pairs\.")
"""Whether an effect of about 0 is the same to the last bit on all pairs hangs on the number of threads."""


def assert_same_text(saved: str, now: str) -> None:
    """Alike but for rounding, each number within one of its last digit, and for how wide columns are."""
    saved, now = (re.sub(r"\[ ", "[", " ".join(LOADING.sub("", text).split())) for text in (saved, now))
    saved, now = (NO_INTERVAL.sub("", text) for text in (saved, now))
    assert NUMBER.sub("0", saved) == NUMBER.sub("0", now)
    for old, new in zip(NUMBER.findall(saved), NUMBER.findall(now)):
        last_digit = 10.0 ** -len(old.partition(".")[2])
        assert abs(float(old) - float(new)) < (1.5 * last_digit if "." in old else 0.5), f"{old} saved, {new} now"
