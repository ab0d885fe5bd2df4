"""Where can an activation be replaced?  Names of places in a transformer, and nothing that runs one.

A *hook point* is TransformerLens' name for one activation tensor of the model (`blocks.3.attn.hook_z`). A `Site` is a
hook point narrowed to one head or MLP neuron and to one position, and a `Patch` is the set of sites that are replaced
together in one run. Both are values: they are described first and executed later, by `engine.engine`.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SHORT_NAMES = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
}
"""Short name -> the part of a hook point's name after `blocks.{layer}.`"""

PATCH_TYPES = {"output": "z", "pattern": "pattern", "q": "q", "k": "k", "v": "v"}
"""What `HeadPatcher` calls a patch -> the short name of the hook point it replaces."""

KEY_VALUE_COMPONENTS = ("k", "v", "attn.hook_rot_k", "hook_k_input", "hook_v_input")
"""Under grouped-query attention these have one entry per key-value head, every other one an entry per query head."""

NEURON_COMPONENTS = ("mlp_pre", "mlp.hook_pre_linear", "mlp_post")
"""Their last axis counts the MLP's neurons: before the nonlinearity, a gated MLP's other factor, and after it."""

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_HEAD_AXIS = {
    **dict.fromkeys(("hook_z", "hook_q", "hook_k", "hook_v", "hook_result", "hook_rot_q", "hook_rot_k"), 2),
    **dict.fromkeys(("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in"), 2),
    **dict.fromkeys(("hook_pattern", "hook_attn_scores"), 1),
}


@dataclass(frozen=True)
class Site:
    """One place in the model: a hook point, narrowed to a head, a neuron and a position where these are given."""

    hook_point: str
    """Full hook-point name, for instance `blocks.3.hook_attn_out`."""
    head: int | None = None
    """Index on the hook point's head axis; None replaces all heads. Under grouped-query attention the axis of
    `hook_k` and `hook_v` counts key-value heads."""
    position: int | tuple[int, ...] | None = None
    """Token position, counting the BOS token; negative counts from each prompt's end; None replaces all positions.
    A tuple gives one position per pair. For attention patterns and scores it is the query's position."""
    neuron: int | None = None
    """Index on the last axis of `mlp.hook_pre` or `mlp.hook_post`; None replaces all neurons."""
    position_name: str | None = None
    """What the task calls the position (`S2`), for labels, tables and maps."""

    def __post_init__(self) -> None:
        # NumPy's and PyTorch's integers become Python's: a tensor would index otherwise, and JSON takes neither.
        for field in ("head", "neuron", "position"):
            given = getattr(self, field)
            plain = tuple(map(_as_integer, given)) if isinstance(given, tuple) else _as_integer(given)
            object.__setattr__(self, field, plain)

    @property
    def layer(self) -> int | None:
        """Index of the block that holds the hook point; None outside the blocks (`hook_embed`, `ln_final.*`)."""
        match = _BLOCK.fullmatch(self.hook_point)
        return int(match[1]) if match else None

    @property
    def component(self) -> str:
        """Short name of the hook point (`attn_out`, `z`), or what follows `blocks.{layer}.` where it has none."""
        match = _BLOCK.fullmatch(self.hook_point)
        tail = match[2] if match else self.hook_point
        return next((short for short, long in SHORT_NAMES.items() if long == tail), tail)

    @property
    def label(self) -> str:
        """How the site is printed: `L9H6`, `L3H1 v`, `L3N17`, `L3 attn_out`, with ` @4` or ` @S2` for a position."""
        return self._label("")

    def _label(self, layers: str) -> str:
        name = self.hook_point if self.layer is None else f"L{self.layer}{layers}"
        if self.head is not None:
            name += f"H{self.head}"
            name += "" if self.component == "z" else f" {self.component}"
        elif self.neuron is not None:
            name += f"N{self.neuron}"
            name += "" if self.component == "mlp_post" else f" {self.component}"
        elif self.layer is not None:
            name += f" {self.component}"
        where = self.position if self.position_name is None else self.position_name
        return name if where is None else f"{name} @{where}"


@dataclass(frozen=True)
class Patch:
    """The sites whose activations are replaced together in one patched run."""

    sites: tuple[Site, ...]
    """The first one is the place that tables and maps give the patch."""
    name: str | None = None
    """What a set of sites is called that belongs to no single place; it is then left out of maps."""
    window: int = 1
    """Number of adjacent layers patched together around the first site's; fewer at the model's first and last ones."""

    def __post_init__(self) -> None:
        sites = self.sites if isinstance(self.sites, tuple) else (self.sites,)
        if not sites or sites is not self.sites or not all(isinstance(site, Site) for site in sites):
            raise ValueError(f"the sites of a patch are {self.sites!r}, expected a tuple of at least one Site: (site,)")

    @property
    def label(self) -> str:
        """How the patch is printed: its name, or its sites; `L4±1 mlp_out` for a window of three layers."""
        if self.name is not None:
            return self.name
        around = f"±{self.window // 2}" if self.window > 1 else ""
        return " + ".join(site._label(around) for site in self.centre)

    @property
    def centre(self) -> tuple[Site, ...]:
        """The sites of the layer in the middle, for a window; all sites, for any other patch."""
        if self.window == 1:
            return self.sites
        return tuple(site for site in self.sites if site.hook_point == self.sites[0].hook_point)


def head_axis(hook_point: str) -> int | None:
    """Axis of the heads in the hook point's tensor; None where it has none."""
    return _HEAD_AXIS.get(hook_point.rsplit(".", 1)[-1])


def position_axis(hook_point: str) -> int:
    """Axis of the token positions in the hook point's tensor: the query's, for patterns and scores."""
    return 2 if head_axis(hook_point) == 1 else 1


def block_hook(layer: int, short_name: str) -> str:
    """Full hook-point name of a short name: `block_hook(3, "z")` is `blocks.3.attn.hook_z`."""
    return f"blocks.{layer}.{SHORT_NAMES[short_name]}"


def expand_hook_points(hook_points: str | Sequence[str], available: Iterable[str], n_layers: int) -> list[str]:
    """Full names for what the user wrote: full names stay, short names expand over all layers.

    Raises:
        ValueError: where no name was given or the model has no such hook point, with the nearest names.
    """
    asked = names_asked_for(hook_points)
    if wrong := [name for name in asked if not isinstance(name, str)]:
        raise ValueError(f"hook_points holds {wrong[0]!r}, expected the name of a hook point, for instance 'attn_out'")
    known = set(available)
    expanded: list[str] = []
    for name in asked:
        names = [block_hook(layer, name) for layer in range(n_layers)] if name in SHORT_NAMES else [name]
        if missing := [full for full in names if full not in known]:
            raise ValueError(_unknown_hook_point(name, missing[0], known))
        expanded += [full for full in names if full not in expanded]
    return expanded


def names_asked_for(hook_points: Any) -> list[Any]:
    """One name, or several of them or of their sets, as a list.

    Raises:
        ValueError: for what is no list of names, and for an empty one.
    """
    if not isinstance(hook_points, Iterable):
        raise ValueError(f"hook_points is {hook_points!r}, expected names, for instance 'attn_out' or ['z', 'mlp_out']")
    asked = [hook_points] if isinstance(hook_points, str) else list(hook_points)
    if not asked:
        raise ValueError("hook_points is empty: give at least one hook point, for instance 'attn_out'")
    return asked


def is_integer(number: Any) -> bool:
    """Whether this is a whole number, NumPy's own included; a truth value is none."""
    if isinstance(number, bool):
        return False
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def check_index(index: int, size: int, what: str) -> int:
    """`index` counted from the front; negative counts from the end.

    Raises:
        ValueError: where it is no integer or out of range.
    """
    if not is_integer(index):
        raise ValueError(f"{what} {index!r} is not an integer")
    index = operator.index(index)
    if not -size <= index < size:
        raise ValueError(f"{what} {index} is out of range: expected {-size} to {size - 1}")
    return index % size


def check_indices(indices: Iterable[int], size: int, name: str, what: str) -> list[int]:
    """Several indices, each as `check_index` gives it.

    Args:
        indices: what was given.
        size: how many there are to choose from.
        name: the argument that they were given as.
        what: what each of them counts.

    Raises:
        ValueError: where they are no list of integers in range, or none at all.
    """
    try:
        given = None if isinstance(indices, str) else list(indices)
    except TypeError:  # also for a tensor that holds a single number
        given = None
    if given is None:
        raise ValueError(f"{name} is {indices!r}, expected a list of integers, or None for all")
    checked = [check_index(index, size, what) for index in given]
    if not checked:
        raise ValueError(f"{name} is empty: give at least one {what}, or None for all")
    return checked


def _as_integer(number: Any) -> Any:
    return operator.index(number) if is_integer(number) else number


def _unknown_hook_point(asked: str, missing: str, known: set[str]) -> str:
    without_layer = {tail: short for short, long in SHORT_NAMES.items() for tail in (short, long, long.split(".")[-1])}
    meant = {**{name: name for name in known}, **without_layer}
    nearest = list(dict.fromkeys(meant[name] for name in difflib.get_close_matches(missing, meant, n=3, cutoff=0.6)))
    hint = f"The nearest names are {', '.join(nearest)}" if nearest else "No name of this model comes near"
    via = "" if asked == missing else f" (from {asked!r})"
    shorts = ", ".join(SHORT_NAMES)
    return (
        f"this model has no hook point {missing!r}{via}. {hint}. "
        f"Short names that expand over all layers: {shorts}; list_hook_points() shows every name"
    )
