"""The licence of an adapter: the base's own, which is read and never guessed."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.constants import REPOCARD_NAME
from yaml import YAMLError  # type: ignore[import-untyped] # what the hub's library reads with

from guidefold.ground import InputError
from guidefold.pipeline import bundled_teacher

FIELDS = ("license", "license_name", "license_link")
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")


def licence_for(source: str, named: str | None) -> dict[str, str]:
    """The licence fields of an adapter's front matter.

    Args:
        source: The base: a folder, a file, a hub id, or ``bundled``.
        named: The user's ``--license``, as the hub's identifier.

    Returns:
        ``license``, with ``license_name`` and ``license_link`` where the base has them; empty where
        neither the base's card nor the user names a licence.

    Raises:
        InputError: ``named`` is no identifier of the hub, or differs from the base's licence.
    """
    own = base_licence(source)
    if named is None:
        return own
    if not IDENTIFIER.fullmatch(named):
        raise InputError(
            f"--license {named}: no identifier of a licence",
            "The hub's list: https://huggingface.co/docs/hub/repositories-licenses",
        )
    if own and own["license"] != named:
        raise InputError(
            f"--license {named}: the base's own card says {own['license']}",
            "An adapter takes the licence of its base: leave --license out.",
        )
    return own or {"license": named}


def base_licence(source: str) -> dict[str, str]:
    """The licence fields of the base's own card; empty without a local card."""
    path = _card_of(source)
    if path is None or not path.is_file():
        return {}
    try:
        front = ModelCard.load(path).data.to_dict()
    except (ValueError, OSError, YAMLError):  # no readable front matter
        return {}
    fields = {name: str(front[name]) for name in FIELDS if front.get(name)}
    return fields if "license" in fields else {}


def _card_of(source: str) -> Path | None:
    path = bundled_teacher() if source == "bundled" else Path(source)
    if path.exists():
        return (path if path.is_dir() else path.parent) / REPOCARD_NAME
    cached = try_to_load_from_cache(source, REPOCARD_NAME)
    return Path(cached) if isinstance(cached, str) else None
