"""Under which licence an adapter may go: the base's own, which is read and never guessed."""

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


def licence_for(source: str, asked: str | None) -> dict[str, str]:
    """The licence of an adapter, as the hub writes it.

    Args:
        source: The base: a folder, a file, a hub id, or ``bundled``.
        asked: A licence that the user names, by the hub's identifier.

    Returns:
        ``license``, with ``license_name`` and ``license_link`` where the base has them; empty where
        the base's card is not here or says nothing, and nobody named one.

    Raises:
        InputError: No identifier of the hub's kind, or another than the base's.
    """
    found = base_licence(source)
    if asked is None:
        return found
    if not IDENTIFIER.fullmatch(asked):
        raise InputError(
            f"--license {asked}: no identifier of a licence",
            "The hub's list: https://huggingface.co/docs/hub/repositories-licenses",
        )
    if found and found["license"] != asked:
        raise InputError(
            f"--license {asked}: the base's own card says {found['license']}",
            "What is made from a base goes under its licence: leave --license out.",
        )
    return found or {"license": asked}


def base_licence(source: str) -> dict[str, str]:
    """What the base's own card says of its licence; empty where that is not here."""
    path = _card_of(source)
    if path is None or not path.is_file():
        return {}
    try:
        said = ModelCard.load(path).data.to_dict()
    except (ValueError, OSError, YAMLError):  # no front matter, or none that can be read
        return {}
    found = {name: str(said[name]) for name in FIELDS if said.get(name)}
    return found if "license" in found else {}


def _card_of(source: str) -> Path | None:
    path = bundled_teacher() if source == "bundled" else Path(source)
    if path.exists():
        return (path if path.is_dir() else path.parent) / REPOCARD_NAME
    kept = try_to_load_from_cache(source, REPOCARD_NAME)
    return Path(kept) if isinstance(kept, str) else None
