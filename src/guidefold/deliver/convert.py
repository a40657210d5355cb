"""Other people's LoRA files in another format: alpha folded in or written down, layers renamed."""

from __future__ import annotations

import shutil
from pathlib import Path

from guidefold.deliver.base_model import base_of
from guidefold.deliver.formats import FORMATS, unfit
from guidefold.deliver.lora_file import read_lora, write_lora
from guidefold.deliver.verify import Verdict, examine, safetensors_of
from guidefold.ground import InputError, VerifyError
from guidefold.listen import prediction_type
from guidefold.lora import PEFT_FILE, layers_of
from guidefold.pipeline import open_pipeline
from guidefold.run import Format, ensure_folder


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
    file = read_lora(source)
    if file.kind == "fused":
        raise InputError(f"{source}: no LoRA, but whole weights", "Name a LoRA's file.")
    opened = open_pipeline(pipeline)
    base = base_of(opened, file)
    plain = file.plain(base.names)
    reason = unfit(target, base.names, base.loader, layers_of(plain))
    if reason:
        raise InputError(f"--to {kind}: {reason}", f"{source} stays as it is.")
    about = {**file.about, "denoiser": base.name, "format": target} if file.about else None
    description = {
        "title": out.stem,
        "prediction_type": prediction_type(opened),
        "hint": file.labels.get("modelspec.usage_hint", ""),
        "description": f"Converted from {source.name}.",
    }
    new = not path.parent.exists()
    ensure_folder(path.parent)
    write_lora(path, target, plain, base.names, about, description)
    verdict = examine(read_lora(path, target), base)
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
