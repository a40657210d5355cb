"""Written files, read as their clients read them: what is dropped, and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.adapter import PEFT_CONFIG, load_part, loaded_tensors, unload_adapter
from guidefold.config import load_settings
from guidefold.deliver.clients import Reading, read_by_clients, stem
from guidefold.deliver.formats import Tensors, alphas_of, format_of, layers_by_stem, read
from guidefold.deliver.integrity import Offered, damage, denoiser_of, other_base, said_of
from guidefold.deliver.layer_names import LayerNames, layer_names
from guidefold.deliver.tensor_checks import misfits, off_fused, off_student, others, some, strangers
from guidefold.deliver.trained import Trained, check_layers, check_loaded, read_trained
from guidefold.errors import GuidefoldError, InputError, MismatchError, VerifyError
from guidefold.pipelines import modules, open_pipeline
from guidefold.probe import lora_loader
from guidefold.run.folder import require_run
from guidefold.runs import read_json, read_labels, read_tensors
from guidefold.session import Session, open_session
from guidefold.settings import Format

WEIGHTS = "diffusion_pytorch_model.safetensors"
# What the libraries raise over a file that does not fit: other shapes or keys, no configuration.
REFUSALS = (ValueError, RuntimeError, KeyError, TypeError, OSError)


@dataclass(frozen=True)
class Base:
    """What a file is loaded onto.

    Attributes:
        pipeline: A stock pipeline.
        denoisers: Its components that LoRAs are made for.
        name: The one that the file is for.
        loader: Who loads LoRAs into the pipeline.
        names: What the denoiser's layers are called.
    """

    pipeline: DiffusionPipeline
    denoisers: tuple[str, ...]
    name: str
    loader: str
    names: LayerNames

    @property
    def component(self) -> str:
        """What stands before the keys of diffusers' files."""
        return self.denoisers[0]

    @property
    def module(self) -> nn.Module:
        """The denoiser."""
        found: nn.Module = getattr(self.pipeline, self.name)
        return found


@dataclass(frozen=True)
class Verdict:
    """What a file is worth.

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
    offered = Offered(str(pipeline), open_pipeline(str(pipeline)))
    return [_of_a_pipeline(file, offered) for file in files]


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


def base_of(pipeline: DiffusionPipeline, path: Path) -> Base:
    """The component of a pipeline that a file's layers are found in.

    Raises:
        MismatchError: In none of them.
    """
    tensors = read_tensors(path)
    kind = format_of(tensors.keys(), path)

    def hits(name: str, module: nn.Module) -> int:
        if kind == "fused":
            return len(module.state_dict().keys() & tensors.keys())
        names = layers_by_stem(kind, layer_names(module), name)
        return sum(stem(key) in names for key in tensors)

    found = {name: hits(name, module) for name, module in modules(pipeline).items()}
    best = max(found, key=lambda name: found[name])
    if not found[best]:
        raise MismatchError(
            f"{path}: no component of {type(pipeline).__name__} has the file's layers, such as "
            f"'{min(tensors)}'",
            "Name the pipeline that it was made for with --pipeline.",
        )
    loader = lora_loader(pipeline, [best])
    return Base(pipeline, (best,), best, loader, layer_names(getattr(pipeline, best)))


def base_of_run(session: Session, name: str) -> Base:
    """One denoiser of a session's pipeline."""
    findings, module = session.findings, session.denoisers[name]
    return Base(session.pipeline, findings.denoisers, name, findings.loader, layer_names(module))


def examine(
    path: Path,
    base: Base,
    student: tuple[Session, Trained] | None = None,
    kind: Format | None = None,
) -> Verdict:
    """Read a file as its clients do.

    Args:
        path: The file.
        base: What it is for.
        student: What its predictions are compared with.
        kind: Its format, where it is known; keys of diffusers and of transformers look alike.
    """
    tensors = read_tensors(path)
    kind = kind or format_of(tensors.keys(), path)
    problems: list[str] = []
    readings: list[Reading] = []
    if kind != "fused":
        readings = read_by_clients(tensors.keys(), kind, base.names, base.component, base.loader)
        problems += [
            f"{r.client} drops {len(r.dropped or ())} of {len(tensors)} keys: "
            f"{some(r.dropped or ())}"
            for r in readings
            if r.failed
        ]
    loader, difference = _loader_of(kind, base), None
    try:
        wanted = {} if kind == "fused" else read_file(path, tensors, kind, base)
        wrong = strangers(tensors, base.module) if kind == "fused" else misfits(wanted, base.module)
        if wrong:
            loader = ""
        elif student is not None:
            wrong = _off(student[1], path, base, kind, tensors if kind == "fused" else wanted)
        problems += wrong
        if loader:
            with loaded(path, kind, base, loader, student):
                if kind != "fused":
                    problems += others(loaded_tensors(base.module), wanted, loader)
                if student is not None:
                    difference = _compare(student, base, kind, loader, tensors)
    except GuidefoldError as error:
        problems.append(error.message)
    return Verdict(path, kind, len(tensors), tuple(readings), loader, difference, tuple(problems))


def read_file(path: Path, tensors: Tensors, kind: Format, base: Base) -> dict[str, torch.Tensor]:
    """A file's tensors by peft's names, its alpha folded in wherever it is written.

    Raises:
        InputError: Its configuration asks for more than a LoRA, or its keys are not the
            denoiser's.
    """
    beside = path.parent / PEFT_CONFIG
    about: Mapping[str, Any] = alphas_of(read_labels(path), base.component)
    if kind == "peft" and beside.exists():
        about = read_json(beside)
    for name in ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices"):
        if about.get(name):
            raise InputError(f"{path}: '{name}' is set, which is more than a LoRA", "")
    try:
        return read(tensors, kind, base.names, base.component, about)
    except MismatchError as error:
        raise MismatchError(f"{path}: {error.message}", error.remedy) from error


@contextmanager
def loaded(
    path: Path, kind: Format, base: Base, loader: str, student: tuple[Session, Trained] | None
) -> Iterator[None]:
    """The file in its pipeline, put there by the library alone, for a while.

    Raises:
        VerifyError: The library does not take it.
    """
    plain = base.module
    try:
        try:
            if kind == "fused":
                _place(base, _opened(path, plain), student)
            else:
                load_part(base.pipeline, base.denoisers, base.name, loader, path)
        except REFUSALS as error:
            reason = " ".join(str(error).split())[:300]
            raise VerifyError(f"{loader} does not take the file: {reason}") from error
        yield
    finally:
        unload_adapter(plain)
        _place(base, plain, student)


def _opened(path: Path, like: nn.Module) -> nn.Module:
    """A denoiser's whole weights, opened by diffusers."""
    kind, first = type(like), next(like.parameters())
    opened: nn.Module = kind.from_pretrained(  # type: ignore[attr-defined]
        path.parent, torch_dtype=first.dtype, local_files_only=True
    )
    return opened.eval().to(first.device)


def _place(base: Base, module: nn.Module, student: tuple[Session, Trained] | None) -> None:
    setattr(base.pipeline, base.name, module)
    if student is not None:  # it remembers the module that it had
        student[0].__dict__.pop("denoiser", None)


def _of_a_run(files: list[Path], session: Session) -> list[Verdict]:
    trained: dict[float, Trained] = {}
    verdicts = []
    for file in files:
        about = said_of(file)
        strength = float(about.get("strength", 1.0))
        if strength not in trained:
            trained[strength] = read_trained(session, strength)
        name = denoiser_of(file, about, session.findings.denoisers)
        if name not in session.findings.denoisers:
            raise MismatchError(f"{file}: it is for '{name}', which this run has not adapted", "")
        base = base_of_run(session, name)
        verdict = examine(file, base, (session, trained[strength]), about.get("format"))
        here = session.findings
        verdicts.append(_judged(verdict, here.prediction_type, [here.fingerprint]))
    return verdicts


def _of_a_pipeline(file: Path, offered: Offered) -> Verdict:
    verdict = examine(file, base_of(offered.pipeline, file))
    names = tuple(said_of(file).get("findings", {}).get("denoisers", ()))
    return _judged(verdict, offered.prediction_type, offered.fingerprints(names))


def _judged(verdict: Verdict, predicts: str, weights: Iterable[str]) -> Verdict:
    """A verdict that also holds a file against its own word."""
    about = said_of(verdict.path)
    first = [*damage(verdict.path, about), *other_base(about, predicts, weights)]
    return replace(verdict, problems=(*first, *verdict.problems))


def _loader_of(kind: Format, base: Base) -> str:
    """Who loads a file here; empty where no plain library can."""
    if kind in ("fused", "peft"):
        return "diffusers" if kind == "fused" else "peft"
    return "diffusers" if base.loader == "diffusers" else ""


def _off(trained: Trained, path: Path, base: Base, kind: Format, found: Tensors) -> list[str]:
    """Where a file's own values are not the student's; predictions hide what a layer does."""
    student = trained.part(base.denoisers, base.name)
    strength = float(said_of(path).get("strength", 1.0))
    if kind == "fused":
        return off_fused(found, base.module, student, strength)
    return off_student(found, student, strength)


def _compare(
    student: tuple[Session, Trained], base: Base, kind: Format, loader: str, tensors: Tensors
) -> float:
    """How far the loaded file's predictions are from the student's."""
    session, trained = student
    eps = max(torch.finfo(t.dtype).eps for t in tensors.values() if t.is_floating_point())
    if kind != "fused":
        check_layers(session, trained, [base.name], loader)
    return check_loaded(session, trained, [base.name], loader, eps)
