"""Pictures, frames, sound and embeddings that a row of an inputs file names.

They are found and checked while the inputs file is read, before a model is loaded, and opened just
before a pipeline is called with them.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from safetensors import safe_open

from guidefold.ground import PromptError, out_of_memory, shown
from guidefold.run import lies_within

BESIDE = "Put the file itself, not a link to it, into that folder"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FILMS = {".mp4", ".mov", ".mkv", ".webm", ".avi"}


@dataclass(frozen=True)
class Media:
    """A file that is a value in a row.

    Attributes:
        path: A picture, an animated GIF, a folder of frames, a ``.wav`` file, or a
            ``.safetensors`` file of one tensor.
    """

    path: Path

    def open(self) -> Any:
        """Read the file as a pipeline takes it: a picture, a list of pictures, or a tensor.

        Sound is a tensor of shape (channels, samples) in [-1, 1].
        """
        return _copy(_open(self.path, self.path.stat().st_mtime_ns))

    @property
    def digest(self) -> str:
        """SHA-256 of the content, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for path in _frames(self.path) if self.path.is_dir() else [self.path]:
            digest.update(path.read_bytes())
        return digest.hexdigest()


def find_media(value: Any, folder: Path, where: str) -> Any:
    """Replace every name of a file within a row's value by the file.

    A text is a file's name if it ends like one: ``.png`` and other pictures, ``.gif``, ``.wav``,
    ``.safetensors``, or a slash for a folder of frames.

    Args:
        value: A value from JSON.
        folder: The folder that names are relative to.
        where: ``file:line``, for messages.

    Raises:
        PromptError: A file is missing, damaged, outside of the folder, or of a format that is not
            read.
    """
    if isinstance(value, list):
        return tuple(find_media(item, folder, where) for item in value)
    if not isinstance(value, str):
        return value
    suffix = Path(value).suffix.lower()
    if suffix in FILMS:
        raise PromptError(
            f"{where}: '{value}' is a film, which Guidefold does not decode",
            f"Write its frames to a folder (ffmpeg -i {value} frames/%04d.png) and name that, "
            "with a slash at its end: frames/",
        )
    if suffix not in OPENERS and not value.endswith("/"):
        return value
    path = folder / value
    media = Media(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            inside = lies_within(folder, *([path] if not path.is_dir() else _frames(path)))
            if inside:
                media.open()
    except FileNotFoundError as error:
        remedy = f"Names are relative to the folder '{folder}'."
        raise PromptError(f"{where}: no such file: {path}", remedy) from error
    except Exception as error:  # on damaged files, decoders raise exceptions of any type
        if out_of_memory(error):
            raise
        reason = getattr(error, "strerror", None) or error  # without the path once more
        raise PromptError(
            f"{where}: {shown(path)} cannot be read: {reason}",
            "Open it in the program it came from and save it again, or leave the row out.",
        ) from error
    if not inside:
        raise PromptError(
            f"{where}: '{value}' leads out of the folder '{folder}'", f"{BESIDE} and name it there."
        )
    return media


def open_media(value: Any) -> Any:
    """A row's value as a pipeline takes it."""
    if isinstance(value, tuple):
        return [open_media(item) for item in value]
    return value.open() if isinstance(value, Media) else value


def name_value(value: Any) -> Any:
    """A row's value as JSON; a file by the digest of its content."""
    if isinstance(value, tuple):
        return [name_value(item) for item in value]
    return {"sha256": value.digest} if isinstance(value, Media) else value


def name_columns(columns: Mapping[str, Any]) -> str:
    """A row's columns as one line of text."""
    return json.dumps({n: name_value(v) for n, v in columns.items()}, sort_keys=True)


def show_value(value: Any) -> str:
    """A row's value as text for people."""
    if isinstance(value, tuple):
        return ", ".join(map(show_value, value))
    return value.path.name if isinstance(value, Media) else str(value)


@lru_cache(maxsize=64)
def _open(path: Path, _written: int) -> Any:
    if path.is_dir():
        return _read_frames(path)
    return _read_file(path)


def _read_file(path: Path) -> Any:
    """Read one file, which may be a frame; what is no regular file may never end."""
    if not path.is_file():
        raise ValueError("it is neither a file nor a folder")
    return OPENERS.get(path.suffix.lower(), _read_frames)(path)


def _copy(opened: Any) -> Any:
    """Copy a cached value for one call: some pipelines write into their arguments."""
    if isinstance(opened, list):
        return [_copy(item) for item in opened]
    return opened.clone() if isinstance(opened, torch.Tensor) else opened.copy()


def _read_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _read_animation(path: Path) -> list[Image.Image]:
    with Image.open(path) as animation:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]


def _frames(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def _read_frames(folder: Path) -> list[Image.Image]:
    frames = [_read_file(path) for path in _frames(folder)]
    if not frames:
        raise ValueError("no pictures in this folder")
    return frames


def _read_sound(path: Path) -> torch.Tensor:
    with wave.open(str(path)) as sound:
        if sound.getsampwidth() != 2:
            raise ValueError("only 16-bit samples are read")
        data = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
        return torch.from_numpy(data.reshape(-1, sound.getnchannels()).T / np.float32(2**15))


def _read_tensor(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} tensors, not one")
        tensor: torch.Tensor = file.get_tensor(names[0])
        return tensor


OPENERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(PICTURES, _read_picture),
    ".gif": _read_animation,
    ".wav": _read_sound,
    ".safetensors": _read_tensor,
}
