"""The figures that are returned: Plotly's, without the button that would send them to a vendor's cloud.

Plotly's script offers that upload unless the settings of the place that shows a figure say otherwise, and a figure does
not carry settings. These give them to whatever shows or writes it: `show`, notebooks, `to_html` and `write_html`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from actpatch.figures.style import NO_UPLOAD


class Figure(go.Figure):
    """A Plotly figure that offers no upload, wherever it is shown."""

    def show(self, *args: Any, **options: Any) -> None:
        super().show(*args, **{**options, "config": _without_upload(options.get("config"))})

    def to_html(self, config: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> str:
        return super().to_html(_without_upload(config), *args, **options)

    def write_html(self, file: Any, config: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> None:
        super().write_html(file, _without_upload(config), *args, **options)

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None, validate: bool = True, **options: Any
    ) -> dict[str, Any]:
        return super()._repr_mimebundle_(
            include, exclude, validate, **{**options, "config": _without_upload(options.get("config"))}
        )

    def _ipython_display_(self) -> None:
        import plotly.io

        if plotly.io.renderers.render_on_display and plotly.io.renderers.default:
            self.show()
        else:
            print(repr(self))


def _without_upload(config: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"displaylogo": False, **(config or {}), **NO_UPLOAD}
