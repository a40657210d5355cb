"""A run folder and its pipeline, opened together and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import ConfigError, PipelineError, console
from guidefold.listen import (
    Findings,
    check_rows,
    check_tokenizers,
    probe,
    read_findings,
    space_trailing,
    still_valid,
    write_findings,
)
from guidefold.lora import Compared, Dial
from guidefold.pipeline import (
    Prompt,
    as_one_module,
    check_vision_models,
    denoisers,
    load_prompts,
    modules,
    offload,
    open_placed,
    pipeline_class,
    refuse_folded,
    resolve_device,
    split_prompts,
    stop_offloading,
)
from guidefold.run import (
    Kind,
    RunFolder,
    Settings,
    check_same,
    check_source,
    dump_toml,
    load_settings,
    locked,
    rooted,
    undone_if_refused,
    write_text,
)

NeedsAll = Callable[[Settings, list[Prompt], list[Prompt]], bool]


@dataclass
class Session:
    """A run and its open pipeline, as every verb uses them.

    Attributes:
        run: The run's folder.
        settings: Its settings.
        prompts: The prompts for training.
        held_out: The prompts for measuring.
        pipeline: The teacher's pipeline, without adapter.
        findings: The probe's findings.
        device: Where the pipeline runs.
        complete: Whether the pipeline has all of its components.
        pristine: Whether the denoiser's weights are the teacher's.
        others_on_cpu: Whether all components but the denoiser wait on the CPU.
        draws_pictures: False once the pipeline has returned something else, such as sound.
        checked: Recorded files, each with the checksum that it was found to have: nobody else
            writes to a run that is open.
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
    draws_pictures: bool = True
    checked: set[tuple[Path, str]] = field(default_factory=set)

    def require(self, *, all_components: bool = True) -> None:
        """Make the pipeline ready for a verb, whatever earlier verbs did to it.

        Args:
            all_components: Whether the verb needs all components; otherwise the denoiser alone.
        """
        if not self.pristine or (all_components and not self.complete):
            self.pipeline = _open_pipeline(self.settings, self.device)
            self.__dict__.pop("denoiser", None)  # cached, of the earlier pipeline
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
        """The module that is called at each step; several denoisers as one module."""
        return as_one_module(self.denoisers)

    def hold_denoiser(self) -> None:
        """Have the whole denoiser on its device, for adapters that are attached to it."""
        if self.settings.pipeline.offload != "none" and self.complete:
            self._remove_offload_hooks()
            self.denoiser.to(self.device)

    @contextmanager
    def no_offloading(self) -> Iterator[None]:
        """Within the context, no part of the pipeline comes and goes: layers may be changed."""
        how = self.settings.pipeline.offload
        if how == "none":
            yield
            return
        stop_offloading(self.pipeline)
        try:
            yield
        finally:
            offload(self.pipeline, how, self.device)

    def keep_denoiser_only(self) -> None:
        """Drop encoders and autoencoder: training on recorded states needs neither."""
        self._remove_offload_hooks()
        self.complete = False
        for name in self._others():
            setattr(self.pipeline, name, None)

    def move_others_to_cpu(self) -> None:
        """Move encoders and autoencoder to the CPU: training needs only the denoiser."""
        self._remove_offload_hooks()
        self._move_others("cpu")
        self.others_on_cpu = True

    @contextmanager
    def all_on_device(self) -> Iterator[None]:
        """Within the context, all components are on the denoiser's device: to record or draw."""
        if not self.others_on_cpu:
            yield
            return
        self._move_others(next(self.denoiser.parameters()).device)
        try:
            yield
        finally:
            self._move_others("cpu")

    def _remove_offload_hooks(self) -> None:
        """Stop moving components to and from the accelerator when they are called."""
        if self.settings.pipeline.offload != "none":
            stop_offloading(self.pipeline)
            self.complete = False

    def _others(self) -> dict[str, nn.Module]:
        named = modules(self.pipeline).items()
        return {n: module for n, module in named if n not in self.findings.denoisers}

    def _move_others(self, device: torch.device | str) -> None:
        for module in self._others().values():
            module.to(device)

    @property
    def dial(self) -> Dial:
        """The dial that the adapter is trained to; a written adapter has measured marks."""
        adapter, guidance = self.settings.adapter, self.settings.record.guidance
        return Dial(self.findings.origin, adapter.g_ref, guidance, proportional=adapter.dial)

    @property
    def compared(self) -> Compared:
        """The teacher's guidance scale and the student's strength that pictures are measured at."""
        evaluate = self.settings.evaluate
        return self.dial.compare_at(evaluate.guidance, evaluate.strength)

    def guidance_of(self, kind: Kind) -> float:
        """The guidance scale that a kind of picture is drawn with."""
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
    """Lock a run folder, open its pipeline, and check that they belong together.

    Everything that can be checked without a model is checked first. A run folder without write
    permission is opened as well, if it is only read.

    Args:
        settings: The run's settings.
        device: The pipeline's device; None takes ``pipeline.device``.
        main: Whether this process writes; other processes of one launch only read.
        keep_settings: Whether to write these settings into the run. Measuring and drawing leave
            the settings of an existing run as they are.
        needs_all: Decides, before anything is opened, whether the verb needs all components; if
            not, and the run has been probed, only the denoiser is loaded. None: all are needed.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
    """
    prompts, held_out = split_prompts(
        load_prompts(settings.prompts.path), settings.prompts.held_out_share
    )
    check_source(settings.pipeline.source)
    if keep_settings:  # they are measured with later, when it is late to find out
        check_vision_models(settings.evaluate.features, settings.evaluate.clip)
    known_class = pipeline_class(settings.pipeline.source)
    if known_class is not None:
        check_rows(known_class, [*prompts, *held_out])
    place = str(device) if device is not None else resolve_device(settings.pipeline.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    run = RunFolder(settings.run)
    if not main:
        yield _open(run, settings, prompts, held_out, place, needs_all)
        return
    reading = not keep_settings and run.config.exists()
    with locked(run.path, reading=reading) as writable, undone_if_refused(run):
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
    stored, arguments = read_findings(run), _probe_arguments(settings, prompts)
    if stored is not None and needs_all is not None and not needs_all(settings, prompts, held_out):
        denoiser = _open_denoiser(settings, stored, device)
        # Findings that no longer hold need a new probe, and a probe needs the whole pipeline.
        if denoiser is not None and still_valid(run, stored, denoiser, arguments):
            _check_guidance(settings, stored)
            return Session(
                run, settings, prompts, held_out, denoiser, stored, device, complete=False
            )
    pipeline = _open_pipeline(settings, device)
    refuse_folded(pipeline, settings.pipeline.source)
    check_tokenizers(pipeline)
    known = stored is not None and still_valid(run, stored, pipeline, arguments)
    findings = stored if stored is not None and known else probe(pipeline, **arguments)
    _check_guidance(settings, findings)
    if stored is not None:
        stored.check_same_base(findings)
    if write and not known:
        write_findings(run, findings, pipeline, arguments)
    return Session(run, settings, prompts, held_out, pipeline, findings, device)


def _open_pipeline(settings: Settings, device: str) -> DiffusionPipeline:
    """Open the whole pipeline on its device, offloaded where the settings say so."""
    pipeline = open_placed(settings.pipeline, device)
    if settings.student.steps is not None and space_trailing(pipeline):
        console.print(
            "Timesteps: 'trailing' spacing, for teacher and student. The pipeline's own are "
            "'leading', and few of them begin at less noise than many."
        )
    return pipeline


def _probe_arguments(settings: Settings, prompts: list[Prompt]) -> dict[str, Any]:
    """All arguments of :func:`~guidefold.listen.probe.probe` but the pipeline."""
    few = settings.student.steps
    steps = {} if few is None else {"student_steps": few, "least_steps": settings.record.steps[0]}
    return {
        "call": settings.pipeline.call,
        # The largest scale: if the run has one at which guidance is on, it is this one.
        "guidance": max(settings.adapter.g_ref, *settings.record.guidance),
        "negative_prompt": settings.pipeline.negative_prompt,
        "guided_share": settings.pipeline.guided_share,
        "rows": [prompt for prompt in prompts[:2] if prompt.columns],
        **steps,
    }


def _open_denoiser(settings: Settings, stored: Findings, device: str) -> DiffusionPipeline | None:
    """Open a pipeline without loading its encoders and autoencoder.

    Returns:
        The pipeline; None if it cannot be opened without them.
    """
    wanted = settings.pipeline
    if Path(wanted.source).is_file():
        return None
    try:
        pipeline = open_placed(wanted, device, only=stored.denoisers)
    except PipelineError:
        return None
    if settings.student.steps is not None:
        space_trailing(pipeline)
    return pipeline if modules(pipeline).keys() >= set(stored.denoisers) else None


def _check_guidance(settings: Settings, findings: Findings) -> None:
    """Check that guidance is on at every scale of the settings: strength counts from ``origin``.

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
    if settings.steps_rank is not None and not findings.off == findings.origin == low:
        fixed = f"adapter.dial=false and record.guidance=[{settings.adapter.g_ref:g}, ...]"
        raise ConfigError(
            f"record.guidance: begins at {low:g}, but a dial of {settings.student.steps} steps "
            f"needs states from where guidance is off on ({off:g})",
            f"Set record.guidance=[{off:g}, {settings.record.guidance[1]:g}]."
            if findings.off == findings.origin
            else f"This pipeline's guidance stops at {findings.off:g} and counts from "
            f"{findings.origin:g}, so it has no such states: set {fixed}.",
        )
