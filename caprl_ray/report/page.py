"""A page: one HTML file from a template, with its style and script inside, and a policy that lets nothing else run."""

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

ASSETS = resources.files("caprl_ray.report") / "assets"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """How a Content-Security-Policy names an inline style or script (CSP Level 3, 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _code(text: str) -> Markup:
    """A text of ours, with what is in backticks as code."""
    parts = (f"<code>{escape(part)}</code>" if n % 2 else str(escape(part)) for n, part in enumerate(text.split("`")))
    return Markup("".join(parts))


def render(template: str, **content: Any) -> str:
    """The page of a template. All texts are escaped, except for `Markup`, which only our own code makes."""
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _code
    css, js = _asset("page.css"), _asset("page.js")
    return environment.get_template(template).render(
        css=Markup(css), js=Markup(js), css_hash=_hash(css), js_hash=_hash(js), **content
    )
