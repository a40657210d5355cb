"""Measure teacher, unguided teacher and student on the same held-out prompts and seeds."""

from __future__ import annotations

import platform
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from guidefold.deliver import read_dial
from guidefold.draw import (
    Drawn,
    EvaluationPictures,
    Picture,
    draw,
    draw_student,
    draw_teacher,
    grid,
    heading,
    picture_requests,
    picture_seeds,
    png,
)
from guidefold.ground import Stopped, plural, task
from guidefold.judge.alignment import Judge, by_category, ratio_interval, share
from guidefold.judge.features import Features, VisionModel, compare
from guidefold.judge.residual import RUNS_PER_PROMPT, measure_residual
from guidefold.judge.trained_weights import Lora, StudentWeights
from guidefold.lora import STRENGTHS
from guidefold.pipeline import Prompt
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
    write_json,
)
from guidefold.session import Session, open_session

LIBRARIES = ("guidefold", "torch", "diffusers", "peft", "transformers")


@dataclass(frozen=True)
class Measured:
    """What was drawn and what was seen in it.

    Attributes:
        prompts: Held-out prompts.
        seeds: One per prompt.
        drawn: Each kind's pictures, one per prompt.
        dial: For teacher and student, the pictures' files of each strength; empty without a dial.
        residual: Residual guidance at the teacher's states and at the student's.
        fused_seconds: Time inside the denoiser of a picture, the adapter fused.
        verdicts: For each kind, whether a picture shows its prompt; empty without a judge.
        categories: One per prompt; None without a judge.
        distribution: How the unguided teacher's and the student's pictures, as sets, differ from
            the teacher's; empty without features to tell by.
        clip_scores: Of each kind's pictures; empty without a CLIP model.
    """

    prompts: list[Prompt]
    seeds: list[int]
    drawn: dict[Kind, Drawn]
    dial: dict[Kind, list[list[str]]]
    residual: ResidualGuidance
    fused_seconds: float
    verdicts: dict[Kind, list[bool]]
    categories: list[str | None]
    distribution: dict[Kind, dict[str, float | None]]
    clip_scores: dict[Kind, float]


def evaluate(settings: Settings, judge: Judge | None = None) -> dict[str, Any]:
    """Measure a run's adapter; write ``results.json`` and ``grid.png`` into its folder.

    Pictures that were drawn before, by the same pipeline and the same adapter, are not drawn again.

    Args:
        settings: The run's.
        judge: Tells of each picture whether it shows what its prompt says; None measures no
            alignment.

    Returns:
        What ``results.json`` holds.

    Raises:
        RunError: There is no adapter yet.
        MismatchError: The adapter belongs to another base.
        InputError: The adapter's dial does not reach ``evaluate.guidance``.
        Stopped: On Ctrl-C; pictures that were drawn stand.
    """
    require_run(settings.run)
    with open_session(settings) as session:
        return measure_adapter(session, judge).to_json()


def measure_adapter(session: Session, judge: Judge | None = None) -> Results:
    """:func:`evaluate` within an open session; its pipeline is left with the adapter fused."""
    session.require()
    session.settings = _served(session.settings)
    session.pristine = False  # the adapter's update goes into the weights, and stays there
    return measure(session, judge, Lora())


def _served(settings: Settings) -> Settings:
    """A scale that was asked for is met by the strength that was measured to serve it best."""
    asked, dial = settings.evaluate, read_dial(RunFolder(settings.run).adapter)
    if not dial.marks:
        return settings
    compared = dial.compare_at(asked.guidance, asked.strength)
    found = asked.model_copy(update={"strength": compared.strength})
    return settings.model_copy(update={"evaluate": found})


def measure(session: Session, judge: Judge | None, weights: StudentWeights) -> Results:
    """:func:`evaluate` within an open session; its pipeline is left with the weights fused.

    Args:
        session: The run's.
        judge: As :func:`evaluate`.
        weights: What was trained.
    """
    run = session.run
    try:
        measured = _look(session, judge, weights)
    except KeyboardInterrupt:
        count = plural(len(read_lines(run.pictures)), "picture")
        raise Stopped(
            signal.SIGINT, f"Stopped: {count} drawn so far in {run.evaluation}."
        ) from None
    results = _results(session, measured)
    write_json(run.index, _index(session, measured).to_json())
    write_json(run.results, results.to_json())
    write_bytes(run.grid, png(_sheet(session, measured)))
    return results


def relative_distance(drawn: Mapping[Kind, Drawn]) -> float:
    """``E|student - teacher|^2 / E|unguided - teacher|^2`` over pixels: 0 is the CFG picture."""
    student, unguided = (
        sum(map(_distance, drawn[kind].pictures, drawn["teacher"].pictures))
        for kind in ("student", "unguided")
    )
    return student / max(unguided, 1e-12)


def saturation(pictures: Sequence[Picture]) -> float:
    """How colourful pictures are: HSV's saturation, 0..1, mean over pixels and pictures.

    Guidance that is too strong is seen in it first.
    """
    channels = (np.asarray(picture.convert("HSV"))[..., 1] for picture in pictures)
    return float(np.mean([channel.mean() / 255 for channel in channels]))


def _look(session: Session, judge: Judge | None, weights: StudentWeights) -> Measured:
    """Draw every picture, judge it, and measure residual guidance."""
    asked = session.settings.evaluate
    features, clip = features_of(session, judge), _open_model(session, asked.clip)
    prompts = session.held_out[: asked.prompts]
    texts = [prompt.text for prompt in prompts]
    seeds = picture_seeds(session.settings.seed, len(prompts))
    turned, stated = prompts[: asked.dial_prompts], prompts[: asked.state_prompts]
    few = prompts[: max(asked.batch_size, asked.state_prompts)]
    strengths, drawn = dict[Kind, list[list[str]]](), dict[Kind, Drawn]()
    count = len(KINDS) * len(prompts) + 2 * len(turned) * len(STRENGTHS) + len(few)
    runs = RUNS_PER_PROMPT * len(stated)
    with task("Measuring, denoising steps", (count + runs) * asked.steps) as progress:
        pictures = EvaluationPictures(session)
        for kind in ("teacher", "unguided"):
            drawn[kind] = pictures.draw(picture_requests(session, kind, prompts), progress)
        strengths["teacher"] = draw_teacher(pictures, turned, progress)
        weights.load(session, session.compared.strength)
        drawn["student"] = pictures.draw(picture_requests(session, "student", prompts), progress)
        strengths["student"] = draw_student(pictures, turned, progress)
        residual = measure_residual(session, weights, stated, seeds, progress)
        weights.fuse(session.denoiser)
        fused = draw(session, picture_requests(session, "student", few), progress.advance)
    return Measured(
        prompts=prompts,
        seeds=seeds,
        drawn=drawn,
        dial=strengths,
        residual=residual,
        fused_seconds=fused.denoiser_seconds_per_image,
        verdicts=_verdicts(texts, drawn, judge),
        categories=[judge.category(text) if judge else None for text in texts],
        distribution=_compare(drawn, features),
        clip_scores={k: clip.score(drawn[k].pictures, texts) for k in KINDS} if clip else {},
    )


def _verdicts(
    prompts: Sequence[str], drawn: Mapping[Kind, Drawn], judge: Judge | None
) -> dict[Kind, list[bool]]:
    """What the judge says of every picture."""
    if judge is None:
        return {}
    return {kind: list(judge.aligned(drawn[kind].pictures, prompts)) for kind in KINDS}


def features_of(session: Session, judge: Judge | None) -> Features | None:
    """Who sees the features: the model that was asked for, else the judge."""
    model = _open_model(session, session.settings.evaluate.features)
    return model or (judge.features if judge else None)


def _open_model(session: Session, source: str | None) -> VisionModel | None:
    return VisionModel(source, session.pipeline.device) if source is not None else None


def _compare(
    drawn: Mapping[Kind, Drawn], features: Features | None
) -> dict[Kind, dict[str, float | None]]:
    """The unguided teacher's and the student's pictures, as sets, beside the teacher's."""
    if features is None:
        return {}
    seen = {kind: features(drawn[kind].pictures) for kind in KINDS}
    return {kind: compare(seen["teacher"], seen[kind]) for kind in KINDS if kind != "teacher"}


def _results(session: Session, measured: Measured) -> Results:
    drawn, verdicts = measured.drawn, measured.verdicts
    kinds: dict[Kind, dict[str, Any]] = {
        kind: {
            "alignment": share(verdicts[kind]) if verdicts else None,
            "saturation": saturation(drawn[kind].pictures),
            "passes_per_image": drawn[kind].passes_per_image,
            "denoiser_seconds_per_image": drawn[kind].denoiser_seconds_per_image,
            **measured.distribution.get(kind, {}),
        }
        for kind in KINDS
    }
    kinds["student"]["denoiser_seconds_per_image_fused"] = measured.fused_seconds
    judged: dict[str, Any] = {}
    if verdicts:
        bounds = ratio_interval(verdicts["student"], verdicts["teacher"])
        kinds["student"]["alignment_over_teacher_95"] = bounds
        judged["categories"] = by_category(verdicts, [str(name) for name in measured.categories])
    for kind, score in measured.clip_scores.items():
        kinds[kind]["clip_score"] = score
    weights = [*session.denoiser.parameters(), *session.denoiser.buffers()]
    adapter = session.run.adapter.glob("*.safetensors")
    return Results.model_validate(
        {
            **kinds,
            **judged,
            "residual_guidance": measured.residual,
            "relative_distance": relative_distance(drawn),
            **session.compared._asdict(),
            "prompts": len(measured.prompts),
            "steps": session.settings.evaluate.steps,
            "trained_steps": read_json(session.run.metadata)["step"],
            "adapter_bytes": sum(path.stat().st_size for path in adapter),
            "denoiser_bytes": sum(w.numel() * w.element_size() for w in weights),
            "versions": {name: version(name) for name in LIBRARIES},
            "machine": f"{platform.machine()}, device {session.pipeline.device}",
        }
    )


def _index(session: Session, measured: Measured) -> PictureIndex:
    """Which kept picture shows what: prompt by prompt, and strength by strength."""
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
    steps = [
        StrengthPictures(
            strength=s, guidance=session.dial.nominal_guidance(s), teacher=t, student=own
        )
        for s, t, own in zip(STRENGTHS, teacher, student, strict=False)
    ]
    return PictureIndex(pictures=pictures, dial=steps)


def _sheet(session: Session, measured: Measured) -> Picture:
    """The first prompts' pictures, a column per kind."""
    prompts = [p.label for p in measured.prompts[: session.settings.evaluate.grid_prompts]]
    rows = [[measured.drawn[kind].pictures[k] for kind in KINDS] for k in range(len(prompts))]
    return grid(rows, [heading(kind, measured.drawn[kind]) for kind in KINDS], prompts)


def _distance(one: Picture, two: Picture) -> float:
    """Mean squared difference of two pictures' pixels, 0..1."""
    first, second = (np.asarray(p.convert("RGB"), dtype=np.float32) / 255 for p in (one, two))
    return float(np.square(first - second).mean())
