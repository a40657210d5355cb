"""A run folder's record of a probe; it holds only under the conditions of that probe.

A probe runs the pipeline eight times. Its findings hold as long as the pipeline, the call and the
libraries are the same. The conditions are stored beside the findings with a digest of them, so that
findings of another probe count as invalid too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.listen.findings import Findings
from guidefold.pipeline import pipeline_identity
from guidefold.run import RunFolder, read_json, write_record

LIBRARIES = ("guidefold", "torch", "diffusers", "peft", "transformers", "accelerate")
AGAIN = "Remove it to probe again."


def read_findings(run: RunFolder) -> Findings | None:
    """Read a run folder's findings, valid or not; None before the first probe.

    Raises:
        CorruptFileError: They are not JSON, or of another version of Guidefold.
    """
    return Findings.from_json(read_json(run.probe, AGAIN)) if run.probe.exists() else None


def write_findings(
    run: RunFolder, findings: Findings, pipeline: DiffusionPipeline, arguments: Mapping[str, Any]
) -> None:
    """Write findings and the conditions of their probe.

    Args:
        run: The run's folder.
        findings: The probe's findings.
        pipeline: The probed pipeline, with all components.
        arguments: The probe's other arguments by name.
    """
    write_record(run.probe, findings.to_json())
    write_record(run.probe_conditions, _conditions(findings, pipeline, arguments))


def still_valid(
    run: RunFolder, findings: Findings, pipeline: DiffusionPipeline, arguments: Mapping[str, Any]
) -> bool:
    """Whether stored findings still hold.

    Args:
        run: The run's folder.
        findings: The findings in it.
        pipeline: The pipeline as it is opened now; components that are not loaded are not compared.
        arguments: The arguments that a probe would get now, by name.
    """
    if not run.probe_conditions.exists():
        return False  # the run was begun by a version that stored none
    kept = read_json(run.probe_conditions, AGAIN)
    now = json.loads(json.dumps(_conditions(findings, pipeline, arguments)))  # tuples become lists
    if not isinstance(kept, dict) or kept.keys() != now.keys():
        return False
    parts, loaded = kept.pop("pipeline"), now.pop("pipeline")
    return kept == now and isinstance(parts, dict) and loaded.items() <= parts.items()


def _conditions(
    findings: Findings, pipeline: DiffusionPipeline, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    text = json.dumps(findings.to_json(), sort_keys=True)
    return {
        "findings": hashlib.sha256(text.encode()).hexdigest(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "pipeline": {"class": type(pipeline).__name__, **pipeline_identity(pipeline)},
        "call": {**arguments, "rows": [row.digest for row in arguments["rows"]]},
    }
