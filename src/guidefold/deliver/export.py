"""Write a run's adapter: to ``RUN/adapter``, and in the formats of clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from guidefold.deliver.base_model import Base, base_of_run
from guidefold.deliver.clients import read_by_clients
from guidefold.deliver.comfyui_names import steps_usage
from guidefold.deliver.formats import FORMATS, cast, named, unfit
from guidefold.deliver.lora_file import FILES, read_lora, write_lora
from guidefold.deliver.metadata import describe_adapter, read_dial
from guidefold.deliver.tensor_checks import fused_weights
from guidefold.deliver.trained import Trained, read_trained
from guidefold.deliver.verify import Verdict, examine
from guidefold.ground import InputError, VerifyError, console
from guidefold.lora import STEPS_LORA, Dial, layers_of, part_folder
from guidefold.pipeline import DTYPES, is_quantized
from guidefold.run import (
    METADATA,
    Format,
    Layers,
    LoraRole,
    RunFolder,
    Settings,
    check_replaceable,
    finished_folder,
    require_run,
    write_record,
    write_tensors,
    write_text,
)
from guidefold.session import Session, open_session

FOLDED: Mapping[LoraRole, str] = {
    "guidance": "Guidance is",
    "steps": "Denoising steps are",
    "both": "Guidance and denoising steps are",
}


def export(settings: Settings) -> Path:
    """Write a run's last checkpoint as an adapter folder, reload it and compare.

    Args:
        settings: The run's settings.

    Returns:
        The adapter's folder.

    Raises:
        RunError: Nothing is trained yet.
        VerifyError: The written adapter differs from the trained student; nothing is kept.
    """
    require_run(settings.run)
    with open_session(settings) as session:
        return write_adapter(session)


def write_adapter(session: Session) -> Path:
    """:func:`export` within an open session, whose pipeline is left without a LoRA."""
    session.require(all_components=False)
    kind: Format = "diffusers" if session.findings.loader == "diffusers" else "peft"
    loras = list(read_trained(session, measure=True).values())
    metadata = [describe_adapter(session, t.step, t.marks, folds=t.folds) for t in loras]
    folder = session.run.adapter
    with finished_folder(folder) as temporary:
        write_record(temporary / METADATA, metadata[0])
        for trained, own in zip(loras, metadata, strict=True):
            for name, tensors in trained.parts.items():
                base = base_of_run(session, name)
                file = _file(base, kind, "", trained.folds)
                write_lora(temporary / file, kind, tensors, base.names, own)
                _check(temporary / file, folder / file, base, trained, kind)
    return folder


@dataclass(frozen=True)
class Delivery:
    """The files that an export has written.

    Attributes:
        verdicts: The verdict on each file.
        unfit: The formats that the adapter cannot be written in, with the reason.
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
    layers: Layers = "all",
    *,
    merged: bool = False,
) -> Delivery:
    """Write a run's last checkpoint in one format or in all that fit, each in its own folder.

    Another strength than 1, or a guidance scale, is baked in as the files' strength 1; the folder's
    name states it.

    Args:
        settings: The run's settings.
        wanted: A format, or ``all``.
        out: The folder for the formats' folders; by default ``RUN/export``.
        dtype: The precision of the files; by default fp32 for adapters, the pipeline's for fused
            weights.
        strength: The strength of the run's adapter that is baked in as strength 1.
        guidance: The guidance scale that is baked in as strength 1, by the measured dial; replaces
            ``strength``.
        layers: Which of the trained layers: ``all``, or ``portable``, without those that some
            readers of LoRA files do not take.
        merged: Whether the LoRAs of guidance and of steps become one file, for one scale.

    Raises:
        InputError: The format is unknown or does not fit, the scale is outside the dial, or the run
            has a single LoRA, which cannot be merged.
        RunError: Nothing is trained yet, or a folder cannot be made or holds something else.
        VerifyError: A file differs from the trained student, or a client that it is meant for would
            drop keys; that format's folder is not kept.
    """
    kinds = [kind for kind in FORMATS if wanted in (kind, "all")]
    if not kinds:
        raise InputError(f"--format {wanted}: no such format", f"Use all, {', '.join(FORMATS)}.")
    if dtype not in (None, *DTYPES):
        raise InputError(f"--dtype {dtype}: no such type", f"Use {', '.join(DTYPES)}.")
    run = require_run(settings.run)
    strength, suffix = _baked(run, strength, guidance)
    if merged and settings.steps_rank is None:
        raise InputError(f"--merged: {run} has a single LoRA", "Leave it out.")
    suffix += "-merged" if merged else ""
    suffix += "-portable" if layers == "portable" else ""
    places = {kind: (out or run.export) / f"{kind}{suffix}" for kind in kinds}
    for place in places.values():
        check_replaceable(place)
    with open_session(settings) as session:
        if warning := session.dial.warning(strength):
            console.print(warning)
        one = merged or "fused" in places  # fused weights hold both LoRAs, whatever the files do
        trained = read_trained(session, strength, layers=layers, merged=one)
        made = deliver_kinds(session, trained, places, dtype, merged=merged)
    if wanted != "all" and made.unfit:
        reason = made.unfit[wanted]
        raise InputError(f"--format {wanted}: {reason}", "Use --format all for what fits.")
    return made


def _baked(run: RunFolder, strength: float, guidance: float | None) -> tuple[float, str]:
    """The strength to bake in, and what a folder's name says of it; a guidance scale comes first.

    Raises:
        InputError: The scale is outside the dial, or the strength is none to bake in.
    """
    suffix = "" if strength == 1 else f"-s{strength:g}"
    if guidance is not None:
        strength, suffix = read_dial(run.adapter).measured_strength(guidance), f"-g{guidance:g}"
    if not 0 < strength < math.inf:
        given = f"--strength {strength:g}: it"
        if guidance is not None:
            given = f"--guidance {guidance:g}: its strength by the dial, {strength:g},"
        raise InputError(
            f"{given} must be finite and greater than 0", "1 is the adapter as it was trained."
        )
    return strength, suffix


def deliver_kinds(
    session: Session,
    trained: Mapping[LoraRole, Trained],
    places: Mapping[Format, Path],
    dtype: str | None = None,
    *,
    merged: bool = False,
) -> Delivery:
    """:func:`deliver` within an open session.

    Args:
        session: The run's session.
        trained: From :func:`~guidefold.deliver.trained.read_trained`, merged too where a format is
            ``fused``.
        places: A folder for each format; formats that do not fit are not written.
        dtype: The precision of the files.
        merged: Whether LoRAs of guidance and of steps become one file.
    """
    loras = [trained[role] for role in session.settings.lora_roles]
    bases = [base_of_run(session, name) for name in loras[0].parts]
    reasons = {kind: _unfit(loras[0], bases, kind) for kind in places}
    fitting = {kind: place for kind, place in places.items() if not reasons[kind]}
    one = [trained["both"]] if "both" in trained else loras
    verdicts = [
        verdict
        for kind, place in fitting.items()
        for verdict in _write_format(
            session, one if merged or kind == "fused" else loras, bases, kind, place, dtype
        )
    ]
    return Delivery(tuple(verdicts), {kind: why for kind, why in reasons.items() if why})


def _unfit(trained: Trained, bases: Sequence[Base], kind: Format) -> str:
    """Why the adapter cannot be written in a format; empty where it can."""
    for base in bases:
        tensors = trained.parts[base.name]
        if kind == "fused" and is_quantized(base.denoiser):
            return "the run's weights are quantised (pipeline.quantization): fuse in the client"
        reason = unfit(kind, base.names, base.loader, layers_of(tensors))
        if not reason and kind != "fused":
            keys = named(kind, tensors, base.names).keys()
            readings = read_by_clients(keys, kind, base.names, base.loader)
            reason = "; ".join(
                f"{r.client} would drop {', '.join(r.dropped or ())}" for r in readings if r.failed
            )
        if reason:
            return reason
    return ""


def _write_format(
    session: Session,
    loras: Sequence[Trained],
    bases: Sequence[Base],
    kind: Format,
    place: Path,
    dtype: str | None,
) -> list[Verdict]:
    """Write a format's files, one for each LoRA and denoiser; check them before they are kept."""
    title = session.run.name + place.name.removeprefix(kind)
    verdicts = []
    with finished_folder(place) as temporary:
        for trained, base in product(loras, bases):
            file = _file(base, kind, title, trained.folds)
            own = _metadata(session, trained, base, kind)
            if kind == "fused":
                _write_fused(temporary / file, trained, base, dtype, own)
            else:
                tensors = cast(trained.parts[base.name], DTYPES[dtype or "fp32"])
                written = named(kind, tensors, base.names)
                readings = read_by_clients(written, kind, base.names, base.loader)
                own["read_in_part_by"] = [reading.client for reading in readings if reading.gap]
                description = _description(session, own, title)
                write_lora(temporary / file, kind, tensors, base.names, own, description)
            verdicts.append(_check(temporary / file, place / file, base, trained, kind))
    return verdicts


def _metadata(session: Session, trained: Trained, base: Base, kind: Format) -> dict[str, Any]:
    """A file's own metadata."""
    # The dial was measured with every layer.
    marks = () if trained.left_out else read_dial(session.run.adapter).marks
    own = describe_adapter(session, trained.step, marks, trained.strength, trained.folds)
    own |= {"denoiser": base.name, "format": kind}
    return own | ({"layers": "portable"} if trained.left_out else {})


def _check(path: Path, place: Path, base: Base, trained: Trained, kind: Format) -> Verdict:
    """Check a written file as its clients read it, before it moves to its final ``place``.

    Raises:
        VerifyError: The file differs from the trained student, or a client would drop keys.
    """
    verdict = examine(read_lora(path, kind), base, trained)
    if verdict.problems:
        raise VerifyError(
            f"{place}: {verdict.problems[0]}",
            "Nothing of this format was kept. Please report the pipeline's class and "
            "adapter.targets.",
        )
    return replace(verdict, path=place)


def _write_fused(
    path: Path, trained: Trained, base: Base, dtype: str | None, metadata: Mapping[str, Any]
) -> None:
    """Write a denoiser's full weights with the adapter added, as diffusers opens them."""
    weights = fused_weights(base.denoiser, trained.parts[base.name])
    write_tensors(path, weights if dtype is None else cast(weights, DTYPES[dtype]), metadata, {})
    config: Any = base.denoiser
    write_text(path.parent / "config.json", config.to_json_string())


def _file(base: Base, kind: Format, title: str, folds: LoraRole) -> Path:
    """A file's path within its format's folder."""
    if kind in FILES:
        folder = Path(STEPS_LORA if folds == "steps" else "")
        return part_folder(folder, base.denoisers, base.name) / FILES[kind]
    own = title_of_steps(title) if folds == "steps" else title
    suffix = "" if base.name == base.denoisers[0] else f"-{base.name}"
    return Path(f"{own}{suffix}.safetensors")


def title_of_steps(title: str) -> str:
    """The title of the steps LoRA beside a guidance LoRA with a title."""
    return f"{title}-{STEPS_LORA}"


def _description(session: Session, metadata: Mapping[str, Any], title: str) -> dict[str, str]:
    """A run's adapter in ModelSpec's words."""
    call, findings = session.settings.pipeline.call, session.findings
    sized, meant = {"width", "height"} <= call.keys(), Dial.from_json(metadata).stands_for
    part = ", ".join(metadata["read_in_part_by"])
    also = "".join(f", {name} {value:g}" for name, value in findings.also_off.items())
    grid = findings.steps
    steps, folds = "" if grid is None else f"{steps_usage(grid)}, ", metadata["folds"]
    also += ", strength 1" if folds == "steps" else f", strength 1 = {meant}"
    return {
        "title": title_of_steps(title) if folds == "steps" else title,
        "prediction_type": findings.prediction_type,
        "usage_hint": f"{steps}CFG {findings.off:g}{also}",
        "description": f"{FOLDED[folds]} folded into this LoRA: one denoiser pass per step. "
        + metadata["usage_hint"]
        + (f". These clients read only a part of it: {part}" if part else ""),
        "resolution": f"{call['width']}x{call['height']}" if sized else "",
    }
