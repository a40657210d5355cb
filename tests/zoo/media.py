"""Pictures, frames, sound and embeddings that zoo pipelines are given, made here and not stored.

Named as an inputs file would name them: ``cat.png``, ``dog.png``, ``mask.png``, ``edges.png``, the
folder ``frames`` (nine pictures), ``tone.wav`` (one second, stereo, 16 kHz) and, by their shapes,
embeddings such as ``noise-1x16.safetensors`` or, from another seed, ``noise-1x16-3.safetensors``
(normals, float32).
"""

import json
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

SIZE = 32
FRAMES = 9
RATE = 16_000
FOLDERS = ("frames", "frames/")


def write_media(folder: Path, names: Any) -> Path:
    """Write every file that a tree of inputs names."""
    for name in _names(names):
        path = folder / name
        if path.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if path.name == "frames":
            path.mkdir()
            for k in range(FRAMES):
                _picture("frames", k).save(path / f"{k:03d}.png")
        elif path.suffix == ".png":
            _picture(path.stem, 0).save(path)
        elif path.suffix == ".wav":
            _write_tone(path)
        else:
            _, sizes, *more = path.stem.split("-")
            shape = [int(n) for n in sizes.split("x")]
            seed = int(more[0]) if more else 0
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            save_file({"embedding": noise}, path)
    return folder


def read_media(folder: Path, value: Any) -> Any:
    """The value that a pipeline is given for one that an inputs file holds."""
    if isinstance(value, list | tuple):
        return [read_media(folder, item) for item in value]
    if value in FOLDERS:
        return [Image.open(path).convert("RGB") for path in sorted((folder / value).iterdir())]
    if not is_media(value):
        return value
    path = folder / value
    if path.suffix == ".png":
        return Image.open(path).convert("RGB")
    if path.suffix == ".safetensors":
        return load_file(path)["embedding"]
    with wave.open(str(path)) as sound:
        data = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
        return torch.from_numpy(data.reshape(-1, sound.getnchannels()).T / 2**15).float()


def is_media(value: object) -> bool:
    """Whether a value names a file of this room."""
    return isinstance(value, str) and (
        value in FOLDERS or value.endswith((".png", ".wav", ".safetensors"))
    )


def write_inputs(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    """An inputs file as users write one, its media beside it."""
    write_media(path.parent, [list(row.values()) for row in rows])
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [name for item in value for name in _names(item)]
    return [value] if is_media(value) else []


def _picture(name: str, shift: int) -> Image.Image:
    """Coloured shapes; a mask is black with a white half, edges are white lines on black."""
    if name == "mask":
        mask = Image.new("RGB", (SIZE, SIZE), "black")
        ImageDraw.Draw(mask).rectangle((0, 0, SIZE // 2, SIZE), fill="white")
        return mask
    dark = name == "edges"
    picture = Image.new("RGB", (SIZE, SIZE), "black" if dark else "lightblue")
    colour = (
        "white"
        if dark
        else {"cat": "red", "dog": "green", "frog": "blue", "cow": "pink"}.get(name, "orange")
    )
    box = (4 + shift, 6, 20 + shift, 26)
    ImageDraw.Draw(picture).ellipse(box, outline=colour, fill=None if dark else colour)
    return picture


def _write_tone(path: Path) -> None:
    time = np.arange(RATE) / RATE
    tone = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (220, 330)], axis=1)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes((tone * 0.5 * (2**15 - 1)).astype("<i2").tobytes())
