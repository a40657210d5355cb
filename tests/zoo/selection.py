"""Which entries of the zoo every push walks: few that together have every feature of all.

``facts.json`` holds, a line for each entry, what only its pipeline and its probe tell; the road
checks it (:func:`zoo.road.check_road`). The rest of the features stands in the entries.
``few_steps.json`` holds, a line for each, which student of fewer steps there can be: the number of
its steps and the teacher's, the solver, and the ``pipeline.scheduler`` that makes it; or why not
(:func:`zoo.few_steps.check_few_steps`).
"""

import json
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.listen.findings import Findings

from .entry import Entry

FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "facts.json").read_text(encoding="utf-8")
)
FEW_STEPS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "few_steps.json").read_text(encoding="utf-8")
)

Feature = tuple[str, object]


def facts_of(pipeline: DiffusionPipeline, findings: Findings) -> dict[str, Any]:
    """An entry's line of ``facts.json``."""
    return {
        "package": type(pipeline).__module__.split(".")[2],
        "denoiser_class": findings.denoiser_class,
        "loader": findings.loader,
        "off": findings.off,
        "origin": findings.origin,
        "linear": findings.linear,
        "mixed_strengths": findings.layout is not None,
        "mixed_lengths": findings.mixed_lengths,
        "left_out": findings.left_out > 0,
    }


def features_of(entry: Entry, facts: Mapping[str, Any]) -> Set[Feature]:
    """What can differ between pipelines for a listener, a recorder or a loader."""
    return {
        *(fact for fact in facts.items() if fact[0] != "denoiser_class"),
        ("output_map", entry.output_map),
        ("guidance_argument", entry.guidance_argument),
        ("denoisers", entry.denoisers),
        ("number of denoisers", len(entry.denoisers)),
        ("prediction", entry.prediction),
        ("passes", entry.passes),
        ("takes_prompt", entry.takes_prompt),
        ("memory", entry.memory),
        *(("off", name) for name in entry.off),
        *(("source", source) for source in entry.sources),
        *(("input", name) for name in entry.inputs),
    }


def few_steps_features_of(entry: Entry, facts: Mapping[str, Any]) -> Set[Feature]:
    """What can differ between pipelines for a student of fewer steps."""
    if "refused" in facts:
        why, _, more = facts["refused"].partition("; ")
        return {("refused", re.sub(r"^\w+|\d[\d.]*", "", why)), ("refused with others", bool(more))}
    student, teacher = facts["steps"]
    return {
        ("solver", facts["solver"]),
        ("replaced", facts["scheduler"]),
        ("spacing", facts["spacing"]),
        ("holds both ends", teacher % student != 0),
        ("student", student),
        ("scaled", "scaled" in entry.output_map),
        ("parts", ";" in entry.output_map),
        ("number of denoisers", len(entry.denoisers)),
        ("memory", entry.memory),
    }


def choose(features: Mapping[str, Set[Feature]]) -> tuple[str, ...]:
    """Take the entry with the most features that are missing, until none is missing.

    Args:
        features: Of each entry; the first of equally good ones is taken.
    """
    missing = set().union(*features.values())
    chosen = []
    while missing:
        best = max(features, key=lambda name: len(features[name] & missing))
        chosen.append(best)
        missing -= features[best]
    return tuple(chosen)
