"""What a self-test found: which methods find which known circuits, and which theorems hold on a model. Runs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from actpatch.core.heavy import pd
from actpatch.core.text import count, number

LEGEND = (
    "all: exactly the circuit. 3/5 +1 0.90: three of its five edges and a false one; and the AUROC of a ranking. Exact",
    "takes each effect that is not 0, estimates the largest, as many as edges are true. Hidden edges have no effect if",
    "they are patched alone. `both` takes the larger |effect| of the two directions.",
)


@dataclass(frozen=True)
class Finding:
    """What one method found of one known circuit."""

    truth: str
    """Name of the known circuit."""
    ablation: str
    """What was written in the place of an edge."""
    direction: str
    """`denoising`, `noising`, or `both`."""
    method: str
    edges: tuple[str, ...]
    """Labels of the circuit's edges."""
    hidden: tuple[str, ...]
    """Those of them that have no effect alone in this direction, or in either."""
    found: tuple[str, ...]
    """Labels of the edges that the method found."""
    auroc: float = math.nan
    """Of the ranking of all edges; NaN where there is none."""
    needed: bool = False
    """Whether the test fails unless exactly the visible edges were found."""

    @property
    def missed(self) -> tuple[str, ...]:
        """Labels of the circuit's edges that were not found."""
        return tuple(edge for edge in self.edges if edge not in self.found)

    @property
    def extra(self) -> tuple[str, ...]:
        """Labels of false edges that were found."""
        return tuple(edge for edge in self.found if edge not in self.edges)

    @property
    def is_whole(self) -> bool:
        """Whether exactly the circuit was found, with its hidden edges."""
        return not self.missed and not self.extra

    @property
    def is_visible(self) -> bool:
        """Whether exactly the edges that have an effect alone were found."""
        return set(self.missed) == set(self.hidden) and not self.extra

    @property
    def cell(self) -> str:
        """In a table: `all`, or how many of the edges and how many false ones, and a ranking's AUROC: `3/5 +1 0.90`."""
        if self.is_whole:
            return "all"
        n_true, n_missed, n_extra = map(len, (self.edges, self.missed, self.extra))
        auroc = "" if math.isnan(self.auroc) else f" {number(self.auroc)}"
        return f"{n_true - n_missed}/{n_true}" + (f" +{n_extra}" if n_extra else "") + auroc

    @property
    def told(self) -> str:
        """In a sentence what is wrong with it."""
        seen = [edge for edge in self.hidden if edge in self.found]
        lists = {
            "misses": [edge for edge in self.missed if edge not in self.hidden],
            "finds what is not of it:": self.extra,
            "finds what is said to be hidden:": seen,
        }
        said = "; ".join(f"{what} {', '.join(names)}" for what, names in lists.items() if names)
        return f"{self.truth} ({self.ablation} written, {self.direction}): {self.method} search {said}"


@dataclass(frozen=True)
class Theorem:
    """Something that holds of every model, and how far it holds of this one."""

    statement: str
    error: float
    """Largest difference, as a share of the metric; NaN where it could not be asked."""
    tolerance: float
    reason: str = ""
    """Why it could not be asked."""

    @property
    def holds(self) -> bool:
        """Whether it holds, or could not be asked."""
        return bool(self.reason) or self.error <= self.tolerance

    @property
    def told(self) -> str:
        if self.reason:
            return f"not asked: {self.reason}"
        return f"{'holds' if self.holds else 'FAILS'} (off by {self.error:.1e}, at most {self.tolerance:.0e})"


@dataclass(frozen=True, repr=False)
class SelfTest:
    """Which methods find which known circuits. Its `repr` is the table."""

    findings: tuple[Finding, ...]
    """Of every circuit, direction and method."""
    model: str = ""
    """The model on which theorems were checked; empty where none was given."""
    theorems: tuple[Theorem, ...] = ()
    notes: tuple[str, ...] = ()
    """Which methods could not be run on programs, and why."""

    @property
    def failures(self) -> tuple[str, ...]:
        """What must not be: exact search that misses an edge or finds a false one, and a theorem that fails."""
        return (
            *(one.told for one in self.findings if one.needed and not one.is_visible),
            *(f"{self.model}: {one.statement}: {one.told}" for one in self.theorems if not one.holds),
        )

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dataframe(self) -> pd.DataFrame:
        """A row per circuit, direction and method: `truth`, `ablation`, `direction`, `method`, `n_true`, `n_hidden`,
        `n_missed`, `n_extra`, `auroc`, `is_whole`, `missed` and `extra`."""
        rows = [
            {
                "truth": one.truth,
                "ablation": one.ablation,
                "direction": one.direction,
                "method": one.method,
                "n_true": len(one.edges),
                "n_hidden": len(one.hidden),
                "n_missed": len(one.missed),
                "n_extra": len(one.extra),
                "auroc": one.auroc,
                "is_whole": one.is_whole,
                "missed": ", ".join(one.missed),
                "extra": ", ".join(one.extra),
            }
            for one in self.findings
        ]
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """A row per circuit and direction, a column per method: what `Finding.cell` says; empty where it was not
        run."""
        rows: dict[tuple[str, str, str], dict[str, str]] = {}
        for one in self.findings:
            row = rows.setdefault((one.truth, one.ablation, one.direction), {})
            row["edges"] = f"{len(one.edges)}" + (f" ({len(one.hidden)} hidden)" if one.hidden else "")
            row[one.method] = one.cell
        index = pd.MultiIndex.from_tuples(list(rows), names=["circuit", "written", "direction"])
        return pd.DataFrame(list(rows.values()), index=index).fillna("")

    def __repr__(self) -> str:
        parts = [*_lines(self.table()), "", *LEGEND, ""] if self.findings else []
        parts += [*(f"Not run: {note}" for note in self.notes), *[""] * bool(self.notes)]
        if self.theorems:
            parts += [f"{self.model}:", *(f"  {theorem.statement}: {theorem.told}" for theorem in self.theorems), ""]
        said = "passed." if self.passed else f"FAILED, {count(len(self.failures), 'failure')}:"
        return "\n".join([*parts, f"Self-test {said}", *(f"  {failure}" for failure in self.failures)])


def _lines(table: pd.DataFrame) -> list[str]:
    """A table as aligned lines, whatever pandas is set to show."""
    told = table.reset_index().astype(str)
    rows = [list(map(str, told.columns)), *told.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
