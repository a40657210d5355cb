"""Find out, on the real pipeline, how it guides and whether its guidance can be folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from guidefold.arguments import Layout, Tree, find_layout
from guidefold.capture import (
    Step,
    denoisers_of,
    drive,
    follow,
)
from guidefold.errors import (
    ConfigError,
    CorruptFileError,
    MismatchError,
    UnfoldableError,
)
from guidefold.outputs import OutputMap, find_output_map
from guidefold.pipelines import call_inputs, fingerprint, guidance_argument, modules
from guidefold.proofs import (
    OTHER,
    PROMPT,
    SEED,
    STEPS,
    check_tells_apart,
    check_tokenizers,
    prove_ending,
    prove_output,
)
from guidefold.selective import stop_guiding
from guidefold.stub import RandomStub

LONGER = "an old black and white photograph of a cat that sleeps on a chair beside the window"
OFF_VALUES = (1.0, 0.0)  # 0 in pipelines that write guidance as cond + s * (cond - uncond)


@dataclass(frozen=True)
class Findings:
    """What a probe found; stored with a run.

    Attributes:
        pipeline: The pipeline's class.
        scheduler: The scheduler's class.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``.
        denoiser: The component that is called at each step.
        denoiser_class: Its class.
        fingerprint: Of its weights.
        guidance_argument: The call argument that scales guidance.
        off: The value that switches guidance off.
        passes_on: Passes per step and picture with guidance on.
        passes_off: Passes per step and picture with guidance off.
        output_map: What happens to the denoiser's raw output.
        layout: How the denoiser's arguments are batched; None where only one prompt at a time goes.
        company: Whether prompts of different lengths can share a call and be told apart afterwards.
        loader: Who loads the adapter: ``diffusers``, or plain ``peft``.
    """

    pipeline: str
    scheduler: str
    prediction_type: str
    denoiser: str
    denoiser_class: str
    fingerprint: str
    guidance_argument: str
    off: float
    passes_on: float
    passes_off: float
    output_map: OutputMap
    layout: Layout
    company: bool
    loader: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Findings:
        """Back from plain values.

        Raises:
            CorruptFileError: A field is missing or unknown.
        """
        try:
            return Findings(**{**values, "output_map": OutputMap(**values["output_map"])})
        except (TypeError, KeyError) as error:
            raise CorruptFileError(
                f"stored findings of the probe are not those of this version ({error})",
                "Remove probe.json to probe again, or choose another run=FOLDER.",
            ) from error

    def check_same_base(self, other: Findings) -> None:
        """Refuse another base.

        Raises:
            MismatchError: Names the first field that differs, with both values.
        """
        for name in (
            "pipeline",
            "denoiser",
            "denoiser_class",
            "prediction_type",
            "output_map",
            "guidance_argument",
            "off",
            "fingerprint",
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise MismatchError(
                    f"another base: {name} is '{mine}' in the run and '{theirs}' in the pipeline",
                    "Open the pipeline that the run was recorded with, in the same precision.",
                )


def probe(
    pipeline: DiffusionPipeline,
    call: Mapping[str, Any],
    guidance: float,
    negative_prompt: str | None = None,
    guided_share: float = 1.0,
) -> Findings:
    """Run a pipeline for a few short steps, guidance on and off, and find how it guides.

    Args:
        pipeline: The pipeline, without any LoRA.
        call: The user's further call arguments.
        guidance: A guidance scale that counts as on.
        negative_prompt: The house negative prompt, if any.
        guided_share: Of the steps, from the first, that the teacher is guided in.

    Returns:
        The findings.

    Raises:
        UnfoldableError: There is nothing to fold, or no known way to; says which.
        PipelineError: A tokenizer has lost its vocabulary.
        ConfigError: The pipeline refuses the call.
    """
    check_tokenizers(pipeline)
    negative = negative_prompt is not None or "negative_prompt" in call
    argument = guidance_argument(pipeline, negative=negative)
    inputs = {
        **call_inputs(pipeline, [PROMPT], call, negative_prompt),
        "num_inference_steps": STEPS,
    }
    every = modules(pipeline)
    guided = _try(pipeline, {**inputs, argument: guidance}, every)
    denoiser = _only_denoiser(pipeline, guided)
    listened = {denoiser: every[denoiser]}
    off, unguided = _switch_off(pipeline, inputs, argument, listened)
    passes_on = _passes(guided, denoiser)
    _check_fewer(pipeline, argument, guidance, off, passes_on, unguided)
    if guided_share < 1:
        ending = stop_guiding(pipeline, argument, off, 1 / STEPS)
        prove_ending(pipeline, {**inputs, argument: guidance, **ending}, argument, off, listened)
    inputs[argument] = off
    stub = RandomStub(SEED)
    heard = follow(pipeline, inputs, [SEED], listened, unguided, stub=stub, keep_arguments=True)
    output_map = find_output_map(stub.answers[0], heard[0].model_output)
    prove_output(listened[denoiser], output_map, heard, unguided)
    one = heard[0].calls[0].arguments
    ask = partial(_arguments, pipeline, inputs, call, negative_prompt, listened, stub)
    check_tells_apart(pipeline, denoiser, one, ask([OTHER]))
    return Findings(
        pipeline=type(pipeline).__name__,
        scheduler=type(pipeline.scheduler).__name__,
        prediction_type=prediction_type(pipeline),
        denoiser=denoiser,
        denoiser_class=type(every[denoiser]).__name__,
        fingerprint=fingerprint(every[denoiser]),
        guidance_argument=argument,
        off=off,
        passes_on=passes_on,
        passes_off=_passes(unguided, denoiser),
        output_map=output_map,
        layout=_find_layout(one, partial(ask, [PROMPT, PROMPT])),
        company=_find_layout(one, partial(ask, [PROMPT, LONGER])) is not None,
        loader=lora_loader(pipeline, denoiser),
    )


def lora_loader(pipeline: DiffusionPipeline, denoiser: str) -> str:
    """Who can load an adapter for this denoiser: ``diffusers`` or plain ``peft``."""
    loadable = getattr(pipeline, "_lora_loadable_modules", ())
    module = getattr(pipeline, denoiser)
    if (
        denoiser in loadable
        and hasattr(pipeline, "load_lora_weights")
        and hasattr(module, "load_lora_adapter")
    ):
        return "diffusers"
    return "peft"


def _try(
    pipeline: DiffusionPipeline, inputs: Mapping[str, Any], listened: Mapping[str, nn.Module]
) -> list[Step]:
    """The first run; what the pipeline complains of is the user's to mend."""
    try:
        return drive(pipeline, inputs, [SEED], listened)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{type(pipeline).__name__} refuses the call: {error}",
            "Set its arguments under [pipeline.call].",
        ) from error


def _only_denoiser(pipeline: DiffusionPipeline, steps: list[Step]) -> str:
    found = denoisers_of(steps)
    if len(found) != 1:
        raise UnfoldableError(
            f"{type(pipeline).__name__}: {len(found)} denoisers ({', '.join(found) or 'none'})",
            "Guidefold folds pipelines with one denoiser.",
        )
    return found[0]


def _passes(steps: list[Step], denoiser: str) -> float:
    """Samples through the denoiser per step, for one picture."""
    rows = sum(c.rows for step in steps for c in step.calls if c.denoiser == denoiser)
    return rows / len(steps)


def _switch_off(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    argument: str,
    listened: Mapping[str, nn.Module],
) -> tuple[float, list[Step]]:
    """The value with the fewest passes, and the run it gave; the first of equals."""
    (denoiser,) = listened
    runs = []
    for off in OFF_VALUES:
        steps = drive(pipeline, {**inputs, argument: off}, [SEED], listened)
        if _passes(steps, denoiser) == 1:
            return off, steps
        runs.append((off, steps))
    return min(runs, key=lambda pair: _passes(pair[1], denoiser))


def _check_fewer(
    pipeline: DiffusionPipeline,
    argument: str,
    guidance: float,
    off: float,
    passes_on: float,
    unguided: list[Step],
) -> None:
    calls = max(len(step.calls) for step in unguided)
    passes_off = sum(step.rows for step in unguided) / len(unguided)
    name = type(pipeline).__name__
    if passes_on <= passes_off:
        raise UnfoldableError(
            f"{name}: {passes_on:g} passes a step with {argument}={guidance:g}, "
            f"{passes_off:g} with {argument}={off:g}: there is no second pass to fold away",
            "Its guidance is already distilled, or is switched by another argument; true CFG needs "
            "pipeline.negative_prompt.",
        )
    if passes_off != 1 or calls != 1:
        raise UnfoldableError(
            f"{name}: still {passes_off:g} passes in {calls} calls a step with guidance off "
            f"({argument}={off:g})",
            "Switch off what else adds passes under [pipeline.call], such as pag_scale = 0.",
        )


def _arguments(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    call: Mapping[str, Any],
    negative_prompt: str | None,
    listened: Mapping[str, nn.Module],
    stub: RandomStub,
    prompts: list[str],
) -> Tree:
    """What the denoiser is asked first for some prompts, at no cost of its own."""
    given = {**inputs, **call_inputs(pipeline, prompts, call, negative_prompt)}
    seeds = range(SEED, SEED + len(prompts))
    steps = drive(pipeline, given, seeds, listened, stub=stub, keep_arguments=True)
    return steps[0].calls[0].arguments


def _find_layout(one: Tree, ask_two: Callable[[], Tree]) -> Layout:
    """The layout of a call for two prompts; None where they cannot share one.

    A pipeline may take one prompt at a time, or pad prompts to the longest among them, so that a
    prompt's arguments depend on its company.
    """
    try:
        return find_layout(one, ask_two())
    except (ValueError, TypeError, RuntimeError, UnfoldableError):
        return None


def prediction_type(pipeline: DiffusionPipeline) -> str:
    """What the denoiser predicts, as the scheduler says."""
    named = pipeline.scheduler.config.get("prediction_type")
    if named is None and "Flow" in type(pipeline.scheduler).__name__:
        return "flow_prediction"
    return str(named)
