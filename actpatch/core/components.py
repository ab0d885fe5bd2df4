"""The components of a block that can be patched: one row each, of all that the library knows about it.

The rows stand in the order of the forward pass. To add a component is to add its row. Nothing here knows layers, heads
by number, or how a patch is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Entry(Enum):
    """Where a change of the component can be made to what was recorded, instead of by a hook in a run."""

    BEFORE_BLOCK = "the residual stream before the block"
    AFTER_ATTENTION = "the attention's output"
    AFTER_BLOCK = "the residual stream after the block"


@dataclass(frozen=True)
class Component:
    """One kind of activation that a block has."""

    name: str
    """What it is called in tables, and in arguments where it is `short`."""
    hooks: tuple[str, ...]
    """Its hook points' names after `blocks.{layer}.`, the usual one first."""
    short: bool = True
    """Whether `name` may be given for the hook points of all layers."""
    head_axis: int | None = None
    """Axis of the heads; None where it has none. The token position is axis 1; with heads on axis 1, axis 2."""
    per_key_value_head: bool = False
    """Whether it has one entry per key-value head, of which grouped-query attention has fewer than query heads."""
    has_neurons: bool = False
    """Whether its last axis counts the MLP's neurons."""
    entry: Entry | None = None
    """None where only a hook can change it."""
    is_added: bool = False
    """Whether its change reaches the residual stream by addition alone, through a linear map at most."""
    patch_type: str | None = None
    """What `HeadPatcher` calls a patch of it; None where it patches none."""
    switch: str | None = None
    """Switch of the model's configuration without which TransformerLens does not compute it."""


COMPONENTS = (
    Component("resid_pre", ("hook_resid_pre",), entry=Entry.BEFORE_BLOCK),
    Component("hook_attn_in", ("hook_attn_in", "attn.hook_attn_in"), short=False, head_axis=2, switch="use_attn_in"),
    Component(
        "hook_q_input", ("hook_q_input", "attn.hook_q_input"), short=False, head_axis=2, switch="use_split_qkv_input"
    ),
    Component(
        "hook_k_input",
        ("hook_k_input", "attn.hook_k_input"),
        short=False,
        head_axis=2,
        per_key_value_head=True,
        switch="use_split_qkv_input",
    ),
    Component(
        "hook_v_input",
        ("hook_v_input", "attn.hook_v_input"),
        short=False,
        head_axis=2,
        per_key_value_head=True,
        switch="use_split_qkv_input",
    ),
    Component("q", ("attn.hook_q",), head_axis=2, patch_type="q"),
    Component("k", ("attn.hook_k",), head_axis=2, per_key_value_head=True, patch_type="k"),
    Component("v", ("attn.hook_v",), head_axis=2, per_key_value_head=True, patch_type="v"),
    Component("attn.hook_rot_q", ("attn.hook_rot_q",), short=False, head_axis=2),
    Component("attn.hook_rot_k", ("attn.hook_rot_k",), short=False, head_axis=2, per_key_value_head=True),
    Component("attn.hook_attn_scores", ("attn.hook_attn_scores",), short=False, head_axis=1),
    Component("pattern", ("attn.hook_pattern",), head_axis=1, patch_type="pattern"),
    Component("z", ("attn.hook_z",), head_axis=2, entry=Entry.AFTER_ATTENTION, is_added=True, patch_type="output"),
    Component(
        "attn.hook_result",
        ("attn.hook_result",),
        short=False,
        head_axis=2,
        entry=Entry.AFTER_ATTENTION,
        is_added=True,
        switch="use_attn_result",
    ),
    Component("attn_out", ("hook_attn_out",), entry=Entry.AFTER_ATTENTION, is_added=True),
    Component("resid_mid", ("hook_resid_mid",), entry=Entry.AFTER_ATTENTION, is_added=True),
    Component("hook_mlp_in", ("hook_mlp_in",), short=False, switch="use_hook_mlp_in"),
    Component("mlp_pre", ("mlp.hook_pre",), has_neurons=True),
    Component("mlp.hook_pre_linear", ("mlp.hook_pre_linear",), short=False, has_neurons=True),
    Component("mlp_post", ("mlp.hook_post",), has_neurons=True, entry=Entry.AFTER_BLOCK, is_added=True),
    Component("mlp_out", ("hook_mlp_out",), entry=Entry.AFTER_BLOCK, is_added=True),
    Component("resid_post", ("hook_resid_post",), entry=Entry.AFTER_BLOCK),
)

SHORT_NAMES = {component.name: component.hooks[0] for component in COMPONENTS if component.short}
"""Short name -> the part of a hook point's name after `blocks.{layer}.`"""

PATCH_TYPES = {
    row.patch_type: row
    for row in sorted(COMPONENTS, key=lambda row: {"z": 0, "pattern": 1}.get(row.name, 2))
    if row.patch_type is not None
}
"""What `HeadPatcher` calls a patch -> the component that it replaces; what most ask for comes first."""

PATCH_TYPE_ALIASES = {row.name: name for name, row in PATCH_TYPES.items() if row.name != name}
"""Other names of patch types -> the one that results say: `z`, as the component is called."""

_BY_HOOK = {hook: component for component in COMPONENTS for hook in component.hooks}


def component_of(hook: str) -> Component:
    """The component of a hook point, by its name after `blocks.{layer}.`, or by its whole name outside the blocks."""
    return _BY_HOOK.get(hook) or Component(hook, (hook,), short=False)


def patched_component(patch_type: object) -> Component:
    """The component that a patch of this type replaces.

    Raises:
        ValueError: for what is no patch type.
    """
    known = (*PATCH_TYPES, *PATCH_TYPE_ALIASES)
    if patch_type not in known:
        aliases = ", ".join(f"{alias} for {name}" for alias, name in PATCH_TYPE_ALIASES.items())
        raise ValueError(
            f"patch_type {patch_type!r} is unknown: expected one of {', '.join(PATCH_TYPES)} (or {aliases})"
        )
    return PATCH_TYPES[PATCH_TYPE_ALIASES.get(str(patch_type), str(patch_type))]


def in_forward_order(component: Component) -> int:
    """Key by which components of one block are ordered as a forward pass meets them."""
    return COMPONENTS.index(component)
