"""Trajectories on disk: what is read is what was written, and a damaged file is named."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from guidefold.ground.errors import CorruptFileError, NonFiniteError
from guidefold.listen.arguments import trees_equal
from guidefold.record.trajectory_files import (
    KeptState,
    StateRef,
    drop_damaged,
    read_round,
    state_refs,
    write_trajectory,
)
from guidefold.run.files import append_line
from guidefold.run.folder import LINES
from guidefold.run.lines import TrajectoryLine
from guidefold.run.settings import RecordSettings

TIMESTEPS = (901.0, 601.5, 1.0)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept_states(first: int = 0) -> list[KeptState]:
    """Three states: latents and timestep differ, embeddings and flags do not."""
    embeddings = noise(99, 1, 5, 6)
    return [
        KeptState(
            arguments=(
                (noise(first + k, 1, 4, 2, 2), torch.tensor(int(timestep))),
                {"embeddings": embeddings, "sizes": [(2, 2)], "return_dict": False, "mask": None},
            ),
            target=noise(first + k + 10, 1, 4, 2, 2),
            timestep=timestep,
            index=2 * k,
        )
        for k, timestep in enumerate(TIMESTEPS)
    ]


def write(
    folder: Path, index: int = 0, dtype: Any = None, split: str = "training"
) -> TrajectoryLine:
    """Write a trajectory and its manifest line."""
    path = folder / f"{index}.safetensors"
    file = write_trajectory(path, kept_states(index), dtype)
    line = TrajectoryLine(
        **file, index=index, split=split, guidance=2.0 + index, prompt_sha256="", seed=0
    )
    append_line(folder / LINES, line.to_json())
    return line


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path)
    for row, written in enumerate(kept_states()):
        read = StateRef(tmp_path / "0.safetensors", row, 2.0, TIMESTEPS[row]).read()
        assert (read.timestep, read.index) == (written.timestep, written.index)
        assert torch.equal(read.target, written.target)
        (args, kwargs), (args_written, kwargs_written) = read.arguments, written.arguments
        assert isinstance(args, tuple)
        for mine, its in zip(args, args_written, strict=True):
            assert mine.dtype == its.dtype
            assert torch.equal(mine, its)
        assert torch.equal(kwargs.pop("embeddings"), kwargs_written.pop("embeddings"))
        assert kwargs == kwargs_written


def test_what_all_steps_share_is_stored_once(tmp_path: Path) -> None:
    write(tmp_path)
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {
        "once/arguments.1.embeddings": (1, 5, 6),
        "step/arguments.0.0": (3, 1, 4, 2, 2),
        "step/arguments.0.1": (3,),
        "step/target": (3, 1, 4, 2, 2),
    }


def test_narrow_storage_narrows_latents_and_embeddings_only_and_gives_the_old_precision_back(
    tmp_path: Path,
) -> None:
    write(tmp_path, dtype=torch.bfloat16)
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert stored["step/arguments.0.1"] == torch.int64
    assert stored["step/target"] == stored["once/arguments.1.embeddings"] == torch.bfloat16
    read = StateRef(tmp_path / "0.safetensors", 1, 2.0, TIMESTEPS[1]).read()
    expected = kept_states()[1].target.bfloat16().float()
    assert read.target.dtype == torch.float32
    assert torch.equal(read.target, expected)


def test_a_state_with_arguments_of_its_own_form_is_kept_apart(tmp_path: Path) -> None:
    states = kept_states()
    states[1].arguments[1]["return_dict"] = True
    write_trajectory(tmp_path / "0.safetensors", states, None)
    refs = [StateRef(tmp_path / "0.safetensors", row, 2.0, 0.0) for row in range(3)]
    assert [ref.read().arguments[1]["return_dict"] for ref in refs] == [False, True, False]


def test_a_file_that_was_recorded_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    ref = StateRef(path, 0, 2.0, TIMESTEPS[0])
    for first in (0, 50):
        write_trajectory(path, kept_states(first), None)
        assert torch.equal(ref.read().target, kept_states(first)[0].target)


def test_nothing_that_is_not_finite_is_written(tmp_path: Path) -> None:
    states = kept_states()
    states[2].target[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="target"):
        write_trajectory(tmp_path / "0.safetensors", states, None)
    assert not list(tmp_path.iterdir())


def test_states_are_listed_by_split_in_an_order_that_does_not_depend_on_the_writing(
    tmp_path: Path,
) -> None:
    lines = [write(tmp_path, k, split="held-out" if k == 1 else "training") for k in (2, 0, 1)]
    refs = state_refs(tmp_path, lines, "training")
    assert [(ref.path.name, ref.row) for ref in refs] == [
        (f"{k}.safetensors", row) for k in (0, 2) for row in range(3)
    ]
    assert [ref.guidance for ref in refs] == [2.0] * 3 + [4.0] * 3
    assert [ref.timestep for ref in refs] == [*TIMESTEPS] * 2
    assert {ref.path.name for ref in state_refs(tmp_path, lines, "held-out")} == {"1.safetensors"}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for k in range(2):
        write(tmp_path, k)
    assert len(read_round(tmp_path)) == 2
    damage(tmp_path / "1.safetensors")
    with pytest.raises(CorruptFileError, match=r"1\.safetensors") as caught:
        read_round(tmp_path)
    assert "guidefold record" in caught.value.remedy


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_what_is_damaged_is_dropped_from_the_manifest_and_nothing_else(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    lines = [write(tmp_path, k) for k in range(3)]
    damage(tmp_path / "1.safetensors")
    drop_damaged(tmp_path)
    assert read_round(tmp_path) == [lines[0], lines[2]]


def test_dropping_leaves_a_whole_manifest_untouched(tmp_path: Path) -> None:
    write(tmp_path, 0)
    before = (tmp_path / LINES).stat()
    drop_damaged(tmp_path)
    assert (tmp_path / LINES).stat().st_mtime_ns == before.st_mtime_ns
    drop_damaged(tmp_path / "never recorded")


def test_a_torn_last_line_is_dropped_and_a_damaged_one_within_is_named(tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path, k)
    manifest = tmp_path / LINES
    text = manifest.read_bytes()
    manifest.write_bytes(text[:-9])
    assert [line.index for line in read_round(tmp_path)] == [0]
    manifest.write_bytes(b"{" + text)
    with pytest.raises(CorruptFileError, match=r"manifest\.jsonl:1: not valid JSON"):
        read_round(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tensors at all, but some bytes to read"])
def test_a_file_that_is_no_trajectory_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"0\.safetensors"):
        StateRef(path, 0, 2.0, 0.0).read()


def test_an_sdxl_trajectory_at_the_default_settings_takes_seven_megabytes_at_most(
    tmp_path: Path,
) -> None:
    """Its true shapes in half precision; the embeddings are stored once, not 25 times."""
    half = partial(torch.randn, dtype=torch.float16)
    embeddings, pooled = half(1, 77, 2048), half(1, 1280)
    added = {"text_embeds": pooled, "time_ids": half(1, 6)}
    kept = RecordSettings().states_per_trajectory
    states = [
        KeptState(
            arguments=(
                (half(1, 4, 128, 128), torch.tensor(k)),
                {"encoder_hidden_states": embeddings, "added_cond_kwargs": added},
            ),
            target=half(1, 4, 128, 128),
            timestep=float(k),
            index=k,
        )
        for k in range(kept)
    ]
    path = tmp_path / "trajectory.safetensors"
    write_trajectory(path, states, None)
    assert kept == 25
    assert path.stat().st_size <= 7e6


def test_states_that_differ_in_form_are_read_as_they_were_written(tmp_path: Path) -> None:
    first, *rest = kept_states()
    longer = [
        replace(
            state, arguments=(state.arguments[0], {"earlier": [noise(7, 2)], "own": noise(k, k)})
        )
        for k, state in enumerate(rest, 1)
    ]
    path = tmp_path / "0.safetensors"
    write_trajectory(path, [first, *longer], None)
    for row, state in enumerate([first, *longer]):
        assert trees_equal(StateRef(path, row, 1.0, 1.0).read().arguments, state.arguments)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert "once/arguments.1.earlier.0" in names
    assert {"row-1/arguments.1.own", "row-2/arguments.1.own"} <= names
