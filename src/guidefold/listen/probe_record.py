"""What a probe found, kept in a run's folder, and trusted only under the conditions of that probe.

A probe runs the pipeline eight times. Its findings stand as long as the pipeline, the call and the
libraries are the same; the conditions are kept beside them, with a digest of the findings, so that
an edited or damaged ``probe.json`` is not trusted either.
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
from guidefold.run import RunFolder, read_json, write_json

LIBRARIES = ("guidefold", "torch", "diffusers", "peft", "transformers", "accelerate")
AGAIN = "Remove it to probe again."


def read_findings(run: RunFolder) -> Findings | None:
    """The findings that a run's folder holds, trusted or not; None before the first probe.

    Raises:
        CorruptFileError: They are not JSON, or of another version of Guidefold.
    """
    return Findings.from_json(read_json(run.probe, AGAIN)) if run.probe.exists() else None


def write_findings(
    run: RunFolder, findings: Findings, pipeline: DiffusionPipeline, call: Mapping[str, Any]
) -> None:
    """Keep findings with the conditions that they were found under.

    Args:
        run: The run's folder.
        findings: The probe's.
        pipeline: The probed pipeline, whole.
        call: All that the probe was given beside the pipeline, as JSON can hold it.
    """
    write_json(run.probe, findings.to_json())
    write_json(run.probe_conditions, _conditions(findings, pipeline, call))


def still_valid(
    run: RunFolder, findings: Findings, pipeline: DiffusionPipeline, call: Mapping[str, Any]
) -> bool:
    """Whether kept findings still hold.

    Args:
        run: The run's folder.
        findings: What it holds.
        pipeline: The pipeline as it is opened now, whole or with its denoiser alone: components
            that are not loaded are not compared.
        call: All that a probe would be given beside the pipeline.
    """
    if not run.probe_conditions.exists():
        return False  # the run was begun by a version that kept none
    kept = read_json(run.probe_conditions, AGAIN)
    now = json.loads(json.dumps(_conditions(findings, pipeline, call)))  # tuples become lists
    if not isinstance(kept, dict) or kept.keys() != now.keys():
        return False
    parts, loaded = kept.pop("pipeline"), now.pop("pipeline")
    return kept == now and isinstance(parts, dict) and loaded.items() <= parts.items()


def _conditions(
    findings: Findings, pipeline: DiffusionPipeline, call: Mapping[str, Any]
) -> dict[str, Any]:
    text = json.dumps(findings.to_json(), sort_keys=True)
    return {
        "findings": hashlib.sha256(text.encode()).hexdigest(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "pipeline": {"class": type(pipeline).__name__, **pipeline_identity(pipeline)},
        "call": dict(call),
    }
