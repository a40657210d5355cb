"""The timed models: a whole pipeline, or a published denoiser at its true shapes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.bench.memory import Architecture, make_inputs, materialise
from guidefold.bench.speed.methods import (
    GUIDANCE,
    METHODS,
    SELECTIVE,
    Clock,
    Method,
    Options,
    RunCost,
    TimedModel,
)
from guidefold.bench.speed.students import (
    describe_adapter,
    find_adapter,
    make_denoisers,
    random_adapter,
    settle,
)
from guidefold.ground import ConfigError, UnfoldableError
from guidefold.listen import (
    PROMPT,
    Findings,
    Listener,
    call_inputs,
    drive,
    probe,
    rows_of,
    run,
    stop_guiding,
)
from guidefold.lora import load_adapter
from guidefold.pipeline import DTYPES, modules, open_pipeline, resolve_device


class WholePipeline(TimedModel):
    """A pipeline as its users run it, from prompt to picture.

    Args:
        pipeline: A pipeline without a LoRA. Its denoiser is not changed.
        options: The bench's options.

    Raises:
        UnfoldableError: It has no guidance to save, or takes one prompt at a time.
        ConfigError: It refuses the call.
        RunError: ``options.adapter`` is no adapter.
        MismatchError: ``options.adapter`` belongs to another base.
    """

    def __init__(self, pipeline: DiffusionPipeline, options: Options) -> None:
        self.pipeline, self.options, self.notes = pipeline, options, []
        size = options.size
        self.call = {} if size is None else {"height": size, "width": size}
        self.methods, self.findings = self._probe()
        self.teacher: nn.Module = getattr(pipeline, self.findings.denoiser)
        if self.findings.layout is None and max(options.batches) > 1:
            raise UnfoldableError(
                f"--batch {max(options.batches)}: {self.findings.pipeline} takes one prompt at a "
                "time",
                "Use --batch 1.",
            )
        self.title = f"{self.findings.pipeline}: denoiser alone, and from prompt to picture"
        self.denoisers = self._denoisers()
        self.clocks = (*clocks_inside(options.device), "end to end")
        self.facts = {
            "pipeline": self.findings.pipeline,
            "size": size or "the pipeline's own",
            "adapter": describe_adapter(self.denoisers["loaded"], options.adapter),
        }

    @classmethod
    def open(cls, source: str, options: Options) -> WholePipeline:
        """Open a pipeline to measure.

        Args:
            source: ``bundled``, a folder, a single file or a hub id.
            options: The bench's options, with a device that exists.

        Raises:
            InputError: The pipeline cannot be opened or measured.
        """
        dtype = DTYPES[options.dtype]
        pipeline = open_pipeline(source, dtype=dtype, device=options.device)
        for module in modules(pipeline).values():
            settle(module)
        return cls(pipeline, options)

    def run(self, method: Method, denoiser: nn.Module, batch: int) -> RunCost:
        """Draw a batch of pictures with all clocks running, and count the denoiser's rows."""
        inputs = self.inputs(method, batch)
        listener = Listener(self.pipeline, {self.findings.denoiser: denoiser})
        with self._placed(denoiser), processor_time(denoiser) as processor, listener:
            start = time.perf_counter()
            output = run(self.pipeline, inputs, range(batch), output_type="pil")
            end_to_end = time.perf_counter() - start
        calls = [call for step in listener.steps for call in step.calls]
        seconds: dict[Clock, float] = {
            "denoiser": sum(call.seconds for call in calls),
            "processor": sum(processor),
            "end to end": end_to_end,
        }
        return RunCost(seconds, sum(call.rows for call in calls), output)

    def inputs(self, method: Method, batch: int) -> dict[str, Any]:
        """Arguments of the pipeline's call, without generator and output type."""
        argument, off = self.findings.guidance_argument, self.findings.off
        stop = method.guided and stop_guiding(self.pipeline, argument, off, method.guided)
        return {
            **call_inputs(self.pipeline, [PROMPT] * batch, self.call),
            **self.findings.scale_arguments(GUIDANCE if method.guided else off),
            "num_inference_steps": self.options.steps,
            **(stop or {}),
        }

    def _probe(self) -> tuple[tuple[Method, ...], Findings]:
        """The methods that the pipeline can run, and the probe's findings.

        Not every pipeline can end guidance halfway: Selective Guidance is left out then.
        """
        try:
            return METHODS, probe(self.pipeline, self.call, GUIDANCE, guided_share=SELECTIVE.guided)
        except UnfoldableError as error:
            findings = probe(self.pipeline, self.call, GUIDANCE)
            self.notes.append(f"{SELECTIVE.title}: not measured: {error.message}")
            return tuple(method for method in METHODS if method != SELECTIVE), findings

    def _denoisers(self) -> Any:
        found, options = self.findings, self.options

        def load(module: nn.Module, folder: Path) -> None:
            with self._placed(module):
                load_adapter(self.pipeline, found.denoisers, found.loader, folder, 1.0)

        with ExitStack() as stack:
            if options.adapter is not None:
                folder = find_adapter(options.adapter, found)
            else:
                args, kwargs = self._arguments()
                prefix = found.denoiser if found.loader == "diffusers" else None
                folder = stack.enter_context(
                    random_adapter(
                        self.teacher,
                        lambda module: module(*args, **kwargs),
                        rank=options.rank,
                        targets=options.targets,
                        prefix=prefix,
                    )
                )
            return make_denoisers(self.teacher, load, folder)

    def _arguments(self) -> Any:
        """The denoiser's arguments in an unguided step."""
        unguided = {
            **call_inputs(self.pipeline, [PROMPT], self.call),
            **self.findings.scale_arguments(self.findings.off),
            "num_inference_steps": 2,  # some solvers take no fewer
        }
        listened = {self.findings.denoiser: self.teacher}
        steps = drive(self.pipeline, unguided, [0], listened, keep_arguments=True)
        return steps[0].calls[-1].arguments

    @contextmanager
    def _placed(self, denoiser: nn.Module) -> Iterator[None]:
        """Put another denoiser into the pipeline within the context."""
        setattr(self.pipeline, self.findings.denoiser, denoiser)
        try:
            yield
        finally:
            setattr(self.pipeline, self.findings.denoiser, self.teacher)


class DenoiserAlone(TimedModel):
    """A published denoiser at its true shapes, with random weights: values cost no time.

    A guided step is one call with two rows a picture, as in most pipelines.

    Args:
        architecture: The published architecture.
        options: The bench's options.

    Raises:
        ConfigError: The size does not fit, or an adapter is given: it would need true weights.
    """

    def __init__(self, architecture: Architecture, options: Options) -> None:
        if options.adapter is not None:
            raise ConfigError(
                f"--adapter {options.adapter}: --arch has random weights, which no adapter fits",
                "Leave --arch out and name the run's pipeline.",
            )
        self.architecture, self.steps, self.notes = architecture, options.steps, []
        self.size = architecture.size if options.size is None else options.size
        self.dtype, self.device = DTYPES[options.dtype], torch.device(options.device)
        one = self._arguments(1)
        teacher = architecture.denoiser.build(self.dtype)
        materialise([teacher], self.device)
        with random_adapter(
            teacher, lambda module: module(**one), rank=options.rank, targets=options.targets
        ) as folder:
            self.denoisers = make_denoisers(teacher, _load, folder)
        self.methods, self.clocks = METHODS, clocks_inside(options.device)
        self.title = (
            f"{architecture.title}, {architecture.denoiser.parameters:,} parameters, random "
            "weights: denoiser alone"
        )
        self.facts = {
            "architecture": architecture.name,
            "size": self.size,
            "adapter": describe_adapter(self.denoisers["loaded"], None),
        }

    @torch.no_grad()
    def run(self, method: Method, denoiser: nn.Module, batch: int) -> RunCost:
        """Call the denoiser once a step, and count the rows of its outputs."""
        guided = max(1, round(method.guided * self.steps)) if method.guided else 0
        doubled, single = self._arguments(2 * batch), self._arguments(batch)
        seconds, rows = 0.0, 0
        with processor_time(denoiser) as processor:
            for step in range(self.steps):
                arguments = doubled if step < guided else single
                start = self._now()
                output = denoiser(**arguments)
                seconds += self._now() - start
                rows += rows_of(output)
        return RunCost({"denoiser": seconds, "processor": sum(processor)}, rows)

    def _arguments(self, rows: int) -> dict[str, Any]:
        sizes = self.architecture.sizes(rows, self.size)
        return make_inputs(self.architecture.denoiser.inputs, sizes, self.dtype, self.device)

    def _now(self) -> float:
        """The time, read after the device has finished its work."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()


def clocks_inside(device: str) -> tuple[Clock, ...]:
    """The clocks inside a denoiser: on an accelerator, processor time means nothing."""
    return ("denoiser", "processor") if torch.device(device).type == "cpu" else ("denoiser",)


@contextmanager
def processor_time(module: nn.Module) -> Iterator[list[float]]:
    """Measure the processor time of this process within a module's calls.

    On a busy machine it is steadier than wall time: waiting for other processes does not count.

    Yields:
        Numbers whose sum is those seconds, over all threads.
    """
    marks: list[float] = []
    hooks = (
        module.register_forward_pre_hook(lambda *_: marks.append(-time.process_time())),
        module.register_forward_hook(lambda *_: marks.append(time.process_time())),
    )
    try:
        yield marks
    finally:
        for hook in hooks:
            hook.remove()


def find_device(device: str) -> str:
    """Find a device; ``auto`` becomes the first accelerator, or the CPU.

    Raises:
        ConfigError: This machine has no such device.
    """
    try:
        return resolve_device(device)
    except ConfigError as error:
        raise ConfigError(
            f"--device {device}: cannot be used here", "Use --device auto."
        ) from error


def _load(module: nn.Module, folder: Path) -> None:
    load_adapter(SimpleNamespace(denoiser=module), ("denoiser",), "peft", folder, 1.0)
