"""Written files, read as their clients read them: what is dropped, and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidefold.deliver.base_model import Base, base_of, base_of_run
from guidefold.deliver.clients import Reading, read_by_clients
from guidefold.deliver.formats import Tensors
from guidefold.deliver.integrity import GivenPipeline, damage, denoiser_of, other_base
from guidefold.deliver.lora_file import LoraFile, read_lora
from guidefold.deliver.tensor_checks import (
    first_few,
    loaded_otherwise,
    off_fused,
    off_student,
    wrong_weights,
    wrong_widths,
)
from guidefold.deliver.trained import Trained, read_trained
from guidefold.ground import GuidefoldError, InputError, MismatchError, VerifyError
from guidefold.listen import Tree, output_tensor, tree_map
from guidefold.lora import adapted_layers, layers_of, load_part, loaded_tensors, unload_adapter
from guidefold.pipeline import COMPONENT, DTYPES, as_one_module, denoisers, open_pipeline
from guidefold.run import Format, load_settings, require_run
from guidefold.session import Session, open_session

# What the libraries raise over a file that does not fit: other shapes or keys, no configuration.
REFUSALS = (ValueError, RuntimeError, KeyError, TypeError, OSError)


@dataclass(frozen=True)
class Verdict:
    """The result of checking one file.

    Attributes:
        path: The file.
        kind: Its format.
        keys: How many it holds.
        readings: What each client makes of them.
        loaded_by: Who has loaded it here; empty where no plain library can.
        difference: How far its predictions are from the trained student's, as a share of the
            largest; None where no run is given or nobody loads it.
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
    """Read a file, or every file of a folder, as its clients do.

    Args:
        path: A safetensors file, or a folder of some.
        run: The run that it was exported from: predictions are compared with its student's.
        pipeline: Without a run, the pipeline that it is for.

    Raises:
        InputError: Nothing to read, or not one of run and pipeline.
    """
    if run is None and pipeline is None:
        raise InputError(f"{path}: for which base?", "Give --run RUN, or --pipeline FOLDER.")
    if run is not None and pipeline is not None:
        raise InputError(
            f"{path}: --run and --pipeline both", "Give one: a run names its pipeline."
        )
    files = safetensors_of(path)
    if run is not None:
        require_run(run)
        with open_session(load_settings(run)) as session:
            return _of_a_run(files, session)
    given = GivenPipeline(str(pipeline), open_pipeline(str(pipeline)))
    return [_of_a_pipeline(read_lora(file), given) for file in files]


def safetensors_of(path: Path) -> list[Path]:
    """The file, or the files of a folder.

    Raises:
        InputError: There is none.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "")
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    if not files or files[0].suffix != ".safetensors":
        raise InputError(f"{path}: no .safetensors file", "Name what 'guidefold export' wrote.")
    return files


def _of_a_run(files: list[Path], session: Session) -> list[Verdict]:
    findings = session.findings
    trained: dict[float, Trained] = {}
    verdicts = []
    for path in files:
        file = read_lora(path, own=True)
        if file.strength not in trained:
            trained[file.strength] = read_trained(session, file.strength)
        name = denoiser_of(file.path, file.about, findings.denoisers)
        if name not in findings.denoisers:
            raise MismatchError(
                f"{file.path}: it is for '{name}', which this run has not adapted", ""
            )
        base = base_of_run(session, name)
        verdict = examine(file, base, trained[file.strength])
        verdicts.append(
            _with_origin(verdict, file, findings.prediction_type, [findings.fingerprint])
        )
    return verdicts


def _of_a_pipeline(file: LoraFile, given: GivenPipeline) -> Verdict:
    verdict = examine(file, base_of(given.pipeline, file))
    names = tuple(file.about.get("findings", {}).get("denoisers", ()))
    return _with_origin(verdict, file, given.prediction_type, given.fingerprints(names))


def _with_origin(
    verdict: Verdict, file: LoraFile, predicts: str, weights: Iterable[str]
) -> Verdict:
    """Add the problems found by comparing the file with its own metadata."""
    first = [*damage(file), *other_base(file.about, predicts, weights)]
    return replace(verdict, problems=(*first, *verdict.problems))


def examine(file: LoraFile, base: Base, trained: Trained | None = None) -> Verdict:
    """Read a file as its clients do.

    Args:
        file: The file.
        base: What it is for.
        trained: What its tensors and its predictions are compared with.
    """
    kind, keys, whole = file.kind, file.tensors.keys(), file.kind == "fused"
    readings = [] if whole else read_by_clients(keys, kind, base.names, base.loader)
    problems = [
        f"{r.client} drops {len(r.dropped or ())} of {len(keys)} keys: {first_few(r.dropped or ())}"
        for r in readings
        if r.failed
    ]
    loader, difference = _loader_of(kind, base), None
    try:
        tensors = file.tensors if whole else file.plain(base.names)
        wrong = wrong_weights(tensors, base.module) if whole else wrong_widths(tensors, base.module)
        if wrong:
            loader = ""
        elif trained is not None:
            wrong = _off_student(file, tensors, base, trained)
        problems += wrong
        if loader:
            with _loaded(file, base, loader) as denoiser:
                if not whole:
                    problems += loaded_otherwise(loaded_tensors(denoiser), tensors, loader)
                if trained is not None:
                    difference = _compare(trained, denoiser, file, base, loader)
    except GuidefoldError as error:
        problems.append(error.message)
    return Verdict(file.path, kind, len(keys), tuple(readings), loader, difference, tuple(problems))


def _loader_of(kind: Format, base: Base) -> str:
    """Who loads a file here; empty where no plain library can."""
    if kind == "peft":
        return "peft"
    return "diffusers" if kind == "fused" or base.loader == "diffusers" else ""


def _off_student(file: LoraFile, plain: Tensors, base: Base, trained: Trained) -> list[str]:
    """Where a file's tensors are not the student's; predictions hide what a single layer does."""
    student = trained.parts[base.name]
    if file.kind == "fused":
        return off_fused(file.tensors, base.module, student, file.strength)
    return off_student(plain, student, file.strength)


@contextmanager
def _loaded(file: LoraFile, base: Base, loader: str) -> Iterator[nn.Module]:
    """The denoiser with the file in it, put there by the library alone, for a while.

    Raises:
        VerifyError: The library does not take it.
    """
    plain = base.module
    try:
        try:
            if file.kind == "fused":
                loaded = _open_denoiser(file.path, plain)
            else:
                load_part(base.pipeline, base.denoisers, base.name, loader, file.path)
                loaded = base.module
        except REFUSALS as error:
            reason = " ".join(str(error).split())[:300]
            raise VerifyError(f"{loader} does not take the file: {reason}") from error
        yield loaded
    finally:
        unload_adapter(plain)


def _open_denoiser(path: Path, like: nn.Module) -> nn.Module:
    """A denoiser's whole weights, opened by diffusers."""
    kind, first = type(like), next(like.parameters())
    opened: nn.Module = kind.from_pretrained(  # type: ignore[attr-defined]
        path.parent, torch_dtype=first.dtype, local_files_only=True
    )
    return opened.eval().to(first.device)


def _compare(
    trained: Trained, denoiser: nn.Module, file: LoraFile, base: Base, loader: str
) -> float:
    """How far a loaded file's predictions are from the student's, as a share of the largest.

    In half precision clients round the adapter too; what then hides in the tolerance, a layer that
    was not loaded, is found by its name.

    Raises:
        VerifyError: Other layers than were trained, or other predictions.
    """
    if file.kind != "fused":
        _check_layers(trained, base, loader)
    # Some layers stay in float32 whatever a pipeline is opened in: the coarsest type counts.
    held = {p.dtype for p in denoiser.parameters()} & set(DTYPES.values())
    held |= {t.dtype for t in file.tensors.values() if t.is_floating_point()}
    tolerance = max(1e-3, 4 * max(torch.finfo(dtype).eps for dtype in held))
    worst = 0.0
    for ref, truth in zip(trained.refs, trained.expected, strict=True):
        args, kwargs = ref.read().arguments
        if kwargs.get(COMPONENT, base.name) != base.name:
            continue  # another denoiser is called at this state
        apart = float((_predict(denoiser, args, kwargs) - truth).abs().max() / truth.abs().max())
        worst = max(worst, apart)
        if not apart <= tolerance:
            raise VerifyError(
                f"{trained.run}: the written adapter, loaded by {loader}, is {apart:.2g} off the "
                "trained student"
            )
    return worst


@torch.no_grad()
def _predict(denoiser: nn.Module, args: Tree, kwargs: Mapping[str, Any]) -> torch.Tensor:
    device = next(denoiser.parameters()).device
    own = {name: value for name, value in kwargs.items() if name != COMPONENT}
    args, own = tree_map(lambda tensor: tensor.to(device), (args, own))
    return output_tensor(denoiser(*args, **own)).float()


def _check_layers(trained: Trained, base: Base, loader: str) -> None:
    """Compare by name the layers that a loader put a LoRA on with those that were trained.

    Raises:
        VerifyError: They differ.
    """
    whole = as_one_module(denoisers(base.pipeline, base.denoisers))
    inner = "" if len(base.denoisers) == 1 else f"{base.name}."
    wanted = {inner + layer for layer in layers_of(trained.parts[base.name])}
    missed = sorted(adapted_layers(whole) ^ wanted)
    if missed:
        raise VerifyError(
            f"{trained.run}: {loader} loads other layers than were trained: {', '.join(missed)}"
        )
