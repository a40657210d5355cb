"""HTML documents that run only their own script and escape every text."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from guidefold.ground import plural


def fill(template: str, style: str, script: str, policy: str, **values: Any) -> str:
    """Fill a template with its style, its script and values; every value is escaped.

    Args:
        template: The name of a file of ``page/``.
        style: The document's only style.
        script: The document's only script.
        policy: The :func:`content_policy` for the two.
        values: The template's variables.

    Returns:
        The document.
    """
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(read_parts),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plural"] = plural
    return environment.get_template(template).render(
        **values, policy=policy, style=Markup(style), script=Markup(script)
    )


def content_policy(style: str, script: str, *rules: str) -> str:
    """A content security policy that admits one style, one script, and what ``rules`` allow.

    The hashes admit no other style or script, not even an inline handler.

    Args:
        style: The document's only style.
        script: The document's only script.
        rules: Directives such as ``img-src data:``.
    """
    own = (f"style-src '{_digest(style)}'", f"script-src '{_digest(script)}'")
    return "; ".join(("default-src 'none'", *rules, *own, "base-uri 'none'", "form-action 'none'"))


def read_parts(*names: str) -> str:
    """Read files of ``page/``, and join them."""
    folder = files("guidefold.show") / "page"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _digest(text: str) -> str:
    """The hash by which a content security policy admits a text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
