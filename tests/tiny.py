"""Tiny runs for tests: prompts in the zoo's words, settings of a few trajectories and steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo import WIDE, ZOO

from guidefold.listen.findings import Findings
from guidefold.lora.dial import Dial
from guidefold.run.settings import Settings

PROMPTS = tuple(
    f"a {size} {colour} {thing}"
    for size, colour in (("big", "red"), ("small", "blue"), ("old", "green"))
    for thing in ("cat", "dog", "bird", "house")
)
NAMED_SEPARATELY = ("negative_prompt",)  # a setting of its own, not one of the call's


def write_prompts(path: Path, prompts: tuple[str, ...] = PROMPTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return path


def make_settings(
    name: str, source: Path, folder: Path, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Settings of a tiny run in ``folder / "run"``.

    Args:
        name: Of a zoo entry, for its call.
        source: Where that pipeline was saved.
        folder: Holds the run and its prompts.
        overrides: A table (merged into the one here) or a value, by its name in the settings.
    """
    entry = (ZOO | WIDE)[name]
    call = {k: v for k, v in entry.call.items() if v is not None and k not in NAMED_SEPARATELY}
    values: dict[str, Any] = {
        "run": str(folder / "run"),
        "threads": 1,
        "pipeline": {
            "source": str(source),
            "device": "cpu",
            "negative_prompt": entry.call.get("negative_prompt"),
            "call": call,
        },
        "prompts": {"path": str(write_prompts(folder / "prompts.txt")), "held_out_share": 0.3},
        "record": {
            "trajectories": 3,
            "validation_trajectories": 1,
            "states_per_trajectory": 2,
            "guidance": (3.0, 6.0),
            "steps": (3, 3),
        },
        "adapter": {"rank": 2, "g_ref": 5.0},
        "distill": {
            "steps": 2,
            "batch_size": 2,
            "warmup": 0,
            "learning_rate": 0.01,
            "normaliser_states": 4,
            "log_every": 1,
            "validate_every": 2,
            "checkpoint_every": 2,
            "preview_prompts": 0,  # tests of pictures ask for them
        },
        "evaluate": {"prompts": 2, "steps": 2, "state_prompts": 1, "grid_prompts": 1},
    }
    for key, value in (overrides or {}).items():
        values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
    return Settings.model_validate(values)


def dial_of(settings: Settings, findings: Findings) -> Dial:
    """The dial that a run trains to, without a session."""
    asked = settings.adapter
    return Dial(findings.origin, asked.g_ref, settings.record.guidance, proportional=asked.dial)
