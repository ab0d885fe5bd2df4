"""Sizes of pages in pixels and the settings of Plotly; the style sheet and the script are `templates/`.

Knows no figure and no page.
"""

from __future__ import annotations

FIGURE_PADDING = 8
"""Pixels around each figure."""
PAPER_WIDTH = 660
"""Pixels between the margins of A4 and of US letter, with some to spare."""
NO_UPLOAD = {"showSendToCloud": False, "plotlyServerURL": ""}
"""Plotly has a button that uploads a figure unless it is told not to, whatever buttons the figure leaves out."""
CONFIG = {"responsive": True, "displaylogo": False, **NO_UPLOAD}
"""How Plotly behaves on our pages."""
