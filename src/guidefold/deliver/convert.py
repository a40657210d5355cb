"""Convert a LoRA file to another format: layers renamed, alpha folded in or written out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

from guidefold.deliver.base_model import base_of, open_base
from guidefold.deliver.formats import unfit
from guidefold.deliver.lora_file import read_lora, write_lora
from guidefold.deliver.verify import Verdict, examine, safetensors_of
from guidefold.ground import InputError, VerifyError, given_by_user
from guidefold.lora import PEFT_FILE, layers_of
from guidefold.pipeline import prediction_type
from guidefold.run import LoraFormat, check_place


def convert(source: Path, kind: LoraFormat, pipeline: str, out: Path) -> Verdict:
    """Write a LoRA file in another format.

    Args:
        source: A safetensors file, or a peft folder.
        kind: The format to write.
        pipeline: The pipeline that the file was made for: a folder, a single file or a hub id.
        out: The ``.safetensors`` file to write; for ``peft`` a folder.

    Raises:
        InputError: The file cannot be read, the format does not fit (the message names the key),
            or ``out`` cannot be written.
        VerifyError: A client would not read the written file as meant; the file is not kept.
    """
    if kind not in get_args(LoraFormat):
        raise InputError(f"--to {kind}: no such format", f"Use {', '.join(get_args(LoraFormat))}.")
    source = safetensors_of(source)[0]
    path = _place(source, kind, out)
    with given_by_user():
        file = read_lora(source)
    if file.kind == "fused":
        raise InputError(f"{source}: no LoRA, but whole weights", "Name a LoRA's file.")
    opened = open_base(pipeline, [file])
    base = base_of(opened, file)
    with given_by_user():
        plain = file.plain(base.names)
    reason = unfit(kind, base.names, base.loader, layers_of(plain))
    if reason:
        raise InputError(f"--to {kind}: {reason}", f"{source} stays as it is.")
    own = {**file.metadata, "denoiser": base.name, "format": kind} if file.metadata else None
    description = {
        "title": out.stem,
        "prediction_type": prediction_type(opened),
        "usage_hint": file.header.get("modelspec.usage_hint", ""),
        "description": f"Converted from {source.name}.",
    }
    new = not path.parent.exists()
    write_lora(path, kind, plain, base.names, own, description)
    verdict = examine(read_lora(path, kind), base)
    if verdict.problems:
        if new:
            shutil.rmtree(path.parent)
        else:
            path.unlink()
        raise VerifyError(f"{path}: {verdict.problems[0]}", "It was not kept.")
    return verdict


def _place(source: Path, kind: LoraFormat, out: Path) -> Path:
    """The file to write, which must not exist yet."""
    path = out / PEFT_FILE if kind == "peft" else out
    if kind != "peft" and (out.suffix != ".safetensors" or out.is_dir()):
        raise InputError(f"--out {out}: no name for a file", "Let it end in .safetensors.")
    if kind != "peft" and out.resolve() == source.resolve():
        raise InputError(f"--out {out}: the file that is read", "Choose another name.")
    check_place(path.parent)
    if path.exists() or path.is_symlink():
        raise InputError(
            f"{path}: is there already, and would be lost", "Move it away, or choose another --out."
        )
    return path
