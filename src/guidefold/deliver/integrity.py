"""Check a file against its own metadata: unchanged since it was written, and made for this base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.deliver.base_model import open_base
from guidefold.deliver.lora_file import SINCE, LoraFile
from guidefold.deliver.metadata import HASH, content_hash
from guidefold.ground import CorruptFileError
from guidefold.lora import PEFT_CONFIG
from guidefold.pipeline import (
    DTYPES,
    as_one_module,
    fingerprint,
    modules,
    prediction_type,
)
from guidefold.run import MANIFEST, Quantization, check_file, read_json, sha256


@dataclass
class GivenPipeline:
    """A pipeline that files are compared with.

    Attributes:
        source: The folder, single file or hub id that it was opened from.
        files: The files.
        pipeline: The pipeline in float32.
    """

    source: str
    files: Sequence[LoraFile]
    pipeline: DiffusionPipeline = field(init=False)
    _known: dict[tuple[tuple[str, ...], str, Quantization], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the pipeline."""
        self.pipeline = open_base(self.source, self.files)

    def fingerprints(
        self, names: tuple[str, ...], quantization: Quantization = "none"
    ) -> Iterator[str]:
        """Fingerprint the named components, as a library quantises them, in each precision.

        A fingerprint covers rounded values, and a file does not state its run's precision. The
        pipeline is opened anew in each: some layers stay in float32 whatever the precision.
        """
        for dtype in DTYPES:
            key = names, dtype, quantization
            if key not in self._known:
                opened = self.pipeline
                if (dtype, quantization) != ("fp32", "none"):
                    opened = open_base(self.source, self.files, DTYPES[dtype], quantization)
                components = modules(opened)
                if not components.keys() >= set(names):
                    return
                denoiser = as_one_module({name: components[name] for name in names})
                self._known[key] = fingerprint(denoiser)
            yield self._known[key]

    @property
    def prediction_type(self) -> str:
        """The scheduler's prediction type; ``"None"`` where the pipeline has no scheduler."""
        return prediction_type(self.pipeline)


def denoiser_of(path: Path, metadata: Mapping[str, Any], denoisers: tuple[str, ...]) -> str:
    """The denoiser that a file is for: by its metadata, else by the name of its folder.

    Args:
        path: The file.
        metadata: The file's own metadata.
        denoisers: The run's denoisers.
    """
    named = path.parent.name if path.parent.name in denoisers else denoisers[0]
    return str(metadata.get("denoiser", named))


def damage(file: LoraFile) -> list[str]:
    """Differences between a file and its own hash, and between a file and its folder's manifest."""
    wrong = []
    stated = file.header.get(HASH)
    # Guidefold's own files only: other programs hash other content under the same key.
    if file.metadata and stated is not None and stated != content_hash(file.tensors):
        wrong.append(f"its values are not those of its {HASH}: {SINCE}")
    hashed = cache(sha256)  # several folders' manifests may name the same file
    folders = file.path.parents[:3]  # FOLDER/steps/DENOISER/FILE is the deepest
    return wrong + [line for folder in folders for line in _damage_by(folder, file.path, hashed)]


def _damage_by(folder: Path, path: Path, hashed: Callable[[Path], str]) -> list[str]:
    """Differences of a file, and of the files its loaders read beside it, from a manifest."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return []
    try:
        entries = read_json(manifest)
        for near in (path, path.with_name(PEFT_CONFIG), path.with_name("config.json")):
            entry = entries.get(near.relative_to(folder).as_posix())
            if entry is not None:
                check_file(near, entry["sha256"], entry["size"], hashed=hashed)
    except CorruptFileError as error:
        return [f"{error.message}: {SINCE}"]
    except (AttributeError, KeyError, TypeError):
        return [f"{manifest} is no list of files: {SINCE}"]
    return []


def other_base(metadata: Mapping[str, Any], predicts: str, weights: Iterable[str]) -> list[str]:
    """Problems where a file was made for another base model than the one here.

    A fused file's metadata names its base model too, although its own weights differ by design.

    Args:
        metadata: The file's own metadata; without a base model in it there are no problems.
        predicts: The prediction type here.
        weights: The fingerprints that the base model here may have; messages show the first.
    """
    base = metadata.get("findings") or {}
    wrong = []
    if "fingerprint" in base:
        made, here = str(base["fingerprint"]), iter(weights)
        first = next(here, "no such denoiser")
        # ``in`` stops at the first match: later fingerprints are expensive to compute.
        if made != first and made not in here:
            wrong.append(f"weights {made}, here {first}")
    if base.get("prediction_type", predicts) != predicts:
        wrong.append(f"{base['prediction_type']} predictions, here {predicts}")
    if not wrong:
        return []
    return [
        f"made for another base, {metadata.get('base', 'unnamed')}: {'; '.join(wrong)}. "
        "Name the pipeline that it was made for."
    ]
