"""Sizes of pages in pixels and the settings of Plotly; the style sheet and the script are `templates/`.

Knows no figure and no page.
"""

from __future__ import annotations

FIGURE_PADDING = 8
"""Pixels around each figure."""
PAPER_WIDTH = 660
"""Pixels between the margins of A4 and of US letter, with some to spare."""
CONFIG = {"responsive": True, "displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""How Plotly behaves. A figure that sets its own buttons must not bring one that uploads it."""
