"""What a LoRA file of Guidefold's says of itself; needs neither Guidefold nor torch.

The rules are those of ``guidefold.lora.Dial``; ``tests/integrations`` holds the two together.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

LONGEST_HEADER = 2**27  # bytes; larger ones are damage


def read_metadata(path: Path) -> dict[str, Any]:
    """Guidefold's metadata in a safetensors file.

    Raises:
        ValueError: The file is no whole safetensors file, or Guidefold did not write it.
    """
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        text = stream.read(size) if size <= LONGEST_HEADER else b""
    try:
        header = json.loads(text)
        metadata = json.loads(header.get("__metadata__", {}).get("guidefold", "null"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path.name}: not a whole safetensors file") from error
    if not isinstance(metadata, dict):
        raise ValueError(
            f"{path.name}: no LoRA of Guidefold's; load it with ComfyUI's own LoRA loader"
        )
    return metadata


def strength_for(metadata: dict[str, Any], guidance: float) -> float:
    """The strength that stands for a guidance scale: as measured, else as trained.

    Args:
        metadata: A guidance LoRA's metadata.
        guidance: The scale, as the run's pipeline counts it.

    Raises:
        ValueError: The LoRA was not made for this scale.
    """
    g_ref, origin = metadata["g_ref"], metadata["findings"]["origin"]
    if not metadata["dial"]:
        if abs(guidance - g_ref) > 1e-6:
            raise ValueError(f"this LoRA has no dial: it is for guidance {g_ref:g} alone")
        return 1.0
    marks = [(mark["guidance"], mark["strength"]) for mark in metadata.get("dial_table", [])]
    if not marks:
        low, high = metadata["guidance_range"]
        if not min(low, origin) <= guidance <= high:
            raise ValueError(
                f"guidance {guidance:g}: the LoRA was trained from {low:g} to {high:g}"
            )
        return (guidance - origin) / (g_ref - origin)
    for (g0, s0), (g1, s1) in pairwise([(origin, 0.0), *marks]):
        if g0 <= guidance <= g1:
            return s0 + (s1 - s0) * (guidance - g0) / (g1 - g0)
    raise ValueError(
        f"guidance {guidance:g}: the dial of this LoRA is measured from {origin:.3g} to "
        f"{marks[-1][0]:.3g}"
    )
