"""Files that a row names: read to what a pipeline is given, refused by the row's place."""

import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from guidefold.ground.errors import PromptError
from guidefold.pipeline.media import (
    Media,
    find_media,
    name_columns,
    name_value,
    open_media,
    show_value,
)

RED, GREEN = (255, 0, 0), (0, 128, 0)
WHERE = "rows.jsonl:3"


def paint(path: Path, *colours: str, mode: str = "RGB") -> Path:
    """A picture; of several colours an animation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.new("RGB", (6, 4), colour).convert(mode) for colour in colours]
    options = {"save_all": True, "append_images": others} if others else {}
    first.save(path, **options)
    return path


def sound(path: Path, data: np.ndarray, width: int = 2, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16_000)
        file.writeframes(data.tobytes())
    return path


def opened(folder: Path, value: Any) -> Any:
    return open_media(find_media(value, folder, WHERE))


def refusal(folder: Path, value: Any) -> PromptError:
    with pytest.raises(PromptError) as caught:
        find_media(value, folder, WHERE)
    assert caught.value.message.startswith(f"{WHERE}: ")
    return caught.value


# What is read


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.webp", "a.bmp", "a.jpg", "in/b.jpeg"])
def test_a_picture_is_read_in_rgb(tmp_path: Path, name: str) -> None:
    paint(tmp_path / name, "red")
    picture = opened(tmp_path, name)
    assert (picture.mode, picture.size) == ("RGB", (6, 4))
    assert np.allclose(picture.getpixel((1, 1)), RED, atol=3)  # jpeg and webp are lossy


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_a_picture_of_another_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    paint(tmp_path / "a.png", "white", mode=mode)
    assert opened(tmp_path, "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_an_animation_is_read_as_its_frames(tmp_path: Path) -> None:
    paint(tmp_path / "a.gif", "red", "green")
    frames = opened(tmp_path, "a.gif")
    assert [frame.getpixel((0, 0)) for frame in frames] == [RED, GREEN]
    assert {frame.mode for frame in frames} == {"RGB"}


def test_a_folder_is_read_as_frames_in_the_order_of_their_names(tmp_path: Path) -> None:
    paint(tmp_path / "f" / "002.png", "green")
    paint(tmp_path / "f" / "001.png", "red")
    (tmp_path / "f" / "notes.txt").write_text("not a frame")
    assert [frame.getpixel((0, 0)) for frame in opened(tmp_path, "f/")] == [RED, GREEN]


def test_sound_is_read_channel_by_channel_in_minus_one_to_one(tmp_path: Path) -> None:
    left, right = [0, 2**14, -(2**15)], [1, -1, 2**15 - 1]
    data = np.array([left, right], dtype="<i2").T
    sound(tmp_path / "a.wav", data, channels=2)
    tensor = opened(tmp_path, "a.wav")
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [[0, 0.5, -1], [2**-15, -(2**-15), 1 - 2**-15]]


def test_a_tensor_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"any name": tensor}, tmp_path / "a.safetensors")
    found = opened(tmp_path, "a.safetensors")
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, tensor)


def test_lists_hold_files_at_any_depth(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red")
    paint(tmp_path / "b.png", "green")
    found = opened(tmp_path, [["a.png", "words"], [3, None, "b.png"]])
    assert found[0][0].getpixel((0, 0)) == RED
    assert found[1][2].getpixel((0, 0)) == GREEN
    assert (found[0][1], found[1][:2]) == ("words", [3, None])


@pytest.mark.parametrize(
    "value",
    [
        *("a cat", "blurry.", "see www.a.net", ".png", "a.png or b.jpg?", "1/2", "", "v1.5"),
        *(3, 0.5, True, None, {"image": "a.png"}),
    ],
)
def test_what_is_no_name_of_a_file_stays_what_it_is(tmp_path: Path, value: Any) -> None:
    assert find_media(value, tmp_path, WHERE) is value
    assert opened(tmp_path, value) is value


def test_what_a_pipeline_does_to_a_list_of_frames_does_not_reach_the_next_one(
    tmp_path: Path,
) -> None:
    paint(tmp_path / "a.gif", "red", "green")
    row = find_media("a.gif", tmp_path, WHERE)
    open_media(row).pop()
    assert len(open_media(row)) == 2


def test_a_tensor_that_a_pipeline_writes_into_is_whole_for_the_next_one(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    row = find_media("a.safetensors", tmp_path, WHERE)
    open_media(row).zero_()
    assert open_media(row).tolist() == [1, 1, 1]


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    row = find_media(paint(tmp_path / "a.png", "red").name, tmp_path, WHERE)
    assert row.open().getpixel((0, 0)) == RED
    paint(tmp_path / "b.png", "green").replace(tmp_path / "a.png")
    assert row.open().getpixel((0, 0)) == GREEN


# What is refused


def test_a_missing_file_is_refused_with_where_names_start(tmp_path: Path) -> None:
    error = refusal(tmp_path, ["words", "in/a.png"])
    assert f"no such file: {tmp_path}/in/a.png" in error.message
    assert str(tmp_path) in error.remedy


@pytest.mark.parametrize("name", ["a.mp4", "A.MOV", "deep/a.webm"])
def test_a_film_is_refused_with_how_to_take_it_apart(tmp_path: Path, name: str) -> None:
    error = refusal(tmp_path, name)
    assert f"'{name}' is a film" in error.message
    assert f"ffmpeg -i {name}" in error.remedy


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.wav", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"GIF89a", b"RIFF" + b"\0" * 40, b"\0" * 64])
def test_a_file_that_is_no_such_thing_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} cannot be read" in refusal(tmp_path, name).message


def of_png(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    return folder / "a.png"


def of_gif(folder: Path) -> Path:
    return paint(folder / "a.gif", "red", "green")


def of_wav(folder: Path) -> Path:
    return sound(folder / "a.wav", np.arange(50, dtype="<i2"))


def of_tensor(folder: Path) -> Path:
    save_file({"a": torch.ones(4)}, folder / "a.safetensors")
    return folder / "a.safetensors"


@pytest.mark.parametrize("make", [of_png, of_gif, of_wav, of_tensor])
def test_no_damage_ends_in_anything_but_a_refusal(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """Cut short or with a byte turned over, wherever that is: read, or refused by its place."""
    path = make(tmp_path)
    whole, refused = path.read_bytes(), 0
    cuts = [whole[:length] for length in range(0, len(whole), 7)]
    turned = [whole[:k] + bytes([whole[k] ^ 0xFF]) + whole[k + 1 :] for k in range(len(whole))]
    for damaged in cuts + turned:
        path.unlink()
        path.write_bytes(damaged)
        try:
            find_media(path.name, tmp_path, WHERE)
        except PromptError as error:
            refused += 1
            assert str(path) in error.message
    assert refused


def test_sound_of_other_samples_than_16_bit_is_refused(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", np.zeros(30, dtype=np.uint8), width=3)
    assert "only 16-bit samples are read" in refusal(tmp_path, "a.wav").message
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 8000, 32000, 4, 32)  # 3: floats
    (tmp_path / "b.wav").write_bytes(b"RIFF\x2c\0\0\0WAVE" + head + b"data\4\0\0\0\0\0\0\0")
    assert "cannot be read" in refusal(tmp_path, "b.wav").message


@pytest.mark.parametrize("count", [0, 2])
def test_other_than_one_tensor_is_refused(tmp_path: Path, count: int) -> None:
    save_file({str(k): torch.ones(2) for k in range(count)}, tmp_path / "a.safetensors")
    assert f"it holds {count} tensors, not one" in refusal(tmp_path, "a.safetensors").message


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "notes.txt").write_text("none here")
    assert "no pictures in this folder" in refusal(tmp_path, "f/").message


def test_a_file_named_as_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no folder")
    assert "Not a directory" in refusal(tmp_path, "notes.txt/").message


@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_huge_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Pillow warns of one and refuses one of twice that size."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(24 / factor))
    paint(tmp_path / "a.png", "red")
    assert "decompression bomb" in refusal(tmp_path, "a.png").message


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0b.png", "x" * 300 + "/"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    assert "cannot be read" in refusal(tmp_path, name).message


# What a file is called by


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, what: paint(folder / "a.png", what),
        lambda folder, what: paint(folder / "a" / "0.png", what).parent,
    ],
    ids=["file", "folder"],
)
def test_a_digest_follows_what_a_file_holds_and_not_its_name(tmp_path: Path, write: Any) -> None:
    red, again, green = (
        Media(write(tmp_path / place, colour)).digest
        for place, colour in (("1", "red"), ("2", "red"), ("3", "green"))
    )
    assert red == again != green
    assert len(red) == 64


def test_columns_are_named_by_what_they_hold_and_shown_by_their_names(tmp_path: Path) -> None:
    paint(tmp_path / "one" / "a.png", "red")
    paint(tmp_path / "two" / "b.png", "red")
    one = find_media(["a.png", "words", 3], tmp_path / "one", WHERE)
    two = find_media(["b.png", "words", 3], tmp_path / "two", WHERE)
    assert name_value(one) == name_value(two) == [{"sha256": one[0].digest}, "words", 3]
    assert name_columns({"x": one, "a": 1}) == name_columns({"a": 1, "x": two})
    assert name_columns({"x": one}) != name_columns({"y": one})
    assert [show_value(one), show_value(two)] == ["a.png, words, 3", "b.png, words, 3"]


@pytest.mark.parametrize("value", ["../a.png", "in/../../a.png", "/a.png", "link.png", "frames/"])
def test_a_file_outside_of_its_folder_is_not_opened(tmp_path: Path, value: str) -> None:
    outside = paint(tmp_path / "a.png", "red")
    home = tmp_path / "home"
    paint(home / "frames" / "1.png", "green")
    for link in (home / "link.png", home / "frames" / "2.png"):
        link.symlink_to(outside)
    value = str(outside) if value == "/a.png" else value
    error = refusal(home, value)
    assert error.message == f"{WHERE}: '{value}' leads out of the folder '{home}'"
    assert error.remedy


def test_a_link_within_its_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "b.png").symlink_to(paint(tmp_path / "in" / "a.png", "red"))
    assert opened(tmp_path, "b.png").getpixel((0, 0)) == RED
