"""Check exported files: the keys that each client drops, and the predictions they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidefold.deliver.base_model import Base, base_of, base_of_run
from guidefold.deliver.clients import Reading, read_by_clients
from guidefold.deliver.integrity import GivenPipeline, damage, denoiser_of, other_base
from guidefold.deliver.lora_file import LoraFile, read_lora
from guidefold.deliver.tensor_checks import (
    first_few,
    loaded_otherwise,
    not_finite,
    off_fused,
    off_student,
    wrong_weights,
    wrong_widths,
)
from guidefold.deliver.trained import Trained, read_trained
from guidefold.ground import (
    ConfigError,
    GuidefoldError,
    InputError,
    MismatchError,
    VerifyError,
    console,
    given_by_user,
    out_of_memory,
)
from guidefold.listen import call_recorded, predictions, tree_map
from guidefold.lora import adapted_layers, layers_of, load_part, loaded_tensors, unload_adapter
from guidefold.pipeline import (
    COMPONENT,
    DTYPES,
    as_one_module,
    check_quantization,
    denoisers,
)
from guidefold.record import KeptState
from guidefold.run import Format, Layers, LoraRole, load_settings, require_run
from guidefold.session import Session, open_session

# Exceptions of the libraries for a file that does not fit: other shapes or keys, no configuration.
REFUSALS = (ValueError, RuntimeError, KeyError, TypeError, OSError)


@dataclass(frozen=True)
class Verdict:
    """The result of checking one file.

    Attributes:
        path: The file.
        kind: The file's format.
        keys: The number of its keys.
        readings: How each client reads them.
        loaded_by: The library that loads the file here; empty where none can.
        difference: The largest difference between its predictions and the trained student's,
            relative to the largest value; None without a run, or where no library loads the file.
        problems: Everything that is wrong.
    """

    path: Path
    kind: Format
    keys: int
    readings: tuple[Reading, ...]
    loaded_by: str
    difference: float | None
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "file": str(self.path),
            "format": self.kind,
            "keys": self.keys,
            "clients": {
                r.client: {"meant": r.meant, "dropped": None if r.dropped is None else [*r.dropped]}
                for r in self.readings
            },
            "loaded_by": self.loaded_by,
            "difference": self.difference,
            "problems": list(self.problems),
        }


def verify(path: Path, run: Path | None = None, pipeline: str | None = None) -> list[Verdict]:
    """Check a file, or every file of a folder, as its clients read it.

    Args:
        path: A safetensors file, or a folder of such files.
        run: The run that it was exported from: predictions are compared with its student's.
        pipeline: Without a run, the pipeline that the file is for.

    Raises:
        InputError: There is no file, it is damaged, or not exactly one of ``run`` and ``pipeline``
            is given.
    """
    if run is None and pipeline is None:
        raise InputError(f"{path}: for which base model?", "Give --run RUN, or --pipeline FOLDER.")
    if run is not None and pipeline is not None:
        raise InputError(
            f"{path}: --run and --pipeline both", "Give one: a run names its pipeline."
        )
    with given_by_user():  # and before anything is opened
        files = [read_lora(file, own=run is not None) for file in safetensors_of(path)]
    if run is not None:
        require_run(run)
        with open_session(load_settings(run)) as session:
            return _of_a_run(files, session)
    given = GivenPipeline(str(pipeline), files)
    return [_of_a_pipeline(file, given) for file in files]


def safetensors_of(path: Path) -> list[Path]:
    """The file itself, or all safetensors files of a folder.

    Raises:
        InputError: There is no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "")
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    if not files or files[0].suffix != ".safetensors":
        raise InputError(f"{path}: no .safetensors file", "Name what 'guidefold export' wrote.")
    return files


def _of_a_run(files: Sequence[LoraFile], session: Session) -> list[Verdict]:
    """Check files against a run: its base model and its trained student."""
    findings = session.findings
    read: dict[tuple[float, Layers], dict[LoraRole, Trained]] = {}
    verdicts = []
    for file in files:
        content = file.strength, file.layers
        if content not in read:
            read[content] = read_trained(session, file.strength, layers=file.layers, merged=True)
        first = next(iter(read[content].values()))  # an older file is its run's only LoRA
        trained = read[content].get(file.folds or first.folds, first)
        name = denoiser_of(file.path, file.metadata, findings.denoisers)
        if name not in findings.denoisers:
            raise MismatchError(
                f"{file.path}: it is for '{name}', which this run has not adapted", ""
            )
        origin = other_base(file.metadata, findings.prediction_type, [findings.fingerprint])
        base = base_of_run(session, name)
        verdicts.append(examine(file, base, trained, [*damage(file), *origin]))
    return verdicts


def _of_a_pipeline(file: LoraFile, given: GivenPipeline) -> Verdict:
    """Check a file against a pipeline alone."""
    base = base_of(given.pipeline, file)
    metadata = _comparable(file)
    names = tuple(metadata.get("findings", {}).get("denoisers", ()))
    weights = given.fingerprints(names, file.quantization)
    origin = other_base(metadata, given.prediction_type, weights)
    return examine(file, base, None, [*damage(file), *origin])


def _comparable(file: LoraFile) -> Mapping[str, Any]:
    """A file's own metadata, as far as it can be compared here with a pipeline.

    The fingerprint of quantised weights needs the library that quantised them.
    """
    try:
        check_quantization(file.quantization)
    except ConfigError as error:
        console.print(f"{file.path}: its base is not compared. {error.message}")
        findings = dict(file.metadata.get("findings", {}))
        findings.pop("fingerprint", None)
        return {**file.metadata, "findings": findings}
    return file.metadata


def examine(
    file: LoraFile, base: Base, trained: Trained | None = None, origin: Sequence[str] = ()
) -> Verdict:
    """Check one file: by every client's rule, by its tensors, and by loading it.

    Args:
        file: The file.
        base: The base model that it is for.
        trained: The run's adapter, which its tensors and predictions are compared with.
        origin: Problems found by comparing the file with its own metadata.
    """
    kind, keys, fused = file.kind, file.tensors.keys(), file.kind == "fused"
    readings = [] if fused else read_by_clients(keys, kind, base.names, base.loader)
    problems = [*origin]
    problems += [
        f"{r.client} drops {len(r.dropped or ())} of {len(keys)} keys: {first_few(r.dropped or ())}"
        for r in readings
        if r.failed
    ]
    loader, difference = _loader_of(kind, base), None
    if broken := not_finite(file.tensors):  # every comparison with a NaN fails, and says nothing
        return Verdict(file.path, kind, len(keys), tuple(readings), "", None, (*problems, *broken))
    try:
        tensors = file.tensors if fused else file.plain(base.names)
        wrong = (wrong_weights if fused else wrong_widths)(tensors, base.denoiser)
        if wrong:
            loader = ""
        elif trained is not None:
            student = trained.parts[base.name]
            # Predictions may hide a single wrong layer, so tensors are compared as well.
            if fused:
                wrong = off_fused(tensors, base.denoiser, student)
            else:
                wrong = off_student(tensors, student)
        problems += wrong
        if loader:
            with _loaded(file, base, loader) as denoiser:
                if not fused:
                    problems += loaded_otherwise(loaded_tensors(denoiser), tensors, loader)
                if trained is not None:
                    difference = _compare(trained, denoiser, file, base, loader)
    except GuidefoldError as error:
        problems.append(error.message)
    return Verdict(file.path, kind, len(keys), tuple(readings), loader, difference, tuple(problems))


def _loader_of(kind: Format, base: Base) -> str:
    """The library that loads a file here; empty where none can."""
    if kind in ("peft", "original"):
        return "peft" if kind == "peft" else ""
    return "diffusers" if kind == "fused" or base.loader == "diffusers" else ""


@contextmanager
def _loaded(file: LoraFile, base: Base, loader: str) -> Iterator[nn.Module]:
    """Load the file by the library alone, and unload it again when the context ends.

    Yields:
        The denoiser with the file loaded.

    Raises:
        VerifyError: The library rejects the file.
    """
    loaded = base.denoiser
    try:
        try:
            if file.kind == "fused":
                loaded = _open_denoiser(file.path, base.denoiser)
            else:
                load_part(base.pipeline, base.denoisers, base.name, loader, file.path)
        except REFUSALS as error:
            if out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise VerifyError(f"{loader} does not take the file: {reason}") from error
        yield loaded
    finally:
        unload_adapter(base.denoiser)


def _open_denoiser(path: Path, like: nn.Module) -> nn.Module:
    """A denoiser's full weights, opened by diffusers on the device of another denoiser."""
    first, denoiser_class = next(like.parameters()), type(like)
    opened: nn.Module = denoiser_class.from_pretrained(  # type: ignore[attr-defined]
        path.parent, torch_dtype=first.dtype, local_files_only=True
    )
    return opened.eval().to(first.device)


def _compare(
    trained: Trained, denoiser: nn.Module, file: LoraFile, base: Base, loader: str
) -> float:
    """The largest difference of a loaded file's predictions from the student's, relative.

    In half precision clients round the adapter too, so the tolerance is wide; a layer that was not
    loaded could hide in it and is therefore found by name.

    Raises:
        VerifyError: The loaded layers or the predictions differ from the trained student's.
    """
    if file.kind != "fused":
        _check_layers(trained, base, loader)
    # Some layers stay in float32 whatever the pipeline's precision: the coarsest type counts.
    held = {p.dtype for p in denoiser.parameters()} & set(DTYPES.values())
    held |= {t.dtype for t in file.tensors.values() if t.is_floating_point()}
    tolerance = max(1e-3, 4 * max(torch.finfo(dtype).eps for dtype in held))
    worst = 0.0
    for ref, truth in zip(trained.refs, trained.expected, strict=True):
        state = ref.read()
        if state.arguments[1].get(COMPONENT, base.name) != base.name:
            continue  # this state belongs to another denoiser
        apart = float((_predict(denoiser, state) - truth).abs().max() / truth.abs().max())
        worst = max(worst, apart)
        if not apart <= tolerance:
            raise VerifyError(
                f"{trained.run}: the written adapter, loaded by {loader}, is {apart:.2g} off the "
                "trained student"
            )
    return worst


@torch.no_grad()
def _predict(denoiser: nn.Module, state: KeptState) -> torch.Tensor:
    device = next(denoiser.parameters()).device
    moved = tree_map(lambda tensor: tensor.to(device), state.arguments)
    return predictions(call_recorded(denoiser, moved), len(state.shapes)).float()


def _check_layers(trained: Trained, base: Base, loader: str) -> None:
    """Compare the layers that a library loaded a LoRA onto with the trained layers, by name.

    Raises:
        VerifyError: They differ.
    """
    prefix = "" if len(base.denoisers) == 1 else f"{base.name}."
    wanted = {prefix + layer for layer in layers_of(trained.parts[base.name])}
    loaded = adapted_layers(as_one_module(denoisers(base.pipeline, base.denoisers)))
    if wrong := sorted(loaded ^ wanted):
        raise VerifyError(
            f"{trained.run}: {loader} loads other layers than were trained: {', '.join(wrong)}"
        )
