"""Weights are whole safetensors files, or what is wrong with them is said."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from original_layout import write_original_layout

from guidefold.ground.errors import PipelineError
from guidefold.pipeline.open import open_pipeline


@pytest.fixture(scope="module")
def single(built: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original_layout(built("sd15"), tmp_path_factory.mktemp("single") / "a.safetensors")


def zipped(path: Path, _whole: bytes) -> None:
    torch.save({"a": torch.zeros(2)}, path)


def pickled(path: Path, _whole: bytes) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def header_of(length: int) -> Callable[[Path, bytes], None]:
    """A truncated file whose first byte is that of another format."""

    def write(path: Path, _whole: bytes) -> None:
        path.write_bytes(struct.pack("<Q", length) + b'{"a":')

    return write


DAMAGE: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "half": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "truncated"),
    "one byte less": (lambda path, whole: path.write_bytes(whole[:-1]), "truncated"),
    "header alone": (lambda path, whole: path.write_bytes(whole[:100]), "truncated"),
    "eight bytes": (lambda path, whole: path.write_bytes(whole[:8]), "truncated"),
    "empty": (lambda path, _: path.write_bytes(b""), "truncated: it ends after 0 bytes"),
    "length like a pickle": (header_of(0x180), "truncated"),
    "length like a page": (header_of(ord("<") + 512), "truncated"),
    "zip": (zipped, "a pickle of torch"),
    "pickle": (pickled, "not a safetensors file but a pickle"),
    "gguf": (lambda path, _: path.write_bytes(b"GGUF" + bytes(99)), "a GGUF file"),
    "hdf5": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
    "pointer": (
        lambda path, _: path.write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0"
        ),
        "a pointer of Git LFS",
    ),
    "page": (lambda path, _: path.write_bytes(b"<!DOCTYPE html><html>"), "a page of HTML"),
    "noise": (lambda path, _: path.write_bytes(bytes(range(1, 250))), "not a whole safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("described", [True, False])
def test_a_single_file_that_is_no_whole_safetensors_file_is_named_with_what_it_is(
    single: Path, saved: Callable[[str], Path], tmp_path: Path, damage: str, described: bool
) -> None:
    path = tmp_path / "a.safetensors"
    write, says = DAMAGE[damage]
    write(path, single.read_bytes())
    with pytest.raises(PipelineError, match=says) as caught:
        open_pipeline(str(path), config=str(saved("sd15")) if described else None)
    assert caught.value.message.startswith(f"{path}: not a ")
    assert "model_index.json" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_so_is_a_file_in_a_folder(
    saved: Callable[[str], Path], tmp_path: Path, damage: str, component: str
) -> None:
    folder = Path(shutil.copytree(saved("sd15"), tmp_path / "p"))
    (path,) = (folder / component).glob("*.safetensors")
    write, says = DAMAGE[damage]
    write(path, path.read_bytes())
    with pytest.raises(PipelineError, match=says) as caught:
        open_pipeline(str(folder))
    assert str(path) in caught.value.message
