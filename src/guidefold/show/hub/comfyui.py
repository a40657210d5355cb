"""Whether ComfyUI can draw a run's teacher and student, and the workflow's values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guidefold.deliver import (
    LayerNames,
    Verdict,
    few_steps_config,
    few_steps_shift,
    layer_names,
    title_of_steps,
)
from guidefold.run import public_name
from guidefold.session import Session
from guidefold.show.hub.workflow import Workflow, base_entry, known_sizes

CLIENT = "ComfyUI"
CARRIED = {"width", "height", "num_inference_steps"}
SIZE = 1024  # pixels, where the size of the pipeline's pictures is not known


def file_for_comfyui(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The first file of which ComfyUI reads every key; None where there is none."""
    return next(
        (v for v in verdicts for r in v.readings if r.client == CLIENT and r.dropped == ()), None
    )


def unsuitable(session: Session, verdicts: Sequence[Verdict]) -> str:
    """Why a run can have no workflow; empty where it can.

    Args:
        session: The run's session, with all components open.
        verdicts: The verification of the files for ComfyUI.
    """
    findings, prompts = session.findings, [*session.prompts[:1], *session.held_out[:1]]
    reason = ""
    if file_for_comfyui(verdicts) is None:
        reason = "ComfyUI is not known to load a LoRA onto this denoiser"
    elif len(findings.denoisers) > 1:
        reason = "two denoisers take turns, which it does not draw"
    elif findings.also_off or findings.passes_on != 2:
        reason = "the teacher guides with more than CFG"
    elif any(prompt.columns for prompt in prompts):
        reason = "the pipeline is given more than a prompt"
    elif not _loadable(session, _names(session)):
        reason = "it is not known which of ComfyUI's nodes load this base"
    elif not known_sizes(_names(session)):
        reason = "ComfyUI knows a UNet by its sizes, and this one has those of no released model"
    return reason


def describe_workflow(session: Session, lora: str, size: Sequence[int] | None) -> Workflow:
    """The workflow of a run's teacher and student on the first held-out prompt.

    Args:
        session: The run's session, with all components open.
        lora: The name of the LoRA file for ComfyUI.
        size: Width and height of the run's pictures; None without pictures.
    """
    findings, settings = session.findings, session.settings.pipeline
    names = _names(session)
    return Workflow(
        names=names,
        base=public_name(settings.source) or "",
        encoders=len(_encoders(session)),
        lora=lora,
        prompt=session.held_out[0].text,
        negative_prompt=settings.negative_prompt or "",
        seed=0,  # any: ComfyUI makes other noise of a seed than diffusers does
        steps=session.settings.steps_of("teacher"),
        student_steps=session.settings.steps_of("student"),
        size=_size(session, names, size),
        # ComfyUI's CFG is off at 1; a pipeline's guidance is off at its origin, 1 or 0.
        cfg=1 + session.compared.guidance - findings.origin,
        strength=session.compared.strength,
        prediction_type=findings.prediction_type,
        scheduler=findings.scheduler,
        grid=_grid(session),
        embedded_guidance=_embedded(session, names),
        steps_lora=_steps_file(session, lora),
        remarks=_remarks(session),
    )


def _steps_file(session: Session, lora: str) -> str:
    """The file name of the steps LoRA beside the guidance LoRA; empty without one."""
    if session.settings.steps_rank is None:
        return ""
    return f"{title_of_steps(lora.removesuffix('.safetensors'))}.safetensors"


def _names(session: Session) -> LayerNames:
    return layer_names(session.denoisers[session.findings.denoisers[0]])


def _loadable(session: Session, names: LayerNames) -> bool:
    """Whether ComfyUI has loaders for the whole base.

    A UNet comes with its text encoders in one checkpoint, so they must be CLIP text models as in
    ComfyUI's own UNets. A transformer's architecture must be known.
    """
    encoders = _encoders(session)
    if not names.original:
        return bool(base_entry(names)) and 1 <= len(encoders) <= 3
    plain = not any(names.config.get(n) for n in ("class_embed_type", "encoder_hid_dim_type"))
    kinds = {str(module.config.model_type) for module in encoders}
    return plain and bool(kinds) and all(kind.startswith("clip_text") for kind in kinds)


def _encoders(session: Session) -> list[Any]:
    parts = session.pipeline.components.items()
    return [part for name, part in parts if name.startswith("text_encoder") and part is not None]


def _size(session: Session, names: LayerNames, size: Sequence[int] | None) -> tuple[int, int]:
    call = session.settings.pipeline.call
    if {"width", "height"} <= call.keys():
        return int(call["width"]), int(call["height"])
    if size is not None:
        return int(size[0]), int(size[1])
    side, factor = names.config.get("sample_size"), getattr(session.pipeline, "vae_scale_factor", 1)
    pixels = int(side) * int(factor) if isinstance(side, int) else SIZE
    return pixels, pixels


def _grid(session: Session) -> dict[str, Any]:
    """The scheduler's configuration, of a few-step student as it really steps."""
    config, steps = session.pipeline.scheduler.config, session.findings.steps
    return {**config, **(few_steps_config(steps) if steps else {})}


def _embedded(session: Session, names: LayerNames) -> float | None:
    """The guidance that is embedded into the denoiser, where CFG has an argument of its own."""
    cfg_argument = names.config.get("guidance_embeds") and session.findings.guidance_argument
    if not cfg_argument or cfg_argument == "guidance_scale":
        return None
    value = session.settings.pipeline.call.get("guidance_scale", 3.5)
    return float(value)


def _remarks(session: Session) -> list[str]:
    """Differences between the run's teacher and the workflow."""
    settings, grid = session.settings.pipeline, session.pipeline.scheduler.config
    remarks = []
    left_out = {n: v for n, v in settings.call.items() if n not in {*CARRIED, "guidance_scale"}}
    if left_out:
        arguments = ", ".join(f"{name}={value!r}" for name, value in left_out.items())
        remarks.append(f"Not carried over: the run's teacher was called with {arguments}.")
    if settings.guided_share < 1:
        remarks.append(
            "Not carried over: the run's teacher was guided in the first "
            f"{settings.guided_share:.0%} of its steps only."
        )
    steps = session.findings.steps
    if steps is not None and (shift := few_steps_shift(steps)):
        remarks.append(
            f"The student's steps are those of a shift of {shift:.3g}: where the model has another "
            "in ComfyUI, put a ModelSamplingSD3 node of that shift before both samplers."
        )
    elif grid.get("use_dynamic_shifting"):
        remarks.append(
            "The pipeline's scheduler shifts its steps with the picture's size; ComfyUI takes the "
            "model's own shift."
        )
    elif grid.get("shift", 1.0) != 1.0:
        remarks.append(
            f"The pipeline's scheduler has a shift of {grid['shift']:g}; ComfyUI takes the model's "
            "own, unless a node sets it."
        )
    return remarks
