"""A plan in words: its parts, its verdict, and settings that would take less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from guidefold.bench.memory.fit import Fit
from guidefold.bench.memory.plan import GIB, SPARE, Plan
from guidefold.ground import plural
from guidefold.run import Settings


def describe(plan: Plan, settings: Settings) -> str:
    """A plan as text: its parts, the largest first, and whether it fits."""
    stored, library = settings.distill.frozen_weights, settings.pipeline.quantization
    frozen = "" if stored == "same" else f", trained on in {stored}"
    frozen += "" if library == "none" else f", linear layers in {library}"
    lines = [
        f"{plan.denoiser}, {plan.parameters:,} parameters in {settings.pipeline.dtype}{frozen}; "
        f"adapter of rank {settings.adapter.rank} on '{settings.adapter.targets}', "
        f"{plan.trained_parameters:,} parameters; {plural(plan.rows, 'sample')} in a call",
        "",
        *(
            f"{name:20}{size / GIB:8.2f} GiB"
            for name, size in sorted(plan.parts.items(), key=lambda item: -item[1])
        ),
        "",
        *(
            f"{name:20}{size / GIB:8.2f} GiB at its peak"
            for name, size in (
                ("text encoding", plan.encoding_bytes),
                ("recording", plan.recording_bytes),
                ("training step", plan.peak_bytes),
            )
        ),
        "",
        _verdict(plan, settings),
    ]
    return "\n".join(lines)


def _verdict(plan: Plan, settings: Settings) -> str:
    if plan.available_bytes is None:
        return f"{plan.device}: its memory is not known here; compare with --memory GIB."
    memory = f"{plan.available_bytes / GIB:.2f} GiB ({plan.device})"
    if plan.fits:
        return f"Fits into {memory}, with a tenth or more to spare."
    remedies = f"Try {', '.join(_remedies(plan, settings))}."
    if plan.just_fits:
        spare = 1 - plan.needed_bytes / plan.available_bytes
        return (
            f"Just fits into {memory}: {spare:.1%} to spare. Workspaces and context, which are not "
            f"counted, may need a tenth. {remedies}"
        )
    return f"Does not fit into {memory}. {remedies}"


def _remedies(plan: Plan, settings: Settings) -> list[str]:
    """Settings that would save memory in the phases that take too much."""
    limit = (1 - SPARE) * (plan.available_bytes or 0)
    recording = {
        "pipeline.dtype=bf16": settings.pipeline.dtype == "fp32",
        "pipeline.offload=component": settings.pipeline.offload == "none" and plan.device != "cpu",
        "pipeline.offload=group": settings.pipeline.offload == "component",
        "pipeline.quantization=bitsandbytes_4bit": settings.pipeline.quantization == "none"
        and settings.distill.frozen_weights == "same"
        and plan.device != "cpu",
        "record.batch_size=1": settings.record.batch_size > 1,
    }
    needs_recording = max(plan.encoding_bytes, plan.recording_bytes) > limit
    first = [name for name, applies in recording.items() if applies and needs_recording]
    training = cheaper(settings) if plan.peak_bytes > limit else []
    return list(dict.fromkeys([*first, *training])) or ["a larger device"]


def cheaper(settings: Settings) -> list[str]:
    """Settings that would save memory in training and are not set yet, the most helpful first."""
    distill = settings.distill
    can_quantise = (
        "student" not in settings.record.rounds and settings.pipeline.quantization == "none"
    )
    applicable = {
        "pipeline.dtype=bf16": settings.pipeline.dtype == "fp32",
        "distill.gradient_checkpointing=true": not distill.gradient_checkpointing,
        f"distill.accumulation={distill.batch_size}": distill.accumulation < distill.batch_size,
        "distill.frozen_weights=int8": can_quantise and distill.frozen_weights in ("same", "bf16"),
        "distill.frozen_weights=int4": can_quantise and distill.frozen_weights == "int8",
        "distill.optimizer=adamw8bit": distill.optimizer != "adamw8bit",
        "adapter.rank=4": settings.adapter.rank > 4,
        "adapter.targets=attention": settings.adapter.targets != "attention",
    }
    return [setting for setting, applies in applicable.items() if applies] or ["a larger device"]


def describe_fit(fit: Fit | None, settings: Settings) -> str:
    """The fastest settings that fit, as they are written on the command line."""
    if fit is None:
        return (
            "No settings of storage, offloading and batch fit: a smaller size, or a larger device."
        )
    chosen = " ".join(fit.overrides(settings)) or "these, as they are"
    return f"Fastest settings that fit: {chosen}\n  {_peaks(fit)}"


def cards_to_table(fits: Mapping[int, Fit | None], settings: Settings) -> str:
    """A line for each card: the fastest settings that fit it, and what they take."""
    lines = [f"{settings.pipeline.source} in {settings.pipeline.dtype}"]
    for card, fit in fits.items():
        if fit is None:
            lines.append(f"{card:3} GiB  does not fit")
        else:
            lines += [f"{card:3} GiB  {in_words_of(fit, settings)}", f"         {_peaks(fit)}"]
    return "\n".join(lines)


def in_words_of(fit: Fit, settings: Settings) -> str:
    """All settings of a fit, in the order of the card table."""
    rows = settings.distill.batch_size // fit.accumulation
    checkpointing = "checkpointing" if fit.checkpointing else "no checkpointing"
    return (
        f"{settings.pipeline.dtype}, quantization {fit.quantization}, "
        f"frozen weights {fit.frozen_weights}, offload {fit.offload}, {checkpointing}, "
        f"batch {settings.distill.batch_size} as {fit.accumulation} x {rows}"
    )


def fit_to_json(fit: Fit | None, settings: Settings) -> dict[str, Any] | None:
    """A fit as plain values, with its overrides."""
    if fit is None:
        return None
    return {**asdict(fit), "overrides": fit.overrides(settings)}


def _peaks(fit: Fit) -> str:
    return (
        f"at most {fit.encoding_bytes / GIB:.2f} GiB for text encoding, "
        f"{fit.recording_bytes / GIB:.2f} for recording, {fit.peak_bytes / GIB:.2f} for training"
    )
