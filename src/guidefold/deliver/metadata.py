"""What a written file says of itself: for Guidefold, and in the words of other programs."""

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
from guidefold.deliver.formats import Tensors
from guidefold.deliver.layer_names import LayerNames, client_facts
from guidefold.ground import RunError
from guidefold.listen import Findings
from guidefold.lora import UNKNOWN, Dial, Mark, layers_of
from guidefold.run import METADATA, Format, RunFolder, check_folder, public_name, read_json
from guidefold.session import Session

SPECIFICATION = "1.0.1"
ORIGINAL_CODE = "https://github.com/Stability-AI/generative-models"


def read_dial(folder: Path) -> Dial:
    """A written adapter's dial as it was measured; without marks where it was not.

    Args:
        folder: The adapter's.
    """
    path = folder / METADATA
    return Dial.from_json(read_json(path)) if path.exists() else UNKNOWN


def describe_adapter(
    session: Session, step: int, marks: Sequence[Mark], strength: float = 1.0
) -> dict[str, Any]:
    """What an adapter says of itself, as JSON.

    Args:
        session: The run's.
        step: The optimizer steps that it took.
        marks: Its dial, measured.
        strength: Of the run's adapter, that is strength 1 of what is described.
    """
    settings, findings = session.settings, session.findings
    dial = replace(session.dial, marks=tuple(marks)).baked_at(strength)
    hint = f"{_unguided_call(findings)}; strength 1 = {dial.stands_for}"
    # another strength's file stands for one scale; its dial is the table
    if dial.proportional and strength == 1 and dial.measured_otherwise is None:
        hint += f", strength s = guidance {dial.origin:g} + {dial.span:g} s"
    return {
        "guidefold": __version__,
        "base": public_name(settings.pipeline.source),
        "findings": findings.to_json(),
        "negative_prompt": settings.pipeline.negative_prompt,
        **dial.to_json(),
        "rank": settings.adapter.rank,
        "targets": settings.adapter.targets,
        "step": step,
        "strength": strength,
        "usage_hint": hint,
    }


def _unguided_call(findings: Findings) -> str:
    """What the pipeline is called with beside the adapter, in words."""
    return ", ".join(
        f"{name}={value:g}"
        for name, value in {findings.guidance_argument: findings.off, **findings.also_off}.items()
    )


def read_adapter(folder: Path) -> dict[str, Any]:
    """What a written adapter says of itself, its files being those that were written.

    Raises:
        RunError: It is no adapter of Guidefold's.
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
    check_folder(folder, "Write it again with 'guidefold export RUN'.")
    about: dict[str, Any] = read_json(folder / METADATA)
    return about


def labels(
    kind: Format, tensors: Tensors, written: Tensors, names: LayerNames, about: Mapping[str, Any]
) -> dict[str, str]:
    """Metadata by the keys of ModelSpec and, for kohya's files, of sd-scripts.

    Source: github.com/Stability-AI/ModelSpec; kohya sd-scripts library/sai_model_spec.py and
    library/train_util.py ``SS_METADATA_MINIMUM_KEYS``; A1111 extensions-builtin/Lora/network.py
    ``detect_version``, which shows a file by ``ss_base_model_version`` and ``ss_v2``.

    Args:
        kind: The format.
        tensors: By peft's names.
        written: The same as the file names them.
        names: What the denoiser's layers are called.
        about: ``title``, ``prediction_type`` and ``hint``; ``size`` where it is known.
    """
    predicts, plain = about["prediction_type"], kind != "kohya" or not names.added
    version, v2, architecture = _base(names, predicts)
    found = {
        "modelspec.sai_model_spec": SPECIFICATION,
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers" if plain else ORIGINAL_CODE,
        "modelspec.title": about["title"],
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.hash_sha256": content_hash(written),
        "modelspec.usage_hint": about["hint"],
        "modelspec.description": about["description"],
        "modelspec.prediction_type": "v" if predicts == "v_prediction" else predicts,
        "modelspec.resolution": about.get("size", ""),
    }
    if kind == "kohya":
        found |= _kohya(tensors, version, v2) | {"ss_output_name": about["title"]}
    return {name: value for name, value in found.items() if value}


def content_hash(tensors: Tensors) -> str:
    """SHA-256 of a safetensors file's content behind its header, as ModelSpec writes it."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(data[:8], "little")
    return f"0x{hashlib.sha256(data[start:]).hexdigest()}"


def _kohya(tensors: Tensors, version: str, v2: str) -> dict[str, str]:
    ranks = [tensors[f"{layer}.lora_A.weight"].shape[0] for layer in layers_of(tensors)]
    spatial = any(t.ndim > 2 and max(t.shape[2:]) > 1 for t in tensors.values())
    rank = str(max(ranks))
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": rank} if spatial else {}),
        "ss_base_model_version": version,
        "ss_v2": v2,
    }


def _base(names: LayerNames, prediction_type: str) -> tuple[str, str, str]:
    """``(kohya's version, kohya's v2, architecture)``."""
    if names.layout is not None:
        return names.layout.version, "", names.layout.architecture
    if not names.original:
        return "", "", str(names.config.get("_class_name", "unknown")).lower()
    known = {**names.config, "prediction_type": prediction_type}
    for entry in client_facts()["base"]:
        if all(known.get(name) == value for name, value in entry["when"].items()):
            return entry["version"], entry["v2"], entry["architecture"]
    raise AssertionError("the last entry fits every base")
