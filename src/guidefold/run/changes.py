"""Settings that differ: between what a run holds and what is given, or between two sittings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guidefold.ground import MismatchError, in_words
from guidefold.run.config import flatten
from guidefold.run.paths import PATHS, place_of
from guidefold.run.settings import Settings
from guidefold.run.values import named_offload

# Settings that a resumed run may change: they decide neither what was recorded nor what was learnt.
FREE = {
    "threads",
    "pipeline.device",
    "pipeline.offload",
    "distill.steps",
    "distill.log_every",
    "distill.validate_every",
    "distill.checkpoint_every",
    "distill.keep_checkpoints",
    "distill.preview_prompts",
    "distill.preview_every",
    "distill.trackers",
}


def check_same(stored: Settings, given: Settings, run: Path) -> None:
    """Refuse to go on in a run folder with settings that would change what it holds.

    Raises:
        MismatchError: Names each field with both values.
    """
    free = free_settings(stored)
    before = flatten(stored.model_dump(mode="json"))
    differing = [
        f"{key}: {in_words(old)} in {run}, {in_words(new)} given"
        for key, (old, new) in changed_settings(before, given).items()
        if key not in free
    ]
    if differing:
        raise MismatchError(
            f"{run}: begun with other settings\n  " + "\n  ".join(differing),
            "Choose another folder with run=FOLDER, or go on with the settings of this one: "
            f"name {run} itself as the configuration.",
        )


def free_settings(settings: Settings) -> set[str]:
    """The names of the settings that a resumed run may change."""
    # With several rounds, the number of steps decides which student visits the states.
    return FREE - ({"distill.steps"} if len(settings.record.rounds) > 1 else set())


def changed_settings(before: Mapping[str, Any], now: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, each with both values.

    The run's own folder, and how its adapter is measured, count for nothing.

    Args:
        before: Earlier settings by dotted name.
        now: The settings now.
    """
    after = flatten(now.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if not _same(key, before.get(key), after.get(key))
        and key != "run"
        and not key.startswith("evaluate.")
    }


def _same(key: str, before: object, now: object) -> bool:
    """Whether two values of a setting are one, of paths whether they lead to one place.

    A whole path that leads nowhere here is another machine's, or what it named was moved. What it
    held is compared where it is read: by the base's fingerprint before anything is written, and by
    each prompt's digest after that, so that prompts must keep their file's name.
    """
    table, _, name = key.partition(".")
    if key == "pipeline.offload":
        before, now = named_offload(before), named_offload(now)
    if before == now or (table, name) not in PATHS:
        return before == now
    places = [place_of(table, name, value) for value in (before, now)]
    known = [place for place in places if place is not None]
    if len(known) < 2:
        return False
    if any(place.is_absolute() and not place.exists() for place in known):
        return name != "path" or known[0].name == known[1].name
    return all(place.exists() for place in known) and known[0].samefile(known[1])
