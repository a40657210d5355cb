"""What a run's results say in short: how fast its student is, and whether it folds enough."""

from __future__ import annotations

from guidefold.run import KindResults, Log, Results, Settings

# Of the guidance signal. The bundled teacher's student folds 0.59 of it and keeps 0.996 of the
# alignment (README); below a half, its predictions are nearer to the unguided teacher's.
ENOUGH = 0.5


def seconds_of(measured: KindResults) -> tuple[float, float | None]:
    """Denoiser time of a picture as it is best used, and with a LoRA that is not fused.

    The second is None for the teacher, which has no LoRA.
    """
    fused, loaded = measured.denoiser_seconds_per_image_fused, measured.denoiser_seconds_per_image
    return (loaded, None) if fused is None else (fused, loaded)


def speed_up(results: Results) -> tuple[float, float] | None:
    """The guided teacher's time over the student's: the adapter fused, and only loaded.

    None where no time was measured.
    """
    fused, loaded = seconds_of(results.student)
    teacher = results.teacher.denoiser_seconds_per_image
    return (teacher / fused, teacher / loaded) if teacher and fused and loaded else None


def speed_in_words(ratio: float) -> str:
    """How fast a student is, from :func:`speed_up`: ``is 1.9 times as fast as the teacher``."""
    if f"{ratio:.2g}" == "1":
        return "is as fast as the teacher"
    if ratio < 1:
        return f"is slower than the teacher: it takes {1 / ratio:.2g} times as long"
    return f"is {ratio:.2g} times as fast as the teacher"


def gains_kept(results: Results) -> list[tuple[str, str]]:
    """How much of what guidance adds to each score the student keeps: figure and meaning.

    Without saturation: guidance adds to it as a side effect.
    """
    scores = {"alignment": "alignment", "clip_score": "the CLIP score"}
    few = results.few_steps
    adds = "guidance adds" if few is None else "guidance and more steps add"
    return [
        (
            f"{kept.share:.0%}",
            f"of what {adds} to {scores[name]} is kept "
            f"(95% interval {kept.interval_95[0]:.0%} to {kept.interval_95[1]:.0%})",
        )
        for name, kept in results.gain_kept.items()
        if name in scores
    ]


def folded_share(results: Results | None, log: Log) -> float | None:
    """The share of the guidance signal that is folded: 1 all, 0 nothing.

    Args:
        results: An evaluation, which counts if it is of the last step.
        log: The run's log, whose last validation counts otherwise.

    Returns:
        The share, below 0 for a student that is worse than no guidance; None where neither exists.
    """
    if results is not None and results.trained_steps >= log.step:
        return 1 - results.residual_guidance.teacher_states.mean
    return 1 - log.validations[-1].residual_guidance if log.validations else None


def undertrained(folded: float | None, settings: Settings) -> str:
    """A warning where too little guidance is folded, with the settings that help; else empty."""
    if folded is None or folded >= ENOUGH:
        return ""
    steps, adapter, few = settings.distill.steps, settings.adapter, settings.student
    others = [f"more record.trajectories (now {settings.record.trajectories})"]
    if settings.steps_rank is not None:
        others.insert(0, f"a larger student.rank (now {settings.steps_rank})")
    if few.guidance_run is None:  # whose LoRA is as it is
        others[:0] = ["adapter.targets=all"] if adapter.targets != "all" else []
        others.insert(0, f"a larger adapter.rank (now {adapter.rank})")
    what = "guidance" if few.steps is None else "guidance and of the longer steps"
    return (
        f"Only {max(folded, 0):.0%} of the {what} is folded: train longer, for example with "
        f"distill.steps={2 * steps} (now {steps}). If that does not help, begin another run with "
        f"{', '.join(others[:-1])} or {others[-1]}."
    )
