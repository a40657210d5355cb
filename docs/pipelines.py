"""Write docs/pipelines.md: what happened to every pipeline class of the installed diffusers.

    python docs/pipelines.py --work FOLDER

Each pipeline of tests/zoo goes the whole road: probe, record from three state sources, train,
write, load it in a stock pipeline with guidance off, compare. What is refused, the probe refuses.
What was seen is kept in FOLDER, so that a stopped run goes on. The column of few steps is the
zoo's own (tests/zoo/few_steps.json), which its tests walk.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from guidefold.ground import GuidefoldError, console

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from zoo import UNFOLDABLE, WIDE, ZOO, Entry  # noqa: E402
from zoo.entry import SOURCES  # noqa: E402
from zoo.road import CLOSE, refusal, travel  # noqa: E402
from zoo.selection import FEW_STEPS  # noqa: E402

ENTRIES: dict[str, Entry] = ZOO | WIDE
TRIED = json.loads((HERE / "pipelines.json").read_text(encoding="utf-8"))
"""What happened to classes that are not in the zoo, and when; written by hand from their runs."""
SCALES = ("guidance_scale", "true_cfg_scale")
INTRODUCTION = """# Pipelines

What happened to every pipeline class of diffusers {version}. Written by

    python docs/pipelines.py --work FOLDER

*Works*: a tiny pipeline of the class, real components with random weights (`tests/zoo`), went the
whole road: probed, recorded with all three state sources, trained, written, loaded into the stock
pipeline with guidance off, where it says what our own student says. *Outside the zoo*: the same
road on {date}, with the components of diffusers' own tests or with parts of the zoo
([pipelines.json](pipelines.json)); no test of ours goes it again. *Refused*: the probe says why.
*Fails*: the pipeline itself fails, before or without Guidefold. No code in `src/` knows the name of
a pipeline: what works here works because the pipeline does what the others do.

*Few steps*: the road of a student of three or four steps, one LoRA at one guidance scale, from
rounds of both state sources to the stock pipeline (`tests/zoo/few_steps.py`): with the pipeline's
own solver, with the `pipeline.scheduler` that is named, or why not; empty where nobody has gone it.

{works} classes of {families} families work ({outside} outside the zoo), {refused} are refused,
{fails} fail, {untried} have not been tried.
{few} classes of {few_families} families fold steps as well, {replaced} of them with another
scheduler than their own.

| pipeline | | passes per step | guidance | output map | adapter loads with | few steps |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps what was seen")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    console.quiet = True
    warnings.simplefilter("ignore")
    for name, entry in (ENTRIES | UNFOLDABLE).items():
        kept = work / f"{name}.json"
        if not kept.exists():
            seen = look(name, entry)
            print(name, json.dumps(seen), flush=True)
            kept.write_text(json.dumps(seen), encoding="utf-8")
    rows = {name: json.loads((work / f"{name}.json").read_text()) for name in ENTRIES | UNFOLDABLE}
    (HERE / "pipelines.md").write_text(page(rows), encoding="utf-8")


def look(name: str, entry: Entry) -> dict[str, Any]:
    """What happens to one pipeline of the zoo."""
    with tempfile.TemporaryDirectory() as folder:
        if name in UNFOLDABLE:
            kind, why = refusal(entry, Path(folder))
            return {"class": kind, "refused": why}
        try:
            found = travel(entry, Path(folder))
        except GuidefoldError as error:
            return {"class": type(entry.build()).__name__, "refused": error.message}
    close = found.off_student < CLOSE * found.moved
    return {
        "class": found.findings.pipeline,
        **({} if close else {"refused": "the written adapter is not the trained student"}),
        "findings": found.findings.to_json(),
        "output_map": str(found.findings.output_map),
        "lacks": sorted(set(SOURCES) - found.sources),
    }


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    by_class: dict[str, dict[str, Any]] = {}
    for row in rows.values():  # of several pipelines of a class, one that works
        if row["class"] not in by_class or "refused" in by_class[row["class"]]:
            by_class[row["class"]] = row
    counts = Counter[str]()
    table, families, few_families = [], set(), set()
    for kind in classes():
        row = by_class.get(kind.__name__)
        outside = TRIED["classes"].get(kind.__name__)
        state, cells = cells_of(kind, row or outside, "" if row else ", outside the zoo")
        counts[state] += 1
        counts["outside"] += state == "works" and row is None
        few = few_steps_of(kind.__name__)
        cells.append(few_steps_cell(few))
        if few is not None and "steps" in few:
            counts["few"] += 1
            counts["replaced"] += few["scheduler"] is not None
            few_families.add(kind.__module__.split(".")[2])
        if state == "works":
            families.add(kind.__module__.split(".")[2])
        table.append(f"| {kind.__name__} | {' | '.join(cells)} |")
    head = INTRODUCTION.format(
        version=diffusers.__version__,
        works=counts["works"],
        outside=counts["outside"],
        refused=counts["refused"],
        fails=counts["fails"],
        untried=counts["not tried"],
        date=TRIED["date"],
        families=len(families),
        few=counts["few"],
        few_families=len(few_families),
        replaced=counts["replaced"],
    )
    return head + "\n".join(table) + "\n"


def cells_of(
    kind: type[DiffusionPipeline], row: dict[str, Any] | None, where: str
) -> tuple[str, list[str]]:
    """What the page says of one class."""
    if row is not None and "findings" in row and "refused" not in row:
        found = row["findings"]
        also = "".join(f", `{name}={value:g}`" for name, value in found["also_off"].items())
        bent = "" if found["linear"] else "; the dial is approximate"
        guidance = f"`{found['guidance_argument']}`, off at {found['off']:g}{also}{bent}"
        passes = f"{found['passes_on']:g} → {found['passes_off']:g}"
        lacks = "".join(f", but for `{source}` states" for source in row.get("lacks", []))
        works = f"works{where}{lacks}"
        return "works", [works, passes, guidance, row["output_map"], found["loader"]]
    if row is not None:
        state = "refused" if "refused" in row else "fails"
        return state, [f"{state}: {row[state]}", *[""] * 4]
    parameters = inspect.signature(kind.__call__).parameters
    guided = any(scale in parameters for scale in SCALES)
    if not guided and "guider" not in inspect.signature(kind.__init__).parameters:
        return "refused", ["refused: its call has no argument that scales guidance", *[""] * 4]
    return "not tried", ["not tried", *[""] * 4]


def few_steps_of(name: str) -> dict[str, Any] | None:
    """What the zoo knows of few steps of a class: of several pipelines, one that folds them."""
    rows = [row for row in FEW_STEPS.values() if row["class"] == name]
    return next((row for row in rows if "steps" in row), rows[0] if rows else None)


def few_steps_cell(row: dict[str, Any] | None) -> str:
    """What the page says of few steps."""
    if row is None:
        return ""
    if "refused" in row:
        return f"no: {row['refused'].partition('; with pipeline.scheduler')[0]}"
    return f"`pipeline.scheduler={row['scheduler']}`" if row["scheduler"] else "yes"


def classes() -> Iterator[type[DiffusionPipeline]]:
    """Every pipeline class that diffusers exports, by name."""
    for name in sorted(dir(diffusers)):
        try:
            found = getattr(diffusers, name)
        except (ImportError, RuntimeError):  # of another framework
            continue
        known = isinstance(found, type) and issubclass(found, DiffusionPipeline)
        if known and found is not DiffusionPipeline and found.__name__ == name:
            yield found


if __name__ == "__main__":
    main()
