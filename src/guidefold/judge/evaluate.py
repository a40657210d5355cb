"""Measure teacher, unguided teacher and student on the same held-out prompts and seeds."""

from __future__ import annotations

import platform
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import fmean
from typing import Any

from guidefold.deliver import check_adapter, find_adapter, measured_dial, read_dial
from guidefold.draw import (
    Drawn,
    EvaluationPictures,
    Picture,
    draw_dial,
    grid,
    heading,
    picture_requests,
    picture_seeds,
    png,
)
from guidefold.ground import ConfigError, Stopped, plural, task
from guidefold.judge.alignment import Judge, by_category, ratio_interval, share, usable_judge
from guidefold.judge.diversity import diversity, draw_seeds
from guidefold.judge.features import Features, VisionModel, compare
from guidefold.judge.gain import Scores, gain_kept, score_pictures
from guidefold.judge.pixels import relative_distance, saturations
from guidefold.judge.residual import measure_residual_guidance, steps_per_prompt
from guidefold.judge.trained_weights import Lora, StudentWeights, prompts_to_time, time_fused
from guidefold.lora import SHOWN_DIGITS, STRENGTHS
from guidefold.pipeline import CLIP, VISION, Prompt, check_vision_models, stored_bytes
from guidefold.run import (
    KINDS,
    Kind,
    PictureIndex,
    PromptPictures,
    ResidualGuidance,
    Results,
    RunFolder,
    Settings,
    StrengthPictures,
    read_json,
    read_lines,
    require_run,
    write_bytes,
    write_record,
)
from guidefold.session import Session, open_session

LIBRARIES = ("guidefold", "torch", "diffusers", "peft", "transformers")


@dataclass(frozen=True)
class Measured:
    """The pictures of an evaluation, and what was measured on them.

    Attributes:
        prompts: Held-out prompts.
        seeds: One per prompt.
        drawn: Each kind's pictures, one per prompt.
        dial: For teacher and student, the picture files at each strength; empty where
            ``evaluate.dial_prompts`` is 0.
        residual: Residual guidance at the teacher's states and at the student's.
        fused_seconds: Denoiser time of one picture, with the adapter fused; None where the weights
            are quantised.
        verdicts: For each kind, whether a picture shows its prompt; empty without a judge.
        categories: One per prompt; None without a judge.
        distribution: Fréchet distance and recall of the unguided teacher's and the student's
            pictures against the teacher's; empty without a feature extractor.
        scores: Saturation, and with a CLIP model the CLIP score, of each kind's pictures.
        diversity: The teacher's and the student's; empty where it was not measured.
        rival: The guided teacher at the steps of a student that takes fewer; None for any other.
        rival_verdicts: Whether its pictures show their prompts; empty without a judge.
    """

    prompts: list[Prompt]
    seeds: list[int]
    drawn: dict[Kind, Drawn]
    dial: dict[Kind, list[list[str]]]
    residual: ResidualGuidance
    fused_seconds: float | None
    verdicts: dict[Kind, list[bool]]
    categories: list[str | None]
    distribution: dict[Kind, dict[str, float | None]]
    scores: dict[str, Scores]
    diversity: Mapping[Kind, float] = field(default_factory=dict)
    rival: Drawn | None = None
    rival_verdicts: Sequence[bool] = ()


def evaluate(settings: Settings, judge: Judge | None = None) -> dict[str, Any]:
    """Measure a run's adapter; write ``results.json`` and ``grid.png`` into its folder.

    Pictures that the same pipeline and the same adapter drew before are not drawn again.

    Args:
        settings: The run's settings.
        judge: Decides for each picture whether it shows its prompt; None measures no alignment.

    Returns:
        The content of ``results.json``. Without a judge, and with prompts that it does not know,
        every ``alignment`` is None: no other program here tells whether a picture shows its
        prompt. ``guidefold.demo.judge_of("bundled")`` knows the bundled world's captions alone;
        ``evaluate.clip`` scores pictures of any prompt.

    Raises:
        RunError: There is no adapter yet.
        MismatchError: The adapter belongs to another base.
        InputError: The adapter's dial does not reach ``evaluate.guidance``, or a vision model
            cannot be had.
        Stopped: On Ctrl-C; finished pictures are kept.
    """
    find_adapter(require_run(settings.run))
    check_vision_models(settings.evaluate.features, settings.evaluate.clip)
    with open_session(settings) as session:
        return evaluate_adapter(session, judge).to_json()


def evaluate_adapter(session: Session, judge: Judge | None = None) -> Results:
    """:func:`evaluate` within an open session; afterwards the adapter is fused into its pipeline.

    Args:
        session: The run's session.
        judge: As in :func:`evaluate`.
    """
    session.require()
    check_adapter(session)  # before anything is drawn
    session.settings = _at_measured_strength(session.settings)
    session.pristine = False  # fusing adds the adapter's update to the weights for good
    return evaluate_weights(session, judge, Lora())


def _at_measured_strength(settings: Settings) -> Settings:
    """Set ``evaluate.strength`` to the measured one for ``evaluate.guidance``."""
    options, dial = settings.evaluate, read_dial(RunFolder(settings.run).adapter)
    if not dial.marks:
        return settings
    compared = dial.compare_at(options.guidance, options.strength)
    options = options.model_copy(update={"strength": compared.strength})
    return settings.model_copy(update={"evaluate": options})


def evaluate_weights(session: Session, judge: Judge | None, weights: StudentWeights) -> Results:
    """:func:`evaluate` for any trained weights; afterwards they are fused into the pipeline.

    Args:
        session: The run's session.
        judge: As in :func:`evaluate`.
        weights: The trained weights: a LoRA, or a method that it is compared with.
    """
    run = session.run
    try:
        measured = _draw_and_judge(session, judge, weights)
    except KeyboardInterrupt:
        count = plural(len(read_lines(run.pictures)), "picture")
        raise Stopped(
            signal.SIGINT, f"Stopped: {count} drawn so far in {run.evaluation}."
        ) from None
    results = _results(session, measured)
    write_record(run.index, _index(session, measured).to_json())
    write_record(run.results, results.to_json())
    write_bytes(run.grid, png(_grid(session, measured), _grid_facts(session, measured)))
    return results


def _draw_and_judge(session: Session, judge: Judge | None, weights: StudentWeights) -> Measured:
    """Draw every picture, judge it, and measure residual guidance."""
    options = session.settings.evaluate
    features = feature_extractor(session, judge)
    clip = _open_model(session, options.clip, CLIP)
    prompts = session.held_out[: options.prompts]
    judge = usable_judge(judge, prompts)
    texts = [prompt.text for prompt in prompts]
    seeds = picture_seeds(session.settings.seed, len(prompts))
    # Steps and guidance in one LoRA have no dial to be shown.
    one = session.settings.lora_roles == ("both",)
    dial_prompts = [] if one else prompts[: options.dial_prompts]
    state_prompts = prompts[: options.state_prompts]
    timed_prompts = prompts_to_time(session, prompts)
    dial, drawn, rival = dict[Kind, list[list[str]]](), dict[Kind, Drawn](), None
    steps, few = session.settings.steps_of, session.settings.student.steps
    count = sum(map(steps, KINDS)) * len(prompts) + steps("student") * len(timed_prompts)
    count += len(dial_prompts) * len(STRENGTHS) * (steps("teacher") + steps("student"))
    varied, several = dict[Kind, float](), options.diversity_seeds
    count += (several or 0) * len(state_prompts) * (steps("teacher") + steps("student"))
    count += steps_per_prompt(session) * len(state_prompts) + (few or 0) * len(prompts)
    with task("Measuring, denoising steps", count) as progress:
        pictures = EvaluationPictures(session)
        # The student comes last: once its weights are loaded, the teacher's pictures cannot be had.
        for kind in ("teacher", "unguided"):
            drawn[kind] = pictures.draw(picture_requests(session, kind, prompts), progress)
        if few is not None:
            requests = picture_requests(session, "teacher", prompts, steps=few)
            rival = pictures.draw(requests, progress)
        if several and features:
            again = draw_seeds(pictures, "teacher", state_prompts, several, progress)
            varied["teacher"] = diversity(features(again), several)
        dial["teacher"] = draw_dial(
            pictures, "teacher", dial_prompts, progress, measured_dial(session)
        )
        weights.load(session, session.compared.strength)
        drawn["student"] = pictures.draw(picture_requests(session, "student", prompts), progress)
        dial["student"] = draw_dial(pictures, "student", dial_prompts, progress)
        if several and features:
            again = draw_seeds(pictures, "student", state_prompts, several, progress)
            varied["student"] = diversity(features(again), several)
        residual = measure_residual_guidance(session, weights, state_prompts, seeds, progress)
        fused = time_fused(session, weights, timed_prompts, progress)
    return Measured(
        prompts=prompts,
        seeds=seeds,
        drawn=drawn,
        dial=dial,
        residual=residual,
        fused_seconds=fused,
        verdicts={k: list(judge.aligned(drawn[k].pictures, texts)) for k in KINDS} if judge else {},
        categories=[judge.category(text) if judge else None for text in texts],
        distribution=_compare_sets(drawn, features) if features else {},
        scores=score_pictures(drawn, texts, clip),
        diversity=varied,
        rival=rival,
        rival_verdicts=judge.aligned(rival.pictures, texts) if judge and rival else (),
    )


def feature_extractor(session: Session, judge: Judge | None) -> Features | None:
    """The model of ``evaluate.features``, else the judge's own features, else None.

    Raises:
        ConfigError: There is none, and diversity is to be measured in features.
    """
    options = session.settings.evaluate
    features = _open_model(session, options.features, VISION) or (judge.features if judge else None)
    if features is None and options.diversity_seeds is not None:
        raise ConfigError(
            f"evaluate.diversity_seeds: {options.diversity_seeds}, but there are no features to "
            "measure distances in",
            "Set evaluate.features to a vision model, such as facebook/dinov2-small.",
        )
    return features


def _open_model(session: Session, source: str | None, setting: str) -> VisionModel | None:
    return None if source is None else VisionModel(source, session.device, setting)


def _compare_sets(
    drawn: Mapping[Kind, Drawn], features: Features
) -> dict[Kind, dict[str, float | None]]:
    """Compare the unguided teacher's and the student's sets of pictures with the teacher's."""
    by_kind = {kind: features(drawn[kind].pictures) for kind in KINDS}
    return {kind: compare(by_kind["teacher"], by_kind[kind]) for kind in KINDS if kind != "teacher"}


def _results(session: Session, measured: Measured) -> Results:
    drawn, verdicts = measured.drawn, measured.verdicts
    kinds: dict[Kind, dict[str, Any]] = {
        kind: _measures(drawn[kind], verdicts.get(kind, ())) | measured.distribution.get(kind, {})
        for kind in KINDS
    }
    kinds["student"]["denoiser_seconds_per_image_fused"] = measured.fused_seconds
    judged: dict[str, Any] = {}
    if verdicts:
        bounds = ratio_interval(verdicts["student"], verdicts["teacher"])
        kinds["student"]["alignment_over_teacher_95"] = bounds
        judged["categories"] = by_category(verdicts, [str(name) for name in measured.categories])
    for kind, value in measured.diversity.items():
        kinds[kind]["diversity"] = value
    if measured.rival is not None:
        rival = _measures(measured.rival, measured.rival_verdicts)
        rival["saturation"] = fmean(saturations(measured.rival.pictures))
        judged["few_steps"] = {"steps": session.settings.student.steps, "teacher": rival}
    for name, by_kind in measured.scores.items():
        for kind, values in by_kind.items():
            kinds[kind][name] = fmean(values)
    adapter = session.run.adapter.rglob("*.safetensors")
    return Results.model_validate(
        {
            **kinds,
            **judged,
            "residual_guidance": measured.residual,
            "gain_kept": gain_kept(measured.scores | ({"alignment": verdicts} if verdicts else {})),
            "relative_distance": relative_distance(drawn),
            **session.compared._asdict(),
            "prompts": len(measured.prompts),
            "steps": session.settings.evaluate.steps,
            "trained_steps": read_json(session.run.metadata)["step"],
            "adapter_bytes": sum(path.stat().st_size for path in adapter),
            "denoiser_bytes": stored_bytes(session.denoiser),
            "versions": {name: version(name) for name in LIBRARIES},
            "machine": f"{platform.machine()}, device {session.device}",
        }
    )


def _measures(drawn: Drawn, verdicts: Sequence[bool]) -> dict[str, Any]:
    """What is measured of any pictures."""
    return {
        "alignment": share(verdicts) if verdicts else None,
        "passes_per_image": drawn.passes_per_image,
        "denoiser_seconds_per_image": drawn.denoiser_seconds_per_image,
    }


def _index(session: Session, measured: Measured) -> PictureIndex:
    """The index of picture files: by prompt, and by strength."""
    pictures = [
        PromptPictures(
            prompt=prompt.label,
            seed=measured.seeds[k],
            category=measured.categories[k],
            files={kind: measured.drawn[kind].files[k] for kind in KINDS},
            aligned={kind: given[k] for kind, given in measured.verdicts.items()},
        )
        for k, prompt in enumerate(measured.prompts)
    ]
    teacher, student = measured.dial["teacher"], measured.dial["student"]
    scales = measured_dial(session)
    steps = [
        StrengthPictures(
            strength=s,
            guidance=round(scales.measured_guidance(s), SHOWN_DIGITS),
            teacher=t,
            student=own,
        )
        for s, t, own in zip(STRENGTHS, teacher, student, strict=False)
    ]
    return PictureIndex(pictures=pictures, dial=steps)


def _grid(session: Session, measured: Measured) -> Picture:
    """The first prompts' pictures, a column per kind."""
    prompts = [p.label for p in measured.prompts[: session.settings.evaluate.grid_prompts]]
    rows = [[measured.drawn[kind].pictures[k] for kind in KINDS] for k in range(len(prompts))]
    return grid(rows, [heading(kind, measured.drawn[kind]) for kind in KINDS], prompts)


def _grid_facts(session: Session, measured: Measured) -> dict[str, Any]:
    """The metadata of the grid's file."""
    count = session.settings.evaluate.grid_prompts
    return {
        "prompts": [prompt.label for prompt in measured.prompts[:count]],
        "seeds": measured.seeds[:count],
        **session.compared._asdict(),
        "steps": session.settings.evaluate.steps,
    }
