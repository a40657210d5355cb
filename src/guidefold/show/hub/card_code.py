"""The Python code of a model card: it opens the base as it was folded, loads the adapter."""

from __future__ import annotations

import inspect
import json
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.draw import picture_seeds
from guidefold.listen import Findings
from guidefold.lora import loading_code
from guidefold.pipeline import DTYPES
from guidefold.run import PipelineSettings, Settings, public_name
from guidefold.session import Session

REPOSITORY = "OWNER/NAME"
"""The placeholder for the repository's name, which push replaces."""
SCHEDULE = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
"""The fields of a scheduler's configuration that decide what the denoiser's output means."""


def code(session: Session, *, images: bool) -> str:
    """Python code that draws the first held-out prompt with diffusers, ready to run.

    Args:
        session: The run's session.
        images: Whether the pipeline returns pictures.
    """
    settings, findings, prompt = session.settings, session.findings, session.held_out[0]
    scaled = findings.scale_arguments(findings.off)
    call = {
        **settings.pipeline.call,
        **{name: value for name, value in scaled.items() if "." not in name},
        "num_inference_steps": settings.steps_of("student"),
    }
    (seed,) = picture_seeds(settings.seed, 1)
    arguments = [_literal(prompt.text)] if prompt.text else []
    arguments += [f"{name}={_literal(value)}" for name, value in call.items()]
    arguments += [f"generator=torch.Generator().manual_seed({seed})"]
    lines = ["import torch", *opening_lines(settings, findings, session.pipeline)]
    lines += [
        f"pipeline.{name} = {_literal(value)}" for name, value in scaled.items() if "." in name
    ]
    lines += timestep_lines(settings, findings, session.pipeline)
    lines += [
        *loading_lines(findings, settings),
        f"{'picture' if images else 'result'} = pipeline(",
    ]
    lines += [f"    {argument}," for argument in arguments]
    return "\n".join([*lines, ").images[0]" if images else ")[0]"])


def opening_lines(
    settings: Settings, findings: Findings, pipeline: DiffusionPipeline | None = None
) -> list[str]:
    """The lines that open the base as it was folded.

    Args:
        settings: The run's settings.
        findings: The probe's findings.
        pipeline: The run's pipeline, whose scheduler is the run's; by default what was found of it.
    """
    wanted, base = settings.pipeline, public_name(settings.pipeline.source) or ""
    if pipeline is None and wanted.scheduler is not None:
        given = {**wanted.described(), "config": public_name(wanted.config)}
        said = {name: value for name, value in given.items() if value not in (None, "none")}
        arguments = "".join(f", {name}={_literal(value)}" for name, value in said.items())
        arguments += "" if wanted.dtype == "fp32" else f", dtype={DTYPES[wanted.dtype]}"
        opened = f"pipeline = api.open_pipeline({_literal(base)}{arguments})"
        return ["from guidefold import api", "", opened]
    dtype = str(DTYPES[wanted.dtype])
    chosen = (wanted.prediction_type, wanted.zero_terminal_snr, wanted.scheduler) != (None,) * 3
    known = _scheduler_lines(settings, findings, pipeline)
    kinds = {wanted.scheduler} if wanted.scheduler else set()
    if wanted.source == "bundled":
        return [
            *(f"from diffusers import {kind}" for kind in kinds),
            "from guidefold import api",
            "",
            'pipeline = api.open_pipeline("bundled")  # Guidefold\'s own teacher',
            *(known if chosen else []),
        ]
    single_file = base.endswith(".safetensors")
    kind = findings.pipeline if single_file else "DiffusionPipeline"
    load = "from_single_file" if single_file else "from_pretrained"
    peft = ["from peft import PeftModel"] if findings.loader == "peft" else []
    config = wanted.config
    described = f", config={_literal(public_name(config))}" if config and single_file else ""
    return [
        f"from diffusers import {', '.join(sorted({kind, *kinds}))}",
        *peft,
        "",
        f"pipeline = {kind}.{load}({_literal(base)}{described}, dtype={dtype})",
        *(known if single_file or chosen else []),
    ]


def _schedule(settings: PipelineSettings, findings: Findings) -> dict[str, Any]:
    """The fields ``SCHEDULE`` as far as settings and findings tell; none with flow matching."""
    if findings.prediction_type == "flow_prediction":
        return {}
    found = {
        "prediction_type": findings.prediction_type,
        "rescale_betas_zero_snr": findings.zero_terminal_snr,
        "timestep_spacing": "trailing" if settings.zero_terminal_snr else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _scheduler_lines(
    settings: Settings, findings: Findings, pipeline: DiffusionPipeline | None
) -> list[str]:
    """The lines that set how the base is stepped, which its files may not say."""
    if pipeline is None:
        known = _schedule(settings.pipeline, findings)
    elif settings.pipeline.scheduler is None:
        config = pipeline.scheduler.config
        known = {name: config[name] for name in SCHEDULE if name in config}
    else:
        return _made_lines(pipeline)
    if not known:
        return []
    values = ", ".join(f"{name}={_literal(value)}" for name, value in known.items())
    scheduler = "pipeline.scheduler"
    return [
        f"{scheduler} = type({scheduler}).from_config(",
        f"    {scheduler}.config, {values}",
        ")",
    ]


def _made_lines(pipeline: DiffusionPipeline) -> list[str]:
    """The lines that make a scheduler of another class than the base's, field by field."""
    scheduler = pipeline.scheduler
    fields, config = inspect.signature(type(scheduler).__init__).parameters, scheduler.config
    given = {n: config[n] for n, f in fields.items() if config.get(n, f.default) != f.default}
    return [
        f"{_holders(pipeline)} = {type(scheduler).__name__}(",
        *(f"    {name}={_literal(value)}," for name, value in given.items()),
        ")",
    ]


def _holders(pipeline: DiffusionPipeline | None) -> str:
    """What holds the scheduler: the pipeline, and pipelines within it."""
    if pipeline is None:
        return "pipeline.scheduler"
    inner = [
        f"pipeline.{name}.scheduler"
        for name, part in vars(pipeline).items()
        if isinstance(part, DiffusionPipeline) and part.scheduler is pipeline.scheduler
    ]
    return " = ".join(["pipeline.scheduler", *inner])


def timestep_lines(
    settings: Settings, findings: Findings, pipeline: DiffusionPipeline | None = None
) -> list[str]:
    """The lines that give the base's scheduler the timesteps that a few-step student is for.

    Args:
        settings: The run's settings.
        findings: The probe's findings.
        pipeline: The run's pipeline; None takes it to hold one scheduler.
    """
    grid = findings.steps
    if grid is None or (settings.pipeline.scheduler is not None and pipeline is not None):
        return []  # or the whole scheduler stands in the opening lines
    values = "".join(f", {n}={_literal(v)}" for n, v in grid.scheduler_settings.items())
    scheduler = "pipeline.scheduler"
    made = f"type({scheduler}).from_config({scheduler}.config{values})"
    return [f"{_holders(pipeline)} = {made}  # {grid.solver}"]


def loading_lines(findings: Findings, settings: Settings, adapter: str = REPOSITORY) -> list[str]:
    """The lines that load the adapter.

    Args:
        findings: The probe's findings.
        settings: The run's settings.
        adapter: The adapter's repository or folder.
    """
    two = settings.steps_rank is not None
    lines = loading_code(findings.loader, findings.denoisers, adapter, two=two)
    turned = settings.adapter.dial and findings.loader == "diffusers"
    if two and turned:
        return [*lines[:-1], f"{lines[-1]}  # the dial is the first"]
    alone = turned and len(findings.denoisers) == 1
    return [*lines, 'pipeline.set_adapters("guidance", 1.0)  # the dial'] if alone else lines


def _literal(value: object) -> str:
    """A value as Python, text in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
