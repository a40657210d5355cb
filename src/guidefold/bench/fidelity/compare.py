"""Compare methods: alignment, and distance from the teacher's pictures, over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from guidefold.bench.fidelity.methods import Method
from guidefold.bench.fidelity.trials import BASELINES, Trial, TrialResult, Trials
from guidefold.draw import Drawn, EvaluationPictures, draw, picture_requests, png
from guidefold.ground import task
from guidefold.judge import (
    Features,
    Judge,
    by_category,
    compare,
    feature_extractor,
    relative_distance,
    share,
)
from guidefold.run import (
    Kind,
    Record,
    Residual,
    Results,
    Settings,
    read_json,
    write_bytes,
    write_record,
)
from guidefold.session import Session, open_session


class MethodResult(Record):
    """The result of a method with one seed.

    Attributes:
        method: The method's name; ``teacher`` and ``unguided`` are the baselines.
        title: The method's title.
        seed: The seed.
        training_passes: Samples through the denoiser to record, train and validate.
        passes: Samples through the denoiser per picture.
        alignment: Share of pictures that show their prompts; None without a judge.
        categories: Alignment by category of prompt.
        distance: Mean squared distance from the CFG pictures over the unguided teacher's.
        frechet_distance: Distance from the CFG teacher's pictures as a set; None without features.
        recall: Share of the CFG teacher's pictures that are covered; None without features.
        residual: Residual guidance at ``teacher_states`` and ``student_states``; empty where
            nothing is trained.
        curve: Pairs of training passes and residual guidance on held-out states.
    """

    method: str
    title: str
    seed: int
    training_passes: int
    passes: float
    alignment: float | None
    categories: dict[str, float]
    distance: float
    frechet_distance: float | None
    recall: float | None
    residual: dict[str, Residual]
    curve: list[tuple[int, float]]


def bench_fidelity(
    trials: Trials, methods: Sequence[Method], seeds: Sequence[int]
) -> list[MethodResult]:
    """Run the missing trials, seed by seed.

    Args:
        trials: The preset, and the folder of its trials.
        methods: The methods; with a trained one among them, the baselines are added.
        seeds: Seeds of all methods.

    Returns:
        One entry for each method and seed, the baselines' included, seed by seed.
    """
    results = []
    trained = [method for method in methods if method.trained]
    for seed in seeds:
        settings = trials.settings(Trial((), seed))
        finished = [trials.run(method.trial(settings, seed)) for method in trained]
        if finished:
            results += [_baseline(kind, seed, finished[0]) for kind in BASELINES]
        results += [_untrained(trials, m, settings, seed) for m in methods if not m.trained]
        results += [_trained(m, seed, result) for m, result in zip(trained, finished, strict=True)]
    return results


def _trained(method: Method, seed: int, result: TrialResult) -> MethodResult:
    return MethodResult(
        method=method.name,
        title=method.title,
        seed=seed,
        training_passes=result.passes,
        distance=result.measured.relative_distance,
        residual=dict(result.measured.residual_guidance),
        curve=result.curve,
        **_of_kind(result.measured, "student"),
    )


def _baseline(kind: Kind, seed: int, result: TrialResult) -> MethodResult:
    """The teacher's rows, which every trained method's evaluation measures."""
    return MethodResult(
        method=kind,
        title="CFG teacher" if kind == "teacher" else "unguided",
        seed=seed,
        training_passes=0,
        distance=0.0 if kind == "teacher" else 1.0,  # by definition
        residual={},
        curve=[],
        **_of_kind(result.measured, kind),
    )


def _of_kind(results: Results, kind: Kind) -> dict[str, Any]:
    """The measurements that every kind of pictures has."""
    own = results.of(kind)
    return {
        "passes": own.passes_per_image,
        "alignment": own.alignment,
        "categories": {name: getattr(row, kind) for name, row in results.categories.items()},
        "frechet_distance": own.frechet_distance,
        "recall": own.recall,
    }


def _untrained(trials: Trials, method: Method, preset: Settings, seed: int) -> MethodResult:
    """A method that trains nothing: the teacher with another share of guided steps."""
    trial = method.trial(preset, seed)
    path = trials.file(trial)
    if not path.exists():
        settings = trials.settings(Trial((), seed), trials.out / "runs" / path.stem)
        with open_session(settings) as session:
            drawn, prompts = _draw(session, method)
            features = feature_extractor(session, trials.judge)
        shown = drawn["student"].pictures[: settings.evaluate.grid_prompts]
        for k, picture in enumerate(shown):
            write_bytes(trials.pictures(trial) / f"student-{k:03d}.png", png(picture))
        write_record(path, _judge(trials.judge, features, drawn, prompts))
    return MethodResult(method=method.name, title=method.title, seed=seed, **read_json(path))


def _judge(
    judge: Judge | None,
    features: Features | None,
    drawn: dict[Kind, Drawn],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """The results of a method without training."""
    verdicts = list(judge.aligned(drawn["student"].pictures, prompts)) if judge else []
    categories = [judge.category(prompt) for prompt in prompts] if judge else []
    table = by_category({"student": verdicts}, categories)
    rows = {k: features(d.pictures) for k, d in drawn.items()} if features else {}
    sets = compare(rows["teacher"], rows["student"]) if rows else {}
    return {
        "training_passes": 0,
        "passes": drawn["student"].passes_per_image,
        "alignment": share(verdicts) if verdicts else None,
        "categories": {name: row["student"] for name, row in table.items()},
        "distance": relative_distance(drawn),
        "frechet_distance": sets.get("frechet_distance"),
        "recall": sets.get("recall"),
        "residual": {},
        "curve": [],
    }


def _draw(session: Session, method: Method) -> tuple[dict[Kind, Drawn], list[str]]:
    """Draw teacher, unguided teacher, and the method in the student's place."""
    settings: Settings = session.settings
    prompts = session.held_out[: settings.evaluate.prompts]
    pictures, drawn = EvaluationPictures(session), dict[Kind, Drawn]()
    call = settings.pipeline.model_copy(update={"guided_share": method.guided_share})
    guided_less = replace(session, settings=settings.model_copy(update={"pipeline": call}))
    total = 3 * len(prompts) * settings.evaluate.steps
    with task(f"Drawing, {method.title}", total) as progress:
        for kind in BASELINES:
            drawn[kind] = pictures.draw(picture_requests(session, kind, prompts), progress)
        requests = picture_requests(session, "teacher", prompts)
        drawn["student"] = draw(guided_less, requests, progress.advance)
    return drawn, [prompt.text for prompt in prompts]
