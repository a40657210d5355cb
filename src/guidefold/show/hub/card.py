"""A model card: front matter for the hub, and what people need to know to use the adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from guidefold.deliver import Verdict, client_facts
from guidefold.draw import picture_seeds
from guidefold.ground import compat
from guidefold.judge import LIBRARIES
from guidefold.listen import Findings
from guidefold.lora import DIFFUSERS_FILE, Dial
from guidefold.pipeline import DTYPES
from guidefold.run import KINDS, Results, Settings, dump_toml, hub_id, public_name, without_paths
from guidefold.session import Session
from guidefold.show.report_pictures import NAMES

REPOSITORY = "OWNER/NAME"
"""Stands for the repository's name until it has one."""
WORKFLOW = "comfyui-workflow.json"
TASKS = {
    "text-to-image": "TEXT2IMAGE",
    "image-to-image": "IMAGE2IMAGE",
    "text-to-video": "TEXT2VIDEO",
    "image-to-video": "IMAGE2VIDEO",
    "text-to-audio": "TEXT2AUDIO",
}
"""The hub's words for what pipelines do, and diffusers' own lists of those that do it."""
TAGS = ("lora", "guidance-distillation", "classifier-free-guidance", "guidefold")
# Not what Markdown makes of them: emphasis, links, tables, code, mathematics, addresses, mentions.
SPECIAL = re.compile(r"([\\`*_\[\]{}|~$:@#])|(?<=www)\.")
NAMED = re.compile(r"[\w.-]+")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


@dataclass(frozen=True)
class Held:
    """What a packed folder holds, for its card.

    Attributes:
        about: What the adapter says of itself.
        licence: As the hub writes it; empty where it is not known.
        results: What was measured of this very adapter; None where nothing was.
        shown: How many prompts were drawn.
        pictures: For each prompt ``prompt``, ``seed``, and a file for each kind.
        verdicts: On the files for other clients.
        unfit: Why there are none.
        no_workflow: Why there is no ComfyUI workflow.
    """

    about: Mapping[str, Any]
    licence: Mapping[str, str]
    results: Results | None
    shown: int
    pictures: Sequence[Mapping[str, Any]]
    verdicts: Sequence[Verdict]
    unfit: str
    no_workflow: str


def card(session: Session, held: Held) -> str:
    """A run's model card.

    Args:
        session: The run's.
        held: What lies beside the card.
    """
    settings, findings = session.settings, session.findings
    tag = pipeline_tag(findings.pipeline)
    base = hub_id(settings.pipeline.source)
    dial = Dial.from_json(held.about)
    front = front_matter(findings, base, held.licence, tag, held.pictures)
    body = {
        "title": session.run.name,
        "base": _base(session),
        "passes": f"{findings.passes_on:g}",
        "about": held.about,
        "meant": dial.stands_for,
        "pictures": held.pictures,
        "results": held.results,
        "shown": held.shown,
        "table": table(held.results) if held.results else [],
        "marks": dial.table(most=8) if dial.proportional else [],
        "code": code(session, images=tag in ("text-to-image", "image-to-image")),
        "more_inputs": sorted({n for p in session.held_out[:1] for n, _ in p.columns}),
        "clients": list(_clients(held.verdicts)),
        "unfit": held.unfit,
        "files": [inside(verdict).as_posix() for verdict in held.verdicts],
        "workflow": "" if held.no_workflow else WORKFLOW,
        "no_workflow": held.no_workflow,
        "off": ", ".join(f"`{n}={v}`" for n, v in findings.scale_arguments(findings.off).items()),
        "versions": {name: version(name) for name in LIBRARIES},
        "settings": dump_toml(without_paths(settings)).strip(),
        "licence": held.licence.get("license_name") or held.licence.get("license", ""),
    }
    return render(front, body)


def inside(verdict: Verdict) -> Path:
    """A delivered file's place in the packed folder."""
    return Path(verdict.kind) / verdict.path.name


def pipeline_tag(kind: str) -> str | None:
    """The hub's word for what a pipeline does, where diffusers itself lists it; else None."""
    for tag, name in TASKS.items():
        if kind in compat.pipelines_for(name):
            return tag
    return None


def render(front: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """The card.

    Args:
        front: What the hub reads, by its own names; empty values are left out.
        body: The template's variables.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain
    template = (files("guidefold.show.hub") / "card.md").read_text(encoding="utf-8")
    said = {name: value for name, value in front.items() if value}
    text = environment.from_string(template).render(**body)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return str(ModelCard(f"---\n{ModelCardData(**said).to_yaml()}\n---\n\n{text}\n"))


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(str(text).split())
    whole = "".join(ENTITIES.get(sign, sign) for sign in line)
    return SPECIAL.sub(lambda found: "\\" + found[0], whole)


def front_matter(
    findings: Findings,
    base: str | None,
    licence: Mapping[str, str],
    tag: str | None,
    pictures: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the hub reads of the card.

    Source: huggingface.co/docs/hub/model-cards and model-cards-components (the gallery).

    Args:
        findings: What the probe found.
        base: The base's name on the hub; None where it has none.
        licence: ``license``, and with it what the base's own card says beside.
        tag: The hub's word for what the pipeline does; None where it is not sure.
        pictures: Of each prompt, ``prompt`` and ``student``.
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
    """Headings and rows of what was measured; seconds as shares of the teacher's."""
    judged = results.teacher.alignment is not None
    whole = results.teacher.denoiser_seconds_per_image
    rows = [["", *(["alignment"] if judged else []), "passes a picture", "seconds, teacher = 1"]]
    for kind in KINDS:
        its = results.of(kind)
        aligned = [f"{its.alignment:.3f}"] if judged else []
        share = _share(its.denoiser_seconds_per_image, whole)
        rows.append([NAMES[kind], *aligned, f"{its.passes_per_image:g}", share])
    student = results.student
    fused = _share(student.denoiser_seconds_per_image_fused, whole)
    passes = f"{student.passes_per_image:g}"
    return [*rows, ["student, fused", *([""] if judged else []), passes, fused]]


def code(session: Session, *, images: bool) -> str:
    """Python that draws the first held-out prompt's picture with diffusers, as it stands.

    Args:
        session: The run's.
        images: Whether the pipeline returns pictures.
    """
    settings, findings, prompt = session.settings, session.findings, session.held_out[0]
    scaled = findings.scale_arguments(findings.off)
    call = {
        **settings.pipeline.call,
        **{name: value for name, value in scaled.items() if "." not in name},
        "num_inference_steps": settings.evaluate.steps,
    }
    (seed,) = picture_seeds(settings.seed, 1)
    given = [_literal(prompt.text)] if prompt.text else []
    given += [f"{name}={_literal(value)}" for name, value in call.items()]
    given += [f"generator=torch.Generator().manual_seed({seed})"]
    lines = ["import torch", *_opened(settings, findings)]
    lines += [
        f"pipeline.{name} = {_literal(value)}" for name, value in scaled.items() if "." in name
    ]
    lines += [*_loaded(findings), f"{'picture' if images else 'result'} = pipeline("]
    lines += [f"    {one}," for one in given]
    return "\n".join([*lines, ").images[0]" if images else ")[0]"])


def _opened(settings: Settings, findings: Findings) -> list[str]:
    """The lines that open the base."""
    base = public_name(settings.pipeline.source) or ""
    dtype = str(DTYPES[settings.pipeline.dtype])
    if settings.pipeline.source == "bundled":
        return [
            "from guidefold import api",
            "",
            'pipeline = api.open_pipeline("bundled")  # Guidefold\'s own teacher',
        ]
    whole = base.endswith(".safetensors")
    kind = findings.pipeline if whole else "DiffusionPipeline"
    load = "from_single_file" if whole else "from_pretrained"
    last = ["from peft import PeftModel"] if findings.loader == "peft" else []
    return [
        f"from diffusers import {kind}",
        *last,
        "",
        f"pipeline = {kind}.{load}({_literal(base)}, dtype={dtype})",
    ]


def _loaded(findings: Findings) -> list[str]:
    """The lines that load the adapter, as :func:`~guidefold.lora.loaded.load_part` does."""
    first, *others = findings.denoisers
    if findings.loader == "peft":
        return [
            f'PeftModel.from_pretrained(pipeline.{name}, "{REPOSITORY}"'
            + ("" if name == first else f', subfolder="{name}"')
            + ")"
            for name in findings.denoisers
        ]
    file = f'weight_name="{DIFFUSERS_FILE}", adapter_name="guidance"'
    lines = ["pipeline.load_lora_weights(", f'    "{REPOSITORY}", {file}', ")"]
    for name in others:
        part = f'    subfolder="{name}", prefix="{first}",'
        lines += [f"pipeline.{name}.load_lora_adapter(", f'    "{REPOSITORY}", {file},', part, ")"]
    dial = [] if others else ['pipeline.set_adapters("guidance", 1.0)  # the dial']
    return [*lines, *dial]


def _literal(value: object) -> str:
    """A value as Python, text in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _base(session: Session) -> dict[str, Any]:
    """The base's rows."""
    asked, findings = session.settings.pipeline, session.findings
    return {
        "name": "Guidefold's bundled teacher"
        if asked.source == "bundled"
        else public_name(asked.source),
        "pipeline": findings.pipeline,
        "scheduler": findings.scheduler,
        "prediction_type": findings.prediction_type,
        "denoisers": findings.denoisers,
        "denoiser_class": findings.denoiser_class,
        "fingerprint": findings.fingerprint,
        "dtype": asked.dtype,
    }


def _clients(verdicts: Sequence[Verdict]) -> Iterator[dict[str, str]]:
    """Rows of what to set: the clients that read a file whole."""
    for verdict in verdicts[:1]:
        whole = {reading.client for reading in verdict.readings if reading.dropped == ()}
        for use in client_facts()["use"]:
            if use["client"] in whole and verdict.kind in use["formats"]:
                title = verdict.path.stem if NAMED.fullmatch(verdict.path.stem) else "NAME"
                place = use["place"].replace("NAME", title)
                yield {**use, "place": place, "file": inside(verdict).as_posix()}


def _share(seconds: float, whole: float) -> str:
    return f"{seconds / whole:.2f}" if whole else "-"
