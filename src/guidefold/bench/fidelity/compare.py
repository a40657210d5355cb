"""Are the students' pictures as good, and as true to the prompt? Every method, several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from guidefold.bench.fidelity.methods import Method
from guidefold.bench.fidelity.trials import Series, Trial
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
from guidefold.run import Kind, Settings, read_json, write_bytes, write_json
from guidefold.session import Session, open_session

BASELINES: tuple[Kind, ...] = ("teacher", "unguided")


@dataclass(frozen=True)
class Found:
    """What one method came to with one seed.

    Attributes:
        method: Its name; ``teacher`` and ``unguided`` are the baselines.
        title: Its title.
        seed: The seed.
        training_passes: Samples through the denoiser to record, train and validate.
        passes: Samples through the denoiser per picture.
        alignment: Share of pictures that show their prompts; None without a judge.
        categories: The same by category of prompt.
        distance: Mean squared distance from the CFG pictures over the unguided teacher's.
        frechet_distance: Of its pictures from the CFG teacher's; None without features.
        recall: Share of the CFG teacher's pictures that it comes near to; None without features.
        residual: Residual guidance, on the teacher's and on the student's states; empty where
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
    residual: dict[str, Any]
    curve: list[tuple[int, float]]


def bench_fidelity(series: Series, methods: Sequence[Method], seeds: Sequence[int]) -> list[Found]:
    """Run what is missing, seed by seed.

    Args:
        series: Where runs are kept, and on which preset.
        methods: To compare; the baselines come along with whatever is trained.
        seeds: Of everything.

    Returns:
        One entry for each method and seed, the baselines' included, seed by seed.
    """
    found = []
    for seed in seeds:
        settings = series.settings(Trial((), seed))
        trained = [m for m in methods if m.overrides is not None]
        results = {m.name: series.run(m.trial(settings, seed)) for m in trained}
        drawn = [m for m in methods if m.overrides is None]
        if results:
            found += [_baseline(kind, seed, next(iter(results.values()))) for kind in BASELINES]
        found += [_drawn_only(series, method, seed) for method in drawn]
        found += [_trained(method, seed, results[method.name]) for method in trained]
    return found


def _trained(method: Method, seed: int, line: dict[str, Any]) -> Found:
    results = line["results"]
    return Found(
        method=method.name,
        title=method.title,
        seed=seed,
        training_passes=line["passes"],
        passes=results["student"]["passes_per_image"],
        alignment=results["student"]["alignment"],
        categories=_categories(results, "student"),
        distance=results["relative_distance"],
        frechet_distance=results["student"].get("frechet_distance"),
        recall=results["student"].get("recall"),
        residual=results["residual_guidance"],
        curve=[(passes, residual) for passes, residual in line["curve"]],
    )


def _baseline(kind: Kind, seed: int, line: dict[str, Any]) -> Found:
    """The teacher's rows come out of any trained method's measurement."""
    results = line["results"]
    return Found(
        method=kind,
        title="CFG teacher" if kind == "teacher" else "unguided",
        seed=seed,
        training_passes=0,
        passes=results[kind]["passes_per_image"],
        alignment=results[kind]["alignment"],
        categories=_categories(results, kind),
        distance=0.0 if kind == "teacher" else 1.0,  # by definition
        frechet_distance=results[kind].get("frechet_distance"),
        recall=results[kind].get("recall"),
        residual={},
        curve=[],
    )


def _categories(results: dict[str, Any], kind: Kind) -> dict[str, float]:
    return {name: shares[kind] for name, shares in results.get("categories", {}).items()}


def _drawn_only(series: Series, method: Method, seed: int) -> Found:
    """A method that trains nothing: the teacher, called otherwise."""
    trial = Trial((f"pipeline.guided_share={method.guided_share}",), seed)
    path = series.file(trial)
    if not path.exists():
        settings = series.settings(Trial((), seed), series.out / "runs" / path.stem)
        with open_session(settings) as session:
            drawn, prompts = _draw(session, method)
            features = feature_extractor(session, series.judge)
        shown = drawn["student"].pictures[: settings.evaluate.grid_prompts]
        for k, picture in enumerate(shown):
            write_bytes(series.pictures(trial) / f"student-{k:03d}.png", png(picture))
        write_json(path, _judge(series.judge, features, drawn, prompts))
    return Found(method=method.name, title=method.title, seed=seed, **read_json(path))


def _judge(
    judge: Judge | None,
    features: Features | None,
    drawn: dict[Kind, Drawn],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """What is found of pictures that no training led to."""
    verdicts = list(judge.aligned(drawn["student"].pictures, prompts)) if judge else []
    categories = [judge.category(prompt) for prompt in prompts] if judge else []
    table = by_category({"student": verdicts}, categories)
    seen = {k: features(d.pictures) for k, d in drawn.items()} if features else {}
    sets = compare(seen["teacher"], seen["student"]) if seen else {}
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
    """Pictures of teacher, unguided teacher, and of the method in the student's place."""
    settings: Settings = session.settings
    prompts = session.held_out[: settings.evaluate.prompts]
    pictures, drawn = EvaluationPictures(session), dict[Kind, Drawn]()
    call = settings.pipeline.model_copy(update={"guided_share": method.guided_share})
    otherwise = replace(session, settings=settings.model_copy(update={"pipeline": call}))
    total = 3 * len(prompts) * settings.evaluate.steps
    with task(f"Drawing, {method.title}", total) as progress:
        for kind in BASELINES:
            drawn[kind] = pictures.draw(picture_requests(session, kind, prompts), progress)
        requests = picture_requests(session, "teacher", prompts)
        drawn["student"] = draw(otherwise, requests, progress.advance)
    return drawn, [prompt.text for prompt in prompts]
