"""Finished trajectories on disk: one safetensors file each, one manifest line each.

Tensors that are equal at every kept step (prompt embeddings) are stored once, others stacked; those
that only some states have, or in other shapes, stand under their state's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from guidefold.ground import CorruptFileError
from guidefold.listen import Shapes, Tree, flatten, unflatten
from guidefold.run import (
    LINE_REMEDY,
    LINES,
    TrajectoryLine,
    check_file,
    read_metadata,
    within,
    write_lines,
    write_tensors,
)

Split = Literal["training", "held-out"]
Checked = set[tuple[Path, str]]
"""Files, each with the checksum that it was found to have: a run that is open reads each once."""


@dataclass(frozen=True)
class KeptState:
    """One state of a trajectory, with the arguments and the target that training needs.

    Attributes:
        arguments: ``(args, kwargs)`` of the student's denoiser call for one sample.
        target: The teacher's model output, leading size 1.
        timestep: As given to the scheduler.
        index: The step's index in the trajectory.
        shapes: The shapes of the target's packed parts; empty for a single scheduler.
    """

    arguments: Tree
    target: torch.Tensor
    timestep: float
    index: int
    shapes: Shapes = ()


@dataclass(frozen=True)
class StateRef:
    """The place of a recorded state, and what the manifest says about it.

    Attributes:
        path: The trajectory's file.
        row: Index among the file's kept states.
        guidance: The teacher's guidance scale.
        timestep: As given to the scheduler.
    """

    path: Path
    row: int
    guidance: float
    timestep: float

    def read(self) -> KeptState:
        """Read the state from its file."""
        status = self.path.stat()
        return _open(self.path, status.st_ino, status.st_mtime_ns).state(self.row)


def write_trajectory(
    path: Path,
    states: Sequence[KeptState],
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Write one trajectory.

    Args:
        path: The file.
        states: The kept states, in order.
        dtype: Precision of stored latents and embeddings; None keeps theirs.

    Returns:
        The file's fields of its :class:`~guidefold.run.records.TrajectoryLine`.
    """
    flat = [flatten(list(state.arguments)) for state in states]
    skeletons = [skeleton for skeleton, _ in flat]
    tensors = _columns([leaves for _, leaves in flat])
    tensors["step/target"] = torch.stack([state.target for state in states])
    original = {n: str(t.dtype).removeprefix("torch.") for n, t in tensors.items()}
    if dtype is not None:
        tensors = {n: _narrow(t, dtype) for n, t in tensors.items()}
    timesteps = [state.timestep for state in states]
    metadata = {
        "skeletons": skeletons[:1] if all(s == skeletons[0] for s in skeletons) else skeletons,
        "timesteps": timesteps,
        "indices": [state.index for state in states],
        "dtypes": original,
        **({"shapes": states[0].shapes} if states[0].shapes else {}),
    }
    digest = write_tensors(path, tensors, metadata)
    size = path.stat().st_size
    return {"file": path.name, "sha256": digest, "size": size, "timesteps": timesteps}


def _columns(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The states' tensors under the file's names: once, stacked, or by the state's row."""
    tensors: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(name for leaves in states for name in leaves):
        rows = {row: leaves[name] for row, leaves in enumerate(states) if name in leaves}
        first, *others = rows.values()
        if all(torch.equal(first, other) for other in others):
            tensors[f"once/{name}"] = first
        elif len(rows) == len(states) and len({t.shape for t in others} | {first.shape}) == 1:
            tensors[f"step/{name}"] = torch.stack([first, *others])
        else:
            tensors |= {f"row-{row}/{name}": tensor for row, tensor in rows.items()}
    return tensors


def read_round(
    folder: Path, *, verify: bool = True, checked: Checked | None = None
) -> list[TrajectoryLine]:
    """The manifest lines of a round, each file checked against its line.

    Args:
        folder: The round's folder.
        verify: Whether to check the files.
        checked: Files that need no check; those that are found intact are added.

    Raises:
        CorruptFileError: A file is missing, truncated or altered.
    """
    lines = _read_lines(folder)
    for line in lines if verify else ():
        _check(folder, line, set() if checked is None else checked)
    return lines


def drop_damaged(folder: Path, checked: Checked | None = None) -> None:
    """Drop manifest lines whose files are missing or altered, so that they are recorded again.

    A trajectory is a function of its seed: the new recording equals the lost one.

    Args:
        folder: The round's folder.
        checked: As of :func:`read_round`.
    """
    lines = _read_lines(folder)
    checked = set() if checked is None else checked
    intact = [line for line in lines if _is_intact(folder, line, checked)]
    if len(intact) < len(lines):
        write_lines(folder / LINES, [line.to_json() for line in intact])


def state_refs(folder: Path, lines: Sequence[TrajectoryLine], split: Split) -> list[StateRef]:
    """Every recorded state of one split, in the order of the plans, not of the manifest."""
    chosen = sorted((line for line in lines if line.split == split), key=lambda x: x.index)
    return [
        StateRef(folder / line.file, row, line.guidance, timestep)
        for line in chosen
        for row, timestep in enumerate(line.timesteps)
    ]


def _read_lines(folder: Path) -> list[TrajectoryLine]:
    """The manifest lines of a round; each names a file within its folder."""
    lines = TrajectoryLine.read_lines(folder / LINES)
    for line in lines:
        within(folder, line.file, folder / LINES, LINE_REMEDY)
    return lines


def _check(folder: Path, line: TrajectoryLine, checked: Checked) -> None:
    if (folder / line.file, line.sha256) in checked:
        return
    remedy = f"To record it again, as it was: guidefold record {folder.parent.parent}"
    if line.source == "student":
        remedy = "The student that visited these states is gone: choose another run=FOLDER."
    path = folder / line.file
    check_file(path, line.sha256, line.size, remedy)
    held = read_metadata(path)
    if not isinstance(held, dict) or held.get("timesteps") != line.timesteps:
        raise CorruptFileError(f"{path}: its timesteps are not those of {folder / LINES}", remedy)
    checked.add((path, line.sha256))


def _is_intact(folder: Path, line: TrajectoryLine, checked: Checked) -> bool:
    try:
        _check(folder, line, checked)
    except CorruptFileError:
        return False
    return True


class _Trajectory:
    """An open file, whose stacked tensors are read state by state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = read_metadata(path)
        if self.metadata is None:
            raise CorruptFileError(f"{path}: no trajectory (its metadata is missing)")
        self._file: Any = safe_open(path, framework="pt")
        self._once: dict[str, torch.Tensor] = {
            name: self._file.get_tensor(name)
            for name in self._file.keys()  # noqa: SIM118 - not a dictionary
            if name.startswith("once/")
        }

    def state(self, row: int) -> KeptState:
        skeletons = self.metadata["skeletons"]
        skeleton = skeletons[row] if len(skeletons) > 1 else skeletons[0]
        args, kwargs = unflatten(skeleton, lambda name: self._tensor(name, row))
        return KeptState(
            arguments=(tuple(args), kwargs),
            target=self._tensor("target", row),
            timestep=self.metadata["timesteps"][row],
            index=self.metadata["indices"][row],
            shapes=tuple(map(tuple, self.metadata.get("shapes", ()))),
        )

    def _tensor(self, name: str, row: int) -> torch.Tensor:
        alone = f"row-{row}/{name}"
        if alone in self.metadata["dtypes"]:
            stored, tensor = alone, self._file.get_tensor(alone)
        elif f"once/{name}" in self._once:
            stored, tensor = f"once/{name}", self._once[f"once/{name}"]
        else:
            stored, tensor = f"step/{name}", self._file.get_slice(f"step/{name}")[row]
        dtype: torch.dtype = getattr(torch, self.metadata["dtypes"][stored])
        converted: torch.Tensor = tensor.to(dtype)
        return converted


@lru_cache(maxsize=256)
def _open(path: Path, _inode: int, _written: int) -> _Trajectory:
    """Open a trajectory; inode and time are part of the key, since a file may be replaced."""
    return _Trajectory(path)


def _narrow(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Lower the precision of latents and embeddings, but not of timesteps and tables."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim >= 3 else tensor
