"""How does a result look? The door to all figures and the report; nothing here runs a model.

Every figure says which model, task, direction, metric and pairs it rests on. An effect is a share of the difference
between the clean and the corrupted metric, so it has no unit; metrics carry theirs. Maps have layer 0 at the top, as
in Wang et al. (2022), and a diverging, colour-blind-safe scale that is symmetric about 0: blue moves the metric
towards the run the activation came from, red away from it, what is pale (dark, on dark) does nothing, what is hatched
was not measured. A star marks what is significant after correction, in figures of points a filled mark; where there are
too few pairs to tell, nothing is marked and the subtitle says so.
"""

from __future__ import annotations

from actpatch import create_agreement_map as create_agreement_map
from actpatch import create_attention_patterns as create_attention_patterns
from actpatch import create_circuit_evaluation as create_circuit_evaluation
from actpatch import create_circuit_graph as create_circuit_graph
from actpatch import create_comparison as create_comparison
from actpatch import create_component_comparison as create_component_comparison
from actpatch import create_direction_quadrant as create_direction_quadrant
from actpatch import create_edge_graph as create_edge_graph
from actpatch import create_edge_heatmap as create_edge_heatmap
from actpatch import create_effect_distribution as create_effect_distribution
from actpatch import create_estimate_comparison as create_estimate_comparison
from actpatch import create_faithfulness_curve as create_faithfulness_curve
from actpatch import create_full_report as create_full_report
from actpatch import create_group_comparison as create_group_comparison
from actpatch import create_head_cards as create_head_cards
from actpatch import create_head_heatmap as create_head_heatmap
from actpatch import create_head_position_heatmap as create_head_position_heatmap
from actpatch import create_layer_heatmap as create_layer_heatmap
from actpatch import create_metric_scatter as create_metric_scatter
from actpatch import create_position_heatmap as create_position_heatmap
from actpatch import create_sensitivity_card as create_sensitivity_card
from actpatch import create_top_edges_bar as create_top_edges_bar
from actpatch import create_top_heads_bar as create_top_heads_bar
from actpatch import figure_caption as figure_caption
from actpatch import headline as headline
from actpatch import on_dark as on_dark
from actpatch import save_figure as save_figure
