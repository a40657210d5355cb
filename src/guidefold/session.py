"""A run folder and the pipeline it is about, opened together and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import nn

from guidefold.ground import ConfigError, PipelineError
from guidefold.listen import (
    Findings,
    check_rows,
    check_tokenizers,
    probe,
    read_findings,
    still_valid,
    write_findings,
)
from guidefold.lora import Compared, Dial
from guidefold.pipeline import (
    DTYPES,
    Prompt,
    as_one_module,
    denoisers,
    load_prompts,
    modules,
    offload,
    open_pipeline,
    pipeline_class,
    refuse_folded,
    resolve_device,
    split_prompts,
)
from guidefold.run import (
    Kind,
    PipelineSettings,
    RunFolder,
    Settings,
    check_same,
    dump_toml,
    load_settings,
    locked,
    rooted,
    write_text,
)

NeedsAll = Callable[[Settings, list[Prompt], list[Prompt]], bool]


@dataclass
class Session:
    """What every verb works with.

    Attributes:
        run: The run's folder.
        settings: Its settings.
        prompts: For training.
        held_out: For measuring.
        pipeline: The teacher's pipeline, nothing attached.
        findings: What the probe found.
        device: Where the pipeline runs.
        complete: Whether the pipeline has all of its components.
        pristine: Whether the denoiser's weights are the teacher's.
        others_on_cpu: Whether all components but the denoiser wait on the CPU.
    """

    run: RunFolder
    settings: Settings
    prompts: list[Prompt]
    held_out: list[Prompt]
    pipeline: DiffusionPipeline
    findings: Findings
    device: str
    complete: bool = True
    pristine: bool = True
    others_on_cpu: bool = False

    def require(self, *, all_components: bool = True) -> None:
        """Make the pipeline ready for a verb, whatever earlier verbs did to it.

        Args:
            all_components: Whether the verb needs all components; otherwise the denoiser alone.
        """
        if not self.pristine or (all_components and not self.complete):
            self.pipeline = _open_pipeline(self.settings, self.device)
            self.__dict__.pop("denoiser", None)  # cached, of the pipeline that was
            self.complete, self.pristine, self.others_on_cpu = True, True, False
        elif all_components and self.others_on_cpu:
            self._move_others(next(self.denoiser.parameters()).device)
            self.others_on_cpu = False

    @property
    def denoisers(self) -> dict[str, nn.Module]:
        """The modules that are called at each step, by name."""
        return denoisers(self.pipeline, self.findings.denoisers)

    @cached_property
    def denoiser(self) -> nn.Module:
        """The module that is called at each step; several of them behind one door."""
        return as_one_module(self.denoisers)

    def keep_denoiser_only(self) -> None:
        """Let go of encoders and autoencoder: training on recorded states needs none of them."""
        self._stay()
        self.complete = False
        for name in self._others():
            setattr(self.pipeline, name, None)

    def move_others_to_cpu(self) -> None:
        """Let encoders and autoencoder wait on the CPU: training needs the denoiser alone."""
        self._stay()
        self._move_others("cpu")
        self.others_on_cpu = True

    @contextmanager
    def all_on_device(self) -> Iterator[None]:
        """The whole pipeline where its denoiser is, for a while: to record, or to draw."""
        if not self.others_on_cpu:
            yield
            return
        self._move_others(next(self.denoiser.parameters()).device)
        try:
            yield
        finally:
            self._move_others("cpu")

    def _stay(self) -> None:
        """No component comes and goes any more as it is called."""
        if self.settings.pipeline.offload:
            self.pipeline.remove_all_hooks()
            self.complete = False

    def _others(self) -> dict[str, nn.Module]:
        found = modules(self.pipeline)
        return {n: module for n, module in found.items() if n not in self.findings.denoisers}

    def _move_others(self, device: torch.device | str) -> None:
        for module in self._others().values():
            module.to(device)

    @property
    def dial(self) -> Dial:
        """The dial that the adapter is trained to; a written adapter has its marks."""
        asked, trained = self.settings.adapter, self.settings.record.guidance
        return Dial(self.findings.origin, asked.g_ref, trained, proportional=asked.dial)

    @property
    def compared(self) -> Compared:
        """The teacher's guidance scale and the student's strength that pictures are measured at."""
        asked = self.settings.evaluate
        return self.dial.compare_at(asked.guidance, asked.strength)

    def guidance_of(self, kind: Kind) -> float:
        """The guidance scale that a kind of picture is drawn at."""
        return self.compared.guidance if kind == "teacher" else self.findings.off


@contextmanager
def open_session(
    settings: Settings,
    device: torch.device | None = None,
    *,
    main: bool = True,
    keep_settings: bool = False,
    needs_all: NeedsAll | None = None,
) -> Iterator[Session]:
    """Hold a run folder, open its pipeline, and make sure that they belong together.

    Everything that can be checked without a model is checked first. A run that cannot be written to
    is opened all the same where it is only read.

    Args:
        settings: The run's.
        device: Where to; None takes ``pipeline.device``.
        main: Whether this process writes; other processes of one launch only read.
        keep_settings: Whether the run goes on with these settings from now on. Measuring and
            drawing do not decide that.
        needs_all: Decides, before anything is opened, whether the verb needs all components; if
            not, and the run has been probed, only the denoiser is loaded. None: all are needed.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
    """
    prompts, held_out = split_prompts(
        load_prompts(settings.prompts.path), settings.prompts.held_out_share
    )
    kind = pipeline_class(settings.pipeline.source)
    if kind is not None:
        check_rows(kind, [*prompts, *held_out])
    place = str(device) if device is not None else resolve_device(settings.pipeline.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    run = RunFolder(settings.run)
    if not main:
        yield _open(run, settings, prompts, held_out, place, needs_all)
        return
    with locked(run.path, reading=not keep_settings and run.config.exists()) as writable:
        if run.config.exists():
            check_same(load_settings(run.config), settings, run.path)
        session = _open(run, settings, prompts, held_out, place, needs_all, write=writable)
        if keep_settings or not run.config.exists():
            write_text(run.config, dump_toml(rooted(settings)))
        yield session


def _open(
    run: RunFolder,
    settings: Settings,
    prompts: list[Prompt],
    held_out: list[Prompt],
    device: str,
    needs_all: NeedsAll | None,
    *,
    write: bool = False,
) -> Session:
    stored, call = read_findings(run), _probed_call(settings, prompts)
    complete = stored is None or needs_all is None or needs_all(settings, prompts, held_out)
    pipeline = None
    if stored is not None and not complete:
        pipeline = _open_denoiser(settings.pipeline, stored, device)
        if pipeline is not None and not still_valid(run, stored, pipeline, call.kept):
            pipeline = None  # for the whole pipeline to show, probed anew
    if stored is not None and pipeline is not None:
        _check_guidance(settings, stored)
        return Session(run, settings, prompts, held_out, pipeline, stored, device, complete=False)
    pipeline = _open_pipeline(settings, device)
    refuse_folded(pipeline, settings.pipeline.source)
    check_tokenizers(pipeline)
    known = stored is not None and still_valid(run, stored, pipeline, call.kept)
    findings = stored if stored is not None and known else probe(pipeline, *call.given)
    _check_guidance(settings, findings)
    if stored is not None:
        stored.check_same_base(findings)
    if write and not known:
        write_findings(run, findings, pipeline, call.kept)
    return Session(run, settings, prompts, held_out, pipeline, findings, device)


def _open_pipeline(settings: Settings, device: str) -> DiffusionPipeline:
    """The whole pipeline, where it will run."""
    asked = settings.pipeline
    place = "cpu" if asked.offload else device
    pipeline = open_pipeline(
        asked.source, config=asked.config, dtype=DTYPES[asked.dtype], device=place
    )
    if asked.offload:
        offload(pipeline, device)
    return pipeline


class _ProbedCall(NamedTuple):
    """What a probe is given beside the pipeline.

    Attributes:
        given: The arguments of :func:`~guidefold.listen.probe.probe`.
        kept: The same as JSON can hold it.
    """

    given: tuple[Any, ...]
    kept: dict[str, Any]


def _probed_call(settings: Settings, prompts: list[Prompt]) -> _ProbedCall:
    asked = settings.pipeline
    guidance = max(settings.adapter.g_ref, *settings.record.guidance)  # surely on, if any is
    rows = [prompt for prompt in prompts[:2] if prompt.columns]
    kept = {
        "call": asked.call,
        "guidance": guidance,
        "negative_prompt": asked.negative_prompt,
        "guided_share": asked.guided_share,
        "rows": [row.digest for row in rows],
    }
    return _ProbedCall(
        (asked.call, guidance, asked.negative_prompt, asked.guided_share, rows), kept
    )


def _open_denoiser(
    asked: PipelineSettings, stored: Findings, device: str
) -> DiffusionPipeline | None:
    """The pipeline without encoders and autoencoder, which are not even loaded.

    Returns:
        The pipeline; None where it cannot be opened so.
    """
    if Path(asked.source).is_file():
        return None
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that a safety checker is missing is no news
    try:
        pipeline = open_pipeline(
            asked.source, dtype=DTYPES[asked.dtype], device=device, only=stored.denoisers
        )
    except PipelineError:
        return None
    finally:
        logging.set_verbosity(verbosity)
    return pipeline if modules(pipeline).keys() >= set(stored.denoisers) else None


def _check_guidance(settings: Settings, findings: Findings) -> None:
    """Strength measures from ``origin`` to ``g_ref``: guidance must be on beyond it.

    Raises:
        ConfigError: Names the setting and the value that switches guidance off.
    """
    off = max(findings.off, findings.origin)
    low, measured = settings.record.guidance[0], settings.evaluate.guidance
    for name, value, fits in (
        ("adapter.g_ref", settings.adapter.g_ref, settings.adapter.g_ref > off),
        ("record.guidance", low, low >= off),
        ("evaluate.guidance", measured, measured is None or measured > off),
    ):
        if not fits:
            raise ConfigError(
                f"{name}: {value:g}, but {findings.guidance_argument} = {off:g} switches this "
                "pipeline's guidance off",
                f"Use a guidance scale above {off:g}.",
            )
