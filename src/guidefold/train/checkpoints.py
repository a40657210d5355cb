"""Checkpoints: adapter, optimizer and state in one folder, which is complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guidefold.ground import MismatchError
from guidefold.lora import Adapter
from guidefold.run import (
    RunFolder,
    check_folder,
    finished_folder,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from guidefold.train.optimizer import optimizer_tensors, restore_optimizer


def save_checkpoint(
    run: RunFolder,
    step: int,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    *,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint, then remove the oldest beyond ``keep``.

    Raises:
        NonFiniteError: A tensor is not finite; nothing is written.
    """
    folder = run.checkpoint(step)
    with finished_folder(folder) as temporary:
        write_tensors(temporary / "adapter.safetensors", adapter.state_dict())
        moments = optimizer_tensors(adapter.named_parameters(), optimizer)
        if moments:  # none before the first step
            write_tensors(temporary / "optimizer.safetensors", moments)
        write_json(temporary / "state.json", {"step": step, "rank": adapter.rank, **state})
    for old in run.checkpoints()[:-keep]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(
    folder: Path, adapter: Adapter, optimizer: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Load a checkpoint completely, or fail.

    Args:
        folder: The checkpoint.
        adapter: The adapter that gets the checkpoint's tensors.
        optimizer: The optimizer that gets its moments; None loads the adapter alone.

    Returns:
        The content of ``state.json``.

    Raises:
        CorruptFileError: A file is truncated or altered.
        MismatchError: Rank, names or shapes differ.
    """
    remedy = f"To go on from the checkpoint before it, or else from step 0: rm -r '{folder}'"
    check_folder(folder, remedy)
    state: dict[str, Any] = read_json(folder / "state.json")
    if state["rank"] != adapter.rank:
        raise MismatchError(
            f"{folder}: trained with rank {state['rank']}, this run asks for {adapter.rank}",
            "Set adapter.rank to the checkpoint's, or choose another folder with run=FOLDER.",
        )
    adapter.load_state_dict(read_tensors(folder / "adapter.safetensors"))
    if optimizer is not None and (folder / "optimizer.safetensors").exists():
        tensors = read_tensors(folder / "optimizer.safetensors")
        restore_optimizer(adapter.named_parameters(), optimizer, tensors)
    return state
