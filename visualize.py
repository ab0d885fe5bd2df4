"""How does it look?  Results -> Plotly figures and an offline report; nothing here runs a model.

Every figure says which model, task, direction, metric and pairs it rests on. An effect is a share of the difference
between the clean and the corrupted metric, so it has no unit; metrics carry theirs. Maps have layer 0 at the top, as
in Wang et al. (2022), and a diverging, colour-blind-safe scale that is symmetric about 0: blue moves the metric
towards the run the activation came from, red away from it, what is pale (dark, on dark) does nothing, grey was not
measured. What is not significant after correction is faded, and where there are too few pairs to tell, nothing is and
the subtitle says so.

This module is the door to all figures; each kind has a module of its own, and so has the report.
"""

from __future__ import annotations

from figure_attention import create_attention_patterns
from figure_bars import create_component_comparison, create_effect_distribution, create_top_heads_bar
from figure_colours import on_dark
from figure_comparison import create_comparison
from figure_files import save_figure
from figure_maps import create_head_heatmap, create_layer_heatmap, create_position_heatmap
from figure_scatter import create_direction_quadrant, create_metric_scatter
from full_report import create_full_report

__all__ = [
    "create_attention_patterns",
    "create_comparison",
    "create_component_comparison",
    "create_direction_quadrant",
    "create_effect_distribution",
    "create_full_report",
    "create_head_heatmap",
    "create_layer_heatmap",
    "create_metric_scatter",
    "create_position_heatmap",
    "create_top_heads_bar",
    "on_dark",
    "save_figure",
]
