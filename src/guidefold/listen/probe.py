"""Probe a pipeline: how it guides, and whether its guidance can be folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import (
    CallError,
    Task,
    UnfoldableError,
    compat,
    console,
    out_of_memory,
    plural,
    task,
)
from guidefold.listen.arguments import Layout, Tree, find_layout
from guidefold.listen.call import (
    COUNTS,
    call_inputs,
    guidance_argument,
    steps_taken,
)
from guidefold.listen.capture import denoisers_of, drive, passes_of
from guidefold.listen.dry_run import (
    RandomStub,
    arguments_of,
    check_pairs,
    follow_stubbed,
    fullest,
)
from guidefold.listen.few_steps import GridSearch
from guidefold.listen.findings import Findings
from guidefold.listen.guidance import find_off, find_origin, scale_arguments, stop_guiding
from guidefold.listen.listener import Step
from guidefold.listen.prediction_check import check_prediction
from guidefold.listen.probe_checks import (
    OTHER,
    PROMPT,
    SEED,
    STEPS,
    check_guidance_ends,
    check_output,
    check_prompts_differ,
    check_tokenizers,
)
from guidefold.listen.refusal import explained_failure, naming_rows, parameters_of
from guidefold.lora import candidates, count_targets, watched
from guidefold.pipeline import (
    Prompt,
    as_one_module,
    denoisers,
    fingerprint,
    modules,
    prediction_type,
    unwrap,
    zero_terminal_snr,
)
from guidefold.run import SIZES

LONGER = "an old black and white photograph of a cat that sleeps on a chair beside the window"
STAGES = 5  # of a probe, each one or more runs of the pipeline
MORE_STEPS = 10  # for a second denoiser, which may take over only later


def probe(
    pipeline: DiffusionPipeline,
    call: Mapping[str, Any],
    guidance: float,
    negative_prompt: str | None = None,
    guided_share: float = 1.0,
    rows: Sequence[Prompt] = (),
    student_steps: int | None = None,
    least_steps: int = 1,
) -> Findings:
    """Run a pipeline for a few steps, with guidance on and off, and find how it guides.

    Args:
        pipeline: The pipeline, without LoRA.
        call: The user's further call arguments.
        guidance: A guidance scale at which guidance is on.
        negative_prompt: The negative prompt of all pictures, if any.
        guided_share: The share of the teacher's steps that are guided, from the first on.
        rows: Rows of the user's inputs, whose further fields the pipeline is called with.
        student_steps: The number of steps of a student that takes fewer than the teacher.
        least_steps: The least number of the teacher's steps for such a student.

    Returns:
        The findings.

    Raises:
        UnfoldableError: There is no guidance to fold, or no known way; the error says which.
        PipelineError: A tokenizer has lost its vocabulary.
        CallError: The pipeline refuses the call.
    """
    if getattr(pipeline, "scheduler", None) is None:
        raise UnfoldableError(
            f"{type(pipeline).__name__} has no scheduler: it makes no denoising steps whose "
            "guidance could be folded",
            "Fold the pipeline that makes the latents it works on.",
        )
    check_tokenizers(pipeline)
    with task("Probing the pipeline", STAGES) as progress:
        probing = _Probe(pipeline, call, guidance, negative_prompt, rows, progress)
        found = probing.find(guided_share)
        progress.advance()
    if student_steps is None:
        return found
    search = GridSearch(pipeline, probing.student, probing.listened, SEED)
    return replace(found, steps=search.find(student_steps, least_steps))


@dataclass
class _Probe:
    """The arguments of :func:`probe` that several runs of the pipeline need."""

    pipeline: DiffusionPipeline
    call: Mapping[str, Any]
    guidance: float
    negative_prompt: str | None
    rows: Sequence[Prompt]
    progress: Task

    def find(self, guided_share: float) -> Findings:
        pipeline = self.pipeline
        negative = self.negative_prompt is not None or "negative_prompt" in self.call
        argument = guidance_argument(pipeline, negative=negative)
        one, other, longer = self._prompts()
        inputs, guided = self._drive_guided(one, argument)
        names = denoisers_of(guided)
        if not names:
            raise UnfoldableError(f"{type(pipeline).__name__}: no denoiser is called at its steps")
        self.listened = denoisers(pipeline, names)
        self._next("guidance off")
        off, also_off, unguided = find_off(pipeline, inputs, argument, self.listened, SEED)
        on = {**inputs, **scale_arguments(argument, self.guidance, off)}
        student = {**inputs, **scale_arguments(argument, off, off), **also_off}
        self.student = student
        passes_on = _passes(guided, names)
        _check_fewer(pipeline, argument, self.guidance, off, passes_on, unguided)
        check_pairs(pipeline, unguided)
        if warning := check_prediction(pipeline, student, self.listened, SEED):
            console.print(warning)
        if guided_share < 1:
            ending = stop_guiding(pipeline, argument, off, 1 / STEPS)
            check_guidance_ends(pipeline, on | ending, argument, off, self.listened)
        self._next("another guidance scale")
        origin, linear, fixed = find_origin(
            pipeline, on, student, argument, off, guided, self.listened, SEED
        )
        self._next("the denoiser's arguments and output")
        self.stub = RandomStub(SEED)
        dry = follow_stubbed(pipeline, student, [SEED], self.listened, unguided, self.stub)
        denoiser = as_one_module(self.listened)
        with watched(candidates(denoiser, "all")) as reasons:
            check_output(denoiser, dry, unguided)
        self._next("several prompts in one call")
        first = fullest(dry.arguments)
        if other is not None:
            check_prompts_differ(pipeline, names[0], first, self._arguments(student, [other]))
        return Findings(
            pipeline=type(pipeline).__name__,
            scheduler=type(pipeline.scheduler).__name__,
            prediction_type=prediction_type(pipeline),
            zero_terminal_snr=zero_terminal_snr(pipeline),
            denoisers=names,
            denoiser_class=type(unwrap(self.listened[names[0]])).__name__,
            fingerprint=fingerprint(denoiser),
            guidance_argument=argument,
            off=off,
            also_off=also_off,
            origin=origin,
            linear=linear,
            passes_on=passes_on,
            passes_off=passes_of(unguided),
            output_map=dry.output_map,
            layout=self._layout(first, student, one),
            mixed_lengths=self._mixes_lengths(first, student, one, longer),
            loader=lora_loader(pipeline, names),
            targets=count_targets(denoiser, reasons),
            left_out=sum(map(bool, reasons.values())),
            fixed=fixed,
        )

    def _next(self, work: str) -> None:
        """Count a stage as done, and name the next one."""
        self.progress.advance()
        self.progress.note(work)

    def _prompts(self) -> tuple[Prompt, Prompt | None, Prompt | None]:
        """A prompt, another and a longer one; if the user gave rows, the first two of these."""
        if not self.rows:
            return Prompt.of(PROMPT), Prompt.of(OTHER), Prompt.of(LONGER)
        row = self.rows[0]
        others = [other for other in self.rows[1:] if other.key != row.key]
        return row, others[0] if others else None, None

    def _drive_guided(self, prompt: Prompt, argument: str) -> tuple[dict[str, Any], list[Step]]:
        """The arguments that all runs share, and the guided run.

        If a component of the denoiser's class was not called, the run is repeated with more steps.
        """
        self.progress.note(f"a few steps with {argument}={self.guidance:g}")
        given = call_inputs(self.pipeline, [prompt], self.call, self.negative_prompt)
        every = modules(self.pipeline)
        steps: list[Step] = []
        for count in (STEPS, MORE_STEPS):
            taken = steps_taken(self.pipeline, given, count)
            inputs = {**given, "num_inference_steps": taken}
            if "num_inference_steps" not in parameters_of(self.pipeline):
                raise UnfoldableError(
                    f"{type(self.pipeline).__name__}: its call takes no num_inference_steps"
                )
            on = {**inputs, **scale_arguments(argument, self.guidance, self.guidance - 1)}
            with naming_rows([prompt]):
                steps = first_run(self.pipeline, on, every)
            called = set(denoisers_of(steps))
            classes = {type(every[name]) for name in called}
            if not any(type(m) in classes and n not in called for n, m in every.items()):
                break
        return inputs, steps

    def _arguments(self, student: Mapping[str, Any], prompts: Sequence[Prompt]) -> Tree:
        """The denoiser's arguments at the first step for some prompts; the denoiser is stubbed."""
        given = call_inputs(self.pipeline, prompts, self.call, self.negative_prompt)
        return self._first_arguments({**student, **given}, len(prompts))

    def _first_arguments(self, inputs: Mapping[str, Any], count: int) -> Tree:
        seeds = range(SEED, SEED + count)
        self.stub.clear()
        several = len(self.listened) > 1
        steps = drive(
            self.pipeline, inputs, seeds, self.listened, stub=self.stub, keep_arguments=True
        )
        return fullest([arguments_of(step, several=several) for step in steps])

    def _layout(self, first: Tree, student: Mapping[str, Any], prompt: Prompt) -> Layout:
        """The layout of a call for two: the same prompt twice, or else two pictures of it."""
        layout = _layout_or_none(first, lambda: self._arguments(student, [prompt, prompt]))
        count = next((name for name in COUNTS if name in parameters_of(self.pipeline)), None)
        if layout is None and count is not None:
            twice = {**student, count: 2}
            layout = _layout_or_none(first, lambda: self._first_arguments(twice, 2))
        return layout

    def _mixes_lengths(
        self, first: Tree, student: Mapping[str, Any], prompt: Prompt, longer: Prompt | None
    ) -> bool:
        if longer is None or prompt.columns:
            return False
        pair = [prompt, longer]
        return _layout_or_none(first, lambda: self._arguments(student, pair)) is not None


def lora_loader(pipeline: DiffusionPipeline, names: Sequence[str]) -> str:
    """The library that can load an adapter of these denoisers: ``diffusers``, or plain ``peft``."""
    loadable = compat.lora_components(pipeline)
    able = all(
        name in loadable and hasattr(getattr(pipeline, name), "load_lora_adapter") for name in names
    )
    return "diffusers" if able and hasattr(pipeline, "load_lora_weights") else "peft"


def first_run(
    pipeline: DiffusionPipeline, inputs: Mapping[str, Any], listened: Mapping[str, nn.Module]
) -> list[Step]:
    """The first run of the pipeline: it may fail in any way, also without the user's arguments.

    Raises:
        PipelineError: It needs a library that is not here, or fails in its own code.
        CallError: It refuses its arguments, or fails with them.
    """
    remedy = (
        f"{_size_hint(pipeline, inputs)}Otherwise its code may be older than the installed "
        "libraries, or an input may have another form than it expects."
    )
    with explained_failure(pipeline, remedy):
        return drive(pipeline, inputs, [SEED], listened)


def _size_hint(pipeline: DiffusionPipeline, inputs: Mapping[str, Any]) -> str:
    """A remedy where the call leaves sizes at the pipeline's defaults; empty where it does not."""
    missing = [name for name in SIZES if name in parameters_of(pipeline) and name not in inputs]
    if not missing:
        return ""
    names = ", ".join(f"pipeline.call.{name}=NUMBER" for name in missing)
    return f"Its default sizes may not fit its components: set {names}. "


def _passes(steps: Sequence[Step], names: Sequence[str]) -> float:
    """The number of samples through the denoisers per step, for one picture."""
    rows = sum(c.rows for step in steps for c in step.calls if c.denoiser in names)
    return rows / len(steps)


def _check_fewer(
    pipeline: DiffusionPipeline,
    argument: str,
    guidance: float,
    off: float,
    passes_on: float,
    unguided: Sequence[Step],
) -> None:
    calls = max(len(step.calls) for step in unguided)
    passes_off, name = passes_of(unguided), type(pipeline).__name__
    if passes_on <= passes_off:
        raise UnfoldableError(
            f"{name}: {plural(passes_on, 'pass', 'passes')} per step with {argument}={guidance:g}, "
            f"{passes_off:g} with {argument}={off:g}: there is no second pass to fold away",
            "Its guidance is already distilled, or another argument switches it on; true CFG needs "
            "pipeline.negative_prompt.",
        )
    if passes_off > 1:
        raise UnfoldableError(
            f"{name}: with guidance off ({argument}={off:g}) each step still makes {passes_off:g} "
            f"passes in {plural(calls, 'call')}",
            "Under [pipeline.call], switch off the other arguments that add passes.",
        )


def _layout_or_none(one: Tree, two: Callable[[], Tree]) -> Layout:
    """The layout of a call for two samples; None if they cannot be batched.

    A pipeline may take only one prompt at a time, or pad prompts to the longest one, so that a
    prompt's arguments depend on the other prompt.
    """
    try:
        return find_layout(one, two())
    except (CallError, UnfoldableError):
        return None
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        if out_of_memory(error):
            raise
        return None
