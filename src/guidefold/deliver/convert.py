"""Other people's LoRA files in another format: alpha folded in or written down, layers renamed."""

from __future__ import annotations

import shutil
from pathlib import Path

from guidefold.adapter import PEFT_FILE, layers_of
from guidefold.deliver.export import write_file
from guidefold.deliver.formats import FORMATS, format_of, unfit
from guidefold.deliver.verify import Verdict, base_of, examine, read_file, safetensors_of
from guidefold.errors import InputError, VerifyError
from guidefold.pipelines import open_pipeline
from guidefold.probe import prediction_type
from guidefold.run.folder import ensure_folder
from guidefold.runs import read_labels, read_metadata, read_tensors
from guidefold.settings import Format


def convert(source: Path, kind: str, pipeline: str, out: Path) -> Verdict:
    """Write a LoRA file in another format.

    Args:
        source: A safetensors file, or a peft folder.
        kind: The format to write.
        pipeline: What the file was made for: a folder, a single file or a hub id.
        out: A ``.safetensors`` file; for ``peft`` a folder.

    Raises:
        InputError: The file cannot be read, or the format does not fit; the key is named.
        VerifyError: What was written is not read as it should be; it is not kept.
    """
    kinds = [known for known in FORMATS if known != "fused"]
    target = next((known for known in kinds if known == kind), None)
    if target is None:
        raise InputError(f"--to {kind}: no such format", f"Use {', '.join(kinds)}.")
    (source,) = safetensors_of(source)[:1]
    path = _place(source, target, out)
    tensors = read_tensors(source)
    spoken = format_of(tensors.keys(), source)
    if spoken == "fused":
        raise InputError(f"{source}: no LoRA, but whole weights", "Name a LoRA's file.")
    opened = open_pipeline(pipeline)
    base = base_of(opened, source)
    plain = read_file(source, tensors, spoken, base)
    reason = unfit(target, base.names, base.component, base.loader, layers_of(plain))
    if reason:
        raise InputError(f"--to {kind}: {reason}", f"{source} stays as it is.")
    said = read_metadata(source)
    about = {
        "json": None if said is None else {**said, "denoiser": base.name, "format": target},
        "title": out.stem,
        "prediction_type": prediction_type(opened),
        "hint": read_labels(source).get("modelspec.usage_hint", ""),
        "description": f"Converted from {source.name}.",
    }
    new = not path.parent.exists()
    ensure_folder(path.parent)
    write_file(path, target, plain, base, about)
    verdict = examine(path, base, kind=target)
    if verdict.problems:
        if new:
            shutil.rmtree(path.parent)
        else:
            path.unlink()
        raise VerifyError(f"{path}: {verdict.problems[0]}", "It was not kept.")
    return verdict


def _place(source: Path, kind: Format, out: Path) -> Path:
    """The file to write."""
    if kind == "peft":
        _check_new(out / PEFT_FILE)
        return out / PEFT_FILE
    if out.suffix != ".safetensors" or out.is_dir():
        raise InputError(f"--out {out}: no name for a file", "Let it end in .safetensors.")
    if out.resolve() == source.resolve():
        raise InputError(f"--out {out}: the file that is read", "Choose another name.")
    _check_new(out)
    return out


def _check_new(path: Path) -> None:
    if path.exists():
        raise InputError(
            f"{path}: is there already, and would be lost", "Move it away, or choose another --out."
        )
