"""A run's adapter, written for its users: in ``RUN/adapter``, and in the formats of its clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guidefold.deliver.base_model import Base, base_of_run
from guidefold.deliver.clients import read_by_clients
from guidefold.deliver.formats import FORMATS, cast, named, unfit
from guidefold.deliver.lora_file import FILES, read_lora, write_lora
from guidefold.deliver.metadata import describe_adapter, read_dial
from guidefold.deliver.tensor_checks import fused_weights
from guidefold.deliver.trained import Trained, read_trained
from guidefold.deliver.verify import Verdict, examine
from guidefold.ground import InputError, VerifyError, console
from guidefold.lora import Dial, layers_of, part_folder
from guidefold.pipeline import DTYPES
from guidefold.run import (
    METADATA,
    Format,
    Settings,
    finished_folder,
    require_run,
    write_json,
    write_tensors,
    write_text,
)
from guidefold.session import Session, open_session


def export(settings: Settings) -> Path:
    """Write a run's last checkpoint as an adapter folder, reload it and compare.

    Args:
        settings: The run's.

    Returns:
        The adapter's folder.

    Raises:
        RunError: Nothing is trained yet.
        VerifyError: What was written does not give back what was trained; nothing is kept.
    """
    require_run(settings.run)
    with open_session(settings) as session:
        return write_adapter(session)


def write_adapter(session: Session) -> Path:
    """:func:`export` within an open session, whose pipeline is left without a LoRA."""
    session.require(all_components=False)
    trained = read_trained(session, measure=True)
    kind: Format = "diffusers" if session.findings.loader == "diffusers" else "peft"
    about = describe_adapter(session, trained.step, trained.marks)
    folder = session.run.adapter
    with finished_folder(folder) as temporary:
        write_json(temporary / METADATA, about)
        for name, tensors in trained.parts.items():
            base = base_of_run(session, name)
            file = _file(base, kind, "")
            write_lora(temporary / file, kind, tensors, base.names, about)
            _check(temporary / file, folder / file, base, trained, kind)
    return folder


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
        made = deliver_kinds(session, read_trained(session, strength), places, dtype)
    if wanted != "all" and made.unfit:
        reason = made.unfit[wanted]
        raise InputError(f"--format {wanted}: {reason}", "Use --format all for what fits.")
    return made


def deliver_kinds(
    session: Session, trained: Trained, places: Mapping[Format, Path], dtype: str | None = None
) -> Delivery:
    """:func:`deliver` within an open session.

    Args:
        session: The run's.
        trained: What it has trained, at the strength that becomes strength 1 of what is written.
        places: A folder for each format; formats that do not fit are left out.
        dtype: Of what is written.
    """
    bases = [base_of_run(session, name) for name in trained.parts]
    left: dict[str, str] = {kind: why for kind in places if (why := _unfit(trained, bases, kind))}
    verdicts = [
        verdict
        for kind, place in places.items()
        if kind not in left
        for verdict in _write_format(session, trained, bases, kind, place, dtype)
    ]
    return Delivery(tuple(verdicts), left)


def _unfit(trained: Trained, bases: Sequence[Base], kind: Format) -> str:
    """Why a format does not fit; nothing where it does."""
    for base in bases:
        tensors = trained.parts[base.name]
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
    trained: Trained,
    bases: Sequence[Base],
    kind: Format,
    place: Path,
    dtype: str | None,
) -> list[Verdict]:
    """Write a format's files, one for each denoiser, and keep them if they stand the test."""
    title = session.run.name + place.name.removeprefix(kind)
    marks = read_dial(session.run.adapter).marks
    about = describe_adapter(session, trained.step, marks, trained.strength)
    verdicts = []
    with finished_folder(place) as temporary:
        for base in bases:
            file = _file(base, kind, title)
            own = {**about, "denoiser": base.name, "format": kind}
            if kind == "fused":
                _write_fused(temporary / file, trained, base, dtype, own)
            else:
                tensors = cast(trained.strengthened(base.name), DTYPES[dtype or "fp32"])
                words = _description(session, own, title)
                write_lora(temporary / file, kind, tensors, base.names, own, words)
            verdicts.append(_check(temporary / file, place / file, base, trained, kind))
    return verdicts


def _check(path: Path, place: Path, base: Base, trained: Trained, kind: Format) -> Verdict:
    """Read a written file as its clients do.

    Args:
        path: The file.
        place: Where it will be.
        base: What it is for.
        trained: What it must give back.
        kind: Its format.

    Raises:
        VerifyError: It does not, or a client would drop a part of it.
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
    path: Path, trained: Trained, base: Base, dtype: str | None, about: Mapping[str, Any]
) -> None:
    """Write a denoiser's whole weights with the adapter added, as diffusers opens them."""
    weights = fused_weights(base.module, trained.parts[base.name], trained.strength)
    write_tensors(path, weights if dtype is None else cast(weights, DTYPES[dtype]), about, {})
    config: Any = base.module
    write_text(path.parent / "config.json", config.to_json_string())


def _file(base: Base, kind: Format, title: str) -> Path:
    """A file's place in its format's folder."""
    if kind in FILES:
        return part_folder(Path(), base.denoisers, base.name) / FILES[kind]
    return Path(
        title + ("" if base.name == base.denoisers[0] else f"-{base.name}") + ".safetensors"
    )


def _description(session: Session, about: Mapping[str, Any], title: str) -> dict[str, str]:
    """A run for the metadata of other programs."""
    call, findings = session.settings.pipeline.call, session.findings
    sized, meant = {"width", "height"} <= call.keys(), Dial.from_json(about).stands_for
    also = "".join(f", {name} {value:g}" for name, value in findings.also_off.items())
    return {
        "title": title,
        "prediction_type": findings.prediction_type,
        "hint": f"CFG {findings.off:g}{also}, strength 1 = {meant}",
        "description": "Guidance folded into a LoRA: one pass a step. " + about["usage_hint"],
        "size": f"{call['width']}x{call['height']}" if sized else "",
    }
