"""The road of a student that takes fewer steps, from its folder to a stock pipeline."""

from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.api import open_run
from guidefold.listen.few_step_options import find_few_step_options
from guidefold.listen.few_steps import space_trailing
from guidefold.listen.findings import Findings
from guidefold.listen.probe import probe
from guidefold.pipeline.open import open_pipeline
from guidefold.pipeline.prompts import load_prompts
from guidefold.run.files import read_json, read_lines
from guidefold.run.settings import Settings
from guidefold.show.hub.card_code import opening_lines, timestep_lines

from . import WIDE, ZOO
from .entry import Entry
from .road import CLOSE, load_with_libraries, outputs_of, settings_of, student_outputs
from .selection import FEW_STEPS

STUDENTS = (3, 4)  # an even number too: some noise levels are two curves that meet in the middle
MULTIPLE = 2  # of the student's steps, the least number of the teacher's


@dataclass(frozen=True)
class FewSteps:
    """What was seen on the road.

    Attributes:
        findings: The probe's.
        sources: Of the recorded states.
        moved: How far the adapter moves the model outputs of a run of few steps, at most.
        off_student: How far a stock pipeline that loads the written adapter is from the trained
            student, at most.
    """

    findings: Findings
    sources: set[str]
    moved: float
    off_student: float


def facts_of(entry: Entry, folder: Path) -> dict[str, Any]:
    """A pipeline's line of ``few_steps.json``, as ``guidefold probe`` finds it out."""
    pipeline, asked = entry.build(), settings_of(entry, folder)
    prompts = load_prompts(asked.prompts.path)
    rows = [prompt for prompt in prompts[:2] if prompt.columns]
    call, negative = asked.pipeline.call, asked.pipeline.negative_prompt
    findings = probe(pipeline, call, asked.adapter.g_ref, negative, rows=rows)
    least = MULTIPLE * STUDENTS[0]
    seen = find_few_step_options(pipeline, findings, call, negative, rows, least, STUDENTS)
    if not seen.grids:
        return {"class": findings.pipeline, "refused": seen.why}
    grid = seen.grids[0]
    return {
        "class": findings.pipeline,
        "scheduler": seen.scheduler,
        "solver": grid.solver,
        "spacing": grid.spacing,
        "steps": [grid.student, grid.teacher],
    }


def travel_in_few_steps(entry: Entry, folder: Path, facts: Mapping[str, Any]) -> FewSteps:
    """Fold one pipeline's steps and guidance at one scale, and use the result as a client would."""
    entry.build().save_pretrained(folder / "pipeline", safe_serialization=True)
    student, _ = facts["steps"]
    settings = _few(settings_of(entry, folder), student, facts["scheduler"])
    run = Path(settings.run)
    with open_run(settings) as opened:
        opened.distill()
        adapter = opened.export()
    findings = Findings.from_json(read_json(run / "probe.json"))
    lines = [line for path in run.rglob("manifest.jsonl") for line in read_lines(path)]
    ours = open_pipeline(settings.pipeline.source, **settings.pipeline.described())
    space_trailing(ours)
    trained = student_outputs(ours, findings, settings)
    stock = _stock(settings, findings, ours, folder)
    bare = outputs_of(stock, findings, settings)
    load_with_libraries(stock, findings, adapter)
    theirs = outputs_of(stock, findings, settings)
    return FewSteps(
        findings=findings,
        sources={line["source"] for line in lines},
        moved=float((theirs - bare).abs().max()),
        off_student=float((theirs - trained).abs().max()),
    )


def check_few_steps(name: str, folder: Path) -> None:
    """The road's end, or the reason against it, is what ``few_steps.json`` says."""
    entry, facts = (ZOO | WIDE)[name], FEW_STEPS[name]
    if "refused" in facts:
        assert facts_of(entry, folder) == facts
        return
    found = travel_in_few_steps(entry, folder, facts)
    grid = found.findings.steps
    assert grid is not None
    assert found.findings.pipeline == facts["class"]
    assert [grid.student, grid.teacher] == facts["steps"]
    assert (grid.solver, grid.spacing) == (facts["solver"], facts["spacing"])
    assert found.sources == {"teacher", "student"}
    assert found.off_student < CLOSE * found.moved


def _few(settings: Settings, student: int, scheduler: str | None) -> Settings:
    """A run of a student that takes fewer steps, at one guidance scale."""
    values = settings.model_dump()
    values["pipeline"]["scheduler"] = scheduler
    values["student"] = {"steps": student}
    values["adapter"] |= {"dial": False, "targets": "attention"}  # quicker than all layers
    values["record"] |= {
        "rounds": ["teacher", "student"],
        "guidance": (values["adapter"]["g_ref"],) * 2,
        "steps": (MULTIPLE * student,) * 2,
        "states_per_trajectory": student,
    }
    values["distill"]["steps"] = 2
    return Settings.model_validate(values)


def _stock(
    settings: Settings, findings: Findings, ours: DiffusionPipeline, folder: Path
) -> DiffusionPipeline:
    """The base as the model card's code opens it."""
    made: dict[str, Any] = {}
    with chdir(folder):
        run = settings, findings, ours
        exec("\n".join(["import torch", *opening_lines(*run), *timestep_lines(*run)]), made)
    stock: DiffusionPipeline = made["pipeline"]
    stock.set_progress_bar_config(disable=True)
    return stock
