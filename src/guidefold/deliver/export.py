"""A run's adapter in the formats of its clients: written, read as they do, and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guidefold.about import describe_adapter, read_dial
from guidefold.adapter import (
    DIFFUSERS_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    adapter_config,
    layers_of,
    part_folder,
)
from guidefold.deliver.clients import read_by_clients
from guidefold.deliver.formats import FORMATS, Tensors, cast, named, of_one_rank, unfit
from guidefold.deliver.metadata import labels
from guidefold.deliver.tensor_checks import fused_weights
from guidefold.deliver.trained import Trained, read_trained
from guidefold.deliver.verify import WEIGHTS, Base, Verdict, base_of_run, examine
from guidefold.errors import InputError, VerifyError
from guidefold.findings import Findings
from guidefold.lora.dial import Dial
from guidefold.pipelines import DTYPES
from guidefold.progress import console
from guidefold.run.folder import require_run
from guidefold.runs import finished_folder, write_json, write_tensors, write_text
from guidefold.session import Session, open_session
from guidefold.settings import Format, Settings


@dataclass(frozen=True)
class Delivery:
    """What was written.

    Attributes:
        verdicts: A file each, as its clients read it.
        unfit: The formats that do not fit, with the reason.
    """

    verdicts: tuple[Verdict, ...]
    unfit: Mapping[str, str]


def deliver(
    settings: Settings,
    wanted: str,
    out: Path | None = None,
    dtype: str | None = None,
    strength: float = 1.0,
    guidance: float | None = None,
) -> Delivery:
    """Write a run's last checkpoint in a format, or in all that fit, each in a folder of its own.

    With another strength than 1, or a guidance scale, what is written is fixed there: it stands at
    strength 1, in a folder whose name says so.

    Args:
        settings: The run's.
        wanted: A format, or ``all``.
        out: Holds the folders; by default ``RUN/export``.
        dtype: Of what is written; by default fp32 for adapters, the pipeline's for fused weights.
        strength: Of the run's adapter, that becomes strength 1 of what is written.
        guidance: In its place, the guidance scale that strength 1 shall stand for, by the dial as
            it was measured.

    Raises:
        InputError: No such format, or it does not fit; guidance that the dial does not reach.
        RunError: Nothing is trained yet.
        VerifyError: A file does not give back what was trained, or a client that it is meant for
            would drop a part of it; that format's folder is not kept.
    """
    kinds = [kind for kind in FORMATS if wanted in (kind, "all")]
    if not kinds:
        raise InputError(f"--format {wanted}: no such format", f"Use all, {', '.join(FORMATS)}.")
    if dtype not in (None, *DTYPES):
        raise InputError(f"--dtype {dtype}: no such type", f"Use {', '.join(DTYPES)}.")
    run = require_run(settings.run)
    suffix = "" if strength == 1 else f"-s{strength:g}"
    if guidance is not None:
        strength, suffix = read_dial(run.adapter).measured_strength(guidance), f"-g{guidance:g}"
    if not 0 < strength < math.inf:
        asked = f"--strength {strength:g}" if guidance is None else f"--guidance {guidance:g}"
        raise InputError(f"{asked}: nothing that a file could stand for", "Give a higher one.")
    with open_session(settings) as session:
        if warning := session.dial.warning(strength):
            console.print(warning, markup=False)
        folder = out or run.export
        places = {kind: folder / f"{kind}{suffix}" for kind in kinds}
        made = deliver_kinds(session, read_trained(session, strength), places, dtype, strength)
    if wanted != "all" and made.unfit:
        reason = made.unfit[wanted]
        raise InputError(f"--format {wanted}: {reason}", "Use --format all for what fits.")
    return made


def deliver_kinds(
    session: Session,
    trained: Trained,
    places: Mapping[Format, Path],
    dtype: str | None = None,
    strength: float = 1.0,
) -> Delivery:
    """:func:`deliver` within an open session.

    Args:
        session: The run's.
        trained: What it has trained, at that strength.
        places: A folder for each format; formats that do not fit are left out.
        dtype: Of what is written.
        strength: Of the run's adapter, that becomes strength 1 of what is written.
    """
    left: dict[str, str] = {k: reason for k in places if (reason := _unfit(session, trained, k))}
    verdicts = [
        verdict
        for kind, place in places.items()
        if kind not in left
        for verdict in _write(session, trained, kind, place, dtype, strength)
    ]
    return Delivery(tuple(verdicts), left)


def write_file(
    path: Path, kind: Format, tensors: Tensors, base: Base, about: Mapping[str, Any]
) -> None:
    """Write one denoiser's adapter.

    Args:
        path: The file.
        kind: Any format but ``fused``.
        tensors: By peft's names; alpha equals the rank.
        base: What it is for.
        about: For :func:`~guidefold.deliver.metadata.labels`, and under ``json`` what is kept as
            JSON.
    """
    # kohya's files say alpha for every layer; the others say it nowhere, as nothing but the rank
    # is understood by all: diffusers raises on metadata with fields that its peft does not know.
    alike = tensors if kind == "kohya" else of_one_rank(tensors)
    written = named(kind, alike, base.names, base.component)
    write_tensors(path, written, about.get("json"), labels(kind, alike, written, base.names, about))
    if kind == "peft":
        layers = layers_of(alike)
        rank = alike[f"{layers[0]}.lora_A.weight"].shape[0]
        write_json(path.parent / PEFT_CONFIG, adapter_config(rank, layers))


def strengthened(tensors: Tensors, strength: float) -> Tensors:
    """An adapter that is at strength 1 what another is at a strength: ``lora_B`` is multiplied."""
    return {n: t * strength if ".lora_B." in n else t for n, t in tensors.items()}


def _unfit(session: Session, trained: Trained, kind: Format) -> str:
    """Why a format does not fit; nothing where it does."""
    findings = session.findings
    for name in findings.denoisers:
        base = base_of_run(session, name)
        tensors = trained.part(findings.denoisers, name)
        reason = unfit(kind, base.names, base.component, base.loader, layers_of(tensors))
        if not reason and kind != "fused":
            keys = named(kind, tensors, base.names, base.component).keys()
            readings = read_by_clients(keys, kind, base.names, base.component, base.loader)
            reason = "; ".join(
                f"{r.client} would drop {', '.join(r.dropped or ())}" for r in readings if r.failed
            )
        if reason:
            return reason
    return ""


def _write(
    session: Session,
    trained: Trained,
    kind: Format,
    place: Path,
    dtype: str | None,
    strength: float,
) -> list[Verdict]:
    """Write a format's files, one for each denoiser, and keep them if they stand the test."""
    verdicts, suffix = [], place.name.removeprefix(kind)
    marks = read_dial(session.run.adapter).marks
    with finished_folder(place) as temporary:
        for name in session.findings.denoisers:
            file = _file(session, kind, name, suffix)
            path = temporary / file
            base = base_of_run(session, name)
            tensors = trained.part(session.findings.denoisers, name)
            about = describe_adapter(session, trained.step, marks, strength)
            about |= {"denoiser": name, "format": kind}
            if kind == "fused":
                weights = fused_weights(base.module, tensors, strength)
                weights = weights if dtype is None else cast(weights, DTYPES[dtype])
                write_tensors(path, weights, about, {})
                config: Any = base.module
                write_text(path.parent / "config.json", config.to_json_string())
            else:
                small = cast(strengthened(tensors, strength), DTYPES[dtype or "fp32"])
                write_file(path, kind, small, base, _spoken(session, about, suffix))
            verdict = examine(path, base, (session, trained), kind)
            if verdict.problems:
                raise VerifyError(
                    f"{place / file}: {verdict.problems[0]}",
                    "Nothing of this format was kept. Please report the pipeline's class and "
                    "adapter.targets.",
                )
            verdicts.append(replace(verdict, path=place / file))
    return verdicts


def _file(session: Session, kind: Format, name: str, suffix: str) -> Path:
    """A file's place in its format's folder."""
    denoisers, title = session.findings.denoisers, session.run.name + suffix
    if kind in ("kohya", "transformer"):
        return Path(title + ("" if name == denoisers[0] else f"-{name}") + ".safetensors")
    file = {"diffusers": DIFFUSERS_FILE, "peft": PEFT_FILE, "fused": WEIGHTS}[kind]
    return part_folder(Path(), denoisers, name) / file


def _spoken(session: Session, about: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """A run for the metadata of other programs."""
    call, findings = session.settings.pipeline.call, session.findings
    sized, meant = {"width", "height"} <= call.keys(), Dial.from_json(about).stands_for
    return {
        "json": about,
        "title": session.run.name + suffix,
        "prediction_type": findings.prediction_type,
        "hint": f"CFG {findings.off:g}{_also(findings)}, strength 1 = {meant}",
        "description": "Guidance folded into a LoRA: one pass a step. " + about["usage_hint"],
        "size": f"{call['width']}x{call['height']}" if sized else "",
    }


def _also(findings: Findings) -> str:
    return "".join(f", {name} {value:g}" for name, value in findings.also_off.items())
