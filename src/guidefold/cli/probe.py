"""``guidefold probe``; torch is imported when it runs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from guidefold.cli.options import AsJson, Overrides, progress_on_stderr
from guidefold.ground import UnfoldableError, console
from guidefold.run import Settings, check_source, make_settings


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
    as_json: AsJson = False,
) -> None:
    """Find out whether a pipeline's guidance can be folded.

    Prints the findings and what they imply; for a pipeline that cannot be folded, the reason and
    the remedy. A pipeline that needs more than a prompt gets the first rows of --inputs.
    """
    settings = _settings(pipeline, overrides, config, inputs)
    check_source(settings.pipeline.source)
    from guidefold import api
    from guidefold.listen import check_rows, describe_findings
    from guidefold.pipeline import (
        DTYPES,
        pipeline_class,
        refuse_folded,
        resolve_device,
        signs_of_distillation,
    )

    wanted, rows = settings.pipeline, []
    if inputs is not None:
        rows = [row for row in api.load_prompts(inputs) if row.columns]
        kind = pipeline_class(wanted.source)
        if kind is not None:
            check_rows(kind, rows)
    guidance = settings.adapter.g_ref
    try:
        with progress_on_stderr(as_json):
            device = resolve_device(wanted.device)
            opened = api.open_pipeline(
                wanted.source, dtype=DTYPES[wanted.dtype], device=device, **wanted.described()
            )
            signs = signs_of_distillation(opened)
            refuse_folded(opened, wanted.source)
            findings = api.probe(
                opened, wanted.call, guidance, wanted.negative_prompt, wanted.guided_share, rows
            )
    except UnfoldableError as error:
        if as_json:
            refusal = {"foldable": False, "why": error.message, "remedy": error.remedy}
            typer.echo(json.dumps(refusal, indent=2))
        raise
    if as_json:
        found = {"foldable": True, **findings.to_json(), "signs_of_distillation": signs}
        typer.echo(json.dumps(found, indent=2))
    else:
        warnings = [f"Beware: the base may be distilled already. {sign}." for sign in signs]
        console.print("\n".join([*describe_findings(findings), *warnings]), markup=False)


def _settings(
    pipeline: str, overrides: list[str] | None, config: str | None, inputs: str | None
) -> Settings:
    values: dict[str, Any] = {"run": "unused", "pipeline": {"source": pipeline}}
    if inputs is not None:
        values["prompts"] = {"path": inputs}
    option = [] if config is None else [f"pipeline.config={config}"]
    return make_settings(values, [*option, *(overrides or [])], "guidefold probe")
