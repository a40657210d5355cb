"""Check a file against its own metadata: unchanged since it was written, and made for this base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.deliver.lora_file import SINCE, LoraFile
from guidefold.deliver.metadata import content_hash
from guidefold.ground import CorruptFileError
from guidefold.listen import prediction_type
from guidefold.lora import PEFT_CONFIG
from guidefold.pipeline import DTYPES, as_one_module, fingerprint, modules, open_pipeline
from guidefold.run import MANIFEST, check_file, read_json, sha256

HASH = "modelspec.hash_sha256"


@dataclass
class GivenPipeline:
    """A pipeline that files are compared with.

    Attributes:
        source: Where it was opened from.
        pipeline: In float32.
    """

    source: str
    pipeline: DiffusionPipeline
    _known: dict[tuple[tuple[str, ...], str], str] = field(default_factory=dict)

    def fingerprints(self, names: tuple[str, ...]) -> Iterator[str]:
        """Of some components, in one precision after another, as runs open them.

        A fingerprint is over rounded values, and a file does not say which precision its run had.
        It is opened anew for each: some layers stay in float32 whatever is asked for.
        """
        for dtype in DTYPES:
            if (names, dtype) not in self._known:
                opened = self.pipeline
                if dtype != "fp32":
                    opened = open_pipeline(self.source, dtype=DTYPES[dtype])
                found = {n: module for n, module in modules(opened).items() if n in names}
                if found.keys() != set(names):
                    return
                whole = as_one_module({name: found[name] for name in names})
                self._known[names, dtype] = fingerprint(whole)
            yield self._known[names, dtype]

    @property
    def prediction_type(self) -> str:
        """What its denoiser predicts; ``None`` where no scheduler says so."""
        told = getattr(self.pipeline, "scheduler", None) is not None
        return prediction_type(self.pipeline) if told else "None"


def denoiser_of(path: Path, about: Mapping[str, Any], denoisers: tuple[str, ...]) -> str:
    """The denoiser that a file is for: by its word, or by its folder, where an adapter has several.

    Args:
        path: The file.
        about: What it says of itself.
        denoisers: The run's.
    """
    named = path.parent.name if path.parent.name in denoisers else denoisers[0]
    return str(about.get("denoiser", named))


def damage(file: LoraFile) -> list[str]:
    """How a file differs from what was written, in words: by its own hash and its folder's.

    Other programs mean other things by the same hash.
    """
    wrong = []
    told = file.labels.get(HASH)
    if file.about and told is not None and told != content_hash(file.tensors):
        wrong.append(f"its values are not those of its {HASH}: {SINCE}")
    hashed = cache(sha256)  # several manifests may name the same file
    folders = file.path.parents[:2]
    return wrong + [line for folder in folders for line in _damage_by(folder, file.path, hashed)]


def _damage_by(folder: Path, path: Path, hashed: Callable[[Path], str]) -> list[str]:
    """How a file, and what its loaders read beside it, differs from a folder's manifest."""
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


def other_base(about: Mapping[str, Any], predicts: str, weights: Iterable[str]) -> list[str]:
    """Whether a file was made for another base than the one here, in words.

    A fused file's own weights differ from its base's by design; it is its base that is asked for.

    Args:
        about: What the file says of itself; nothing follows where it names no base.
        predicts: What the denoiser here predicts.
        weights: The fingerprints that the base here may have; the first is told.
    """
    base = about.get("findings") or {}
    wrong = []
    if "fingerprint" in base:
        asked, found = str(base["fingerprint"]), list(_up_to(str(base["fingerprint"]), weights))
        if asked not in found:
            wrong.append(f"weights {asked}, here {found[0] if found else 'no such denoiser'}")
    if base.get("prediction_type", predicts) != predicts:
        wrong.append(f"{base['prediction_type']} predictions, here {predicts}")
    if not wrong:
        return []
    return [
        f"made for another base, {about.get('base', 'unnamed')}: {'; '.join(wrong)}. "
        "Name the pipeline that it was made for."
    ]


def _up_to(wanted: str, found: Iterable[str]) -> Iterator[str]:
    """Stop at the first match: later items are expensive to compute."""
    for one in found:
        yield one
        if one == wanted:
            return
