"""HTML documents that run nothing but their own script and trust no text."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def fill(template: str, style: str, script: str, policy: str, **values: Any) -> str:
    """A template of ours with its style and script within; every value is escaped.

    Args:
        template: A file of ``page/``.
        style: The document's only style.
        script: The document's only script.
        policy: What :func:`content_policy` says of the two.
        values: What the template shows.

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
    return environment.get_template(template).render(
        **values, policy=policy, style=Markup(style), script=Markup(script)
    )


def content_policy(style: str, script: str, *rules: str) -> str:
    """A content security policy that admits one style, one script, and what the rules name.

    The hashes admit these two and nothing else: no inline handler, no request to anywhere.

    Args:
        style: The document's only style.
        script: The document's only script.
        rules: Directives such as ``img-src data:``.
    """
    own = (f"style-src '{_digest(style)}'", f"script-src '{_digest(script)}'")
    return "; ".join(("default-src 'none'", *rules, *own, "base-uri 'none'", "form-action 'none'"))


def read_parts(*names: str) -> str:
    """Files of ``page/``, one after the other."""
    folder = files("guidefold.show") / "page"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _digest(text: str) -> str:
    """What a content security policy calls a text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
