"""How far what is said of a circuit hangs on how it was judged: one table of settings, as a value.

Faithfulness moves with what stands in the place of the edges that are left out, with the direction, with whether nodes
or edges are, with positions, and with the prompts (Miller et al. 2024, "Transformer Circuit Faithfulness Metrics are
not Robust"), and a search finds other edges on other pairs or in another order. A variation is one such setting, all
others as in the base case. Nothing here runs a model or searches.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeAlias, get_args

from actpatch.core.circuits import Circuit
from actpatch.core.heavy import pd
from actpatch.core.indices import is_integer
from actpatch.core.text import count, described, number

Axis: TypeAlias = Literal[
    "ablation", "direction", "granularity", "positions", "template", "bootstrap", "order of search"
]
"""What is varied."""
AXES: tuple[Axis, ...] = get_args(Axis)
"""In the order of tables and figures."""
WIDTH = 80
"""Letters of a printed line."""


@dataclass(frozen=True)
class Variation:
    """A circuit judged, or found, under one setting."""

    axis: Axis
    """What is varied."""
    value: str
    """The setting, in words: `zero`, `denoising`, `sample 3`."""
    faithfulness: float
    """f under this setting; NaN where it is not defined."""
    low: float = math.nan
    """Lower end of its interval over pairs; NaN where there is none."""
    high: float = math.nan
    jaccard: float = math.nan
    """Edges in both this circuit and the base case's, as a share of those in either: 1 where only the judgement is
    varied; NaN where the two cannot be compared."""
    n_edges: int | None = None
    """Of the circuit under this setting; None where it is not counted in edges."""
    n_pairs: int | None = None
    """That it was judged on."""
    is_base: bool = False
    """Whether this is the setting of the base case."""
    note: str = ""
    """What has to be known to read it, without full stop."""

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"axis {self.axis!r} is unknown: expected one of {', '.join(AXES)}")
        if not isinstance(self.value, str) or not self.value:
            raise ValueError(f"value is {self.value!r}, expected the setting in words, for instance 'zero'")
        object.__setattr__(self, "faithfulness", float(self.faithfulness))
        for name in ("low", "high", "jaccard"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.low > self.high:
            raise ValueError(f"the interval of {self.name} ends at {self.high:g}, below where it begins, {self.low:g}")
        if not math.isnan(self.jaccard) and not 0 <= self.jaccard <= 1:
            raise ValueError(f"jaccard of {self.name} is {self.jaccard:g}, expected a share from 0 to 1")
        for name in ("n_edges", "n_pairs"):
            n = getattr(self, name)
            if n is not None and (not is_integer(n) or n < 0):
                raise ValueError(f"{name} of {self.name} is {n!r}, expected a whole number from 0 on, or None")

    @property
    def name(self) -> str:
        """Axis and setting."""
        return f"{self.axis}: {self.value}"


@dataclass(frozen=True, eq=False, repr=False)
class SensitivityCard:
    """How faithfulness and edges of a circuit move with each setting (module docstring).

    Each axis has its own rows, and may repeat the base case among them, marked by `is_base`; so must at least one axis.
    """

    circuit: Circuit
    """The base case's."""
    metric: str
    unit: str
    task: str
    held_out: bool | None
    """Whether the base case was judged on pairs that its search did not see; None where that is not known."""
    variations: tuple[Variation, ...]
    """In the order of their axes."""
    notes: tuple[str, ...] = ()
    """Of the whole card, without full stops."""

    def __post_init__(self) -> None:
        if not isinstance(self.circuit, Circuit):
            raise ValueError(f"circuit is {described(self.circuit)}, expected the Circuit that is judged")
        given = list(self.variations)
        for one in given:
            if not isinstance(one, Variation):
                raise ValueError(
                    f"variations hold {described(one)}, expected Variation(axis, value, faithfulness, ...)"
                )
        ordered = tuple(one for axis in AXES for one in given if one.axis == axis)
        names = [one.name for one in ordered]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} is there more than once: give each setting of an axis once")
        bases = [one for one in ordered if one.is_base]
        if not bases:
            raise ValueError("no variation is the base case: mark the setting that others are compared with (is_base)")
        for one in bases:
            if sum(other.axis == one.axis for other in bases) > 1:
                raise ValueError(f"the axis {one.axis!r} has more than one base case: mark one setting of it")
            if not _same(one.faithfulness, bases[0].faithfulness):
                raise ValueError(
                    f"the base case has faithfulness {bases[0].faithfulness:g} under {bases[0].name!r} and "
                    f"{one.faithfulness:g} under {one.name!r}: expected one base case for all axes"
                )
        object.__setattr__(self, "variations", ordered)
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def base(self) -> Variation:
        """The base case, as the first axis that has it tells it."""
        return next(one for one in self.variations if one.is_base)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Those that were varied, in order."""
        return tuple(axis for axis in AXES if any(one.axis == axis for one in self.variations))

    def of(self, axis: str) -> tuple[Variation, ...]:
        """The settings of one axis.

        Raises:
            ValueError: for an axis that was not varied.
        """
        if axis not in self.axes:
            raise ValueError(f"{axis!r} was not varied: expected one of {', '.join(self.axes)}")
        return tuple(one for one in self.variations if one.axis == axis)

    def range_of(self, axis: str) -> tuple[float, float]:
        """Smallest and largest faithfulness on one axis, the base case counted; NaN where none is defined.

        Raises:
            ValueError: for an axis that was not varied.
        """
        values = [one.faithfulness for one in (*self.of(axis), self.base) if not math.isnan(one.faithfulness)]
        return (min(values), max(values)) if values else (math.nan, math.nan)

    def to_dataframe(self) -> pd.DataFrame:
        """A row per variation: its fields, in their order."""
        columns = [field.name for field in fields(Variation)]
        return pd.DataFrame([asdict(one) for one in self.variations], columns=columns)

    def __repr__(self) -> str:
        where = {True: "pairs that the search did not see", False: "pairs of the search", None: "given pairs"}
        told = [f"{self.task} on {self.circuit.graph.model}", f"faithfulness of the {self.metric} on "]
        told[1] += where[self.held_out]
        heading = textwrap.fill(f"SensitivityCard of {count(len(self.circuit), 'edge')}: {', '.join(told)}", WIDTH)
        table = _table([_row(one) for one in self.variations])
        marked = [f"{line} *" if one.is_base else line for line, one in zip(table[1:], self.variations)]
        notes = [f"{one.name}: {one.note}" for one in self.variations if one.note]
        said = [textwrap.fill(f"note: {note}", WIDTH, subsequent_indent="  ") for note in (*notes, *self.notes)]
        return "\n".join([heading, table[0], *marked, "* the base case", *said])


def check_card(card: object, caller: str) -> None:
    """Raises ValueError for what is no card."""
    if not isinstance(card, SensitivityCard):
        raise ValueError(f"{caller} was given {described(card)}, expected a SensitivityCard")


def _table(rows: Sequence[tuple[str, str, str, str, str]]) -> list[str]:
    """A line or more for each row, below their headings; long names are wrapped."""
    headings = ("", "faithfulness", "interval", "Jaccard", "edges")
    wide = [max(map(len, column)) for column in zip(headings, *rows)]
    room = WIDTH - sum(wide[1:]) - 2 * len(wide)
    names = [textwrap.wrap(row[0], room, subsequent_indent="  ") for row in rows]
    first = max((len(line) for name in names for line in name), default=0)
    lines = []
    for name, cells in (([""], headings), *zip(names, rows)):
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(cells[1:], wide[1:]))
        lines.append("\n".join([*name[:-1], f"{name[-1].ljust(first)}  {numbers}"]))
    return lines


def _row(one: Variation) -> tuple[str, str, str, str, str]:
    value = "not defined" if math.isnan(one.faithfulness) else number(one.faithfulness)
    has_interval = not (math.isnan(one.low) or math.isnan(one.high))
    interval = f"{number(one.low)} to {number(one.high)}" if has_interval else ""
    jaccard = "" if math.isnan(one.jaccard) else number(one.jaccard)
    return one.name, value, interval, jaccard, "" if one.n_edges is None else f"{one.n_edges:,}"


def _same(first: float, second: float) -> bool:
    return (math.isnan(first) and math.isnan(second)) or math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)
