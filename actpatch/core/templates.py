"""Text of pages from Jinja2 templates, in which every value is escaped unless it is HTML already.

Knows folders of templates, and nothing of what is on the pages. Jinja2 is imported when the first page is made.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


class Templates:
    """Templates by their names, from the first of some folders that has one of that name."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders

    def render(self, template: str, /, **values: Any) -> Markup:
        """The template filled in. A value that it needs and is not given is an error."""
        from markupsafe import Markup

        return Markup(self._environment.get_template(template).render(values))

    @cached_property
    def _environment(self) -> Environment:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        return Environment(
            loader=FileSystemLoader(self.folders),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
