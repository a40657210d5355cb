"""A written file's metadata: Guidefold's own, and the keys that other programs read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save

from guidefold import __version__
from guidefold.deliver.comfyui_names import comfyui_steps, steps_usage
from guidefold.deliver.formats import Tensors, factors
from guidefold.deliver.layer_names import LayerNames, client_facts, fits
from guidefold.ground import RunError
from guidefold.listen import Findings
from guidefold.lora import UNKNOWN_DIAL, Dial, Mark, layers_of
from guidefold.run import (
    METADATA,
    Format,
    LoraRole,
    RunFolder,
    check_folder,
    public_name,
    read_json,
)
from guidefold.session import Session

AGAIN = "Write it again with 'guidefold export RUN'."
HASH = "modelspec.hash_sha256"
SPECIFICATION = "1.0.1"
ORIGINAL_CODE = "https://github.com/Stability-AI/generative-models"


def read_dial(folder: Path) -> Dial:
    """The measured dial of the adapter in a folder; without marks where none was measured."""
    path = folder / METADATA
    return Dial.from_json(read_json(path, AGAIN)) if path.exists() else UNKNOWN_DIAL


def measured_dial(session: Session) -> Dial:
    """The dial of a session's run, with the marks of its written adapter."""
    return replace(session.dial, marks=read_dial(session.run.adapter).marks)


def describe_adapter(
    session: Session,
    step: int,
    marks: Sequence[Mark],
    strength: float = 1.0,
    folds: LoraRole = "guidance",
) -> dict[str, Any]:
    """An adapter's own metadata, as JSON.

    Args:
        session: The run's session.
        step: The number of optimizer steps taken.
        marks: The measured dial.
        strength: The strength of the run's adapter that becomes strength 1.
        folds: What the file folds.
    """
    settings, findings = session.settings, session.findings
    dial = replace(session.dial, marks=tuple(marks)).baked_at(strength)
    if folds == "both" and dial.proportional:  # merged: another strength would scale steps as well
        dial = replace(dial, marks=(), trained=(dial.g_ref, dial.g_ref), proportional=False)
    ranks = {"guidance": settings.adapter.rank, "steps": settings.steps_rank or 0}
    quantization = settings.pipeline.quantization
    return {
        "guidefold": __version__,
        "base": public_name(settings.pipeline.source),
        **({} if quantization == "none" else {"quantization": quantization}),
        "findings": findings.to_json(),
        "negative_prompt": settings.pipeline.negative_prompt,
        **dial.to_json(),
        "folds": folds,
        "rank": ranks.get(folds) or sum(ranks.values()),
        "targets": settings.adapter.targets,
        "step": step,
        "strength": strength,
        **({"comfyui": comfyui_steps(findings.steps)} if findings.steps else {}),
        "usage_hint": _hint(findings, dial, folds, strength),
    }


def _hint(findings: Findings, dial: Dial, folds: LoraRole, strength: float) -> str:
    """How to use a file, in one line."""
    off = {findings.guidance_argument: findings.off, **findings.also_off}
    call = ", ".join(f"{name}={value:g}" for name, value in off.items())
    if findings.steps is not None:
        call = f"{steps_usage(findings.steps)}, {call}"
    if folds == "steps":
        return f"{call}; strength 1, beside the guidance LoRA"
    hint = f"{call}; strength 1 = {dial.stands_for}"
    # A file with another strength baked in has no such formula: its dial is the measured table.
    if dial.proportional and strength == 1 and dial.measured_otherwise is None:
        hint += f", strength s = guidance {dial.origin:g} + {dial.span:g} s"
    if findings.steps is not None and folds == "guidance":
        hint += "; beside the steps LoRA, which stays at strength 1"
    return hint


def read_adapter(folder: Path) -> dict[str, Any]:
    """Read an adapter folder's metadata, after checking its files against the manifest.

    Raises:
        RunError: The folder holds no adapter of Guidefold's.
        CorruptFileError: A file is missing or altered.
    """
    if not (folder / METADATA).exists():
        run = RunFolder(folder)
        raise RunError(
            f"{folder}: no adapter of Guidefold's ({METADATA} is missing)",
            f"Name {run.adapter}."
            if run.metadata.exists()
            else "Name the folder that 'guidefold distill' wrote: RUN/adapter.",
        )
    check_folder(folder, AGAIN)
    metadata: dict[str, Any] = read_json(folder / METADATA, AGAIN)
    return metadata


def header_for_clients(
    kind: Format,
    tensors: Tensors,
    written: Tensors,
    names: LayerNames,
    description: Mapping[str, str],
) -> dict[str, str]:
    """Metadata under the keys of ModelSpec and, for kohya's files, of sd-scripts.

    Source: github.com/Stability-AI/ModelSpec; kohya sd-scripts library/sai_model_spec.py and
    library/train_util.py ``SS_METADATA_MINIMUM_KEYS``; A1111 extensions-builtin/Lora/network.py
    ``detect_version``, which lists a file under ``ss_base_model_version`` and ``ss_v2``.

    Args:
        kind: The format.
        tensors: The LoRA by peft's names.
        written: The same tensors by the file's keys.
        names: The denoiser's layer names.
        description: ModelSpec's ``title``, ``prediction_type`` (as diffusers names it),
            ``usage_hint``, ``description`` and, where it is known, ``resolution``.
    """
    predicts, plain = description["prediction_type"], kind != "kohya" or not names.added
    version, v2, architecture = _base(names, predicts)
    header = {f"modelspec.{name}": value for name, value in description.items()} | {
        "modelspec.sai_model_spec": SPECIFICATION,
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers" if plain else ORIGINAL_CODE,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.prediction_type": "v" if predicts == "v_prediction" else predicts,
        HASH: content_hash(written),
    }
    if kind == "kohya":
        header |= _kohya(tensors, version, v2) | {"ss_output_name": description["title"]}
    return {name: value for name, value in header.items() if value}


def content_hash(tensors: Tensors) -> str:
    """SHA-256 of a safetensors file's content after its header, as ModelSpec defines it."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(data[:8], "little")
    return f"0x{hashlib.sha256(data[start:]).hexdigest()}"


def _kohya(tensors: Tensors, version: str, v2: str) -> dict[str, str]:
    """The keys of sd-scripts."""
    rank = str(max(factors(tensors, layer)[0].shape[0] for layer in layers_of(tensors)))
    spatial = any(t.ndim > 2 and max(t.shape[2:]) > 1 for t in tensors.values())
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": rank} if spatial else {}),
        "ss_base_model_version": version,
        "ss_v2": v2,
    }


def _base(names: LayerNames, prediction_type: str) -> tuple[str, str, str]:
    """The base model in metadata: ``(ss_base_model_version, ss_v2, architecture)``."""
    if names.layout is not None:
        return names.layout.version, "", names.layout.architecture
    if not names.original:
        return "", "", str(names.config.get("_class_name", "unknown")).lower()
    known = {**names.config, "prediction_type": prediction_type}
    for entry in client_facts()["base"]:
        if fits(entry["when"], known):
            return entry["version"], entry["v2"], entry["architecture"]
    raise AssertionError("the last entry fits every base")
