"""What both pages have in common: one look (style.css), and templates that escape whatever they are given."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **given: Any) -> str:
    """The template of this room, filled in. A word that it uses and nobody gave is an error."""
    return _environment().get_template(template).render(**given)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("cloudjob", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
