"""Checkpoints: adapter, optimizer and state in one folder, which is complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guidefold.ground import CorruptFileError, MismatchError
from guidefold.lora import Adapter
from guidefold.run import (
    CheckpointState,
    RunFolder,
    check_folder,
    finished_folder,
    read_tensors,
    write_record,
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
        write_record(temporary / "state.json", {"step": step, "rank": adapter.rank, **state})
    for old in run.checkpoints()[:-keep]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(
    folder: Path, adapter: Adapter, optimizer: torch.optim.Optimizer | None
) -> CheckpointState:
    """Load a checkpoint completely, or fail.

    Args:
        folder: The checkpoint.
        adapter: The adapter that gets the checkpoint's tensors.
        optimizer: The optimizer that gets its moments; None loads the adapter alone.

    Returns:
        The content of ``state.json``.

    Raises:
        CorruptFileError: A file is truncated or altered, or the checkpoint is another step's.
        MismatchError: Rank, names or shapes differ.
    """
    remedy = _remedy(folder)
    check_folder(folder, remedy)
    state = read_state(folder)
    if state.rank != adapter.rank:
        raise MismatchError(
            f"{folder}: trained with rank {state.rank}, this run asks for {adapter.rank}",
            "Set adapter.rank to the checkpoint's, or choose another folder with run=FOLDER.",
        )
    adapter.load_state_dict(read_tensors(folder / "adapter.safetensors"))
    if optimizer is not None and (folder / "optimizer.safetensors").exists():
        tensors = read_tensors(folder / "optimizer.safetensors")
        restore_optimizer(adapter.named_parameters(), optimizer, tensors)
    return state


def read_state(folder: Path) -> CheckpointState:
    """The content of a checkpoint's ``state.json``.

    Raises:
        CorruptFileError: It is missing or altered, or is another step's.
    """
    path = folder / "state.json"
    state = CheckpointState.read(path, _remedy(folder))
    if state is None:
        raise CorruptFileError(f"{path}: missing", _remedy(folder))
    if folder.name != RunFolder(folder).checkpoint(state.step).name:
        raise CorruptFileError(f"{path}: is of step {state.step}", _remedy(folder))
    return state


def _remedy(folder: Path) -> str:
    return f"To go on from the checkpoint before it, or else from step 0: rm -r '{folder}'"
