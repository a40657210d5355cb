"""``guidefold probe``; torch is imported when it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guidefold.cli.options import AsJson, Overrides, loading, progress_on_stderr
from guidefold.ground import UnfoldableError, console
from guidefold.run import Settings, check_source, make_settings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from guidefold.listen import FewStepOptions, Findings
    from guidefold.pipeline import Prompt


def probe(
    pipeline: Annotated[
        str, typer.Argument(help="Pipeline: a folder, a .safetensors file, or a hub id.")
    ],
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(help="Diffusers folder that describes a single file.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(help="Prompt file, or a .jsonl file whose fields are call arguments."),
    ] = None,
    student_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of a student that takes fewer than the teacher."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find out whether a pipeline's guidance can be folded.

    Prints the findings, or why guidance cannot be folded and what to do; then whether steps can be
    folded, with which solver, for students of 4, 5, 8 and 10 steps. --student-steps tries another
    number, and fails where it cannot be had. A pipeline that needs more than a prompt gets the
    first rows of --inputs.
    """
    settings = _settings(pipeline, overrides, config, inputs)
    check_source(settings.pipeline.source)
    with loading():
        from guidefold import api
        from guidefold.listen import describe_findings, space_trailing
        from guidefold.pipeline import open_placed, refuse_folded, signs_of_distillation

    wanted, rows = settings.pipeline, [] if inputs is None else _rows(settings, inputs)
    try:
        with progress_on_stderr(as_json):
            opened = open_placed(wanted)
            if student_steps is not None:
                space_trailing(opened)
            signs = signs_of_distillation(opened)
            refuse_folded(opened, wanted.source)
            arguments = _arguments(settings, rows, student_steps)
            findings = api.probe(opened, **arguments)
            options = None if student_steps else _few_step_options(opened, findings, arguments)
    except UnfoldableError as error:
        if as_json:
            refusal = {"foldable": False, "why": error.message, "remedy": error.remedy}
            typer.echo(json.dumps(refusal, indent=2))
        raise
    if as_json:
        found = {"foldable": True, **findings.to_json(), "signs_of_distillation": signs}
        found |= {"few_steps": options.to_json()} if options else {}
        typer.echo(json.dumps(found, indent=2))
    else:
        warnings = [f"Beware: the base may be distilled already. {sign}." for sign in signs]
        lines = [*describe_findings(findings), *([str(options)] if options else []), *warnings]
        console.print("\n".join(lines))


def _few_step_options(
    pipeline: DiffusionPipeline, findings: Findings, arguments: Mapping[str, Any]
) -> FewStepOptions:
    """Which few-step students there can be, of a pipeline that was probed with these arguments."""
    from guidefold.listen import find_few_step_options

    names = ("call", "negative_prompt", "rows", "least_steps")
    return find_few_step_options(pipeline, findings, **{name: arguments[name] for name in names})


def _rows(settings: Settings, inputs: str) -> list[Prompt]:
    """The rows of an inputs file that have further fields, checked."""
    from guidefold.listen import check_rows
    from guidefold.pipeline import load_prompts, pipeline_class

    rows = [row for row in load_prompts(inputs) if row.columns]
    kind = pipeline_class(settings.pipeline.source)
    if kind is not None:
        check_rows(kind, rows)
    return rows


def _arguments(
    settings: Settings, rows: Sequence[Prompt], student_steps: int | None
) -> dict[str, Any]:
    """All arguments of the probe but the pipeline."""
    return {
        "call": settings.pipeline.call,
        "guidance": settings.adapter.g_ref,
        "negative_prompt": settings.pipeline.negative_prompt,
        "guided_share": settings.pipeline.guided_share,
        "rows": rows,
        "student_steps": student_steps,
        "least_steps": settings.record.steps[0],
    }


def _settings(
    pipeline: str, overrides: list[str] | None, config: str | None, inputs: str | None
) -> Settings:
    values: dict[str, Any] = {"run": "unused", "pipeline": {"source": pipeline}}
    if inputs is not None:
        values["prompts"] = {"path": inputs}
    option = [] if config is None else [f"pipeline.config={config}"]
    return make_settings(values, [*option, *(overrides or [])], "guidefold probe")
