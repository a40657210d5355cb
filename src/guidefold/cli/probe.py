"""``guidefold probe``; torch waits until it runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guidefold.cli.options import AsJson, Overrides
from guidefold.ground import UnfoldableError, console

if TYPE_CHECKING:
    from guidefold.run import Settings


def probe(
    pipeline: Annotated[str, typer.Argument(help="A folder, a .safetensors file, or a hub id.")],
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(help="A diffusers folder that describes a single file.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(help="Prompts, or a .jsonl file whose fields are its call's arguments."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find out whether a pipeline's guidance can be folded.

    What was found and what follows from it; where it cannot be folded, why, and what would help.
    A pipeline that needs more than a prompt is given the first rows of its inputs.
    """
    settings = _settings(pipeline, overrides, config, inputs)
    from guidefold import api
    from guidefold.listen import check_rows, describe_findings
    from guidefold.pipeline import (
        DTYPES,
        pipeline_class,
        refuse_folded,
        resolve_device,
        signs_of_distillation,
    )

    asked, rows = settings.pipeline, []
    if inputs is not None:
        rows = [row for row in api.load_prompts(inputs) if row.columns]
        kind = pipeline_class(asked.source)
        if kind is not None:
            check_rows(kind, rows)
    opened = api.open_pipeline(
        asked.source,
        config=asked.config,
        dtype=DTYPES[asked.dtype],
        device=resolve_device(asked.device),
    )
    guidance = settings.adapter.g_ref
    signs = signs_of_distillation(opened)
    try:
        refuse_folded(opened, asked.source)
        findings = api.probe(
            opened, asked.call, guidance, asked.negative_prompt, asked.guided_share, rows
        )
    except UnfoldableError as error:
        if as_json:
            why = {"foldable": False, "why": error.message, "remedy": error.remedy}
            typer.echo(json.dumps(why, indent=2))
        raise
    if as_json:
        found = {"foldable": True, **findings.to_json(), "signs_of_distillation": signs}
        typer.echo(json.dumps(found, indent=2))
    else:
        beware = [f"Beware: the base may be distilled already. {sign}." for sign in signs]
        console.print("\n".join([*describe_findings(findings), *beware]), markup=False)


def _settings(
    pipeline: str, overrides: list[str] | None, config: str | None, inputs: str | None
) -> Settings:
    from guidefold.run import make_settings

    values: dict[str, Any] = {"run": "unused", "pipeline": {"source": pipeline}}
    if inputs is not None:
        values["prompts"] = {"path": inputs}
    described = [] if config is None else [f"pipeline.config={config}"]
    return make_settings(values, [*described, *(overrides or [])], "guidefold probe")
