"""The model card: front matter for the hub, and instructions for using the adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from guidefold.deliver import Verdict, client_facts, layer_names, steps_usage
from guidefold.ground import compat, in_words, plural
from guidefold.judge import LIBRARIES
from guidefold.listen import Findings
from guidefold.lora import Dial
from guidefold.run import (
    PATHS,
    Results,
    RunFolder,
    dump_toml,
    hub_id,
    public_name,
    read_log,
    without_paths,
)
from guidefold.session import Session
from guidefold.show.hub.card_code import code
from guidefold.show.report_pictures import NAMES
from guidefold.show.summary import folded_share, seconds_of, undertrained

WORKFLOW = "comfyui-workflow.json"
TASKS = {
    "text-to-image": "TEXT2IMAGE",
    "image-to-image": "IMAGE2IMAGE",
    "text-to-video": "TEXT2VIDEO",
    "image-to-video": "IMAGE2VIDEO",
    "text-to-audio": "TEXT2AUDIO",
}
"""The hub's pipeline tags, and the names of diffusers' lists of such pipelines."""
SECONDS = ("seconds, teacher = 1", "seconds, LoRA not fused")
TAGS = ("lora", "guidance-distillation", "classifier-free-guidance", "guidefold")
# Characters with a meaning in Markdown: emphasis, links, tables, code, formulas, URLs, mentions.
SPECIAL = re.compile(r"([\\`*_\[\]{}|~$:@#])|(?<=www)\.")
NAMED = re.compile(r"[\w.-]+")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


@dataclass(frozen=True)
class PackedContent:
    """The content of a packed folder, for its card.

    Attributes:
        metadata: The content of the adapter's ``guidefold.json``.
        licence: The licence fields of the front matter; empty where it is not known.
        results: The evaluation of this adapter at strength 1; None without one.
        evaluated: The number of evaluated prompts.
        pictures: For each prompt ``prompt``, ``seed``, and a file for each kind.
        verdicts: The verification of the files for other clients.
        unfit: Why there are no files for other clients; empty where there are.
        no_workflow: Why there is no ComfyUI workflow; empty where there is one.
    """

    metadata: Mapping[str, Any]
    licence: Mapping[str, str]
    results: Results | None
    evaluated: int
    pictures: Sequence[Mapping[str, Any]]
    verdicts: Sequence[Verdict]
    unfit: str
    no_workflow: str


def card(session: Session, content: PackedContent) -> str:
    """Write a run's model card.

    Args:
        session: The run's session.
        content: The content of the folder that the card describes.
    """
    settings, findings = session.settings, session.findings
    tag = pipeline_tag(findings.pipeline)
    base = hub_id(settings.pipeline.source)
    dial = Dial.from_json(content.metadata)
    front = front_matter(findings, base, content.licence, tag, content.pictures)
    body = {
        "title": session.run.name,
        "base": _base(session),
        "passes": f"{findings.passes_on:g}",
        "steps": findings.steps,
        "two": settings.steps_rank is not None,
        "steps_usage": steps_usage(findings.steps) if findings.steps else "",
        "metadata": content.metadata,
        "stands_for": dial.stands_for,
        "warning": undertrained(folded_share(content.results, read_log(session.run.log)), settings),
        "pictures": content.pictures,
        "results": content.results,
        "evaluated": content.evaluated,
        "table": table(content.results) if content.results else [],
        "marks": dial.table(most=8) if dial.proportional else [],
        "code": code(session, images=tag in ("text-to-image", "image-to-image")),
        "more_inputs": sorted({n for p in session.held_out[:1] for n, _ in p.columns}),
        "clients": list(_clients(content.verdicts, _family(session))),
        "in_part": list(_in_part(content.verdicts)),
        "unfit": content.unfit,
        "files": [inside(verdict).as_posix() for verdict in content.verdicts],
        "workflow": "" if content.no_workflow else WORKFLOW,
        "no_workflow": content.no_workflow,
        "off": ", ".join(f"`{n}={v}`" for n, v in findings.scale_arguments(findings.off).items()),
        "changes": list(_changes(session.run)),
        "versions": {name: version(name) for name in LIBRARIES},
        "settings": dump_toml(without_paths(settings)).strip(),
        "licence": content.licence.get("license_name") or content.licence.get("license", ""),
    }
    return render(front, body)


def inside(verdict: Verdict) -> Path:
    """An exported file's path in the packed folder."""
    return Path(verdict.kind) / verdict.path.name


def pipeline_tag(kind: str) -> str | None:
    """The hub's tag for a pipeline class that diffusers lists for a task; None for any other."""
    return next((tag for tag, task in TASKS.items() if kind in compat.pipelines_for(task)), None)


def render(front: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """Render the card.

    Args:
        front: The front matter; empty values are left out.
        body: The template's variables.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": plain, "plural": plural}
    template = (files("guidefold.show.hub") / "card.md").read_text(encoding="utf-8")
    fields = {name: value for name, value in front.items() if value}
    text = environment.from_string(template).render(**body)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return str(ModelCard(f"---\n{ModelCardData(**fields).to_yaml()}\n---\n\n{text}\n"))


def plain(text: object) -> str:
    """Escape text, so that Markdown shows it unchanged and on one line."""
    line = "".join(ENTITIES.get(sign, sign) for sign in " ".join(str(text).split()))
    return SPECIAL.sub(lambda match: "\\" + match[0], line)


def front_matter(
    findings: Findings,
    base: str | None,
    licence: Mapping[str, str],
    tag: str | None,
    pictures: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The front matter of the card.

    Source: huggingface.co/docs/hub/model-cards and model-cards-components (the gallery).

    Args:
        findings: The probe's findings.
        base: The base's name on the hub; None where it has none.
        licence: ``license``, with ``license_name`` and ``license_link`` of the base's own card.
        tag: The pipeline tag; None where it is not known.
        pictures: Rows with ``prompt`` and ``student``.
    """
    return {
        "base_model": base,
        "base_model_relation": base and "adapter",
        "library_name": findings.loader,
        **licence,
        "pipeline_tag": tag,
        "tags": list(TAGS),
        "widget": [
            {"text": " ".join(row["prompt"].split()), "output": {"url": row["student"]}}
            for row in pictures
        ],
    }


def table(results: Results) -> list[list[str]]:
    """Headings and rows of the results; seconds as shares of the teacher's."""
    judged = results.teacher.alignment is not None
    total = results.teacher.denoiser_seconds_per_image
    rows = [["", *(["alignment"] if judged else []), "passes per picture", *SECONDS]]
    for kind, steps, measured in results.rows():
        aligned = [f"{measured.alignment:.3f}"] if judged else []
        seconds = [_share(value, total) for value in seconds_of(measured)]
        rows.append([NAMES[kind] + steps, *aligned, f"{measured.passes_per_image:g}", *seconds])
    return rows


def _base(session: Session) -> dict[str, Any]:
    """Facts about the base, for the template."""
    settings, findings = session.settings.pipeline, session.findings
    return {
        "name": "Guidefold's bundled teacher"
        if settings.source == "bundled"
        else public_name(settings.source),
        "pipeline": findings.pipeline,
        "scheduler": findings.scheduler,
        "prediction_type": findings.prediction_type,
        "denoisers": findings.denoisers,
        "denoiser_class": findings.denoiser_class,
        "fingerprint": findings.fingerprint,
        "dtype": settings.dtype,
        "quantization": "" if settings.quantization == "none" else settings.quantization,
    }


def _family(session: Session) -> str:
    """The family of the denoiser in ``clients.toml``; empty for UNets and unknown ones."""
    layout = layer_names(session.denoisers[session.findings.denoisers[0]]).layout
    return layout.architecture if layout else ""


def _first_of_each_format(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The first denoiser's files."""
    return list({verdict.kind: verdict for verdict in reversed(verdicts)}.values())[::-1]


def _clients(verdicts: Sequence[Verdict], family: str) -> Iterator[dict[str, str]]:
    """Rows of instructions for the clients that read every key of a file."""
    for verdict in _first_of_each_format(verdicts):
        fit = {reading.client for reading in verdict.readings if reading.dropped == ()}
        for use in client_facts()["use"]:
            of_family = family in use.get("families", [family])
            if use["client"] in fit and verdict.kind in use["formats"] and of_family:
                title = verdict.path.stem if NAMED.fullmatch(verdict.path.stem) else "NAME"
                place = use["place"].replace("NAME", title)
                yield {**use, "place": place, "file": inside(verdict).as_posix()}


def _in_part(verdicts: Sequence[Verdict]) -> Iterator[dict[str, str]]:
    """The clients that a file is not for because of some of its layers."""
    for verdict in _first_of_each_format(verdicts):
        file = inside(verdict).as_posix()
        for reading in verdict.readings:
            if reading.gap:
                yield {"name": reading.client, "file": file, "loss": reading.loss(verdict.keys)}


def _changes(run: RunFolder) -> Iterator[str]:
    """The settings that were changed while the run was trained, as its log has them."""
    for line in read_log(run.log).resumed:
        for name, (before, now) in line.changed.items():
            if tuple(name.split(".")) not in PATHS:  # of this machine; what they hold is the same
                values = f"{in_words(now)}, until there {in_words(before)}"
                yield f"from step {line.step} on {name} = {values}"


def _share(seconds: float | None, total: float) -> str:
    """A time as a share of another; empty where there is none."""
    if seconds is None:
        return ""
    return f"{seconds / total:.2f}" if total else "-"
