"""How to use a run's adapter, client by client, with code to copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guidefold.deliver import client_facts
from guidefold.ground import CorruptFileError
from guidefold.listen import Findings
from guidefold.run import Settings
from guidefold.show.hub.card_code import loading_lines, opening_lines, timestep_lines

EXPORT = "guidefold export . --format all"


@dataclass(frozen=True)
class Use:
    """How one client uses the adapter.

    Attributes:
        client: The client's name.
        code: Code to copy; it runs in the run's folder.
        note: What else to do.
    """

    client: str
    code: str
    note: str


def usage(settings: Settings, metadata: Mapping[str, Any]) -> list[Use]:
    """How each client uses a written adapter; empty where the metadata is of another version.

    Args:
        settings: The run's settings.
        metadata: The content of the adapter's ``guidefold.json``.
    """
    try:
        findings = Findings.from_json(metadata["findings"])
    except (KeyError, CorruptFileError):
        return []
    kind = "transformer" if findings.denoisers[0] == "transformer" else "kohya"
    uses = [u for u in client_facts()["use"] if kind in u["formats"] and "layers" not in u]
    return [
        Use("Python", _code(settings, findings), "Fused, the adapter costs no time of its own."),
        *(Use(use["name"], EXPORT, _note(use, kind, settings)) for use in uses),
    ]


def _code(settings: Settings, findings: Findings) -> str:
    """Python code that loads the adapter and draws."""
    scaled = findings.scale_arguments(findings.off)
    call = {name: value for name, value in scaled.items() if "." not in name}
    call |= {"num_inference_steps": findings.steps.student} if findings.steps else {}
    parts = [f"pipeline.{name} = {value!r}" for name, value in scaled.items() if "." in name]
    fuse = ["pipeline.fuse_lora()"] if findings.loader == "diffusers" else []
    arguments = ", ".join(["prompt", *(f"{name}={value!r}" for name, value in call.items())])
    return "\n".join(
        [
            "import torch",
            *opening_lines(settings, findings),
            *timestep_lines(settings, findings),
            *loading_lines(findings, settings, "adapter"),
            *fuse,
            *parts,
            f"result = pipeline({arguments})",
        ]
    )


def _note(use: Mapping[str, Any], kind: str, settings: Settings) -> str:
    """What to do in a client; the facts are written in Markdown, of which the marks are dropped."""
    both = (
        " Load both files: the one whose name ends in 'steps' stays at strength 1, the other's "
        "strength is the dial."
        if settings.steps_rank is not None
        else ""
    )
    few = f" Set {settings.student.steps} steps." if settings.student.steps is not None else ""
    text = (
        f"Where the command says that {use['client']} reads every key: put export/{kind} into "
        f"{use['place']}; set {use['set']}. It makes {use['passes']}.{few}{both}"
    )
    return text.replace("*", "").replace("`", "")
